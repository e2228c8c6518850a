//! Elementary functions on vectors, as sequences of kernel IR operations.
//!
//! Each takes and gives registers, uses a few temporaries and keeps no state. NaN in gives NaN out: [`Binary::Max`] and
//! [`Binary::Min`](crate::kir::Binary) give their second operand when one is NaN, so the argument always stands second.
//!
//! The coefficients are minimax fits, found by iteratively reweighted least squares (Lawson's algorithm on the linearised
//! rational problem, in f64); errors stated are those of the f32 evaluation, and tests sweep them.

#![allow(
    clippy::approx_constant,
    clippy::excessive_precision,
    reason = "coefficients are written as they were fitted"
)]

use crate::kir::{Binary, Builder, Compare, Float, Shift, Unary, Vector};
use lancet_artifact::Activation;

/// `erf(x) = x P(x^2) / Q(x^2)` on [-3.95, 3.95], constant beyond.
const ERF: OddRational = OddRational {
    clamp: 3.95,
    p: &[
        1.128_379_0,
        1.940_372e-1,
        5.320_715_5e-2,
        3.917_354e-3,
        2.875_966_1e-4,
        2.011_667_7e-6,
    ],
    q: &[
        1.0,
        5.052_924_8e-1,
        1.155_912_8e-1,
        1.527_077_8e-2,
        1.198_200_6e-3,
        3.783_872_4e-5,
    ],
};

/// `erf(x / sqrt 2) / 2`: [`ERF`] with both factors in its coefficients.
const HALF_ERF: OddRational = OddRational {
    clamp: 5.586_143_6,
    p: &[
        3.989_422_2e-1,
        3.430_125_5e-2,
        4.702_892_5e-3,
        1.731_242_24e-4,
        6.355_047_3e-6,
        2.222_599_8e-8,
    ],
    q: &[
        1.0,
        2.526_462_4e-1,
        2.889_782_0e-2,
        1.908_847_25e-3,
        7.488_753_75e-5,
        1.182_460_125e-6,
    ],
};

/// `tanh(x) = x P(x^2) / Q(x^2)` on [-9, 9], constant beyond.
const TANH: OddRational = OddRational {
    clamp: 9.0,
    p: &[
        0.999_999_99,
        1.367_633_1e-1,
        3.863_913_7e-3,
        2.792_298e-5,
        3.039_998e-8,
        -1.208_236e-11,
    ],
    q: &[
        1.0,
        4.700_966_2e-1,
        2.722_948_6e-2,
        3.931_012_4e-4,
        1.281_706_6e-6,
    ],
};

/// An odd function as `x P(x^2) / Q(x^2)`; coefficients by ascending power.
struct OddRational {
    clamp: f32,
    p: &'static [f32],
    q: &'static [f32],
}

impl OddRational {
    /// `x = f(x)`.
    fn emit(&self, b: &mut Builder, x: Vector) {
        let (p, q) = self.ratio(b, x);
        b.div(x, p, q);
        b.free_vectors(&[p, q]);
    }

    /// `x P` and `Q` of x within the bounds, in new registers.
    fn ratio(&self, b: &mut Builder, x: Vector) -> (Vector, Vector) {
        let (z, p, q) = (b.vector(), b.vector(), b.vector());
        b.constant(z, -self.clamp);
        b.max(x, z, x);
        b.constant(z, self.clamp);
        b.min(x, z, x);
        b.mul(z, x, x);
        for (acc, coefficients) in [(p, self.p), (q, self.q)] {
            let [rest @ .., last] = coefficients else {
                continue;
            };
            b.constant(acc, *last);
            for &c in rest.iter().rev() {
                b.mul_add(acc, z, c);
            }
        }
        b.mul(p, p, x);
        b.free_vector(z);
        (p, q)
    }
}

/// `x = exp(x)` for `x` up to 88.3; below -87.3 the result is about 1e-38, not 0.
///
/// Relative error below 2e-7. The argument is split as `n ln 2 + r` with `|r| <= ln 2 / 2`; adding 1.5 * 2^23 rounds
/// `x / ln 2` to the integer `n`, whose low bits then shift into the exponent.
pub(super) fn exp(b: &mut Builder, x: Vector) {
    let t = b.vector();
    b.constant(t, 88.3);
    b.min(x, t, x);
    b.free_vector(t);
    exp_below_zero(b, x);
}

/// [`exp`] of an argument that is at most 88.3 as it stands.
pub(super) fn exp_below_zero(b: &mut Builder, x: Vector) {
    const MAGIC: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const P: [f32; 7] = [
        1.0,
        1.0,
        4.999_999_3e-1,
        1.666_652_1e-1,
        4.166_838_7e-2,
        8.368_71e-3,
        1.381_461_3e-3,
    ];
    let (n, t, p) = (b.vector(), b.vector(), b.vector());
    b.constant(t, -87.3);
    b.max(x, t, x);
    b.constant(n, std::f32::consts::LOG2_E);
    b.mul(n, n, x);
    b.add(n, n, MAGIC);
    b.sub(t, n, MAGIC);
    b.fnma(x, t, LN2_HIGH);
    b.fnma(x, t, LN2_LOW);
    b.constant(p, P[6]);
    for &c in P[..6].iter().rev() {
        b.mul_add(p, x, c);
    }
    b.shift(Shift::Left, n, n, 23);
    b.binary(Binary::IntAdd, x, p, n);
    b.free_vectors(&[n, t, p]);
}

/// `x = 2^x` for `x` up to 0; below -126 the result is about 1e-38, not 0. Relative error below 2.2e-7, 1 at 0.
///
/// As [`exp_below_zero`], with nothing to round when the integer is taken off.
pub(super) fn exp2_below_zero(b: &mut Builder, x: Vector) {
    const MAGIC: f32 = 12_582_912.0;
    const P: [f32; 6] = [
        1.0,
        6.931_469_4e-1,
        2.402_212e-1,
        5.550_713_1e-2,
        9.675_541e-3,
        1.327_647_2e-3,
    ];
    let (n, t) = (b.vector(), b.vector());
    b.constant(t, -126.0);
    b.max(x, t, x);
    b.add(n, x, MAGIC);
    b.sub(t, n, MAGIC);
    b.sub(x, x, t);
    b.constant(t, P[5]);
    for &c in P[..5].iter().rev() {
        b.mul_add(t, x, c);
    }
    b.shift(Shift::Left, n, n, 23);
    b.binary(Binary::IntAdd, x, t, n);
    b.free_vectors(&[n, t]);
}

/// `x = exp(x)` for every `x`: 0 and infinity where the result is out of range. Relative error below 5e-7.
///
/// The square of `exp(x / 2)`, whose own range is wider than is left after squaring.
pub(super) fn exp_full(b: &mut Builder, x: Vector) {
    b.mul(x, x, 0.5);
    exp(b, x);
    b.mul(x, x, x);
}

/// `x = erf(x)`, within 3.5e-7.
pub(super) fn erf(b: &mut Builder, x: Vector) {
    ERF.emit(b, x);
}

/// `x` rounded to the nearest integer, ties to even; exact, with the sign of zeros.
///
/// Adding 2^23, in double precision 2^52, leaves no bits for a fraction; numbers from there on have none.
pub(super) fn round(b: &mut Builder, float: Float, x: Vector) {
    let [sign, limit, t, result] = [(); 4].map(|()| b.vector());
    sign_bit(b, float, sign);
    b.binary(Binary::And, sign, sign, x);
    let least = match float {
        Float::F32 => 8_388_608.0,
        Float::F64 => 4_503_599_627_370_496.0,
    };
    b.number(float, limit, least);
    b.binary(Binary::Or, t, limit, sign);
    b.binary(Binary::Add.of(float), result, x, t);
    b.binary(Binary::Sub.of(float), t, result, t);
    b.binary(Binary::Or, t, t, sign);
    b.binary(Binary::Xor, sign, sign, x);
    b.select_of(float, result, (Compare::Lt, sign, limit), t, x);
    b.copy(x, result);
    b.free_vectors(&[sign, limit, t, result]);
}

/// The sign bit of every lane.
pub(super) fn sign_bit(b: &mut Builder, float: Float, dst: Vector) {
    b.number(float, dst, -0.0);
}

/// `x` as f32 has it, in f64 lanes.
pub(super) fn to_single(b: &mut Builder, x: Vector) {
    b.unary(Unary::Narrow, x, x);
    b.unary(Unary::Widen, x, x);
}

/// `x = activation(x)`.
///
/// Absolute errors: GELU 1.1e-6 near its largest argument (the error of erf, 3.4e-7, times `x / 2`), tanh
/// 3.5e-7; the sigmoids are within 3e-7 relative.
pub(super) fn activation(b: &mut Builder, kind: Activation, x: Vector) {
    match kind {
        Activation::None => {}
        Activation::Relu => {
            let zero = b.vector();
            b.zero(zero);
            b.max(x, zero, x);
            b.free_vector(zero);
        }
        Activation::Round => round(b, Float::F32, x),
        Activation::Tanh => TANH.emit(b, x),
        Activation::Sigmoid => sigmoid(b, x),
        Activation::Silu => times_sigmoid(b, x, 1.0),
        Activation::QuickGelu => times_sigmoid(b, x, 1.702),
        Activation::Gelu => {
            let t = b.vector();
            b.copy(t, x);
            HALF_ERF.emit(b, t);
            b.add(t, t, 0.5);
            b.mul(x, x, t);
            b.free_vector(t);
        }
        Activation::GeluTanh => {
            let (half, t) = (b.vector(), b.vector());
            b.mul(half, x, 0.5);
            b.mul(t, x, x);
            b.mul(t, t, 0.044_715 * 0.797_884_6);
            b.add(t, t, 0.797_884_6);
            b.mul(x, x, t);
            TANH.emit(b, x);
            b.mul_add(x, half, half);
            b.free_vectors(&[half, t]);
        }
    }
}

/// GELU as a fraction: its numerator in x, its denominator in a new register. With `erf(x / sqrt 2) / 2 = x P / Q` it is
/// `x (Q / 2 + x P) / Q`.
pub(super) fn gelu_ratio(b: &mut Builder, x: Vector) -> Vector {
    let t = b.vector();
    b.copy(t, x);
    let (p, q) = HALF_ERF.ratio(b, t);
    b.fma(p, q, 0.5);
    b.mul(x, x, p);
    b.free_vectors(&[t, p]);
    q
}

/// `x = 1 / (1 + exp(-x))`, within 3e-7 relative.
fn sigmoid(b: &mut Builder, x: Vector) {
    let one = b.vector();
    b.constant(one, -1.0);
    b.mul(x, one, x);
    exp(b, x);
    b.constant(one, 1.0);
    b.add(x, one, x);
    b.div(x, one, x);
    b.free_vector(one);
}

/// `x = x * sigmoid(c x)`.
fn times_sigmoid(b: &mut Builder, x: Vector, c: f32) {
    let original = b.vector();
    b.copy(original, x);
    b.mul(x, x, c);
    sigmoid(b, x);
    b.mul(x, x, original);
    b.free_vector(original);
}
