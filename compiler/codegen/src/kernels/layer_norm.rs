//! Norms over the features of one panel, vertically: `y = (x - mean) / sqrt(var + epsilon) * gamma + beta`, and the
//! root-mean-square norm, whose mean is taken to be zero.
//!
//! Every token is a lane, so there is no horizontal sum. Two passes find mean and variance (the variance from centred
//! values, so nothing cancels), a third writes. Sums run in four interleaved parts for accuracy and latency.
//!
//! Arguments: `[0]` x; `[1]` y; `[2]` gamma, k floats; `[3]` beta, k floats; `[4]` features k; `[5]` two floats: 1 / k and
//! epsilon. x and y may be the same.

use super::Tile;
use crate::kir::{Builder, Program, Scalar, Unary, Vector, at};

/// Partial sums of one lane.
const PARTS: usize = 4;

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
    let (quads, rest) = (b.scalar(), b.scalar());
    let stride = tile.row_bytes();
    let (p, q, g, h) = (b.scalar(), b.scalar(), b.scalar(), b.scalar());
    let one = b.vector();
    b.constant(one, 1.0);
    for v in 0..tile.lanes / tile.vl {
        let column = v as i32 * b.vector_bytes();
        let (mean, rstd) = (b.vector(), b.vector());

        let sum =
            |b: &mut Builder, into: Vector, term: &dyn Fn(&mut Builder, Vector, i32, Scalar)| {
                let parts = b.vectors(PARTS);
                for &part in &parts {
                    b.zero(part);
                }
                b.lea(p, at(x, column));
                b.mov(quads, k);
                b.shr_imm(quads, 2);
                b.repeat(quads, |b| {
                    for (i, &part) in parts.iter().enumerate() {
                        term(b, part, i as i32 * stride, p);
                    }
                    b.add_imm(p, PARTS as i32 * stride);
                });
                b.mov(rest, k);
                b.and_imm(rest, 3);
                b.repeat(rest, |b| {
                    term(b, parts[0], 0, p);
                    b.add_imm(p, stride);
                });
                b.add(parts[0], parts[0], parts[1]);
                b.add(parts[2], parts[2], parts[3]);
                b.add(into, parts[0], parts[2]);
                b.free_vectors(&parts);
                let inverse_k = b.vector();
                b.broadcast(inverse_k, at(params, 0));
                b.mul(into, into, inverse_k);
                b.free_vector(inverse_k);
            };
        match norm {
            Norm::Layer => sum(&mut b, mean, &|b, part, offset, p| {
                b.add(part, part, at(p, offset))
            }),
            Norm::RootMeanSquare => b.zero(mean),
        }
        sum(&mut b, rstd, &|b, part, offset, p| {
            let d = b.vector();
            b.sub(d, mean, at(p, offset));
            b.fma(part, d, d);
            b.free_vector(d);
        });

        let epsilon = b.vector();
        b.broadcast(epsilon, at(params, 4));
        b.add(rstd, rstd, epsilon);
        b.free_vector(epsilon);
        b.unary(Unary::Sqrt, rstd, rstd);
        b.div(rstd, one, rstd);

        b.lea(p, at(x, column));
        b.lea(q, at(y, column));
        b.mov(g, gamma);
        b.mov(h, beta);
        b.mov(rest, k);
        let (d, w, c) = (b.vector(), b.vector(), b.vector());
        b.repeat(rest, |b| {
            b.load(d, at(p, 0));
            b.sub(d, d, mean);
            b.broadcast(w, at(g, 0));
            b.mul(w, w, rstd);
            b.broadcast(c, at(h, 0));
            b.fma(c, d, w);
            b.store(at(q, 0), c);
            b.add_imm(p, stride);
            b.add_imm(q, stride);
            b.add_imm(g, 4);
            b.add_imm(h, 4);
        });
        b.free_vectors(&[d, w, c, mean, rstd]);
    }
    b.finish()
}
