//! Arithmetic of element types, as ONNX and NumPy define it.
//!
//! Integers wrap; half-precision types compute in `f32` and round once. Conversions never fail: integers wrap, floats
//! truncate toward zero and saturate, NaN becomes zero.

use half::{bf16, f16};

use crate::{DType, Element};

/// An element type with arithmetic: every one but `bool`.
pub(crate) trait Number: Element + PartialOrd {
    const ZERO: Self;
    const ONE: Self;
    /// Nothing is less: negative infinity for floats.
    const LOWEST: Self;
    /// Nothing is greater: infinity for floats.
    const HIGHEST: Self;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// Division, toward zero for integers; zero if an integer divisor is zero, which callers exclude.
    fn div(self, other: Self) -> Self;
    /// Remainder with the sign of the divisor; zero if an integer divisor is zero, which callers exclude.
    fn rem_floor(self, other: Self) -> Self;
    /// Remainder with the sign of the dividend; zero if an integer divisor is zero, which callers exclude.
    fn rem_trunc(self, other: Self) -> Self;
    /// Power; the exponent of an integer is `exponent`, whole.
    fn pow_int(self, exponent: u64) -> Self;
    fn neg(self) -> Self;
    fn abs(self) -> Self;
    /// -1, 0, 1 or NaN.
    fn sign(self) -> Self;
    fn is_nan(self) -> bool;
    /// Exact but for 64-bit integers.
    fn to_f64(self) -> f64;
    /// Rounds to nearest for floats, truncates and saturates for integers.
    fn from_f64(v: f64) -> Self;
    /// The value as a wide type of the same kind.
    fn widen(self) -> Wide;
    /// Converts as `Cast` does.
    fn narrow(v: Wide) -> Self;

    /// The lesser; NaN if either is.
    fn least(self, other: Self) -> Self {
        if self.is_nan() || self < other {
            self
        } else {
            other
        }
    }

    /// The greater; NaN if either is.
    fn greatest(self, other: Self) -> Self {
        if self.is_nan() || self > other {
            self
        } else {
            other
        }
    }
}

/// A number of any element type.
#[derive(Clone, Copy)]
pub(crate) enum Wide {
    Int(i128),
    Float(f64),
}

/// An integer element type.
pub(crate) trait Integer: Number + Ord {
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn not(self) -> Self;
    /// Zero if `by` is not less than the width.
    fn shift_left(self, by: u32) -> Self;
    /// Zero (or the sign) if `by` is not less than the width.
    fn shift_right(self, by: u32) -> Self;
}

/// A floating-point element type.
pub(crate) trait Float: Number {}

macro_rules! integer {
    ($($t:ident: $abs:expr, $sign:expr;)*) => {$(
        impl Number for $t {
            const ZERO: $t = 0;
            const ONE: $t = 1;
            const LOWEST: $t = $t::MIN;
            const HIGHEST: $t = $t::MAX;
            fn add(self, other: $t) -> $t { self.wrapping_add(other) }
            fn sub(self, other: $t) -> $t { self.wrapping_sub(other) }
            fn mul(self, other: $t) -> $t { self.wrapping_mul(other) }
            fn div(self, other: $t) -> $t { if other == 0 { 0 } else { self.wrapping_div(other) } }
            fn rem_floor(self, other: $t) -> $t {
                let r = self.rem_trunc(other);
                #[allow(unused_comparisons, reason = "never true for unsigned types")]
                if r != 0 && (r < 0) != (other < 0) { r.wrapping_add(other) } else { r }
            }
            fn rem_trunc(self, other: $t) -> $t { if other == 0 { 0 } else { self.wrapping_rem(other) } }
            fn pow_int(self, mut exponent: u64) -> $t {
                let (mut base, mut result): ($t, $t) = (self, 1);
                while exponent != 0 {
                    if exponent & 1 == 1 { result = result.wrapping_mul(base); }
                    base = base.wrapping_mul(base);
                    exponent >>= 1;
                }
                result
            }
            fn neg(self) -> $t { self.wrapping_neg() }
            fn abs(self) -> $t { let f: fn($t) -> $t = $abs; f(self) }
            fn sign(self) -> $t { let f: fn($t) -> $t = $sign; f(self) }
            fn is_nan(self) -> bool { false }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(v: f64) -> $t { v as $t }
            fn widen(self) -> Wide { Wide::Int(self as i128) }
            fn narrow(v: Wide) -> $t { match v { Wide::Int(v) => v as $t, Wide::Float(v) => v as $t } }
        }
        impl Integer for $t {
            fn and(self, other: $t) -> $t { self & other }
            fn or(self, other: $t) -> $t { self | other }
            fn xor(self, other: $t) -> $t { self ^ other }
            fn not(self) -> $t { !self }
            fn shift_left(self, by: u32) -> $t { self.checked_shl(by).unwrap_or(0) }
            fn shift_right(self, by: u32) -> $t {
                let none_left = if $t::MIN == 0 { 0 } else { self >> ($t::BITS - 1) };
                self.checked_shr(by).unwrap_or(none_left)
            }
        }
    )*};
}

integer! {
    i8: i8::wrapping_abs, i8::signum;
    i16: i16::wrapping_abs, i16::signum;
    i32: i32::wrapping_abs, i32::signum;
    i64: i64::wrapping_abs, i64::signum;
    u8: |v| v, |v| v.min(1);
    u16: |v| v, |v| v.min(1);
    u32: |v| v, |v| v.min(1);
    u64: |v| v, |v| v.min(1);
}

macro_rules! float {
    ($($t:ident, $compute:ident, $to:expr, $from:expr, $from64:expr, $one:expr;)*) => {$(
        impl Number for $t {
            const ZERO: $t = $from(0.0);
            const ONE: $t = $one;
            const LOWEST: $t = $t::NEG_INFINITY;
            const HIGHEST: $t = $t::INFINITY;
            fn add(self, other: $t) -> $t { self + other }
            fn sub(self, other: $t) -> $t { self - other }
            fn mul(self, other: $t) -> $t { self * other }
            fn div(self, other: $t) -> $t { self / other }
            fn rem_floor(self, other: $t) -> $t {
                let (a, b): ($compute, $compute) = ($to(self), $to(other));
                let r = a % b;
                if r != 0.0 && (r < 0.0) != (b < 0.0) { $from64(f64::from(r) + f64::from(b)) } else { $from64(f64::from(r)) }
            }
            fn rem_trunc(self, other: $t) -> $t {
                let (a, b): ($compute, $compute) = ($to(self), $to(other));
                $from64(f64::from(a % b))
            }
            fn pow_int(self, exponent: u64) -> $t { Self::from_f64(self.to_f64().powf(exponent as f64)) }
            fn neg(self) -> $t { -self }
            fn abs(self) -> $t { $from64(self.to_f64().abs()) }
            fn sign(self) -> $t {
                let v = self.to_f64();
                if v == 0.0 || v.is_nan() { self } else { $from64(v.signum()) }
            }
            fn is_nan(self) -> bool { self != self }
            fn to_f64(self) -> f64 { f64::from(self) }
            fn from_f64(v: f64) -> $t { $from64(v) }
            fn widen(self) -> Wide { Wide::Float(f64::from(self)) }
            fn narrow(v: Wide) -> $t { match v { Wide::Int(v) => $from64(v as f64), Wide::Float(v) => $from64(v) } }
        }
        impl Float for $t {}
    )*};
}

const fn identity_f32(v: f32) -> f32 {
    v
}

const fn identity_f64(v: f64) -> f64 {
    v
}

const fn narrow_f32(v: f64) -> f32 {
    v as f32
}

float! {
    f32, f32, identity_f32, identity_f32, narrow_f32, 1.0;
    f64, f64, identity_f64, identity_f64, identity_f64, 1.0;
    f16, f32, f32::from, f16::from_f32_const, f16::from_f64, f16::ONE;
    bf16, f32, f32::from, bf16::from_f32_const, bf16::from_f64, bf16::ONE;
}

/// Runs `$body` with `$T` naming the Rust type of `$dtype`, or `$else` if it has no arithmetic.
macro_rules! for_number {
    ($dtype:expr, $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::U64 => {
                type $T = u64;
                $body
            }
            $crate::DType::Bool => $else,
        }
    };
}
pub(crate) use for_number;

/// Runs `$body` with `$T` naming the Rust type of `$dtype`, or `$else` if it is not a floating-point type.
macro_rules! for_float {
    ($dtype:expr, $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            _ => $else,
        }
    };
}
pub(crate) use for_float;

/// Runs `$body` with `$T` naming the Rust type of `$dtype`, or `$else` if it is not an integer type.
macro_rules! for_integer {
    ($dtype:expr, $T:ident => $body:expr, else $else:expr) => {
        match $dtype {
            $crate::DType::I8 => {
                type $T = i8;
                $body
            }
            $crate::DType::I16 => {
                type $T = i16;
                $body
            }
            $crate::DType::I32 => {
                type $T = i32;
                $body
            }
            $crate::DType::I64 => {
                type $T = i64;
                $body
            }
            $crate::DType::U8 => {
                type $T = u8;
                $body
            }
            $crate::DType::U16 => {
                type $T = u16;
                $body
            }
            $crate::DType::U32 => {
                type $T = u32;
                $body
            }
            $crate::DType::U64 => {
                type $T = u64;
                $body
            }
            _ => $else,
        }
    };
}
pub(crate) use for_integer;

/// True if `dtype` holds integers of at most eight bits.
pub(crate) fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8)
}

/// Sums in double precision with independent partial sums.
pub(crate) fn sum_f64(values: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0f64; 4];
    for (i, v) in values.enumerate() {
        lanes[i & 3] += v;
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
}
