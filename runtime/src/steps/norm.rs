//! Norms over the features of panels: `y = (x - mean) / sqrt(var + epsilon) * gamma + beta`, and the root-mean-square norm,
//! whose mean is taken to be zero.

use std::sync::Arc;

use lancet_artifact::KernelSpec;

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, PanelKernels, Sizes, Workers};

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Layer,
    RootMeanSquare,
}

pub(crate) struct Norm {
    kind: Kind,
    x: usize,
    gamma: usize,
    beta: Option<usize>,
    epsilon: f32,
    shape: PanelShape,
    parts: Parts,
    kernels: PanelKernels,
}

impl Norm {
    pub(super) fn bind(sizes: &Sizes<'_>, kind: Kind, epsilon: f32) -> Result<Norm, String> {
        let shape = sizes.panels_like_output(0)?;
        Ok(Norm {
            kind,
            x: sizes.required(0),
            gamma: sizes.required(1),
            beta: sizes.input(2),
            epsilon,
            shape,
            parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
            kernels: sizes.kernels(shape, |panel, lanes| match kind {
                Kind::Layer => KernelSpec::LayerNorm { panel, lanes },
                Kind::RootMeanSquare => KernelSpec::RmsNorm { panel, lanes },
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
        let (x, gamma) = (reads.panels(self.x), reads.f32(self.gamma));
        let beta = self.beta.map_or(reads.zeros(), |v| reads.f32(v));
        workers.team.for_each_part(&self.parts, out, |p, _, y| {
            let x = &x[self.shape.panel(p)];
            match self.kernels.get(p) {
                Some(kernel) => kernel.layer_norm(x, gamma, beta, self.epsilon, y),
                None => self.portable(x, gamma, beta, self.shape.stride(p), y),
            }
        })?;
        Ok(())
    }

    /// Normalizes one panel `[gamma.len()][stride]`.
    fn portable(&self, x: &[f32], gamma: &[f32], beta: &[f32], stride: usize, y: &mut [f32]) {
        let k = gamma.len() as f64;
        for lane in 0..stride {
            let values = || x.iter().skip(lane).step_by(stride).map(|&v| f64::from(v));
            let mean = match self.kind {
                Kind::Layer => values().sum::<f64>() / k,
                Kind::RootMeanSquare => 0.0,
            };
            let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / k;
            let inverse = 1.0 / (variance + f64::from(self.epsilon)).sqrt();
            let lanes = y.iter_mut().skip(lane).step_by(stride);
            for (((y, x), &gamma), &beta) in lanes.zip(values()).zip(gamma).zip(beta) {
                *y = ((x - mean) * inverse * f64::from(gamma) + f64::from(beta)) as f32;
            }
        }
    }
}
