//! `lancet check`: models in the layout of the ONNX test suite against their expected outputs.

use std::io::IsTerminal;
use std::path::PathBuf;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use lancet::onnx::testsuite::{Case, Comparison, TestSuiteError, compare, discover};
use lancet::{Model, ModelOptions, Session, TensorView};
use serde_json::{Value, json};

use super::{Failure, Kind, model, print};

/// Run models in the ONNX test-suite layout and compare every output
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folders with `model.onnx` and `test_data_set_N`, or trees of such folders
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Threads; by default what the machine grants this process
    #[arg(long, value_parser = super::n_threads())]
    threads: Option<usize>,
    /// Where an output differs, find the first value that differs between the compiled plan and the IR evaluator
    #[arg(long)]
    layerwise: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

/// What became of one case.
struct Outcome {
    name: String,
    n_data_sets: usize,
    max_abs: f64,
    problems: Vec<String>,
    /// Exit code of a case that did not run.
    kind: Option<Kind>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut cases = Vec::new();
    for path in &args.paths {
        cases.extend(discover(path).map_err(|e| failure(&e))?);
    }
    let options = ModelOptions {
        threads: args.threads,
        ..ModelOptions::default()
    };
    let mut outcomes = Vec::new();
    let bar = progress(cases.len());
    for case in &cases {
        bar.set_message(case.name.clone());
        let mut outcome = check(case, &options);
        if args.layerwise && !outcome.problems.is_empty() && outcome.kind.is_none() {
            outcome
                .problems
                .extend(super::layerwise::first_difference(case)?);
        }
        outcomes.push(outcome);
        bar.inc(1);
    }
    bar.finish_and_clear();
    report(args, &outcomes)?;
    let n_failed = outcomes.iter().filter(|o| !o.problems.is_empty()).count();
    if n_failed == 0 {
        return Ok(());
    }
    Err(Failure::new(
        Kind::No,
        format_args!("{n_failed} of {} cases do not agree", outcomes.len()),
    ))
}

/// What is wrong with a folder of cases, as an exit code.
fn failure(error: &TestSuiteError) -> Failure {
    let kind = match error {
        TestSuiteError::Io { .. } => Kind::Io,
        TestSuiteError::Tensor(errors) => model::import_kind(errors),
        TestSuiteError::Tolerance { .. }
        | TestSuiteError::NoCases { .. }
        | TestSuiteError::Data { .. } => Kind::InvalidFile,
    };
    Failure::new(kind, error)
}

/// A bar on a terminal, nothing elsewhere.
fn progress(n_cases: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")
        .expect("the template is valid");
    ProgressBar::new(n_cases as u64).with_style(style)
}

fn check(case: &Case, options: &ModelOptions) -> Outcome {
    let mut outcome = Outcome {
        name: case.name.clone(),
        n_data_sets: case.data_sets.len(),
        max_abs: 0.0,
        problems: Vec::new(),
        kind: None,
    };
    if case.data_sets.is_empty() {
        // A case that compares nothing must not count as one that agrees.
        outcome.problems.push("no test_data_set_N".to_owned());
    }
    match model::load(&case.model, options) {
        Ok(loaded) => {
            for set in 0..case.data_sets.len() {
                if let Err(problem) = check_data_set(case, set, &loaded, &mut outcome) {
                    outcome.problems.push(format!("data set {set}: {problem}"));
                }
            }
        }
        Err(failure) => {
            outcome.problems.push(failure.to_string());
            outcome.kind = Some(failure.kind);
        }
    }
    outcome
}

fn check_data_set(
    case: &Case,
    set: usize,
    loaded: &Model,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let data = &case.data_sets[set];
    let (inputs, expected) = data.load().map_err(|e| e.to_string())?;
    let plan = loaded.plan();
    let input_names: Vec<&str> = plan.inputs.iter().map(|p| p.name.as_str()).collect();
    let output_names: Vec<&str> = plan.outputs.iter().map(|p| p.name.as_str()).collect();
    let inputs = data
        .arrange(inputs, &input_names)
        .map_err(|e| e.to_string())?;
    let expected = data
        .arrange(expected, &output_names)
        .map_err(|e| e.to_string())?;
    let views: Vec<(&str, TensorView<'_>)> = input_names
        .iter()
        .copied()
        .zip(inputs.iter().map(|t| t.view()))
        .collect();
    let found = Session::new(loaded)
        .run(&views)
        .map_err(|e| e.to_string())?;
    let mut problems = Vec::new();
    for (expected, (name, found)) in expected.iter().zip(&found) {
        let comparison = compare(expected, found, &case.tolerance);
        outcome.max_abs = outcome.max_abs.max(comparison.max_abs);
        if !comparison.agrees() {
            problems.push(format!(
                "output `{name}` {:?}: {}",
                expected.shape(),
                describe(&comparison)
            ));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("; "))
    }
}

fn describe(c: &Comparison) -> String {
    match &c.problem {
        Some(problem) => problem.clone(),
        None => format!(
            "{} elements differ, most at {} by {:.3e}",
            c.n_wrong, c.worst, c.max_abs
        ),
    }
}

fn report(args: &Args, outcomes: &[Outcome]) -> Result<(), Failure> {
    let n_failed = outcomes.iter().filter(|o| !o.problems.is_empty()).count();
    if args.json {
        let cases: Vec<Value> = outcomes
            .iter()
            .map(|o| json!({ "name": o.name, "data_sets": o.n_data_sets, "max_abs": o.max_abs, "problems": o.problems }))
            .collect();
        return print(
            json!({ "passed": outcomes.len() - n_failed, "failed": n_failed, "cases": cases }),
        );
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header([
        "case",
        "data sets",
        "largest error",
        "",
    ]);
    for o in outcomes {
        let verdict = if o.problems.is_empty() {
            "agrees".to_owned()
        } else {
            o.problems.join("\n")
        };
        table.add_row([
            o.name.clone(),
            o.n_data_sets.to_string(),
            format!("{:.2e}", o.max_abs),
            verdict,
        ]);
    }
    print(table)?;
    print(format_args!(
        "{} passed, {n_failed} failed",
        outcomes.len() - n_failed
    ))
}
