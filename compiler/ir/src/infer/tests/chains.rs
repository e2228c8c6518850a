//! Shape computations as exporters write them.

use super::*;

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
    let wanted = b.with(
        Operator::Concat,
        Attributes::new().with("axis", int(0)),
        &parts,
    );
    assert_eq!(b.elements(wanted), "[batch, seq, 12, -1]");
    let y = b.op(Operator::Reshape, &[x, wanted]);
    assert_eq!(b.shown(y), "f32[batch, seq, 12, 64]");
    let y = b.with(
        Operator::Transpose,
        Attributes::new().with("perm", ints(&[0, 2, 1, 3])),
        &[y],
    );
    let t = b.with(
        Operator::Transpose,
        Attributes::new().with("perm", ints(&[0, 1, 3, 2])),
        &[y],
    );
    let scores = b.op(Operator::MatMul, &[y, t]);
    assert_eq!(b.shown(scores), "f32[batch, 12, seq, seq]");
    let back = b.with(
        Operator::Transpose,
        Attributes::new().with("perm", ints(&[0, 2, 1, 3])),
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
        Attributes::new().with("axis", int(0)),
        &[batch, one, seq, seq],
    );
    let four = b.op(Operator::Shape, &[sizes]);
    let value = Attribute::Tensor(Arc::new(Tensor::new(vec![1], vec![1i64])));
    let ones = b.with(
        Operator::ConstantOfShape,
        Attributes::new().with("value", value),
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
