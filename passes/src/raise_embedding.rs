//! Raises lookups of constant tables, and sums of them, to one `EmbeddingLookup`.
//!
//! Before:
//! ```ir
//! graph @g(%ids: i64[b, s], %types: i64[b, s]) dims(b, s) {
//!   const @words: f32[5, 2] = random(seed = 1)
//!   const @kinds: f32[2, 2] = random(seed = 2)
//!   %0 = gather @words, %ids : f32[b, s, 2]
//!   %1 = gather @kinds, %types : f32[b, s, 2]
//!   %2 = add %0, %1 : f32[b, s, 2]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%ids: i64[b, s], %types: i64[b, s]) dims(b, s) {
//!   const @words: f32[5, 2] = random(seed = 1)
//!   const @kinds: f32[2, 2] = random(seed = 2)
//!   %0 = embedding_lookup %ids, @words, %types, @kinds : f32[b, s, 2]
//!   return %0
//! }
//! ```
//!
//! Identity: `Gather(T, i) = T[i]` along axis 0, and a sum of rows broadcasts as its indices do: positions `[1, s]` beside
//! words `[b, s]`.
//!
//! Preconditions: the table is a constant `f32` matrix, the indices are `i32` or `i64`. A partial sum that something else
//! uses too is kept, and starts a lookup of its own.
//!
//! Numeric effect: reassociates; the sum of rows is rounded once.

use std::collections::HashMap;

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{Attributes, DType, Operator};

use crate::matcher::{applied, axis_of, binary, is_dtype, result};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `raise-embedding`.
pub(crate) struct RaiseEmbedding;

impl Pass for RaiseEmbedding {
    fn name(&self) -> &'static str {
        "raise-embedding"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut sums = Sums::new();
        let mut roots = Vec::new();
        for node in graph.order() {
            let value = result(node);
            let pairs = match graph.operator(value) {
                Some(Operator::Gather) => lookup(graph, value, cx),
                Some(Operator::Add) => sum(graph, value, &mut sums),
                _ => None,
            };
            if let Some(pairs) = pairs {
                sums.insert(value, pairs);
                roots.push(value);
            }
        }
        let mut rewrites = Rewrites::new();
        for root in roots {
            let Some(pairs) = sums.remove(&root) else {
                continue;
            };
            let message = format!("raised {} lookups", pairs.len() / 2);
            cx.applied(graph, root.node, message);
            let op = Op::Apply(Operator::EmbeddingLookup, Attributes::new());
            rewrites.replace_by(graph, root, op, &pairs)?;
        }
        Ok(rewrites.changed())
    }
}

/// Indices and tables by the value that is the sum of their lookups.
type Sums = HashMap<Value, Vec<Value>>;

/// Indices and table of a lookup of rows.
fn lookup(graph: &Graph, value: Value, cx: &mut PassContext<'_>) -> Option<Vec<Value>> {
    let node = applied(graph, value, Operator::Gather)?;
    let (table, ids) = binary(graph, value, Operator::Gather)?;
    if graph.ty(table).rank() != 2 || !is_dtype(graph, table, DType::F32) {
        return None;
    }
    if graph.constant(table).is_none() || axis_of(graph, node, 2) != Some(0) {
        if axis_of(graph, node, 2) == Some(0) {
            cx.missed(graph, node, "the table is not a constant");
        }
        return None;
    }
    let is_index = matches!(graph.ty(ids).dtype, DType::I64 | DType::I32);
    is_index.then(|| vec![ids, table])
}

/// Indices and tables of the sum of two lookups, which are taken out of `sums`.
fn sum(graph: &Graph, value: Value, sums: &mut Sums) -> Option<Vec<Value>> {
    let (a, b) = binary(graph, value, Operator::Add)?;
    // Tables of one column would broadcast along features, which lookups do not.
    let fits = graph.shape(a).last() == graph.shape(b).last();
    let used_once = graph.single_user(a).is_some() && graph.single_user(b).is_some();
    if !fits || !used_once || !sums.contains_key(&b) {
        return None;
    }
    let mut pairs = sums.remove(&a)?;
    pairs.extend(sums.remove(&b)?);
    Some(pairs)
}
