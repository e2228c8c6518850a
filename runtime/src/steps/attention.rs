//! Attention: `softmax(scale q kᵀ + mask + bias) v` in each head.
//!
//! The first loop has a task for each (sequence, head). It gathers the keys and values of its head from the panels into
//! thread memory, then goes through the queries in tiles of [`QUERIES`], one lane each: scores `S[key][query]`, softmax over keys,
//! context `C[feature][query]`. Contexts go to memory between the loops, `[sequence][head][feature][query]`; the second
//! loop moves them into the panels of the output, where a panel may hold the ends of several sequences.

use std::ops::Range;
use std::sync::Arc;

use lancet_artifact::KernelSpec;
use lancet_ops::{DataView, TensorView, with_elements};

use crate::jit::{Kernel, QUERIES, ROWS};
use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::{Failure, Sizes, Workers, scratch};

pub(crate) struct Attention {
    q: usize,
    k: usize,
    v: usize,
    mask: Option<usize>,
    bias: Option<(usize, Vec<usize>)>,
    scale: f32,
    masked_value: f32,
    n_heads: usize,
    batch: usize,
    /// Queries and keys of a sequence.
    seq: [usize; 2],
    /// Features of a head in queries and keys, and in values.
    d: [usize; 2],
    shapes: [PanelShape; 4],
    /// Contexts of each (sequence, head).
    contexts: Parts,
    /// Features of each head in each panel of the output.
    outputs: Parts,
    product: Option<Kernel>,
    softmax: Option<Kernel>,
}

/// Where things lie in the memory of a thread, in elements.
struct Memory {
    keys: Range<usize>,
    values: Range<usize>,
    queries: Range<usize>,
    scores: Range<usize>,
    context: Range<usize>,
    mask: Range<usize>,
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
        let shapes = [q, k, v, out].map(|v| sizes.panels(v));
        let d = [shapes[0].features / n_heads, shapes[2].features / n_heads];
        let context = d[1] * seq_q.next_multiple_of(QUERIES);
        let per_thread = Memory::new(seq_k, d).mask.end * sizes.shared.pool.threads();
        let needed = (context * batch * n_heads)
            .saturating_add(per_thread)
            .saturating_mul(4);
        let limit = sizes.shared.options.max_arena_bytes;
        if needed as u64 > limit {
            return Err(format!(
                "needs {needed} bytes of scratch memory, the limit is {limit}"
            ));
        }
        let mut outputs = Vec::with_capacity(shapes[3].n_panels() * n_heads);
        for p in 0..shapes[3].n_panels() {
            outputs.extend((0..n_heads).map(|h| shapes[3].rows(p, h * d[1]..(h + 1) * d[1])));
        }
        Ok(Attention {
            q,
            k,
            v,
            mask,
            bias,
            scale,
            masked_value,
            n_heads,
            batch,
            seq: [seq_q, seq_k],
            d,
            shapes,
            contexts: Parts::new(
                (0..batch * n_heads)
                    .map(|i| i * context..(i + 1) * context)
                    .collect(),
            ),
            outputs: Parts::new(outputs),
            product: sizes.kernel(KernelSpec::AttentionProduct),
            softmax: sizes.kernel(KernelSpec::AttentionSoftmax),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.product.as_ref().map(|k| Arc::clone(k.name()))
    }

    pub(super) fn flops(&self) -> u64 {
        2 * (self.batch * self.n_heads * self.seq[0] * self.seq[1] * (self.d[0] + self.d[1])) as u64
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let memory = Memory::new(self.seq[1], self.d);
        let context_len = self.d[1] * self.seq[0].next_multiple_of(QUERIES);
        let contexts = &mut *workers.between;
        let n_contexts = self.batch * self.n_heads * context_len;
        if contexts.len() < n_contexts {
            contexts.resize(n_contexts, 0.0);
        }
        let per_thread = workers.scratch;
        workers
            .team
            .for_each_part(&self.contexts, contexts, |task, thread, context| {
                let (item, head) = (task / self.n_heads, task % self.n_heads);
                let mut floats = scratch(per_thread, thread, memory.mask.end);
                self.head(reads, [item, head], &memory, &mut floats, context);
            })?;
        let contexts = &contexts[..n_contexts];
        let (seq_q, seq_padded) = (self.seq[0], self.seq[0].next_multiple_of(QUERIES));
        let shape = &self.shapes[3];
        workers
            .team
            .for_each_part(&self.outputs, out, |task, _, y| {
                let (p, head) = (task / self.n_heads, task % self.n_heads);
                let (first, stride) = (p * shape.width, shape.stride(p));
                let mut lane = 0;
                while lane < shape.tokens_in(p) {
                    let (item, query) = ((first + lane) / seq_q, (first + lane) % seq_q);
                    let len = (shape.tokens_in(p) - lane).min(seq_q - query);
                    let context =
                        &contexts[(item * self.n_heads + head) * context_len..][..context_len];
                    for (y, c) in y
                        .chunks_exact_mut(stride)
                        .zip(context.chunks_exact(seq_padded))
                    {
                        y[lane..lane + len].copy_from_slice(&c[query..query + len]);
                    }
                    lane += len;
                }
            })?;
        Ok(())
    }

    /// The contexts of one sequence and head.
    fn head(
        &self,
        reads: &Reads<'_>,
        [item, head]: [usize; 2],
        memory: &Memory,
        floats: &mut [f32],
        context: &mut [f32],
    ) {
        let ([seq_q, seq_k], [d, dv]) = (self.seq, self.d);
        if seq_q == 0 || dv == 0 {
            return;
        }
        if seq_k == 0 {
            context.fill(0.0);
            return;
        }
        let (keys_stride, values_stride) = (memory.keys_stride(d), memory.values_stride(dv));
        let tokens = item * seq_k..(item + 1) * seq_k;
        gather(
            reads.panels(self.k),
            &self.shapes[1],
            tokens.clone(),
            head * d..(head + 1) * d,
            &mut floats[memory.keys.clone()],
            keys_stride,
        );
        gather(
            reads.panels(self.v),
            &self.shapes[2],
            tokens,
            head * dv..(head + 1) * dv,
            &mut floats[memory.values.clone()],
            values_stride,
        );
        self.fill_mask(reads, item, &mut floats[memory.mask.clone()]);
        let q = reads.panels(self.q);
        for first in (0..seq_q).step_by(QUERIES) {
            let n = QUERIES.min(seq_q - first);
            let (operands, tile) = floats.split_at_mut(memory.queries.start);
            let (queries, tile) = tile.split_at_mut(memory.queries.len());
            let (scores, tile) = tile.split_at_mut(memory.scores.len());
            let (result, mask) = tile.split_at_mut(memory.context.len());
            if n < QUERIES {
                queries.fill(0.0);
            }
            let tokens = item * seq_q + first..item * seq_q + first + n;
            gather(
                q,
                &self.shapes[0],
                tokens,
                head * d..(head + 1) * d,
                queries,
                QUERIES,
            );
            let keys = &operands[memory.keys.clone()];
            self.product(
                Strided {
                    a: keys,
                    row: 1,
                    step: keys_stride,
                    n: seq_k,
                },
                queries,
                d,
                scores,
            );
            let scale = self.add_bias(reads, [item, head, first, n], scores);
            let mut sums = [0.0; QUERIES];
            match &self.softmax {
                Some(kernel) => kernel.attention_softmax(
                    &mut scores[..seq_k * QUERIES],
                    &mask[..seq_k],
                    scale,
                    &mut sums,
                ),
                None => softmax(
                    &mut scores[..seq_k * QUERIES],
                    &mask[..seq_k],
                    scale,
                    &mut sums,
                ),
            }
            let values = &operands[memory.values.clone()];
            self.product(
                Strided {
                    a: values,
                    row: values_stride,
                    step: 1,
                    n: dv,
                },
                scores,
                seq_k,
                result,
            );
            let seq_padded = seq_q.next_multiple_of(QUERIES);
            for (row, c) in result.chunks_exact(QUERIES).take(dv).enumerate() {
                let out = &mut context[row * seq_padded + first..][..QUERIES];
                for ((out, c), sum) in out.iter_mut().zip(c).zip(&sums) {
                    *out = c * sum;
                }
            }
        }
    }

    /// What is added to the score of each key.
    fn fill_mask(&self, reads: &Reads<'_>, item: usize, out: &mut [f32]) {
        let n = self.seq[1];
        let Some(mask) = self.mask else {
            out[..n].fill(0.0);
            return;
        };
        let seen = |mask: TensorView<'_>, i: usize| match mask.data() {
            DataView::Bool(v) => v[i],
            data => with_elements!(data, v => v[i] != Default::default()),
        };
        let mask = reads.view(mask);
        for (key, out) in out[..n].iter_mut().enumerate() {
            *out = if seen(mask, item * n + key) {
                0.0
            } else {
                self.masked_value
            };
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
        for (key, scores) in scores
            .chunks_exact_mut(QUERIES)
            .take(self.seq[1])
            .enumerate()
        {
            for (query, score) in scores[..n].iter_mut().enumerate() {
                *score = *score * self.scale + bias[start + query * strides[2] + key * strides[3]];
            }
            scores[n..].iter_mut().for_each(|s| *s *= self.scale);
        }
        1.0
    }

    /// `c[i][t] = sum_j a(i, j) b[j][t]` for `n` rows i, `k` steps j and the queries t of a tile.
    fn product(&self, a: Strided<'_>, b: &[f32], k: usize, c: &mut [f32]) {
        if let Some(kernel) = &self.product {
            kernel.attention_product(a.a, [a.row, a.step], b, k, a.n, c);
            return;
        }
        for (i, c) in c.chunks_exact_mut(QUERIES).take(a.n).enumerate() {
            let mut sums = [0.0f32; QUERIES];
            for (j, b) in b.chunks_exact(QUERIES).take(k).enumerate() {
                let a = a.a[i * a.row + j * a.step];
                sums.iter_mut().zip(b).for_each(|(s, b)| *s += a * b);
            }
            c.copy_from_slice(&sums);
        }
    }
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
        let padded = rows(seq_k).next_multiple_of(QUERIES);
        Memory {
            keys: take(d * padded),
            values: take(rows(dv) * (padded + QUERIES)),
            queries: take(d * QUERIES),
            scores: take(rows(seq_k) * QUERIES),
            context: take(rows(dv) * QUERIES),
            mask: take(seq_k),
        }
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
