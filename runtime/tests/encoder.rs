//! Steps over panels against the operators that define them.

mod net;

use lancet_artifact::WeightFormat;
use lancet_ops::Tensor;
use lancet_runtime::{Kernels, Model, ModelOptions, RuntimeError, Session};
use net::{Net, encoder, encoder_inputs, encoder_of, views};

const SIZES: [(usize, usize); 9] = [
    (1, 1),
    (1, 7),
    (2, 5),
    (3, 16),
    (2, 33),
    (1, 128),
    (5, 8),
    (1, 24),
    (4, 3),
];

fn options(threads: usize, kernels: Kernels) -> ModelOptions {
    ModelOptions {
        threads: Some(threads),
        kernels,
        ..ModelOptions::default()
    }
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let (found, expected) = (found.as_slice::<f32>(), expected.as_slice::<f32>());
    let pairs = found.expect("f32").iter().zip(expected.expect("f32"));
    for (i, (f, e)) in pairs.enumerate() {
        assert!(
            (f - e).abs() <= 1e-4 * (1.0 + e.abs()),
            "{what}, element {i}: found {f}, expected {e}"
        );
    }
}

#[test]
fn the_same_as_the_operators_at_every_size() {
    same_as_the_operators(&encoder(true));
}

/// Weights that are mostly blocks of four outputs have narrower panels.
#[test]
fn the_same_as_the_operators_in_narrow_panels() {
    let format = WeightFormat::Bsr { r: 4, c: 1 };
    same_as_the_operators(&encoder_of([format; 4], true));
}

fn same_as_the_operators(net: &Net) {
    for kernels in [Kernels::Portable, Kernels::Emitted] {
        let model =
            Model::from_parts(net.plan.clone(), &net.weights, &options(2, kernels)).expect("valid");
        let mut session = Session::new(&model);
        for (batch, seq) in SIZES.into_iter().chain(SIZES) {
            let inputs = encoder_inputs(batch, seq);
            let found = session.run(&views(&inputs)).expect("runs");
            let expected = net.reference(&inputs);
            assert_close(
                &found[0].1,
                &expected[0],
                &format!("{kernels:?} at {batch} x {seq}"),
            );
        }
    }
}

#[test]
fn the_same_bits_at_any_thread_count() {
    let net = encoder(true);
    for (batch, seq) in [(2, 33), (1, 128), (1, 5)] {
        let inputs = encoder_inputs(batch, seq);
        let runs: Vec<Vec<u32>> = (1..=4)
            .map(|threads| {
                let options = options(threads, Kernels::Emitted);
                let model =
                    Model::from_parts(net.plan.clone(), &net.weights, &options).expect("valid");
                let out = Session::new(&model)
                    .run(&views(&inputs))
                    .expect("runs")
                    .remove(0)
                    .1;
                out.as_slice::<f32>()
                    .expect("f32")
                    .iter()
                    .map(|v| v.to_bits())
                    .collect()
            })
            .collect();
        assert!(
            runs.windows(2).all(|pair| pair[0] == pair[1]),
            "{batch} x {seq}"
        );
    }
}

#[test]
fn sessions_share_a_model_from_several_threads() {
    let net = encoder(false);
    let model = Model::from_parts(
        net.plan.clone(),
        &net.weights,
        &options(2, Kernels::Emitted),
    )
    .expect("valid");
    std::thread::scope(|scope| {
        for i in 0..3 {
            let (net, model) = (&net, &model);
            scope.spawn(move || {
                let mut session = Session::new(model);
                for seq in [4 + i, 9, 20 + i] {
                    let inputs = encoder_inputs(2, seq);
                    let found = session.run(&views(&inputs)).expect("runs");
                    assert_close(&found[0].1, &net.reference(&inputs)[0], "shared");
                }
            });
        }
    });
}

#[test]
fn ids_out_of_range_are_an_error_and_the_session_lives_on() {
    let net = encoder(false);
    let model = Model::from_parts(
        net.plan.clone(),
        &net.weights,
        &options(2, Kernels::Emitted),
    )
    .expect("valid");
    let mut session = Session::new(&model);
    let good = encoder_inputs(1, 3);
    let mut bad = good.clone();
    bad[0].1 = Tensor::new([1, 3], vec![0i64, 11, 2]);
    let error = session.run(&views(&bad)).expect_err("out of range");
    assert_eq!(
        error.to_string(),
        "step 0 `s0`: embedding index 11 of lookup 0 is outside a table of 11 rows"
    );
    session.run(&views(&good)).expect("runs");
}

#[test]
fn positions_out_of_range_are_an_error_and_the_session_lives_on() {
    let net = encoder(false);
    let options = options(2, Kernels::Emitted);
    let model = Model::from_parts(net.plan.clone(), &net.weights, &options).expect("valid");
    let mut session = Session::new(&model);
    let good = encoder_inputs(1, 3);
    for at in [5, -6, i64::MIN] {
        let mut bad = good.clone();
        let index = bad.iter_mut().find(|(name, _)| *name == "by_key_index");
        index.expect("an input").1 = Tensor::new([6], vec![0, 4, -5, at, 0, 0]);
        let error = session
            .run(&views(&bad))
            .expect_err("out of range")
            .to_string();
        let expected = format!("index {at} is outside of 5 positions");
        assert!(error.ends_with(&expected), "{error}");
        session.run(&views(&good)).expect("runs");
    }
}

#[test]
fn sizes_beyond_the_limit_are_an_error() {
    let net = encoder(false);
    let options = ModelOptions {
        max_arena_bytes: 100_000,
        ..options(1, Kernels::Emitted)
    };
    let model = Model::from_parts(net.plan.clone(), &net.weights, &options).expect("valid");
    let mut session = Session::new(&model);
    let large = encoder_inputs(8, 128);
    let error = session.run(&views(&large)).expect_err("too large");
    assert!(matches!(error, RuntimeError::MemoryLimit { .. }), "{error}");
    session.run(&views(&encoder_inputs(1, 8))).expect("runs");
}

#[test]
fn traces_name_steps_and_kernels() {
    let net = encoder(true);
    let model = Model::from_parts(
        net.plan.clone(),
        &net.weights,
        &options(1, Kernels::Emitted),
    )
    .expect("valid");
    let mut session = Session::new(&model);
    session.set_tracing(true);
    session.run(&views(&encoder_inputs(1, 8))).expect("runs");
    let trace = session.trace();
    assert_eq!(trace.len(), net.plan.steps.len());
    assert!(trace.iter().any(|t| &*t.kernel == "softsign"));
    let linear = trace.iter().find(|t| t.flops > 0).expect("a linear layer");
    assert_eq!(linear.flops, 2 * 24 * 24 * 8);
    if cfg!(all(feature = "jit", target_arch = "x86_64")) {
        assert!(
            trace.iter().all(|t| !t.kernel.starts_with("portable")),
            "{trace:?}"
        );
    }
}
