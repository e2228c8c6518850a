//! `lancet compile`: an ONNX file to an artifact.

use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lancet::onnx::{self, ImportOptions};
use lancet::{CompileError, CompileOptions, Compiled};
use serde_json::{Value, json};

use super::{Failure, Kind, model, print};

/// Compile an ONNX model to an artifact
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model
    model: PathBuf,
    /// Artifact to write; the model's name with `.lancet` if not given
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    passes: PassArgs,
    /// Write over a file that exists
    #[arg(long)]
    force: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What can be said of the passes, by every verb that runs them.
#[derive(Debug, clap::Args)]
pub(super) struct PassArgs {
    /// Passes to run instead of the default ones: `raise-linear,detect-sparsity{format = 4x1},...`
    #[arg(long)]
    pub passes: Option<String>,
    /// Tell what passes did, and what they declined and why
    #[arg(long)]
    pub remarks: bool,
    /// Tell how long each pass took
    #[arg(long)]
    pub time_passes: bool,
    /// Print the IR after this pass, or after `all`, on stdout
    #[arg(long, value_name = "PASS|all", conflicts_with = "json")]
    pub dump_ir_after: Option<String>,
}

impl PassArgs {
    pub(super) fn options(&self) -> CompileOptions {
        let mut options = CompileOptions::default();
        if let Some(p) = &self.passes {
            options.pipeline.clone_from(p);
        }
        options
    }

    /// Compiles a file, with the dumps, remarks and times that were asked for.
    pub(super) fn compile(&self, path: &Path) -> Result<Compiled, Failure> {
        let spinner = progress(path);
        let graph = onnx::import_file(path, &ImportOptions::default())
            .map_err(|e| model::import_failure(path, &e))?;
        let wanted = self.dump_ir_after.as_deref();
        let mut known = wanted.is_none_or(|w| w == "all");
        let mut printed = Ok(());
        let compiled = lancet::compile(graph, &self.options(), &mut |pass, graph| {
            spinner.set_message(pass);
            if wanted == Some("all") || wanted == Some(pass) {
                known = true;
                let text = lancet_ir::print(graph);
                printed = std::mem::replace(&mut printed, Ok(()))
                    .and_then(|()| print(format_args!("; after {pass}\n{text}")));
            }
        })
        .map_err(|e: CompileError| model::compile_failure(path, &e))?;
        spinner.finish_and_clear();
        printed?;
        if !known {
            let message = format!(
                "--dump-ir-after {}: no such pass ran",
                wanted.unwrap_or_default()
            );
            return Err(Failure::new(Kind::Usage, message));
        }
        if self.remarks {
            for remark in &compiled.report.remarks {
                eprintln!("{remark}");
            }
        }
        if self.time_passes {
            for p in &compiled.report.passes {
                eprintln!(
                    "{:9.3} ms  {:6} nodes  {}",
                    p.time.as_secs_f64() * 1e3,
                    p.n_nodes,
                    p.pass
                );
            }
        }
        Ok(compiled)
    }
}

/// A spinner on a terminal, nothing elsewhere.
pub(super) fn progress(path: &Path) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {prefix}: {msg}").expect("the template is valid");
    let bar = ProgressBar::new_spinner()
        .with_style(style)
        .with_prefix(path.display().to_string())
        .with_message("import");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| args.model.with_extension("lancet"));
    if output.exists() && !args.force {
        let message = format!(
            "{}: exists; give --force to write over it",
            output.display()
        );
        return Err(Failure::new(Kind::Usage, message));
    }
    let start = Instant::now();
    let compiled = args.passes.compile(&args.model)?;
    let mut failed = None;
    model::write_atomically(&output, |file| {
        let mut out = BufWriter::new(file);
        match compiled.write(&mut out) {
            Ok(()) => Ok(()),
            Err(CompileError::Artifact(lancet_artifact::ArtifactError::Io(e))) => Err(e),
            Err(e) => {
                failed = Some(model::compile_failure(&args.model, &e));
                Err(std::io::Error::other("the model could not be lowered"))
            }
        }
    })
    .map_err(|e| failed.take().unwrap_or(e))?;
    let bytes = std::fs::metadata(&output)
        .map_err(|e| Failure::io(&output, &e))?
        .len();
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        return print(report(&output, bytes, seconds, &compiled));
    }
    eprintln!(
        "{}: {:.1} MB in {seconds:.2} s",
        output.display(),
        bytes as f64 / 1e6
    );
    Ok(())
}

fn report(output: &Path, bytes: u64, seconds: f64, compiled: &Compiled) -> Value {
    let passes: Vec<Value> = compiled
        .report
        .passes
        .iter()
        .map(|p| {
            let changed = p.changed == lancet_passes::Changed::Yes;
            let ms = p.time.as_secs_f64() * 1e3;
            json!({ "pass": p.pass, "changed": changed, "nodes": p.n_nodes, "ms": ms })
        })
        .collect();
    let remarks: Vec<Value> = compiled
        .report
        .remarks
        .iter()
        .map(|r| json!({ "pass": r.pass, "kind": r.kind.to_string(), "node": r.node, "message": r.message }))
        .collect();
    json!({
        "artifact": output,
        "bytes": bytes,
        "seconds": seconds,
        "passes": passes,
        "remarks": remarks,
    })
}
