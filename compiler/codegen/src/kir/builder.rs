//! Writes kernels: one method per operation, and explicit allocation of registers.
//!
//! Registers are allocated lowest number first and map one to one to machine registers, so the kernel writer decides
//! what stays in a register. Scalars beyond [`MAX_SCALARS`] become stack slots: allocate what inner loops use first.

use super::{
    Addr, Binary, Compare, Float, Op, Operand, Program, Scalar, Scale, Shift, Unary, Vector, Width,
    at,
};

/// Scalar registers every emitter has, the argument pointer among them.
pub(super) const MAX_SCALARS: usize = 14;

/// Writes one [`Program`].
pub struct Builder {
    name: String,
    vl: usize,
    vectors: Numbers,
    scalars: Numbers,
    slots: Numbers,
    blocks: Vec<Vec<Op>>,
}

/// A set of numbers handed out lowest first.
#[derive(Default)]
struct Numbers {
    used: Vec<bool>,
}

impl Numbers {
    fn take(&mut self) -> u8 {
        let free = self
            .used
            .iter()
            .position(|used| !used)
            .unwrap_or(self.used.len());
        if free == self.used.len() {
            self.used.push(true);
        } else {
            self.used[free] = true;
        }
        u8::try_from(free).unwrap_or(u8::MAX)
    }

    fn give(&mut self, n: u8) {
        debug_assert!(self.used[n as usize], "register {n} freed twice");
        self.used[n as usize] = false;
    }
}

impl Builder {
    /// Starts a kernel over vectors of `vl` lanes (4, 8 or 16).
    pub fn new(name: impl Into<String>, vl: usize) -> Self {
        let mut scalars = Numbers::default();
        scalars.take();
        Builder {
            name: name.into(),
            vl,
            vectors: Numbers::default(),
            scalars,
            slots: Numbers::default(),
            blocks: vec![Vec::new()],
        }
    }

    /// Lanes of a vector register.
    pub fn vl(&self) -> usize {
        self.vl
    }

    /// Bytes of a vector register.
    pub fn vector_bytes(&self) -> i32 {
        (self.vl * 4) as i32
    }

    /// The argument array. It may be freed once all arguments are read.
    pub fn args(&self) -> Scalar {
        Scalar::Register(0)
    }

    /// Allocates a scalar and loads argument `i` into it.
    pub fn arg(&mut self, i: usize) -> Scalar {
        let s = self.scalar();
        self.load_scalar(s, Width::B64, at(self.args(), (i * 8) as i32));
        s
    }

    /// Allocates a vector register. More than the machine has is an error of the emitter.
    pub fn vector(&mut self) -> Vector {
        Vector(self.vectors.take())
    }

    pub fn vectors(&mut self, n: usize) -> Vec<Vector> {
        (0..n).map(|_| self.vector()).collect()
    }

    pub fn free_vector(&mut self, v: Vector) {
        self.vectors.give(v.0);
    }

    pub fn free_vectors(&mut self, vs: &[Vector]) {
        for &v in vs {
            self.free_vector(v);
        }
    }

    /// Allocates a scalar register, or a stack slot when none is left.
    pub fn scalar(&mut self) -> Scalar {
        let in_use = self.scalars.used.iter().filter(|used| **used).count();
        if in_use < MAX_SCALARS {
            Scalar::Register(self.scalars.take())
        } else {
            self.slot()
        }
    }

    /// Allocates a stack slot, for a scalar that no inner loop uses.
    pub fn slot(&mut self) -> Scalar {
        Scalar::Slot(self.slots.take())
    }

    pub fn free_scalar(&mut self, s: Scalar) {
        match s {
            Scalar::Register(n) => self.scalars.give(n),
            Scalar::Slot(n) => self.slots.give(n),
        }
    }

    pub fn free_scalars(&mut self, ss: &[Scalar]) {
        for &s in ss {
            self.free_scalar(s);
        }
    }

    fn op(&mut self, op: Op) {
        if let Some(block) = self.blocks.last_mut() {
            block.push(op);
        }
    }

    pub fn load(&mut self, dst: Vector, addr: Addr) {
        self.op(Op::Load { dst, addr });
    }

    pub fn store(&mut self, addr: Addr, src: Vector) {
        self.op(Op::Store { addr, src });
    }

    /// Loads `vl / 2` f32 in the low half of the lanes.
    pub fn load_half(&mut self, dst: Vector, addr: Addr) {
        self.op(Op::LoadHalf { dst, addr });
    }

    /// Stores the low half of the lanes.
    pub fn store_half(&mut self, addr: Addr, src: Vector) {
        self.op(Op::StoreHalf { addr, src });
    }

    /// Every f64 lane = the f64 at `addr`.
    pub fn broadcast64(&mut self, dst: Vector, addr: Addr) {
        self.op(Op::Broadcast64 { dst, addr });
    }

    pub fn broadcast(&mut self, dst: Vector, addr: Addr) {
        self.op(Op::Broadcast { dst, addr });
    }

    pub fn broadcast4(&mut self, dst: Vector, addr: Addr) {
        self.op(Op::Broadcast4 { dst, addr });
    }

    pub fn splat_lane(&mut self, dst: Vector, src: Vector, lane: u8) {
        self.op(Op::SplatLane {
            dst,
            src,
            lane: lane & 3,
        });
    }

    pub fn constant(&mut self, dst: Vector, value: f32) {
        self.constant_bits(dst, value.to_bits());
    }

    pub fn constant_bits(&mut self, dst: Vector, bits: u32) {
        self.op(if bits == 0 {
            Op::Zero { dst }
        } else {
            Op::Const { dst, bits }
        });
    }

    /// Every f64 lane = `value`.
    pub fn constant64(&mut self, dst: Vector, value: f64) {
        self.constant64_bits(dst, value.to_bits());
    }

    pub fn constant64_bits(&mut self, dst: Vector, bits: u64) {
        self.op(if bits == 0 {
            Op::Zero { dst }
        } else {
            Op::Const64 { dst, bits }
        });
    }

    /// Every lane of this kind = `value`.
    pub fn number(&mut self, float: Float, dst: Vector, value: f64) {
        match float {
            Float::F32 => self.constant(dst, value as f32),
            Float::F64 => self.constant64(dst, value),
        }
    }

    pub fn zero(&mut self, dst: Vector) {
        self.op(Op::Zero { dst });
    }

    /// `dst = src`; nothing if they are the same register.
    pub fn copy(&mut self, dst: Vector, src: Vector) {
        if dst != src {
            self.op(Op::Copy { dst, src });
        }
    }

    pub fn binary(&mut self, op: Binary, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.op(Op::Binary {
            op,
            dst,
            a,
            b: b.into(),
        });
    }

    pub fn add(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Add, dst, a, b);
    }

    pub fn sub(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Sub, dst, a, b);
    }

    pub fn mul(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Mul, dst, a, b);
    }

    pub fn div(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Div, dst, a, b);
    }

    pub fn max(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Max, dst, a, b);
    }

    pub fn min(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.binary(Binary::Min, dst, a, b);
    }

    /// `acc += a * b`.
    pub fn fma(&mut self, acc: Vector, a: Vector, b: impl Into<Operand>) {
        self.op(Op::Fma {
            acc,
            a,
            b: b.into(),
        });
    }

    /// `acc -= a * b`.
    pub fn fnma(&mut self, acc: Vector, a: Vector, b: impl Into<Operand>) {
        self.op(Op::Fnma {
            acc,
            a,
            b: b.into(),
        });
    }

    /// `dst = dst * a + b`.
    pub fn mul_add(&mut self, dst: Vector, a: Vector, b: impl Into<Operand>) {
        self.op(Op::MulAdd {
            dst,
            a,
            b: b.into(),
        });
    }

    /// `acc += the dot product of four unsigned bytes of a and four signed ones of b`, in each lane.
    pub fn dot(&mut self, acc: Vector, a: Vector, b: impl Into<Operand>) {
        self.op(Op::Dot {
            acc,
            a,
            b: b.into(),
        });
    }

    pub fn unary(&mut self, op: Unary, dst: Vector, src: Vector) {
        self.op(Op::Unary { op, dst, src });
    }

    /// Shifts i32 lanes by `bits` (0 to 31), i16 ones (0 to 15), or i64 ones (0 to 63).
    pub fn shift(&mut self, op: Shift, dst: Vector, src: Vector, bits: u8) {
        self.op(Op::Shift {
            op,
            dst,
            src,
            bits: bits & 63,
        });
    }

    /// `dst = a cmp b ? then : otherwise`; `dst` must be neither `then` nor `otherwise`.
    pub fn select(
        &mut self,
        dst: Vector,
        comparison: (Compare, Vector, Vector),
        then: Vector,
        otherwise: Vector,
    ) {
        self.select_of(Float::F32, dst, comparison, then, otherwise);
    }

    /// As [`select`](Builder::select), by a comparison of lanes of a kind.
    pub fn select_of(
        &mut self,
        float: Float,
        dst: Vector,
        (cmp, a, b): (Compare, Vector, Vector),
        then: Vector,
        otherwise: Vector,
    ) {
        self.op(Op::Select {
            float,
            dst,
            cmp,
            a,
            b,
            then,
            otherwise,
        });
    }

    pub fn load_scalar(&mut self, dst: Scalar, width: Width, addr: Addr) {
        self.op(Op::LoadScalar { dst, width, addr });
    }

    pub fn store_scalar(&mut self, addr: Addr, width: Width, src: Scalar) {
        self.op(Op::StoreScalar { addr, width, src });
    }

    pub fn imm(&mut self, dst: Scalar, value: i64) {
        self.op(Op::Imm { dst, value });
    }

    pub fn mov(&mut self, dst: Scalar, src: Scalar) {
        if dst != src {
            self.op(Op::Move { dst, src });
        }
    }

    /// `dst = addr`, without a memory access.
    pub fn lea(&mut self, dst: Scalar, addr: Addr) {
        self.op(Op::Lea { dst, addr });
    }

    /// `dst = a + b`.
    pub fn sum(&mut self, dst: Scalar, a: Scalar, b: Scalar) {
        self.lea(dst, at(a, 0).index(b, Scale::X1));
    }

    pub fn add_scalar(&mut self, dst: Scalar, src: Scalar) {
        self.op(Op::AddScalar { dst, src });
    }

    pub fn sub_scalar(&mut self, dst: Scalar, src: Scalar) {
        self.op(Op::SubScalar { dst, src });
    }

    pub fn add_imm(&mut self, dst: Scalar, value: i32) {
        if value != 0 {
            self.op(Op::AddImm { dst, value });
        }
    }

    pub fn mul_imm(&mut self, dst: Scalar, value: i32) {
        self.op(Op::MulImm { dst, value });
    }

    pub fn shl_imm(&mut self, dst: Scalar, bits: u8) {
        if bits != 0 {
            self.op(Op::ShlImm { dst, bits });
        }
    }

    pub fn shr_imm(&mut self, dst: Scalar, bits: u8) {
        if bits != 0 {
            self.op(Op::ShrImm { dst, bits });
        }
    }

    pub fn and_imm(&mut self, dst: Scalar, mask: u32) {
        self.op(Op::AndImm { dst, mask });
    }

    /// `dst = src & 0xffff`.
    pub fn low16(&mut self, dst: Scalar, src: Scalar) {
        self.op(Op::Low16 { dst, src });
    }

    /// Asks for the cache line at `addr`, in the first-level cache.
    pub fn prefetch(&mut self, addr: Addr) {
        self.op(Op::Prefetch { addr, far: false });
    }

    /// Asks for the cache line at `addr`, in the second-level cache.
    pub fn prefetch_far(&mut self, addr: Addr) {
        self.op(Op::Prefetch { addr, far: true });
    }

    /// Runs `body` `count` times, counting the register down to 0. With 0 the body never runs.
    pub fn repeat(&mut self, count: Scalar, body: impl FnOnce(&mut Builder)) {
        self.blocks.push(Vec::new());
        body(self);
        let body = self.blocks.pop().unwrap_or_default();
        self.op(Op::Loop { count, body });
    }

    /// Ends the kernel.
    pub fn finish(mut self) -> Program {
        Program {
            name: self.name,
            vl: self.vl,
            n_vectors: self.vectors.used.len(),
            n_scalars: self.scalars.used.len(),
            n_slots: self.slots.used.len(),
            ops: self.blocks.pop().unwrap_or_default(),
        }
    }
}
