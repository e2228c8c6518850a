//! `lancet synth`: a BERT ONNX file with drawn weights.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::ValueEnum;

use lancet::onnx::synth::{BertConfig, PrunePattern, write_bert};

use super::{Failure, Kind, print};

/// Write a BERT model with drawn weights, for trying things without any model
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Size of the model
    model: Model,
    /// Fraction of the encoder's weights that are zero
    #[arg(long, default_value_t = 0.0)]
    sparsity: f64,
    /// Which weights are pruned together: `unstructured`, blocks `RxC` of R outputs by C inputs, or `N:M`
    #[arg(long, default_value = "unstructured")]
    pattern: PrunePattern,
    /// Seed of the drawn weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write
    #[arg(short, long)]
    output: PathBuf,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Model {
    BertBase,
    BertTiny,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if !(0.0..1.0).contains(&args.sparsity) {
        return Err(Failure::new(
            Kind::Usage,
            format_args!("--sparsity {}: must be in 0..1", args.sparsity),
        ));
    }
    let config = match args.model {
        Model::BertBase => BertConfig::BASE,
        Model::BertTiny => BertConfig::TINY,
    };
    super::model::write_atomically(&args.output, |file| {
        let mut out = BufWriter::new(file);
        write_bert(config, args.sparsity, args.pattern, args.seed, &mut out)?;
        out.flush()
    })?;
    let bytes = std::fs::metadata(&args.output)
        .map_err(|e| Failure::io(&args.output, &e))?
        .len();
    if args.json {
        return print(serde_json::json!({ "model": args.output, "bytes": bytes }));
    }
    eprintln!("{}: {:.1} MB", args.output.display(), bytes as f64 / 1e6);
    Ok(())
}
