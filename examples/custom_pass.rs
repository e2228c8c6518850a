//! A pass of one's own: division by a power of two becomes multiplication by its reciprocal.
//!
//! ```text
//! cargo run --release -p lancet-examples --example custom_pass      runs it on the text below
//! cargo test -p lancet-examples --example custom_pass               snapshot-tests it
//! ```
//!
//! Before:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @eight: f32[] = full(8)
//!   %0 = div %x, @eight : f32[2, 3]
//!   return %0
//! }
//! ```
//! After:
//! ```ir
//! graph @g(%x: f32[2, 3]) {
//!   const @reciprocal: f32[] = 0.125
//!   %0 = mul %x, @reciprocal : f32[2, 3]
//!   return %0
//! }
//! ```
//!
//! Identity: `x / 2^n = x · 2^-n`.
//!
//! Preconditions: the divisor is a constant with one value, a power of two whose reciprocal is a normal number. Another
//! constant is a remark, and the graph stays as it is.
//!
//! Numeric effect: exact. Both sides round the same real number.
#![forbid(unsafe_code)]

use std::sync::Arc;

use lancet_ir::{Graph, Op, Value};
use lancet_ops::{Attributes, DType, Operator, Tensor};
use lancet_passes::{
    Changed, Pass, PassContext, PassError, PassInfo, PassManager, Pipeline, Report, Rewrites,
    Target, matcher,
};

/// The row of a table of passes, as `lancet_passes::PASSES` has them.
const INFO: PassInfo = PassInfo {
    name: "multiply-by-reciprocal",
    summary: "turns division by a power of two into multiplication",
    options: &[],
    new: || Box::new(MultiplyByReciprocal),
};

struct MultiplyByReciprocal;

/// A division to rewrite.
struct Match {
    division: Value,
    dividend: Value,
    reciprocal: f32,
}

impl Pass for MultiplyByReciprocal {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn run(&self, graph: &mut Graph, cx: &mut PassContext<'_>) -> Result<Changed, PassError> {
        // First look, at a graph that does not change; then rewrite.
        let mut matches = Vec::new();
        for node in graph.order() {
            match find(graph, matcher::result(node)) {
                Some(Ok(found)) => matches.push(found),
                Some(Err(reason)) => cx.missed(graph, node, reason),
                None => {}
            }
        }
        let mut rewrites = Rewrites::new();
        for m in &matches {
            let tensor = Arc::new(Tensor::scalar(m.reciprocal));
            let reciprocal = graph.add_const("reciprocal", tensor);
            let mul = Op::Apply(Operator::Mul, Attributes::new());
            rewrites.replace_by(graph, m.division, mul, &[m.dividend, reciprocal])?;
        }
        Ok(rewrites.changed())
    }
}

/// Whether `value` is a division that the pass is about, and what to make of it or why not.
fn find(graph: &Graph, value: Value) -> Option<Result<Match, String>> {
    let (dividend, divisor) = matcher::binary(graph, value, Operator::Div)?;
    // A divisor of higher rank than the dividend would give the result another shape.
    let same_type = graph.ty(dividend) == graph.ty(value);
    if !same_type || !matcher::is_dtype(graph, value, DType::F32) {
        return None;
    }
    let divisor = matcher::scalar(graph, divisor)?;
    let reciprocal = 1.0 / divisor;
    let power_of_two = divisor.is_normal() && divisor.to_bits() << 9 == 0;
    if !power_of_two || !reciprocal.is_normal() {
        return Some(Err(format!("the divisor {divisor} is no power of two")));
    }
    Some(Ok(Match {
        division: value,
        dividend,
        reciprocal,
    }))
}

/// Runs the pass and two of Lancet's own, as a compiler with this pass would.
fn optimize(graph: &mut Graph) -> anyhow::Result<Report> {
    let mut table = lancet_passes::PASSES.to_vec();
    table.push(INFO);
    let pipeline = Pipeline::parse("fold-constants,multiply-by-reciprocal,cse", &table)?;
    Ok(PassManager::new(Target::default()).run(&pipeline, graph)?)
}

const SCORES: &str = "\
graph @scores(%q: f32[s, 64], %k: f32[s, 64]) dims(s) {
  const @eight: f32[] = full(8)
  const @three: f32[] = full(3)
  %0 = transpose %k {perm = [1, 0]} : f32[64, s]
  %1 = matmul %q, %0 : f32[s, s]
  %2 = div %1, @eight : f32[s, s]
  %3 = div %2, @three : f32[s, s]
  return %3
}
";

fn main() -> anyhow::Result<()> {
    let mut graph = lancet_ir::parse(SCORES)?;
    let report = optimize(&mut graph)?;
    for remark in &report.remarks {
        println!("; {remark}");
    }
    print!("{}", lancet_ir::print(&graph));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the pass makes of a graph, and what it says.
    fn run(text: &str) -> (Graph, String) {
        let mut graph = lancet_ir::parse(text).expect("the test's text is IR");
        let report = optimize(&mut graph).expect("the pipeline runs");
        let remarks: Vec<String> = report.remarks.iter().map(|r| format!("; {r}\n")).collect();
        let text = remarks.concat() + &lancet_ir::print(&graph);
        (graph, text)
    }

    /// Says *unchanged*: whoever changes the pass sees what it means for this graph.
    #[test]
    fn snapshot() {
        insta::assert_snapshot!(run(SCORES).1);
    }

    /// Says *right*: the values before and after are the same bits.
    #[test]
    fn evaluation_is_the_same() {
        let before = lancet_ir::parse(SCORES).expect("the constant is IR");
        let (after, _) = run(SCORES);
        let operand = |seed: u32| {
            let values = (0..3 * 64u32).map(|i| ((i * 37 + seed) % 101) as f32 / 7.0 - 5.0);
            Tensor::new([3, 64], values.collect())
        };
        let inputs = [("q", operand(1)), ("k", operand(2))];
        let expected = lancet_ir::eval(&before, &inputs).expect("the inputs fit");
        let found = lancet_ir::eval(&after, &inputs).expect("the inputs fit");
        assert_eq!(expected, found);
    }

    #[test]
    fn leaves_other_divisors_alone() {
        let text = "graph @g(%x: f32[2]) {\n  const @c: f32[] = full(3)\n  %0 = div %x, @c : f32[2]\n  return %0\n}\n";
        assert!(run(text).1.ends_with(text));
    }

    /// The pass's documentation holds.
    #[test]
    fn documentation() {
        let source = include_str!("custom_pass.rs");
        let block = |n: usize| -> String {
            let block = source.split("//! ```ir\n").nth(n).unwrap_or_default();
            let lines = block.lines().take_while(|l| *l != "//! ```");
            lines
                .map(|l| l.trim_start_matches("//! ").to_owned() + "\n")
                .collect()
        };
        assert_eq!(run(&block(1)).1, block(2));
    }
}
