//! Raises the rotation of features that rotary position embeddings write with slices and concatenations to a sparse linear
//! layer.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s, 2], %sin: f32[s, 4]) dims(b, s) {
//!   const @w: f32[4, 2] = random(seed = 1)
//!   const @zero: i64[1] = [0]
//!   const @half: i64[1] = [2]
//!   const @end: i64[1] = [4]
//!   const @axis: i64[1] = [2]
//!   %0 = linear %x, @w : f32[b, s, 4]
//!   %1 = slice %0, @half, @end, @axis : f32[b, s, 2]
//!   %2 = neg %1 : f32[b, s, 2]
//!   %3 = slice %0, @zero, @half, @axis : f32[b, s, 2]
//!   %4 = concat %2, %3 {axis = -1} : f32[b, s, 4]
//!   %5 = mul %4, %sin : f32[b, s, 4]
//!   return %5
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s, 2], %sin: f32[s, 4]) dims(b, s) {
//!   const @w: f32[4, 2] = random(seed = 1)
//!   const @rotation: f32[4, 4] = [[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, -1.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]
//!   %0 = linear %x, @w : f32[b, s, 4]
//!   %1 = linear %0, @rotation : f32[b, s, 4]
//!   %2 = mul %1, %sin : f32[b, s, 4]
//!   return %2
//! }
//! ```
//!
//! Identity: a value whose elements are features of `y`, each at its own token and perhaps negated, is `y · Rᵀ`, where each row
//! of `R` has one element, 1 or -1. Halves that are rotated, interleaved pairs, and parts of heads that are left as they are
//! differ in `R` alone. The factors, cosine and sine, are ordinary products; `raise-attention` moves them to the layout of
//! unsplit heads.
//!
//! Preconditions: a concatenation of copies of the features of one linear layer, `f32`, of fixed width.
//!
//! Numeric effect: exact, up to the sign of a zero.
//!
//! Source: Su et al., "RoFormer" (arXiv:2104.09864), equation 34.

use std::sync::Arc;

use lancet_ir::{Graph, Op};
use lancet_ops::{Attributes, Operator, Tensor};

use crate::features::Features;
use crate::matcher::result;
use crate::polynomial::is_dead;
use crate::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-rotary",
    summary: "turn rotations of the features of a layer into sparse linear layers",
    options: &[],
    new: || Box::new(RaiseRotary),
};

struct RaiseRotary;

/// Elements of a rotation matrix.
const MAX_ELEMENTS: usize = 1 << 24;

impl Pass for RaiseRotary {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut changed = Changed::No;
        // Last ones first: a concatenation of concatenations is one rotation.
        for node in graph.order().into_iter().rev() {
            let mut value = result(node);
            if graph.op(node).operator() != Some(Operator::Concat) || is_dead(graph, value) {
                continue;
            }
            let Some(mut features) = Features::of(graph, value) else {
                continue;
            };
            // Views that join the pairs of an interleaved rotation belong to it.
            while let Some(user) = graph.single_user(value)
                && let Op::View(_) = graph.op(user)
                && let Some(of_view) = Features::of(graph, result(user))
            {
                (value, features) = (result(user), of_view);
            }
            let width = graph.shape(features.source).last();
            let width = width.and_then(lancet_ir::Dim::as_fixed).unwrap_or(0) as usize;
            let n = features.from.len();
            if MAX_ELEMENTS < n.saturating_mul(width) {
                cx.missed(
                    graph,
                    node,
                    format!("a rotation of {width} features to {n}"),
                );
                continue;
            }
            let mut rotation = vec![0.0f32; n * width];
            for (row, &(i, negated)) in features.from.iter().enumerate() {
                rotation[row * width + i] = if negated { -1.0 } else { 1.0 };
            }
            let rotation = Arc::new(Tensor::new([n, width], rotation));
            let rotation = graph.add_const("rotation", rotation);
            let op = Op::Apply(Operator::Linear, Attributes::new());
            let rotated = graph.add(op, &[Some(features.source), Some(rotation)])?;
            let name = graph.node_name(node).to_owned();
            graph.set_node_name(rotated, &name);
            cx.applied(
                graph,
                node,
                format!("raised to a rotation of {width} features"),
            );
            let placed = features.placed(graph, result(rotated))?;
            graph.replace_all_uses(value, placed)?;
            changed = Changed::Yes;
        }
        Ok(changed)
    }
}
