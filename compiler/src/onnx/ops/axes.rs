//! Attributes of older opsets that are operands today.

use lancet_ops::{Attribute, DType};

use super::{Lowering, Results};
use crate::onnx::error::Fault;

/// `axes` to operand `index` (Squeeze, Unsqueeze and ReduceSum before 13, other reductions before 18).
pub(super) fn axes(mut l: Lowering<'_, '_>, index: usize) -> Results {
    match l.take_ints("axes")? {
        Some(_) if l.operand(index).is_some() => {
            return Err(Fault::invalid("axes are given as attribute and as operand").into());
        }
        // An empty attribute reduces or squeezes as none does.
        Some(axes) if !axes.is_empty() || l.call.op == "Unsqueeze" => {
            let axes = l.ints("axes", axes);
            l.set_operand(index, axes);
        }
        _ => {}
    }
    l.finish()
}

/// `split` to an operand (before 13). Without sizes, the number of results is the number of parts (before 18).
pub(super) fn split(mut l: Lowering<'_, '_>) -> Results {
    if let Some(sizes) = l.take_ints("split")? {
        let sizes = l.ints("split", sizes);
        l.set_operand(1, sizes);
    }
    if l.call.used.is_empty() {
        return Err(Fault::invalid("gives no results").into());
    }
    if l.operand(1).is_none() {
        let n = l.call.used.len() as i64;
        match l.call.attributes.int("num_outputs") {
            Some(stated) if stated != n => {
                return Err(Fault::invalid(format!(
                    "num_outputs is {stated}, and {n} results are named"
                ))
                .into());
            }
            _ => l.call.attributes.set("num_outputs", Attribute::Int(n)),
        }
    }
    l.finish()
}

/// `starts`, `ends` and `axes` to operands (before 10).
pub(super) fn slice(mut l: Lowering<'_, '_>) -> Results {
    for (index, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
        if let Some(values) = l.take_ints(name)? {
            let values = l.ints(name, values);
            l.set_operand(index, values);
        }
    }
    l.finish()
}

/// `pads` and `value` to operands (before 11).
pub(super) fn pad(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset >= 11 {
        return l.finish();
    }
    let pads = l
        .take_ints("pads")?
        .ok_or_else(|| Fault::invalid("attribute `pads` is missing"))?;
    let value = l.take_float("value")?.unwrap_or(0.0);
    let pads = l.ints("pads", pads);
    l.set_operand(1, pads);
    if value != 0.0 {
        let x = l.required(0)?;
        let value = scalar_like(&mut l, "value", value, x)?;
        l.set_operand(2, value);
    }
    l.finish()
}

/// `k` to an operand (before 10).
pub(super) fn top_k(mut l: Lowering<'_, '_>) -> Results {
    if let Some(k) = l.take_int("k")? {
        let k = l.ints("k", vec![k]);
        l.set_operand(1, k);
    }
    l.finish()
}

/// `min` and `max` to operands (before 11).
pub(super) fn clip(mut l: Lowering<'_, '_>) -> Results {
    for (index, name) in [(1, "min"), (2, "max")] {
        if let Some(bound) = l.take_float(name)? {
            let x = l.required(0)?;
            let bound = scalar_like(&mut l, name, bound, x)?;
            l.set_operand(index, bound);
        }
    }
    l.finish()
}

/// `axis` to an operand (before 20), where it was 1 by default.
pub(super) fn dft(mut l: Lowering<'_, '_>) -> Results {
    if l.call.opset < 20 {
        let axis = l.take_int("axis")?.unwrap_or(1);
        let axis = l.constant("axis", Vec::new(), vec![axis]);
        l.set_operand(2, axis);
    }
    l.finish()
}

/// A scalar constant of the element type of `x`.
fn scalar_like(
    l: &mut Lowering<'_, '_>,
    part: &str,
    value: f32,
    x: lancet_ir::Value,
) -> Result<lancet_ir::Value, Fault> {
    let dtype = l.graph.ty(x).dtype;
    Ok(match dtype {
        DType::F32 => l.constant(part, Vec::new(), vec![value]),
        DType::F64 => l.constant(part, Vec::new(), vec![f64::from(value)]),
        DType::F16 => l.constant(part, Vec::new(), vec![half::f16::from_f32(value)]),
        DType::BF16 => l.constant(part, Vec::new(), vec![half::bf16::from_f32(value)]),
        other if other.is_integer() => {
            return Err(Fault::Attribute(
                part.to_owned(),
                format!("is a float, and the operand is {other}"),
            ));
        }
        other => return Err(Fault::DType(other.to_string())),
    })
}

/// `scales` from an attribute (`Upsample` before 9) or from operand 1 (before 11) to operand 2. Places were not yet those of
/// the middle of an element.
pub(super) fn resize(mut l: Lowering<'_, '_>) -> Results {
    let x = l.required(0)?;
    let scales = match l.take_floats("scales")? {
        Some(scales) => l.constant("scales", vec![scales.len()], scales),
        None => l.required(1)?,
    };
    l.call.operands = vec![Some(x), None, Some(scales)];
    for (name, value) in [
        ("coordinate_transformation_mode", "asymmetric"),
        ("nearest_mode", "floor"),
    ] {
        let value = Attribute::Str(value.to_owned());
        l.call.attributes.set(name, value);
    }
    l.finish()
}
