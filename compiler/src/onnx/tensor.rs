//! Tensors of the file to tensors of Lancet.
//!
//! Elements of `raw_data` and of external files are read once, straight to where they stay; typed fields are moved or
//! converted, and the source is emptied. Nothing is allocated before the number of elements that a shape asks for has
//! been compared with the bytes that are there.

use bytemuck::Pod;
use half::{bf16, f16};
use lancet_ops::{DType, Data, Tensor};
use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use protobuf::Enum;

use super::error::Fault;
use super::external::{ExternalFiles, seek};
use super::wire::{Payload, Source};

const _: () = assert!(
    cfg!(target_endian = "little"),
    "elements are read in the byte order of the file, which is little-endian"
);

/// Our element type for one of ONNX.
///
/// # Errors
/// [`Fault::DType`] with the ONNX name of a type that Lancet does not have.
pub(crate) fn dtype(code: i64) -> Result<DType, Fault> {
    let known = i32::try_from(code).ok().and_then(DataType::from_i32);
    Ok(match known {
        Some(DataType::FLOAT) => DType::F32,
        Some(DataType::DOUBLE) => DType::F64,
        Some(DataType::FLOAT16) => DType::F16,
        Some(DataType::BFLOAT16) => DType::BF16,
        Some(DataType::INT8) => DType::I8,
        Some(DataType::INT16) => DType::I16,
        Some(DataType::INT32) => DType::I32,
        Some(DataType::INT64) => DType::I64,
        Some(DataType::UINT8) => DType::U8,
        Some(DataType::UINT16) => DType::U16,
        Some(DataType::UINT32) => DType::U32,
        Some(DataType::UINT64) => DType::U64,
        Some(DataType::BOOL) => DType::Bool,
        Some(DataType::UNDEFINED) => return Err(Fault::invalid("the element type is undefined")),
        Some(other) => return Err(Fault::DType(format!("{other:?}").to_lowercase())),
        None => return Err(Fault::DType(format!("number {code}"))),
    })
}

/// An integer type of less than a byte. Only constants have one: they are read as bytes, each element in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Narrow {
    bits: usize,
    is_signed: bool,
}

impl Narrow {
    /// The narrow type that ONNX gives this number.
    pub(crate) fn of(code: i32) -> Option<Narrow> {
        // The numbers of 2-bit types are newer than the messages that files are read with.
        let (bits, is_signed) = match code {
            21 => (4, false),
            22 => (4, true),
            25 => (2, false),
            26 => (2, true),
            _ => return None,
        };
        Some(Narrow { bits, is_signed })
    }

    /// ONNX's name of the type.
    pub(crate) fn name(self) -> String {
        let sign = if self.is_signed { "" } else { "u" };
        format!("{sign}int{}", self.bits)
    }

    /// Least and greatest value.
    pub(crate) fn range(self) -> (i64, i64) {
        match self.is_signed {
            false => (0, (1 << self.bits) - 1),
            true => (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1),
        }
    }

    /// The unsigned type of 2, 4 or 8 bits.
    pub(crate) fn unsigned(bits: i64) -> Option<Narrow> {
        let bits = usize::try_from(bits).ok()?;
        let is_signed = false;
        matches!(bits, 2 | 4 | 8).then_some(Narrow { bits, is_signed })
    }

    /// Elements in a byte.
    pub(crate) fn per_byte(self) -> usize {
        8 / self.bits
    }

    /// The first `n` elements in `packed`, lowest bits first, as bytes of the type's sign.
    pub(crate) fn unpack(self, packed: &[u8], n: usize) -> impl Iterator<Item = u8> {
        let top = 8 - self.bits;
        // The element is put in the highest bits of a byte, and shifted down with its sign or without.
        let at_top =
            move |i: usize| packed[i / self.per_byte()] << (top - i % self.per_byte() * self.bits);
        (0..n).map(move |i| match self.is_signed {
            false => at_top(i) >> top,
            true => (at_top(i).cast_signed() >> top).cast_unsigned(),
        })
    }
}

/// A shape as sizes, if none is negative and the number of elements fits.
pub(crate) fn shape(dims: &[i64]) -> Result<(Vec<usize>, usize), Fault> {
    let shape: Vec<usize> = dims
        .iter()
        .map(|&d| {
            usize::try_from(d).map_err(|_| Fault::invalid(format!("dimension {d} is negative")))
        })
        .collect::<Result<_, _>>()?;
    let n = shape
        .iter()
        .try_fold(1usize, |a, &d| a.checked_mul(d))
        .filter(|&n| n <= (isize::MAX as usize) / 8)
        .ok_or_else(|| Fault::limit(format!("shape {dims:?} has too many elements")))?;
    Ok((shape, n))
}

/// Reads tensors from the model's bytes and the files beside it.
pub(crate) struct TensorReader<'a> {
    source: Box<dyn Source + 'a>,
    external: ExternalFiles,
    /// Bytes that may still be read.
    budget: u64,
}

impl<'a> TensorReader<'a> {
    /// Reads payloads from `source`, and no more than `budget` bytes in all.
    pub(crate) fn new(
        source: Box<dyn Source + 'a>,
        external: ExternalFiles,
        budget: u64,
    ) -> TensorReader<'a> {
        TensorReader {
            source,
            external,
            budget,
        }
    }

    /// Takes `n` bytes from what may still be allocated for constants.
    pub(crate) fn spend(&mut self, n: u64) -> Result<(), Fault> {
        self.budget = self.budget.checked_sub(n).ok_or_else(|| {
            Fault::limit("the constants of the model take more memory than is allowed")
        })?;
        Ok(())
    }

    /// Converts a tensor of a skeleton and empties it.
    ///
    /// # Errors
    /// [`Fault`] if the element type is not supported, or shape and elements disagree.
    pub(crate) fn read(&mut self, proto: &mut TensorProto) -> Result<Tensor, Fault> {
        let dtype = dtype(i64::from(proto.data_type))?;
        let (shape, n) = shape(&proto.dims)?;
        let data = self.elements(proto, dtype, n)?;
        let found = data.len();
        Tensor::try_new(shape, data)
            .ok_or_else(|| Fault::invalid(format!("{found} elements, the shape takes {n}")))
    }

    /// Converts a tensor of a narrow type, and empties it.
    ///
    /// # Errors
    /// [`Fault`] if shape and elements disagree.
    pub(crate) fn read_narrow(
        &mut self,
        proto: &mut TensorProto,
        ty: Narrow,
    ) -> Result<Tensor, Fault> {
        let (shape, n) = shape(&proto.dims)?;
        let n_bytes = n.div_ceil(ty.per_byte());
        let packed = self.elements(proto, DType::U8, n_bytes)?;
        let packed = match packed {
            Data::U8(packed) if packed.len() == n_bytes => packed,
            other => {
                let found = other.len();
                let message = format!("{found} bytes of data, the shape takes {n_bytes}");
                return Err(Fault::invalid(message));
            }
        };
        self.spend(n as u64)?;
        let elements = ty.unpack(&packed, n);
        Ok(match ty.is_signed {
            false => Tensor::new(shape, elements.collect::<Vec<u8>>()),
            true => Tensor::new(shape, elements.map(u8::cast_signed).collect::<Vec<i8>>()),
        })
    }

    /// The `n` elements of a tensor, or as many as its typed field has.
    fn elements(&mut self, proto: &mut TensorProto, dtype: DType, n: usize) -> Result<Data, Fault> {
        if proto.segment.is_some() {
            return Err(Fault::unsupported("tensors in segments are not supported"));
        }
        let n_bytes = (n * dtype.size_bytes()) as u64;
        match proto.data_location.enum_value() {
            Ok(DataLocation::EXTERNAL) => {
                self.spend(n_bytes)?;
                let (source, payload, path) = self.external.locate(proto, n_bytes)?;
                read_range(source, payload, dtype, n).map_err(|e| Fault::Io(path, e))
            }
            Ok(DataLocation::DEFAULT) => match Payload::decode(&proto.raw_data) {
                Some(payload) if payload.len != 0 || elements(proto) == 0 => {
                    if payload.len != n_bytes {
                        return Err(Fault::invalid(format!(
                            "{} bytes of data, the shape takes {n_bytes}",
                            payload.len
                        )));
                    }
                    self.spend(n_bytes)?;
                    read_range(self.source.as_mut(), payload, dtype, n).map_err(Fault::Read)
                }
                _ => {
                    self.spend((elements(proto) * dtype.size_bytes()) as u64)?;
                    typed(proto, dtype)
                }
            },
            Err(code) => Err(Fault::invalid(format!("unknown data location {code}"))),
        }
    }
}

/// Reads `n` elements that stand at `payload`, which has been checked to be as long as they are.
fn read_range(
    source: &mut dyn Source,
    payload: Payload,
    dtype: DType,
    n: usize,
) -> std::io::Result<Data> {
    seek(source, payload)?;
    Ok(match dtype {
        DType::F32 => Data::F32(read_pod(source, n)?),
        DType::F64 => Data::F64(read_pod(source, n)?),
        DType::F16 => Data::F16(read_pod(source, n)?),
        DType::BF16 => Data::BF16(read_pod(source, n)?),
        DType::I8 => Data::I8(read_pod(source, n)?),
        DType::I16 => Data::I16(read_pod(source, n)?),
        DType::I32 => Data::I32(read_pod(source, n)?),
        DType::I64 => Data::I64(read_pod(source, n)?),
        DType::U8 => Data::U8(read_pod(source, n)?),
        DType::U16 => Data::U16(read_pod(source, n)?),
        DType::U32 => Data::U32(read_pod(source, n)?),
        DType::U64 => Data::U64(read_pod(source, n)?),
        DType::Bool => {
            let bytes: Vec<u8> = read_pod(source, n)?;
            Data::Bool(bytes.into_iter().map(|b| b != 0).collect())
        }
    })
}

fn read_pod<T: Pod>(source: &mut dyn Source, n: usize) -> std::io::Result<Vec<T>> {
    let mut out = vec![T::zeroed(); n];
    source.read_exact(bytemuck::cast_slice_mut(&mut out))?;
    Ok(out)
}

/// Number of elements in the typed fields.
fn elements(proto: &TensorProto) -> usize {
    proto.float_data.len()
        + proto.int32_data.len()
        + proto.int64_data.len()
        + proto.double_data.len()
        + proto.uint64_data.len()
}

/// Elements of the typed field that ONNX lays down for each element type.
fn typed(proto: &mut TensorProto, dtype: DType) -> Result<Data, Fault> {
    let int32 = std::mem::take(&mut proto.int32_data);
    let bits = |v: Vec<i32>| narrow::<u16, _>(v, dtype);
    Ok(match dtype {
        DType::F32 => Data::F32(std::mem::take(&mut proto.float_data)),
        DType::F64 => Data::F64(std::mem::take(&mut proto.double_data)),
        DType::I64 => Data::I64(std::mem::take(&mut proto.int64_data)),
        DType::U64 => Data::U64(std::mem::take(&mut proto.uint64_data)),
        DType::U32 => Data::U32(narrow(std::mem::take(&mut proto.uint64_data), dtype)?),
        DType::I32 => Data::I32(int32),
        DType::I16 => Data::I16(narrow(int32, dtype)?),
        DType::I8 => Data::I8(narrow(int32, dtype)?),
        DType::U16 => Data::U16(narrow(int32, dtype)?),
        DType::U8 => Data::U8(narrow(int32, dtype)?),
        DType::Bool => Data::Bool(int32.into_iter().map(|v| v != 0).collect()),
        DType::F16 => Data::F16(bits(int32)?.into_iter().map(f16::from_bits).collect()),
        DType::BF16 => Data::BF16(bits(int32)?.into_iter().map(bf16::from_bits).collect()),
    })
}

fn narrow<T: TryFrom<S>, S: Copy + std::fmt::Display>(
    values: Vec<S>,
    dtype: DType,
) -> Result<Vec<T>, Fault> {
    values
        .into_iter()
        .map(|v| {
            T::try_from(v).map_err(|_| Fault::invalid(format!("element {v} does not fit {dtype}")))
        })
        .collect()
}
