//! What a node does: a small closed enum over the operator table.

use std::sync::Arc;

use lancet_ops::{Attributes, Operator, Tensor};

use crate::{Dim, Graph, Layout};

/// A constant tensor with its name in the file it came from.
#[derive(Clone, Debug)]
pub struct Constant {
    /// Name without the `@` of IR text; unique names are made at print time.
    pub name: String,
    pub tensor: Arc<Tensor>,
    /// The generator literal that made it (`random(seed = 1)`), where IR text said so; printed again as it stood.
    pub literal: Option<String>,
}

/// What a node does.
#[derive(Clone, Debug)]
pub enum Op {
    /// A graph input of this name. No operands.
    Input(String),
    /// A constant. No operands.
    Const(Constant),
    /// A one-dimensional `i64` tensor of symbolic sizes, known once the symbols are bound. No operands.
    Dims(Vec<Dim>),
    /// The operand's elements, in order, under another shape of the same size.
    View(Vec<Dim>),
    /// The operand broadcast to this shape.
    Broadcast(Vec<Dim>),
    /// The operand in another layout; the value is the same.
    Convert(Layout),
    /// An operator of the table.
    Apply(Operator, Attributes),
    /// One of two graphs: `then` if the first operand, one boolean, holds. The next operands are the inputs of `then`, those
    /// after them the inputs of `otherwise`; the results are the outputs of the one that runs.
    If {
        then: Arc<Graph>,
        otherwise: Arc<Graph>,
    },
    /// A graph that runs again and again, as the `Loop` of ONNX does.
    ///
    /// Operands are the most iterations (`i64`, may be absent), the condition to begin (`bool`, may be absent), what is carried
    /// into the first iteration, and what every iteration reads. Inputs of the body are the number of the iteration, the
    /// condition, what is carried and what is read; its outputs are the next condition, what is carried on, and what is
    /// collected. Results are what is carried at the end, then what was collected, iterations first.
    Loop { body: Arc<Graph>, n_carried: usize },
}

impl Op {
    /// The name in IR text.
    pub fn text(&self) -> &'static str {
        match self {
            Op::Input(_) => "input",
            Op::Const(_) => "const",
            Op::Dims(_) => "dims",
            Op::View(_) => "view",
            Op::Broadcast(_) => "broadcast",
            Op::Convert(_) => "convert",
            Op::Apply(op, _) => op.schema().text,
            Op::If { .. } => "if",
            Op::Loop { .. } => "loop",
        }
    }

    /// The graphs that the node runs.
    pub fn regions(&self) -> Vec<&Graph> {
        match self {
            Op::If { then, otherwise } => vec![then, otherwise],
            Op::Loop { body, .. } => vec![body],
            Op::Input(_)
            | Op::Const(_)
            | Op::Dims(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..) => Vec::new(),
        }
    }

    /// The graphs that the node runs, to be changed; a graph that something else shares is copied.
    pub(crate) fn regions_mut(&mut self) -> Vec<&mut Graph> {
        match self {
            Op::If { then, otherwise } => vec![Arc::make_mut(then), Arc::make_mut(otherwise)],
            Op::Loop { body, .. } => vec![Arc::make_mut(body)],
            Op::Input(_)
            | Op::Const(_)
            | Op::Dims(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..) => Vec::new(),
        }
    }

    /// The operator if this applies one.
    pub fn operator(&self) -> Option<Operator> {
        match self {
            Op::Apply(op, _) => Some(*op),
            Op::Input(_)
            | Op::Const(_)
            | Op::Dims(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::If { .. }
            | Op::Loop { .. } => None,
        }
    }
}
