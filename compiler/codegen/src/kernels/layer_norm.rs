//! Norms over the features of one panel, vertically: `y = (x - mean) / sqrt(var + epsilon) * gamma + beta`, and the
//! root-mean-square norm, whose mean is taken to be zero.
//!
//! Every token is a lane, so there is no horizontal sum. Two passes find mean and variance (the variance from centred
//! values, so nothing cancels), a third writes. Each takes up to four vectors of a row at once, so that whole cache lines are read;
//! sums run in interleaved parts for accuracy and latency.
//!
//! Arguments: `[0]` x; `[1]` y; `[2]` gamma, k floats; `[3]` beta, k floats; `[4]` features k; `[5]` two floats: 1 / k and
//! epsilon. x and y may be the same.

use super::{Chunk, Tile};
use crate::kir::{Addr, Builder, Program, Scalar, Unary, Vector, at};

/// Vectors of a row that are computed together.
const VECTORS: usize = 4;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Norm {
    Layer,
    RootMeanSquare,
}

pub(super) fn program(name: String, norm: Norm, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let (x, y, gamma, beta) = (b.arg(0), b.arg(1), b.arg(2), b.arg(3));
    let (k, params) = (b.arg(4), b.arg(5));
    let kernel = Kernel {
        stride: tile.row_bytes(),
        x,
        k,
        params,
        quads: b.scalar(),
        rest: b.scalar(),
        p: b.scalar(),
    };
    let (p, rest, stride) = (kernel.p, kernel.rest, kernel.stride);
    let (q, g, h) = (b.scalar(), b.scalar(), b.scalar());
    for chunk in tile.chunks(VECTORS) {
        let mean = match norm {
            Norm::Layer => kernel.average(&mut b, chunk, |b, part, _, x| b.add(part, part, x)),
            Norm::RootMeanSquare => {
                let mean = b.vectors(chunk.n_vectors);
                mean.iter().for_each(|&v| b.zero(v));
                mean
            }
        };
        let rstd = kernel.average(&mut b, chunk, |b, part, j, x| {
            let d = b.vector();
            b.sub(d, mean[j], x);
            b.fma(part, d, d);
            b.free_vector(d);
        });
        let (one, epsilon) = (b.vector(), b.vector());
        b.constant(one, 1.0);
        b.broadcast(epsilon, at(params, 4));
        for &rstd in &rstd {
            b.add(rstd, rstd, epsilon);
            b.unary(Unary::Sqrt, rstd, rstd);
            b.div(rstd, one, rstd);
        }
        b.free_vectors(&[one, epsilon]);

        b.lea(p, at(x, chunk.bytes));
        b.lea(q, at(y, chunk.bytes));
        b.mov(g, gamma);
        b.mov(h, beta);
        b.mov(rest, k);
        let [scale, shift, d, w] = [(); 4].map(|()| b.vector());
        b.repeat(rest, |b| {
            b.broadcast(scale, at(g, 0));
            b.broadcast(shift, at(h, 0));
            for (j, (&mean, &rstd)) in mean.iter().zip(&rstd).enumerate() {
                let column = j as i32 * b.vector_bytes();
                b.load(d, at(p, column));
                b.sub(d, d, mean);
                b.mul(w, scale, rstd);
                b.mul_add(d, w, shift);
                b.store(at(q, column), d);
            }
            b.add_imm(p, stride);
            b.add_imm(q, stride);
            b.add_imm(g, 4);
            b.add_imm(h, 4);
        });
        b.free_vectors(&[scale, shift, d, w]);
        b.free_vectors(&mean);
        b.free_vectors(&rstd);
    }
    b.finish()
}

struct Kernel {
    stride: i32,
    x: Scalar,
    k: Scalar,
    params: Scalar,
    quads: Scalar,
    rest: Scalar,
    p: Scalar,
}

impl Kernel {
    /// The mean over k rows of what `term` adds to a part, for each vector j of a row.
    fn average(
        &self,
        b: &mut Builder,
        chunk: Chunk,
        term: impl Fn(&mut Builder, Vector, usize, Addr),
    ) -> Vec<Vector> {
        // As many as there are registers for.
        let n_parts = if chunk.n_vectors <= 2 { 4 } else { 2 };
        let mut parts: Vec<Vec<Vector>> =
            (0..n_parts).map(|_| b.vectors(chunk.n_vectors)).collect();
        parts.iter().flatten().for_each(|&part| b.zero(part));
        let bytes = b.vector_bytes();
        let row = |b: &mut Builder, part: usize, offset: i32| {
            for (j, &v) in parts[part].iter().enumerate() {
                term(b, v, j, at(self.p, offset + j as i32 * bytes));
            }
        };
        b.lea(self.p, at(self.x, chunk.bytes));
        b.mov(self.quads, self.k);
        b.shr_imm(self.quads, 2);
        b.repeat(self.quads, |b| {
            for i in 0..4 {
                row(b, i % n_parts, i as i32 * self.stride);
            }
            b.add_imm(self.p, 4 * self.stride);
        });
        b.mov(self.rest, self.k);
        b.and_imm(self.rest, 3);
        b.repeat(self.rest, |b| {
            row(b, 0, 0);
            b.add_imm(self.p, self.stride);
        });
        while parts.len() > 1 {
            let others = parts.split_off(parts.len() / 2);
            for (&sum, &other) in parts.iter().flatten().zip(others.iter().flatten()) {
                b.add(sum, sum, other);
            }
            others.iter().for_each(|part| b.free_vectors(part));
        }
        let sums = parts.remove(0);
        let inverse_k = b.vector();
        b.broadcast(inverse_k, at(self.params, 0));
        sums.iter().for_each(|&sum| b.mul(sum, sum, inverse_k));
        b.free_vector(inverse_k);
        sums
    }
}
