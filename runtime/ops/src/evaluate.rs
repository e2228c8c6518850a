//! What each operator means: dispatch from [`Operator`] to the function that evaluates it.

use crate::{Attributes, OpError, Operator, Tensor, TensorView};

/// Evaluates `op` on `operands`; `None` is an absent optional operand.
///
/// # Errors
/// [`OpError`] if the operands or attributes are outside what the operator accepts.
pub fn evaluate(
    op: Operator,
    _attributes: &Attributes,
    operands: &[Option<TensorView<'_>>],
    n_results: usize,
) -> Result<Vec<Tensor>, OpError> {
    let _ = n_results;
    Err(OpError::OperandCount {
        op,
        expected: "none yet".to_owned(),
        found: operands.len(),
    })
}
