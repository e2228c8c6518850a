//! What later layers cost when a model drops tokens on the way, and which ones depends on the data.
//!
//! ```text
//! cargo run --release -p lancet-examples --example fewer_tokens [N_TOKENS] [THREADS]
//! ```
//!
//! Two layers of BERT-base's shape run on every token of one sequence (512 by default). Then each token is given a score, the
//! tokens whose score is above a threshold are gathered, as in Block-Skim (arXiv:2112.08560) and length-adaptive models
//! (arXiv:2010.07003), and four more layers run on these. The number of tokens is the result of a `NonZero`: it is known when
//! that step has run. Layers that cost in proportion to it take `kept` times as long as with all tokens; what they take is
//! measured for several thresholds, in turn.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, ensure};
use lancet::{CompileOptions, Model, ModelOptions, Session, Tensor, compile};

const WIDTH: usize = 768;
const N_HEADS: usize = 12;
const FFN: usize = 3072;
const N_FIRST: usize = 2;
const N_LATER: usize = 4;
/// Shares of the tokens that are kept.
const SHARES: [f64; 5] = [1.0, 0.75, 0.5, 0.25, 0.1];
const N_ROUNDS: usize = 15;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let n_tokens: usize = args.next().as_deref().unwrap_or("512").parse()?;
    let threads: usize = args.next().as_deref().unwrap_or("1").parse()?;
    ensure!(0 < n_tokens, "no tokens");
    let graph = lancet_ir::parse(&graph_text())?;
    let compiled = compile(graph, &CompileOptions::default(), &mut |_, _| {})?;
    let options = ModelOptions {
        threads: Some(threads),
        ..ModelOptions::default()
    };
    let model = compiled.into_model(&options)?;
    let x = Tensor::new([1, n_tokens, WIDTH], wave(n_tokens * WIDTH));

    let thresholds = thresholds(&model, &x)?;
    let mut sessions: Vec<Session> = SHARES.iter().map(|_| Session::new(&model)).collect();
    let mut times = vec![Vec::new(); SHARES.len()];
    let mut counts = vec![0; SHARES.len()];
    for round in 0..=N_ROUNDS {
        for (i, session) in sessions.iter_mut().enumerate() {
            let time = run(session, &x, thresholds[i])?;
            counts[i] = session.output("y")?.shape()[1];
            // The first run of a session makes its kernels.
            if round != 0 {
                times[i].push(time);
            }
        }
    }
    println!(
        "{n_tokens} tokens, {threads} threads; medians of {N_ROUNDS} requests, shares of what all tokens take"
    );
    println!("  tokens   kept   first layers ms   later layers ms   share   request ms");
    let medians: Vec<Time> = times.iter().map(|t| Time::median(t)).collect();
    for (count, time) in counts.iter().zip(&medians) {
        println!(
            "  {count:6}   {:4.2}   {:15.2}   {:15.2}   {:5.2}   {:10.2}",
            *count as f64 / n_tokens as f64,
            time.first * 1e3,
            time.later * 1e3,
            time.later / medians[0].later,
            time.whole * 1e3
        );
    }
    Ok(())
}

/// The encoder as IR text, the way an exporter writes it.
fn graph_text() -> String {
    let mut constants = String::new();
    let mut body = String::new();
    for layer in 0..N_FIRST {
        body += &layer_text(layer, "x", &mut constants);
    }
    writeln!(
        constants,
        "const @score: f32[{WIDTH}, 1] = random(seed = 999)
const @last: i64[1] = [-1]
const @first: i64[1] = [0]"
    )
    .expect("text grows");
    writeln!(
        body,
        "%scores = matmul %x{N_FIRST}, @score
%by_token = squeeze %scores, @last
%flat = squeeze %by_token, @first
%above = greater_or_equal %flat, %threshold
%places = non_zero %above
%kept = squeeze %places, @first
%k{N_FIRST} = gather %x{N_FIRST}, %kept {{axis = 1}}"
    )
    .expect("text grows");
    for layer in N_FIRST..N_FIRST + N_LATER {
        body += &layer_text(layer, "k", &mut constants);
    }
    format!(
        "graph @fewer_tokens(%x0: f32[1, s, {WIDTH}], %threshold: f32[]) dims(s) {{
{constants}{body}return %k{} as \"y\", %flat as \"scores\"
}}",
        N_FIRST + N_LATER
    )
}

/// One layer from `%<stem><layer>` to the next number.
fn layer_text(layer: usize, stem: &str, constants: &mut String) -> String {
    let scale = 1.0 / ((WIDTH / N_HEADS) as f64).sqrt();
    let mut matrix = |name: &str, rows: usize, columns: usize| {
        let range = 1.7 / (rows as f64).sqrt();
        let seed = layer * 10 + name.len() + usize::from(name.as_bytes()[0]);
        writeln!(
            constants,
            "const @{name}{layer}: f32[{rows}, {columns}] = random(seed = {seed}, range = -{range}..{range})
const @b{name}{layer}: f32[{columns}] = random(seed = {seed}, range = -0.1..0.1)"
        )
        .expect("text grows");
    };
    for name in ["q", "k", "v", "o"] {
        matrix(name, WIDTH, WIDTH);
    }
    matrix("up", WIDTH, FFN);
    matrix("down", FFN, WIDTH);
    for name in ["g0", "g1"] {
        writeln!(constants, "const @{name}_{layer}: f32[{WIDTH}] = ones").expect("text grows");
    }
    let linear = |name: &str, from: &str, to: &str| {
        format!(
            "%m{to}{layer} = matmul {from}, @{name}{layer}
%{to}_{layer} = add %m{to}{layer}, @b{name}{layer}
"
        )
    };
    let x = format!("%{stem}{layer}");
    let mut text = String::new();
    for name in ["q", "k", "v"] {
        text += &linear(name, &x, &format!("p{name}"));
    }
    text += &format!(
        "%a_{layer} = scaled_dot_product_attention %pq_{layer}, %pk_{layer}, %pv_{layer} {{num_heads = {N_HEADS}, scale = {scale}}}
"
    );
    text += &linear("o", &format!("%a_{layer}"), "po");
    text += &format!(
        "%r_{layer} = add %po_{layer}, {x}
%n_{layer} = layer_normalization %r_{layer}, @g0_{layer} {{epsilon = 0.00001}}
"
    );
    text += &linear("up", &format!("%n_{layer}"), "pu");
    text += &format!("%h_{layer} = gelu %pu_{layer}\n");
    text += &linear("down", &format!("%h_{layer}"), "pd");
    text += &format!(
        "%t_{layer} = add %pd_{layer}, %n_{layer}
%{stem}{} = layer_normalization %t_{layer}, @g1_{layer} {{epsilon = 0.00001}}
",
        layer + 1
    );
    text
}

/// Numbers without a pattern that matters.
fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.731).sin()).collect()
}

/// For each share, the threshold that keeps it.
fn thresholds(model: &Model, x: &Tensor) -> anyhow::Result<Vec<f32>> {
    let mut session = Session::new(model);
    let all = Tensor::scalar(f32::NEG_INFINITY);
    session.run_in_place(&[("x0", x.view()), ("threshold", all.view())])?;
    let mut scores = session.output("scores")?.to_f32_vec();
    scores.sort_by(|a, b| f32::total_cmp(b, a));
    let at = |share: f64| ((scores.len() as f64 * share).round() as usize).max(1) - 1;
    Ok(SHARES.iter().map(|&share| scores[at(share)]).collect())
}

/// Seconds of a request and of its layers before and after tokens are dropped.
#[derive(Clone, Copy)]
struct Time {
    whole: f64,
    first: f64,
    later: f64,
}

impl Time {
    fn median(times: &[Time]) -> Time {
        let of = |f: fn(&Time) -> f64| {
            let mut values: Vec<f64> = times.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Time {
            whole: of(|t| t.whole),
            first: of(|t| t.first),
            later: of(|t| t.later),
        }
    }
}

fn run(session: &mut Session, x: &Tensor, threshold: f32) -> anyhow::Result<Time> {
    let threshold = Tensor::scalar(threshold);
    session.set_tracing(true);
    let start = Instant::now();
    session.run_in_place(&[("x0", x.view()), ("threshold", threshold.view())])?;
    let whole = start.elapsed().as_secs_f64();
    let steps = session.trace();
    let dropped = steps.iter().position(|s| s.kernel.contains("non_zero"));
    let dropped = dropped.context("no step drops tokens")?;
    let seconds = |from: usize, to: usize| {
        let times = steps[from..to].iter().map(|s| s.nanoseconds);
        times.sum::<u64>() as f64 * 1e-9
    };
    Ok(Time {
        whole,
        first: seconds(0, dropped),
        later: seconds(dropped, steps.len()),
    })
}
