//! ONNX Runtime's operators on quantized tensors, written out.
//!
//! `QLinearAdd(a, b)` is `QuantizeLinear(DequantizeLinear(a) + DequantizeLinear(b))` by definition; the passes that fold
//! quantization then see one spelling.

use lancet_ir::Value;
use lancet_ops::{Attribute, Attributes, DType, Operator};

use super::{Lowering, Results, softmax};
use crate::onnx::error::Fault;

/// `QLinearAdd`, `QLinearMul`, `QLinearSigmoid` and `QLinearLeakyRelu`.
pub(super) fn elementwise(mut l: Lowering<'_, '_>) -> Results {
    let attributes = std::mem::take(&mut l.call.attributes);
    let (op, n) = match l.call.op {
        "QLinearAdd" => (Operator::Add, 2),
        "QLinearMul" => (Operator::Mul, 2),
        "QLinearSigmoid" => (Operator::Sigmoid, 1),
        _ => (Operator::LeakyRelu, 1),
    };
    at_most(&l, 3 * n + 2)?;
    let mut operands = Vec::new();
    for i in 0..n {
        operands.push(dequantize(&mut l, 3 * i)?);
    }
    let y = l.apply(op, attributes, &operands)?;
    quantize(l, y, 3 * n)
}

/// Operands: scale and zero point of the result, then value, scale and zero point of each part.
pub(super) fn concat(mut l: Lowering<'_, '_>) -> Results {
    let attributes = std::mem::take(&mut l.call.attributes);
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

/// `Where` of two quantized tensors.
pub(super) fn choose(mut l: Lowering<'_, '_>) -> Results {
    at_most(&l, 9)?;
    let condition = l.required(0)?;
    let parts = [condition, dequantize(&mut l, 1)?, dequantize(&mut l, 4)?];
    let y = l.apply(Operator::Where, Attributes::new(), &parts)?;
    quantize(l, y, 7)
}

/// `Softmax` as of the opset that an attribute names.
pub(super) fn softmax(mut l: Lowering<'_, '_>) -> Results {
    at_most(&l, 5)?;
    let opset = l
        .take_int("opset")?
        .ok_or_else(|| Fault::invalid("attribute `opset` is missing"))?;
    let axis = l.take_int("axis")?.unwrap_or(-1);
    let x = dequantize(&mut l, 0)?;
    let y = softmax::of(&mut l, Operator::Softmax, x, axis, opset)?;
    quantize(l, y, 3)
}

/// `ReduceMean` over the axes that an attribute names.
pub(super) fn reduce_mean(mut l: Lowering<'_, '_>) -> Results {
    at_most(&l, 5)?;
    let mut operands = vec![dequantize(&mut l, 0)?];
    if let Some(axes) = l.take_ints("axes")?.filter(|axes| !axes.is_empty()) {
        operands.push(l.ints("axes", axes));
    }
    let attributes = std::mem::take(&mut l.call.attributes);
    let y = l.apply(Operator::ReduceMean, attributes, &operands)?;
    quantize(l, y, 3)
}

/// `AveragePool` and `GlobalAveragePool`, with channels after the batch or last.
pub(super) fn pool(mut l: Lowering<'_, '_>) -> Results {
    at_most(&l, 5)?;
    let is_last = l.take_int("channels_last")?.unwrap_or(0) != 0;
    let attributes = std::mem::take(&mut l.call.attributes);
    let op = match l.call.op {
        "QLinearAveragePool" => Operator::AveragePool,
        _ => Operator::GlobalAveragePool,
    };
    let mut y = dequantize(&mut l, 0)?;
    let rank = l.graph.ty(y).rank() as i64;
    if is_last && rank < 3 {
        return Err(Fault::invalid("channels without places").into());
    }
    let permuted = |l: &mut Lowering<'_, '_>, y: Value, perm: Vec<i64>| {
        let perm = Attributes::new().with("perm", Attribute::Ints(perm));
        l.apply(Operator::Transpose, perm, &[y])
    };
    if is_last {
        let perm = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        y = permuted(&mut l, y, perm)?;
    }
    y = l.apply(op, attributes, &[y])?;
    if is_last {
        let perm = [0].into_iter().chain(2..rank).chain([1]).collect();
        y = permuted(&mut l, y, perm)?;
    }
    quantize(l, y, 3)
}

/// `alpha · a' · b' + c`, where `c` is `i32` in units of `alpha` times both scales; quantized if a scale is given for it.
pub(super) fn gemm(mut l: Lowering<'_, '_>) -> Results {
    at_most(&l, 9)?;
    let alpha = l.take_float("alpha")?.unwrap_or(1.0);
    let mut matrices = Vec::new();
    for (index, name) in [(0, "transA"), (3, "transB")] {
        let mut matrix = l.required(index)?;
        if l.take_int(name)?.unwrap_or(0) != 0 {
            let swap = Attributes::new().with("perm", Attribute::Ints(vec![1, 0]));
            matrix = l.apply(Operator::Transpose, swap, &[matrix])?;
        }
        matrices.push(Some(matrix));
    }
    let (a_scale, b_scale) = (l.required(1)?, l.required(4)?);
    matrices.extend([l.operand(2), l.operand(5)]);
    let mut y = l.apply_optional(Operator::MatMulInteger, Attributes::new(), &matrices)?;
    if let Some(c) = l.operand(6) {
        y = l.apply(Operator::Add, Attributes::new(), &[y, c])?;
    }
    let y = l.cast(y, DType::F32)?;
    let mut scale = l.apply(Operator::Mul, Attributes::new(), &[a_scale, b_scale])?;
    if alpha != 1.0 {
        let alpha = l.constant("alpha", Vec::new(), vec![alpha]);
        scale = l.apply(Operator::Mul, Attributes::new(), &[scale, alpha])?;
    }
    let y = l.apply(Operator::Mul, Attributes::new(), &[y, scale])?;
    if l.operand(7).is_none() {
        return Ok(vec![Some(y)]);
    }
    quantize(l, y, 7)
}

fn at_most(l: &Lowering<'_, '_>, n: usize) -> Result<(), Fault> {
    if l.call.operands.len() <= n {
        return Ok(());
    }
    Err(Fault::invalid("too many operands"))
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
