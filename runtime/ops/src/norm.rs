//! Normalisations: softmax and its relatives, layer, group, instance and batch normalisation.
//!
//! Statistics and results are computed in double precision and rounded once to the element type.

use crate::call::{Call, OpResult, OpResults};
use crate::cast::{from_f64, with_data};
use crate::layout::{expand, expect_broadcasts_to, product, rows};
use crate::number::sum_f64;
use crate::{DType, OpError, Operator, Tensor, TensorView};

/// Elements of operand `index`, which must be of a floating-point type.
pub(crate) fn reals(call: &Call<'_>, index: usize) -> Result<Vec<f64>, OpError> {
    let x = call.operand(index)?;
    if x.dtype().is_float() {
        Ok(x.to_f64_vec())
    } else {
        Err(call.dtype_error(index, x.dtype()))
    }
}

/// Turns `row` into its softmax. A row of negative infinities, of which the softmax is 0/0, becomes NaN.
pub(crate) fn softmax_in_place(row: &mut [f64]) {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum = sum_f64(row.iter().copied());
    row.iter_mut().for_each(|v| *v /= sum);
}

/// `Softmax`, `LogSoftmax` and `Hardmax` along `axis`.
pub(crate) fn softmax(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let mut r = rows(&reals(call, 0)?, x.shape(), &[axis]);
    match call.op {
        Operator::Softmax => r.for_each(softmax_in_place),
        Operator::LogSoftmax => r.for_each(|row| {
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = sum_f64(row.iter().map(|v| (v - max).exp())).ln();
            row.iter_mut().for_each(|v| *v = *v - max - log_sum);
        }),
        Operator::Hardmax => r.for_each(|row| {
            let best = (1..row.len()).fold(0, |best, i| if row[best] < row[i] { i } else { best });
            row.fill(0.0);
            row[best] = 1.0;
        }),
        other => return Err(Call::not_dispatched(other)),
    }
    with_data(call, x, from_f64(&r.into_original_order(), x.dtype()))
}

/// Mean and population variance.
pub(crate) fn moments(row: &[f64]) -> (f64, f64) {
    let n = row.len() as f64;
    let mean = sum_f64(row.iter().copied()) / n;
    let variance = sum_f64(row.iter().map(|v| (v - mean) * (v - mean))) / n;
    (mean, variance)
}

/// Operand `index`, or `default` where it is absent, for each element of a row of `shape`.
fn parameter(
    call: &Call<'_>,
    index: usize,
    shape: &[usize],
    default: f64,
) -> Result<Vec<f64>, OpError> {
    let Some(p) = call.optional(index) else {
        call.size(shape, DType::F64)?;
        return Ok(vec![default; product(shape)]);
    };
    expect_broadcasts_to(call, p.shape(), shape)?;
    // A row of an empty tensor can be longer than any memory.
    call.size(shape, DType::F64)?;
    Ok(expand(&reals(call, index)?, p.shape(), shape))
}

/// The type in which statistics are given, by attribute `stash_type` (an ONNX type number).
fn stash_dtype(call: &Call<'_>) -> Result<DType, OpError> {
    match call.int("stash_type") {
        1 => Ok(DType::F32),
        10 => Ok(DType::F16),
        11 => Ok(DType::F64),
        16 => Ok(DType::BF16),
        other => Err(call.attribute_error("stash_type", format!("unknown type {other}"))),
    }
}

/// `LayerNormalization` over the dimensions from `axis`: results are `y`, the mean and the inverse standard deviation.
pub(crate) fn layer_normalization(call: &Call<'_>) -> OpResults {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let epsilon = f64::from(call.float("epsilon"));
    let stash = stash_dtype(call)?;
    let (outer, inner) = x.shape().split_at(axis);
    let n = product(inner);
    let mut kept = outer.to_vec();
    kept.resize(x.rank(), 1);
    call.size(&kept, DType::F64)?;
    let scale = parameter(call, 1, inner, 1.0)?;
    let bias = parameter(call, 2, inner, 0.0)?;
    let mut data = reals(call, 0)?;
    let (mut means, mut inverses) = (Vec::new(), Vec::new());
    for row in data.chunks_exact_mut(n.max(1)) {
        let (mean, variance) = moments(row);
        let inverse = 1.0 / (variance + epsilon).sqrt();
        for ((v, s), b) in row.iter_mut().zip(&scale).zip(&bias) {
            *v = (*v - mean) * inverse * s + b;
        }
        means.push(mean);
        inverses.push(inverse);
    }
    // The mean of no elements is 0/0.
    means.resize(product(&kept), f64::NAN);
    inverses.resize(product(&kept), f64::NAN);
    let statistic = |v: &[f64]| {
        Tensor::try_new(kept.clone(), from_f64(v, stash))
            .ok_or_else(|| call.shape_error("sizes disagree"))
    };
    let y = with_data(call, x, from_f64(&data, x.dtype()))?;
    Ok(vec![y, statistic(&means)?, statistic(&inverses)?])
}

/// `RMSNormalization` over the dimensions from `axis`, and `SimplifiedLayerNormalization`, whose second result is the
/// inverse root mean square.
pub(crate) fn rms_normalization(call: &Call<'_>) -> OpResults {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let epsilon = f64::from(call.float("epsilon"));
    let stash = stash_dtype(call)?;
    let (outer, inner) = x.shape().split_at(axis);
    let n = product(inner);
    let mut kept = outer.to_vec();
    kept.resize(x.rank(), 1);
    call.size(&kept, DType::F64)?;
    let scale = parameter(call, 1, inner, 1.0)?;
    let mut data = reals(call, 0)?;
    let mut inverses = Vec::new();
    for row in data.chunks_exact_mut(n.max(1)) {
        let mean_square = sum_f64(row.iter().map(|v| v * v)) / n as f64;
        let inverse = 1.0 / (mean_square + epsilon).sqrt();
        for (v, s) in row.iter_mut().zip(&scale) {
            *v = *v * inverse * s;
        }
        inverses.push(inverse);
    }
    // The mean of no elements is 0/0.
    inverses.resize(product(&kept), f64::NAN);
    let inverse = Tensor::try_new(kept, from_f64(&inverses, stash))
        .ok_or_else(|| call.shape_error("sizes disagree"))?;
    Ok(vec![
        with_data(call, x, from_f64(&data, x.dtype()))?,
        inverse,
    ])
}

/// `LpNormalization`: each row along `axis` divided by its 1- or 2-norm; a row of zeros stays.
pub(crate) fn lp_normalization(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let norm: fn(&[f64]) -> f64 = match call.int("p") {
        1 => |row| sum_f64(row.iter().map(|v| v.abs())),
        2 => |row| sum_f64(row.iter().map(|v| v * v)).sqrt(),
        other => return Err(call.attribute_error("p", format!("{other} is neither 1 nor 2"))),
    };
    let mut r = rows(&reals(call, 0)?, x.shape(), &[axis]);
    r.for_each(|row| {
        let norm = norm(row);
        if norm != 0.0 {
            row.iter_mut().for_each(|v| *v /= norm);
        }
    });
    with_data(call, x, from_f64(&r.into_original_order(), x.dtype()))
}

/// Batch and channel sizes of a tensor `[n, c, ...]` and the number of elements in a channel.
fn channels(call: &Call<'_>, x: TensorView<'_>) -> Result<[usize; 3], OpError> {
    match *x.shape() {
        [n, c, ref rest @ ..] => Ok([n, c, product(rest)]),
        _ => Err(call.shape_error(format!(
            "expected rank 2 or more, found shape {:?}",
            x.shape()
        ))),
    }
}

/// Operand `index`, a value for each of `c` channels.
fn per_channel(call: &Call<'_>, index: usize, c: usize) -> Result<Vec<f64>, OpError> {
    let values = reals(call, index)?;
    if values.len() == c {
        Ok(values)
    } else {
        Err(call.shape_error(format!(
            "operand {index} has {} values for {c} channels",
            values.len()
        )))
    }
}

/// `InstanceNormalization` and `GroupNormalization`: over groups of channels of each item; the scale and bias are per
/// channel.
pub(crate) fn group_normalization(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let [_, c, spatial] = channels(call, x)?;
    let epsilon = f64::from(call.float("epsilon"));
    let n_groups = match call.op {
        Operator::GroupNormalization => usize::try_from(call.int("num_groups")).unwrap_or(0),
        _ => c,
    };
    let (scale, bias) = (per_channel(call, 1, c)?, per_channel(call, 2, c)?);
    if x.is_empty() {
        return Ok(x.to_tensor());
    }
    if n_groups == 0 || c % n_groups != 0 {
        return Err(
            call.attribute_error("num_groups", format!("{n_groups} groups of {c} channels"))
        );
    }
    let mut data = reals(call, 0)?;
    let per_group = c / n_groups;
    for (g, group) in data.chunks_exact_mut(per_group * spatial).enumerate() {
        let (mean, variance) = moments(group);
        let inverse = 1.0 / (variance + epsilon).sqrt();
        for (i, v) in group.iter_mut().enumerate() {
            let channel = (g % n_groups) * per_group + i / spatial;
            *v = (*v - mean) * inverse * scale[channel] + bias[channel];
        }
    }
    with_data(call, x, from_f64(&data, x.dtype()))
}

/// `BatchNormalization` with given statistics. Training mode is an error: a compiled model is not trained.
pub(crate) fn batch_normalization(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    if call.flag("training_mode") {
        return Err(call.attribute_error("training_mode", "is not supported"));
    }
    let [_, c, spatial] = match *x.shape() {
        [_] => [1, 1, 1],
        _ => channels(call, x)?,
    };
    let epsilon = f64::from(call.float("epsilon"));
    let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| per_channel(call, i, c));
    let (scale, bias, mean, variance) = (scale?, bias?, mean?, variance?);
    let mut data = reals(call, 0)?;
    if spatial != 0 {
        for (i, channel) in data.chunks_exact_mut(spatial).enumerate() {
            let c = i % c;
            let factor = scale[c] / (variance[c] + epsilon).sqrt();
            channel
                .iter_mut()
                .for_each(|v| *v = (*v - mean[c]) * factor + bias[c]);
        }
    }
    with_data(call, x, from_f64(&data, x.dtype()))
}

/// `MeanVarianceNormalization` over `axes`, by default all but the channels.
pub(crate) fn mean_variance_normalization(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axes = call.normalize_axes(call.ints("axes").unwrap_or(&[0, 2, 3]), x.rank())?;
    let mut r = rows(&reals(call, 0)?, x.shape(), &axes);
    r.for_each(|row| {
        let (mean, variance) = moments(row);
        let deviation = variance.sqrt() + 1e-9;
        row.iter_mut().for_each(|v| *v = (*v - mean) / deviation);
    });
    with_data(call, x, from_f64(&r.into_original_order(), x.dtype()))
}
