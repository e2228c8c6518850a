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
//! A sum is taken apart: what does not depend on the distance alone stays a bias. A bias that is `lo` unless two conditions
//! hold, one on the distance and one on the key, becomes a relative bias and a key mask.
//!
//! Preconditions: attention without a relative bias; the parts broadcast to `[heads, queries, keys]`. Otherwise the bias stays,
//! with a remark if it is computed for every pair of tokens.
//!
//! Numeric effect: exact; where a window and a mask come apart and `lo` is not the least finite number or infinite, a query all
//! of whose keys are masked weighs those masked by both less than the graph did.
//!
//! Source: Press et al., "Train Short, Test Long" (arXiv:2108.12409); Raffel et al., "Exploring the Limits of Transfer Learning"
//! (arXiv:1910.10683), section 2.1.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::analysis::access::{Expr, describe, is_elementwise, origin};
use crate::analysis::affine::Affine;
use crate::analysis::padding::MASKED;
use crate::heads::view;
use crate::matcher::{axis_of, binary, permutation, result, scalar};
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-relative-bias",
    summary: "hold biases of attention that depend on distances alone as one number for each",
    options: &[],
    new: || Box::new(RaiseRelativeBias),
};

struct RaiseRelativeBias;

/// Sums and conjunctions are taken apart to this many levels.
const MAX_DEPTH: usize = 6;

/// Longest chain of operands followed from a bias.
const MAX_CHAIN: usize = 100;

impl Pass for RaiseRelativeBias {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut known = HashMap::new();
        for node in graph.order() {
            if graph.op(node).operator() != Some(Operator::ScaledDotProductAttention) {
                continue;
            }
            let (Some(bias), None) = (graph.operand(node, 4), graph.operand(node, 5)) else {
                continue;
            };
            let (Some(q), Some(k)) = (graph.operand(node, 0), graph.operand(node, 1)) else {
                continue;
            };
            let mut distances = Distances {
                queries: graph.shape(q)[1].clone(),
                keys: graph.shape(k)[1].clone(),
                known: &mut known,
                chain: 0,
            };
            let parts = take_apart(graph, node, bias, &mut distances)?;
            if parts.relative.is_none() && parts.mask.is_none() {
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
    /// `bool[batch, keys]`, and what masks.
    mask: Option<(Value, f32)>,
    rest: Option<Value>,
}

impl Parts {
    fn describe(&self) -> String {
        let parts = [
            self.relative.map(|_| "one number for each distance"),
            self.mask.map(|_| "a key mask"),
            self.rest.map(|_| "a bias"),
        ];
        let parts: Vec<&str> = parts.into_iter().flatten().collect();
        format!("the bias becomes {}", parts.join(" and "))
    }
}

/// Puts an attention with these parts in the place of `node`.
fn rebuild(graph: &mut Graph, node: NodeId, parts: &Parts) -> Result<(), PassError> {
    let mut operands = graph.operands(node);
    operands.resize(6, None);
    operands[4] = parts.rest;
    operands[5] = parts.relative;
    let mut attributes = graph.attributes(node).clone();
    if let Some((mask, masked_value)) = parts.mask {
        operands[3] = Some(mask);
        attributes.set("masked_value", Attribute::Float(masked_value));
    }
    let n_operands = operands.iter().rposition(Option::is_some);
    operands.truncate(n_operands.map_or(0, |i| i + 1));
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    let rebuilt = graph.add(op, &operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(rebuilt, &name);
    graph.replace_all_uses(result(node), result(rebuilt))?;
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
    let mut has_mask = graph.operand(node, 3).is_some();
    let mut addends = Vec::new();
    collect(graph, bias, Operator::Add, MAX_DEPTH, &mut addends);
    let sum = |graph: &mut Graph, a: Option<Value>, b: Value| match a {
        Some(a) => graph.apply(Operator::Add, Attributes::new(), &[a, b]),
        None => Ok(b),
    };
    for addend in addends {
        if let Some(relative) = distances.bias(graph, addend)? {
            parts.relative = Some(sum(graph, parts.relative, relative)?);
            continue;
        }
        if !has_mask && let Some((window, mask, lo)) = masked(graph, node, addend, distances)? {
            if let Some(relative) = window {
                parts.relative = Some(sum(graph, parts.relative, relative)?);
            }
            parts.mask = Some((mask, lo));
            has_mask = true;
            continue;
        }
        parts.rest = Some(sum(graph, parts.rest, addend)?);
    }
    Ok(parts)
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

/// A bias that is `lo` unless conditions on distances and on keys hold: that on distances as a relative bias, that on keys as a
/// mask.
fn masked(
    graph: &mut Graph,
    node: NodeId,
    bias: Value,
    distances: &mut Distances<'_>,
) -> Result<Option<(Option<Value>, Value, f32)>, PassError> {
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
    let (mut near, mut seen): (Option<Value>, Option<Value>) = (None, None);
    for (clause, holds) in clauses {
        let (into, mut value) = match distances.relative(graph, clause)? {
            Some(relative) => (&mut near, relative),
            None => match of_keys(graph, node, clause)? {
                Some(mask) => (&mut seen, mask),
                None => return Ok(None),
            },
        };
        if !holds {
            value = graph.apply(Operator::Not, Attributes::new(), &[value])?;
        }
        *into = Some(match *into {
            Some(other) => graph.apply(Operator::And, Attributes::new(), &[other, value])?,
            None => value,
        });
    }
    let Some(mask) = seen else {
        return Ok(None);
    };
    let relative = match near {
        Some(near) => {
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
    Ok(Some((relative, mask, lo)))
}

/// Conditions that together mean that `condition` is `holds`, each with what it is to be; false if it is too deep.
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
    match graph.operand(condition.node, 0) {
        Some(x) if graph.operator(condition) == Some(Operator::Not) => {
            conjuncts(graph, x, !holds, depth, out)
        }
        _ => {
            out.push((condition, holds));
            true
        }
    }
}

/// A condition on the key alone as `bool[batch, keys]`.
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

/// Values by distance instead of by query and key.
struct Distances<'a> {
    queries: Dim,
    keys: Dim,
    /// What values became, with their axes of queries and keys.
    known: &'a mut HashMap<(Value, Axes, [Dim; 2]), Option<Value>>,
    /// Operands followed to where the walk is.
    chain: usize,
}

/// The axes of queries and of keys.
type Axes = [usize; 2];

impl Distances<'_> {
    /// A bias of scores as `f32[1 or heads, queries + keys]`, if it is a function of the distance.
    fn bias(&mut self, graph: &mut Graph, bias: Value) -> Result<Option<Value>, PassError> {
        match self.relative(graph, bias)? {
            Some(relative) => self.rows(graph, relative),
            None => Ok(None),
        }
    }

    /// `relative`, `[1, 1 or heads, 1, distances]` or of a lower rank, as rows.
    fn rows(&self, graph: &mut Graph, relative: Value) -> Result<Option<Value>, PassError> {
        let shape = graph.shape(relative).to_vec();
        let one = Dim::fixed(1);
        let (heads, distances) = match shape.as_slice() {
            [_, d] => (one, d.clone()),
            [h, _, d] => (h.clone(), d.clone()),
            [b, h, _, d] if *b == one => (h.clone(), d.clone()),
            _ => return Ok(None),
        };
        Ok(Some(view(graph, relative, vec![heads, distances])?))
    }

    /// What has queries and keys as its last axes, with queries taken to be one and distances in the place of keys.
    fn relative(&mut self, graph: &mut Graph, value: Value) -> Result<Option<Value>, PassError> {
        let shape = graph.shape(value);
        match *shape {
            [.., ref q, ref k] if *q == self.queries && *k == self.keys => {
                let rank = shape.len();
                self.along(graph, value, [rank - 2, rank - 1])
            }
            _ => Ok(None),
        }
    }

    /// `value` with size 1 along the axis of queries and distances along that of keys, if it depends on both by their
    /// distance alone.
    fn along(
        &mut self,
        graph: &mut Graph,
        value: Value,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let key = (value, axes, [self.queries.clone(), self.keys.clone()]);
        if let Some(&found) = self.known.get(&key) {
            return Ok(found);
        }
        if MAX_CHAIN < self.chain {
            return Ok(None);
        }
        self.chain += 1;
        let ty = graph.ty(value);
        let (rank, dtype) = (ty.rank(), ty.dtype);
        let found = match describe(graph, value) {
            Expr::Affine(a) => self.leaf(graph, (rank, dtype), &a, axes)?,
            Expr::Apply { op, operands, .. } if is_comparison(op) => match operands.as_slice() {
                // Positions compare as their difference does with zero.
                [(Expr::Affine(a), _), (Expr::Affine(b), _)] => match a.sub(b) {
                    Some(difference) => {
                        let x = self.leaf(graph, (rank, DType::I64), &difference, axes)?;
                        let zero = graph.add_const("", Arc::new(Tensor::scalar(0i64)));
                        x.map(|x| graph.apply(op, Attributes::new(), &[x, zero]))
                            .transpose()?
                    }
                    None => None,
                },
                _ => self.through(graph, value, axes)?,
            },
            _ => self.through(graph, value, axes)?,
        };
        self.chain -= 1;
        self.known.insert(key, found);
        Ok(found)
    }

    /// The integers `c (j - i) + n`, of this rank and type.
    fn leaf(
        &self,
        graph: &mut Graph,
        (rank, dtype): (usize, DType),
        affine: &Affine,
        [queries, keys]: Axes,
    ) -> Result<Option<Value>, PassError> {
        let c = affine.coefficient(keys);
        let factor = c.as_fixed().filter(|&c| c != i64::MIN);
        let Some((factor, offset)) = factor.zip(self.offset(affine, [queries, keys], &c)) else {
            return Ok(None);
        };
        let Some(n_distances) = self.queries.add(&self.keys) else {
            return Ok(None);
        };
        let dims = |graph: &mut Graph, d: &Dim| graph.add(Op::Dims(vec![d.clone()]), &[]);
        let int = |graph: &mut Graph, v: i64| graph.add_const("", Arc::new(Tensor::scalar(v)));
        let n = dims(graph, &n_distances)?;
        let n = view(graph, result(n), Vec::new())?;
        let (zero, one) = (int(graph, 0), int(graph, 1));
        let range = graph.apply(Operator::Range, Attributes::new(), &[zero, n, one])?;
        let keys_dim = dims(graph, &self.keys)?;
        let mut distance = [result(keys_dim), range];
        if factor < 0 {
            distance.reverse();
        }
        let mut x = graph.apply(Operator::Sub, Attributes::new(), &distance)?;
        if factor.abs() != 1 {
            let factor = int(graph, factor.abs());
            x = graph.apply(Operator::Mul, Attributes::new(), &[x, factor])?;
        }
        if offset != Dim::fixed(0) {
            let offset = dims(graph, &offset)?;
            x = graph.apply(Operator::Add, Attributes::new(), &[x, result(offset)])?;
        }
        if dtype != DType::I64 {
            let to = Attributes::new().with("to", Attribute::Str(dtype.name().to_owned()));
            x = graph.apply(Operator::Cast, to, &[x])?;
        }
        let mut shape = vec![Dim::fixed(1); rank];
        shape[keys] = n_distances;
        Ok(Some(view(graph, x, shape)?))
    }

    /// `n` in `c (j - i) + n`, if `affine` is that.
    fn offset(&self, affine: &Affine, [queries, keys]: Axes, c: &Dim) -> Option<Dim> {
        let distance = Affine::index(keys).sub(&Affine::index(queries))?;
        affine.sub(&distance.scale(c)?)?.as_constant().cloned()
    }

    /// Through the operation that makes a value.
    fn through(
        &mut self,
        graph: &mut Graph,
        value: Value,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let node = value.node;
        if value.result != 0 {
            return Ok(None);
        }
        let Some(n_distances) = self.queries.add(&self.keys) else {
            return Ok(None);
        };
        let by_distance = |shape: &[Dim], [queries, keys]: Axes| {
            let mut shape = shape.to_vec();
            shape[queries] = Dim::fixed(1);
            shape[keys] = n_distances.clone();
            shape
        };
        let op = graph.op(node).clone();
        match &op {
            Op::View(shape) => {
                let Some(x) = graph.operand(node, 0) else {
                    return Ok(None);
                };
                let Some(of_x) = axes_of_operand(shape, axes, graph.shape(x)) else {
                    return Ok(None);
                };
                let Some(x) = self.along(graph, x, of_x)? else {
                    return Ok(None);
                };
                Ok(Some(view(graph, x, by_distance(shape, axes))?))
            }
            Op::Broadcast(shape) => {
                let Some(x) = self.aligned(graph, node, 0, shape.len(), axes)? else {
                    return Ok(None);
                };
                let to = Op::Broadcast(by_distance(shape, axes));
                Ok(Some(result(graph.add(to, &[Some(x)])?)))
            }
            Op::Apply(Operator::Transpose, attributes) => {
                let (Some(perm), Some(x)) = (permutation(graph, node), graph.operand(node, 0))
                else {
                    return Ok(None);
                };
                let Some(x) = self.along(graph, x, axes.map(|a| perm[a]))? else {
                    return Ok(None);
                };
                let transposed = graph.apply(Operator::Transpose, attributes.clone(), &[x])?;
                Ok(Some(transposed))
            }
            Op::Apply(Operator::Gather, attributes) => {
                let (Some(table), Some(indices)) = (graph.operand(node, 0), graph.operand(node, 1))
                else {
                    return Ok(None);
                };
                let Some(axis) = axis_of(graph, node, graph.ty(table).rank()) else {
                    return Ok(None);
                };
                let n = graph.ty(indices).rank();
                if !axes.iter().all(|a| (axis..axis + n).contains(a)) {
                    return Ok(None);
                }
                let Some(indices) = self.along(graph, indices, axes.map(|a| a - axis))? else {
                    return Ok(None);
                };
                let operands = [table, indices];
                Ok(Some(graph.apply(
                    Operator::Gather,
                    attributes.clone(),
                    &operands,
                )?))
            }
            Op::Apply(operator, _) if of_each_element(*operator) => {
                let rank = graph.ty(value).rank();
                let mut operands = Vec::new();
                for i in 0..graph.operands(node).len() {
                    if graph.operand(node, i).is_none() {
                        operands.push(None);
                        continue;
                    }
                    match self.aligned(graph, node, i, rank, axes)? {
                        Some(x) => operands.push(Some(x)),
                        None => return Ok(None),
                    }
                }
                Ok(Some(result(graph.add(op, &operands)?)))
            }
            _ => Ok(None),
        }
    }

    /// Operand `i` of a node that broadcasts it to a result of `rank` with these axes.
    fn aligned(
        &mut self,
        graph: &mut Graph,
        node: NodeId,
        i: usize,
        rank: usize,
        axes: Axes,
    ) -> Result<Option<Value>, PassError> {
        let Some(x) = graph.operand(node, i) else {
            return Ok(None);
        };
        let shape = graph.shape(x);
        let skipped = rank.saturating_sub(shape.len());
        let own = axes.map(|a| {
            a.checked_sub(skipped)
                .filter(|&a| shape[a].as_fixed() != Some(1))
        });
        match own {
            [None, None] => Ok(Some(x)),
            [Some(queries), Some(keys)] => self.along(graph, x, [queries, keys]),
            _ => Ok(None),
        }
    }
}

/// Where the axes of a view are in what it is a view of, if the two differ in dimensions of size 1 alone.
fn axes_of_operand(shape: &[Dim], axes: Axes, from: &[Dim]) -> Option<Axes> {
    let long = |shape: &[Dim]| -> Vec<usize> {
        (0..shape.len())
            .filter(|&a| shape[a].as_fixed() != Some(1))
            .collect()
    };
    let (to_axes, from_axes) = (long(shape), long(from));
    let same = to_axes.len() == from_axes.len()
        && (to_axes.iter().zip(&from_axes)).all(|(&a, &b)| shape[a] == from[b]);
    if !same {
        return None;
    }
    let mut found = [0; 2];
    for (found, axis) in found.iter_mut().zip(axes) {
        *found = from_axes[to_axes.iter().position(|&a| a == axis)?];
    }
    Some(found)
}

fn is_comparison(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::Equal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
    )
}

/// True if each element of the result depends on the elements of the operands at the same place, after broadcasting.
fn of_each_element(operator: Operator) -> bool {
    is_elementwise(operator)
        || matches!(
            operator,
            Operator::Log
                | Operator::Exp
                | Operator::Sqrt
                | Operator::Reciprocal
                | Operator::Floor
                | Operator::Ceil
                | Operator::Round
                | Operator::Tanh
                | Operator::Sigmoid
                | Operator::Relu
                | Operator::Identity
        )
}
