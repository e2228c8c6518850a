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

/// Numbers at the edges of both types of floats, none of them a NaN with a payload.
fn edges(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    const SINGLE: [f32; 24] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        3.000_000_2,
        1e-45,
        -1e-40,
        1.17e-38,
        0.1,
        -0.3,
        127.49,
        8_388_607.5,
        -8_388_609.0,
        16_777_217.0,
        3.4e38,
        -3.4e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    const DOUBLE: [f64; 12] = [
        5e-324,
        -1e-310,
        1e-46,
        4e38,
        -1e300,
        4_503_599_627_370_495.5,
        -4_503_599_627_370_497.0,
        0.1,
        1.000_000_059_604_644_8,
        1e16,
        -7.5,
        1_786_225_889.0,
    ];
    let n: usize = shape.iter().product();
    let place = |i: usize| (i * 7 + i / 24 + seed * 5) % 24;
    let data = match dtype {
        DType::F64 => Data::F64(
            (0..n)
                .map(|i| match i % 3 {
                    0 => DOUBLE[place(i) % 12],
                    _ => f64::from(SINGLE[place(i)]),
                })
                .collect(),
        ),
        DType::F32 => Data::F32((0..n).map(|i| SINGLE[place(i)]).collect()),
        DType::I64 => Data::I64((0..n).map(|i| (i as i64 - 40) << (place(i) * 2)).collect()),
        DType::I32 => Data::I32((0..n).map(|i| (i as i32 - 40) << place(i)).collect()),
        _ => Data::Bool((0..n).map(|i| place(i) % 3 == 0).collect()),
    };
    Tensor::try_new(shape.to_vec(), data).expect("as many")
}

/// Bodies with values in double precision, of operands `a` in `f32`, `b` in `f64`, `c` of booleans and `i` of integers: kernels
/// and interpreter give the bits of the operators.
#[test]
fn bodies_in_double_precision_are_exact() {
    const BODIES: &[&str] = &[
        "f64 x0; add v0 x1",
        "f64 x0; sub v0 x1",
        "f64 x0; mul v0 x1",
        "f64 x0; div x1 v0",
        "f64 x0; max v0 x1",
        "f64 x0; min v0 x1",
        "f64 x0; max v0 0; min x1 v1",
        "f64 x0; max -0.0 v0; min x1 v1; max v2 -3",
        "f32 x1; add v0 x0",
        "f32 x1; sub v0 x0",
        "f32 x1; mul v0 x0",
        "f32 x1; div v0 x0",
        "f32 x1; sqrt v0; add v1 x0",
        "f32 x1; reciprocal v0; max v1 x0",
        "abs x1; sqrt v0; f64 x0; div v1 v2",
        "neg x1; round v0; f64 x0; add v1 v2",
        "floor x1; ceil x1; sub v0 v1; f64 x0; mul v2 v3",
        "round x0; floor x0; ceil x0; sub v1 v2; mul v0 v3; f64 v4; sign x1; mul v5 v6",
        "reciprocal x1; relu v0; f64 x0; sub v2 v1",
        "f64 x0; less v0 x1; f64 v1; greater_or_equal v0 x1; f64 v3; sub v2 v4",
        "f64 x0; equal v0 x1; where v1 1 0; f64 v2",
        "f64 x0; less_or_equal v0 x1; greater v0 x1; xor v1 v2; not v3; and v4 x2; or v5 x2; f32 v6",
        "where x2 x0 -1.5; f64 v0; where x2 v1 x1; is_nan v2; f64 v3; add v2 v4",
        "f64 x0; mul v0 1186225889.0; div v1 256.0; round v2; f32 v3; max v4 -32768; min v5 32767; mul v6 3.051851e-10",
        "f64 x3; add v0 x1; f32 x3; mul v2 x0; f64 v3; sub v1 v4",
        "f64 x0; mul v0 v0; mul v1 v1; mul v2 v2",
        "div x1 3; div v0 1024; f64 x0; div v2 -0.5; add v1 v3; div v4 1e-320; div v5 inf; sub v6 0.1",
        "div x0 2e-39; div v0 8.507059e37; div v1 1.7014118e38; f64 v2; div x1 v3",
        "equal x3 -17; where v0 x0 -1.5",
        "less x3 2147483646; greater_or_equal 2147483647 x3; and v0 v1; where v2 x0 2",
    ];
    let shape: &[usize] = &[5, 71];
    for body in BODIES {
        let body: Vec<&str> = body.split("; ").collect();
        let parsed = lancet_ops::elementwise::Body::parse(&body).expect("a body");
        for integer in [DType::I64, DType::I32] {
            for of_b in [shape, &[71], &[5, 1], &[1]] {
                let dtypes = [DType::F32, DType::F64, DType::Bool, integer];
                let shapes = [shape, of_b, &[5, 1], shape];
                let mut net = Net::default();
                let mut inputs = Vec::new();
                let mut values = Vec::new();
                for (i, name) in ["a", "b", "c", "i"].into_iter().enumerate() {
                    values.push(Some(net.input(name, dtypes[i].name(), &dims(shapes[i]))));
                    inputs.push((name, edges(dtypes[i], shapes[i], i)));
                }
                let result = parsed.types(&dtypes).expect("of these types").pop();
                let result = result.expect("a line").1;
                let y = net.step(
                    elementwise(&body),
                    &values,
                    &dims(shape),
                    Layout::RowMajor,
                    meaning(&body, &values),
                );
                net.plan.values[y as usize].dtype = result.name().to_owned();
                net.output("y", y);
                exact(&net, &inputs, &format!("{body:?} b {of_b:?}"));
            }
        }
    }
}

/// Runs `net` by kernels and without: the bits are those of what it means, but for what a NaN carries.
fn exact(net: &Net, inputs: &[(&'static str, Tensor)], what: &str) {
    let expected = net.reference(inputs);
    for kernels in [Kernels::Portable, Kernels::Emitted] {
        let options = ModelOptions {
            threads: Some(2),
            kernels,
            ..ModelOptions::default()
        };
        let model =
            Model::from_parts(net.plan.clone(), &net.weights, &options).expect("a valid plan");
        let mut session = Session::new(&model);
        session.set_tracing(true);
        let found = session.run(&views(inputs)).expect("runs");
        for ((_, found), expected) in found.iter().zip(&expected) {
            assert_eq!(found.dtype(), expected.dtype(), "{what}");
            let (f, e) = (found.view().to_f64_vec(), expected.view().to_f64_vec());
            for (i, (f, e)) in f.iter().zip(&e).enumerate() {
                let same = f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan());
                assert!(
                    same,
                    "{what}, {kernels:?}, element {i}: {f:e}, expected {e:e}"
                );
            }
        }
        let interpreted = (session.trace().iter()).any(|t| t.kernel.starts_with("interpreted"));
        if kernels == Kernels::Portable || cfg!(all(feature = "jit", target_arch = "x86_64")) {
            let expected = kernels == Kernels::Portable;
            assert_eq!(interpreted, expected, "{what}, {kernels:?}");
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
fn panels_in_double_precision() {
    for tokens in [1, 9, 33, 100] {
        let mut net = Net::default();
        let k = 21;
        let (x, t) = (
            net.input("a", "f32", &dims(&[tokens, k])),
            net.input("t", "f32", &dims(&[tokens, 1])),
        );
        let operands = [
            Some(net.same(StepKind::ToPanels, x, Layout::Panels)),
            Some(net.same(StepKind::ToPanels, t, Layout::Panels)),
            Some(net.input("b", "f64", &dims(&[k]))),
            Some(net.input("o", "f64", &dims(&[1, 1]))),
        ];
        let body = [
            "f64 x0",
            "mul v0 x2",
            "f64 x1",
            "add v1 v2",
            "round v3",
            "div v4 x3",
            "f32 v5",
        ];
        let y = net.step(
            elementwise(&body),
            &operands,
            &dims(&[tokens, k]),
            Layout::Panels,
            meaning(&body, &operands),
        );
        let y = net.same(StepKind::FromPanels, y, Layout::RowMajor);
        net.output("y", y);
        let inputs = [
            ("a", edges(DType::F32, &[tokens, k], 1)),
            ("t", edges(DType::F32, &[tokens, 1], 2)),
            ("b", edges(DType::F64, &[k], 3)),
            ("o", tensor(DType::F64, &[1, 1], 3)),
        ];
        exact(&net, &inputs, &format!("{tokens} tokens"));
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
