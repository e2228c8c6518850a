//! Linear layers: `y = activation(x wᵀ + bias) + residual`.
//!
//! A task is one row block of the matrix times one panel, in that order, so that the weights of a row block stay in cache
//! while the panels pass; the epilogue follows at once on the rows that the task has written.

use std::sync::Arc;

use lancet_artifact::{Activation, KernelSpec};

use crate::jit::Matrix;
use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::activation::{self, epilogue};
use crate::steps::{Failure, PanelKernels, Sizes, Workers};

pub(crate) struct Linear {
    matrix: usize,
    activation: Activation,
    x: usize,
    bias: Option<usize>,
    residual: Option<usize>,
    x_shape: PanelShape,
    y_shape: PanelShape,
    /// Row blocks, and in each the panels.
    parts: Parts,
    matmul: PanelKernels,
    /// Not used where there is neither activation nor residual.
    epilogue: PanelKernels,
    flops: u64,
}

impl Linear {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        matrix: usize,
        activation: Activation,
    ) -> Result<Linear, String> {
        let x_shape = sizes.panels_like_output(0)?;
        let y_shape = sizes.panels(sizes.output());
        let residual = sizes.input(2);
        if residual.is_some() {
            sizes.panels_like_output(2)?;
        }
        let weights = &sizes.shared.matrices[matrix];
        let mut parts = Vec::with_capacity(weights.row_blocks().len() * y_shape.n_panels());
        for block in weights.row_blocks() {
            let rows = block.row0 as usize..(block.row0 + block.n_rows) as usize;
            parts.extend((0..y_shape.n_panels()).map(|p| y_shape.rows(p, rows.clone())));
        }
        let format = weights.format();
        let nnz = sizes.shared.program.plan.matrices[matrix].nnz;
        let needs_epilogue = activation != Activation::None || residual.is_some();
        let step = Linear {
            matrix,
            activation,
            x: sizes.required(0),
            bias: sizes.input(1),
            residual,
            x_shape,
            y_shape,
            parts: Parts::new(parts),
            matmul: sizes.kernels(x_shape, |panel, lanes| KernelSpec::Matmul {
                format,
                panel,
                lanes,
            }),
            epilogue: if needs_epilogue {
                let residual = residual.is_some();
                sizes.kernels(y_shape, |panel, lanes| {
                    epilogue(activation, residual, panel, lanes)
                })
            } else {
                PanelKernels::default()
            },
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
        let bias = self.bias.map_or(reads.zeros(), |v| reads.f32(v));
        let residual = self.residual.map(|v| reads.panels(v));
        let n_panels = self.y_shape.n_panels();
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            let (block, p) = (task / n_panels, task % n_panels);
            let rows = &matrix.row_blocks()[block];
            let rows = rows.row0 as usize..(rows.row0 + rows.n_rows) as usize;
            let x = &x[self.x_shape.panel(p)];
            match self.matmul.get(p) {
                Some(kernel) => {
                    kernel.matmul(matrix, block, [p, n_panels], x, &bias[rows.clone()], y)
                }
                None => {
                    let w = shared.unpacked(self.matrix);
                    let w = &w[rows.start * matrix.k()..rows.end * matrix.k()];
                    portable(w, x, &bias[rows.clone()], self.x_shape.stride(p), y);
                }
            }
            if self.activation == Activation::None && residual.is_none() {
                return;
            }
            let residual = residual.map(|r| &r[self.y_shape.rows(p, rows)]);
            match self.epilogue.get(p) {
                Some(kernel) => kernel.epilogue(residual, y),
                None => {
                    activation::portable(self.activation, y);
                    for (y, r) in y.iter_mut().zip(residual.unwrap_or(&[])) {
                        *y += r;
                    }
                }
            }
        })?;
        Ok(())
    }
}

/// `y = w x + bias` for rows `w[n][k]` and a panel `x[k][stride]`.
fn portable(w: &[f32], x: &[f32], bias: &[f32], stride: usize, y: &mut [f32]) {
    let k = x.len() / stride;
    for (row, (y, &bias)) in y.chunks_exact_mut(stride).zip(bias).enumerate() {
        y.fill(bias);
        for (x, &w) in x.chunks_exact(stride).zip(&w[row * k..row * k + k]) {
            if w != 0.0 {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += w * x);
            }
        }
    }
}

/// The weights of a matrix as row-major `[n, k]`, for the portable form.
pub(crate) fn unpack(matrix: &Matrix) -> Result<Vec<f32>, String> {
    let mut w = vec![0.0; matrix.n() * matrix.k()];
    for (i, block) in matrix.row_blocks().iter().enumerate() {
        let rows =
            block.row0 as usize * matrix.k()..(block.row0 + block.n_rows) as usize * matrix.k();
        lancet_codegen::formats::unpack_block(
            (matrix.format(), matrix.arithmetic()),
            matrix.k(),
            matrix.block(i),
            &mut w[rows],
        )
        .map_err(|e| e.to_string())?;
    }
    Ok(w)
}
