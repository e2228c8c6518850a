//! Keeps layers at even distances: one depth of a model that was trained to be cut to several.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @w: f32[2, 2] = random(seed = 1)
//!   %0 = scaled_dot_product_attention %x, %x, %x {num_heads = 1, scale = 1.0} : f32[b, s, 2]
//!   %1 = linear %0, @w, _, %x : f32[b, s, 2]
//!   %2 = linear %1, @w {activation = "relu"} : f32[b, s, 2]
//!   %3 = linear %2, @w, _, %1 : f32[b, s, 2]
//!   %4 = scaled_dot_product_attention %3, %3, %3 {num_heads = 1, scale = 1.0} : f32[b, s, 2]
//!   %5 = linear %4, @w, _, %3 : f32[b, s, 2]
//!   %6 = linear %5, @w {activation = "relu"} : f32[b, s, 2]
//!   %7 = linear %6, @w, _, %5 : f32[b, s, 2]
//!   return %7
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @w: f32[2, 2] = random(seed = 1)
//!   %0 = scaled_dot_product_attention %x, %x, %x {num_heads = 1, scale = 1.0} : f32[b, s, 2]
//!   %1 = linear %0, @w, _, %x : f32[b, s, 2]
//!   %2 = linear %1, @w {activation = "relu"} : f32[b, s, 2]
//!   %3 = linear %2, @w, _, %1 : f32[b, s, 2]
//!   return %3
//! }
//! ```
//!
//! Source: DynaBERT (arXiv:2004.04037): of D layers, depth multiplier m keeps round(m · D), those numbered floor(i / m).
//!
//! A layer is what lies between one block's stream and the next one's. The stream is what the attention's output layer adds to
//! its result, with the norm after it where the attention reads the normed stream (post-norm). Leaving a layer out makes
//! everything that read the stream after it read the stream before it.
//!
//! Preconditions: `fuse-epilogue` has run; every attention of the chain is read by one linear layer with a residual, all
//! streams are of one type, and each layer's stream is reached from the one before. Otherwise the pass declines with a
//! remark and keeps every layer.
//!
//! Numeric effect: another function, by intent, unless a layer does nothing. Not in the default pipeline.

use std::collections::HashSet;

use lancet_ir::{Graph, NodeId, Value};
use lancet_ops::Operator;

use crate::matcher::{applied, result};
use crate::{Changed, OptionSchema, OptionType, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "slice-depth",
    summary: "keep layers at even distances of a model trained for several depths",
    options: &[OptionSchema {
        name: "keep",
        ty: OptionType::Share,
        default: "0.5",
        summary: "share of the layers that stay",
    }],
    new: || Box::new(SliceDepth),
};

struct SliceDepth;

impl Pass for SliceDepth {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let keep = cx.options.float("keep");
        let attentions: Vec<NodeId> = (graph.order().into_iter())
            .filter(|&n| graph.op(n).operator() == Some(Operator::ScaledDotProductAttention))
            .collect();
        let Some(&first) = attentions.first() else {
            return Ok(Changed::No);
        };
        let layers = match layers(graph, &attentions) {
            Ok(layers) => layers,
            Err((node, reason)) => {
                cx.missed(graph, node, reason);
                return Ok(Changed::No);
            }
        };
        let n_kept = ((layers.len() as f64 * keep).round() as usize).clamp(1, layers.len());
        let kept: HashSet<usize> = (0..n_kept)
            .map(|i| ((i as f64 / keep).floor() as usize).min(layers.len() - 1))
            .collect();
        let mut rewrites = Rewrites::new();
        // From the last layer: what follows a layer is settled when its own stream is replaced.
        for (_, layer) in layers
            .iter()
            .enumerate()
            .rev()
            .filter(|(i, _)| !kept.contains(i))
        {
            rewrites.replace(graph, layer.after, layer.before)?;
        }
        if kept.len() < layers.len() {
            let message = format!("kept {} of {} layers", kept.len(), layers.len());
            cx.applied(graph, first, message);
        }
        Ok(rewrites.changed())
    }
}

/// The stream before a layer and after it.
struct Layer {
    before: Value,
    after: Value,
}

/// The layers of a chain of attentions, or the one where it breaks.
fn layers(graph: &Graph, attentions: &[NodeId]) -> Result<Vec<Layer>, (NodeId, &'static str)> {
    let mut layers: Vec<Layer> = Vec::new();
    for &attention in attentions {
        let Some(layer) = layer(graph, attention) else {
            return Err((
                attention,
                "what follows it is not a layer's output and feed-forward block",
            ));
        };
        let fits = layers.last().is_none_or(|l| l.after == layer.before);
        if !fits || !graph.ty(layer.before).same_value(graph.ty(layer.after)) {
            return Err((
                attention,
                "its layer does not begin where the one before ends",
            ));
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// The layer around an attention.
fn layer(graph: &Graph, attention: NodeId) -> Option<Layer> {
    let output = graph.single_user(result(attention))?;
    (graph.n_results(attention) == 1).then_some(())?;
    applied(graph, result(output), Operator::Linear)?;
    let before = graph.operand(output, 3)?;
    let is_post_norm = reads(graph, attention, before);
    let after_norm = |v: Value| match norm_of(graph, v) {
        Some(normed) if is_post_norm => normed,
        _ => v,
    };
    let middle = after_norm(result(output));
    let (block, _) = (graph.users(middle).into_iter()).find(|&(user, operand)| {
        operand == 3 && graph.op(user).operator() == Some(Operator::Linear)
    })?;
    let after = after_norm(result(block));
    Some(Layer { before, after })
}

/// True if the attention's queries are the stream itself or one linear layer of it.
fn reads(graph: &Graph, attention: NodeId, stream: Value) -> bool {
    let Some(q) = graph.operand(attention, 0) else {
        return false;
    };
    let behind = applied(graph, q, Operator::Linear).and_then(|l| graph.operand(l, 0));
    q == stream || behind == Some(stream)
}

/// The norm that alone reads a value.
fn norm_of(graph: &Graph, value: Value) -> Option<Value> {
    let user = graph.single_user(value)?;
    let is_norm = matches!(
        graph.op(user).operator(),
        Some(Operator::LayerNormalization | Operator::RMSNormalization)
    );
    is_norm.then(|| result(user))
}
