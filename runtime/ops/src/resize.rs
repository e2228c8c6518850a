//! Resampling along axes: `Resize`.
//!
//! Interpolation is separable. Along each axis, an element of the result is a weighted sum of neighbours of the place that it
//! comes from; places outside repeat the edge. Axes that shrink go first, so that no intermediate tensor is larger than both
//! operand and result.
//!
//! Source: the operator's reference implementation in ONNX, `onnx/reference/ops/op_resize.py`.

use crate::call::{Call, OpResult};
use crate::cast::from_f64;
use crate::layout::product;
use crate::{DType, OpError, Tensor, TensorView};

/// What becomes of one axis.
#[derive(Clone, Copy)]
struct Axis {
    axis: usize,
    n_in: usize,
    n_out: usize,
    /// Size of the result over that of the operand, not rounded.
    scale: f64,
    /// The part that `tf_crop_and_resize` shows: from and to, where 1 is the last element.
    region: [f64; 2],
}

/// Where an element of the result comes from along one axis.
enum Source {
    /// Neighbours and their weights.
    Inside(Vec<(usize, f64)>),
    /// Outside of what can be read: `extrapolation_value`.
    Outside,
}

/// `Resize` of operand 0: `roi`, `scales` and `sizes` are operands 1 to 3, of which an empty one counts as absent.
pub(crate) fn resize(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let mut axes = axes(call, x)?;
    let mut shape = x.shape().to_vec();
    for a in &axes {
        shape[a.axis] = a.n_out;
    }
    let size = call.size(&shape, DType::F64)?;
    if size == 0 {
        return Ok(Tensor::zeros(x.dtype(), shape));
    }
    if x.is_empty() {
        return Err(call.shape_error("there is nothing to interpolate"));
    }
    axes.retain(|a| a.n_in != a.n_out || a.scale != 1.0 || a.region != [0.0, 1.0]);
    axes.sort_by(|a, b| (a.n_out * b.n_in).cmp(&(b.n_out * a.n_in)));
    let mut sources = Vec::with_capacity(axes.len());
    for a in &axes {
        let of = (0..a.n_out).map(|i| source(call, a, i));
        sources.push(of.collect::<Result<Vec<Source>, OpError>>()?);
    }
    let is_copy = |s: &Source| matches!(s, Source::Inside(v) if matches!(v[..], [(_, 1.0)]));
    let mut shape = x.shape().to_vec();
    if sources.iter().flatten().all(is_copy) {
        return with_elements!(x.data(), v => {
            let mut data = v.to_vec();
            for (a, sources) in axes.iter().zip(&sources) {
                data = along(&data, &mut shape, a, |row, at| match &sources[at] {
                    Source::Inside(v) => row(v[0].0),
                    Source::Outside => row(0),
                });
            }
            call.tensor(&shape, data)
        });
    }
    if x.dtype() == DType::Bool {
        return Err(call.dtype_error(0, x.dtype()));
    }
    let extrapolated = f64::from(call.float("extrapolation_value"));
    let mut data = x.to_f64_vec();
    for (a, sources) in axes.iter().zip(&sources) {
        data = along(&data, &mut shape, a, |row, at| match &sources[at] {
            Source::Inside(v) => v.iter().map(|&(i, weight)| weight * row(i)).sum(),
            Source::Outside => extrapolated,
        });
    }
    if x.dtype().is_integer() {
        data.iter_mut()
            .for_each(|v| *v = saturated(v.round_ties_even(), x.dtype()));
    }
    Tensor::try_new(shape, from_f64(&data, x.dtype()))
        .ok_or_else(|| call.shape_error("sizes disagree"))
}

/// `v` within the range of an integer type.
fn saturated(v: f64, dtype: DType) -> f64 {
    let bits = 8 * dtype.size_bytes() as i32;
    let is_signed = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64);
    let (least, most) = if is_signed {
        (-(2f64.powi(bits - 1)), 2f64.powi(bits - 1) - 1.0)
    } else {
        (0.0, 2f64.powi(bits) - 1.0)
    };
    v.clamp(least, most)
}

/// Computes each element of the result along one axis from those of the operand on the same line.
fn along<T: Copy>(
    data: &[T],
    shape: &mut [usize],
    a: &Axis,
    f: impl Fn(&dyn Fn(usize) -> T, usize) -> T,
) -> Vec<T> {
    let inner = product(&shape[a.axis + 1..]);
    let outer = product(&shape[..a.axis]);
    let mut out = Vec::with_capacity(outer * a.n_out * inner);
    for block in data.chunks_exact(a.n_in * inner) {
        for at in 0..a.n_out {
            out.extend((0..inner).map(|i| f(&|from| block[from * inner + i], at)));
        }
    }
    shape[a.axis] = a.n_out;
    out
}

/// Sizes, scales and regions of the axes that are resized.
fn axes(call: &Call<'_>, x: TensorView<'_>) -> Result<Vec<Axis>, OpError> {
    let indices = match call.ints("axes") {
        Some(axes) => call.normalize_axes(axes, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    let given = |index: usize| call.optional(index).filter(|v| !v.is_empty());
    let n = indices.len();
    let of_length = |index: usize, expected: usize| match given(index) {
        Some(v) if v.len() != expected => Err(call.shape_error(format!(
            "operand {index}: expected {expected} elements, found shape {:?}",
            v.shape()
        ))),
        Some(_) | None => Ok(()),
    };
    of_length(2, n)?;
    of_length(3, n)?;
    let is_crop = call.str("coordinate_transformation_mode") == "tf_crop_and_resize";
    let region: Vec<f64> = match given(1) {
        Some(roi) if is_crop => {
            of_length(1, 2 * n)?;
            roi.to_f64_vec()
        }
        None if is_crop => return Err(call.shape_error("a region is cropped, and none is given")),
        Some(_) | None => [vec![0.0; n], vec![1.0; n]].concat(),
    };
    let n_in = |i: usize| x.shape()[indices[i]];
    let sized: Vec<(usize, f64)> = match (given(2), given(3)) {
        (Some(scales), None) => {
            let scaled = |(i, scale): (usize, f64)| {
                if !(scale > 0.0 && scale.is_finite()) {
                    return Err(call.value_error(2, format!("{scale} is not a scale")));
                }
                let size = (n_in(i) as f64 * scale).floor();
                Ok((call.to_size(2, size as i64)?, scale))
            };
            let scales = scales.to_f64_vec();
            scales
                .into_iter()
                .enumerate()
                .map(scaled)
                .collect::<Result<_, _>>()?
        }
        (None, Some(_)) => {
            let sizes = call.integers(3)?;
            let sizes = sizes.into_iter().map(|size| call.to_size(3, size));
            let sizes = sizes.collect::<Result<Vec<usize>, _>>()?;
            let scales = (0..n).map(|i| sizes[i] as f64 / n_in(i) as f64);
            let one = match call.str("keep_aspect_ratio_policy") {
                "stretch" => None,
                "not_larger" => Some(scales.clone().fold(f64::INFINITY, f64::min)),
                "not_smaller" => Some(scales.clone().fold(0.0, f64::max)),
                other => {
                    let message = format!("unknown value `{other}`");
                    return Err(call.attribute_error("keep_aspect_ratio_policy", message));
                }
            };
            match one {
                None => sizes.iter().copied().zip(scales).collect(),
                Some(scale) => {
                    let size = |i: usize| call.to_size(3, (scale * n_in(i) as f64 + 0.5) as i64);
                    let sized = (0..n).map(|i| Ok((size(i)?, scale)));
                    sized.collect::<Result<_, OpError>>()?
                }
            }
        }
        _ => return Err(call.shape_error("expected either scales or sizes")),
    };
    let axis = |(i, (n_out, scale)): (usize, (usize, f64))| Axis {
        axis: indices[i],
        n_in: n_in(i),
        n_out,
        scale,
        region: [region[i], region[n + i]],
    };
    Ok(sized.into_iter().enumerate().map(axis).collect())
}

/// Where element `i` of the result lies in the operand, in elements; `None` outside of a cropped region's tensor.
fn coordinate(call: &Call<'_>, a: &Axis, i: usize) -> Result<Option<f64>, OpError> {
    let (x, n_in) = (i as f64, a.n_in as f64);
    // Not rounded.
    let n_out = a.scale * n_in;
    Ok(Some(match call.str("coordinate_transformation_mode") {
        "half_pixel" => (x + 0.5) / a.scale - 0.5,
        "pytorch_half_pixel" if a.n_out == 1 => 0.0,
        "pytorch_half_pixel" => (x + 0.5) / a.scale - 0.5,
        "half_pixel_symmetric" => {
            let offset = n_in / 2.0 * (1.0 - a.n_out as f64 / n_out);
            offset + (x + 0.5) / a.scale - 0.5
        }
        "align_corners" if n_out == 1.0 => 0.0,
        "align_corners" => x * (n_in - 1.0) / (n_out - 1.0),
        "asymmetric" => x / a.scale,
        "tf_half_pixel_for_nn" => (x + 0.5) / a.scale,
        "tf_crop_and_resize" => {
            let [from, to] = a.region;
            let shown = (to - from) * (n_in - 1.0);
            let at = if n_out == 1.0 {
                shown / 2.0
            } else {
                x * shown / (n_out - 1.0)
            };
            let at = at + from * (n_in - 1.0);
            return Ok((0.0 <= at && at <= n_in - 1.0).then_some(at));
        }
        other => {
            let message = format!("unknown value `{other}`");
            return Err(call.attribute_error("coordinate_transformation_mode", message));
        }
    }))
}

/// The neighbours that element `i` of the result is made of.
fn source(call: &Call<'_>, a: &Axis, i: usize) -> Result<Source, OpError> {
    let Some(x) = coordinate(call, a, i)? else {
        return Ok(Source::Outside);
    };
    // Beyond the edges all places are alike.
    let x = x.clamp(-(a.n_in as f64) - 1.0, 2.0 * a.n_in as f64 + 1.0);
    let antialias = call.flag("antialias");
    let within = |i: f64| i.clamp(0.0, a.n_in as f64 - 1.0) as usize;
    let weights = match call.str("mode") {
        "nearest" => {
            let nearest = match call.str("nearest_mode") {
                "round_prefer_floor" => (x - 0.5).ceil(),
                "round_prefer_ceil" => (x + 0.5).floor(),
                "floor" => x.floor(),
                "ceil" => x.ceil(),
                other => {
                    let message = format!("unknown value `{other}`");
                    return Err(call.attribute_error("nearest_mode", message));
                }
            };
            return Ok(Source::Inside(vec![(within(nearest), 1.0)]));
        }
        "linear" if antialias => stretched(x, a.scale, 1.0, |d| (1.0 - d).max(0.0)),
        "linear" => stretched(x, 1.0, 1.0, |d| (1.0 - d).max(0.0)),
        "cubic" => {
            let c = f64::from(call.float("cubic_coeff_a"));
            let scale = if antialias { a.scale } else { 1.0 };
            stretched(x, scale, 2.0, |d| cubic(d, c))
        }
        other => return Err(call.attribute_error("mode", format!("unknown value `{other}`"))),
    };
    let exclude = call.flag("exclude_outside");
    let outside = |i: f64| i < 0.0 || a.n_in as f64 - 1.0 < i;
    let counted = |&(i, w): &(f64, f64)| if exclude && outside(i) { 0.0 } else { w };
    let sum: f64 = weights.iter().map(counted).sum();
    // Weights of all neighbours add up to 1 unless they were stretched or left out.
    let is_plain = !(exclude || (antialias && a.scale < 1.0));
    let sum = if is_plain || sum == 0.0 { 1.0 } else { sum };
    let weights = weights.iter().map(|n| (within(n.0), counted(n) / sum));
    Ok(Source::Inside(weights.filter(|&(_, w)| w != 0.0).collect()))
}

/// Neighbours of `x` and their weights by a kernel that is zero from `radius` on, and as much wider as `scale` is below 1.
fn stretched(x: f64, scale: f64, radius: f64, kernel: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let scale = scale.min(1.0);
    let reach = (radius / scale).floor() + 1.0;
    let n = 2 * reach as usize + 1;
    let neighbours = (0..n).map(|i| x.floor() - reach + i as f64);
    let weighted = neighbours.map(|i| (i, kernel((scale * (i - x)).abs())));
    weighted.filter(|&(_, w)| w != 0.0).collect()
}

/// The cubic convolution kernel (Keys 1981) at distance `d`.
fn cubic(d: f64, a: f64) -> f64 {
    if d <= 1.0 {
        ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    } else if d < 2.0 {
        ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    } else {
        0.0
    }
}
