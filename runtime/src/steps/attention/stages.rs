//! Scores, weights and probabilities of a tile as functions of its products, in the stages of `GeneralizedAttention`.
//!
//! A tile is a panel of 16 lanes, one for each query, and a row for each key, so that the kernels for elementwise functions over
//! panels run on it. Other operands are written out for the tile as far as they differ in it. Bodies without a kernel are
//! interpreted, some keys at a time.

use lancet_artifact::{GeneralizedAttention, Reach};
use lancet_ops::elementwise::{Body, floats};
use lancet_ops::generalized::{OF_ROW, reads, stages};
use lancet_ops::{DType, DataView};

use crate::jit::{Kernel, MAX_OPERANDS, QUERIES};
use crate::session::Reads;
use crate::steps::Sizes;
use crate::steps::elementwise::spec;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::interpret::{BLOCK, Interpreter, register_mut};

pub(super) struct Stages {
    others: Vec<Other>,
    stages: Vec<Stage>,
    /// Elements that the registers of an interpreter take at most.
    n_registers: usize,
}

/// An operand beside queries, keys and values.
struct Other {
    value: usize,
    dtype: DType,
    /// Elements from one index of `[batch, heads, queries, keys]` to the next.
    strides: [usize; 4],
}

struct Stage {
    of_row: OfRow,
    kernel: Option<Kernel>,
    interpreter: Interpreter,
}

/// What the body takes for each query.
#[derive(Clone, Copy, PartialEq)]
enum OfRow {
    Nothing,
    Greatest,
    Sum,
}

impl Stages {
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        parameters: &GeneralizedAttention,
        shape: &[usize; 4],
    ) -> Result<Stages, String> {
        let mut others = Vec::new();
        for i in 3..sizes.n_inputs() {
            let value = sizes.required(i);
            let strides = broadcast_strides(sizes.shape(value), shape)?;
            others.push(Other {
                value,
                dtype: sizes.dtype(value),
                strides: strides.try_into().map_err(|_| "four dimensions")?,
            });
        }
        let dtypes: Vec<DType> = others.iter().map(|o| o.dtype).collect();
        let lines = parameters.stages.each_ref().map(Vec::as_slice);
        let bodies = stages(lines, &dtypes)?.into_iter().enumerate();
        let bodies = bodies.filter_map(|(i, body)| Some((i, body?)));
        let reach: Vec<Reach> = ([Reach::Panel, Reach::Lanes].into_iter())
            .chain(others.iter().map(Other::reach))
            .collect();
        let dtypes: Vec<DType> = ([DType::F32; 2].into_iter()).chain(dtypes).collect();
        let stage = |(i, body): (usize, Body)| {
            let wanted = floats(&body, &dtypes)
                .filter(|_| reach.len() <= MAX_OPERANDS)
                .map(|floats| spec(&body, &reach, floats)(QUERIES as u32, QUERIES as u32));
            Ok(Stage {
                of_row: match i {
                    1 if reads(&body, OF_ROW) => OfRow::Greatest,
                    2 if reads(&body, OF_ROW) => OfRow::Sum,
                    _ => OfRow::Nothing,
                },
                kernel: wanted.and_then(|spec| sizes.kernel(spec)),
                interpreter: Interpreter::new(&body, &dtypes)?,
            })
        };
        let stages: Vec<Stage> = bodies.map(stage).collect::<Result<_, String>>()?;
        let words = stages.iter().map(|s| s.interpreter.n_words()).max();
        Ok(Stages {
            others,
            stages,
            n_registers: words.map_or(0, |n| n * 2 + 2),
        })
    }

    /// Elements of memory for a tile of so many keys.
    pub(super) fn n_elements(&self, n_keys: usize) -> usize {
        let others = self.others.iter().map(|o| o.n_elements(n_keys));
        others.fold(self.n_registers, usize::saturating_add)
    }

    /// Makes the products of a tile probabilities, in place: those of the `n` queries from `first` on of a head of an item.
    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        at: [usize; 4],
        tile: &mut [f32],
        memory: &mut [f32],
    ) {
        let n_keys = tile.len() / QUERIES;
        let (registers, mut rest) = memory.split_at_mut(self.n_registers);
        let mut slices: [&[f32]; MAX_OPERANDS] = [&[]; MAX_OPERANDS];
        let places = slices.iter_mut().skip(2);
        for (slice, other) in places.zip(&self.others) {
            let (of_other, after) = rest.split_at_mut(other.n_elements(n_keys));
            other.fill(reads, at, of_other);
            (*slice, rest) = (of_other, after);
        }
        for stage in &self.stages {
            let row = match stage.of_row {
                OfRow::Nothing => [0.0; QUERIES],
                OfRow::Greatest => greatest(tile),
                OfRow::Sum => sums(tile),
            };
            match &stage.kernel {
                Some(kernel) => {
                    let mut operands = slices.map(bytemuck::cast_slice);
                    operands[1] = bytemuck::cast_slice(&row);
                    let operands = &operands[1..2 + self.others.len()];
                    kernel.elementwise_in_place(operands, bytemuck::cast_slice_mut(tile));
                }
                None => self.interpret(&stage.interpreter, &row, &slices[2..], registers, tile),
            }
        }
    }

    fn interpret(
        &self,
        interpreter: &Interpreter,
        row: &[f32; QUERIES],
        others: &[&[f32]],
        registers: &mut [f32],
        tile: &mut [f32],
    ) {
        const KEYS: usize = BLOCK / QUERIES;
        let (_, words, _) = bytemuck::pod_align_to_mut::<f32, u64>(registers);
        interpreter.load_numbers(words);
        for (block, tile) in tile.chunks_mut(BLOCK).enumerate() {
            let n = tile.len();
            let x: &mut [f32] = bytemuck::cast_slice_mut(register_mut(words, 0));
            x[..n].copy_from_slice(tile);
            let of_row: &mut [f32] = bytemuck::cast_slice_mut(register_mut(words, 1));
            for to in of_row[..n].chunks_exact_mut(QUERIES) {
                to.copy_from_slice(row);
            }
            for (i, (other, of_other)) in self.others.iter().zip(others).enumerate() {
                let at = |i: usize| match other.reach() {
                    Reach::Panel => of_other[block * BLOCK + i],
                    Reach::Rows => of_other[block * KEYS + i / QUERIES],
                    Reach::Lanes => of_other[i % QUERIES],
                    Reach::One => of_other[0],
                };
                let register = register_mut(words, 2 + i);
                if other.dtype == DType::Bool {
                    let to: &mut [u8] = bytemuck::cast_slice_mut(register);
                    (to[..n].iter_mut().enumerate())
                        .for_each(|(i, to)| *to = u8::from(at(i) != 0.0));
                } else {
                    let to: &mut [f32] = bytemuck::cast_slice_mut(register);
                    (to[..n].iter_mut().enumerate()).for_each(|(i, to)| *to = at(i));
                }
            }
            let result: &[f32] = bytemuck::cast_slice(interpreter.run(words, n));
            tile.copy_from_slice(&result[..n]);
        }
    }
}

impl Other {
    /// How the operand differs within a tile.
    fn reach(&self) -> Reach {
        match self.strides[2..] {
            [0, 0] => Reach::One,
            [0, _] => Reach::Rows,
            [_, 0] => Reach::Lanes,
            _ => Reach::Panel,
        }
    }

    /// Elements of a tile.
    fn n_elements(&self, n_keys: usize) -> usize {
        match self.reach() {
            Reach::One => 1,
            Reach::Rows => n_keys,
            Reach::Lanes => QUERIES,
            Reach::Panel => n_keys * QUERIES,
        }
    }

    /// Writes out what a tile reads; lanes beyond the last query have zero.
    fn fill(&self, reads: &Reads<'_>, at: [usize; 4], out: &mut [f32]) {
        match reads.view(self.value).data() {
            DataView::F32(x) => self.spread(x, at, out, |v| v),
            DataView::Bool(x) => self.spread(x, at, out, |v| f32::from(u8::from(v))),
            other => unreachable!("the check of the step lets no {} in", other.dtype()),
        }
    }

    fn spread<T: Copy>(
        &self,
        x: &[T],
        [item, head, first, n]: [usize; 4],
        out: &mut [f32],
        to_f32: impl Fn(T) -> f32,
    ) {
        let [of_item, of_head, of_query, of_key] = self.strides;
        let x = &x[item * of_item + head * of_head + first * of_query..];
        let (width, n) = match self.reach() {
            Reach::One | Reach::Rows => (1, 1),
            Reach::Lanes | Reach::Panel => (QUERIES, n),
        };
        for (key, out) in out.chunks_exact_mut(width).enumerate() {
            for (query, to) in out[..n].iter_mut().enumerate() {
                *to = to_f32(x[key * of_key + query * of_query]);
            }
            out[n..].fill(0.0);
        }
    }
}

/// The greatest number of each lane.
fn greatest(tile: &[f32]) -> [f32; QUERIES] {
    let mut found = [f32::NEG_INFINITY; QUERIES];
    for row in tile.chunks_exact(QUERIES) {
        for (max, &v) in found.iter_mut().zip(row) {
            *max = if max.is_nan() || v < *max { *max } else { v };
        }
    }
    found
}

/// The sum of each lane, in double precision and rounded once.
fn sums(tile: &[f32]) -> [f32; QUERIES] {
    let mut sums = [0.0f64; QUERIES];
    for row in tile.chunks_exact(QUERIES) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum += f64::from(v);
        }
    }
    sums.map(|sum| sum as f32)
}
