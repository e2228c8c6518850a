//! The verifier: what it finds, each from the smallest graph that has it.

use lancet_ir::{Graph, Op, TensorType, Value, parse, verify};
use lancet_ops::{DType, Operator};

fn violations(graph: &Graph) -> String {
    match verify(graph) {
        Ok(()) => "none".to_owned(),
        Err(errors) => errors.iter().map(|e| format!("{e}\n")).collect(),
    }
}

fn of_text(text: &str) -> String {
    violations(&parse(text).unwrap_or_else(|e| panic!("{e}")))
}

#[test]
fn packed_weights_feed_linear_only() {
    let good = "graph @g(%x: f32[s, 8]) dims(s) {
        const @w: f32[4, 8] = random(seed = 1)
        %0 = convert @w : f32[4, 8]{bsr 4x1}
        %1 = linear %x, %0 : f32[s, 4]{panels}
        return %1
    }";
    assert_eq!(of_text(good), "none");
    insta::assert_snapshot!(of_text(&good.replace("return %1", "return %0")));
    insta::assert_snapshot!(of_text(
        "graph @g(%x: f32[4]) {
            %0 = relu %x : f32[4]{panels}
            %1 = relu %0 : f32[4]{dense}
            return %1
        }"
    ));
}

#[test]
fn names_are_unique() {
    let mut graph = Graph::new("g");
    let ty = || TensorType::fixed(DType::F32, &[2]);
    let x = graph.add_input("x", ty());
    let other = graph.add_input("x", ty());
    graph.add_output("y", x);
    graph.add_output("y", x);
    graph.add_output("y", other);
    insta::assert_snapshot!(violations(&graph));
}

#[test]
fn edges_lead_somewhere() {
    let mut graph = parse("graph @g(%x: f32[2]) {\n  %0 = relu %x\n  return %0\n}").expect("valid");
    let relu = graph.outputs()[0].value.node;
    graph.add_output(
        "z",
        Value {
            node: relu,
            result: 1,
        },
    );
    insta::assert_snapshot!(violations(&graph), @"graph: output `z` does not exist");
}

#[test]
fn stored_types_are_the_inferred_ones() {
    let text = "graph @g(%x: f32[2, 3], %y: f32[3, 2]) {\n  %0 = relu %x\n  return %0, %y\n}";
    let mut graph = parse(text).expect("valid");
    let (relu, y) = (graph.outputs()[0].value.node, graph.outputs()[1].value);
    assert_eq!(graph.op(relu).operator(), Some(Operator::Relu));
    graph.set_operand(relu, 0, Some(y)).expect("no cycle");
    insta::assert_snapshot!(violations(&graph), @"%0 = relu: relu result 0: stated f32[2, 3], inferred f32[3, 2]");
    graph.set_operand(relu, 0, None).expect("no cycle");
    insta::assert_snapshot!(violations(&graph));
}

#[test]
fn a_size_that_depends_on_data_may_be_known_better() {
    let text = "graph @g() dims(u0) {
        const @x: f32[3] = [1, 0, 2]
        %0 = dims [6] : i64[1]
        %1 = constant_of_shape %0 : f32[u0]
        return %1
    }";
    assert_eq!(of_text(text), "none");
    let graph = parse(text).expect("valid");
    assert!(
        graph
            .nodes()
            .iter()
            .any(|n| matches!(graph.op(*n), Op::Dims(_)))
    );
}

#[test]
fn graphs_inside_graphs_are_valid() {
    let text = "graph @g(%x: f32[2, 2], %c: bool[]) {
        %0 = if %c, %x, %x
          graph @then(%y: f32[2, 2]) { %0 = relu %y return %0 }
          graph @else(%y: f32[2, 2]) { return %y }
        return %0
    }";
    let mut graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(violations(&graph), "none");
    let node = graph.outputs()[0].value.node;
    let then = graph.regions_mut(node).remove(0);
    let x = Value {
        node: then.inputs()[0],
        result: 0,
    };
    let panels = lancet_ir::Op::Convert(lancet_ir::Layout::Panels);
    let node = then
        .add(panels, &[Some(x)])
        .expect("the type is not checked here");
    then.set_output(0, Value { node, result: 0 });
    insta::assert_snapshot!(violations(&graph));
}
