//! Which step a node becomes.

use lancet_artifact::{Activation, Attribute as PlanAttribute, AttributeTensor, Binary, StepKind};
use lancet_ir::{Graph, Layout, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use super::weights::little_endian;
use super::{LowerError, unsupported};

/// What lowering does with a node.
pub(super) enum Selected {
    /// A graph input.
    Input,
    /// A constant: placed when something reads it.
    Const,
    /// A packed weight: packed when a linear layer reads it.
    Pack,
    /// One step on these operands.
    Step {
        kind: StepKind,
        operands: Vec<Option<Value>>,
    },
    /// A linear layer on a packed weight; operands are x, bias, residual.
    Linear {
        weight: Value,
        activation: Activation,
        operands: Vec<Option<Value>>,
    },
}

/// Selects by operation and layouts alone: a step of token panels where the result is in panels, else a portable one.
pub(super) fn select(graph: &Graph, node: NodeId) -> Result<Selected, LowerError> {
    let operands = graph.operands(node);
    let step = |kind| {
        Ok(Selected::Step {
            kind,
            operands: operands.clone(),
        })
    };
    let in_panels = graph.ty(Value { node, result: 0 }).layout == Layout::Panels;
    match graph.op(node) {
        Op::Input(_) => Ok(Selected::Input),
        Op::Const(_) => Ok(Selected::Const),
        Op::Dims(_) => {
            let dims = graph
                .elements(Value { node, result: 0 })
                .unwrap_or_default();
            let symbols = graph
                .symbols()
                .enumerate()
                .map(|(i, s)| (s.name().to_owned(), i as u32))
                .collect();
            step(StepKind::Dims(
                dims.iter().map(|d| super::plan_dim(d, &symbols)).collect(),
            ))
        }
        Op::View(_) => step(StepKind::View),
        Op::Broadcast(_) => step(StepKind::Broadcast),
        Op::Convert(Layout::Panels) => step(StepKind::ToPanels),
        Op::Convert(Layout::RowMajor) => step(StepKind::FromPanels),
        Op::Convert(Layout::Packed(_)) => Ok(Selected::Pack),
        Op::Apply(op, attributes) if in_panels => panels(graph, node, *op, attributes, operands),
        Op::Apply(op, attributes) => {
            if let Some(v) = operands
                .iter()
                .flatten()
                .find(|v| graph.ty(**v).layout != Layout::RowMajor)
            {
                let message = format!("takes row-major operands, found {}", graph.ty(*v));
                return Err(unsupported(graph, node, &message));
            }
            if let Some(kind) = row_major(graph, node, *op, attributes) {
                return step(kind);
            }
            step(StepKind::Portable {
                operator: op.schema().text.to_owned(),
                attributes: plan_attributes(attributes),
            })
        }
    }
}

/// The step of an operator that has a kernel for row-major operands.
fn row_major(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<StepKind> {
    let operands = graph.operands(node);
    let fits = |v: &Option<Value>| {
        v.is_some_and(|v| graph.ty(v).dtype == DType::F32 && 2 <= graph.ty(v).rank())
    };
    if !operands.iter().all(fits) {
        return None;
    }
    let rank = graph.ty(Value { node, result: 0 }).rank() as i64;
    match op {
        Operator::MatMul => Some(StepKind::MatMul),
        Operator::Softmax => {
            let axis = attributes.int_or("axis", -1);
            (axis == -1 || axis == rank - 1).then_some(StepKind::Softmax)
        }
        _ => None,
    }
}

/// The step of an operator whose result is in token panels.
fn panels(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
    operands: Vec<Option<Value>>,
) -> Result<Selected, LowerError> {
    let kind = match op {
        Operator::Linear => {
            let [Some(x), Some(weight), rest @ ..] = operands.as_slice() else {
                return Err(unsupported(graph, node, "lacks its input or its weight"));
            };
            let text = attributes.str("activation").unwrap_or("none");
            let Ok(activation) = text.parse::<Activation>() else {
                return Err(unsupported(
                    graph,
                    node,
                    &format!("has no kernel for activation `{text}`"),
                ));
            };
            let operands = std::iter::once(Some(*x))
                .chain(rest.iter().copied())
                .collect();
            return Ok(Selected::Linear {
                weight: *weight,
                activation,
                operands,
            });
        }
        Operator::LayerNormalization => StepKind::LayerNorm {
            epsilon: attributes.float_or("epsilon", 1e-5),
        },
        Operator::EmbeddingLookup => StepKind::EmbeddingLookup,
        Operator::ScaledDotProductAttention => StepKind::Attention {
            num_heads: u32::try_from(attributes.int_or("num_heads", 1)).unwrap_or(0),
            scale: attributes.float_or("scale", 1.0),
            masked_value: attributes.float_or("masked_value", f32::MIN),
        },
        Operator::PackedAttention => StepKind::PackedAttention {
            num_heads: u32::try_from(attributes.int_or("num_heads", 0)).unwrap_or(0),
            scale: attributes.float_or("scale", 1.0),
            masked_value: attributes.float_or("masked_value", f32::MIN),
        },
        Operator::RMSNormalization => StepKind::RmsNorm {
            epsilon: attributes.float_or("epsilon", 1e-5),
        },
        Operator::Add => StepKind::Binary { op: Binary::Add },
        Operator::Sub => StepKind::Binary { op: Binary::Sub },
        Operator::Mul => StepKind::Binary { op: Binary::Mul },
        Operator::Div => StepKind::Binary { op: Binary::Div },
        other => match activation_of(other, attributes) {
            Some(kind) => StepKind::Activation { kind },
            None => return Err(unsupported(graph, node, "has no kernel for token panels")),
        },
    };
    Ok(Selected::Step { kind, operands })
}

/// The elementwise activation that an operator is, if kernels have it.
pub(crate) fn activation_of(op: Operator, attributes: &Attributes) -> Option<Activation> {
    let name = match op {
        Operator::Gelu if attributes.str("approximate") == Some("tanh") => "gelu_tanh",
        Operator::Gelu => "gelu",
        Operator::Relu => "relu",
        Operator::Tanh => "tanh",
        Operator::Sigmoid => "sigmoid",
        Operator::Swish => match attributes.float_or("alpha", 1.0) {
            1.0 => "silu",
            1.702 => "quick_gelu",
            _ => return None,
        },
        _ => return None,
    };
    name.parse().ok()
}

fn plan_attributes(attributes: &Attributes) -> Vec<(String, PlanAttribute)> {
    let value = |a: &Attribute| match a {
        Attribute::Int(v) => PlanAttribute::Int(*v),
        Attribute::Float(v) => PlanAttribute::Float(*v),
        Attribute::Str(v) => PlanAttribute::Str(v.clone()),
        Attribute::Ints(v) => PlanAttribute::Ints(v.clone()),
        Attribute::Floats(v) => PlanAttribute::Floats(v.clone()),
        Attribute::Strs(v) => PlanAttribute::Strs(v.clone()),
        Attribute::Tensor(t) => PlanAttribute::Tensor(attribute_tensor(t)),
    };
    attributes
        .iter()
        .map(|(name, a)| (name.to_owned(), value(a)))
        .collect()
}

fn attribute_tensor(tensor: &Tensor) -> AttributeTensor {
    AttributeTensor {
        dtype: tensor.dtype().name().to_owned(),
        shape: tensor.shape().iter().map(|&d| d as u64).collect(),
        bytes: little_endian(tensor).into_owned(),
    }
}
