//! Writes gathers by computed positions as views, and comparisons of positions as what they always are.
//!
//! Before:
//! ```ir
//! graph @g(%mask: bool[b, s]) dims(b, s) {
//!   const @zero: i64[] = 0
//!   const @one: i64[] = 1
//!   %0 = dims [s] : i64[1]
//!   %1 = view %0 : i64[]
//!   %2 = range @zero, %1, @one : i64[s]
//!   %3 = view %2 : i64[1, s]
//!   %4 = gather %mask, %3 {axis = 1} : bool[b, 1, s]
//!   return %4
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%mask: bool[b, s]) dims(b, s) {
//!   %0 = view %mask : bool[b, 1, s]
//!   return %0
//! }
//! ```
//!
//! Identity: an element of the result is the element of another value at indices that are affine in its own; where they run
//! through that value in order, the result is a view of it, broadcast along the indices that do not occur. A comparison
//! whose sides' difference has one sign for all indices is a constant.
//!
//! Preconditions: the affine access analysis follows the indices, knows that they are not negative, and finds each index
//! once, in order, over its dimension's whole size. Constants are left to constant folding and lookups of constant tables
//! to `raise-embedding`.
//!
//! Numeric effect: exact.
//!
//! Source: affine access functions, as in the polyhedral model (Feautrier, "Dataflow analysis of array and scalar
//! references", 1991).

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Operator, Tensor};

use crate::analysis::access::{describe, origin};
use crate::analysis::affine::Affine;
use crate::eliminate_identities::same_size;
use crate::matcher::result;
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "simplify-gathers",
    summary: "writes gathers by computed positions as views",
    options: &[],
    new: || Box::new(SimplifyGathers),
};

struct SimplifyGathers;

impl Pass for SimplifyGathers {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut found = Vec::new();
        let bound = graph.input_symbols();
        for node in graph.order() {
            match find(graph, node) {
                Ok(Some(simple)) => {
                    // Nothing else may find sizes that the result alone has.
                    let kept = match &simple {
                        Simple::View(_, shape) => shape.iter().flat_map(Dim::symbols).collect(),
                        Simple::Truth(_) => Vec::new(),
                    };
                    let mut sizes = graph.shape(result(node)).iter().flat_map(Dim::symbols);
                    if sizes.all(|s| bound.contains(&s) || kept.contains(&s)) {
                        found.push((result(node), simple));
                    } else {
                        cx.missed(graph, node, "its sizes depend on data");
                    }
                }
                Ok(None) => {}
                Err(reason) => cx.missed(graph, node, reason),
            }
        }
        let mut rewrites = Rewrites::new();
        for (from, simple) in found {
            apply(graph, &mut rewrites, from, simple)?;
        }
        Ok(rewrites.changed())
    }
}

/// What a gather or a comparison is.
enum Simple {
    /// A value under a shape from which the result is broadcast.
    View(Value, Vec<Dim>),
    Truth(bool),
}

/// What a node is in simpler words, or why it is not.
fn find(graph: &Graph, node: NodeId) -> Result<Option<Simple>, String> {
    let value = result(node);
    match graph.op(node).operator() {
        Some(Operator::Gather | Operator::GatherND) => {}
        Some(
            Operator::Equal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual,
        ) => return Ok(describe(graph, value).as_bool().map(Simple::Truth)),
        _ => return Ok(None),
    }
    let data = graph.operand(node, 0);
    if data.is_none_or(|x| graph.constant(x).is_some() || graph.elements(value).is_some()) {
        return Ok(None);
    }
    let Some((tensor, index)) = origin(graph, value) else {
        return Ok(None);
    };
    if tensor == value || graph.constant(tensor).is_some() {
        return Ok(None);
    }
    let one = Dim::fixed(1);
    let picks = |(i, size): (&Affine, &Dim)| *size != one && i.as_constant().is_some();
    if index.iter().zip(graph.shape(tensor)).any(picks) {
        // A token is picked, not a range of them.
        return Ok(None);
    }
    view_of(graph, value, tensor, &index).map(|shape| Some(Simple::View(tensor, shape)))
}

/// The shape under which `tensor`, read at `index`, broadcasts to `value`; or why there is none.
fn view_of(
    graph: &Graph,
    value: Value,
    tensor: Value,
    index: &[Affine],
) -> Result<Vec<Dim>, String> {
    let extents = graph.shape(value);
    let one = Dim::fixed(1);
    let mut shape = vec![one.clone(); extents.len()];
    let mut next = 0;
    for (i, size) in index.iter().zip(graph.shape(tensor)) {
        if *size == one {
            continue;
        }
        let Some((axis, offset)) = i.as_index() else {
            return Err("reads at indices that are not single positions".to_owned());
        };
        if axis < next {
            return Err("reads dimensions in another order".to_owned());
        }
        if *offset != Dim::fixed(0) || extents[axis] != *size {
            return Err(format!("reads a part of a dimension of size {size}"));
        }
        shape[axis] = size.clone();
        next = axis + 1;
    }
    if same_size(&shape, graph.shape(tensor)) {
        Ok(shape)
    } else {
        Err("reads a part".to_owned())
    }
}

fn apply(
    graph: &mut Graph,
    rewrites: &mut Rewrites,
    from: Value,
    simple: Simple,
) -> Result<(), PassError> {
    let to = graph.shape(from).to_vec();
    let (source, shape) = match simple {
        Simple::View(tensor, shape) => {
            let tensor = rewrites.resolve(tensor);
            let view = if shape == graph.shape(tensor) {
                tensor
            } else {
                result(graph.add(Op::View(shape.clone()), &[Some(tensor)])?)
            };
            (view, shape)
        }
        Simple::Truth(truth) => {
            let name = if truth { "true" } else { "false" };
            let scalar = graph.add_const(name, Tensor::scalar(truth).into());
            (scalar, Vec::new())
        }
    };
    if shape == to {
        rewrites.replace(graph, from, source)
    } else {
        rewrites
            .replace_by(graph, from, Op::Broadcast(to), &[source])
            .map(|_| ())
    }
}
