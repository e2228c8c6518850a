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
//!   %2 = at_least %1, @least : f32[s, 4]
//!   %3 = at_most %2, @greatest : f32[s, 4]
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
//! Where it is undone with another scale, that one is multiplied by; with 1, nothing. A negative number that is rounded to zero
//! becomes -0.0, which bytes do not have; zero is added to it where something divides by it.
//!
//! Preconditions: `f32`, constant scales and one zero point for the whole tensor, and 8 or 16 bits between. Otherwise the graph
//! stays as it is.
//!
//! Numeric effect: exact. `at_least` makes the least value of NaN, as quantization does.
//!
//! Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
//! (arXiv:1712.05877), section 3.

use std::collections::HashSet;
use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Value};
use lancet_ops::{Attributes, Operator, Tensor};

use crate::matcher::{result, scalar};
use crate::quantized::fake;
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
            let Some((x, to, factor)) = fake(graph, result(node)) else {
                continue;
            };
            let Some(rounding) = to.rounding() else {
                continue;
            };
            let mut number =
                |name: &str, v: f32| graph.add_const(name, Arc::new(Tensor::scalar(v)));
            let [scale, least, greatest] = rounding.numbers();
            let undone = (factor != 1.0 && factor != scale).then(|| number("factor", factor));
            let scale = number("scale", scale);
            let least = number("least", least);
            let greatest = number("greatest", greatest);
            let undone = undone.or((factor != 1.0).then_some(scale));
            let mut value = rewrites.resolve(x);
            for (operator, operand) in [
                (Operator::Div, Some(scale)),
                (Operator::Round, None),
                (Operator::AtLeast, Some(least)),
                (Operator::AtMost, Some(greatest)),
            ] {
                let operands: Vec<_> = std::iter::once(value).chain(operand).collect();
                value = graph.apply(operator, Attributes::new(), &operands)?;
            }
            if shows_sign_of_zero(graph, result(node)) {
                let zero = graph.add_const("zero", Arc::new(Tensor::scalar(0.0f32)));
                value = graph.apply(Operator::Add, Attributes::new(), &[value, zero])?;
            }
            if let Some(factor) = undone {
                value = graph.apply(Operator::Mul, Attributes::new(), &[value, factor])?;
            }
            rewrites.replace(graph, result(node), value)?;
        }
        Ok(rewrites.changed())
    }
}

/// Whether a value that comes from `value` by elementwise operators and moves is divided by: then -0.0 is not 0.0.
fn shows_sign_of_zero(graph: &Graph, value: Value) -> bool {
    let mut pending = vec![value];
    let mut seen = HashSet::new();
    while let Some(value) = pending.pop() {
        if !seen.insert(value) {
            continue;
        }
        for (user, operand) in graph.users(value) {
            match graph.op(user).operator() {
                Some(Operator::Div) if operand == 1 => return true,
                Some(Operator::Reciprocal) => return true,
                Some(Operator::Pow) if !is_raised_to_positive(graph, user) => return true,
                // Sums of products begin at 0.0, bytes and norms have no sign of zero.
                Some(
                    Operator::QuantizeLinear
                    | Operator::Linear
                    | Operator::MatMul
                    | Operator::ScaledDotProductAttention
                    | Operator::PackedAttention
                    | Operator::LayerNormalization
                    | Operator::RMSNormalization
                    | Operator::Softmax
                    | Operator::Abs
                    | Operator::Exp
                    | Operator::Cast,
                ) => {}
                _ => {
                    let n = graph.n_results(user) as u32;
                    pending.extend((0..n).map(|result| Value { node: user, result }));
                }
            }
        }
    }
    false
}

fn is_raised_to_positive(graph: &Graph, pow: NodeId) -> bool {
    let exponent = graph.operand(pow, 1).and_then(|v| scalar(graph, v));
    exponent.is_some_and(|e| 0.0 < e)
}
