//! One node to infer: its operands and attributes, read with the errors that name them.
//!
//! A [`Call`] exists only for attributes and counts that fit the operator's schema. Every result passes [`Call::finish`],
//! which holds the limits: at most [`MAX_RANK`] dimensions, none known to be negative.

use lancet_ops::{
    AttentionRounding, Attribute, Attributes, DType, DefaultValue, OpError, Operator,
};

use super::elements::Known;
use crate::{Dim, IrError, TensorType, ValueInfo};

/// More dimensions than this are refused.
pub(super) const MAX_RANK: usize = 16;

/// What is known of one result.
pub(super) type One = Result<ValueInfo, IrError>;

/// What is known of all results.
pub(super) type Many = Result<Vec<ValueInfo>, IrError>;

/// Element types that an operand may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Float,
    Integer,
    Unsigned,
    Number,
    Bool,
    BoolOrInteger,
    Byte,
    Index,
}

impl Class {
    fn contains(self, d: DType) -> bool {
        match self {
            Class::Float => d.is_float(),
            Class::Integer => d.is_integer(),
            Class::Unsigned => matches!(d, DType::U8 | DType::U16 | DType::U32 | DType::U64),
            Class::Number => d != DType::Bool,
            Class::Bool => d == DType::Bool,
            Class::BoolOrInteger => !d.is_float(),
            Class::Byte => matches!(d, DType::I8 | DType::U8),
            Class::Index => matches!(d, DType::I32 | DType::I64),
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Class::Float => "a float type",
            Class::Integer => "an integer type",
            Class::Unsigned => "an unsigned integer type",
            Class::Number => "a float or integer type",
            Class::Bool => "bool",
            Class::BoolOrInteger => "bool or an integer type",
            Class::Byte => "i8 or u8",
            Class::Index => "i32 or i64",
        }
    }
}

/// An operator with what it is applied to.
pub(super) struct Call<'a> {
    pub(super) op: Operator,
    attributes: &'a Attributes,
    operands: &'a [Option<&'a ValueInfo>],
    pub(super) n_results: usize,
    fresh: &'a mut dyn FnMut() -> Dim,
}

impl<'a> Call<'a> {
    /// Checks counts and attributes against the operator's schema, and the ranks of the operands.
    pub(super) fn new(
        op: Operator,
        attributes: &'a Attributes,
        operands: &'a [Option<&'a ValueInfo>],
        n_results: usize,
        fresh: &'a mut dyn FnMut() -> Dim,
    ) -> Result<Call<'a>, IrError> {
        let schema = op.schema();
        attributes.check(op).map_err(IrError::Attributes)?;
        let (least, most) = schema.operands;
        if operands.len() < least || most < operands.len() {
            let expected = match (least, most) {
                (_, usize::MAX) => format!("{least} or more"),
                _ if least == most => least.to_string(),
                _ => format!("{least} to {most}"),
            };
            let found = operands.len();
            return Err(OpError::OperandCount {
                op,
                expected,
                found,
            }
            .into());
        }
        let call = Call {
            op,
            attributes,
            operands,
            n_results,
            fresh,
        };
        let (least, most) = schema.results;
        if n_results < least || most < n_results {
            return Err(call.error(format!("does not give {n_results} results")));
        }
        for (i, operand) in operands.iter().enumerate() {
            if operand.is_some_and(|v| MAX_RANK < v.ty.rank()) {
                return Err(call.operand_error(i, format!("at most {MAX_RANK} dimensions")));
            }
        }
        Ok(call)
    }

    /// Checks what was inferred against the limits of every result, and drops results that were not asked for.
    pub(super) fn finish(&self, mut results: Vec<ValueInfo>) -> Many {
        results.truncate(self.n_results);
        if results.len() != self.n_results {
            let (found, expected) = (self.n_results, results.len());
            return Err(self.error(format!("gives {expected} results, not {found}")));
        }
        for r in &results {
            check_result(self.op.schema().text, &r.ty)?;
        }
        Ok(results)
    }

    // Operands.

    /// Number of operand positions.
    pub(super) fn n_operands(&self) -> usize {
        self.operands.len()
    }

    /// Operand `index` if it is present.
    pub(super) fn optional(&self, index: usize) -> Option<&'a ValueInfo> {
        self.operands.get(index).copied().flatten()
    }

    /// Operand `index`, which must be present.
    pub(super) fn operand(&self, index: usize) -> Result<&'a ValueInfo, IrError> {
        let op = self.op;
        self.optional(index)
            .ok_or_else(|| OpError::MissingOperand { op, index }.into())
    }

    /// Shape of operand `index`.
    pub(super) fn shape(&self, index: usize) -> Result<&'a [Dim], IrError> {
        Ok(&self.operand(index)?.ty.shape)
    }

    /// Element type of operand `index`.
    pub(super) fn dtype(&self, index: usize) -> Result<DType, IrError> {
        Ok(self.operand(index)?.ty.dtype)
    }

    /// Known elements of operand `index`, if it is present and they are known.
    pub(super) fn known(&self, index: usize) -> Option<Known<'a>> {
        Known::of(self.optional(index)?)
    }

    /// Known elements of operand `index` that are all fixed.
    pub(super) fn fixed_elements(&self, index: usize) -> Option<Vec<i64>> {
        self.known(index)?.fixed()
    }

    /// Checks the element type of operand `index`, if it is present.
    pub(super) fn expect(&self, index: usize, class: Class) -> Result<(), IrError> {
        match self.optional(index) {
            Some(v) if !class.contains(v.ty.dtype) => {
                Err(self.operand_error(index, class.describe().to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that operand `index`, if it is present, has elements of this type.
    pub(super) fn expect_dtype(&self, index: usize, dtype: DType) -> Result<(), IrError> {
        match self.optional(index) {
            Some(v) if v.ty.dtype != dtype => {
                let expected = TensorType::new(dtype, v.ty.shape.clone());
                Err(self.operand_error(index, expected.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that operands have elements of one type, and gives it. Absent ones do not count, but the first is needed.
    pub(super) fn same_dtype(
        &self,
        indices: impl IntoIterator<Item = usize>,
    ) -> Result<DType, IrError> {
        let mut indices = indices.into_iter();
        let dtype = self.dtype(indices.next().unwrap_or(0))?;
        indices.try_for_each(|i| self.expect_dtype(i, dtype))?;
        Ok(dtype)
    }

    /// Shape of operand `index`, which must have `N` dimensions.
    pub(super) fn dims<const N: usize>(&self, index: usize) -> Result<&'a [Dim; N], IrError> {
        self.shape(index)?
            .try_into()
            .map_err(|_| self.operand_error(index, format!("{N} dimensions")))
    }

    /// Checks that operand `index`, if it is present, has this shape as far as is known.
    pub(super) fn expect_shape(&self, index: usize, shape: &[Dim]) -> Result<(), IrError> {
        let Some(v) = self.optional(index) else {
            return Ok(());
        };
        let fits = v.ty.rank() == shape.len()
            && v.ty
                .shape
                .iter()
                .zip(shape)
                .all(|(a, b)| a.equals(b) != Some(false));
        if fits {
            Ok(())
        } else {
            let expected = TensorType::new(v.ty.dtype, shape.to_vec());
            Err(self.operand_error(index, expected.to_string()))
        }
    }

    /// Checks that operand `index`, if it is present, has one element as far as is known.
    pub(super) fn expect_scalar(&self, index: usize) -> Result<(), IrError> {
        match self.optional(index) {
            Some(v)
                if v.ty
                    .shape
                    .iter()
                    .any(|d| d.equals(&Dim::fixed(1)) == Some(false)) =>
            {
                Err(self.operand_error(index, "one element".to_owned()))
            }
            _ => Ok(()),
        }
    }

    // Attributes.

    /// Integer attribute `name`, or the schema's default.
    pub(super) fn int(&self, name: &str) -> i64 {
        match (self.attributes.int(name), self.default(name)) {
            (Some(v), _) | (None, Some(DefaultValue::Int(v))) => v,
            (None, _) => 0,
        }
    }

    /// True if integer attribute `name` is not zero.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.int(name) != 0
    }

    /// Integer attribute `name` if it is set.
    pub(super) fn optional_int(&self, name: &str) -> Option<i64> {
        self.attributes.int(name)
    }

    /// Integer list `name` if it is set.
    pub(super) fn ints(&self, name: &str) -> Option<&'a [i64]> {
        self.attributes.ints(name)
    }

    /// Where attention rounds, which is checked and not used.
    pub(super) fn expect_attention_rounding(&self) -> Result<(), IrError> {
        let rounding = AttentionRounding::of(self.attributes);
        rounding.map(|_| ()).map_err(|name| {
            self.attribute_error(name, "no scale, least and greatest number".to_owned())
        })
    }

    /// String attribute `name`, or the schema's default.
    pub(super) fn str(&self, name: &str) -> &'a str {
        match (self.attributes.str(name), self.default(name)) {
            (Some(v), _) | (None, Some(DefaultValue::Str(v))) => v,
            (None, _) => "",
        }
    }

    /// Attribute `name` if it is set.
    pub(super) fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.attributes.get(name)
    }

    /// Element type named by attribute `name` if it is set.
    pub(super) fn dtype_attribute(&self, name: &str) -> Result<Option<DType>, IrError> {
        self.attributes
            .str(name)
            .map(|s| {
                s.parse()
                    .map_err(|e| self.attribute_error(name, format!("{e}")))
            })
            .transpose()
    }

    /// Attribute `name`, an axis of a value of this rank.
    pub(super) fn axis(&self, name: &str, rank: usize) -> Result<usize, IrError> {
        self.normalize_axis(self.int(name), rank)
    }

    /// Brings `axis`, which may count from the end, into `0..rank`.
    pub(super) fn normalize_axis(&self, axis: i64, rank: usize) -> Result<usize, IrError> {
        let n = rank as i64;
        let from_start = if axis < 0 {
            axis.saturating_add(n)
        } else {
            axis
        };
        usize::try_from(from_start)
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| self.error(format!("axis {axis} is outside rank {rank}")))
    }

    /// Brings `axes` into `0..rank`; they must differ.
    pub(super) fn normalize_axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, IrError> {
        let mut out = Vec::with_capacity(axes.len().min(rank));
        for &a in axes {
            let n = self.normalize_axis(a, rank)?;
            if out.contains(&n) {
                return Err(self.error(format!("axis {a} is given twice")));
            }
            out.push(n);
        }
        Ok(out)
    }

    fn default(&self, name: &str) -> Option<DefaultValue> {
        let schema = self.op.schema();
        schema
            .attributes
            .iter()
            .find(|a| a.name == name)
            .map(|a| a.default)
    }

    // Sizes.

    /// A size that nothing is known of.
    pub(super) fn fresh(&mut self) -> Dim {
        (self.fresh)()
    }

    /// `n` sizes that nothing is known of.
    pub(super) fn fresh_dims(&mut self, n: usize) -> Vec<Dim> {
        (0..n).map(|_| self.fresh()).collect()
    }

    /// The size, or one that nothing is known of.
    pub(super) fn or_fresh(&mut self, dim: Option<Dim>) -> Dim {
        dim.unwrap_or_else(|| self.fresh())
    }

    // Errors.

    /// The operands do not fit the operation.
    pub(super) fn error(&self, message: String) -> IrError {
        IrError::Type {
            op: self.op.schema().text.to_owned(),
            message,
        }
    }

    /// Operand `index` is not what was expected.
    pub(super) fn operand_error(&self, index: usize, expected: String) -> IrError {
        let found = self
            .optional(index)
            .map_or_else(|| "nothing".to_owned(), |v| v.ty.to_string());
        IrError::Type {
            op: format!("{} operand {index}", self.op.schema().text),
            message: format!("expected {expected}, found {found}"),
        }
    }

    /// Attribute `name` is out of range.
    pub(super) fn attribute_error(&self, name: &str, message: String) -> IrError {
        OpError::Attribute {
            op: self.op,
            name: name.to_owned(),
            message,
        }
        .into()
    }
}

/// Checks the limits that hold for every value.
pub(super) fn check_result(op: &str, ty: &TensorType) -> Result<(), IrError> {
    let error = |message| IrError::Type {
        op: op.to_owned(),
        message,
    };
    if MAX_RANK < ty.rank() {
        let rank = ty.rank();
        return Err(error(format!(
            "the result has {rank} dimensions, at most {MAX_RANK} are supported"
        )));
    }
    if ty.shape.iter().any(is_negative) {
        return Err(error(format!("the result would have type {ty}")));
    }
    Ok(())
}

/// True if the value is known to be less than zero, whatever the sizes.
fn is_negative(d: &Dim) -> bool {
    d.scale(-1).is_some_and(|d| d.is_positive())
}
