//! Functions of one real variable that the standard library lacks.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};
use std::sync::LazyLock;

/// Steps of the table per unit.
const STEPS: usize = 64;
/// `erf` is one to double precision beyond this.
const LAST: f64 = 6.0;

/// `erf` and its first derivative at multiples of `1 / STEPS`.
static TABLE: LazyLock<Vec<(f64, f64)>> = LazyLock::new(|| {
    (0..=(LAST as usize * STEPS + 1))
        .map(|i| {
            let x = i as f64 / STEPS as f64;
            (erf_series(x), FRAC_2_SQRT_PI * (-x * x).exp())
        })
        .collect()
});

/// `erf(x)` for `x` in `0..=6` by the series `2/√π · exp(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!`, whose terms are positive.
fn erf_series(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term > sum * 1e-18 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// The error function, to a relative error of 1e-14.
///
/// Taylor's series around the nearest table entry; the derivatives follow Hermite's recurrence
/// `fₖ₊₁ = -2·x·fₖ - 2·(k-1)·fₖ₋₁`.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a >= LAST {
        return 1.0f64.copysign(x);
    }
    if a.is_nan() {
        return x;
    }
    let i = (a * STEPS as f64).round();
    let x0 = i / STEPS as f64;
    let (value, slope) = TABLE[i as usize];
    let d = a - x0;
    let (mut before, mut derivative) = (0.0, slope);
    let mut power = d;
    let mut result = derivative * power;
    for k in 1..8 {
        let k = f64::from(k);
        let next = -2.0 * x0 * derivative - 2.0 * (k - 1.0) * before;
        before = derivative;
        derivative = next;
        power *= d / (k + 1.0);
        result += derivative * power;
    }
    (value + result).copysign(x)
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `ln(1 + exp(x))` without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `x · Φ(x)`, with Gauss' distribution function.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// The approximation of [`gelu`] by the hyperbolic tangent.
pub fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_agrees_with_its_series_between_table_entries() {
        for i in -5990..5990 {
            let x = f64::from(i) * 1.000_37e-3;
            let exact = erf_series(x.abs()).copysign(x);
            assert!((erf(x) - exact).abs() <= 1e-14 * exact.abs(), "{x}");
        }
        assert_eq!(erf(f64::INFINITY), 1.0);
        assert_eq!(erf(-7.0), -1.0);
        assert!(erf(f64::NAN).is_nan());
    }
}
