//! Epilogues, layer norm and attention kernels against their meaning in f64, on every machine that can be reached.
mod machine;

use lancet_artifact::{Activation, Float, Reach};
use lancet_codegen::kernels::attention::{QUERIES, ROWS};
use lancet_codegen::kernels::attention_tile::{HEIGHTS, KEYS, PARAMETERS, heights};
use lancet_codegen::{CpuFeatures, KernelSpec, emit};
use machine::{Kernel, Machine, address as ptr, address_mut as ptr_mut, targets};

fn exec(spec: &KernelSpec, (machine, features): &(Machine, CpuFeatures)) -> Kernel {
    let emitted = emit(spec, features).expect("the spec is one that exists");
    Kernel::new(&emitted.code, *machine)
}

/// Deterministic values in -1..1.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The error function by its series, and by its continued fraction where that converges faster.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while f64::abs(term) > 1e-17 * f64::abs(sum) {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        let mut f = 0.0;
        for k in (1..200).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        1.0 - (-a * a).exp() / ((a + f) * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn reference(kind: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Round => x.round_ties_even(),
    }
}

#[test]
fn activations_are_within_their_stated_errors() {
    let rows = 20_000;
    let xs: Vec<f32> = (0..rows * 8)
        .map(|i| -12.0 + 24.0 * i as f32 / (rows * 8) as f32)
        .collect();
    for target in targets() {
        for kind in Activation::ALL {
            let spec = KernelSpec::Epilogue {
                activation: kind,
                residual: false,
                panel: 8,
                lanes: 8,
            };
            let mut y = xs.clone();
            exec(&spec, &target).call(&[ptr_mut(&mut y), 0, rows as u64]);
            for (x, y) in xs.iter().zip(&y) {
                let want = reference(kind, f64::from(*x));
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= 1.2e-6 + 2e-7 * want.abs(),
                    "{kind}({x}) = {y}, want {want}: error {error:e}"
                );
            }
        }
    }
}

#[test]
fn activations_keep_nan_and_infinity() {
    for target in targets() {
        for kind in Activation::ALL {
            let spec = KernelSpec::Epilogue {
                activation: kind,
                residual: false,
                panel: 8,
                lanes: 8,
            };
            let mut y = [f32::NAN, f32::INFINITY, 1e30, 0.0, -1e30, -0.5, 0.5, 100.0];
            exec(&spec, &target).call(&[ptr_mut(&mut y), 0, 1]);
            assert!(y[0].is_nan(), "{kind}(NaN) = {}", y[0]);
            let grows = !matches!(kind, Activation::Tanh | Activation::Sigmoid);
            let saturates = if grows {
                y[1] == f32::INFINITY
            } else {
                (y[1] - 1.0).abs() < 3.5e-7
            };
            assert!(saturates, "{kind}(inf) = {}", y[1]);
            assert!(y[3..].iter().all(|v| v.is_finite()), "{kind}: {y:?}");
        }
    }
}

#[test]
fn epilogues_touch_only_their_lanes() {
    for target in targets() {
        for (panel, lanes) in [(8, 8), (16, 16), (32, 8), (32, 16), (32, 24), (32, 32)] {
            let rows = 3;
            let x = values(rows * panel, 1);
            let r = values(rows * panel, 2);
            let spec = KernelSpec::Epilogue {
                activation: Activation::Relu,
                residual: true,
                panel: panel as u32,
                lanes: lanes as u32,
            };
            let mut y = x.clone();
            exec(&spec, &target).call(&[ptr_mut(&mut y), ptr(&r), rows as u64]);
            for i in 0..rows * panel {
                let want = if i % panel < lanes {
                    x[i].max(0.0) + r[i]
                } else {
                    x[i]
                };
                assert_eq!(y[i], want, "panel {panel}, lanes {lanes}, element {i}");
            }
        }
    }
}

#[test]
fn layer_norm_normalizes_each_token() {
    for target in targets() {
        for (panel, lanes) in [(8, 8), (16, 16), (32, 24), (32, 32)] {
            for k in [1usize, 2, 3, 4, 5, 31, 312] {
                let x: Vec<f32> = values(k * panel, 3).iter().map(|v| 10.0 + v).collect();
                let (gamma, beta) = (values(k, 4), values(k, 5));
                let params = [1.0 / k as f32, 1e-5f32];
                let mut y = vec![7.0f32; k * panel];
                let spec = KernelSpec::LayerNorm {
                    panel: panel as u32,
                    lanes: lanes as u32,
                };
                exec(&spec, &target).call(&[
                    ptr(&x),
                    ptr_mut(&mut y),
                    ptr(&gamma),
                    ptr(&beta),
                    k as u64,
                    ptr(&params),
                ]);
                for t in 0..panel {
                    let column: Vec<f64> = (0..k).map(|i| f64::from(x[i * panel + t])).collect();
                    let mean = column.iter().sum::<f64>() / k as f64;
                    let var = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / k as f64;
                    for i in 0..k {
                        let scale = f64::from(gamma[i]) / (var + 1e-5).sqrt();
                        let want = if t < lanes {
                            (column[i] - mean) * scale + f64::from(beta[i])
                        } else {
                            7.0
                        };
                        let error = (f64::from(y[i * panel + t]) - want).abs();
                        // Inputs near 10 carry errors of 4e-7 that sum and norm magnify.
                        assert!(
                            error < 1e-5 * (1.0 + scale.abs()),
                            "panel {panel}/{lanes}, k {k}, token {t}: {error:e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    for target in targets() {
        for (panel, lanes) in [(8, 8), (32, 24)] {
            for k in [1usize, 3, 4, 5, 312] {
                let x = values(k * panel, 3);
                let (gamma, zeros) = (values(k, 4), vec![0.0f32; k]);
                let params = [1.0 / k as f32, 1e-6f32];
                let mut y = vec![7.0f32; k * panel];
                let spec = KernelSpec::RmsNorm {
                    panel: panel as u32,
                    lanes: lanes as u32,
                };
                exec(&spec, &target).call(&[
                    ptr(&x),
                    ptr_mut(&mut y),
                    ptr(&gamma),
                    ptr(&zeros),
                    k as u64,
                    ptr(&params),
                ]);
                for t in 0..panel {
                    let column = || (0..k).map(|i| f64::from(x[i * panel + t]));
                    let square = column().map(|v| v * v).sum::<f64>() / k as f64;
                    for (i, v) in column().enumerate() {
                        let want = if t < lanes {
                            v / (square + 1e-6).sqrt() * f64::from(gamma[i])
                        } else {
                            7.0
                        };
                        let error = (f64::from(y[i * panel + t]) - want).abs();
                        assert!(error < 2e-6, "{panel}/{lanes}, k {k}, token {t}: {error:e}");
                    }
                }
            }
        }
    }
}

type Binary = fn(f32, f32) -> f32;

/// Each function of bodies with what it is; of two arguments `x0` and `x1`.
const FUNCTIONS: &[(&str, Binary)] = &[
    ("add x0 x1", |a, b| a + b),
    ("sub x0 x1", |a, b| a - b),
    ("mul x0 x1", |a, b| a * b),
    ("div x0 x1", |a, b| a / b),
    ("max x0 x1", |a, b| if a.is_nan() || b < a { a } else { b }),
    ("min x0 x1", |a, b| if a.is_nan() || a < b { a } else { b }),
    ("max x0 0.5", |a, _| if a < 0.5 { 0.5 } else { a }),
    ("min -0.5 x0", |a, _| if a > -0.5 { -0.5 } else { a }),
    ("at_least x0 x1", |a, b| if a > b { a } else { b }),
    ("at_most x0 x1", |a, b| if a < b { a } else { b }),
    ("at_least x0 -0.5", |a, _| if a > -0.5 { a } else { -0.5 }),
    ("equal x0 x1", |a, b| f32::from(u8::from(a == b))),
    ("less x0 x1", |a, b| f32::from(u8::from(a < b))),
    ("less_or_equal x0 x1", |a, b| f32::from(u8::from(a <= b))),
    ("greater x0 x1", |a, b| f32::from(u8::from(a > b))),
    ("greater_or_equal x0 x1", |a, b| f32::from(u8::from(a >= b))),
    ("is_nan x0", |a, _| f32::from(u8::from(a.is_nan()))),
    ("abs x0", |a, _| a.abs()),
    ("neg x0", |a, _| -a),
    ("sqrt x0", |a, _| a.sqrt()),
    ("reciprocal x0", |a, _| 1.0 / a),
    ("round x0", |a, _| a.round_ties_even()),
    ("floor x0", |a, _| a.floor()),
    ("ceil x0", |a, _| a.ceil()),
    ("sign x0", |a, _| match a {
        0.0 => a,
        _ if a.is_nan() => a,
        _ => 1f32.copysign(a),
    }),
    ("exp x0", |a, _| f64::from(a).exp() as f32),
    ("equal x0 x1; not v0", |a, b| f32::from(u8::from(a != b))),
    ("less x0 x1; less x1 0; and v0 v1", |a, b| {
        f32::from(u8::from(a < b && b < 0.0))
    }),
    ("less x0 x1; less x1 0; or v0 v1; where v2 x0 7", |a, b| {
        if a < b || b < 0.0 { a } else { 7.0 }
    }),
    (
        "less x0 x1; equal x1 0; xor v0 v1; where v2 x0 x1",
        |a, b| {
            if (a < b) != (b == 0.0) { a } else { b }
        },
    ),
];

#[test]
fn functions_of_elements_are_exact() {
    let special = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        1e-30,
        88.5,
        -88.0,
        -200.0,
        8_388_607.5,
        -8_388_609.0,
        3e9,
        -3e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        4_194_303.5,
        -0.499_999_97,
    ];
    for target in targets() {
        for (panel, lanes) in [(8, 8), (32, 24)] {
            let rows = special.len();
            // Each number meets each other one.
            let x: Vec<f32> = (0..rows * panel).map(|i| special[i / panel]).collect();
            let z: Vec<f32> = (0..rows * panel).map(|i| special[i * 7 % rows]).collect();
            for &(body, f) in FUNCTIONS {
                let n_operands = if body.contains("x1") { 2 } else { 1 };
                let spec = KernelSpec::Elementwise {
                    body: body.to_owned(),
                    operands: vec![(Reach::Panel, Float::F32); n_operands],
                    result: Float::F32,
                    panel: panel as u32,
                    lanes: lanes as u32,
                };
                let mut y = vec![7.0f32; rows * panel];
                let args = [rows as u64, ptr_mut(&mut y), ptr(&x), ptr(&z)];
                exec(&spec, &target).call(&args[..2 + n_operands]);
                for (i, &y) in y.iter().enumerate() {
                    let want = if i % panel < lanes {
                        f(x[i], z[i])
                    } else {
                        7.0
                    };
                    // The exponential is an approximation; a NaN has any sign.
                    let close = body.starts_with("exp") && (y - want).abs() <= 5e-7 * want + 1e-38;
                    let same = y.to_bits() == want.to_bits() || (y.is_nan() && want.is_nan());
                    assert!(
                        same || close,
                        "{body} of {}, {}: {y}, want {want}",
                        x[i],
                        z[i]
                    );
                }
            }
        }
    }
}

#[test]
fn operands_of_every_reach() {
    for target in targets() {
        for (panel, lanes) in [(8, 8), (16, 16), (32, 24)] {
            let rows = 5;
            let x = values(rows * panel, 1);
            let (by_row, by_lane, one) = (values(rows, 2), values(panel, 3), values(1, 4));
            let mut y = vec![7.0f32; rows * panel];
            let spec = KernelSpec::Elementwise {
                body: "mul x0 x1; add v0 x2; sub v1 x3".to_owned(),
                operands: [Reach::Panel, Reach::Rows, Reach::Lanes, Reach::One]
                    .map(|r| (r, Float::F32))
                    .to_vec(),
                result: Float::F32,
                panel: panel as u32,
                lanes: lanes as u32,
            };
            let operands = [&x, &by_row, &by_lane, &one];
            let [x0, x1, x2, x3] = operands.map(|v| ptr(v));
            exec(&spec, &target).call(&[rows as u64, ptr_mut(&mut y), x0, x1, x2, x3]);
            for (i, &y) in y.iter().enumerate() {
                let want = if i % panel < lanes {
                    x[i] * by_row[i / panel] + by_lane[i % panel] - one[0]
                } else {
                    7.0
                };
                assert_eq!(y, want, "{panel}/{lanes}, element {i}");
            }
        }
    }
}

/// Every 4099th number of f32, and those with few digits.
fn sweep() -> Vec<f32> {
    let mut x: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).collect();
    x.extend((-2000..2000).map(|i| i as f32 / 8.0));
    x.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
    ]);
    // Close to multiples of pi / 2, where little remains.
    x.extend((1..5000).map(|i| (f64::from(i) * std::f64::consts::FRAC_PI_2) as f32));
    x.extend([16_367_173.0 * 2f32.powi(72), 11.0, 52174.0, 1.059_406_3e21]);
    x
}

/// Units in the last place of f32 from what is exact.
fn ulps(found: f32, exact: f64) -> f64 {
    if f64::from(found) == exact || found.is_nan() && exact.is_nan() {
        return 0.0;
    }
    let rounded = exact as f32;
    if !rounded.is_finite() {
        return if found == rounded { 0.0 } else { f64::INFINITY };
    }
    let unit = f64::from(f32::from_bits(
        (rounded.abs().to_bits()).max(1 << 23) & 0x7f80_0000,
    ));
    (f64::from(found) - exact).abs() / (unit * f64::from(f32::EPSILON))
}

#[test]
fn functions_in_double_precision_are_nearly_exact() {
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    type Function = fn(f64) -> f64;
    let functions: [(&str, Function); 5] = [
        ("atan", f64::atan),
        ("cos", f64::cos),
        ("log", f64::ln),
        ("sin", f64::sin),
        ("softplus", softplus),
    ];
    let x = sweep();
    let few: Vec<f32> = x.iter().copied().step_by(97).collect();
    for target in targets() {
        let x = if target.0 == Machine::Native {
            &x
        } else {
            &few
        };
        let n = x.len() / 32 * 32;
        for (function, f) in functions {
            let spec = KernelSpec::Elementwise {
                body: format!("{function} x0"),
                operands: vec![(Reach::Panel, Float::F32)],
                result: Float::F32,
                panel: 32,
                lanes: 32,
            };
            let mut y = vec![7.0f32; n];
            exec(&spec, &target).call(&[n as u64 / 32, ptr_mut(&mut y), ptr(x)]);
            for (&x, &y) in x.iter().zip(&y) {
                let error = ulps(y, f(f64::from(x)));
                assert!(
                    error <= 0.51,
                    "{function}({x:e}) = {y:e}, {error} units off"
                );
            }
        }
    }
}

#[test]
fn powers_are_nearly_exact() {
    let of: Vec<f32> = sweep().into_iter().step_by(30_011).collect();
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        0.5,
        -0.5,
        3.0,
        -3.0,
        1.5,
        1e-40,
        1e30,
        16_777_217.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        0.999_999_9,
        1.000_000_1,
        127.0,
        -149.0,
        30.0,
    ];
    let bases: Vec<f32> = special.iter().copied().chain(of.iter().copied()).collect();
    let pairs: Vec<(f32, f32)> = (bases.iter())
        .flat_map(|&x| bases.iter().map(move |&y| (x, y)))
        .chain(
            bases
                .iter()
                .flat_map(|&x| (-40..40).map(move |y| (x.abs(), y as f32 / 7.0))),
        )
        .collect();
    let n = pairs.len() / 8 * 8;
    let (x, z): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
    for target in targets() {
        let spec = KernelSpec::Elementwise {
            body: "pow x0 x1".to_owned(),
            operands: vec![(Reach::Panel, Float::F32); 2],
            result: Float::F32,
            panel: 8,
            lanes: 8,
        };
        let mut y = vec![7.0f32; n];
        exec(&spec, &target).call(&[n as u64 / 8, ptr_mut(&mut y), ptr(&x), ptr(&z)]);
        for ((&x, &z), &y) in x.iter().zip(&z).zip(&y) {
            let exact = f64::from(x).powf(f64::from(z));
            let error = ulps(y, exact);
            assert!(
                error <= 0.51,
                "{x:e}^{z:e} = {y:e}, not {exact:e}, {error} units off"
            );
            assert!(y != 0.0 || y.is_sign_negative() == exact.is_sign_negative());
        }
    }
}

#[test]
fn whole_powers_of_two_are_exact() {
    let z: Vec<f32> = (-1000..1000).map(|i| i as f32 / 4.0).collect();
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        3e38,
        -3e38,
        1e-40,
        -149.5,
    ];
    let z: Vec<f32> = z.into_iter().chain(special).collect();
    for target in targets() {
        let spec = KernelSpec::Elementwise {
            body: "pow 2.0 x0".to_owned(),
            operands: vec![(Reach::Panel, Float::F32)],
            result: Float::F32,
            panel: 8,
            lanes: 8,
        };
        let mut y = vec![7.0f32; z.len()];
        exec(&spec, &target).call(&[z.len() as u64 / 8, ptr_mut(&mut y), ptr(&z)]);
        for (&z, &y) in z.iter().zip(&y) {
            let exact = f64::from(z).exp2();
            let bound = if z.fract() == 0.0 { 0.0 } else { 0.51 };
            let representable = (-149.0..128.0).contains(&z);
            let error = ulps(
                y,
                if representable {
                    exact
                } else {
                    f64::from(exact as f32)
                },
            );
            assert!(error <= bound, "2^{z:e} = {y:e}, {error} units off");
        }
    }
}

#[test]
fn operands_of_both_types_of_floats() {
    for target in targets() {
        for (panel, lanes) in [(8, 8), (16, 16), (32, 24)] {
            let rows = 5;
            let doubles = |n, seed| -> Vec<f64> {
                let v = values(n, seed).into_iter().map(f64::from);
                v.map(|v| v / 3.0).collect()
            };
            let (x, by_lane) = (values(rows * panel, 1), values(panel, 3));
            let (z, by_row, one) = (doubles(rows * panel, 5), doubles(rows, 2), doubles(1, 4));
            // A call reaches what was named since the one before.
            let args = |y| {
                let operands = [ptr(&x), ptr(&by_row), ptr(&by_lane), ptr(&one), ptr(&z)];
                [&[rows as u64, y][..], &operands].concat()
            };
            let spec = |body: &str, result| KernelSpec::Elementwise {
                body: body.to_owned(),
                operands: vec![
                    (Reach::Panel, Float::F32),
                    (Reach::Rows, Float::F64),
                    (Reach::Lanes, Float::F32),
                    (Reach::One, Float::F64),
                    (Reach::Panel, Float::F64),
                ],
                result,
                panel: panel as u32,
                lanes: lanes as u32,
            };
            let (mut y, mut narrow) = (vec![7.0f64; rows * panel], vec![7.0f32; rows * panel]);
            let body = "mul x0 x2; f64 v0; add v1 x1; div v2 x3; sub v3 x4";
            let narrowed = format!("{body}; f32 v4; tanh v5; max v6 -0.5");
            exec(&spec(body, Float::F64), &target).call(&args(ptr_mut(&mut y)));
            exec(&spec(&narrowed, Float::F32), &target).call(&args(ptr_mut(&mut narrow)));
            // Too long to be unrolled.
            let mut long = vec![7.0f32; rows * panel];
            let body =
                format!("{narrowed}; sin v7; log v8; pow 1.5 v9; cos v8; mul v10 v11; add v12 x0");
            exec(&spec(&body, Float::F32), &target).call(&args(ptr_mut(&mut long)));
            let last = |i: usize| {
                let sin = f64::from(narrow[i]).sin();
                sin.cos() * 1.5f64.powf(sin.ln()) + f64::from(x[i])
            };
            for i in 0..rows * panel {
                let (row, lane) = (i / panel, i % panel);
                let product = f64::from(x[i] * by_lane[lane]);
                let want = (product + by_row[row]) / one[0] - z[i];
                let (want, tanh) = match lane < lanes {
                    true => (want, f64::from(want as f32).tanh().max(-0.5)),
                    false => (7.0, 7.0),
                };
                assert_eq!(y[i], want, "{panel}/{lanes}, element {i}");
                let error = (f64::from(narrow[i]) - tanh).abs();
                assert!(error <= 4e-7, "{panel}/{lanes}, element {i}: {}", narrow[i]);
                let (found, want) = (f64::from(long[i]), if lane < lanes { last(i) } else { 7.0 });
                let close = (found - want).abs() <= 1e-6 || found.is_nan() && want.is_nan();
                assert!(close, "{panel}/{lanes}, element {i}: {found}, want {want}");
            }
        }
    }
}

#[test]
fn attention_products_follow_both_strides() {
    for target in targets() {
        let kernel = exec(&KernelSpec::AttentionProduct, &target);
        for (m, k) in [(1usize, 1usize), (5, 3), (6, 64), (13, 7), (64, 33)] {
            let tiles = m.div_ceil(ROWS);
            for transposed in [false, true] {
                let padded = tiles * ROWS;
                let a = values(padded * k, 6);
                let at = |i: usize, j: usize| {
                    if transposed {
                        a[i * k + j]
                    } else {
                        a[j * padded + i]
                    }
                };
                let (row, step) = if transposed {
                    (k * 4, 4)
                } else {
                    (4, padded * 4)
                };
                let b = values(k * QUERIES, 7);
                let mut c = vec![0f32; padded * QUERIES];
                let args = [
                    ptr(&a),
                    ptr(&b),
                    ptr_mut(&mut c),
                    k as u64,
                    row as u64,
                    step as u64,
                    (QUERIES * 4) as u64,
                    tiles as u64,
                ];
                kernel.call(&args);
                for i in 0..m {
                    for t in 0..QUERIES {
                        let want: f64 = (0..k)
                            .map(|j| f64::from(at(i, j)) * f64::from(b[j * QUERIES + t]))
                            .sum();
                        assert!(
                            (f64::from(c[i * QUERIES + t]) - want).abs() < 1e-5,
                            "m {m}, k {k}, ({i}, {t})"
                        );
                    }
                }
            }
        }
    }
}

/// Operands of a tile of attention, in panels of `features` rows.
struct TileOperands {
    n_keys: usize,
    d: usize,
    dv: usize,
    features: usize,
    k: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
    mask: Vec<f32>,
}

impl TileOperands {
    const Q_ROW: usize = QUERIES + 8;
    const OUT_ROW: usize = QUERIES + 4;

    /// Elements are `element`s of `values`; lanes beyond the keys hold what they like; every third key is masked.
    fn new([n_keys, d, dv]: [usize; 3], element: impl Fn(f32) -> f32) -> TileOperands {
        let (features, panels) = (d.max(dv) + 3, n_keys.div_ceil(KEYS));
        let operand = |seed| {
            let mut x = values(panels * features * KEYS, seed);
            for (i, x) in x.iter_mut().enumerate() {
                let beyond = i / (features * KEYS) * KEYS + i % KEYS >= n_keys;
                *x = if beyond { f32::NAN } else { element(*x) };
            }
            x
        };
        let mut mask = vec![f32::NEG_INFINITY; panels * KEYS];
        for (i, mask) in mask[..n_keys].iter_mut().enumerate() {
            *mask = if i % 3 == 1 { f32::MIN } else { 0.0 };
        }
        TileOperands {
            n_keys,
            d,
            dv,
            features,
            k: operand(1),
            v: operand(2),
            q: values(d * Self::Q_ROW, 3)
                .into_iter()
                .map(element)
                .collect(),
            mask,
        }
    }

    /// The context, with rows of `OUT_ROW`.
    fn run(&self, kernel: &Kernel, parameters: &[f32; PARAMETERS]) -> Vec<f32> {
        let mut scores = vec![0f32; self.mask.len() * QUERIES];
        let (mut out, mut state) = (vec![7f32; self.dv * Self::OUT_ROW], [0f32; 3 * QUERIES]);
        let (panels, rest) = (self.n_keys / KEYS, self.n_keys % KEYS);
        let [a, b, c] = heights(self.dv).map(|n| n as u64);
        kernel.call(&[
            ptr(&self.k),
            ptr(&self.v),
            (self.features * KEYS * 4) as u64,
            (self.features * KEYS * 4) as u64,
            ptr(&self.q),
            (Self::Q_ROW * 4) as u64,
            ptr_mut(&mut scores),
            ptr(&self.mask),
            ptr_mut(&mut out),
            (Self::OUT_ROW * 4) as u64,
            self.d as u64,
            panels as u64,
            rest as u64,
            rest.div_ceil(HEIGHTS[1]) as u64,
            a,
            b,
            c,
            ptr(parameters),
            ptr_mut(&mut state),
        ]);
        for row in out.chunks_exact(Self::OUT_ROW) {
            assert!(row[QUERIES..].iter().all(|&y| y == 7.0));
        }
        out
    }

    fn product(&self, key: usize, t: usize) -> f64 {
        let of = |i: usize| f64::from(self.q[i * Self::Q_ROW + t]);
        (0..self.d).map(|i| self.at(&self.k, i, key) * of(i)).sum()
    }

    fn at(&self, x: &[f32], i: usize, key: usize) -> f64 {
        f64::from(x[(key / KEYS * self.features + i) * KEYS + key % KEYS])
    }
}

/// Numbers of keys, and of features of keys and of values.
const TILES: [[usize; 3]; 5] = [[1, 1, 1], [5, 3, 2], [32, 6, 7], [45, 8, 12], [96, 9, 5]];

#[test]
fn attention_of_a_tile_is_that_of_its_parts() {
    for target in targets() {
        let rounds = [false; 3];
        let kernel = exec(&KernelSpec::AttentionTile { rounds }, &target);
        for sizes in TILES {
            let tile = TileOperands::new(sizes, |x| x);
            let mut parameters = [f32::NAN; PARAMETERS];
            parameters[0] = 3.0;
            let out = tile.run(&kernel, &parameters);
            for t in 0..QUERIES {
                let score = |key: usize| 3.0 * tile.product(key, t) + f64::from(tile.mask[key]);
                let max = (0..tile.n_keys).map(score).fold(f64::MIN, f64::max);
                let weights: Vec<f64> = (0..tile.n_keys)
                    .map(|key| (score(key) - max).exp2())
                    .collect();
                let total: f64 = weights.iter().sum();
                for i in 0..tile.dv {
                    let sum: f64 = (0..tile.n_keys)
                        .map(|key| tile.at(&tile.v, i, key) * weights[key])
                        .sum();
                    let got = f64::from(out[i * TileOperands::OUT_ROW + t]);
                    let want = sum / total;
                    assert!(
                        (got - want).abs() < 1e-5,
                        "{sizes:?}, ({i}, {t}): {got}, not {want}"
                    );
                }
            }
        }
    }
}

/// `clip(round(x / scale), least, greatest)`, and how far `x / scale` is from a tie.
fn rounded(x: f64, [scale, least, greatest]: [f32; 3]) -> (f64, f64) {
    let [scale, least, greatest] = [scale, least, greatest].map(f64::from);
    let y = (x / scale).clamp(least, greatest);
    (y.round_ties_even(), (y - y.floor() - 0.5).abs())
}

#[test]
fn attention_of_a_tile_rounds_where_it_is_told_to() {
    // Products are whole numbers: no multiple of 1/7 or 11/31 is a tie.
    let (products, scores) = ([7.0, -100.0, 155.0], [0.31f32, -30.0, 225.0]);
    let probabilities = [0.003f32, -3.0, 252.0];
    let masks = [
        [true, false, false],
        [false, true, false],
        [false, false, true],
        [true, true, false],
        [true, true, true],
    ];
    for target in targets() {
        for rounds in masks {
            let kernel = exec(&KernelSpec::AttentionTile { rounds }, &target);
            let scale = 0.11f32;
            let factor = 0.31f32;
            let mut parameters = [f32::NAN; PARAMETERS];
            parameters[0] = scale;
            for (at, numbers) in [(1, products), (4, scores), (8, probabilities)] {
                parameters[at..at + 3].copy_from_slice(&numbers);
            }
            parameters[7] = factor;
            let mut n_checked = 0;
            for sizes in TILES {
                let tile = TileOperands::new(sizes, |x| (x * 9.0).round());
                let out = tile.run(&kernel, &parameters);
                for t in 0..QUERIES {
                    let score = |key: usize| {
                        let product = tile.product(key, t);
                        let product = if rounds[0] {
                            rounded(product, products).0
                        } else {
                            product
                        };
                        let score = product * f64::from(scale) + f64::from(tile.mask[key]);
                        if rounds[1] {
                            rounded(score, scores).0 * f64::from(factor)
                        } else {
                            score
                        }
                    };
                    let max = (0..tile.n_keys).map(score).fold(f64::MIN, f64::max);
                    let mut weights: Vec<f64> = (0..tile.n_keys)
                        .map(|key| (score(key) - max).exp2())
                        .collect();
                    let total: f64 = weights.iter().sum();
                    weights.iter_mut().for_each(|w| *w /= total);
                    let mut from_tie = 0.5f64;
                    if rounds[2] {
                        for w in &mut weights {
                            let (n, tie) = rounded(*w, probabilities);
                            *w = n;
                            from_tie = from_tie.min(tie);
                        }
                    }
                    if from_tie < 1e-3 {
                        continue;
                    }
                    n_checked += 1;
                    for i in 0..tile.dv {
                        let want: f64 = (0..tile.n_keys)
                            .map(|key| tile.at(&tile.v, i, key) * weights[key])
                            .sum();
                        let got = f64::from(out[i * TileOperands::OUT_ROW + t]);
                        // Sums of whole numbers are exact.
                        let tolerance = if rounds[2] { 0.0 } else { 1e-4 };
                        assert!(
                            (got - want).abs() <= tolerance,
                            "{rounds:?}, {sizes:?}, ({i}, {t}): {got}, not {want}"
                        );
                    }
                }
            }
            assert!(n_checked > TILES.len() * QUERIES / 2, "{n_checked}");
        }
    }
}

#[test]
fn rows_of_a_context_are_divided_without_rest() {
    for n in 0..200 {
        let [a, b, c] = heights(n);
        assert_eq!(a * HEIGHTS[0] + b * HEIGHTS[1] + c * HEIGHTS[2], n);
        assert!(c < 4 && (c == 0 || n % 2 == 1 || n == 2), "{n}");
    }
}

#[test]
fn softmax_runs_over_keys_and_ignores_masked_ones() {
    for target in targets() {
        let kernel = exec(&KernelSpec::AttentionSoftmax, &target);
        for keys in [1usize, 2, 7, 130] {
            let x: Vec<f32> = values(keys * QUERIES, 8).iter().map(|v| 20.0 * v).collect();
            let bias: Vec<f32> = (0..keys)
                .map(|i| if i % 3 == 1 { f32::MIN } else { 0.0 })
                .collect();
            let params = [0.125f32];
            let (mut s, mut sums) = (x.clone(), [0f32; QUERIES]);
            kernel.call(&[
                ptr_mut(&mut s),
                keys as u64,
                ptr(&bias),
                ptr(&params),
                ptr_mut(&mut sums),
            ]);
            for t in 0..QUERIES {
                let score = |i: usize| f64::from(x[i * QUERIES + t]) * 0.125 + f64::from(bias[i]);
                let max = (0..keys).map(score).fold(f64::MIN, f64::max);
                let total: f64 = (0..keys).map(|i| (score(i) - max).exp()).sum();
                for i in 0..keys {
                    let got = f64::from(s[i * QUERIES + t]) * f64::from(sums[t]);
                    let want = (score(i) - max).exp() / total;
                    assert!(
                        (got - want).abs() < 1e-6,
                        "keys {keys}, ({i}, {t}): {got} instead of {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn softmax_of_fully_masked_keys_is_uniform() {
    for target in targets() {
        let (mut s, mut sums) = (vec![1f32; 4 * QUERIES], [0f32; QUERIES]);
        let bias = [f32::MIN; 4];
        exec(&KernelSpec::AttentionSoftmax, &target).call(&[
            ptr_mut(&mut s),
            4,
            ptr(&bias),
            ptr(&[1.0]),
            ptr_mut(&mut sums),
        ]);
        assert_eq!(sums, [0.25; QUERIES]);
    }
}

#[test]
fn embedding_sums_go_to_their_lane() {
    for target in targets() {
        for panel in [8usize, 16, 32] {
            for tables in 1..=3usize {
                let kernel = exec(
                    &KernelSpec::EmbeddingSum {
                        tables: tables as u32,
                        panel: panel as u32,
                    },
                    &target,
                );
                for k in [1usize, 3, 4, 7, 8, 9, 33] {
                    let rows: Vec<Vec<f32>> =
                        (0..tables).map(|i| values(k, 10 + i as u32)).collect();
                    for lane in [0, panel - 1] {
                        let (mut y, mut line) = (vec![7f32; k * panel], [0f32; 16]);
                        let mut args: Vec<u64> = rows.iter().map(|r| ptr(r)).collect();
                        args.extend([
                            ptr_mut(&mut y) + 4 * lane as u64,
                            k as u64,
                            ptr_mut(&mut line),
                        ]);
                        kernel.call(&args);
                        for (i, &got) in y.iter().enumerate() {
                            let want = match i % panel == lane {
                                true => rows.iter().map(|r| r[i / panel]).sum::<f32>(),
                                false => 7.0,
                            };
                            assert_eq!(
                                got, want,
                                "{tables} tables, panel {panel}, k {k}, element {i}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Features are not optional: a 512-bit kernel is an invalid instruction to a CPU without them.
#[test]
fn a_cpu_without_avx512_refuses_its_kernels() {
    if !Machine::Haswell.is_reached() {
        return;
    }
    let spec = KernelSpec::Epilogue {
        activation: Activation::Relu,
        residual: false,
        panel: 32,
        lanes: 32,
    };
    let run = |features: CpuFeatures| {
        let mut y = values(32, 1);
        let kernel = exec(&spec, &(Machine::Haswell, features));
        let ran = kernel.try_call(&[ptr_mut(&mut y), 0, 1]);
        (ran, y)
    };
    let want: Vec<f32> = values(32, 1).iter().map(|v| v.max(0.0)).collect();
    assert_eq!(run(CpuFeatures::avx2()), (Ok(()), want));
    const INVALID_OPCODE: u64 = 6;
    assert_eq!(run(CpuFeatures::avx512()).0, Err(INVALID_OPCODE));
}
