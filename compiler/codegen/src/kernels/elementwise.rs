//! A function of each element over rows of one panel, written as a body of several lines.
//!
//! Arguments: `[0]` rows; `[1]` y, which may be an operand of the same type; `[2 + i]` operand i. An operand is a panel, one
//! number for each row, one row for all, or one number ([`Reach`]). Results of lines stay in registers from where they are
//! computed to where they are last used. What is true is 1 and what is false 0.
//!
//! Lanes are f32 where every value is. Otherwise they are f64, and what is f32 is rounded to it behind each line: sums,
//! products, quotients and roots of f32 come out as if computed in f32, since f64 has more than twice its bits. Functions that
//! are computed in f64 make the lanes so.
//!
//! Functions round as IEEE 754 asks, but for those in [`math`](super::math) and [`math64`](super::math64).

use lancet_artifact::{Activation, Reach};

use super::{Tile, math, math64};
use crate::kir::{
    Binary, Builder, Compare, Float, Op, Operand, Program, Scalar, Unary, Vector, at,
};

/// Operands of the longest argument list.
const MAX_OPERANDS: usize = 16;

/// A line of a body.
#[derive(Clone)]
struct Line<'a> {
    function: &'a str,
    arguments: Vec<Argument>,
    /// What the arguments are that are no conditions.
    of: Float,
    /// What the result is.
    to: Float,
    /// The line after which the result is in no register.
    last_use: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Argument {
    Operand(usize),
    Result(usize),
    Number(f64),
}

/// Operations of the longest kernel whose rows are unrolled: more leave the cache of instructions.
const MAX_UNROLLED: usize = 1024;

/// A kernel that is being written.
#[derive(Clone)]
struct Kernel<'a> {
    lines: Vec<Line<'a>>,
    operands: &'a [(Reach, Float)],
    result: Float,
    addresses: Vec<Scalar>,
    /// What the lanes are.
    lanes: Float,
}

/// Writes the kernel of a body with these operands and this result.
///
/// # Errors
/// Why there is none.
pub(super) fn program(
    name: String,
    body: &str,
    (operands, result): (&[(Reach, Float)], Float),
    tile: &Tile,
) -> Result<Program, &'static str> {
    if MAX_OPERANDS < operands.len() {
        return Err("has too many operands");
    }
    let lines = parse(body, operands)?;
    let last = lines.last().ok_or("has no lines")?;
    if last.to != result {
        return Err("has another result");
    }
    let n = lines.len();
    if lines[..n - 1].iter().any(|l| l.last_use == usize::MAX) {
        return Err("computes what it does not use");
    }
    let is_wide = operands.iter().any(|o| o.1 == Float::F64)
        || lines.iter().any(|l| {
            let is_double = in_double(l.function).is_some() || l.function == "pow";
            is_double || l.of == Float::F64 || l.to == Float::F64
        });
    let kernel = Kernel {
        lines,
        operands,
        result,
        addresses: Vec::new(),
        lanes: if is_wide { Float::F64 } else { Float::F32 },
    };
    let (code, is_long) = kernel.clone().write(&name, tile, Row::Unrolled)?;
    if is_long {
        return Ok(kernel.write(&name, tile, Row::Looped)?.0);
    }
    Ok(code)
}

/// How the vectors of a row follow each other.
#[derive(Clone, Copy, PartialEq)]
enum Row {
    Unrolled,
    Looped,
}

fn parse<'a>(body: &'a str, operands: &[(Reach, Float)]) -> Result<Vec<Line<'a>>, &'static str> {
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
                [b'x', ..] => Argument::Operand(index(operands.len())?),
                [b'v', ..] => Argument::Result(index(lines.len())?),
                _ => Argument::Number(word.parse().map_err(|_| MALFORMED)?),
            });
        }
        let float = |argument: &Argument| match *argument {
            Argument::Operand(x) => Some(operands[x].1),
            Argument::Result(r) => Some(lines[r].to),
            Argument::Number(_) => None,
        };
        let values = if function == "where" { 1 } else { 0 };
        let mut floats = arguments.iter().skip(values).filter_map(float);
        let of = floats.next().unwrap_or(Float::F32);
        if floats.any(|f| f != of) {
            return Err("mixes types");
        }
        let number = lines.len();
        for argument in &arguments {
            if let Argument::Result(r) = *argument {
                lines[r].last_use = number;
            }
        }
        lines.push(Line {
            function,
            arguments,
            of,
            to: match function {
                "f32" => Float::F32,
                "f64" => Float::F64,
                _ if is_test(function) => Float::F32,
                _ => of,
            },
            last_use: usize::MAX,
        });
    }
    Ok(lines)
}

/// Whether the function gives booleans.
fn is_test(function: &str) -> bool {
    comparison(function).is_some() || matches!(function, "is_nan" | "not" | "and" | "or")
}

/// Whether the result has no more bits than the arguments, or is one of f32 lanes.
fn is_exact(function: &str) -> bool {
    is_test(function)
        || in_single(function).is_some()
        || matches!(
            function,
            "abs"
                | "neg"
                | "sign"
                | "relu"
                | "round"
                | "floor"
                | "ceil"
                | "max"
                | "min"
                | "at_least"
                | "at_most"
                | "where"
        )
}

impl Kernel<'_> {
    /// Writes the kernel, and says whether its rows are long.
    fn write(mut self, name: &str, tile: &Tile, row: Row) -> Result<(Program, bool), &'static str> {
        let mut b = Builder::new(name, tile.vl);
        let (rows, y) = (b.arg(0), b.arg(1));
        self.addresses = (0..self.operands.len()).map(|i| b.arg(2 + i)).collect();
        // Numbers of a vector.
        let n_lanes = tile.vl * 4 / self.lanes.size_bytes();
        let n_vectors = tile.lanes / n_lanes;
        let looped = (row == Row::Looped).then(|| b.scalar());
        let mut error = None;
        b.repeat(rows, |b| {
            if let Some(count) = looped {
                b.imm(count, n_vectors as i64);
                b.repeat(count, |b| {
                    error = self.store(b, y, 0).err();
                    self.advance(b, y, [n_lanes as i32, 0, n_lanes as i32]);
                });
            } else {
                for v in 0..n_vectors {
                    error = error.or(self.store(b, y, v * n_lanes).err());
                }
            }
            let done = if looped.is_some() { tile.lanes } else { 0 };
            self.advance(b, y, [(tile.panel - done) as i32, 1, -(done as i32)]);
        });
        let program = b.finish();
        let in_rows = |op: &Op| matches!(op, Op::Loop { body, .. } if MAX_UNROLLED < body.len());
        let is_long = program.ops.iter().any(in_rows);
        error.map_or(Ok((program, is_long)), Err)
    }

    /// Stores the result of the body for the vector of lanes from `first` on.
    fn store(&self, b: &mut Builder, y: Scalar, first: usize) -> Result<(), &'static str> {
        let value = self.vector(b, first)?;
        let to = at(y, (first * self.result.size_bytes()) as i32);
        if self.lanes == self.result {
            b.store(to, value);
        } else {
            b.unary(Unary::Narrow, value, value);
            b.store_half(to, value);
        }
        b.free_vector(value);
        Ok(())
    }

    /// Moves on by so many numbers of panels, of what there is one for each row, and of what is the same for all rows.
    fn advance(&self, b: &mut Builder, y: Scalar, [panel, rows, lanes]: [i32; 3]) {
        b.add_imm(y, panel * self.result.size_bytes() as i32);
        for (&address, &(reach, float)) in self.addresses.iter().zip(self.operands) {
            let n = match reach {
                Reach::Panel => panel,
                Reach::Rows => rows,
                Reach::Lanes => lanes,
                Reach::One => 0,
            };
            b.add_imm(address, n * float.size_bytes() as i32);
        }
    }

    /// The result of the body for one vector of lanes from `first` on, in a register that the caller frees.
    fn vector(&self, b: &mut Builder, first: usize) -> Result<Vector, &'static str> {
        let mut results: Vec<Vector> = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            // Functions work in place: on a copy of each argument, or on a result that is read no more.
            let mut registers: Vec<Vector> = Vec::new();
            let by_number = self.by_number(line);
            let in_registers = if by_number.is_some() { 1 } else { usize::MAX };
            for (n, argument) in line.arguments.iter().enumerate().take(in_registers) {
                registers.push(match *argument {
                    Argument::Result(r)
                        if self.lines[r].last_use == i
                            && !line.arguments[n + 1..].contains(argument) =>
                    {
                        results[r]
                    }
                    _ => {
                        let copy = b.vector();
                        self.load(b, copy, argument, (line.of, first), &results);
                        copy
                    }
                });
            }
            match by_number {
                Some((op, c)) => {
                    let c = Operand::number(self.lanes, c);
                    b.binary(op.of(self.lanes), registers[0], registers[0], c);
                }
                None => self.apply(b, line, &registers)?,
            }
            let is_rounded = line.to == Float::F32 && self.lanes == Float::F64;
            // The store of the last line rounds.
            let is_last = i + 1 == self.lines.len();
            if is_rounded && !is_last && !is_exact(line.function) {
                math::to_single(b, registers[0]);
            }
            let (&result, rest) = registers
                .split_first()
                .ok_or("applies a function to nothing")?;
            b.free_vectors(rest);
            results.push(result);
        }
        results.pop().ok_or("has no lines")
    }

    /// A copy of an argument of a line of this type, for the lanes from `first` on.
    fn load(
        &self,
        b: &mut Builder,
        copy: Vector,
        argument: &Argument,
        (of, first): (Float, usize),
        results: &[Vector],
    ) {
        let x = match *argument {
            Argument::Number(value) => return b.number(self.lanes, copy, number(of, value)),
            Argument::Result(r) => return b.copy(copy, results[r]),
            Argument::Operand(x) => x,
        };
        let (reach, float) = self.operands[x];
        let offset = match reach {
            Reach::Panel | Reach::Lanes => first * float.size_bytes(),
            Reach::Rows | Reach::One => 0,
        };
        let address = at(self.addresses[x], offset as i32);
        let is_widened = float != self.lanes;
        match reach {
            Reach::Panel | Reach::Lanes if is_widened => b.load_half(copy, address),
            Reach::Panel | Reach::Lanes => b.load(copy, address),
            Reach::Rows | Reach::One if float == Float::F64 => b.broadcast64(copy, address),
            Reach::Rows | Reach::One => b.broadcast(copy, address),
        }
        if is_widened {
            b.unary(Unary::Widen, copy, copy);
        }
    }

    /// `args[0] = function(args)`; the others may change.
    fn apply(&self, b: &mut Builder, line: &Line<'_>, args: &[Vector]) -> Result<(), &'static str> {
        match *args {
            [x] => self.unary(b, line, x)?,
            [x, z] => self.binary(b, line, x, z)?,
            [c, x, z] if line.function == "where" => {
                let (zero, result) = (b.vector(), b.vector());
                b.zero(zero);
                b.select_of(self.lanes, result, (Compare::Ne, c, zero), x, z);
                b.copy(c, result);
                b.free_vectors(&[zero, result]);
            }
            _ => return Err("has a function of too many arguments"),
        }
        Ok(())
    }

    /// The operation of a line by a number that is read from memory as it is used. A quotient by a power of two is a product.
    fn by_number(&self, line: &Line<'_>) -> Option<(Binary, f64)> {
        let &[_, Argument::Number(c)] = &line.arguments[..] else {
            return None;
        };
        let c = number(line.of, c);
        let is_power = c.to_bits().trailing_zeros() >= f64::MANTISSA_DIGITS - 1;
        let is_normal = match self.lanes {
            Float::F32 => (c as f32).is_normal() && (c.recip() as f32).is_normal(),
            Float::F64 => c.is_normal() && c.recip().is_normal(),
        };
        match line.function {
            "add" => Some((Binary::Add, c)),
            "sub" => Some((Binary::Sub, c)),
            "mul" => Some((Binary::Mul, c)),
            "div" if is_power && is_normal => Some((Binary::Mul, c.recip())),
            "div" => Some((Binary::Div, c)),
            _ => None,
        }
    }

    fn unary(&self, b: &mut Builder, line: &Line<'_>, x: Vector) -> Result<(), &'static str> {
        if let Some(f) = in_single(line.function) {
            return match (self.lanes, line.of) {
                (Float::F32, _) => {
                    f(b, x);
                    Ok(())
                }
                (Float::F64, Float::F32) => {
                    b.unary(Unary::Narrow, x, x);
                    f(b, x);
                    b.unary(Unary::Widen, x, x);
                    Ok(())
                }
                (Float::F64, Float::F64) => Err("has a function without a form in f64"),
            };
        }
        if let Some(f) = in_double(line.function) {
            return match line.of {
                Float::F32 => {
                    f(b, x);
                    Ok(())
                }
                Float::F64 => Err("has a function without a form in f64"),
            };
        }
        let lanes = self.lanes;
        let t = b.vector();
        match line.function {
            // Booleans are numbers already; what becomes f32 is rounded behind the line.
            "f32" | "f64" => {}
            "relu" => {
                b.zero(t);
                b.binary(Binary::Max.of(lanes), x, t, x);
            }
            "abs" => {
                math::sign_bit(b, lanes, t);
                b.binary(Binary::AndNot, x, t, x);
            }
            "neg" => {
                math::sign_bit(b, lanes, t);
                b.binary(Binary::Xor, x, x, t);
            }
            "sqrt" => match lanes {
                Float::F32 => b.unary(Unary::Sqrt, x, x),
                Float::F64 => b.unary(Unary::Sqrt64, x, x),
            },
            "reciprocal" => {
                b.number(lanes, t, 1.0);
                b.binary(Binary::Div.of(lanes), x, t, x);
            }
            "not" => {
                b.number(lanes, t, 1.0);
                b.binary(Binary::Sub.of(lanes), x, t, x);
            }
            "round" => math::round(b, lanes, x),
            "floor" | "ceil" => {
                let (step, rounded) = (b.vector(), b.vector());
                b.copy(rounded, x);
                math::round(b, lanes, rounded);
                let one = Operand::number(lanes, 1.0);
                let past = if line.function == "floor" {
                    b.binary(Binary::Sub.of(lanes), step, rounded, one);
                    (Compare::Lt, x, rounded)
                } else {
                    b.binary(Binary::Add.of(lanes), step, rounded, one);
                    (Compare::Lt, rounded, x)
                };
                b.select_of(lanes, t, past, step, rounded);
                b.copy(x, t);
                b.free_vectors(&[step, rounded]);
            }
            "sign" => {
                let (zero, one, other) = (b.vector(), b.vector(), b.vector());
                b.zero(zero);
                b.number(lanes, one, 1.0);
                b.select_of(lanes, other, (Compare::Lt, zero, x), one, x);
                b.number(lanes, one, -1.0);
                b.select_of(lanes, t, (Compare::Lt, x, zero), one, other);
                b.copy(x, t);
                b.free_vectors(&[zero, one, other]);
            }
            "is_nan" => self.test(b, (Compare::Unordered, x, x), x),
            _ => return Err("has a function without a vector form"),
        }
        b.free_vector(t);
        Ok(())
    }

    /// `x = comparison`.
    fn test(&self, b: &mut Builder, comparison: (Compare, Vector, Vector), x: Vector) {
        let [zero, one, t] = [(); 3].map(|()| b.vector());
        b.zero(zero);
        b.number(self.lanes, one, 1.0);
        b.select_of(self.lanes, t, comparison, one, zero);
        b.copy(x, t);
        b.free_vectors(&[zero, one, t]);
    }

    fn binary(
        &self,
        b: &mut Builder,
        line: &Line<'_>,
        x: Vector,
        z: Vector,
    ) -> Result<(), &'static str> {
        if let Some((compare, is_swapped)) = comparison(line.function) {
            let (left, right) = if is_swapped { (z, x) } else { (x, z) };
            self.test(b, (compare, left, right), x);
            return Ok(());
        }
        if line.function == "pow" {
            if line.of == Float::F64 {
                return Err("has a function without a form in f64");
            }
            if line.arguments[0] == Argument::Number(2.0) {
                math64::exp2(b, z);
                b.copy(x, z);
            } else {
                math64::pow(b, x, z);
            }
            return Ok(());
        }
        let op = match line.function {
            "add" => Binary::Add,
            "sub" => Binary::Sub,
            "mul" | "and" => Binary::Mul,
            "div" => Binary::Div,
            "or" | "max" | "at_least" => Binary::Max,
            "min" | "at_most" => Binary::Min,
            _ => return Err("has a function without a vector form"),
        };
        let op = op.of(self.lanes);
        if !matches!(line.function, "max" | "min") {
            b.binary(op, x, x, z);
            return Ok(());
        }
        // These operations give their second operand if one is not a number, or both are equal, as zeros of two signs are. The
        // result must be what is none, or else the second.
        let is_number = |i: usize, zero: bool| matches!(line.arguments[i], Argument::Number(v) if !v.is_nan() && (zero || v != 0.0));
        if is_number(0, true) {
            b.binary(op, x, x, z);
        } else if is_number(1, false) {
            b.binary(op, x, z, x);
        } else {
            let (t, result) = (b.vector(), b.vector());
            b.binary(op, t, x, z);
            b.select_of(self.lanes, result, (Compare::Unordered, x, x), x, t);
            b.copy(x, result);
            b.free_vectors(&[t, result]);
        }
        Ok(())
    }
}

/// A number as one of this type.
fn number(of: Float, value: f64) -> f64 {
    match of {
        Float::F32 => f64::from(value as f32),
        Float::F64 => value,
    }
}

/// What a function compares, and whether from right to left.
fn comparison(function: &str) -> Option<(Compare, bool)> {
    match function {
        "equal" => Some((Compare::Eq, false)),
        "less" => Some((Compare::Lt, false)),
        "less_or_equal" => Some((Compare::Le, false)),
        "greater" => Some((Compare::Lt, true)),
        "greater_or_equal" => Some((Compare::Le, true)),
        "xor" => Some((Compare::Ne, false)),
        _ => None,
    }
}

/// A function of f32 that is computed in f64 lanes, in place.
fn in_double(function: &str) -> Option<fn(&mut Builder, Vector)> {
    Some(match function {
        "atan" => math64::atan,
        "cos" => math64::cos,
        "log" => math64::log,
        "sin" => math64::sin,
        "softplus" => math64::softplus,
        _ => return None,
    })
}

/// A function that is computed in f32 lanes, in place.
fn in_single(function: &str) -> Option<fn(&mut Builder, Vector)> {
    Some(match function {
        "gelu" => |b, x| math::activation(b, Activation::Gelu, x),
        "gelu_tanh" => |b, x| math::activation(b, Activation::GeluTanh, x),
        "tanh" => |b, x| math::activation(b, Activation::Tanh, x),
        "sigmoid" => |b, x| math::activation(b, Activation::Sigmoid, x),
        "silu" => |b, x| math::activation(b, Activation::Silu, x),
        "quick_gelu" => |b, x| math::activation(b, Activation::QuickGelu, x),
        "exp" => math::exp_full,
        "erf" => math::erf,
        _ => return None,
    })
}
