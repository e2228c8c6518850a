//! Writes operators that stand for several others, such as ONNX Runtime's fused ones, as these others.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 4], %skip: f32[s, 4]) dims(s) {
//!   const @gamma: f32[4] = random(seed = 1)
//!   const @beta: f32[4] = random(seed = 2)
//!   const @bias: f32[4] = random(seed = 3)
//!   %0 = ms_skip_layer_normalization %x, %skip, @gamma, @beta, @bias {epsilon = 0.001} : f32[s, 4]
//!   return %0
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 4], %skip: f32[s, 4]) dims(s) {
//!   const @bias: f32[4] = random(seed = 3)
//!   const @gamma: f32[4] = random(seed = 1)
//!   const @beta: f32[4] = random(seed = 2)
//!   %0 = add %x, @bias : f32[s, 4]
//!   %1 = add %0, %skip : f32[s, 4]
//!   %2 = layer_normalization %1, @gamma, @beta {axis = -1, epsilon = 0.001} : f32[s, 4]
//!   return %2
//! }
//! ```
//!
//! Identities: the definitions of `SkipLayerNormalization`, `SkipSimplifiedLayerNormalization`, `SimplifiedLayerNormalization`,
//! `EmbedLayerNormalization`, `Attention`, `MultiHeadAttention`, `RotaryEmbedding`, `BiasAdd`, `BiasSplitGelu`, `FusedMatMul`,
//! `FusedGemm`, `MatMulIntegerToFloat` and `DynamicQuantizeMatMul` of `com.microsoft`, and of ONNX's `Attention`, `RotaryEmbedding`,
//! `QLinearMatMul` and `QLinearConv`. What they become is raised like any other
//! exporter's spelling, by passes that know none of these operators.
//!
//! Preconditions: `f32`. Scales and zero points for each row, past keys and values, causal and sliding windows, grouped heads, soft caps, the masks of ONNX's
//! `Attention` (which give zeros where no key is visible), rotations of a part of a head, and statistics of norms that
//! something uses are declined with a remark.
//!
//! Numeric effect: reassociates; sums that the operators keep in double precision are rounded. Products of integers stay exact,
//! convolutions of them become sums of floats.
//!
//! Sources: the operator documentation of ONNX Runtime and of ONNX.

use std::sync::Arc;

use lancet_ir::{Dim, Graph, IrError, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::matcher::result;
use crate::polynomial::is_dead;
use crate::rewrite::node_error;
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

mod attention;
mod quantized;

pub(crate) const INFO: PassInfo = PassInfo {
    name: "expand-composites",
    summary: "write operators that stand for several others, such as ONNX Runtime's, as these",
    options: &[],
    new: || Box::new(ExpandComposites),
};

struct ExpandComposites;

impl Pass for ExpandComposites {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut rewrites = Rewrites::new();
        for node in graph.order() {
            let Some(expand) = expansion(graph, node) else {
                continue;
            };
            let mut parts = Parts::new(graph, &rewrites, node);
            match expand(&mut parts) {
                Ok(values) => {
                    let op = graph.op(node).text().to_owned();
                    cx.applied(graph, node, format!("expanded {op}"));
                    for (i, value) in values.into_iter().enumerate() {
                        let from = Value {
                            node,
                            result: i as u32,
                        };
                        if let Some(value) = value.filter(|_| !is_dead(graph, from)) {
                            rewrites.replace(graph, from, value)?;
                        }
                    }
                }
                Err(Declined::Because(reason)) => cx.missed(graph, node, reason),
                Err(Declined::Broken(source)) => return Err(node_error(graph, node, source)),
            }
        }
        Ok(rewrites.changed())
    }
}

/// Why a node is not expanded: a form that is not written out, or a bug.
enum Declined {
    Because(String),
    Broken(IrError),
}

impl From<IrError> for Declined {
    fn from(source: IrError) -> Declined {
        Declined::Broken(source)
    }
}

impl From<&str> for Declined {
    fn from(reason: &str) -> Declined {
        Declined::Because(reason.to_owned())
    }
}

/// Values for the results of a node, in order; `None` for those that must be unused.
type Expanded = Result<Vec<Option<Value>>, Declined>;

/// What writes a node out, if it is a composite of `f32`.
fn expansion(graph: &Graph, node: NodeId) -> Option<fn(&mut Parts<'_>) -> Expanded> {
    let expand: fn(&mut Parts<'_>) -> Expanded = match graph.op(node).operator()? {
        Operator::MsSkipLayerNormalization | Operator::MsSkipSimplifiedLayerNormalization => {
            skip_norm
        }
        Operator::MsSimplifiedLayerNormalization => simplified_norm,
        Operator::MsEmbedLayerNormalization => embeddings,
        Operator::MsBiasAdd => bias_add,
        Operator::MsBiasSplitGelu => bias_split_gelu,
        Operator::MsFusedMatMul => fused_matmul,
        Operator::MsFusedGemm => fused_gemm,
        Operator::MsAttention => attention::contributed,
        Operator::MsMultiHeadAttention => attention::multi_head,
        Operator::Attention => attention::standard,
        Operator::RotaryEmbedding => attention::rotary,
        Operator::MsRotaryEmbedding => attention::contributed_rotary,
        Operator::MsMatMulIntegerToFloat => quantized::matmul_integer_to_float,
        Operator::MsDynamicQuantizeMatMul => quantized::dynamic_quantize_matmul,
        Operator::QLinearMatMul => return Some(quantized::qlinear_matmul),
        Operator::QLinearConv => return Some(quantized::qlinear_conv),
        _ => return None,
    };
    (graph.ty(result(node)).dtype == DType::F32).then_some(expand)
}

/// A node that is being written out.
struct Parts<'g> {
    graph: &'g mut Graph,
    node: NodeId,
    operands: Vec<Option<Value>>,
    attributes: Attributes,
}

impl Parts<'_> {
    fn new<'g>(graph: &'g mut Graph, rewrites: &Rewrites, node: NodeId) -> Parts<'g> {
        let operands = graph.operands(node).into_iter();
        Parts {
            operands: operands.map(|v| v.map(|v| rewrites.resolve(v))).collect(),
            attributes: graph.attributes(node).clone(),
            graph,
            node,
        }
    }

    fn optional(&self, i: usize) -> Option<Value> {
        self.operands.get(i).copied().flatten()
    }

    fn operand(&self, i: usize) -> Result<Value, Declined> {
        let missing = || Declined::Because(format!("operand {i} is missing"));
        self.optional(i).ok_or_else(missing)
    }

    fn shape(&self, value: Value) -> Vec<Dim> {
        self.graph.shape(value).to_vec()
    }

    /// Declines if something uses result `i`.
    fn unused(&self, i: u32) -> Result<(), Declined> {
        let value = Value {
            node: self.node,
            result: i,
        };
        if (i as usize) < self.graph.n_results(self.node) && !is_dead(self.graph, value) {
            return Err(Declined::Because(format!("result {i} is used")));
        }
        Ok(())
    }

    /// Declines if an attribute is set to anything but `value`.
    fn only(&self, attribute: &str, value: i64) -> Result<(), Declined> {
        match self.attributes.int_or(attribute, value) {
            v if v == value => Ok(()),
            v => Err(Declined::Because(format!("{attribute} is {v}"))),
        }
    }

    fn apply(&mut self, op: Operator, operands: &[Value]) -> Result<Value, Declined> {
        Ok(self.graph.apply(op, Attributes::new(), operands)?)
    }

    fn with(
        &mut self,
        op: Operator,
        attributes: &[(&str, Attribute)],
        operands: &[Value],
    ) -> Result<Value, Declined> {
        let attributes = attributes
            .iter()
            .fold(Attributes::new(), |a, (name, v)| a.with(name, v.clone()));
        Ok(self.graph.apply(op, attributes, operands)?)
    }

    fn view(&mut self, value: Value, shape: Vec<Dim>) -> Result<Value, Declined> {
        Ok(crate::heads::view(self.graph, value, shape)?)
    }

    fn transposed(&mut self, value: Value, perm: &[i64]) -> Result<Value, Declined> {
        let perm = Attribute::Ints(perm.to_vec());
        self.with(Operator::Transpose, &[("perm", perm)], &[value])
    }

    fn ints(&mut self, name: &str, values: Vec<i64>) -> Value {
        let tensor = Tensor::new([values.len()], values);
        self.graph.add_const(name, Arc::new(tensor))
    }

    fn scalar(&mut self, name: &str, value: f32) -> Value {
        self.graph.add_const(name, Arc::new(Tensor::scalar(value)))
    }

    fn cast(&mut self, value: Value, to: DType) -> Result<Value, Declined> {
        if self.graph.ty(value).dtype == to {
            return Ok(value);
        }
        let to = Attribute::Str(to.name().to_owned());
        self.with(Operator::Cast, &[("to", to)], &[value])
    }

    /// `0, 1, ..` up to a size, as `i64[n]`.
    fn positions(&mut self, n: &Dim) -> Result<Value, Declined> {
        let size = result(self.graph.add(Op::Dims(vec![n.clone()]), &[])?);
        let size = self.view(size, Vec::new())?;
        let [zero, one] =
            [0i64, 1].map(|v| self.graph.add_const("step", Arc::new(Tensor::scalar(v))));
        self.apply(Operator::Range, &[zero, size, one])
    }

    /// Slices of the last axis of these sizes.
    fn split(&mut self, value: Value, sizes: &[i64]) -> Result<Vec<Value>, Declined> {
        let split = self.ints("sizes", sizes.to_vec());
        let attributes = Attributes::new().with("axis", Attribute::Int(-1));
        let op = Op::Apply(Operator::Split, attributes);
        let node = self
            .graph
            .add_results(op, &[Some(value), Some(split)], sizes.len())?;
        let results = 0..sizes.len() as u32;
        Ok(results.map(|result| Value { node, result }).collect())
    }

    fn norm(
        &mut self,
        op: Operator,
        x: Value,
        parameters: &[Option<Value>],
        default: f32,
    ) -> Result<Value, Declined> {
        let epsilon = self.attributes.float_or("epsilon", default);
        let attributes = [
            ("axis", Attribute::Int(self.attributes.int_or("axis", -1))),
            ("epsilon", Attribute::Float(epsilon)),
        ];
        let operands: Vec<Value> = [Some(x)]
            .iter()
            .chain(parameters)
            .flatten()
            .copied()
            .collect();
        self.with(op, &attributes, &operands)
    }
}

fn skip_norm(p: &mut Parts<'_>) -> Expanded {
    p.unused(1)?;
    p.unused(2)?;
    let simplified =
        p.graph.op(p.node).operator() == Some(Operator::MsSkipSimplifiedLayerNormalization);
    let (x, skip, gamma) = (p.operand(0)?, p.operand(1)?, p.operand(2)?);
    let mut sum = x;
    if let Some(bias) = p.optional(if simplified { 3 } else { 4 }) {
        sum = p.apply(Operator::Add, &[sum, bias])?;
    }
    sum = p.apply(Operator::Add, &[sum, skip])?;
    let y = if simplified {
        p.norm(Operator::RMSNormalization, sum, &[Some(gamma)], 1e-12)?
    } else {
        let parameters = [Some(gamma), p.optional(3)];
        p.norm(Operator::LayerNormalization, sum, &parameters, 1e-12)?
    };
    Ok(vec![Some(y), None, None, Some(sum)])
}

fn simplified_norm(p: &mut Parts<'_>) -> Expanded {
    p.unused(1)?;
    let (x, gamma) = (p.operand(0)?, p.operand(1)?);
    let y = p.norm(Operator::RMSNormalization, x, &[Some(gamma)], 1e-5)?;
    Ok(vec![Some(y)])
}

fn embeddings(p: &mut Parts<'_>) -> Expanded {
    let (ids, words, positions) = (p.operand(0)?, p.operand(2)?, p.operand(3)?);
    let [_, tokens] = <[Dim; 2]>::try_from(p.shape(ids)).map_err(|_| "ids of another rank")?;
    let mut sum = p.apply(Operator::Gather, &[words, ids])?;
    if let (Some(segments), Some(table)) = (p.optional(1), p.optional(4)) {
        let row = p.apply(Operator::Gather, &[table, segments])?;
        sum = p.apply(Operator::Add, &[sum, row])?;
    }
    let at = match p.optional(8) {
        Some(ids) => ids,
        None => {
            let all = p.positions(&tokens)?;
            p.view(all, vec![Dim::fixed(1), tokens.clone()])?
        }
    };
    let row = p.apply(Operator::Gather, &[positions, at])?;
    sum = p.apply(Operator::Add, &[sum, row])?;
    let parameters = [p.optional(5), p.optional(6)];
    if parameters[0].is_none() {
        return Err("gamma is missing".into());
    }
    let y = p.norm(Operator::LayerNormalization, sum, &parameters, 1e-12)?;
    // How many keys of each item are there.
    let counts = match p.optional(7) {
        Some(mask) => {
            let dtype = p.graph.ty(mask).dtype;
            let one = crate::analysis::access::integer(1, dtype).ok_or("a mask of another type")?;
            let one = p.graph.add_const("one", Arc::new(one));
            let ones = p.apply(Operator::Equal, &[mask, one])?;
            let ones = p.cast(ones, DType::I32)?;
            let axis = p.ints("axis", vec![1]);
            let keepdims = [("keepdims", Attribute::Int(0))];
            Some(p.with(Operator::ReduceSum, &keepdims, &[ones, axis])?)
        }
        None => {
            p.unused(1)?;
            None
        }
    };
    Ok(vec![Some(y), counts, Some(sum)])
}

fn bias_add(p: &mut Parts<'_>) -> Expanded {
    let (x, bias, skip) = (p.operand(0)?, p.operand(1)?, p.operand(2)?);
    let sum = p.apply(Operator::Add, &[x, bias])?;
    Ok(vec![Some(p.apply(Operator::Add, &[sum, skip])?)])
}

fn bias_split_gelu(p: &mut Parts<'_>) -> Expanded {
    let (x, bias) = (p.operand(0)?, p.operand(1)?);
    let sum = p.apply(Operator::Add, &[x, bias])?;
    let n = p.shape(sum).last().and_then(Dim::as_fixed);
    let half = n
        .filter(|n| n % 2 == 0)
        .ok_or("a width that is not fixed")?
        / 2;
    let halves = p.split(sum, &[half, half])?;
    let exact = [("approximate", Attribute::Str("none".to_owned()))];
    let gate = p.with(Operator::Gelu, &exact, &[halves[1]])?;
    Ok(vec![Some(p.apply(Operator::Mul, &[halves[0], gate])?)])
}

fn fused_matmul(p: &mut Parts<'_>) -> Expanded {
    p.only("transBatchA", 0)?;
    p.only("transBatchB", 0)?;
    let mut factors = [p.operand(0)?, p.operand(1)?];
    for (factor, name) in factors.iter_mut().zip(["transA", "transB"]) {
        let rank = p.graph.ty(*factor).rank() as i64;
        if p.attributes.int_or(name, 0) != 0 && 2 <= rank {
            let mut perm: Vec<i64> = (0..rank).collect();
            perm.swap(rank as usize - 1, rank as usize - 2);
            *factor = p.transposed(*factor, &perm)?;
        }
    }
    let mut y = p.apply(Operator::MatMul, &factors)?;
    let alpha = p.attributes.float_or("alpha", 1.0);
    if alpha != 1.0 {
        let alpha = p.scalar("alpha", alpha);
        y = p.apply(Operator::Mul, &[y, alpha])?;
    }
    Ok(vec![Some(y)])
}

fn fused_gemm(p: &mut Parts<'_>) -> Expanded {
    let activation = match p.attributes.str("activation").unwrap_or_default() {
        "" => None,
        "Relu" => Some(Operator::Relu),
        "Tanh" => Some(Operator::Tanh),
        "Sigmoid" => Some(Operator::Sigmoid),
        other => return Err(Declined::Because(format!("its activation is {other}"))),
    };
    let mut attributes = p.attributes.clone();
    for name in [
        "activation",
        "activation_alpha",
        "activation_beta",
        "activation_gamma",
    ] {
        attributes.remove(name);
    }
    let op = Op::Apply(Operator::Gemm, attributes);
    let mut y = result(p.graph.add(op, &p.operands)?);
    if let Some(activation) = activation {
        y = p.apply(activation, &[y])?;
    }
    Ok(vec![Some(y)])
}
