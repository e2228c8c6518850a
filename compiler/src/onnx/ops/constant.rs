//! Constants that nodes carry.

use std::sync::Arc;

use lancet_ops::{Attribute, Tensor};

use super::{Lowering, Results};
use crate::onnx::error::Fault;

/// `Constant`: exactly one attribute, of one of several types.
pub(super) fn constant(l: Lowering<'_, '_>) -> Results {
    let mut given = l.call.attributes.iter();
    let (Some((name, value)), None) = (given.next(), given.next()) else {
        return Err(Fault::invalid("a constant has exactly one value").into());
    };
    let tensor = match (name, value) {
        ("value" | "sparse_value", Attribute::Tensor(t)) => Arc::clone(t),
        ("value_float", Attribute::Float(v)) => Arc::new(Tensor::scalar(*v)),
        ("value_int", Attribute::Int(v)) => Arc::new(Tensor::scalar(*v)),
        ("value_floats", Attribute::Floats(v)) => Arc::new(Tensor::new(vec![v.len()], v.clone())),
        ("value_ints", Attribute::Ints(v)) => Arc::new(Tensor::new(vec![v.len()], v.clone())),
        ("value_string" | "value_strings", _) => {
            return Err(Fault::DType("string".to_owned()).into());
        }
        _ => {
            return Err(Fault::invalid(format!(
                "attribute `{name}` of type {:?} is no value",
                value.ty()
            ))
            .into());
        }
    };
    if !l.call.operands.is_empty() {
        return Err(Fault::invalid("a constant takes no operands").into());
    }
    let name = l.call.name.clone();
    Ok(vec![Some(l.graph.add_const(&name, tensor))])
}

/// `ConstantOfShape`: `value` has one element.
pub(super) fn constant_of_shape(l: Lowering<'_, '_>) -> Results {
    if let Some(value) = l.call.attributes.tensor("value")
        && value.len() != 1
    {
        return Err(Fault::invalid(format!(
            "attribute `value` has {} elements, not 1",
            value.len()
        ))
        .into());
    }
    l.finish()
}
