//! Integer layers from graph to answer: what compiled graphs compute is what their operators mean.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

use lancet::{CompileOptions, Model, ModelOptions, Session, Tensor, compile};
use lancet_artifact::{Arithmetic, StepKind};
use lancet_ir::{eval, parse};
use lancet_runtime::Kernels;
use proptest::prelude::*;
use proptest::sample::select;

/// The passes that choose formats and layouts.
const LAYOUT: &str = "detect-sparsity,assign-layout";

fn model(text: &str, pipeline: &str, kernels: Kernels, threads: usize) -> Model {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let options = CompileOptions {
        pipeline: pipeline.to_owned(),
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
fn check(text: &str, inputs: &[(&str, Tensor)]) {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let want = eval(&graph, inputs).unwrap();
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    for (kernels, threads) in [(Kernels::Emitted, 2), (Kernels::Portable, 1)] {
        let model = model(text, LAYOUT, kernels, threads);
        assert_eq!(n_portable(&model), 0, "{:#?}", model.plan().steps);
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
        check(&text, &inputs);
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
        check(&text, &[("x", floats(&[s, k], seed, scale))]);
    }
}

/// Attention of bytes: queries, keys and values as whole numbers `[batch][token][head][feature]`, their zero points, the factor of scores,
/// the scale of probabilities.
struct Attention {
    sizes: [usize; 3],
    x: [Vec<u8>; 3],
    zeros: [u8; 3],
    factor: f32,
    scale: f32,
}

impl Attention {
    const HEADS: usize = 2;

    /// The graph as SparseML writes it.
    fn text(&self) -> String {
        let [_, _, d] = self.sizes;
        let hidden = Self::HEADS * d;
        let [zq, zk, zv] = self.zeros;
        let split = |name: &str, perm: &str| {
            format!(
                "%{name}0 = quantize_linear %{name}, @one, @z{name}
                %{name}1 = view %{name}0 : u8[b, s, {heads}, {d}]
                %{name}2 = transpose %{name}1 {{perm = {perm}}}",
                heads = Self::HEADS
            )
        };
        format!(
            "graph @g(%q: f32[b, s, {hidden}], %k: f32[b, s, {hidden}], %v: f32[b, s, {hidden}]) dims(b, s) {{
                const @one: f32[] = 1.0
                const @zq: u8[] = {zq}
                const @zk: u8[] = {zk}
                const @zv: u8[] = {zv}
                const @zero: u8[] = 0
                const @factor: f32[] = {factor:?}
                const @scale: f32[] = {scale:?}
                {}
                {}
                {}
                %0 = matmul_integer %q2, %k2, @zq, @zk
                %1 = cast %0 {{to = \"f32\"}}
                %2 = mul %1, @factor
                %p = softmax %2 {{axis = -1}}
                %p8 = quantize_linear %p, @scale, @zero
                %3 = matmul_integer %p8, %v2, @zero, @zv
                %4 = cast %3 {{to = \"f32\"}}
                %5 = transpose %4 {{perm = [0, 2, 1, 3]}}
                %6 = view %5 : f32[b, s, {hidden}]
                return %6
            }}",
            split("q", "[0, 2, 1, 3]"),
            split("k", "[0, 2, 3, 1]"),
            split("v", "[0, 2, 1, 3]"),
            factor = self.factor,
            scale = self.scale,
        )
    }

    /// An element with its zero point taken off.
    fn at(&self, operand: usize, [item, token, head, feature]: [usize; 4]) -> i64 {
        let [_, s, d] = self.sizes;
        let i = ((item * s + token) * Self::HEADS + head) * d + feature;
        i64::from(self.x[operand][i]) - i64::from(self.zeros[operand])
    }

    /// The sums of one query in a head; `None` where a probability is so near a tie that its last bits decide.
    fn query(&self, item: usize, head: usize, query: usize) -> Option<Vec<i64>> {
        let [_, s, d] = self.sizes;
        let score = |key: usize| {
            let product = |i| self.at(0, [item, query, head, i]) * self.at(1, [item, key, head, i]);
            (0..d).map(product).sum::<i64>() as f64 * f64::from(self.factor)
        };
        let scores: Vec<f64> = (0..s).map(score).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|x| (x - max).exp()).sum();
        let mut sums = vec![0; d];
        for (key, x) in scores.iter().enumerate() {
            let n = (x - max).exp() / total / f64::from(self.scale);
            if n < 256.0 && (n - n.floor() - 0.5).abs() < 1e-3 {
                return None;
            }
            let n = n.round_ties_even().min(255.0) as i64;
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum += n * self.at(2, [item, key, head, i]);
            }
        }
        Some(sums)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Both products of an attention of bytes are those of integers, in one step without portable ones beside it.
    #[test]
    fn attention_of_bytes(
        b in 1usize..3,
        s in select(&[1usize, 5, 16, 33, 70][..]),
        d in select(&[1usize, 3, 8, 64, 200][..]),
        zeros in select(&[[0u8, 0, 0], [255, 255, 255], [141, 124, 123], [0, 255, 128]][..]),
        scale in select(&[1.0 / 255.0f32, 0.000_36][..]),
        near in proptest::bool::ANY,
        seed in 0u32..1000,
    ) {
        let hidden = Attention::HEADS * d;
        let random = |i: usize, seed: u32| {
            let hash = (i as u32).wrapping_add(seed * 7919).wrapping_mul(2_654_435_761);
            (hash ^ (hash >> 15)).wrapping_mul(2_246_822_519) >> 16
        };
        let operand = |seed: u32, of: &dyn Fn(usize, u32) -> u8| -> Vec<u8> {
            (0..b * s * hidden).map(|i| of(i % d, random(i, seed))).collect()
        };
        // Either any bytes, or great sums that differ in the first product alone, by little. The kernel multiplies scores by
        // log2 e, so that they stay whole.
        let any = |_, r: u32| match r % 8 { 0 => 0, 1 => 255, _ => (r >> 3) as u8 };
        let few = |i, r: u32| if i == 0 { (r % 4) as u8 } else { 255 };
        let one = |i, _| if i == 0 { 1 } else { 255 };
        let (q, k, factor) = if near {
            (operand(seed, &one), operand(seed + 1, &few), std::f32::consts::LN_2)
        } else {
            (operand(seed, &any), operand(seed + 1, &any), 1e-3 / d as f32)
        };
        let zeros = if near { [0, 0, zeros[2]] } else { zeros };
        let attention =
            Attention { sizes: [b, s, d], x: [q, k, operand(seed + 2, &any)], zeros, factor, scale };
        // Whole numbers that the graph turns into the bytes.
        let inputs: Vec<(&str, Tensor)> = ["q", "k", "v"]
            .into_iter()
            .zip(attention.x.iter().zip(attention.zeros))
            .map(|(name, (x, zero))| {
                let x = x.iter().map(|&x| f32::from(x) - f32::from(zero)).collect::<Vec<f32>>();
                (name, Tensor::new([b, s, hidden], x))
            })
            .collect();
        let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
        let text = attention.text();
        let pipeline = format!(
            "simplify-quantization,raise-attention,simplify-quantization,eliminate-identities,\
             expand-fake-quantization,fuse-elementwise,{LAYOUT}"
        );
        let portable = (!near).then_some((Kernels::Portable, 1));
        for (kernels, threads) in [(Kernels::Emitted, 2)].into_iter().chain(portable) {
            let model = model(&text, &pipeline, kernels, threads);
            prop_assert_eq!(n_portable(&model), 0, "{:#?}", model.plan().steps);
            let got = Session::new(&model).run(&views).unwrap();
            let got = got[0].1.as_slice::<f32>().unwrap();
            for (i, got) in got.chunks_exact(d).enumerate() {
                let (token, head) = (i / Attention::HEADS, i % Attention::HEADS);
                if let Some(want) = attention.query(token / s, head, token % s) {
                    let got: Vec<i64> = got.iter().map(|&y| y as i64).collect();
                    prop_assert_eq!(&got, &want, "{:?}, token {}, head {}", kernels, token, head);
                }
            }
        }
    }
}

#[test]
fn rounded_attention_has_biases_and_packed_sequences() {
    // Products of whole numbers; no multiple of 1/7 or of 11/31 is a tie.
    let rounding = "score_rounding = [7.0, -100.0, 155.0], masked_score_rounding = [0.31, -200.0, 55.0], \
                    probability_rounding = [0.003, 0.0, 255.0]";
    let text = format!(
        "graph @g(%q: f32[2, 9, 6], %k: f32[2, 9, 6], %v: f32[2, 9, 4], %mask: bool[2, 9], %bias: f32[2, 1, 9]) {{
            const @distances: f32[1, 18] = random(seed = 3)
            const @starts: i64[3] = [0, 5, 6]
            const @qs: i64[3] = [0, 1, 6]
            %0 = scaled_dot_product_attention %q, %k, %v, %mask {{num_heads = 2, scale = 0.11, {rounding}}}
            %1 = scaled_dot_product_attention %q, %k, %v, %mask, %bias {{num_heads = 2, scale = 0.11, {rounding}}}
            %2 = scaled_dot_product_attention %q, %k, %v, %mask, _, @distances {{num_heads = 2, scale = 0.11, {rounding}}}
            %3 = view %q : f32[18, 6]
            %4 = view %k : f32[18, 6]
            %5 = view %v : f32[18, 4]
            %6 = packed_attention %3, %4, %5, @starts, @qs {{num_heads = 2, scale = 0.11, {rounding}}}
            return %0 as \"i0\", %1 as \"i1\", %2 as \"i2\", %6 as \"i3\"
        }}"
    );
    let whole = |n: usize, seed: u32| -> Vec<f32> {
        let random = floats(&[n], seed, 9.0);
        let values = random.as_slice::<f32>().unwrap();
        values.iter().map(|x| x.round()).collect()
    };
    let s = 9;
    let inputs = [
        ("q", Tensor::new([2, s, 6], whole(2 * s * 6, 1))),
        ("k", Tensor::new([2, s, 6], whole(2 * s * 6, 200))),
        ("v", Tensor::new([2, s, 4], whole(2 * s * 4, 400))),
        (
            "mask",
            Tensor::new(
                [2, s],
                (0..2 * s).map(|i| i % 5 != 3).collect::<Vec<bool>>(),
            ),
        ),
        ("bias", floats(&[2, 1, s], 600, 1.0)),
    ];
    check(&text, &inputs);
}

#[test]
fn sums_over_many_keys_are_wider_than_singles() {
    // 199 times 255, 254 or 253 for each key: the sums leave the whole numbers of f32.
    let n_keys = 500;
    let text = format!(
        "graph @g(%q: f32[b, 3, 2], %k: f32[b, {n_keys}, 2], %v: f32[b, {n_keys}, 2]) dims(b) {{
            %0 = scaled_dot_product_attention %q, %k, %v {{
                exact_keys = 300, num_heads = 1, probability_rounding = [0.00001, 0.0, 199.0], scale = 1.0}}
            return %0 as \"i0\"
        }}"
    );
    let v: Vec<f32> = (0..2 * n_keys).map(|i| (255 - i % 3) as f32).collect();
    let inputs = [
        ("q", Tensor::new([1, 3, 2], vec![0.0f32; 6])),
        ("k", Tensor::new([1, n_keys, 2], vec![1.0f32; 2 * n_keys])),
        ("v", Tensor::new([1, n_keys, 2], v)),
    ];
    check(&text, &inputs);
}

#[test]
fn every_arithmetic_that_is_chosen_is_exact() {
    use Arithmetic::{Bytes, Words};
    // Few large weights, many that are not exact in `f32`, and as many as are; and with zeros between.
    for (k, range, sparsity, stored) in [
        (768, "-127..127", "", ("dense", Bytes)),
        (1100, "-127..127", "", ("dense", Bytes)),
        (1100, "120..127", "", ("dense", Words)),
        (1100, "-128..-120", "", ("dense", Words)),
        (
            1100,
            "-128..-120",
            ", sparsity = 0.5, block = 1x4",
            ("bsr 1x4", Words),
        ),
        (
            768,
            "-127..127",
            ", sparsity = 0.8, block = 1x4",
            ("bsr 1x4", Bytes),
        ),
        (
            768,
            "-127..127",
            ", sparsity = 0.8",
            ("unstructured", Bytes),
        ),
        (
            768,
            "-127..127",
            ", sparsity = 0.8, block = 4x1",
            ("unstructured", Bytes),
        ),
    ] {
        let text = format!(
            "graph @g(%x: f32[s, {k}]) dims(s) {{
                const @sx: f32[] = [0.01]
                const @zx: u8[] = [128]
                const @w: i8[24, {k}] = random(seed = 5, range = {range}{sparsity})
                %q = quantize_linear %x, @sx, @zx : u8[s, {k}]
                %sum = integer_linear %q, @w : i32[s, 24]
                return %sum as \"i0\"
            }}"
        );
        let model = model(&text, LAYOUT, Kernels::Emitted, 1);
        let matrices = model.plan().matrices.iter();
        let found: Vec<_> = matrices
            .map(|m| (m.format.to_string(), m.arithmetic))
            .collect();
        assert_eq!(found, [(stored.0.to_owned(), stored.1)], "{text}");
        // Tokens of bytes that are all 255, all 0, and any.
        for scale in [0.0, 3.0, 100.0] {
            let mut x = floats(&[35, k], 3, scale);
            if scale == 0.0 {
                let value = |i: usize| {
                    if (i / k).is_multiple_of(2) {
                        9.0f32
                    } else {
                        -9.0
                    }
                };
                x = Tensor::new([35, k], (0..35 * k).map(value).collect::<Vec<f32>>());
            }
            check(&text, &[("x", x)]);
        }
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
    let model = model(&text, LAYOUT, Kernels::Emitted, 1);
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

/// NaN becomes the least value wherever it is quantized, in a step of its own, behind a product, and undone at once; and stays where
/// `Max` and `Min` meet it.
#[test]
fn nan_is_quantized_alike_by_every_step() {
    let text = "graph @g(%x: f32[s, 8]) dims(s) {
            const @scale: f32[] = 0.5
            const @u: u8[] = 3
            const @i: i16[] = -7
            const @w: i8[5, 8] = random(seed = 1)
            const @f: f32[8, 8] = random(seed = 2)
            const @v: i8[6, 5] = random(seed = 3)
            const @half: f32[] = 0.5
            const @row: f32[5] = random(seed = 4)
            %nan = sqrt %x : f32[s, 8]
            %q = quantize_linear %nan, @scale, @u : u8[s, 8]
            %sum = integer_linear %q, @w : i32[s, 5]
            %real = cast %sum {to = \"f32\"} : f32[s, 5]
            %some = div %real, %real : f32[s, 5]
            %root = add %some, @row : f32[s, 5]
            %max = max %root, @half : f32[s, 5]
            %min = min %max, @half : f32[s, 5]
            %bytes = quantize_linear %min, @scale, @u : u8[s, 5]
            %2 = integer_linear %bytes, @v : i32[s, 6]
            %fi = quantize_linear %root, @scale, @i : i16[s, 5]
            %fd = dequantize_linear %fi, @scale, @i : f32[s, 5]
            %ri = quantize_linear %nan, @scale, @i : i16[s, 8]
            %rd = dequantize_linear %ri, @scale, @i : f32[s, 8]
            %l = matmul %rd, @f : f32[s, 8]
            return %sum as \"i0\", %2 as \"i1\", %fd as \"i2\", %l as \"f\", %max as \"m\"
        }";
    let x = Tensor::new(
        [3, 8],
        (0..24).map(|i| i as f32 - 12.0).collect::<Vec<f32>>(),
    );
    // All of the first token and half of the second is NaN; sums of least bytes are 0, and 0 / 0 is NaN again.
    let graph = parse(text).unwrap();
    let want = eval(&graph, &[("x", x.clone())]).unwrap();
    let pipeline = format!("raise-linear,expand-fake-quantization,fuse-elementwise,{LAYOUT}");
    for (kernels, threads) in [(Kernels::Emitted, 2), (Kernels::Portable, 1)] {
        let model = model(text, &pipeline, kernels, threads);
        assert_eq!(n_portable(&model), 0, "{:#?}", model.plan().steps);
        let got = Session::new(&model).run(&[("x", x.view())]).unwrap();
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            let (got, want) = (got.view().to_f64_vec(), want.view().to_f64_vec());
            for (i, (&g, &w)) in got.iter().zip(&want).enumerate() {
                let near = (g - w).abs() <= 1e-4 * (1.0 + w.abs());
                assert!(
                    near || g.is_nan() && w.is_nan(),
                    "{kernels:?} {name}[{i}]: {g}, not {w}"
                );
            }
        }
        let max = got.iter().find(|(name, _)| *name == "m").unwrap().1.view();
        assert!(max.to_f64_vec().iter().any(|v| v.is_nan()));
    }
}
