//! Bytes that nobody wrote load with an error, or run safely.

mod net;

use lancet_artifact::{Plan, StepKind, Weights};
use lancet_runtime::{Model, ModelOptions, Session};
use net::{encoder, encoder_inputs, views};
use proptest::prelude::*;

fn options() -> ModelOptions {
    ModelOptions {
        threads: Some(1),
        max_arena_bytes: 1 << 24,
        ..ModelOptions::default()
    }
}

/// Loads and runs; every error is fine.
fn try_run(plan: Plan, weights: &[u8]) {
    let mut section = Weights::new();
    section.push(weights);
    let Ok(model) = Model::from_parts(plan, &section, &options()) else {
        return;
    };
    let mut session = Session::new(&model);
    for (batch, seq) in [(1, 3), (2, 9)] {
        let _ = session.run(&views(&encoder_inputs(batch, seq)));
    }
}

#[test]
fn attention_rounds_by_numbers_that_make_sense() {
    let with = |numbers: [f32; 3]| {
        let mut plan = encoder(false).plan;
        for step in &mut plan.steps {
            if let StepKind::Attention(parameters) = &mut step.kind {
                parameters.rounding = [Some(numbers); 3];
                parameters.exact_keys = Some(5);
            }
        }
        plan
    };
    let weights = encoder(false).weights;
    let load = |plan: Plan| Model::from_parts(plan, &weights, &options());
    for numbers in [
        [0.0, 0.0, 255.0],
        [-1.0, 0.0, 255.0],
        [f32::NAN, 0.0, 255.0],
        [f32::INFINITY, 0.0, 255.0],
        [1.0, 0.0, 1e9],
        [1.0, 3.0, 255.0],
        [1.0, 0.0, f32::NAN],
    ] {
        let error = load(with(numbers)).err().expect("no rounding").to_string();
        assert!(error.contains("a least and a greatest number"), "{error}");
    }
    let good = with([0.01, -3.0, 252.0]);
    assert!(load(good.clone()).is_ok());
    try_run(good, &weights.to_vec());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_plans(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let net = encoder(true);
        let mut bytes = net.plan.to_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(plan) = Plan::from_bytes(&bytes) {
            try_run(plan, &net.weights.to_vec());
        }
    }

    #[test]
    fn changed_weights(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let net = encoder(false);
        let mut weights = net.weights.to_vec();
        for (at, byte) in changes {
            let at = at.index(weights.len());
            weights[at] = byte;
        }
        try_run(net.plan, &weights);
    }

    #[test]
    fn changed_tables_of_packed_weights(matrix in 0..24usize, at in 0..64usize, byte in any::<u8>()) {
        let net = encoder(false);
        let mut weights = net.weights.to_vec();
        let matrix = &net.plan.matrices[matrix % net.plan.matrices.len()];
        // Headers and tables come first, and their words matter most.
        let at = matrix.offset as usize + (at * 4).min(matrix.len as usize - 1);
        weights[at] = byte;
        try_run(net.plan.clone(), &weights);
    }

    #[test]
    fn changed_artifacts(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let net = encoder(false);
        let mut bytes = Vec::new();
        lancet_artifact::write(&[("", &net.plan)], &net.weights, &mut bytes).expect("a valid plan");
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Model::from_bytes(&bytes, &options());
        let _ = Model::from_bytes(&bytes[..at], &options());
    }
}

#[test]
fn files_are_mapped() {
    let net = encoder(false);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    lancet_artifact::write(&[("", &net.plan)], &net.weights, &mut file.as_file()).expect("writes");
    let model = Model::load_with(file.path(), &options()).expect("loads");
    let inputs = encoder_inputs(1, 5);
    let mapped = Session::new(&model).run(&views(&inputs)).expect("runs");
    let owned = Model::from_parts(net.plan.clone(), &net.weights, &options()).expect("valid");
    let owned = Session::new(&owned).run(&views(&inputs)).expect("runs");
    assert_eq!(mapped, owned);
    let missing = Model::load(file.path().with_extension("missing"))
        .err()
        .expect("missing");
    assert!(missing.to_string().starts_with("cannot read "), "{missing}");
}
