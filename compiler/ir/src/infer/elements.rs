//! Elements of shape computations: what `Shape -> Gather -> Concat` and the like are known to compute.
//!
//! Elements are expressions of the sizes, `bool` is 0 or 1. They are known all together or not at all, for at most
//! [`ValueInfo::MAX_ELEMENTS`] of them. An expression is assumed to fit its integer type if that has at least 32 bits;
//! fixed elements are checked.

use lancet_ops::{DType, DataView, Tensor};

use crate::{Dim, TensorType, ValueInfo};

/// Known elements with the fixed shape that they fill, in row-major order.
#[derive(Clone, Debug)]
pub(super) struct Known<'a> {
    pub(super) shape: Vec<usize>,
    pub(super) elements: &'a [Dim],
}

impl<'a> Known<'a> {
    /// The elements of a value if they are known and fill its shape.
    pub(super) fn of(value: &'a ValueInfo) -> Option<Known<'a>> {
        let elements = value.elements.as_deref()?;
        let shape = value.ty.fixed_shape()?;
        (small_size(&shape)? == elements.len()).then_some(Known { shape, elements })
    }

    /// The elements if all are fixed.
    pub(super) fn fixed(&self) -> Option<Vec<i64>> {
        self.elements.iter().map(Dim::as_fixed).collect()
    }

    /// The elements that `source` picks, for each index of `shape` in row-major order; `None` if that is too many.
    ///
    /// `source` writes an index into this value; all coordinates must be inside, or the result is `None`.
    pub(super) fn pick(
        &self,
        shape: &[Dim],
        mut source: impl FnMut(&[usize], &mut [usize]),
    ) -> Option<Vec<Dim>> {
        let shape = fixed_sizes(shape)?;
        let mut from = vec![0; self.shape.len()];
        indices(&shape)?
            .iter()
            .map(|index| {
                source(index, &mut from);
                self.at(&from).cloned()
            })
            .collect()
    }

    /// The element at an index, if it is inside.
    pub(super) fn at(&self, index: &[usize]) -> Option<&'a Dim> {
        let mut linear = 0usize;
        for (&i, &d) in index.iter().zip(&self.shape) {
            if d <= i {
                return None;
            }
            linear = linear * d + i;
        }
        self.elements.get(linear)
    }

    /// The element that an index of a shape to which this value broadcasts reads.
    pub(super) fn broadcast_at(&self, index: &[usize]) -> Option<&'a Dim> {
        let skipped = index.len().checked_sub(self.shape.len())?;
        let from: Vec<usize> = index[skipped..]
            .iter()
            .zip(&self.shape)
            .map(|(&i, &d)| if d == 1 { 0 } else { i })
            .collect();
        self.at(&from)
    }
}

/// A row-major value, with its elements where they are known, few and of an integer type that holds them.
pub(super) fn value(dtype: DType, shape: Vec<Dim>, elements: Option<Vec<Dim>>) -> ValueInfo {
    let ty = TensorType::new(dtype, shape);
    let elements = elements.filter(|e| {
        let fills = ty.fixed_shape().and_then(|s| small_size(&s)) == Some(e.len());
        !dtype.is_float() && fills && e.iter().all(|d| fits(d, dtype))
    });
    ValueInfo {
        ty,
        elements: elements.map(Into::into),
    }
}

/// Elements of an integer or boolean tensor, if they are few.
pub(super) fn of_tensor(tensor: &Tensor) -> Option<Vec<Dim>> {
    fn integers<T: Copy + TryInto<i64>>(v: &[T]) -> Option<Vec<Dim>> {
        v.iter()
            .map(|&x| x.try_into().ok().map(Dim::fixed))
            .collect()
    }
    if ValueInfo::MAX_ELEMENTS < tensor.len() {
        return None;
    }
    match tensor.data().view() {
        DataView::F32(_) | DataView::F64(_) | DataView::F16(_) | DataView::BF16(_) => None,
        DataView::I8(v) => integers(v),
        DataView::I16(v) => integers(v),
        DataView::I32(v) => integers(v),
        DataView::I64(v) => integers(v),
        DataView::U8(v) => integers(v),
        DataView::U16(v) => integers(v),
        DataView::U32(v) => integers(v),
        DataView::U64(v) => integers(v),
        DataView::Bool(v) => integers(v),
    }
}

/// Whether an element of this type holds the expression's value, as far as is known.
fn fits(d: &Dim, dtype: DType) -> bool {
    let inside = |least: i64, most: i64| d.as_fixed().is_some_and(|v| (least..=most).contains(&v));
    let not_negative = d.is_non_negative() || d.as_fixed().is_none();
    match dtype {
        DType::Bool => inside(0, 1),
        DType::I8 => inside(i8::MIN.into(), i8::MAX.into()),
        DType::I16 => inside(i16::MIN.into(), i16::MAX.into()),
        DType::U8 => inside(0, u8::MAX.into()),
        DType::U16 => inside(0, u16::MAX.into()),
        DType::I32 => d.as_fixed().is_none() || inside(i32::MIN.into(), i32::MAX.into()),
        DType::U32 => not_negative && (d.as_fixed().is_none() || inside(0, u32::MAX.into())),
        DType::I64 => true,
        DType::U64 => not_negative,
        DType::F32 | DType::F64 | DType::F16 | DType::BF16 => false,
    }
}

/// Sizes that are fixed and not negative.
pub(super) fn fixed_sizes(shape: &[Dim]) -> Option<Vec<usize>> {
    shape
        .iter()
        .map(|d| usize::try_from(d.as_fixed()?).ok())
        .collect()
}

/// Number of elements if it is within [`ValueInfo::MAX_ELEMENTS`].
fn small_size(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |a, &d| a.checked_mul(d))
        .filter(|&n| n <= ValueInfo::MAX_ELEMENTS)
}

/// Every index of a shape in row-major order, if they are few.
pub(super) fn indices(shape: &[usize]) -> Option<Vec<Vec<usize>>> {
    let n = small_size(shape)?;
    let index_of = |mut linear: usize| {
        let mut index = vec![0; shape.len()];
        for (i, &d) in index.iter_mut().zip(shape).rev() {
            *i = linear % d;
            linear /= d;
        }
        index
    };
    Some((0..n).map(index_of).collect())
}

/// `f` of the operands' elements at each index of a shape to which all broadcast; an operand whose elements are unknown
/// gives `None` to `f`.
pub(super) fn zip_broadcast(
    shape: &[Dim],
    operands: &[Option<Known<'_>>],
    mut f: impl FnMut(&[Option<&Dim>]) -> Option<Dim>,
) -> Option<Vec<Dim>> {
    if operands.iter().all(Option::is_none) {
        return None;
    }
    let shape = fixed_sizes(shape)?;
    indices(&shape)?
        .iter()
        .map(|index| {
            let at: Vec<Option<&Dim>> = operands
                .iter()
                .map(|k| k.as_ref().and_then(|k| k.broadcast_at(index)))
                .collect();
            f(&at)
        })
        .collect()
}

// Arithmetic of elements: `None` where the result is not an expression of the sizes.

/// Quotient, truncated toward zero.
pub(super) fn div(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a.as_fixed(), b.as_fixed()) {
        (Some(a), Some(b)) => a.checked_div(b).map(Dim::fixed),
        _ => a.div_exact(b),
    }
}

/// Remainder with the sign of the divisor, as Python has it.
pub(super) fn modulo(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a.as_fixed(), b.as_fixed()) {
        (Some(a), Some(b)) => {
            let r = a.checked_rem(b)?;
            let adjust = r != 0 && (r < 0) != (b < 0);
            Some(Dim::fixed(if adjust { r + b } else { r }))
        }
        _ => a.div_exact(b).map(|_| Dim::fixed(0)),
    }
}

/// Remainder with the sign of the dividend, as C has it.
pub(super) fn remainder(a: &Dim, b: &Dim) -> Option<Dim> {
    match (a.as_fixed(), b.as_fixed()) {
        (Some(a), Some(b)) => a.checked_rem(b).map(Dim::fixed),
        _ => a.div_exact(b).map(|_| Dim::fixed(0)),
    }
}

/// Whether `a <= b` for all sizes or for none.
pub(super) fn less_or_equal(a: &Dim, b: &Dim) -> Option<bool> {
    if b.sub(a)?.is_non_negative() {
        Some(true)
    } else if a.sub(b)?.is_positive() {
        Some(false)
    } else {
        None
    }
}

/// Whether `a < b` for all sizes or for none.
pub(super) fn less(a: &Dim, b: &Dim) -> Option<bool> {
    less_or_equal(b, a).map(|v| !v)
}

/// The lesser if it is the same for all sizes.
pub(super) fn min(a: &Dim, b: &Dim) -> Option<Dim> {
    match (less_or_equal(a, b), less_or_equal(b, a)) {
        (Some(true), _) | (_, Some(false)) => Some(a.clone()),
        (_, Some(true)) | (Some(false), _) => Some(b.clone()),
        (None, None) => None,
    }
}

/// The greater if it is the same for all sizes.
pub(super) fn max(a: &Dim, b: &Dim) -> Option<Dim> {
    match (less_or_equal(a, b), less_or_equal(b, a)) {
        (Some(true), _) | (_, Some(false)) => Some(b.clone()),
        (_, Some(true)) | (Some(false), _) => Some(a.clone()),
        (None, None) => None,
    }
}

/// A truth value as an element.
pub(super) fn truth(v: bool) -> Dim {
    Dim::fixed(i64::from(v))
}

/// An element as a truth value, where its being zero does not depend on the sizes.
pub(super) fn is_true(d: &Dim) -> Option<bool> {
    d.equals(&Dim::fixed(0)).map(|zero| !zero)
}
