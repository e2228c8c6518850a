//! One test per rule that brings an older form of an operator to the newest.

use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataType::{FLOAT, INT4, INT64, UINT4, UINT8, UINT16};
use onnx_protobuf::{AttributeProto, FunctionProto, GraphProto, NodeProto};

use crate::model::{
    D, Model, With, attribute, f32s, i64s, in_domain, node, opset_of, raw, value_info,
};
use crate::outcome;

/// A model of one node on `x: f32[2, 3, 4]`, with result `y`.
fn unary(opset: i64, node: NodeProto) -> String {
    let dims = [D::N(2), D::N(3), D::N(4)];
    outcome(
        &Model::new(opset)
            .input("x", FLOAT, &dims)
            .node(node)
            .output("y"),
    )
}

#[test]
fn axes_attributes_become_operands() {
    insta::assert_snapshot!(
        [
            unary(11, node("Unsqueeze", "x", "y").ints("axes", &[0, -1])),
            unary(
                11,
                node("ReduceSum", "x", "y")
                    .ints("axes", &[1])
                    .int("keepdims", 0)
            ),
            unary(17, node("ReduceMean", "x", "y").ints("axes", &[-1])),
            unary(17, node("ReduceMax", "x", "y").ints("axes", &[])),
            unary(9, node("ReduceL2", "x", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn squeeze_attribute_becomes_operand() {
    let model = Model::new(11)
        .input("x", FLOAT, &[D::N(1), D::S("n"), D::N(1)])
        .node(node("Squeeze", "x", "y").ints("axes", &[0]))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn split_states_its_parts() {
    let split = |n: NodeProto, opset| unary(opset, n);
    insta::assert_snapshot!(
        [
            split(node("Split", "x", "y z").int("axis", 2), 11),
            split(
                node("Split", "x", "y z")
                    .int("axis", 1)
                    .ints("split", &[1, 2]),
                11
            ),
            split(node("Split", "x", "y z").int("axis", 0), 13),
            split(
                node("Split", "x", "y z")
                    .int("axis", 1)
                    .int("num_outputs", 2),
                18
            ),
            split(
                node("Split", "x", "y z")
                    .int("axis", 1)
                    .int("num_outputs", 3),
                18
            ),
        ]
        .join("\n")
    );
}

#[test]
fn sequences_are_taken_apart() {
    let model = |nodes: Vec<NodeProto>| {
        let mut model = Model::new(13)
            .input("x", FLOAT, &[D::S("n"), D::N(5)])
            .input("i", INT64, &[])
            .tensor(i64s("one", &[], &[1]))
            .tensor(i64s("two", &[], &[2]))
            .tensor(i64s("back", &[], &[-1]))
            .tensor(i64s("sizes", &[2], &[1, 4]));
        for node in nodes {
            model = model.node(node);
        }
        outcome(&model.output("y"))
    };
    let split = |operands: &str| node("SplitToSequence", operands, "s").int("axis", -1);
    let at = |position: &str| node("SequenceAt", &format!("s {position}"), "y");
    insta::assert_snapshot!(
        [
            model(vec![split("x two"), at("back")]),
            model(vec![split("x sizes"), at("one")]),
            model(vec![split("x").int("keepdims", 0), at("two")]),
            model(vec![
                node("SequenceEmpty", "", "e"),
                node("SequenceInsert", "e x", "f"),
                node("Relu", "x", "r"),
                node("SequenceInsert", "f r back", "g"),
                node("Identity", "g", "h"),
                node("ConcatFromSequence", "h", "y")
                    .int("axis", 1)
                    .int("new_axis", 1),
            ]),
            model(vec![
                node("SequenceConstruct", "x x x", "s"),
                node("SequenceErase", "s one", "t"),
                node("SequenceLength", "t", "y"),
            ]),
            model(vec![split("x i"), at("one")]),
            model(vec![split("x sizes"), at("i")]),
            model(vec![split("x sizes"), at("two")]),
            model(vec![split("x sizes"), node("Relu", "s", "y")]),
            model(vec![split("x sizes"), node("Identity", "s", "y")]),
            model(vec![node("SplitToSequence", "x one", "s"), at("one")]),
        ]
        .join("\n")
    );
}

#[test]
fn slice_attributes_become_operands() {
    let slice = node("Slice", "x", "y")
        .ints("starts", &[0, 1])
        .ints("ends", &[2, 3]);
    insta::assert_snapshot!(
        [
            unary(9, slice.clone()),
            unary(9, slice.ints("axes", &[1, 2])),
        ]
        .join("\n")
    );
}

#[test]
fn pad_attributes_become_operands() {
    let pad = node("Pad", "x", "y").ints("pads", &[0, 0, 1, 0, 0, 1]);
    insta::assert_snapshot!(
        [
            unary(10, pad.clone()),
            unary(10, pad.float("value", 2.5).text("mode", "constant")),
        ]
        .join("\n")
    );
}

#[test]
fn top_k_attribute_becomes_operand() {
    insta::assert_snapshot!(unary(
        9,
        node("TopK", "x", "y i").int("k", 2).int("axis", 1)
    ));
}

#[test]
fn old_resizes_take_scales_as_third_operand() {
    let model = |opset: i64, node: NodeProto| {
        let model = Model::new(opset)
            .input("x", FLOAT, &[D::N(2), D::S("n")])
            .tensor(f32s("s", &[2], &[1.0, 2.0]));
        outcome(&model.node(node).output("y"))
    };
    insta::assert_snapshot!(
        [
            model(
                7,
                node("Upsample", "x", "y").with(AttributeProto {
                    floats: vec![1.0, 2.0],
                    ..attribute("scales", AttributeType::FLOATS)
                })
            ),
            model(9, node("Upsample", "x s", "y").text("mode", "linear")),
            model(10, node("Resize", "x s", "y")),
            model(13, node("Resize", "x _ s", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn clip_attributes_become_operands() {
    insta::assert_snapshot!(
        [
            unary(6, node("Clip", "x", "y").float("max", 6.0)),
            unary(
                7,
                node("Clip", "x", "y").float("min", 0.0).float("max", 6.0)
            ),
        ]
        .join("\n")
    );
}

#[test]
fn dropout_ratio_becomes_operand_and_unused_masks_go() {
    insta::assert_snapshot!(
        [
            unary(7, node("Dropout", "x", "y mask").float("ratio", 0.25)),
            unary(13, node("Dropout", "x", "y mask")),
        ]
        .join("\n")
    );
}

#[test]
fn softmax_flattens_before_opset_13() {
    insta::assert_snapshot!(
        [
            unary(12, node("Softmax", "x", "y").int("axis", 2)),
            unary(12, node("Softmax", "x", "y").int("axis", -1)),
            unary(12, node("LogSoftmax", "x", "y")),
            unary(12, node("Hardmax", "x", "y").int("axis", 0)),
            unary(13, node("Softmax", "x", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn element_types_are_named() {
    insta::assert_snapshot!(
        [
            unary(13, node("Cast", "x", "y").int("to", 7)),
            unary(
                24,
                node("Cast", "x", "y")
                    .int("to", 10)
                    .text("round_mode", "up")
                    .int("saturate", 0)
            ),
            unary(13, node("Cast", "x", "y").int("to", 8)),
        ]
        .join("\n")
    );
}

#[test]
fn quantize_linear_output_type() {
    let model = |code| {
        Model::new(21)
            .input("x", FLOAT, &[D::S("n")])
            .tensor(f32s("s", &[], &[0.5]))
            .node(node("QuantizeLinear", "x s", "y").int("output_dtype", code))
            .output("y")
    };
    insta::assert_snapshot!(outcome(&model(3)));
    insta::assert_snapshot!(outcome(&model(0)));
}

#[test]
fn constants() {
    let constant = |n: NodeProto| outcome(&Model::new(13).node(n).output("y"));
    let node = || node("Constant", "", "y");
    let floats = AttributeProto {
        floats: vec![1.0, 2.0],
        ..attribute("value_floats", AttributeType::FLOATS)
    };
    insta::assert_snapshot!(
        [
            constant(node().tensor("value", i64s("", &[2], &[3, 4]))),
            constant(node().int("value_int", 7)),
            constant(node().float("value_float", 1.5)),
            constant(node().ints("value_ints", &[1, 2])),
            constant(node().with(floats)),
            constant(node().text("value_string", "a")),
            constant(node()),
            constant(node().int("value_int", 7).float("value_float", 1.5)),
        ]
        .join("\n")
    );
}

#[test]
fn constant_of_shape_keeps_its_value() {
    let model = Model::new(13)
        .tensor(i64s("s", &[2], &[2, 3]))
        .node(node("ConstantOfShape", "s", "y").tensor("value", f32s("", &[1], &[4.0])))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn dft_axis_becomes_operand() {
    let model = |opset, n: NodeProto| {
        outcome(
            &Model::new(opset)
                .input("x", FLOAT, &[D::N(1), D::N(4), D::N(5), D::N(1)])
                .node(n)
                .output("y"),
        )
    };
    insta::assert_snapshot!(
        [
            model(17, node("DFT", "x", "y").int("axis", 2)),
            model(17, node("DFT", "x", "y")),
            model(20, node("DFT", "x", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn batch_normalization_is_for_inference() {
    let model = |opset, n: NodeProto| {
        let one = |name: &str| f32s(name, &[3], &[1.0; 3]);
        outcome(
            &Model::new(opset)
                .input("x", FLOAT, &[D::S("n"), D::N(3)])
                .tensor(one("s"))
                .tensor(one("b"))
                .tensor(one("m"))
                .tensor(one("v"))
                .node(n)
                .output("y"),
        )
    };
    insta::assert_snapshot!(
        [
            model(
                7,
                node("BatchNormalization", "x s b m v", "y a c").int("spatial", 1)
            ),
            model(
                7,
                node("BatchNormalization", "x s b m v", "y").int("spatial", 0)
            ),
            model(
                14,
                node("BatchNormalization", "x s b m v", "y").int("training_mode", 1)
            ),
        ]
        .join("\n")
    );
}

#[test]
fn group_normalization_scales_groups_before_opset_21() {
    let model = Model::new(18)
        .input("x", FLOAT, &[D::S("n"), D::N(4), D::N(2)])
        .tensor(f32s("s", &[2], &[1.0, 2.0]))
        .tensor(f32s("b", &[2], &[0.0, 1.0]))
        .node(node("GroupNormalization", "x s b", "y").int("num_groups", 2))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn microsoft_quantized_add_is_written_out() {
    let scalar = |name: &str| f32s(name, &[], &[0.5]);
    let zero = |name: &str| raw(name, UINT8, &[], vec![128]);
    let model = Model::new(17)
        .input("a", UINT8, &[D::S("n")])
        .input("b", UINT8, &[D::S("n")])
        .tensor(scalar("s"))
        .tensor(zero("z"))
        .node(in_domain(
            "com.microsoft",
            node("QLinearAdd", "a s z b s z s z", "y"),
        ))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

/// A model of one node of `com.microsoft` on quantized tensors of several shapes.
fn microsoft_quantized(node: NodeProto) -> String {
    let scales = ["s", "t"].map(|name| f32s(name, &[], &[0.5]));
    let zeros = ["z", "w"].map(|name| raw(name, UINT8, &[], vec![128]));
    let mut model = Model::new(17)
        .input("a", UINT8, &[D::S("n"), D::N(2), D::N(3)])
        .input("m", UINT8, &[D::S("n"), D::N(3)])
        .input("c", onnx_protobuf::tensor_proto::DataType::BOOL, &[D::N(3)])
        .tensor(raw("b", UINT8, &[3, 3], (0..9).collect()))
        .tensor(raw("wide", UINT8, &[3, 9], (0..27).collect()))
        .tensor(raw("tables", UINT8, &[4, 3], (0..12).collect()))
        .tensor(raw("row", UINT8, &[3], vec![1, 2, 3]))
        .tensor(f32s("bias", &[9], &[0.25; 9]))
        .input("ids", INT64, &[D::S("n"), D::N(2)])
        .input(
            "past",
            FLOAT,
            &[D::N(2), D::S("n"), D::N(1), D::S("p"), D::N(3)],
        );
    for tensor in scales.into_iter().chain(zeros) {
        model = model.tensor(tensor);
    }
    outcome(&model.node(in_domain("com.microsoft", node)).output("y"))
}

#[test]
fn microsoft_quantized_operators_are_written_out() {
    insta::assert_snapshot!(
        [
            microsoft_quantized(
                node("QLinearSoftmax", "a s z t w", "y")
                    .int("axis", 1)
                    .int("opset", 12)
            ),
            microsoft_quantized(
                node("QLinearSoftmax", "a s z t w", "y")
                    .int("axis", 1)
                    .int("opset", 13)
            ),
            microsoft_quantized(node("QLinearWhere", "c a s z a t w s z", "y")),
            microsoft_quantized(
                node("QLinearReduceMean", "a s z t w", "y")
                    .ints("axes", &[1])
                    .int("keepdims", 0)
            ),
            microsoft_quantized(
                node("QLinearGlobalAveragePool", "a s z t w", "y").int("channels_last", 1)
            ),
            microsoft_quantized(
                node("QGemm", "m s z b t w _ s z", "y")
                    .float("alpha", 2.0)
                    .int("transB", 1)
            ),
            microsoft_quantized(node("QGemm", "m s z b t w", "y")),
        ]
        .join("\n")
    );
}

#[test]
fn microsoft_quantized_layers_are_written_out() {
    insta::assert_snapshot!(
        [
            microsoft_quantized(
                node("QAttention", "a wide bias s t _ z w", "y").int("num_heads", 1)
            ),
            microsoft_quantized(
                node("QAttention", "a wide bias s t _ z w past", "_ y")
                    .int("num_heads", 1)
                    .int("unidirectional", 1)
            ),
            microsoft_quantized(
                node("QAttention", "a wide bias s t", "y")
                    .int("num_heads", 1)
                    .int("do_rotary", 1)
            ),
            microsoft_quantized(
                node(
                    "QEmbedLayerNormalization",
                    "ids _ tables tables _ row row _ s s _ t t z z _ w w",
                    "y"
                )
                .float("epsilon", 0.5)
            ),
        ]
        .join("\n")
    );
}

#[test]
fn microsoft_operators_of_other_names_are_written_out() {
    let model = |n: NodeProto| {
        outcome(
            &Model::new(17)
                .input("x", FLOAT, &[D::S("n"), D::N(4)])
                .input("image", FLOAT, &[D::S("n"), D::N(1), D::N(4)])
                .tensor(f32s("kernel", &[1, 1, 3], &[1.0, 2.0, 3.0]))
                .tensor(raw(
                    "axis",
                    onnx_protobuf::tensor_proto::DataType::INT32,
                    &[],
                    vec![1, 0, 0, 0],
                ))
                .node(in_domain("com.microsoft", n))
                .output("y"),
        )
    };
    insta::assert_snapshot!(
        [
            model(node("ExpandDims", "x axis", "y")),
            model(node("Trilu", "x", "y").int("upper", 0)),
            model(
                node("FusedConv", "image kernel _ image", "y")
                    .text("activation", "LeakyRelu")
                    .with(AttributeProto {
                        floats: vec![0.25],
                        ..attribute("activation_params", AttributeType::FLOATS)
                    })
                    .ints("pads", &[1, 1])
            ),
            model(node("FusedConv", "image kernel", "y").text("activation", "Other")),
        ]
        .join("\n")
    );
}

#[test]
fn matrices_of_a_few_bits_are_read() {
    // One output of two blocks of two inputs: 1, 2 less 8 times 0.5, and 15, 0 less 3 times 2.
    let model = |zeros: &str| {
        outcome(
            &Model::new(17)
                .input("x", FLOAT, &[D::S("n"), D::N(4)])
                .tensor(raw("w", UINT8, &[1, 2, 1], vec![0x21, 0x0f]))
                .tensor(f32s("scales", &[2], &[0.5, 2.0]))
                .tensor(raw("zeros", UINT8, &[1, 1], vec![0x38]))
                .node(in_domain(
                    "com.microsoft",
                    node("MatMulNBits", &format!("x w scales {zeros}"), "y")
                        .int("K", 4)
                        .int("N", 1)
                        .int("bits", 4)
                        .int("block_size", 2),
                ))
                .output("y"),
        )
    };
    insta::assert_snapshot!([model("zeros"), model("_"), model("scales"), model("x")].join("\n"));
}

#[test]
fn integers_of_a_few_bits_are_bytes() {
    let of = |of_q: NodeProto| {
        outcome(
            &Model::new(21)
                .input("x", FLOAT, &[D::N(3)])
                .tensor(f32s("scale", &[], &[0.5]))
                .tensor(raw("zero", INT4, &[], vec![0x0e]))
                .tensor(raw("w", INT4, &[3], vec![0x87, 0x0f]))
                .tensor(raw("u", UINT4, &[3], vec![0x87, 0x0f]))
                .node(of_q)
                .node(node("DequantizeLinear", "q scale", "y"))
                .output("y"),
        )
    };
    insta::assert_snapshot!(
        [
            of(node("Identity", "w", "q")),
            of(node("Identity", "u", "q")),
            // Numbers become such integers as bytes that are clipped.
            of(node("QuantizeLinear", "x scale zero", "q")),
            // Arithmetic would be that of bytes.
            of(node("Add", "w w", "q")),
        ]
        .join("\n")
    );
}

#[test]
fn lookups_in_blocks_are_written_out() {
    let of = |ty, bytes: &[u8], dims: &[i64], bits: i64| {
        outcome(
            &Model::new(21)
                .input("i", INT64, &[D::N(2)])
                .tensor(raw("table", ty, dims, bytes.to_vec()))
                .tensor(f32s("scales", &[2, 1], &[0.5, 0.25]))
                .node(in_domain(
                    "com.microsoft",
                    node("GatherBlockQuantized", "table i scales", "y")
                        .int("bits", bits)
                        .int("block_size", 16),
                ))
                .output("y"),
        )
    };
    insta::assert_snapshot!(
        [
            of(UINT4, &[0x21, 0x43], &[2, 2], 4),
            of(UINT8, &[0x21, 0x43], &[2, 1], 4),
            of(UINT8, &[0x21, 0x43], &[2, 1], 8),
            of(UINT8, &[0x21, 0x43], &[2, 1], 3),
        ]
        .join("\n")
    );
}

#[test]
fn contributed_quantization_is_the_standard_one() {
    let model = Model::new(17)
        .input("x", FLOAT, &[D::N(2)])
        .tensor(f32s("scale", &[], &[0.5]))
        .tensor(raw("zero", UINT16, &[], vec![0, 128]))
        .node(in_domain(
            "com.microsoft",
            node("QuantizeLinear", "x scale zero", "q"),
        ))
        .node(in_domain(
            "com.microsoft",
            node("DequantizeLinear", "q scale zero", "y"),
        ))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn gelu_of_a_product_is_written_out() {
    let model = Model::new(17)
        .input("x", FLOAT, &[D::N(1), D::N(2)])
        .tensor(f32s("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]))
        .tensor(f32s("b", &[2], &[1.0, 2.0]))
        .node(in_domain(
            "com.microsoft",
            node("GemmFastGelu", "x w b", "y"),
        ))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn domains_of_the_default_name_are_one() {
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .node(in_domain("ai.onnx", node("Relu", "x", "a")))
        .node(in_domain("com.microsoft", node("Gelu", "a", "b")))
        .node(node("Gelu", "b", "y"))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn input_dimensions() {
    let model = Model::new(13)
        .input(
            "x",
            FLOAT,
            &[D::S("batch size"), D::S("7"), D::Unknown, D::N(0), D::S("")],
        )
        .input(
            "y",
            FLOAT,
            &[
                D::S("batch_size"),
                D::S("7"),
                D::S("batch size"),
                D::S("u0"),
            ],
        )
        .output("x")
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn initializers_that_are_inputs_are_constants() {
    let model = Model::new(7)
        .input("x", FLOAT, &[D::N(2)])
        .input("w", FLOAT, &[D::N(2)])
        .tensor(f32s("w", &[2], &[1.0, 2.0]))
        .node(node("Add", "x w", "y"))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn nodes_are_sorted_and_dead_ones_ignored() {
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .node(node("Tanh", "b", "y"))
        .node(node("NotAnOperator", "x", "dead"))
        .node(node("Abs", "a", "b"))
        .node(node("Relu", "x", "a"))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

/// `f(p, q) = LeakyRelu(p) + q`, with `alpha` from the call.
fn leaky_add(name: &str) -> FunctionProto {
    let alpha = AttributeProto {
        ref_attr_name: "slope".to_owned(),
        ..attribute("alpha", AttributeType::FLOAT)
    };
    FunctionProto {
        name: name.to_owned(),
        domain: "local".to_owned(),
        input: vec!["p".to_owned(), "q".to_owned()],
        output: vec!["r".to_owned()],
        attribute: vec!["slope".to_owned()],
        node: vec![
            node("LeakyRelu", "p", "t").with(alpha),
            node("Add", "t q", "r"),
        ],
        opset_import: vec![opset_of("", 16)],
        ..Default::default()
    }
}

#[test]
fn functions_are_inlined() {
    let model = Model::new(13)
        .import("local", 1)
        .function(leaky_add("f"))
        .input("x", FLOAT, &[D::N(2)])
        .node(in_domain(
            "local",
            node("f", "x x", "a").float("slope", 0.5),
        ))
        .node(in_domain("local", node("f", "a x", "y")))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn recursive_functions_are_refused() {
    let mut f = leaky_add("f");
    f.opset_import.push(opset_of("local", 1));
    f.node.push(in_domain("local", node("f", "r q", "s")));
    f.output = vec!["s".to_owned()];
    let model = Model::new(13)
        .import("local", 1)
        .function(f)
        .input("x", FLOAT, &[D::N(2)])
        .node(in_domain("local", node("f", "x x", "y")))
        .output("y");
    let text = outcome(&model);
    assert!(text.starts_with("Limit\n"), "{text}");
    assert!(
        text.contains("functions are nested deeper than 32 calls"),
        "{text}"
    );
}

fn branch(op: &str) -> GraphProto {
    GraphProto {
        node: vec![node(op, "x", "r")],
        output: vec![value_info("r", FLOAT, &[D::N(2)])],
        ..Default::default()
    }
}

#[test]
fn branches_of_constant_conditions_are_inlined() {
    let model = |condition: &str| {
        let chosen = node("If", condition, "y")
            .graph("then_branch", branch("Relu"))
            .graph("else_branch", branch("Abs"));
        outcome(
            &Model::new(13)
                .input("x", FLOAT, &[D::N(2)])
                .input("c", onnx_protobuf::tensor_proto::DataType::BOOL, &[])
                .tensor(raw(
                    "no",
                    onnx_protobuf::tensor_proto::DataType::BOOL,
                    &[],
                    vec![0],
                ))
                .node(chosen)
                .output("y"),
        )
    };
    insta::assert_snapshot!([model("no"), model("c")].join("\n"));
}

#[test]
fn optional_operands_stay_absent() {
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(2)])
        .tensor(f32s("six", &[], &[6.0]))
        .node(node("Clip", "x _ six", "a"))
        .node(node("Clip", "a _ _", "y"))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}

#[test]
fn shapes_feed_on_integers() {
    let model = Model::new(13)
        .input("x", INT64, &[D::S("n"), D::N(2)])
        .node(node("Shape", "x", "s"))
        .node(node("ConstantOfShape", "s", "y").tensor("value", i64s("", &[1], &[1])))
        .output("y");
    insta::assert_snapshot!(outcome(&model));
}
