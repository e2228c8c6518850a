//! The `lancet` command.
#![forbid(unsafe_code)]

use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match catch_unwind(|| cli.run()) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            eprintln!("lancet: {failure}");
            ExitCode::from(failure.exit_code())
        }
        // The panic has printed its message.
        Err(_) => ExitCode::from(cli::Kind::Bug as u8),
    }
}
