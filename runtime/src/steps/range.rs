//! What dynamic quantization needs to know of a tensor: its range, and the scale and zero point that follow from it.

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::quantize::TASK;
use crate::steps::{Failure, Sizes, Workers};

/// Numbers that are compared side by side, as many as panels have tokens.
const LANES: usize = 32;

/// Least and greatest number of a tensor, zero included; NaN is left out.
pub(crate) struct Range {
    x: usize,
    /// Panels, or the elements of each task of a row-major tensor.
    from: From,
    /// Two numbers for each panel or task.
    parts: Parts,
}

enum From {
    Panels(PanelShape),
    RowMajor(Parts),
}

impl Range {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<Range, String> {
        let x = sizes.required(0);
        let (from, n) = if sizes.is_in_panels(x) {
            let shape = sizes.panels(x);
            (From::Panels(shape), shape.n_panels())
        } else {
            let tasks = Parts::of_tasks(sizes.shape(x).iter().product(), TASK);
            let n = tasks.len();
            (From::RowMajor(tasks), n)
        };
        let pairs = (0..n).map(|p| 2 * p..2 * p + 2);
        Ok(Range {
            x,
            from,
            parts: Parts::new(pairs.collect()),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let x = match self.from {
            From::Panels(_) => reads.panels(self.x),
            From::RowMajor(_) => reads.f32(self.x),
        };
        let n = 2 * self.parts.len();
        if workers.between.len() < n {
            workers.between.resize(n, 0.0);
        }
        let ranges = &mut workers.between[..n];
        workers
            .team
            .for_each_part(&self.parts, ranges, |p, _, out| {
                let (x, stride, tokens) = match &self.from {
                    From::Panels(shape) => {
                        (&x[shape.panel(p)], shape.stride(p), shape.tokens_in(p))
                    }
                    From::RowMajor(tasks) => (&x[tasks.range(p)], LANES, LANES),
                };
                let (mut low, mut high) = ([0f32; LANES], [0f32; LANES]);
                for row in x.chunks(stride) {
                    for ((low, high), &v) in low.iter_mut().zip(&mut high).zip(row) {
                        *low = if v < *low { v } else { *low };
                        *high = if v > *high { v } else { *high };
                    }
                }
                out[0] = low[..tokens].iter().copied().fold(0.0, f32::min);
                out[1] = high[..tokens].iter().copied().fold(0.0, f32::max);
            })?;
        out[0] = ranges.chunks_exact(2).fold(0.0, |low, r| r[0].min(low));
        out[1] = ranges.chunks_exact(2).fold(0.0, |high, r| r[1].max(high));
        Ok(())
    }
}

/// The scale of a range: 1 for nothing but zeros.
pub(crate) fn scale(range: &[f32]) -> f32 {
    let (low, high) = (range[0], range[1]);
    if low == high {
        1.0
    } else {
        (high - low) / 255.0
    }
}

/// The zero point of a range.
pub(crate) fn zero_point(range: &[f32]) -> u8 {
    (-range[0] / scale(range))
        .clamp(0.0, 255.0)
        .round_ties_even() as u8
}
