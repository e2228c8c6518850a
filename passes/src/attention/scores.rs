//! The scores of an attention, read backwards from its softmax: `scale · q kᵀ + Σ terms`.

use std::sync::Arc;

use lancet_ir::{Dim, Graph, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Rounding, Tensor};

use crate::PassError;
use crate::analysis::padding::{MASKED, MaskDomain, padding_mask};
use crate::heads::{transpose, view};
use crate::matcher::{binary, int_scalar, is_dtype, peel, result, scalar, transposed, unary};
use crate::polynomial::scaled;
use crate::quantized::fake;

/// Steps between a product and its softmax that are looked at.
const MAX_DEPTH: usize = 12;

/// Sums within a term that are looked into for a mask.
const MAX_ADDENDS: usize = 4;

/// Added to a score, values up to this leave nothing of it in `f32` or `f64`.
pub(crate) const ABSORBING: f32 = -1e30;

/// What a softmax over keys is of.
#[derive(Clone, Debug)]
pub(crate) struct Scores {
    /// `[.., queries, features]`.
    pub(crate) queries: Value,
    /// `[.., features, keys]`.
    pub(crate) keys: Value,
    /// Those of queries and keys, if these are bytes whose product is exact.
    pub(crate) zero_points: Option<[i64; 2]>,
    /// What products are rounded by before they are scaled.
    pub(crate) products: Option<Rounding>,
    pub(crate) scale: f64,
    terms: Vec<Term>,
    /// What scores are rounded by when all terms are added.
    pub(crate) rounding: Option<Rounding>,
    /// Why attention does not compute these scores.
    pub(crate) refused: Option<String>,
    /// Whether the product is that of keys with queries, transposed.
    transposed: bool,
}

impl Scores {
    fn of([queries, keys]: [Value; 2], zero_points: Option<[i64; 2]>) -> Scores {
        Scores {
            queries,
            keys,
            zero_points,
            products: None,
            scale: 1.0,
            terms: Vec::new(),
            rounding: None,
            refused: None,
            transposed: false,
        }
    }

    /// Makes these the transposed scores: `(a · b)ᵀ = bᵀ · aᵀ`.
    fn transpose(&mut self) {
        self.transposed = !self.transposed;
        let terms = self.terms.iter_mut();
        terms.for_each(|t| t.transposed = !t.transposed);
    }

    /// Puts transpositions on the factors of a product that is transposed.
    fn orient(&mut self, graph: &mut Graph) -> Result<(), PassError> {
        if self.transposed {
            let queries = swapped(graph, self.keys)?;
            self.keys = swapped(graph, self.queries)?;
            self.queries = queries;
            self.zero_points = self.zero_points.map(|[q, k]| [k, q]);
            self.transposed = false;
        }
        Ok(())
    }

    /// Quantizes and dequantizes with `scale`.
    fn round(&mut self, by: Rounding, scale: f32) {
        let [step, least, greatest] = by.numbers();
        if self.terms.is_empty() && self.rounding.is_none() {
            let products = match self.products {
                None => Rounding::new([(f64::from(step) / self.scale) as f32, least, greatest]),
                Some(first) => rounded_once(first, self.scale, by),
            };
            if products.is_some() {
                (self.products, self.scale) = (products, f64::from(scale));
                return;
            }
        }
        if self.rounding.is_some() {
            self.refused = Some("scores are quantized again after all is added".to_owned());
        }
        self.rounding = Some(by);
        if scale != step {
            self.multiply(f64::from(scale) / f64::from(step));
        }
    }

    /// Multiplies scores, and so the steps that they are rounded to: `c · round(s / step) · step = round(c s / (c step)) · c step`.
    fn multiply(&mut self, factor: f64) {
        self.scale *= factor;
        self.terms.iter_mut().for_each(|t| t.factor *= factor);
        if let Some([step, least, greatest]) = self.rounding.map(|r| r.numbers()) {
            let step = (f64::from(step) * factor) as f32;
            self.rounding = Rounding::new([step, least, greatest]);
            if self.rounding.is_none() {
                self.refused = Some(format!("scores are quantized in steps of {step}"));
            }
        }
    }
}

/// What rounds as `first`, multiplication with `scale`, and `second` do, if the second leaves each number what it is or clips it:
/// by far enough that the last bits of the factors do not decide.
fn rounded_once(first: Rounding, scale: f64, second: Rounding) -> Option<Rounding> {
    let [step, least, greatest] = first.numbers();
    let [second_step, second_least, second_greatest] = second.numbers();
    let ratio = scale / f64::from(second_step);
    let keeps = |n: i64| (n as f64 * ratio - n as f64).abs() < 0.49;
    let narrowed = [step, least.max(second_least), greatest.min(second_greatest)];
    ((least as i64..=greatest as i64).all(keeps)).then(|| Rounding::new(narrowed))?
}

/// What is done to scores besides scaling.
#[derive(Clone, Debug)]
struct Term {
    kind: TermKind,
    /// What the term has been multiplied by since.
    factor: f64,
    /// Rank of the scores that the term meets.
    rank: usize,
    /// Whether it is added to scores of keys and queries that are transposed afterwards.
    transposed: bool,
}

#[derive(Clone, Copy, Debug)]
enum TermKind {
    /// `scores + value`.
    Added(Value),
    /// `scores - value`.
    Subtracted(Value),
    /// `fill` where `condition` is `when`, the score elsewhere.
    Filled {
        condition: Value,
        when: bool,
        fill: f32,
    },
}

/// A mask of keys, and what is added to the scores of those where it is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mask {
    /// `[batch, keys]`.
    pub(crate) value: Value,
    pub(crate) masked_value: f32,
    /// For which elements it stands for what the graph computed.
    pub(crate) domain: MaskDomain,
}

/// The formula of `value`, if it leads down to a product of two computed values of rank 3 or 4.
pub(crate) fn scores(graph: &mut Graph, value: Value) -> Result<Option<Scores>, PassError> {
    let mut found = read(graph, value, MAX_DEPTH);
    if let Some(scores) = &mut found {
        scores.orient(graph)?;
    }
    Ok(found)
}

/// Each matrix of `value` transposed; a row is a matrix.
pub(crate) fn swapped(graph: &mut Graph, value: Value) -> Result<Value, PassError> {
    match graph.shape(value) {
        [] => Ok(value),
        [n] => {
            let column = vec![n.clone(), Dim::fixed(1)];
            Ok(view(graph, value, column)?)
        }
        shape => {
            let swap = swap(shape.len());
            Ok(transpose(graph, value, &swap)?)
        }
    }
}

/// The permutation that swaps the last two of `rank` axes.
fn swap(rank: usize) -> Vec<usize> {
    let mut perm: Vec<usize> = (0..rank).collect();
    if let [.., a, b] = &mut perm[..] {
        std::mem::swap(a, b);
    }
    perm
}

/// What `value` is made of by transposing each matrix.
pub(crate) fn matrices_of(graph: &Graph, value: Value) -> Option<Value> {
    transposed(graph, value, &swap(graph.ty(value).rank()))
}

fn read(graph: &Graph, value: Value, depth: usize) -> Option<Scores> {
    let depth = depth.checked_sub(1)?;
    let value = peel(graph, value);
    let rank = graph.ty(value).rank();
    if !(3..=4).contains(&rank) || !is_dtype(graph, value, DType::F32) {
        return None;
    }
    let with_term = |x: Value, kind: TermKind| {
        // A term may not make the scores larger.
        let mut s = graph
            .ty(x)
            .same_value(graph.ty(value))
            .then(|| read(graph, x, depth))??;
        if s.rounding.is_some() {
            s.refused = Some("scores are quantized before a term is added".to_owned());
        }
        s.terms.push(Term {
            kind,
            factor: 1.0,
            rank,
            transposed: false,
        });
        Some(s)
    };
    if let Some((queries, keys)) = binary(graph, value, Operator::MatMul) {
        let computed = graph.constant(queries).is_none() && graph.constant(keys).is_none();
        let batched = graph.ty(queries).rank() == rank && graph.ty(keys).rank() == rank;
        return (computed && batched).then(|| Scores::of([queries, keys], None));
    }
    if let Some((queries, keys, zero_points)) = integer_product(graph, value) {
        let batched = graph.ty(queries).rank() == rank && graph.ty(keys).rank() == rank;
        return batched.then(|| Scores::of([queries, keys], Some(zero_points)));
    }
    if let Some((x, parameters, scale)) = fake(graph, value) {
        let mut s = read(graph, x, depth)?;
        match parameters.rounding() {
            Some(rounding) => s.round(rounding, scale),
            None => s.refused = Some(format!("scores are quantized to {}", parameters.dtype)),
        }
        return Some(s);
    }
    if let Some((x, factor)) = scaled(graph, value) {
        let mut s = read(graph, x, depth)?;
        s.multiply(factor);
        return Some(s);
    }
    if let Some((a, b)) = binary(graph, value, Operator::Add) {
        return with_term(a, TermKind::Added(b)).or_else(|| with_term(b, TermKind::Added(a)));
    }
    if let Some((a, b)) = binary(graph, value, Operator::Sub) {
        return with_term(a, TermKind::Subtracted(b));
    }
    if let Some(x) = matrices_of(graph, value) {
        let mut s = read(graph, x, depth)?;
        s.transpose();
        return Some(s);
    }
    if graph.operator(value) == Some(Operator::Where) {
        let condition = graph.operand(value.node, 0)?;
        let (yes, no) = (graph.operand(value.node, 1)?, graph.operand(value.node, 2)?);
        let filled = |fill: Value, x: Value, when: bool| {
            let fill = scalar(graph, fill).filter(|f| *f <= MASKED)?;
            with_term(
                x,
                TermKind::Filled {
                    condition,
                    when,
                    fill,
                },
            )
        };
        return filled(yes, no, true).or_else(|| filled(no, yes, false));
    }
    // A view that only regroups what stands before the matrices.
    let x = matches!(graph.op(value.node), Op::View(_)).then(|| graph.operand(value.node, 0))??;
    let (shape, of_x) = (graph.shape(value), graph.shape(x));
    let same = shape[rank - 2..] == *of_x.get(of_x.len().checked_sub(2)?..)?;
    same.then(|| read(graph, x, depth))?
}

/// The operands of an exact product of bytes that becomes `f32`, and their zero points; both operands are computed.
pub(crate) fn integer_product(graph: &Graph, value: Value) -> Option<(Value, Value, [i64; 2])> {
    let product = peel(graph, unary(graph, value, Operator::Cast)?);
    let (left, right) = binary(graph, product, Operator::MatMulInteger)?;
    let zero_point = |i: usize| match graph.operand(product.node, i) {
        Some(z) => int_scalar(graph, z),
        None => Some(0),
    };
    let computed = graph.constant(left).is_none() && graph.constant(right).is_none();
    let zero_points = [zero_point(2)?, zero_point(3)?];
    (computed && is_dtype(graph, value, DType::F32)).then_some((left, right, zero_points))
}

/// The terms of `scores` as a mask of keys and one bias that broadcasts to `shape`, `[batch, heads, queries, keys]`; or why
/// they are not.
#[expect(
    clippy::type_complexity,
    reason = "a mask and a bias, either absent, or a reason, or a bug"
)]
pub(crate) fn add_bias(
    graph: &mut Graph,
    scores: &Scores,
    shape: &[Dim; 4],
) -> Result<Result<(Option<Mask>, Option<Value>), String>, PassError> {
    let mut mask = None;
    let mut bias: Option<Value> = None;
    for term in &scores.terms {
        let (mut value, mut stronger) = match term.kind {
            TermKind::Added(value) => (value, None),
            TermKind::Subtracted(value) => {
                let negative = graph.apply(Operator::Neg, Attributes::new(), &[value])?;
                (negative, None)
            }
            TermKind::Filled {
                condition,
                when,
                fill,
            } => {
                let overwritten = f64::from(fill) * term.factor;
                if f64::from(MASKED) < overwritten {
                    return Ok(Err(format!(
                        "scores are overwritten by {}, which may not outweigh them",
                        overwritten as f32
                    )));
                }
                let absorbing = f64::from(ABSORBING) / term.factor;
                let stronger = (absorbing < f64::from(fill)).then_some(absorbing as f32);
                let value = select(graph, condition, when, fill)?;
                let stronger = stronger.map(|fill| select(graph, condition, when, fill));
                (value, stronger.transpose()?)
            }
        };
        if term.transposed {
            value = swapped(graph, value)?;
            stronger = stronger.map(|x| swapped(graph, x)).transpose()?;
        }
        let (found, rest) = without_mask(graph, value, term.factor, shape, MAX_ADDENDS)?;
        let addends = match found {
            Some(m) if mask.is_none() => {
                let masked_value = (f64::from(m.masked_value) * term.factor) as f32;
                mask = Some(Mask { masked_value, ..m });
                rest
            }
            // What is written over a score makes all keys alike where it hides all of them, and so must what is added.
            _ => vec![stronger.unwrap_or(value)],
        };
        for addend in addends {
            let fitted = match fit(graph, addend, term, shape)? {
                Ok(v) => v,
                Err(reason) => return Ok(Err(reason)),
            };
            bias = Some(match bias {
                Some(b) => graph.apply(Operator::Add, Attributes::new(), &[b, fitted])?,
                None => fitted,
            });
        }
    }
    Ok(Ok((mask, bias)))
}

/// `fill` where `condition` is `when`, zero elsewhere.
fn select(graph: &mut Graph, condition: Value, when: bool, fill: f32) -> Result<Value, PassError> {
    let masked = graph.add_const("masked", Arc::new(Tensor::scalar(fill)));
    let zero = graph.add_const("zero", Arc::new(Tensor::scalar(0.0f32)));
    let operands = if when {
        [condition, masked, zero]
    } else {
        [condition, zero, masked]
    };
    Ok(graph.apply(Operator::Where, Attributes::new(), &operands)?)
}

/// The key mask that is an addend of `value`, which will be multiplied by `factor`, and the other addends.
fn without_mask(
    graph: &mut Graph,
    value: Value,
    factor: f64,
    shape: &[Dim; 4],
    depth: usize,
) -> Result<(Option<Mask>, Vec<Value>), PassError> {
    let Some(depth) = depth.checked_sub(1) else {
        return Ok((None, vec![value]));
    };
    if let Some(mask) = key_mask(graph, value, shape)? {
        return Ok((Some(mask), Vec::new()));
    }
    if let Some((a, b)) = binary(graph, value, Operator::Add) {
        for (x, other) in [(a, b), (b, a)] {
            let (mask, mut rest) = without_mask(graph, x, factor, shape, depth)?;
            if mask.is_some() {
                rest.push(other);
                return Ok((mask, rest));
            }
        }
    }
    let outweighs = |fill: f32| f64::from(fill) * factor <= f64::from(ABSORBING);
    if graph.operator(value) == Some(Operator::Where)
        && let [Some(condition), Some(yes), Some(no)] = graph.operands(value.node)[..]
    {
        for (fill, x, when) in [(yes, no, true), (no, yes, false)] {
            let Some(fill) = scalar(graph, fill).filter(|&f| outweighs(f)) else {
                continue;
            };
            let selected = select(graph, condition, when, fill)?;
            if let Some(mask) = key_mask(graph, selected, shape)? {
                return Ok((Some(mask), vec![x]));
            }
        }
    }
    Ok((None, vec![value]))
}

/// The key-padding mask that a bias stands for, as a boolean or integer `[batch, keys]`.
fn key_mask(graph: &mut Graph, bias: Value, shape: &[Dim; 4]) -> Result<Option<Mask>, PassError> {
    let Some(found) = padding_mask(graph, bias) else {
        return selected_by_key(graph, bias, shape);
    };
    let [batch, _, _, keys] = shape;
    let one = Dim::fixed(1);
    let own = graph.shape(found.mask);
    let [first, between @ .., last] = own else {
        return Ok(None);
    };
    let fits = first == batch
        && *last != one
        && last.equals(keys) != Some(false)
        && between.iter().all(|d| *d == one);
    if !fits {
        return Ok(None);
    }
    let own = vec![batch.clone(), last.clone()];
    let mut value = view(graph, found.mask, own)?;
    value = broadcast(graph, value, vec![batch.clone(), keys.clone()])?;
    if graph.ty(value).dtype.is_float() {
        let to = Attributes::new().with("to", Attribute::Str("bool".to_owned()));
        value = graph.apply(Operator::Cast, to, &[value])?;
    }
    Ok(Some(Mask {
        value,
        masked_value: found.masked_value,
        domain: found.domain,
    }))
}

/// The mask of a bias that is zero or a scalar by a condition of any origin, one for each key.
fn selected_by_key(
    graph: &mut Graph,
    bias: Value,
    [batch, _, _, keys]: &[Dim; 4],
) -> Result<Option<Mask>, PassError> {
    let [Some(condition), Some(yes), Some(no)] = graph.operands(bias.node)[..] else {
        return Ok(None);
    };
    let one = Dim::fixed(1);
    let of_keys = [batch.clone(), one.clone(), one, keys.clone()];
    if graph.operator(bias) != Some(Operator::Where) || graph.shape(condition) != of_keys {
        return Ok(None);
    }
    let (fill, visible) = match (scalar(graph, yes), scalar(graph, no)) {
        (Some(0.0), Some(fill)) => (fill, condition),
        (Some(fill), Some(0.0)) => (
            fill,
            graph.apply(Operator::Not, Attributes::new(), &[condition])?,
        ),
        _ => return Ok(None),
    };
    let value = view(graph, visible, vec![batch.clone(), keys.clone()])?;
    Ok((fill <= MASKED).then_some(Mask {
        value,
        masked_value: fill,
        domain: MaskDomain::Any,
    }))
}

/// A shape that `own`, of the same rank, broadcasts to, and that broadcasts to `shape`; `None` if they are known not to agree.
///
/// A size that may be another's is taken to be it: where a request makes them differ, the step that broadcasts reports it.
fn fitted(own: &[Dim], shape: &[Dim]) -> Option<Vec<Dim>> {
    let fit = |(d, s): (&Dim, &Dim)| match d.as_fixed() {
        Some(1) => Some(d.clone()),
        _ => (d.equals(s) != Some(false)).then(|| s.clone()),
    };
    own.iter().zip(shape).map(fit).collect()
}

/// `value` broadcast to this shape; `value` itself if it has it.
fn broadcast(graph: &mut Graph, value: Value, shape: Vec<Dim>) -> Result<Value, PassError> {
    if graph.shape(value) == shape {
        return Ok(value);
    }
    let node = graph.add(Op::Broadcast(shape), &[Some(value)])?;
    Ok(result(node))
}

/// A term under a shape that broadcasts to `shape`, with its factor; or why there is none.
fn fit(
    graph: &mut Graph,
    value: Value,
    term: &Term,
    shape: &[Dim; 4],
) -> Result<Result<Value, String>, PassError> {
    let mut value = value;
    if !is_dtype(graph, value, DType::F32) {
        return Ok(Err(format!("a term has type {}", graph.ty(value))));
    }
    let own = graph.shape(value).to_vec();
    if term.rank == 3
        && let [first, rest @ ..] = own.as_slice()
        && rest.len() == 2
        && first.as_fixed() != Some(1)
    {
        if shape[0].mul(&shape[1]).as_ref() != Some(first) {
            return Ok(Err(format!("a term has type {}", graph.ty(value))));
        }
        let apart = [&shape[..2], rest].concat();
        value = view(graph, value, apart)?;
    }
    let own = graph.shape(value);
    let missing = 4usize.checked_sub(own.len());
    let fitted = missing.and_then(|n| fitted(own, &shape[n..]));
    if let Some(fitted) = fitted {
        value = broadcast(graph, value, fitted)?;
    } else {
        let [b, h, q, k] = shape;
        let ty = graph.ty(value);
        return Ok(Err(format!(
            "the term {ty} does not broadcast to [{b}, {h}, {q}, {k}]"
        )));
    }
    if term.factor != 1.0 {
        let factor = Tensor::scalar(term.factor as f32);
        let factor = graph.add_const("factor", Arc::new(factor));
        value = graph.apply(Operator::Mul, Attributes::new(), &[value, factor])?;
    }
    Ok(Ok(value))
}
