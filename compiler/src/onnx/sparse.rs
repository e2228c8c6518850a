//! Sparse tensors of the file: matrices stay what they are, others are made dense up to a limit of size.

use lancet_ops::{DType, Data, Tensor};
use onnx_protobuf::SparseTensorProto;

use super::error::Fault;
use super::tensor::{TensorReader, dtype, shape};

/// A sparse tensor of the file.
pub(crate) enum Sparse {
    Dense(Tensor),
    /// A matrix: what is not zero, and where, ascending. It may be larger than any memory.
    Matrix {
        shape: Vec<usize>,
        values: Vec<f32>,
        positions: Vec<i64>,
    },
}

/// Reads a sparse tensor: an `f32` matrix as its values, another one of at most `max_bytes` as a dense tensor.
///
/// `indices` is `i64[nnz]`, positions in the row-major tensor, or `i64[nnz, rank]`, coordinates; `values` is `[nnz]`.
///
/// # Errors
/// [`Fault`] if the parts disagree, a position is out of range or given twice, or the tensor is too large.
pub(crate) fn read(
    reader: &mut TensorReader<'_>,
    proto: &mut SparseTensorProto,
    max_bytes: u64,
) -> Result<Sparse, Fault> {
    let (shape, values, positions) = parts(reader, proto)?;
    if shape.len() != 2 || shape.contains(&0) || values.dtype() != DType::F32 {
        return dense(reader, (shape, values, positions), max_bytes).map(Sparse::Dense);
    }
    let values = values.as_slice::<f32>().unwrap_or_default();
    let held = positions.iter().zip(values).filter(|(_, v)| **v != 0.0);
    let mut held: Vec<(i64, f32)> = held.map(|(&p, &v)| (p as i64, v)).collect();
    held.sort_unstable_by_key(|(p, _)| *p);
    let (positions, values) = held.into_iter().unzip();
    Ok(Sparse::Matrix {
        shape,
        values,
        positions,
    })
}

/// Reads a sparse tensor of at most `max_bytes` as a dense one.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_dense(
    reader: &mut TensorReader<'_>,
    proto: &mut SparseTensorProto,
    max_bytes: u64,
) -> Result<Tensor, Fault> {
    let parts = parts(reader, proto)?;
    dense(reader, parts, max_bytes)
}

/// The shape, the values and where they are: in range, each once.
fn parts(
    reader: &mut TensorReader<'_>,
    proto: &mut SparseTensorProto,
) -> Result<(Vec<usize>, Tensor, Vec<usize>), Fault> {
    let missing = |part: &str| Fault::invalid(format!("sparse tensor without {part}"));
    let values = proto.values.as_mut().ok_or_else(|| missing("values"))?;
    let indices = proto.indices.as_mut().ok_or_else(|| missing("indices"))?;
    dtype(i64::from(values.data_type))?;
    let (shape, n) = shape(&proto.dims)?;
    let values = reader.read(values)?;
    let indices = reader.read(indices)?;
    let positions = positions(&indices, &shape, n, values.len())?;
    Ok((shape, values, positions))
}

fn dense(
    reader: &mut TensorReader<'_>,
    (shape, values, positions): (Vec<usize>, Tensor, Vec<usize>),
    max_bytes: u64,
) -> Result<Tensor, Fault> {
    let n: usize = shape.iter().product();
    let n_bytes = (n as u64).saturating_mul(values.dtype().size_bytes() as u64);
    if n_bytes > max_bytes {
        return Err(Fault::limit(format!(
            "sparse tensor of shape {shape:?} takes {n_bytes} bytes when dense; {max_bytes} are allowed"
        )));
    }
    reader.spend(n_bytes)?;
    let data = scatter(values.into_data(), &positions, n);
    Tensor::try_new(shape, data).ok_or_else(|| Fault::invalid("sparse tensor of the wrong size"))
}

/// Positions in the row-major tensor: in range, each once.
fn positions(indices: &Tensor, shape: &[usize], n: usize, nnz: usize) -> Result<Vec<usize>, Fault> {
    let bad = |what: &str| Fault::invalid(format!("sparse tensor: {what}"));
    let flat = indices
        .as_slice::<i64>()
        .ok_or_else(|| bad("indices are not int64"))?;
    let positions: Vec<usize> = match *indices.shape() {
        [count] if count == nnz => flat
            .iter()
            .map(|&i| usize::try_from(i).ok().filter(|&i| i < n))
            .collect::<Option<_>>(),
        [count, rank] if count == nnz && rank == shape.len() && rank > 0 => flat
            .chunks(rank)
            .map(|c| {
                c.iter().zip(shape).try_fold(0usize, |at, (&i, &d)| {
                    let i = usize::try_from(i).ok().filter(|&i| i < d)?;
                    Some(at * d + i)
                })
            })
            .collect::<Option<_>>(),
        _ => return Err(bad("the shape of the indices does not fit the values")),
    }
    .ok_or_else(|| bad("an index is out of range"))?;
    let mut sorted = positions.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|w| w[0] == w[1]) {
        return Err(bad("an index is given twice"));
    }
    Ok(positions)
}

fn scatter(values: Data, positions: &[usize], n: usize) -> Data {
    fn put<T: Copy + Default>(values: &[T], positions: &[usize], n: usize) -> Vec<T> {
        let mut out = vec![T::default(); n];
        for (&at, &v) in positions.iter().zip(values) {
            out[at] = v;
        }
        out
    }
    match values {
        Data::F32(v) => Data::F32(put(&v, positions, n)),
        Data::F64(v) => Data::F64(put(&v, positions, n)),
        Data::F16(v) => Data::F16(put(&v, positions, n)),
        Data::BF16(v) => Data::BF16(put(&v, positions, n)),
        Data::I8(v) => Data::I8(put(&v, positions, n)),
        Data::I16(v) => Data::I16(put(&v, positions, n)),
        Data::I32(v) => Data::I32(put(&v, positions, n)),
        Data::I64(v) => Data::I64(put(&v, positions, n)),
        Data::U8(v) => Data::U8(put(&v, positions, n)),
        Data::U16(v) => Data::U16(put(&v, positions, n)),
        Data::U32(v) => Data::U32(put(&v, positions, n)),
        Data::U64(v) => Data::U64(put(&v, positions, n)),
        Data::Bool(v) => Data::Bool(put(&v, positions, n)),
    }
}
