//! What runs portably, and what was not raised, model by model: `portable.txt` holds, for each model, the operators that no kernel
//! runs and how often they stand in its plan, and in parentheses the steps that remain of layers, attention, norms and activations
//! where no pass knows these, and the steps whose arithmetic of floats is interpreted. A model may lose some, never gain any.
//!
//! Models that are drawn here are always compared, those of the shared folder where it is found (beside the clone, or in
//! `$LANCET_SHARED`). With `INSTA_UPDATE=always` the list is written anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use lancet::onnx::synth::{BertConfig, write_bert};
use lancet::{CompileOptions, compile_file, kernels};
use lancet_artifact::{KernelSpec, Layout, Plan, Step, StepKind};
use lancet_codegen::{CpuFeatures, emit};

/// Portable operators of one model with their counts.
type Operators = BTreeMap<String, usize>;

fn list() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/portable.txt")
}

/// The models of the shared folder by name; none if it is not there.
fn shared_models() -> Vec<(String, PathBuf)> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("LANCET_SHARED").map_or(beside, PathBuf::from);
    let entries = fs::read_dir(shared.join("zoo")).into_iter().flatten();
    let mut models: Vec<(String, PathBuf)> = entries
        .flatten()
        .map(|e| {
            (
                e.file_name().display().to_string(),
                e.path().join("model.onnx"),
            )
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    models.sort();
    models
}

fn portable_operators(model: &Path) -> Operators {
    let compiled = compile_file(model, &CompileOptions::default()).expect("the model compiles");
    let (plan, _) = compiled.lower().expect("the model lowers");
    let mut found = Operators::new();
    count(&plan, &mut found);
    found
}

fn count(plan: &Plan, found: &mut Operators) {
    for step in &plan.steps {
        let names = match &step.kind {
            StepKind::Portable { operator, .. } => vec![operator.clone()],
            _ => (remains(plan, step).into_iter())
                .chain(is_interpreted(plan, step).then_some("interpreted"))
                .map(|name| format!("({name})"))
                .collect(),
        };
        for name in names {
            *found.entry(name).or_default() += 1;
        }
        for region in step.kind.regions() {
            count(region, found);
        }
    }
}

/// What a step is that only parts of a model have which were not raised: products of computed matrices, softmax and sums over features
/// outside of attention and norms. Sums in panels run beside the elementwise steps of a norm of another kind.
fn remains(plan: &Plan, step: &Step) -> Option<&'static str> {
    match &step.kind {
        StepKind::MatMul => Some("matmul"),
        StepKind::Softmax { .. } => Some("softmax"),
        StepKind::Reduce { axes, .. } => {
            let x = step.inputs.first().copied().flatten()?;
            let x = &plan.values[x as usize];
            let over_features = axes.end as usize == x.shape.len() && 3 <= x.shape.len();
            (over_features && x.layout == Layout::RowMajor).then_some("reduce")
        }
        _ => None,
    }
}

/// Whether a step computes floats without a kernel, line by line of a body.
fn is_interpreted(plan: &Plan, step: &Step) -> bool {
    let n_bodies = match &step.kind {
        StepKind::Elementwise { .. } => {
            let result = &plan.values[step.outputs[0] as usize].dtype;
            usize::from(matches!(result.as_str(), "f32" | "f64"))
        }
        StepKind::GeneralizedAttention(p) => p.stages.iter().filter(|s| !s.is_empty()).count(),
        _ => 0,
    };
    let specs = kernels::of_step(plan, step);
    let emitted = specs.iter().filter(|spec| {
        let is_body = matches!(spec, KernelSpec::Elementwise { .. });
        is_body && emit(spec, &CpuFeatures::avx2()).is_ok()
    });
    emitted.count() < n_bodies
}

fn print(models: &BTreeMap<String, Operators>) -> String {
    let mut text = String::new();
    for (model, operators) in models {
        let counts: Vec<String> = operators.iter().map(|(o, n)| format!("{o} {n}")).collect();
        let counts = match &counts[..] {
            [] => "none".to_owned(),
            counts => counts.join(", "),
        };
        writeln!(text, "{model}: {counts}").expect("text grows");
    }
    text
}

fn parse(text: &str) -> BTreeMap<String, Operators> {
    let operators = |counts: &str| {
        let pairs = counts.split(", ").filter_map(|c| c.trim().split_once(' '));
        pairs
            .map(|(o, n)| (o.to_owned(), n.parse().expect("a count")))
            .collect()
    };
    text.lines()
        .map(|line| line.split_once(':').expect("a model and its operators"))
        .map(|(model, counts)| (model.to_owned(), operators(counts)))
        .collect()
}

#[test]
fn nothing_falls_back_to_portable_operators() {
    let mut found = BTreeMap::new();
    let folder = tempfile::tempdir().expect("a folder");
    let drawn = folder.path().join("drawn.onnx");
    let config = BertConfig {
        vocabulary: 100,
        positions: 64,
        ..BertConfig::TINY
    };
    for sparsity in [0.0, 0.9] {
        let pattern = "4x1".parse().expect("a pattern");
        let mut file = fs::File::create(&drawn).expect("created");
        write_bert(config, sparsity, pattern, 0, &mut file).expect("written");
        found.insert(
            format!("drawn, {sparsity} zeros"),
            portable_operators(&drawn),
        );
    }
    for (name, path) in shared_models() {
        found.insert(name, portable_operators(&path));
    }
    let mut known = parse(&fs::read_to_string(list()).unwrap_or_default());
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        known.extend(found);
        fs::write(list(), print(&known)).expect("the list is written");
        return;
    }
    let mut worse = String::new();
    for (model, operators) in &found {
        // A model that the list does not know is not held to anything.
        let Some(known) = known.get(model) else {
            continue;
        };
        for (operator, n) in operators {
            let before = known.get(operator).copied().unwrap_or(0);
            if before < *n {
                writeln!(worse, "{model}: {operator} {n}, was {before}").expect("text grows");
            }
        }
    }
    assert!(worse.is_empty(), "more runs portably:\n{worse}");
}
