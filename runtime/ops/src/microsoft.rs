//! ONNX Runtime's contributed operators, as its optimiser writes them into files.

use crate::attention::{Heads, attend, tensor};
use crate::call::{Call, OpResult, OpResults};
use crate::cast::{from_f64, to_numbers, with_data};
use crate::layout::{expand, expect_broadcasts_to, permute, product, zip_broadcast};
use crate::matmul::{Matrix, gemm_with, matmul_views, multiply};
use crate::norm::{moments, reals, softmax_in_place};
use crate::number::sum_f64;
use crate::rnn::Activation;
use crate::special::{gelu, gelu_tanh};
use crate::unary::map_view;
use crate::{DType, OpError, Operator, Tensor, TensorView};

/// Operand 0 plus operand 1, if present, which broadcasts to it.
fn with_bias(call: &Call<'_>) -> Result<Vec<f64>, OpError> {
    let x = call.operand(0)?;
    let values = reals(call, 0)?;
    let Some(bias) = call.optional(1) else {
        return Ok(values);
    };
    expect_broadcasts_to(call, bias.shape(), x.shape())?;
    let bias_values = reals(call, 1)?;
    Ok(zip_broadcast(
        (&values, x.shape()),
        (&bias_values, bias.shape()),
        x.shape(),
        |a, b| a + b,
    ))
}

/// `BiasGelu`, with the error function, and `FastGelu`, with the hyperbolic tangent, of `x + bias`.
pub(crate) fn bias_gelu(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let f = if call.op == Operator::MsFastGelu {
        gelu_tanh
    } else {
        gelu
    };
    let values: Vec<f64> = with_bias(call)?.into_iter().map(f).collect();
    with_data(call, x, from_f64(&values, x.dtype()))
}

/// `BiasSplitGelu`: the first half of the last dimension of `x + bias` times GELU of the second.
pub(crate) fn bias_split_gelu(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let values = with_bias(call)?;
    let (&n, outer) = x
        .shape()
        .split_last()
        .ok_or_else(|| call.shape_error("expected rank 1 or more"))?;
    if n % 2 != 0 {
        return Err(call.shape_error(format!("{n} does not split into halves")));
    }
    let half = n / 2;
    let mut shape = outer.to_vec();
    shape.push(half);
    let mut data = Vec::new();
    if n != 0 {
        for row in values.chunks_exact(n) {
            data.extend((0..half).map(|i| row[i] * gelu(row[half + i])));
        }
    }
    tensor(call, &shape, &data, x.dtype())
}

/// `BiasAdd`: `x + bias + skip`.
pub(crate) fn bias_add(call: &Call<'_>) -> OpResult {
    let (x, skip) = (call.operand(0)?, call.operand(2)?);
    expect_broadcasts_to(call, skip.shape(), x.shape())?;
    let sum = with_bias(call)?;
    let skip_values = reals(call, 2)?;
    let sum = zip_broadcast(
        (&sum, x.shape()),
        (&skip_values, skip.shape()),
        x.shape(),
        |a, b| a + b,
    );
    with_data(call, x, from_f64(&sum, x.dtype()))
}

/// Operand `index`, or `default` where it is absent, as a vector of `n`.
fn vector(call: &Call<'_>, index: usize, n: usize, default: f64) -> Result<Vec<f64>, OpError> {
    match call.optional(index) {
        None => Ok(vec![default; n]),
        Some(v) if v.shape() == [n] => reals(call, index),
        Some(v) => Err(call.shape_error(format!(
            "operand {index}: expected shape [{n}], found {:?}",
            v.shape()
        ))),
    }
}

/// `SkipLayerNormalization` and its simplified form, without mean and bias: of `x + skip + bias`. Results are `y`, the
/// mean, the inverse standard deviation and the sum.
pub(crate) fn skip_layer_normalization(call: &Call<'_>) -> OpResults {
    let (x, skip) = (call.operand(0)?, call.operand(1)?);
    let (&n, outer) = x
        .shape()
        .split_last()
        .ok_or_else(|| call.shape_error("expected rank 1 or more"))?;
    let is_simple = call.op == Operator::MsSkipSimplifiedLayerNormalization;
    let gamma = vector(call, 2, n, 1.0)?;
    let beta = if is_simple {
        vec![0.0; n]
    } else {
        vector(call, 3, n, 0.0)?
    };
    let bias = vector(call, if is_simple { 3 } else { 4 }, n, 0.0)?;
    expect_broadcasts_to(call, skip.shape(), x.shape())?;
    let (values, skips) = (reals(call, 0)?, reals(call, 1)?);
    let mut sum = zip_broadcast(
        (&values, x.shape()),
        (&skips, skip.shape()),
        x.shape(),
        |a, b| a + b,
    );
    sum.iter_mut()
        .zip(bias.iter().cycle())
        .for_each(|(s, b)| *s += b);
    let mut kept = outer.to_vec();
    kept.push(1);
    normalized(call, x, &kept, sum, &gamma, &beta, is_simple)
}

/// Rows of `sum` normalised, and the statistics and the sum themselves.
fn normalized(
    call: &Call<'_>,
    x: TensorView<'_>,
    kept: &[usize],
    sum: Vec<f64>,
    gamma: &[f64],
    beta: &[f64],
    is_simple: bool,
) -> OpResults {
    let epsilon = f64::from(call.float("epsilon"));
    let mut y = sum.clone();
    let (mut means, mut inverses) = (Vec::new(), Vec::new());
    for row in y.chunks_exact_mut(gamma.len().max(1)) {
        let (mean, spread) = if is_simple {
            (0.0, sum_f64(row.iter().map(|v| v * v)) / row.len() as f64)
        } else {
            moments(row)
        };
        let inverse = 1.0 / (spread + epsilon).sqrt();
        for ((v, g), b) in row.iter_mut().zip(gamma).zip(beta) {
            *v = (*v - mean) * inverse * g + b;
        }
        means.push(mean);
        inverses.push(inverse);
    }
    // The mean of no elements is 0/0.
    means.resize(product(kept), f64::NAN);
    inverses.resize(product(kept), f64::NAN);
    let mut full = kept.to_vec();
    if let Some(last) = full.last_mut() {
        *last = gamma.len();
    }
    Ok(vec![
        tensor(call, &full, &y, x.dtype())?,
        tensor(call, kept, &means, DType::F32)?,
        tensor(call, kept, &inverses, DType::F32)?,
        tensor(call, &full, &sum, x.dtype())?,
    ])
}

/// `EmbedLayerNormalization`: the sum of word, position and segment embeddings, normalised; the number of ones in each
/// row of the mask; and the sum.
pub(crate) fn embed_layer_normalization(call: &Call<'_>) -> OpResults {
    let (ids, words, positions) = (call.operand(0)?, call.operand(2)?, call.operand(3)?);
    let (&[b, s], &[_, n]) = (ids.shape(), words.shape()) else {
        return Err(call.shape_error(format!(
            "ids {:?} and embeddings {:?}",
            ids.shape(),
            words.shape()
        )));
    };
    let size = call.size(&[b, s, n], DType::F64)?;
    let position_ids: Vec<i64> = match call.optional(8) {
        None => (0..if size == 0 { 0 } else { b * s })
            .map(|i| (i % s) as i64)
            .collect(),
        Some(p) => {
            expect_broadcasts_to(call, p.shape(), &[b, s])?;
            expand(&call.integers(8)?, p.shape(), &[b, s])
        }
    };
    let mut sum = vec![0.0f64; size];
    let mut add = |index: usize, ids: &[i64], from: usize| -> Result<(), OpError> {
        let table = call.operand(index)?;
        let v = match *table.shape() {
            [v, width] if width == n => v,
            ref other => {
                return Err(
                    call.shape_error(format!("expected a table [_, {n}], found shape {other:?}"))
                );
            }
        };
        let values = reals(call, index)?;
        if n != 0 {
            for (row, &id) in sum.chunks_exact_mut(n).zip(ids) {
                let start = call.normalize_index(from, id, v)? * n;
                row.iter_mut()
                    .zip(&values[start..start + n])
                    .for_each(|(s, t)| *s += t);
            }
        }
        Ok(())
    };
    add(2, &call.integers(0)?, 0)?;
    add(
        3,
        &position_ids,
        if call.optional(8).is_some() { 8 } else { 3 },
    )?;
    if let (Some(segments), Some(_)) = (call.optional(1), call.optional(4)) {
        if segments.shape() != [b, s] {
            return Err(call.shape_error(format!(
                "expected segments [{b}, {s}], found {:?}",
                segments.shape()
            )));
        }
        add(4, &call.integers(1)?, 1)?;
    }
    let gamma = vector(call, 5, n, 1.0)?;
    let beta = vector(call, 6, n, 0.0)?;
    let counts: Vec<i32> = match call.optional_integers(7)? {
        Some(mask) if mask.len() == b.saturating_mul(s) && s != 0 => mask
            .chunks_exact(s)
            .map(|row| row.iter().filter(|&&m| m == 1).count() as i32)
            .collect(),
        Some(_) => return Err(call.shape_error(format!("expected a mask [{b}, {s}]"))),
        None => vec![0; b],
    };
    let mut results = normalized(call, positions, &[b, s, 1], sum, &gamma, &beta, false)?;
    let sum = results.pop().ok_or_else(|| call.shape_error("no sum"))?;
    results.truncate(1);
    results.extend([call.tensor(&[b], counts)?, sum]);
    Ok(results)
}

/// How far each key is to be attended to, as the forms of `mask_index` and `key_padding_mask` say: what is added to the
/// score of key `j` for query `i` of item `item`.
struct KeyMask {
    values: Vec<f64>,
    shape: [usize; 3],
}

impl KeyMask {
    /// Reads operand `index` for scores `[b, _, sq, sk]`: lengths `[b]`, ends and starts `[2b]`, or a mask `[b, sk]`,
    /// `[b, sq, sk]` or `[b, 1, most, most]` that is zero where a key is hidden.
    fn new(
        call: &Call<'_>,
        index: usize,
        [b, sq, sk]: [usize; 3],
    ) -> Result<Option<KeyMask>, OpError> {
        let Some(mask) = call.optional(index) else {
            return Ok(None);
        };
        let hidden = f64::from(call.float("mask_filter_value"));
        let ids = mask.to_i64_vec();
        let add = |visible: bool| if visible { 0.0 } else { hidden };
        let by_key = |f: &dyn Fn(usize, i64) -> bool| -> Vec<f64> {
            (0..b * sk)
                .map(|i| add(f(i / sk, (i % sk) as i64)))
                .collect()
        };
        call.size(&[b, sq, sk], DType::F64)?;
        let (values, shape) = match *mask.shape() {
            [n] if n == b => (by_key(&|item, j| j < ids[item]), [b, 1, sk]),
            [n] if n == 2 * b => (
                by_key(&|item, j| ids[b + item] <= j && j < ids[item]),
                [b, 1, sk],
            ),
            [n, keys] if n == b && keys == sk => {
                (ids.iter().map(|&m| add(m != 0)).collect(), [b, 1, sk])
            }
            [n, queries, keys] if n == b && queries == sq && keys == sk => {
                (ids.iter().map(|&m| add(m != 0)).collect(), [b, sq, sk])
            }
            [n, 1, rows, columns] if n == b && rows == columns && sk <= rows && sq <= sk => {
                let at = |i: usize| {
                    let (item, row, column) = (i / (sq * sk), sk - sq + (i / sk) % sq, i % sk);
                    add(ids[(item * rows + row) * columns + column] != 0)
                };
                ((0..b * sq * sk).map(at).collect(), [b, sq, sk])
            }
            ref other => {
                return Err(
                    call.shape_error(format!("a mask of shape {other:?} for [{b}, {sq}, {sk}]"))
                );
            }
        };
        Ok(Some(KeyMask { values, shape }))
    }

    fn at(&self, item: usize, i: usize, j: usize) -> f64 {
        let [_, sq, sk] = self.shape;
        self.values[(item * sq + i.min(sq - 1)) * sk + j]
    }
}

/// Scaled dot-product attention with ONNX Runtime's masks; `mask` and `bias` are operand numbers.
fn masked_attention(
    call: &Call<'_>,
    [q, k, v]: [&Heads; 3],
    mask: usize,
    bias: usize,
) -> Result<Heads, OpError> {
    let ([b, h, sq, d], sk) = (q.shape, k.shape[2]);
    let full = [b, h, sq, sk];
    call.size(&full, DType::F64)?;
    let mask = KeyMask::new(call, mask, [b, sq, sk])?;
    let bias = match call.optional(bias) {
        Some(view) => {
            expect_broadcasts_to(call, view.shape(), &full)?;
            Some(expand(&reals(call, bias)?, view.shape(), &full))
        }
        None => None,
    };
    let scale = match call.optional_float("scale") {
        Some(scale) if scale != 0.0 => f64::from(scale),
        _ => 1.0 / (d as f64).sqrt(),
    };
    let is_causal = call.flag("unidirectional");
    let past = sk.saturating_sub(sq);
    attend(call, q, k, v, |[item, head, i], row| {
        for (j, s) in row.iter_mut().enumerate() {
            *s *= scale;
            *s += bias
                .as_ref()
                .map_or(0.0, |b| b[((item * h + head) * sq + i) * sk + j]);
            *s += mask.as_ref().map_or(0.0, |m| m.at(item, i, j));
            if is_causal && past + i < j {
                *s = f64::NEG_INFINITY;
            }
        }
        softmax_in_place(row);
    })
}

/// `Attention` of ONNX Runtime: the projection of `x[batch, seq, input]` by `weights[input, q + k + v]` and attention in
/// each head. Results are `y[batch, seq, v]` and the present keys and values `[2, batch, heads, total, width]`.
pub(crate) fn attention(call: &Call<'_>) -> OpResults {
    let (x, w) = (call.operand(0)?, call.operand(1)?);
    for name in ["do_rotary", "past_present_share_buffer"] {
        if call.optional_int(name).unwrap_or(0) != 0 {
            return Err(call.attribute_error(name, "is not supported"));
        }
    }
    call.expect_dtype(1, x.dtype())?;
    let (&[b, s, input], &[rows, columns]) = (x.shape(), w.shape()) else {
        return Err(call.shape_error(format!("x {:?} and weights {:?}", x.shape(), w.shape())));
    };
    let widths = match call.ints("qkv_hidden_sizes") {
        None => vec![columns / 3; 3],
        Some(sizes) => sizes
            .iter()
            .map(|&n| usize::try_from(n).unwrap_or(usize::MAX))
            .collect(),
    };
    let total = widths.iter().fold(0usize, |a, &n| a.saturating_add(n));
    if rows != input || widths.len() != 3 || total != columns {
        return Err(call.shape_error(format!("x {:?} and weights {:?}", x.shape(), w.shape())));
    }
    let n_heads = heads(call)?;
    let n_rows = b.saturating_mul(s);
    call.size(&[n_rows, columns], DType::F64)?;
    let bias = vector(call, 2, columns, 0.0)?;
    reals(call, 0)?;
    let (xs, ws): (Vec<f64>, Vec<f64>) = (x.to_f64_vec(), w.to_f64_vec());
    let projected = if x.dtype() == DType::F64 {
        multiply(
            [n_rows, columns, input],
            Matrix::row_major(&xs, input),
            Matrix::row_major(&ws, columns),
        )
    } else {
        let (xs, ws): (Vec<f32>, Vec<f32>) = (to_numbers(&x.data()), to_numbers(&w.data()));
        let mut sums = Vec::new();
        let (xs, ws) = (
            Matrix::row_major(&xs[..], input),
            Matrix::row_major(&ws[..], columns),
        );
        crate::matmul::multiply_unrounded([n_rows, columns, input], xs, ws, &mut sums);
        sums
    };
    let part = |start: usize, width: usize| {
        let mut data = Vec::with_capacity(n_rows * width);
        for row in 0..if columns == 0 { 0 } else { n_rows } {
            let values = &projected[row * columns + start..][..width];
            data.extend(values.iter().zip(&bias[start..]).map(|(v, b)| v + b));
        }
        split_heads(call, data, [b, s, width], n_heads)
    };
    let q = part(0, widths[0])?;
    let (mut k, mut v) = (
        part(widths[0], widths[1])?,
        part(widths[0] + widths[1], widths[2])?,
    );
    if let Some(past) = call.optional(4) {
        let &[2, pb, ph, ps, pd] = past.shape() else {
            return Err(call.shape_error(format!(
                "expected a past [2, _, _, _, _], found {:?}",
                past.shape()
            )));
        };
        let data = reals(call, 4)?;
        let (keys, values) = data.split_at(data.len() / 2);
        let shape = [pb, ph, ps, pd];
        k = k.after(
            call,
            Heads {
                shape,
                data: keys.to_vec(),
            },
        )?;
        v = v.after(
            call,
            Heads {
                shape,
                data: values.to_vec(),
            },
        )?;
    }
    let y = masked_attention(call, [&q, &k, &v], 3, 5)?.joined(call, x.dtype())?;
    if call.n_results < 2 {
        return Ok(vec![y]);
    }
    if k.shape != v.shape {
        return Err(call.shape_error("present keys and values differ in width"));
    }
    let mut shape = vec![2];
    shape.extend(k.shape);
    let present = tensor(call, &shape, &[k.data, v.data].concat(), x.dtype())?;
    Ok(vec![y, present])
}

fn heads(call: &Call<'_>) -> Result<usize, OpError> {
    usize::try_from(call.int("num_heads"))
        .ok()
        .filter(|&n| n != 0)
        .ok_or_else(|| call.attribute_error("num_heads", "is not positive"))
}

/// `[batch, seq, hidden]` split into heads.
fn split_heads(
    call: &Call<'_>,
    data: Vec<f64>,
    [b, s, hidden]: [usize; 3],
    h: usize,
) -> Result<Heads, OpError> {
    if hidden % h != 0 {
        return Err(call.attribute_error("num_heads", format!("{h} heads of {hidden}")));
    }
    let d = hidden / h;
    Ok(Heads {
        shape: [b, h, s, d],
        data: permute(&data, &[b, s, h, d], &[0, 2, 1, 3]),
    })
}

/// `MultiHeadAttention` of ONNX Runtime, of projected queries, keys and values: separate, the keys and values packed
/// `[batch, seq, heads, 2, width]`, all packed `[batch, seq, heads, 3, width]`, or the keys and values already split into
/// heads. Results are `y` and the present keys and values.
pub(crate) fn multi_head_attention(call: &Call<'_>) -> OpResults {
    let q = call.operand(0)?;
    let h = heads(call)?;
    reals(call, 0)?;
    let dtype = q.dtype();
    let mismatch =
        |v: TensorView<'_>| call.shape_error(format!("{:?} does not fit {h} heads", v.shape()));
    // Part `i` of a packed tensor.
    let unpack = |v: TensorView<'_>, i: usize| -> Result<Heads, OpError> {
        let &[b, s, heads, n, d] = v.shape() else {
            return Err(mismatch(v));
        };
        if heads != h || n <= i {
            return Err(mismatch(v));
        }
        let all = permute(&v.to_f64_vec(), v.shape(), &[3, 0, 2, 1, 4]);
        let size = b * h * s * d;
        Ok(Heads {
            shape: [b, h, s, d],
            data: all[i * size..(i + 1) * size].to_vec(),
        })
    };
    let (mut query, mut key, mut value) = match (q.rank(), call.optional(1), call.optional(2)) {
        (5, None, None) if q.shape()[3] == 3 => (unpack(q, 0)?, unpack(q, 1)?, unpack(q, 2)?),
        (3, Some(kv), None) if kv.rank() == 5 && kv.shape()[3] == 2 => (
            Heads::new(call, q, Some(h))?,
            unpack(kv, 0)?,
            unpack(kv, 1)?,
        ),
        (3, Some(k), Some(v)) => (
            Heads::new(call, q, Some(h))?,
            Heads::new(call, k, Some(h))?,
            Heads::new(call, v, Some(h))?,
        ),
        _ => return Err(mismatch(q)),
    };
    if call.optional(3).is_some() {
        let widths = [query.shape[3], key.shape[3], value.shape[3]];
        let bias = vector(call, 3, widths.iter().map(|d| d * h).sum(), 0.0)?;
        let mut start = 0;
        for part in [&mut query, &mut key, &mut value] {
            let [_, _, s, d] = part.shape;
            for (i, v) in part.data.iter_mut().enumerate() {
                *v += bias[start + (i / (s * d)) % h * d + i % d];
            }
            start += h * d;
        }
    }
    if let (Some(past_key), Some(past_value)) = (call.optional(6), call.optional(7)) {
        key = key.after(call, Heads::new(call, past_key, None)?)?;
        value = value.after(call, Heads::new(call, past_value, None)?)?;
    }
    let y = masked_attention(call, [&query, &key, &value], 4, 5)?.joined(call, dtype)?;
    Ok(vec![y, key.split(call, dtype)?, value.split(call, dtype)?])
}

/// `FusedMatMul`: `alpha · a' · b'`, where `transBatchA` moves the first dimension behind the batches and `transA` then
/// swaps the last two.
pub(crate) fn fused_matmul(call: &Call<'_>) -> OpResult {
    let arranged = |index: usize, moves_batch: bool, transposes: bool| -> Result<Tensor, OpError> {
        let x = call.operand(index)?;
        let rank = x.rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        if 1 < rank {
            if moves_batch {
                perm[..rank - 1].rotate_left(1);
            }
            if transposes {
                perm.swap(rank - 2, rank - 1);
            }
        }
        let shape: Vec<usize> = perm.iter().map(|&p| x.shape()[p]).collect();
        with_elements!(x.data(), v => call.tensor(&shape, permute(v, x.shape(), &perm)))
    };
    let a = arranged(0, call.flag("transBatchA"), call.flag("transA"))?;
    let b = arranged(1, call.flag("transBatchB"), call.flag("transB"))?;
    let product = matmul_views(call, a.view(), b.view())?;
    let alpha = f64::from(call.float("alpha"));
    if alpha == 1.0 {
        return Ok(product);
    }
    map_view(call, product.view(), |v| alpha * v)
}

/// `FusedGemm`: `Gemm` and an activation.
pub(crate) fn fused_gemm(call: &Call<'_>) -> OpResult {
    let (alpha, beta) = (
        f64::from(call.float("alpha")),
        f64::from(call.float("beta")),
    );
    let name = call.str("activation");
    if name.is_empty() {
        return gemm_with(call, alpha, beta, |v| v);
    }
    let parameters = ["activation_alpha", "activation_beta"].map(|n| call.optional_float(n));
    let activation = Activation::with(name, parameters[0], parameters[1])
        .ok_or_else(|| call.attribute_error("activation", format!("unknown function `{name}`")))?;
    gemm_with(call, alpha, beta, |v| activation.apply(v))
}
