//! The intermediate representation: one typed graph between ONNX import and lowering.
//!
//! A [`Graph`] is a value: it owns its nodes, and nothing here touches files, threads or the environment. Text prints and
//! parses ([`print`], [`parse`]); [`eval`] is the executable specification; [`infer`] gives every node its types.
#![forbid(unsafe_code)]

mod bindings;
mod dim;
mod error;
mod eval;
mod generate;
mod graph;
pub mod infer;
mod op;
mod text;
mod types;
mod verify;

pub use dim::{Dim, Symbol};
pub use error::IrError;
pub use eval::{EvalError, eval, eval_with};
pub use generate::{GenerateError, Generator, Pattern, Random};
pub use graph::{Graph, NodeId, Output, Value, ValueInfo};
pub use op::{Constant, Op};
pub use text::{
    Diagnostic, MAX_ELEMENTS, ParseError, PrintOptions, Resolver, content_hash, directives, parse,
    parse_limited, parse_with, print, print_with, value_names,
};
pub use types::{Layout, TensorType, WeightFormat};
pub use verify::verify;
