//! `lancet inspect`: what is in a model and what it will cost.

use std::path::PathBuf;

use comfy_table::{Table, presets};
use lancet::{ModelOptions, RemarkKind};
use lancet_artifact::{Plan, Port, StepKind, Storage};
use serde_json::{Value, json};

use super::{Failure, model, print};

/// Show inputs, outputs, operators, weights, their sparsity and what each is predicted to gain
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model or artifact
    model: PathBuf,
    /// Variant of an artifact that holds several; by default its first
    #[arg(long)]
    variant: Option<String>,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (plan, remarks) = if model::is_artifact(&args.model)? {
        let options = ModelOptions {
            variant: args.variant.clone(),
            ..ModelOptions::default()
        };
        let loaded = model::load(&args.model, &options)?;
        (loaded.plan().clone(), Vec::new())
    } else {
        let compiled = lancet::compile_file(&args.model, &lancet::CompileOptions::default())
            .map_err(|e| model::compile_failure(&args.model, &e))?;
        let (plan, _) = compiled
            .lower()
            .map_err(|e| model::compile_failure(&args.model, &e))?;
        (plan, compiled.report.remarks)
    };
    let missed: Vec<String> = remarks
        .iter()
        .filter(|r| r.kind == RemarkKind::Missed)
        .map(ToString::to_string)
        .collect();
    if args.json {
        return print(json!({
            "inputs": ports(&plan, &plan.inputs),
            "outputs": ports(&plan, &plan.outputs),
            "parameters": n_parameters(&plan),
            "steps": step_counts(&plan).into_iter().map(|(k, n)| (k, json!(n))).collect::<serde_json::Map<_, _>>(),
            "matrices": plan.matrices.iter().map(matrix).collect::<Vec<_>>(),
            "missed": missed,
        }));
    }
    print_tables(&plan)?;
    for m in &missed {
        eprintln!("{m}");
    }
    Ok(())
}

fn print_tables(plan: &Plan) -> Result<(), Failure> {
    let mut io = table(&["", "name", "type", "shape"]);
    for (kind, list) in [("input", &plan.inputs), ("output", &plan.outputs)] {
        for port in list {
            let desc = &plan.values[port.value as usize];
            let shape = desc
                .shape
                .iter()
                .map(|d| plan.dim_text(d))
                .collect::<Vec<_>>()
                .join(", ");
            io.add_row([
                kind.to_owned(),
                port.name.clone(),
                desc.dtype.clone(),
                format!("[{shape}]"),
            ]);
        }
    }
    print(io)?;
    let mut steps = table(&["step", "count", "runs"]);
    for (name, count) in step_counts(plan) {
        let how = if name.starts_with("portable ") {
            "portably"
        } else {
            "emitted kernel"
        };
        steps.add_row([
            name.trim_start_matches("portable ").to_owned(),
            count.to_string(),
            how.to_owned(),
        ]);
    }
    print(steps)?;
    let mut matrices = table(&[
        "matrix",
        "out x in",
        "zeros",
        "pattern",
        "format",
        "bytes",
        "dense bytes",
        "predicted",
    ]);
    for m in &plan.matrices {
        matrices.add_row([
            m.name.clone(),
            format!("{} x {}", m.n, m.k),
            format!("{:.1} %", 100.0 * sparsity(m)),
            m.pattern.clone(),
            m.format.to_string(),
            m.len.to_string(),
            (4 * u64::from(m.n) * u64::from(m.k)).to_string(),
            format!("{:.2}x", m.predicted_speedup),
        ]);
    }
    print(matrices)?;
    print(format_args!(
        "{} parameters, {} of them in packed matrices",
        n_parameters(plan),
        n_packed(plan)
    ))
}

/// Elements of every weight that the plan reads, zeros included.
fn n_parameters(plan: &Plan) -> u64 {
    let constants = plan.values.iter().filter_map(|v| match v.storage {
        Storage::Weights { .. } => v
            .shape
            .iter()
            .map(|d| u64::try_from(d.as_fixed()?).ok())
            .product::<Option<u64>>(),
        Storage::Input(_) | Storage::Slot => None,
    });
    constants.sum::<u64>() + n_packed(plan)
}

/// Elements of packed matrices, zeros included.
fn n_packed(plan: &Plan) -> u64 {
    plan.matrices
        .iter()
        .map(|m| u64::from(m.n) * u64::from(m.k))
        .sum()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_FULL_CONDENSED)
        .set_header(header.to_vec());
    table
}

fn sparsity(m: &lancet_artifact::MatrixDesc) -> f64 {
    let total = f64::from(m.n) * f64::from(m.k);
    if total == 0.0 {
        0.0
    } else {
        1.0 - m.nnz as f64 / total
    }
}

fn matrix(m: &lancet_artifact::MatrixDesc) -> Value {
    json!({
        "name": m.name,
        "n": m.n,
        "k": m.k,
        "sparsity": sparsity(m),
        "pattern": m.pattern,
        "format": m.format.to_string(),
        "predicted_speedup": m.predicted_speedup,
        "bytes": m.len,
    })
}

fn ports(plan: &Plan, ports: &[Port]) -> Vec<Value> {
    ports
        .iter()
        .map(|p| {
            let desc = &plan.values[p.value as usize];
            let shape: Vec<String> = desc.shape.iter().map(|d| plan.dim_text(d)).collect();
            json!({ "name": p.name, "dtype": desc.dtype, "shape": shape })
        })
        .collect()
}

/// Kinds of steps with their counts, most frequent first; portable operators by name.
fn step_counts(plan: &Plan) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for step in &plan.steps {
        let name = match &step.kind {
            StepKind::Portable { operator, .. } => format!("portable {operator}"),
            other => other.name().to_owned(),
        };
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}
