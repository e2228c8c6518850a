//! Integer products in single precision: x and the sums are whole numbers in `f32`, which is exact for matrices of
//! [`Arithmetic::Singles`](lancet_artifact::Arithmetic).

use lancet_artifact::{Binary, Element, Extent, Vertical, VerticalOp, VerticalOperand};

/// Greatest magnitude of a bias that is added in `f32`: no sum with it leaves `i32`.
const MAX_BIAS: u32 = 1 << 30;

/// An operand that is a bias, by its number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bias {
    /// Taken as `f32` instead of `i32`.
    Added(usize),
    /// No operand any more: what sums begin with.
    First(usize),
}

/// What does of sums in `f32` what `vertical` does of the same sums in `i32` (`None`: nothing), and the operand that is a bias, if
/// any. Sums begin with it where `fits` says that they stay within 2^24.
///
/// Identities, for a whole number s within 2^24: `float(int(s)) = s`, and `float(int(s) + b) = s + float(b)` where b is in
/// `f32`: both sides are the exact sum, rounded once. `is_exact` tells whether all numbers of an operand are such a b.
pub(super) fn of_sums(
    vertical: Option<Vertical>,
    is_exact: impl Fn(usize) -> bool,
    fits: impl Fn(usize) -> bool,
) -> (Vertical, Option<Bias>) {
    let mut vertical = vertical.unwrap_or_else(|| Vertical {
        operands: vec![VerticalOperand {
            element: Element::I32,
            extent: Extent::Panels,
        }],
        ops: Vec::new(),
    });
    vertical.operands[0].element = Element::F32;
    let n = vertical.operands.len() as u32;
    let used_once = |v: u32| vertical.ops.iter().map(|op| count(op, v)).sum::<usize>() == 1;
    let once_more = |v: u32| if v < n { v } else { v - 1 };
    match vertical.ops[..] {
        [VerticalOp::ToFloat { a: 0 }, _, ..] if used_once(0) => {
            let ops = vertical.ops[1..].iter();
            let place = |v| if v == n { 0 } else { once_more(v) };
            vertical.ops = ops.map(|op| renumbered(op, place)).collect();
            (vertical, None)
        }
        [
            VerticalOp::Binary {
                op: Binary::Add,
                a,
                b,
            },
            VerticalOp::ToFloat { a: sum },
            ..,
        ] if a.min(b) == 0
            && (1..n).contains(&a.max(b))
            && sum == n
            && [0, a.max(b), n].into_iter().all(used_once)
            && is_exact(a.max(b) as usize) =>
        {
            let bias = a.max(b) as usize;
            if vertical.ops.len() > 2 && fits(bias) {
                // The sum is the first operand; the others and results of operations move up.
                let place = |v: u32| match v {
                    v if v == n + 1 => 0,
                    v if v < bias as u32 => v,
                    v if v < n => v - 1,
                    v => v - 3,
                };
                let ops = vertical.ops[2..].iter();
                vertical.ops = ops.map(|op| renumbered(op, place)).collect();
                vertical.operands.remove(bias);
                return (vertical, Some(Bias::First(bias)));
            }
            vertical.operands[bias].element = Element::F32;
            let ops = vertical.ops[2..].iter();
            let place = |v| if v == n { v } else { once_more(v) };
            vertical.ops = std::iter::once(vertical.ops[0])
                .chain(ops.map(|op| renumbered(op, place)))
                .collect();
            (vertical, Some(Bias::Added(bias)))
        }
        _ => {
            // The first operand's place is taken by its conversion, the results of operations move by one.
            let place = |v| match v {
                0 => n,
                v if v < n => v,
                v => v + 1,
            };
            let ops = vertical.ops.iter();
            vertical.ops = std::iter::once(VerticalOp::ToInt { a: 0 })
                .chain(ops.map(|op| renumbered(op, place)))
                .collect();
            (vertical, None)
        }
    }
}

/// Whether sums of a row and their bias stay within 2^24, for each row of `w`, `k` weights long, and any bytes.
pub(super) fn fits<T: Copy + Into<i64>>(w: &[T], k: usize, bias: &[i32]) -> bool {
    let rows = w.chunks(k.max(1)).zip(bias);
    bias.len() == w.len().checked_div(k).unwrap_or(0)
        && rows.into_iter().all(|(row, bias)| {
            let sum: u64 = row.iter().map(|&w| w.into().unsigned_abs()).sum();
            255 * sum + u64::from(bias.unsigned_abs()) <= 1 << 24
        })
}

/// Whether every number of a bias is in `f32` and small enough to be added there.
pub(super) fn is_exact(bias: &[i32]) -> bool {
    bias.iter()
        .all(|&b| b.unsigned_abs() <= MAX_BIAS && b as f32 as i32 == b)
}

fn count(op: &VerticalOp, v: u32) -> usize {
    let mut n = 0;
    renumbered(op, |u| {
        n += usize::from(u == v);
        u
    });
    n
}

/// An operation of other values.
fn renumbered(op: &VerticalOp, mut place: impl FnMut(u32) -> u32) -> VerticalOp {
    match *op {
        VerticalOp::Binary { op, a, b } => VerticalOp::Binary {
            op,
            a: place(a),
            b: place(b),
        },
        VerticalOp::Activation { kind, a } => VerticalOp::Activation { kind, a: place(a) },
        VerticalOp::ToFloat { a } => VerticalOp::ToFloat { a: place(a) },
        VerticalOp::ToInt { a } => VerticalOp::ToInt { a: place(a) },
        VerticalOp::Quantize {
            a,
            scale,
            zero_point,
            to,
        } => VerticalOp::Quantize {
            a: place(a),
            scale: place(scale),
            zero_point: zero_point.map(place),
            to,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(ops: Vec<VerticalOp>) -> Vertical {
        let operand = |element, extent| VerticalOperand { element, extent };
        Vertical {
            operands: vec![
                operand(Element::I32, Extent::Panels),
                operand(Element::I32, Extent::Features),
                operand(Element::F32, Extent::Scalar),
            ],
            ops,
        }
    }

    fn add(a: u32, b: u32) -> VerticalOp {
        let op = Binary::Add;
        VerticalOp::Binary { op, a, b }
    }

    fn mul(a: u32, b: u32) -> VerticalOp {
        let op = Binary::Mul;
        VerticalOp::Binary { op, a, b }
    }

    #[test]
    fn a_bias_is_added_to_sums_as_they_are() {
        let before = expression(vec![
            add(1, 0),
            VerticalOp::ToFloat { a: 3 },
            mul(4, 2),
            mul(5, 4),
        ]);
        let (after, bias) = of_sums(Some(before.clone()), |_| true, |_| false);
        assert_eq!(after.ops, [add(1, 0), mul(3, 2), mul(4, 3)]);
        assert_eq!(bias, Some(Bias::Added(1)));
        assert!(after.operands.iter().all(|o| o.element == Element::F32));
        assert_eq!(after.check(), Ok(Element::F32));
        let (after, bias) = of_sums(Some(before), |_| false, |_| true);
        let expected = [
            VerticalOp::ToInt { a: 0 },
            add(1, 3),
            VerticalOp::ToFloat { a: 4 },
            mul(5, 2),
            mul(6, 5),
        ];
        assert_eq!((&after.ops[..], bias), (&expected[..], None));
        assert_eq!(after.check(), Ok(Element::F32));
    }

    #[test]
    fn sums_that_become_f32_are_it_already() {
        let before = expression(vec![VerticalOp::ToFloat { a: 0 }, mul(3, 2)]);
        let (after, bias) = of_sums(Some(before), |_| false, |_| true);
        assert_eq!((&after.ops[..], bias), (&[mul(0, 2)][..], None));
        let alone = Some(expression(vec![VerticalOp::ToFloat { a: 0 }]));
        let (after, _) = of_sums(alone, |_| false, |_| true);
        assert_eq!(after.check(), Ok(Element::F32));
        assert_eq!(
            of_sums(None, |_| false, |_| true).0.check(),
            Ok(Element::I32)
        );
        // Sums that are used twice stay integers.
        let twice = expression(vec![add(0, 1), VerticalOp::ToFloat { a: 3 }, mul(3, 0)]);
        let (after, bias) = of_sums(Some(twice), |_| true, |_| true);
        assert_eq!((after.ops[0], bias), (VerticalOp::ToInt { a: 0 }, None));
    }

    #[test]
    fn sums_begin_with_a_bias_that_fits() {
        let before = expression(vec![
            add(1, 0),
            VerticalOp::ToFloat { a: 3 },
            mul(4, 2),
            mul(5, 4),
        ]);
        let (after, bias) = of_sums(Some(before), |_| true, |_| true);
        assert_eq!(after.ops, [mul(0, 1), mul(2, 0)]);
        assert_eq!(bias, Some(Bias::First(1)));
        assert_eq!(after.operands.len(), 2);
        assert_eq!(after.check(), Ok(Element::F32));
        // Something has to follow the sum.
        let alone = expression(vec![add(1, 0), VerticalOp::ToFloat { a: 3 }]);
        let (after, bias) = of_sums(Some(alone), |_| true, |_| true);
        assert_eq!(
            (&after.ops[..], bias),
            (&[add(1, 0)][..], Some(Bias::Added(1)))
        );
    }

    #[test]
    fn a_bias_fits_beside_the_greatest_sum() {
        let w = [100i8, -50, 0, 0];
        let room = (1 << 24) - 255 * 150;
        assert!(fits(&w, 2, &[room, -(1 << 24)]));
        assert!(!fits(&w, 2, &[room + 1, 0]));
        assert!(!fits(&w, 2, &[0, -(1 << 24) - 1]));
        assert!(!fits(&w, 2, &[0]));
    }

    #[test]
    fn biases_beyond_f32_are_not_exact() {
        assert!(is_exact(&[0, -(1 << 24), (1 << 24) + 2, 1 << 30]));
        assert!(!is_exact(&[(1 << 24) + 1]));
        assert!(!is_exact(&[i32::MIN]));
    }
}
