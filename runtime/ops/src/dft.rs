//! `DFT`: the discrete Fourier transform, by Cooley and Tukey's algorithm for powers of two and Bluestein's otherwise.

use std::f64::consts::PI;

use crate::call::{Call, OpResult};
use crate::cast::from_f64;
use crate::layout::{inverse, permute, product};
use crate::norm::reals;
use crate::{DType, Tensor};

/// A complex number.
type Complex = (f64, f64);

fn mul(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// `exp(-2πi · k / n)`.
fn root(k: usize, n: usize) -> Complex {
    let angle = -2.0 * PI * k as f64 / n as f64;
    (angle.cos(), angle.sin())
}

/// Transforms in place; the length is a power of two and `roots` holds `exp(-2πi · k / n)` for `k < n / 2`.
fn fft(v: &mut [Complex], roots: &[Complex]) {
    let n = v.len();
    let mut j = 0;
    for i in 1..n {
        let mut bit = n >> 1;
        while j & bit != 0 {
            j ^= bit;
            bit >>= 1;
        }
        j ^= bit;
        if i < j {
            v.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        let step = n / (2 * half);
        for block in v.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (k, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let t = mul(roots[k * step], *b);
                *b = (a.0 - t.0, a.1 - t.1);
                *a = (a.0 + t.0, a.1 + t.1);
            }
        }
        half *= 2;
    }
}

/// A transform of length `n`, prepared once and applied to many signals.
struct Transform {
    n: usize,
    /// Roots of unity for the inner transform, whose length is a power of two.
    roots: Vec<Complex>,
    /// Bluestein's chirp `exp(-πi · k² / n)` and the transform of its conjugate; empty if `n` is a power of two.
    chirp: Vec<Complex>,
    filter: Vec<Complex>,
}

impl Transform {
    fn new(n: usize) -> Transform {
        let is_power = n.is_power_of_two();
        let m = if is_power {
            n
        } else {
            (2 * n).next_power_of_two()
        };
        let roots: Vec<Complex> = (0..m / 2).map(|k| root(k, m)).collect();
        let (mut chirp, mut filter) = (Vec::new(), Vec::new());
        if !is_power {
            chirp = (0..n)
                .map(|k| root((k as u128 * k as u128 % (2 * n as u128)) as usize, 2 * n))
                .collect();
            filter = vec![(0.0, 0.0); m];
            for (k, c) in chirp.iter().enumerate() {
                filter[k] = (c.0, -c.1);
                filter[(m - k) % m] = filter[k];
            }
            fft(&mut filter, &roots);
        }
        Transform {
            n,
            roots,
            chirp,
            filter,
        }
    }

    /// Transforms a signal of length `n`.
    fn apply(&self, signal: &[Complex]) -> Vec<Complex> {
        if self.chirp.is_empty() {
            let mut v = signal.to_vec();
            fft(&mut v, &self.roots);
            return v;
        }
        let m = self.filter.len();
        let mut v: Vec<Complex> = signal
            .iter()
            .zip(&self.chirp)
            .map(|(&s, &c)| mul(s, c))
            .collect();
        v.resize(m, (0.0, 0.0));
        fft(&mut v, &self.roots);
        v.iter_mut()
            .zip(&self.filter)
            .for_each(|(a, &b)| *a = mul(*a, b));
        let mut back = conjugate(v);
        fft(&mut back, &self.roots);
        let scale = 1.0 / m as f64;
        back.iter()
            .zip(&self.chirp)
            .map(|(&(re, im), &c)| mul((re * scale, -im * scale), c))
            .collect()
    }

    /// Transforms back, divided by `n`.
    fn apply_inverse(&self, signal: Vec<Complex>) -> Vec<Complex> {
        let scale = 1.0 / self.n as f64;
        let v = self.apply(&conjugate(signal));
        v.into_iter()
            .map(|(re, im)| (re * scale, -im * scale))
            .collect()
    }
}

fn conjugate(v: Vec<Complex>) -> Vec<Complex> {
    v.into_iter().map(|(re, im)| (re, -im)).collect()
}

/// `DFT` of a tensor whose last dimension is one (real) or two (complex), along the axis that operand 2 names, by default
/// the last but one; the signal is cut or padded with zeros to the length that operand 1 names. With `onesided` the
/// forward transform gives the first half of the spectrum, and the inverse takes it and gives a real signal.
pub(crate) fn dft(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let &[ref outer @ .., n_parts] = x.shape() else {
        return Err(call.shape_error("expected rank 2 or more"));
    };
    if outer.is_empty() || !(n_parts == 1 || n_parts == 2) {
        return Err(call.shape_error(format!(
            "expected [.., 1] or [.., 2], found shape {:?}",
            x.shape()
        )));
    }
    let axis = if call.optional(2).is_some() {
        call.integer(2)?
    } else {
        -2
    };
    let axis = call.normalize_axis(axis, x.rank())?;
    if axis == outer.len() {
        return Err(call.value_error(2, "the last dimension holds real and imaginary parts"));
    }
    let (is_inverse, one_sided) = (call.flag("inverse"), call.flag("onesided"));
    let d = x.shape()[axis];
    let n = match call.optional(1) {
        Some(_) => call.to_size(1, call.integer(1)?)?,
        None if is_inverse && one_sided => 2 * d.saturating_sub(1),
        None => d,
    };
    if n == 0 {
        return Err(call.value_error(1, "the length is zero"));
    }
    if one_sided && !is_inverse && n_parts == 2 {
        return Err(call.shape_error("a one-sided transform of a complex signal"));
    }
    let n_out = if one_sided && !is_inverse {
        n / 2 + 1
    } else {
        n
    };
    let parts_out = if one_sided && is_inverse { 1 } else { 2 };
    let mut shape = x.shape().to_vec();
    shape[axis] = n_out;
    shape[outer.len()] = parts_out;
    call.size(&shape, DType::F64)?;
    call.size(&[n, 16], DType::F64)?;
    let mut perm: Vec<usize> = (0..outer.len()).filter(|&a| a != axis).collect();
    perm.extend([axis, outer.len()]);
    let values = permute(&reals(call, 0)?, x.shape(), &perm);
    let mut result = Vec::new();
    let n_rows = if product(&shape) == 0 {
        0
    } else {
        product(&shape) / (n_out * parts_out)
    };
    let transform = Transform::new(n);
    for row in 0..n_rows {
        let row = &values[row * d * n_parts..(row + 1) * d * n_parts];
        let mut signal: Vec<Complex> = row
            .chunks_exact(n_parts)
            .map(|c| (c[0], c.get(1).copied().unwrap_or(0.0)))
            .collect();
        if one_sided && is_inverse {
            signal = mirrored(&signal, n);
        }
        signal.resize(n, (0.0, 0.0));
        let out = if is_inverse {
            transform.apply_inverse(signal)
        } else {
            transform.apply(&signal)
        };
        for &(re, im) in &out[..n_out] {
            result.push(re);
            if parts_out == 2 {
                result.push(im);
            }
        }
    }
    let moved: Vec<usize> = perm.iter().map(|&p| shape[p]).collect();
    let data = from_f64(&permute(&result, &moved, &inverse(&perm)), x.dtype());
    Tensor::try_new(shape, data).ok_or_else(|| call.shape_error("sizes disagree"))
}

/// The whole spectrum, of length `n`, of a real signal from its first half.
fn mirrored(half: &[Complex], n: usize) -> Vec<Complex> {
    let at = |k: usize| half.get(k).copied().unwrap_or((0.0, 0.0));
    (0..n)
        .map(|k| {
            if k == 0 || 2 * k == n {
                (at(k).0, 0.0)
            } else if 2 * k < n {
                at(k)
            } else {
                let (re, im) = at(n - k);
                (re, -im)
            }
        })
        .collect()
}
