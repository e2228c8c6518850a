//! Matrix products: one blocked kernel for every element type, and the operators that are products with a tail.
//!
//! `f32` products are summed in single precision over [`KC`] terms and these partial sums in double precision, so that
//! the error does not grow with the inner size. Sums of at most [`KC`] products of 9-bit integers are exact in `f32`,
//! hence the products of quantized matrices use the same kernel.

use crate::call::{Call, OpResult};
use crate::cast::to_numbers;
use crate::layout::{
    broadcast_shapes, broadcast_strides, expand, expect_broadcasts_to, for_each_index, product,
};
use crate::number::Number;
use crate::{DType, OpError, TensorView};

/// Rows and columns of the register tile.
const MR: usize = 4;
const NR: usize = 8;
/// Terms that are summed in the element type.
const KC: usize = 64;

/// An element type of matrix products and the type in which long sums are kept.
pub(crate) trait Factor: Number {
    type Sum: Copy + Default;
    fn accumulate(sum: Self::Sum, part: Self) -> Self::Sum;
    fn round(sum: Self::Sum) -> Self;
}

macro_rules! factor {
    ($($t:ty: $sum:ty, $acc:expr, $round:expr;)*) => {$(
        impl Factor for $t {
            type Sum = $sum;
            fn accumulate(sum: $sum, part: $t) -> $sum { $acc(sum, part) }
            fn round(sum: $sum) -> $t { $round(sum) }
        }
    )*};
}

factor! {
    f32: f64, |s, p| s + f64::from(p), |s| s as f32;
    f64: f64, |s, p| s + p, |s| s;
    i32: i32, i32::wrapping_add, |s| s;
    i64: i64, i64::wrapping_add, |s| s;
    u32: u32, u32::wrapping_add, |s| s;
    u64: u64, u64::wrapping_add, |s| s;
}

/// A matrix in memory: elements, the step between rows and the step between columns.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row_step: usize,
    pub(crate) column_step: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A row-major matrix with `columns` columns.
    pub(crate) fn row_major(data: &'a [T], columns: usize) -> Matrix<'a, T> {
        Matrix {
            data,
            row_step: columns,
            column_step: 1,
        }
    }

    /// The transpose of a row-major matrix with `columns` columns.
    pub(crate) fn transposed(data: &'a [T], columns: usize) -> Matrix<'a, T> {
        Matrix {
            data,
            row_step: 1,
            column_step: columns,
        }
    }
}

/// Multiplies `a[m, k]` by `b[k, n]` and appends the product, row-major and not yet rounded, to `out`.
pub(crate) fn multiply_unrounded<T: Factor>(
    [m, n, k]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    out: &mut Vec<T::Sum>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let first = out.len();
    out.resize(first + m * n, T::Sum::default());
    let sums = &mut out[first..];
    let mut left = Vec::new();
    let mut right = Vec::new();
    for start in (0..k).step_by(KC) {
        let depth = KC.min(k - start);
        pack::<T, NR>(
            b,
            n,
            start,
            depth,
            |b, p, j| b.data[p * b.row_step + j * b.column_step],
            &mut right,
        );
        for row in (0..m).step_by(MR) {
            let height = MR.min(m - row);
            pack_rows::<T>(a, row, height, start, depth, &mut left);
            for (tile, panel) in right.chunks_exact(NR * depth).enumerate() {
                let parts = tile_product(&left, panel);
                let column = tile * NR;
                let width = NR.min(n - column);
                for (i, part) in parts.iter().enumerate().take(height) {
                    let at = (row + i) * n + column;
                    for (s, &p) in sums[at..at + width].iter_mut().zip(part) {
                        *s = T::accumulate(*s, p);
                    }
                }
            }
        }
    }
}

/// Copies columns of `b` into panels of `W` columns, padded with zeros.
fn pack<T: Factor, const W: usize>(
    b: Matrix<'_, T>,
    n: usize,
    start: usize,
    depth: usize,
    get: impl Fn(Matrix<'_, T>, usize, usize) -> T,
    panels: &mut Vec<T>,
) {
    panels.clear();
    for column in (0..n).step_by(W) {
        let width = W.min(n - column);
        for p in start..start + depth {
            panels.extend((column..column + width).map(|j| get(b, p, j)));
            panels.extend(std::iter::repeat_n(T::ZERO, W - width));
        }
    }
}

/// Copies rows of `a` into a panel of [`MR`] rows, padded with zeros.
fn pack_rows<T: Factor>(
    a: Matrix<'_, T>,
    row: usize,
    height: usize,
    start: usize,
    depth: usize,
    panel: &mut Vec<T>,
) {
    panel.clear();
    for p in start..start + depth {
        panel.extend((row..row + height).map(|i| a.data[i * a.row_step + p * a.column_step]));
        panel.extend(std::iter::repeat_n(T::ZERO, MR - height));
    }
}

/// The product of a packed panel of rows and one of columns.
fn tile_product<T: Factor>(left: &[T], right: &[T]) -> [[T; NR]; MR] {
    let mut sums = [[T::ZERO; NR]; MR];
    for (a, b) in left.chunks_exact(MR).zip(right.chunks_exact(NR)) {
        let a: &[T; MR] = a.try_into().expect("a chunk of MR");
        let b: &[T; NR] = b.try_into().expect("a chunk of NR");
        for i in 0..MR {
            for j in 0..NR {
                sums[i][j] = sums[i][j].add(a[i].mul(b[j]));
            }
        }
    }
    sums
}

/// Multiplies `a[m, k]` by `b[k, n]`, row-major.
pub(crate) fn multiply<T: Factor>(sizes: [usize; 3], a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let mut sums = Vec::new();
    multiply_unrounded(sizes, a, b, &mut sums);
    sums.into_iter().map(T::round).collect()
}

/// How two tensors multiply by NumPy's rule: batches of matrices that broadcast, vectors as a row or a column.
pub(crate) struct Batches {
    /// Rows, columns and inner size.
    pub(crate) sizes: [usize; 3],
    batch: Vec<usize>,
    a_batch: Vec<usize>,
    b_batch: Vec<usize>,
    /// The result's shape.
    pub(crate) shape: Vec<usize>,
}

impl Batches {
    /// Shapes of `MatMul`'s operands.
    pub(crate) fn new(call: &Call<'_>, a: &[usize], b: &[usize]) -> Result<Batches, OpError> {
        let mismatch = || call.shape_error(format!("cannot multiply {a:?} by {b:?}"));
        let (a_batch, m, k) = match *a {
            [] => return Err(mismatch()),
            [k] => (&[][..], None, k),
            [ref batch @ .., m, k] => (batch, Some(m), k),
        };
        let (b_batch, k_of_b, n) = match *b {
            [] => return Err(mismatch()),
            [k] => (&[][..], k, None),
            [ref batch @ .., k, n] => (batch, k, Some(n)),
        };
        if k != k_of_b {
            return Err(mismatch());
        }
        let batch = broadcast_shapes(call, &[a_batch, b_batch])?;
        let shape = batch.iter().copied().chain(m).chain(n).collect();
        Ok(Batches {
            sizes: [m.unwrap_or(1), n.unwrap_or(1), k],
            a_batch: a_batch.to_vec(),
            b_batch: b_batch.to_vec(),
            batch,
            shape,
        })
    }

    /// Calls `f` with the place of each pair of matrices, counted in matrices.
    fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        let a = broadcast_strides(&self.a_batch, &self.batch);
        let b = broadcast_strides(&self.b_batch, &self.batch);
        for_each_index(&self.batch, [&a, &b], [0, 0], |[i, j]| f(i, j));
    }

    /// Multiplies every pair. The caller has checked the size of the result.
    pub(crate) fn multiply<T: Factor>(&self, a: &[T], b: &[T]) -> Vec<T> {
        let [m, n, k] = self.sizes;
        let mut out = Vec::new();
        if product(&self.shape) == 0 {
            return out;
        }
        // One matrix on the right: the batches on the left are more rows of one product.
        if product(&self.b_batch) == 1 {
            let rows = product(&self.batch) * m;
            return multiply(
                [rows, n, k],
                Matrix::row_major(a, k),
                Matrix::row_major(b, n),
            );
        }
        let mut sums = Vec::new();
        self.for_each(|i, j| {
            sums.clear();
            let a = Matrix::row_major(&a[i * m * k..(i + 1) * m * k], k);
            let b = Matrix::row_major(&b[j * k * n..(j + 1) * k * n], n);
            multiply_unrounded(self.sizes, a, b, &mut sums);
            out.extend(sums.iter().map(|&s| T::round(s)));
        });
        out
    }
}

/// Multiplies tensors of one type by NumPy's rule; half precision is computed in `f32` and rounded once.
pub(crate) fn matmul_views(call: &Call<'_>, a: TensorView<'_>, b: TensorView<'_>) -> OpResult {
    fn apply<T: Factor>(call: &Call<'_>, a: TensorView<'_>, b: TensorView<'_>) -> OpResult {
        let batches = Batches::new(call, a.shape(), b.shape())?;
        call.size(&batches.shape, DType::F64)?;
        let data = batches.multiply::<T>(&to_numbers(&a.data()), &to_numbers(&b.data()));
        call.tensor(&batches.shape, data)
    }
    if a.dtype() != b.dtype() {
        return Err(call.dtype_error(1, b.dtype()));
    }
    match a.dtype() {
        DType::F32 => apply::<f32>(call, a, b),
        DType::F64 => apply::<f64>(call, a, b),
        DType::F16 | DType::BF16 => {
            let product = apply::<f32>(call, a, b)?;
            let data = crate::cast::convert(&product.view().data(), a.dtype());
            crate::cast::with_data(call, product.view(), data)
        }
        DType::I32 => apply::<i32>(call, a, b),
        DType::I64 => apply::<i64>(call, a, b),
        DType::U32 => apply::<u32>(call, a, b),
        DType::U64 => apply::<u64>(call, a, b),
        other => Err(call.dtype_error(0, other)),
    }
}

/// `MatMul`.
pub(crate) fn matmul(call: &Call<'_>) -> OpResult {
    matmul_views(call, call.operand(0)?, call.operand(1)?)
}

/// `Gemm`: `alpha · a' · b' + beta · c`. In double precision until it is rounded to the element type.
pub(crate) fn gemm(call: &Call<'_>) -> OpResult {
    let (alpha, beta) = (
        f64::from(call.float("alpha")),
        f64::from(call.float("beta")),
    );
    gemm_with(call, alpha, beta, |v| v)
}

/// `Gemm` with a function of real numbers applied to each element of the result.
pub(crate) fn gemm_with(
    call: &Call<'_>,
    alpha: f64,
    beta: f64,
    f: impl Fn(f64) -> f64,
) -> OpResult {
    fn apply<T: Factor>(
        call: &Call<'_>,
        dtype: DType,
        to_real: impl Fn(T::Sum) -> f64,
        tail: impl Fn(f64, f64) -> f64,
    ) -> OpResult {
        let (a, b) = (call.operand(0)?, call.operand(1)?);
        let (&[a0, a1], &[b0, b1]) = (a.shape(), b.shape()) else {
            return Err(call.shape_error(format!(
                "expected matrices, found {:?} and {:?}",
                a.shape(),
                b.shape()
            )));
        };
        let (x, y) = (to_numbers::<T>(&a.data()), to_numbers::<T>(&b.data()));
        let (m, k, x) = match call.flag("transA") {
            false => (a0, a1, Matrix::row_major(&x, a1)),
            true => (a1, a0, Matrix::transposed(&x, a1)),
        };
        let (k_of_b, n, y) = match call.flag("transB") {
            false => (b0, b1, Matrix::row_major(&y, b1)),
            true => (b1, b0, Matrix::transposed(&y, b1)),
        };
        if k != k_of_b {
            return Err(call.shape_error(format!("cannot multiply [{m}, {k}] by [{k_of_b}, {n}]")));
        }
        let shape = [m, n];
        call.size(&shape, DType::F64)?;
        let c = match call.optional(2) {
            Some(c) if c.dtype() != dtype => return Err(call.dtype_error(2, c.dtype())),
            Some(c) => {
                expect_broadcasts_to(call, c.shape(), &shape)?;
                expand(&c.to_f64_vec(), c.shape(), &shape)
            }
            None => vec![0.0; product(&shape)],
        };
        let mut sums = Vec::new();
        multiply_unrounded([m, n, k], x, y, &mut sums);
        let real: Vec<f64> = sums
            .iter()
            .zip(&c)
            .map(|(&s, &c)| tail(to_real(s), c))
            .collect();
        let data = crate::cast::from_f64(&real, dtype);
        crate::Tensor::try_new(shape.to_vec(), data)
            .ok_or_else(|| call.shape_error("sizes disagree"))
    }
    let (a, b) = (call.operand(0)?.dtype(), call.operand(1)?.dtype());
    if a != b {
        return Err(call.dtype_error(1, b));
    }
    let tail = |s: f64, c: f64| f(alpha * s + beta * c);
    match a {
        DType::F32 | DType::F16 | DType::BF16 => apply::<f32>(call, a, |s| s, tail),
        DType::F64 => apply::<f64>(call, a, |s| s, tail),
        DType::I32 => apply::<i32>(call, a, f64::from, tail),
        DType::I64 => apply::<i64>(call, a, |s| s as f64, tail),
        DType::U32 => apply::<u32>(call, a, f64::from, tail),
        DType::U64 => apply::<u64>(call, a, |s| s as f64, tail),
        other => Err(call.dtype_error(0, other)),
    }
}

/// Elements of operand `index`, 8-bit integers, less the zero point of operand `zero` if it is present.
///
/// The zero point is a scalar, one for each row of the operand's last two dimensions (`per_row`), or one for each column.
pub(crate) fn centered(
    call: &Call<'_>,
    index: usize,
    zero: usize,
    per_row: bool,
) -> Result<Vec<f32>, OpError> {
    let x = call.operand(index)?;
    if !crate::number::is_byte(x.dtype()) {
        return Err(call.dtype_error(index, x.dtype()));
    }
    let values = x.to_f32_vec();
    let Some(z) = call.optional(zero) else {
        return Ok(values);
    };
    call.expect_dtype(zero, x.dtype())?;
    let zeros = z.to_f32_vec();
    let mut shape = z.shape().to_vec();
    if per_row && z.rank() == 1 && 1 < z.len() {
        shape.push(1);
    }
    if z.len() == 1 {
        shape.clear();
    }
    expect_broadcasts_to(call, &shape, x.shape())?;
    Ok(crate::layout::zip_broadcast(
        (&values, x.shape()),
        (&zeros, &shape),
        x.shape(),
        |v, z| v - z,
    ))
}

/// The exact product of two matrices of integers less than 2⁹ in magnitude.
pub(crate) fn multiply_exact(batches: &Batches, a: &[f32], b: &[f32]) -> Vec<i32> {
    let to_i32 = |v: f64| v as i64 as i32;
    let [m, n, k] = batches.sizes;
    let mut out = Vec::new();
    if product(&batches.shape) == 0 {
        return out;
    }
    let mut sums = Vec::new();
    batches.for_each(|i, j| {
        sums.clear();
        let a = Matrix::row_major(&a[i * m * k..(i + 1) * m * k], k);
        let b = Matrix::row_major(&b[j * k * n..(j + 1) * k * n], n);
        multiply_unrounded(batches.sizes, a, b, &mut sums);
        out.extend(sums.iter().map(|&s| to_i32(s)));
    });
    out
}

/// `MatMulInteger`: the product of 8-bit matrices less their zero points, as `i32`.
pub(crate) fn matmul_integer(call: &Call<'_>) -> OpResult {
    let (a, b) = (call.operand(0)?, call.operand(1)?);
    let batches = Batches::new(call, a.shape(), b.shape())?;
    call.size(&batches.shape, DType::F64)?;
    let product = multiply_exact(
        &batches,
        &centered(call, 0, 2, true)?,
        &centered(call, 1, 3, false)?,
    );
    call.tensor(&batches.shape, product)
}
