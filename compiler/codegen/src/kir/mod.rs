//! The kernel IR: small structured programs over vector and scalar registers.
//!
//! A kernel is written once with a [`Builder`] and lowered by one of two emitters: [`x64`] (machine code at 128, 256 or
//! 512 bits) and [`clif`] (a Cranelift function at 128 bits). A vector register holds `vl` lanes of 32 bits, read as
//! f32 or i32 according to the operation, or half as many of 64 bits, read as f64 or i64; a scalar register holds 64 bits.
//! Control flow is nested counted loops.
//!
//! Every kernel has the signature `extern "C" fn(args: *const u64)`; [`Builder::args`] is that pointer and arguments are
//! read with scalar loads.
//!
//! Invariants: a register is written before it is read; addresses are the kernel writer's responsibility (the IR does
//! not check bounds, formats are validated before a kernel sees them); the text form is stable and shown in snapshots.

mod builder;
pub mod clif;
mod print;
pub mod x64;

pub use builder::Builder;
pub use lancet_artifact::Float;

/// A vector register of `vl` 32-bit lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vector(pub(crate) u8);

/// A 64-bit scalar register, or a stack slot when registers run out (slower; correct everywhere a register is, except
/// that an address may name at most one slot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scalar {
    Register(u8),
    Slot(u8),
}

/// The factor an index register is multiplied by in an [`Addr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    X1 = 1,
    X2 = 2,
    X4 = 4,
    X8 = 8,
}

/// A memory address: `base + index * scale + bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addr {
    pub base: Scalar,
    pub index: Option<(Scalar, Scale)>,
    pub bytes: i32,
}

/// The address `base + bytes`.
pub fn at(base: Scalar, bytes: i32) -> Addr {
    Addr {
        base,
        index: None,
        bytes,
    }
}

impl Addr {
    /// Adds `index * scale`, replacing any earlier index.
    pub fn index(self, index: Scalar, scale: Scale) -> Addr {
        Addr {
            index: Some((index, scale)),
            ..self
        }
    }

    /// Adds a constant number of bytes.
    pub fn plus(self, bytes: i32) -> Addr {
        Addr {
            bytes: self.bytes + bytes,
            ..self
        }
    }
}

/// The last operand of an arithmetic operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Vector(Vector),
    /// A whole vector in memory, any alignment.
    Memory(Addr),
    /// One f32 in memory, broadcast. Only for 16 lanes on x64 (an embedded broadcast) and for CLIF; elsewhere the x64
    /// emitter refuses it.
    Broadcast(Addr),
    /// The same 32 bits in every lane, from the constant pool.
    Const(u32),
    /// The same 64 bits in every f64 lane, from the constant pool.
    Const64(u64),
}

impl From<Vector> for Operand {
    fn from(v: Vector) -> Self {
        Operand::Vector(v)
    }
}

impl From<Addr> for Operand {
    fn from(a: Addr) -> Self {
        Operand::Memory(a)
    }
}

impl From<f32> for Operand {
    fn from(c: f32) -> Self {
        Operand::Const(c.to_bits())
    }
}

impl Operand {
    /// The same number in every lane.
    pub fn number(float: Float, value: f64) -> Operand {
        match float {
            Float::F32 => (value as f32).into(),
            Float::F64 => Operand::Const64(value.to_bits()),
        }
    }
}

/// `dst = a op b`, lane by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    /// `a > b ? a : b`: the second operand if either is NaN.
    Max,
    /// `a < b ? a : b`: the second operand if either is NaN.
    Min,
    And,
    /// `!a & b`.
    AndNot,
    Or,
    Xor,
    /// i32, wrapping.
    IntAdd,
    /// i32, wrapping.
    IntSub,
    /// i32, wrapping.
    IntMul,
    /// i16 lanes, wrapping.
    WordAdd,
    /// Each i32 lane is two i16: the sum of their products with the other's, as i32.
    WordPairs,
    /// Each i16 is two bytes, unsigned in `a` and signed in `b`: the sum of their products, saturated to i16.
    BytePairs,
    /// f64 lanes.
    Add64,
    /// f64 lanes.
    Sub64,
    /// f64 lanes.
    Mul64,
    /// f64 lanes.
    Div64,
    /// f64 lanes, as `Max`.
    Max64,
    /// f64 lanes, as `Min`.
    Min64,
    /// i64 lanes, wrapping.
    IntAdd64,
    /// In each group of four lanes, pieces of a half of `a` and of the same half of `b` in turn.
    Interleave(Piece, Half),
}

/// What is interleaved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Byte,
    Word,
}

/// Half of a group of four lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Low,
    High,
}

impl Binary {
    /// An operation of f32 lanes, or of bits, on lanes of this kind.
    pub(crate) fn of(self, float: Float) -> Binary {
        match (float, self) {
            (Float::F64, Binary::Add) => Binary::Add64,
            (Float::F64, Binary::Sub) => Binary::Sub64,
            (Float::F64, Binary::Mul) => Binary::Mul64,
            (Float::F64, Binary::Div) => Binary::Div64,
            (Float::F64, Binary::Max) => Binary::Max64,
            (Float::F64, Binary::Min) => Binary::Min64,
            _ => self,
        }
    }
}

/// `dst = op src`, lane by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    Sqrt,
    /// f32 to i32, to nearest, ties to even. Outside the i32 range the result is unspecified.
    ToInt,
    /// i32 to f32.
    ToFloat,
    /// f64 lanes.
    Sqrt64,
    /// The low half of the f32 lanes, as f64.
    Widen,
    /// f64 to f32, rounded to nearest, ties to even, in the low half of the f32 lanes; the others become 0.
    Narrow,
}

/// `dst = src shifted by a constant`, on i32 lanes, on the i16 halves of each, or on i64 lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    Left,
    RightLogical,
    RightArithmetic,
    WordLeft,
    WordRightLogical,
    WordRightArithmetic,
    Left64,
    RightLogical64,
}

/// A comparison of floats. All but `Ne` and `Unordered` are false when either side is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Unordered,
}

/// The width of a scalar load; narrower values are zero-extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    B8,
    B16,
    B32,
    B64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Load {
        dst: Vector,
        addr: Addr,
    },
    Store {
        addr: Addr,
        src: Vector,
    },
    /// The low half of the lanes = the `vl / 2` f32 at `addr`; the others become 0.
    LoadHalf {
        dst: Vector,
        addr: Addr,
    },
    /// Store of the low half of the lanes.
    StoreHalf {
        addr: Addr,
        src: Vector,
    },
    /// Every lane = the f32 at `addr`.
    Broadcast {
        dst: Vector,
        addr: Addr,
    },
    /// Every f64 lane = the f64 at `addr`.
    Broadcast64 {
        dst: Vector,
        addr: Addr,
    },
    /// Every group of four lanes = the four f32 at `addr`.
    Broadcast4 {
        dst: Vector,
        addr: Addr,
    },
    /// Every lane = lane `lane` (0 to 3) of its own group of four.
    SplatLane {
        dst: Vector,
        src: Vector,
        lane: u8,
    },
    Const {
        dst: Vector,
        bits: u32,
    },
    /// Every f64 lane = these bits.
    Const64 {
        dst: Vector,
        bits: u64,
    },
    Zero {
        dst: Vector,
    },
    Copy {
        dst: Vector,
        src: Vector,
    },
    Binary {
        op: Binary,
        dst: Vector,
        a: Vector,
        b: Operand,
    },
    /// `acc += a * b`, fused where the CPU can.
    Fma {
        acc: Vector,
        a: Vector,
        b: Operand,
    },
    /// `acc -= a * b`, fused where the CPU can.
    Fnma {
        acc: Vector,
        a: Vector,
        b: Operand,
    },
    /// `dst = dst * a + b`, fused where the CPU can.
    MulAdd {
        dst: Vector,
        a: Vector,
        b: Operand,
    },
    /// `acc += sum of a's four unsigned bytes times b's four signed ones`, in each i32 lane, wrapping.
    Dot {
        acc: Vector,
        a: Vector,
        b: Operand,
    },
    Unary {
        op: Unary,
        dst: Vector,
        src: Vector,
    },
    Shift {
        op: Shift,
        dst: Vector,
        src: Vector,
        bits: u8,
    },
    /// `dst = a cmp b ? then : otherwise`; `dst` is neither `then` nor `otherwise`.
    Select {
        float: Float,
        dst: Vector,
        cmp: Compare,
        a: Vector,
        b: Vector,
        then: Vector,
        otherwise: Vector,
    },
    LoadScalar {
        dst: Scalar,
        width: Width,
        addr: Addr,
    },
    /// Store of the low `width` bits.
    StoreScalar {
        addr: Addr,
        width: Width,
        src: Scalar,
    },
    Imm {
        dst: Scalar,
        value: i64,
    },
    Move {
        dst: Scalar,
        src: Scalar,
    },
    /// `dst = base + index * scale + bytes`.
    Lea {
        dst: Scalar,
        addr: Addr,
    },
    /// `dst += src`.
    AddScalar {
        dst: Scalar,
        src: Scalar,
    },
    /// `dst -= src`.
    SubScalar {
        dst: Scalar,
        src: Scalar,
    },
    AddImm {
        dst: Scalar,
        value: i32,
    },
    /// `dst *= value`.
    MulImm {
        dst: Scalar,
        value: i32,
    },
    ShlImm {
        dst: Scalar,
        bits: u8,
    },
    /// Logical.
    ShrImm {
        dst: Scalar,
        bits: u8,
    },
    /// `dst &= mask`, zero-extended.
    AndImm {
        dst: Scalar,
        mask: u32,
    },
    /// `dst = src & 0xffff`.
    Low16 {
        dst: Scalar,
        src: Scalar,
    },
    /// A hint that an emitter may drop. `far` asks for the second-level cache only.
    Prefetch {
        addr: Addr,
        far: bool,
    },
    /// `while count != 0 { body; count -= 1 }`. The body may read `count`, which is 0 afterwards.
    Loop {
        count: Scalar,
        body: Vec<Op>,
    },
}

/// What one pass of a loop takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopCost {
    /// Operations, each an instruction of x86-64 where its operands are in registers, and two for the loop.
    pub instructions: usize,
    /// Products that are added, of all lanes.
    pub multiply_adds: usize,
}

/// A finished kernel: its operations and the registers they use.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub name: String,
    /// 32-bit lanes of a vector register: 4, 8 or 16.
    pub vl: usize,
    pub n_vectors: usize,
    pub n_scalars: usize,
    pub n_slots: usize,
    pub ops: Vec<Op>,
}

impl Program {
    /// The innermost loop with the most multiply-adds, `None` if no loop has any.
    pub fn main_loop(&self) -> Option<LoopCost> {
        let mut found = None;
        self.innermost(&self.ops, &mut |body| {
            let cost = LoopCost {
                instructions: body.len() + 2,
                multiply_adds: body.iter().map(|op| self.multiply_adds(op)).sum(),
            };
            let most = found.map_or(0, |f: LoopCost| f.multiply_adds);
            if most < cost.multiply_adds {
                found = Some(cost);
            }
        });
        found
    }

    fn innermost(&self, ops: &[Op], each: &mut impl FnMut(&[Op])) {
        for op in ops {
            if let Op::Loop { body, .. } = op {
                let is_innermost = !body.iter().any(|op| matches!(op, Op::Loop { .. }));
                if is_innermost {
                    each(body);
                } else {
                    self.innermost(body, each);
                }
            }
        }
    }

    fn multiply_adds(&self, op: &Op) -> usize {
        let products = match op {
            Op::Fma { .. } | Op::Fnma { .. } | Op::MulAdd { .. } => 1,
            Op::Dot { .. } => 4,
            Op::Binary {
                op: Binary::BytePairs,
                ..
            } => 4,
            _ => 0,
        };
        products * self.vl
    }
}
