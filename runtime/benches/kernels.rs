//! Speed of the matrix kernels as a share of what the core does right now.
//!
//! The clock of a virtual machine moves, so every sample is taken between two runs of a register-only FMA loop and counts
//! only if both agree; the figure is the median of `2 * non-zeros * tokens / time / peak`.
//!
//! `cargo bench -p lancet-runtime --bench kernels -- [--json] [--quick] [--grid] [--fit] [filter]...`; a filter is a part of
//! a line's first columns, such as `unstructured`, `768x768` or `t128`; `elements` are the kernels that compute functions of elements
//! or reduce them; their operations are those of the kernel, in f64 half as many for an instruction. Integers differ in how their magnitudes are spread, and with
//! that in how many fit in a bin: `normal15` and `normal40` by their standard deviation, `uniform`, and `ends`, which are all +-127.
//!
//! The last columns hold the time that the cost model predicts against the measured one, and the last line says how many
//! are within 15 %. `--grid` measures more shapes and sparsities; `--fit` prints the constants that fit them best, as they
//! stand in `passes/src/analysis/cost.rs`.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

mod exec;

use exec::Exec;
use lancet_artifact::{Float, Reach, Reduction};
use lancet_codegen::formats::{PackedMatrix, in_byte_rows, pack, pack_integer, stored_format_of};
use lancet_codegen::kir::{Binary, Builder, Op};
use lancet_codegen::{Arithmetic, CpuFeatures, KernelSpec, WeightFormat, emit, kernels, lower};
use lancet_passes::analysis::cost::{self, Constants, Kernel, Matrix, Sample};
use lancet_passes::analysis::sparsity::SparsityPattern;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Register-only FMA loop: the peak at this moment.
struct Probe {
    exec: Exec,
    flops: f64,
}

impl Probe {
    fn new(features: &CpuFeatures) -> Self {
        let vl = features.vl(16);
        let mut b = Builder::new("probe", vl);
        let n = b.arg(0);
        let acc = b.vectors(12);
        let (x, w) = (b.vector(), b.vector());
        for &v in acc.iter().chain([&x, &w]) {
            b.zero(v);
        }
        b.repeat(n, |b| {
            for &a in acc.iter().chain(&acc) {
                b.fma(a, x, w);
            }
        });
        let exec = Exec::new(&lower(&b.finish(), features).unwrap());
        Probe {
            exec,
            flops: 24.0 * vl as f64 * 2.0,
        }
    }

    /// GFLOP/s now.
    fn run(&self) -> f64 {
        const N: u64 = 20_000;
        let t = exec::cpu_time();
        self.exec.call(&[N]);
        N as f64 * self.flops / (exec::cpu_time() - t) / 1e9
    }
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the cost model says of a case: the sample that the measurement is, and the predicted cycles of one product.
fn predict(case: &Case, nnz_cycles: f64) -> (Kernel, Sample, f64) {
    let format = match case.format {
        WeightFormat::Dense => lancet_ir::WeightFormat::Dense,
        WeightFormat::Unstructured => lancet_ir::WeightFormat::Unstructured,
        WeightFormat::Bsr { r: 1, .. } => lancet_ir::WeightFormat::Bsr { r: 1, c: 4 },
        WeightFormat::Bsr { .. } => lancet_ir::WeightFormat::Bsr { r: 4, c: 1 },
    };
    let (n, k) = (case.n, case.k);
    let mut rng = Rng(SEED);
    let w = weight(case, &mut rng);
    let kernel = match case.arithmetic {
        Arithmetic::Float => Kernel::of_floats(format),
        Arithmetic::Bytes
            if in_byte_rows(stored_format_of(Arithmetic::Bytes, case.format, case.k)) =>
        {
            Kernel::Pairs
        }
        Arithmetic::Bytes => Kernel::Bytes,
        Arithmetic::Words => Kernel::Words,
    };
    let matrix = match case.spread {
        None => Matrix::floats(SparsityPattern::of(&w, n, k)),
        Some(spread) => Matrix::integers(&quantized(&w, spread, &mut rng), n, k),
    };
    let cycles = matrix.pattern.nnz as f64 * nnz_cycles;
    let n_panels = cost::panels(case.tokens).count();
    let sample = Sample {
        work: kernel.work(&matrix, format),
        vectors: cost::panels(case.tokens).next().unwrap(),
        cycles: cycles / n_panels as f64,
    };
    let predicted = cost::predict(&matrix, kernel, format, case.tokens).total();
    (kernel, sample, predicted / cycles)
}

/// The constants as they stand in the cost model.
fn print_constants(kernel: Kernel, c: &Constants) {
    let row = |x: [f64; 4]| x.map(|v| format!("{v:.3}")).join(", ");
    println!("    // {kernel:?}");
    println!("    Constants {{");
    println!("        weight: [{}],", row(c.weight));
    println!("        bin: [{}],", row(c.bin));
    println!("        edge: [{}],", row(c.edge));
    println!("        far_byte: [{}],", row(c.far_byte));
    println!("    }},");
}

struct Buffer {
    data: Vec<f32>,
    start: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        let data = vec![0.0; len + 1024 + 32];
        let start = data.as_ptr().align_offset(4096).min(1024);
        Buffer { data, start }
    }
    fn ptr(&self) -> u64 {
        self.data[self.start..].as_ptr() as u64
    }
}

#[derive(Clone, Copy)]
struct Case {
    format: WeightFormat,
    arithmetic: Arithmetic,
    /// Of integers.
    spread: Option<Spread>,
    n: usize,
    k: usize,
    sparsity: f64,
    tokens: usize,
}

fn weight(case: &Case, rng: &mut Rng) -> Vec<f32> {
    let (n, k) = (case.n, case.k);
    let (r, c) = match case.format {
        WeightFormat::Bsr { r, c } => (r as usize, c as usize),
        WeightFormat::Dense | WeightFormat::Unstructured => (1, 1),
    };
    let mut w = vec![0.0; n * k];
    for i in (0..n).step_by(r) {
        for j in (0..k).step_by(c) {
            if f64::from(rng.unit()) >= case.sparsity {
                for row in i..(i + r).min(n) {
                    for col in j..(j + c).min(k) {
                        w[row * k + col] = rng.unit() - 0.5;
                    }
                }
            }
        }
    }
    w
}

/// How weights of 8 bits are distributed.
#[derive(Clone, Copy)]
enum Spread {
    /// With this standard deviation, cut off at +-127.
    Normal(u8),
    Uniform,
    /// All +-127.
    Ends,
}

impl Spread {
    const ALL: [Spread; 4] = [
        Spread::Normal(15),
        Spread::Normal(40),
        Spread::Uniform,
        Spread::Ends,
    ];

    fn name(self) -> String {
        match self {
            Spread::Normal(deviation) => format!("normal{deviation}"),
            Spread::Uniform => "uniform".into(),
            Spread::Ends => "ends".into(),
        }
    }

    fn draw(self, rng: &mut Rng) -> f32 {
        match self {
            Spread::Normal(deviation) => {
                let normal = (0..12).map(|_| rng.unit()).sum::<f32>() - 6.0;
                normal * f32::from(deviation)
            }
            Spread::Uniform => rng.unit() * 255.0 - 127.5,
            Spread::Ends => 127.0 * (rng.unit() - 0.5).signum(),
        }
    }
}

/// The weights that are not zero in 8 bits.
fn quantized(w: &[f32], spread: Spread, rng: &mut Rng) -> Vec<i16> {
    w.iter()
        .map(|&w| {
            let v = spread.draw(rng).round().clamp(-127.0, 127.0);
            match (w == 0.0, v == 0.0) {
                (true, _) => 0,
                (false, true) => 1,
                (false, false) => v as i16,
            }
        })
        .collect()
}

fn name(case: &Case) -> String {
    let format = match case.format {
        WeightFormat::Dense => "dense".into(),
        WeightFormat::Unstructured => "unstructured".into(),
        WeightFormat::Bsr { r, c } => format!("bsr{r}x{c}"),
    };
    match case.arithmetic {
        Arithmetic::Float => format,
        integer => format!("{integer}_{format}"),
    }
}

fn run(
    m: &PackedMatrix,
    kernels: &[(usize, &Exec)],
    panel: usize,
    weights: u64,
    x: u64,
    y: u64,
    bias: u64,
) {
    let x_rows = match m.arithmetic {
        Arithmetic::Float => m.k,
        Arithmetic::Bytes | Arithmetic::Words => m.k.div_ceil(4),
    };
    for block in &m.row_blocks {
        for &(p, exec) in kernels {
            exec.call(&[
                weights + block.offset,
                x + (p * x_rows * panel * 4) as u64,
                y + ((p * m.n + block.row0 as usize) * panel * 4) as u64,
                bias + u64::from(block.row0) * 4,
                weights,
                0,
            ]);
        }
    }
}

/// Median GFLOP/s, median share of peak, and the share of stored work that is useful.
fn measure(case: &Case, features: &CpuFeatures, probe: &Probe, quick: bool) -> (f64, f64, f64) {
    let mut rng = Rng(SEED);
    let w = weight(case, &mut rng);
    let m = match case.spread {
        None => pack(case.format, case.n, case.k, &w).unwrap(),
        Some(spread) => {
            let w = quantized(&w, spread, &mut rng);
            pack_integer(case.arithmetic, case.format, case.n, case.k, &w).unwrap()
        }
    };
    let panel = case.tokens.next_power_of_two().clamp(8, 32);
    let n_panels = case.tokens.div_ceil(panel);
    let lanes = |p: usize| (case.tokens - p * panel).min(panel).next_multiple_of(8);
    let execs: Vec<Exec> = (0..n_panels)
        .map(|p| {
            let (format, panel, lanes) = (m.format, panel as u32, lanes(p) as u32);
            let spec = match m.arithmetic {
                Arithmetic::Float => KernelSpec::Matmul {
                    format,
                    panel,
                    lanes,
                },
                arithmetic => KernelSpec::IntegerMatmul {
                    format,
                    arithmetic,
                    panel,
                    lanes,
                },
            };
            Exec::new(&emit(&spec, features).unwrap().code)
        })
        .collect();
    let kernels: Vec<(usize, &Exec)> = execs.iter().enumerate().collect();
    let mut weights = Buffer::new(m.bytes.len() / 4);
    for (i, word) in m.bytes.chunks_exact(4).enumerate() {
        let at = weights.start + i;
        weights.data[at] = f32::from_bits(u32::from_le_bytes(word.try_into().unwrap()));
    }
    let mut x = Buffer::new(n_panels * case.k * panel);
    for v in &mut x.data {
        *v = rng.unit() - 0.5;
    }
    let y = Buffer::new(n_panels * case.n * panel);
    let bias = Buffer::new(case.n);
    let go = || {
        run(
            &m,
            &kernels,
            panel,
            weights.ptr(),
            x.ptr(),
            y.ptr(),
            bias.ptr(),
        )
    };
    let flops = 2.0 * m.nnz as f64 * case.tokens as f64;
    let (gflops, share) = sample(go, flops, probe, quick);
    (gflops, share, m.nnz as f64 / m.nnz_stored as f64)
}

/// Median GFLOP/s and median share of peak of what `go` does, so many operations.
fn sample(go: impl Fn(), flops: f64, probe: &Probe, quick: bool) -> (f64, f64) {
    go();
    let t = exec::cpu_time();
    go();
    let inner = ((1.5e-3 / (exec::cpu_time() - t)) as usize).max(1);
    let mut samples = Vec::new();
    let wanted = if quick { 7 } else { 21 };
    for _ in 0..wanted * 8 {
        let before = probe.run();
        let t = exec::cpu_time();
        for _ in 0..inner {
            go();
        }
        let seconds = (exec::cpu_time() - t) / inner as f64;
        let after = probe.run();
        let peak = 0.5 * (before + after);
        if (before - after).abs() / peak < 0.03 {
            samples.push((flops / seconds / 1e9, flops / seconds / 1e9 / peak));
        }
        if samples.len() == wanted {
            break;
        }
    }
    samples.sort_by(|a, b| a.1.total_cmp(&b.1));
    let middle = samples.get(samples.len() / 2).copied();
    middle.unwrap_or((f64::NAN, f64::NAN))
}

/// Kernels over the elements of a panel, by the lines that they compute or the function that they reduce by.
const OF_ELEMENTS: [(&str, &str, Float); 9] = [
    ("scale", "mul x0 x1; add v0 x1; relu v1", Float::F32),
    ("gelu", "gelu x0", Float::F32),
    (
        "requantize",
        "f64 x0; mul v0 x1; div v1 256; round v2; f32 v3; max v4 -128; min v5 127; mul v6 0.01",
        Float::F64,
    ),
    ("atan", "atan x0", Float::F32),
    ("sin", "sin x0", Float::F32),
    ("log", "log x0", Float::F32),
    ("pow", "pow 2.0 x0", Float::F32),
    ("reduce_sum", "", Float::F32),
    ("reduce_max", "", Float::F64),
];

/// Arithmetic operations on numbers; a loop over so many rows counts once, one that begins with a constant as often as that says.
fn operations(ops: &[Op], vl: usize) -> usize {
    let (mut sum, mut count) = (0, 1);
    for op in ops {
        sum += match op {
            Op::Imm { value, .. } => {
                count = *value as usize;
                0
            }
            Op::Loop { body, .. } => std::mem::replace(&mut count, 1) * operations(body, vl),
            Op::Binary { op, .. } => match op {
                Binary::Add | Binary::Sub | Binary::Mul | Binary::Div => vl,
                Binary::Max | Binary::Min => vl,
                Binary::Add64 | Binary::Sub64 | Binary::Mul64 | Binary::Div64 => vl / 2,
                Binary::Max64 | Binary::Min64 => vl / 2,
                _ => 0,
            },
            Op::Fma { .. } | Op::Fnma { .. } | Op::MulAdd { .. } => 2 * vl,
            _ => 0,
        };
    }
    sum
}

/// Prints a line for each kernel of [`OF_ELEMENTS`] that the filters let through, on 768 features of 32 tokens.
fn measure_elements(
    filters: &[&String],
    features: &CpuFeatures,
    probe: &Probe,
    (quick, json): (bool, bool),
) {
    const FEATURES: usize = 768;
    const TOKENS: usize = 32;
    let mut rng = Rng(SEED);
    let words = 2 * FEATURES * TOKENS;
    let [mut x, mut by_row, y] = [words, 2 * FEATURES, words].map(Buffer::new);
    for v in x.data.iter_mut().chain(&mut by_row.data) {
        *v = rng.unit() + 0.5;
    }
    for (name, body, float) in OF_ELEMENTS {
        let label = ["elements", name, "768x32"];
        let kinds = |f: &str| f.split(',').any(|f| label.contains(&f));
        if !filters.iter().all(|f| kinds(f)) {
            continue;
        }
        let (panel, lanes) = (TOKENS as u32, TOKENS as u32);
        let spec = match name.parse::<Reduction>() {
            Ok(reduction) => KernelSpec::Reduce {
                reduction,
                float,
                lanes,
            },
            Err(_) => KernelSpec::Elementwise {
                body: body.to_owned(),
                operands: vec![(Reach::Panel, Float::F32), (Reach::Rows, float)],
                result: Float::F32,
                panel,
                lanes,
            },
        };
        let exec = Exec::new(&emit(&spec, features).unwrap().code);
        let stride = (TOKENS * float.size_bytes()) as u64;
        let args = match spec {
            KernelSpec::Reduce { .. } => [FEATURES as u64, x.ptr(), stride, y.ptr()],
            _ => [FEATURES as u64, y.ptr(), x.ptr(), by_row.ptr()],
        };
        let program = kernels::build(&spec, features).unwrap();
        let n = operations(&program.ops, program.vl) * FEATURES;
        let (gflops, share) = sample(|| exec.call(&args), n as f64, probe, quick);
        if json {
            println!(
                "{{\"kernel\":\"{name}\",\"features\":{FEATURES},\"tokens\":{TOKENS},\"gflops\":{gflops:.2},\"share_of_peak\":{share:.4}}}"
            );
        } else {
            println!(
                "{name:<16} {:>8} {:>9} {:>6} {TOKENS:>6} {gflops:>9.1} {:>7.1}",
                "-",
                format!("{FEATURES}x{TOKENS}"),
                "-",
                share * 100.0
            );
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let flag = |f: &str| args.iter().any(|a| a == f);
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with("--")).collect();
    let features = CpuFeatures::avx2();
    let probe = Probe::new(&features);
    let is_grid = flag("--grid");
    let shapes: &[(usize, usize)] = if is_grid {
        &[
            (768, 768),
            (3072, 768),
            (768, 3072),
            (384, 1536),
            (1024, 1024),
            (312, 312),
        ]
    } else {
        &[(768, 768), (3072, 768), (768, 3072)]
    };
    let zeros: &[f64] = if is_grid {
        &[0.5, 0.7, 0.8, 0.9, 0.95, 0.97]
    } else {
        &[0.8, 0.9, 0.95]
    };
    let formats = [
        WeightFormat::Dense,
        WeightFormat::Unstructured,
        WeightFormat::Bsr { r: 4, c: 1 },
        WeightFormat::Bsr { r: 16, c: 1 },
        WeightFormat::Bsr { r: 1, c: 4 },
        WeightFormat::Bsr { r: 1, c: 16 },
    ];
    if !flag("--json") {
        println!(
            "{:<16} {:>8} {:>9} {:>6} {:>6} {:>9} {:>7} {:>7} {:>9}",
            "kernel",
            "spread",
            "n x k",
            "zeros",
            "tokens",
            "GFLOP/s",
            "peak %",
            "useful",
            "predicted"
        );
    }
    let mut samples: Vec<(Kernel, Sample)> = Vec::new();
    let (mut n_measured, mut n_predicted) = (0, 0);
    let integers = Spread::ALL.into_iter().flat_map(|spread| {
        [Arithmetic::Bytes, Arithmetic::Words].map(|arithmetic| (arithmetic, Some(spread)))
    });
    let cases = [(Arithmetic::Float, None)]
        .into_iter()
        .chain(integers)
        .flat_map(|elements| formats.map(|format| (format, elements)));
    for (format, (arithmetic, spread)) in cases {
        let spread_name = spread.map_or("-".to_owned(), Spread::name);
        for &(n, k) in shapes {
            for sparsity in if format == WeightFormat::Dense {
                &[0.0][..]
            } else {
                zeros
            } {
                for tokens in [128, 32, 24, 16, 8] {
                    let case = Case {
                        format,
                        arithmetic,
                        spread,
                        n,
                        k,
                        sparsity: *sparsity,
                        tokens,
                    };
                    let label = format!(
                        "{} {} {n}x{k} s{} t{tokens}",
                        name(&case),
                        spread_name,
                        (sparsity * 100.0).round()
                    );
                    let words: Vec<&str> = label.split(' ').collect();
                    let kinds = |f: &str| f.split(',').any(|f| words.contains(&f));
                    if !filters.iter().all(|f| kinds(f)) {
                        continue;
                    }
                    let (gflops, share, useful) =
                        measure(&case, &features, &probe, flag("--quick"));
                    // At its peak the probe does two multiply-adds of 256 bits in a cycle: 32 operations.
                    let nnz_cycles = 2.0 * tokens as f64 / (share * 32.0);
                    let (kernel, sample, predicted) = predict(&case, nnz_cycles);
                    if share.is_finite() {
                        samples.push((kernel, sample));
                        n_measured += 1;
                        n_predicted += usize::from((predicted - 1.0).abs() <= 0.15);
                    }
                    if flag("--json") {
                        println!(
                            "{{\"kernel\":\"{}\",\"spread\":\"{spread_name}\",\"n\":{n},\"k\":{k},\"sparsity\":{sparsity},\"tokens\":{tokens},\"gflops\":{gflops:.2},\"share_of_peak\":{share:.4},\"useful\":{useful:.4},\"predicted\":{predicted:.4}}}",
                            name(&case)
                        );
                    } else {
                        println!(
                            "{:<16} {:>8} {:>9} {:>6.2} {:>6} {:>9.1} {:>7.1} {:>7.3} {:>9.3}",
                            name(&case),
                            spread_name,
                            format!("{n}x{k}"),
                            sparsity,
                            tokens,
                            gflops,
                            share * 100.0,
                            useful,
                            predicted
                        );
                    }
                }
            }
        }
    }
    if !is_grid {
        let how = (flag("--quick"), flag("--json"));
        measure_elements(&filters, &features, &probe, how);
    }
    if !flag("--json") {
        println!("predicted within 15 %: {n_predicted} of {n_measured}");
    }
    if flag("--fit") {
        for kernel in Kernel::ALL {
            let of_kernel = samples.iter().filter(|s| s.0 == kernel).map(|s| s.1);
            let constants = cost::fit(kernel, &of_kernel.collect::<Vec<_>>());
            print_constants(kernel, &constants);
        }
    }
}
