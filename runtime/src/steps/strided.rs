//! A row-major tensor whose elements lie in another one at regular distances: transposed, or sliced.
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

pub(crate) struct Strided {
    x: usize,
    /// First element of `x` that is taken.
    offset: usize,
    /// Bytes of an element.
    size: usize,
    /// Sizes of the result's dimensions but the last, and elements of `x` from one index to the next.
    outer: Vec<(usize, usize)>,
    /// The last one.
    row: (usize, usize),
    parts: Parts,
}

impl Strided {
    pub(super) fn bind_transpose(
        sizes: &Sizes<'_>,
        permutation: &[u32],
    ) -> Result<Strided, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let (from, to) = (sizes.shape(x), sizes.shape(out));
        let moved = permutation.iter().map(|&d| from[d as usize]);
        if !to.iter().copied().eq(moved) {
            return Err(format!(
                "transposition {permutation:?} of shape {from:?} to {to:?}"
            ));
        }
        let strides = strides(from);
        let dims = permutation
            .iter()
            .map(|&d| (from[d as usize], strides[d as usize]));
        Ok(Strided::new(sizes, 0, dims))
    }

    pub(super) fn bind_slice(
        sizes: &Sizes<'_>,
        starts: &[u32],
        steps: &[u32],
    ) -> Result<Strided, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let (from, to) = (sizes.shape(x), sizes.shape(out));
        let is_empty = to.contains(&0);
        let mut offset = 0;
        let mut dims = Vec::with_capacity(to.len());
        for (d, (&size, stride)) in from.iter().zip(strides(from)).enumerate() {
            let (start, step) = (starts[d] as usize, steps[d] as usize);
            let last = to[d].saturating_sub(1).saturating_mul(step);
            if !is_empty && size <= start.saturating_add(last) {
                return Err(format!(
                    "{} of {size} elements of dimension {d} from {start} in steps of {step}",
                    to[d]
                ));
            }
            offset += if is_empty { 0 } else { start * stride };
            dims.push((to[d], stride.saturating_mul(step)));
        }
        Ok(Strided::new(sizes, offset, dims.into_iter()))
    }

    /// Sizes of the result's dimensions, and elements of `x` from one index to the next.
    fn new(
        sizes: &Sizes<'_>,
        offset: usize,
        dims: impl Iterator<Item = (usize, usize)>,
    ) -> Strided {
        let (x, out) = (sizes.required(0), sizes.output());
        let n: usize = sizes.shape(out).iter().product();
        let size = sizes.dtype(x).size_bytes();
        let mut dims = if n == 0 { Vec::new() } else { merged(dims) };
        let row = dims.pop().unwrap_or((1, 1));
        let n_rows = n / row.0;
        let together = if row.1 == 1 { 1 } else { BLOCK };
        let rows_of_task = (TASK / (row.0 * size)).max(1).next_multiple_of(together);
        let part =
            |first: usize| first * row.0 * size..n_rows.min(first + rows_of_task) * row.0 * size;
        Strided {
            x,
            offset,
            size,
            outer: dims,
            row,
            parts: Parts::new((0..n_rows).step_by(rows_of_task).map(part).collect()),
        }
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
        let (mut rest, mut at) = (row, self.offset);
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

/// Elements from one index of each dimension to the next.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        // Sizes may be of any magnitude beside one that is zero.
        strides[d - 1] = shape[d].saturating_mul(strides[d]);
    }
    strides
}

/// Dimensions of which neighbours that lie like one are one. No size is zero.
fn merged(dims: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for (size, stride) in dims {
        match merged.last_mut() {
            _ if size == 1 => {}
            Some(last) if last.1 == size * stride => *last = (last.0 * size, stride),
            _ => merged.push((size, stride)),
        }
    }
    merged
}
