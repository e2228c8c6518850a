//! Elementwise steps against the operators that they are made of: operands of every reach and type, kernels and interpreter.

mod net;

use lancet_artifact::{Dim, Layout, StepKind};
use lancet_ops::elementwise::OPERATORS;
use lancet_ops::{Attribute, Attributes, DType, Data, Operator, Tensor};
use lancet_runtime::{Kernels, Model, ModelOptions, Session};
use net::{Net, elementwise, views};

/// Runs `net` in every way and compares with what it means.
fn compare(net: &Net, inputs: &[(&'static str, Tensor)], what: &str) {
    let expected = net.reference(inputs);
    for kernels in [Kernels::Portable, Kernels::Emitted] {
        for threads in [1, 3] {
            let options = ModelOptions {
                threads: Some(threads),
                kernels,
                ..ModelOptions::default()
            };
            let model =
                Model::from_parts(net.plan.clone(), &net.weights, &options).expect("a valid plan");
            let mut session = Session::new(&model);
            let found = session.run(&views(inputs)).expect("runs");
            for ((_, found), expected) in found.iter().zip(&expected) {
                let what = format!("{what}, {kernels:?}");
                assert_eq!(found.shape(), expected.shape(), "{what}");
                assert_eq!(found.dtype(), expected.dtype(), "{what}");
                let (f, e) = (found.view().to_f64_vec(), expected.view().to_f64_vec());
                for (i, (f, e)) in f.iter().zip(&e).enumerate() {
                    let close = (f - e).abs() <= 4e-6 * (1.0 + e.abs());
                    let same = f == e || (f.is_nan() && e.is_nan());
                    assert!(close || same, "{what}, element {i}: {f}, expected {e}");
                }
            }
        }
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::fixed(n as i64)).collect()
}

fn meaning(body: &[&str], operands: &[Option<u32>]) -> (Operator, Attributes, Vec<Option<u32>>) {
    let lines = body.iter().map(|&l| l.to_owned()).collect();
    let attributes = Attributes::new().with("body", Attribute::Strs(lines));
    (Operator::Elementwise, attributes, operands.to_vec())
}

/// Small numbers of either sign, with fractions where there are.
fn tensor(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let at = |i: usize| ((i * 37 + seed * 11) % 41) as f64 / 4.0 - 5.0;
    let numbers = || (0..n).map(at);
    let data = match dtype {
        DType::F64 => Data::F64(numbers().collect()),
        DType::I64 => Data::I64(numbers().map(|v| v as i64).collect()),
        DType::I32 => Data::I32(numbers().map(|v| v as i32).collect()),
        DType::Bool => Data::Bool(numbers().map(|v| v < 0.0).collect()),
        _ => Data::F32(numbers().map(|v| v as f32).collect()),
    };
    Tensor::try_new(shape.to_vec(), data).expect("as many")
}

/// A step on inputs of these types and shapes.
fn row_major(body: &[&str], operands: &[(DType, &[usize])], out: (DType, &[usize])) {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    let mut net = Net::default();
    let mut inputs = Vec::new();
    let mut values = Vec::new();
    for (i, (name, &(dtype, shape))) in NAMES.into_iter().zip(operands).enumerate() {
        values.push(Some(net.input(name, dtype.name(), &dims(shape))));
        inputs.push((name, tensor(dtype, shape, i)));
    }
    let meaning = meaning(body, &values);
    let y = net.step(
        elementwise(body),
        &values,
        &dims(out.1),
        Layout::RowMajor,
        meaning,
    );
    net.plan.values[y as usize].dtype = out.0.name().to_owned();
    net.output("y", y);
    compare(&net, &inputs, &format!("{body:?} of {operands:?}"));
}

#[test]
fn operands_broadcast_in_every_way() {
    let f = DType::F32;
    let body = ["mul x0 x1", "add v0 0.5", "relu v1"];
    for (a, b, out) in [
        (&[][..], &[][..], &[][..]),
        (&[1], &[5], &[5]),
        (&[2, 3, 7], &[2, 3, 7], &[2, 3, 7]),
        (&[2, 3, 7], &[7], &[2, 3, 7]),
        (&[2, 3, 7], &[2, 3, 1], &[2, 3, 7]),
        (&[2, 3, 7], &[2, 1, 7], &[2, 3, 7]),
        (&[3, 1], &[1, 4], &[3, 4]),
        (&[4, 1, 3, 1], &[2, 1, 5], &[4, 2, 3, 5]),
        (&[0, 3], &[3], &[0, 3]),
        (&[64, 257], &[257], &[64, 257]),
        (&[64, 257], &[64, 1], &[64, 257]),
        (&[16384], &[1], &[16384]),
    ] {
        row_major(&body, &[(f, a), (f, b)], (f, out));
    }
}

#[test]
fn every_function_of_every_type() {
    let shape: &[usize] = &[3, 301];
    for &op in OPERATORS {
        for dtype in [DType::F32, DType::F64, DType::I64, DType::I32, DType::Bool] {
            let name = op.schema().text;
            let n = match op {
                Operator::Min | Operator::Max => 2,
                _ => op.schema().operands.0,
            };
            let line = match n {
                1 => format!("{name} x0"),
                2 => format!("{name} x0 x1"),
                _ => format!("{name} x0 x1 x2"),
            };
            let mut operands = vec![(dtype, shape); n];
            if op == Operator::Where {
                operands[0].0 = DType::Bool;
            }
            let dtypes: Vec<DType> = operands.iter().map(|o| o.0).collect();
            let parsed = lancet_ops::elementwise::Body::parse(&[&line]).expect("a line");
            if let Ok(types) = parsed.types(&dtypes) {
                row_major(&[&line], &operands, (types[0].1, shape));
            }
        }
    }
}

#[test]
fn conversions_between_all_types() {
    let shape: &[usize] = &[7, 11];
    let all = [DType::F32, DType::F64, DType::I64, DType::I32, DType::Bool];
    for from in all {
        for to in all {
            row_major(&[&format!("{to} x0")], &[(from, shape)], (to, shape));
        }
    }
    let body = ["f32 x0", "mul v0 x1", "where x2 v1 -1"];
    let operands = [
        (DType::I64, shape),
        (DType::F32, shape),
        (DType::Bool, &[7, 1][..]),
    ];
    row_major(&body, &operands, (DType::F32, shape));
}

#[test]
fn panels_with_features_tokens_and_numbers() {
    for tokens in [1, 9, 33, 100] {
        let mut net = Net::default();
        let k = 21;
        let (x, t) = (
            net.input("x", "f32", &dims(&[tokens, k])),
            net.input("t", "f32", &dims(&[tokens, 1])),
        );
        let values = net.random(k);
        let features = net.constant(&[k], values);
        let one = net.constant(&[1], vec![0.75]);
        let (px, pt) = (
            net.same(StepKind::ToPanels, x, Layout::Panels),
            net.same(StepKind::ToPanels, t, Layout::Panels),
        );
        let body = ["mul x0 x1", "sub x2 v0", "gelu v1", "mul v2 x3", "atan v3"];
        for body in [&body[..4], &body[..]] {
            let operands = [Some(px), Some(features), Some(pt), Some(one)];
            let shape = dims(&[tokens, k]);
            let meaning = meaning(body, &operands);
            let y = net.step(
                elementwise(body),
                &operands,
                &shape,
                Layout::Panels,
                meaning,
            );
            let y = net.same(StepKind::FromPanels, y, Layout::RowMajor);
            net.output(["y", "z"][body.len() - 4], y);
        }
        let inputs = [
            ("x", tensor(DType::F32, &[tokens, k], 1)),
            ("t", tensor(DType::F32, &[tokens, 1], 2)),
        ];
        compare(&net, &inputs, &format!("{tokens} tokens"));
    }
}

#[test]
fn hostile_bodies_are_refused() {
    for body in [
        &[][..],
        &["add x0"],
        &["add x0 x1"],
        &["relu v0"],
        &["relu x0", "add v0 v2"],
        &["where x0 x0 x0"],
        &["not x0"],
        &["and x0 x0"],
        &["i64 x0"],
        &["bf16 x0", "f32 v0"],
        &["less x0 0", "relu v0"],
        &["nonsense x0"],
        &["relu x"],
        &["relu x99999999999999"],
        &["sqrt 4"],
        &[""],
    ] {
        let mut net = Net::default();
        let x = net.input("x", "f32", &dims(&[4]));
        let operands = [Some(x)];
        let y = net.step(
            elementwise(body),
            &operands,
            &dims(&[4]),
            Layout::RowMajor,
            meaning(body, &operands),
        );
        net.output("y", y);
        let model = Model::from_parts(net.plan.clone(), &net.weights, &ModelOptions::default());
        let runs = model.is_ok_and(|m| {
            let x = tensor(DType::F32, &[4], 0);
            Session::new(&m).run(&[("x", x.view())]).is_ok()
        });
        assert!(!runs, "{body:?}");
    }
}
