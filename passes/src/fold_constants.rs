//! Evaluates what depends on constants alone.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @a: f32[3] = full(2)
//!   const @b: f32[3] = full(3)
//!   %0 = mul @a, @b : f32[3]
//!   %1 = shape %x : i64[2]
//!   %2 = add %x, %0 : f32[2, 3]
//!   return %2, %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @b: f32[3] = [6.0, 6.0, 6.0]
//!   const @shape: i64[2] = [2, 3]
//!   %0 = add %x, @b : f32[2, 3]
//!   return %0, @shape
//! }
//! ```
//!
//! Identity: an operator is a function of its operands; sizes that are fixed numbers are known before any operand is.
//!
//! Preconditions: every operand is a constant (or becomes one), or type inference knows every element of the result as a
//! number; the result's type has fixed sizes; and the results take at most `max_growth` bytes more than the operands do.
//! `DequantizeLinear` stays, because a quantized weight is worth more than its floating-point copy, until `dequantize` says
//! that no pass wants it quantized; `FromSparse` stays where it gives a weight, and is folded up to a gigabyte elsewhere. What
//! fails to evaluate stays and is a remark.
//!
//! Numeric effect: exact; the operators' reference implementation computes the constants.
//!
//! Source: constant folding, as every compiler does it.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attributes, DType, Data, Operator, Tensor, TensorView, evaluate};

use crate::analysis::sparse::stays_sparse;
use crate::{Changed, OptionSchema, OptionType, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "fold-constants",
    summary: "evaluates what depends on constants alone",
    options: &[
        OptionSchema {
            name: "max_growth",
            ty: OptionType::Int,
            default: "1048576",
            summary: "bytes by which results may exceed the operands they replace",
        },
        OptionSchema {
            name: "dequantize",
            ty: OptionType::Bool,
            default: "false",
            summary: "whether `DequantizeLinear` is evaluated too, whatever it grows by",
        },
    ],
    new: || Box::new(FoldConstants),
};

/// Most bytes of a sparse tensor that is made dense because it is no weight.
const MAX_DENSE_BYTES: usize = 1 << 30;

struct FoldConstants;

impl Pass for FoldConstants {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let folded = fold(graph, cx);
        let mut rewrites = Rewrites::new();
        for (value, tensor) in folded {
            let name = const_name(graph, value.node);
            let constant = graph.add_const(&name, tensor);
            rewrites.replace(graph, value, constant)?;
        }
        Ok(rewrites.changed())
    }
}

/// Constants for the values that something else than a folded node uses, operands before users.
fn fold(graph: &Graph, cx: &mut PassContext<'_>) -> Vec<(Value, Arc<Tensor>)> {
    let max_growth = usize::try_from(cx.options.int("max_growth")).unwrap_or(0);
    let mut known: HashMap<Value, Arc<Tensor>> = HashMap::new();
    let mut folded = Vec::new();
    for node in graph.order() {
        match graph.op(node) {
            Op::Input(_) | Op::If { .. } | Op::Loop { .. } => continue,
            Op::Const(c) => {
                known.insert(Value { node, result: 0 }, Arc::clone(&c.tensor));
                continue;
            }
            Op::Dims(_) | Op::View(_) | Op::Broadcast(_) | Op::Convert(_) | Op::Apply(..) => {}
        }
        let n_results = graph.n_results(node) as u32;
        let values = (0..n_results).map(|result| Value { node, result });
        let tensors = match from_elements(graph, node) {
            Some(tensors) => Some(tensors),
            None => from_operands(graph, node, &known, max_growth, cx),
        };
        let fits = |(value, tensor): (Value, &Tensor)| {
            graph.ty(value).fixed_shape().as_deref() == Some(tensor.shape())
                && graph.ty(value).dtype == tensor.dtype()
        };
        let Some(tensors) = tensors.filter(|t| values.clone().zip(t).all(fits)) else {
            continue;
        };
        for (value, tensor) in values.zip(tensors) {
            let tensor = Arc::new(tensor);
            known.insert(value, Arc::clone(&tensor));
            folded.push((value, tensor));
        }
    }
    folded.retain(|(value, _)| {
        graph.is_output(*value)
            || graph
                .users(*value)
                .iter()
                .any(|(user, _)| !known.contains_key(&crate::matcher::result(*user)))
    });
    folded
}

/// The only result, where type inference knows each of its elements as a number.
fn from_elements(graph: &Graph, node: NodeId) -> Option<Vec<Tensor>> {
    let value = crate::matcher::result(node);
    if graph.n_results(node) != 1 {
        return None;
    }
    let elements: Option<Vec<i64>> = graph.elements(value)?.iter().map(Dim::as_fixed).collect();
    let data = integers(graph.ty(value).dtype, &elements?)?;
    Tensor::try_new(graph.ty(value).fixed_shape()?, data).map(|t| vec![t])
}

/// Elements of an integer or boolean type, or `None` if one does not fit.
fn integers(dtype: DType, elements: &[i64]) -> Option<Data> {
    fn narrow<T: TryFrom<i64>>(elements: &[i64]) -> Option<Vec<T>> {
        elements.iter().map(|&x| T::try_from(x).ok()).collect()
    }
    Some(match dtype {
        DType::I8 => Data::I8(narrow(elements)?),
        DType::I16 => Data::I16(narrow(elements)?),
        DType::I32 => Data::I32(narrow(elements)?),
        DType::I64 => Data::I64(elements.to_vec()),
        DType::U8 => Data::U8(narrow(elements)?),
        DType::U16 => Data::U16(narrow(elements)?),
        DType::U32 => Data::U32(narrow(elements)?),
        DType::U64 => Data::U64(narrow(elements)?),
        DType::Bool => Data::Bool(elements.iter().map(|&x| x != 0).collect()),
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => return None,
    })
}

/// The results of a node all of whose operands are known.
fn from_operands(
    graph: &Graph,
    node: NodeId,
    known: &HashMap<Value, Arc<Tensor>>,
    max_growth: usize,
    cx: &mut PassContext<'_>,
) -> Option<Vec<Tensor>> {
    let mut max_growth = max_growth;
    if graph.op(node).operator() == Some(Operator::FromSparse) {
        if stays_sparse(graph, crate::matcher::result(node)) {
            return None;
        }
        max_growth = MAX_DENSE_BYTES;
    }
    let operands = graph.operands(node);
    let tensors: Vec<Option<&Tensor>> = operands
        .iter()
        .map(|v| match v {
            None => Some(None),
            Some(v) => known.get(v).map(|t| Some(&**t)),
        })
        .collect::<Option<_>>()?;
    let operand_bytes: usize = tensors
        .iter()
        .flatten()
        .map(|t| t.len() * t.dtype().size_bytes())
        .sum();
    let mut result_bytes = 0usize;
    for result in 0..graph.n_results(node) as u32 {
        let ty = graph.ty(Value { node, result });
        let sizes = ty.fixed_shape()?;
        let n = sizes.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        result_bytes = result_bytes.checked_add(n.checked_mul(ty.dtype.size_bytes())?)?;
    }
    let is_dequantize = matches!(graph.op(node).operator(), Some(Operator::DequantizeLinear));
    let wanted = if is_dequantize {
        cx.options.bool("dequantize")
    } else {
        result_bytes <= operand_bytes.saturating_add(max_growth)
    };
    if !wanted {
        return None;
    }
    match evaluate_node(graph, node, &tensors)? {
        Ok(tensors) => Some(tensors),
        Err(message) => {
            cx.missed(graph, node, message);
            None
        }
    }
}

/// The results of one node; `None` if it is not one that this pass folds.
fn evaluate_node(
    graph: &Graph,
    node: NodeId,
    operands: &[Option<&Tensor>],
) -> Option<Result<Vec<Tensor>, String>> {
    let first = operands.first().copied().flatten();
    match graph.op(node) {
        Op::Input(_) | Op::Const(_) | Op::Dims(_) => None,
        Op::Convert(_) | Op::If { .. } | Op::Loop { .. } => None,
        Op::View(dims) => {
            let sizes = fixed(dims)?;
            first?.clone().reshaped(sizes).map(|t| Ok(vec![t]))
        }
        Op::Broadcast(dims) => {
            let sizes: Option<Vec<i64>> = dims.iter().map(Dim::as_fixed).collect();
            let sizes = sizes?;
            let shape = Tensor::new(vec![sizes.len()], sizes);
            let views = [Some(first?.view()), Some(shape.view())];
            Some(run(Operator::Expand, &Attributes::new(), &views, 1))
        }
        Op::Apply(op, attributes) => {
            let views: Vec<Option<TensorView<'_>>> =
                operands.iter().map(|t| t.map(Tensor::view)).collect();
            Some(run(*op, attributes, &views, graph.n_results(node)))
        }
    }
}

fn run(
    op: Operator,
    attributes: &Attributes,
    operands: &[Option<TensorView<'_>>],
    n_results: usize,
) -> Result<Vec<Tensor>, String> {
    evaluate(op, attributes, operands, n_results).map_err(|e| e.to_string())
}

fn fixed(dims: &[Dim]) -> Option<Vec<usize>> {
    dims.iter()
        .map(|d| usize::try_from(d.as_fixed()?).ok())
        .collect()
}

/// A name for the constant that a node becomes: that of its largest constant operand, else the node's own.
fn const_name(graph: &Graph, node: NodeId) -> String {
    let largest = graph
        .operands(node)
        .into_iter()
        .flatten()
        .filter_map(|v| match graph.op(v.node) {
            Op::Const(c) => Some(c),
            _ => None,
        })
        .max_by_key(|c| c.tensor.len());
    match largest {
        Some(c) => c.name.clone(),
        None => crate::matcher::describe(graph, node).to_owned(),
    }
}
