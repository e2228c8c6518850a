//! Values of symbols, found from the shapes of tensors.

use std::collections::HashMap;

use crate::{Dim, Symbol};

/// What each symbol is known to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings(HashMap<Symbol, i64>);

/// Whether sizes can be what dimensions state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unify {
    /// They are, or depend on symbols that these sizes do not decide.
    Agree,
    Differ,
}

impl Bindings {
    /// Binds every symbol that the sizes decide: those that are linear and alone in a dimension, once the others are bound.
    pub(crate) fn unify(&mut self, dims: &[Dim], sizes: &[usize]) -> Unify {
        let mut open: Vec<(&Dim, i128)> = Vec::with_capacity(dims.len());
        open.extend(dims.iter().zip(sizes.iter().map(|&s| s as i128)));
        loop {
            let before = open.len();
            let mut differ = false;
            open.retain(|(dim, size)| match self.solve(dim, *size) {
                Solution::Equal => false,
                Solution::Bound(symbol, value) => {
                    self.0.insert(symbol, value);
                    false
                }
                Solution::Undecided => true,
                Solution::None => {
                    differ = true;
                    false
                }
            });
            if differ {
                return Unify::Differ;
            }
            if open.len() == before {
                return Unify::Agree;
            }
        }
    }

    fn solve(&self, dim: &Dim, size: i128) -> Solution {
        let mut rest = size;
        let mut unknown: Option<&Symbol> = None;
        let mut factor = 0i128;
        for (symbols, coefficient) in dim.terms() {
            let mut term = i128::from(coefficient);
            let mut unbound = None;
            for symbol in symbols {
                match self.0.get(symbol) {
                    Some(&v) => {
                        let Some(product) = term.checked_mul(i128::from(v)) else {
                            return Solution::None;
                        };
                        term = product;
                    }
                    None if unbound.is_none() => unbound = Some(symbol),
                    None => return Solution::Undecided,
                }
            }
            match (unbound, unknown) {
                (None, _) => match rest.checked_sub(term) {
                    Some(r) => rest = r,
                    None => return Solution::None,
                },
                (Some(s), Some(u)) if s != u => return Solution::Undecided,
                (Some(s), _) => {
                    unknown = Some(s);
                    match factor.checked_add(term) {
                        Some(f) => factor = f,
                        None => return Solution::None,
                    }
                }
            }
        }
        match unknown {
            None if rest == 0 => Solution::Equal,
            None => Solution::None,
            Some(_) if factor == 0 && rest == 0 => Solution::Undecided,
            Some(_) if factor == 0 || rest % factor != 0 => Solution::None,
            Some(symbol) => match i64::try_from(rest / factor) {
                Ok(v) if 0 <= v => Solution::Bound(symbol.clone(), v),
                _ => Solution::None,
            },
        }
    }

    /// True if every symbol of `dim` is bound.
    pub(crate) fn knows(&self, dim: &Dim) -> bool {
        dim.terms()
            .all(|(symbols, _)| symbols.iter().all(|s| self.0.contains_key(s)))
    }

    /// The value of `dim`, or `None` if a symbol is unbound or the value overflows.
    pub(crate) fn eval(&self, dim: &Dim) -> Option<i64> {
        dim.eval(&|name| self.0.get(&Symbol::new(name)).copied())
    }

    /// What is known of the symbols in these dimensions, for messages: ` where s = 3`, or nothing.
    pub(crate) fn describe(&self, dims: &[Dim]) -> String {
        let mut symbols: Vec<Symbol> = dims.iter().flat_map(Dim::symbols).collect();
        symbols.sort();
        symbols.dedup();
        let known: Vec<String> = symbols
            .iter()
            .filter_map(|s| Some(format!("{s} = {}", self.0.get(s)?)))
            .collect();
        if known.is_empty() {
            String::new()
        } else {
            format!(" where {}", known.join(", "))
        }
    }
}

enum Solution {
    Equal,
    Bound(Symbol, i64),
    /// Several symbols are unbound, or any value will do.
    Undecided,
    /// No value will do.
    None,
}
