//! The compiled model as a file: a plan, and the packed weights that it points into.
//!
//! A [`Plan`] is a flat list of steps over symbolic sizes. It is plain data: lowering writes it, the runtime interprets
//! it, and nothing in it refers to the graph or the file that it came from. [`write`] and [`read`] move it to and from
//! bytes together with its weights section; `compiler/docs/artifact.md` describes those bytes.
//!
//! No machine code is stored: kernels are emitted from the plan's own types, so reading an artifact is safe whatever
//! its bytes, and one file serves every CPU.
#![forbid(unsafe_code)]

mod activation;
mod binary;
mod error;
mod file;
mod plan;
mod reduction;
mod spec;
mod validate;
mod vertical;
mod weights;
mod wire;

pub use activation::{Activation, UnknownActivation};
pub use binary::Binary;
pub use error::{ArtifactError, PlanError};
pub use file::{FORMAT_VERSION, MAX_PLAN_BYTES, Variants, is_artifact, read, write};
pub use plan::{
    AttentionParameters, Attribute, AttributeTensor, Dim, GeneralizedAttention, Layout, MatrixDesc,
    Plan, Port, RowBlock, Step, StepKind, Storage, ValueDesc,
};
pub use reduction::{Reduction, UnknownReduction};
pub use spec::{Arithmetic, Float, KernelSpec, Reach, WeightFormat};
pub use validate::ALIGNMENT;
pub use vertical::{Element, Extent, Vertical, VerticalOp, VerticalOperand};
pub use weights::Weights;
