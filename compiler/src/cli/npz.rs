//! Named tensors in `.npz` files, NumPy's format.

use std::fs::File;
use std::path::Path;

use lancet::{Data, Tensor, TensorView};
use ndarray::{ArrayD, ArrayViewD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter};

use super::{Failure, Kind};

/// Reads every array of a file; names lose NumPy's `.npy`.
pub(super) fn read(path: &Path) -> Result<Vec<(String, Tensor)>, Failure> {
    let file = File::open(path).map_err(|e| Failure::io(path, &e))?;
    let invalid = |message: String| {
        Failure::new(
            Kind::InvalidFile,
            format_args!("{}: {message}", path.display()),
        )
    };
    let mut npz = NpzReader::new(file).map_err(|e| invalid(e.to_string()))?;
    let names = npz.names().map_err(|e| invalid(e.to_string()))?;
    names
        .into_iter()
        .map(|name| {
            let tensor =
                array(&mut npz, &name).map_err(|e| invalid(format!("array `{name}`: {e}")))?;
            Ok((name.trim_end_matches(".npy").to_owned(), tensor))
        })
        .collect()
}

/// Reads one array as whatever element type it has.
fn array(npz: &mut NpzReader<File>, name: &str) -> Result<Tensor, String> {
    macro_rules! attempt {
        ($ty:ty) => {
            npz.by_name::<OwnedRepr<$ty>, IxDyn>(name).map(|a| {
                let elements: Vec<$ty> = a.as_standard_layout().iter().copied().collect();
                Tensor::new(a.shape().to_vec(), elements)
            })
        };
    }
    attempt!(i64)
        .or_else(|_| attempt!(i32))
        .or_else(|_| attempt!(bool))
        .or_else(|_| attempt!(f64))
        .or_else(|_| attempt!(u8))
        .or_else(|_| attempt!(i8))
        .or_else(|_| attempt!(i16))
        .or_else(|_| attempt!(u16))
        .or_else(|_| attempt!(u32))
        .or_else(|_| attempt!(u64))
        .or_else(|_| attempt!(f32))
        .map_err(|e| e.to_string())
}

/// Writes named arrays; the file appears whole or not at all.
pub(super) fn write(path: &Path, tensors: &[(String, TensorView<'_>)]) -> Result<(), Failure> {
    super::model::write_atomically(path, |file| {
        let mut npz = NpzWriter::new(file);
        for (name, tensor) in tensors {
            add(&mut npz, name, tensor).map_err(std::io::Error::other)?;
        }
        npz.finish().map_err(std::io::Error::other)?;
        Ok(())
    })
}

fn add(npz: &mut NpzWriter<&mut File>, name: &str, tensor: &TensorView<'_>) -> Result<(), String> {
    let shape = IxDyn(tensor.shape());
    macro_rules! write {
        ($v:expr) => {{
            let view = ArrayViewD::from_shape(shape, $v).map_err(|e| e.to_string())?;
            npz.add_array(name, &view).map_err(|e| e.to_string())
        }};
    }
    match tensor.to_tensor().data() {
        Data::F32(v) => write!(v),
        Data::F64(v) => write!(v),
        Data::I8(v) => write!(v),
        Data::I16(v) => write!(v),
        Data::I32(v) => write!(v),
        Data::I64(v) => write!(v),
        Data::U8(v) => write!(v),
        Data::U16(v) => write!(v),
        Data::U32(v) => write!(v),
        Data::U64(v) => write!(v),
        Data::Bool(v) => write!(v),
        // NumPy files of 16-bit floats are not something this library writes; f32 holds every value exactly.
        Data::F16(v) => widen(
            npz,
            name,
            tensor.shape(),
            v.iter().map(|x| x.to_f32()).collect(),
        ),
        Data::BF16(v) => widen(
            npz,
            name,
            tensor.shape(),
            v.iter().map(|x| x.to_f32()).collect(),
        ),
    }
}

fn widen(
    npz: &mut NpzWriter<&mut File>,
    name: &str,
    shape: &[usize],
    values: Vec<f32>,
) -> Result<(), String> {
    let array = ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|e| e.to_string())?;
    npz.add_array(name, &array).map_err(|e| e.to_string())
}
