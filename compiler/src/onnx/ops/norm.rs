//! Dropout, batch and group normalization.

use lancet_ops::{Attribute, Attributes, Operator};

use super::{Lowering, Results};
use crate::onnx::error::Fault;

/// `ratio` to an operand (before 12). Training is not supported; the mask was a float before 10.
pub(super) fn dropout(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset < 10 && l.n_used() > 1 {
        return Err(
            Fault::unsupported("the mask of Dropout before opset 10 is not supported").into(),
        );
    }
    if l.call.opset < 12
        && let Some(ratio) = l.take_float("ratio")?
    {
        let ratio = l.constant("ratio", Vec::new(), vec![ratio]);
        l.set_operand(1, ratio);
    }
    let training = l.operand(2).and_then(|v| l.graph.constant(v));
    if training.is_some_and(|t| t.as_slice::<bool>().is_some_and(|t| t.contains(&true))) {
        return Err(Fault::unsupported("training mode is not supported").into());
    }
    l.finish()
}

/// Inference only: statistics are operands. `spatial` (before 9) must be what it is by default.
pub(super) fn batch_normalization(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset < 9 && l.take_int("spatial")?.unwrap_or(1) != 1 {
        let message = "must be 1: statistics per position are not supported".to_owned();
        return Err(Fault::Attribute("spatial".to_owned(), message).into());
    }
    if l.call.attributes.int_or("training_mode", 0) != 0 {
        let message = "must be 0: training is not supported".to_owned();
        return Err(Fault::Attribute("training_mode".to_owned(), message).into());
    }
    l.finish()
}

/// Scale and bias per group (before 21) to scale and bias per channel.
pub(super) fn group_normalization(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset >= 21 {
        return l.finish();
    }
    let x = l.required(0)?;
    let groups = l
        .call
        .attributes
        .int("num_groups")
        .ok_or_else(|| Fault::invalid("attribute `num_groups` is missing"))?;
    let channels = l
        .graph
        .shape(x)
        .get(1)
        .and_then(lancet_ir::Dim::as_fixed)
        .ok_or_else(|| Fault::unsupported("the number of channels is not known"))?;
    if groups < 1 || channels % groups != 0 {
        return Err(Fault::invalid(format!(
            "{channels} channels cannot be divided into {groups} groups"
        ))
        .into());
    }
    for index in [1, 2] {
        let per_group = l.required(index)?;
        let column = l.ints("column", vec![groups, 1]);
        let full = l.ints("full", vec![groups, channels / groups]);
        let flat = l.ints("flat", vec![channels]);
        let v = l.apply(Operator::Reshape, Attributes::new(), &[per_group, column])?;
        let v = l.apply(Operator::Expand, Attributes::new(), &[v, full])?;
        // A group count of zero channels is still a shape, not a copied dimension.
        let allow = Attributes::new().with("allowzero", Attribute::Int(1));
        let v = l.apply(Operator::Reshape, allow, &[v, flat])?;
        l.set_operand(index, v);
    }
    l.finish()
}
