//! The whole road in one program, without any file: draw a BERT and prune it, import and compile it, write and load the
//! artifact, run it, compare its answers with the reference evaluator's, and time it against its own dense twin.
//!
//! ```text
//! cargo run --release -p lancet-examples --example tour [SPARSITY] [PATTERN]
//! ```
//!
//! The model has BERT-base's layers, four of them, and a small vocabulary. SPARSITY is the fraction of the encoder's
//! weights that are zero (0.9), PATTERN `unstructured`, blocks `RxC` of R outputs by C inputs (4x1), or `N:M`.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lancet::onnx::synth::{BertConfig, PrunePattern, write_bert};
use lancet::onnx::{ImportOptions, import_bytes};
use lancet::{CompileOptions, Model, ModelOptions, Session, Tensor, TensorView, compile};
use lancet_ir::Graph;

const CONFIG: BertConfig = BertConfig {
    n_layers: 4,
    vocabulary: 2000,
    ..BertConfig::BASE
};
const N_TOKENS: usize = 128;
/// The plan sums in another order than the evaluator does; logits are near 1.
const TOLERANCE: f32 = 1e-4;
/// How long both models are timed.
const TIMED: Duration = Duration::from_secs(5);

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let sparsity: f64 = args.next().as_deref().unwrap_or("0.9").parse()?;
    let pattern = args.next().unwrap_or("4x1".to_owned());
    ensure!((0.0..1.0).contains(&sparsity), "sparsity must be in 0..1");

    println!(
        "drawing a BERT of 4 layers, and its twin with {sparsity} of each weight zero ({pattern})"
    );
    let dense = import(0.0, PrunePattern::Unstructured)?;
    let pruned = import(sparsity, pattern.parse()?)?;

    let inputs = requests();
    println!("evaluating the pruned model operator by operator, as the reference");
    let start = Instant::now();
    let expected = lancet_ir::eval(&pruned, &inputs)?;
    println!("  {:.1} s", start.elapsed().as_secs_f64());

    println!("compiling both");
    let dense = build("dense", dense)?;
    let pruned = build("pruned", pruned)?;

    let views: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    let mut dense = Session::new(&dense);
    let mut pruned = Session::new(&pruned);
    let found = pruned.run(&views)?;
    let error = largest_difference(&expected, &found)?;
    println!(
        "answers: largest difference from the reference {error:.1e} (allowed {TOLERANCE:.0e})"
    );
    ensure!(error <= TOLERANCE, "the compiled model is wrong");

    println!("timing both in turn, one sequence of {N_TOKENS} tokens");
    let (dense, pruned) = race(&mut dense, &mut pruned, &views)?;
    println!("  dense   {:8.2} ms", dense * 1e3);
    println!("  pruned  {:8.2} ms", pruned * 1e3);
    println!(
        "pruned runs {:.2} times as fast as its dense twin",
        dense / pruned
    );
    Ok(())
}

/// Draws a model as an ONNX file in memory and reads it back.
fn import(sparsity: f64, pattern: PrunePattern) -> anyhow::Result<Graph> {
    let mut onnx = Vec::new();
    write_bert(CONFIG, sparsity, pattern, 0, &mut onnx)?;
    Ok(import_bytes(&onnx, None, &ImportOptions::default())?)
}

/// Compiles a graph to an artifact and loads that, as `lancet compile` and an application would.
fn build(name: &str, graph: Graph) -> anyhow::Result<Model> {
    let start = Instant::now();
    let compiled = compile(graph, &CompileOptions::default(), &mut |_, _| {})?;
    let mut artifact = Vec::new();
    compiled.write(&mut artifact)?;
    println!(
        "  {name:6}  {:6.1} MB in {:.1} s",
        artifact.len() as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    Ok(Model::from_bytes(&artifact, &ModelOptions::default())?)
}

fn requests() -> Vec<(&'static str, Tensor)> {
    let vocabulary = CONFIG.vocabulary as i64;
    let ids: Vec<i64> = (0..N_TOKENS as i64)
        .map(|i| (i * 7919 + 101) % vocabulary)
        .collect();
    vec![
        ("input_ids", Tensor::new([1, N_TOKENS], ids)),
        (
            "attention_mask",
            Tensor::new([1, N_TOKENS], vec![1i64; N_TOKENS]),
        ),
        (
            "token_type_ids",
            Tensor::new([1, N_TOKENS], vec![0i64; N_TOKENS]),
        ),
    ]
}

fn largest_difference(
    expected: &[(String, Tensor)],
    found: &[(String, Tensor)],
) -> anyhow::Result<f32> {
    let mut largest = 0f32;
    for ((name, e), (_, f)) in expected.iter().zip(found) {
        ensure!(e.shape() == f.shape(), "`{name}` has another shape");
        let e = e.as_slice::<f32>().context("logits are f32")?;
        let f = f.as_slice::<f32>().context("logits are f32")?;
        for (e, f) in e.iter().zip(f) {
            ensure!(f.is_finite(), "`{name}` is not finite");
            largest = largest.max((e - f).abs());
        }
    }
    Ok(largest)
}

/// Median seconds of each, run alternately so that both see the same machine.
fn race(
    a: &mut Session,
    b: &mut Session,
    inputs: &[(&str, TensorView<'_>)],
) -> anyhow::Result<(f64, f64)> {
    let mut times = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < TIMED || times.0.len() < 5 {
        for (session, times) in [(&mut *a, &mut times.0), (&mut *b, &mut times.1)] {
            let start = Instant::now();
            session.run_in_place(inputs)?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok((median(times.0), median(times.1)))
}
