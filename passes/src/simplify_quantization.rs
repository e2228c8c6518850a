//! Brings quantization to where the quantized value is made, and removes what undoes itself.
//!
//! Before:
//! ```ir
//! graph @g(%x: u8[s, 4]) dims(s) {
//!   const @scale: f32[] = 0.5
//!   const @zero: u8[] = 128
//!   %0 = dequantize_linear %x, @scale, @zero : f32[s, 4]
//!   %1 = view %0 : f32[s, 2, 2]
//!   %2 = quantize_linear %1, @scale, @zero : u8[s, 2, 2]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: u8[s, 4]) dims(s) {
//!   %0 = view %x : u8[s, 2, 2]
//!   return %0
//! }
//! ```
//!
//! Identity: `Quantize(Dequantize(q)) = q` with the same parameters: `(q - zero_point) · scale / scale` is within one unit
//! in the last place of an integer below 2^17, which it is rounded to. Both commute with views and transpositions, which move
//! elements and change none. `Dequantize(T)[i] = Dequantize(T[i])`, so a table stays bytes and only looked-up rows become numbers.
//!
//! Preconditions: `f32`, one constant scale and zero point for the whole tensor; for tables of 8 bits, also one for each column.
//!
//! Numeric effect: exact.

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, DType, Operator};

use crate::matcher::{axis_of, binary, result};
use crate::quantized::{dequantize, is_move, quantize};
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "simplify-quantization",
    summary: "bring quantization to where values are made and remove what undoes itself",
    options: &[],
    new: || Box::new(SimplifyQuantization),
};

struct SimplifyQuantization;

impl Pass for SimplifyQuantization {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        // Operands come first, so that what has been brought up is met again below.
        let mut nodes = graph.order();
        nodes.reverse();
        while let Some(node) = nodes.pop() {
            let value = result(node);
            let Some(step) = step(graph, value) else {
                continue;
            };
            changed = Changed::Yes;
            let by = match step {
                Step::Undone(q) => q,
                Step::Up => {
                    let moved = graph.operand(node, 0).map(|v| v.node);
                    let Some(moved) = moved else { continue };
                    swap(graph, node, moved, &mut nodes)?
                }
                Step::Rows(table) => look_up(graph, node, table)?,
            };
            graph.replace_all_uses(value, by)?;
        }
        Ok(changed)
    }
}

/// What can be done about a node.
enum Step {
    /// It gives back this value.
    Undone(Value),
    /// It goes above the operation that moves the elements of its operand.
    Up,
    /// A lookup in this dequantized table goes to the bytes.
    Rows(NodeId),
}

fn step(graph: &Graph, value: Value) -> Option<Step> {
    if graph.users(value).is_empty() && !graph.is_output(value) {
        return None;
    }
    match graph.operator(value)? {
        Operator::QuantizeLinear => {
            let (x, to) = quantize(graph, value)?;
            if let Some((q, from)) = dequantize(graph, x)
                && from == to
                && (to.dtype == DType::U8 || to.dtype == DType::I8)
            {
                return Some(Step::Undone(q));
            }
            is_move(graph, x).then_some(Step::Up)
        }
        Operator::DequantizeLinear => {
            let (q, _) = dequantize(graph, value)?;
            is_move(graph, q).then_some(Step::Up)
        }
        Operator::Gather => {
            let (table, _) = binary(graph, value, Operator::Gather)?;
            let rank = graph.ty(table).rank();
            let by_row = axis_of(graph, value.node, rank) == Some(0) && rank == 2;
            let of = graph.operand(table.node, 0)?;
            let is_table = graph.operator(table) == Some(Operator::DequantizeLinear)
                && graph.constant(of).is_some()
                && matches!(graph.ty(of).dtype, DType::U8 | DType::I8)
                && graph.attributes(table.node).int_or("block_size", 0) == 0
                && (dequantize(graph, table).is_some()
                    || axis_of(graph, table.node, rank) == Some(1));
            (by_row && is_table).then_some(Step::Rows(table.node))
        }
        _ => None,
    }
}

/// Puts what `node` does above the operation `moved` that makes its operand; gives the value that takes its place.
fn swap(
    graph: &mut Graph,
    node: NodeId,
    moved: NodeId,
    nodes: &mut Vec<NodeId>,
) -> Result<Value, PassError> {
    let mut operands = graph.operands(node).to_vec();
    operands[0] = graph.operand(moved, 0);
    let first = graph.add(graph.op(node).clone(), &operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(first, &name);
    let op = graph.op(moved).clone();
    let second = graph.add(op, &[Some(result(first))])?;
    nodes.push(first);
    Ok(result(second))
}

/// The rows of the bytes of a table, dequantized.
fn look_up(graph: &mut Graph, node: NodeId, table: NodeId) -> Result<Value, PassError> {
    let mut operands = graph.operands(node).to_vec();
    operands[0] = graph.operand(table, 0);
    let rows = graph.add(graph.op(node).clone(), &operands)?;
    let mut op = graph.op(table).clone();
    if let Op::Apply(_, attributes) = &mut op {
        attributes.set("axis", Attribute::Int(-1));
    }
    let mut operands = graph.operands(table).to_vec();
    operands[0] = Some(result(rows));
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(rows, &name);
    Ok(result(graph.add(op, &operands)?))
}
