//! Attributes of a node as typed values.
//!
//! The tag of an attribute is trusted for nothing but which field is read: a tensor that is missing is an error.

use std::sync::Arc;

use lancet_ops::{Attribute, Attributes, DType};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto};

use super::error::{Fault, Faults};
use super::sparse;
use super::tensor::TensorReader;

/// The attributes of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeAttributes<'a> {
    pub(crate) values: Attributes,
    /// Subgraphs by attribute name.
    pub(crate) graphs: Vec<(&'a str, &'a GraphProto)>,
}

/// Reads attributes. `formal` has the attributes of the enclosing function's call, which others may refer to.
///
/// # Errors
/// Every attribute that is malformed, given twice, or of a type that Lancet does not have.
pub(crate) fn read<'a>(
    protos: &'a [AttributeProto],
    formal: Option<&Attributes>,
    reader: &mut TensorReader<'_>,
    max_dense_bytes: u64,
) -> Result<NodeAttributes<'a>, Faults> {
    let mut out = NodeAttributes::default();
    let mut faults = Vec::new();
    for proto in protos {
        let name = proto.name.as_str();
        let twice = out.values.get(name).is_some() || out.graphs.iter().any(|(n, _)| *n == name);
        let result = if twice {
            Err(Fault::invalid(format!("attribute `{name}` is given twice")))
        } else if !proto.ref_attr_name.is_empty() {
            match formal {
                None => Err(Fault::invalid(format!(
                    "attribute `{name}` refers to a function's attribute outside of a function"
                ))),
                // A reference to an attribute that the call does not give leaves this one unset.
                Some(formal) => Ok(formal.get(&proto.ref_attr_name).cloned()),
            }
        } else if proto.type_.enum_value() == Ok(AttributeType::GRAPH) {
            match proto.g.as_ref() {
                Some(graph) => {
                    out.graphs.push((name, graph));
                    Ok(None)
                }
                None => Err(Fault::invalid(format!("attribute `{name}` has no graph"))),
            }
        } else {
            value(proto, reader, max_dense_bytes).map(Some)
        };
        match result {
            Ok(Some(v)) => out.values.set(name, v),
            Ok(None) => {}
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() {
        Ok(out)
    } else {
        Err(Faults(faults))
    }
}

fn value(
    proto: &AttributeProto,
    reader: &mut TensorReader<'_>,
    max_dense_bytes: u64,
) -> Result<Attribute, Fault> {
    let name = &proto.name;
    let invalid = |why: &str| Fault::invalid(format!("attribute `{name}` {why}"));
    let unsupported =
        |ty: &str| Fault::Attribute(name.clone(), format!("of type {ty} is not supported"));
    let text = |bytes: &[u8]| {
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|_| invalid("is not UTF-8 text"))
    };
    let ty = proto
        .type_
        .enum_value()
        .map_err(|code| invalid(&format!("is of the unknown type {code}")))?;
    Ok(match ty {
        AttributeType::INT => Attribute::Int(proto.i),
        AttributeType::FLOAT => Attribute::Float(proto.f),
        AttributeType::STRING => Attribute::Str(text(&proto.s)?),
        AttributeType::INTS => Attribute::Ints(proto.ints.clone()),
        AttributeType::FLOATS => Attribute::Floats(proto.floats.clone()),
        AttributeType::STRINGS => Attribute::Strs(
            proto
                .strings
                .iter()
                .map(|s| text(s))
                .collect::<Result<_, _>>()?,
        ),
        AttributeType::TENSOR => {
            let mut tensor = proto
                .t
                .as_ref()
                .cloned()
                .ok_or_else(|| invalid("has no tensor"))?;
            Attribute::Tensor(Arc::new(reader.read(&mut tensor)?))
        }
        AttributeType::SPARSE_TENSOR => {
            let mut tensor = proto
                .sparse_tensor
                .as_ref()
                .cloned()
                .ok_or_else(|| invalid("has no tensor"))?;
            Attribute::Tensor(Arc::new(sparse::read_dense(
                reader,
                &mut tensor,
                max_dense_bytes,
            )?))
        }
        AttributeType::UNDEFINED => return Err(invalid("has no type")),
        AttributeType::GRAPH => return Err(unsupported("graph")),
        AttributeType::GRAPHS => return Err(unsupported("graphs")),
        AttributeType::TENSORS => return Err(unsupported("tensors")),
        AttributeType::SPARSE_TENSORS => return Err(unsupported("sparse tensors")),
        AttributeType::TYPE_PROTO => return Err(unsupported("type")),
        AttributeType::TYPE_PROTOS => return Err(unsupported("types")),
    })
}

/// The name of an element type that an attribute gives as ONNX's number.
pub(crate) fn dtype_name(code: i64) -> Result<&'static str, Fault> {
    super::tensor::dtype(code).map(DType::name)
}
