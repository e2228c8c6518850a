//! Bytes that nobody wrote load with an error, or run safely.

mod net;

use lancet_artifact::{
    Dim, GeneralizedAttention, Layout, Plan, Reduction, StepKind, Storage, ValueDesc, Weights,
};
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

#[test]
fn attention_shows_what_its_second_output_holds() {
    let with = |over_queries: Option<Reduction>, rank: usize| {
        let mut plan = encoder(false).plan;
        let at = plan
            .steps
            .iter()
            .position(|s| matches!(s.kind, StepKind::Attention(_)));
        let step = &mut plan.steps[at.expect("attention")];
        let StepKind::Attention(parameters) = &mut step.kind else {
            panic!("no attention");
        };
        parameters.over_queries = over_queries;
        let q = &plan.values[step.inputs[0].expect("queries") as usize].shape;
        let (batch, tokens) = (q[0].clone(), q[1].clone());
        let heads = Dim::fixed(i64::from(parameters.num_heads));
        let mut shape = vec![batch, heads, tokens.clone(), tokens];
        shape.truncate(rank);
        step.outputs.push(plan.values.len() as u32);
        plan.values.push(ValueDesc {
            name: "probabilities".to_owned(),
            dtype: "f32".to_owned(),
            shape,
            layout: Layout::RowMajor,
            storage: Storage::Slot,
        });
        plan
    };
    let weights = encoder(false).weights;
    let load = |plan: Plan| Model::from_parts(plan, &weights, &options());
    for (over_queries, rank) in [
        (Some(Reduction::Max), 3),
        (Some(Reduction::Sum), 4),
        (None, 3),
    ] {
        let error = load(with(over_queries, rank))
            .err()
            .expect("refused")
            .to_string();
        assert!(error.contains("probabilities"), "{error}");
    }
    for (over_queries, rank) in [(None, 4), (Some(Reduction::Mean), 3)] {
        let good = with(over_queries, rank);
        assert!(load(good.clone()).is_ok(), "{over_queries:?}");
        try_run(good, &weights.to_vec());
    }
}

#[test]
fn attention_has_stages_that_make_sense() {
    let with = |stages: [&[&str]; 3]| {
        let mut plan = encoder(false).plan;
        for step in &mut plan.steps {
            if let StepKind::Attention(parameters) = &step.kind {
                step.kind = StepKind::GeneralizedAttention(GeneralizedAttention {
                    num_heads: parameters.num_heads,
                    stages: stages.map(|s| s.iter().map(ToString::to_string).collect()),
                    over_queries: None,
                });
                step.inputs.truncate(3);
            }
        }
        plan
    };
    let weights = encoder(false).weights;
    let load = |plan: Plan| Model::from_parts(plan, &weights, &options());
    for (stages, reason) in [
        ([&["sub x0 x1"][..], &[], &[]], "no row of scores"),
        ([&[], &["exp v0"], &[]], "refers to a later one"),
        ([&[], &["mul x0 x2"], &[]], "an operand that is not there"),
        ([&[], &[], &["i64 x0"]], "gives no f32"),
        ([&[], &[], &["nothing x0"]], "is no function"),
    ] {
        let error = load(with(stages)).err().expect("refused").to_string();
        assert!(error.contains(reason), "{error}");
    }
    let good = with([&["mul x0 0.5"], &["sub x0 x1", "exp v0"], &["div x0 x1"]]);
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
