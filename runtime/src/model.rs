//! A loaded model: immutable, shared by sessions.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use lancet_artifact::{Plan, PlanError, Weights};
use lancet_ops::DType;

use crate::RuntimeError;
use crate::arena::Buffer;
use crate::jit::Matrix;
use crate::kernels::{KernelCache, Kernels};
use crate::mmap::Bytes;
use crate::pool::Pool;
use crate::program::Program;
use crate::steps::linear;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Number of threads, the caller's included. `None`: as many as the process may use, from the affinity mask and the
    /// cgroup's quota.
    pub threads: Option<usize>,
    /// Greatest working memory of one session in bytes.
    pub max_arena_bytes: u64,
    /// Most iterations of the loops of one request together; one that goes on beyond them is an error.
    pub max_iterations: u64,
    /// Whether steps run emitted kernels.
    pub kernels: Kernels,
    /// The variant of an artifact to run; `None` is the first.
    pub variant: Option<String>,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions {
            threads: None,
            max_arena_bytes: 16 << 30,
            max_iterations: 1 << 24,
            kernels: Kernels::default(),
            variant: None,
        }
    }
}

/// A model that is ready to run: plan, weights, kernels and threads. Cloning shares all of them.
#[derive(Clone)]
pub struct Model {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) program: Program,
    bytes: Arc<Bytes>,
    weights: Range<usize>,
    pub(crate) options: ModelOptions,
    pub(crate) pool: Arc<Pool>,
    pub(crate) kernels: Arc<KernelCache>,
    /// As `plan.matrices`.
    pub(crate) matrices: Vec<Matrix>,
    /// Matrices as row-major tensors, where a step without a kernel needs them.
    unpacked: Vec<OnceLock<Vec<f32>>>,
    /// For each step, the models of the plans that it runs.
    pub(crate) regions: Vec<Vec<Model>>,
    /// Zeros for absent biases, as many as any step needs.
    pub(crate) zeros: Vec<f32>,
}

impl Shared {
    /// The weights section.
    pub(crate) fn weights(&self) -> &[u8] {
        &self.bytes.as_slice()[self.weights.clone()]
    }

    /// Makes [`unpacked`](Shared::unpacked) ready for a matrix.
    pub(crate) fn unpack(&self, matrix: usize) -> Result<(), String> {
        if self.unpacked[matrix].get().is_none() {
            let w = linear::unpack(&self.matrices[matrix])?;
            // Another session may have been faster, with the same result.
            let _ = self.unpacked[matrix].set(w);
        }
        Ok(())
    }

    /// A matrix that was unpacked, row-major `[n, k]`.
    pub(crate) fn unpacked(&self, matrix: usize) -> &[f32] {
        self.unpacked[matrix].get().map_or(&[], Vec::as_slice)
    }
}

/// A named input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    pub name: String,
    pub dtype: DType,
    /// Sizes as text: numbers, symbols or formulas of them.
    pub shape: Vec<String>,
}

impl Model {
    /// Loads an artifact by mapping the file, with default options.
    ///
    /// The file must not be changed in place or truncated while the model or a clone lives; replacing it by renaming
    /// another over it is fine. Where that cannot be promised, use [`Model::from_bytes`].
    ///
    /// # Errors
    /// [`RuntimeError`] if the file cannot be read or is not an artifact that can be run. No file causes a panic.
    pub fn load(path: impl AsRef<Path>) -> Result<Model, RuntimeError> {
        Model::load_with(path, &ModelOptions::default())
    }

    /// As [`Model::load`], with options.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        path: impl AsRef<Path>,
        options: &ModelOptions,
    ) -> Result<Model, RuntimeError> {
        let path = path.as_ref();
        let bytes = Bytes::map(path).map_err(|source| RuntimeError::Io {
            path: path.display().to_string(),
            source,
        })?;
        Model::from_artifact(bytes, options)
    }

    /// Loads an artifact from memory; the bytes are copied.
    ///
    /// # Errors
    /// [`RuntimeError`] if the bytes are not an artifact that can be run. No bytes cause a panic.
    pub fn from_bytes(bytes: &[u8], options: &ModelOptions) -> Result<Model, RuntimeError> {
        Model::from_artifact(Bytes::Owned(copy(bytes)?), options)
    }

    /// Makes a model of a plan and its weights, without a file between.
    ///
    /// # Errors
    /// [`RuntimeError`] if the plan cannot be run with these weights.
    pub fn from_parts(
        plan: Plan,
        weights: &Weights<'_>,
        options: &ModelOptions,
    ) -> Result<Model, RuntimeError> {
        let bytes = copy(&weights.to_vec())?;
        let range = 0..bytes.len();
        Model::new(plan, Bytes::Owned(bytes), range, options)
    }

    fn from_artifact(bytes: Bytes, options: &ModelOptions) -> Result<Model, RuntimeError> {
        let (mut variants, weights) = lancet_artifact::read(bytes.as_slice())?;
        let chosen = match &options.variant {
            None => 0,
            Some(name) => (variants.iter().position(|v| v.0 == *name)).ok_or_else(|| {
                RuntimeError::UnknownVariant {
                    name: name.clone(),
                    known: crate::session::quoted(variants.iter().map(|v| v.0.as_str())),
                }
            })?,
        };
        let (_, plan) = variants.swap_remove(chosen);
        Model::new(plan, bytes, weights, options)
    }

    fn new(
        plan: Plan,
        bytes: Bytes,
        weights: Range<usize>,
        options: &ModelOptions,
    ) -> Result<Model, RuntimeError> {
        let bytes = Arc::new(bytes);
        if cfg!(target_endian = "big") {
            return Err(RuntimeError::Unsupported(
                "weights are little-endian and this machine is not",
            ));
        }
        let threads = options
            .threads
            .unwrap_or_else(crate::cpu::available_threads);
        let kernels = Arc::new(KernelCache::new(options.kernels));
        let pool = Arc::new(Pool::new(threads.max(1)));
        Model::of_plan(plan, (&bytes, weights), options, (&pool, &kernels))
    }

    /// A model of a plan, which shares threads and kernels with the plans around it.
    fn of_plan(
        plan: Plan,
        (bytes, weights): (&Arc<Bytes>, Range<usize>),
        options: &ModelOptions,
        (pool, kernels): (&Arc<Pool>, &Arc<KernelCache>),
    ) -> Result<Model, RuntimeError> {
        let program = Program::new(plan, &bytes.as_slice()[weights.clone()], kernels.features())?;
        let inside = |plan: &Plan| {
            let weights = (bytes, weights.clone());
            Model::of_plan(plan.clone(), weights, options, (pool, kernels))
        };
        let regions = (program.plan.steps.iter())
            .map(|step| step.kind.regions().into_iter().map(inside).collect())
            .collect::<Result<_, RuntimeError>>()?;
        let matrices = (program.plan.matrices.iter().enumerate())
            .map(|(i, desc)| {
                Matrix::new(bytes, weights.start, desc).map_err(|e| {
                    PlanError::new(format!("matrix {i} `{}`", desc.name), e.to_string())
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let n_zeros = program.values.iter().map(|v| v.features).max();
        Ok(Model {
            shared: Arc::new(Shared {
                program,
                bytes: Arc::clone(bytes),
                weights,
                options: options.clone(),
                pool: Arc::clone(pool),
                kernels: Arc::clone(kernels),
                regions,
                unpacked: matrices.iter().map(|_| OnceLock::new()).collect(),
                matrices,
                zeros: vec![0.0; n_zeros.unwrap_or(0)],
            }),
        })
    }

    /// What the model takes, in the order of the file that it came from.
    pub fn inputs(&self) -> Vec<PortInfo> {
        self.ports(&self.shared.program.plan.inputs)
    }

    /// What the model gives.
    pub fn outputs(&self) -> Vec<PortInfo> {
        self.ports(&self.shared.program.plan.outputs)
    }

    /// The plan that the model runs.
    pub fn plan(&self) -> &Plan {
        &self.shared.program.plan
    }

    /// Number of threads that a run uses, the caller's included.
    pub fn threads(&self) -> usize {
        self.shared.pool.threads()
    }

    /// Kernels emitted so far for the shapes of requests, and the time that emitting them took.
    pub fn emitted(&self) -> (usize, Duration) {
        self.shared.kernels.emitted()
    }

    /// A size of the plan as text.
    fn ports(&self, ports: &[lancet_artifact::Port]) -> Vec<PortInfo> {
        let program = &self.shared.program;
        ports
            .iter()
            .map(|p| PortInfo {
                name: p.name.clone(),
                dtype: program.values[p.value as usize].dtype,
                shape: program.plan.values[p.value as usize]
                    .shape
                    .iter()
                    .map(|d| program.plan.dim_text(d))
                    .collect(),
            })
            .collect()
    }
}

fn copy(bytes: &[u8]) -> Result<Buffer, RuntimeError> {
    Buffer::copy_of(bytes).ok_or(RuntimeError::OutOfMemory {
        bytes: bytes.len() as u64,
    })
}
