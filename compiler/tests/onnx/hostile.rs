//! No bytes make import panic.

use lancet::onnx::{ImportOptions, import_bytes};
use onnx_protobuf::GraphProto;
use onnx_protobuf::tensor_proto::DataType::{BOOL, FLOAT};
use proptest::prelude::*;

use crate::model::{D, Model, With, f32s, i64s, node, raw, value_info};

/// A model that uses most features.
fn model() -> Vec<u8> {
    let branch = |op| GraphProto {
        node: vec![node(op, "h", "r")],
        output: vec![value_info("r", FLOAT, &[D::S("n"), D::N(2)])],
        initializer: vec![f32s("v", &[1], &[1.0])],
        ..Default::default()
    };
    Model::new(11)
        .input("x", FLOAT, &[D::S("n"), D::N(3)])
        .tensor(f32s("w", &[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        .tensor(i64s("s", &[2], &[-1, 2]))
        .tensor(raw("c", BOOL, &[], vec![1]))
        .node(node("MatMul", "x w", "h"))
        .node(node("Softmax", "h", "p").int("axis", 0))
        .node(node("Reshape", "p s", "q"))
        .node(node("Unsqueeze", "q", "z").ints("axes", &[0]))
        .node(node("Cast", "z", "k").int("to", 7))
        .node(
            node("If", "c", "b")
                .graph("then_branch", branch("Relu"))
                .graph("else_branch", branch("Abs")),
        )
        .output("k")
        .output("b")
        .bytes()
}

fn import(bytes: &[u8]) -> bool {
    import_bytes(bytes, None, &ImportOptions::default()).is_ok()
}

#[test]
fn the_model_is_imported() {
    assert!(import(&model()));
}

#[test]
fn every_prefix_is_handled() {
    let bytes = model();
    for n in 0..bytes.len() {
        import(&bytes[..n]);
    }
}

#[test]
fn every_single_byte_change_is_handled() {
    let bytes = model();
    for i in 0..bytes.len() {
        for value in [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            bytes[i] ^ 1,
            bytes[i].wrapping_add(1),
        ] {
            let mut changed = bytes.clone();
            changed[i] = value;
            import(&changed);
        }
    }
}

/// Messages nested by their length prefixes alone: each level is a graph in an attribute of a node.
#[test]
fn deep_nesting_is_a_limit() {
    let mut graph = Vec::new();
    for _ in 0..10_000 {
        for field in [6u8, 5, 1] {
            let mut outer = vec![field << 3 | 2];
            let mut len = graph.len();
            while len >= 0x80 {
                outer.push(len as u8 | 0x80);
                len >>= 7;
            }
            outer.push(len as u8);
            outer.append(&mut graph);
            graph = outer;
        }
    }
    let mut model = vec![7 << 3 | 2];
    let mut len = graph.len();
    while len >= 0x80 {
        model.push(len as u8 | 0x80);
        len >>= 7;
    }
    model.push(len as u8);
    model.append(&mut graph);
    let errors = import_bytes(&model, None, &ImportOptions::default()).expect_err("refused");
    assert_eq!(errors.kind(), lancet::onnx::ErrorKind::Limit, "{errors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changed_bytes_are_handled(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = model();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        import(&bytes);
    }

    #[test]
    fn any_bytes_are_handled(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        import(&bytes);
    }
}
