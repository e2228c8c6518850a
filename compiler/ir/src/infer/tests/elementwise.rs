//! Broadcasting, element types and arithmetic of elements.

use super::*;
use Operator as O;

#[test]
fn sizes_broadcast() {
    check(&[
        (
            O::Add,
            &[],
            &["f32[batch, seq, 64]", "f32[64]"],
            "f32[batch, seq, 64]",
        ),
        (
            O::Add,
            &[],
            &["f32[batch, 1]", "f32[1, seq]"],
            "f32[batch, seq]",
        ),
        (O::Mul, &[], &["f32[n]", "f32[8]"], "f32[8]"),
        (O::Mul, &[], &["f32[n]", "f32[m]"], "f32[u0]"),
        (O::Mul, &[], &["f32[n]", "f32[]"], "f32[n]"),
        (
            O::Max,
            &[],
            &["f32[n]", "f32[m]", "f32[3, 1]"],
            "f32[3, u0]",
        ),
        (
            O::Where,
            &[],
            &["bool[batch, 1]", "f32[]", "f32[1, seq]"],
            "f32[batch, seq]",
        ),
        (
            O::Add,
            &[],
            &["f32[2, 3]", "f32[2]"],
            "add: cannot broadcast shapes [2, 3] and [2]",
        ),
    ]);
}

#[test]
fn element_types_agree_or_are_named() {
    check(&[
        (O::Equal, &[], &["i64[n]", "i64[1]"], "bool[n]"),
        (O::Cast, &[("to", text("f16"))], &["i64[n]"], "f16[n]"),
        (O::CastLike, &[], &["i64[n]", "f64[]"], "f64[n]"),
        (O::IsNaN, &[], &["f32[n]"], "bool[n]"),
        (O::Pow, &[], &["f32[n]", "i64[]"], "f32[n]"),
        (
            O::Sub,
            &[],
            &["f32[n]", "f64[n]"],
            "sub operand 1: expected f32[n], found f64[n]",
        ),
        (
            O::Sqrt,
            &[],
            &["i64[n]"],
            "sqrt operand 0: expected a float type, found i64[n]",
        ),
        (
            O::Cast,
            &[("to", text("f31"))],
            &["i64[n]"],
            "cast attribute `to`: unknown element type `f31`",
        ),
        (
            O::Where,
            &[],
            &["bool[n]", "", "f32[n]"],
            "where operand 1: missing",
        ),
        (O::Relu, &[], &[], "relu: takes 1 operands, found 0"),
    ]);
}

#[test]
fn elements_are_computed() {
    check(&[
        (
            O::Mul,
            &[],
            &["[batch, 2]", "[seq]"],
            "i64[2] = [batch*seq, 2*seq]",
        ),
        (O::Div, &[], &["[6*seq, 7]", "[2]"], "i64[2] = [3*seq, 3]"),
        (O::Div, &[], &["[seq]", "[2]"], "i64[1]"),
        (O::Mod, &[], &["[-7, 6]", "[4]"], "i64[2] = [1, 2]"),
        (O::Neg, &[], &["[seq]"], "i64[1] = [-seq]"),
        (O::Equal, &[], &["[seq, -1]", "-1"], "bool[2] = [0, 1]"),
        (O::Equal, &[], &["[seq]", "[5]"], "bool[1]"),
        (O::Less, &[], &["[-1]", "[seq]"], "bool[1] = [1]"),
        (O::GreaterOrEqual, &[], &["[seq]", "[0]"], "bool[1] = [1]"),
        (O::Max, &[], &["[seq]", "[-3]"], "i64[1] = [seq]"),
        (O::Max, &[], &["[seq]", "[5]"], "i64[1]"),
        (
            O::Cast,
            &[("to", text("i32"))],
            &["[seq]"],
            "i32[1] = [seq]",
        ),
        (O::Cast, &[("to", text("i8"))], &["[300]"], "i8[1]"),
        (
            O::Cast,
            &[("to", text("bool"))],
            &["[2, 0]"],
            "bool[2] = [1, 0]",
        ),
        (O::Cast, &[("to", text("f32"))], &["[2]"], "f32[1]"),
    ]);
}
