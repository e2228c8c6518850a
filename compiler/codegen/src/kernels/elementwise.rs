//! A function of each element over rows of one panel, written as a body of several lines.
//!
//! Arguments: `[0]` rows; `[1]` y, which may be an operand; `[2 + i]` operand i. An operand is a panel, one number for each
//! row, one row for all, or one number ([`Reach`]). Results of lines stay in registers from where they are computed to
//! where they are last used. Every value is f32; what is true is 1 and what is false 0.
//!
//! Functions round as IEEE 754 asks, but for those in [`math`](super::math).

use lancet_artifact::{Activation, Reach};

use super::{Tile, math};
use crate::kir::{Binary, Builder, Compare, Program, Scalar, Vector, at};

/// Registers that results may hold at once; the functions themselves need some beside them.
const MAX_LIVE: usize = 7;

/// Operands of the longest argument list.
const MAX_OPERANDS: usize = 16;

/// A line of a body.
struct Line<'a> {
    function: &'a str,
    arguments: Vec<Argument>,
}

#[derive(Clone, Copy, PartialEq)]
enum Argument {
    Operand(usize),
    Result(usize),
    Number(f32),
}

/// Writes the kernel.
///
/// # Errors
/// Why there is none for this body.
pub(super) fn program(
    name: String,
    body: &str,
    reach: &[Reach],
    tile: &Tile,
) -> Result<Program, &'static str> {
    if MAX_OPERANDS < reach.len() {
        return Err("has too many operands");
    }
    let lines = parse(body, reach.len())?;
    // The line after which each result is in no register.
    let mut last_use = vec![usize::MAX; lines.len()];
    for (i, line) in lines.iter().enumerate() {
        for argument in &line.arguments {
            if let Argument::Result(r) = argument {
                last_use[*r] = i;
            }
        }
    }
    let mut b = Builder::new(name, tile.vl);
    let (rows, y) = (b.arg(0), b.arg(1));
    let operands: Vec<Scalar> = (0..reach.len()).map(|i| b.arg(2 + i)).collect();
    let stride = tile.row_bytes();
    let mut error = None;
    b.repeat(rows, |b| {
        for v in 0..tile.lanes / tile.vl {
            let offset = v as i32 * b.vector_bytes();
            match vector(b, &lines, &last_use, (&operands, reach), offset) {
                Ok(result) => {
                    b.store(at(y, offset), result);
                    b.free_vector(result);
                }
                Err(e) => error = Some(e),
            }
        }
        b.add_imm(y, stride);
        for (&operand, reach) in operands.iter().zip(reach) {
            match reach {
                Reach::Panel => b.add_imm(operand, stride),
                Reach::Rows => b.add_imm(operand, 4),
                Reach::Lanes | Reach::One => {}
            }
        }
    });
    error.map_or_else(|| Ok(b.finish()), Err)
}

fn parse(body: &str, n_operands: usize) -> Result<Vec<Line<'_>>, &'static str> {
    const MALFORMED: &str = "has a malformed body";
    let mut lines: Vec<Line<'_>> = Vec::new();
    for line in body.split(';') {
        let mut words = line.split_whitespace();
        let function = words.next().ok_or(MALFORMED)?;
        let mut arguments = Vec::new();
        for word in words {
            let index = |most: usize| {
                let index = word[1..].parse().ok().filter(|&i: &usize| i < most);
                index.ok_or(MALFORMED)
            };
            arguments.push(match word.as_bytes() {
                [b'x', ..] => Argument::Operand(index(n_operands)?),
                [b'v', ..] => Argument::Result(index(lines.len())?),
                _ => Argument::Number(word.parse::<f64>().map_err(|_| MALFORMED)? as f32),
            });
        }
        lines.push(Line {
            function,
            arguments,
        });
    }
    Ok(lines)
}

/// The result of the body for one vector, in a register that the caller frees.
fn vector(
    b: &mut Builder,
    lines: &[Line<'_>],
    last_use: &[usize],
    (operands, reach): (&[Scalar], &[Reach]),
    offset: i32,
) -> Result<Vector, &'static str> {
    let mut results: Vec<Vector> = Vec::new();
    let mut live = 0;
    for (i, line) in lines.iter().enumerate() {
        // A private copy of each argument: functions work in place.
        let copies: Vec<Vector> = (line.arguments.iter())
            .map(|argument| {
                let copy = b.vector();
                match *argument {
                    Argument::Number(value) => b.constant(copy, value),
                    Argument::Result(r) => b.copy(copy, results[r]),
                    Argument::Operand(x) => match reach[x] {
                        Reach::Panel | Reach::Lanes => b.load(copy, at(operands[x], offset)),
                        Reach::Rows | Reach::One => b.broadcast(copy, at(operands[x], 0)),
                    },
                }
                copy
            })
            .collect();
        let mut ended: Vec<usize> = (line.arguments.iter())
            .filter_map(|a| match *a {
                Argument::Result(r) if last_use[r] == i => Some(r),
                _ => None,
            })
            .collect();
        ended.sort_unstable();
        ended.dedup();
        live -= ended.len();
        for r in ended {
            b.free_vector(results[r]);
        }
        apply(b, line, &copies)?;
        let (&result, rest) = copies
            .split_first()
            .ok_or("applies a function to nothing")?;
        b.free_vectors(rest);
        results.push(result);
        if last_use[i] == usize::MAX && i + 1 != lines.len() {
            return Err("computes what it does not use");
        }
        live += 1;
        if MAX_LIVE < live {
            return Err("holds too many results at once");
        }
    }
    results.pop().ok_or("has no lines")
}

/// `args[0] = function(args)`; the others may change.
fn apply(b: &mut Builder, line: &Line<'_>, args: &[Vector]) -> Result<(), &'static str> {
    match *args {
        [x] => unary(b, line.function, x),
        [x, z] => binary(b, line, x, z),
        [c, x, z] if line.function == "where" => {
            let (zero, result) = (b.vector(), b.vector());
            b.zero(zero);
            b.select(result, (Compare::Ne, c, zero), x, z);
            b.copy(c, result);
            b.free_vectors(&[zero, result]);
            Ok(())
        }
        _ => Err("has a function of too many arguments"),
    }
}

fn unary(b: &mut Builder, function: &str, x: Vector) -> Result<(), &'static str> {
    let activation = match function {
        "relu" => Some(Activation::Relu),
        "gelu" => Some(Activation::Gelu),
        "gelu_tanh" => Some(Activation::GeluTanh),
        "tanh" => Some(Activation::Tanh),
        "sigmoid" => Some(Activation::Sigmoid),
        "silu" => Some(Activation::Silu),
        "quick_gelu" => Some(Activation::QuickGelu),
        _ => None,
    };
    if let Some(kind) = activation {
        math::activation(b, kind, x);
        return Ok(());
    }
    let t = b.vector();
    match function {
        // Booleans are numbers already.
        "f32" => {}
        "abs" => {
            b.constant_bits(t, 0x7fff_ffff);
            b.binary(Binary::And, x, x, t);
        }
        "neg" => {
            b.constant_bits(t, 0x8000_0000);
            b.binary(Binary::Xor, x, x, t);
        }
        "sqrt" => b.unary(crate::kir::Unary::Sqrt, x, x),
        "reciprocal" => {
            b.constant(t, 1.0);
            b.div(x, t, x);
        }
        "not" => {
            b.constant(t, 1.0);
            b.sub(x, t, x);
        }
        "exp" => math::exp_full(b, x),
        "erf" => math::erf(b, x),
        "round" => math::round(b, x),
        "floor" | "ceil" => {
            let (step, rounded) = (b.vector(), b.vector());
            b.copy(rounded, x);
            math::round(b, rounded);
            b.constant(t, 1.0);
            let past = if function == "floor" {
                b.sub(step, rounded, t);
                (Compare::Lt, x, rounded)
            } else {
                b.add(step, rounded, t);
                (Compare::Lt, rounded, x)
            };
            b.select(t, past, step, rounded);
            b.copy(x, t);
            b.free_vectors(&[step, rounded]);
        }
        "sign" => {
            let (zero, one, other) = (b.vector(), b.vector(), b.vector());
            b.zero(zero);
            b.constant(one, 1.0);
            b.select(other, (Compare::Lt, zero, x), one, x);
            b.constant(one, -1.0);
            b.select(t, (Compare::Lt, x, zero), one, other);
            b.copy(x, t);
            b.free_vectors(&[zero, one, other]);
        }
        "is_nan" => {
            let (zero, one) = (b.vector(), b.vector());
            b.zero(zero);
            b.constant(one, 1.0);
            b.select(t, (Compare::Unordered, x, x), one, zero);
            b.copy(x, t);
            b.free_vectors(&[zero, one]);
        }
        _ => return Err("has a function without a vector form"),
    }
    b.free_vector(t);
    Ok(())
}

fn binary(b: &mut Builder, line: &Line<'_>, x: Vector, z: Vector) -> Result<(), &'static str> {
    let comparison = match line.function {
        "equal" => Some((Compare::Eq, x, z)),
        "less" => Some((Compare::Lt, x, z)),
        "less_or_equal" => Some((Compare::Le, x, z)),
        "greater" => Some((Compare::Lt, z, x)),
        "greater_or_equal" => Some((Compare::Le, z, x)),
        "xor" => Some((Compare::Ne, x, z)),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [zero, one, t] = [(); 3].map(|()| b.vector());
        b.zero(zero);
        b.constant(one, 1.0);
        b.select(t, comparison, one, zero);
        b.copy(x, t);
        b.free_vectors(&[zero, one, t]);
        return Ok(());
    }
    match line.function {
        "add" => b.add(x, x, z),
        "sub" => b.sub(x, x, z),
        "mul" | "and" => b.mul(x, x, z),
        "div" => b.div(x, x, z),
        "or" => b.max(x, x, z),
        "at_least" => b.max(x, x, z),
        "at_most" => b.min(x, x, z),
        "max" | "min" => {
            // These operations give their second operand if one is not a number; the result must be what is none.
            let op = if line.function == "max" {
                Binary::Max
            } else {
                Binary::Min
            };
            let is_number =
                |i: usize| matches!(line.arguments[i], Argument::Number(v) if !v.is_nan());
            if is_number(0) {
                b.binary(op, x, x, z);
            } else if is_number(1) {
                b.binary(op, x, z, x);
            } else {
                let (t, result) = (b.vector(), b.vector());
                b.binary(op, t, x, z);
                b.select(result, (Compare::Unordered, x, x), x, t);
                b.copy(x, result);
                b.free_vectors(&[t, result]);
            }
        }
        _ => return Err("has a function without a vector form"),
    }
    Ok(())
}
