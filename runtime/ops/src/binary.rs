//! Elementwise operators of two or more operands that broadcast: arithmetic, comparison, logic, bits, selection.

use std::borrow::Cow;

use crate::call::{Call, OpResult};
use crate::layout::{broadcast_shapes, expand, expanded, expect_broadcasts_to, zip_broadcast};
use crate::number::{Float, Integer, Number, for_float, for_integer, for_number};
use crate::{DType, Element, OpError, Operator, TensorView};

/// Operands 0 and 1, of one type, at the shape to which they broadcast.
struct Pair<'a, T: Clone> {
    a: Cow<'a, [T]>,
    b: Cow<'a, [T]>,
    shape: Vec<usize>,
}

impl<'a, T: Element> Pair<'a, T> {
    fn new(call: &Call<'a>, result: DType) -> Result<Pair<'a, T>, OpError> {
        let (a, b) = (call.slice::<T>(0)?, call.slice::<T>(1)?);
        let (x, y) = (call.operand(0)?, call.operand(1)?);
        let shape = broadcast_shapes(call, &[x.shape(), y.shape()])?;
        call.size(&shape, T::DTYPE)?;
        call.size(&shape, result)?;
        Ok(Pair {
            a: expanded(a, x.shape(), &shape),
            b: expanded(b, y.shape(), &shape),
            shape,
        })
    }
}

/// Applies `f` to corresponding elements of operands 0 and 1, both of type `T`.
fn zip<T: Element, R: Element>(call: &Call<'_>, f: impl Fn(T, T) -> R) -> OpResult {
    let pair = Pair::<T>::new(call, R::DTYPE)?;
    let data = pair
        .a
        .iter()
        .zip(pair.b.iter())
        .map(|(&a, &b)| f(a, b))
        .collect();
    call.tensor(&pair.shape, data)
}

/// `Add`, `Sub`, `Mul`, `Div` and `Mod`. Integers wrap; division of integers is toward zero, and by zero an error.
pub(crate) fn arithmetic(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let excludes_zero =
            matches!(call.op, Operator::Div | Operator::Mod) && T::DTYPE.is_integer();
        if excludes_zero && call.slice::<T>(1)?.contains(&T::ZERO) {
            return Err(call.value_error(1, "integer division by zero"));
        }
        match call.op {
            Operator::Add => zip(call, T::add),
            Operator::Sub => zip(call, T::sub),
            Operator::Mul => zip(call, T::mul),
            Operator::Div => zip(call, T::div),
            Operator::Mod if call.flag("fmod") => zip(call, T::rem_trunc),
            Operator::Mod => zip(call, T::rem_floor),
            other => Err(Call::not_dispatched(other)),
        }
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `Pow`: the result has the type of the base. An integer to a negative power is its real power, truncated.
pub(crate) fn pow(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>, a: TensorView<'_>, b: TensorView<'_>) -> OpResult {
        let base = call.slice::<T>(0)?;
        let shape = broadcast_shapes(call, &[a.shape(), b.shape()])?;
        call.size(&shape, T::DTYPE)?;
        let (x, y) = (a.shape(), b.shape());
        let real = |v: T, e: f64| T::from_f64(v.to_f64().powf(e));
        let data = if T::DTYPE.is_integer() && b.dtype().is_integer() {
            let power = |v: T, e: i64| match u64::try_from(e) {
                Ok(e) => v.pow_int(e),
                Err(_) => real(v, e as f64),
            };
            zip_broadcast((base, x), (&b.to_i64_vec(), y), &shape, power)
        } else {
            zip_broadcast((base, x), (&b.to_f64_vec(), y), &shape, real)
        };
        call.tensor(&shape, data)
    }
    let (a, b) = (call.operand(0)?, call.operand(1)?);
    if b.dtype() == DType::Bool {
        return Err(call.dtype_error(1, b.dtype()));
    }
    for_number!(a.dtype(), T => apply::<T>(call, a, b), else Err(call.dtype_error(0, a.dtype())))
}

/// `PRelu`: the slope broadcasts to the data, not the other way.
pub(crate) fn prelu(call: &Call<'_>) -> OpResult {
    let (x, slope) = (call.operand(0)?, call.operand(1)?);
    expect_broadcasts_to(call, slope.shape(), x.shape())?;
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        zip(call, |v: T, s: T| if v < T::ZERO { v.mul(s) } else { v })
    }
    for_number!(
        x.dtype(),
        T => apply::<T>(call),
        else Err(call.dtype_error(0, x.dtype()))
    )
}

/// `Equal`, of every type.
pub(crate) fn equal(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, _: &[T]) -> OpResult {
        zip(call, |a: T, b: T| a == b)
    }
    with_elements!(call.operand(0)?.data(), v => apply(call, v))
}

/// `Less`, `LessOrEqual`, `Greater` and `GreaterOrEqual`; false if either is NaN.
pub(crate) fn order(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        match call.op {
            Operator::Less => zip(call, |a: T, b: T| a < b),
            Operator::LessOrEqual => zip(call, |a: T, b: T| a <= b),
            Operator::Greater => zip(call, |a: T, b: T| a > b),
            Operator::GreaterOrEqual => zip(call, |a: T, b: T| a >= b),
            other => Err(Call::not_dispatched(other)),
        }
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `AtLeast` and `AtMost`: the first operand where it is greater (less) than the second, otherwise the second, which NaN
/// so becomes.
pub(crate) fn bound(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        match call.op {
            Operator::AtLeast => zip(call, |a: T, b: T| if a > b { a } else { b }),
            Operator::AtMost => zip(call, |a: T, b: T| if a < b { a } else { b }),
            other => Err(Call::not_dispatched(other)),
        }
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `And`, `Or` and `Xor`, of booleans.
pub(crate) fn logic(call: &Call<'_>) -> OpResult {
    match call.op {
        Operator::And => zip(call, |a: bool, b: bool| a & b),
        Operator::Or => zip(call, |a: bool, b: bool| a | b),
        Operator::Xor => zip(call, |a: bool, b: bool| a ^ b),
        other => Err(Call::not_dispatched(other)),
    }
}

/// `BitwiseAnd`, `BitwiseOr`, `BitwiseXor` and `BitShift`, of integers.
pub(crate) fn bits(call: &Call<'_>) -> OpResult {
    fn apply<T: Integer>(call: &Call<'_>) -> OpResult {
        // A negative amount is out of range, as one beyond the width is.
        let amount = |v: T| {
            if v < T::ZERO {
                u32::MAX
            } else {
                v.to_f64() as u32
            }
        };
        match call.op {
            Operator::BitwiseAnd => zip(call, T::and),
            Operator::BitwiseOr => zip(call, T::or),
            Operator::BitwiseXor => zip(call, T::xor),
            Operator::BitShift => match call.str("direction") {
                "LEFT" => zip(call, |a: T, b: T| a.shift_left(amount(b))),
                "RIGHT" => zip(call, |a: T, b: T| a.shift_right(amount(b))),
                other => Err(call.attribute_error("direction", format!("unknown value `{other}`"))),
            },
            other => Err(Call::not_dispatched(other)),
        }
    }
    let x = call.operand(0)?;
    for_integer!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `Min`, `Max`, `Sum` and `Mean` of any number of operands. `Min` and `Max` are NaN where any operand is.
pub(crate) fn variadic(call: &Call<'_>) -> OpResult {
    fn fold<T: Number>(call: &Call<'_>, f: fn(T, T) -> T) -> OpResult {
        let views = call.all_operands()?;
        let shapes: Vec<&[usize]> = views.iter().map(TensorView::shape).collect();
        let shape = broadcast_shapes(call, &shapes)?;
        call.size(&shape, T::DTYPE)?;
        let mut result = expand(call.slice::<T>(0)?, shapes[0], &shape);
        for (i, s) in shapes.iter().enumerate().skip(1) {
            result = zip_broadcast((&result, &shape), (call.slice::<T>(i)?, s), &shape, f);
        }
        call.tensor(&shape, result)
    }
    fn mean<T: Float>(call: &Call<'_>) -> OpResult {
        let views = call.all_operands()?;
        let shapes: Vec<&[usize]> = views.iter().map(TensorView::shape).collect();
        let shape = broadcast_shapes(call, &shapes)?;
        call.size(&shape, DType::F64)?;
        let mut sum = vec![0.0f64; crate::layout::product(&shape)];
        for (i, s) in shapes.iter().enumerate() {
            sum = zip_broadcast((&sum, &shape), (call.slice::<T>(i)?, s), &shape, |a, b| {
                a + b.to_f64()
            });
        }
        let n = shapes.len() as f64;
        call.tensor(
            &shape,
            sum.into_iter().map(|v| T::from_f64(v / n)).collect(),
        )
    }
    let x = call.operand(0)?;
    let unsupported = || Err(call.dtype_error(0, x.dtype()));
    match call.op {
        Operator::Min => for_number!(x.dtype(), T => fold(call, T::least), else unsupported()),
        Operator::Max => for_number!(x.dtype(), T => fold(call, T::greatest), else unsupported()),
        Operator::Sum => for_number!(x.dtype(), T => fold(call, T::add), else unsupported()),
        Operator::Mean => for_float!(x.dtype(), T => mean::<T>(call), else unsupported()),
        other => Err(Call::not_dispatched(other)),
    }
}

/// `Where`: elements of the second operand where the first is true, else of the third.
pub(crate) fn select(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, x: &[T]) -> OpResult {
        let condition = call.slice::<bool>(0)?;
        let y = call.slice::<T>(2)?;
        let shapes = [0, 1, 2].map(|i| call.optional(i).map_or(&[][..], |v| v.shape()));
        let shape = broadcast_shapes(call, &shapes)?;
        call.size(&shape, T::DTYPE)?;
        let chosen = zip_broadcast((condition, shapes[0]), (x, shapes[1]), &shape, |c, v| {
            c.then_some(v)
        });
        let data = zip_broadcast(
            (&chosen, &shape),
            (y, shapes[2]),
            &shape,
            |c: Option<T>, v| c.unwrap_or(v),
        );
        call.tensor(&shape, data)
    }
    with_elements!(call.operand(1)?.data(), v => apply(call, v))
}
