//! Which steps row-major operators become.

use lancet::lower::lower;
use lancet_artifact::StepKind;

/// The steps of IR text as it stands.
fn kinds(text: &str) -> Vec<StepKind> {
    let graph = lancet_ir::parse(text).expect("IR text");
    let (plan, _) = lower(&graph).expect("lowers");
    plan.steps.into_iter().map(|s| s.kind).collect()
}

#[test]
fn sizes_are_found_before_they_are_written() {
    let found = kinds(
        "graph @g(%x: f32[s]) dims(s, u) {
           %n = dims [u]
           %at = non_zero %x : i64[1, u]
           return %n, %at
         }",
    );
    assert!(
        matches!(&found[..], [StepKind::Portable { .. }, StepKind::Dims(_)]),
        "{found:?}"
    );
}

#[test]
fn sizes_that_may_differ_are_found_portably() {
    for operation in ["add %x, %y", "matmul %x, %y"] {
        let text = format!(
            "graph @g(%x: f32[a, 4, 4], %y: f32[b, 4, 4]) dims(a, b) {{
               %z = {operation}
               return %z
             }}"
        );
        let found = kinds(&text);
        assert!(
            matches!(&found[..], [StepKind::Portable { .. }]),
            "{operation}: {found:?}"
        );
    }
}

#[test]
fn transpositions_have_a_step() {
    for (operation, expected) in [
        ("transpose %x", [2, 1, 0]),
        ("transpose %x {perm = [1, 0, 2]}", [1, 0, 2]),
        ("transpose %x {perm = [-3, -1, 1]}", [0, 2, 1]),
    ] {
        let text = format!(
            "graph @g(%x: bool[b, s, 4]) dims(b, s) {{
               %y = {operation}
               return %y
             }}"
        );
        let permutation = expected.to_vec();
        assert_eq!(
            kinds(&text),
            [StepKind::Transpose { permutation }],
            "{operation}"
        );
    }
}

#[test]
fn copies_have_a_step() {
    for (operation, expected) in [
        ("slice %x, @one, @most, @one", "slice 0, 1, 0"),
        (
            "slice %x, @one, @most, @two, @two",
            "slice 0, 0, 1 by 1, 1, 2",
        ),
        ("slice %x, @minus, @most, @two", "slice 0, 0, 3"),
        ("slice %x, @minus, @most, @one", "portable"),
        ("slice %x, @one, @two, @one", "portable"),
        ("slice %x, @one, %n, @one", "portable"),
        ("slice %x, @minus, @least, @two, @minus", "portable"),
        ("concat %x, %x {axis = -1}", "concat 2"),
        ("pad %x, @pads", "pad 0, 1, 0"),
        ("pad %x, @two_pads, %value, @one", "pad 0, 2, 0"),
        ("pad %x, @pads {mode = \"edge\"}", "portable"),
        ("pad %x, @cut", "portable"),
    ] {
        let text = format!(
            "graph @g(%x: f32[b, s, 4], %n: i64[1], %value: f32[]) dims(b, s) {{
               const @one: i64[1] = [1]
               const @two: i64[1] = [2]
               const @minus: i64[1] = [-1]
               const @most: i64[1] = [9223372036854775807]
               const @least: i64[1] = [-9223372036854775807]
               const @pads: i64[6] = [0, 1, 0, 0, 0, 3]
               const @two_pads: i64[2] = [2, 0]
               const @cut: i64[6] = [0, 1, 0, 0, -1, 3]
               %y = {operation}
               return %y
             }}"
        );
        let list = |numbers: &[u32]| {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            numbers.join(", ")
        };
        let found = match &kinds(&text)[..] {
            [StepKind::Portable { .. }] => "portable".to_owned(),
            [StepKind::Concat { axis }] => format!("concat {axis}"),
            [StepKind::Pad { before }] => format!("pad {}", list(before)),
            [StepKind::Slice { starts, steps }] if steps.iter().all(|&s| s == 1) => {
                format!("slice {}", list(starts))
            }
            [StepKind::Slice { starts, steps }] => {
                format!("slice {} by {}", list(starts), list(steps))
            }
            other => panic!("{operation}: {other:?}"),
        };
        assert_eq!(found, expected, "{operation}");
    }
}

#[test]
fn reductions_over_neighbouring_dimensions_have_a_step() {
    for (operation, axes) in [
        ("reduce_sum %x, @last", Some(2..3)),
        ("reduce_mean %x, @last", Some(2..3)),
        ("reduce_max %x, @middle", Some(1..2)),
        ("reduce_l2 %x, @both {keepdims = 0}", Some(1..3)),
        ("reduce_min %x", Some(0..3)),
        ("reduce_sum %x {noop_with_empty_axes = 1}", None),
        ("reduce_sum %x, @outer", None),
        ("reduce_sum %x, %axes", None),
        ("reduce_prod %x, @last", None),
        ("reduce_max %bytes, @last", None),
        ("reduce_sum %integers, @last", Some(2..3)),
        ("reduce_mean %integers, @last", None),
    ] {
        let text = format!(
            "graph @g(%x: f32[b, s, 4], %bytes: u8[b, s, 4], %integers: i64[b, s, 4], %axes: i64[1]) dims(b, s) {{
               const @last : i64[1] = [-1]
               const @middle : i64[1] = [1]
               const @both : i64[2] = [2, -2]
               const @outer : i64[2] = [0, 2]
               %y = {operation}
               return %y
             }}"
        );
        let kinds = kinds(&text);
        let found = match &kinds[..] {
            [StepKind::Reduce { axes, .. }] => Some(axes.clone()),
            [StepKind::Portable { .. }] => None,
            other => panic!("{operation}: {other:?}"),
        };
        assert_eq!(found, axes, "{operation}");
    }
}
