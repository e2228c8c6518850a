//! Keeps the first heads and neurons of every layer: one width of a model that was trained to be cut to several.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @w1: f32[4, 2] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
//!   const @w2: f32[2, 4] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
//!   %0 = linear %x, @w1 {activation = "relu"} : f32[b, s, 4]
//!   %1 = linear %0, @w2, _, %x : f32[b, s, 2]
//!   return %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2]) dims(b, s) {
//!   const @w1: f32[2, 2] = [1.0, 2.0, 3.0, 4.0]
//!   const @w2: f32[2, 2] = [1.0, 2.0, 5.0, 6.0]
//!   %0 = linear %x, @w1 {activation = "relu"} : f32[b, s, 2]
//!   %1 = linear %0, @w2, _, %x : f32[b, s, 2]
//!   return %1
//! }
//! ```
//!
//! Source: DynaBERT (arXiv:2004.04037) sorts heads and neurons by importance before it trains, so that a model of width
//! multiplier m keeps the first round(m · H) of H heads and the first round(m · n) of n neurons of each layer; at least one
//! stays.
//!
//! Preconditions: `fuse-epilogue` has run. A head is cut where the queries, keys and values of an attention are three linear
//! layers that nothing else reads, and linear layers alone read the attention. A neuron is cut where linear layers with a
//! residual alone read it: the two layers of a feed-forward block, not a pooler and its classifier. Weights are `f32`
//! constants.
//!
//! Numeric effect: another function, by intent, unless what is cut is zero. Not in the default pipeline.

use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Operator, Tensor};

use crate::matcher::{applied, result};
use crate::vector::constant_name;
use crate::{Changed, OptionSchema, OptionType, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "slice-width",
    summary: "keep the first heads and neurons of every layer of a model trained for several widths",
    options: &[OptionSchema {
        name: "keep",
        ty: OptionType::Share,
        default: "0.5",
        summary: "share of the heads and of the neurons that stay",
    }],
    new: || Box::new(SliceWidth),
};

struct SliceWidth;

impl Pass for SliceWidth {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let keep = cx.options.float("keep");
        let mut rewrites = Rewrites::new();
        for node in graph.order() {
            let cut = match graph.op(node).operator() {
                Some(Operator::ScaledDotProductAttention) => heads(graph, node, keep),
                Some(Operator::Linear) if feeds_forward(graph, node) => neurons(graph, node, keep),
                _ => continue,
            };
            match cut {
                Ok(None) => {}
                Ok(Some(cut)) => {
                    cx.applied(
                        graph,
                        node,
                        format!("kept {} of {} {}", cut.kept, cut.of, cut.what),
                    );
                    cut.apply(graph, node, &mut rewrites)?;
                }
                Err(reason) => cx.missed(graph, node, reason),
            }
        }
        Ok(rewrites.changed())
    }
}

/// How many of `n` stay: the nearest number, at least one.
fn kept(n: usize, keep: f64) -> usize {
    ((n as f64 * keep).round() as usize).clamp(1, n.max(1))
}

/// What is cut at one node.
struct Cut {
    /// The linear layers that lose outputs, and how many outputs of each stay.
    producers: Vec<(NodeId, usize)>,
    /// How many inputs stay of the linear layers that read the node.
    inputs: usize,
    kept: usize,
    of: usize,
    what: &'static str,
}

/// The heads of an attention that are cut; `None` if all stay.
fn heads(graph: &Graph, attention: NodeId, keep: f64) -> Result<Option<Cut>, &'static str> {
    let n_heads = graph.attributes(attention).int_or("num_heads", 1);
    let n_heads = usize::try_from(n_heads).map_err(|_| "it has no heads")?;
    let n_kept = kept(n_heads, keep);
    if n_kept == n_heads {
        return Ok(None);
    }
    if graph.n_results(attention) != 1 {
        return Err("the probabilities of its heads are read");
    }
    let mut producers = Vec::new();
    for operand in 0..3 {
        let rows = graph
            .operand(attention, operand)
            .and_then(|v| applied(graph, v, Operator::Linear))
            .filter(|&l| graph.single_user(result(l)) == Some(attention) && is_plain(graph, l))
            .and_then(|l| Some((l, weight_shape(graph, l)?.0)));
        let Some((linear, n)) = rows else {
            return Err("its queries, keys and values are not linear layers of their own");
        };
        producers.push((linear, n / n_heads * n_kept));
    }
    for (operand, from_the_end) in [(4, 3), (5, 2), (7, 3), (9, 3)] {
        let shape = graph.operand(attention, operand).map(|b| graph.shape(b));
        let heads = shape.and_then(|s| s.get(s.len().checked_sub(from_the_end)?));
        if heads.is_some_and(|h| h.as_fixed() != Some(1)) {
            return Err("its bias differs between heads");
        }
    }
    if !read_by_linear_layers(graph, attention, false) {
        return Err("something else than linear layers reads its heads");
    }
    Ok(Some(Cut {
        inputs: producers[2].1,
        producers,
        kept: n_kept,
        of: n_heads,
        what: "heads",
    }))
}

/// True for the first layer of a feed-forward block: what reads it adds the block's input again.
fn feeds_forward(graph: &Graph, linear: NodeId) -> bool {
    is_plain(graph, linear) && read_by_linear_layers(graph, linear, true)
}

/// The neurons of a feed-forward block that are cut; `None` if all stay.
fn neurons(graph: &Graph, linear: NodeId, keep: f64) -> Result<Option<Cut>, &'static str> {
    let (n, _) = weight_shape(graph, linear).ok_or("its weight is not an f32 constant")?;
    let n_kept = kept(n, keep);
    Ok((n_kept < n).then_some(Cut {
        producers: vec![(linear, n_kept)],
        inputs: n_kept,
        kept: n_kept,
        of: n,
        what: "neurons",
    }))
}

/// True if the layer adds no residual and its weight and bias are `f32` constants.
fn is_plain(graph: &Graph, linear: NodeId) -> bool {
    let bias = graph.operand(linear, 2);
    let constant = |v: Value| {
        let t = graph.constant(v);
        t.is_some_and(|t| t.as_slice::<f32>().is_some())
    };
    graph.operand(linear, 3).is_none()
        && weight_shape(graph, linear).is_some()
        && bias.is_none_or(constant)
}

/// Outputs and inputs of a layer whose weight is an `f32` constant.
fn weight_shape(graph: &Graph, linear: NodeId) -> Option<(usize, usize)> {
    let w = graph.constant(graph.operand(linear, 1)?)?;
    w.as_slice::<f32>()?;
    match *w.shape() {
        [n, k] => Some((n, k)),
        _ => None,
    }
}

/// True if linear layers of constant weights alone read what `node` gives, as their input.
fn read_by_linear_layers(graph: &Graph, node: NodeId, with_residual: bool) -> bool {
    let users = graph.users(result(node));
    !users.is_empty()
        && !graph.is_output(result(node))
        && users.iter().all(|&(user, operand)| {
            operand == 0
                && graph.op(user).operator() == Some(Operator::Linear)
                && weight_shape(graph, user).is_some()
                && (!with_residual || graph.operand(user, 3).is_some())
        })
}

impl Cut {
    /// Rebuilds the producers, the node and its readers with fewer features.
    fn apply(
        &self,
        graph: &mut Graph,
        node: NodeId,
        rewrites: &mut Rewrites,
    ) -> Result<(), PassError> {
        let readers: Vec<NodeId> = graph.users(result(node)).into_iter().map(|u| u.0).collect();
        let mut narrow = Vec::new();
        for &(linear, rows) in &self.producers {
            let mut operands = resolved(graph, linear, rewrites);
            operands[1] = operands[1].map(|w| prefix(graph, w, rows, None));
            if let Some(bias) = operands.get(2).copied().flatten() {
                operands[2] = Some(prefix(graph, bias, rows, None));
            }
            narrow.push(rebuild(graph, linear, graph.op(linear).clone(), &operands)?);
        }
        let narrow = if self.producers[0].0 == node {
            narrow[0]
        } else {
            let mut operands = resolved(graph, node, rewrites);
            for (operand, value) in operands.iter_mut().zip(&narrow) {
                *operand = Some(*value);
            }
            let mut attributes = graph.attributes(node).clone();
            attributes.set("num_heads", Attribute::Int(self.kept as i64));
            let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
            rebuild(graph, node, op, &operands)?
        };
        for reader in readers {
            let mut operands = resolved(graph, reader, rewrites);
            operands[0] = Some(narrow);
            operands[1] = operands[1].map(|w| prefix(graph, w, usize::MAX, Some(self.inputs)));
            let to = rebuild(graph, reader, graph.op(reader).clone(), &operands)?;
            rewrites.replace(graph, result(reader), to)?;
        }
        Ok(())
    }
}

fn resolved(graph: &Graph, node: NodeId, rewrites: &Rewrites) -> Vec<Option<Value>> {
    let operands = graph.operands(node).into_iter();
    operands.map(|v| v.map(|v| rewrites.resolve(v))).collect()
}

/// A node like `node`, of its name.
fn rebuild(
    graph: &mut Graph,
    node: NodeId,
    op: Op,
    operands: &[Option<Value>],
) -> Result<Value, PassError> {
    let rebuilt = graph.add(op, operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(rebuilt, &name);
    Ok(result(rebuilt))
}

/// The first rows and columns of an `f32` constant `[n]` or `[n, k]`; `value` itself if it is none.
fn prefix(graph: &mut Graph, value: Value, rows: usize, columns: Option<usize>) -> Value {
    let Some((tensor, w)) = graph
        .constant(value)
        .and_then(|t| Some((t, t.as_slice::<f32>()?)))
    else {
        return value;
    };
    let (n, k) = match *tensor.shape() {
        [n] => (n, 1),
        [n, k] => (n, k),
        _ => return value,
    };
    let (rows, columns) = (rows.min(n), columns.unwrap_or(k).min(k));
    let data: Vec<f32> = (w.chunks_exact(k.max(1)).take(rows))
        .flat_map(|row| row[..columns].iter().copied())
        .collect();
    let shape: Vec<usize> = match tensor.shape().len() {
        1 => vec![rows],
        _ => vec![rows, columns],
    };
    let name = constant_name(graph, value);
    graph.add_const(&name, Arc::new(Tensor::new(shape, data)))
}
