//! Where a compiled plan first leaves the IR evaluator, operator by operator.
//!
//! A value that is shown is held as the graph has it: where a plan would keep bytes as the same whole numbers in `f32`, since only
//! products in single precision read them, the conversion to row-major that shows them reads bytes. Both are the same numbers.

use std::collections::HashMap;

use lancet::onnx::testsuite::Case;
use lancet::onnx::{self, ImportOptions};
use lancet::{CompileOptions, Tensor};

use super::{Failure, Kind, model};

/// A value of the optimized graph differs if its error is over this share of its largest magnitude.
const RELATIVE: f64 = 1e-3;

/// Names the first node, in canonical order, whose value by the plan differs from the evaluator's, for the first data set
/// that has one.
pub(super) fn first_difference(case: &Case) -> Result<Vec<String>, Failure> {
    let graph = onnx::import_file(&case.model, &ImportOptions::default())
        .map_err(|e| model::import_failure(&case.model, &e))?;
    let mut compiled = lancet::compile(graph, &CompileOptions::default(), &mut |_, _| {})
        .map_err(|e| model::compile_failure(&case.model, &e))?;
    // Every value becomes an output, so that the plan keeps and shows it.
    let graph = &mut compiled.graph;
    let mut names = HashMap::new();
    for node in graph.order() {
        for result in 0..graph.n_results(node) as u32 {
            let value = lancet_ir::Value { node, result };
            let packed = matches!(graph.ty(value).layout, lancet_ir::Layout::Packed(_));
            let leaf = matches!(
                graph.op(node),
                lancet_ir::Op::Const(_) | lancet_ir::Op::Input(_)
            );
            if packed || leaf || graph.is_output(value) {
                continue;
            }
            let name = format!("layerwise.{}", names.len());
            names.insert(
                name.clone(),
                format!("{} `{}`", graph.op(node).text(), graph.node_name(node)),
            );
            let shown = match graph.ty(value).layout {
                lancet_ir::Layout::RowMajor => value,
                _ => {
                    let op = lancet_ir::Op::Convert(lancet_ir::Layout::RowMajor);
                    let node = graph
                        .add(op, &[Some(value)])
                        .map_err(|e| Failure::new(Kind::Bug, e))?;
                    lancet_ir::Value { node, result: 0 }
                }
            };
            graph.add_output(&name, shown);
        }
    }
    let reference = compiled.graph.clone();
    let loaded = compiled
        .into_model(&lancet::ModelOptions::default())
        .map_err(|e| model::compile_failure(&case.model, &e))?;
    let plan_inputs: Vec<&str> = loaded
        .plan()
        .inputs
        .iter()
        .map(|p| p.name.as_str())
        .collect();
    for (set, data) in case.data_sets.iter().enumerate() {
        let fail = |e: String| Failure::new(Kind::InvalidFile, e);
        let (inputs, _) = data.load().map_err(|e| fail(e.to_string()))?;
        let inputs = data
            .arrange(inputs, &plan_inputs)
            .map_err(|e| fail(e.to_string()))?;
        let named: Vec<(&str, &Tensor)> = plan_inputs.iter().copied().zip(&inputs).collect();
        let views: Vec<_> = named.iter().map(|(n, t)| (*n, t.view())).collect();
        let by_plan = lancet::Session::new(&loaded)
            .run(&views)
            .map_err(|e| model::runtime_failure(&case.model, &e))?;
        let owned: Vec<(&str, Tensor)> = named.iter().map(|(n, t)| (*n, (*t).clone())).collect();
        let by_eval =
            lancet_ir::eval(&reference, &owned).map_err(|e| Failure::new(Kind::Bug, e))?;
        for ((name, a), (_, b)) in by_plan.iter().zip(&by_eval) {
            if let (Some(node), Some(error)) = (names.get(name), difference(a, b)) {
                return Ok(vec![format!(
                    "data set {set}: first difference at {node}: {error}"
                )]);
            }
        }
    }
    Ok(vec![
        "plan and evaluator agree: the difference is between the evaluator and the expected output"
            .to_owned(),
    ])
}

/// What differs between two values, if anything does.
fn difference(found: &Tensor, expected: &Tensor) -> Option<String> {
    if found.shape() != expected.shape() || found.dtype() != expected.dtype() {
        return Some(format!(
            "{}{:?} instead of {}{:?}",
            found.dtype(),
            found.shape(),
            expected.dtype(),
            expected.shape()
        ));
    }
    let (Some(f), Some(e)) = (found.as_slice::<f32>(), expected.as_slice::<f32>()) else {
        let (f, e) = (found.view().to_f64_vec(), expected.view().to_f64_vec());
        let differences = f.iter().zip(&e).map(|(f, e)| (f - e).abs());
        let (n, most) = differences
            .filter(|d| *d != 0.0)
            .fold((0, 0.0f64), |(n, m), d| (n + 1, m.max(d)));
        return (found != expected).then(|| {
            format!(
                "{n} elements of {:?} differ, by at most {most}",
                found.shape()
            )
        });
    };
    let largest = e
        .iter()
        .filter(|v| v.is_finite())
        .fold(1e-6f64, |m, v| m.max(f64::from(v.abs())));
    let at = f.iter().zip(e).position(|(f, e)| {
        let near = (f64::from(*f) - f64::from(*e)).abs() <= RELATIVE * largest;
        !(near || f == e || (f.is_nan() && e.is_nan()))
    })?;
    Some(format!(
        "element {at} of {:?} is {} instead of {}",
        found.shape(),
        f[at],
        e[at]
    ))
}
