//! The executable specification: a graph evaluated operator by operator through `lancet-ops`.
//!
//! It is the oracle of every pass test and what constant folding calls, so it is written to be obviously right. Constants
//! and inputs are borrowed, views share their operand's elements, and a tensor is freed after its last use. Layouts do not
//! change values and are ignored.
//!
//! Symbols are bound from the shapes of the inputs, and those of sizes that depend on data from the shapes of the results
//! that have them. Every dimension of every value is then checked against what its type states, so evaluation also tests
//! inference.

use std::collections::HashMap;
use std::rc::Rc;

use lancet_ops::{
    Attributes, DataView, Iteration, IterationError, OpError, Operator, Tensor, TensorView,
    evaluate, truth,
};

use crate::bindings::{Bindings, Unify};
use crate::text::value_names;
use crate::verify::describe;
use crate::{Dim, Graph, NodeId, Op, TensorType, Value};

/// Why a graph could not be evaluated on these inputs.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EvalError {
    /// An input of the graph was not given.
    #[error("input `{0}` is missing")]
    MissingInput(String),
    /// Something was given that is no input of the graph, or was given twice.
    #[error("`{0}` is not an input, or is given twice")]
    UnknownInput(String),
    /// The type of an input is not what the graph states.
    #[error("input `{name}`: expected {expected}, found {found}")]
    InputType {
        name: String,
        expected: String,
        found: String,
    },
    /// Nothing tells what a size is that a node needs.
    #[error("{node}: the sizes {dims} are not known")]
    Unbound { node: String, dims: String },
    /// An operator rejects its operands.
    #[error("{node}: {source}")]
    Op {
        node: String,
        #[source]
        source: OpError,
    },
    /// A node that runs a graph cannot do so.
    #[error("{node}: {message}")]
    Region { node: String, message: String },
    /// A result is not of the type that the graph states.
    #[error("{node} result {index}: expected {expected}, found {found}")]
    Result {
        node: String,
        index: usize,
        expected: String,
        found: String,
    },
}

/// Evaluates the outputs of a graph, in order, with their names.
///
/// # Errors
/// [`EvalError`] if inputs are missing, superfluous or of other types, or a node rejects its operands.
pub fn eval<S: AsRef<str>>(
    graph: &Graph,
    inputs: &[(S, Tensor)],
) -> Result<Vec<(String, Tensor)>, EvalError> {
    eval_with(graph, inputs, &mut |_, _| {})
}

/// As [`eval`], showing `visit` every value that a node computes, as soon as it is there.
///
/// Inputs and constants are not shown, nor nodes that no output needs.
///
/// # Errors
/// As [`eval`].
pub fn eval_with<S: AsRef<str>>(
    graph: &Graph,
    inputs: &[(S, Tensor)],
    visit: &mut dyn FnMut(Value, TensorView<'_>),
) -> Result<Vec<(String, Tensor)>, EvalError> {
    let order = graph.order();
    let mut evaluation = Evaluation {
        graph,
        bindings: Bindings::default(),
        slots: HashMap::new(),
        uses: count_uses(graph, &order),
    };
    evaluation.bind_inputs(inputs)?;
    // Nothing but its symbols orders `dims` behind the node that binds them, so a node may have to wait.
    let mut waiting = order;
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut still_waiting = Vec::new();
        for node in waiting {
            if evaluation.is_ready(node) {
                evaluation.node(node, visit)?;
            } else {
                still_waiting.push(node);
            }
        }
        if still_waiting.len() == before {
            return Err(evaluation.unbound(still_waiting[0]));
        }
        waiting = still_waiting;
    }
    Ok(evaluation.outputs())
}

/// Most iterations of a loop: the evaluator has to end.
const MAX_ITERATIONS: u64 = 1 << 20;
/// Most bytes that a loop collects.
const MAX_COLLECTED: u64 = 4 << 30;

/// The outputs of a graph whose inputs are these, in order.
fn run(graph: &Graph, inputs: impl Iterator<Item = Tensor>) -> Result<Vec<Tensor>, EvalError> {
    let named = graph.inputs().iter().zip(inputs);
    let named: Vec<_> = named
        .map(|(n, t)| (graph.node_name(*n).to_owned(), t))
        .collect();
    let outputs = eval(graph, &named)?;
    Ok(outputs.into_iter().map(|(_, t)| t).collect())
}

/// Number of uses of each value, graph outputs included.
fn count_uses(graph: &Graph, order: &[NodeId]) -> HashMap<Value, usize> {
    let mut uses = HashMap::new();
    let operands = order.iter().flat_map(|&n| graph.operands(n)).flatten();
    for value in operands.chain(graph.outputs().iter().map(|o| o.value)) {
        *uses.entry(value).or_insert(0) += 1;
    }
    uses
}

/// A computed value.
#[derive(Clone)]
struct Slot<'a> {
    shape: Vec<usize>,
    elements: Elements<'a>,
}

#[derive(Clone)]
enum Elements<'a> {
    Borrowed(DataView<'a>),
    Shared(Rc<Tensor>),
}

impl<'a> Slot<'a> {
    fn borrowed(tensor: &'a Tensor) -> Slot<'a> {
        Slot {
            shape: tensor.shape().to_vec(),
            elements: Elements::Borrowed(tensor.view().data()),
        }
    }

    fn owned(tensor: Tensor) -> Slot<'a> {
        Slot {
            shape: tensor.shape().to_vec(),
            elements: Elements::Shared(Rc::new(tensor)),
        }
    }

    fn view(&self) -> TensorView<'_> {
        let data = match &self.elements {
            Elements::Borrowed(data) => *data,
            Elements::Shared(tensor) => tensor.view().data(),
        };
        TensorView::new(&self.shape, data).expect("a slot's shape is checked when it is made")
    }

    fn into_tensor(self) -> Tensor {
        match self.elements {
            Elements::Shared(tensor) => match Rc::try_unwrap(tensor) {
                Ok(tensor) => tensor
                    .reshaped(self.shape)
                    .expect("a slot's shape is checked when it is made"),
                Err(shared) => Slot {
                    shape: self.shape,
                    elements: Elements::Shared(shared),
                }
                .view()
                .to_tensor(),
            },
            Elements::Borrowed(_) => self.view().to_tensor(),
        }
    }
}

struct Evaluation<'a> {
    graph: &'a Graph,
    bindings: Bindings,
    slots: HashMap<Value, Slot<'a>>,
    /// Uses still to come.
    uses: HashMap<Value, usize>,
}

impl<'a> Evaluation<'a> {
    fn bind_inputs<S: AsRef<str>>(&mut self, inputs: &'a [(S, Tensor)]) -> Result<(), EvalError> {
        let mut given: HashMap<&str, &'a Tensor> = HashMap::new();
        for (name, tensor) in inputs {
            if given.insert(name.as_ref(), tensor).is_some() {
                return Err(EvalError::UnknownInput(name.as_ref().to_owned()));
            }
        }
        let mut mismatch = None;
        for &node in self.graph.inputs() {
            let Op::Input(name) = self.graph.op(node) else {
                continue;
            };
            let value = Value { node, result: 0 };
            let tensor = given
                .remove(name.as_str())
                .ok_or_else(|| EvalError::MissingInput(name.clone()))?;
            self.slots.insert(value, Slot::borrowed(tensor));
            if !self.agrees(value) {
                mismatch = Some(value);
            }
        }
        if let Some(name) = given.into_keys().min() {
            return Err(EvalError::UnknownInput(name.to_owned()));
        }
        // Sizes of later inputs may have decided those of earlier ones.
        let again = self.graph.inputs().iter();
        let again = again.map(|&node| Value { node, result: 0 });
        match mismatch.or(again.clone().find(|v| !self.agrees(*v))) {
            None => Ok(()),
            Some(value) => {
                let (expected, found) = self.expected_and_found(value);
                Err(EvalError::InputType {
                    name: self.graph.node_name(value.node).to_owned(),
                    expected,
                    found,
                })
            }
        }
    }

    /// Binds what the shape of a computed value tells; false if it is not of the type that the graph states.
    fn agrees(&mut self, value: Value) -> bool {
        let ty = self.graph.ty(value);
        let slot = &self.slots[&value];
        slot.view().dtype() == ty.dtype
            && slot.shape.len() == ty.rank()
            && self.bindings.unify(&ty.shape, &slot.shape) == Unify::Agree
    }

    fn expected_and_found(&self, value: Value) -> (String, String) {
        let view = self.slots[&value].view();
        let found = TensorType::fixed(view.dtype(), view.shape()).to_string();
        let ty = self.graph.ty(value);
        let known = self.bindings.describe(&ty.shape);
        (format!("{ty}{known}"), found)
    }

    /// True if the operands are computed and the sizes known.
    fn is_ready(&self, node: NodeId) -> bool {
        let operands = self.graph.operands(node);
        operands
            .iter()
            .flatten()
            .all(|v| self.slots.contains_key(v))
            && self.needed(node).iter().all(|d| self.bindings.knows(d))
    }

    /// Sizes that a node is computed from.
    fn needed(&self, node: NodeId) -> &'a [Dim] {
        match self.graph.op(node) {
            Op::Dims(dims) | Op::View(dims) | Op::Broadcast(dims) => dims,
            Op::Input(_)
            | Op::Const(_)
            | Op::Convert(_)
            | Op::Apply(..)
            | Op::If { .. }
            | Op::Loop { .. } => &[],
        }
    }

    fn unbound(&self, node: NodeId) -> EvalError {
        let unknown = self.needed(node).iter().filter(|d| !self.bindings.knows(d));
        let dims: Vec<String> = unknown.map(ToString::to_string).collect();
        EvalError::Unbound {
            node: self.describe(node),
            dims: dims.join(", "),
        }
    }

    fn describe(&self, node: NodeId) -> String {
        let names = value_names(self.graph);
        describe(self.graph, node, names.get(&Value { node, result: 0 }))
    }

    /// The sizes that these dimensions have.
    fn sizes(&self, node: NodeId, dims: &[Dim]) -> Result<Vec<i64>, EvalError> {
        let sizes = dims.iter().map(|d| self.bindings.eval(d));
        let sizes: Option<Vec<i64>> = sizes.collect();
        sizes.ok_or_else(|| self.unbound(node))
    }

    fn node(
        &mut self,
        node: NodeId,
        visit: &mut dyn FnMut(Value, TensorView<'_>),
    ) -> Result<(), EvalError> {
        let operands = self.graph.operands(node);
        let results = match self.graph.op(node) {
            // The slot is there since the inputs were bound.
            Op::Input(_) => return Ok(()),
            Op::Const(c) => vec![Slot::borrowed(&c.tensor)],
            Op::Dims(dims) => {
                let sizes = self.sizes(node, dims)?;
                vec![Slot::owned(Tensor::new(vec![sizes.len()], sizes))]
            }
            Op::View(dims) => vec![self.viewed(node, operands[0], dims)?],
            Op::Broadcast(dims) => {
                let sizes = self.sizes(node, dims)?;
                let shape = Tensor::new(vec![sizes.len()], sizes);
                let operands = [self.operand(operands[0]), Some(shape.view())];
                self.apply(node, Operator::Expand, &Attributes::new(), &operands)?
            }
            Op::Convert(_) => operands
                .iter()
                .flatten()
                .map(|v| self.slots[v].clone())
                .collect(),
            Op::Apply(op, attributes) => {
                let operands: Vec<_> = operands.iter().map(|v| self.operand(*v)).collect();
                self.apply(node, *op, attributes, &operands)?
            }
            Op::If { then, otherwise } => {
                let condition = self.operand(operands[0]).and_then(truth);
                let condition =
                    condition.ok_or_else(|| self.region_error(node, "has no condition"))?;
                let (first, second) = operands[1..].split_at(then.inputs().len());
                let (graph, operands) = match condition {
                    true => (then, first),
                    false => (otherwise, second),
                };
                let operands = operands.iter().map(|v| self.operand(*v));
                let results = run(graph, operands.flatten().map(|v| v.to_tensor()))
                    .map_err(|e| self.region_error(node, e))?;
                results.into_iter().map(Slot::owned).collect()
            }
            Op::Loop { body, n_carried } => self.iterate(node, body, *n_carried, &operands)?,
        };
        let is_constant = matches!(self.graph.op(node), Op::Const(_));
        for (index, slot) in results.into_iter().enumerate() {
            let value = Value {
                node,
                result: index as u32,
            };
            self.slots.insert(value, slot);
            if !self.agrees(value) {
                let (expected, found) = self.expected_and_found(value);
                return Err(EvalError::Result {
                    node: self.describe(node),
                    index,
                    expected,
                    found,
                });
            }
            if !is_constant {
                visit(value, self.slots[&value].view());
            }
            if !self.uses.contains_key(&value) {
                self.slots.remove(&value);
            }
        }
        for value in operands.into_iter().flatten() {
            self.used(value);
        }
        Ok(())
    }

    fn operand(&self, value: Option<Value>) -> Option<TensorView<'_>> {
        value.map(|v| self.slots[&v].view())
    }

    fn apply(
        &self,
        node: NodeId,
        op: Operator,
        attributes: &Attributes,
        operands: &[Option<TensorView<'_>>],
    ) -> Result<Vec<Slot<'a>>, EvalError> {
        let n_results = self.graph.n_results(node);
        match evaluate(op, attributes, operands, n_results) {
            Ok(tensors) => Ok(tensors.into_iter().map(Slot::owned).collect()),
            Err(source) => Err(EvalError::Op {
                node: self.describe(node),
                source,
            }),
        }
    }

    fn region_error(&self, node: NodeId, message: impl ToString) -> EvalError {
        EvalError::Region {
            node: self.describe(node),
            message: message.to_string(),
        }
    }

    fn iterate(
        &self,
        node: NodeId,
        body: &Graph,
        n_carried: usize,
        operands: &[Option<Value>],
    ) -> Result<Vec<Slot<'a>>, EvalError> {
        let tensors: Vec<Option<TensorView<'_>>> =
            operands.iter().map(|v| self.operand(*v)).collect();
        let (carried, read) = tensors[2..].split_at(n_carried);
        let owned = |tensors: &[Option<TensorView<'_>>]| -> Vec<Tensor> {
            tensors.iter().flatten().map(|t| t.to_tensor()).collect()
        };
        let read = owned(read);
        let collected = (n_carried as u32..self.graph.n_results(node) as u32).map(|result| {
            let ty = self.graph.ty(Value { node, result });
            let sizes = ty.shape[1..]
                .iter()
                .map(|d| self.bindings.eval(d).unwrap_or(0));
            (
                ty.dtype,
                sizes.map(|d| usize::try_from(d).unwrap_or(0)).collect(),
            )
        });
        let single = |i: usize| {
            body.shape(Value {
                node: body.inputs()[i],
                result: 0,
            })
        };
        let loops = Iteration {
            trips: tensors[0].and_then(|t| t.to_i64_vec().first().copied()),
            condition: match tensors[1] {
                Some(c) => truth(c).ok_or_else(|| self.region_error(node, "has no condition"))?,
                None => true,
            },
            carried: owned(carried),
            collected: collected.collect(),
            max_bytes: MAX_COLLECTED,
        };
        let mut n_left = MAX_ITERATIONS;
        let results = loops.run(|i, condition, carried| {
            n_left = n_left.checked_sub(1).ok_or_else(|| {
                IterationError(format!("runs more than {MAX_ITERATIONS} iterations"))
            })?;
            let first = [
                Tensor::new(vec![1; single(0).len()], vec![i]),
                Tensor::new(vec![1; single(1).len()], vec![condition]),
            ];
            let operands = first
                .into_iter()
                .chain(carried.iter().chain(&read).cloned());
            run(body, operands).map_err(|e| IterationError(e.to_string()))
        });
        let results = results.map_err(|e: IterationError| self.region_error(node, e))?;
        Ok(results.into_iter().map(Slot::owned).collect())
    }

    /// The elements of `operand` under another shape.
    fn viewed(
        &self,
        node: NodeId,
        operand: Option<Value>,
        dims: &[Dim],
    ) -> Result<Slot<'a>, EvalError> {
        let slot = operand.and_then(|v| self.slots.get(&v));
        let slot = slot.ok_or_else(|| self.unbound(node))?;
        let sizes = self.sizes(node, dims)?;
        let shape: Vec<usize> = sizes
            .iter()
            .map_while(|&d| usize::try_from(d).ok())
            .collect();
        if shape.len() != sizes.len() || slot.view().reshaped(&shape).is_none() {
            let view = slot.view();
            return Err(EvalError::Result {
                node: self.describe(node),
                index: 0,
                expected: format!("{sizes:?}"),
                found: TensorType::fixed(view.dtype(), view.shape()).to_string(),
            });
        }
        Ok(Slot {
            shape,
            elements: slot.elements.clone(),
        })
    }

    /// Counts one use of a value; its slot if that was the last.
    fn used(&mut self, value: Value) -> Option<Slot<'a>> {
        let left = self.uses.get_mut(&value)?;
        *left -= 1;
        if *left == 0 {
            self.slots.remove(&value)
        } else {
            self.slots.get(&value).cloned()
        }
    }

    fn outputs(mut self) -> Vec<(String, Tensor)> {
        let graph = self.graph;
        let outputs = graph.outputs().iter();
        outputs
            .filter_map(|o| Some((o.name.clone(), self.used(o.value)?.into_tensor())))
            .collect()
    }
}
