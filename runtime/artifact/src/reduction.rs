//! What the elements of some dimensions become when they are taken together.

use std::fmt;
use std::str::FromStr;

/// A function of all elements of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
    /// `sqrt(sum(x^2))`.
    L2,
}

impl Reduction {
    /// Every reduction, in declaration order.
    pub const ALL: [Reduction; 5] = [
        Reduction::Sum,
        Reduction::Mean,
        Reduction::Max,
        Reduction::Min,
        Reduction::L2,
    ];

    /// The name in plans, which is that of the operator in IR text.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Sum => "reduce_sum",
            Reduction::Mean => "reduce_mean",
            Reduction::Max => "reduce_max",
            Reduction::Min => "reduce_min",
            Reduction::L2 => "reduce_l2",
        }
    }

    /// Whether a step reduces elements of the type of this name.
    pub fn takes(self, dtype: &str) -> bool {
        match self {
            Reduction::Sum | Reduction::Max | Reduction::Min => {
                matches!(dtype, "f32" | "f64" | "i32" | "i64")
            }
            Reduction::Mean | Reduction::L2 => matches!(dtype, "f32" | "f64"),
        }
    }
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a reduction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown reduction `{0}`")]
pub struct UnknownReduction(pub String);

impl FromStr for Reduction {
    type Err = UnknownReduction;

    fn from_str(s: &str) -> Result<Reduction, UnknownReduction> {
        Reduction::ALL
            .into_iter()
            .find(|r| r.name() == s)
            .ok_or_else(|| UnknownReduction(s.to_owned()))
    }
}
