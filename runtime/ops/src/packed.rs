//! Sequences of unequal length, packed: the tokens that are computed stand in one list, sequence after sequence.

use std::ops::Range;

use crate::call::{Call, OpResult, OpResults};
use crate::lancet::{attend, n_heads};
use crate::{DType, OpError};

/// `TokenPacking`: which tokens of a padded batch are computed.
///
/// * `mask`: `bool` or integer `[n, s]`, not zero for tokens that are no padding.
/// * Result 0: `i64[t]`, places in the flattened mask, ascending: those that are not padding; with `keep_first` the first
///   token of every sequence; and all tokens of a sequence of nothing but padding, whose softmax is over padding.
/// * Result 1: `i64[n]`, for each sequence how many tokens stand before its own.
pub(crate) fn token_packing(call: &Call<'_>) -> OpResults {
    let mask = call.operand(0)?;
    if mask.dtype().is_float() {
        return Err(call.dtype_error(0, mask.dtype()));
    }
    let &[n, s] = mask.shape() else {
        return Err(call.shape_error(format!(
            "expected a mask of rank 2, found {:?}",
            mask.shape()
        )));
    };
    let keep_first = call.int("keep_first") != 0;
    let set = mask.to_i64_vec();
    call.size(&[n], DType::I64)?;
    let (mut places, mut starts) = (Vec::new(), Vec::with_capacity(n));
    for item in 0..n {
        starts.push(places.len() as i64);
        let all = set[item * s..(item + 1) * s].iter().all(|&m| m == 0);
        let kept = (0..s).filter(|&i| all || set[item * s + i] != 0 || (keep_first && i == 0));
        places.extend(kept.map(|i| (item * s + i) as i64));
    }
    let t = places.len();
    Ok(vec![call.tensor(&[t], places)?, call.tensor(&[n], starts)?])
}

/// `PackedAttention`: `softmax(scale · q · kᵀ + mask) · v` in each head of each sequence.
///
/// * `q`: `f32[tq, hidden]`, `k`: `f32[t, hidden]`, `v`: `f32[t, hidden_v]`; heads are contiguous slices of the last
///   dimension.
/// * `starts`: `i64[n]`: the keys of sequence `i` are from `starts[i]` to `starts[i + 1]`, those of the last to `t`. The first
///   start is 0.
/// * `q_starts`: the same for queries, optional: without it every sequence has `tq / n` of them.
/// * `key_mask`: `bool` or integer `[t]`, optional: `masked_value` is added to the scores of keys where it is zero.
/// * `score_rounding`, `masked_score_rounding`, `probability_rounding`, `exact_keys`: as those of `ScaledDotProductAttention`.
/// * Result: `f32[tq, hidden_v]`; zero for queries without a key.
pub(crate) fn packed_attention(call: &Call<'_>) -> OpResult {
    let [q, k, v] = [call.operand(0)?, call.operand(1)?, call.operand(2)?];
    let data = [
        call.slice::<f32>(0)?,
        call.slice::<f32>(1)?,
        call.slice::<f32>(2)?,
    ];
    let (&[tq, hidden], &[t, hidden_k], &[tv, hidden_v]) = (q.shape(), k.shape(), v.shape()) else {
        return Err(call.shape_error("expected q, k and v of rank 2"));
    };
    if hidden != hidden_k || t != tv {
        let (q, k, v) = (q.shape(), k.shape(), v.shape());
        return Err(call.shape_error(format!("q {q:?}, k {k:?} and v {v:?} do not fit")));
    }
    let h = n_heads(call, hidden, hidden_v)?;
    let keys = sequences(call, 3, t)?;
    let queries = match call.optional(4) {
        Some(_) => sequences(call, 4, tq)?,
        None => match tq.checked_div(keys.len()) {
            Some(each) if each * keys.len() == tq => {
                (0..keys.len()).map(|i| i * each..(i + 1) * each).collect()
            }
            None if tq == 0 => Vec::new(),
            _ => {
                let n = keys.len();
                return Err(call.shape_error(format!("{n} sequences do not divide {tq} queries")));
            }
        },
    };
    if queries.len() != keys.len() {
        let (a, b) = (queries.len(), keys.len());
        return Err(call.shape_error(format!("queries of {a} sequences, keys of {b}")));
    }
    let masked_value = f64::from(call.float("masked_value"));
    let mask: Vec<f64> = match call.optional(5) {
        Some(m) if m.dtype().is_float() => return Err(call.dtype_error(5, m.dtype())),
        Some(m) if m.shape() != [t] => {
            let found = m.shape();
            return Err(call.shape_error(format!("expected a mask [{t}], found {found:?}")));
        }
        Some(m) => (m.to_i64_vec().iter())
            .map(|&m| if m == 0 { masked_value } else { 0.0 })
            .collect(),
        None => vec![0.0; t],
    };
    let shape = [tq, hidden_v];
    let mut out = vec![0.0f32; call.size(&shape, DType::F64)?];
    let scale = f64::from(call.float("scale"));
    let rounding = call.attention_rounding()?;
    for (queries, keys) in queries.iter().zip(&keys) {
        if queries.is_empty() || keys.is_empty() || hidden_v == 0 {
            continue;
        }
        call.size(&[h, queries.len(), keys.len()], DType::F64)?;
        attend(
            [
                &data[0][queries.start * hidden..queries.end * hidden],
                &data[1][keys.start * hidden..keys.end * hidden],
                &data[2][keys.start * hidden_v..keys.end * hidden_v],
            ],
            [queries.len(), keys.len(), h],
            &rounding,
            &mut out[queries.start * hidden_v..queries.end * hidden_v],
            |_, _, key, score| score * scale + mask[keys.start + key],
            |_, _, _| {},
        );
    }
    call.tensor(&shape, out)
}

/// The tokens of each sequence, from operand `i`.
fn sequences(call: &Call<'_>, i: usize, n_tokens: usize) -> Result<Vec<Range<usize>>, OpError> {
    let starts = call.slice::<i64>(i)?;
    if call.operand(i)?.rank() != 1 {
        return Err(call.shape_error("expected starts of rank 1"));
    }
    let start = |i: usize| match starts.get(i) {
        Some(&start) => usize::try_from(start).ok().filter(|&s| s <= n_tokens),
        None => Some(n_tokens),
    };
    let mut found = Vec::with_capacity(starts.len());
    for item in 0..starts.len() {
        match (start(item), start(item + 1)) {
            (Some(a), Some(b)) if a <= b && (item > 0 || a == 0) => found.push(a..b),
            _ => return Err(call.value_error(i, "expected ascending starts from 0")),
        }
    }
    if found.is_empty() && n_tokens != 0 {
        return Err(call.value_error(i, "expected a sequence"));
    }
    Ok(found)
}
