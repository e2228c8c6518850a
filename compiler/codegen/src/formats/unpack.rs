//! Packed weights back to a plain matrix, for steps that run without a kernel.

use lancet_artifact::{Arithmetic, WeightFormat};

use super::reader::{u16_at, u32_at};
use super::sparse::{self, Kind};
use super::{FormatError, HEADER_BYTES, UNIT};
use super::{dense, integer};

/// Writes the rows of one row block, `[n_rows, k]` row-major.
///
/// # Errors
/// [`FormatError::Invalid`] if the block does not pass [`validate`](super::validate).
pub fn unpack_block(
    (format, arithmetic): (WeightFormat, Arithmetic),
    k: usize,
    block: &[u8],
    w: &mut [f32],
) -> Result<(), FormatError> {
    let n_rows = w.len().checked_div(k).unwrap_or(0);
    w.fill(0.0);
    match (arithmetic, Kind::of(format)) {
        (Arithmetic::Float, None) => {
            dense::validate(n_rows, k, block).and_then(|()| unpack_dense(k, block, w))
        }
        (Arithmetic::Float, Some(kind)) => {
            sparse::validate(kind, n_rows, k, block).and_then(|()| unpack_sparse(kind, k, block, w))
        }
        (Arithmetic::Bytes | Arithmetic::Words, _) => integer::visit(
            (format, arithmetic),
            n_rows,
            k,
            block,
            |row, column, weights| {
                let row = &mut w[row * k..(row + 1) * k];
                for (w, &v) in row[column..].iter_mut().zip(weights) {
                    *w += f32::from(v);
                }
            },
        ),
    }
    .map_err(|what| FormatError::Invalid { block: 0, what })
}

fn f32_at(bytes: &[u8], at: usize) -> Result<f32, &'static str> {
    Ok(f32::from_bits(u32_at(bytes, at)? as u32))
}

fn unpack_dense(k: usize, block: &[u8], w: &mut [f32]) -> Result<(), &'static str> {
    let (n_tiles, n_singles) = (u32_at(block, 4)?, u32_at(block, 8)?);
    for i in 0..u32_at(block, 0)? {
        let entry = HEADER_BYTES + i * dense::ENTRY_BYTES;
        let (k0, k_len) = (u32_at(block, entry)? / UNIT, u32_at(block, entry + 4)?);
        let mut at = u32_at(block, entry + 8)?;
        let tiles = (0..n_tiles).map(|t| (t * dense::TILE, dense::TILE));
        let singles = (0..n_singles).map(|s| (n_tiles * dense::TILE + s, 1));
        for (row0, n_rows) in tiles.chain(singles) {
            for col in k0..k0 + k_len {
                for row in row0..row0 + n_rows {
                    w[row * k + col] = f32_at(block, at)?;
                    at += 4;
                }
            }
        }
    }
    Ok(())
}

fn unpack_sparse(kind: Kind, k: usize, block: &[u8], w: &mut [f32]) -> Result<(), &'static str> {
    for i in 0..u32_at(block, 0)? {
        let entry = HEADER_BYTES + i * sparse::ENTRY_BYTES;
        let k0 = u32_at(block, entry)? / UNIT;
        let (n_groups, n_singles) = (u32_at(block, entry + 4)?, u32_at(block, entry + 8)?);
        let (table, mut record) = (u32_at(block, entry + 12)?, u32_at(block, entry + 16)?);
        for g in 0..n_groups + n_singles {
            let group = table + g * sparse::GROUP_BYTES;
            let rows = [
                u32_at(block, group)? / UNIT,
                u32_at(block, group + 4)? / UNIT,
            ];
            let in_flight = if g < n_groups {
                kind.strips_in_flight()
            } else {
                1
            };
            for _ in 0..u32_at(block, group + 8)? {
                for unit in 0..kind.units_per_record() {
                    let offset = u16_at(block, record + kind.values_bytes() + unit * 2)?;
                    let (row, col) = (rows[unit % in_flight], k0 + offset / UNIT);
                    // Values of a unit go along its columns, down its rows, or only the first one counts.
                    let (n_values, step) = match kind {
                        Kind::Inputs4 => (4, 1),
                        Kind::Outputs4 if g < n_groups => (4, k),
                        Kind::Outputs4 | Kind::Single => (1, 0),
                    };
                    for v in 0..n_values {
                        let at = record + (unit * kind.values_per_unit() + v) * 4;
                        w[row * k + col + v * step] += f32_at(block, at)?;
                    }
                }
                record += kind.record_bytes();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pack;
    use super::*;

    #[test]
    fn unpacking_undoes_packing() {
        let formats = [
            WeightFormat::Dense,
            WeightFormat::Unstructured,
            WeightFormat::Bsr { r: 4, c: 1 },
            WeightFormat::Bsr { r: 1, c: 4 },
        ];
        for format in formats {
            for (n, k) in [(1, 1), (6, 4), (7, 5), (33, 270), (64, 515)] {
                let w: Vec<f32> = (0..n * k)
                    .map(|i| {
                        let hash = (i as u32).wrapping_mul(2_654_435_761) >> 16;
                        if hash.is_multiple_of(3) {
                            hash as f32 - 30000.0
                        } else {
                            0.0
                        }
                    })
                    .collect();
                let packed = pack(format, n, k, &w).expect("packs");
                let mut back = vec![f32::NAN; n * k];
                for block in &packed.row_blocks {
                    let rows = block.row0 as usize * k..(block.row0 + block.n_rows) as usize * k;
                    let bytes =
                        &packed.bytes[block.offset as usize..(block.offset + block.len) as usize];
                    unpack_block(
                        (packed.format, packed.arithmetic),
                        k,
                        bytes,
                        &mut back[rows],
                    )
                    .expect("unpacks");
                }
                assert_eq!(back, w, "{format:?} [{n}, {k}]");
            }
        }
    }
}
