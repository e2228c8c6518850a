//! `Einsum`: sums of products of elements that share indices, brought to matrix products two operands at a time.

use crate::call::{Call, OpResult};
use crate::cast::{convert, to_numbers};
use crate::layout::{copy_strided, permute, product, rows, strides};
use crate::matmul::{Factor, Matrix, multiply};
use crate::{DType, OpError, Tensor};

/// An index of the equation: a letter, or a dimension that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(std::cmp::Reverse<usize>),
    Letter(char),
}

/// A term of the equation, before the rank is known.
struct Term {
    before: Vec<char>,
    after: Vec<char>,
    has_ellipsis: bool,
}

impl Term {
    fn parse(call: &Call<'_>, text: &str) -> Result<Term, OpError> {
        let bad = |c: &str| call.attribute_error("equation", format!("unexpected `{c}`"));
        let letters = |s: &str| match s.chars().find(|c| !c.is_ascii_alphabetic()) {
            Some(c) => Err(bad(&c.to_string())),
            None => Ok(s.chars().collect::<Vec<_>>()),
        };
        let (before, after, has_ellipsis) = match text.split_once("...") {
            Some((before, after)) => (before, after, true),
            None => (text, "", false),
        };
        Ok(Term {
            before: letters(before)?,
            after: letters(after)?,
            has_ellipsis,
        })
    }

    /// The labels, the ellipsis standing for `n` dimensions.
    fn labels(&self, n: usize) -> Vec<Label> {
        let n = if self.has_ellipsis { n } else { 0 };
        let ellipsis = (0..n).rev().map(|i| Label::Ellipsis(std::cmp::Reverse(i)));
        let letters = |s: &[char]| s.iter().map(|&c| Label::Letter(c)).collect::<Vec<_>>();
        letters(&self.before)
            .into_iter()
            .chain(ellipsis)
            .chain(letters(&self.after))
            .collect()
    }
}

/// A tensor whose dimensions have different labels.
struct Labelled<T> {
    labels: Vec<Label>,
    shape: Vec<usize>,
    data: Vec<T>,
}

/// `Einsum`.
pub(crate) fn einsum(call: &Call<'_>) -> OpResult {
    let dtype = call.operand(0)?.dtype();
    match dtype {
        DType::F64 => apply::<f64>(call, dtype),
        DType::F32 | DType::F16 | DType::BF16 => apply::<f32>(call, dtype),
        DType::I8
        | DType::I16
        | DType::I32
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::I64
        | DType::U64 => apply::<i64>(call, dtype),
        DType::Bool => Err(call.dtype_error(0, dtype)),
    }
}

fn apply<T: Factor>(call: &Call<'_>, dtype: DType) -> OpResult {
    let equation: String = call
        .str("equation")
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (&equation[..], None),
    };
    let terms = left
        .split(',')
        .map(|t| Term::parse(call, t))
        .collect::<Result<Vec<_>, _>>()?;
    let views = call.all_operands()?;
    if terms.len() != views.len() {
        let message = format!("{} terms for {} operands", terms.len(), views.len());
        return Err(call.attribute_error("equation", message));
    }
    let mut n_ellipsis = 0;
    let mut inputs = Vec::new();
    for (i, (term, view)) in terms.iter().zip(&views).enumerate() {
        call.expect_dtype(i, dtype)?;
        let n_letters = term.before.len() + term.after.len();
        let n = view
            .rank()
            .checked_sub(n_letters)
            .filter(|&n| n == 0 || term.has_ellipsis)
            .ok_or_else(|| {
                call.shape_error(format!(
                    "operand {i} of rank {} does not fit `{equation}`",
                    view.rank()
                ))
            })?;
        n_ellipsis = n_ellipsis.max(n);
        inputs.push(diagonal(
            call,
            term.labels(n),
            view.shape(),
            &to_numbers::<T>(&view.data()),
        )?);
    }
    let output = match right {
        Some(text) => Term::parse(call, text)?.labels(n_ellipsis),
        None => implied_output(&terms, n_ellipsis),
    };
    let is_unknown = |l: &&Label| !inputs.iter().any(|t| t.labels.contains(l));
    let repeats = (1..output.len()).any(|i| output[..i].contains(&output[i]));
    if repeats || output.iter().find(is_unknown).is_some() {
        return Err(call.attribute_error(
            "equation",
            "the result's indices repeat or are not in a term",
        ));
    }
    broadcast_sizes(call, &inputs)?;
    let mut rest = inputs.into_iter();
    let mut result = rest
        .next()
        .ok_or_else(|| call.attribute_error("equation", "has no terms"))?;
    let mut remaining: Vec<Labelled<T>> = rest.collect();
    while !remaining.is_empty() {
        let next = remaining.remove(0);
        let keep = |l: &Label| output.contains(l) || remaining.iter().any(|t| t.labels.contains(l));
        result = contract(call, result, next, keep)?;
    }
    result = sum_out(result, |l| output.contains(l));
    let place = |l: &Label| {
        result
            .labels
            .iter()
            .position(|r| r == l)
            .expect("labels were checked")
    };
    let perm: Vec<usize> = output.iter().map(place).collect();
    let shape: Vec<usize> = perm.iter().map(|&p| result.shape[p]).collect();
    let data = T::into_data(permute(&result.data, &result.shape, &perm));
    Tensor::try_new(shape, convert(&data.view(), dtype))
        .ok_or_else(|| call.shape_error("sizes disagree"))
}

/// Without `->`: the ellipsis, then the letters that occur once, in alphabetic order.
fn implied_output(terms: &[Term], n_ellipsis: usize) -> Vec<Label> {
    let mut letters: Vec<char> = terms
        .iter()
        .flat_map(|t| t.before.iter().chain(&t.after))
        .copied()
        .collect();
    letters.sort_unstable();
    let once = |c: &char| letters.iter().filter(|l| *l == c).count() == 1;
    let ellipsis = (0..n_ellipsis)
        .rev()
        .map(|i| Label::Ellipsis(std::cmp::Reverse(i)));
    ellipsis
        .chain(letters.iter().copied().filter(once).map(Label::Letter))
        .collect()
}

/// Reads the diagonal along dimensions with the same label.
fn diagonal<T: Factor>(
    call: &Call<'_>,
    labels: Vec<Label>,
    shape: &[usize],
    data: &[T],
) -> Result<Labelled<T>, OpError> {
    let mut unique: Vec<Label> = Vec::new();
    let (mut sizes, mut steps) = (Vec::new(), Vec::new());
    for ((label, &d), step) in labels.into_iter().zip(shape).zip(strides(shape)) {
        match unique.iter().position(|&u| u == label) {
            Some(i) if sizes[i] == d => steps[i] += step,
            Some(i) => {
                return Err(call.shape_error(format!("{label:?} is of sizes {} and {d}", sizes[i])));
            }
            None => {
                unique.push(label);
                sizes.push(d);
                steps.push(step);
            }
        }
    }
    let data = copy_strided(data, 0, &sizes, &steps);
    Ok(Labelled {
        labels: unique,
        shape: sizes,
        data,
    })
}

/// Checks that a label has the same size, or one, wherever it occurs.
fn broadcast_sizes<T>(call: &Call<'_>, inputs: &[Labelled<T>]) -> Result<(), OpError> {
    let mut known: Vec<(Label, usize)> = Vec::new();
    for (&label, &d) in inputs.iter().flat_map(|t| t.labels.iter().zip(&t.shape)) {
        match known.iter_mut().find(|(l, _)| *l == label) {
            Some((_, size)) if *size == 1 => *size = d,
            Some((_, size)) if d != 1 && d != *size => {
                return Err(call.shape_error(format!("{label:?} is of sizes {size} and {d}")));
            }
            Some(_) => {}
            None => known.push((label, d)),
        }
    }
    Ok(())
}

/// Sums over the labels that are not kept.
fn sum_out<T: Factor>(t: Labelled<T>, keep: impl Fn(&Label) -> bool) -> Labelled<T> {
    let summed: Vec<usize> = (0..t.labels.len())
        .filter(|&a| !keep(&t.labels[a]))
        .collect();
    if summed.is_empty() {
        return t;
    }
    let sum = |row: &[T]| {
        T::round(
            row.iter()
                .fold(T::Sum::default(), |a, &b| T::accumulate(a, b)),
        )
    };
    let data = rows(&t.data, &t.shape, &summed).map(sum);
    let kept: Vec<usize> = (0..t.labels.len())
        .filter(|a| !summed.contains(a))
        .collect();
    Labelled {
        labels: kept.iter().map(|&a| t.labels[a]).collect(),
        shape: kept.iter().map(|&a| t.shape[a]).collect(),
        data,
    }
}

/// Multiplies two tensors over their common labels and sums those that are not kept: a batch of matrix products.
fn contract<T: Factor>(
    call: &Call<'_>,
    a: Labelled<T>,
    b: Labelled<T>,
    keep: impl Fn(&Label) -> bool,
) -> Result<Labelled<T>, OpError> {
    let a = sum_out(a, |l| keep(l) || b.labels.contains(l));
    let b = sum_out(b, |l| keep(l) || a.labels.contains(l));
    let size = |t: &Labelled<T>, l: &Label| {
        t.labels
            .iter()
            .position(|x| x == l)
            .map_or(1, |i| t.shape[i])
    };
    let common: Vec<Label> = a
        .labels
        .iter()
        .copied()
        .filter(|l| b.labels.contains(l))
        .collect();
    let batch: Vec<Label> = common.iter().copied().filter(&keep).collect();
    let inner: Vec<Label> = common.iter().copied().filter(|l| !keep(l)).collect();
    let left: Vec<Label> = a
        .labels
        .iter()
        .copied()
        .filter(|l| !common.contains(l))
        .collect();
    let right: Vec<Label> = b
        .labels
        .iter()
        .copied()
        .filter(|l| !common.contains(l))
        .collect();
    let larger = |l: &Label| match (size(&a, l), size(&b, l)) {
        (1, d) => d,
        (d, _) => d,
    };
    let sizes = |labels: &[Label]| labels.iter().map(larger).collect::<Vec<_>>();
    let mut shape = sizes(&batch);
    shape.extend(sizes(&left).into_iter().chain(sizes(&right)));
    call.size(&shape, DType::F64)?;
    let x = arrange(call, &a, &[&batch, &left, &inner], larger)?;
    let y = arrange(call, &b, &[&batch, &inner, &right], larger)?;
    let [m, n, k] = [&left, &right, &inner].map(|l| product(&sizes(l)));
    let n_batches = product(&sizes(&batch));
    let mut data = Vec::new();
    if product(&shape) != 0 {
        for i in 0..n_batches {
            let x = Matrix::row_major(&x[i * m * k..(i + 1) * m * k], k);
            let y = Matrix::row_major(&y[i * k * n..(i + 1) * k * n], n);
            data.extend(multiply([m, n, k], x, y));
        }
    }
    let labels = [batch, left, right].concat();
    Ok(Labelled {
        labels,
        shape,
        data,
    })
}

/// The elements in the order of groups of labels, dimensions of size one repeated to the size of the label.
fn arrange<T: Factor>(
    call: &Call<'_>,
    t: &Labelled<T>,
    groups: &[&[Label]],
    size: impl Fn(&Label) -> usize,
) -> Result<Vec<T>, OpError> {
    let from = strides(&t.shape);
    let order = groups.concat();
    let shape: Vec<usize> = order.iter().map(&size).collect();
    call.size(&shape, T::DTYPE)?;
    let step = |l: &Label| {
        let axis = t
            .labels
            .iter()
            .position(|x| x == l)
            .expect("a label of this tensor");
        if t.shape[axis] == 1 { 0 } else { from[axis] }
    };
    let steps: Vec<usize> = order.iter().map(step).collect();
    Ok(copy_strided(&t.data, 0, &shape, &steps))
}
