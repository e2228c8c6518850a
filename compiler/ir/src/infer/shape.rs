//! Operators that give the same elements another shape or order, repeat them, or read a shape.

use lancet_ops::DType;

use super::broadcast::{agree, broadcasts_to, is_one, list};
use super::call::{Call, Class, MAX_RANK, Many, One};
use super::elements::{self, Known, value};
use crate::{Dim, IrError};

/// `Shape`, between `start` and `end`, which are clamped.
pub(super) fn shape(call: &Call<'_>) -> One {
    let dims = call.shape(0)?;
    let clamp = |v: i64| {
        let n = dims.len() as i64;
        let from_start = if v < 0 { v.saturating_add(n) } else { v };
        from_start.clamp(0, n) as usize
    };
    let start = clamp(call.int("start"));
    let end = call.optional_int("end").map_or(dims.len(), clamp);
    let part = dims.get(start..end).unwrap_or_default().to_vec();
    Ok(value(DType::I64, vec![Dim::from(part.len())], Some(part)))
}

/// `Size`.
pub(super) fn size(call: &Call<'_>) -> One {
    let n = Dim::product(call.shape(0)?);
    Ok(value(DType::I64, Vec::new(), n.map(|n| vec![n])))
}

/// Number of elements of a shape operand: the rank that it asks for.
fn length_of(call: &Call<'_>, index: usize) -> Result<usize, IrError> {
    call.expect(index, Class::Index)?;
    let [n] = call.dims::<1>(index)?;
    n.as_fixed()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| n <= MAX_RANK)
        .ok_or_else(|| call.operand_error(index, format!("a fixed length of at most {MAX_RANK}")))
}

/// `Reshape`: 0 copies a size unless `allowzero`, -1 is what remains.
pub(super) fn reshape(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let rank = length_of(call, 1)?;
    let Some(wanted) = call.known(1) else {
        let shape = call.fresh_dims(rank);
        return Ok(value(x.ty.dtype, shape, None));
    };
    let mut shape = wanted.elements.to_vec();
    let mut rest = None;
    for (i, d) in shape.iter_mut().enumerate() {
        match d.as_fixed() {
            Some(0) if !call.flag("allowzero") => {
                *d =
                    x.ty.shape
                        .get(i)
                        .cloned()
                        .ok_or_else(|| call.operand_error(0, format!("a dimension {i} to copy")))?;
            }
            Some(-1) if rest.is_none() => rest = Some(i),
            Some(n) if n < 0 => {
                let message = format!("cannot reshape to {}", list(wanted.elements));
                return Err(call.error(message));
            }
            _ => {}
        }
    }
    let mismatch = || {
        let found = list(&x.ty.shape);
        call.error(format!(
            "cannot reshape {found} to {}",
            list(wanted.elements)
        ))
    };
    if let Some(i) = rest {
        let others: Vec<&Dim> = shape
            .iter()
            .enumerate()
            .filter(|&(j, _)| j != i)
            .map(|(_, d)| d)
            .collect();
        let remaining = remaining(&x.ty.shape, &others).map_err(|()| mismatch())?;
        shape[i] = call.or_fresh(remaining);
    } else if !same_size(&x.ty.shape, &shape) {
        return Err(mismatch());
    }
    let elements = call.known(0).map(|k| k.elements.to_vec());
    Ok(value(x.ty.dtype, shape, elements))
}

/// The size that makes the product of `others` with it that of `from`: `None` if it is no expression of the sizes, an
/// error if there is none.
fn remaining(from: &[Dim], others: &[&Dim]) -> Result<Option<Dim>, ()> {
    let mut from: Vec<&Dim> = from.iter().collect();
    let mut divisors = Vec::new();
    for &d in others {
        if d.as_fixed() == Some(0) {
            return Err(());
        }
        match from.iter().position(|f| *f == d) {
            Some(i) => drop(from.swap_remove(i)),
            None => divisors.push(d),
        }
    }
    let (Some(total), Some(by)) = (Dim::product(from), Dim::product(divisors)) else {
        return Ok(None);
    };
    match (total.as_fixed(), by.as_fixed()) {
        (Some(total), Some(by)) if total.checked_rem(by) != Some(0) => Err(()),
        _ => Ok(total.div_exact(&by)),
    }
}

/// False if the shapes are known to have different numbers of elements.
pub(super) fn same_size(a: &[Dim], b: &[Dim]) -> bool {
    match (Dim::product(a), Dim::product(b)) {
        (Some(a), Some(b)) => a.equals(&b) != Some(false),
        _ => true,
    }
}

/// `Flatten` to two dimensions.
pub(super) fn flatten(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let rank = x.ty.rank();
    let axis = call.int("axis");
    let axis = if axis == rank as i64 {
        rank
    } else if rank == 0 {
        return Err(call.attribute_error("axis", format!("{axis} is outside rank 0")));
    } else {
        call.normalize_axis(axis, rank)?
    };
    let (outer, inner) = x.ty.shape.split_at(axis);
    let shape = vec![
        call.or_fresh(Dim::product(outer)),
        call.or_fresh(Dim::product(inner)),
    ];
    let elements = call.known(0).map(|k| k.elements.to_vec());
    Ok(value(x.ty.dtype, shape, elements))
}

/// Length of an axes operand, if it is fixed.
fn axes_length(call: &Call<'_>, index: usize) -> Option<usize> {
    match call.shape(index).ok()? {
        [] => Some(1),
        [n] => usize::try_from(n.as_fixed()?).ok(),
        _ => None,
    }
}

/// `Squeeze`: without axes, every size known to be 1 goes, and others are taken not to be 1.
pub(super) fn squeeze(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let (rank, elements) = (x.ty.rank(), call.known(0).map(|k| k.elements.to_vec()));
    call.expect(1, Class::Index)?;
    let axes = if call.optional(1).is_none() {
        (0..rank).filter(|&i| is_one(&x.ty.shape[i])).collect()
    } else if let Some(axes) = call.fixed_elements(1) {
        call.normalize_axes(&axes, rank)?
    } else {
        let rest = axes_length(call, 1).and_then(|n| rank.checked_sub(n));
        let rest = rest.ok_or_else(|| call.operand_error(1, "axes that are known".to_owned()))?;
        let shape = call.fresh_dims(rest);
        return Ok(value(x.ty.dtype, shape, None));
    };
    if let Some(&i) = axes
        .iter()
        .find(|&&i| x.ty.shape[i].equals(&Dim::fixed(1)) == Some(false))
    {
        return Err(call.operand_error(0, format!("dimension {i} of size 1")));
    }
    let shape = (0..rank)
        .filter(|i| !axes.contains(i))
        .map(|i| x.ty.shape[i].clone())
        .collect();
    Ok(value(x.ty.dtype, shape, elements))
}

/// `Unsqueeze`.
pub(super) fn unsqueeze(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    call.expect(1, Class::Index)?;
    let n = axes_length(call, 1).filter(|&n| n + x.ty.rank() <= MAX_RANK);
    let n =
        n.ok_or_else(|| call.operand_error(1, "a fixed and small number of axes".to_owned()))?;
    let rank = x.ty.rank() + n;
    let Some(axes) = call.fixed_elements(1) else {
        let shape = call.fresh_dims(rank);
        return Ok(value(x.ty.dtype, shape, None));
    };
    let axes = call.normalize_axes(&axes, rank)?;
    let mut kept = x.ty.shape.iter();
    let shape = (0..rank)
        .map(|i| match axes.contains(&i) {
            true => Dim::fixed(1),
            false => kept.next().cloned().unwrap_or_else(|| Dim::fixed(1)),
        })
        .collect();
    let elements = call.known(0).map(|k| k.elements.to_vec());
    Ok(value(x.ty.dtype, shape, elements))
}

/// `Expand`: the operand and the wanted shape broadcast together.
pub(super) fn expand(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let n = length_of(call, 1)?;
    let Some(wanted) = call.known(1) else {
        // A size known to exceed 1 cannot change; others may.
        let mut shape = call.fresh_dims(n.max(x.ty.rank()));
        for (to, from) in shape.iter_mut().rev().zip(x.ty.shape.iter().rev()) {
            if from
                .sub(&Dim::fixed(2))
                .is_some_and(|d| d.is_non_negative())
            {
                *to = from.clone();
            }
        }
        return Ok(value(x.ty.dtype, shape, None));
    };
    let wanted = wanted.elements.to_vec();
    if wanted.iter().any(|d| d.as_fixed().is_some_and(|n| n < 0)) {
        return Err(call.error(format!("cannot expand to {}", list(&wanted))));
    }
    let shape = call.broadcast(&[&x.ty.shape, &wanted])?;
    let elements = broadcast_elements(call.known(0), &shape);
    Ok(value(x.ty.dtype, shape, elements))
}

/// Elements of a value broadcast to a shape.
pub(super) fn broadcast_elements(known: Option<Known<'_>>, shape: &[Dim]) -> Option<Vec<Dim>> {
    elements::zip_broadcast(shape, &[known], |e| e[0].cloned())
}

/// The result of `Op::View`, or what is wrong with it.
pub(super) fn view(x: &crate::ValueInfo, shape: &[Dim]) -> Result<crate::ValueInfo, String> {
    if !same_size(&x.ty.shape, shape) {
        return Err(format!("cannot view {} as {}", x.ty, list(shape)));
    }
    let elements = Known::of(x).map(|k| k.elements.to_vec());
    Ok(value(x.ty.dtype, shape.to_vec(), elements))
}

/// The result of `Op::Broadcast`, or what is wrong with it.
pub(super) fn broadcast(x: &crate::ValueInfo, shape: &[Dim]) -> Result<crate::ValueInfo, String> {
    if !broadcasts_to(&x.ty.shape, shape) {
        return Err(format!("cannot broadcast {} to {}", x.ty, list(shape)));
    }
    let elements = broadcast_elements(Known::of(x), shape);
    Ok(value(x.ty.dtype, shape.to_vec(), elements))
}

/// `Tile`.
pub(super) fn tile(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let n = length_of(call, 1)?;
    if n != x.ty.rank() {
        return Err(call.operand_error(1, format!("{} repeats", x.ty.rank())));
    }
    let mut shape = Vec::with_capacity(n);
    let repeats = call.known(1);
    for (i, d) in x.ty.shape.iter().enumerate() {
        let size = repeats.as_ref().and_then(|r| d.mul(&r.elements[i]));
        shape.push(call.or_fresh(size));
    }
    let elements = call.known(0).and_then(|k| {
        let sizes = k.shape.clone();
        k.pick(&shape, |to, from| {
            for ((f, &t), &n) in from.iter_mut().zip(to).zip(&sizes) {
                *f = t.checked_rem(n).unwrap_or(usize::MAX);
            }
        })
    });
    Ok(value(x.ty.dtype, shape, elements))
}

/// `Resize`. Scales are not whole numbers: what they give is known when the operator has run.
pub(super) fn resize(call: &mut Call<'_>) -> One {
    let x = call.operand(0)?;
    let mut shape = x.ty.shape.clone();
    call.expect(1, Class::Float)?;
    call.expect(2, Class::Float)?;
    call.expect(3, Class::Integer)?;
    let axes = match call.ints("axes") {
        Some(axes) => call.normalize_axes(axes, shape.len())?,
        None => (0..shape.len()).collect(),
    };
    let sizes = match call.known(3) {
        Some(known) if known.elements.len() == axes.len() => Some(known.elements.to_vec()),
        _ => None,
    };
    let is_stretched = call.str("keep_aspect_ratio_policy") == "stretch";
    for (i, &axis) in axes.iter().enumerate() {
        let size = sizes
            .as_ref()
            .filter(|_| is_stretched)
            .map(|s| s[i].clone());
        shape[axis] = call.or_fresh(size);
    }
    Ok(value(x.ty.dtype, shape, None))
}

/// `Transpose`; without `perm`, the dimensions are reversed.
pub(super) fn transpose(call: &Call<'_>) -> One {
    let x = call.operand(0)?;
    let rank = x.ty.rank();
    let perm: Vec<usize> = match call.ints("perm") {
        Some(p) if p.len() != rank => {
            let message = format!("expected {rank} axes, found {}", p.len());
            return Err(call.attribute_error("perm", message));
        }
        Some(p) => call.normalize_axes(p, rank)?,
        None => (0..rank).rev().collect(),
    };
    let shape: Vec<Dim> = perm.iter().map(|&p| x.ty.shape[p].clone()).collect();
    let elements = call.known(0).and_then(|k| {
        k.pick(&shape, |to, from| {
            for (&p, &t) in perm.iter().zip(to) {
                from[p] = t;
            }
        })
    });
    Ok(value(x.ty.dtype, shape, elements))
}

/// `Concat`: sizes beside the axis agree.
pub(super) fn concat(call: &mut Call<'_>) -> One {
    let n = call.n_operands();
    let dtype = call.same_dtype(0..n)?;
    let mut shape = call.shape(0)?.to_vec();
    let rank = shape.len();
    let axis = call.axis("axis", rank)?;
    let mut sum = Some(shape[axis].clone());
    for i in 1..n {
        let other = call.shape(i)?;
        let mut expected = shape.clone();
        for (j, d) in expected.iter_mut().enumerate().filter(|&(j, _)| j != axis) {
            if let Some(both) = other.get(j).and_then(|o| agree(d, o)) {
                *d = both;
            }
        }
        expected[axis] = other.get(axis).unwrap_or(&shape[axis]).clone();
        call.expect_shape(i, &expected)?;
        sum = sum.and_then(|s| s.add(&expected[axis]));
        shape = expected;
    }
    shape[axis] = call.or_fresh(sum);
    let elements = concat_elements(call, axis, &shape);
    Ok(value(dtype, shape, elements))
}

fn concat_elements(call: &Call<'_>, axis: usize, shape: &[Dim]) -> Option<Vec<Dim>> {
    let parts: Vec<Known<'_>> = (0..call.n_operands())
        .map(|i| call.known(i))
        .collect::<Option<_>>()?;
    elements::indices(&elements::fixed_sizes(shape)?)?
        .into_iter()
        .map(|mut index| {
            for part in &parts {
                match index[axis].checked_sub(part.shape[axis]) {
                    None => return part.at(&index).cloned(),
                    Some(rest) => index[axis] = rest,
                }
            }
            None
        })
        .collect()
}

/// `Split`, by sizes or into parts as equal as can be, the last one smaller.
pub(super) fn split(call: &mut Call<'_>) -> Many {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.ty.rank())?;
    let (whole, n) = (&x.ty.shape[axis], call.n_results);
    let sizes: Vec<Dim> = if call.optional(1).is_some() {
        call.expect(1, Class::Index)?;
        call.expect_shape(1, &[Dim::from(n)])?;
        match call.known(1) {
            Some(k) => k.elements.to_vec(),
            None => call.fresh_dims(n),
        }
    } else {
        if let Some(parts) = call.optional_int("num_outputs")
            && usize::try_from(parts) != Ok(n)
        {
            let message = format!("is {parts} for {n} results");
            return Err(call.attribute_error("num_outputs", message));
        }
        equal_parts(call, whole, n)
    };
    let sum = sizes
        .iter()
        .try_fold(Dim::fixed(0), |a, d| a.add(d))
        .map(|s| s.equals(whole));
    if sum == Some(Some(false)) || sizes.iter().any(|d| d.as_fixed().is_some_and(|n| n < 0)) {
        return Err(call.error(format!("cannot split {whole} into {}", list(&sizes))));
    }
    let mut start = Some(0usize);
    let mut results = Vec::with_capacity(n);
    for size in sizes {
        let mut shape = x.ty.shape.clone();
        shape[axis] = size.clone();
        let elements = call.known(0).zip(start).and_then(|(k, start)| {
            k.pick(&shape, |to, from| {
                from.copy_from_slice(to);
                from[axis] = from[axis].saturating_add(start);
            })
        });
        start = start
            .zip(size.as_fixed())
            .and_then(|(s, n)| s.checked_add(usize::try_from(n).ok()?));
        results.push(value(x.ty.dtype, shape, elements));
    }
    Ok(results)
}

fn equal_parts(call: &mut Call<'_>, whole: &Dim, n: usize) -> Vec<Dim> {
    let n_fixed = i64::try_from(n).unwrap_or(i64::MAX);
    if let Some(part) = whole.div_exact(&Dim::fixed(n_fixed)) {
        return vec![part; n];
    }
    let Some(whole) = whole.as_fixed() else {
        return call.fresh_dims(n);
    };
    let part = whole / n_fixed + i64::from(whole % n_fixed != 0);
    (0..n_fixed)
        .map(|i| Dim::fixed(part.min(whole - i.saturating_mul(part).min(whole))))
        .collect()
}

/// `DepthToSpace`: blocks of channels become blocks of places.
pub(super) fn depth_to_space(call: &mut Call<'_>) -> One {
    let dtype = call.dtype(0)?;
    let [n, c, h, w] = call.dims::<4>(0)?;
    let b = block_size(call)?;
    let by = b.mul(&b);
    let channels = exact(call, c, by.as_ref())?;
    let shape = vec![
        n.clone(),
        channels,
        call.or_fresh(h.mul(&b)),
        call.or_fresh(w.mul(&b)),
    ];
    Ok(value(dtype, shape, None))
}

/// `SpaceToDepth`: blocks of places become blocks of channels.
pub(super) fn space_to_depth(call: &mut Call<'_>) -> One {
    let dtype = call.dtype(0)?;
    let [n, c, h, w] = call.dims::<4>(0)?;
    let b = block_size(call)?;
    let channels = b.mul(&b).and_then(|b| c.mul(&b));
    let shape = vec![
        n.clone(),
        call.or_fresh(channels),
        exact(call, h, Some(&b))?,
        exact(call, w, Some(&b))?,
    ];
    Ok(value(dtype, shape, None))
}

fn block_size(call: &Call<'_>) -> Result<Dim, IrError> {
    match call.int("blocksize") {
        b if 0 < b => Ok(Dim::fixed(b)),
        b => Err(call.attribute_error("blocksize", format!("{b} is not positive"))),
    }
}

/// A quotient of sizes that must be exact.
fn exact(call: &mut Call<'_>, d: &Dim, by: Option<&Dim>) -> Result<Dim, IrError> {
    let quotient = by.and_then(|by| d.div_exact(by));
    if quotient.is_none() && d.as_fixed().is_some() {
        let by = by.map_or_else(|| "the block".to_owned(), ToString::to_string);
        return Err(call.operand_error(0, format!("sizes that are multiples of {by}")));
    }
    Ok(call.or_fresh(quotient))
}
