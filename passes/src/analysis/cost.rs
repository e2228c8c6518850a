//! Predicted time of one matrix product, in named terms.
//!
//! Units are cycles of one core at which it would issue two multiply-adds of 256 bits each, so that time is cycles over what
//! a register-only loop of multiply-adds reaches. A kernel is described by four numbers for each number of vectors that a
//! row of its panel has: cycles per weight that it stores, cycles per bin of 16-bit sums that it widens, cycles per edge of a
//! row group, and cycles per byte of weights that the second-level cache does not hold. [`KERNELS`] holds them, fitted to
//! measurements of the kernels; the benchmark `kernels -- --grid --fit` of the runtime prints the table for the machine that it
//! runs on, and `--grid` alone holds prediction against measurement. Ratios between formats, which is what choosing needs, vary
//! little between cores.

use std::fmt;

use lancet_ir::WeightFormat;

use crate::analysis::integers::IntegerWeights;
use crate::analysis::sparsity::SparsityPattern;

/// Tokens that formats are chosen for: one full panel. Requests of any length run what was chosen.
pub const TOKENS: usize = 32;

/// Tokens of one vector.
const LANES: usize = 8;

/// What cost depends on in a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub pattern: SparsityPattern,
    /// Integers have kernels of their own.
    pub integers: Option<IntegerWeights>,
}

impl Matrix {
    /// A matrix of `f32`.
    pub fn floats(pattern: SparsityPattern) -> Matrix {
        Matrix {
            pattern,
            integers: None,
        }
    }

    /// The integers `w[n, k]`, row-major.
    pub fn integers<T: Copy + Default + PartialEq + Into<i64>>(
        w: &[T],
        n: usize,
        k: usize,
    ) -> Matrix {
        Matrix {
            pattern: SparsityPattern::of(w, n, k),
            integers: Some(IntegerWeights::of(w, k)),
        }
    }

    /// The kernels that multiply this matrix from `format`.
    fn kernels(&self, format: WeightFormat) -> impl Iterator<Item = Kernel> {
        let of_integers: &[Kernel] = match (&self.integers, format) {
            (None, _) => &[],
            (Some(_), WeightFormat::Dense | WeightFormat::Bsr { r: 1, .. }) => {
                &[Kernel::Bytes, Kernel::Words]
            }
            (Some(_), _) => &[Kernel::Pairs],
        };
        let of_floats = self.integers.is_none().then(|| Kernel::of_floats(format));
        of_integers.iter().copied().chain(of_floats)
    }
}

/// Columns after which the kernels for zeros begin again at the first row: with more weights than [`FEW`], and with fewer.
const K_BLOCKS: (usize, usize) = (192, 256);
const FEW: f64 = 0.15;

/// The same for the dense kernel.
const DENSE_K_BLOCK: usize = 256;

/// The same for the kernels of integers.
const INTEGERS_K_BLOCK: usize = 768;

/// Bytes of weights that stay near the core between two panels.
const NEAR_BYTES: f64 = 400e3;

/// What a product is made of, for one panel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Weights that are multiplied, fill included; four for each quad.
    pub weights: f64,
    /// Bins whose 16-bit sums are widened.
    pub bins: f64,
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
    /// Quads of integers, in 16-bit sums that the weights prove not to saturate.
    Bytes,
    /// Quads of integers, widened to 16 bits first.
    Words,
    /// Pairs of any integers of a row, summed as [`Kernel::Bytes`].
    Pairs,
}

impl Kernel {
    /// Every kernel, in the order of [`KERNELS`].
    pub const ALL: [Kernel; 7] = [
        Kernel::Dense,
        Kernel::Unstructured,
        Kernel::Outputs4,
        Kernel::Inputs4,
        Kernel::Bytes,
        Kernel::Words,
        Kernel::Pairs,
    ];

    /// The kernel for `f32` that runs a format.
    pub fn of_floats(format: WeightFormat) -> Kernel {
        match format {
            WeightFormat::Dense => Kernel::Dense,
            WeightFormat::Unstructured | WeightFormat::NOfM { .. } => Kernel::Unstructured,
            WeightFormat::Bsr { r: 1, .. } => Kernel::Inputs4,
            WeightFormat::Bsr { .. } => Kernel::Outputs4,
        }
    }

    /// What the product of a matrix is made of, when this kernel runs it from `format`.
    ///
    /// Quads of zeros are never stored; in the dense format they count as if they were quads like the others, so that blocks are
    /// compared with a matrix without zeros.
    pub fn work(self, matrix: &Matrix, format: WeightFormat) -> Work {
        let pattern = &matrix.pattern;
        let stored = pattern.stored_in(format) as f64;
        let in_quads = pattern.stored_in(WeightFormat::Bsr { r: 1, c: 4 }).max(1) as f64;
        let quads = |of: fn(&IntegerWeights) -> f64| {
            let share = match format {
                WeightFormat::Dense => stored / in_quads,
                WeightFormat::Unstructured
                | WeightFormat::NOfM { .. }
                | WeightFormat::Bsr { .. } => 1.0,
            };
            matrix.integers.as_ref().map_or(0.0, of) * share
        };
        // Weights, bins, rows of a group, bytes of a stored weight with its share of an offset.
        let (weights, bins, rows, bytes) = match self {
            Kernel::Dense => (stored, 0.0, 1.0, 4.0),
            Kernel::Unstructured => (stored, 0.0, 2.0, 6.0),
            Kernel::Outputs4 => (stored, 0.0, 4.0, 4.5),
            Kernel::Inputs4 => (stored, 0.0, 2.0, 4.5),
            Kernel::Bytes => {
                let weights = 4.0 * quads(|w| w.bounded_quads as f64);
                (weights, quads(|w| w.bins), 1.0, 1.5)
            }
            Kernel::Words => (4.0 * quads(|w| w.quads as f64), 0.0, 1.0, 1.5),
            Kernel::Pairs => {
                let of = |of: fn(&IntegerWeights) -> f64| matrix.integers.as_ref().map_or(0.0, of);
                (of(|w| w.weights as f64), of(|w| w.bins_of_pairs), 1.0, 4.0)
            }
        };
        let k_block = match self {
            Kernel::Dense => DENSE_K_BLOCK,
            Kernel::Bytes | Kernel::Words | Kernel::Pairs => INTEGERS_K_BLOCK,
            Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4
                if pattern.nnz as f64 <= FEW * (pattern.n * pattern.k) as f64 =>
            {
                K_BLOCKS.1
            }
            Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4 => K_BLOCKS.0,
        };
        Work {
            weights,
            bins,
            edges: pattern.n as f64 / rows * pattern.k.div_ceil(k_block) as f64,
            far_bytes: (weights * bytes - NEAR_BYTES).max(0.0),
        }
    }

    /// Least cycles of `work` on rows of `vectors` vectors: two multiplications in a cycle. One of bytes takes four weights, and one
    /// more widens a bin, or two bins of pairs; one of words takes two.
    fn issue(self, work: Work, vectors: usize) -> f64 {
        let multiplications = match self {
            Kernel::Dense | Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4 => {
                work.weights
            }
            Kernel::Bytes => work.weights / 4.0 + work.bins,
            Kernel::Words => work.weights / 2.0,
            Kernel::Pairs => work.weights / 4.0 + work.bins / 2.0,
        };
        multiplications * vectors as f64 / 2.0
    }
}

/// Cycles of one kernel for panels whose rows have 1, 2, 3 and 4 vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Constants {
    /// Per stored weight, above the issue of its multiply-adds: loads that do not hide, splats, loop control.
    pub weight: [f64; 4],
    /// Per bin, above the issue of what widens it.
    pub bin: [f64; 4],
    /// Per edge of a row group: accumulators in and out, trip counts that are mispredicted.
    pub edge: [f64; 4],
    /// Per byte that comes from beyond the second-level cache.
    pub far_byte: [f64; 4],
}

impl Constants {
    /// Cycles above the issue of multiplications that `work` is predicted to take on rows of `vectors` vectors, by term.
    fn terms(&self, work: Work, vectors: usize) -> (f64, f64, f64) {
        let v = vectors - 1;
        (
            work.weights * self.weight[v] + work.bins * self.bin[v],
            work.edges * self.edge[v],
            work.far_bytes * self.far_byte[v],
        )
    }
}

/// Cycles of one product, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Issue of the multiplications of tokens, fill included.
    pub fma: f64,
    /// What the inner loop takes above that: loads that do not hide, splats, widening, loop control.
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

/// Predicts the product of a matrix, run by `kernel` from `format`, and `tokens` tokens.
pub fn predict(matrix: &Matrix, kernel: Kernel, format: WeightFormat, tokens: usize) -> Cost {
    let work = kernel.work(matrix, format);
    let constants = &KERNELS[kernel as usize];
    let mut cost = Cost::default();
    let mut left = tokens;
    for vectors in panels(tokens) {
        let held = left.min(vectors * LANES);
        left -= held;
        let share = held as f64 / (vectors * LANES) as f64;
        let (loads, edges, stream) = constants.terms(work, vectors);
        let fma = kernel.issue(work, vectors);
        cost.fma += share * fma;
        cost.loads += share * loads;
        cost.edges += share * edges;
        cost.stream += share * stream;
        cost.remainder += (1.0 - share) * (fma + loads + edges + stream);
    }
    cost
}

/// Formats that are chosen between, the first of equal ones. Taller blocks are stored as 4x1 and wider ones as 1x4.
const CANDIDATES: [WeightFormat; 3] = [
    WeightFormat::Unstructured,
    WeightFormat::Bsr { r: 4, c: 1 },
    WeightFormat::Bsr { r: 1, c: 4 },
];

/// How a matrix is multiplied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub format: WeightFormat,
    pub kernel: Kernel,
    /// For [`TOKENS`] tokens.
    pub cost: Cost,
}

/// How much faster than quads integers are to be in pairs. Packed weights serve every CPU, and one with dot products of bytes multiplies
/// quads several times faster than this model knows.
const QUADS_ADVANTAGE: f64 = 1.25;

/// The format and the kernel that are predicted to be fastest; dense where nothing beats it.
pub fn choose(matrix: &Matrix) -> Choice {
    let pattern = &matrix.pattern;
    let sparse = CANDIDATES
        .into_iter()
        .filter(|&format| pattern.stored_in(format) < pattern.n * pattern.k)
        .flat_map(|format| matrix.kernels(format).map(move |kernel| (format, kernel)));
    let dense = choose_kernel(matrix, WeightFormat::Dense);
    fastest(matrix, sparse, Some(dense)).unwrap_or(dense)
}

/// The kernel that is predicted to be fastest for `format`.
pub fn choose_kernel(matrix: &Matrix, format: WeightFormat) -> Choice {
    let kernels = matrix.kernels(format).map(|kernel| (format, kernel));
    fastest(matrix, kernels, None).expect("every format has a kernel")
}

/// The first of those that are predicted to be fastest, `best` before all.
fn fastest(
    matrix: &Matrix,
    candidates: impl IntoIterator<Item = (WeightFormat, Kernel)>,
    best: Option<Choice>,
) -> Option<Choice> {
    let compared = |choice: &Choice| {
        let in_pairs = choice.kernel == Kernel::Pairs;
        choice.cost.total() * if in_pairs { QUADS_ADVANTAGE } else { 1.0 }
    };
    let choices = candidates.into_iter().map(|(format, kernel)| Choice {
        format,
        kernel,
        cost: predict(matrix, kernel, format, TOKENS),
    });
    best.into_iter()
        .chain(choices)
        .min_by(|a, b| compared(a).total_cmp(&compared(b)))
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
        let rows: Vec<Row> = samples
            .iter()
            .filter(|s| s.vectors == vectors && 0.0 < s.cycles)
            .map(|s| {
                let work = s.work;
                let rest = s.cycles - kernel.issue(work, vectors);
                let row = [work.weights, work.bins, work.edges, work.far_bytes, rest];
                row.map(|x| x / s.cycles)
            })
            .collect();
        let v = vectors - 1;
        [
            constants.weight[v],
            constants.bin[v],
            constants.edge[v],
            constants.far_byte[v],
        ] = least_squares(&rows);
    }
    constants
}

/// Constants of one number of vectors.
const TERMS: usize = 4;

/// What a sample has of each term, and what remains to be explained by them.
type Row = [f64; TERMS + 1];

/// The `x` without a negative element that makes the sum of `(row[..TERMS] · x - row[TERMS])²` least, over which elements are zero.
fn least_squares(rows: &[Row]) -> [f64; TERMS] {
    let error = |x: &[f64; TERMS]| -> f64 {
        let predicted = |r: &Row| r.iter().zip(x).map(|(r, x)| r * x).sum::<f64>();
        rows.iter().map(|r| (predicted(r) - r[TERMS]).powi(2)).sum()
    };
    (1..1u32 << TERMS)
        .filter_map(|used| normal_equations(rows, used))
        .filter(|x| x.iter().all(|v| 0.0 <= *v))
        .chain([[0.0; TERMS]])
        .min_by(|a, b| error(a).total_cmp(&error(b)))
        .unwrap_or_default()
}

/// The least-squares solution with elements outside the bits of `used` zero, by elimination; `None` if it is not unique.
fn normal_equations(rows: &[Row], used: u32) -> Option<[f64; TERMS]> {
    let columns: Vec<usize> = (0..TERMS).filter(|c| used >> c & 1 == 1).collect();
    let n = columns.len();
    let dot = |a: usize, b: usize| rows.iter().map(|r| r[a] * r[b]).sum::<f64>();
    let mut m: Vec<Vec<f64>> = columns
        .iter()
        .map(|&a| columns.iter().chain([&TERMS]).map(|&b| dot(a, b)).collect())
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
    let mut x = [0.0; TERMS];
    for (i, &c) in columns.iter().enumerate() {
        x[c] = m[i][n] / m[i][i];
    }
    Some(x)
}

/// Fitted constants, in the order of [`Kernel::ALL`]. Machine: AMD Zen 1, AVX2, one core.
pub const KERNELS: [Constants; 7] = [
    // Dense
    Constants {
        weight: [0.000, 0.000, 0.000, 0.000],
        bin: [0.0; 4],
        edge: [21.795, 5.151, 30.054, 10.624],
        far_byte: [0.036, 0.017, 0.042, 0.026],
    },
    // Unstructured
    Constants {
        weight: [0.365, 0.238, 0.310, 0.330],
        bin: [0.0; 4],
        edge: [5.935, 10.378, 16.616, 17.438],
        far_byte: [0.013, 0.013, 0.004, 0.002],
    },
    // Outputs4
    Constants {
        weight: [0.182, 0.048, 0.062, 0.159],
        bin: [0.0; 4],
        edge: [4.698, 7.031, 11.503, 14.286],
        far_byte: [0.011, 0.013, 0.017, 0.023],
    },
    // Inputs4
    Constants {
        weight: [0.298, 0.169, 0.140, 0.158],
        bin: [0.0; 4],
        edge: [3.475, 5.369, 10.718, 10.431],
        far_byte: [0.005, 0.000, 0.017, 0.000],
    },
    // Bytes
    Constants {
        weight: [0.196, 0.315, 0.438, 0.587],
        bin: [0.376, 0.990, 1.650, 2.162],
        edge: [1.345, 1.227, 1.606, 2.284],
        far_byte: [0.010, 0.015, 0.018, 0.016],
    },
    // Words
    Constants {
        weight: [0.768, 0.895, 1.233, 1.562],
        bin: [0.0; 4],
        edge: [1.185, 0.919, 1.640, 2.194],
        far_byte: [0.006, 0.021, 0.052, 0.012],
    },
    // Pairs
    Constants {
        weight: [0.367, 0.493, 0.959, 0.889],
        bin: [0.127, 0.127, 0.305, 0.415],
        edge: [3.553, 4.431, 6.009, 7.383],
        far_byte: [0.016, 0.019, 0.020, 0.017],
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
        let matrix = Matrix::floats(SparsityPattern::of(&w, 64, 64));
        for format in CANDIDATES.into_iter().chain([WeightFormat::Dense]) {
            let [half, full] =
                [12, 16].map(|tokens| predict(&matrix, Kernel::of_floats(format), format, tokens));
            assert!((half.total() - full.total()).abs() < 1e-6 * full.total());
            assert!((half.remainder - full.total() / 4.0).abs() < 1e-6 * full.total());
            assert_eq!(full.remainder, 0.0);
        }
    }

    /// Integers `w[64, k]` of magnitudes that `magnitude` makes of numbers in 0..1000, with this share of zeros in blocks `1xC`.
    fn integers(k: usize, zeros: u64, c: usize, magnitude: impl Fn(u64) -> i16) -> Matrix {
        let hash = |i: usize| {
            let i = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (i ^ (i >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
        };
        let weight = |i: usize| match hash(i) {
            _ if hash(i / c + 1_000_000) % 100 < zeros => 0,
            h if h % 2 == 0 => magnitude(h / 2 % 1000),
            h => -magnitude(h / 2 % 1000),
        };
        let w: Vec<i16> = (0..64 * k).map(weight).collect();
        Matrix::integers(&w, 64, k)
    }

    #[test]
    fn arithmetic_follows_from_the_weights() {
        let chosen = |matrix: &Matrix| {
            let choice = choose(matrix);
            assert_eq!(choose_kernel(matrix, choice.format), choice);
            (choice.format, choice.kernel)
        };
        let uniform = |h: u64| (h * 127 / 999) as i16;
        let ends = |_| 127;
        let (dense, inputs) = (WeightFormat::Dense, WeightFormat::Bsr { r: 1, c: 4 });
        // Few weights of a sum are as large as they may be, and many.
        let matrix = integers(2048, 0, 1, uniform);
        assert_eq!(chosen(&matrix), (dense, Kernel::Bytes));
        assert_eq!(chosen(&integers(2048, 0, 1, ends)), (dense, Kernel::Words));
        let pairs = (WeightFormat::Unstructured, Kernel::Pairs);
        assert_eq!(chosen(&integers(768, 80, 1, uniform)), pairs);
        assert_eq!(
            chosen(&integers(768, 80, 4, uniform)),
            (inputs, Kernel::Bytes)
        );
        assert_eq!(chosen(&integers(768, 80, 1, |_| 1000)), pairs);
    }

    #[test]
    fn fitting_finds_the_constants_that_made_the_samples() {
        let truth = Constants {
            weight: [0.25, 0.5, 0.125, 0.25],
            bin: [1.0, 0.0, 2.0, 3.0],
            edge: [3.0, 5.0, 0.0, 8.0],
            far_byte: [0.0, 0.25, 0.5, 0.125],
        };
        let mut samples = Vec::new();
        for vectors in 1..=4 {
            for i in 1..9 {
                let i = f64::from(i);
                let work = Work {
                    weights: 1000.0 * i,
                    bins: 50.0 * i + 30.0 * (i % 3.0),
                    edges: 100.0 + 7.0 * i * i,
                    far_bytes: (3000.0 * i - 9000.0).max(0.0),
                };
                let (loads, edges, stream) = truth.terms(work, vectors);
                let cycles = Kernel::Bytes.issue(work, vectors) + loads + edges + stream;
                samples.push(Sample {
                    work,
                    vectors,
                    cycles,
                });
            }
        }
        let found = fit(Kernel::Bytes, &samples);
        for v in 0..4 {
            assert!(
                (found.weight[v] - truth.weight[v]).abs() < 1e-6,
                "{found:?}"
            );
            assert!((found.bin[v] - truth.bin[v]).abs() < 1e-4, "{found:?}");
            assert!((found.edge[v] - truth.edge[v]).abs() < 1e-3, "{found:?}");
            assert!(
                (found.far_byte[v] - truth.far_byte[v]).abs() < 1e-6,
                "{found:?}"
            );
        }
    }
}
