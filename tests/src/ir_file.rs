//! One `.ir` file: a graph, what to run on it, and how to hold the result against the original.

use std::collections::BTreeMap;
use std::fmt::Write;

use lancet_ir::{Generator, Graph, Op, Pattern, Random, Symbol, eval, parse, print};
use lancet_ops::Tensor;
use lancet_passes::{Checks, PassManager, Report, Target};

use crate::compare::{Tolerance, compare};
use crate::directives::Directives;

/// Sizes of symbols that no directive names, in name order.
const SIZES: [i64; 5] = [2, 3, 5, 7, 11];

/// What came out of a file: the graphs, and the text for its snapshot.
#[derive(Debug)]
pub struct Outcome {
    pub before: Graph,
    pub after: Graph,
    /// Remarks as comments, then the graph.
    pub snapshot: String,
}

/// Runs the pipeline of a file and holds the graph after it against the graph before it.
///
/// # Errors
/// What failed: the text, a pass, or the comparison.
pub fn run(text: &str) -> Result<Outcome, String> {
    let directives = Directives::parse(text)?;
    let outcome = transform(text, &directives)?;
    if let Some(tolerance) = directives.tolerance {
        for dims in &directives.dims {
            check(
                &outcome.before,
                &outcome.after,
                dims,
                &directives,
                tolerance,
            )?;
        }
    }
    Ok(outcome)
}

/// Runs the pipeline of a file, without evaluating anything.
///
/// # Errors
/// As [`run`].
pub fn transform(text: &str, directives: &Directives) -> Result<Outcome, String> {
    let before = parse(text).map_err(|e| e.to_string())?;
    let mut after = before.clone();
    let report = PassManager::new(Target::default())
        .with_checks(Checks::VerifyAndCompareText)
        .run(&directives.pipeline, &mut after)
        .map_err(|e| e.to_string())?;
    let snapshot = snapshot(&after, &report);
    Ok(Outcome {
        before,
        after,
        snapshot,
    })
}

fn snapshot(graph: &Graph, report: &Report) -> String {
    let mut text = String::new();
    for remark in &report.remarks {
        writeln!(text, "; {remark}").expect("writing to a string does not fail");
    }
    text + &print(graph)
}

/// Evaluates both graphs on drawn inputs and compares every output.
///
/// # Errors
/// The output that differs, or what could not be evaluated.
pub fn check(
    before: &Graph,
    after: &Graph,
    dims: &BTreeMap<String, i64>,
    directives: &Directives,
    tolerance: Tolerance,
) -> Result<(), String> {
    let dims = bind(before, dims);
    let inputs = draw(before, &dims, directives)?;
    let expected = eval(before, &inputs).map_err(|e| format!("before: {e}"))?;
    let found = eval(after, &inputs).map_err(|e| format!("after: {e}"))?;
    for (i, ((_, found), (_, expected))) in found.iter().zip(&expected).enumerate() {
        compare(found, expected, tolerance)
            .map_err(|e| format!("output {i} with {dims:?}: {e}"))?;
    }
    Ok(())
}

/// Every symbol of a graph with its size.
fn bind(graph: &Graph, given: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let free = graph
        .symbols()
        .map(Symbol::name)
        .filter(|s| !given.contains_key(*s));
    let sizes = SIZES.into_iter().cycle();
    let mut dims: BTreeMap<String, i64> = free.map(str::to_owned).zip(sizes).collect();
    dims.extend(given.clone());
    dims
}

/// The same inputs on every machine, in declared order.
fn draw(
    graph: &Graph,
    dims: &BTreeMap<String, i64>,
    directives: &Directives,
) -> Result<Vec<(String, Tensor)>, String> {
    let mut inputs = Vec::new();
    for (i, &node) in graph.inputs().iter().enumerate() {
        let Op::Input(name) = graph.op(node) else {
            continue;
        };
        let ty = graph.ty(lancet_passes::matcher::result(node));
        let shape: Option<Vec<usize>> = ty
            .shape
            .iter()
            .map(|d| usize::try_from(d.eval(&|s| dims.get(s).copied())?).ok())
            .collect();
        let shape = shape.ok_or_else(|| format!("input {name}: no size for {ty}"))?;
        let own = directives.ranges.get(name.as_str()).copied();
        let random = Random {
            seed: 1000 + i as u64,
            range: own.or(directives.default_range),
            pattern: Pattern::Dense,
        };
        let tensor = Generator::Random(random).tensor(ty.dtype, &shape);
        let tensor = tensor.map_err(|e| format!("input {name}: {e}"))?;
        inputs.push((name.clone(), tensor));
    }
    Ok(inputs)
}

/// Number of passes that a file runs.
///
/// # Errors
/// The directive that is wrong or missing.
pub fn n_passes(text: &str) -> Result<usize, String> {
    Directives::parse(text).map(|d| d.pipeline.entries.len())
}
