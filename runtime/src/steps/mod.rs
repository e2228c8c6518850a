//! What the kinds of steps do, one file per kind.
//!
//! A step is bound once for the sizes of a request: it looks up its kernels, checks sizes against each other and divides
//! its work into tasks, each of which writes a part of the result of its own. Running it then allocates nothing. Every
//! kind has a portable form beside its kernels, for CPUs without them and for comparison.

mod activation;
mod assemble;
mod attention;
mod convert;
pub(crate) mod elementwise;
mod embedding_lookup;
mod integer_linear;
mod interpret;
pub(crate) mod linear;
mod matmul;
mod norm;
mod quantize;
pub(crate) mod range;
mod reduce;
pub(crate) mod sizes;
mod softmax;
mod strided;
mod vertical;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lancet_artifact::{KernelSpec, Layout, StepKind};
use lancet_ops::DType;

use crate::bind::Binding;
use crate::jit::Kernel;
use crate::model::Shared;
use crate::panels::PanelShape;
use crate::pool::{TaskPanicked, Team};
use crate::session::Reads;

/// A step over panels, bound to sizes.
pub(crate) enum Bound {
    ToPanels(convert::ToPanels),
    FromPanels(convert::FromPanels),
    EmbeddingLookup(embedding_lookup::EmbeddingLookup),
    Norm(norm::Norm),
    Linear(linear::Linear),
    IntegerLinear(Box<integer_linear::IntegerLinear>),
    Vertical(vertical::Elementwise),
    Range(range::Range),
    Attention(Box<attention::Attention>),
    Elementwise(elementwise::Elementwise),
    MatMul(matmul::MatMul),
    Quantize(quantize::Quantize),
    Softmax(softmax::Softmax),
    Reduce(reduce::Reduce),
    Strided(strided::Strided),
    Assemble(assemble::Assemble),
}

/// Why a step stopped.
pub(crate) enum Failure {
    Message(String),
    Panicked,
}

impl From<TaskPanicked> for Failure {
    fn from(_: TaskPanicked) -> Failure {
        Failure::Panicked
    }
}

/// What a step is bound with.
pub(crate) struct Sizes<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) binding: &'a Binding,
    pub(crate) step: usize,
    /// Where the kernels that steps ask for are noted, while they are not emitted yet.
    pub(crate) wanted: Option<&'a RefCell<Vec<KernelSpec>>>,
}

/// What a step runs with beside its operands.
pub(crate) struct Workers<'a, 'p> {
    pub(crate) team: &'a mut Team<'p>,
    /// Memory of each thread.
    pub(crate) scratch: &'a [Mutex<Vec<f32>>],
    /// Memory that a step may use between its loops.
    pub(crate) between: &'a mut Vec<f32>,
}

impl Sizes<'_> {
    /// Operand `i` as a value.
    fn input(&self, i: usize) -> Option<usize> {
        let step = &self.shared.program.plan.steps[self.step];
        step.inputs.get(i).copied().flatten().map(|v| v as usize)
    }

    /// Operand `i`, which the check of the step found to be there.
    fn required(&self, i: usize) -> usize {
        self.input(i).expect("checked when the plan was loaded")
    }

    fn n_inputs(&self) -> usize {
        self.shared.program.plan.steps[self.step].inputs.len()
    }

    fn output(&self) -> usize {
        self.shared.program.plan.steps[self.step].outputs[0] as usize
    }

    fn second_output(&self) -> Option<usize> {
        let outputs = &self.shared.program.plan.steps[self.step].outputs;
        outputs.get(1).map(|&v| v as usize)
    }

    fn shape(&self, v: usize) -> &[usize] {
        &self.binding.shapes[v]
    }

    fn dtype(&self, v: usize) -> DType {
        self.shared.program.values[v].dtype
    }

    fn is_in_panels(&self, v: usize) -> bool {
        self.shared.program.values[v].layout == Layout::Panels
    }

    /// Features of a value in panels.
    fn features(&self, v: usize) -> usize {
        self.shared.program.values[v].features
    }

    fn panels(&self, v: usize) -> PanelShape {
        self.binding.panels(&self.shared.program, v)
    }

    /// The panels of the output and of operand `i`, which must have the same tokens.
    fn panels_like_output(&self, i: usize) -> Result<PanelShape, String> {
        let (x, y) = (self.panels(self.required(i)), self.panels(self.output()));
        if x.tokens != y.tokens {
            return Err(format!(
                "operand {i} has {} tokens, the output {}",
                x.tokens, y.tokens
            ));
        }
        Ok(x)
    }

    /// Kernels for the panels of `shape`.
    fn kernels(&self, shape: PanelShape, spec: impl Fn(u32, u32) -> KernelSpec) -> PanelKernels {
        let n = shape.n_panels();
        let kernel = |p: usize| {
            let spec = spec(shape.stride(p) as u32, shape.lanes(p) as u32);
            self.kernel(spec)
        };
        PanelKernels {
            full: if n > 1 { kernel(0) } else { None },
            last: if n > 0 { kernel(n - 1) } else { None },
            n_panels: n,
        }
    }

    fn kernel(&self, spec: KernelSpec) -> Option<Kernel> {
        if let Some(wanted) = self.wanted {
            wanted.borrow_mut().push(spec);
            return None;
        }
        self.shared.kernels.get(&spec)
    }
}

/// The kernel of each panel: all but the last have the same sizes.
#[derive(Default)]
pub(crate) struct PanelKernels {
    full: Option<Kernel>,
    last: Option<Kernel>,
    n_panels: usize,
}

impl PanelKernels {
    /// The kernel of panel `p`, if there is one.
    fn get(&self, p: usize) -> Option<&Kernel> {
        if p + 1 == self.n_panels {
            self.last.as_ref()
        } else {
            self.full.as_ref()
        }
    }

    /// A name for traces.
    fn name(&self) -> Option<Arc<str>> {
        self.full
            .as_ref()
            .or(self.last.as_ref())
            .map(|k| Arc::clone(k.name()))
    }
}

/// The scratch memory of a thread, at least `len` elements.
fn scratch(scratch: &[Mutex<Vec<f32>>], thread: usize, len: usize) -> MutexGuard<'_, Vec<f32>> {
    let mut memory = scratch[thread]
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    memory
}

/// Emits the kernels that `steps` need, all at once, and binds them.
///
/// # Errors
/// The step and what is wrong with its sizes.
pub(crate) fn bind_all(
    shared: &Shared,
    binding: &Binding,
    steps: impl Iterator<Item = usize> + Clone,
    mut each: impl FnMut(usize, Bound),
) -> Result<(), (usize, String)> {
    let wanted = RefCell::new(Vec::new());
    let sizes = |step, wanted| Sizes {
        shared,
        binding,
        step,
        wanted,
    };
    for step in steps.clone() {
        bind(&sizes(step, Some(&wanted))).map_err(|m| (step, m))?;
    }
    shared.kernels.ensure(&wanted.borrow());
    for step in steps {
        each(step, bind(&sizes(step, None)).map_err(|m| (step, m))?);
    }
    Ok(())
}

/// Binds a step of a kind that works on panels.
fn bind(sizes: &Sizes<'_>) -> Result<Bound, String> {
    Ok(match &sizes.shared.program.plan.steps[sizes.step].kind {
        StepKind::ToPanels => Bound::ToPanels(convert::ToPanels::bind(sizes)?),
        StepKind::FromPanels => Bound::FromPanels(convert::FromPanels::bind(sizes)?),
        StepKind::EmbeddingLookup { quantization } => Bound::EmbeddingLookup(
            embedding_lookup::EmbeddingLookup::bind(sizes, quantization)?,
        ),
        StepKind::LayerNorm { epsilon } => {
            Bound::Norm(norm::Norm::bind(sizes, norm::Kind::Layer, *epsilon)?)
        }
        StepKind::RmsNorm { epsilon } => Bound::Norm(norm::Norm::bind(
            sizes,
            norm::Kind::RootMeanSquare,
            *epsilon,
        )?),
        StepKind::Linear { matrix, activation } => {
            Bound::Linear(linear::Linear::bind(sizes, *matrix as usize, *activation)?)
        }
        StepKind::Attention(parameters) => {
            let step = attention::Attention::bind(sizes, parameters)?;
            Bound::Attention(Box::new(step))
        }
        StepKind::GeneralizedAttention(parameters) => {
            let step = attention::Attention::bind_generalized(sizes, parameters)?;
            Bound::Attention(Box::new(step))
        }
        StepKind::PackedAttention(parameters) => {
            let step = attention::Attention::bind_packed(sizes, parameters)?;
            Bound::Attention(Box::new(step))
        }
        StepKind::IntegerLinear { matrix, tail } => {
            let tail = tail.as_ref();
            let step = integer_linear::IntegerLinear::bind(sizes, *matrix as usize, tail)?;
            Bound::IntegerLinear(Box::new(step))
        }
        StepKind::Vertical(v) => Bound::Vertical(vertical::Elementwise::bind(sizes, v)?),
        StepKind::Range => Bound::Range(range::Range::bind(sizes)?),
        StepKind::Elementwise { body } => {
            Bound::Elementwise(elementwise::Elementwise::bind(sizes, body)?)
        }
        StepKind::MatMul => Bound::MatMul(matmul::MatMul::bind(sizes)?),
        StepKind::Quantize => Bound::Quantize(quantize::Quantize::bind(sizes)?),
        StepKind::Softmax { axis } => {
            Bound::Softmax(softmax::Softmax::bind(sizes, *axis as usize)?)
        }
        StepKind::Reduce { reduction, axes } => {
            Bound::Reduce(reduce::Reduce::bind(sizes, *reduction, axes)?)
        }
        StepKind::Transpose { permutation } => {
            Bound::Strided(strided::Strided::bind_transpose(sizes, permutation)?)
        }
        StepKind::Slice { starts, steps } => {
            Bound::Strided(strided::Strided::bind_slice(sizes, starts, steps)?)
        }
        StepKind::Concat { axis } => {
            Bound::Assemble(assemble::Assemble::bind_concat(sizes, *axis as usize)?)
        }
        StepKind::Pad { before } => Bound::Assemble(assemble::Assemble::bind_pad(sizes, before)?),
        StepKind::Portable { .. }
        | StepKind::Dims(_)
        | StepKind::View
        | StepKind::Broadcast
        | StepKind::RangeScale
        | StepKind::RangeZeroPoint
        | StepKind::If { .. }
        | StepKind::Loop { .. } => {
            return Err("is no step over panels".to_owned());
        }
    })
}

impl Bound {
    /// Runs the step; every element of its results that belongs to a token is written.
    pub(crate) fn run(
        &self,
        reads: &Reads<'_>,
        [out, second]: [&mut [u8]; 2],
        workers: &mut Workers<'_, '_>,
    ) -> Result<(), Failure> {
        match self {
            Bound::Elementwise(step) => return step.run(reads, out, workers),
            Bound::Quantize(step) => return step.run(reads, out, workers),
            Bound::FromPanels(step) => return step.run(reads, out, workers),
            Bound::Reduce(step) => return step.run(reads, out, workers),
            Bound::Strided(step) => return step.run(reads, out, workers),
            Bound::Assemble(step) => return step.run(reads, out, workers),
            _ => {}
        }
        let dwords = |bytes| {
            bytemuck::try_cast_slice_mut(bytes).expect("buffers are aligned and steps write dwords")
        };
        let out = dwords(out);
        match self {
            Bound::ToPanels(step) => step.run(reads, out, workers),
            Bound::EmbeddingLookup(step) => step.run(reads, out, workers),
            Bound::Norm(step) => step.run(reads, out, workers),
            Bound::Linear(step) => step.run(reads, out, workers),
            Bound::IntegerLinear(step) => step.run(reads, out, workers),
            Bound::Vertical(step) => step.run(reads, out, workers),
            Bound::Range(step) => step.run(reads, out, workers),
            Bound::Attention(step) => step.run(reads, [out, dwords(second)], workers),
            Bound::FromPanels(_)
            | Bound::Elementwise(_)
            | Bound::Quantize(_)
            | Bound::Reduce(_)
            | Bound::Strided(_)
            | Bound::Assemble(_) => {
                unreachable!("ran above")
            }
            Bound::MatMul(step) => step.run(reads, out, workers),
            Bound::Softmax(step) => step.run(reads, out, workers),
        }
    }

    /// The name of the emitted kernel, or of the portable form.
    pub(crate) fn kernel_name(&self) -> Arc<str> {
        let (name, portable) = match self {
            Bound::ToPanels(_) => (None, "to_panels"),
            Bound::FromPanels(_) => (None, "from_panels"),
            Bound::EmbeddingLookup(step) => (step.kernel_name(), "portable_embedding_lookup"),
            Bound::Norm(step) => (step.kernel_name(), "portable_norm"),
            Bound::Linear(step) => (step.kernel_name(), "portable_linear"),
            Bound::IntegerLinear(step) => (step.kernel_name(), "portable_integer_linear"),
            Bound::Vertical(step) => (step.kernel_name(), "portable_vertical"),
            Bound::Range(_) => (None, "range"),
            Bound::Attention(step) => (step.kernel_name(), "portable_attention"),
            Bound::Elementwise(step) => (step.kernel_name(), "interpreted_elementwise"),
            Bound::MatMul(step) => (step.kernel_name(), "portable_matmul"),
            Bound::Quantize(_) => (None, "quantize"),
            Bound::Softmax(step) => (step.kernel_name(), "portable_softmax"),
            Bound::Reduce(step) => (step.kernel_name(), step.name()),
            Bound::Strided(_) => (None, "strided_copy"),
            Bound::Assemble(_) => (None, "copy_of_blocks"),
        };
        name.unwrap_or_else(|| portable.into())
    }

    /// Useful floating-point operations: two for each non-zero weight and token, and for each product in attention.
    pub(crate) fn flops(&self) -> u64 {
        match self {
            Bound::Linear(step) => step.flops(),
            Bound::IntegerLinear(step) => step.flops(),
            Bound::Attention(step) => step.flops(),
            Bound::MatMul(step) => step.flops(),
            Bound::ToPanels(_)
            | Bound::FromPanels(_)
            | Bound::EmbeddingLookup(_)
            | Bound::Norm(_)
            | Bound::Elementwise(_)
            | Bound::Vertical(_)
            | Bound::Range(_)
            | Bound::Quantize(_)
            | Bound::Softmax(_)
            | Bound::Reduce(_)
            | Bound::Strided(_)
            | Bound::Assemble(_) => 0,
        }
    }
}
