//! Small exact cases of what is easy to get wrong.

use std::sync::Arc;

use half::f16;
use lancet_ops::{Attribute, Attributes, Element, OpError, Operator, Tensor, evaluate};

fn none() -> Attributes {
    Attributes::new()
}

fn int(name: &str, value: i64) -> Attributes {
    none().with(name, Attribute::Int(value))
}

fn text(name: &str, value: &str) -> Attributes {
    none().with(name, Attribute::Str(value.to_owned()))
}

fn results(
    op: Operator,
    attributes: &Attributes,
    operands: &[&Tensor],
    n: usize,
) -> Result<Vec<Tensor>, OpError> {
    let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
    evaluate(op, attributes, &views, n)
}

/// The only result.
fn one(op: Operator, attributes: &Attributes, operands: &[&Tensor]) -> Tensor {
    results(op, attributes, operands, 1)
        .unwrap_or_else(|e| panic!("{e}"))
        .remove(0)
}

fn error(op: Operator, attributes: &Attributes, operands: &[&Tensor]) -> OpError {
    results(op, attributes, operands, 1).expect_err("the operands are wrong")
}

fn vector<T: Element>(values: &[T]) -> Tensor {
    Tensor::new([values.len()], values.to_vec())
}

fn matrix<T: Element, const N: usize>(rows: &[[T; N]]) -> Tensor {
    Tensor::new([rows.len(), N], rows.concat())
}

#[test]
fn integers_wrap_and_divide_toward_zero() {
    let a = vector(&[100i8, -128, -7, 7]);
    assert_eq!(
        one(Operator::Add, &none(), &[&a, &vector(&[100i8, -1, 0, 0])]),
        vector(&[-56i8, 127, -7, 7])
    );
    assert_eq!(
        one(Operator::Div, &none(), &[&a, &vector(&[3i8, -1, 2, -2])]),
        vector(&[33i8, -128, -3, -3])
    );
    let zero = vector(&[1i8, 0, 1, 1]);
    assert!(matches!(
        error(Operator::Div, &none(), &[&a, &zero]),
        OpError::Value { index: 1, .. }
    ));
    assert!(matches!(
        error(Operator::Mod, &none(), &[&a, &zero]),
        OpError::Value { index: 1, .. }
    ));
    assert_eq!(
        one(Operator::Abs, &none(), &[&vector(&[-128i8])]),
        vector(&[-128i8])
    );
}

#[test]
fn mod_takes_the_sign_of_the_divisor_and_fmod_of_the_dividend() {
    let (a, b) = (
        vector(&[-4i32, 7, 5, 4, -7, 8]),
        vector(&[2i32, -3, 8, -2, 3, 5]),
    );
    assert_eq!(
        one(Operator::Mod, &none(), &[&a, &b]),
        vector(&[0i32, -2, 5, 0, 2, 3])
    );
    assert_eq!(
        one(Operator::Mod, &int("fmod", 1), &[&a, &b]),
        vector(&[0i32, 1, 5, 0, -1, 3])
    );
}

#[test]
fn operands_broadcast_both_ways() {
    let (a, b) = (
        Tensor::new([2, 1], vec![10.0f32, 20.0]),
        Tensor::new([1, 3], vec![1.0f32, 2.0, 3.0]),
    );
    assert_eq!(
        one(Operator::Sub, &none(), &[&a, &b]),
        matrix(&[[9.0f32, 8.0, 7.0], [19.0, 18.0, 17.0]])
    );
    let c = Tensor::new([2, 2, 1], vec![1i64, 2, 3, 4]);
    let d = Tensor::new([2, 1, 2], vec![10i64, 20, 30, 40]);
    assert_eq!(
        one(Operator::Add, &none(), &[&c, &d]),
        Tensor::new([2, 2, 2], vec![11i64, 21, 12, 22, 33, 43, 34, 44])
    );
    assert!(matches!(
        error(
            Operator::Add,
            &none(),
            &[&vector(&[1.0f32; 3]), &vector(&[1.0f32; 4])]
        ),
        OpError::Shape { .. }
    ));
}

#[test]
fn a_negative_or_too_long_shift_leaves_the_sign() {
    let (x, by) = (vector(&[-16i8, -16, 16, -1]), vector(&[2i8, -1, 9, 100]));
    assert_eq!(
        one(Operator::BitShift, &text("direction", "RIGHT"), &[&x, &by]),
        vector(&[-4i8, -1, 0, -1])
    );
    assert_eq!(
        one(Operator::BitShift, &text("direction", "LEFT"), &[&x, &by]),
        vector(&[-64i8, 0, 0, 0])
    );
}

#[test]
fn pow_keeps_the_type_of_the_base() {
    let base = vector(&[2i32, -3, 10, 2]);
    assert_eq!(
        one(
            Operator::Pow,
            &none(),
            &[&base, &vector(&[10i64, 3, 10, -1])]
        ),
        vector(&[1024i32, -27, 1_410_065_408, 0])
    );
    assert_eq!(
        one(
            Operator::Pow,
            &none(),
            &[&vector(&[9.0f32]), &vector(&[0.5f64])]
        ),
        vector(&[3.0f32])
    );
}

#[test]
fn round_ties_to_even() {
    let x = vector(&[0.5f32, 1.5, 2.5, -0.5, -1.5, 2.4]);
    assert_eq!(
        one(Operator::Round, &none(), &[&x]),
        vector(&[0.0f32, 2.0, 2.0, -0.0, -2.0, 2.0])
    );
}

#[test]
fn nan_wins_min_max_and_survives_clip_and_relu() {
    let x = vector(&[f32::NAN, 1.0]);
    let y = vector(&[2.0f32, f32::NAN]);
    for op in [Operator::Max, Operator::Min] {
        let z = one(op, &none(), &[&x, &y]);
        assert!(
            z.as_slice::<f32>()
                .is_some_and(|v| v.iter().all(|v| v.is_nan())),
            "{op}"
        );
    }
    let (low, high) = (Tensor::scalar(0.0f32), Tensor::scalar(1.0f32));
    for z in [
        one(Operator::Clip, &none(), &[&x, &low, &high]),
        one(Operator::Relu, &none(), &[&x]),
    ] {
        assert!(
            z.as_slice::<f32>()
                .is_some_and(|v| v[0].is_nan() && v[1] == 1.0)
        );
    }
}

#[test]
fn nan_is_dropped_by_a_bound() {
    let x = vector(&[f32::NAN, 1.0, 3.0]);
    let y = vector(&[2.0f32, f32::NAN, 2.0]);
    for (op, last) in [(Operator::AtLeast, 3.0), (Operator::AtMost, 2.0)] {
        let z = one(op, &none(), &[&x, &y]);
        let z = z.as_slice::<f32>().expect("f32");
        assert!(z[0] == 2.0 && z[1].is_nan() && z[2] == last, "{op}: {z:?}");
    }
}

#[test]
fn nan_is_quantized_to_the_least_value() {
    let x = Tensor::new([1, 2], vec![f32::NAN, 0.25]);
    fn check<T: Element + std::fmt::Debug + PartialEq>(x: &Tensor, zero: T, want: [T; 2]) {
        let alike = [Tensor::scalar(0.25f32), Tensor::scalar(zero)];
        let each = [vector(&[0.25f32; 2]), vector(&[zero; 2])];
        for [scale, zero] in [&alike, &each] {
            let q = one(Operator::QuantizeLinear, &int("axis", 1), &[x, scale, zero]);
            assert_eq!(q.as_slice::<T>(), Some(&want[..]));
        }
    }
    check(&x, 3u8, [0, 4]);
    check(&x, -3i8, [i8::MIN, -2]);
    check(&x, 3u16, [0, 4]);
    check(&x, 3i16, [i16::MIN, 4]);
}

#[test]
fn clip_prefers_the_upper_bound() {
    let (low, high) = (Tensor::scalar(4i32), Tensor::scalar(2i32));
    assert_eq!(
        one(
            Operator::Clip,
            &none(),
            &[&vector(&[1i32, 3, 5]), &low, &high]
        ),
        vector(&[2i32, 2, 2])
    );
}

#[test]
fn cast_truncates_saturates_and_wraps() {
    let x = vector(&[1.9f32, -1.9, 300.0, f32::NAN, f32::INFINITY]);
    assert_eq!(
        one(Operator::Cast, &text("to", "i8"), &[&x]),
        vector(&[1i8, -1, 127, 0, 127])
    );
    assert_eq!(
        one(
            Operator::Cast,
            &text("to", "bool"),
            &[&vector(&[0.5f32, 0.0, -0.0])]
        ),
        vector(&[true, false, false])
    );
    assert_eq!(
        one(Operator::Cast, &text("to", "u8"), &[&vector(&[-1i64, 256])]),
        vector(&[255u8, 0])
    );
    assert_eq!(
        one(
            Operator::Cast,
            &text("to", "f16"),
            &[&vector(&[65520.0f32])]
        ),
        vector(&[f16::INFINITY])
    );
    assert!(matches!(
        error(Operator::Cast, &text("to", "f8"), &[&x]),
        OpError::Attribute { .. }
    ));
    assert!(matches!(
        error(Operator::Cast, &none(), &[&x]),
        OpError::Attribute { .. }
    ));
}

#[test]
fn reshape_copies_and_infers() {
    let x = Tensor::new([2, 3, 4], (0..24).collect::<Vec<i32>>());
    let shape = |dims: &[i64]| {
        one(Operator::Reshape, &none(), &[&x, &vector(dims)])
            .shape()
            .to_vec()
    };
    assert_eq!(shape(&[0, -1]), [2, 12]);
    assert_eq!(shape(&[-1, 0, 2]), [4, 3, 2]);
    for wrong in [
        &[-1i64, -1][..],
        &[5, -1],
        &[0, 0, 0, 0],
        &[-2, 12],
        &[i64::MAX, i64::MAX],
    ] {
        error(Operator::Reshape, &none(), &[&x, &vector(wrong)]);
    }
    let empty = Tensor::new([0, 3], Vec::<f32>::new());
    let kept = one(
        Operator::Reshape,
        &int("allowzero", 1),
        &[&empty, &vector(&[3i64, 0])],
    );
    assert_eq!(kept.shape(), [3, 0]);
}

#[test]
fn slice_clamps_and_steps_backward() {
    let x = vector(&[0i32, 1, 2, 3, 4]);
    let slice = |start: i64, end: i64, step: i64| {
        let bounds = [start, end, 0, step].map(|v| vector(&[v]));
        one(
            Operator::Slice,
            &none(),
            &[&x, &bounds[0], &bounds[1], &bounds[2], &bounds[3]],
        )
    };
    assert_eq!(slice(-2, i64::MAX, 1), vector(&[3i32, 4]));
    assert_eq!(slice(-1, i64::MIN, -1), vector(&[4i32, 3, 2, 1, 0]));
    assert_eq!(slice(100, 0, -2), vector(&[4i32, 2]));
    assert_eq!(slice(3, 1, 1), vector::<i32>(&[]));
    assert_eq!(slice(0, 5, i64::MAX), vector(&[0i32]));
    assert_eq!(slice(4, i64::MIN, i64::MIN), vector(&[4i32]));
}

#[test]
fn split_leaves_the_rest_to_the_last() {
    let x = vector(&[1i32, 2, 3, 4, 5, 6, 7]);
    let parts = results(Operator::Split, &int("num_outputs", 4), &[&x], 4).expect("it splits");
    assert_eq!(
        parts.iter().map(Tensor::len).collect::<Vec<_>>(),
        [2, 2, 2, 1]
    );
    assert_eq!(parts[3], vector(&[7i32]));
}

#[test]
fn gather_counts_from_the_end_and_checks() {
    let x = matrix(&[[1i32, 2, 3], [4, 5, 6]]);
    let ids = matrix(&[[-1i64, 0]]);
    assert_eq!(
        one(Operator::Gather, &int("axis", 1), &[&x, &ids]),
        Tensor::new([2, 1, 2], vec![3i32, 1, 6, 4])
    );
    for wrong in [2i64, -3, i64::MIN, i64::MAX] {
        assert!(matches!(
            error(Operator::Gather, &none(), &[&x, &vector(&[wrong])]),
            OpError::Value { .. }
        ));
    }
}

#[test]
fn scatter_applies_repeated_indices_in_order() {
    let x = vector(&[1.0f32, 2.0, 3.0]);
    let (ids, updates) = (vector(&[1i64, -2]), vector(&[10.0f32, 20.0]));
    assert_eq!(
        one(Operator::ScatterElements, &none(), &[&x, &ids, &updates]),
        vector(&[1.0f32, 20.0, 3.0])
    );
    let added = one(
        Operator::ScatterElements,
        &text("reduction", "add"),
        &[&x, &ids, &updates],
    );
    assert_eq!(added, vector(&[1.0f32, 32.0, 3.0]));
}

#[test]
fn extremes_of_no_rows_have_no_places() {
    let x = Tensor::new([0, 0], Vec::<f32>::new());
    let places = one(Operator::ArgMax, &int("axis", -1), &[&x]);
    assert_eq!(places, Tensor::new([0, 1], Vec::<i64>::new()));
    let x = Tensor::new([2, 0], Vec::<f32>::new());
    error(Operator::ArgMax, &int("axis", -1), &[&x]);
}

#[test]
fn scatter_reduces_booleans() {
    let (x, ids) = (vector(&[true, false, false]), vector(&[0i64, 1, 1]));
    let updates = vector(&[false, false, true]);
    let by = |reduction: &str| {
        one(
            Operator::ScatterElements,
            &text("reduction", reduction),
            &[&x, &ids, &updates],
        )
    };
    for (reduction, expected) in [
        ("add", [true, true, false]),
        ("max", [true, true, false]),
        ("mul", [false, false, false]),
        ("min", [false, false, false]),
    ] {
        assert_eq!(by(reduction), vector(&expected), "{reduction}");
    }
}

#[test]
fn norms_of_no_features_have_no_elements() {
    let x = Tensor::new([2, 0], Vec::<f32>::new());
    let scale = Tensor::new([0], Vec::<f32>::new());
    let found = results(Operator::LayerNormalization, &none(), &[&x, &scale], 3);
    let [y, mean, inverse] = <[Tensor; 3]>::try_from(found.unwrap_or_else(|e| panic!("{e}")))
        .unwrap_or_else(|v| panic!("{} results", v.len()));
    assert_eq!(y, x);
    for statistic in [mean, inverse] {
        assert_eq!(statistic.shape(), [2, 1]);
        assert!(statistic.view().to_f64_vec().iter().all(|v| v.is_nan()));
    }
    assert_eq!(one(Operator::RMSNormalization, &none(), &[&x, &scale]), x);
    let skip = Operator::MsSkipLayerNormalization;
    assert_eq!(one(skip, &none(), &[&x, &x, &scale]), x);
}

#[test]
fn resize_interpolates_between_neighbours() {
    let none_given = Tensor::new([0], Vec::<f32>::new());
    let resize = |attributes: Attributes, x: &[f32], size: i64| {
        let sizes = vector(&[size]);
        let operands = [&vector(x), &none_given, &none_given, &sizes];
        one(Operator::Resize, &attributes, &operands)
    };
    let mode = |mode: &str| text("mode", mode);
    let places = |attributes: Attributes, places: &str| {
        let places = Attribute::Str(places.to_owned());
        attributes.with("coordinate_transformation_mode", places)
    };
    let x = [0.0, 8.0];
    assert_eq!(
        resize(mode("linear"), &x, 4),
        vector(&[0.0f32, 2.0, 6.0, 8.0])
    );
    assert_eq!(
        resize(places(mode("linear"), "align_corners"), &x, 5),
        vector(&[0.0f32, 2.0, 4.0, 6.0, 8.0])
    );
    assert_eq!(
        resize(places(mode("nearest"), "asymmetric"), &x, 4),
        vector(&[0.0f32, 0.0, 8.0, 8.0])
    );
    // The kernel becomes wider where there are fewer elements in the result.
    let narrow = mode("linear").with("antialias", Attribute::Int(1));
    assert_eq!(resize(narrow, &[0.0, 8.0, 8.0, 0.0], 1), vector(&[3.5f32]));
    assert_eq!(resize(mode("linear"), &[], 0), vector::<f32>(&[]));
    // Cubic kernels overshoot; without what lies outside, the others weigh more.
    assert_eq!(resize(mode("cubic"), &x, 2), vector(&x));
}

#[test]
fn resize_of_integers_copies_or_rounds() {
    let none_given = Tensor::new([0], Vec::<f32>::new());
    let scales = vector(&[2.0f32]);
    let far = vector(&[i64::MAX, i64::MIN]);
    let operands = [&far, &none_given, &scales];
    assert_eq!(
        one(Operator::Resize, &none(), &operands),
        vector(&[i64::MAX, i64::MAX, i64::MIN, i64::MIN])
    );
    let bytes = vector(&[0u8, 255]);
    assert_eq!(
        one(
            Operator::Resize,
            &text("mode", "linear"),
            &[&bytes, &none_given, &scales]
        ),
        vector(&[0u8, 64, 191, 255])
    );
}

#[test]
fn pad_repeats_and_crops() {
    let x = vector(&[1i32, 2, 3]);
    let pad = |mode: &str, before: i64, after: i64| {
        one(
            Operator::Pad,
            &text("mode", mode),
            &[&x, &vector(&[before, after])],
        )
    };
    assert_eq!(pad("constant", 1, -1), vector(&[0i32, 1, 2]));
    assert_eq!(pad("reflect", 4, 1), vector(&[1i32, 2, 3, 2, 1, 2, 3, 2]));
    assert_eq!(pad("edge", 2, 1), vector(&[1i32, 1, 1, 2, 3, 3]));
    assert_eq!(pad("wrap", 2, 1), vector(&[2i32, 3, 1, 2, 3, 1]));
}

#[test]
fn results_beyond_memory_are_refused() {
    let huge = vector(&[1i64 << 40, 1 << 40]);
    let too_large = |r: OpError| matches!(r, OpError::TooLarge { .. });
    assert!(too_large(error(
        Operator::ConstantOfShape,
        &none(),
        &[&huge]
    )));
    assert!(too_large(error(
        Operator::Expand,
        &none(),
        &[&vector(&[1.0f32]), &huge]
    )));
    assert!(too_large(error(
        Operator::Tile,
        &none(),
        &[&matrix(&[[1.0f32]]), &huge]
    )));
    assert!(too_large(error(
        Operator::Pad,
        &none(),
        &[&vector(&[1u8]), &vector(&[1i64 << 40, 0])]
    )));
    let (zero, one, far) = (
        Tensor::scalar(0i64),
        Tensor::scalar(1i64),
        Tensor::scalar(i64::MAX),
    );
    assert!(too_large(error(
        Operator::Range,
        &none(),
        &[&zero, &far, &one]
    )));
    assert!(too_large(error(
        Operator::OneHot,
        &none(),
        &[&vector(&[0i64]), &far, &vector(&[0.0f32, 1.0])]
    )));
}

#[test]
fn range_and_constant_of_shape() {
    let range = |a: f32, b: f32, d: f32| {
        one(
            Operator::Range,
            &none(),
            &[&Tensor::scalar(a), &Tensor::scalar(b), &Tensor::scalar(d)],
        )
    };
    assert_eq!(range(3.0, -3.0, -2.5), vector(&[3.0f32, 0.5, -2.0]));
    assert_eq!(range(0.0, -1.0, 1.0).len(), 0);
    let seven = none().with("value", Attribute::Tensor(Arc::new(vector(&[7i64]))));
    assert_eq!(
        one(Operator::ConstantOfShape, &seven, &[&vector(&[2i64])]),
        vector(&[7i64, 7])
    );
    assert_eq!(
        one(Operator::ConstantOfShape, &none(), &[&vector::<i64>(&[])]),
        Tensor::scalar(0.0f32)
    );
}

#[test]
fn reductions_of_nothing_give_their_neutral_element() {
    let x = Tensor::new([2, 0], Vec::<f32>::new());
    let reduce = |op| {
        let axes = vector(&[1i64]);
        let y = one(op, &int("keepdims", 0), &[&x, &axes]);
        y.as_slice::<f32>().expect("f32").to_vec()
    };
    assert_eq!(reduce(Operator::ReduceSum), [0.0; 2]);
    assert_eq!(reduce(Operator::ReduceProd), [1.0; 2]);
    assert_eq!(reduce(Operator::ReduceMax), [f32::NEG_INFINITY; 2]);
    assert_eq!(reduce(Operator::ReduceMin), [f32::INFINITY; 2]);
    assert_eq!(reduce(Operator::ReduceLogSum), [f32::NEG_INFINITY; 2]);
}

#[test]
fn long_sums_are_rounded_once() {
    let n = 1 << 20;
    let x = Tensor::new([n], vec![0.1f32; n]);
    let exact = (f64::from(0.1f32) * n as f64) as f32;
    assert_eq!(
        one(Operator::ReduceSum, &int("keepdims", 0), &[&x]),
        Tensor::scalar(exact)
    );
    let (row, column) = (
        Tensor::new([1, n], vec![0.1f32; n]),
        Tensor::new([n, 1], vec![1.0f32; n]),
    );
    let product = one(Operator::MatMul, &none(), &[&row, &column]);
    let value = product.as_slice::<f32>().expect("f32")[0];
    assert!(
        ((value - exact) / exact).abs() < 1e-6,
        "{value} for {exact}"
    );
}

#[test]
fn top_k_prefers_the_first_of_equals() {
    let x = vector(&[1.0f32, 3.0, 3.0, 2.0]);
    let r = results(Operator::TopK, &none(), &[&x, &vector(&[3i64])], 2).expect("it has three");
    assert_eq!(r, [vector(&[3.0f32, 3.0, 2.0]), vector(&[1i64, 2, 3])]);
    let last = int("select_last_index", 1);
    assert_eq!(one(Operator::ArgMax, &last, &[&x]), vector(&[2i64]));
    assert_eq!(one(Operator::ArgMax, &none(), &[&x]), vector(&[1i64]));
}

#[test]
fn a_window_that_is_rounded_up_begins_inside() {
    let pool = |x: &[f32]| {
        let pairs = none()
            .with("kernel_shape", Attribute::Ints(vec![2]))
            .with("strides", Attribute::Ints(vec![2]))
            .with("ceil_mode", Attribute::Int(1));
        let x = Tensor::new([1, 1, x.len()], x.to_vec());
        one(Operator::AveragePool, &pairs, &[&x])
    };
    let expected = |y: &[f32]| Tensor::new([1, 1, y.len()], y.to_vec());
    assert_eq!(pool(&[2.0, 4.0, 5.0]), expected(&[3.0, 5.0]));
    assert_eq!(pool(&[2.0, 4.0]), expected(&[3.0]));
    assert_eq!(pool(&[2.0]), expected(&[2.0]));
    assert_eq!(pool(&[]), expected(&[]));
}

#[test]
fn cum_sum_excludes_and_reverses() {
    let x = vector(&[1i32, 2, 3]);
    let both = int("exclusive", 1).with("reverse", Attribute::Int(1));
    assert_eq!(
        one(Operator::CumSum, &both, &[&x, &Tensor::scalar(0i64)]),
        vector(&[5i32, 3, 0])
    );
}

#[test]
fn products_of_every_shape() {
    let a = matrix(&[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    let v = vector(&[1.0f32, 0.0, -1.0]);
    assert_eq!(
        one(Operator::MatMul, &none(), &[&a, &v]),
        vector(&[-2.0f32, -2.0])
    );
    assert_eq!(
        one(Operator::MatMul, &none(), &[&v, &v]),
        Tensor::scalar(2.0f32)
    );
    let empty = Tensor::new([2, 0], Vec::<f32>::new());
    let zeros = one(
        Operator::MatMul,
        &none(),
        &[&empty, &Tensor::new([0, 2], Vec::<f32>::new())],
    );
    assert_eq!(zeros, Tensor::new([2, 2], vec![0.0f32; 4]));
    let batch = Tensor::new([2, 1, 1, 2], vec![1i64, 2, 3, 4]);
    let others = Tensor::new([1, 2, 2, 1], vec![1i64, 1, 10, 100]);
    assert_eq!(
        one(Operator::MatMul, &none(), &[&batch, &others]),
        Tensor::new([2, 2, 1, 1], vec![3i64, 210, 7, 430])
    );
}

#[test]
fn a_blocked_product_agrees_with_the_definition() {
    let (m, k, n) = (7, 150, 13);
    let a: Vec<i64> = (0..m * k).map(|i| (i * 37 % 19) as i64 - 9).collect();
    let b: Vec<i64> = (0..k * n).map(|i| (i * 53 % 23) as i64 - 11).collect();
    let expected: Vec<i64> = (0..m * n)
        .map(|i| (0..k).map(|p| a[i / n * k + p] * b[p * n + i % n]).sum())
        .collect();
    let product = one(
        Operator::MatMul,
        &none(),
        &[
            &Tensor::new([m, k], a.clone()),
            &Tensor::new([k, n], b.clone()),
        ],
    );
    assert_eq!(product, Tensor::new([m, n], expected.clone()));
    let floats = |v: &[i64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let product = one(
        Operator::MatMul,
        &none(),
        &[
            &Tensor::new([m, k], floats(&a)),
            &Tensor::new([k, n], floats(&b)),
        ],
    );
    assert_eq!(product, Tensor::new([m, n], floats(&expected)));
}

#[test]
fn integer_products_are_exact() {
    let k = 3000;
    let (a, b) = (
        Tensor::new([1, k], vec![255u8; k]),
        Tensor::new([k, 1], vec![-128i8; k]),
    );
    let r = one(
        Operator::MatMulInteger,
        &none(),
        &[&a, &b, &Tensor::scalar(0u8), &Tensor::scalar(127i8)],
    );
    assert_eq!(r, Tensor::new([1, 1], vec![255 * -255 * 3000i32]));
}

#[test]
fn einsum_takes_diagonals_and_implies_its_result() {
    let x = matrix(&[[1.0f32, 2.0], [3.0, 4.0]]);
    assert_eq!(
        one(Operator::Einsum, &text("equation", "ii"), &[&x]),
        Tensor::scalar(5.0f32)
    );
    assert_eq!(
        one(Operator::Einsum, &text("equation", "ba"), &[&x]),
        matrix(&[[1.0f32, 3.0], [2.0, 4.0]])
    );
    assert_eq!(
        one(
            Operator::Einsum,
            &text("equation", "ij,j"),
            &[&x, &vector(&[1.0f32, 10.0])]
        ),
        vector(&[21.0f32, 43.0])
    );
    for wrong in ["ij->ik", "ij", "i?", "...", "ij->ii", ""] {
        if wrong == "ij" || wrong == "..." {
            one(Operator::Einsum, &text("equation", wrong), &[&x]);
        } else {
            error(Operator::Einsum, &text("equation", wrong), &[&x]);
        }
    }
}

#[test]
fn quantization_rounds_to_even_then_saturates() {
    let x = vector(&[0.5f32, 1.5, -300.0, 300.0, f32::NAN]);
    let (scale, zero) = (Tensor::scalar(1.0f32), Tensor::scalar(1i8));
    assert_eq!(
        one(Operator::QuantizeLinear, &none(), &[&x, &scale, &zero]),
        vector(&[1i8, 3, -128, 127, -128])
    );
    let q = results(
        Operator::DynamicQuantizeLinear,
        &none(),
        &[&vector(&[0.0f32, 2.0, -3.0])],
        3,
    )
    .expect("f32");
    assert_eq!(q[0], vector(&[153u8, 255, 0]));
    assert_eq!(q[2], Tensor::scalar(153u8));
    let zeros = results(
        Operator::DynamicQuantizeLinear,
        &none(),
        &[&vector(&[0.0f32])],
        3,
    )
    .expect("f32");
    assert_eq!(zeros[1], Tensor::scalar(1.0f32));
}

#[test]
fn linear_adds_the_residual_after_the_activation() {
    let x = Tensor::new([1, 1, 2], vec![1.0f32, 2.0]);
    let w = matrix(&[[1.0f32, 1.0], [-1.0, -1.0], [0.5, 0.0]]);
    let (bias, residual) = (vector(&[1.0f32, 0.0, -0.5]), vector(&[10.0f32, 20.0, 30.0]));
    let y = one(
        Operator::Linear,
        &text("activation", "relu"),
        &[&x, &w, &bias, &residual],
    );
    assert_eq!(y, Tensor::new([1, 1, 3], vec![14.0f32, 20.0, 30.0]));
    assert_eq!(
        one(Operator::Linear, &none(), &[&x, &w]),
        Tensor::new([1, 1, 3], vec![3.0f32, -3.0, 0.5])
    );
    assert!(matches!(
        error(Operator::Linear, &text("activation", "cube"), &[&x, &w]),
        OpError::Attribute { .. }
    ));
}

/// One scale for all elements gives what the same scale for each column gives.
#[test]
fn quantization_by_tensor_is_that_by_axis() {
    let mut values = vec![
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        3e38,
        -3e38,
        -0.0,
    ];
    values.extend((-1200i16..1200).map(|i| f32::from(i) * 0.125));
    let n = values.len();
    let x = Tensor::new([1, n], values);
    let axis = int("axis", 1);
    fn check<T: Element + std::fmt::Debug>(x: &Tensor, axis: &Attributes, zeros: &[T]) {
        let n = x.len();
        for (&z, s) in zeros
            .iter()
            .flat_map(|z| [0.25f32, 0.3, 1e-30].map(|s| (z, s)))
        {
            let alike = [Tensor::scalar(s), Tensor::scalar(z)];
            let each = [Tensor::new([n], vec![s; n]), Tensor::new([n], vec![z; n])];
            let [q, q_each] =
                [&alike, &each].map(|p| one(Operator::QuantizeLinear, axis, &[x, &p[0], &p[1]]));
            assert_eq!(q, q_each, "quantize, scale {s}, zero point {z:?}");
            let [d, d_each] =
                [&alike, &each].map(|p| one(Operator::DequantizeLinear, axis, &[&q, &p[0], &p[1]]));
            assert_eq!(d, d_each, "dequantize, scale {s}, zero point {z:?}");
        }
    }
    check(&x, &axis, &[0u8, 3, 128, 255]);
    check(&x, &axis, &[-128i8, -1, 0, 127]);
}

#[test]
fn embedding_lookup_sums_over_tables() {
    let words = matrix(&[[1.0f32, 2.0], [3.0, 4.0]]);
    let positions = matrix(&[[10.0f32, 20.0], [30.0, 40.0]]);
    let (ids, places) = (matrix(&[[0i64, -1], [1, 1]]), vector(&[0i32, 1]));
    let y = one(
        Operator::EmbeddingLookup,
        &none(),
        &[&ids, &words, &places, &positions],
    );
    assert_eq!(
        y,
        Tensor::new(
            [2, 2, 2],
            vec![11.0f32, 22.0, 33.0, 44.0, 13.0, 24.0, 33.0, 44.0]
        )
    );
    let bytes = matrix(&[[0u8, 130], [128, 255]]);
    let quantized = none()
        .with("scales", Attribute::Floats(vec![0.5, 1.0]))
        .with("zero_points", Attribute::Ints(vec![128, 0]));
    let y = one(
        Operator::EmbeddingLookup,
        &quantized,
        &[&ids, &bytes, &places, &positions],
    );
    let sums = vec![-54.0f32, 21.0, 30.0, 103.5, 10.0, 83.5, 30.0, 103.5];
    assert_eq!(y, Tensor::new([2, 2, 2], sums));
    assert!(matches!(
        error(Operator::EmbeddingLookup, &quantized, &[&ids, &bytes]),
        OpError::Attribute { .. }
    ));
    assert!(matches!(
        error(Operator::EmbeddingLookup, &none(), &[&ids, &bytes]),
        OpError::DType { .. }
    ));
    assert!(matches!(
        error(
            Operator::EmbeddingLookup,
            &none(),
            &[&vector(&[2i64]), &words]
        ),
        OpError::Value { index: 0, .. }
    ));
    assert!(matches!(
        error(Operator::EmbeddingLookup, &none(), &[&ids, &words, &places]),
        OpError::OperandCount { .. }
    ));
}

#[test]
fn attention_splits_heads_and_masks_keys() {
    let q = Tensor::new([1, 1, 2], vec![0.0f32, 0.0]);
    let k = Tensor::new([1, 3, 2], vec![1.0f32; 6]);
    let v = Tensor::new([1, 3, 2], vec![1.0f32, 10.0, 3.0, 30.0, 100.0, 1000.0]);
    let attributes = int("num_heads", 2).with("scale", Attribute::Float(1.0));
    let mask = matrix(&[[true, true, false]]);
    let y = one(
        Operator::ScaledDotProductAttention,
        &attributes,
        &[&q, &k, &v, &mask],
    );
    assert_eq!(y, Tensor::new([1, 1, 2], vec![2.0f32, 20.0]));
    let all_hidden = matrix(&[[0i64, 0, 0]]);
    let y = one(
        Operator::ScaledDotProductAttention,
        &attributes,
        &[&q, &k, &v, &all_hidden],
    );
    let means = y.as_slice::<f32>().expect("f32");
    assert!(
        (means[0] - 104.0 / 3.0).abs() < 1e-4 && (means[1] - 1040.0 / 3.0).abs() < 1e-3,
        "{means:?}"
    );
}

#[test]
fn attention_takes_a_bias_by_distance() {
    let q = Tensor::new([1, 1, 2], vec![0.0f32, 0.0]);
    let k = Tensor::new([1, 3, 2], vec![1.0f32; 6]);
    let v = Tensor::new([1, 3, 2], vec![1.0f32, 10.0, 3.0, 30.0, 100.0, 1000.0]);
    let attributes = int("num_heads", 2).with("scale", Attribute::Float(1.0));
    let run = |mask: &Tensor, relative: &Tensor| {
        let operands = [&q, &k, &v, mask].map(|t| Some(t.view()));
        let operands = [&operands[..], &[None, Some(relative.view())]].concat();
        evaluate(
            Operator::ScaledDotProductAttention,
            &attributes,
            &operands,
            1,
        )
    };
    // The first head sees the key at distance 0 alone, the second those before it.
    let lo = f32::MIN;
    let relative = matrix(&[[7.0f32, lo, lo, 0.0], [7.0, 0.0, 0.0, lo]]);
    let seen = matrix(&[[true, true, false]]);
    let y = run(&seen, &relative).expect("evaluates");
    assert_eq!(y, [Tensor::new([1, 1, 2], vec![1.0f32, 30.0])]);
    // What both mask is masked like what one of them does.
    let y = run(&matrix(&[[false, false, false]]), &relative).expect("evaluates");
    let means = y[0].as_slice::<f32>().expect("f32");
    assert!((means[0] - 104.0 / 3.0).abs() < 1e-4, "{means:?}");
    let wrong = run(&seen, &matrix(&[[0.0f32; 5]]));
    assert!(matches!(wrong, Err(OpError::Shape { .. })));
}

#[test]
fn attention_takes_numbers_of_queries_and_keys_by_distance() {
    let q = Tensor::new([1, 2, 1], vec![0.0f32, 0.0]);
    let v = Tensor::new([1, 2, 1], vec![1.0f32, 3.0]);
    let attributes = int("num_heads", 1).with("scale", Attribute::Float(1.0));
    let run = |mask: &Tensor, rows: &Tensor, index: &Tensor, side: usize| {
        let mut operands = vec![Some(q.view()), Some(q.view()), Some(v.view())];
        operands.extend([None, None, None, Some(mask.view())]);
        operands.extend(vec![None; 2 * side]);
        operands.extend([Some(rows.view()), Some(index.view())]);
        let op = Operator::ScaledDotProductAttention;
        evaluate(op, &attributes, &operands, 1)
    };
    let seen = matrix(&[[true, true]]);
    let lo = -1e30f32;
    // By `i - j + 2`, where element 0 belongs to no pair: distances -1, 0, 1.
    let index = vector(&[9i64, 1, -1, 0]);
    // Query 0 sees key 1 alone, query 1 sees key 0 alone.
    let rows = Tensor::new([1, 1, 2, 3], vec![0.0, 0.0, lo, 0.0, lo, lo]);
    let y = run(&seen, &rows, &index, 0).expect("evaluates");
    assert_eq!(y, [Tensor::new([1, 2, 1], vec![3.0f32, 1.0])]);
    // Key 0 is seen by query 1 alone, key 1 by both.
    let rows = Tensor::new([1, 1, 2, 3], vec![0.0, 0.0, lo, 0.0, 0.0, 0.0]);
    let y = run(&seen, &rows, &index, 1).expect("evaluates");
    assert_eq!(y, [Tensor::new([1, 2, 1], vec![3.0f32, 2.0])]);
    // A query that is masked weighs all keys alike.
    let y = run(&matrix(&[[0i32, 7]]), &rows, &index, 1).expect("evaluates");
    assert_eq!(y, [Tensor::new([1, 2, 1], vec![2.0f32, 2.0])]);
    for at in [3, -4] {
        let wrong = run(&seen, &rows, &vector(&[0i64, at, 0, 0]), 0);
        assert!(
            matches!(wrong, Err(OpError::Value { index: 8, .. })),
            "{wrong:?}"
        );
    }
    for index in [vector(&[0i64, 0, 0]), vector(&[0i64; 5])] {
        assert!(matches!(
            run(&seen, &rows, &index, 0),
            Err(OpError::Shape { .. })
        ));
    }
    let of_other_tokens = Tensor::new([1, 1, 3, 2], vec![0.0f32; 6]);
    let wrong = run(&seen, &of_other_tokens, &vector(&[0i64; 4]), 1);
    assert!(matches!(wrong, Err(OpError::Shape { .. })));
    let wrong = run(&matrix(&[[1.0f32, 1.0]]), &rows, &vector(&[0i64; 4]), 1);
    assert!(matches!(wrong, Err(OpError::DType { index: 6, .. })));
}

#[test]
fn attention_rounds_what_quantization_does() {
    let q = Tensor::new([1, 1, 1], vec![1.0f32]);
    let k = Tensor::new([1, 3, 1], vec![1.3f32, 9.0, -9.0]);
    let v = Tensor::new([1, 3, 1], vec![1.0f32, 1000.0, 1_000_000.0]);
    let attributes = |name: &str, numbers: &[f32]| {
        int("num_heads", 1)
            .with("scale", Attribute::Float(std::f32::consts::LN_2))
            .with("masked_value", Attribute::Float(-50.0))
            .with(name, Attribute::Floats(numbers.to_vec()))
            .with(
                "probability_rounding",
                Attribute::Floats(vec![1.0 / 128.0, -3.0, 80.0]),
            )
    };
    let run = |attributes: &Attributes, mask: [bool; 3]| {
        let mask = matrix(&[mask]);
        let y = one(
            Operator::ScaledDotProductAttention,
            attributes,
            &[&q, &k, &v, &mask],
        );
        y.as_slice::<f32>().expect("f32")[0]
    };
    // The products become 2, 3 (clipped) and -1 (clipped).
    let products = attributes("score_rounding", &[0.65, -1.0, 3.0]);
    // 2^2 : 2^3 : 2^-1 of 12.5: 40.96, 81.92 clipped to 80, and 5.12.
    assert_eq!(run(&products, [true; 3]), 41.0 + 80_000.0 + 5_000_000.0);
    // The masked key has what masks or less, and no weight.
    let scores = attributes("masked_score_rounding", &[10.0, -4.0, 4.0]);
    assert_eq!(run(&scores, [true, false, true]), 80.0);
    let invalid: [&[f32]; 6] = [
        &[1.0, 0.0],
        &[0.0, 0.0, 1.0],
        &[-1.0, 0.0, 1.0],
        &[f32::NAN, 0.0, 1.0],
        &[1.0, 0.5, 1.0],
        &[1.0, 1.0, 2.0],
    ];
    for numbers in invalid {
        let wrong = attributes("score_rounding", numbers);
        assert!(matches!(
            error(Operator::ScaledDotProductAttention, &wrong, &[&q, &k, &v]),
            OpError::Attribute { .. }
        ));
    }
}

#[test]
fn counts_and_types_of_attributes_are_checked() {
    let x = vector(&[1.0f32]);
    assert!(matches!(
        error(Operator::Add, &none(), &[&x]),
        OpError::OperandCount { .. }
    ));
    assert!(matches!(
        evaluate(Operator::Relu, &none(), &[None], 1),
        Err(OpError::MissingOperand { index: 0, .. })
    ));
    assert!(matches!(
        error(Operator::Softmax, &text("axis", "last"), &[&x]),
        OpError::Attribute { .. }
    ));
    assert!(matches!(
        error(Operator::Relu, &int("alpha", 1), &[&x]),
        OpError::Attribute { .. }
    ));
    assert!(matches!(
        error(Operator::Exp, &none(), &[&vector(&[1i32])]),
        OpError::DType { .. }
    ));
    assert!(matches!(
        error(Operator::Softmax, &int("axis", 1), &[&x]),
        OpError::Shape { .. }
    ));
}

#[test]
fn integer_linear_is_exact_at_the_extremes() {
    let x = Tensor::new([2, 3], vec![255u8, 255, 255, 1, 2, 3]);
    let w = matrix(&[[-128i8, -128, -128], [127, 0, 1]]);
    let want = Tensor::new([2, 2], vec![-97_920, 32_640, -768, 130]);
    assert_eq!(one(Operator::IntegerLinear, &none(), &[&x, &w]), want);
    let wide = matrix(&[[255i16, 0, -255]]);
    let want = Tensor::new([2, 1], vec![0, -510]);
    assert_eq!(one(Operator::IntegerLinear, &none(), &[&x, &wide]), want);
}
