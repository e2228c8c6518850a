//! `If`, `Loop` and `Scan`: what they compute by the evaluator and by the compiled plan, and what is refused.

use lancet::onnx::{ImportOptions, import_bytes};
use lancet::{CompileOptions, Model as Compiled, ModelOptions, Session, Tensor};
use lancet_artifact::{Plan, Port, Step, StepKind};
use lancet_ir::{Graph, parse_with, print};
use onnx_protobuf::tensor_proto::DataType::{BOOL, FLOAT, INT4, INT64};
use onnx_protobuf::{GraphProto, NodeProto};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{D, Model, With as _, f32s, i64s, node, raw, value_info};

/// A graph of nodes with the inputs and outputs of these names.
fn graph(inputs: &str, nodes: Vec<NodeProto>, outputs: &str) -> GraphProto {
    let named = |names: &str| {
        let names = names.split_whitespace();
        names.map(|n| value_info(n, FLOAT, &[])).collect()
    };
    GraphProto {
        name: "inner".to_owned(),
        input: named(inputs),
        node: nodes,
        output: named(outputs),
        ..Default::default()
    }
}

fn import(model: &Model) -> Graph {
    import_bytes(&model.bytes(), None, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn refusal(model: &Model) -> String {
    match import_bytes(&model.bytes(), None, &ImportOptions::default()) {
        Ok(graph) => panic!("{}", print(&graph)),
        Err(errors) => errors.to_string(),
    }
}

fn compiled(graph: Graph, options: &ModelOptions) -> Compiled {
    let compiled = lancet::compile(graph, &CompileOptions::default(), &mut |_, _| {});
    let compiled = compiled.unwrap_or_else(|e| panic!("{e}"));
    compiled
        .into_model(options)
        .unwrap_or_else(|e| panic!("{e}"))
}

/// The outputs, which the evaluator and the plan agree on; the graph's text is a graph too.
fn outputs(model: &Model, inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
    let graph = import(model);
    let text = print(&graph);
    let again = parse_with(&text, &mut |_, dtype, shape| {
        Some(Tensor::zeros(dtype, shape).into())
    });
    assert_eq!(
        print(&again.unwrap_or_else(|e| panic!("{e}\n{text}"))),
        text
    );
    let expected = lancet_ir::eval(&graph, inputs).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    let model = compiled(graph, &ModelOptions::default());
    let found = Session::new(&model)
        .run(&views)
        .unwrap_or_else(|e| panic!("{e}\n{text}"));
    let tensors = |list: Vec<(String, Tensor)>| list.into_iter().map(|(_, t)| t).collect();
    let (found, expected): (Vec<Tensor>, Vec<Tensor>) = (tensors(found), tensors(expected));
    assert_eq!(found, expected, "{text}");
    found
}

fn floats(data: &[f32]) -> Tensor {
    Tensor::new(vec![data.len()], data.to_vec())
}

#[test]
fn a_branch_is_chosen_by_data() {
    // The results have sizes of their own, and one branch gives what is defined outside.
    let model = Model::new(13)
        .input("c", BOOL, &[])
        .input("x", FLOAT, &[D::S("n")])
        .node(node("Add", "x x", "d"))
        .node(
            node("If", "c", "y z")
                .graph(
                    "then_branch",
                    graph(
                        "",
                        vec![
                            node("Concat", "x d", "a").int("axis", 0),
                            node("Neg", "x", "b"),
                        ],
                        "a b",
                    ),
                )
                .graph("else_branch", graph("", vec![node("Abs", "d", "q")], "d q")),
        )
        .output("y")
        .output("z");
    let x = floats(&[1.0, -2.0]);
    let run = |c: bool| outputs(&model, &[("c", Tensor::scalar(c)), ("x", x.clone())]);
    assert_eq!(
        run(true),
        [floats(&[1.0, -2.0, 2.0, -4.0]), floats(&[-1.0, 2.0])]
    );
    assert_eq!(run(false), [floats(&[2.0, -4.0]), floats(&[2.0, 4.0])]);
}

/// `h, all` of a loop that adds `x` and the number of the iteration to `h`.
fn adding(condition: &str) -> Model {
    let body = graph(
        "i go h",
        vec![
            node("Cast", "i", "number").int("to", 1),
            node("Add", "h x", "sum"),
            node("Add", "sum number", "next"),
            node("Identity", "go", "go_on"),
            node("Mul", "next next", "square"),
        ],
        "go_on next square",
    );
    Model::new(13)
        .input("n", INT64, &[])
        .input("c", BOOL, &[])
        .input("x", FLOAT, &[D::S("n")])
        .node(node("Loop", &format!("n {condition} x"), "h all").graph("body", body))
        .output("h")
        .output("all")
}

#[test]
fn a_loop_carries_and_collects() {
    let x = floats(&[1.0, 2.0]);
    let run = |condition: &str, n: i64, c: bool| {
        let inputs = [
            ("n", Tensor::scalar(n)),
            ("c", Tensor::scalar(c)),
            ("x", x.clone()),
        ];
        outputs(&adding(condition), &inputs)
    };
    let three = [
        floats(&[7.0, 11.0]),
        Tensor::new(vec![3, 2], vec![4.0f32, 16.0, 16.0, 49.0, 49.0, 121.0]),
    ];
    let none = [x.clone(), Tensor::new(vec![0, 2], Vec::<f32>::new())];
    assert_eq!(run("_", 3, true)[0], floats(&[7.0, 11.0]));
    assert_eq!(run("c", 3, true)[1].shape(), three[1].shape());
    for (n, c) in [(0, true), (-1, true), (3, false)] {
        assert_eq!(run("c", n, c), none);
    }
}

#[test]
fn what_is_carried_may_grow() {
    let body = graph(
        "i go h",
        vec![
            node("Concat", "h x", "next").int("axis", 0),
            node("Identity", "go", "go_on"),
            node("Shape", "next", "size"),
        ],
        "go_on next size",
    );
    let model = Model::new(13)
        .input("n", INT64, &[])
        .input("x", FLOAT, &[D::S("n")])
        .node(node("Loop", "n _ x", "h sizes").graph("body", body))
        .output("h")
        .output("sizes");
    let found = outputs(
        &model,
        &[("n", Tensor::scalar(2i64)), ("x", floats(&[1.0, 2.0]))],
    );
    let sizes = Tensor::new(vec![2, 1], vec![4i64, 6]);
    assert_eq!(found, [floats(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), sizes]);
}

#[test]
fn graphs_read_what_is_around_all_of_them() {
    let inner = graph(
        "j go2 k",
        vec![
            node("Add", "k x", "k1"),
            node("Mul", "k1 h", "k2"),
            node("Identity", "go2", "go3"),
        ],
        "go3 k2",
    );
    let body = graph(
        "i go h",
        vec![
            node("Identity", "go", "go_on"),
            node("If", "c", "next")
                .graph(
                    "then_branch",
                    graph(
                        "",
                        vec![node("Loop", "i _ d", "r").graph("body", inner)],
                        "r",
                    ),
                )
                .graph("else_branch", graph("", vec![node("Sub", "h w", "r")], "r")),
        ],
        "go_on next",
    );
    let model = Model::new(13)
        .input("n", INT64, &[])
        .input("c", BOOL, &[])
        .input("x", FLOAT, &[D::S("n")])
        .tensor(f32s("w", &[1], &[0.5]))
        .node(node("Add", "x x", "d"))
        .node(node("Loop", "n _ x", "y").graph("body", body))
        .output("y");
    let x = floats(&[1.0, 2.0]);
    let run = |n: i64, c: bool| {
        let inputs = [
            ("n", Tensor::scalar(n)),
            ("c", Tensor::scalar(c)),
            ("x", x.clone()),
        ];
        outputs(&model, &inputs).remove(0)
    };
    assert_eq!(run(2, false), floats(&[0.0, 1.0]));
    // The first iteration gives d, the second (d + x) h.
    assert_eq!(run(2, true), floats(&[6.0, 24.0]));
}

#[test]
fn few_iterations_of_a_known_number_are_walked_in_place() {
    let model = |n: i64| {
        let body = graph(
            "i go h",
            vec![
                node("Add", "h x", "next"),
                node("Less", "i last", "go_on"),
                node("Add", "next next", "twice"),
            ],
            "go_on next twice",
        );
        Model::new(13)
            .input("x", FLOAT, &[D::N(1)])
            .tensor(i64s("n", &[], &[n]))
            .tensor(i64s("last", &[], &[1]))
            .node(node("Loop", "n _ x", "h all").graph("body", body))
            .output("h")
            .output("all")
    };
    // The condition ends it after the iterations 0 and 1, or else the number does.
    for (n, h, all) in [
        (3, 3.0, vec![4.0f32, 6.0]),
        (1, 2.0, vec![4.0]),
        (1 << 60, 3.0, vec![4.0, 6.0]),
    ] {
        let model = model(n);
        let shape = vec![all.len(), 1];
        let expected = [floats(&[h]), Tensor::new(shape, all)];
        assert_eq!(outputs(&model, &[("x", floats(&[1.0]))]), expected);
        let has_loop = print(&import(&model)).contains("loop");
        assert_eq!(has_loop, 1000 < n, "{n}");
    }
}

#[test]
fn a_sequence_that_a_loop_makes_is_one_tensor() {
    let model = |axis: i64, new_axis: i64| {
        let body = graph(
            "i go s",
            vec![
                node("Cast", "i", "number").int("to", 1),
                node("Add", "x number", "a"),
                node("SequenceInsert", "s a", "s1"),
                node("SequenceInsert", "s1 x", "s2"),
                node("Identity", "go", "go_on"),
            ],
            "go_on s2",
        );
        let joined = node("ConcatFromSequence", "all", "y").int("axis", axis);
        Model::new(13)
            .input("n", INT64, &[])
            .input("x", FLOAT, &[D::N(1), D::S("k")])
            .tensor(i64s("last", &[], &[-2]))
            .node(node("SequenceEmpty", "", "none"))
            .node(node("Loop", "n _ none", "all").graph("body", body))
            .node(joined.int("new_axis", new_axis))
            .node(node("SequenceLength", "all", "length"))
            .node(node("SequenceAt", "all last", "z"))
            .output("y")
            .output("length")
            .output("z")
    };
    let inputs = [
        ("n", Tensor::scalar(2i64)),
        ("x", Tensor::new(vec![1, 2], vec![1.0f32, 5.0])),
    ];
    let parts = [1.0f32, 5.0, 1.0, 5.0, 2.0, 6.0, 1.0, 5.0];
    for (axis, new_axis, shape) in [
        (0, 0, vec![4, 2]),
        (-1, 0, vec![1, 8]),
        (0, 1, vec![4, 1, 2]),
    ] {
        let found = outputs(&model(axis, new_axis), &inputs);
        assert_eq!(found[0], Tensor::new(shape, parts.to_vec()));
        assert_eq!(found[1], Tensor::scalar(4i64));
        assert_eq!(found[2], Tensor::new(vec![1, 2], vec![2.0f32, 6.0]));
    }
}

#[test]
fn a_scan_reads_and_collects_along_any_axis() {
    let body = graph(
        "a e",
        vec![node("Add", "a e", "s"), node("Neg", "s", "m")],
        "s m",
    );
    let model = Model::new(13)
        .input("start", FLOAT, &[D::N(1)])
        .input("x", FLOAT, &[D::N(1), D::S("n")])
        .node(
            node("Scan", "start x", "sum all")
                .int("num_scan_inputs", 1)
                .ints("scan_input_axes", &[-1])
                .ints("scan_input_directions", &[1])
                .ints("scan_output_axes", &[1])
                .ints("scan_output_directions", &[1])
                .graph("body", body),
        )
        .output("sum")
        .output("all");
    let run = |x: &[f32]| {
        let x = Tensor::new(vec![1, x.len()], x.to_vec());
        outputs(&model, &[("start", floats(&[100.0])), ("x", x)])
    };
    let all = Tensor::new(vec![1, 3], vec![-106.0f32, -105.0, -103.0]);
    assert_eq!(run(&[1.0, 2.0, 3.0]), [floats(&[106.0]), all]);
    assert_eq!(run(&[])[0], floats(&[100.0]));
}

#[test]
fn the_first_form_of_scan_has_a_batch() {
    let body = graph(
        "a e",
        vec![node("Add", "a e", "s"), node("Neg", "s", "m")],
        "s m",
    );
    let model = Model::new(8)
        .input("start", FLOAT, &[D::S("b"), D::N(1)])
        .input("x", FLOAT, &[D::S("b"), D::S("n"), D::N(1)])
        .node(
            node("Scan", "_ start x", "sum all")
                .int("num_scan_inputs", 1)
                .ints("directions", &[1])
                .graph("body", body),
        )
        .output("sum")
        .output("all");
    let found = outputs(
        &model,
        &[
            ("start", Tensor::new(vec![2, 1], vec![10.0f32, 20.0])),
            ("x", Tensor::new(vec![2, 2, 1], vec![1.0f32, 2.0, 3.0, 4.0])),
        ],
    );
    let all = Tensor::new(vec![2, 2, 1], vec![-12.0f32, -13.0, -24.0, -27.0]);
    assert_eq!(found, [Tensor::new(vec![2, 1], vec![13.0f32, 27.0]), all]);
}

#[test]
fn constants_outside_are_constants_inside() {
    let body = graph(
        "i go h",
        vec![
            node("MatMul", "h w", "p"),
            node("Add", "p b", "next"),
            node("Identity", "go", "go_on"),
        ],
        "go_on next",
    );
    let weight: Vec<f32> = (0..256).map(|i| i as f32 / 256.0).collect();
    let model = Model::new(13)
        .input("n", INT64, &[])
        .input("x", FLOAT, &[D::S("n"), D::N(16)])
        .tensor(f32s("v", &[16, 16], &weight))
        .tensor(f32s("b", &[16], &weight[..16]))
        .node(node("Transpose", "v", "w"))
        .node(node("Loop", "n _ x", "y").graph("body", body))
        .output("y");
    let model = compiled(import(&model), &ModelOptions::default());
    let kinds: Vec<&str> = model
        .plan()
        .all_steps()
        .iter()
        .map(|s| s.kind.name())
        .collect();
    assert_eq!(kinds, ["loop", "to_panels", "linear", "from_panels"]);
    let StepKind::Loop { body, .. } = &model.plan().steps[0].kind else {
        panic!("{kinds:?}");
    };
    assert_eq!(body.matrices.len(), 1);
}

#[test]
fn loops_end() {
    let body = |op: &str| {
        graph(
            "i go",
            vec![node("Identity", "go", "go_on"), node(op, "x", "y")],
            "go_on y",
        )
    };
    let model = |op: &str| {
        Model::new(13)
            .input("c", BOOL, &[])
            .input("x", FLOAT, &[D::S("n")])
            .node(node("Loop", "_ c", "all").graph("body", body(op)))
            .output("all")
    };
    let options = ModelOptions {
        max_iterations: 100,
        ..ModelOptions::default()
    };
    let run = |options: &ModelOptions, n: usize| {
        let model = compiled(import(&model("Neg")), options);
        let (c, x) = (
            Tensor::scalar(true),
            Tensor::zeros(lancet_ops::DType::F32, vec![n]),
        );
        let ran = Session::new(&model).run(&[("c", c.view()), ("x", x.view())]);
        ran.expect_err("the condition holds for ever").to_string()
    };
    let text = run(&options, 1);
    assert!(
        text.contains("loops of one request run more than 100 iterations"),
        "{text}"
    );
    let options = ModelOptions {
        max_arena_bytes: 1 << 20,
        ..ModelOptions::default()
    };
    let text = run(&options, 1000);
    assert!(
        text.contains("a loop collects more than 1048576 bytes"),
        "{text}"
    );
}

#[test]
fn what_an_iteration_collects_keeps_its_shape() {
    let body = graph(
        "i go h",
        vec![
            node("Concat", "h x", "next").int("axis", 0),
            node("Identity", "go", "go_on"),
        ],
        "go_on next next",
    );
    let model = Model::new(13)
        .input("n", INT64, &[])
        .input("x", FLOAT, &[D::S("n")])
        .node(node("Loop", "n _ x", "h all").graph("body", body))
        .output("all");
    let model = compiled(import(&model), &ModelOptions::default());
    let (n, x) = (Tensor::scalar(2i64), floats(&[1.0]));
    let found = Session::new(&model).run(&[("n", n.view()), ("x", x.view())]);
    let text = found.expect_err("shapes differ").to_string();
    assert!(
        text.contains("give f32[2] and f32[3] for one result"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_run_is_refused() {
    let branch = |op: &str| graph("", vec![node(op, "x", "r")], "r");
    let squeezed = graph("", vec![node("Squeeze", "x", "r")], "r");
    let chosen = |then: GraphProto, otherwise: GraphProto| {
        Model::new(13)
            .input("c", BOOL, &[])
            .input("x", FLOAT, &[D::N(1), D::N(2)])
            .node(
                node("If", "c", "y")
                    .graph("then_branch", then)
                    .graph("else_branch", otherwise),
            )
            .output("y")
    };
    let looped = |body: GraphProto| {
        Model::new(13)
            .input("n", INT64, &[])
            .input("x", FLOAT, &[D::N(2)])
            .node(node("Loop", "n _ x", "y").graph("body", body))
            .output("y")
    };
    let texts = [
        refusal(&chosen(branch("Neg"), squeezed)),
        refusal(&chosen(branch("Neg"), branch("Unknown"))),
        refusal(&looped(graph(
            "i go h",
            vec![
                node("Cast", "h", "k").int("to", 7),
                node("Identity", "go", "go_on"),
            ],
            "go_on k",
        ))),
        refusal(&looped(graph(
            "i go",
            vec![node("Identity", "go", "go_on")],
            "go_on",
        ))),
        refusal(&looped(graph(
            "i go h",
            vec![node("Identity", "go", "go_on")],
            "go_on nothing",
        ))),
    ];
    insta::assert_snapshot!(texts.join("\n---\n"));
}

#[test]
fn integers_of_a_few_bits_are_clipped_inside_and_stay_there() {
    let chosen = |then: Vec<NodeProto>| {
        Model::new(21)
            .input("c", BOOL, &[])
            .input("x", FLOAT, &[D::N(2)])
            .tensor(f32s("scale", &[], &[0.5]))
            .tensor(raw("zero", INT4, &[], vec![0x0e]))
            .node(
                node("If", "c", "y")
                    .graph("then_branch", graph("", then, "r"))
                    .graph("else_branch", graph("", vec![node("Neg", "x", "r")], "r")),
            )
            .output("y")
    };
    let quantize = node("QuantizeLinear", "x scale zero", "q");
    let model = chosen(vec![
        quantize.clone(),
        node("DequantizeLinear", "q scale zero", "r"),
    ]);
    let run = |c: bool| {
        let inputs = [("c", Tensor::scalar(c)), ("x", floats(&[10.0, -1.0]))];
        outputs(&model, &inputs)
    };
    assert_eq!(run(true), [floats(&[4.5, -1.0])]);
    assert_eq!(run(false), [floats(&[-10.0, 1.0])]);
    let given = refusal(&chosen(vec![quantize, node("Identity", "q", "r")]));
    assert!(given.contains("int4"), "{given}");
}

#[test]
fn graphs_inside_each_other_have_a_limit() {
    let nested = |depth: usize| {
        let mut inner = graph("", vec![node("Neg", "x", "r")], "r");
        for _ in 0..depth {
            let chosen = node("If", "c", "r").graph("then_branch", inner.clone());
            inner = graph("", vec![chosen.graph("else_branch", inner)], "r");
        }
        Model::new(13)
            .input("c", BOOL, &[])
            .input("x", FLOAT, &[D::N(1)])
            .node(inner.node.remove(0))
            .output("r")
    };
    let model = nested(5);
    assert_eq!(
        outputs(
            &model,
            &[("c", Tensor::scalar(true)), ("x", floats(&[1.0]))]
        ),
        [floats(&[-1.0])]
    );
    let text = refusal(&nested(13));
    assert!(
        text.contains("more than 12 loops and branches inside each other"),
        "{text}"
    );
}

#[test]
fn a_condition_of_constants_is_computed() {
    let chosen = node("If", "c", "y")
        .graph("then_branch", graph("", vec![node("Neg", "x", "r")], "r"))
        .graph(
            "else_branch",
            graph("", vec![node("Unknown", "x", "r")], "r"),
        );
    let model = Model::new(13)
        .input("x", FLOAT, &[D::N(1)])
        .tensor(f32s("a", &[], &[0.5]))
        .tensor(raw("f", BOOL, &[], vec![0]))
        .node(node("Greater", "a a", "g"))
        .node(node("Or", "g f", "o"))
        .node(node("Not", "o", "c"))
        .node(chosen)
        .output("y");
    assert_eq!(outputs(&model, &[("x", floats(&[1.0]))]), [floats(&[-1.0])]);
}

/// A loop around a branch, with a product in it.
fn nested() -> Model {
    let product = graph("", vec![node("MatMul", "h w", "r")], "r");
    let body = graph(
        "i go h",
        vec![
            node("Identity", "go", "go_on"),
            node("If", "c", "next")
                .graph("then_branch", product)
                .graph("else_branch", graph("", vec![node("Add", "h x", "r")], "r")),
        ],
        "go_on next",
    );
    Model::new(13)
        .input("n", INT64, &[])
        .input("c", BOOL, &[])
        .input("x", FLOAT, &[D::S("n"), D::N(4)])
        .tensor(f32s("w", &[4, 4], &[0.5; 16]))
        .node(node("Loop", "n _ x", "y").graph("body", body))
        .output("y")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_plans_are_errors_or_run(changes in vec((any::<Index>(), any::<u8>()), 1..4)) {
        let graph = lancet::compile(import(&nested()), &CompileOptions::default(), &mut |_, _| {});
        let graph = graph.expect("the model compiles");
        let (plan, weights) = graph.lower().expect("the model lowers");
        let mut bytes = plan.to_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let options = ModelOptions {
            threads: Some(1),
            max_arena_bytes: 1 << 20,
            max_iterations: 1000,
            ..ModelOptions::default()
        };
        let plan = Plan::from_bytes(&bytes);
        if let Some(Ok(model)) = plan.ok().map(|p| Compiled::from_parts(p, &weights, &options)) {
            let (n, c) = (Tensor::scalar(2i64), Tensor::scalar(true));
            let x = Tensor::new(vec![3, 4], vec![1.0f32; 12]);
            let inputs = [("n", n.view()), ("c", c.view()), ("x", x.view())];
            let _ = Session::new(&model).run(&inputs);
        }
    }
}

#[test]
fn plans_inside_plans_are_checked() {
    let graph = lancet::compile(
        import(&nested()),
        &CompileOptions::default(),
        &mut |_, _| {},
    );
    let graph = graph.expect("the model compiles");
    let (plan, weights) = graph.lower().expect("the model lowers");
    let bytes = weights.to_vec().len() as u64;
    let changed = |change: &dyn Fn(&mut Plan, &mut Step)| {
        let mut plan = plan.clone();
        let at = plan.steps.iter().position(|s| s.kind.name() == "loop");
        let at = at.expect("the plan has a loop");
        let mut step = plan.steps[at].clone();
        change(&mut plan, &mut step);
        plan.steps[at] = step;
        match plan.validate(bytes) {
            Ok(()) => "valid".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let body = |step: &mut Step, change: &dyn Fn(&mut Plan)| match &mut step.kind {
        StepKind::Loop { body, .. } => change(body),
        other => panic!("{other:?}"),
    };
    assert_eq!(changed(&|_, _| {}), "valid");
    let texts = [
        changed(&|_, step| step.inputs[2] = None),
        changed(&|_, step| {
            step.inputs.pop();
        }),
        changed(&|_, step| {
            step.outputs.clear();
        }),
        changed(&|_, step| {
            if let StepKind::Loop { n_carried, .. } = &mut step.kind {
                *n_carried = u32::MAX;
            }
        }),
        changed(&|_, step| body(step, &|plan| plan.outputs[0].value = 1000)),
        changed(&|_, step| {
            body(step, &|plan| {
                let port = |name: &str, plan: &Plan| Port {
                    name: name.to_owned(),
                    value: plan.inputs[1].value,
                };
                for _ in 0..20 {
                    let mut step = plan.steps[0].clone();
                    step.inputs = plan.inputs.iter().map(|p| Some(p.value)).collect();
                    step.kind = StepKind::Loop {
                        body: Box::new(plan.clone()),
                        n_carried: 0,
                    };
                    plan.outputs = vec![port("a", plan), port("b", plan)];
                    plan.steps = vec![step];
                }
            })
        }),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}
