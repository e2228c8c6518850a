//! Inputs of the graph: their types, with named dimensions as symbols.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, TensorType};
use onnx_protobuf::tensor_shape_proto::dimension::Value as DimensionValue;
use onnx_protobuf::type_proto::Value as TypeValue;
use onnx_protobuf::{GraphProto, TypeProto, ValueInfoProto};

use super::error::{Fault, Place};
use super::tensor::dtype;
use super::walk::{Binding, Initializer, Scope, Walk};

/// Largest fixed dimension of an input.
const MAX_DIM: i64 = 1 << 40;

/// Adds the graph's inputs, but for those that have an initializer, which makes them constants.
pub(crate) fn add(
    walk: &mut Walk<'_>,
    main: &GraphProto,
    initializers: &[Initializer],
    scope: &mut Scope<'_>,
) {
    let constants: HashSet<&str> = initializers.iter().map(Initializer::name).collect();
    let inputs: Vec<&ValueInfoProto> = main
        .input
        .iter()
        .filter(|i| !constants.contains(i.name.as_str()))
        .collect();
    let symbols = symbols(&inputs);
    // Named dimensions are declared before any unnamed one takes a name.
    let mut names: Vec<&String> = symbols.values().collect();
    names.sort_unstable();
    for name in names {
        walk.graph.declare_symbol(name);
    }
    for input in inputs {
        let place = Place::new(format!("graph input `{}`", input.name));
        if input.name.is_empty() || scope.lookup(&input.name).is_some() {
            let fault = Fault::invalid("the name is empty or given twice");
            walk.errors.add(&place, fault);
            continue;
        }
        let binding = match ty(walk, input.type_.as_ref(), &symbols) {
            Ok(ty) => Binding::Value(walk.graph.add_input(&input.name, ty)),
            Err(fault) => {
                walk.errors.add(&place, fault);
                Binding::Failed
            }
        };
        scope.bind(&input.name, binding);
    }
}

fn ty(
    walk: &mut Walk<'_>,
    proto: Option<&TypeProto>,
    symbols: &HashMap<String, String>,
) -> Result<TensorType, Fault> {
    let tensor = match proto.and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor,
        Some(_) => {
            return Err(Fault::unsupported(
                "only tensors are supported, found a sequence, map, optional or sparse tensor",
            ));
        }
        None => return Err(Fault::invalid("the type is missing")),
    };
    let dtype = dtype(i64::from(tensor.elem_type))?;
    let shape = tensor
        .shape
        .as_ref()
        .ok_or_else(|| Fault::unsupported("an unknown number of dimensions is not supported"))?;
    let mut dims = Vec::with_capacity(shape.dim.len());
    for d in &shape.dim {
        dims.push(match &d.value {
            Some(DimensionValue::DimValue(v)) if *v < 0 => {
                return Err(Fault::invalid(format!("dimension {v} is negative")));
            }
            Some(DimensionValue::DimValue(v)) if *v > MAX_DIM => {
                return Err(Fault::limit(format!("dimension {v} is too large")));
            }
            Some(DimensionValue::DimValue(v)) => Dim::fixed(*v),
            Some(DimensionValue::DimParam(p)) => match symbols.get(p) {
                Some(name) => Dim::symbol(name),
                None => walk.graph.fresh_dim(),
            },
            _ => walk.graph.fresh_dim(),
        });
    }
    Ok(TensorType::new(dtype, dims))
}

/// A symbol for each named dimension: the same for the same name, another for another.
fn symbols(inputs: &[&ValueInfoProto]) -> HashMap<String, String> {
    let mut out: HashMap<String, String> = HashMap::new();
    let mut taken = HashSet::new();
    for input in inputs {
        let Some(TypeValue::TensorType(tensor)) =
            input.type_.as_ref().and_then(|t| t.value.as_ref())
        else {
            continue;
        };
        for d in tensor.shape.as_ref().map_or(&[][..], |s| &s.dim) {
            let Some(DimensionValue::DimParam(param)) = &d.value else {
                continue;
            };
            let Some(base) = identifier(param) else {
                continue;
            };
            if out.contains_key(param) {
                continue;
            }
            let mut name = base.clone();
            let mut n = 1;
            while !taken.insert(name.clone()) {
                n += 1;
                name = format!("{base}_{n}");
            }
            out.insert(param.clone(), name);
        }
    }
    out
}

/// Longest name that is made from one of the file's.
const MAX_IDENTIFIER: usize = 64;

/// A letter or underscore, then letters, digits and underscores; other characters become underscores. `None` if nothing
/// of `text` can be kept.
pub(crate) fn identifier(text: &str) -> Option<String> {
    let mut out: String = text
        .chars()
        .take(MAX_IDENTIFIER)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if !out.contains(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    Some(out)
}
