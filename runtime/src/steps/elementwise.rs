//! Functions of each element: operands broadcast to the output, row-major or in token panels.
//!
//! A kernel takes panels: rows of lanes. A row-major tensor is one long row of elements, cut into rows of [`LANES`]; an operand
//! that repeats itself in another way than a kernel knows is written out first, a block at a time. Bodies that have no kernel
//! are interpreted.

use std::sync::Arc;

use lancet_artifact::{Float, KernelSpec, Layout, Reach};
use lancet_ops::elementwise::{Body, floats};
use lancet_ops::{DType, DataView, TensorView};

use crate::jit::{Kernel, MAX_OPERANDS};
use crate::panels::PanelShape;
use crate::pool::Parts;
use crate::session::Reads;
use crate::steps::embedding_lookup::broadcast_strides;
use crate::steps::interpret::{BLOCK, Interpreter, register_mut};
use crate::steps::{Failure, PanelKernels, Sizes, Workers, scratch};

/// Elements of a row of a row-major tensor.
const LANES: usize = 32;

/// Elements that are written out at once.
const STAGED: usize = 1024;

/// Elements of a task at least.
const TASK: usize = 4096;

pub(crate) struct Elementwise {
    operands: Vec<Operand>,
    form: Form,
    parts: Parts,
    interpreter: Interpreter,
}

struct Operand {
    value: usize,
    dtype: DType,
    /// What a kernel takes it as.
    float: DType,
    source: Source,
}

/// Where an element of an operand is.
enum Source {
    /// Where that of the output is.
    Same,
    /// Everywhere the same one.
    One,
    /// Row-major: elements from one index of each output dimension to the next.
    Strided(Vec<usize>),
    /// Of panels: one for each feature.
    Features,
    /// Of panels: one for each token.
    Tokens(PanelShape),
}

enum Form {
    RowMajor {
        shape: Vec<usize>,
        /// Bytes of an element of the output.
        size: usize,
        kernel: Option<Kernel>,
    },
    Panels {
        shape: PanelShape,
        kernels: PanelKernels,
    },
}

/// The kernel of a body for panels and lanes: operands and result as [`floats`] has them.
pub(super) fn spec(
    body: &Body,
    reach: &[Reach],
    (operands, result): (Vec<DType>, DType),
) -> impl Fn(u32, u32) -> KernelSpec {
    let float = |&d: &DType| match d {
        DType::F64 => Float::F64,
        _ => Float::F32,
    };
    let body = body.lines().join("; ");
    let operands = reach.iter().copied().zip(operands.iter().map(float));
    let operands: Vec<(Reach, Float)> = operands.collect();
    let result = float(&result);
    move |panel, lanes| KernelSpec::Elementwise {
        body: body.clone(),
        operands: operands.clone(),
        result,
        panel,
        lanes,
    }
}

impl Elementwise {
    pub(super) fn bind(sizes: &Sizes<'_>, body: &[String]) -> Result<Elementwise, String> {
        let body = Body::parse(body)?;
        let values = &sizes.shared.program.values;
        let out = sizes.output();
        let dtypes: Vec<DType> = (0..sizes.n_inputs())
            .map(|i| values[sizes.required(i)].dtype)
            .collect();
        let interpreter = Interpreter::new(&body, &dtypes)?;
        let in_panels = values[out].layout == Layout::Panels;
        let source = |v: usize| {
            if sizes.shape(v).iter().product::<usize>() == 1 && values[v].layout == Layout::RowMajor
            {
                return Ok(Source::One);
            }
            if !in_panels {
                if sizes.shape(v) == sizes.shape(out) {
                    return Ok(Source::Same);
                }
                return Ok(Source::Strided(broadcast_strides(
                    sizes.shape(v),
                    sizes.shape(out),
                )?));
            }
            let (x, y) = (sizes.panels(v), sizes.panels(out));
            if values[v].layout == Layout::RowMajor {
                return Ok(Source::Features);
            }
            if x.tokens != y.tokens {
                return Err(format!(
                    "an operand has {} tokens, the output {}",
                    x.tokens, y.tokens
                ));
            }
            let same = x.features == y.features;
            Ok(if same {
                Source::Same
            } else {
                Source::Tokens(x)
            })
        };
        let floats = floats(&body, &dtypes);
        let operands: Vec<Operand> = (0..sizes.n_inputs())
            .map(|i| {
                let value = sizes.required(i);
                Ok(Operand {
                    value,
                    dtype: dtypes[i],
                    float: floats.as_ref().map_or(dtypes[i], |f| f.0[i]),
                    source: source(value)?,
                })
            })
            .collect::<Result<_, String>>()?;
        let reach: Vec<Reach> = operands.iter().map(|o| o.source.reach()).collect();
        let spec = floats.map(|floats| spec(&body, &reach, floats));
        let (form, parts) = if in_panels {
            let shape = sizes.panels(out);
            let kernels =
                spec.map_or_else(PanelKernels::default, |spec| sizes.kernels(shape, spec));
            let parts = (0..shape.n_panels()).map(|p| shape.panel(p));
            let parts = parts.map(|r| r.start * 4..r.end * 4).collect();
            (Form::Panels { shape, kernels }, parts)
        } else {
            let shape = sizes.shape(out).to_vec();
            let size = values[out].dtype.size_bytes();
            let kernel = spec.and_then(|spec| sizes.kernel(spec(LANES as u32, LANES as u32)));
            let n: usize = shape.iter().product();
            let task = (n / (4 * sizes.shared.pool.threads())).max(TASK);
            let task = task.next_multiple_of(STAGED);
            let part = |start: usize| start * size..n.min(start + task) * size;
            let parts = (0..n).step_by(task).map(part).collect();
            (
                Form::RowMajor {
                    shape,
                    size,
                    kernel,
                },
                parts,
            )
        };
        Ok(Elementwise {
            operands,
            form,
            parts: Parts::new(parts),
            interpreter,
        })
    }

    pub(super) fn kernel_name(&self) -> Option<Arc<str>> {
        match &self.form {
            Form::RowMajor { kernel, .. } => kernel.as_ref().map(|k| Arc::clone(k.name())),
            Form::Panels { kernels, .. } => kernels.name(),
        }
    }

    pub(super) fn run(
        &self,
        reads: &Reads<'_>,
        out: &mut [u8],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        let memory = workers.scratch;
        workers
            .team
            .for_each_part(&self.parts, out, |task, thread, y| match &self.form {
                Form::Panels { shape, kernels } => match kernels.get(task) {
                    Some(kernel) => self.panel(reads, shape, task, kernel, y),
                    None => {
                        let mut words = scratch(memory, thread, self.interpreter.n_words() * 2 + 2);
                        self.interpret_panel(reads, shape, task, &mut words, floats_mut(y));
                    }
                },
                Form::RowMajor {
                    shape,
                    size,
                    kernel,
                } => {
                    let first = self.parts.range(task).start / size;
                    match kernel {
                        Some(kernel) => {
                            let n = STAGED * 2 * (self.operands.len() + 1) + 2;
                            let mut staged = scratch(memory, thread, n);
                            let (_, staged, _) =
                                bytemuck::pod_align_to_mut::<f32, u64>(&mut staged);
                            self.row_major(reads, shape, (first, *size), kernel, staged, y);
                        }
                        None => {
                            let n = self.interpreter.n_words() * 2 + 2;
                            let mut words = scratch(memory, thread, n);
                            self.interpret(reads, shape, first, *size, &mut words, y);
                        }
                    }
                }
            })?;
        Ok(())
    }

    /// One panel, by a kernel.
    fn panel(
        &self,
        reads: &Reads<'_>,
        shape: &PanelShape,
        p: usize,
        kernel: &Kernel,
        y: &mut [u8],
    ) {
        let mut operands: [&[u8]; MAX_OPERANDS] = [&[]; MAX_OPERANDS];
        for (slice, operand) in operands.iter_mut().zip(&self.operands) {
            let panel = |shape: &PanelShape| &reads.panels(operand.value)[shape.panel(p)];
            *slice = match &operand.source {
                Source::Same => bytemuck::cast_slice(panel(shape)),
                Source::Tokens(tokens) => bytemuck::cast_slice(panel(tokens)),
                Source::One | Source::Features | Source::Strided(_) => reads.bytes(operand.value),
            };
        }
        kernel.elementwise(&operands[..self.operands.len()], y);
    }

    /// Elements from `first` on, each of `size` bytes, by a kernel.
    fn row_major(
        &self,
        reads: &Reads<'_>,
        shape: &[usize],
        (first, size): (usize, usize),
        kernel: &Kernel,
        staged: &mut [u64],
        y: &mut [u8],
    ) {
        let n_operands = self.operands.len();
        let (last, staged) = staged[..STAGED * (n_operands + 1)].split_at_mut(STAGED);
        for (block, y) in y.chunks_mut(STAGED * size).enumerate() {
            let start = first + block * STAGED;
            let n = y.len() / size;
            let rounded = n.next_multiple_of(LANES);
            let lies_ready = |operand: &Operand| {
                matches!(operand.source, Source::Same | Source::One)
                    && operand.dtype == operand.float
                    && n == rounded
            };
            for (operand, staged) in self.operands.iter().zip(staged.chunks_exact_mut(STAGED)) {
                if !lies_ready(operand) {
                    operand.stage(&reads.view(operand.value), shape, start, n, staged);
                }
            }
            let mut slices: [&[u8]; MAX_OPERANDS] = [&[]; MAX_OPERANDS];
            for ((slice, operand), staged) in
                (slices.iter_mut().zip(&self.operands)).zip(staged.chunks_exact(STAGED))
            {
                let size = operand.float.size_bytes();
                *slice = match operand.source {
                    Source::One if lies_ready(operand) => reads.bytes(operand.value),
                    _ if lies_ready(operand) => {
                        &reads.bytes(operand.value)[start * size..(start + n) * size]
                    }
                    _ => &bytemuck::cast_slice(staged)[..rounded * size],
                };
            }
            if n == rounded {
                kernel.elementwise(&slices[..n_operands], y);
            } else {
                let last: &mut [u8] = bytemuck::cast_slice_mut(last);
                kernel.elementwise(&slices[..n_operands], &mut last[..rounded * size]);
                y.copy_from_slice(&last[..n * size]);
            }
        }
    }

    /// Elements from `first` on, each of `size` bytes, without a kernel.
    fn interpret(
        &self,
        reads: &Reads<'_>,
        shape: &[usize],
        first: usize,
        size: usize,
        memory: &mut [f32],
        y: &mut [u8],
    ) {
        let (_, words, _) = bytemuck::pod_align_to_mut::<f32, u64>(memory);
        self.interpreter.load_numbers(words);
        for (block, y) in y.chunks_mut(BLOCK * size).enumerate() {
            let n = y.len() / size;
            for (i, operand) in self.operands.iter().enumerate() {
                let view = reads.view(operand.value);
                operand.load(
                    &view,
                    shape,
                    first + block * BLOCK,
                    n,
                    register_mut(words, i),
                );
            }
            y.copy_from_slice(&self.interpreter.run(words, n)[..n * size]);
        }
    }

    /// One panel without a kernel, some rows at a time.
    fn interpret_panel(
        &self,
        reads: &Reads<'_>,
        shape: &PanelShape,
        p: usize,
        memory: &mut [f32],
        y: &mut [f32],
    ) {
        let (_, words, _) = bytemuck::pod_align_to_mut::<f32, u64>(memory);
        self.interpreter.load_numbers(words);
        let stride = shape.stride(p);
        for (block, y) in y.chunks_mut(BLOCK).enumerate() {
            let first = block * BLOCK;
            for (i, operand) in self.operands.iter().enumerate() {
                let register = register_mut(words, i);
                if operand.dtype == DType::F64 {
                    let x = reads.view(operand.value);
                    let x: &[f64] = x.as_slice().expect("checked: floats");
                    let to = &mut bytemuck::cast_slice_mut(register)[..y.len()];
                    match &operand.source {
                        Source::Features => (to.chunks_exact_mut(stride))
                            .zip(&x[first / stride..])
                            .for_each(|(row, &x)| row.fill(x)),
                        _ => to.fill(x[0]),
                    }
                    continue;
                }
                let to: &mut [f32] = bytemuck::cast_slice_mut(register);
                let rows = to[..y.len()].chunks_exact_mut(stride);
                match &operand.source {
                    Source::Same => {
                        let x = &reads.panels(operand.value)[shape.panel(p)];
                        to[..y.len()].copy_from_slice(&x[first..first + y.len()]);
                    }
                    Source::Tokens(tokens) => {
                        let x = &reads.panels(operand.value)[tokens.panel(p)];
                        rows.for_each(|row| row.copy_from_slice(&x[..stride]));
                    }
                    Source::Features => {
                        let x = &reads.f32(operand.value)[first / stride..];
                        rows.zip(x).for_each(|(row, &x)| row.fill(x));
                    }
                    Source::One | Source::Strided(_) => {
                        to[..y.len()].fill(reads.f32(operand.value)[0]);
                    }
                }
            }
            let result: &[f32] = bytemuck::cast_slice(self.interpreter.run(words, y.len()));
            y.copy_from_slice(&result[..y.len()]);
        }
    }
}

fn floats_mut(bytes: &mut [u8]) -> &mut [f32] {
    bytemuck::cast_slice_mut(bytes)
}

impl Source {
    /// What a kernel takes the operand for.
    fn reach(&self) -> Reach {
        match self {
            Source::One => Reach::One,
            Source::Features => Reach::Rows,
            Source::Tokens(_) => Reach::Lanes,
            Source::Same | Source::Strided(_) => Reach::Panel,
        }
    }
}

impl Operand {
    /// Writes elements `start..start + n` of the operand, broadcast to `shape`, as the floats that a kernel takes.
    fn stage(
        &self,
        view: &TensorView<'_>,
        shape: &[usize],
        start: usize,
        n: usize,
        to: &mut [u64],
    ) {
        let is_wide = self.float == DType::F64;
        match view.data() {
            DataView::F32(x) => self.spread(x, shape, start, words(to, n), |v| v),
            DataView::F64(x) => self.spread(x, shape, start, words(to, n), |v| v),
            DataView::I64(x) if is_wide => {
                self.spread(x, shape, start, words(to, n), |v| v as f64);
            }
            DataView::I32(x) if is_wide => self.spread(x, shape, start, words(to, n), f64::from),
            DataView::I64(x) => self.spread(x, shape, start, words(to, n), |v| v as f32),
            DataView::I32(x) => self.spread(x, shape, start, words(to, n), |v| v as f32),
            DataView::Bool(x) => {
                self.spread(x, shape, start, words(to, n), |v| f32::from(u8::from(v)));
            }
            other => unreachable!("{} is staged by no kernel", other.dtype()),
        }
    }

    /// Writes elements `start..start + n` of the operand, broadcast to `shape`, into a register.
    fn load(
        &self,
        view: &TensorView<'_>,
        shape: &[usize],
        start: usize,
        n: usize,
        register: &mut [u64],
    ) {
        match view.data() {
            DataView::F32(x) => self.spread(x, shape, start, words(register, n), |v| v),
            DataView::F64(x) => self.spread(x, shape, start, words(register, n), |v| v),
            DataView::I64(x) => self.spread(x, shape, start, words(register, n), |v| v),
            DataView::I32(x) => self.spread(x, shape, start, words(register, n), |v| v),
            DataView::Bool(x) => self.spread(x, shape, start, words(register, n), u8::from),
            other => unreachable!("{} is in no register", other.dtype()),
        }
    }

    /// Elements `start..` of `x`, broadcast to `shape`, run by run along the last dimension.
    fn spread<A: Copy, B: Copy>(
        &self,
        x: &[A],
        shape: &[usize],
        start: usize,
        to: &mut [B],
        convert: impl Fn(A) -> B,
    ) {
        let strides = match &self.source {
            Source::Same | Source::Features | Source::Tokens(_) => {
                to.iter_mut()
                    .zip(&x[start..])
                    .for_each(|(y, &x)| *y = convert(x));
                return;
            }
            Source::One => {
                to.fill(convert(x[0]));
                return;
            }
            Source::Strided(strides) => strides,
        };
        let last = shape.last().copied().unwrap_or(1);
        let last_stride = strides.last().copied().unwrap_or(0);
        let (mut row, mut column, mut done) = (start / last, start % last, 0);
        while done < to.len() {
            let run = (last - column).min(to.len() - done);
            let (mut rest, mut at) = (row, column * last_stride);
            for d in (0..shape.len().saturating_sub(1)).rev() {
                at += rest % shape[d] * strides[d];
                rest /= shape[d];
            }
            let to = &mut to[done..done + run];
            if last_stride == 0 {
                to.fill(convert(x[at]));
            } else {
                to.iter_mut()
                    .zip(&x[at..])
                    .for_each(|(y, &x)| *y = convert(x));
            }
            done += run;
            (row, column) = (row + 1, 0);
        }
    }
}

/// The first `n` elements of a register.
fn words<T: bytemuck::Pod>(register: &mut [u64], n: usize) -> &mut [T] {
    &mut bytemuck::cast_slice_mut(register)[..n]
}
