//! `lancet compile`: an ONNX file to an artifact.

use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use lancet::onnx::{self, ImportOptions};
use lancet::{CompileError, CompileOptions, Compiled};
use lancet_ir::Graph;
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
    /// Several slices in one artifact, each `NAME` or `NAME:width=0.75,depth=0.5`; the first runs by default
    #[arg(long = "variant", value_name = "SLICE", conflicts_with_all = ["passes", "width", "depth"])]
    variants: Vec<Variant>,
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
    /// Share of heads and neurons to keep of a model that was trained for several widths, above 0 and at most 1
    #[arg(long, conflicts_with = "passes", value_parser = share)]
    pub width: Option<f64>,
    /// Share of layers to keep of a model that was trained for several depths, above 0 and at most 1
    #[arg(long, conflicts_with = "passes", value_parser = share)]
    pub depth: Option<f64>,
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
        if self.width.is_some() || self.depth.is_some() {
            let (width, depth) = (self.width.unwrap_or(1.0), self.depth.unwrap_or(1.0));
            options.pipeline = lancet::pipeline::sliced(width, depth);
        }
        options
    }

    /// Compiles a file, with the dumps, remarks and times that were asked for.
    pub(super) fn compile(&self, path: &Path) -> Result<Compiled, Failure> {
        self.compile_graph(path, import(path)?, &self.options())
    }

    /// Compiles a graph that was read from `path`.
    fn compile_graph(
        &self,
        path: &Path,
        graph: Graph,
        options: &CompileOptions,
    ) -> Result<Compiled, Failure> {
        let spinner = progress(path);
        let wanted = self.dump_ir_after.as_deref();
        let mut known = wanted.is_none_or(|w| w == "all");
        let mut printed = Ok(());
        let compiled = lancet::compile(graph, options, &mut |pass, graph| {
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

fn import(path: &Path) -> Result<Graph, Failure> {
    onnx::import_file(path, &ImportOptions::default()).map_err(|e| model::import_failure(path, &e))
}

/// One slice of several: its name, and the shares of heads and neurons, and of layers, that it keeps.
#[derive(Clone, Debug)]
struct Variant {
    name: String,
    width: f64,
    depth: f64,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Variant, String> {
        let (name, slices) = text.split_once(':').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("a variant has a name".to_owned());
        }
        let mut variant = Variant {
            name: name.to_owned(),
            width: 1.0,
            depth: 1.0,
        };
        for slice in slices.split(',').filter(|s| !s.is_empty()) {
            match slice.split_once('=') {
                Some(("width", value)) => variant.width = share(value)?,
                Some(("depth", value)) => variant.depth = share(value)?,
                _ => {
                    return Err(format!(
                        "expected width=SHARE or depth=SHARE, found `{slice}`"
                    ));
                }
            }
        }
        Ok(variant)
    }
}

/// A number above 0, at most 1.
fn share(text: &str) -> Result<f64, String> {
    (text.parse::<f64>().ok())
        .filter(|&v| 0.0 < v && v <= 1.0)
        .ok_or_else(|| format!("expected a number above 0, at most 1, found `{text}`"))
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
    let compiled = compile_all(args)?;
    let named: Vec<(&str, &Compiled)> = compiled.iter().map(|(n, c)| (n.as_str(), c)).collect();
    let mut failed = None;
    model::write_atomically(&output, |file| {
        let mut out = BufWriter::new(file);
        match lancet::write_variants(&named, &mut out) {
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

/// The model, or each slice that was asked for, with its name in the artifact.
fn compile_all(args: &Args) -> Result<Vec<(String, Compiled)>, Failure> {
    if args.variants.is_empty() {
        return Ok(vec![(String::new(), args.passes.compile(&args.model)?)]);
    }
    for (i, v) in args.variants.iter().enumerate() {
        if args.variants[..i].iter().any(|u| u.name == v.name) {
            let message = format!("--variant {}: named twice", v.name);
            return Err(Failure::new(Kind::Usage, message));
        }
    }
    let graph = import(&args.model)?;
    (args.variants.iter())
        .map(|v| {
            let options = CompileOptions {
                pipeline: lancet::pipeline::sliced(v.width, v.depth),
                ..CompileOptions::default()
            };
            let compiled = args
                .passes
                .compile_graph(&args.model, graph.clone(), &options)?;
            Ok((v.name.clone(), compiled))
        })
        .collect()
}

fn report(output: &Path, bytes: u64, seconds: f64, variants: &[(String, Compiled)]) -> Value {
    let variants: Vec<Value> = (variants.iter())
        .map(|(name, compiled)| variant_report(name, compiled))
        .collect();
    json!({
        "artifact": output,
        "bytes": bytes,
        "seconds": seconds,
        "variants": variants,
    })
}

fn variant_report(name: &str, compiled: &Compiled) -> Value {
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
    json!({ "name": name, "passes": passes, "remarks": remarks })
}
