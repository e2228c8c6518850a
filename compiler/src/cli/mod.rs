//! The command line: one file per verb, and the only place that prints or exits.
//!
//! Data goes to stdout, text for people to stderr. Exit codes: 0 fine, 1 the answer is no, 2 usage, 3 invalid file,
//! 4 unsupported, 5 limit, 6 I/O, 70 a bug of ours.

mod bench;
mod check;
mod compile;
mod dump;
mod inputs;
mod inspect;
mod layerwise;
mod model;
mod npz;
mod opt;
mod run;
mod synth;

use std::fmt;
use std::io::{self, Write};

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};

/// Compiles pruned and quantized BERT models and runs them on CPUs.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Compile(compile::Args),
    Run(run::Args),
    Check(check::Args),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Dump(dump::Args),
    Opt(opt::Args),
    Synth(synth::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// [`Failure`] with the exit code and the message for stderr.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Compile(args) => compile::run(&args),
            Verb::Run(args) => run::run(&args),
            Verb::Check(args) => check::run(&args),
            Verb::Bench(args) => bench::run(&args),
            Verb::Inspect(args) => inspect::run(&args),
            Verb::Dump(args) => dump::run(&args),
            Verb::Opt(args) => opt::run(&args),
            Verb::Synth(args) => synth::run(&args),
        }
    }
}

/// Why a verb did not succeed, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The question was answered, and the answer is no.
    No = 1,
    Usage = 2,
    InvalidFile = 3,
    Unsupported = 4,
    Limit = 5,
    Io = 6,
    Bug = 70,
}

/// A verb that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    /// A failure of this kind; the message starts in lower case and says what and where.
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Failure {
        Failure {
            kind,
            message: message.to_string(),
        }
    }

    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        self.kind as u8
    }

    /// A file could not be read or written.
    fn io(path: &std::path::Path, error: &io::Error) -> Failure {
        Failure::new(Kind::Io, format_args!("{}: {error}", path.display()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Reads a number of threads that an operating system can be asked for.
fn n_threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1024)
}

/// Prints data and a line end on stdout.
///
/// A reader that has gone away, such as `head`, wants no more: that is no failure.
fn print(data: impl fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{data}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::io("standard output".as_ref(), &e))
        }
        _ => Ok(()),
    }
}
