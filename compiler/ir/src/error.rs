//! What can be wrong with a graph.

use lancet_ops::OpError;

/// Why a node or a graph is not valid.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IrError {
    /// The operator rejects its operands or attributes.
    #[error(transparent)]
    Op(#[from] OpError),
    /// Operand types do not fit the operation.
    #[error("{op}: {message}")]
    Type { op: String, message: String },
    /// Types stated for a node differ from those inferred.
    #[error("{op} result {index}: stated {stated}, inferred {inferred}")]
    Mismatch {
        op: String,
        index: usize,
        stated: String,
        inferred: String,
    },
    /// An attribute is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Attributes(Vec<OpError>),
    /// A value is replaced by one of another type.
    #[error("cannot replace a value of type {from} by one of type {to}")]
    Replace { from: String, to: String },
    /// The graph breaks an invariant.
    #[error("{node}: {message}")]
    Invariant { node: String, message: String },
}
