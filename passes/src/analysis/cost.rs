//! Predicted time of one matrix product, in named terms.
//!
//! Units are cycles of one core per full panel of 32 tokens. A kernel's inner loop issues fused multiply-adds on two pipes
//! and loads on two ports; what it reaches of that bound is its *overhead factor*, measured per kernel; group edges,
//! k-block edges and the stream of weights come on top. The constants are those of a core with 256-bit vectors, two
//! multiply-add pipes and two load ports; ratios between formats, which is what choosing needs, vary little between cores.

use std::fmt;

use lancet_ir::WeightFormat;

use crate::analysis::sparsity::SparsityPattern;

/// Tokens of the panel that costs are for.
pub const TOKENS: usize = 32;

/// Vectors of one row of a panel.
const VECTORS: f64 = TOKENS as f64 / 8.0;

/// Cycles of one product over a panel, by cause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Issue of multiply-adds, fill included: `stored * vectors / 2`.
    pub fma: f64,
    /// Cycles above that which the inner loop takes: loads that do not hide, splats, loop control.
    pub inner_overhead: f64,
    /// Edges of row groups: accumulators in and out, trip counts that are mispredicted.
    pub edges: f64,
}

impl Cost {
    /// Sum of the terms, in cycles.
    pub fn total(&self) -> f64 {
        self.fma + self.inner_overhead + self.edges
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} cycles = fma {:.0} + inner {:.0} + edges {:.0}",
            self.total(),
            self.fma,
            self.inner_overhead,
            self.edges
        )
    }
}

/// Predicts the product of a matrix with this pattern stored in `format`.
pub fn predict(pattern: &SparsityPattern, format: WeightFormat) -> Cost {
    let stored = pattern.stored_in(format) as f64;
    let k_blocks = (pattern.k as f64 / 256.0).ceil().max(1.0);
    // (cycles of the inner loop over the issue bound, rows per group, cycles per group edge), fitted to the kernel
    // benchmark's 768 x 768 rows at 80, 90 and 95 % zeros.
    let (overhead, rows, edge) = match format {
        WeightFormat::Dense => (0.10, 3.0, 6.0),
        WeightFormat::Unstructured | WeightFormat::NOfM { .. } => (0.176, 2.0, 28.0),
        WeightFormat::Bsr { r: 1, .. } => (0.13, 2.0, 28.0),
        WeightFormat::Bsr { .. } => (0.025, 4.0, 50.0),
    };
    let fma = stored * VECTORS / 2.0;
    Cost {
        fma,
        inner_overhead: fma * overhead,
        edges: pattern.n as f64 / rows * k_blocks * edge,
    }
}

/// Formats that are chosen between. Taller blocks are stored as 4x1 and wider ones as 1x4.
const CANDIDATES: [WeightFormat; 3] = [
    WeightFormat::Bsr { r: 4, c: 1 },
    WeightFormat::Bsr { r: 1, c: 4 },
    WeightFormat::Unstructured,
];

/// The format that is predicted to be fastest, with its cost; dense where nothing beats it.
pub fn choose(pattern: &SparsityPattern) -> (WeightFormat, Cost) {
    let dense = (WeightFormat::Dense, predict(pattern, WeightFormat::Dense));
    CANDIDATES
        .into_iter()
        .filter(|&format| pattern.stored_in(format) < pattern.n * pattern.k)
        .map(|format| (format, predict(pattern, format)))
        .fold(dense, |best, next| {
            if next.1.total() < best.1.total() {
                next
            } else {
                best
            }
        })
}
