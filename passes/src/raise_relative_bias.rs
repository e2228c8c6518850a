//! Raises biases of attention that depend on the distance of query and key to one number for each distance.
//!
//! Before:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   const @zero: i64[] = 0
//!   const @one: i64[] = 1
//!   const @slopes: f32[2, 1, 1] = [[[-0.5]], [[-0.25]]]
//!   %0 = dims [s] : i64[1]
//!   %1 = view %0 : i64[]
//!   %2 = range @zero, %1, @one : i64[s]
//!   %3 = view %2 : i64[s, 1]
//!   %4 = sub %2, %3 : i64[s, s]
//!   %5 = abs %4 : i64[s, s]
//!   %6 = cast %5 {to = "f32"} : f32[s, s]
//!   %7 = mul %6, @slopes : f32[2, s, s]
//!   %8 = scaled_dot_product_attention %q, %k, %v, _, %7 {num_heads = 2, scale = 0.5} : f32[b, s, 4]
//!   return %8
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   const @c: i64[] = 0
//!   const @c.1: i64[] = 1
//!   const @slopes: f32[2, 1, 1] = [[[-0.5]], [[-0.25]]]
//!   %0 = dims [s] : i64[1]
//!   %1 = dims [2*s] : i64[1]
//!   %2 = view %1 : i64[]
//!   %3 = range @c, %2, @c.1 : i64[2*s]
//!   %4 = sub %0, %3 : i64[2*s]
//!   %5 = view %4 : i64[1, 2*s]
//!   %6 = abs %5 : i64[1, 2*s]
//!   %7 = cast %6 {to = "f32"} : f32[1, 2*s]
//!   %8 = mul %7, @slopes : f32[2, 1, 2*s]
//!   %9 = view %8 : f32[2, 2*s]
//!   %10 = scaled_dot_product_attention %q, %k, %v, _, _, %9 {num_heads = 2, scale = 0.5} : f32[b, s, 4]
//!   return %10
//! }
//! ```
//!
//! Identity: if `bias[h, i, j] = f(h, j - i)`, then `f(h, sk - e)` for `e` from 0 to `sq + sk - 1` is all of it, `2 s` numbers a
//! head where there were `s²`. The bias is followed backwards through elementwise operators, views, transpositions, broadcasts
//! and lookups in tables to the integers `c (j - i) + n` that exporters compute from ranges
//! ([`crate::analysis::access`]); the same operators are then applied to these integers for each distance once. ALiBi, T5's and
//! MPNet's buckets, sliding windows and causal masks are all of this kind.
//!
//! DeBERTa multiplies queries with the keys of positions, and keys with the queries of positions, and takes from each row the
//! element of the distance: `bias[b, h, i, j] = rows[b, h, i, g(j - i)]`, or `rows[b, h, j, g(j - i)]`, by `GatherElements`. The rows
//! become operands, `p` numbers a token, and the index one number for each distance, `g(sk - e)`.
//!
//! A sum is taken apart: what does not depend on the distance alone stays a bias. A bias that is `lo` unless conditions on the
//! distance, on the key and on the query hold becomes a relative bias, a key mask and a mask of queries. `lo` on every key of a
//! query leaves nothing of its scores, which then are all alike: where `lo` is at most -1e30, finite, and all that is added.
//!
//! Preconditions: attention without a relative bias; the parts broadcast to `[heads, queries, keys]`. Otherwise the bias stays,
//! with a remark if it is computed for every pair of tokens.
//!
//! Numeric effect: exact; where a window and a mask come apart and `lo` is not the least finite number or infinite, a query all
//! of whose keys are masked weighs those masked by both less than the graph did. Integers that are multiplied to a mask are taken
//! not to wrap to zero.
//!
//! Source: Press et al., "Train Short, Test Long" (arXiv:2108.12409); Raffel et al., "Exploring the Limits of Transfer Learning"
//! (arXiv:1910.10683), section 2.1; He et al., "DeBERTa" (arXiv:2006.03654), section 3.1.

use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::analysis::access::origin;
use crate::analysis::affine::Affine;
use crate::analysis::padding::MASKED;
use crate::attention::context::keeps_matrices;
use crate::attention::scores::ABSORBING;
use crate::heads::view;
use crate::matcher::{binary, scalar};
use crate::polynomial::scaled;
use crate::rewrite::replace_node;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

mod distances;

use self::distances::{Distances, Known};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-relative-bias",
    summary: "hold biases of attention that depend on distances alone as one number for each",
    options: &[],
    new: || Box::new(RaiseRelativeBias),
};

struct RaiseRelativeBias;

/// Sums and conjunctions are taken apart to this many levels.
const MAX_DEPTH: usize = 6;

impl Pass for RaiseRelativeBias {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut known = Known::new();
        for node in graph.order() {
            if graph.op(node).operator() != Some(Operator::ScaledDotProductAttention) {
                continue;
            }
            let operands = graph.operands(node);
            let [_, _, _, _, Some(bias), apart @ ..] = &operands[..] else {
                continue;
            };
            if apart.iter().any(Option::is_some) {
                continue;
            }
            let bias = *bias;
            let (Some(q), Some(k)) = (graph.operand(node, 0), graph.operand(node, 1)) else {
                continue;
            };
            let (queries, keys) = (graph.shape(q)[1].clone(), graph.shape(k)[1].clone());
            let mut distances = Distances::new(&queries, &keys, &mut known);
            let parts = take_apart(graph, node, bias, &mut distances)?;
            if parts.is_whole() {
                if let [.., queries, keys] = graph.shape(bias)
                    && queries.as_fixed() != Some(1)
                    && keys.as_fixed() != Some(1)
                {
                    let reason = "the bias is held for every pair of tokens: it is no function of their distance";
                    cx.missed(graph, node, reason);
                }
                continue;
            }
            rebuild(graph, node, &parts)?;
            cx.applied(graph, node, parts.describe());
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}

/// What a bias is the sum of.
#[derive(Default)]
struct Parts {
    /// `f32[1 or heads, queries + keys]`.
    relative: Option<Value>,
    mask: Option<Mask>,
    /// Of queries and of keys: `f32[batch, heads, tokens, positions]`, and `i64[queries + keys]`.
    positions: [Option<[Value; 2]>; 2],
    rest: Option<Value>,
}

/// What hides scores.
struct Mask {
    /// `[batch, keys]`, and what masks where it is zero.
    keys: Value,
    masked_value: f32,
    /// `[batch, queries]`: where it is zero, every key is masked.
    queries: Option<Value>,
}

impl Parts {
    /// True if nothing was taken out of the bias.
    fn is_whole(&self) -> bool {
        self.relative.is_none() && self.mask.is_none() && self.positions == [None, None]
    }

    fn describe(&self) -> String {
        let [by_query, by_key] = self.positions;
        let parts = [
            self.relative.map(|_| "one number for each distance"),
            by_query.map(|_| "one for each query and position"),
            by_key.map(|_| "one for each key and position"),
            self.mask.as_ref().map(|m| match m.queries {
                Some(_) => "masks of keys and queries",
                None => "a key mask",
            }),
            self.rest.map(|_| "a bias"),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        format!("the bias becomes {}", parts.join(" and "))
    }
}

/// Puts an attention with these parts in the place of `node`.
fn rebuild(graph: &mut Graph, node: NodeId, parts: &Parts) -> Result<(), PassError> {
    let mut operands = graph.operands(node);
    operands.truncate(4);
    operands.extend([parts.rest, parts.relative, None]);
    for positions in parts.positions {
        operands.extend(match positions {
            Some(positions) => positions.map(Some),
            None => [None; 2],
        });
    }
    let mut attributes = graph.attributes(node).clone();
    if let Some(mask) = &parts.mask {
        operands[3] = Some(mask.keys);
        operands[6] = mask.queries;
        attributes.set("masked_value", Attribute::Float(mask.masked_value));
    }
    let n_operands = operands.iter().rposition(Option::is_some);
    operands.truncate(n_operands.map_or(0, |i| i + 1));
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    replace_node(graph, node, op, &operands)?;
    Ok(())
}

/// The parts of the bias of `node`.
fn take_apart(
    graph: &mut Graph,
    node: NodeId,
    bias: Value,
    distances: &mut Distances<'_>,
) -> Result<Parts, PassError> {
    let mut parts = Parts::default();
    let mut addends = Vec::new();
    collect_addends(graph, bias, MAX_DEPTH, &mut addends)?;
    let sum = |graph: &mut Graph, a: Option<Value>, b: Value| match a {
        Some(a) => graph.apply(Operator::Add, Attributes::new(), &[a, b]),
        None => Ok(b),
    };
    let mut others = Vec::new();
    for addend in addends {
        if scalar(graph, addend) == Some(0.0) {
            continue;
        }
        if let Some((side, positions)) = distances.positions(graph, node, addend)?
            && parts.positions[side].is_none()
        {
            parts.positions[side] = Some(positions);
        } else if let Some(relative) = distances.bias(graph, addend)? {
            parts.relative = Some(sum(graph, parts.relative, relative)?);
        } else {
            others.push(addend);
        }
    }
    // What else is added may be infinite, and is there for masked queries too.
    let may_level = parts.relative.is_none() && others.len() == 1;
    let mut has_mask = graph.operand(node, 3).is_some();
    for addend in others {
        if !has_mask
            && let Some((window, mask)) = masked(graph, node, addend, distances)?
            && (may_level || mask.queries.is_none())
        {
            if let Some(relative) = window {
                parts.relative = Some(sum(graph, parts.relative, relative)?);
            }
            parts.mask = Some(mask);
            has_mask = true;
        } else {
            parts.rest = Some(sum(graph, parts.rest, addend)?);
        }
    }
    Ok(parts)
}

/// What `value` is a sum of, through factors of sums and views that keep their matrices.
fn collect_addends(
    graph: &mut Graph,
    value: Value,
    depth: usize,
    out: &mut Vec<Value>,
) -> Result<(), PassError> {
    if let Some(depth) = depth.checked_sub(1)
        && let Some(terms) = terms_of(graph, value)?
    {
        return terms
            .into_iter()
            .try_for_each(|term| collect_addends(graph, term, depth, out));
    }
    out.push(value);
    Ok(())
}

/// Two values that `value` is the sum of: those that are added, each with the factors and views that stand between.
fn terms_of(graph: &mut Graph, value: Value) -> Result<Option<[Value; 2]>, PassError> {
    enum Between {
        Factor(f32),
        View(Vec<Dim>),
    }
    let (mut sum, mut between) = (value, Vec::new());
    let mut terms = loop {
        if let Some((a, b)) = binary(graph, sum, Operator::Add) {
            break [a, b];
        }
        let next = if let Some((x, factor)) = scaled(graph, sum) {
            Some((x, Between::Factor(factor as f32)))
        } else {
            let x = graph.operand(sum.node, 0);
            x.filter(|&x| keeps_matrices(graph, sum, x))
                .map(|x| (x, Between::View(graph.shape(sum).to_vec())))
        };
        let Some((x, by)) = next.filter(|_| between.len() < MAX_DEPTH) else {
            return Ok(None);
        };
        between.push(by);
        sum = x;
    };
    let shape = graph.shape(sum).to_vec();
    for term in &mut terms {
        // Nothing, times whatever stands between.
        if scalar(graph, *term) == Some(0.0) {
            continue;
        }
        let own = graph.shape(*term);
        let is_scalar = own.is_empty();
        if !between.is_empty() && !is_scalar && *own != *shape {
            return Ok(None);
        }
        for by in between.iter().rev() {
            match by {
                Between::Factor(factor) => {
                    let factor = graph.add_const("factor", Arc::new(Tensor::scalar(*factor)));
                    *term = graph.apply(Operator::Mul, Attributes::new(), &[*term, factor])?;
                }
                Between::View(_) if is_scalar => {}
                Between::View(shape) => *term = view(graph, *term, shape.clone())?,
            }
        }
    }
    Ok(Some(terms))
}

/// The operands of nested applications of a binary operator.
fn collect(graph: &Graph, value: Value, op: Operator, depth: usize, out: &mut Vec<Value>) {
    match binary(graph, value, op) {
        Some((a, b)) if 0 < depth => {
            collect(graph, a, op, depth - 1, out);
            collect(graph, b, op, depth - 1, out);
        }
        _ => out.push(value),
    }
}

/// A bias that is `lo` unless conditions on distances, on keys and on queries hold: that on distances as a relative bias, the
/// others as masks.
fn masked(
    graph: &mut Graph,
    node: NodeId,
    bias: Value,
    distances: &mut Distances<'_>,
) -> Result<Option<(Option<Value>, Mask)>, PassError> {
    let [Some(condition), Some(yes), Some(no)] = graph.operands(bias.node)[..] else {
        return Ok(None);
    };
    if graph.operator(bias) != Some(Operator::Where) {
        return Ok(None);
    }
    let (lo, visible) = match (scalar(graph, yes), scalar(graph, no)) {
        (Some(0.0), Some(lo)) => (lo, true),
        (Some(lo), Some(0.0)) => (lo, false),
        _ => return Ok(None),
    };
    let mut clauses = Vec::new();
    if MASKED < lo || !conjuncts(graph, condition, visible, MAX_DEPTH, &mut clauses) {
        return Ok(None);
    }
    let [mut near, mut seen, mut active]: [Option<Value>; 3] = [None; 3];
    for (clause, holds) in clauses {
        let (into, mut value) = if let Some(relative) = distances.relative(graph, clause)? {
            (&mut near, relative)
        } else if let Some(mask) = of_keys(graph, node, clause)? {
            (&mut seen, mask)
        } else if let Some(mask) = of_queries(graph, node, clause)? {
            (&mut active, mask)
        } else {
            return Ok(None);
        };
        if !holds {
            let value_holds = boolean(graph, value)?;
            value = graph.apply(Operator::Not, Attributes::new(), &[value_holds])?;
        }
        *into = Some(match *into {
            Some(other) => {
                let both = [boolean(graph, other)?, boolean(graph, value)?];
                graph.apply(Operator::And, Attributes::new(), &both)?
            }
            None => value,
        });
    }
    let Some(keys) = seen else {
        return Ok(None);
    };
    // For a query that is not active, `lo` on every key must leave nothing of the scores.
    if active.is_some() && !(lo.is_finite() && lo <= ABSORBING) {
        return Ok(None);
    }
    let relative = match near {
        Some(near) => {
            let near = boolean(graph, near)?;
            let masked = graph.add_const("masked", Arc::new(Tensor::scalar(lo)));
            let zero = graph.add_const("zero", Arc::new(Tensor::scalar(0.0f32)));
            let bias = [near, zero, masked];
            let bias = graph.apply(Operator::Where, Attributes::new(), &bias)?;
            match distances.rows(graph, bias)? {
                Some(rows) => Some(rows),
                None => return Ok(None),
            }
        }
        None => None,
    };
    let mask = Mask {
        keys,
        masked_value: lo,
        queries: active,
    };
    Ok(Some((relative, mask)))
}

/// Whether the elements of `value` are not zero.
fn boolean(graph: &mut Graph, value: Value) -> Result<Value, PassError> {
    if graph.ty(value).dtype == DType::Bool {
        return Ok(value);
    }
    let to = Attributes::new().with("to", Attribute::Str(DType::Bool.name().to_owned()));
    Ok(graph.apply(Operator::Cast, to, &[value])?)
}

/// Conditions that together mean that `condition` is `holds`, each with what it is to be, integers for whether they are not
/// zero; false if it is too deep.
fn conjuncts(
    graph: &Graph,
    condition: Value,
    holds: bool,
    depth: usize,
    out: &mut Vec<(Value, bool)>,
) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let both = if holds { Operator::And } else { Operator::Or };
    if let Some((a, b)) = binary(graph, condition, both) {
        return conjuncts(graph, a, holds, depth, out) && conjuncts(graph, b, holds, depth, out);
    }
    match (graph.operator(condition), graph.operand(condition.node, 0)) {
        (Some(Operator::Not), Some(x)) => conjuncts(graph, x, !holds, depth, out),
        (Some(Operator::Cast), Some(x)) if holds && graph.ty(x).dtype.is_integer() => {
            let mut factors = Vec::new();
            collect(graph, x, Operator::Mul, depth, &mut factors);
            out.extend(factors.into_iter().map(|x| (x, true)));
            true
        }
        _ => {
            out.push((condition, holds));
            true
        }
    }
}

/// A condition on the key alone as `[batch, keys]`.
fn of_keys(graph: &mut Graph, node: NodeId, condition: Value) -> Result<Option<Value>, PassError> {
    let Some(k) = graph.operand(node, 1) else {
        return Ok(None);
    };
    let shape = graph.shape(k)[..2].to_vec();
    let one = Dim::fixed(1);
    let own = graph.shape(condition).to_vec();
    if let [batch, between @ .., keys] = own.as_slice()
        && [batch.clone(), keys.clone()] == shape[..]
        && between.iter().all(|d| *d == one)
    {
        return Ok(Some(view(graph, condition, shape)?));
    }
    let Some((tensor, index)) = origin(graph, condition) else {
        return Ok(None);
    };
    let by_key = own.len() == 4
        && graph.shape(tensor) == shape
        && index == [Affine::index(0), Affine::index(3)]
        && graph.ty(tensor).dtype == DType::Bool;
    Ok(by_key.then_some(tensor))
}

/// A condition on the query alone as `[batch, queries]`.
fn of_queries(
    graph: &mut Graph,
    node: NodeId,
    condition: Value,
) -> Result<Option<Value>, PassError> {
    let Some(q) = graph.operand(node, 0) else {
        return Ok(None);
    };
    let shape = graph.shape(q)[..2].to_vec();
    let one = Dim::fixed(1);
    let own = graph.shape(condition).to_vec();
    match own.as_slice() {
        [batch, between @ .., queries, last]
            if [batch.clone(), queries.clone()] == shape[..]
                && *last == one
                && between.iter().all(|d| *d == one) =>
        {
            Ok(Some(view(graph, condition, shape)?))
        }
        _ => Ok(None),
    }
}
