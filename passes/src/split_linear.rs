//! Computes slices of the result of a linear layer as linear layers of their own.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w: f32[4, 2] = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
//!   const @b: f32[4] = [0.5, 1.5, 2.5, 3.5]
//!   %0 = linear %x, @w, @b : f32[s, 4]
//!   %1, %2 = split %0 {axis = 1, num_outputs = 2} : f32[s, 2], f32[s, 2]
//!   %3 = swish %1 : f32[s, 2]
//!   %4 = mul %3, %2 : f32[s, 2]
//!   return %4
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w: f32[2, 2] = [[1.0, 2.0], [3.0, 4.0]]
//!   const @b: f32[2] = [0.5, 1.5]
//!   const @w.1: f32[2, 2] = [[5.0, 6.0], [7.0, 8.0]]
//!   const @b.1: f32[2] = [2.5, 3.5]
//!   %0 = linear %x, @w, @b : f32[s, 2]
//!   %1 = swish %0 : f32[s, 2]
//!   %2 = linear %x, @w.1, @b.1 : f32[s, 2]
//!   %3 = mul %1, %2 : f32[s, 2]
//!   return %3
//! }
//! ```
//!
//! Identity: `(x wᵀ + b)[.., I] = x w[I, ..]ᵀ + b[I]` for a list of features `I`, which may be all of them in another order. Queries, keys and values that one layer
//! computes, and the two halves of a gated unit, become layers whose results nothing copies.
//!
//! Preconditions: a constant weight; every use of the result is a slice, a split, a gather by constants or a transposition of
//! features, perhaps behind views and transpositions; no feature is used twice. Otherwise the pass declines, with a remark if there is such a use.
//!
//! Numeric effect: exact.

use std::collections::HashSet;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::Operator;

use crate::features::Features;
use crate::layer::Layer;
use crate::matcher::result;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "split-linear",
    summary: "compute slices of the result of a linear layer as layers of their own",
    options: &[],
    new: || Box::new(SplitLinear),
};

struct SplitLinear;

/// Bytes of replaced weights after which they are dropped in the middle of the pass.
const SWEEP_BYTES: usize = 32 << 20;

impl Pass for SplitLinear {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        let mut replaced_bytes = 0;
        for node in graph.order() {
            if graph.op(node).operator() != Some(Operator::Linear) {
                continue;
            }
            let layer = Layer::of(graph, result(node)).filter(|l| l.is_plain(graph));
            let Some(layer) = layer else {
                continue;
            };
            let parts = match parts(graph, &layer) {
                Ok(parts) => parts,
                Err(Some(reason)) => {
                    cx.missed(graph, node, reason);
                    continue;
                }
                Err(None) => continue,
            };
            cx.applied(graph, node, format!("split into {} layers", parts.len()));
            let bias = layer.bias(graph);
            let columns: Vec<usize> = (0..layer.k).collect();
            for (value, features) in parts {
                let rows: Vec<usize> = features.from.iter().map(|(i, _)| *i).collect();
                let bias: Vec<f32> = rows.iter().map(|&i| bias[i]).collect();
                let y = layer.rebuilt(graph, layer.x, &rows, &columns, &bias)?;
                let placed = features.placed(graph, y)?;
                graph.replace_all_uses(value, placed)?;
            }
            changed = Changed::Yes;
            replaced_bytes += 4 * layer.n * layer.k;
            if SWEEP_BYTES <= replaced_bytes {
                replaced_bytes = 0;
                graph.sweep();
            }
        }
        Ok(changed)
    }
}

/// The values that copy features of `layer`, none twice; the reason if there are some that cannot be split.
fn parts(graph: &Graph, layer: &Layer) -> Result<Vec<(Value, Features)>, Option<String>> {
    let mut found = Vec::new();
    let mut other = None;
    let mut open = vec![result(layer.node)];
    while let Some(value) = open.pop() {
        if graph.is_output(value) {
            other = Some("an output".to_owned());
        }
        for (user, operand) in graph.users(value) {
            match graph.op(user) {
                // A permutation of features alone is one of the rows.
                Op::Apply(Operator::Transpose, _) if permutes_features(graph, result(user)) => {
                    found.push(result(user));
                }
                Op::View(_) | Op::Apply(Operator::Transpose, _) => open.push(result(user)),
                Op::Apply(Operator::Slice | Operator::Split | Operator::Gather, _)
                    if operand == 0 =>
                {
                    found.extend(results(graph, user));
                }
                op => other = Some(op.text().to_owned()),
            }
        }
    }
    if found.is_empty() {
        return Err(None);
    }
    if let Some(op) = other {
        return Err(Some(format!("its result is sliced, but used by {op} too")));
    }
    let mut used = HashSet::new();
    let mut parts = Vec::new();
    for value in found {
        let features = Features::of(graph, value).filter(|f| f.source == result(layer.node));
        let Some(features) = features else {
            return Err(Some("a slice is not of its features alone".to_owned()));
        };
        if !features.from.iter().all(|(i, _)| used.insert(*i)) {
            return Err(Some("slices of its result overlap".to_owned()));
        }
        parts.push((value, features));
    }
    Ok(parts)
}

/// True if `value` is a copy of the features of a layer in another order, tokens in front.
fn permutes_features(graph: &Graph, value: Value) -> bool {
    let features = Features::of(graph, value).filter(Features::has_tokens_in_front);
    features.is_some_and(|f| !f.from.iter().map(|(i, _)| *i).eq(0..f.from.len()))
}

/// Results of a node that something uses.
fn results(graph: &Graph, node: NodeId) -> Vec<Value> {
    (0..graph.n_results(node) as u32)
        .map(|result| Value { node, result })
        .filter(|&v| !graph.users(v).is_empty() || graph.is_output(v))
        .collect()
}
