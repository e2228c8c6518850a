//! Values that stand for real numbers by bytes: `x = (q - zero_point) · scale`.

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{DType, Operator};

use crate::matcher::{applied, int_scalar, permutation, scalar};

/// How all elements of a tensor are quantized: one scale, one zero point, both constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) scale: f32,
    pub(crate) zero_point: i64,
    /// The type of the quantized elements.
    pub(crate) dtype: DType,
}

/// The operand of a `QuantizeLinear` of `f32` and its parameters.
pub(crate) fn quantize(graph: &Graph, value: Value) -> Option<(Value, Parameters)> {
    let node = applied(graph, value, Operator::QuantizeLinear)?;
    let x = graph.operand(node, 0)?;
    let parameters = parameters(graph, value, graph.ty(value).dtype)?;
    let is_f32 =
        graph.ty(x).dtype == DType::F32 && graph.attributes(node).get("precision").is_none();
    is_f32.then_some((x, parameters))
}

/// The operand of a `DequantizeLinear` to `f32` and its parameters.
pub(crate) fn dequantize(graph: &Graph, value: Value) -> Option<(Value, Parameters)> {
    let node = applied(graph, value, Operator::DequantizeLinear)?;
    let q = graph.operand(node, 0)?;
    let parameters = parameters(graph, value, graph.ty(q).dtype)?;
    (graph.ty(value).dtype == DType::F32).then_some((q, parameters))
}

fn parameters(graph: &Graph, value: Value, dtype: DType) -> Option<Parameters> {
    let [scale, zero_point] = [1, 2].map(|i| graph.operand(value.node, i));
    if graph.ty(scale?).dtype != DType::F32 {
        return None;
    }
    Some(Parameters {
        scale: scalar(graph, scale?)?,
        zero_point: match zero_point {
            Some(z) => int_scalar(graph, z)?,
            None => 0,
        },
        dtype,
    })
}

/// Whether an operation moves elements and changes none: quantization commutes with it.
pub(crate) fn is_move(graph: &Graph, value: Value) -> bool {
    match graph.op(value.node) {
        Op::View(_) => true,
        Op::Apply(Operator::Transpose, _) => permutation(graph, value.node).is_some(),
        _ => false,
    }
}
