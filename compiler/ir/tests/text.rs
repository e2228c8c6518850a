//! Text prints and parses: what each construct looks like, and what mistakes look like.

use std::sync::Arc;

use lancet_ir::{
    Dim, Graph, Layout, NodeId, Op, PrintOptions, TensorType, Value, content_hash, parse,
    parse_with, print, print_with,
};
use lancet_ops::{DType, Tensor};

/// Text that prints as it stands.
fn assert_canonical(text: &str) {
    match parse(text) {
        Ok(graph) => assert_eq!(print(&graph), text),
        Err(e) => panic!("{e}"),
    }
}

fn value(node: NodeId) -> Value {
    Value { node, result: 0 }
}

#[test]
fn constants_print_as_they_stand() {
    assert_canonical(
        r#"graph @consts(%x: f32[batch, 2*seq + 1, 4]{panels}, %"1": i64[]) dims(batch, seq) {
  const @a: f32[] = 0.5
  const @b: f32[2, 3] = [[1.0, -2.5, inf], [nan, 1e-10, -inf]]
  const @c: bool[2] = [true, false]
  const @d: f16[2] = [0.099975586, -inf]
  const @"odd \"name\"\n": u64[1] = [18446744073709551615]
  const @w: i8[64, 32]{bsr 4x1} = random(seed = 1, sparsity = 0.9, block = 4x1)
  const @v: f32[8, 8] = random(seed = 2, range = 0.001..0.02, nm = 2:4)
  const @e: f64[0, 3] = []
  const @i: i32[3, 3] = eye
  const @f: u8[7] = full(3)
  %0 = dims [batch, 2*seq, -1, -9223372036854775808] : i64[4]
  return @a, @b as "b", @c, @d, @"odd \"name\"\n", @w, @v, @e, @i, @f, %0 as "output9", %x, %"1"
}
"#,
    );
}

#[test]
fn graphs_stand_inside_graphs() {
    assert_canonical(
        r#"graph @outer(%n: i64[], %x: f32[s, 4], %c: bool[]) dims(s, u0) {
  const @w: f32[4] = ones
  %0, %1 = loop %n, _, %x, @w {carried = 1}
    graph @body(%i: i64[], %go: bool[], %h: f32[s, 4], %w: f32[4]) dims(s) {
      const @w: f32[4] = [0.0, 1.0, 2.0, 3.0]
      %0 = if %go, %h, %h
        graph @then(%x: f32[a, 4]) dims(a) {
          %0 = relu %x : f32[a, 4]
          return %0
        }
        graph @else(%x: f32[b, 4]) dims(b) {
          return %x
        }
        : f32[s, 4]
      %1 = add %0, %w : f32[s, 4]
      %2 = add %1, @w : f32[s, 4]
      return %go, %2, %2
    }
    : f32[s, 4], f32[u0, s, 4]
  %2 = if %c, %0, %x
    graph @then(%x: f32[s, 4]) dims(s) {
      return %x as "named"
    }
    graph @else(%x: f32[s, 4]) dims(s) {
      return %x
    }
    : f32[s, 4]
  return %2, %1
}
"#,
    );
}

#[test]
fn mistakes_inside_graphs_have_a_place() {
    let text = "graph @g(%x: f32[2], %c: bool[]) {
  %0 = if %c, %x, %x
    graph @then(%y: f32[2]) {
      %0 = relu %x
      return %0
    }
    graph @else(%y: f32[3]) {
      return %y
    }
  return %0
}
"
    .to_owned();
    let sizes = text.replace("relu %x", "relu %y");
    let deep = "%0 = if %c graph @g(%c: bool[]) { ".repeat(20);
    let deep = format!("graph @g(%c: bool[]) {{ {deep}");
    let mistakes = [text, sizes, deep].map(|t| {
        parse(&t)
            .map(|g| print(&g))
            .expect_err("is wrong")
            .to_string()
    });
    insta::assert_snapshot!(mistakes.join("\n---\n"));
}

#[test]
fn text_may_be_written_loosely() {
    let graph = parse(
        "; a comment\ngraph @g() dims(b,a){const @w:f32[2,2]=[1,2,\n  3,4] ; another\n\
         %shape=dims [b*a+a-a] return %shape as \"s\",@w }",
    )
    .unwrap_or_else(|e| panic!("{e}"));
    insta::assert_snapshot!(print(&graph), @r#"
    graph @g() dims(a, b) {
      const @w: f32[2, 2] = [[1.0, 2.0], [3.0, 4.0]]
      %0 = dims [a*b] : i64[1]
      return %0 as "s", @w
    }
    "#);
}

#[test]
fn names_of_constants_are_made_unique() {
    let mut graph = Graph::new("g");
    for (i, name) in ["w", "w", "w.1", "", "c"].into_iter().enumerate() {
        let tensor = Arc::new(Tensor::scalar(i as i64));
        let v = graph.add_const(name, tensor);
        graph.set_node_name(v.node, "from\na file");
        graph.add_output(&format!("output{i}"), v);
    }
    let text = print(&graph);
    insta::assert_snapshot!(text, @r"
    graph @g() {
      const @w: i64[] = 0
      const @w.1: i64[] = 1
      const @w.1.1: i64[] = 2
      const @c: i64[] = 3
      const @c.1: i64[] = 4
      return @w, @w.1, @w.1.1, @c, @c.1
    }
    ");
    assert_canonical(&text);
    let options = PrintOptions { node_names: true };
    let text = print_with(&graph, options);
    assert!(text.contains("const @w: i64[] = 0  ; from\\na file\n"));
    assert_eq!(
        print(&parse(&text).expect("comments are skipped")),
        print(&graph)
    );
}

#[test]
fn weights_are_a_hash_that_a_resolver_finds() {
    let tensor = Arc::new(Tensor::new(
        vec![3, 7],
        (0..21).map(|i| i as f32).collect::<Vec<_>>(),
    ));
    let mut graph = Graph::new("g");
    let w = graph.add_const("w", tensor.clone());
    graph.add_output("y", w);
    let text = print(&graph);
    insta::assert_snapshot!(text, @r#"
    graph @g() {
      const @w: f32[3, 7] = hash(91c41b241a762b4c)
      return @w as "y"
    }
    "#);
    insta::assert_snapshot!(parse(&text).expect_err("no resolver"));
    let found = parse_with(&text, &mut |hash, _, _| {
        (hash == content_hash(&tensor)).then(|| tensor.clone())
    });
    assert_eq!(print(&found.expect("resolved")), text);
}

#[test]
fn symbols_that_inference_made_up_are_numbered_anew() {
    let text = |first: &str, second: &str| {
        let mut graph = Graph::new("g");
        let batch = Dim::symbol("u1");
        graph.add_input("x", TensorType::new(DType::F32, vec![batch.clone()]));
        for dims in [vec![Dim::symbol(second), batch], vec![Dim::symbol(first)]] {
            let node = graph.add(Op::Dims(dims), &[]).expect("valid");
            graph.add_output("y", value(node));
        }
        print(&graph)
    };
    assert_eq!(text("u7", "u3"), text("u3", "u10"));
    insta::assert_snapshot!(text("u7", "u3"));
}

#[test]
fn what_no_output_needs_is_not_printed() {
    let text = "graph @g() {\n  const @a: i64[] = 1\n  return @a\n}\n";
    let mut graph = parse(text).expect("valid");
    graph
        .add(Op::Dims(vec![Dim::symbol("unused")]), &[])
        .expect("valid");
    graph.add_const("b", Arc::new(Tensor::scalar(2i64)));
    assert_eq!(print(&graph), text);
    graph.sweep();
    assert_eq!(print(&graph), text);
}

#[test]
fn layouts_print_and_parse() {
    for layout in [
        "",
        "{panels}",
        "{dense}",
        "{unstructured}",
        "{bsr 16x1}",
        "{nm 2:4}",
    ] {
        assert_canonical(&format!(
            "graph @g() {{\n  const @a: f32[2, 2]{layout} = zeros\n  return @a\n}}\n"
        ));
    }
    let graph = parse("graph @g(%x: f32[2]{row_major}) {\n  return %x\n}\n").expect("valid");
    assert_eq!(graph.ty(value(graph.inputs()[0])).layout, Layout::RowMajor);
}

/// The messages for a body of statements.
fn errors(body: &str) -> String {
    let text = format!("graph @g(%x: f32[s, 2]) dims(s) {{\n{body}\n}}\n");
    parse(&text).map_or_else(|e| e.to_string(), |_| "no error".to_owned())
}

#[test]
fn mistakes_show_line_column_and_caret() {
    let bodies = [
        "  %0 = matmull %x, %x : f32[s, 2]\n  %1 = relu %0\n  return %1, %2",
        "  const @w: f32[2] = [1, 2, 3]\n  const @v: i8[2] = [1, 200]\n  const @u: f32[t] = zeros\n  return",
        "  %0 = softmax %x {axs = 1}\n  %1 = softmax %x {axis = 1.5}\n  %0 = dims [n]\n  return \"a",
        "  const @w: f32[1000000, 1000000] = zeros\n  const @r: f32[2] = random(range = 0..1)\n  \
         const @q: i8[2] = random(seed = 1, range = 0..1000)\n  $",
        "  %0, %1 = relu %x\n  %2 = add %x\n  %3 = view %x\n  %4 = dims [1] : i64[2]",
    ];
    let mut shown: Vec<String> = bodies.iter().map(|b| errors(b)).collect();
    for text in ["", "graph @g(%x f32[2]) {\n}"] {
        shown.push(parse(text).expect_err("not a graph").to_string());
    }
    insta::assert_snapshot!(shown.join("\n\n"));
}

#[test]
fn nesting_is_limited() {
    let deep = "[".repeat(100_000);
    let message = errors(&format!("  const @w: f32[1] = {deep}\n  return"));
    assert!(message.contains("nested at most"), "{message}");
}

#[test]
fn one_run_reports_a_limited_number_of_mistakes() {
    let many = "  %0 = nothing\n".repeat(1000);
    let text = format!("graph @g() {{\n{many}}}");
    let error = parse(&text).expect_err("no operator");
    assert_eq!(error.diagnostics().len(), 20);
}
