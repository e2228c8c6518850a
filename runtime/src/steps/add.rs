//! Sums of panels.

use std::sync::Arc;

use lancet_artifact::KernelSpec;

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, PanelKernels, Sizes, Workers};

pub(crate) struct Add {
    inputs: [usize; 2],
    shape: PanelShape,
    parts: Parts,
    kernels: PanelKernels,
}

impl Add {
    pub(super) fn bind(sizes: &Sizes<'_>) -> Result<Add, String> {
        let shape = sizes.panels_like_output(0)?;
        sizes.panels_like_output(1)?;
        Ok(Add {
            inputs: [sizes.required(0), sizes.required(1)],
            shape,
            parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
            kernels: sizes.kernels(shape, |panel, lanes| KernelSpec::Add { panel, lanes }),
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
        let [a, b] = self.inputs.map(|v| reads.panels(v));
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            let (a, b) = (&a[self.shape.panel(p)], &b[self.shape.panel(p)]);
            match self.kernels.get(p) {
                Some(kernel) => kernel.add(a, b, y),
                None => {
                    for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                        *y = a + b;
                    }
                }
            }
        })?;
        Ok(())
    }
}
