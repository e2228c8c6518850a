//! Sums of rows of embedding tables, gathered straight into token panels. Rows of bytes become numbers on the way.

use std::sync::Arc;

use lancet_artifact::KernelSpec;
use lancet_codegen::kernels::embedding::MAX_TABLES;
use lancet_ops::{DType, DataView, TensorView};

use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::convert::transpose;
use crate::steps::{Failure, PanelKernels, Sizes, Workers, scratch};

/// `y[t] = sum_i table_i[ids_i[t]]`, ids broadcast to the tokens.
pub(crate) struct EmbeddingLookup {
    lookups: Vec<Lookup>,
    shape: PanelShape,
    /// Dimensions of the tokens.
    leading: Vec<usize>,
    parts: Parts,
    kernels: PanelKernels,
}

struct Lookup {
    ids: usize,
    table: usize,
    n_rows: usize,
    /// Scale and zero point, of a table of bytes.
    quantization: Option<(f32, f32)>,
    /// Elements of the ids from one index of each leading dimension to the next; 0 where they are repeated.
    strides: Vec<usize>,
}

impl EmbeddingLookup {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        quantization: &[(f32, i32)],
    ) -> Result<EmbeddingLookup, String> {
        let out = sizes.output();
        let shape = sizes.panels(out);
        let leading = sizes
            .shape(out)
            .split_last()
            .map_or(&[][..], |(_, rest)| rest)
            .to_vec();
        let lookups = (0..sizes.n_inputs())
            .step_by(2)
            .map(|i| {
                let (ids, table) = (sizes.required(i), sizes.required(i + 1));
                Ok(Lookup {
                    ids,
                    table,
                    n_rows: sizes.shape(table)[0],
                    quantization: (quantization.get(i / 2))
                        .filter(|_| sizes.dtype(table) != DType::F32)
                        .map(|&(scale, zero)| (scale, zero as f32)),
                    strides: broadcast_strides(sizes.shape(ids), &leading)?,
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        let tables = lookups.len() as u32;
        let kernels = if (1..=MAX_TABLES).contains(&tables) {
            sizes.kernels(shape, |panel, _| KernelSpec::EmbeddingSum { tables, panel })
        } else {
            PanelKernels::default()
        };
        Ok(EmbeddingLookup {
            kernels,
            lookups,
            shape,
            leading,
            parts: Parts::new((0..shape.n_panels()).map(|p| shape.panel(p)).collect()),
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        self.kernels.name()
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [f32],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        for (i, lookup) in self.lookups.iter().enumerate() {
            let ids = reads.view(lookup.ids);
            let bad = (0..ids.len())
                .map(|j| id(&ids, j))
                .find(|&id| lookup.row(id).is_none());
            if let Some(bad) = bad {
                return Err(Failure::Message(format!(
                    "embedding index {bad} of lookup {i} is outside a table of {} rows",
                    lookup.n_rows
                )));
            }
        }
        let k = self.shape.features;
        let memory = workers.scratch;
        let n_lookups = self.lookups.len();
        workers
            .team
            .for_each_part(&self.parts, out, |p, thread, panel| {
                let first = p * self.shape.width;
                let tokens = self.shape.tokens_in(p);
                if let Some(kernel) = self.kernels.get(p) {
                    let mut numbers = scratch(memory, thread, n_lookups * k);
                    for t in 0..tokens {
                        let mut rows: [&[f32]; MAX_TABLES as usize] = [&[]; MAX_TABLES as usize];
                        let mut free = &mut numbers[..];
                        for (row, lookup) in rows.iter_mut().zip(&self.lookups) {
                            let (memory, rest) = free.split_at_mut(k);
                            free = rest;
                            *row = lookup.read(reads, first + t, &self.leading, memory);
                        }
                        kernel.embedding_sum(&rows[..n_lookups], t, panel);
                    }
                    return;
                }
                let mut sums = scratch(memory, thread, (tokens + 1) * k);
                let (sums, numbers) = sums.split_at_mut(tokens * k);
                for (i, lookup) in self.lookups.iter().enumerate() {
                    for (t, sums) in sums.chunks_exact_mut(k.max(1)).enumerate() {
                        let row = lookup.read(reads, first + t, &self.leading, &mut numbers[..k]);
                        if i == 0 {
                            sums.copy_from_slice(row);
                        } else {
                            sums.iter_mut().zip(row).for_each(|(s, r)| *s += r);
                        }
                    }
                }
                transpose(sums, tokens, self.shape.stride(p), panel, |y, x| *y = x);
            })?;
        Ok(())
    }
}

impl Lookup {
    /// The row for token `t`: that of the table, or the numbers that its bytes stand for, in `memory`.
    fn read<'a>(
        &self,
        reads: &Reads<'a>,
        t: usize,
        leading: &[usize],
        memory: &'a mut [f32],
    ) -> &'a [f32] {
        let id = id(&reads.view(self.ids), self.position(t, leading));
        let k = memory.len();
        let at = self.row(id).expect("every index was checked before") * k;
        let Some((scale, zero)) = self.quantization else {
            return &reads.f32(self.table)[at..at + k];
        };
        match reads.view(self.table).data() {
            DataView::U8(q) => dequantize(&q[at..at + k], scale, zero, memory),
            DataView::I8(q) => dequantize(&q[at..at + k], scale, zero, memory),
            _ => unreachable!("the check of the step lets only bytes have a scale"),
        }
        memory
    }

    /// The row of an id; negative ones count from the end.
    fn row(&self, id: i64) -> Option<usize> {
        let n = i64::try_from(self.n_rows).ok()?;
        let row = if id < 0 { id + n } else { id };
        usize::try_from(row).ok().filter(|&r| r < self.n_rows)
    }

    /// Where the ids have the one of token `t`.
    fn position(&self, t: usize, leading: &[usize]) -> usize {
        let (mut rest, mut at) = (t, 0);
        for (&size, &stride) in leading.iter().zip(&self.strides).rev() {
            at += rest % size * stride;
            rest /= size;
        }
        at
    }
}

fn dequantize<T: Copy + Into<f32>>(q: &[T], scale: f32, zero: f32, numbers: &mut [f32]) {
    for (number, &q) in numbers.iter_mut().zip(q) {
        *number = (q.into() - zero) * scale;
    }
}

fn id(ids: &TensorView<'_>, i: usize) -> i64 {
    match ids.data() {
        DataView::I64(v) => v[i],
        DataView::I32(v) => i64::from(v[i]),
        _ => unreachable!("the check of the step lets only i32 and i64 in"),
    }
}

/// Elements from one index of each dimension of `to` to the next in a tensor of shape `from`, 0 where it is repeated.
pub(super) fn broadcast_strides(from: &[usize], to: &[usize]) -> Result<Vec<usize>, String> {
    let leading = to.len().checked_sub(from.len());
    let fits = leading.is_some_and(|leading| {
        from.iter()
            .zip(&to[leading..])
            .all(|(&f, &t)| f == t || f == 1)
    });
    if !fits {
        return Err(format!("cannot broadcast shape {from:?} to {to:?}"));
    }
    let mut strides = vec![0; to.len()];
    let mut stride = 1;
    for (i, &size) in from.iter().enumerate().rev() {
        if size != 1 {
            strides[to.len() - from.len() + i] = stride;
        }
        stride *= size;
    }
    Ok(strides)
}
