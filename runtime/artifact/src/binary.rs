//! Elementwise functions of two arguments.

use std::fmt;
use std::str::FromStr;

/// An elementwise function of two arguments `a` and `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `a / b`.
    Div,
    /// The greater; NaN if either is.
    Max,
    /// The lesser; NaN if either is.
    Min,
    /// `a` if it is greater, else `b`.
    AtLeast,
    /// `a` if it is less, else `b`.
    AtMost,
}

impl Binary {
    /// Every function, in declaration order.
    pub const ALL: [Binary; 8] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Max,
        Binary::Min,
        Binary::AtLeast,
        Binary::AtMost,
    ];

    /// The name in plans, which is that of the operator.
    pub fn name(self) -> &'static str {
        match self {
            Binary::Add => "add",
            Binary::Sub => "sub",
            Binary::Mul => "mul",
            Binary::Div => "div",
            Binary::Max => "max",
            Binary::Min => "min",
            Binary::AtLeast => "at_least",
            Binary::AtMost => "at_most",
        }
    }

    /// The function's value.
    pub fn apply(self, a: f32, b: f32) -> f32 {
        match self {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Max | Binary::Min if a.is_nan() => a,
            Binary::Max | Binary::AtLeast if a > b => a,
            Binary::Min | Binary::AtMost if a < b => a,
            Binary::Max | Binary::Min | Binary::AtLeast | Binary::AtMost => b,
        }
    }
}

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of an elementwise function of two arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown elementwise function `{0}`")]
pub struct UnknownBinary(pub String);

impl FromStr for Binary {
    type Err = UnknownBinary;

    fn from_str(s: &str) -> Result<Binary, UnknownBinary> {
        Binary::ALL
            .into_iter()
            .find(|b| b.name() == s)
            .ok_or_else(|| UnknownBinary(s.to_owned()))
    }
}
