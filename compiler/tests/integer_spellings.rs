//! Integer layers as their tools spell them, through the default pipeline, against exact arithmetic in 64 bits.
//!
//! Scales are powers of two and sums within 2^24, so that a result in `f32` is exact too and shows every bit of its sum.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

use std::fmt::Write as _;

use lancet::{CompileOptions, ModelOptions, Session, Tensor, compile};
use lancet_artifact::StepKind;
use lancet_ir::parse;
use lancet_runtime::Kernels;
use proptest::prelude::*;
use proptest::sample::select;

/// How a tool writes a layer.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    /// `MatMulInteger`, an `i32` bias, a conversion and a scale: SparseML.
    Integer,
    /// `DequantizeLinear` of both operands and of the bias around a product of floats.
    Dequantized,
    /// `DynamicQuantizeLinear` and `MatMulInteger`, scales multiplied after.
    Dynamic,
}

#[derive(Clone, Debug)]
struct Layer {
    spelling: Spelling,
    tokens: usize,
    k: usize,
    n: usize,
    /// `[tokens, k]`.
    x: Vec<u8>,
    zero: u8,
    /// `[k, n]`.
    w: Vec<i64>,
    signed: bool,
    /// One for each output, or for all.
    w_zeros: Vec<i64>,
    per_channel: bool,
    bias: Vec<i64>,
}

const SCALE: f64 = 1.0 / 32.0;

impl Layer {
    fn w_scale(&self, output: usize) -> f64 {
        let channel = if self.per_channel { output % 4 } else { 0 };
        1.0 / f64::from(16 << channel)
    }

    fn w_zero(&self, output: usize) -> i64 {
        self.w_zeros[output % self.w_zeros.len()]
    }

    /// What the layer gives, exactly.
    fn result(&self, token: usize, output: usize) -> f64 {
        let products = (0..self.k).map(|i| {
            let x = i64::from(self.x[token * self.k + i]) - i64::from(self.zero);
            x * (self.w[i * self.n + output] - self.w_zero(output))
        });
        (products.sum::<i64>() + self.bias[output]) as f64 * SCALE * self.w_scale(output)
    }

    fn text(&self) -> String {
        let (k, n, zero) = (self.k, self.n, self.zero);
        let list = |v: &[i64]| format!("{v:?}");
        let rows: Vec<String> = self.w.chunks(n).map(list).collect();
        let byte = if self.signed { "i8" } else { "u8" };
        let numbers = |of: &dyn Fn(usize) -> f64| {
            let numbers = (0..n).map(|c| format!("{:?}", of(c))).collect::<Vec<_>>();
            format!("f32[{n}] = [{}]", numbers.join(", "))
        };
        let one_or_each = |of: &dyn Fn(usize) -> f64| match self.per_channel {
            true => numbers(of),
            false => format!("f32[] = {:?}", of(0)),
        };
        let zeros = match self.per_channel {
            true => format!("{byte}[{n}] = {}", list(&self.w_zeros)),
            false => format!("{byte}[] = {}", self.w_zeros[0]),
        };
        let mut text = format!(
            "graph @g(%x: f32[s, {k}]) dims(s) {{
                const @sx: f32[] = {SCALE}
                const @zx: u8[] = {zero}
                const @w: {byte}[{k}, {n}] = [{}]
                const @zw: {zeros}
                const @b: i32[{n}] = {}\n",
            rows.join(", "),
            list(&self.bias),
        );
        let both = |c: usize| SCALE * self.w_scale(c);
        match self.spelling {
            Spelling::Integer => write!(
                text,
                "const @scale: {}
                %q = quantize_linear %x, @sx, @zx
                %0 = matmul_integer %q, @w, @zx, @zw
                %1 = add %0, @b
                %2 = cast %1 {{to = \"f32\"}}
                %3 = mul %2, @scale
                return %3 }}",
                one_or_each(&both)
            ),
            Spelling::Dequantized => write!(
                text,
                "const @sw: {}
                const @sb: {}
                %q = quantize_linear %x, @sx, @zx
                %0 = dequantize_linear %q, @sx, @zx
                %1 = dequantize_linear @w, @sw, @zw {{axis = 1}}
                %2 = matmul %0, %1
                %b = dequantize_linear @b, @sb {{axis = 0}}
                %3 = add %2, %b
                return %3 }}",
                one_or_each(&|c| self.w_scale(c)),
                one_or_each(&both)
            ),
            Spelling::Dynamic => write!(
                text,
                "const @sw: {}
                const @bias: {}
                %q, %s, %z = dynamic_quantize_linear %x
                %0 = matmul_integer %q, @w, %z, @zw
                %1 = cast %0 {{to = \"f32\"}}
                %2 = mul %s, @sw
                %3 = mul %1, %2
                %4 = add %3, @bias
                return %4 }}",
                one_or_each(&|c| self.w_scale(c)),
                numbers(&|c| self.bias[c] as f64 * both(c))
            ),
        }
        .unwrap();
        text
    }
}

fn layers() -> impl Strategy<Value = Layer> {
    let spelling = select(&[Spelling::Integer, Spelling::Dequantized, Spelling::Dynamic][..]);
    let sizes = (
        select(&[1usize, 7, 17, 33][..]),
        select(&[4usize, 7, 64, 250][..]),
        select(&[1usize, 5, 24][..]),
    );
    let zero = select(&[0u8, 3, 128, 255][..]);
    (
        spelling,
        sizes,
        zero,
        any::<[bool; 3]>(),
        0usize..4,
        0usize..5,
    )
        .prop_flat_map(
            |(
                spelling,
                (tokens, k, n),
                zero,
                [signed, per_channel, each_zero],
                inputs,
                weights,
            )| {
                let (least, greatest) = if signed { (-128i64, 127) } else { (0, 255) };
                let x = match inputs {
                    0 => Just(255u8).boxed(),
                    1 => Just(0).boxed(),
                    2 => select(&[0u8, 255][..]).boxed(),
                    _ => any::<u8>().boxed(),
                };
                // Around the middle, at the ends, or mostly there where pruned weights are: at the zero point.
                let middle = least + 128;
                let w = match weights {
                    0 => Just(least).boxed(),
                    1 => Just(greatest).boxed(),
                    2 => (least..=greatest).boxed(),
                    3 => prop_oneof![4 => Just(middle), 1 => least..=greatest].boxed(),
                    _ => select(vec![least, greatest]).boxed(),
                };
                let w_zero = match (per_channel, each_zero) {
                    (true, true) => prop::collection::vec(least..=greatest, n).boxed(),
                    (true, false) => Just(vec![middle; n]).boxed(),
                    (false, _) => Just(vec![middle]).boxed(),
                };
                (
                    prop::collection::vec(x, tokens * k),
                    prop::collection::vec(w, k * n),
                    w_zero,
                    prop::collection::vec(-1000i64..1000, n),
                )
                    .prop_map(move |(mut x, w, w_zeros, bias)| {
                        if matches!(spelling, Spelling::Dynamic) {
                            // The range of all bytes, from which scale and zero point follow.
                            x[..2].copy_from_slice(&[0, 255]);
                        }
                        Layer {
                            spelling,
                            tokens,
                            k,
                            n,
                            x,
                            zero,
                            w,
                            signed,
                            w_zeros,
                            per_channel,
                            bias,
                        }
                    })
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_spelling_is_one_exact_layer(layer in layers()) {
        let (tokens, k, n) = (layer.tokens, layer.k, layer.n);
        let float = |&q: &u8| (f64::from(q) - f64::from(layer.zero)) * SCALE;
        let x: Vec<f32> = layer.x.iter().map(|q| float(q) as f32).collect();
        let x = Tensor::new([tokens, k], x);
        let text = layer.text();
        for (kernels, threads) in [(Kernels::Emitted, 2), (Kernels::Portable, 1)] {
            let graph = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let compiled = compile(graph, &CompileOptions::default(), &mut |_, _| {}).unwrap();
            let options = ModelOptions { kernels, threads: Some(threads), ..ModelOptions::default() };
            let model = compiled.into_model(&options).unwrap();
            let steps = model.plan().steps.iter();
            let n_layers = steps.filter(|s| matches!(s.kind, StepKind::IntegerLinear { .. })).count();
            prop_assert_eq!(n_layers, 1, "{:#?}\n{}", model.plan().steps, text);
            let got = Session::new(&model).run(&[("x", x.view())]).unwrap();
            let got = got[0].1.view().to_f64_vec();
            for (i, got) in got.into_iter().enumerate() {
                let want = layer.result(i / n, i % n);
                prop_assert_eq!(got, want, "{:?} {}: {}", kernels, i, text);
            }
        }
    }
}
