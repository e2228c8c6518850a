//! Writes quantization that is undone at once as the arithmetic that it is.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   const @scale: f32[] = 0.5
//!   const @zero: u8[] = 128
//!   %0 = quantize_linear %x, @scale, @zero : u8[s, 4]
//!   %1 = dequantize_linear %0, @scale, @zero : f32[s, 4]
//!   return %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   const @scale: f32[] = 0.5
//!   const @least: f32[] = -128.0
//!   const @greatest: f32[] = 127.0
//!   %0 = div %x, @scale : f32[s, 4]
//!   %1 = round %0 : f32[s, 4]
//!   %2 = max %1, @least : f32[s, 4]
//!   %3 = min %2, @greatest : f32[s, 4]
//!   %4 = mul %3, @scale : f32[s, 4]
//!   return %4
//! }
//! ```
//!
//! Identity: with the zero point `z` of a type from `a` to `b`,
//! `(clip(round(x / s) + z, a, b) - z) · s = clip(round(x / s), a - z, b - z) · s`; all are whole numbers that `f32` has. The values then
//! need no bytes: they join the elementwise operators around them, and an integer layer that reads the same bytes makes
//! them on its own.
//!
//! Preconditions: `f32`, one constant scale and zero point for the whole tensor, the same for both, and a result of 8 bits.
//! Otherwise the graph stays as it is.
//!
//! Numeric effect: exact but for NaN, which is kept where the bytes made it the least value.
//!
//! Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
//! (arXiv:1712.05877), section 3.

use std::sync::Arc;

use lancet_ir::Graph;
use lancet_ops::{Attributes, DType, Operator, Tensor};

use crate::matcher::result;
use crate::quantized::{dequantize, quantize};
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "expand-fake-quantization",
    summary: "write quantization that is undone at once as arithmetic",
    options: &[],
    new: || Box::new(ExpandFakeQuantization),
};

struct ExpandFakeQuantization;

impl Pass for ExpandFakeQuantization {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut rewrites = Rewrites::new();
        for node in graph.order() {
            let Some((q, from)) = dequantize(graph, result(node)) else {
                continue;
            };
            let Some((x, to)) = quantize(graph, q).filter(|(_, to)| *to == from) else {
                continue;
            };
            let (least, greatest) = match to.dtype {
                DType::U8 => (0, 255),
                DType::I8 => (-128, 127),
                _ => continue,
            };
            let mut number =
                |name: &str, v: f32| graph.add_const(name, Arc::new(Tensor::scalar(v)));
            let scale = number("scale", to.scale);
            let least = number("least", (least - to.zero_point) as f32);
            let greatest = number("greatest", (greatest - to.zero_point) as f32);
            let mut value = rewrites.resolve(x);
            for (operator, operand) in [
                (Operator::Div, Some(scale)),
                (Operator::Round, None),
                (Operator::Max, Some(least)),
                (Operator::Min, Some(greatest)),
                (Operator::Mul, Some(scale)),
            ] {
                let operands: Vec<_> = std::iter::once(value).chain(operand).collect();
                value = graph.apply(operator, Attributes::new(), &operands)?;
            }
            rewrites.replace(graph, result(node), value)?;
        }
        Ok(rewrites.changed())
    }
}
