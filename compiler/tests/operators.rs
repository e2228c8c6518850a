//! `compiler/docs/operators.md` says what the code does: its tables are made here and compared.
//!
//! `INSTA_UPDATE=always cargo test -p lancet --test operators` writes them anew. Nothing in them is written down twice: opsets
//! are what the importer reads, element types are those for which the operator evaluates, and an operator has a kernel if
//! some graph of it lowers to no portable step.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use lancet::CompileOptions;
use lancet::lower::lower;
use lancet::onnx::{reads, written_out};
use lancet_artifact::StepKind;
use lancet_ops::{
    Attribute, AttributeType, Attributes, DType, DefaultValue, Domain, Operator, Tensor,
    TensorView, evaluate,
};

const BEGIN: &str = "<!-- generated -->\n";
const END: &str = "<!-- end -->\n";
const OPSETS: std::ops::RangeInclusive<i64> = 1..=24;

/// Every operator that ai.onnx defines up to opset 24.
const SPECIFICATION: &str = "
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu
CenterCropPad Clip Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape Conv ConvInteger
ConvTranspose Cos Cosh CumSum DFT DeformConv DepthToSpace DequantizeLinear Det Div Dropout
DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND
Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageDecoder InstanceNormalization IsInf
IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul
MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul
Multinomial Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement
OptionalHasElement Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare RegexFullMatch Relu Reshape
Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu
SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap Shape Shrink
Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split
SplitToSequence Sqrt Squeeze StringConcat StringNormalizer StringSplit Sub Sum Swish Tan Tanh TensorScatter
TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
";

const DTYPES: [DType; 13] = [
    DType::F32,
    DType::F64,
    DType::F16,
    DType::BF16,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::Bool,
];

#[test]
fn the_document_says_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operators.md");
    let text = fs::read_to_string(&path).expect("docs/operators.md");
    let (before, rest) = text.split_once(BEGIN).expect("the generated part begins");
    let (found, after) = rest.split_once(END).expect("the generated part ends");
    let expected = tables();
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        let text = format!("{before}{BEGIN}{expected}{END}{after}");
        fs::write(PathBuf::from(&path), text).expect("the document is written");
    } else {
        assert!(
            found == expected,
            "docs/operators.md differs from the code; run with INSTA_UPDATE=always"
        );
    }
}

fn tables() -> String {
    let mut text = String::new();
    for (title, domain, name) in [
        ("ai.onnx", Domain::Onnx, ""),
        ("com.microsoft", Domain::Microsoft, "com.microsoft"),
    ] {
        writeln!(text, "\n### {title}\n").expect("text grows");
        text.push_str("| operator | opsets | element types | runs by |\n|---|---|---|---|\n");
        let mut operators: Vec<Operator> = Operator::ALL
            .iter()
            .copied()
            .filter(|op| op.schema().domain == domain)
            .collect();
        operators.sort_by_key(|op| op.schema().onnx);
        for op in operators {
            let onnx = op.schema().onnx;
            writeln!(
                text,
                "| {onnx} | {} | {} | {} |",
                opsets(name, onnx),
                types(op),
                if has_kernel(op) { "kernel" } else { "portable" }
            )
            .expect("text grows");
        }
    }
    let written_out: Vec<&str> = written_out().collect();
    writeln!(
        text,
        "\nWritten out as other operators when they are read: {}.",
        written_out.join(", ")
    )
    .expect("text grows");
    let missing: Vec<&str> = SPECIFICATION
        .split_whitespace()
        .filter(|onnx| !matches!(*onnx, "If" | "Loop" | "Scan"))
        .filter(|onnx| !OPSETS.into_iter().any(|o| reads("", onnx, o)))
        .collect();
    let missing = missing.join(", ");
    writeln!(
        text,
        "\n### Not implemented\n\nOf ai.onnx up to opset 24: {missing}.\n"
    )
    .expect("text grows");
    text
}

/// The opsets in which the importer reads an operator.
fn opsets(domain: &str, onnx: &str) -> String {
    let read: Vec<i64> = OPSETS.filter(|&o| reads(domain, onnx, o)).collect();
    match (domain, read.as_slice()) {
        ("", [first, .., last]) => format!("{first} to {last}"),
        _ => "1".to_owned(),
    }
}

/// The element types of the first operand for which the operator evaluates on some other operands.
fn types(op: Operator) -> String {
    let accepted: Vec<DType> = DTYPES.into_iter().filter(|&t| accepts(op, t)).collect();
    if accepted == DTYPES {
        return "all".to_owned();
    }
    let (floats, integers) = (&DTYPES[..4], &DTYPES[4..12]);
    let mut names = Vec::new();
    for (group, name) in [(floats, "float"), (integers, "integer")] {
        if group.iter().all(|t| accepted.contains(t)) {
            names.push(name);
        } else {
            names.extend(
                group
                    .iter()
                    .filter(|t| accepted.contains(t))
                    .map(|t| t.name()),
            );
        }
    }
    if accepted.contains(&DType::Bool) {
        names.push("bool");
    }
    names.join(", ")
}

/// Attributes that must be set, some values for each.
fn attributes(op: Operator) -> Attributes {
    let mut attributes = Attributes::new();
    for a in op.schema().attributes {
        let value = match (a.name, a.ty) {
            ("equation", _) => Attribute::Str("ij,jk->ik".to_owned()),
            ("kernel_shape", _) if a.default == DefaultValue::Required => {
                Attribute::Ints(vec![1, 1])
            }
            ("q_num_heads" | "kv_num_heads", _) => Attribute::Int(2),
            _ if a.default != DefaultValue::Required => continue,
            ("axis", AttributeType::Int) => Attribute::Int(0),
            ("to", _) => Attribute::Str("f32".to_owned()),
            ("direction", _) => Attribute::Str("LEFT".to_owned()),
            ("scale", _) => Attribute::Float(1.0),
            ("num_heads", _) => Attribute::Int(2),
            (_, AttributeType::Int) => Attribute::Int(1),
            (name, ty) => panic!("{op}: no value for {name}: {ty:?}"),
        };
        attributes.set(a.name, value);
    }
    attributes
}

fn accepts(op: Operator, dtype: DType) -> bool {
    let attributes = attributes(op);
    let (least, _) = op.schema().operands;
    let n_results = op.schema().results.0;
    let works = |operands: &[&Tensor]| {
        let views: Vec<Option<TensorView<'_>>> = operands.iter().map(|t| Some(t.view())).collect();
        evaluate(op, &attributes, &views, n_results).is_ok()
    };
    let firsts = tensors(dtype);
    let mut others = firsts.clone();
    others.extend([1i64, 0].map(|v| Tensor::new([1], vec![v])));
    others.push(Tensor::scalar(1i64));
    others.push(Tensor::new([2], vec![0i64, 1]));
    others.push(Tensor::new([2], vec![1i64, 1]));
    for other in [DType::F32, DType::Bool, DType::U8, DType::I32] {
        others.extend(tensors(other));
    }
    let rests: Vec<Vec<&Tensor>> = match least {
        0 | 1 => vec![Vec::new()],
        2 => others.iter().map(|a| vec![a]).collect(),
        3 => {
            let pairs = |a| others.iter().map(move |b| vec![a, b]);
            others.iter().flat_map(pairs).collect()
        }
        _ => others.iter().map(|a| vec![a; least - 1]).collect(),
    };
    if let Some(operands) = particular(op, dtype) {
        return works(&operands.iter().collect::<Vec<_>>());
    }
    let whole = |first| {
        rests
            .iter()
            .map(move |rest| [&[first], rest.as_slice()].concat())
    };
    firsts
        .iter()
        .any(|first| whole(first).any(|operands| works(&operands)))
}

/// Small tensors of ones, of several ranks.
fn tensors(dtype: DType) -> Vec<Tensor> {
    let shapes: [&[usize]; 7] = [&[], &[1], &[2], &[2, 2], &[1, 2, 2], &[1, 1, 2, 2], &[4, 1]];
    shapes.iter().map(|shape| ones(dtype, shape)).collect()
}

fn ones(dtype: DType, shape: &[usize]) -> Tensor {
    let ones = Tensor::new(shape.to_vec(), vec![1.0f32; shape.iter().product()]);
    let to = Attributes::new().with("to", Attribute::Str(dtype.name().to_owned()));
    let cast = evaluate(Operator::Cast, &to, &[Some(ones.view())], 1).expect("a cast of ones");
    cast.into_iter().next().expect("one result")
}

/// Operands of operators that take many which differ among themselves, the first of this element type.
fn particular(op: Operator, dtype: DType) -> Option<Vec<Tensor>> {
    let of = |shape: &[usize]| ones(dtype, shape);
    let f32s = |shape: &[usize]| ones(DType::F32, shape);
    let scalar = || f32s(&[]);
    let u8s = |shape: &[usize]| ones(DType::U8, shape);
    Some(match op {
        Operator::Resize => {
            let region = Tensor::new([0], Vec::<f32>::new());
            vec![of(&[2]), region, Tensor::new([1], vec![2.0f32])]
        }
        Operator::Einsum => vec![of(&[2, 2]), of(&[2, 2])],
        Operator::LSTM => vec![of(&[1, 1, 1]), of(&[1, 4, 1]), of(&[1, 4, 1])],
        Operator::MsDynamicQuantizeLSTM => {
            let mut operands = vec![of(&[1, 1, 1]), u8s(&[1, 1, 4]), u8s(&[1, 1, 4])];
            operands.push(f32s(&[1, 8]));
            operands.push(ones(DType::I32, &[1]));
            operands.extend([f32s(&[1, 1, 1]), f32s(&[1, 1, 1]), f32s(&[1, 3])]);
            operands.extend([f32s(&[1]), u8s(&[1]), f32s(&[1]), u8s(&[1])]);
            operands
        }
        Operator::GRU => vec![of(&[1, 1, 1]), of(&[1, 3, 1]), of(&[1, 3, 1])],
        Operator::RotaryEmbedding => vec![of(&[1, 1, 2, 2]), of(&[1, 2, 1]), of(&[1, 2, 1])],
        Operator::Attention | Operator::MsMultiHeadAttention => vec![of(&[1, 2, 4]); 3],
        Operator::MsAttention => vec![of(&[1, 2, 4]), of(&[4, 12]), of(&[12])],
        Operator::MsRotaryEmbedding => {
            let positions = Tensor::new([1], vec![0i64]);
            vec![of(&[1, 2, 4]), positions, of(&[2, 2]), of(&[2, 2])]
        }
        Operator::MsEmbedLayerNormalization => {
            let mut operands = vec![of(&[2, 2]), ones(DType::I32, &[2, 2])];
            operands.extend((0..3).map(|_| f32s(&[2, 2])));
            operands.extend([f32s(&[2]), f32s(&[2])]);
            operands
        }
        Operator::QLinearMatMul | Operator::QLinearConv => vec![
            of(&[1, 1, 2, 2]),
            scalar(),
            of(&[]),
            if op == Operator::QLinearConv {
                u8s(&[1, 1, 1, 1])
            } else {
                u8s(&[2, 2])
            },
            scalar(),
            u8s(&[]),
            scalar(),
            of(&[]),
        ],
        Operator::MsMatMulIntegerToFloat => {
            vec![of(&[2, 2]), u8s(&[2, 2]), scalar(), scalar()]
        }
        _ => return None,
    })
}

/// True if some graph of the operator is lowered to no portable step.
fn has_kernel(op: Operator) -> bool {
    let attributes = attributes(op);
    let named = attributes
        .iter()
        .map(|(name, value)| match value {
            Attribute::Int(v) => format!("{name} = {v}"),
            Attribute::Float(v) => format!("{name} = {v:?}"),
            Attribute::Str(v) => format!("{name} = {v:?}"),
            other => format!("{name} = {other:?}"),
        })
        .collect::<Vec<String>>();
    let attributes = match named.as_slice() {
        [] => String::new(),
        named => format!(" {{{}}}", named.join(", ")),
    };
    let results: Vec<String> = (0..op.schema().results.0)
        .map(|i| format!("%r{i}"))
        .collect();
    let results = results.join(", ");
    OPERANDS.iter().any(|operands| {
        let text = op.schema().text;
        let graph = format!(
            "graph @g(%x: f32[b, s, 4], %ids: i64[b, s], %i32: i32[b, s], %mask: i32[b, s], %m: f32[4, 4], %bytes: u8[b, s, 4], %signed: i8[4, 3]) dims(b, s) {{
  const @v: f32[4] = random(seed = 1)
  const @w: f32[4, 4] = random(seed = 2)
  const @qkv: f32[4, 12] = random(seed = 3)
  const @bqkv: f32[12] = random(seed = 4)
  const @axis: i64[1] = [-1]
  const @sizes: i64[2] = [2, 2]
  const @one: i64[1] = [1]
  const @three: i64[1] = [3]
  const @pads: i64[6] = [0, 1, 0, 0, 0, 2]
  const @half: f32[] = 0.5
  %p = linear %x, @w
  %f = view %p : f32[b*s, 4]
  %q = view %bytes : u8[b*s, 4]
  {results} = {text} {operands}{attributes}
  return %r0
}}"
        );
        by_kernels(&graph)
    })
}

/// Operands that operators are tried on.
const OPERANDS: &[&str] = &[
    "%p",
    "%f",
    "%p, %p",
    "%p, @v",
    "%p, @half",
    "%p, @v, @v",
    "%p, @w",
    "%f, @w",
    "@w, %ids",
    "%p, @axis",
    "%p, @sizes, @axis",
    "%p, @pads",
    "%p, @one, @three, @axis",
    "%p, %p, @v, @v",
    "%p, %p, @v",
    "%p, %p, %p",
    "%p, @qkv, @bqkv, %mask",
    "%i32, %i32, @w, @w, @w, @v, @v",
    "%p, @v, %p",
    "%q, %signed",
];

/// True if the graph compiles to a plan without a portable step.
fn by_kernels(text: &str) -> bool {
    let Ok(mut graph) = lancet_ir::parse(text) else {
        return false;
    };
    if lancet::optimize(&mut graph, &CompileOptions::default(), &mut |_, _| {}).is_err() {
        return false;
    }
    let Ok((plan, _)) = lower(&graph) else {
        return false;
    };
    let portable = |s: &lancet_artifact::Step| matches!(s.kind, StepKind::Portable { .. });
    2 <= plan.steps.len() && !plan.all_steps().into_iter().any(portable)
}
