//! Elementwise nodes over panels that become one step: each group ends in a node that others use, and takes in what only
//! it uses, up to an integer product.
//!
//! A single `f32` function stays a step of its own kind.

use std::collections::{HashMap, HashSet};

use lancet_artifact::{Binary, Element, Extent, Vertical, VerticalOp, VerticalOperand};
use lancet_ir::{Graph, Layout, NodeId, Op, Value};
use lancet_ops::{DType, Operator};

use super::select::activation_of;

/// Nodes that are one step.
pub(super) struct Group {
    /// The integer product that is its first operand, if there is one.
    pub(super) product: Option<NodeId>,
    /// `None` for a product alone.
    pub(super) vertical: Option<Vertical>,
    /// Operands of the expression, without the product.
    pub(super) operands: Vec<Value>,
}

/// Groups by their last node, and the nodes that are in a group but do not end it.
#[derive(Default)]
pub(super) struct Fusion {
    pub(super) groups: HashMap<NodeId, Group>,
    pub(super) absorbed: HashSet<NodeId>,
}

/// Finds the groups of a graph.
pub(super) fn fuse(graph: &Graph) -> Fusion {
    let mut fusion = Fusion::default();
    for root in graph.order().into_iter().rev() {
        if fusion.absorbed.contains(&root) || !in_panels(graph, root) {
            continue;
        }
        if graph.op(root).operator() == Some(Operator::IntegerLinear) {
            let alone = Group {
                product: Some(root),
                vertical: None,
                operands: Vec::new(),
            };
            fusion.groups.insert(root, alone);
            continue;
        }
        if function(graph, root).is_none() {
            continue;
        }
        let mut expression = Expression::new(graph);
        expression.apply(root);
        if expression.is_single_float_function(root) {
            continue;
        }
        fusion.absorbed.extend(expression.absorbed.iter().copied());
        fusion.groups.insert(root, expression.finish());
    }
    fusion
}

fn in_panels(graph: &Graph, node: NodeId) -> bool {
    matches!(graph.op(node), Op::Apply(..))
        && graph.ty(Value { node, result: 0 }).layout == Layout::Panels
}

/// What an elementwise node does to its operands.
enum Function {
    Binary(Binary),
    Activation(lancet_artifact::Activation),
    ToFloat,
    Quantize,
}

fn function(graph: &Graph, node: NodeId) -> Option<Function> {
    let Op::Apply(op, attributes) = graph.op(node) else {
        return None;
    };
    let dtype = |i| graph.operand(node, i).map(|v| graph.ty(v).dtype);
    Some(match op {
        Operator::Add => Function::Binary(Binary::Add),
        Operator::Sub => Function::Binary(Binary::Sub),
        Operator::Mul => Function::Binary(Binary::Mul),
        Operator::Div => Function::Binary(Binary::Div),
        Operator::Max if graph.operands(node).len() == 2 => Function::Binary(Binary::Max),
        Operator::Min if graph.operands(node).len() == 2 => Function::Binary(Binary::Min),
        Operator::AtLeast => Function::Binary(Binary::AtLeast),
        Operator::AtMost => Function::Binary(Binary::AtMost),
        Operator::Cast if dtype(0) == Some(DType::I32) => Function::ToFloat,
        Operator::QuantizeLinear => Function::Quantize,
        other => Function::Activation(activation_of(*other, attributes)?),
    })
}

#[derive(Clone, Copy)]
enum Reference {
    Product,
    Operand(usize),
    Op(usize),
}

/// A group while it is put together.
struct Expression<'g> {
    graph: &'g Graph,
    product: Option<NodeId>,
    operands: Vec<(Value, VerticalOperand)>,
    /// With references to values in this order; numbers are given at the end.
    ops: Vec<(Function, Vec<Reference>)>,
    absorbed: Vec<NodeId>,
    /// Operands of operations that wait for their first one.
    n_waiting: usize,
}

impl<'g> Expression<'g> {
    fn new(graph: &'g Graph) -> Expression<'g> {
        Expression {
            graph,
            product: None,
            operands: Vec::new(),
            ops: Vec::new(),
            absorbed: Vec::new(),
            n_waiting: 0,
        }
    }

    /// Adds what `node` computes.
    fn apply(&mut self, node: NodeId) -> Reference {
        let function = function(self.graph, node).expect("callers check that it is elementwise");
        let n = match function {
            Function::Binary(_) => 2,
            Function::Activation(_) | Function::ToFloat => 1,
            Function::Quantize => 3,
        };
        let operands = self.graph.operands(node).into_iter().take(n).flatten();
        let operands: Vec<Value> = operands.collect();
        // Operands that are computed come first, so that operands which wait for them need no register meanwhile.
        let mut references = Vec::with_capacity(operands.len());
        for (i, &v) in operands.iter().enumerate() {
            let n_waiting = operands.len() - i - 1;
            self.n_waiting += n_waiting;
            references.push(self.value(v));
            self.n_waiting -= n_waiting;
        }
        self.ops.push((function, references));
        Reference::Op(self.ops.len() - 1)
    }

    /// The value, computed here if nothing else uses it.
    fn value(&mut self, value: Value) -> Reference {
        let mut source = value;
        let mut views = Vec::new();
        while let Op::View(_) = self.graph.op(source.node)
            && self.graph.ty(source).layout == Layout::Panels
            && self.graph.single_user(source).is_some()
            && let Some(x) = self.graph.operand(source.node, 0)
        {
            views.push(source.node);
            source = x;
        }
        let is_own = self.graph.single_user(source).is_some()
            && self.graph.ty(source).layout == Layout::Panels
            && source.result == 0;
        let operator = self.graph.op(source.node).operator();
        if is_own && operator == Some(Operator::IntegerLinear) && self.product.is_none() {
            self.product = Some(source.node);
            self.absorbed.extend(views);
            self.absorbed.push(source.node);
            return Reference::Product;
        }
        // Room for this one, and for what those that wait for it take.
        let has_room = self.ops.len() + self.absorbed.len() + 4 < Vertical::MAX_OPS
            && self.operands.len() + self.n_waiting + 3 < Vertical::MAX_OPERANDS;
        if is_own
            && has_room
            && in_panels(self.graph, source.node)
            && !matches!(operator, Some(Operator::QuantizeLinear))
            && function(self.graph, source.node).is_some()
        {
            self.absorbed.extend(views);
            self.absorbed.push(source.node);
            return self.apply(source.node);
        }
        self.operand(value)
    }

    fn operand(&mut self, value: Value) -> Reference {
        if let Some(i) = self.operands.iter().position(|(v, _)| *v == value) {
            return Reference::Operand(i);
        }
        let ty = self.graph.ty(value);
        let is_one = ty
            .fixed_shape()
            .is_some_and(|s| s.iter().product::<usize>() == 1);
        let operand = VerticalOperand {
            element: if ty.dtype == DType::F32 {
                Element::F32
            } else {
                Element::I32
            },
            extent: match ty.layout {
                Layout::Panels => Extent::Panels,
                Layout::RowMajor | Layout::Packed(_) if is_one => Extent::Scalar,
                Layout::RowMajor | Layout::Packed(_) => Extent::Features,
            },
        };
        self.operands.push((value, operand));
        Reference::Operand(self.operands.len() - 1)
    }

    /// True for a function that a step of its own kind computes.
    fn is_single_float_function(&self, root: NodeId) -> bool {
        let result = Value {
            node: root,
            result: 0,
        };
        let is_float = |v| self.graph.ty(v).dtype == DType::F32;
        let extents: Vec<Extent> = self.operands.iter().map(|(_, o)| o.extent).collect();
        let fits = match extents[..] {
            [Extent::Panels] => true,
            [Extent::Panels, second] => second != Extent::Scalar,
            _ => false,
        };
        fits && self.ops.len() == 1
            && is_float(result)
            && self.operands.iter().all(|(v, _)| is_float(*v))
    }

    fn finish(self) -> Group {
        let first = usize::from(self.product.is_some());
        let n = first + self.operands.len();
        let number = |r: Reference| match r {
            Reference::Product => 0,
            Reference::Operand(i) => (first + i) as u32,
            Reference::Op(i) => (n + i) as u32,
        };
        let product = self.product.map(|_| VerticalOperand {
            element: Element::I32,
            extent: Extent::Panels,
        });
        let ops = self.ops.iter().map(|(function, references)| {
            let of = |i: usize| references.get(i).copied().map_or(u32::MAX, number);
            match function {
                Function::Binary(op) => VerticalOp::Binary {
                    op: *op,
                    a: of(0),
                    b: of(1),
                },
                Function::Activation(kind) => VerticalOp::Activation {
                    kind: *kind,
                    a: of(0),
                },
                Function::ToFloat => VerticalOp::ToFloat { a: of(0) },
                Function::Quantize => VerticalOp::Quantize {
                    a: of(0),
                    scale: of(1),
                    zero_point: references.get(2).copied().map(number),
                },
            }
        });
        Group {
            product: self.product,
            vertical: Some(Vertical {
                operands: product
                    .into_iter()
                    .chain(self.operands.iter().map(|(_, o)| *o))
                    .collect(),
                ops: ops.collect(),
            }),
            operands: self.operands.into_iter().map(|(v, _)| v).collect(),
        }
    }
}
