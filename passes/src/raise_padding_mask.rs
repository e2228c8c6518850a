//! Brings the bias of attention scores that stands for a padding mask to one form, `[batch, 1, 1, keys]`.
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[b, 2, s, s], %mask: i64[b, s]) dims(b, s) {
//!   const @axes: i64[2] = [1, 2]
//!   const @one: f32[] = 1.0
//!   const @lo: f32[] = -10000.0
//!   %0 = unsqueeze %mask, @axes : i64[b, 1, 1, s]
//!   %1 = cast %0 {to = "f32"} : f32[b, 1, 1, s]
//!   %2 = sub @one, %1 : f32[b, 1, 1, s]
//!   %3 = mul %2, @lo : f32[b, 1, 1, s]
//!   %4 = add %x, %3 : f32[b, 2, s, s]
//!   %5 = softmax %4 : f32[b, 2, s, s]
//!   return %5
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[b, 2, s, s], %mask: i64[b, s]) dims(b, s) {
//!   const @attended: f32[] = 0.0
//!   const @masked: f32[] = -10000.0
//!   %0 = cast %mask {to = "bool"} : bool[b, s]
//!   %1 = view %0 : bool[b, 1, 1, s]
//!   %2 = where %1, @attended, @masked : f32[b, 1, 1, s]
//!   %3 = add %x, %2 : f32[b, 2, s, s]
//!   %4 = softmax %3 : f32[b, 2, s, s]
//!   return %4
//! }
//! ```
//!
//! Identity: the bias at `[b, h, q, k]` is `f(mask[b, k])` for a scalar function with `f(0) <= -10000` and `f(1) = 0`. A bias
//! that is zero everywhere is no bias.
//!
//! Preconditions: the bias is added to `f32` scores of rank 4 under a softmax over keys, and the affine access analysis
//! finds `f`. Where the mask is used in arithmetic instead of being tested for zero, its elements are taken to be 0 or 1,
//! which a remark says. Anything else stays an ordinary bias, with a remark.
//!
//! Numeric effect: exact for masks of 0 and 1, up to the sign of a zero.
//!
//! Source: Devlin et al., "BERT", 2018, whose reference code writes `(1 - mask) * -10000`.

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};

use crate::analysis::padding::{PaddingMask, ScoreBias, score_bias};
use crate::matcher::{axis_of, binary, result};
use crate::{Changed, Pass, PassContext, PassError, PassInfo, Rewrites};

pub(crate) const INFO: PassInfo = PassInfo {
    name: "raise-padding-mask",
    summary: "recognises biases of attention scores that are padding masks",
    options: &[],
    new: || Box::new(RaisePaddingMask),
};

struct RaisePaddingMask;

/// A sum of scores and a bias that is understood.
struct Match {
    sum: Value,
    scores: Value,
    bias: ScoreBias,
}

impl Pass for RaisePaddingMask {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut found = Vec::new();
        for node in graph.order() {
            match find(graph, node) {
                None => {}
                Some(Ok(m)) => {
                    if let ScoreBias::Padding(p) = m.bias
                        && let Some(assumption) = p.domain.assumption()
                    {
                        cx.analysis(graph, m.sum.node, assumption);
                    }
                    found.push(m);
                }
                Some(Err(reason)) => cx.missed(graph, node, reason),
            }
        }
        let mut rewrites = Rewrites::new();
        for m in found {
            apply(graph, &mut rewrites, &m)?;
        }
        Ok(rewrites.changed())
    }
}

/// The understood bias under a softmax over keys; the reason if its bias is not; nothing where there is none to raise.
fn find(graph: &Graph, softmax: NodeId) -> Option<Result<Match, String>> {
    if graph.op(softmax).operator() != Some(Operator::Softmax) {
        return None;
    }
    let sum = graph.operand(softmax, 0)?;
    let (a, b) = binary(graph, sum, Operator::Add)?;
    let ty = graph.ty(sum);
    if ty.rank() != 4 || ty.dtype != DType::F32 || axis_of(graph, softmax, 4)? != 3 {
        return None;
    }
    for (scores, bias) in [(a, b), (b, a)] {
        if !graph.ty(scores).same_value(ty) || is_raised(graph, bias) {
            continue;
        }
        match score_bias(graph, bias) {
            Some(bias @ ScoreBias::Zero) => return Some(Ok(Match { sum, scores, bias })),
            Some(found @ ScoreBias::Padding(_)) => {
                let of_bias = graph.shape(bias);
                let fits =
                    of_bias.len() == 4 && of_bias[0] == ty.shape[0] && of_bias[3] == ty.shape[3];
                if !fits {
                    return Some(Err(format!("a mask of type {}", graph.ty(bias))));
                }
                let bias = found;
                return Some(Ok(Match { sum, scores, bias }));
            }
            None => {}
        }
    }
    if is_raised(graph, a) || is_raised(graph, b) {
        return None;
    }
    Some(Err(
        "the bias is no function of one mask element per key".to_owned()
    ))
}

/// Whether a bias is what this pass writes.
fn is_raised(graph: &Graph, bias: Value) -> bool {
    let scalar = |v: Option<Value>| v.is_some_and(|v| graph.ty(v).rank() == 0);
    let condition = graph.operand(bias.node, 0);
    graph.operator(bias) == Some(Operator::Where)
        && scalar(graph.operand(bias.node, 1))
        && scalar(graph.operand(bias.node, 2))
        && condition.is_some_and(|c| matches!(graph.op(c.node), Op::View(_)))
        && graph.shape(bias)[1..3]
            .iter()
            .all(|d| d.as_fixed() == Some(1))
}

fn apply(graph: &mut Graph, rewrites: &mut Rewrites, m: &Match) -> Result<(), PassError> {
    let ScoreBias::Padding(padding) = m.bias else {
        return rewrites.replace(graph, m.sum, m.scores);
    };
    let bias = canonical(graph, rewrites, m.sum, padding)?;
    let add = Op::Apply(Operator::Add, Attributes::new());
    rewrites.replace_by(graph, m.sum, add, &[m.scores, bias])?;
    Ok(())
}

/// `where(mask, 0, masked_value)` under the shape `[batch, 1, 1, keys]`.
fn canonical(
    graph: &mut Graph,
    rewrites: &Rewrites,
    sum: Value,
    padding: PaddingMask,
) -> Result<Value, PassError> {
    let mut mask = rewrites.resolve(padding.mask);
    if graph.ty(mask).dtype != DType::Bool {
        let to = Attributes::new().with("to", Attribute::Str(DType::Bool.name().to_owned()));
        mask = graph.apply(Operator::Cast, to, &[mask])?;
    }
    let [batch, _, _, keys] = graph.shape(sum) else {
        return Err(PassError::Broken("scores are of rank 4".to_owned()));
    };
    let one = lancet_ir::Dim::fixed(1);
    let shape = vec![batch.clone(), one.clone(), one, keys.clone()];
    let mask = result(graph.add(Op::View(shape), &[Some(mask)])?);
    let attended = graph.add_const("attended", Tensor::scalar(0.0f32).into());
    let masked = graph.add_const("masked", Tensor::scalar(padding.masked_value).into());
    Ok(graph.apply(
        Operator::Where,
        Attributes::new(),
        &[mask, attended, masked],
    )?)
}
