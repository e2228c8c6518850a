//! What can be wrong with the operands of an operator.

use crate::{DType, Operator};

/// Why an operator could not be evaluated on the operands it was given.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpError {
    /// The operator takes another number of operands.
    #[error("{op}: takes {expected} operands, found {found}")]
    OperandCount {
        op: Operator,
        expected: String,
        found: usize,
    },
    /// A required operand is absent.
    #[error("{op} operand {index}: missing")]
    MissingOperand { op: Operator, index: usize },
    /// The operator is not defined, or not implemented, for this element type.
    #[error("{op} operand {index}: element type {dtype} is not supported")]
    DType {
        op: Operator,
        index: usize,
        dtype: DType,
    },
    /// Shapes do not fit the operator or each other.
    #[error("{op}: {message}")]
    Shape { op: Operator, message: String },
    /// An attribute is missing, of another type, or out of range.
    #[error("{op} attribute `{name}`: {message}")]
    Attribute {
        op: Operator,
        name: String,
        message: String,
    },
    /// The value of an operand is outside what the operator accepts, such as an index out of range.
    #[error("{op} operand {index}: {message}")]
    Value {
        op: Operator,
        index: usize,
        message: String,
    },
    /// The result would be larger than any machine's memory, or a size overflows.
    #[error("{op}: result is too large ({message})")]
    TooLarge { op: Operator, message: String },
}
