//! Affine quantization: `q = saturate(round(x / scale) + zero_point)` with ties to even, and products of such tensors.
//!
//! NaN becomes the least value of the type. The specification leaves it open; ONNX Runtime does so.

use crate::call::{Call, OpResult, OpResults};
use crate::cast::{convert, from_f64, with_data};
use crate::index::take;
use crate::layout::{expand, expect_broadcasts_to};
use crate::matmul::{Batches, centered, multiply_exact};
use crate::norm::reals;
use crate::{DType, Data, DataView, OpError, Tensor, TensorView};

/// Least and greatest value of an integer type that tensors are quantized to.
pub(crate) fn range_of(call: &Call<'_>, index: usize, dtype: DType) -> Result<(f64, f64), OpError> {
    match dtype {
        DType::I8 => Ok((f64::from(i8::MIN), f64::from(i8::MAX))),
        DType::U8 => Ok((0.0, f64::from(u8::MAX))),
        DType::I16 => Ok((f64::from(i16::MIN), f64::from(i16::MAX))),
        DType::U16 => Ok((0.0, f64::from(u16::MAX))),
        DType::I32 => Ok((f64::from(i32::MIN), f64::from(i32::MAX))),
        other => Err(call.dtype_error(index, other)),
    }
}

/// Values of a quantization parameter for each element of `x`: one for all, one for each place along `axis`, or one for
/// each block of `block` places along it.
fn spread(
    call: &Call<'_>,
    parameter: TensorView<'_>,
    x: TensorView<'_>,
) -> Result<Vec<f64>, OpError> {
    let values = parameter.to_f64_vec();
    if let [value] = values[..] {
        return Ok(vec![value; x.len()]);
    }
    let axis = call.axis("axis", x.rank())?;
    let d = x.shape()[axis];
    let mismatch = || {
        call.shape_error(format!(
            "scale or zero point of shape {:?} for {:?} along axis {axis}",
            parameter.shape(),
            x.shape()
        ))
    };
    let block = usize::try_from(call.optional_int("block_size").unwrap_or(0))
        .map_err(|_| call.attribute_error("block_size", "is negative"))?;
    if block == 0 {
        if parameter.shape() != [d] {
            return Err(mismatch());
        }
        let mut shape = vec![1; x.rank()];
        shape[axis] = d;
        return Ok(expand(&values, &shape, x.shape()));
    }
    let mut blocks = x.shape().to_vec();
    blocks[axis] = d.div_ceil(block);
    if parameter.shape() != blocks {
        return Err(mismatch());
    }
    if x.is_empty() {
        return Ok(Vec::new());
    }
    let places = |(a, &n): (usize, &usize)| {
        (0..n)
            .map(|i| Some(if a == axis { i / block } else { i }))
            .collect()
    };
    let indices: Vec<Vec<Option<usize>>> = x.shape().iter().enumerate().map(places).collect();
    Ok(take(&values, &blocks, &indices, 0.0))
}

/// Rounds `v` to the precision of a floating-point type.
fn round_to(v: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(v as f32),
        DType::F16 => f64::from(half::f16::from_f64(v)),
        DType::BF16 => f64::from(half::bf16::from_f64(v)),
        _ => v,
    }
}

/// A number in multiples of the scale as an integer of a range, which ends what is beyond it and begins with NaN.
pub(crate) fn saturate(v: f64, zero: f64, (low, high): (f64, f64)) -> f64 {
    (v.round_ties_even() + zero).max(low).min(high)
}

/// `QuantizeLinear`, by tensor, axis or block. The quotient is rounded to the precision of the scale, or of attribute
/// `precision`, before it is rounded to an integer.
pub(crate) fn quantize_linear(call: &Call<'_>) -> OpResult {
    let (x, scale) = (call.operand(0)?, call.operand(1)?);
    if !(x.dtype().is_float() || x.dtype() == DType::I32) {
        return Err(call.dtype_error(0, x.dtype()));
    }
    reals(call, 1)?;
    let zero = call.optional(2);
    let dtype = match (zero, call.dtype("output_dtype")?) {
        (Some(z), Some(named)) if z.dtype() != named => {
            return Err(call.attribute_error(
                "output_dtype",
                format!("{named}, but the zero point is {}", z.dtype()),
            ));
        }
        (Some(z), _) => z.dtype(),
        (None, named) => named.unwrap_or(DType::U8),
    };
    let (low, high) = range_of(call, 2, dtype)?;
    let precision = call.dtype("precision")?.unwrap_or(scale.dtype());
    if let (Some(v), Some(&[s])) = (x.as_slice::<f32>(), scale.as_slice::<f32>())
        && precision == DType::F32
        && let Some(z) = zero.map_or(Some(0.0), single)
        && let Some(data) = quantize_alike(v, s, z as f32, dtype)
    {
        return with_data(call, x, data);
    }
    let scales = spread(call, scale, x)?;
    let zeros = match zero {
        Some(z) => spread(call, z, x)?,
        None => vec![0.0; x.len()],
    };
    let quantized: Vec<f64> = x
        .to_f64_vec()
        .into_iter()
        .zip(scales.iter().zip(&zeros))
        .map(|(v, (s, z))| saturate(round_to(v / s, precision), *z, (low, high)))
        .collect();
    with_data(call, x, from_f64(&quantized, dtype))
}

/// The element of a parameter that has one.
fn single(parameter: TensorView<'_>) -> Option<f64> {
    (parameter.len() == 1).then(|| parameter.to_f64_vec()[0])
}

/// Quantizes all elements alike, to bytes: what [`quantize_linear`] says, in single precision.
fn quantize_alike(x: &[f32], scale: f32, zero: f32, dtype: DType) -> Option<Data> {
    // Rounds halves to even below 2^22. What is greater saturates wherever it is rounded to.
    const LIMIT: f32 = 4_194_304.0;
    const MAGIC: f32 = 12_582_912.0;
    let round = |v: f32| {
        let v = v / scale;
        let v = if v.is_nan() { -LIMIT } else { v };
        (v.clamp(-LIMIT, LIMIT) + MAGIC) - MAGIC + zero
    };
    match dtype {
        DType::U8 => Some(Data::U8(x.iter().map(|&v| round(v) as u8).collect())),
        DType::I8 => Some(Data::I8(x.iter().map(|&v| round(v) as i8).collect())),
        _ => None,
    }
}

/// Dequantizes all elements of a tensor of bytes alike. Differences are exact in `f32`, and products are rounded once.
pub(crate) fn dequantize_alike(x: TensorView<'_>, scale: f32, zero: f32) -> Option<Data> {
    let values = match x.data() {
        DataView::U8(v) => v.iter().map(|&q| (f32::from(q) - zero) * scale).collect(),
        DataView::I8(v) => v.iter().map(|&q| (f32::from(q) - zero) * scale).collect(),
        _ => return None,
    };
    Some(Data::F32(values))
}

/// `DequantizeLinear`: `(x - zero_point) · scale`, by tensor, axis or block.
pub(crate) fn dequantize_linear(call: &Call<'_>) -> OpResult {
    let (x, scale) = (call.operand(0)?, call.operand(1)?);
    range_of(call, 0, x.dtype())?;
    reals(call, 1)?;
    let dtype = call.dtype("output_dtype")?.unwrap_or(scale.dtype());
    call.expect_dtype(2, x.dtype())?;
    if let Some(&[s]) = scale.as_slice::<f32>()
        && dtype == DType::F32
        && let Some(z) = call.optional(2).map_or(Some(0.0), single)
        && let Some(data) = dequantize_alike(x, s, z as f32)
    {
        return with_data(call, x, data);
    }
    let mut values = x.to_f64_vec();
    if let Some(z) = call.optional(2) {
        let zeros = spread(call, z, x)?;
        values.iter_mut().zip(&zeros).for_each(|(v, z)| *v -= z);
    }
    let scales = spread(call, scale, x)?;
    values.iter_mut().zip(&scales).for_each(|(v, s)| *v *= s);
    call.size(x.shape(), dtype)?;
    with_data(call, x, from_f64(&values, dtype))
}

/// A tensor quantized to `u8` by its own range: values, scale and zero point.
pub(crate) struct Dynamic {
    pub(crate) values: Vec<u8>,
    pub(crate) scale: f32,
    pub(crate) zero_point: u8,
}

/// Quantizes to `u8` so that the range, widened to hold zero, is 0 to 255; in single precision, as the specification
/// computes it. The scale of zeros is one.
pub(crate) fn quantize_dynamically(x: &[f32]) -> Dynamic {
    let high = x.iter().copied().fold(0.0f32, f32::max);
    let low = x.iter().copied().fold(0.0f32, f32::min);
    let scale = if high == low {
        1.0
    } else {
        (high - low) / 255.0
    };
    let zero_point = (-low / scale).clamp(0.0, 255.0).round_ties_even();
    let quantize = |v: f32| ((v / scale).round_ties_even() + zero_point).clamp(0.0, 255.0) as u8;
    Dynamic {
        values: x.iter().map(|&v| quantize(v)).collect(),
        scale,
        zero_point: zero_point as u8,
    }
}

/// `DynamicQuantizeLinear`.
pub(crate) fn dynamic_quantize_linear(call: &Call<'_>) -> OpResults {
    let q = quantize_dynamically(call.slice::<f32>(0)?);
    let y = call.tensor(call.operand(0)?.shape(), q.values)?;
    Ok(vec![
        y,
        Tensor::scalar(q.scale),
        Tensor::scalar(q.zero_point),
    ])
}

/// Operand `index`, a scale or zero point, for each element of a product of shape `out`: one for all, one for each row
/// (`per_row`), or one for each column.
fn spread_over_product(
    call: &Call<'_>,
    index: usize,
    per_row: bool,
    out: &[usize],
) -> Result<Vec<f64>, OpError> {
    let parameter = call.operand(index)?;
    let mut shape = parameter.shape().to_vec();
    if parameter.len() == 1 {
        shape.clear();
    } else if per_row && shape.len() == 1 {
        shape.push(1);
    }
    expect_broadcasts_to(call, &shape, out)?;
    Ok(expand(&parameter.to_f64_vec(), &shape, out))
}

/// `QLinearMatMul`: the product of quantized matrices, quantized.
pub(crate) fn qlinear_matmul(call: &Call<'_>) -> OpResult {
    let (a, b, y_zero) = (call.operand(0)?, call.operand(3)?, call.operand(7)?);
    let batches = Batches::new(call, a.shape(), b.shape())?;
    let shape = &batches.shape;
    call.size(shape, DType::F64)?;
    let (low, high) = range_of(call, 7, y_zero.dtype())?;
    let sums = multiply_exact(
        &batches,
        &centered(call, 0, 2, true)?,
        &centered(call, 3, 5, false)?,
    );
    let [a_scale, b_scale, y_scale, zero] = [(1, true), (4, false), (6, true), (7, true)]
        .map(|(i, per_row)| spread_over_product(call, i, per_row, shape));
    let (a_scale, b_scale, y_scale, zero) = (a_scale?, b_scale?, y_scale?, zero?);
    let quantized: Vec<f64> = sums
        .iter()
        .enumerate()
        .map(|(i, &s)| {
            let v = f64::from(s) * (a_scale[i] * b_scale[i] / y_scale[i]);
            saturate(v, zero[i], (low, high))
        })
        .collect();
    let data = convert(&DataView::F64(&quantized), y_zero.dtype());
    Tensor::try_new(shape.clone(), data).ok_or_else(|| call.shape_error("sizes disagree"))
}

/// `MatMulIntegerToFloat`: the product of 8-bit matrices less their zero points, times both scales, plus a bias.
pub(crate) fn matmul_integer_to_float(call: &Call<'_>) -> OpResult {
    let (a, b) = (centered(call, 0, 4, true)?, centered(call, 1, 5, false)?);
    let batches = Batches::new(call, call.operand(0)?.shape(), call.operand(1)?.shape())?;
    call.size(&batches.shape, DType::F64)?;
    let a_scale = spread_over_product(call, 2, true, &batches.shape)?;
    scaled_product(call, &batches, [&a, &b], &a_scale, [3, 6])
}

/// `DynamicQuantizeMatMul`: the left matrix is quantized to `u8` by its own range, the right one is given quantized.
pub(crate) fn dynamic_quantize_matmul(call: &Call<'_>) -> OpResult {
    let q = quantize_dynamically(call.slice::<f32>(0)?);
    let zero = f32::from(q.zero_point);
    let a: Vec<f32> = q.values.iter().map(|&v| f32::from(v) - zero).collect();
    let b = centered(call, 1, 3, false)?;
    let batches = Batches::new(call, call.operand(0)?.shape(), call.operand(1)?.shape())?;
    let n = call.size(&batches.shape, DType::F64)?;
    scaled_product(
        call,
        &batches,
        [&a, &b],
        &vec![f64::from(q.scale); n],
        [2, 4],
    )
}

/// The product of centred integers, times the left scale and that in operand `b_scale`, plus operand `bias` if present.
fn scaled_product(
    call: &Call<'_>,
    batches: &Batches,
    [a, b]: [&[f32]; 2],
    a_scale: &[f64],
    [b_scale, bias]: [usize; 2],
) -> OpResult {
    let shape = &batches.shape;
    let sums = multiply_exact(batches, a, b);
    let dtype = call.operand(b_scale)?.dtype();
    let b_scale = spread_over_product(call, b_scale, false, shape)?;
    let bias = match call.optional(bias) {
        Some(_) => spread_over_product(call, bias, false, shape)?,
        None => vec![0.0; sums.len()],
    };
    let values: Vec<f64> = sums
        .iter()
        .enumerate()
        .map(|(i, &s)| f64::from(s) * (a_scale[i] * b_scale[i]) + bias[i])
        .collect();
    Tensor::try_new(shape.clone(), from_f64(&values, dtype))
        .ok_or_else(|| call.shape_error("sizes disagree"))
}

/// `IntegerLinear`: `x[.., k] · w[n, k]` transposed, bytes times `i8` or `i16`, exact but for wrapping at 32 bits.
pub(crate) fn integer_linear(call: &Call<'_>) -> OpResult {
    let (x, w) = (call.operand(0)?, call.operand(1)?);
    let data = call.slice::<u8>(0)?;
    let weight: Vec<i32> = match w.data() {
        DataView::I8(v) => v.iter().map(|&v| i32::from(v)).collect(),
        DataView::I16(v) => v.iter().map(|&v| i32::from(v)).collect(),
        _ => return Err(call.dtype_error(1, w.dtype())),
    };
    let mismatch = || {
        call.shape_error(format!(
            "cannot multiply {:?} by {:?} transposed",
            x.shape(),
            w.shape()
        ))
    };
    let (&k, batch) = x.shape().split_last().ok_or_else(mismatch)?;
    let &[n, k_of_w] = w.shape() else {
        return Err(mismatch());
    };
    if k != k_of_w {
        return Err(mismatch());
    }
    let mut shape = batch.to_vec();
    shape.push(n);
    let size = call.size(&shape, DType::I32)?;
    let mut sums = Vec::with_capacity(size);
    for t in 0..size / n.max(1) {
        let x = &data[t * k..(t + 1) * k];
        sums.extend((0..n).map(|row| {
            let products = weight[row * k..(row + 1) * k].iter().zip(x);
            products.fold(0i32, |sum, (&w, &x)| sum.wrapping_add(w * i32::from(x)))
        }));
    }
    call.tensor(&shape, sums)
}
