//! Sparse weights as streams of records, for unstructured zeros, input blocks 1x4 and output blocks 4x1.
//!
//! A row block is a header `{ n_k_blocks: u32 }`, a table of k-blocks
//! `{ x_offset, n_groups, n_singles, groups, stream: u32 }`, and for each k-block a table of groups
//! `{ row: [u32; 2], n_records: u32, prefetch: u32 }` and a stream of records. Rows and offsets are in units of
//! [`UNIT`] bytes per row; `groups` and `stream` count bytes from the row block.
//!
//! | kind | unit | record | rows of a group | rows of a single |
//! |---|---|---|---|---|
//! | unstructured | a weight | `f32[4]`, `u16 offset[4]` | two, units alternate | one |
//! | 1x4 | four inputs | `f32[2][4]`, `u16 offset[2]` | two, units alternate | one |
//! | 4x1 | four outputs | `f32[2][4]`, `u16 offset[2]` | four consecutive | one: the first of each four values |
//!
//! Groups are sorted by their number of records. The first k-block names every row once, later ones only rows with
//! weights. Kernels read one record and three groups ahead, so both tables are padded.

use std::collections::BTreeMap;
use std::ops::Range;

use lancet_artifact::{Arithmetic, RowBlock, WeightFormat};

use super::partition::{k_blocks, row_blocks};
use super::reader::{align, put_u32, u16_at, u32_at};
use super::{ALIGNMENT, HEADER_BYTES, PackedMatrix, UNIT};

pub(crate) const ENTRY_BYTES: usize = 32;
pub(crate) const GROUP_BYTES: usize = 16;
/// Groups that kernels may read past the end of the table.
pub(crate) const GROUPS_AHEAD: usize = 3;
/// Columns of a k-block of a matrix with many weights: 24 KB of a panel of 32 tokens, which the first-level cache keeps beside
/// weights and outputs.
const K_BLOCK: usize = 192;
/// Columns of a k-block of a matrix with at most [`FEW`] of its weights: there what the cache loses costs less than
/// beginning again at the first output.
const K_BLOCK_OF_FEW: usize = 256;
const FEW: f64 = 0.15;
/// The same in output blocks: each column is used four times, and of a panel of 32 tokens half at once.
const K_BLOCK_OF_FEW_OUTPUTS4: usize = 384;
/// Row blocks are at most about this long: larger ones load x less often, and weights are read in order.
const BLOCK_BYTES: usize = 576 << 10;
/// Bytes that kernels may read past the last record.
const STREAM_AHEAD: usize = 64;

/// What one unit of a stream multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    Inputs4,
    Outputs4,
}

impl Kind {
    /// The kind that stores `format`, `None` for dense.
    pub(crate) fn of(format: WeightFormat) -> Option<Kind> {
        match format {
            WeightFormat::Dense => None,
            WeightFormat::Bsr { r: 1, c } if c > 1 => Some(Kind::Inputs4),
            WeightFormat::Bsr { c: 1, r } if r > 1 => Some(Kind::Outputs4),
            WeightFormat::Unstructured | WeightFormat::Bsr { .. } => Some(Kind::Single),
        }
    }

    pub(crate) fn units_per_record(self) -> usize {
        if self == Kind::Single { 4 } else { 2 }
    }

    pub(crate) fn values_per_unit(self) -> usize {
        if self == Kind::Single { 1 } else { 4 }
    }

    pub(crate) fn values_bytes(self) -> usize {
        self.units_per_record() * self.values_per_unit() * 4
    }

    pub(crate) fn record_bytes(self) -> usize {
        self.values_bytes() + self.units_per_record() * 2
    }

    /// Strips whose units alternate in the records of a group.
    pub(crate) fn strips_in_flight(self) -> usize {
        if self == Kind::Outputs4 { 1 } else { 2 }
    }

    /// Columns of a unit.
    fn columns(self) -> usize {
        if self == Kind::Inputs4 { 4 } else { 1 }
    }

    /// Rows of a strip, except of the strips that are left over.
    fn rows(self) -> usize {
        if self == Kind::Outputs4 { 4 } else { 1 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Unit {
    col: usize,
    values: [f32; 4],
}

/// The units of one strip in one k-block.
#[derive(Clone, Debug)]
struct Strip {
    row: usize,
    units: Vec<Unit>,
}

/// The weights of a matrix.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// Row-major.
    Dense(&'a [f32]),
    /// Ascending row-major positions, and what is there.
    Sparse {
        positions: &'a [u64],
        values: &'a [f32],
    },
}

impl<'a> Source<'a> {
    /// Positions and values from row-major position `range.start` to `range.end`.
    fn between(self, range: Range<usize>) -> (&'a [u64], &'a [f32]) {
        match self {
            Source::Dense(_) => (&[], &[]),
            Source::Sparse { positions, values } => {
                let [first, end] = [range.start, range.end]
                    .map(|at| positions.partition_point(|&p| p < at as u64));
                (&positions[first..end], &values[first..end])
            }
        }
    }

    /// Number of weights that are not zero from one row-major position to another.
    fn n_nonzero(self, range: Range<usize>) -> usize {
        let values = match self {
            Source::Dense(w) => &w[range],
            Source::Sparse { .. } => self.between(range).1,
        };
        values.iter().filter(|w| **w != 0.0).count()
    }
}

/// Collects the units of `rows` within `cols`; units without a non-zero are left out.
fn strip(kind: Kind, w: Source<'_>, k: usize, rows: Range<usize>, cols: &Range<usize>) -> Strip {
    let row = rows.start;
    let units = match w {
        Source::Dense(w) => units(kind, k, rows, cols, |row, col| w[row * k + col]),
        Source::Sparse { .. } => {
            let mut window = Vec::new();
            for (i, row) in rows.clone().enumerate() {
                let (positions, values) = w.between(row * k + cols.start..row * k + cols.end);
                if !values.is_empty() && window.is_empty() {
                    window.resize(rows.len() * cols.len(), 0.0);
                }
                for (&p, &v) in positions.iter().zip(values) {
                    window[i * cols.len() + p as usize - row * k - cols.start] = v;
                }
            }
            if window.is_empty() {
                Vec::new()
            } else {
                units(kind, k, rows, cols, |r, col| {
                    window[(r - row) * cols.len() + col - cols.start]
                })
            }
        }
    };
    Strip { row, units }
}

fn units(
    kind: Kind,
    k: usize,
    rows: Range<usize>,
    cols: &Range<usize>,
    w: impl Fn(usize, usize) -> f32,
) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut col = cols.start;
    while col < cols.end {
        // The last unit of a matrix that is no multiple of 4 wide begins earlier and leaves out what is already there.
        let at = col.min(k - kind.columns());
        let end = (at + kind.columns()).min(cols.end);
        let mut values = [0.0; 4];
        for (i, row) in rows.clone().enumerate() {
            for c in col..end {
                values[i + c - at] = w(row, c);
            }
        }
        if values.iter().any(|v| *v != 0.0) {
            units.push(Unit { col: at, values });
        }
        col = end;
    }
    units
}

/// The first rows of the strips of `rows` that may have weights in each k-block, and of those that are left over. The first
/// k-block has them all.
fn strips_of(
    kind: Kind,
    w: Source<'_>,
    k: usize,
    rows: Range<usize>,
    cuts: &[Range<usize>],
) -> Vec<(usize, Vec<usize>)> {
    let whole = rows.start + rows.len() / kind.rows() * kind.rows();
    let first = |row: usize| match row < whole {
        true => row - (row - rows.start) % kind.rows(),
        false => row,
    };
    let all = || {
        let mut firsts: Vec<usize> = rows.clone().map(first).collect();
        firsts.dedup();
        firsts
    };
    match w {
        Source::Dense(_) => (0..cuts.len()).map(|i| (i, all())).collect(),
        Source::Sparse { .. } => {
            let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::from([(0, all())]);
            for &p in w.between(rows.start * k..rows.end * k).0 {
                let (row, col) = (p as usize / k, p as usize % k);
                let cut = cuts.partition_point(|c| c.end <= col);
                let firsts = found.entry(cut).or_default();
                // Rows ascend; the first k-block has them all.
                if cut != 0 && firsts.last() != Some(&first(row)) {
                    firsts.push(first(row));
                }
            }
            found.into_iter().collect()
        }
    }
}

/// Extends a strip to `len` units by splitting its own units in halves, or in themselves and zero where halves are not exact. A strip
/// without units stays empty.
fn pad(units: &mut Vec<Unit>, len: usize) {
    let magnitude = |u: &Unit| u.values.iter().fold(0f32, |m, v| m.max(v.abs()));
    while units.len() < len && !units.is_empty() {
        let mut best = 0;
        for (i, unit) in units.iter().enumerate() {
            if magnitude(unit) > magnitude(&units[best]) {
                best = i;
            }
        }
        let half = units[best].values.map(|v| v * 0.5);
        let mut halves = half.iter().zip(&units[best].values);
        let exact = halves.all(|(h, v)| h + h == *v);
        let rest = if exact {
            units[best].values = half;
            half
        } else {
            [0.0; 4]
        };
        units.insert(
            best + 1,
            Unit {
                col: units[best].col,
                values: rest,
            },
        );
    }
}

/// One group or single: its strips, padded to the same number of units.
struct Group {
    strips: Vec<Strip>,
    n_records: usize,
}

/// Sorts strips by size and puts those of nearly equal size together; what has no partner becomes a single.
fn group(kind: Kind, mut strips: Vec<Strip>) -> (Vec<Group>, Vec<Group>) {
    let in_flight = kind.strips_in_flight();
    let per_record = kind.units_per_record() / in_flight;
    strips.sort_by_key(|s| (usize::MAX - s.units.len(), s.row));
    let (mut groups, mut singles) = (Vec::new(), Vec::new());
    let mut rest = strips.into_iter().peekable();
    while let Some(first) = rest.next() {
        let longest = first.units.len();
        let n_records = longest.div_ceil(per_record);
        // At most one half per unit: more would lose precision and time.
        let fits = |s: &Strip| n_records * per_record <= 2 * s.units.len();
        let mut members = vec![first];
        if in_flight == 2 {
            match rest.next_if(|s| fits(s) && fits(&members[0])) {
                Some(second) => members.push(second),
                None => {
                    singles.extend(members.into_iter().map(|s| single(kind, s)));
                    continue;
                }
            }
        }
        for member in &mut members {
            pad(&mut member.units, n_records * per_record);
        }
        groups.push(Group {
            strips: members,
            n_records,
        });
    }
    (groups, singles)
}

/// A strip by itself.
fn single(kind: Kind, mut strip: Strip) -> Group {
    let n_records = strip.units.len().div_ceil(kind.units_per_record());
    pad(&mut strip.units, n_records * kind.units_per_record());
    Group {
        strips: vec![strip],
        n_records,
    }
}

pub(super) fn pack(
    kind: Kind,
    format: WeightFormat,
    n: usize,
    k: usize,
    w: Source<'_>,
) -> PackedMatrix {
    let nnz = w.n_nonzero(0..n * k);
    let few = nnz as f64 <= FEW * (n * k) as f64;
    let target = match kind {
        Kind::Outputs4 if few => K_BLOCK_OF_FEW_OUTPUTS4,
        _ if few => K_BLOCK_OF_FEW,
        _ => K_BLOCK,
    };
    let cuts = k_blocks(k, target);
    let rows_per_strip = kind.rows();
    let cost: Vec<usize> = (0..n)
        .step_by(rows_per_strip)
        .map(|row| w.n_nonzero(row * k..(row + rows_per_strip).min(n) * k) * 6 + 64)
        .collect();
    let mut packed = PackedMatrix {
        format,
        arithmetic: Arithmetic::Float,
        n,
        k,
        bytes: Vec::new(),
        row_blocks: Vec::new(),
        nnz,
        nnz_stored: 0,
    };
    for range in row_blocks(&cost, rows_per_strip, BLOCK_BYTES) {
        let rows = range.start * rows_per_strip..(range.end * rows_per_strip).min(n);
        let offset = packed.bytes.len();
        pack_block(kind, &mut packed, w, rows.clone(), &cuts);
        packed.row_blocks.push(RowBlock {
            offset: offset as u64,
            len: (packed.bytes.len() - offset) as u64,
            row0: rows.start as u32,
            n_rows: rows.len() as u32,
        });
    }
    packed
}

fn pack_block(
    kind: Kind,
    packed: &mut PackedMatrix,
    w: Source<'_>,
    rows: Range<usize>,
    cuts: &[Range<usize>],
) {
    let k = packed.k;
    let start = packed.bytes.len();
    let mut k_blocks = Vec::new();
    for (cut, firsts) in strips_of(kind, w, k, rows.clone(), cuts) {
        let (mut strips, mut left_over) = (Vec::new(), Vec::new());
        for row in firsts {
            if rows.end - row >= kind.rows() {
                strips.push(strip(kind, w, k, row..row + kind.rows(), &cuts[cut]));
            } else {
                left_over.push(strip(kind, w, k, row..row + 1, &cuts[cut]));
            }
        }
        if cut > 0 {
            strips.retain(|s| !s.units.is_empty());
            left_over.retain(|s| !s.units.is_empty());
            if strips.is_empty() && left_over.is_empty() {
                continue;
            }
        }
        let (groups, mut singles) = group(kind, strips);
        singles.extend(left_over.into_iter().map(|s| single(kind, s)));
        for (list, values) in [
            (&groups, kind.values_per_unit()),
            (&singles, kind.columns()),
        ] {
            let records: usize = list.iter().map(|g| g.n_records).sum();
            packed.nnz_stored += records * kind.units_per_record() * values;
        }
        k_blocks.push((&cuts[cut], groups, singles));
    }
    let tables = HEADER_BYTES + k_blocks.len() * ENTRY_BYTES;
    packed.bytes.resize(start + tables, 0);
    put_u32(&mut packed.bytes, start, k_blocks.len());
    for (i, (cols, groups, singles)) in k_blocks.iter().enumerate() {
        let entry = start + HEADER_BYTES + i * ENTRY_BYTES;
        let at = (start, entry);
        write_k_block(
            kind,
            &mut packed.bytes,
            at,
            rows.start,
            cols,
            [groups, singles],
        );
    }
    align(&mut packed.bytes, ALIGNMENT);
}

fn write_k_block(
    kind: Kind,
    bytes: &mut Vec<u8>,
    (start, entry): (usize, usize),
    row0: usize,
    cols: &Range<usize>,
    [groups, singles]: [&[Group]; 2],
) {
    let n_groups = groups.len() + singles.len();
    align(bytes, 16);
    let table = bytes.len();
    let stream = (table + (n_groups + GROUPS_AHEAD) * GROUP_BYTES).next_multiple_of(ALIGNMENT);
    bytes.resize(stream, 0);
    let words = [
        cols.start * UNIT,
        groups.len(),
        singles.len(),
        table - start,
        stream - start,
    ];
    for (i, word) in words.into_iter().enumerate() {
        put_u32(bytes, entry + i * 4, word);
    }
    for (i, g) in groups.iter().chain(singles).enumerate() {
        let at = table + i * GROUP_BYTES;
        let rows = [0, g.strips.len() - 1].map(|s| (g.strips[s].row - row0) * UNIT);
        put_u32(bytes, at, rows[0]);
        put_u32(bytes, at + 4, rows[1]);
        put_u32(bytes, at + 8, g.n_records);
        // Lines of the next k-block, spread over the groups of this one.
        let ahead = cols.len() + i * cols.len() / n_groups;
        put_u32(bytes, at + 12, ahead * UNIT);
        write_records(kind, bytes, g, cols.start);
    }
    bytes.resize(bytes.len() + STREAM_AHEAD, 0);
}

fn write_records(kind: Kind, bytes: &mut Vec<u8>, group: &Group, k0: usize) {
    let in_flight = group.strips.len();
    let per_record = kind.units_per_record();
    for record in 0..group.n_records {
        let unit = |i: usize| {
            let position = record * per_record + i;
            group.strips[position % in_flight].units[position / in_flight]
        };
        for i in 0..per_record {
            for value in &unit(i).values[..kind.values_per_unit()] {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        }
        for i in 0..per_record {
            let offset = (unit(i).col - k0) * UNIT;
            let offset = u16::try_from(offset).expect("k-blocks have fewer than 2048 columns");
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
    }
}

/// Groups and singles of all k-blocks of a row block, which is valid.
pub(super) fn n_groups(bytes: &[u8]) -> usize {
    let word = |at: usize| u32_at(bytes, at).unwrap_or(0);
    let entry = |i: usize| HEADER_BYTES + i * ENTRY_BYTES;
    (0..word(0))
        .map(|i| word(entry(i) + 4) + word(entry(i) + 8))
        .sum()
}

pub(super) fn validate(
    kind: Kind,
    n_rows: usize,
    k: usize,
    bytes: &[u8],
) -> Result<(), &'static str> {
    let n_k_blocks = u32_at(bytes, 0)?;
    if n_k_blocks == 0 || n_k_blocks > k {
        return Err("has a wrong number of k-blocks");
    }
    // Every row is named in the first k-block, by a quarter of a group at least.
    if n_rows > bytes.len() {
        return Err("the first k-block does not name every row");
    }
    let mut named = vec![0; n_rows];
    let mut free = 0;
    for i in 0..n_k_blocks {
        let entry = HEADER_BYTES + i * ENTRY_BYTES;
        let mut words = [0; 5];
        for (j, word) in words.iter_mut().enumerate() {
            *word = u32_at(bytes, entry + j * 4)?;
        }
        // In order, so that the work of validation is bounded by the length of the block.
        if words[3] < free || words[4] < words[3] {
            return Err("k-blocks overlap");
        }
        let n_named;
        (n_named, free) = validate_k_block(kind, k, bytes, words, (&mut named, i + 1))?;
        if i == 0 && n_named != n_rows {
            return Err("the first k-block does not name every row");
        }
    }
    Ok(())
}

/// Checks one k-block; returns how many rows it names and where its stream ends. Rows that it names get `stamp`.
fn validate_k_block(
    kind: Kind,
    k: usize,
    bytes: &[u8],
    [x_offset, n_groups, n_singles, table, stream]: [usize; 5],
    (named, stamp): (&mut [usize], usize),
) -> Result<(usize, usize), &'static str> {
    if x_offset % UNIT != 0 || x_offset / UNIT >= k {
        return Err("a k-block begins outside the columns");
    }
    let n_all = n_groups
        .checked_add(n_singles)
        .ok_or("a group table is too long")?;
    let table_end = n_all
        .checked_add(GROUPS_AHEAD)
        .and_then(|n| n.checked_mul(GROUP_BYTES)?.checked_add(table));
    if table_end.is_none_or(|end| end > bytes.len()) {
        return Err("a group table lies outside the block");
    }
    let mut n_named = 0;
    let mut record = stream;
    for i in 0..n_all {
        let at = table + i * GROUP_BYTES;
        let first = u32_at(bytes, at)?;
        let rows = match (kind, i < n_groups) {
            (Kind::Outputs4, true) => [0, 1, 2, 3].map(|r| Some(first + r * UNIT)),
            (_, true) => [Some(first), Some(u32_at(bytes, at + 4)?), None, None],
            (_, false) => [Some(first), None, None, None],
        };
        for row in rows.into_iter().flatten() {
            let named = named.get_mut(row / UNIT).filter(|_| row % UNIT == 0);
            let named = named.ok_or("a group names a row outside the block")?;
            if std::mem::replace(named, stamp) == stamp {
                return Err("a k-block names a row twice");
            }
            n_named += 1;
        }
        let n_records = u32_at(bytes, at + 8)?;
        let len = n_records.checked_mul(kind.record_bytes());
        let end = len
            .and_then(|len| record.checked_add(len))
            .ok_or("a stream is too long")?;
        if end
            .checked_add(STREAM_AHEAD)
            .is_none_or(|end| end > bytes.len())
        {
            return Err("a stream lies outside the block");
        }
        while record < end {
            for unit in 0..kind.units_per_record() {
                let offset = u16_at(bytes, record + kind.values_bytes() + unit * 2)?;
                let column = (x_offset + offset) / UNIT;
                if offset % UNIT != 0 || column + kind.columns() > k {
                    return Err("an offset points outside the columns");
                }
            }
            record += kind.record_bytes();
        }
    }
    if record
        .checked_add(STREAM_AHEAD)
        .is_none_or(|end| end > bytes.len())
    {
        return Err("a stream lies outside the block");
    }
    Ok((n_named, record))
}
