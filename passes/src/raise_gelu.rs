//! Raises activations written out in arithmetic: `Gelu` in both forms, and `Swish` (SiLU, quick GELU).
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   const @root2: f32[] = 1.4142135
//!   const @one: f32[] = 1.0
//!   const @half: f32[] = 0.5
//!   %0 = div %x, @root2 : f32[s, 4]
//!   %1 = erf %0 : f32[s, 4]
//!   %2 = add %1, @one : f32[s, 4]
//!   %3 = mul %x, %2 : f32[s, 4]
//!   %4 = mul %3, @half : f32[s, 4]
//!   return %4
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[s, 4]) dims(s) {
//!   %0 = gelu %x {approximate = "none"} : f32[s, 4]
//!   return %0
//! }
//! ```
//!
//! Identities, with `t` the transcendental function of a polynomial in `x`:
//!
//! ```text
//! t = erf(x / sqrt 2)                          x/2 + x·t/2 = gelu(x)
//! t = tanh(sqrt(2/π) · (x + 0.044715 · x³))    x/2 + x·t/2 = gelu(x), tanh approximation
//! t = sigmoid(a · x)                           x·t         = swish(x, a)
//! ```
//!
//! Both sides are compared as polynomials, so that every order of association, `Pow` or repeated `Mul`, `Div` or `Mul` by
//! the reciprocal is the same pattern. ONNX Runtime's fused forms (`Gelu`, `BiasGelu`, `FastGelu`, `QuickGelu` of
//! `com.microsoft`) become the same operators.
//!
//! Preconditions: `x` is `f32` and the constants are scalars that agree with the formula as far as products of two `f16` can. Where the argument
//! of `erf` or `tanh` fits and the rest does not, the pass declines with a remark.
//!
//! Numeric effect: approximates; the constants are replaced by exact ones, at most 2.5e-4 relative to the literals.
//!
//! Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv:1606.08415).

use lancet_ir::{Graph, NodeId, Op, Value};
use lancet_ops::{Attribute, Attributes, DType, Operator};

use crate::matcher::{is_dtype, result};
use crate::polynomial::{Polynomial, polynomial, variables};
use crate::{Changed, Pass, PassContext, PassError, Rewrites};

/// The pass `raise-gelu`.
pub(crate) struct RaiseGelu;

/// One activation: what to put in the place of `root`.
struct Match {
    root: Value,
    x: Value,
    op: Operator,
    attributes: Attributes,
    /// Added to `x` first.
    bias: Option<Value>,
}

/// Nodes above a transcendental function that are looked at for the end of the formula.
const MAX_ROOTS: usize = 16;

const HALF_X_PLUS_HALF_XT: [((u32, u32), f64); 2] = [((1, 0), 0.5), ((1, 1), 0.5)];
const ERF_ARGUMENT: [((u32, u32), f64); 1] = [((1, 0), std::f64::consts::FRAC_1_SQRT_2)];
/// `sqrt(2/π)`, and times 0.044715.
const TANH_ARGUMENT: [((u32, u32), f64); 2] = [
    ((1, 0), 0.797_884_560_802_865_4),
    ((3, 0), 0.035_677_408_136_300_1),
];

impl Pass for RaiseGelu {
    fn name(&self) -> &'static str {
        "raise-gelu"
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        let mut matches = Vec::new();
        for node in graph.order() {
            let found = match graph.op(node).operator() {
                Some(Operator::Erf | Operator::Tanh | Operator::Sigmoid) => {
                    written_out(graph, node, cx)
                }
                Some(
                    Operator::MsGelu
                    | Operator::MsBiasGelu
                    | Operator::MsFastGelu
                    | Operator::MsQuickGelu,
                ) => contributed(graph, node),
                _ => None,
            };
            matches.extend(found);
        }
        let mut rewrites = Rewrites::new();
        for m in matches {
            if rewrites.is_replaced(m.root) {
                continue;
            }
            let mut x = rewrites.resolve(m.x);
            if let Some(bias) = m.bias {
                x = graph.apply(
                    Operator::Add,
                    Attributes::new(),
                    &[x, rewrites.resolve(bias)],
                )?;
            }
            cx.applied(graph, m.root.node, format!("raised to {}", m.op));
            rewrites.replace_by(graph, m.root, Op::Apply(m.op, m.attributes), &[x])?;
        }
        Ok(rewrites.changed())
    }
}

fn gelu(approximate: &str) -> (Operator, Attributes) {
    let attributes = Attributes::new().with("approximate", Attribute::Str(approximate.to_owned()));
    (Operator::Gelu, attributes)
}

fn swish(alpha: f64) -> (Operator, Attributes) {
    let attributes = Attributes::new().with("alpha", Attribute::Float(alpha as f32));
    (Operator::Swish, attributes)
}

/// The formula that the transcendental function of `node` is part of.
fn written_out(graph: &Graph, node: NodeId, cx: &mut PassContext<'_>) -> Option<Match> {
    let t = result(node);
    let function = graph.operator(t)?;
    let argument = graph
        .operand(node, 0)
        .filter(|&u| is_dtype(graph, u, DType::F32))?;
    let mut argument_fits = false;
    for x in variables(graph, argument) {
        let Some(u) = polynomial(graph, argument, x, None) else {
            continue;
        };
        let alpha = u.coefficient((1, 0));
        let (fits, root_terms, (op, attributes)): (bool, &[_], _) = match function {
            Operator::Erf => (
                u.is_close_to(&ERF_ARGUMENT),
                &HALF_X_PLUS_HALF_XT,
                gelu("none"),
            ),
            Operator::Tanh => (
                u.is_close_to(&TANH_ARGUMENT),
                &HALF_X_PLUS_HALF_XT,
                gelu("tanh"),
            ),
            _ => (
                alpha != 0.0 && u.is_close_to(&[((1, 0), alpha)]),
                &[((1, 1), 1.0)],
                swish(alpha),
            ),
        };
        if !fits {
            continue;
        }
        argument_fits = true;
        if let Some(root) = find_root(graph, x, t, |p| p.is_close_to(root_terms)) {
            return Some(Match {
                root,
                x,
                op,
                attributes,
                bias: None,
            });
        }
    }
    if argument_fits && function != Operator::Sigmoid {
        let message =
            format!("the argument of {function} is that of gelu, but no user completes it");
        cx.missed(graph, node, message);
    }
    None
}

/// The nearest value computed from `t` whose polynomial in `x` and `t` is accepted.
fn find_root(
    graph: &Graph,
    x: Value,
    t: Value,
    accept: impl Fn(&Polynomial) -> bool,
) -> Option<Value> {
    let mut open = vec![t];
    let mut next = 0;
    while next < open.len() {
        for (user, _) in graph.users(open[next]) {
            let value = result(user);
            if open.contains(&value) {
                continue;
            }
            if let Some(p) = polynomial(graph, value, x, Some(t)) {
                if accept(&p) && graph.ty(value).same_value(graph.ty(x)) {
                    return Some(value);
                }
                open.push(value);
                if MAX_ROOTS < open.len() {
                    return None;
                }
            }
        }
        next += 1;
    }
    None
}

/// The ONNX form of ONNX Runtime's fused activations.
fn contributed(graph: &Graph, node: NodeId) -> Option<Match> {
    let root = result(node);
    let x = graph
        .operand(node, 0)
        .filter(|&x| is_dtype(graph, x, DType::F32))?;
    let bias = graph.operand(node, 1);
    let (op, attributes) = match graph.operator(root)? {
        Operator::MsGelu | Operator::MsBiasGelu => gelu("none"),
        Operator::MsFastGelu => gelu("tanh"),
        Operator::MsQuickGelu => swish(f64::from(graph.attributes(node).float_or("alpha", 1.702))),
        _ => return None,
    };
    graph.ty(root).same_value(graph.ty(x)).then_some(Match {
        root,
        x,
        op,
        attributes,
        bias,
    })
}
