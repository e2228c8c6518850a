//! Attention under shapes that the pass does not read: terms that are added under another shape, and more than two axes in front.
//!
//! Windows of an image have biases by row and by column: `view(view(s) + t)`, where the outer view joins axes. Views commute with
//! sums, so that it is `s + view(broadcast(t))`, where `t` is broadcast within what becomes one axis, unless it is 1 in all of that.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attributes, Operator};

use crate::PassError;
use crate::heads::view;
use crate::matcher::{axis_of, binary, peel, result};

/// Views of scores of rank 4 at most are read as they are.
const MAX_RANK: usize = 4;

/// Terms under views at most.
const MAX_TERMS: usize = 6;

/// Scores with the terms that were added under another shape added under their own; `None` if there are none.
pub(crate) fn terms_under_views(
    graph: &mut Graph,
    scores: Value,
) -> Result<Option<Value>, PassError> {
    let to = graph.shape(scores).to_vec();
    let mut at = scores;
    let mut terms = Vec::new();
    let mut has_windows = false;
    while terms.len() < MAX_TERMS
        && let Op::View(_) = graph.op(at.node)
        && let Some(x) = graph.operand(at.node, 0)
    {
        let x = peel(graph, x);
        if graph.shape(x) == to || matches!(graph.op(x.node), Op::View(_)) {
            at = x;
            continue;
        }
        let sum = [Operator::Add, Operator::Sub].into_iter();
        let Some((op, (a, t))) = sum
            .filter_map(|op| Some((op, binary(graph, x, op)?)))
            .next()
        else {
            return Ok(None);
        };
        let is_whole = |v: Value| graph.ty(v).same_value(graph.ty(x));
        let (whole, term) = match (is_whole(a), is_whole(t) && op == Operator::Add) {
            (true, false) => (a, t),
            (false, true) => (t, a),
            // Scores are what is a view.
            (true, true) if matches!(graph.op(t.node), Op::View(_)) => (t, a),
            (true, true) => (a, t),
            (false, false) => return Ok(None),
        };
        let Some(moved) = joined(graph.shape(term), graph.shape(x), &to) else {
            return Ok(None);
        };
        has_windows |= MAX_RANK < graph.ty(x).rank();
        terms.push((op, term, moved));
        // What is left is under the shape of the sum: as if it were viewed as the scores are.
        at = match graph.shape(whole) == to {
            true => whole,
            false => result(graph.add(Op::View(to.clone()), &[Some(whole)])?),
        };
    }
    if !has_windows || graph.shape(at) != to || matches!(graph.op(at.node), Op::View(_)) {
        return Ok(None);
    }
    for (op, term, (apart, together)) in terms.into_iter().rev() {
        let mut term = term;
        if graph.shape(term) != apart {
            term = result(graph.add(Op::Broadcast(apart), &[Some(term)])?);
        }
        let term = view(graph, term, together)?;
        at = graph.apply(op, Attributes::new(), &[at, term])?;
    }
    Ok(Some(at))
}

/// Writes `softmax(a b) v`, where more than two axes stand in front of the matrices, with these as one axis: each matrix is multiplied
/// by itself. `None` if that is not what `softmax`, over the last axis, is in.
pub(crate) fn merged_batch(
    graph: &mut Graph,
    softmax: NodeId,
) -> Result<Option<NodeId>, PassError> {
    let p = result(softmax);
    let shape = graph.shape(p).to_vec();
    let last = axis_of(graph, softmax, shape.len()).map(|axis| axis + 1);
    let found = graph.operand(softmax, 0).and_then(|scores| {
        let (a, b) = binary(graph, scores, Operator::MatMul)?;
        let output = result(graph.single_user(p)?);
        let (weights, v) = binary(graph, output, Operator::MatMul)?;
        (weights == p && v != p).then_some((a, b, v, output))
    });
    let Some((a, b, v, output)) = found.filter(|_| last == Some(shape.len())) else {
        return Ok(None);
    };
    let Some(n_in_front) = shape.len().checked_sub(2).filter(|n| 2 < *n) else {
        return Ok(None);
    };
    let in_front = &shape[..n_in_front];
    let is_batched = |&x: &Value| {
        let rank = graph.ty(x).rank();
        rank == shape.len() && graph.shape(x)[..n_in_front] == *in_front
    };
    let (true, Some(batch)) = ([a, b, v].iter().all(is_batched), Dim::product(in_front)) else {
        return Ok(None);
    };
    let flat = |graph: &mut Graph, x: Value| {
        let matrices = graph.shape(x)[n_in_front..].to_vec();
        view(graph, x, [vec![batch.clone()], matrices].concat())
    };
    let [a, b, v] = [flat(graph, a)?, flat(graph, b)?, flat(graph, v)?];
    let scores = graph.apply(Operator::MatMul, Attributes::new(), &[a, b])?;
    let weights = graph.apply(Operator::Softmax, Attributes::new(), &[scores])?;
    let name = graph.node_name(softmax).to_owned();
    graph.set_node_name(weights.node, &name);
    let y = graph.apply(Operator::MatMul, Attributes::new(), &[weights, v])?;
    let shape = graph.shape(output).to_vec();
    let y = view(graph, y, shape)?;
    graph.replace_all_uses(output, y)?;
    Ok(Some(weights.node))
}

/// For a term of shape `own` that is added under `from`, whose axes join to `to`: what it is broadcast to, and then viewed as.
fn joined(own: &[Dim], from: &[Dim], to: &[Dim]) -> Option<(Vec<Dim>, Vec<Dim>)> {
    let one = Dim::fixed(1);
    let missing = from.len().checked_sub(own.len())?;
    let own = [vec![one.clone(); missing], own.to_vec()].concat();
    let (mut apart, mut together) = (Vec::new(), Vec::new());
    let mut at = 0;
    for size in to {
        let start = at;
        let mut product = one.clone();
        while at == start || product != *size {
            product = product.mul(from.get(at)?)?;
            at += 1;
        }
        let is_one = own[start..at].iter().all(|d| *d == one);
        let group = if is_one { &own } else { from };
        apart.extend_from_slice(&group[start..at]);
        together.push(if is_one { one.clone() } else { size.clone() });
    }
    (at == from.len()).then_some((apart, together))
}
