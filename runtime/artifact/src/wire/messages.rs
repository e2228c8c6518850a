//! The protobuf messages of plans, by derive.
//!
//! Shapes are flat lists of integers, so that a plan of many values stays small:
//! for each dimension the number of terms, and for each term its coefficient, its degree and its symbols.

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct VariantsMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) variants: Vec<VariantMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VariantMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, required, tag = "2")]
    pub(super) plan: PlanMessage,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlanMessage {
    #[prost(string, repeated, tag = "1")]
    pub(super) symbols: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub(super) values: Vec<ValueMessage>,
    #[prost(message, repeated, tag = "3")]
    pub(super) inputs: Vec<PortMessage>,
    #[prost(message, repeated, tag = "4")]
    pub(super) outputs: Vec<PortMessage>,
    #[prost(message, repeated, tag = "5")]
    pub(super) steps: Vec<StepMessage>,
    #[prost(message, repeated, tag = "6")]
    pub(super) matrices: Vec<MatrixMessage>,
    #[prost(message, repeated, tag = "7")]
    pub(super) metadata: Vec<TextMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TextMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) text: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PortMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint32, tag = "2")]
    pub(super) value: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) dtype: String,
    #[prost(sint64, repeated, tag = "3")]
    pub(super) shape: Vec<i64>,
    /// 0 row-major, 1 panels.
    #[prost(uint32, tag = "4")]
    pub(super) layout: u32,
    #[prost(oneof = "StorageMessage", tags = "5, 6")]
    pub(super) storage: Option<StorageMessage>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum StorageMessage {
    #[prost(uint32, tag = "5")]
    Input(u32),
    #[prost(message, tag = "6")]
    Weights(RangeMessage),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct RangeMessage {
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
    #[prost(uint64, tag = "2")]
    pub(super) len: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StepMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// 0 for an absent operand, otherwise the value's index plus one.
    #[prost(uint32, repeated, tag = "2")]
    pub(super) inputs: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) outputs: Vec<u32>,
    #[prost(
        oneof = "KindMessage",
        tags = "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 40, 41, 42, 43, 44"
    )]
    pub(super) kind: Option<KindMessage>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum KindMessage {
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
    #[prost(message, tag = "35")]
    Quantize(EmptyMessage),
    #[prost(message, tag = "34")]
    GeneralizedAttention(GeneralizedAttentionMessage),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct EmptyMessage {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegionsMessage {
    /// Two for a choice, one for a loop.
    #[prost(message, repeated, tag = "1")]
    pub(super) plans: Vec<PlanMessage>,
    /// Of a loop.
    #[prost(uint32, tag = "2")]
    pub(super) n_carried: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EmbeddingMessage {
    /// One for each table, or none.
    #[prost(float, repeated, tag = "1")]
    pub(super) scales: Vec<f32>,
    #[prost(sint32, repeated, tag = "2")]
    pub(super) zero_points: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PortableMessage {
    #[prost(string, tag = "1")]
    pub(super) operator: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) attributes: Vec<AttributeMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct LinearMessage {
    #[prost(uint32, tag = "1")]
    pub(super) matrix: u32,
    #[prost(string, tag = "2")]
    pub(super) activation: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ReduceMessage {
    #[prost(string, tag = "1")]
    pub(super) reduction: String,
    /// First of the dimensions, and first after them.
    #[prost(uint32, tag = "2")]
    pub(super) start: u32,
    #[prost(uint32, tag = "3")]
    pub(super) end: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DimensionsMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) values: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SliceMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) starts: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) steps: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct IntegerLinearMessage {
    #[prost(uint32, tag = "1")]
    pub(super) matrix: u32,
    #[prost(message, optional, tag = "2")]
    pub(super) tail: Option<VerticalMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VerticalMessage {
    #[prost(uint32, repeated, tag = "1")]
    pub(super) operands: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub(super) ops: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttentionMessage {
    #[prost(uint32, tag = "1")]
    pub(super) num_heads: u32,
    #[prost(float, tag = "2")]
    pub(super) scale: f32,
    #[prost(float, tag = "3")]
    pub(super) masked_value: f32,
    #[prost(float, repeated, tag = "4")]
    pub(super) score_rounding: Vec<f32>,
    #[prost(float, repeated, tag = "5")]
    pub(super) masked_score_rounding: Vec<f32>,
    #[prost(float, repeated, tag = "6")]
    pub(super) probability_rounding: Vec<f32>,
    #[prost(uint64, optional, tag = "7")]
    pub(super) exact_keys: Option<u64>,
    /// Name of a reduction.
    #[prost(string, optional, tag = "8")]
    pub(super) over_queries: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct GeneralizedAttentionMessage {
    #[prost(uint32, tag = "1")]
    pub(super) num_heads: u32,
    #[prost(string, repeated, tag = "2")]
    pub(super) score: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub(super) weight: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(super) probability: Vec<String>,
    /// Name of a reduction.
    #[prost(string, optional, tag = "5")]
    pub(super) over_queries: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AttributeMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(oneof = "AttributeValue", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub(super) value: Option<AttributeValue>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AttributeValue {
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
pub(super) struct IntsMessage {
    #[prost(sint64, repeated, tag = "1")]
    pub(super) values: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FloatsMessage {
    #[prost(float, repeated, tag = "1")]
    pub(super) values: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StrsMessage {
    #[prost(string, repeated, tag = "1")]
    pub(super) values: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorMessage {
    #[prost(string, tag = "1")]
    pub(super) dtype: String,
    #[prost(uint64, repeated, tag = "2")]
    pub(super) shape: Vec<u64>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MatrixMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Name of the format, then its parameters.
    #[prost(string, tag = "2")]
    pub(super) format: String,
    #[prost(uint32, repeated, tag = "3")]
    pub(super) format_parameters: Vec<u32>,
    #[prost(uint32, tag = "4")]
    pub(super) n: u32,
    #[prost(uint32, tag = "5")]
    pub(super) k: u32,
    #[prost(uint64, tag = "6")]
    pub(super) offset: u64,
    #[prost(uint64, tag = "7")]
    pub(super) len: u64,
    /// Offset, length, first row, number of rows of each row block.
    #[prost(uint64, repeated, tag = "8")]
    pub(super) row_blocks: Vec<u64>,
    #[prost(uint64, tag = "9")]
    pub(super) nnz: u64,
    #[prost(string, tag = "10")]
    pub(super) pattern: String,
    #[prost(float, tag = "11")]
    pub(super) predicted_speedup: f32,
    #[prost(message, repeated, tag = "12")]
    pub(super) predicted_cycles: Vec<TermMessage>,
    /// Position in `Arithmetic::ALL`.
    #[prost(uint32, tag = "13")]
    pub(super) arithmetic: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TermMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(float, tag = "2")]
    pub(super) cycles: f32,
}
