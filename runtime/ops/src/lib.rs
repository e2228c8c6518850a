//! Every operator's meaning, once, as safe code over tensor views.
//!
//! The IR's evaluator (the oracle of every pass test and the constant folder) and the runtime's fallback for operators
//! that no emitted kernel covers are this same code, held to the ONNX backend test suite.
//!
//! [`Operator`] is the closed list of operators, [`Operator::schema`] says what attributes and operands each takes, and
//! [`evaluate`] is what each means. Code here trades speed for obviousness.
#![forbid(unsafe_code)]

#[macro_use]
mod tensor;

mod attention;
mod attributes;
mod binary;
mod call;
mod cast;
mod conv;
mod dft;
mod dtype;
mod einsum;
pub mod elementwise;
mod error;
mod evaluate;
pub mod generalized;
mod generate;
mod index;
mod iteration;
mod lancet;
mod layout;
mod matmul;
mod microsoft;
mod norm;
mod number;
mod operator;
mod packed;
mod pool;
mod probabilities;
mod quant;
mod reduce;
mod resize;
mod rnn;
mod rounding;
mod shape;
pub mod special;
mod unary;
mod window;

pub use attributes::{Attribute, AttributeType, Attributes};
pub use dtype::DType;
pub use error::OpError;
pub use evaluate::evaluate;
pub use iteration::{Iteration, IterationError, truth};
pub use lancet::place_of;
pub use operator::{AttributeSchema, DefaultValue, Domain, Operator, Schema};
pub use probabilities::OverQueries;
pub use rounding::{AttentionRounding, Rounding};
pub use tensor::{Data, DataView, Element, Tensor, TensorView};
