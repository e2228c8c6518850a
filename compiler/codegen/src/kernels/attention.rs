//! The inner kernels of attention whose scores are changed in between, over tiles of 16 queries; where they are not,
//! [`attention_tile`](super::attention_tile) does all at once.
//!
//! Queries are lanes. Both products are `C[i][t] = sum_k A(i, k) B[k][t]` with other strides of A, so one kernel does both;
//! softmax in between runs over keys, vertically.

use super::math;
use crate::kir::{Builder, Program, Scale, Vector, at};

/// Queries of a tile.
pub const QUERIES: usize = 16;

/// Rows of `C` that [`product_program`] computes at once; `A` must be readable up to a multiple of this.
pub const ROWS: usize = 6;

/// `C[i][t] = sum_k A(i, k) B[k][t]` for 16 columns t and a multiple of 6 rows i.
///
/// Arguments: `[0]` A; `[1]` B; `[2]` C; `[3]` k; `[4]` bytes between rows of A; `[5]` bytes between steps of A; `[6]` bytes
/// between steps of B; `[7]` tiles of 6 rows. Rows of C are 64 bytes.
pub(super) fn product_program(name: String, vl: usize) -> Program {
    let mut b = Builder::new(name, vl);
    let columns = QUERIES / vl;
    let rows = if vl == 4 { 2 } else { ROWS };
    let a_row = b.arg(4);
    let (a_step, b_step) = (b.arg(5), b.arg(6));
    let (p, p3, q, count) = (b.scalar(), b.scalar(), b.scalar(), b.scalar());
    let (a, c) = (b.arg(0), b.arg(2));
    let (bb, k, tiles) = (b.arg(1), b.arg(3), b.arg(7));
    if rows < ROWS {
        b.mul_imm(tiles, (ROWS / rows) as i32);
    }
    b.repeat(tiles, |b| {
        let acc = b.vectors(rows * columns);
        for &v in &acc {
            b.zero(v);
        }
        b.mov(p, a);
        b.lea(p3, at(a, 0).index(a_row, Scale::X2));
        b.add_scalar(p3, a_row);
        b.mov(q, bb);
        b.mov(count, k);
        b.repeat(count, |b| {
            let x: Vec<Vector> = (0..columns)
                .map(|j| {
                    let x = b.vector();
                    b.load(x, at(q, j as i32 * b.vector_bytes()));
                    x
                })
                .collect();
            for i in 0..rows {
                let base = if i < 3 { p } else { p3 };
                let addr = match i % 3 {
                    0 => at(base, 0),
                    1 => at(base, 0).index(a_row, Scale::X1),
                    _ => at(base, 0).index(a_row, Scale::X2),
                };
                let w = b.vector();
                b.broadcast(w, addr);
                for (j, &x) in x.iter().enumerate() {
                    b.fma(acc[i * columns + j], w, x);
                }
                b.free_vector(w);
            }
            b.free_vectors(&x);
            b.add_scalar(p, a_step);
            if rows > 3 {
                b.add_scalar(p3, a_step);
            }
            b.add_scalar(q, b_step);
        });
        for i in 0..rows {
            for j in 0..columns {
                b.store(
                    at(c, (i * QUERIES * 4) as i32 + j as i32 * b.vector_bytes()),
                    acc[i * columns + j],
                );
            }
        }
        b.free_vectors(&acc);
        b.add_imm(c, (rows * QUERIES * 4) as i32);
        // The next tile's first row.
        for _ in 0..rows {
            b.add_scalar(a, a_row);
        }
    });
    b.finish()
}

/// `S[key][t] = exp(scale S[key][t] + bias[key] - max)` in place, and `sum[t] = 1 / sum over keys`.
///
/// Arguments: `[0]` S, rows of 64 bytes; `[1]` keys, at least 1; `[2]` bias, a float for each key; `[3]` one float: scale;
/// `[4]` where the 16 reciprocal sums go.
pub(super) fn softmax_program(name: String, vl: usize) -> Program {
    let mut b = Builder::new(name, vl);
    let (s, keys, bias) = (b.arg(0), b.arg(1), b.arg(2));
    let (params, sums) = (b.arg(3), b.arg(4));
    let (p, q, count) = (b.scalar(), b.scalar(), b.scalar());
    let scale = b.vector();
    b.broadcast(scale, at(params, 0));
    // Two vectors of queries at once: the latency of one hides behind the other.
    let columns = QUERIES / vl;
    for first in (0..columns).step_by(2) {
        let at_column = |j: usize| ((first + j) * vl * 4) as i32;
        let n = (columns - first).min(2);
        let (max, sum) = (b.vectors(n), b.vectors(n));
        for &max in &max {
            b.constant(max, f32::NEG_INFINITY);
        }
        b.mov(p, s);
        b.mov(q, bias);
        b.mov(count, keys);
        b.repeat(count, |b| {
            let c = b.vector();
            b.broadcast(c, at(q, 0));
            for (j, &max) in max.iter().enumerate() {
                let x = b.vector();
                b.copy(x, c);
                b.fma(x, scale, at(p, at_column(j)));
                b.store(at(p, at_column(j)), x);
                b.max(max, max, x);
                b.free_vector(x);
            }
            b.free_vector(c);
            b.add_imm(p, (QUERIES * 4) as i32);
            b.add_imm(q, 4);
        });
        for &sum in &sum {
            b.zero(sum);
        }
        b.mov(p, s);
        b.mov(count, keys);
        b.repeat(count, |b| {
            for (j, (&max, &sum)) in max.iter().zip(&sum).enumerate() {
                let x = b.vector();
                b.load(x, at(p, at_column(j)));
                b.sub(x, x, max);
                math::exp_below_zero(b, x);
                b.store(at(p, at_column(j)), x);
                b.add(sum, sum, x);
                b.free_vector(x);
            }
            b.add_imm(p, (QUERIES * 4) as i32);
        });
        for (j, (&max, &sum)) in max.iter().zip(&sum).enumerate() {
            b.constant(max, 1.0);
            b.div(max, max, sum);
            b.store(at(sums, at_column(j)), max);
        }
        b.free_vectors(&max);
        b.free_vectors(&sum);
    }
    b.finish()
}
