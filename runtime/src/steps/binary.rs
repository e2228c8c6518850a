//! Elementwise functions of two arguments over panels.

use std::sync::Arc;

use lancet_artifact::{self as artifact, KernelSpec, Layout, Right};

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, PanelKernels, Sizes, Workers};

pub(crate) struct Binary {
    op: artifact::Binary,
    inputs: [usize; 2],
    right: Right,
    shape: PanelShape,
    parts: Parts,
    kernels: PanelKernels,
}

impl Binary {
    pub(super) fn bind(sizes: &Sizes<'_>, op: artifact::Binary) -> Result<Binary, String> {
        let shape = sizes.panels_like_output(0)?;
        let z = sizes.required(1);
        let right = match sizes.shared.program.values[z].layout {
            Layout::Panels => {
                sizes.panels_like_output(1)?;
                Right::Panels
            }
            Layout::RowMajor => Right::Features,
        };
        Ok(Binary {
            op,
            inputs: [sizes.required(0), z],
            right,
            shape,
            parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
            kernels: sizes.kernels(shape, |panel, lanes| KernelSpec::Binary {
                op,
                right,
                panel,
                lanes,
            }),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.kernels.name()
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let [x, z] = self.inputs;
        let x = reads.panels(x);
        let z = match self.right {
            Right::Panels => reads.panels(z),
            Right::Features => reads.f32(z),
        };
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            let x = &x[self.shape.panel(p)];
            let z = match self.right {
                Right::Panels => &z[self.shape.panel(p)],
                Right::Features => z,
            };
            match self.kernels.get(p) {
                Some(kernel) => kernel.binary(x, z, y),
                None => self.portable(x, z, self.shape.stride(p), y),
            }
        })?;
        Ok(())
    }

    /// One panel of rows of `stride` tokens.
    fn portable(&self, x: &[f32], z: &[f32], stride: usize, y: &mut [f32]) {
        for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
            let z = match self.right {
                Right::Panels => z[i],
                Right::Features => z[i / stride],
            };
            *y = self.op.apply(x, z);
        }
    }
}
