//! Dense weights in register tiles.
//!
//! A row block is a header `{ n_k_blocks, n_tiles, n_singles: u32 }`, a table of k-blocks
//! `{ x_offset, k_len, data, 0: u32 }`, and for each k-block `f32[n_tiles][k_len][6]` then `f32[n_singles][k_len]`.
//! Tiles are six consecutive rows; the rows left over are singles.

use lancet_artifact::{Arithmetic, RowBlock, WeightFormat};

use super::partition::{k_blocks, row_blocks};
use super::reader::{align, put_u32, u32_at};
use super::{ALIGNMENT, FormatError, HEADER_BYTES, PackedMatrix, UNIT};

/// Rows of a register tile.
pub(crate) const TILE: usize = 6;
pub(crate) const ENTRY_BYTES: usize = 16;
/// Columns of a k-block: 24 KB of a panel of 32 tokens, so that it stays in the first-level cache.
const K_BLOCK: usize = 192;
/// Row blocks are at most about this long, to be reused from the second-level cache.
const BLOCK_BYTES: usize = 256 << 10;

pub(super) fn pack(n: usize, k: usize, w: &[f32]) -> Result<PackedMatrix, FormatError> {
    let strips = n.div_ceil(TILE);
    let cost: Vec<usize> = (0..strips)
        .map(|s| 4 * k * (n - s * TILE).min(TILE))
        .collect();
    let blocks = k_blocks(k, K_BLOCK);
    let mut bytes = Vec::new();
    let mut out_blocks = Vec::new();
    for strip in row_blocks(&cost, TILE, BLOCK_BYTES) {
        let rows = strip.start * TILE..(strip.end * TILE).min(n);
        let offset = bytes.len();
        let (n_tiles, n_singles) = (rows.len() / TILE, rows.len() % TILE);
        bytes.resize(offset + HEADER_BYTES + blocks.len() * ENTRY_BYTES, 0);
        put_u32(&mut bytes, offset, blocks.len());
        put_u32(&mut bytes, offset + 4, n_tiles);
        put_u32(&mut bytes, offset + 8, n_singles);
        for (i, block) in blocks.iter().enumerate() {
            align(&mut bytes, ALIGNMENT);
            let entry = offset + HEADER_BYTES + i * ENTRY_BYTES;
            put_u32(&mut bytes, entry, block.start * UNIT);
            put_u32(&mut bytes, entry + 4, block.len());
            let data = bytes.len() - offset;
            put_u32(&mut bytes, entry + 8, data);
            for tile in 0..n_tiles {
                let row0 = rows.start + tile * TILE;
                for col in block.clone() {
                    for row in row0..row0 + TILE {
                        bytes.extend_from_slice(&w[row * k + col].to_le_bytes());
                    }
                }
            }
            for row in rows.end - n_singles..rows.end {
                for col in block.clone() {
                    bytes.extend_from_slice(&w[row * k + col].to_le_bytes());
                }
            }
        }
        align(&mut bytes, ALIGNMENT);
        out_blocks.push(RowBlock {
            offset: offset as u64,
            len: (bytes.len() - offset) as u64,
            row0: rows.start as u32,
            n_rows: rows.len() as u32,
        });
    }
    Ok(PackedMatrix {
        format: WeightFormat::Dense,
        arithmetic: Arithmetic::Float,
        n,
        k,
        bytes,
        row_blocks: out_blocks,
        nnz: w.iter().filter(|w| **w != 0.0).count(),
        nnz_stored: n * k,
    })
}

pub(super) fn validate(n_rows: usize, k: usize, bytes: &[u8]) -> Result<(), &'static str> {
    let n_k_blocks = u32_at(bytes, 0)?;
    let (n_tiles, n_singles) = (u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    if n_tiles
        .checked_mul(TILE)
        .and_then(|r| r.checked_add(n_singles))
        != Some(n_rows)
    {
        return Err("tiles do not cover the rows");
    }
    let mut k0 = 0;
    for i in 0..n_k_blocks {
        let entry = HEADER_BYTES + i * ENTRY_BYTES;
        let (x_offset, k_len) = (u32_at(bytes, entry)?, u32_at(bytes, entry + 4)?);
        let data = u32_at(bytes, entry + 8)?;
        if x_offset != k0 * UNIT || k_len == 0 || k_len > k - k0 {
            return Err("k-blocks are not in order");
        }
        k0 += k_len;
        let end = n_rows.checked_mul(k_len).and_then(|e| e.checked_mul(4));
        let end = end.and_then(|len| len.checked_add(data));
        if end.is_none_or(|end| end > bytes.len()) {
            return Err("weights lie outside the block");
        }
    }
    if k0 != k {
        return Err("columns are missing");
    }
    Ok(())
}
