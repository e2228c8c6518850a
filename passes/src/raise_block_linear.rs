//! Raises pointwise convolutions, and einsums with a constant, to linear layers whose weight may be block-diagonal.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2, 2]) dims(b, s) {
//!   const @w: f32[2, 2, 1] = [[[1.0], [2.0]], [[3.0], [4.0]]]
//!   %0 = einsum %x, @w {equation = "bski,kij->bskj"} : f32[b, s, 2, 1]
//!   return %0
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2, 2]) dims(b, s) {
//!   const @w: f32[2, 4] = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]
//!   %0 = view %x : f32[b, s, 4]
//!   %1 = linear %0, @w : f32[b, s, 2]
//!   %2 = view %1 : f32[b, s, 2, 1]
//!   return %2
//! }
//! ```
//!
//! Identities, with tokens `t`, groups `g`, contracted features `i` and new ones `j`:
//!
//! ```text
//! y[t, g, j] = Σᵢ x[t, g, i] w[g, i, j]        y = x · Wᵀ with W[(g, j), (h, i)] = w[g, i, j] where g = h, else 0
//! Conv(x, w, groups)[n, :, s], kernels of 1    the same with the channels of x[n, :, s] as features of token (n, s)
//! ```
//!
//! What is zero off the blocks is left out of the packed weight like any other zero: a product of four groups costs a
//! quarter. Monarch matrices, experts that all run, and grouped pointwise convolutions are such products.
//!
//! Preconditions: `f32`. The einsum has two operands, one of them constant, no repeated and no summed label of one operand
//! alone, and tokens in front, in one order; the convolution has kernels, strides of 1 and no padding. The dense weight has at
//! most 2^24 elements. An einsum with a constant that does not fit is declined with a remark.
//!
//! Numeric effect: reassociates.
//!
//! Sources: Dao et al., "Monarch" (arXiv:2204.00595); Iandola et al., "SqueezeBERT" (arXiv:2006.11316).

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::heads::view;
use crate::matcher::{is_dtype, result};
use crate::vector::constant_name;
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-block-linear",
    summary: "turn pointwise convolutions and einsums with a constant into linear layers",
    options: &[],
    new: || Box::new(RaiseBlockLinear),
};

struct RaiseBlockLinear;

/// Elements of a weight with its zeros.
const MAX_ELEMENTS: usize = 1 << 24;

/// A product of a value and a constant.
struct Match {
    x: Value,
    /// Whether features are the second axis of `x` and of the result, not the last ones.
    channels_second: bool,
    /// Axes of `x` in front that are tokens, where features are last.
    n_token_axes: usize,
    name: String,
    weight: Tensor,
    bias: Option<Value>,
}

impl Pass for RaiseBlockLinear {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut rewrites = Rewrites::new();
        for node in graph.order() {
            if !is_dtype(graph, result(node), DType::F32) {
                continue;
            }
            let found = match graph.op(node).operator() {
                Some(Operator::Conv) => pointwise(graph, node).map(Ok),
                Some(Operator::Einsum) => einsum(graph, node),
                _ => None,
            };
            match found {
                Some(Ok(m)) => {
                    let shape = m.weight.shape();
                    let message = format!("raised to linear with {shape:?}");
                    cx.applied(graph, node, message);
                    apply(graph, &mut rewrites, node, &m)?;
                }
                Some(Err(reason)) => cx.missed(graph, node, reason),
                None => {}
            }
        }
        Ok(rewrites.changed())
    }
}

fn apply(
    graph: &mut Graph,
    rewrites: &mut Rewrites,
    node: NodeId,
    m: &Match,
) -> Result<(), PassError> {
    let shape = graph.shape(result(node)).to_vec();
    let x = rewrites.resolve(m.x);
    let of_x = graph.shape(x).to_vec();
    let k = m.weight.shape()[1];
    let tokens = if m.channels_second {
        // Channels last, then back.
        let rank = of_x.len() as i64;
        let last: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
        transpose(graph, x, last)?
    } else {
        let mut joined = of_x[..m.n_token_axes].to_vec();
        joined.push(k.into());
        view(graph, x, joined)?
    };
    let weight = graph.add_const(&m.name, Arc::new(m.weight.clone()));
    let mut operands = vec![Some(tokens), Some(weight)];
    operands.extend(m.bias.map(Some));
    let linear = graph.add(Op::Apply(Operator::Linear, Attributes::new()), &operands)?;
    let name = graph.node_name(node).to_owned();
    graph.set_node_name(linear, &name);
    let y = if m.channels_second {
        let rank = shape.len() as i64;
        let second: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        transpose(graph, result(linear), second)?
    } else {
        view(graph, result(linear), shape)?
    };
    rewrites.replace(graph, result(node), y)
}

fn transpose(graph: &mut Graph, value: Value, perm: Vec<i64>) -> Result<Value, PassError> {
    let attributes = Attributes::new().with("perm", Attribute::Ints(perm));
    Ok(graph.apply(Operator::Transpose, attributes, &[value])?)
}

/// A convolution whose kernels are single elements.
fn pointwise(graph: &Graph, node: NodeId) -> Option<Match> {
    let (x, w) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    let bias = graph.operand(node, 2);
    let attributes = graph.attributes(node);
    let tensor = graph.constant(w)?;
    let &[n, per_group, ref kernel @ ..] = tensor.shape() else {
        return None;
    };
    let all = |name: &str, v: i64| {
        let list = attributes.ints(name);
        list.is_none_or(|l| l.iter().all(|&x| x == v))
    };
    let groups = usize::try_from(attributes.int_or("group", 1)).ok()?;
    let fits = kernel.iter().all(|&d| d == 1)
        && all("strides", 1)
        && all("pads", 0)
        && attributes.str("auto_pad") != Some("SAME_UPPER")
        && attributes.str("auto_pad") != Some("SAME_LOWER")
        && bias.is_none_or(|b| graph.constant(b).is_some())
        && 0 < groups
        && 0 < n
        && 0 < per_group
        && n % groups == 0;
    let k = per_group.checked_mul(groups)?;
    if !fits || MAX_ELEMENTS < n.checked_mul(k)? {
        return None;
    }
    let values = tensor.as_slice::<f32>()?;
    let mut weight = vec![0.0; n * k];
    for (row, block) in values.chunks_exact(per_group).enumerate() {
        let start = row * k + row / (n / groups) * per_group;
        weight[start..start + per_group].copy_from_slice(block);
    }
    Some(Match {
        x,
        channels_second: true,
        n_token_axes: 0,
        name: constant_name(graph, w),
        weight: Tensor::new([n, k], weight),
        bias,
    })
}

/// An einsum with one constant; why it is no linear layer; nothing if no operand is constant.
fn einsum(graph: &Graph, node: NodeId) -> Option<Result<Match, String>> {
    let operands = graph.operands(node);
    let &[Some(a), Some(b)] = operands.as_slice() else {
        return None;
    };
    let (x, w, swapped) = match (graph.constant(a), graph.constant(b)) {
        (None, Some(_)) => (a, b, false),
        (Some(_), None) => (b, a, true),
        _ => return None,
    };
    let equation = graph.attributes(node).str("equation")?;
    let declined = || format!("`{equation}` with a constant is not linear");
    Some(read(graph, equation, [x, w], swapped).ok_or_else(declined))
}

fn read(graph: &Graph, equation: &str, [x, w]: [Value; 2], swapped: bool) -> Option<Match> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (terms, out) = equation.split_once("->")?;
    let (first, second) = terms.split_once(',')?;
    let (of_x, of_w) = if swapped {
        (second, first)
    } else {
        (first, second)
    };
    let labels = |term: &str| {
        let all: Vec<char> = term.chars().collect();
        let distinct = (1..all.len()).all(|i| !all[..i].contains(&all[i]));
        (distinct && all.iter().all(char::is_ascii_alphabetic)).then_some(all)
    };
    let (of_x, of_w, out) = (labels(of_x)?, labels(of_w)?, labels(out)?);
    let n_token_axes = of_x.iter().take_while(|l| !of_w.contains(l)).count();
    let (tokens, inputs) = of_x.split_at(n_token_axes);
    let outputs = out.strip_prefix(tokens)?;
    // Every feature is in the constant, and every label of the constant is a feature.
    let is_feature = |l: &char| of_w.contains(l);
    let known = |l: &char| inputs.contains(l) || outputs.contains(l);
    let fits = !tokens.is_empty()
        && !inputs.is_empty()
        && !outputs.is_empty()
        && inputs.iter().all(is_feature)
        && outputs.iter().all(is_feature)
        && of_w.iter().all(known);
    if !fits || of_x.len() != graph.ty(x).rank() {
        return None;
    }
    let tensor = graph.constant(w)?;
    let sizes: HashMap<char, usize> = of_w
        .iter()
        .copied()
        .zip(tensor.shape().iter().copied())
        .collect();
    let same_sizes = inputs
        .iter()
        .zip(&graph.shape(x)[n_token_axes..])
        .all(|(l, d)| *d == Dim::from(sizes[l]));
    let size = |labels: &[char]| {
        let product = |n: usize, l| n.checked_mul(sizes[l]);
        labels.iter().try_fold(1usize, product)
    };
    let (n, k) = (size(outputs)?, size(inputs)?);
    if !same_sizes || n == 0 || k == 0 || MAX_ELEMENTS < n.checked_mul(k)? {
        return None;
    }
    let values = tensor.as_slice::<f32>()?;
    let place = |labels: &[char], index: &HashMap<char, usize>| {
        labels.iter().fold(0, |at, l| at * sizes[l] + index[l])
    };
    let mut weight = vec![0.0; n * k];
    for (i, &value) in values.iter().enumerate() {
        let mut rest = i;
        let mut index = HashMap::new();
        for l in of_w.iter().rev() {
            index.insert(*l, rest % sizes[l]);
            rest /= sizes[l];
        }
        weight[place(outputs, &index) * k + place(inputs, &index)] = value;
    }
    Some(Match {
        x,
        channels_second: false,
        n_token_axes,
        name: constant_name(graph, w),
        weight: Tensor::new([n, k], weight),
        bias: None,
    })
}
