//! Regions: graphs that nodes run, and the values of the graphs around them that they capture.
//!
//! The inputs of a region are its formal ones, then its captures. Each size of the graphs around it that it uses is a
//! dimension of one of its inputs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Dim, Graph, Op, TensorType, Value};
use lancet_ops::DType;
use onnx_protobuf::{GraphProto, NodeProto};

use super::constants::captured;
use crate::onnx::error::{Fault, Faults};
use crate::onnx::order::{names_defined, names_used};
use crate::onnx::walk::{Binding, Scope, Walk, name_of};

/// Graphs that nodes run, inside each other.
const MAX_REGIONS: usize = 12;

/// A graph that a node is to run.
pub(super) struct Region {
    pub(super) graph: Graph,
    n_formals: usize,
    /// Values outside, for the inputs behind the formal ones.
    captures: Vec<Value>,
    /// What it gives.
    pub(super) results: Vec<Binding>,
}

/// A formal input; sizes that are not known are the graph's own.
#[derive(Clone)]
pub(super) struct Formal {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<Option<Dim>>,
}

impl Formal {
    pub(super) fn of(name: &str, ty: &TensorType) -> Formal {
        Formal {
            name: name.to_owned(),
            dtype: ty.dtype,
            shape: ty.shape.iter().cloned().map(Some).collect(),
        }
    }

    pub(super) fn scalar(name: &str, dtype: DType) -> Formal {
        Formal::of(name, &TensorType::new(dtype, Vec::new()))
    }
}

/// Walks what a graph is made of, from its formal inputs.
pub(super) type Walked<'w, 'a> =
    dyn FnMut(&mut Walk<'a>, &[Value], &mut Scope<'_>) -> Result<Vec<Binding>, Faults> + 'w;

impl<'a> Walk<'a> {
    /// Walks a graph of its own. Names of `body` that are defined around it become its inputs.
    pub(super) fn region(
        &mut self,
        body: &'a GraphProto,
        node: &'a NodeProto,
        formals: Vec<Formal>,
        scope: &Scope<'_>,
        walk: &mut Walked<'_, 'a>,
    ) -> Result<Region, Faults> {
        if MAX_REGIONS <= scope.regions {
            let message = format!("more than {MAX_REGIONS} loops and branches inside each other");
            return Err(Fault::limit(message).into());
        }
        let mut inner = Scope {
            parent: None,
            regions: scope.regions + 1,
            ..scope.inside(name_of(node))
        };
        let name = crate::onnx::inputs::identifier(&body.name);
        let mut graph = self
            .graph
            .region(&name.unwrap_or_else(|| "region".to_owned()));
        let mut taken = HashSet::new();
        let mut values = Vec::with_capacity(formals.len());
        let n_formals = formals.len();
        for formal in formals {
            let shape = formal.shape.into_iter();
            let shape = shape
                .map(|d| d.unwrap_or_else(|| graph.fresh_dim()))
                .collect();
            let name = unique(&mut taken, &formal.name);
            values.push(graph.add_input(&name, TensorType::new(formal.dtype, shape)));
        }
        let mut own = names_defined(body);
        let mut captures = Vec::new();
        let mut narrow = HashMap::new();
        for name in names_used(body) {
            if !own.insert(name) {
                continue;
            }
            let Some(binding) = scope.lookup(name) else {
                continue;
            };
            let mut capture = |value| {
                let inside = captured(&self.graph, &mut graph, value).unwrap_or_else(|| {
                    captures.push(value);
                    graph.add_input(&unique(&mut taken, name), self.graph.ty(value).clone())
                });
                narrow.extend(self.narrow.get(&value).map(|&ty| (inside, ty)));
                inside
            };
            let binding = match binding {
                Binding::Value(value) => Binding::Value(capture(value)),
                Binding::Sequence(parts) => {
                    Binding::Sequence(parts.iter().map(|&v| capture(v)).collect())
                }
                Binding::Stacked(value) => Binding::Stacked(capture(value)),
                // It is the loop's own: nothing inside reads it, and no graph inside may give it.
                Binding::Grown(_) => Binding::Grown(Arc::from([])),
                Binding::Absent => Binding::Absent,
                Binding::Failed => Binding::Failed,
            };
            inner.bind(name, binding);
        }
        let outside = std::mem::replace(&mut self.graph, graph);
        let narrow_outside = std::mem::replace(&mut self.narrow, narrow);
        let results = walk(self, &values, &mut inner);
        let results = results.and_then(|results| self.not_narrow(&results).map(|()| results));
        self.narrow = narrow_outside;
        let graph = std::mem::replace(&mut self.graph, outside);
        Ok(Region {
            graph,
            n_formals,
            captures,
            results: results?,
        })
    }

    /// A graph with these outputs, and what its inputs behind the formal ones are outside.
    pub(super) fn close(
        &mut self,
        region: Region,
        outputs: &[Value],
    ) -> Result<(Graph, Vec<Value>), Fault> {
        let Region {
            mut graph,
            n_formals,
            captures,
            ..
        } = region;
        for (i, &output) in outputs.iter().enumerate() {
            graph.add_output(&format!("output{i}"), output);
        }
        graph.sweep();
        let is_used: Vec<bool> = (graph.inputs().iter().enumerate())
            .map(|(i, &node)| {
                let value = Value { node, result: 0 };
                i < n_formals || graph.is_output(value) || !graph.users(value).is_empty()
            })
            .collect();
        graph.retain_inputs(|i| is_used[i]);
        let mut captures: Vec<Value> = (captures.into_iter().zip(&is_used[n_formals..]))
            .filter_map(|(v, &used)| used.then_some(v))
            .collect();
        // Each size of the graphs around this one is told by an input that has it as a dimension.
        let mut told = HashSet::new();
        loop {
            for &node in graph.inputs() {
                let shape = graph.shape(Value { node, result: 0 });
                told.extend(shape.iter().filter_map(|d| d.as_symbol().cloned()));
            }
            let outside: HashSet<_> = self.graph.symbols().cloned().collect();
            let used = graph.used_symbols();
            let Some(symbol) = used
                .into_iter()
                .find(|s| outside.contains(s) && !told.contains(s))
            else {
                return Ok((graph, captures));
            };
            let nodes = self
                .graph
                .inputs()
                .iter()
                .copied()
                .chain(self.graph.nodes());
            let mut values = nodes.flat_map(|node| {
                (0..self.graph.n_results(node) as u32).map(move |result| Value { node, result })
            });
            let value = values.find(|v| {
                self.graph
                    .shape(*v)
                    .iter()
                    .any(|d| d.as_symbol() == Some(&symbol))
            });
            let Some(value) = value else {
                let message = format!("the size `{symbol}` is not known inside");
                return Err(Fault::unsupported(message));
            };
            let n = graph.inputs().len();
            graph.add_input(&format!("sizes{n}"), self.graph.ty(value).clone());
            captures.push(value);
        }
    }

    /// Adds a node that runs graphs, and gives its results.
    pub(super) fn run_node(
        &mut self,
        node: &NodeProto,
        op: Op,
        operands: &[Option<Value>],
        scope: &Scope<'_>,
    ) -> Result<Vec<Value>, Faults> {
        let added = self.graph.add(op, operands).map_err(Fault::from)?;
        let name = format!("{}{}", scope.prefix, name_of(node));
        self.graph.set_node_name(added, &name);
        let n = self.graph.n_results(added) as u32;
        Ok((0..n)
            .map(|result| Value {
                node: added,
                result,
            })
            .collect())
    }

    /// Values that graphs hand to each other are of the types they are held in.
    pub(super) fn not_narrow(&self, bindings: &[Binding]) -> Result<(), Faults> {
        let narrow = |value: &Value| self.narrow.get(value);
        let found = bindings.iter().find_map(|binding| match binding {
            Binding::Value(value) | Binding::Stacked(value) => narrow(value),
            Binding::Sequence(values) | Binding::Grown(values) => values.iter().find_map(narrow),
            Binding::Absent | Binding::Failed => None,
        });
        found.map_or(Ok(()), |ty| Err(Fault::DType(ty.name()).into()))
    }
}

fn unique(taken: &mut HashSet<String>, name: &str) -> String {
    let mut candidate = name.to_owned();
    let mut n = 0;
    while !taken.insert(candidate.clone()) {
        n += 1;
        candidate = format!("{name}.{n}");
    }
    candidate
}
