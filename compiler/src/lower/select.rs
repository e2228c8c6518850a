//! Which step a node becomes.

use lancet_artifact::{
    Activation, AttentionParameters, Attribute as PlanAttribute, AttributeTensor,
    GeneralizedAttention, Reduction, StepKind,
};
use lancet_ir::{Dim, Graph, Layout, NodeId, Op, Value};
use lancet_ops::elementwise::{Argument, Body, Function, holds, lines_of};
use lancet_ops::generalized::STAGES;
use lancet_ops::{AttentionRounding, Attribute, Attributes, DType, Operator, OverQueries, Tensor};

use super::weights::little_endian;
use super::{LowerError, unsupported};

/// Operands of the longest elementwise step.
const MAX_OPERANDS: usize = 16;

/// What lowering does with a node.
pub(super) enum Selected {
    /// A graph input.
    Input,
    /// A constant: placed when something reads it.
    Const,
    /// A packed weight: packed when a linear layer reads it.
    Pack,
    /// One step on these operands.
    Step {
        kind: StepKind,
        operands: Vec<Option<Value>>,
    },
    /// A linear layer on a packed weight; operands are x, bias, residual.
    Linear {
        weight: Value,
        activation: Activation,
        operands: Vec<Option<Value>>,
    },
}

/// Selects by operation and layouts alone: a step of token panels where the result is in panels, else a portable one.
pub(super) fn select(graph: &Graph, node: NodeId) -> Result<Selected, LowerError> {
    let operands = graph.operands(node);
    let step = |kind| {
        Ok(Selected::Step {
            kind,
            operands: operands.clone(),
        })
    };
    let in_panels =
        0 < graph.n_results(node) && graph.ty(Value { node, result: 0 }).layout == Layout::Panels;
    match graph.op(node) {
        Op::Input(_) => Ok(Selected::Input),
        Op::Const(_) => Ok(Selected::Const),
        Op::Dims(_) => {
            let dims = graph
                .elements(Value { node, result: 0 })
                .unwrap_or_default();
            let symbols = graph
                .symbols()
                .enumerate()
                .map(|(i, s)| (s.name().to_owned(), i as u32))
                .collect();
            step(StepKind::Dims(
                dims.iter().map(|d| super::plan_dim(d, &symbols)).collect(),
            ))
        }
        Op::View(_) => step(StepKind::View),
        Op::Broadcast(_) => step(StepKind::Broadcast),
        Op::Convert(Layout::Panels) => step(StepKind::ToPanels),
        Op::Convert(Layout::RowMajor) => step(StepKind::FromPanels),
        Op::Convert(Layout::Packed(_)) => Ok(Selected::Pack),
        // Only packed weights read it; folding made it dense for everything else, or could not.
        Op::Apply(Operator::FromSparse, _) if is_constant(graph, node) => Ok(Selected::Const),
        Op::If { .. } | Op::Loop { .. } => Err(unsupported(graph, node, "runs graphs")),
        Op::Apply(op, attributes) if in_panels => panels(graph, node, *op, attributes, operands),
        Op::Apply(op, attributes) => {
            let portable = || {
                step(StepKind::Portable {
                    operator: op.schema().text.to_owned(),
                    attributes: plan_attributes(attributes),
                })
            };
            if let Some(v) = operands
                .iter()
                .flatten()
                .find(|v| graph.ty(**v).layout != Layout::RowMajor)
            {
                let message = format!("takes row-major operands, found {}", graph.ty(*v));
                return Err(unsupported(graph, node, &message));
            }
            // A size that is known only when the operator has run is told by a portable step.
            if !graph.sizes_are_known(node) {
                return portable();
            }
            if let Some(kind) = bytes(graph, node, *op) {
                return step(kind);
            }
            if let Some(kind) = row_major(graph, node, *op, attributes) {
                return step(kind);
            }
            if let Some(kind) = reduction(graph, node, *op, attributes) {
                let operands = operands[..1].to_vec();
                return Ok(Selected::Step { kind, operands });
            }
            if let Some((kind, operands)) = copy(graph, node, *op, attributes) {
                return Ok(Selected::Step { kind, operands });
            }
            if let Some((body, operands)) = row_major_elementwise(graph, node, *op, attributes) {
                let kind = StepKind::Elementwise { body };
                return Ok(Selected::Step { kind, operands });
            }
            portable()
        }
    }
}

/// True if every operand is a constant.
fn is_constant(graph: &Graph, node: NodeId) -> bool {
    let mut operands = graph.operands(node).into_iter().flatten();
    operands.all(|v| graph.constant(v).is_some())
}

/// The step of an operator that takes or makes bytes, with one scale and one zero point.
fn bytes(graph: &Graph, node: NodeId, op: Operator) -> Option<StepKind> {
    let ty = |i| graph.operand(node, i).map(|v| graph.ty(v));
    let one = |i| ty(i).is_none_or(|t| t.shape.iter().all(|d| d.as_fixed() == Some(1)));
    let is_byte = |dtype| matches!(dtype, DType::U8 | DType::I8);
    match op {
        Operator::MatMulInteger => {
            let matrices = 2 <= ty(0)?.rank() && 2 <= ty(1)?.rank();
            (matrices && one(2) && one(3)).then_some(StepKind::MatMul)
        }
        Operator::QuantizeLinear => {
            let floats = ty(0)?.dtype == DType::F32 && ty(1)?.dtype == DType::F32;
            let to_bytes = is_byte(graph.ty(Value { node, result: 0 }).dtype);
            let precision = graph.attributes(node).str("precision");
            let single = precision.is_none_or(|p| p == "f32");
            (floats && to_bytes && single && one(1) && one(2)).then_some(StepKind::Quantize)
        }
        _ => None,
    }
}

/// The step of an operator that has a kernel for row-major operands.
fn row_major(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<StepKind> {
    let operands = graph.operands(node);
    let fits = |v: &Option<Value>| {
        v.is_some_and(|v| graph.ty(v).dtype == DType::F32 && 2 <= graph.ty(v).rank())
    };
    if !operands.iter().all(fits) {
        return None;
    }
    let rank = graph.ty(Value { node, result: 0 }).rank();
    match op {
        Operator::MatMul => Some(StepKind::MatMul),
        Operator::Softmax => {
            let axis = from_start(&[attributes.int_or("axis", -1)], rank)[0];
            Some(StepKind::Softmax { axis })
        }
        _ => None,
    }
}

/// Dimensions of which negative ones count from the end.
fn from_start(dims: &[i64], rank: usize) -> Vec<u32> {
    let place = |&d: &i64| (if d < 0 { d + rank as i64 } else { d }) as u32;
    dims.iter().map(place).collect()
}

/// The step, and its operands, of an operator that puts elements elsewhere.
fn copy(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<(StepKind, Vec<Option<Value>>)> {
    let operands = graph.operands(node);
    let x = operands.first().copied().flatten()?;
    let rank = graph.ty(Value { node, result: 0 }).rank();
    match op {
        Operator::Transpose => {
            let permutation = match attributes.ints("perm") {
                Some(perm) => from_start(perm, rank),
                None => (0..rank as u32).rev().collect(),
            };
            Some((StepKind::Transpose { permutation }, operands))
        }
        Operator::Concat => {
            let axis = from_start(&[attributes.int("axis")?], rank)[0];
            Some((StepKind::Concat { axis }, operands))
        }
        Operator::Slice => Some((slice(graph, node, x)?, vec![Some(x)])),
        Operator::Pad => {
            let is_constant = attributes.str("mode").is_none_or(|mode| mode == "constant");
            let fill = graph.operand(node, 2);
            let is_one = |v: &Value| {
                graph
                    .ty(*v)
                    .fixed_shape()
                    .is_some_and(|s| s.iter().all(|&n| n == 1))
            };
            if !is_constant || !fill.iter().all(is_one) {
                return None;
            }
            let before = pad(graph, node, rank)?;
            let operands = std::iter::once(x).chain(fill).map(Some).collect();
            Some((StepKind::Pad { before }, operands))
        }
        _ => None,
    }
}

/// The step of a slice forward, from indices that are known.
fn slice(graph: &Graph, node: NodeId, x: Value) -> Option<StepKind> {
    let shape = &graph.ty(x).shape;
    let from = numbers(graph, node, 1)?;
    let by = match graph.operand(node, 4) {
        Some(_) => numbers(graph, node, 4)?,
        None => vec![1; from.len()],
    };
    let axes = axes(graph, node, 3, shape.len(), from.len())?;
    let (mut starts, mut steps) = (vec![0; shape.len()], vec![1; shape.len()]);
    for ((&axis, &start), &step) in axes.iter().zip(&from).zip(&by) {
        let size = shape[axis].as_fixed();
        let start = match size {
            Some(n) if start < 0 => start.saturating_add(n).max(0),
            _ => start,
        };
        starts[axis] = u32::try_from(start).ok()?;
        steps[axis] = u32::try_from(step).ok()?;
    }
    Some(StepKind::Slice { starts, steps })
}

/// What is before the operand in each dimension of a padded tensor, if nothing is cut off.
fn pad(graph: &Graph, node: NodeId, rank: usize) -> Option<Vec<u32>> {
    let pads = numbers(graph, node, 1)?;
    let axes = axes(graph, node, 3, rank, pads.len() / 2)?;
    let mut before = vec![0; rank];
    for (i, &axis) in axes.iter().enumerate() {
        before[axis] = u32::try_from(pads[i]).ok()?;
        u32::try_from(pads[axes.len() + i]).ok()?;
    }
    Some(before)
}

/// The elements of operand `i`, if they are known.
fn numbers(graph: &Graph, node: NodeId, i: usize) -> Option<Vec<i64>> {
    let elements = graph.elements(graph.operand(node, i)?)?;
    elements.iter().map(Dim::as_fixed).collect()
}

/// The dimensions that operand `i` names, or else the first `n`.
fn axes(graph: &Graph, node: NodeId, i: usize, rank: usize, n: usize) -> Option<Vec<usize>> {
    let axes = match graph.operand(node, i) {
        Some(_) => from_start(&numbers(graph, node, i)?, rank),
        None => (0..n as u32).collect(),
    };
    Some(axes.into_iter().map(|a| a as usize).collect())
}

/// The step of a reduction over dimensions that follow each other.
fn reduction(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<StepKind> {
    let reduction: Reduction = op.schema().text.parse().ok()?;
    let x = graph.ty(graph.operand(node, 0)?);
    let axes = match graph.operand(node, 1) {
        Some(axes) => graph.constant(axes)?.as_slice::<i64>()?,
        None => &[],
    };
    let mut axes = from_start(axes, x.rank());
    axes.sort_unstable();
    if axes.is_empty() && attributes.int_or("noop_with_empty_axes", 0) == 0 {
        axes = (0..x.rank() as u32).collect();
    }
    let (first, last) = (*axes.first()?, *axes.last()?);
    let neighbours = axes.iter().copied().eq(first..=last);
    (reduction.takes(x.dtype.name()) && neighbours).then(|| StepKind::Reduce {
        reduction,
        axes: first..last + 1,
    })
}

/// The step of an operator whose result is in token panels.
fn panels(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
    operands: Vec<Option<Value>>,
) -> Result<Selected, LowerError> {
    let kind = match op {
        Operator::Linear => {
            let [Some(x), Some(weight), rest @ ..] = operands.as_slice() else {
                return Err(unsupported(graph, node, "lacks its input or its weight"));
            };
            let text = attributes.str("activation").unwrap_or("none");
            let Ok(activation) = text.parse::<Activation>() else {
                return Err(unsupported(
                    graph,
                    node,
                    &format!("has no kernel for activation `{text}`"),
                ));
            };
            let operands = std::iter::once(Some(*x))
                .chain(rest.iter().copied())
                .collect();
            return Ok(Selected::Linear {
                weight: *weight,
                activation,
                operands,
            });
        }
        Operator::LayerNormalization => StepKind::LayerNorm {
            epsilon: attributes.float_or("epsilon", 1e-5),
        },
        Operator::EmbeddingLookup => {
            let scales = match attributes.get("scales") {
                Some(Attribute::Floats(scales)) => scales.as_slice(),
                _ => &[],
            };
            let zeros = attributes.ints("zero_points").unwrap_or(&[]);
            let zeros = zeros.iter().map(|&z| z as i32);
            StepKind::EmbeddingLookup {
                quantization: scales.iter().copied().zip(zeros).collect(),
            }
        }
        Operator::ScaledDotProductAttention => StepKind::Attention(attention(attributes)),
        Operator::GeneralizedAttention => {
            let lines = |name| attributes.strs(name).unwrap_or(&[]).to_vec();
            StepKind::GeneralizedAttention(GeneralizedAttention {
                num_heads: n_heads(attributes),
                stages: STAGES.map(lines),
                over_queries: over_queries(attributes),
            })
        }
        Operator::ReduceSum
        | Operator::ReduceMean
        | Operator::ReduceMax
        | Operator::ReduceMin
        | Operator::ReduceL2 => {
            let Some(kind) = reduction(graph, node, op, attributes) else {
                return Err(unsupported(graph, node, "has no kernel for token panels"));
            };
            let operands = operands[..1].to_vec();
            return Ok(Selected::Step { kind, operands });
        }
        Operator::PackedAttention => StepKind::PackedAttention(attention(attributes)),
        Operator::RMSNormalization => StepKind::RmsNorm {
            epsilon: attributes.float_or("epsilon", 1e-5),
        },
        _ => match elementwise(graph, node, op, attributes) {
            Some((body, operands)) => {
                let kind = StepKind::Elementwise { body };
                return Ok(Selected::Step { kind, operands });
            }
            None => return Err(unsupported(graph, node, "has no kernel for token panels")),
        },
    };
    Ok(Selected::Step { kind, operands })
}

/// The elementwise activation that an operator is, if kernels have it.
pub(super) fn activation_of(op: Operator, attributes: &Attributes) -> Option<Activation> {
    let function = Function::of(op, attributes)?;
    function.name().parse().ok()
}

fn attention(attributes: &Attributes) -> AttentionParameters {
    let rounding = AttentionRounding::of(attributes).unwrap_or_default();
    let exact_keys = attributes.int("exact_keys");
    AttentionParameters {
        num_heads: n_heads(attributes),
        scale: attributes.float_or("scale", 1.0),
        masked_value: attributes.float_or("masked_value", f32::MIN),
        rounding: [rounding.scores, rounding.masked, rounding.probabilities]
            .map(|rounding| rounding.map(|r| r.numbers())),
        exact_keys: exact_keys.map(|n| u64::try_from(n).unwrap_or(0)),
        over_queries: over_queries(attributes),
    }
}

fn n_heads(attributes: &Attributes) -> u32 {
    u32::try_from(attributes.int_or("num_heads", 0)).unwrap_or(0)
}

/// What attention shows of its probabilities over queries, if not each.
fn over_queries(attributes: &Attributes) -> Option<Reduction> {
    let name = attributes.str("probabilities")?;
    match OverQueries::from_name(name)? {
        OverQueries::Each => None,
        OverQueries::Sum => Some(Reduction::Sum),
        OverQueries::Mean => Some(Reduction::Mean),
    }
}

/// The lines of a body that compute an elementwise operator, and its operands that are there.
fn elementwise(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<(Vec<String>, Vec<Option<Value>>)> {
    let operands = graph.operands(node);
    if op == Operator::Elementwise {
        let Some(Attribute::Strs(body)) = attributes.get("body") else {
            return None;
        };
        return Some((body.clone(), operands));
    }
    let present: Vec<bool> = operands.iter().map(Option::is_some).collect();
    let mut lines = lines_of(op, attributes, &present)?;
    // Operands that are absent leave no gap.
    let place = |i: usize| present[..i].iter().filter(|&&p| p).count();
    for argument in lines.iter_mut().flat_map(|l| &mut l.arguments) {
        if let Argument::Operand(i) = argument {
            *i = place(*i);
        }
    }
    let present = operands.into_iter().filter(Option::is_some).collect();
    let lines = lines.iter().map(ToString::to_string).collect();
    Some((lines, present))
}

/// As [`elementwise`], if a step takes these row-major operands.
fn row_major_elementwise(
    graph: &Graph,
    node: NodeId,
    op: Operator,
    attributes: &Attributes,
) -> Option<(Vec<String>, Vec<Option<Value>>)> {
    let (body, operands) = elementwise(graph, node, op, attributes)?;
    let result = graph.ty(Value { node, result: 0 });
    let types: Vec<_> = operands.iter().flatten().map(|&v| graph.ty(v)).collect();
    let dtypes: Vec<DType> = types.iter().map(|t| t.dtype).collect();
    let inferred = Body::parse(&body).ok()?.types(&dtypes).ok()?;
    let held = (dtypes.iter().copied())
        .chain(inferred.iter().flat_map(|t| [t.0, t.1]))
        .all(holds);
    let fits = types.iter().all(|t| t.rank() <= result.rank());
    let few = operands.len() <= MAX_OPERANDS;
    (held && fits && few).then_some((body, operands))
}

fn plan_attributes(attributes: &Attributes) -> Vec<(String, PlanAttribute)> {
    let value = |a: &Attribute| match a {
        Attribute::Int(v) => PlanAttribute::Int(*v),
        Attribute::Float(v) => PlanAttribute::Float(*v),
        Attribute::Str(v) => PlanAttribute::Str(v.clone()),
        Attribute::Ints(v) => PlanAttribute::Ints(v.clone()),
        Attribute::Floats(v) => PlanAttribute::Floats(v.clone()),
        Attribute::Strs(v) => PlanAttribute::Strs(v.clone()),
        Attribute::Tensor(t) => PlanAttribute::Tensor(attribute_tensor(t)),
    };
    attributes
        .iter()
        .map(|(name, a)| (name.to_owned(), value(a)))
        .collect()
}

fn attribute_tensor(tensor: &Tensor) -> AttributeTensor {
    AttributeTensor {
        dtype: tensor.dtype().name().to_owned(),
        shape: tensor.shape().iter().map(|&d| d as u64).collect(),
        bytes: little_endian(tensor).into_owned(),
    }
}
