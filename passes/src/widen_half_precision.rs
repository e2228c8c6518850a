//! Computes in `f32` what a file computes in `f16` or `bf16`.
//!
//! Before:
//! ```ir
//! graph @g(%x: f16[s, 2]) dims(s) {
//!   const @w: f16[2, 3] = [[0.5, 1.0, 2.0], [0.25, 4.0, -1.0]]
//!   %0 = matmul %x, @w : f16[s, 3]
//!   %1 = tanh %0 : f16[s, 3]
//!   return %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f16[s, 2]) dims(s) {
//!   const @w: f32[2, 3] = [[0.5, 1.0, 2.0], [0.25, 4.0, -1.0]]
//!   %0 = cast %x {to = "f32"} : f32[s, 2]
//!   %1 = matmul %0, @w : f32[s, 3]
//!   %2 = tanh %1 : f32[s, 3]
//!   %3 = cast %2 {to = "f16"} : f16[s, 3]
//!   return %3
//! }
//! ```
//!
//! Identity: `f32` holds every value of both types, so that an operator on widened operands gives what the operator on the
//! narrow ones is an approximation of. Every value of half precision gets a twin in `f32`; casts between the two are the twin.
//! Inputs and outputs of the graph keep their types.
//!
//! Preconditions: what a user of a narrow value sees in steps stays narrow, its operands rounded as in the file: comparisons, casts to
//! integers and booleans, `Floor`, `ArgMax`, `TopK` and their like, but not `IsNaN`, which rounding does not change. So does an
//! operator that has no form in `f32`.
//! Both are remarks. A cast to half precision stays where its operand is a constant, or arithmetic on integers and constants, one
//! of them finite in `f32` alone: there it makes a mask's infinity.
//!
//! Quantization has steps too, but all of a model that is quantized and half precise lies between two of them: it is widened, scales
//! exactly and quotients in `f32`, as ONNX Runtime divides.
//!
//! Numeric effect: approximates, within the rounding of the file's own arithmetic, towards what exact arithmetic gives.
//! One operation between borders is rounded once more, which changes nothing for sums, products, quotients and square roots.
//! Computed values beyond the range of `f16` stay finite, and an integer beyond it that is cast is itself.
//!
//! Source: ONNX Runtime runs such models on CPUs this way. Figueroa, "When is double rounding innocuous?", SIGNUM Newsletter 30(3),
//! 1995, for the single operation.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Graph, IrError, NodeId, Op, TensorType, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor, evaluate};

use crate::analysis::access::is_elementwise;
use crate::matcher::{peel_broadcasts, result};
use crate::rewrite::node_error;
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "widen-half-precision",
    summary: "compute in f32 what is written in f16 or bf16",
    options: &[],
    new: || Box::new(WidenHalfPrecision),
};

struct WidenHalfPrecision;

impl Pass for WidenHalfPrecision {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut twins = Twins::default();
        let mut rewrites = Rewrites::new();
        let mut widened: Vec<NodeId> = Vec::new();
        for node in graph.order() {
            match meaning(graph, node) {
                Meaning::Other => {}
                Meaning::Cast => twins.cast(graph, node, &mut rewrites)?,
                Meaning::Steps => {
                    if twins.narrow_operands(graph, node)? {
                        cx.missed(graph, node, "sees values rounded to half precision");
                    }
                }
                Meaning::Arithmetic => {
                    match twins.widen(graph, node, &mut rewrites) {
                        Ok(()) => widened.push(node),
                        Err(reason) => {
                            cx.missed(graph, node, format!("has no form in f32: {reason}"));
                            twins.narrow_operands(graph, node)?;
                        }
                    };
                }
            }
        }
        if let [first, ..] = widened[..] {
            let n = widened.len();
            cx.applied(graph, first, format!("{n} operations in half precision are computed in f32, which is more exact, from here on"));
        }
        for output in graph.outputs().to_vec() {
            if let Some(narrow) = twins.narrowed(graph, output.value)? {
                rewrites.replace(graph, output.value, narrow)?;
            }
        }
        Ok(Changed::from(!widened.is_empty() || !rewrites.is_empty()))
    }
}

/// What a node is to this pass.
enum Meaning {
    /// Has nothing to do with half precision, or is where it comes from.
    Other,
    /// Changes the element type.
    Cast,
    /// Its result jumps where an operand hardly changes.
    Steps,
    Arithmetic,
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

fn meaning(graph: &Graph, node: NodeId) -> Meaning {
    let mut operands = graph.operands(node).into_iter().flatten();
    let mut results = (0..graph.n_results(node) as u32).map(|result| Value { node, result });
    let half = |v: Value| is_half(graph.ty(v).dtype);
    if !(operands.any(half) || results.any(half)) {
        return Meaning::Other;
    }
    match graph.op(node) {
        Op::Input(_) | Op::Const(_) | Op::Dims(_) => Meaning::Other,
        // Their graphs are widened by themselves.
        Op::If { .. } | Op::Loop { .. } => Meaning::Steps,
        Op::View(_) | Op::Broadcast(_) | Op::Convert(_) => Meaning::Arithmetic,
        Op::Apply(Operator::Cast | Operator::CastLike, _) => {
            if graph.ty(result(node)).dtype.is_float() {
                Meaning::Cast
            } else {
                Meaning::Steps
            }
        }
        Op::Apply(operator, _) if has_steps(*operator) => Meaning::Steps,
        Op::Apply(..) => Meaning::Arithmetic,
    }
}

/// Whether an operator tells apart values that are as close as rounding makes them.
fn has_steps(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::ArgMax
            | Operator::ArgMin
            | Operator::Ceil
            | Operator::Equal
            | Operator::Floor
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::Hardmax
            | Operator::IsInf
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::MaxPool
            | Operator::Mod
            | Operator::NonZero
            | Operator::OneHot
            | Operator::Range
            | Operator::Round
            | Operator::Sign
            | Operator::ThresholdedRelu
            | Operator::TopK
    )
}

/// A value in `f32` for one of half precision.
#[derive(Clone, Copy)]
struct Twin {
    value: Value,
    /// The narrow value is to be rounded from this one, not computed.
    computed: bool,
}

/// Twins by the values they stand for.
#[derive(Default)]
struct Twins {
    of: HashMap<Value, Twin>,
    narrow: HashMap<Value, Value>,
}

impl Twins {
    fn source(&mut self, of: Value, value: Value) {
        let twin = Twin {
            value,
            computed: false,
        };
        self.of.insert(of, twin);
    }

    /// The twin of `value`; one that is not computed in `f32` is widened.
    fn twin(&mut self, graph: &mut Graph, value: Value) -> Result<Value, IrError> {
        if let Some(twin) = self.of.get(&value) {
            return Ok(twin.value);
        }
        let wide = match graph.op(value.node) {
            Op::Const(c) => {
                let tensor = converted(&c.tensor, DType::F32);
                let name = c.name.clone();
                graph.add_const(&name, Arc::new(tensor))
            }
            Op::Input(_)
            | Op::Dims(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..)
            | Op::If { .. }
            | Op::Loop { .. } => cast(graph, value, DType::F32)?,
        };
        self.source(value, wide);
        Ok(wide)
    }

    /// The narrow value that a user in half precision has to see, if `value` itself is not it.
    fn narrowed(&mut self, graph: &mut Graph, value: Value) -> Result<Option<Value>, PassError> {
        let Some(twin) = self.of.get(&value).filter(|twin| twin.computed) else {
            return Ok(None);
        };
        if let Some(&narrow) = self.narrow.get(&value) {
            return Ok(Some(narrow));
        }
        let dtype = graph.ty(value).dtype;
        let narrow =
            cast(graph, twin.value, dtype).map_err(|e| node_error(graph, value.node, e))?;
        self.narrow.insert(value, narrow);
        Ok(Some(narrow))
    }

    /// Gives a node that stays narrow its operands. True if any was computed in `f32`.
    fn narrow_operands(&mut self, graph: &mut Graph, node: NodeId) -> Result<bool, PassError> {
        let mut changed = false;
        for (i, operand) in graph.operands(node).into_iter().enumerate() {
            let Some(operand) = operand else { continue };
            if let Some(narrow) = self.narrowed(graph, operand)? {
                graph
                    .set_operand(node, i, Some(narrow))
                    .map_err(|e| node_error(graph, node, e))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// A cast to half precision, or from it to another floating-point type: the twin of one is that of the other.
    fn cast(
        &mut self,
        graph: &mut Graph,
        node: NodeId,
        rewrites: &mut Rewrites,
    ) -> Result<(), PassError> {
        let (Some(from), to) = (graph.operand(node, 0), result(node)) else {
            return Ok(());
        };
        let dtype = graph.ty(to).dtype;
        let broken = |graph: &Graph, source| node_error(graph, node, source);
        if is_half(dtype) {
            if !is_infinite_in(graph, from, dtype) {
                let wide = if is_half(graph.ty(from).dtype) {
                    self.twin(graph, from)
                } else {
                    cast(graph, from, DType::F32)
                };
                let wide = wide.map_err(|e| broken(graph, e))?;
                self.source(to, wide);
            }
            self.narrow_operands(graph, node)?;
            return Ok(());
        }
        let known = self.of.contains_key(&from) || graph.constant(from).is_some();
        if !known {
            if dtype == DType::F32 {
                self.source(from, to);
            }
            return Ok(());
        }
        let wide = self.twin(graph, from).map_err(|e| broken(graph, e))?;
        let wide = cast(graph, wide, dtype).map_err(|e| broken(graph, e))?;
        rewrites.replace(graph, to, wide)
    }

    /// Computes the results of a node from the twins of its operands, in `f32`.
    fn widen(
        &mut self,
        graph: &mut Graph,
        node: NodeId,
        rewrites: &mut Rewrites,
    ) -> Result<(), String> {
        let operands = graph.operands(node).into_iter();
        let operands: Vec<Option<Value>> = operands
            .map(|v| match v {
                Some(v) if is_half(graph.ty(v).dtype) => self.twin(graph, v).map(Some),
                other => Ok(other),
            })
            .collect::<Result<_, IrError>>()
            .map_err(|e| e.to_string())?;
        let results: Vec<Value> = (0..graph.n_results(node) as u32)
            .map(|result| Value { node, result })
            .collect();
        let wide = |ty: &TensorType| TensorType {
            dtype: if is_half(ty.dtype) {
                DType::F32
            } else {
                ty.dtype
            },
            ..ty.clone()
        };
        let types: Vec<TensorType> = results.iter().map(|&v| wide(graph.ty(v))).collect();
        let op = widened(graph.op(node));
        let new = graph
            .add_stated(op, &operands, &types)
            .map_err(|e| e.to_string())?;
        let name = graph.node_name(node).to_owned();
        graph.set_node_name(new, &name);
        for old in results {
            let value = Value { node: new, ..old };
            if is_half(graph.ty(old).dtype) {
                let twin = Twin {
                    value,
                    computed: true,
                };
                self.of.insert(old, twin);
            } else {
                rewrites
                    .replace(graph, old, value)
                    .map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }
}

/// `value` in another element type.
fn cast(graph: &mut Graph, value: Value, dtype: DType) -> Result<Value, IrError> {
    if graph.ty(value).dtype == dtype {
        return Ok(value);
    }
    let to = Attribute::Str(dtype.name().to_owned());
    graph.apply(Operator::Cast, Attributes::new().with("to", to), &[value])
}

fn converted(tensor: &Tensor, dtype: DType) -> Tensor {
    let to = Attribute::Str(dtype.name().to_owned());
    let attributes = Attributes::new().with("to", to);
    let results = evaluate(Operator::Cast, &attributes, &[Some(tensor.view())], 1);
    let mut results = results.expect("every type casts to every other");
    results.pop().expect("one was asked for")
}

/// The operation with `f32` for half precision in its attributes.
fn widened(op: &Op) -> Op {
    let Op::Apply(operator, attributes) = op else {
        return op.clone();
    };
    let mut attributes = attributes.clone();
    for schema in operator.schema().attributes {
        let wide = match attributes.get(schema.name) {
            Some(Attribute::Str(name)) if ["f16", "bf16"].contains(&name.as_str()) => {
                Attribute::Str(DType::F32.name().to_owned())
            }
            Some(Attribute::Tensor(tensor)) if is_half(tensor.dtype()) => {
                Attribute::Tensor(Arc::new(converted(tensor, DType::F32)))
            }
            _ => continue,
        };
        attributes.set(schema.name, wide);
    }
    Op::Apply(*operator, attributes)
}

/// Most values that [`is_infinite_in`] looks at.
const BUDGET: usize = 100;

/// Whether `value` is a constant, or arithmetic on integers and constants one of which is finite, but not in `dtype`.
fn is_infinite_in(graph: &Graph, value: Value, dtype: DType) -> bool {
    if graph.constant(value).is_some() {
        return true;
    }
    let mut found = false;
    let mut stack = vec![value];
    let mut seen = HashSet::new();
    while let Some(value) = stack.pop() {
        let value = peel_broadcasts(graph, value);
        if !graph.ty(value).dtype.is_float() || !seen.insert(value) {
            continue;
        }
        if let Some(tensor) = graph.constant(value) {
            let narrow = converted(tensor, dtype).view().to_f64_vec();
            let mut pairs = tensor.view().to_f64_vec().into_iter().zip(narrow);
            found |= pairs.any(|(x, narrow)| x.is_finite() && narrow.is_infinite());
        } else if seen.len() < BUDGET && graph.operator(value).is_some_and(is_elementwise) {
            stack.extend(graph.operands(value.node).into_iter().flatten());
        } else {
            return false;
        }
    }
    found
}
