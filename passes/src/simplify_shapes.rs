//! Writes shape arithmetic as the sizes it computes, so that it dies.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 6]) dims(b, s) {
//!   const @tail: i64[2] = [2, 3]
//!   %0 = shape %x {end = 2} : i64[2]
//!   %1 = concat %0, @tail {axis = 0} : i64[4]
//!   %2 = reshape %x, %1 : f32[b, s, 2, 3]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 6]) dims(b, s) {
//!   %0 = view %x : f32[b, s, 2, 3]
//!   return %0
//! }
//! ```
//!
//! Identities: `Reshape`, `Flatten`, `Squeeze` and `Unsqueeze` are a view under the shape that inference finds; `Expand` is
//! a broadcast, `ConstantOfShape` the broadcast of a scalar; an integer vector whose elements are known expressions of
//! the sizes is those expressions; an elementwise operator broadcasts its operands itself.
//!
//! Preconditions: every size of the result is an expression of the operands' sizes and known elements, and a view's
//! operand has as many elements for all sizes. A size that depends on data leaves the node as it is, unless what finds the size is
//! needed anyway.
//!
//! Numeric effect: exact.
//!
//! Source: none; type inference does the work.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, Graph, NodeId, Op, Symbol, Value};
use lancet_ops::{DType, Operator, Tensor};

use crate::eliminate_identities::same_size;
use crate::matcher::{describe, result};
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "simplify-shapes",
    summary: "writes shape arithmetic as the sizes it computes",
    options: &[],
    new: || Box::new(SimplifyShapes),
};

struct SimplifyShapes;

impl Pass for SimplifyShapes {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let order = graph.order();
        let mut found: Vec<(Value, Simple)> = order
            .iter()
            .filter_map(|&node| Some((result(node), find(graph, node)?)))
            .collect();
        for &node in &order {
            if let Some(Operator::Reshape | Operator::Expand) = graph.op(node).operator()
                && find(graph, node).is_none()
            {
                let ty = graph.ty(result(node));
                cx.missed(graph, node, format!("the sizes of {ty} depend on data"));
            }
        }
        keep_what_finds_sizes(graph, &mut found);
        let mut rewrites = Rewrites::new();
        for (from, simple) in found {
            apply(graph, &mut rewrites, from, simple)?;
        }
        for (node, index, x) in redundant_broadcasts(graph) {
            drop_broadcast(graph, &mut rewrites, node, index, x)?;
        }
        Ok(rewrites.changed())
    }
}

/// What a value is in simpler words.
enum Simple {
    View(Value),
    Broadcast(Value),
    Dims(Vec<Dim>),
    /// All elements alike.
    Splat(Tensor),
}

fn find(graph: &Graph, node: NodeId) -> Option<Simple> {
    let value = result(node);
    let Op::Apply(operator, attributes) = graph.op(node) else {
        return None;
    };
    if let Some(dims) = symbolic_elements(graph, value) {
        return Some(Simple::Dims(dims));
    }
    let x = graph.operand(node, 0)?;
    match operator {
        Operator::Reshape | Operator::Flatten | Operator::Squeeze | Operator::Unsqueeze => {
            (same_size(graph.shape(x), graph.shape(value)) && graph.sizes_are_known(node))
                .then_some(Simple::View(x))
        }
        Operator::Expand => graph.sizes_are_known(node).then_some(Simple::Broadcast(x)),
        Operator::ConstantOfShape => graph.sizes_are_known(node).then(|| {
            let scalar = attributes
                .tensor("value")
                .and_then(|t| (**t).clone().reshaped(Vec::new()))
                .unwrap_or_else(|| Tensor::scalar(0.0f32));
            Simple::Splat(scalar)
        }),
        _ => None,
    }
}

/// The elements of an `i64` value, if they are known and at least one is not a number.
fn symbolic_elements(graph: &Graph, value: Value) -> Option<Vec<Dim>> {
    let elements = graph.elements(value)?;
    let symbolic = elements.iter().any(|d| d.as_fixed().is_none());
    (symbolic && graph.ty(value).dtype == DType::I64).then(|| elements.to_vec())
}

/// Leaves out of `found` what reads the size of a value that nothing else needs, if that size depends on data: the value would
/// not be computed any more, and its size not be known.
fn keep_what_finds_sizes(graph: &Graph, found: &mut Vec<(Value, Simple)>) {
    let bound = graph.input_symbols();
    loop {
        let simple: HashMap<NodeId, &Simple> = found.iter().map(|(v, s)| (v.node, s)).collect();
        let mut needed = HashSet::new();
        let mut known = bound.clone();
        let mut open: Vec<NodeId> = graph.outputs().iter().map(|o| o.value.node).collect();
        while let Some(node) = open.pop() {
            if !needed.insert(node) {
                continue;
            }
            match simple.get(&node) {
                Some(Simple::Dims(_) | Simple::Splat(_)) => {}
                Some(Simple::View(x) | Simple::Broadcast(x)) => open.push(x.node),
                None => {
                    open.extend(graph.operands(node).into_iter().flatten().map(|v| v.node));
                    known.extend(graph.sizes_found_by(node));
                }
            }
        }
        let n_found = found.len();
        found.retain(|(value, simple)| {
            let (sizes, kept): (&[Dim], &[Dim]) = match simple {
                Simple::Dims(dims) => (dims, &[]),
                Simple::Splat(_) => (graph.shape(*value), &[]),
                Simple::View(x) | Simple::Broadcast(x) => (graph.shape(*value), graph.shape(*x)),
            };
            let kept: Vec<Symbol> = kept.iter().flat_map(Dim::symbols).collect();
            let mut symbols = sizes.iter().flat_map(Dim::symbols);
            !needed.contains(&value.node)
                || symbols.all(|s| known.contains(&s) || kept.contains(&s))
        });
        if found.len() == n_found {
            return;
        }
    }
}

fn apply(
    graph: &mut Graph,
    rewrites: &mut Rewrites,
    from: Value,
    simple: Simple,
) -> Result<(), PassError> {
    let shape = graph.shape(from).to_vec();
    match simple {
        Simple::View(x) => {
            rewrites.replace_by(graph, from, Op::View(shape), &[x])?;
        }
        Simple::Broadcast(x) => {
            rewrites.replace_by(graph, from, Op::Broadcast(shape), &[x])?;
        }
        Simple::Dims(dims) => {
            let node = graph.add(Op::Dims(dims), &[])?;
            if shape.len() == 1 {
                rewrites.replace(graph, from, result(node))?;
            } else {
                rewrites.replace_by(graph, from, Op::View(shape), &[result(node)])?;
            }
        }
        Simple::Splat(scalar) => {
            let name = describe(graph, from.node).to_owned();
            let scalar = graph.add_const(&name, scalar.into());
            if shape.is_empty() {
                rewrites.replace(graph, from, scalar)?;
            } else {
                rewrites.replace_by(graph, from, Op::Broadcast(shape), &[scalar])?;
            }
        }
    }
    Ok(())
}

/// Operands of elementwise nodes that are broadcast although the node would do it: node, operand, what is broadcast.
fn redundant_broadcasts(graph: &Graph) -> Vec<(NodeId, usize, Value)> {
    let mut found = Vec::new();
    for node in graph.order() {
        if !graph.op(node).operator().is_some_and(broadcasts_operands) {
            continue;
        }
        let mut operands = graph.operands(node);
        for index in 0..operands.len() {
            let Some(operand) = operands[index] else {
                continue;
            };
            let Op::Broadcast(_) = graph.op(operand.node) else {
                continue;
            };
            let Some(x) = graph.operand(operand.node, 0) else {
                continue;
            };
            operands[index] = Some(x);
            if broadcast_covers(graph, &operands, graph.shape(result(node))) {
                found.push((node, index, x));
            } else {
                operands[index] = Some(operand);
            }
        }
    }
    found
}

/// Whether these operands alone broadcast to `shape`: each size of it is that of some operand, the others' being 1.
fn broadcast_covers(graph: &Graph, operands: &[Option<Value>], shape: &[Dim]) -> bool {
    (0..shape.len()).all(|axis| {
        let mut covered = shape[axis] == Dim::fixed(1);
        for v in operands.iter().flatten() {
            let from_end = shape.len() - axis;
            let Some(i) = graph.ty(*v).rank().checked_sub(from_end) else {
                continue;
            };
            let dim = &graph.shape(*v)[i];
            if *dim == shape[axis] {
                covered = true;
            } else if *dim != Dim::fixed(1) {
                return false;
            }
        }
        covered
    })
}

/// Whether an operator broadcasts all of its operands together.
pub(crate) fn broadcasts_operands(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Add
            | Operator::Sub
            | Operator::Mul
            | Operator::Div
            | Operator::Pow
            | Operator::Equal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::And
            | Operator::Or
            | Operator::Xor
            | Operator::Min
            | Operator::Max
            | Operator::Where
    )
}

fn drop_broadcast(
    graph: &mut Graph,
    rewrites: &mut Rewrites,
    node: NodeId,
    index: usize,
    x: Value,
) -> Result<(), PassError> {
    // An earlier drop on the same node may have replaced it.
    let from = rewrites.resolve(result(node));
    let op = graph.op(from.node).clone();
    let mut operands: Vec<Value> = graph.operands(from.node).into_iter().flatten().collect();
    operands[index] = x;
    rewrites.replace_by(graph, from, op, &operands)?;
    Ok(())
}
