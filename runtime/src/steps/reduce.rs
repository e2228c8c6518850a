//! Sums, means and extremes over dimensions of a row-major tensor that follow each other, or over the features of panels.
//!
//! The tensor is `[outer, n, inner]`, the result `[outer, inner]`; a panel is `[features, tokens]`. Each element of the result is
//! computed by one task in an order that follows from `n` alone, so that its bits do not depend on the number of threads. Floats are
//! summed in double precision and rounded once: rows that lie in one piece in eight accumulators, columns one behind the other.
//! Kernels reduce columns; a row of elements is eight columns, whose accumulators are merged here.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytemuck::Pod;
use lancet_artifact::{Float, KernelSpec, Layout, Reduction};
use lancet_ops::{DType, Element};

use crate::jit::Kernel;
use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::{Failure, Sizes, Workers};

/// Accumulators of a row: enough for the sums of several vectors to run beside each other.
const LANES: usize = 8;

/// Columns that are reduced together.
const COLUMNS: usize = 64;

/// Columns of the kernels, the most first.
const WIDTHS: [usize; 3] = [32, 16, LANES];

/// Elements that a task reads at least.
const TASK: usize = 8192;

pub(crate) struct Reduce {
    x: usize,
    reduction: Reduction,
    dtype: DType,
    form: Form,
    parts: Parts,
    /// By [`WIDTHS`].
    kernels: [Option<Kernel>; 3],
}

enum Form {
    /// Elements of a row, one `inner` from the next.
    RowMajor { n: usize, inner: usize },
    /// A panel of the operand for each of the result.
    Panels(PanelShape),
}

/// From elements to sums, and back.
type Conversions<T> = (fn(T) -> f64, fn(f64) -> T);

/// What a row becomes: an accumulator begins as `start`, takes elements by `add` and other accumulators by `merge`.
struct Fold<'k, A, Add, Merge, Finish> {
    start: A,
    add: Add,
    merge: Merge,
    finish: Finish,
    /// Kernels with these accumulators.
    kernels: &'k [Option<Kernel>; 3],
}

impl Reduce {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        reduction: Reduction,
        axes: &Range<u32>,
    ) -> Result<Reduce, String> {
        let (x, out) = (sizes.required(0), sizes.output());
        let dtype = sizes.dtype(x);
        let (form, parts) = if sizes.shared.program.values[out].layout == Layout::Panels {
            let y = sizes.panels(out);
            let parts = (0..y.n_panels()).map(|p| y.panel(p));
            let parts = parts.map(|r| r.start * 4..r.end * 4).collect();
            (Form::Panels(sizes.panels_like_output(0)?), parts)
        } else {
            bind_row_major(sizes, reduction, axes)?
        };
        let float = match dtype {
            DType::F32 => Some(Float::F32),
            DType::F64 => Some(Float::F64),
            _ => None,
        };
        let is_row = matches!(form, Form::RowMajor { inner: 1, .. });
        let kernel = |lanes: usize| {
            let spec = KernelSpec::Reduce {
                reduction: match reduction {
                    Reduction::Mean => Reduction::Sum,
                    other => other,
                },
                float: float?,
                lanes: lanes as u32,
            };
            (lanes == LANES || !is_row).then(|| sizes.kernel(spec))?
        };
        Ok(Reduce {
            x,
            reduction,
            dtype,
            form,
            parts: Parts::new(parts),
            kernels: WIDTHS.map(kernel),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        let kernel = self.kernels.iter().flatten().next();
        kernel.map(|k| Arc::clone(k.name()))
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
            DType::F32 => self.floats(reads, out, workers, (f64::from, |v| v as f32)),
            DType::F64 => self.floats(reads, out, workers, (|v| v, |v| v)),
            DType::I32 => {
                self.integers(reads, out, workers, i32::wrapping_add, i32::MIN..=i32::MAX)
            }
            DType::I64 => {
                self.integers(reads, out, workers, i64::wrapping_add, i64::MIN..=i64::MAX)
            }
            other => unreachable!("the check of the step lets no {other} in"),
        }
    }

    /// Reduces floats that `widen` makes `f64` and `round` makes of these.
    fn floats<T: Element + Pod + PartialOrd>(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
        (widen, round): Conversions<T>,
    ) -> Result<(), Failure> {
        let n = match self.reduction {
            Reduction::Mean => self.n() as f64,
            _ => 1.0,
        };
        let sum = |sum: f64, v: T| sum + widen(v);
        let squares = |sum: f64, v: T| sum + widen(v) * widen(v);
        let merge = |a: f64, b: f64| a + b;
        let is_nan = |v: T| v.partial_cmp(&v).is_none();
        let greater = |a: T, b: T| if is_nan(a) || b < a { a } else { b };
        let less = |a: T, b: T| if is_nan(a) || a < b { a } else { b };
        let kernels = &self.kernels;
        match self.reduction {
            Reduction::Sum | Reduction::Mean => {
                let finish = |sum: f64| round(sum / n);
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start: 0.0,
                        add: sum,
                        merge,
                        finish,
                        kernels,
                    },
                )
            }
            Reduction::L2 => {
                let finish = |sum: f64| round(sum.sqrt());
                self.rows(
                    reads,
                    out,
                    workers,
                    Fold {
                        start: 0.0,
                        add: squares,
                        merge,
                        finish,
                        kernels,
                    },
                )
            }
            Reduction::Max => {
                let start = round(f64::NEG_INFINITY);
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
                        kernels,
                    },
                )
            }
            Reduction::Min => {
                let start = round(f64::INFINITY);
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
                        kernels,
                    },
                )
            }
        }
    }

    /// Elements that become one.
    fn n(&self) -> usize {
        match &self.form {
            Form::RowMajor { n, .. } => *n,
            Form::Panels(x) => x.features,
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
        let kernels = &self.kernels;
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
                        kernels,
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
                        kernels,
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
                        kernels,
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
        fold: Fold<'_, A, Add, Merge, Finish>,
    ) -> Result<(), Failure>
    where
        T: Element + Pod,
        A: Pod + Sync,
        Add: Fn(A, T) -> A + Sync,
        Merge: Fn(A, A) -> A + Sync,
        Finish: Fn(A) -> T + Sync,
    {
        let of_panels = || bytemuck::cast_slice(reads.panels(self.x));
        let row_major = || reads.view(self.x).as_slice();
        let x: &[T] = match &self.form {
            Form::Panels(_) => of_panels(),
            Form::RowMajor { .. } => row_major().expect("checked: of this type"),
        };
        workers.team.for_each_part(&self.parts, out, |task, _, y| {
            let first = self.parts.range(task).start / size_of::<T>();
            let y: &mut [T] = bytemuck::cast_slice_mut(y);
            let (n, inner) = match &self.form {
                Form::Panels(panels) => {
                    let lanes = panels.lanes(task);
                    let x = &x[panels.panel(task)];
                    fold.columns(x, panels.stride(task), panels.features, 0, &mut y[..lanes]);
                    return;
                }
                Form::RowMajor { n, inner } => (*n, *inner),
            };
            if inner == 1 {
                for (i, y) in y.iter_mut().enumerate() {
                    *y = fold.row(&x[(first + i) * n..][..n]);
                }
                return;
            }
            let (mut at, mut rest) = (first, y);
            while !rest.is_empty() {
                let (row, column) = (at / inner, at % inner);
                let len = COLUMNS.min(inner - column).min(rest.len());
                let (y, after) = rest.split_at_mut(len);
                fold.columns(&x[row * n * inner..], inner, n, column, y);
                (at, rest) = (at + len, after);
            }
        })?;
        Ok(())
    }
}

/// The form of a reduction of a row-major tensor, and the bytes of the result that each task writes.
fn bind_row_major(
    sizes: &Sizes<'_>,
    reduction: Reduction,
    axes: &Range<u32>,
) -> Result<(Form, Vec<Range<usize>>), String> {
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
    let parts = (0..n_results).step_by(per_task).map(part).collect();
    Ok((Form::RowMajor { n, inner }, parts))
}

impl<A: Pod, Add, Merge, Finish> Fold<'_, A, Add, Merge, Finish> {
    fn row<T: Pod>(&self, row: &[T]) -> T
    where
        Add: Fn(A, T) -> A,
        Merge: Fn(A, A) -> A,
        Finish: Fn(A) -> T,
    {
        let mut lanes = [self.start; LANES];
        let mut whole = row.chunks_exact(LANES);
        let rest = whole.remainder();
        if let [.., Some(kernel)] = self.kernels {
            let stride = LANES * size_of::<T>();
            let lanes = bytemuck::cast_slice_mut(&mut lanes);
            kernel.reduce(bytemuck::cast_slice(row), whole.len(), stride, lanes);
            whole = [].chunks_exact(LANES);
        }
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
    fn columns<T: Pod>(&self, x: &[T], inner: usize, n: usize, column: usize, y: &mut [T])
    where
        Add: Fn(A, T) -> A,
        Finish: Fn(A) -> T,
    {
        let mut sums = [self.start; COLUMNS];
        let sums = &mut sums[..y.len()];
        let mut done = 0;
        for (kernel, width) in self.kernels.iter().zip(WIDTHS) {
            while let Some(kernel) = kernel.as_ref().filter(|_| done + width <= y.len()) {
                let x = x.get(column + done..).unwrap_or(&[]);
                let sums = bytemuck::cast_slice_mut(&mut sums[done..done + width]);
                kernel.reduce(bytemuck::cast_slice(x), n, inner * size_of::<T>(), sums);
                done += width;
            }
        }
        for row in x.chunks_exact(inner).take(n) {
            for (sum, &v) in sums[done..].iter_mut().zip(&row[column + done..]) {
                *sum = (self.add)(*sum, v);
            }
        }
        for (y, &sum) in y.iter_mut().zip(sums.iter()) {
            *y = (self.finish)(sum);
        }
    }
}
