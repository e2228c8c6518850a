//! Raises products with a constant matrix, and the bias added to them, to `Linear` with the weight in `[out, in]` order.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w: f32[2, 3] = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
//!   const @b: f32[3] = [0.5, 0.25, 0.125]
//!   %0 = matmul %x, @w : f32[s, 3]
//!   %1 = add @b, %0 : f32[s, 3]
//!   return %1
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 2]) dims(s) {
//!   const @w: f32[3, 2] = [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
//!   const @b: f32[3] = [0.5, 0.25, 0.125]
//!   %0 = linear %x, @w, @b : f32[s, 3]
//!   return %0
//! }
//! ```
//!
//! Identity: `MatMul(x, w) + b = Linear(x, wᵀ, b)`; `Gemm(a, w, c) = Linear(a, α·wᵀ, β·c)`. A weight that is already the
//! transpose of a constant (an embedding table that is also the output projection) is used as it stands. A view that only
//! regroups the tokens of `x` moves behind the product, where it meets its inverse.
//!
//! Preconditions: `f32`; `w` a constant of rank 2; `x` of rank 2 or more. The bias is a constant vector of the output's
//! size, the product's only user. `Gemm` with a transposed left operand, and weights of higher rank, are declined with a
//! remark; a product of two computed values is attention's, not this pass's.
//!
//! Numeric effect: reassociates; exact but for `Gemm` with α or β other than 1, where the factors are multiplied into the
//! constants.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{Attributes, DType, Operator, Tensor};

use crate::analysis::sparse::{SparseMatrix, add_sparse};
use crate::matcher::{binary, commuted, is_dtype, result, transposed};
use crate::vector::{as_vector, constant_name};
use crate::{Changed, Pass, PassContext, PassError};

/// The pass `raise-linear`.
pub(crate) struct RaiseLinear;

/// Bytes of replaced weights after which they are dropped in the middle of the pass, so that a large model is not held twice.
const SWEEP_BYTES: usize = 32 << 20;

/// A product with a constant matrix.
#[derive(Clone, Debug)]
struct Match {
    root: Value,
    x: Value,
    weight: Value,
    /// Whether `weight` is `[n, k]` already.
    is_transposed: bool,
    /// What the weight and the bias are multiplied by.
    alpha: f32,
    beta: f32,
    bias: Option<Value>,
}

impl Pass for RaiseLinear {
    fn name(&self) -> &'static str {
        "raise-linear"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        // Sweeping frees ids for new nodes, so each product is matched when its turn comes; it lives until then.
        let products: Vec<NodeId> = graph
            .order()
            .into_iter()
            .filter(|&n| {
                matches!(
                    graph.op(n).operator(),
                    Some(Operator::MatMul | Operator::Gemm)
                )
            })
            .collect();
        let mut weights = Weights::default();
        let mut changed = Changed::No;
        for node in products {
            let found = match graph.op(node).operator() {
                Some(Operator::MatMul) => product(graph, node, cx),
                _ => gemm(graph, node, cx),
            };
            if let Some(m) = found {
                changed |= apply(graph, &mut weights, m, cx)?;
            }
            if SWEEP_BYTES <= weights.replaced_bytes {
                weights.replaced_bytes = 0;
                graph.sweep();
            }
        }
        Ok(changed)
    }
}

/// `MatMul(x, w)`, with the bias that its only user adds.
fn product(graph: &Graph, node: NodeId, cx: &mut PassContext<'_>) -> Option<Match> {
    let root = result(node);
    let (x, right) = binary(graph, root, Operator::MatMul)?;
    if !is_dtype(graph, root, DType::F32) || graph.constant(x).is_some() {
        return None;
    }
    let (weight, is_transposed) = match transposed(graph, right, &[1, 0]) {
        Some(table) => (table, true),
        None => (right, false),
    };
    if !is_weight(graph, weight) {
        return None;
    }
    if graph.ty(weight).rank() != 2 || graph.ty(x).rank() < 2 {
        let (w, x) = (graph.ty(weight), graph.ty(x));
        cx.missed(
            graph,
            node,
            format!("a product of {x} with the constant {w} is not linear"),
        );
        return None;
    }
    let mut m = Match {
        root,
        x,
        weight,
        is_transposed,
        alpha: 1.0,
        beta: 1.0,
        bias: None,
    };
    if let Some((user, bias)) = added_constant(graph, root) {
        m.root = user;
        m.bias = Some(bias);
    }
    Some(m)
}

/// True for a constant, held as its elements or as the values that are not zero.
fn is_weight(graph: &Graph, value: Value) -> bool {
    graph.constant(value).is_some() || SparseMatrix::of(graph, value).is_some()
}

/// The only user of `value` and the constant vector it adds, if that is what it does.
fn added_constant(graph: &Graph, value: Value) -> Option<(Value, Value)> {
    let user = result(graph.single_user(value)?);
    let (_, bias) = commuted(graph, user, Operator::Add, |v| (v == value).then_some(()))?;
    graph.constant(bias)?;
    let fits = fits_as_bias(graph, bias, graph.shape(value).last()?);
    (fits && graph.ty(user).same_value(graph.ty(value))).then_some((user, bias))
}

/// True if `bias` is a vector of `n` elements, or of one element, but for leading axes of size 1.
fn fits_as_bias(graph: &Graph, bias: Value, n: &Dim) -> bool {
    let is_one = |d: &Dim| d.as_fixed() == Some(1);
    match graph.shape(bias).split_last() {
        Some((last, leading)) => leading.iter().all(is_one) && (last == n || is_one(last)),
        None => true,
    }
}

fn gemm(graph: &Graph, node: NodeId, cx: &mut PassContext<'_>) -> Option<Match> {
    let root = result(node);
    let attributes = graph.attributes(node);
    let (x, weight) = (graph.operand(node, 0)?, graph.operand(node, 1)?);
    if !is_dtype(graph, root, DType::F32)
        || !is_weight(graph, weight)
        || graph.constant(x).is_some()
    {
        return None;
    }
    if attributes.int_or("transA", 0) != 0 {
        cx.missed(graph, node, "the left operand is transposed");
        return None;
    }
    let mut m = Match {
        root,
        x,
        weight,
        is_transposed: attributes.int_or("transB", 0) != 0,
        alpha: attributes.float_or("alpha", 1.0),
        beta: attributes.float_or("beta", 1.0),
        bias: None,
    };
    match graph.operand(node, 2) {
        Some(c)
            if graph.constant(c).is_none()
                || !fits_as_bias(graph, c, graph.shape(root).last()?) =>
        {
            cx.missed(graph, node, "the third operand is not a constant vector");
            return None;
        }
        Some(c) => m.bias = Some(c),
        None => {
            if let Some((user, bias)) = added_constant(graph, root) {
                (m.root, m.bias, m.beta) = (user, Some(bias), 1.0);
            }
        }
    }
    Some(m)
}

fn apply(
    graph: &mut Graph,
    weights: &mut Weights,
    m: Match,
    cx: &mut PassContext<'_>,
) -> Result<Changed, PassError> {
    let Some(weight) = weights.canonical(graph, &m)? else {
        return Ok(Changed::No);
    };
    let n = graph.shape(weight)[0].as_fixed().map_or(0, |n| n as usize);
    let bias = match m.bias {
        Some(b) => {
            let vector = as_vector(graph, b, n)?;
            vector.map(|v| multiplied(graph, v, m.beta))
        }
        None => None,
    };
    if m.bias.is_some() && bias.is_none() {
        return Ok(Changed::No);
    }
    let tokens = ungrouped(graph, m.x).unwrap_or(m.x);
    let mut operands = vec![Some(tokens), Some(weight)];
    operands.extend(bias.map(Some));
    let node = graph.add(Op::Apply(Operator::Linear, Attributes::new()), &operands)?;
    let name = graph.node_name(m.root.node).to_owned();
    graph.set_node_name(node, &name);
    let mut y = result(node);
    if tokens != m.x {
        let shape = graph.shape(m.root).to_vec();
        y = result(graph.add(Op::View(shape), &[Some(y)])?);
    }
    cx.applied(
        graph,
        m.root.node,
        format!("raised to linear with {}", graph.ty(weight)),
    );
    graph.replace_all_uses(m.root, y)?;
    Ok(Changed::Yes)
}

/// What `x` is a view of, if that has the same last dimension and more than one axis.
fn ungrouped(graph: &Graph, x: Value) -> Option<Value> {
    let Op::View(_) = graph.op(x.node) else {
        return None;
    };
    let inner = graph.operand(x.node, 0)?;
    let same_features = graph.shape(inner).last() == graph.shape(x).last();
    (same_features && 2 <= graph.ty(inner).rank()).then_some(inner)
}

/// Weights that were brought to `[n, k]`, each once.
#[derive(Default)]
struct Weights {
    /// By constant, orientation and the bits of the factor.
    made: HashMap<(NodeId, bool, u32), Value>,
    replaced_bytes: usize,
}

impl Weights {
    /// The weight of `m` as a constant `[n, k]`, its factor multiplied in.
    fn canonical(&mut self, graph: &mut Graph, m: &Match) -> Result<Option<Value>, PassError> {
        if m.is_transposed && m.alpha == 1.0 {
            return Ok(Some(m.weight));
        }
        let key = (m.weight.node, m.is_transposed, m.alpha.to_bits());
        if let Some(&made) = self.made.get(&key) {
            return Ok(Some(made));
        }
        if let Some(w) = SparseMatrix::of(graph, m.weight) {
            let (shape, (values, positions)) = if m.is_transposed {
                let values = w.values.iter().map(|v| v * m.alpha).collect();
                ([w.n, w.k], (values, w.positions.to_vec()))
            } else {
                ([w.k, w.n], w.transposed(m.alpha))
            };
            let name = graph.node_name(m.weight.node).to_owned();
            let made = add_sparse(graph, &name, shape, values, positions)?;
            self.made.insert(key, made);
            return Ok(Some(made));
        }
        let tensor = graph.constant(m.weight).cloned();
        let Some((tensor, values)) =
            (tensor.as_ref()).and_then(|t| Some((t, t.as_slice::<f32>()?)))
        else {
            return Ok(None);
        };
        let &[rows, columns] = tensor.shape() else {
            return Ok(None);
        };
        self.replaced_bytes += size_of_val(values);
        let (shape, mut out) = if m.is_transposed {
            ([rows, columns], values.to_vec())
        } else {
            ([columns, rows], transpose(values, rows, columns))
        };
        if m.alpha != 1.0 {
            out.iter_mut().for_each(|v| *v *= m.alpha);
        }
        let name = constant_name(graph, m.weight);
        let made = graph.add_const(&name, Arc::new(Tensor::new(shape, out)));
        self.made.insert(key, made);
        Ok(Some(made))
    }
}

/// The transpose of a row-major matrix, in tiles that fit the cache.
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..columns).step_by(TILE) {
            for i in i0..rows.min(i0 + TILE) {
                for j in j0..columns.min(j0 + TILE) {
                    out[j * rows + i] = values[i * columns + j];
                }
            }
        }
    }
    out
}

/// A constant times a factor.
fn multiplied(graph: &mut Graph, value: Value, factor: f32) -> Value {
    let scaled = match graph.constant(value).and_then(|t| t.as_slice::<f32>()) {
        Some(v) if factor != 1.0 => v.iter().map(|x| x * factor).collect::<Vec<f32>>(),
        _ => return value,
    };
    let name = constant_name(graph, value);
    graph.add_const(&name, Arc::new(Tensor::new([scaled.len()], scaled)))
}
