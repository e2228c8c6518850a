//! Attention that shows its probabilities, and that makes them by other functions than softmax: what plans compute, by kernels and
//! without, is what the operators mean.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

use lancet::{CompileOptions, Model, ModelOptions, Session, Tensor, compile};
use lancet_artifact::StepKind;
use lancet_ir::{eval, parse};
use lancet_runtime::Kernels;
use proptest::prelude::*;
use proptest::sample::select;

fn model(text: &str, kernels: Kernels, threads: usize) -> Model {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let options = CompileOptions {
        pipeline: "assign-layout".to_owned(),
        ..CompileOptions::default()
    };
    let compiled = compile(graph, &options, &mut |_, _| {}).unwrap();
    let options = ModelOptions {
        kernels,
        threads: Some(threads),
        ..ModelOptions::default()
    };
    compiled.into_model(&options).unwrap()
}

/// The outputs of a graph, whose steps must be none of the portable ones, are within `tolerance` of the evaluator's, and have the
/// same bits at one and at two threads.
fn check(text: &str, inputs: &[(&str, Tensor)], tolerance: f64) {
    let want = eval(
        &parse(text).unwrap_or_else(|e| panic!("{e}\n{text}")),
        inputs,
    )
    .unwrap();
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    for kernels in [Kernels::Emitted, Kernels::Portable] {
        let of_threads = [1, 2].map(|threads| {
            let model = model(text, kernels, threads);
            let mut steps = model.plan().steps.iter();
            assert!(!steps.any(|s| matches!(s.kind, StepKind::Portable { .. })));
            Session::new(&model).run(&views).unwrap()
        });
        let [one, two] = of_threads.each_ref().map(|outputs| {
            let of_output = |(_, t): &(String, Tensor)| t.as_slice::<f32>().unwrap().to_vec();
            let values: Vec<f32> = outputs.iter().flat_map(of_output).collect();
            values.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        });
        assert!(one == two, "{kernels:?}: other bits at two threads\n{text}");
        for ((name, got), (_, want)) in of_threads[0].iter().zip(&want) {
            assert_eq!(got.shape(), want.shape(), "{name}");
            let (got, want) = (got.view().to_f64_vec(), want.view().to_f64_vec());
            for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
                let close = (g - w).abs() <= tolerance * (1.0 + w.abs());
                assert!(
                    g == w || close || (g.is_nan() && w.is_nan()),
                    "{kernels:?} {name}[{i}]: {g}, not {w}\n{text}"
                );
            }
        }
    }
}

/// Numbers between `least` and `least + span`.
fn floats(shape: &[usize], seed: u32, least: f32, span: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| {
        let hash = (i as u32).wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8;
        least + hash as f32 / (1 << 24) as f32 * span
    };
    Tensor::new(shape.to_vec(), (0..n).map(value).collect::<Vec<f32>>())
}

fn booleans(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    Tensor::new(
        shape.to_vec(),
        (0..n).map(|i| i % 5 != 3).collect::<Vec<bool>>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shows_its_probabilities(
        b in 1usize..4,
        sq in select(&[0usize, 1, 7, 16, 33][..]),
        sk in select(&[0usize, 1, 15, 32, 70, 130][..]),
        h in select(&[1usize, 3][..]),
        d in select(&[1usize, 8][..]),
        shown in select(&["each", "sum", "mean"][..]),
        others in select(&["", ", %mask", ", %mask, %bias", ", %mask, _, _, %qmask"][..]),
    ) {
        let result = if shown == "each" { format!("{h}, sq, sk") } else { format!("{h}, sk") };
        let w = h * d;
        let text = format!(
            "graph @g(%q: f32[b, sq, {w}], %k: f32[b, sk, {w}], %v: f32[b, sk, {w}], %mask: bool[b, sk],
                      %bias: f32[b, 1, sq, sk], %qmask: bool[b, sq]) dims(b, sq, sk) {{
                %0, %1 = scaled_dot_product_attention %q, %k, %v{others} {{
                    masked_value = -10000.0, num_heads = {h}, probabilities = \"{shown}\", scale = 0.4}}
                    : f32[b, sq, {w}], f32[b, {result}]
                return %0, %1
            }}"
        );
        let inputs = [
            ("q", floats(&[b, sq, w], 1, -3.0, 6.0)),
            ("k", floats(&[b, sk, w], 7000, -3.0, 6.0)),
            ("v", floats(&[b, sk, w], 90_000, -3.0, 6.0)),
            ("mask", booleans(&[b, sk])),
            ("bias", floats(&[b, 1, sq, sk], 11, -1.0, 2.0)),
            ("qmask", booleans(&[b, sq])),
        ];
        check(&text, &inputs, 2e-5);
    }

    #[test]
    fn makes_probabilities_in_stages(
        b in 1usize..3,
        sq in select(&[0usize, 1, 7, 16, 33][..]),
        sk in select(&[0usize, 1, 15, 32, 70, 130][..]),
        d in select(&[1usize, 8][..]),
        shown in select(&["", "each", "mean"][..]),
        stages in select(&[
            // Softmax with a mask, a factor for each head, and one more in the sum.
            "score = [\"where x3 x0 -10000.0\"], weight = [\"sub x0 x1\", \"exp v0\"], probability = [\"add x1 1.0\", \"div x0 v0\", \"mul v1 x5\"]",
            // A polynomial.
            "weight = [\"add x0 x2\", \"add v0 5.0\", \"mul v1 v1\", \"mul v2 x4\"], probability = [\"div x0 x1\"]",
            // No sum.
            "score = [\"mul x0 0.3\"], weight = [\"sigmoid x0\", \"mul v0 x6\"]",
            // No kernel knows double precision.
            "weight = [\"f64 x0\", \"mul v0 0.1\", \"f32 v1\", \"sub v2 x1\", \"exp v3\", \"where x3 v4 0.0\"], probability = [\"div x0 x1\", \"mul v0 x2\"]",
            "probability = [\"relu x0\"]",
            "",
        ][..]),
    ) {
        let h = 2;
        let w = h * d;
        let (result, of_result) = match shown {
            "" => ("%0", String::new()),
            "each" => ("%0, %1", format!(", f32[b, {h}, sq, sk]")),
            _ => ("%0, %1", format!(", f32[b, {h}, sk]")),
        };
        let show = if shown.is_empty() { String::new() } else { format!(", probabilities = \"{shown}\"") };
        let stages = if stages.is_empty() { String::new() } else { format!(", {stages}") };
        let text = format!(
            "graph @g(%q: f32[b, sq, {w}], %k: f32[b, sk, {w}], %v: f32[b, sk, {w}], %pairs: f32[1, {h}, sq, sk], %mask: bool[b, 1, 1, sk],
                      %kept: f32[sk], %factor: f32[{h}, 1, 1], %by_query: f32[b, 1, sq, 1]) dims(b, sq, sk) {{
                {result} = generalized_attention %q, %k, %v, %pairs, %mask, %kept, %factor, %by_query {{num_heads = {h}{show}{stages}}}
                    : f32[b, sq, {w}]{of_result}
                return {result}
            }}"
        );
        let inputs = [
            ("q", floats(&[b, sq, w], 1, -1.0, 2.0)),
            ("k", floats(&[b, sk, w], 7000, -1.0, 2.0)),
            ("v", floats(&[b, sk, w], 90_000, -1.0, 2.0)),
            ("pairs", floats(&[1, h, sq, sk], 11, 0.5, 1.0)),
            ("mask", booleans(&[b, 1, 1, sk])),
            ("kept", floats(&[sk], 12, 0.5, 1.0)),
            ("factor", floats(&[h, 1, 1], 13, 0.5, 1.0)),
            ("by_query", floats(&[b, 1, sq, 1], 14, 0.5, 1.0)),
        ];
        check(&text, &inputs, 3e-5);
    }
}
