//! A row-major tensor in bytes: one scale and one zero point for all of it, constant or computed.

use lancet_ops::DType;

use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Elements of one task.
pub(super) const TASK: usize = 1 << 14;

pub(crate) struct Quantize {
    x: usize,
    scale: usize,
    zero_point: Option<usize>,
    is_signed: bool,
    parts: Parts,
}

impl Quantize {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<Quantize, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let (from, to) = (sizes.shape(x), sizes.shape(out));
        if from != to {
            return Err(format!("quantizes shape {from:?} to {to:?}"));
        }
        Ok(Quantize {
            x,
            scale: sizes.required(1),
            zero_point: sizes.input(2),
            is_signed: sizes.dtype(out) == DType::I8,
            parts: Parts::of_tasks(to.iter().product(), TASK),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let (x, scale) = (reads.f32(self.x), reads.f32(self.scale)[0]);
        let zero = self.zero_point.map_or(0, |z| reads.bytes(z)[0]);
        let [least, greatest] = if self.is_signed {
            [-128.0, 127.0].map(|bound| bound - f32::from(zero as i8))
        } else {
            [0.0, 255.0].map(|bound| bound - f32::from(zero))
        };
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            let x = &x[self.parts.range(task)];
            for (y, &x) in y.iter_mut().zip(x) {
                *y = low_byte(clip(x / scale, least, greatest)).wrapping_add(zero);
            }
        })?;
        Ok(())
    }
}

/// NaN becomes the least number.
fn clip(v: f32, least: f32, greatest: f32) -> f32 {
    let v = if v > least { v } else { least };
    if v < greatest { v } else { greatest }
}

/// The last eight bits of a small number, rounded to even. The sum has no bits for a fraction, and ends with those of the whole number.
fn low_byte(v: f32) -> u8 {
    const MAGIC: f32 = 12_582_912.0;
    (v + MAGIC).to_bits() as u8
}
