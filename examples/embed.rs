//! Runs a model inside an application: load once, keep one session per caller, give tensors by name.
//!
//! ```text
//! cargo run --release -p lancet-examples --example embed -- MODEL [N_TOKENS]
//! ```
//!
//! MODEL is an artifact, or an ONNX file that is compiled in memory first. An application that only loads artifacts
//! depends on `lancet-runtime` alone, which has the same `Model` and `Session` and none of the compiler.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context;
use lancet::{
    CompileOptions, DType, Data, Model, ModelOptions, Session, Tensor, TensorView, compile_file,
};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path: PathBuf = args.next().context("usage: embed MODEL [N_TOKENS]")?.into();
    let n_tokens: usize = args.next().as_deref().unwrap_or("16").parse()?;

    let model = load(&path)?;
    // A model is cheap to clone and may be shared between threads; a session belongs to one caller at a time.
    let mut session = Session::new(&model);

    let inputs: Vec<(String, Tensor)> = model
        .inputs()
        .iter()
        .map(|port| {
            Ok((
                port.name.clone(),
                example_input(port.dtype, &port.name, &port.shape, n_tokens)?,
            ))
        })
        .collect::<anyhow::Result<_>>()?;
    let views: Vec<(&str, TensorView<'_>)> =
        inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    for (name, tensor) in &views {
        println!("input  {name}: {}{:?}", tensor.dtype(), tensor.shape());
    }

    // Outputs stay in the session until its next run; `Session::run` would copy them out.
    session.run_in_place(&views)?;
    for port in model.outputs() {
        let output = session.output(&port.name)?;
        let first: Vec<f32> = output.to_f32_vec().into_iter().take(8).collect();
        println!(
            "output {}: {}{:?} {first:?}",
            port.name,
            output.dtype(),
            output.shape()
        );
    }
    Ok(())
}

fn load(path: &Path) -> anyhow::Result<Model> {
    if path.extension().is_some_and(|e| e == "onnx") {
        let compiled = compile_file(path, &CompileOptions::default())?;
        return Ok(compiled.into_model(&ModelOptions::default())?);
    }
    Ok(Model::load(path)?)
}

/// Token identifiers 1, 2, 3, ..; masks of ones; zeros for everything else. One sequence.
fn example_input(
    dtype: DType,
    name: &str,
    shape: &[String],
    n_tokens: usize,
) -> anyhow::Result<Tensor> {
    // The first free size is the batch, the others lengths.
    let shape: Vec<usize> = shape
        .iter()
        .enumerate()
        .map(|(i, size)| size.parse().unwrap_or(if i == 0 { 1 } else { n_tokens }))
        .collect();
    let n: usize = shape.iter().product();
    let data = match dtype {
        DType::I64 if name.contains("mask") => Data::I64(vec![1; n]),
        DType::I64 if name.contains("input") => Data::I64((1..=n as i64).collect()),
        DType::I32 if name.contains("mask") => Data::I32(vec![1; n]),
        DType::F32 if name.contains("mask") => Data::F32(vec![1.0; n]),
        other => Data::zeros(other, n),
    };
    Tensor::try_new(shape, data).with_context(|| format!("input `{name}`"))
}
