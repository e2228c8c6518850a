//! Integer linear layers: `y = tail(x wᵀ + bias)`, the sum exact in `i32`.
//!
//! As in [`super::linear`], a task is one row block of the matrix times one panel. What follows runs at once on the rows that the
//! task has computed, in place, or from memory of the thread where the result is bytes.
//!
//! For a matrix of pairs quads become rows of bytes first, once for each panel.

use std::sync::Arc;

use lancet_artifact::{Element, KernelSpec, Vertical};
use lancet_codegen::formats;

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::vertical::Expression;
use crate::steps::{Failure, PanelKernels, Sizes, Workers, scratch};

pub(crate) struct IntegerLinear {
    matrix: usize,
    x: usize,
    x_shape: PanelShape,
    /// The sums, `i32`.
    sums: PanelShape,
    tail: Option<Expression>,
    parts: Parts,
    matmul: PanelKernels,
    /// How quads become rows of bytes, if they do.
    rows: Option<Rows>,
    flops: u64,
}

/// Panels of rows of bytes that are made of the panels of quads, one behind the other.
struct Rows {
    shape: PanelShape,
    parts: Parts,
    kernels: PanelKernels,
}

/// Elements of a cache line: panels begin at one.
const LINE: usize = 16;

impl IntegerLinear {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        matrix: usize,
        tail: Option<&Vertical>,
    ) -> Result<IntegerLinear, String> {
        let x_shape = sizes.panels_like_output(0)?;
        let y_shape = sizes.panels(sizes.output());
        let weights = &sizes.shared.matrices[matrix];
        let sums = PanelShape {
            features: weights.n(),
            ..y_shape
        };
        let (format, arithmetic) = (weights.format(), weights.arithmetic());
        let x = sizes.required(0);
        let rows = formats::in_byte_rows(format).then(|| {
            // Twice the size of quads: rows of panels of 8 tokens have 16 bytes.
            let shape = PanelShape {
                features: 2 * x_shape.features,
                ..x_shape
            };
            Rows {
                shape,
                parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
                kernels: sizes.kernels(shape, |panel, lanes| KernelSpec::ByteRows { panel, lanes }),
            }
        });
        let tail = tail
            .map(|t| Expression::bind(sizes, t, None, weights.n()))
            .transpose()?;
        let in_quads = tail.as_ref().is_some_and(|t| t.result == Element::Quad);
        let mut parts = Vec::with_capacity(weights.row_blocks().len() * y_shape.n_panels());
        for block in weights.row_blocks() {
            let (start, end) = (block.row0 as usize, (block.row0 + block.n_rows) as usize);
            if in_quads && start % 4 != 0 {
                return Err(format!("a row block begins at row {start}"));
            }
            let rows = if in_quads {
                start / 4..end.div_ceil(4)
            } else {
                start..end
            };
            parts.extend((0..y_shape.n_panels()).map(|p| y_shape.rows(p, rows.clone())));
        }
        let nnz = sizes.shared.program.plan.matrices[matrix].nnz;
        let step = IntegerLinear {
            matrix,
            x,
            x_shape,
            sums,
            tail,
            parts: Parts::new(parts),
            matmul: sizes.kernels(x_shape, |panel, lanes| {
                KernelSpec::matmul((format, arithmetic), panel, lanes)
            }),
            rows,
            flops: 2 * nnz * x_shape.tokens as u64,
        };
        let without_kernel = (0..y_shape.n_panels()).any(|p| !step.has_kernels(p));
        if without_kernel && sizes.wanted.is_none() {
            sizes.shared.unpack(matrix)?;
        }
        Ok(step)
    }

    /// Whether panel `p` is multiplied by a kernel.
    fn has_kernels(&self, p: usize) -> bool {
        let in_rows = (self.rows.as_ref()).is_none_or(|r| r.kernels.get(p).is_some());
        in_rows && self.matmul.get(p).is_some()
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.matmul.name()
    }

    pub(super) fn flops(&self) -> u64 {
        self.flops
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let shared = &reads.model.shared;
        let matrix = &shared.matrices[self.matrix];
        let x = reads.panels(self.x);
        let mut in_rows: &[f32] = &[];
        if let Some(r) = &self.rows {
            let len = (0..r.shape.n_panels())
                .map(|p| r.shape.panel(p).len())
                .sum::<usize>();
            if workers.between.len() < len + 2 * LINE {
                workers.between.resize(len + 2 * LINE, 0.0);
            }
            let start = workers.between.as_ptr().align_offset(4 * LINE).min(LINE);
            let panels = &mut workers.between[start..start + len + LINE];
            workers.team.for_each_part(&r.parts, panels, |p, _, y| {
                if let Some(kernel) = r.kernels.get(p) {
                    let (x, n_quads) = (&x[self.x_shape.panel(p)], self.x_shape.features);
                    kernel.byte_rows(x, n_quads, y);
                }
            })?;
            in_rows = panels;
        }
        let mut scalars = [0.0; Vertical::MAX_OPERANDS];
        let operands = (self.tail.as_ref()).map(|tail| (tail, tail.read(reads, &mut scalars)));
        let n_panels = self.sums.n_panels();
        let threads = workers.scratch;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, y| {
                let (block, p) = (task / n_panels, task % n_panels);
                let rows = &matrix.row_blocks()[block];
                let (row0, n_rows) = (rows.row0 as usize, rows.n_rows as usize);
                let x = &x[self.x_shape.panel(p)];
                let kernel = self.matmul.get(p).filter(|_| self.has_kernels(p));
                let x_rows = || (self.rows.as_ref()).map_or(x, |r| &in_rows[r.shape.panel(p)]);
                let product = |y: &mut [f32]| match kernel {
                    Some(kernel) => kernel.integer_matmul(matrix, block, x_rows(), y),
                    None => {
                        let k = matrix.k();
                        let w = &shared.unpacked(self.matrix)[row0 * k..(row0 + n_rows) * k];
                        portable((w, k), x, self.x_shape.stride(p), y);
                    }
                };
                match &operands {
                    None => product(y),
                    Some((tail, operands)) if tail.result == Element::Quad => {
                        let len = n_rows * self.sums.stride(p);
                        let mut memory = scratch(threads, thread, len);
                        let sums = &mut memory[..len];
                        product(sums);
                        tail.run(operands, Some(sums), p, (row0, n_rows), y);
                    }
                    Some((tail, operands)) => {
                        product(y);
                        tail.run(operands, None, p, (row0, n_rows), y);
                    }
                }
            })?;
        Ok(())
    }
}

/// `y = w x` for rows `w[n][k]` of integers and a panel of quads `x[ceil(k / 4)][stride]`; dwords of y are `i32`.
fn portable((w, k): (&[f32], usize), x: &[f32], stride: usize, y: &mut [f32]) {
    let x = |i: usize, t: usize| i32::from(x[i / 4 * stride + t].to_bits().to_le_bytes()[i % 4]);
    for (w, y) in w.chunks_exact(k).zip(y.chunks_exact_mut(stride)) {
        for (t, y) in y.iter_mut().enumerate() {
            let products = w.iter().enumerate().filter(|(_, w)| **w != 0.0);
            let sum = products.fold(0i32, |sum, (i, &w)| {
                sum.wrapping_add((w as i32).wrapping_mul(x(i, t)))
            });
            *y = f32::from_bits(sum as u32);
        }
    }
}
