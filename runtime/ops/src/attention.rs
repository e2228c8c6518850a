//! Attention as ONNX defines it, rotary embeddings, and the core that ONNX Runtime's forms share.

use crate::call::{Call, OpResult, OpResults};
use crate::cast::from_f64;
use crate::layout::{expand, expect_broadcasts_to, permute, product};
use crate::matmul::{Matrix, multiply};
use crate::norm::{reals, softmax_in_place};
use crate::{DType, OpError, Tensor, TensorView};

/// A tensor `[batch, heads, seq, width]` in double precision.
pub(crate) struct Heads {
    pub(crate) shape: [usize; 4],
    pub(crate) data: Vec<f64>,
}

impl Heads {
    /// Reads `[batch, heads, seq, width]`, or `[batch, seq, heads · width]` split into `n_heads`.
    pub(crate) fn new(
        call: &Call<'_>,
        x: TensorView<'_>,
        n_heads: Option<usize>,
    ) -> Result<Heads, OpError> {
        let data = x.to_f64_vec();
        match (x.shape(), n_heads) {
            (&[b, h, s, d], _) => Ok(Heads {
                shape: [b, h, s, d],
                data,
            }),
            (&[b, s, hidden], Some(h)) if h != 0 && hidden % h == 0 => {
                let data = permute(&data, &[b, s, h, hidden / h], &[0, 2, 1, 3]);
                Ok(Heads {
                    shape: [b, h, s, hidden / h],
                    data,
                })
            }
            _ => Err(call.shape_error(format!(
                "cannot split {:?} into {n_heads:?} heads",
                x.shape()
            ))),
        }
    }

    /// Rows of `self` after those of `past`.
    pub(crate) fn after(self, call: &Call<'_>, past: Heads) -> Result<Heads, OpError> {
        let ([b, h, p, d], [b1, h1, s, d1]) = (past.shape, self.shape);
        if (b, h, d) != (b1, h1, d1) {
            return Err(call.shape_error(format!(
                "a past of shape {:?} for {:?}",
                past.shape, self.shape
            )));
        }
        let shape = [b, h, p.saturating_add(s), d];
        let mut data = Vec::with_capacity(call.size(&shape, DType::F64)?);
        for i in 0..b.saturating_mul(h) {
            if d == 0 {
                break;
            }
            data.extend_from_slice(&past.data[i * p * d..(i + 1) * p * d]);
            data.extend_from_slice(&self.data[i * s * d..(i + 1) * s * d]);
        }
        Ok(Heads { shape, data })
    }

    /// Matrix `head` of item `item`.
    fn matrix(&self, item: usize, head: usize) -> &[f64] {
        let [_, h, s, d] = self.shape;
        &self.data[(item * h + head) * s * d..][..s * d]
    }

    /// The elements as `[batch, seq, heads · width]`.
    pub(crate) fn joined(self, call: &Call<'_>, dtype: DType) -> OpResult {
        let [b, h, s, d] = self.shape;
        let data = permute(&self.data, &self.shape, &[0, 2, 1, 3]);
        tensor(call, &[b, s, h * d], &data, dtype)
    }

    /// The elements as `[batch, heads, seq, width]`.
    pub(crate) fn split(&self, call: &Call<'_>, dtype: DType) -> OpResult {
        tensor(call, &self.shape, &self.data, dtype)
    }
}

/// `values` rounded to `dtype`.
pub(crate) fn tensor(call: &Call<'_>, shape: &[usize], values: &[f64], dtype: DType) -> OpResult {
    Tensor::try_new(shape.to_vec(), from_f64(values, dtype))
        .ok_or_else(|| call.shape_error("sizes disagree"))
}

/// Attention in each head: `to_weights` turns the row of products of query `[item, head, i]` with every key into weights.
/// Heads of `k` and `v` are each shared by as many consecutive heads of `q`.
pub(crate) fn attend(
    call: &Call<'_>,
    q: &Heads,
    k: &Heads,
    v: &Heads,
    mut to_weights: impl FnMut([usize; 3], &mut [f64]),
) -> Result<Heads, OpError> {
    let ([b, h, sq, d], [bk, hk, sk, dk], [bv, hv, sv, dv]) = (q.shape, k.shape, v.shape);
    if b != bk || b != bv || hk != hv || sk != sv || d != dk || hk == 0 || h % hk != 0 {
        return Err(call.shape_error(format!(
            "q {:?}, k {:?} and v {:?} do not fit",
            q.shape, k.shape, v.shape
        )));
    }
    let shape = [b, h, sq, dv];
    let n = call.size(&shape, DType::F64)?;
    call.size(&[b, h, sq, sk], DType::F64)?;
    let mut data = Vec::with_capacity(n);
    if b == 0 || sq == 0 {
        return Ok(Heads { shape, data });
    }
    for item in 0..b {
        for head in 0..h {
            let shared = head / (h / hk);
            let (query, key) = (q.matrix(item, head), k.matrix(item, shared));
            let mut scores = multiply(
                [sq, sk, d],
                Matrix::row_major(query, d),
                Matrix::transposed(key, d),
            );
            if sk != 0 {
                for (i, row) in scores.chunks_exact_mut(sk).enumerate() {
                    to_weights([item, head, i], row);
                }
            }
            let value = Matrix::row_major(v.matrix(item, shared), dv);
            data.extend(multiply(
                [sq, dv, sk],
                Matrix::row_major(&scores, sk),
                value,
            ));
        }
    }
    Ok(Heads { shape, data })
}

/// What is added to the scores: a mask of ONNX's `Attention` for every query and key.
fn mask(call: &Call<'_>, [b, h, sq, sk]: [usize; 4]) -> Result<Option<Vec<f64>>, OpError> {
    let Some(mask) = call.optional(3) else {
        return Ok(None);
    };
    let values: Vec<f64> = match mask.as_slice::<bool>() {
        Some(v) => v
            .iter()
            .map(|&m| if m { 0.0 } else { f64::NEG_INFINITY })
            .collect(),
        None => reals(call, 3)?,
    };
    let (&width, outer) = mask
        .shape()
        .split_last()
        .ok_or_else(|| call.shape_error("a mask of rank 0"))?;
    let mut shape = outer.to_vec();
    // A shorter mask hides the keys that it does not reach.
    let padded = if width < sk && width != 1 {
        shape.push(sk);
        call.size(&shape, DType::F64)?;
        let rows = (0..product(outer)).map(|r| &values[r * width..(r + 1) * width]);
        rows.flat_map(|r| {
            r.iter()
                .copied()
                .chain(std::iter::repeat_n(f64::NEG_INFINITY, sk - width))
        })
        .collect()
    } else {
        shape.push(width);
        values
    };
    let full = [b, h, sq, sk];
    expect_broadcasts_to(call, &shape, &full)?;
    Ok(Some(expand(&padded, &shape, &full)))
}

/// `Attention` of the ONNX domain: queries, keys and values by head or joined, grouped heads, a mask, past keys and
/// values or their lengths, a causal or a sliding window, and soft-capped scores. A query that may attend to no key gives
/// zeros. Results are `y`, the present keys and values, and the scores at the stage that `qk_matmul_output_mode` names.
pub(crate) fn attention(call: &Call<'_>) -> OpResults {
    let [q, k, v] = [call.operand(0)?, call.operand(1)?, call.operand(2)?];
    for index in 0..3 {
        reals(call, index)?;
    }
    let heads = |name: &str| {
        call.optional_int(name)
            .map(|n| usize::try_from(n).map_err(|_| call.attribute_error(name, "is negative")))
            .transpose()
    };
    let (q_heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let query = Heads::new(call, q, q_heads)?;
    let (mut key, mut value) = (
        Heads::new(call, k, kv_heads)?,
        Heads::new(call, v, kv_heads)?,
    );
    let mut offset = 0;
    if let (Some(past_key), Some(past_value)) = (call.optional(4), call.optional(5)) {
        let past_key = Heads::new(call, past_key, None)?;
        offset = past_key.shape[2];
        key = key.after(call, past_key)?;
        value = value.after(call, Heads::new(call, past_value, None)?)?;
    }
    let ([b, h, sq, d], sk) = (query.shape, key.shape[2]);
    let scores_shape = [b, h, sq, sk];
    call.size(&scores_shape, DType::F64)?;
    let lengths = call.optional_integers(6)?;
    if lengths.as_ref().is_some_and(|l| l.len() != b) {
        return Err(call.value_error(6, "not a length for each item"));
    }
    let mask = mask(call, scores_shape)?;
    let scale = match call.optional_float("scale") {
        Some(scale) => f64::from(scale),
        None => 1.0 / (d as f64).sqrt(),
    };
    let cap = f64::from(call.float("softcap"));
    let (left, right) = (call.int("left_window_size"), call.int("right_window_size"));
    let mode = call.int("qk_matmul_output_mode");
    if !(0..=3).contains(&mode) {
        return Err(call.attribute_error("qk_matmul_output_mode", format!("unknown value {mode}")));
    }
    let is_causal = call.flag("is_causal");
    let has_past = call.optional(4).is_some();
    let is_hidden = |item: usize, i: usize, j: usize| {
        let length = lengths.as_ref().map(|l| l[item]);
        let offset = match length {
            Some(n) if !has_past => n.saturating_sub(sq as i64),
            _ => offset as i64,
        };
        let (at, j) = (offset.saturating_add(i as i64), j as i64);
        (is_causal && at < j)
            || length.is_some_and(|n| n <= j)
            || (0 <= left && j < at.saturating_sub(left))
            || (0 <= right && at.saturating_add(right) < j)
    };
    let mut exposed = Vec::new();
    let keeps = 4 <= call.n_results;
    let y = attend(call, &query, &key, &value, |[item, head, i], row| {
        let mut expose = |stage: i64, row: &[f64]| {
            if keeps && stage == mode {
                exposed.extend_from_slice(row);
            }
        };
        row.iter_mut().for_each(|s| *s *= scale);
        expose(0, row);
        if cap != 0.0 {
            row.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
        }
        expose(1, row);
        let mut any = false;
        for (j, s) in row.iter_mut().enumerate() {
            let bias = mask
                .as_ref()
                .map_or(0.0, |m| m[((item * h + head) * sq + i) * sk + j]);
            let bias = if is_hidden(item, i, j) {
                f64::NEG_INFINITY
            } else {
                bias
            };
            any |= bias != f64::NEG_INFINITY;
            *s += bias;
        }
        expose(2, row);
        if any {
            softmax_in_place(row);
        } else {
            row.fill(0.0);
        }
        expose(3, row);
    })?;
    let dtype = q.dtype();
    let present = [key.split(call, k.dtype())?, value.split(call, v.dtype())?];
    let y = if q.rank() == 3 {
        y.joined(call, dtype)?
    } else {
        y.split(call, dtype)?
    };
    let [present_key, present_value] = present;
    let mut results = vec![y, present_key, present_value];
    if keeps {
        results.push(tensor(call, &scores_shape, &exposed, dtype)?);
    }
    Ok(results)
}

/// Rotates pairs of elements of the first `rotary_embedding_dim` of each head by the angles of its position: halves of
/// that part, or, with `interleaved`, neighbours.
///
/// `at` gives the row of the caches for an item and a place in the sequence, if it exists.
fn rotate(
    call: &Call<'_>,
    x: TensorView<'_>,
    caches: [usize; 2],
    default_width: Option<usize>,
    at: impl Fn(usize, usize) -> Option<usize>,
) -> OpResult {
    let n_heads = usize::try_from(call.int("num_heads"))
        .map_err(|_| call.attribute_error("num_heads", "is negative"))?;
    let n_heads = match (n_heads, default_width, x.shape()) {
        (0, Some(width), [_, _, hidden]) if width != 0 => Some(hidden / width),
        (0, _, _) => None,
        (n, _, _) => Some(n),
    };
    let mut heads = Heads::new(call, x, n_heads)?;
    let [b, h, s, d] = heads.shape;
    let n = match usize::try_from(call.int("rotary_embedding_dim")) {
        Ok(0) => d,
        Ok(n) if n <= d && n % 2 == 0 => n,
        _ => {
            return Err(
                call.attribute_error("rotary_embedding_dim", format!("does not fit heads of {d}"))
            );
        }
    };
    let half = n / 2;
    if d % 2 != 0 && n == d {
        return Err(call.shape_error(format!("heads of {d} have no halves")));
    }
    let (cos, sin) = (reals(call, caches[0])?, reals(call, caches[1])?);
    for index in caches {
        let cache = call.operand(index)?;
        if cache.shape().last() != Some(&half) {
            return Err(call.shape_error(format!(
                "expected a cache [.., {half}], found {:?}",
                cache.shape()
            )));
        }
    }
    let interleaved = call.flag("interleaved");
    for item in 0..if heads.data.is_empty() { 0 } else { b } {
        for place in 0..s {
            let row = at(item, place)
                .and_then(|r| Some(r.checked_mul(half)?..r.checked_add(1)?.checked_mul(half)?))
                .filter(|r| r.end <= cos.len() && r.end <= sin.len())
                .ok_or_else(|| {
                    call.shape_error(format!("no cache for position {place} of item {item}"))
                })?;
            let (cos, sin) = (&cos[row.clone()], &sin[row]);
            for head in 0..h {
                let v = &mut heads.data[((item * h + head) * s + place) * d..][..d];
                for i in 0..half {
                    let (first, second) = if interleaved {
                        (2 * i, 2 * i + 1)
                    } else {
                        (i, i + half)
                    };
                    let (a, b) = (v[first], v[second]);
                    v[first] = cos[i] * a - sin[i] * b;
                    v[second] = sin[i] * a + cos[i] * b;
                }
            }
        }
    }
    match x.rank() {
        3 => heads.joined(call, x.dtype()),
        _ => heads.split(call, x.dtype()),
    }
}

/// `RotaryEmbedding` of the ONNX domain: caches `[positions, width / 2]` with position ids, or `[batch, seq, width / 2]`.
pub(crate) fn rotary_embedding(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    reals(call, 0)?;
    let (b, s) = sequence(call, x)?;
    match call.optional(3) {
        None => {
            let cache = call.operand(1)?;
            if cache.shape().get(..2) != Some(&[b, s]) || cache.rank() != 3 {
                return Err(call.shape_error(format!(
                    "expected caches [{b}, {s}, _], found {:?}",
                    cache.shape()
                )));
            }
            rotate(call, x, [1, 2], None, |item, place| Some(item * s + place))
        }
        Some(ids) if ids.shape() == [b, s] => {
            let ids = call.integers(3)?;
            rotate(call, x, [1, 2], None, |item, place| {
                usize::try_from(ids[item * s + place]).ok()
            })
        }
        Some(ids) => Err(call.shape_error(format!(
            "expected position ids [{b}, {s}], found {:?}",
            ids.shape()
        ))),
    }
}

/// `RotaryEmbedding` of ONNX Runtime: position ids `[batch, seq]`, or one offset for all.
pub(crate) fn ms_rotary_embedding(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    reals(call, 0)?;
    if call.flag("is_packed_batching") {
        return Err(call.attribute_error("is_packed_batching", "is not supported"));
    }
    if call.float("scale") != 1.0 {
        return Err(call.attribute_error("scale", "other than one is not supported"));
    }
    let (b, s) = sequence(call, x)?;
    let ids = call.integers(1)?;
    let width = call.operand(2)?.shape().last().map(|w| 2 * w);
    let width = width.filter(|_| call.int("rotary_embedding_dim") == 0);
    let at = |item: usize, place: usize| match ids[..] {
        [first] => usize::try_from(first).ok()?.checked_add(place),
        _ => usize::try_from(ids[item * s + place]).ok(),
    };
    if ids.len() != 1 && ids.len() != b.saturating_mul(s) {
        return Err(call.shape_error(format!("{} position ids for [{b}, {s}]", ids.len())));
    }
    rotate(call, x, [2, 3], width, at)
}

/// Batch and sequence sizes of `[batch, heads, seq, width]` or `[batch, seq, hidden]`.
fn sequence(call: &Call<'_>, x: TensorView<'_>) -> Result<(usize, usize), OpError> {
    match *x.shape() {
        [b, _, s, _] | [b, s, _] => Ok((b, s)),
        _ => Err(call.shape_error(format!("expected rank 3 or 4, found shape {:?}", x.shape()))),
    }
}
