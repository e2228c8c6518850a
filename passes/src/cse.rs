//! Merges nodes that compute the same from the same operands, and constants of the same content.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   %0 = tanh %x : f32[2, 3]
//!   %1 = tanh %x : f32[2, 3]
//!   %2 = add %0, %1 : f32[2, 3]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   %0 = tanh %x : f32[2, 3]
//!   %1 = add %0, %0 : f32[2, 3]
//!   return %1
//! }
//! ```
//!
//! Identity: operators are functions; equal operation, attributes and operands give equal results.
//!
//! Preconditions: nodes that run no graph, equal operation, bit-equal attributes, the same operands in the same order, equal result types. Results
//! whose size depends on data carry symbols of their own and stay apart.
//!
//! Numeric effect: exact. Constants are compared bit by bit, so that 0 and -0 stay apart.
//!
//! Source: common subexpression elimination; value numbering by hashing in post-order.

use std::collections::HashMap;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{DataView, Tensor};

use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "cse",
    summary: "merges equal computations and equal constants",
    options: &[],
    new: || Box::new(Cse),
};

struct Cse;

impl Pass for Cse {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, _: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let merges = find(graph);
        let mut rewrites = Rewrites::new();
        for (node, kept) in merges {
            for result in 0..graph.n_results(node) as u32 {
                let from = Value { node, result };
                rewrites.replace(graph, from, Value { node: kept, result })?;
            }
        }
        Ok(rewrites.changed())
    }
}

/// What a node computes, up to the content of constants.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    /// Operation with its attributes, or type and first elements of a constant.
    op: String,
    operands: Vec<Option<Value>>,
    n_results: usize,
}

/// Nodes with the earlier node that computes the same.
fn find(graph: &Graph) -> Vec<(NodeId, NodeId)> {
    let mut merges = Vec::new();
    let mut kept_for: HashMap<NodeId, NodeId> = HashMap::new();
    let mut by_key: HashMap<Key, Vec<NodeId>> = HashMap::new();
    for node in graph.order() {
        if matches!(
            graph.op(node),
            Op::Input(_) | Op::If { .. } | Op::Loop { .. }
        ) {
            continue;
        }
        let operands = graph
            .operands(node)
            .into_iter()
            .map(|v| {
                v.map(|v| Value {
                    node: kept_for.get(&v.node).copied().unwrap_or(v.node),
                    ..v
                })
            })
            .collect();
        let key = Key {
            op: describe(graph.op(node)),
            operands,
            n_results: graph.n_results(node),
        };
        let candidates = by_key.entry(key).or_default();
        match candidates.iter().find(|&&c| same(graph, c, node)) {
            Some(&kept) => {
                kept_for.insert(node, kept);
                merges.push((node, kept));
            }
            None => candidates.push(node),
        }
    }
    merges
}

/// Text that is equal for equal operations; for a constant only likely to differ where contents do.
fn describe(op: &Op) -> String {
    match op {
        Op::Const(c) => {
            let t = &c.tensor;
            let head: Vec<u64> = (0..t.len().min(8)).map(|i| bits(t, i)).collect();
            let mid = if t.is_empty() {
                0
            } else {
                bits(t, t.len() / 2)
            };
            format!("const {} {:?} {head:?} {mid}", t.dtype(), t.shape())
        }
        Op::Input(name) => format!("input {name}"),
        Op::Dims(d) => format!("dims {d:?}"),
        Op::View(d) => format!("view {d:?}"),
        Op::Broadcast(d) => format!("broadcast {d:?}"),
        Op::Convert(layout) => format!("convert {layout:?}"),
        Op::Apply(operator, attributes) => format!("{operator} {attributes:?}"),
        Op::If { .. } | Op::Loop { .. } => op.text().to_owned(),
    }
}

/// Whether two nodes of equal keys are the same indeed.
fn same(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let types_agree = (0..graph.n_results(a) as u32)
        .all(|result| graph.ty(Value { node: a, result }) == graph.ty(Value { node: b, result }));
    types_agree
        && match (graph.op(a), graph.op(b)) {
            (Op::Const(a), Op::Const(b)) => same_bits(&a.tensor, &b.tensor),
            _ => true,
        }
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    if a.shape() != b.shape() {
        return false;
    }
    match (a.data().view(), b.data().view()) {
        (DataView::F32(a), DataView::F32(b)) => {
            a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
        }
        (DataView::F64(a), DataView::F64(b)) => {
            a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
        }
        (DataView::F16(a), DataView::F16(b)) => {
            a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
        }
        (DataView::BF16(a), DataView::BF16(b)) => {
            a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
        }
        (a, b) => a == b,
    }
}

/// The bits of one element.
fn bits(t: &Tensor, i: usize) -> u64 {
    match t.data().view() {
        DataView::F32(v) => v[i].to_bits().into(),
        DataView::F64(v) => v[i].to_bits(),
        DataView::F16(v) => v[i].to_bits().into(),
        DataView::BF16(v) => v[i].to_bits().into(),
        DataView::I8(v) => v[i] as u64,
        DataView::I16(v) => v[i] as u64,
        DataView::I32(v) => v[i] as u64,
        DataView::I64(v) => v[i] as u64,
        DataView::U8(v) => v[i].into(),
        DataView::U16(v) => v[i].into(),
        DataView::U32(v) => v[i].into(),
        DataView::U64(v) => v[i],
        DataView::Bool(v) => v[i].into(),
    }
}
