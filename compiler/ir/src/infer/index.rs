//! Operators that read or write at computed places, or make tensors from sizes.

use lancet_ops::{Attribute, DType};

use super::broadcast::list;
use super::call::{Call, Class, MAX_RANK, Many, One};
use super::elements::{self, value};
use crate::{Dim, IrError};

/// `Gather`.
pub(super) fn gather(call: &Call<'_>) -> One {
    let (x, indices) = (call.operand(0)?, call.operand(1)?);
    call.expect(1, Class::Index)?;
    let axis = call.axis("axis", x.ty.rank())?;
    let (outer, inner) = (&x.ty.shape[..axis], &x.ty.shape[axis + 1..]);
    let shape = [outer, &indices.ty.shape, inner].concat();
    let known = call.known(0).zip(call.fixed_elements(1));
    let elements = known.and_then(|(k, picked)| {
        let (n_indices, size) = (indices.ty.rank(), k.shape[axis] as i64);
        let sizes = indices.ty.fixed_shape()?;
        k.pick(&shape, |to, from| {
            let at = &to[axis..axis + n_indices];
            let linear = at.iter().zip(&sizes).fold(0, |a, (i, d)| a * d + i);
            let i = picked[linear];
            let i = if i < 0 { i.saturating_add(size) } else { i };
            from[..axis].copy_from_slice(&to[..axis]);
            from[axis] = usize::try_from(i).unwrap_or(usize::MAX);
            from[axis + 1..].copy_from_slice(&to[axis + n_indices..]);
        })
    });
    Ok(value(x.ty.dtype, shape, elements))
}

/// `GatherElements`: the shape of the indices.
pub(super) fn gather_elements(call: &Call<'_>) -> One {
    let (x, indices) = (call.operand(0)?, call.operand(1)?);
    call.expect(1, Class::Index)?;
    call.axis("axis", x.ty.rank())?;
    if indices.ty.rank() != x.ty.rank() {
        return Err(call.operand_error(1, format!("{} dimensions", x.ty.rank())));
    }
    Ok(value(x.ty.dtype, indices.ty.shape.clone(), None))
}

/// Length of the index tuples of `GatherND` and `ScatterND`.
fn tuple_length(call: &Call<'_>, most: usize) -> Result<usize, IrError> {
    call.expect_dtype(1, DType::I64)?;
    let error = || call.operand_error(1, format!("tuples of a fixed length of at most {most}"));
    let last = call.shape(1)?.last().ok_or_else(error)?;
    last.as_fixed()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| 0 < n && n <= most)
        .ok_or_else(error)
}

/// `GatherND`.
pub(super) fn gather_nd(call: &Call<'_>) -> One {
    let (x, indices) = (call.operand(0)?, call.shape(1)?);
    let rank = x.ty.rank();
    let batch = usize::try_from(call.int("batch_dims"))
        .ok()
        .filter(|&b| b < rank && b < indices.len())
        .ok_or_else(|| {
            let message = format!("{} does not fit the operands", call.int("batch_dims"));
            call.attribute_error("batch_dims", message)
        })?;
    let n = tuple_length(call, rank - batch)?;
    let differ = |(a, b): (&Dim, &Dim)| a.equals(b) == Some(false);
    if x.ty.shape[..batch].iter().zip(indices).any(differ) {
        return Err(call.operand_error(1, format!("batch sizes {}", list(&x.ty.shape[..batch]))));
    }
    let shape = [&indices[..indices.len() - 1], &x.ty.shape[batch + n..]].concat();
    Ok(value(x.ty.dtype, shape, None))
}

/// Checks the reduction of a scatter.
fn check_reduction(call: &Call<'_>) -> Result<(), IrError> {
    match call.str("reduction") {
        "none" | "add" | "mul" | "min" | "max" => Ok(()),
        other => Err(call.attribute_error(
            "reduction",
            format!("`{other}` is none of add, mul, min, max"),
        )),
    }
}

/// `ScatterElements`: the shape of the data.
pub(super) fn scatter_elements(call: &Call<'_>) -> One {
    let (x, indices) = (call.operand(0)?, call.operand(1)?);
    check_reduction(call)?;
    call.expect(1, Class::Index)?;
    call.same_dtype([0, 2])?;
    call.axis("axis", x.ty.rank())?;
    if indices.ty.rank() != x.ty.rank() {
        return Err(call.operand_error(1, format!("{} dimensions", x.ty.rank())));
    }
    call.expect_shape(2, &indices.ty.shape)?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// `ScatterND`: the shape of the data.
pub(super) fn scatter_nd(call: &Call<'_>) -> One {
    let (x, indices) = (call.operand(0)?, call.shape(1)?);
    check_reduction(call)?;
    call.same_dtype([0, 2])?;
    let n = tuple_length(call, x.ty.rank())?;
    let updates = [&indices[..indices.len() - 1], &x.ty.shape[n..]].concat();
    call.expect_shape(2, &updates)?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// A slice bound clamped to `0..=size`, where that is an expression of the sizes.
///
/// A bound that stands for a size (`0..seq` of 512 places) is taken not to exceed a fixed dimension, and a symbolic
/// dimension to have at least one place; the runtime reports a run where that is false.
fn bound(size: &Dim, bound: &Dim) -> Option<Dim> {
    let zero = Dim::fixed(0);
    let from_start = match bound.as_fixed() {
        Some(b) if b < 0 => match size.as_fixed() {
            Some(n) => return Some(Dim::fixed(n.saturating_add(b).max(0))),
            None if b <= -i64::from(i32::MAX) => return Some(zero),
            None => return size.add(bound).filter(|d| b == -1 || d.is_non_negative()),
        },
        Some(b) => match size.as_fixed() {
            Some(n) => return Some(Dim::fixed(b.min(n))),
            None if i64::from(i32::MAX) <= b => return Some(size.clone()),
            None if b <= 1 => return Some(bound.clone()),
            None => bound.clone(),
        },
        // Every term is negative, hence so is a bound that is not zero: it counts from the end.
        None if bound.scale(-1)?.is_non_negative() => {
            return size
                .add(bound)
                .filter(|d| size.as_fixed().is_some() || d.is_non_negative());
        }
        None => bound.clone(),
    };
    let fits = |d: Dim| d.is_non_negative_from_one();
    if size.sub(&from_start).is_some_and(fits) {
        Some(from_start)
    } else if elements::less_or_equal(size, &from_start) == Some(true) {
        Some(size.clone())
    } else {
        size.as_fixed().map(|_| from_start)
    }
}

/// Start and length of a slice of one dimension; `None` for what is no expression of the sizes.
fn slice_dim(size: &Dim, start: &Dim, end: &Dim, step: i64) -> (Option<Dim>, Option<Dim>) {
    if let (Some(n), Some(s), Some(e)) = (size.as_fixed(), start.as_fixed(), end.as_fixed()) {
        let from_start = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
        let (least, most) = if 0 < step { (0, n) } else { (-1, n - 1) };
        let s = from_start(s).clamp(least.max(0), most.max(0));
        let e = from_start(e).clamp(least, most.max(least));
        let span = if 0 < step {
            i128::from(e) - i128::from(s)
        } else {
            i128::from(s) - i128::from(e)
        };
        let step = i128::from(step).abs();
        let length = (span.max(0) + step - 1) / step;
        let length = if n == 0 { 0 } else { length };
        return (
            Some(Dim::fixed(s)),
            i64::try_from(length).ok().map(Dim::fixed),
        );
    }
    if step < 0 {
        // A whole dimension backwards is the only such slice that exporters make of symbolic sizes.
        let whole = step == -1
            && (start.as_fixed() == Some(-1) || start.as_fixed() >= Some(i32::MAX.into()))
            && end.as_fixed().is_some_and(|e| e <= -i64::from(i32::MAX));
        return (None, whole.then(|| size.clone()));
    }
    let (start, end) = (bound(size, start), bound(size, end));
    let length = start.as_ref().zip(end).and_then(|(start, end)| {
        let span = end.sub(start)?;
        if span.scale(-1)?.is_non_negative() {
            return Some(Dim::fixed(0));
        }
        let at_least_zero =
            span.add(&Dim::fixed(1))?.is_non_negative() || size.as_fixed().is_some();
        let span = Some(span).filter(|_| at_least_zero)?;
        match (step, span.as_fixed()) {
            (1, _) => Some(span),
            (_, Some(n)) => Some(Dim::fixed(
                n.max(0) / step + i64::from(n.max(0) % step != 0),
            )),
            (_, None) => span.div_exact(&Dim::fixed(step)),
        }
    });
    (start, length)
}

/// `Slice`: sizes that depend on unknown bounds are fresh.
pub(super) fn slice(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let rank = x.ty.rank();
    for i in 1..5 {
        call.expect(i, Class::Index)?;
        if let Some(v) = call.optional(i)
            && v.ty.rank() != 1
        {
            return Err(call.operand_error(i, "1 dimension".to_owned()));
        }
    }
    let n = call.shape(1)?[0]
        .as_fixed()
        .and_then(|n| usize::try_from(n).ok());
    let axes = match (call.optional(3), call.fixed_elements(3), n) {
        (Some(_), Some(axes), _) => Some(call.normalize_axes(&axes, rank)?),
        (None, _, Some(n)) if n <= rank => Some((0..n).collect()),
        (None, _, Some(_)) => return Err(call.operand_error(1, format!("at most {rank} starts"))),
        (_, _, None) | (Some(_), None, _) => None,
    };
    let Some(axes) = axes else {
        let shape = call.fresh_dims(rank);
        return Ok(value(x.ty.dtype, shape, None));
    };
    let count = [Dim::from(axes.len())];
    (1..5).try_for_each(|i| call.expect_shape(i, &count))?;
    let steps = match call.optional(4) {
        Some(_) => call.fixed_elements(4),
        None => Some(vec![1; axes.len()]),
    };
    if steps.as_ref().is_some_and(|s| s.contains(&0)) {
        return Err(call.error("a step is 0".to_owned()));
    }
    let (starts, ends) = (call.known(1), call.known(2));
    let mut shape = x.ty.shape.clone();
    let mut moves = Some(vec![(0i64, 1i64); rank]);
    for (i, &axis) in axes.iter().enumerate() {
        let size = &x.ty.shape[axis];
        let (start, length) = match (&starts, &ends, &steps) {
            (Some(s), Some(e), Some(steps)) => {
                slice_dim(size, &s.elements[i], &e.elements[i], steps[i])
            }
            _ => (None, None),
        };
        match (start.and_then(|s| s.as_fixed()), &steps, &mut moves) {
            (Some(s), Some(steps), Some(moves)) => moves[axis] = (s, steps[i]),
            _ => moves = None,
        }
        shape[axis] = call.or_fresh(length);
    }
    let elements = call.known(0).zip(moves).and_then(|(k, moves)| {
        k.pick(&shape, |to, from| {
            for ((f, &t), &(start, step)) in from.iter_mut().zip(to).zip(&moves) {
                let at = (t as i64)
                    .checked_mul(step)
                    .and_then(|v| v.checked_add(start));
                *f = at
                    .and_then(|v| usize::try_from(v).ok())
                    .unwrap_or(usize::MAX);
            }
        })
    });
    Ok(value(x.ty.dtype, shape, elements))
}

/// `Pad`.
pub(super) fn pad(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let rank = x.ty.rank();
    if !matches!(call.str("mode"), "constant" | "reflect" | "edge" | "wrap") {
        let message = format!(
            "`{}` is none of constant, reflect, edge, wrap",
            call.str("mode")
        );
        return Err(call.attribute_error("mode", message));
    }
    call.expect(1, Class::Index)?;
    call.expect_dtype(2, x.ty.dtype)?;
    call.expect_scalar(2)?;
    call.expect(3, Class::Index)?;
    let axes = match (call.optional(3), call.fixed_elements(3)) {
        (None, _) => Some((0..rank).collect()),
        (Some(_), Some(axes)) => Some(call.normalize_axes(&axes, rank)?),
        (Some(_), None) => None,
    };
    let Some(axes) = axes else {
        let shape = call.fresh_dims(rank);
        return Ok(value(x.ty.dtype, shape, None));
    };
    call.expect_shape(1, &[Dim::from(2 * axes.len())])?;
    let pads = call.known(1);
    let mut shape = x.ty.shape.clone();
    for (i, &axis) in axes.iter().enumerate() {
        let size = pads.as_ref().and_then(|p| {
            let (begin, end) = (&p.elements[i], &p.elements[axes.len() + i]);
            shape[axis].add(begin)?.add(end)
        });
        shape[axis] = call.or_fresh(size);
    }
    Ok(value(x.ty.dtype, shape, None))
}

/// `Range`: the length is `max(ceil((limit - start) / delta), 0)`.
///
/// A symbolic difference is taken not to be negative; the runtime reports a run where that is false.
pub(super) fn range(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    (0..3).try_for_each(|i| call.expect_scalar(i))?;
    let scalar = |i| call.known(i).and_then(|k| k.elements.first().cloned());
    let Some(((start, limit), delta)) = scalar(0).zip(scalar(1)).zip(scalar(2)) else {
        let n = call.fresh();
        return Ok(value(dtype, vec![n], None));
    };
    let delta = delta.as_fixed();
    if delta == Some(0) {
        return Err(call.operand_error(2, "a step that is not 0".to_owned()));
    }
    let length = delta.and_then(|delta| {
        let span = limit.sub(&start)?.scale(delta.signum())?;
        let step = Dim::fixed(delta.checked_abs()?);
        match (span.as_fixed(), step.as_fixed()) {
            (Some(n), Some(step)) => {
                let n = n.max(0);
                Some(Dim::fixed(n / step + i64::from(n % step != 0)))
            }
            _ if span.scale(-1)?.is_non_negative() => Some(Dim::fixed(0)),
            _ => span.div_exact(&step),
        }
    });
    let n = call.or_fresh(length);
    let elements = n.as_fixed().zip(delta).and_then(|(n, delta)| {
        let n = usize::try_from(n)
            .ok()
            .filter(|&n| n <= crate::ValueInfo::MAX_ELEMENTS)?;
        (0..n)
            .map(|i| start.add(&Dim::fixed(delta.checked_mul(i as i64)?)))
            .collect()
    });
    Ok(value(dtype, vec![n], elements))
}

/// `ConstantOfShape`: zeros of `f32`, unless `value` says otherwise.
pub(super) fn constant_of_shape(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Index)?;
    let error = || call.operand_error(0, format!("a shape of at most {MAX_RANK} sizes"));
    let [rank] = call.dims::<1>(0)?;
    let rank = rank
        .as_fixed()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| n <= MAX_RANK)
        .ok_or_else(error)?;
    let shape = match call.known(0) {
        Some(k) => k.elements.to_vec(),
        None => call.fresh_dims(rank),
    };
    let fill = match call.attribute("value") {
        Some(Attribute::Tensor(t)) if t.len() == 1 => Some(t),
        Some(_) => return Err(call.attribute_error("value", "expected one element".to_owned())),
        None => None,
    };
    let dtype = fill.map_or(DType::F32, |t| t.dtype());
    let elements = fill.and_then(|t| elements::of_tensor(t)).and_then(|e| {
        let n = elements::indices(&elements::fixed_sizes(&shape)?)?.len();
        Some(vec![e.first()?.clone(); n])
    });
    Ok(value(dtype, shape, elements))
}

/// `FromSparse`: values and positions give the shape of the attribute.
pub(super) fn from_sparse(call: &Call<'_>) -> One {
    call.expect_dtype(0, DType::F32)?;
    call.expect_dtype(1, DType::I64)?;
    let [n] = call.dims::<1>(0)?;
    call.expect_shape(1, std::slice::from_ref(n))?;
    let sizes = call.ints("shape").unwrap_or_default();
    if sizes.len() > MAX_RANK || sizes.iter().any(|&d| d < 0) {
        return Err(call.attribute_error("shape", format!("{sizes:?} is no shape")));
    }
    let shape = sizes.iter().map(|&d| Dim::fixed(d)).collect();
    Ok(value(DType::F32, shape, None))
}

/// `EyeLike`.
pub(super) fn eye_like(call: &Call<'_>) -> One {
    let x = call.operand(0)?;
    call.dims::<2>(0)?;
    let dtype = call.dtype_attribute("dtype")?.unwrap_or(x.ty.dtype);
    Ok(value(dtype, x.ty.shape.clone(), None))
}

/// `Trilu`.
pub(super) fn trilu(call: &Call<'_>) -> One {
    let x = call.operand(0)?;
    if x.ty.rank() < 2 {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    }
    call.expect_dtype(1, DType::I64)?;
    call.expect_scalar(1)?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// The only element of an operand, a size.
fn size_operand(call: &mut Call<'_>, index: usize) -> Result<Dim, IrError> {
    call.expect_scalar(index)?;
    let size = call.known(index).and_then(|k| k.elements.first().cloned());
    match size.as_ref().and_then(Dim::as_fixed) {
        Some(n) if n < 0 => Err(call.error(format!("operand {index}: {n} is not a size"))),
        _ => Ok(call.or_fresh(size)),
    }
}

/// `OneHot`: a new dimension of the size that the depth operand tells.
pub(super) fn one_hot(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    call.expect(1, Class::Number)?;
    call.expect_shape(2, &[Dim::fixed(2)])?;
    let mut shape = call.shape(0)?.to_vec();
    let axis = call.axis("axis", shape.len() + 1)?;
    let depth = size_operand(call, 1)?;
    shape.insert(axis, depth);
    Ok(value(call.dtype(2)?, shape, None))
}

/// `NonZero`: one row for each dimension, one column for each element found.
pub(super) fn non_zero(call: &mut Call<'_>) -> One {
    let rank = call.shape(0)?.len();
    let shape = vec![Dim::from(rank), call.fresh()];
    Ok(value(DType::I64, shape, None))
}

/// `TopK`: values and their places.
pub(super) fn top_k(call: &mut Call<'_>) -> Many {
    call.expect(0, Class::Number)?;
    call.expect_dtype(1, DType::I64)?;
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.ty.rank())?;
    let k = size_operand(call, 1)?;
    if elements::less(&x.ty.shape[axis], &k) == Some(true) {
        return Err(call.error(format!("cannot take {k} of {}", x.ty.shape[axis])));
    }
    let mut shape = x.ty.shape.clone();
    shape[axis] = k;
    Ok(vec![
        value(x.ty.dtype, shape.clone(), None),
        value(DType::I64, shape, None),
    ])
}

/// `CumSum`.
pub(super) fn cum_sum(call: &Call<'_>) -> One {
    let x = call.operand(0)?;
    call.expect(0, Class::Number)?;
    call.expect(1, Class::Index)?;
    call.expect_scalar(1)?;
    if let Some(&[axis]) = call.fixed_elements(1).as_deref() {
        call.normalize_axis(axis, x.ty.rank())?;
    }
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// `Compress`: how many places the condition keeps is not known.
pub(super) fn compress(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    call.expect(1, Class::Bool)?;
    call.dims::<1>(1)?;
    let kept = call
        .fixed_elements(1)
        .map(|c| Dim::from(c.iter().filter(|&&c| c != 0).count()));
    let shape = match call.optional_int("axis") {
        Some(axis) => {
            let axis = call.normalize_axis(axis, x.ty.rank())?;
            let mut shape = x.ty.shape.clone();
            shape[axis] = call.or_fresh(kept);
            shape
        }
        None => vec![call.or_fresh(kept)],
    };
    Ok(value(x.ty.dtype, shape, None))
}

/// `ReverseSequence`.
pub(super) fn reverse_sequence(call: &Call<'_>) -> One {
    let x = call.operand(0)?;
    let (batch, time) = (call.int("batch_axis"), call.int("time_axis"));
    if x.ty.rank() < 2 {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    }
    if !matches!((batch, time), (0, 1) | (1, 0)) {
        let message = format!("axes {batch} and {time} are not 0 and 1");
        return Err(call.attribute_error("batch_axis", message));
    }
    call.expect_dtype(1, DType::I64)?;
    call.expect_shape(1, &[x.ty.shape[batch as usize].clone()])?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}
