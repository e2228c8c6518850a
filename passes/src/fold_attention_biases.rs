//! Folds the biases and the scale of attention into the linear layers around it.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @wq: f32[2, 2] = [[1.0, 2.0], [3.0, 4.0]]
//!   const @bq: f32[2] = [1.0, -1.0]
//!   const @wk: f32[2, 2] = [[0.5, 1.0], [1.5, 2.0]]
//!   const @bk: f32[2] = [2.0, 3.0]
//!   const @wv: f32[2, 2] = [[2.0, 0.0], [0.0, 2.0]]
//!   const @bv: f32[2] = [1.0, 2.0]
//!   const @wo: f32[2, 2] = [[1.0, 1.0], [0.0, 3.0]]
//!   const @bo: f32[2] = [0.5, 0.25]
//!   %0 = linear %x, @wq, @bq : f32[b, s, 2]
//!   %1 = linear %x, @wk, @bk : f32[b, s, 2]
//!   %2 = linear %x, @wv, @bv : f32[b, s, 2]
//!   %3 = scaled_dot_product_attention %0, %1, %2 {num_heads = 1, scale = 0.5} : f32[b, s, 2]
//!   %4 = linear %3, @wo, @bo : f32[b, s, 2]
//!   return %4
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @wq: f32[2, 2] = [[0.5, 1.0], [1.5, 2.0]]
//!   const @bq: f32[2] = [0.5, -0.5]
//!   const @wk: f32[2, 2] = [[0.5, 1.0], [1.5, 2.0]]
//!   const @wv: f32[2, 2] = [[2.0, 0.0], [0.0, 2.0]]
//!   const @wo: f32[2, 2] = [[1.0, 1.0], [0.0, 3.0]]
//!   const @bo: f32[2] = [3.5, 6.25]
//!   %0 = linear %x, @wq, @bq : f32[b, s, 2]
//!   %1 = linear %x, @wk : f32[b, s, 2]
//!   %2 = linear %x, @wv : f32[b, s, 2]
//!   %3 = scaled_dot_product_attention %0, %1, %2 {num_heads = 1, scale = 1.0} : f32[b, s, 2]
//!   %4 = linear %3, @wo, @bo : f32[b, s, 2]
//!   return %4
//! }
//! ```
//!
//! Identities, for each query `q`, with `1` the vector of ones over the keys:
//!
//! ```text
//! softmax(q (K + 1 bkᵀ)ᵀ + m) = softmax(q Kᵀ + m + (q·bk) 1) = softmax(q Kᵀ + m)    adding one number to all scores
//! P (V + 1 bvᵀ)               = P V + (P 1) bvᵀ = P V + bvᵀ                         rows of P sum to one
//! (P V + bvᵀ) Woᵀ + bo        = P V Woᵀ + (bo + Wo bv)
//! scale · (x Wqᵀ + bq)        = x (scale · Wq)ᵀ + scale · bq
//! ```
//!
//! They hold for every finite mask and bias `m`, fully masked rows included: what masks a key is added to its score, so a row
//! whose keys are all masked is still a softmax, and sums to one. Where scores are infinite a row is NaN before and after.
//!
//! Preconditions: a bias moves if its layer is read by the attention alone; the bias of the values also needs a layer that
//! alone reads the result. A tensor between (a rotary embedding, a residual) keeps it where it is: then the key bias is no
//! longer one number for all keys. Where the layer of the values has a bias that stays, a remark says why.
//!
//! Numeric effect: reassociates; the scale is exact where it is a power of two.
//!
//! Source: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), section 3.2; softmax is invariant to shifts.

use lancet_ir::{Graph, NodeId, Op};
use lancet_ops::{Attribute, Operator};

use crate::layer::Layer;
use crate::matcher::result;
use crate::quantized::rounds;
use crate::rewrite::replace_node;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "fold-attention-biases",
    summary: "fold key and value biases and the score scale of attention into the layers around it",
    options: &[],
    new: || Box::new(FoldAttentionBiases),
};

struct FoldAttentionBiases;

impl Pass for FoldAttentionBiases {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        for node in graph.order() {
            if graph.op(node).operator() == Some(Operator::ScaledDotProductAttention) {
                if rounds(graph, node) {
                    if [1, 2].iter().any(|&i| has_bias(graph, node, i)) {
                        let reason = "biases stay: scores or probabilities are rounded";
                        cx.missed(graph, node, reason);
                    }
                    continue;
                }
                let mut folded = Vec::new();
                folded.extend(key_bias(graph, node)?);
                folded.extend(value_bias(graph, node, cx)?);
                let (node, scale) = score_scale(graph, node)?;
                folded.extend(scale);
                if !folded.is_empty() {
                    cx.applied(graph, node, format!("folded {}", folded.join(", ")));
                    changed = Changed::Yes;
                }
            }
        }
        Ok(changed)
    }
}

/// Whether operand `i` is a layer with a bias.
fn has_bias(graph: &Graph, attention: NodeId, i: usize) -> bool {
    let operand = graph.operand(attention, i);
    operand
        .and_then(|v| Layer::behind(graph, v))
        .is_some_and(|layer| layer.has_bias())
}

/// Drops the bias of the keys; what was saved.
fn key_bias(graph: &mut Graph, attention: NodeId) -> Result<Option<String>, PassError> {
    let keys = graph.operand(attention, 1);
    let Some(layer) = keys.and_then(|k| Layer::behind(graph, k)) else {
        return Ok(None);
    };
    if !layer.has_bias() {
        return Ok(None);
    }
    without_bias(graph, &layer)?;
    Ok(Some(format!(
        "the key bias (saves {} additions a token)",
        layer.n
    )))
}

/// Moves the bias of the values behind the layer that reads the result; what was saved.
fn value_bias(
    graph: &mut Graph,
    attention: NodeId,
    cx: &mut PassContext<'_>,
) -> Result<Option<String>, PassError> {
    let values = graph.operand(attention, 2);
    let Some(layer) = values.and_then(|v| Layer::behind(graph, v)) else {
        return Ok(None);
    };
    if !layer.has_bias() {
        return Ok(None);
    }
    let Some(reader) = Layer::after(graph, result(attention)) else {
        let reason = "the value bias stays: no linear layer alone reads the result";
        cx.missed(graph, attention, reason);
        return Ok(None);
    };
    let constants: Vec<Option<f32>> = layer.bias(graph).into_iter().map(Some).collect();
    let bias = reader.bias_with(graph, &constants);
    without_bias(graph, &layer)?;
    let to = reader.with_bias(graph, &bias)?;
    graph.replace_all_uses(result(reader.node), to)?;
    Ok(Some(format!(
        "the value bias (saves {} additions a token)",
        layer.n
    )))
}

/// The attention, rebuilt with scale 1 if the layer of its queries could take the scale over, and what was saved.
fn score_scale(
    graph: &mut Graph,
    attention: NodeId,
) -> Result<(NodeId, Option<String>), PassError> {
    let scale = graph.attributes(attention).float_or("scale", 1.0);
    let layer = graph
        .operand(attention, 0)
        .and_then(|q| Layer::behind(graph, q));
    let Some(layer) = layer.filter(|_| scale != 1.0 && scale.is_normal()) else {
        return Ok((attention, None));
    };
    let to = layer.scaled(graph, scale)?;
    graph.replace_all_uses(result(layer.node), to)?;
    let mut attributes = graph.attributes(attention).clone();
    attributes.set("scale", Attribute::Float(1.0));
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    let operands = graph.operands(attention);
    let node = replace_node(graph, attention, op, &operands)?;
    Ok((
        node,
        Some("the scale (saves a multiplication a score)".to_owned()),
    ))
}

/// Puts `layer` without its bias in its place.
fn without_bias(graph: &mut Graph, layer: &Layer) -> Result<(), PassError> {
    let to = layer.with_bias(graph, &[])?;
    graph.replace_all_uses(result(layer.node), to)?;
    Ok(())
}
