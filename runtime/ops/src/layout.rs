//! Sizes, strides and index arithmetic over row-major tensors, shared by every operator.
//!
//! Strides count elements. They are added with wrapping arithmetic, so that a negative step is its two's complement.
//! Products of sizes saturate: a tensor with a zero dimension may have others of any size, and is never read.

use std::borrow::Cow;

use crate::OpError;
use crate::call::Call;

/// Product of sizes.
pub(crate) fn product(shape: &[usize]) -> usize {
    if shape.contains(&0) {
        return 0;
    }
    shape.iter().fold(1, |a, &d| a.saturating_mul(d))
}

/// Row-major strides of `shape`.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        out[i - 1] = out[i].saturating_mul(shape[i]);
    }
    out
}

/// Strides with which a tensor of `shape` is read as one of shape `out`, to which it broadcasts.
pub(crate) fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let lead = out.len() - shape.len();
    let mut result = vec![0; lead];
    result.extend(
        strides(shape)
            .into_iter()
            .zip(shape)
            .map(|(s, &d)| if d == 1 { 0 } else { s }),
    );
    result
}

/// The shape to which all of `shapes` broadcast by NumPy's rule.
pub(crate) fn broadcast_shapes(
    call: &Call<'_>,
    shapes: &[&[usize]],
) -> Result<Vec<usize>, OpError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1usize; rank];
    for shape in shapes {
        for (o, &d) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                let all = shapes.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>();
                return Err(call.shape_error(format!(
                    "shapes {} do not broadcast together",
                    all.join(" and ")
                )));
            }
        }
    }
    Ok(out)
}

/// Checks that `shape` broadcasts to exactly `out`.
pub(crate) fn expect_broadcasts_to(
    call: &Call<'_>,
    shape: &[usize],
    out: &[usize],
) -> Result<(), OpError> {
    if broadcast_shapes(call, &[shape, out])? == out {
        Ok(())
    } else {
        Err(call.shape_error(format!("shape {shape:?} does not broadcast to {out:?}")))
    }
}

/// Calls `f` with the offset into each of `N` tensors of every index of `shape`, in row-major order.
pub(crate) fn for_each_index<const N: usize>(
    shape: &[usize],
    strides: [&[usize]; N],
    start: [usize; N],
    mut f: impl FnMut([usize; N]),
) {
    if shape.contains(&0) {
        return;
    }
    let mut index = vec![0usize; shape.len()];
    let mut at = start;
    loop {
        f(at);
        let mut axis = shape.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            if index[axis] < shape[axis] {
                for (a, s) in at.iter_mut().zip(&strides) {
                    *a = a.wrapping_add(s[axis]);
                }
                break;
            }
            for (a, s) in at.iter_mut().zip(&strides) {
                *a = a.wrapping_sub(s[axis].wrapping_mul(index[axis] - 1));
            }
            index[axis] = 0;
        }
    }
}

/// Merges neighbouring dimensions that every tensor walks as one, and drops those of size one.
fn coalesce<const N: usize>(
    shape: &[usize],
    strides: [&[usize]; N],
) -> (Vec<usize>, [Vec<usize>; N]) {
    let mut sizes: Vec<usize> = Vec::new();
    let mut steps: [Vec<usize>; N] = std::array::from_fn(|_| Vec::new());
    for (axis, &d) in shape.iter().enumerate() {
        if d == 1 {
            continue;
        }
        let joins = !sizes.is_empty()
            && (0..N).all(|t| steps[t].last().copied() == Some(strides[t][axis].wrapping_mul(d)));
        if joins {
            let last = sizes.len() - 1;
            sizes[last] *= d;
            for t in 0..N {
                steps[t][last] = strides[t][axis];
            }
        } else {
            sizes.push(d);
            for t in 0..N {
                steps[t].push(strides[t][axis]);
            }
        }
    }
    (sizes, steps)
}

/// Reads `src` with `strides` from `start` as a row-major tensor of `shape`.
pub(crate) fn copy_strided<T: Copy>(
    src: &[T],
    start: usize,
    shape: &[usize],
    strides: &[usize],
) -> Vec<T> {
    if shape.contains(&0) {
        return Vec::new();
    }
    let (sizes, [steps]) = coalesce(shape, [strides]);
    let Some((&row, outer)) = sizes.split_last() else {
        return vec![src[start]];
    };
    let step = steps[outer.len()];
    let mut out = Vec::with_capacity(product(&sizes));
    for_each_index(outer, [&steps[..outer.len()]], [start], |[at]| {
        if step == 1 {
            out.extend_from_slice(&src[at..at + row]);
        } else {
            let mut i = at;
            for _ in 0..row {
                out.push(src[i]);
                i = i.wrapping_add(step);
            }
        }
    });
    out
}

/// Copies `src` of `shape`, which broadcasts to `out`, to that shape.
pub(crate) fn expand<T: Copy>(src: &[T], shape: &[usize], out: &[usize]) -> Vec<T> {
    copy_strided(src, 0, out, &broadcast_strides(shape, out))
}

/// Moves axis `perm[i]` of `src` to place `i`.
pub(crate) fn permute<T: Copy>(src: &[T], shape: &[usize], perm: &[usize]) -> Vec<T> {
    let from = strides(shape);
    let sizes: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
    let steps: Vec<usize> = perm.iter().map(|&p| from[p]).collect();
    copy_strided(src, 0, &sizes, &steps)
}

/// `src` of `shape`, which broadcasts to `out`, at that shape; copied only if it has to be.
pub(crate) fn expanded<'a, T: Copy>(src: &'a [T], shape: &[usize], out: &[usize]) -> Cow<'a, [T]> {
    if shape == out {
        Cow::Borrowed(src)
    } else {
        Cow::Owned(expand(src, shape, out))
    }
}

/// Applies `f` to corresponding elements of `a` and `b`, which broadcast to `out`.
///
/// This is instantiated for every function and element type, hence walks broadcast operands by copying them first.
pub(crate) fn zip_broadcast<A: Copy, B: Copy, R>(
    (a, a_shape): (&[A], &[usize]),
    (b, b_shape): (&[B], &[usize]),
    out: &[usize],
    f: impl Fn(A, B) -> R,
) -> Vec<R> {
    let (a, b) = (expanded(a, a_shape, out), expanded(b, b_shape, out));
    a.iter().zip(b.iter()).map(|(&x, &y)| f(x, y)).collect()
}

/// A tensor seen as rows along some of its axes.
pub(crate) struct Rows<T> {
    /// The rows, one after the other, in row-major order of the other axes.
    pub(crate) data: Vec<T>,
    /// Elements in a row.
    pub(crate) len: usize,
    /// Number of rows, also if `len` is zero.
    pub(crate) count: usize,
    perm: Vec<usize>,
    shape: Vec<usize>,
}

/// Moves `axes` last, so that what they span is contiguous.
pub(crate) fn rows<T: Copy>(src: &[T], shape: &[usize], axes: &[usize]) -> Rows<T> {
    let mut perm: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
    let count = perm.iter().map(|&a| shape[a]).collect::<Vec<_>>();
    perm.extend((0..shape.len()).filter(|a| axes.contains(a)));
    let len = axes.iter().map(|&a| shape[a]).collect::<Vec<_>>();
    Rows {
        data: permute(src, shape, &perm),
        len: product(&len),
        count: product(&count),
        perm,
        shape: shape.to_vec(),
    }
}

impl<T: Copy> Rows<T> {
    /// Calls `f` with each row, in place.
    pub(crate) fn for_each(&mut self, mut f: impl FnMut(&mut [T])) {
        if self.len == 0 {
            return;
        }
        self.data.chunks_exact_mut(self.len).for_each(&mut f);
    }

    /// Applies `f` to each row, which may be empty.
    pub(crate) fn map<R>(&self, mut f: impl FnMut(&[T]) -> R) -> Vec<R> {
        if self.len == 0 {
            return (0..self.count).map(|_| f(&[])).collect();
        }
        self.data.chunks_exact(self.len).map(f).collect()
    }

    /// Rows of other elements, of length `n` along `axis`, in the same order of axes.
    pub(crate) fn resized<R>(&self, data: Vec<R>, axis: usize, n: usize) -> Rows<R> {
        let mut shape = self.shape.clone();
        shape[axis] = n;
        Rows {
            data,
            len: n,
            count: self.count,
            perm: self.perm.clone(),
            shape,
        }
    }

    /// Brings the axes back to where they were.
    pub(crate) fn into_original_order(self) -> Vec<T> {
        let shape: Vec<usize> = self.perm.iter().map(|&p| self.shape[p]).collect();
        permute(&self.data, &shape, &inverse(&self.perm))
    }
}

/// The permutation that undoes `perm`.
pub(crate) fn inverse(perm: &[usize]) -> Vec<usize> {
    let mut out = vec![0; perm.len()];
    for (i, &p) in perm.iter().enumerate() {
        out[p] = i;
    }
    out
}
