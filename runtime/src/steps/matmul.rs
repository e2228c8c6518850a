//! Products of computed matrices, row-major: `c[.., m, n] = a[.., m, k] · b[.., k, n]`, leading dimensions broadcast.
//!
//! A task computes some rows of one matrix. For each tile of [`QUERIES`] columns it copies the tile's part of `b` side by side,
//! so that one kernel, that of attention, multiplies rows of `a` by it.

use std::sync::Arc;

use lancet_artifact::KernelSpec;
use lancet_ops::DType;

use crate::jit::{Kernel, QUERIES, ROWS};
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::{Failure, Sizes, Workers, scratch};

/// Rows of one task: a multiple of [`ROWS`].
const BLOCK: usize = 16 * ROWS;

/// Products of two numbers within 255 whose sum is within 2^24.
const EXACT: usize = 256;

pub(crate) struct MatMul {
    inputs: [usize; 2],
    /// Zero points, if the operands are bytes.
    zeros: Option<[Option<usize>; 2]>,
    /// Whether bytes are `i8`.
    signed: [bool; 2],
    /// Sizes m, k, n of each product.
    m: usize,
    k: usize,
    n: usize,
    /// For each matrix of the result, the first elements of those of the operands.
    starts: Vec<[usize; 2]>,
    /// Matrix and first row of each task.
    tasks: Vec<[usize; 2]>,
    parts: Parts,
    product: Option<Kernel>,
}

impl MatMul {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<MatMul, String> {
        let inputs = [sizes.required(0), sizes.required(1)];
        let [a, b] = inputs.map(|v| sizes.shape(v));
        let out = sizes.shape(sizes.output());
        let mismatch = || format!("cannot multiply {a:?} by {b:?} to {out:?}");
        let ([leading_a @ .., m, k], [leading_b @ .., k_of_b, n]) = (a, b) else {
            return Err(mismatch());
        };
        let [leading @ .., m_out, n_out] = out else {
            return Err(mismatch());
        };
        let (m, k, n) = (*m, *k, *n);
        if k != *k_of_b || m != *m_out || n != *n_out {
            return Err(mismatch());
        }
        let strides = [
            broadcast_strides(leading_a, leading)?,
            broadcast_strides(leading_b, leading)?,
        ];
        let n_matrices: usize = leading.iter().product();
        let start = |matrix: usize| {
            let (mut rest, mut at) = (matrix, [0, 0]);
            for (d, &size) in leading.iter().enumerate().rev() {
                for (at, strides) in at.iter_mut().zip(&strides) {
                    *at += rest % size * strides[d];
                }
                rest /= size;
            }
            [at[0] * m * k, at[1] * k * n]
        };
        let (mut tasks, mut parts) = (Vec::new(), Vec::new());
        for matrix in 0..n_matrices {
            for row in (0..m).step_by(BLOCK) {
                let end = m.min(row + BLOCK);
                tasks.push([matrix, row]);
                parts.push((matrix * m + row) * n..(matrix * m + end) * n);
            }
        }
        let of_bytes = sizes.dtype(sizes.output()) == DType::I32;
        let needed = scratch_len(k).saturating_mul(4 * sizes.shared.pool.threads());
        let limit = sizes.shared.options.max_arena_bytes;
        if needed as u64 > limit {
            return Err(format!(
                "needs {needed} bytes of scratch memory, the limit is {limit}"
            ));
        }
        Ok(MatMul {
            inputs,
            zeros: of_bytes.then(|| [sizes.input(2), sizes.input(3)]),
            signed: inputs.map(|v| sizes.dtype(v) == DType::I8),
            m,
            k,
            n,
            starts: (0..n_matrices).map(start).collect(),
            tasks,
            parts: Parts::new(parts),
            product: sizes.kernel(KernelSpec::AttentionProduct),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.product.as_ref().map(|k| Arc::clone(k.name()))
    }

    pub(super) fn flops(&self) -> u64 {
        2 * (self.starts.len() * self.m * self.k * self.n) as u64
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        if let Some(zeros) = self.zeros {
            return self.run_integers(zeros, reads, out, workers);
        }
        let [a, b] = self.inputs.map(|v| reads.f32(v));
        let per_thread = workers.scratch;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, c| {
                let [matrix, row] = self.tasks[task];
                let [a_start, b_start] = self.starts[matrix];
                let mut floats = scratch(per_thread, thread, scratch_len(self.k));
                self.rows(&a[a_start + row * self.k..], &b[b_start..], &mut floats, c);
            })?;
        Ok(())
    }

    fn run_integers(
        &self,
        zeros: [Option<usize>; 2],
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let number = |i: usize| {
            let sign = if self.signed[i] { 0x80 } else { 0 };
            let zero = zeros[i].map_or(0, |z| reads.bytes(z)[0]);
            Bytes {
                sign,
                zero: f32::from(zero ^ sign),
            }
        };
        let [of_a, of_b] = [number(0), number(1)];
        let [a, b] = self.inputs.map(|v| reads.bytes(v));
        let per_thread = workers.scratch;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, c| {
                let [matrix, row] = self.tasks[task];
                let [a_start, b_start] = self.starts[matrix];
                let mut floats = scratch(per_thread, thread, scratch_len(self.k.min(EXACT)));
                let a = (&a[a_start + row * self.k..], &of_a);
                let c: &mut [i32] = bytemuck::cast_slice_mut(c);
                self.integer_rows(a, (&b[b_start..], &of_b), &mut floats, c);
            })?;
        Ok(())
    }

    /// The rows `c` of one matrix of integers, from those of `a` and the whole of `b`.
    fn integer_rows(
        &self,
        (a, of_a): (&[u8], &Bytes),
        (b, of_b): (&[u8], &Bytes),
        floats: &mut [f32],
        c: &mut [i32],
    ) {
        let (k, n) = (self.k, self.n);
        c.fill(0);
        if n == 0 {
            return;
        }
        let rows = c.len() / n;
        let padded = rows.next_multiple_of(ROWS);
        for block in (0..k).step_by(EXACT) {
            let len = EXACT.min(k - block);
            let (tile, rest) = floats.split_at_mut(len * QUERIES);
            let (result, rest) = rest.split_at_mut(BLOCK * QUERIES);
            let (result, whole) = (&mut result[..padded * QUERIES], &mut rest[..padded * len]);
            for (row, to) in whole.chunks_exact_mut(len).enumerate() {
                match a.get(row * k + block..row * k + block + len) {
                    Some(from) if row < rows => of_a.numbers(from, to),
                    _ => to.fill(0.0),
                }
            }
            for first in (0..n).step_by(QUERIES) {
                let width = QUERIES.min(n - first);
                let from = b[block * n..].chunks_exact(n);
                for (to, from) in tile.chunks_exact_mut(QUERIES).zip(from) {
                    of_b.numbers(&from[first..first + width], &mut to[..width]);
                    to[width..].fill(0.0);
                }
                self.multiply(whole, tile, len, rows, result);
                for (to, from) in c.chunks_exact_mut(n).zip(result.chunks_exact(QUERIES)) {
                    for (to, &from) in to[first..first + width].iter_mut().zip(from) {
                        *to = to.wrapping_add(from as i32);
                    }
                }
            }
        }
    }

    /// `rows` rows of `a`, of `k` numbers, times a tile.
    fn multiply(&self, a: &[f32], tile: &[f32], k: usize, rows: usize, result: &mut [f32]) {
        match &self.product {
            Some(kernel) => kernel.attention_product(a, [k, 1], (tile, QUERIES), k, rows, result),
            None => portable(a, tile, k, result),
        }
    }

    /// The rows `c` of one matrix, from those of `a` and the whole of `b`.
    fn rows(&self, a: &[f32], b: &[f32], floats: &mut [f32], c: &mut [f32]) {
        let (k, n) = (self.k, self.n);
        if n == 0 || k == 0 {
            c.fill(0.0);
            return;
        }
        let rows = c.len() / n;
        let padded = rows.next_multiple_of(ROWS);
        let (tile, rest) = floats.split_at_mut(k * QUERIES);
        let (result, rest) = rest.split_at_mut(BLOCK * QUERIES);
        // The kernel reads whole groups of rows: the last ones may have to be copied.
        let a = if padded * k <= a.len() {
            &a[..padded * k]
        } else {
            let copy = &mut rest[..padded * k];
            copy[..rows * k].copy_from_slice(&a[..rows * k]);
            copy[rows * k..].fill(0.0);
            &*copy
        };
        for first in (0..n).step_by(QUERIES) {
            let width = QUERIES.min(n - first);
            for (to, from) in tile.chunks_exact_mut(QUERIES).zip(b.chunks_exact(n)) {
                to[..width].copy_from_slice(&from[first..first + width]);
                to[width..].fill(0.0);
            }
            let result = &mut result[..padded * QUERIES];
            self.multiply(a, tile, k, rows, result);
            for (to, from) in c.chunks_exact_mut(n).zip(result.chunks_exact(QUERIES)) {
                to[first..first + width].copy_from_slice(&from[..width]);
            }
        }
    }
}

/// What a byte stands for: `(byte ^ sign) - zero`.
struct Bytes {
    sign: u8,
    zero: f32,
}

impl Bytes {
    fn numbers(&self, from: &[u8], to: &mut [f32]) {
        for (to, &byte) in to.iter_mut().zip(from) {
            *to = f32::from(byte ^ self.sign) - self.zero;
        }
    }
}

/// Elements of a thread's memory: a tile of `b`, one of `c`, and copied rows of `a`.
fn scratch_len(k: usize) -> usize {
    k.saturating_mul(QUERIES + BLOCK)
        .saturating_add(BLOCK * QUERIES)
}

/// `c[i][t] = sum_j a[i][j] b[j][t]`.
fn portable(a: &[f32], b: &[f32], k: usize, c: &mut [f32]) {
    for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(QUERIES)) {
        c.fill(0.0);
        for (&a, b) in a.iter().zip(b.chunks_exact(QUERIES)) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
}
