//! Types of values: element type, shape, layout, and no more.

use std::fmt;

use lancet_ops::DType;

use crate::Dim;

/// How a packed weight `w[n, k]` is stored. The names are SciPy's; the records are the code generator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightFormat {
    /// Every element, in register tiles.
    Dense,
    /// Single elements of a row, for unstructured sparsity.
    Unstructured,
    /// Blocks of `r` consecutive outputs by `c` consecutive inputs.
    Bsr { r: u8, c: u8 },
    /// At most `n` non-zeros in each group of `m` consecutive inputs.
    NOfM { n: u8, m: u8 },
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightFormat::Dense => f.write_str("dense"),
            WeightFormat::Unstructured => f.write_str("unstructured"),
            WeightFormat::Bsr { r, c } => write!(f, "bsr {r}x{c}"),
            WeightFormat::NOfM { n, m } => write!(f, "nm {n}:{m}"),
        }
    }
}

/// How the elements of a value lie in memory. It never changes what the value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Layout {
    /// Last dimension contiguous.
    RowMajor,
    /// Token panels: the leading dimensions are tokens, the last one features; `[ceil(m / nr)][k][nr]`.
    Panels,
    /// A constant weight `[n, k]`, packed for a matrix kernel.
    Packed(WeightFormat),
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layout::RowMajor => f.write_str("row_major"),
            Layout::Panels => f.write_str("panels"),
            Layout::Packed(format) => write!(f, "{format}"),
        }
    }
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Vec<Dim>,
    pub layout: Layout,
}

impl TensorType {
    /// A row-major type.
    pub fn new(dtype: DType, shape: Vec<Dim>) -> TensorType {
        TensorType {
            dtype,
            shape,
            layout: Layout::RowMajor,
        }
    }

    /// A row-major type of fixed sizes.
    pub fn fixed(dtype: DType, shape: &[usize]) -> TensorType {
        TensorType::new(dtype, shape.iter().map(|&d| Dim::from(d)).collect())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The sizes if none is symbolic.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape
            .iter()
            .map(|d| usize::try_from(d.as_fixed()?).ok())
            .collect()
    }

    /// True if element type and shape agree; layouts may differ.
    pub fn same_value(&self, other: &TensorType) -> bool {
        self.dtype == other.dtype && self.shape == other.shape
    }
}

/// Prints `f32[batch, seq, 64]`, with the layout in braces where it is not row-major: `f32[768, 64]{bsr 4x1}`.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")?;
        match self.layout {
            Layout::RowMajor => Ok(()),
            layout => write!(f, "{{{layout}}}"),
        }
    }
}
