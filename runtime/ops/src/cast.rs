//! Conversions between element types.

use crate::call::{Call, OpResult};
use crate::number::{Number, Wide, for_number};
use crate::{DType, Data, DataView, Element, TensorView};

/// An element type that conversions start from.
trait Widen: Copy {
    fn wide(self) -> Wide;
}

impl Widen for bool {
    fn wide(self) -> Wide {
        Wide::Int(i128::from(self))
    }
}

macro_rules! widen {
    ($($t:ty),*) => {$(impl Widen for $t { fn wide(self) -> Wide { self.widen() } })*};
}

widen!(
    f32,
    f64,
    half::f16,
    half::bf16,
    i8,
    i16,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64
);

/// Calls `f` with the elements, widened, a block at a time: the types that are read and those that are made do not
/// multiply.
fn for_each_block(data: &DataView<'_>, mut f: impl FnMut(&[Wide])) {
    let mut block = Vec::with_capacity(BLOCK);
    for start in (0..data.len()).step_by(BLOCK) {
        let end = data.len().min(start + BLOCK);
        block.clear();
        with_elements!(data, v => block.extend(v[start..end].iter().map(|&x| x.wide())));
        f(&block);
    }
}

/// Elements that are converted together.
const BLOCK: usize = 256;

/// Converts elements of any type, as [`Number::narrow`] does.
pub(crate) fn to_numbers<T: Number>(data: &DataView<'_>) -> Vec<T> {
    match data {
        same if T::slice(same).is_some() => T::slice(same).unwrap_or(&[]).to_vec(),
        DataView::F32(v) => v.iter().map(|&x| T::from_f64(f64::from(x))).collect(),
        DataView::F64(v) => v.iter().map(|&x| T::from_f64(x)).collect(),
        other => {
            let mut out = Vec::with_capacity(other.len());
            for_each_block(other, |block| {
                out.extend(block.iter().map(|&w| T::narrow(w)))
            });
            out
        }
    }
}

/// Converts elements to `dtype`: integers wrap, floats truncate toward zero and saturate, NaN becomes zero; `true` is
/// any value but zero.
pub(crate) fn convert(data: &DataView<'_>, dtype: DType) -> Data {
    if data.dtype() == dtype {
        return data.to_owned();
    }
    for_number!(dtype, T => T::into_data(to_numbers::<T>(data)), else {
        let is_true = |w| match w {
            Wide::Int(v) => v != 0,
            Wide::Float(v) => v != 0.0,
        };
        let mut out = Vec::with_capacity(data.len());
        for_each_block(data, |block| out.extend(block.iter().map(|&w| is_true(w))));
        Data::Bool(out)
    })
}

/// Rounds `f64` results to `dtype`.
pub(crate) fn from_f64(values: &[f64], dtype: DType) -> Data {
    convert(&DataView::F64(values), dtype)
}

/// `Cast`, to the type that attribute `to` names. Values that the type cannot hold are defined as in [`convert`].
pub(crate) fn cast(call: &Call<'_>) -> OpResult {
    let Some(dtype) = call.dtype("to")? else {
        return Err(call.attribute_error("to", "is required"));
    };
    cast_to(call, dtype)
}

/// `CastLike`: `Cast` to the type of the second operand.
pub(crate) fn cast_like(call: &Call<'_>) -> OpResult {
    cast_to(call, call.operand(1)?.dtype())
}

fn cast_to(call: &Call<'_>, dtype: DType) -> OpResult {
    let x = call.operand(0)?;
    call.size(x.shape(), dtype)?;
    with_data(call, x, convert(&x.data(), dtype))
}

/// `data` under the shape of `x`.
pub(crate) fn with_data(call: &Call<'_>, x: TensorView<'_>, data: Data) -> OpResult {
    crate::Tensor::try_new(x.shape().to_vec(), data)
        .ok_or_else(|| call.shape_error("elements do not fill the shape of operand 0"))
}
