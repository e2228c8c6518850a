//! `DynamicQuantizeLSTM`, with numbers of ONNX Runtime.

use lancet_ops::{Attribute, Attributes, OpError, Operator, Tensor, evaluate};

fn run(operands: &[Option<Tensor>]) -> Result<Vec<Tensor>, OpError> {
    let attributes = Attributes::new()
        .with("direction", Attribute::Str("bidirectional".to_owned()))
        .with("hidden_size", Attribute::Int(2));
    let views: Vec<_> = operands
        .iter()
        .map(|t| t.as_ref().map(Tensor::view))
        .collect();
    evaluate(Operator::MsDynamicQuantizeLSTM, &attributes, &views, 3)
}

/// Two items of three and one steps, two numbers to two, both directions; weights with scales of directions and of rows.
fn operands() -> Vec<Option<Tensor>> {
    let floats = |shape: &[usize], f: &dyn Fn(usize) -> f32| {
        let n: usize = shape.iter().product();
        Some(Tensor::new(
            shape.to_vec(),
            (0..n).map(f).collect::<Vec<_>>(),
        ))
    };
    let bytes = |shape: &[usize], f: &dyn Fn(usize) -> usize| {
        let n: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..n).map(|i| f(i) as u8).collect();
        Some(Tensor::new(shape.to_vec(), bytes))
    };
    vec![
        floats(&[3, 2, 2], &|i| (i * 7 % 11) as f32 / 4.0 - 1.0),
        bytes(&[2, 2, 8], &|i| i * 37 % 256),
        bytes(&[2, 2, 8], &|i| i * 53 % 127 + 65),
        floats(&[2, 16], &|i| (i % 5) as f32 / 8.0 - 0.25),
        Some(Tensor::new([2], vec![3i32, 1])),
        None,
        None,
        None,
        Some(Tensor::new([2], vec![0.01f32, 0.02])),
        Some(Tensor::new([2], vec![128u8, 100])),
        floats(&[2, 8], &|i| 0.005 + 0.001 * i as f32),
        bytes(&[2, 8], &|_| 128),
    ]
}

fn assert_close(found: &Tensor, shape: &[usize], expected: &[f32]) {
    assert_eq!(found.shape(), shape);
    let found = found.as_slice::<f32>().expect("f32");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= 2e-6, "element {i}: {f}, expected {e}");
    }
}

#[test]
fn what_is_quantized_is_quantized_by_step() {
    let results = run(&operands()).expect("fits");
    let y = [
        -0.287_083, 0.132_703, -0.097_492, -0.191_79, 0.218_366, 0.255_453, -0.236_808, 0.465_809,
        0.033_635, -0.087_324, 0.0, 0.0, -0.033_268, 0.067_653, 0.0, 0.0, -0.194_008, -0.102_914,
        0.0, 0.0, 0.137_268, 0.311_945, 0.0, 0.0,
    ];
    assert_close(&results[0], &[3, 2, 2, 2], &y);
    let h = [
        -0.194_008, -0.102_914, -0.097_492, -0.191_79, 0.218_366, 0.255_453, -0.236_808, 0.465_809,
    ];
    assert_close(&results[1], &[2, 2, 2], &h);
    let c = [
        -0.398_902, -0.178_026, -0.236_373, -0.333_719, 0.388_289, 0.473_065, -0.261_177, 0.519_277,
    ];
    assert_close(&results[2], &[2, 2, 2], &c);
}

#[test]
fn steps_beyond_every_length_change_nothing() {
    let mut longer = operands();
    let x = longer[0]
        .as_ref()
        .and_then(|x| x.as_slice::<f32>())
        .expect("f32");
    let x = [x, &[1000.0; 4]].concat();
    longer[0] = Some(Tensor::new([4, 2, 2], x));
    let [found, expected] = [longer, operands()].map(|operands| run(&operands).expect("fits"));
    assert_eq!(found[1..], expected[1..]);
}

#[test]
fn parameters_that_do_not_fit_are_errors() {
    for (i, wrong) in [
        (1, Tensor::new([2, 8, 2], vec![0u8; 32])),
        (2, Tensor::new([2, 2, 8], vec![0i32; 32])),
        (8, Tensor::new([4], vec![0.1f32; 4])),
        (9, Tensor::new([2], vec![0i8; 2])),
        (10, Tensor::new([1, 8], vec![0.1f32; 8])),
        (11, Tensor::new([2, 8, 1], vec![0u8; 16])),
    ] {
        let mut operands = operands();
        operands[i] = Some(wrong);
        assert!(run(&operands).is_err(), "operand {i}");
    }
}
