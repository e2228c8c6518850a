//! Elementwise functions of several values over panels, as one expression that runs in one pass.
//!
//! Values are numbered: operands first, then the results of operations in order; the last one is the result. An operation
//! refers to values before it only.

use crate::{Activation, Binary};

/// What the elements of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    F32,
    I32,
    /// Unsigned bytes, four features of a token together.
    Quad,
}

/// How far one number of an operand goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extent {
    /// One number for each feature of each token.
    Panels,
    /// One number for each feature, the same for all tokens.
    Features,
    /// One number.
    Scalar,
}

/// An operand of a [`Vertical`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerticalOperand {
    /// `F32` or `I32`.
    pub element: Element,
    pub extent: Extent,
}

/// An operation of a [`Vertical`]; numbers are values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum VerticalOp {
    /// Of two values of one element type; of integers only sums, differences and products, which wrap.
    Binary { op: Binary, a: u32, b: u32 },
    /// Of an `f32`.
    Activation { kind: Activation, a: u32 },
    /// The `f32` nearest to an `i32`.
    ToFloat { a: u32 },
    /// `saturate(round(a / scale) + zero_point)` with ties to even, from 0 to 255, as bytes; only last. `scale` is a scalar `f32`,
    /// `zero_point` a scalar `i32` of 0 to 255, or 0.
    Quantize {
        a: u32,
        scale: u32,
        zero_point: Option<u32>,
    },
}

/// An elementwise function of several operands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vertical {
    pub operands: Vec<VerticalOperand>,
    pub ops: Vec<VerticalOp>,
}

impl Vertical {
    /// Greatest number of operands.
    pub const MAX_OPERANDS: usize = 8;
    /// Greatest number of operations.
    pub const MAX_OPS: usize = 24;

    /// What the result's elements are.
    ///
    /// # Errors
    /// What is wrong with the expression.
    pub fn check(&self) -> Result<Element, String> {
        if self.operands.len() > Vertical::MAX_OPERANDS || self.ops.len() > Vertical::MAX_OPS {
            return Err(format!(
                "{} operands and {} operations are too many",
                self.operands.len(),
                self.ops.len()
            ));
        }
        if self.operands.iter().any(|o| o.element == Element::Quad) {
            return Err("an operand holds bytes".to_owned());
        }
        let mut elements: Vec<Element> = self.operands.iter().map(|o| o.element).collect();
        for (i, op) in self.ops.iter().enumerate() {
            let of = |v: u32| {
                let found = elements.get(v as usize).copied();
                found.ok_or_else(|| format!("operation {i} refers to value {v}"))
            };
            let expect = |v: u32, element: Element| {
                let found = of(v)?;
                if found != element {
                    return Err(format!("operation {i} takes {element:?}, found {found:?}"));
                }
                Ok(())
            };
            let scalar = |v: u32, element: Element| {
                let operand = self.operands.get(v as usize);
                if operand.is_none_or(|o| o.extent != Extent::Scalar || o.element != element) {
                    return Err(format!("operation {i} takes a scalar {element:?}"));
                }
                Ok(())
            };
            elements.push(match *op {
                VerticalOp::Binary { op, a, b } => {
                    let element = of(a)?;
                    expect(b, element)?;
                    let of_integers = matches!(op, Binary::Add | Binary::Sub | Binary::Mul);
                    if element == Element::Quad || (element == Element::I32 && !of_integers) {
                        return Err(format!("operation {i}: {op} of {element:?}"));
                    }
                    element
                }
                VerticalOp::Activation { a, .. } => {
                    expect(a, Element::F32)?;
                    Element::F32
                }
                VerticalOp::ToFloat { a } => {
                    expect(a, Element::I32)?;
                    Element::F32
                }
                VerticalOp::Quantize {
                    a,
                    scale,
                    zero_point,
                } => {
                    expect(a, Element::F32)?;
                    scalar(scale, Element::F32)?;
                    zero_point.map_or(Ok(()), |z| scalar(z, Element::I32))?;
                    if i + 1 != self.ops.len() {
                        return Err(format!("operation {i} quantizes and is not the last"));
                    }
                    Element::Quad
                }
            });
        }
        match (self.ops.is_empty(), elements.last()) {
            (false, Some(&element)) => Ok(element),
            _ => Err("there is no operation".to_owned()),
        }
    }

    /// As numbers, for plans.
    pub(crate) fn to_numbers(&self) -> (Vec<u32>, Vec<u32>) {
        let operands = self.operands.iter();
        let operands = operands.map(|o| o.element as u32 * 4 + o.extent as u32);
        let ops = self.ops.iter().flat_map(|op| match *op {
            VerticalOp::Binary { op, a, b } => [0, op as u32, a, b],
            VerticalOp::Activation { kind, a } => [1, kind as u32, a, 0],
            VerticalOp::ToFloat { a } => [2, 0, a, 0],
            VerticalOp::Quantize {
                a,
                scale,
                zero_point,
            } => [3, zero_point.map_or(0, |z| z.saturating_add(1)), a, scale],
        });
        (operands.collect(), ops.collect())
    }

    /// What [`to_numbers`](Vertical::to_numbers) wrote, not checked.
    pub(crate) fn of_numbers(operands: &[u32], ops: &[u32]) -> Option<Vertical> {
        let operand = |&n: &u32| {
            Some(VerticalOperand {
                element: *[Element::F32, Element::I32].get(n as usize / 4)?,
                extent: *[Extent::Panels, Extent::Features, Extent::Scalar].get(n as usize % 4)?,
            })
        };
        let op = |op: &[u32]| {
            Some(match *op {
                [0, op, a, b] => VerticalOp::Binary {
                    op: *Binary::ALL.get(op as usize)?,
                    a,
                    b,
                },
                [1, kind, a, 0] => VerticalOp::Activation {
                    kind: *Activation::ALL.get(kind as usize)?,
                    a,
                },
                [2, 0, a, 0] => VerticalOp::ToFloat { a },
                [3, zero_point, a, scale] => VerticalOp::Quantize {
                    a,
                    scale,
                    zero_point: zero_point.checked_sub(1),
                },
                _ => return None,
            })
        };
        Some(Vertical {
            operands: operands.iter().map(operand).collect::<Option<_>>()?,
            ops: ops.chunks(4).map(op).collect::<Option<_>>()?,
        })
    }
}
