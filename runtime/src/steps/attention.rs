//! Attention: `softmax(scale q kᵀ + mask + bias) v` in each head of each sequence. Here is where sequences begin, what memory
//! they need, and who computes what; [`heads`] computes one head of one sequence.
//!
//! The first loop has a task for each (sequence, head). Where no panel holds tokens of two sequences, contexts go to the panels
//! of the output. Otherwise they go to memory between the loops, `[sequence][head][feature][query]`, and a second loop moves
//! them.
//!
//! Probabilities that something reads beside the values are a second result ([`shown`]), written by the task of a head as it goes
//! through its queries.
//!
//! Sequences are ranges of tokens. In a padded batch they are of one length, known when the step is bound; packed ones are
//! given as data.

mod heads;
mod shown;
mod stages;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lancet_artifact::{AttentionParameters, GeneralizedAttention, KernelSpec};
use lancet_ops::{AttentionRounding, Rounding, TensorView, place_of};

pub(super) use self::heads::softmax;
use self::shown::Shown;
use self::stages::Stages;
use crate::jit::{AttentionTile, KEYS, Kernel, QUERIES, ROWS};
use crate::panels::PanelShape;
use crate::pool::{Groups, Parts, Pieces};
use crate::session::Reads;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::{Failure, Sizes, Workers, scratch};

/// Elements of a cache line.
const LINE: usize = 16;

pub(crate) struct Attention {
    q: usize,
    k: usize,
    v: usize,
    mask: Option<usize>,
    bias: Option<(usize, Vec<usize>)>,
    /// A bias by distance, and its elements from one head to the next.
    relative: Option<(usize, usize)>,
    query_mask: Option<usize>,
    /// Numbers for each query, and for each key, one of which is taken by distance.
    positions: [Option<Positions>; 2],
    scale: f32,
    masked_value: f32,
    rounding: AttentionRounding,
    /// With more keys, products with values are summed in more than `f32`.
    exact_keys: u64,
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
    /// The second result, if there is one.
    shown: Option<Shown>,
    /// What makes probabilities of products, if that is not softmax.
    stages: Option<Stages>,
    /// All of a tile at once, where no bias comes in between.
    tile: Option<Kernel>,
    product: Option<Kernel>,
    softmax: Option<Kernel>,
    /// Operations of the last run, or of every run.
    flops: AtomicU64,
}

/// Rows of numbers, one for each head and token, and indices into a row by distance.
struct Positions {
    rows: usize,
    index: usize,
    /// Elements of a row.
    width: usize,
}

/// The sequences of a batch. Memory is used again from request to request.
#[derive(Default)]
struct Sequences {
    /// Query and key tokens of each.
    queries: Vec<Range<usize>>,
    keys: Vec<Range<usize>>,
    /// Whether no panel of the output holds tokens of two sequences.
    aligned: bool,
    /// The element of a row of positions, of queries and of keys, by distance.
    places: [Vec<usize>; 2],
    /// Whether `f32` has the sums of products with values.
    in_singles: bool,
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
    stages: Range<usize>,
}

impl Attention {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        parameters: &AttentionParameters,
    ) -> Result<Attention, String> {
        let n_heads = parameters.num_heads as usize;
        let [batch, seq_q, seq_k] = padded(sizes)?;
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
        let query_mask = sizes.input(6);
        if let Some(mask) = query_mask
            && sizes.shape(mask) != [batch, seq_q]
        {
            return Err(format!(
                "expected a mask of queries of shape [{batch}, {seq_q}], found {:?}",
                sizes.shape(mask)
            ));
        }
        let positions = |i: usize, n_rows: usize| {
            let (Some(rows), Some(index)) = (sizes.input(i), sizes.input(i + 1)) else {
                return Ok(None);
            };
            let (shape, of_index) = (sizes.shape(rows), sizes.shape(index));
            if shape[..3] != [batch, n_heads, n_rows] || of_index != [seq_q + seq_k] {
                return Err(format!(
                    "expected positions of shape [{batch}, {n_heads}, {n_rows}, _] and an index of [{}], found {shape:?} and \
                     {of_index:?}",
                    seq_q + seq_k
                ));
            }
            let width = shape[3];
            Ok(Some(Positions { rows, index, width }))
        };
        let positions = [positions(7, seq_q)?, positions(9, seq_k)?];
        let mut step = Attention::new(sizes, parameters, mask, None)?;
        step.of_length([batch, seq_q, seq_k])?;
        let by_pair = bias.is_some() || relative.is_some() || positions.iter().any(Option::is_some);
        if !by_pair && query_mask.is_none() {
            step.tile = sizes.kernel(step.tile_spec());
        } else {
            step.product = sizes.kernel(KernelSpec::AttentionProduct);
            if step.rounding.masked.is_none() {
                step.softmax = sizes.kernel(KernelSpec::AttentionSoftmax);
            }
        }
        step.shown = Shown::bind(
            sizes,
            [batch, n_heads, seq_q, seq_k],
            parameters.over_queries,
        )?;
        step.bias = bias;
        step.relative = relative;
        step.query_mask = query_mask;
        step.positions = positions;
        Ok(step)
    }

    /// Attention whose probabilities are made in stages.
    pub(super) fn bind_generalized(
        sizes: &Sizes<'_>,
        parameters: &GeneralizedAttention,
    ) -> Result<Attention, String> {
        let lengths @ [batch, seq_q, seq_k] = padded(sizes)?;
        let shape = [batch, parameters.num_heads as usize, seq_q, seq_k];
        let products = AttentionParameters {
            num_heads: parameters.num_heads,
            scale: 1.0,
            masked_value: f32::MIN,
            rounding: [None; 3],
            exact_keys: None,
            over_queries: parameters.over_queries,
        };
        let mut step = Attention::new(sizes, &products, None, None)?;
        step.stages = Some(Stages::bind(sizes, parameters, &shape)?);
        step.of_length(lengths)?;
        step.shown = Shown::bind(sizes, shape, parameters.over_queries)?;
        step.product = sizes.kernel(KernelSpec::AttentionProduct);
        Ok(step)
    }

    /// Attention of packed sequences.
    pub(super) fn bind_packed(
        sizes: &Sizes<'_>,
        parameters: &AttentionParameters,
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
        let mut step = Attention::new(sizes, parameters, mask, Some(starts))?;
        step.tile = sizes.kernel(step.tile_spec());
        Ok(step)
    }

    fn new(
        sizes: &Sizes<'_>,
        parameters: &AttentionParameters,
        mask: Option<usize>,
        starts: Option<(usize, Option<usize>)>,
    ) -> Result<Attention, String> {
        let [scores, masked, probabilities] = parameters.rounding.map(|numbers| {
            let rounding = |n| Rounding::new(n).ok_or_else(|| format!("{n:?} is no rounding"));
            numbers.map(rounding).transpose()
        });
        let rounding = AttentionRounding {
            scores: scores?,
            masked: masked?,
            probabilities: probabilities?,
        };
        let n_heads = parameters.num_heads as usize;
        let [q, k, v] = [0, 1, 2].map(|i| sizes.required(i));
        let shapes = [q, k, v, sizes.output()].map(|v| sizes.panels(v));
        let d = [shapes[0].features / n_heads, shapes[2].features / n_heads];
        let mut outputs = Vec::with_capacity(shapes[3].n_panels() * n_heads);
        for p in 0..shapes[3].n_panels() {
            outputs.extend((0..n_heads).map(|h| shapes[3].rows(p, h * d[1]..(h + 1) * d[1])));
        }
        Ok(Attention {
            q,
            k,
            v,
            mask,
            bias: None,
            relative: None,
            query_mask: None,
            positions: [None, None],
            scale: parameters.scale,
            masked_value: parameters.masked_value,
            rounding,
            exact_keys: parameters.exact_keys.unwrap_or(u64::MAX),
            n_heads,
            n_threads: sizes.shared.pool.threads(),
            limit_bytes: sizes.shared.options.max_arena_bytes,
            d,
            shapes,
            starts,
            sequences: Mutex::default(),
            outputs: Parts::new(outputs),
            shown: None,
            stages: None,
            tile: None,
            product: None,
            softmax: None,
            flops: AtomicU64::new(0),
        })
    }

    /// Takes a batch of sequences of one length.
    fn of_length(&mut self, [batch, seq_q, seq_k]: [usize; 3]) -> Result<(), String> {
        let of_length = |n: usize| (0..batch).map(|i| i * n..(i + 1) * n).collect();
        let mut sequences = Sequences {
            queries: of_length(seq_q),
            keys: of_length(seq_k),
            ..Sequences::default()
        };
        self.lay_out(&mut sequences)?;
        self.sequences = Mutex::new(sequences);
        Ok(())
    }

    fn tile_spec(&self) -> KernelSpec {
        let AttentionRounding {
            scores,
            masked,
            probabilities,
        } = self.rounding;
        KernelSpec::AttentionTile {
            rounds: [scores, masked, probabilities].map(|r| r.is_some()),
        }
    }

    /// Finds where the contexts of these queries and keys go, and what memory they need.
    fn lay_out(&self, sequences: &mut Sequences) -> Result<(), String> {
        let (queries, keys) = (&sequences.queries, &sequences.keys);
        let most_keys = keys.iter().map(Range::len).max().unwrap_or(0);
        let of_stages = self.stages.as_ref().map_or(0, |s| s.n_elements(most_keys));
        sequences.memory = Memory::new(most_keys, self.d, of_stages);
        sequences.in_singles = most_keys as u64 <= self.exact_keys;
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

    /// Takes the indices of positions as they are in this request.
    fn read_places(&self, places: &mut [Vec<usize>; 2], reads: &Reads<'_>) -> Result<(), String> {
        for (places, positions) in places.iter_mut().zip(&self.positions) {
            let Some(positions) = positions else { continue };
            let index = reads.view(positions.index);
            let index = index.as_slice::<i64>().unwrap_or(&[]);
            places.clear();
            // Element 0 is that of no pair.
            places.extend((!index.is_empty()).then_some(0));
            for &at in index.iter().skip(1) {
                let place = place_of(at, positions.width);
                places.push(place.ok_or_else(|| {
                    format!("index {at} is outside of {} positions", positions.width)
                })?);
            }
        }
        Ok(())
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
        [out, second]: [&mut [f32]; 2],
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
        if self.shapes[0].tokens != 0 && self.shapes[1].tokens != 0 {
            self.read_places(&mut sequences.places, reads)
                .map_err(Failure::Message)?;
        }
        let sequences = &*sequences;
        let per_thread = workers.scratch;
        let no_parts = Parts::default();
        let shown_parts = self.shown.as_ref().map_or(&no_parts, Shown::parts);
        if let Some(shown) = &self.shown {
            shown.begin(second);
        }
        let head =
            |task: usize, thread: usize, mut contexts: Pieces<'_, f32>, of_head: &mut [f32]| {
                let of @ [item, _] = [task / self.n_heads, task % self.n_heads];
                if sequences.queries[item].is_empty() || self.d[1] == 0 {
                    return;
                }
                if sequences.keys[item].is_empty() {
                    (0..contexts.len()).for_each(|i| contexts.piece(i).fill(0.0));
                    return;
                }
                let mut floats = scratch(per_thread, thread, sequences.memory.len());
                let start = floats.as_ptr().align_offset(64).min(LINE);
                let floats = &mut floats[start..];
                let mut results = (&mut contexts, &mut *of_head);
                match &self.tile {
                    Some(kernel) if sequences.in_singles => {
                        self.head_by_kernel(kernel, reads, sequences, of, floats, &mut results)
                    }
                    _ => self.head(reads, sequences, of, floats, &mut results),
                }
                if let Some(shown) = &self.shown {
                    shown.finish(of_head);
                }
            };
        let shown = (shown_parts, second);
        if sequences.aligned {
            workers
                .team
                .for_each_group((&sequences.contexts, out), shown, head)?;
            return Ok(());
        }
        let contexts = &mut *workers.between;
        if contexts.len() < sequences.n_between {
            contexts.resize(sequences.n_between, 0.0);
        }
        (workers.team).for_each_group((&sequences.contexts, contexts), shown, head)?;
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
}

/// Sequences, queries and keys of a padded batch.
fn padded(sizes: &Sizes<'_>) -> Result<[usize; 3], String> {
    let [q, k, v] = [0, 1, 2].map(|i| sizes.shape(sizes.required(i)));
    let out = sizes.shape(sizes.output());
    if k[..2] != v[..2] || q[0] != k[0] || out[..2] != q[..2] {
        return Err(format!("shapes {q:?}, {k:?}, {v:?} and {out:?} do not fit"));
    }
    Ok([q[0], q[1], k[1]])
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
impl Memory {
    /// For `seq_k` keys, heads of `d` features in queries and keys and `dv` in values, and so much for stages.
    fn new(seq_k: usize, [d, dv]: [usize; 2], of_stages: usize) -> Memory {
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
            stages: take(of_stages),
        }
    }

    /// Elements, with what may be lost to begin at a cache line.
    fn len(&self) -> usize {
        self.stages.end + LINE
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
