//! Small models built in code.

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message as _, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::{Enum as _, MessageField};

/// A dimension of an input.
pub(crate) enum D {
    N(i64),
    S(&'static str),
    Unknown,
}

/// A model that is put together call by call.
pub(crate) struct Model(pub(crate) ModelProto);

impl Model {
    pub(crate) fn new(opset: i64) -> Model {
        let mut model = ModelProto::new();
        model.ir_version = 8;
        model.opset_import.push(opset_of("", opset));
        let mut graph = GraphProto::new();
        graph.name = "g".to_owned();
        model.graph = MessageField::some(graph);
        Model(model)
    }

    fn graph(&mut self) -> &mut GraphProto {
        self.0.graph.as_mut().expect("made by new")
    }

    pub(crate) fn import(mut self, domain: &str, version: i64) -> Model {
        self.0.opset_import.push(opset_of(domain, version));
        self
    }

    pub(crate) fn input(mut self, name: &str, ty: DataType, dims: &[D]) -> Model {
        let input = value_info(name, ty, dims);
        self.graph().input.push(input);
        self
    }

    pub(crate) fn output(mut self, name: &str) -> Model {
        let output = ValueInfoProto {
            name: name.to_owned(),
            ..Default::default()
        };
        self.graph().output.push(output);
        self
    }

    pub(crate) fn tensor(mut self, tensor: TensorProto) -> Model {
        self.graph().initializer.push(tensor);
        self
    }

    pub(crate) fn node(mut self, node: NodeProto) -> Model {
        self.graph().node.push(node);
        self
    }

    pub(crate) fn function(mut self, function: FunctionProto) -> Model {
        self.0.functions.push(function);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.write_to_bytes().expect("a complete message")
    }
}

pub(crate) fn opset_of(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: domain.to_owned(),
        version,
        ..Default::default()
    }
}

pub(crate) fn value_info(name: &str, ty: DataType, dims: &[D]) -> ValueInfoProto {
    let mut shape = TensorShapeProto::new();
    for d in dims {
        shape.dim.push(Dimension {
            value: match d {
                D::N(n) => Some(dimension::Value::DimValue(*n)),
                D::S(s) => Some(dimension::Value::DimParam((*s).to_owned())),
                D::Unknown => None,
            },
            ..Default::default()
        });
    }
    let tensor = type_proto::Tensor {
        elem_type: ty.value(),
        shape: MessageField::some(shape),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        type_: MessageField::some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A node; names in the texts are separated by spaces, and `_` is an absent one.
pub(crate) fn node(op: &str, inputs: &str, outputs: &str) -> NodeProto {
    let names = |text: &str| {
        text.split_whitespace()
            .map(|n| {
                if n == "_" {
                    String::new()
                } else {
                    n.to_owned()
                }
            })
            .collect()
    };
    NodeProto {
        op_type: op.to_owned(),
        input: names(inputs),
        output: names(outputs),
        ..Default::default()
    }
}

/// Builds on a node.
pub(crate) trait With: Sized {
    fn with(self, attribute: AttributeProto) -> Self;
    fn int(self, name: &str, value: i64) -> Self {
        self.with(AttributeProto {
            i: value,
            ..attribute(name, AttributeType::INT)
        })
    }
    fn float(self, name: &str, value: f32) -> Self {
        self.with(AttributeProto {
            f: value,
            ..attribute(name, AttributeType::FLOAT)
        })
    }
    fn text(self, name: &str, value: &str) -> Self {
        self.with(AttributeProto {
            s: value.as_bytes().to_vec(),
            ..attribute(name, AttributeType::STRING)
        })
    }
    fn ints(self, name: &str, values: &[i64]) -> Self {
        self.with(AttributeProto {
            ints: values.to_vec(),
            ..attribute(name, AttributeType::INTS)
        })
    }
    fn tensor(self, name: &str, value: TensorProto) -> Self {
        self.with(AttributeProto {
            t: MessageField::some(value),
            ..attribute(name, AttributeType::TENSOR)
        })
    }
    fn graph(self, name: &str, value: GraphProto) -> Self {
        self.with(AttributeProto {
            g: MessageField::some(value),
            ..attribute(name, AttributeType::GRAPH)
        })
    }
}

impl With for NodeProto {
    fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }
}

/// Sets the domain of a node.
pub(crate) fn in_domain(domain: &str, mut node: NodeProto) -> NodeProto {
    node.domain = domain.to_owned();
    node
}

/// Sets the name of a node.
pub(crate) fn named(name: &str, mut node: NodeProto) -> NodeProto {
    node.name = name.to_owned();
    node
}

pub(crate) fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        type_: ty.into(),
        ..Default::default()
    }
}

pub(crate) fn raw(name: &str, ty: DataType, dims: &[i64], data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: ty.value(),
        raw_data: data,
        ..Default::default()
    }
}

pub(crate) fn f32s(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    let bytes = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    raw(name, DataType::FLOAT, dims, bytes)
}

pub(crate) fn i64s(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::INT64.value(),
        int64_data: data.to_vec(),
        ..Default::default()
    }
}
