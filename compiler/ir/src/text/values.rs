//! Reading what a node or a constant holds: layouts, attributes, lists of elements, generator literals.

use std::sync::Arc;

use lancet_ops::{Attribute, AttributeType, Attributes, DType, Operator, Tensor};

use crate::{Generator, Layout, Pattern, Random, WeightFormat};

use super::lex::Token;
use super::literal::{Scalar, elements};
use super::parse::{Parsed, Parser};

/// Nesting of lists.
const MAX_DEPTH: usize = 32;

impl<'t> Parser<'t, '_> {
    /// What stands in braces behind a type: `panels`, `dense`, `bsr 4x1`, `nm 2:4`, ...
    pub(super) fn layout(&mut self) -> Parsed<Layout> {
        let start = self.start();
        let word = self.ident("a layout")?;
        Ok(match word {
            "row_major" => Layout::RowMajor,
            "panels" => Layout::Panels,
            "dense" => Layout::Packed(WeightFormat::Dense),
            "unstructured" => Layout::Packed(WeightFormat::Unstructured),
            "bsr" => {
                let (r, c) = self.block()?;
                match (u8::try_from(r), u8::try_from(c)) {
                    (Ok(r), Ok(c)) => Layout::Packed(WeightFormat::Bsr { r, c }),
                    _ => return Err(self.mistake(start, "blocks have at most 255 rows or columns")),
                }
            }
            "nm" => {
                let (n, m) = self.ratio()?;
                match (u8::try_from(n), u8::try_from(m)) {
                    (Ok(n), Ok(m)) => Layout::Packed(WeightFormat::NOfM { n, m }),
                    _ => return Err(self.mistake(start, "groups have at most 255 elements")),
                }
            }
            _ => return Err(self.mistake(start, format!("unknown layout `{word}`"))),
        })
    }

    /// `4x1`
    fn block(&mut self) -> Parsed<(usize, usize)> {
        let start = self.start();
        let sizes = match self.bump() {
            Token::Number(text) => text
                .split_once('x')
                .and_then(|(r, c)| Some((r.parse().ok()?, c.parse().ok()?))),
            _ => None,
        };
        sizes.ok_or_else(|| self.mistake(start, "expected rows and columns, such as `4x1`"))
    }

    /// `2:4`
    fn ratio(&mut self) -> Parsed<(usize, usize)> {
        let n = self.count()?;
        self.expect(':')?;
        Ok((n, self.count()?))
    }

    fn count<T: std::str::FromStr>(&mut self) -> Parsed<T> {
        let start = self.start();
        let value = match self.bump() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        value.ok_or_else(|| self.mistake(start, "expected a whole number"))
    }

    /// A number or a word such as `inf`, with its sign.
    fn scalar(&mut self) -> Parsed<Scalar<'t>> {
        let negative = self.eat('-');
        match *self.peek() {
            Token::Number(text) | Token::Ident(text @ ("inf" | "nan" | "true" | "false")) => {
                self.bump();
                Ok(Scalar { negative, text })
            }
            _ => Err(self.expected("a number")),
        }
    }

    fn float(&mut self) -> Parsed<f64> {
        let start = self.start();
        let scalar = self.scalar()?;
        let value = scalar.float::<f64>();
        value.ok_or_else(|| self.mistake(start, format!("`{}` is not a number", scalar.signed())))
    }

    // Attributes.

    /// `{name = value, ...}`, by the types that the operator's schema states.
    pub(super) fn attributes(&mut self, op: Operator) -> Parsed<Attributes> {
        let mut attributes = Attributes::new();
        self.expect('{')?;
        self.list('}', |p| {
            let start = p.start();
            let name = p.ident("the name of an attribute")?;
            let Some(schema) = op.schema().attributes.iter().find(|a| a.name == name) else {
                return Err(p.mistake(start, format!("`{op}` has no attribute `{name}`")));
            };
            if attributes.get(name).is_some() {
                return Err(p.mistake(start, format!("`{name}` is set twice")));
            }
            p.expect('=')?;
            let value = p.attribute(schema.ty)?;
            attributes.set(name, value);
            Ok(())
        })?;
        Ok(attributes)
    }

    fn attribute(&mut self, ty: AttributeType) -> Parsed<Attribute> {
        Ok(match ty {
            AttributeType::Int => Attribute::Int(self.int_attribute()?),
            AttributeType::Float => Attribute::Float(self.float_attribute()?),
            AttributeType::Str => Attribute::Str(self.str_attribute()?),
            AttributeType::Ints => {
                self.expect('[')?;
                Attribute::Ints(self.list(']', Self::int_attribute)?)
            }
            AttributeType::Floats => {
                self.expect('[')?;
                Attribute::Floats(self.list(']', Self::float_attribute)?)
            }
            AttributeType::Strs => {
                self.expect('[')?;
                Attribute::Strs(self.list(']', Self::str_attribute)?)
            }
            AttributeType::Tensor => {
                let start = self.start();
                let dtype = self.dtype()?;
                let dims = self.shape()?;
                let shape: Option<Vec<usize>> = dims
                    .iter()
                    .map(|d| usize::try_from(d.as_fixed()?).ok())
                    .collect();
                let Some(shape) = shape else {
                    return Err(self.mistake(start, "the shape of an attribute must be fixed"));
                };
                Attribute::Tensor(self.tensor(dtype, shape)?.0)
            }
        })
    }

    fn int_attribute(&mut self) -> Parsed<i64> {
        let start = self.start();
        let scalar = self.scalar()?;
        let value = scalar.int().and_then(|v| i64::try_from(v).ok());
        value.ok_or_else(|| {
            let message = format!("`{}` is not a whole number of 64 bits", scalar.signed());
            self.mistake(start, message)
        })
    }

    fn float_attribute(&mut self) -> Parsed<f32> {
        let start = self.start();
        let scalar = self.scalar()?;
        let value = scalar.float::<f32>();
        value.ok_or_else(|| {
            let message = format!("`{}` is not a value of f32", scalar.signed());
            self.mistake(start, message)
        })
    }

    fn str_attribute(&mut self) -> Parsed<String> {
        match self.peek().clone() {
            Token::Str(s) => {
                self.bump();
                Ok(s)
            }
            _ => Err(self.expected("a string")),
        }
    }

    // Tensors.

    /// The elements behind the type of a tensor, and the generator literal if that is what stands there.
    pub(super) fn tensor(
        &mut self,
        dtype: DType,
        shape: Vec<usize>,
    ) -> Parsed<(Arc<Tensor>, Option<String>)> {
        let start = self.start();
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        // A size of 0 makes the product 0, yet kernels and inference multiply the others too.
        let sizes_fit = shape
            .iter()
            .filter(|d| **d != 0)
            .try_fold(1usize, |a, &d| a.checked_mul(d))
            .is_some_and(|n| isize::try_from(n).is_ok());
        let n = match n.filter(|n| sizes_fit && *n <= self.elements_left) {
            Some(n) => n,
            None => return Err((start, start + 1, "the constants are too large".to_owned())),
        };
        self.elements_left -= n;
        if *self.peek() == Token::Ident("hash") {
            return Ok((self.hashed(dtype, &shape)?, None));
        }
        if matches!(
            self.peek(),
            Token::Ident("zeros" | "ones" | "full" | "iota" | "eye" | "random")
        ) {
            let generator = self.generator()?;
            let tensor = generator
                .tensor(dtype, &shape)
                .map_err(|e| self.mistake(start, e.to_string()))?;
            return Ok((Arc::new(tensor), Some(generator.to_string())));
        }
        let mut scalars = Vec::new();
        if !shape.is_empty() && *self.peek() != Token::Punct('[') {
            return Err(self.expected("a list of elements, a generator or a hash"));
        }
        self.nested(&mut scalars, 0)?;
        if scalars.len() != n {
            let message = format!("{} elements, where the shape needs {n}", scalars.len());
            return Err(self.mistake(start, message));
        }
        let data = elements(dtype, &scalars).map_err(|s| {
            self.mistake(start, format!("`{}` is not a value of {dtype}", s.signed()))
        })?;
        let tensor = Tensor::try_new(shape, data).expect("as many elements as the shape needs");
        Ok((Arc::new(tensor), None))
    }

    /// A scalar, or a list of lists to any depth, flattened.
    fn nested(&mut self, out: &mut Vec<Scalar<'t>>, depth: usize) -> Parsed<()> {
        if !self.eat('[') {
            out.push(self.scalar()?);
            return Ok(());
        }
        if depth == MAX_DEPTH {
            return Err(self.expected(&format!("lists nested at most {MAX_DEPTH} deep")));
        }
        self.list(']', |p| p.nested(out, depth + 1))?;
        Ok(())
    }

    /// `hash(0123456789abcdef)`
    fn hashed(&mut self, dtype: DType, shape: &[usize]) -> Parsed<Arc<Tensor>> {
        let start = self.start();
        self.bump();
        self.expect('(')?;
        let hash = match self.bump() {
            Token::Number(s) | Token::Ident(s) if s.len() == 16 => u64::from_str_radix(s, 16).ok(),
            _ => None,
        };
        let hash = hash.ok_or_else(|| self.mistake(start, "a hash has 16 hexadecimal digits"))?;
        self.expect(')')?;
        (self.resolver)(hash, dtype, shape)
            .filter(|t| t.dtype() == dtype && t.shape() == shape)
            .ok_or_else(|| {
                let message = "weights are not in text, and nothing here supplies this tensor";
                self.mistake(start, message)
            })
    }

    fn generator(&mut self) -> Parsed<Generator> {
        Ok(match self.ident("a generator")? {
            "zeros" => Generator::Zeros,
            "ones" => Generator::Ones,
            "iota" => Generator::Iota,
            "eye" => Generator::Eye,
            "full" => {
                self.expect('(')?;
                let value = self.float()?;
                self.expect(')')?;
                Generator::Full(value)
            }
            _ => {
                self.expect('(')?;
                Generator::Random(self.random()?)
            }
        })
    }

    /// The arguments of `random`.
    fn random(&mut self) -> Parsed<Random> {
        let start = self.start();
        let (mut seed, mut range, mut sparsity, mut block, mut nm) = (None, None, None, None, None);
        self.list(')', |p| {
            let start = p.start();
            let name = p.ident("`seed`, `range`, `sparsity`, `block` or `nm`")?;
            p.expect('=')?;
            let again = match name {
                "seed" => seed.replace(p.count::<u64>()?).is_some(),
                "range" => {
                    let a = p.float()?;
                    if p.bump() != Token::DotDot {
                        return Err(p.mistake(start, "expected a range, such as `-1..1`"));
                    }
                    range.replace((a, p.float()?)).is_some()
                }
                "sparsity" => sparsity.replace(p.float()?).is_some(),
                "block" => block.replace(p.block()?).is_some(),
                "nm" => nm.replace(p.ratio()?).is_some(),
                _ => return Err(p.mistake(start, format!("`random` has no argument `{name}`"))),
            };
            if again {
                return Err(p.mistake(start, format!("`{name}` is set twice")));
            }
            Ok(())
        })?;
        let Some(seed) = seed else {
            return Err(self.mistake(start, "`random` needs a `seed`"));
        };
        let pattern = match (sparsity, block, nm) {
            (None, None, None) => Pattern::Dense,
            (Some(sparsity), block, None) => {
                let (r, c) = block.unwrap_or((1, 1));
                Pattern::Blocks { sparsity, r, c }
            }
            (None, None, Some((n, m))) => Pattern::NOfM { n, m },
            (None, Some(_), None) => {
                return Err(self.mistake(start, "`block` needs a `sparsity`"));
            }
            (_, _, Some(_)) => {
                let message = "`nm` excludes `sparsity` and `block`";
                return Err(self.mistake(start, message));
            }
        };
        Ok(Random {
            seed,
            range,
            pattern,
        })
    }
}
