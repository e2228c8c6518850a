//! The bytes of a quad panel as rows of `f32`, for integer products in single precision.
//!
//! Arguments: `[0]` x, rows of quads; `[1]` rows of quads; `[2]` y, four rows for each.

use super::Tile;
use crate::kir::{Binary, Builder, Program, Shift, Unary, at};

pub(super) fn program(name: String, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let (x, n, y) = (b.arg(0), b.arg(1), b.arg(2));
    let (mask, quad, value) = (b.vector(), b.vector(), b.vector());
    b.constant_bits(mask, 0xff);
    let stride = tile.row_bytes();
    b.repeat(n, |b| {
        for v in 0..tile.lanes / tile.vl {
            let offset = v as i32 * b.vector_bytes();
            b.load(quad, at(x, offset));
            for row in 0..4 {
                match row {
                    0 => b.binary(Binary::And, value, quad, mask),
                    _ => b.shift(Shift::RightLogical, value, quad, 8 * row),
                }
                if (1..3).contains(&row) {
                    b.binary(Binary::And, value, value, mask);
                }
                b.unary(Unary::ToFloat, value, value);
                b.store(at(y, offset + i32::from(row) * stride), value);
            }
        }
        b.add_imm(x, stride);
        b.add_imm(y, 4 * stride);
    });
    b.finish()
}
