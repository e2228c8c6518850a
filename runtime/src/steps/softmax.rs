//! Softmax over a dimension of a row-major tensor.
//!
//! The tensor is `[outer, n, inner]`, and a row has the elements of one outer and one inner index. The kernel is that of attention,
//! which normalises columns: tiles of [`QUERIES`] rows are turned on the way in and out.

use std::sync::Arc;

use lancet_artifact::KernelSpec;

use crate::jit::{Kernel, QUERIES};
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers, scratch};

/// Rows of one task at least.
const BLOCK: usize = 4 * QUERIES;

pub(crate) struct Softmax {
    x: usize,
    /// Elements of a row, one `inner` from the next.
    n: usize,
    inner: usize,
    /// Elements of a task.
    task: usize,
    parts: Parts,
    kernel: Option<Kernel>,
}

impl Softmax {
    pub(super) fn bind(sizes: &Sizes<'_>, axis: usize) -> Result<Softmax, String> {
        let x = sizes.required(0);
        let (shape, out) = (sizes.shape(x), sizes.shape(sizes.output()));
        if shape != out {
            return Err(format!("softmax of shape {shape:?} to {out:?}"));
        }
        // Sizes may be of any magnitude beside one that is zero.
        let count = |dims: &[usize]| dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d));
        let (n, inner) = (shape[axis], count(&shape[axis + 1..]));
        let n_elements: usize = shape.iter().product();
        let task = (n.saturating_mul(inner)).saturating_mul(BLOCK.div_ceil(inner.max(1)));
        let block = |first: usize| first..n_elements.min(first.saturating_add(task));
        let needed = scratch_len(n).saturating_mul(4 * sizes.shared.pool.threads());
        let limit = sizes.shared.options.max_arena_bytes;
        if needed as u64 > limit {
            return Err(format!(
                "needs {needed} bytes of scratch memory, the limit is {limit}"
            ));
        }
        Ok(Softmax {
            x,
            n,
            inner,
            task,
            parts: Parts::new((0..n_elements).step_by(task.max(1)).map(block).collect()),
            kernel: sizes.kernel(KernelSpec::AttentionSoftmax),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.kernel.as_ref().map(|k| Arc::clone(k.name()))
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let x = reads.f32(self.x);
        let per_thread = workers.scratch;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, y| {
                let x = &x[task * self.task..][..y.len()];
                let mut floats = scratch(per_thread, thread, scratch_len(self.n));
                let (tile, mask) = floats.split_at_mut(self.n * QUERIES);
                let mask = &mut mask[..self.n];
                mask.fill(0.0);
                for first in (0..x.len() / self.n).step_by(QUERIES) {
                    self.tile(x, first, tile, mask, y);
                }
            })?;
        Ok(())
    }

    /// At most [`QUERIES`] rows from `first` on.
    fn tile(&self, x: &[f32], first: usize, tile: &mut [f32], mask: &[f32], y: &mut [f32]) {
        let rows = first..(x.len() / self.n).min(first + QUERIES);
        // Elements of a row, by its place among all.
        let elements = |row: usize| {
            let start = row / self.inner * self.n * self.inner + row % self.inner;
            (start..).step_by(self.inner)
        };
        tile.fill(0.0);
        for (lane, row) in rows.clone().enumerate() {
            for (column, at) in tile.chunks_exact_mut(QUERIES).zip(elements(row)) {
                column[lane] = x[at];
            }
        }
        let mut sums = [0.0; QUERIES];
        match &self.kernel {
            Some(kernel) => kernel.attention_softmax(tile, mask, 1.0, &mut sums),
            None => super::attention::softmax(tile, mask, 1.0, &mut sums),
        }
        for (lane, row) in rows.enumerate() {
            for (column, at) in tile.chunks_exact(QUERIES).zip(elements(row)) {
                y[at] = column[lane] * sums[lane];
            }
        }
    }
}

/// Elements of a thread's memory: a tile, and a mask of zeros.
fn scratch_len(n: usize) -> usize {
    n.saturating_mul(QUERIES + 1)
}
