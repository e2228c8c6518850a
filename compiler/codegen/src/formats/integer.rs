//! Integer weights as streams of quads: four consecutive inputs of one row, `{ i8 w[4], u16 offset }`.
//!
//! A row block is a header `{ n_k_blocks: u32 }`, a table of k-blocks `{ x_offset, n_groups, groups, stream: u32 }` at
//! every 32 bytes, and for each k-block a table of groups `{ row: u32, n_bins: [u16; 4], n_quads: u32 }`, one for each row,
//! and a stream of quads. Rows and offsets are in units of [`UNIT`] bytes per row (per row of quads for x); `groups` and
//! `stream` count bytes from the row block.
//!
//! **Bins.** [`Arithmetic::Bytes`] multiplies unsigned by signed bytes and adds two products in 16 bits, which saturates. The
//! weights alone prove that it does not: where the positive weights that meet in a 16-bit sum are at most 128 together and
//! the negative ones at least -128, the sum stays within 255 * 128 = 32640 for every input. So the quads of a row are put
//! in bins of 4, 3, 2 and 1 whose sums obey that bound, `n_bins` says how many of each follow each other, and a quad that
//! breaks it alone is split in pieces that add up to it. [`Arithmetic::Words`] widens first and needs neither: `n_bins` is
//! zero. Kernels with dot products of bytes in 32 bits, which never saturate, run either stream by `n_quads`.
//!
//! Weights beyond 8 bits are split in pieces too. Groups are sorted by their bins. The first k-block names every row once,
//! later ones only rows with weights. Kernels read one quad and three groups ahead, so both tables are padded.

use std::ops::Range;

use lancet_artifact::{Arithmetic, RowBlock, WeightFormat};

use super::partition::{k_blocks, row_blocks};
use super::reader::{align, put_u32, u16_at, u32_at};
use super::{ALIGNMENT, HEADER_BYTES, PackedMatrix, UNIT};

pub(crate) const ENTRY_BYTES: usize = 32;
pub(crate) const GROUP_BYTES: usize = 16;
/// Groups that kernels may read past the end of the table.
pub(crate) const GROUPS_AHEAD: usize = 3;
pub(crate) const QUAD_BYTES: usize = 6;
/// Quads of a bin, by position in `n_bins`.
pub(crate) const BINS: [usize; 4] = [4, 3, 2, 1];
/// Greatest magnitude of a weight: it takes few pieces.
pub const MAX_WEIGHT: i16 = 1023;
/// Sum of positive, or of negative, weights in one 16-bit sum.
const BOUND: u64 = 128;
/// Columns of a k-block: 24 KB of a panel of 32 tokens, so that it stays in the first-level cache.
const K_BLOCK: usize = 768;
/// Row blocks are at most about this long.
const BLOCK_BYTES: usize = 384 << 10;
/// Bytes that kernels may read past the last quad.
const STREAM_AHEAD: usize = 64;
/// Quads that are looked at to fill one place of a bin.
const CANDIDATES: usize = 48;
/// What is left of the bound when a quad is put in a bin is at least this part of it for each place that is still free.
const SLACK: u64 = BOUND / 12;

#[derive(Clone, Copy, Debug)]
struct Quad {
    /// Position in the k-block.
    at: usize,
    w: [i8; 4],
    sums: u64,
}

/// 16-bit lanes: positive weights of the first two inputs, magnitudes of negative ones, and the same of the other two.
fn sums(w: [i8; 4]) -> u64 {
    let mut sums = 0;
    for (i, &w) in w.iter().enumerate() {
        let lane = i / 2 * 2 + usize::from(w < 0);
        sums += u64::from(w.unsigned_abs()) << (16 * lane);
    }
    sums
}

const LANES: u64 = 0x0001_0001_0001_0001;

/// True if every lane is at most `limit`. Lanes are far below 2^15.
fn within(sums: u64, limit: u64) -> bool {
    (sums + LANES * (0x7fff - limit)) & (LANES << 15) == 0
}

fn largest(sums: u64) -> u64 {
    (0..4).map(|i| sums >> (16 * i) & 0xffff).max().unwrap_or(0)
}

/// Pieces that add up to `w`, each of 8 bits and, if `bounded`, within the bound.
fn pieces(w: [i16; 4], bounded: bool, mut each: impl FnMut([i8; 4])) {
    for n in 1i32.. {
        let piece = |i: i32| -> Option<[i8; 4]> {
            let mut out = [0; 4];
            for (out, &w) in out.iter_mut().zip(&w) {
                let share = |i: i32| (i32::from(w) * i).div_euclid(n);
                *out = i8::try_from(share(i + 1) - share(i)).ok()?;
            }
            (!bounded || within(sums(out), BOUND)).then_some(out)
        };
        if (0..n).all(|i| piece(i).is_some()) {
            (0..n).filter_map(piece).for_each(&mut each);
            return;
        }
    }
}

/// One row within one k-block.
struct Row {
    row: usize,
    quads: Vec<Quad>,
    n_bins: [usize; 4],
}

fn row(arithmetic: Arithmetic, w: &[i16], row: usize) -> Row {
    let bounded = arithmetic == Arithmetic::Bytes;
    let mut quads = Vec::new();
    for (at, inputs) in w.chunks(4).enumerate() {
        let mut quad = [0; 4];
        quad[..inputs.len()].copy_from_slice(inputs);
        if quad != [0; 4] {
            pieces(quad, bounded, |w| {
                quads.push(Quad {
                    at,
                    w,
                    sums: sums(w),
                });
            });
        }
    }
    let mut n_bins = [0; 4];
    if bounded {
        (quads, n_bins) = fill_bins(quads);
    }
    Row { row, quads, n_bins }
}

/// The quads in the order of bins, and how many bins of each size there are: greedily, largest quads and bins first.
fn fill_bins(mut quads: Vec<Quad>) -> (Vec<Quad>, [usize; 4]) {
    quads.sort_by_key(|q| std::cmp::Reverse((largest(q.sums), q.sums)));
    let mut ordered = Vec::with_capacity(quads.len());
    let mut n_bins = [0; 4];
    for (n, &size) in n_bins.iter_mut().zip(&BINS) {
        let mut kept: Vec<Quad> = Vec::with_capacity(quads.len());
        let mut used = vec![false; quads.len()];
        for i in 0..quads.len() {
            if used[i] {
                continue;
            }
            let (mut bin, mut total) = (vec![i], quads[i].sums);
            let mut seen = 0;
            for j in i + 1..quads.len() {
                if bin.len() == size || seen == CANDIDATES * size {
                    break;
                }
                if used[j] {
                    continue;
                }
                seen += 1;
                let free = (size - bin.len() - 1) as u64;
                if within(total + quads[j].sums, BOUND - SLACK * free) {
                    total += quads[j].sums;
                    bin.push(j);
                }
            }
            if bin.len() == size {
                *n += 1;
                bin.sort_by_key(|&j| quads[j].at);
                for &j in &bin {
                    used[j] = true;
                    ordered.push(quads[j]);
                }
            } else {
                kept.push(quads[i]);
                used[i] = true;
            }
        }
        quads = kept;
    }
    (ordered, n_bins)
}

pub(super) fn pack(
    arithmetic: Arithmetic,
    format: WeightFormat,
    n: usize,
    k: usize,
    w: &[i16],
) -> PackedMatrix {
    let cuts = k_blocks(k, K_BLOCK);
    const STRIP: usize = 4;
    // Row blocks begin at multiples of four rows, so that what follows can put four features in one dword.
    let cost: Vec<usize> = w
        .chunks(k * STRIP)
        .map(|rows| {
            let quads = rows.chunks(k).flat_map(|row| row.chunks(4));
            let n_quads = quads.filter(|q| q.iter().any(|w| *w != 0)).count();
            n_quads * QUAD_BYTES + STRIP * GROUP_BYTES * cuts.len()
        })
        .collect();
    let mut packed = PackedMatrix {
        format,
        arithmetic,
        n,
        k,
        bytes: Vec::new(),
        row_blocks: Vec::new(),
        nnz: w.iter().filter(|w| **w != 0).count(),
        nnz_stored: 0,
    };
    for range in row_blocks(&cost, STRIP, BLOCK_BYTES) {
        let rows = range.start * STRIP..(range.end * STRIP).min(n);
        let offset = packed.bytes.len();
        pack_block(&mut packed, w, rows.clone(), &cuts);
        packed.row_blocks.push(RowBlock {
            offset: offset as u64,
            len: (packed.bytes.len() - offset) as u64,
            row0: rows.start as u32,
            n_rows: rows.len() as u32,
        });
    }
    packed
}

fn pack_block(packed: &mut PackedMatrix, w: &[i16], rows: Range<usize>, cuts: &[Range<usize>]) {
    let k = packed.k;
    let start = packed.bytes.len();
    let bytes = &mut packed.bytes;
    bytes.resize(start + HEADER_BYTES + cuts.len() * ENTRY_BYTES, 0);
    put_u32(bytes, start, cuts.len());
    for (i, cols) in cuts.iter().enumerate() {
        let mut list: Vec<Row> = rows
            .clone()
            .map(|r| {
                let w = &w[r * k + cols.start..r * k + cols.end];
                row(packed.arithmetic, w, r - rows.start)
            })
            .filter(|r| i == 0 || !r.quads.is_empty())
            .collect();
        list.sort_by_key(|r| (std::cmp::Reverse((r.n_bins, r.quads.len())), r.row));
        align(bytes, 16);
        let table = bytes.len();
        let stream =
            (table + (list.len() + GROUPS_AHEAD) * GROUP_BYTES).next_multiple_of(ALIGNMENT);
        bytes.resize(stream, 0);
        let words = [
            cols.start / 4 * UNIT,
            list.len(),
            table - start,
            stream - start,
        ];
        let entry = start + HEADER_BYTES + i * ENTRY_BYTES;
        for (j, word) in words.into_iter().enumerate() {
            put_u32(bytes, entry + j * 4, word);
        }
        for (g, row) in list.iter().enumerate() {
            let at = table + g * GROUP_BYTES;
            put_u32(bytes, at, row.row * UNIT);
            for (j, &n) in row.n_bins.iter().enumerate() {
                let n = u16::try_from(n).expect("a row of a k-block has few quads");
                bytes[at + 4 + j * 2..at + 6 + j * 2].copy_from_slice(&n.to_le_bytes());
            }
            put_u32(bytes, at + 12, row.quads.len());
            packed.nnz_stored += 4 * row.quads.len();
            for quad in &row.quads {
                bytes.extend(quad.w.map(|w| w as u8));
                let offset = u16::try_from(quad.at * UNIT).expect("a k-block has few quads");
                bytes.extend_from_slice(&offset.to_le_bytes());
            }
        }
        bytes.resize(bytes.len() + STREAM_AHEAD, 0);
    }
    align(bytes, ALIGNMENT);
}

pub(super) fn validate(
    arithmetic: Arithmetic,
    n_rows: usize,
    k: usize,
    bytes: &[u8],
) -> Result<(), &'static str> {
    visit(arithmetic, n_rows, k, bytes, |_, _, _| {})
}

/// Checks a row block and calls `each` with row, first column and weights of every quad. Whatever `each` is told before an
/// error lies within the matrix.
pub(super) fn visit(
    arithmetic: Arithmetic,
    n_rows: usize,
    k: usize,
    bytes: &[u8],
    mut each: impl FnMut(usize, usize, [i8; 4]),
) -> Result<(), &'static str> {
    let n_k_blocks = u32_at(bytes, 0)?;
    if n_k_blocks == 0 || n_k_blocks > k || n_rows > bytes.len() {
        return Err("has a wrong number of k-blocks or rows");
    }
    let mut named = vec![0; n_rows];
    let mut free = 0;
    for i in 0..n_k_blocks {
        let entry = HEADER_BYTES + i * ENTRY_BYTES;
        let mut words = [0; 4];
        for (j, word) in words.iter_mut().enumerate() {
            *word = u32_at(bytes, entry + j * 4)?;
        }
        let [x_offset, n_groups, table, stream] = words;
        // In order, so that the work of validation is bounded by the length of the block.
        if table < free || stream < table {
            return Err("k-blocks overlap");
        }
        if x_offset % UNIT != 0 || x_offset / UNIT >= k.div_ceil(4) {
            return Err("a k-block begins outside the columns");
        }
        let table_end = n_groups
            .checked_add(GROUPS_AHEAD)
            .and_then(|n| n.checked_mul(GROUP_BYTES)?.checked_add(table));
        if table_end.is_none_or(|end| end > bytes.len()) {
            return Err("a group table lies outside the block");
        }
        let mut at = stream;
        for g in 0..n_groups {
            let group = table + g * GROUP_BYTES;
            let row = u32_at(bytes, group)?;
            let stamp = named.get_mut(row / UNIT).filter(|_| row % UNIT == 0);
            let stamp = stamp.ok_or("a group names a row outside the block")?;
            if std::mem::replace(stamp, i + 1) == i + 1 {
                return Err("a k-block names a row twice");
            }
            let n_quads = u32_at(bytes, group + 12)?;
            let end = n_quads
                .checked_mul(QUAD_BYTES)
                .and_then(|len| at.checked_add(len))
                .filter(|end| {
                    end.checked_add(STREAM_AHEAD)
                        .is_some_and(|e| e <= bytes.len())
                })
                .ok_or("a stream lies outside the block")?;
            let mut n_bins = [0; 4];
            for (j, n) in n_bins.iter_mut().enumerate() {
                *n = u16_at(bytes, group + 4 + j * 2)?;
            }
            let in_bins: usize = n_bins.iter().zip(BINS).map(|(n, size)| n * size).sum();
            if in_bins
                != if arithmetic == Arithmetic::Bytes {
                    n_quads
                } else {
                    0
                }
            {
                return Err("bins do not hold the quads of a row");
            }
            for record in bytes[at..end].chunks_exact(QUAD_BYTES) {
                let offset = usize::from(u16::from_le_bytes([record[4], record[5]]));
                let quad = (x_offset + offset) / UNIT;
                if offset % UNIT != 0 || quad >= k.div_ceil(4) {
                    return Err("an offset points outside the columns");
                }
                each(row / UNIT, quad * 4, weights(record));
            }
            for (n, size) in n_bins.into_iter().zip(BINS) {
                for bin in bytes[at..end].chunks_exact(size * QUAD_BYTES).take(n) {
                    let total = bin.chunks_exact(QUAD_BYTES).map(|r| sums(weights(r))).sum();
                    if !within(total, BOUND) {
                        return Err("a bin could saturate");
                    }
                }
                at += n * size * QUAD_BYTES;
            }
            at = end;
        }
        if i == 0 && n_groups != n_rows {
            return Err("the first k-block does not name every row");
        }
        if at
            .checked_add(STREAM_AHEAD)
            .is_none_or(|end| end > bytes.len())
        {
            return Err("a stream lies outside the block");
        }
        free = at;
    }
    Ok(())
}

fn weights(record: &[u8]) -> [i8; 4] {
    [0, 1, 2, 3].map(|i| record[i] as i8)
}
