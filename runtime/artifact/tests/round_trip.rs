//! Plans and artifacts survive the trip through bytes; damaged bytes are errors.

use lancet_artifact::{
    Activation, Arithmetic, ArtifactError, AttentionParameters, Attribute, AttributeTensor, Binary,
    Dim, Element, Extent, GeneralizedAttention, Layout, MatrixDesc, Plan, Port, Reduction,
    RowBlock, Step, StepKind, Storage, ValueDesc, Vertical, VerticalOp, VerticalOperand,
    WeightFormat, Weights, read, write,
};
use proptest::collection::vec;
use proptest::num::f32::{NORMAL, ZERO};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    "[a-zà/_.0-9]{0,8}"
}

fn float() -> impl Strategy<Value = f32> {
    NORMAL | ZERO
}

fn dims() -> impl Strategy<Value = Vec<Dim>> {
    let term = (any::<i64>(), vec(any::<u32>(), 0..3));
    vec(vec(term, 0..3).prop_map(|terms| Dim { terms }), 0..4)
}

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        any::<i64>().prop_map(Attribute::Int),
        float().prop_map(Attribute::Float),
        text().prop_map(Attribute::Str),
        vec(any::<i64>(), 0..4).prop_map(Attribute::Ints),
        vec(float(), 0..4).prop_map(Attribute::Floats),
        vec(text(), 0..4).prop_map(Attribute::Strs),
        (text(), vec(any::<u64>(), 0..3), vec(any::<u8>(), 0..9)).prop_map(
            |(dtype, shape, bytes)| Attribute::Tensor(AttributeTensor {
                dtype,
                shape,
                bytes
            })
        ),
    ]
}

fn activation() -> impl Strategy<Value = Activation> {
    proptest::sample::select(&Activation::ALL[..])
}

/// Any expression, sensible or not.
fn vertical() -> impl Strategy<Value = Vertical> {
    let number = || 0u32..1000;
    let element = proptest::sample::select(&[Element::F32, Element::I32][..]);
    let extents = [Extent::Panels, Extent::Features, Extent::Scalar];
    let operand = (element, proptest::sample::select(extents.to_vec()))
        .prop_map(|(element, extent)| VerticalOperand { element, extent });
    let binary = proptest::sample::select(&Binary::ALL[..]);
    let op = prop_oneof![
        (binary, number(), number()).prop_map(|(op, a, b)| VerticalOp::Binary { op, a, b }),
        (activation(), number()).prop_map(|(kind, a)| VerticalOp::Activation { kind, a }),
        number().prop_map(|a| VerticalOp::ToFloat { a }),
        (number(), number(), proptest::option::of(number())).prop_map(|(a, scale, zero_point)| {
            VerticalOp::Quantize {
                a,
                scale,
                zero_point,
            }
        }),
    ];
    (vec(operand, 0..9), vec(op, 0..6)).prop_map(|(operands, ops)| Vertical { operands, ops })
}

fn attention() -> impl Strategy<Value = AttentionParameters> {
    let rounding = || proptest::option::of([float(), float(), float()]);
    let roundings = [rounding(), rounding(), rounding()];
    let keys = proptest::option::of(any::<u64>());
    let parameters = (
        any::<u32>(),
        float(),
        float(),
        roundings,
        keys,
        over_queries(),
    );
    parameters.prop_map(
        |(num_heads, scale, masked_value, rounding, exact_keys, over_queries)| {
            AttentionParameters {
                num_heads,
                scale,
                masked_value,
                rounding,
                exact_keys,
                over_queries,
            }
        },
    )
}

fn generalized_attention() -> impl Strategy<Value = GeneralizedAttention> {
    let lines = || vec(text(), 0..3);
    let parameters = (any::<u32>(), [lines(), lines(), lines()], over_queries());
    parameters.prop_map(|(num_heads, stages, over_queries)| GeneralizedAttention {
        num_heads,
        stages,
        over_queries,
    })
}

fn over_queries() -> impl Strategy<Value = Option<Reduction>> {
    proptest::option::of(proptest::sample::select(&Reduction::ALL[..]))
}

fn kind() -> BoxedStrategy<StepKind> {
    prop_oneof![
        (text(), vec((text(), attribute()), 0..3)).prop_map(|(operator, attributes)| {
            StepKind::Portable {
                operator,
                attributes,
            }
        }),
        dims().prop_map(StepKind::Dims),
        Just(StepKind::View),
        Just(StepKind::Broadcast),
        Just(StepKind::ToPanels),
        Just(StepKind::FromPanels),
        vec((-1f32..1.0, any::<i32>()), 0..3)
            .prop_map(|quantization| StepKind::EmbeddingLookup { quantization }),
        float().prop_map(|epsilon| StepKind::LayerNorm { epsilon }),
        (any::<u32>(), activation())
            .prop_map(|(matrix, activation)| StepKind::Linear { matrix, activation }),
        attention().prop_map(StepKind::Attention),
        attention().prop_map(StepKind::PackedAttention),
        generalized_attention().prop_map(StepKind::GeneralizedAttention),
        proptest::collection::vec(text(), 0..3).prop_map(|body| StepKind::Elementwise { body }),
        float().prop_map(|epsilon| StepKind::RmsNorm { epsilon }),
        Just(StepKind::MatMul),
        Just(StepKind::Quantize),
        any::<u32>().prop_map(|axis| StepKind::Softmax { axis }),
        (
            proptest::sample::select(&Reduction::ALL[..]),
            any::<u32>(),
            any::<u32>()
        )
            .prop_map(|(reduction, start, end)| StepKind::Reduce {
                reduction,
                axes: start..end,
            }),
        vec(any::<u32>(), 0..5).prop_map(|permutation| StepKind::Transpose { permutation }),
        (vec(any::<u32>(), 0..5), vec(any::<u32>(), 0..5))
            .prop_map(|(starts, steps)| StepKind::Slice { starts, steps }),
        any::<u32>().prop_map(|axis| StepKind::Concat { axis }),
        vec(any::<u32>(), 0..5).prop_map(|before| StepKind::Pad { before }),
        (any::<u32>(), proptest::option::of(vertical()))
            .prop_map(|(matrix, tail)| StepKind::IntegerLinear { matrix, tail }),
        vertical().prop_map(StepKind::Vertical),
        Just(StepKind::Range),
        Just(StepKind::RangeScale),
        Just(StepKind::RangeZeroPoint),
    ]
    .boxed()
}

/// Steps that run small plans, beside all others.
fn any_kind() -> impl Strategy<Value = StepKind> {
    let inside = || {
        let step = (text(), kind()).prop_map(|(name, kind)| Step {
            name,
            kind,
            inputs: vec![Some(1), None],
            outputs: vec![2],
        });
        vec(step, 0..3).prop_map(|steps| {
            Box::new(Plan {
                steps,
                ..Plan::default()
            })
        })
    };
    prop_oneof![
        8 => kind(),
        1 => (inside(), inside()).prop_map(|(then, otherwise)| StepKind::If { then, otherwise }),
        1 => (inside(), any::<u32>())
            .prop_map(|(body, n_carried)| StepKind::Loop { body, n_carried }),
    ]
}

fn value() -> impl Strategy<Value = ValueDesc> {
    let storage = prop_oneof![
        any::<u32>().prop_map(Storage::Input),
        (any::<u64>(), any::<u64>()).prop_map(|(offset, len)| Storage::Weights { offset, len }),
        Just(Storage::Slot),
    ];
    let layout = prop_oneof![Just(Layout::RowMajor), Just(Layout::Panels)];
    (text(), text(), dims(), layout, storage).prop_map(|(name, dtype, shape, layout, storage)| {
        ValueDesc {
            name,
            dtype,
            shape,
            layout,
            storage,
        }
    })
}

fn matrix() -> impl Strategy<Value = MatrixDesc> {
    let format = prop_oneof![
        Just(WeightFormat::Dense),
        Just(WeightFormat::Unstructured),
        (any::<u8>(), any::<u8>()).prop_map(|(r, c)| WeightFormat::Bsr { r, c }),
    ];
    let block = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
        |(offset, len, row0, n_rows)| RowBlock {
            offset,
            len,
            row0,
            n_rows,
        },
    );
    let sizes = (
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
    );
    let stored = (format, proptest::sample::select(&Arithmetic::ALL[..]));
    (text(), stored, sizes, vec(block, 0..3), 0f32..100.0).prop_map(
        |(name, stored, (n, k, offset, len, nnz), row_blocks, predicted_speedup)| MatrixDesc {
            pattern: name.clone(),
            predicted_speedup,
            predicted_cycles: vec![(name.clone(), predicted_speedup)],
            name,
            format: stored.0,
            arithmetic: stored.1,
            n,
            k,
            offset,
            len,
            row_blocks,
            nnz,
        },
    )
}

/// Any plan, sensible or not.
fn plan() -> impl Strategy<Value = Plan> {
    let port = || (text(), any::<u32>()).prop_map(|(name, value)| Port { name, value });
    let operands = vec(proptest::option::of(0..u32::MAX), 0..4);
    let step = (text(), any_kind(), operands, vec(any::<u32>(), 0..3)).prop_map(
        |(name, kind, inputs, outputs)| Step {
            name,
            kind,
            inputs,
            outputs,
        },
    );
    (
        vec(text(), 0..3),
        vec(value(), 0..4),
        vec(port(), 0..3),
        vec(port(), 0..3),
        vec(step, 0..5),
        vec(matrix(), 0..3),
        vec((text(), text()), 0..2),
    )
        .prop_map(
            |(symbols, values, inputs, outputs, steps, matrices, metadata)| Plan {
                symbols,
                values,
                inputs,
                outputs,
                steps,
                matrices,
                metadata,
            },
        )
}

fn small() -> (Plan, Weights<'static>) {
    let mut weights = Weights::new();
    weights.push(vec![7u8; 3]);
    let offset = weights.push(vec![1u8; 8]);
    let desc = |name: &str, storage| ValueDesc {
        name: name.to_owned(),
        dtype: "f32".to_owned(),
        shape: vec![Dim::fixed(2)],
        layout: Layout::RowMajor,
        storage,
    };
    let plan = Plan {
        symbols: vec!["s".to_owned()],
        values: vec![
            desc("x", Storage::Input(0)),
            desc("w", Storage::Weights { offset, len: 8 }),
            desc("y", Storage::Slot),
        ],
        inputs: vec![Port {
            name: "x".to_owned(),
            value: 0,
        }],
        outputs: vec![Port {
            name: "y".to_owned(),
            value: 2,
        }],
        steps: vec![Step {
            name: "add".to_owned(),
            kind: StepKind::Portable {
                operator: "add".to_owned(),
                attributes: vec![],
            },
            inputs: vec![Some(0), Some(1)],
            outputs: vec![2],
        }],
        ..Plan::default()
    };
    (plan, weights)
}

fn artifact() -> Vec<u8> {
    let (plan, weights) = small();
    let mut bytes = Vec::new();
    write(&[("", &plan)], &weights, &mut bytes).expect("writes");
    bytes
}

proptest! {
    #[test]
    fn plans_survive_their_message(plan in plan()) {
        prop_assert_eq!(Plan::from_bytes(&plan.to_bytes()).expect("decodes"), plan);
    }

    #[test]
    fn validation_never_panics(plan in plan(), weights_bytes in any::<u64>()) {
        let _ = plan.validate(weights_bytes);
    }

    #[test]
    fn any_message_decodes_or_is_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Plan::from_bytes(&bytes);
    }

    #[test]
    fn a_changed_byte_is_noticed(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut bytes = artifact();
        let at = at.index(bytes.len());
        // Bytes between the sections belong to none.
        let (_, weights) = small();
        let plans_bytes = u64::from_le_bytes(bytes[24..32].try_into().expect("8 bytes")) as usize;
        bytes[at] ^= flip;
        let padding = 64 + plans_bytes..bytes.len() - weights.len_bytes() as usize;
        prop_assert_eq!(read(&bytes).is_ok(), padding.contains(&at), "byte {}", at);
    }

    #[test]
    fn a_missing_end_is_noticed(at in any::<prop::sample::Index>()) {
        let bytes = artifact();
        prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
    }
}

#[test]
fn an_artifact_is_what_was_written() {
    let (plan, weights) = small();
    let bytes = artifact();
    let (found, range) = read(&bytes).expect("reads");
    assert_eq!(found, [(String::new(), plan)]);
    assert_eq!(range.start % 4096, 0);
    assert_eq!(bytes[range], weights.to_vec());
}

#[test]
fn variants_share_one_weights_section() {
    let (plan, mut weights) = small();
    let all: Vec<u8> = (0..=255).collect();
    let long = weights.push(all.clone());
    assert_eq!(
        weights.push(all.clone()),
        long,
        "equal pieces are kept once"
    );
    assert_eq!(
        weights.push(all[..128].to_vec()),
        long,
        "a beginning is part of the whole"
    );
    let mut other = plan.clone();
    other.metadata.push(("depth".to_owned(), "half".to_owned()));
    let mut bytes = Vec::new();
    write(&[("full", &plan), ("half", &other)], &weights, &mut bytes).expect("writes");
    let (found, range) = read(&bytes).expect("reads");
    assert_eq!(
        found,
        [
            ("full".to_owned(), plan.clone()),
            ("half".to_owned(), other)
        ]
    );
    assert_eq!(bytes[range], weights.to_vec());

    let twice = write(&[("a", &plan), ("a", &plan)], &weights, &mut Vec::new());
    let message = twice.expect_err("one name").to_string();
    assert_eq!(message, "artifact variants: two are named `a`");
    let none = write(&[], &weights, &mut Vec::new()).expect_err("nothing to write");
    assert_eq!(none.to_string(), "artifact variants: there is none");
}

#[test]
fn errors_say_what_and_where() {
    let message = |bytes: &[u8]| read(bytes).expect_err("damaged").to_string();
    let good = artifact();
    assert_eq!(
        message(b"ONNX"),
        "not a Lancet artifact: the file does not begin with its magic number"
    );
    assert_eq!(
        message(&good[..20]),
        "artifact is truncated: header needs 64 bytes, found 20"
    );
    let mut version = good.clone();
    version[8] = 9;
    assert_eq!(
        message(&version),
        "artifact format version 9 is not supported: this build reads version 6"
    );
    assert!(message(&good[..good.len() - 1]).starts_with("artifact is truncated: weights needs "));

    let (mut plan, weights) = small();
    plan.steps[0].inputs[1] = Some(7);
    let error = write(&[("", &plan)], &weights, &mut Vec::new()).expect_err("refers to nothing");
    assert!(matches!(error, ArtifactError::Plan(_)));
    assert_eq!(
        error.to_string(),
        "artifact plan: step 0 `add` input 1: refers to value 7 of 3"
    );
}
