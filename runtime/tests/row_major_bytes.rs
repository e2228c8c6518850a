//! Steps that take and make row-major bytes, against the operators that define them.

mod net;

use lancet_artifact::{Dim, Layout, Plan, StepKind};
use lancet_ops::{Attribute, Attributes, Operator, Tensor};
use lancet_runtime::{Kernels, Model, ModelOptions, Session};
use net::{Net, views};

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::fixed(n as i64)).collect()
}

/// Runs with and without kernels, with one thread and with several: each gives what the plan means.
fn same(net: &Net, inputs: &[(&'static str, Tensor)], what: &str) {
    let expected = net.reference(inputs).remove(0);
    for kernels in [Kernels::Portable, Kernels::Emitted] {
        for threads in [1, 3] {
            let options = ModelOptions {
                threads: Some(threads),
                kernels,
                ..ModelOptions::default()
            };
            let model =
                Model::from_parts(net.plan.clone(), &net.weights, &options).expect("a valid plan");
            let found = Session::new(&model).run(&views(inputs)).expect("runs");
            assert!(found[0].1 == expected, "{what}, {kernels:?}");
        }
    }
}

/// Two thirds of the bytes are the least and the greatest one.
fn bytes(dtype: &str, shape: &[usize], seed: usize) -> Tensor {
    let n: usize = shape.iter().product();
    let byte = |i: usize| match (i / 7 + seed) % 3 {
        0 => 255,
        1 => 0,
        _ => (i * 151 + seed) as u8,
    };
    match dtype {
        "u8" => Tensor::new(shape, (0..n).map(byte).collect::<Vec<u8>>()),
        _ => Tensor::new(
            shape,
            (0..n).map(|i| (byte(i) ^ 0x80) as i8).collect::<Vec<i8>>(),
        ),
    }
}

fn product(shapes: [&[usize]; 3], dtypes: [&str; 2], zeros: [bool; 2]) -> Net {
    let mut net = Net::default();
    let [a, b, out] = shapes;
    let a = net.input("a", dtypes[0], &dims(a));
    let b = net.input("b", dtypes[1], &dims(b));
    let a_zero = zeros[0].then(|| net.input("a_zero", dtypes[0], &[]));
    let b_zero = zeros[1].then(|| net.input("b_zero", dtypes[1], &dims(&[1])));
    let operands = vec![Some(a), Some(b), a_zero, b_zero];
    let meaning = (Operator::MatMulInteger, Attributes::new(), operands.clone());
    let c = net.step_of(
        "i32",
        StepKind::MatMul,
        &operands,
        (&dims(out), Layout::RowMajor),
        meaning,
    );
    net.output("c", c);
    net
}

#[test]
fn products_of_bytes_are_exact() {
    for [a, b, out] in [
        [&[1, 1][..], &[1, 1][..], &[1, 1][..]],
        [&[97, 33], &[33, 16], &[97, 16]],
        [&[2, 3, 13, 8], &[2, 3, 8, 13], &[2, 3, 13, 13]],
        [&[3, 1, 7, 4], &[2, 4, 5], &[3, 2, 7, 5]],
        // Sums leave 2^24.
        [&[5, 256], &[256, 17], &[5, 17]],
        [&[5, 257], &[257, 17], &[5, 17]],
        [&[2, 7, 1000], &[2, 1000, 3], &[2, 7, 3]],
        [&[2, 7, 0], &[2, 0, 3], &[2, 7, 3]],
        [&[2, 7, 2], &[2, 2, 0], &[2, 7, 0]],
    ] {
        for dtypes in [["u8", "u8"], ["u8", "i8"], ["i8", "u8"], ["i8", "i8"]] {
            for zeros in [[true, true], [true, false], [false, true], [false, false]] {
                let net = product([a, b, out], dtypes, zeros);
                let mut inputs = vec![("a", bytes(dtypes[0], a, 1)), ("b", bytes(dtypes[1], b, 1))];
                if zeros[0] {
                    inputs.push(("a_zero", bytes(dtypes[0], &[], 0)));
                }
                if zeros[1] {
                    inputs.push(("b_zero", bytes(dtypes[1], &[1], 2)));
                }
                same(
                    &net,
                    &inputs,
                    &format!("{a:?} by {b:?} of {dtypes:?}, {zeros:?}"),
                );
            }
        }
    }
}

fn quantized(shape: &[usize], dtype: &str, zero: bool) -> Net {
    let mut net = Net::default();
    let x = net.input("x", "f32", &dims(shape));
    let scale = net.input("scale", "f32", &[]);
    let zero = zero.then(|| net.input("zero", dtype, &[]));
    let mut operands = vec![Some(x), Some(scale)];
    operands.extend(zero.map(Some));
    let to = Attributes::new().with("output_dtype", Attribute::Str(dtype.to_owned()));
    let meaning = (Operator::QuantizeLinear, to, operands.clone());
    let y = net.step_of(
        dtype,
        StepKind::Quantize,
        &operands,
        (&dims(shape), Layout::RowMajor),
        meaning,
    );
    net.output("y", y);
    net
}

#[test]
fn quantization_rounds_saturates_and_drops_nan() {
    let mut values = vec![
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        3e38,
        -3e38,
        -0.0,
    ];
    values.extend((-20_000i16..20_000).map(|i| f32::from(i) * 0.0625));
    for (values, scale) in [(values, 0.125f32), (Vec::new(), 1.0), (vec![2.5], 1e-30)] {
        for (dtype, zero) in [
            ("u8", 0),
            ("u8", 3),
            ("u8", 255),
            ("i8", 0),
            ("i8", 3),
            ("i8", 131),
        ] {
            let net = quantized(&[values.len()], dtype, zero != 0);
            let mut inputs = vec![
                ("x", Tensor::new([values.len()], values.clone())),
                ("scale", Tensor::scalar(scale)),
            ];
            if zero != 0 {
                let zero_point = match dtype {
                    "u8" => Tensor::scalar(zero as u8),
                    _ => Tensor::scalar(zero as u8 as i8),
                };
                inputs.push(("zero", zero_point));
            }
            same(
                &net,
                &inputs,
                &format!("{dtype}, zero point {zero}, scale {scale}"),
            );
        }
    }
}

#[test]
fn steps_of_bytes_that_do_not_fit_are_refused() {
    fn refused(mut net: Net, change: impl Fn(&mut Plan), expected: &str) {
        change(&mut net.plan);
        let loaded = Model::from_parts(net.plan, &net.weights, &ModelOptions::default());
        let error = loaded.err().expect("refused").to_string();
        assert!(
            error.contains(expected),
            "expected {expected}, found {error}"
        );
    }
    let good = || product([&[2, 3], &[3, 4], &[2, 4]], ["u8", "i8"], [true, true]);
    refused(
        good(),
        |p| p.values[2].dtype = "i8".to_owned(),
        "expected one u8",
    );
    refused(
        good(),
        |p| p.values[3].shape = dims(&[4]),
        "expected one i8",
    );
    refused(
        good(),
        |p| p.values[1].dtype = "i32".to_owned(),
        "expected bytes",
    );
    refused(good(), |p| p.values[4].dtype = "f32".to_owned(), "inputs");
    refused(good(), |p| p.values[0].shape = dims(&[3]), "rank 2 or more");
    let good = || quantized(&[2, 3], "i8", true);
    refused(
        good(),
        |p| p.values[2].dtype = "u8".to_owned(),
        "expected one i8",
    );
    refused(
        good(),
        |p| p.values[1].shape = dims(&[2]),
        "expected one f32",
    );
    refused(
        good(),
        |p| p.values[3].dtype = "u16".to_owned(),
        "expected bytes",
    );
    refused(
        good(),
        |p| p.values[0].dtype = "f64".to_owned(),
        "expected f32",
    );
    refused(good(), |p| p.values[3].shape = dims(&[6]), "ranks [2]");
}
