//! Affine forms of a value's indices: `Σ coefficient · index + constant`, with sizes as coefficients.
//!
//! The indices are those of one value under analysis, the *root*; index `a` runs from 0 to `extents[a] - 1`.

use lancet_ir::Dim;

/// An integer that is affine in the root's indices. No stored coefficient is zero; axes ascend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    terms: Vec<(usize, Dim)>,
    constant: Dim,
}

impl Affine {
    /// A number that does not depend on the indices.
    pub fn constant(value: Dim) -> Affine {
        Affine {
            terms: Vec::new(),
            constant: value,
        }
    }

    /// Zero.
    pub fn zero() -> Affine {
        Affine::constant(Dim::fixed(0))
    }

    /// The index of an axis.
    pub fn index(axis: usize) -> Affine {
        Affine {
            terms: vec![(axis, Dim::fixed(1))],
            constant: Dim::fixed(0),
        }
    }

    /// The value, if it does not depend on the indices.
    pub fn as_constant(&self) -> Option<&Dim> {
        self.terms.is_empty().then_some(&self.constant)
    }

    /// The number, if it depends on neither indices nor sizes.
    pub fn as_fixed(&self) -> Option<i64> {
        self.as_constant()?.as_fixed()
    }

    /// What the index of an axis is multiplied by.
    pub fn coefficient(&self, axis: usize) -> Dim {
        let term = self.terms.iter().find(|(a, _)| *a == axis);
        term.map_or(Dim::fixed(0), |(_, c)| c.clone())
    }

    /// The axis, if this is its index plus a constant.
    pub fn as_index(&self) -> Option<(usize, &Dim)> {
        match self.terms.as_slice() {
            [(axis, c)] if *c == Dim::fixed(1) => Some((*axis, &self.constant)),
            _ => None,
        }
    }

    /// Sum, or `None` on overflow.
    pub fn add(&self, other: &Affine) -> Option<Affine> {
        let mut terms = self.terms.clone();
        for (axis, c) in &other.terms {
            match terms.binary_search_by_key(axis, |(a, _)| *a) {
                Ok(i) => terms[i].1 = terms[i].1.add(c)?,
                Err(i) => terms.insert(i, (*axis, c.clone())),
            }
        }
        terms.retain(|(_, c)| *c != Dim::fixed(0));
        Some(Affine {
            terms,
            constant: self.constant.add(&other.constant)?,
        })
    }

    /// Difference, or `None` on overflow.
    pub fn sub(&self, other: &Affine) -> Option<Affine> {
        self.add(&other.scale(&Dim::fixed(-1))?)
    }

    /// Product with a size, or `None` on overflow.
    pub fn scale(&self, by: &Dim) -> Option<Affine> {
        let mut terms = Vec::with_capacity(self.terms.len());
        for (axis, c) in &self.terms {
            terms.push((*axis, c.mul(by)?));
        }
        terms.retain(|(_, c)| *c != Dim::fixed(0));
        Some(Affine {
            terms,
            constant: self.constant.mul(by)?,
        })
    }

    /// Product, if one factor does not depend on the indices.
    pub fn mul(&self, other: &Affine) -> Option<Affine> {
        match (self.as_constant(), other.as_constant()) {
            (_, Some(c)) => self.scale(c),
            (Some(c), None) => other.scale(c),
            (None, None) => None,
        }
    }

    /// The least and the greatest value over all indices, if the signs of the coefficients are known.
    pub fn range(&self, extents: &[Dim]) -> Option<(Dim, Dim)> {
        let (mut least, mut most) = (self.constant.clone(), self.constant.clone());
        for (axis, c) in &self.terms {
            let last = extents.get(*axis)?.sub(&Dim::fixed(1))?;
            let reach = c.mul(&last)?;
            if c.is_non_negative() {
                most = most.add(&reach)?;
            } else if c.scale(-1)?.is_non_negative() {
                least = least.add(&reach)?;
            } else {
                return None;
            }
        }
        Some((least, most))
    }

    /// Whether the value is at least 0 and less than `bound`, for all indices and sizes.
    pub fn is_within(&self, bound: &Dim, extents: &[Dim]) -> bool {
        let within = || {
            let (least, most) = self.range(extents)?;
            let room = bound.sub(&Dim::fixed(1))?.sub(&most)?;
            Some(least.is_non_negative() && room.is_non_negative())
        };
        within().unwrap_or(false)
    }

    /// The indices into `shape` of the element at this position in row-major order, if they are affine too.
    ///
    /// Each term goes to the outermost dimension whose stride divides it; what remains for the inner dimensions is shown
    /// to stay within that stride.
    pub fn unravel(&self, shape: &[Dim], extents: &[Dim]) -> Option<Vec<Affine>> {
        let mut rest = self.clone();
        let mut out = Vec::with_capacity(shape.len());
        for (axis, size) in shape.iter().enumerate() {
            if *size == Dim::fixed(1) {
                out.push(Affine::zero());
                continue;
            }
            let stride = Dim::product(&shape[axis + 1..])?;
            let mut index = Affine::zero();
            for (a, c) in &rest.terms {
                if let Some(q) = c.div_exact(&stride) {
                    index = index.add(&Affine::index(*a).scale(&q)?)?;
                }
            }
            if let Some(q) = rest.constant.div_exact(&stride) {
                index.constant = q;
            }
            rest = rest.sub(&index.scale(&stride)?)?;
            if rest != Affine::zero() && !rest.is_within(&stride, extents) {
                return None;
            }
            out.push(index);
        }
        (rest == Affine::zero()).then_some(out)
    }

    /// The position in row-major order of the element of `shape` at these indices.
    pub fn ravel(index: &[Affine], shape: &[Dim]) -> Option<Affine> {
        let mut flat = Affine::zero();
        for (i, size) in index.iter().zip(shape) {
            flat = flat.scale(size)?.add(i)?;
        }
        Some(flat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes() -> (Dim, Dim) {
        (Dim::symbol("b"), Dim::symbol("s"))
    }

    #[test]
    fn a_flat_position_unravels_to_its_indices() {
        let (b, s) = sizes();
        let extents = [b.clone(), Dim::fixed(1), s.clone()];
        let flat = Affine::index(0).scale(&s).expect("small");
        let flat = flat.add(&Affine::index(2)).expect("small");
        let shape = [b, s];
        let found = flat.unravel(&shape, &extents);
        assert_eq!(found, Some(vec![Affine::index(0), Affine::index(2)]));
        let back = Affine::ravel(&found.expect("found"), &shape);
        assert_eq!(back, Some(flat));
    }

    #[test]
    fn a_position_that_may_leave_its_stride_does_not_unravel() {
        let (b, s) = sizes();
        let extents = [b.clone(), s.clone()];
        let one = Affine::constant(Dim::fixed(1));
        let flat = Affine::index(0).scale(&s).expect("small");
        let flat = flat.add(&Affine::index(1)).expect("small");
        let flat = flat.add(&one).expect("small");
        assert_eq!(flat.unravel(&[b, s], &extents), None);
    }

    #[test]
    fn ranges_follow_signs() {
        let (b, s) = sizes();
        let extents = [b, s.clone()];
        let backwards = Affine::constant(s.clone())
            .sub(&Affine::index(1))
            .expect("small");
        assert!(!backwards.is_within(&s, &extents));
        let backwards = backwards
            .sub(&Affine::constant(Dim::fixed(1)))
            .expect("small");
        assert!(backwards.is_within(&s, &extents));
        assert!(!Affine::index(0).is_within(&s, &extents));
    }
}
