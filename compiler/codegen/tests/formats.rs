//! Packed weights, read back by a second, checked reader: what packers write is the matrix, and whatever validates stays
//! in range.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

use lancet_artifact::RowBlock;
use lancet_codegen::formats::{FormatError, pack, pack_sparse, stored_format, validate};
use lancet_codegen::{Arithmetic, WeightFormat};
use proptest::prelude::*;

/// Reads of one row block. A read outside of the bytes, the inputs or the outputs gives `None`.
struct Reader<'a> {
    bytes: &'a [u8],
    x: &'a [f64],
    y: Vec<Option<f64>>,
}

impl Reader<'_> {
    fn word(&self, at: usize) -> Option<usize> {
        Some(u32::from_le_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    }

    fn float(&self, at: usize) -> Option<f64> {
        Some(f64::from(f32::from_bits(self.word(at)? as u32)))
    }

    fn dense(&mut self) -> Option<()> {
        let (tiles, singles) = (self.word(4)?, self.word(8)?);
        for i in 0..self.word(0)? {
            let [x0, k_len, mut at] = [0, 4, 8].map(|j| self.word(64 + i * 16 + j));
            let x0 = x0? / 32;
            let mut row = 0;
            let rows = std::iter::repeat_n(6, tiles).chain(std::iter::repeat_n(1, singles));
            for n in rows {
                for c in 0..k_len? {
                    for r in 0..n {
                        let product = self.float(at?)? * *self.x.get(x0 + c)?;
                        self.add(row + r, product, i == 0 && c == 0)?;
                        at = Some(at? + 4);
                    }
                }
                row += n;
            }
        }
        Some(())
    }

    /// Adds to an output, which only the first k-block may not have written before.
    fn add(&mut self, row: usize, value: f64, first: bool) -> Option<()> {
        let y = self.y.get_mut(row)?;
        *y = Some(if first { value } else { (*y)? + value });
        Some(())
    }

    fn sparse(&mut self, format: WeightFormat) -> Option<()> {
        let (units, values, columns, height) = match format {
            WeightFormat::Unstructured => (4, 1, 1, 1),
            WeightFormat::Bsr { r: 4, c: 1 } => (2, 4, 1, 4),
            _ => (2, 4, 4, 1),
        };
        let record = units * (values * 4 + 2);
        for i in 0..self.word(0)? {
            let entry = |j: usize| 64 + i * 32 + j * 4;
            let x0 = self.word(entry(0))? / 32;
            let (groups, singles) = (self.word(entry(1))?, self.word(entry(2))?);
            let (table, mut at) = (self.word(entry(3))?, self.word(entry(4))?);
            for g in 0..groups + singles {
                let single = g >= groups;
                let height = if single { 1 } else { height };
                let rows = [0, 4].map(|j| self.word(table + g * 16 + j).map(|r| r / 32));
                let n_strips = if single || height == 4 { 1 } else { 2 };
                for row in &rows[..n_strips] {
                    for r in 0..height {
                        self.add((*row)? + r, 0.0, i == 0)?;
                    }
                }
                for _ in 0..self.word(table + g * 16 + 8)? {
                    for u in 0..units {
                        let offset = at + units * values * 4 + u * 2;
                        let offset = self.bytes.get(offset..offset + 2)?;
                        let column = x0 + u16::from_le_bytes(offset.try_into().ok()?) as usize / 32;
                        for v in 0..height.max(columns) {
                            let w = self.float(at + (u * values + v) * 4)?;
                            let x = *self.x.get(column + if columns == 4 { v } else { 0 })?;
                            let row = rows[u % n_strips]? + if height == 4 { v } else { 0 };
                            self.add(row, w * x, false)?;
                        }
                    }
                    at += record;
                }
            }
            // What kernels read ahead.
            self.bytes.get(table..table + (groups + singles + 3) * 16)?;
            self.bytes.get(at..at + 64)?;
        }
        Some(())
    }
}

/// The product of every row block with `x`, or `None` if anything is out of range or a row is not written.
fn product(format: WeightFormat, blocks: &[RowBlock], bytes: &[u8], x: &[f64]) -> Option<Vec<f64>> {
    let mut y = Vec::new();
    for block in blocks {
        let start = usize::try_from(block.offset).ok()?;
        let bytes = bytes.get(start..start.checked_add(usize::try_from(block.len).ok()?)?)?;
        let mut reader = Reader {
            bytes,
            x,
            y: vec![None; block.n_rows as usize],
        };
        match format {
            WeightFormat::Dense => reader.dense()?,
            _ => reader.sparse(format)?,
        }
        for value in reader.y {
            y.push(value?);
        }
    }
    Some(y)
}

fn format() -> impl Strategy<Value = WeightFormat> {
    prop_oneof![
        Just(WeightFormat::Dense),
        Just(WeightFormat::Unstructured),
        Just(WeightFormat::Bsr { r: 4, c: 1 }),
        Just(WeightFormat::Bsr { r: 32, c: 1 }),
        Just(WeightFormat::Bsr { r: 1, c: 4 }),
        Just(WeightFormat::Bsr { r: 3, c: 5 }),
    ]
}

/// Shapes with a matrix of zeros and multiples of 1/8, so that halves and sums are exact.
fn matrix() -> impl Strategy<Value = (usize, usize, Vec<f32>)> {
    (1usize..40, prop_oneof![1usize..40, 250usize..540], 0u8..=10).prop_flat_map(
        |(n, k, tenths)| {
            let weight = prop_oneof![
                u32::from(10 - tenths) => Just(0.0f32),
                u32::from(tenths) => (-64i8..64).prop_map(|w| f32::from(w) / 8.0),
            ];
            (Just(n), Just(k), prop::collection::vec(weight, n * k))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn packs_the_matrix(format in format(), (n, k, w) in matrix()) {
        let m = pack(format, n, k, &w).unwrap();
        prop_assert_eq!(m.format, stored_format(format, k));
        prop_assert!(validate((m.format, m.arithmetic), n, k, &m.row_blocks, &m.bytes).is_ok());
        let x: Vec<f64> = (0..k).map(|i| (i % 13) as f64 - 6.0).collect();
        let y = product(m.format, &m.row_blocks, &m.bytes, &x);
        let want: Vec<f64> = w
            .chunks(k)
            .map(|row| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum())
            .collect();
        prop_assert_eq!(y, Some(want));
    }

    #[test]
    fn few_values_pack_to_the_same_bytes(format in format(), (n, k, w) in matrix()) {
        let at = |i: &usize| w[*i] != 0.0;
        let places: Vec<usize> = (0..w.len()).filter(at).collect();
        let positions: Vec<u64> = places.iter().map(|&i| i as u64).collect();
        let values: Vec<f32> = places.iter().map(|&i| w[i]).collect();
        let found = pack_sparse(format, n, k, &positions, &values).unwrap();
        prop_assert_eq!(found, pack(format, n, k, &w).unwrap());
    }

    #[test]
    fn what_validates_is_in_range(
        format in format(),
        (n, k, w) in matrix(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..4),
        dn in -1i64..2,
        dk in -1i64..2,
    ) {
        let m = pack(format, n, k, &w).unwrap();
        let mut bytes = m.bytes.clone();
        for (index, value, table) in edits {
            // Half of the edits go to the tables at the beginning.
            let len = if table { bytes.len().min(160) } else { bytes.len() };
            bytes[index.index(len)] = value;
        }
        let mut blocks = m.row_blocks.clone();
        if let Some(last) = blocks.last_mut() {
            last.n_rows = (i64::from(last.n_rows) + dn).max(0) as u32;
        }
        let n = (n as i64 + dn).max(0) as usize;
        let k = (k as i64 + dk).max(0) as usize;
        if validate((m.format, m.arithmetic), n, k, &blocks, &bytes).is_ok() {
            prop_assert!(product(m.format, &blocks, &bytes, &vec![0.0; k]).is_some());
        }
    }
}

#[test]
fn few_values_of_a_large_matrix_are_packed_or_refused() {
    let format = WeightFormat::Unstructured;
    let positions = [3, (1 << 20) + 7, (1 << 40) - 1];
    let m = pack_sparse(format, 1 << 20, 1 << 20, &positions, &[1.0, 2.0, 3.0]).unwrap();
    assert!(m.bytes.len() < 64 << 20);
    let of = (m.format, m.arithmetic);
    assert!(validate(of, m.n, m.k, &m.row_blocks, &m.bytes).is_ok());
    let too_large = |n, k| {
        let found = pack_sparse(format, n, k, &positions, &[1.0, 2.0, 3.0]);
        assert!(matches!(found, Err(FormatError::TooLarge { .. })));
    };
    too_large(1 << 31, 1 << 31);
    too_large(1 << 21, 1 << 20);
    let dense = pack_sparse(WeightFormat::Dense, 1 << 20, 1 << 20, &positions, &[1.0; 3]);
    assert!(matches!(dense, Err(FormatError::TooLarge { .. })));
    for wrong in [vec![7, 3], vec![3, 3], vec![3, 9]] {
        assert!(pack_sparse(format, 3, 3, &wrong, &[1.0, 2.0]).is_err());
    }
    assert!(pack_sparse(format, 3, 3, &[1], &[1.0, 2.0]).is_err());
    assert!(pack_sparse(format, 0, 3, &[], &[]).is_err());
    assert!(pack_sparse(format, 2, 3, &[], &[]).is_ok());
}

#[test]
fn rejects_bad_arguments() {
    assert!(pack(WeightFormat::Dense, 0, 4, &[]).is_err());
    assert!(pack(WeightFormat::Dense, 2, 2, &[1.0]).is_err());
    assert!(pack(WeightFormat::Dense, usize::MAX, 2, &[1.0]).is_err());
    assert!(validate((WeightFormat::Dense, Arithmetic::Float), 1, 1, &[], &[]).is_err());
    assert!(
        validate(
            (WeightFormat::Bsr { r: 8, c: 1 }, Arithmetic::Float),
            1,
            1,
            &[],
            &[]
        )
        .is_err()
    );
    let far = RowBlock {
        offset: u64::MAX - 63,
        len: 64,
        row0: 0,
        n_rows: 1,
    };
    assert!(
        validate(
            (WeightFormat::Dense, Arithmetic::Float),
            1,
            1,
            &[far],
            &[0; 64]
        )
        .is_err()
    );
}
