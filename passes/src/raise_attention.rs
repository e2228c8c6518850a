//! Raises softmax attention written out in matrix products to `ScaledDotProductAttention` on `[batch, tokens, hidden]`.
//!
//! Before:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   const @scale: f32[] = 0.5
//!   %0 = view %q : f32[b, s, 2, 2]
//!   %1 = transpose %0 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %2 = view %k : f32[b, s, 2, 2]
//!   %3 = transpose %2 {perm = [0, 2, 3, 1]} : f32[b, 2, 2, s]
//!   %4 = matmul %1, %3 : f32[b, 2, s, s]
//!   %5 = mul %4, @scale : f32[b, 2, s, s]
//!   %6 = softmax %5 {axis = -1} : f32[b, 2, s, s]
//!   %7 = view %v : f32[b, s, 2, 2]
//!   %8 = transpose %7 {perm = [0, 2, 1, 3]} : f32[b, 2, s, 2]
//!   %9 = matmul %6, %8 : f32[b, 2, s, 2]
//!   %10 = transpose %9 {perm = [0, 2, 1, 3]} : f32[b, s, 2, 2]
//!   %11 = view %10 : f32[b, s, 4]
//!   return %11
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%q: f32[b, s, 4], %k: f32[b, s, 4], %v: f32[b, s, 4]) dims(b, s) {
//!   %0 = scaled_dot_product_attention %q, %k, %v {num_heads = 2, scale = 0.5} : f32[b, s, 4]
//!   return %0
//! }
//! ```
//!
//! Identity: `softmax(c · q kᵀ + bias) v` in each head. The pass starts at a `Softmax` and reads
//!
//! * backwards, sums, differences, scalar factors, `Where(mask, x, -inf)`, transpositions of the matrices and views down to a product of
//!   two computed values. Factors on
//!   the queries, on the keys and on the scores multiply into `scale`. A term that is a key-padding mask becomes `key_mask` and
//!   `masked_value`; the others are summed into `bias`;
//! * forwards, to the product with the values; a guard `Where(IsNaN(p), 0, p)` on the way is dropped. Where masked scores are minus
//!   infinity, it makes the result 0 for sequences whose keys are all masked: the result is multiplied by 0 there, by 1 elsewhere.
//!
//! Scores may be computed as `k qᵀ`, and their softmax taken over rows: `(a b)ᵀ = bᵀ aᵀ`, and `softmax(sᵀ)` over rows is
//! `softmax(s)ᵀ`; so are contexts computed as `vᵀ pᵀ`. Keys and values of one head that all heads of queries meet are repeated.
//! Scores that are concatenated from several products become one first ([`crate::attention::blocks`]); terms that are added under a view are added
//! under the shape of the scores, and more than two axes in front of the matrices become one ([`crate::attention::views`]).
//!
//! Quantization on the way becomes rounding in the operator: of products that are quantized and dequantized before they are
//! scaled (`score_rounding`; a second one that leaves every number what it is disappears), of scores with the mask
//! (`masked_score_rounding`), of probabilities (`probability_rounding`, whose result stays whole; the scale goes into a
//! product behind the operator). Where products are `MatMulInteger` of bytes, these become whole numbers in `f32`: as long as
//! every sum is at most 2^24, it is the same number. For queries and keys the types prove it; for probabilities, which
//! sum to 1, it holds up to a number of keys that the operator is told (`exact_keys`).
//!
//! What reads the probabilities beside the product becomes the second result of the operator: each of them, or their sum or mean
//! over queries where nothing else is read.
//!
//! Heads are then undone ([`crate::heads`]): views and transpositions that split them disappear, elementwise functions behind
//! them (the factors of a rotary embedding) are moved in front of them, and where something else stands between, one
//! transposition is put in.
//!
//! Preconditions: `f32`; scores of rank 3 or 4; softmax over one of the last two axes; probabilities that something else reads neither rounded
//! nor guarded; the bias broadcastable to `[batch, heads, queries, keys]`; a value that is written over masked scores at most
//! -1e4; where the mask is not of keys alone, -1e30 is added in its place. A mask that the graph multiplies with is taken to be 0
//! or 1. Otherwise the pass declines with a remark.
//!
//! Numeric effect: reassociates, but for sums of products of bytes, which stay exact. A masked score is `score + masked_value`
//! where the graph may have said `masked_value`; they differ only for a query all of whose keys are masked.
//!
//! Source: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), section 3.2.

use lancet_ir::{Dim, Graph, NodeId, Op, Value};
use lancet_ops::{AttentionRounding, Attribute, Attributes, DType, Operator, Rounding, Tensor};

use crate::attention::blocks::{Diagonals, joined_blocks};
use crate::attention::context::{Weighted, weighted_values};
use crate::attention::heads::Heads;
use crate::attention::probabilities::{Shown, shown};
use crate::attention::scores::{Mask, Scores, add_bias, scores, swapped};
use crate::attention::views::{merged_batch, terms_under_views};
use crate::heads::{Scaling, Sizes, join, split};
use crate::matcher::{axis_of, is_dtype, result};
use crate::polynomial::is_dead;
use crate::quantized::magnitude;
use crate::{Changed, Pass, PassContext, PassError};

/// The pass `raise-attention`.
pub(crate) struct RaiseAttention;

/// An attention found in the graph.
struct Match {
    softmax: NodeId,
    scores: Scores,
    weighted: Weighted,
}

impl Pass for RaiseAttention {
    fn name(&self) -> &'static str {
        "raise-attention"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut softmaxes: Vec<NodeId> = graph
            .order()
            .into_iter()
            .filter(|&n| graph.op(n).operator() == Some(Operator::Softmax))
            .collect();
        let mut changed = Changed::No;
        let mut diagonals = Diagonals::new();
        for node in graph.order() {
            if graph.op(node).operator() == Some(Operator::Concat)
                && let Some(product) = joined_blocks(graph, node, &mut diagonals)?
            {
                graph.replace_all_uses(result(node), product)?;
                changed = Changed::Yes;
            }
        }
        for node in &mut softmaxes {
            if let Some(merged) = merged_batch(graph, *node)? {
                (*node, changed) = (merged, Changed::Yes);
            }
        }
        for &node in &softmaxes {
            if let Some(x) = graph.operand(node, 0)
                && let Some(same) = terms_under_views(graph, x)?
            {
                graph.set_operand(node, 0, Some(same))?;
                changed = Changed::Yes;
            }
        }
        for node in softmaxes {
            if is_dead(graph, result(node)) {
                continue;
            }
            let Some(m) = find(graph, node, cx)? else {
                continue;
            };
            match raise(graph, &m, cx)? {
                Ok(()) => changed = Changed::Yes,
                Err(reason) => cx.missed(graph, node, reason),
            }
        }
        Ok(changed)
    }
}

/// Reads the formula around a softmax.
fn find(
    graph: &mut Graph,
    softmax: NodeId,
    cx: &mut PassContext<'_>,
) -> Result<Option<Match>, PassError> {
    let p = result(softmax);
    let Some(mut input) = graph.operand(softmax, 0) else {
        return Ok(None);
    };
    let rank = graph.ty(input).rank();
    let axis = axis_of(graph, softmax, rank).map(|axis| rank - axis);
    if !matches!(axis, Some(1 | 2)) || !is_dtype(graph, p, DType::F32) {
        return Ok(None);
    }
    let transposed = axis == Some(2);
    if transposed {
        input = swapped(graph, input)?;
    }
    let Some(scores) = scores(graph, input)? else {
        return Ok(None);
    };
    let found = match scores.refused.clone() {
        Some(reason) => Err(reason),
        None => weighted_values(graph, p, transposed),
    };
    match found {
        Ok(weighted) => Ok(Some(Match {
            softmax,
            scores,
            weighted,
        })),
        Err(reason) => {
            cx.missed(graph, softmax, reason);
            Ok(None)
        }
    }
}

/// Puts the attention in the place of `m.output`, or says why it cannot.
fn raise(
    graph: &mut Graph,
    m: &Match,
    cx: &mut PassContext<'_>,
) -> Result<Result<(), String>, PassError> {
    let (q4, k4, mut v4) = (m.scores.queries, m.scores.keys, m.weighted.values);
    if m.weighted.transposed {
        v4 = swapped(graph, v4)?;
    }
    let heads = match Heads::of(graph, [q4, k4, v4]) {
        Ok(heads) => heads,
        Err(reason) => return Ok(Err(reason)),
    };
    let n_heads = heads.n;
    let [of_q, of_k, of_v] = &heads.sizes;
    let [q_axes, k_axes, v_axes] = heads.axes(graph, [q4, k4, v4]);
    let exact_keys = match exact_keys(graph, m, of_q) {
        Ok(n) => n,
        Err(reason) => return Ok(Err(reason)),
    };
    let of_result = match m.weighted.transposed {
        false => heads.token_major(graph, m.weighted.output),
        true => heads.feature_major(graph, m.weighted.output),
    };
    let q = join(graph, q4, q_axes, of_q, Scaling::Pass);
    let k = join(graph, k4, k_axes, of_k, Scaling::Pass);
    let v = join(graph, v4, v_axes, of_v, Scaling::Stop);
    let before = q.scale * k.scale;
    let (scale, products) = match m.scores.products.map(|r| r.numbers()) {
        Some([step, least, greatest]) => {
            let step = (f64::from(step) / before) as f32;
            let Some(rounding) = Rounding::new([step, least, greatest]) else {
                return Ok(Err(format!(
                    "products are quantized after a factor of {before}"
                )));
            };
            (m.scores.scale, Some(rounding))
        }
        None => (m.scores.scale * before, None),
    };
    let shape = heads.of_scores();
    let (mut mask, bias) = match add_bias(graph, &m.scores, &shape)? {
        Ok(found) => found,
        Err(reason) => return Ok(Err(reason)),
    };
    // Finite biases leave every softmax defined, so the guard does nothing; an infinite one is what it is there for.
    if m.weighted.has_guard && bias.is_some_and(|bias| !is_finite(graph, bias)) {
        let reason = "a guard against NaN stands after scores that can all be minus infinity";
        return Ok(Err(reason.to_owned()));
    }
    let mut attended = None;
    if let Some(mask) = &mut mask
        && m.weighted.has_guard
        && mask.masked_value == f32::NEG_INFINITY
    {
        mask.masked_value = f32::MIN;
        attended = Some(attends(graph, mask.value)?);
    }

    let [q_zero, k_zero] = m
        .scores
        .zero_points
        .map_or([None; 2], |zeros| zeros.map(Some));
    let [mut q, mut k, mut v] = [
        q.joined(graph, of_q)?,
        k.joined(graph, of_k)?,
        v.joined(graph, of_v)?,
    ];
    k = heads.repeated(graph, k, of_k)?;
    v = heads.repeated(graph, v, of_v)?;
    for (x, zero_point) in [
        (&mut q, q_zero),
        (&mut k, k_zero),
        (&mut v, m.weighted.zero_point),
    ] {
        if let Some(zero_point) = zero_point {
            *x = whole_numbers(graph, *x, zero_point)?;
        }
    }
    let operands = [
        Some(q),
        Some(k),
        Some(v),
        mask.as_ref().map(|m| m.value),
        bias,
    ];
    let n_operands = operands
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |i| i + 1);
    let mut attributes = Attributes::new()
        .with("num_heads", Attribute::Int(n_heads))
        .with("scale", Attribute::Float(scale as f32));
    if let Some(Mask { masked_value, .. }) = mask {
        attributes.set("masked_value", Attribute::Float(masked_value));
    }
    let rounding = AttentionRounding {
        scores: products,
        masked: m.scores.rounding,
        probabilities: m.weighted.rounding,
    };
    rounding.set(&mut attributes);
    if let Some(n) = exact_keys {
        attributes.set("exact_keys", Attribute::Int(n));
    }
    let shown = shown(graph, &m.weighted.read_at);
    if shown.is_some() && of_v.features.as_fixed() == Some(0) {
        return Ok(Err("values without features are weighted".to_owned()));
    }
    if let Some(shown) = &shown {
        let name = shown.over_queries.name().to_owned();
        attributes.set("probabilities", Attribute::Str(name));
    }
    let op = Op::Apply(Operator::ScaledDotProductAttention, attributes);
    let n_results = 1 + usize::from(shown.is_some());
    let node = graph.add_results(op, &operands[..n_operands], n_results)?;
    if let Some(shown) = &shown {
        shown.replace(graph, Value { node, result: 1 })?;
    }
    let output = m.weighted.output;
    let name = graph.node_name(output.node).to_owned();
    graph.set_node_name(node, &name);
    if m.weighted.has_guard {
        let message = match attended {
            None => {
                "the guard against NaN is dropped: no bias is infinite, so no softmax is undefined"
            }
            Some(_) => {
                "the guard against NaN becomes a factor: 0 for sequences whose keys are all masked"
            }
        };
        cx.analysis(graph, m.softmax, message);
    }
    if let Some(assumption) = mask.as_ref().and_then(|m| m.domain.assumption()) {
        cx.analysis(graph, m.softmax, assumption);
    }
    let with = match (&mask, bias) {
        (Some(_), Some(_)) => "a key mask and a bias",
        (Some(_), None) => "a key mask",
        (None, Some(_)) => "a bias",
        (None, None) => "neither mask nor bias",
    };
    cx.applied(
        graph,
        m.softmax,
        format!(
            "raised to attention with num_heads = {n_heads}, {with}{}{}",
            describe(&rounding, m),
            shown.as_ref().map_or("", Shown::describe)
        ),
    );
    let of_output = heads.of_output();
    let mut context = result(node);
    if m.weighted.factor != 1.0 {
        let factor = Tensor::scalar(m.weighted.factor as f32);
        let factor = graph.add_const("factor", factor.into());
        context = graph.apply(Operator::Mul, Attributes::new(), &[context, factor])?;
    }
    if let Some(attended) = attended {
        context = graph.apply(Operator::Mul, Attributes::new(), &[context, attended])?;
    }
    split(graph, context, output, of_result, &of_output)?;
    Ok(Ok(()))
}

/// `f32[batch, 1, 1]`: 1 for sequences of which the mask, `[batch, keys]`, has a key, otherwise 0.
fn attends(graph: &mut Graph, mask: Value) -> Result<Value, PassError> {
    let batch = graph.shape(mask)[0].clone();
    let to = |dtype: DType| Attributes::new().with("to", Attribute::Str(dtype.name().to_owned()));
    let bits = graph.apply(Operator::Cast, to(DType::Bool), &[mask])?;
    let keys = graph.apply(Operator::Cast, to(DType::F32), &[bits])?;
    let axes = graph.add_const("axes", Tensor::new([1], vec![1i64]).into());
    let n = graph.apply(Operator::ReduceSum, Attributes::new(), &[keys, axes])?;
    let any = graph.apply(Operator::Cast, to(DType::Bool), &[n])?;
    let any = graph.apply(Operator::Cast, to(DType::F32), &[any])?;
    let shape = vec![batch, Dim::fixed(1), Dim::fixed(1)];
    Ok(result(graph.add(Op::View(shape), &[Some(any)])?))
}

/// Whether every element is an element of finite constants, for all inputs.
fn is_finite(graph: &Graph, value: Value) -> bool {
    let mut open = vec![value];
    for _ in 0..MOST_BEHIND_BIAS {
        let Some(value) = open.pop() else {
            return true;
        };
        if let Some(tensor) = graph.constant(value) {
            let elements = tensor.as_slice::<f32>();
            if !elements.is_some_and(|x| x.iter().all(|x| x.is_finite())) {
                return false;
            }
            continue;
        }
        let choices = match graph.op(value.node) {
            Op::View(_) | Op::Broadcast(_) | Op::Apply(Operator::Transpose, _) => 0..1,
            Op::Apply(Operator::Where, _) => 1..3,
            _ => return false,
        };
        open.extend(choices.filter_map(|i| graph.operand(value.node, i)));
    }
    false
}

/// How many values behind a bias are looked at.
const MOST_BEHIND_BIAS: usize = 32;

/// What of this attention is rounded and exact, for a remark.
fn describe(rounding: &AttentionRounding, m: &Match) -> String {
    let parts = [
        (rounding.scores, "products"),
        (rounding.masked, "scores"),
        (rounding.probabilities, "probabilities"),
    ];
    let rounded: Vec<&str> = (parts.iter())
        .filter_map(|(rounding, what)| rounding.map(|_| *what))
        .collect();
    let mut text = String::new();
    if !rounded.is_empty() {
        text = format!(", {} rounded", rounded.join(" and "));
    }
    if m.scores.zero_points.is_some() || m.weighted.zero_point.is_some() {
        text += ", integers exact in f32";
    }
    text
}

/// Up to here every whole number is an `f32`.
const EXACT: i64 = 1 << 24;

/// The number of keys up to which sums of products of probabilities with bytes are exact in `f32`; `None` if they need not
/// be, and a reason where those of queries with keys are not.
fn exact_keys(graph: &Graph, m: &Match, of_q: &Sizes) -> Result<Option<i64>, String> {
    let of = |v: Value, zero_point: i64| {
        let ty = graph.ty(v);
        magnitude(ty.dtype, zero_point).ok_or_else(|| format!("{ty} is no tensor of bytes"))
    };
    if let Some([q_zero, k_zero]) = m.scores.zero_points {
        let most = of(m.scores.queries, q_zero)?.saturating_mul(of(m.scores.keys, k_zero)?);
        let d = &of_q.features;
        let fits = (d.as_fixed()).is_some_and(|d| d.saturating_mul(most) <= EXACT);
        if !fits {
            return Err(format!(
                "sums of {d} products of up to {most} are not exact in f32"
            ));
        }
    }
    let (Some(zero_point), Some(rounding)) = (m.weighted.zero_point, m.weighted.rounding) else {
        return Ok(None);
    };
    let most = of(m.weighted.values, zero_point)?.max(1);
    let [scale, _, greatest] = rounding.numbers().map(f64::from);
    let total = (EXACT / most) as f64;
    // Probabilities sum to 1, up to what is lost in adding so many; each number is at most a half above its share.
    let by_sum = 2.0 * (total - 1.01 / scale - 1.0);
    let by_number = total / greatest.max(1.0);
    Ok(Some(by_sum.min(MOST_KEYS).max(by_number) as i64))
}

/// Sums of so many numbers in `f32` are within a hundredth.
const MOST_KEYS: f64 = 100_000.0;

/// Bytes with their zero point taken off, as `f32`.
fn whole_numbers(graph: &mut Graph, bytes: Value, zero_point: i64) -> Result<Value, PassError> {
    let zero = match graph.ty(bytes).dtype {
        DType::I8 => Tensor::scalar(zero_point as i8),
        _ => Tensor::scalar(zero_point as u8),
    };
    let one = graph.add_const("one", Tensor::scalar(1.0f32).into());
    let zero = graph.add_const("zero_point", zero.into());
    let operands = [bytes, one, zero];
    Ok(graph.apply(Operator::DequantizeLinear, Attributes::new(), &operands)?)
}
