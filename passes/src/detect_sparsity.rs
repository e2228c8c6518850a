//! Chooses a packed format for the weight of every linear layer, from its own zeros.
//!
//! Before and after:
//!
//! ```ir
//! graph @before(%x: f32[s, 16]) dims(s) {
//!   const @w: f32[16, 16] = random(seed = 1, sparsity = 0.75, block = 4x1)
//!   %0 = linear %x, @w {activation = "none"} : f32[s, 16]
//!   return %0
//! }
//! ```
//!
//! ```ir
//! graph @after(%x: f32[s, 16]) dims(s) {
//!   const @w: f32[16, 16] = random(seed = 1, sparsity = 0.75, block = 4x1)
//!   %0 = convert @w : f32[16, 16]{bsr 4x1}
//!   %1 = linear %x, %0 {activation = "none"} : f32[s, 16]
//!   return %1
//! }
//! ```
//!
//! Identity: none is needed; a layout does not change what a value is, and adding products with zeros adds nothing.
//!
//! Preconditions: the weight is a constant `[n, k]` of `f32`, or of integers under `integer_linear`. Where it is not, the pass
//! declines with a remark and the layer runs portably. Integers are multiplied in formats `dense` and `bsr 1x4` as bytes, widened
//! first where their bins would be many, and in the others as pairs of bytes.
//!
//! Numeric effect: reassociates. Products with a weight that is zero are left out, so an infinite input no longer gives a
//! NaN where its weight is zero.
//!
//! Source: the formats and the cost of each are in `compiler/docs/kernels.md`; every choice is a remark that says the
//! pattern found, the format chosen and the predicted speed-up.

use std::collections::HashMap;

use lancet_ir::{Dim, Graph, Layout, NodeId, Op, Value, WeightFormat};
use lancet_ops::{Data, Operator};

use crate::analysis::cost::{Kernel, Matrix, choose, choose_kernel};
use crate::analysis::sparse::SparseMatrix;
use crate::analysis::sparsity::SparsityPattern;
use crate::rewrite::node_error;
use crate::{Changed, Pass, PassContext, PassError};

/// The pass.
#[derive(Debug)]
pub(crate) struct DetectSparsity;

impl Pass for DetectSparsity {
    fn name(&self) -> &'static str {
        "detect-sparsity"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut packed: HashMap<Value, Value> = HashMap::new();
        let mut changed = Changed::No;
        for (node, weight) in linear_weights(graph) {
            if let Layout::Packed(_) = graph.ty(weight).layout {
                continue;
            }
            if !has_features(graph, node) {
                cx.missed(
                    graph,
                    node,
                    "its input has features of a number that is not known",
                );
                continue;
            }
            let Some(found) = matrix(graph, weight) else {
                cx.missed(
                    graph,
                    node,
                    format!(
                        "weight is {}, not a constant [n, k] of f32, i8 or i16",
                        graph.ty(weight)
                    ),
                );
                continue;
            };
            let to = match packed.get(&weight) {
                Some(&to) => to,
                None => {
                    let chosen = match cx.options.format("format") {
                        None => choose(&found),
                        Some(format) => choose_kernel(&found, format),
                    };
                    let (format, cost) = (chosen.format, chosen.cost);
                    let dense = choose_kernel(&found, WeightFormat::Dense).cost.total();
                    let pattern = &found.pattern;
                    let by = match found.integers {
                        Some(_) => format!(" in {}", arithmetic(chosen.kernel)),
                        None => String::new(),
                    };
                    cx.analysis(
                        graph,
                        node,
                        format!(
                            "[{}, {}] {:.1} % zero, {}: {format}{by}, predicted {:.2}x dense ({cost})",
                            pattern.n,
                            pattern.k,
                            100.0 * pattern.sparsity(),
                            pattern.name(),
                            dense / cost.total().max(1.0),
                        ),
                    );
                    let convert = graph
                        .add(Op::Convert(Layout::Packed(format)), &[Some(weight)])
                        .map_err(|e| node_error(graph, node, e))?;
                    let to = Value {
                        node: convert,
                        result: 0,
                    };
                    packed.insert(weight, to);
                    to
                }
            };
            graph
                .set_operand(node, 1, Some(to))
                .map_err(|e| node_error(graph, node, e))?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}

/// Linear layers with their weights, in canonical order.
fn linear_weights(graph: &Graph) -> Vec<(NodeId, Value)> {
    graph
        .order()
        .into_iter()
        .filter(|&n| {
            let op = graph.op(n).operator();
            matches!(op, Some(Operator::Linear | Operator::IntegerLinear))
        })
        .filter_map(|n| Some((n, graph.operand(n, 1)?)))
        .collect()
}

/// True if the input of a layer has features of a fixed number, as the panels that kernels read.
fn has_features(graph: &Graph, node: NodeId) -> bool {
    let x = graph.operand(node, 0).map(|x| graph.shape(x));
    x.is_some_and(|shape| 2 <= shape.len() && shape.last().and_then(Dim::as_fixed).is_some())
}

/// What a kernel multiplies integers in.
fn arithmetic(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Bytes => "bytes",
        Kernel::Pairs => "pairs of bytes",
        Kernel::Words => "words",
        Kernel::Dense | Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4 => "floats",
    }
}

/// What is known of a constant weight `[n, k]` of `f32`, `i8` or `i16`.
fn matrix(graph: &Graph, weight: Value) -> Option<Matrix> {
    if let Some(w) = SparseMatrix::of(graph, weight) {
        return Some(Matrix::floats(SparsityPattern::of_sparse(w)));
    }
    let tensor = graph.constant(weight)?;
    let &[n, k] = tensor.shape() else { return None };
    match tensor.data() {
        Data::F32(w) => Some(Matrix::floats(SparsityPattern::of(w, n, k))),
        Data::I8(w) => Some(Matrix::integers(w, n, k)),
        Data::I16(w) => Some(Matrix::integers(w, n, k)),
        _ => None,
    }
}
