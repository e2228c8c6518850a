//! Random shapes and tensors from a seed, by a linear congruential generator, so that a failure repeats.

use lancet_ops::{DType, Data, Tensor};

/// A source of random choices.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    /// A number less than `n`; 0 if `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize).checked_rem(n).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the choices.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A size, seldom 0.
    pub(crate) fn size(&mut self) -> usize {
        if self.chance(4) { 0 } else { 1 + self.below(4) }
    }

    /// A size that is not 0.
    pub(crate) fn positive(&mut self) -> usize {
        1 + self.below(4)
    }

    /// A shape of a rank between these.
    pub(crate) fn shape(&mut self, least: usize, most: usize) -> Vec<usize> {
        let rank = least + self.below(most - least + 1);
        (0..rank).map(|_| self.size()).collect()
    }

    /// A shape that broadcasts to this one.
    pub(crate) fn narrowed(&mut self, shape: &[usize]) -> Vec<usize> {
        let skipped = self.below(shape.len() + 1).min(self.below(shape.len() + 1));
        shape[skipped..]
            .iter()
            .map(|&d| if self.chance(30) { 1 } else { d })
            .collect()
    }

    /// An axis of this rank, which may count from the end.
    pub(crate) fn axis(&mut self, rank: usize) -> i64 {
        let a = self.below(rank) as i64;
        if self.chance(30) { a - rank as i64 } else { a }
    }

    /// Different axes of this rank in any order, at least `least` of them.
    pub(crate) fn axes(&mut self, rank: usize, least: usize) -> Vec<i64> {
        let mut all: Vec<i64> = (0..rank as i64).collect();
        for i in (1..rank).rev() {
            all.swap(i, self.below(i + 1));
        }
        let n = least.min(rank) + self.below(rank - least.min(rank) + 1);
        all.truncate(n);
        for a in &mut all {
            if self.chance(30) {
                *a -= rank as i64;
            }
        }
        all
    }

    /// A tensor of small numbers.
    pub(crate) fn tensor(&mut self, dtype: DType, shape: &[usize]) -> Tensor {
        let n: usize = shape.iter().product();
        let mut ints = |least: i64, n_values: usize| -> Vec<i64> {
            (0..n)
                .map(|_| least + self.below(n_values) as i64)
                .collect()
        };
        let data = match dtype {
            DType::F32 => Data::F32(ints(-3, 7).iter().map(|&v| v as f32 / 2.0).collect()),
            DType::F64 => Data::F64(ints(-3, 7).iter().map(|&v| v as f64 / 2.0).collect()),
            DType::I8 => Data::I8(ints(-3, 7).iter().map(|&v| v as i8).collect()),
            DType::I16 => Data::I16(ints(-3, 7).iter().map(|&v| v as i16).collect()),
            DType::I32 => Data::I32(ints(-3, 7).iter().map(|&v| v as i32).collect()),
            DType::I64 => Data::I64(ints(-3, 7)),
            DType::U8 => Data::U8(ints(0, 5).iter().map(|&v| v as u8).collect()),
            DType::U16 => Data::U16(ints(0, 5).iter().map(|&v| v as u16).collect()),
            DType::U32 => Data::U32(ints(0, 5).iter().map(|&v| v as u32).collect()),
            DType::U64 => Data::U64(ints(0, 5).iter().map(|&v| v as u64).collect()),
            DType::Bool => Data::Bool(ints(0, 2).iter().map(|&v| v != 0).collect()),
            DType::F16 | DType::BF16 => Data::zeros(dtype, n),
        };
        Tensor::try_new(shape.to_vec(), data).expect("the elements fill the shape")
    }

    /// Integers between these, inclusive.
    pub(crate) fn integers(&mut self, shape: &[usize], least: i64, most: i64) -> Tensor {
        let n: usize = shape.iter().product();
        let v: Vec<i64> = (0..n)
            .map(|_| least + self.below((most - least + 1).max(1) as usize) as i64)
            .collect();
        Tensor::new(shape.to_vec(), v)
    }
}
