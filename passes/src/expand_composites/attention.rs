//! Attention in its composite forms, and rotary embeddings.

use lancet_ir::{Dim, Value};
use lancet_ops::{Attribute, DType, Operator};

use super::{Declined, Expanded, Parts};

/// What attention is computed from, projected.
struct Attention {
    /// `[batch, tokens, heads · features]` or `[batch, heads, tokens, features]`.
    queries: Value,
    keys: Value,
    values: Value,
    n_heads: i64,
    /// Added to the scores, broadcastable to `[batch, heads, queries, keys]`.
    biases: Vec<Value>,
}

/// `Attention` of `com.microsoft`: the projection of one input to queries, keys and values too.
pub(super) fn contributed(p: &mut Parts<'_>) -> Expanded {
    p.unused(1)?;
    p.only("do_rotary", 0)?;
    p.only("unidirectional", 0)?;
    if p.optional(4).is_some() {
        return Err("it has past keys and values".into());
    }
    let (x, weight) = (p.operand(0)?, p.operand(1)?);
    let columns = p.shape(weight).last().and_then(Dim::as_fixed);
    let columns = columns.ok_or("the weight has no fixed width")?;
    let widths = match p.attributes.ints("qkv_hidden_sizes") {
        Some(widths) => widths.to_vec(),
        None => vec![columns / 3; 3],
    };
    let total = widths.iter().try_fold(0i64, |sum, &w| sum.checked_add(w));
    if widths.len() != 3 || widths.iter().any(|&w| w <= 0) || total != Some(columns) {
        return Err("sizes of queries, keys and values that do not add up".into());
    }
    let mut projected = p.apply(Operator::MatMul, &[x, weight])?;
    if let Some(bias) = p.optional(2) {
        projected = p.apply(Operator::Add, &[projected, bias])?;
    }
    let parts = p.split(projected, &widths)?;
    let mut attention = Attention {
        queries: parts[0],
        keys: parts[1],
        values: parts[2],
        n_heads: p.attributes.int_or("num_heads", 0),
        biases: p.optional(5).into_iter().collect(),
    };
    if let Some(mask) = p.optional(3) {
        let bias = key_bias(p, mask, &attention)?;
        attention.biases.push(bias);
    }
    let y = attention.write(p)?;
    Ok(vec![Some(y)])
}

/// `MultiHeadAttention` of `com.microsoft` on separate queries, keys and values.
pub(super) fn multi_head(p: &mut Parts<'_>) -> Expanded {
    p.unused(1)?;
    p.unused(2)?;
    p.only("unidirectional", 0)?;
    if p.optional(6).is_some() || p.optional(7).is_some() {
        return Err("it has past keys and values".into());
    }
    let mut parts = [p.operand(0)?, p.operand(1)?, p.operand(2)?];
    if parts.iter().any(|&v| p.graph.ty(v).rank() != 3) {
        return Err("queries, keys and values are packed".into());
    }
    if let Some(bias) = p.optional(3) {
        let width = |v: Value| p.shape(v).last().and_then(Dim::as_fixed);
        let widths: Option<Vec<i64>> = parts.iter().map(|&v| width(v)).collect();
        let biases = p.split(bias, &widths.ok_or("a width that is not fixed")?)?;
        for (part, bias) in parts.iter_mut().zip(biases) {
            *part = p.apply(Operator::Add, &[*part, bias])?;
        }
    }
    let [queries, keys, values] = parts;
    let mut attention = Attention {
        queries,
        keys,
        values,
        n_heads: p.attributes.int_or("num_heads", 0),
        biases: p.optional(5).into_iter().collect(),
    };
    if let Some(mask) = p.optional(4) {
        let bias = key_bias(p, mask, &attention)?;
        attention.biases.push(bias);
    }
    let y = attention.write(p)?;
    Ok(vec![Some(y)])
}

/// ONNX's `Attention` without mask or past.
pub(super) fn standard(p: &mut Parts<'_>) -> Expanded {
    for result in 1..4 {
        p.unused(result)?;
    }
    p.only("is_causal", 0)?;
    p.only("left_window_size", -1)?;
    p.only("right_window_size", -1)?;
    if p.attributes.float_or("softcap", 0.0) != 0.0 {
        return Err("its scores are capped".into());
    }
    if (3..7).any(|i| p.optional(i).is_some()) {
        return Err("a query whose keys are all masked gives zeros, not a softmax".into());
    }
    let (queries, keys, values) = (p.operand(0)?, p.operand(1)?, p.operand(2)?);
    let heads = |p: &Parts<'_>, v: Value, name: &str| match p.shape(v).as_slice() {
        [_, heads, _, _] => heads.as_fixed(),
        _ => p.attributes.int(name),
    };
    let n_heads = heads(p, queries, "q_num_heads").ok_or("the number of heads is not fixed")?;
    if heads(p, keys, "kv_num_heads") != Some(n_heads) {
        return Err("queries share heads of keys and values".into());
    }
    let attention = Attention {
        queries,
        keys,
        values,
        n_heads,
        biases: Vec::new(),
    };
    let y = attention.write(p)?;
    Ok(vec![Some(y)])
}

/// What a mask adds to the scores: `[batch, 1, 1 or queries, keys]`. It is lengths, or not zero where a key is visible.
fn key_bias(p: &mut Parts<'_>, mask: Value, attention: &Attention) -> Result<Value, Declined> {
    let one = Dim::fixed(1);
    let (of_queries, of_keys) = (p.shape(attention.queries), p.shape(attention.keys));
    let [batch, queries, _] = <[Dim; 3]>::try_from(of_queries).map_err(|_| "queries by head")?;
    let [_, keys, _] = <[Dim; 3]>::try_from(of_keys).map_err(|_| "keys by head")?;
    let visible = match p.shape(mask).as_slice() {
        [n] if *n == batch => {
            let positions = p.positions(&keys)?;
            let positions = p.view(positions, vec![one.clone(), keys.clone()])?;
            let lengths = p.cast(mask, DType::I64)?;
            let lengths = p.view(lengths, vec![batch.clone(), one.clone()])?;
            let visible = p.apply(Operator::Less, &[positions, lengths])?;
            p.view(visible, vec![batch, one.clone(), one, keys])?
        }
        [n, k] if *n == batch && *k == keys => {
            let visible = p.cast(mask, DType::Bool)?;
            p.view(visible, vec![batch, one.clone(), one, keys])?
        }
        [n, q, k] if *n == batch && *q == queries && *k == keys => {
            let visible = p.cast(mask, DType::Bool)?;
            p.view(visible, vec![batch, one, queries, keys])?
        }
        _ => return Err(Declined::Because(format!("a mask {}", p.graph.ty(mask)))),
    };
    let hidden = p.attributes.float_or("mask_filter_value", -10000.0);
    let (zero, hidden) = (p.scalar("visible", 0.0), p.scalar("hidden", hidden));
    p.apply(Operator::Where, &[visible, zero, hidden])
}

impl Attention {
    /// `softmax(scale · q kᵀ + biases) v`, heads joined again where they were joined.
    fn write(self, p: &mut Parts<'_>) -> Result<Value, Declined> {
        let joined = p.graph.ty(self.queries).rank() == 3;
        let q = self.split(p, self.queries, &[0, 2, 1, 3])?;
        let k = self.split(p, self.keys, &[0, 2, 3, 1])?;
        let v = self.split(p, self.values, &[0, 2, 1, 3])?;
        let d = p.shape(q).last().and_then(Dim::as_fixed);
        let d = d.ok_or("the width of heads is not fixed")?;
        let scale = match p.attributes.float("scale") {
            // ONNX Runtime's zero stands for the default.
            Some(0.0) | None => (1.0 / (d as f64).sqrt()) as f32,
            Some(scale) => scale,
        };
        let mut scores = p.apply(Operator::MatMul, &[q, k])?;
        let scale = p.scalar("scale", scale);
        scores = p.apply(Operator::Mul, &[scores, scale])?;
        for bias in &self.biases {
            scores = p.apply(Operator::Add, &[scores, *bias])?;
        }
        let axis = [("axis", Attribute::Int(-1))];
        let weights = p.with(Operator::Softmax, &axis, &[scores])?;
        let y = p.apply(Operator::MatMul, &[weights, v])?;
        if !joined {
            return Ok(y);
        }
        let moved = p.transposed(y, &[0, 2, 1, 3])?;
        let [b, s, h, d] =
            <[Dim; 4]>::try_from(p.shape(moved)).map_err(|_| "a result of another rank")?;
        let hidden = h.mul(&d).ok_or("a width that overflows")?;
        p.view(moved, vec![b, s, hidden])
    }

    /// `[batch, tokens, heads · features]`, or heads already split, with axes in the order of `perm`, which names batch,
    /// tokens, heads and features.
    fn split(&self, p: &mut Parts<'_>, value: Value, perm: &[i64; 4]) -> Result<Value, Declined> {
        match p.shape(value).as_slice() {
            [_, _, _, _] if perm[3] == 3 => Ok(value),
            [_, _, _, _] => p.transposed(value, &[0, 1, 3, 2]),
            [b, s, hidden] => {
                let d = hidden
                    .as_fixed()
                    .filter(|n| 0 < self.n_heads && n % self.n_heads == 0);
                let d = d.ok_or("heads do not divide the width")? / self.n_heads;
                let shape = vec![
                    b.clone(),
                    s.clone(),
                    Dim::fixed(self.n_heads),
                    Dim::fixed(d),
                ];
                let apart = p.view(value, shape)?;
                p.transposed(apart, perm)
            }
            _ => Err("queries, keys or values of another rank".into()),
        }
    }
}

/// ONNX's `RotaryEmbedding`: caches `[batch, tokens, half]`, or `[positions, half]` and the positions.
pub(super) fn rotary(p: &mut Parts<'_>) -> Expanded {
    let (x, cos, sin) = (p.operand(0)?, p.operand(1)?, p.operand(2)?);
    let positions = p.optional(3);
    rotate(p, x, [cos, sin], positions)
}

/// `RotaryEmbedding` of `com.microsoft`, whose positions come second.
pub(super) fn contributed_rotary(p: &mut Parts<'_>) -> Expanded {
    p.only("is_packed_batching", 0)?;
    let (x, positions) = (p.operand(0)?, p.operand(1)?);
    let (cos, sin) = (p.operand(2)?, p.operand(3)?);
    if p.graph.ty(positions).rank() != 2 {
        return Err("one position for each item".into());
    }
    rotate(p, x, [cos, sin], Some(positions))
}

/// `x · cos + rotated(x) · sin`, with the caches written twice: in halves, or pair by pair.
fn rotate(p: &mut Parts<'_>, x: Value, caches: [Value; 2], positions: Option<Value>) -> Expanded {
    p.only("rotary_embedding_dim", 0)?;
    let interleaved = p.attributes.int_or("interleaved", 0) != 0;
    let half = p.shape(caches[0]).last().and_then(Dim::as_fixed);
    let half = half
        .filter(|h| (1..1 << 32).contains(h))
        .ok_or("a cache whose width is not fixed")?;
    let shape = p.shape(x);
    // Heads apart as `[.., heads, tokens, width]` or `[.., tokens, heads, width]`; the caches get an axis of 1 for them.
    let (apart, heads_axis) = match shape.as_slice() {
        [_, _, _, _] => (shape.clone(), 1),
        [b, s, hidden] => {
            let n = hidden.as_fixed().filter(|n| n % (2 * half) == 0);
            let n = n.ok_or("heads do not divide the width")? / (2 * half);
            let apart = vec![b.clone(), s.clone(), Dim::fixed(n), Dim::fixed(2 * half)];
            (apart, 2)
        }
        _ => return Err("a value of another rank".into()),
    };
    if apart[3].as_fixed() != Some(2 * half) {
        return Err("a part of each head is rotated".into());
    }
    let split = p.view(x, apart.clone())?;
    let mut rows = Vec::new();
    for cache in caches {
        let row = match positions {
            Some(positions) => p.apply(Operator::Gather, &[cache, positions])?,
            None => cache,
        };
        let row = twice(p, row, half, interleaved)?;
        let mut by_token = p.shape(row);
        if by_token.len() != 3 {
            return Err("caches of another rank".into());
        }
        by_token.insert(heads_axis, Dim::fixed(1));
        rows.push(p.view(row, by_token)?);
    }
    let rotated = if interleaved {
        let mut pairs = apart.clone();
        pairs.truncate(3);
        pairs.extend([Dim::fixed(half), Dim::fixed(2)]);
        let by_pair = p.view(split, pairs)?;
        let rotated = swapped(p, by_pair, 1)?;
        p.view(rotated, apart)?
    } else {
        swapped(p, split, half)?
    };
    let kept = p.apply(Operator::Mul, &[split, rows[0]])?;
    let turned = p.apply(Operator::Mul, &[rotated, rows[1]])?;
    let y = p.apply(Operator::Add, &[kept, turned])?;
    Ok(vec![Some(p.view(y, shape)?)])
}

/// The halves of the last axis, each of this size, swapped and the first of them negated.
fn swapped(p: &mut Parts<'_>, x: Value, half: i64) -> Result<Value, Declined> {
    let halves = p.split(x, &[half, half])?;
    let negated = p.apply(Operator::Neg, &[halves[1]])?;
    let axis = [("axis", Attribute::Int(-1))];
    p.with(Operator::Concat, &axis, &[negated, halves[0]])
}

/// `[.., half]` as `[.., 2 · half]`: one copy after the other, or each element twice.
fn twice(p: &mut Parts<'_>, x: Value, half: i64, interleaved: bool) -> Result<Value, Declined> {
    let axis = [("axis", Attribute::Int(-1))];
    if !interleaved {
        return p.with(Operator::Concat, &axis, &[x, x]);
    }
    let mut shape = p.shape(x);
    shape.push(Dim::fixed(1));
    let apart = p.view(x, shape.clone())?;
    let pairs = p.with(Operator::Concat, &axis, &[apart, apart])?;
    shape.truncate(shape.len() - 2);
    shape.push(Dim::fixed(2 * half));
    p.view(pairs, shape)
}
