//! Matrix products, windows, norms, quantization, sequences and attention.

use super::*;
use Operator as O;

#[test]
fn matrices_fit() {
    check(&[
        (
            O::MatMul,
            &[],
            &["f32[b, s, 768]", "f32[768, 64]"],
            "f32[b, s, 64]",
        ),
        (
            O::MatMul,
            &[],
            &["f32[b, 12, s, 64]", "f32[b, 12, 64, t]"],
            "f32[b, 12, s, t]",
        ),
        (O::MatMul, &[], &["f32[k]", "f32[b, k, n]"], "f32[b, n]"),
        (O::MatMul, &[], &["f32[b, m, k]", "f32[k]"], "f32[b, m]"),
        (
            O::MatMul,
            &[],
            &["f32[m, 768]", "f32[3072, n]"],
            "matmul operand 1: expected f32[768, n], found f32[3072, n]",
        ),
        (
            O::MatMul,
            &[],
            &["f32[m, 768]", "f64[768, 2]"],
            "matmul operand 1: expected f32[768, 2], found f64[768, 2]",
        ),
        (
            O::Gemm,
            &[("transB", int(1))],
            &["f32[m, 8]", "f32[4, 8]", "f32[4]"],
            "f32[m, 4]",
        ),
        (
            O::Gemm,
            &[],
            &["f32[m, 8]", "f32[8, 4]", "f32[3]"],
            "gemm operand 2: expected a shape that broadcasts to [m, 4], found f32[3]",
        ),
        (
            O::Einsum,
            &[("equation", text("bsnh,btnh->bnst"))],
            &["f32[b, s, 12, 64]", "f32[b, t, 12, 64]"],
            "f32[b, 12, s, t]",
        ),
        (
            O::MatMulInteger,
            &[],
            &["u8[m, 8]", "i8[8, 4]", "u8[]"],
            "i32[m, 4]",
        ),
        (
            O::QLinearMatMul,
            &[],
            &[
                "u8[m, 8]", "f32[]", "u8[]", "i8[8, 4]", "f32[]", "i8[]", "f32[]", "u8[]",
            ],
            "u8[m, 4]",
        ),
        (
            O::Linear,
            &[],
            &["f32[b, s, 8]", "f32[4, 8]", "f32[4]", "f32[b, s, 4]"],
            "f32[b, s, 4]",
        ),
        (
            O::Linear,
            &[],
            &["f32[b, s, 8]", "f32[8, 4]"],
            "linear operand 1: expected f32[8, 8], found f32[8, 4]",
        ),
    ]);
}

#[test]
fn windows_slide() {
    let kernel = ("kernel_shape", ints(&[3]));
    check(&[
        (
            O::Conv,
            &[("pads", ints(&[1, 1]))],
            &["f32[b, 8, s]", "f32[4, 8, 3]", "f32[4]"],
            "f32[b, 4, s]",
        ),
        (
            O::Conv,
            &[("strides", ints(&[2]))],
            &["f32[b, 8, s]", "f32[4, 8, 3]"],
            "f32[b, 4, u0]",
        ),
        (
            O::Conv,
            &[("strides", ints(&[2]))],
            &["f32[b, 8, 2*s]", "f32[4, 8, 2]"],
            "f32[b, 4, s]",
        ),
        (
            O::Conv,
            &[("strides", ints(&[16, 16]))],
            &["f32[b, 3, 224, 224]", "f32[4, 3, 16, 16]"],
            "f32[b, 4, 14, 14]",
        ),
        (
            O::Conv,
            &[],
            &["f32[b, 8, s]", "f32[4, 3, 3]"],
            "conv: expected 3 channels in each of 1 groups, found 8",
        ),
        (
            O::MaxPool,
            &[
                kernel.clone(),
                ("ceil_mode", int(1)),
                ("strides", ints(&[2])),
            ],
            &["f32[1, 1, 6]"],
            "f32[1, 1, 3]",
        ),
        (
            O::AveragePool,
            &[
                ("kernel_shape", ints(&[2])),
                ("ceil_mode", int(1)),
                ("strides", ints(&[2])),
            ],
            &["f32[1, 1, 1]"],
            "f32[1, 1, 1]",
        ),
        (
            O::AveragePool,
            &[kernel],
            &["f32[b, c, s]"],
            "f32[b, c, s - 2]",
        ),
        (
            O::GlobalAveragePool,
            &[],
            &["f32[b, c, s, t]"],
            "f32[b, c, 1, 1]",
        ),
    ]);
}

#[test]
fn norms_and_quantization() {
    check(&[
        (
            O::LayerNormalization,
            &[],
            &["f32[b, s, 8]", "f32[8]", "f32[8]"],
            "f32[b, s, 8]; f32[b, s, 1]; f32[b, s, 1]",
        ),
        (
            O::LayerNormalization,
            &[],
            &["f32[b, s, 8]", "f32[4]"],
            "layer_normalization operand 1: expected a shape that broadcasts to [8], found f32[4]",
        ),
        (
            O::DynamicQuantizeLinear,
            &[],
            &["f32[b, s]"],
            "u8[b, s]; f32[]; u8[]",
        ),
        (
            O::QuantizeLinear,
            &[],
            &["f32[b, s]", "f32[]", "i8[]"],
            "i8[b, s]",
        ),
        (O::QuantizeLinear, &[], &["f32[b, s]", "f32[]"], "u8[b, s]"),
        (
            O::DequantizeLinear,
            &[("axis", int(0))],
            &["i8[4, 8]", "f32[4]", "i8[4]"],
            "f32[4, 8]",
        ),
        (
            O::DequantizeLinear,
            &[("axis", int(0))],
            &["i8[4, 8]", "f32[8]"],
            "dequantize_linear operand 1: expected f32[4], found f32[8]",
        ),
    ]);
}

#[test]
fn sequences_and_attention() {
    check(&[
        (
            O::LSTM,
            &[
                ("hidden_size", int(5)),
                ("direction", text("bidirectional")),
            ],
            &["f32[s, b, 8]", "f32[2, 20, 8]", "f32[2, 20, 5]"],
            "f32[s, 2, b, 5]; f32[2, b, 5]; f32[2, b, 5]",
        ),
        (
            O::DFT,
            &[("onesided", int(1))],
            &["f32[b, 10, 1]", "", "1"],
            "f32[b, 6, 2]",
        ),
        (
            O::Attention,
            &[("q_num_heads", int(4)), ("kv_num_heads", int(2))],
            &["f32[b, s, 32]", "f32[b, t, 16]", "f32[b, t, 8]"],
            "f32[b, s, 16]; f32[b, 2, t, 8]; f32[b, 2, t, 4]; f32[b, 4, s, t]",
        ),
        (
            O::MsAttention,
            &[("num_heads", int(4))],
            &["f32[b, s, 32]", "f32[32, 96]", "f32[96]"],
            "f32[b, s, 32]; f32[2, b, 4, s, 8]",
        ),
        (
            O::MsEmbedLayerNormalization,
            &[],
            &[
                "i32[b, s]",
                "",
                "f32[9, 8]",
                "f32[7, 8]",
                "",
                "f32[8]",
                "f32[8]",
            ],
            "f32[b, s, 8]; i32[b]",
        ),
        (
            O::MsSkipLayerNormalization,
            &[],
            &["f32[b, s, 8]", "f32[b, s, 8]", "f32[8]", "f32[8]"],
            "f32[b, s, 8]",
        ),
        (
            O::EmbeddingLookup,
            &[],
            &["i64[b, s]", "f32[9, 8]", "i64[1, s]", "f32[7, 8]"],
            "f32[b, s, 8]",
        ),
        (
            O::ScaledDotProductAttention,
            &[("num_heads", int(2)), ("scale", Attribute::Float(0.5))],
            &["f32[b, s, 8]", "f32[b, t, 8]", "f32[b, t, 6]", "bool[b, t]"],
            "f32[b, s, 6]",
        ),
        (
            O::PackedAttention,
            &[("num_heads", int(2)), ("scale", Attribute::Float(0.5))],
            &["f32[b, 8]", "f32[t, 8]", "f32[t, 6]", "i64[b]"],
            "f32[b, 6]",
        ),
        (
            O::IntegerLinear,
            &[],
            &["u8[b, s, 8]", "i8[6, 8]"],
            "i32[b, s, 6]",
        ),
        (O::TokenPacking, &[], &["bool[b, s]"], "i64[u0]; i64[b]"),
        (
            O::Elementwise,
            &[(
                "body",
                Attribute::Strs(vec!["add x0 x1".to_owned(), "less v0 0.5".to_owned()]),
            )],
            &["f32[b, 1, 8]", "f32[s, 1]"],
            "bool[b, s, 8]",
        ),
    ]);
}
