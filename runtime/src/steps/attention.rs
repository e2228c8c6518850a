//! Attention: `softmax(scale q kᵀ + mask + bias) v` in each head of each sequence.
//!
//! The first loop has a task for each (sequence, head). It goes through the queries in tiles of [`QUERIES`], one lane each:
//! scores `S[key][query]`, softmax over keys, context `C[feature][query]`. Keys and values are read where they are if they fill
//! a few panels; otherwise they are gathered from the panels into thread memory before. Where no panel holds tokens of two sequences, contexts go to the panels of the output.
//! Otherwise they go to memory between the loops, `[sequence][head][feature][query]`, and a second loop moves them.
//!
//! Memory is linear in the number of tokens: a tile holds the scores of [`QUERIES`] queries with all keys, and a bias that depends
//! on the distance of query and key alone is read from one number for each distance.
//!
//! Sequences are ranges of tokens. In a padded batch they are of one length, known when the step is bound; packed ones are
//! given as data.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lancet_artifact::KernelSpec;
use lancet_ops::{DataView, TensorView, with_elements};

use crate::jit::{AttentionTile, KEYS, Kernel, QUERIES, ROWS};
use crate::panels::PanelShape;
use crate::pool::{Groups, Parts, Pieces};
use crate::session::Reads;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::{Failure, Sizes, Workers, scratch};

/// Elements of a cache line.
const LINE: usize = 16;

/// Keys and values of at most so many tokens are read where they are. Panels of one head are a multiple of 4 KB apart: more of
/// them compete for the same sets of the caches.
const IN_PLACE: usize = 4 * KEYS;

pub(crate) struct Attention {
    q: usize,
    k: usize,
    v: usize,
    mask: Option<usize>,
    bias: Option<(usize, Vec<usize>)>,
    /// A bias by distance, and its elements from one head to the next.
    relative: Option<(usize, usize)>,
    scale: f32,
    masked_value: f32,
    n_heads: usize,
    n_threads: usize,
    limit_bytes: u64,
    /// Features of a head in queries and keys, and in values.
    d: [usize; 2],
    shapes: [PanelShape; 4],
    /// Where sequences begin, if it is data: values with the first key, and the first query, of each; without the latter
    /// every sequence has as many.
    starts: Option<(usize, Option<usize>)>,
    /// Those of the last request, or of every request.
    sequences: Mutex<Sequences>,
    /// Features of each head in each panel of the output.
    outputs: Parts,
    /// All of a tile at once, where no bias comes in between.
    tile: Option<Kernel>,
    product: Option<Kernel>,
    softmax: Option<Kernel>,
    /// Operations of the last run, or of every run.
    flops: AtomicU64,
}

/// The sequences of a batch. Memory is used again from request to request.
#[derive(Default)]
struct Sequences {
    /// Query and key tokens of each.
    queries: Vec<Range<usize>>,
    keys: Vec<Range<usize>>,
    /// Whether no panel of the output holds tokens of two sequences.
    aligned: bool,
    /// For each (sequence, head), where its contexts go: into the panels of the output if these are `aligned`, otherwise
    /// into the memory between the loops.
    contexts: Groups,
    /// Elements of the memory between the loops, and of that of a thread.
    n_between: usize,
    memory: Memory,
}

/// Where things lie in the memory of a thread, in elements.
#[derive(Default)]
struct Memory {
    keys: Range<usize>,
    values: Range<usize>,
    queries: Range<usize>,
    scores: Range<usize>,
    context: Range<usize>,
    mask: Range<usize>,
    state: Range<usize>,
}

impl Attention {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        (n_heads, scale, masked_value): (usize, f32, f32),
    ) -> Result<Attention, String> {
        let [q, k, v] = [0, 1, 2].map(|i| sizes.required(i));
        let out = sizes.output();
        let (sq, sk, sv, so) = (
            sizes.shape(q),
            sizes.shape(k),
            sizes.shape(v),
            sizes.shape(out),
        );
        if sk[..2] != sv[..2] || sq[0] != sk[0] || so[..2] != sq[..2] {
            return Err(format!(
                "shapes {sq:?}, {sk:?}, {sv:?} and {so:?} do not fit"
            ));
        }
        let [batch, seq_q, seq_k] = [sq[0], sq[1], sk[1]];
        let mask = sizes.input(3);
        if let Some(mask) = mask
            && sizes.shape(mask) != [batch, seq_k]
        {
            return Err(format!(
                "expected a mask of shape [{batch}, {seq_k}], found {:?}",
                sizes.shape(mask)
            ));
        }
        let bias = sizes
            .input(4)
            .map(|b| {
                Ok::<_, String>((
                    b,
                    broadcast_strides(sizes.shape(b), &[batch, n_heads, seq_q, seq_k])?,
                ))
            })
            .transpose()?;
        let relative = (sizes.input(5))
            .map(|r| match *sizes.shape(r) {
                [1, n] if n == seq_q + seq_k => Ok((r, 0)),
                [h, n] if h == n_heads && n == seq_q + seq_k => Ok((r, n)),
                ref found => Err(format!(
                    "expected a relative bias of shape [1 or {n_heads}, {}], found {found:?}",
                    seq_q + seq_k
                )),
            })
            .transpose()?;
        let parameters = (n_heads, scale, masked_value);
        let mut step = Attention::new(sizes, parameters, mask, None);
        let of_length = |n: usize| (0..batch).map(|i| i * n..(i + 1) * n).collect();
        let mut sequences = Sequences {
            queries: of_length(seq_q),
            keys: of_length(seq_k),
            ..Sequences::default()
        };
        step.lay_out(&mut sequences)?;
        step.sequences = Mutex::new(sequences);
        if bias.is_none() && relative.is_none() {
            step.tile = sizes.kernel(KernelSpec::AttentionTile);
        } else {
            step.product = sizes.kernel(KernelSpec::AttentionProduct);
            step.softmax = sizes.kernel(KernelSpec::AttentionSoftmax);
        }
        step.bias = bias;
        step.relative = relative;
        Ok(step)
    }

    /// Attention of packed sequences.
    pub(super) fn bind_packed(
        sizes: &Sizes<'_>,
        parameters: (usize, f32, f32),
    ) -> Result<Attention, String> {
        let [q, k, v] = [0, 1, 2].map(|i| sizes.shape(sizes.required(i)));
        let out = sizes.shape(sizes.output());
        if k[0] != v[0] || q[0] != out[0] {
            return Err(format!("shapes {q:?}, {k:?}, {v:?} and {out:?} do not fit"));
        }
        let mask = sizes.input(5);
        if let Some(mask) = mask
            && sizes.shape(mask) != [k[0]]
        {
            let found = sizes.shape(mask);
            return Err(format!("expected a mask of {} keys, found {found:?}", k[0]));
        }
        let starts = (sizes.required(3), sizes.input(4));
        let mut step = Attention::new(sizes, parameters, mask, Some(starts));
        step.tile = sizes.kernel(KernelSpec::AttentionTile);
        Ok(step)
    }

    fn new(
        sizes: &Sizes<'_>,
        (n_heads, scale, masked_value): (usize, f32, f32),
        mask: Option<usize>,
        starts: Option<(usize, Option<usize>)>,
    ) -> Attention {
        let [q, k, v] = [0, 1, 2].map(|i| sizes.required(i));
        let shapes = [q, k, v, sizes.output()].map(|v| sizes.panels(v));
        let d = [shapes[0].features / n_heads, shapes[2].features / n_heads];
        let mut outputs = Vec::with_capacity(shapes[3].n_panels() * n_heads);
        for p in 0..shapes[3].n_panels() {
            outputs.extend((0..n_heads).map(|h| shapes[3].rows(p, h * d[1]..(h + 1) * d[1])));
        }
        Attention {
            q,
            k,
            v,
            mask,
            bias: None,
            relative: None,
            scale,
            masked_value,
            n_heads,
            n_threads: sizes.shared.pool.threads(),
            limit_bytes: sizes.shared.options.max_arena_bytes,
            d,
            shapes,
            starts,
            sequences: Mutex::default(),
            outputs: Parts::new(outputs),
            tile: None,
            product: None,
            softmax: None,
            flops: AtomicU64::new(0),
        }
    }

    /// Finds where the contexts of these queries and keys go, and what memory they need.
    fn lay_out(&self, sequences: &mut Sequences) -> Result<(), String> {
        let (queries, keys) = (&sequences.queries, &sequences.keys);
        let most_keys = keys.iter().map(Range::len).max().unwrap_or(0);
        sequences.memory = Memory::new(most_keys, self.d);
        let (out, dv) = (&self.shapes[3], self.d[1]);
        sequences.aligned = (queries.iter()).all(|q| q.is_empty() || q.start % out.width == 0);
        let each_head = || {
            let heads = |(item, queries)| (0..self.n_heads).map(move |head| (item, head, queries));
            queries.iter().enumerate().flat_map(heads)
        };
        if sequences.aligned {
            sequences.n_between = 0;
            let panels = each_head().flat_map(|(item, head, queries)| {
                let panels = queries.start / out.width..queries.end.div_ceil(out.width);
                let panels = if queries.is_empty() { 0..0 } else { panels };
                let rows = move |p| out.rows(p, head * dv..(head + 1) * dv);
                panels.map(move |p| (item * self.n_heads + head, rows(p)))
            });
            sequences.contexts.set(panels);
        } else {
            let mut end = 0usize;
            sequences
                .contexts
                .set(each_head().map(|(item, head, queries)| {
                    let start = end;
                    end = end.saturating_add(dv * queries.len().next_multiple_of(QUERIES));
                    (item * self.n_heads + head, start..end)
                }));
            sequences.n_between = end;
        }
        let needed = sequences.memory.len().saturating_mul(self.n_threads);
        let needed = needed.saturating_add(sequences.n_between).saturating_mul(4);
        if needed as u64 > self.limit_bytes {
            return Err(format!(
                "needs {needed} bytes of scratch memory, the limit is {}",
                self.limit_bytes
            ));
        }
        let pairs = (queries.iter().zip(keys)).map(|(q, k)| q.len() * k.len());
        let per_pair = 2 * self.n_heads * (self.d[0] + self.d[1]);
        let flops = pairs.sum::<usize>() * per_pair;
        self.flops.store(flops as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Takes the sequences that begin where the values say.
    fn read_sequences(
        &self,
        sequences: &mut Sequences,
        reads: &Reads<'_>,
        (starts, q_starts): (usize, Option<usize>),
    ) -> Result<(), String> {
        let (n_queries, n_keys) = (self.shapes[0].tokens, self.shapes[1].tokens);
        let Sequences { queries, keys, .. } = sequences;
        read_ranges(reads.view(starts), n_keys, keys)?;
        match q_starts {
            Some(starts) => read_ranges(reads.view(starts), n_queries, queries)?,
            None => {
                let each = n_queries.checked_div(keys.len()).unwrap_or(0);
                queries.clear();
                queries.extend((0..keys.len()).map(|i| i * each..(i + 1) * each));
            }
        }
        let n_covered = queries.last().map_or(0, |r| r.end);
        if queries.len() != keys.len() || n_covered != n_queries {
            return Err(format!(
                "{} sequences of keys do not fit {n_queries} queries of {}",
                keys.len(),
                queries.len()
            ));
        }
        self.lay_out(sequences)
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        let kernel = self.tile.as_ref().or(self.product.as_ref());
        kernel.map(|k| Arc::clone(k.name()))
    }

    pub(super) fn flops(&self) -> u64 {
        self.flops.load(Ordering::Relaxed)
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let mut sequences = self
            .sequences
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(starts) = self.starts {
            self.read_sequences(&mut sequences, reads, starts)
                .map_err(Failure::Message)?;
        }
        let sequences = &*sequences;
        let per_thread = workers.scratch;
        let head = |task: usize, thread: usize, mut contexts: Pieces<'_, f32>| {
            let of = [task / self.n_heads, task % self.n_heads];
            let mut floats = scratch(per_thread, thread, sequences.memory.len());
            let start = floats.as_ptr().align_offset(64).min(LINE);
            let floats = &mut floats[start..];
            match &self.tile {
                Some(kernel) => {
                    self.head_by_kernel(kernel, reads, sequences, of, floats, &mut contexts)
                }
                None => self.head(reads, sequences, of, floats, &mut contexts),
            }
        };
        if sequences.aligned {
            workers
                .team
                .for_each_group(&sequences.contexts, out, head)?;
            return Ok(());
        }
        let contexts = &mut *workers.between;
        if contexts.len() < sequences.n_between {
            contexts.resize(sequences.n_between, 0.0);
        }
        (workers.team).for_each_group(&sequences.contexts, contexts, head)?;
        let contexts = &contexts[..sequences.n_between];
        let shape = &self.shapes[3];
        workers
            .team
            .for_each_part(&self.outputs, out, |task, _, y| {
                let (p, head) = (task / self.n_heads, task % self.n_heads);
                let (first, stride) = (p * shape.width, shape.stride(p));
                let mut lane = 0;
                let queries = &sequences.queries;
                let mut item = queries.partition_point(|q| q.end <= first);
                while lane < shape.tokens_in(p) {
                    let of_item = &queries[item];
                    let query = first + lane - of_item.start;
                    let len = (shape.tokens_in(p) - lane).min(of_item.len() - query);
                    let padded = of_item.len().next_multiple_of(QUERIES);
                    let context =
                        &contexts[sequences.contexts.range(item * self.n_heads + head, 0)];
                    for (y, c) in y.chunks_exact_mut(stride).zip(context.chunks_exact(padded)) {
                        y[lane..lane + len].copy_from_slice(&c[query..query + len]);
                    }
                    lane += len;
                    item += 1;
                    while item < queries.len() && queries[item].is_empty() {
                        item += 1;
                    }
                }
            })?;
        Ok(())
    }

    /// The contexts of one sequence and head.
    fn head(
        &self,
        reads: &Reads<'_>,
        sequences: &Sequences,
        [item, head]: [usize; 2],
        floats: &mut [f32],
        contexts: &mut Pieces<'_, f32>,
    ) {
        let (queries_of, keys_of) = (&sequences.queries[item], &sequences.keys[item]);
        let memory = &sequences.memory;
        let ([seq_q, seq_k], [d, dv]) = ([queries_of.len(), keys_of.len()], self.d);
        if seq_q == 0 || dv == 0 {
            return;
        }
        if seq_k == 0 {
            (0..contexts.len()).for_each(|i| contexts.piece(i).fill(0.0));
            return;
        }
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
            let (result, mask) = tile.split_at_mut(memory.context.len());
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
            );
            let scale = self.add_bias(
                reads,
                [item, head, first, n],
                &mut scores[..seq_k * QUERIES],
            );
            let mask = &mask[..seq_k];
            let scale = self.add_relative(reads, [head, first], scale, mask, scores);
            let mut sums = [0.0; QUERIES];
            match &self.softmax {
                Some(kernel) => {
                    kernel.attention_softmax(&mut scores[..seq_k * QUERIES], mask, scale, &mut sums)
                }
                None => softmax(&mut scores[..seq_k * QUERIES], mask, scale, &mut sums),
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

    /// The contexts of one sequence and head, a tile by one call.
    fn head_by_kernel(
        &self,
        kernel: &Kernel,
        reads: &Reads<'_>,
        sequences: &Sequences,
        [item, head]: [usize; 2],
        floats: &mut [f32],
        contexts: &mut Pieces<'_, f32>,
    ) {
        let (queries_of, keys_of) = (&sequences.queries[item], &sequences.keys[item]);
        let memory = &sequences.memory;
        let ([seq_q, seq_k], [d, dv]) = ([queries_of.len(), keys_of.len()], self.d);
        if seq_q == 0 || dv == 0 {
            return;
        }
        if seq_k == 0 {
            (0..contexts.len()).for_each(|i| contexts.piece(i).fill(0.0));
            return;
        }
        let (operands, tile) = floats.split_at_mut(memory.queries.start);
        let (keys, values) = operands.split_at_mut(memory.values.start);
        let (queries, tile) = tile.split_at_mut(memory.queries.len());
        let (scores, tile) = tile.split_at_mut(memory.scores.len());
        let (result, tile) = tile.split_at_mut(memory.context.len());
        let (mask, state) = tile.split_at_mut(memory.mask.len());
        // Scores are to the base of 2. A mask that was finite stays so: keys that are all masked weigh the same.
        let masked = self.masked_value * std::f32::consts::LOG2_E;
        let masked = if self.masked_value.is_finite() {
            masked.max(f32::MIN)
        } else {
            masked
        };
        self.fill_mask(reads, keys_of, masked, mask);
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
                scale: self.scale * std::f32::consts::LOG2_E,
            };
            let (out, lane, stride) =
                self.context_at(sequences, contexts, queries_of.start, first, seq_q);
            if lane + QUERIES <= stride {
                kernel.attention_tile(&tile, scores, state, (&mut out[lane..], stride));
                continue;
            }
            kernel.attention_tile(&tile, scores, state, (result, QUERIES));
            for (out, c) in (out.chunks_exact_mut(stride)).zip(result.chunks_exact(QUERIES)) {
                out[lane..].copy_from_slice(&c[..stride - lane]);
            }
        }
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
        let seen = |mask: TensorView<'_>, i: usize| match mask.data() {
            DataView::Bool(v) => v[i],
            data => with_elements!(data, v => v[i] != Default::default()),
        };
        let mask = reads.view(mask);
        for (key, out) in keys.clone().zip(out) {
            *out = if seen(mask, key) { 0.0 } else { masked };
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

    /// `c[i][t] = sum_j a(i, j) b[j * b_row + t]` for `n` rows i, `k` steps j and the queries t of a tile.
    fn product(&self, a: Strided<'_>, (b, b_row): (&[f32], usize), k: usize, c: &mut [f32]) {
        if let Some(kernel) = &self.product {
            kernel.attention_product(a.a, [a.row, a.step], (b, b_row), k, a.n, c);
            return;
        }
        for (i, c) in c.chunks_exact_mut(QUERIES).take(a.n).enumerate() {
            let mut sums = [0.0f32; QUERIES];
            for (j, b) in b.chunks(b_row).take(k).enumerate() {
                let a = a.a[i * a.row + j * a.step];
                sums.iter_mut().zip(b).for_each(|(s, b)| *s += a * b);
            }
            c.copy_from_slice(&sums);
        }
    }
}

/// The ranges of `n_tokens` tokens that begin at these starts.
fn read_ranges(
    starts: TensorView<'_>,
    n_tokens: usize,
    ranges: &mut Vec<Range<usize>>,
) -> Result<(), String> {
    let starts = starts.as_slice::<i64>().unwrap_or(&[]);
    let start = |i: usize| match starts.get(i) {
        Some(&start) => usize::try_from(start).ok().filter(|&s| s <= n_tokens),
        None => Some(n_tokens),
    };
    ranges.clear();
    for i in 0..starts.len() {
        match (start(i), start(i + 1)) {
            (Some(a), Some(b)) if a <= b && (i > 0 || a == 0) => ranges.push(a..b),
            _ => return Err("expected ascending starts of sequences, from 0".to_owned()),
        }
    }
    if ranges.is_empty() && n_tokens != 0 {
        return Err(format!("{n_tokens} tokens belong to no sequence"));
    }
    Ok(())
}

/// `a(i, j) = a[i * row + j * step]` for `n` rows i.
struct Strided<'a> {
    a: &'a [f32],
    row: usize,
    step: usize,
    n: usize,
}

impl Memory {
    /// For `seq_k` keys, and heads of `d` features in queries and keys and `dv` in values.
    fn new(seq_k: usize, [d, dv]: [usize; 2]) -> Memory {
        // The product kernel reads and writes rows in groups.
        let rows = |n: usize| n.next_multiple_of(ROWS);
        let mut end = 0;
        let mut take = |n: usize| {
            let start = end;
            end = (start + n).next_multiple_of(QUERIES);
            start..end
        };
        let padded = rows(seq_k).next_multiple_of(KEYS);
        Memory {
            keys: take(d * padded),
            values: take(rows(dv) * (padded + QUERIES)),
            queries: take(d * QUERIES),
            scores: take(padded * QUERIES),
            context: take(rows(dv) * QUERIES),
            mask: take(seq_k.next_multiple_of(KEYS)),
            state: take(AttentionTile::STATE),
        }
    }

    /// Elements, with what may be lost to begin at a cache line.
    fn len(&self) -> usize {
        self.state.end + LINE
    }

    /// Elements from one feature of the keys to the next.
    fn keys_stride(&self, d: usize) -> usize {
        self.keys.len().checked_div(d).unwrap_or(0)
    }

    /// Elements from one feature of the values to the next: not a power of two, so that rows do not compete for a cache set.
    fn values_stride(&self, dv: usize) -> usize {
        self.values.len() / dv.next_multiple_of(ROWS)
    }
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
pub(super) fn softmax(s: &mut [f32], mask: &[f32], scale: f32, sums: &mut [f32; QUERIES]) {
    let mut max = [f32::NEG_INFINITY; QUERIES];
    for (s, mask) in s.chunks_exact_mut(QUERIES).zip(mask) {
        for (s, max) in s.iter_mut().zip(&mut max) {
            *s = *s * scale + mask;
            *max = max.max(*s);
        }
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
