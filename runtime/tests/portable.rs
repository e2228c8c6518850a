//! Plans of portable steps, views and broadcasts.

use lancet_artifact::{
    Attribute, Dim, Layout, Plan, Port, Step, StepKind, Storage, ValueDesc, Weights,
};
use lancet_ops::Tensor;
use lancet_runtime::{Model, ModelOptions, RuntimeError, Session};

fn value(name: &str, dtype: &str, shape: Vec<Dim>, storage: Storage) -> ValueDesc {
    ValueDesc {
        name: name.to_owned(),
        dtype: dtype.to_owned(),
        shape,
        layout: Layout::RowMajor,
        storage,
    }
}

fn portable(operator: &str, inputs: &[u32], output: u32) -> Step {
    Step {
        name: format!("{operator}_{output}"),
        kind: StepKind::Portable {
            operator: operator.to_owned(),
            attributes: vec![],
        },
        inputs: inputs.iter().map(|&v| Some(v)).collect(),
        outputs: vec![output],
    }
}

fn step(kind: StepKind, inputs: &[u32], output: u32) -> Step {
    Step {
        name: format!("step_{output}"),
        kind,
        inputs: inputs.iter().map(|&v| Some(v)).collect(),
        outputs: vec![output],
    }
}

/// `y = broadcast(relu(x + w), [2, s, 3])`, `flat = view(x + w)`, `sizes = [s, 3*s]`.
fn plan() -> (Plan, Weights<'static>) {
    let s = || Dim::symbol(0);
    let mut weights = Weights::new();
    weights.push(vec![0u8; 5]);
    let bytes: Vec<u8> = [1.0f32, -2.0, 3.0]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let offset = weights.push(bytes);
    let times3 = Dim {
        terms: vec![(3, vec![0])],
    };
    let plan = Plan {
        symbols: vec!["s".to_owned()],
        values: vec![
            value("x", "f32", vec![s(), Dim::fixed(3)], Storage::Input(0)),
            value(
                "w",
                "f32",
                vec![Dim::fixed(3)],
                Storage::Weights { offset, len: 12 },
            ),
            value("sum", "f32", vec![s(), Dim::fixed(3)], Storage::Slot),
            value("relu", "f32", vec![s(), Dim::fixed(3)], Storage::Slot),
            value(
                "y",
                "f32",
                vec![Dim::fixed(2), s(), Dim::fixed(3)],
                Storage::Slot,
            ),
            value("flat", "f32", vec![times3.clone()], Storage::Slot),
            value("sizes", "i64", vec![Dim::fixed(2)], Storage::Slot),
        ],
        inputs: vec![Port {
            name: "x".to_owned(),
            value: 0,
        }],
        outputs: [("y", 4), ("flat", 5), ("sizes", 6), ("x_again", 0)]
            .into_iter()
            .map(|(name, value)| Port {
                name: name.to_owned(),
                value,
            })
            .collect(),
        steps: vec![
            portable("add", &[0, 1], 2),
            portable("relu", &[2], 3),
            step(StepKind::Broadcast, &[3], 4),
            step(StepKind::View, &[2], 5),
            step(StepKind::Dims(vec![s(), times3]), &[], 6),
        ],
        matrices: vec![],
        metadata: vec![],
    };
    (plan, weights)
}

fn model() -> Model {
    let (plan, weights) = plan();
    Model::from_parts(plan, &weights, &ModelOptions::default()).expect("a valid plan")
}

#[test]
fn runs_at_several_sizes() {
    let mut session = Session::new(&model());
    for s in [2usize, 1, 0, 5, 5] {
        let x = Tensor::new([s, 3], (0..3 * s).map(|v| v as f32 - 3.0).collect());
        let outputs = session.run(&[("x", x.view())]).expect("runs");
        let sum: Vec<f32> = (0..3 * s)
            .map(|v| v as f32 - 3.0 + [1.0, -2.0, 3.0][v % 3])
            .collect();
        let relu: Vec<f32> = sum.iter().map(|v| v.max(0.0)).collect();
        assert_eq!(
            outputs[0].1,
            Tensor::new([2, s, 3], [relu.clone(), relu].concat())
        );
        assert_eq!(outputs[1].1, Tensor::new([3 * s], sum));
        assert_eq!(outputs[2].1, Tensor::new([2], vec![s as i64, 3 * s as i64]));
        assert_eq!(outputs[3].1, x);
    }
}

#[test]
fn the_same_through_an_artifact() {
    let (plan, weights) = plan();
    let mut bytes = Vec::new();
    lancet_artifact::write(&[("", &plan)], &weights, &mut bytes).expect("a valid plan");
    let model = Model::from_bytes(&bytes, &ModelOptions::default()).expect("a valid artifact");
    assert_eq!(model.plan(), &plan);
    let x = Tensor::new([1, 3], vec![1.0f32, 2.0, 3.0]);
    let outputs = Session::new(&model).run(&[("x", x.view())]).expect("runs");
    assert_eq!(outputs[1].1, Tensor::new([3], vec![2.0f32, 0.0, 6.0]));
}

#[test]
fn wrong_inputs_are_errors() {
    let mut session = Session::new(&model());
    let good = Tensor::new([1, 3], vec![0.0f32; 3]);
    let wide = Tensor::new([1, 4], vec![0.0f32; 4]);
    let flat = Tensor::new([3], vec![0.0f32; 3]);
    let ints = Tensor::new([1, 3], vec![0i64; 3]);
    let messages: Vec<String> = [
        session.run(&[]),
        session.run(&[("z", good.view())]),
        session.run(&[("x", good.view()), ("x", good.view())]),
        session.run(&[("x", wide.view())]),
        session.run(&[("x", flat.view())]),
        session.run(&[("x", ints.view())]),
    ]
    .into_iter()
    .map(|r| r.expect_err("wrong").to_string())
    .collect();
    assert_eq!(
        messages,
        [
            "input `x` is missing",
            "unknown input `z`: the model has `x`",
            "input `x` is given twice",
            "input `x` dimension 1: expected 3, found 4",
            "input `x`: expected rank 2, found shape [3]",
            "input `x`: expected element type f32, found i64",
        ]
    );
    assert!(matches!(session.output("y"), Err(RuntimeError::NoOutputs)));
    session
        .run(&[("x", good.view())])
        .expect("the session still works");
}

#[test]
fn sizes_that_data_decides_are_bound_when_known() {
    let n = || Dim::symbol(1);
    let plan = Plan {
        symbols: vec!["s".to_owned(), "n".to_owned()],
        values: vec![
            value("x", "f32", vec![Dim::symbol(0)], Storage::Input(0)),
            value("at", "i64", vec![Dim::fixed(1), n()], Storage::Slot),
            value("flat", "i64", vec![n()], Storage::Slot),
            value("wide", "i64", vec![Dim::fixed(2), n()], Storage::Slot),
            value("size", "i64", vec![Dim::fixed(1)], Storage::Slot),
        ],
        inputs: vec![Port {
            name: "x".to_owned(),
            value: 0,
        }],
        outputs: [("wide", 3), ("size", 4)]
            .into_iter()
            .map(|(name, value)| Port {
                name: name.to_owned(),
                value,
            })
            .collect(),
        steps: vec![
            portable("non_zero", &[0], 1),
            step(StepKind::View, &[1], 2),
            step(StepKind::Broadcast, &[2], 3),
            step(StepKind::Dims(vec![n()]), &[], 4),
        ],
        matrices: vec![],
        metadata: vec![],
    };
    let model = Model::from_parts(plan, &Weights::new(), &ModelOptions::default()).expect("valid");
    let mut session = Session::new(&model);
    for x in [
        vec![0.0f32, 1.0, 0.0, 2.0],
        vec![1.0, 1.0, 0.0, 2.0],
        vec![0.0; 4],
    ] {
        let at: Vec<i64> = (0..4).filter(|&i| x[i as usize] != 0.0).collect();
        let n = at.len();
        let out = session
            .run(&[("x", Tensor::new([4], x).view())])
            .expect("runs");
        assert_eq!(out[0].1, Tensor::new([2, n], [at.clone(), at].concat()));
        assert_eq!(out[1].1, Tensor::new([1], vec![n as i64]));
    }
}

#[test]
fn bad_plans_are_errors() {
    let load = |plan: Plan| {
        let (_, weights) = self::plan();
        Model::from_parts(plan, &weights, &ModelOptions::default())
            .err()
            .map(|e| e.to_string())
    };
    let (good, _) = plan();
    let mut unknown = good.clone();
    unknown.steps[0].kind = StepKind::Portable {
        operator: "frobnicate".to_owned(),
        attributes: vec![],
    };
    assert_eq!(
        load(unknown).as_deref(),
        Some("plan: step 0 `add_2`: unknown operator `frobnicate`")
    );
    let mut attribute = good.clone();
    attribute.steps[0].kind = StepKind::Portable {
        operator: "add".to_owned(),
        attributes: vec![("axis".to_owned(), Attribute::Int(1))],
    };
    assert!(load(attribute).is_some_and(|m| m.contains("`axis`")));
    let mut early = good.clone();
    early.steps.swap(0, 1);
    assert!(load(early).is_some_and(|m| m.contains("value 2 is not written yet")));
    let mut dtype = good.clone();
    dtype.values[1].dtype = "f31".to_owned();
    assert!(load(dtype).is_some_and(|m| m.contains("unknown element type `f31`")));
    let mut weights = good;
    weights.values[1].storage = Storage::Weights { offset: 64, len: 8 };
    assert!(load(weights).is_some_and(|m| m.contains("8 bytes of weights for f32[3]")));
}
