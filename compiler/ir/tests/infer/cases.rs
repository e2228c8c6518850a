//! Random operands and attributes for each operator, mostly such as it accepts.

use std::sync::Arc;

use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::random::Random;

/// One application of an operator.
pub(crate) struct Case {
    pub(crate) attributes: Attributes,
    pub(crate) operands: Vec<Option<Tensor>>,
    pub(crate) n_results: usize,
    /// True if integer operands stand for sizes, which may be symbolic.
    pub(crate) sizes: bool,
    /// True if the rank of a result depends on the size of an integer operand, which must then be fixed.
    pub(crate) lengths: bool,
}

impl Case {
    fn new(operands: Vec<Tensor>) -> Case {
        Case {
            attributes: Attributes::new(),
            operands: operands.into_iter().map(Some).collect(),
            n_results: 1,
            sizes: false,
            lengths: false,
        }
    }

    fn set(mut self, name: &str, value: Attribute) -> Case {
        self.attributes.set(name, value);
        self
    }

    fn int(self, name: &str, value: i64) -> Case {
        self.set(name, Attribute::Int(value))
    }

    fn ints(self, name: &str, value: Vec<i64>) -> Case {
        self.set(name, Attribute::Ints(value))
    }

    fn str(self, name: &str, value: &str) -> Case {
        self.set(name, Attribute::Str(value.to_owned()))
    }

    fn maybe(self, r: &mut Random, f: impl FnOnce(Case) -> Case) -> Case {
        if r.chance(50) { f(self) } else { self }
    }

    fn results(mut self, n: usize) -> Case {
        self.n_results = n;
        self
    }

    fn sizes(mut self) -> Case {
        self.sizes = true;
        self.lengths()
    }

    fn lengths(mut self) -> Case {
        self.lengths = true;
        self
    }

    /// Leaves out operand `index` now and then.
    fn without(mut self, r: &mut Random, index: usize) -> Case {
        if r.chance(40) {
            self.operands[index] = None;
        }
        self
    }
}

const FLOATS: [DType; 2] = [DType::F32, DType::F64];
const NUMBERS: [DType; 5] = [DType::F32, DType::F64, DType::I32, DType::I64, DType::U8];
const INTEGERS: [DType; 4] = [DType::I32, DType::I64, DType::U8, DType::I8];
const ANY: [DType; 6] = [
    DType::F32,
    DType::I64,
    DType::I32,
    DType::U8,
    DType::Bool,
    DType::F16,
];

fn f32s(r: &mut Random, shape: &[usize]) -> Tensor {
    r.tensor(DType::F32, shape)
}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(vec![values.len()], values.to_vec())
}

fn sizes(shape: &[usize]) -> Tensor {
    i64s(&shape.iter().map(|&d| d as i64).collect::<Vec<_>>())
}

fn unary(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(0, 4));
    Case::new(vec![r.tensor(dtype, &shape)])
}

fn binary(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(0, 3));
    let (a, b) = (r.narrowed(&shape), r.narrowed(&shape));
    Case::new(vec![r.tensor(dtype, &a), r.tensor(dtype, &b)])
}

fn variadic(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape, n) = (*r.pick(dtypes), r.shape(0, 3), 1 + r.below(3));
    let operands = (0..n).map(|_| {
        let s = r.narrowed(&shape);
        r.tensor(dtype, &s)
    });
    Case::new(operands.collect())
}

fn along_axis(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(1, 4));
    let axis = r.axis(shape.len());
    Case::new(vec![r.tensor(dtype, &shape)]).int("axis", axis)
}

fn reduce(r: &mut Random) -> Case {
    let mut case = unary(r, &NUMBERS);
    let rank = case.operands[0].as_ref().map_or(0, |t| t.shape().len());
    if r.chance(70) {
        case.operands.push(Some(i64s(&r.axes(rank, 0))));
    }
    let (keep, noop) = (r.below(2) as i64, r.below(2) as i64);
    case.int("keepdims", keep)
        .int("noop_with_empty_axes", noop)
        .lengths()
}

/// Operands of a product of matrices.
fn product(r: &mut Random, dtypes: [DType; 2]) -> Case {
    let (batch, k) = (r.shape(0, 2), r.size());
    let side = |r: &mut Random, matrix: [usize; 2], vector: bool, dtype| {
        if vector {
            return r.tensor(dtype, &[k]);
        }
        let shape = [r.narrowed(&batch), matrix.to_vec()].concat();
        r.tensor(dtype, &shape)
    };
    let (m, n) = (r.size(), r.size());
    let (v, w) = (r.chance(15), r.chance(15));
    let a = side(r, [m, k], v, dtypes[0]);
    let b = side(r, [k, n], w, dtypes[1]);
    Case::new(vec![a, b])
}

fn gemm(r: &mut Random) -> Case {
    let (m, k, n) = (r.size(), r.size(), r.size());
    let (ta, tb) = (r.chance(50), r.chance(50));
    let a = f32s(r, &if ta { [k, m] } else { [m, k] });
    let b = f32s(r, &if tb { [n, k] } else { [k, n] });
    let bias = r.narrowed(&[m, n]);
    let c = f32s(r, &bias);
    Case::new(vec![a, b, c])
        .without(r, 2)
        .int("transA", ta.into())
        .int("transB", tb.into())
}

/// Attributes of windows over so many dimensions.
fn windows(r: &mut Random, case: Case, n: usize) -> Case {
    let list = |r: &mut Random, n: usize, least: usize, values: usize| {
        (0..n)
            .map(|_| (least + r.below(values)) as i64)
            .collect::<Vec<_>>()
    };
    let (strides, pads) = (list(r, n, 1, 3), list(r, 2 * n, 0, 2));
    let dilations = list(r, n, 1, 2);
    let case = case.maybe(r, |c| c.ints("strides", strides));
    let case = case.maybe(r, |c| c.ints("dilations", dilations));
    match r.below(4) {
        0 => case.ints("pads", pads),
        1 => case.str("auto_pad", "SAME_UPPER"),
        2 => case.str("auto_pad", "VALID"),
        _ => case,
    }
}

/// Operands of a convolution: data and weight.
fn conv(r: &mut Random, dtype: DType) -> (Case, usize) {
    let (n, group, per, outputs) = (1 + r.below(2), 1 + r.below(2), r.positive(), r.positive());
    let (batch, outputs) = (r.positive(), outputs * group);
    let mut x = vec![batch, group * per];
    let mut w = vec![outputs, per];
    for _ in 0..n {
        x.push(4 + r.below(5));
        w.push(r.positive().min(3));
    }
    let case = Case::new(vec![r.tensor(dtype, &x), r.tensor(dtype, &w)]).int("group", group as i64);
    (windows(r, case, n), outputs)
}

fn pool(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, n) = (*r.pick(dtypes), 1 + r.below(2));
    let mut x = vec![r.positive(), r.positive()];
    x.extend((0..n).map(|_| 4 + r.below(5)));
    let kernel = (0..n).map(|_| 2 + r.below(2) as i64).collect();
    let ceil = r.below(2) as i64;
    let case = Case::new(vec![r.tensor(dtype, &x)]);
    windows(r, case, n)
        .ints("kernel_shape", kernel)
        .int("ceil_mode", ceil)
}

fn recurrent(r: &mut Random, gates: usize) -> Case {
    let (seq, batch, input, hidden) = (r.positive(), r.positive(), r.positive(), r.positive());
    let (batch_first, both) = (r.chance(50), r.chance(50));
    let d = 1 + usize::from(both);
    let x = if batch_first {
        [batch, seq, input]
    } else {
        [seq, batch, input]
    };
    let state = if batch_first {
        [batch, d, hidden]
    } else {
        [d, batch, hidden]
    };
    let operands = vec![
        f32s(r, &x),
        f32s(r, &[d, gates * hidden, input]),
        f32s(r, &[d, gates * hidden, hidden]),
        f32s(r, &[d, 2 * gates * hidden]),
        Tensor::new(vec![batch], vec![seq as i32; batch]),
        f32s(r, &state),
    ];
    let n = 1 + r.below(if gates == 4 { 3 } else { 2 });
    let direction = if both { "bidirectional" } else { "forward" };
    Case::new(operands)
        .without(r, 3)
        .without(r, 4)
        .without(r, 5)
        .str("direction", direction)
        .int("layout", batch_first.into())
        .int("hidden_size", hidden as i64)
        .results(n)
}

/// Data with scale and zero point: for all, along an axis, or in blocks.
fn quantized(r: &mut Random, from: DType, scale: DType, zero: DType, blocks: bool) -> Case {
    let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
    let axis = r.below(shape.len());
    let x = r.tensor(from, &shape);
    let (parameters, block) = match r.below(if blocks { 3 } else { 2 }) {
        0 => (Vec::new(), 0),
        1 => (vec![shape[axis]], 0),
        _ => {
            let mut parameters = shape.clone();
            parameters[axis] = shape[axis].div_ceil(2);
            (parameters, 2)
        }
    };
    let n: usize = parameters.iter().product();
    let scale = match scale {
        DType::F64 => Tensor::new(parameters.clone(), vec![0.5f64; n]),
        _ => Tensor::new(parameters.clone(), vec![0.5f32; n]),
    };
    let zero = Tensor::zeros(zero, parameters);
    let case = Case::new(vec![x, scale, zero])
        .without(r, 2)
        .int("axis", axis as i64);
    if blocks {
        case.int("block_size", block)
    } else {
        case
    }
}

fn scale() -> Tensor {
    Tensor::scalar(0.5f32)
}

fn attention(r: &mut Random) -> Case {
    let (b, groups, kv, d, dv) = (
        r.positive(),
        1 + r.below(2),
        1 + r.below(2),
        r.positive(),
        r.positive(),
    );
    let (sq, sk, past, h) = (r.positive(), r.positive(), r.positive(), groups * kv);
    let (joined, with_past) = (r.chance(50), r.chance(50));
    let tensor = |r: &mut Random, heads: usize, s: usize, d: usize| match joined {
        true => f32s(r, &[b, s, heads * d]),
        false => f32s(r, &[b, heads, s, d]),
    };
    let mut operands = vec![
        tensor(r, h, sq, d),
        tensor(r, kv, sk, d),
        tensor(r, kv, sk, dv),
    ];
    if with_past {
        operands.push(f32s(r, &[sq, past + sk]));
        operands.push(f32s(r, &[b, kv, past, d]));
        operands.push(f32s(r, &[b, kv, past, dv]));
    }
    let mut case = Case::new(operands).results(1 + r.below(4));
    if joined {
        case = case
            .int("q_num_heads", h as i64)
            .int("kv_num_heads", kv as i64);
    }
    if with_past {
        case.operands[3] = None;
    }
    case
}

fn ms_attention(r: &mut Random) -> Case {
    let (b, s, input, h, d) = (
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let operands = vec![
        f32s(r, &[b, s, input]),
        f32s(r, &[input, 3 * h * d]),
        f32s(r, &[3 * h * d]),
    ];
    let n = 1 + r.below(2);
    Case::new(operands)
        .without(r, 2)
        .int("num_heads", h as i64)
        .results(n)
}

fn ms_multi_head_attention(r: &mut Random) -> Case {
    let (b, s, h, d, dv) = (
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let t = r.positive();
    let operands = match r.below(4) {
        0 => vec![f32s(r, &[b, s, h, 3, d])],
        1 => vec![f32s(r, &[b, s, h * d]), f32s(r, &[b, t, h, 2, d])],
        2 => vec![
            f32s(r, &[b, s, h * d]),
            f32s(r, &[b, h, t, d]),
            f32s(r, &[b, h, t, dv]),
        ],
        _ => vec![
            f32s(r, &[b, s, h * d]),
            f32s(r, &[b, t, h * d]),
            f32s(r, &[b, t, h * dv]),
        ],
    };
    let n = 1 + r.below(3);
    Case::new(operands).int("num_heads", h as i64).results(n)
}

fn einsum(r: &mut Random) -> Case {
    let (i, j, k, b) = (r.size(), r.size(), r.size(), r.size());
    let equations: [(&str, Vec<Vec<usize>>); 8] = [
        ("ij,jk->ik", vec![vec![i, j], vec![j, k]]),
        ("bij,bjk", vec![vec![b, i, j], vec![b, j, k]]),
        (
            "...ij, ...jk -> ...ik",
            vec![vec![b, 1, i, j], vec![k, j, k]],
        ),
        ("ii->i", vec![vec![i, i]]),
        ("ij->", vec![vec![i, j]]),
        ("ba", vec![vec![i, j]]),
        ("i,j->ji", vec![vec![i], vec![j]]),
        ("...i->i...", vec![vec![b, j, i]]),
    ];
    let (equation, shapes) = r.pick(&equations);
    let operands = shapes.iter().map(|s| f32s(r, s)).collect();
    Case::new(operands).str("equation", equation)
}

fn slice(r: &mut Random) -> Case {
    let shape = r.shape(1, 3);
    let axes = r.axes(shape.len(), 0);
    let far = [i64::MAX, i64::MIN, i64::from(i32::MAX), -1, 0, 1];
    let bounds = |r: &mut Random| {
        let bound = |_: &i64| {
            if r.chance(30) {
                *r.pick(&far)
            } else {
                r.below(11) as i64 - 5
            }
        };
        i64s(&axes.iter().map(bound).collect::<Vec<_>>())
    };
    let (starts, ends) = (bounds(r), bounds(r));
    let steps: Vec<i64> = axes
        .iter()
        .map(|_| *r.pick(&[1, 1, 1, 2, -1, -2, i64::MAX]))
        .collect();
    let x = *r.pick(&ANY);
    let operands = vec![r.tensor(x, &shape), starts, ends, i64s(&axes), i64s(&steps)];
    let mut case = Case::new(operands).without(r, 4);
    if r.chance(30) {
        case.operands.truncate(4);
    }
    case
}

/// Indices into a dimension.
fn places(r: &mut Random, shape: &[usize], n: usize) -> Tensor {
    r.integers(shape, -(n as i64), n as i64 - 1)
}

fn scatter_nd(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
    let (n, k) = (r.positive(), 1 + r.below(shape.len()));
    let least = *shape.iter().min().expect("a dimension");
    let indices = places(r, &[n, k], least);
    let updates = [&[n], &shape[k..]].concat();
    Case::new(vec![f32s(r, &shape), indices, f32s(r, &updates)])
        .str("reduction", "add")
        .lengths()
}

fn gather_nd(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..2 + r.below(2)).map(|_| r.positive()).collect();
    let batch = r.below(2);
    let k = 1 + r.below(shape.len() - batch);
    let least = *shape.iter().min().expect("a dimension");
    let mut of = shape[..batch].to_vec();
    of.extend([r.positive(), k]);
    let indices = places(r, &of, least);
    Case::new(vec![f32s(r, &shape), indices])
        .int("batch_dims", batch as i64)
        .lengths()
}

fn split(r: &mut Random) -> Case {
    let mut shape = r.shape(1, 3);
    let (axis, n) = (r.axis(shape.len()), 1 + r.below(3));
    let at = axis.rem_euclid(shape.len() as i64) as usize;
    let parts: Vec<usize> = (0..n).map(|_| r.size()).collect();
    if r.chance(50) {
        shape[at] = parts.iter().sum();
        let x = r.tensor(DType::I64, &shape);
        return Case::new(vec![x, sizes(&parts)])
            .int("axis", axis)
            .results(n);
    }
    if r.chance(50) {
        shape[at] = n * r.size();
    }
    let case = Case::new(vec![r.tensor(DType::I64, &shape)]).int("axis", axis);
    case.maybe(r, |c| c.int("num_outputs", n as i64)).results(n)
}

fn reshape(r: &mut Random) -> Case {
    let shape = r.shape(0, 4);
    let n: usize = shape.iter().product();
    let mut wanted = vec![1i64];
    let mut rest = n;
    for d in [2, 3, 4, 2] {
        if rest.is_multiple_of(d) && 0 < rest && r.chance(50) {
            wanted.push(d as i64);
            rest /= d;
        }
    }
    wanted.push(rest as i64);
    if r.chance(60) {
        let i = r.below(wanted.len());
        wanted[i] = -1;
    }
    if r.chance(30) && wanted[0] != -1 && !shape.is_empty() {
        wanted = vec![0, -1];
    }
    Case::new(vec![r.tensor(DType::I64, &shape), i64s(&wanted)]).sizes()
}

fn channels(r: &mut Random, n_parameters: usize) -> Case {
    let shape = [vec![r.positive(), 2 * r.positive()], r.shape(0, 2)].concat();
    let mut operands = vec![f32s(r, &shape)];
    operands.extend((0..n_parameters).map(|_| Tensor::new(vec![shape[1]], vec![0.5f32; shape[1]])));
    Case::new(operands)
}

fn layer_norm(r: &mut Random, n_parameters: usize, most_results: usize) -> Case {
    let case = along_axis(r, &[DType::F32]);
    let shape = case.operands[0]
        .as_ref()
        .map_or(Vec::new(), |t| t.shape().to_vec());
    let axis = case
        .attributes
        .int_or("axis", 0)
        .rem_euclid(shape.len() as i64) as usize;
    let mut case = case.results(1 + r.below(most_results));
    case.operands
        .extend((0..n_parameters).map(|_| Some(f32s(r, &shape[axis..]))));
    case
}

fn skip_layer_norm(r: &mut Random, n_parameters: usize) -> Case {
    let (b, s, h) = (r.positive(), r.positive(), r.positive());
    let x = [b, s, h];
    let skip: &[usize] = if r.chance(30) { &x[1..] } else { &x };
    let mut operands = vec![f32s(r, &x), f32s(r, skip)];
    operands.extend((0..n_parameters).map(|_| f32s(r, &[h])));
    let n = 1 + r.below(4);
    Case::new(operands).without(r, 1 + n_parameters).results(n)
}

fn integer_product(r: &mut Random) -> Case {
    let (a, b) = (
        *r.pick(&[DType::I8, DType::U8]),
        *r.pick(&[DType::I8, DType::U8]),
    );
    let mut case = product(r, [a, b]);
    case.operands.extend([
        Some(Tensor::zeros(a, vec![])),
        Some(Tensor::zeros(b, vec![])),
    ]);
    case
}

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
        O::Sum | O::Mean => variadic(r, &FLOATS),
        O::Where => {
            let mut case = binary(r, &ANY);
            let shape = r.shape(0, 1);
            case.operands.insert(0, Some(r.tensor(DType::Bool, &shape)));
            case.sizes()
        }
        O::Clip => {
            let dtype = *r.pick(&NUMBERS);
            let shape = r.shape(0, 3);
            let operands = vec![
                r.tensor(dtype, &shape),
                r.tensor(dtype, &[]),
                r.tensor(dtype, &[]),
            ];
            Case::new(operands).without(r, 1).without(r, 2)
        }
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
        O::Squeeze => {
            let shape: Vec<usize> = (0..r.below(4))
                .map(|_| if r.chance(50) { 1 } else { 2 + r.below(2) })
                .collect();
            let ones: Vec<i64> = (0..shape.len())
                .filter(|&i| shape[i] == 1)
                .map(|i| i as i64)
                .collect();
            Case::new(vec![r.tensor(DType::I64, &shape), i64s(&ones)]).lengths()
        }
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
        O::Transpose => {
            let shape = r.shape(0, 4);
            let perm: Vec<i64> = r
                .axes(shape.len(), shape.len())
                .iter()
                .map(|a| a.rem_euclid(shape.len() as i64))
                .collect();
            Case::new(vec![r.tensor(DType::I64, &shape)]).maybe(r, |c| c.ints("perm", perm))
        }
        O::Concat => {
            let (shape, n) = (r.shape(1, 3), 1 + r.below(3));
            let axis = r.axis(shape.len());
            let at = axis.rem_euclid(shape.len() as i64) as usize;
            let parts = (0..n).map(|_| {
                let mut shape = shape.clone();
                shape[at] = r.size();
                r.tensor(DType::I64, &shape)
            });
            Case::new(parts.collect()).int("axis", axis).sizes()
        }
        O::Split => split(r),
        O::Slice => slice(r),
        O::Gather => {
            let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
            let (axis, of) = (r.axis(shape.len()), r.shape(0, 2));
            let n = shape[axis.rem_euclid(shape.len() as i64) as usize];
            let indices = places(r, &of, n);
            Case::new(vec![r.tensor(DType::I64, &shape), indices]).int("axis", axis)
        }
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
        O::Pad => {
            let shape = r.shape(1, 3);
            let axes = r.axes(shape.len(), 0);
            let pads = r.integers(&[2 * axes.len()], -1, 2);
            let operands = vec![f32s(r, &shape), pads, Tensor::scalar(1.0f32), i64s(&axes)];
            Case::new(operands).without(r, 2).sizes()
        }
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
        O::OneHot => {
            let shape = r.shape(0, 3);
            let axis = r.axis(shape.len() + 1);
            let operands = vec![
                r.tensor(DType::I64, &shape),
                Tensor::scalar(3i64),
                f32s(r, &[2]),
            ];
            Case::new(operands).int("axis", axis).sizes()
        }
        O::TopK => {
            let case = along_axis(r, &NUMBERS).results(2).sizes();
            let k = r.below(3) as i64;
            let mut case = case;
            case.operands.push(Some(i64s(&[k])));
            case
        }
        O::CumSum => {
            let shape = r.shape(1, 3);
            let axis = r.axis(shape.len());
            Case::new(vec![f32s(r, &shape), Tensor::scalar(axis)])
        }
        O::Compress => {
            let case = along_axis(r, &ANY);
            let n = r.below(3);
            let mut case = case;
            case.operands.push(Some(r.tensor(DType::Bool, &[n])));
            if r.chance(40) {
                case.attributes.remove("axis");
            }
            case
        }
        O::DepthToSpace => {
            let x = [r.positive(), 4 * r.positive(), r.positive(), r.positive()];
            Case::new(vec![f32s(r, &x)]).int("blocksize", 2)
        }
        O::SpaceToDepth => {
            let x = [
                r.positive(),
                r.positive(),
                2 * r.positive(),
                2 * r.positive(),
            ];
            Case::new(vec![f32s(r, &x)]).int("blocksize", 2)
        }
        O::ReverseSequence => {
            let shape = [vec![r.positive(), r.positive()], r.shape(0, 1)].concat();
            let (batch, n) = (r.below(2), shape[0].min(shape[1]));
            let lengths = r.integers(&[shape[batch]], 1, n as i64);
            let case = Case::new(vec![f32s(r, &shape), lengths]);
            case.int("batch_axis", batch as i64)
                .int("time_axis", 1 - batch as i64)
        }
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
        O::MsFusedMatMul => {
            let (b, m, k, n) = (r.positive(), r.positive(), r.positive(), r.positive());
            let (ta, tb, batch) = (r.chance(50), r.chance(50), r.chance(30));
            let arrange = |rows: usize, columns: usize, t: bool| match (t, batch) {
                (false, false) => [b, rows, columns],
                (true, false) => [b, columns, rows],
                (false, true) => [rows, b, columns],
                (true, true) => [columns, b, rows],
            };
            Case::new(vec![
                f32s(r, &arrange(m, k, ta)),
                f32s(r, &arrange(k, n, tb)),
            ])
            .int("transA", ta.into())
            .int("transB", tb.into())
            .int("transBatchA", batch.into())
            .int("transBatchB", batch.into())
        }
        O::Einsum => einsum(r),
        O::MatMulInteger => integer_product(r).without(r, 2).without(r, 3),
        O::QLinearMatMul => {
            let mut p = integer_product(r).operands;
            let (zb, za) = (p.pop().flatten(), p.pop().flatten());
            let (b, a) = (p.pop().flatten(), p.pop().flatten());
            let y = Some(Tensor::zeros(DType::U8, vec![]));
            let mut case = Case::new(Vec::new());
            case.operands = vec![a, Some(scale()), za, b, Some(scale()), zb, Some(scale()), y];
            case
        }
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
        O::ConvInteger => conv(r, DType::U8).0,
        O::QLinearConv => {
            let (mut case, _) = conv(r, DType::U8);
            let zero = || Some(Tensor::scalar(0u8));
            let (w, x) = (case.operands.pop().flatten(), case.operands.pop().flatten());
            case.operands = vec![
                x,
                Some(scale()),
                zero(),
                w,
                Some(scale()),
                zero(),
                Some(scale()),
                zero(),
            ];
            case
        }
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
        O::QuantizeLinear => {
            let (scale, zero) = (
                *r.pick(&FLOATS),
                *r.pick(&[DType::U8, DType::I8, DType::I16]),
            );
            let case = quantized(r, scale, scale, zero, true);
            match case.operands[2] {
                None => case.maybe(r, |c| c.str("output_dtype", "i8")),
                Some(_) => case,
            }
        }
        O::DequantizeLinear => {
            let (from, scale) = (
                *r.pick(&[DType::U8, DType::I8, DType::I32]),
                *r.pick(&[DType::F32]),
            );
            quantized(r, from, scale, from, true)
        }
        O::MsQuantizeLinear => quantized(r, DType::F32, DType::F32, DType::U8, false),
        O::MsDequantizeLinear => quantized(r, DType::I8, DType::F32, DType::I8, false),
        O::DynamicQuantizeLinear => unary(r, &[DType::F32]).results(3),
        O::DFT => {
            let mut shape: Vec<usize> = (0..2 + r.below(2)).map(|_| r.positive()).collect();
            let rank = shape.len();
            let (inverse, onesided) = (r.chance(50), r.chance(50));
            shape[rank - 1] = if onesided && !inverse { 1 } else { 2 };
            let (n, axis) = (r.positive() as i64, r.below(rank - 1) as i64);
            Case::new(vec![
                f32s(r, &shape),
                Tensor::scalar(n),
                Tensor::scalar(axis),
            ])
            .without(r, 1)
            .without(r, 2)
            .int("inverse", inverse.into())
            .int("onesided", onesided.into())
            .sizes()
        }
        O::LSTM => recurrent(r, 4),
        O::GRU => recurrent(r, 3),
        O::RNN => recurrent(r, 1),
        O::Attention => attention(r),
        O::RotaryEmbedding => {
            let (b, h, s, half, n) = (r.positive(), r.positive(), r.positive(), r.positive(), 5);
            let x = f32s(r, &[b, h, s, 2 * half]);
            let operands = vec![
                x,
                f32s(r, &[n, half]),
                f32s(r, &[n, half]),
                r.integers(&[b, s], 0, 4),
            ];
            Case::new(operands)
        }
        O::MsRotaryEmbedding => {
            let (b, h, s, half, n) = (r.positive(), r.positive(), r.positive(), r.positive(), 5);
            let x = f32s(r, &[b, h, s, 2 * half]);
            let operands = vec![
                x,
                r.integers(&[b, s], 0, 4),
                f32s(r, &[n, half]),
                f32s(r, &[n, half]),
            ];
            Case::new(operands)
        }
        O::MsAttention => ms_attention(r),
        O::MsMultiHeadAttention => ms_multi_head_attention(r),
        O::MsEmbedLayerNormalization => {
            let (b, s, h) = (r.positive(), r.positive(), r.positive());
            let ids = |r: &mut Random| Tensor::zeros(DType::I32, vec![b, s.max(r.below(1))]);
            let operands = vec![
                ids(r),
                ids(r),
                f32s(r, &[3, h]),
                f32s(r, &[4, h]),
                f32s(r, &[2, h]),
                f32s(r, &[h]),
                f32s(r, &[h]),
                ids(r),
            ];
            let n = 1 + r.below(3);
            Case::new(operands).without(r, 7).results(n)
        }
        O::MsBiasGelu | O::MsFastGelu => {
            let shape = r.shape(1, 3);
            let bias = f32s(r, &shape[shape.len() - 1..]);
            Case::new(vec![f32s(r, &shape), bias])
        }
        O::MsBiasSplitGelu => {
            let (b, s, h) = (r.positive(), r.positive(), 2 * r.positive());
            Case::new(vec![f32s(r, &[b, s, h]), f32s(r, &[h])])
        }
        O::MsBiasAdd => {
            let (b, s, h) = (r.positive(), r.positive(), r.positive());
            Case::new(vec![
                f32s(r, &[b, s, h]),
                f32s(r, &[h]),
                f32s(r, &[b, s, h]),
            ])
        }
        O::Linear => {
            let (batch, k, n) = (r.shape(0, 2), r.size(), r.size());
            let (x, y) = ([batch.clone(), vec![k]].concat(), [batch, vec![n]].concat());
            let residual = r.narrowed(&y);
            let operands = vec![
                f32s(r, &x),
                f32s(r, &[n, k]),
                f32s(r, &[n]),
                f32s(r, &residual),
            ];
            Case::new(operands).without(r, 2).without(r, 3)
        }
        O::EmbeddingLookup => {
            let (shape, h) = (r.shape(0, 2), r.positive());
            let (a, b) = (r.narrowed(&shape), r.narrowed(&shape));
            let operands = vec![
                places(r, &a, 3),
                f32s(r, &[3, h]),
                places(r, &b, 4),
                f32s(r, &[4, h]),
            ];
            Case::new(operands)
        }
        O::ScaledDotProductAttention => {
            let (b, sq, sk, h, d, dv) = (
                r.positive(),
                r.size(),
                r.size(),
                r.positive(),
                r.positive(),
                r.positive(),
            );
            let bias = r.narrowed(&[b, h, sq, sk]);
            let operands = vec![
                f32s(r, &[b, sq, h * d]),
                f32s(r, &[b, sk, h * d]),
                f32s(r, &[b, sk, h * dv]),
                r.tensor(DType::Bool, &[b, sk]),
                f32s(r, &bias),
            ];
            Case::new(operands)
                .without(r, 3)
                .without(r, 4)
                .int("num_heads", h as i64)
                .set("scale", Attribute::Float(0.5))
        }
    }
}
