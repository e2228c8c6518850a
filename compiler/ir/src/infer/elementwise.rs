//! Operators that act on each element: functions, arithmetic, comparison, logic, selection, conversion.

use lancet_ops::elementwise::Body;
use lancet_ops::{Attribute, DType, Operator};

use super::call::{Call, Class, Many, One};
use super::elements::{self, is_true, truth, value, zip_broadcast};
use crate::Dim;

/// A function of each element, of the operand's type.
pub(super) fn unary(call: &Call<'_>, class: Option<Class>, f: impl Fn(&Dim) -> Option<Dim>) -> One {
    if let Some(class) = class {
        call.expect(0, class)?;
    }
    let x = call.operand(0)?;
    let elements = call
        .known(0)
        .and_then(|k| k.elements.iter().map(f).collect());
    Ok(value(x.ty.dtype, x.ty.shape.clone(), elements))
}

/// A function of each element that is not followed through shape computations.
pub(super) fn opaque(call: &Call<'_>, class: Class) -> One {
    unary(call, Some(class), |_| None)
}

/// A question about each float element.
pub(super) fn float_predicate(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    Ok(value(DType::Bool, call.shape(0)?.to_vec(), None))
}

/// The greater of an element and zero.
pub(super) fn relu(d: &Dim) -> Option<Dim> {
    elements::max(d, &Dim::fixed(0))
}

/// The magnitude of an element.
pub(super) fn abs(d: &Dim) -> Option<Dim> {
    if d.is_non_negative() {
        return Some(d.clone());
    }
    d.scale(-1).filter(Dim::is_non_negative)
}

/// The sign of an element.
pub(super) fn sign(d: &Dim) -> Option<Dim> {
    if d.is_positive() {
        return Some(Dim::fixed(1));
    }
    d.as_fixed().map(|v| Dim::fixed(v.signum()))
}

/// The negation of a truth value.
pub(super) fn not(d: &Dim) -> Option<Dim> {
    is_true(d).map(|v| truth(!v))
}

/// Two operands of one type that broadcast, with a result of that type.
pub(super) fn binary(
    call: &mut Call<'_>,
    class: Class,
    f: impl Fn(&Dim, &Dim) -> Option<Dim>,
) -> One {
    call.expect(0, class)?;
    let dtype = call.same_dtype([0, 1])?;
    zip(call, dtype, f)
}

/// Two operands of one type that broadcast, with a truth value as result.
pub(super) fn compare(
    call: &mut Call<'_>,
    class: Option<Class>,
    f: impl Fn(&Dim, &Dim) -> Option<bool>,
) -> One {
    if let Some(class) = class {
        call.expect(0, class)?;
    }
    call.same_dtype([0, 1])?;
    zip(call, DType::Bool, |a, b| f(a, b).map(truth))
}

fn zip(call: &mut Call<'_>, dtype: DType, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> One {
    let (a, b) = (call.shape(0)?, call.shape(1)?);
    let shape = call.broadcast(&[a, b])?;
    let known = [call.known(0), call.known(1)];
    let elements = zip_broadcast(&shape, &known, |e| f(e[0]?, e[1]?));
    Ok(value(dtype, shape, elements))
}

/// `Pow`: the exponent may be of another type; the result is of the base's.
pub(super) fn pow(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    call.expect(1, Class::Number)?;
    let dtype = call.dtype(0)?;
    let power = |a: &Dim, b: &Dim| {
        let (a, b) = (a.as_fixed()?, u32::try_from(b.as_fixed()?).ok()?);
        a.checked_pow(b).map(Dim::fixed)
    };
    zip(call, dtype, power)
}

/// `Mod`: floats only with the sign of the dividend.
pub(super) fn modulo(call: &mut Call<'_>) -> One {
    let fmod = call.flag("fmod");
    call.expect(0, if fmod { Class::Number } else { Class::Integer })?;
    let f = if fmod {
        elements::remainder
    } else {
        elements::modulo
    };
    binary(call, Class::Number, f)
}

/// `BitShift`.
pub(super) fn bit_shift(call: &mut Call<'_>) -> One {
    if !matches!(call.str("direction"), "LEFT" | "RIGHT") {
        let message = format!("expected LEFT or RIGHT, found `{}`", call.str("direction"));
        return Err(call.attribute_error("direction", message));
    }
    binary(call, Class::Unsigned, |_, _| None)
}

/// `And`, `Or` or `Xor`.
pub(super) fn logic(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Bool)?;
    call.same_dtype([0, 1])?;
    let (a, b) = (call.shape(0)?, call.shape(1)?);
    let shape = call.broadcast(&[a, b])?;
    let (known, op) = ([call.known(0), call.known(1)], call.op);
    let elements = zip_broadcast(&shape, &known, |e| {
        let [a, b] = [e[0].and_then(is_true), e[1].and_then(is_true)];
        // One side decides some cases, whatever the other is.
        let decided = match (op, a, b) {
            (Operator::And, Some(false), _) | (Operator::And, _, Some(false)) => Some(false),
            (Operator::Or, Some(true), _) | (Operator::Or, _, Some(true)) => Some(true),
            (Operator::And, Some(a), Some(b)) => Some(a && b),
            (Operator::Or, Some(a), Some(b)) => Some(a || b),
            (_, Some(a), Some(b)) => Some(a != b),
            _ => None,
        };
        decided.map(truth)
    });
    Ok(value(DType::Bool, shape, elements))
}

/// Any number of operands of one type that broadcast.
pub(super) fn variadic(
    call: &mut Call<'_>,
    class: Class,
    f: impl Fn(&Dim, &Dim) -> Option<Dim>,
) -> One {
    let n = call.n_operands();
    call.expect(0, class)?;
    let dtype = call.same_dtype(0..n)?;
    let shapes = (0..n)
        .map(|i| call.shape(i))
        .collect::<Result<Vec<_>, _>>()?;
    let shape = call.broadcast(&shapes)?;
    let known: Vec<_> = (0..n).map(|i| call.known(i)).collect();
    let elements = zip_broadcast(&shape, &known, |e| {
        let (first, rest) = e.split_first()?;
        rest.iter().try_fold((*first)?.clone(), |a, b| f(&a, (*b)?))
    });
    Ok(value(dtype, shape, elements))
}

/// `Where`: an element is known where the condition decides for a known one, or both are equal.
pub(super) fn select(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Bool)?;
    let dtype = call.same_dtype([1, 2])?;
    let (c, x, y) = (call.shape(0)?, call.shape(1)?, call.shape(2)?);
    let shape = call.broadcast(&[c, x, y])?;
    let known = [call.known(0), call.known(1), call.known(2)];
    let elements = zip_broadcast(&shape, &known, |e| match e[0].and_then(is_true) {
        Some(true) => e[1].cloned(),
        Some(false) => e[2].cloned(),
        None => e[1].filter(|_| e[1] == e[2]).cloned(),
    });
    Ok(value(dtype, shape, elements))
}

/// `Clip`: the bounds have one element.
pub(super) fn clip(call: &Call<'_>) -> One {
    call.same_dtype([0, 1, 2])?;
    call.expect_scalar(1)?;
    call.expect_scalar(2)?;
    let bound = |i| match call.optional(i) {
        None => Some(None),
        Some(_) => call
            .known(i)
            .and_then(|k| k.elements.first().cloned())
            .map(Some),
    };
    let bounds = bound(1).zip(bound(2));
    unary(call, Some(Class::Number), |d| {
        let (least, most) = bounds.as_ref()?;
        let d = match least {
            Some(least) => elements::max(d, least)?,
            None => d.clone(),
        };
        match most {
            Some(most) => elements::min(&d, most),
            None => Some(d),
        }
    })
}

/// `PRelu`: the slope broadcasts to the operand.
pub(super) fn prelu(call: &Call<'_>) -> One {
    call.same_dtype([0, 1])?;
    call.expect_broadcasts_to(1, call.shape(0)?)?;
    opaque(call, Class::Number)
}

/// `Dropout` at inference: the operand, and a mask of all ones.
pub(super) fn dropout(call: &Call<'_>) -> Many {
    call.expect_scalar(1)?;
    call.expect_scalar(2)?;
    call.expect(2, Class::Bool)?;
    let y = unary(call, Some(Class::Float), |_| None)?;
    let mask = value(DType::Bool, y.ty.shape.clone(), None);
    Ok(vec![y, mask])
}

/// `Cast` or `CastLike`: integers and truth values keep their elements.
pub(super) fn cast(call: &Call<'_>, to: DType) -> One {
    let x = call.operand(0)?;
    let known = call.known(0);
    let elements = known.and_then(|k| {
        let convert = |d: &Dim| match to {
            DType::Bool => is_true(d).map(truth),
            _ => Some(d.clone()),
        };
        k.elements.iter().map(convert).collect()
    });
    Ok(value(to, x.ty.shape.clone(), elements))
}

/// `Elementwise`: the type that the last line of `body` gives, in the shape to which the operands broadcast.
pub(super) fn body(call: &mut Call<'_>) -> One {
    let lines = match call.attribute("body") {
        Some(Attribute::Strs(lines)) => lines.as_slice(),
        _ => &[],
    };
    let n = call.n_operands();
    let operands: Vec<_> = (0..n).map(|i| call.operand(i)).collect::<Result<_, _>>()?;
    let dtypes: Vec<DType> = operands.iter().map(|v| v.ty.dtype).collect();
    let shapes: Vec<&[Dim]> = operands.iter().map(|v| v.ty.shape.as_slice()).collect();
    let types = Body::parse(lines)
        .and_then(|body| body.types(&dtypes))
        .map_err(|m| call.attribute_error("body", m))?;
    let shape = call.broadcast(&shapes)?;
    let dtype = types.last().map_or(DType::F32, |t| t.1);
    Ok(value(dtype, shape, None))
}
