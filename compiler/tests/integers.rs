//! Integer layers from graph to answer: what compiled graphs compute is what their operators mean.
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

/// Compiles by the passes that choose formats and layouts.
fn model(text: &str, kernels: Kernels, threads: usize) -> Model {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let options = CompileOptions {
        pipeline: "detect-sparsity,assign-layout".to_owned(),
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

fn n_portable(model: &Model) -> usize {
    let steps = model.plan().steps.iter();
    steps
        .filter(|s| matches!(s.kind, StepKind::Portable { .. }))
        .count()
}

/// Runs a graph compiled with and without kernels and compares every output with the evaluator's: integers exactly.
fn check(text: &str, inputs: &[(&str, Tensor)], portable: usize) {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let want = eval(&graph, inputs).unwrap();
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    for (kernels, threads) in [(Kernels::Emitted, 2), (Kernels::Portable, 1)] {
        let model = model(text, kernels, threads);
        assert_eq!(n_portable(&model), portable, "{:#?}", model.plan().steps);
        let got = Session::new(&model).run(&views).unwrap();
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            assert_eq!(got.shape(), want.shape(), "{name}");
            let (got, want) = (got.view().to_f64_vec(), want.view().to_f64_vec());
            for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
                let tolerance = 2e-5 * (1.0 + w.abs());
                let exact = name.starts_with('i');
                assert!(
                    g == w || (!exact && (g - w).abs() <= tolerance),
                    "{kernels:?} {name}[{i}]: {g}, not {w}\n{text}"
                );
            }
        }
    }
}

fn floats(shape: &[usize], seed: u32, scale: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let value = |i: usize| {
        let hash = (i as u32).wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8;
        (hash as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    Tensor::new(shape.to_vec(), (0..n).map(value).collect::<Vec<f32>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Two layers with everything that exporters put between them; what is quantized in between, and the sums, are exact.
    #[test]
    fn two_layers(
        s in select(&[1usize, 7, 8, 17, 33, 50][..]),
        k in select(&[4usize, 7, 64, 130][..]),
        n in select(&[1usize, 5, 64, 390][..]),
        zero in select(&[0u8, 3, 128, 255][..]),
        sparsity in select(&["", ", sparsity = 0.8", ", sparsity = 0.9, block = 1x4"][..]),
        activation in select(&["relu", "gelu", "tanh"][..]),
        weight in select(&["i8", "i16"][..]),
        // The greater ones are not all in `f32`.
        bias in select(&[9000, 90_000_000][..]),
        seed in 0u32..1000,
    ) {
        let range = if weight == "i8" { "-128..127" } else { "-255..255" };
        let (gelu, attributes) = match activation {
            "gelu" => ("gelu", " {approximate = \"none\"}"),
            other => (other, ""),
        };
        let text = format!(
            "graph @g(%x: f32[s, {k}], %r: f32[s, {n}]) dims(s) {{
                const @sx: f32[] = [0.0173]
                const @sy: f32[] = [0.25]
                const @zx: u8[] = [{zero}]
                const @w0: {weight}[{n}, {k}] = random(seed = {seed}, range = {range}{sparsity})
                const @w1: {weight}[6, {n}] = random(seed = 2, range = {range}{sparsity})
                const @b0: i32[{n}] = random(seed = 3, range = -{bias}..{bias})
                const @sw: f32[{n}] = random(seed = 4, range = 0.0001..0.001)
                %q = quantize_linear %x, @sx, @zx : u8[s, {k}]
                %sum = integer_linear %q, @w0 : i32[s, {n}]
                %0 = add %sum, @b0 : i32[s, {n}]
                %1 = cast %0 {{to = \"f32\"}} : f32[s, {n}]
                %2 = mul %1, @sw : f32[s, {n}]
                %3 = add %2, %r : f32[s, {n}]
                %4 = {gelu} %3{attributes} : f32[s, {n}]
                %5 = quantize_linear %4, @sy, @zx : u8[s, {n}]
                %6 = integer_linear %5, @w1 : i32[s, 6]
                return %sum as \"i0\", %4 as \"f\", %6 as \"g\"
            }}"
        );
        let inputs = [("x", floats(&[s, k], seed, 3.0)), ("r", floats(&[s, n], 7, 1.0))];
        // Bytes of what is not exact may differ where it rounds.
        let text = match activation {
            // The bytes alone, so that they are made of the sums in one step.
            "relu" if seed % 2 == 0 => {
                let text = text.replace("\"g\"", "\"i1\"");
                text.replace("%sum as \"i0\", %4 as \"f\", ", "")
            }
            "relu" => text.replace("\"g\"", "\"i1\""),
            _ => text.replace(", %6 as \"g\"", ""),
        };
        check(&text, &inputs, 0);
    }

    /// Quantization whose scale and zero point depend on the data.
    #[test]
    fn dynamic(
        s in select(&[1usize, 9, 33, 70][..]),
        k in select(&[4usize, 7, 64, 130][..]),
        scale in select(&[0.0f32, 1.0, 300.0][..]),
        seed in 0u32..1000,
    ) {
        let text = format!(
            "graph @g(%x: f32[s, {k}]) dims(s) {{
                const @w: i8[12, {k}] = random(seed = {seed}, range = -128..127)
                const @sums: i32[12] = random(seed = 3, range = -900..900)
                const @sw: f32[] = [0.013]
                const @bias: f32[12] = random(seed = 4, range = -1..1)
                %q, %scale, %zero = dynamic_quantize_linear %x : u8[s, {k}], f32[], u8[]
                %sum = integer_linear %q, @w : i32[s, 12]
                %z = cast %zero {{to = \"i32\"}} : i32[]
                %c = mul %z, @sums : i32[12]
                %0 = sub %sum, %c : i32[s, 12]
                %1 = cast %0 {{to = \"f32\"}} : f32[s, 12]
                %t = mul %scale, @sw : f32[]
                %2 = mul %1, %t : f32[s, 12]
                %3 = add %2, @bias : f32[s, 12]
                return %sum as \"i0\", %scale as \"i1\", %zero as \"i2\", %3 as \"f\"
            }}"
        );
        // The scalar arithmetic is portable: a cast and two products.
        check(&text, &[("x", floats(&[s, k], seed, scale))], 1);
    }
}

#[test]
fn a_layer_is_one_step_behind_its_product() {
    let text = "graph @g(%x: f32[b, s, 8]) dims(b, s) {
        const @sx: f32[] = [0.1]
        const @zx: u8[] = [128]
        const @w: i8[12, 8] = random(seed = 1)
        const @b: i32[12] = random(seed = 3)
        const @sw: f32[] = [0.01]
        %q = quantize_linear %x, @sx, @zx : u8[b, s, 8]
        %0 = integer_linear %q, @w : i32[b, s, 12]
        %1 = add %0, @b : i32[b, s, 12]
        %2 = cast %1 {to = \"f32\"} : f32[b, s, 12]
        %3 = mul %2, @sw : f32[b, s, 12]
        %4 = gelu %3 {approximate = \"none\"} : f32[b, s, 12]
        %5 = quantize_linear %4, @sx, @zx : u8[b, s, 12]
        %6 = integer_linear %5, @w2 : i32[b, s, 4]
        %7 = cast %6 {to = \"f32\"} : f32[b, s, 4]
        return %7
    }"
    .replace(
        "const @sw",
        "const @w2: i8[4, 12] = random(seed = 2)\n        const @sw",
    );
    let model = model(&text, Kernels::Emitted, 1);
    let names: Vec<&str> = model.plan().steps.iter().map(|s| s.kind.name()).collect();
    assert_eq!(
        names,
        [
            "to_panels",
            "elementwise",
            "integer_linear",
            "integer_linear",
            "from_panels"
        ]
    );
}
