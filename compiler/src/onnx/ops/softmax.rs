//! Softmax, LogSoftmax and Hardmax before opset 13.
//!
//! They flattened their operand to two dimensions at `axis` (1 by default) and normalised over the second. Over the last
//! axis alone this is what the operators mean today; elsewhere the flattening is written out.

use lancet_ir::Value;
use lancet_ops::{Attribute, Attributes, Operator};

use super::{Lowering, Results, axis_from_front};
use crate::onnx::error::Fault;

/// Brings one of the three operators to its form of opset 13.
pub(super) fn softmax(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset >= 13 {
        return l.finish();
    }
    let x = l.required(0)?;
    let op = match l.call.op {
        "Softmax" => Operator::Softmax,
        "LogSoftmax" => Operator::LogSoftmax,
        _ => Operator::Hardmax,
    };
    let axis = l.take_int("axis")?.unwrap_or(1);
    let rank = l.graph.ty(x).rank();
    let axis = axis_from_front(axis, rank, true)?;
    if axis + 1 == rank {
        l.call.attributes.set("axis", Attribute::Int(axis as i64));
        return l.finish();
    }
    let opset = l.call.opset;
    Ok(vec![Some(of(&mut l, op, x, axis as i64, opset)?)])
}

/// One of the three operators on `x`, as `opset` means it.
pub(super) fn of(
    l: &mut Lowering<'_, '_>,
    op: Operator,
    x: Value,
    axis: i64,
    opset: i64,
) -> Result<Value, Fault> {
    let at = |axis: i64| Attributes::new().with("axis", Attribute::Int(axis));
    let rank = l.graph.ty(x).rank();
    let from_front = axis_from_front(axis, rank, opset < 13)?;
    if 13 <= opset || from_front + 1 == rank {
        return l.apply(op, at(axis), &[x]);
    }
    let shape = l.apply(Operator::Shape, Attributes::new(), &[x])?;
    let flat = l.apply(Operator::Flatten, at(from_front as i64), &[x])?;
    let y = l.apply(op, at(1), &[flat])?;
    // A size of zero stays one.
    let allow = Attributes::new().with("allowzero", Attribute::Int(1));
    l.apply(Operator::Reshape, allow, &[y, shape])
}
