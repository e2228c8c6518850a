//! Transposed convolution: what each attribute does to sizes and places, with numbers of ONNX Runtime.

use lancet_ops::{Attribute, Attributes, OpError, Operator, Tensor, evaluate};

fn of(lists: &[(&str, &[i64])]) -> Attributes {
    lists.iter().fold(Attributes::new(), |a, (name, list)| {
        a.with(name, Attribute::Ints(list.to_vec()))
    })
}

fn transposed(attributes: &Attributes, operands: &[&Tensor]) -> Result<Tensor, OpError> {
    let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
    Ok(evaluate(Operator::ConvTranspose, attributes, &views, 1)?.remove(0))
}

/// `i mod modulo + first` for element `i`.
fn ramp(shape: &[usize], modulo: usize, first: f32) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i % modulo) as f32 + first).collect();
    Tensor::new(shape.to_vec(), values)
}

#[test]
fn padding_takes_from_the_result() {
    let x = ramp(&[1, 1, 3], 9, 1.0);
    let same = |mode: &str| {
        let strides = of(&[("strides", &[2])]);
        strides.with("auto_pad", Attribute::Str(mode.to_owned()))
    };
    let stated = |mode: &str| same(mode).with("output_shape", Attribute::Ints(vec![3]));
    for (taps, attributes, expected) in [
        (2, of(&[]), &[1.0f32, 4.0, 7.0, 6.0][..]),
        (2, of(&[("strides", &[2])]), &[1.0, 2.0, 2.0, 4.0, 3.0, 6.0]),
        (
            2,
            of(&[("strides", &[2]), ("pads", &[1, 0])]),
            &[2.0, 2.0, 4.0, 3.0, 6.0],
        ),
        (2, of(&[("dilations", &[2])]), &[1.0, 2.0, 5.0, 4.0, 6.0]),
        (
            2,
            of(&[("strides", &[2]), ("output_padding", &[1])]),
            &[1.0, 2.0, 2.0, 4.0, 3.0, 6.0, 0.0],
        ),
        (3, same("SAME_UPPER"), &[1.0, 2.0, 5.0, 4.0, 9.0, 6.0]),
        (3, same("SAME_LOWER"), &[2.0, 5.0, 4.0, 9.0, 6.0, 9.0]),
        (2, same("VALID"), &[1.0, 2.0, 2.0, 4.0, 3.0, 6.0]),
        // Nothing to take away: what is missing is zero.
        (1, same("SAME_UPPER"), &[1.0, 0.0, 2.0, 0.0, 3.0, 0.0]),
        (2, stated("NOTSET"), &[2.0, 4.0, 3.0]),
        (2, stated("SAME_UPPER"), &[2.0, 2.0, 4.0]),
        (
            2,
            of(&[("strides", &[2]), ("output_shape", &[7]), ("pads", &[5, 5])]),
            &[1.0, 2.0, 2.0, 4.0, 3.0, 6.0, 0.0],
        ),
    ] {
        let w = ramp(&[1, 1, taps], 9, 1.0);
        let y = transposed(&attributes, &[&x, &w]).expect("fits");
        assert_eq!(
            y,
            Tensor::new([1, 1, expected.len()], expected.to_vec()),
            "{attributes:?}"
        );
    }
}

#[test]
fn groups_have_filters_and_biases_of_their_own() {
    let (x, w) = (ramp(&[1, 4, 2, 3], 5, -1.0), ramp(&[4, 1, 2, 2], 7, -2.0));
    let bias = Tensor::new([2], vec![10.0f32, -20.0]);
    let attributes = of(&[
        ("dilations", &[2, 1]),
        ("strides", &[1, 2]),
        ("pads", &[1, 0, 0, 1]),
    ]);
    let attributes = attributes.with("group", Attribute::Int(2));
    let expected = vec![
        12.0f32, 17.0, 2.0, 4.0, 12.0, 10.0, 9.0, 14.0, 8.0, 18.0, 22.0, 6.0, 6.0, 15.0, 10.0,
        -19.0, -20.0, -17.0, -16.0, -15.0, -23.0, -20.0, -24.0, -19.0, -15.0, -21.0, -22.0, -22.0,
        -21.0, -23.0,
    ];
    let y = transposed(&attributes, &[&x, &w, &bias]).expect("fits");
    assert_eq!(y, Tensor::new([1, 2, 3, 5], expected));
}

#[test]
fn three_dimensions_and_several_filters() {
    let (x, w) = (
        ramp(&[1, 1, 2, 1, 2], 9, 1.0),
        ramp(&[1, 2, 1, 2, 2], 9, 1.0),
    );
    let attributes = of(&[("strides", &[2, 1, 1]), ("output_padding", &[1, 0, 0])]);
    let first = [1.0f32, 4.0, 4.0, 3.0, 10.0, 8.0];
    let second = [3.0, 10.0, 8.0, 9.0, 24.0, 16.0];
    let third = [5.0, 16.0, 12.0, 7.0, 22.0, 16.0];
    let fourth = [15.0, 38.0, 24.0, 21.0, 52.0, 32.0];
    let zeros = [0.0; 6];
    let expected = [first, zeros, second, zeros, third, zeros, fourth, zeros].concat();
    let y = transposed(&attributes, &[&x, &w]).expect("fits");
    assert_eq!(y, Tensor::new([1, 2, 4, 2, 3], expected));
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let (x, w) = (ramp(&[1, 2, 3], 9, 1.0), ramp(&[2, 1, 2], 9, 1.0));
    let refused = |attributes: Attributes| assert!(transposed(&attributes, &[&x, &w]).is_err());
    refused(of(&[("pads", &[3, 2])]));
    refused(of(&[("output_padding", &[-1])]));
    refused(of(&[("output_shape", &[1, 1, 3])]));
    refused(of(&[("kernel_shape", &[3])]));
    refused(of(&[("strides", &[0])]));
    refused(Attributes::new().with("group", Attribute::Int(3)));
    assert!(transposed(&Attributes::new(), &[&x, &ramp(&[3, 1, 2], 9, 1.0)]).is_err());
}
