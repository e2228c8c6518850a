//! Every integer matrix kernel on every machine that can be reached, against exact arithmetic in 64 bits.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

mod machine;

use std::collections::HashMap;

use lancet_codegen::formats::{MAX_WEIGHT, PackedMatrix, in_byte_rows, pack_integer, validate};
use lancet_codegen::{Arithmetic, CpuFeatures, Isa, KernelSpec, WeightFormat, emit};
use lancet_passes::analysis::integers::IntegerWeights;
use machine::{Kernel, Machine, address, address_mut};
use proptest::prelude::*;
use proptest::sample::select;

const FORMATS: [WeightFormat; 4] = [
    WeightFormat::Dense,
    WeightFormat::Unstructured,
    WeightFormat::Bsr { r: 1, c: 4 },
    WeightFormat::Bsr { r: 4, c: 1 },
];
const INTEGERS: [Arithmetic; 2] = [Arithmetic::Bytes, Arithmetic::Words];
const TILES: [(u32, u32); 7] = [
    (8, 8),
    (16, 8),
    (16, 16),
    (32, 8),
    (32, 16),
    (32, 24),
    (32, 32),
];

/// What kernels are emitted for, and where they run.
fn targets() -> Vec<(Machine, CpuFeatures)> {
    let native = [CpuFeatures::avx2(), CpuFeatures::baseline(Isa::X64)];
    let emulated = [
        CpuFeatures::avx512(),
        CpuFeatures::avx512_vnni(),
        CpuFeatures::avx_vnni(),
    ];
    let neon = [CpuFeatures::baseline(Isa::Aarch64)];
    let of = |m: Machine, features: &[CpuFeatures]| {
        let features = if m.is_reached() { features } else { &[] };
        features.iter().map(|&f| (m, f)).collect::<Vec<_>>()
    };
    [
        of(Machine::Native, &native),
        of(Machine::Avx512, &emulated),
        of(Machine::Aarch64, &neon),
    ]
    .concat()
}

/// Kernels that were emitted on this thread.
#[derive(Default)]
struct Kernels(HashMap<(KernelSpec, usize), Kernel>);

impl Kernels {
    /// The kernel of `spec` on target `i`.
    fn get(&mut self, spec: &KernelSpec, i: usize, target: (Machine, CpuFeatures)) -> &Kernel {
        self.0.entry((spec.clone(), i)).or_insert_with(|| {
            let emitted = emit(spec, &target.1).unwrap();
            Kernel::new(&emitted.code, target.0)
        })
    }
}

/// The kernels that multiply by a matrix, and that make rows of quads before.
fn specs(m: &PackedMatrix, (panel, lanes): (u32, u32)) -> (KernelSpec, Option<KernelSpec>) {
    let product = KernelSpec::matmul((m.format, m.arithmetic), panel, lanes);
    let rows = in_byte_rows(m.format).then_some(KernelSpec::ByteRows { panel, lanes });
    (product, rows)
}

/// Runs a packed matrix over one panel and compares every lane with the exact sum; lanes beyond stay as they were.
fn check(
    kernels: &mut Kernels,
    m: &PackedMatrix,
    w: &[i16],
    x: impl Fn(usize, usize) -> u8,
    tile: (u32, u32),
    draw: impl Fn(usize) -> bool,
) {
    const UNTOUCHED: i32 = 0x7777_7777;
    let (n, k) = (m.n, m.k);
    let (panel, lanes) = (tile.0 as usize, tile.1 as usize);
    validate((m.format, m.arithmetic), n, k, &m.row_blocks, &m.bytes).unwrap();
    let mut quads = vec![0u8; k.div_ceil(4) * panel * 4];
    for c in 0..k.next_multiple_of(4) {
        for t in 0..panel {
            quads[(c / 4 * panel + t) * 4 + c % 4] = x(t, c);
        }
    }
    let (spec, rows) = specs(m, tile);
    for (i, (machine, features)) in targets().into_iter().enumerate() {
        if machine != Machine::Native && !draw(i) {
            continue;
        }
        // Room for rows of at least 16 bytes.
        let mut in_rows = vec![0u8; k.next_multiple_of(4) * panel.max(16)];
        if let Some(rows) = &rows {
            let n_quads = k.div_ceil(4) as u64;
            let to = address_mut(&mut in_rows);
            let kernel = kernels.get(rows, i, (machine, features));
            kernel.call(&[address(&quads), n_quads, to]);
        }
        let kernel = kernels.get(&spec, i, (machine, features));
        let mut y = vec![UNTOUCHED; (n + 4) * panel];
        for block in &m.row_blocks {
            let bytes = address(&m.bytes) + block.offset;
            let row = block.row0 as usize;
            let y = address_mut(&mut y) + (row * panel * 4) as u64;
            let x = match &rows {
                Some(_) => address(&in_rows),
                None => address(&quads),
            };
            kernel.call(&[bytes, x, y]);
        }
        for row in 0..n + 4 {
            for t in 0..panel {
                let want = if row >= n || t >= lanes {
                    UNTOUCHED
                } else {
                    let products = (0..k).map(|c| i64::from(w[row * k + c]) * i64::from(x(t, c)));
                    products.sum::<i64>() as i32
                };
                assert_eq!(
                    y[row * panel + t],
                    want,
                    "{} {} [{n}, {k}] tile {tile:?} {features:?} row {row} token {t}",
                    m.format,
                    m.arithmetic
                );
            }
        }
    }
}

/// A weight by its position.
type Weights = fn(usize) -> i16;

#[test]
fn extremes() {
    let mut kernels = Kernels::default();
    let weights: [Weights; 9] = [
        |_| -128,
        |_| 127,
        |_| 255,
        |_| -255,
        |_| MAX_WEIGHT,
        |_| 0,
        |i| if i % 2 == 0 { 127 } else { -128 },
        |i| if i % 4 < 2 { 255 } else { -255 },
        |i| if i.is_multiple_of(7) { -128 } else { 0 },
    ];
    let inputs: [fn(usize, usize) -> u8; 4] = [
        |_, _| 255,
        |_, _| 0,
        |t, c| if (t + c) % 2 == 0 { 255 } else { 0 },
        // 255 where weights of one sign are, in a row of alternating ones.
        |t, c| if c % 2 == t % 2 { 255 } else { 1 },
    ];
    for (case, weight) in weights.iter().enumerate() {
        for (n, k) in [(5, 7), (3, 64), (6, 801)] {
            let w: Vec<i16> = (0..n * k).map(weight).collect();
            for arithmetic in INTEGERS {
                for format in [WeightFormat::Dense, FORMATS[2], FORMATS[3]] {
                    let m = pack_integer(arithmetic, format, n, k, &w).unwrap();
                    for (i, x) in inputs.iter().enumerate() {
                        let tile = TILES[(case + i + k) % TILES.len()];
                        check(&mut kernels, &m, &w, x, tile, |j| (i + j + case) % 5 == 0);
                    }
                }
            }
        }
    }
}

fn weights() -> impl Strategy<Value = (usize, usize, Vec<i16>)> {
    let k = prop_oneof![3 => 1usize..70, 1 => 700usize..1700];
    (1usize..14, k, 0u32..=10, 0usize..4).prop_flat_map(|(n, k, tenths, kind)| {
        let value = match kind {
            0 => (-128i16..128).boxed(),
            1 => (-25i16..26).boxed(),
            2 => select(&[-128i16, -127, -1, 1, 127][..]).boxed(),
            _ => (-255i16..256).boxed(),
        };
        let weight = prop_oneof![10 - tenths => Just(0i16), tenths => value];
        (Just(n), Just(k), prop::collection::vec(weight, n * k))
    })
}

/// Bins of a packed matrix of one k-block.
fn n_bins(m: &PackedMatrix) -> usize {
    let mut n = 0;
    for block in &m.row_blocks {
        let bytes = &m.bytes[block.offset as usize..];
        let u32_at = |at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(u32_at(0), 1);
        let (n_groups, groups) = (u32_at(64 + 4), u32_at(64 + 8));
        let counts = (0..n_groups).flat_map(|g| (0..4).map(move |i| groups + g * 16 + 4 + i * 2));
        n += counts
            .map(|at| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]])))
            .sum::<usize>();
    }
    n
}

/// The cost model knows what the packer does with a matrix before it has packed it.
#[test]
fn stored_weights_and_bins_are_foreseen() {
    let (n, k) = (64, 768);
    let hash = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761) ^ (i as u32) << 7;
    let random = |i: usize| (hash(i).wrapping_mul(2_246_822_519) >> 8) as i32;
    let spreads: [fn(i32) -> i32; 7] = [
        |r| r % 25 - 12,
        // A sum of four: nearly normal.
        |r| r % 64 + r / 64 % 64 + r / 4096 % 64 + r / 262_144 % 64 - 126,
        |r| r % 255 - 127,
        |r| r % 511 - 255,
        |r| if r % 2 == 0 { 127 } else { -127 },
        |r| if r % 2 == 0 { 64 } else { -64 },
        |r| r % 128,
    ];
    for (case, spread) in spreads.iter().enumerate() {
        for density in [100, 50, 20] {
            let weight = |i: usize| match random(i + 1_000_003) % 100 < density {
                true => spread(random(i)) as i16,
                false => 0,
            };
            let w: Vec<i16> = (0..n * k).map(weight).collect();
            let found = IntegerWeights::of(&w, k);
            let bytes = pack_integer(Arithmetic::Bytes, WeightFormat::Dense, n, k, &w).unwrap();
            let words = pack_integer(Arithmetic::Words, WeightFormat::Dense, n, k, &w).unwrap();
            let pairs = pack_integer(Arithmetic::Bytes, FORMATS[1], n, k, &w).unwrap();
            for (what, foreseen, packed, tolerance) in [
                ("words", found.quads as f64, words.nnz_stored / 4, 0.01),
                (
                    "bytes",
                    found.bounded_quads as f64,
                    bytes.nnz_stored / 4,
                    0.03,
                ),
                ("bins", found.bins, n_bins(&bytes), 0.25),
                ("weights", found.weights as f64, pairs.nnz_stored, 0.2),
                (
                    "bins of pairs",
                    found.bins_of_pairs,
                    2 * n_bins(&pairs),
                    0.25,
                ),
            ] {
                let ratio = foreseen / packed as f64;
                assert!(
                    (ratio - 1.0).abs() <= tolerance,
                    "case {case}, density {density}: {foreseen} {what}, packed as {packed}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn exact(
        (n, k, w) in weights(),
        format in select(&FORMATS[..]),
        arithmetic in select(&INTEGERS[..]),
        tile in select(&TILES[..]),
        seed in any::<u32>(),
    ) {
        let m = pack_integer(arithmetic, format, n, k, &w).unwrap();
        let x = |t: usize, c: usize| {
            let place = seed.wrapping_add(t as u32 * 8191 + c as u32);
            let hash = place.wrapping_mul(2_654_435_761) >> 20;
            match seed % 3 {
                0 => 255 * (hash % 2) as u8,
                _ => hash as u8,
            }
        };
        check(&mut Kernels::default(), &m, &w, x, tile, |i| (seed as usize / 7 + i).is_multiple_of(4));
    }
}
