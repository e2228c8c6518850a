//! Reading types: element types, shapes, sizes.

use lancet_ops::DType;

use crate::{Dim, TensorType};

use super::lex::Token;
use super::parse::{Parsed, Parser};

/// Dimensions of a type.
const MAX_RANK: usize = 32;

impl Parser<'_, '_> {
    pub(super) fn dtype(&mut self) -> Parsed<DType> {
        let start = self.start();
        let word = self.ident("an element type, such as `f32`")?;
        word.parse()
            .map_err(|_| self.mistake(start, format!("unknown element type `{word}`")))
    }

    /// `f32[s, 64]`, with a layout in braces where it is not row-major.
    pub(super) fn ty(&mut self) -> Parsed<TensorType> {
        let dtype = self.dtype()?;
        let shape = self.shape()?;
        let mut ty = TensorType::new(dtype, shape);
        if self.eat('{') {
            ty.layout = self.layout()?;
            self.expect('}')?;
        }
        Ok(ty)
    }

    /// `[s, 64]`: no size is a negative number.
    pub(super) fn shape(&mut self) -> Parsed<Vec<Dim>> {
        let start = self.start();
        self.expect('[')?;
        let shape = self.list(']', |p| {
            let start = p.start();
            let dim = p.dim()?;
            match dim.as_fixed() {
                Some(d) if d < 0 => Err(p.mistake(start, "a size cannot be negative")),
                _ => Ok(dim),
            }
        })?;
        if shape.len() > MAX_RANK {
            return Err(self.mistake(start, format!("more than {MAX_RANK} dimensions")));
        }
        Ok(shape)
    }

    /// A sum of products of numbers and symbols.
    pub(super) fn dim(&mut self) -> Parsed<Dim> {
        let start = self.start();
        let mut sum = Dim::fixed(0);
        let mut sign = if self.eat('-') { -1 } else { 1 };
        loop {
            let mut term = Some(Dim::fixed(sign));
            loop {
                // The one number whose magnitude is beyond `i64` is read together with its sign.
                if sign == -1 && *self.peek() == Token::Number("9223372036854775808") {
                    self.bump();
                    let power = Dim::fixed(i64::MIN);
                    term = term.and_then(|t| t.scale(-1)?.mul(&power));
                } else {
                    let factor = self.factor()?;
                    term = term.and_then(|t| t.mul(&factor));
                }
                if !self.eat('*') {
                    break;
                }
            }
            let Some(next) = term.and_then(|t| sum.add(&t)) else {
                return Err(self.mistake(start, "this size has too many terms, or overflows"));
            };
            sum = next;
            sign = if self.eat('+') {
                1
            } else if self.eat('-') {
                -1
            } else {
                return Ok(sum);
            };
        }
    }

    fn factor(&mut self) -> Parsed<Dim> {
        let start = self.start();
        let name = match self.peek().clone() {
            Token::Number(digits) => {
                self.bump();
                let value = digits.parse().map(Dim::fixed);
                return value.map_err(|_| self.mistake(start, "expected a whole number"));
            }
            Token::Ident(s) => s.to_owned(),
            Token::Str(s) => s,
            _ => return Err(self.expected("a size")),
        };
        self.bump();
        if !self.declares(&name) {
            let message = format!("the size `{name}` is not declared in dims(...)");
            return Err(self.mistake(start, message));
        }
        Ok(Dim::symbol(&name))
    }
}
