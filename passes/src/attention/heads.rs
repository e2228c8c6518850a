//! The heads of an attention in matrix products: what the axes of queries, keys and values stand for.

use lancet_ir::{Dim, Graph, IrError, Op, Value};

use crate::heads::{Axes, Role, Sizes, joined_shape, view};
use crate::matcher::{peel, permutation, result};
use crate::polynomial::scaled;

/// Sizes by which the operands of an attention split into heads.
pub(crate) struct Heads {
    pub(crate) n: i64,
    /// Of queries, keys and values; keys and values may be those of one head, for all.
    pub(crate) sizes: [Sizes; 3],
}

impl Heads {
    /// Those of queries `[.., queries, features]`, keys `[.., features, keys]` and values `[.., keys, features]`, of rank 3 or 4; or why
    /// there are none.
    pub(crate) fn of(graph: &Graph, operands: [Value; 3]) -> Result<Heads, String> {
        let [q4, k4, v4] = operands;
        // What the first axis of rank 3 was made of is a guess; the axis itself is as good.
        let is_split = |v: Value| {
            let found = batch_and_heads(graph, v)?;
            (graph.ty(v).rank() == 4 || found.1.as_fixed().is_some()).then_some(found)
        };
        let (batch, heads) = [q4, v4]
            .into_iter()
            .find_map(is_split)
            .unwrap_or((graph.shape(q4)[0].clone(), Dim::fixed(1)));
        let Some(n_heads) = heads.as_fixed().filter(|&h| 1 <= h) else {
            return Err(format!("the number of heads is {heads}"));
        };
        let one = Dim::fixed(1);
        for (i, v) in operands.into_iter().enumerate() {
            let fits = match graph.shape(v) {
                [b, h, _, _] => *b == batch && (*h == heads || (*h == one && 0 < i)),
                [both, _, _] => Some(both) == batch.mul(&heads).as_ref(),
                _ => false,
            };
            if !fits {
                let ty = graph.ty(v);
                return Err(format!("{ty} does not have {batch} items of {heads} heads"));
            }
        }
        let sizes = |v: Value, token: usize, feature: usize| {
            let shape = graph.shape(v);
            let (leading, matrix) = shape.split_at(shape.len() - 2);
            Sizes {
                batch: batch.clone(),
                heads: leading.get(1).unwrap_or(&heads).clone(),
                tokens: matrix[token].clone(),
                features: matrix[feature].clone(),
            }
        };
        let all = [sizes(q4, 0, 1), sizes(k4, 1, 0), sizes(v4, 0, 1)];
        let [of_q, of_k, of_v] = &all;
        if of_k.tokens != of_v.tokens || of_q.features != of_k.features {
            let [q, k, v] = operands.map(|v| graph.ty(v));
            return Err(format!(
                "queries, keys and values do not fit: {q}, {k}, {v}"
            ));
        }
        if all.iter().any(|s| s.joined().is_none()) {
            return Err("the size of joined heads overflows".to_owned());
        }
        Ok(Heads {
            n: n_heads,
            sizes: all,
        })
    }

    /// The axes of queries, keys and values.
    pub(crate) fn axes(&self, graph: &Graph, [q4, k4, v4]: [Value; 3]) -> [Axes; 3] {
        [
            self.token_major(graph, q4),
            self.feature_major(graph, k4),
            self.token_major(graph, v4),
        ]
    }

    /// The axes of a value `[.., features, tokens]`.
    pub(crate) fn feature_major(&self, graph: &Graph, value: Value) -> Axes {
        let rank = graph.ty(value).rank();
        axes(rank, self.n, [Role::Feature, Role::Token])
    }

    /// Joined keys or values, of these sizes, with what is one for all heads repeated for each.
    pub(crate) fn repeated(
        &self,
        graph: &mut Graph,
        joined: Value,
        sizes: &Sizes,
    ) -> Result<Value, IrError> {
        let [Sizes { heads, .. }, ..] = &self.sizes;
        if sizes.heads == *heads {
            return Ok(joined);
        }
        let [batch, tokens, features] = [&sizes.batch, &sizes.tokens, &sizes.features];
        let split = |h: Dim| vec![batch.clone(), tokens.clone(), h, features.clone()];
        let one = view(graph, joined, split(Dim::fixed(1)))?;
        let each = graph.add(Op::Broadcast(split(heads.clone())), &[Some(one)])?;
        let whole = Sizes {
            heads: heads.clone(),
            ..sizes.clone()
        };
        view(graph, result(each), joined_shape(&whole)?)
    }

    /// The axes of a value `[.., tokens, features]`.
    pub(crate) fn token_major(&self, graph: &Graph, value: Value) -> Axes {
        let rank = graph.ty(value).rank();
        axes(rank, self.n, [Role::Token, Role::Feature])
    }

    /// `[batch, heads, queries, keys]`.
    pub(crate) fn of_scores(&self) -> [Dim; 4] {
        let [queries, keys, _] = &self.sizes;
        [
            queries.batch.clone(),
            queries.heads.clone(),
            queries.tokens.clone(),
            keys.tokens.clone(),
        ]
    }

    /// Those of the result.
    pub(crate) fn of_output(&self) -> Sizes {
        let [queries, _, values] = &self.sizes;
        Sizes {
            heads: queries.heads.clone(),
            tokens: queries.tokens.clone(),
            ..values.clone()
        }
    }
}

/// Axes of a value `[batch, heads, a, b]` or `[batch · heads, a, b]`. A single head that is no axis goes with the features.
fn axes(rank: usize, n_heads: i64, last: [Role; 2]) -> Axes {
    if rank == 3 && n_heads == 1 {
        let with_head = last.map(|role| match role {
            Role::Feature => vec![Role::Head, Role::Feature],
            other => vec![other],
        });
        return [vec![vec![Role::Batch]], with_head.to_vec()].concat();
    }
    let leading = match rank {
        4 => vec![vec![Role::Batch], vec![Role::Head]],
        _ => vec![vec![Role::Batch, Role::Head]],
    };
    [leading, last.map(|role| vec![role]).to_vec()].concat()
}

/// The first two axes of a value of rank 4, or those that the first axis of a value of rank 3 was made of.
fn batch_and_heads(graph: &Graph, value: Value) -> Option<(Dim, Dim)> {
    let mut at = peel(graph, value);
    if let [b, h, _, _] = graph.shape(at) {
        return Some((b.clone(), h.clone()));
    }
    let first = graph.shape(at).first()?.clone();
    loop {
        if let Some((x, _)) = scaled(graph, at) {
            at = peel(graph, x);
            continue;
        }
        let x = graph.operand(at.node, 0)?;
        if matches!(graph.op(at.node), Op::View(_)) {
            return match graph.shape(x) {
                [b, h, _, _] if b.mul(h)? == first => Some((b.clone(), h.clone())),
                _ => None,
            };
        }
        if permutation(graph, at.node)? != [0, 2, 1] {
            return None;
        }
        at = peel(graph, x);
    }
}
