//! Pooling over the spatial dimensions of a tensor `[n, c, ...]`.

use crate::call::{Call, OpResult, OpResults};
use crate::cast::from_f64;
use crate::layout::{product, strides};
use crate::norm::reals;
use crate::number::sum_f64;
use crate::window::{Window, windows};
use crate::{DType, OpError, Operator, Tensor, TensorView};

/// Windows over the spatial dimensions of operand 0, and the result's shape.
fn pooled(call: &Call<'_>, x: TensorView<'_>) -> Result<(Vec<Window>, Vec<usize>), OpError> {
    let &[n, c, ref input @ ..] = x.shape() else {
        return Err(call.shape_error(format!(
            "expected rank 3 or more, found shape {:?}",
            x.shape()
        )));
    };
    let kernel = call.ints("kernel_shape").unwrap_or(&[]);
    let kernel = kernel
        .iter()
        .map(|&k| {
            usize::try_from(k).map_err(|_| call.attribute_error("kernel_shape", "is not positive"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let windows = windows(call, input, &kernel)?;
    let mut shape = vec![n, c];
    shape.extend(windows.iter().map(|w| w.output));
    call.size(&shape, DType::F64)?;
    Ok((windows, shape))
}

/// Calls `f` with the channel's elements, and for each place of the result the offsets that its window covers and the
/// number of places it covers with padding.
fn for_each_window(
    values: &[f64],
    windows: &[Window],
    mut f: impl FnMut(usize, &[f64], &[usize], f64),
) {
    let inputs: Vec<usize> = windows.iter().map(|w| w.input).collect();
    let outputs: Vec<usize> = windows.iter().map(|w| w.output).collect();
    let (steps, by_place) = (strides(&inputs), strides(&outputs));
    let n_inputs = product(&inputs);
    if n_inputs == 0 {
        return;
    }
    for (channel, values) in values.chunks_exact(n_inputs).enumerate() {
        for place in 0..product(&outputs) {
            let mut offsets = vec![0usize];
            let mut n_padded = 1.0;
            for (axis, w) in windows.iter().enumerate() {
                let at = (place / by_place[axis]) % outputs[axis];
                let along: Vec<usize> = w.covered(at).map(|i| i * steps[axis]).collect();
                offsets = offsets
                    .iter()
                    .flat_map(|o| along.iter().map(move |a| o + a))
                    .collect();
                n_padded *= w.n_padded(at) as f64;
            }
            f(channel, values, &offsets, n_padded);
        }
    }
}

/// `AveragePool`. A window's sum is divided by the elements in it, or, with `count_include_pad`, also by its padding.
pub(crate) fn average_pool(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let (windows, shape) = pooled(call, x)?;
    let includes_pad = call.flag("count_include_pad");
    let mut data = Vec::new();
    for_each_window(
        &reals(call, 0)?,
        &windows,
        |_, values, offsets, n_padded| {
            let n = if includes_pad {
                n_padded
            } else {
                offsets.len() as f64
            };
            data.push(sum_f64(offsets.iter().map(|&o| values[o])) / n);
        },
    );
    finish(call, shape, &data, x.dtype())
}

fn finish(call: &Call<'_>, shape: Vec<usize>, data: &[f64], dtype: DType) -> OpResult {
    let n = data.len();
    Tensor::try_new(shape, from_f64(data, dtype))
        .ok_or_else(|| call.shape_error(format!("{n} elements from an empty operand")))
}

/// `MaxPool`: the greatest in each window and its place in the operand, counted row-major or, if `storage_order` is set,
/// with the spatial dimensions column-major.
pub(crate) fn max_pool(call: &Call<'_>) -> OpResults {
    let x = call.operand(0)?;
    if matches!(x.dtype(), DType::I64 | DType::U64 | DType::Bool) {
        return Err(call.dtype_error(0, x.dtype()));
    }
    let (windows, shape) = pooled(call, x)?;
    let inputs = &x.shape()[2..];
    let (row_major, n_inputs) = (strides(inputs), product(inputs));
    let column_major: Vec<usize> = (0..inputs.len()).map(|a| product(&inputs[..a])).collect();
    let reordered = |o: usize| {
        (0..inputs.len())
            .map(|a| (o / row_major[a]) % inputs[a] * column_major[a])
            .sum()
    };
    let by_column = call.flag("storage_order");
    let (mut data, mut places) = (Vec::new(), Vec::new());
    for_each_window(&x.to_f64_vec(), &windows, |channel, values, offsets, _| {
        let better = |a: usize, b: usize| {
            values[a] > values[b] || (values[a].is_nan() && !values[b].is_nan())
        };
        let best = offsets
            .iter()
            .copied()
            .reduce(|best, o| if better(o, best) { o } else { best });
        data.push(best.map_or(f64::NEG_INFINITY, |o| values[o]));
        let place = best.map_or(0, |o| if by_column { reordered(o) } else { o });
        places.push((channel * n_inputs + place) as i64);
    });
    if data.is_empty() && product(&shape) != 0 {
        return Err(call.shape_error("windows over an empty operand"));
    }
    let indices = call.tensor(&shape, places)?;
    Ok(vec![finish(call, shape, &data, x.dtype())?, indices])
}

/// `GlobalAveragePool` and `GlobalMaxPool`.
pub(crate) fn global_pool(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let &[n, c, ref rest @ ..] = x.shape() else {
        return Err(call.shape_error(format!(
            "expected rank 3 or more, found shape {:?}",
            x.shape()
        )));
    };
    let spatial = product(rest);
    let mut shape = vec![n, c];
    shape.resize(x.rank(), 1);
    if spatial == 0 {
        return Err(call.shape_error("nothing to pool"));
    }
    let values = reals(call, 0)?;
    let channels = values.chunks_exact(spatial);
    let greatest = |row: &[f64]| {
        row.iter().fold(
            f64::NEG_INFINITY,
            |a, &b| if a.is_nan() || a > b { a } else { b },
        )
    };
    let data: Vec<f64> = match call.op {
        Operator::GlobalAveragePool => channels
            .map(|row| sum_f64(row.iter().copied()) / spatial as f64)
            .collect(),
        _ => channels.map(greatest).collect(),
    };
    finish(call, shape, &data, x.dtype())
}
