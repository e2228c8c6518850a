//! Operators that make tensors from sizes: `Range`, `ConstantOfShape`.

use crate::call::{Call, OpResult};
use crate::number::{Number, Wide, for_number};
use crate::shape::sizes;
use crate::{OpError, Tensor};

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
