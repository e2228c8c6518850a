//! Cases of operators that move elements or read and write at computed places.

use lancet_ops::{DType, Tensor};

use crate::case::*;
use crate::random::Random;

pub(crate) fn reduce(r: &mut Random) -> Case {
    let mut case = unary(r, &NUMBERS);
    let rank = case.operands[0].as_ref().map_or(0, |t| t.shape().len());
    if r.chance(70) {
        case.operands.push(Some(i64s(&r.axes(rank, 0))));
    }
    let (keep, noop) = (r.below(2) as i64, r.below(2) as i64);
    case.int("keepdims", keep)
        .int("noop_with_empty_axes", noop)
        .lengths()
}

pub(crate) fn slice(r: &mut Random) -> Case {
    let shape = r.shape(1, 3);
    let axes = r.axes(shape.len(), 0);
    let far = [i64::MAX, i64::MIN, i64::from(i32::MAX), -1, 0, 1];
    let bounds = |r: &mut Random| {
        let bound = |_: &i64| {
            if r.chance(30) {
                *r.pick(&far)
            } else {
                r.below(11) as i64 - 5
            }
        };
        i64s(&axes.iter().map(bound).collect::<Vec<_>>())
    };
    let (starts, ends) = (bounds(r), bounds(r));
    let steps: Vec<i64> = axes
        .iter()
        .map(|_| *r.pick(&[1, 1, 1, 2, -1, -2, i64::MAX]))
        .collect();
    let x = *r.pick(&ANY);
    let operands = vec![r.tensor(x, &shape), starts, ends, i64s(&axes), i64s(&steps)];
    let mut case = Case::new(operands).without(r, 4);
    if r.chance(30) {
        case.operands.truncate(4);
    }
    case
}

/// Indices into a dimension.
pub(crate) fn places(r: &mut Random, shape: &[usize], n: usize) -> Tensor {
    r.integers(shape, -(n as i64), n as i64 - 1)
}

pub(crate) fn scatter_nd(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
    let (n, k) = (r.positive(), 1 + r.below(shape.len()));
    let least = *shape.iter().min().expect("a dimension");
    let indices = places(r, &[n, k], least);
    let updates = [&[n], &shape[k..]].concat();
    Case::new(vec![f32s(r, &shape), indices, f32s(r, &updates)])
        .str("reduction", "add")
        .lengths()
}

pub(crate) fn gather_nd(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..2 + r.below(2)).map(|_| r.positive()).collect();
    let batch = r.below(2);
    let k = 1 + r.below(shape.len() - batch);
    let least = *shape.iter().min().expect("a dimension");
    let mut of = shape[..batch].to_vec();
    of.extend([r.positive(), k]);
    let indices = places(r, &of, least);
    Case::new(vec![f32s(r, &shape), indices])
        .int("batch_dims", batch as i64)
        .lengths()
}

pub(crate) fn split(r: &mut Random) -> Case {
    let mut shape = r.shape(1, 3);
    let (axis, n) = (r.axis(shape.len()), 1 + r.below(3));
    let at = axis.rem_euclid(shape.len() as i64) as usize;
    let parts: Vec<usize> = (0..n).map(|_| r.size()).collect();
    if r.chance(50) {
        shape[at] = parts.iter().sum();
        let x = r.tensor(DType::I64, &shape);
        return Case::new(vec![x, sizes(&parts)])
            .int("axis", axis)
            .results(n);
    }
    if r.chance(50) {
        shape[at] = n * r.size();
    }
    let case = Case::new(vec![r.tensor(DType::I64, &shape)]).int("axis", axis);
    case.maybe(r, |c| c.int("num_outputs", n as i64)).results(n)
}

pub(crate) fn reshape(r: &mut Random) -> Case {
    let shape = r.shape(0, 4);
    let n: usize = shape.iter().product();
    let mut wanted = vec![1i64];
    let mut rest = n;
    for d in [2, 3, 4, 2] {
        if rest.is_multiple_of(d) && 0 < rest && r.chance(50) {
            wanted.push(d as i64);
            rest /= d;
        }
    }
    wanted.push(rest as i64);
    if r.chance(60) {
        let i = r.below(wanted.len());
        wanted[i] = -1;
    }
    if r.chance(30) && wanted[0] != -1 && !shape.is_empty() {
        wanted = vec![0, -1];
    }
    Case::new(vec![r.tensor(DType::I64, &shape), i64s(&wanted)]).sizes()
}

pub(crate) fn clip(r: &mut Random) -> Case {
    let dtype = *r.pick(&NUMBERS);
    let shape = r.shape(0, 3);
    let operands = vec![
        r.tensor(dtype, &shape),
        r.tensor(dtype, &[]),
        r.tensor(dtype, &[]),
    ];
    Case::new(operands).without(r, 1).without(r, 2)
}

pub(crate) fn squeeze(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..r.below(4))
        .map(|_| if r.chance(50) { 1 } else { 2 + r.below(2) })
        .collect();
    let ones: Vec<i64> = (0..shape.len())
        .filter(|&i| shape[i] == 1)
        .map(|i| i as i64)
        .collect();
    Case::new(vec![r.tensor(DType::I64, &shape), i64s(&ones)]).lengths()
}

pub(crate) fn transpose(r: &mut Random) -> Case {
    let shape = r.shape(0, 4);
    let perm: Vec<i64> = r
        .axes(shape.len(), shape.len())
        .iter()
        .map(|a| a.rem_euclid(shape.len() as i64))
        .collect();
    Case::new(vec![r.tensor(DType::I64, &shape)]).maybe(r, |c| c.ints("perm", perm))
}

pub(crate) fn concat(r: &mut Random) -> Case {
    let (shape, n) = (r.shape(1, 3), 1 + r.below(3));
    let axis = r.axis(shape.len());
    let at = axis.rem_euclid(shape.len() as i64) as usize;
    let parts = (0..n).map(|_| {
        let mut shape = shape.clone();
        shape[at] = r.size();
        r.tensor(DType::I64, &shape)
    });
    Case::new(parts.collect()).int("axis", axis).sizes()
}

pub(crate) fn gather(r: &mut Random) -> Case {
    let shape: Vec<usize> = (0..1 + r.below(3)).map(|_| r.positive()).collect();
    let (axis, of) = (r.axis(shape.len()), r.shape(0, 2));
    let n = shape[axis.rem_euclid(shape.len() as i64) as usize];
    let indices = places(r, &of, n);
    Case::new(vec![r.tensor(DType::I64, &shape), indices]).int("axis", axis)
}

pub(crate) fn pad(r: &mut Random) -> Case {
    let shape = r.shape(1, 3);
    let axes = r.axes(shape.len(), 0);
    let pads = r.integers(&[2 * axes.len()], -1, 2);
    let operands = vec![f32s(r, &shape), pads, Tensor::scalar(1.0f32), i64s(&axes)];
    Case::new(operands).without(r, 2).sizes()
}

pub(crate) fn one_hot(r: &mut Random) -> Case {
    let shape = r.shape(0, 3);
    let axis = r.axis(shape.len() + 1);
    let operands = vec![
        r.tensor(DType::I64, &shape),
        Tensor::scalar(3i64),
        f32s(r, &[2]),
    ];
    Case::new(operands).int("axis", axis).sizes()
}

pub(crate) fn top_k(r: &mut Random) -> Case {
    let case = along_axis(r, &NUMBERS).results(2).sizes();
    let k = r.below(3) as i64;
    let mut case = case;
    case.operands.push(Some(i64s(&[k])));
    case
}

pub(crate) fn compress(r: &mut Random) -> Case {
    let case = along_axis(r, &ANY);
    let n = r.below(3);
    let mut case = case;
    case.operands.push(Some(r.tensor(DType::Bool, &[n])));
    if r.chance(40) {
        case.attributes.remove("axis");
    }
    case
}

pub(crate) fn space_to_depth(r: &mut Random) -> Case {
    let x = [
        r.positive(),
        r.positive(),
        2 * r.positive(),
        2 * r.positive(),
    ];
    Case::new(vec![f32s(r, &x)]).int("blocksize", 2)
}

pub(crate) fn reverse_sequence(r: &mut Random) -> Case {
    let shape = [vec![r.positive(), r.positive()], r.shape(0, 1)].concat();
    let (batch, n) = (r.below(2), shape[0].min(shape[1]));
    let lengths = r.integers(&[shape[batch]], 1, n as i64);
    let case = Case::new(vec![f32s(r, &shape), lengths]);
    case.int("batch_axis", batch as i64)
        .int("time_axis", 1 - batch as i64)
}
