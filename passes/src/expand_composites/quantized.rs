//! Products of quantized matrices as exact integer products, with the quantization around them.

use lancet_ir::{Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use super::{Declined, Expanded, Parts};
use crate::matcher::result;

/// `quantize((a - a_zero) · (b - b_zero) · a_scale · b_scale)`.
pub(super) fn qlinear_matmul(p: &mut Parts<'_>) -> Expanded {
    let product = Product {
        a: p.operand(0)?,
        b: p.operand(3)?,
        scales: [p.operand(1)?, p.operand(4)?],
        zero_points: [p.optional(2), p.optional(5)],
    };
    let y = product.real(p)?;
    quantized(p, y, [6, 7])
}

/// `(a - a_zero) · (b - b_zero) · a_scale · b_scale + bias`.
pub(super) fn matmul_integer_to_float(p: &mut Parts<'_>) -> Expanded {
    let product = Product {
        a: p.operand(0)?,
        b: p.operand(1)?,
        scales: [p.operand(2)?, p.operand(3)?],
        zero_points: [p.optional(4), p.optional(5)],
    };
    let y = product.real(p)?;
    biased(p, y, 6)
}

/// The same of `a` that is quantized by its own range.
pub(super) fn dynamic_quantize_matmul(p: &mut Parts<'_>) -> Expanded {
    let op = Op::Apply(Operator::DynamicQuantizeLinear, Attributes::new());
    let node = p.graph.add_results(op, &[Some(p.operand(0)?)], 3)?;
    let [a, scale, zero_point] = [0, 1, 2].map(|result| Value { node, result });
    let product = Product {
        a,
        b: p.operand(1)?,
        scales: [scale, p.operand(2)?],
        zero_points: [Some(zero_point), p.optional(3)],
    };
    let y = product.real(p)?;
    biased(p, y, 4)
}

/// The convolution of the dequantized operands, quantized.
pub(super) fn qlinear_conv(p: &mut Parts<'_>) -> Expanded {
    let attributes = p.attributes.clone();
    let [x_scale, w_scale] = [p.operand(1)?, p.operand(4)?];
    let mut operands = Vec::new();
    for (first, scale) in [(0, x_scale), (3, w_scale)] {
        let q = [Some(p.operand(first)?), Some(scale), p.optional(first + 2)];
        operands.push(Some(dequantized(p, &q, 0)?));
    }
    if let Some(bias) = p.optional(8) {
        let x_scale = p.view(x_scale, Vec::new())?;
        let scale = p.apply(Operator::Mul, &[x_scale, w_scale])?;
        operands.push(Some(dequantized(p, &[Some(bias), Some(scale)], 0)?));
    }
    let op = Op::Apply(Operator::Conv, attributes);
    let y = result(p.graph.add(op, &operands)?);
    quantized(p, y, [6, 7])
}

/// A product of matrices that are quantized.
struct Product {
    a: Value,
    b: Value,
    scales: [Value; 2],
    zero_points: [Option<Value>; 2],
}

impl Product {
    /// The product of the numbers that the operands stand for: exact integers, scaled.
    fn real(&self, p: &mut Parts<'_>) -> Result<Value, Declined> {
        let [a_scale, b_scale] = self.scales;
        let rank = p.graph.ty(self.a).rank();
        if rank < 2 || p.graph.ty(self.b).rank() < 2 {
            return Err("a vector is multiplied".into());
        }
        let of_rows = [Some(a_scale), self.zero_points[0]];
        if !of_rows.into_iter().flatten().all(|v| is_single(p, v)) {
            return Err("the left matrix has a scale or zero point for each row".into());
        }
        let of_columns = [Some(b_scale), self.zero_points[1]];
        if !(of_columns.into_iter().flatten()).all(|v| is_single(p, v) || p.graph.ty(v).rank() == 1)
        {
            return Err("the right matrix has scales or zero points for each matrix".into());
        }
        if p.graph.ty(a_scale).dtype != DType::F32 {
            return Err("the scales are not f32".into());
        }
        let operands = [
            Some(self.a),
            Some(self.b),
            self.zero_points[0],
            self.zero_points[1],
        ];
        let n = operands
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |i| i + 1);
        let op = Op::Apply(Operator::MatMulInteger, Attributes::new());
        let product = p.graph.add(op, &operands[..n])?;
        let name = p.graph.node_name(p.node).to_owned();
        p.graph.set_node_name(product, &name);
        let sums = p.cast(result(product), DType::F32)?;
        let a_scale = p.view(a_scale, Vec::new())?;
        let scale = p.apply(Operator::Mul, &[a_scale, b_scale])?;
        p.apply(Operator::Mul, &[sums, scale])
    }
}

fn is_single(p: &Parts<'_>, value: Value) -> bool {
    let shape = p.graph.ty(value).fixed_shape();
    shape.is_some_and(|s| s.iter().product::<usize>() == 1)
}

/// `y` plus operand `bias`, if there is one.
fn biased(p: &mut Parts<'_>, y: Value, bias: usize) -> Expanded {
    let y = match p.optional(bias) {
        Some(bias) => p.apply(Operator::Add, &[y, bias])?,
        None => y,
    };
    Ok(vec![Some(y)])
}

/// `y` under the scale and the zero point in two operands.
fn quantized(p: &mut Parts<'_>, y: Value, [scale, zero_point]: [usize; 2]) -> Expanded {
    let scale = p.operand(scale)?;
    if !is_single(p, scale) {
        return Err("the result has a scale for each row".into());
    }
    let zero_point = p.operand(zero_point)?;
    Ok(vec![Some(p.apply(
        Operator::QuantizeLinear,
        &[y, scale, zero_point],
    )?)])
}

fn dequantized(
    p: &mut Parts<'_>,
    operands: &[Option<Value>],
    axis: i64,
) -> Result<Value, Declined> {
    let op = Attributes::new().with("axis", Attribute::Int(axis));
    let op = Op::Apply(Operator::DequantizeLinear, op);
    Ok(result(p.graph.add(op, operands)?))
}
