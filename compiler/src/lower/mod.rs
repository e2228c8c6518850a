//! Graph to plan: one walk in canonical order, one step per node.
//!
//! Every node becomes the step that [`select`] names; constants become ranges of the weights section, shared where the
//! tensor is shared; a weight that is converted to a packed format is packed here and its row-major form is not kept
//! unless something else reads it. Nothing is decided here that a pass could decide: layouts and formats are in the
//! types already.

mod fuse;
mod schedule;
mod select;
mod weights;

use std::collections::{BTreeMap, HashMap};

use lancet_artifact::{
    Dim as PlanDim, Element, Extent, Layout as PlanLayout, Plan, Port, Step, StepKind, Storage,
    ValueDesc, Vertical, VerticalOp, VerticalOperand, Weights,
};
use lancet_codegen::formats::MAX_DENSE;
use lancet_ir::{Dim, Graph, Layout, NodeId, Op, TensorType, Value};
use lancet_ops::{DType, Operator, evaluate};

use fuse::{Fusion, Group, fuse};
use select::{Selected, select};
use weights::Placement;

/// What cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// A node has types or operands that no step takes: a pass left the graph half rewritten.
    #[error("{op} `{node}`: {message}")]
    Unsupported {
        node: String,
        op: String,
        message: String,
    },
    /// The model has more values, or larger ones, than a plan can name.
    #[error("the model is too large: {0}")]
    TooLarge(String),
}

/// Lowers a graph to a plan and its weights.
///
/// # Errors
/// Every node that cannot be lowered.
pub fn lower(graph: &Graph) -> Result<(Plan, Weights<'_>), Vec<LowerError>> {
    let mut weights = Weights::new();
    let plan = lower_into(graph, &mut weights)?;
    Ok((plan, weights))
}

/// As [`lower`], into weights that other plans may share.
///
/// # Errors
/// Every node that cannot be lowered.
pub fn lower_into<'g>(
    graph: &'g Graph,
    weights: &mut Weights<'g>,
) -> Result<Plan, Vec<LowerError>> {
    lower_graph(graph, &mut Placement::new(weights))
}

fn lower_graph<'g>(
    graph: &'g Graph,
    placement: &mut Placement<'g, '_>,
) -> Result<Plan, Vec<LowerError>> {
    let mut lowering = Lowering {
        graph,
        plan: Plan::default(),
        placement,
        values: HashMap::new(),
        symbols: BTreeMap::new(),
        matrices: HashMap::new(),
        ranges: HashMap::new(),
        fusion: fuse(graph),
    };
    for symbol in graph.symbols() {
        let index = lowering.plan.symbols.len() as u32;
        lowering.plan.symbols.push(symbol.name().to_owned());
        lowering.symbols.insert(symbol.name().to_owned(), index);
    }
    let mut errors = Vec::new();
    for node in graph.order() {
        let lowered = match graph.op(node) {
            Op::If { .. } | Op::Loop { .. } => lowering.regions(node),
            _ => lowering.node(node).map_err(|e| vec![e]),
        };
        errors.extend(lowered.err().into_iter().flatten());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    for output in graph.outputs() {
        match lowering.value(output.value) {
            Ok(value) => lowering.plan.outputs.push(Port {
                name: output.name.clone(),
                value,
            }),
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() {
        schedule::schedule(&mut lowering.plan);
        Ok(lowering.plan)
    } else {
        Err(errors)
    }
}

struct Lowering<'g, 'w, 'p> {
    graph: &'g Graph,
    plan: Plan,
    placement: &'p mut Placement<'g, 'w>,
    values: HashMap<Value, u32>,
    symbols: BTreeMap<String, u32>,
    /// Packed matrices by the value that is their packed form.
    matrices: HashMap<Value, u32>,
    /// Ranges of what is quantized dynamically in panels, by the node that does so.
    ranges: HashMap<NodeId, u32>,
    fusion: Fusion,
}

impl Lowering<'_, '_, '_> {
    /// A node that runs graphs, each of which becomes a plan.
    fn regions(&mut self, node: NodeId) -> Result<(), Vec<LowerError>> {
        let mut plan = |graph| lower_graph(graph, self.placement).map(Box::new);
        let kind = match self.graph.op(node) {
            Op::If { then, otherwise } => StepKind::If {
                then: plan(then)?,
                otherwise: plan(otherwise)?,
            },
            Op::Loop { body, n_carried } => StepKind::Loop {
                body: plan(body)?,
                n_carried: *n_carried as u32,
            },
            _ => return Err(vec![unsupported(self.graph, node, "runs no graphs")]),
        };
        let operands = self.graph.operands(node).into_iter();
        let inputs = operands.map(|v| v.map(|v| self.value(v)).transpose());
        let inputs = inputs.collect::<Result<_, _>>().map_err(|e| vec![e])?;
        self.push_step(node, kind, inputs);
        Ok(())
    }

    fn node(&mut self, node: NodeId) -> Result<(), LowerError> {
        if self.fusion.absorbed.contains(&node) {
            return Ok(());
        }
        if let Some(group) = self.fusion.groups.remove(&node) {
            return self.group(node, group);
        }
        if let Op::Apply(Operator::DynamicQuantizeLinear, _) = self.graph.op(node)
            && self.graph.sizes_are_known(node)
        {
            return self.dynamic_quantize(node);
        }
        if let Some(range) = self.range_of_zero_point(node) {
            self.push_step(node, StepKind::RangeZeroPoint, vec![Some(range)]);
            return Ok(());
        }
        match select(self.graph, node)? {
            Selected::Input => {
                let value = Value { node, result: 0 };
                let index = self.plan.inputs.len() as u32;
                let id = self.push_value(value, Storage::Input(index));
                let name = self.graph.node_name(node).to_owned();
                self.plan.inputs.push(Port { name, value: id });
            }
            // Constants are placed when a step reads them, packed weights when a linear layer does.
            Selected::Const | Selected::Pack => {}
            Selected::Step { kind, operands } => {
                let inputs = operands
                    .into_iter()
                    .map(|v| v.map(|v| self.value(v)).transpose())
                    .collect::<Result<_, _>>()?;
                self.push_step(node, kind, inputs);
            }
            Selected::Linear {
                weight,
                activation,
                operands,
            } => {
                let matrix = self.matrix(weight)?;
                let inputs = operands
                    .into_iter()
                    .map(|v| v.map(|v| self.value(v)).transpose())
                    .collect::<Result<_, _>>()?;
                self.push_step(node, StepKind::Linear { matrix, activation }, inputs);
            }
        }
        Ok(())
    }

    /// Elementwise nodes as one step, behind the integer product that they follow.
    fn group(&mut self, node: NodeId, group: Group) -> Result<(), LowerError> {
        let mut inputs = Vec::with_capacity(group.operands.len() + 1);
        let mut matrix = 0;
        if let Some(product) = group.product {
            let operand = |i| {
                let operand = self.graph.operand(product, i);
                operand.ok_or_else(|| unsupported(self.graph, product, "lacks an operand"))
            };
            let (x, weight) = (operand(0)?, operand(1)?);
            inputs.push(Some(self.value(x)?));
            matrix = self.matrix(weight)?;
        }
        for v in group.operands {
            inputs.push(Some(self.value(v)?));
        }
        if let Some(vertical) = &group.vertical {
            vertical
                .check()
                .map_err(|m| unsupported(self.graph, node, &m))?;
        }
        let kind = match (group.product, group.vertical) {
            (Some(_), tail) => StepKind::IntegerLinear { matrix, tail },
            (None, Some(vertical)) => StepKind::Vertical(vertical),
            (None, None) => return Err(unsupported(self.graph, node, "has nothing to compute")),
        };
        let output = self.push_value(Value { node, result: 0 }, Storage::Slot);
        let name = describe(self.graph, group.product.unwrap_or(node));
        self.push(name, kind, inputs, vec![output]);
        Ok(())
    }

    /// The range of a tensor, scale and zero point that follow from it, and the tensor in bytes.
    fn dynamic_quantize(&mut self, node: NodeId) -> Result<(), LowerError> {
        let x = self.graph.operand(node, 0);
        let x = x.ok_or_else(|| unsupported(self.graph, node, "lacks its operand"))?;
        let x = Some(self.value(x)?);
        let name = describe(self.graph, node);
        let range = self.plan.values.len() as u32;
        self.plan.values.push(ValueDesc {
            name: name.clone(),
            dtype: DType::F32.name().to_owned(),
            shape: vec![PlanDim::fixed(2)],
            layout: PlanLayout::RowMajor,
            storage: Storage::Slot,
        });
        self.ranges.insert(node, range);
        let [y, scale, zero_point] =
            [0, 1, 2].map(|result| self.push_value(Value { node, result }, Storage::Slot));
        let operand = |element, extent| VerticalOperand { element, extent };
        let quantize = match self.graph.ty(Value { node, result: 0 }).layout {
            Layout::Panels => StepKind::Vertical(Vertical {
                operands: vec![
                    operand(Element::F32, Extent::Panels),
                    operand(Element::F32, Extent::Scalar),
                    operand(Element::I32, Extent::Scalar),
                ],
                ops: vec![VerticalOp::Quantize {
                    a: 0,
                    scale: 1,
                    zero_point: Some(2),
                }],
            }),
            Layout::RowMajor | Layout::Packed(_) => StepKind::Quantize,
        };
        let steps = [
            (StepKind::Range, vec![x], range),
            (StepKind::RangeScale, vec![Some(range)], scale),
            (StepKind::RangeZeroPoint, vec![Some(range)], zero_point),
            (quantize, vec![x, Some(scale), Some(zero_point)], y),
        ];
        for (kind, inputs, output) in steps {
            self.push(name.clone(), kind, inputs, vec![output]);
        }
        Ok(())
    }

    /// The range that a node takes the zero point of, as `i32`.
    fn range_of_zero_point(&self, node: NodeId) -> Option<u32> {
        let zero_point = self.graph.operand(node, 0)?;
        let is_cast = self.graph.op(node).operator() == Some(Operator::Cast)
            && self.graph.ty(Value { node, result: 0 }).dtype == DType::I32;
        let range = self.ranges.get(&zero_point.node)?;
        (is_cast && zero_point.result == 2).then_some(*range)
    }

    fn push(&mut self, name: String, kind: StepKind, inputs: Vec<Option<u32>>, outputs: Vec<u32>) {
        self.plan.steps.push(Step {
            name,
            kind,
            inputs,
            outputs,
        });
    }

    fn push_step(&mut self, node: NodeId, kind: StepKind, inputs: Vec<Option<u32>>) {
        let outputs = (0..self.graph.n_results(node) as u32)
            .map(|result| self.push_value(Value { node, result }, Storage::Slot))
            .collect();
        self.push(describe(self.graph, node), kind, inputs, outputs);
    }

    /// Index of a value in the plan; a constant is placed in the weights at its first use.
    fn value(&mut self, value: Value) -> Result<u32, LowerError> {
        if let Some(&id) = self.values.get(&value) {
            return Ok(id);
        }
        if self.graph.operator(value) == Some(Operator::FromSparse) {
            return self.made_dense(value);
        }
        let Some(tensor) = self.graph.constant(value) else {
            return Err(unsupported(
                self.graph,
                value.node,
                "is used in a form that no step produces",
            ));
        };
        let (offset, len) = self.placement.tensor(tensor);
        Ok(self.push_value(value, Storage::Weights { offset, len }))
    }

    /// Index of a sparse constant that a step reads as a tensor.
    fn made_dense(&mut self, value: Value) -> Result<u32, LowerError> {
        let ty = self.graph.ty(value);
        let n = ty.fixed_shape().and_then(|shape| {
            let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            n.filter(|&n| n <= MAX_DENSE)
        });
        let operands = self.graph.operands(value.node);
        let operands: Vec<_> = (operands.iter().flatten())
            .map(|&v| self.graph.constant(v).map(|t| t.view()))
            .collect();
        let attributes = self.graph.attributes(value.node);
        let dense = n.and_then(|_| {
            evaluate(Operator::FromSparse, attributes, &operands, 1)
                .ok()?
                .pop()
        });
        let Some(dense) = dense else {
            let message = format!(
                "is a sparse constant {ty} that something else than a linear layer reads: it is too large to be made dense"
            );
            return Err(unsupported(self.graph, value.node, &message));
        };
        let (offset, len) = self.placement.owned(&dense);
        Ok(self.push_value(value, Storage::Weights { offset, len }))
    }

    /// Index of the packed matrix that `packed` stands for.
    fn matrix(&mut self, packed: Value) -> Result<u32, LowerError> {
        if let Some(&id) = self.matrices.get(&packed) {
            return Ok(id);
        }
        let desc = self.placement.pack(self.graph, packed)?;
        let id = self.plan.matrices.len() as u32;
        self.plan.matrices.push(desc);
        self.matrices.insert(packed, id);
        Ok(id)
    }

    fn push_value(&mut self, value: Value, storage: Storage) -> u32 {
        let id = self.plan.values.len() as u32;
        let TensorType {
            dtype,
            shape,
            layout,
        } = self.graph.ty(value);
        self.plan.values.push(ValueDesc {
            name: describe(self.graph, value.node),
            dtype: dtype.name().to_owned(),
            shape: shape.iter().map(|d| plan_dim(d, &self.symbols)).collect(),
            layout: match layout {
                Layout::Panels => PlanLayout::Panels,
                Layout::RowMajor | Layout::Packed(_) => PlanLayout::RowMajor,
            },
            storage,
        });
        self.values.insert(value, id);
        id
    }
}

/// The dimension with symbols by index.
fn plan_dim(dim: &Dim, symbols: &BTreeMap<String, u32>) -> PlanDim {
    let index = |name: &str| {
        *symbols
            .get(name)
            .expect("a graph declares every symbol of its types")
    };
    PlanDim {
        terms: dim
            .terms()
            .map(|(m, c)| (c, m.iter().map(|s| index(s.name())).collect()))
            .collect(),
    }
}

/// What messages call a node: its name in the file, or what it does.
fn describe(graph: &Graph, node: NodeId) -> String {
    match (graph.node_name(node), graph.op(node)) {
        ("", Op::Const(c)) => c.name.clone(),
        ("", op) => op.text().to_owned(),
        (name, _) => name.to_owned(),
    }
}

fn unsupported(graph: &Graph, node: NodeId, message: &str) -> LowerError {
    LowerError::Unsupported {
        node: describe(graph, node),
        op: graph.op(node).text().to_owned(),
        message: message.to_owned(),
    }
}
