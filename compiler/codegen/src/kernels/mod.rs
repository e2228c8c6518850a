//! Every kernel: one file per kind, each a function from its parameters to a kernel IR program.

use crate::kir::Program;
use crate::{CpuFeatures, EmitError, KernelSpec};

/// Writes the program of `spec`, at the vector width that suits the CPU.
pub(crate) fn build(spec: &KernelSpec, _features: &CpuFeatures) -> Result<Program, EmitError> {
    Err(EmitError::Spec {
        spec: Box::new(spec.clone()),
        reason: "not written yet",
    })
}
