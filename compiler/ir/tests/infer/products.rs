//! Cases of matrix products, windows and quantization.

use lancet_ops::{DType, Tensor};

use crate::case::*;
use crate::random::Random;

/// Operands of a product of matrices.
pub(crate) fn product(r: &mut Random, dtypes: [DType; 2]) -> Case {
    let (batch, k) = (r.shape(0, 2), r.size());
    let side = |r: &mut Random, matrix: [usize; 2], vector: bool, dtype| {
        if vector {
            return r.tensor(dtype, &[k]);
        }
        let shape = [r.narrowed(&batch), matrix.to_vec()].concat();
        r.tensor(dtype, &shape)
    };
    let (m, n) = (r.size(), r.size());
    let (v, w) = (r.chance(15), r.chance(15));
    let a = side(r, [m, k], v, dtypes[0]);
    let b = side(r, [k, n], w, dtypes[1]);
    Case::new(vec![a, b])
}

pub(crate) fn gemm(r: &mut Random) -> Case {
    let (m, k, n) = (r.size(), r.size(), r.size());
    let (ta, tb) = (r.chance(50), r.chance(50));
    let a = f32s(r, &if ta { [k, m] } else { [m, k] });
    let b = f32s(r, &if tb { [n, k] } else { [k, n] });
    let bias = r.narrowed(&[m, n]);
    let c = f32s(r, &bias);
    Case::new(vec![a, b, c])
        .without(r, 2)
        .int("transA", ta.into())
        .int("transB", tb.into())
}

/// Attributes of windows over so many dimensions.
pub(crate) fn windows(r: &mut Random, case: Case, n: usize) -> Case {
    let list = |r: &mut Random, n: usize, least: usize, values: usize| {
        (0..n)
            .map(|_| (least + r.below(values)) as i64)
            .collect::<Vec<_>>()
    };
    let (strides, pads) = (list(r, n, 1, 3), list(r, 2 * n, 0, 2));
    let dilations = list(r, n, 1, 2);
    let case = case.maybe(r, |c| c.ints("strides", strides));
    let case = case.maybe(r, |c| c.ints("dilations", dilations));
    match r.below(4) {
        0 => case.ints("pads", pads),
        1 => case.str("auto_pad", "SAME_UPPER"),
        2 => case.str("auto_pad", "VALID"),
        _ => case,
    }
}

/// Operands of a convolution: data and weight.
pub(crate) fn conv(r: &mut Random, dtype: DType) -> (Case, usize) {
    let (n, group, per, outputs) = (1 + r.below(2), 1 + r.below(2), r.positive(), r.positive());
    let (batch, outputs) = (r.positive(), outputs * group);
    let mut x = vec![batch, group * per];
    let mut w = vec![outputs, per];
    for _ in 0..n {
        x.push(4 + r.below(5));
        w.push(r.positive().min(3));
    }
    let case = Case::new(vec![r.tensor(dtype, &x), r.tensor(dtype, &w)]).int("group", group as i64);
    (windows(r, case, n), outputs)
}

pub(crate) fn conv_transpose(r: &mut Random) -> Case {
    let (n, group) = (1 + r.below(2), 1 + r.below(2));
    let (per, outputs) = (r.positive(), r.positive());
    let mut x = vec![r.positive(), group * per];
    let mut w = vec![group * per, outputs];
    for _ in 0..n {
        x.push(2 + r.below(4));
        w.push(3);
    }
    let bias = f32s(r, &[group * outputs]);
    let case = Case::new(vec![f32s(r, &x), f32s(r, &w), bias]).int("group", group as i64);
    let (more, stated) = (vec![1; n], (0..n).map(|_| 3 + r.below(5) as i64).collect());
    let case = windows(r, case, n).without(r, 2);
    let case = case.maybe(r, |c| c.ints("output_padding", more));
    if r.chance(25) {
        case.ints("output_shape", stated)
    } else {
        case
    }
}

pub(crate) fn pool(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, n) = (*r.pick(dtypes), 1 + r.below(2));
    let mut x = vec![r.positive(), r.positive()];
    x.extend((0..n).map(|_| 4 + r.below(5)));
    let kernel = (0..n).map(|_| 2 + r.below(2) as i64).collect();
    let ceil = r.below(2) as i64;
    let case = Case::new(vec![r.tensor(dtype, &x)]);
    windows(r, case, n)
        .ints("kernel_shape", kernel)
        .int("ceil_mode", ceil)
}

pub(crate) fn einsum(r: &mut Random) -> Case {
    let (i, j, k, b) = (r.size(), r.size(), r.size(), r.size());
    let equations: [(&str, Vec<Vec<usize>>); 8] = [
        ("ij,jk->ik", vec![vec![i, j], vec![j, k]]),
        ("bij,bjk", vec![vec![b, i, j], vec![b, j, k]]),
        (
            "...ij, ...jk -> ...ik",
            vec![vec![b, 1, i, j], vec![k, j, k]],
        ),
        ("ii->i", vec![vec![i, i]]),
        ("ij->", vec![vec![i, j]]),
        ("ba", vec![vec![i, j]]),
        ("i,j->ji", vec![vec![i], vec![j]]),
        ("...i->i...", vec![vec![b, j, i]]),
    ];
    let (equation, shapes) = r.pick(&equations);
    let operands = shapes.iter().map(|s| f32s(r, s)).collect();
    Case::new(operands).str("equation", equation)
}

/// Data with scale and zero point: for all, along an axis, or in blocks.
pub(crate) fn quantized(
    r: &mut Random,
    from: DType,
    scale: DType,
    zero: DType,
    blocks: bool,
) -> Case {
    let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
    let axis = r.below(shape.len());
    let x = r.tensor(from, &shape);
    let (parameters, block) = match r.below(if blocks { 3 } else { 2 }) {
        0 => (Vec::new(), 0),
        1 => (vec![shape[axis]], 0),
        _ => {
            let mut parameters = shape.clone();
            parameters[axis] = shape[axis].div_ceil(2);
            (parameters, 2)
        }
    };
    let n: usize = parameters.iter().product();
    let scale = match scale {
        DType::F64 => Tensor::new(parameters.clone(), vec![0.5f64; n]),
        _ => Tensor::new(parameters.clone(), vec![0.5f32; n]),
    };
    let zero = Tensor::zeros(zero, parameters);
    let case = Case::new(vec![x, scale, zero])
        .without(r, 2)
        .int("axis", axis as i64);
    if blocks {
        case.int("block_size", block)
    } else {
        case
    }
}

pub(crate) fn scale() -> Tensor {
    Tensor::scalar(0.5f32)
}

pub(crate) fn integer_product(r: &mut Random) -> Case {
    let (a, b) = (
        *r.pick(&[DType::I8, DType::U8]),
        *r.pick(&[DType::I8, DType::U8]),
    );
    let mut case = product(r, [a, b]);
    case.operands.extend([
        Some(Tensor::zeros(a, vec![])),
        Some(Tensor::zeros(b, vec![])),
    ]);
    case
}

pub(crate) fn ms_fused_matmul(r: &mut Random) -> Case {
    let (b, m, k, n) = (r.positive(), r.positive(), r.positive(), r.positive());
    let (ta, tb, batch) = (r.chance(50), r.chance(50), r.chance(30));
    let arrange = |rows: usize, columns: usize, t: bool| match (t, batch) {
        (false, false) => [b, rows, columns],
        (true, false) => [b, columns, rows],
        (false, true) => [rows, b, columns],
        (true, true) => [columns, b, rows],
    };
    Case::new(vec![
        f32s(r, &arrange(m, k, ta)),
        f32s(r, &arrange(k, n, tb)),
    ])
    .int("transA", ta.into())
    .int("transB", tb.into())
    .int("transBatchA", batch.into())
    .int("transBatchB", batch.into())
}

pub(crate) fn qlinear_matmul(r: &mut Random) -> Case {
    let mut p = integer_product(r).operands;
    let (zb, za) = (p.pop().flatten(), p.pop().flatten());
    let (b, a) = (p.pop().flatten(), p.pop().flatten());
    let y = Some(Tensor::zeros(DType::U8, vec![]));
    let mut case = Case::new(Vec::new());
    case.operands = vec![a, Some(scale()), za, b, Some(scale()), zb, Some(scale()), y];
    case
}

pub(crate) fn qlinear_conv(r: &mut Random) -> Case {
    let (mut case, _) = conv(r, DType::U8);
    let zero = || Some(Tensor::scalar(0u8));
    let (w, x) = (case.operands.pop().flatten(), case.operands.pop().flatten());
    case.operands = vec![
        x,
        Some(scale()),
        zero(),
        w,
        Some(scale()),
        zero(),
        Some(scale()),
        zero(),
    ];
    case
}

pub(crate) fn quantize_linear(r: &mut Random) -> Case {
    let (scale, zero) = (
        *r.pick(&FLOATS),
        *r.pick(&[DType::U8, DType::I8, DType::I16]),
    );
    let case = quantized(r, scale, scale, zero, true);
    match case.operands[2] {
        None => case.maybe(r, |c| c.str("output_dtype", "i8")),
        Some(_) => case,
    }
}

pub(crate) fn dequantize_linear(r: &mut Random) -> Case {
    let (from, scale) = (
        *r.pick(&[DType::U8, DType::I8, DType::I32]),
        *r.pick(&[DType::F32]),
    );
    quantized(r, from, scale, from, true)
}

pub(crate) fn linear(r: &mut Random) -> Case {
    let (batch, k, n) = (r.shape(0, 2), r.size(), r.size());
    let (x, y) = ([batch.clone(), vec![k]].concat(), [batch, vec![n]].concat());
    let residual = r.narrowed(&y);
    let operands = vec![
        f32s(r, &x),
        f32s(r, &[n, k]),
        f32s(r, &[n]),
        f32s(r, &residual),
    ];
    Case::new(operands).without(r, 2).without(r, 3)
}
