//! `Loop`: walked in place, or a node that runs a graph.
//!
//! A loop carries tensors. A sequence is not carried: what iterations append to it is collected, and put behind it when the
//! loop has run. The sizes of what is carried are those it begins with, as long as an iteration leaves them as they are.

use std::collections::HashSet;
use std::sync::Arc;

use lancet_ir::{Dim, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};
use onnx_protobuf::{GraphProto, NodeProto};

use super::region::{Formal, Region, Walked};
use super::{found, graph_named, tensors};
use crate::onnx::attributes::NodeAttributes;
use crate::onnx::error::{Fault, Faults};
use crate::onnx::order::names_used;
use crate::onnx::walk::{Binding, Scope, Walk, initializers_of, name_of};

/// A loop is walked in place if this many nodes come of it.
const MAX_UNROLLED: usize = 4096;
/// How often the sizes of what a loop carries are taken from what the last walk found.
const MAX_WALKS: usize = 3;

impl<'a> Walk<'a> {
    pub(super) fn iterate(
        &mut self,
        node: &'a NodeProto,
        operands: &[Binding],
        attributes: &NodeAttributes<'a>,
        used: &[bool],
        scope: &Scope<'_>,
    ) -> Result<Vec<Binding>, Faults> {
        let body = graph_named(attributes, "body")?;
        let value = |i: usize| match operands.get(i) {
            None | Some(Binding::Absent) => Ok(None),
            Some(Binding::Value(value)) => Ok(Some(*value)),
            Some(_) => Err(Fault::invalid(format!("operand {i} is no tensor"))),
        };
        let (trips, condition) = (value(0)?, value(1)?);
        let carried = operands.get(2..).unwrap_or_default();
        let n = carried.len();
        if body.input.len() != 2 + n
            || body.output.len() < 1 + n
            || body.output.len() - 1 < node.output.len()
        {
            let message = format!(
                "carries {n} values and gives {} results, its graph takes {} and gives {}",
                node.output.len(),
                body.input.len(),
                body.output.len()
            );
            return Err(Fault::invalid(message).into());
        }
        if let Some(results) = self.unrolled(node, body, (trips, condition), carried, scope)? {
            return Ok(results);
        }
        // A sequence is not carried: what iterations add to it is collected.
        let tensors_of = |binding: &Binding| match binding {
            Binding::Value(value) => Some(*value),
            _ => None,
        };
        let states: Vec<Value> = carried.iter().filter_map(tensors_of).collect();
        let is_tensor: Vec<bool> = carried.iter().map(|b| tensors_of(b).is_some()).collect();
        let output = |i: usize| body.output[1 + i].name.as_str();
        let sequences: Vec<usize> = (0..n).filter(|&i| !is_tensor[i]).collect();
        let collected: Vec<usize> = (n..node.output.len()).filter(|&i| used[i]).collect();
        let order: Vec<usize> = (0..n).filter(|&i| is_tensor[i]).chain(collected).collect();
        let mut names = vec![body.output[0].name.as_str()];
        names.extend(order.iter().chain(&sequences).map(|&i| output(i)));
        let singles = [DType::I64, DType::Bool].into_iter().zip(&body.input);
        let mut formals: Vec<Formal> = singles
            .map(|(dtype, input)| Formal {
                shape: vec![Some(Dim::fixed(1)); declared_rank(input).min(1)],
                ..Formal::scalar(&input.name, dtype)
            })
            .collect();
        for (input, binding) in body.input[2..].iter().zip(carried) {
            if let Binding::Value(state) = binding {
                formals.push(Formal::of(&input.name, self.graph.ty(*state)));
            }
        }
        let mut n_added = Vec::new();
        let mut walk = |walk: &mut Walk<'a>, formals: &[Value], inner: &mut Scope<'_>| {
            let mut formals = formals.iter();
            for (i, input) in body.input.iter().enumerate() {
                let binding = match formals.as_slice().first() {
                    Some(&value) if i < 2 || is_tensor[i - 2] => {
                        formals.next();
                        Binding::Value(value)
                    }
                    _ => Binding::Grown(Arc::from([])),
                };
                inner.bind(&input.name, binding);
            }
            walk.body(&body.node, initializers_of(body), &names, inner)?;
            let mut results = found(&names, inner)?;
            n_added.clear();
            for _ in &sequences {
                match results.remove(1 + order.len()) {
                    Binding::Grown(parts) => {
                        n_added.push(parts.len());
                        match parts.as_ref() {
                            [] => {}
                            [part] => results.push(Binding::Value(*part)),
                            parts => results.push(Binding::Value(walk.stacked(parts)?)),
                        }
                    }
                    Binding::Failed => results.push(Binding::Failed),
                    _ => {
                        let message = "a loop carries a sequence to which it does more than append";
                        return Err(Fault::unsupported(message).into());
                    }
                }
            }
            Ok(results)
        };
        let n_states = states.len();
        let region = self.settled(body, node, formals, n_states, 1, scope, &mut walk)?;
        let Some(values) = tensors(&region.results)? else {
            return Ok(vec![Binding::Failed; node.output.len()]);
        };
        let (graph, captures) = self.close(region, &values)?;
        let op = Op::Loop {
            body: Arc::new(graph),
            n_carried: n_states,
        };
        let mut operands = vec![trips, condition];
        operands.extend(states.into_iter().chain(captures).map(Some));
        let results = self.run_node(node, op, &operands, scope)?;
        let (results, mut added) = (&results[..order.len()], results[order.len()..].iter());
        let mut out = vec![Binding::Absent; node.output.len().max(n)];
        for (&i, &value) in order.iter().zip(results) {
            out[i] = Binding::Value(value);
        }
        for (&i, &n_parts) in sequences.iter().zip(&n_added) {
            out[i] = match added.as_slice().first() {
                Some(&parts) if 0 < n_parts => {
                    added.next();
                    self.appended(&carried[i], parts, n_parts)?
                }
                _ => carried[i].clone(),
            };
        }
        out.truncate(node.output.len());
        Ok(out)
    }

    /// Walks the graph of a loop until what it carries on has the sizes of what it is given, or sizes of which nothing is known.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of one description"
    )]
    pub(super) fn settled(
        &mut self,
        body: &'a GraphProto,
        node: &'a NodeProto,
        mut formals: Vec<Formal>,
        n_carried: usize,
        first: usize,
        scope: &Scope<'_>,
        walk: &mut Walked<'_, 'a>,
    ) -> Result<Region, Faults> {
        for attempt in 0.. {
            let before = self.errors.fork();
            let region = match self.region(body, node, formals.clone(), scope, walk) {
                Ok(region) => region,
                Err(faults) => {
                    self.errors.join(before);
                    return Err(faults);
                }
            };
            let states = &mut formals[2..2 + n_carried];
            let is_general = states.iter().all(|f| f.shape.iter().all(Option::is_none));
            let failed = !self.errors.is_empty();
            let mut changed = false;
            if !is_general && (failed || MAX_WALKS <= attempt) {
                states.iter_mut().for_each(|f| f.shape.fill(None));
                changed = true;
            } else if !failed {
                for (i, formal) in states.iter_mut().enumerate() {
                    let Binding::Value(result) = region.results[first + i] else {
                        continue;
                    };
                    let (given, found) = (&formal.shape, region.graph.ty(result));
                    if found.dtype != formal.dtype || found.rank() != given.len() {
                        self.errors.join(before);
                        let message = format!(
                            "a loop carries {} of rank {} in and {found} out",
                            formal.dtype,
                            given.len()
                        );
                        return Err(Fault::unsupported(message).into());
                    }
                    for (given, found) in formal.shape.iter_mut().zip(&found.shape) {
                        if given.as_ref().is_some_and(|given| given != found) {
                            *given = None;
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                self.errors.join(before);
                return Ok(region);
            }
            self.errors = before;
        }
        unreachable!("the loop ends when every size is general")
    }

    /// A sequence with what iterations of a loop have added to it, `n_parts` each.
    fn appended(
        &mut self,
        sequence: &Binding,
        added: Value,
        n_parts: usize,
    ) -> Result<Binding, Fault> {
        let mut added = added;
        if 1 < n_parts {
            let shape = self.graph.shape(added);
            let n = shape[0].mul(&shape[1]);
            let n = n.ok_or_else(|| Fault::unsupported("a size of many terms"))?;
            let shape = std::iter::once(n)
                .chain(shape[2..].iter().cloned())
                .collect();
            let node = self.graph.add(Op::View(shape), &[Some(added)])?;
            added = Value { node, result: 0 };
        }
        let before = match sequence {
            Binding::Stacked(before) => *before,
            Binding::Sequence(parts) if parts.is_empty() => return Ok(Binding::Stacked(added)),
            Binding::Sequence(parts) => self.stacked(parts)?,
            _ => {
                let message = "a loop inside another one carries the other one's sequence";
                return Err(Fault::unsupported(message));
            }
        };
        let along = Attributes::new().with("axis", Attribute::Int(0));
        let all = self
            .graph
            .apply(Operator::Concat, along, &[before, added])?;
        Ok(Binding::Stacked(all))
    }

    /// Values of one shape behind each other in a new first dimension.
    fn stacked(&mut self, parts: &[Value]) -> Result<Value, Fault> {
        let axis = Tensor::new(vec![1], vec![0i64]);
        let axis = self.graph.add_const("axis", Arc::new(axis));
        let mut rows = Vec::with_capacity(parts.len());
        for &part in parts {
            rows.push(
                self.graph
                    .apply(Operator::Unsqueeze, Attributes::new(), &[part, axis])?,
            );
        }
        let along = Attributes::new().with("axis", Attribute::Int(0));
        Ok(self.graph.apply(Operator::Concat, along, &rows)?)
    }

    /// The results of a loop that is walked in place, if its iterations are known and few.
    fn unrolled(
        &mut self,
        node: &'a NodeProto,
        body: &'a GraphProto,
        (trips, condition): (Option<Value>, Option<Value>),
        carried: &[Binding],
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Binding>>, Faults> {
        let most = MAX_UNROLLED / n_nodes(body).max(1);
        let trips = match trips.map(|v| self.constant_integer(v)) {
            Some(None) => return Ok(None),
            Some(Some(trips)) if most as i64 <= trips => return Ok(None),
            Some(trips) => trips,
            None => None,
        };
        let condition = condition.map_or(Some(true), |c| self.constant_condition(c));
        let Some(condition) = condition else {
            return Ok(None);
        };
        let before = self.errors.fork();
        let results = self.walk_iterations(node, body, (trips, most), condition, carried, scope);
        match results {
            // Whatever went wrong on the way may not, or is found again, in a graph of its own.
            Ok(None) => self.errors = before,
            Ok(Some(_)) | Err(_) => self.errors.join(before),
        }
        results
    }

    /// As [`Walk::unrolled`], for at most `most` iterations; `None` if the number of iterations is not known.
    fn walk_iterations(
        &mut self,
        node: &'a NodeProto,
        body: &'a GraphProto,
        (trips, most): (Option<i64>, usize),
        mut condition: bool,
        carried: &[Binding],
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Binding>>, Faults> {
        let n = carried.len();
        let names: Vec<&'a str> = body.output.iter().map(|o| o.name.as_str()).collect();
        let mut outside = scope.inside(name_of(node));
        let needed: HashSet<&str> = names_used(body).into_iter().collect();
        for initializer in initializers_of(body) {
            if needed.contains(initializer.name()) {
                self.initializer(initializer, &mut outside);
            }
        }
        let mut carried = carried.to_vec();
        let mut collected: Vec<Vec<Binding>> = vec![Vec::new(); names.len() - 1 - n];
        let mut i = 0usize;
        while condition && trips.is_none_or(|trips| (i as i64) < trips) {
            if most <= i {
                return Ok(None);
            }
            let mut inner = outside.inside(&i.to_string());
            let shape = |at: usize| vec![1; declared_rank(&body.input[at]).min(1)];
            let iteration = Tensor::new(shape(0), vec![i as i64]);
            let holds = Tensor::new(shape(1), vec![condition]);
            for (input, tensor) in body.input.iter().zip([iteration, holds]) {
                let value = self.graph.add_const(&input.name, Arc::new(tensor));
                inner.bind(&input.name, Binding::Value(value));
            }
            for (input, binding) in body.input[2..].iter().zip(&carried) {
                inner.bind(&input.name, binding.clone());
            }
            self.body(&body.node, Vec::new(), &names, &mut inner)?;
            let mut results = found(&names, &inner)?.into_iter();
            let next = match results.next() {
                Some(Binding::Value(next)) => self.constant_condition(next),
                _ => None,
            };
            let (true, Some(next)) = (self.errors.is_empty(), next) else {
                return Ok(None);
            };
            condition = next;
            carried = results.by_ref().take(n).collect();
            for (list, binding) in collected.iter_mut().zip(results) {
                list.push(binding);
            }
            i += 1;
        }
        let mut results = carried;
        for list in collected
            .into_iter()
            .take(node.output.len().saturating_sub(n))
        {
            match tensors(&list)? {
                Some(parts) if !parts.is_empty() => {
                    results.push(Binding::Value(self.stacked(&parts)?));
                }
                // What an iteration would have given is not known.
                _ => return Ok(None),
            }
        }
        results.truncate(node.output.len());
        Ok(Some(results))
    }
}

/// Number of dimensions that the file states for an input; 0 if it states none.
fn declared_rank(input: &onnx_protobuf::ValueInfoProto) -> usize {
    use onnx_protobuf::type_proto::Value as TypeValue;
    match input.type_.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor.shape.as_ref().map_or(0, |s| s.dim.len()),
        _ => 0,
    }
}

fn n_nodes(graph: &GraphProto) -> usize {
    let inside = |node: &NodeProto| {
        let graphs = node.attribute.iter().filter_map(|a| a.g.as_ref());
        1 + graphs.map(n_nodes).sum::<usize>()
    };
    graph.node.iter().map(inside).sum()
}
