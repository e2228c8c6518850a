//! Moves transpositions behind elementwise operators, to where they meet their inverses.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 4], %y: f32[b, s, 4]) dims(b, s) {
//!   %0 = transpose %x {perm = [0, 2, 1]} : f32[b, 4, s]
//!   %1 = transpose %y {perm = [0, 2, 1]} : f32[b, 4, s]
//!   %2 = add %0, %1 : f32[b, 4, s]
//!   %3 = tanh %2 : f32[b, 4, s]
//!   %4 = transpose %3 {perm = [0, 2, 1]} : f32[b, s, 4]
//!   return %4
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 4], %y: f32[b, s, 4]) dims(b, s) {
//!   %0 = add %x, %y : f32[b, s, 4]
//!   %1 = tanh %0 : f32[b, s, 4]
//!   return %1
//! }
//! ```
//!
//! Identities: `f(Pa, Pb) = P f(a, b)` for an elementwise `f` and a permutation `P` of axes, and for one operand also if `P` is
//! a view; one permutation after another is a
//! permutation; and a view that splits axes, a transposition that keeps the parts of each together, and a view that joins
//! them again are one transposition.
//!
//! Preconditions: every operand of the operator that is no scalar is transposed by the same permutation, and the results of
//! these transpositions have no other use that would keep them.
//!
//! Numeric effect: exact.
//!
//! Source: algebra. The pass visits each node once, operands first; transpositions only move towards the outputs.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator};

use crate::matcher::{permutation, result};
use crate::polynomial::is_dead;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "sink-transposes",
    summary: "move transpositions behind elementwise operators, to where they meet their inverses",
    options: &[],
    new: || Box::new(SinkTransposes),
};

struct SinkTransposes;

impl Pass for SinkTransposes {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for node in graph.order() {
            let value = result(node);
            if is_dead(graph, value) {
                continue;
            }
            let to = match graph.op(node).operator() {
                Some(Operator::Transpose) => composed(graph, node)?,
                Some(op) if is_elementwise(op) => sunk(graph, node)?,
                _ => joined(graph, node)?,
            };
            if let Some(to) = to {
                graph.replace_all_uses(value, to)?;
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }
}

fn is_elementwise(op: Operator) -> bool {
    matches!(
        op,
        Operator::Add
            | Operator::Sub
            | Operator::Mul
            | Operator::Div
            | Operator::Gelu
            | Operator::Relu
            | Operator::Tanh
            | Operator::Sigmoid
            | Operator::Swish
            | Operator::Neg
            | Operator::Erf
    )
}

/// What `value` is a transposition of, and by which permutation.
fn source(graph: &Graph, value: Value) -> Option<(Value, Vec<usize>)> {
    let perm = permutation(graph, value.node)?;
    Some((graph.operand(value.node, 0)?, perm))
}

/// The transposition of `value`; `value` itself if it moves nothing.
fn transposed(graph: &mut Graph, value: Value, perm: &[usize]) -> Result<Value, PassError> {
    if perm.iter().enumerate().all(|(i, &p)| i == p) {
        return Ok(value);
    }
    let perm = perm.iter().map(|&p| p as i64).collect();
    let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
    Ok(graph.apply(Operator::Transpose, attributes, &[value])?)
}

/// A transposition of a transposition as one.
fn composed(graph: &mut Graph, node: NodeId) -> Result<Option<Value>, PassError> {
    let Some((x, outer)) = source(graph, result(node)) else {
        return Ok(None);
    };
    let Some((x, inner)) = source(graph, x) else {
        return Ok(None);
    };
    let perm: Vec<usize> = outer.iter().map(|&p| inner[p]).collect();
    transposed(graph, x, &perm).map(Some)
}

/// An elementwise operator on the operands of transpositions, transposed.
fn sunk(graph: &mut Graph, node: NodeId) -> Result<Option<Value>, PassError> {
    if let Some(x) = viewed(graph, node) {
        let to = graph.add(graph.op(node).clone(), &[Some(x)])?;
        let name = graph.node_name(node).to_owned();
        graph.set_node_name(to, &name);
        let shape = graph.shape(result(node)).to_vec();
        return Ok(Some(crate::heads::view(graph, result(to), shape)?));
    }
    let mut operands = Vec::new();
    let mut common: Option<Vec<usize>> = None;
    for operand in graph.operands(node) {
        let Some(value) = operand else {
            return Ok(None);
        };
        if graph.shape(value).iter().all(|d| d.as_fixed() == Some(1)) && graph.ty(value).rank() < 2
        {
            operands.push(Some(value));
            continue;
        }
        let Some((x, perm)) = source(graph, value) else {
            return Ok(None);
        };
        let alone = graph.users(value).iter().all(|(user, _)| *user == node);
        let of_result = graph.ty(value).same_value(graph.ty(result(node)));
        if !of_result
            || common.as_ref().is_some_and(|c| *c != perm)
            || (!alone && !meets_inverse(graph, result(node), &perm))
            || graph.is_output(value)
        {
            return Ok(None);
        }
        common = Some(perm);
        operands.push(Some(x));
    }
    let Some(perm) = common else {
        return Ok(None);
    };
    let to = graph.add(graph.op(node).clone(), &operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(to, &name);
    transposed(graph, result(to), &perm).map(Some)
}

/// What the only operand of `node` is a view of, if nothing else uses that view.
fn viewed(graph: &Graph, node: NodeId) -> Option<Value> {
    let operands = graph.operands(node);
    let &[Some(value)] = operands.as_slice() else {
        return None;
    };
    let Op::View(_) = graph.op(value.node) else {
        return None;
    };
    graph.single_user(value)?;
    graph.operand(value.node, 0)
}

/// True if every use of `value` is, perhaps behind more elementwise operators, a transposition back.
fn meets_inverse(graph: &Graph, value: Value, perm: &[usize]) -> bool {
    let mut open = vec![value];
    let mut next = 0;
    while let Some(&value) = open.get(next) {
        next += 1;
        if graph.is_output(value) || 32 < next {
            return false;
        }
        for (user, _) in graph.users(value) {
            match (graph.op(user).operator(), permutation(graph, user)) {
                (_, Some(back)) if back.iter().map(|&p| perm[p]).eq(0..perm.len()) => {}
                (Some(op), None) if is_elementwise(op) => open.push(result(user)),
                _ => return false,
            }
        }
    }
    true
}

/// A view of a transposition of a view, if it is a transposition of the first value.
fn joined(graph: &mut Graph, node: NodeId) -> Result<Option<Value>, PassError> {
    let Some((x, perm)) = split_moved_and_joined(graph, node) else {
        return Ok(None);
    };
    transposed(graph, x, &perm).map(Some)
}

fn split_moved_and_joined(graph: &Graph, node: NodeId) -> Option<(Value, Vec<usize>)> {
    let Op::View(to) = graph.op(node) else {
        return None;
    };
    let (apart, perm) = source(graph, graph.operand(node, 0)?)?;
    let Op::View(parts) = graph.op(apart.node) else {
        return None;
    };
    let x = graph.operand(apart.node, 0)?;
    // For each axis of x, the range of axes that it was split into.
    let mut groups = Vec::new();
    let mut at = 0;
    for dim in graph.shape(x) {
        let start = at;
        let mut product = Dim::fixed(1);
        while product != *dim {
            product = product.mul(parts.get(at)?)?;
            at += 1;
        }
        (start < at).then(|| groups.push(start..at))?;
    }
    let mut order = Vec::new();
    let mut next = 0;
    while next < perm.len() {
        let group = groups.iter().position(|g| g.start == perm[next])?;
        let range = groups[group].clone();
        let kept = perm.get(next..next + range.len())?;
        kept.iter().copied().eq(range.clone()).then_some(())?;
        order.push(group);
        next += range.len();
    }
    let shape = graph.shape(x);
    let moved = order.iter().map(|&g| &shape[g]);
    (at == parts.len() && moved.eq(to)).then_some((x, order))
}
