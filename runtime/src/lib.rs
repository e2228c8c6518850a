//! Runs compiled models.
//!
//! A [`Model`] is loaded from an artifact; a [`Session`] runs it:
//!
//! ```no_run
//! use lancet_ops::Tensor;
//! use lancet_runtime::{Model, Session};
//!
//! # fn main() -> Result<(), lancet_runtime::RuntimeError> {
//! let model = Model::load("model.lancet")?;
//! let mut session = Session::new(&model);
//! let ids = Tensor::new([1, 4], vec![101i64, 7592, 2088, 102]);
//! let mask = Tensor::new([1, 4], vec![1i64; 4]);
//! for (name, tensor) in session.run(&[("input_ids", ids.view()), ("attention_mask", mask.view())])? {
//!     println!("{name}: {:?}", tensor.shape());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! One model serves every batch and length, any number of sessions, and gives the same bits at any thread count. The
//! runtime knows neither ONNX nor the graph: it interprets the plan that the compiler wrote.

mod arena;
mod bind;
mod check;
mod cpu;
mod error;
mod jit;
mod kernels;
mod mmap;
mod model;
mod panels;
mod peak;
mod pool;
mod program;
mod session;
mod steps;

pub use error::RuntimeError;
pub use kernels::Kernels;
pub use model::{Model, ModelOptions, PortInfo};
pub use peak::peak_gflops;
pub use session::{Session, StepTrace};
