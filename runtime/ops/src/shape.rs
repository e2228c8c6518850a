//! Operators that give the same elements another shape or order, or repeat them.

use crate::call::{Call, OpResult, OpResults};
use crate::layout::{broadcast_shapes, copy_strided, expand, permute, product, strides};
use crate::{Element, OpError, Tensor, TensorView};

/// `Size`: the number of elements.
pub(crate) fn size(call: &Call<'_>) -> OpResult {
    let n = call.operand(0)?.len();
    Ok(Tensor::scalar(i64::try_from(n).expect("a length fits i64")))
}

/// `Shape`: dimensions `start..end`, each of which may count from the end and is clamped.
pub(crate) fn shape(call: &Call<'_>) -> OpResult {
    let shape = call.operand(0)?.shape();
    let rank = i64::try_from(shape.len()).expect("a rank is small");
    let clamp = |v: i64| {
        let v = if v < 0 { v.saturating_add(rank) } else { v };
        usize::try_from(v.clamp(0, rank)).expect("it is not negative")
    };
    let start = clamp(call.int("start"));
    let end = clamp(call.optional_int("end").unwrap_or(rank));
    let dims = shape.get(start..end).unwrap_or(&[]);
    let dims: Vec<i64> = dims
        .iter()
        .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
        .collect();
    call.tensor(&[dims.len()], dims)
}

/// The elements of `x` under another shape.
fn with_shape(call: &Call<'_>, x: TensorView<'_>, shape: Vec<usize>) -> OpResult {
    let message = format!("cannot view {:?} as {shape:?}", x.shape());
    let view = x
        .reshaped(&shape)
        .ok_or_else(|| call.shape_error(message))?;
    Ok(view.to_tensor())
}

/// `Reshape`: 0 copies a dimension unless `allowzero` is set, one -1 is inferred.
pub(crate) fn reshape(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let target = call.integers(1)?;
    let mut shape = Vec::with_capacity(target.len());
    let mut inferred = None;
    for (i, &d) in target.iter().enumerate() {
        shape.push(match d {
            0 if !call.flag("allowzero") => *x.shape().get(i).ok_or_else(|| {
                call.value_error(1, format!("0 at {i} copies a dimension that is not there"))
            })?,
            -1 if inferred.replace(i).is_some() => {
                return Err(call.value_error(1, "more than one dimension is -1"));
            }
            -1 => 1,
            d => call.to_size(1, d)?,
        });
    }
    if let Some(i) = inferred {
        let known = product(&shape);
        if known == 0 || x.len() % known != 0 {
            return Err(call.value_error(
                1,
                format!("cannot infer the -1 of {target:?} for {:?}", x.shape()),
            ));
        }
        shape[i] = x.len() / known;
    }
    with_shape(call, x, shape)
}

/// `Flatten` to a matrix: dimensions before `axis`, which may be the rank, and those from it.
pub(crate) fn flatten(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axis = match call.int("axis") {
        a if a == x.rank() as i64 => x.rank(),
        a => call.normalize_axis(a, x.rank())?,
    };
    let (outer, inner) = x.shape().split_at(axis);
    with_shape(call, x, vec![product(outer), product(inner)])
}

/// `Squeeze`: without the given dimensions, or all, of size one.
pub(crate) fn squeeze(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axes = match call.optional_integers(1)? {
        Some(axes) => call.normalize_axes(&axes, x.rank())?,
        None => (0..x.rank()).filter(|&a| x.shape()[a] == 1).collect(),
    };
    if let Some(a) = axes.iter().find(|&&a| x.shape()[a] != 1) {
        return Err(call.shape_error(format!(
            "dimension {a} of {:?} is not of size one",
            x.shape()
        )));
    }
    let kept = (0..x.rank())
        .filter(|a| !axes.contains(a))
        .map(|a| x.shape()[a]);
    with_shape(call, x, kept.collect())
}

/// `Unsqueeze`: dimensions of size one at the given places of the result.
pub(crate) fn unsqueeze(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axes = call.integers(1)?;
    let rank = x.rank() + axes.len();
    let axes = call.normalize_axes(&axes, rank)?;
    let mut dims = x.shape().iter();
    let shape = (0..rank)
        .map(|a| {
            if axes.contains(&a) {
                1
            } else {
                *dims.next().expect("the rest are the dimensions of x")
            }
        })
        .collect();
    with_shape(call, x, shape)
}

/// `Expand`: both ways, so that a dimension of the data stays where the given one is one.
pub(crate) fn expand_to(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, v: &[T], from: &[usize], to: &[usize]) -> OpResult {
        call.size(to, T::DTYPE)?;
        call.tensor(to, expand(v, from, to))
    }
    let x = call.operand(0)?;
    let target = sizes(call, 1)?;
    let shape = broadcast_shapes(call, &[x.shape(), &target])?;
    with_elements!(x.data(), v => apply(call, v, x.shape(), &shape))
}

/// Elements of an integer operand as sizes.
pub(crate) fn sizes(call: &Call<'_>, operand: usize) -> Result<Vec<usize>, OpError> {
    let values = call.integers(operand)?;
    values
        .into_iter()
        .map(|d| call.to_size(operand, d))
        .collect()
}

/// `Tile`: each dimension repeated.
pub(crate) fn tile(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, v: &[T], from: &[usize], repeats: &[usize]) -> OpResult {
        let too_large = || OpError::TooLarge {
            op: call.op,
            message: format!("{from:?} times {repeats:?}"),
        };
        let shape = from
            .iter()
            .zip(repeats)
            .map(|(d, r)| d.checked_mul(*r).ok_or_else(too_large))
            .collect::<Result<Vec<_>, _>>()?;
        call.size(&shape, T::DTYPE)?;
        let (mut sizes, mut steps) = (Vec::new(), Vec::new());
        for ((&d, &r), s) in from.iter().zip(repeats).zip(strides(from)) {
            sizes.extend([r, d]);
            steps.extend([0, s]);
        }
        call.tensor(&shape, copy_strided(v, 0, &sizes, &steps))
    }
    let x = call.operand(0)?;
    let repeats = sizes(call, 1)?;
    if repeats.len() != x.rank() {
        return Err(call.shape_error(format!("{} repeats for rank {}", repeats.len(), x.rank())));
    }
    with_elements!(x.data(), v => apply(call, v, x.shape(), &repeats))
}

/// `Transpose`: dimension `perm[i]` becomes dimension `i`; reversed if `perm` is not set.
pub(crate) fn transpose(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let perm = match call.ints("perm") {
        Some(perm) => call.normalize_axes(perm, x.rank())?,
        None => (0..x.rank()).rev().collect(),
    };
    if perm.len() != x.rank() {
        return Err(
            call.attribute_error("perm", format!("{} axes for rank {}", perm.len(), x.rank()))
        );
    }
    permute_axes(call, x, &perm)
}

/// Moves axis `perm[i]` of `x` to place `i`.
fn permute_axes(call: &Call<'_>, x: TensorView<'_>, perm: &[usize]) -> OpResult {
    let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
    with_elements!(x.data(), v => call.tensor(&shape, permute(v, x.shape(), perm)))
}

/// `Concat` along `axis`.
pub(crate) fn concat(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, _: &[T], axis: usize, shape: &[usize]) -> OpResult {
        let mut data = Vec::with_capacity(call.size(shape, T::DTYPE)?);
        let mut parts = Vec::new();
        for (i, view) in call.all_operands()?.iter().enumerate() {
            parts.push((call.slice::<T>(i)?, product(&view.shape()[axis..])));
        }
        if !shape.contains(&0) {
            for outer in 0..product(&shape[..axis]) {
                for (v, n) in &parts {
                    data.extend_from_slice(&v[outer * n..(outer + 1) * n]);
                }
            }
        }
        call.tensor(shape, data)
    }
    let views = call.all_operands()?;
    let first = call.operand(0)?;
    let axis = call.axis("axis", first.rank())?;
    let mut shape = first.shape().to_vec();
    shape[axis] = 0;
    for view in &views {
        let fits = view.rank() == shape.len()
            && (0..shape.len()).all(|a| a == axis || view.shape()[a] == shape[a]);
        if !fits {
            return Err(call.shape_error(format!(
                "{:?} and {:?} do not concatenate along axis {axis}",
                first.shape(),
                view.shape()
            )));
        }
        shape[axis] = shape[axis].saturating_add(view.shape()[axis]);
    }
    with_elements!(first.data(), v => apply(call, v, axis, &shape))
}

/// `Split` along `axis`, into the given sizes or into equal parts of which the last may be smaller.
pub(crate) fn split(call: &Call<'_>) -> OpResults {
    fn part<T: Element>(
        call: &Call<'_>,
        v: &[T],
        shape: &[usize],
        axis: usize,
        start: usize,
        n: usize,
    ) -> OpResult {
        let from = strides(shape);
        let mut to = shape.to_vec();
        to[axis] = n;
        let offset = start.saturating_mul(from[axis]);
        call.tensor(&to, copy_strided(v, offset, &to, &from))
    }
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let d = x.shape()[axis];
    let n_parts = match (call.optional(1), call.optional_int("num_outputs")) {
        (Some(_), _) | (None, None) => call.n_results,
        (None, Some(n)) if usize::try_from(n).is_ok_and(|n| n == call.n_results) => call.n_results,
        (None, Some(n)) => {
            let message = format!("{n}, but there are {} results", call.n_results);
            return Err(call.attribute_error("num_outputs", message));
        }
    };
    let parts = if call.optional(1).is_some() {
        sizes(call, 1)?
    } else {
        let chunk = d.div_ceil(n_parts);
        (0..n_parts)
            .map(|i| d.saturating_sub(i * chunk).min(chunk))
            .collect()
    };
    let sum = parts.iter().fold(0usize, |a, &b| a.saturating_add(b));
    if parts.len() != n_parts || sum != d {
        return Err(call.shape_error(format!(
            "a dimension of {d} is not split into {n_parts} by {parts:?}"
        )));
    }
    let mut start = 0;
    parts
        .iter()
        .map(|&n| {
            let result = with_elements!(x.data(), v => part(call, v, x.shape(), axis, start, n));
            start += n;
            result
        })
        .collect()
}

/// `Slice`: starts, ends, axes and steps; bounds count from the end if negative, and are clamped.
pub(crate) fn slice(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let (starts, ends) = (call.integers(1)?, call.integers(2)?);
    let axes = match call.optional_integers(3)? {
        Some(axes) => call.normalize_axes(&axes, x.rank())?,
        None => (0..starts.len()).collect(),
    };
    let steps = call
        .optional_integers(4)?
        .unwrap_or_else(|| vec![1; starts.len()]);
    if starts.len() != ends.len()
        || axes.len() != starts.len()
        || steps.len() != starts.len()
        || x.rank() < axes.len()
    {
        return Err(call.shape_error("starts, ends, axes and steps differ in length"));
    }
    let mut shape = x.shape().to_vec();
    let mut walk = strides(x.shape());
    let mut offset = 0usize;
    for (i, &axis) in axes.iter().enumerate() {
        let (n, first) = bounds(call, x.shape()[axis], starts[i], ends[i], steps[i])?;
        shape[axis] = n;
        offset = offset.saturating_add(first.saturating_mul(walk[axis]));
        walk[axis] = walk[axis].wrapping_mul(steps[i] as usize);
    }
    with_elements!(x.data(), v => call.tensor(&shape, copy_strided(v, offset, &shape, &walk)))
}

/// How many elements of a dimension of size `d` a slice takes, and the first.
fn bounds(
    call: &Call<'_>,
    d: usize,
    start: i64,
    end: i64,
    step: i64,
) -> Result<(usize, usize), OpError> {
    let d = i64::try_from(d).unwrap_or(i64::MAX);
    let from_start = |v: i64| if v < 0 { v.saturating_add(d) } else { v };
    let (start, end) = (from_start(start), from_start(end));
    let (start, distance) = match step {
        0 => return Err(call.value_error(4, "a step is zero")),
        1.. => {
            let start = start.clamp(0, d);
            (start, end.clamp(0, d) - start)
        }
        _ if d == 0 => (0, 0),
        // ONNX clamps the start to a place, where Python allows the one before the first.
        _ => {
            let start = start.clamp(0, d - 1);
            (start, start - end.clamp(-1, d - 1))
        }
    };
    let n = if distance <= 0 {
        0
    } else {
        (distance as u64).div_ceil(step.unsigned_abs())
    };
    Ok((n as usize, usize::try_from(start).unwrap_or(0)))
}

/// `DepthToSpace`, in the order that attribute `mode` names.
pub(crate) fn depth_to_space(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let [n, c, h, w] = image(call, x)?;
    let b = block_size(call)?;
    let area = b.saturating_mul(b);
    if area == 0 || c % area != 0 {
        return Err(call.shape_error(format!("{c} channels are not a multiple of {b} squared")));
    }
    let (from, perm) = match call.str("mode") {
        "DCR" => ([n, b, b, c / area, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, c / area, b, b, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(call.attribute_error("mode", format!("unknown value `{other}`"))),
    };
    rearrange(
        call,
        x,
        &from,
        &perm,
        &[n, c / area, h.saturating_mul(b), w.saturating_mul(b)],
    )
}

/// `SpaceToDepth`, in the order that attribute `mode` names.
pub(crate) fn space_to_depth(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let [n, c, h, w] = image(call, x)?;
    let b = block_size(call)?;
    if b == 0 || h % b != 0 || w % b != 0 {
        return Err(call.shape_error(format!("{h} by {w} is not a multiple of {b}")));
    }
    let to = [n, c.saturating_mul(b).saturating_mul(b), h / b, w / b];
    let perm = match call.str("mode") {
        "DCR" => [0, 3, 5, 1, 2, 4],
        "CRD" => [0, 1, 3, 5, 2, 4],
        other => return Err(call.attribute_error("mode", format!("unknown value `{other}`"))),
    };
    rearrange(call, x, &[n, c, h / b, b, w / b, b], &perm, &to)
}

fn image(call: &Call<'_>, x: TensorView<'_>) -> Result<[usize; 4], OpError> {
    x.shape()
        .try_into()
        .map_err(|_| call.shape_error(format!("expected rank 4, found shape {:?}", x.shape())))
}

fn block_size(call: &Call<'_>) -> Result<usize, OpError> {
    usize::try_from(call.int("blocksize"))
        .map_err(|_| call.attribute_error("blocksize", "is not positive"))
}

fn rearrange(
    call: &Call<'_>,
    x: TensorView<'_>,
    from: &[usize],
    perm: &[usize],
    to: &[usize],
) -> OpResult {
    let split = x
        .reshaped(from)
        .ok_or_else(|| call.shape_error(format!("cannot view {:?} as {from:?}", x.shape())))?;
    let moved = permute_axes(call, split, perm)?;
    moved
        .reshaped(to.to_vec())
        .ok_or_else(|| call.shape_error(format!("cannot view {:?} as {to:?}", x.shape())))
}

/// `ReverseSequence`: the first `sequence_lens[b]` steps of each batch, reversed.
pub(crate) fn reverse_sequence(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(
        call: &Call<'_>,
        v: &[T],
        shape: &[usize],
        batch: usize,
        time: usize,
        lens: &[usize],
    ) -> OpResult {
        let steps = strides(shape);
        let mut out = v.to_vec();
        let at = |i: usize, axis: usize| (i / steps[axis]) % shape[axis];
        if !v.is_empty() {
            for (i, o) in out.iter_mut().enumerate() {
                let (t, n) = (at(i, time), lens[at(i, batch)]);
                if t < n {
                    *o = v[i - t * steps[time] + (n - 1 - t) * steps[time]];
                }
            }
        }
        call.tensor(shape, out)
    }
    let x = call.operand(0)?;
    let (batch, time) = (
        call.axis("batch_axis", x.rank())?,
        call.axis("time_axis", x.rank())?,
    );
    let lens = sizes(call, 1)?;
    if batch == time || lens.len() != x.shape()[batch] || lens.iter().any(|&n| x.shape()[time] < n)
    {
        return Err(call.shape_error(format!("lengths {lens:?} do not fit shape {:?}", x.shape())));
    }
    with_elements!(x.data(), v => apply(call, v, x.shape(), batch, time, &lens))
}
