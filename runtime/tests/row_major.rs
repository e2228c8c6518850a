//! Steps over row-major tensors that have kernels, against the operators that define them.

mod net;

use lancet_artifact::{Dim, Layout, StepKind};
use lancet_ops::{Attributes, Operator, Tensor};
use lancet_runtime::{Kernels, Model, ModelOptions, Session};
use net::{Net, views};

const KERNELS: [Kernels; 2] = [Kernels::Portable, Kernels::Emitted];

fn close(net: &Net, inputs: &[(&'static str, Tensor)], what: &str) {
    let expected = net.reference(inputs);
    for kernels in KERNELS {
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
            assert_eq!(found[0].1.shape(), expected[0].shape(), "{what}");
            let (f, e) = (
                found[0].1.as_slice::<f32>().expect("f32"),
                expected[0].as_slice::<f32>().expect("f32"),
            );
            for (i, (f, e)) in f.iter().zip(e).enumerate() {
                assert!(
                    (f - e).abs() <= 2e-5 * (1.0 + e.abs()),
                    "{what}, {kernels:?}, element {i}: found {f}, expected {e}"
                );
            }
        }
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&n| Dim::fixed(n as i64)).collect()
}

#[test]
fn products_of_every_size_and_broadcast() {
    for (a, b, out) in [
        (&[1, 1][..], &[1, 1][..], &[1, 1][..]),
        (&[5, 3], &[3, 17], &[5, 17]),
        (&[97, 33], &[33, 16], &[97, 16]),
        (&[2, 3, 13, 8], &[2, 3, 8, 13], &[2, 3, 13, 13]),
        (&[2, 3, 6, 4], &[1, 3, 4, 5], &[2, 3, 6, 5]),
        (&[3, 1, 7, 4], &[2, 4, 5], &[3, 2, 7, 5]),
        (&[2, 7, 0], &[2, 0, 3], &[2, 7, 3]),
        (&[0, 7, 2], &[0, 2, 3], &[0, 7, 3]),
        (&[2, 7, 2], &[2, 2, 0], &[2, 7, 0]),
    ] {
        let mut net = Net::default();
        let (x, y) = (
            net.input("a", "f32", &dims(a)),
            net.input("b", "f32", &dims(b)),
        );
        let operands = vec![Some(x), Some(y)];
        let meaning = (Operator::MatMul, Attributes::new(), operands.clone());
        let c = net.step(
            StepKind::MatMul,
            &operands,
            &dims(out),
            Layout::RowMajor,
            meaning,
        );
        net.output("c", c);
        let mut values = |shape: &[usize]| {
            let n = shape.iter().product();
            Tensor::new(shape, net.random(n))
        };
        let inputs = [("a", values(a)), ("b", values(b))];
        close(&net, &inputs, &format!("{a:?} by {b:?}"));
    }
}

#[test]
fn softmax_of_rows_of_every_length() {
    for shape in [
        &[1, 1][..],
        &[3, 5],
        &[16, 16],
        &[65, 33],
        &[2, 3, 17, 40],
        &[2, 0],
        &[0, 3],
    ] {
        let mut net = Net::default();
        let x = net.input("x", "f32", &dims(shape));
        let meaning = (Operator::Softmax, Attributes::new(), vec![Some(x)]);
        let y = net.step(
            StepKind::Softmax,
            &[Some(x)],
            &dims(shape),
            Layout::RowMajor,
            meaning,
        );
        net.output("y", y);
        let n = shape.iter().product();
        let values = net.random(n).iter().map(|v| 20.0 * v).collect::<Vec<f32>>();
        let inputs = [("x", Tensor::new(shape, values))];
        close(&net, &inputs, &format!("softmax of {shape:?}"));
    }
}
