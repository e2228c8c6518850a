//! Every matrix kernel on every machine that can be reached, against a plain sum.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

mod machine;

use lancet_codegen::formats::{PackedMatrix, pack, stored_format, validate};
use lancet_codegen::{Code, CpuFeatures, Isa, KernelSpec, WeightFormat, emit, kernels, lower};
use machine::{Kernel, Machine, address};

const FORMATS: [WeightFormat; 5] = [
    WeightFormat::Dense,
    WeightFormat::Unstructured,
    WeightFormat::Bsr { r: 4, c: 1 },
    WeightFormat::Bsr { r: 1, c: 4 },
    WeightFormat::Bsr { r: 2, c: 2 },
];
const TILES: [(u32, u32); 6] = [(8, 8), (16, 16), (32, 8), (32, 16), (32, 24), (32, 32)];

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

/// A buffer whose first element is at a multiple of 64.
struct Aligned {
    data: Vec<f32>,
    start: usize,
}

impl Aligned {
    fn new(len: usize, value: f32) -> Self {
        let data = vec![value; len + 32];
        let start = data.as_ptr().align_offset(64);
        Aligned { data, start }
    }
    fn of(bytes: &[u8]) -> Self {
        let mut a = Aligned::new(bytes.len() / 4, 0.0);
        for (i, word) in bytes.chunks_exact(4).enumerate() {
            a.data[a.start + i] = f32::from_bits(u32::from_le_bytes(word.try_into().unwrap()));
        }
        a
    }
    fn ptr(&self) -> u64 {
        address(&self.data[self.start..])
    }
}

/// Emitters: machine code at 256 and 128 bits and Cranelift's here, 512 bits and NEON where these can be reached.
const TARGETS: [(&str, Machine); 5] = [
    ("ymm", Machine::Native),
    ("xmm", Machine::Native),
    ("clif", Machine::Native),
    ("zmm", Machine::Avx512),
    ("neon", Machine::Aarch64),
];

fn code(spec: &KernelSpec, target: &str) -> Code {
    let portable = CpuFeatures {
        fma: true,
        ..CpuFeatures::baseline(Isa::X64)
    };
    let wide = CpuFeatures::avx2();
    match target {
        "ymm" => emit(spec, &wide).unwrap().code,
        "clif" => emit(spec, &portable).unwrap().code,
        "zmm" => emit(spec, &CpuFeatures::avx512()).unwrap().code,
        "neon" => {
            emit(spec, &CpuFeatures::baseline(Isa::Aarch64))
                .unwrap()
                .code
        }
        _ => lower(&kernels::build(spec, &portable).unwrap(), &wide).unwrap(),
    }
}

struct Kernels(std::collections::HashMap<(KernelSpec, &'static str), Kernel>);

impl Kernels {
    fn get(
        &mut self,
        format: WeightFormat,
        (panel, lanes): (u32, u32),
        (target, machine): (&'static str, Machine),
    ) -> &Kernel {
        let spec = KernelSpec::Matmul {
            format,
            panel,
            lanes,
        };
        let exec = self.0.entry((spec.clone(), target));
        exec.or_insert_with(|| Kernel::new(&code(&spec, target), machine))
    }
}

/// Runs every row block of a packed matrix over one panel; untouched outputs are 77.
fn run(kernel: &Kernel, m: &PackedMatrix, panel: usize, x: &Aligned, bias: &[f32]) -> Vec<f32> {
    let y = Aligned::new((m.n + 4) * panel, 77.0);
    let weights = Aligned::of(&m.bytes);
    for block in &m.row_blocks {
        let row = block.row0 as usize;
        kernel.call(&[
            weights.ptr() + block.offset,
            x.ptr(),
            y.ptr() + (row * panel * 4) as u64,
            address(&bias[row..]),
            weights.ptr() + block.offset + block.len,
            40,
        ]);
    }
    let start = y.start;
    y.data[start..start + (m.n + 4) * panel].to_vec()
}

/// Which inputs a row of the packed form multiplies: its non-zeros, and for blocks all their columns.
fn uses(format: WeightFormat, w: &[f32], n: usize, k: usize, row: usize, col: usize) -> bool {
    let any = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
        rows.into_iter()
            .any(|r| cols.clone().any(|c| w[r * k + c] != 0.0))
    };
    match stored_format(format, k) {
        WeightFormat::Dense => true,
        WeightFormat::Unstructured => w[row * k + col] != 0.0,
        WeightFormat::Bsr { c: 1, .. } => {
            // Strips of four rows count from the row block; a strip is at most three rows away.
            any(row.saturating_sub(3)..(row + 4).min(n), col..col + 1)
        }
        WeightFormat::Bsr { .. } => any(row..row + 1, col.saturating_sub(3)..(col + 4).min(k)),
    }
}

fn check(kernels: &mut Kernels, format: WeightFormat, n: usize, k: usize, w: &[f32], seed: u64) {
    let m = pack(format, n, k, w).unwrap();
    validate((m.format, m.arithmetic), n, k, &m.row_blocks, &m.bytes).unwrap();
    let mut rng = Rng(seed | 1);
    let bias: Vec<f32> = (0..n).map(|_| rng.unit() - 0.5).collect();
    let poisoned = rng.next() as usize % k;
    for tile in TILES {
        let (panel, lanes) = (tile.0 as usize, tile.1 as usize);
        let mut x = Aligned::new(k * panel, 0.0);
        for i in 0..k * panel {
            x.data[x.start + i] = rng.unit() - 0.5;
        }
        for target in TARGETS {
            let (name, machine) = target;
            // Another machine is slower: it sees one case in eight, which the seed draws.
            let is_drawn = machine == Machine::Native || rng.next().is_multiple_of(8);
            if !is_drawn || !machine.is_reached() {
                continue;
            }
            let kernel = kernels.get(m.format, tile, target);
            for poison in [false, true] {
                let keep = x.data.clone();
                if poison {
                    for t in 0..panel {
                        x.data[x.start + poisoned * panel + t] = f32::INFINITY;
                    }
                }
                let y = run(kernel, &m, panel, &x, &bias);
                for row in 0..n + 4 {
                    for t in 0..panel {
                        let got = y[row * panel + t];
                        let context = || {
                            format!(
                                "{format:?} {n}x{k} tile {tile:?} {} row {row} token {t}",
                                name
                            )
                        };
                        if row >= n || t >= lanes {
                            assert_eq!(got, 77.0, "{} was written", context());
                            continue;
                        }
                        let (mut sum, mut size) =
                            (f64::from(bias[row]), f64::from(bias[row].abs()) + 1e-3);
                        for c in 0..k {
                            let product = f64::from(w[row * k + c])
                                * f64::from(x.data[x.start + c * panel + t]);
                            if w[row * k + c] != 0.0 {
                                sum += product;
                                size += product.abs();
                            }
                        }
                        if poison && uses(format, w, n, k, row, poisoned) {
                            if stored_format(format, k) == WeightFormat::Unstructured {
                                assert_eq!(f64::from(got), sum, "{}", context());
                            }
                            continue;
                        }
                        assert!(
                            (f64::from(got) - sum).abs() <= 2e-6 * size,
                            "{}: {got}, not {sum}",
                            context()
                        );
                    }
                }
                x.data = keep;
            }
        }
    }
}

fn random(n: usize, k: usize, density: f32, rng: &mut Rng) -> Vec<f32> {
    (0..n * k)
        .map(|_| {
            if rng.unit() < density {
                rng.unit() - 0.5
            } else {
                0.0
            }
        })
        .collect()
}

#[test]
fn small_shapes() {
    let mut kernels = Kernels(Default::default());
    let mut rng = Rng(42);
    let sizes = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100];
    for format in FORMATS {
        for n in sizes {
            for k in sizes {
                let density = [0.0, 0.05, 0.3, 1.0][rng.next() as usize % 4];
                let w = random(n, k, density, &mut rng);
                check(&mut kernels, format, n, k, &w, rng.next());
            }
        }
    }
}

#[test]
fn several_blocks() {
    let mut kernels = Kernels(Default::default());
    let mut rng = Rng(43);
    for format in FORMATS {
        for (n, k, density) in [
            (300, 530, 0.1),
            (530, 261, 0.02),
            (270, 769, 0.5),
            (40, 1030, 1.0),
        ] {
            let w = random(n, k, density, &mut rng);
            check(&mut kernels, format, n, k, &w, rng.next());
        }
    }
}

#[test]
fn uneven_rows() {
    let mut kernels = Kernels(Default::default());
    let mut rng = Rng(44);
    for format in FORMATS {
        let (n, k) = (37, 300);
        let mut w = vec![0.0; n * k];
        check(&mut kernels, format, n, k, &w, rng.next());
        w[5 * k..6 * k].fill(0.25);
        check(&mut kernels, format, n, k, &w, rng.next());
        for row in 8..n {
            for col in 0..row {
                w[row * k + col * 7] = 0.5;
            }
        }
        check(&mut kernels, format, n, k, &w, rng.next());
    }
}
