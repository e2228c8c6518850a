//! Symbolic dimensions: integer polynomials over named sizes.
//!
//! One compiled model serves every batch and length, so a dimension is fixed or an expression such as `2*batch*seq + 1`.
//! Invariants: terms are sorted by monomial, no two share one, no coefficient is zero; so equal polynomials are equal
//! values. Symbols stand for sizes, hence for numbers that are not negative.

use std::fmt;
use std::sync::Arc;

use crate::text;

/// The name of a size that is bound at run time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol of this name.
    pub fn new(name: &str) -> Symbol {
        Symbol(Arc::from(name))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Prints the name as IR text reads it: bare if it is an identifier, else in quotes with escapes.
impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if text::is_ident(&self.0) {
            return f.write_str(&self.0);
        }
        let mut quoted = String::new();
        text::quote(&mut quoted, &self.0);
        f.write_str(&quoted)
    }
}

/// Product of symbols, sorted; empty for the constant term.
type Monomial = Vec<Symbol>;

/// A dimension: an integer polynomial over symbols.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Vec<(Monomial, i64)>);

/// Expressions with more terms, or of a higher degree, are given a symbol of their own instead.
const MAX_TERMS: usize = 32;
const MAX_DEGREE: usize = 6;

impl Dim {
    /// A fixed size.
    pub fn fixed(value: i64) -> Dim {
        if value == 0 {
            Dim(Vec::new())
        } else {
            Dim(vec![(Vec::new(), value)])
        }
    }

    /// A symbolic size.
    pub fn symbol(name: &str) -> Dim {
        Dim(vec![(vec![Symbol::new(name)], 1)])
    }

    /// The value if no symbol occurs.
    pub fn as_fixed(&self) -> Option<i64> {
        match self.0.as_slice() {
            [] => Some(0),
            [(m, c)] if m.is_empty() => Some(*c),
            _ => None,
        }
    }

    /// The symbol if the expression is one symbol and nothing else.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        match self.0.as_slice() {
            [(m, 1)] if m.len() == 1 => Some(&m[0]),
            _ => None,
        }
    }

    /// Terms as (symbols multiplied, coefficient), in canonical order.
    pub fn terms(&self) -> impl Iterator<Item = (&[Symbol], i64)> {
        self.0.iter().map(|(m, c)| (m.as_slice(), *c))
    }

    /// The expression with these terms, or `None` on overflow or beyond the size limits.
    pub fn from_terms(terms: impl IntoIterator<Item = (Vec<Symbol>, i64)>) -> Option<Dim> {
        let mut out: Vec<(Monomial, i64)> = Vec::new();
        for (mut m, c) in terms {
            if m.len() > MAX_DEGREE {
                return None;
            }
            m.sort();
            match out.binary_search_by(|(n, _)| n.cmp(&m)) {
                Ok(i) => out[i].1 = out[i].1.checked_add(c)?,
                Err(i) => out.insert(i, (m, c)),
            }
            if out.len() > 4 * MAX_TERMS {
                return None;
            }
        }
        out.retain(|(_, c)| *c != 0);
        (out.len() <= MAX_TERMS).then_some(Dim(out))
    }

    /// Sum, or `None` on overflow.
    pub fn add(&self, other: &Dim) -> Option<Dim> {
        Dim::from_terms(self.0.iter().chain(&other.0).cloned())
    }

    /// Difference, or `None` on overflow.
    pub fn sub(&self, other: &Dim) -> Option<Dim> {
        self.add(&other.scale(-1)?)
    }

    /// Product with a number, or `None` on overflow.
    pub fn scale(&self, by: i64) -> Option<Dim> {
        let terms: Option<Vec<_>> = self
            .0
            .iter()
            .map(|(m, c)| Some((m.clone(), c.checked_mul(by)?)))
            .collect();
        Dim::from_terms(terms?)
    }

    /// Product, or `None` on overflow.
    pub fn mul(&self, other: &Dim) -> Option<Dim> {
        let mut terms = Vec::with_capacity(self.0.len() * other.0.len());
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                terms.push((a.iter().chain(b).cloned().collect(), x.checked_mul(*y)?));
            }
        }
        Dim::from_terms(terms)
    }

    /// Product of many, or `None` on overflow.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Option<Dim> {
        dims.into_iter().try_fold(Dim::fixed(1), |a, d| a.mul(d))
    }

    /// The quotient if `divisor` is a factor of this expression.
    ///
    /// Divisibility is formal: `batch*seq / seq` is `batch`, under the assumption that `seq` is not zero.
    pub fn div_exact(&self, divisor: &Dim) -> Option<Dim> {
        let (dm, dc) = divisor.leading()?;
        let (mut rest, mut quotient) = (self.clone(), Dim::fixed(0));
        // The leading monomial of the rest decreases, or there is no quotient.
        while let Some((m, c)) = rest.leading() {
            if c.checked_rem(dc)? != 0 {
                return None;
            }
            let mut monomial = m.to_vec();
            for s in dm {
                monomial.remove(monomial.iter().position(|r| r == s)?);
            }
            let term = Dim(vec![(monomial, c.checked_div(dc)?)]);
            rest = rest.sub(&term.mul(divisor)?)?;
            quotient = quotient.add(&term)?;
        }
        Some(quotient)
    }

    /// The term of the highest degree, the last one of several: products keep this order.
    fn leading(&self) -> Option<(&[Symbol], i64)> {
        let greatest = |(m, _): &&(Monomial, i64)| (m.len(), m.clone());
        let (m, c) = self.0.iter().max_by_key(greatest)?;
        Some((m, *c))
    }

    /// The expression with `by` in the place of a symbol, or `None` on overflow.
    pub fn substitute(&self, symbol: &Symbol, by: &Dim) -> Option<Dim> {
        let mut out = Dim::fixed(0);
        for (m, c) in &self.0 {
            let (replaced, kept): (Vec<Symbol>, Vec<Symbol>) =
                m.iter().cloned().partition(|s| s == symbol);
            let mut term = Dim(vec![(kept, *c)]);
            for _ in replaced {
                term = term.mul(by)?;
            }
            out = out.add(&term)?;
        }
        Some(out)
    }

    /// True if the value is known to be greater than zero or equal to it, whatever the sizes.
    pub fn is_non_negative(&self) -> bool {
        self.0.iter().all(|(_, c)| *c > 0)
    }

    /// True if the value is known not to be negative where no size is zero.
    pub fn is_non_negative_from_one(&self) -> bool {
        let next =
            |d: Dim, s: &Symbol| d.substitute(s, &Dim(vec![(Vec::new(), 1), (vec![s.clone()], 1)]));
        let shifted = self.symbols().iter().try_fold(self.clone(), next);
        shifted.is_some_and(|d| d.is_non_negative())
    }

    /// True if the value is known to be greater than zero, whatever the sizes.
    pub fn is_positive(&self) -> bool {
        self.is_non_negative() && self.0.iter().any(|(m, c)| m.is_empty() && *c > 0)
    }

    /// Whether two dimensions are equal for all sizes (`Some(true)`), for none (`Some(false)`), or it depends.
    pub fn equals(&self, other: &Dim) -> Option<bool> {
        let d = self.sub(other)?;
        if d.0.is_empty() {
            Some(true)
        } else if d.is_positive() || d.scale(-1)?.is_positive() {
            Some(false)
        } else {
            None
        }
    }

    /// The value under `bindings`, or `None` if a symbol is unbound or the value overflows.
    pub fn eval(&self, bindings: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        let mut sum = 0i64;
        for (m, c) in &self.0 {
            let mut term = *c;
            for s in m {
                term = term.checked_mul(bindings(s.name())?)?;
            }
            sum = sum.checked_add(term)?;
        }
        Some(sum)
    }

    /// Symbols that occur, sorted, without repetition.
    pub fn symbols(&self) -> Vec<Symbol> {
        let mut out: Vec<Symbol> = self.0.iter().flat_map(|(m, _)| m.iter().cloned()).collect();
        out.sort();
        out.dedup();
        out
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Dim {
        Dim::fixed(i64::try_from(v).unwrap_or(i64::MAX))
    }
}

/// Prints terms of the highest degree first: `batch*seq + 2*seq - 1`.
impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        let mut terms: Vec<_> = self.0.iter().collect();
        terms.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        for (i, (m, c)) in terms.into_iter().enumerate() {
            let sign = if *c < 0 { "-" } else { "+" };
            match (i, *c < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                _ => write!(f, " {sign} ")?,
            }
            let magnitude = c.unsigned_abs();
            if m.is_empty() {
                write!(f, "{magnitude}")?;
                continue;
            }
            if magnitude != 1 {
                write!(f, "{magnitude}*")?;
            }
            for (j, s) in m.iter().enumerate() {
                write!(f, "{}{s}", if j == 0 { "" } else { "*" })?;
            }
        }
        Ok(())
    }
}
