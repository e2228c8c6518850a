//! `If`, `Loop` and `Scan`.
//!
//! What is decided by constants is walked in place: the branch that is taken, a loop whose iterations are known and few. Of
//! everything else a graph is made that a node runs ([`Op::If`], [`Op::Loop`]): a graph of its own, whose inputs are what it
//! reads of the graphs around it, so that passes need not know what runs it. Constants are not inputs but copied, and share
//! their elements; so are computations of sizes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ir::{Dim, Graph, Op, TensorType, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};
use onnx_protobuf::{GraphProto, NodeProto};

use super::{Binding, MAX_DEPTH, Scope, Walk, initializers_of, name_of};
use crate::onnx::attributes::{self, NodeAttributes};
use crate::onnx::error::{Fault, Faults};
use crate::onnx::order::{names_defined, names_used};

/// Graphs that nodes run, inside each other.
const MAX_REGIONS: usize = 12;
/// A loop is walked in place if this many nodes come of it.
const MAX_UNROLLED: usize = 4096;
/// Nodes that are copied into a graph to have a constant there.
const MAX_COPIED: usize = 32;
/// Largest tensor from which a condition is computed.
const MAX_ELEMENTS: i64 = 1 << 12;
/// How often the sizes of what a loop carries are taken from what the last walk found.
const MAX_WALKS: usize = 3;

/// A graph that a node is to run.
struct Region {
    graph: Graph,
    n_formals: usize,
    /// Values outside, for the inputs behind the formal ones.
    captures: Vec<Value>,
    /// What it gives.
    results: Vec<Binding>,
}

/// A formal input; sizes that are not known are the graph's own.
#[derive(Clone)]
struct Formal {
    name: String,
    dtype: DType,
    shape: Vec<Option<Dim>>,
}

impl Formal {
    fn of(name: &str, ty: &TensorType) -> Formal {
        Formal {
            name: name.to_owned(),
            dtype: ty.dtype,
            shape: ty.shape.iter().cloned().map(Some).collect(),
        }
    }

    fn scalar(name: &str, dtype: DType) -> Formal {
        Formal::of(name, &TensorType::new(dtype, Vec::new()))
    }
}

/// Walks what a graph is made of, from its formal inputs.
type Walked<'w, 'a> =
    dyn FnMut(&mut Walk<'a>, &[Value], &mut Scope<'_>) -> Result<Vec<Binding>, Faults> + 'w;

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

    fn iterate(
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

    fn scan(
        &mut self,
        node: &'a NodeProto,
        operands: &[Binding],
        attributes: &NodeAttributes<'a>,
        scope: &Scope<'_>,
    ) -> Result<Vec<Binding>, Faults> {
        let body = graph_named(attributes, "body")?;
        let batched = scope.opsets.get("").copied().unwrap_or(1) < 9;
        let known: &[&str] = if batched {
            &["num_scan_inputs", "directions"]
        } else {
            &[
                "num_scan_inputs",
                "scan_input_axes",
                "scan_input_directions",
                "scan_output_axes",
                "scan_output_directions",
            ]
        };
        if let Some((name, _)) = attributes
            .values
            .iter()
            .find(|(name, _)| !known.contains(name))
        {
            let message = "is not an attribute of this operator".to_owned();
            return Err(Fault::Attribute(name.to_owned(), message).into());
        }
        let (lengths, operands) = match operands.split_first() {
            Some((lengths, rest)) if batched => (Some(lengths), rest),
            _ => (None, operands),
        };
        if let Some(Binding::Value(_)) = lengths {
            let message = "lengths of sequences are not supported";
            return Err(Fault::unsupported(message).into());
        }
        let Some(values) = tensors(operands)? else {
            return Err(Fault::invalid("an operand is absent").into());
        };
        let n_read = attributes
            .values
            .int("num_scan_inputs")
            .and_then(|n| usize::try_from(n).ok());
        let n_read = n_read.filter(|&n| 0 < n && n <= values.len());
        let n_read = n_read
            .ok_or_else(|| Fault::invalid("attribute `num_scan_inputs` is missing or wrong"))?;
        let n_states = values.len() - n_read;
        let n_collected = body.output.len().checked_sub(n_states);
        let n_collected = n_collected
            .filter(|_| body.input.len() == values.len() && node.output.len() <= body.output.len());
        let Some(n_collected) = n_collected else {
            let message = format!(
                "has {} operands and {} results, its graph takes {} and gives {}",
                values.len(),
                node.output.len(),
                body.input.len(),
                body.output.len()
            );
            return Err(Fault::invalid(message).into());
        };
        let list = |name: &str, n: usize| match attributes.values.get(name) {
            None => Ok(vec![0; n]),
            Some(Attribute::Ints(list)) if list.len() == n => Ok(list.clone()),
            Some(_) => {
                let message = format!("is not a list of {n} integers");
                Err(Fault::Attribute(name.to_owned(), message))
            }
        };
        let directions = match batched {
            true => list("directions", n_read)?,
            false => list("scan_input_directions", n_read)?,
        };
        let scan = Scan {
            node,
            body,
            n_states,
            reads: list("scan_input_axes", n_read)?
                .into_iter()
                .zip(directions)
                .collect(),
            collects: (list("scan_output_axes", n_collected)?.into_iter())
                .zip(list("scan_output_directions", n_collected)?)
                .collect(),
        };
        let results = if batched {
            self.scan_batch(&scan, &values, scope)?
        } else {
            self.scan_sequence(&scan, &values, scope)?
        };
        let Some(mut results) = results else {
            return Ok(vec![Binding::Failed; node.output.len()]);
        };
        results.truncate(node.output.len());
        Ok(results.into_iter().map(Binding::Value).collect())
    }

    /// A scan in each element of a batch, which is the first dimension of everything.
    fn scan_batch(
        &mut self,
        scan: &Scan<'a>,
        operands: &[Value],
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Value>>, Faults> {
        let batch = self.graph.shape(operands[0]).first().cloned();
        let batch = batch.ok_or_else(|| Fault::invalid("an operand has no batch"))?;
        let mut formals = vec![
            Formal::scalar("element", DType::I64),
            Formal::scalar("condition", DType::Bool),
        ];
        for (i, &operand) in operands.iter().enumerate() {
            formals.push(Formal::of(&format!("operand{i}"), self.graph.ty(operand)));
        }
        let mut walk = |walk: &mut Walk<'a>, formals: &[Value], inner: &mut Scope<'_>| {
            let element = formals[0];
            let picked = formals[2..].iter().map(|&x| walk.picked(x, element, 0));
            let picked = picked.collect::<Result<Vec<_>, Fault>>()?;
            let results = walk.scan_sequence(scan, &picked, inner)?;
            let n = scan.n_states + scan.collects.len();
            let results = results.map_or(vec![Binding::Failed; n], |values| {
                values.into_iter().map(Binding::Value).collect()
            });
            Ok(results)
        };
        let region = self.region(scan.body, scan.node, formals, scope, &mut walk)?;
        self.repeated(scan.node, region, batch, 0, operands, scope)
    }

    /// A scan along one dimension of each operand behind the states.
    fn scan_sequence(
        &mut self,
        scan: &Scan<'a>,
        operands: &[Value],
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Value>>, Faults> {
        let (body, n) = (scan.body, scan.n_states);
        let mut axes = Vec::with_capacity(scan.reads.len());
        for (&x, &(axis, direction)) in operands[n..].iter().zip(&scan.reads) {
            axes.push((axis_of(axis, self.graph.ty(x).rank())?, direction == 1));
        }
        let length = self.graph.shape(operands[n])[axes[0].0].clone();
        for (&x, &(axis, _)) in operands[n..].iter().zip(&axes) {
            let other = &self.graph.shape(x)[axis];
            if other.equals(&length) == Some(false) {
                let message = format!("reads {length} elements of one operand, {other} of another");
                return Err(Fault::invalid(message).into());
            }
        }
        let mut formals = vec![
            Formal::scalar("iteration", DType::I64),
            Formal::scalar("condition", DType::Bool),
        ];
        for (input, &operand) in body.input.iter().zip(operands) {
            formals.push(Formal::of(&input.name, self.graph.ty(operand)));
        }
        let names: Vec<&'a str> = body.output.iter().map(|o| o.name.as_str()).collect();
        let mut walk = |walk: &mut Walk<'a>, formals: &[Value], inner: &mut Scope<'_>| {
            let iteration = formals[0];
            for (input, &state) in body.input.iter().zip(&formals[2..2 + n]) {
                inner.bind(&input.name, Binding::Value(state));
            }
            let reads = body.input[n..].iter().zip(&formals[2 + n..]).zip(&axes);
            for ((input, &x), &(axis, reversed)) in reads {
                let at = match reversed {
                    true => walk.from_end(x, axis, iteration)?,
                    false => iteration,
                };
                let element = walk.picked(x, at, axis)?;
                inner.bind(&input.name, Binding::Value(element));
            }
            walk.body(&body.node, initializers_of(body), &names, inner)?;
            found(&names, inner)
        };
        let region = self.settled(body, scan.node, formals, n, 0, scope, &mut walk)?;
        let Some(mut results) = self.repeated(scan.node, region, length, n, operands, scope)?
        else {
            return Ok(None);
        };
        for (result, &(axis, direction)) in results[n..].iter_mut().zip(&scan.collects) {
            *result = self.placed(*result, axis, direction == 1)?;
        }
        Ok(Some(results))
    }

    /// The results of a graph that runs `trips` times.
    fn repeated(
        &mut self,
        node: &'a NodeProto,
        mut region: Region,
        trips: Dim,
        n_carried: usize,
        operands: &[Value],
        scope: &Scope<'_>,
    ) -> Result<Option<Vec<Value>>, Faults> {
        let Some(results) = tensors(&region.results)? else {
            return Ok(None);
        };
        let mut outputs = vec![
            region
                .graph
                .add_const("go_on", Arc::new(Tensor::scalar(true))),
        ];
        outputs.extend(results);
        let (graph, captures) = self.close(region, &outputs)?;
        let trips = self
            .graph
            .add(Op::Dims(vec![trips]), &[])
            .map_err(Fault::from)?;
        let mut all = vec![
            Some(Value {
                node: trips,
                result: 0,
            }),
            None,
        ];
        all.extend(operands.iter().copied().chain(captures).map(Some));
        let op = Op::Loop {
            body: Arc::new(graph),
            n_carried,
        };
        self.run_node(node, op, &all, scope).map(Some)
    }

    /// Element `at` of one dimension, which the result lacks.
    fn picked(&mut self, x: Value, at: Value, axis: usize) -> Result<Value, Fault> {
        let along = Attributes::new().with("axis", Attribute::Int(axis as i64));
        Ok(self.graph.apply(Operator::Gather, along, &[x, at])?)
    }

    /// The position that is as far from the end of a dimension as `at` is from its beginning.
    fn from_end(&mut self, x: Value, axis: usize, at: Value) -> Result<Value, Fault> {
        let last = self.graph.shape(x)[axis].sub(&Dim::fixed(1));
        let last = last.ok_or_else(|| Fault::unsupported("a size of many terms"))?;
        let last = self.graph.add(Op::Dims(vec![last]), &[])?;
        let last = Value {
            node: last,
            result: 0,
        };
        let scalar = self.graph.add(Op::View(Vec::new()), &[Some(last)])?;
        let scalar = Value {
            node: scalar,
            result: 0,
        };
        Ok(self
            .graph
            .apply(Operator::Sub, Attributes::new(), &[scalar, at])?)
    }

    /// A collection with its first dimension as dimension `axis`, in either direction.
    fn placed(&mut self, x: Value, axis: i64, reversed: bool) -> Result<Value, Fault> {
        let mut x = x;
        if reversed {
            let mut ints = |v: i64| {
                let tensor = Tensor::new(vec![1], vec![v]);
                self.graph.add_const("reversed", Arc::new(tensor))
            };
            let operands = [x, ints(-1), ints(i64::MIN), ints(0), ints(-1)];
            x = self
                .graph
                .apply(Operator::Slice, Attributes::new(), &operands)?;
        }
        let rank = self.graph.ty(x).rank();
        let axis = axis_of(axis, rank)?;
        if axis == 0 {
            return Ok(x);
        }
        let place = |i: usize| {
            if i < axis {
                i + 1
            } else if i == axis {
                0
            } else {
                i
            }
        };
        let perm = (0..rank).map(|i| place(i) as i64).collect();
        let perm = Attributes::new().with("perm", Attribute::Ints(perm));
        Ok(self.graph.apply(Operator::Transpose, perm, &[x])?)
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

    /// Walks the graph of a loop until what it carries on has the sizes of what it is given, or sizes of which nothing is known.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of one description"
    )]
    fn settled(
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

    /// Walks a graph of its own. Names of `body` that are defined around it become its inputs.
    fn region(
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

    /// Values that graphs hand to each other are of the types they are held in.
    fn not_narrow(&self, bindings: &[Binding]) -> Result<(), Faults> {
        let narrow = |value: &Value| self.narrow.get(value);
        let found = bindings.iter().find_map(|binding| match binding {
            Binding::Value(value) | Binding::Stacked(value) => narrow(value),
            Binding::Sequence(values) | Binding::Grown(values) => values.iter().find_map(narrow),
            Binding::Absent | Binding::Failed => None,
        });
        found.map_or(Ok(()), |ty| Err(Fault::DType(ty.name()).into()))
    }

    /// A graph with these outputs, and what its inputs behind the formal ones are outside.
    fn close(&mut self, region: Region, outputs: &[Value]) -> Result<(Graph, Vec<Value>), Fault> {
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
    fn run_node(
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

    /// The number that a value is, if it is a constant, a size that is known, or computed from a few small constants.
    fn constant_integer(&self, value: Value) -> Option<i64> {
        match self.graph.elements(value) {
            Some([n]) => return n.as_fixed(),
            Some(_) => return None,
            None => {}
        }
        let mut alone = Graph::new("constant");
        let copy = constant(&self.graph, &mut alone, value)?;
        let is_small = |node| {
            (0..alone.n_results(node) as u32).all(|result| {
                let n = Dim::product(alone.shape(Value { node, result }));
                n.and_then(|n| n.as_fixed())
                    .is_some_and(|n| n <= MAX_ELEMENTS)
            })
        };
        if !alone.nodes().into_iter().all(is_small) {
            return None;
        }
        alone.add_output("value", copy);
        let (_, tensor) = lancet_ir::eval::<&str>(&alone, &[]).ok()?.pop()?;
        match tensor.view().to_i64_vec().as_slice() {
            [n] => Some(*n),
            _ => None,
        }
    }

    fn constant_condition(&self, condition: Value) -> Option<bool> {
        let is_boolean = self.graph.ty(condition).dtype == DType::Bool;
        self.constant_integer(condition)
            .filter(|_| is_boolean)
            .map(|c| c != 0)
    }
}

/// A `Scan`.
struct Scan<'a> {
    node: &'a NodeProto,
    body: &'a GraphProto,
    n_states: usize,
    /// Axis and direction of each operand that is read along it.
    reads: Vec<(i64, i64)>,
    /// Axis and direction of each result that is collected along it.
    collects: Vec<(i64, i64)>,
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

/// Values one behind the other, and for each binding how many are its sequence; `None` if something has failed.
fn flattened(bindings: &[Binding]) -> Result<Option<(Vec<Value>, Vec<Option<usize>>)>, Fault> {
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

fn axis_of(axis: i64, rank: usize) -> Result<usize, Fault> {
    let from_front = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    let from_front = usize::try_from(from_front).ok().filter(|&a| a < rank);
    from_front.ok_or_else(|| Fault::invalid(format!("axis {axis} of {rank} dimensions")))
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

fn unique(taken: &mut HashSet<String>, name: &str) -> String {
    let mut candidate = name.to_owned();
    let mut n = 0;
    while !taken.insert(candidate.clone()) {
        n += 1;
        candidate = format!("{name}.{n}");
    }
    candidate
}

/// A value of `outside` that is copied into `graph`: what is computed from constants alone, and sizes.
fn captured(outside: &Graph, graph: &mut Graph, value: Value) -> Option<Value> {
    constant(outside, graph, value).or_else(|| {
        let elements = outside.elements(value)?.to_vec();
        sizes(outside, graph, value, elements)
    })
}

/// A copy of what is computed from constants alone.
fn constant(outside: &Graph, graph: &mut Graph, value: Value) -> Option<Value> {
    let mut nodes = Vec::new();
    let mut stack = vec![(value.node, false)];
    let mut seen = HashSet::new();
    while let Some((node, expanded)) = stack.pop() {
        if expanded {
            nodes.push(node);
        } else if seen.insert(node) {
            let is_constant = match outside.op(node) {
                Op::Const(_) | Op::Apply(..) => true,
                Op::View(dims) | Op::Broadcast(dims) => dims.iter().all(|d| d.as_fixed().is_some()),
                Op::Input(_) | Op::Dims(_) | Op::Convert(_) | Op::If { .. } | Op::Loop { .. } => {
                    false
                }
            };
            if !is_constant || MAX_COPIED < seen.len() {
                return None;
            }
            stack.push((node, true));
            let operands = outside.operands(node).into_iter().flatten();
            stack.extend(operands.map(|v| (v.node, false)));
        }
    }
    let mut copies = HashMap::new();
    for node in nodes {
        let operands: Vec<Option<Value>> = (outside.operands(node).into_iter())
            .map(|v| {
                v.map(|v| Value {
                    node: copies[&v.node],
                    ..v
                })
            })
            .collect();
        let n = outside.n_results(node);
        let copy = graph
            .add_results(outside.op(node).clone(), &operands, n)
            .ok()?;
        graph.set_node_name(copy, outside.node_name(node));
        copies.insert(node, copy);
    }
    Some(Value {
        node: copies[&value.node],
        ..value
    })
}

/// A tensor of these sizes, of the type of `value`.
fn sizes(outside: &Graph, graph: &mut Graph, value: Value, elements: Vec<Dim>) -> Option<Value> {
    let ty = outside.ty(value);
    let node = graph.add(Op::Dims(elements), &[]).ok()?;
    let mut copy = Value { node, result: 0 };
    if ty.rank() != 1 {
        let node = graph.add(Op::View(ty.shape.clone()), &[Some(copy)]).ok()?;
        copy = Value { node, result: 0 };
    }
    if ty.dtype != DType::I64 {
        let to = Attribute::Str(ty.dtype.name().to_owned());
        let to = Attributes::new().with("to", to);
        copy = graph.apply(Operator::Cast, to, &[copy]).ok()?;
    }
    Some(copy)
}
