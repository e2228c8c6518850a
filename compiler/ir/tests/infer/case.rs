//! One application of an operator with random operands, and what cases of every kind need.

use lancet_ops::{Attribute, Attributes, DType, Tensor};

use crate::random::Random;

/// One application of an operator.
pub(crate) struct Case {
    pub(crate) attributes: Attributes,
    pub(crate) operands: Vec<Option<Tensor>>,
    pub(crate) n_results: usize,
    /// True if integer operands stand for sizes, which may be symbolic.
    pub(crate) sizes: bool,
    /// True if the rank of a result depends on the size of an integer operand, which must then be fixed.
    pub(crate) lengths: bool,
}

impl Case {
    pub(crate) fn new(operands: Vec<Tensor>) -> Case {
        Case {
            attributes: Attributes::new(),
            operands: operands.into_iter().map(Some).collect(),
            n_results: 1,
            sizes: false,
            lengths: false,
        }
    }

    pub(crate) fn set(mut self, name: &str, value: Attribute) -> Case {
        self.attributes.set(name, value);
        self
    }

    pub(crate) fn int(self, name: &str, value: i64) -> Case {
        self.set(name, Attribute::Int(value))
    }

    /// Rounds scores or probabilities of attention, or neither.
    pub(crate) fn rounding(self, r: &mut Random) -> Case {
        let numbers = |scale| Attribute::Floats(vec![scale, -3.0, 252.0]);
        self.maybe(r, |case| case.set("score_rounding", numbers(0.5)))
            .maybe(r, |case| case.set("masked_score_rounding", numbers(40.0)))
            .maybe(r, |case| case.set("probability_rounding", numbers(0.01)))
    }

    pub(crate) fn ints(self, name: &str, value: Vec<i64>) -> Case {
        self.set(name, Attribute::Ints(value))
    }

    pub(crate) fn str(self, name: &str, value: &str) -> Case {
        self.set(name, Attribute::Str(value.to_owned()))
    }

    pub(crate) fn maybe(self, r: &mut Random, f: impl FnOnce(Case) -> Case) -> Case {
        if r.chance(50) { f(self) } else { self }
    }

    pub(crate) fn results(mut self, n: usize) -> Case {
        self.n_results = n;
        self
    }

    pub(crate) fn sizes(mut self) -> Case {
        self.sizes = true;
        self.lengths()
    }

    pub(crate) fn lengths(mut self) -> Case {
        self.lengths = true;
        self
    }

    /// Leaves out operand `index` now and then.
    pub(crate) fn without(mut self, r: &mut Random, index: usize) -> Case {
        if r.chance(40) {
            self.operands[index] = None;
        }
        self
    }
}

pub(crate) const FLOATS: [DType; 2] = [DType::F32, DType::F64];

pub(crate) const NUMBERS: [DType; 5] = [DType::F32, DType::F64, DType::I32, DType::I64, DType::U8];

pub(crate) const INTEGERS: [DType; 4] = [DType::I32, DType::I64, DType::U8, DType::I8];

pub(crate) const ANY: [DType; 6] = [
    DType::F32,
    DType::I64,
    DType::I32,
    DType::U8,
    DType::Bool,
    DType::F16,
];

pub(crate) fn f32s(r: &mut Random, shape: &[usize]) -> Tensor {
    r.tensor(DType::F32, shape)
}

pub(crate) fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(vec![values.len()], values.to_vec())
}

pub(crate) fn sizes(shape: &[usize]) -> Tensor {
    i64s(&shape.iter().map(|&d| d as i64).collect::<Vec<_>>())
}

pub(crate) fn unary(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(0, 4));
    Case::new(vec![r.tensor(dtype, &shape)])
}

pub(crate) fn binary(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(0, 3));
    let (a, b) = (r.narrowed(&shape), r.narrowed(&shape));
    Case::new(vec![r.tensor(dtype, &a), r.tensor(dtype, &b)])
}

pub(crate) fn variadic(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape, n) = (*r.pick(dtypes), r.shape(0, 3), 1 + r.below(3));
    let operands = (0..n).map(|_| {
        let s = r.narrowed(&shape);
        r.tensor(dtype, &s)
    });
    Case::new(operands.collect())
}

pub(crate) fn along_axis(r: &mut Random, dtypes: &[DType]) -> Case {
    let (dtype, shape) = (*r.pick(dtypes), r.shape(1, 4));
    let axis = r.axis(shape.len());
    Case::new(vec![r.tensor(dtype, &shape)]).int("axis", axis)
}

/// A condition and two values of one type that broadcast together.
pub(crate) fn where_case(r: &mut Random) -> Case {
    let (dtype, shape) = (*r.pick(&ANY), r.shape(0, 3));
    let operands = [DType::Bool, dtype, dtype].map(|dtype| {
        let s = r.narrowed(&shape);
        r.tensor(dtype, &s)
    });
    Case::new(operands.into()).sizes()
}

/// A body of two lines on two numbers that broadcast.
pub(crate) fn elementwise(r: &mut Random) -> Case {
    let case = binary(r, &[DType::F32, DType::F64, DType::I64, DType::I32]);
    let body = match r.below(6) {
        0 => ["less x0 x1", "where v0 x1 1"],
        1 => ["equal x0 x1", "not v0"],
        2 => ["mul x1 x1", "f32 v0"],
        // Floats alone.
        3 => ["add x1 x0", "sqrt v0"],
        _ => *r.pick(&[["add x0 x1", "abs v0"], ["max x1 2", "sub v0 x0"]]),
    };
    case.set("body", Attribute::Strs(body.map(str::to_owned).to_vec()))
}
