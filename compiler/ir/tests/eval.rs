//! The evaluator: symbols, views, visited values and errors.

use lancet_ir::{eval, eval_with, parse};
use lancet_ops::Tensor;

fn f32s(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(
        shape.to_vec(),
        (0..n).map(|i| i as f32 - 2.0).collect::<Vec<_>>(),
    )
}

fn run(text: &str, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, String> {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    eval(&graph, inputs).map_err(|e| e.to_string())
}

#[test]
fn symbols_are_solved_from_inputs_in_any_order() {
    let text = "graph @g(%x: f32[2*s + b*b - b*b, b], %y: f32[b]) dims(b, s) {
        %0 = dims [s, b*s, 7] : i64[3]
        return %0 as \"sizes\", %0, %y
    }";
    let outputs = run(text, &[("y", f32s(&[3])), ("x", f32s(&[10, 3]))]).expect("sizes fit");
    let sizes = Tensor::new(vec![3], vec![5i64, 15, 7]);
    assert_eq!(outputs[0], ("sizes".to_owned(), sizes.clone()));
    assert_eq!(outputs[1], ("output1".to_owned(), sizes));
    assert_eq!(outputs[2].1, f32s(&[3]));
    let odd = run(text, &[("y", f32s(&[3])), ("x", f32s(&[9, 3]))]);
    insta::assert_snapshot!(odd.expect_err("9 is odd"), @"input `x`: expected f32[2*s, b] where b = 3, found f32[9, 3]");
    let other = run(text, &[("y", f32s(&[4])), ("x", f32s(&[10, 3]))]);
    insta::assert_snapshot!(other.expect_err("two sizes of b"), @"input `y`: expected f32[b] where b = 3, found f32[4]");
}

#[test]
fn sizes_that_depend_on_data_are_bound_when_they_are_computed() {
    let text = "graph @g(%x: f32[s]) dims(s, n) {
        %size = dims [n] : i64[1]
        %where = non_zero %x : i64[1, n]
        %flat = view %where : i64[n]
        return %size, %flat
    }";
    let outputs = run(text, &[("x", f32s(&[5]))]).expect("n is bound");
    assert_eq!(outputs[0].1, Tensor::new(vec![1], vec![4i64]));
    assert_eq!(outputs[1].1, Tensor::new(vec![4], vec![0i64, 1, 3, 4]));
    let text = "graph @g() dims(n) {\n  %0 = dims [n, 2*n] : i64[2]\n  return %0\n}";
    insta::assert_snapshot!(run(text, &[]).expect_err("nothing binds n"), @"%0 = dims: the sizes n, 2*n are not known");
}

#[test]
fn views_broadcasts_and_layouts() {
    let text = "graph @g(%x: f32[s, 2]) dims(s) {
        %0 = view %x : f32[2*s]
        %1 = broadcast %0 : f32[2, 2*s]
        %2 = convert %1 : f32[2, 2*s]{panels}
        %3 = clip %2, _, %4 : f32[2, 2*s]{panels}
        return %3
    }"
    .replace("%4", "@c")
    .replace(
        "{\n        %0",
        "{\n        const @c: f32[] = 0.5\n        %0",
    );
    let outputs = run(&text, &[("x", f32s(&[2, 2]))]).expect("valid");
    let row = [-2.0f32, -1.0, 0.0, 0.5];
    assert_eq!(outputs[0].1, Tensor::new(vec![2, 4], [row, row].concat()));
}

#[test]
fn every_computed_value_is_visited_once() {
    let text = "graph @g(%x: f32[4]) {
        const @w: f32[4] = ones
        %0 = add %x, @w : f32[4]
        %a, %b = split %0 {num_outputs = 2} : f32[2], f32[2]
        return %b
    }";
    let graph = parse(text).expect("valid");
    let names = lancet_ir::value_names(&graph);
    let mut seen = Vec::new();
    let outputs = eval_with(&graph, &[("x", f32s(&[4]))], &mut |value, tensor| {
        seen.push((names[&value].clone(), tensor.to_f32_vec()));
    });
    assert!(outputs.is_ok());
    let seen: Vec<_> = seen
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_slice()))
        .collect();
    assert_eq!(
        seen,
        [
            ("%0", &[-1.0, 0.0, 1.0, 2.0][..]),
            ("%1", &[-1.0, 0.0]),
            ("%2", &[1.0, 2.0])
        ]
    );
}

#[test]
fn errors_name_what_is_wrong() {
    let text = "graph @g(%x: f32[a], %y: f32[b]) dims(a, b) {\n  %0 = add %x, %y\n  return %0\n}";
    let inputs = |a, b| [("x", f32s(&[a])), ("y", f32s(&[b]))];
    assert!(run(text, &inputs(3, 3)).is_ok());
    insta::assert_snapshot!(run(text, &inputs(3, 4)).expect_err("sizes differ"));
    insta::assert_snapshot!(run(text, &inputs(3, 4)[..1]).expect_err("no y"), @"input `y` is missing");
    let more = [("x", f32s(&[1])), ("y", f32s(&[1])), ("z", f32s(&[1]))];
    insta::assert_snapshot!(run(text, &more).expect_err("no such input"), @"`z` is not an input, or is given twice");
    let typed = [("x", Tensor::scalar(1i64)), ("y", f32s(&[1]))];
    insta::assert_snapshot!(run(text, &typed).expect_err("wrong type"), @"input `x`: expected f32[a], found i64[]");
}
