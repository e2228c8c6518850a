//! Puts activations between linear layers, norms, attention and elementwise steps in token panels.
//!
//! Before and after:
//!
//! ```ir
//! graph @before(%x: f32[s, 4]) dims(s) {
//!   const @w: f32[8, 4] = random(seed = 1)
//!   %0 = convert @w : f32[8, 4]{dense}
//!   %1 = linear %x, %0 {activation = "none"} : f32[s, 8]
//!   %2 = gelu %1 {approximate = "none"} : f32[s, 8]
//!   return %2
//! }
//! ```
//!
//! ```ir
//! graph @after(%x: f32[s, 4]) dims(s) {
//!   const @w: f32[8, 4] = random(seed = 1)
//!   %0 = convert %x : f32[s, 4]{panels}
//!   %1 = convert @w : f32[8, 4]{dense}
//!   %2 = linear %0, %1 {activation = "none"} : f32[s, 8]{panels}
//!   %3 = gelu %2 {approximate = "none"} : f32[s, 8]{panels}
//!   %4 = convert %3 : f32[s, 8]
//!   return %4
//! }
//! ```
//!
//! Identity: a layout does not change what a value is.
//!
//! Preconditions: an operator moves to panels where a kernel for it exists: `linear` on a packed weight, `layer_norm` over the
//! last axis with constant parameters, `scaled_dot_product_attention`, `embedding_lookup` of f32 tables; and, where an operand
//! is in panels already, activations, `round`, views that keep the features, `add`, `sub`, `mul`, `div`, `max` and `min` of two values of one
//! shape or by one number for each feature, or one number, `elementwise` of these, of numbers in f64, and of one number for each
//! token, and sums, means and extremes over all features. The same holds for integers: `integer_linear` on a packed weight, the quantizations to bytes, by one scale, that only such
//! layers read, sums and products of `i32`, and their conversion to `f32`. Everything else stays row-major, with a remark
//! where a linear layer does; conversions stand only where the two meet.
//!
//! Numeric effect: exact.
//!
//! Source: token panels are described in `compiler/docs/kernels.md`.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Graph, Layout, NodeId, Op, TensorType, Value};
use lancet_ops::{DType, Operator, Tensor};

use crate::rewrite::node_error;
use crate::vector::{as_vector, constant_name};
use crate::{Changed, Pass, PassContext, PassError};

/// The pass.
#[derive(Debug)]
pub(crate) struct AssignLayout;

/// Which layout each operand of a node in panels must have.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wants {
    Panels,
    RowMajor,
    /// Packed weights, which stay as they are.
    AsIs,
}

impl Pass for AssignLayout {
    fn name(&self) -> &'static str {
        "assign-layout"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut converted: HashMap<(Value, Layout), Value> = HashMap::new();
        let mut changed = Changed::No;
        for node in graph.order() {
            let normal = match by_features(graph, node)? {
                Some(operands) => Some(operands.to_vec()),
                None => by_features_of_body(graph, node),
            };
            if let Some(operands) = normal {
                for (i, value) in operands.into_iter().enumerate() {
                    graph
                        .set_operand(node, i, Some(value))
                        .map_err(|e| node_error(graph, node, e))?;
                }
                changed = Changed::Yes;
            }
            let operands = graph.operands(node);
            let wants = in_panels(graph, node, &operands);
            if wants.is_none() && graph.op(node).operator() == Some(Operator::Linear) {
                cx.missed(graph, node, "runs portably: its weight is not packed or its input is not f32 of rank 2 or more");
            }
            if wants.is_some() {
                let result = Value { node, result: 0 };
                if graph.ty(result).layout != Layout::Panels {
                    graph.set_layout(result, Layout::Panels);
                    changed = Changed::Yes;
                }
            }
            if matches!(graph.op(node), Op::Convert(_)) {
                continue;
            }
            for (i, operand) in operands.iter().enumerate() {
                let Some(value) = *operand else { continue };
                let layout = match wants.as_ref().map_or(Wants::RowMajor, |w| {
                    w.get(i).copied().unwrap_or(Wants::RowMajor)
                }) {
                    Wants::Panels => Layout::Panels,
                    Wants::RowMajor => Layout::RowMajor,
                    Wants::AsIs => continue,
                };
                if let Some(to) = convert(graph, &mut converted, value, layout)
                    .map_err(|e| node_error(graph, node, e))?
                {
                    graph
                        .set_operand(node, i, Some(to))
                        .map_err(|e| node_error(graph, node, e))?;
                    changed = Changed::Yes;
                }
            }
        }
        for i in 0..graph.outputs().len() {
            let value = graph.outputs()[i].value;
            if let Some(to) = convert(graph, &mut converted, value, Layout::RowMajor)
                .map_err(|e| node_error(graph, value.node, e))?
            {
                graph.set_output(i, to);
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }
}

/// The value in `layout`, or `None` if it is already. A conversion of a conversion goes back to its source.
fn convert(
    graph: &mut Graph,
    converted: &mut HashMap<(Value, Layout), Value>,
    value: Value,
    layout: Layout,
) -> Result<Option<Value>, lancet_ir::IrError> {
    if graph.ty(value).layout == layout || matches!(graph.ty(value).layout, Layout::Packed(_)) {
        return Ok(None);
    }
    if let Op::Convert(_) = graph.op(value.node)
        && let Some(source) = graph.operand(value.node, 0)
        && graph.ty(source).layout == layout
    {
        return Ok(Some(source));
    }
    if let Some(&to) = converted.get(&(value, layout)) {
        return Ok(Some(to));
    }
    let node = graph.add(Op::Convert(layout), &[Some(value)])?;
    let to = Value { node, result: 0 };
    converted.insert((value, layout), to);
    Ok(Some(to))
}

/// Operands of an elementwise operator of panels and a constant that is the same for all tokens, the constant last and with
/// one number for each feature; `None` if it is not so, or has this form already.
fn by_features(graph: &mut Graph, node: NodeId) -> Result<Option<[Value; 2]>, PassError> {
    let commutes = match graph.op(node).operator() {
        Some(Operator::Add | Operator::Mul | Operator::Max | Operator::Min)
            if graph.operands(node).len() == 2 =>
        {
            true
        }
        Some(Operator::Sub | Operator::Div | Operator::AtLeast | Operator::AtMost) => false,
        _ => return Ok(None),
    };
    let (Some(a), Some(b)) = (graph.operand(node, 0), graph.operand(node, 1)) else {
        return Ok(None);
    };
    let ty = graph.ty(Value { node, result: 0 }).clone();
    let panels = |v| graph.ty(v).layout == Layout::Panels && graph.ty(v).same_value(&ty);
    let (x, constant) = match (panels(a), panels(b)) {
        (true, false) => (a, b),
        (false, true) if commutes => (b, a),
        _ => return Ok(None),
    };
    let k = ty.shape.last().and_then(lancet_ir::Dim::as_fixed);
    let Some(k) = k.and_then(|k| usize::try_from(k).ok()) else {
        return Ok(None);
    };
    if graph.constant(constant).is_none() || (x == a && graph.shape(constant) == [k.into()]) {
        return Ok(None);
    }
    Ok(as_vector(graph, constant, k)?.map(|vector| [x, vector]))
}

/// Operands of an `elementwise` in panels, constants that are the same for all tokens with one number for each feature; `None`
/// if it is none, or nothing changes.
fn by_features_of_body(graph: &mut Graph, node: NodeId) -> Option<Vec<Value>> {
    if graph.op(node).operator() != Some(Operator::Elementwise) {
        return None;
    }
    let ty = graph.ty(Value { node, result: 0 }).clone();
    let mut operands: Vec<Value> = graph.operands(node).into_iter().flatten().collect();
    let in_panels = |v: &Value| graph.ty(*v).layout == Layout::Panels;
    let k = ty.shape.last().and_then(lancet_ir::Dim::as_fixed)?;
    let k = usize::try_from(k).ok()?;
    if !fits(&ty) || !operands.iter().any(in_panels) {
        return None;
    }
    let mut changed = false;
    for operand in &mut operands {
        let ones = |dims: &[lancet_ir::Dim]| dims.iter().all(|d| d.as_fixed() == Some(1));
        let is_vector = match graph.shape(*operand) {
            [leading @ .., last] => {
                !leading.is_empty() && ones(leading) && last.as_fixed() == Some(k as i64)
            }
            [] => false,
        };
        if is_vector && let Some(tensor) = graph.constant(*operand) {
            let Some(vector) = Tensor::clone(tensor).reshaped(vec![k]) else {
                continue;
            };
            let name = constant_name(graph, *operand);
            *operand = graph.add_const(&name, Arc::new(vector));
            changed = true;
        }
    }
    changed.then_some(operands)
}

/// True if the type is `f32` and can lie in panels.
fn fits(ty: &TensorType) -> bool {
    ty.dtype == DType::F32 && has_features(ty)
}

/// True if the shape is that of panels.
fn has_features(ty: &TensorType) -> bool {
    ty.rank() >= 2 && ty.shape[ty.rank() - 1].as_fixed().is_some_and(|k| k > 0)
}

/// True if there is one element.
fn is_one(ty: &TensorType) -> bool {
    ty.shape.iter().all(|d| d.as_fixed() == Some(1))
}

/// True if integer products on packed weights are all that uses a value.
fn feeds_integer_linear(graph: &Graph, value: Value) -> bool {
    let takes_bytes = |(user, operand): (NodeId, usize)| {
        let packed = |w| matches!(graph.ty(w).layout, Layout::Packed(_));
        match graph.op(user) {
            Op::Apply(Operator::IntegerLinear, _) => {
                operand == 0 && graph.operand(user, 1).is_some_and(packed)
            }
            Op::View(_) => {
                let view = Value {
                    node: user,
                    result: 0,
                };
                // Only a view that regroups tokens is the same panels.
                graph.shape(view).last() == graph.shape(value).last()
                    && feeds_integer_linear(graph, view)
            }
            _ => false,
        }
    };
    let users = graph.users(value);
    !users.is_empty() && !graph.is_output(value) && users.into_iter().all(takes_bytes)
}

/// What each operand must be if a kernel on panels runs this node; `None` if none does.
fn in_panels(graph: &Graph, node: NodeId, operands: &[Option<Value>]) -> Option<Vec<Wants>> {
    let result = graph.ty(Value { node, result: 0 });
    let panels = |i: usize| {
        operands
            .get(i)
            .copied()
            .flatten()
            .is_some_and(|v| graph.ty(v).layout == Layout::Panels)
    };
    let ty = |i: usize| operands.get(i).copied().flatten().map(|v| graph.ty(v));
    let constant = |i: usize| {
        operands
            .get(i)
            .copied()
            .flatten()
            .is_none_or(|v| graph.constant(v).is_some())
    };
    if let Some(wants) = integers(graph, node, operands) {
        return Some(wants);
    }
    // Steps on panels are given their sizes.
    if !fits(result) || !graph.sizes_are_known(node) {
        return None;
    }
    match graph.op(node) {
        // A view that only regroups tokens is the same panels.
        Op::View(_) => {
            let x = ty(0)?;
            let same_features = x.rank() >= 2 && x.shape.last() == result.shape.last();
            (panels(0) && same_features).then(|| vec![Wants::Panels])
        }
        Op::Apply(Operator::Linear, _) => {
            let packed = matches!(ty(1)?.layout, Layout::Packed(_));
            let residual_fits = ty(3).is_none_or(|r| r.shape == result.shape && fits(r));
            (packed && fits(ty(0)?) && constant(2) && residual_fits)
                .then(|| vec![Wants::Panels, Wants::AsIs, Wants::RowMajor, Wants::Panels])
        }
        Op::Apply(Operator::LayerNormalization | Operator::RMSNormalization, a) => {
            let axis = a.int_or("axis", -1);
            let over_features = axis == -1 || axis == result.rank() as i64 - 1;
            let k = result.shape.last()?;
            let parameters = [1, 2]
                .into_iter()
                .all(|i| ty(i).is_none_or(|t| t.shape.as_slice() == std::slice::from_ref(k)));
            (over_features
                && parameters
                && constant(1)
                && constant(2)
                && graph.n_results(node) == 1)
                .then(|| vec![Wants::Panels, Wants::RowMajor, Wants::RowMajor])
        }
        Op::Apply(
            Operator::ScaledDotProductAttention
            | Operator::GeneralizedAttention
            | Operator::PackedAttention,
            _,
        ) => {
            let all = (0..3).all(|i| ty(i).is_some_and(fits));
            let mut wants = vec![Wants::RowMajor; operands.len()];
            wants[..3].fill(Wants::Panels);
            all.then_some(wants)
        }
        Op::Apply(Operator::EmbeddingLookup, _) => Some(vec![Wants::RowMajor; operands.len()]),
        Op::Apply(
            Operator::Add
            | Operator::Sub
            | Operator::Mul
            | Operator::Div
            | Operator::Max
            | Operator::Min
            | Operator::AtLeast
            | Operator::AtMost,
            _,
        ) => {
            if operands.len() != 2 {
                return None;
            }
            let same = |i: usize| ty(i).is_some_and(|t| t.shape == result.shape && fits(t));
            let k = result.shape.last()?;
            if same(0) && same(1) && (panels(0) || panels(1)) {
                return Some(vec![Wants::Panels, Wants::Panels]);
            }
            let by_features = |i: usize| {
                ty(i).is_some_and(|t| {
                    t.dtype == DType::F32
                        && t.rank() <= result.rank()
                        && (is_one(t) || t.shape.as_slice() == std::slice::from_ref(k))
                })
            };
            if panels(1) && same(1) && by_features(0) {
                return Some(vec![Wants::RowMajor, Wants::Panels]);
            }
            let by_features = by_features(1);
            (panels(0) && same(0) && by_features).then(|| vec![Wants::Panels, Wants::RowMajor])
        }
        Op::Apply(Operator::Elementwise, _) => {
            let wants = (0..operands.len()).map(|i| {
                let t = ty(i).filter(|t| matches!(t.dtype, DType::F32 | DType::F64))?;
                let is_f32 = t.dtype == DType::F32;
                let (last, leading) = t.shape.split_last().unzip();
                let tokens = leading == result.shape.split_last().map(|(_, rest)| rest)
                    && last.is_some_and(|d| d.as_fixed() == Some(1));
                let one = t.shape.iter().all(|d| d.as_fixed() == Some(1));
                let features = t.shape.as_slice() == std::slice::from_ref(result.shape.last()?);
                if is_f32 && (t.shape == result.shape || (tokens && !one)) {
                    Some(Wants::Panels)
                } else {
                    (one || features).then_some(Wants::RowMajor)
                }
            });
            let wants: Vec<Wants> = wants.collect::<Option<_>>()?;
            let any = (0..operands.len())
                .any(|i| panels(i) && ty(i).is_some_and(|t| t.shape == result.shape));
            any.then_some(wants)
        }
        Op::Apply(
            Operator::ReduceSum
            | Operator::ReduceMean
            | Operator::ReduceMax
            | Operator::ReduceMin
            | Operator::ReduceL2,
            a,
        ) => {
            let axes = graph.constant(operands.get(1).copied().flatten()?)?;
            let last = ty(0)?.rank() as i64 - 1;
            let over_features = matches!(axes.as_slice::<i64>()?, &[a] if a == -1 || a == last);
            let keeps = a.int_or("keepdims", 1) != 0 && result.rank() == ty(0)?.rank();
            (panels(0) && over_features && keeps).then(|| vec![Wants::Panels, Wants::RowMajor])
        }
        Op::Apply(Operator::Swish, a) => {
            let known = matches!(a.float_or("alpha", 1.0), 1.0 | 1.702);
            (known && panels(0)).then(|| vec![Wants::Panels])
        }
        Op::Apply(
            Operator::Gelu | Operator::Relu | Operator::Tanh | Operator::Sigmoid | Operator::Round,
            _,
        ) => panels(0).then(|| vec![Wants::Panels]),
        Op::Input(_)
        | Op::Const(_)
        | Op::Dims(_)
        | Op::Broadcast(_)
        | Op::Convert(_)
        | Op::Apply(..)
        | Op::If { .. }
        | Op::Loop { .. } => None,
    }
}

/// As [`in_panels`] for what takes or gives integers.
fn integers(graph: &Graph, node: NodeId, operands: &[Option<Value>]) -> Option<Vec<Wants>> {
    let value = Value { node, result: 0 };
    let result = graph.ty(value);
    let operand = |i: usize| operands.get(i).copied().flatten();
    let ty = |i: usize| operand(i).map(|v| graph.ty(v));
    let panels = |i: usize| ty(i).is_some_and(|t| t.layout == Layout::Panels);
    let Op::Apply(op, _) = graph.op(node) else {
        // A view that only regroups tokens is the same panels.
        let regroups = matches!(graph.op(node), Op::View(_))
            && panels(0)
            && matches!(result.dtype, DType::I32 | DType::U8)
            && has_features(result)
            && ty(0)?.shape.last() == result.shape.last();
        return regroups.then(|| vec![Wants::Panels]);
    };
    if !has_features(result) {
        return None;
    }
    match op {
        Operator::IntegerLinear => {
            let packed = matches!(ty(1)?.layout, Layout::Packed(_));
            (packed && has_features(ty(0)?)).then(|| vec![Wants::Panels, Wants::AsIs])
        }
        Operator::QuantizeLinear => {
            let scale = ty(1)?;
            let per_tensor = scale.dtype == DType::F32 && is_one(scale) && ty(2).is_none_or(is_one);
            let fits = fits(ty(0)?) && result.dtype == DType::U8 && per_tensor;
            (fits && feeds_integer_linear(graph, value))
                .then(|| vec![Wants::Panels, Wants::RowMajor, Wants::RowMajor])
        }
        Operator::DynamicQuantizeLinear => {
            (fits(ty(0)?) && feeds_integer_linear(graph, value)).then(|| vec![Wants::Panels])
        }
        Operator::Cast => {
            let exact = ty(0)?.dtype == DType::I32 && result.dtype == DType::F32;
            (exact && panels(0)).then(|| vec![Wants::Panels])
        }
        Operator::Add | Operator::Sub | Operator::Mul if result.dtype == DType::I32 => {
            let same = |i: usize| ty(i).is_some_and(|t| t.same_value(result));
            if same(0) && same(1) && (panels(0) || panels(1)) {
                return Some(vec![Wants::Panels, Wants::Panels]);
            }
            let k = result.shape.last()?;
            let by_features = |i: usize| {
                ty(i).is_some_and(|t| {
                    t.rank() <= result.rank()
                        && (is_one(t) || t.shape.as_slice() == std::slice::from_ref(k))
                })
            };
            match () {
                () if panels(0) && same(0) && by_features(1) => {
                    Some(vec![Wants::Panels, Wants::RowMajor])
                }
                () if panels(1) && same(1) && by_features(0) => {
                    Some(vec![Wants::RowMajor, Wants::Panels])
                }
                () => None,
            }
        }
        _ => None,
    }
}
