//! What a node does: a small closed enum over the operator table.

use std::sync::Arc;

use lancet_ops::{Attributes, Operator, Tensor};

use crate::{Dim, Layout};

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
            | Op::Convert(_) => None,
        }
    }
}
