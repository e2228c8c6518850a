//! Integer linear layers: `y = tail(x wᵀ)`, the product exact in `i32`.
//!
//! As in [`super::linear`], a task is one row block of the matrix times one panel. What follows runs at once on the rows that the
//! task has computed, in place, or from memory of the thread where the result is bytes.

use std::sync::Arc;

use lancet_artifact::{Element, KernelSpec, Vertical};

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::vertical::Expression;
use crate::steps::{Failure, PanelKernels, Sizes, Workers, scratch};

pub(crate) struct IntegerLinear {
    matrix: usize,
    x: usize,
    x_shape: PanelShape,
    /// The product, `i32`.
    sums: PanelShape,
    tail: Option<Expression>,
    parts: Parts,
    matmul: PanelKernels,
    flops: u64,
}

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
        let (format, arithmetic) = (weights.format(), weights.arithmetic());
        let nnz = sizes.shared.program.plan.matrices[matrix].nnz;
        let step = IntegerLinear {
            matrix,
            x: sizes.required(0),
            x_shape,
            sums,
            tail,
            parts: Parts::new(parts),
            matmul: sizes.kernels(x_shape, |panel, lanes| KernelSpec::IntegerMatmul {
                format,
                arithmetic,
                panel,
                lanes,
            }),
            flops: 2 * nnz * x_shape.tokens as u64,
        };
        let without_kernel = (0..y_shape.n_panels()).any(|p| step.matmul.get(p).is_none());
        if without_kernel && sizes.wanted.is_none() {
            sizes.shared.unpack(matrix)?;
        }
        Ok(step)
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
                let product = |y: &mut [f32]| match self.matmul.get(p) {
                    Some(kernel) => kernel.integer_matmul(matrix, block, x, y),
                    None => {
                        let k = matrix.k();
                        let w = &shared.unpacked(self.matrix)[row0 * k..(row0 + n_rows) * k];
                        portable(w, k, x, self.x_shape.stride(p), y);
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
fn portable(w: &[f32], k: usize, x: &[f32], stride: usize, y: &mut [f32]) {
    for (w, y) in w.chunks_exact(k).zip(y.chunks_exact_mut(stride)) {
        for (t, y) in y.iter_mut().enumerate() {
            let products = w.iter().enumerate().filter(|(_, w)| **w != 0.0);
            let sum = products.fold(0i32, |sum, (i, &w)| {
                let byte = x[i / 4 * stride + t].to_bits().to_le_bytes()[i % 4];
                sum.wrapping_add(w as i32 * i32::from(byte))
            });
            *y = f32::from_bits(sum as u32);
        }
    }
}
