//! The `lancet` command.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("lancet: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
