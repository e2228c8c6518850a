//! Model to artifact: import, passes, lowering.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use lancet_artifact::{Plan, Weights};
use lancet_ir::Graph;
use lancet_passes::{PASSES, PassManager, Pipeline, PipelineError, Report, Target};

use lancet_runtime::{Model, ModelOptions, RuntimeError};

use crate::lower::{LowerError, lower, lower_into};
use crate::onnx::{self, ImportErrors, ImportOptions};

/// How a model is compiled.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Passes in order, as pipeline text; see [`crate::pipeline`].
    pub pipeline: String,
    /// The machine that choices are made for. Any CPU runs the result.
    pub target: Target,
}

impl Default for CompileOptions {
    fn default() -> CompileOptions {
        CompileOptions {
            pipeline: crate::pipeline::DEFAULT.to_owned(),
            target: Target::default(),
        }
    }
}

/// Why a model could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The file cannot be read, is no valid model, or uses what is not supported.
    #[error(transparent)]
    Import(#[from] ImportErrors),
    /// The pipeline is wrong, or a pass failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// Nodes for which no step exists.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Lower(Vec<LowerError>),
    /// The artifact cannot be assembled or loaded.
    #[error(transparent)]
    Artifact(#[from] lancet_artifact::ArtifactError),
    /// The runtime does not accept the plan.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// A compiled model: the optimized graph, ready to be lowered.
#[derive(Debug)]
pub struct Compiled {
    pub graph: Graph,
    /// What each pass did, and every remark.
    pub report: Report,
}

impl Compiled {
    /// The plan and the weights section, which borrows the graph's constants.
    ///
    /// # Errors
    /// [`CompileError::Lower`] with every node for which no step exists.
    pub fn lower(&self) -> Result<(Plan, Weights<'_>), CompileError> {
        lower(&self.graph).map_err(CompileError::Lower)
    }

    /// Writes the artifact.
    ///
    /// # Errors
    /// As [`Compiled::lower`], and what `out` says.
    pub fn write(&self, out: &mut impl Write) -> Result<(), CompileError> {
        write_variants(&[("", self)], out)
    }

    /// Makes the model ready to run, without a file.
    ///
    /// # Errors
    /// As [`Compiled::lower`], and what the runtime says of the plan.
    pub fn into_model(self, options: &ModelOptions) -> Result<Model, CompileError> {
        let (plan, weights) = self.lower()?;
        Ok(Model::from_parts(plan, &weights, options)?)
    }
}

/// Writes an artifact of several variants, such as widths and depths of one model. What their weights have in common is
/// written once; the first is what runs when no variant is named.
///
/// # Errors
/// As [`Compiled::write`], and if two have one name.
pub fn write_variants(
    variants: &[(&str, &Compiled)],
    out: &mut impl Write,
) -> Result<(), CompileError> {
    let mut weights = Weights::new();
    let plans = (variants.iter())
        .map(|(name, v)| {
            let plan = lower_into(&v.graph, &mut weights).map_err(CompileError::Lower)?;
            Ok((*name, plan))
        })
        .collect::<Result<Vec<_>, CompileError>>()?;
    let plans: Vec<(&str, &Plan)> = plans.iter().map(|(name, plan)| (*name, plan)).collect();
    Ok(lancet_artifact::write(&plans, &weights, out)?)
}

/// Compiles an ONNX file.
///
/// # Errors
/// [`CompileError`] with everything that is wrong with the file, or every node that is not supported.
pub fn compile_file(path: &Path, options: &CompileOptions) -> Result<Compiled, CompileError> {
    let graph = onnx::import_file(path, &ImportOptions::default())?;
    compile(graph, options, &mut |_, _| {})
}

/// Compiles a graph. `after_pass` sees the graph after each pass.
///
/// # Errors
/// [`CompileError::Pipeline`].
pub fn compile(
    mut graph: Graph,
    options: &CompileOptions,
    after_pass: &mut dyn FnMut(&'static str, &Graph),
) -> Result<Compiled, CompileError> {
    let report = optimize(&mut graph, options, after_pass)?;
    Ok(Compiled { graph, report })
}

/// Runs the pipeline on a graph.
///
/// # Errors
/// [`PipelineError`] if the pipeline is wrong or a pass fails.
pub fn optimize(
    graph: &mut Graph,
    options: &CompileOptions,
    after_pass: &mut dyn FnMut(&'static str, &Graph),
) -> Result<Report, PipelineError> {
    let pipeline = Pipeline::parse(&options.pipeline, PASSES)?;
    let start = Instant::now();
    PassManager::new(options.target.clone())
        .with_clock(|| start.elapsed())
        .after_each_pass(after_pass)
        .run(&pipeline, graph)
}
