//! Sliding windows over the spatial dimensions of a tensor `[n, c, ...]`, shared by convolution and pooling.

use crate::OpError;
use crate::call::Call;

/// How a window slides along one dimension. All sizes are at most those of tensors, or were checked to fit `i64`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Size of the operand.
    pub(crate) input: usize,
    /// Size of the result.
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    stride: i64,
    dilation: i64,
    pad_begin: i64,
    pad_end: i64,
}

impl Window {
    /// Where tap `tap` of window `place` falls, or `None` if outside the operand.
    pub(crate) fn at(&self, place: usize, tap: usize) -> Option<usize> {
        let at = self.start(place) + tap as i64 * self.dilation;
        usize::try_from(at).ok().filter(|&i| i < self.input)
    }

    fn start(&self, place: usize) -> i64 {
        place as i64 * self.stride - self.pad_begin
    }

    /// Places in the operand that window `place` covers.
    pub(crate) fn covered(&self, place: usize) -> impl Iterator<Item = usize> {
        let start = self.start(place);
        let input = self.input as i64;
        let before = if start < 0 {
            (-start as u64).div_ceil(self.dilation as u64) as i64
        } else {
            0
        };
        let after = if start < input {
            ((input - start) as u64).div_ceil(self.dilation as u64) as i64
        } else {
            0
        };
        let dilation = self.dilation;
        (before..after.min(self.kernel as i64)).map(move |tap| (start + tap * dilation) as usize)
    }

    /// Number of places, padding included, that window `place` covers.
    pub(crate) fn n_padded(&self, place: usize) -> u64 {
        let end = self.input as i64 + self.pad_end;
        let start = self.start(place);
        if end <= start {
            return 0;
        }
        ((end - start) as u64)
            .div_ceil(self.dilation as u64)
            .min(self.kernel as u64)
    }
}

/// The windows along each spatial dimension, from attributes `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad`
/// and (if the operator has it) `ceil_mode`.
pub(crate) fn windows(
    call: &Call<'_>,
    input: &[usize],
    kernel: &[usize],
) -> Result<Vec<Window>, OpError> {
    let rank = input.len();
    let strides = list(call, "strides", rank, 1, 1)?;
    let dilations = list(call, "dilations", rank, 1, 1)?;
    let pads = list(call, "pads", 2 * rank, 0, 0)?;
    let ceil_mode = call.optional_int("ceil_mode").unwrap_or(0) != 0;
    if kernel.len() != rank {
        return Err(call.shape_error(format!("a window of shape {kernel:?} over {input:?}")));
    }
    (0..rank)
        .map(|axis| {
            let too_large = || call.shape_error(format!("a window of shape {kernel:?} over {input:?}"));
            let small = |v: usize| i64::try_from(v).ok().filter(|&v| v <= LIMIT).ok_or_else(too_large);
            let (size, taps) = (small(input[axis])?, small(kernel[axis])?);
            let (stride, dilation) = (strides[axis], dilations[axis]);
            if taps == 0 {
                return Err(too_large());
            }
            let extent = extent(taps, dilation).ok_or_else(too_large)?;
            let same = |upper: bool| {
                let output = (size as u64).div_ceil(stride as u64) as i64;
                let pad = ((output - 1) * stride + extent - size).max(0);
                let small_half = pad / 2;
                if upper { (output, small_half, pad - small_half) } else { (output, pad - small_half, small_half) }
            };
            let counted = |begin: i64, end: i64| {
                let room = size + begin + end - extent;
                let mut output = room.div_euclid(stride) + 1;
                // What is left gives one more window if that begins inside the padded operand, the end's padding left out.
                if ceil_mode && room.rem_euclid(stride) != 0 && output * stride < size + begin {
                    output += 1;
                }
                (output.max(0), begin, end)
            };
            let (output, pad_begin, pad_end) = match call.str("auto_pad") {
                "NOTSET" | "" => counted(pads[axis], pads[axis + rank]),
                "VALID" => counted(0, 0),
                "SAME_UPPER" => same(true),
                "SAME_LOWER" => same(false),
                other => return Err(call.attribute_error("auto_pad", format!("unknown value `{other}`"))),
            };
            Ok(Window {
                input: input[axis],
                output: usize::try_from(output).map_err(|_| too_large())?,
                kernel: kernel[axis],
                stride,
                dilation,
                pad_begin,
                pad_end,
            })
        })
        .collect()
}

/// The windows of which a transposed convolution is the transpose: their places are those of its operand, and what they slide over is
/// its result. From attributes `strides`, `dilations`, `pads`, `auto_pad`, `output_padding` and `output_shape`.
pub(crate) fn transposed_windows(
    call: &Call<'_>,
    input: &[usize],
    kernel: &[usize],
) -> Result<Vec<Window>, OpError> {
    let rank = input.len();
    let strides = list(call, "strides", rank, 1, 1)?;
    let dilations = list(call, "dilations", rank, 1, 1)?;
    let pads = list(call, "pads", 2 * rank, 0, 0)?;
    let more = list(call, "output_padding", rank, 0, 0)?;
    let stated = match call.ints("output_shape") {
        Some(_) => Some(list(call, "output_shape", rank, 0, 0)?),
        None => None,
    };
    // Where one side is padded more, it is the end for `SAME_UPPER`.
    let (same, upper) = match call.str("auto_pad") {
        "NOTSET" | "" | "VALID" => (false, false),
        "SAME_UPPER" => (true, true),
        "SAME_LOWER" => (true, false),
        other => return Err(call.attribute_error("auto_pad", format!("unknown value `{other}`"))),
    };
    let has_pads = matches!(call.str("auto_pad"), "NOTSET" | "");
    if kernel.len() != rank {
        return Err(call.shape_error(format!("a window of shape {kernel:?} over {input:?}")));
    }
    (0..rank)
        .map(|axis| {
            let wrong = || call.shape_error(format!("a window of shape {kernel:?} from {input:?}"));
            let small = |v: usize| {
                i64::try_from(v)
                    .ok()
                    .filter(|&v| v <= LIMIT)
                    .ok_or_else(wrong)
            };
            let (size, taps) = (small(input[axis])?, small(kernel[axis])?);
            let (stride, dilation) = (strides[axis], dilations[axis]);
            let extent = extent(taps, dilation)
                .filter(|_| taps != 0)
                .ok_or_else(wrong)?;
            let whole = (size - 1) * stride + extent + more[axis];
            let wanted = match &stated {
                Some(sizes) => Some(sizes[axis]),
                None => same.then_some(size * stride),
            };
            let (output, pad_begin) = match wanted {
                Some(output) => {
                    let pad = (whole - output).max(0);
                    (output, if upper { pad / 2 } else { pad - pad / 2 })
                }
                None if has_pads => (whole - pads[axis] - pads[axis + rank], pads[axis]),
                None => (whole, 0),
            };
            Ok(Window {
                input: usize::try_from(output).map_err(|_| wrong())?,
                output: input[axis],
                kernel: kernel[axis],
                stride,
                dilation,
                pad_begin,
                pad_end: 0,
            })
        })
        .collect()
}

/// List attribute `name` of `n` numbers of at least `least`, or `n` times the default.
fn list(
    call: &Call<'_>,
    name: &str,
    n: usize,
    default: i64,
    least: i64,
) -> Result<Vec<i64>, OpError> {
    match call.ints(name) {
        None => Ok(vec![default; n]),
        Some(v) if v.len() == n && v.iter().all(|&v| least <= v && v <= LIMIT) => Ok(v.to_vec()),
        Some(v) => Err(call.attribute_error(name, format!("expected {n} numbers, found {v:?}"))),
    }
}

/// What a window of at least one tap covers.
fn extent(taps: i64, dilation: i64) -> Option<i64> {
    let extent = i128::from(dilation) * i128::from(taps - 1) + 1;
    i64::try_from(extent).ok().filter(|&v| v <= LIMIT)
}

/// Sizes and attributes up to this keep every product of two of them within `i64`.
const LIMIT: i64 = 1 << 30;
