//! What is reported: everything at once, each with its node, nothing twice.

use onnx_protobuf::NodeProto;
use onnx_protobuf::tensor_proto::DataType::{FLOAT, FLOAT8E4M3FN, STRING};

use crate::model::{D, Model, With, f32s, in_domain, named, node, raw};
use crate::outcome;

fn one(opset: i64, node: NodeProto) -> String {
    outcome(
        &Model::new(opset)
            .input("x", FLOAT, &[D::N(2), D::N(3)])
            .node(node)
            .output("y"),
    )
}

#[test]
fn every_problem_is_reported_once() {
    let model = Model::new(17)
        .import("my.domain", 3)
        .input("x", FLOAT, &[D::N(2), D::N(3)])
        .input("t", STRING, &[D::N(2)])
        .tensor(raw("f8", FLOAT8E4M3FN, &[1], vec![0]))
        .tensor(f32s("w", &[4, 3], &[0.0; 12]))
        .node(named("first", node("Det", "x", "a")))
        .node(node("Det", "x", "b"))
        .node(named("after", node("Relu", "a", "c")))
        .node(named(
            "alien",
            in_domain("my.domain", node("Det", "x", "d")),
        ))
        .node(named("attr", node("Relu", "x", "e").int("speed", 3)))
        .node(named("shapes", node("MatMul", "x w", "f")))
        .node(named("type", node("Transpose", "x", "g").int("perm", 1)))
        .node(named("text", node("Identity", "t", "h")))
        .node(named("eight", node("Identity", "f8", "i")))
        .node(named("many", node("Relu", "x x", "j")))
        .node(named("all", node("Sum", "b c d e f g h i j", "y")))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn opsets() {
    insta::assert_snapshot!(
        [
            one(99, node("Relu", "x", "y")),
            one(0, node("Relu", "x", "y")),
            one(6, node("Add", "x x", "y").int("broadcast", 1)),
            one(4, node("Reshape", "x", "y").ints("shape", &[6])),
            one(13, node("LpPool", "x", "y")),
            one(13, node("Loop", "x", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn cycles() {
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .node(named("p", node("Add", "x c", "a")))
        .node(named("q", node("Relu", "a", "b")))
        .node(named("r", node("Relu", "b", "c")))
        .node(named("s", node("Relu", "c", "y")))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn names() {
    let twice = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .input("x", FLOAT, &[D::N(2)])
        .node(node("Relu", "x", "y"))
        .node(named("again", node("Abs", "x", "y")))
        .output("y")
        .output("y");
    let undefined = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .node(named("n", node("Add", "x nowhere", "y")))
        .output("y")
        .output("z");
    insta::assert_snapshot!([outcome(&twice), outcome(&undefined)].join("\n"));
}

#[test]
fn one_value_may_be_several_outputs() {
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .node(node("Relu", "x", "y"))
        .output("y")
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn inputs() {
    let model = Model::new(13)
        .input("negative", FLOAT, &[D::N(-1)])
        .input("huge", FLOAT, &[D::N(i64::MAX)])
        .node(node("Concat", "negative huge", "y").int("axis", 0))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn a_large_result_is_a_limit() {
    let model = Model::new(13)
        .tensor(crate::model::i64s("s", &[3], &[1 << 40, 1 << 40, 1 << 40]))
        .node(node("ConstantOfShape", "s", "a"))
        .node(node("Flatten", "a", "y").int("axis", 0))
        .output("y");
    let text = outcome(&model);
    assert!(!text.is_empty());
}

#[test]
fn no_graph() {
    let empty = lancet::onnx::import_bytes(&[], None, &Default::default()).expect_err("refused");
    insta::assert_snapshot!(empty);
    let text =
        lancet::onnx::import_bytes(b"not a model", None, &Default::default()).expect_err("refused");
    insta::assert_snapshot!(text);
    let missing = lancet::onnx::import_file("does/not/exist.onnx".as_ref(), &Default::default())
        .expect_err("refused");
    assert_eq!(missing.kind(), lancet::onnx::ErrorKind::Io);
}
