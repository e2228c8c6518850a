//! Reading graphs as algebra: polynomials in chosen values, scalar factors.
//!
//! Exporters spell the same formula in many orders of association. The raising passes therefore compare polynomials, not
//! trees of nodes: [`polynomial`] expands a value into `Σ c · xⁱ · tʲ` over two chosen values and scalar constants.

use std::collections::BTreeMap;

use lancet_ir::{Graph, Value};
use lancet_ops::Operator;

use crate::matcher::{binary, commuted, scalar, unary};

/// The factor and the other operand, if `value` is another one negated, or times or divided by a scalar constant, and of
/// the same type.
pub(crate) fn scaled(graph: &Graph, value: Value) -> Option<(Value, f64)> {
    let (x, factor) = if let Some(x) = unary(graph, value, Operator::Neg) {
        (x, -1.0)
    } else if let Some((x, c)) = binary(graph, value, Operator::Div) {
        (x, 1.0 / number(graph, c)?)
    } else {
        let (c, x) = commuted(graph, value, Operator::Mul, |v| number(graph, v))?;
        (x, c)
    };
    (factor.is_finite() && graph.ty(x).same_value(graph.ty(value))).then_some((x, factor))
}

/// [`scalar`] in double precision.
pub(crate) fn number(graph: &Graph, value: Value) -> Option<f64> {
    scalar(graph, value).map(f64::from)
}

/// True if nothing needs this value.
pub(crate) fn is_dead(graph: &Graph, value: Value) -> bool {
    graph.users(value).is_empty() && !graph.is_output(value)
}

/// True if two numbers agree as far as exporters round their literals: to four decimal digits, or to `f16`, of which two may
/// be multiplied.
pub(crate) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2.5e-4 * b.abs()
}

/// A polynomial in two values `x` and `t`: coefficients by exponents `(i, j)` of `xⁱ tʲ`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Polynomial(BTreeMap<(u32, u32), f64>);

/// Exponents beyond these do not occur in the formulas that passes look for.
const MAX_EXPONENTS: (u32, u32) = (3, 1);

/// Nodes visited before [`polynomial`] gives up.
const MAX_NODES: usize = 64;

impl Polynomial {
    fn term(exponents: (u32, u32), coefficient: f64) -> Polynomial {
        Polynomial(BTreeMap::from([(exponents, coefficient)]))
    }

    fn as_constant(&self) -> Option<f64> {
        match self.0.iter().next() {
            None => Some(0.0),
            Some((&(0, 0), &c)) if self.0.len() == 1 => Some(c),
            Some(_) => None,
        }
    }

    fn add(mut self, other: &Polynomial, sign: f64) -> Polynomial {
        for (&e, &c) in &other.0 {
            *self.0.entry(e).or_insert(0.0) += sign * c;
        }
        self
    }

    fn mul(&self, other: &Polynomial) -> Option<Polynomial> {
        let mut out = Polynomial::default();
        for (&(i, j), &a) in &self.0 {
            for (&(k, l), &b) in &other.0 {
                let e = (i + k, j + l);
                if e.0 > MAX_EXPONENTS.0 || e.1 > MAX_EXPONENTS.1 {
                    return None;
                }
                *out.0.entry(e).or_insert(0.0) += a * b;
            }
        }
        Some(out)
    }

    /// The coefficient of `xⁱ tʲ`.
    pub(crate) fn coefficient(&self, exponents: (u32, u32)) -> f64 {
        self.0.get(&exponents).copied().unwrap_or(0.0)
    }

    /// True if these are the coefficients, others being zero, up to the rounding of literals.
    pub(crate) fn is_close_to(&self, terms: &[((u32, u32), f64)]) -> bool {
        let largest = terms.iter().map(|(_, c)| c.abs()).fold(0.0, f64::max);
        let wanted = |e| terms.iter().find(|(f, _)| *f == e);
        terms.iter().all(|&(e, c)| close(self.coefficient(e), c))
            && self
                .0
                .iter()
                .all(|(&e, c)| wanted(e).is_some() || c.abs() <= 1e-6 * largest)
    }
}

/// Expands `value` into a polynomial in `x` and `t`, or `None` if it is computed from other values too.
pub(crate) fn polynomial(
    graph: &Graph,
    value: Value,
    x: Value,
    t: Option<Value>,
) -> Option<Polynomial> {
    expand(graph, value, x, t, &mut { MAX_NODES })
}

fn expand(
    graph: &Graph,
    value: Value,
    x: Value,
    t: Option<Value>,
    budget: &mut usize,
) -> Option<Polynomial> {
    *budget = budget.checked_sub(1)?;
    if value == x {
        return Some(Polynomial::term((1, 0), 1.0));
    }
    if Some(value) == t {
        return Some(Polynomial::term((0, 1), 1.0));
    }
    if let Some(c) = number(graph, value) {
        return c.is_finite().then(|| Polynomial::term((0, 0), c));
    }
    let mut of = |v| expand(graph, v, x, t, budget);
    match graph.operator(value)? {
        Operator::Neg => {
            Some(Polynomial::default().add(&of(unary(graph, value, Operator::Neg)?)?, -1.0))
        }
        Operator::Add => {
            let (a, b) = binary(graph, value, Operator::Add)?;
            Some(of(a)?.add(&of(b)?, 1.0))
        }
        Operator::Sub => {
            let (a, b) = binary(graph, value, Operator::Sub)?;
            Some(of(a)?.add(&of(b)?, -1.0))
        }
        Operator::Mul => {
            let (a, b) = binary(graph, value, Operator::Mul)?;
            of(a)?.mul(&of(b)?)
        }
        Operator::Div => {
            let (a, b) = binary(graph, value, Operator::Div)?;
            let divisor = of(b)?.as_constant().filter(|c| *c != 0.0)?;
            of(a)?.mul(&Polynomial::term((0, 0), 1.0 / divisor))
        }
        Operator::Pow => {
            let (a, b) = binary(graph, value, Operator::Pow)?;
            let base = of(a)?;
            let exponent = number(graph, b).filter(|e| [1.0, 2.0, 3.0].contains(e))?;
            (1..exponent as u32).try_fold(base.clone(), |p, _| p.mul(&base))
        }
        _ => None,
    }
}

/// Values other than constants that `value` is computed from by sums, products, quotients and powers, nearest first and
/// `value` itself included: what its polynomial may be in.
pub(crate) fn variables(graph: &Graph, value: Value) -> Vec<Value> {
    let arithmetic = [
        Operator::Neg,
        Operator::Add,
        Operator::Sub,
        Operator::Mul,
        Operator::Div,
        Operator::Pow,
    ];
    let mut found = vec![value];
    let mut next = 0;
    while next < found.len() && found.len() < MAX_NODES {
        let v = found[next];
        next += 1;
        if graph.operator(v).is_some_and(|op| arithmetic.contains(&op)) {
            for o in graph.operands(v.node).into_iter().flatten() {
                if graph.constant(o).is_none() && !found.contains(&o) {
                    found.push(o);
                }
            }
        }
    }
    found
}
