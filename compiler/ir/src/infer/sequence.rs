//! Recurrent layers and the discrete Fourier transform.

use super::call::{Call, Class, Many, One};
use super::elements::value;
use lancet_ops::DType;

use crate::{Dim, IrError};

/// `LSTM`, `GRU` and `RNN`, with so many gates: every state, the last state, and for `LSTM` the last cell.
///
/// Operands are `x, w, r, b, sequence_lens, initial_h`, then for `LSTM` `initial_c, p`.
pub(super) fn recurrent(call: &Call<'_>, gates: i64) -> Many {
    call.expect(0, Class::Float)?;
    call.same_dtype([0, 1, 2, 3, 5, 6, 7])?;
    states(call, gates, Orientation::RowsFirst)
}

/// `DynamicQuantizeLSTM`: operands as those of `LSTM`, with `w` and `r` of bytes and transposed, and `w_scale, w_zero_point, r_scale,
/// r_zero_point`.
pub(super) fn dynamic_quantize_lstm(call: &Call<'_>) -> Many {
    call.expect_dtype(0, DType::F32)?;
    call.same_dtype([0, 3, 5, 6, 7, 8, 10])?;
    for (weight, zero_point) in [(1, 9), (2, 11)] {
        call.expect(weight, Class::Byte)?;
        call.same_dtype([weight, zero_point])?;
    }
    states(call, 4, Orientation::ColumnsFirst)
}

/// How weights lie.
#[derive(Clone, Copy)]
enum Orientation {
    /// `[directions, gates * hidden, k]`.
    RowsFirst,
    /// `[directions, k, gates * hidden]`.
    ColumnsFirst,
}

/// Results of a recurrent layer, in the type of its first operand.
fn states(call: &Call<'_>, gates: i64, orientation: Orientation) -> Many {
    let dtype = call.dtype(0)?;
    let ([a, b, input], [_, w1, w2]) = (call.dims::<3>(0)?, call.dims::<3>(1)?);
    let w_rows = match orientation {
        Orientation::RowsFirst => w1,
        Orientation::ColumnsFirst => w2,
    };
    let directions = Dim::fixed(match call.str("direction") {
        "forward" | "reverse" => 1,
        "bidirectional" => 2,
        other => {
            let message = format!("`{other}` is none of forward, reverse, bidirectional");
            return Err(call.attribute_error("direction", message));
        }
    });
    let hidden = hidden_size(call, w_rows, gates)?;
    let rows = |n: i64| {
        let message = || call.error(format!("{n} gates of {hidden} are too many"));
        hidden.scale(n).ok_or_else(message)
    };
    let row = |d: &[&Dim]| d.iter().map(|&d| d.clone()).collect::<Vec<Dim>>();
    for (weight, k) in [(1, input), (2, &hidden)] {
        let rows = rows(gates)?;
        let shape = match orientation {
            Orientation::RowsFirst => [&directions, &rows, k],
            Orientation::ColumnsFirst => [&directions, k, &rows],
        };
        call.expect_shape(weight, &row(&shape))?;
    }
    call.expect_shape(3, &row(&[&directions, &rows(2 * gates)?]))?;
    let batch_first = call.optional_int("layout").unwrap_or(0) != 0;
    let (seq, batch) = if batch_first { (b, a) } else { (a, b) };
    call.expect(4, Class::Index)?;
    call.expect_shape(4, std::slice::from_ref(batch))?;
    let (states, last) = match batch_first {
        true => (
            row(&[batch, seq, &directions, &hidden]),
            row(&[batch, &directions, &hidden]),
        ),
        false => (
            row(&[seq, &directions, batch, &hidden]),
            row(&[&directions, batch, &hidden]),
        ),
    };
    call.expect_shape(5, &last)?;
    if gates == 4 {
        call.expect_shape(6, &last)?;
        call.expect_shape(7, &row(&[&directions, &rows(3)?]))?;
    }
    let mut results = vec![value(dtype, states, None)];
    results.resize(call.n_results, value(dtype, last, None));
    Ok(results)
}

/// The attribute, or what the rows of the weight say.
fn hidden_size(call: &Call<'_>, w_rows: &Dim, gates: i64) -> Result<Dim, IrError> {
    match call.optional_int("hidden_size") {
        Some(n) if 0 < n => Ok(Dim::fixed(n)),
        Some(n) => Err(call.attribute_error("hidden_size", format!("{n} is not positive"))),
        None => w_rows
            .div_exact(&Dim::fixed(gates))
            .ok_or_else(|| call.operand_error(1, format!("rows for {gates} gates"))),
    }
}

/// `DFT`: `x, dft_length, axis`. The last dimension holds real and imaginary parts.
pub(super) fn dft(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    call.expect(1, Class::Index)?;
    call.expect(2, Class::Index)?;
    call.expect_scalar(1)?;
    call.expect_scalar(2)?;
    let x = call.operand(0)?;
    let rank = x.ty.rank();
    if rank < 2 {
        return Err(call.operand_error(0, "at least 2 dimensions".to_owned()));
    }
    let parts = &x.ty.shape[rank - 1];
    if parts.as_fixed().is_some_and(|n| n != 1 && n != 2) {
        return Err(call.operand_error(0, "1 or 2 parts in the last dimension".to_owned()));
    }
    let (inverse, onesided) = (call.flag("inverse"), call.flag("onesided"));
    let axis = match call.optional(2) {
        None => Some(rank - 2),
        Some(_) => match call.known(2).and_then(|k| k.elements.first()?.as_fixed()) {
            Some(axis) => Some(call.normalize_axis(axis, rank)?),
            None => None,
        },
    };
    if axis == Some(rank - 1) {
        return Err(call.error("transforms along the dimension of parts".to_owned()));
    }
    let length = match (call.optional(1), axis) {
        // Half a spectrum of `m` places is that of `2 * (m - 1)` real numbers.
        (None, Some(axis)) if inverse && onesided => {
            let m = x.ty.shape[axis].sub(&Dim::fixed(1));
            m.and_then(|m| m.scale(2))
        }
        (None, Some(axis)) => Some(x.ty.shape[axis].clone()),
        (None, None) => None,
        (Some(_), _) => call.known(1).and_then(|k| k.elements.first().cloned()),
    };
    let length = match onesided && !inverse {
        true => length.and_then(|n| half(&n)?.add(&Dim::fixed(1))),
        false => length,
    };
    let mut shape = match axis {
        Some(axis) => {
            let mut shape = x.ty.shape.clone();
            shape[axis] = call.or_fresh(length);
            shape
        }
        None => call.fresh_dims(rank),
    };
    shape[rank - 1] = Dim::fixed(if onesided && inverse { 1 } else { 2 });
    Ok(value(x.ty.dtype, shape, None))
}

/// `floor(n / 2)` if it is an expression of the sizes.
fn half(n: &Dim) -> Option<Dim> {
    match n.as_fixed() {
        Some(n) => Some(Dim::fixed(n.div_euclid(2))),
        None => n.div_exact(&Dim::fixed(2)),
    }
}
