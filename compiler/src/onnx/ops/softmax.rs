//! Softmax, LogSoftmax and Hardmax before opset 13.
//!
//! They flattened their operand to two dimensions at `axis` (1 by default) and normalised over the second. Over the last
//! axis alone this is what the operators mean today; elsewhere the flattening is written out.

use lancet_ops::{Attribute, Attributes, Operator};

use super::{Lowering, Results, axis_from_front};

/// Brings one of the three operators to its form of opset 13.
pub(super) fn softmax(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset >= 13 {
        return l.finish();
    }
    let x = l.required(0)?;
    let axis = l.take_int("axis")?.unwrap_or(1);
    let rank = l.graph.ty(x).rank();
    let axis = axis_from_front(axis, rank, true)?;
    if axis + 1 == rank {
        l.call.attributes.set("axis", Attribute::Int(axis as i64));
        return l.finish();
    }
    let shape = l.apply(Operator::Shape, Attributes::new(), &[x])?;
    let at = Attributes::new().with("axis", Attribute::Int(axis as i64));
    let flat = l.apply(Operator::Flatten, at, &[x])?;
    let op = match l.call.op {
        "Softmax" => Operator::Softmax,
        "LogSoftmax" => Operator::LogSoftmax,
        _ => Operator::Hardmax,
    };
    let last = Attributes::new().with("axis", Attribute::Int(1));
    let y = l.apply(op, last, &[flat])?;
    // A size of zero stays one.
    let allow = Attributes::new().with("allowzero", Attribute::Int(1));
    let y = l.apply(Operator::Reshape, allow, &[y, shape])?;
    Ok(vec![Some(y)])
}
