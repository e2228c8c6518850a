//! Types of results from types of operands, and elements of shape computations where they are known.
//!
//! Inference is exact where the sizes tell the answer, and makes a fresh symbol where only data can. Sizes that must agree
//! for the operator to succeed are taken to agree unless they are known to differ: the runtime computes true shapes and
//! reports those that do not fit what was inferred. Whatever an operand or attribute is, inference ends in a result or an
//! error, never in a panic; ranks are limited and all arithmetic is checked.
//!
//! Exporters compute shapes with operators (`Shape -> Gather -> Unsqueeze -> Concat -> Reshape`, `Equal -> Where` around a
//! -1). [`ValueInfo::elements`] follows them, so that such a `Reshape` gives `[batch, seq, 12, 64]`.

use lancet_ops::{Attributes, DType, Operator};

use crate::{Dim, IrError, Op, ValueInfo};
use call::{Call, Class, Many, check_result};
use elements::value;

mod attention;
mod broadcast;
mod call;
mod convolution;
mod elements;
mod elementwise;
mod index;
mod matrix;
mod quantize;
mod reduce;
mod region;
mod sequence;
mod shape;
#[cfg(test)]
mod tests;

/// Types of the `n_results` results of `op` on these operands, all row-major unless `op` converts the layout.
///
/// `fresh` makes a symbol for a size that depends on data.
///
/// # Errors
/// [`IrError`] if the operands do not fit the operation, and for [`Op::Input`], whose type nothing tells.
pub fn infer(
    op: &Op,
    operands: &[Option<&ValueInfo>],
    n_results: usize,
    fresh: &mut dyn FnMut() -> Dim,
) -> Result<Vec<ValueInfo>, IrError> {
    let error = |message: String| IrError::Type {
        op: op.text().to_owned(),
        message,
    };
    let single = || match operands {
        [Some(x)] => Ok(*x),
        _ => Err(error(format!("takes 1 operand, found {}", operands.len()))),
    };
    let none = || match operands {
        [] => Ok(()),
        _ => Err(error(format!(
            "takes no operands, found {}",
            operands.len()
        ))),
    };
    let result = match op {
        Op::Apply(operator, attributes) => {
            return apply(*operator, attributes, operands, n_results, fresh);
        }
        Op::If { then, otherwise } => {
            let results = region::branch(then, otherwise, operands, fresh).map_err(error)?;
            return region::checked(op.text(), results, n_results);
        }
        Op::Loop { body, n_carried } => {
            let results = region::iteration(body, *n_carried, operands, fresh).map_err(error)?;
            return region::checked(op.text(), results, n_results);
        }
        Op::Input(_) => return Err(error("the type of an input must be stated".to_owned())),
        Op::Const(c) => {
            none()?;
            let shape = c.tensor.shape().iter().map(|&d| Dim::from(d)).collect();
            value(c.tensor.dtype(), shape, elements::of_tensor(&c.tensor))
        }
        Op::Dims(d) => {
            none()?;
            value(DType::I64, vec![Dim::from(d.len())], Some(d.clone()))
        }
        Op::View(dims) => shape::view(single()?, dims).map_err(error)?,
        Op::Broadcast(dims) => shape::broadcast(single()?, dims).map_err(error)?,
        Op::Convert(layout) => {
            let mut result = single()?.clone();
            result.ty.layout = *layout;
            result
        }
    };
    if n_results != 1 {
        return Err(error(format!("gives 1 result, not {n_results}")));
    }
    check_result(op.text(), &result.ty)?;
    Ok(vec![result])
}

/// Types of the results of an operator of the table.
fn apply(
    operator: Operator,
    attributes: &Attributes,
    operands: &[Option<&ValueInfo>],
    n_results: usize,
    fresh: &mut dyn FnMut() -> Dim,
) -> Many {
    let mut call = Call::new(operator, attributes, operands, n_results, fresh)?;
    let results = dispatch(&mut call)?;
    call.finish(results)
}

fn dispatch(call: &mut Call<'_>) -> Many {
    use Operator as O;
    let one = match call.op {
        O::Acos
        | O::Acosh
        | O::Asin
        | O::Asinh
        | O::Atan
        | O::Atanh
        | O::Ceil
        | O::Cos
        | O::Cosh
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
        | O::MsQuickGelu => elementwise::opaque(call, Class::Float),
        O::Erf => elementwise::opaque(call, Class::Number),
        O::BitwiseNot => elementwise::opaque(call, Class::Integer),
        O::Abs => elementwise::unary(call, Some(Class::Number), elementwise::abs),
        O::Neg => elementwise::unary(call, Some(Class::Number), |d| d.scale(-1)),
        O::Relu => elementwise::unary(call, Some(Class::Number), elementwise::relu),
        O::Sign => elementwise::unary(call, Some(Class::Number), elementwise::sign),
        O::Not => elementwise::unary(call, Some(Class::Bool), elementwise::not),
        O::Identity => elementwise::unary(call, None, |d| Some(d.clone())),
        O::IsNaN | O::IsInf => elementwise::float_predicate(call),
        O::Cast => match call.dtype_attribute("to")? {
            Some(to) => elementwise::cast(call, to),
            None => Err(call.attribute_error("to", "is required".to_owned())),
        },
        O::CastLike => elementwise::cast(call, call.dtype(1)?),
        O::Add => elementwise::binary(call, Class::Number, Dim::add),
        O::Sub => elementwise::binary(call, Class::Number, Dim::sub),
        O::Mul => elementwise::binary(call, Class::Number, Dim::mul),
        O::Div => elementwise::binary(call, Class::Number, elements::div),
        O::Pow => elementwise::pow(call),
        O::PRelu => elementwise::prelu(call),
        O::Equal => elementwise::compare(call, None, Dim::equals),
        O::Less => elementwise::compare(call, Some(Class::Number), elements::less),
        O::LessOrEqual => elementwise::compare(call, Some(Class::Number), elements::less_or_equal),
        O::Greater => elementwise::compare(call, Some(Class::Number), |a, b| elements::less(b, a)),
        O::GreaterOrEqual => elementwise::compare(call, Some(Class::Number), |a, b| {
            elements::less_or_equal(b, a)
        }),
        O::And | O::Or | O::Xor => elementwise::logic(call),
        O::BitwiseAnd | O::BitwiseOr | O::BitwiseXor => {
            elementwise::binary(call, Class::Integer, |_, _| None)
        }
        O::Mod => elementwise::modulo(call),
        O::BitShift => elementwise::bit_shift(call),
        O::Min => elementwise::variadic(call, Class::Number, elements::min),
        O::Max => elementwise::variadic(call, Class::Number, elements::max),
        O::AtLeast | O::AtMost => elementwise::binary(call, Class::Number, |_, _| None),
        O::Sum | O::Mean => elementwise::variadic(call, Class::Float, |_, _| None),
        O::Where => elementwise::select(call),
        O::Clip => elementwise::clip(call),
        O::Dropout => return elementwise::dropout(call),
        O::Size => shape::size(call),
        O::Shape => shape::shape(call),
        O::Reshape => shape::reshape(call),
        O::Flatten => shape::flatten(call),
        O::Squeeze => shape::squeeze(call),
        O::Unsqueeze => shape::unsqueeze(call),
        O::Expand => shape::expand(call),
        O::Tile => shape::tile(call),
        O::Transpose => shape::transpose(call),
        O::Concat => shape::concat(call),
        O::Split => return shape::split(call),
        O::DepthToSpace => shape::depth_to_space(call),
        O::SpaceToDepth => shape::space_to_depth(call),
        O::Resize => shape::resize(call),
        O::Slice => index::slice(call),
        O::Gather => index::gather(call),
        O::GatherElements => index::gather_elements(call),
        O::GatherND => index::gather_nd(call),
        O::ScatterElements => index::scatter_elements(call),
        O::ScatterND => index::scatter_nd(call),
        O::Pad => index::pad(call),
        O::Range => index::range(call),
        O::ConstantOfShape => index::constant_of_shape(call),
        O::EyeLike => index::eye_like(call),
        O::Trilu => index::trilu(call),
        O::OneHot => index::one_hot(call),
        O::NonZero => index::non_zero(call),
        O::TopK => return index::top_k(call),
        O::CumSum => index::cum_sum(call),
        O::Compress => index::compress(call),
        O::ReverseSequence => index::reverse_sequence(call),
        O::ReduceSum => reduce::reduce(call, Some(Dim::add)),
        O::ReduceProd => reduce::reduce(call, Some(Dim::mul)),
        O::ReduceMax => reduce::reduce(call, Some(elements::max)),
        O::ReduceMin => reduce::reduce(call, Some(elements::min)),
        O::ReduceMean
        | O::ReduceL1
        | O::ReduceL2
        | O::ReduceSumSquare
        | O::ReduceLogSum
        | O::ReduceLogSumExp => reduce::reduce(call, None),
        O::ArgMax | O::ArgMin => reduce::arg(call),
        O::Softmax | O::LogSoftmax | O::Hardmax | O::LpNormalization => reduce::along_axis(call),
        O::LayerNormalization => return reduce::layer_norm(call),
        O::RMSNormalization | O::MsSimplifiedLayerNormalization => return reduce::rms_norm(call),
        O::MsSkipLayerNormalization => {
            return reduce::skip_layer_norm(call, 3);
        }
        O::MsSkipSimplifiedLayerNormalization => {
            return reduce::skip_layer_norm(call, 2);
        }
        O::InstanceNormalization => reduce::channel_norm(call),
        O::GroupNormalization => reduce::group_norm(call),
        O::BatchNormalization => reduce::batch_norm(call),
        O::MeanVarianceNormalization => reduce::mean_variance(call),
        O::MatMul => matrix::matmul(call),
        O::Gemm | O::MsFusedGemm => matrix::gemm(call),
        O::MsFusedMatMul => matrix::fused_matmul(call),
        O::Einsum => matrix::einsum(call),
        O::MatMulInteger => matrix::matmul_integer(call),
        O::QLinearMatMul => matrix::qlinear_matmul(call),
        O::MsDynamicQuantizeMatMul => matrix::dynamic_quantize_matmul(call),
        O::MsMatMulIntegerToFloat => matrix::matmul_integer_to_float(call),
        O::Conv => convolution::conv(call),
        O::ConvTranspose => convolution::conv_transpose(call),
        O::ConvInteger => convolution::conv_integer(call),
        O::QLinearConv => convolution::qlinear_conv(call),
        O::AveragePool => return convolution::pool(call, Class::Float),
        O::MaxPool => return convolution::pool(call, Class::Number),
        O::GlobalAveragePool | O::GlobalMaxPool => convolution::global_pool(call),
        O::QuantizeLinear => quantize::quantize(call),
        O::DequantizeLinear => quantize::dequantize(call),
        O::DynamicQuantizeLinear => return quantize::dynamic_quantize(call),
        O::DFT => sequence::dft(call),
        O::LSTM => return sequence::recurrent(call, 4),
        O::MsDynamicQuantizeLSTM => return sequence::dynamic_quantize_lstm(call),
        O::GRU => return sequence::recurrent(call, 3),
        O::RNN => return sequence::recurrent(call, 1),
        O::Attention => return attention::attention(call),
        O::RotaryEmbedding => attention::rotary(call, &[1, 2]),
        O::MsRotaryEmbedding => attention::rotary(call, &[2, 3]),
        O::MsAttention => return attention::ms_attention(call),
        O::MsMultiHeadAttention => return attention::ms_multi_head_attention(call),
        O::MsEmbedLayerNormalization => {
            return attention::embed_layer_norm(call);
        }
        O::MsBiasGelu | O::MsFastGelu => attention::bias_gelu(call),
        O::MsBiasSplitGelu => attention::bias_split_gelu(call),
        O::MsBiasAdd => attention::bias_add(call),
        O::Linear => attention::linear(call),
        O::IntegerLinear => quantize::integer_linear(call),
        O::FromSparse => index::from_sparse(call),
        O::EmbeddingLookup => attention::embedding_lookup(call),
        O::ScaledDotProductAttention => {
            return attention::scaled_dot_product_attention(call);
        }
        O::GeneralizedAttention => return attention::generalized_attention(call),
        O::TokenPacking => return attention::token_packing(call),
        O::PackedAttention => attention::packed_attention(call),
        O::Elementwise => elementwise::body(call),
    };
    Ok(vec![one?])
}
