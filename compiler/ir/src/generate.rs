//! Tensors from short descriptions, so that IR text can name weights without holding them.
//!
//! | literal | elements |
//! |---|---|
//! | `zeros`, `ones`, `full(v)` | all alike |
//! | `iota` | 0, 1, 2, ... in row-major order, wrapping in small integer types |
//! | `eye` | 1 where the last two indices are equal, else 0 |
//! | `random(seed = n)` | uniform over `-1..1`, or over `-127..128`, `0..256`, `-100..100` or `0..100` for integers |
//! | `random(seed = n, range = a..b)` | uniform over `a <= x < b`; for integers every value from a to b - 1 |
//! | `random(seed = n, sparsity = s)` | a share s of the elements, rounded to the nearest count, is zero |
//! | `random(seed = n, sparsity = s, block = 4x1)` | the same share of blocks of 4 rows by 1 column is zero |
//! | `random(seed = n, nm = 2:4)` | in every 4 consecutive elements of the last dimension, 2 are not zero |
//!
//! Rows and columns are those of the matrix as it stands in the text; leading dimensions count as rows. In a sparse tensor
//! an element that the pattern keeps is never zero, so the density is exact.
//!
//! Random numbers are SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) from
//! state `seed`; element `i` takes draw `i`. The positions of zeros come from a second stream, from state `seed ^ PATTERN`,
//! by selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S). The same literal gives the same bits on every machine.

use std::fmt;

use half::{bf16, f16};
use lancet_ops::{DType, Data, Element, Tensor};

/// A description of a tensor's elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Generator {
    Zeros,
    Ones,
    Full(f64),
    Iota,
    Eye,
    Random(Random),
}

/// A description of random elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    pub seed: u64,
    /// Least value, and the value that all are below; `None` for the default of the element type.
    pub range: Option<(f64, f64)>,
    pub pattern: Pattern,
}

/// Where a random tensor is zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Nowhere, but for zeros drawn by chance.
    Dense,
    /// In a share `sparsity` of the blocks of `r` rows by `c` columns.
    Blocks { sparsity: f64, r: usize, c: usize },
    /// All but `n` of `m` consecutive elements of the last dimension.
    NOfM { n: usize, m: usize },
}

/// Why a description does not fit an element type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerateError {
    #[error("{value} is not a value of {dtype}")]
    Value { value: String, dtype: DType },
    #[error("the range {a}..{b} is empty or beyond {dtype}")]
    Range { a: String, b: String, dtype: DType },
    #[error("the sparsity {0} is not between 0 and 1")]
    Sparsity(String),
    #[error("a block of {0}x{1} is empty")]
    Block(usize, usize),
    #[error("{0}:{1} is not a pattern: 0 <= n <= m and 1 <= m are needed")]
    NOfM(usize, usize),
}

/// Separates the stream of zero positions from the stream of values.
const PATTERN: u64 = 0x7061_7474_6572_6e73;

/// SplitMix64.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform over `0 <= x < n`, up to a bias of n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform over `0 <= x < 1`, a multiple of 2^-53.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl Generator {
    /// The tensor of this description.
    ///
    /// # Errors
    /// [`GenerateError`] if the description does not fit the element type.
    ///
    /// # Panics
    /// If the number of elements overflows; the parser has checked it.
    pub fn tensor(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, GenerateError> {
        let data = match dtype {
            DType::F32 => self.floats(dtype, shape, |x| x as f32),
            DType::F64 => self.floats(dtype, shape, |x| x),
            DType::F16 => self.floats(dtype, shape, f16::from_f64),
            DType::BF16 => self.floats(dtype, shape, bf16::from_f64),
            DType::I8 => self.integers(dtype, shape, |x| x as i8),
            DType::I16 => self.integers(dtype, shape, |x| x as i16),
            DType::I32 => self.integers(dtype, shape, |x| x as i32),
            DType::I64 => self.integers(dtype, shape, |x| x as i64),
            DType::U8 => self.integers(dtype, shape, |x| x as u8),
            DType::U16 => self.integers(dtype, shape, |x| x as u16),
            DType::U32 => self.integers(dtype, shape, |x| x as u32),
            DType::U64 => self.integers(dtype, shape, |x| x as u64),
            DType::Bool => self.integers(dtype, shape, |x| x & 1 != 0),
        }?;
        Ok(Tensor::try_new(shape.to_vec(), data).expect("one element was made per index"))
    }

    fn floats<T: Element>(
        &self,
        dtype: DType,
        shape: &[usize],
        convert: impl Fn(f64) -> T,
    ) -> Result<Data, GenerateError> {
        let n: usize = shape.iter().product();
        let elements = match self {
            Generator::Zeros => vec![convert(0.0); n],
            Generator::Ones => vec![convert(1.0); n],
            Generator::Full(v) => vec![convert(*v); n],
            Generator::Iota => (0..n).map(|i| convert(i as f64)).collect(),
            Generator::Eye => eye(shape, convert(0.0), convert(1.0)),
            Generator::Random(random) => {
                let (a, b) = random.range.unwrap_or((-1.0, 1.0));
                if !(a < b && (b - a).is_finite()) {
                    return Err(range_error((a, b), dtype));
                }
                let mut stream = SplitMix64(random.seed);
                random.masked(shape, convert(0.0), || convert(a + (b - a) * stream.unit()))?
            }
        };
        Ok(T::into_data(elements))
    }

    fn integers<T: Element>(
        &self,
        dtype: DType,
        shape: &[usize],
        convert: impl Fn(i128) -> T,
    ) -> Result<Data, GenerateError> {
        let n: usize = shape.iter().product();
        let (min, max) = bounds(dtype);
        let elements = match self {
            Generator::Zeros => vec![convert(0); n],
            Generator::Ones => vec![convert(1); n],
            Generator::Full(v) => {
                if v.fract() != 0.0 || !(min as f64 <= *v && *v <= max as f64) {
                    let value = v.to_string();
                    return Err(GenerateError::Value { value, dtype });
                }
                vec![convert((*v as i128).min(max)); n]
            }
            Generator::Iota => (0..n).map(|i| convert(i as i128)).collect(),
            Generator::Eye => eye(shape, convert(0), convert(1)),
            Generator::Random(random) => {
                let range = random.range.unwrap_or(match dtype {
                    DType::I8 => (-127.0, 128.0),
                    DType::U8 => (0.0, 256.0),
                    DType::Bool => (0.0, 2.0),
                    _ if min < 0 => (-100.0, 100.0),
                    _ => (0.0, 100.0),
                });
                let (a, b) = (range.0.ceil() as i128, range.1.ceil() as i128);
                let in_type = min <= a && b <= max + 1;
                // A type of 64 bits has one value more than `u64` counts.
                let Some(count) = b.checked_sub(a).and_then(|c| u64::try_from(c).ok()) else {
                    return Err(range_error(range, dtype));
                };
                if !in_type || count == 0 {
                    return Err(range_error(range, dtype));
                }
                let mut stream = SplitMix64(random.seed);
                let sparse = random.pattern != Pattern::Dense;
                let nonzero = if b > 1 { 1 } else { -1 };
                random.masked(shape, convert(0), || {
                    let x = a + i128::from(stream.below(count));
                    convert(if sparse && x == 0 { nonzero } else { x })
                })?
            }
        };
        Ok(T::into_data(elements))
    }
}

fn range_error((a, b): (f64, f64), dtype: DType) -> GenerateError {
    let (a, b) = (a.to_string(), b.to_string());
    GenerateError::Range { a, b, dtype }
}

/// Least and greatest value of an integer type.
pub(crate) fn bounds(dtype: DType) -> (i128, i128) {
    match dtype {
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I64 => (i64::MIN.into(), i64::MAX.into()),
        DType::U8 => (0, u8::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::U64 => (0, u64::MAX.into()),
        DType::Bool | DType::F32 | DType::F64 | DType::F16 | DType::BF16 => (0, 1),
    }
}

fn eye<T: Copy>(shape: &[usize], zero: T, one: T) -> Vec<T> {
    let n = shape.iter().product();
    let (rows, columns) = match shape {
        [.., r, c] => (*r, *c),
        [c] => (1, *c),
        [] => (1, 1),
    };
    (0..n)
        .map(|i| {
            let at = (i / columns % rows, i % columns);
            if at.0 == at.1 { one } else { zero }
        })
        .collect()
}

impl Random {
    /// Draws every element, and puts `zero` where the pattern says so.
    fn masked<T: Copy>(
        &self,
        shape: &[usize],
        zero: T,
        mut draw: impl FnMut() -> T,
    ) -> Result<Vec<T>, GenerateError> {
        let n: usize = shape.iter().product();
        let mut out: Vec<T> = (0..n).map(|_| draw()).collect();
        let columns = shape.last().copied().unwrap_or(1);
        if n == 0 {
            return Ok(out);
        }
        let mut stream = SplitMix64(self.seed ^ PATTERN);
        match self.pattern {
            Pattern::Dense => {}
            Pattern::Blocks { sparsity, r, c } => {
                if !(0.0..=1.0).contains(&sparsity) {
                    return Err(GenerateError::Sparsity(sparsity.to_string()));
                }
                if r == 0 || c == 0 {
                    return Err(GenerateError::Block(r, c));
                }
                let rows = n / columns;
                let (n_down, n_across) = (rows.div_ceil(r), columns.div_ceil(c));
                let n_blocks = n_down * n_across;
                let mut zeros = Selection::new((n_blocks as f64 * sparsity).round(), n_blocks);
                for block in 0..n_blocks {
                    if !zeros.next(&mut stream) {
                        continue;
                    }
                    let (top, left) = (block / n_across * r, block % n_across * c);
                    for row in top..top.saturating_add(r).min(rows) {
                        let right = left.saturating_add(c).min(columns);
                        out[row * columns + left..row * columns + right].fill(zero);
                    }
                }
            }
            Pattern::NOfM { n, m } => {
                if m == 0 || n > m {
                    return Err(GenerateError::NOfM(n, m));
                }
                for group in out.chunks_mut(columns).flat_map(|row| row.chunks_mut(m)) {
                    let mut zeros =
                        Selection::new(group.len().saturating_sub(n) as f64, group.len());
                    for x in group {
                        if zeros.next(&mut stream) {
                            *x = zero;
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Chooses exactly `chosen` of `left` positions, one position at a time.
struct Selection {
    chosen: u64,
    left: u64,
}

impl Selection {
    fn new(chosen: f64, of: usize) -> Selection {
        let left = of as u64;
        Selection {
            chosen: (chosen as u64).min(left),
            left,
        }
    }

    fn next(&mut self, stream: &mut SplitMix64) -> bool {
        let take = stream.below(self.left) < self.chosen;
        self.left -= 1;
        self.chosen -= u64::from(take);
        take
    }
}

/// Prints what the parser reads, without what is default.
impl fmt::Display for Generator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Generator::Zeros => f.write_str("zeros"),
            Generator::Ones => f.write_str("ones"),
            Generator::Full(v) if v.is_nan() => f.write_str("full(nan)"),
            Generator::Full(v) => write!(f, "full({v})"),
            Generator::Iota => f.write_str("iota"),
            Generator::Eye => f.write_str("eye"),
            Generator::Random(r) => {
                write!(f, "random(seed = {}", r.seed)?;
                if let Some((a, b)) = r.range {
                    write!(f, ", range = {a}..{b}")?;
                }
                match r.pattern {
                    Pattern::Dense => {}
                    Pattern::Blocks { sparsity, r, c } => {
                        write!(f, ", sparsity = {sparsity}")?;
                        if (r, c) != (1, 1) {
                            write!(f, ", block = {r}x{c}")?;
                        }
                    }
                    Pattern::NOfM { n, m } => write!(f, ", nm = {n}:{m}")?,
                }
                f.write_str(")")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, range: Option<(f64, f64)>, pattern: Pattern) -> Generator {
        Generator::Random(Random {
            seed,
            range,
            pattern,
        })
    }

    #[test]
    fn the_stream_is_splitmix64() {
        // The first outputs from state 1234567, as published with the reference implementation.
        let mut stream = SplitMix64(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| stream.next()).collect();
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn block_sparsity_is_exact() {
        let pattern = Pattern::Blocks {
            sparsity: 0.75,
            r: 4,
            c: 1,
        };
        let t = random(1, None, pattern)
            .tensor(DType::F32, &[16, 8])
            .expect("valid");
        let x = t.as_slice::<f32>().expect("f32");
        let zero_blocks = (0..32)
            .filter(|b| (0..4).all(|i| x[(b / 8 * 4 + i) * 8 + b % 8] == 0.0))
            .count();
        assert_eq!(zero_blocks, 24);
        assert_eq!(x.iter().filter(|v| **v == 0.0).count(), 96);
    }

    #[test]
    fn two_of_four_is_exact_even_for_integers() {
        let t = random(3, Some((-2.0, 2.0)), Pattern::NOfM { n: 2, m: 4 })
            .tensor(DType::I8, &[5, 8])
            .expect("valid");
        for group in t.as_slice::<i8>().expect("i8").chunks(4) {
            assert_eq!(group.iter().filter(|v| **v == 0).count(), 2);
        }
    }

    #[test]
    fn ranges_are_half_open() {
        let t = random(5, Some((0.0, 3.0)), Pattern::Dense)
            .tensor(DType::U8, &[200])
            .expect("valid");
        let x = t.as_slice::<u8>().expect("u8");
        assert!((0..3).all(|v| x.contains(&v)) && x.iter().all(|v| *v < 3));
        let empty = random(5, Some((1.0, 1.0)), Pattern::Dense).tensor(DType::F32, &[2]);
        assert!(empty.is_err());
        let outside = random(5, Some((0.0, 257.0)), Pattern::Dense).tensor(DType::U8, &[2]);
        assert!(outside.is_err());
    }
}
