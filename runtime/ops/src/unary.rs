//! Elementwise operators of one operand.
//!
//! Functions of real numbers are computed in double precision and rounded once to the element type.

use crate::call::{Call, OpResult};
use crate::cast::with_data;
use crate::number::{Float, Integer, Number, for_float, for_integer, for_number};
use crate::special::{gelu, gelu_tanh, sigmoid, softplus};
use crate::{DataView, Element, Operator, Tensor, TensorView};

/// Applies a function of real numbers to each element of a floating-point tensor.
pub(crate) fn map_real(call: &Call<'_>, f: impl Fn(f64) -> f64) -> OpResult {
    let x = call.operand(0)?;
    map_view(call, x, f)
}

/// Applies a function of real numbers to each element of `x`, a floating-point tensor.
pub(crate) fn map_view(call: &Call<'_>, x: TensorView<'_>, f: impl Fn(f64) -> f64) -> OpResult {
    fn apply<T: Float>(v: &[T], f: impl Fn(f64) -> f64) -> Vec<T> {
        v.iter().map(|&x| T::from_f64(f(x.to_f64()))).collect()
    }
    let data = match x.data() {
        DataView::F32(v) => f32::into_data(apply(v, f)),
        DataView::F64(v) => f64::into_data(apply(v, f)),
        DataView::F16(v) => half::f16::into_data(apply(v, f)),
        DataView::BF16(v) => half::bf16::into_data(apply(v, f)),
        other => return Err(call.dtype_error(0, other.dtype())),
    };
    with_data(call, x, data)
}

/// The operators that are a function of real numbers without parameters.
pub(crate) fn real(call: &Call<'_>) -> OpResult {
    let f: fn(f64) -> f64 = match call.op {
        Operator::Acos => f64::acos,
        Operator::Acosh => f64::acosh,
        Operator::Asin => f64::asin,
        Operator::Asinh => f64::asinh,
        Operator::Atan => f64::atan,
        Operator::Atanh => f64::atanh,
        Operator::Ceil => f64::ceil,
        Operator::Cos => f64::cos,
        Operator::Cosh => f64::cosh,
        Operator::Erf => crate::special::erf,
        Operator::Exp => f64::exp,
        Operator::Floor => f64::floor,
        Operator::Log => f64::ln,
        Operator::Reciprocal => f64::recip,
        Operator::Round => f64::round_ties_even,
        Operator::Sigmoid => sigmoid,
        Operator::Sin => f64::sin,
        Operator::Sinh => f64::sinh,
        Operator::Softplus => softplus,
        Operator::Softsign => |x| x / (1.0 + x.abs()),
        Operator::Sqrt => f64::sqrt,
        Operator::Tan => f64::tan,
        Operator::Tanh => f64::tanh,
        Operator::HardSwish => |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Operator::Mish => |x| x * softplus(x).tanh(),
        Operator::MsGelu => gelu,
        other => return Err(Call::not_dispatched(other)),
    };
    map_real(call, f)
}

/// The operators that are a function of real numbers with attributes.
pub(crate) fn parametric(call: &Call<'_>) -> OpResult {
    let float = |name: &str| f64::from(call.float(name));
    match call.op {
        Operator::LeakyRelu => {
            let alpha = float("alpha");
            map_real(call, |x| if x < 0.0 { alpha * x } else { x })
        }
        Operator::Elu => {
            let alpha = float("alpha");
            map_real(call, |x| if x < 0.0 { alpha * x.exp_m1() } else { x })
        }
        Operator::Celu => {
            let alpha = float("alpha");
            map_real(call, |x| {
                if x < 0.0 {
                    alpha * (x / alpha).exp_m1()
                } else {
                    x
                }
            })
        }
        Operator::ThresholdedRelu => {
            let alpha = float("alpha");
            map_real(call, |x| if x <= alpha { 0.0 } else { x })
        }
        Operator::Swish | Operator::MsQuickGelu => {
            let alpha = float("alpha");
            map_real(call, |x| x * sigmoid(alpha * x))
        }
        Operator::Selu => {
            let (alpha, gamma) = (float("alpha"), float("gamma"));
            map_real(call, |x| {
                gamma * if x <= 0.0 { alpha * x.exp_m1() } else { x }
            })
        }
        Operator::HardSigmoid => {
            let (alpha, beta) = (float("alpha"), float("beta"));
            map_real(call, |x| (alpha * x + beta).clamp(0.0, 1.0))
        }
        Operator::Gelu => match call.str("approximate") {
            "none" => map_real(call, gelu),
            "tanh" => map_real(call, gelu_tanh),
            other => Err(call.attribute_error("approximate", format!("unknown value `{other}`"))),
        },
        other => Err(Call::not_dispatched(other)),
    }
}

/// `Abs`, `Neg`, `Sign` and `Relu`, on every type with arithmetic.
pub(crate) fn arithmetic(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let f: fn(T) -> T = match call.op {
            Operator::Abs => T::abs,
            Operator::Neg => T::neg,
            Operator::Sign => T::sign,
            Operator::Relu => |v| if v < T::ZERO { T::ZERO } else { v },
            other => return Err(Call::not_dispatched(other)),
        };
        let v = call.slice::<T>(0)?;
        call.tensor(call.operand(0)?.shape(), v.iter().map(|&x| f(x)).collect())
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `Identity`.
pub(crate) fn identity(call: &Call<'_>) -> OpResult {
    Ok(call.operand(0)?.to_tensor())
}

/// `Not`, of booleans.
pub(crate) fn not(call: &Call<'_>) -> OpResult {
    let v = call.slice::<bool>(0)?;
    call.tensor(call.operand(0)?.shape(), v.iter().map(|&x| !x).collect())
}

/// `BitwiseNot`, of integers.
pub(crate) fn bitwise_not(call: &Call<'_>) -> OpResult {
    fn apply<T: Integer>(call: &Call<'_>) -> OpResult {
        let v = call.slice::<T>(0)?;
        call.tensor(
            call.operand(0)?.shape(),
            v.iter().map(|&x| x.not()).collect(),
        )
    }
    let x = call.operand(0)?;
    for_integer!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `IsNaN`.
pub(crate) fn is_nan(call: &Call<'_>) -> OpResult {
    map_predicate(call, f64::is_nan)
}

/// `IsInf`.
pub(crate) fn is_inf(call: &Call<'_>) -> OpResult {
    let (negative, positive) = (call.flag("detect_negative"), call.flag("detect_positive"));
    map_predicate(call, |v| {
        (positive && v == f64::INFINITY) || (negative && v == f64::NEG_INFINITY)
    })
}

fn map_predicate(call: &Call<'_>, f: impl Fn(f64) -> bool) -> OpResult {
    fn apply<T: Float>(call: &Call<'_>, f: impl Fn(f64) -> bool) -> OpResult {
        let v = call.slice::<T>(0)?;
        call.tensor(
            call.operand(0)?.shape(),
            v.iter().map(|&x| f(x.to_f64())).collect(),
        )
    }
    let x = call.operand(0)?;
    for_float!(x.dtype(), T => apply::<T>(call, f), else Err(call.dtype_error(0, x.dtype())))
}

/// `Clip`: not less than the second operand, then not greater than the third. NaN stays.
pub(crate) fn clip(call: &Call<'_>) -> OpResult {
    fn bound<T: Number>(call: &Call<'_>, index: usize) -> Result<Option<T>, crate::OpError> {
        if call.optional(index).is_none() {
            return Ok(None);
        }
        match *call.slice::<T>(index)? {
            [v] => Ok(Some(v)),
            ref other => Err(call.value_error(
                index,
                format!("expected one element, found {}", other.len()),
            )),
        }
    }
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let low = bound::<T>(call, 1)?.unwrap_or(T::LOWEST);
        let high = bound::<T>(call, 2)?.unwrap_or(T::HIGHEST);
        let clip = |x: T| {
            let x = if x < low { low } else { x };
            if x > high { high } else { x }
        };
        let v = call.slice::<T>(0)?;
        call.tensor(
            call.operand(0)?.shape(),
            v.iter().map(|&x| clip(x)).collect(),
        )
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `Dropout` in inference: the data, and a mask that keeps all of it. Training mode is an error, as it is random.
pub(crate) fn dropout(call: &Call<'_>) -> Result<Vec<Tensor>, crate::OpError> {
    let x = call.operand(0)?;
    let is_training = call.optional(2).is_some() && call.slice::<bool>(2)?.contains(&true);
    let ratio = call
        .optional(1)
        .map_or(0.5, |r| r.to_f64_vec().first().copied().unwrap_or(0.5));
    if is_training && ratio != 0.0 {
        return Err(call.value_error(2, "training mode is not supported"));
    }
    let mask = call.tensor(x.shape(), vec![true; x.len()])?;
    Ok(vec![x.to_tensor(), mask])
}
