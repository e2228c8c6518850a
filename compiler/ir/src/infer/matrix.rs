//! Matrix products.

use lancet_ops::DType;

use super::broadcast::{is_one, list};
use super::call::{Call, Class, One};
use super::elements::value;
use crate::{Dim, IrError, TensorType};

/// `MatMul`.
pub(super) fn matmul(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    let dtype = call.same_dtype([0, 1])?;
    let shape = product_shape(call, 0, 1)?;
    Ok(value(dtype, shape, None))
}

/// The shape of the matrix product of two operands, as NumPy's `matmul` has it.
pub(super) fn product_shape(call: &mut Call<'_>, a: usize, b: usize) -> Result<Vec<Dim>, IrError> {
    let (x, y) = (call.shape(a)?, call.shape(b)?);
    product_of(call, x, y, b)
}

/// The shape of the product of matrices of shapes `x` and `y`; `y` is named as operand `b` where they do not fit.
pub(super) fn product_of(
    call: &mut Call<'_>,
    x: &[Dim],
    y: &[Dim],
    b: usize,
) -> Result<Vec<Dim>, IrError> {
    let (Some((k, x_rest)), false) = (x.split_last(), y.is_empty()) else {
        return Err(
            call.error("expected operands of at least 1 dimension, found a scalar".to_owned())
        );
    };
    let k_at = y.len().saturating_sub(2);
    if y[k_at].equals(k) == Some(false) {
        let expected = match y {
            [_] => list(std::slice::from_ref(k)),
            [.., n] => format!("[{}{k}, {n}]", prefix(&y[..k_at])),
            [] => "[]".to_owned(),
        };
        let dtype = call.dtype(b)?;
        let found = TensorType::new(dtype, y.to_vec());
        return Err(IrError::Type {
            op: format!("{} operand {b}", call.op.schema().text),
            message: format!("expected {dtype}{expected}, found {found}"),
        });
    }
    let (m, x_batch) = match x_rest {
        [batch @ .., m] => (Some(m), batch),
        [] => (None, &[][..]),
    };
    let (n, y_batch) = match y {
        [batch @ .., _, n] => (Some(n), batch),
        _ => (None, &[][..]),
    };
    let mut shape = call.broadcast(&[x_batch, y_batch])?;
    shape.extend(m.into_iter().chain(n).cloned());
    Ok(shape)
}

fn prefix(dims: &[Dim]) -> String {
    dims.iter().map(|d| format!("{d}, ")).collect()
}

/// `Gemm` and `MsFusedGemm`.
pub(super) fn gemm(call: &Call<'_>) -> One {
    call.expect(0, Class::Number)?;
    let dtype = call.same_dtype([0, 1, 2])?;
    let ([m, k], [p, n]) = (call.dims::<2>(0)?, call.dims::<2>(1)?);
    let (m, k) = if call.flag("transA") { (k, m) } else { (m, k) };
    let (transposed, p, n) = match call.flag("transB") {
        true => (true, n, p),
        false => (false, p, n),
    };
    if k.equals(p) == Some(false) {
        let expected = if transposed { [n, k] } else { [k, n] };
        let expected = list(&expected.map(Clone::clone));
        return Err(call.operand_error(1, format!("{dtype}{expected}")));
    }
    let shape = vec![m.clone(), n.clone()];
    call.expect_broadcasts_to(2, &shape)?;
    Ok(value(dtype, shape, None))
}

/// `MsFusedMatMul`: the operands may be transposed, in the last two dimensions or first against batch dimensions.
pub(super) fn fused_matmul(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Float)?;
    let dtype = call.same_dtype([0, 1])?;
    let arranged = |index, trans: &str, trans_batch: &str| {
        let mut shape = call.shape(index)?.to_vec();
        let rank = shape.len();
        // A matrix of rank 1 is not transposed.
        if call.flag(trans_batch) && 2 < rank {
            shape[..rank - 1].rotate_left(1);
        }
        if call.flag(trans) && 2 <= rank {
            shape.swap(rank - 2, rank - 1);
        }
        Ok::<_, IrError>(shape)
    };
    let a = arranged(0, "transA", "transBatchA")?;
    let b = arranged(1, "transB", "transBatchB")?;
    let shape = product_of(call, &a, &b, 1)?;
    Ok(value(dtype, shape, None))
}

/// A dimension of an operand or the result of `Einsum`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    /// Dimension of the ellipsis, counted from its end.
    Ellipsis(usize),
    Letter(char),
}

/// Letters of one term of an equation, with the place of the ellipsis among them.
fn parse_term(term: &str) -> Option<(Vec<char>, Option<usize>)> {
    let (before, after) = match term.split_once("...") {
        Some((before, after)) => (before, Some(after)),
        None => (term, None),
    };
    let letters: Vec<char> = before.chars().chain(after.unwrap_or("").chars()).collect();
    let valid = letters.iter().all(char::is_ascii_alphabetic);
    valid.then(|| (letters, after.map(|_| before.len())))
}

fn labels(letters: &[char], ellipsis: Option<usize>, n_ellipsis: usize) -> Vec<Label> {
    let mut out: Vec<Label> = letters.iter().copied().map(Label::Letter).collect();
    if let Some(at) = ellipsis {
        out.splice(at..at, (0..n_ellipsis).rev().map(Label::Ellipsis));
    }
    out
}

/// `Einsum`, with ellipses and implicit results.
pub(super) fn einsum(call: &mut Call<'_>) -> One {
    let n = call.n_operands();
    call.expect(0, Class::Number)?;
    let dtype = call.same_dtype(0..n)?;
    let equation: String = call.str("equation").split_whitespace().collect();
    let invalid = |message: &str| call.attribute_error("equation", message.to_owned());
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != n {
        return Err(invalid(&format!(
            "names {} operands, found {n}",
            terms.len()
        )));
    }
    let malformed = || invalid("is malformed");
    let mut sizes: Vec<(Label, Vec<Dim>, usize)> = Vec::new();
    for (i, term) in terms.into_iter().enumerate() {
        let (letters, ellipsis) = parse_term(term).ok_or_else(malformed)?;
        let shape = call.shape(i)?;
        let n_ellipsis = match (shape.len().checked_sub(letters.len()), ellipsis) {
            (Some(0), None) => 0,
            (Some(n), Some(_)) => n,
            _ => {
                let expected = format!("{} dimensions for `{term}`", letters.len());
                return Err(call.operand_error(i, expected));
            }
        };
        for (label, d) in labels(&letters, ellipsis, n_ellipsis)
            .into_iter()
            .zip(shape)
        {
            match sizes.iter_mut().find(|(l, ..)| *l == label) {
                Some((_, dims, count)) => {
                    dims.push(d.clone());
                    *count += 1;
                }
                None => sizes.push((label, vec![d.clone()], 1)),
            }
        }
    }
    let n_ellipsis = sizes
        .iter()
        .filter(|(l, ..)| matches!(l, Label::Ellipsis(_)))
        .count();
    let result = match right {
        Some(right) => {
            let (letters, ellipsis) = parse_term(right).ok_or_else(malformed)?;
            labels(&letters, ellipsis, n_ellipsis)
        }
        None => {
            let mut once: Vec<char> = sizes
                .iter()
                .filter_map(|(l, _, count)| match l {
                    Label::Letter(c) if *count == 1 => Some(*c),
                    _ => None,
                })
                .collect();
            once.sort_unstable();
            labels(&once, Some(0), n_ellipsis)
        }
    };
    let mut agreed = Vec::with_capacity(sizes.len());
    for (label, dims, _) in &sizes {
        agreed.push((*label, einsum_size(call, *label, dims)?));
    }
    let mut shape = Vec::with_capacity(result.len());
    for (i, label) in result.iter().enumerate() {
        let found = agreed.iter().find(|(l, _)| l == label);
        match found.filter(|_| !result[..i].contains(label)) {
            Some((_, d)) => shape.push(d.clone()),
            None => {
                let message = "has a result label that no operand has, or twice".to_owned();
                return Err(call.attribute_error("equation", message));
            }
        }
    }
    Ok(value(dtype, shape, None))
}

/// The size of a label. Dimensions of one letter agree; those of the ellipsis broadcast.
fn einsum_size(call: &mut Call<'_>, label: Label, dims: &[Dim]) -> Result<Dim, IrError> {
    let shapes: Vec<&[Dim]> = dims.iter().map(std::slice::from_ref).collect();
    let symbolic = |d: &&Dim| !is_one(d);
    let letters = matches!(label, Label::Letter(_));
    match dims.iter().find(symbolic).filter(|_| letters) {
        Some(first) if dims.iter().all(|d| d.as_fixed().is_none() || is_one(d)) => {
            Ok(first.clone())
        }
        _ => Ok(call.broadcast(&shapes)?.swap_remove(0)),
    }
}

/// `MatMulInteger`.
pub(super) fn matmul_integer(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Byte)?;
    call.expect(1, Class::Byte)?;
    call.same_dtype([0, 2])?;
    call.same_dtype([1, 3])?;
    let shape = product_shape(call, 0, 1)?;
    Ok(value(DType::I32, shape, None))
}

/// `QLinearMatMul`: `a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point`.
pub(super) fn qlinear_matmul(call: &mut Call<'_>) -> One {
    for i in [0, 3, 7] {
        call.expect(i, Class::Byte)?;
    }
    call.same_dtype([0, 2])?;
    call.same_dtype([3, 5])?;
    for i in [1, 4, 6] {
        call.expect(i, Class::Float)?;
    }
    let shape = product_shape(call, 0, 3)?;
    Ok(value(call.dtype(7)?, shape, None))
}

/// `MsDynamicQuantizeMatMul`: `a, b, b_scale, b_zero_point, bias`.
pub(super) fn dynamic_quantize_matmul(call: &mut Call<'_>) -> One {
    call.expect_dtype(0, DType::F32)?;
    call.expect(1, Class::Byte)?;
    call.expect_dtype(2, DType::F32)?;
    call.same_dtype([1, 3])?;
    call.expect_dtype(4, DType::F32)?;
    let shape = product_shape(call, 0, 1)?;
    call.expect_broadcasts_to(4, &shape)?;
    Ok(value(DType::F32, shape, None))
}

/// `MsMatMulIntegerToFloat`: `a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias`.
pub(super) fn matmul_integer_to_float(call: &mut Call<'_>) -> One {
    call.expect(0, Class::Byte)?;
    call.expect(1, Class::Byte)?;
    call.same_dtype([0, 4])?;
    call.same_dtype([1, 5])?;
    call.expect(2, Class::Float)?;
    let dtype = call.same_dtype([2, 3, 6])?;
    let shape = product_shape(call, 0, 1)?;
    call.expect_broadcasts_to(6, &shape)?;
    Ok(value(dtype, shape, None))
}
