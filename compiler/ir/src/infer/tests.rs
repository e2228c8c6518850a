//! Each operator's types on symbolic operands, and shape computations as exporters write them.

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

/// Types of the results of an operator on inputs of these types, or the error, as text.
fn results(op: Operator, attributes: Attributes, operands: &[&str], n_results: usize) -> String {
    let mut b = Build::new();
    let operands: Vec<_> = operands
        .iter()
        .map(|t| (!t.is_empty()).then(|| b.input(t)))
        .collect();
    match b
        .0
        .add_results(Op::Apply(op, attributes), &operands, n_results)
    {
        Ok(node) => {
            let values = (0..n_results as u32).map(|result| Value { node, result });
            values.map(|v| b.shown(v)).collect::<Vec<_>>().join(" ")
        }
        Err(e) => e.to_string(),
    }
}

fn result(op: Operator, operands: &[&str]) -> String {
    results(op, Attributes::new(), operands, 1)
}

fn attrs(list: &[(&str, Attribute)]) -> Attributes {
    list.iter()
        .fold(Attributes::new(), |a, (k, v)| a.with(k, v.clone()))
}

fn int(v: i64) -> Attribute {
    Attribute::Int(v)
}

fn ints(v: &[i64]) -> Attribute {
    Attribute::Ints(v.to_vec())
}

#[test]
fn heads_are_split_by_computed_shapes() {
    let mut b = Build::new();
    let x = b.input("f32[batch, seq, 768]");
    let shape = b.op(Operator::Shape, &[x]);
    let mut parts = Vec::new();
    for i in 0..2 {
        let index = b.int(i);
        let size = b.op(Operator::Gather, &[shape, index]);
        let axes = b.ints(&[0]);
        parts.push(b.op(Operator::Unsqueeze, &[size, axes]));
    }
    parts.push(b.ints(&[12]));
    parts.push(b.ints(&[-1]));
    let wanted = b.with(Operator::Concat, attrs(&[("axis", int(0))]), &parts);
    assert_eq!(b.elements(wanted), "[batch, seq, 12, -1]");
    let y = b.op(Operator::Reshape, &[x, wanted]);
    assert_eq!(b.shown(y), "f32[batch, seq, 12, 64]");
    let y = b.with(
        Operator::Transpose,
        attrs(&[("perm", ints(&[0, 2, 1, 3]))]),
        &[y],
    );
    let t = b.with(
        Operator::Transpose,
        attrs(&[("perm", ints(&[0, 1, 3, 2]))]),
        &[y],
    );
    let scores = b.op(Operator::MatMul, &[y, t]);
    assert_eq!(b.shown(scores), "f32[batch, 12, seq, seq]");
    let back = b.with(
        Operator::Transpose,
        attrs(&[("perm", ints(&[0, 2, 1, 3]))]),
        &[y],
    );
    let wanted = b.ints(&[0, 0, -1]);
    let back = b.op(Operator::Reshape, &[back, wanted]);
    assert_eq!(b.shown(back), "f32[batch, seq, 768]");
}

#[test]
fn a_guarded_expand_resolves() {
    let mut b = Build::new();
    let ids = b.input("i64[batch, seq]");
    let x = b.input("f32[1, 1, 1, 1]");
    let shape = b.op(Operator::Shape, &[ids]);
    let wanted = b.ints(&[-1, 1, -1, -1]);
    let minus_one = b.int(-1);
    let missing = b.op(Operator::Equal, &[wanted, minus_one]);
    let (i, j) = (b.ints(&[0]), b.ints(&[1]));
    let (batch, seq) = (
        b.op(Operator::Gather, &[shape, i]),
        b.op(Operator::Gather, &[shape, j]),
    );
    let one = b.ints(&[1]);
    let sizes = b.with(
        Operator::Concat,
        attrs(&[("axis", int(0))]),
        &[batch, one, seq, seq],
    );
    let four = b.op(Operator::Shape, &[sizes]);
    let value = Attribute::Tensor(Arc::new(Tensor::new(vec![1], vec![1i64])));
    let ones = b.with(
        Operator::ConstantOfShape,
        attrs(&[("value", value)]),
        &[four],
    );
    assert_eq!(b.elements(ones), "[1, 1, 1, 1]");
    let sizes = b.op(Operator::Mul, &[sizes, ones]);
    let resolved = b.op(Operator::Where, &[missing, sizes, wanted]);
    assert_eq!(b.elements(resolved), "[batch, 1, seq, seq]");
    let y = b.op(Operator::Expand, &[x, resolved]);
    assert_eq!(b.shown(y), "f32[batch, 1, seq, seq]");
}

#[test]
fn a_position_slice_takes_the_length() {
    let mut b = Build::new();
    let ids = b.input("i64[batch, seq]");
    let positions = b.input("i64[1, 512]");
    let shape = b.op(Operator::Shape, &[ids]);
    let one = b.ints(&[1]);
    let seq = b.op(Operator::Gather, &[shape, one]);
    let zero = b.ints(&[0]);
    let y = b.op(Operator::Slice, &[positions, zero, seq, one]);
    assert_eq!(b.shown(y), "i64[1, seq]");
    let (start, limit, step) = (b.int(0), b.op(Operator::Size, &[ids]), b.int(1));
    let y = b.op(Operator::Range, &[start, limit, step]);
    assert_eq!(b.shown(y), "i64[batch*seq]");
}

#[test]
fn matmul_names_the_operand_that_does_not_fit() {
    let found = result(Operator::MatMul, &["f32[m, 768]", "f32[3072, 768]"]);
    assert_eq!(
        found,
        "matmul operand 1: expected f32[768, 768], found f32[3072, 768]"
    );
    let found = result(Operator::MatMul, &["f32[m, 768]", "f64[768, 2]"]);
    assert_eq!(
        found,
        "matmul operand 1: expected f32[768, 2], found f64[768, 2]"
    );
}
