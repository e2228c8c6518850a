//! Attributes of operators: named constants that are not operands.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{OpError, Operator, Tensor};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<String>),
    Tensor(Arc<Tensor>),
}

/// The type of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeType {
    Int,
    Float,
    Str,
    Ints,
    Floats,
    Strs,
    Tensor,
}

impl Attribute {
    /// The type of this value.
    pub fn ty(&self) -> AttributeType {
        match self {
            Attribute::Int(_) => AttributeType::Int,
            Attribute::Float(_) => AttributeType::Float,
            Attribute::Str(_) => AttributeType::Str,
            Attribute::Ints(_) => AttributeType::Ints,
            Attribute::Floats(_) => AttributeType::Floats,
            Attribute::Strs(_) => AttributeType::Strs,
            Attribute::Tensor(_) => AttributeType::Tensor,
        }
    }
}

/// Attributes by name, in name order. Attributes that equal the schema's default are still stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes(BTreeMap<String, Attribute>);

impl Attributes {
    /// No attributes.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    /// Sets `name` and returns the whole, for building in one expression.
    #[must_use]
    pub fn with(mut self, name: &str, value: Attribute) -> Attributes {
        self.set(name, value);
        self
    }

    /// Sets or replaces `name`.
    pub fn set(&mut self, name: &str, value: Attribute) {
        self.0.insert(name.to_owned(), value);
    }

    /// Removes `name` and returns what it was.
    pub fn remove(&mut self, name: &str) -> Option<Attribute> {
        self.0.remove(name)
    }

    /// The value of `name` if it is set.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.0.get(name)
    }

    /// Names and values in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// True if nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Integer `name`, or `None` if unset or of another type.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name) {
            Some(Attribute::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// Integer `name`, or `default` if unset.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    /// Float `name`, or `None` if unset or of another type.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.get(name) {
            Some(Attribute::Float(v)) => Some(*v),
            _ => None,
        }
    }

    /// Float `name`, or `default` if unset.
    pub fn float_or(&self, name: &str, default: f32) -> f32 {
        self.float(name).unwrap_or(default)
    }

    /// String `name`, or `None` if unset or of another type.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Attribute::Str(v)) => Some(v),
            _ => None,
        }
    }

    /// String list `name`, or `None` if unset or of another type.
    pub fn strs(&self, name: &str) -> Option<&[String]> {
        match self.get(name) {
            Some(Attribute::Strs(v)) => Some(v),
            _ => None,
        }
    }

    /// Integer list `name`, or `None` if unset or of another type.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name) {
            Some(Attribute::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// Tensor `name`, or `None` if unset or of another type.
    pub fn tensor(&self, name: &str) -> Option<&Arc<Tensor>> {
        match self.get(name) {
            Some(Attribute::Tensor(v)) => Some(v),
            _ => None,
        }
    }

    /// Checks names and types against the schema of `op`, and that required ones are present.
    ///
    /// # Errors
    /// Every violation, not only the first.
    pub fn check(&self, op: Operator) -> Result<(), Vec<OpError>> {
        let schema = op.schema();
        let mut errors = Vec::new();
        for (name, value) in self.iter() {
            match schema.attributes.iter().find(|a| a.name == name) {
                None => errors.push(OpError::Attribute {
                    op,
                    name: name.to_owned(),
                    message: "is not an attribute of this operator".to_owned(),
                }),
                Some(a) if a.ty != value.ty() => errors.push(OpError::Attribute {
                    op,
                    name: name.to_owned(),
                    message: format!("expected type {:?}, found {:?}", a.ty, value.ty()),
                }),
                Some(_) => {}
            }
        }
        for a in schema.attributes {
            if matches!(a.default, crate::DefaultValue::Required) && self.get(a.name).is_none() {
                errors.push(OpError::Attribute {
                    op,
                    name: a.name.to_owned(),
                    message: "is required".to_owned(),
                });
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }
}
