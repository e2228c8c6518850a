//! What reads the probabilities of an attention beside the product with its values: they become its second result.
//!
//! Where all of it is a sum or a mean over queries, the second result is that, linear in the number of keys. Sums over heads before
//! it follow it then: sums commute.

use lancet_ir::{Dim, Graph, NodeId, Value};
use lancet_ops::{Attribute, Attributes, Operator, OverQueries, Tensor};

use crate::PassError;
use crate::heads::view;
use crate::matcher::{ints, normalize_axis, result};

/// The axes of `[batch, heads, queries, keys]` that are reduced.
const HEADS: usize = 1;
const QUERIES: usize = 2;

/// What is shown of probabilities, and to whom.
pub(crate) struct Shown {
    pub(crate) over_queries: OverQueries,
    readers: Vec<Reader>,
}

struct Reader {
    /// What stands for the second result.
    value: Value,
    /// `ReduceSum` or `ReduceMean`, if heads are reduced behind it.
    over_heads: Option<Operator>,
}

/// What is shown of probabilities that are read at `places`, each by something else than the node beside it; `None` if they are not.
pub(crate) fn shown(graph: &Graph, places: &[(Value, NodeId)]) -> Option<Shown> {
    let sums = places.iter().map(|&(p, next)| {
        let others = (graph.users(p).into_iter()).filter(|u| u.0 != next);
        let sums = others.map(|(user, _)| over_queries(graph, p, user));
        let sums: Option<Vec<_>> = sums.collect();
        sums.filter(|_| !graph.is_output(p))
    });
    if let Some(sums) = sums.collect::<Option<Vec<_>>>() {
        let mut sums = sums.into_iter().flatten();
        let (over, first) = sums.next()?;
        let mut readers = vec![first];
        let alike = sums.all(|(other, reader)| {
            readers.push(reader);
            other == over
        });
        if alike {
            return Some(Shown {
                over_queries: over,
                readers,
            });
        }
    }
    let each = places.iter().map(|&(value, _)| Reader {
        value,
        over_heads: None,
    });
    Some(Shown {
        over_queries: OverQueries::Each,
        readers: each.collect(),
    })
}

/// The sum or mean over queries that `user` makes of probabilities, alone or with one over heads.
fn over_queries(graph: &Graph, p: Value, user: NodeId) -> Option<(OverQueries, Reader)> {
    let (operator, axes) = reduction(graph, p, user)?;
    let kind = |operator| match operator {
        Operator::ReduceSum => OverQueries::Sum,
        _ => OverQueries::Mean,
    };
    let reader = |value, over_heads| Reader { value, over_heads };
    let value = result(user);
    match axes[..] {
        [QUERIES] => Some((kind(operator), reader(value, None))),
        [HEADS, QUERIES] => Some((kind(operator), reader(value, Some(operator)))),
        [HEADS] => {
            let next = graph.single_user(value)?;
            let (second, axes) = reduction(graph, value, next)?;
            let dropped = graph.ty(p).rank() - graph.ty(value).rank();
            let over = axes == [QUERIES - dropped];
            over.then(|| (kind(second), reader(result(next), Some(operator))))
        }
        _ => None,
    }
}

/// The sum or mean that `user` is of `x`, of rank 4 or made of one, and its axes in order.
fn reduction(graph: &Graph, x: Value, user: NodeId) -> Option<(Operator, Vec<usize>)> {
    let operator = graph.op(user).operator()?;
    let rank = graph.ty(x).rank();
    if !matches!(operator, Operator::ReduceSum | Operator::ReduceMean) || !(3..=4).contains(&rank) {
        return None;
    }
    let axes = ints(graph, graph.operand(user, 1)?)?.into_iter();
    let mut axes: Vec<usize> = axes
        .map(|a| normalize_axis(a, rank))
        .collect::<Option<_>>()?;
    axes.sort_unstable();
    (graph.operand(user, 0) == Some(x)).then_some((operator, axes))
}

impl Shown {
    /// Puts `to`, the second result of an attention, in the place of what was read.
    pub(crate) fn replace(&self, graph: &mut Graph, to: Value) -> Result<(), PassError> {
        for reader in &self.readers {
            let mut value = to;
            if let Some(operator) = reader.over_heads {
                let axes = Tensor::new([1], vec![HEADS as i64]);
                let axes = graph.add_const("heads", axes.into());
                let attributes = Attributes::new().with("keepdims", Attribute::Int(0));
                value = graph.apply(operator, attributes, &[value, axes])?;
            }
            let shape: Vec<Dim> = graph.shape(reader.value).to_vec();
            let value = view(graph, value, shape)?;
            graph.replace_all_uses(reader.value, value)?;
        }
        Ok(())
    }

    /// What is read, for a remark.
    pub(crate) fn describe(&self) -> &'static str {
        match self.over_queries {
            OverQueries::Each => ", its probabilities shown",
            OverQueries::Sum => ", its probabilities summed over queries",
            OverQueries::Mean => ", its probabilities averaged over queries",
        }
    }
}
