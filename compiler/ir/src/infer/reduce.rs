//! Reductions over axes, and normalizations, which reduce and keep the shape.

use lancet_ops::DType;

use super::broadcast::list;
use super::call::{Call, Class, Many, One};
use super::elements::{self, value};
use crate::{Dim, IrError, ValueInfo};

/// A reduction over the axes that operand 1 names: all, if it is absent or empty and `noop_with_empty_axes` is not set.
///
/// `combine` folds elements where it can be followed through shape computations.
pub(super) fn reduce(call: &mut Call<'_>, combine: Option<fn(&Dim, &Dim) -> Option<Dim>>) -> One {
    let x = call.operand(0)?;
    let (rank, keep) = (x.ty.rank(), call.flag("keepdims"));
    call.expect(1, Class::Index)?;
    let given = match (call.optional(1), call.fixed_elements(1)) {
        (None, _) => Some(Vec::new()),
        (Some(_), given @ Some(_)) => given,
        (Some(axes), None) => {
            let n = axes.ty.shape.first().map_or(Some(1), Dim::as_fixed);
            if n == Some(0) { Some(Vec::new()) } else { None }
        }
    };
    let Some(given) = given else {
        let removed = call.shape(1)?.first().map_or(Some(1), Dim::as_fixed);
        let left = removed
            .and_then(|n| rank.checked_sub(usize::try_from(n).ok()?))
            .filter(|_| !keep);
        let n = match (keep, left) {
            (true, _) => rank,
            (false, Some(n)) => n,
            (false, None) => return Err(call.operand_error(1, "a fixed number of axes".to_owned())),
        };
        let shape = call.fresh_dims(n);
        return Ok(value(x.ty.dtype, shape, None));
    };
    let axes = match given.is_empty() {
        true if call.flag("noop_with_empty_axes") => Vec::new(),
        true => (0..rank).collect(),
        false => call.normalize_axes(&given, rank)?,
    };
    let shape = reduced(&x.ty.shape, &axes, keep);
    let elements = combine.and_then(|f| reduced_elements(call, &axes, f));
    Ok(value(x.ty.dtype, shape, elements))
}

fn reduced(shape: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    let kept = |(i, d): (usize, &Dim)| match axes.contains(&i) {
        true => keep.then(|| Dim::fixed(1)),
        false => Some(d.clone()),
    };
    shape.iter().enumerate().filter_map(kept).collect()
}

/// Elements of a reduction, in row-major order of what is left; nothing is known where nothing is reduced over.
fn reduced_elements(
    call: &Call<'_>,
    axes: &[usize],
    f: fn(&Dim, &Dim) -> Option<Dim>,
) -> Option<Vec<Dim>> {
    let known = call.known(0)?;
    let mut out: Vec<(Vec<usize>, Dim)> = Vec::new();
    for (index, d) in elements::indices(&known.shape)?
        .into_iter()
        .zip(known.elements)
    {
        let place: Vec<usize> = (0..index.len())
            .filter(|i| !axes.contains(i))
            .map(|i| index[i])
            .collect();
        match out.iter_mut().find(|(p, _)| *p == place) {
            Some((_, acc)) => *acc = f(acc, d)?,
            None => out.push((place, d.clone())),
        }
    }
    Some(out.into_iter().map(|(_, d)| d).collect())
}

/// `ArgMax` and `ArgMin`.
pub(super) fn arg(call: &Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    let shape = call.shape(0)?;
    let axis = call.axis("axis", shape.len())?;
    let shape = reduced(shape, &[axis], call.flag("keepdims"));
    Ok(value(DType::I64, shape, None))
}

/// A normalization along one axis: `Softmax` and its kin, `LpNormalization`.
pub(super) fn along_axis(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let x = call.operand(0)?;
    call.axis("axis", x.ty.rank())?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// The type in which a normalization computes its statistics.
fn stash_dtype(call: &Call<'_>) -> Result<DType, IrError> {
    match call.int("stash_type") {
        1 => Ok(DType::F32),
        10 => Ok(DType::F16),
        11 => Ok(DType::F64),
        16 => Ok(DType::BF16),
        other => Err(call.attribute_error("stash_type", format!("{other} is not a float type"))),
    }
}

/// Statistics of a normalization of the dimensions from `axis` on: those have size 1.
fn statistics(x: &ValueInfo, axis: usize, dtype: DType) -> ValueInfo {
    let axes: Vec<usize> = (axis..x.ty.rank()).collect();
    value(dtype, reduced(&x.ty.shape, &axes, true), None)
}

/// `LayerNormalization`: the normalized value, means, inverse deviations.
pub(super) fn layer_norm(call: &Call<'_>) -> Many {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.ty.rank())?;
    call.expect_broadcasts_to(1, &x.ty.shape[axis..])?;
    call.expect_broadcasts_to(2, &x.ty.shape[axis..])?;
    let statistics = statistics(x, axis, stash_dtype(call)?);
    let y = value(dtype, x.ty.shape.clone(), None);
    Ok(vec![y, statistics.clone(), statistics])
}

/// `RMSNormalization` and `MsSimplifiedLayerNormalization`: the normalized value, of the scale's type, and inverse
/// deviations.
pub(super) fn rms_norm(call: &Call<'_>) -> Many {
    call.expect(0, Class::Float)?;
    call.expect(1, Class::Float)?;
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.ty.rank())?;
    call.expect_broadcasts_to(1, &x.ty.shape[axis..])?;
    let deviations = statistics(x, axis, stash_dtype(call)?);
    let y = value(call.dtype(1)?, x.ty.shape.clone(), None);
    Ok(vec![y, deviations])
}

/// `MsSkipLayerNormalization` and its simplified form: the normalized sum, means, inverse deviations, the sum.
pub(super) fn skip_layer_norm(call: &Call<'_>, n_parameters: usize) -> Many {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype(0..call.n_operands())?;
    let x = call.operand(0)?;
    let Some(hidden) = x.ty.shape.last().filter(|_| 2 <= x.ty.rank()) else {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    };
    call.expect_broadcasts_to(1, &x.ty.shape)?;
    // Scale, then the shift if this form has one, then the bias.
    for i in 2..2 + n_parameters {
        call.expect_shape(i, std::slice::from_ref(hidden))?;
    }
    let statistics = statistics(x, x.ty.rank() - 1, DType::F32);
    let y = value(dtype, x.ty.shape.clone(), None);
    Ok(vec![y.clone(), statistics.clone(), statistics, y])
}

/// `InstanceNormalization`, `GroupNormalization` and `BatchNormalization`: parameters of one element for each channel.
pub(super) fn channel_norm(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let x = call.operand(0)?;
    let Some(channels) = x.ty.shape.get(1) else {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    };
    for i in 1..call.n_operands() {
        call.expect(i, Class::Float)?;
        call.expect_shape(i, std::slice::from_ref(channels))?;
    }
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// `GroupNormalization`: the groups divide the channels.
pub(super) fn group_norm(call: &Call<'_>) -> One {
    let groups = call.int("num_groups");
    let channels = call.shape(0)?.get(1).and_then(Dim::as_fixed);
    if groups < 1 || channels.is_some_and(|c| c % groups != 0) {
        let message = format!("{groups} groups of shape {}", list(call.shape(0)?));
        return Err(call.attribute_error("num_groups", message));
    }
    channel_norm(call)
}

/// `BatchNormalization` at inference.
pub(super) fn batch_norm(call: &Call<'_>) -> One {
    if call.flag("training_mode") {
        let message = "training is not supported".to_owned();
        return Err(call.attribute_error("training_mode", message));
    }
    channel_norm(call)
}

/// `MeanVarianceNormalization`.
pub(super) fn mean_variance(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let x = call.operand(0)?;
    call.normalize_axes(call.ints("axes").unwrap_or(&[0, 2, 3]), x.ty.rank())?;
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}
