//! Writes einsums of one or two operands as transpositions, views and a matrix product.
//!
//! Before:
//! ```ir
//! graph @g(%q: f32[b, s, 2, 4], %k: f32[b, t, 2, 4]) dims(b, s, t) {
//!   %0 = einsum %q, %k {equation = "bqhd,bkhd->bhqk"} : f32[b, 2, s, t]
//!   return %0
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%q: f32[b, s, 2, 4], %k: f32[b, t, 2, 4]) dims(b, s, t) {
//!   %0 = transpose %q {perm = [0, 2, 1, 3]} : f32[b, 2, s, 4]
//!   %1 = transpose %k {perm = [0, 2, 3, 1]} : f32[b, 2, 4, t]
//!   %2 = matmul %0, %1 : f32[b, 2, s, t]
//!   return %2
//! }
//! ```
//!
//! Identities: the labels of two operands fall into those of both and the result (`n`, a batch of products), of both alone
//! (`k`, summed), and of one operand and the result (`i`, `j`). With the labels of a group side by side, each group but `n` is one
//! axis, and
//!
//! ```text
//! y[n, i, j] = Σₖ a[n, i, k] b[n, k, j] = a · b        y[n, j, i] = bᵀ · aᵀ, whichever is the order of the result
//! ```
//!
//! A label of one operand that the result has in front of `n` is of the batch too, of size 1 in the other operand, if that
//! leaves a row. An einsum of one operand without sums is a transposition. Dimensions of an ellipsis are labels like others.
//!
//! Preconditions: `f32`; `->` in the equation; no label twice in a term; every label of one operand alone is in the result; sizes
//! that are summed, or move together as one axis, known to be equal. Otherwise the pass declines with a remark.
//!
//! Numeric effect: reassociates.
//!
//! Source: the definition of `Einsum`; constant operands are first raised to layers by `raise-block-linear`.

use lancet_ir::{Dim, Graph, Value};
use lancet_ops::{Attributes, DType, Operator};

use crate::heads::{transpose, view};
use crate::matcher::{is_dtype, result};
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "expand-einsum",
    summary: "write einsums as transpositions and a matrix product",
    options: &[],
    new: || Box::new(ExpandEinsum),
};

struct ExpandEinsum;

/// An index of an equation: a letter, or a dimension that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Label {
    Letter(char),
    Ellipsis(usize),
}

impl Pass for ExpandEinsum {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut rewrites = Rewrites::new();
        for node in graph.order() {
            let from = result(node);
            if graph.op(node).operator() != Some(Operator::Einsum)
                || !is_dtype(graph, from, DType::F32)
            {
                continue;
            }
            let operands = graph.operands(node).into_iter().flatten();
            let operands: Vec<Value> = operands.map(|v| rewrites.resolve(v)).collect();
            let equation = graph.attributes(node).str("equation").unwrap_or_default();
            let Some(terms) = terms(graph, equation, &operands) else {
                let reason = format!("`{equation}` has repeated or implied indices");
                cx.missed(graph, node, reason);
                continue;
            };
            let expanded = match (&operands[..], &terms[..]) {
                (&[x], [of_x, out]) => reordered(graph, x, of_x, out)?,
                (&[a, b], [of_a, of_b, out]) => {
                    let factor = |value, labels| Factor {
                        value,
                        labels,
                        shape: graph.shape(value),
                    };
                    let product = Product::of(factor(a, of_a), factor(b, of_b), out);
                    product.map(|p| p.write(graph)).transpose()?
                }
                _ => None,
            };
            match expanded {
                Some(to) => {
                    cx.applied(graph, node, "expanded einsum");
                    rewrites.replace(graph, from, to)?;
                }
                None => {
                    let equation = graph.attributes(node).str("equation").unwrap_or_default();
                    let reason = format!("`{equation}` is no single matrix product");
                    cx.missed(graph, node, reason);
                }
            }
        }
        Ok(rewrites.changed())
    }
}

/// The labels of each operand and of the result, which differ within a term.
pub(crate) fn terms(graph: &Graph, equation: &str, operands: &[Value]) -> Option<Vec<Vec<Label>>> {
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, out) = equation.split_once("->")?;
    let texts: Vec<&str> = left.split(',').collect();
    if texts.len() != operands.len() {
        return None;
    }
    let n_letters = |text: &str| text.chars().filter(char::is_ascii_alphabetic).count();
    let mut n_ellipsis = 0;
    let mut all = Vec::with_capacity(texts.len() + 1);
    for (text, &x) in texts.into_iter().zip(operands) {
        let n = graph.ty(x).rank().checked_sub(n_letters(text))?;
        n_ellipsis = n_ellipsis.max(n);
        all.push(labels(text, n)?);
    }
    all.push(labels(out, n_ellipsis)?);
    Some(all)
}

/// The labels of a term whose ellipsis stands for `n` dimensions.
fn labels(term: &str, n: usize) -> Option<Vec<Label>> {
    let (before, after) = match term.split_once("...") {
        Some(parts) => parts,
        None if term.contains('.') => return None,
        None => (term, ""),
    };
    let ellipsis = if term.contains("...") { n } else { 0 };
    let labels: Vec<Label> = (before.chars().map(Label::Letter))
        .chain((0..ellipsis).rev().map(Label::Ellipsis))
        .chain(after.chars().map(Label::Letter))
        .collect();
    let distinct = (1..labels.len()).all(|i| !labels[..i].contains(&labels[i]));
    distinct.then_some(labels)
}

/// Where each of `labels` stands in `of`, if all do.
fn places(labels: &[Label], of: &[Label]) -> Option<Vec<usize>> {
    let place = |l: &Label| of.iter().position(|x| x == l);
    labels.iter().map(place).collect()
}

/// `x` with its axes in another order.
fn reordered(
    graph: &mut Graph,
    x: Value,
    of_x: &[Label],
    out: &[Label],
) -> Result<Option<Value>, PassError> {
    let Some(perm) = places(out, of_x).filter(|_| out.len() == of_x.len()) else {
        return Ok(None);
    };
    Ok(Some(transpose(graph, x, &perm)?))
}

/// An operand and what its axes stand for.
#[derive(Clone, Copy)]
struct Factor<'a> {
    value: Value,
    labels: &'a [Label],
    shape: &'a [Dim],
}

impl Factor<'_> {
    fn has(&self, label: &Label) -> bool {
        self.labels.contains(label)
    }

    /// The size of a label; 1 if it is none of this operand.
    fn size(&self, label: &Label) -> Dim {
        let place = self.labels.iter().position(|l| l == label);
        place.map_or(Dim::fixed(1), |i| self.shape[i].clone())
    }

    /// This operand with axes of the batch, and one for each of two groups of labels.
    fn arranged(&self, batch: &[Label], first: &[Label], second: &[Label]) -> Option<Arranged> {
        let own: Vec<Label> = batch.iter().copied().filter(|l| self.has(l)).collect();
        let perm = places(&[&own[..], first, second].concat(), self.labels)?;
        let mut shape: Vec<Dim> = batch.iter().map(|l| self.size(l)).collect();
        for group in [first, second] {
            let sizes: Vec<Dim> = group.iter().map(|l| self.size(l)).collect();
            shape.push(Dim::product(&sizes)?);
        }
        (perm.len() == self.labels.len()).then_some(Arranged {
            value: self.value,
            perm,
            shape,
        })
    }
}

/// A value, an order of its axes, and the shape that it then takes.
struct Arranged {
    value: Value,
    perm: Vec<usize>,
    shape: Vec<Dim>,
}

/// A batch of matrix products.
struct Product {
    factors: [Arranged; 2],
    /// The shape with rows and columns apart, where they are several labels.
    apart: Option<Vec<Dim>>,
    to_result: Vec<usize>,
}

impl Product {
    /// What an einsum of `a` and `b` is, if it is one.
    fn of(a: Factor<'_>, b: Factor<'_>, out: &[Label]) -> Option<Product> {
        let of_one = |l: &Label, x: &Factor<'_>, y: &Factor<'_>| x.has(l) && !y.has(l);
        // Columns are what the result has last, if there is a choice.
        let of_a_last = out.last().is_some_and(|l| of_one(l, &a, &b));
        let has_both = out.iter().any(|l| of_one(l, &b, &a));
        let (a, b) = if of_a_last && has_both {
            (b, a)
        } else {
            (a, b)
        };
        let is_shared = |l: &Label| a.has(l) && b.has(l);
        let summed: Vec<Label> = (a.labels.iter().copied())
            .filter(|l| is_shared(l) && !out.contains(l))
            .collect();
        let of = |x: &Factor<'_>, y: &Factor<'_>| {
            let own = out.iter().copied().filter(|l| of_one(l, x, y));
            own.collect::<Vec<Label>>()
        };
        let (mut rows, columns) = (of(&a, &b), of(&b, &a));
        let last_shared = out.iter().rposition(is_shared).unwrap_or(0);
        let n_in_front = (rows.iter())
            .take_while(|l| out[..last_shared].contains(l))
            .count();
        if n_in_front < rows.len() {
            rows.drain(..n_in_front);
        }
        let in_batch = |l: &&Label| !rows.contains(l) && !columns.contains(l);
        let batch: Vec<Label> = out.iter().filter(in_batch).copied().collect();
        let made = [&batch[..], &rows, &columns].concat();
        let one = Dim::fixed(1);
        // Sizes that are not known to be equal are checked where they are multiplied.
        let agreed = |l: &Label| match (a.size(l), b.size(l)) {
            (x, y) if x == y || y == one => Some(x),
            (x, y) => (x == one).then_some(y),
        };
        let apart = if rows.len() == 1 && columns.len() == 1 {
            None
        } else {
            Some(made.iter().map(agreed).collect::<Option<Vec<Dim>>>()?)
        };
        let is_summed = |l: &Label| a.size(l) == b.size(l);
        summed.iter().all(is_summed).then_some(Product {
            factors: [
                a.arranged(&batch, &rows, &summed)?,
                b.arranged(&batch, &summed, &columns)?,
            ],
            apart,
            to_result: places(out, &made)?,
        })
    }

    fn write(self, graph: &mut Graph) -> Result<Value, PassError> {
        let mut factors = Vec::with_capacity(2);
        for factor in self.factors {
            let moved = transpose(graph, factor.value, &factor.perm)?;
            factors.push(view(graph, moved, factor.shape)?);
        }
        let mut product = graph.apply(Operator::MatMul, Attributes::new(), &factors)?;
        if let Some(apart) = self.apart {
            product = view(graph, product, apart)?;
        }
        Ok(transpose(graph, product, &self.to_result)?)
    }
}
