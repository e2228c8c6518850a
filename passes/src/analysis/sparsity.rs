//! What pattern the zeros of one weight matrix form.
//!
//! Counts, over the canonical `[out, in]` matrix, how many elements each candidate format would have to store. A format
//! stores whole blocks; an element of a stored block that is zero is *fill* that costs time for nothing.

use lancet_ir::WeightFormat;

use super::sparse::SparseMatrix;

/// Output blocks (R x 1) and input blocks (1 x C) that kernels exist for, larger first.
pub const BLOCKS: [(u8, u8); 5] = [(32, 1), (16, 1), (8, 1), (4, 1), (1, 4)];

/// Position in [`BLOCKS`] of the only one that groups inputs.
const INPUT_BLOCKS: usize = 4;

/// Columns beyond which memory is not to grow with them.
const MANY_COLUMNS: usize = 1 << 20;

/// Zeros of one matrix, counted for every candidate format.
#[derive(Clone, Debug, PartialEq)]
pub struct SparsityPattern {
    /// Outputs (rows).
    pub n: usize,
    /// Inputs (columns).
    pub k: usize,
    /// Elements that are not zero.
    pub nnz: usize,
    /// Rows without any non-zero: dead outputs.
    pub n_zero_rows: usize,
    /// Columns without any non-zero: inputs that nothing reads.
    pub n_zero_cols: usize,
    /// Elements that blocks of each of [`BLOCKS`] would store, in that order.
    pub stored: [usize; BLOCKS.len()],
    /// The largest number of non-zeros in a group of four consecutive inputs.
    pub max_in_group_of_4: u8,
}

impl SparsityPattern {
    /// Counts the zeros of `w[n, k]`, row-major. Both zeros are zero; NaN is not.
    pub fn of<T: Copy + Default + PartialEq>(w: &[T], n: usize, k: usize) -> SparsityPattern {
        let zero = T::default();
        assert_eq!(w.len(), n * k, "a matrix has n * k elements");
        let mut pattern = SparsityPattern {
            n,
            k,
            nnz: 0,
            n_zero_rows: 0,
            n_zero_cols: 0,
            stored: [0; BLOCKS.len()],
            max_in_group_of_4: 0,
        };
        // Bit `b` of a column's mask: the column has a non-zero in the current band of rows of `BLOCKS[b]`; bit 7: in any row.
        const ANY_ROW: u8 = 1 << 7;
        let mut masks = vec![0u8; k];
        for i in 0..n {
            let row = &w[i * k..(i + 1) * k];
            let mut in_row = 0;
            for (mask, &x) in masks.iter_mut().zip(row) {
                let set = u8::from(x != zero);
                in_row += usize::from(set);
                *mask |= set.wrapping_neg();
            }
            pattern.nnz += in_row;
            pattern.n_zero_rows += usize::from(in_row == 0);
            for group in row.chunks(4) {
                let count = group.iter().map(|x| u8::from(*x != zero)).sum::<u8>();
                pattern.max_in_group_of_4 = pattern.max_in_group_of_4.max(count);
                pattern.stored[INPUT_BLOCKS] += if count > 0 { group.len() } else { 0 };
            }
            for (b, &(r, _)) in BLOCKS[..INPUT_BLOCKS].iter().enumerate() {
                let r = usize::from(r);
                if (i + 1) % r == 0 || i + 1 == n {
                    let used: usize = masks.iter().map(|m| usize::from(m >> b & 1)).sum();
                    pattern.stored[b] += used * (i % r + 1);
                    masks.iter_mut().for_each(|m| *m &= !(1 << b));
                }
            }
        }
        let used_cols = masks.iter().map(|m| m & ANY_ROW != 0).collect::<Vec<_>>();
        pattern.n_zero_cols = used_cols.iter().filter(|u| !**u).count();
        pattern
    }

    /// Counts the zeros of a matrix that is held as its values. What is held may be zero too, and counts as such.
    pub fn of_sparse(w: SparseMatrix<'_>) -> SparsityPattern {
        let held = w.places().zip(w.values);
        let places: Vec<(usize, usize)> = held.filter(|(_, v)| **v != 0.0).map(|p| p.0).collect();
        let (n, k) = (w.n, w.k);
        // Columns by rank where there are too many to keep a number for each.
        let mut columns: Vec<usize> = places.iter().map(|&(_, j)| j).collect();
        let mut n_columns = k;
        if MANY_COLUMNS < k {
            let mut used = columns.clone();
            used.sort_unstable();
            used.dedup();
            columns
                .iter_mut()
                .for_each(|j| *j = used.partition_point(|u| u < j));
            n_columns = used.len();
        }
        // How many different `(row / r, column)` there are, each with what it counts.
        let mut last = vec![usize::MAX; n_columns];
        let mut count = |r: usize, of: &dyn Fn(usize) -> usize| {
            last.fill(usize::MAX);
            let mut sum = 0;
            for (&(i, _), &j) in places.iter().zip(&columns) {
                if std::mem::replace(&mut last[j], i / r) != i / r {
                    sum += of(i / r);
                }
            }
            sum
        };
        let mut stored = [0; BLOCKS.len()];
        for (stored, &(r, _)) in stored.iter_mut().zip(&BLOCKS[..INPUT_BLOCKS]) {
            let r = usize::from(r);
            *stored = count(r, &|band| r.min(n - band * r));
        }
        let n_used_columns = count(n, &|_| 1);
        let in_groups = || places.chunk_by(|a, b| (a.0, a.1 / 4) == (b.0, b.1 / 4));
        stored[INPUT_BLOCKS] = in_groups().map(|g| 4.min(k - g[0].1 / 4 * 4)).sum();
        SparsityPattern {
            n,
            k,
            nnz: places.len(),
            n_zero_rows: n - places.chunk_by(|a, b| a.0 == b.0).count(),
            n_zero_cols: k - n_used_columns,
            stored,
            max_in_group_of_4: in_groups().map(|g| g.len() as u8).max().unwrap_or(0),
        }
    }

    /// Fraction of elements that are zero; 0 for an empty matrix.
    pub fn sparsity(&self) -> f64 {
        let total = self.n * self.k;
        if total == 0 {
            0.0
        } else {
            1.0 - self.nnz as f64 / total as f64
        }
    }

    /// Elements that a format stores, fill included.
    pub fn stored_in(&self, format: WeightFormat) -> usize {
        match format {
            WeightFormat::Dense => self.n * self.k,
            WeightFormat::Unstructured | WeightFormat::NOfM { .. } => self.nnz,
            WeightFormat::Bsr { r, c } => BLOCKS
                .iter()
                .position(|b| *b == (r, c))
                .map_or(self.n * self.k, |i| self.stored[i]),
        }
    }

    /// The largest block whose stored elements are mostly non-zero: what a person would call the pattern.
    pub fn name(&self) -> String {
        if self.nnz == self.n * self.k {
            return "dense".to_owned();
        }
        for (i, (r, c)) in BLOCKS.iter().enumerate() {
            if self.stored[i] < self.n * self.k && self.nnz * 100 >= self.stored[i] * 95 {
                return format!("{r}x{c} blocks");
            }
        }
        match self.max_in_group_of_4 {
            n @ 1..=2 => format!("{n}:4"),
            _ => "unstructured".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(n: usize, k: usize, keep: impl Fn(usize, usize) -> bool) -> Vec<f32> {
        (0..n * k)
            .map(|i| if keep(i / k, i % k) { 1.0 } else { 0.0 })
            .collect()
    }

    #[test]
    fn a_matrix_and_its_values_have_the_same_pattern() {
        for seed in 0..40usize {
            let (n, k) = (1 + seed * 7 % 41, 1 + seed * 5 % 23);
            let keep = |i: usize, j: usize| {
                (i / (1 + seed % 5) * 31 + j * 17 + seed).is_multiple_of(1 + seed % 6)
            };
            let w = matrix(n, k, keep);
            let at = |i: &usize| w[*i] != 0.0 || i % 11 == 3;
            let places: Vec<usize> = (0..w.len()).filter(at).collect();
            let positions: Vec<i64> = places.iter().map(|&i| i as i64).collect();
            let values: Vec<f32> = places.iter().map(|&i| w[i]).collect();
            let (values, positions) = (&values, &positions);
            let sparse = SparseMatrix {
                n,
                k,
                values,
                positions,
            };
            let found = SparsityPattern::of_sparse(sparse);
            assert_eq!(found, SparsityPattern::of(&w, n, k));
        }
    }

    #[test]
    fn dense_stores_everything_in_every_format() {
        let p = SparsityPattern::of(&matrix(6, 5, |_, _| true), 6, 5);
        assert_eq!((p.nnz, p.stored), (30, [30; 5]));
        assert_eq!(p.name(), "dense");
    }

    #[test]
    fn output_blocks_have_no_fill_in_their_own_format() {
        let p = SparsityPattern::of(&matrix(8, 8, |i, j| (i / 4 + j) % 4 == 0), 8, 8);
        assert_eq!(p.stored_in(WeightFormat::Bsr { r: 4, c: 1 }), p.nnz);
        assert_eq!(p.stored_in(WeightFormat::Bsr { r: 8, c: 1 }), 32);
        assert_eq!(p.name(), "4x1 blocks");
    }

    #[test]
    fn input_blocks_are_seen_with_a_remainder() {
        let p = SparsityPattern::of(&matrix(3, 6, |i, j| (i + j / 4) % 2 == 0), 3, 6);
        assert_eq!(p.stored_in(WeightFormat::Bsr { r: 1, c: 4 }), p.nnz);
    }

    #[test]
    fn two_of_four_is_named() {
        let p = SparsityPattern::of(&matrix(4, 8, |i, j| (j + i) % 2 == 0), 4, 8);
        assert_eq!(p.name(), "2:4");
    }

    #[test]
    fn dead_rows_and_columns_are_counted() {
        let p = SparsityPattern::of(&matrix(4, 4, |i, j| i != 1 && j != 2), 4, 4);
        assert_eq!((p.n_zero_rows, p.n_zero_cols), (1, 1));
    }
}
