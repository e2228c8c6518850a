//! What a matrix kernel is specialised on.

/// How a packed weight `w[n, k]` is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightFormat {
    /// Every element, in register tiles.
    Dense,
    /// Single elements of a row, for unstructured sparsity.
    Unstructured,
    /// Blocks of `r` consecutive outputs by `c` consecutive inputs.
    Bsr { r: u8, c: u8 },
}
