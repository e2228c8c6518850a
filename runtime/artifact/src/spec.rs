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

/// What a kernel is specialised on; equal specs share one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelSpec {
    /// One row block of a packed weight times one token panel, plus bias.
    Matmul {
        format: WeightFormat,
        /// Panel width W of activations, in tokens: 8, 16 or 32.
        panel: u32,
        /// Leading tokens of the panel that are computed: a multiple of 8, at most `panel`.
        lanes: u32,
    },
}
