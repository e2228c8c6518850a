//! Convolution over any number of spatial dimensions, as a matrix product of the filters and the unfolded operand; and its
//! transpose, which folds such a product.

use crate::call::{Call, OpResult};
use crate::cast::{convert, from_f64, to_numbers};
use crate::layout::{product, strides};
use crate::matmul::{Factor, Matrix, multiply_unrounded};
use crate::number::is_byte;
use crate::quant::{range_of, saturate};
use crate::window::{Window, transposed_windows, windows};
use crate::{DType, DataView, OpError, Operator, Tensor, TensorView};

/// Sizes of a convolution.
struct Convolution {
    windows: Vec<Window>,
    n_items: usize,
    groups: usize,
    /// Channels in a group of the operand, and of the result.
    channels: [usize; 2],
    /// `[n, m, ...]`.
    shape: Vec<usize>,
}

impl Convolution {
    /// Reads the sizes of operand `x[n, c, ...]` and filters `w[m, c / group, ...]`.
    fn new(call: &Call<'_>, x: TensorView<'_>, w: TensorView<'_>) -> Result<Convolution, OpError> {
        let mismatch = || {
            call.shape_error(format!(
                "cannot convolve {:?} with {:?}",
                x.shape(),
                w.shape()
            ))
        };
        let (&[n, c, ref input @ ..], &[m, per_group, ref kernel @ ..]) = (x.shape(), w.shape())
        else {
            return Err(mismatch());
        };
        let groups = usize::try_from(call.int("group")).unwrap_or(0);
        if groups == 0 || c % groups != 0 || m % groups != 0 || c / groups != per_group {
            return Err(mismatch());
        }
        expect_kernel(call, kernel)?;
        let windows = windows(call, input, kernel)?;
        let mut shape = vec![n, m];
        shape.extend(windows.iter().map(|w| w.output));
        call.size(&shape, DType::F64)?;
        Ok(Convolution {
            windows,
            n_items: n,
            groups,
            channels: [per_group, m / groups],
            shape,
        })
    }

    /// Reads the sizes of the transpose for operand `x[n, c, ...]` and filters `w[c, m / group, ...]`: windows slide over its result.
    fn transposed(
        call: &Call<'_>,
        x: TensorView<'_>,
        w: TensorView<'_>,
    ) -> Result<Convolution, OpError> {
        let mismatch = || {
            let (x, w) = (x.shape(), w.shape());
            call.shape_error(format!("cannot convolve {x:?} with {w:?} transposed"))
        };
        let (&[n, c, ref input @ ..], &[c_of_w, m, ref kernel @ ..]) = (x.shape(), w.shape())
        else {
            return Err(mismatch());
        };
        let groups = usize::try_from(call.int("group")).unwrap_or(0);
        if groups == 0 || c % groups != 0 || c != c_of_w {
            return Err(mismatch());
        }
        expect_kernel(call, kernel)?;
        let windows = transposed_windows(call, input, kernel)?;
        let mut shape = vec![n, m.checked_mul(groups).ok_or_else(mismatch)?];
        shape.extend(windows.iter().map(|w| w.input));
        call.size(&shape, DType::F64)?;
        Ok(Convolution {
            windows,
            n_items: n,
            groups,
            channels: [c / groups, m],
            shape,
        })
    }

    /// The result of the transpose before rounding, row-major.
    fn fold<T: Factor<Sum = f64>>(
        &self,
        call: &Call<'_>,
        x: &[T],
        w: &[T],
    ) -> Result<Vec<f64>, OpError> {
        let places: Vec<usize> = self.windows.iter().map(|w| w.output).collect();
        let outputs: Vec<usize> = self.windows.iter().map(|w| w.input).collect();
        let kernel: Vec<usize> = self.windows.iter().map(|w| w.kernel).collect();
        let [n_places, n_outputs, n_taps] = [&places, &outputs, &kernel].map(|s| product(s));
        let [c, m] = self.channels;
        let mut out = vec![0.0; product(&self.shape)];
        if out.is_empty() {
            return Ok(out);
        }
        let rows = call.size(&[m, n_taps], DType::F64)?;
        call.size(&[rows, n_places], DType::F64)?;
        let offsets = self.offsets(call, &places, &outputs, &kernel)?;
        let mut unfolded = Vec::new();
        for group in 0..self.n_items * self.groups {
            let filters = &w[group % self.groups * c * rows..][..c * rows];
            unfolded.clear();
            multiply_unrounded(
                [rows, n_places, c],
                Matrix::transposed(filters, rows),
                Matrix::row_major(&x[group * c * n_places..][..c * n_places], n_places),
                &mut unfolded,
            );
            let channels = out[group * m * n_outputs..].chunks_exact_mut(n_outputs);
            let taps = unfolded.chunks_exact((n_taps * n_places).max(1));
            for (channel, taps) in channels.zip(taps) {
                for (&offset, v) in offsets.iter().zip(taps) {
                    if let Some(sum) = channel.get_mut(offset) {
                        *sum += v;
                    }
                }
            }
        }
        Ok(out)
    }

    /// The result before rounding, row-major.
    fn apply<T: Factor<Sum = f64>>(
        &self,
        call: &Call<'_>,
        x: &[T],
        w: &[T],
    ) -> Result<Vec<f64>, OpError> {
        let outputs: Vec<usize> = self.windows.iter().map(|w| w.output).collect();
        let inputs: Vec<usize> = self.windows.iter().map(|w| w.input).collect();
        let kernel: Vec<usize> = self.windows.iter().map(|w| w.kernel).collect();
        let [n_places, n_inputs, n_taps] = [&outputs, &inputs, &kernel].map(|s| product(s));
        let [c, m] = self.channels;
        let mut out = Vec::new();
        if product(&self.shape) == 0 {
            return Ok(out);
        }
        let depth = call.size(&[c, n_taps], DType::F64)?;
        call.size(&[depth, n_places], T::DTYPE)?;
        let offsets = self.offsets(call, &outputs, &inputs, &kernel)?;
        let mut unfolded = Vec::new();
        for item in 0..self.n_items {
            for group in 0..self.groups {
                unfolded.clear();
                for channel in 0..c {
                    let start = ((item * self.groups + group) * c + channel) * n_inputs;
                    let values = &x[start..start + n_inputs];
                    unfolded.extend(
                        offsets
                            .iter()
                            .map(|&o| values.get(o).copied().unwrap_or(T::ZERO)),
                    );
                }
                let filters =
                    Matrix::row_major(&w[group * m * depth..(group + 1) * m * depth], depth);
                multiply_unrounded(
                    [m, n_places, depth],
                    filters,
                    Matrix::row_major(&unfolded, n_places),
                    &mut out,
                );
            }
        }
        Ok(out)
    }

    /// For each tap of the window and each place of the result, the offset in a channel; `usize::MAX` in the padding.
    fn offsets(
        &self,
        call: &Call<'_>,
        outputs: &[usize],
        inputs: &[usize],
        kernel: &[usize],
    ) -> Result<Vec<usize>, OpError> {
        let n_places = product(outputs);
        let n_taps = product(kernel);
        call.size(&[n_taps, n_places], DType::I64)?;
        let (by_tap, by_place, steps) = (strides(kernel), strides(outputs), strides(inputs));
        let mut offsets = Vec::with_capacity(n_taps * n_places);
        for tap in 0..n_taps {
            for place in 0..n_places {
                let at = self
                    .windows
                    .iter()
                    .enumerate()
                    .try_fold(0, |at, (axis, w)| {
                        let tap = (tap / by_tap[axis]) % kernel[axis];
                        let place = (place / by_place[axis]) % outputs[axis];
                        w.at(place, tap).map(|i| at + i * steps[axis])
                    });
                offsets.push(at.unwrap_or(usize::MAX));
            }
        }
        Ok(offsets)
    }

    /// The channel of element `i` of the result.
    fn channel(&self, i: usize) -> usize {
        (i / product(&self.shape[2..])) % self.shape[1]
    }
}

/// That attribute `kernel_shape`, if it is there, is the shape of the filters.
fn expect_kernel(call: &Call<'_>, kernel: &[usize]) -> Result<(), OpError> {
    let Some(stated) = call.ints("kernel_shape") else {
        return Ok(());
    };
    if stated
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .eq(kernel.iter().map(|&k| Some(k)))
    {
        return Ok(());
    }
    let message = format!("{stated:?}, but the filters are {kernel:?}");
    Err(call.attribute_error("kernel_shape", message))
}

/// Operand `index` for each of `n` channels of the result, or zeros; one value serves all.
fn per_channel(call: &Call<'_>, index: usize, n: usize) -> Result<Vec<f64>, OpError> {
    let values = match call.optional(index) {
        Some(v) => v.to_f64_vec(),
        None => return Ok(vec![0.0; n]),
    };
    match values[..] {
        [v] => Ok(vec![v; n]),
        _ if values.len() == n => Ok(values),
        _ => Err(call.shape_error(format!(
            "operand {index} has {} values for {n} channels",
            values.len()
        ))),
    }
}

/// `Conv` and `ConvTranspose`.
pub(crate) fn conv(call: &Call<'_>) -> OpResult {
    let (x, w) = (call.operand(0)?, call.operand(1)?);
    let dtype = x.dtype();
    for index in [1, 2] {
        call.expect_dtype(index, dtype)?;
    }
    let is_transposed = call.op == Operator::ConvTranspose;
    let conv = if is_transposed {
        Convolution::transposed(call, x, w)?
    } else {
        Convolution::new(call, x, w)?
    };
    let mut sums = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => {
            let (x, w) = (to_numbers::<f32>(&x.data()), to_numbers::<f32>(&w.data()));
            if is_transposed {
                conv.fold(call, &x, &w)?
            } else {
                conv.apply(call, &x, &w)?
            }
        }
        DType::F64 => {
            let (x, w) = (to_numbers::<f64>(&x.data()), to_numbers::<f64>(&w.data()));
            if is_transposed {
                conv.fold(call, &x, &w)?
            } else {
                conv.apply(call, &x, &w)?
            }
        }
        other => return Err(call.dtype_error(0, other)),
    };
    let bias = per_channel(call, 2, conv.shape[1])?;
    sums.iter_mut()
        .enumerate()
        .for_each(|(i, s)| *s += bias[conv.channel(i)]);
    finish(call, &conv, from_f64(&sums, dtype))
}

fn finish(call: &Call<'_>, conv: &Convolution, data: crate::Data) -> OpResult {
    Tensor::try_new(conv.shape.clone(), data).ok_or_else(|| call.shape_error("sizes disagree"))
}

/// The convolution of 8-bit integers less their zero points, which are operands `x_zero` and `w_zero`; exact.
fn integer_sums(
    call: &Call<'_>,
    [x, x_zero, w, w_zero]: [usize; 4],
) -> Result<(Convolution, Vec<f64>), OpError> {
    let (xv, wv) = (call.operand(x)?, call.operand(w)?);
    for (index, view) in [(x, xv), (w, wv)] {
        if !is_byte(view.dtype()) {
            return Err(call.dtype_error(index, view.dtype()));
        }
    }
    let conv = Convolution::new(call, xv, wv)?;
    let zero = match per_channel(call, x_zero, 1)?[..] {
        [z] => z as f32,
        _ => return Err(call.shape_error("expected one zero point")),
    };
    let centred: Vec<f32> = xv.to_f32_vec().iter().map(|v| v - zero).collect();
    let zeros = per_channel(call, w_zero, conv.shape[1])?;
    let mut filters = wv.to_f32_vec();
    let per_filter = product(&wv.shape()[1..]);
    if per_filter != 0 {
        for (filter, &z) in filters.chunks_exact_mut(per_filter).zip(&zeros) {
            filter.iter_mut().for_each(|v| *v -= z as f32);
        }
    }
    let sums = conv.apply::<f32>(call, &centred, &filters)?;
    Ok((conv, sums))
}

/// `ConvInteger`: the convolution of 8-bit integers less their zero points, as `i32`.
pub(crate) fn conv_integer(call: &Call<'_>) -> OpResult {
    let (conv, sums) = integer_sums(call, [0, 2, 1, 3])?;
    call.tensor(&conv.shape, sums.iter().map(|&s| s as i64 as i32).collect())
}

/// `QLinearConv`: the convolution of quantized tensors, quantized.
pub(crate) fn qlinear_conv(call: &Call<'_>) -> OpResult {
    let y_zero = call.operand(7)?;
    let (low, high) = range_of(call, 7, y_zero.dtype())?;
    let (conv, mut sums) = integer_sums(call, [0, 2, 3, 5])?;
    let m = conv.shape[1];
    let scalar = |index: usize| match call.operand(index)?.to_f64_vec()[..] {
        [v] => Ok(v),
        _ => Err(call.shape_error(format!("operand {index} is not a scalar"))),
    };
    let (x_scale, y_scale, zero) = (scalar(1)?, scalar(6)?, scalar(7)?);
    let (w_scale, bias) = (per_channel(call, 4, m)?, per_channel(call, 8, m)?);
    for (i, s) in sums.iter_mut().enumerate() {
        let channel = conv.channel(i);
        let v = (*s + bias[channel]) * (x_scale * w_scale[channel] / y_scale);
        *s = saturate(v, zero, (low, high));
    }
    finish(call, &conv, convert(&DataView::F64(&sums), y_zero.dtype()))
}
