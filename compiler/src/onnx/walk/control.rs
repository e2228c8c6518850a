//! `If`, `Loop` and `Scan`.
//!
//! What is decided by constants is walked in place: the branch that is taken, a loop whose iterations are known and few. Of
//! everything else a graph is made that a node runs ([`Op::If`], [`Op::Loop`]): a graph of its own, whose inputs are what it
//! reads of the graphs around it, so that passes need not know what runs it. Constants are not inputs but copied, and share
//! their elements; so are computations of sizes.
//!
//! Here is what the three share, and `If`; [`loops`] and [`scan`] hold the others, [`region`] the graphs that nodes run and
//! [`constants`] what is known of a value on import.

mod constants;
mod loops;
mod region;
mod scan;

use std::sync::Arc;

use lancet_ir::{Op, Value};
use onnx_protobuf::{GraphProto, NodeProto};

use super::{Binding, MAX_DEPTH, Scope, Walk, initializers_of, name_of};
use crate::onnx::attributes::{self, NodeAttributes};
use crate::onnx::error::{Fault, Faults};

/// True for the operators of [`Walk::control`].
pub(super) fn is_control(domain: &str, op: &str) -> bool {
    domain.is_empty() && matches!(op, "If" | "Loop" | "Scan")
}

impl<'a> Walk<'a> {
    /// What the results of a node that runs graphs stand for; `used` tells which of them anything needs.
    pub(super) fn control(
        &mut self,
        node: &'a NodeProto,
        used: &[bool],
        scope: &Scope<'_>,
    ) -> Result<Vec<Binding>, Faults> {
        let mut operands = Vec::with_capacity(node.input.len());
        for name in &node.input {
            operands.push(match scope.lookup(name) {
                _ if name.is_empty() => Binding::Absent,
                Some(binding) => binding,
                None => {
                    let message = format!("operand `{name}` is not defined");
                    return Err(Fault::invalid(message).into());
                }
            });
        }
        if operands.iter().any(|b| matches!(b, Binding::Failed)) {
            return Ok(vec![Binding::Failed; node.output.len()]);
        }
        if scope.depth >= MAX_DEPTH {
            let message = format!("graphs are nested deeper than {MAX_DEPTH} levels");
            return Err(Fault::limit(message).into());
        }
        self.not_narrow(&operands)?;
        let attributes = attributes::read(
            &node.attribute,
            scope.formal.as_ref(),
            &mut self.reader,
            self.options.max_dense_bytes,
        )?;
        match node.op_type.as_str() {
            "If" => self.branch(node, &operands, &attributes, used, scope),
            "Loop" => self.iterate(node, &operands, &attributes, used, scope),
            _ => self.scan(node, &operands, &attributes, scope),
        }
    }

    fn branch(
        &mut self,
        node: &'a NodeProto,
        operands: &[Binding],
        attributes: &NodeAttributes<'a>,
        used: &[bool],
        scope: &Scope<'_>,
    ) -> Result<Vec<Binding>, Faults> {
        let [Binding::Value(condition)] = operands else {
            return Err(Fault::invalid("If takes one operand").into());
        };
        let yes = graph_named(attributes, "then_branch")?;
        let no = graph_named(attributes, "else_branch")?;
        for branch in [yes, no] {
            if branch.output.len() < node.output.len() {
                let message = format!(
                    "the branch gives {} results, {} are used",
                    branch.output.len(),
                    node.output.len()
                );
                return Err(Fault::invalid(message).into());
            }
        }
        let wanted: Vec<usize> = (0..node.output.len()).filter(|&i| used[i]).collect();
        if let Some(taken) = self.constant_condition(*condition) {
            let taken = if taken { yes } else { no };
            let names: Vec<&'a str> = wanted
                .iter()
                .map(|&i| taken.output[i].name.as_str())
                .collect();
            let mut inner = scope.inside(name_of(node));
            self.body(&taken.node, initializers_of(taken), &names, &mut inner)?;
            return spread(node, &wanted, found(&names, &inner)?);
        }
        let mut graphs = Vec::new();
        let mut operands = vec![Some(*condition)];
        let mut arrangements = Vec::new();
        for branch in [yes, no] {
            let names: Vec<&'a str> = wanted
                .iter()
                .map(|&i| branch.output[i].name.as_str())
                .collect();
            let mut walk = |walk: &mut Walk<'a>, _: &[Value], inner: &mut Scope<'_>| {
                walk.body(&branch.node, initializers_of(branch), &names, inner)?;
                found(&names, inner)
            };
            let region = self.region(branch, node, Vec::new(), scope, &mut walk)?;
            let Some((values, arrangement)) = flattened(&region.results)? else {
                return Ok(vec![Binding::Failed; node.output.len()]);
            };
            let (graph, captures) = self.close(region, &values)?;
            graphs.push(Arc::new(graph));
            operands.extend(captures.into_iter().map(Some));
            arrangements.push(arrangement);
        }
        if arrangements[0] != arrangements[1] {
            let message = "the branches give sequences of different lengths";
            return Err(Fault::unsupported(message).into());
        }
        let (otherwise, then) = (graphs.pop(), graphs.pop());
        let (Some(then), Some(otherwise)) = (then, otherwise) else {
            return Err(Fault::invalid("If has two branches").into());
        };
        let results = self.run_node(node, Op::If { then, otherwise }, &operands, scope)?;
        let mut results = results.into_iter();
        let arranged = arrangements.swap_remove(0).into_iter().map(|n| match n {
            None => results.next().map_or(Binding::Failed, Binding::Value),
            Some(n) => Binding::Sequence(results.by_ref().take(n).collect()),
        });
        spread(node, &wanted, arranged.collect())
    }
}

fn graph_named<'a>(attributes: &NodeAttributes<'a>, name: &str) -> Result<&'a GraphProto, Fault> {
    let graph = attributes.graphs.iter().find(|(n, _)| *n == name);
    graph
        .map(|(_, g)| *g)
        .ok_or_else(|| Fault::invalid(format!("attribute `{name}` is missing")))
}

/// What the outputs of a graph stand for.
fn found(names: &[&str], scope: &Scope<'_>) -> Result<Vec<Binding>, Faults> {
    let lookup = |name: &&str| {
        scope
            .lookup(name)
            .ok_or_else(|| Fault::invalid(format!("result `{name}` of its body is not defined")))
    };
    Ok(names.iter().map(lookup).collect::<Result<_, Fault>>()?)
}

/// Bindings of a node's results from those of the ones that are wanted.
fn spread(
    node: &NodeProto,
    wanted: &[usize],
    results: Vec<Binding>,
) -> Result<Vec<Binding>, Faults> {
    let mut out = vec![Binding::Absent; node.output.len()];
    for (&i, binding) in wanted.iter().zip(results) {
        out[i] = binding;
    }
    Ok(out)
}

/// Values, and for each binding how many of them are its sequence.
type Flattened = (Vec<Value>, Vec<Option<usize>>);

/// Values one behind the other, and for each binding how many are its sequence; `None` if something has failed.
fn flattened(bindings: &[Binding]) -> Result<Option<Flattened>, Fault> {
    let mut values = Vec::new();
    let mut arrangement = Vec::new();
    for binding in bindings {
        match binding {
            Binding::Value(value) => {
                values.push(*value);
                arrangement.push(None);
            }
            Binding::Sequence(parts) => {
                values.extend(parts.iter());
                arrangement.push(Some(parts.len()));
            }
            Binding::Stacked(_) | Binding::Grown(_) => {
                let message = "a sequence of a length that is not constant is a result";
                return Err(Fault::unsupported(message));
            }
            Binding::Absent => return Err(Fault::invalid("a value is absent")),
            Binding::Failed => return Ok(None),
        }
    }
    Ok(Some((values, arrangement)))
}

/// Values of bindings; `None` if something has failed.
fn tensors(bindings: &[Binding]) -> Result<Option<Vec<Value>>, Fault> {
    match flattened(bindings)? {
        Some((_, arrangement)) if arrangement.iter().any(Option::is_some) => {
            let message = "a sequence stands where only tensors are supported";
            Err(Fault::unsupported(message))
        }
        flat => Ok(flat.map(|(values, _)| values)),
    }
}
