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
