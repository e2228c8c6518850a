//! `Scan`, as a loop that picks an element of each operand in each iteration.
//!
//! Before version 9 everything has a batch as its first dimension: a loop over the batch runs the loop over the elements.

use std::sync::Arc;

use lancet_ir::{Dim, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};
use onnx_protobuf::{GraphProto, NodeProto};

use super::region::{Formal, Region};
use super::{found, graph_named, tensors};
use crate::onnx::attributes::NodeAttributes;
use crate::onnx::error::{Fault, Faults};
use crate::onnx::walk::{Binding, Scope, Walk, initializers_of};

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

impl<'a> Walk<'a> {
    pub(super) fn scan(
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
                    true => walk.mirrored(x, axis, iteration)?,
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
    fn mirrored(&mut self, x: Value, axis: usize, at: Value) -> Result<Value, Fault> {
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
