//! Steps over row-major tensors that have kernels, against the operators that define them.

mod net;

use std::ops::Range;

use lancet_artifact::{Dim, Layout, Plan, Reduction, StepKind, Storage};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};
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

/// Runs with one thread and with several, by kernels and without, which must give the same bits.
fn run(net: &Net, inputs: &[(&'static str, Tensor)], what: &str) -> Tensor {
    let ways = KERNELS.map(|kernels| [1, 3].map(|threads| (kernels, threads)));
    let mut found = ways.as_flattened().iter().map(|&(kernels, threads)| {
        let options = ModelOptions {
            threads: Some(threads),
            kernels,
            ..ModelOptions::default()
        };
        let model =
            Model::from_parts(net.plan.clone(), &net.weights, &options).expect("a valid plan");
        let mut found = Session::new(&model).run(&views(inputs)).expect("runs");
        found.remove(0).1
    });
    let first = found.next().expect("there are ways");
    for other in found {
        assert_eq!(format!("{first:?}"), format!("{other:?}"), "{what}");
    }
    first
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
    for (shape, axis) in [
        (&[1, 1][..], 1),
        (&[3, 5], 1),
        (&[16, 16], 1),
        (&[65, 33], 1),
        (&[2, 3, 17, 40], 3),
        (&[2, 0], 1),
        (&[0, 3], 1),
        // The elements of a row are apart.
        (&[70, 5, 1], 1),
        (&[65, 33], 0),
        (&[5, 7, 3], 1),
        (&[3, 9, 70], 1),
        (&[4, 3, 0], 1),
        (&[4, 0, 3], 1),
    ] {
        let mut net = Net::default();
        let x = net.input("x", "f32", &dims(shape));
        let attributes = Attributes::new().with("axis", Attribute::Int(axis.into()));
        let meaning = (Operator::Softmax, attributes, vec![Some(x)]);
        let y = net.step(
            StepKind::Softmax { axis },
            &[Some(x)],
            &dims(shape),
            Layout::RowMajor,
            meaning,
        );
        net.output("y", y);
        let n = shape.iter().product();
        let values = net.random(n).iter().map(|v| 20.0 * v).collect::<Vec<f32>>();
        let inputs = [("x", Tensor::new(shape, values))];
        close(&net, &inputs, &format!("softmax of {shape:?} over {axis}"));
    }
}

/// A plan of one reduction of input `x` over `axes`, which stay as ones or leave.
fn reduction(
    reduction: Reduction,
    dtype: &str,
    shape: &[usize],
    axes: &Range<u32>,
    keepdims: bool,
) -> Net {
    let mut net = Net::default();
    let x = net.input("x", dtype, &dims(shape));
    let names: Vec<i64> = axes.clone().map(i64::from).collect();
    let names = net.meant(Tensor::new([names.len()], names));
    let attributes = Attributes::new().with("keepdims", Attribute::Int(i64::from(keepdims)));
    let op = Operator::from_text(reduction.name()).expect("an operator");
    let result: Vec<usize> = (0u32..)
        .zip(shape)
        .filter(|(d, _)| keepdims || !axes.contains(d))
        .map(|(d, &n)| if axes.contains(&d) { 1 } else { n })
        .collect();
    let axes = axes.clone();
    let y = net.step_of(
        dtype,
        StepKind::Reduce { reduction, axes },
        &[Some(x)],
        (&dims(&result), Layout::RowMajor),
        (op, attributes, vec![Some(x), Some(names)]),
    );
    net.output("y", y);
    net
}

const REDUCED: [(&[usize], Range<u32>); 14] = [
    (&[1], 0..1),
    (&[3, 5], 1..2),
    (&[3, 5], 0..1),
    (&[3, 5], 0..2),
    (&[2, 4, 7, 33], 3..4),
    (&[2, 3, 5, 8], 2..4),
    (&[2, 37, 130], 1..2),
    (&[3, 2, 3, 9], 1..3),
    (&[70, 9000], 1..2),
    (&[500, 70], 0..1),
    (&[2, 0], 1..2),
    (&[0, 3], 1..2),
    (&[2, 0, 3], 1..2),
    (&[2, 3, 0], 1..2),
];

const FLOATS: [&str; 2] = ["f32", "f64"];

fn floats(dtype: &str, shape: &[usize], values: &[f32]) -> Tensor {
    match dtype {
        "f64" => Tensor::new(
            shape,
            values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>(),
        ),
        _ => Tensor::new(shape, values.to_vec()),
    }
}

#[test]
fn reductions_of_what_is_no_number() {
    for (shape, axes) in [(&[40, 29][..], 1..2), (&[29, 47], 0..1), (&[3, 1], 1..2)] {
        for (r, dtype) in Reduction::ALL
            .into_iter()
            .flat_map(|r| FLOATS.map(|d| (r, d)))
        {
            let net = reduction(r, dtype, shape, &axes, false);
            let n = shape.iter().product();
            let value = |i: usize| match i * 13 % 101 {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                3..=50 => -0.0,
                _ => 0.0,
            };
            let values: Vec<f32> = (0..n).map(value).collect();
            let inputs = [("x", floats(dtype, shape, &values))];
            let what = format!("{r} of {dtype}{shape:?} over {axes:?}");
            let (found, expected) = (run(&net, &inputs, &what), net.reference(&inputs).remove(0));
            let (found, expected) = (found.view().to_f64_vec(), expected.view().to_f64_vec());
            for (f, e) in found.iter().zip(&expected) {
                assert!(f == e || (f.is_nan() && e.is_nan()), "{what}: {f}, {e}");
            }
        }
    }
}

#[test]
fn reductions_of_panels() {
    for tokens in [1, 9, 17, 33, 100] {
        for features in [1, 2, 70] {
            for r in Reduction::ALL {
                let mut net = Net::default();
                let x = net.input("x", "f32", &dims(&[tokens, features]));
                let panels = net.same(StepKind::ToPanels, x, Layout::Panels);
                let axes = net.meant(Tensor::new([1], vec![-1i64]));
                let op = Operator::from_text(r.name()).expect("an operator");
                let y = net.step(
                    StepKind::Reduce {
                        reduction: r,
                        axes: 1..2,
                    },
                    &[Some(panels)],
                    &dims(&[tokens, 1]),
                    Layout::Panels,
                    (op, Attributes::new(), vec![Some(panels), Some(axes)]),
                );
                let y = net.same(StepKind::FromPanels, y, Layout::RowMajor);
                net.output("y", y);
                let values = net.random(tokens * features);
                let inputs = [("x", Tensor::new([tokens, features], values))];
                let what = format!("{r} of {features} features of {tokens} tokens");
                run(&net, &inputs, &what);
                close(&net, &inputs, &what);
            }
        }
    }
}

#[test]
fn reductions_of_floats() {
    for (shape, axes) in REDUCED {
        for keepdims in [false, true] {
            for (r, dtype) in Reduction::ALL
                .into_iter()
                .flat_map(|r| FLOATS.map(|d| (r, d)))
            {
                let mut net = reduction(r, dtype, shape, &axes, keepdims);
                let n = shape.iter().product();
                // Sums that only a wide accumulator keeps.
                let large = |(i, v): (usize, f32)| if i % 7 == 3 { 1e6 * v } else { v };
                let values: Vec<f32> = net.random(n).into_iter().enumerate().map(large).collect();
                let inputs = [("x", floats(dtype, shape, &values))];
                let what = format!("{r} of {dtype}{shape:?} over {axes:?}, keepdims {keepdims}");
                let (found, expected) =
                    (run(&net, &inputs, &what), net.reference(&inputs).remove(0));
                assert_eq!(found.shape(), expected.shape(), "{what}");
                assert_eq!(found.dtype(), expected.dtype(), "{what}");
                // Sums of f64 depend on their order.
                let error = match dtype {
                    "f32" => f64::from(f32::EPSILON),
                    _ => 1e-10,
                };
                let (found, expected) = (found.view().to_f64_vec(), expected.view().to_f64_vec());
                for (f, e) in found.iter().zip(&expected) {
                    let near = (f - e).abs() <= error * e.abs();
                    assert!(
                        near || f == e || (f.is_nan() && e.is_nan()),
                        "{what}: {f}, expected {e}"
                    );
                }
            }
        }
    }
}

#[test]
fn reductions_of_integers_wrap() {
    for (shape, axes) in REDUCED {
        for r in [Reduction::Sum, Reduction::Max, Reduction::Min] {
            let what = format!("{r} of {shape:?} over {axes:?}");
            let n = shape.iter().product::<usize>() as u64;
            let values = (0..n).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as i64);
            let words: Vec<i64> = values.collect();
            let halves: Vec<i32> = words.iter().map(|&v| (v >> 32) as i32).collect();
            for x in [Tensor::new(shape, words), Tensor::new(shape, halves)] {
                let net = reduction(r, x.dtype().name(), shape, &axes, true);
                let inputs = [("x", x)];
                assert_eq!(
                    run(&net, &inputs, &what),
                    net.reference(&inputs).remove(0),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_so_wherever_it_stands() {
    for r in Reduction::ALL {
        for at in 0..19 {
            for (shape, axes) in [([1, 19], 1..2), ([19, 1], 0..1)] {
                let net = reduction(r, "f32", &shape, &axes, true);
                let mut values = vec![f32::INFINITY; 19];
                values[at] = f32::NAN;
                let found = run(&net, &[("x", Tensor::new(shape, values))], r.name());
                assert!(
                    found.as_slice::<f32>().expect("f32")[0].is_nan(),
                    "{r}, {at}"
                );
            }
        }
    }
}

/// Why a plan is refused when it is loaded, or else when it runs on an input of this shape.
fn refusal(plan: Plan, shape: &[usize], dtype: DType) -> String {
    let options = ModelOptions::default();
    match Model::from_parts(plan, &lancet_artifact::Weights::new(), &options) {
        Err(e) => e.to_string(),
        Ok(model) => {
            let x = Tensor::zeros(dtype, shape);
            let inputs = [("x", x)];
            let error = Session::new(&model)
                .run(&views(&inputs))
                .expect_err("refused");
            error.to_string()
        }
    }
}

#[test]
fn reductions_that_make_no_sense_are_refused() {
    let good = || reduction(Reduction::Mean, "f32", &[2, 3, 4], &(1..2), false).plan;
    let refused = |change: &dyn Fn(&mut Plan), expected: &str| {
        let mut plan = good();
        change(&mut plan);
        let dtype = plan.values[0].dtype.parse().expect("a type");
        let found = refusal(plan, &[2, 3, 4], dtype);
        assert!(
            found.contains(expected),
            "expected {expected}, found {found}"
        );
    };
    let axes = |axes: Range<u32>| {
        move |plan: &mut Plan| {
            let reduction = Reduction::Mean;
            let axes = axes.clone();
            plan.steps[0].kind = StepKind::Reduce { reduction, axes };
        }
    };
    refused(&axes(1..1), "dimensions 1..1 of 3");
    refused(&axes(Range { start: 2, end: 1 }), "dimensions 2..1 of 3");
    refused(&axes(2..4), "dimensions 2..4 of 3");
    refused(&axes(0..u32::MAX), "of 3");
    refused(&axes(1..3), "2 of 3 dimensions leave 2");
    refused(&axes(2..3), "[2, 3, 4] to [2, 4]");
    refused(
        &|p| p.values[1].shape[1] = Dim::fixed(5),
        "[2, 3, 4] to [2, 5]",
    );
    refused(
        &|p| p.values[1].dtype = "i32".to_owned(),
        "expected f32 as result",
    );
    refused(
        &|p| p.values.iter_mut().for_each(|v| v.dtype = "i32".to_owned()),
        "reduce_mean of i32",
    );
    refused(
        &|p| p.values[1].layout = Layout::Panels,
        "expected token panels of f32",
    );
    refused(&|p| p.steps[0].inputs.clear(), "inputs");
    let in_panels = |axes: Range<u32>, features: i64| {
        move |plan: &mut Plan| {
            let (axes, mut panels) = (axes.clone(), plan.values[0].clone());
            panels.layout = Layout::Panels;
            panels.storage = Storage::Slot;
            plan.values.push(panels);
            plan.values[1].layout = Layout::Panels;
            plan.values[1].shape.push(Dim::fixed(features));
            plan.steps[0].kind = StepKind::Reduce {
                reduction: Reduction::Mean,
                axes,
            };
            plan.steps[0].inputs = vec![Some(2)];
            let mut to_panels = plan.steps[0].clone();
            to_panels.kind = StepKind::ToPanels;
            (to_panels.inputs, to_panels.outputs) = (vec![Some(0)], vec![2]);
            plan.steps.insert(0, to_panels);
        }
    };
    refused(&in_panels(1..2, 1), "dimensions 1..2 of 3 in panels");
    refused(&in_panels(1..3, 1), "dimensions 1..3 of 3 in panels");
    refused(&in_panels(2..3, 4), "expected 1 features");
}

/// A plan of one transposition of input `x`.
fn transposition(dtype: &str, shape: &[usize], permutation: &[u32]) -> Net {
    let mut net = Net::default();
    let x = net.input("x", dtype, &dims(shape));
    let perm = permutation.iter().map(|&d| i64::from(d)).collect();
    let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
    let result: Vec<usize> = permutation.iter().map(|&d| shape[d as usize]).collect();
    let permutation = permutation.to_vec();
    let y = net.step_of(
        dtype,
        StepKind::Transpose { permutation },
        &[Some(x)],
        (&dims(&result), Layout::RowMajor),
        (Operator::Transpose, attributes, vec![Some(x)]),
    );
    net.output("y", y);
    net
}

/// Every order of `0..n`.
fn orders(n: u32) -> Vec<Vec<u32>> {
    let Some(last) = n.checked_sub(1) else {
        return vec![Vec::new()];
    };
    let with_last = |order: Vec<u32>| {
        (0..n as usize).map(move |at| {
            let mut order = order.clone();
            order.insert(at, last);
            order
        })
    };
    orders(last).into_iter().flat_map(with_last).collect()
}

#[test]
fn transpositions_of_every_order() {
    for shape in [
        &[][..],
        &[7],
        &[1, 1],
        &[3, 1],
        &[5, 37],
        &[300, 70],
        &[2, 17, 33],
        &[3, 1, 40],
        &[2, 3, 5, 16],
        &[2, 19, 4, 8],
        &[1, 2, 1, 3, 2],
        &[2, 0, 3],
        &[0, 1],
    ] {
        for order in orders(shape.len() as u32) {
            for x in tensors(shape) {
                let what = format!("{order:?} of {}{shape:?}", x.dtype());
                let net = transposition(x.dtype().name(), shape, &order);
                let inputs = [("x", x)];
                assert_eq!(
                    run(&net, &inputs, &what),
                    net.reference(&inputs).remove(0),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn transpositions_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut Plan), expected: &str| {
        let mut plan = transposition("f32", &[2, 3, 4], &[0, 2, 1]).plan;
        change(&mut plan);
        let found = refusal(plan, &[2, 3, 4], DType::F32);
        assert!(
            found.contains(expected),
            "expected {expected}, found {found}"
        );
    };
    for permutation in [
        &[0, 1][..],
        &[0, 1, 1],
        &[0, 1, 3],
        &[0, 1, 2, 3],
        &[0, 1, u32::MAX],
    ] {
        let permutation = permutation.to_vec();
        let order = move |plan: &mut Plan| {
            let permutation = permutation.clone();
            plan.steps[0].kind = StepKind::Transpose { permutation };
        };
        refused(&order, "is no order of 3 dimensions");
    }
    refused(
        &|p| p.values[1].shape.truncate(2),
        "is no order of 3 dimensions",
    );
    refused(
        &|p| p.values[1].shape[0] = Dim::fixed(4),
        "[2, 3, 4] to [4, 4, 3]",
    );
    refused(
        &|p| p.values[1].dtype = "i32".to_owned(),
        "expected f32 as result",
    );
    refused(
        &|p| p.values[1].layout = Layout::Panels,
        "expected a row-major value",
    );
    refused(&|p| p.steps[0].outputs.clear(), "");
}

/// Tensors of this shape, of elements of every size.
fn tensors(shape: &[usize]) -> [Tensor; 5] {
    let n = shape.iter().product::<usize>();
    [
        Tensor::new(shape, (1..=n).map(|i| i as f32).collect()),
        Tensor::new(shape, (1..=n).map(|i| (i * 7) as i8).collect()),
        Tensor::new(shape, (1..=n).map(|i| i % 3 == 1).collect::<Vec<bool>>()),
        Tensor::new(shape, (1..=n).map(|i| i as u16).collect()),
        Tensor::new(shape, (1..=n).map(|i| -(i as i64)).collect()),
    ]
}

/// A plan of one slice of input `x`, with a result of shape `to`.
fn sliced(dtype: &str, from: &[usize], to: &[usize], starts: &[u32], steps: &[u32]) -> Net {
    let mut net = Net::default();
    let x = net.input("x", dtype, &dims(from));
    let ends = (0..to.len()).map(|d| match to[d] as i64 {
        0 => i64::from(starts[d]),
        n => i64::from(starts[d]) + (n - 1) * i64::from(steps[d]) + 1,
    });
    let numbers: [Vec<i64>; 4] = [
        starts.iter().map(|&s| s.into()).collect(),
        ends.collect(),
        (0..to.len() as i64).collect(),
        steps.iter().map(|&s| s.into()).collect(),
    ];
    let bounds = numbers.map(|n| Some(net.meant(Tensor::new([n.len()], n))));
    let operands = std::iter::once(Some(x)).chain(bounds).collect();
    let (starts, steps) = (starts.to_vec(), steps.to_vec());
    let y = net.step_of(
        dtype,
        StepKind::Slice { starts, steps },
        &[Some(x)],
        (&dims(to), Layout::RowMajor),
        (Operator::Slice, Attributes::new(), operands),
    );
    net.output("y", y);
    net
}

#[test]
fn slices_of_every_dimension() {
    type Case = (
        &'static [usize],
        &'static [usize],
        &'static [u32],
        &'static [u32],
    );
    let cases: [Case; 12] = [
        (&[], &[], &[], &[]),
        (&[9], &[4], &[5], &[1]),
        (&[9], &[3], &[1], &[3]),
        (&[2, 9, 16], &[2, 8, 16], &[0, 1, 0], &[1, 1, 1]),
        (&[2, 9, 16], &[1, 9, 16], &[1, 0, 0], &[1, 1, 1]),
        (&[3, 500, 33], &[3, 500, 17], &[0, 0, 0], &[1, 1, 2]),
        (&[3, 500, 33], &[2, 250, 33], &[0, 1, 0], &[2, 2, 1]),
        (&[4, 5, 6, 7], &[2, 2, 3, 2], &[1, 2, 0, 3], &[1, 2, 2, 3]),
        (&[4, 5, 6, 7], &[1, 5, 1, 1], &[3, 0, 5, 6], &[1, 1, 9, 1]),
        (&[4, 5], &[4, 0], &[0, 9], &[1, 1]),
        (&[0, 5], &[0, 2], &[0, 1], &[1, 1]),
        (&[1, 512], &[1, 77], &[0, 0], &[1, 1]),
    ];
    for (from, to, starts, steps) in cases {
        for x in tensors(from) {
            let what = format!("{from:?} to {to:?} of {}", x.dtype());
            let net = sliced(x.dtype().name(), from, to, starts, steps);
            let inputs = [("x", x)];
            assert_eq!(
                run(&net, &inputs, &what),
                net.reference(&inputs).remove(0),
                "{what}"
            );
        }
    }
}

/// A plan that concatenates inputs of these shapes.
fn concatenated(dtype: &str, shapes: &[&[usize]], axis: usize) -> Net {
    let mut net = Net::default();
    let names = ["a", "b", "c"];
    let inputs: Vec<Option<u32>> = (names.iter().zip(shapes))
        .map(|(name, shape)| Some(net.input(name, dtype, &dims(shape))))
        .collect();
    let mut to = shapes[0].to_vec();
    to[axis] = shapes.iter().map(|s| s[axis]).sum();
    let attributes = Attributes::new().with("axis", Attribute::Int(axis as i64));
    let y = net.step_of(
        dtype,
        StepKind::Concat { axis: axis as u32 },
        &inputs,
        (&dims(&to), Layout::RowMajor),
        (Operator::Concat, attributes, inputs.clone()),
    );
    net.output("y", y);
    net
}

#[test]
fn concatenations_along_every_dimension() {
    let cases: [(&[&[usize]], usize); 9] = [
        (&[&[3]], 0),
        (&[&[3], &[5], &[1]], 0),
        (&[&[2, 3], &[2, 5]], 1),
        (&[&[2, 3], &[4, 3]], 0),
        (&[&[5, 700, 3], &[5, 700, 4], &[5, 700, 1]], 2),
        (&[&[2, 9, 50], &[2, 90, 50], &[2, 1, 50]], 1),
        (&[&[2, 0, 3], &[2, 4, 3], &[2, 0, 3]], 1),
        (&[&[2, 0], &[2, 0]], 1),
        (&[&[0, 3], &[0, 4]], 1),
    ];
    for (shapes, axis) in cases {
        let all: Vec<_> = shapes.iter().map(|s| tensors(s)).collect();
        for i in 0..all[0].len() {
            let inputs: Vec<_> = (["a", "b", "c"].into_iter())
                .zip(all.iter().map(|of_shape| of_shape[i].clone()))
                .collect();
            let dtype = inputs[0].1.dtype();
            let what = format!("{shapes:?} along {axis} of {dtype}");
            let net = concatenated(dtype.name(), shapes, axis);
            assert_eq!(
                run(&net, &inputs, &what),
                net.reference(&inputs).remove(0),
                "{what}"
            );
        }
    }
}

/// A plan that pads input `x`, with zeros or with input `fill`.
fn padded(dtype: &str, from: &[usize], before: &[u32], after: &[u32], with_fill: bool) -> Net {
    let mut net = Net::default();
    let x = net.input("x", dtype, &dims(from));
    let fill = with_fill.then(|| net.input("fill", dtype, &[]));
    let pads: Vec<i64> = before.iter().chain(after).map(|&n| n.into()).collect();
    let pads = net.meant(Tensor::new([pads.len()], pads));
    let extra = before.iter().zip(after).map(|(b, a)| (b + a) as usize);
    let to: Vec<usize> = from.iter().zip(extra).map(|(n, e)| n + e).collect();
    let inputs: Vec<_> = [Some(x), fill]
        .into_iter()
        .filter(Option::is_some)
        .collect();
    let before = before.to_vec();
    let y = net.step_of(
        dtype,
        StepKind::Pad { before },
        &inputs,
        (&dims(&to), Layout::RowMajor),
        (
            Operator::Pad,
            Attributes::new(),
            vec![Some(x), Some(pads), fill],
        ),
    );
    net.output("y", y);
    net
}

#[test]
fn paddings_of_every_dimension() {
    type Case = (&'static [usize], &'static [u32], &'static [u32]);
    let cases: [Case; 10] = [
        (&[], &[], &[]),
        (&[5], &[2], &[1]),
        (&[2, 9, 16], &[0, 0, 0], &[0, 1, 0]),
        (&[2, 9, 16], &[0, 2, 0], &[0, 2, 0]),
        (&[3, 400, 16, 1], &[0, 0, 4, 0], &[0, 0, 4, 0]),
        (&[3, 2, 5, 4], &[1, 0, 2, 3], &[0, 4, 0, 1]),
        (&[70, 90], &[30, 0], &[1, 0]),
        (&[70, 90], &[0, 0], &[0, 0]),
        (&[0, 3], &[1, 0], &[2, 5]),
        (&[0, 3], &[0, 1], &[0, 1]),
    ];
    for (from, before, after) in cases {
        for x in tensors(from) {
            for with_fill in [false, true] {
                let what = format!("{from:?} by {before:?} and {after:?} of {}", x.dtype());
                let net = padded(x.dtype().name(), from, before, after, with_fill);
                let fill = tensors(&[]).into_iter().find(|t| t.dtype() == x.dtype());
                let mut inputs = vec![("x", x.clone())];
                inputs.extend(fill.filter(|_| with_fill).map(|fill| ("fill", fill)));
                assert_eq!(
                    run(&net, &inputs, &what),
                    net.reference(&inputs).remove(0),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let refused = |net: Net, change: &dyn Fn(&mut Plan), expected: &str| {
        let mut plan = net.plan;
        change(&mut plan);
        let found = refusal(plan, &[2, 3], DType::F32);
        assert!(
            found.contains(expected),
            "expected {expected}, found {found}"
        );
    };
    let slice = || sliced("f32", &[2, 3], &[2, 2], &[0, 1], &[1, 1]);
    let kind = |starts: &[u32], steps: &[u32]| {
        let (starts, steps) = (starts.to_vec(), steps.to_vec());
        move |p: &mut Plan| {
            let (starts, steps) = (starts.clone(), steps.clone());
            p.steps[0].kind = StepKind::Slice { starts, steps };
        }
    };
    refused(slice(), &kind(&[0, 1], &[1, 0]), "a step is 0");
    refused(slice(), &kind(&[0, 1], &[1]), "ranks [2, 1, 2]");
    refused(slice(), &kind(&[0], &[1, 1]), "ranks [1, 2, 2]");
    refused(slice(), &kind(&[0, 2], &[1, 1]), "2 of 3 elements");
    refused(
        slice(),
        &kind(&[0, u32::MAX], &[1, u32::MAX]),
        "2 of 3 elements",
    );
    refused(slice(), &kind(&[1, 0], &[1, 1]), "2 of 2 elements");
    refused(
        slice(),
        &|p| p.values[1].dtype = "u8".to_owned(),
        "expected f32",
    );

    let concat = || concatenated("f32", &[&[2, 3], &[2, 5]], 1);
    let only_x = |p: &mut Plan| {
        p.inputs.truncate(1);
        p.inputs[0].name = "x".to_owned();
        p.values[1].storage = lancet_artifact::Storage::Weights { offset: 0, len: 0 };
        p.steps[0].inputs.truncate(1);
        p.values[1].shape = dims(&[0]);
    };
    refused(
        concat(),
        &only_x,
        "[[2, 3]] along dimension 1 are not [2, 8]",
    );
    let to = |shape: &'static [usize]| {
        move |p: &mut Plan| {
            only_x(p);
            p.values[2].shape = dims(shape);
        }
    };
    refused(
        concat(),
        &to(&[2, 2]),
        "shape [2, 3] behind [0, 0] is not in [2, 2]",
    );
    refused(
        concat(),
        &to(&[3, 3]),
        "[[2, 3]] along dimension 1 are not [3, 3]",
    );
    refused(concat(), &to(&[2, 3, 1]), "ranks [2]");
    refused(
        concat(),
        &|p| p.steps[0].kind = StepKind::Concat { axis: 2 },
        "dimension 2 of 2",
    );
    refused(
        concat(),
        &|p| p.steps[0].inputs[1] = None,
        "input 1 is missing",
    );
    refused(concat(), &|p| p.steps[0].inputs.clear(), "inputs");

    let pad = || padded("f32", &[2, 3], &[1, 0], &[0, 2], false);
    let before = |before: &'static [u32]| {
        move |p: &mut Plan| {
            let before = before.to_vec();
            p.steps[0].kind = StepKind::Pad { before };
        }
    };
    refused(pad(), &before(&[1]), "ranks [1, 2]");
    refused(
        pad(),
        &before(&[2, 0]),
        "shape [2, 3] behind [2, 0] is not in [3, 5]",
    );
    refused(pad(), &before(&[0, u32::MAX]), "is not in [3, 5]");
    refused(
        pad(),
        &|p| p.steps[0].inputs.push(Some(0)),
        "expected one element",
    );
}
