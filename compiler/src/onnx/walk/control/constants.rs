//! Values that are computed from constants alone: what they are, and their copies in another graph.
//!
//! A copy shares the elements of its constants. Sizes are copied likewise, since they mean the same in every graph.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, Graph, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::onnx::walk::Walk;

/// Nodes that are copied into a graph to have a constant there.
const MAX_COPIED: usize = 32;
/// Largest tensor from which a condition is computed.
const MAX_ELEMENTS: i64 = 1 << 12;

impl Walk<'_> {
    pub(super) fn constant_condition(&self, condition: Value) -> Option<bool> {
        let is_boolean = self.graph.ty(condition).dtype == DType::Bool;
        self.constant_integer(condition)
            .filter(|_| is_boolean)
            .map(|c| c != 0)
    }

    /// The number that a value is, if it is a constant, a size that is known, or computed from a few small constants.
    pub(super) fn constant_integer(&self, value: Value) -> Option<i64> {
        match self.graph.elements(value) {
            Some([n]) => return n.as_fixed(),
            Some(_) => return None,
            None => {}
        }
        let mut alone = Graph::new("constant");
        let copy = constant(&self.graph, &mut alone, value)?;
        let is_small = |node| {
            (0..alone.n_results(node) as u32).all(|result| {
                let n = Dim::product(alone.shape(Value { node, result }));
                n.and_then(|n| n.as_fixed())
                    .is_some_and(|n| n <= MAX_ELEMENTS)
            })
        };
        if !alone.nodes().into_iter().all(is_small) {
            return None;
        }
        alone.add_output("value", copy);
        let (_, tensor) = lancet_ir::eval::<&str>(&alone, &[]).ok()?.pop()?;
        match tensor.view().to_i64_vec().as_slice() {
            [n] => Some(*n),
            _ => None,
        }
    }
}

/// A value of `outside` that is copied into `graph`: what is computed from constants alone, and sizes.
pub(super) fn captured(outside: &Graph, graph: &mut Graph, value: Value) -> Option<Value> {
    constant(outside, graph, value).or_else(|| {
        let elements = outside.elements(value)?.to_vec();
        sizes(outside, graph, value, elements)
    })
}

/// A copy of what is computed from constants alone.
fn constant(outside: &Graph, graph: &mut Graph, value: Value) -> Option<Value> {
    let mut nodes = Vec::new();
    let mut stack = vec![(value.node, false)];
    let mut seen = HashSet::new();
    while let Some((node, expanded)) = stack.pop() {
        if expanded {
            nodes.push(node);
        } else if seen.insert(node) {
            let is_constant = match outside.op(node) {
                Op::Const(_) | Op::Apply(..) => true,
                Op::View(dims) | Op::Broadcast(dims) => dims.iter().all(|d| d.as_fixed().is_some()),
                Op::Input(_) | Op::Dims(_) | Op::Convert(_) | Op::If { .. } | Op::Loop { .. } => {
                    false
                }
            };
            if !is_constant || MAX_COPIED < seen.len() {
                return None;
            }
            stack.push((node, true));
            let operands = outside.operands(node).into_iter().flatten();
            stack.extend(operands.map(|v| (v.node, false)));
        }
    }
    let mut copies = HashMap::new();
    for node in nodes {
        let operands: Vec<Option<Value>> = (outside.operands(node).into_iter())
            .map(|v| {
                v.map(|v| Value {
                    node: copies[&v.node],
                    ..v
                })
            })
            .collect();
        let n = outside.n_results(node);
        let copy = graph
            .add_results(outside.op(node).clone(), &operands, n)
            .ok()?;
        graph.set_node_name(copy, outside.node_name(node));
        copies.insert(node, copy);
    }
    Some(Value {
        node: copies[&value.node],
        ..value
    })
}

/// A tensor of these sizes, of the type of `value`.
fn sizes(outside: &Graph, graph: &mut Graph, value: Value, elements: Vec<Dim>) -> Option<Value> {
    let ty = outside.ty(value);
    let node = graph.add(Op::Dims(elements), &[]).ok()?;
    let mut copy = Value { node, result: 0 };
    if ty.rank() != 1 {
        let node = graph.add(Op::View(ty.shape.clone()), &[Some(copy)]).ok()?;
        copy = Value { node, result: 0 };
    }
    if ty.dtype != DType::I64 {
        let to = Attribute::Str(ty.dtype.name().to_owned());
        let to = Attributes::new().with("to", to);
        copy = graph.apply(Operator::Cast, to, &[copy]).ok()?;
    }
    Some(copy)
}
