//! Random operands and attributes for each operator, mostly such as it accepts.

use std::sync::Arc;

use lancet_ops::{Attribute, DType, Operator, Tensor};

use crate::case::*;
use crate::layers::*;
use crate::places::*;
use crate::products::*;
use crate::random::Random;

/// A case of any operator.
pub(crate) fn case(r: &mut Random, op: Operator) -> Case {
    use Operator as O;
    match op {
        O::Acos
        | O::Acosh
        | O::Asin
        | O::Asinh
        | O::Atan
        | O::Atanh
        | O::Ceil
        | O::Cos
        | O::Cosh
        | O::Erf
        | O::Exp
        | O::Floor
        | O::Log
        | O::Reciprocal
        | O::Round
        | O::Sigmoid
        | O::Sin
        | O::Sinh
        | O::Softplus
        | O::Softsign
        | O::Sqrt
        | O::Tan
        | O::Tanh
        | O::HardSwish
        | O::Mish
        | O::LeakyRelu
        | O::Elu
        | O::Celu
        | O::ThresholdedRelu
        | O::Swish
        | O::Selu
        | O::HardSigmoid
        | O::Gelu
        | O::MsGelu
        | O::MsQuickGelu
        | O::IsNaN
        | O::IsInf => unary(r, &FLOATS),
        O::Abs | O::Neg | O::Sign | O::Relu => unary(r, &NUMBERS),
        O::Not => unary(r, &[DType::Bool]),
        O::BitwiseNot => unary(r, &INTEGERS),
        O::Identity | O::Size => unary(r, &ANY),
        O::NonZero => unary(r, &ANY),
        O::Shape => {
            let (start, end) = (r.below(9) as i64 - 4, r.below(9) as i64 - 4);
            unary(r, &ANY).maybe(r, |c| c.int("start", start).int("end", end))
        }
        O::Cast => {
            let to = r.pick(&ANY).name();
            unary(r, &ANY).str("to", to)
        }
        O::CastLike => {
            let mut case = unary(r, &ANY);
            case.operands.extend(unary(r, &ANY).operands);
            case
        }
        O::Add
        | O::Sub
        | O::Mul
        | O::Div
        | O::Pow
        | O::Equal
        | O::Less
        | O::LessOrEqual
        | O::Greater
        | O::GreaterOrEqual => binary(r, &NUMBERS).sizes(),
        O::And | O::Or | O::Xor => binary(r, &[DType::Bool]),
        O::BitwiseAnd | O::BitwiseOr | O::BitwiseXor => binary(r, &INTEGERS),
        O::Mod => {
            let floats = r.chance(30);
            let case = binary(r, if floats { &FLOATS } else { &INTEGERS });
            case.int("fmod", floats.into())
        }
        O::BitShift => {
            let direction = *r.pick(&["LEFT", "RIGHT"]);
            binary(r, &[DType::U8, DType::U32]).str("direction", direction)
        }
        O::PRelu => {
            let shape = r.shape(0, 3);
            let slope = r.narrowed(&shape);
            Case::new(vec![f32s(r, &shape), f32s(r, &slope)])
        }
        O::Min | O::Max => variadic(r, &NUMBERS).sizes(),
        O::AtLeast | O::AtMost => binary(r, &NUMBERS),
        O::Sum | O::Mean => variadic(r, &FLOATS),
        O::Where => where_case(r),
        O::Clip => clip(r),
        O::Dropout => {
            let n = 1 + r.below(2);
            unary(r, &FLOATS).results(n)
        }
        O::Reshape => reshape(r),
        O::Flatten => {
            let shape = r.shape(1, 4);
            let axis = r.below(2 * shape.len() + 1) as i64 - shape.len() as i64;
            Case::new(vec![f32s(r, &shape)]).int("axis", axis)
        }
        O::Squeeze => squeeze(r),
        O::Unsqueeze => {
            let (shape, n) = (r.shape(0, 2), 1 + r.below(2));
            let mut axes = r.axes(shape.len() + n, n);
            axes.truncate(n);
            Case::new(vec![r.tensor(DType::I64, &shape), i64s(&axes)]).lengths()
        }
        O::Expand => {
            let shape = r.shape(0, 3);
            let (from, to) = (r.narrowed(&shape), r.narrowed(&shape));
            Case::new(vec![r.tensor(DType::I64, &from), sizes(&to)]).sizes()
        }
        O::Tile => {
            let shape = r.shape(0, 3);
            let repeats = r.integers(&[shape.len()], 0, 3);
            Case::new(vec![r.tensor(DType::I64, &shape), repeats]).sizes()
        }
        O::Resize => {
            let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
            let mode = *r.pick(&["nearest", "linear", "cubic"]);
            let mut case = Case::new(vec![f32s(r, &shape), r.integers(&[shape.len()], 0, 4)])
                .str("mode", mode)
                .sizes();
            case.operands.splice(1..1, [None, None]);
            case
        }
        O::Transpose => transpose(r),
        O::Concat => concat(r),
        O::Split => split(r),
        O::Slice => slice(r),
        O::Gather => gather(r),
        O::GatherElements | O::ScatterElements => {
            let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
            let of: Vec<usize> = shape.iter().map(|&d| 1 + r.below(d)).collect();
            let axis = r.axis(shape.len());
            let n = shape[axis.rem_euclid(shape.len() as i64) as usize];
            let indices = places(r, &of, n);
            let mut operands = vec![f32s(r, &shape), indices];
            if op == O::ScatterElements {
                operands.push(f32s(r, &of));
                return Case::new(operands)
                    .int("axis", axis)
                    .str("reduction", "add");
            }
            Case::new(operands).int("axis", axis)
        }
        O::GatherND => gather_nd(r),
        O::ScatterND => scatter_nd(r),
        O::Pad => pad(r),
        O::Range => {
            let dtype = *r.pick(&[DType::I64, DType::I32, DType::F32]);
            Case::new((0..3).map(|_| r.tensor(dtype, &[])).collect())
        }
        O::ConstantOfShape => {
            let rank = r.below(4);
            let fill = Arc::new(Tensor::new(vec![1], vec![7i64]));
            let case = Case::new(vec![r.integers(&[rank], 0, 3)]).sizes();
            case.maybe(r, |c| c.set("value", Attribute::Tensor(fill)))
        }
        O::EyeLike => {
            let shape = r.shape(2, 2);
            Case::new(vec![f32s(r, &shape)]).maybe(r, |c| c.str("dtype", "i64"))
        }
        O::Trilu => {
            let shape = r.shape(2, 4);
            Case::new(vec![f32s(r, &shape), Tensor::scalar(1i64)]).without(r, 1)
        }
        O::OneHot => one_hot(r),
        O::TopK => top_k(r),
        O::CumSum => {
            let shape = r.shape(1, 3);
            let axis = r.axis(shape.len());
            Case::new(vec![f32s(r, &shape), Tensor::scalar(axis)])
        }
        O::Compress => compress(r),
        O::DepthToSpace => {
            let x = [r.positive(), 4 * r.positive(), r.positive(), r.positive()];
            Case::new(vec![f32s(r, &x)]).int("blocksize", 2)
        }
        O::SpaceToDepth => space_to_depth(r),
        O::ReverseSequence => reverse_sequence(r),
        O::ReduceSum
        | O::ReduceMean
        | O::ReduceMax
        | O::ReduceMin
        | O::ReduceProd
        | O::ReduceL1
        | O::ReduceL2
        | O::ReduceSumSquare
        | O::ReduceLogSum
        | O::ReduceLogSumExp => reduce(r),
        O::ArgMax | O::ArgMin => {
            let keep = r.below(2) as i64;
            along_axis(r, &NUMBERS).int("keepdims", keep)
        }
        O::MatMul => {
            let dtype = *r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64]);
            product(r, [dtype; 2])
        }
        O::Gemm | O::MsFusedGemm => gemm(r),
        O::MsFusedMatMul => ms_fused_matmul(r),
        O::Einsum => einsum(r),
        O::MatMulInteger => integer_product(r).without(r, 2).without(r, 3),
        O::QLinearMatMul => qlinear_matmul(r),
        O::MsDynamicQuantizeMatMul => {
            let mut case = product(r, [DType::F32, DType::I8]);
            case.operands.push(Some(scale()));
            case
        }
        O::MsMatMulIntegerToFloat => {
            let mut case = integer_product(r);
            case.operands.splice(2..2, [Some(scale()), Some(scale())]);
            case.without(r, 4).without(r, 5)
        }
        O::Conv => {
            let (mut case, outputs) = conv(r, DType::F32);
            case.operands.push(Some(f32s(r, &[outputs])));
            case.without(r, 2)
        }
        O::ConvTranspose => conv_transpose(r),
        O::ConvInteger => conv(r, DType::U8).0,
        O::QLinearConv => qlinear_conv(r),
        O::AveragePool => pool(r, &[DType::F32]),
        O::MaxPool => {
            let n = 1 + r.below(2);
            pool(r, &[DType::F32, DType::U8]).results(n)
        }
        O::GlobalAveragePool | O::GlobalMaxPool => {
            let shape = [vec![r.positive(), r.positive()], r.shape(1, 2)].concat();
            Case::new(vec![f32s(r, &shape)])
        }
        O::Softmax | O::LogSoftmax | O::Hardmax => along_axis(r, &FLOATS),
        O::LpNormalization => along_axis(r, &[DType::F32]),
        O::LayerNormalization => layer_norm(r, 2, 3).without(r, 2),
        O::RMSNormalization => layer_norm(r, 1, 1),
        O::MsSimplifiedLayerNormalization => layer_norm(r, 1, 2),
        O::MsSkipLayerNormalization => skip_layer_norm(r, 3),
        O::MsSkipSimplifiedLayerNormalization => skip_layer_norm(r, 2),
        O::InstanceNormalization => channels(r, 2),
        O::GroupNormalization => channels(r, 2).int("num_groups", 2),
        O::BatchNormalization => channels(r, 4),
        O::MeanVarianceNormalization => {
            let shape = r.shape(4, 4);
            Case::new(vec![f32s(r, &shape)])
        }
        O::QuantizeLinear => quantize_linear(r),
        O::DequantizeLinear => dequantize_linear(r),
        O::DynamicQuantizeLinear => unary(r, &[DType::F32]).results(3),
        O::DFT => dft(r),
        O::LSTM => recurrent(r, 4),
        O::MsDynamicQuantizeLSTM => dynamic_quantize_lstm(r),
        O::GRU => recurrent(r, 3),
        O::RNN => recurrent(r, 1),
        O::Attention => attention(r),
        O::RotaryEmbedding => rotary_embedding(r),
        O::MsRotaryEmbedding => ms_rotary_embedding(r),
        O::MsAttention => ms_attention(r),
        O::MsMultiHeadAttention => ms_multi_head_attention(r),
        O::MsEmbedLayerNormalization => ms_embed_layer_normalization(r),
        O::MsBiasGelu | O::MsFastGelu => {
            let shape = r.shape(1, 3);
            let bias = f32s(r, &shape[shape.len() - 1..]);
            Case::new(vec![f32s(r, &shape), bias])
        }
        O::MsBiasSplitGelu => {
            let (b, s, h) = (r.positive(), r.positive(), 2 * r.positive());
            Case::new(vec![f32s(r, &[b, s, h]), f32s(r, &[h])])
        }
        O::MsBiasAdd => ms_bias_add(r),
        O::Linear => linear(r),
        O::IntegerLinear => integer_linear(r),
        O::FromSparse => from_sparse(r),
        O::EmbeddingLookup => embedding_lookup(r),
        O::ScaledDotProductAttention => scaled_dot_product_attention(r),
        O::GeneralizedAttention => generalized_attention(r),
        O::TokenPacking => token_packing(r),
        O::PackedAttention => packed_attention(r),
        O::Elementwise => elementwise(r),
    }
}
