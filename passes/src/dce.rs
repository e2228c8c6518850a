//! Drops results that nothing uses, and every node that no output needs.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @w: f32[3] = ones
//!   %0, %1, %2 = layer_normalization %x, @w : f32[2, 3], f32[2, 1], f32[2, 1]
//!   return %0
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @w: f32[3] = ones
//!   %0 = layer_normalization %x, @w : f32[2, 3]
//!   return %0
//! }
//! ```
//!
//! Identity: what nothing reads has no effect.
//!
//! Preconditions: an operator gives up a result only if the result is optional, is unused, and so are those after it;
//! operators with a free number of results (`Split`) keep theirs. Nodes that no output needs do not print, so removing
//! them is no change of the graph's text; their number is a remark.
//!
//! Numeric effect: exact.
//!
//! Source: dead code elimination.

use lancet_ir::{Graph, NodeId, Op, Value};

use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "dce",
    summary: "drops unused results and nodes that no output needs",
    options: &[],
    new: || Box::new(Dce),
};

struct Dce;

impl Pass for Dce {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let before = graph.len();
        graph.sweep();
        let n_dead = before - graph.len();
        if let Some(output) = graph.outputs().first().filter(|_| 0 < n_dead) {
            let node = output.value.node;
            cx.analysis(graph, node, format!("{n_dead} nodes were not needed"));
        }
        let mut rewrites = Rewrites::new();
        for (node, n_results) in find(graph) {
            let op = graph.op(node).clone();
            let operands: Vec<Option<Value>> = graph
                .operands(node)
                .into_iter()
                .map(|v| v.map(|v| rewrites.resolve(v)))
                .collect();
            let trimmed = graph.add_results(op, &operands, n_results)?;
            for result in 0..n_results as u32 {
                let to = Value {
                    node: trimmed,
                    result,
                };
                rewrites.replace(graph, Value { node, result }, to)?;
            }
        }
        Ok(rewrites.changed())
    }
}

/// Nodes with unused results at their end, and how many they need to give.
fn find(graph: &Graph) -> Vec<(NodeId, usize)> {
    graph
        .order()
        .into_iter()
        .filter_map(|node| {
            let Op::Apply(operator, _) = graph.op(node) else {
                return None;
            };
            let (least, most) = operator.schema().results;
            if most == usize::MAX {
                return None;
            }
            let used = |result: usize| {
                let value = Value {
                    node,
                    result: result as u32,
                };
                graph.is_output(value) || !graph.users(value).is_empty()
            };
            let n_results = graph.n_results(node);
            let needed = (0..n_results).rev().find(|&r| used(r)).map_or(0, |r| r + 1);
            let needed = needed.max(least);
            (needed < n_results).then_some((node, needed))
        })
        .collect()
}
