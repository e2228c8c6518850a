//! Packed weights: how a matrix `w[n, k]` is stored for the kernels, and the proof that stored bytes are safe to run on.
//!
//! A packed matrix is a list of *row blocks*: consecutive output rows, position-independent bytes at a multiple of 64,
//! the unit of work of one kernel call. [`pack`] writes them, [`validate`] checks everything that unchecked kernels rely
//! on: afterwards every address a kernel forms lies in the block, in the panel of `k` rows, or in the block's rows of
//! the output (prefetches excepted, which cannot fault). Layouts are described in `compiler/docs/kernels.md`.
//!
//! Padding never makes a row depend on an input it does not use: a padded record repeats a column of its own row, with
//! the weight split in halves (a zero where weights are integers, whose inputs are finite).

mod dense;
pub(crate) mod integer;
mod partition;
mod reader;
pub(crate) mod sparse;
mod unpack;

use lancet_artifact::{Arithmetic, RowBlock, WeightFormat};

pub use integer::MAX_WEIGHT;
pub use unpack::unpack_block;

pub(crate) use dense::{ENTRY_BYTES as DENSE_ENTRY_BYTES, TILE as DENSE_TILE};

/// Alignment of row blocks in bytes.
pub const ALIGNMENT: usize = 64;
/// Bytes of an offset or row in tables: one row of a panel of 8 tokens. Kernels scale it to their panel.
pub(crate) const UNIT: usize = 32;
/// Most elements of a matrix of few values that is packed as dense.
pub const MAX_DENSE: usize = 1 << 28;
/// Rows or columns that a matrix may have however few values are in it.
const MAX_EMPTY: usize = 1 << 20;
/// Where the table of k-blocks begins in a row block.
pub(crate) const HEADER_BYTES: usize = 64;

/// A packed `w[n, k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedMatrix {
    pub format: WeightFormat,
    pub arithmetic: Arithmetic,
    pub n: usize,
    pub k: usize,
    pub bytes: Vec<u8>,
    /// In row order, without gaps.
    pub row_blocks: Vec<RowBlock>,
    /// Non-zero weights.
    pub nnz: usize,
    /// Multiplications per token, padding and zeros in blocks included.
    pub nnz_stored: usize,
}

/// Why a matrix cannot be packed, or packed bytes are not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("no packed format {0:?}")]
    Unsupported(WeightFormat),
    #[error("weight has {elements} elements, expected {n} x {k}, neither 0")]
    Shape { n: usize, k: usize, elements: usize },
    #[error("no packed format for {0} weights")]
    Arithmetic(Arithmetic),
    #[error("integer weight {0} is not within +-{max}", max = MAX_WEIGHT)]
    Range(i16),
    #[error("weight {n} x {k} is too large to pack")]
    TooLarge { n: usize, k: usize },
    #[error("packed weight, row block {block}: {what}")]
    Invalid { block: usize, what: &'static str },
}

/// The format whose records store `format`, for a matrix of `k` inputs.
///
/// Output blocks of 4, 8, 12, ... rows are stored as 4x1 and input blocks of 4, 8, 12, ... columns as 1x4; other blocks,
/// and input blocks of a matrix with fewer than four columns, as unstructured.
pub fn stored_format(format: WeightFormat, k: usize) -> WeightFormat {
    match format {
        WeightFormat::Dense => WeightFormat::Dense,
        WeightFormat::Unstructured => WeightFormat::Unstructured,
        WeightFormat::Bsr { r, c: 1 } if r >= 4 && r % 4 == 0 => WeightFormat::Bsr { r: 4, c: 1 },
        WeightFormat::Bsr { r: 1, c } if c >= 4 && c % 4 == 0 && k >= 4 => {
            WeightFormat::Bsr { r: 1, c: 4 }
        }
        WeightFormat::Bsr { .. } => WeightFormat::Unstructured,
    }
}

/// The format whose records store weights of `arithmetic` in `format`, for a matrix of `k` inputs: pairs for bytes that are neither
/// dense nor in blocks of inputs, quads for all other bytes and words, otherwise that of [`stored_format`].
pub fn stored_format_of(arithmetic: Arithmetic, format: WeightFormat, k: usize) -> WeightFormat {
    match (arithmetic, format) {
        (Arithmetic::Float, _) => stored_format(format, k),
        (_, WeightFormat::Dense) => WeightFormat::Dense,
        (Arithmetic::Words, WeightFormat::Unstructured | WeightFormat::Bsr { .. }) => {
            WeightFormat::Bsr { r: 1, c: 4 }
        }
        (Arithmetic::Bytes, _) => match stored_format(format, k) {
            WeightFormat::Bsr { r: 1, c } => WeightFormat::Bsr { r: 1, c },
            WeightFormat::Dense | WeightFormat::Unstructured | WeightFormat::Bsr { .. } => {
                WeightFormat::Unstructured
            }
        },
    }
}

/// Whether bytes that are stored in `format` are multiplied with byte rows instead of quads.
pub fn in_byte_rows(format: WeightFormat) -> bool {
    integer::Stream::of(format) == integer::Stream::Pairs
}

/// Packs the integers `w`, row-major `[n, k]`, as [`stored_format_of`] the arithmetic and `format`.
///
/// # Errors
/// As [`pack`]; [`FormatError::Range`] if a weight is beyond [`MAX_WEIGHT`], [`FormatError::Arithmetic`] for `Float`.
pub fn pack_integer(
    arithmetic: Arithmetic,
    format: WeightFormat,
    n: usize,
    k: usize,
    w: &[i16],
) -> Result<PackedMatrix, FormatError> {
    check_sizes(n, k, w.len())?;
    if arithmetic == Arithmetic::Float {
        return Err(FormatError::Arithmetic(arithmetic));
    }
    if let Some(&w) = w.iter().find(|w| w.unsigned_abs() > MAX_WEIGHT as u16) {
        return Err(FormatError::Range(w));
    }
    let stored = stored_format_of(arithmetic, format, k);
    Ok(integer::pack(arithmetic, stored, n, k, w))
}

fn check_sizes(n: usize, k: usize, elements: usize) -> Result<(), FormatError> {
    if n == 0 || k == 0 || n.checked_mul(k) != Some(elements) {
        return Err(FormatError::Shape { n, k, elements });
    }
    if n.max(k) > u32::MAX as usize / (2 * UNIT) {
        return Err(FormatError::TooLarge { n, k });
    }
    Ok(())
}

/// Packs `w`, row-major `[n, k]`, as [`stored_format`] of `format`.
///
/// # Errors
/// [`FormatError::Shape`] if `w` has other than `n * k` elements or none, [`FormatError::TooLarge`] if offsets overflow.
pub fn pack(
    format: WeightFormat,
    n: usize,
    k: usize,
    w: &[f32],
) -> Result<PackedMatrix, FormatError> {
    check_sizes(n, k, w.len())?;
    let format = stored_format(format, k);
    match sparse::Kind::of(format) {
        None => dense::pack(n, k, w),
        Some(kind) => {
            let source = sparse::Source::Dense(w);
            Ok(sparse::pack(kind, format, n, k, source))
        }
    }
}

/// Packs the matrix that has `values` at ascending row-major `positions` and zeros elsewhere: as [`pack`], to the same bytes.
///
/// Time and memory are those of the values, of `n` and of `k`, and these are at most in proportion to the values; for the dense
/// format, of `n * k` up to [`MAX_DENSE`].
///
/// # Errors
/// [`FormatError::Shape`] if a dimension is 0, positions do not ascend below `n * k` or are not as many as the values;
/// [`FormatError::TooLarge`] if the matrix is too large for so few values, or to be dense.
pub fn pack_sparse(
    format: WeightFormat,
    n: usize,
    k: usize,
    positions: &[u64],
    values: &[f32],
) -> Result<PackedMatrix, FormatError> {
    let n_elements = n.checked_mul(k).unwrap_or(0);
    let ascending = positions.windows(2).all(|p| p[0] < p[1]);
    let inside = positions.last().is_none_or(|&p| p < n_elements as u64);
    let most = (u32::MAX as usize / (2 * UNIT)).min(MAX_EMPTY.max(values.len().saturating_mul(64)));
    if n.max(k) > most {
        return Err(FormatError::TooLarge { n, k });
    }
    if n_elements == 0 || positions.len() != values.len() || !ascending || !inside {
        let elements = values.len();
        return Err(FormatError::Shape { n, k, elements });
    }
    let format = stored_format(format, k);
    match sparse::Kind::of(format) {
        None if n_elements > MAX_DENSE => Err(FormatError::TooLarge { n, k }),
        None => {
            let mut w = vec![0.0; n_elements];
            for (&p, &v) in positions.iter().zip(values) {
                w[p as usize] = v;
            }
            dense::pack(n, k, &w)
        }
        Some(kind) => {
            let w = sparse::Source::Sparse { positions, values };
            Ok(sparse::pack(kind, format, n, k, w))
        }
    }
}

/// Groups that a kernel goes through in a valid row block of floats; 0 where it has none.
pub fn n_groups(format: WeightFormat, block: &[u8]) -> usize {
    match sparse::Kind::of(format) {
        None => 0,
        Some(_) => sparse::n_groups(block),
    }
}

/// Proves that kernels may run on these bytes, which may come from anywhere.
///
/// # Errors
/// [`FormatError::Invalid`] with the first row block that is not as a packer writes it.
pub fn validate(
    (format, arithmetic): (WeightFormat, Arithmetic),
    n: usize,
    k: usize,
    row_blocks: &[RowBlock],
    bytes: &[u8],
) -> Result<(), FormatError> {
    if n == 0 || k == 0 || n.max(k) > u32::MAX as usize / (2 * UNIT) {
        return Err(FormatError::Shape { n, k, elements: 0 });
    }
    if stored_format_of(arithmetic, format, k) != format {
        return Err(FormatError::Unsupported(format));
    }
    let kind = sparse::Kind::of(format);
    let mut row = 0usize;
    for (i, block) in row_blocks.iter().enumerate() {
        let invalid = |what| FormatError::Invalid { block: i, what };
        let n_rows = block.n_rows as usize;
        if block.row0 as usize != row || n_rows == 0 || n_rows > n - row {
            return Err(invalid("rows are not in order"));
        }
        row += n_rows;
        if block.offset % ALIGNMENT as u64 != 0 {
            return Err(invalid("is not aligned"));
        }
        let range = usize::try_from(block.offset)
            .ok()
            .zip(usize::try_from(block.len).ok());
        let bytes = range
            .and_then(|(offset, len)| bytes.get(offset..offset.checked_add(len)?))
            .ok_or_else(|| invalid("lies outside the bytes"))?;
        match (arithmetic, kind) {
            (Arithmetic::Float, None) => dense::validate(n_rows, k, bytes),
            (Arithmetic::Float, Some(kind)) => sparse::validate(kind, n_rows, k, bytes),
            (Arithmetic::Bytes | Arithmetic::Words, _) => {
                integer::validate((format, arithmetic), n_rows, k, bytes)
            }
        }
        .map_err(invalid)?;
    }
    if row != n {
        return Err(FormatError::Invalid {
            block: row_blocks.len(),
            what: "rows are missing",
        });
    }
    Ok(())
}
