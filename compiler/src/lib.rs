//! Lancet compiles ONNX models of the BERT family, pruned and quantized, and runs them fast on CPUs.
//!
//! [`compile_file`] turns an ONNX file into a plan and packed weights, [`Compiled::write_file`] into an artifact that
//! [`Model::load`] maps into memory, and a [`Session`] runs it. The same steps are the command line's.
//!
//! ```text
//! model.onnx ──onnx──► Graph ──passes──► Graph ──lower──► Plan + weights ──► artifact ──► Model ──► Session::run
//! ```
#![forbid(unsafe_code)]

mod compile;
pub mod kernels;
pub mod lower;
pub mod onnx;
pub mod pipeline;

pub use compile::{
    CompileError, CompileOptions, Compiled, compile, compile_file, optimize, write_variants,
};
pub use lancet_ops::{DType, Data, Tensor, TensorView};
pub use lancet_passes::{Remark, RemarkKind, Report, Target};
pub use lancet_runtime::{Model, ModelOptions, Session};
