//! ONNX Runtime's element-wise operators on quantized tensors, written out.
//!
//! `QLinearAdd(a, b)` is `QuantizeLinear(DequantizeLinear(a) + DequantizeLinear(b))` by definition; the passes that fold
//! quantization then see one spelling.

use lancet_ir::Value;
use lancet_ops::{Attributes, Operator};

use super::{Lowering, Results};
use crate::onnx::error::Fault;

/// True if [`decompose`] knows the operator.
pub(super) fn is_known(op: &str) -> bool {
    matches!(
        op,
        "QLinearAdd" | "QLinearMul" | "QLinearSigmoid" | "QLinearLeakyRelu" | "QLinearConcat"
    )
}

/// Writes out one of the operators of [`is_known`].
pub(super) fn decompose(mut l: Lowering<'_, '_>) -> Results {
    let attributes = std::mem::take(&mut l.call.attributes);
    let (op, n) = match l.call.op {
        "QLinearAdd" => (Operator::Add, 2),
        "QLinearMul" => (Operator::Mul, 2),
        "QLinearSigmoid" => (Operator::Sigmoid, 1),
        "QLinearLeakyRelu" => (Operator::LeakyRelu, 1),
        _ => return concat(l, attributes),
    };
    if l.call.operands.len() > 3 * n + 2 {
        return Err(Fault::invalid("too many operands").into());
    }
    let mut operands = Vec::new();
    for i in 0..n {
        operands.push(dequantize(&mut l, 3 * i)?);
    }
    let y = l.apply(op, attributes, &operands)?;
    quantize(l, y, 3 * n)
}

/// Operands: scale and zero point of the result, then value, scale and zero point of each part.
fn concat(mut l: Lowering<'_, '_>, attributes: Attributes) -> Results {
    let n = l.call.operands.len();
    if n < 5 || n % 3 != 2 {
        return Err(Fault::invalid("takes two operands and three for each part").into());
    }
    let mut parts = Vec::new();
    for first in (2..n).step_by(3) {
        parts.push(dequantize(&mut l, first)?);
    }
    let y = l.apply(Operator::Concat, attributes, &parts)?;
    quantize(l, y, 0)
}

/// The operand at `first`, with its scale and zero point after it, as a float.
fn dequantize(l: &mut Lowering<'_, '_>, first: usize) -> Result<Value, Fault> {
    let operands = [
        Some(l.required(first)?),
        Some(l.required(first + 1)?),
        l.operand(first + 2),
    ];
    l.apply_optional(Operator::DequantizeLinear, Attributes::new(), &operands)
}

/// `y` under the scale at operand `first` and the zero point after it.
fn quantize(mut l: Lowering<'_, '_>, y: Value, first: usize) -> Results {
    let operands = [Some(y), Some(l.required(first)?), l.operand(first + 1)];
    let y = l.apply_optional(Operator::QuantizeLinear, Attributes::new(), &operands)?;
    Ok(vec![Some(y)])
}
