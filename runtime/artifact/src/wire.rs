//! The plans' protobuf message, by derive, and its conversion to and from [`Plan`].
//!
//! Private: nothing outside sees a message. Shapes are flat lists of integers, so that a plan of many values stays small:
//! for each dimension the number of terms, and for each term its coefficient, its degree and its symbols.

use prost::{Message, Oneof};

use crate::{
    Activation, Arithmetic, ArtifactError, AttentionParameters, Attribute, AttributeTensor, Dim,
    GeneralizedAttention, Layout, MatrixDesc, Plan, PlanError, Port, Reduction, RowBlock, Step,
    StepKind, Storage, ValueDesc, Vertical, WeightFormat,
};

#[derive(Clone, PartialEq, Message)]
struct VariantsMessage {
    #[prost(message, repeated, tag = "1")]
    variants: Vec<VariantMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct VariantMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, required, tag = "2")]
    plan: PlanMessage,
}

#[derive(Clone, PartialEq, Message)]
struct PlanMessage {
    #[prost(string, repeated, tag = "1")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    values: Vec<ValueMessage>,
    #[prost(message, repeated, tag = "3")]
    inputs: Vec<PortMessage>,
    #[prost(message, repeated, tag = "4")]
    outputs: Vec<PortMessage>,
    #[prost(message, repeated, tag = "5")]
    steps: Vec<StepMessage>,
    #[prost(message, repeated, tag = "6")]
    matrices: Vec<MatrixMessage>,
    #[prost(message, repeated, tag = "7")]
    metadata: Vec<TextMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct TextMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    text: String,
}

#[derive(Clone, PartialEq, Message)]
struct PortMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    value: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ValueMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    dtype: String,
    #[prost(sint64, repeated, tag = "3")]
    shape: Vec<i64>,
    /// 0 row-major, 1 panels.
    #[prost(uint32, tag = "4")]
    layout: u32,
    #[prost(oneof = "StorageMessage", tags = "5, 6")]
    storage: Option<StorageMessage>,
}

#[derive(Clone, PartialEq, Oneof)]
enum StorageMessage {
    #[prost(uint32, tag = "5")]
    Input(u32),
    #[prost(message, tag = "6")]
    Weights(RangeMessage),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct RangeMessage {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint64, tag = "2")]
    len: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StepMessage {
    #[prost(string, tag = "1")]
    name: String,
    /// 0 for an absent operand, otherwise the value's index plus one.
    #[prost(uint32, repeated, tag = "2")]
    inputs: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    outputs: Vec<u32>,
    #[prost(
        oneof = "KindMessage",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 40, 41, 42, 43, 44"
    )]
    kind: Option<KindMessage>,
}

#[derive(Clone, PartialEq, Oneof)]
enum KindMessage {
    #[prost(message, tag = "10")]
    Portable(PortableMessage),
    #[prost(message, tag = "11")]
    Dims(IntsMessage),
    #[prost(message, tag = "12")]
    View(EmptyMessage),
    #[prost(message, tag = "13")]
    Broadcast(EmptyMessage),
    #[prost(message, tag = "14")]
    ToPanels(EmptyMessage),
    #[prost(message, tag = "15")]
    FromPanels(EmptyMessage),
    #[prost(message, tag = "16")]
    EmbeddingLookup(EmbeddingMessage),
    #[prost(float, tag = "17")]
    LayerNorm(f32),
    #[prost(message, tag = "18")]
    Linear(LinearMessage),
    #[prost(message, tag = "19")]
    Attention(AttentionMessage),
    #[prost(float, tag = "22")]
    RmsNorm(f32),
    #[prost(message, tag = "23")]
    MatMul(EmptyMessage),
    #[prost(uint32, tag = "24")]
    Softmax(u32),
    #[prost(message, tag = "40")]
    IntegerLinear(IntegerLinearMessage),
    #[prost(message, tag = "41")]
    Vertical(VerticalMessage),
    #[prost(message, tag = "42")]
    Range(EmptyMessage),
    #[prost(message, tag = "43")]
    RangeScale(EmptyMessage),
    #[prost(message, tag = "44")]
    RangeZeroPoint(EmptyMessage),
    #[prost(message, tag = "25")]
    PackedAttention(AttentionMessage),
    #[prost(message, tag = "26")]
    Elementwise(StrsMessage),
    #[prost(message, tag = "27")]
    Reduce(ReduceMessage),
    #[prost(message, tag = "28")]
    Transpose(DimensionsMessage),
    #[prost(message, tag = "29")]
    Slice(SliceMessage),
    #[prost(uint32, tag = "30")]
    Concat(u32),
    #[prost(message, tag = "31")]
    Pad(DimensionsMessage),
    #[prost(message, tag = "32")]
    If(RegionsMessage),
    #[prost(message, tag = "33")]
    Loop(RegionsMessage),
    #[prost(message, tag = "34")]
    GeneralizedAttention(GeneralizedAttentionMessage),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct EmptyMessage {}

#[derive(Clone, PartialEq, Message)]
struct RegionsMessage {
    /// Two for a choice, one for a loop.
    #[prost(message, repeated, tag = "1")]
    plans: Vec<PlanMessage>,
    /// Of a loop.
    #[prost(uint32, tag = "2")]
    n_carried: u32,
}

#[derive(Clone, PartialEq, Message)]
struct EmbeddingMessage {
    /// One for each table, or none.
    #[prost(float, repeated, tag = "1")]
    scales: Vec<f32>,
    #[prost(sint32, repeated, tag = "2")]
    zero_points: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct PortableMessage {
    #[prost(string, tag = "1")]
    operator: String,
    #[prost(message, repeated, tag = "2")]
    attributes: Vec<AttributeMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct LinearMessage {
    #[prost(uint32, tag = "1")]
    matrix: u32,
    #[prost(string, tag = "2")]
    activation: String,
}

#[derive(Clone, PartialEq, Message)]
struct ReduceMessage {
    #[prost(string, tag = "1")]
    reduction: String,
    /// First of the dimensions, and first after them.
    #[prost(uint32, tag = "2")]
    start: u32,
    #[prost(uint32, tag = "3")]
    end: u32,
}

#[derive(Clone, PartialEq, Message)]
struct DimensionsMessage {
    #[prost(uint32, repeated, tag = "1")]
    values: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct SliceMessage {
    #[prost(uint32, repeated, tag = "1")]
    starts: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    steps: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct IntegerLinearMessage {
    #[prost(uint32, tag = "1")]
    matrix: u32,
    #[prost(message, optional, tag = "2")]
    tail: Option<VerticalMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct VerticalMessage {
    #[prost(uint32, repeated, tag = "1")]
    operands: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    ops: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct AttentionMessage {
    #[prost(uint32, tag = "1")]
    num_heads: u32,
    #[prost(float, tag = "2")]
    scale: f32,
    #[prost(float, tag = "3")]
    masked_value: f32,
    #[prost(float, repeated, tag = "4")]
    score_rounding: Vec<f32>,
    #[prost(float, repeated, tag = "5")]
    masked_score_rounding: Vec<f32>,
    #[prost(float, repeated, tag = "6")]
    probability_rounding: Vec<f32>,
    #[prost(uint64, optional, tag = "7")]
    exact_keys: Option<u64>,
    /// Name of a reduction.
    #[prost(string, optional, tag = "8")]
    over_queries: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct GeneralizedAttentionMessage {
    #[prost(uint32, tag = "1")]
    num_heads: u32,
    #[prost(string, repeated, tag = "2")]
    score: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    weight: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    probability: Vec<String>,
    /// Name of a reduction.
    #[prost(string, optional, tag = "5")]
    over_queries: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(oneof = "AttributeValue", tags = "2, 3, 4, 5, 6, 7, 8")]
    value: Option<AttributeValue>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AttributeValue {
    #[prost(sint64, tag = "2")]
    Int(i64),
    #[prost(float, tag = "3")]
    Float(f32),
    #[prost(string, tag = "4")]
    Str(String),
    #[prost(message, tag = "5")]
    Ints(IntsMessage),
    #[prost(message, tag = "6")]
    Floats(FloatsMessage),
    #[prost(message, tag = "7")]
    Strs(StrsMessage),
    #[prost(message, tag = "8")]
    Tensor(TensorMessage),
}

#[derive(Clone, PartialEq, Message)]
struct IntsMessage {
    #[prost(sint64, repeated, tag = "1")]
    values: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct FloatsMessage {
    #[prost(float, repeated, tag = "1")]
    values: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct StrsMessage {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorMessage {
    #[prost(string, tag = "1")]
    dtype: String,
    #[prost(uint64, repeated, tag = "2")]
    shape: Vec<u64>,
    #[prost(bytes = "vec", tag = "3")]
    bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct MatrixMessage {
    #[prost(string, tag = "1")]
    name: String,
    /// Name of the format, then its parameters.
    #[prost(string, tag = "2")]
    format: String,
    #[prost(uint32, repeated, tag = "3")]
    format_parameters: Vec<u32>,
    #[prost(uint32, tag = "4")]
    n: u32,
    #[prost(uint32, tag = "5")]
    k: u32,
    #[prost(uint64, tag = "6")]
    offset: u64,
    #[prost(uint64, tag = "7")]
    len: u64,
    /// Offset, length, first row, number of rows of each row block.
    #[prost(uint64, repeated, tag = "8")]
    row_blocks: Vec<u64>,
    #[prost(uint64, tag = "9")]
    nnz: u64,
    #[prost(string, tag = "10")]
    pattern: String,
    #[prost(float, tag = "11")]
    predicted_speedup: f32,
    #[prost(message, repeated, tag = "12")]
    predicted_cycles: Vec<TermMessage>,
    /// Position in `Arithmetic::ALL`.
    #[prost(uint32, tag = "13")]
    arithmetic: u32,
}

#[derive(Clone, PartialEq, Message)]
struct TermMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    cycles: f32,
}

/// Names and plans as the bytes of one protobuf message.
pub(crate) fn variants_to_bytes(variants: &[(&str, &Plan)]) -> Vec<u8> {
    let variants = (variants.iter())
        .map(|&(name, plan)| VariantMessage {
            name: name.to_owned(),
            plan: to_message(plan),
        })
        .collect();
    VariantsMessage { variants }.encode_to_vec()
}

/// What [`variants_to_bytes`] encoded. Plans are not validated.
pub(crate) fn variants_from_bytes(bytes: &[u8]) -> Result<Vec<(String, Plan)>, ArtifactError> {
    let message =
        VariantsMessage::decode(bytes).map_err(|e| ArtifactError::Decode(e.to_string()))?;
    (message.variants.into_iter())
        .map(|v| Ok((v.name, from_message(v.plan)?)))
        .collect()
}

impl Plan {
    /// The plan as the bytes of a protobuf message.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_message(self).encode_to_vec()
    }

    /// The plan that [`to_bytes`](Plan::to_bytes) encoded. The result is not validated.
    ///
    /// # Errors
    /// [`ArtifactError::Decode`] or [`ArtifactError::Plan`] if the bytes are not of a plan.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan, ArtifactError> {
        let message =
            PlanMessage::decode(bytes).map_err(|e| ArtifactError::Decode(e.to_string()))?;
        Ok(from_message(message)?)
    }
}

fn to_message(plan: &Plan) -> PlanMessage {
    let ports = |ports: &[Port]| {
        ports
            .iter()
            .map(|p| PortMessage {
                name: p.name.clone(),
                value: p.value,
            })
            .collect()
    };
    PlanMessage {
        symbols: plan.symbols.clone(),
        values: plan.values.iter().map(value_message).collect(),
        inputs: ports(&plan.inputs),
        outputs: ports(&plan.outputs),
        steps: plan.steps.iter().map(step_message).collect(),
        matrices: plan.matrices.iter().map(matrix_message).collect(),
        metadata: plan
            .metadata
            .iter()
            .map(|(name, text)| TextMessage {
                name: name.clone(),
                text: text.clone(),
            })
            .collect(),
    }
}

fn from_message(message: PlanMessage) -> Result<Plan, PlanError> {
    let ports = |ports: Vec<PortMessage>| {
        ports
            .into_iter()
            .map(|p| Port {
                name: p.name,
                value: p.value,
            })
            .collect()
    };
    Ok(Plan {
        symbols: message.symbols,
        values: numbered(message.values, value)?,
        inputs: ports(message.inputs),
        outputs: ports(message.outputs),
        steps: numbered(message.steps, step)?,
        matrices: numbered(message.matrices, matrix)?,
        metadata: message
            .metadata
            .into_iter()
            .map(|m| (m.name, m.text))
            .collect(),
    })
}

fn numbered<M, T>(
    messages: Vec<M>,
    convert: impl Fn(usize, M) -> Result<T, PlanError>,
) -> Result<Vec<T>, PlanError> {
    messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| convert(i, m))
        .collect()
}

fn value_message(value: &ValueDesc) -> ValueMessage {
    ValueMessage {
        name: value.name.clone(),
        dtype: value.dtype.clone(),
        shape: flatten_dims(&value.shape),
        layout: match value.layout {
            Layout::RowMajor => 0,
            Layout::Panels => 1,
        },
        storage: match value.storage {
            Storage::Input(i) => Some(StorageMessage::Input(i)),
            Storage::Weights { offset, len } => {
                Some(StorageMessage::Weights(RangeMessage { offset, len }))
            }
            Storage::Slot => None,
        },
    }
}

fn value(i: usize, message: ValueMessage) -> Result<ValueDesc, PlanError> {
    let error = |name: &str, m: String| PlanError::new(format!("value {i} `{name}`"), m);
    Ok(ValueDesc {
        shape: unflatten_dims(&message.shape).map_err(|m| error(&message.name, m.to_owned()))?,
        layout: match message.layout {
            0 => Layout::RowMajor,
            1 => Layout::Panels,
            other => return Err(error(&message.name, format!("unknown layout {other}"))),
        },
        storage: match message.storage {
            None => Storage::Slot,
            Some(StorageMessage::Input(i)) => Storage::Input(i),
            Some(StorageMessage::Weights(r)) => Storage::Weights {
                offset: r.offset,
                len: r.len,
            },
        },
        name: message.name,
        dtype: message.dtype,
    })
}

fn step_message(step: &Step) -> StepMessage {
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

fn step(i: usize, message: StepMessage) -> Result<Step, PlanError> {
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

fn matrix_message(matrix: &MatrixDesc) -> MatrixMessage {
    let (format, format_parameters) = match matrix.format {
        WeightFormat::Dense => ("dense", vec![]),
        WeightFormat::Unstructured => ("unstructured", vec![]),
        WeightFormat::Bsr { r, c } => ("bsr", vec![u32::from(r), u32::from(c)]),
    };
    MatrixMessage {
        name: matrix.name.clone(),
        format: format.to_owned(),
        format_parameters,
        n: matrix.n,
        k: matrix.k,
        offset: matrix.offset,
        len: matrix.len,
        row_blocks: matrix
            .row_blocks
            .iter()
            .flat_map(|b| [b.offset, b.len, u64::from(b.row0), u64::from(b.n_rows)])
            .collect(),
        nnz: matrix.nnz,
        pattern: matrix.pattern.clone(),
        predicted_speedup: matrix.predicted_speedup,
        predicted_cycles: (matrix.predicted_cycles.iter())
            .map(|(name, cycles)| TermMessage {
                name: name.clone(),
                cycles: *cycles,
            })
            .collect(),
        arithmetic: matrix.arithmetic as u32,
    }
}

fn matrix(i: usize, message: MatrixMessage) -> Result<MatrixDesc, PlanError> {
    let error = |m: String| PlanError::new(format!("matrix {i} `{}`", message.name), m);
    let format = match (
        message.format.as_str(),
        message.format_parameters.as_slice(),
    ) {
        ("dense", []) => WeightFormat::Dense,
        ("unstructured", []) => WeightFormat::Unstructured,
        ("bsr", &[r, c]) if r < 256 && c < 256 => WeightFormat::Bsr {
            r: r as u8,
            c: c as u8,
        },
        (name, parameters) => return Err(error(format!("unknown format `{name}` {parameters:?}"))),
    };
    let Some(&arithmetic) = Arithmetic::ALL.get(message.arithmetic as usize) else {
        return Err(error(format!("unknown arithmetic {}", message.arithmetic)));
    };
    if !message.row_blocks.len().is_multiple_of(4) {
        return Err(error("row blocks are not records of four".to_owned()));
    }
    let mut row_blocks = Vec::with_capacity(message.row_blocks.len() / 4);
    for record in message.row_blocks.chunks_exact(4) {
        let (Ok(row0), Ok(n_rows)) = (u32::try_from(record[2]), u32::try_from(record[3])) else {
            return Err(error(format!(
                "row block of {} rows at {}",
                record[3], record[2]
            )));
        };
        row_blocks.push(RowBlock {
            offset: record[0],
            len: record[1],
            row0,
            n_rows,
        });
    }
    Ok(MatrixDesc {
        format,
        arithmetic,
        n: message.n,
        k: message.k,
        offset: message.offset,
        len: message.len,
        row_blocks,
        nnz: message.nnz,
        pattern: message.pattern,
        predicted_speedup: message.predicted_speedup,
        predicted_cycles: (message.predicted_cycles.into_iter())
            .map(|t| (t.name, t.cycles))
            .collect(),
        name: message.name,
    })
}

fn flatten_dims(dims: &[Dim]) -> Vec<i64> {
    let mut out = Vec::new();
    for dim in dims {
        out.push(dim.terms.len() as i64);
        for (coef, symbols) in &dim.terms {
            out.push(*coef);
            out.push(symbols.len() as i64);
            out.extend(symbols.iter().map(|&s| i64::from(s)));
        }
    }
    out
}

fn unflatten_dims(flat: &[i64]) -> Result<Vec<Dim>, &'static str> {
    const MALFORMED: &str = "the shape is not a list of polynomials";
    let mut numbers = flat.iter().copied();
    let mut dims = Vec::new();
    while let Some(n_terms) = numbers.next() {
        let mut terms = Vec::new();
        for _ in 0..n_terms {
            let coef = numbers.next().ok_or(MALFORMED)?;
            let degree = numbers.next().ok_or(MALFORMED)?;
            let mut symbols = Vec::new();
            for _ in 0..degree {
                let symbol = numbers.next().ok_or(MALFORMED)?;
                symbols.push(u32::try_from(symbol).map_err(|_| MALFORMED)?);
            }
            terms.push((coef, symbols));
        }
        dims.push(Dim { terms });
    }
    Ok(dims)
}
