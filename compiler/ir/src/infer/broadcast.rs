//! Sizes that must agree: broadcasting, equal sizes, contraction.
//!
//! Two sizes that cannot be told apart before the run are taken to agree only where the operator fails otherwise; the
//! runtime computes true shapes and reports those that disagree.

use super::call::Call;
use crate::{Dim, IrError};

/// True if the size is known to be greater than one, whatever the symbols.
fn exceeds_one(d: &Dim) -> bool {
    d.sub(&Dim::fixed(2)).is_some_and(|d| d.is_non_negative())
}

/// True if the size is one, whatever the symbols.
pub(super) fn is_one(d: &Dim) -> bool {
    d.as_fixed() == Some(1)
}

/// True if a value of shape `from` may broadcast to `to`, as far as is known.
pub(super) fn broadcasts_to(from: &[Dim], to: &[Dim]) -> bool {
    from.len() <= to.len()
        && from
            .iter()
            .zip(&to[to.len() - from.len()..])
            .all(|(a, b)| is_one(a) || a.equals(b) != Some(false))
}

impl Call<'_> {
    /// The shape to which these broadcast together.
    ///
    /// A fixed size or one known to exceed 1 wins over others, which must then equal it or be 1. Sizes of which nothing
    /// tells whether they are 1 give a fresh size.
    pub(super) fn broadcast(&mut self, shapes: &[&[Dim]]) -> Result<Vec<Dim>, IrError> {
        let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
        let mut out = Vec::with_capacity(rank);
        for position in 0..rank {
            // Positions count from the end.
            let from_end = rank - position;
            let mut sizes: Vec<&Dim> = Vec::new();
            for s in shapes.iter().filter(|s| from_end <= s.len()) {
                let d = &s[s.len() - from_end];
                if !is_one(d) && !sizes.contains(&d) {
                    sizes.push(d);
                }
            }
            let fixed: Vec<i64> = sizes.iter().filter_map(|d| d.as_fixed()).collect();
            out.push(match (fixed.as_slice(), sizes.as_slice()) {
                (_, []) => Dim::fixed(1),
                (&[n], _) => Dim::fixed(n),
                ([_, _, ..], _) => return Err(self.error(broadcast_message(shapes))),
                ([], [d]) => (*d).clone(),
                ([], _) => match sizes.iter().find(|d| exceeds_one(d)) {
                    Some(d) => (*d).clone(),
                    None => self.fresh(),
                },
            });
        }
        Ok(out)
    }

    /// Checks that operand `index`, if it is present, broadcasts to `shape` as far as is known.
    pub(super) fn expect_broadcasts_to(&self, index: usize, shape: &[Dim]) -> Result<(), IrError> {
        match self.optional(index) {
            Some(v) if !broadcasts_to(&v.ty.shape, shape) => {
                Err(self
                    .operand_error(index, format!("a shape that broadcasts to {}", list(shape))))
            }
            _ => Ok(()),
        }
    }
}

/// The size that both must have, the fixed one if one is; `None` if they are known to differ.
pub(super) fn agree(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a.equals(b), b.as_fixed()) {
        (Some(false), _) => None,
        (_, Some(_)) => Some(b.clone()),
        (_, None) => Some(a.clone()),
    }
}

fn broadcast_message(shapes: &[&[Dim]]) -> String {
    let shapes: Vec<String> = shapes.iter().map(|s| list(s)).collect();
    format!("cannot broadcast shapes {}", shapes.join(" and "))
}

/// A shape as text.
pub(super) fn list(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(ToString::to_string).collect();
    format!("[{}]", dims.join(", "))
}
