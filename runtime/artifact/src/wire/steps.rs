//! Conversion of a plan's steps to their messages and back.
//!
//! Both directions match on every kind of step. What a message says is converted, not validated.

use super::messages::{
    AttentionMessage, AttributeMessage, AttributeValue, DimensionsMessage, EmbeddingMessage,
    EmptyMessage, FloatsMessage, GeneralizedAttentionMessage, IntegerLinearMessage, IntsMessage,
    KindMessage, LinearMessage, PlanMessage, PortableMessage, ReduceMessage, RegionsMessage,
    SliceMessage, StepMessage, StrsMessage, TensorMessage, VerticalMessage,
};
use super::{flatten_dims, from_message, to_message, unflatten_dims};
use crate::{
    Activation, AttentionParameters, Attribute, AttributeTensor, GeneralizedAttention, Plan,
    PlanError, Reduction, Step, StepKind, Vertical,
};

pub(super) fn step_message(step: &Step) -> StepMessage {
    let empty = EmptyMessage {};
    StepMessage {
        name: step.name.clone(),
        inputs: step
            .inputs
            .iter()
            .map(|v| v.map_or(0, |v| v.saturating_add(1)))
            .collect(),
        outputs: step.outputs.clone(),
        kind: Some(match &step.kind {
            StepKind::Portable {
                operator,
                attributes,
            } => KindMessage::Portable(PortableMessage {
                operator: operator.clone(),
                attributes: attributes
                    .iter()
                    .map(|(name, value)| AttributeMessage {
                        name: name.clone(),
                        value: Some(attribute_message(value)),
                    })
                    .collect(),
            }),
            StepKind::Dims(dims) => KindMessage::Dims(IntsMessage {
                values: flatten_dims(dims),
            }),
            StepKind::View => KindMessage::View(empty),
            StepKind::Broadcast => KindMessage::Broadcast(empty),
            StepKind::ToPanels => KindMessage::ToPanels(empty),
            StepKind::FromPanels => KindMessage::FromPanels(empty),
            StepKind::EmbeddingLookup { quantization } => {
                let (scales, zero_points) = quantization.iter().copied().unzip();
                KindMessage::EmbeddingLookup(EmbeddingMessage {
                    scales,
                    zero_points,
                })
            }
            StepKind::LayerNorm { epsilon } => KindMessage::LayerNorm(*epsilon),
            StepKind::RmsNorm { epsilon } => KindMessage::RmsNorm(*epsilon),
            StepKind::Elementwise { body } => KindMessage::Elementwise(StrsMessage {
                values: body.clone(),
            }),
            StepKind::MatMul => KindMessage::MatMul(empty),
            StepKind::Quantize => KindMessage::Quantize(empty),
            StepKind::Softmax { axis } => KindMessage::Softmax(*axis),
            StepKind::Reduce { reduction, axes } => KindMessage::Reduce(ReduceMessage {
                reduction: reduction.name().to_owned(),
                start: axes.start,
                end: axes.end,
            }),
            StepKind::Transpose { permutation } => KindMessage::Transpose(DimensionsMessage {
                values: permutation.clone(),
            }),
            StepKind::Slice { starts, steps } => KindMessage::Slice(SliceMessage {
                starts: starts.clone(),
                steps: steps.clone(),
            }),
            StepKind::Concat { axis } => KindMessage::Concat(*axis),
            StepKind::Pad { before } => KindMessage::Pad(DimensionsMessage {
                values: before.clone(),
            }),
            StepKind::If { then, otherwise } => KindMessage::If(RegionsMessage {
                plans: vec![to_message(then), to_message(otherwise)],
                n_carried: 0,
            }),
            StepKind::Loop { body, n_carried } => KindMessage::Loop(RegionsMessage {
                plans: vec![to_message(body)],
                n_carried: *n_carried,
            }),
            StepKind::IntegerLinear { matrix, tail } => {
                KindMessage::IntegerLinear(IntegerLinearMessage {
                    matrix: *matrix,
                    tail: tail.as_ref().map(vertical_message),
                })
            }
            StepKind::Vertical(v) => KindMessage::Vertical(vertical_message(v)),
            StepKind::Range => KindMessage::Range(empty),
            StepKind::RangeScale => KindMessage::RangeScale(empty),
            StepKind::RangeZeroPoint => KindMessage::RangeZeroPoint(empty),
            StepKind::Linear { matrix, activation } => KindMessage::Linear(LinearMessage {
                matrix: *matrix,
                activation: activation.name().to_owned(),
            }),
            StepKind::Attention(p) => KindMessage::Attention(attention_message(p)),
            StepKind::GeneralizedAttention(p) => {
                let [score, weight, probability] = p.stages.clone();
                KindMessage::GeneralizedAttention(GeneralizedAttentionMessage {
                    num_heads: p.num_heads,
                    score,
                    weight,
                    probability,
                    over_queries: p.over_queries.map(|r| r.name().to_owned()),
                })
            }
            StepKind::PackedAttention(p) => KindMessage::PackedAttention(attention_message(p)),
        }),
    }
}

pub(super) fn step(i: usize, message: StepMessage) -> Result<Step, PlanError> {
    let error = |m: String| PlanError::new(format!("step {i} `{}`", message.name), m);
    let activation = |name: &str| name.parse::<Activation>().map_err(|e| error(e.to_string()));
    let kind = match message.kind {
        None => return Err(error("unknown kind of step".to_owned())),
        Some(KindMessage::Portable(m)) => StepKind::Portable {
            operator: m.operator,
            attributes: m
                .attributes
                .into_iter()
                .map(|a| match a.value {
                    Some(v) => Ok((a.name, attribute(v))),
                    None => Err(error(format!(
                        "attribute `{}` is of an unknown type",
                        a.name
                    ))),
                })
                .collect::<Result<_, _>>()?,
        },
        Some(KindMessage::Dims(m)) => {
            StepKind::Dims(unflatten_dims(&m.values).map_err(|m| error(m.to_owned()))?)
        }
        Some(KindMessage::View(_)) => StepKind::View,
        Some(KindMessage::Broadcast(_)) => StepKind::Broadcast,
        Some(KindMessage::ToPanels(_)) => StepKind::ToPanels,
        Some(KindMessage::FromPanels(_)) => StepKind::FromPanels,
        Some(KindMessage::EmbeddingLookup(m)) => {
            if m.scales.len() != m.zero_points.len() {
                return Err(error(
                    "embedding_lookup: scales without zero points".to_owned(),
                ));
            }
            StepKind::EmbeddingLookup {
                quantization: m.scales.into_iter().zip(m.zero_points).collect(),
            }
        }
        Some(KindMessage::LayerNorm(epsilon)) => StepKind::LayerNorm { epsilon },
        Some(KindMessage::RmsNorm(epsilon)) => StepKind::RmsNorm { epsilon },
        Some(KindMessage::Elementwise(m)) => StepKind::Elementwise { body: m.values },
        Some(KindMessage::MatMul(_)) => StepKind::MatMul,
        Some(KindMessage::Quantize(_)) => StepKind::Quantize,
        Some(KindMessage::Softmax(axis)) => StepKind::Softmax { axis },
        Some(KindMessage::Reduce(ref m)) => StepKind::Reduce {
            reduction: (m.reduction.parse::<Reduction>()).map_err(|e| error(e.to_string()))?,
            axes: m.start..m.end,
        },
        Some(KindMessage::Transpose(m)) => StepKind::Transpose {
            permutation: m.values,
        },
        Some(KindMessage::Slice(m)) => StepKind::Slice {
            starts: m.starts,
            steps: m.steps,
        },
        Some(KindMessage::Concat(axis)) => StepKind::Concat { axis },
        Some(KindMessage::Pad(m)) => StepKind::Pad { before: m.values },
        Some(KindMessage::If(m)) => {
            let [then, otherwise] = regions(m.plans).map_err(error)?;
            StepKind::If { then, otherwise }
        }
        Some(KindMessage::Loop(m)) => {
            let [body] = regions(m.plans).map_err(error)?;
            StepKind::Loop {
                body,
                n_carried: m.n_carried,
            }
        }
        Some(KindMessage::IntegerLinear(ref m)) => StepKind::IntegerLinear {
            matrix: m.matrix,
            tail: m.tail.as_ref().map(vertical).transpose().map_err(error)?,
        },
        Some(KindMessage::Vertical(ref m)) => StepKind::Vertical(vertical(m).map_err(error)?),
        Some(KindMessage::Range(_)) => StepKind::Range,
        Some(KindMessage::RangeScale(_)) => StepKind::RangeScale,
        Some(KindMessage::RangeZeroPoint(_)) => StepKind::RangeZeroPoint,
        Some(KindMessage::Linear(ref m)) => StepKind::Linear {
            matrix: m.matrix,
            activation: activation(&m.activation)?,
        },
        Some(KindMessage::Attention(ref m)) => StepKind::Attention(attention(m).map_err(error)?),
        Some(KindMessage::GeneralizedAttention(m)) => {
            StepKind::GeneralizedAttention(GeneralizedAttention {
                num_heads: m.num_heads,
                over_queries: reduction(m.over_queries.as_deref()).map_err(error)?,
                stages: [m.score, m.weight, m.probability],
            })
        }
        Some(KindMessage::PackedAttention(ref m)) => {
            StepKind::PackedAttention(attention(m).map_err(error)?)
        }
    };
    Ok(Step {
        kind,
        inputs: message.inputs.iter().map(|&v| v.checked_sub(1)).collect(),
        outputs: message.outputs,
        name: message.name,
    })
}

/// The plans that a step runs.
fn regions<const N: usize>(plans: Vec<PlanMessage>) -> Result<[Box<Plan>; N], String> {
    let plans = plans.into_iter().map(|m| from_message(m).map(Box::new));
    let plans: Vec<_> = plans.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    <[Box<Plan>; N]>::try_from(plans).map_err(|found| format!("runs {} plans", found.len()))
}

fn attention_message(parameters: &AttentionParameters) -> AttentionMessage {
    let [scores, masked, probabilities] = (parameters.rounding)
        .map(|rounding| rounding.map_or_else(Vec::new, |numbers| numbers.to_vec()));
    AttentionMessage {
        num_heads: parameters.num_heads,
        scale: parameters.scale,
        masked_value: parameters.masked_value,
        score_rounding: scores,
        masked_score_rounding: masked,
        probability_rounding: probabilities,
        exact_keys: parameters.exact_keys,
        over_queries: parameters.over_queries.map(|r| r.name().to_owned()),
    }
}

fn attention(message: &AttentionMessage) -> Result<AttentionParameters, String> {
    let rounding = |numbers: &[f32]| match *numbers {
        [] => Ok(None),
        [scale, least, greatest] => Ok(Some([scale, least, greatest])),
        _ => Err(format!("a rounding of {} numbers", numbers.len())),
    };
    Ok(AttentionParameters {
        num_heads: message.num_heads,
        scale: message.scale,
        masked_value: message.masked_value,
        rounding: [
            rounding(&message.score_rounding)?,
            rounding(&message.masked_score_rounding)?,
            rounding(&message.probability_rounding)?,
        ],
        exact_keys: message.exact_keys,
        over_queries: reduction(message.over_queries.as_deref())?,
    })
}

fn reduction(name: Option<&str>) -> Result<Option<Reduction>, String> {
    let parsed = name.map(str::parse::<Reduction>);
    parsed.transpose().map_err(|e| e.to_string())
}

fn vertical_message(vertical: &Vertical) -> VerticalMessage {
    let (operands, ops) = vertical.to_numbers();
    VerticalMessage { operands, ops }
}

fn vertical(message: &VerticalMessage) -> Result<Vertical, String> {
    Vertical::of_numbers(&message.operands, &message.ops)
        .ok_or_else(|| "unknown elementwise operation".to_owned())
}

fn attribute_message(value: &Attribute) -> AttributeValue {
    match value {
        Attribute::Int(v) => AttributeValue::Int(*v),
        Attribute::Float(v) => AttributeValue::Float(*v),
        Attribute::Str(v) => AttributeValue::Str(v.clone()),
        Attribute::Ints(v) => AttributeValue::Ints(IntsMessage { values: v.clone() }),
        Attribute::Floats(v) => AttributeValue::Floats(FloatsMessage { values: v.clone() }),
        Attribute::Strs(v) => AttributeValue::Strs(StrsMessage { values: v.clone() }),
        Attribute::Tensor(t) => AttributeValue::Tensor(TensorMessage {
            dtype: t.dtype.clone(),
            shape: t.shape.clone(),
            bytes: t.bytes.clone(),
        }),
    }
}

fn attribute(value: AttributeValue) -> Attribute {
    match value {
        AttributeValue::Int(v) => Attribute::Int(v),
        AttributeValue::Float(v) => Attribute::Float(v),
        AttributeValue::Str(v) => Attribute::Str(v),
        AttributeValue::Ints(v) => Attribute::Ints(v.values),
        AttributeValue::Floats(v) => Attribute::Floats(v.values),
        AttributeValue::Strs(v) => Attribute::Strs(v.values),
        AttributeValue::Tensor(t) => Attribute::Tensor(AttributeTensor {
            dtype: t.dtype,
            shape: t.shape,
            bytes: t.bytes,
        }),
    }
}
