//! Tensors in row-major order: owned ([`Tensor`]) and borrowed ([`TensorView`]).

use half::{bf16, f16};

use crate::DType;

macro_rules! data_types {
    ($(($variant:ident, $ty:ty)),* $(,)?) => {
        /// Elements of a tensor in row-major order.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Data { $($variant(Vec<$ty>)),* }

        /// Borrowed elements of a tensor in row-major order.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum DataView<'a> { $($variant(&'a [$ty])),* }

        impl Data {
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(Data::$variant(_) => DType::$variant),* } }

            /// Number of elements.
            pub fn len(&self) -> usize { match self { $(Data::$variant(v) => v.len()),* } }

            /// True if there are no elements.
            pub fn is_empty(&self) -> bool { self.len() == 0 }

            /// Borrows the elements.
            pub fn view(&self) -> DataView<'_> { match self { $(Data::$variant(v) => DataView::$variant(v)),* } }

            /// Appends elements of the same type; false, and nothing is appended, if they are of another one.
            pub fn extend(&mut self, more: DataView<'_>) -> bool {
                match (self, more) {
                    $((Data::$variant(v), DataView::$variant(more)) => v.extend_from_slice(more),)*
                    _ => return false,
                }
                true
            }

            /// `len` elements that are zero or false.
            pub fn zeros(dtype: DType, len: usize) -> Data {
                match dtype { $(DType::$variant => Data::$variant(vec![<$ty as std::default::Default>::default(); len])),* }
            }
        }

        impl<'a> DataView<'a> {
            /// The element type.
            pub fn dtype(&self) -> DType { match self { $(DataView::$variant(_) => DType::$variant),* } }

            /// Number of elements.
            pub fn len(&self) -> usize { match self { $(DataView::$variant(v) => v.len()),* } }

            /// True if there are no elements.
            pub fn is_empty(&self) -> bool { self.len() == 0 }

            /// Copies the elements.
            pub fn to_owned(&self) -> Data { match self { $(DataView::$variant(v) => Data::$variant(v.to_vec())),* } }
        }

        $(impl Element for $ty {
            const DTYPE: DType = DType::$variant;
            fn slice<'a>(data: &DataView<'a>) -> Option<&'a [Self]> {
                match data { DataView::$variant(v) => Some(v), _ => None }
            }
            fn into_data(v: Vec<Self>) -> Data { Data::$variant(v) }
            fn view(v: &[Self]) -> DataView<'_> { DataView::$variant(v) }
        })*

        /// Runs `$body` with `$v` bound to the typed slice of a [`DataView`], whatever its type.
        #[macro_export]
        macro_rules! with_elements {
            ($data:expr, $v:ident => $body:expr) => {
                match $data { $($crate::DataView::$variant($v) => $body),* }
            };
        }
    };
}

data_types! {
    (F32, f32), (F64, f64), (F16, f16), (BF16, bf16),
    (I8, i8), (I16, i16), (I32, i32), (I64, i64),
    (U8, u8), (U16, u16), (U32, u32), (U64, u64),
    (Bool, bool),
}

/// A Rust type that is the element type of a tensor.
pub trait Element: Copy + std::default::Default + PartialEq + Send + Sync + 'static {
    /// Its element type.
    const DTYPE: DType;
    /// The elements if they are of this type.
    fn slice<'a>(data: &DataView<'a>) -> Option<&'a [Self]>;
    /// Wraps owned elements.
    fn into_data(v: Vec<Self>) -> Data;
    /// Wraps borrowed elements.
    fn view(v: &[Self]) -> DataView<'_>;
}

/// An owned tensor, row-major. The product of `shape` equals the number of elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    /// A tensor of `shape` with `data` in row-major order.
    ///
    /// # Panics
    /// If the product of `shape` is not the number of elements: a bug of the caller. Use [`Tensor::try_new`] on input
    /// that is not trusted.
    pub fn new<T: Element>(shape: impl Into<Vec<usize>>, data: Vec<T>) -> Tensor {
        let shape = shape.into();
        let len = data.len();
        Tensor::try_new(shape.clone(), T::into_data(data))
            .unwrap_or_else(|| panic!("{len} elements do not fill a tensor of shape {shape:?}"))
    }

    /// A tensor of `shape` with `data` in row-major order, or `None` if the sizes disagree.
    pub fn try_new(shape: Vec<usize>, data: Data) -> Option<Tensor> {
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        (n == data.len()).then_some(Tensor { shape, data })
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Tensor {
        Tensor::new(Vec::new(), vec![value])
    }

    /// A tensor of `shape` whose elements are zero or false.
    pub fn zeros(dtype: DType, shape: impl Into<Vec<usize>>) -> Tensor {
        let shape = shape.into();
        let n = shape.iter().product();
        Tensor {
            shape,
            data: Data::zeros(dtype, n),
        }
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Gives up the elements.
    pub fn into_data(self) -> Data {
        self.data
    }

    /// The elements as a typed slice, or `None` if the element type is another.
    pub fn as_slice<T: Element>(&self) -> Option<&[T]> {
        T::slice(&self.data.view())
    }

    /// Borrows the tensor.
    pub fn view(&self) -> TensorView<'_> {
        TensorView {
            shape: &self.shape,
            data: self.data.view(),
        }
    }

    /// The same elements under another shape, or `None` if the sizes disagree.
    pub fn reshaped(self, shape: Vec<usize>) -> Option<Tensor> {
        Tensor::try_new(shape, self.data)
    }
}

/// A borrowed tensor, row-major. The product of `shape` equals the number of elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    shape: &'a [usize],
    data: DataView<'a>,
}

impl<'a> TensorView<'a> {
    /// A view of `data` as `shape`, or `None` if the sizes disagree.
    pub fn new(shape: &'a [usize], data: DataView<'a>) -> Option<TensorView<'a>> {
        let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
        (n == data.len()).then_some(TensorView { shape, data })
    }

    /// Sizes of the dimensions, outermost first.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.data.dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The elements.
    pub fn data(&self) -> DataView<'a> {
        self.data
    }

    /// The elements as a typed slice, or `None` if the element type is another.
    pub fn as_slice<T: Element>(&self) -> Option<&'a [T]> {
        T::slice(&self.data)
    }

    /// The elements as `i64`; floats are truncated and saturate, `u64` wraps, `bool` is 0 or 1.
    pub fn to_i64_vec(&self) -> Vec<i64> {
        crate::cast::to_numbers(&self.data)
    }

    /// The elements as `f64`, rounded to nearest; `bool` is 0 or 1.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        crate::cast::to_numbers(&self.data)
    }

    /// The elements as `f32`, rounded to nearest; `bool` is 0 or 1.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        crate::cast::to_numbers(&self.data)
    }

    /// The same elements under another shape, or `None` if the sizes disagree.
    pub fn reshaped<'b>(&self, shape: &'b [usize]) -> Option<TensorView<'b>>
    where
        'a: 'b,
    {
        TensorView::new(shape, self.data)
    }

    /// Copies the tensor.
    pub fn to_tensor(&self) -> Tensor {
        Tensor {
            shape: self.shape.to_vec(),
            data: self.data.to_owned(),
        }
    }
}
