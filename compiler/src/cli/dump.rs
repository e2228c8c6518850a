//! `lancet dump`: a model at one stage, as text on stdout.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lancet::onnx::{self, ImportOptions};
use lancet::{CompileOptions, Model, ModelOptions};

use lancet_artifact::{
    Activation, Float, KernelSpec, Layout, Plan, Reach, Step, StepKind, ValueDesc,
};
use lancet_codegen::{CpuFeatures, Isa};
use lancet_ops::DType;
use lancet_ops::elementwise::{Body, floats};

use super::{Failure, Kind, model, print};

/// Print a model at one stage: `import`, a pass's name, `plan`, `clif` or `asm`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model; for `plan`, `clif` and `asm` an artifact too
    model: PathBuf,
    /// `import`, the name of a pass of the pipeline (the last time it runs), `plan`, `clif` or `asm`
    #[arg(long)]
    stage: String,
    /// Passes to run instead of the default ones
    #[arg(long)]
    passes: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match args.stage.as_str() {
        "plan" => print(format_args!("{:#?}", load(args)?.plan())),
        "clif" => kernels(&load(args)?, &CpuFeatures::baseline(Isa::X64)),
        "asm" => kernels(&load(args)?, &CpuFeatures::avx2()),
        _ => graph(args),
    }
}

fn load(args: &Args) -> Result<Model, Failure> {
    let options = ModelOptions::default();
    if args.passes.is_none() {
        return model::load(&args.model, &options);
    }
    let compiled = lancet::compile_file(&args.model, &compile_options(args))
        .map_err(|e| model::compile_failure(&args.model, &e))?;
    compiled
        .into_model(&options)
        .map_err(|e| model::compile_failure(&args.model, &e))
}

fn compile_options(args: &Args) -> CompileOptions {
    let mut options = CompileOptions::default();
    if let Some(p) = &args.passes {
        options.pipeline.clone_from(p);
    }
    options
}

fn graph(args: &Args) -> Result<(), Failure> {
    let mut graph = onnx::import_file(&args.model, &ImportOptions::default())
        .map_err(|e| model::import_failure(&args.model, &e))?;
    if args.stage == "import" {
        return print(lancet_ir::print(&graph).trim_end());
    }
    let mut found = None;
    lancet::optimize(&mut graph, &compile_options(args), &mut |pass, graph| {
        if pass == args.stage {
            found = Some(lancet_ir::print(graph));
        }
    })
    .map_err(|e| model::compile_failure(&args.model, &e.into()))?;
    match found {
        Some(text) => print(text.trim_end()),
        None => {
            let message = format!(
                "--stage {}: neither `import`, `plan`, `clif`, `asm` nor a pass that runs",
                args.stage
            );
            Err(Failure::new(Kind::Usage, message))
        }
    }
}

/// Prints each kernel that the plan's steps use, for full panels of 32 tokens.
fn kernels(model: &Model, features: &CpuFeatures) -> Result<(), Failure> {
    for spec in specs(model.plan()) {
        let kernel = match lancet_codegen::emit(&spec, features) {
            Ok(kernel) => kernel,
            // Its steps are interpreted.
            Err(_) if matches!(spec, KernelSpec::Elementwise { .. }) => continue,
            Err(e) => return Err(Failure::new(Kind::Bug, e)),
        };
        print(format_args!(
            "; {}\n{}",
            kernel.name,
            lancet_codegen::disassemble(&kernel)
        ))?;
    }
    Ok(())
}

/// Kernels of the plan's steps for full panels, in the order of the specs.
fn specs(plan: &Plan) -> BTreeSet<KernelSpec> {
    const PANEL: u32 = 32;
    let (panel, lanes) = (PANEL, PANEL);
    let mut found = BTreeSet::new();
    for step in &plan.steps {
        match &step.kind {
            StepKind::Linear { matrix, activation } => {
                let format = plan.matrices[*matrix as usize].format;
                found.insert(KernelSpec::Matmul {
                    format,
                    panel,
                    lanes,
                });
                let residual = step.inputs.get(2).copied().flatten().is_some();
                if residual || *activation != Activation::None {
                    found.insert(KernelSpec::Epilogue {
                        activation: *activation,
                        residual,
                        panel,
                        lanes,
                    });
                }
            }
            StepKind::IntegerLinear { matrix, tail } => {
                let matrix = &plan.matrices[*matrix as usize];
                let stored = (matrix.format, matrix.arithmetic);
                found.insert(KernelSpec::matmul(stored, panel, lanes));
                found.extend(tail.clone().map(|vertical| KernelSpec::Vertical {
                    vertical,
                    panel,
                    lanes,
                }));
            }
            StepKind::Vertical(vertical) => {
                found.insert(KernelSpec::Vertical {
                    vertical: vertical.clone(),
                    panel,
                    lanes,
                });
            }
            StepKind::RmsNorm { .. } => {
                found.insert(KernelSpec::RmsNorm { panel, lanes });
            }
            StepKind::LayerNorm { .. } => {
                found.insert(KernelSpec::LayerNorm { panel, lanes });
            }
            StepKind::Attention(p) | StepKind::PackedAttention(p) => {
                let biases = step.inputs.get(4..).unwrap_or(&[]);
                if matches!(step.kind, StepKind::Attention(_)) && biases.iter().any(Option::is_some)
                {
                    found.extend([KernelSpec::AttentionProduct, KernelSpec::AttentionSoftmax]);
                } else {
                    let rounds = p.rounding.map(|r| r.is_some());
                    found.insert(KernelSpec::AttentionTile { rounds });
                }
            }
            StepKind::Elementwise { body } => {
                let out = &plan.values[step.outputs[0] as usize];
                found.extend(elementwise(plan, step, out, body, (panel, lanes)));
            }
            StepKind::EmbeddingLookup { .. } => {
                let tables = step.inputs.len() as u32 / 2;
                found.insert(KernelSpec::EmbeddingSum { tables, panel });
            }
            // What the bodies of generalized attention are specialised on is known with the sizes of a request.
            StepKind::MatMul | StepKind::GeneralizedAttention(_) => {
                found.insert(KernelSpec::AttentionProduct);
            }
            StepKind::Softmax { .. } => {
                found.insert(KernelSpec::AttentionSoftmax);
            }
            StepKind::If { .. } | StepKind::Loop { .. } => {
                found.extend(step.kind.regions().into_iter().flat_map(specs));
            }
            StepKind::Portable { .. }
            | StepKind::Dims(_)
            | StepKind::View
            | StepKind::Broadcast
            | StepKind::Range
            | StepKind::RangeScale
            | StepKind::RangeZeroPoint
            | StepKind::ToPanels
            | StepKind::FromPanels
            | StepKind::Reduce { .. }
            | StepKind::Transpose { .. }
            | StepKind::Slice { .. }
            | StepKind::Concat { .. }
            | StepKind::Pad { .. } => {}
        }
    }
    found
}

/// The kernel of an elementwise step; a body that has none may still be found when it is emitted.
fn elementwise(
    plan: &Plan,
    step: &Step,
    out: &ValueDesc,
    body: &[String],
    (panel, lanes): (u32, u32),
) -> Option<KernelSpec> {
    let operands: Vec<&ValueDesc> = (step.inputs.iter().flatten())
        .map(|&v| &plan.values[v as usize])
        .collect();
    let dtypes: Vec<DType> = operands
        .iter()
        .map(|v| v.dtype.parse().ok())
        .collect::<Option<_>>()?;
    let (floats, result) = floats(&Body::parse(body).ok()?, &dtypes)?;
    let float = |d: DType| match d {
        DType::F64 => Float::F64,
        _ => Float::F32,
    };
    let reach = |value: &ValueDesc| {
        let one = value.shape.iter().all(|d| d.as_fixed() == Some(1));
        match (value.layout, out.layout) {
            (Layout::RowMajor, _) if one => Reach::One,
            (Layout::RowMajor, Layout::Panels) => Reach::Rows,
            (Layout::Panels, _) if value.shape.last() != out.shape.last() => Reach::Lanes,
            _ => Reach::Panel,
        }
    };
    Some(KernelSpec::Elementwise {
        body: body.join("; "),
        operands: (operands.into_iter().zip(floats))
            .map(|(v, d)| (reach(v), float(d)))
            .collect(),
        result: float(result),
        panel,
        lanes,
    })
}
