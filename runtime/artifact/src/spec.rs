//! What a kernel is specialised on.

use std::fmt;

use crate::{Activation, Reduction, Vertical};

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

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightFormat::Dense => f.write_str("dense"),
            WeightFormat::Unstructured => f.write_str("unstructured"),
            WeightFormat::Bsr { r, c } => write!(f, "bsr {r}x{c}"),
        }
    }
}

/// What the products of a packed weight are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arithmetic {
    /// `f32`.
    #[default]
    Float,
    /// Unsigned bytes times signed ones, summed in 16 bits as far as the weights prove that nothing saturates, then in 32.
    Bytes,
    /// Bytes widened to 16 bits, products summed in 32: exact for any weights.
    Words,
}

impl Arithmetic {
    /// Every arithmetic, in declaration order.
    pub const ALL: [Arithmetic; 3] = [Arithmetic::Float, Arithmetic::Bytes, Arithmetic::Words];

    /// The name in plans.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Float => "f32",
            Arithmetic::Bytes => "i8",
            Arithmetic::Words => "i16",
        }
    }
}

impl Arithmetic {
    /// Why sums are exact, whatever the input; `None` for `f32`, whose sums are rounded.
    pub fn proof(self) -> Option<&'static str> {
        match self {
            Arithmetic::Float => None,
            Arithmetic::Bytes => Some("16-bit sums within 255 * 128"),
            Arithmetic::Words => Some("none needed"),
        }
    }
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
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
    /// One row block of a packed integer weight times one quad panel: `i32`, exact.
    IntegerMatmul {
        format: WeightFormat,
        arithmetic: Arithmetic,
        panel: u32,
        lanes: u32,
    },
    /// The rows of a quad panel as rows of bytes.
    ByteRows { panel: u32, lanes: u32 },
    /// The tail of a linear layer over rows of one panel, in place.
    Epilogue {
        activation: Activation,
        residual: bool,
        panel: u32,
        lanes: u32,
    },
    /// An elementwise function of several operands over rows of one panel.
    Vertical {
        vertical: Vertical,
        panel: u32,
        lanes: u32,
    },
    /// The function that `body` writes, of operands over rows of one panel.
    Elementwise {
        /// Lines of a body, one behind the other, parted by `;`. All values are floats; booleans are 0 and 1.
        body: String,
        /// Each operand's.
        operands: Vec<(Reach, Float)>,
        result: Float,
        panel: u32,
        lanes: u32,
    },
    /// A sum of elements, or of their squares, or the greatest or least, of each of `lanes` columns; a mean is a sum.
    Reduce {
        reduction: Reduction,
        float: Float,
        /// A multiple of 8, at most 32.
        lanes: u32,
    },
    /// The sum of a row of each of `tables` embedding tables, into one token of a panel.
    EmbeddingSum { tables: u32, panel: u32 },
    /// Layer norm over the features of one panel.
    LayerNorm { panel: u32, lanes: u32 },
    /// Root-mean-square norm over the features of one panel.
    RmsNorm { panel: u32, lanes: u32 },
    /// Attention of a tile of queries: scores, softmax and context.
    AttentionTile {
        /// Whether products, scores with the mask, and probabilities are rounded.
        rounds: [bool; 3],
    },
    /// A product of attention: scores from queries and keys, or context from probabilities and values.
    AttentionProduct,
    /// Softmax over the keys of a tile of scores.
    AttentionSoftmax,
    /// Multiply-adds between registers and nothing else: measures the peak of the CPU.
    FmaProbe,
}

impl KernelSpec {
    /// The kernel that multiplies by a matrix stored in this way.
    pub fn matmul(stored: (WeightFormat, Arithmetic), panel: u32, lanes: u32) -> KernelSpec {
        let (format, arithmetic) = stored;
        match arithmetic {
            Arithmetic::Float => KernelSpec::Matmul {
                format,
                panel,
                lanes,
            },
            Arithmetic::Bytes | Arithmetic::Words => KernelSpec::IntegerMatmul {
                format,
                arithmetic,
                panel,
                lanes,
            },
        }
    }
}

/// A type of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    F32,
    F64,
}

impl Float {
    /// The name of the element type.
    pub fn name(self) -> &'static str {
        match self {
            Float::F32 => "f32",
            Float::F64 => "f64",
        }
    }

    /// Bytes of a number.
    pub fn size_bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }
}

/// Over what an operand of an elementwise kernel changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// Rows and lanes: a panel.
    Panel,
    /// Rows: one number for each.
    Rows,
    /// Lanes: the same row for all rows.
    Lanes,
    /// Nothing: one number.
    One,
}
