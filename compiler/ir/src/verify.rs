//! Whether a graph keeps its invariants. The pass manager asks after every pass.

use std::collections::{HashMap, HashSet};

use lancet_ops::{DType, Operator};

use crate::text::value_names;
use crate::{Dim, Graph, IrError, Layout, NodeId, Op, Symbol, TensorType, Value};

/// Checks every node, those that no output needs included:
///
/// * operands and outputs name results that exist, and no node needs its own result;
/// * names of inputs are unique, and so are names of outputs;
/// * operand counts and attributes fit the operator's schema;
/// * result types are what inference says, up to layout. Where either side of a dimension is a size that depends on data,
///   they may differ: a pass may have learnt more, or less, than was known when the node was added;
/// * graphs that nodes run are valid, and take and give row-major values;
/// * layouts are legal: packed only for constants and conversions whose every use is the weight of a `linear`, token panels
///   only for `f32`, `i8` and `u8` of at least 2 dimensions.
///
/// # Errors
/// Every violation.
pub fn verify(graph: &Graph) -> Result<(), Vec<IrError>> {
    let mut found = Found::default();
    check_edges(graph, &mut found);
    if found.0.is_empty() {
        // What follows reads operands, and may rely on their being there.
        check_names(graph, &mut found);
        let free: HashSet<Symbol> = graph.input_symbols();
        for node in graph.nodes() {
            check_types(graph, node, &free, &mut found);
            check_layouts(graph, node, &mut found);
            for region in graph.op(node).regions() {
                for error in verify(region).err().into_iter().flatten() {
                    found.rule(Some(node), format!("in @{}: {error}", region.name()));
                }
            }
        }
    }
    if found.0.is_empty() {
        return Ok(());
    }
    let names = match found.0.iter().any(|(_, e)| matches!(e, Violation::Edge(_))) {
        true => HashMap::new(),
        false => value_names(graph),
    };
    Err(found
        .0
        .into_iter()
        .map(|(node, violation)| violation.explain(graph, node, &names))
        .collect())
}

/// Violations with the node they are at, if they are at one.
#[derive(Default)]
struct Found(Vec<(Option<NodeId>, Violation)>);

enum Violation {
    /// Operands or outputs lead nowhere; the graph cannot be walked.
    Edge(String),
    Rule(String),
    Error(IrError),
}

impl Found {
    fn edge(&mut self, node: Option<NodeId>, message: impl Into<String>) {
        self.0.push((node, Violation::Edge(message.into())));
    }

    fn rule(&mut self, node: Option<NodeId>, message: impl Into<String>) {
        self.0.push((node, Violation::Rule(message.into())));
    }
}

impl Violation {
    fn explain(
        self,
        graph: &Graph,
        node: Option<NodeId>,
        names: &HashMap<Value, String>,
    ) -> IrError {
        let node = node.map_or_else(
            || "graph".to_owned(),
            |node| describe(graph, node, names.get(&Value { node, result: 0 })),
        );
        let message = match self {
            Violation::Edge(message) | Violation::Rule(message) => message,
            Violation::Error(error) => error.to_string(),
        };
        IrError::Invariant { node, message }
    }
}

/// A node as messages name it: `%3 = matmul (encoder/0/query)`.
pub(crate) fn describe(graph: &Graph, node: NodeId, value_name: Option<&String>) -> String {
    let mut out = match value_name {
        Some(name) => format!("{name} = {}", graph.op(node).text()),
        None => graph.op(node).text().to_owned(),
    };
    if !graph.node_name(node).is_empty() {
        out.push_str(&format!(" ({})", graph.node_name(node)));
    }
    out
}

fn check_edges(graph: &Graph, found: &mut Found) {
    for node in graph.nodes() {
        for (i, operand) in graph.operands(node).into_iter().enumerate() {
            if operand.is_some_and(|v| !graph.contains(v)) {
                found.edge(Some(node), format!("operand {i} does not exist"));
            }
        }
    }
    for output in graph.outputs() {
        if !graph.contains(output.value) {
            found.edge(None, format!("output `{}` does not exist", output.name));
        }
    }
    let mut finished = HashSet::new();
    let mut open = HashSet::new();
    for root in graph.nodes() {
        let mut stack = vec![(root, false)];
        while let Some((node, expanded)) = stack.pop() {
            if expanded {
                open.remove(&node);
                finished.insert(node);
                continue;
            }
            if finished.contains(&node) || !open.insert(node) {
                continue;
            }
            stack.push((node, true));
            for operand in graph.operands(node).into_iter().flatten() {
                if open.contains(&operand.node) {
                    found.edge(Some(node), "needs its own result");
                } else {
                    stack.push((operand.node, false));
                }
            }
        }
    }
}

fn check_names(graph: &Graph, found: &mut Found) {
    let mut seen = HashSet::new();
    for &node in graph.inputs() {
        match graph.op(node) {
            Op::Input(name) if seen.insert(name) => {}
            Op::Input(name) => found.rule(Some(node), format!("a second input `{name}`")),
            _ => found.rule(Some(node), "is listed as an input"),
        }
    }
    let mut named = HashMap::new();
    for output in graph.outputs() {
        if *named.entry(&output.name).or_insert(output.value) != output.value {
            found.rule(None, format!("two values are named `{}`", output.name));
        }
    }
}

fn check_types(graph: &Graph, node: NodeId, bound: &HashSet<Symbol>, found: &mut Found) {
    let op = graph.op(node);
    if let Op::Input(_) = op {
        if !graph.inputs().contains(&node) {
            found.rule(Some(node), "is not listed as an input");
        }
        return;
    }
    if let Op::Apply(operator, attributes) = op
        && let Err(errors) = attributes.check(*operator)
    {
        let error = IrError::Attributes(errors);
        found.0.push((Some(node), Violation::Error(error)));
        return;
    }
    let results = match graph.inferred(node) {
        Ok(results) => results,
        Err(error) => return found.0.push((Some(node), Violation::Error(error))),
    };
    for (index, inferred) in results.iter().enumerate() {
        let value = Value {
            node,
            result: index as u32,
        };
        let stated = graph.ty(value);
        if !types_fit(&inferred.ty, stated, &|s| bound.contains(s)) {
            let error = IrError::Mismatch {
                op: op.text().to_owned(),
                index,
                stated: stated.to_string(),
                inferred: inferred.ty.to_string(),
            };
            found.0.push((Some(node), Violation::Error(error)));
        }
    }
}

/// True if types agree, up to layout and to sizes that `bound` does not know of, which depend on data.
pub(crate) fn types_fit(a: &TensorType, b: &TensorType, bound: &dyn Fn(&Symbol) -> bool) -> bool {
    let depends_on_data = |d: &Dim| d.symbols().iter().any(|s| !bound(s));
    a.dtype == b.dtype
        && a.rank() == b.rank()
        && a.shape
            .iter()
            .zip(&b.shape)
            .all(|(a, b)| a == b || depends_on_data(a) || depends_on_data(b))
}

fn check_layouts(graph: &Graph, node: NodeId, found: &mut Found) {
    for result in 0..graph.n_results(node) as u32 {
        let value = Value { node, result };
        let ty = graph.ty(value);
        match ty.layout {
            Layout::RowMajor => {}
            Layout::Panels => {
                if ty.rank() < 2 || !matches!(ty.dtype, DType::F32 | DType::I32 | DType::U8) {
                    found.rule(Some(node), format!("{ty} cannot be token panels"));
                }
            }
            Layout::Packed(_) => {
                if !matches!(graph.op(node), Op::Const(_) | Op::Convert(_)) {
                    found.rule(
                        Some(node),
                        format!("{ty} is neither constant nor converted"),
                    );
                }
                let is_weight = |(user, operand): (NodeId, usize)| {
                    let op = graph.op(user).operator();
                    matches!(op, Some(Operator::Linear | Operator::IntegerLinear)) && operand == 1
                };
                if graph.is_output(value) || !graph.users(value).into_iter().all(is_weight) {
                    let message = format!("{ty} is packed, but not only a weight of linear");
                    found.rule(Some(node), message);
                }
            }
        }
    }
}
