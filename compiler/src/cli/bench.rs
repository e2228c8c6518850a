//! `lancet bench`: latency and throughput at one shape.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use lancet::{ModelOptions, Session, TensorView};
use lancet_runtime::StepTrace;
use serde_json::json;

use super::inputs::draw;
use super::{Failure, Kind, model, print};

/// Measure latency and throughput
///
/// `first ms` is the first request after loading, kernels for its shapes included; `kernels ms` is what emitting them took.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// ONNX model or artifact
    model: PathBuf,
    /// Sequences in a request
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Tokens in a sequence, padding included
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Tokens of each sequence that are no padding, such as `8,128,31`; as many sequences as there are numbers
    #[arg(long, value_delimiter = ',', conflicts_with = "batch")]
    lengths: Option<Vec<usize>>,
    /// Variant of an artifact that holds several; by default its first
    #[arg(long)]
    variant: Option<String>,
    /// Threads; by default what the machine grants this process
    #[arg(long, value_parser = super::n_threads())]
    threads: Option<usize>,
    /// Requests to measure
    #[arg(long, conflicts_with = "seconds")]
    iters: Option<usize>,
    /// Measure for this long; 3 seconds if neither this nor --iters is given
    #[arg(long)]
    seconds: Option<f64>,
    /// Print time, share and rate per kind of step
    #[arg(long)]
    profile: bool,
    /// Report as JSON on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    fn batch(&self) -> usize {
        self.lengths.as_ref().map_or(self.batch, Vec::len)
    }
}

/// Least time to warm up: caches, page tables and clock.
const WARM_UP: Duration = Duration::from_millis(300);

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let seconds = args.seconds.unwrap_or(3.0);
    if !(seconds > 0.0 && seconds <= 86_400.0) {
        return Err(Failure::new(
            Kind::Usage,
            format_args!("--seconds {seconds}: must be in 0..86400"),
        ));
    }
    if args.iters == Some(0) || args.batch == 0 || args.seq == 0 {
        return Err(Failure::new(
            Kind::Usage,
            "--iters, --batch and --seq must be at least 1",
        ));
    }
    if let Some(&longest) = args.lengths.iter().flatten().find(|&&n| args.seq < n) {
        let message = format!("--lengths {longest}: longer than --seq {}", args.seq);
        return Err(Failure::new(Kind::Usage, message));
    }
    let loaded = model::load(
        &args.model,
        &ModelOptions {
            threads: args.threads,
            variant: args.variant.clone(),
            ..ModelOptions::default()
        },
    )?;
    let inputs = draw(
        loaded.plan(),
        args.batch(),
        args.seq,
        args.lengths.as_deref(),
    )?;
    let views: Vec<(&str, TensorView<'_>)> =
        inputs.iter().map(|(n, t)| (n.as_str(), t.view())).collect();
    let mut session = Session::new(&loaded);
    let fail = |e| model::runtime_failure(&args.model, &e);

    let start = Instant::now();
    session.run_in_place(&views).map_err(fail)?;
    let first = start.elapsed();
    let emitted = loaded.emitted();
    while start.elapsed() < WARM_UP {
        session.run_in_place(&views).map_err(fail)?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    loop {
        let t = Instant::now();
        session.run_in_place(&views).map_err(fail)?;
        times.push(t.elapsed().as_secs_f64() * 1e3);
        let done = match args.iters {
            Some(n) => times.len() >= n,
            None => start.elapsed().as_secs_f64() >= seconds,
        };
        if done {
            break;
        }
    }
    if args.profile {
        session.set_tracing(true);
        session.run_in_place(&views).map_err(fail)?;
        print_profile(session.trace(), loaded.threads());
    }
    report(args, loaded.threads(), first, emitted, times)
}

/// Prints time, share and rate for each kernel, longest first, on stderr.
fn print_profile(trace: &[StepTrace], n_threads: usize) {
    let mut kinds = BTreeMap::<&str, (usize, u64, u64)>::new();
    for step in trace {
        let (n, nanoseconds, flops) = kinds.entry(&step.kernel).or_default();
        *n += 1;
        *nanoseconds += step.nanoseconds;
        *flops += step.flops;
    }
    let total: u64 = trace.iter().map(|s| s.nanoseconds).sum::<u64>().max(1);
    let peak = lancet_runtime::peak_gflops() * n_threads as f64;
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, (_, nanoseconds, _))| std::cmp::Reverse(*nanoseconds));
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["step", "count", "ms", "share", "GFLOP/s", "of peak"]);
    let all = (
        "all",
        (trace.len(), total, trace.iter().map(|s| s.flops).sum()),
    );
    for (name, (n, nanoseconds, flops)) in kinds.into_iter().chain([all]) {
        let rate = flops as f64 / nanoseconds.max(1) as f64;
        let (gflops, share) = match flops {
            0 => (String::new(), String::new()),
            _ => (
                format!("{rate:.1}"),
                format!("{:.0} %", 100.0 * rate / peak),
            ),
        };
        table.add_row([
            name.to_owned(),
            n.to_string(),
            format!("{:.3}", nanoseconds as f64 * 1e-6),
            format!("{:.1} %", 100.0 * nanoseconds as f64 / total as f64),
            gflops,
            share,
        ]);
    }
    eprintln!("{table}");
}

fn report(
    args: &Args,
    n_threads: usize,
    first: Duration,
    (n_kernels, emitting): (usize, Duration),
    mut times: Vec<f64>,
) -> Result<(), Failure> {
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let tokens = (args.batch() * args.seq) as f64;
    let tokens_per_second = tokens / (at(0.5) * 1e-3);
    if args.json {
        return print(json!({
            "model": args.model,
            "batch": args.batch(),
            "seq": args.seq,
            "threads": n_threads,
            "iterations": times.len(),
            "first_ms": first.as_secs_f64() * 1e3,
            "kernels": n_kernels,
            "emit_ms": emitting.as_secs_f64() * 1e3,
            "median_ms": at(0.5),
            "p5_ms": at(0.05),
            "p95_ms": at(0.95),
            "mean_ms": mean,
            "tokens_per_second": tokens_per_second,
        }));
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header([
        "batch",
        "tokens",
        "threads",
        "runs",
        "median ms",
        "p5",
        "p95",
        "mean",
        "tokens/s",
        "first ms",
        "kernels ms",
    ]);
    table.add_row([
        args.batch().to_string(),
        args.seq.to_string(),
        n_threads.to_string(),
        times.len().to_string(),
        format!("{:.3}", at(0.5)),
        format!("{:.3}", at(0.05)),
        format!("{:.3}", at(0.95)),
        format!("{mean:.3}"),
        format!("{tokens_per_second:.0}"),
        format!("{:.3}", first.as_secs_f64() * 1e3),
        format!("{:.3}", emitting.as_secs_f64() * 1e3),
    ]);
    print(table)
}
