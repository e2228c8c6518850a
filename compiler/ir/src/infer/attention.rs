//! Attention in its three spellings (ONNX, `com.microsoft`, Lancet), rotary embeddings, and the operators that passes raise.

use lancet_ops::generalized::{STAGES, stages};
use lancet_ops::{Attribute, DType, OverQueries};

use super::broadcast::agree;
use super::call::{Call, Class, Many, One};
use super::elements::value;
use crate::{Dim, IrError, ValueInfo};

/// A positive count given by attribute `name`.
fn count(call: &Call<'_>, name: &str) -> Result<i64, IrError> {
    match call.int(name) {
        n if 0 < n => Ok(n),
        n => Err(call.attribute_error(name, format!("{n} is not positive"))),
    }
}

/// The size of each of `n` heads that fill a dimension of operand `index`; `None` if that is no expression of the sizes.
fn head_size(call: &Call<'_>, index: usize, hidden: &Dim, n: i64) -> Result<Option<Dim>, IrError> {
    let size = hidden.div_exact(&Dim::fixed(n));
    if size.is_none() && hidden.as_fixed().is_some() {
        return Err(call.operand_error(index, format!("a multiple of {n} heads")));
    }
    Ok(size)
}

/// A key, query or value as `[batch, heads, positions, head size]`.
fn heads(call: &mut Call<'_>, index: usize, name: &str) -> Result<[Dim; 4], IrError> {
    match call.shape(index)? {
        [b, h, s, d] => Ok([b.clone(), h.clone(), s.clone(), d.clone()]),
        [b, s, hidden] => {
            let n = count(call, name)?;
            let size = head_size(call, index, hidden, n)?;
            Ok([b.clone(), Dim::fixed(n), s.clone(), call.or_fresh(size)])
        }
        _ => Err(call.operand_error(index, "3 or 4 dimensions".to_owned())),
    }
}

/// A length and what was there before.
fn with_past(call: &mut Call<'_>, past: Option<&Dim>, new: &Dim) -> Dim {
    match past {
        None => new.clone(),
        Some(past) => call.or_fresh(past.add(new)),
    }
}

/// `Attention` of ONNX: `q, k, v, mask, past_key, past_value, nonpad_kv_seqlen`; gives the result, present key, present
/// value, and the product of queries and keys.
pub(super) fn attention(call: &mut Call<'_>) -> Many {
    call.expect(0, Class::Float)?;
    call.expect(2, Class::Float)?;
    let (dtype, v_dtype) = (call.same_dtype([0, 1, 4])?, call.same_dtype([2, 5])?);
    let q = heads(call, 0, "q_num_heads")?;
    let k = heads(call, 1, "kv_num_heads")?;
    let v = heads(call, 2, "kv_num_heads")?;
    let differ = |a: &Dim, b: &Dim| a.equals(b) == Some(false);
    if differ(&q[0], &k[0]) || differ(&q[3], &k[3]) {
        return Err(call.operand_error(1, format!("batch {} and head size {}", q[0], q[3])));
    }
    if differ(&k[0], &v[0]) || differ(&k[1], &v[1]) || differ(&k[2], &v[2]) {
        let expected = format!("batch {}, {} heads, {} positions", k[0], k[1], k[2]);
        return Err(call.operand_error(2, expected));
    }
    if let (Some(n), Some(of)) = (q[1].as_fixed(), k[1].as_fixed())
        && n.checked_rem(of) != Some(0)
    {
        return Err(call.error(format!("{n} heads of queries for {of} heads of keys")));
    }
    let past = match call.optional(4) {
        Some(_) => Some(&call.dims::<4>(4)?[2]),
        None => None,
    };
    let total = with_past(call, past, &k[2]);
    let [batch, n_heads, positions, _] = q;
    let y = match call.shape(0)?.len() {
        4 => vec![
            batch.clone(),
            n_heads.clone(),
            positions.clone(),
            v[3].clone(),
        ],
        _ => {
            let hidden = n_heads.mul(&v[3]);
            vec![batch.clone(), positions.clone(), call.or_fresh(hidden)]
        }
    };
    let present = |size: &Dim| vec![batch.clone(), k[1].clone(), total.clone(), size.clone()];
    Ok(vec![
        value(dtype, y, None),
        value(dtype, present(&k[3]), None),
        value(v_dtype, present(&v[3]), None),
        value(
            dtype,
            vec![batch.clone(), n_heads, positions, total.clone()],
            None,
        ),
    ])
}

/// `RotaryEmbedding` and `MsRotaryEmbedding`: the shape of the first operand, of 3 or 4 dimensions.
pub(super) fn rotary(call: &Call<'_>, others: &[usize]) -> One {
    call.expect(0, Class::Float)?;
    call.same_dtype(std::iter::once(0).chain(others.iter().copied()))?;
    let x = call.operand(0)?;
    if !matches!(x.ty.rank(), 3 | 4) {
        return Err(call.operand_error(0, "3 or 4 dimensions".to_owned()));
    }
    for i in (1..call.n_operands()).filter(|i| !others.contains(i)) {
        call.expect(i, Class::Index)?;
    }
    Ok(value(x.ty.dtype, x.ty.shape.clone(), None))
}

/// `MsAttention`: `x, weight, bias, mask_index, past, attention_bias, past_sequence_length`; gives the result and present
/// keys and values.
pub(super) fn ms_attention(call: &mut Call<'_>) -> Many {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2, 4, 5])?;
    let ([batch, seq, input], [rows, columns]) = (call.dims::<3>(0)?, call.dims::<2>(1)?);
    if rows.equals(input) == Some(false) {
        return Err(call.operand_error(1, format!("{dtype}[{input}, {columns}]")));
    }
    call.expect_shape(2, std::slice::from_ref(columns))?;
    let n = count(call, "num_heads")?;
    let hidden = match call.ints("qkv_hidden_sizes") {
        Some(&[q, k, v]) if 0 < q && q == k && 0 < v => {
            let sum = q.checked_add(k).and_then(|s| s.checked_add(v));
            if sum.is_none_or(|s| columns.equals(&Dim::fixed(s)) == Some(false)) {
                return Err(call.operand_error(1, format!("{q} + {k} + {v} columns")));
            }
            Some(Dim::fixed(v))
        }
        Some(other) => {
            let message = format!("expected three sizes, the first two equal, found {other:?}");
            return Err(call.attribute_error("qkv_hidden_sizes", message));
        }
        None => columns.div_exact(&Dim::fixed(3)),
    };
    if hidden.is_none() && columns.as_fixed().is_some() {
        return Err(call.operand_error(1, "columns for queries, keys and values".to_owned()));
    }
    let hidden = call.or_fresh(hidden);
    let size = head_size(call, 1, &hidden, n)?;
    let y = value(dtype, vec![batch.clone(), seq.clone(), hidden], None);
    let mut results = vec![y];
    if call.n_results == 2 {
        let past = match call.optional(4) {
            Some(_) => Some(&call.dims::<5>(4)?[3]),
            None => None,
        };
        let total = match (call.flag("past_present_share_buffer"), past) {
            (true, Some(buffer)) => buffer.clone(),
            _ => with_past(call, past, seq),
        };
        let size = call.or_fresh(size);
        let present = vec![Dim::fixed(2), batch.clone(), Dim::fixed(n), total, size];
        results.push(value(dtype, present, None));
    }
    Ok(results)
}

/// `MsMultiHeadAttention`: `q, k, v, bias, key_padding_mask, attention_bias, past_key, past_value`; gives the result,
/// present key, present value.
pub(super) fn ms_multi_head_attention(call: &mut Call<'_>) -> Many {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2, 3, 5, 6, 7])?;
    let n = count(call, "num_heads")?;
    let (batch, seq, q_hidden) = match call.shape(0)? {
        [b, s, hidden] => (b, s, Some(hidden.clone())),
        // Queries, keys and values in one: `[batch, positions, heads, 3, head size]`.
        [b, s, h, _, d] => (b, s, h.mul(d)),
        _ => return Err(call.operand_error(0, "3 or 5 dimensions".to_owned())),
    };
    let q_size = match &q_hidden {
        Some(hidden) => head_size(call, 0, hidden, n)?,
        None => None,
    };
    let (kv_seq, v_hidden) = match (call.optional(1), call.optional(2)) {
        (None, _) => (seq.clone(), q_hidden),
        (Some(k), None) => match k.ty.shape.as_slice() {
            [_, s, h, _, d] => (s.clone(), h.mul(d)),
            _ => return Err(call.operand_error(1, "5 dimensions, as no value is given".to_owned())),
        },
        (Some(_), Some(v)) => match v.ty.shape.as_slice() {
            [_, s, hidden] => (s.clone(), Some(hidden.clone())),
            [_, h, s, d] => (s.clone(), h.mul(d)),
            _ => return Err(call.operand_error(2, "3 or 4 dimensions".to_owned())),
        },
    };
    let v_size = match &v_hidden {
        Some(hidden) => head_size(call, 2, hidden, n)?,
        None => None,
    };
    let y = vec![batch.clone(), seq.clone(), call.or_fresh(v_hidden)];
    let mut results = vec![value(dtype, y, None)];
    if 1 < call.n_results {
        let past = match call.optional(6) {
            Some(_) => Some(&call.dims::<4>(6)?[2]),
            None => None,
        };
        let total = with_past(call, past, &kv_seq);
        for size in [q_size, v_size].into_iter().take(call.n_results - 1) {
            let size = call.or_fresh(size);
            let present = vec![batch.clone(), Dim::fixed(n), total.clone(), size];
            results.push(value(dtype, present, None));
        }
    }
    Ok(results)
}

/// `MsEmbedLayerNormalization`: `ids, segment_ids, words, positions, segments, scale, bias, mask, position_ids`; gives the
/// normalized sum, the mask index, the sum.
pub(super) fn embed_layer_norm(call: &Call<'_>) -> Many {
    for i in [0, 1, 7, 8] {
        call.expect(i, Class::Index)?;
    }
    call.expect(2, Class::Float)?;
    let dtype = call.same_dtype([2, 3, 4, 5, 6])?;
    let ([batch, seq], [_, hidden]) = (call.dims::<2>(0)?, call.dims::<2>(2)?);
    call.expect_shape(1, call.shape(0)?)?;
    call.expect_shape(7, call.shape(0)?)?;
    for i in [3, 4] {
        if call.optional(i).is_some() {
            let [rows, _] = call.dims::<2>(i)?;
            call.expect_shape(i, &[rows.clone(), hidden.clone()])?;
        }
    }
    call.expect_shape(5, std::slice::from_ref(hidden))?;
    call.expect_shape(6, std::slice::from_ref(hidden))?;
    let y = value(
        dtype,
        vec![batch.clone(), seq.clone(), hidden.clone()],
        None,
    );
    let mask_index = value(DType::I32, vec![batch.clone()], None);
    Ok(vec![y.clone(), mask_index, y])
}

/// `MsBiasGelu` and `MsFastGelu`: the bias, if present, fits the last dimension.
pub(super) fn bias_gelu(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1])?;
    let shape = call.shape(0)?;
    if call.optional(1).is_some() {
        let Some(last) = shape.last() else {
            return Err(call.operand_error(0, "at least 1 dimension".to_owned()));
        };
        call.expect_shape(1, std::slice::from_ref(last))?;
    }
    Ok(value(dtype, shape.to_vec(), None))
}

/// `MsBiasSplitGelu`: halves of the last dimension are multiplied.
pub(super) fn bias_split_gelu(call: &mut Call<'_>) -> One {
    let y = bias_gelu(call)?;
    let mut shape = y.ty.shape;
    let Some(last) = shape.last_mut() else {
        return Err(call.operand_error(0, "at least 1 dimension".to_owned()));
    };
    let half = last.div_exact(&Dim::fixed(2));
    if half.is_none() && last.as_fixed().is_some() {
        return Err(call.operand_error(0, "an even last dimension".to_owned()));
    }
    *last = call.or_fresh(half);
    Ok(value(y.ty.dtype, shape, None))
}

/// `MsBiasAdd`: `x + bias + skip`.
pub(super) fn bias_add(call: &Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    let shape = call.dims::<3>(0)?;
    call.expect_shape(1, &shape[2..])?;
    call.expect_shape(2, shape)?;
    Ok(value(dtype, shape.to_vec(), None))
}

/// `Linear`: `x[.., k], w[n, k], bias[n], residual` give `[.., n]`.
pub(super) fn linear(call: &Call<'_>) -> One {
    (0..4).try_for_each(|i| call.expect_dtype(i, DType::F32))?;
    let [n, k] = call.dims::<2>(1)?;
    let Some((found, batch)) = call.shape(0)?.split_last() else {
        return Err(call.operand_error(0, "at least 1 dimension".to_owned()));
    };
    if k.equals(found) == Some(false) {
        return Err(call.operand_error(1, format!("f32[{n}, {found}]")));
    }
    match call.str("activation") {
        "none" | "relu" | "gelu" | "gelu_tanh" | "tanh" | "silu" | "sigmoid" => {}
        other => return Err(call.attribute_error("activation", format!("unknown value `{other}`"))),
    }
    call.expect_shape(2, std::slice::from_ref(n))?;
    let mut shape = batch.to_vec();
    shape.push(n.clone());
    call.expect_broadcasts_to(3, &shape)?;
    Ok(value(DType::F32, shape, None))
}

/// `EmbeddingLookup`: pairs of ids, which broadcast together, and tables `[_, h]` give `[.., h]`.
pub(super) fn embedding_lookup(call: &mut Call<'_>) -> One {
    if !call.n_operands().is_multiple_of(2) {
        let found = call.n_operands();
        return Err(call.error(format!(
            "takes pairs of indices and tables, found {found} operands"
        )));
    }
    let mut ids = Vec::new();
    let mut width = call.dims::<2>(1)?[1].clone();
    for i in (0..call.n_operands()).step_by(2) {
        call.expect(i, Class::Index)?;
        let is_bytes = matches!(call.dtype(i + 1)?, DType::U8 | DType::I8);
        if !(is_bytes && call.attribute("scales").is_some()) {
            call.expect_dtype(i + 1, DType::F32)?;
        }
        ids.push(call.shape(i)?);
        let [rows, h] = call.dims::<2>(i + 1)?;
        width = agree(&width, h)
            .ok_or_else(|| call.operand_error(i + 1, format!("f32[{rows}, {width}]")))?;
    }
    let mut shape = call.broadcast(&ids)?;
    shape.push(width);
    Ok(value(DType::F32, shape, None))
}

/// Of `q[b, sq, hidden], k[b, sk, hidden], v[b, sk, hidden_v]`, the first operands: `[b, sq, sk, hidden_v]` and the number of heads.
fn queries_keys_values<'a>(call: &Call<'a>) -> Result<([&'a Dim; 4], i64), IrError> {
    for i in 0..3 {
        call.expect_dtype(i, DType::F32)?;
    }
    let ([b, sq, hidden], [_, sk, _]) = (call.dims::<3>(0)?, call.dims::<3>(1)?);
    let [_, _, hidden_v] = call.dims::<3>(2)?;
    call.expect_shape(1, &[b.clone(), sk.clone(), hidden.clone()])?;
    call.expect_shape(2, &[b.clone(), sk.clone(), hidden_v.clone()])?;
    let n = count(call, "num_heads")?;
    head_size(call, 0, hidden, n)?;
    head_size(call, 2, hidden_v, n)?;
    Ok(([b, sq, sk, hidden_v], n))
}

/// `ScaledDotProductAttention`: `q[b, sq, hidden], k[b, sk, hidden], v[b, sk, hidden_v], key_mask[b, sk], bias, relative_bias,
/// query_mask[b, sq], query_positions[b, heads, sq, _], query_index[sq + sk], key_positions[b, heads, sk, _],
/// key_index[sq + sk]` give `[b, sq, hidden_v]`, and what is shown of the probabilities `[b, heads, sq, sk]`.
pub(super) fn scaled_dot_product_attention(call: &Call<'_>) -> Many {
    for i in [4, 5, 7, 9] {
        call.expect_dtype(i, DType::F32)?;
    }
    let ([b, sq, sk, hidden_v], n) = queries_keys_values(call)?;
    call.expect_attention_rounding()?;
    call.expect(3, Class::BoolOrInteger)?;
    call.expect_shape(3, &[b.clone(), sk.clone()])?;
    let scores = [b.clone(), Dim::fixed(n), sq.clone(), sk.clone()];
    call.expect_broadcasts_to(4, &scores)?;
    if let (Some(relative), Some(distances)) = (call.optional(5), sq.add(sk)) {
        let one_or_each = relative.ty.shape.first().and_then(Dim::as_fixed);
        let rows = if one_or_each == Some(1) { 1 } else { n };
        call.expect_shape(5, &[Dim::fixed(rows), distances])?;
    }
    call.expect(6, Class::BoolOrInteger)?;
    call.expect_shape(6, &[b.clone(), sq.clone()])?;
    for (i, rows) in [(7, sq), (9, sk)] {
        match (call.optional(i), call.optional(i + 1)) {
            (None, None) => continue,
            (Some(_), Some(_)) => {}
            _ => return Err(call.error("takes positions and their index together".to_owned())),
        }
        let [_, _, _, width] = call.dims::<4>(i)?;
        call.expect_shape(i, &[b.clone(), Dim::fixed(n), rows.clone(), width.clone()])?;
        call.expect_dtype(i + 1, DType::I64)?;
        if let Some(distances) = sq.add(sk) {
            call.expect_shape(i + 1, &[distances])?;
        }
    }
    let shape = vec![b.clone(), sq.clone(), hidden_v.clone()];
    let mut results = vec![value(DType::F32, shape, None)];
    results.extend(probabilities(call, scores)?);
    Ok(results)
}

/// `GeneralizedAttention`: `q[b, sq, hidden], k[b, sk, hidden], v[b, sk, hidden_v]` and others that broadcast to `[b, heads, sq, sk]`
/// give `[b, sq, hidden_v]`, and what is shown of the probabilities.
pub(super) fn generalized_attention(call: &Call<'_>) -> Many {
    let ([b, sq, sk, hidden_v], n) = queries_keys_values(call)?;
    let scores = [b.clone(), Dim::fixed(n), sq.clone(), sk.clone()];
    let mut others = Vec::new();
    for i in 3..call.n_operands() {
        others.push(call.operand(i)?.ty.dtype);
        call.expect_broadcasts_to(i, &scores)?;
    }
    let lines = STAGES.map(|name| match call.attribute(name) {
        Some(Attribute::Strs(lines)) => lines.as_slice(),
        _ => &[],
    });
    stages(lines, &others).map_err(|m| call.error(m))?;
    let shape = vec![b.clone(), sq.clone(), hidden_v.clone()];
    let mut results = vec![value(DType::F32, shape, None)];
    results.extend(probabilities(call, scores)?);
    Ok(results)
}

/// The second result of attention, if it gives one.
fn probabilities(call: &Call<'_>, [b, h, sq, sk]: [Dim; 4]) -> Result<Option<ValueInfo>, IrError> {
    let name = call.str("probabilities");
    let shape = match OverQueries::from_name(name) {
        Some(OverQueries::Each) => vec![b, h, sq, sk],
        Some(OverQueries::Sum | OverQueries::Mean) => vec![b, h, sk],
        None => return Err(call.attribute_error("probabilities", format!("unknown `{name}`"))),
    };
    Ok((call.n_results == 2).then(|| value(DType::F32, shape, None)))
}

/// `TokenPacking`: how many tokens of `mask[n, s]` are computed is not known; they start at `i64[n]`.
pub(super) fn token_packing(call: &mut Call<'_>) -> Many {
    call.expect(0, Class::BoolOrInteger)?;
    let [n, _] = call.dims::<2>(0)?;
    let n = n.clone();
    let places = value(DType::I64, vec![call.fresh()], None);
    Ok(vec![places, value(DType::I64, vec![n], None)])
}

/// `PackedAttention`: `q[tq, hidden], k[t, hidden], v[t, hidden_v], starts[n], q_starts[n], key_mask[t]` give `[tq, hidden_v]`.
pub(super) fn packed_attention(call: &Call<'_>) -> One {
    for i in 0..3 {
        call.expect_dtype(i, DType::F32)?;
    }
    let ([tq, hidden], [t, _]) = (call.dims::<2>(0)?, call.dims::<2>(1)?);
    let [_, hidden_v] = call.dims::<2>(2)?;
    call.expect_shape(1, &[t.clone(), hidden.clone()])?;
    call.expect_shape(2, &[t.clone(), hidden_v.clone()])?;
    let heads = count(call, "num_heads")?;
    head_size(call, 0, hidden, heads)?;
    head_size(call, 2, hidden_v, heads)?;
    call.expect_attention_rounding()?;
    call.expect_dtype(3, DType::I64)?;
    let [n] = call.dims::<1>(3)?;
    call.expect_dtype(4, DType::I64)?;
    call.expect_shape(4, std::slice::from_ref(n))?;
    call.expect(5, Class::BoolOrInteger)?;
    call.expect_shape(5, std::slice::from_ref(t))?;
    Ok(value(DType::F32, vec![tq.clone(), hidden_v.clone()], None))
}
