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
//! Preconditions: the table is a constant matrix of `f32`, or of bytes whose rows are dequantized by one scale and zero point, which
//! become attributes; the indices are `i32` or `i64`. A partial sum that something else
//! uses too is kept, and starts a lookup of its own.
//!
//! Numeric effect: reassociates; the sum of rows is rounded once.

use std::collections::HashMap;

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::matcher::{applied, axis_of, binary, is_dtype, result};
use crate::quantized::{Parameters, dequantize};
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
            let lookups = match graph.operator(value) {
                Some(Operator::Gather | Operator::DequantizeLinear) => lookup(graph, value, cx),
                Some(Operator::Add) => sum(graph, value, &mut sums),
                _ => None,
            };
            if let Some(lookups) = lookups {
                sums.insert(value, lookups);
                roots.push(value);
            }
        }
        let mut rewrites = Rewrites::new();
        for root in roots {
            let Some(lookups) = sums.remove(&root) else {
                continue;
            };
            let message = format!("raised {} lookups", lookups.len());
            cx.applied(graph, root.node, message);
            let mut attributes = Attributes::new();
            if lookups.iter().any(|l| l.bytes.is_some()) {
                let of = |l: &Lookup| l.bytes.map_or((1.0, 0), |p| (p.scale, p.zero_point));
                let (scales, zeros) = lookups.iter().map(of).unzip();
                attributes.set("scales", Attribute::Floats(scales));
                attributes.set("zero_points", Attribute::Ints(zeros));
            }
            let operands: Vec<Value> = lookups.iter().flat_map(|l| [l.ids, l.table]).collect();
            let op = Op::Apply(Operator::EmbeddingLookup, attributes);
            rewrites.replace_by(graph, root, op, &operands)?;
        }
        Ok(rewrites.changed())
    }
}

/// A lookup of rows.
struct Lookup {
    ids: Value,
    table: Value,
    /// What the elements of a table of bytes stand for.
    bytes: Option<Parameters>,
}

/// Lookups by the value that is their sum.
type Sums = HashMap<Value, Vec<Lookup>>;

/// The lookup of rows that a value is.
fn lookup(graph: &Graph, value: Value, cx: &mut PassContext<'_>) -> Option<Vec<Lookup>> {
    let (rows, bytes) = match dequantize(graph, value) {
        Some((q, parameters)) => (q, Some(parameters)),
        None => (value, None),
    };
    let node = applied(graph, rows, Operator::Gather)?;
    let (table, ids) = binary(graph, rows, Operator::Gather)?;
    let fits = match bytes {
        Some(parameters) => matches!(parameters.dtype, DType::U8 | DType::I8),
        None => is_dtype(graph, table, DType::F32),
    };
    if graph.ty(table).rank() != 2 || !fits {
        return None;
    }
    if graph.constant(table).is_none() || axis_of(graph, node, 2) != Some(0) {
        if axis_of(graph, node, 2) == Some(0) {
            cx.missed(graph, node, "the table is not a constant");
        }
        return None;
    }
    let is_index = matches!(graph.ty(ids).dtype, DType::I64 | DType::I32);
    is_index.then(|| vec![Lookup { ids, table, bytes }])
}

/// The lookups of a sum of two values, which are taken out of `sums`.
fn sum(graph: &Graph, value: Value, sums: &mut Sums) -> Option<Vec<Lookup>> {
    let (a, b) = binary(graph, value, Operator::Add)?;
    // Tables of one column would broadcast along features, which lookups do not.
    let fits = graph.shape(a).last() == graph.shape(b).last();
    let used_once = graph.single_user(a).is_some() && graph.single_user(b).is_some();
    if !fits || !used_once || !sums.contains_key(&b) {
        return None;
    }
    let mut lookups = sums.remove(&a)?;
    lookups.extend(sums.remove(&b)?);
    Some(lookups)
}
