//! What can go wrong when a model is loaded or run.

use lancet_artifact::{ArtifactError, PlanError};
use lancet_ops::{DType, OpError};

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    /// The bytes are not an artifact that this version reads.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The plan asks for something that cannot be run.
    #[error("plan: {0}")]
    Plan(#[from] PlanError),
    /// The artifact has no variant of this name.
    #[error("unknown variant `{name}`: the artifact has {known}")]
    UnknownVariant { name: String, known: String },
    /// The caller gave a tensor that the model does not have.
    #[error("unknown input `{name}`: the model has {known}")]
    UnknownInput { name: String, known: String },
    /// The caller gave an input twice.
    #[error("input `{name}` is given twice")]
    RepeatedInput { name: String },
    /// The caller left out an input.
    #[error("input `{name}` is missing")]
    MissingInput { name: String },
    /// An input has another element type.
    #[error("input `{name}`: expected element type {expected}, found {found}")]
    InputDType {
        name: String,
        expected: DType,
        found: DType,
    },
    /// An input has another rank.
    #[error("input `{name}`: expected rank {expected}, found shape {found:?}")]
    InputRank {
        name: String,
        expected: usize,
        found: Vec<usize>,
    },
    /// A dimension of an input has another size, or contradicts another input.
    #[error("input `{name}` dimension {dim}: expected {expected}, found {found}")]
    InputDim {
        name: String,
        dim: usize,
        expected: String,
        found: usize,
    },
    /// The model has no output of this name.
    #[error("unknown output `{name}`: the model has {known}")]
    UnknownOutput { name: String, known: String },
    /// Nothing has run yet, or the last run failed.
    #[error("no outputs: the session has not run to its end")]
    NoOutputs,
    /// The sizes need more memory than the options allow.
    #[error(
        "sizes of this request need {needed_bytes} bytes of working memory, the limit is {limit_bytes}"
    )]
    MemoryLimit { needed_bytes: u64, limit_bytes: u64 },
    /// The working memory could not be allocated.
    #[error("cannot allocate {bytes} bytes of working memory")]
    OutOfMemory { bytes: u64 },
    /// A size is negative or overflows for the sizes of this request.
    #[error("{place}: size `{size}` is not a number of elements for the sizes of this request")]
    Size { place: String, size: String },
    /// A portable operator failed.
    #[error("step {step} `{name}`: {source}")]
    Operator {
        step: usize,
        name: String,
        source: OpError,
    },
    /// A step gave or got something else than the plan says.
    #[error("step {step} `{name}`: {message}")]
    Step {
        step: usize,
        name: String,
        message: String,
    },
    /// Kernels could not be made executable.
    #[error("cannot make kernels executable: {0}")]
    Jit(String),
    /// This machine cannot run any model.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A task of the thread pool panicked; the session can be used again.
    #[error("a task of the thread pool panicked")]
    Panicked,
}
