//! Small questions about an immutable graph, of which patterns are made.
//!
//! Patterns are plain functions that return `Option` and use `?`:
//!
//! ```text
//! let (sum, root) = binary(g, v, Operator::Div)?;          // x / sqrt(..)
//! let (one, erf) = commuted(g, sum, Operator::Add, |v| is_scalar(g, v, 1.0).then_some(()))?;
//! ```
//!
//! Everything looks at row-major graphs before layouts are assigned. Operands are peeled by the questions themselves only
//! where the documentation says so.

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{DType, DataView, Operator, Tensor};

/// Scalars of exporters carry the rounding of f32 or of a printed decimal; this relative error covers both.
pub const SCALAR_TOLERANCE: f32 = 1e-6;

/// The first result of a node.
pub fn result(node: NodeId) -> Value {
    Value { node, result: 0 }
}

/// The operation that makes a value.
pub fn op_of(graph: &Graph, value: Value) -> &Op {
    graph.op(value.node)
}

/// The node of `value` if it applies `operator` and `value` is its first result.
pub fn applied(graph: &Graph, value: Value, operator: Operator) -> Option<NodeId> {
    (value.result == 0 && graph.operator(value) == Some(operator)).then_some(value.node)
}

/// The first operand of `operator`, if that is what makes `value`.
pub fn unary(graph: &Graph, value: Value, operator: Operator) -> Option<Value> {
    graph.operand(applied(graph, value, operator)?, 0)
}

/// The first two operands of `operator`, if that is what makes `value`.
pub fn binary(graph: &Graph, value: Value, operator: Operator) -> Option<(Value, Value)> {
    let node = applied(graph, value, operator)?;
    Some((graph.operand(node, 0)?, graph.operand(node, 1)?))
}

/// For a commutative `operator` that makes `value`: the operand that `accept` accepts, as what it gave, and the other one.
///
/// The left operand is tried first.
pub fn commuted<T>(
    graph: &Graph,
    value: Value,
    operator: Operator,
    accept: impl Fn(Value) -> Option<T>,
) -> Option<(T, Value)> {
    let (a, b) = binary(graph, value, operator)?;
    if let Some(found) = accept(a) {
        return Some((found, b));
    }
    accept(b).map(|found| (found, a))
}

/// The value behind identities, conversions of layout and casts to the same element type.
pub fn peel(graph: &Graph, value: Value) -> Value {
    let mut value = value;
    loop {
        let behind = match graph.op(value.node) {
            Op::Convert(_) => graph.operand(value.node, 0),
            Op::Apply(Operator::Identity | Operator::Dropout, _) if value.result == 0 => {
                graph.operand(value.node, 0)
            }
            Op::Apply(Operator::Cast, _) => graph
                .operand(value.node, 0)
                .filter(|&x| graph.ty(x).dtype == graph.ty(value).dtype),
            _ => None,
        };
        match behind {
            Some(x) => value = x,
            None => return value,
        }
    }
}

/// The value behind [`peel`] and everything that keeps each element and their order: views, reshapes, (un)squeezes.
pub fn peel_views(graph: &Graph, value: Value) -> Value {
    let mut value = peel(graph, value);
    loop {
        let keeps_order = match graph.op(value.node) {
            Op::View(_) => true,
            Op::Apply(op, _) => matches!(
                op,
                Operator::Reshape | Operator::Flatten | Operator::Squeeze | Operator::Unsqueeze
            ),
            _ => false,
        };
        match graph.operand(value.node, 0) {
            Some(x) if keeps_order => value = peel(graph, x),
            _ => return value,
        }
    }
}

/// The value behind [`peel_views`] and broadcasts: every element of `value` is one of its elements.
pub fn peel_broadcasts(graph: &Graph, value: Value) -> Value {
    let mut value = peel_views(graph, value);
    loop {
        let broadcasts = match graph.op(value.node) {
            Op::Broadcast(_) => true,
            Op::Apply(op, _) => *op == Operator::Expand,
            _ => false,
        };
        match graph.operand(value.node, 0) {
            Some(x) if broadcasts => value = peel_views(graph, x),
            _ => return value,
        }
    }
}

/// The only value that the elements of a floating-point constant take, through views and broadcasts; `None` if they
/// differ or there are none.
pub fn scalar(graph: &Graph, value: Value) -> Option<f32> {
    splat(graph.constant(peel_broadcasts(graph, value))?)
}

/// The only value that the elements of a floating-point tensor take.
pub fn splat(tensor: &Tensor) -> Option<f32> {
    fn same<T: PartialEq + Copy>(v: &[T]) -> Option<T> {
        let (&first, rest) = v.split_first()?;
        rest.iter().all(|&x| x == first).then_some(first)
    }
    match tensor.data().view() {
        DataView::F32(v) => same(v),
        DataView::F64(v) => same(v).map(|x| x as f32),
        DataView::F16(v) => same(v).map(|x| x.to_f32()),
        DataView::BF16(v) => same(v).map(|x| x.to_f32()),
        _ => None,
    }
}

/// Whether `value` is a floating-point constant all of whose elements are `expected`, to [`SCALAR_TOLERANCE`].
pub fn is_scalar(graph: &Graph, value: Value, expected: f32) -> bool {
    is_scalar_within(graph, value, expected, SCALAR_TOLERANCE)
}

/// Whether `value` is a floating-point constant all of whose elements are `expected`, to a relative error.
pub fn is_scalar_within(graph: &Graph, value: Value, expected: f32, tolerance: f32) -> bool {
    scalar(graph, value)
        .is_some_and(|x| x == expected || (x - expected).abs() <= tolerance * expected.abs())
}

/// The elements of an integer or boolean constant, or of a value whose elements are known numbers.
pub fn ints(graph: &Graph, value: Value) -> Option<Vec<i64>> {
    if let Some(elements) = graph.elements(value) {
        return elements.iter().map(lancet_ir::Dim::as_fixed).collect();
    }
    tensor_ints(graph.constant(peel_views(graph, value))?)
}

/// The elements of an integer or boolean tensor, or `None` if it is of another type or one does not fit.
pub fn tensor_ints(tensor: &Tensor) -> Option<Vec<i64>> {
    fn wide<T: Copy + TryInto<i64>>(v: &[T]) -> Option<Vec<i64>> {
        v.iter().map(|&x| x.try_into().ok()).collect()
    }
    match tensor.data().view() {
        DataView::I8(v) => wide(v),
        DataView::I16(v) => wide(v),
        DataView::I32(v) => wide(v),
        DataView::I64(v) => wide(v),
        DataView::U8(v) => wide(v),
        DataView::U16(v) => wide(v),
        DataView::U32(v) => wide(v),
        DataView::U64(v) => wide(v),
        DataView::Bool(v) => wide(v),
        DataView::F32(_) | DataView::F64(_) | DataView::F16(_) | DataView::BF16(_) => None,
    }
}

/// The only integer that `value` holds.
pub fn int_scalar(graph: &Graph, value: Value) -> Option<i64> {
    match ints(graph, value)?.as_slice() {
        [x] => Some(*x),
        _ => None,
    }
}

/// An axis counted from the front; `None` if it is outside `-rank..rank`.
pub fn normalize_axis(axis: i64, rank: usize) -> Option<usize> {
    let rank_i = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank_i } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// The integer attribute `axis` of a node, counted from the front of a tensor of this rank; the schema's default counts.
pub fn axis_of(graph: &Graph, node: NodeId, rank: usize) -> Option<usize> {
    let op = graph.op(node).operator()?;
    let default = op
        .schema()
        .attributes
        .iter()
        .find(|a| a.name == "axis")
        .and_then(|a| match a.default {
            lancet_ops::DefaultValue::Int(v) => Some(v),
            _ => None,
        });
    let axis = graph.attributes(node).int("axis").or(default)?;
    normalize_axis(axis, rank)
}

/// The permutation of a `Transpose`, its default (reversal) written out.
pub fn permutation(graph: &Graph, node: NodeId) -> Option<Vec<usize>> {
    if graph.op(node).operator() != Some(Operator::Transpose) {
        return None;
    }
    let rank = graph.ty(graph.operand(node, 0)?).rank();
    match graph.attributes(node).ints("perm") {
        None => Some((0..rank).rev().collect()),
        Some(perm) => {
            let perm: Option<Vec<usize>> = perm.iter().map(|&p| usize::try_from(p).ok()).collect();
            perm.filter(|p| p.len() == rank)
        }
    }
}

/// The operand of a transposition by `perm`, if that is what makes `value`.
pub fn transposed(graph: &Graph, value: Value, perm: &[usize]) -> Option<Value> {
    let x = unary(graph, value, Operator::Transpose)?;
    (permutation(graph, value.node)? == perm).then_some(x)
}

/// The operand of `operator` (`ReduceMean`, ...) if it reduces the last axis alone and keeps it as 1.
pub fn reduced_last_axis(graph: &Graph, value: Value, operator: Operator) -> Option<Value> {
    let node = applied(graph, value, operator)?;
    let x = graph.operand(node, 0)?;
    let rank = graph.ty(x).rank();
    let axes = ints(graph, graph.operand(node, 1)?)?;
    let last = axes.len() == 1 && normalize_axis(axes[0], rank)? + 1 == rank;
    (last && graph.attributes(node).int_or("keepdims", 1) == 1).then_some(x)
}

/// Whether a value is of this element type.
pub fn is_dtype(graph: &Graph, value: Value, dtype: DType) -> bool {
    graph.ty(value).dtype == dtype
}

/// A node's name, or its operator where it has none.
pub fn describe(graph: &Graph, node: NodeId) -> &str {
    match graph.node_name(node) {
        "" => graph.op(node).text(),
        name => name,
    }
}
