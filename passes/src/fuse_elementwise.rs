//! Fuses chains of elementwise operators into `Elementwise`, which one kernel computes in one pass over memory.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, s], %y: f32[b, s]) dims(b, s) {
//!   const @c: f32[] = 0.125
//!   %0 = mul %x, %x : f32[b, s]
//!   %1 = mul %0, @c : f32[b, s]
//!   %2 = add %1, %y : f32[b, s]
//!   return %2
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, s], %y: f32[b, s]) dims(b, s) {
//!   %0 = elementwise %x, %y {body = ["mul x0 x0", "mul v0 0.125", "add v1 x1"]} : f32[b, s]
//!   return %0
//! }
//! ```
//!
//! Identity: functions of each element compose; constants of one element are numbers of the body, `x ^ 2` is `x · x`, and
//! `clip(x, lo, hi) = min(max(x, lo), hi)`.
//!
//! Preconditions: an operator joins the one that uses it if nothing else does, both have the same shape (so that nothing is
//! computed more often than before), and all types are among `f32`, `f64`, `i64`, `i32` and `bool`; at most 48 lines and 12
//! operands, and no more values at once than registers hold. One operator alone stays as it is, and so do those behind an
//! integer product or before a quantization, which lowering makes part of the layer's own step.
//!
//! Numeric effect: exact.
//!
//! Source: Chen et al., "TVM" (arXiv:1802.04799), section 3, on injective operators.

use std::collections::{HashMap, HashSet};

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::elementwise::{Argument, Body, Instruction, holds, lines_of};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::matcher::{peel, result, scalar};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// Lines of the longest body.
const MAX_LINES: usize = 48;

/// Operands of the longest list.
const MAX_OPERANDS: usize = 12;

/// Values that kernels keep in registers.
const MAX_LIVE: usize = 7;

/// The pass `fuse-elementwise`.
pub(crate) struct FuseElementwise;

/// Operators that become one, in graph order; the last one is the root.
struct Match {
    n_operators: usize,
    root: Value,
    operands: Vec<Value>,
    body: Body,
}

impl Pass for FuseElementwise {
    fn name(&self) -> &'static str {
        "fuse-elementwise"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let order = graph.order();
        let position: HashMap<NodeId, usize> =
            order.iter().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut taken: HashSet<NodeId> = HashSet::new();
        let mut matches = Vec::new();
        for &node in order.iter().rev() {
            if !taken.contains(&node)
                && let Some((members, m)) = grow(graph, node, &position)
            {
                if !meets_integer_layers(graph, &members) {
                    matches.push(m);
                }
                taken.extend(members);
            }
        }
        matches.reverse();
        let mut rewrites = Rewrites::new();
        for m in matches {
            let body = Attribute::Strs(m.body.lines());
            let op = Op::Apply(Operator::Elementwise, Attributes::new().with("body", body));
            let to = rewrites.replace_by(graph, m.root, op, &m.operands)?;
            let message = format!("fused {} elementwise operators", m.n_operators);
            cx.applied(graph, to.node, message);
        }
        Ok(rewrites.changed())
    }
}

/// The operators that `root` takes in, or `None` if it stays alone.
fn grow(
    graph: &Graph,
    root: NodeId,
    position: &HashMap<NodeId, usize>,
) -> Option<(Vec<NodeId>, Match)> {
    lines(graph, root)?;
    let mut members = vec![root];
    // One operator stays alone unless only a body takes its operands in panels.
    let mut best =
        (reaches_across_features(graph, root).then(|| assemble(graph, &members))).flatten();
    let mut refused: HashSet<NodeId> = HashSet::new();
    loop {
        let is_member = |n: &NodeId| members.contains(n);
        let candidate = members
            .iter()
            .flat_map(|&n| graph.operands(n))
            .flatten()
            .find(|&v| {
                !is_member(&v.node)
                    && !refused.contains(&v.node)
                    && graph.shape(v) == graph.shape(result(root))
                    && !graph.is_output(v)
                    && graph.users(v).iter().all(|(user, _)| is_member(user))
                    && lines(graph, v.node).is_some()
            });
        let Some(candidate) = candidate else { break };
        members.push(candidate.node);
        let mut sorted = members.clone();
        sorted.sort_by_key(|n| position.get(n));
        match assemble(graph, &sorted) {
            Some(m) => best = Some(m),
            None => {
                members.pop();
                refused.insert(candidate.node);
            }
        }
    }
    best.map(|m| (members, m))
}

/// Whether an operand has one number for each token, which meets all features of another.
fn reaches_across_features(graph: &Graph, node: NodeId) -> bool {
    let shape = graph.shape(result(node));
    let [tokens @ .., features] = shape else {
        return false;
    };
    let one = Dim::fixed(1);
    let column = |v: Value| {
        graph.ty(v).dtype == DType::F32 && graph.shape(v).split_last() == Some((&one, tokens))
    };
    let operands = graph.operands(node);
    2 <= shape.len()
        && *features != one
        && operands.iter().flatten().any(|&v| column(v))
        && operands
            .iter()
            .flatten()
            .any(|&v| graph.shape(v) == shape && graph.ty(v).dtype == DType::F32)
}

/// Whether the operators stand behind an integer product, or before a quantization: these become part of a layer's own step.
fn meets_integer_layers(graph: &Graph, members: &[NodeId]) -> bool {
    let behind = |v: Value| {
        let source = peel(graph, v).node;
        graph.op(source).operator() == Some(Operator::IntegerLinear)
    };
    let quantizes = |n: NodeId| {
        matches!(
            graph.op(n).operator(),
            Some(Operator::QuantizeLinear | Operator::DynamicQuantizeLinear)
        )
    };
    let mut operands = members.iter().flat_map(|&n| graph.operands(n)).flatten();
    let root = members.first().map(|&n| graph.users(result(n)));
    operands.any(behind) || root.into_iter().flatten().any(|(user, _)| quantizes(user))
}

/// The lines that an operator is, of its operands by position.
pub(crate) fn lines(graph: &Graph, node: NodeId) -> Option<Vec<Instruction>> {
    let op = graph.op(node).operator()?;
    let operands = graph.operands(node);
    let types = operands.iter().flatten().map(|&v| graph.ty(v).dtype);
    if !types.chain([graph.ty(result(node)).dtype]).all(holds) {
        return None;
    }
    let line = |function, arguments: [usize; 2]| Instruction {
        function: lancet_ops::elementwise::Function::Operator(function),
        arguments: arguments.map(Argument::Operand).to_vec(),
    };
    if op == Operator::Pow && scalar(graph, graph.operand(node, 1)?) == Some(2.0) {
        return Some(vec![line(Operator::Mul, [0, 0])]);
    }
    if op == Operator::Elementwise {
        return None;
    }
    let present: Vec<bool> = operands.iter().map(Option::is_some).collect();
    lines_of(op, graph.attributes(node), &present)
}

/// One body for `members`, which stand in graph order, the root last.
fn assemble(graph: &Graph, members: &[NodeId]) -> Option<Match> {
    let root = result(*members.last()?);
    let mut operands: Vec<Value> = Vec::new();
    let mut body: Vec<Instruction> = Vec::new();
    // The line of each member's result.
    let mut of: HashMap<Value, usize> = HashMap::new();
    for &node in members {
        let first = body.len();
        for mut instruction in lines(graph, node)? {
            for argument in &mut instruction.arguments {
                *argument = match *argument {
                    Argument::Result(r) => Argument::Result(first + r),
                    Argument::Number(v) => Argument::Number(v),
                    Argument::Operand(i) => {
                        let value = graph.operand(node, i)?;
                        if let Some(&line) = of.get(&value) {
                            Argument::Result(line)
                        } else if let Some(number) = number(graph, value) {
                            number
                        } else {
                            let known = operands.iter().position(|&o| o == value);
                            Argument::Operand(known.unwrap_or_else(|| {
                                operands.push(value);
                                operands.len() - 1
                            }))
                        }
                    }
                };
            }
            body.push(instruction);
        }
        of.insert(result(node), body.len().checked_sub(1)?);
    }
    if MAX_LINES < body.len() || MAX_OPERANDS < operands.len() || operands.is_empty() {
        return None;
    }
    let body = Body::new(body).ok()?;
    let dtypes: Vec<DType> = operands.iter().map(|&v| graph.ty(v).dtype).collect();
    let types = body.types(&dtypes).ok()?;
    let held = types.iter().all(|&(of, to)| holds(of) && holds(to));
    let right = types.last().map(|t| t.1) == Some(graph.ty(root).dtype);
    // Numbers take no part in broadcasting: an operand must have the shape that the root has.
    let spans = operands
        .iter()
        .any(|&v| graph.shape(v) == graph.shape(root));
    (held && right && spans && body.max_live() <= MAX_LIVE).then_some(Match {
        n_operators: members.len(),
        root,
        operands,
        body,
    })
}

/// A constant of one element as a number of a body.
pub(crate) fn number(graph: &Graph, value: Value) -> Option<Argument> {
    let tensor = graph.constant(value)?;
    if tensor.len() != 1 {
        return None;
    }
    if let Some(&[v]) = tensor.as_slice::<f32>() {
        return Some(Argument::single(v));
    }
    match tensor.dtype() {
        DType::F64 | DType::I32 => tensor.view().to_f64_vec().first().copied(),
        // Greater ones are no numbers in double precision.
        DType::I64 => (tensor.view().to_i64_vec().first())
            .filter(|v| v.unsigned_abs() <= 1 << 53)
            .map(|&v| v as f64),
        _ => None,
    }
    .map(Argument::Number)
}
