//! Each operator's types on symbolic operands, by theme.
//!
//! Operands are written as types (`f32[batch, 2*seq]`), as known elements (`[batch, seq, -1]`), as integers of rank 0, or
//! as nothing where they are absent.

mod chains;
mod elementwise;
mod products;
mod shapes;

use std::sync::Arc;

use lancet_ops::{Attribute, Attributes, Operator, Tensor};

use crate::{Dim, Graph, Op, TensorType, Value};

/// A dimension from text: a number, or a product of symbols.
fn dim(text: &str) -> Dim {
    text.split('*').fold(Dim::fixed(1), |d, t| {
        let t = t.trim();
        let factor = t
            .parse()
            .map_or_else(|_| Dim::symbol(t), |n: i64| Dim::fixed(n));
        d.mul(&factor).expect("a small product")
    })
}

/// A type from text such as `f32[batch, 2*seq]`.
fn ty(text: &str) -> TensorType {
    let (dtype, dims) = text.split_once('[').expect("a bracket");
    let dims = dims.strip_suffix(']').expect("a bracket");
    let shape = dims.split(',').filter(|d| !d.trim().is_empty()).map(dim);
    TensorType::new(dtype.parse().expect("an element type"), shape.collect())
}

/// A graph with what tests need to build it briefly.
struct Build(Graph);

impl Build {
    fn new() -> Build {
        Build(Graph::new("test"))
    }

    fn input(&mut self, text: &str) -> Value {
        self.0.add_input("x", ty(text))
    }

    fn ints(&mut self, v: &[i64]) -> Value {
        let tensor = Tensor::new(vec![v.len()], v.to_vec());
        self.0.add_const("c", Arc::new(tensor))
    }

    fn int(&mut self, v: i64) -> Value {
        self.0.add_const("c", Arc::new(Tensor::scalar(v)))
    }

    fn op(&mut self, op: Operator, operands: &[Value]) -> Value {
        self.with(op, Attributes::new(), operands)
    }

    fn with(&mut self, op: Operator, attributes: Attributes, operands: &[Value]) -> Value {
        match self.0.apply(op, attributes, operands) {
            Ok(v) => v,
            Err(e) => panic!("{e}"),
        }
    }

    fn shown(&self, v: Value) -> String {
        self.0.ty(v).to_string()
    }

    fn elements(&self, v: Value) -> String {
        match self.0.elements(v) {
            Some(e) => super::broadcast::list(e),
            None => "unknown".to_owned(),
        }
    }
}

/// An operand from text.
fn operand(b: &mut Build, text: &str) -> Option<Value> {
    if text.is_empty() {
        return None;
    }
    if let Ok(n) = text.parse() {
        return Some(b.int(n));
    }
    let Some(elements) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
        return Some(b.input(text));
    };
    let elements = elements.split(',').filter(|d| !d.trim().is_empty());
    let node = b.0.add(Op::Dims(elements.map(dim).collect()), &[]);
    let node = node.expect("sizes have no operands to be wrong");
    Some(Value { node, result: 0 })
}

/// Types of the results of an operator, with known elements after `=`, or the error, as text.
fn results(op: Operator, attributes: &[(&str, Attribute)], operands: &[&str], n: usize) -> String {
    let attributes = attributes
        .iter()
        .fold(Attributes::new(), |a, (k, v)| a.with(k, v.clone()));
    let mut b = Build::new();
    let operands: Vec<_> = operands.iter().map(|t| operand(&mut b, t)).collect();
    match b.0.add_results(Op::Apply(op, attributes), &operands, n) {
        Ok(node) => {
            let values = (0..n as u32).map(|result| Value { node, result });
            let shown = values.map(|v| match b.0.elements(v) {
                Some(_) => format!("{} = {}", b.shown(v), b.elements(v)),
                None => b.shown(v),
            });
            shown.collect::<Vec<_>>().join("; ")
        }
        Err(e) => e.to_string(),
    }
}

/// One row of a table: an operator, its attributes and operands, and its results.
type Row<'a> = (Operator, &'a [(&'a str, Attribute)], &'a [&'a str], &'a str);

/// Checks every row; results are separated by semicolons.
fn check(table: &[Row<'_>]) {
    let wrong: Vec<String> = table
        .iter()
        .filter_map(|(op, attributes, operands, expected)| {
            let n = if expected.contains(": ") {
                op.schema().results.0
            } else {
                expected.split("; ").count()
            };
            let found = results(*op, attributes, operands, n);
            (found != *expected).then(|| format!("{op} on {operands:?}: {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn int(v: i64) -> Attribute {
    Attribute::Int(v)
}

fn ints(v: &[i64]) -> Attribute {
    Attribute::Ints(v.to_vec())
}

fn text(v: &str) -> Attribute {
    Attribute::Str(v.to_owned())
}
