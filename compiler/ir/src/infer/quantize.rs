//! Quantization: conversions between floats and integers with a scale and a zero point.

use lancet_ops::DType;

use super::broadcast::{is_one, list};
use super::call::{Call, Class, Many, One};
use super::elements::value;
use crate::{Dim, IrError};

/// Checks that scale and zero point are scalars, one element for each place of the axis, or one for each block of it.
fn check_parameters(call: &Call<'_>, block_size: i64) -> Result<(), IrError> {
    let (x, scale) = (call.shape(0)?, call.shape(1)?);
    let per_tensor = scale.iter().all(is_one);
    if per_tensor {
        call.expect_scalar(2)?;
    } else {
        call.expect_shape(2, scale)?;
    }
    if block_size < 0 {
        let message = format!("{block_size} is negative");
        return Err(call.attribute_error("block_size", message));
    }
    if block_size == 0 && per_tensor {
        return Ok(());
    }
    let axis = call.axis("axis", x.len())?;
    if block_size == 0 {
        return call.expect_shape(1, std::slice::from_ref(&x[axis]));
    }
    let mut expected = x.to_vec();
    expected[axis] = match x[axis].as_fixed() {
        Some(n) => Dim::fixed(n / block_size + i64::from(n % block_size != 0)),
        None => scale.get(axis).cloned().unwrap_or_else(|| Dim::fixed(1)),
    };
    call.expect_shape(1, &expected)
}

/// `QuantizeLinear`: to the zero point's type, else to `output_dtype`, else to `u8`.
pub(super) fn quantize(call: &Call<'_>) -> One {
    if call.dtype(0)? != DType::I32 {
        call.expect(0, Class::Float)?;
    }
    call.expect(1, Class::Float)?;
    check_parameters(call, call.int("block_size"))?;
    let asked = call.dtype_attribute("output_dtype")?;
    let dtype = match (call.optional(2), asked) {
        (Some(zero_point), Some(asked)) if zero_point.ty.dtype != asked => {
            return Err(call.operand_error(2, format!("{asked}{}", list(&zero_point.ty.shape))));
        }
        (Some(zero_point), _) => zero_point.ty.dtype,
        (None, asked) => asked.unwrap_or(DType::U8),
    };
    if !matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16) {
        return Err(call.error(format!("cannot quantize to {dtype}")));
    }
    Ok(value(dtype, call.shape(0)?.to_vec(), None))
}

/// `DequantizeLinear`: to `output_dtype`, else to the scale's type.
pub(super) fn dequantize(call: &Call<'_>) -> One {
    call.expect(0, Class::Integer)?;
    call.expect(1, Class::Float)?;
    call.same_dtype([0, 2])?;
    check_parameters(call, call.int("block_size"))?;
    let dtype = call.dtype_attribute("output_dtype")?;
    if let Some(d) = dtype.filter(|d| !d.is_float()) {
        return Err(call.attribute_error("output_dtype", format!("{d} is not a float type")));
    }
    Ok(value(
        dtype.unwrap_or(call.dtype(1)?),
        call.shape(0)?.to_vec(),
        None,
    ))
}

/// `DynamicQuantizeLinear`: the quantized value, its scale, its zero point.
pub(super) fn dynamic_quantize(call: &Call<'_>) -> Many {
    call.expect_dtype(0, DType::F32)?;
    Ok(vec![
        value(DType::U8, call.shape(0)?.to_vec(), None),
        value(DType::F32, Vec::new(), None),
        value(DType::U8, Vec::new(), None),
    ])
}

/// `IntegerLinear`: `x[.., k]: u8, w[n, k]: i8 or i16` give `i32[.., n]`.
pub(super) fn integer_linear(call: &Call<'_>) -> One {
    call.expect_dtype(0, DType::U8)?;
    let [n, k] = call.dims::<2>(1)?;
    if !matches!(call.dtype(1)?, DType::I8 | DType::I16) {
        return Err(call.operand_error(1, format!("i8[{n}, {k}] or i16")));
    }
    let Some((found, batch)) = call.shape(0)?.split_last() else {
        return Err(call.operand_error(0, "at least 1 dimension".to_owned()));
    };
    if k.equals(found) == Some(false) {
        return Err(call.operand_error(1, format!("i8[{n}, {found}]")));
    }
    let mut shape = batch.to_vec();
    shape.push(n.clone());
    Ok(value(DType::I32, shape, None))
}
