//! Types of results from types of operands, and elements of shape computations where they are known.

use lancet_ops::DType;

use crate::{Dim, IrError, Op, TensorType, ValueInfo};

/// Types of the `n_results` results of `op` on these operands.
///
/// `fresh` makes a symbol for a size that depends on data.
///
/// # Errors
/// [`IrError`] if the operands do not fit the operation.
pub fn infer(
    op: &Op,
    operands: &[Option<&ValueInfo>],
    n_results: usize,
    fresh: &mut dyn FnMut() -> Dim,
) -> Result<Vec<ValueInfo>, IrError> {
    let _ = (operands, n_results, fresh);
    match op {
        Op::Const(c) => Ok(vec![ValueInfo::new(TensorType::fixed(
            c.tensor.dtype(),
            c.tensor.shape(),
        ))]),
        Op::Dims(d) => Ok(vec![ValueInfo {
            ty: TensorType::fixed(DType::I64, &[d.len()]),
            elements: Some(d.clone().into()),
        }]),
        _ => Err(IrError::Type {
            op: op.text().to_owned(),
            message: "inference is not written yet".to_owned(),
        }),
    }
}
