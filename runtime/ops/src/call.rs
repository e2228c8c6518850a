//! One application of an operator: its attributes and operands, read with the errors that name them.
//!
//! A [`Call`] exists only for attributes that fit the operator's schema, so that reading an attribute with a default
//! cannot fail. Every result's size goes through [`Call::size`] before memory is asked for.

use crate::{
    AttentionRounding, Attribute, Attributes, DType, DefaultValue, Element, OpError, Operator,
    Tensor, TensorView,
};

/// No operator makes a result larger than this: an `OpError::TooLarge` instead of a process killed for memory.
const MAX_RESULT_BYTES: usize = 1 << 34;

/// Number of elements of `shape`, or `None` if the tensor would be larger than [`MAX_RESULT_BYTES`].
fn checked_size(shape: &[usize], dtype: DType) -> Option<usize> {
    let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
    let n_bytes = n.checked_mul(dtype.size_bytes())?;
    (n_bytes <= MAX_RESULT_BYTES).then_some(n)
}

/// What an operator is applied to.
pub(crate) struct Call<'a> {
    pub(crate) op: Operator,
    attributes: &'a Attributes,
    operands: &'a [Option<TensorView<'a>>],
    pub(crate) n_results: usize,
}

/// One result, or why there is none.
pub(crate) type OpResult = Result<Tensor, OpError>;

/// Several results, or why there are none.
pub(crate) type OpResults = Result<Vec<Tensor>, OpError>;

impl<'a> Call<'a> {
    /// Checks counts and attributes against the operator's schema.
    pub(crate) fn new(
        op: Operator,
        attributes: &'a Attributes,
        operands: &'a [Option<TensorView<'a>>],
        n_results: usize,
    ) -> Result<Call<'a>, OpError> {
        let schema = op.schema();
        let (least, most) = schema.operands;
        if operands.len() < least || most < operands.len() {
            let expected = if most == usize::MAX {
                format!("{least} or more")
            } else if least == most {
                least.to_string()
            } else {
                format!("{least} to {most}")
            };
            return Err(OpError::OperandCount {
                op,
                expected,
                found: operands.len(),
            });
        }
        if n_results < schema.results.0 || schema.results.1 < n_results {
            return Err(OpError::Shape {
                op,
                message: format!("{n_results} results were asked for"),
            });
        }
        match attributes.check(op) {
            Ok(()) => Ok(Call {
                op,
                attributes,
                operands,
                n_results,
            }),
            Err(mut errors) => Err(errors.swap_remove(0)),
        }
    }

    /// Operand `index`, which must be present.
    pub(crate) fn operand(&self, index: usize) -> Result<TensorView<'a>, OpError> {
        self.optional(index)
            .ok_or(OpError::MissingOperand { op: self.op, index })
    }

    /// Operand `index` if it is present.
    pub(crate) fn optional(&self, index: usize) -> Option<TensorView<'a>> {
        self.operands.get(index).copied().flatten()
    }

    /// Every operand; all must be present.
    pub(crate) fn all_operands(&self) -> Result<Vec<TensorView<'a>>, OpError> {
        (0..self.operands.len()).map(|i| self.operand(i)).collect()
    }

    /// Elements of operand `index`, which must be present and of type `T`.
    pub(crate) fn slice<T: Element>(&self, index: usize) -> Result<&'a [T], OpError> {
        let view = self.operand(index)?;
        view.as_slice::<T>()
            .ok_or_else(|| self.dtype_error(index, view.dtype()))
    }

    /// Checks that operand `index` is of type `dtype`.
    pub(crate) fn expect_dtype(&self, index: usize, dtype: DType) -> Result<(), OpError> {
        match self.optional(index) {
            Some(view) if view.dtype() != dtype => Err(self.dtype_error(index, view.dtype())),
            Some(_) | None => Ok(()),
        }
    }

    /// Elements of operand `index`, of any integer type, as `i64`.
    pub(crate) fn integers(&self, index: usize) -> Result<Vec<i64>, OpError> {
        let view = self.operand(index)?;
        if !view.dtype().is_integer() {
            return Err(self.dtype_error(index, view.dtype()));
        }
        Ok(view.to_i64_vec())
    }

    /// Elements of operand `index` as `i64` if it is present.
    pub(crate) fn optional_integers(&self, index: usize) -> Result<Option<Vec<i64>>, OpError> {
        self.optional(index)
            .map(|_| self.integers(index))
            .transpose()
    }

    /// The only element of operand `index`, an integer.
    pub(crate) fn integer(&self, index: usize) -> Result<i64, OpError> {
        match self.integers(index)?[..] {
            [v] => Ok(v),
            ref other => Err(self.value_error(
                index,
                format!("expected one element, found {}", other.len()),
            )),
        }
    }

    /// Integer attribute `name`, or the default in the schema.
    pub(crate) fn int(&self, name: &str) -> i64 {
        match (self.attributes.int(name), self.default(name)) {
            (Some(v), _) | (None, Some(DefaultValue::Int(v))) => v,
            (None, other) => panic!("{}: attribute {name} has default {other:?}", self.op),
        }
    }

    /// True if integer attribute `name`, or its default, is not zero.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.int(name) != 0
    }

    /// Float attribute `name`, or the default in the schema.
    pub(crate) fn float(&self, name: &str) -> f32 {
        match (self.attributes.float(name), self.default(name)) {
            (Some(v), _) | (None, Some(DefaultValue::Float(v))) => v,
            (None, other) => panic!("{}: attribute {name} has default {other:?}", self.op),
        }
    }

    /// Float attribute `name` if it is set.
    pub(crate) fn optional_float(&self, name: &str) -> Option<f32> {
        self.attributes.float(name)
    }

    /// String attribute `name`, or the default in the schema.
    pub(crate) fn str(&self, name: &str) -> &str {
        match (self.attributes.str(name), self.default(name)) {
            (Some(v), _) | (None, Some(DefaultValue::Str(v))) => v,
            (None, other) => panic!("{}: attribute {name} has default {other:?}", self.op),
        }
    }

    /// Attribute `name` if it is set.
    pub(crate) fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.attributes.get(name)
    }

    /// Integer attribute `name` if it is set.
    pub(crate) fn optional_int(&self, name: &str) -> Option<i64> {
        self.attributes.int(name)
    }

    /// Float list `name` if it is set.
    pub(crate) fn floats(&self, name: &str) -> Option<&'a [f32]> {
        match self.attributes.get(name) {
            Some(Attribute::Floats(v)) => Some(v),
            _ => None,
        }
    }

    /// Where attention rounds.
    pub(crate) fn attention_rounding(&self) -> Result<AttentionRounding, OpError> {
        AttentionRounding::of(self.attributes)
            .map_err(|name| self.attribute_error(name, "no scale, least and greatest number"))
    }

    /// Integer list `name` if it is set.
    pub(crate) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attributes.ints(name)
    }

    /// Attribute `name`, a list of strings; empty if it is not set.
    pub(crate) fn strs(&self, name: &str) -> &'a [String] {
        self.attributes.strs(name).unwrap_or(&[])
    }

    /// Element type named by attribute `name` if it is set.
    pub(crate) fn dtype(&self, name: &str) -> Result<Option<DType>, OpError> {
        self.attributes
            .str(name)
            .map(|s| {
                s.parse().map_err(|e: crate::dtype::UnknownDType| {
                    self.attribute_error(name, e.to_string())
                })
            })
            .transpose()
    }

    fn default(&self, name: &str) -> Option<DefaultValue> {
        let schema = self.op.schema();
        schema
            .attributes
            .iter()
            .find(|a| a.name == name)
            .map(|a| a.default)
    }

    /// Brings `axis`, which may count from the end, into `0..rank`.
    pub(crate) fn normalize_axis(&self, axis: i64, rank: usize) -> Result<usize, OpError> {
        let n = i64::try_from(rank).expect("a rank is small");
        let from_start = if axis < 0 {
            axis.saturating_add(n)
        } else {
            axis
        };
        if (0..n).contains(&from_start) {
            Ok(usize::try_from(from_start).expect("it is not negative"))
        } else {
            Err(self.shape_error(format!("axis {axis} is outside rank {rank}")))
        }
    }

    /// Attribute `name`, an axis of a tensor of this rank.
    pub(crate) fn axis(&self, name: &str, rank: usize) -> Result<usize, OpError> {
        self.normalize_axis(self.int(name), rank)
    }

    /// Brings `axes` into `0..rank`; they must differ.
    pub(crate) fn normalize_axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
        let mut seen = vec![false; rank];
        axes.iter()
            .map(|&a| {
                let a = self.normalize_axis(a, rank)?;
                if std::mem::replace(&mut seen[a], true) {
                    return Err(self.shape_error(format!("axis {a} is given twice")));
                }
                Ok(a)
            })
            .collect()
    }

    /// Brings `index`, which may count from the end, into `0..n`.
    pub(crate) fn normalize_index(
        &self,
        operand: usize,
        index: i64,
        n: usize,
    ) -> Result<usize, OpError> {
        let len = i64::try_from(n).unwrap_or(i64::MAX);
        let from_start = if index < 0 {
            index.saturating_add(len)
        } else {
            index
        };
        if (0..len).contains(&from_start) {
            Ok(usize::try_from(from_start).expect("it is less than a size"))
        } else {
            Err(self.value_error(
                operand,
                format!("index {index} is outside a dimension of size {n}"),
            ))
        }
    }

    /// A size that is computed from operands, which may not be negative.
    pub(crate) fn to_size(&self, operand: usize, value: i64) -> Result<usize, OpError> {
        usize::try_from(value)
            .map_err(|_| self.value_error(operand, format!("{value} is not a size")))
    }

    /// Number of elements of a result, checked against [`MAX_RESULT_BYTES`].
    pub(crate) fn size(&self, shape: &[usize], dtype: DType) -> Result<usize, OpError> {
        checked_size(shape, dtype).ok_or_else(|| OpError::TooLarge {
            op: self.op,
            message: format!("{dtype}{shape:?}"),
        })
    }

    /// A result of `shape`; `data` was computed to fill it.
    pub(crate) fn tensor<T: Element>(&self, shape: &[usize], data: Vec<T>) -> OpResult {
        let found = data.len();
        Tensor::try_new(shape.to_vec(), T::into_data(data)).ok_or_else(|| {
            self.shape_error(format!("{found} elements do not fill shape {shape:?}"))
        })
    }

    /// An operator that was sent to a function which does not know it: a mistake in `evaluate`.
    pub(crate) fn not_dispatched(op: Operator) -> OpError {
        debug_assert!(false, "{op} is dispatched to the wrong function");
        OpError::Shape {
            op,
            message: "is dispatched to the wrong function".to_owned(),
        }
    }

    /// Shapes do not fit the operator or each other.
    pub(crate) fn shape_error(&self, message: impl Into<String>) -> OpError {
        OpError::Shape {
            op: self.op,
            message: message.into(),
        }
    }

    /// The operator is not defined for this element type.
    pub(crate) fn dtype_error(&self, index: usize, dtype: DType) -> OpError {
        OpError::DType {
            op: self.op,
            index,
            dtype,
        }
    }

    /// An attribute is out of range.
    pub(crate) fn attribute_error(&self, name: &str, message: impl Into<String>) -> OpError {
        OpError::Attribute {
            op: self.op,
            name: name.to_owned(),
            message: message.into(),
        }
    }

    /// The value of an operand is outside what the operator accepts.
    pub(crate) fn value_error(&self, index: usize, message: impl Into<String>) -> OpError {
        OpError::Value {
            op: self.op,
            index,
            message: message.into(),
        }
    }
}
