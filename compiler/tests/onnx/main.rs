//! Import, on small models built through ONNX's messages.

mod control;
mod errors;
mod external;
mod hostile;
mod model;
mod rules;
mod suite;
mod tensors;

use lancet::onnx::{ImportErrors, ImportOptions, import_bytes};
use lancet_ir::{Graph, Op, Value};
use lancet_ops::Attribute;

use model::Model;

fn import(model: &Model) -> Result<Graph, ImportErrors> {
    import_bytes(&model.bytes(), None, &ImportOptions::default())
}

/// A graph as text: one line per node, constants of integers and small floats with their elements.
///
/// It says what import made and no more, so that a change of the printer changes no snapshot here.
fn describe(graph: &Graph) -> String {
    let mut out = String::new();
    let order = graph.order();
    let number = |v: Value| {
        order
            .iter()
            .position(|n| *n == v.node)
            .unwrap_or(usize::MAX)
    };
    let text = |v: Option<Value>| match v {
        None => "_".to_owned(),
        Some(v) if v.result == 0 => format!("%{}", number(v)),
        Some(v) => format!("%{}.{}", number(v), v.result),
    };
    for (i, &node) in order.iter().enumerate() {
        let what = match graph.op(node) {
            Op::Input(name) => format!("input {name}"),
            Op::Const(c) => format!("const {:?}", c.tensor.data()),
            op => op.text().to_owned(),
        };
        let operands: Vec<String> = graph.operands(node).into_iter().map(text).collect();
        let attributes: Vec<String> = graph
            .attributes(node)
            .iter()
            .map(|(name, value)| match value {
                Attribute::Tensor(t) => format!("{name} = {:?}", t.data()),
                Attribute::Int(v) => format!("{name} = {v}"),
                Attribute::Float(v) => format!("{name} = {v:?}"),
                Attribute::Str(v) => format!("{name} = {v:?}"),
                Attribute::Ints(v) => format!("{name} = {v:?}"),
                other => format!("{name} = {other:?}"),
            })
            .collect();
        let types: Vec<String> = (0..graph.n_results(node) as u32)
            .map(|result| graph.ty(Value { node, result }).to_string())
            .collect();
        out += &format!("%{i} = {what}");
        if !operands.is_empty() {
            out += &format!(" {}", operands.join(" "));
        }
        if !attributes.is_empty() {
            out += &format!(" {{{}}}", attributes.join(", "));
        }
        out += &format!(" : {} '{}'\n", types.join(", "), graph.node_name(node));
    }
    for output in graph.outputs() {
        out += &format!("{} = {}\n", output.name, text(Some(output.value)));
    }
    out
}

/// What import makes of a model: the graph, or every error after its kind.
fn outcome(model: &Model) -> String {
    match import(model) {
        Ok(graph) => describe(&graph),
        Err(errors) => format!("{:?}\n{errors}\n", errors.kind()),
    }
}
