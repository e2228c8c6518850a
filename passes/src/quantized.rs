//! Values that stand for real numbers by bytes: `x = (q - zero_point) · scale`.

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{AttentionRounding, DType, Operator, Rounding};

use crate::matcher::{applied, int_scalar, permutation, scalar};

/// How all elements of a tensor are quantized: one scale, one zero point, both constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) scale: f32,
    pub(crate) zero_point: i64,
    /// The type of the quantized elements.
    pub(crate) dtype: DType,
}

impl Parameters {
    /// What quantization does to a number in multiples of the scale; `None` where it is not to 8 or 16 bits.
    pub(crate) fn rounding(&self) -> Option<Rounding> {
        let (least, greatest) = range(self.dtype)?;
        let number = |v: i64| (v - self.zero_point) as f32;
        Rounding::new([self.scale, number(least), number(greatest)])
    }
}

/// The least and the greatest element of a type that numbers are quantized to.
fn range(dtype: DType) -> Option<(i64, i64)> {
    match dtype {
        DType::U8 => Some((0, i64::from(u8::MAX))),
        DType::I8 => Some((i64::from(i8::MIN), i64::from(i8::MAX))),
        DType::U16 => Some((0, i64::from(u16::MAX))),
        DType::I16 => Some((i64::from(i16::MIN), i64::from(i16::MAX))),
        _ => None,
    }
}

/// The greatest magnitude of elements of this type with the zero point taken off.
pub(crate) fn magnitude(dtype: DType, zero_point: i64) -> Option<i64> {
    let (least, greatest) = range(dtype)?;
    Some(
        (greatest - zero_point)
            .abs()
            .max((least - zero_point).abs()),
    )
}

/// The operand of a quantization that is undone at once, its parameters, and the scale that it is undone with.
pub(crate) fn fake(graph: &Graph, value: Value) -> Option<(Value, Parameters, f32)> {
    let (q, from) = dequantize(graph, value)?;
    let (x, to) = quantize(graph, q)?;
    let same = from.dtype == to.dtype && from.zero_point == to.zero_point;
    same.then_some((x, to, from.scale))
}

/// The operand of a `QuantizeLinear` of `f32` and its parameters.
pub(crate) fn quantize(graph: &Graph, value: Value) -> Option<(Value, Parameters)> {
    let node = applied(graph, value, Operator::QuantizeLinear)?;
    let x = graph.operand(node, 0)?;
    let parameters = parameters(graph, value, graph.ty(value).dtype)?;
    let precision = graph.attributes(node).str("precision");
    let is_f32 = graph.ty(x).dtype == DType::F32 && precision.is_none_or(|p| p == "f32");
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

/// Whether an attention rounds scores or probabilities. Then a bias of keys is not the same for all of them, and weights need
/// not sum to 1.
pub(crate) fn rounds(graph: &Graph, attention: NodeId) -> bool {
    AttentionRounding::of(graph.attributes(attention)).is_ok_and(|r| r.is_any())
}

/// Whether an operation moves elements and changes none: quantization commutes with it.
pub(crate) fn is_move(graph: &Graph, value: Value) -> bool {
    match graph.op(value.node) {
        Op::View(_) => true,
        Op::Apply(Operator::Transpose, _) => permutation(graph, value.node).is_some(),
        _ => false,
    }
}
