//! Bodies of elementwise steps without a kernel: instruction by instruction, over blocks of elements that stay in cache.
//!
//! A register holds [`BLOCK`] elements of one type, each instruction has a register of its own, and operands and numbers are
//! put into registers before the first one runs. Functions of real numbers are computed in double precision and rounded
//! once, as `lancet-ops` does; all others are what the operators are.

use lancet_ops::elementwise::{Argument, Body, Function, holds};
use lancet_ops::{DType, Operator, special};

/// Elements that an instruction computes at once.
pub(super) const BLOCK: usize = 256;

/// A body with a register for everything that it names: operands, then numbers, then results.
pub(super) struct Interpreter {
    steps: Vec<Step>,
    /// Registers of numbers, with what they hold.
    numbers: Vec<(usize, f64, DType)>,
    n_registers: usize,
}

struct Step {
    function: Function,
    /// Type of the arguments that are no conditions.
    of: DType,
    /// Registers; those beyond the function's arity are not read.
    arguments: [usize; 3],
    result: usize,
}

impl Interpreter {
    /// Prepares a body for operands of these types, which fit it.
    ///
    /// # Errors
    /// The line that has no interpretation.
    pub(super) fn new(body: &Body, operands: &[DType]) -> Result<Interpreter, String> {
        let types = body.types(operands)?;
        let mut numbers = Vec::new();
        for (instruction, &(of, to)) in body.instructions().iter().zip(&types) {
            if !(holds(of) && holds(to)) {
                return Err(format!("`{instruction}` of {of}"));
            }
            for argument in &instruction.arguments {
                if let Argument::Number(v) = *argument {
                    numbers.push((operands.len() + numbers.len(), v, of));
                }
            }
        }
        let first = operands.len() + numbers.len();
        let mut next_number = operands.len();
        let steps: Vec<Step> = (body.instructions().iter().zip(&types).enumerate())
            .map(|(i, (instruction, &(of, _)))| {
                let mut arguments = [0; 3];
                for (to, argument) in arguments.iter_mut().zip(&instruction.arguments) {
                    *to = match *argument {
                        Argument::Operand(x) => x,
                        Argument::Result(r) => first + r,
                        Argument::Number(_) => {
                            next_number += 1;
                            next_number - 1
                        }
                    };
                }
                Step {
                    function: instruction.function,
                    of,
                    arguments,
                    result: first + i,
                }
            })
            .collect();
        Ok(Interpreter {
            n_registers: first + steps.len(),
            steps,
            numbers,
        })
    }

    /// Words of memory that the registers take.
    pub(super) fn n_words(&self) -> usize {
        self.n_registers * BLOCK
    }

    /// Puts the numbers of the body into their registers.
    pub(super) fn load_numbers(&self, memory: &mut [u64]) {
        for &(register, v, dtype) in &self.numbers {
            let memory = register_mut(memory, register);
            match dtype {
                DType::F32 => fill(memory, v as f32),
                DType::F64 => fill(memory, v),
                DType::I64 => fill(memory, v as i64),
                DType::I32 => fill(memory, v as i32),
                _ => fill(memory, u8::from(v != 0.0)),
            }
        }
    }

    /// Computes the first `n` elements of the body, whose operands and numbers are in their registers, and gives the bytes of
    /// the register of its result.
    pub(super) fn run<'m>(&self, memory: &'m mut [u64], n: usize) -> &'m [u8] {
        for step in &self.steps {
            step.run(memory, n);
        }
        bytemuck::cast_slice(&memory[(self.n_registers - 1) * BLOCK..self.n_registers * BLOCK])
    }
}

/// The words of a register.
pub(super) fn register_mut(memory: &mut [u64], register: usize) -> &mut [u64] {
    &mut memory[register * BLOCK..(register + 1) * BLOCK]
}

fn fill<T: bytemuck::Pod>(register: &mut [u64], value: T) {
    bytemuck::cast_slice_mut(register).fill(value);
}

/// What the functions need of a type of elements.
trait Number: bytemuck::Pod + PartialOrd {
    const ZERO: Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn neg(self) -> Self;
    fn sign(self) -> Self;
    fn is_nan(self) -> bool;
    fn to_f64(self) -> f64;
    fn from_f64(v: f64) -> Self;
    fn to_i64(self) -> i64;
    fn to_i32(self) -> i32;
    fn round(self) -> Self;
    fn sqrt(self) -> Self;
}

macro_rules! float {
    ($t:ident, $limit:literal) => {
        impl Number for $t {
            const ZERO: $t = 0.0;
            fn add(self, other: $t) -> $t {
                self + other
            }
            fn sub(self, other: $t) -> $t {
                self - other
            }
            fn mul(self, other: $t) -> $t {
                self * other
            }
            fn div(self, other: $t) -> $t {
                self / other
            }
            fn abs(self) -> $t {
                $t::abs(self)
            }
            fn neg(self) -> $t {
                -self
            }
            fn sign(self) -> $t {
                if self == 0.0 || self.is_nan() {
                    self
                } else {
                    $t::copysign(1.0, self)
                }
            }
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            fn from_f64(v: f64) -> $t {
                v as $t
            }
            fn to_i64(self) -> i64 {
                self as i64
            }
            fn to_i32(self) -> i32 {
                self as i32
            }
            // Adding the first number without a fraction leaves none: vectors do this, while the library is called for each
            // element where the target lacks an instruction.
            fn round(self) -> $t {
                let limit = ($limit as $t).copysign(self);
                let rounded = ((self + limit) - limit).copysign(self);
                if self.abs() < $limit { rounded } else { self }
            }
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
        }
    };
}

macro_rules! integer {
    ($t:ident) => {
        impl Number for $t {
            const ZERO: $t = 0;
            fn add(self, other: $t) -> $t {
                self.wrapping_add(other)
            }
            fn sub(self, other: $t) -> $t {
                self.wrapping_sub(other)
            }
            fn mul(self, other: $t) -> $t {
                self.wrapping_mul(other)
            }
            fn div(self, other: $t) -> $t {
                self.checked_div(other).unwrap_or(0)
            }
            fn abs(self) -> $t {
                self.wrapping_abs()
            }
            fn neg(self) -> $t {
                self.wrapping_neg()
            }
            fn sign(self) -> $t {
                self.signum()
            }
            fn is_nan(self) -> bool {
                false
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn from_f64(v: f64) -> $t {
                v as $t
            }
            fn to_i64(self) -> i64 {
                self.into()
            }
            fn to_i32(self) -> i32 {
                self as i32
            }
            fn round(self) -> $t {
                self
            }
            fn sqrt(self) -> $t {
                Self::from_f64(self.to_f64().sqrt())
            }
        }
    };
}

float!(f32, 8_388_608.0);
float!(f64, 4_503_599_627_370_496.0);
integer!(i64);
integer!(i32);

impl Step {
    fn run(&self, memory: &mut [u64], n: usize) {
        match self.of {
            DType::F32 => self.of::<f32>(memory, n),
            DType::F64 => self.of::<f64>(memory, n),
            DType::I64 => self.of::<i64>(memory, n),
            DType::I32 => self.of::<i32>(memory, n),
            _ => self.of_booleans(memory, n),
        }
    }

    /// Arguments as elements of `A`, and the result as those of `R`.
    fn split<'m, A: bytemuck::Pod, R: bytemuck::Pod>(
        &self,
        memory: &'m mut [u64],
        n: usize,
    ) -> ([&'m [A]; 3], &'m mut [R]) {
        let (before, after) = memory.split_at_mut(self.result * BLOCK);
        let before: &[u64] = before;
        let arguments = self.arguments.map(|r| {
            let words = &before[r * BLOCK..(r + 1) * BLOCK];
            &bytemuck::cast_slice(words)[..n]
        });
        let result = bytemuck::cast_slice_mut(&mut after[..BLOCK]);
        (arguments, &mut result[..n])
    }

    fn map<A: bytemuck::Pod, R: bytemuck::Pod>(
        &self,
        memory: &mut [u64],
        n: usize,
        f: impl Fn(A) -> R,
    ) {
        let ([x, ..], y) = self.split::<A, R>(memory, n);
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
    }

    fn zip<A: bytemuck::Pod, R: bytemuck::Pod>(
        &self,
        memory: &mut [u64],
        n: usize,
        f: impl Fn(A, A) -> R,
    ) {
        let ([x, z, _], y) = self.split::<A, R>(memory, n);
        (y.iter_mut().zip(x).zip(z)).for_each(|((y, &x), &z)| *y = f(x, z));
    }

    fn select<A: bytemuck::Pod>(&self, memory: &mut [u64], n: usize) {
        let (before, after) = memory.split_at_mut(self.result * BLOCK);
        let [c, x, z] = self.arguments.map(|r| &before[r * BLOCK..(r + 1) * BLOCK]);
        let c: &[u8] = bytemuck::cast_slice(c);
        let (x, z): (&[A], &[A]) = (bytemuck::cast_slice(x), bytemuck::cast_slice(z));
        let y: &mut [A] = bytemuck::cast_slice_mut(&mut after[..BLOCK]);
        (y[..n].iter_mut().zip(c).zip(x.iter().zip(z)))
            .for_each(|((y, &c), (&x, &z))| *y = if c != 0 { x } else { z });
    }

    fn of<T: Number>(&self, m: &mut [u64], n: usize) {
        use Operator as O;
        let real = |m: &mut [u64], f: fn(f64) -> f64| {
            self.map(m, n, |x: T| T::from_f64(f(x.to_f64())));
        };
        match self.function {
            Function::Cast(to) => match to {
                DType::F32 => self.map(m, n, |x: T| x.to_f64() as f32),
                DType::F64 => self.map(m, n, T::to_f64),
                DType::I64 => self.map(m, n, T::to_i64),
                DType::I32 => self.map(m, n, T::to_i32),
                _ => self.map(m, n, |x: T| u8::from(x != T::ZERO)),
            },
            Function::GeluTanh => real(m, special::gelu_tanh),
            Function::QuickGelu => real(m, |x| x * special::sigmoid(f64::from(1.702_f32) * x)),
            Function::Silu => real(m, |x| x * special::sigmoid(x)),
            Function::Operator(op) => match op {
                O::Abs => self.map(m, n, T::abs),
                O::Neg => self.map(m, n, T::neg),
                O::Sign => self.map(m, n, T::sign),
                O::Relu => self.map(m, n, |x: T| if x < T::ZERO { T::ZERO } else { x }),
                O::Round => self.map(m, n, T::round),
                O::Floor => self.map(m, n, |x: T| {
                    let r = x.round();
                    if x < r { r.sub(T::from_f64(1.0)) } else { r }
                }),
                O::Ceil => self.map(m, n, |x: T| {
                    let r = x.round();
                    if r < x { r.add(T::from_f64(1.0)) } else { r }
                }),
                O::Sqrt => self.map(m, n, T::sqrt),
                O::Reciprocal => self.map(m, n, |x: T| T::from_f64(1.0).div(x)),
                O::Atan => real(m, f64::atan),
                O::Cos => real(m, f64::cos),
                O::Erf => real(m, special::erf),
                O::Exp => real(m, f64::exp),
                O::Log => real(m, f64::ln),
                O::Sigmoid => real(m, special::sigmoid),
                O::Sin => real(m, f64::sin),
                O::Softplus => real(m, special::softplus),
                O::Tanh => real(m, f64::tanh),
                O::Gelu => real(m, special::gelu),
                O::IsNaN => self.map(m, n, |x: T| u8::from(x.is_nan())),
                O::Add => self.zip(m, n, T::add),
                O::Sub => self.zip(m, n, T::sub),
                O::Mul => self.zip(m, n, T::mul),
                O::Div => self.zip(m, n, T::div),
                O::Min => self.zip(m, n, |a: T, b: T| if a.is_nan() || a < b { a } else { b }),
                O::AtLeast => self.zip(m, n, |a: T, b: T| if a > b { a } else { b }),
                O::AtMost => self.zip(m, n, |a: T, b: T| if a < b { a } else { b }),
                O::Max => self.zip(m, n, |a: T, b: T| if a.is_nan() || b < a { a } else { b }),
                O::Pow => self.zip(m, n, |a: T, b: T| T::from_f64(a.to_f64().powf(b.to_f64()))),
                O::Equal => self.zip(m, n, |a: T, b: T| u8::from(a == b)),
                O::Less => self.zip(m, n, |a: T, b: T| u8::from(a < b)),
                O::LessOrEqual => self.zip(m, n, |a: T, b: T| u8::from(a <= b)),
                O::Greater => self.zip(m, n, |a: T, b: T| u8::from(b < a)),
                O::GreaterOrEqual => self.zip(m, n, |a: T, b: T| u8::from(b <= a)),
                O::Where => self.select::<T>(m, n),
                other => unreachable!("{other} is no function of numbers in a body"),
            },
        }
    }

    fn of_booleans(&self, m: &mut [u64], n: usize) {
        use Operator as O;
        match self.function {
            Function::Cast(to) => match to {
                DType::F32 => self.map(m, n, |x: u8| f32::from(x)),
                DType::F64 => self.map(m, n, |x: u8| f64::from(x)),
                DType::I64 => self.map(m, n, |x: u8| i64::from(x)),
                DType::I32 => self.map(m, n, |x: u8| i32::from(x)),
                _ => self.map(m, n, |x: u8| x),
            },
            Function::Operator(O::Not) => self.map(m, n, |x: u8| 1 - x),
            Function::Operator(O::And) => self.zip(m, n, |a: u8, b: u8| a & b),
            Function::Operator(O::Or) => self.zip(m, n, |a: u8, b: u8| a | b),
            Function::Operator(O::Xor) => self.zip(m, n, |a: u8, b: u8| a ^ b),
            Function::Operator(O::Where) => self.select::<u8>(m, n),
            other => unreachable!("{} is no function of booleans", other.name()),
        }
    }
}
