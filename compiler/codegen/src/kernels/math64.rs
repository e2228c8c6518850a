//! Elementary functions of f32, computed in f64 lanes: their results, rounded to f32, are within 0.51 units in the last place of
//! what is exact, at every argument.
//!
//! Each takes and gives registers of f64 lanes that hold numbers of f32, the result not yet rounded. Series are those of Taylor, cut
//! off where their terms are below 1e-11: nothing is fitted, and there are bits enough.

use std::f64::consts::{FRAC_PI_2, FRAC_PI_4, LN_2, LOG2_E, SQRT_2};

use super::math::{round, sign_bit};
use crate::kir::{Binary, Builder, Compare, Float, Operand, Shift, Vector};

/// What a number is compared with before another takes the place of a result.
type Condition = (Compare, Vector, f64);

/// 1.5 times 2^52: leaves no bits for a fraction, and whole numbers in the lowest bits.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// Multiples of 1 / 2 pi that differ from it by a whole number, where they are multiplied by an argument from the first number on:
/// four parts of 29 bits each. Arguments there are multiples of a power of two, so that what is left out of the first part is whole.
const TURNS: [(f64, [f64; 4]); 4] = [
    (
        0.0,
        [
            0.159_154_942_724_853_75,
            3.670_415_811_563_021_4e-10,
            5.690_025_167_992_954e-19,
            1.470_303_684_693_260_8e-27,
        ],
    ),
    (
        72_057_594_037_927_936.0,
        [
            0.576_431_589_201_092_7 / TWO_32,
            5.812_020_569_678_777e-10 / TWO_32,
            1.110_735_822_708_952_6e-18 / TWO_32,
            1.416_342_871_177_859_9e-27 / TWO_32,
        ],
    ),
    (
        72_057_594_037_927_936.0 * TWO_32,
        [
            0.496_243_831_701_576_7 / TWO_32 / TWO_32,
            1.139_611_660_247_452_6e-10 / TWO_32 / TWO_32,
            1.161_415_023_141_969e-20 / TWO_32 / TWO_32,
            3.898_253_782_595_211_4e-30 / TWO_32 / TWO_32,
        ],
    ),
    (
        72_057_594_037_927_936.0 * TWO_32 * TWO_32,
        [
            0.489_459_481_090_307_24 / TWO_32 / TWO_32 / TWO_32,
            4.988_239_541_477_84e-11 / TWO_32 / TWO_32 / TWO_32,
            1.674_287_250_775_472_7e-20 / TWO_32 / TWO_32 / TWO_32,
            6.290_154_083_997_274e-30 / TWO_32 / TWO_32 / TWO_32,
        ],
    ),
];
const TWO_32: f64 = 4_294_967_296.0;

/// `dst = a op c`.
fn with(b: &mut Builder, op: Binary, dst: Vector, a: Vector, c: f64) {
    b.binary(op.of(Float::F64), dst, a, Operand::number(Float::F64, c));
}

/// `dst = a op c`.
fn both(b: &mut Builder, op: Binary, dst: Vector, a: Vector, c: Vector) {
    b.binary(op.of(Float::F64), dst, a, c);
}

fn constant(b: &mut Builder, value: f64) -> Vector {
    let v = b.vector();
    b.constant64(v, value);
    v
}

/// `acc` = a polynomial in `z`; coefficients by ascending power.
fn polynomial(b: &mut Builder, acc: Vector, z: Vector, coefficients: &[f64]) {
    let Some((last, rest)) = coefficients.split_last() else {
        return;
    };
    b.constant64(acc, *last);
    for &c in rest.iter().rev() {
        both(b, Binary::Mul, acc, acc, z);
        with(b, Binary::Add, acc, acc, c);
    }
}

/// `x = condition ? value : x`.
fn replace(b: &mut Builder, x: Vector, (compare, a, c): Condition, value: Vector) {
    let (limit, result) = (constant(b, c), b.vector());
    let comparison = (compare, a, limit);
    b.select_of(Float::F64, result, comparison, value, x);
    b.copy(x, result);
    b.free_vectors(&[limit, result]);
}

/// `x = condition ? value : x`.
fn replace_with(b: &mut Builder, x: Vector, condition: Condition, value: f64) {
    let value = constant(b, value);
    replace(b, x, condition, value);
    b.free_vector(value);
}

fn absolute(b: &mut Builder, dst: Vector, x: Vector) {
    let sign = b.vector();
    sign_bit(b, Float::F64, sign);
    b.binary(Binary::AndNot, dst, sign, x);
    b.free_vector(sign);
}

/// Turns the sign of `x` where that of `of` is set.
fn signed_as(b: &mut Builder, x: Vector, of: Vector) {
    let sign = b.vector();
    sign_bit(b, Float::F64, sign);
    b.binary(Binary::And, sign, sign, of);
    b.binary(Binary::Xor, x, x, sign);
    b.free_vector(sign);
}

/// `x = atan(x)`: by `-1 / |x|` or `(|x| - 1) / (|x| + 1)` where x is far from 0.
pub(super) fn atan(b: &mut Builder, x: Vector) {
    const SERIES: [f64; 14] = alternating_odd();
    let [a, denominator, offset, t] = [(); 4].map(|()| b.vector());
    absolute(b, a, x);
    let numerator = constant(b, -1.0);
    b.copy(denominator, a);
    b.constant64(offset, FRAC_PI_2);
    // tan(3 pi / 8)
    let middle = (Compare::Lt, a, 2.414_213_562_373_095);
    with(b, Binary::Sub, t, a, 1.0);
    replace(b, numerator, middle, t);
    with(b, Binary::Add, t, a, 1.0);
    replace(b, denominator, middle, t);
    replace_with(b, offset, middle, FRAC_PI_4);
    // tan(pi / 8)
    let near = (Compare::Lt, a, 0.414_213_562_373_095_03);
    replace(b, numerator, near, a);
    replace_with(b, denominator, near, 1.0);
    replace_with(b, offset, near, 0.0);
    both(b, Binary::Div, numerator, numerator, denominator);
    let (z, sum) = (denominator, t);
    both(b, Binary::Mul, z, numerator, numerator);
    polynomial(b, sum, z, &SERIES);
    both(b, Binary::Mul, sum, sum, numerator);
    both(b, Binary::Add, sum, sum, offset);
    signed_as(b, sum, x);
    b.copy(x, sum);
    b.free_vectors(&[a, numerator, denominator, offset, t]);
}

/// `1, -1/3, 1/5, ..`
const fn alternating_odd<const N: usize>() -> [f64; N] {
    let (mut series, mut i, mut sign) = ([0.0; N], 0, 1.0);
    while i < N {
        series[i] = sign / (2 * i + 1) as f64;
        sign = -sign;
        i += 1;
    }
    series
}

/// `1, 1/3, 1/5, ..`
const fn odd<const N: usize>() -> [f64; N] {
    let (mut series, mut i) = (alternating_odd::<N>(), 0);
    while i < N {
        series[i] = series[i].abs();
        i += 1;
    }
    series
}

/// `factor^(first + step i) / (first + step i)!`, with the signs of powers of `sign`.
const fn exponential<const N: usize>(
    (factor, sign): (f64, f64),
    first: usize,
    step: usize,
) -> [f64; N] {
    let (mut series, mut term, mut n, mut i) = ([0.0; N], 1.0, 0, 0);
    let mut sign_of_term = 1.0;
    while i < N {
        while n < first + step * i {
            n += 1;
            term *= factor / n as f64;
        }
        series[i] = term * sign_of_term;
        sign_of_term *= sign;
        i += 1;
    }
    series
}

/// `x = sin(x)`.
pub(super) fn sin(b: &mut Builder, x: Vector) {
    let a = b.vector();
    absolute(b, a, x);
    sine(b, a, 0.0);
    signed_as(b, a, x);
    b.copy(x, a);
    b.free_vector(a);
}

/// `x = cos(x)`.
pub(super) fn cos(b: &mut Builder, x: Vector) {
    absolute(b, x, x);
    sine(b, x, 1.0);
}

/// `x = sin(x + quarters pi / 2)` of a number that is not below 0.
fn sine(b: &mut Builder, x: Vector, quarters: f64) {
    const SINE: [f64; 8] = exponential((FRAC_PI_2, -1.0), 1, 2);
    const COSINE: [f64; 8] = exponential((FRAC_PI_2, -1.0), 0, 2);
    turns(b, x);
    with(b, Binary::Mul, x, x, 4.0);
    let [n, turned, z, s, c] = [(); 5].map(|()| b.vector());
    with(b, Binary::Add, n, x, MAGIC);
    with(b, Binary::Add, turned, n, quarters);
    with(b, Binary::Sub, n, n, MAGIC);
    both(b, Binary::Sub, x, x, n);
    both(b, Binary::Mul, z, x, x);
    polynomial(b, s, z, &SINE);
    both(b, Binary::Mul, s, s, x);
    polynomial(b, c, z, &COSINE);
    // Sine and cosine change places in odd quarters, the sign in the third and fourth.
    with(b, Binary::Sub, n, turned, MAGIC);
    both(b, Binary::Mul, n, n, n);
    replace_odd(b, s, n, c);
    b.shift(Shift::Left64, turned, turned, 62);
    signed_as(b, s, turned);
    b.copy(x, s);
    b.free_vectors(&[n, turned, z, s, c]);
}

/// `x = other` where `square` is that of an odd number from -3 to 3.
fn replace_odd(b: &mut Builder, x: Vector, square: Vector, other: Vector) {
    replace(b, x, (Compare::Eq, square, 1.0), other);
    replace(b, x, (Compare::Eq, square, 9.0), other);
}

/// `x` = a number that is not below 0, in turns, without whole ones: from -1/2 to 1/2.
fn turns(b: &mut Builder, x: Vector) {
    let (sum, rest) = (b.vector(), b.vector());
    for part in 0..4 {
        let t = constant(b, TURNS[0].1[part]);
        for (first, parts) in &TURNS[1..] {
            let (limit, other, result) =
                (constant(b, *first), constant(b, parts[part]), b.vector());
            b.select_of(Float::F64, result, (Compare::Le, limit, x), other, t);
            b.copy(t, result);
            b.free_vectors(&[limit, other, result]);
        }
        // Exact: 24 bits by 29.
        both(b, Binary::Mul, t, t, x);
        if part < 3 {
            without_whole(b, t);
        }
        match part {
            0 => b.copy(sum, t),
            1 => add_exactly(b, (sum, rest), t),
            _ => both(b, Binary::Add, rest, rest, t),
        }
        b.free_vector(t);
    }
    without_whole(b, sum);
    both(b, Binary::Add, x, sum, rest);
    without_whole(b, x);
    b.free_vectors(&[sum, rest]);
}

/// `x = x - round(x)`.
fn without_whole(b: &mut Builder, x: Vector) {
    let whole = b.vector();
    b.copy(whole, x);
    round(b, Float::F64, whole);
    both(b, Binary::Sub, x, x, whole);
    b.free_vector(whole);
}

/// `sum = sum + t`, and in `rest` what rounding left out (Knuth).
fn add_exactly(b: &mut Builder, (sum, rest): (Vector, Vector), t: Vector) {
    let [s, of_t] = [(); 2].map(|()| b.vector());
    both(b, Binary::Add, s, sum, t);
    both(b, Binary::Sub, of_t, s, sum);
    both(b, Binary::Sub, rest, s, of_t);
    both(b, Binary::Sub, rest, sum, rest);
    both(b, Binary::Sub, t, t, of_t);
    both(b, Binary::Add, rest, rest, t);
    b.copy(sum, s);
    b.free_vectors(&[s, of_t]);
}

/// `x = ln(x)`: the exponent, and `2 atanh((m - 1) / (m + 1))` of a mantissa between the roots of 1/2 and of 2.
pub(super) fn log(b: &mut Builder, x: Vector) {
    const SERIES: [f64; 10] = odd();
    let [m, e, t, sum] = [(); 4].map(|()| b.vector());
    // As an integer in the lowest bits of a number beyond 2^52.
    b.shift(Shift::RightLogical64, e, x, 52);
    b.constant64(t, 4_503_599_627_370_496.0);
    b.binary(Binary::Or, e, e, t);
    with(b, Binary::Sub, e, e, 4_503_599_627_370_496.0 + 1023.0);
    b.constant64_bits(t, 0x000f_ffff_ffff_ffff);
    b.binary(Binary::And, m, x, t);
    b.constant64(t, 1.0);
    b.binary(Binary::Or, m, m, t);
    let limit = constant(b, SQRT_2);
    // m is replaced last: both depend on it.
    with(b, Binary::Add, t, e, 1.0);
    b.select_of(Float::F64, sum, (Compare::Lt, limit, m), t, e);
    b.copy(e, sum);
    with(b, Binary::Mul, t, m, 0.5);
    b.select_of(Float::F64, sum, (Compare::Lt, limit, m), t, m);
    b.copy(m, sum);
    b.free_vector(limit);
    with(b, Binary::Add, t, m, 1.0);
    with(b, Binary::Sub, m, m, 1.0);
    twice_atanh(b, sum, [m, t], &SERIES);
    with(b, Binary::Mul, e, e, LN_2);
    both(b, Binary::Add, sum, sum, e);
    replace_with(b, sum, (Compare::Eq, x, 0.0), f64::NEG_INFINITY);
    replace_with(b, sum, (Compare::Lt, x, 0.0), f64::NAN);
    replace(b, sum, (Compare::Eq, x, f64::INFINITY), x);
    replace(b, sum, (Compare::Unordered, x, 0.0), x);
    b.copy(x, sum);
    b.free_vectors(&[m, e, t, sum]);
}

/// `sum = 2 atanh(y / z)`, by the series of odd powers; y and z change.
fn twice_atanh(b: &mut Builder, sum: Vector, [y, z]: [Vector; 2], series: &[f64]) {
    both(b, Binary::Div, y, y, z);
    both(b, Binary::Mul, z, y, y);
    polynomial(b, sum, z, series);
    both(b, Binary::Mul, sum, sum, y);
    with(b, Binary::Mul, sum, sum, 2.0);
}

/// `x = 2^x`, infinity and 0 where f32 has no such numbers; exact where x is whole.
pub(super) fn exp2(b: &mut Builder, x: Vector) {
    const SERIES: [f64; 11] = exponential((LN_2, 1.0), 0, 1);
    let [n, t] = [(); 2].map(|()| b.vector());
    // The second operand is what remains of a NaN.
    b.constant64(t, 1000.0);
    both(b, Binary::Min, x, t, x);
    b.constant64(t, -1000.0);
    both(b, Binary::Max, x, t, x);
    with(b, Binary::Add, n, x, MAGIC);
    with(b, Binary::Sub, t, n, MAGIC);
    both(b, Binary::Sub, x, x, t);
    polynomial(b, t, x, &SERIES);
    // A NaN has no low bits here, since it was one of f32.
    b.shift(Shift::Left64, n, n, 52);
    b.binary(Binary::IntAdd64, x, t, n);
    b.free_vectors(&[n, t]);
}

/// `x = ln(1 + e^x)`: the greater of x and 0, and `2 atanh(y / (2 + y))` with `y = e^-|x|`.
pub(super) fn softplus(b: &mut Builder, x: Vector) {
    const SERIES: [f64; 12] = odd();
    let [y, t, sum] = [(); 3].map(|()| b.vector());
    absolute(b, y, x);
    with(b, Binary::Mul, y, y, -LOG2_E);
    exp2(b, y);
    with(b, Binary::Add, t, y, 2.0);
    twice_atanh(b, sum, [y, t], &SERIES);
    b.zero(t);
    both(b, Binary::Max, x, t, x);
    both(b, Binary::Add, x, x, sum);
    b.free_vectors(&[y, t, sum]);
}

/// `x = x^y`; `y` changes.
pub(super) fn pow(b: &mut Builder, x: Vector, y: Vector) {
    let power = b.vector();
    absolute(b, power, x);
    log(b, power);
    both(b, Binary::Mul, power, power, y);
    with(b, Binary::Mul, power, power, LOG2_E);
    exp2(b, power);
    let [a, u] = [(); 2].map(|()| b.vector());
    absolute(b, a, x);
    // The logarithm of 1 times infinity.
    replace_with(b, power, (Compare::Eq, a, 1.0), 1.0);
    // Of a number below 0 only whole powers are real, and odd ones are below 0.
    b.copy(u, y);
    without_whole(b, u);
    with(b, Binary::Mul, a, y, 0.5);
    without_whole(b, a);
    both(b, Binary::Mul, a, a, a);
    let t = b.vector();
    // Half of an odd number is one half beyond a whole one.
    b.zero(t);
    replace(b, t, (Compare::Eq, a, 0.25), x);
    signed_as(b, power, t);
    absolute(b, a, x);
    absolute(b, y, y);
    b.zero(t);
    replace_with(b, t, (Compare::Lt, x, 0.0), f64::NAN);
    replace_with(b, t, (Compare::Eq, a, f64::INFINITY), 0.0);
    replace_with(b, t, (Compare::Eq, u, 0.0), 0.0);
    // Infinity is even.
    replace_with(b, t, (Compare::Eq, y, f64::INFINITY), 0.0);
    both(b, Binary::Add, power, power, t);
    replace(b, power, (Compare::Unordered, x, 0.0), x);
    replace(b, power, (Compare::Unordered, y, 0.0), y);
    replace_with(b, power, (Compare::Eq, x, 1.0), 1.0);
    replace_with(b, power, (Compare::Eq, y, 0.0), 1.0);
    b.copy(x, power);
    b.free_vectors(&[a, power, t, u]);
}
