//! Sums, means and extremes over dimensions of a row-major tensor that follow each other.
//!
//! The tensor is `[outer, n, inner]`, the result `[outer, inner]`. Each element of the result is computed by one task in an order
//! that follows from `n` alone, so that its bits do not depend on the number of threads. Floats are summed in double precision and
//! rounded once.

use std::ops::{Range, RangeInclusive};

use bytemuck::Pod;
use lancet_artifact::Reduction;
use lancet_ops::{DType, Element};

use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Accumulators of a row: enough for the sums of several vectors to run beside each other.
const LANES: usize = 8;

/// Columns that are reduced together.
const COLUMNS: usize = 64;

/// Elements that a task reads at least.
const TASK: usize = 8192;

pub(crate) struct Reduce {
    x: usize,
    reduction: Reduction,
    dtype: DType,
    /// Elements of a row, one `inner` from the next.
    n: usize,
    inner: usize,
    parts: Parts,
}

/// What a row becomes: an accumulator begins as `start`, takes elements by `add` and other accumulators by `merge`.
struct Fold<A, Add, Merge, Finish> {
    start: A,
    add: Add,
    merge: Merge,
    finish: Finish,
}

impl Reduce {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        reduction: Reduction,
        axes: &Range<u32>,
    ) -> Result<Reduce, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let (from, to) = (sizes.shape(x), sizes.shape(out));
        let (start, end) = (axes.start as usize, axes.end as usize);
        let (outer, n, inner) = (&from[..start], &from[start..end], &from[end..]);
        let ones = if to.len() == from.len() { n.len() } else { 0 };
        let expected = (outer.iter().copied())
            .chain(std::iter::repeat_n(1, ones))
            .chain(inner.iter().copied());
        if !to.iter().copied().eq(expected) {
            return Err(format!("{reduction} of shape {from:?} to {to:?}"));
        }
        let n_results: usize = to.iter().product();
        // Sizes may be of any magnitude beside one that is zero.
        let count = |dims: &[usize]| dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d));
        let (n, inner) = (count(n), count(inner));
        let share = n_results / (4 * sizes.shared.pool.threads());
        let per_task = (TASK / n.max(1)).max(share).max(1);
        let per_task = match inner {
            1 => per_task,
            _ => per_task.next_multiple_of(COLUMNS),
        };
        let size = sizes.dtype(x).size_bytes();
        let part = |first: usize| first * size..n_results.min(first + per_task) * size;
        Ok(Reduce {
            x,
            reduction,
            dtype: sizes.dtype(x),
            n,
            inner,
            parts: Parts::new((0..n_results).step_by(per_task).map(part).collect()),
        })
    }

    pub(super) fn name(&self) -> &'static str {
        self.reduction.name()
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        match self.dtype {
            DType::F32 => self.floats(reads, out, workers),
            DType::I32 => {
                self.integers(reads, out, workers, i32::wrapping_add, i32::MIN..=i32::MAX)
            }
            DType::I64 => {
                self.integers(reads, out, workers, i64::wrapping_add, i64::MIN..=i64::MAX)
            }
            other => unreachable!("the check of the step lets no {other} in"),
        }
    }

    fn floats(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let n = match self.reduction {
            Reduction::Mean => self.n as f64,
            _ => 1.0,
        };
        let sum = |sum: f64, v: f32| sum + f64::from(v);
        let squares = |sum: f64, v: f32| sum + f64::from(v) * f64::from(v);
        let merge = |a: f64, b: f64| a + b;
        let greater = |a: f32, b: f32| if a.is_nan() || b < a { a } else { b };
        let less = |a: f32, b: f32| if a.is_nan() || a < b { a } else { b };
        match self.reduction {
            Reduction::Sum | Reduction::Mean => {
                let finish = |sum: f64| (sum / n) as f32;
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start: 0.0,
                        add: sum,
                        merge,
                        finish,
                    },
                )
            }
            Reduction::L2 => {
                let finish = |sum: f64| sum.sqrt() as f32;
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start: 0.0,
                        add: squares,
                        merge,
                        finish,
                    },
                )
            }
            Reduction::Max => {
                let start = f32::NEG_INFINITY;
                let finish = |v| v;
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start,
                        add: greater,
                        merge: greater,
                        finish,
                    },
                )
            }
            Reduction::Min => {
                let start = f32::INFINITY;
                let finish = |v| v;
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start,
                        add: less,
                        merge: less,
                        finish,
                    },
                )
            }
        }
    }

    fn integers<T: Element + Pod + Ord>(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
        add: impl Fn(T, T) -> T + Sync,
        range: RangeInclusive<T>,
    ) -> Result<(), Failure> {
        let finish = |v| v;
        match self.reduction {
            Reduction::Sum => {
                let start = T::zeroed();
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start,
                        add: &add,
                        merge: &add,
                        finish,
                    },
                )
            }
            Reduction::Max => {
                let (start, add) = (*range.start(), T::max);
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start,
                        add,
                        merge: add,
                        finish,
                    },
                )
            }
            Reduction::Min => {
                let (start, add) = (*range.end(), T::min);
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start,
                        add,
                        merge: add,
                        finish,
                    },
                )
            }
            Reduction::Mean | Reduction::L2 => {
                unreachable!("the check of the step lets no integers in")
            }
        }
    }

    fn rows<T, A, Add, Merge, Finish>(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
        fold: Fold<A, Add, Merge, Finish>,
    ) -> Result<(), Failure>
    where
        T: Element + Pod,
        A: Copy + Sync,
        Add: Fn(A, T) -> A + Sync,
        Merge: Fn(A, A) -> A + Sync,
        Finish: Fn(A) -> T + Sync,
    {
        let x: &[T] = reads
            .view(self.x)
            .as_slice()
            .expect("checked: of this type");
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            let first = self.parts.range(task).start / size_of::<T>();
            let y: &mut [T] = bytemuck::cast_slice_mut(y);
            if self.inner == 1 {
                for (i, y) in y.iter_mut().enumerate() {
                    *y = fold.row(&x[(first + i) * self.n..][..self.n]);
                }
                return;
            }
            let (mut at, mut rest) = (first, y);
            while !rest.is_empty() {
                let (row, column) = (at / self.inner, at % self.inner);
                let n = COLUMNS.min(self.inner - column).min(rest.len());
                let (y, after) = rest.split_at_mut(n);
                fold.columns(
                    &x[row * self.n * self.inner..],
                    self.inner,
                    self.n,
                    column,
                    y,
                );
                (at, rest) = (at + n, after);
            }
        })?;
        Ok(())
    }
}

impl<A: Copy, Add, Merge, Finish> Fold<A, Add, Merge, Finish> {
    fn row<T: Copy>(&self, row: &[T]) -> T
    where
        Add: Fn(A, T) -> A,
        Merge: Fn(A, A) -> A,
        Finish: Fn(A) -> T,
    {
        let mut lanes = [self.start; LANES];
        let whole = row.chunks_exact(LANES);
        let rest = whole.remainder();
        for elements in whole.chain(std::iter::once(rest)) {
            for (lane, &v) in lanes.iter_mut().zip(elements) {
                *lane = (self.add)(*lane, v);
            }
        }
        let mut n = LANES;
        while 1 < n {
            n /= 2;
            for i in 0..n {
                lanes[i] = (self.merge)(lanes[i], lanes[i + n]);
            }
        }
        (self.finish)(lanes[0])
    }

    /// At most [`COLUMNS`] columns, from `column` on, of the first `n` rows of `x[..][inner]`.
    fn columns<T: Copy>(&self, x: &[T], inner: usize, n: usize, column: usize, y: &mut [T])
    where
        Add: Fn(A, T) -> A,
        Finish: Fn(A) -> T,
    {
        let mut sums = [self.start; COLUMNS];
        let sums = &mut sums[..y.len()];
        for row in x.chunks_exact(inner).take(n) {
            for (sum, &v) in sums.iter_mut().zip(&row[column..]) {
                *sum = (self.add)(*sum, v);
            }
        }
        for (y, &sum) in y.iter_mut().zip(sums.iter()) {
            *y = (self.finish)(sum);
        }
    }
}
