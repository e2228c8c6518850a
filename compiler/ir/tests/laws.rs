//! Laws that text, verifier and evaluator keep, over generated graphs.

use std::collections::HashMap;
use std::sync::Arc;

use lancet_ir::{
    Constant, Dim, EvalError, Generator, Graph, Layout, Op, Pattern, Random, TensorType, Value,
    content_hash, eval, parse_limited, parse_with, print, verify,
};
use lancet_ops::{Attribute, Attributes, DType, Operator, Tensor};
use proptest::prelude::*;

/// Numbers that decide what is built; zeros where they have run out.
struct Tape<'a>(std::slice::Iter<'a, u16>);

impl Tape<'_> {
    fn below(&mut self, n: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % n
    }
}

fn dims(sizes: &[i64]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::fixed(d)).collect()
}

/// A well-typed graph: each step proposes an operator on values so far, and those that do not fit are left out.
fn build(choices: &[u16]) -> Graph {
    let mut tape = Tape(choices.iter());
    let mut graph = Graph::new("generated");
    let (b, s) = (Dim::symbol("b"), Dim::symbol("odd size"));
    let mut pool = vec![
        graph.add_input(
            "x",
            TensorType::new(DType::F32, vec![s.clone(), Dim::fixed(4)]),
        ),
        graph.add_input(
            "y z",
            TensorType::new(DType::F32, vec![b, s.clone(), Dim::fixed(4)]),
        ),
        graph.add_input("7", TensorType::new(DType::I64, vec![s])),
    ];
    for _ in 0..tape.below(24) {
        let proposed = propose(&mut graph, &mut tape, &pool);
        if let Some((op, operands, n_results)) = proposed
            && let Ok(node) = graph.add_results(op, &operands, n_results)
        {
            pool.extend((0..n_results as u32).map(|result| Value { node, result }));
        }
    }
    for i in 0..1 + tape.below(3) {
        let value = pool[pool.len() - 1 - tape.below(pool.len().min(4))];
        let name = ["output0", "other", "a \"name\""][tape.below(3)];
        graph.add_output(&format!("{name}{}", "'".repeat(i)), value);
    }
    graph
}

type Proposal = (Op, Vec<Option<Value>>, usize);

fn propose(graph: &mut Graph, tape: &mut Tape<'_>, pool: &[Value]) -> Option<Proposal> {
    let any = |tape: &mut Tape<'_>| Some(pool[tape.below(pool.len())]);
    let apply = |op, attributes, operands: Vec<Option<Value>>| {
        let n_operands = operands.len();
        debug_assert!(n_operands > 0);
        Some((Op::Apply(op, attributes), operands, 1))
    };
    let none = Attributes::new;
    let int = |name: &str, value| none().with(name, Attribute::Int(value));
    let ints = |graph: &mut Graph, v: &[i64]| {
        Some(graph.add_const("shape", Arc::new(Tensor::new(vec![v.len()], v.to_vec()))))
    };
    let x = any(tape);
    let ty = graph.ty(x?).clone();
    match tape.below(20) {
        0 => apply(
            [Operator::Relu, Operator::Tanh, Operator::Gelu][tape.below(3)],
            none(),
            vec![x],
        ),
        1 | 2 => {
            let y = any(tape);
            apply(
                [Operator::Add, Operator::Mul, Operator::Sub][tape.below(3)],
                none(),
                vec![x, y],
            )
        }
        3 => {
            let y = any(tape);
            apply(Operator::MatMul, none(), vec![x, y])
        }
        4 | 5 => {
            let k = ty
                .shape
                .last()?
                .as_fixed()
                .and_then(|k| usize::try_from(k).ok())?;
            let n = 1 + tape.below(6);
            let literal = Generator::Random(Random {
                seed: tape.below(9) as u64,
                range: [None, Some((-0.5, 0.25))][tape.below(2)],
                pattern: [
                    Pattern::Dense,
                    Pattern::Blocks {
                        sparsity: 0.5,
                        r: 2,
                        c: 1,
                    },
                    Pattern::NOfM { n: 2, m: 4 },
                ][tape.below(3)],
            });
            let w = Constant {
                name: "w".to_owned(),
                tensor: Arc::new(literal.tensor(DType::F32, &[n, k]).ok()?),
                literal: [None, Some(literal.to_string())][tape.below(2)].clone(),
            };
            let w = graph.add(Op::Const(w), &[]).ok()?;
            let w = Some(Value { node: w, result: 0 });
            apply(Operator::Linear, none(), vec![x, w])
        }
        6 => {
            let perm = (0..ty.rank() as i64).rev().collect();
            apply(
                Operator::Transpose,
                none().with("perm", Attribute::Ints(perm)),
                vec![x],
            )
        }
        7 => {
            let shape = ints(graph, &[-1, [2, 4][tape.below(2)]]);
            apply(Operator::Reshape, none(), vec![x, shape])
        }
        8 => apply(
            Operator::Softmax,
            int("axis", tape.below(3) as i64 - 1),
            vec![x],
        ),
        9 => Some((
            Op::Apply(
                Operator::Split,
                int("axis", -1).with("num_outputs", Attribute::Int(2)),
            ),
            vec![x],
            2,
        )),
        10 => apply(Operator::Shape, none(), vec![x]),
        11 => apply(Operator::NonZero, none(), vec![x]),
        12 => {
            let limit = graph.add_const("", Arc::new(Tensor::scalar(0.5f32)));
            apply(Operator::Clip, none(), vec![x, None, Some(limit)])
        }
        13 => apply(
            Operator::Cast,
            none().with(
                "to",
                Attribute::Str(["f32", "i64", "f16"][tape.below(3)].to_owned()),
            ),
            vec![x],
        ),
        14 => {
            let y = any(tape);
            apply(Operator::Concat, int("axis", -1), vec![x, y])
        }
        15 => {
            let mut shape = ty.shape.clone();
            shape.push(Dim::fixed(1));
            Some((Op::View(shape), vec![x], 1))
        }
        16 => {
            let mut shape = dims(&[2]);
            shape.extend(ty.shape.iter().cloned());
            Some((Op::Broadcast(shape), vec![x], 1))
        }
        17 if ty.rank() >= 2 && ty.dtype == DType::F32 => {
            Some((Op::Convert(Layout::Panels), vec![x], 1))
        }
        18 => Some((Op::Dims(ty.shape), vec![], 1)),
        _ => {
            let axes = ints(graph, &[-1]);
            apply(
                Operator::ReduceMean,
                int("keepdims", tape.below(2) as i64),
                vec![x, axes],
            )
        }
    }
}

/// The same graph, built in another order and with nodes between that nothing needs.
fn rebuilt(graph: &Graph, choices: &[u16]) -> Graph {
    let mut tape = Tape(choices.iter());
    let mut copy = Graph::new(graph.name());
    let mut copied: HashMap<Value, Value> = HashMap::new();
    let mut junk = Vec::new();
    for &node in graph.inputs() {
        let value = Value { node, result: 0 };
        let Op::Input(name) = graph.op(node) else {
            unreachable!("inputs are inputs")
        };
        copied.insert(value, copy.add_input(name, graph.ty(value).clone()));
    }
    let mut waiting = graph.order().split_off(graph.inputs().len());
    while !waiting.is_empty() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|&i| {
                graph
                    .operands(waiting[i])
                    .iter()
                    .flatten()
                    .all(|v| copied.contains_key(v))
            })
            .collect();
        let node = waiting.remove(ready[tape.below(ready.len())]);
        let operands: Vec<Option<Value>> = graph
            .operands(node)
            .iter()
            .map(|v| v.map(|v| copied[&v]))
            .collect();
        let results = (0..graph.n_results(node) as u32).map(|result| Value { node, result });
        let types: Vec<TensorType> = results.clone().map(|v| graph.ty(v).clone()).collect();
        let new = copy
            .add_stated(graph.op(node).clone(), &operands, &types)
            .expect("it was added before");
        copied.extend(results.map(|v| {
            (
                v,
                Value {
                    node: new,
                    result: v.result,
                },
            )
        }));
        if tape.below(3) == 0 {
            junk.push(copy.add_const("junk", Arc::new(Tensor::scalar(1i64))));
            copy.fresh_dim();
        }
    }
    for output in graph.outputs() {
        copy.add_output(&output.name, copied[&output.value]);
    }
    copy
}

/// Reads text whose hashes are those of the constants of `graph`.
fn reparse(text: &str, graph: &Graph) -> Graph {
    let mut tensors = HashMap::new();
    for node in graph.nodes() {
        if let Some(tensor) = graph.constant(Value { node, result: 0 }) {
            tensors.insert(content_hash(tensor), tensor.clone());
        }
    }
    parse_with(text, &mut |hash, _, _| tensors.get(&hash).cloned())
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Names and hashes of what a graph computes; `None` if sizes do not agree, or a size is computed by a node that is gone.
fn outcome(graph: &Graph) -> Option<Vec<(String, u64)>> {
    let random = |seed, shape: &[usize]| {
        let generator = Generator::Random(Random {
            seed,
            range: None,
            pattern: Pattern::Dense,
        });
        generator.tensor(DType::F32, shape).expect("valid")
    };
    let inputs = [
        ("x", random(1, &[3, 4])),
        ("y z", random(2, &[2, 3, 4])),
        ("7", Tensor::new(vec![3], vec![0i64, 5, -2])),
    ];
    match eval(graph, &inputs) {
        Ok(outputs) => Some(
            outputs
                .into_iter()
                .map(|(name, t)| (name, content_hash(&t)))
                .collect(),
        ),
        Err(EvalError::Unbound { .. } | EvalError::Op { .. }) => None,
        Err(e) => panic!("{e}\n{}", print(graph)),
    }
}

fn tapes() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(any::<u16>(), 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_graphs_verify(tape in tapes()) {
        let graph = build(&tape);
        prop_assert_eq!(verify(&graph).map_err(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>()), Ok(()));
    }

    #[test]
    fn text_survives_parsing_and_means_the_same(tape in tapes()) {
        let graph = build(&tape);
        let text = print(&graph);
        let again = reparse(&text, &graph);
        prop_assert_eq!(print(&again), text.clone());
        prop_assert_eq!(verify(&again), Ok(()), "{}", text);
        prop_assert_eq!(outcome(&again), outcome(&graph), "{}", text);
    }

    #[test]
    fn history_does_not_change_the_text(tape in tapes(), other in tapes()) {
        let graph = build(&tape);
        let text = print(&graph);
        let mut copy = rebuilt(&graph, &other);
        prop_assert_eq!(print(&copy), text.clone());
        copy.sweep();
        prop_assert_eq!(print(&copy), text.clone());
        let mut swept = graph;
        swept.sweep();
        prop_assert_eq!(print(&swept), text);
    }

    #[test]
    fn mutated_text_never_panics(tape in tapes(), edits in proptest::collection::vec((any::<u32>(), any::<u16>()), 1..6)) {
        const PIECES: &[&str] = &[
            "%", "@", "\"", "{", "}", "[", "]", "(", ")", ",", ":", "=", "-", "*", "..", ";", "\n", "_", "é", "0", "99999999999",
            "%0", "@w", "odd", "b", "f32", "i64[", "const", "return", "view", "matmul", "split", "random(seed = 1)", "eye",
            "hash(0123456789abcdef)", "{panels}", "1e309", "nan", "\\u{", "4x1", "2:4",
        ];
        let mut text: Vec<char> = print(&build(&tape)).chars().collect();
        for (at, edit) in edits {
            let at = at as usize % (text.len() + 1);
            let piece: Vec<char> = PIECES[usize::from(edit / 4) % PIECES.len()].chars().collect();
            let end = (at + usize::from(edit / 4) % 12).min(text.len());
            match edit % 4 {
                0 => drop(text.splice(at..at, piece)),
                1 => drop(text.splice(at..end, piece)),
                2 => drop(text.drain(at..end)),
                _ => { let part = text[at..end].to_vec(); drop(text.splice(at..at, part)) }
            }
        }
        let text: String = text.into_iter().collect();
        match parse_limited(&text, 1 << 16, &mut |_, _, _| None) {
            Ok(graph) => {
                let _ = verify(&graph);
                let printed = print(&graph);
                prop_assert_eq!(print(&reparse(&printed, &graph)), printed);
            }
            Err(error) => {
                let first = &error.diagnostics()[0];
                prop_assert!(first.line >= 1 && first.column >= 1 && !first.message.is_empty());
                prop_assert!(error.to_string().contains('^'));
            }
        }
    }

    #[test]
    fn noise_never_panics(text in "(graph @g\\(\\) \\{\n)?[ -~\n]{0,200}") {
        let _ = parse_limited(&text, 1 << 16, &mut |_, _, _| None);
    }
}

#[test]
fn generated_graphs_are_worth_testing() {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16
    };
    let (mut n_evaluated, mut operations) = (0, std::collections::BTreeSet::new());
    for _ in 0..200 {
        let tape: Vec<u16> = (0..150).map(|_| next()).collect();
        let graph = build(&tape);
        n_evaluated += usize::from(outcome(&graph).is_some());
        let order = graph.order();
        operations.extend(order.iter().map(|n| graph.op(*n).text()));
    }
    assert!(n_evaluated >= 150, "only {n_evaluated} of 200 evaluate");
    assert!(operations.len() >= 20, "only {operations:?}");
}
