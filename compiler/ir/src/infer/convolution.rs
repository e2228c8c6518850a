//! Convolutions and pools: windows that slide over the dimensions after batch and channels.

use lancet_ops::DType;

use super::call::{Call, Class, Many, One};
use super::elements::value;
use crate::{Dim, IrError};

/// How windows lie along one dimension.
struct Window<'a> {
    size: &'a Dim,
    kernel: &'a Dim,
    stride: i64,
    dilation: i64,
    /// Padding before and after.
    pads: (i64, i64),
}

/// How the sizes of results follow from the padding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    Explicit,
    /// As much as makes the result `ceil(size / stride)`, or `size * stride` if transposed.
    Same,
    None,
}

/// Whether a window that is only partly inside counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Floor,
    Ceil,
}

/// `ceil(d / by)` if it is an expression of the sizes.
fn ceil_div(d: &Dim, by: i64) -> Option<Dim> {
    match d.as_fixed() {
        Some(n) => Some(Dim::fixed(
            n.div_euclid(by) + i64::from(n.rem_euclid(by) != 0),
        )),
        None => d.div_exact(&Dim::fixed(by)),
    }
}

/// Number of windows: `floor((size + pads - (dilation * (kernel - 1) + 1)) / stride) + 1`; `None` if it is no expression
/// of the sizes.
fn n_windows(w: &Window<'_>, padding: Padding, rounding: Rounding) -> Option<Dim> {
    if padding == Padding::Same {
        return ceil_div(w.size, w.stride);
    }
    let (begin, end) = match padding {
        Padding::Explicit => w.pads,
        Padding::None | Padding::Same => (0, 0),
    };
    let one = Dim::fixed(1);
    let reach = w.kernel.sub(&one)?.scale(w.dilation)?.add(&one)?;
    let padded = w.size.add(&Dim::fixed(begin.checked_add(end)?))?;
    let room = padded.sub(&reach)?;
    let Some(room) = room.as_fixed() else {
        return room.div_exact(&Dim::fixed(w.stride))?.add(&one);
    };
    let mut n = room.div_euclid(w.stride).checked_add(1)?;
    if rounding == Rounding::Ceil && room.rem_euclid(w.stride) != 0 {
        // The added window must begin inside the padded operand, the end's padding left out.
        let begins_at = n.checked_mul(w.stride)?;
        let inside = w.size.as_fixed()?.checked_add(begin)?;
        n += i64::from(begins_at < inside);
    }
    Some(Dim::fixed(n.max(0)))
}

/// List attribute `name` of `n` elements, each at least `least`, or `n` times the default.
fn list(
    call: &Call<'_>,
    name: &str,
    n: usize,
    default: i64,
    least: i64,
) -> Result<Vec<i64>, IrError> {
    let Some(found) = call.ints(name) else {
        return Ok(vec![default; n]);
    };
    if found.len() != n || found.iter().any(|&v| v < least) {
        let message = format!("expected {n} numbers of at least {least}, found {found:?}");
        return Err(call.attribute_error(name, message));
    }
    Ok(found.to_vec())
}

fn padding(call: &Call<'_>) -> Result<Padding, IrError> {
    Ok(match call.str("auto_pad") {
        "NOTSET" | "" => Padding::Explicit,
        "SAME_UPPER" | "SAME_LOWER" => Padding::Same,
        "VALID" => Padding::None,
        other => {
            let message = format!("`{other}` is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID");
            return Err(call.attribute_error("auto_pad", message));
        }
    })
}

/// Sizes of the dimensions after batch and channels.
fn spatial(
    call: &mut Call<'_>,
    sizes: &[Dim],
    kernel: &[Dim],
    rounding: Rounding,
) -> Result<Vec<Dim>, IrError> {
    let n = sizes.len();
    let strides = list(call, "strides", n, 1, 1)?;
    let dilations = list(call, "dilations", n, 1, 1)?;
    let pads = list(call, "pads", 2 * n, 0, 0)?;
    let padding = padding(call)?;
    let mut out = Vec::with_capacity(n);
    for i in 0..n {
        let window = Window {
            size: &sizes[i],
            kernel: &kernel[i],
            stride: strides[i],
            dilation: dilations[i],
            pads: (pads[i], pads[n + i]),
        };
        out.push(call.or_fresh(n_windows(&window, padding, rounding)));
    }
    Ok(out)
}

/// The shape of the convolution of operand `x` with the weight `w`.
fn conv_shape(call: &mut Call<'_>, x: usize, w: usize) -> Result<Vec<Dim>, IrError> {
    let (data, weight) = (call.shape(x)?, call.shape(w)?);
    let [batch, channels, sizes @ ..] = data else {
        return Err(call.operand_error(x, "at least 3 dimensions".to_owned()));
    };
    let (false, [outputs, inputs, kernel @ ..]) = (sizes.is_empty(), weight) else {
        return Err(call.operand_error(x, "at least 3 dimensions".to_owned()));
    };
    if kernel.len() != sizes.len() {
        return Err(call.operand_error(w, format!("{} dimensions", data.len())));
    }
    let group = call.int("group");
    let expected = inputs.scale(group);
    if group < 1
        || outputs.as_fixed().is_some_and(|n| n % group != 0)
        || expected.is_some_and(|e| e.equals(channels) == Some(false))
    {
        let message = format!("{group} groups of {channels} channels with weight {weight:?}");
        let message = if group < 1 {
            message
        } else {
            format!("expected {inputs} channels in each of {group} groups, found {channels}")
        };
        return Err(call.error(message));
    }
    expect_kernel(call, kernel)?;
    let mut shape = vec![batch.clone(), outputs.clone()];
    shape.extend(spatial(call, sizes, kernel, Rounding::Floor)?);
    Ok(shape)
}

/// That attribute `kernel_shape`, if it is there, may be the size of the weight.
fn expect_kernel(call: &Call<'_>, kernel: &[Dim]) -> Result<(), IrError> {
    let Some(stated) = call.ints("kernel_shape") else {
        return Ok(());
    };
    let differ = |(s, k): (&i64, &Dim)| k.as_fixed().is_some_and(|k| k != *s);
    if stated.len() != kernel.len() || stated.iter().zip(kernel).any(differ) {
        let message = format!("is {stated:?} for a weight of another size");
        return Err(call.attribute_error("kernel_shape", message));
    }
    Ok(())
}

/// `ConvTranspose`: `x, w, bias`.
pub(super) fn conv_transpose(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    let (data, weight) = (call.shape(0)?, call.shape(1)?);
    let [batch, channels, sizes @ ..] = data else {
        return Err(call.operand_error(0, "at least 3 dimensions".to_owned()));
    };
    let (false, [inputs, outputs, kernel @ ..]) = (sizes.is_empty(), weight) else {
        return Err(call.operand_error(0, "at least 3 dimensions".to_owned()));
    };
    if kernel.len() != sizes.len() {
        return Err(call.operand_error(1, format!("{} dimensions", data.len())));
    }
    let group = call.int("group");
    if group < 1
        || channels.as_fixed().is_some_and(|n| n % group != 0)
        || inputs.equals(channels) == Some(false)
    {
        let message = format!("{group} groups of {channels} channels with weight {weight:?}");
        return Err(call.error(message));
    }
    expect_kernel(call, kernel)?;
    let mut shape = vec![batch.clone(), call.or_fresh(outputs.scale(group))];
    let n = sizes.len();
    let strides = list(call, "strides", n, 1, 1)?;
    let dilations = list(call, "dilations", n, 1, 1)?;
    let pads = list(call, "pads", 2 * n, 0, 0)?;
    let more = list(call, "output_padding", n, 0, 0)?;
    let stated = match call.ints("output_shape") {
        Some(_) => Some(list(call, "output_shape", n, 0, 0)?),
        None => None,
    };
    let padding = padding(call)?;
    for i in 0..n {
        let natural = || {
            let reach = kernel[i].sub(&Dim::fixed(1))?.scale(dilations[i])?;
            let whole = sizes[i].sub(&Dim::fixed(1))?.scale(strides[i])?;
            let whole = whole
                .add(&reach)?
                .add(&Dim::fixed(more[i].checked_add(1)?))?;
            match padding {
                Padding::Explicit => whole.sub(&Dim::fixed(pads[i].checked_add(pads[n + i])?)),
                Padding::Same => sizes[i].scale(strides[i]),
                Padding::None => Some(whole),
            }
        };
        let size = match &stated {
            Some(stated) => Some(Dim::fixed(stated[i])),
            None => natural(),
        };
        // Less than nothing is an error of evaluation.
        let size = size.filter(|d| d.as_fixed().is_none_or(|n| 0 <= n));
        shape.push(call.or_fresh(size));
    }
    call.expect_shape(2, &shape[1..2])?;
    Ok(value(dtype, shape, None))
}

/// `Conv`: `x, w, bias`.
pub(super) fn conv(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    let shape = conv_shape(call, 0, 1)?;
    call.expect_shape(2, &shape[1..2])?;
    Ok(value(dtype, shape, None))
}

/// `ConvInteger`: `x, w, x_zero_point, w_zero_point`.
pub(super) fn conv_integer(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Byte)?;
    call.expect(1, Class::Byte)?;
    call.same_dtype([0, 2])?;
    call.same_dtype([1, 3])?;
    let shape = conv_shape(call, 0, 1)?;
    Ok(value(DType::I32, shape, None))
}

/// `QLinearConv`: `x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias`.
pub(super) fn qlinear_conv(call: &mut Call<'_>) -> One {
    for i in [0, 3, 7] {
        call.expect(i, Class::Byte)?;
    }
    call.same_dtype([0, 2])?;
    call.same_dtype([3, 5])?;
    for i in [1, 4, 6] {
        call.expect_dtype(i, DType::F32)?;
    }
    call.expect_dtype(8, DType::I32)?;
    let shape = conv_shape(call, 0, 3)?;
    call.expect_shape(8, &shape[1..2])?;
    Ok(value(call.dtype(7)?, shape, None))
}

/// `AveragePool` and `MaxPool`; the latter may also give the places of the greatest elements.
pub(super) fn pool(call: &mut Call<'_>, class: Class) -> Many {
    call.expect(0, class)?;
    let x = call.operand(0)?;
    let [batch, channels, sizes @ ..] = x.ty.shape.as_slice() else {
        return Err(call.operand_error(0, "at least 3 dimensions".to_owned()));
    };
    if sizes.is_empty() {
        return Err(call.operand_error(0, "at least 3 dimensions".to_owned()));
    }
    let kernel: Vec<Dim> = list(call, "kernel_shape", sizes.len(), 1, 1)?
        .into_iter()
        .map(Dim::fixed)
        .collect();
    let rounding = match call.flag("ceil_mode") {
        true => Rounding::Ceil,
        false => Rounding::Floor,
    };
    let mut shape = vec![batch.clone(), channels.clone()];
    shape.extend(spatial(call, sizes, &kernel, rounding)?);
    Ok(vec![
        value(x.ty.dtype, shape.clone(), None),
        value(DType::I64, shape, None),
    ])
}

/// `GlobalAveragePool` and `GlobalMaxPool`: every dimension after the channels becomes 1.
pub(super) fn global_pool(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let x = call.operand(0)?;
    if x.ty.rank() < 2 {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    }
    let mut shape = x.ty.shape.clone();
    shape[2..].fill(Dim::fixed(1));
    Ok(value(x.ty.dtype, shape, None))
}
