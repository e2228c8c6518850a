//! An elementwise function of two arguments over rows of one panel: `y = f(x, z)`.
//!
//! Arguments: `[0]` x; `[1]` z, rows of a panel, or one float for each row; `[2]` rows; `[3]` y, which may be x or z.

use lancet_artifact::{Binary, Right};

use super::Tile;
use crate::kir::{Builder, Program, at};

pub(super) fn program(name: String, op: Binary, right: Right, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let (x, z, rows, y) = (b.arg(0), b.arg(1), b.arg(2), b.arg(3));
    let stride = tile.row_bytes();
    b.repeat(rows, |b| {
        let (v, w) = (b.vector(), b.vector());
        if right == Right::Features {
            b.broadcast(w, at(z, 0));
        }
        for i in 0..tile.lanes / tile.vl {
            let offset = i as i32 * b.vector_bytes();
            b.load(v, at(x, offset));
            if right == Right::Panels {
                b.load(w, at(z, offset));
            }
            match op {
                Binary::Add => b.add(v, v, w),
                Binary::Sub => b.sub(v, v, w),
                Binary::Mul => b.mul(v, v, w),
                Binary::Div => b.div(v, v, w),
            }
            b.store(at(y, offset), v);
        }
        b.free_vectors(&[v, w]);
        b.add_imm(x, stride);
        b.add_imm(y, stride);
        b.add_imm(
            z,
            match right {
                Right::Panels => stride,
                Right::Features => 4,
            },
        );
    });
    b.finish()
}
