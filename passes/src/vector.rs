//! Constants brought to the shape that a raised operator wants.

use std::sync::Arc;

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{DType, Operator, Tensor};

use crate::PassError;

/// `value` as `f32[n]`: itself, a view of it without leading axes of size 1, or a scalar constant repeated.
///
/// `None` if it is not one of these.
///
/// # Errors
/// [`PassError`] if the new node is not valid: a bug.
pub(crate) fn as_vector(
    graph: &mut Graph,
    value: Value,
    n: usize,
) -> Result<Option<Value>, PassError> {
    let ty = graph.ty(value);
    let Some((last, leading)) = ty.shape.split_last() else {
        return Ok(repeated(graph, value, n));
    };
    if ty.dtype != DType::F32 || leading.iter().any(|d| d.as_fixed() != Some(1)) {
        return Ok(None);
    }
    if last.as_fixed() != i64::try_from(n).ok() {
        return Ok(repeated(graph, value, n));
    }
    if leading.is_empty() {
        return Ok(Some(value));
    }
    if let Some(tensor) = graph.constant(value) {
        let reshaped = Tensor::clone(tensor).reshaped(vec![n]);
        let name = constant_name(graph, value);
        return Ok(reshaped.map(|t| graph.add_const(&name, Arc::new(t))));
    }
    let node = graph.add(Op::View(vec![n.into()]), &[Some(value)])?;
    Ok(Some(Value { node, result: 0 }))
}

/// The name of the constant that `value` is; empty if it is none.
pub(crate) fn constant_name(graph: &Graph, value: Value) -> String {
    match graph.op(value.node) {
        Op::Const(c) => c.name.clone(),
        Op::Apply(Operator::FromSparse, _) => graph.node_name(value.node).to_owned(),
        _ => String::new(),
    }
}

fn repeated(graph: &mut Graph, value: Value, n: usize) -> Option<Value> {
    let &[x] = graph.constant(value)?.as_slice::<f32>()? else {
        return None;
    };
    let name = constant_name(graph, value);
    Some(graph.add_const(&name, Arc::new(Tensor::new([n], vec![x; n]))))
}
