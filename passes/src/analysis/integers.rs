//! What the weights of an integer matrix prove about exact products with bytes, and what those products take.
//!
//! How matrices are stored in quads, four consecutive inputs of a row, or in pairs, any two of them, and in bins of these is in
//! `compiler/docs/kernels.md`. What is counted here follows from sums of weights, in one pass over them; the packer finds out the
//! same by packing.

/// Greatest sum of positive, or of negative, weights that meet in one 16-bit sum.
const BOUND: u64 = 128;

/// Quads of the largest bins.
const LARGEST_BIN: f64 = 4.0;

/// Weights of the largest bins of pairs.
const LARGEST_BIN_OF_PAIRS: f64 = 6.0;

/// Part of the bound that bins leave unused, as weights do not add up to it: 1.2 is what the packer reaches, within a quarter.
const SLACK: f64 = 1.2;

/// What is known of integer weights.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerWeights {
    /// Quads that are not all zero; one whose weights take more than 8 bits counts as often as it is split.
    pub quads: usize,
    /// The same, where a quad is also split that could saturate by itself.
    pub bounded_quads: usize,
    /// About how many bins these fill: no more than four quads fit in one, nor more weights than the bound.
    pub bins: f64,
    /// Weights that are not zero; one that takes more than 8 bits counts as often as it is split.
    pub weights: usize,
    /// About how many bins of pairs these fill.
    pub bins_of_pairs: f64,
}

impl IntegerWeights {
    /// Counts `w`, row-major with `k` columns.
    pub fn of<T: Copy + Into<i64>>(w: &[T], k: usize) -> IntegerWeights {
        let mut all = IntegerWeights {
            quads: 0,
            bounded_quads: 0,
            bins: 0.0,
            weights: 0,
            bins_of_pairs: 0.0,
        };
        for row in w.chunks(k.max(1)) {
            let mut sums = [0; 4];
            let (mut bounded, mut weights) = (0, 0);
            for quad in row.chunks(4) {
                let mut quad_sums = [0; 4];
                let mut n = 0;
                for (i, &w) in quad.iter().enumerate() {
                    let w: i64 = w.into();
                    let magnitude = w.unsigned_abs();
                    quad_sums[i / 2 * 2 + usize::from(w < 0)] += magnitude;
                    let pieces = magnitude.div_ceil(if w < 0 { 128 } else { 127 });
                    weights += pieces as usize;
                    n = n.max(pieces);
                }
                let largest = quad_sums.into_iter().max().unwrap_or(0);
                all.quads += n as usize;
                bounded += n.max(largest.div_ceil(BOUND)) as usize;
                sums.iter_mut()
                    .zip(quad_sums)
                    .for_each(|(sum, s)| *sum += s);
            }
            let largest = sums.into_iter().max().unwrap_or(0) as f64;
            all.bounded_quads += bounded;
            all.bins += (bounded as f64 / LARGEST_BIN).max(SLACK * largest / BOUND as f64);
            // One sum holds all weights of a bin of pairs.
            let largest = (sums[0] + sums[2]).max(sums[1] + sums[3]) as f64;
            let places = weights as f64 / LARGEST_BIN_OF_PAIRS;
            all.weights += weights;
            all.bins_of_pairs += places.max(SLACK * largest / BOUND as f64);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quads_are_split_by_width_and_by_sums() {
        let of = |w: [i16; 8]| {
            let w = IntegerWeights::of(&w, 8);
            (w.quads, w.bounded_quads)
        };
        assert_eq!(of([0; 8]), (0, 0));
        assert_eq!(of([64, 64, -64, -64, 0, 0, 0, 1]), (2, 2));
        assert_eq!(of([65, 64, 0, 0, 127, -128, 1, -1]), (2, 3));
        assert_eq!(of([128, 0, 0, 0, -128, -1, 0, 0]), (3, 4));
        assert_eq!(of([0, 0, 1000, 1000, 0, 0, 0, 0]), (8, 16));
    }

    #[test]
    fn bins_are_bounded_by_places_and_by_sums() {
        let small = IntegerWeights::of(&[1i8; 64], 32);
        assert_eq!(small.bins, 4.0);
        let large = IntegerWeights::of(&[64i8; 64], 32);
        assert_eq!(large.bins, 2.0 * 1.2 * 8.0);
    }
}
