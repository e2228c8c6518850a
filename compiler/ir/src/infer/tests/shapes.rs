//! Shapes, places, counts and reductions.

use super::*;
use Operator as O;

#[test]
fn reshapes_divide_and_copy() {
    check(&[
        (
            O::Reshape,
            &[],
            &["f32[b, s, 768]", "[0, -1, 12, 64]"],
            "f32[b, s, 12, 64]",
        ),
        (
            O::Reshape,
            &[],
            &["f32[b, s, 768]", "[-1, 768]"],
            "f32[b*s, 768]",
        ),
        (O::Reshape, &[], &["f32[b, s]", "[-1, 3]"], "f32[u0, 3]"),
        (O::Reshape, &[], &["f32[b, s]", "i64[3]"], "f32[u0, u1, u2]"),
        (
            O::Reshape,
            &[("allowzero", int(1))],
            &["f32[0, s]", "[0, 5]"],
            "f32[0, 5]",
        ),
        (
            O::Reshape,
            &[],
            &["f32[2, 3]", "[4, -1]"],
            "reshape: cannot reshape [2, 3] to [4, -1]",
        ),
        (
            O::Reshape,
            &[],
            &["f32[2, 3]", "[5]"],
            "reshape: cannot reshape [2, 3] to [5]",
        ),
        (
            O::Reshape,
            &[],
            &["f32[s]", "i64[n]"],
            "reshape operand 1: expected a fixed length of at most 16, found i64[n]",
        ),
        (
            O::Flatten,
            &[("axis", int(-1))],
            &["f32[b, s, 4]"],
            "f32[b*s, 4]",
        ),
        (O::Squeeze, &[], &["f32[1, s, 1]", "[0]"], "f32[s, 1]"),
        (O::Squeeze, &[], &["f32[1, s, 1]"], "f32[s]"),
        (
            O::Squeeze,
            &[],
            &["f32[2, s]", "[0]"],
            "squeeze operand 0: expected dimension 0 of size 1, found f32[2, s]",
        ),
        (O::Unsqueeze, &[], &["f32[s]", "[0, -1]"], "f32[1, s, 1]"),
    ]);
}

#[test]
fn shapes_are_elements() {
    check(&[
        (O::Shape, &[], &["f32[b, s, 4]"], "i64[3] = [b, s, 4]"),
        (
            O::Shape,
            &[("start", int(-2)), ("end", int(-1))],
            &["f32[b, s, 4]"],
            "i64[1] = [s]",
        ),
        (O::Size, &[], &["f32[b, s, 4]"], "i64[] = [4*b*s]"),
        (O::Gather, &[], &["[b, s, 4]", "-1"], "i64[] = [4]"),
        (O::Gather, &[], &["[b, s, 4]", "[1, 0]"], "i64[2] = [s, b]"),
        (
            O::Concat,
            &[("axis", int(0))],
            &["[b]", "[s, 4]"],
            "i64[3] = [b, s, 4]",
        ),
        (
            O::Slice,
            &[],
            &["[s]", "[-4]", "[-2]", "[0]", "[-1]"],
            "i64[1] = [s]",
        ),
        (
            O::Slice,
            &[],
            &["[b, s, 4]", "[-1]", "[-4]", "[0]", "[-1]"],
            "i64[3] = [4, s, b]",
        ),
        (
            O::ReduceProd,
            &[("keepdims", int(0))],
            &["[b, s, 4]"],
            "i64[] = [4*b*s]",
        ),
        (O::Range, &[], &["2", "8", "3"], "i64[2] = [2, 5]"),
        (O::Expand, &[], &["[s]", "[2]"], "i64[2] = [s, s]"),
        (O::Tile, &[], &["[b, s]", "[2]"], "i64[4] = [b, s, b, s]"),
        (
            O::Split,
            &[],
            &["[b, s, 4]", "[1, 2]"],
            "i64[1] = [b]; i64[2] = [s, 4]",
        ),
    ]);
}

#[test]
fn slices_take_what_is_there() {
    let last = &i64::MAX.to_string();
    let to_last = format!("[{last}]");
    let rows: &[(&str, &str, &str, &str)] = &[
        ("f32[512]", "[0]", "[s]", "f32[s]"),
        ("f32[s]", "[1]", &to_last, "f32[s - 1]"),
        ("f32[s]", "[0]", "[-1]", "f32[s - 1]"),
        ("f32[s]", "[-1]", &to_last, "f32[1]"),
        ("f32[s]", "[0]", "[1]", "f32[1]"),
        ("f32[s]", "[0]", "[128]", "f32[u0]"),
        ("f32[2*s]", "[s]", "[2*s]", "f32[s]"),
        ("f32[10]", "[2]", "[100]", "f32[8]"),
        ("f32[10]", "[-100]", "[-8]", "f32[2]"),
        ("f32[10]", "[7]", "[3]", "f32[0]"),
        ("f32[10]", "i64[1]", "[3]", "f32[u0]"),
    ];
    for (x, start, end, expected) in rows {
        let found = results(O::Slice, &[], &[x, start, end, "[0]"], 1);
        assert_eq!(found, *expected, "{x} from {start} to {end}");
    }
    check(&[
        (
            O::Slice,
            &[],
            &["f32[b, s]", "[0]", "[5]", "[1]", "[0]"],
            "slice: a step is 0",
        ),
        (
            O::Slice,
            &[],
            &["f32[b, s]", "[0]", "[5]", "i64[1]"],
            "f32[u0, u1]",
        ),
    ]);
}

#[test]
fn places_and_counts() {
    check(&[
        (
            O::Transpose,
            &[("perm", ints(&[1, 0]))],
            &["f32[b, s]"],
            "f32[s, b]",
        ),
        (
            O::Transpose,
            &[("perm", ints(&[0, 0]))],
            &["f32[b, s]"],
            "transpose: axis 0 is given twice",
        ),
        (
            O::Concat,
            &[("axis", int(1))],
            &["f32[b, s]", "f32[b, 2]"],
            "f32[b, s + 2]",
        ),
        (
            O::Concat,
            &[("axis", int(0))],
            &["f32[1, 2]", "f32[1, 3]"],
            "concat operand 1: expected f32[1, 2], found f32[1, 3]",
        ),
        (
            O::Split,
            &[("axis", int(-1))],
            &["f32[s, 6]"],
            "f32[s, 2]; f32[s, 2]; f32[s, 2]",
        ),
        (
            O::Split,
            &[("axis", int(0))],
            &["f32[2*s]"],
            "f32[s]; f32[s]",
        ),
        (
            O::Gather,
            &[],
            &["f32[30522, 768]", "i64[b, s]"],
            "f32[b, s, 768]",
        ),
        (
            O::GatherND,
            &[("batch_dims", int(1))],
            &["f32[b, s, 4]", "i64[b, 7, 1]"],
            "f32[b, 7, 4]",
        ),
        (
            O::ScatterND,
            &[],
            &["f32[b, 4]", "i64[n, 1]", "f32[n, 4]"],
            "f32[b, 4]",
        ),
        (O::Range, &[], &["0", "i64[]", "1"], "i64[u0]"),
        (O::ConstantOfShape, &[], &["[b, s]"], "f32[b, s]"),
        (O::NonZero, &[], &["bool[b, s]"], "i64[2, u0]"),
        (O::OneHot, &[], &["i64[b]", "9", "f32[2]"], "f32[b, 9]"),
        (O::TopK, &[], &["f32[b, s]", "[3]"], "f32[b, 3]; i64[b, 3]"),
        (O::Pad, &[], &["f32[b, s]", "[0, 1, 0, 2]"], "f32[b, s + 3]"),
        (
            O::Compress,
            &[("axis", int(1))],
            &["f32[b, s]", "bool[s]"],
            "f32[b, u0]",
        ),
        (
            O::ReduceMean,
            &[],
            &["f32[b, s, 4]", "[-1]"],
            "f32[b, s, 1]",
        ),
        (
            O::ReduceSum,
            &[("keepdims", int(0))],
            &["f32[b, s, 4]", "[1]"],
            "f32[b, 4]",
        ),
        (
            O::ReduceMax,
            &[("keepdims", int(0))],
            &["f32[b, s, 4]"],
            "f32[]",
        ),
        (
            O::ArgMax,
            &[("keepdims", int(0)), ("axis", int(-1))],
            &["f32[b, 4]"],
            "i64[b]",
        ),
        (
            O::Softmax,
            &[("axis", int(2))],
            &["f32[b, 4]"],
            "softmax: axis 2 is outside rank 2",
        ),
        (
            O::Gather,
            &[],
            &["f32[4]", "f32[1]"],
            "gather operand 1: expected i32 or i64, found f32[1]",
        ),
    ]);
}
