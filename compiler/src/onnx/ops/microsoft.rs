//! Operators of `com.microsoft` that are others, or several others, by definition.
//!
//! Each is written out on import, so that passes and runtime know one spelling. The operators of this domain that have a row
//! of their own in the operator table are not here.
//!
//! Source: ONNX Runtime's `ContribOperators.md`.

use lancet_ir::{Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use super::{Lowering, Results, quantize};
use crate::onnx::error::Fault;
use crate::onnx::tensor::Narrow;

/// Writes a node out.
type Rule = fn(Lowering<'_, '_>) -> Results;

/// The operators that are written out, in order of their names.
const RULES: &[(&str, Rule)] = &[
    ("DequantizeLinear", |l| {
        l.finish_as(Operator::DequantizeLinear)
    }),
    ("ExpandDims", expand_dims),
    ("FusedConv", fused_conv),
    ("GatherBlockQuantized", gather_block_quantized),
    ("GatherND", |l| l.finish_as(Operator::GatherND)),
    ("GemmFastGelu", gemm_fast_gelu),
    ("MatMulNBits", matmul_n_bits),
    ("Pad", |l| l.finish_as(Operator::Pad)),
    ("QAttention", q_attention),
    ("QEmbedLayerNormalization", q_embed_layer_normalization),
    ("QGemm", quantize::gemm),
    ("QLinearAdd", quantize::elementwise),
    ("QLinearAveragePool", quantize::pool),
    ("QLinearConcat", quantize::concat),
    ("QLinearGlobalAveragePool", quantize::pool),
    ("QLinearLeakyRelu", quantize::elementwise),
    ("QLinearMul", quantize::elementwise),
    ("QLinearReduceMean", quantize::reduce_mean),
    ("QLinearSigmoid", quantize::elementwise),
    ("QLinearSoftmax", quantize::softmax),
    ("QLinearWhere", quantize::choose),
    ("QuantizeLinear", |l| l.finish_as(Operator::QuantizeLinear)),
    ("Range", |l| l.finish_as(Operator::Range)),
    ("Trilu", |l| l.finish_as(Operator::Trilu)),
];

/// Names of the operators that are written out.
pub fn written_out() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|(name, _)| *name)
}

/// The rule for an operator, if it is written out.
pub(super) fn rule(op: &str) -> Option<Rule> {
    RULES.iter().find(|(name, _)| *name == op).map(|r| r.1)
}

/// `Unsqueeze` at one axis, an `i32` operand.
fn expand_dims(mut l: Lowering<'_, '_>) -> Results {
    let (x, axis) = (l.required(0)?, l.required(1)?);
    let axis = l.cast(axis, DType::I64)?;
    let one = l.ints("one", vec![1]);
    let axis = l.apply(Operator::Reshape, Attributes::new(), &[axis, one])?;
    let y = l.apply(Operator::Unsqueeze, Attributes::new(), &[x, axis])?;
    Ok(vec![Some(y)])
}

/// `Conv`, plus an optional fourth operand, and an activation of both.
fn fused_conv(mut l: Lowering<'_, '_>) -> Results {
    let activation = l.take_str("activation")?.unwrap_or_default();
    let parameters = l.take_floats("activation_params")?.unwrap_or_default();
    let operands: Vec<Option<Value>> = (0..3).map(|i| l.operand(i)).collect();
    let sum = l.operand(3);
    let attributes = std::mem::take(&mut l.call.attributes);
    let n = operands
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |i| i + 1);
    let mut y = l.apply_optional(Operator::Conv, attributes, &operands[..n])?;
    if let Some(sum) = sum {
        y = l.apply(Operator::Add, Attributes::new(), &[y, sum])?;
    }
    let parameter = |i: usize| parameters.get(i).copied();
    let named = |names: &[&str]| {
        let given = names.iter().enumerate();
        given.fold(Attributes::new(), |attributes, (i, name)| {
            match parameter(i) {
                Some(v) => attributes.with(name, Attribute::Float(v)),
                None => attributes,
            }
        })
    };
    let y = match activation.as_str() {
        "" => y,
        "Relu" => l.apply(Operator::Relu, Attributes::new(), &[y])?,
        "Tanh" => l.apply(Operator::Tanh, Attributes::new(), &[y])?,
        "Sigmoid" => l.apply(Operator::Sigmoid, Attributes::new(), &[y])?,
        "LeakyRelu" => l.apply(Operator::LeakyRelu, named(&["alpha"]), &[y])?,
        "HardSigmoid" => l.apply(Operator::HardSigmoid, named(&["alpha", "beta"]), &[y])?,
        "Clip" => {
            let least = l.constant("least", Vec::new(), vec![parameter(0).unwrap_or(f32::MIN)]);
            let most = l.constant("most", Vec::new(), vec![parameter(1).unwrap_or(f32::MAX)]);
            l.apply(Operator::Clip, Attributes::new(), &[y, least, most])?
        }
        other => {
            let message = format!("unknown function `{other}`");
            return Err(Fault::Attribute("activation".to_owned(), message).into());
        }
    };
    Ok(vec![Some(y)])
}

/// `Gather` of a constant table that is quantized in blocks, its bytes holding one element or several.
fn gather_block_quantized(mut l: Lowering<'_, '_>) -> Results {
    let bits = l.take_int("bits")?.unwrap_or(4);
    let Some(elements) = Narrow::unsigned(bits) else {
        let message = format!("must be 2, 4 or 8, found {bits}");
        return Err(Fault::Attribute("bits".to_owned(), message).into());
    };
    let scales = l.graph.constant(l.required(2)?);
    let scales = scales.ok_or_else(|| Fault::unsupported("scales that are not constant"))?;
    let scales = scales.shape().to_vec();
    for index in [0, 3] {
        let Some(packed) = l.operand(index) else {
            continue;
        };
        let packed =
            (l.graph.constant(packed)).and_then(|t| Some((t.shape(), t.as_slice::<u8>()?)));
        let Some((shape, packed)) = packed else {
            return Err(Fault::unsupported("a table that is no constant of bytes").into());
        };
        let mut shape = shape.to_vec();
        let row_bytes = shape.last().copied().unwrap_or(1);
        let mut n = row_bytes * elements.per_byte();
        if index == 3 {
            // The last byte of a row of zero points may be filled in part.
            n = n.min(scales.last().copied().unwrap_or(1));
        }
        let rows = packed.chunks_exact(row_bytes.max(1));
        let unpacked: Vec<u8> = rows.flat_map(|row| elements.unpack(row, n)).collect();
        if let Some(last) = shape.last_mut() {
            *last = n;
        }
        l.call.operands[index] = Some(l.constant("unpacked", shape, unpacked));
    }
    if l.operand(3).is_none() {
        let middle = vec![1u8 << (bits - 1); scales.iter().product()];
        let middle = l.constant("zero_point", scales, middle);
        l.call.operands.resize(3, None);
        l.call.operands.push(Some(middle));
    }
    gather_blocks(l)
}

/// The same of a table with one element in each byte, and no zero points where none are given.
pub(in crate::onnx) fn gather_blocks(mut l: Lowering<'_, '_>) -> Results {
    let block = l.take_int("block_size")?.unwrap_or(128);
    let axis = l.take_int("quantize_axis")?.unwrap_or(1);
    let gathered = l.take_int("gather_axis")?.unwrap_or(0);
    let (data, indices, scales) = (l.required(0)?, l.required(1)?, l.required(2)?);
    let blocks = Attributes::new()
        .with("axis", Attribute::Int(axis))
        .with("block_size", Attribute::Int(block));
    let operands: Vec<Value> = [data, scales].into_iter().chain(l.operand(3)).collect();
    let table = l.apply(Operator::DequantizeLinear, blocks, &operands)?;
    let along = Attributes::new().with("axis", Attribute::Int(gathered));
    let y = l.apply(Operator::Gather, along, &[table, indices])?;
    Ok(vec![Some(y)])
}

/// `FastGelu` of a product and an optional bias.
fn gemm_fast_gelu(mut l: Lowering<'_, '_>) -> Results {
    let factors = [l.required(0)?, l.required(1)?];
    let product = l.apply(Operator::MatMul, Attributes::new(), &factors)?;
    l.call.operands.splice(..2, [Some(product)]);
    l.finish_as(Operator::MsFastGelu)
}

/// `Attention` of a quantized input and weight: their product, dequantized, and attention of its three parts.
fn q_attention(mut l: Lowering<'_, '_>) -> Results {
    for name in ["do_rotary", "past_present_share_buffer"] {
        if l.take_int(name)?.unwrap_or(0) != 0 {
            let message = "must be 0".to_owned();
            return Err(Fault::Attribute(name.to_owned(), message).into());
        }
    }
    let product = [0, 1, 3, 4, 6, 7, 2].map(|i| l.operand(i));
    for index in 0..5 {
        l.required(index)?;
    }
    let (mask, past) = (l.operand(5), l.operand(8));
    let projected = l.apply_optional(
        Operator::MsMatMulIntegerToFloat,
        Attributes::new(),
        &product,
    )?;
    let thirds = Attributes::new()
        .with("axis", Attribute::Int(-1))
        .with("num_outputs", Attribute::Int(3));
    let parts = l.apply_results(Operator::Split, thirds, &[Some(projected)], 3)?;
    let mut operands: Vec<Option<Value>> = parts.into_iter().map(Some).collect();
    operands.extend([None, mask]);
    if let Some(past) = past {
        operands.push(None);
        for index in [0i64, 1] {
            let at = l.constant("part", Vec::new(), vec![index]);
            operands.push(Some(l.apply(
                Operator::Gather,
                Attributes::new(),
                &[past, at],
            )?));
        }
    }
    while operands.last() == Some(&None) {
        operands.pop();
    }
    let with_present = 2 <= l.n_used();
    let attributes = std::mem::take(&mut l.call.attributes);
    let n = if with_present { 3 } else { 1 };
    let found = l.apply_results(Operator::MsMultiHeadAttention, attributes, &operands, n)?;
    let &[y, key, value] = found.as_slice() else {
        return Ok(vec![found.first().copied()]);
    };
    let front = l.ints("front", vec![0]);
    let mut present = Vec::new();
    for part in [key, value] {
        present.push(l.apply(Operator::Unsqueeze, Attributes::new(), &[part, front])?);
    }
    let first = Attributes::new().with("axis", Attribute::Int(0));
    let present = l.apply(Operator::Concat, first, &present)?;
    Ok(vec![Some(y), Some(present)])
}

/// `EmbedLayerNormalization` of quantized tables, scale and shift.
fn q_embed_layer_normalization(mut l: Lowering<'_, '_>) -> Results {
    let n_given = l.call.operands.len();
    if !(15..=18).contains(&n_given) {
        return Err(Fault::invalid(format!("takes 18 operands, found {n_given}")).into());
    }
    let mut operands = vec![l.operand(0), l.operand(1)];
    // Word, position and segment tables, gamma and beta; their scales and zero points follow the mask.
    for part in 0..5 {
        let table = [
            l.operand(2 + part),
            l.operand(8 + part),
            l.operand(13 + part),
        ];
        operands.push(match table[0] {
            Some(_) => {
                Some(l.apply_optional(Operator::DequantizeLinear, Attributes::new(), &table)?)
            }
            None => None,
        });
    }
    operands.push(l.operand(7));
    l.call.operands = operands;
    l.finish_as(Operator::MsEmbedLayerNormalization)
}

/// `MatMul` by a constant matrix of a few bits for each element, in blocks along the inputs with a scale each.
fn matmul_n_bits(mut l: Lowering<'_, '_>) -> Results {
    let size = |l: &mut Lowering<'_, '_>, name: &str| -> Result<usize, Fault> {
        let found = l.take_int(name)?;
        found
            .and_then(|v| usize::try_from(v).ok())
            .filter(|&v| v != 0)
            .ok_or_else(|| Fault::invalid(format!("attribute `{name}` is not positive")))
    };
    let bits = match l.call.attributes.int("bits") {
        None => 4,
        Some(_) => size(&mut l, "bits")?,
    };
    l.call.attributes.remove("bits");
    let (k, n) = (size(&mut l, "K")?, size(&mut l, "N")?);
    let block = size(&mut l, "block_size")?;
    l.take_int("accuracy_level")?;
    if l.take_int("weight_prepacked")?.unwrap_or(0) != 0 {
        let message = "must be 0: the order is that of one CPU".to_owned();
        return Err(Fault::Attribute("weight_prepacked".to_owned(), message).into());
    }
    if !matches!(bits, 2 | 4 | 8) {
        let message = format!("must be 2, 4 or 8, found {bits}");
        return Err(Fault::Attribute("bits".to_owned(), message).into());
    }
    let (x, bias) = (l.required(0)?, l.operand(5));
    let weight = Packed { k, n, bits, block }.read(&l)?;
    let weight = l.constant("weight", vec![k, n], weight);
    let weight = match l.graph.ty(x).dtype {
        DType::F32 => weight,
        other => l.cast(weight, other)?,
    };
    let mut y = l.apply(Operator::MatMul, Attributes::new(), &[x, weight])?;
    if let Some(bias) = bias {
        y = l.apply(Operator::Add, Attributes::new(), &[y, bias])?;
    }
    Ok(vec![Some(y)])
}

/// How the weight of `MatMulNBits` is written.
struct Packed {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

impl Packed {
    /// The weight as `[k, n]`.
    ///
    /// # Errors
    /// If operands are not constant or do not fit.
    fn read(&self, l: &Lowering<'_, '_>) -> Result<Vec<f32>, Fault> {
        let &Packed { k, n, bits, block } = self;
        let constant = |index: usize, what: &str| -> Result<&Tensor, Fault> {
            let tensor = l.graph.constant(l.required(index)?);
            tensor
                .map(|t| &**t)
                .ok_or_else(|| Fault::unsupported(format!("{what} that are not constant")))
        };
        let wrong = |what: &str| Fault::invalid(format!("{what} do not fit the matrix [{k}, {n}]"));
        let size = |factors: &[usize]| {
            let product = factors.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
            product.ok_or_else(|| wrong("sizes"))
        };
        let n_blocks = k.div_ceil(block);
        let block_bytes = size(&[block, bits])?.div_ceil(8);
        let row_bytes = size(&[n_blocks, bits])?.div_ceil(8);
        let bytes = constant(1, "weights")?.as_slice::<u8>();
        let bytes = bytes.filter(|b| size(&[n, n_blocks, block_bytes]).is_ok_and(|s| s == b.len()));
        let bytes = bytes.ok_or_else(|| wrong("weights"))?;
        let scales = constant(2, "scales")?.view().to_f64_vec();
        if size(&[n, n_blocks])? != scales.len() {
            return Err(wrong("scales"));
        }
        let groups: Option<Vec<usize>> = match l.operand(4) {
            None => None,
            Some(_) => {
                let groups = constant(4, "groups")?.view().to_i64_vec();
                let groups = groups.into_iter().map(|g| usize::try_from(g).ok());
                let groups: Option<Vec<usize>> =
                    groups.map(|g| g.filter(|&g| g < n_blocks)).collect();
                Some(
                    groups
                        .filter(|g| k <= g.len())
                        .ok_or_else(|| wrong("groups"))?,
                )
            }
        };
        let field = |bytes: &[u8], i: usize| {
            let bit = i * bits;
            (bytes[bit / 8] >> (bit % 8)) & (u8::MAX >> (8 - bits))
        };
        let zero: Vec<f64> = match l.operand(3) {
            None => vec![f64::from(1u8 << (bits - 1)); scales.len()],
            Some(_) => {
                let found = constant(3, "zero points")?;
                match found.as_slice::<u8>() {
                    Some(packed) if size(&[n, row_bytes])? == packed.len() => (0..scales.len())
                        .map(|i| {
                            let row = &packed[i / n_blocks * row_bytes..];
                            f64::from(field(row, i % n_blocks))
                        })
                        .collect(),
                    None if found.view().len() == scales.len() => found.view().to_f64_vec(),
                    _ => return Err(wrong("zero points")),
                }
            }
        };
        let mut weight = vec![0.0f32; size(&[k, n])?];
        for (column, rows) in bytes.chunks_exact(n_blocks * block_bytes).enumerate() {
            for i in 0..k {
                let q = field(&rows[i / block * block_bytes..], i % block);
                let group = groups.as_ref().map_or(i / block, |g| g[i]);
                let at = column * n_blocks + group;
                weight[i * n + column] = ((f64::from(q) - zero[at]) * scales[at]) as f32;
            }
        }
        Ok(weight)
    }
}

impl Lowering<'_, '_> {
    /// `value` as another element type.
    pub(super) fn cast(&mut self, value: Value, to: DType) -> Result<Value, Fault> {
        let to = Attributes::new().with("to", Attribute::Str(to.name().to_owned()));
        self.apply(Operator::Cast, to, &[value])
    }

    /// Adds a helper node of this one with several results.
    pub(super) fn apply_results(
        &mut self,
        op: Operator,
        attributes: Attributes,
        operands: &[Option<Value>],
        n_results: usize,
    ) -> Result<Vec<Value>, Fault> {
        let node = self
            .graph
            .add_results(Op::Apply(op, attributes), operands, n_results)?;
        self.graph.set_node_name(node, &self.call.name);
        let value = |result| Value { node, result };
        Ok((0..n_results as u32).map(value).collect())
    }
}
