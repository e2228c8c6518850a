//! Computes only the token that a head observes: a classifier that reads one token needs one token of the last layer.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @w: f32[3, 2] = random(seed = 1)
//!   const @first: i64[] = 0
//!   %0 = linear %x, @w : f32[b, s, 3]
//!   %1 = gather %0, @first {axis = 1} : f32[b, 3]
//!   return %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @observed_token: i64[1] = [0]
//!   const @w: f32[3, 2] = random(seed = 1)
//!   %0 = gather %x, @observed_token {axis = 1} : f32[b, 1, 2]
//!   %1 = linear %0, @w : f32[b, 1, 3]
//!   %2 = view %1 : f32[b, 3]
//!   return %2
//! }
//! ```
//!
//! Identity: an operator that treats every token alike commutes with picking one. For attention this holds of the queries:
//! one query still needs every key and value.
//!
//! Preconditions: the picked token is a constant position on axis 1 of a `[batch, sequence, features]` value; what is
//! narrowed is used by nothing else. `linear` and `integer_linear`, `layer_normalization` over features, quantization with one
//! scale, elementwise operators whose other operands are the same for all tokens, and the queries of attention without a
//! bias, or with one by distance, commute; the pass stops at any other operator. Where a linear layer's result is observed
//! elsewhere too, the pass declines with a remark.
//!
//! Numeric effect: exact.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator, Tensor};

use crate::analysis::access::is_elementwise;
use crate::matcher::{axis_of, int_scalar, result};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `narrow-to-observed-tokens`.
pub(crate) struct NarrowToObservedTokens;

impl Pass for NarrowToObservedTokens {
    fn name(&self) -> &'static str {
        "narrow-to-observed-tokens"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut rewrites = Rewrites::new();
        for root in graph.order() {
            let Some((x, position)) = picked_token(graph, root) else {
                continue;
            };
            let narrowed = commuting(graph, root);
            if narrowed.is_empty() {
                if graph.operator(x) == Some(Operator::LayerNormalization) {
                    cx.missed(
                        graph,
                        root,
                        "other tokens of what it reads are observed too",
                    );
                }
                continue;
            }
            let n = narrowed.len();
            let to = narrow(graph, &narrowed, x, position)?;
            let view = graph.add(Op::View(graph.shape(result(root)).to_vec()), &[Some(to)])?;
            cx.applied(
                graph,
                root,
                format!("{n} operators compute token {position} alone"),
            );
            rewrites.replace(graph, result(root), result(view))?;
        }
        Ok(rewrites.changed())
    }
}

/// The value and the position if `node` picks one token of `[batch, sequence, features]`.
fn picked_token(graph: &Graph, node: NodeId) -> Option<(Value, i64)> {
    if graph.op(node).operator() != Some(Operator::Gather) {
        return None;
    }
    let (x, indices) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    let scalar = graph.ty(indices).rank() == 0 && graph.ty(x).rank() == 3;
    (scalar && axis_of(graph, node, 3)? == 1).then_some(())?;
    Some((x, int_scalar(graph, indices)?))
}

/// Operands of a node that hold tokens which it treats alike; none if it does not commute with picking a token.
fn token_operands(graph: &Graph, node: NodeId) -> Vec<usize> {
    let shape = graph.shape(result(node));
    let alike = |i: usize| {
        graph
            .operand(node, i)
            .is_none_or(|v| graph.shape(v)[..] == *shape)
    };
    let rank = |i: usize| graph.operand(node, i).map_or(0, |v| graph.ty(v).rank());
    if shape.len() != 3 || graph.n_results(node) != 1 {
        return Vec::new();
    }
    let commutes = match graph.op(node).operator() {
        Some(Operator::Linear) if alike(3) => return vec![0, 3],
        Some(Operator::IntegerLinear) => true,
        Some(Operator::LayerNormalization) => {
            axis_of(graph, node, 3) == Some(2) && rank(1) <= 1 && rank(2) <= 1
        }
        Some(Operator::QuantizeLinear | Operator::DequantizeLinear) => rank(1) == 0 && rank(2) == 0,
        Some(Operator::ScaledDotProductAttention) => graph.operand(node, 4).is_none(),
        Some(Operator::Gelu | Operator::Relu | Operator::Tanh | Operator::Sigmoid) => true,
        Some(operator) if is_elementwise(operator) => {
            // One token of an operand is every token's, as one without tokens is.
            let of_all = |i: usize| {
                let one_token = |v| graph.ty(v).rank() == 3 && graph.shape(v)[1] == Dim::fixed(1);
                rank(i) <= 1 || (graph.operand(node, i).is_some_and(one_token) && !alike(i))
            };
            let tokens: Vec<usize> = (0..graph.operands(node).len())
                .filter(|&i| !of_all(i))
                .collect();
            let same = tokens.iter().all(|&i| alike(i));
            return if same { tokens } else { Vec::new() };
        }
        _ => false,
    };
    if commutes { vec![0] } else { Vec::new() }
}

/// Nodes above `root` that only it observes and that commute with picking a token, in canonical order.
fn commuting(graph: &Graph, root: NodeId) -> Vec<NodeId> {
    let mut inside = HashSet::from([root]);
    let mut found = Vec::new();
    for node in graph.order().into_iter().rev() {
        let value = result(node);
        let users = graph.users(value);
        let only_tokens = users.iter().all(|&(user, operand)| {
            inside.contains(&user)
                && (user == root || token_operands(graph, user).contains(&operand))
        });
        let observed_elsewhere = users.is_empty() || graph.is_output(value);
        if node != root
            && only_tokens
            && !observed_elsewhere
            && !token_operands(graph, node).is_empty()
        {
            inside.insert(node);
            found.push(node);
        }
    }
    found.reverse();
    found
}

/// The part of what attention has by distance, along `axis`, that belongs to the query at `position`.
fn distances_of(
    graph: &mut Graph,
    attention: NodeId,
    (by_distance, axis): (Value, i64),
    position: i64,
) -> Result<Value, PassError> {
    let tokens = |i: usize| {
        graph
            .operand(attention, i)
            .map(|v| graph.shape(v)[1].clone())
    };
    let queries = tokens(0).filter(|_| position < 0);
    let first = Dim::fixed(position).add(&queries.unwrap_or(Dim::fixed(0)));
    let n = tokens(1).and_then(|keys| keys.add(&Dim::fixed(1)));
    let (Some(first), Some(n)) = (first, n) else {
        return Ok(by_distance);
    };
    let [zero, one] = [0, 1].map(|v| graph.add_const("", Arc::new(Tensor::scalar(v as i64))));
    let first = graph.add(Op::Dims(vec![first]), &[])?;
    let n = graph.add(Op::Dims(vec![n]), &[])?;
    let n = graph.add(Op::View(Vec::new()), &[Some(result(n))])?;
    let range = [zero, result(n), one];
    let range = graph.apply(Operator::Range, Attributes::new(), &range)?;
    let indices = graph.apply(Operator::Add, Attributes::new(), &[range, result(first)])?;
    let axis = Attributes::new().with("axis", Attribute::Int(axis));
    Ok(graph.apply(Operator::Gather, axis, &[by_distance, indices])?)
}

/// Operands of attention beside queries, keys and values that belong to queries: along which axis each has them, or distances.
const OF_QUERIES: [(usize, i64); 2] = [(6, 1), (7, 2)];
const OF_DISTANCES: [(usize, i64); 3] = [(5, 1), (8, 0), (10, 0)];

/// The token at `index` of a value that others observe too. Numbers are quantized once more rather than picked out of bytes, which
/// integer products want as no other step does.
fn one_token(
    graph: &mut Graph,
    narrowed: &mut HashMap<Value, Value>,
    value: Value,
    index: Value,
) -> Result<Value, PassError> {
    if let Some(&to) = narrowed.get(&value) {
        return Ok(to);
    }
    let is_quantized = graph.operator(value) == Some(Operator::QuantizeLinear)
        && token_operands(graph, value.node) == [0];
    let to = match graph.operand(value.node, 0) {
        Some(x) if is_quantized => {
            let mut operands = graph.operands(value.node);
            operands[0] = Some(one_token(graph, narrowed, x, index)?);
            result(graph.add(graph.op(value.node).clone(), &operands)?)
        }
        _ => {
            let axis = Attributes::new().with("axis", Attribute::Int(1));
            graph.apply(Operator::Gather, axis, &[value, index])?
        }
    };
    narrowed.insert(value, to);
    Ok(to)
}

/// Rebuilds `nodes` on one token; the value that stands for `x`, with one token.
fn narrow(
    graph: &mut Graph,
    nodes: &[NodeId],
    x: Value,
    position: i64,
) -> Result<Value, PassError> {
    let index = graph.add_const("observed_token", Arc::new(Tensor::new([1], vec![position])));
    let mut narrowed: HashMap<Value, Value> = HashMap::new();
    for &node in nodes {
        let tokens = token_operands(graph, node);
        let mut operands = graph.operands(node);
        for (i, operand) in operands.iter_mut().enumerate() {
            let Some(value) = operand.filter(|_| tokens.contains(&i)) else {
                continue;
            };
            *operand = Some(one_token(graph, &mut narrowed, value, index)?);
        }
        if graph.op(node).operator() == Some(Operator::ScaledDotProductAttention) {
            for (i, axis) in OF_QUERIES {
                if let Some(of_queries) = operands.get(i).copied().flatten() {
                    let axis = Attributes::new().with("axis", Attribute::Int(axis));
                    operands[i] =
                        Some(graph.apply(Operator::Gather, axis, &[of_queries, index])?);
                }
            }
            for (i, axis) in OF_DISTANCES {
                if let Some(by_distance) = operands.get(i).copied().flatten() {
                    let of_query = distances_of(graph, node, (by_distance, axis), position)?;
                    operands[i] = Some(of_query);
                }
            }
        }
        let rebuilt = graph.add(graph.op(node).clone(), &operands)?;
        let name = graph.node_name(node).to_owned();
        graph.set_node_name(rebuilt, &name);
        narrowed.insert(result(node), result(rebuilt));
    }
    Ok(narrowed[&x])
}
