//! Terms that are added to scores under another shape.
//!
//! Windows of an image have biases by row and by column: `view(view(s) + t)`, where the outer view joins axes. Views commute with
//! sums, so that it is `s + view(broadcast(t))`, where `t` is broadcast within what becomes one axis, unless it is 1 in all of that.

use lancet_ir::{Dim, Graph, Op, Value};
use lancet_ops::{Attributes, Operator};

use crate::PassError;
use crate::heads::view;
use crate::matcher::{binary, peel, result};

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
