//! Raises layer normalization and root-mean-square normalization written out in arithmetic.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   const @axis: i64[1] = [-1]
//!   const @two: f32[] = 2.0
//!   const @eps: f32[] = 0.001
//!   const @gamma: f32[4] = [1.0, 2.0, 3.0, 4.0]
//!   const @beta: f32[4] = [0.5, 0.25, 0.0, -0.5]
//!   %0 = reduce_mean %x, @axis : f32[s, 1]
//!   %1 = sub %x, %0 : f32[s, 4]
//!   %2 = pow %1, @two : f32[s, 4]
//!   %3 = reduce_mean %2, @axis : f32[s, 1]
//!   %4 = add %3, @eps : f32[s, 1]
//!   %5 = sqrt %4 : f32[s, 1]
//!   %6 = div %1, %5 : f32[s, 4]
//!   %7 = mul %6, @gamma : f32[s, 4]
//!   %8 = add %7, @beta : f32[s, 4]
//!   return %8
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   const @gamma: f32[4] = [1.0, 2.0, 3.0, 4.0]
//!   const @beta: f32[4] = [0.5, 0.25, 0.0, -0.5]
//!   %0 = layer_normalization %x, @gamma, @beta {axis = -1, epsilon = 0.001} : f32[s, 4]
//!   return %0
//! }
//! ```
//!
//! Identities, `mean` over the last axis:
//!
//! ```text
//! d = x - mean(x)     d / sqrt(mean(d²) + ε) · γ + β = LayerNormalization(x, γ, β)
//!                     x / sqrt(mean(x²) + ε) · γ     = RMSNormalization(x, γ)
//! ```
//!
//! The square may be `Pow` or `Mul`, the quotient `Div`, `Mul` by a `Reciprocal`, or `Pow` by -1/2; γ may be multiplied into
//! the reciprocal first; and TensorFlow's `x·r + (β - mean(x)·r)` with `r = γ / sqrt(mean(d²) + ε)` is the same. Without γ, ones
//! take its place.
//!
//! Preconditions: `f32`; one reduced axis, the last, kept with size 1; ε a positive scalar constant; γ and β vectors of the
//! size of that axis. A normalization over other axes is declined with a remark.
//!
//! Numeric effect: reassociates.
//!
//! Sources: Ba et al., "Layer Normalization" (arXiv:1607.06450); Zhang and Sennrich, "Root Mean Square Layer Normalization"
//! (arXiv:1910.07467).

use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::matcher::{
    binary, commuted, int_scalar, is_dtype, is_scalar, reduced_last_axis, result, scalar, unary,
};
use crate::vector::as_vector;
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `raise-layer-norm`.
pub(crate) struct RaiseLayerNorm;

/// The pass `raise-rms-norm`.
pub(crate) struct RaiseRmsNorm;

/// A written-out normalization.
#[derive(Clone, Debug)]
struct Norm {
    root: Value,
    /// Where the mean is subtracted, `x` is what it is subtracted from.
    x: Value,
    epsilon: f32,
    gamma: Option<Value>,
    beta: Option<Value>,
    subtracts_mean: bool,
}

impl Pass for RaiseLayerNorm {
    fn name(&self) -> &'static str {
        "raise-layer-norm"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        raise(graph, cx, true)
    }
}

impl Pass for RaiseRmsNorm {
    fn name(&self) -> &'static str {
        "raise-rms-norm"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        raise(graph, cx, false)
    }
}

fn raise(
    graph: &mut Graph,
    cx: &mut PassContext<'_>,
    subtracts_mean: bool,
) -> Result<Changed, PassError> {
    let mut norms: Vec<Norm> = Vec::new();
    for node in graph.order() {
        let value = result(node);
        if !is_dtype(graph, value, DType::F32) {
            continue;
        }
        let found = normalized(graph, value)
            .map(|norm| with_affine(graph, norm))
            .or_else(|| factored_out(graph, value))
            .filter(|n| n.subtracts_mean == subtracts_mean);
        match found {
            Some(norm) => norms.push(norm),
            None if subtracts_mean => remark_other_axes(graph, node, cx),
            None => {}
        }
    }
    let mut rewrites = Rewrites::new();
    for norm in norms {
        if rewrites.is_replaced(norm.root) || !graph.ty(norm.x).same_value(graph.ty(norm.root)) {
            continue;
        }
        let Some(h) = width(graph, norm.x) else {
            let message = "the size of the normalized axis is not fixed";
            cx.missed(graph, norm.root.node, message);
            continue;
        };
        let gamma = match norm.gamma {
            Some(v) => as_vector(graph, v, h)?,
            None => Some(graph.add_const("ones", Arc::new(Tensor::new([h], vec![1.0f32; h])))),
        };
        let beta = match norm.beta {
            Some(v) => as_vector(graph, v, h)?,
            None => None,
        };
        let (Some(gamma), false) = (gamma, norm.beta.is_some() && beta.is_none()) else {
            let message = format!("scale or shift are not vectors of {h} elements");
            cx.missed(graph, norm.root.node, message);
            continue;
        };
        let attributes = Attributes::new()
            .with("axis", Attribute::Int(-1))
            .with("epsilon", Attribute::Float(norm.epsilon));
        let op = if subtracts_mean {
            Operator::LayerNormalization
        } else {
            Operator::RMSNormalization
        };
        let mut operands = vec![norm.x, gamma];
        operands.extend(beta);
        cx.applied(graph, norm.root.node, format!("raised to {op}"));
        rewrites.replace_by(graph, norm.root, Op::Apply(op, attributes), &operands)?;
    }
    Ok(rewrites.changed())
}

/// The fixed size of the last axis.
fn width(graph: &Graph, value: Value) -> Option<usize> {
    usize::try_from(graph.shape(value).last()?.as_fixed()?).ok()
}

/// `d / sqrt(mean(d²) + ε)`, or with γ multiplied into the reciprocal.
fn normalized(graph: &Graph, value: Value) -> Option<Norm> {
    let (d, variance, gamma) = if let Some((d, root)) = binary(graph, value, Operator::Div) {
        (d, square_rooted(graph, root)?, None)
    } else {
        let ((variance, gamma), d) = commuted(graph, value, Operator::Mul, |factor| {
            scaled_reciprocal_root(graph, factor)
        })?;
        (d, variance, gamma)
    };
    let (squared, epsilon) = mean_of_square(graph, variance)?;
    if !same_difference(graph, squared, d) {
        return None;
    }
    let centred = difference_from_mean(graph, d);
    Some(Norm {
        root: value,
        x: centred.map_or(d, |(x, _)| x),
        epsilon,
        gamma,
        beta: None,
        subtracts_mean: centred.is_some(),
    })
}

/// `x·r + (β - mean(x)·r)` with `r = γ / sqrt(mean((x - mean(x))²) + ε)`.
fn factored_out(graph: &Graph, value: Value) -> Option<Norm> {
    let ((beta, shift), product) = commuted(graph, value, Operator::Add, |v| {
        binary(graph, v, Operator::Sub)
    })?;
    let attempt = |x: Value, r: Value| {
        let (variance, gamma) = scaled_reciprocal_root(graph, r)?;
        let (squared, epsilon) = mean_of_square(graph, variance)?;
        let (centred, mean) = difference_from_mean(graph, squared)?;
        let (m, other) = binary(graph, shift, Operator::Mul)?;
        let shifts_by_mean = (m, other) == (mean, r) || (m, other) == (r, mean);
        (centred == x && shifts_by_mean).then_some(Norm {
            root: value,
            x,
            epsilon,
            gamma,
            beta: Some(beta),
            subtracts_mean: true,
        })
    };
    let (a, b) = binary(graph, product, Operator::Mul)?;
    attempt(a, b).or_else(|| attempt(b, a))
}

/// Follows the only user of a normalized value through the multiplication by γ and the addition of β.
fn with_affine(graph: &Graph, mut norm: Norm) -> Norm {
    let operand = |root: Value, op: Operator| {
        let user = result(graph.single_user(root)?);
        let (_, other) = commuted(graph, user, op, |v| (v == root).then_some(()))?;
        let is_vector = graph.shape(other).last() == graph.shape(root).last()
            && graph
                .shape(other)
                .iter()
                .rev()
                .skip(1)
                .all(|d| d.as_fixed() == Some(1));
        (is_vector && graph.ty(user).same_value(graph.ty(root))).then_some((user, other))
    };
    if norm.gamma.is_none()
        && let Some((user, gamma)) = operand(norm.root, Operator::Mul)
    {
        norm.root = user;
        norm.gamma = Some(gamma);
    }
    if norm.subtracts_mean
        && let Some((user, beta)) = operand(norm.root, Operator::Add)
    {
        norm.root = user;
        norm.beta = Some(beta);
    }
    norm
}

/// `v` if `value` is `sqrt(v)`.
fn square_rooted(graph: &Graph, value: Value) -> Option<Value> {
    unary(graph, value, Operator::Sqrt).or_else(|| {
        let (v, exponent) = binary(graph, value, Operator::Pow)?;
        is_scalar(graph, exponent, 0.5).then_some(v)
    })
}

/// `v` if `value` is `1 / sqrt(v)`.
fn reciprocal_root(graph: &Graph, value: Value) -> Option<Value> {
    let reciprocal = |value| {
        unary(graph, value, Operator::Reciprocal).or_else(|| {
            let (one, v) = binary(graph, value, Operator::Div)?;
            is_scalar(graph, one, 1.0).then_some(v)
        })
    };
    if let Some(root) = reciprocal(value) {
        return square_rooted(graph, root);
    }
    if let Some((v, exponent)) = binary(graph, value, Operator::Pow) {
        return is_scalar(graph, exponent, -0.5).then_some(v);
    }
    reciprocal(unary(graph, value, Operator::Sqrt)?)
}

/// `v` and γ if `value` is `1 / sqrt(v)` or `γ / sqrt(v)`.
fn scaled_reciprocal_root(graph: &Graph, value: Value) -> Option<(Value, Option<Value>)> {
    if let Some(v) = reciprocal_root(graph, value) {
        return Some((v, None));
    }
    let (v, gamma) = commuted(graph, value, Operator::Mul, |v| reciprocal_root(graph, v))?;
    Some((v, Some(gamma)))
}

/// What is squared, and ε, if `value` is `mean(d²) + ε` over the last axis.
fn mean_of_square(graph: &Graph, value: Value) -> Option<(Value, f32)> {
    let (epsilon, mean) = commuted(graph, value, Operator::Add, |v| scalar(graph, v))?;
    let square = reduced_last_axis(graph, mean, Operator::ReduceMean)?;
    let d = squared(graph, square)?;
    (0.0 <= epsilon && epsilon.is_finite()).then_some((d, epsilon))
}

/// `d` if `value` is `d²`.
fn squared(graph: &Graph, value: Value) -> Option<Value> {
    if let Some((d, exponent)) = binary(graph, value, Operator::Pow) {
        return is_scalar(graph, exponent, 2.0).then_some(d);
    }
    let (a, b) = binary(graph, value, Operator::Mul)?;
    same_difference(graph, a, b).then_some(a)
}

/// `x` and its mean if `value` is `x - mean(x)` over the last axis.
fn difference_from_mean(graph: &Graph, value: Value) -> Option<(Value, Value)> {
    let (x, mean) = binary(graph, value, Operator::Sub)?;
    (reduced_last_axis(graph, mean, Operator::ReduceMean)? == x).then_some((x, mean))
}

/// True if two values are the same, or the same difference computed twice.
fn same_difference(graph: &Graph, a: Value, b: Value) -> bool {
    let operands = |v| binary(graph, v, Operator::Sub);
    a == b || operands(a).is_some_and(|o| operands(b) == Some(o))
}

/// Remarks on what looks like a normalization over axes other than the last.
fn remark_other_axes(graph: &Graph, node: NodeId, cx: &mut PassContext<'_>) {
    let mean_of_difference = || {
        let variance = square_rooted(graph, result(node))?;
        let (_, mean) = commuted(graph, variance, Operator::Add, |v| scalar(graph, v))?;
        let d = squared(graph, unary(graph, mean, Operator::ReduceMean)?)?;
        let (x, m) = binary(graph, d, Operator::Sub)?;
        let same_input = unary(graph, m, Operator::ReduceMean)? == x;
        let last_axis = reduced_last_axis(graph, mean, Operator::ReduceMean).is_some();
        (same_input && !last_axis).then(|| {
            let axes = graph.operand(mean.node, 1)?;
            int_scalar(graph, axes)
        })
    };
    if let Some(axis) = mean_of_difference() {
        let axis = axis.map_or_else(|| "other axes".to_owned(), |a| format!("axis {a}"));
        cx.missed(
            graph,
            node,
            format!("normalizes over {axis}, not the last one"),
        );
    }
}
