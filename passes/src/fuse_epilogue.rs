//! Fuses the activation and the residual that follow a `Linear` into it.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 2], %r: f32[s, 3]) dims(s) {
//!   const @w: f32[3, 2] = random(seed = 1)
//!   %0 = linear %x, @w : f32[s, 3]
//!   %1 = relu %0 : f32[s, 3]
//!   %2 = add %r, %1 : f32[s, 3]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 2], %r: f32[s, 3]) dims(s) {
//!   const @w: f32[3, 2] = random(seed = 1)
//!   %0 = linear %x, @w, _, %r {activation = "relu"} : f32[s, 3]
//!   return %0
//! }
//! ```
//!
//! Identity: `Linear(x, w, b, r){a} = a(x·wᵀ + b) + r`.
//!
//! Preconditions: each step is the only user of the one before. An activation is taken before a residual, never after one;
//! the residual has the shape of the sum. Where both addends are `Linear`, the one that comes later in the graph takes the
//! other as its residual.
//!
//! Numeric effect: exact but for the rounding of intermediate values.

use std::collections::HashSet;

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, Operator};

use crate::matcher::{applied, binary, result};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `fuse-epilogue`.
pub(crate) struct FuseEpilogue;

/// What a `Linear` grows into.
struct Match {
    linear: NodeId,
    root: Value,
    activation: Option<&'static str>,
    residual: Option<Value>,
}

impl Pass for FuseEpilogue {
    fn name(&self) -> &'static str {
        "fuse-epilogue"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut matches: Vec<Match> = Vec::new();
        let mut taken = HashSet::new();
        let order = graph.order();
        // Later products first: a sum of two goes to the later one, which can read the earlier one's result.
        for &node in order.iter().rev() {
            if applied(graph, result(node), Operator::Linear).is_some() {
                let found = epilogue(graph, node, &taken, cx);
                taken.extend(found.as_ref().map(|m| m.root));
                matches.extend(found);
            }
        }
        matches.reverse();
        let mut rewrites = Rewrites::new();
        for m in matches {
            let mut operands: Vec<Option<Value>> = graph
                .operands(m.linear)
                .into_iter()
                .map(|v| v.map(|v| rewrites.resolve(v)))
                .collect();
            if let Some(residual) = m.residual {
                operands.resize(3, None);
                operands.push(Some(rewrites.resolve(residual)));
            }
            let mut attributes = graph.attributes(m.linear).clone();
            if let Some(activation) = m.activation {
                attributes.set("activation", Attribute::Str(activation.to_owned()));
            }
            let name = graph.node_name(m.linear).to_owned();
            let fused = graph.add(Op::Apply(Operator::Linear, attributes), &operands)?;
            graph.set_node_name(fused, &name);
            let residual = m.residual.map(|_| "a residual");
            let parts: Vec<&str> = m.activation.into_iter().chain(residual).collect();
            cx.applied(graph, fused, format!("fused {}", parts.join(" and ")));
            rewrites.replace(graph, m.root, result(fused))?;
        }
        Ok(rewrites.changed())
    }
}

/// The steps after a `Linear` that it can take over. `taken` are sums that another one takes.
fn epilogue(
    graph: &Graph,
    linear: NodeId,
    taken: &HashSet<Value>,
    cx: &mut PassContext<'_>,
) -> Option<Match> {
    if graph.operand(linear, 3).is_some() {
        return None;
    }
    let mut m = Match {
        linear,
        root: result(linear),
        activation: None,
        residual: None,
    };
    let has_activation = graph.attributes(linear).str("activation").unwrap_or("none") != "none";
    if let Some(user) = graph.single_user(m.root)
        && let Some(activation) = activation(graph, user)
    {
        if has_activation {
            cx.missed(graph, user, "the linear layer has an activation already");
            return None;
        }
        m.root = result(user);
        m.activation = Some(activation);
    }
    if let Some(user) = graph.single_user(m.root)
        && let Some((a, b)) = binary(graph, result(user), Operator::Add)
        && !taken.contains(&result(user))
    {
        let other = if a == m.root { b } else { a };
        let same = graph.ty(other).same_value(graph.ty(m.root));
        if same && other != m.root && graph.constant(other).is_none() {
            m.root = result(user);
            m.residual = Some(other);
        } else if !same {
            let message = format!("what is added has type {}", graph.ty(other));
            cx.missed(graph, user, message);
        }
    }
    (m.activation.is_some() || m.residual.is_some()).then_some(m)
}

/// The name that `Linear` has for the elementwise function of a node.
fn activation(graph: &Graph, node: NodeId) -> Option<&'static str> {
    let attributes: &Attributes = graph.attributes(node);
    match graph.op(node).operator()? {
        Operator::Relu => Some("relu"),
        Operator::Tanh => Some("tanh"),
        Operator::Sigmoid => Some("sigmoid"),
        Operator::Gelu => match attributes.str("approximate").unwrap_or("none") {
            "none" => Some("gelu"),
            "tanh" => Some("gelu_tanh"),
            _ => None,
        },
        Operator::Swish => (attributes.float_or("alpha", 1.0) == 1.0).then_some("silu"),
        _ => None,
    }
}
