//! What attention does with its probabilities, read forwards from its softmax: `factor · round(p) · v`.

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Operator, Rounding};

use crate::attention::scores::{integer_product, matrices_of};
use crate::matcher::{binary, is_scalar, peel, result, unary};
use crate::polynomial::scaled;
use crate::quantized::{Parameters, dequantize, quantize};

/// The product of probabilities with values.
pub(crate) struct Weighted {
    pub(crate) values: Value,
    /// That of the values, if they are bytes whose product is exact.
    pub(crate) zero_point: Option<i64>,
    /// The product, and what it has been multiplied by where probabilities are rounded.
    pub(crate) output: Value,
    pub(crate) factor: f64,
    /// What probabilities are rounded by.
    pub(crate) rounding: Option<Rounding>,
    pub(crate) has_guard: bool,
    /// Whether values, and the product, are `[.., features, tokens]`: it is that of values with transposed probabilities.
    pub(crate) transposed: bool,
    /// Where something else reads the probabilities, and the node that goes on to the product.
    pub(crate) read_at: Vec<(Value, NodeId)>,
}

/// The product of the probabilities `p`, `[.., queries, keys]` or `transposed`, with values, or why there is none.
pub(crate) fn weighted_values(
    graph: &Graph,
    p: Value,
    mut transposed: bool,
) -> Result<Weighted, String> {
    let (mut p, mut has_guard) = (p, false);
    let mut rounding = None;
    let mut factor = 1.0;
    // How probabilities are quantized that are not dequantized yet.
    let mut bytes = None;
    let mut read_at = Vec::new();
    loop {
        if !graph.is_output(p)
            && let Some(guarded) = nan_guard(graph, p)
        {
            (p, has_guard) = (guarded, true);
            continue;
        }
        let user = match graph.single_user(p) {
            Some(user) => user,
            None => {
                let next = next_to_values(graph, p)?;
                read_at.push((p, next));
                next
            }
        };
        if !read_at.is_empty() && (rounding.is_some() || has_guard || transposed) {
            return Err("the attention probabilities are read as they are and changed".to_owned());
        }
        let next = result(user);
        if matrices_of(graph, next) == Some(p) {
            (p, transposed) = (next, !transposed);
            continue;
        }
        if let Some((left, right)) = binary(graph, next, Operator::MatMul)
            && left != right
            && p == if transposed { right } else { left }
        {
            let values = if transposed { left } else { right };
            return Ok(scaled_output(
                graph,
                Weighted {
                    values,
                    zero_point: None,
                    output: next,
                    factor,
                    rounding,
                    has_guard,
                    transposed,
                    read_at,
                },
            ));
        }
        if let Some((x, by)) = quantize(graph, next)
            && x == p
            && rounding.is_none()
        {
            rounding = by.rounding();
            if rounding.is_none() {
                return Err(format!("the attention probabilities become {}", by.dtype));
            }
            bytes = Some(by);
            p = next;
            continue;
        }
        if let Some((x, by)) = dequantize(graph, next)
            && x == p
            && bytes.is_some_and(|b: Parameters| b.zero_point == by.zero_point)
        {
            factor = f64::from(by.scale);
            (p, bytes) = (next, None);
            continue;
        }
        if let Some(by) = bytes
            && let Some(cast) = graph.single_user(next).map(result)
            && let Some((left, values, zero_points)) = integer_product(graph, cast)
            && left == p
            && !transposed
            && zero_points[0] == by.zero_point
            && !graph.is_output(next)
        {
            return Ok(scaled_output(
                graph,
                Weighted {
                    values,
                    zero_point: Some(zero_points[1]),
                    output: cast,
                    factor,
                    rounding,
                    has_guard,
                    transposed: false,
                    read_at,
                },
            ));
        }
        if !(peel(graph, next) == peel(graph, p) || keeps_matrices(graph, next, p)) {
            let op = graph.op(user).text();
            return Err(format!("the attention probabilities are used by {op}"));
        }
        p = next;
    }
}

/// The one of several users of probabilities that goes on to their product with values.
fn next_to_values(graph: &Graph, p: Value) -> Result<NodeId, String> {
    let users: Vec<NodeId> = graph.users(p).into_iter().map(|u| u.0).collect();
    let weighs = |p: Value, user: NodeId| {
        let product = binary(graph, result(user), Operator::MatMul);
        product.is_some_and(|(left, _)| left == p)
    };
    let leads = |user: NodeId| {
        let next = result(user);
        let users = graph.users(next);
        keeps_matrices(graph, next, p) && users.iter().any(|u| weighs(next, u.0))
    };
    let found = users.iter().find(|&&u| weighs(p, u));
    let found = found.or_else(|| users.iter().find(|&&u| leads(u)));
    found.copied().ok_or_else(|| {
        let n = users.len();
        format!("the attention probabilities have {n} users, none of which weighs values")
    })
}

/// Takes the scalar factors of the result along where probabilities are rounded, to be applied where heads are joined.
fn scaled_output(graph: &Graph, mut w: Weighted) -> Weighted {
    while w.rounding.is_some()
        && !graph.is_output(w.output)
        && let Some(next) = graph.single_user(w.output).map(result)
        && let Some((x, factor)) = scaled(graph, next)
        && x == w.output
    {
        (w.output, w.factor) = (next, w.factor * factor);
    }
    w
}

/// `Where(IsNaN(p), 0, p)`, if these are the only users of `p`.
fn nan_guard(graph: &Graph, p: Value) -> Option<Value> {
    let users = graph.users(p);
    let &[(a, _), (b, _)] = users.as_slice() else {
        return None;
    };
    [(a, b), (b, a)].into_iter().find_map(|(test, select)| {
        let (test, select) = (result(test), result(select));
        let [condition, zero, kept] = graph
            .operands(select.node)
            .into_iter()
            .collect::<Option<Vec<Value>>>()?
            .try_into()
            .ok()?;
        let is_guard = graph.operator(select) == Some(Operator::Where)
            && unary(graph, test, Operator::IsNaN) == Some(p)
            && graph.single_user(test) == Some(select.node)
            && condition == test
            && kept == p
            && is_scalar(graph, zero, 0.0);
        is_guard.then_some(select)
    })
}

/// True if `value` is a view of `operand` that regroups only what stands before the last two axes.
pub(crate) fn keeps_matrices(graph: &Graph, value: Value, operand: Value) -> bool {
    let last_two = |v| {
        let shape = graph.shape(v);
        shape.len().checked_sub(2).map(|i| &shape[i..])
    };
    matches!(graph.op(value.node), Op::View(_)) && last_two(value) == last_two(operand)
}
