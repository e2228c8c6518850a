//! `lancet inspect`: what is in a model, what it will cost, and what no kernel covers.
//!
//! One request is run and measured, so that what runs portably can be told with its share of the time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::PathBuf;

use comfy_table::{Table, presets};
use lancet::{Model, ModelOptions, RemarkKind, Session, TensorView};
use lancet_artifact::{MatrixDesc, Plan, Port, StepKind, Storage};
use serde_json::{Value, json};

use super::inputs::draw;
use super::{Failure, model, print};

/// Show inputs, outputs, operators, weights, their sparsity and what each is predicted to gain
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model or artifact
    model: PathBuf,
    /// Variant of an artifact that holds several; by default its first
    #[arg(long)]
    variant: Option<String>,
    /// Sequences in the request that is measured
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens in each of its sequences; 128 by default, or 8 where a model does not take so many
    #[arg(long)]
    seq: Option<usize>,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let options = ModelOptions {
        variant: args.variant.clone(),
        ..ModelOptions::default()
    };
    let (loaded, remarks) = if model::is_artifact(&args.model)? {
        (model::load(&args.model, &options)?, Vec::new())
    } else {
        let compiled = lancet::compile_file(&args.model, &lancet::CompileOptions::default())
            .map_err(|e| model::compile_failure(&args.model, &e))?;
        let remarks = compiled.report.remarks.clone();
        let loaded = compiled
            .into_model(&options)
            .map_err(|e| model::compile_failure(&args.model, &e))?;
        (loaded, remarks)
    };
    let plan = loaded.plan();
    let measured = measure(&loaded, args);
    let missed: Vec<String> = remarks
        .iter()
        .filter(|r| r.kind == RemarkKind::Missed)
        .map(ToString::to_string)
        .collect();
    if args.json {
        let steps = step_counts(plan).into_iter();
        return print(json!({
            "inputs": ports(plan, &plan.inputs),
            "outputs": ports(plan, &plan.outputs),
            "parameters": n_parameters(plan),
            "steps": steps.map(|(k, n)| (k, json!(n))).collect::<serde_json::Map<_, _>>(),
            "portable": portable(plan, measured.as_ref().ok()),
            "measured": measured.as_ref().ok().map(|m| json!({ "batch": m.batch, "seq": m.seq })),
            "matrices": matrices(plan).into_iter().map(matrix).collect::<Vec<_>>(),
            "missed": missed,
        }));
    }
    print_tables(plan, measured.as_ref())?;
    for m in &missed {
        eprintln!("{m}");
    }
    Ok(())
}

/// One request: for each step its share of the time, and whether a kernel ran it.
struct Measured {
    batch: usize,
    seq: usize,
    shares: Vec<f64>,
    by_kernel: Vec<bool>,
}

/// Runs one request to warm up and one to measure; why not, if it cannot be run.
fn measure(model: &Model, args: &Args) -> Result<Measured, String> {
    let lengths = args.seq.map_or(vec![128, 8], |seq| vec![seq]);
    let mut failure = String::new();
    for seq in lengths {
        match measure_at(model, args.batch, seq) {
            Ok(measured) => return Ok(measured),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

fn measure_at(model: &Model, batch: usize, seq: usize) -> Result<Measured, String> {
    let inputs = draw(model.plan(), batch, seq, None).map_err(|e| e.to_string())?;
    let views: Vec<(&str, TensorView<'_>)> =
        inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let mut session = Session::new(model);
    session.run_in_place(&views).map_err(|e| e.to_string())?;
    session.set_tracing(true);
    session.run_in_place(&views).map_err(|e| e.to_string())?;
    let trace = session.trace();
    let total: u64 = trace.iter().map(|s| s.nanoseconds).sum::<u64>().max(1);
    let by_kernel = trace
        .iter()
        .zip(&model.plan().steps)
        .map(|(t, step)| !is_portable(&step.kind) && !t.kernel.starts_with("portable_"));
    Ok(Measured {
        batch,
        seq,
        shares: trace
            .iter()
            .map(|s| s.nanoseconds as f64 / total as f64)
            .collect(),
        by_kernel: by_kernel.collect(),
    })
}

/// Whether a step, or one of a plan that it runs, has no kernel.
fn is_portable(kind: &StepKind) -> bool {
    let mut inside = kind.regions().into_iter().flat_map(|plan| &plan.steps);
    matches!(kind, StepKind::Portable { .. }) || inside.any(|step| is_portable(&step.kind))
}

/// Packed matrices, those of plans that steps run included.
fn matrices(plan: &Plan) -> Vec<&MatrixDesc> {
    let inside = plan.steps.iter().flat_map(|step| step.kind.regions());
    plan.matrices
        .iter()
        .chain(inside.flat_map(matrices))
        .collect()
}

/// Steps that no kernel runs, longest first.
fn portable(plan: &Plan, measured: Option<&Measured>) -> Vec<Value> {
    let share = |i: usize| measured.map(|m| m.shares[i]);
    let mut found: Vec<usize> = (0..plan.steps.len())
        .filter(|&i| match measured {
            Some(m) => !m.by_kernel[i],
            None => is_portable(&plan.steps[i].kind),
        })
        .collect();
    found.sort_by(|&a, &b| share(b).partial_cmp(&share(a)).unwrap_or(Ordering::Equal));
    let step = |i: usize| {
        let step = &plan.steps[i];
        json!({ "name": step.name, "operator": step.kind.name(), "share": share(i) })
    };
    found.into_iter().map(step).collect()
}

fn print_tables(plan: &Plan, measured: Result<&Measured, &String>) -> Result<(), Failure> {
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
    print_steps(plan, measured)?;
    let mut rows = table(&[
        "matrix",
        "out x in",
        "zeros",
        "pattern",
        "format",
        "arithmetic",
        "exact by",
        "bytes",
        "dense bytes",
        "predicted",
    ]);
    for m in matrices(plan) {
        rows.add_row([
            m.name.clone(),
            format!("{} x {}", m.n, m.k),
            format!("{:.1} %", 100.0 * sparsity(m)),
            m.pattern.clone(),
            m.format.to_string(),
            m.arithmetic.to_string(),
            m.arithmetic.proof().unwrap_or("-").to_owned(),
            m.len.to_string(),
            (4 * u64::from(m.n) * u64::from(m.k)).to_string(),
            format!("{:.2}x", m.predicted_speedup),
        ]);
    }
    print(rows)?;
    print_costs(plan)?;
    print(format_args!(
        "{} parameters, {} of them in packed matrices",
        n_parameters(plan),
        n_packed(plan)
    ))
}

/// Prints what each packed matrix is predicted to cost, by cause.
fn print_costs(plan: &Plan) -> Result<(), Failure> {
    let matrices = matrices(plan);
    let names: Vec<&str> = match matrices.first() {
        Some(m) => m.predicted_cycles.iter().map(|t| t.0.as_str()).collect(),
        None => return Ok(()),
    };
    let mut header = vec!["matrix", "cycles for 32 tokens"];
    header.extend(&names);
    let mut costs = table(&header);
    for m in matrices {
        let total: f32 = m.predicted_cycles.iter().map(|t| t.1).sum();
        let terms = m.predicted_cycles.iter().map(|t| format!("{:.0}", t.1));
        let row = [m.name.clone(), format!("{total:.0}")];
        costs.add_row(row.into_iter().chain(terms));
    }
    print(costs)
}

/// Prints the kinds of steps, how they run, and what share of the time each takes.
fn print_steps(plan: &Plan, measured: Result<&Measured, &String>) -> Result<(), Failure> {
    let mut kinds = BTreeMap::<(&str, bool), (usize, f64)>::new();
    for (i, step) in plan.steps.iter().enumerate() {
        let by_kernel = measured.map_or(!is_portable(&step.kind), |m| m.by_kernel[i]);
        let (count, share) = kinds.entry((step.kind.name(), by_kernel)).or_default();
        *count += 1;
        *share += measured.map_or(0.0, |m| m.shares[i]);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|(_, (n, a)), (_, (m, b))| b.total_cmp(a).then(m.cmp(n)));
    let mut steps = table(&["step", "count", "runs", "share of time"]);
    for ((name, by_kernel), (count, share)) in &kinds {
        steps.add_row([
            (*name).to_owned(),
            count.to_string(),
            if *by_kernel {
                "emitted kernel"
            } else {
                "portably"
            }
            .to_owned(),
            measured.map_or("-".to_owned(), |_| format!("{:.1} %", 100.0 * share)),
        ]);
    }
    print(steps)?;
    let portable = kinds.iter().filter(|((_, by_kernel), _)| !by_kernel);
    let (n, share) = portable.fold((0, 0.0), |(n, s), (_, (count, share))| {
        (n + count, s + share)
    });
    match measured {
        Ok(m) => print(format_args!(
            "{n} steps run portably: {:.1} % of the time of a request of {} x {} tokens",
            100.0 * share,
            m.batch,
            m.seq
        )),
        Err(e) => print(format_args!("{n} steps run portably; not measured: {e}")),
    }
}

/// Elements of every weight that the plan and those inside it read, zeros included.
fn n_parameters(plan: &Plan) -> u64 {
    n_constants(plan) + n_packed(plan)
}

fn n_constants(plan: &Plan) -> u64 {
    let constants = plan.values.iter().filter_map(|v| match v.storage {
        Storage::Weights { .. } => v
            .shape
            .iter()
            .map(|d| u64::try_from(d.as_fixed()?).ok())
            .product::<Option<u64>>(),
        Storage::Input(_) | Storage::Slot => None,
    });
    let inside = plan.steps.iter().flat_map(|step| step.kind.regions());
    constants.sum::<u64>() + inside.map(n_constants).sum::<u64>()
}

/// Elements of packed matrices, zeros included.
fn n_packed(plan: &Plan) -> u64 {
    let elements = |m: &MatrixDesc| u64::from(m.n) * u64::from(m.k);
    matrices(plan).into_iter().map(elements).sum()
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
        "arithmetic": m.arithmetic.to_string(),
        "exact_by": m.arithmetic.proof(),
        "predicted_speedup": m.predicted_speedup,
        "predicted_cycles": m.predicted_cycles.iter().cloned().collect::<BTreeMap<_, _>>(),
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
    let mut counts = BTreeMap::<String, usize>::new();
    for step in plan.all_steps() {
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
