//! Dense weights times one token panel: tiles of six rows by two vectors, accumulated over k-blocks in the output.
//!
//! Arguments: row block, x panel, y at the block's first row, bias at the block's first row.

use super::{Chunk, Tile};
use crate::formats::{DENSE_ENTRY_BYTES, DENSE_TILE, HEADER_BYTES};
use crate::kir::{Builder, Program, Scalar, Vector, Width, at};

/// Steps of the inner loop that are unrolled.
const UNROLL: usize = 4;

pub(super) fn program(name: String, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let [block, x, y, bias] = [(); 4].map(|()| b.slot());
    for (i, s) in [block, x, y, bias].into_iter().enumerate() {
        b.load_scalar(s, Width::B64, at(b.args(), i as i32 * 8));
    }
    b.free_scalar(b.args());
    let mut kernel = Dense {
        tile: *tile,
        block,
        x,
        y,
        bias,
        entry: b.slot(),
        w: b.scalar(),
        xk: b.scalar(),
        xp: b.scalar(),
        wp: b.scalar(),
        yp: b.scalar(),
        bp: b.scalar(),
        n: b.scalar(),
        tiles: b.scalar(),
        k_len: b.scalar(),
    };
    let blocks = b.slot();
    b.load_scalar(blocks, Width::B32, at(block, 0));
    b.lea(kernel.entry, at(block, HEADER_BYTES as i32));
    kernel.k_block(&mut b, true);
    b.add_imm(blocks, -1);
    b.repeat(blocks, |b| kernel.k_block(b, false));
    b.finish()
}

struct Dense {
    tile: Tile,
    block: Scalar,
    x: Scalar,
    y: Scalar,
    bias: Scalar,
    entry: Scalar,
    /// Weights of the current tile.
    w: Scalar,
    /// First row of x in the k-block.
    xk: Scalar,
    xp: Scalar,
    wp: Scalar,
    yp: Scalar,
    bp: Scalar,
    n: Scalar,
    tiles: Scalar,
    k_len: Scalar,
}

impl Dense {
    fn k_block(&mut self, b: &mut Builder, first: bool) {
        b.mov(self.xk, self.x);
        b.load_scalar(self.n, Width::B32, at(self.entry, 0));
        b.lea(self.xk, at(self.xk, 0).index(self.n, self.tile.scale()));
        b.load_scalar(self.k_len, Width::B32, at(self.entry, 4));
        b.load_scalar(self.w, Width::B32, at(self.entry, 8));
        b.add_scalar(self.w, self.block);
        b.mov(self.yp, self.y);
        b.mov(self.bp, self.bias);
        for (count, rows) in [(4, DENSE_TILE), (8, 1)] {
            b.load_scalar(self.tiles, Width::B32, at(self.block, count));
            b.repeat(self.tiles, |b| {
                for chunk in self.tile.chunks(2) {
                    self.chunk(b, rows, chunk, first);
                }
                b.mov(self.w, self.wp);
                b.add_imm(self.yp, rows as i32 * self.tile.row_bytes());
                b.add_imm(self.bp, rows as i32 * 4);
            });
        }
        b.add_imm(self.entry, DENSE_ENTRY_BYTES as i32);
    }

    /// One tile of `rows` rows and the vectors of `chunk`.
    fn chunk(&self, b: &mut Builder, rows: usize, chunk: Chunk, first: bool) {
        let vectors = chunk.n_vectors;
        // Few accumulators would wait for each other: every second column has its own.
        let sets = if rows * vectors < 8 { 2 } else { 1 };
        let acc = b.vectors(sets * rows * vectors);
        let xs = b.vectors(vectors);
        let w = b.vector();
        let y_at = |r: usize, j: usize| {
            at(
                self.yp,
                r as i32 * self.tile.row_bytes() + chunk.bytes + (j * self.tile.vl * 4) as i32,
            )
        };
        for r in 0..rows {
            for j in 0..vectors {
                let dst = acc[r * vectors + j];
                match (first, j) {
                    (true, 0) => b.broadcast(dst, at(self.bp, r as i32 * 4)),
                    (true, _) => b.copy(dst, acc[r * vectors]),
                    (false, _) => b.load(dst, y_at(r, j)),
                }
            }
        }
        for &other in &acc[rows * vectors..] {
            b.zero(other);
        }
        b.mov(self.wp, self.w);
        b.mov(self.xp, self.xk);
        let step = |b: &mut Builder, u: usize| {
            let set: &[Vector] = &acc[(u % sets) * rows * vectors..][..rows * vectors];
            for (j, &x) in xs.iter().enumerate() {
                let row = u as i32 * self.tile.row_bytes();
                b.load(
                    x,
                    at(self.xp, row + chunk.bytes + (j * self.tile.vl * 4) as i32),
                );
            }
            for r in 0..rows {
                b.broadcast(w, at(self.wp, ((u * rows + r) * 4) as i32));
                for (j, &x) in xs.iter().enumerate() {
                    b.fma(set[r * vectors + j], w, x);
                }
            }
        };
        b.mov(self.n, self.k_len);
        b.shr_imm(self.n, UNROLL.trailing_zeros() as u8);
        b.repeat(self.n, |b| {
            for u in 0..UNROLL {
                step(b, u);
            }
            b.add_imm(self.wp, (UNROLL * rows * 4) as i32);
            b.add_imm(self.xp, UNROLL as i32 * self.tile.row_bytes());
        });
        b.mov(self.n, self.k_len);
        b.and_imm(self.n, UNROLL as u32 - 1);
        b.repeat(self.n, |b| {
            step(b, 0);
            b.add_imm(self.wp, rows as i32 * 4);
            b.add_imm(self.xp, self.tile.row_bytes());
        });
        for r in 0..rows {
            for j in 0..vectors {
                let dst = acc[r * vectors + j];
                if sets == 2 {
                    b.add(dst, dst, acc[(rows + r) * vectors + j]);
                }
                b.store(y_at(r, j), dst);
            }
        }
        b.free_vectors(&acc);
        b.free_vectors(&xs);
        b.free_vector(w);
    }
}
