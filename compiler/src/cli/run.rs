//! `lancet run`: one request, tensors in and out as `.npz`.

use std::path::PathBuf;

use comfy_table::{Table, presets};
use lancet::{ModelOptions, Session, TensorView};
use serde_json::json;

use super::{Failure, model, npz, print};

/// Run a model on tensors from a .npz file
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model or artifact
    model: PathBuf,
    /// Inputs by name, a .npz file
    #[arg(long)]
    inputs: PathBuf,
    /// Where to write outputs by name, a .npz file
    #[arg(long)]
    outputs: Option<PathBuf>,
    /// Variant of an artifact that holds several; by default its first
    #[arg(long)]
    variant: Option<String>,
    /// Threads; by default what the machine grants this process
    #[arg(long, value_parser = super::n_threads())]
    threads: Option<usize>,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let inputs = npz::read(&args.inputs)?;
    let spinner = super::compile::progress(&args.model);
    let loaded = model::load(
        &args.model,
        &ModelOptions {
            threads: args.threads,
            variant: args.variant.clone(),
            ..ModelOptions::default()
        },
    )?;
    spinner.set_message("run");
    let mut session = Session::new(&loaded);
    let views: Vec<(&str, TensorView<'_>)> =
        inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let outputs = session
        .run(&views)
        .map_err(|e| model::runtime_failure(&args.model, &e))?;
    spinner.finish_and_clear();
    if let Some(path) = &args.outputs {
        let views: Vec<_> = outputs.iter().map(|(n, t)| (n.clone(), t.view())).collect();
        npz::write(path, &views)?;
    }
    if args.json {
        let list: Vec<_> = outputs
            .iter()
            .map(|(n, t)| json!({ "name": n, "dtype": t.dtype().name(), "shape": t.shape() }))
            .collect();
        return print(json!({ "outputs": list }));
    }
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_header(["output", "type", "shape"]);
    for (name, tensor) in &outputs {
        table.add_row([
            name.clone(),
            tensor.dtype().to_string(),
            format!("{:?}", tensor.shape()),
        ]);
    }
    print(table)
}
