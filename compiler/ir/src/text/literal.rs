//! Elements and attribute values as text, written and exactly recovered.

use std::fmt::{Display, Write};

use lancet_ops::{Attribute, DType, Data, Tensor, with_elements};

use super::lex::quote;

/// Tensors with more elements are printed as a hash of their content.
pub(crate) const MAX_LISTED: usize = 16;
/// Tensors of a higher rank are listed flat.
const MAX_NESTED: usize = 8;

/// An element that can be written so that reading gives it back, and hashed.
trait Literal: Copy {
    fn write(self, out: &mut String);
    fn bits(self) -> u64;
    /// False for what [`Literal::write`] does not write exactly: NaNs other than the canonical one.
    fn is_exact(self) -> bool;
}

macro_rules! integers {
    ($($ty:ty),*) => { $(impl Literal for $ty {
        fn write(self, out: &mut String) { push(out, self) }
        fn bits(self) -> u64 { self as u64 }
        fn is_exact(self) -> bool { true }
    })* };
}

macro_rules! floats {
    ($(($ty:ty, $nan:expr, $shown:ty)),*) => { $(impl Literal for $ty {
        fn write(self, out: &mut String) { write_float(out, <$shown>::from(self)) }
        fn bits(self) -> u64 { u64::from(self.to_bits()) }
        fn is_exact(self) -> bool { !self.is_nan() || self.to_bits() == $nan }
    })* };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64, bool);
floats!(
    (f32, 0x7fc0_0000, f32),
    (f64, 0x7ff8_0000_0000_0000, f64),
    (half::f16, 0x7e00, f32),
    (half::bf16, 0x7fc0, f32)
);

fn push(out: &mut String, x: impl Display) {
    write!(out, "{x}").expect("writing to a string does not fail");
}

/// Writes a float in the fewest digits that read back as the same number, always with a point, an exponent, or a word.
pub(crate) fn write_float<T: Display + std::fmt::Debug + PartialEq>(out: &mut String, x: T) {
    #[expect(clippy::eq_op, reason = "only NaN differs from itself")]
    if x != x {
        out.push_str("nan");
    } else {
        write!(out, "{x:?}").expect("writing to a string does not fail");
    }
}

/// Writes the elements as a list, nested like the shape, or as one value if the rank is 0.
pub(crate) fn write_elements(out: &mut String, tensor: &Tensor) {
    with_elements!(tensor.data().view(), v => write_nested(out, v, tensor.shape()));
}

fn write_nested<T: Literal>(out: &mut String, elements: &[T], shape: &[usize]) {
    let (parts, rest) = match shape {
        [] => return elements[0].write(out),
        _ if elements.is_empty() => return out.push_str("[]"),
        [_] => (elements.len(), &shape[1..]),
        _ if shape.len() > MAX_NESTED => (elements.len(), &[][..]),
        [n, rest @ ..] => (*n, rest),
    };
    out.push('[');
    for (i, part) in elements.chunks(elements.len() / parts).enumerate() {
        out.push_str(if i == 0 { "" } else { ", " });
        write_nested(out, part, rest);
    }
    out.push(']');
}

/// True if the tensor is short enough to be listed, and can be listed exactly.
pub(crate) fn is_listed(tensor: &Tensor) -> bool {
    tensor.len() <= MAX_LISTED
        && with_elements!(tensor.data().view(), v => v.iter().all(|x| x.is_exact()))
}

/// A hash of element type, shape and elements that is the same on every machine; text shows it in place of weights.
///
/// FNV-1a over whole elements instead of bytes, with the high half of each product folded into the low one.
pub fn content_hash(tensor: &Tensor) -> u64 {
    fn mix(h: u64, x: u64) -> u64 {
        let h = (h ^ x).wrapping_mul(0x0000_0100_0000_01b3);
        h ^ (h >> 32)
    }
    let mut h = 0xcbf2_9ce4_8422_2325;
    for b in tensor.dtype().name().bytes() {
        h = mix(h, u64::from(b));
    }
    for &d in tensor.shape() {
        h = mix(h, d as u64);
    }
    h = mix(h, tensor.shape().len() as u64);
    with_elements!(tensor.data().view(), v => v.iter().fold(h, |h, x| mix(h, x.bits())))
}

/// Writes the elements in the form that stands after the type of a tensor: a list, or a hash.
pub(crate) fn write_tensor(out: &mut String, tensor: &Tensor) {
    if is_listed(tensor) {
        write_elements(out, tensor);
    } else {
        write!(out, "hash({:016x})", content_hash(tensor))
            .expect("writing to a string does not fail");
    }
}

/// Writes an attribute's value.
pub(crate) fn write_attribute(out: &mut String, value: &Attribute) {
    match value {
        Attribute::Int(v) => push(out, v),
        Attribute::Float(v) => write_float(out, *v),
        Attribute::Str(v) => quote(out, v),
        Attribute::Ints(v) => write_list(out, v, |out, x| push(out, x)),
        Attribute::Floats(v) => write_list(out, v, |out, x| write_float(out, *x)),
        Attribute::Strs(v) => write_list(out, v, |out, x| quote(out, x)),
        Attribute::Tensor(t) => {
            push(out, t.dtype());
            write_list(out, t.shape(), |out, d| push(out, d));
            out.push(' ');
            write_tensor(out, t);
        }
    }
}

/// Writes `[a, b, c]`.
pub(crate) fn write_list<T>(out: &mut String, items: &[T], mut write: impl FnMut(&mut String, &T)) {
    out.push('[');
    for (i, x) in items.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { ", " });
        write(out, x);
    }
    out.push(']');
}

/// An element as it was read: digits, or a word.
#[derive(Clone, Debug)]
pub(crate) struct Scalar<'a> {
    pub(crate) negative: bool,
    /// A number's digits, or `inf`, `nan`, `true`, `false`.
    pub(crate) text: &'a str,
}

impl Scalar<'_> {
    /// The text with its sign.
    pub(crate) fn signed(&self) -> String {
        format!("{}{}", if self.negative { "-" } else { "" }, self.text)
    }

    pub(crate) fn int(&self) -> Option<i128> {
        self.signed().parse().ok()
    }

    /// The float nearest to the text; `None` if it is not a number, or is finite and beyond the type.
    pub(crate) fn float<T: std::str::FromStr + Into<f64> + Copy>(&self) -> Option<T> {
        let is_word = matches!(self.text, "inf" | "nan");
        if !is_word && !self.text.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let x: T = self.signed().parse().ok()?;
        (is_word || x.into().is_finite()).then_some(x)
    }

    fn boolean(&self) -> Option<bool> {
        match (self.negative, self.text) {
            (false, "true") => Some(true),
            (false, "false") => Some(false),
            _ => None,
        }
    }
}

/// The elements of type `dtype` that were read, or the first one that is not a value of it.
pub(crate) fn elements<'a, 's>(
    dtype: DType,
    scalars: &'s [Scalar<'a>],
) -> Result<Data, &'s Scalar<'a>> {
    fn all<'a, 's, T>(
        scalars: &'s [Scalar<'a>],
        read: impl Fn(&Scalar<'a>) -> Option<T>,
    ) -> Result<Vec<T>, &'s Scalar<'a>> {
        scalars.iter().map(|s| read(s).ok_or(s)).collect()
    }
    macro_rules! int {
        ($ty:ty) => {
            all(scalars, |s| <$ty>::try_from(s.int()?).ok())
        };
    }
    Ok(match dtype {
        DType::F32 => Data::F32(all(scalars, Scalar::float)?),
        DType::F64 => Data::F64(all(scalars, Scalar::float)?),
        DType::F16 => Data::F16(all(scalars, |s| {
            Some(half::f16::from_f32(s.float::<f32>()?)).filter(|x| fits(s, x.is_finite()))
        })?),
        DType::BF16 => Data::BF16(all(scalars, |s| {
            Some(half::bf16::from_f32(s.float::<f32>()?)).filter(|x| fits(s, x.is_finite()))
        })?),
        DType::I8 => Data::I8(int!(i8)?),
        DType::I16 => Data::I16(int!(i16)?),
        DType::I32 => Data::I32(int!(i32)?),
        DType::I64 => Data::I64(int!(i64)?),
        DType::U8 => Data::U8(int!(u8)?),
        DType::U16 => Data::U16(int!(u16)?),
        DType::U32 => Data::U32(int!(u32)?),
        DType::U64 => Data::U64(int!(u64)?),
        DType::Bool => Data::Bool(all(scalars, Scalar::boolean)?),
    })
}

fn fits(scalar: &Scalar<'_>, is_finite: bool) -> bool {
    is_finite || matches!(scalar.text, "inf" | "nan")
}
