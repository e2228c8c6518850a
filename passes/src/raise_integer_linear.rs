//! Raises products of quantized values with constant matrices, in each of their spellings, to exact integer products.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @scale: f32[] = 0.5
//!   const @zero: u8[] = 3
//!   const @w: u8[2, 2] = [[127, 128], [129, 131]]
//!   const @middle: u8[] = 128
//!   const @bias: i32[2] = [10, 20]
//!   %0 = quantize_linear %x, @scale, @zero : u8[s, 2]
//!   %1 = matmul_integer %0, @w, @zero, @middle : i32[s, 2]
//!   %2 = add %1, @bias : i32[s, 2]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @scale: f32[] = 0.5
//!   const @zero: u8[] = 3
//!   const @w: i8[2, 2] = [[-1, 1], [0, 3]]
//!   const @bias: i32[2] = [10, 11]
//!   %0 = quantize_linear %x, @scale, @zero : u8[s, 2]
//!   %1 = integer_linear %0, @w : i32[s, 2]
//!   %2 = add %1, @bias : i32[s, 2]
//!   return %2
//! }
//! ```
//!
//! Identity: with `v = w - zero_w`, `(x - zero_x) · v = x · v - zero_x · sum(v)`. A constant zero point of x goes into the
//! bias; one that is computed is multiplied by the sums of rows at run time. `Dequantize(x) · Dequantize(w)` is the same
//! integer product times both scales. Signed bytes are unsigned ones less 128: `QuantizeLinear` to `i8` with zero point z is
//! that to `u8` with z + 128, less 128.
//!
//! Preconditions: the weight is a constant matrix of 8 bits with a zero point (and scale) for the whole or for each output;
//! x has one zero point (and scale), and is unsigned or quantized in the graph. Otherwise the pass declines with a remark.
//!
//! Numeric effect: exact where the graph multiplies integers. Where it multiplies dequantized numbers it reassociates: the
//! integer product is exact and rounded once.
//!
//! Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
//! (arXiv:1712.05877), section 2.3.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Data, Operator, Tensor};

use crate::matcher::{axis_of, commuted, result, tensor_ints, transposed};
use crate::quantized::{dequantize, is_move, quantize};
use crate::vector::constant_name;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-integer-linear",
    summary: "turn products of quantized values with a constant matrix into exact integer products",
    options: &[],
    new: || Box::new(RaiseIntegerLinear),
};

/// Bytes of replaced weights after which they are dropped in the middle of the pass.
const SWEEP_BYTES: usize = 32 << 20;

struct RaiseIntegerLinear;

impl Pass for RaiseIntegerLinear {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let products: Vec<NodeId> = (graph.order().into_iter())
            .filter(|&n| {
                matches!(
                    graph.op(n).operator(),
                    Some(Operator::MatMulInteger | Operator::MatMul | Operator::Gemm)
                )
            })
            .collect();
        let mut weights = Weights::default();
        let mut changed = Changed::No;
        for node in products {
            let raised = match graph.op(node).operator() {
                Some(Operator::MatMulInteger) => integers(graph, node, &mut weights)?,
                _ => dequantized(graph, node, &mut weights)?,
            };
            match raised {
                Raised::No => {}
                Raised::Declined(reason) => cx.missed(graph, node, reason),
                Raised::Yes(message) => {
                    cx.applied(graph, node, message);
                    changed = Changed::Yes;
                }
            }
            if SWEEP_BYTES <= weights.replaced_bytes {
                weights.replaced_bytes = 0;
                graph.sweep();
            }
        }
        Ok(changed)
    }
}

/// What became of a product.
enum Raised {
    /// It is none of constants and quantized values.
    No,
    Declined(String),
    Yes(String),
}

/// A `MatMulInteger` with a constant.
fn integers(graph: &mut Graph, node: NodeId, weights: &mut Weights) -> Result<Raised, PassError> {
    let root = result(node);
    let [x, w, x_zero, w_zero] = [0, 1, 2, 3].map(|i| graph.operand(node, i));
    let (Some(x), Some(w)) = (x, w) else {
        return Ok(Raised::No);
    };
    if graph.constant(w).is_none() || graph.constant(x).is_some() {
        let several = |zero: Value| !is_one(graph, zero);
        if x_zero.is_some_and(several) || w_zero.is_some_and(several) {
            let reason = "the right operand is no constant, and an operand has several zero points";
            return Ok(Raised::Declined(reason.to_owned()));
        }
        // One zero point each: a product of bytes is a step of its own.
        return Ok(Raised::No);
    }
    if graph.ty(w).rank() != 2 || graph.ty(x).rank() < 2 {
        let (w, x) = (graph.ty(w), graph.ty(x));
        return Ok(Raised::Declined(format!(
            "a product of {x} with the constant {w} is not linear"
        )));
    }
    let zero = match x_zero {
        None => Zero::Known(0),
        Some(z) if !is_one(graph, z) => {
            let reason = "the left operand has a zero point for each row";
            return Ok(Raised::Declined(reason.to_owned()));
        }
        Some(z) => match graph.constant(z).and_then(|t| tensor_ints(t)) {
            Some(z) => Zero::Known(z[0]),
            None => Zero::Computed(z),
        },
    };
    let Some(weight) = weights.centered(graph, (w, false), w_zero) else {
        let reason = "the weight's zero point is neither one constant nor one for each output";
        return Ok(Raised::Declined(reason.to_owned()));
    };
    let (x, zero) = match (graph.ty(x).dtype, zero) {
        (DType::U8, zero) => (x, zero),
        (_, Zero::Known(z)) => match unsigned(graph, x)? {
            Some(x) => (x, Zero::Known(z + 128)),
            None => {
                let reason = "the left operand is signed, and not quantized in the graph";
                return Ok(Raised::Declined(reason.to_owned()));
            }
        },
        (_, Zero::Computed(_)) => {
            let reason = "the left operand is signed, with a computed zero point";
            return Ok(Raised::Declined(reason.to_owned()));
        }
    };
    let message = format!("raised to integer_linear with {}", graph.ty(weight.value));
    let product = multiply(graph, node, x, &weight)?;
    // The bias that the only user adds takes the constant in.
    let bias = (graph.single_user(root)).and_then(|user| {
        let sum = result(user);
        let (_, bias) = commuted(graph, sum, Operator::Add, |v| (v == root).then_some(()))?;
        let bias = repeated(graph, bias, weight.sums.len())?;
        Some((sum, bias))
    });
    match (zero, bias) {
        (Zero::Known(z), Some((sum, bias))) => {
            let y = add_bias(graph, product, &weight, z, Some(bias))?;
            graph.replace_all_uses(sum, y)?;
        }
        (Zero::Known(z), None) => {
            let y = add_bias(graph, product, &weight, z, None)?;
            graph.replace_all_uses(root, y)?;
        }
        (Zero::Computed(z), _) => {
            let y = subtract(graph, product, &weight, z)?;
            graph.replace_all_uses(root, y)?;
        }
    }
    Ok(Raised::Yes(message))
}

/// Whether a value has one element.
fn is_one(graph: &Graph, value: Value) -> bool {
    graph
        .ty(value)
        .shape
        .iter()
        .all(|d| d.as_fixed() == Some(1))
}

/// The zero point of the left operand.
#[derive(Clone, Copy)]
enum Zero {
    Known(i64),
    Computed(Value),
}

/// A `MatMul` or `Gemm` of dequantized values.
fn dequantized(
    graph: &mut Graph,
    node: NodeId,
    weights: &mut Weights,
) -> Result<Raised, PassError> {
    let root = result(node);
    let (Some(x), Some(w)) = (graph.operand(node, 0), graph.operand(node, 1)) else {
        return Ok(Raised::No);
    };
    let is_gemm = graph.operator(root) == Some(Operator::Gemm);
    let attributes = graph.attributes(node);
    let flipped = is_gemm && attributes.int_or("transB", 0) != 0;
    let factors = is_gemm
        && (attributes.float_or("alpha", 1.0) != 1.0 || attributes.float_or("beta", 1.0) != 1.0);
    let transposed_x = is_gemm && attributes.int_or("transA", 0) != 0;
    let (w, flipped) = match transposed(graph, w, &[1, 0]) {
        Some(inner) => (inner, !flipped),
        None => (w, flipped),
    };
    let weight = match scaled_weight(graph, w, flipped) {
        Ok(Some(weight)) => weight,
        Ok(None) => return Ok(Raised::No),
        Err(reason) => return Ok(Raised::Declined(reason)),
    };
    let Some((q, from)) = dequantized_bytes(graph, x)? else {
        let x = origin(graph, x);
        let reason = match graph.operator(x) {
            Some(Operator::DequantizeLinear) => match graph.operand(x.node, 0).map(|q| graph.ty(q))
            {
                Some(q) if !is_byte(q.dtype) => format!(
                    "the weight is quantized to bytes, what it multiplies to {}",
                    q.dtype
                ),
                _ => "the weight is quantized, what it multiplies not with one scale".to_owned(),
            },
            _ => "the weight is quantized, what it multiplies is not".to_owned(),
        };
        return Ok(Raised::Declined(reason));
    };
    if factors || transposed_x || graph.ty(x).rank() < 2 {
        return Ok(Raised::Declined(
            "a product with factors is not linear".to_owned(),
        ));
    }
    let (q, zero) = match from.dtype {
        DType::U8 => (q, from.zero_point),
        _ => match unsigned(graph, q)? {
            Some(q) => (q, from.zero_point + 128),
            None => {
                let reason = "the left operand is signed, and not quantized in the graph";
                return Ok(Raised::Declined(reason.to_owned()));
            }
        },
    };
    let Some(centered) = weights.centered(graph, (weight.w, flipped), weight.zero_point) else {
        return Ok(Raised::Declined(
            "the weight's zero point does not fit".to_owned(),
        ));
    };
    let n = centered.sums.len();
    let scale = |s: &f32| (f64::from(*s) * f64::from(from.scale)) as f32;
    let scales = match &weight.scales[..] {
        [one] => Tensor::new([], vec![scale(one)]),
        each if each.len() == n => Tensor::new([n], each.iter().map(scale).collect::<Vec<f32>>()),
        _ => {
            return Ok(Raised::Declined(
                "the weight's scales do not fit".to_owned(),
            ));
        }
    };
    let message = format!("raised to integer_linear with {}", graph.ty(centered.value));
    let product = multiply(graph, node, q, &centered)?;
    let sum = add_bias(graph, product, &centered, zero, None)?;
    let to = Attributes::new().with("to", Attribute::Str("f32".into()));
    let real = result(graph.add(Op::Apply(Operator::Cast, to), &[Some(sum)])?);
    let scales = graph.add_const(
        &format!("{}_scales", constant_name(graph, centered.value)),
        Arc::new(scales),
    );
    let mut y = apply(graph, Operator::Mul, &[real, scales])?;
    if let Some(c) = graph.operand(node, 2) {
        y = apply(graph, Operator::Add, &[y, c])?;
    }
    graph.replace_all_uses(root, y)?;
    Ok(Raised::Yes(message))
}

/// A constant matrix of bytes with scales, each for the whole or for each output.
struct ScaledWeight {
    w: Value,
    scales: Vec<f32>,
    zero_point: Option<Value>,
}

/// The operands of a `DequantizeLinear` of a constant matrix of bytes; outputs are its rows if `flipped`, otherwise its columns. Or
/// why it is no weight of an integer product.
fn scaled_weight(
    graph: &Graph,
    value: Value,
    flipped: bool,
) -> Result<Option<ScaledWeight>, String> {
    if graph.operator(value) != Some(Operator::DequantizeLinear) {
        return Ok(None);
    }
    let node = value.node;
    let [w, scales] = [0, 1].map(|i| graph.operand(node, i));
    let (Some(w), Some(scales)) = (w, scales) else {
        return Ok(None);
    };
    if graph.constant(w).is_none() || graph.ty(w).rank() != 2 {
        return Ok(None);
    }
    if !is_byte(graph.ty(w).dtype) {
        return Err(format!("the weight is quantized to {}", graph.ty(w).dtype));
    }
    if graph.attributes(node).int_or("block_size", 0) != 0 {
        return Err("the weight has a scale for each block".to_owned());
    }
    let scales = graph.constant(scales).and_then(|s| s.as_slice::<f32>());
    let Some(scales) = scales.filter(|_| graph.ty(value).dtype == DType::F32) else {
        return Err("the scales of the weight are not constants of f32".to_owned());
    };
    let of_outputs = axis_of(graph, node, 2) == Some(usize::from(!flipped));
    if !of_outputs && scales.len() != 1 {
        return Err("the weight has a scale for each input".to_owned());
    }
    Ok(Some(ScaledWeight {
        w,
        scales: scales.to_vec(),
        zero_point: graph.operand(node, 2),
    }))
}

fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

/// What moves of elements began with.
fn origin(graph: &Graph, mut value: Value) -> Value {
    while is_move(graph, value)
        && let Some(operand) = graph.operand(value.node, 0)
    {
        value = operand;
    }
    value
}

/// The bytes that `x` was dequantized from, moved as it was, and their parameters.
fn dequantized_bytes(
    graph: &mut Graph,
    x: Value,
) -> Result<Option<(Value, crate::quantized::Parameters)>, PassError> {
    let mut moves = Vec::new();
    let mut at = x;
    while is_move(graph, at) {
        moves.push(graph.op(at.node).clone());
        let Some(operand) = graph.operand(at.node, 0) else {
            return Ok(None);
        };
        at = operand;
    }
    let Some((mut q, parameters)) = dequantize(graph, at) else {
        return Ok(None);
    };
    if !is_byte(parameters.dtype) {
        return Ok(None);
    }
    for op in moves.into_iter().rev() {
        q = result(graph.add(op, &[Some(q)])?);
    }
    Ok(Some((q, parameters)))
}

/// Signed bytes plus 128, where they are quantized in the graph.
fn unsigned(graph: &mut Graph, x: Value) -> Result<Option<Value>, PassError> {
    if is_move(graph, x) {
        let Some(operand) = graph.operand(x.node, 0) else {
            return Ok(None);
        };
        let Some(operand) = unsigned(graph, operand)? else {
            return Ok(None);
        };
        let op = graph.op(x.node).clone();
        return Ok(Some(result(graph.add(op, &[Some(operand)])?)));
    }
    let Some((real, p)) = quantize(graph, x).filter(|(_, p)| p.dtype == DType::I8) else {
        return Ok(None);
    };
    let Ok(zero) = u8::try_from(p.zero_point + 128) else {
        return Ok(None);
    };
    let scale = graph.operand(x.node, 1);
    let zero = graph.add_const("zero_point", Arc::new(Tensor::new([], vec![zero])));
    let op = Op::Apply(Operator::QuantizeLinear, Attributes::new());
    let node = graph.add(op, &[Some(real), scale, Some(zero)])?;
    let name = graph.node_name(x.node).to_owned();
    graph.set_node_name(node, &name);
    Ok(Some(result(node)))
}

fn multiply(
    graph: &mut Graph,
    node: NodeId,
    x: Value,
    weight: &Centered,
) -> Result<Value, PassError> {
    let op = Op::Apply(Operator::IntegerLinear, Attributes::new());
    let product = graph.add(op, &[Some(x), Some(weight.value)])?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(product, &name);
    Ok(result(product))
}

/// `product + bias - zero · sums`, where that is not `product` itself.
fn add_bias(
    graph: &mut Graph,
    product: Value,
    weight: &Centered,
    zero: i64,
    bias: Option<(String, Vec<i32>)>,
) -> Result<Value, PassError> {
    let (name, bias) = bias.unwrap_or_default();
    let sums = weight.sums.iter().enumerate();
    // Modulo 2^32, as the sums of products are.
    let constant = sums.map(|(i, sum)| {
        let at_zero = (zero as i32).wrapping_mul(*sum);
        bias.get(i).copied().unwrap_or(0).wrapping_sub(at_zero)
    });
    let constant: Vec<i32> = constant.collect();
    if constant.iter().all(|&c| c == 0) {
        return Ok(product);
    }
    let constant = Tensor::new([constant.len()], constant);
    let constant = graph.add_const(&name, Arc::new(constant));
    apply(graph, Operator::Add, &[product, constant])
}

/// `product - zero · sums`.
fn subtract(
    graph: &mut Graph,
    product: Value,
    weight: &Centered,
    zero: Value,
) -> Result<Value, PassError> {
    let to = Attributes::new().with("to", Attribute::Str("i32".into()));
    let zero = result(graph.add(Op::Apply(Operator::Cast, to), &[Some(zero)])?);
    let sums = Tensor::new([weight.sums.len()], weight.sums.to_vec());
    let sums = graph.add_const("row_sums", Arc::new(sums));
    let at_zero = apply(graph, Operator::Mul, &[sums, zero])?;
    apply(graph, Operator::Sub, &[product, at_zero])
}

fn apply(graph: &mut Graph, operator: Operator, operands: &[Value]) -> Result<Value, PassError> {
    let operands: Vec<Option<Value>> = operands.iter().copied().map(Some).collect();
    Ok(result(
        graph.add(Op::Apply(operator, Attributes::new()), &operands)?,
    ))
}

/// A constant `i32` vector of `n`, or one number repeated, with its name.
fn repeated(graph: &Graph, value: Value, n: usize) -> Option<(String, Vec<i32>)> {
    let tensor = graph.constant(value)?;
    let (values, shape) = (tensor.as_slice::<i32>()?, tensor.shape());
    let leading_ones = shape.iter().rev().skip(1).all(|&d| d == 1);
    let vector = match values {
        [one] => vec![*one; n],
        each if each.len() == n && leading_ones => each.to_vec(),
        _ => return None,
    };
    // A product of fewer axes than its bias would grow by the sum.
    (shape.len() <= 1).then(|| (constant_name(graph, value), vector))
}

/// A weight `[n, k]` less its zero point.
#[derive(Clone)]
struct Centered {
    value: Value,
    /// Of each row, modulo 2^32.
    sums: Arc<[i32]>,
}

/// Weights that were centered, each once.
#[derive(Default)]
struct Weights {
    /// By constant, orientation and zero point.
    made: HashMap<(NodeId, bool, Option<NodeId>), Centered>,
    replaced_bytes: usize,
}

impl Weights {
    /// `w[k, n]`, or `w[n, k]` if `flipped`, less its zero point, as `[n, k]`: `i8` where it fits, otherwise `i16`.
    fn centered(
        &mut self,
        graph: &mut Graph,
        (w, flipped): (Value, bool),
        zero_point: Option<Value>,
    ) -> Option<Centered> {
        let key = (w.node, flipped, zero_point.map(|z| z.node));
        if let Some(made) = self.made.get(&key) {
            return Some(made.clone());
        }
        let tensor = graph.constant(w)?;
        let &[rows, columns] = tensor.shape() else {
            return None;
        };
        let (n, k) = if flipped {
            (rows, columns)
        } else {
            (columns, rows)
        };
        let zeros = match zero_point {
            None => vec![0],
            Some(z) => tensor_ints(graph.constant(z)?)?,
        };
        if zeros.len() != 1 && zeros.len() != n {
            return None;
        }
        let bytes: Vec<i16> = match tensor.data() {
            Data::U8(v) => v.iter().map(|&b| i16::from(b)).collect(),
            Data::I8(v) => v.iter().map(|&b| i16::from(b)).collect(),
            _ => return None,
        };
        let [of_n, of_k] = if flipped { [k, 1] } else { [1, n] };
        let mut values = Vec::with_capacity(bytes.len());
        let mut sums = Vec::with_capacity(n);
        for i in 0..n {
            let zero = i16::try_from(zeros[i % zeros.len()]).ok()?;
            let row = (0..k).map(|j| bytes[i * of_n + j * of_k] - zero);
            let before = values.len();
            values.extend(row);
            let sum = values[before..]
                .iter()
                .fold(0i32, |s, &v| s.wrapping_add(v.into()));
            sums.push(sum);
        }
        self.replaced_bytes += values.len();
        let narrow: Option<Vec<i8>> = values.iter().map(|&v| i8::try_from(v).ok()).collect();
        let data = narrow.map_or(Data::I16(values), Data::I8);
        let name = constant_name(graph, w);
        let value = graph.add_const(&name, Arc::new(Tensor::try_new(vec![n, k], data)?));
        let made = Centered {
            value,
            sums: sums.into(),
        };
        self.made.insert(key, made.clone());
        Some(made)
    }
}
