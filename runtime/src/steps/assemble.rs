//! A row-major tensor put together from others, each of which is a block of it: concatenated, or padded.
//!
//! Where a dimension is whole in all blocks, it and the one before are one. The last one is a row, copied in pieces.

use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Bytes that a task writes at least.
const TASK: usize = 1 << 14;

pub(crate) struct Assemble {
    blocks: Vec<Block>,
    fill: Fill,
    /// Bytes of an element.
    size: usize,
    /// Dimensions of the result, the last one in bytes.
    shape: Vec<usize>,
    parts: Parts,
}

/// What stands where no block is.
enum Fill {
    /// There is no such place.
    Nothing,
    Zeros,
    Value(usize),
}

struct Block {
    x: usize,
    /// The first index in each dimension of the result that is in the block, and how many are.
    place: Vec<(usize, usize)>,
}

impl Assemble {
    pub(super) fn bind_concat(sizes: &Sizes<'_>, axis: usize) -> Result<Assemble, String> {
        let to = sizes.shape(sizes.output());
        let mut before = vec![0usize; to.len()];
        let mut blocks = Vec::with_capacity(sizes.n_inputs());
        for x in (0..sizes.n_inputs()).map(|i| sizes.required(i)) {
            blocks.push((x, before.clone()));
            before[axis] = before[axis].saturating_add(sizes.shape(x)[axis]);
        }
        let assembled = Assemble::bind(sizes, &blocks, Fill::Nothing)?;
        let fills = |&(x, _): &(usize, _)| {
            let from = sizes.shape(x);
            (0..to.len()).all(|d| d == axis || from[d] == to[d])
        };
        if before[axis] != to[axis] || !blocks.iter().all(fills) {
            let shapes: Vec<_> = blocks.iter().map(|&(x, _)| sizes.shape(x)).collect();
            return Err(format!("{shapes:?} along dimension {axis} are not {to:?}"));
        }
        Ok(assembled)
    }

    pub(super) fn bind_pad(sizes: &Sizes<'_>, before: &[u32]) -> Result<Assemble, String> {
        let before = before.iter().map(|&n| n as usize).collect();
        let fill = sizes.input(1).map_or(Fill::Zeros, Fill::Value);
        Assemble::bind(sizes, &[(sizes.required(0), before)], fill)
    }

    /// Blocks by value, with what is before them in each dimension.
    fn bind(
        sizes: &Sizes<'_>,
        blocks: &[(usize, Vec<usize>)],
        fill: Fill,
    ) -> Result<Assemble, String> {
        let to = sizes.shape(sizes.output());
        for (x, before) in blocks {
            let from = sizes.shape(*x);
            let mut ends = from.iter().zip(before).map(|(&n, &b)| n.checked_add(b));
            if !to
                .iter()
                .all(|&n| ends.next().flatten().is_some_and(|end| end <= n))
            {
                return Err(format!("shape {from:?} behind {before:?} is not in {to:?}"));
            }
        }
        let size = sizes.dtype(sizes.output()).size_bytes();
        let mut shape = vec![1];
        let mut places = vec![vec![(0, 1)]; blocks.len()];
        let dims = (to.iter().copied().enumerate()).map(|(d, n)| {
            let block = |(x, before): &(usize, Vec<usize>)| (before[d], sizes.shape(*x)[d]);
            (n, blocks.iter().map(block).collect::<Vec<_>>())
        });
        // Elements of bytes are one more dimension that is whole.
        for (n, in_blocks) in dims.chain([(size, vec![(0, size); blocks.len()])]) {
            let is_whole = in_blocks.iter().all(|&(_, of)| of == n);
            if !is_whole {
                shape.push(1);
                places.iter_mut().for_each(|p| p.push((0, 1)));
            }
            // Sizes may be of any magnitude beside one that is zero.
            let last = shape.len() - 1;
            shape[last] = n.saturating_mul(shape[last]);
            for (place, (before, of)) in places.iter_mut().zip(in_blocks) {
                let (first, count) = place[last];
                place[last] = if is_whole {
                    (n.saturating_mul(first), n.saturating_mul(count))
                } else {
                    (before, of)
                };
            }
        }
        let n = to.iter().product::<usize>().saturating_mul(size);
        let task = (n / (4 * sizes.shared.pool.threads())).max(TASK);
        let task = task.next_multiple_of(size);
        let part = |start: usize| start..n.min(start.saturating_add(task));
        let block = |((x, _), place): (&(usize, _), _)| Block { x: *x, place };
        Ok(Assemble {
            blocks: blocks.iter().zip(places).map(block).collect(),
            fill,
            size,
            shape,
            parts: Parts::new((0..n).step_by(task).map(part).collect()),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            match self.fill {
                Fill::Nothing => {}
                Fill::Zeros => y.fill(0),
                Fill::Value(v) => {
                    let value = reads.bytes(v);
                    y.chunks_exact_mut(self.size)
                        .for_each(|y| y.copy_from_slice(value));
                }
            }
            for block in &self.blocks {
                self.copy(block, reads.bytes(block.x), self.parts.range(task).start, y);
            }
        })?;
        Ok(())
    }

    /// Writes what `y`, the bytes of the result from `start` on, has of a block.
    fn copy(&self, block: &Block, x: &[u8], start: usize, y: &mut [u8]) {
        let (&row, outer) = self.shape.split_last().expect("one dimension at least");
        let (&(first, n), place) = block.place.split_last().expect("as many as the result's");
        let (mut at, end) = (start, start + y.len());
        while at < end {
            let (r, column) = (at / row, at % row);
            let next = end.min(at - column + row);
            let from = column.max(first);
            let to = (column + next - at).min(first + n);
            if from < to
                && let Some(in_block) = row_of(place, outer, r)
            {
                let x = &x[in_block * n + from - first..][..to - from];
                y[at - start + from - column..][..to - from].copy_from_slice(x);
            }
            at = next;
        }
    }
}

/// Which row of a block is row `r` of the result, if it is in the block.
fn row_of(place: &[(usize, usize)], outer: &[usize], r: usize) -> Option<usize> {
    let (mut rest, mut at, mut stride) = (r, 0, 1);
    for (&(first, n), &size) in place.iter().zip(outer).rev() {
        at += (rest % size).checked_sub(first).filter(|&i| i < n)? * stride;
        stride *= n;
        rest /= size;
    }
    Some(at)
}
