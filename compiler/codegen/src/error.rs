//! Why a kernel could not be emitted.

use lancet_artifact::KernelSpec;

/// Why a kernel could not be emitted.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("no kernel for {spec:?}: {reason}")]
    Spec {
        spec: Box<KernelSpec>,
        reason: &'static str,
    },
    #[error("kernels need {missing}")]
    Cpu { missing: &'static str },
    #[error("kernel {kernel} needs {needed} vector registers, the target has {available}")]
    Registers {
        kernel: String,
        needed: usize,
        available: usize,
    },
    #[error("kernel {kernel} names two stack slots in one address")]
    TwoSlots { kernel: String },
    #[error("kernel {kernel}: {what}")]
    Unsupported { kernel: String, what: &'static str },
    #[error("cannot encode an instruction: {0}")]
    Encode(#[from] iced_x86::IcedError),
}
