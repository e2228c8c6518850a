//! Attention of a tile of 16 queries in one kernel.
//!
//! Queries are lanes. It computes all of `scores[key][query] = sum_d K[d][key] Q[d][query]`, softmax over keys and
//! `context[d][query] = sum_key V[d][key] P[key][query]`, with keys and values in panels of 32, and rounds in between where
//! quantized models do.

use super::attention::QUERIES;
use super::math;
use crate::kir::{Addr, Builder, Program, Scalar, Scale, Vector, Width, at};

/// Keys of a panel that [`program`] reads.
pub const KEYS: usize = 32;

/// Bytes of a row of a panel of keys or values.
const PANEL_ROW: i32 = KEYS as i32 * 4;

/// Bytes of a row of a tile.
const TILE_ROW: i32 = QUERIES as i32 * 4;

/// Numbers of rows that [`program`] computes at once, in this order.
pub const HEIGHTS: [usize; 3] = [6, 4, 1];

/// How often each of [`HEIGHTS`] is used for `n` rows: as few times as possible, and 1 seldom.
pub fn heights(n: usize) -> [usize; 3] {
    let fours = (0..3).find(|f| n >= 4 * f && (n - 4 * f).is_multiple_of(6));
    match fours {
        Some(fours) => [(n - 4 * fours) / 6, fours, 0],
        None => [n / 6, n % 6 / 4, n % 6 % 4],
    }
}

/// The context of 16 queries: `out[i][t] = sum_key V[i][key] P[key][t]` where `P[key][t]` is the softmax over keys of
/// `scale sum_j K[j][key] Q[j][t] + mask[key]`, both to the base of 2.
///
/// Arguments: `[0]` K and `[1]` V, rows of 32 keys, at the first panel; `[2]` and `[3]` bytes between their panels; `[4]` Q;
/// `[5]` bytes between rows of Q; `[6]` where scores go, `[ceil(keys / 32)][32][16]`; `[7]` the mask, a float for each key,
/// and -inf up to a multiple of 32; `[8]` out; `[9]` bytes between rows of out; `[10]` rows of K and Q; `[11]` full panels of
/// keys; `[12]` keys beyond them; `[13]` groups of four of these, rounded up; `[14]` to `[16]` how often each of [`HEIGHTS`]
/// goes into the rows of V; `[17]` [`PARAMETERS`] floats; `[18]` 48 floats of memory.
///
/// The parameters are the scale; scale, least and greatest number of the rounding of products; the same of scores, and what
/// rounded scores are multiplied by; the same three of probabilities. Of those that are not in `rounds` nothing is read. Where
/// scores are rounded, the scale and the mask are not to the base of 2, and what rounded scores are multiplied by is.
pub(super) fn program(name: String, vl: usize, rounds: [bool; 3]) -> Program {
    let mut b = Builder::new(name, vl);
    let state = b.arg(18);
    let [products, masked, probabilities] = rounds;
    if products || masked {
        scores(&mut b, state, Finish::No);
        round_scores(&mut b, state, products, masked);
    } else {
        scores(&mut b, state, Finish::ScaleAndMask);
    }
    exponentials(&mut b, state, probabilities);
    context(&mut b, state);
    b.finish()
}

/// Floats that [`program`] takes.
pub const PARAMETERS: usize = 11;

/// Where the parameters of a rounding begin, in the order of `rounds`.
const ROUNDINGS: [i32; 3] = [1, 4, 8];

/// Where the factor of rounded scores is.
const ROUNDED_SCALE: i32 = 7;

/// A number for all lanes of a rounding: `clip(round(x / scale), least, greatest)`.
struct Rounding {
    scale: Vector,
    least: Vector,
    greatest: Vector,
}

impl Rounding {
    fn load(b: &mut Builder, parameters: Scalar, first: i32) -> Rounding {
        let [scale, least, greatest] = [0, 1, 2].map(|i| {
            let v = b.vector();
            b.broadcast(v, at(parameters, (first + i) * 4));
            v
        });
        Rounding {
            scale,
            least,
            greatest,
        }
    }

    /// Clipping to whole numbers commutes with rounding, and of numbers this small the sum has no bits for a fraction.
    fn apply(&self, b: &mut Builder, x: Vector) {
        const MAGIC: f32 = 12_582_912.0;
        b.div(x, x, self.scale);
        b.max(x, self.least, x);
        b.min(x, self.greatest, x);
        b.add(x, x, MAGIC);
        b.sub(x, x, MAGIC);
    }

    fn free(&self, b: &mut Builder) {
        b.free_vectors(&[self.scale, self.least, self.greatest]);
    }
}

/// What is done to products as they are stored.
#[derive(Clone, Copy, PartialEq)]
enum Finish {
    No,
    ScaleAndMask,
}

/// Rows that are computed at once where a tile is to have `height` of them, and how often.
fn split(height: usize, vl: usize) -> (usize, i32) {
    if vl == 4 && height > 2 {
        (2, height as i32 / 2)
    } else {
        (height, 1)
    }
}

/// Products of keys and queries; if they are finished, scaled and with the mask added, with their maxima in `state[0]`, and
/// `state[2]` is the scale.
fn scores(b: &mut Builder, state: Scalar, finish: Finish) {
    let columns = QUERIES / b.vl();
    let column = |b: &Builder, j: usize| j as i32 * b.vector_bytes();
    if finish == Finish::ScaleAndMask {
        let v = b.vector();
        let params = b.arg(17);
        b.broadcast(v, at(params, 0));
        b.free_scalar(params);
        b.store(at(state, 2 * TILE_ROW), v);
        b.constant(v, f32::NEG_INFINITY);
        for j in 0..columns {
            b.store(at(state, column(b, j)), v);
        }
        b.free_vector(v);
    }
    let regs = Scores {
        state,
        finish,
        k: b.arg(0),
        q: b.arg(4),
        q_row: b.arg(5),
        s: b.arg(6),
        mask: b.arg(7),
        p: b.scalar(),
        even: b.scalar(),
        odd: b.scalar(),
        count: b.scalar(),
        tiles: b.scalar(),
        d4: b.slot(),
        d1: b.slot(),
    };
    b.load_scalar(regs.count, Width::B64, at(b.args(), 10 * 8));
    b.mov(regs.d1, regs.count);
    b.and_imm(regs.d1, 3);
    b.shr_imm(regs.count, 2);
    b.mov(regs.d4, regs.count);
    let (full, jump) = (b.slot(), b.slot());
    b.load_scalar(full, Width::B64, at(b.args(), 11 * 8));
    b.load_scalar(jump, Width::B64, at(b.args(), 2 * 8));
    b.add_imm(jump, -PANEL_ROW);
    b.repeat(full, |b| {
        let [sixes, fours, _] = heights(KEYS);
        for (height, n) in [(HEIGHTS[0], sixes), (HEIGHTS[1], fours)] {
            let (rows, parts) = split(height, b.vl());
            b.imm(regs.tiles, n as i64 * i64::from(parts));
            b.repeat(regs.tiles, |b| regs.tile(b, rows));
        }
        b.add_scalar(regs.k, jump);
    });
    let (rows, parts) = split(HEIGHTS[1], b.vl());
    b.load_scalar(regs.tiles, Width::B64, at(b.args(), 13 * 8));
    b.mul_imm(regs.tiles, parts);
    b.repeat(regs.tiles, |b| regs.tile(b, rows));
    b.free_scalars(&[full, jump]);
    regs.free(b);
}

/// Scalars of [`scores`].
struct Scores {
    state: Scalar,
    finish: Finish,
    /// The tile's first key, in the first row.
    k: Scalar,
    q: Scalar,
    q_row: Scalar,
    /// Where the tile's scores go.
    s: Scalar,
    mask: Scalar,
    p: Scalar,
    /// Rows of Q that are next: the first two, and the two after them.
    even: Scalar,
    odd: Scalar,
    count: Scalar,
    tiles: Scalar,
    /// Rows of K and Q, a quarter, and what is left.
    d4: Scalar,
    d1: Scalar,
}

impl Scores {
    /// The scores of `rows` keys.
    fn tile(&self, b: &mut Builder, rows: usize) {
        let columns = QUERIES / b.vl();
        let column = |b: &Builder, j: usize| j as i32 * b.vector_bytes();
        let acc = b.vectors(rows * columns);
        for &v in &acc {
            b.zero(v);
        }
        b.mov(self.p, self.k);
        b.mov(self.even, self.q);
        let step = |b: &mut Builder, row: i32, q: Addr| {
            let x = b.vectors(columns);
            for (j, &x) in x.iter().enumerate() {
                b.load(x, q.plus(column(b, j)));
            }
            let w = b.vector();
            for (i, acc) in acc.chunks(columns).enumerate() {
                b.broadcast(w, at(self.p, row * PANEL_ROW + i as i32 * 4));
                for (&acc, &x) in acc.iter().zip(&x) {
                    b.fma(acc, w, x);
                }
            }
            b.free_vector(w);
            b.free_vectors(&x);
        };
        b.mov(self.count, self.d4);
        b.repeat(self.count, |b| {
            b.lea(self.odd, at(self.even, 0).index(self.q_row, Scale::X2));
            step(b, 0, at(self.even, 0));
            step(b, 1, at(self.even, 0).index(self.q_row, Scale::X1));
            step(b, 2, at(self.odd, 0));
            step(b, 3, at(self.odd, 0).index(self.q_row, Scale::X1));
            b.lea(self.even, at(self.odd, 0).index(self.q_row, Scale::X2));
            b.add_imm(self.p, 4 * PANEL_ROW);
        });
        b.mov(self.count, self.d1);
        b.repeat(self.count, |b| {
            step(b, 0, at(self.even, 0));
            b.add_scalar(self.even, self.q_row);
            b.add_imm(self.p, PANEL_ROW);
        });
        match self.finish {
            Finish::No => {
                for (i, acc) in acc.chunks(columns).enumerate() {
                    for (j, &acc) in acc.iter().enumerate() {
                        b.store(at(self.s, i as i32 * TILE_ROW + column(b, j)), acc);
                    }
                }
            }
            Finish::ScaleAndMask => self.scale_and_mask(b, &acc),
        }
        b.free_vectors(&acc);
        b.add_imm(self.k, rows as i32 * 4);
        b.add_imm(self.mask, rows as i32 * 4);
        b.add_imm(self.s, rows as i32 * TILE_ROW);
    }

    /// Scales products, adds the mask, stores them and finds the greatest.
    fn scale_and_mask(&self, b: &mut Builder, acc: &[Vector]) {
        let columns = QUERIES / b.vl();
        let column = |b: &Builder, j: usize| j as i32 * b.vector_bytes();
        let (scale, mask) = (b.vector(), b.vector());
        let max = b.vectors(columns);
        b.load(scale, at(self.state, 2 * TILE_ROW));
        for (j, &max) in max.iter().enumerate() {
            b.load(max, at(self.state, column(b, j)));
        }
        for (i, acc) in acc.chunks(columns).enumerate() {
            b.broadcast(mask, at(self.mask, i as i32 * 4));
            for (j, (&acc, &max)) in acc.iter().zip(&max).enumerate() {
                b.mul_add(acc, scale, mask);
                b.store(at(self.s, i as i32 * TILE_ROW + column(b, j)), acc);
                b.max(max, acc, max);
            }
        }
        for (j, &max) in max.iter().enumerate() {
            b.store(at(self.state, column(b, j)), max);
        }
        b.free_vectors(&[scale, mask]);
        b.free_vectors(&max);
    }

    fn free(&self, b: &mut Builder) {
        b.free_scalars(&[self.k, self.q, self.q_row, self.s, self.mask, self.p]);
        b.free_scalars(&[self.even, self.odd, self.count, self.tiles]);
        b.free_scalars(&[self.d4, self.d1]);
    }
}

/// Rounds products if `products`, scales them, adds the mask, rounds that if `masked`, and finds the maxima for `state[0]`.
fn round_scores(b: &mut Builder, state: Scalar, products: bool, masked: bool) {
    let columns = QUERIES / b.vl();
    let all = n_keys(b);
    let (s, mask, keys) = (b.scalar(), b.scalar(), b.scalar());
    let parameters = b.arg(17);
    let scale = b.vector();
    b.broadcast(scale, at(parameters, 0));
    let product = products.then(|| Rounding::load(b, parameters, ROUNDINGS[0]));
    let score = masked.then(|| {
        let factor = b.vector();
        b.broadcast(factor, at(parameters, ROUNDED_SCALE * 4));
        (Rounding::load(b, parameters, ROUNDINGS[1]), factor)
    });
    b.free_scalar(parameters);
    for first in (0..columns).step_by(2) {
        let n = (columns - first).min(2);
        let column = |b: &Builder, j: usize| (first + j) as i32 * b.vector_bytes();
        let max = b.vectors(n);
        for &max in &max {
            b.constant(max, f32::NEG_INFINITY);
        }
        b.load_scalar(s, Width::B64, at(b.args(), 6 * 8));
        b.load_scalar(mask, Width::B64, at(b.args(), 7 * 8));
        b.mov(keys, all);
        b.repeat(keys, |b| {
            let added = b.vector();
            b.broadcast(added, at(mask, 0));
            for (j, &max) in max.iter().enumerate() {
                let x = b.vector();
                b.load(x, at(s, column(b, j)));
                if let Some(rounding) = &product {
                    rounding.apply(b, x);
                }
                b.mul_add(x, scale, added);
                if let Some((rounding, factor)) = &score {
                    rounding.apply(b, x);
                    b.mul(x, x, *factor);
                }
                b.store(at(s, column(b, j)), x);
                b.max(max, x, max);
                b.free_vector(x);
            }
            b.free_vector(added);
            b.add_imm(s, TILE_ROW);
            b.add_imm(mask, 4);
        });
        for (j, &max) in max.iter().enumerate() {
            b.store(at(state, column(b, j)), max);
        }
        b.free_vectors(&max);
    }
    if let Some(rounding) = product {
        rounding.free(b);
    }
    if let Some((rounding, factor)) = score {
        rounding.free(b);
        b.free_vector(factor);
    }
    b.free_vector(scale);
    b.free_scalars(&[all, s, mask, keys]);
}

/// The number of keys.
fn n_keys(b: &mut Builder) -> Scalar {
    let (keys, rest) = (b.scalar(), b.scalar());
    b.load_scalar(keys, Width::B64, at(b.args(), 11 * 8));
    b.shl_imm(keys, 5);
    b.load_scalar(rest, Width::B64, at(b.args(), 12 * 8));
    b.add_scalar(rest, keys);
    b.free_scalar(keys);
    rest
}

/// `S = 2^(S - max)` for all keys, and the reciprocal of their sum in `state[1]`; or, if probabilities are rounded, these and 1.
fn exponentials(b: &mut Builder, state: Scalar, round: bool) {
    let columns = QUERIES / b.vl();
    let rest = n_keys(b);
    let (s, keys) = (b.scalar(), b.scalar());
    let parameters = round.then(|| b.arg(17));
    // Two vectors of queries at once: the latency of one hides behind the other.
    for first in (0..columns).step_by(2) {
        let n = (columns - first).min(2);
        let column = |b: &Builder, j: usize| (first + j) as i32 * b.vector_bytes();
        let (max, sum) = (b.vectors(n), b.vectors(n));
        for (j, (&max, &sum)) in max.iter().zip(&sum).enumerate() {
            b.load(max, at(state, column(b, j)));
            b.zero(sum);
        }
        b.load_scalar(s, Width::B64, at(b.args(), 6 * 8));
        b.mov(keys, rest);
        b.repeat(keys, |b| {
            let x = b.vectors(n);
            for (j, (&max, &x)) in max.iter().zip(&x).enumerate() {
                b.load(x, at(s, column(b, j)));
                b.sub(x, x, max);
                math::exp2_below_zero(b, x);
            }
            for (j, (&sum, &x)) in sum.iter().zip(&x).enumerate() {
                b.store(at(s, column(b, j)), x);
                b.add(sum, sum, x);
            }
            b.free_vectors(&x);
            b.add_imm(s, TILE_ROW);
        });
        for (j, (&max, &sum)) in max.iter().zip(&sum).enumerate() {
            b.constant(max, 1.0);
            b.div(max, max, sum);
            if round {
                b.constant(sum, 1.0);
                b.store(at(state, TILE_ROW + column(b, j)), sum);
            } else {
                b.store(at(state, TILE_ROW + column(b, j)), max);
            }
        }
        b.free_vectors(&sum);
        if let Some(parameters) = parameters {
            let rounding = Rounding::load(b, parameters, ROUNDINGS[2]);
            b.load_scalar(s, Width::B64, at(b.args(), 6 * 8));
            b.mov(keys, rest);
            b.repeat(keys, |b| {
                let x = b.vectors(n);
                for (j, (&x, &reciprocal)) in x.iter().zip(&max).enumerate() {
                    b.load(x, at(s, column(b, j)));
                    b.mul(x, x, reciprocal);
                    rounding.apply(b, x);
                    b.store(at(s, column(b, j)), x);
                }
                b.free_vectors(&x);
                b.add_imm(s, TILE_ROW);
            });
            rounding.free(b);
        }
        b.free_vectors(&max);
    }
    if let Some(parameters) = parameters {
        b.free_scalar(parameters);
    }
    b.free_scalars(&[s, keys, rest]);
}

/// The product with the values, times `state[1]`.
fn context(b: &mut Builder, state: Scalar) {
    let regs = Context {
        state,
        v: b.arg(1),
        out: b.arg(8),
        out_row: b.arg(9),
        p: b.scalar(),
        s: b.scalar(),
        count: b.scalar(),
        panels: b.scalar(),
        jump: b.scalar(),
        scores: b.slot(),
        full: b.slot(),
        rest: b.slot(),
    };
    for (slot, i) in [
        (regs.jump, 3),
        (regs.scores, 6),
        (regs.full, 11),
        (regs.rest, 12),
    ] {
        b.load_scalar(slot, Width::B64, at(b.args(), i * 8));
    }
    b.add_imm(regs.jump, -PANEL_ROW);
    let tiles = b.slot();
    for (i, height) in HEIGHTS.into_iter().enumerate() {
        let (rows, parts) = split(height, b.vl());
        b.load_scalar(tiles, Width::B64, at(b.args(), (14 + i as i32) * 8));
        b.mul_imm(tiles, parts);
        b.repeat(tiles, |b| regs.tile(b, rows));
    }
}

/// Scalars of [`context`].
struct Context {
    state: Scalar,
    /// The tile's first row of V.
    v: Scalar,
    /// The tile's first row of the result.
    out: Scalar,
    out_row: Scalar,
    p: Scalar,
    s: Scalar,
    count: Scalar,
    panels: Scalar,
    /// From the end of a row of a panel to the same row of the next panel.
    jump: Scalar,
    scores: Scalar,
    full: Scalar,
    rest: Scalar,
}

impl Context {
    /// Keys that the inner loop takes at once.
    const UNROLL: usize = 8;

    /// `rows` rows of the result.
    fn tile(&self, b: &mut Builder, rows: usize) {
        let columns = QUERIES / b.vl();
        let column = |b: &Builder, j: usize| j as i32 * b.vector_bytes();
        let acc = b.vectors(rows * columns);
        for &v in &acc {
            b.zero(v);
        }
        b.mov(self.p, self.v);
        b.mov(self.s, self.scores);
        let step = |b: &mut Builder, key: i32| {
            let x = b.vectors(columns);
            for (j, &x) in x.iter().enumerate() {
                b.load(x, at(self.s, key * TILE_ROW + column(b, j)));
            }
            let w = b.vector();
            for (i, acc) in acc.chunks(columns).enumerate() {
                b.broadcast(w, at(self.p, i as i32 * PANEL_ROW + key * 4));
                for (&acc, &x) in acc.iter().zip(&x) {
                    b.fma(acc, w, x);
                }
            }
            b.free_vector(w);
            b.free_vectors(&x);
        };
        b.mov(self.panels, self.full);
        b.repeat(self.panels, |b| {
            b.imm(self.count, (KEYS / Self::UNROLL) as i64);
            b.repeat(self.count, |b| {
                for key in 0..Self::UNROLL {
                    step(b, key as i32);
                }
                b.add_imm(self.p, Self::UNROLL as i32 * 4);
                b.add_imm(self.s, Self::UNROLL as i32 * TILE_ROW);
            });
            b.add_scalar(self.p, self.jump);
        });
        b.mov(self.count, self.rest);
        b.repeat(self.count, |b| {
            step(b, 0);
            b.add_imm(self.p, 4);
            b.add_imm(self.s, TILE_ROW);
        });
        let sums = b.vectors(columns);
        for (j, &sum) in sums.iter().enumerate() {
            b.load(sum, at(self.state, TILE_ROW + column(b, j)));
        }
        for acc in acc.chunks(columns) {
            for (j, (&acc, &sum)) in acc.iter().zip(&sums).enumerate() {
                b.mul(acc, acc, sum);
                b.store(at(self.out, column(b, j)), acc);
            }
            b.add_scalar(self.out, self.out_row);
        }
        b.free_vectors(&sums);
        b.free_vectors(&acc);
        b.add_imm(self.v, rows as i32 * PANEL_ROW);
    }
}
