//! Between row-major tensors and token panels.

use lancet_ops::DType;

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Features that are moved for all tokens of a panel before the next ones, so that the strided side stays in cache.
const BLOCK: usize = 16;

/// Row-major to panels.
pub(crate) struct ToPanels {
    x: usize,
    /// Elements are bytes, of which four features are a dword.
    in_bytes: bool,
    features: usize,
    shape: PanelShape,
    parts: Parts,
}

impl ToPanels {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<ToPanels, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        if sizes.shape(x) != sizes.shape(out) {
            return Err(format!(
                "cannot turn shape {:?} into {:?}",
                sizes.shape(x),
                sizes.shape(out)
            ));
        }
        let shape = sizes.panels(out);
        Ok(ToPanels {
            x,
            in_bytes: sizes.dtype(x) == DType::U8,
            features: sizes.features(out),
            shape,
            parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        if self.in_bytes {
            return self.run_bytes(reads, out, workers);
        }
        let x: &[f32] = bytemuck::cast_slice(reads.bytes(self.x));
        let k = self.shape.features;
        workers
            .team
            .for_each_part(&self.parts, out, |p, _, panel| {
                let first = p * self.shape.width;
                let tokens = self.shape.tokens_in(p);
                transpose(
                    &x[first * k..(first + tokens) * k],
                    tokens,
                    self.shape.stride(p),
                    panel,
                    |y, x| *y = x,
                );
            })?;
        Ok(())
    }
}

impl ToPanels {
    fn run_bytes(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let (x, k) = (reads.bytes(self.x), self.features);
        workers
            .team
            .for_each_part(&self.parts, out, |p, _, panel| {
                let (first, stride) = (p * self.shape.width, self.shape.stride(p));
                panel.fill(0.0);
                for t in 0..self.shape.tokens_in(p) {
                    let token = &x[(first + t) * k..(first + t + 1) * k];
                    for (quad, y) in token.chunks(4).zip(panel.chunks_exact_mut(stride)) {
                        let mut bytes = [0; 4];
                        bytes[..quad.len()].copy_from_slice(quad);
                        y[t] = f32::from_bits(u32::from_le_bytes(bytes));
                    }
                }
            })?;
        Ok(())
    }
}

/// Applies `write(y, x)` for token rows `x[tokens][k]` and a panel `y[k][stride]`; the lanes without a token get zeros.
pub(super) fn transpose(
    x: &[f32],
    tokens: usize,
    stride: usize,
    y: &mut [f32],
    write: impl Fn(&mut f32, f32),
) {
    let k = y.len() / stride;
    for (block, rows) in y.chunks_mut(BLOCK * stride).enumerate() {
        let features = block * BLOCK..(block * BLOCK + BLOCK).min(k);
        for t in 0..tokens {
            let x = &x[t * k + features.start..t * k + features.end];
            for (row, &x) in rows.chunks_exact_mut(stride).zip(x) {
                write(&mut row[t], x);
            }
        }
        for row in rows.chunks_exact_mut(stride) {
            row[tokens..].fill(0.0);
        }
    }
}

/// Panels to row-major.
pub(crate) struct FromPanels {
    x: usize,
    /// Elements are bytes, of which four features are a dword.
    in_bytes: bool,
    features: usize,
    shape: PanelShape,
    parts: Parts,
}

impl FromPanels {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<FromPanels, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        if sizes.shape(x) != sizes.shape(out) {
            return Err(format!(
                "cannot turn shape {:?} into {:?}",
                sizes.shape(x),
                sizes.shape(out)
            ));
        }
        let (shape, features) = (sizes.panels(x), sizes.features(x));
        let tokens = |p: usize| {
            let start = p * shape.width * features;
            start..start + shape.tokens_in(p) * features
        };
        Ok(FromPanels {
            x,
            in_bytes: sizes.dtype(x) == DType::U8,
            features,
            shape,
            parts: Parts::new((0..shape.n_panels()).map(tokens).collect()),
        })
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        if self.in_bytes {
            return self.run_bytes(reads, out, workers);
        }
        let out: &mut [f32] =
            bytemuck::try_cast_slice_mut(out).expect("buffers are aligned and hold dwords");
        let (x, k) = (reads.panels(self.x), self.shape.features);
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            let (x, stride) = (&x[self.shape.panel(p)], self.shape.stride(p));
            for start in (0..k).step_by(BLOCK) {
                let features = start..(start + BLOCK).min(k);
                let rows = &x[features.start * stride..features.end * stride];
                for (t, y) in y.chunks_exact_mut(k).enumerate() {
                    for (y, row) in y[features.clone()]
                        .iter_mut()
                        .zip(rows.chunks_exact(stride))
                    {
                        *y = row[t];
                    }
                }
            }
        })?;
        Ok(())
    }

    fn run_bytes(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let (x, k) = (reads.panels(self.x), self.features);
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            let (quads, stride) = (&x[self.shape.panel(p)], self.shape.stride(p));
            for (t, token) in y.chunks_exact_mut(k.max(1)).enumerate() {
                for (y, row) in token.chunks_mut(4).zip(quads.chunks_exact(stride)) {
                    y.copy_from_slice(&row[t].to_bits().to_le_bytes()[..y.len()]);
                }
            }
        })?;
        Ok(())
    }
}
