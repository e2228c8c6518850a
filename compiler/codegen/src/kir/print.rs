//! The text form of kernels, one operation a line, for snapshots and `disassemble`.

use std::fmt::{self, Display, Formatter};

use super::{
    Addr, Binary, Compare, Float, Half, Op, Operand, Piece, Program, Scalar, Shift, Unary, Vector,
    Width,
};

impl Display for Vector {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl Display for Scalar {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Register(n) => write!(f, "s{n}"),
            Scalar::Slot(n) => write!(f, "slot{n}"),
        }
    }
}

impl Display for Addr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "[{}", self.base)?;
        if let Some((index, scale)) = self.index {
            write!(f, " + {index}*{}", scale as u8)?;
        }
        match self.bytes {
            0 => write!(f, "]"),
            b if b < 0 => write!(f, " - {}]", b.unsigned_abs()),
            b => write!(f, " + {b}]"),
        }
    }
}

fn constant(bits: u32) -> String {
    let value = f32::from_bits(bits);
    if value.is_normal() && (1e-9..1e9).contains(&value.abs()) {
        format!("{value:?}")
    } else {
        format!("{bits:#010x}")
    }
}

fn constant64(bits: u64) -> String {
    let value = f64::from_bits(bits);
    if value.is_normal() && (1e-9..1e9).contains(&value.abs()) {
        format!("{value:?}")
    } else {
        format!("{bits:#018x}")
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Vector(v) => write!(f, "{v}"),
            Operand::Memory(a) => write!(f, "{a}"),
            Operand::Broadcast(a) => write!(f, "{a}{{1toN}}"),
            Operand::Const(bits) => write!(f, "{}", constant(*bits)),
            Operand::Const64(bits) => write!(f, "{}", constant64(*bits)),
        }
    }
}

fn width(w: Width) -> u8 {
    match w {
        Width::B8 => 8,
        Width::B16 => 16,
        Width::B32 => 32,
        Width::B64 => 64,
    }
}

fn binary(op: Binary) -> &'static str {
    match op {
        Binary::Add => "add",
        Binary::Sub => "sub",
        Binary::Mul => "mul",
        Binary::Div => "div",
        Binary::Max => "max",
        Binary::Min => "min",
        Binary::And => "and",
        Binary::AndNot => "andnot",
        Binary::Or => "or",
        Binary::Xor => "xor",
        Binary::IntAdd => "iadd",
        Binary::IntSub => "isub",
        Binary::IntMul => "imul",
        Binary::WordAdd => "iadd16",
        Binary::WordPairs => "pairs16",
        Binary::BytePairs => "pairs8",
        Binary::Interleave(Piece::Byte, Half::Low) => "interleave8.low",
        Binary::Interleave(Piece::Byte, Half::High) => "interleave8.high",
        Binary::Interleave(Piece::Word, Half::Low) => "interleave16.low",
        Binary::Interleave(Piece::Word, Half::High) => "interleave16.high",
        Binary::Add64 => "add64",
        Binary::Sub64 => "sub64",
        Binary::Mul64 => "mul64",
        Binary::Div64 => "div64",
        Binary::Max64 => "max64",
        Binary::Min64 => "min64",
        Binary::IntAdd64 => "iadd64",
    }
}

fn compare(c: Compare) -> &'static str {
    match c {
        Compare::Eq => "==",
        Compare::Ne => "!=",
        Compare::Lt => "<",
        Compare::Le => "<=",
        Compare::Unordered => "unordered",
    }
}

fn print(f: &mut Formatter<'_>, ops: &[Op], depth: usize) -> fmt::Result {
    for op in ops {
        write!(f, "{:1$}", "", depth * 2)?;
        match op {
            Op::Load { dst, addr } => writeln!(f, "{dst} = load {addr}")?,
            Op::Store { addr, src } => writeln!(f, "store {addr}, {src}")?,
            Op::LoadHalf { dst, addr } => writeln!(f, "{dst} = load half {addr}")?,
            Op::StoreHalf { addr, src } => writeln!(f, "store half {addr}, {src}")?,
            Op::Broadcast64 { dst, addr } => writeln!(f, "{dst} = broadcast64 {addr}")?,
            Op::Broadcast { dst, addr } => writeln!(f, "{dst} = broadcast {addr}")?,
            Op::Broadcast4 { dst, addr } => writeln!(f, "{dst} = broadcast4 {addr}")?,
            Op::SplatLane { dst, src, lane } => writeln!(f, "{dst} = splat {src}.{lane}")?,
            Op::Const { dst, bits } => writeln!(f, "{dst} = {}", constant(*bits))?,
            Op::Const64 { dst, bits } => writeln!(f, "{dst} = f64 {}", constant64(*bits))?,
            Op::Zero { dst } => writeln!(f, "{dst} = 0")?,
            Op::Copy { dst, src } => writeln!(f, "{dst} = {src}")?,
            Op::Binary { op, dst, a, b } => writeln!(f, "{dst} = {} {a}, {b}", binary(*op))?,
            Op::Fma { acc, a, b } => writeln!(f, "{acc} += {a} * {b}")?,
            Op::Fnma { acc, a, b } => writeln!(f, "{acc} -= {a} * {b}")?,
            Op::MulAdd { dst, a, b } => writeln!(f, "{dst} = {dst} * {a} + {b}")?,
            Op::Dot { acc, a, b } => writeln!(f, "{acc} += dot8 {a}, {b}")?,
            Op::Unary { op, dst, src } => {
                let name = match op {
                    Unary::Sqrt => "sqrt",
                    Unary::ToInt => "to_int",
                    Unary::ToFloat => "to_float",
                    Unary::Sqrt64 => "sqrt64",
                    Unary::Widen => "widen",
                    Unary::Narrow => "narrow",
                };
                writeln!(f, "{dst} = {name} {src}")?;
            }
            Op::Shift { op, dst, src, bits } => {
                let name = match op {
                    Shift::Left => "shl",
                    Shift::RightLogical => "shr",
                    Shift::RightArithmetic => "sar",
                    Shift::WordLeft => "shl16",
                    Shift::WordRightLogical => "shr16",
                    Shift::WordRightArithmetic => "sar16",
                    Shift::Left64 => "shl64",
                    Shift::RightLogical64 => "shr64",
                };
                writeln!(f, "{dst} = {name} {src}, {bits}")?;
            }
            Op::Select {
                float,
                dst,
                cmp,
                a,
                b,
                then,
                otherwise,
            } => {
                writeln!(
                    f,
                    "{dst} = {a} {}{} {b} ? {then} : {otherwise}",
                    compare(*cmp),
                    match float {
                        Float::F32 => "",
                        Float::F64 => "64",
                    }
                )?;
            }
            Op::LoadScalar {
                dst,
                width: w,
                addr,
            } => writeln!(f, "{dst} = u{} {addr}", width(*w))?,
            Op::StoreScalar {
                addr,
                width: w,
                src,
            } => {
                writeln!(f, "store{} {addr}, {src}", width(*w))?;
            }
            Op::Imm { dst, value } => writeln!(f, "{dst} = {value}")?,
            Op::Move { dst, src } => writeln!(f, "{dst} = {src}")?,
            Op::Lea { dst, addr } => writeln!(f, "{dst} = &{addr}")?,
            Op::AddScalar { dst, src } => writeln!(f, "{dst} += {src}")?,
            Op::SubScalar { dst, src } => writeln!(f, "{dst} -= {src}")?,
            Op::AddImm { dst, value } => writeln!(f, "{dst} += {value}")?,
            Op::MulImm { dst, value } => writeln!(f, "{dst} *= {value}")?,
            Op::ShlImm { dst, bits } => writeln!(f, "{dst} <<= {bits}")?,
            Op::ShrImm { dst, bits } => writeln!(f, "{dst} >>= {bits}")?,
            Op::AndImm { dst, mask } => writeln!(f, "{dst} &= {mask:#x}")?,
            Op::Low16 { dst, src } => writeln!(f, "{dst} = low16 {src}")?,
            Op::Prefetch { addr, far } => {
                writeln!(f, "prefetch{} {addr}", if *far { " far" } else { "" })?;
            }
            Op::Loop { count, body } => {
                writeln!(f, "repeat {count} {{")?;
                print(f, body, depth + 1)?;
                writeln!(f, "{:1$}}}", "", depth * 2)?;
            }
        }
    }
    Ok(())
}

impl Display for Program {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "kernel {} {{ ; {} lanes, s0 = arguments",
            self.name, self.vl
        )?;
        print(f, &self.ops, 1)?;
        writeln!(f, "}}")
    }
}
