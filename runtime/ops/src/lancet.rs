//! Operators of the Lancet domain, which passes raise from ONNX graphs.

use crate::call::{Call, OpResult, OpResults};
use crate::layout::{
    broadcast_shapes, broadcast_strides, expand, expect_broadcasts_to, for_each_index, product,
};
use crate::matmul::{Matrix, multiply, multiply_unrounded};
use crate::norm::softmax_in_place;
use crate::probabilities::Probabilities;
use crate::quant::dequantize_alike;
use crate::special::{gelu, gelu_tanh, sigmoid};
use crate::{AttentionRounding, DType, Data, OpError, TensorView};

/// `Linear`: `y = activation(x · wᵀ + bias) + residual`.
///
/// * `x`: `f32[.., k]`, `w`: `f32[n, k]`.
/// * `bias`: `f32[n]`, optional.
/// * `residual`: `f32`, optional, broadcasts to the shape of `y`.
/// * `y`: `f32[.., n]`, computed in double precision after the product and rounded once.
///
/// `activation` is `none`, `relu`, `gelu` (with the error function), `gelu_tanh`, `tanh`, `silu` or `sigmoid`.
pub(crate) fn linear(call: &Call<'_>) -> OpResult {
    let (x, w) = (call.operand(0)?, call.operand(1)?);
    let (data, weight) = (call.slice::<f32>(0)?, call.slice::<f32>(1)?);
    let activation: fn(f64) -> f64 = match call.str("activation") {
        "none" => |v| v,
        "relu" => |v| if v < 0.0 { 0.0 } else { v },
        "gelu" => gelu,
        "gelu_tanh" => gelu_tanh,
        "tanh" => f64::tanh,
        "silu" => |v| v * sigmoid(v),
        "sigmoid" => sigmoid,
        other => return Err(call.attribute_error("activation", format!("unknown value `{other}`"))),
    };
    let mismatch = || {
        call.shape_error(format!(
            "cannot multiply {:?} by {:?} transposed",
            x.shape(),
            w.shape()
        ))
    };
    let (&k, batch) = x.shape().split_last().ok_or_else(mismatch)?;
    let &[n, k_of_w] = w.shape() else {
        return Err(mismatch());
    };
    if k != k_of_w {
        return Err(mismatch());
    }
    let mut shape = batch.to_vec();
    shape.push(n);
    let size = call.size(&shape, DType::F64)?;
    let bias = match call.optional(2) {
        Some(b) if b.shape() != [n] => {
            return Err(call.shape_error(format!(
                "expected a bias of shape [{n}], found {:?}",
                b.shape()
            )));
        }
        Some(_) => call.slice::<f32>(2)?.to_vec(),
        None => vec![0.0; n],
    };
    let residual = match call.optional(3) {
        Some(r) => {
            expect_broadcasts_to(call, r.shape(), &shape)?;
            expand(call.slice::<f32>(3)?, r.shape(), &shape)
        }
        None => vec![0.0; size],
    };
    if size == 0 {
        return call.tensor::<f32>(&shape, Vec::new());
    }
    let mut sums = Vec::new();
    let (a, b) = (Matrix::row_major(data, k), Matrix::transposed(weight, k));
    multiply_unrounded([product(batch), n, k], a, b, &mut sums);
    let y = sums
        .iter()
        .zip(bias.iter().cycle())
        .zip(&residual)
        .map(|((&s, &b), &r)| (activation(s + f64::from(b)) + f64::from(r)) as f32);
    call.tensor(&shape, y.collect())
}

/// `EmbeddingLookup`: the sum over pairs of operands of `tableᵢ[idsᵢ]`.
///
/// * `idsᵢ`: `i64` or `i32`, all broadcast together to a shape `[..]`; negative indices count from the end.
/// * `tableᵢ`: `f32[vᵢ, h]`, or bytes (`u8` or `i8`) that stand for `(q - zero_points[i]) · scales[i]`, rounded once. The attributes have
///   a number for each table, or are absent where all tables are `f32`.
/// * Result: `f32[.., h]`, summed in double precision.
pub(crate) fn embedding_lookup(call: &Call<'_>) -> OpResult {
    let views = call.all_operands()?;
    if views.len() % 2 != 0 {
        return Err(OpError::OperandCount {
            op: call.op,
            expected: "pairs of indices and tables".to_owned(),
            found: views.len(),
        });
    }
    let ids: Vec<&[usize]> = views.iter().step_by(2).map(|v| v.shape()).collect();
    let batch = broadcast_shapes(call, &ids)?;
    let &[_, h] = views[1].shape() else {
        return Err(call.shape_error(format!(
            "expected a table of rank 2, found shape {:?}",
            views[1].shape()
        )));
    };
    let mut shape = batch.clone();
    shape.push(h);
    let mut sums = vec![0.0f64; call.size(&shape, DType::F64)?];
    let n_tables = views.len() / 2;
    let (scales, zeros) = (call.floats("scales"), call.ints("zero_points"));
    for (name, n) in [
        ("scales", scales.map(<[f32]>::len)),
        ("zero_points", zeros.map(<[i64]>::len)),
    ] {
        if n.is_some_and(|n| n != n_tables) {
            return Err(call.attribute_error(name, format!("expected {n_tables} numbers")));
        }
    }
    for pair in (0..views.len()).step_by(2) {
        if !matches!(views[pair].dtype(), DType::I64 | DType::I32) {
            return Err(call.dtype_error(pair, views[pair].dtype()));
        }
        let i = pair / 2;
        let (scale, zero) = (
            scales.map_or(1.0, |s| s[i]),
            zeros.map_or(0, |z| z[i]) as f32,
        );
        let bytes = scales.and_then(|_| dequantize_alike(views[pair + 1], scale, zero));
        let table: &[f32] = match &bytes {
            Some(Data::F32(table)) => table,
            _ => call.slice::<f32>(pair + 1)?,
        };
        let v = match *views[pair + 1].shape() {
            [v, width] if width == h => v,
            ref other => {
                return Err(
                    call.shape_error(format!("expected a table [_, {h}], found shape {other:?}"))
                );
            }
        };
        let places = call
            .integers(pair)?
            .into_iter()
            .map(|i| call.normalize_index(pair, i, v))
            .collect::<Result<Vec<_>, _>>()?;
        if h == 0 {
            continue;
        }
        let mut rows = sums.chunks_exact_mut(h);
        for_each_index(
            &batch,
            [&broadcast_strides(views[pair].shape(), &batch)],
            [0],
            |[i]| {
                let start = places[i] * h;
                let row = rows.next().expect("a row for each index");
                row.iter_mut()
                    .zip(&table[start..start + h])
                    .for_each(|(s, &t)| *s += f64::from(t));
            },
        );
    }
    call.tensor(&shape, sums.into_iter().map(|v| v as f32).collect())
}

/// What [`queries_keys_values`] finds.
type QueriesKeysValues<'a> = ([&'a [f32]; 3], [usize; 5], usize);

/// Elements of the first operands, `q[b, sq, hidden]`, `k[b, sk, hidden]` and `v[b, sk, hidden_v]`, their sizes `[b, sq, sk, hidden,
/// hidden_v]`, and the number of heads, which divides both hidden sizes.
pub(crate) fn queries_keys_values<'a>(call: &Call<'a>) -> Result<QueriesKeysValues<'a>, OpError> {
    let [q, k, v] = [call.operand(0)?, call.operand(1)?, call.operand(2)?];
    let data = [
        call.slice::<f32>(0)?,
        call.slice::<f32>(1)?,
        call.slice::<f32>(2)?,
    ];
    let (&[b, sq, hidden], &[bk, sk, hidden_k], &[bv, sv, hidden_v]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return Err(call.shape_error("expected q, k and v of rank 3"));
    };
    if b != bk || b != bv || sk != sv || hidden != hidden_k {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        return Err(call.shape_error(format!("q {q:?}, k {k:?} and v {v:?} do not fit")));
    }
    let h = n_heads(call, hidden, hidden_v)?;
    Ok((data, [b, sq, sk, hidden, hidden_v], h))
}

/// The number of heads, which divides both hidden sizes.
pub(crate) fn n_heads(call: &Call<'_>, hidden: usize, hidden_v: usize) -> Result<usize, OpError> {
    let h = usize::try_from(call.int("num_heads")).unwrap_or(0);
    if h == 0 || hidden % h != 0 || hidden_v % h != 0 {
        let message = format!("{h} heads of {hidden} and {hidden_v}");
        return Err(call.attribute_error("num_heads", message));
    }
    Ok(h)
}

/// `ScaledDotProductAttention`: `softmax(scale · q · kᵀ + mask + bias) · v` in each head.
///
/// * `q`: `f32[b, sq, hidden]`, `k`: `f32[b, sk, hidden]`, `v`: `f32[b, sk, hidden_v]`; heads are contiguous slices of
///   the last dimension.
/// * `key_mask`: `bool` or integer `[b, sk]`, optional: `masked_value` is added to the scores of keys where it is zero.
/// * `bias`: `f32`, optional, broadcasts to `[b, num_heads, sq, sk]`.
/// * `relative_bias`: `f32[1 or num_heads, sq + sk]`, optional: element `i - j + sk` is added to the score of query `i` and
///   key `j`, so element 0 is not used. What it and the mask add together is no less than the least finite `f32` if
///   `masked_value` is finite: a key that both mask is masked like the others.
/// * `query_mask`: `bool` or integer `[b, sq]`, optional: where it is zero, all keys weigh the same, masked ones too.
/// * `query_positions`: `f32[b, num_heads, sq, p]`, optional: element `query_index[i - j + sk]` of row `i` is added to the score
///   of query `i` and key `j`. `query_index`, `i64[sq + sk]`, counts from the end where it is negative; its element 0 is not
///   used.
/// * `key_positions`: `f32[b, num_heads, sk, p]`, optional: element `key_index[i - j + sk]` of row `j` likewise.
/// * Scores and probabilities may be rounded as quantization does, each by `[scale, least, greatest]`, a number `x` to
///   `clip(round(x / scale), least, greatest)`: with `score_rounding` a product `q · k` before it is scaled; with
///   `masked_score_rounding` a score with all that is added to it, which is then multiplied by that scale again; with
///   `probability_rounding` a probability. What is rounded is an `f32`.
/// * `exact_keys`: with at most so many keys, every sum of whole numbers in the second product is one that `f32` has. It
///   changes nothing here, where sums of bytes are wider.
/// * Result 0: `f32[b, sq, hidden_v]`.
/// * Result 1, optional: the probabilities that the values are weighted with: `f32[b, num_heads, sq, sk]` where `probabilities` is
///   `each`; their sum over queries, `f32[b, num_heads, sk]`, where it is `sum`, and their mean where it is `mean`.
///
/// Memory beside the results is linear in `sq` and in `sk`.
pub(crate) fn scaled_dot_product_attention(call: &Call<'_>) -> OpResults {
    let (data, [b, sq, sk, hidden, hidden_v], h) = queries_keys_values(call)?;
    let shape = [b, sq, hidden_v];
    let size = call.size(&shape, DType::F64)?;
    let scores_shape = [b, h, sq, sk];
    call.size(&[ROWS.min(sq), sk], DType::F64)?;
    let masked_value = f64::from(call.float("masked_value"));
    let mask: Vec<f64> = match call.optional(3) {
        Some(m) if m.dtype().is_float() => return Err(call.dtype_error(3, m.dtype())),
        Some(m) if m.shape() != [b, sk] => {
            return Err(call.shape_error(format!(
                "expected a mask [{b}, {sk}], found {:?}",
                m.shape()
            )));
        }
        Some(m) => m
            .to_i64_vec()
            .iter()
            .map(|&m| if m == 0 { masked_value } else { 0.0 })
            .collect(),
        None => vec![0.0; b * sk],
    };
    let bias = match call.optional(4) {
        Some(bias) => {
            expect_broadcasts_to(call, bias.shape(), &scores_shape)?;
            let strides = broadcast_strides(bias.shape(), &scores_shape);
            let strides: [usize; 4] = strides.try_into().expect("one for each axis of the scores");
            Some((call.slice::<f32>(4)?, strides))
        }
        None => None,
    };
    let relative = match call.optional(5).as_ref().map(TensorView::shape) {
        Some(&[n, distances]) if (n == 1 || n == h) && distances == sq + sk => {
            Some((call.slice::<f32>(5)?, if n == 1 { 0 } else { distances }))
        }
        Some(found) => {
            let message = format!("expected [1 or {h}, {}], found {found:?}", sq + sk);
            return Err(call.shape_error(format!("relative bias: {message}")));
        }
        None => None,
    };
    let least = if masked_value.is_finite() {
        f64::from(f32::MIN)
    } else {
        f64::NEG_INFINITY
    };
    let query_mask = match call.optional(6) {
        Some(m) if m.dtype().is_float() => return Err(call.dtype_error(6, m.dtype())),
        Some(m) if m.shape() != [b, sq] => {
            return Err(call.shape_error(format!(
                "expected a mask of queries [{b}, {sq}], found {:?}",
                m.shape()
            )));
        }
        Some(m) => Some(m.to_i64_vec()),
        None => None,
    };
    let rounding = call.attention_rounding()?;
    let mut out = vec![0.0f32; size];
    let mut observed = Probabilities::new(call, scores_shape)?;
    if b == 0 || sq == 0 || sk == 0 || (size == 0 && observed.is_none()) {
        let observed = observed.map(|o| o.finish(call)).transpose()?;
        return Ok(std::iter::once(call.tensor(&shape, out)?)
            .chain(observed)
            .collect());
    }
    let by_query = Positions::new(call, 7, [b, h, sq], sq + sk)?;
    let by_key = Positions::new(call, 9, [b, h, sk], sq + sk)?;
    let scale = f64::from(call.float("scale"));
    for item in 0..b {
        attend(
            [
                &data[0][item * sq * hidden..(item + 1) * sq * hidden],
                &data[1][item * sk * hidden..(item + 1) * sk * hidden],
                &data[2][item * sk * hidden_v..(item + 1) * sk * hidden_v],
            ],
            [sq, sk, h],
            &rounding,
            &mut out[item * sq * hidden_v..(item + 1) * sq * hidden_v],
            |head, row, j, score| {
                if query_mask.as_ref().is_some_and(|m| m[item * sq + row] == 0) {
                    return 0.0;
                }
                let mut added = mask[item * sk + j];
                if let Some((r, stride)) = relative {
                    added = (added + f64::from(r[head * stride + row + sk - j])).max(least);
                }
                if let Some((bias, [of_item, of_head, of_row, of_key])) = &bias {
                    let at = item * of_item + head * of_head + row * of_row + j * of_key;
                    added += f64::from(bias[at]);
                }
                let distance = row + sk - j;
                if let Some(positions) = &by_query {
                    added += positions.at((item * h + head) * sq + row, distance);
                }
                if let Some(positions) = &by_key {
                    added += positions.at((item * h + head) * sk + j, distance);
                }
                score * scale + added
            },
            |head, row, p| {
                if let Some(observed) = &mut observed {
                    observed.add(item * h + head, row, p);
                }
            },
        );
    }
    let observed = observed.map(|o| o.finish(call)).transpose()?;
    Ok(std::iter::once(call.tensor(&shape, out)?)
        .chain(observed)
        .collect())
}

/// Numbers for each query or key of attention, one of which is taken by the distance of query and key.
struct Positions<'a> {
    data: &'a [f32],
    /// Elements of a row.
    width: usize,
    /// The element of a row by distance.
    places: Vec<usize>,
}

impl<'a> Positions<'a> {
    /// Operands `i` and `i + 1`: rows of this shape, and indices into a row.
    fn new(
        call: &Call<'a>,
        i: usize,
        [b, h, rows]: [usize; 3],
        n_distances: usize,
    ) -> Result<Option<Positions<'a>>, OpError> {
        let (Some(x), Some(index)) = (call.optional(i), call.optional(i + 1)) else {
            let missing = [i, i + 1].map(|i| call.optional(i).is_none());
            return match missing {
                [true, true] => Ok(None),
                _ => Err(call.shape_error("positions without an index, or an index without")),
            };
        };
        let width = match x.shape() {
            &[xb, xh, n, width] if [xb, xh, n] == [b, h, rows] => width,
            found => {
                let message = format!("expected positions [{b}, {h}, {rows}, _], found {found:?}");
                return Err(call.shape_error(message));
            }
        };
        let index = call.slice::<i64>(i + 1).map(|v| (index.shape(), v))?;
        if index.0 != [n_distances] {
            let message = format!("expected an index [{n_distances}], found {:?}", index.0);
            return Err(call.shape_error(message));
        }
        let place = |(e, &at): (usize, &i64)| place_of(at, width).or((e == 0).then_some(0));
        let places = index.1.iter().enumerate().map(place);
        let places = places.collect::<Option<Vec<usize>>>();
        Ok(Some(Positions {
            data: call.slice::<f32>(i)?,
            width,
            places: places.ok_or_else(|| {
                call.value_error(i + 1, format!("an index outside of {width} positions"))
            })?,
        }))
    }

    fn at(&self, row: usize, distance: usize) -> f64 {
        f64::from(self.data[row * self.width + self.places[distance]])
    }
}

/// The element of a row of `width` that `index` names, counting from the end where it is negative.
pub fn place_of(index: i64, width: usize) -> Option<usize> {
    let width = i64::try_from(width).ok()?;
    let index = if index < 0 { index + width } else { index };
    usize::try_from(index).ok().filter(|_| index < width)
}

/// Queries whose scores are held at once.
const ROWS: usize = 64;

/// Attention of one sequence with at least one key: rows of `q`, `k`, `v` are its tokens, `h` heads are slices of each.
///
/// `score(head, query, key, product)` is what the softmax is over; `observe(head, query, probabilities)` is shown what values are
/// weighted with.
pub(crate) fn attend(
    [q, k, v]: [&[f32]; 3],
    [sq, sk, h]: [usize; 3],
    rounding: &AttentionRounding,
    out: &mut [f32],
    score: impl Fn(usize, usize, usize, f64) -> f64,
    mut observe: impl FnMut(usize, usize, &[f32]),
) {
    let (hidden, hidden_v) = (k.len() / sk, v.len() / sk);
    let (d, dv) = (hidden / h, hidden_v / h);
    for (head, first) in (0..h).flat_map(|head| (0..sq).step_by(ROWS).map(move |r| (head, r))) {
        let rows = ROWS.min(sq - first);
        let query = q.get(first * hidden + head * d..).unwrap_or(&[]);
        let query = Matrix::row_major(query, hidden);
        let key = Matrix::transposed(&k[head * d..], hidden);
        let mut scores = Vec::new();
        multiply_unrounded([rows, sk, d], query, key, &mut scores);
        for (row, s) in scores.chunks_exact_mut(sk).enumerate() {
            for (j, s) in s.iter_mut().enumerate() {
                if rounding.scores.is_some() {
                    *s = f64::from(rounding.product(*s as f32));
                }
                *s = score(head, first + row, j, *s);
                if rounding.masked.is_some() {
                    *s = f64::from(rounding.score(*s as f32));
                }
            }
            softmax_in_place(s);
        }
        let weights: Vec<f32> = (scores.iter())
            .map(|&p| rounding.probability(p as f32))
            .collect();
        for (row, p) in weights.chunks_exact(sk).enumerate() {
            observe(head, first + row, p);
        }
        let value = Matrix::row_major(&v[head * dv..], hidden_v);
        let result = multiply([rows, dv, sk], Matrix::row_major(&weights, sk), value);
        if dv != 0 {
            for (row, values) in result.chunks_exact(dv).enumerate() {
                let at = (first + row) * hidden_v + head * dv;
                out[at..at + dv].copy_from_slice(values);
            }
        }
    }
}
