//! Predicted time of one matrix product, in named terms.
//!
//! Units are cycles of one core at which it would issue two multiply-adds of 256 bits each, so that time is cycles over what
//! a register-only loop of multiply-adds reaches. A kernel is described by three numbers for each number of vectors that a
//! row of its panel has: cycles per weight that it stores, cycles per edge of a row group, and cycles per byte of weights
//! that the second-level cache does not hold. [`KERNELS`] holds them, fitted to measurements of the kernels; the benchmark
//! `kernels -- --grid --fit` of the runtime prints the table for the machine that it runs on, and `--grid` alone holds
//! prediction against measurement. Ratios between formats, which is what choosing needs, vary little between cores.

use std::fmt;

use lancet_ir::WeightFormat;

use crate::analysis::sparsity::SparsityPattern;

/// Tokens that formats are chosen for: one full panel. Requests of any length run what was chosen.
pub const TOKENS: usize = 32;

/// Tokens of one vector.
const LANES: usize = 8;

/// What weights are. Products of bytes with integers have a kernel of their own, and those for `f32` where that is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Elements {
    Floats,
    Integers,
}

/// Columns after which the kernels for zeros begin again at the first row: with more weights than [`FEW`], and with fewer.
const K_BLOCKS: (usize, usize) = (192, 256);
const FEW: f64 = 0.15;

/// The same for the dense kernel.
const DENSE_K_BLOCK: usize = 256;

/// The same for the kernel of bytes.
const QUADS_K_BLOCK: usize = 768;

/// Bytes of weights that stay near the core between two panels.
const NEAR_BYTES: f64 = 400e3;

/// What a product is made of, for one panel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Weights that are multiplied, fill included.
    pub weights: f64,
    /// Row groups, once for each k-block.
    pub edges: f64,
    /// Bytes of weights beyond those that stay near the core.
    pub far_bytes: f64,
}

/// The kernels that constants are fitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kernel {
    Dense,
    Unstructured,
    /// Blocks of four outputs.
    Outputs4,
    /// Blocks of four inputs.
    Inputs4,
    /// Four inputs that are bytes, dense or in blocks.
    Quads,
}

impl Kernel {
    /// Every kernel, in the order of [`KERNELS`].
    pub const ALL: [Kernel; 5] = [
        Kernel::Dense,
        Kernel::Unstructured,
        Kernel::Outputs4,
        Kernel::Inputs4,
        Kernel::Quads,
    ];

    /// The kernel that runs a format.
    pub fn of(elements: Elements, format: WeightFormat) -> Kernel {
        match format {
            WeightFormat::Dense | WeightFormat::Bsr { r: 1, .. }
                if elements == Elements::Integers =>
            {
                Kernel::Quads
            }
            WeightFormat::Dense => Kernel::Dense,
            WeightFormat::Unstructured | WeightFormat::NOfM { .. } => Kernel::Unstructured,
            WeightFormat::Bsr { r: 1, .. } => Kernel::Inputs4,
            WeightFormat::Bsr { .. } => Kernel::Outputs4,
        }
    }

    /// What the product of a matrix with this pattern is made of, when it is stored in `format`.
    pub fn work(self, pattern: &SparsityPattern, format: WeightFormat) -> Work {
        let weights = pattern.stored_in(format) as f64;
        // Rows of a group, bytes of a stored weight with its share of an offset.
        let (rows, bytes) = match self {
            Kernel::Dense => (1.0, 4.0),
            Kernel::Unstructured => (2.0, 6.0),
            Kernel::Outputs4 => (4.0, 4.5),
            Kernel::Inputs4 => (2.0, 4.5),
            Kernel::Quads => (1.0, 1.5),
        };
        let k_block = match self {
            Kernel::Dense => DENSE_K_BLOCK,
            Kernel::Quads => QUADS_K_BLOCK,
            _ if pattern.nnz as f64 <= FEW * (pattern.n * pattern.k) as f64 => K_BLOCKS.1,
            _ => K_BLOCKS.0,
        };
        Work {
            weights,
            edges: pattern.n as f64 / rows * pattern.k.div_ceil(k_block) as f64,
            far_bytes: (weights * bytes - NEAR_BYTES).max(0.0),
        }
    }

    /// Least cycles per stored weight on rows of `vectors` vectors: two multiply-adds are issued in a cycle, or two operations on
    /// bytes, of which a vector of quads takes a product and a sum, and two more for each bin of about three quads.
    fn issue(self, vectors: usize) -> f64 {
        let operations = match self {
            Kernel::Dense | Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4 => 1.0,
            Kernel::Quads => (2.0 + 2.0 / 3.0) / 4.0,
        };
        operations * vectors as f64 / 2.0
    }
}

/// Cycles of one kernel for panels whose rows have 1, 2, 3 and 4 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Constants {
    /// Per stored weight, above the issue of its multiply-adds: loads that do not hide, splats, loop control.
    pub weight: [f64; 4],
    /// Per edge of a row group: accumulators in and out, trip counts that are mispredicted.
    pub edge: [f64; 4],
    /// Per byte that comes from beyond the second-level cache.
    pub far_byte: [f64; 4],
}

impl Constants {
    /// Cycles above the issue of multiply-adds that `work` is predicted to take on rows of `vectors` vectors, by term.
    fn terms(&self, work: Work, vectors: usize) -> (f64, f64, f64) {
        let v = vectors - 1;
        (
            work.weights * self.weight[v],
            work.edges * self.edge[v],
            work.far_bytes * self.far_byte[v],
        )
    }
}

/// Cycles of one product, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Issue of the multiply-adds of tokens, or of what bytes take instead, fill included.
    pub fma: f64,
    /// What the inner loop takes above that: loads that do not hide, splats, loop control.
    pub loads: f64,
    /// Edges of row groups and k-blocks: accumulators in and out, trip counts that are mispredicted.
    pub edges: f64,
    /// Weights from beyond the second-level cache.
    pub stream: f64,
    /// Lanes of the last panel that hold no token.
    pub remainder: f64,
}

impl Cost {
    /// Sum of the terms, in cycles.
    pub fn total(&self) -> f64 {
        self.terms().into_iter().map(|(_, cycles)| cycles).sum()
    }

    /// Names and cycles of the terms.
    pub fn terms(&self) -> [(&'static str, f64); 5] {
        [
            ("fma", self.fma),
            ("loads", self.loads),
            ("edges", self.edges),
            ("stream", self.stream),
            ("remainder", self.remainder),
        ]
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} cycles", self.total())?;
        let terms = self.terms().into_iter().filter(|t| 0.5 <= t.1);
        for (i, (name, cycles)) in terms.enumerate() {
            let sign = if i == 0 { '=' } else { '+' };
            write!(f, " {sign} {name} {cycles:.0}")?;
        }
        Ok(())
    }
}

/// The vectors of each panel that `tokens` tokens are put into.
pub fn panels(tokens: usize) -> impl Iterator<Item = usize> {
    let vectors = tokens.div_ceil(LANES);
    (0..vectors.div_ceil(4)).map(move |p| (vectors - 4 * p).min(4))
}

/// Predicts the product of a matrix with this pattern, stored in `format`, and `tokens` tokens.
pub fn predict(
    elements: Elements,
    pattern: &SparsityPattern,
    format: WeightFormat,
    tokens: usize,
) -> Cost {
    let kernel = Kernel::of(elements, format);
    let work = kernel.work(pattern, format);
    let constants = &KERNELS[kernel as usize];
    let mut cost = Cost::default();
    let mut left = tokens;
    for vectors in panels(tokens) {
        let held = left.min(vectors * LANES);
        left -= held;
        let share = held as f64 / (vectors * LANES) as f64;
        let (loads, edges, stream) = constants.terms(work, vectors);
        let fma = work.weights * kernel.issue(vectors);
        cost.fma += share * fma;
        cost.loads += share * loads;
        cost.edges += share * edges;
        cost.stream += share * stream;
        cost.remainder += (1.0 - share) * (fma + loads + edges + stream);
    }
    cost
}

/// Formats that are chosen between. Taller blocks are stored as 4x1 and wider ones as 1x4.
const CANDIDATES: [WeightFormat; 3] = [
    WeightFormat::Bsr { r: 4, c: 1 },
    WeightFormat::Bsr { r: 1, c: 4 },
    WeightFormat::Unstructured,
];

/// The format that is predicted to be fastest, with its cost for [`TOKENS`] tokens; dense where nothing beats it.
///
/// Integers that are not exact in `f32` can only be [`Kernel::Quads`].
pub fn choose(
    elements: Elements,
    pattern: &SparsityPattern,
    exact_in_f32: bool,
) -> (WeightFormat, Cost) {
    let cost = |format| (format, predict(elements, pattern, format, TOKENS));
    CANDIDATES
        .into_iter()
        .filter(|&format| exact_in_f32 || Kernel::of(elements, format) == Kernel::Quads)
        .filter(|&format| pattern.stored_in(format) < pattern.n * pattern.k)
        .map(cost)
        .fold(cost(WeightFormat::Dense), |best, next| {
            if next.1.total() < best.1.total() {
                next
            } else {
                best
            }
        })
}

/// One measurement of a kernel: what one panel is made of, its vectors, and the cycles that it took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub work: Work,
    pub vectors: usize,
    pub cycles: f64,
}

/// The constants that predict the samples of one kernel with the least squared relative error. Vectors that no sample has get
/// zeros.
pub fn fit(kernel: Kernel, samples: &[Sample]) -> Constants {
    let mut constants = Constants::default();
    for vectors in 1..=4 {
        let rows: Vec<[f64; 4]> = samples
            .iter()
            .filter(|s| s.vectors == vectors && 0.0 < s.cycles)
            .map(|s| {
                let rest = s.cycles - s.work.weights * kernel.issue(vectors);
                [s.work.weights, s.work.edges, s.work.far_bytes, rest].map(|x| x / s.cycles)
            })
            .collect();
        let [weight, edge, far_byte] = least_squares(&rows);
        constants.weight[vectors - 1] = weight;
        constants.edge[vectors - 1] = edge;
        constants.far_byte[vectors - 1] = far_byte;
    }
    constants
}

/// The `x` without a negative element that makes the sum of `(row[..3] · x - row[3])²` least, over which elements are zero.
fn least_squares(rows: &[[f64; 4]]) -> [f64; 3] {
    let error = |x: &[f64; 3]| -> f64 {
        rows.iter()
            .map(|r| (r[0] * x[0] + r[1] * x[1] + r[2] * x[2] - r[3]).powi(2))
            .sum()
    };
    (1..8u32)
        .filter_map(|used| normal_equations(rows, used))
        .filter(|x| x.iter().all(|v| 0.0 <= *v))
        .chain([[0.0; 3]])
        .min_by(|a, b| error(a).total_cmp(&error(b)))
        .unwrap_or_default()
}

/// The least-squares solution with elements outside the bits of `used` zero, by elimination; `None` if it is not unique.
fn normal_equations(rows: &[[f64; 4]], used: u32) -> Option<[f64; 3]> {
    let columns: Vec<usize> = (0..3).filter(|c| used >> c & 1 == 1).collect();
    let n = columns.len();
    let dot = |a: usize, b: usize| rows.iter().map(|r| r[a] * r[b]).sum::<f64>();
    let mut m: Vec<Vec<f64>> = columns
        .iter()
        .map(|&a| columns.iter().chain([&3]).map(|&b| dot(a, b)).collect())
        .collect();
    for i in 0..n {
        let pivot = m[i][i];
        if pivot.abs() <= 1e-12 * dot(columns[i], columns[i]) || !pivot.is_finite() {
            return None;
        }
        for row in (0..n).filter(|&r| r != i) {
            let factor = m[row][i] / pivot;
            let subtracted = m[i].clone();
            for (x, y) in m[row].iter_mut().zip(&subtracted).skip(i) {
                *x -= factor * y;
            }
        }
    }
    let mut x = [0.0; 3];
    for (i, &c) in columns.iter().enumerate() {
        x[c] = m[i][n] / m[i][i];
    }
    Some(x)
}

/// Fitted constants, in the order of [`Kernel::ALL`]. Machine: AMD Zen 1, AVX2, one core.
pub const KERNELS: [Constants; 5] = [
    // Dense
    Constants {
        weight: [0.000, 0.000, 0.000, 0.000],
        edge: [21.795, 5.151, 30.054, 10.624],
        far_byte: [0.036, 0.017, 0.042, 0.026],
    },
    // Unstructured
    Constants {
        weight: [0.365, 0.238, 0.310, 0.330],
        edge: [5.935, 10.378, 16.616, 17.438],
        far_byte: [0.013, 0.013, 0.004, 0.002],
    },
    // Outputs4
    Constants {
        weight: [0.182, 0.048, 0.062, 0.159],
        edge: [4.698, 7.031, 11.503, 14.286],
        far_byte: [0.011, 0.013, 0.017, 0.023],
    },
    // Inputs4
    Constants {
        weight: [0.298, 0.169, 0.140, 0.158],
        edge: [3.475, 5.369, 10.718, 10.431],
        far_byte: [0.005, 0.000, 0.017, 0.000],
    },
    // Quads
    Constants {
        weight: [0.035, 0.012, 0.000, 0.000],
        edge: [2.712, 3.744, 5.351, 7.296],
        far_byte: [0.015, 0.020, 0.004, 0.000],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_fill_panels() {
        let vectors = |tokens| panels(tokens).collect::<Vec<_>>();
        assert_eq!(vectors(0), [0; 0]);
        assert_eq!(vectors(1), [1]);
        assert_eq!(vectors(33), [4, 1]);
        assert_eq!(vectors(128), [4; 4]);
    }

    #[test]
    fn lanes_without_tokens_are_a_term() {
        let w: Vec<f32> = (0..64 * 64).map(|i| f32::from(i % 3 == 0)).collect();
        let pattern = SparsityPattern::of(&w, 64, 64);
        for format in CANDIDATES.into_iter().chain([WeightFormat::Dense]) {
            let [half, full] =
                [12, 16].map(|tokens| predict(Elements::Floats, &pattern, format, tokens));
            assert!((half.total() - full.total()).abs() < 1e-6 * full.total());
            assert!((half.remainder - full.total() / 4.0).abs() < 1e-6 * full.total());
            assert_eq!(full.remainder, 0.0);
        }
    }

    #[test]
    fn fitting_finds_the_constants_that_made_the_samples() {
        let truth = Constants {
            weight: [0.25, 0.5, 0.125, 0.25],
            edge: [3.0, 5.0, 0.0, 8.0],
            far_byte: [0.0, 0.25, 0.5, 0.125],
        };
        let mut samples = Vec::new();
        for vectors in 1..=4 {
            for i in 1..9 {
                let i = f64::from(i);
                let work = Work {
                    weights: 1000.0 * i,
                    edges: 100.0 + 7.0 * i * i,
                    far_bytes: (3000.0 * i - 9000.0).max(0.0),
                };
                let (loads, edges, stream) = truth.terms(work, vectors);
                let cycles = work.weights * Kernel::Quads.issue(vectors) + loads + edges + stream;
                samples.push(Sample {
                    work,
                    vectors,
                    cycles,
                });
            }
        }
        let found = fit(Kernel::Quads, &samples);
        for v in 0..4 {
            assert!(
                (found.weight[v] - truth.weight[v]).abs() < 1e-6,
                "{found:?}"
            );
            assert!((found.edge[v] - truth.edge[v]).abs() < 1e-3, "{found:?}");
            assert!(
                (found.far_byte[v] - truth.far_byte[v]).abs() < 1e-6,
                "{found:?}"
            );
        }
    }
}
