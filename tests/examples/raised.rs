//! Which operators the raising passes left as the exporter wrote them, model by model.
//!
//! `cargo run -p lancet-tests --example raised -- [--pipeline TEXT] [--print] [--remarks] MODEL.onnx...`

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use lancet::onnx::{ImportOptions, import_file};
use lancet_ir::Graph;
use lancet_ops::Operator;
use lancet_passes::{Checks, PASSES, PassManager, Pipeline, Report, Target};

const PIPELINE: &str = "fold-constants,simplify-shapes,eliminate-identities,cse,fold-constants,\
    raise-layer-norm,raise-rms-norm,raise-gelu,raise-linear,raise-attention,raise-embedding,\
    simplify-shapes,eliminate-identities,cse,fuse-epilogue";

/// Operators that a fully raised encoder has none of.
const WATCHED: &[Operator] = &[
    Operator::MatMul,
    Operator::Gemm,
    Operator::Softmax,
    Operator::Gather,
    Operator::Erf,
    Operator::ReduceMean,
    Operator::Transpose,
];

fn main() -> Result<()> {
    let (mut pipeline, mut print, mut remarks, mut models) =
        (PIPELINE.to_owned(), false, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--pipeline" => pipeline = args.next().unwrap_or_default(),
            "--print" => print = true,
            "--remarks" => remarks = true,
            _ => models.push(arg),
        }
    }
    if models.is_empty() {
        bail!("name at least one model");
    }
    let pipeline = Pipeline::parse(&pipeline, PASSES)?;
    for model in models {
        match raise(&model, &pipeline) {
            Ok((graph, report)) => {
                println!("{model}: {}", summary(&graph));
                if print {
                    println!("{}", lancet_ir::print(&graph));
                }
                if remarks {
                    report.remarks.iter().for_each(|r| println!("  {r}"));
                }
            }
            Err(e) => println!("{model}: {e:#}"),
        }
    }
    Ok(())
}

fn raise(model: &str, pipeline: &Pipeline) -> Result<(Graph, Report)> {
    let mut graph = import_file(Path::new(model), &ImportOptions::default())?;
    let report = PassManager::new(Target::default())
        .with_checks(Checks::Verify)
        .run(pipeline, &mut graph)?;
    Ok((graph, report))
}

/// Counts of raised operators, then of watched ones that are left with their names.
fn summary(graph: &Graph) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut left: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut masks = 0;
    for node in graph.order() {
        let Some(op) = graph.op(node).operator() else {
            continue;
        };
        if matches!(
            op,
            Operator::Linear
                | Operator::ScaledDotProductAttention
                | Operator::EmbeddingLookup
                | Operator::LayerNormalization
                | Operator::RMSNormalization
                | Operator::Gelu
                | Operator::Swish
        ) {
            *counts.entry(op.schema().onnx).or_default() += 1;
        }
        if op == Operator::ScaledDotProductAttention && graph.operand(node, 3).is_some() {
            masks += 1;
        }
        if WATCHED.contains(&op) {
            left.entry(op.schema().onnx)
                .or_default()
                .push(graph.node_name(node));
        }
    }
    format!("{counts:?}, {masks} key masks; left {left:?}")
}
