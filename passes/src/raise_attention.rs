//! Raises softmax attention written out in matrix products to `ScaledDotProductAttention` on `[batch, tokens, hidden]`.
//!
//! Before:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   const @scale: f32[] = 0.5
//!   %0 = view %q : f32[b, s, 2, 2]
//!   %1 = transpose %0 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %2 = view %k : f32[b, s, 2, 2]
//!   %3 = transpose %2 {perm = [0, 2, 3, 1]} : f32[b, 2, 2, s]
//!   %4 = matmul %1, %3 : f32[b, 2, s, s]
//!   %5 = mul %4, @scale : f32[b, 2, s, s]
//!   %6 = softmax %5 {axis = -1} : f32[b, 2, s, s]
//!   %7 = view %v : f32[b, s, 2, 2]
//!   %8 = transpose %7 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %9 = matmul %6, %8 : f32[b, 2, s, 2]
//!   %10 = transpose %9 {perm = [0, 2, 1, 3]} : f32[b, s, 2, 2]
//!   %11 = view %10 : f32[b, s, 4]
//!   return %11
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   %0 = scaled_dot_product_attention %q, %k, %v {num_heads = 2, scale = 0.5} : f32[b, s, 4]
//!   return %0
//! }
//! ```
//!
//! Identity: `softmax(c · q kᵀ + bias) v` in each head. The pass starts at a `Softmax` and reads
//!
//! * backwards, sums, scalar factors, `Where(mask, x, -inf)` and views down to a product of two computed values. Factors on
//!   the queries, on the keys and on the scores multiply into `scale`. A term that is a key-padding mask becomes `key_mask` and
//!   `masked_value`; the others are summed into `bias`;
//! * forwards, to the product with the values; a guard `Where(IsNaN(p), 0, p)` on the way is dropped.
//!
//! Heads are then undone ([`crate::heads`]): views and transpositions that split them disappear, elementwise functions behind
//! them (the factors of a rotary embedding) are moved in front of them, and where something else stands between, one
//! transposition is put in.
//!
//! Preconditions: `f32`; scores of rank 3 or 4; softmax over the keys; the probabilities used by the product with the values
//! alone; the bias broadcastable to `[batch, heads, queries, keys]`; a value that is written over masked scores at most
//! -1e4; where the mask is not of keys alone, -1e30 is added in its place. A mask that the graph multiplies with is taken to be 0 or 1. Otherwise the pass declines with a remark.
//!
//! Numeric effect: reassociates. A masked score is `score + masked_value` where the graph may have said `masked_value`; they
//! differ only for a query all of whose keys are masked. Such a query has no defined result where a guard was dropped; a
//! remark tells of it.
//!
//! Source: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), section 3.2.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::attention_scores::{Mask, Scores, add_bias, scores};
use crate::heads::{Axes, Role, Scaling, Sizes, join, split};
use crate::matcher::{axis_of, binary, is_dtype, is_scalar, peel, permutation, result, unary};
use crate::polynomial::{is_dead, scaled};
use crate::{Changed, Pass, PassContext, PassError};

/// The pass `raise-attention`.
pub(crate) struct RaiseAttention;

/// An attention found in the graph.
struct Match {
    softmax: NodeId,
    scores: Scores,
    values: Value,
    /// The product of probabilities and values.
    output: Value,
    has_guard: bool,
}

impl Pass for RaiseAttention {
    fn name(&self) -> &'static str {
        "raise-attention"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let softmaxes: Vec<NodeId> = graph
            .order()
            .into_iter()
            .filter(|&n| graph.op(n).operator() == Some(Operator::Softmax))
            .collect();
        let mut changed = Changed::No;
        for node in softmaxes {
            if is_dead(graph, result(node)) {
                continue;
            }
            let Some(m) = find(graph, node, cx) else {
                continue;
            };
            match raise(graph, &m, cx)? {
                Ok(()) => changed = Changed::Yes,
                Err(reason) => cx.missed(graph, node, reason),
            }
        }
        Ok(changed)
    }
}

/// Reads the formula around a softmax.
fn find(graph: &Graph, softmax: NodeId, cx: &mut PassContext<'_>) -> Option<Match> {
    let p = result(softmax);
    let input = graph.operand(softmax, 0)?;
    let rank = graph.ty(input).rank();
    if axis_of(graph, softmax, rank)? + 1 != rank || !is_dtype(graph, p, DType::F32) {
        return None;
    }
    let scores = scores(graph, input)?;
    let (output, values, has_guard) = match weighted_values(graph, p) {
        Ok(found) => found,
        Err(reason) => {
            cx.missed(graph, softmax, reason);
            return None;
        }
    };
    Some(Match {
        softmax,
        scores,
        values,
        output,
        has_guard,
    })
}

/// The product of the probabilities `p` with values, those values, and whether a guard against NaN stands between; or why
/// there is none.
fn weighted_values(graph: &Graph, p: Value) -> Result<(Value, Value, bool), String> {
    let (mut p, mut has_guard) = (p, false);
    loop {
        if graph.is_output(p) {
            return Err("the attention probabilities are an output".to_owned());
        }
        if let Some(guarded) = nan_guard(graph, p) {
            (p, has_guard) = (guarded, true);
            continue;
        }
        let Some(user) = graph.single_user(p) else {
            let n = graph.users(p).len();
            return Err(format!("the attention probabilities have {n} users"));
        };
        let next = result(user);
        if let Some((left, right)) = binary(graph, next, Operator::MatMul)
            && left == p
        {
            return Ok((next, right, has_guard));
        }
        if !(peel(graph, next) == peel(graph, p) || keeps_matrices(graph, next, p)) {
            let op = graph.op(user).text();
            return Err(format!("the attention probabilities are used by {op}"));
        }
        p = next;
    }
}

/// `Where(IsNaN(p), 0, p)`, if these are the only users of `p`.
fn nan_guard(graph: &Graph, p: Value) -> Option<Value> {
    let users = graph.users(p);
    let &[(a, _), (b, _)] = users.as_slice() else {
        return None;
    };
    [(a, b), (b, a)].into_iter().find_map(|(test, select)| {
        let (test, select) = (result(test), result(select));
        let [condition, zero, kept] = graph
            .operands(select.node)
            .into_iter()
            .collect::<Option<Vec<Value>>>()?
            .try_into()
            .ok()?;
        let is_guard = graph.operator(select) == Some(Operator::Where)
            && unary(graph, test, Operator::IsNaN) == Some(p)
            && graph.single_user(test) == Some(select.node)
            && condition == test
            && kept == p
            && is_scalar(graph, zero, 0.0);
        is_guard.then_some(select)
    })
}

/// True if `value` is a view of `operand` that regroups only what stands before the last two axes.
fn keeps_matrices(graph: &Graph, value: Value, operand: Value) -> bool {
    let last_two = |v| {
        let shape = graph.shape(v);
        shape.len().checked_sub(2).map(|i| &shape[i..])
    };
    matches!(graph.op(value.node), Op::View(_)) && last_two(value) == last_two(operand)
}

/// Puts the attention in the place of `m.output`, or says why it cannot.
fn raise(
    graph: &mut Graph,
    m: &Match,
    cx: &mut PassContext<'_>,
) -> Result<Result<(), String>, PassError> {
    let (q4, k4, v4) = (m.scores.queries, m.scores.keys, m.values);
    let (batch, heads) = [q4, v4]
        .into_iter()
        .find_map(|v| batch_and_heads(graph, v))
        .unwrap_or((graph.shape(q4)[0].clone(), Dim::fixed(1)));
    let Some(n_heads) = heads.as_fixed().filter(|&h| 1 <= h) else {
        return Ok(Err(format!("the number of heads is {heads}")));
    };
    for v in [q4, k4, v4] {
        let fits = match graph.shape(v) {
            [b, h, _, _] => *b == batch && *h == heads,
            [both, _, _] => Some(both) == batch.mul(&heads).as_ref(),
            _ => false,
        };
        if !fits {
            let ty = graph.ty(v);
            return Ok(Err(format!(
                "{ty} does not have {batch} items of {heads} heads"
            )));
        }
    }
    let sizes = |v: Value, token: usize, feature: usize| {
        let shape = graph.shape(v);
        let matrix = &shape[shape.len() - 2..];
        Sizes {
            batch: batch.clone(),
            heads: heads.clone(),
            tokens: matrix[token].clone(),
            features: matrix[feature].clone(),
        }
    };
    let (of_q, of_k, of_v) = (sizes(q4, 0, 1), sizes(k4, 1, 0), sizes(v4, 0, 1));
    if of_k.tokens != of_v.tokens || of_q.features != of_k.features {
        return Ok(Err(format!(
            "queries, keys and values do not fit: {}, {}, {}",
            graph.ty(q4),
            graph.ty(k4),
            graph.ty(v4)
        )));
    }
    if [&of_q, &of_k, &of_v].iter().any(|s| s.joined().is_none()) {
        return Ok(Err("the size of joined heads overflows".to_owned()));
    }
    let token_major = |v| axes(graph.ty(v).rank(), n_heads, [Role::Token, Role::Feature]);
    let feature_major = |v| axes(graph.ty(v).rank(), n_heads, [Role::Feature, Role::Token]);
    let of_result = token_major(m.output);
    let q = join(graph, q4, token_major(q4), &of_q, Scaling::Pass);
    let k = join(graph, k4, feature_major(k4), &of_k, Scaling::Pass);
    let v = join(graph, v4, token_major(v4), &of_v, Scaling::Stop);
    let scale = m.scores.scale * q.scale * k.scale;
    let shape = [
        batch.clone(),
        heads.clone(),
        of_q.tokens.clone(),
        of_k.tokens.clone(),
    ];
    let (mask, bias) = match add_bias(graph, &m.scores, &shape)? {
        Ok(found) => found,
        Err(reason) => return Ok(Err(reason)),
    };
    // Finite biases leave every softmax defined, so the guard does nothing; an infinite one is what it is there for.
    let finite = bias.is_none() && mask.as_ref().is_none_or(|m| m.masked_value.is_finite());
    if m.has_guard && !finite {
        let reason = "a guard against NaN stands after scores that can all be minus infinity";
        return Ok(Err(reason.to_owned()));
    }

    let operands = [
        Some(q.joined(graph, &of_q)?),
        Some(k.joined(graph, &of_k)?),
        Some(v.joined(graph, &of_v)?),
        mask.as_ref().map(|m| m.value),
        bias,
    ];
    let n_operands = operands
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |i| i + 1);
    let mut attributes = Attributes::new()
        .with("num_heads", Attribute::Int(n_heads))
        .with("scale", Attribute::Float(scale as f32));
    if let Some(Mask { masked_value, .. }) = mask {
        attributes.set("masked_value", Attribute::Float(masked_value));
    }
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    let node = graph.add(op, &operands[..n_operands])?;
    let name = graph.node_name(m.output.node).to_owned();
    graph.set_node_name(node, &name);
    if m.has_guard {
        let message =
            "the guard against NaN is dropped: no bias is infinite, so no softmax is undefined";
        cx.analysis(graph, m.softmax, message);
    }
    if let Some(assumption) = mask.as_ref().and_then(|m| m.domain.assumption()) {
        cx.analysis(graph, m.softmax, assumption);
    }
    let with = match (&mask, bias) {
        (Some(_), Some(_)) => "a key mask and a bias",
        (Some(_), None) => "a key mask",
        (None, Some(_)) => "a bias",
        (None, None) => "neither mask nor bias",
    };
    cx.applied(
        graph,
        m.softmax,
        format!("raised to attention with num_heads = {n_heads}, {with}"),
    );
    let of_output = Sizes {
        tokens: of_q.tokens,
        ..of_v
    };
    split(graph, result(node), m.output, of_result, &of_output)?;
    Ok(Ok(()))
}

/// Axes of a value `[batch, heads, a, b]` or `[batch · heads, a, b]`. A single head that is no axis goes with the features.
fn axes(rank: usize, n_heads: i64, last: [Role; 2]) -> Axes {
    if rank == 3 && n_heads == 1 {
        let with_head = last.map(|role| match role {
            Role::Feature => vec![Role::Head, Role::Feature],
            other => vec![other],
        });
        return [vec![vec![Role::Batch]], with_head.to_vec()].concat();
    }
    let leading = match rank {
        4 => vec![vec![Role::Batch], vec![Role::Head]],
        _ => vec![vec![Role::Batch, Role::Head]],
    };
    [leading, last.map(|role| vec![role]).to_vec()].concat()
}

/// The first two axes of a value of rank 4, or those that the first axis of a value of rank 3 was made of.
fn batch_and_heads(graph: &Graph, value: Value) -> Option<(Dim, Dim)> {
    let mut at = peel(graph, value);
    if let [b, h, _, _] = graph.shape(at) {
        return Some((b.clone(), h.clone()));
    }
    let first = graph.shape(at).first()?.clone();
    loop {
        if let Some((x, _)) = scaled(graph, at) {
            at = peel(graph, x);
            continue;
        }
        let x = graph.operand(at.node, 0)?;
        if matches!(graph.op(at.node), Op::View(_)) {
            return match graph.shape(x) {
                [b, h, _, _] if b.mul(h)? == first => Some((b.clone(), h.clone())),
                _ => None,
            };
        }
        if permutation(graph, at.node)? != [0, 2, 1] {
            return None;
        }
        at = peel(graph, x);
    }
}
