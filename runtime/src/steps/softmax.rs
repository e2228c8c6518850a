//! Softmax over the last dimension of a row-major tensor.
//!
//! The kernel is that of attention, which normalises columns: tiles of [`QUERIES`] rows are turned on the way in and out.

use std::sync::Arc;

use lancet_artifact::KernelSpec;

use crate::jit::{Kernel, QUERIES};
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers, scratch};

/// Tiles of one task.
const BLOCK: usize = 4 * QUERIES;

pub(crate) struct Softmax {
    x: usize,
    /// Elements of a row.
    n: usize,
    parts: Parts,
    kernel: Option<Kernel>,
}

impl Softmax {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<Softmax, String> {
        let x = sizes.required(0);
        let (shape, out) = (sizes.shape(x), sizes.shape(sizes.output()));
        let Some((&n, rows)) = shape.split_last().filter(|_| shape == out) else {
            return Err(format!("softmax of shape {shape:?} to {out:?}"));
        };
        let rows: usize = rows.iter().product();
        let block = |first: usize| first * n..rows.min(first + BLOCK) * n;
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
            parts: Parts::new((0..rows).step_by(BLOCK).map(block).collect()),
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
        if self.n == 0 {
            return Ok(());
        }
        let x = reads.f32(self.x);
        let per_thread = workers.scratch;
        let rows_of_task = BLOCK * self.n;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, y| {
                let x = &x[task * rows_of_task..][..y.len()];
                let mut floats = scratch(per_thread, thread, scratch_len(self.n));
                let (tile, mask) = floats.split_at_mut(self.n * QUERIES);
                let mask = &mut mask[..self.n];
                mask.fill(0.0);
                let tile_len = QUERIES * self.n;
                for (x, y) in x.chunks(tile_len).zip(y.chunks_mut(tile_len)) {
                    self.tile(x, tile, mask, y);
                }
            })?;
        Ok(())
    }

    /// At most [`QUERIES`] rows.
    fn tile(&self, x: &[f32], tile: &mut [f32], mask: &[f32], y: &mut [f32]) {
        tile.fill(0.0);
        for (lane, row) in x.chunks_exact(self.n).enumerate() {
            for (column, &v) in tile.chunks_exact_mut(QUERIES).zip(row) {
                column[lane] = v;
            }
        }
        let mut sums = [0.0; QUERIES];
        match &self.kernel {
            Some(kernel) => kernel.attention_softmax(tile, mask, 1.0, &mut sums),
            None => super::attention::softmax(tile, mask, 1.0, &mut sums),
        }
        for (lane, row) in y.chunks_exact_mut(self.n).enumerate() {
            for (y, column) in row.iter_mut().zip(tile.chunks_exact(QUERIES)) {
                *y = column[lane] * sums[lane];
            }
        }
    }
}

/// Elements of a thread's memory: a tile, and a mask of zeros.
fn scratch_len(n: usize) -> usize {
    n.saturating_mul(QUERIES + 1)
}
