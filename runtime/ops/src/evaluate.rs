//! What each operator means: dispatch from [`Operator`] to the function that evaluates it.

use crate::call::{Call, OpResult, OpResults};
use crate::{
    Attributes, OpError, Operator, Tensor, TensorView, attention, binary, cast, conv, dft, einsum,
    elementwise, generalized, generate, index, lancet, matmul, microsoft, norm, packed, pool,
    quant, reduce, resize, rnn, shape, unary,
};

/// Evaluates `op` on `operands`; `None` is an absent optional operand. Gives `n_results` results.
///
/// # Errors
/// [`OpError`] if the operands or attributes are outside what the operator accepts, or a result would be larger than
/// 16 GiB. No operand causes a panic.
pub fn evaluate(
    op: Operator,
    attributes: &Attributes,
    operands: &[Option<TensorView<'_>>],
    n_results: usize,
) -> Result<Vec<Tensor>, OpError> {
    let call = Call::new(op, attributes, operands, n_results)?;
    let mut results = dispatch(&call)?;
    if results.len() < n_results {
        let message = format!("gives {} results, not {n_results}", results.len());
        return Err(call.shape_error(message));
    }
    results.truncate(n_results);
    Ok(results)
}

fn one(result: OpResult) -> OpResults {
    result.map(|t| vec![t])
}

fn dispatch(call: &Call<'_>) -> OpResults {
    match call.op {
        Operator::Acos
        | Operator::Acosh
        | Operator::Asin
        | Operator::Asinh
        | Operator::Atan
        | Operator::Atanh
        | Operator::Ceil
        | Operator::Cos
        | Operator::Cosh
        | Operator::Erf
        | Operator::Exp
        | Operator::Floor
        | Operator::Log
        | Operator::Reciprocal
        | Operator::Round
        | Operator::Sigmoid
        | Operator::Sin
        | Operator::Sinh
        | Operator::Softplus
        | Operator::Softsign
        | Operator::Sqrt
        | Operator::Tan
        | Operator::Tanh
        | Operator::HardSwish
        | Operator::Mish
        | Operator::MsGelu => one(unary::real(call)),
        Operator::LeakyRelu
        | Operator::Elu
        | Operator::Celu
        | Operator::ThresholdedRelu
        | Operator::Swish
        | Operator::Selu
        | Operator::HardSigmoid
        | Operator::Gelu
        | Operator::MsQuickGelu => one(unary::parametric(call)),
        Operator::Abs | Operator::Neg | Operator::Sign | Operator::Relu => {
            one(unary::arithmetic(call))
        }
        Operator::Identity => one(unary::identity(call)),
        Operator::Not => one(unary::not(call)),
        Operator::BitwiseNot => one(unary::bitwise_not(call)),
        Operator::IsNaN => one(unary::is_nan(call)),
        Operator::IsInf => one(unary::is_inf(call)),
        Operator::Clip => one(unary::clip(call)),
        Operator::Dropout => unary::dropout(call),
        Operator::Cast => one(cast::cast(call)),
        Operator::CastLike => one(cast::cast_like(call)),
        Operator::Add | Operator::Sub | Operator::Mul | Operator::Div | Operator::Mod => {
            one(binary::arithmetic(call))
        }
        Operator::Pow => one(binary::pow(call)),
        Operator::PRelu => one(binary::prelu(call)),
        Operator::Equal => one(binary::equal(call)),
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
            one(binary::order(call))
        }
        Operator::And | Operator::Or | Operator::Xor => one(binary::logic(call)),
        Operator::BitwiseAnd | Operator::BitwiseOr | Operator::BitwiseXor | Operator::BitShift => {
            one(binary::bits(call))
        }
        Operator::Min | Operator::Max | Operator::Sum | Operator::Mean => {
            one(binary::variadic(call))
        }
        Operator::AtLeast | Operator::AtMost => one(binary::bound(call)),
        Operator::Where => one(binary::select(call)),
        Operator::Size => one(shape::size(call)),
        Operator::Shape => one(shape::shape(call)),
        Operator::Reshape => one(shape::reshape(call)),
        Operator::Flatten => one(shape::flatten(call)),
        Operator::Squeeze => one(shape::squeeze(call)),
        Operator::Unsqueeze => one(shape::unsqueeze(call)),
        Operator::Expand => one(shape::expand_to(call)),
        Operator::Tile => one(shape::tile(call)),
        Operator::Transpose => one(shape::transpose(call)),
        Operator::Concat => one(shape::concat(call)),
        Operator::Split => shape::split(call),
        Operator::Slice => one(shape::slice(call)),
        Operator::DepthToSpace => one(shape::depth_to_space(call)),
        Operator::SpaceToDepth => one(shape::space_to_depth(call)),
        Operator::Resize => one(resize::resize(call)),
        Operator::ReverseSequence => one(shape::reverse_sequence(call)),
        Operator::Gather => one(index::gather(call)),
        Operator::GatherElements => one(index::gather_elements(call)),
        Operator::GatherND => one(index::gather_nd(call)),
        Operator::ScatterElements => one(index::scatter_elements(call)),
        Operator::ScatterND => one(index::scatter_nd(call)),
        Operator::Pad => one(index::pad(call)),
        Operator::Trilu => one(index::trilu(call)),
        Operator::EyeLike => one(index::eye_like(call)),
        Operator::OneHot => one(index::one_hot(call)),
        Operator::NonZero => one(index::non_zero(call)),
        Operator::Compress => one(index::compress(call)),
        Operator::Range => one(generate::range(call)),
        Operator::ConstantOfShape => one(generate::constant_of_shape(call)),
        Operator::ReduceSum
        | Operator::ReduceMean
        | Operator::ReduceMax
        | Operator::ReduceMin
        | Operator::ReduceProd
        | Operator::ReduceL1
        | Operator::ReduceL2
        | Operator::ReduceSumSquare
        | Operator::ReduceLogSum
        | Operator::ReduceLogSumExp => one(reduce::reduce(call)),
        Operator::ArgMax | Operator::ArgMin => one(reduce::arg_extreme(call)),
        Operator::TopK => reduce::top_k(call),
        Operator::CumSum => one(reduce::cum_sum(call)),
        Operator::MatMul => one(matmul::matmul(call)),
        Operator::Gemm => one(matmul::gemm(call)),
        Operator::MatMulInteger => one(matmul::matmul_integer(call)),
        Operator::Softmax | Operator::LogSoftmax | Operator::Hardmax => one(norm::softmax(call)),
        Operator::LayerNormalization => norm::layer_normalization(call),
        Operator::RMSNormalization | Operator::MsSimplifiedLayerNormalization => {
            norm::rms_normalization(call)
        }
        Operator::LpNormalization => one(norm::lp_normalization(call)),
        Operator::InstanceNormalization | Operator::GroupNormalization => {
            one(norm::group_normalization(call))
        }
        Operator::BatchNormalization => one(norm::batch_normalization(call)),
        Operator::MeanVarianceNormalization => one(norm::mean_variance_normalization(call)),
        Operator::Linear => one(lancet::linear(call)),
        Operator::IntegerLinear => one(quant::integer_linear(call)),
        Operator::FromSparse => one(generate::from_sparse(call)),
        Operator::EmbeddingLookup => one(lancet::embedding_lookup(call)),
        Operator::ScaledDotProductAttention => lancet::scaled_dot_product_attention(call),
        Operator::GeneralizedAttention => generalized::generalized_attention(call),
        Operator::Elementwise => one(elementwise::elementwise(call)),
        Operator::TokenPacking => packed::token_packing(call),
        Operator::PackedAttention => one(packed::packed_attention(call)),
        Operator::Einsum => one(einsum::einsum(call)),
        Operator::Conv | Operator::ConvTranspose => one(conv::conv(call)),
        Operator::ConvInteger => one(conv::conv_integer(call)),
        Operator::QLinearConv => one(conv::qlinear_conv(call)),
        Operator::AveragePool => one(pool::average_pool(call)),
        Operator::MaxPool => pool::max_pool(call),
        Operator::GlobalAveragePool | Operator::GlobalMaxPool => one(pool::global_pool(call)),
        Operator::QuantizeLinear => one(quant::quantize_linear(call)),
        Operator::DequantizeLinear => one(quant::dequantize_linear(call)),
        Operator::DynamicQuantizeLinear => quant::dynamic_quantize_linear(call),
        Operator::QLinearMatMul => one(quant::qlinear_matmul(call)),
        Operator::MsMatMulIntegerToFloat => one(quant::matmul_integer_to_float(call)),
        Operator::MsDynamicQuantizeMatMul => one(quant::dynamic_quantize_matmul(call)),
        Operator::DFT => one(dft::dft(call)),
        Operator::LSTM | Operator::MsDynamicQuantizeLSTM => rnn::lstm(call),
        Operator::GRU => rnn::gru(call),
        Operator::RNN => rnn::rnn(call),
        Operator::Attention => attention::attention(call),
        Operator::RotaryEmbedding => one(attention::rotary_embedding(call)),
        Operator::MsRotaryEmbedding => one(attention::ms_rotary_embedding(call)),
        Operator::MsBiasGelu | Operator::MsFastGelu => one(microsoft::bias_gelu(call)),
        Operator::MsBiasSplitGelu => one(microsoft::bias_split_gelu(call)),
        Operator::MsBiasAdd => one(microsoft::bias_add(call)),
        Operator::MsSkipLayerNormalization | Operator::MsSkipSimplifiedLayerNormalization => {
            microsoft::skip_layer_normalization(call)
        }
        Operator::MsEmbedLayerNormalization => microsoft::embed_layer_normalization(call),
        Operator::MsAttention => microsoft::attention(call),
        Operator::MsMultiHeadAttention => microsoft::multi_head_attention(call),
        Operator::MsFusedMatMul => one(microsoft::fused_matmul(call)),
        Operator::MsFusedGemm => one(microsoft::fused_gemm(call)),
    }
}
