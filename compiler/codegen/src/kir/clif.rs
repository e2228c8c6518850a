//! Lowers the kernel IR to Cranelift IR: a vector register of `vl` lanes becomes `vl / 4` variables of type `f32x4`.
//!
//! Portable to every instruction set Cranelift has, and the fallback on x86-64 without AVX2. Slots are variables like
//! any scalar, prefetches are dropped, loops are top-tested.

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{
    F32, F32X4, F64, F64X2, I8, I8X16, I16, I16X8, I32, I32X4, I64, I64X2,
};
use cranelift_codegen::ir::{
    AbiParam, Endianness, Function, InstBuilder, MemFlagsData, Signature, Type, UserFuncName, Value,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use target_lexicon::PointerWidth;

use super::{
    Addr, Binary, Compare, Float, Half, Op, Operand, Piece, Program, Scalar, Shift, Unary, Vector,
    Width,
};
use crate::features::{CallingConvention, CpuFeatures, Isa};

/// Lowers `program` to a Cranelift function. Without the `fma` feature on x86-64 products are rounded before they are
/// added, because Cranelift would call a library function per lane.
pub fn emit(program: &Program, features: &CpuFeatures) -> Function {
    let call_conv = match features.convention {
        CallingConvention::SystemV => CallConv::SystemV,
        CallingConvention::Win64 => CallConv::WindowsFastcall,
    };
    let mut signature = Signature::new(call_conv);
    signature.params.push(AbiParam::new(I64));
    let mut func = Function::with_name_signature(UserFuncName::user(0, 0), signature);
    let mut context = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut func, &mut context);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    b.seal_block(entry);
    let pieces = program.vl / 4;
    let vectors = (0..program.n_vectors)
        .map(|_| (0..pieces).map(|_| b.declare_var(F32X4)).collect())
        .collect();
    let scalars: Vec<Variable> = (0..program.n_scalars).map(|_| b.declare_var(I64)).collect();
    let slots = (0..program.n_slots).map(|_| b.declare_var(I64)).collect();
    let args = b.block_params(entry)[0];
    b.def_var(scalars[0], args);
    let fused = features.isa != Isa::X64 || features.fma;
    let mut e = Emitter {
        b,
        vectors,
        scalars,
        slots,
        pieces,
        fused,
    };
    e.ops(&program.ops);
    e.b.ins().return_(&[]);
    let Emitter { b, .. } = e;
    b.finalize(TargetFrontendConfig {
        default_call_conv: call_conv,
        pointer_width: PointerWidth::U64,
        page_size_align_log2: 12,
    });
    func
}

struct Emitter<'a> {
    b: FunctionBuilder<'a>,
    vectors: Vec<Vec<Variable>>,
    scalars: Vec<Variable>,
    slots: Vec<Variable>,
    pieces: usize,
    fused: bool,
}

const FLAGS: MemFlagsData = MemFlagsData::trusted();

impl Emitter<'_> {
    fn ops(&mut self, ops: &[Op]) {
        for op in ops {
            self.op(op);
        }
    }

    fn scalar_var(&self, s: Scalar) -> Variable {
        match s {
            Scalar::Register(n) => self.scalars[n as usize],
            Scalar::Slot(n) => self.slots[n as usize],
        }
    }

    fn scalar(&mut self, s: Scalar) -> Value {
        let var = self.scalar_var(s);
        self.b.use_var(var)
    }

    fn set_scalar(&mut self, s: Scalar, value: Value) {
        let var = self.scalar_var(s);
        self.b.def_var(var, value);
    }

    fn update(&mut self, s: Scalar, f: impl FnOnce(&mut FunctionBuilder<'_>, Value) -> Value) {
        let old = self.scalar(s);
        let new = f(&mut self.b, old);
        self.set_scalar(s, new);
    }

    fn vector(&mut self, v: Vector, piece: usize) -> Value {
        let var = self.vectors[v.0 as usize][piece];
        self.b.use_var(var)
    }

    fn set_vector(&mut self, v: Vector, piece: usize, value: Value) {
        let var = self.vectors[v.0 as usize][piece];
        self.b.def_var(var, value);
    }

    /// Base pointer (index included) and constant offset of an address.
    fn address(&mut self, addr: &Addr) -> (Value, i32) {
        let base = self.scalar(addr.base);
        let Some((index, scale)) = addr.index else {
            return (base, addr.bytes);
        };
        let mut index = self.scalar(index);
        if scale as u8 > 1 {
            index = self
                .b
                .ins()
                .ishl_imm_u(index, i64::from((scale as u8).trailing_zeros()));
        }
        (self.b.ins().iadd(base, index), addr.bytes)
    }

    fn load(&mut self, addr: &Addr, piece: usize) -> Value {
        let (p, bytes) = self.address(addr);
        self.b
            .ins()
            .load(F32X4, FLAGS, p, bytes + piece as i32 * 16)
    }

    fn splat(&mut self, addr: &Addr) -> Value {
        let (p, bytes) = self.address(addr);
        let x = self.b.ins().load(F32, FLAGS, p, bytes);
        self.b.ins().splat(F32X4, x)
    }

    fn splat64(&mut self, addr: &Addr) -> Value {
        let (p, bytes) = self.address(addr);
        let x = self.b.ins().load(F64, FLAGS, p, bytes);
        let x = self.b.ins().splat(F64X2, x);
        self.floats(x)
    }

    fn constant(&mut self, bits: u32) -> Value {
        self.constant64(u64::from(bits) << 32 | u64::from(bits))
    }

    fn constant64(&mut self, bits: u64) -> Value {
        let mut bytes = [0u8; 16];
        for lane in bytes.chunks_exact_mut(8) {
            lane.copy_from_slice(&bits.to_le_bytes());
        }
        let handle = self.b.func.dfg.constants.insert(bytes.as_slice().into());
        self.b.ins().vconst(F32X4, handle)
    }

    fn operand(&mut self, operand: &Operand, piece: usize) -> Value {
        match operand {
            Operand::Vector(v) => self.vector(*v, piece),
            Operand::Memory(a) => self.load(a, piece),
            Operand::Broadcast(a) => self.splat(a),
            Operand::Const(bits) => self.constant(*bits),
            Operand::Const64(bits) => self.constant64(*bits),
        }
    }

    fn ints(&mut self, v: Value) -> Value {
        self.b.ins().bitcast(I32X4, MemFlagsData::new(), v)
    }

    fn floats(&mut self, v: Value) -> Value {
        let flags = match self.b.func.dfg.value_type(v) {
            I8X16 | I16X8 | F64X2 | I64X2 => {
                MemFlagsData::new().with_endianness(Endianness::Little)
            }
            _ => MemFlagsData::new(),
        };
        self.b.ins().bitcast(F32X4, flags, v)
    }

    /// A register as lanes of another width.
    fn lanes(&mut self, ty: Type, v: Value) -> Value {
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.b.ins().bitcast(ty, flags, v)
    }

    fn words(&mut self, v: Value) -> Value {
        self.lanes(I16X8, v)
    }

    fn doubles(&mut self, v: Value) -> Value {
        self.lanes(F64X2, v)
    }

    fn multiply_add(&mut self, a: Value, b: Value, c: Value) -> Value {
        if self.fused {
            self.b.ins().fma(a, b, c)
        } else {
            let product = self.b.ins().fmul(a, b);
            self.b.ins().fadd(product, c)
        }
    }

    /// `then` where the lanes of `a` and `b`, `f32` or `f64` by their type, compare so.
    fn choose(&mut self, cc: FloatCC, (a, b): (Value, Value), then: Value, or: Value) -> Value {
        let mask = self.b.ins().fcmp(cc, a, b);
        let mask = self.floats(mask);
        self.b.ins().bitselect(mask, then, or)
    }

    fn binary(&mut self, op: Binary, x: Value, y: Value) -> Value {
        match op {
            Binary::Add => self.b.ins().fadd(x, y),
            Binary::Sub => self.b.ins().fsub(x, y),
            Binary::Mul => self.b.ins().fmul(x, y),
            Binary::Div => self.b.ins().fdiv(x, y),
            Binary::Max => self.choose(FloatCC::LessThan, (y, x), x, y),
            Binary::Min => self.choose(FloatCC::LessThan, (x, y), x, y),
            Binary::And => self.b.ins().band(x, y),
            Binary::AndNot => self.b.ins().band_not(y, x),
            Binary::Or => self.b.ins().bor(x, y),
            Binary::Xor => self.b.ins().bxor(x, y),
            Binary::IntAdd | Binary::IntSub | Binary::IntMul => {
                let (x, y) = (self.ints(x), self.ints(y));
                let z = match op {
                    Binary::IntAdd => self.b.ins().iadd(x, y),
                    Binary::IntSub => self.b.ins().isub(x, y),
                    _ => self.b.ins().imul(x, y),
                };
                self.floats(z)
            }
            Binary::WordAdd => {
                let (x, y) = (self.words(x), self.words(y));
                let z = self.b.ins().iadd(x, y);
                self.floats(z)
            }
            Binary::WordPairs => {
                let (x, y) = (self.words(x), self.words(y));
                let z = self.word_pairs(x, y);
                self.floats(z)
            }
            Binary::BytePairs => {
                let ([x0, x1], [y0, y1]) = (self.unsigned_bytes(x), self.signed_bytes(y));
                // A product of an unsigned and a signed byte fits 16 bits.
                let (even, odd) = (self.b.ins().imul(x0, y0), self.b.ins().imul(x1, y1));
                let z = self.b.ins().sadd_sat(even, odd);
                self.floats(z)
            }
            Binary::Interleave(piece, half) => {
                let (x, y) = (self.lanes(I8X16, x), self.lanes(I8X16, y));
                let size = match piece {
                    Piece::Byte => 1,
                    Piece::Word => 2,
                };
                let first = match half {
                    Half::Low => 0,
                    Half::High => 8,
                };
                let places = [0u8; 16].map({
                    let mut i = 0;
                    move |_| {
                        let (piece, byte) = (i / size, i % size);
                        i += 1;
                        piece % 2 * 16 + first + piece / 2 * size + byte
                    }
                });
                let places = self.b.func.dfg.immediates.push(places.as_slice().into());
                let z = self.b.ins().shuffle(x, y, places);
                self.floats(z)
            }
            Binary::Add64 | Binary::Sub64 | Binary::Mul64 | Binary::Div64 => {
                let (x, y) = (self.doubles(x), self.doubles(y));
                let z = match op {
                    Binary::Add64 => self.b.ins().fadd(x, y),
                    Binary::Sub64 => self.b.ins().fsub(x, y),
                    Binary::Mul64 => self.b.ins().fmul(x, y),
                    _ => self.b.ins().fdiv(x, y),
                };
                self.floats(z)
            }
            Binary::Max64 | Binary::Min64 => {
                let (a, b) = (self.doubles(x), self.doubles(y));
                let pair = if op == Binary::Max64 { (b, a) } else { (a, b) };
                self.choose(FloatCC::LessThan, pair, x, y)
            }
            Binary::IntAdd64 => {
                let (x, y) = (self.lanes(I64X2, x), self.lanes(I64X2, y));
                let z = self.b.ins().iadd(x, y);
                self.floats(z)
            }
        }
    }

    /// The sums of products of neighbouring i16, as i32; spelt so that x64 has one instruction for it.
    fn word_pairs(&mut self, x: Value, y: Value) -> Value {
        let (x0, y0) = (self.b.ins().swiden_low(x), self.b.ins().swiden_low(y));
        let low = self.b.ins().imul(x0, y0);
        let (x1, y1) = (self.b.ins().swiden_high(x), self.b.ins().swiden_high(y));
        let high = self.b.ins().imul(x1, y1);
        self.b.ins().iadd_pairwise(low, high)
    }

    /// The even and the odd bytes as i16, without sign.
    fn unsigned_bytes(&mut self, x: Value) -> [Value; 2] {
        let x = self.words(x);
        let n = self.b.ins().iconst(I32, 8);
        let high = self.b.ins().ishl(x, n);
        [self.b.ins().ushr(high, n), self.b.ins().ushr(x, n)]
    }

    /// The even and the odd bytes as i16, with sign.
    fn signed_bytes(&mut self, x: Value) -> [Value; 2] {
        let x = self.words(x);
        let n = self.b.ins().iconst(I32, 8);
        let high = self.b.ins().ishl(x, n);
        [self.b.ins().sshr(high, n), self.b.ins().sshr(x, n)]
    }

    fn dot(&mut self, acc: Value, x: Value, y: Value) -> Value {
        let ([x0, x1], [y0, y1]) = (self.unsigned_bytes(x), self.signed_bytes(y));
        let (even, odd) = (self.word_pairs(x0, y0), self.word_pairs(x1, y1));
        let sum = self.b.ins().iadd(even, odd);
        let acc = self.ints(acc);
        let sum = self.b.ins().iadd(acc, sum);
        self.floats(sum)
    }

    fn unary(&mut self, op: Unary, x: Value) -> Value {
        match op {
            Unary::Sqrt => self.b.ins().sqrt(x),
            Unary::ToInt => {
                let x = self.b.ins().nearest(x);
                let i = self.b.ins().fcvt_to_sint_sat(I32X4, x);
                self.floats(i)
            }
            Unary::ToFloat => {
                let x = self.ints(x);
                self.b.ins().fcvt_from_sint(F32X4, x)
            }
            Unary::Sqrt64 => {
                let x = self.doubles(x);
                let y = self.b.ins().sqrt(x);
                self.floats(y)
            }
            Unary::Widen | Unary::Narrow => unreachable!("crosses the pieces of a register"),
        }
    }

    /// The low half of the `f32` lanes of all pieces, as `f64`.
    fn widen(&mut self, x: &[Value]) -> Vec<Value> {
        let mut result = Vec::new();
        for piece in 0..x.len() {
            let half = self.lanes(I64X2, x[piece / 2]);
            let half = self.b.ins().extractlane(half, (piece % 2) as u8);
            let half = self.b.ins().splat(I64X2, half);
            let half = self.floats(half);
            let wide = self.b.ins().fvpromote_low(half);
            result.push(self.floats(wide));
        }
        result
    }

    /// The `f64` lanes of all pieces as `f32`, in the low half; zeros above.
    fn narrow(&mut self, x: &[Value]) -> Vec<Value> {
        let mut narrowed = Vec::new();
        for &piece in x {
            let piece = self.doubles(piece);
            narrowed.push(self.b.ins().fvdemote(piece));
        }
        let mut result = Vec::new();
        for pair in narrowed.chunks(2) {
            let &[low, high] = pair else {
                result.push(pair[0]);
                continue;
            };
            let (low, high) = (self.lanes(I64X2, low), self.lanes(I64X2, high));
            let high = self.b.ins().extractlane(high, 0);
            let both = self.b.ins().insertlane(low, high, 1);
            result.push(self.floats(both));
        }
        let zero = self.constant(0);
        result.resize(x.len(), zero);
        result
    }

    fn shift(&mut self, op: Shift, x: Value, bits: u8) -> Value {
        let x = match op {
            Shift::Left | Shift::RightLogical | Shift::RightArithmetic => self.ints(x),
            Shift::WordLeft | Shift::WordRightLogical | Shift::WordRightArithmetic => self.words(x),
            Shift::Left64 | Shift::RightLogical64 => self.lanes(I64X2, x),
        };
        let n = self.b.ins().iconst(I32, i64::from(bits));
        let y = match op {
            Shift::Left | Shift::WordLeft | Shift::Left64 => self.b.ins().ishl(x, n),
            Shift::RightLogical | Shift::WordRightLogical | Shift::RightLogical64 => {
                self.b.ins().ushr(x, n)
            }
            Shift::RightArithmetic | Shift::WordRightArithmetic => self.b.ins().sshr(x, n),
        };
        self.floats(y)
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Load { dst, addr } => {
                for q in 0..self.pieces {
                    let x = self.load(addr, q);
                    self.set_vector(*dst, q, x);
                }
            }
            Op::Store { addr, src } => {
                for q in 0..self.pieces {
                    let x = self.vector(*src, q);
                    let (p, bytes) = self.address(addr);
                    self.b.ins().store(FLAGS, x, p, bytes + q as i32 * 16);
                }
            }
            Op::LoadHalf { dst, addr } => {
                let zero = self.constant(0);
                for q in 0..self.pieces {
                    let x = if self.pieces == 1 {
                        let (p, bytes) = self.address(addr);
                        let x = self.b.ins().load(F64, FLAGS, p, bytes);
                        let x = self.b.ins().scalar_to_vector(F64X2, x);
                        self.floats(x)
                    } else if q < self.pieces / 2 {
                        self.load(addr, q)
                    } else {
                        zero
                    };
                    self.set_vector(*dst, q, x);
                }
            }
            Op::StoreHalf { addr, src } => {
                for q in 0..self.pieces.div_ceil(2) {
                    let mut x = self.vector(*src, q);
                    if self.pieces == 1 {
                        let doubles = self.doubles(x);
                        x = self.b.ins().extractlane(doubles, 0);
                    }
                    let (p, bytes) = self.address(addr);
                    self.b.ins().store(FLAGS, x, p, bytes + q as i32 * 16);
                }
            }
            Op::Broadcast64 { dst, addr } => {
                let x = self.splat64(addr);
                self.set_all(*dst, x);
            }
            Op::Broadcast { dst, addr } => {
                let x = self.splat(addr);
                self.set_all(*dst, x);
            }
            Op::Broadcast4 { dst, addr } => {
                let x = self.load(addr, 0);
                self.set_all(*dst, x);
            }
            Op::SplatLane { dst, src, lane } => {
                for q in 0..self.pieces {
                    let x = self.vector(*src, q);
                    let x = self.b.ins().extractlane(x, *lane);
                    let x = self.b.ins().splat(F32X4, x);
                    self.set_vector(*dst, q, x);
                }
            }
            Op::Const { dst, bits } => {
                let x = self.constant(*bits);
                self.set_all(*dst, x);
            }
            Op::Const64 { dst, bits } => {
                let x = self.constant64(*bits);
                self.set_all(*dst, x);
            }
            Op::Zero { dst } => {
                let x = self.constant(0);
                self.set_all(*dst, x);
            }
            Op::Copy { dst, src } => {
                for q in 0..self.pieces {
                    let x = self.vector(*src, q);
                    self.set_vector(*dst, q, x);
                }
            }
            Op::Binary { op, dst, a, b } => {
                for q in 0..self.pieces {
                    let (x, y) = (self.vector(*a, q), self.operand(b, q));
                    let z = self.binary(*op, x, y);
                    self.set_vector(*dst, q, z);
                }
            }
            Op::Fma { acc, a, b } => {
                for q in 0..self.pieces {
                    let (x, y) = (self.vector(*a, q), self.operand(b, q));
                    let c = self.vector(*acc, q);
                    let z = self.multiply_add(x, y, c);
                    self.set_vector(*acc, q, z);
                }
            }
            Op::Fnma { acc, a, b } => {
                for q in 0..self.pieces {
                    let (x, y) = (self.vector(*a, q), self.operand(b, q));
                    let x = self.b.ins().fneg(x);
                    let c = self.vector(*acc, q);
                    let z = self.multiply_add(x, y, c);
                    self.set_vector(*acc, q, z);
                }
            }
            Op::MulAdd { dst, a, b } => {
                for q in 0..self.pieces {
                    let (x, y) = (self.vector(*dst, q), self.vector(*a, q));
                    let c = self.operand(b, q);
                    let z = self.multiply_add(x, y, c);
                    self.set_vector(*dst, q, z);
                }
            }
            Op::Dot { acc, a, b } => {
                for q in 0..self.pieces {
                    let (x, y) = (self.vector(*a, q), self.operand(b, q));
                    let c = self.vector(*acc, q);
                    let z = self.dot(c, x, y);
                    self.set_vector(*acc, q, z);
                }
            }
            Op::Unary {
                op: op @ (Unary::Widen | Unary::Narrow),
                dst,
                src,
            } => {
                let x: Vec<Value> = (0..self.pieces).map(|q| self.vector(*src, q)).collect();
                let z = match op {
                    Unary::Widen => self.widen(&x),
                    _ => self.narrow(&x),
                };
                for (q, z) in z.into_iter().enumerate() {
                    self.set_vector(*dst, q, z);
                }
            }
            Op::Unary { op, dst, src } => {
                for q in 0..self.pieces {
                    let x = self.vector(*src, q);
                    let z = self.unary(*op, x);
                    self.set_vector(*dst, q, z);
                }
            }
            Op::Shift { op, dst, src, bits } => {
                for q in 0..self.pieces {
                    let x = self.vector(*src, q);
                    let z = self.shift(*op, x, *bits);
                    self.set_vector(*dst, q, z);
                }
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
                let cc = match cmp {
                    Compare::Eq => FloatCC::Equal,
                    Compare::Ne => FloatCC::NotEqual,
                    Compare::Lt => FloatCC::LessThan,
                    Compare::Le => FloatCC::LessThanOrEqual,
                    Compare::Unordered => FloatCC::Unordered,
                };
                for q in 0..self.pieces {
                    let mut pair = (self.vector(*a, q), self.vector(*b, q));
                    if *float == Float::F64 {
                        pair = (self.doubles(pair.0), self.doubles(pair.1));
                    }
                    let (x, y) = (self.vector(*then, q), self.vector(*otherwise, q));
                    let z = self.choose(cc, pair, x, y);
                    self.set_vector(*dst, q, z);
                }
            }
            Op::LoadScalar { dst, width, addr } => {
                let (p, bytes) = self.address(addr);
                let x = match width {
                    Width::B8 => self.b.ins().uload8(I64, FLAGS, p, bytes),
                    Width::B16 => self.b.ins().uload16(I64, FLAGS, p, bytes),
                    Width::B32 => self.b.ins().uload32(FLAGS, p, bytes),
                    Width::B64 => self.b.ins().load(I64, FLAGS, p, bytes),
                };
                self.set_scalar(*dst, x);
            }
            Op::StoreScalar { addr, width, src } => {
                let x = self.scalar(*src);
                let x = match width {
                    Width::B8 => self.b.ins().ireduce(I8, x),
                    Width::B16 => self.b.ins().ireduce(I16, x),
                    Width::B32 => self.b.ins().ireduce(I32, x),
                    Width::B64 => x,
                };
                let (p, bytes) = self.address(addr);
                self.b.ins().store(FLAGS, x, p, bytes);
            }
            Op::Imm { dst, value } => {
                let x = self.b.ins().iconst(I64, *value);
                self.set_scalar(*dst, x);
            }
            Op::Move { dst, src } => {
                let x = self.scalar(*src);
                self.set_scalar(*dst, x);
            }
            Op::Lea { dst, addr } => {
                let (p, bytes) = self.address(addr);
                let x = if bytes == 0 {
                    p
                } else {
                    self.b.ins().iadd_imm_s(p, i64::from(bytes))
                };
                self.set_scalar(*dst, x);
            }
            Op::AddScalar { dst, src } => {
                let y = self.scalar(*src);
                self.update(*dst, |b, x| b.ins().iadd(x, y));
            }
            Op::SubScalar { dst, src } => {
                let y = self.scalar(*src);
                self.update(*dst, |b, x| b.ins().isub(x, y));
            }
            Op::AddImm { dst, value } => {
                self.update(*dst, |b, x| b.ins().iadd_imm_s(x, i64::from(*value)));
            }
            Op::MulImm { dst, value } => {
                self.update(*dst, |b, x| b.ins().imul_imm_s(x, i64::from(*value)));
            }
            Op::ShlImm { dst, bits } => {
                self.update(*dst, |b, x| b.ins().ishl_imm_u(x, i64::from(*bits)));
            }
            Op::ShrImm { dst, bits } => {
                self.update(*dst, |b, x| b.ins().ushr_imm_u(x, i64::from(*bits)));
            }
            Op::AndImm { dst, mask } => {
                self.update(*dst, |b, x| b.ins().band_imm_u(x, i64::from(*mask)));
            }
            Op::Low16 { dst, src } => {
                let x = self.scalar(*src);
                let x = self.b.ins().band_imm_u(x, 0xffff);
                self.set_scalar(*dst, x);
            }
            Op::Prefetch { .. } => {}
            Op::Loop { count, body } => self.counted(*count, body),
        }
    }

    fn set_all(&mut self, dst: Vector, x: Value) {
        for q in 0..self.pieces {
            self.set_vector(dst, q, x);
        }
    }

    fn counted(&mut self, count: Scalar, body: &[Op]) {
        let [header, inside, after] = [(); 3].map(|()| self.b.create_block());
        self.b.ins().jump(header, &[]);
        self.b.switch_to_block(header);
        let n = self.scalar(count);
        let more = self.b.ins().icmp_imm_u(IntCC::NotEqual, n, 0);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        self.b.seal_block(inside);
        self.ops(body);
        self.update(count, |b, n| b.ins().iadd_imm_s(n, -1));
        self.b.ins().jump(header, &[]);
        self.b.seal_block(header);
        self.b.switch_to_block(after);
        self.b.seal_block(after);
    }
}
