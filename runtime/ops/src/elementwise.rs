//! `Elementwise`: a chain of elementwise functions as one operator.
//!
//! What it computes is a [`Body`], a program of one instruction a line: `mul x0 2`, `add v0 x1`, `relu v1`. An argument is
//! an operand (`x0`), the result of an earlier line (`v0`) or a number; the last line is the result. Each function means
//! what the operator of its name means, rounded as that is, so that writing a chain of operators as one body changes no bit.

use std::fmt;
use std::str::FromStr;

use crate::call::{Call, OpResult};
use crate::layout::{broadcast_shapes, expand};
use crate::{Attribute, Attributes, DType, Operator, Tensor, TensorView, evaluate};

/// Instructions of the longest body.
pub const MAX_INSTRUCTIONS: usize = 64;

/// A function of one to three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// An operator without attributes, or with those that it has by default: one of [`OPERATORS`].
    Operator(Operator),
    /// Conversion to this type, as `Cast`.
    Cast(DType),
    /// `Gelu` by the hyperbolic tangent.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// Operators that are functions of a body, by their names in IR text.
pub const OPERATORS: &[Operator] = &[
    Operator::Abs,
    Operator::Neg,
    Operator::Sign,
    Operator::Relu,
    Operator::Atan,
    Operator::Ceil,
    Operator::Cos,
    Operator::Erf,
    Operator::Exp,
    Operator::Floor,
    Operator::Log,
    Operator::Reciprocal,
    Operator::Round,
    Operator::Sigmoid,
    Operator::Sin,
    Operator::Softplus,
    Operator::Sqrt,
    Operator::Tanh,
    Operator::Gelu,
    Operator::IsNaN,
    Operator::Not,
    Operator::Add,
    Operator::Sub,
    Operator::Mul,
    Operator::Div,
    Operator::Min,
    Operator::Max,
    Operator::AtLeast,
    Operator::AtMost,
    Operator::Pow,
    Operator::Equal,
    Operator::Less,
    Operator::LessOrEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
    Operator::And,
    Operator::Or,
    Operator::Xor,
    Operator::Where,
];

/// What a function takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Floats to the same type.
    Real,
    /// Numbers to the same type.
    Number,
    /// Numbers of one type to a boolean.
    Compare,
    /// A float to a boolean.
    FloatTest,
    /// Booleans to a boolean.
    Logic,
    /// A boolean and two of one type to that type.
    Select,
    /// Anything to this type.
    Cast(DType),
}

impl Function {
    /// The function that an operator with these attributes is, if it is one.
    pub fn of(op: Operator, attributes: &Attributes) -> Option<Function> {
        match op {
            Operator::Gelu if attributes.str("approximate") == Some("tanh") => {
                Some(Function::GeluTanh)
            }
            Operator::Swish => match attributes.float_or("alpha", 1.0) {
                1.0 => Some(Function::Silu),
                1.702 => Some(Function::QuickGelu),
                _ => None,
            },
            Operator::Cast => attributes.str("to")?.parse().ok().map(Function::Cast),
            op => OPERATORS.contains(&op).then_some(Function::Operator(op)),
        }
    }

    /// The name in a body.
    pub fn name(self) -> &'static str {
        match self {
            Function::Operator(op) => op.schema().text,
            Function::Cast(dtype) => dtype.name(),
            Function::GeluTanh => "gelu_tanh",
            Function::QuickGelu => "quick_gelu",
            Function::Silu => "silu",
        }
    }

    fn from_name(name: &str) -> Option<Function> {
        let named = [Function::GeluTanh, Function::QuickGelu, Function::Silu];
        if let Some(found) = named.into_iter().find(|f| f.name() == name) {
            return Some(found);
        }
        if let Ok(dtype) = name.parse() {
            return Some(Function::Cast(dtype));
        }
        let mut operators = OPERATORS.iter().copied();
        operators
            .find(|op| op.schema().text == name)
            .map(Function::Operator)
    }

    fn kind(self) -> Kind {
        use Operator as O;
        match self {
            Function::Cast(dtype) => Kind::Cast(dtype),
            Function::GeluTanh | Function::QuickGelu | Function::Silu => Kind::Real,
            Function::Operator(op) => match op {
                O::Abs
                | O::Neg
                | O::Sign
                | O::Relu
                | O::Add
                | O::Sub
                | O::Mul
                | O::Min
                | O::Max
                | O::AtLeast
                | O::AtMost => Kind::Number,
                O::Equal | O::Less | O::LessOrEqual | O::Greater | O::GreaterOrEqual => {
                    Kind::Compare
                }
                O::And | O::Or | O::Xor | O::Not => Kind::Logic,
                O::IsNaN => Kind::FloatTest,
                O::Where => Kind::Select,
                _ => Kind::Real,
            },
        }
    }

    /// Number of arguments.
    pub fn arity(self) -> usize {
        match self {
            Function::Operator(Operator::Min | Operator::Max) => 2,
            Function::Operator(op) => op.schema().operands.0,
            _ => 1,
        }
    }

    fn call(self) -> (Operator, Attributes) {
        let none = Attributes::new();
        match self {
            Function::Operator(op) => (op, none),
            Function::Cast(dtype) => {
                let to = Attribute::Str(dtype.name().to_owned());
                (Operator::Cast, none.with("to", to))
            }
            Function::GeluTanh => {
                let tanh = Attribute::Str("tanh".to_owned());
                (Operator::Gelu, none.with("approximate", tanh))
            }
            Function::QuickGelu => (Operator::Swish, none.with("alpha", Attribute::Float(1.702))),
            Function::Silu => (Operator::Swish, none),
        }
    }
}

/// The lines that an operator is, of its operands by position; `present` says which of these there are. `None` if it is no
/// function of each element, or not one that bodies have.
pub fn lines_of(
    op: Operator,
    attributes: &Attributes,
    present: &[bool],
) -> Option<Vec<Instruction>> {
    let line = |function, arguments: &[Argument]| Instruction {
        function: Function::Operator(function),
        arguments: arguments.to_vec(),
    };
    let n = present.len();
    match op {
        Operator::Clip => {
            let bounds = [(1, Operator::Max), (2, Operator::Min)];
            let mut lines: Vec<Instruction> = Vec::new();
            for (i, function) in bounds {
                if present.get(i).is_some_and(|&p| p) {
                    let x = match lines.len() {
                        0 => Argument::Operand(0),
                        n => Argument::Result(n - 1),
                    };
                    lines.push(line(function, &[x, Argument::Operand(i)]));
                }
            }
            Some(lines).filter(|l| !l.is_empty())
        }
        _ if !present.iter().all(|&p| p) => None,
        Operator::Min | Operator::Max | Operator::Sum if 2 <= n => {
            let function = match op {
                Operator::Sum => Operator::Add,
                other => other,
            };
            let mut lines = vec![line(
                function,
                &[Argument::Operand(0), Argument::Operand(1)],
            )];
            lines.extend(
                (2..n).map(|i| line(function, &[Argument::Result(i - 2), Argument::Operand(i)])),
            );
            Some(lines)
        }
        _ => {
            let function = Function::of(op, attributes).filter(|f| f.arity() == n)?;
            let arguments = (0..n).map(Argument::Operand).collect();
            Some(vec![Instruction {
                function,
                arguments,
            }])
        }
    }
}

/// Whether a kernel or a block interpreter takes elements of this type.
pub fn holds(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::F32 | DType::F64 | DType::I64 | DType::I32 | DType::Bool
    )
}

/// What a function is applied to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// Operand of this index.
    Operand(usize),
    /// Result of the instruction of this index.
    Result(usize),
    /// This number, in the type of the other arguments.
    Number(f64),
}

impl Argument {
    /// A single-precision number, by its shortest text where that reads as it.
    pub fn single(v: f32) -> Argument {
        let short: Option<f64> = v.to_string().parse().ok();
        Argument::Number(short.filter(|&s| s as f32 == v).unwrap_or(f64::from(v)))
    }
}

/// One line of a body.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    pub function: Function,
    pub arguments: Vec<Argument>,
}

/// What an `Elementwise` computes. Every argument refers to something: lines only to earlier ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    instructions: Vec<Instruction>,
}

impl Body {
    /// A body of these instructions.
    ///
    /// # Errors
    /// What is wrong with them, as text.
    pub fn new(instructions: Vec<Instruction>) -> Result<Body, String> {
        if instructions.is_empty() || MAX_INSTRUCTIONS < instructions.len() {
            let n = instructions.len();
            return Err(format!(
                "a body of {n} lines, expected 1 to {MAX_INSTRUCTIONS}"
            ));
        }
        for (i, instruction) in instructions.iter().enumerate() {
            let (arity, found) = (instruction.function.arity(), instruction.arguments.len());
            if arity != found {
                return Err(format!("`{instruction}`: expected {arity} arguments"));
            }
            let later = |a: &Argument| matches!(a, Argument::Result(r) if i <= *r);
            if instruction.arguments.iter().any(later) {
                return Err(format!("line {i}, `{instruction}`, refers to a later one"));
            }
        }
        Ok(Body { instructions })
    }

    /// Reads lines of text.
    ///
    /// # Errors
    /// The line that is none.
    pub fn parse<S: AsRef<str>>(lines: &[S]) -> Result<Body, String> {
        let read = |line: &S| line.as_ref().parse();
        Body::new(lines.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// The lines.
    pub fn lines(&self) -> Vec<String> {
        self.instructions
            .iter()
            .map(Instruction::to_string)
            .collect()
    }

    /// The instructions, in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// Number of operands that the body refers to: one more than the greatest index.
    pub fn n_operands(&self) -> usize {
        let arguments = self.instructions.iter().flat_map(|i| &i.arguments);
        let operands = arguments.filter_map(|a| match a {
            Argument::Operand(i) => Some(i + 1),
            _ => None,
        });
        operands.max().unwrap_or(0)
    }

    /// The most results that are kept at once, a line's own among them.
    pub fn max_live(&self) -> usize {
        let mut last_use = vec![0; self.instructions.len()];
        for (i, instruction) in self.instructions.iter().enumerate() {
            last_use[i] = i;
            for argument in &instruction.arguments {
                if let Argument::Result(r) = argument {
                    last_use[*r] = i;
                }
            }
        }
        let live = |i: usize| (0..=i).filter(|&r| r == i || i < last_use[r]).count();
        (0..self.instructions.len()).map(live).max().unwrap_or(0)
    }

    /// The type of the arguments of each instruction that are not conditions, and of its result, for operands of these types.
    ///
    /// # Errors
    /// The line that does not take what it is given.
    pub fn types(&self, operands: &[DType]) -> Result<Vec<(DType, DType)>, String> {
        let mut types: Vec<(DType, DType)> = Vec::new();
        for instruction in &self.instructions {
            let error = |found: &str| format!("`{instruction}` of {found}");
            let mut of = Vec::new();
            for argument in &instruction.arguments {
                of.push(match *argument {
                    Argument::Operand(i) => Some(
                        *operands
                            .get(i)
                            .ok_or_else(|| error("an operand that is not there"))?,
                    ),
                    Argument::Result(i) => Some(types[i].1),
                    Argument::Number(_) => None,
                });
            }
            let kind = instruction.function.kind();
            let values = if kind == Kind::Select {
                if of[0] != Some(DType::Bool) {
                    return Err(error("a condition that is not boolean"));
                }
                &of[1..]
            } else {
                &of[..]
            };
            let first = values.iter().flatten().next().copied();
            let dtype = first.unwrap_or(DType::F32);
            if values.iter().flatten().any(|&d| d != dtype) {
                return Err(error("several types"));
            }
            if first.is_none() && kind != Kind::Select {
                return Err(error("numbers alone"));
            }
            let (fits, result) = match kind {
                Kind::Real => (dtype.is_float(), dtype),
                Kind::Number => (dtype != DType::Bool, dtype),
                Kind::Compare => (dtype != DType::Bool, DType::Bool),
                Kind::FloatTest => (dtype.is_float(), DType::Bool),
                Kind::Logic => (dtype == DType::Bool, DType::Bool),
                Kind::Select => (true, dtype),
                Kind::Cast(to) => (true, to),
            };
            if !fits {
                return Err(error(dtype.name()));
            }
            types.push((dtype, result));
        }
        Ok(types)
    }
}

/// As what a kernel takes the operands of a body, and gives its result: `f32` or `f64`. `None` if it holds values that are neither
/// and no booleans, which are 0 and 1. Integers are converted as they are read, so that they can be converted to floats or compared
/// with a number.
pub fn floats(body: &Body, operands: &[DType]) -> Option<(Vec<DType>, DType)> {
    let types = body.types(operands).ok()?;
    let is_integer = |d: DType| matches!(d, DType::I64 | DType::I32);
    let is_known = |d: DType| matches!(d, DType::F32 | DType::F64 | DType::Bool);
    let is_operand = |a: &Argument| matches!(*a, Argument::Operand(x) if holds(operands[x]));
    // A whole number of both types of integers, and of `f64`.
    let is_exact = |a: &Argument| matches!(*a, Argument::Number(v) if v.fract() == 0.0 && v.abs() <= f64::from(i32::MAX));
    let converts = |i: &Instruction| {
        let is_float = matches!(i.function, Function::Cast(DType::F32 | DType::F64));
        is_float && i.arguments.iter().all(is_operand)
    };
    let compares = |i: &Instruction| {
        let mut arguments = i.arguments.iter();
        i.function.kind() == Kind::Compare
            && arguments.all(|a| is_operand(a) || is_exact(a))
            && i.arguments.iter().any(is_exact)
    };
    let lines = || body.instructions().iter().zip(&types);
    let fits =
        lines().all(|(i, &(of, to))| is_known(to) && (is_known(of) || converts(i) || compares(i)));
    let result = types.last()?.1;
    let is_wide = operands.contains(&DType::F64)
        || lines().any(|(i, &(of, to))| {
            of == DType::F64 || to == DType::F64 || (is_integer(of) && compares(i))
        });
    let taken = operands.iter().map(|&d| match d {
        DType::F64 => DType::F64,
        _ if is_integer(d) && is_wide => DType::F64,
        _ => DType::F32,
    });
    (fits && result != DType::Bool).then(|| (taken.collect(), result))
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Operand(i) => write!(f, "x{i}"),
            Argument::Result(i) => write!(f, "v{i}"),
            Argument::Number(v) => write!(f, "{v:?}"),
        }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.function.name())?;
        self.arguments.iter().try_for_each(|a| write!(f, " {a}"))
    }
}

impl FromStr for Argument {
    type Err = String;

    fn from_str(s: &str) -> Result<Argument, String> {
        let index = |digits: &str| digits.parse::<u16>().ok().map(usize::from);
        let argument = match s.split_at_checked(1) {
            Some(("x", digits)) => index(digits).map(Argument::Operand),
            Some(("v", digits)) => index(digits).map(Argument::Result),
            _ => s.parse().ok().map(Argument::Number),
        };
        argument.ok_or_else(|| format!("`{s}` is no argument"))
    }
}

impl FromStr for Instruction {
    type Err = String;

    fn from_str(s: &str) -> Result<Instruction, String> {
        let mut words = s.split_whitespace();
        let name = words.next().unwrap_or("");
        let function =
            Function::from_name(name).ok_or_else(|| format!("`{name}` is no function"))?;
        let arguments = words.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Instruction {
            function,
            arguments,
        })
    }
}

/// `Elementwise`: the function that `body` writes, of operands that broadcast together.
///
/// * Operands: of any element types that the body's functions take.
/// * Result: in the shape to which all operands broadcast, of the type that the last line gives.
pub(crate) fn elementwise(call: &Call<'_>) -> OpResult {
    let views = call.all_operands()?;
    let bad = |m| call.attribute_error("body", m);
    let body = Body::parse(call.strs("body")).map_err(bad)?;
    let shapes: Vec<&[usize]> = views.iter().map(|v| v.shape()).collect();
    let shape = broadcast_shapes(call, &shapes)?;
    compute(call, &body, &views, &shape)
}

/// The result of a body in `shape`, to which operands broadcast.
pub(crate) fn compute(
    call: &Call<'_>,
    body: &Body,
    views: &[TensorView<'_>],
    shape: &[usize],
) -> OpResult {
    let dtypes: Vec<DType> = views.iter().map(|v| v.dtype()).collect();
    let types = body.types(&dtypes);
    let types = types.map_err(|m| call.attribute_error("body", m))?;
    let mut results: Vec<Tensor> = Vec::new();
    for (instruction, &(dtype, result)) in body.instructions().iter().zip(&types) {
        call.size(shape, result)?;
        let numbers: Vec<Option<Tensor>> = (instruction.arguments.iter())
            .map(|a| match a {
                Argument::Number(v) => {
                    let data = crate::cast::from_f64(&[*v], dtype);
                    Tensor::try_new(Vec::new(), data)
                }
                _ => None,
            })
            .collect();
        let arguments: Vec<_> = (instruction.arguments.iter().zip(&numbers))
            .map(|(a, number)| match a {
                Argument::Operand(i) => views.get(*i).copied(),
                Argument::Result(i) => Some(results[*i].view()),
                Argument::Number(_) => number.as_ref().map(Tensor::view),
            })
            .collect();
        let (op, attributes) = instruction.function.call();
        let mut result = evaluate(op, &attributes, &arguments, 1)?;
        results.extend(result.pop());
    }
    let last = results.pop().expect("a body has a line");
    if last.shape() == shape {
        return Ok(last);
    }
    let data = with_elements!(last.view().data(), v => {
        crate::Element::into_data(expand(v, last.shape(), shape))
    });
    Ok(Tensor::try_new(shape.to_vec(), data).expect("expanded to the shape"))
}
