//! The bytes of a quad panel as rows of bytes, one for each input, for integer products that pair any two of them.
//!
//! Arguments: `[0]` x, rows of quads; `[1]` rows of quads; `[2]` y, four rows of [`length`] bytes for each.
//!
//! A row is in the order in which bytes and then words, interleaved within groups of 16, give sums of tokens in their own
//! order: byte `4 v + 16 l + t` of 128-bit group `l` is token t of the four that group `l` of vector `v` of quads holds.

use super::Tile;
use crate::kir::{Binary, Builder, Half, Piece, Program, Scale, at};

/// Bytes of a row that holds `lanes` tokens.
pub fn length(lanes: usize) -> usize {
    if lanes <= 16 { 16 } else { 32 }
}

impl Tile {
    /// The same tokens at the width at which four vectors hold the quads of a row.
    pub(super) fn of_byte_rows(self) -> Tile {
        Tile {
            vl: length(self.lanes) / 4,
            ..self
        }
    }

    /// What offsets of byte rows, in units of 16 bytes, are multiplied by.
    pub(super) fn byte_row_scale(&self) -> Scale {
        match self.vl {
            4 => Scale::X1,
            _ => Scale::X2,
        }
    }
}

pub(super) fn program(name: String, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let (x, n, y) = (b.arg(0), b.arg(1), b.arg(2));
    let (mut rows, mut spare) = (b.vectors(4), b.vector());
    let n_vectors = tile.lanes / tile.vl;
    b.repeat(n, |b| {
        for (v, &quads) in rows.iter().enumerate() {
            // Tokens beyond the lanes are made of some that exist, and nothing reads them.
            let v = v.min(n_vectors - 1) as i32;
            b.load(quads, at(x, v * b.vector_bytes()));
        }
        // A round moves the highest bit of a byte's place into the number of its vector, and a bit of that to the end of its place:
        // from `v1 v0 | t1 t0 i1 i0` to `i1 i0 | v1 v0 t1 t0`.
        for (step, firsts) in [(2, [0, 1]), (1, [0, 2])].into_iter().cycle().take(4) {
            for first in firsts {
                let (low, high) = (rows[first], rows[first + step]);
                let interleave = |half| Binary::Interleave(Piece::Byte, half);
                b.binary(interleave(Half::Low), spare, low, high);
                b.binary(interleave(Half::High), high, low, high);
                std::mem::swap(&mut rows[first], &mut spare);
            }
        }
        for (input, &row) in rows.iter().enumerate() {
            b.store(at(y, input as i32 * b.vector_bytes()), row);
        }
        b.add_imm(x, tile.row_bytes());
        b.add_imm(y, 4 * b.vector_bytes());
    });
    b.finish()
}
