//! Recurrent networks: `LSTM`, `GRU`, `RNN` and `DynamicQuantizeLSTM`, computed in double precision and rounded once.
//!
//! Shapes follow ONNX: `x[seq, batch, input]`, `w[directions, gates · hidden, input]`,
//! `r[directions, gates · hidden, hidden]`, `b[directions, 2 · gates · hidden]`, states `[directions, batch, hidden]`;
//! with `layout = 1` the batch comes first in `x`, the states and the results.
//!
//! Quantized weights are `w[directions, input, gates · hidden]` and `r[directions, hidden, gates · hidden]` of bytes. What they multiply
//! is quantized by its range: all steps of `x` up to the longest length, and in each step the hidden states that the step before gave.

use crate::call::{Call, OpResults};
use crate::cast::from_f64;
use crate::layout::{expand, permute, product};
use crate::matmul::{Matrix, multiply};
use crate::norm::reals;
use crate::number::is_byte;
use crate::quant::quantize_dynamically;
use crate::special::{sigmoid, softplus};
use crate::{Attribute, DType, OpError, Operator, Tensor};

/// A function of one real number, named by an attribute.
#[derive(Clone, Copy)]
pub(crate) struct Activation {
    function: fn(f64, f64, f64) -> f64,
    alpha: f64,
    beta: f64,
}

impl Activation {
    /// The function of this name, whatever its case, with its default parameters, and how many it takes.
    fn named(name: &str) -> Option<(Activation, usize)> {
        type Function = fn(f64, f64, f64) -> f64;
        let (function, alpha, beta, n): (Function, f64, f64, usize) =
            match &name.to_ascii_lowercase()[..] {
                "relu" => (|x, _, _| x.max(0.0), 0.0, 0.0, 0),
                "tanh" => (|x, _, _| x.tanh(), 0.0, 0.0, 0),
                "sigmoid" => (|x, _, _| sigmoid(x), 0.0, 0.0, 0),
                "softsign" => (|x, _, _| x / (1.0 + x.abs()), 0.0, 0.0, 0),
                "softplus" => (|x, _, _| softplus(x), 0.0, 0.0, 0),
                "affine" => (|x, a, b| a * x + b, 1.0, 0.0, 2),
                "leakyrelu" => (|x, a, _| if x < 0.0 { a * x } else { x }, 0.01, 0.0, 1),
                "thresholdedrelu" => (|x, a, _| if x < a { 0.0 } else { x }, 1.0, 0.0, 1),
                "scaledtanh" => (|x, a, b| a * (b * x).tanh(), 1.0, 1.0, 2),
                "hardsigmoid" => (|x, a, b| (a * x + b).clamp(0.0, 1.0), 0.2, 0.5, 2),
                "elu" => (
                    |x, a, _| if x < 0.0 { a * x.exp_m1() } else { x },
                    1.0,
                    0.0,
                    1,
                ),
                _ => return None,
            };
        Some((
            Activation {
                function,
                alpha,
                beta,
            },
            n,
        ))
    }

    /// The function of this name with the given parameters, or its defaults.
    pub(crate) fn with(name: &str, alpha: Option<f32>, beta: Option<f32>) -> Option<Activation> {
        let (mut activation, _) = Activation::named(name)?;
        activation.alpha = alpha.map_or(activation.alpha, f64::from);
        activation.beta = beta.map_or(activation.beta, f64::from);
        Some(activation)
    }

    pub(crate) fn apply(self, x: f64) -> f64 {
        (self.function)(x, self.alpha, self.beta)
    }
}

/// The activations of all directions; `defaults` are those of one.
fn activations(
    call: &Call<'_>,
    n_directions: usize,
    defaults: &[&str],
) -> Result<Vec<Activation>, OpError> {
    let names: Vec<String> = match call.attribute("activations") {
        Some(Attribute::Strs(names)) => names.clone(),
        _ => defaults
            .iter()
            .cycle()
            .take(n_directions * defaults.len())
            .map(|&s| s.to_owned())
            .collect(),
    };
    if names.len() != n_directions * defaults.len() {
        return Err(call.attribute_error(
            "activations",
            format!("{} for {n_directions} directions", names.len()),
        ));
    }
    let floats = |name: &str| match call.attribute(name) {
        Some(Attribute::Floats(v)) => v.clone(),
        _ => Vec::new(),
    };
    let (mut alphas, mut betas) = (
        floats("activation_alpha").into_iter(),
        floats("activation_beta").into_iter(),
    );
    names
        .iter()
        .map(|name| {
            let (_, n) = Activation::named(name).ok_or_else(|| {
                call.attribute_error("activations", format!("unknown function `{name}`"))
            })?;
            let alpha = if 0 < n { alphas.next() } else { None };
            let beta = if 1 < n { betas.next() } else { None };
            Activation::with(name, alpha, beta).ok_or_else(|| {
                call.attribute_error("activations", format!("unknown function `{name}`"))
            })
        })
        .collect()
}

/// Sizes of a recurrent network.
#[derive(Clone, Copy)]
struct Sizes {
    seq: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    directions: usize,
    gates: usize,
}

/// Weights `[directions, n, k]`.
struct Weights {
    /// Less their zero points if they are bytes.
    values: Vec<f64>,
    /// What bytes are multiplied by, for each direction and row.
    scales: Option<Vec<f64>>,
}

impl Weights {
    /// Operand `index`, of this shape.
    fn real(call: &Call<'_>, index: usize) -> Result<Weights, OpError> {
        Ok(Weights {
            values: reals(call, index)?,
            scales: None,
        })
    }

    /// Bytes `[directions, k, n]`, operand `index`, with scales and zero points in the operands from `parameters` on: one for each direction,
    /// or one for each of its rows.
    fn bytes(
        call: &Call<'_>,
        index: usize,
        parameters: usize,
        [directions, n, k]: [usize; 3],
    ) -> Result<Weights, OpError> {
        let q = call.operand(index)?;
        if !is_byte(q.dtype()) {
            return Err(call.dtype_error(index, q.dtype()));
        }
        call.expect_dtype(parameters + 1, q.dtype())?;
        reals(call, parameters)?;
        let spread = |index: usize| {
            let p = call.operand(index)?;
            let shape: &[usize] = match p.shape() {
                [_] => &[directions, 1],
                _ => &[directions, n],
            };
            if p.len() != product(shape) || 2 < p.rank() {
                let message = format!(
                    "operand {index} of shape {:?} for {directions} directions",
                    p.shape()
                );
                return Err(call.shape_error(message));
            }
            Ok(expand(&p.to_f64_vec(), shape, &[directions, n]))
        };
        let (scales, zeros) = (spread(parameters)?, spread(parameters + 1)?);
        let mut values = permute(&q.to_f64_vec(), &[directions, k, n], &[0, 2, 1]);
        for (row, zero) in values.chunks_exact_mut(k.max(1)).zip(&zeros) {
            row.iter_mut().for_each(|v| *v -= zero);
        }
        Ok(Weights {
            values,
            scales: Some(scales),
        })
    }

    /// `a[m, k]` times the weights of a direction, transposed.
    fn multiply(&self, direction: usize, [m, n, k]: [usize; 3], a: &[f64]) -> Vec<f64> {
        let w = Matrix::transposed(&self.values[direction * n * k..][..n * k], k);
        let Some(scales) = &self.scales else {
            return multiply([m, n, k], Matrix::row_major(a, k), w);
        };
        let singles: Vec<f32> = a.iter().map(|&v| v as f32).collect();
        let q = quantize_dynamically(&singles);
        let centered: Vec<f64> = (q.values.iter())
            .map(|&v| f64::from(v) - f64::from(q.zero_point))
            .collect();
        let mut sums = multiply([m, n, k], Matrix::row_major(&centered, k), w);
        for row in sums.chunks_exact_mut(n.max(1)) {
            for (v, scale) in row.iter_mut().zip(&scales[direction * n..]) {
                *v *= f64::from(q.scale) * scale;
            }
        }
        sums
    }
}

/// Operands of a recurrent network in double precision, `layout` 0.
struct Network {
    sizes: Sizes,
    dtype: DType,
    batch_first: bool,
    x: Vec<f64>,
    w: Weights,
    r: Weights,
    b: Vec<f64>,
    lengths: Vec<usize>,
    h: Vec<f64>,
    activations: Vec<Activation>,
    clip: f64,
}

impl Network {
    fn new(call: &Call<'_>, gates: usize, defaults: &[&str]) -> Result<Network, OpError> {
        let (x, w, r) = (call.operand(0)?, call.operand(1)?, call.operand(2)?);
        let directions = match call.str("direction") {
            "forward" | "reverse" => 1,
            "bidirectional" => 2,
            other => {
                return Err(call.attribute_error("direction", format!("unknown value `{other}`")));
            }
        };
        let batch_first = match call.optional_int("layout").unwrap_or(0) {
            0 => false,
            1 => true,
            other => {
                return Err(call.attribute_error("layout", format!("{other} is neither 0 nor 1")));
            }
        };
        let mismatch = || {
            call.shape_error(format!(
                "x {:?}, w {:?} and r {:?} do not fit",
                x.shape(),
                w.shape(),
                r.shape()
            ))
        };
        let is_quantized = call.op == Operator::MsDynamicQuantizeLSTM;
        let (&[x0, x1, input], &[_, r1, r2]) = (x.shape(), r.shape()) else {
            return Err(mismatch());
        };
        let hidden = if is_quantized { r1 } else { r2 };
        let (seq, batch) = if batch_first { (x1, x0) } else { (x0, x1) };
        let n = hidden.saturating_mul(gates);
        let shape = |k: usize| match is_quantized {
            true => [directions, k, n],
            false => [directions, n, k],
        };
        if w.shape() != shape(input) || r.shape() != shape(hidden) {
            return Err(mismatch());
        }
        if call
            .optional_int("hidden_size")
            .is_some_and(|h| usize::try_from(h) != Ok(hidden))
        {
            return Err(call.attribute_error("hidden_size", format!("the weights have {hidden}")));
        }
        let sizes = Sizes {
            seq,
            batch,
            input,
            hidden,
            directions,
            gates,
        };
        call.size(&[seq, directions, batch, n], DType::F64)?;
        let data = reals(call, 0)?;
        let (w, r) = if is_quantized {
            call.expect_dtype(0, DType::F32)?;
            (
                Weights::bytes(call, 1, 8, [directions, n, input])?,
                Weights::bytes(call, 2, 10, [directions, n, hidden])?,
            )
        } else {
            (Weights::real(call, 1)?, Weights::real(call, 2)?)
        };
        let b = match call.optional(3) {
            Some(b) if b.shape() != [directions, 2 * n] => return Err(mismatch()),
            Some(_) => reals(call, 3)?,
            None => vec![0.0; 2 * n * directions],
        };
        let lengths = match call.optional_integers(4)? {
            Some(v) if v.len() != batch => {
                return Err(call.value_error(4, "not a length for each item"));
            }
            Some(v) => v
                .into_iter()
                .map(|v| usize::try_from(v).ok().filter(|&v| v <= seq))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| call.value_error(4, "a length is outside the sequence"))?,
            None => vec![seq; batch],
        };
        let mut network = Network {
            sizes,
            dtype: x.dtype(),
            batch_first,
            x: if batch_first {
                permute(&data, x.shape(), &[1, 0, 2])
            } else {
                data
            },
            w,
            r,
            b,
            lengths,
            h: Vec::new(),
            activations: activations(call, directions, defaults)?,
            clip: call
                .optional_float("clip")
                .map_or(f64::INFINITY, |c| f64::from(c).max(0.0)),
        };
        network.h = network.state(call, 5)?;
        Ok(network)
    }

    /// The initial state that operand `index` gives, or zeros.
    fn state(&self, call: &Call<'_>, index: usize) -> Result<Vec<f64>, OpError> {
        let Sizes {
            batch,
            hidden,
            directions,
            ..
        } = self.sizes;
        let Some(state) = call.optional(index) else {
            return Ok(vec![0.0; directions * batch * hidden]);
        };
        let expected = if self.batch_first {
            [batch, directions, hidden]
        } else {
            [directions, batch, hidden]
        };
        if state.shape() != expected {
            return Err(call.shape_error(format!(
                "expected a state of shape {expected:?}, found {:?}",
                state.shape()
            )));
        }
        let data = reals(call, index)?;
        Ok(if self.batch_first {
            permute(&data, &expected, &[1, 0, 2])
        } else {
            data
        })
    }

    fn limit(&self, v: f64) -> f64 {
        v.clamp(-self.clip, self.clip)
    }

    /// Runs every direction. `step` is given the direction, the products of the input and of the hidden state with
    /// every gate's weights, the hidden state and the cell state, and replaces the states.
    fn run(
        &self,
        call: &Call<'_>,
        c: Vec<f64>,
        step: impl Fn(usize, &[f64], &[f64], &mut [f64], &mut [f64]),
    ) -> OpResults {
        let Sizes {
            seq,
            batch,
            input,
            hidden,
            directions,
            gates,
        } = self.sizes;
        let n = gates * hidden;
        let mut y = vec![0.0; seq * directions * batch * hidden];
        let (mut h, mut c) = (self.h.clone(), c);
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        for d in 0..directions {
            let reverse = d == 1 || call.str("direction") == "reverse";
            let rows = longest * batch;
            let from_input = self
                .w
                .multiply(d, [rows, n, input], &self.x[..rows * input]);
            if n == 0 {
                continue;
            }
            for t in 0..longest {
                let mut states = h[d * batch * hidden..(d + 1) * batch * hidden].to_vec();
                for (state, &length) in states.chunks_exact_mut(hidden).zip(&self.lengths) {
                    if length < t {
                        state.fill(0.0);
                    }
                }
                let from_state = self.r.multiply(d, [batch, n, hidden], &states);
                for (item, &length) in self.lengths.iter().enumerate() {
                    if length <= t {
                        continue;
                    }
                    let place = if reverse { length - 1 - t } else { t };
                    let x = &from_input[(place * batch + item) * n..][..n];
                    let at = (d * batch + item) * hidden;
                    let (h, c) = (&mut h[at..at + hidden], &mut c[at..at + hidden]);
                    step(d, x, &from_state[item * n..(item + 1) * n], h, c);
                    y[((place * directions + d) * batch + item) * hidden..][..hidden]
                        .copy_from_slice(h);
                }
            }
        }
        let tensor = |data: &[f64], shape: &[usize], perm: &[usize]| {
            let to: Vec<usize> = if self.batch_first {
                perm.iter().map(|&p| shape[p]).collect()
            } else {
                shape.to_vec()
            };
            let moved = if self.batch_first {
                permute(data, shape, perm)
            } else {
                data.to_vec()
            };
            Tensor::try_new(to, from_f64(&moved, self.dtype))
                .ok_or_else(|| call.shape_error("sizes disagree"))
        };
        let state_shape = [directions, batch, hidden];
        Ok(vec![
            tensor(&y, &[seq, directions, batch, hidden], &[2, 0, 1, 3])?,
            tensor(&h, &state_shape, &[1, 0, 2])?,
            tensor(&c, &state_shape, &[1, 0, 2])?,
        ])
    }

    /// The biases of the input and of the hidden state of direction `d`.
    fn biases(&self, d: usize) -> (&[f64], &[f64]) {
        let n = self.sizes.gates * self.sizes.hidden;
        self.b[d * 2 * n..(d + 1) * 2 * n].split_at(n)
    }
}

/// `LSTM` and `DynamicQuantizeLSTM`: gates in the order input, output, forget, cell; peepholes in the order input, output, forget.
pub(crate) fn lstm(call: &Call<'_>) -> OpResults {
    let net = Network::new(call, 4, &["Sigmoid", "Tanh", "Tanh"])?;
    let Sizes {
        hidden: n,
        directions,
        ..
    } = net.sizes;
    let c = net.state(call, 6)?;
    let peepholes = match call.optional(7) {
        Some(p) if p.shape() != [directions, 3 * n] => {
            return Err(call.shape_error(format!(
                "expected peepholes [{directions}, {}], found {:?}",
                3 * n,
                p.shape()
            )));
        }
        Some(_) => reals(call, 7)?,
        None => vec![0.0; directions * 3 * n],
    };
    let couples = call.flag("input_forget");
    net.run(call, c, |d, x, r, h, c| {
        let [f, g, last] = [0, 1, 2].map(|i| net.activations[3 * d + i]);
        let (wb, rb) = net.biases(d);
        let p = &peepholes[d * 3 * n..];
        for j in 0..n {
            let gate = |i: usize| x[i * n + j] + r[i * n + j] + wb[i * n + j] + rb[i * n + j];
            let input = f.apply(net.limit(gate(0) + p[j] * c[j]));
            let forget = if couples {
                1.0 - input
            } else {
                f.apply(net.limit(gate(2) + p[2 * n + j] * c[j]))
            };
            c[j] = forget * c[j] + input * g.apply(net.limit(gate(3)));
            let output = f.apply(net.limit(gate(1) + p[n + j] * c[j]));
            h[j] = output * last.apply(c[j]);
        }
    })
}

/// `GRU`: gates in the order update, reset, hidden.
pub(crate) fn gru(call: &Call<'_>) -> OpResults {
    let net = Network::new(call, 3, &["Sigmoid", "Tanh"])?;
    let n = net.sizes.hidden;
    let after = call.flag("linear_before_reset");
    let unused = vec![0.0; net.h.len()];
    let mut results = net.run(call, unused, |d, x, r, h, _| {
        let [f, g] = [0, 1].map(|i| net.activations[2 * d + i]);
        let (wb, rb) = net.biases(d);
        let gate = |i: usize, j: usize| {
            f.apply(net.limit(x[i * n + j] + r[i * n + j] + wb[i * n + j] + rb[i * n + j]))
        };
        let update: Vec<f64> = (0..n).map(|j| gate(0, j)).collect();
        let reset: Vec<f64> = (0..n).map(|j| gate(1, j)).collect();
        let from_state: Vec<f64> = if after {
            (0..n)
                .map(|j| reset[j] * (r[2 * n + j] + rb[2 * n + j]))
                .collect()
        } else {
            let kept: Vec<f64> = reset.iter().zip(&*h).map(|(r, h)| r * h).collect();
            let weights = &net.r.values[(d * 3 + 2) * n * n..(d * 3 + 3) * n * n];
            let product = multiply(
                [1, n, n],
                Matrix::row_major(&kept, n),
                Matrix::transposed(weights, n),
            );
            product
                .iter()
                .enumerate()
                .map(|(j, v)| v + rb[2 * n + j])
                .collect()
        };
        for j in 0..n {
            let candidate = g.apply(net.limit(x[2 * n + j] + wb[2 * n + j] + from_state[j]));
            h[j] = (1.0 - update[j]) * candidate + update[j] * h[j];
        }
    })?;
    results.truncate(2);
    Ok(results)
}

/// `RNN`.
pub(crate) fn rnn(call: &Call<'_>) -> OpResults {
    let net = Network::new(call, 1, &["Tanh"])?;
    let unused = vec![0.0; net.h.len()];
    let mut results = net.run(call, unused, |d, x, r, h, _| {
        let (wb, rb) = net.biases(d);
        for j in 0..h.len() {
            h[j] = net.activations[d].apply(net.limit(x[j] + r[j] + wb[j] + rb[j]));
        }
    })?;
    results.truncate(2);
    debug_assert!(matches!(call.op, Operator::RNN) && product(results[1].shape()) == net.h.len());
    Ok(results)
}
