//! `lancet dump`: a model at one stage, as text on stdout.

use std::path::PathBuf;

use lancet::onnx::{self, ImportOptions};
use lancet::{CompileOptions, Model, ModelOptions, kernels};

use lancet_artifact::KernelSpec;
use lancet_codegen::kir::LoopCost;
use lancet_codegen::{CpuFeatures, Isa};

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
    /// What `asm` is for
    #[arg(long, value_enum, default_value_t = Cpu::Avx2)]
    cpu: Cpu,
}

/// Kinds of CPU with kernels of their own.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Cpu {
    Avx2,
    AvxVnni,
    Avx512,
    Avx512Vnni,
}

impl Cpu {
    fn features(self) -> CpuFeatures {
        match self {
            Cpu::Avx2 => CpuFeatures::avx2(),
            Cpu::AvxVnni => CpuFeatures::avx_vnni(),
            Cpu::Avx512 => CpuFeatures::avx512(),
            Cpu::Avx512Vnni => CpuFeatures::avx512_vnni(),
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match args.stage.as_str() {
        "plan" => print(format_args!("{:#?}", load(args)?.plan())),
        "clif" => print_kernels(&load(args)?, &CpuFeatures::baseline(Isa::X64)),
        "asm" => print_kernels(&load(args)?, &args.cpu.features()),
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

/// Prints each kernel that the plan's steps use, for full panels of 32 tokens, and what the main loop of a product takes.
fn print_kernels(model: &Model, features: &CpuFeatures) -> Result<(), Failure> {
    for spec in kernels::of_plan(model.plan()) {
        let kernel = match lancet_codegen::emit(&spec, features) {
            Ok(kernel) => kernel,
            // Its steps are interpreted.
            Err(_) if matches!(spec, KernelSpec::Elementwise { .. }) => continue,
            Err(e) => return Err(Failure::new(Kind::Bug, e)),
        };
        let is_product = matches!(
            spec,
            KernelSpec::Matmul { .. } | KernelSpec::IntegerMatmul { .. }
        );
        let main_loop = is_product
            .then(|| {
                lancet_codegen::kernels::build(&spec, features)
                    .ok()?
                    .main_loop()
            })
            .flatten();
        print(format_args!("; {}", kernel.name))?;
        if let Some(LoopCost {
            instructions,
            multiply_adds,
        }) = main_loop
        {
            print(format_args!(
                "; main loop: {instructions} instructions for {multiply_adds} multiply-adds"
            ))?;
        }
        print(lancet_codegen::disassemble(&kernel))?;
    }
    Ok(())
}
