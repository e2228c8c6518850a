//! Integer weights as streams of small weights with offsets of x: quads or pairs.
//!
//! A row block is a header `{ n_k_blocks: u32 }`, a table of k-blocks `{ x_offset, n_groups, groups, stream: u32 }` at
//! every 32 bytes, and for each k-block a table of groups `{ row: u32, n_bins: [u16; 4], n_records: u32 }`, one for each row,
//! and a stream of records. Rows are in units of [`UNIT`] bytes; `groups` and `stream` count bytes from the row block.
//!
//! | stream | record | x | bins, in records |
//! |---|---|---|---|
//! | quads | `{ i8 w[4], u16 offset }`: four consecutive inputs | quads, [`UNIT`] bytes each | 4, 3, 2, 1 |
//! | pairs | `{ i8 w[2], the same again, u16 offset[2] }`: any two inputs | byte rows, [`BYTE_ROW`] bytes each | two of 3, of 2, of 1 |
//!
//! **Bins.** [`Arithmetic::Bytes`] multiplies unsigned by signed bytes and adds two products in 16 bits, which saturates. The
//! weights alone prove that it does not: where the positive weights that meet in a 16-bit sum are at most 128 together and
//! the negative ones at least -128, the sum stays within 255 * 128 = 32640 for every input. So the records of a row are put
//! in bins whose sums obey that bound, `n_bins` says how many of each size follow each other, and what
//! breaks the bound alone is split in pieces that add up to it. [`Arithmetic::Words`] widens quads first and needs neither: `n_bins` is
//! zero. Kernels with dot products of bytes in 32 bits, which never saturate, run either stream of quads by `n_records`.
//!
//! Weights beyond 8 bits are split in pieces too. Groups are sorted by their bins. The first k-block names every row once,
//! later ones only rows with weights. Kernels read one record and three groups ahead, so both tables are padded.

mod bound;
mod pairs;
mod quads;

use std::ops::Range;

use lancet_artifact::{Arithmetic, RowBlock, WeightFormat};

use super::partition::{k_blocks, row_blocks};
use super::reader::{align, put_u32, u16_at, u32_at};
use super::{ALIGNMENT, HEADER_BYTES, PackedMatrix, UNIT};

pub(crate) const ENTRY_BYTES: usize = 32;
pub(crate) const GROUP_BYTES: usize = 16;
/// Groups that kernels may read past the end of the table.
pub(crate) const GROUPS_AHEAD: usize = 3;
/// Greatest magnitude of a weight: it takes few pieces.
pub const MAX_WEIGHT: i16 = 1023;
/// Sum of positive, or of negative, weights in one 16-bit sum.
const BOUND: u64 = 128;
/// Unit of offsets of byte rows: a row of 16 tokens.
const BYTE_ROW: usize = 16;
/// Columns of a k-block: 24 KB of a panel of 32 tokens, so that it stays in the first-level cache.
const K_BLOCK: usize = 768;
/// Row blocks are at most about this long.
const BLOCK_BYTES: usize = 384 << 10;
/// Bytes that kernels may read past the last quad.
const STREAM_AHEAD: usize = 64;
/// What the records of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Quads,
    Pairs,
}

impl Stream {
    /// The stream of integers that are stored in `format`.
    pub(crate) fn of(format: WeightFormat) -> Stream {
        match format {
            WeightFormat::Unstructured => Stream::Pairs,
            WeightFormat::Dense | WeightFormat::Bsr { .. } => Stream::Quads,
        }
    }

    pub(crate) fn record_bytes(self) -> usize {
        match self {
            Stream::Quads => quads::RECORD_BYTES,
            Stream::Pairs => pairs::RECORD_BYTES,
        }
    }

    /// Records of a bin, or of two bins of pairs, by position in `n_bins`.
    pub(crate) fn bins(self) -> &'static [usize] {
        match self {
            Stream::Quads => &quads::BINS,
            Stream::Pairs => &pairs::BINS,
        }
    }

    /// Columns that one offset stands for, and its unit in bytes.
    fn offsets(self) -> (usize, usize) {
        match self {
            Stream::Quads => (4, UNIT),
            Stream::Pairs => (1, BYTE_ROW),
        }
    }
}

/// One row within one k-block.
struct Row {
    row: usize,
    records: Vec<u8>,
    n_bins: [usize; 4],
}

pub(super) fn pack(
    arithmetic: Arithmetic,
    format: WeightFormat,
    n: usize,
    k: usize,
    w: &[i16],
) -> PackedMatrix {
    let cuts = k_blocks(k, K_BLOCK);
    let stream = Stream::of(format);
    const STRIP: usize = 4;
    // Row blocks begin at multiples of four rows, so that what follows can put four features in one dword.
    let cost: Vec<usize> = w
        .chunks(k * STRIP)
        .map(|rows| {
            let bytes = match stream {
                Stream::Quads => {
                    let quads = rows.chunks(k).flat_map(|row| row.chunks(4));
                    quads::RECORD_BYTES * quads.filter(|q| q.iter().any(|w| *w != 0)).count()
                }
                Stream::Pairs => pairs::RECORD_BYTES * rows.iter().filter(|w| **w != 0).count() / 2,
            };
            bytes + STRIP * GROUP_BYTES * cuts.len()
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
    let (k, stream) = (packed.k, Stream::of(packed.format));
    let record_bytes = stream.record_bytes();
    let start = packed.bytes.len();
    let bytes = &mut packed.bytes;
    bytes.resize(start + HEADER_BYTES + cuts.len() * ENTRY_BYTES, 0);
    put_u32(bytes, start, cuts.len());
    for (i, cols) in cuts.iter().enumerate() {
        let mut list: Vec<Row> = rows
            .clone()
            .map(|r| {
                let w = &w[r * k + cols.start..r * k + cols.end];
                let (n_bins, records) = match stream {
                    Stream::Quads => quads::row(packed.arithmetic, w),
                    Stream::Pairs => pairs::row(w),
                };
                Row {
                    row: r - rows.start,
                    records,
                    n_bins,
                }
            })
            .filter(|r| i == 0 || !r.records.is_empty())
            .collect();
        list.sort_by_key(|r| (std::cmp::Reverse((r.n_bins, r.records.len())), r.row));
        align(bytes, 16);
        let table = bytes.len();
        let records =
            (table + (list.len() + GROUPS_AHEAD) * GROUP_BYTES).next_multiple_of(ALIGNMENT);
        bytes.resize(records, 0);
        let (columns, unit) = stream.offsets();
        let words = [
            cols.start / columns * unit,
            list.len(),
            table - start,
            records - start,
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
            let n_records = row.records.len() / record_bytes;
            put_u32(bytes, at + 12, n_records);
            let weights = match stream {
                Stream::Quads => 4,
                Stream::Pairs => 2,
            };
            packed.nnz_stored += weights * n_records;
            bytes.extend_from_slice(&row.records);
        }
        bytes.resize(bytes.len() + STREAM_AHEAD, 0);
    }
    align(bytes, ALIGNMENT);
}

pub(super) fn validate(
    stored: (WeightFormat, Arithmetic),
    n_rows: usize,
    k: usize,
    bytes: &[u8],
) -> Result<(), &'static str> {
    visit(stored, n_rows, k, bytes, |_, _, _| {})
}

/// Checks a row block and calls `each` with row, first column and consecutive weights of every record. Whatever `each` is told before
/// an error lies within the matrix.
pub(super) fn visit(
    (format, arithmetic): (WeightFormat, Arithmetic),
    n_rows: usize,
    k: usize,
    bytes: &[u8],
    mut each: impl FnMut(usize, usize, &[i8]),
) -> Result<(), &'static str> {
    let stream = Stream::of(format);
    let (record_bytes, (columns, unit)) = (stream.record_bytes(), stream.offsets());
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
        let [x_offset, n_groups, table, records] = words;
        // In order, so that the work of validation is bounded by the length of the block.
        if table < free || records < table {
            return Err("k-blocks overlap");
        }
        if x_offset % unit != 0 || x_offset / unit >= k.div_ceil(columns) {
            return Err("a k-block begins outside the columns");
        }
        let table_end = n_groups
            .checked_add(GROUPS_AHEAD)
            .and_then(|n| n.checked_mul(GROUP_BYTES)?.checked_add(table));
        if table_end.is_none_or(|end| end > bytes.len()) {
            return Err("a group table lies outside the block");
        }
        let mut at = records;
        for g in 0..n_groups {
            let group = table + g * GROUP_BYTES;
            let row = u32_at(bytes, group)?;
            let stamp = named.get_mut(row / UNIT).filter(|_| row % UNIT == 0);
            let stamp = stamp.ok_or("a group names a row outside the block")?;
            if std::mem::replace(stamp, i + 1) == i + 1 {
                return Err("a k-block names a row twice");
            }
            let n_records = u32_at(bytes, group + 12)?;
            let end = n_records
                .checked_mul(record_bytes)
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
            let in_bins: usize = n_bins
                .iter()
                .zip(stream.bins())
                .map(|(n, size)| n * size)
                .sum();
            let wanted = match arithmetic {
                Arithmetic::Bytes => n_records,
                Arithmetic::Float | Arithmetic::Words => 0,
            };
            if in_bins != wanted {
                return Err("bins do not hold the records of a row");
            }
            // Whether an offset stays within the columns, and the first of its columns.
            let column = |offset: usize| {
                let at = (x_offset + offset) / unit;
                (offset.is_multiple_of(unit) && at < k.div_ceil(columns)).then_some(at * columns)
            };
            const OUTSIDE: &str = "an offset points outside the columns";
            for record in bytes[at..end].chunks_exact(record_bytes) {
                match stream {
                    Stream::Quads => {
                        let (w, offset) = quads::read(record);
                        each(row / UNIT, column(offset).ok_or(OUTSIDE)?, &w);
                    }
                    Stream::Pairs => {
                        let pair = pairs::read(record).ok_or("a pair is not written twice")?;
                        for (w, offset) in pair {
                            each(row / UNIT, column(offset).ok_or(OUTSIDE)?, &[w]);
                        }
                    }
                }
            }
            for (n, size) in n_bins.into_iter().zip(stream.bins()) {
                let bins = bytes[at..end].chunks_exact(size * record_bytes).take(n);
                let bounded = |bin: &[u8]| match stream {
                    Stream::Quads => quads::is_bounded(bin),
                    Stream::Pairs => pairs::are_bounded(bin),
                };
                if !bins.into_iter().all(bounded) {
                    return Err("a bin could saturate");
                }
                at += n * size * record_bytes;
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
