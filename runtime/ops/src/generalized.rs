//! `GeneralizedAttention`: attention whose probabilities are any function of scores, of the greatest of a row and of the sum of
//! its weights. Softmax is the instance `exp(s - max) / sum`.

use crate::call::{Call, OpResults};
use crate::elementwise::{Argument, Body, compute, holds};
use crate::lancet::queries_keys_values;
use crate::layout::{broadcast_strides, expect_broadcasts_to};
use crate::matmul::{Matrix, multiply};
use crate::probabilities::Probabilities;
use crate::{DType, DataView, Element, Tensor, TensorView};

/// The attributes that hold the bodies of the stages, in order: what a score is, what it weighs, and the share of a weight.
pub const STAGES: [&str; 3] = ["score", "weight", "probability"];

/// The operand of a body that is the stage before it, element by element.
pub const STAGE_BEFORE: usize = 0;

/// The operand of a body that stands for a row: in `weight` the greatest score, in `probability` the sum of the weights.
pub const OF_ROW: usize = 1;

/// Queries whose probabilities are held at once.
const ROWS: usize = 64;

/// The bodies of the stages by their lines, beside other operands of these types; a stage without lines is not there.
///
/// # Errors
/// What is wrong with one.
pub fn stages(lines: [&[String]; 3], others: &[DType]) -> Result<[Option<Body>; 3], String> {
    if let Some(other) = others
        .iter()
        .find(|d| !matches!(d, DType::F32 | DType::Bool))
    {
        return Err(format!("an operand of type {other}"));
    }
    let dtypes: Vec<DType> = ([DType::F32; 2].iter().chain(others)).copied().collect();
    let mut found = [None, None, None];
    for (i, lines) in lines.into_iter().enumerate() {
        if lines.is_empty() {
            continue;
        }
        let error = |m: String| format!("{}: {m}", STAGES[i]);
        let body = Body::parse(lines).map_err(error)?;
        let types = body.types(&dtypes).map_err(error)?;
        let held = types.iter().all(|&(of, to)| holds(of) && holds(to));
        if !held || types.last().map(|t| t.1) != Some(DType::F32) {
            return Err(error(
                "gives no f32, or takes what no step holds".to_owned(),
            ));
        }
        if i == 0 && reads(&body, OF_ROW) {
            return Err(error("there is no row of scores yet".to_owned()));
        }
        found[i] = Some(body);
    }
    Ok(found)
}

/// Whether a body reads this operand.
pub fn reads(body: &Body, operand: usize) -> bool {
    let mut arguments = body.instructions().iter().flat_map(|i| &i.arguments);
    arguments.any(|a| *a == Argument::Operand(operand))
}

/// `GeneralizedAttention`: `p · v` in each head, where `p` is made of products `q · k` in three stages.
///
/// * `q`: `f32[b, sq, hidden]`, `k`: `f32[b, sk, hidden]`, `v`: `f32[b, sk, hidden_v]`; heads are contiguous slices of the last
///   dimension.
/// * Others: `f32` or `bool`, each broadcasts to `[b, num_heads, sq, sk]`.
/// * A stage is a body, as that of `Elementwise`; without it, it changes nothing. `x0` is the stage before, first the product. `x1` is
///   in `weight` the greatest score of the query over keys, in `probability` the sum of its weights; `x2` is the first of the others.
///   `score` gives scores, `weight` weights, `probability` what values are multiplied with.
/// * Result 0: `f32[b, sq, hidden_v]`. Result 1, optional: as that of `ScaledDotProductAttention`.
///
/// Every stage is rounded to `f32`, as the operators of its body are. Memory beside the results is linear in `sq` and in `sk`.
pub(crate) fn generalized_attention(call: &Call<'_>) -> OpResults {
    let views = call.all_operands()?;
    let (data, [b, sq, sk, hidden, hidden_v], h) = queries_keys_values(call)?;
    let others = &views[3..];
    let shape = [b, h, sq, sk];
    for other in others {
        expect_broadcasts_to(call, other.shape(), &shape)?;
    }
    let dtypes: Vec<DType> = others.iter().map(TensorView::dtype).collect();
    let stages = stages(STAGES.map(|name| call.strs(name)), &dtypes)
        .map_err(|m| call.attribute_error("stages", m))?;
    let of_result = [b, sq, hidden_v];
    let mut out = vec![0.0f32; call.size(&of_result, DType::F32)?];
    call.size(&[ROWS.min(sq), sk], DType::F64)?;
    let mut shown = Probabilities::new(call, shape)?;
    let blocks = (0..b * h).flat_map(|head| (0..sq).step_by(ROWS).map(move |r| (head, r)));
    for (of_head, first) in blocks.filter(|_| sk != 0) {
        let (item, head) = (of_head / h, of_head % h);
        let rows = ROWS.min(sq - first);
        let (d, dv) = (hidden / h, hidden_v / h);
        // The features of a head, from a token on.
        let from = |i: usize, token: usize, width: usize, d: usize| {
            data[i].get(token * width + head * d..).unwrap_or(&[])
        };
        let query = Matrix::row_major(from(0, item * sq + first, hidden, d), hidden);
        let key = Matrix::transposed(from(1, item * sk, hidden, d), hidden);
        let mut x = Tensor::new([rows, sk], multiply([rows, sk, d], query, key));
        let parts: Vec<Part<'_>> = (others.iter())
            .map(|v| Part::new(v, &shape, [item, head, first, rows]))
            .collect();
        for (i, body) in stages.iter().enumerate() {
            let Some(body) = body else { continue };
            let row = Tensor::new([rows, 1], of_row(&x, i == 1));
            let operands = [x.view(), row.view()].into_iter();
            let operands: Vec<_> = operands.chain(parts.iter().map(Part::view)).collect();
            x = compute(call, body, &operands, &[rows, sk])?;
        }
        let p = x.as_slice::<f32>().unwrap_or(&[]);
        if let Some(shown) = &mut shown {
            for (row, p) in p.chunks_exact(sk).enumerate() {
                shown.add(of_head, first + row, p);
            }
        }
        let value = Matrix::row_major(from(2, item * sk, hidden_v, dv), hidden_v);
        let result = multiply([rows, dv, sk], Matrix::row_major(p, sk), value);
        for (row, values) in result.chunks_exact(dv.max(1)).enumerate() {
            let at = (item * sq + first + row) * hidden_v + head * dv;
            out[at..at + dv].copy_from_slice(values);
        }
    }
    let shown = shown.map(|s| s.finish(call)).transpose()?;
    let result = call.tensor(&of_result, out)?;
    Ok(std::iter::once(result).chain(shown).collect())
}

/// The greatest element of each row, or the sum.
fn of_row(x: &Tensor, greatest: bool) -> Vec<f32> {
    let columns = x.shape()[1];
    let rows = x.as_slice::<f32>().unwrap_or(&[]).chunks_exact(columns);
    rows.map(|row| {
        if greatest {
            let greater = |a: f32, b: f32| if a.is_nan() || b < a { a } else { b };
            row.iter().copied().fold(f32::NEG_INFINITY, greater)
        } else {
            row.iter().map(|&v| f64::from(v)).sum::<f64>() as f32
        }
    })
    .collect()
}

/// The part of an operand that belongs to some queries of a head.
struct Part<'a> {
    shape: [usize; 2],
    data: DataView<'a>,
}

impl<'a> Part<'a> {
    fn new(
        operand: &TensorView<'a>,
        of_scores: &[usize; 4],
        [item, head, first, rows]: [usize; 4],
    ) -> Part<'a> {
        let strides = broadcast_strides(operand.shape(), of_scores);
        let own = operand.shape().iter().rev();
        let mut last = own.copied().chain([1, 1]);
        let (columns, n_rows) = (last.next().unwrap_or(1), last.next().unwrap_or(1));
        let shape = [if n_rows == 1 { 1 } else { rows }, columns];
        let start = item * strides[0] + head * strides[1] + first * strides[2];
        let range = start..start + shape[0] * columns;
        let data = match operand.data() {
            DataView::Bool(x) => <bool as Element>::view(&x[range]),
            DataView::F32(x) => <f32 as Element>::view(&x[range]),
            other => unreachable!("{} was refused", other.dtype()),
        };
        Part { shape, data }
    }

    fn view(&self) -> TensorView<'_> {
        TensorView::new(&self.shape, self.data).expect("a part of rows")
    }
}
