//! Every operation of the kernel IR, run on every machine that can be reached, against its meaning in Rust.
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

mod machine;

use lancet_codegen::kir::*;
use lancet_codegen::{CpuFeatures, Isa, lower};
use machine::{Kernel, Machine, address, address_mut};

/// A machine, what code is emitted for, and lanes of a vector.
type Form = (Machine, CpuFeatures, usize);

/// Vectors of these lanes through both emitters here, and on every other machine that can be reached.
fn forms(lanes: &[usize]) -> Vec<Form> {
    let clif = CpuFeatures {
        fma: true,
        ..CpuFeatures::baseline(Isa::X64)
    };
    let mut forms = Vec::new();
    for &vl in lanes {
        forms.push((Machine::Native, clif, vl));
        if vl <= 8 {
            forms.push((Machine::Native, CpuFeatures::avx2(), vl));
        }
        if Machine::Avx512.is_reached() {
            forms.push((Machine::Avx512, CpuFeatures::avx512(), vl));
        }
        if Machine::Aarch64.is_reached() {
            forms.push((Machine::Aarch64, CpuFeatures::baseline(Isa::Aarch64), vl));
        }
    }
    forms
}

const A: [f32; 16] = [
    1.5,
    -2.0,
    3.25,
    0.0,
    -0.0,
    7.0,
    f32::NAN,
    1e9,
    2.5,
    3.5,
    -2.5,
    f32::INFINITY,
    -1.0,
    0.5,
    9.0,
    4.0,
];
const B: [f32; 16] = [
    2.0,
    -2.0,
    f32::NAN,
    1.0,
    0.0,
    -7.0,
    1.0,
    3.0,
    0.25,
    8.0,
    -9.0,
    1.0,
    6.0,
    0.5,
    -0.5,
    16.0,
];

/// Runs a program that maps vectors `a` and `b` to one result, for whole vectors of the 16 lanes.
fn run(
    (machine, features, vl): Form,
    body: impl Fn(&mut Builder, Vector, Vector, Vector),
) -> [f32; 16] {
    let mut b = Builder::new("test", vl);
    let [pa, pb, po] = [0, 1, 2].map(|i| b.arg(i));
    let count = b.scalar();
    b.imm(count, (16 / vl) as i64);
    let [va, vb, out] = [b.vector(), b.vector(), b.vector()];
    b.repeat(count, |b| {
        b.load(va, at(pa, 0));
        b.load(vb, at(pb, 0));
        body(b, va, vb, out);
        b.store(at(po, 0), out);
        for p in [pa, pb, po] {
            b.add_imm(p, b.vector_bytes());
        }
    });
    let program = b.finish();
    let code = lower(&program, &features).unwrap();
    let mut out = [0f32; 16];
    let kernel = Kernel::new(&code, machine);
    kernel.call(&[address(&A), address(&B), address_mut(&mut out)]);
    out
}

fn check(
    what: &str,
    body: impl Fn(&mut Builder, Vector, Vector, Vector),
    want: impl Fn(f32, f32) -> f32,
) {
    for form in forms(&[4, 8, 16]) {
        let got = run(form, &body);
        for i in 0..16 {
            let want = want(A[i], B[i]);
            assert!(
                got[i].to_bits() == want.to_bits() || got[i].is_nan() && want.is_nan(),
                "{what} {form:?} lane {i}: {} op {} = {}, not {want}",
                A[i],
                B[i],
                got[i]
            );
        }
    }
}

fn bits(f: impl Fn(u32, u32) -> u32) -> impl Fn(f32, f32) -> f32 {
    move |a, b| f32::from_bits(f(a.to_bits(), b.to_bits()))
}

#[test]
fn arithmetic() {
    check("add", |b, x, y, o| b.add(o, x, y), |x, y| x + y);
    check("sub", |b, x, y, o| b.sub(o, x, y), |x, y| x - y);
    check("mul", |b, x, y, o| b.mul(o, x, y), |x, y| x * y);
    check("div", |b, x, y, o| b.div(o, x, y), |x, y| x / y);
    check(
        "max",
        |b, x, y, o| b.max(o, x, y),
        |x, y| if x > y { x } else { y },
    );
    check(
        "min",
        |b, x, y, o| b.min(o, x, y),
        |x, y| if x < y { x } else { y },
    );
    check(
        "add constant",
        |b, x, _, o| b.add(o, x, 3.5),
        |x, _| x + 3.5,
    );
    check(
        "sqrt",
        |b, x, _, o| b.unary(Unary::Sqrt, o, x),
        |x, _| x.sqrt(),
    );
    check(
        "fma",
        |b, x, y, o| {
            b.constant(o, 2.0);
            b.fma(o, x, y)
        },
        |x, y| x.mul_add(y, 2.0),
    );
    check(
        "fnma",
        |b, x, y, o| {
            b.constant(o, 2.0);
            b.fnma(o, x, y)
        },
        |x, y| (-x).mul_add(y, 2.0),
    );
    check(
        "mul_add",
        |b, x, y, o| {
            b.copy(o, x);
            b.mul_add(o, y, 2.0)
        },
        |x, y| x.mul_add(y, 2.0),
    );
}

#[test]
fn bitwise() {
    check(
        "and",
        |b, x, y, o| b.binary(Binary::And, o, x, y),
        bits(|x, y| x & y),
    );
    check(
        "andnot",
        |b, x, y, o| b.binary(Binary::AndNot, o, x, y),
        bits(|x, y| !x & y),
    );
    check(
        "or",
        |b, x, y, o| b.binary(Binary::Or, o, x, y),
        bits(|x, y| x | y),
    );
    check(
        "xor",
        |b, x, y, o| b.binary(Binary::Xor, o, x, y),
        bits(|x, y| x ^ y),
    );
    check(
        "iadd",
        |b, x, y, o| b.binary(Binary::IntAdd, o, x, y),
        bits(u32::wrapping_add),
    );
    check(
        "isub",
        |b, x, y, o| b.binary(Binary::IntSub, o, x, y),
        bits(u32::wrapping_sub),
    );
    check(
        "shl",
        |b, x, _, o| b.shift(Shift::Left, o, x, 5),
        bits(|x, _| x << 5),
    );
    check(
        "shr",
        |b, x, _, o| b.shift(Shift::RightLogical, o, x, 5),
        bits(|x, _| x >> 5),
    );
    check(
        "sar",
        |b, x, _, o| b.shift(Shift::RightArithmetic, o, x, 5),
        bits(|x, _| ((x as i32) >> 5) as u32),
    );
}

/// The 16-bit halves of a lane, lower first.
fn words(x: u32) -> [i16; 2] {
    [x as i16, (x >> 16) as i16]
}

fn of_words([a, b]: [i16; 2]) -> u32 {
    u32::from(a as u16) | u32::from(b as u16) << 16
}

#[test]
fn words_and_bytes() {
    check(
        "imul",
        |b, x, y, o| b.binary(Binary::IntMul, o, x, y),
        bits(u32::wrapping_mul),
    );
    check(
        "iadd16",
        |b, x, y, o| b.binary(Binary::WordAdd, o, x, y),
        bits(|x, y| {
            let ([a, b], [c, d]) = (words(x), words(y));
            of_words([a.wrapping_add(c), b.wrapping_add(d)])
        }),
    );
    check(
        "pairs16",
        |b, x, y, o| b.binary(Binary::WordPairs, o, x, y),
        bits(|x, y| {
            let ([a, b], [c, d]) = (words(x).map(i32::from), words(y).map(i32::from));
            (a * c).wrapping_add(b * d) as u32
        }),
    );
    let products = |x: u32, y: u32| {
        let (x, y) = (x.to_le_bytes(), y.to_le_bytes());
        [0, 1, 2, 3].map(|i| i32::from(x[i]) * i32::from(y[i] as i8))
    };
    check(
        "pairs8",
        |b, x, y, o| b.binary(Binary::BytePairs, o, x, y),
        bits(move |x, y| {
            let p = products(x, y);
            let clamp = |v: i32| v.clamp(-32768, 32767) as i16;
            of_words([clamp(p[0] + p[1]), clamp(p[2] + p[3])])
        }),
    );
    check(
        "shl16",
        |b, x, _, o| b.shift(Shift::WordLeft, o, x, 5),
        bits(|x, _| of_words(words(x).map(|w| w << 5))),
    );
    check(
        "shr16",
        |b, x, _, o| b.shift(Shift::WordRightLogical, o, x, 5),
        bits(|x, _| of_words(words(x).map(|w| (w as u16 >> 5) as i16))),
    );
    check(
        "sar16",
        |b, x, _, o| b.shift(Shift::WordRightArithmetic, o, x, 5),
        bits(|x, _| of_words(words(x).map(|w| w >> 5))),
    );
    for form in forms(&[4, 8, 16]) {
        let (machine, features, vl) = form;
        let mut targets = vec![features];
        if machine == Machine::Avx512 {
            targets = vec![CpuFeatures::avx512_vnni()];
            if vl <= 8 {
                targets.push(CpuFeatures::avx_vnni());
            }
        } else if features.wide() {
            continue;
        }
        for features in targets {
            let form = (machine, features, vl);
            let got = run(form, |b, x, y, o| {
                b.constant_bits(o, 0x7fff_fff0);
                b.dot(o, x, y)
            });
            for i in 0..16 {
                let sum = products(A[i].to_bits(), B[i].to_bits()).iter().sum::<i32>();
                let want = 0x7fff_fff0_i32.wrapping_add(sum) as u32;
                assert_eq!(got[i].to_bits(), want, "dot8 {form:?} lane {i}");
            }
        }
    }
}

#[test]
fn converts_and_selects() {
    let finite = |x: f32| if x.abs() < 1e6 { x } else { 0.0 };
    check(
        "to_int",
        |b, x, _, o| {
            let [z, big, zero] = [b.vector(), b.vector(), b.vector()];
            b.zero(zero);
            b.constant_bits(z, 0x7fff_ffff);
            b.binary(Binary::And, z, x, z);
            b.constant(big, 1e6);
            b.select(o, (Compare::Lt, z, big), x, zero);
            b.unary(Unary::ToInt, o, o);
            b.free_vectors(&[z, big, zero]);
        },
        |x, _| f32::from_bits(finite(x).round_ties_even() as i32 as u32),
    );
    check(
        "to_float",
        |b, x, _, o| b.unary(Unary::ToFloat, o, x),
        |x, _| x.to_bits() as i32 as f32,
    );
    for (cmp, f) in [
        (Compare::Eq, (|x, y| x == y) as fn(f32, f32) -> bool),
        (Compare::Ne, |x, y| x != y),
        (Compare::Lt, |x, y| x < y),
        (Compare::Le, |x, y| x <= y),
        (Compare::Unordered, |x, y| x.is_nan() || y.is_nan()),
    ] {
        check(
            "select",
            |b, x, y, o| b.select(o, (cmp, x, y), x, y),
            |x, y| if f(x, y) { x } else { y },
        );
    }
}

const C: [f64; 8] = [
    1.5,
    -0.0,
    f64::NAN,
    1e300,
    f64::INFINITY,
    1.0 + f64::EPSILON,
    -3e-310,
    1e-46,
];
const D: [f64; 8] = [-2.25, 0.0, 1.0, 1e10, 3.0, 2.0, 7.0, f64::NAN];

/// As [`check`], of vectors of f64.
fn check_doubles(
    what: &str,
    body: impl Fn(&mut Builder, Vector, Vector, Vector),
    want: impl Fn(f64, f64) -> f64,
) {
    for form in forms(&[4, 8, 16]) {
        let (machine, features, vl) = form;
        let mut b = Builder::new("test", vl);
        let [pa, pb, po] = [0, 1, 2].map(|i| b.arg(i));
        let count = b.scalar();
        b.imm(count, (16 / vl) as i64);
        let [va, vb, out] = [b.vector(), b.vector(), b.vector()];
        b.repeat(count, |b| {
            b.load(va, at(pa, 0));
            b.load(vb, at(pb, 0));
            body(b, va, vb, out);
            b.store(at(po, 0), out);
            for p in [pa, pb, po] {
                b.add_imm(p, b.vector_bytes());
            }
        });
        let code = lower(&b.finish(), &features).unwrap();
        let mut got = [0f64; 8];
        Kernel::new(&code, machine).call(&[address(&C), address(&D), address_mut(&mut got)]);
        for i in 0..8 {
            let want = want(C[i], D[i]);
            assert!(
                got[i].to_bits() == want.to_bits() || got[i].is_nan() && want.is_nan(),
                "{what} {form:?} lane {i}: {} op {} = {}, not {want}",
                C[i],
                D[i],
                got[i]
            );
        }
    }
}

#[test]
fn doubles() {
    for (op, f) in [
        (Binary::Add64, (|x, y| x + y) as fn(f64, f64) -> f64),
        (Binary::Sub64, |x, y| x - y),
        (Binary::Mul64, |x, y| x * y),
        (Binary::Div64, |x, y| x / y),
        (Binary::Max64, |x, y| if x > y { x } else { y }),
        (Binary::Min64, |x, y| if x < y { x } else { y }),
        (Binary::IntAdd64, |x, y| {
            f64::from_bits(x.to_bits().wrapping_add(y.to_bits()))
        }),
    ] {
        check_doubles(&format!("{op:?}"), |b, x, y, o| b.binary(op, o, x, y), f);
    }
    check_doubles(
        "constants",
        |b, x, _, o| {
            b.constant64(o, 0.1);
            b.binary(Binary::Mul64, o, o, x);
            b.binary(Binary::Add64, o, o, Operand::number(Float::F64, 0.3));
        },
        |x, _| 0.1 * x + 0.3,
    );
    check_doubles(
        "sqrt64",
        |b, x, _, o| b.unary(Unary::Sqrt64, o, x),
        |x, _| x.sqrt(),
    );
    check_doubles(
        "shl64",
        |b, x, _, o| b.shift(Shift::Left64, o, x, 52),
        |x, _| f64::from_bits(x.to_bits() << 52),
    );
    check_doubles(
        "shr64",
        |b, x, _, o| b.shift(Shift::RightLogical64, o, x, 41),
        |x, _| f64::from_bits(x.to_bits() >> 41),
    );
    check_doubles(
        "narrow and widen",
        |b, x, _, o| {
            b.unary(Unary::Narrow, o, x);
            b.unary(Unary::Widen, o, o);
        },
        |x, _| f64::from(x as f32),
    );
    for (cmp, f) in [
        (Compare::Eq, (|x, y| x == y) as fn(f64, f64) -> bool),
        (Compare::Ne, |x, y| x != y),
        (Compare::Lt, |x, y| x < y),
        (Compare::Le, |x, y| x <= y),
        (Compare::Unordered, |x, y| x.is_nan() || y.is_nan()),
    ] {
        check_doubles(
            "select",
            |b, x, y, o| b.select_of(Float::F64, o, (cmp, x, y), x, y),
            |x, y| if f(x, y) { x } else { y },
        );
    }
}

/// Halves of vectors from and to memory, and what narrowing leaves in the upper half.
#[test]
fn halves() {
    for (machine, features, vl) in forms(&[4, 8, 16]) {
        let mut b = Builder::new("halves", vl);
        let [pa, pc, po] = [0, 1, 2].map(|i| b.arg(i));
        let v = b.vector();
        let row = 64;
        b.load_half(v, at(pa, 0));
        b.store(at(po, 0), v);
        b.unary(Unary::Widen, v, v);
        b.store(at(po, row), v);
        b.load(v, at(pc, 0));
        b.unary(Unary::Narrow, v, v);
        b.store(at(po, 2 * row), v);
        b.store_half(at(po, 3 * row), v);
        b.broadcast64(v, at(pc, 8));
        b.store(at(po, 4 * row), v);
        let code = lower(&b.finish(), &features).unwrap();
        let mut out = [7u32; 80];
        Kernel::new(&code, machine).call(&[address(&A), address(&C), address_mut(&mut out)]);
        let half = vl / 2;
        let singles = |x: &[f32]| -> Vec<u32> { x.iter().map(|v| v.to_bits()).collect() };
        let doubles = |x: &[f64]| -> Vec<u32> {
            let halves = |v: &f64| [v.to_bits() as u32, (v.to_bits() >> 32) as u32];
            x.iter().flat_map(halves).collect()
        };
        let with_zeros = |mut x: Vec<u32>| {
            x.resize(vl, 0);
            x
        };
        let narrowed: Vec<f32> = C.iter().map(|&v| v as f32).collect();
        let wide: Vec<f64> = A.iter().map(|&v| f64::from(v)).collect();
        let what = format!("{machine:?} {vl}");
        assert_eq!(out[..vl], with_zeros(singles(&A[..half])), "{what}");
        assert_eq!(out[16..16 + vl], doubles(&wide[..half]), "{what}");
        let expected = with_zeros(singles(&narrowed[..half]));
        let same =
            |a: &u32, b: &u32| a == b || f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan();
        assert!(
            out[32..].iter().zip(&expected).all(|(a, b)| same(a, b)),
            "{what}"
        );
        assert!(
            out[48..]
                .iter()
                .zip(&expected[..half])
                .all(|(a, b)| same(a, b)),
            "{what}"
        );
        assert_eq!(out[48 + half..64], [7; 16][half..], "{what}");
        assert_eq!(out[64..64 + vl], doubles(&[C[1]; 8])[..vl], "{what}");
    }
}

#[test]
fn memory_and_splats() {
    for (machine, features, vl) in forms(&[4, 8]) {
        let mut b = Builder::new("memory", vl);
        let [pa, po] = [0, 1].map(|i| b.arg(i));
        let index = b.scalar();
        b.imm(index, 2);
        let (v, t) = (b.vector(), b.vector());
        b.broadcast4(v, at(pa, 16));
        b.splat_lane(t, v, 3);
        b.store(at(po, 0), t);
        b.broadcast(t, at(pa, -4).index(index, Scale::X8));
        b.store(at(po, 32), t);
        b.load(t, at(pa, 0).index(index, Scale::X4));
        b.store(at(po, 64), t);
        let code = lower(&b.finish(), &features).unwrap();
        let mut out = [0f32; 32];
        Kernel::new(&code, machine).call(&[address(&A), address_mut(&mut out)]);
        assert_eq!(out[..vl], [A[7]; 8][..vl]);
        assert_eq!(out[8..8 + vl], [A[3]; 8][..vl]);
        assert_eq!(
            out[16..16 + vl]
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>(),
            A[2..2 + vl].iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        );
    }
}

/// Scalar operations, on registers and on stack slots.
#[test]
fn scalars() {
    for form in forms(&[4]) {
        let (machine, features, _) = form;
        for slots in [false, true] {
            let mut b = Builder::new("scalars", 4);
            let (input, out) = (b.arg(0), b.arg(1));
            let r = b.scalar();
            let make = |b: &mut Builder| if slots { b.slot() } else { b.scalar() };
            let (x, y, n) = (make(&mut b), make(&mut b), make(&mut b));
            let mut at_out = 0;
            let mut put = |b: &mut Builder, s: Scalar| {
                b.mov(r, s);
                b.store_scalar(at(out, at_out), Width::B64, r);
                at_out += 8;
            };
            for width in [Width::B8, Width::B16, Width::B32, Width::B64] {
                b.load_scalar(x, width, at(input, 0));
                put(&mut b, x);
            }
            b.low16(y, x);
            put(&mut b, y);
            b.shr_imm(x, 16);
            put(&mut b, x);
            b.shl_imm(x, 3);
            put(&mut b, x);
            b.imm(y, -5);
            put(&mut b, y);
            b.imm(y, 1000);
            b.add_scalar(x, y);
            put(&mut b, x);
            b.sub_scalar(y, x);
            put(&mut b, y);
            b.add_imm(y, 100_000);
            put(&mut b, y);
            b.mul_imm(y, 24);
            put(&mut b, y);
            b.and_imm(y, 0xffff_0f0f);
            put(&mut b, y);
            b.lea(x, at(input, 12).index(y, Scale::X2));
            b.sub_scalar(x, input);
            put(&mut b, x);
            b.imm(x, 0);
            b.imm(n, 7);
            b.repeat(n, |b| {
                b.imm(r, 3);
                b.repeat(r, |b| b.add_imm(x, 1));
            });
            put(&mut b, x);
            b.repeat(n, |b| b.add_imm(x, 1));
            put(&mut b, x);
            put(&mut b, n);
            let code = lower(&b.finish(), &features).unwrap();
            let word = 0x8899_aabb_ccdd_eeff_u64;
            let (input, mut got) = ([word, word], [0u64; 17]);
            Kernel::new(&code, machine).call(&[address(&input), address_mut(&mut got)]);
            let a = (word >> 16) << 3;
            let s = a.wrapping_add(1000);
            let d = 1000u64.wrapping_sub(s);
            let e = d.wrapping_add(100_000);
            let m = e.wrapping_mul(24);
            let k = m & 0xffff_0f0f;
            let want = [
                0xff,
                0xeeff,
                0xccdd_eeff,
                word,
                0xeeff,
                word >> 16,
                a,
                5u64.wrapping_neg(),
                s,
                d,
                e,
                m,
                k,
                k * 2 + 12,
                21,
                21,
                0,
            ];
            assert_eq!(got, want, "{form:?} slots {slots}");
        }
    }
}
