//! Recognises additive attention biases that are padding masks.
//!
//! The bias of `softmax(q·kᵀ + bias)` in BERT's family depends on the key's token alone: 0 where the attention mask is set,
//! a large negative number where it is not. Exporters write it as `(1 - mask)·lo`, as `where`, through gathers with
//! computed indices, expanded over heads and queries. All are the same function of one read, `f(mask[b, k])`, which
//! [`crate::analysis::access`] finds and this file evaluates at 0 and 1.

use lancet_ir::{Graph, Value};
use lancet_ops::{DType, Operator, Tensor};

use super::access::{Expr, describe, integer};
use super::affine::Affine;

/// What a bias of attention scores is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScoreBias {
    /// Zero everywhere: no mask at all, or one that is always true.
    Zero,
    /// A padding mask.
    Padding(PaddingMask),
}

/// A bias that is 0 for tokens to attend to and `masked_value` for the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaddingMask {
    /// Boolean, integer or `f32`, `[batch, keys]` (its other dimensions, if any, are of size 1): not zero for tokens to
    /// attend to.
    pub mask: Value,
    /// At most [`MASKED`].
    pub masked_value: f32,
    pub domain: MaskDomain,
}

/// For which elements of the mask the bias was shown to be what [`PaddingMask`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskDomain {
    /// All.
    Any,
    /// 0 and 1: the mask is used in arithmetic, and other elements would scale the bias.
    ZeroOrOne,
}

impl MaskDomain {
    /// What using the mask takes for granted, for a remark.
    pub fn assumption(self) -> Option<&'static str> {
        match self {
            MaskDomain::Any => None,
            MaskDomain::ZeroOrOne => Some("elements of the mask are taken to be 0 or 1"),
        }
    }
}

/// The greatest bias that counts as masking, a score this low having no weight beside ordinary ones: -1e4 as `bf16` has it.
pub const MASKED: f32 = -9984.0;

/// The padding mask that `bias` is made of: `f32` of rank 3 or more, batch first and keys last.
///
/// It is for the caller to hold the first and the last dimension against batch and keys of the scores.
pub fn padding_mask(graph: &Graph, bias: Value) -> Option<PaddingMask> {
    match score_bias(graph, bias)? {
        ScoreBias::Padding(mask) => Some(mask),
        ScoreBias::Zero => None,
    }
}

/// What `bias` is, as [`padding_mask`], or zero (of any rank).
pub fn score_bias(graph: &Graph, bias: Value) -> Option<ScoreBias> {
    if graph.ty(bias).dtype != DType::F32 {
        return None;
    }
    let expr = describe(graph, bias);
    let reads = expr.reads();
    let Some(first) = reads.first() else {
        let constant = expr.evaluate(DType::F32, &|_| None)?;
        return (number(&constant)? == 0.0).then_some(ScoreBias::Zero);
    };
    let same = |r: &&super::access::Read<'_>| r.tensor == first.tensor && r.index == first.index;
    if !reads.iter().all(|r| same(&r))
        || !reads_batch_and_key(graph, bias, first.tensor, first.index)
    {
        return None;
    }
    let dtype = graph.ty(first.tensor).dtype;
    let at = |mask: i64| {
        let element = integer(mask, dtype)?;
        number(&expr.evaluate(DType::F32, &|_| Some(element.clone()))?)
    };
    let (masked_value, attended) = (at(0)?, at(1)?);
    if attended != 0.0 || masked_value.is_nan() || MASKED < masked_value {
        return None;
    }
    let any = dtype == DType::Bool || reads.iter().all(|r| r.only_zero_matters);
    Some(ScoreBias::Padding(PaddingMask {
        mask: first.tensor,
        masked_value,
        domain: if any {
            MaskDomain::Any
        } else {
            MaskDomain::ZeroOrOne
        },
    }))
}

/// Whether `tensor[index]` is all of `tensor` once, by the first and the last index of `bias`.
fn reads_batch_and_key(graph: &Graph, bias: Value, tensor: Value, index: &[Affine]) -> bool {
    let extents = graph.shape(bias);
    let Some(last) = extents.len().checked_sub(1).filter(|&l| 2 <= l) else {
        return false;
    };
    let one = lancet_ir::Dim::fixed(1);
    let long: Vec<_> = index
        .iter()
        .zip(graph.shape(tensor))
        .filter(|(_, d)| **d != one)
        .collect();
    let by = |(i, d): &(&Affine, &lancet_ir::Dim), axis: usize| {
        **i == Affine::index(axis) && **d == extents[axis]
    };
    match long.as_slice() {
        [b, k] => by(b, 0) && by(k, last),
        // A batch of one.
        [k] => extents[0] == one && by(k, last),
        _ => false,
    }
}

/// Whether `factor`, `[b, s, ..]`, is zero at every token where `mask`, `[b, s]`, is.
pub fn zero_where_masked(graph: &Graph, factor: Value, mask: Value) -> bool {
    if graph.ty(mask).rank() != 2 || graph.shape(factor).get(..2) != Some(graph.shape(mask)) {
        return false;
    }
    let root = source(graph, mask);
    let expr = describe(graph, factor);
    let reads = expr.reads();
    let of_mask = |r: &super::access::Read<'_>| {
        (r.tensor == mask || Some(r.tensor) == root) && by_token(graph, mask, r.tensor, r.index)
    };
    if reads.is_empty() || !reads.iter().all(of_mask) {
        return false;
    }
    let at_zero = |v: Value| integer(0, graph.ty(v).dtype);
    let found = expr.evaluate(graph.ty(factor).dtype, &at_zero);
    found.is_some_and(|t| number(&t) == Some(0.0))
}

/// Whether `tensor[index]` is the element of `tensor` for the token of `mask` that the first two indices name.
fn by_token(graph: &Graph, mask: Value, tensor: Value, index: &[Affine]) -> bool {
    let one = lancet_ir::Dim::fixed(1);
    let sizes = graph.shape(mask);
    let axes: Vec<usize> = (0..2).filter(|&a| sizes[a] != one).collect();
    let long: Vec<_> = (index.iter().zip(graph.shape(tensor)))
        .filter(|(_, d)| **d != one)
        .collect();
    long.len() == axes.len()
        && (long.iter().zip(&axes))
            .all(|((i, d), &axis)| **i == Affine::index(axis) && **d == sizes[axis])
}

/// The integers or booleans that `mask` is, or is tested from, token by token.
fn source(graph: &Graph, mask: Value) -> Option<Value> {
    let mut expr = &describe(graph, mask);
    while let Expr::Apply {
        op: Operator::Cast,
        dtype,
        operands,
        ..
    } = expr
    {
        let (operand, from) = operands.first()?;
        // Other casts may turn more than zeros into zeros.
        if *dtype != DType::Bool && *from != DType::Bool {
            return None;
        }
        expr = operand;
    }
    match expr {
        Expr::Read { tensor, index } if by_token(graph, mask, *tensor, index) => Some(*tensor),
        _ => None,
    }
}

fn number(scalar: &Tensor) -> Option<f32> {
    scalar.as_slice::<f32>()?.first().copied()
}
