//! The tail of a linear layer over rows of one panel: `y = activation(y) + residual`, in place.
//!
//! Arguments: `[0]` y, first row; `[1]` residual, same row of its panel (unused without one); `[2]` rows.

use super::{Tile, math};
use crate::kir::{Builder, Program, at};
use lancet_artifact::Activation;

pub(super) fn program(
    name: String,
    activation: Activation,
    residual: bool,
    tile: &Tile,
) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let (y, r, rows) = (b.arg(0), b.arg(1), b.arg(2));
    let stride = tile.row_bytes();
    b.repeat(rows, |b| {
        for v in 0..tile.lanes / tile.vl {
            let offset = v as i32 * b.vector_bytes();
            let x = b.vector();
            b.load(x, at(y, offset));
            math::activation(b, activation, x);
            if residual {
                b.add(x, x, at(r, offset));
            }
            b.store(at(y, offset), x);
            b.free_vector(x);
        }
        b.add_imm(y, stride);
        if residual {
            b.add_imm(r, stride);
        }
    });
    b.finish()
}
