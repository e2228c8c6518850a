//! The closed list of operators, one row each: names, operand counts and attributes.
//!
//! ONNX operators have the semantics of the newest opset that Lancet reads; the importer brings older forms to it (an
//! `axes` attribute becomes an operand, `Softmax` before opset 13 is flattened explicitly). Data types in attributes
//! are strings (`to = "f32"`). Operators of the `Lancet` domain are what passes raise; their meaning is in the
//! documentation of the function that evaluates them.

use std::fmt;

use crate::AttributeType;

/// Who defines an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// `ai.onnx`, the default domain.
    Onnx,
    /// `com.microsoft`, ONNX Runtime's contributed operators.
    Microsoft,
    /// Raised by Lancet's passes; never in a file.
    Lancet,
}

/// What an attribute is when it is not set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    /// It must be set.
    Required,
    /// It may be absent, with a meaning of its own.
    Optional,
    Int(i64),
    Float(f32),
    Str(&'static str),
}

/// One attribute of an operator.
#[derive(Clone, Copy, Debug)]
pub struct AttributeSchema {
    pub name: &'static str,
    pub ty: AttributeType,
    pub default: DefaultValue,
}

/// What an operator takes and gives.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// The name in IR text, snake case.
    pub text: &'static str,
    pub domain: Domain,
    /// The name in ONNX files (or the Rust name, for the `Lancet` domain).
    pub onnx: &'static str,
    /// Least and greatest number of operands; trailing and middle optional ones may be absent.
    pub operands: (usize, usize),
    /// Least and greatest number of results.
    pub results: (usize, usize),
    pub attributes: &'static [AttributeSchema],
}

/// No upper limit to operands or results.
pub(crate) const MANY: usize = usize::MAX;

macro_rules! operators {
    ($($variant:ident $text:literal $domain:ident $onnx:literal ($imin:expr, $imax:expr) ($omin:expr, $omax:expr) {
        $($attr:ident: $ty:ident = $default:expr,)*
    },)*) => {
        /// An operator.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Operator { $($variant),* }

        impl Operator {
            /// Every operator, in table order.
            pub const ALL: &'static [Operator] = &[$(Operator::$variant),*];

            /// What the operator takes and gives.
            pub fn schema(self) -> &'static Schema {
                #[allow(unused_imports, reason = "rows without attributes name no default")]
                use DefaultValue::{Float, Int, Optional, Required, Str};
                match self {
                    $(Operator::$variant => {
                        const S: Schema = Schema {
                            text: $text,
                            domain: Domain::$domain,
                            onnx: $onnx,
                            operands: ($imin, $imax),
                            results: ($omin, $omax),
                            attributes: &[$(AttributeSchema {
                                name: stringify!($attr),
                                ty: AttributeType::$ty,
                                default: $default,
                            }),*],
                        };
                        &S
                    })*
                }
            }
        }
    };
}

operators! {
    Abs "abs" Onnx "Abs" (1, 1) (1, 1) {},
    Acos "acos" Onnx "Acos" (1, 1) (1, 1) {},
    Acosh "acosh" Onnx "Acosh" (1, 1) (1, 1) {},
    Asin "asin" Onnx "Asin" (1, 1) (1, 1) {},
    Asinh "asinh" Onnx "Asinh" (1, 1) (1, 1) {},
    Atan "atan" Onnx "Atan" (1, 1) (1, 1) {},
    Atanh "atanh" Onnx "Atanh" (1, 1) (1, 1) {},
    Ceil "ceil" Onnx "Ceil" (1, 1) (1, 1) {},
    Cos "cos" Onnx "Cos" (1, 1) (1, 1) {},
    Cosh "cosh" Onnx "Cosh" (1, 1) (1, 1) {},
    Erf "erf" Onnx "Erf" (1, 1) (1, 1) {},
    Exp "exp" Onnx "Exp" (1, 1) (1, 1) {},
    Floor "floor" Onnx "Floor" (1, 1) (1, 1) {},
    Identity "identity" Onnx "Identity" (1, 1) (1, 1) {},
    IsNaN "is_nan" Onnx "IsNaN" (1, 1) (1, 1) {},
    Log "log" Onnx "Log" (1, 1) (1, 1) {},
    Neg "neg" Onnx "Neg" (1, 1) (1, 1) {},
    Not "not" Onnx "Not" (1, 1) (1, 1) {},
    BitwiseNot "bitwise_not" Onnx "BitwiseNot" (1, 1) (1, 1) {},
    Reciprocal "reciprocal" Onnx "Reciprocal" (1, 1) (1, 1) {},
    Relu "relu" Onnx "Relu" (1, 1) (1, 1) {},
    Round "round" Onnx "Round" (1, 1) (1, 1) {},
    Sigmoid "sigmoid" Onnx "Sigmoid" (1, 1) (1, 1) {},
    Sign "sign" Onnx "Sign" (1, 1) (1, 1) {},
    Sin "sin" Onnx "Sin" (1, 1) (1, 1) {},
    Sinh "sinh" Onnx "Sinh" (1, 1) (1, 1) {},
    Softplus "softplus" Onnx "Softplus" (1, 1) (1, 1) {},
    Softsign "softsign" Onnx "Softsign" (1, 1) (1, 1) {},
    Sqrt "sqrt" Onnx "Sqrt" (1, 1) (1, 1) {},
    Tan "tan" Onnx "Tan" (1, 1) (1, 1) {},
    Tanh "tanh" Onnx "Tanh" (1, 1) (1, 1) {},
    HardSwish "hard_swish" Onnx "HardSwish" (1, 1) (1, 1) {},
    Mish "mish" Onnx "Mish" (1, 1) (1, 1) {},
    Size "size" Onnx "Size" (1, 1) (1, 1) {},
    Shape "shape" Onnx "Shape" (1, 1) (1, 1) {
        start: Int = Int(0),
        end: Int = Optional,
    },
    IsInf "is_inf" Onnx "IsInf" (1, 1) (1, 1) {
        detect_negative: Int = Int(1),
        detect_positive: Int = Int(1),
    },
    LeakyRelu "leaky_relu" Onnx "LeakyRelu" (1, 1) (1, 1) {
        alpha: Float = Float(0.01),
    },
    Elu "elu" Onnx "Elu" (1, 1) (1, 1) {
        alpha: Float = Float(1.0),
    },
    Celu "celu" Onnx "Celu" (1, 1) (1, 1) {
        alpha: Float = Float(1.0),
    },
    ThresholdedRelu "thresholded_relu" Onnx "ThresholdedRelu" (1, 1) (1, 1) {
        alpha: Float = Float(1.0),
    },
    Swish "swish" Onnx "Swish" (1, 1) (1, 1) {
        alpha: Float = Float(1.0),
    },
    Selu "selu" Onnx "Selu" (1, 1) (1, 1) {
        alpha: Float = Float(1.673_263_2),
        gamma: Float = Float(1.050_701),
    },
    HardSigmoid "hard_sigmoid" Onnx "HardSigmoid" (1, 1) (1, 1) {
        alpha: Float = Float(0.2),
        beta: Float = Float(0.5),
    },
    Gelu "gelu" Onnx "Gelu" (1, 1) (1, 1) {
        approximate: Str = Str("none"),
    },
    Cast "cast" Onnx "Cast" (1, 1) (1, 1) {
        to: Str = Required,
        saturate: Int = Int(1),
    },
    CastLike "cast_like" Onnx "CastLike" (2, 2) (1, 1) {
        saturate: Int = Int(1),
    },
    Add "add" Onnx "Add" (2, 2) (1, 1) {},
    Sub "sub" Onnx "Sub" (2, 2) (1, 1) {},
    Mul "mul" Onnx "Mul" (2, 2) (1, 1) {},
    Div "div" Onnx "Div" (2, 2) (1, 1) {},
    Pow "pow" Onnx "Pow" (2, 2) (1, 1) {},
    PRelu "prelu" Onnx "PRelu" (2, 2) (1, 1) {},
    Equal "equal" Onnx "Equal" (2, 2) (1, 1) {},
    Less "less" Onnx "Less" (2, 2) (1, 1) {},
    LessOrEqual "less_or_equal" Onnx "LessOrEqual" (2, 2) (1, 1) {},
    Greater "greater" Onnx "Greater" (2, 2) (1, 1) {},
    GreaterOrEqual "greater_or_equal" Onnx "GreaterOrEqual" (2, 2) (1, 1) {},
    And "and" Onnx "And" (2, 2) (1, 1) {},
    Or "or" Onnx "Or" (2, 2) (1, 1) {},
    Xor "xor" Onnx "Xor" (2, 2) (1, 1) {},
    BitwiseAnd "bitwise_and" Onnx "BitwiseAnd" (2, 2) (1, 1) {},
    BitwiseOr "bitwise_or" Onnx "BitwiseOr" (2, 2) (1, 1) {},
    BitwiseXor "bitwise_xor" Onnx "BitwiseXor" (2, 2) (1, 1) {},
    Mod "mod" Onnx "Mod" (2, 2) (1, 1) {
        fmod: Int = Int(0),
    },
    BitShift "bit_shift" Onnx "BitShift" (2, 2) (1, 1) {
        direction: Str = Required,
    },
    Min "min" Onnx "Min" (1, MANY) (1, 1) {},
    Max "max" Onnx "Max" (1, MANY) (1, 1) {},
    Sum "sum" Onnx "Sum" (1, MANY) (1, 1) {},
    Mean "mean" Onnx "Mean" (1, MANY) (1, 1) {},
    Where "where" Onnx "Where" (3, 3) (1, 1) {},
    Clip "clip" Onnx "Clip" (1, 3) (1, 1) {},
    Dropout "dropout" Onnx "Dropout" (1, 3) (1, 2) {
        seed: Int = Optional,
    },
    Reshape "reshape" Onnx "Reshape" (2, 2) (1, 1) {
        allowzero: Int = Int(0),
    },
    Flatten "flatten" Onnx "Flatten" (1, 1) (1, 1) {
        axis: Int = Int(1),
    },
    Squeeze "squeeze" Onnx "Squeeze" (1, 2) (1, 1) {},
    Unsqueeze "unsqueeze" Onnx "Unsqueeze" (2, 2) (1, 1) {},
    Expand "expand" Onnx "Expand" (2, 2) (1, 1) {},
    Tile "tile" Onnx "Tile" (2, 2) (1, 1) {},
    Transpose "transpose" Onnx "Transpose" (1, 1) (1, 1) {
        perm: Ints = Optional,
    },
    Concat "concat" Onnx "Concat" (1, MANY) (1, 1) {
        axis: Int = Required,
    },
    Split "split" Onnx "Split" (1, 2) (1, MANY) {
        axis: Int = Int(0),
        num_outputs: Int = Optional,
    },
    Slice "slice" Onnx "Slice" (3, 5) (1, 1) {},
    Gather "gather" Onnx "Gather" (2, 2) (1, 1) {
        axis: Int = Int(0),
    },
    GatherElements "gather_elements" Onnx "GatherElements" (2, 2) (1, 1) {
        axis: Int = Int(0),
    },
    GatherND "gather_nd" Onnx "GatherND" (2, 2) (1, 1) {
        batch_dims: Int = Int(0),
    },
    ScatterElements "scatter_elements" Onnx "ScatterElements" (3, 3) (1, 1) {
        axis: Int = Int(0),
        reduction: Str = Str("none"),
    },
    ScatterND "scatter_nd" Onnx "ScatterND" (3, 3) (1, 1) {
        reduction: Str = Str("none"),
    },
    Pad "pad" Onnx "Pad" (2, 4) (1, 1) {
        mode: Str = Str("constant"),
    },
    Range "range" Onnx "Range" (3, 3) (1, 1) {},
    ConstantOfShape "constant_of_shape" Onnx "ConstantOfShape" (1, 1) (1, 1) {
        value: Tensor = Optional,
    },
    EyeLike "eye_like" Onnx "EyeLike" (1, 1) (1, 1) {
        dtype: Str = Optional,
        k: Int = Int(0),
    },
    Trilu "trilu" Onnx "Trilu" (1, 2) (1, 1) {
        upper: Int = Int(1),
    },
    OneHot "one_hot" Onnx "OneHot" (3, 3) (1, 1) {
        axis: Int = Int(-1),
    },
    NonZero "non_zero" Onnx "NonZero" (1, 1) (1, 1) {},
    TopK "top_k" Onnx "TopK" (2, 2) (2, 2) {
        axis: Int = Int(-1),
        largest: Int = Int(1),
        sorted: Int = Int(1),
    },
    CumSum "cum_sum" Onnx "CumSum" (2, 2) (1, 1) {
        exclusive: Int = Int(0),
        reverse: Int = Int(0),
    },
    Compress "compress" Onnx "Compress" (2, 2) (1, 1) {
        axis: Int = Optional,
    },
    DepthToSpace "depth_to_space" Onnx "DepthToSpace" (1, 1) (1, 1) {
        blocksize: Int = Required,
        mode: Str = Str("DCR"),
    },
    SpaceToDepth "space_to_depth" Onnx "SpaceToDepth" (1, 1) (1, 1) {
        blocksize: Int = Required,
        mode: Str = Str("DCR"),
    },
    Resize "resize" Onnx "Resize" (1, 4) (1, 1) {
        antialias: Int = Int(0),
        axes: Ints = Optional,
        coordinate_transformation_mode: Str = Str("half_pixel"),
        cubic_coeff_a: Float = Float(-0.75),
        exclude_outside: Int = Int(0),
        extrapolation_value: Float = Float(0.0),
        keep_aspect_ratio_policy: Str = Str("stretch"),
        mode: Str = Str("nearest"),
        nearest_mode: Str = Str("round_prefer_floor"),
    },
    ReverseSequence "reverse_sequence" Onnx "ReverseSequence" (2, 2) (1, 1) {
        batch_axis: Int = Int(1),
        time_axis: Int = Int(0),
    },
    ReduceSum "reduce_sum" Onnx "ReduceSum" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceMean "reduce_mean" Onnx "ReduceMean" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceMax "reduce_max" Onnx "ReduceMax" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceMin "reduce_min" Onnx "ReduceMin" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceProd "reduce_prod" Onnx "ReduceProd" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceL1 "reduce_l1" Onnx "ReduceL1" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceL2 "reduce_l2" Onnx "ReduceL2" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceSumSquare "reduce_sum_square" Onnx "ReduceSumSquare" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceLogSum "reduce_log_sum" Onnx "ReduceLogSum" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ReduceLogSumExp "reduce_log_sum_exp" Onnx "ReduceLogSumExp" (1, 2) (1, 1) {
        keepdims: Int = Int(1),
        noop_with_empty_axes: Int = Int(0),
    },
    ArgMax "arg_max" Onnx "ArgMax" (1, 1) (1, 1) {
        axis: Int = Int(0),
        keepdims: Int = Int(1),
        select_last_index: Int = Int(0),
    },
    ArgMin "arg_min" Onnx "ArgMin" (1, 1) (1, 1) {
        axis: Int = Int(0),
        keepdims: Int = Int(1),
        select_last_index: Int = Int(0),
    },
    MatMul "matmul" Onnx "MatMul" (2, 2) (1, 1) {},
    Gemm "gemm" Onnx "Gemm" (2, 3) (1, 1) {
        alpha: Float = Float(1.0),
        beta: Float = Float(1.0),
        transA: Int = Int(0),
        transB: Int = Int(0),
    },
    Einsum "einsum" Onnx "Einsum" (1, MANY) (1, 1) {
        equation: Str = Required,
    },
    MatMulInteger "matmul_integer" Onnx "MatMulInteger" (2, 4) (1, 1) {},
    QLinearMatMul "qlinear_matmul" Onnx "QLinearMatMul" (8, 8) (1, 1) {},
    Conv "conv" Onnx "Conv" (2, 3) (1, 1) {
        auto_pad: Str = Str("NOTSET"),
        dilations: Ints = Optional,
        group: Int = Int(1),
        kernel_shape: Ints = Optional,
        pads: Ints = Optional,
        strides: Ints = Optional,
    },
    ConvTranspose "conv_transpose" Onnx "ConvTranspose" (2, 3) (1, 1) {
        auto_pad: Str = Str("NOTSET"),
        dilations: Ints = Optional,
        group: Int = Int(1),
        kernel_shape: Ints = Optional,
        output_padding: Ints = Optional,
        output_shape: Ints = Optional,
        pads: Ints = Optional,
        strides: Ints = Optional,
    },
    ConvInteger "conv_integer" Onnx "ConvInteger" (2, 4) (1, 1) {
        auto_pad: Str = Str("NOTSET"),
        dilations: Ints = Optional,
        group: Int = Int(1),
        kernel_shape: Ints = Optional,
        pads: Ints = Optional,
        strides: Ints = Optional,
    },
    QLinearConv "qlinear_conv" Onnx "QLinearConv" (8, 9) (1, 1) {
        auto_pad: Str = Str("NOTSET"),
        dilations: Ints = Optional,
        group: Int = Int(1),
        kernel_shape: Ints = Optional,
        pads: Ints = Optional,
        strides: Ints = Optional,
    },
    AveragePool "average_pool" Onnx "AveragePool" (1, 1) (1, 1) {
        auto_pad: Str = Str("NOTSET"),
        ceil_mode: Int = Int(0),
        dilations: Ints = Optional,
        kernel_shape: Ints = Required,
        pads: Ints = Optional,
        strides: Ints = Optional,
        count_include_pad: Int = Int(0),
    },
    MaxPool "max_pool" Onnx "MaxPool" (1, 1) (1, 2) {
        auto_pad: Str = Str("NOTSET"),
        ceil_mode: Int = Int(0),
        dilations: Ints = Optional,
        kernel_shape: Ints = Required,
        pads: Ints = Optional,
        strides: Ints = Optional,
        storage_order: Int = Int(0),
    },
    GlobalAveragePool "global_average_pool" Onnx "GlobalAveragePool" (1, 1) (1, 1) {},
    GlobalMaxPool "global_max_pool" Onnx "GlobalMaxPool" (1, 1) (1, 1) {},
    Softmax "softmax" Onnx "Softmax" (1, 1) (1, 1) {
        axis: Int = Int(-1),
    },
    LogSoftmax "log_softmax" Onnx "LogSoftmax" (1, 1) (1, 1) {
        axis: Int = Int(-1),
    },
    Hardmax "hardmax" Onnx "Hardmax" (1, 1) (1, 1) {
        axis: Int = Int(-1),
    },
    LayerNormalization "layer_normalization" Onnx "LayerNormalization" (2, 3) (1, 3) {
        axis: Int = Int(-1),
        epsilon: Float = Float(1e-5),
        stash_type: Int = Int(1),
    },
    RMSNormalization "rms_normalization" Onnx "RMSNormalization" (2, 2) (1, 1) {
        axis: Int = Int(-1),
        epsilon: Float = Float(1e-5),
        stash_type: Int = Int(1),
    },
    LpNormalization "lp_normalization" Onnx "LpNormalization" (1, 1) (1, 1) {
        axis: Int = Int(-1),
        p: Int = Int(2),
    },
    InstanceNormalization "instance_normalization" Onnx "InstanceNormalization" (3, 3) (1, 1) {
        epsilon: Float = Float(1e-5),
    },
    GroupNormalization "group_normalization" Onnx "GroupNormalization" (3, 3) (1, 1) {
        epsilon: Float = Float(1e-5),
        num_groups: Int = Required,
        stash_type: Int = Int(1),
    },
    BatchNormalization "batch_normalization" Onnx "BatchNormalization" (5, 5) (1, 1) {
        epsilon: Float = Float(1e-5),
        momentum: Float = Float(0.9),
        training_mode: Int = Int(0),
    },
    MeanVarianceNormalization "mean_variance_normalization" Onnx "MeanVarianceNormalization" (1, 1) (1, 1) {
        axes: Ints = Optional,
    },
    QuantizeLinear "quantize_linear" Onnx "QuantizeLinear" (2, 3) (1, 1) {
        axis: Int = Int(1),
        block_size: Int = Int(0),
        output_dtype: Str = Optional,
        precision: Str = Optional,
        saturate: Int = Int(1),
    },
    DequantizeLinear "dequantize_linear" Onnx "DequantizeLinear" (2, 3) (1, 1) {
        axis: Int = Int(1),
        block_size: Int = Int(0),
        output_dtype: Str = Optional,
    },
    DynamicQuantizeLinear "dynamic_quantize_linear" Onnx "DynamicQuantizeLinear" (1, 1) (3, 3) {},
    DFT "dft" Onnx "DFT" (1, 3) (1, 1) {
        inverse: Int = Int(0),
        onesided: Int = Int(0),
    },
    LSTM "lstm" Onnx "LSTM" (3, 8) (1, 3) {
        activation_alpha: Floats = Optional,
        activation_beta: Floats = Optional,
        activations: Strs = Optional,
        clip: Float = Optional,
        direction: Str = Str("forward"),
        hidden_size: Int = Optional,
        layout: Int = Int(0),
        input_forget: Int = Int(0),
    },
    GRU "gru" Onnx "GRU" (3, 6) (1, 2) {
        activation_alpha: Floats = Optional,
        activation_beta: Floats = Optional,
        activations: Strs = Optional,
        clip: Float = Optional,
        direction: Str = Str("forward"),
        hidden_size: Int = Optional,
        layout: Int = Int(0),
        linear_before_reset: Int = Int(0),
    },
    RNN "rnn" Onnx "RNN" (3, 6) (1, 2) {
        activation_alpha: Floats = Optional,
        activation_beta: Floats = Optional,
        activations: Strs = Optional,
        clip: Float = Optional,
        direction: Str = Str("forward"),
        hidden_size: Int = Optional,
        layout: Int = Int(0),
    },
    Attention "attention" Onnx "Attention" (3, 7) (1, 4) {
        is_causal: Int = Int(0),
        kv_num_heads: Int = Optional,
        left_window_size: Int = Int(-1),
        q_num_heads: Int = Optional,
        qk_matmul_output_mode: Int = Int(0),
        right_window_size: Int = Int(-1),
        scale: Float = Optional,
        softcap: Float = Float(0.0),
        softmax_precision: Int = Optional,
    },
    RotaryEmbedding "rotary_embedding" Onnx "RotaryEmbedding" (3, 4) (1, 1) {
        interleaved: Int = Int(0),
        num_heads: Int = Int(0),
        rotary_embedding_dim: Int = Int(0),
    },
    MsGelu "ms_gelu" Microsoft "Gelu" (1, 1) (1, 1) {},
    MsQuickGelu "ms_quick_gelu" Microsoft "QuickGelu" (1, 1) (1, 1) {
        alpha: Float = Float(1.702),
    },
    MsBiasGelu "ms_bias_gelu" Microsoft "BiasGelu" (2, 2) (1, 1) {},
    MsFastGelu "ms_fast_gelu" Microsoft "FastGelu" (1, 2) (1, 1) {},
    MsSkipLayerNormalization "ms_skip_layer_normalization" Microsoft "SkipLayerNormalization" (3, 5) (1, 4) {
        epsilon: Float = Float(1e-12),
    },
    MsSkipSimplifiedLayerNormalization "ms_skip_simplified_layer_normalization" Microsoft "SkipSimplifiedLayerNormalization" (3, 4) (1, 4) {
        epsilon: Float = Float(1e-12),
    },
    MsSimplifiedLayerNormalization "ms_simplified_layer_normalization" Microsoft "SimplifiedLayerNormalization" (2, 2) (1, 2) {
        axis: Int = Int(-1),
        epsilon: Float = Float(1e-5),
        stash_type: Int = Int(1),
    },
    MsEmbedLayerNormalization "ms_embed_layer_normalization" Microsoft "EmbedLayerNormalization" (7, 9) (1, 3) {
        epsilon: Float = Float(1e-12),
        mask_index_type: Int = Int(0),
    },
    MsAttention "ms_attention" Microsoft "Attention" (2, 7) (1, 2) {
        do_rotary: Int = Int(0),
        mask_filter_value: Float = Float(-10000.0),
        num_heads: Int = Required,
        past_present_share_buffer: Int = Optional,
        qkv_hidden_sizes: Ints = Optional,
        rotary_embedding_dim: Int = Optional,
        scale: Float = Optional,
        unidirectional: Int = Int(0),
    },
    MsMultiHeadAttention "ms_multi_head_attention" Microsoft "MultiHeadAttention" (1, 8) (1, 3) {
        mask_filter_value: Float = Float(-10000.0),
        num_heads: Int = Required,
        scale: Float = Optional,
        unidirectional: Int = Int(0),
    },
    MsFusedMatMul "ms_fused_matmul" Microsoft "FusedMatMul" (2, 2) (1, 1) {
        alpha: Float = Float(1.0),
        transA: Int = Int(0),
        transB: Int = Int(0),
        transBatchA: Int = Int(0),
        transBatchB: Int = Int(0),
    },
    MsFusedGemm "ms_fused_gemm" Microsoft "FusedGemm" (2, 3) (1, 1) {
        activation: Str = Str(""),
        activation_alpha: Float = Optional,
        activation_beta: Float = Optional,
        activation_gamma: Float = Optional,
        alpha: Float = Float(1.0),
        beta: Float = Float(1.0),
        transA: Int = Int(0),
        transB: Int = Int(0),
    },
    MsBiasSplitGelu "ms_bias_split_gelu" Microsoft "BiasSplitGelu" (2, 2) (1, 1) {},
    MsBiasAdd "ms_bias_add" Microsoft "BiasAdd" (3, 3) (1, 1) {},
    MsDynamicQuantizeMatMul "ms_dynamic_quantize_matmul" Microsoft "DynamicQuantizeMatMul" (3, 5) (1, 1) {},
    MsDynamicQuantizeLSTM "ms_dynamic_quantize_lstm" Microsoft "DynamicQuantizeLSTM" (12, 12) (1, 3) {
        activation_alpha: Floats = Optional,
        activation_beta: Floats = Optional,
        activations: Strs = Optional,
        clip: Float = Optional,
        direction: Str = Str("forward"),
        hidden_size: Int = Optional,
        input_forget: Int = Int(0),
    },
    MsMatMulIntegerToFloat "ms_matmul_integer_to_float" Microsoft "MatMulIntegerToFloat" (4, 7) (1, 1) {},
    MsRotaryEmbedding "ms_rotary_embedding" Microsoft "RotaryEmbedding" (4, 4) (1, 1) {
        interleaved: Int = Int(0),
        is_packed_batching: Int = Int(0),
        num_heads: Int = Int(0),
        rotary_embedding_dim: Int = Int(0),
        scale: Float = Float(1.0),
    },
    AtLeast "at_least" Lancet "AtLeast" (2, 2) (1, 1) {},
    AtMost "at_most" Lancet "AtMost" (2, 2) (1, 1) {},
    Linear "linear" Lancet "Linear" (2, 4) (1, 1) {
        activation: Str = Str("none"),
    },
    IntegerLinear "integer_linear" Lancet "IntegerLinear" (2, 2) (1, 1) {},
    FromSparse "from_sparse" Lancet "FromSparse" (2, 2) (1, 1) {
        shape: Ints = Required,
    },
    EmbeddingLookup "embedding_lookup" Lancet "EmbeddingLookup" (2, MANY) (1, 1) {
        scales: Floats = Optional,
        zero_points: Ints = Optional,
    },
    ScaledDotProductAttention "scaled_dot_product_attention" Lancet "ScaledDotProductAttention" (3, 11) (1, 2) {
        num_heads: Int = Required,
        scale: Float = Required,
        masked_value: Float = Float(-3.402_823_5e38),
        probabilities: Str = Str("each"),
        score_rounding: Floats = Optional,
        masked_score_rounding: Floats = Optional,
        probability_rounding: Floats = Optional,
        exact_keys: Int = Optional,
    },
    GeneralizedAttention "generalized_attention" Lancet "GeneralizedAttention" (3, MANY) (1, 2) {
        num_heads: Int = Required,
        probabilities: Str = Str("each"),
        score: Strs = Optional,
        weight: Strs = Optional,
        probability: Strs = Optional,
    },
    Elementwise "elementwise" Lancet "Elementwise" (1, MANY) (1, 1) {
        body: Strs = Required,
    },
    TokenPacking "token_packing" Lancet "TokenPacking" (1, 1) (2, 2) {
        keep_first: Int = Int(0),
    },
    PackedAttention "packed_attention" Lancet "PackedAttention" (4, 6) (1, 1) {
        num_heads: Int = Required,
        scale: Float = Required,
        masked_value: Float = Float(-3.402_823_5e38),
        score_rounding: Floats = Optional,
        masked_score_rounding: Floats = Optional,
        probability_rounding: Floats = Optional,
        exact_keys: Int = Optional,
    },
}

impl Operator {
    /// The operator of this name in IR text.
    pub fn from_text(text: &str) -> Option<Operator> {
        Operator::ALL
            .iter()
            .copied()
            .find(|op| op.schema().text == text)
    }

    /// The operator of this domain and name in an ONNX file.
    pub fn from_onnx(domain: Domain, name: &str) -> Option<Operator> {
        Operator::ALL
            .iter()
            .copied()
            .find(|op| op.schema().domain == domain && op.schema().onnx == name)
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schema().text)
    }
}
