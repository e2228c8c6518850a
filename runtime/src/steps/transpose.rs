//! A row-major tensor with its dimensions in another order.
//!
//! Dimensions that stay neighbours are one. Where the last one stays last, rows are copied whole; where it becomes the last but
//! one, as in a transposed matrix, some rows of the result are written together, so that each line of the source is read once.

use bytemuck::Pod;

use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Rows of the result that are written together.
const BLOCK: usize = 16;

/// Bytes that a task writes at least.
const TASK: usize = 1 << 14;

pub(crate) struct Transpose {
    x: usize,
    /// Bytes of an element.
    size: usize,
    /// Sizes of the result's dimensions but the last, and elements of `x` from one index to the next.
    outer: Vec<(usize, usize)>,
    /// The last one.
    row: (usize, usize),
    parts: Parts,
}

impl Transpose {
    pub(super) fn bind(sizes: &Sizes<'_>, permutation: &[u32]) -> Result<Transpose, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let (from, to) = (sizes.shape(x), sizes.shape(out));
        let moved = permutation.iter().map(|&d| from[d as usize]);
        if !to.iter().copied().eq(moved) {
            return Err(format!(
                "transposition {permutation:?} of shape {from:?} to {to:?}"
            ));
        }
        let n: usize = to.iter().product();
        let size = sizes.dtype(x).size_bytes();
        let mut dims = if n == 0 {
            Vec::new()
        } else {
            merged(from, permutation)
        };
        let row = dims.pop().unwrap_or((1, 1));
        let n_rows = n / row.0;
        let rows_of_task = (TASK / (row.0 * size)).max(1).next_multiple_of(BLOCK);
        let part =
            |first: usize| first * row.0 * size..n_rows.min(first + rows_of_task) * row.0 * size;
        Ok(Transpose {
            x,
            size,
            outer: dims,
            row,
            parts: Parts::new((0..n_rows).step_by(rows_of_task).map(part).collect()),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let x = reads.bytes(self.x);
        match self.size {
            1 => self.copy::<u8>(x, out, workers),
            2 => self.copy::<u16>(x, out, workers),
            4 => self.copy::<u32>(x, out, workers),
            8 => self.copy::<u64>(x, out, workers),
            size => unreachable!("no element has {size} bytes"),
        }
    }

    fn copy<T: Pod + Sync>(
        &self,
        x: &[u8],
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let x: &[T] = bytemuck::cast_slice(x);
        let (n, stride) = self.row;
        let (n_rows, step) = self.outer.last().copied().unwrap_or((1, 1));
        let together = if step == 1 { BLOCK } else { 1 };
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            let mut at = self.parts.range(task).start / size_of::<T>() / n;
            let mut rest: &mut [T] = bytemuck::cast_slice_mut(y);
            while !rest.is_empty() {
                let rows = (n_rows - at % n_rows).min(rest.len() / n);
                let (y, after) = rest.split_at_mut(rows * n);
                let x = &x[self.place(at)..];
                if stride == 1 {
                    for (i, y) in y.chunks_exact_mut(n).enumerate() {
                        y.copy_from_slice(&x[i * step..][..n]);
                    }
                } else {
                    for (i, y) in y.chunks_mut(together * n).enumerate() {
                        columns(&x[i * together * step..], stride, n, y);
                    }
                }
                (at, rest) = (at + rows, after);
            }
        })?;
        Ok(())
    }

    /// Where `x` has the first element of a row of the result.
    fn place(&self, row: usize) -> usize {
        let (mut rest, mut at) = (row, 0);
        for &(size, stride) in self.outer.iter().rev() {
            at += rest % size * stride;
            rest /= size;
        }
        at
    }
}

/// Writes rows `y[..][n]`, column by column: those of column `i` are in `x` from `i * stride` on.
fn columns<T: Copy>(x: &[T], stride: usize, n: usize, y: &mut [T]) {
    let rows = y.len() / n;
    for (i, x) in x.chunks(stride).take(n).enumerate() {
        for (y, &x) in y[i..].iter_mut().step_by(n).zip(&x[..rows]) {
            *y = x;
        }
    }
}

/// The dimensions of the result with their strides in `shape`, neighbours that stay so as one. No size is zero.
fn merged(shape: &[usize], permutation: &[u32]) -> Vec<(usize, usize)> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    let mut dims: Vec<(usize, usize)> = Vec::with_capacity(shape.len());
    for &d in permutation {
        let (size, stride) = (shape[d as usize], strides[d as usize]);
        match dims.last_mut() {
            _ if size == 1 => {}
            Some(last) if last.1 == size * stride => *last = (last.0 * size, stride),
            _ => dims.push((size, stride)),
        }
    }
    dims
}
