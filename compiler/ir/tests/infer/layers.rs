//! Cases of normalizations, recurrent layers, attention and embeddings.

use lancet_ops::{Attribute, DType, Tensor};

use crate::case::*;
use crate::places::places;
use crate::random::Random;

pub(crate) fn channels(r: &mut Random, n_parameters: usize) -> Case {
    let shape = [vec![r.positive(), 2 * r.positive()], r.shape(0, 2)].concat();
    let mut operands = vec![f32s(r, &shape)];
    operands.extend((0..n_parameters).map(|_| Tensor::new(vec![shape[1]], vec![0.5f32; shape[1]])));
    Case::new(operands)
}

pub(crate) fn layer_norm(r: &mut Random, n_parameters: usize, most_results: usize) -> Case {
    let case = along_axis(r, &[DType::F32]);
    let shape = case.operands[0]
        .as_ref()
        .map_or(Vec::new(), |t| t.shape().to_vec());
    let axis = case
        .attributes
        .int_or("axis", 0)
        .rem_euclid(shape.len() as i64) as usize;
    let mut case = case.results(1 + r.below(most_results));
    case.operands
        .extend((0..n_parameters).map(|_| Some(f32s(r, &shape[axis..]))));
    case
}

pub(crate) fn skip_layer_norm(r: &mut Random, n_parameters: usize) -> Case {
    let (b, s, h) = (r.positive(), r.positive(), r.positive());
    let x = [b, s, h];
    let skip: &[usize] = if r.chance(30) { &x[1..] } else { &x };
    let mut operands = vec![f32s(r, &x), f32s(r, skip)];
    operands.extend((0..n_parameters).map(|_| f32s(r, &[h])));
    let n = 1 + r.below(4);
    Case::new(operands).without(r, 1 + n_parameters).results(n)
}

pub(crate) fn recurrent(r: &mut Random, gates: usize) -> Case {
    let (seq, batch, input, hidden) = (r.positive(), r.positive(), r.positive(), r.positive());
    let (batch_first, both) = (r.chance(50), r.chance(50));
    let d = 1 + usize::from(both);
    let x = if batch_first {
        [batch, seq, input]
    } else {
        [seq, batch, input]
    };
    let state = if batch_first {
        [batch, d, hidden]
    } else {
        [d, batch, hidden]
    };
    let operands = vec![
        f32s(r, &x),
        f32s(r, &[d, gates * hidden, input]),
        f32s(r, &[d, gates * hidden, hidden]),
        f32s(r, &[d, 2 * gates * hidden]),
        Tensor::new(vec![batch], vec![seq as i32; batch]),
        f32s(r, &state),
    ];
    let n = 1 + r.below(if gates == 4 { 3 } else { 2 });
    let direction = if both { "bidirectional" } else { "forward" };
    Case::new(operands)
        .without(r, 3)
        .without(r, 4)
        .without(r, 5)
        .str("direction", direction)
        .int("layout", batch_first.into())
        .int("hidden_size", hidden as i64)
        .results(n)
}

pub(crate) fn dynamic_quantize_lstm(r: &mut Random) -> Case {
    let (seq, batch, input, hidden) = (r.positive(), r.positive(), r.positive(), r.positive());
    let (both, by_row, n) = (r.chance(50), r.chance(50), 1 + r.below(3));
    let d = 1 + usize::from(both);
    let parameters: &[usize] = if by_row { &[d, 4 * hidden] } else { &[d] };
    let mut operands = vec![
        f32s(r, &[seq, batch, input]),
        r.tensor(DType::I8, &[d, input, 4 * hidden]),
        r.tensor(DType::U8, &[d, hidden, 4 * hidden]),
        f32s(r, &[d, 8 * hidden]),
        Tensor::new(vec![batch], vec![seq as i32; batch]),
        f32s(r, &[d, batch, hidden]),
        f32s(r, &[d, batch, hidden]),
        f32s(r, &[d, 3 * hidden]),
    ];
    for dtype in [DType::I8, DType::U8] {
        operands.push(f32s(r, parameters));
        operands.push(r.tensor(dtype, parameters));
    }
    let direction = if both { "bidirectional" } else { "reverse" };
    let case = Case::new(operands).str("direction", direction).results(n);
    let case = case.int("hidden_size", hidden as i64);
    (3..8).fold(case, |case, i| case.without(r, i))
}

pub(crate) fn attention(r: &mut Random) -> Case {
    let (b, groups, kv, d, dv) = (
        r.positive(),
        1 + r.below(2),
        1 + r.below(2),
        r.positive(),
        r.positive(),
    );
    let (sq, sk, past, h) = (r.positive(), r.positive(), r.positive(), groups * kv);
    let (joined, with_past) = (r.chance(50), r.chance(50));
    let tensor = |r: &mut Random, heads: usize, s: usize, d: usize| match joined {
        true => f32s(r, &[b, s, heads * d]),
        false => f32s(r, &[b, heads, s, d]),
    };
    let mut operands = vec![
        tensor(r, h, sq, d),
        tensor(r, kv, sk, d),
        tensor(r, kv, sk, dv),
    ];
    if with_past {
        operands.push(f32s(r, &[sq, past + sk]));
        operands.push(f32s(r, &[b, kv, past, d]));
        operands.push(f32s(r, &[b, kv, past, dv]));
    }
    let mut case = Case::new(operands).results(1 + r.below(4));
    if joined {
        case = case
            .int("q_num_heads", h as i64)
            .int("kv_num_heads", kv as i64);
    }
    if with_past {
        case.operands[3] = None;
    }
    case
}

pub(crate) fn ms_attention(r: &mut Random) -> Case {
    let (b, s, input, h, d) = (
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let operands = vec![
        f32s(r, &[b, s, input]),
        f32s(r, &[input, 3 * h * d]),
        f32s(r, &[3 * h * d]),
    ];
    let n = 1 + r.below(2);
    Case::new(operands)
        .without(r, 2)
        .int("num_heads", h as i64)
        .results(n)
}

pub(crate) fn ms_multi_head_attention(r: &mut Random) -> Case {
    let (b, s, h, d, dv) = (
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let t = r.positive();
    let operands = match r.below(4) {
        0 => vec![f32s(r, &[b, s, h, 3, d])],
        1 => vec![f32s(r, &[b, s, h * d]), f32s(r, &[b, t, h, 2, d])],
        2 => vec![
            f32s(r, &[b, s, h * d]),
            f32s(r, &[b, h, t, d]),
            f32s(r, &[b, h, t, dv]),
        ],
        _ => vec![
            f32s(r, &[b, s, h * d]),
            f32s(r, &[b, t, h * d]),
            f32s(r, &[b, t, h * dv]),
        ],
    };
    let n = 1 + r.below(3);
    Case::new(operands).int("num_heads", h as i64).results(n)
}

pub(crate) fn dft(r: &mut Random) -> Case {
    let mut shape: Vec<usize> = (0..2 + r.below(2)).map(|_| r.positive()).collect();
    let rank = shape.len();
    let (inverse, onesided) = (r.chance(50), r.chance(50));
    shape[rank - 1] = if onesided && !inverse { 1 } else { 2 };
    let (n, axis) = (r.positive() as i64, r.below(rank - 1) as i64);
    Case::new(vec![
        f32s(r, &shape),
        Tensor::scalar(n),
        Tensor::scalar(axis),
    ])
    .without(r, 1)
    .without(r, 2)
    .int("inverse", inverse.into())
    .int("onesided", onesided.into())
    .sizes()
}

pub(crate) fn rotary_embedding(r: &mut Random) -> Case {
    let (b, h, s, half, n) = (r.positive(), r.positive(), r.positive(), r.positive(), 5);
    let x = f32s(r, &[b, h, s, 2 * half]);
    let operands = vec![
        x,
        f32s(r, &[n, half]),
        f32s(r, &[n, half]),
        r.integers(&[b, s], 0, 4),
    ];
    Case::new(operands)
}

pub(crate) fn ms_rotary_embedding(r: &mut Random) -> Case {
    let (b, h, s, half, n) = (r.positive(), r.positive(), r.positive(), r.positive(), 5);
    let x = f32s(r, &[b, h, s, 2 * half]);
    let operands = vec![
        x,
        r.integers(&[b, s], 0, 4),
        f32s(r, &[n, half]),
        f32s(r, &[n, half]),
    ];
    Case::new(operands)
}

pub(crate) fn ms_embed_layer_normalization(r: &mut Random) -> Case {
    let (b, s, h) = (r.positive(), r.positive(), r.positive());
    let ids = |r: &mut Random| Tensor::zeros(DType::I32, vec![b, s.max(r.below(1))]);
    let operands = vec![
        ids(r),
        ids(r),
        f32s(r, &[3, h]),
        f32s(r, &[4, h]),
        f32s(r, &[2, h]),
        f32s(r, &[h]),
        f32s(r, &[h]),
        ids(r),
    ];
    let n = 1 + r.below(3);
    Case::new(operands).without(r, 7).results(n)
}

pub(crate) fn ms_bias_add(r: &mut Random) -> Case {
    let (b, s, h) = (r.positive(), r.positive(), r.positive());
    Case::new(vec![
        f32s(r, &[b, s, h]),
        f32s(r, &[h]),
        f32s(r, &[b, s, h]),
    ])
}

pub(crate) fn from_sparse(r: &mut Random) -> Case {
    let (rows, columns) = (r.positive(), r.positive());
    let n = rows * columns / 2;
    let positions = Tensor::new([n], (0..n).map(|i| 2 * i as i64).collect::<Vec<i64>>());
    Case::new(vec![f32s(r, &[n]), positions]).ints("shape", vec![rows as i64, columns as i64])
}

pub(crate) fn embedding_lookup(r: &mut Random) -> Case {
    let (shape, h) = (r.shape(0, 2), r.positive());
    let (a, b) = (r.narrowed(&shape), r.narrowed(&shape));
    let operands = vec![
        places(r, &a, 3),
        f32s(r, &[3, h]),
        places(r, &b, 4),
        f32s(r, &[4, h]),
    ];
    Case::new(operands)
}

pub(crate) fn scaled_dot_product_attention(r: &mut Random) -> Case {
    let (b, sq, sk, h, d, dv) = (
        r.positive(),
        r.size(),
        r.size(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let bias = r.narrowed(&[b, h, sq, sk]);
    let relative = [if r.chance(50) { 1 } else { h }, sq + sk];
    let width = r.positive();
    let operands = vec![
        f32s(r, &[b, sq, h * d]),
        f32s(r, &[b, sk, h * d]),
        f32s(r, &[b, sk, h * dv]),
        r.tensor(DType::Bool, &[b, sk]),
        f32s(r, &bias),
        f32s(r, &relative),
        r.tensor(DType::Bool, &[b, sq]),
        f32s(r, &[b, h, sq, width]),
        places(r, &[sq + sk], width),
        f32s(r, &[b, h, sk, width]),
        places(r, &[sq + sk], width),
    ];
    let mut case = Case::new(operands);
    for i in [7, 9] {
        if r.chance(30) {
            case.operands[i] = None;
            case.operands[i + 1] = None;
        }
    }
    let shown = ["each", "sum", "mean"][r.below(3)];
    (3..7)
        .fold(case, |case, i| case.without(r, i))
        .results(1 + r.below(2))
        .int("num_heads", h as i64)
        .set("scale", Attribute::Float(0.5))
        .set("probabilities", Attribute::Str(shown.to_owned()))
        .rounding(r)
}

pub(crate) fn generalized_attention(r: &mut Random) -> Case {
    let (b, sq, sk, h, d, dv) = (
        r.positive(),
        r.size(),
        r.size(),
        r.positive(),
        r.positive(),
        r.positive(),
    );
    let (factor, kept) = (r.narrowed(&[b, h, sq, sk]), r.narrowed(&[b, h, sq, sk]));
    let operands = vec![
        f32s(r, &[b, sq, h * d]),
        f32s(r, &[b, sk, h * d]),
        f32s(r, &[b, sk, h * dv]),
        f32s(r, &factor),
        r.tensor(DType::Bool, &kept),
    ];
    let shown = ["each", "sum", "mean"][r.below(3)];
    let stages = [
        ("score", vec!["mul x0 0.5", "where x3 v0 -9.0"]),
        ("weight", vec!["sub x0 x1", "exp v0", "mul v1 x2"]),
        ("probability", vec!["add x1 1.0", "div x0 v0"]),
    ];
    let case = Case::new(operands)
        .results(1 + r.below(2))
        .int("num_heads", h as i64)
        .set("probabilities", Attribute::Str(shown.to_owned()));
    stages.into_iter().fold(case, |case, (name, lines)| {
        let lines = lines.into_iter().map(str::to_owned).collect();
        match r.below(4) {
            0 => case,
            _ => case.set(name, Attribute::Strs(lines)),
        }
    })
}

pub(crate) fn integer_linear(r: &mut Random) -> Case {
    let (n, k) = (r.positive(), r.positive());
    let mut x = r.shape(0, 3);
    x.push(k);
    let w = if r.below(2) == 0 {
        DType::I8
    } else {
        DType::I16
    };
    Case::new(vec![r.tensor(DType::U8, &x), r.tensor(w, &[n, k])])
}

pub(crate) fn token_packing(r: &mut Random) -> Case {
    let shape = [r.size(), r.size()];
    Case::new(vec![r.tensor(DType::Bool, &shape)])
        .results(2)
        .int("keep_first", r.below(2) as i64)
}

pub(crate) fn packed_attention(r: &mut Random) -> Case {
    let (n, h, d, dv) = (r.positive(), r.positive(), r.positive(), r.positive());
    let starts = |r: &mut Random| {
        let mut t = 0;
        let starts: Vec<i64> = (0..n)
            .map(|_| {
                let start = t;
                t += r.size() as i64;
                start
            })
            .collect();
        (Tensor::new([n], starts), t as usize)
    };
    let (keys, t) = starts(r);
    let (queries, tq) = if r.chance(50) {
        let (queries, tq) = starts(r);
        (Some(queries), tq)
    } else {
        (None, n * r.size())
    };
    let mut case = Case::new(vec![
        f32s(r, &[tq, h * d]),
        f32s(r, &[t, h * d]),
        f32s(r, &[t, h * dv]),
    ]);
    case.operands.push(Some(keys));
    case.operands.push(queries);
    case.operands.push(Some(r.tensor(DType::Bool, &[t])));
    case.without(r, 5)
        .int("num_heads", h as i64)
        .set("scale", Attribute::Float(0.5))
        .rounding(r)
}
