//! `lancet opt`: runs passes over IR text.

use std::io::Read;
use std::path::PathBuf;

use lancet::{CompileOptions, optimize};

use super::{Failure, Kind, print};

/// Run passes over IR text and print the result
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File of IR text, or `-` for standard input
    file: PathBuf,
    /// Passes in order, such as `raise-linear,detect-sparsity{format = 4x1}`
    #[arg(long, default_value = "")]
    passes: String,
    /// Tell what passes did, and what they declined and why
    #[arg(long)]
    remarks: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let text = if args.file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Failure::io(&args.file, &e))?;
        text
    } else {
        std::fs::read_to_string(&args.file).map_err(|e| Failure::io(&args.file, &e))?
    };
    let mut graph = lancet_ir::parse(&text).map_err(|e| {
        Failure::new(
            Kind::InvalidFile,
            format_args!("{}: {e}", args.file.display()),
        )
    })?;
    let options = CompileOptions {
        pipeline: args.passes.clone(),
        ..CompileOptions::default()
    };
    let report = optimize(&mut graph, &options, &mut |_, _| {}).map_err(|e| match e {
        lancet_passes::PipelineError::Pass { .. } => Failure::new(Kind::Bug, e),
        other => Failure::new(Kind::Usage, other),
    })?;
    if args.remarks {
        for remark in &report.remarks {
            eprintln!("{remark}");
        }
    }
    print(lancet_ir::print(&graph).trim_end())
}
