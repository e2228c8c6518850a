//! Constants and packed matrices for the weights section.
//!
//! A constant is borrowed from the graph, not copied, until it is written: the section of a 400 MB model costs no second
//! copy.

use std::borrow::Cow;
use std::collections::HashMap;

use lancet_artifact::{Arithmetic, MatrixDesc, WeightFormat as PlanFormat, Weights};
use lancet_codegen::formats::{self, FormatError, PackedMatrix};
use lancet_ir::{Graph, Layout, NodeId, Op, Value, WeightFormat};
use lancet_ops::{Data, Tensor};
use lancet_passes::analysis::cost::{Choice, Kernel, Matrix, choose_kernel};
use lancet_passes::analysis::sparse::SparseMatrix;
use lancet_passes::analysis::sparsity::SparsityPattern;

use super::{LowerError, describe, unsupported};

/// The weights section, and where each tensor of the graph is in it.
#[derive(Debug)]
pub(super) struct Placement<'g, 'w> {
    weights: &'w mut Weights<'g>,
    placed: HashMap<*const Tensor, (u64, u64)>,
}

impl<'g, 'w> Placement<'g, 'w> {
    /// Nothing placed yet, to be added to `weights`.
    pub(super) fn new(weights: &'w mut Weights<'g>) -> Placement<'g, 'w> {
        Placement {
            weights,
            placed: HashMap::new(),
        }
    }

    /// Places a constant, once however often it is used; its offset and length.
    pub(super) fn tensor(&mut self, tensor: &'g Tensor) -> (u64, u64) {
        if let Some(&range) = self.placed.get(&std::ptr::from_ref(tensor)) {
            return range;
        }
        let bytes = little_endian(tensor);
        let len = bytes.len() as u64;
        let range = (self.weights.push(bytes), len);
        self.placed.insert(std::ptr::from_ref(tensor), range);
        range
    }

    /// Places a tensor that is not the graph's; its offset and length.
    pub(super) fn owned(&mut self, tensor: &Tensor) -> (u64, u64) {
        let bytes = little_endian(tensor).into_owned();
        let len = bytes.len() as u64;
        (self.weights.push(bytes), len)
    }

    /// Packs the weight that the convert node of `packed` packs, and places it.
    pub(super) fn pack(&mut self, graph: &Graph, packed: Value) -> Result<MatrixDesc, LowerError> {
        let node = packed.node;
        let (Op::Convert(Layout::Packed(format)), Some(source)) =
            (graph.op(node), graph.operand(node, 0))
        else {
            return Err(unsupported(graph, node, "is not a packed weight"));
        };
        let wanted = match format {
            WeightFormat::Dense => PlanFormat::Dense,
            WeightFormat::Unstructured => PlanFormat::Unstructured,
            WeightFormat::Bsr { r, c } => PlanFormat::Bsr { r: *r, c: *c },
            WeightFormat::NOfM { .. } => PlanFormat::Unstructured,
        };
        let (packed, matrix) = match (SparseMatrix::of(graph, source), graph.constant(source)) {
            (Some(w), _) => {
                let positions: Vec<u64> = w.positions.iter().map(|&p| p as u64).collect();
                let packed = formats::pack_sparse(wanted, w.n, w.k, &positions, w.values);
                (packed, Matrix::floats(SparsityPattern::of_sparse(w)))
            }
            (None, Some(tensor)) => packed_tensor(graph, node, (*format, wanted), tensor)?,
            (None, None) => {
                let message = "packs a weight that is not constant";
                return Err(unsupported(graph, node, message));
            }
        };
        let packed = packed
            .map_err(|e| unsupported(graph, source.node, &format!("cannot be packed: {e}")))?;
        let cost = choose_kernel(&matrix, *format).cost;
        let dense = choose_kernel(&matrix, WeightFormat::Dense).cost.total();
        let len = packed.bytes.len() as u64;
        let offset = self.weights.push(packed.bytes);
        Ok(MatrixDesc {
            name: describe(graph, source.node),
            format: packed.format,
            arithmetic: packed.arithmetic,
            n: packed.n as u32,
            k: packed.k as u32,
            offset,
            len,
            row_blocks: packed.row_blocks,
            nnz: packed.nnz as u64,
            pattern: matrix.pattern.name(),
            predicted_speedup: (dense / cost.total().max(1.0)) as f32,
            predicted_cycles: (cost.terms().into_iter())
                .map(|(name, cycles)| (name.to_owned(), cycles as f32))
                .collect(),
        })
    }
}

/// A constant, packed, and what its cost depends on.
fn packed_tensor(
    graph: &Graph,
    node: NodeId,
    (format, wanted): (WeightFormat, PlanFormat),
    tensor: &Tensor,
) -> Result<(Result<PackedMatrix, FormatError>, Matrix), LowerError> {
    let &[n, k] = tensor.shape() else {
        let message = "packs a weight of another rank than 2";
        return Err(unsupported(graph, node, message));
    };
    let integers = |w: &[i16], matrix: Matrix| {
        let arithmetic = arithmetic(choose_kernel(&matrix, format));
        (formats::pack_integer(arithmetic, wanted, n, k, w), matrix)
    };
    Ok(match tensor.data() {
        Data::F32(w) => {
            let matrix = Matrix::floats(SparsityPattern::of(w, n, k));
            (formats::pack(wanted, n, k, w), matrix)
        }
        Data::I8(w) => {
            let wide: Vec<i16> = w.iter().map(|&w| i16::from(w)).collect();
            integers(&wide, Matrix::integers(w, n, k))
        }
        Data::I16(w) => integers(w, Matrix::integers(w, n, k)),
        _ => {
            let message = format!("packs a weight of {}", tensor.dtype());
            return Err(unsupported(graph, node, &message));
        }
    })
}

/// What the kernel of integers computes in.
fn arithmetic(chosen: Choice) -> Arithmetic {
    match chosen.kernel {
        Kernel::Bytes | Kernel::Pairs => Arithmetic::Bytes,
        Kernel::Words => Arithmetic::Words,
        Kernel::Dense | Kernel::Unstructured | Kernel::Outputs4 | Kernel::Inputs4 => {
            Arithmetic::Float
        }
    }
}

/// The elements as little-endian bytes, borrowed where the machine is little-endian.
pub(super) fn little_endian(tensor: &Tensor) -> Cow<'_, [u8]> {
    fn cast<T: bytemuck::NoUninit>(v: &[T]) -> Cow<'_, [u8]> {
        let bytes: &[u8] = bytemuck::must_cast_slice(v);
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned(
            bytes
                .chunks(size_of::<T>())
                .flat_map(|c| c.iter().rev().copied())
                .collect(),
        )
    }
    match tensor.data() {
        Data::F32(v) => cast(v),
        Data::F64(v) => cast(v),
        Data::F16(v) => cast(v),
        Data::BF16(v) => cast(v),
        Data::I8(v) => cast(v),
        Data::I16(v) => cast(v),
        Data::I32(v) => cast(v),
        Data::I64(v) => cast(v),
        Data::U8(v) => cast(v),
        Data::U16(v) => cast(v),
        Data::U32(v) => cast(v),
        Data::U64(v) => cast(v),
        Data::Bool(v) => Cow::Owned(v.iter().map(|&b| u8::from(b)).collect()),
    }
}
