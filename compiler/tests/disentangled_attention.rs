//! DeBERTa's attention, from graph to answer: no value of the plan grows with the square of the tokens, and the answer is that of
//! the operators, for padded queries too.

use lancet::{CompileOptions, Compiled, Model, ModelOptions, Session, Tensor, compile};
use lancet_artifact::{Plan, ValueDesc};
use lancet_ir::{eval, parse};
use lancet_runtime::Kernels;

/// Two layers as exporters write them. Relative positions are clipped to `span` on each side, which in the first form of the
/// model is the number of tokens where that is less.
fn text(span: &str) -> String {
    let layer = |i: usize| {
        format!(
            "%q{i} = matmul %x{i}, @wq
  %qb{i} = add %q{i}, @bq
  %k{i} = matmul %x{i}, @wk
  %v{i} = matmul %x{i}, @wv
  %qh{i} = view %qb{i} : f32[b, s, 2, 4]
  %qt{i} = transpose %qh{i} {{perm = [0, 2, 1, 3]}}
  %qs{i} = div %qt{i}, @scale
  %kh{i} = view %k{i} : f32[b, s, 2, 4]
  %kt{i} = transpose %kh{i} {{perm = [0, 2, 1, 3]}}
  %kc{i} = transpose %kt{i} {{perm = [0, 1, 3, 2]}}
  %scores{i} = matmul %qs{i}, %kc{i}
  %cp{i} = matmul %qs{i}, @rk
  %cpt{i} = gather_elements %cp{i}, %ci {{axis = -1}}
  %pc{i} = matmul %kt{i}, @rq
  %pcg{i} = gather_elements %pc{i}, %pi {{axis = -1}}
  %pct{i} = transpose %pcg{i} {{perm = [0, 1, 3, 2]}}
  %added{i} = add %cpt{i}, %pct{i}
  %sum{i} = add %scores{i}, %added{i}
  %masked{i} = where %hidden, @lo, %sum{i}
  %prob{i} = softmax %masked{i} {{axis = -1}}
  %vh{i} = view %v{i} : f32[b, s, 2, 4]
  %vt{i} = transpose %vh{i} {{perm = [0, 2, 1, 3]}}
  %ctx{i} = matmul %prob{i}, %vt{i}
  %ct{i} = transpose %ctx{i} {{perm = [0, 2, 1, 3]}}
  %cj{i} = view %ct{i} : f32[b, s, 8]
  %o{i} = matmul %cj{i}, @wo
  %r{i} = add %o{i}, %x{i}
  %x{next} = layer_normalization %r{i}, @gamma, @bq {{axis = -1}}",
            next = i + 1
        )
    };
    format!(
        "graph @deberta(%ids: i64[b, s], %mask: i64[b, s]) dims(b, s) {{
  const @words: f32[11, 8] = random(seed = 1)
  const @wq: f32[8, 8] = random(seed = 2)
  const @wk: f32[8, 8] = random(seed = 3)
  const @wv: f32[8, 8] = random(seed = 4)
  const @wo: f32[8, 8] = random(seed = 5)
  const @bq: f32[8] = random(seed = 6)
  const @gamma: f32[8] = random(seed = 7)
  const @rk: f32[1, 2, 4, 12] = random(seed = 8)
  const @rq: f32[1, 2, 4, 12] = random(seed = 9)
  const @scale: f32[] = 3.4641016
  const @lo: f32[] = -3.4028235e38
  const @zero: i64[] = 0
  const @one: i64[] = 1
  const @two: i64[] = 2
  const @six: i64[] = 6
  %x0 = gather @words, %ids {{axis = 0}}
  %n0 = dims [s]
  %n = view %n0 : i64[]
  {span}
  %last0 = mul %span, @two
  %last = sub %last0, @one
  %range = range @zero, %n, @one
  %row = view %range : i64[s, 1]
  %col = view %range : i64[1, s]
  %repeats = dims [s, 1]
  %cols = tile %col, %repeats
  %d = sub %row, %cols
  %d4 = view %d : i64[1, 1, s, s]
  %c0 = add %d4, %span
  %c1 = clip %c0, @zero, %last
  %all = dims [b, 2, s, s]
  %ci = expand %c1, %all
  %p0 = neg %d4
  %p1 = add %p0, %span
  %p2 = clip %p1, @zero, %last
  %pi = expand %p2, %all
  %keys = view %mask : i64[b, 1, 1, s]
  %queries = view %mask : i64[b, 1, s, 1]
  %both = mul %keys, %queries
  %seen = cast %both {{to = \"bool\"}}
  %hidden = not %seen
  {}
  {}
  return %x2
}}",
        layer(0),
        layer(1)
    )
}

/// One layer of the second form: batch and heads are one axis, positions lie in buckets that grow with the distance, and each
/// term has a scale of its own.
fn bucketed() -> String {
    "graph @bucketed(%ids: i64[b, s], %mask: i64[b, s]) dims(b, s) {
  const @words: f32[11, 8] = random(seed = 1)
  const @wq: f32[8, 8] = random(seed = 2)
  const @wk: f32[8, 8] = random(seed = 3)
  const @wv: f32[8, 8] = random(seed = 4)
  const @wo: f32[8, 8] = random(seed = 5)
  const @bias: f32[8] = random(seed = 6)
  const @rk: f32[8, 8] = random(seed = 7)
  const @rq: f32[8, 8] = random(seed = 8)
  const @table: f32[16, 8] = random(seed = 9)
  const @scale: f32[] = 3.4641016
  const @lo: f32[] = -3.4028235e38
  const @nothing: f32[] = 0.0
  const @zero: i64[] = 0
  const @one: i64[] = 1
  const @mid: i64[] = 4
  const @below_mid: i64[] = -4
  const @last_near: i64[] = 3
  const @mid_f: f32[] = 4.0
  const @log_of_most: f32[] = 1.3217558
  const @steps: f32[] = 3.0
  const @span: i64[] = 8
  const @last: i64[] = 15
  %x = gather @words, %ids {axis = 0}
  %q0 = matmul %x, @wq
  %q1 = add %q0, @bias
  %q2 = view %q1 : f32[b, s, 2, 4]
  %q3 = transpose %q2 {perm = [0, 2, 1, 3]}
  %q = view %q3 : f32[2*b, s, 4]
  %k0 = matmul %x, @wk
  %k1 = add %k0, @bias
  %k2 = view %k1 : f32[b, s, 2, 4]
  %k3 = transpose %k2 {perm = [0, 2, 1, 3]}
  %k = view %k3 : f32[2*b, s, 4]
  %v0 = matmul %x, @wv
  %v2 = view %v0 : f32[b, s, 2, 4]
  %v3 = transpose %v2 {perm = [0, 2, 1, 3]}
  %v = view %v3 : f32[2*b, s, 4]
  %kt0 = transpose %k {perm = [0, 2, 1]}
  %kt = div %kt0, @scale
  %scores = matmul %q, %kt
  %n0 = dims [s]
  %n = view %n0 : i64[]
  %range = range @zero, %n, @one
  %row = view %range : i64[s, 1]
  %col = view %range : i64[1, s]
  %d = sub %row, %col
  %sign = sign %d
  %under = less %d, @mid
  %over = greater %d, @below_mid
  %near = and %under, %over
  %abs = abs %d
  %far = where %near, @last_near, %abs
  %far_f = cast %far {to = \"f32\"}
  %ratio = div %far_f, @mid_f
  %log = log %ratio
  %share = div %log, @log_of_most
  %step0 = mul %share, @steps
  %step = ceil %step0
  %log_pos = add %step, @mid_f
  %within = less_or_equal %far, @mid
  %d_f = cast %d {to = \"f32\"}
  %sign_f = cast %sign {to = \"f32\"}
  %signed = mul %log_pos, %sign_f
  %bucket_f = where %within, %d_f, %signed
  %bucket0 = cast %bucket_f {to = \"i64\"}
  %bucket = view %bucket0 : i64[1, s, s]
  %all = dims [2*b, s, s]
  %pk0 = matmul @table, @rk
  %pk1 = view %pk0 : f32[16, 2, 4]
  %pk2 = transpose %pk1 {perm = [1, 2, 0]}
  %pk3 = view %pk2 : f32[1, 2, 4, 16]
  %copies = dims [b, 2, 4, 16]
  %pk4 = expand %pk3, %copies
  %pk = view %pk4 : f32[2*b, 4, 16]
  %c0 = matmul %q, %pk
  %ci0 = add %bucket, @span
  %ci1 = clip %ci0, @zero, @last
  %ci = expand %ci1, %all
  %c1 = gather_elements %c0, %ci {axis = -1}
  %c2 = div %c1, @scale
  %c = add %c2, @nothing
  %pq0 = matmul @table, @rq
  %pq1 = view %pq0 : f32[16, 2, 4]
  %pq2 = transpose %pq1 {perm = [1, 2, 0]}
  %pq3 = view %pq2 : f32[1, 2, 4, 16]
  %pq4 = expand %pq3, %copies
  %pq = view %pq4 : f32[2*b, 4, 16]
  %p0 = matmul %k, %pq
  %pi0 = neg %bucket
  %pi1 = add %pi0, @span
  %pi2 = clip %pi1, @zero, @last
  %pi = expand %pi2, %all
  %p1 = gather_elements %p0, %pi {axis = -1}
  %p2 = transpose %p1 {perm = [0, 2, 1]}
  %p3 = div %p2, @scale
  %relative = add %c, %p3
  %sum = add %scores, %relative
  %sum4 = view %sum : f32[b, 2, s, s]
  %keys = view %mask : i64[b, 1, 1, s]
  %queries = view %mask : i64[b, 1, s, 1]
  %both = mul %keys, %queries
  %seen = cast %both {to = \"bool\"}
  %hidden = not %seen
  %masked = where %hidden, @lo, %sum4
  %prob = softmax %masked {axis = -1}
  %prob3 = view %prob : f32[2*b, s, s]
  %ctx = matmul %prob3, %v
  %ctx4 = view %ctx : f32[b, 2, s, 4]
  %ctx5 = transpose %ctx4 {perm = [0, 2, 1, 3]}
  %joined = view %ctx5 : f32[b, s, 8]
  %y = matmul %joined, @wo
  return %y
}"
    .to_owned()
}

fn compiled(text: &str) -> Compiled {
    let graph = parse(text).unwrap_or_else(|e| panic!("{e}"));
    compile(graph, &CompileOptions::default(), &mut |_, _| {}).expect("compiles")
}

/// How a value grows with a symbol: the greatest power of it in the number of elements.
fn power(plan: &Plan, value: &ValueDesc, symbol: &str) -> usize {
    let of_term = |symbols: &Vec<u32>| {
        let named = |&&s: &&u32| plan.symbols[s as usize] == symbol;
        symbols.iter().filter(named).count()
    };
    let of_size = |dim: &lancet_artifact::Dim| {
        let terms = dim.terms.iter();
        terms
            .map(|(_, symbols)| of_term(symbols))
            .max()
            .unwrap_or(0)
    };
    value.shape.iter().map(of_size).sum()
}

fn quadratic(plan: &Plan) -> Vec<&str> {
    let grows = |v: &&ValueDesc| 1 < power(plan, v, "s");
    let values = plan.values.iter().filter(grows);
    values.map(|v| v.name.as_str()).collect()
}

const SPANS: [&str; 2] = ["%span = identity @six", "%span = min %n, @six"];

fn graphs() -> [String; 3] {
    let [fixed, shorter] = SPANS.map(text);
    [fixed, shorter, bucketed()]
}

#[test]
fn no_value_grows_with_the_square_of_the_tokens() {
    for text in graphs() {
        let compiled = compiled(&text);
        let (plan, _) = compiled.lower().expect("lowers");
        assert_eq!(quadratic(&plan), Vec::<&str>::new(), "{text}");
    }
    // Without the pass, several do.
    let pipeline = lancet::pipeline::DEFAULT.replace("raise-relative-bias,", "");
    let options = CompileOptions {
        pipeline,
        ..CompileOptions::default()
    };
    let graph = parse(&text(SPANS[0])).expect("parses");
    let compiled = compile(graph, &options, &mut |_, _| {}).expect("compiles");
    let (plan, _) = compiled.lower().expect("lowers");
    assert!(3 < quadratic(&plan).len());
}

#[test]
fn the_answer_is_that_of_the_operators() {
    let sizes = |text: String| [(2, 4), (1, 19), (3, 40)].map(|n| (text.clone(), n));
    for (text, (b, s)) in graphs().into_iter().flat_map(sizes) {
        let of = |f: fn(usize) -> i64| Tensor::new([b, s], (0..b * s).map(f).collect::<Vec<i64>>());
        let mut inputs = [
            ("ids", of(|i| (i * 7 % 11) as i64)),
            ("mask", of(|i| i64::from(i % 5 != 3))),
        ];
        if b == 3 {
            // One sequence is nothing but padding.
            let mask = (0..b * s).map(|i| i64::from(i / s != 1 && i % s < 30));
            inputs[1].1 = Tensor::new([b, s], mask.collect::<Vec<i64>>());
        }
        let expected = eval(&parse(&text).expect("parses"), &inputs).expect("evaluates");
        let expected = expected[0].1.view().to_f64_vec();
        let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
        for kernels in [Kernels::Emitted, Kernels::Portable] {
            let options = ModelOptions {
                kernels,
                threads: Some(2),
                ..ModelOptions::default()
            };
            let model: Model = compiled(&text).into_model(&options).expect("loads");
            let found = Session::new(&model).run(&views).expect("runs");
            let found = found[0].1.view().to_f64_vec();
            assert_eq!(found.len(), expected.len());
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (f - e).abs() <= 2e-5 * (1.0 + e.abs()),
                    "{kernels:?} {b} {s} [{i}]: {f} {e}"
                );
            }
        }
    }
}
