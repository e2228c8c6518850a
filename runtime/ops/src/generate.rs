//! Operators that make tensors from sizes: `Range`, `ConstantOfShape`, `FromSparse`.

use crate::call::{Call, OpResult};
use crate::number::{Number, Wide, for_number};
use crate::shape::sizes;
use crate::{DType, OpError, Tensor};

/// `Range`: `start + i · delta` up to and without `limit`.
pub(crate) fn range(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let scalar = |i: usize| match *call.slice::<T>(i)? {
            [v] => Ok(v),
            _ => Err(call.value_error(i, "expected one element")),
        };
        let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
        if delta == T::ZERO {
            return Err(call.value_error(2, "the step is zero"));
        }
        match (start.widen(), limit.widen(), delta.widen()) {
            (Wide::Int(a), Wide::Int(b), Wide::Int(d)) => {
                let distance = if d < 0 { a - b } else { b - a };
                let n = if distance <= 0 {
                    0
                } else {
                    (distance - 1) / d.abs() + 1
                };
                let n = length::<T>(call, usize::try_from(n).unwrap_or(usize::MAX))?;
                call.tensor(
                    &[n],
                    (0..n)
                        .map(|i| T::narrow(Wide::Int(a + i as i128 * d)))
                        .collect(),
                )
            }
            (a, b, d) => {
                let [a, b, d] = [a, b, d].map(|v| match v {
                    Wide::Float(v) => v,
                    Wide::Int(v) => v as f64,
                });
                let n = ((b - a) / d).ceil();
                if n.is_nan() {
                    return Err(call.value_error(1, "the length is not a number"));
                }
                let n = length::<T>(call, n as usize)?;
                call.tensor(
                    &[n],
                    (0..n).map(|i| T::from_f64(a + i as f64 * d)).collect(),
                )
            }
        }
    }
    fn length<T: Number>(call: &Call<'_>, n: usize) -> Result<usize, OpError> {
        call.size(&[n], T::DTYPE)
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `ConstantOfShape`: the only element of attribute `value`, or the `f32` zero, everywhere.
pub(crate) fn constant_of_shape(call: &Call<'_>) -> OpResult {
    let shape = sizes(call, 0)?;
    let zero = Tensor::scalar(0.0f32);
    let value = match call.attribute("value") {
        Some(crate::Attribute::Tensor(t)) => t.view(),
        _ => zero.view(),
    };
    if value.len() != 1 {
        return Err(call.attribute_error(
            "value",
            format!("expected one element, found {}", value.len()),
        ));
    }
    let n = call.size(&shape, value.dtype())?;
    with_elements!(value.data(), v => call.tensor(&shape, vec![v[0]; n]))
}

/// `FromSparse`: `values` at `positions`, zero elsewhere.
///
/// * `values`: `f32[nnz]`; `positions`: `i64[nnz]`, row-major positions in the result, ascending.
/// * Result: `f32` of attribute `shape`.
pub(crate) fn from_sparse(call: &Call<'_>) -> OpResult {
    let (values, positions) = (call.slice::<f32>(0)?, call.slice::<i64>(1)?);
    let shape: Option<Vec<usize>> = call
        .ints("shape")
        .unwrap_or_default()
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect();
    let shape =
        shape.ok_or_else(|| call.attribute_error("shape", "a size is negative".to_owned()))?;
    let n = call.size(&shape, DType::F32)?;
    let ascends = positions.windows(2).all(|p| p[0] < p[1]);
    let inside = |p: &i64| usize::try_from(*p).is_ok_and(|p| p < n);
    if !ascends || !positions.first().is_none_or(inside) || !positions.last().is_none_or(inside) {
        return Err(call.value_error(1, "positions do not ascend inside the shape"));
    }
    if values.len() != positions.len() {
        let message = format!("{} values at {} positions", values.len(), positions.len());
        return Err(call.shape_error(message));
    }
    let mut out = vec![0.0f32; n];
    for (&p, &v) in positions.iter().zip(values) {
        out[p as usize] = v;
    }
    call.tensor(&shape, out)
}
