//! One head of one sequence: its queries in tiles of [`QUERIES`], one lane each. Scores `S[key][query]`, softmax over keys,
//! context `C[feature][query]`. Keys and values are read where they are if they fill a few panels; otherwise they are gathered
//! from the panels into thread memory before.
//!
//! Memory is linear in the number of tokens: a tile holds the scores of [`QUERIES`] queries with all keys, and a bias that depends
//! on the distance of query and key alone is read from one number for each distance.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use lancet_ops::{AttentionRounding, DataView, Rounding, TensorView, with_elements};

use super::{Attention, Positions, Sequences};
use crate::jit::{AttentionTile, KEYS, Kernel, PARAMETERS, QUERIES};
use crate::panels::PanelShape;
use crate::pool::Pieces;
use crate::session::Reads;

/// Keys and values of at most so many tokens are read where they are. Panels of one head are a multiple of 4 KB apart: more of
/// them compete for the same sets of the caches.
const IN_PLACE: usize = 4 * KEYS;

impl Attention {
    /// The contexts of one sequence and head.
    pub(super) fn head(
        &self,
        reads: &Reads<'_>,
        sequences: &Sequences,
        [item, head]: [usize; 2],
        floats: &mut [f32],
        (contexts, shown): &mut (&mut Pieces<'_, f32>, &mut [f32]),
    ) {
        let (queries_of, keys_of) = (&sequences.queries[item], &sequences.keys[item]);
        let memory = &sequences.memory;
        let ([seq_q, seq_k], [d, dv]) = ([queries_of.len(), keys_of.len()], self.d);
        let (keys_stride, values_stride) = (memory.keys_stride(d), memory.values_stride(dv));
        gather(
            reads.panels(self.k),
            &self.shapes[1],
            keys_of.clone(),
            head * d..(head + 1) * d,
            &mut floats[memory.keys.clone()],
            keys_stride,
        );
        gather(
            reads.panels(self.v),
            &self.shapes[2],
            keys_of.clone(),
            head * dv..(head + 1) * dv,
            &mut floats[memory.values.clone()],
            values_stride,
        );
        self.fill_mask(
            reads,
            keys_of,
            self.masked_value,
            &mut floats[memory.mask.clone()],
        );
        let q = reads.panels(self.q);
        for first in (0..seq_q).step_by(QUERIES) {
            let n = QUERIES.min(seq_q - first);
            let (operands, tile) = floats.split_at_mut(memory.queries.start);
            let (queries, tile) = tile.split_at_mut(memory.queries.len());
            let (scores, tile) = tile.split_at_mut(memory.scores.len());
            let (result, tile) = tile.split_at_mut(memory.context.len());
            let (mask, tile) = tile.split_at_mut(memory.mask.len());
            let of_stages = &mut tile[memory.state.len()..];
            let start = queries_of.start + first;
            let features = head * d..(head + 1) * d;
            let b = self.shapes[0].tile(start..start + n, features.clone(), QUERIES);
            let (b, b_row) = match b {
                Some((range, stride)) => (&q[range], stride),
                None => {
                    if n < QUERIES {
                        queries.fill(0.0);
                    }
                    let tokens = start..start + n;
                    gather(q, &self.shapes[0], tokens, features, queries, QUERIES);
                    (&*queries, QUERIES)
                }
            };
            let keys = &operands[memory.keys.clone()];
            self.product(
                Strided {
                    a: keys,
                    row: 1,
                    step: keys_stride,
                    n: seq_k,
                },
                (b, b_row),
                d,
                scores,
                self.product.as_ref(),
            );
            let of_keys = &mut scores[..seq_k * QUERIES];
            let at = [item, head, first, n];
            let sums = match &self.stages {
                Some(stages) => {
                    stages.run(reads, at, of_keys, of_stages);
                    [1.0; QUERIES]
                }
                None => self.weigh(reads, sequences, at, &mask[..seq_k], of_keys),
            };
            if let Some(to) = &self.shown {
                to.tile(shown, [first, n], of_keys, &sums);
            }
            let values = &operands[memory.values.clone()];
            self.product(
                Strided {
                    a: values,
                    row: values_stride,
                    step: 1,
                    n: dv,
                },
                (scores, QUERIES),
                seq_k,
                result,
                self.product.as_ref().filter(|_| sequences.in_singles),
            );
            let (out, lane, stride) =
                self.context_at(sequences, contexts, queries_of.start, first, seq_q);
            let lanes = lane..(lane + QUERIES).min(stride);
            for (out, c) in (out.chunks_exact_mut(stride)).zip(result.chunks_exact(QUERIES)) {
                for ((out, c), sum) in out[lanes.clone()].iter_mut().zip(c).zip(&sums) {
                    *out = c * sum;
                }
            }
        }
    }

    /// Makes products of the `n` queries from `first` on weights, and gives what each query's are to be multiplied with.
    fn weigh(
        &self,
        reads: &Reads<'_>,
        sequences: &Sequences,
        at @ [item, head, first, n]: [usize; 4],
        mask: &[f32],
        scores: &mut [f32],
    ) -> [f32; QUERIES] {
        if self.rounding.scores.is_some() {
            scores
                .iter_mut()
                .for_each(|s| *s = self.rounding.product(*s));
        }
        let scale = self.add_bias(reads, at, scores);
        let scale = self.add_relative(reads, [head, first], scale, mask, scores);
        let head_of_item = item * self.n_heads + head;
        let scale = self.add_positions(reads, sequences, [head_of_item, first], scale, scores);
        let mut sums = [0.0; QUERIES];
        self.softmax(scores, mask, scale, &mut sums);
        let start = sequences.queries[item].start + first;
        self.level_queries(reads, start..start + n, scores, &mut sums);
        self.round_probabilities(scores, &mut sums);
        sums
    }

    /// The contexts of one sequence and head, a tile by one call.
    pub(super) fn head_by_kernel(
        &self,
        kernel: &Kernel,
        reads: &Reads<'_>,
        sequences: &Sequences,
        [item, head]: [usize; 2],
        floats: &mut [f32],
        (contexts, shown): &mut (&mut Pieces<'_, f32>, &mut [f32]),
    ) {
        let (queries_of, keys_of) = (&sequences.queries[item], &sequences.keys[item]);
        let memory = &sequences.memory;
        let ([seq_q, seq_k], [d, dv]) = ([queries_of.len(), keys_of.len()], self.d);
        let (operands, tile) = floats.split_at_mut(memory.queries.start);
        let (keys, values) = operands.split_at_mut(memory.values.start);
        let (queries, tile) = tile.split_at_mut(memory.queries.len());
        let (scores, tile) = tile.split_at_mut(memory.scores.len());
        let (result, tile) = tile.split_at_mut(memory.context.len());
        let (mask, state) = tile.split_at_mut(memory.mask.len());
        self.fill_mask(reads, keys_of, self.masked_of_tile(), mask);
        mask[seq_k..].fill(f32::NEG_INFINITY);
        let features = |d: usize| head * d..(head + 1) * d;
        let operand = |value: usize, shape: &PanelShape, d: usize, memory: &mut [f32]| {
            panels_of(
                reads.panels(value),
                shape,
                keys_of.clone(),
                features(d),
                memory,
            )
        };
        let key_panels = operand(self.k, &self.shapes[1], d, keys);
        let value_panels = operand(self.v, &self.shapes[2], dv, values);
        let of_panels = |panels, memory| match panels {
            Panels::Gathered(stride) => (memory, stride),
            Panels::InPlace(x, stride) => (x, stride),
        };
        let (keys, values) = (
            of_panels(key_panels, &*keys),
            of_panels(value_panels, &*values),
        );
        let parameters = self.tile_parameters();
        let q = reads.panels(self.q);
        for first in (0..seq_q).step_by(QUERIES) {
            let n = QUERIES.min(seq_q - first);
            let tokens = queries_of.start + first..queries_of.start + first + n;
            let queries = match self.shapes[0].tile(tokens.clone(), features(d), QUERIES) {
                Some((range, stride)) => (&q[range], stride),
                None => {
                    if n < QUERIES {
                        queries.fill(0.0);
                    }
                    gather(q, &self.shapes[0], tokens, features(d), queries, QUERIES);
                    (&*queries, QUERIES)
                }
            };
            let tile = AttentionTile {
                keys,
                values,
                n_keys: seq_k,
                queries,
                mask,
                d: self.d,
                parameters: &parameters,
            };
            let (out, lane, stride) =
                self.context_at(sequences, contexts, queries_of.start, first, seq_q);
            if lane + QUERIES <= stride {
                kernel.attention_tile(&tile, scores, state, (&mut out[lane..], stride));
            } else {
                kernel.attention_tile(&tile, scores, state, (result, QUERIES));
                for (out, c) in (out.chunks_exact_mut(stride)).zip(result.chunks_exact(QUERIES)) {
                    out[lane..].copy_from_slice(&c[..stride - lane]);
                }
            }
            if let (Some(to), Some(sums)) = (&self.shown, state[QUERIES..].first_chunk()) {
                to.tile(shown, [first, n], &scores[..seq_k * QUERIES], sums);
            }
        }
    }

    /// What the kernel of a tile adds to the scores of masked keys, to the base of 2 unless scores are rounded. A mask that was
    /// finite stays so: keys that are all masked weigh the same.
    fn masked_of_tile(&self) -> f32 {
        if self.rounding.masked.is_some() || !self.masked_value.is_finite() {
            return self.masked_value;
        }
        (self.masked_value * LOG2_E).max(f32::MIN)
    }

    /// What the kernel of a tile multiplies with and rounds by. Softmax is to the base of 2.
    fn tile_parameters(&self) -> [f32; PARAMETERS] {
        let numbers = |r: Option<Rounding>| r.map_or([1.0, 0.0, 0.0], |r| r.numbers());
        let AttentionRounding {
            scores,
            masked,
            probabilities,
        } = self.rounding;
        let (base, factor) = match masked {
            // As the mask, rounded scores stay finite.
            Some(r) => {
                let [scale, least, greatest] = r.numbers();
                let most = f32::MAX / greatest.max(-least).max(1.0);
                (1.0, (scale * LOG2_E).min(most))
            }
            None => (LOG2_E, 1.0),
        };
        let [s, m, p] = [scores, masked, probabilities].map(numbers);
        [
            self.scale * base,
            s[0],
            s[1],
            s[2],
            m[0],
            m[1],
            m[2],
            factor,
            p[0],
            p[1],
            p[2],
        ]
    }

    /// `s[key][t] = exp(scale s[key][t] + mask[key] - max)` in place, and `sums[t] = 1 / sum over keys`; with scores rounded
    /// where they are to be.
    fn softmax(&self, s: &mut [f32], mask: &[f32], scale: f32, sums: &mut [f32; QUERIES]) {
        match &self.softmax {
            Some(kernel) => kernel.attention_softmax(s, mask, scale, sums),
            None => {
                scale_and_mask(s, mask, scale);
                if self.rounding.masked.is_some() {
                    s.iter_mut().for_each(|s| *s = self.rounding.score(*s));
                }
                exponentials(s, sums);
            }
        }
    }

    /// Rounds probabilities where they are to be; what is left to multiply with is then 1.
    fn round_probabilities(&self, s: &mut [f32], sums: &mut [f32; QUERIES]) {
        if self.rounding.probabilities.is_none() {
            return;
        }
        for s in s.chunks_exact_mut(QUERIES) {
            for (s, sum) in s.iter_mut().zip(&*sums) {
                *s = self.rounding.probability(*s * sum);
            }
        }
        *sums = [1.0; QUERIES];
    }

    /// Where the contexts of the tile that begins at query `first` of a sequence go: rows, the lane in them, and elements from
    /// one to the next.
    fn context_at<'a>(
        &self,
        sequences: &Sequences,
        contexts: &'a mut Pieces<'_, f32>,
        start: usize,
        first: usize,
        n_queries: usize,
    ) -> (&'a mut [f32], usize, usize) {
        if sequences.aligned {
            let width = self.shapes[3].width;
            let stride = self.shapes[3].stride((start + first) / width);
            (contexts.piece(first / width), first % width, stride)
        } else {
            let stride = n_queries.next_multiple_of(QUERIES);
            (contexts.piece(0), first, stride)
        }
    }

    /// What is added to the score of each key.
    fn fill_mask(&self, reads: &Reads<'_>, keys: &Range<usize>, masked: f32, out: &mut [f32]) {
        let out = &mut out[..keys.len()];
        let Some(mask) = self.mask else {
            out.fill(0.0);
            return;
        };
        let mask = reads.view(mask);
        for (key, out) in keys.clone().zip(out) {
            *out = if is_set(mask, key) { 0.0 } else { masked };
        }
    }

    /// Scales scores and adds the bias to them, if there is one; returns the scale that is left to apply.
    fn add_bias(
        &self,
        reads: &Reads<'_>,
        [item, head, first, n]: [usize; 4],
        scores: &mut [f32],
    ) -> f32 {
        let Some((bias, strides)) = &self.bias else {
            return self.scale;
        };
        let bias = reads.f32(*bias);
        let start = item * strides[0] + head * strides[1] + first * strides[2];
        for (key, scores) in scores.chunks_exact_mut(QUERIES).enumerate() {
            for (query, score) in scores[..n].iter_mut().enumerate() {
                *score = *score * self.scale + bias[start + query * strides[2] + key * strides[3]];
            }
            scores[n..].iter_mut().for_each(|s| *s *= self.scale);
        }
        1.0
    }

    /// Scales scores and adds the bias by distance to them, if there is one; returns the scale that is left to apply.
    ///
    /// The bias is no less than what leaves its sum with the mask finite, if the mask is.
    fn add_relative(
        &self,
        reads: &Reads<'_>,
        [head, first]: [usize; 2],
        scale: f32,
        mask: &[f32],
        scores: &mut [f32],
    ) -> f32 {
        let Some((relative, stride)) = self.relative else {
            return scale;
        };
        let relative = &reads.f32(relative)[head * stride..];
        let least = if self.masked_value.is_finite() {
            f32::MIN
        } else {
            f32::NEG_INFINITY
        };
        let (rows, _) = scores.as_chunks_mut::<QUERIES>();
        for (key, (scores, key_mask)) in rows.iter_mut().zip(mask).enumerate() {
            let of_tile = &relative[first + mask.len() - key..];
            let floor = least - key_mask;
            let mut add = |r: &[f32]| {
                for (score, &r) in scores.iter_mut().zip(r) {
                    *score = *score * scale + if r < floor { floor } else { r };
                }
            };
            match of_tile.first_chunk::<QUERIES>() {
                Some(r) => add(r),
                // The last tile ends beyond the last query, and its lanes beyond the last distance.
                None => add(of_tile),
            }
        }
        1.0
    }

    /// Scales scores and adds the numbers of queries and of keys that belong to their distances, if there are any; returns the
    /// scale that is left to apply.
    fn add_positions(
        &self,
        reads: &Reads<'_>,
        sequences: &Sequences,
        [head_of_item, first]: [usize; 2],
        scale: f32,
        scores: &mut [f32],
    ) -> f32 {
        let mut scale = scale;
        let (scores, _) = scores.as_chunks_mut::<QUERIES>();
        let n_keys = scores.len();
        let [by_query, by_key] = &self.positions;
        if let Some(Positions { rows, width, .. }) = by_query {
            let places = &sequences.places[0];
            let n_queries = places.len() - n_keys;
            let rows = &reads.f32(*rows)[(head_of_item * n_queries + first) * width..];
            let mut rows = rows.chunks(*width.max(&1)).take(n_queries - first);
            let rows: [&[f32]; QUERIES] = std::array::from_fn(|_| rows.next().unwrap_or(&[]));
            for (key, scores) in scores.iter_mut().enumerate() {
                let places = &places[first + n_keys - key..];
                for ((score, row), &place) in scores.iter_mut().zip(rows).zip(places) {
                    *score = *score * scale + row.get(place).copied().unwrap_or(0.0);
                }
            }
            scale = 1.0;
        }
        if let Some(Positions { rows, width, .. }) = by_key {
            let places = &sequences.places[1];
            let rows = &reads.f32(*rows)[head_of_item * n_keys * width..];
            let rows = rows.chunks(*width.max(&1));
            for ((key, scores), row) in scores.iter_mut().enumerate().zip(rows) {
                let places = &places[first + n_keys - key..];
                for (score, &place) in scores.iter_mut().zip(places) {
                    *score = *score * scale + row[place];
                }
            }
            scale = 1.0;
        }
        scale
    }

    /// Makes all keys weigh the same for the queries that the mask of queries hides, if there is one.
    fn level_queries(
        &self,
        reads: &Reads<'_>,
        queries: Range<usize>,
        weights: &mut [f32],
        sums: &mut [f32; QUERIES],
    ) {
        let Some(mask) = self.query_mask else {
            return;
        };
        let mask = reads.view(mask);
        let n_keys = weights.len() / QUERIES;
        for (lane, query) in queries.enumerate() {
            if !is_set(mask, query) {
                weights[lane..]
                    .iter_mut()
                    .step_by(QUERIES)
                    .for_each(|w| *w = 1.0);
                sums[lane] = 1.0 / n_keys as f32;
            }
        }
    }

    /// `c[i][t] = sum_j a(i, j) b[j * b_row + t]` for `n` rows i, `k` steps j and the queries t of a tile.
    fn product(
        &self,
        a: Strided<'_>,
        (b, b_row): (&[f32], usize),
        k: usize,
        c: &mut [f32],
        kernel: Option<&Kernel>,
    ) {
        if let Some(kernel) = kernel {
            kernel.attention_product(a.a, [a.row, a.step], (b, b_row), k, a.n, c);
            return;
        }
        for (i, c) in c.chunks_exact_mut(QUERIES).take(a.n).enumerate() {
            // Whole numbers stay exact, however many keys there are.
            let mut sums = [0.0f64; QUERIES];
            for (j, b) in b.chunks(b_row).take(k).enumerate() {
                let a = f64::from(a.a[i * a.row + j * a.step]);
                (sums.iter_mut().zip(b)).for_each(|(s, &b)| *s += a * f64::from(b));
            }
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c = sum as f32);
        }
    }
}

/// Whether element `i` of a mask is not zero.
fn is_set(mask: TensorView<'_>, i: usize) -> bool {
    match mask.data() {
        DataView::Bool(v) => v[i],
        data => with_elements!(data, v => v[i] != Default::default()),
    }
}

/// `a(i, j) = a[i * row + j * step]` for `n` rows i.
struct Strided<'a> {
    a: &'a [f32],
    row: usize,
    step: usize,
    n: usize,
}

/// Keys or values of a head, in panels of [`KEYS`] tokens.
enum Panels<'a> {
    /// In thread memory; elements from one panel to the next.
    Gathered(usize),
    /// From the first panel on, and elements from one to the next.
    InPlace(&'a [f32], usize),
}

/// Features of consecutive tokens in panels of [`KEYS`] tokens: as they are, or gathered into `memory`.
fn panels_of<'a>(
    x: &'a [f32],
    shape: &PanelShape,
    tokens: Range<usize>,
    features: Range<usize>,
    memory: &mut [f32],
) -> Panels<'a> {
    if tokens.len() <= IN_PLACE && shape.begins_panels_of(KEYS, &tokens) {
        let first = shape.rows(tokens.start / KEYS, features.clone());
        let last = shape.rows((tokens.end - 1) / KEYS, features);
        return Panels::InPlace(&x[first.start..last.end], KEYS * shape.features);
    }
    let (start, n) = (tokens.start, features.len());
    shape.for_each_run(tokens, |t, first, stride, len| {
        let mut done = 0;
        while done < len {
            let (p, lane) = ((t - start + done) / KEYS, (t - start + done) % KEYS);
            let of_panel = (len - done).min(KEYS - lane);
            for (row, f) in features.clone().enumerate() {
                let from = &x[first + done + f * stride..];
                let to = &mut memory[(p * n + row) * KEYS + lane..];
                match (to.first_chunk_mut::<KEYS>(), from.first_chunk::<KEYS>()) {
                    (Some(to), Some(from)) if of_panel == KEYS => *to = *from,
                    _ => to[..of_panel].copy_from_slice(&from[..of_panel]),
                }
            }
            done += of_panel;
        }
    });
    Panels::Gathered(n * KEYS)
}

/// Copies features of consecutive tokens out of panels: `out[feature][token]` with rows of `stride`.
fn gather(
    x: &[f32],
    shape: &PanelShape,
    tokens: Range<usize>,
    features: Range<usize>,
    out: &mut [f32],
    stride: usize,
) {
    let start = tokens.start;
    shape.for_each_run(tokens, |t, first, panel_stride, len| {
        for (row, f) in features.clone().enumerate() {
            let from = first + f * panel_stride;
            let to = row * stride + t - start;
            out[to..to + len].copy_from_slice(&x[from..from + len]);
        }
    });
}

/// `s[key][t] = exp(scale s[key][t] + mask[key] - max)` in place, and `sums[t] = 1 / sum over keys`.
pub(in crate::steps) fn softmax(
    s: &mut [f32],
    mask: &[f32],
    scale: f32,
    sums: &mut [f32; QUERIES],
) {
    scale_and_mask(s, mask, scale);
    exponentials(s, sums);
}

fn scale_and_mask(s: &mut [f32], mask: &[f32], scale: f32) {
    for (s, mask) in s.chunks_exact_mut(QUERIES).zip(mask) {
        s.iter_mut().for_each(|s| *s = *s * scale + mask);
    }
}

/// `s[key][t] = exp(s[key][t] - max)` in place, and `sums[t] = 1 / sum over keys`.
fn exponentials(s: &mut [f32], sums: &mut [f32; QUERIES]) {
    let mut max = [f32::NEG_INFINITY; QUERIES];
    for s in s.chunks_exact(QUERIES) {
        max.iter_mut()
            .zip(s)
            .for_each(|(max, s)| *max = max.max(*s));
    }
    let mut totals = [0.0f32; QUERIES];
    for s in s.chunks_exact_mut(QUERIES) {
        for ((s, max), total) in s.iter_mut().zip(&max).zip(&mut totals) {
            *s = (*s - max).exp();
            *total += *s;
        }
    }
    for (sum, total) in sums.iter_mut().zip(totals) {
        *sum = 1.0 / total;
    }
}
