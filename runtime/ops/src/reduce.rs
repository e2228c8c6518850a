//! Operators that combine the elements along some dimensions: reductions, arg-max, cumulative sums, top-k.
//!
//! The reduced dimensions are moved last, so that each result depends on one contiguous row. Floats are summed in double
//! precision and rounded once.

use std::cmp::Ordering;

use crate::call::{Call, OpResult, OpResults};
use crate::layout::{product, rows};
use crate::number::{Number, for_number, sum_f64};
use crate::{DType, Element, OpError, Operator};

/// The dimensions that operand 1 names, or all; `None` if nothing is to be reduced.
fn reduced_axes(call: &Call<'_>, rank: usize) -> Result<Option<Vec<usize>>, OpError> {
    let axes = call.optional_integers(1)?.unwrap_or_default();
    if !axes.is_empty() {
        return call.normalize_axes(&axes, rank).map(Some);
    }
    Ok((!call.flag("noop_with_empty_axes")).then(|| (0..rank).collect()))
}

/// The shape of a reduction over `axes`, and the same with these dimensions kept as ones if `keepdims` is set.
fn reduced_shape(call: &Call<'_>, shape: &[usize], axes: &[usize]) -> Vec<usize> {
    let keep = call.flag("keepdims");
    shape
        .iter()
        .enumerate()
        .filter(|(a, _)| keep || !axes.contains(a))
        .map(|(a, &d)| if axes.contains(&a) { 1 } else { d })
        .collect()
}

/// `ReduceSum`, `ReduceMean` and the rest of the family. Without axes and with `noop_with_empty_axes` each element is
/// reduced alone.
pub(crate) fn reduce(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => reduce_numbers::<T>(call), else reduce_booleans(call))
}

/// Applies `f` to each row of elements that are reduced together.
fn reduce_rows<T: Element>(call: &Call<'_>, f: &dyn Fn(&[T]) -> T) -> OpResult {
    let x = call.operand(0)?;
    let axes = reduced_axes(call, x.rank())?.unwrap_or_default();
    let shape = reduced_shape(call, x.shape(), &axes);
    call.size(&shape, T::DTYPE)?;
    let data = rows(call.slice::<T>(0)?, x.shape(), &axes).map(f);
    call.tensor(&shape, data)
}

fn reduce_numbers<T: Number>(call: &Call<'_>) -> OpResult {
    let is_float = T::DTYPE.is_float();
    let real = |f: &dyn Fn(&mut dyn Iterator<Item = f64>) -> f64| {
        reduce_rows(call, &|row: &[T]| {
            T::from_f64(f(&mut row.iter().map(|v| v.to_f64())))
        })
    };
    match call.op {
        Operator::ReduceMax => reduce_rows(call, &|row: &[T]| {
            row.iter().fold(T::LOWEST, |a, &b| a.greatest(b))
        }),
        Operator::ReduceMin => reduce_rows(call, &|row: &[T]| {
            row.iter().fold(T::HIGHEST, |a, &b| a.least(b))
        }),
        Operator::ReduceSum if is_float => reduce_rows(call, &|row: &[T]| T::from_f64(sum(row))),
        Operator::ReduceSum => reduce_rows(call, &|row: &[T]| {
            row.iter().fold(T::ZERO, |a, &b| a.add(b))
        }),
        Operator::ReduceMean if is_float => {
            reduce_rows(call, &|row: &[T]| T::from_f64(sum(row) / row.len() as f64))
        }
        Operator::ReduceMean => reduce_rows(call, &|row: &[T]| {
            T::from_f64((sum(row) / row.len() as f64).trunc())
        }),
        Operator::ReduceProd if is_float => real(&|row| row.product()),
        Operator::ReduceProd => {
            reduce_rows(call, &|row: &[T]| row.iter().fold(T::ONE, |a, &b| a.mul(b)))
        }
        Operator::ReduceL1 if is_float => real(&|row| sum_f64(row.map(f64::abs))),
        Operator::ReduceL1 => reduce_rows(call, &|row: &[T]| {
            row.iter().fold(T::ZERO, |a, &b| a.add(b.abs()))
        }),
        Operator::ReduceL2 => real(&|row| sum_f64(row.map(|v| v * v)).sqrt()),
        Operator::ReduceSumSquare if is_float => real(&|row| sum_f64(row.map(|v| v * v))),
        Operator::ReduceSumSquare => reduce_rows(call, &|row: &[T]| {
            row.iter().fold(T::ZERO, |a, &b| a.add(b.mul(b)))
        }),
        Operator::ReduceLogSum => real(&|row| sum_f64(row).ln()),
        Operator::ReduceLogSumExp => reduce_rows(call, &|row: &[T]| {
            let max = row.iter().fold(T::LOWEST, |a, &b| a.greatest(b)).to_f64();
            if max.is_infinite() {
                return T::from_f64(max);
            }
            T::from_f64(max + sum_f64(row.iter().map(|v| (v.to_f64() - max).exp())).ln())
        }),
        other => Err(Call::not_dispatched(other)),
    }
}

fn sum<T: Number>(row: &[T]) -> f64 {
    sum_f64(row.iter().map(|v| v.to_f64()))
}

fn reduce_booleans(call: &Call<'_>) -> OpResult {
    match call.op {
        Operator::ReduceMax => reduce_rows(call, &|row: &[bool]| row.contains(&true)),
        Operator::ReduceMin => reduce_rows(call, &|row: &[bool]| !row.contains(&false)),
        _ => Err(call.dtype_error(0, DType::Bool)),
    }
}

/// `ArgMax` and `ArgMin`: the first place of the extreme, or the last if `select_last_index` is set. NaN is more extreme
/// than any number.
pub(crate) fn arg_extreme(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let x = call.operand(0)?;
        let axis = call.axis("axis", x.rank())?;
        let shape = reduced_shape(call, x.shape(), &[axis]);
        let size = call.size(&shape, DType::I64)?;
        if size == 0 {
            return call.tensor(&shape, Vec::<i64>::new());
        }
        if x.shape()[axis] == 0 {
            return Err(call.shape_error("there is no extreme of nothing"));
        }
        let last = call.flag("select_last_index");
        let better = |a: T, b: T| {
            let strictly = match call.op {
                Operator::ArgMin => a < b || (a.is_nan() && !b.is_nan()),
                _ => a > b || (a.is_nan() && !b.is_nan()),
            };
            strictly || (last && (a == b || (a.is_nan() && b.is_nan())))
        };
        let place = |row: &[T]| {
            let best = (1..row.len()).fold(
                0,
                |best, i| if better(row[i], row[best]) { i } else { best },
            );
            best as i64
        };
        call.tensor(
            &shape,
            rows(call.slice::<T>(0)?, x.shape(), &[axis]).map(place),
        )
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `CumSum` along the axis that operand 1 names.
pub(crate) fn cum_sum(call: &Call<'_>) -> OpResult {
    fn apply<T: Number>(call: &Call<'_>) -> OpResult {
        let x = call.operand(0)?;
        let axis = call.normalize_axis(call.integer(1)?, x.rank())?;
        let (exclusive, reverse) = (call.flag("exclusive"), call.flag("reverse"));
        let mut r = rows(call.slice::<T>(0)?, x.shape(), &[axis]);
        r.for_each(|row| {
            if reverse {
                row.reverse();
            }
            let (mut whole, mut real) = (T::ZERO, 0.0f64);
            for v in row.iter_mut() {
                let before = if T::DTYPE.is_float() {
                    T::from_f64(real)
                } else {
                    whole
                };
                real += v.to_f64();
                whole = whole.add(*v);
                let after = if T::DTYPE.is_float() {
                    T::from_f64(real)
                } else {
                    whole
                };
                *v = if exclusive { before } else { after };
            }
            if reverse {
                row.reverse();
            }
        });
        call.tensor(x.shape(), r.into_original_order())
    }
    let x = call.operand(0)?;
    for_number!(x.dtype(), T => apply::<T>(call), else Err(call.dtype_error(0, x.dtype())))
}

/// `TopK`: the `k` greatest (or least) along `axis` in order, and their places; of equal ones the first comes first.
/// NaN counts as greatest.
pub(crate) fn top_k(call: &Call<'_>) -> OpResults {
    fn apply<T: Number>(call: &Call<'_>, axis: usize, k: usize) -> OpResults {
        let x = call.operand(0)?;
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        call.size(&shape, DType::I64)?;
        let largest = call.flag("largest");
        let compare = |a: T, b: T| match (a.is_nan(), b.is_nan()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => a.partial_cmp(&b).expect("neither is NaN"),
        };
        let r = rows(call.slice::<T>(0)?, x.shape(), &[axis]);
        let (mut values, mut places) = (Vec::new(), Vec::new());
        if product(&shape) != 0 {
            r.map(|row| {
                let mut order: Vec<usize> = (0..row.len()).collect();
                order.sort_by(|&i, &j| {
                    let c = compare(row[i], row[j]);
                    if largest { c.reverse() } else { c }
                });
                values.extend(order[..k].iter().map(|&i| row[i]));
                places.extend(order[..k].iter().map(|&i| i as i64));
            });
        }
        let values = r.resized(values, axis, k).into_original_order();
        let places = r.resized(places, axis, k).into_original_order();
        Ok(vec![
            call.tensor(&shape, values)?,
            call.tensor(&shape, places)?,
        ])
    }
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let k = call.to_size(1, call.integer(1)?)?;
    if x.shape()[axis] < k {
        return Err(call.value_error(1, format!("{k} of {} elements", x.shape()[axis])));
    }
    for_number!(x.dtype(), T => apply::<T>(call, axis, k), else Err(call.dtype_error(0, x.dtype())))
}
