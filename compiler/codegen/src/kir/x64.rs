//! Lowers the kernel IR to x86-64 machine code: VEX at 128 and 256 bits, EVEX at 512.
//!
//! Vector and scalar registers map one to one to machine registers, `rax` is the emitter's own, slots and constants live
//! on the stack and after the code. The code is position-independent, wants 64-byte alignment, makes no calls, and ends
//! in `vzeroupper`. System V and Win64 differ in the argument register and in what is saved.

mod assembler;

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use self::assembler::Assembler;
use super::{
    Addr, Binary, Compare, Float, Half, Op, Operand, Piece, Program, Scalar, Shift, Unary, Vector,
    Width,
};
use crate::EmitError;
use crate::features::{CallingConvention, CpuFeatures};

/// Machine registers of scalars 0 to 13, volatile ones first.
const SCALARS: [Register; super::builder::MAX_SCALARS] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::RCX,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::RBX,
    Register::RBP,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];
const SCRATCH: Register = Register::RAX;

/// Lowers `program` to machine code for a CPU.
///
/// # Errors
/// [`EmitError::Registers`] if the program needs more vector registers than its width has, or an address names two
/// slots; [`EmitError::Unsupported`] for an embedded broadcast below 512 bits, a select into one of its sources, or a
/// dot product of bytes on a CPU without that instruction.
pub fn emit(program: &Program, features: &CpuFeatures) -> Result<Vec<u8>, EmitError> {
    let available = if program.vl == 16 { 32 } else { 16 };
    if program.n_vectors > available {
        return Err(EmitError::Registers {
            kernel: program.name.clone(),
            needed: program.n_vectors,
            available,
        });
    }
    let mut e = Emitter {
        asm: Assembler::default(),
        program,
        features,
    };
    e.function(features.convention)?;
    e.asm.finish()
}

struct Emitter<'a> {
    asm: Assembler,
    program: &'a Program,
    features: &'a CpuFeatures,
}

type Result0 = Result<(), EmitError>;

impl Emitter<'_> {
    fn function(&mut self, convention: CallingConvention) -> Result0 {
        let win64 = convention == CallingConvention::Win64;
        let first_saved = if win64 { 0 } else { 8 };
        let saved: Vec<Register> = SCALARS[..self.program.n_scalars.min(SCALARS.len())]
            .iter()
            .enumerate()
            .filter(|(i, _)| *i >= 8 || (first_saved == 0 && *i < 2))
            .map(|(_, r)| *r)
            .collect();
        for &r in &saved {
            self.asm.push(Instruction::with1(Code::Push_r64, r)?);
        }
        let saved_xmm = if win64 {
            6..self.program.n_vectors.clamp(6, 16)
        } else {
            0..0
        };
        let slots = (self.program.n_slots * 8) as i32;
        let frame = slots + saved_xmm.len() as i32 * 16;
        if frame > 0 {
            self.asm.push(Instruction::with2(
                Code::Sub_rm64_imm32,
                Register::RSP,
                frame,
            )?);
        }
        for (i, n) in saved_xmm.clone().enumerate() {
            let m = stack(slots + i as i32 * 16);
            let x = Register::XMM0 + n as u32;
            self.asm
                .push(Instruction::with2(Code::VEX_Vmovups_xmmm128_xmm, m, x)?);
        }
        if win64 {
            self.asm.push(Instruction::with2(
                Code::Mov_r64_rm64,
                Register::RDI,
                Register::RCX,
            )?);
        }
        self.ops(&self.program.ops)?;
        self.asm.push(Instruction::with(Code::VEX_Vzeroupper));
        for (i, n) in saved_xmm.enumerate() {
            let m = stack(slots + i as i32 * 16);
            let x = Register::XMM0 + n as u32;
            self.asm
                .push(Instruction::with2(Code::VEX_Vmovups_xmm_xmmm128, x, m)?);
        }
        if frame > 0 {
            self.asm.push(Instruction::with2(
                Code::Add_rm64_imm32,
                Register::RSP,
                frame,
            )?);
        }
        for &r in saved.iter().rev() {
            self.asm.push(Instruction::with1(Code::Pop_r64, r)?);
        }
        self.asm.push(Instruction::with(Code::Retnq));
        Ok(())
    }

    fn ops(&mut self, ops: &[Op]) -> Result0 {
        ops.iter().try_for_each(|op| self.op(op))
    }

    /// Picks the code of this program's width.
    fn code(&self, xmm: Code, ymm: Code, zmm: Code) -> Code {
        match self.program.vl {
            4 => xmm,
            8 => ymm,
            _ => zmm,
        }
    }

    fn vector(&self, v: Vector) -> Register {
        let base = match self.program.vl {
            4 => Register::XMM0,
            8 => Register::YMM0,
            _ => Register::ZMM0,
        };
        base + u32::from(v.0)
    }

    /// The low half of a vector, or all of it at 128 bits.
    fn half(&self, v: Vector) -> Register {
        let base = match self.program.vl {
            4 | 8 => Register::XMM0,
            _ => Register::YMM0,
        };
        base + u32::from(v.0)
    }

    /// The memory operand of an address; a slot in it is loaded into the scratch register first.
    fn memory(&mut self, addr: &Addr) -> Result<MemoryOperand, EmitError> {
        let index_is_slot = matches!(addr.index, Some((Scalar::Slot(_), _)));
        if index_is_slot && matches!(addr.base, Scalar::Slot(_)) {
            return Err(EmitError::TwoSlots {
                kernel: self.program.name.clone(),
            });
        }
        let base = self.in_register(addr.base)?;
        let bytes = i64::from(addr.bytes);
        Ok(match addr.index {
            None => MemoryOperand::with_base_displ(base, bytes),
            Some((index, scale)) => {
                let index = self.in_register(index)?;
                MemoryOperand::with_base_index_scale_displ_size(
                    base,
                    index,
                    scale as u32,
                    bytes,
                    u32::from(bytes != 0),
                )
            }
        })
    }

    fn in_register(&mut self, s: Scalar) -> Result<Register, EmitError> {
        match s {
            Scalar::Register(n) => Ok(SCALARS[n as usize]),
            Scalar::Slot(n) => {
                self.asm
                    .push(Instruction::with2(Code::Mov_r64_rm64, SCRATCH, slot(n))?);
                Ok(SCRATCH)
            }
        }
    }

    /// The register an operation should write, to be followed by [`Self::write_back`].
    fn target(s: Scalar) -> Register {
        match s {
            Scalar::Register(n) => SCALARS[n as usize],
            Scalar::Slot(_) => SCRATCH,
        }
    }

    fn write_back(&mut self, s: Scalar) -> Result0 {
        if let Scalar::Slot(n) = s {
            self.asm
                .push(Instruction::with2(Code::Mov_rm64_r64, slot(n), SCRATCH)?);
        }
        Ok(())
    }

    /// `code dst, imm` on a register or slot.
    fn with_imm(&mut self, code: Code, dst: Scalar, value: i32) -> Result0 {
        let i = match dst {
            Scalar::Register(n) => Instruction::with2(code, SCALARS[n as usize], value)?,
            Scalar::Slot(n) => Instruction::with2(code, slot(n), value)?,
        };
        self.asm.push(i);
        Ok(())
    }

    /// `code dst, src` for a code of the form `rm64, r64`.
    fn scalar_pair(&mut self, code: Code, dst: Scalar, src: Scalar) -> Result0 {
        let src = self.in_register(src)?;
        let i = match dst {
            Scalar::Register(n) => Instruction::with2(code, SCALARS[n as usize], src)?,
            Scalar::Slot(n) => Instruction::with2(code, slot(n), src)?,
        };
        self.asm.push(i);
        Ok(())
    }

    /// `code a, b, operand` where the operand may be a register, memory, an embedded broadcast or a constant.
    fn with_operand(&mut self, code: Code, a: Vector, b: Vector, operand: &Operand) -> Result0 {
        let (ra, rb) = (self.vector(a), self.vector(b));
        let i = match operand {
            Operand::Vector(c) => Instruction::with3(code, ra, rb, self.vector(*c))?,
            Operand::Memory(addr) => {
                let m = self.memory(addr)?;
                Instruction::with3(code, ra, rb, m)?
            }
            Operand::Broadcast(addr) => {
                if self.program.vl != 16 {
                    return Err(EmitError::Unsupported {
                        kernel: self.program.name.clone(),
                        what: "embedded broadcast below 512 bits",
                    });
                }
                let m = MemoryOperand {
                    is_broadcast: true,
                    ..self.memory(addr)?
                };
                Instruction::with3(code, ra, rb, m)?
            }
            Operand::Const(_) | Operand::Const64(_) => {
                let wide = self.program.vl == 16;
                let (bits, n_dwords) = match *operand {
                    Operand::Const64(bits) => (bits, 2),
                    Operand::Const(bits) => (twice(bits), 1),
                    _ => unreachable!("matched above"),
                };
                let copies = if wide { n_dwords } else { self.program.vl };
                let label = self.asm.constant(bits, copies);
                let m = MemoryOperand {
                    is_broadcast: wide,
                    ..rip(label)
                };
                Instruction::with3(code, ra, rb, m)?
            }
        };
        self.asm.push(i);
        Ok(())
    }

    fn op(&mut self, op: &Op) -> Result0 {
        match op {
            Op::Load { dst, addr } => {
                let m = self.memory(addr)?;
                let c = self.code(
                    Code::VEX_Vmovups_xmm_xmmm128,
                    Code::VEX_Vmovups_ymm_ymmm256,
                    Code::EVEX_Vmovups_zmm_k1z_zmmm512,
                );
                self.asm.push(Instruction::with2(c, self.vector(*dst), m)?);
            }
            Op::Store { addr, src } => {
                let m = self.memory(addr)?;
                let c = self.code(
                    Code::VEX_Vmovups_xmmm128_xmm,
                    Code::VEX_Vmovups_ymmm256_ymm,
                    Code::EVEX_Vmovups_zmmm512_k1z_zmm,
                );
                self.asm.push(Instruction::with2(c, m, self.vector(*src))?);
            }
            Op::LoadHalf { dst, addr } => {
                let m = self.memory(addr)?;
                let c = self.code(
                    Code::VEX_Vmovsd_xmm_m64,
                    Code::VEX_Vmovups_xmm_xmmm128,
                    Code::EVEX_Vmovups_ymm_k1z_ymmm256,
                );
                self.asm.push(Instruction::with2(c, self.half(*dst), m)?);
            }
            Op::StoreHalf { addr, src } => {
                let m = self.memory(addr)?;
                let c = self.code(
                    Code::VEX_Vmovsd_m64_xmm,
                    Code::VEX_Vmovups_xmmm128_xmm,
                    Code::EVEX_Vmovups_ymmm256_k1z_ymm,
                );
                self.asm.push(Instruction::with2(c, m, self.half(*src))?);
            }
            Op::Broadcast64 { dst, addr } => {
                let m = self.memory(addr)?;
                self.broadcast64(*dst, m)?;
            }
            Op::Broadcast { dst, addr } => {
                let m = self.memory(addr)?;
                self.broadcast(*dst, m)?;
            }
            Op::Broadcast4 { dst, addr } => {
                let m = self.memory(addr)?;
                let c = self.code(
                    Code::VEX_Vmovups_xmm_xmmm128,
                    Code::VEX_Vbroadcastf128_ymm_m128,
                    Code::EVEX_Vbroadcastf32x4_zmm_k1z_m128,
                );
                self.asm.push(Instruction::with2(c, self.vector(*dst), m)?);
            }
            Op::SplatLane { dst, src, lane } => {
                let c = self.code(
                    Code::VEX_Vpermilps_xmm_xmmm128_imm8,
                    Code::VEX_Vpermilps_ymm_ymmm256_imm8,
                    Code::EVEX_Vpermilps_zmm_k1z_zmmm512b32_imm8,
                );
                let imm = u32::from(*lane) * 0x55;
                let (d, s) = (self.vector(*dst), self.vector(*src));
                self.asm.push(Instruction::with3(c, d, s, imm)?);
            }
            Op::Const { dst, bits } => {
                let label = self.asm.constant(twice(*bits), 1);
                self.broadcast(*dst, rip(label))?;
            }
            Op::Const64 { dst, bits } => {
                let label = self.asm.constant(*bits, 2);
                self.broadcast64(*dst, rip(label))?;
            }
            Op::Zero { dst } => {
                let c = self.code(
                    Code::VEX_Vxorps_xmm_xmm_xmmm128,
                    Code::VEX_Vxorps_ymm_ymm_ymmm256,
                    Code::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32,
                );
                let d = self.vector(*dst);
                self.asm.push(Instruction::with3(c, d, d, d)?);
            }
            Op::Copy { dst, src } => {
                let c = self.code(
                    Code::VEX_Vmovaps_xmm_xmmm128,
                    Code::VEX_Vmovaps_ymm_ymmm256,
                    Code::EVEX_Vmovaps_zmm_k1z_zmmm512,
                );
                let (d, s) = (self.vector(*dst), self.vector(*src));
                self.asm.push(Instruction::with2(c, d, s)?);
            }
            Op::Binary { op, dst, a, b } => {
                let [x, y, z] = binary(*op);
                self.with_operand(self.code(x, y, z), *dst, *a, b)?;
            }
            Op::Fma { acc, a, b } => {
                let c = self.code(
                    Code::VEX_Vfmadd231ps_xmm_xmm_xmmm128,
                    Code::VEX_Vfmadd231ps_ymm_ymm_ymmm256,
                    Code::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er,
                );
                self.with_operand(c, *acc, *a, b)?;
            }
            Op::Fnma { acc, a, b } => {
                let c = self.code(
                    Code::VEX_Vfnmadd231ps_xmm_xmm_xmmm128,
                    Code::VEX_Vfnmadd231ps_ymm_ymm_ymmm256,
                    Code::EVEX_Vfnmadd231ps_zmm_k1z_zmm_zmmm512b32_er,
                );
                self.with_operand(c, *acc, *a, b)?;
            }
            Op::MulAdd { dst, a, b } => {
                let c = self.code(
                    Code::VEX_Vfmadd213ps_xmm_xmm_xmmm128,
                    Code::VEX_Vfmadd213ps_ymm_ymm_ymmm256,
                    Code::EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er,
                );
                self.with_operand(c, *dst, *a, b)?;
            }
            Op::Dot { acc, a, b } => {
                let c = match (self.program.vl, self.features.avx512_vnni) {
                    (16, true) => Code::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32,
                    (8, true) => Code::EVEX_Vpdpbusd_ymm_k1z_ymm_ymmm256b32,
                    (4, true) => Code::EVEX_Vpdpbusd_xmm_k1z_xmm_xmmm128b32,
                    (8, false) if self.features.avx_vnni => Code::VEX_Vpdpbusd_ymm_ymm_ymmm256,
                    (4, false) if self.features.avx_vnni => Code::VEX_Vpdpbusd_xmm_xmm_xmmm128,
                    _ => {
                        return Err(EmitError::Unsupported {
                            kernel: self.program.name.clone(),
                            what: "dot product of bytes",
                        });
                    }
                };
                self.with_operand(c, *acc, *a, b)?;
            }
            Op::Unary { op, dst, src } => {
                let [x, y, z] = unary(*op);
                let c = self.code(x, y, z);
                let (d, s) = match op {
                    Unary::Sqrt | Unary::ToInt | Unary::ToFloat | Unary::Sqrt64 => {
                        (self.vector(*dst), self.vector(*src))
                    }
                    Unary::Widen => (self.vector(*dst), self.half(*src)),
                    Unary::Narrow => (self.half(*dst), self.vector(*src)),
                };
                self.asm.push(Instruction::with2(c, d, s)?);
            }
            Op::Shift { op, dst, src, bits } => {
                let [x, y, z] = shift(*op);
                let c = self.code(x, y, z);
                let (d, s) = (self.vector(*dst), self.vector(*src));
                self.asm
                    .push(Instruction::with3(c, d, s, u32::from(*bits))?);
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
                self.select(*float, *dst, (*cmp, *a, *b), *then, *otherwise)?;
            }
            Op::LoadScalar { dst, width, addr } => {
                let m = self.memory(addr)?;
                let d = Self::target(*dst);
                let i = match width {
                    Width::B8 => Instruction::with2(Code::Movzx_r32_rm8, low32(d), m)?,
                    Width::B16 => Instruction::with2(Code::Movzx_r32_rm16, low32(d), m)?,
                    Width::B32 => Instruction::with2(Code::Mov_r32_rm32, low32(d), m)?,
                    Width::B64 => Instruction::with2(Code::Mov_r64_rm64, d, m)?,
                };
                self.asm.push(i);
                self.write_back(*dst)?;
            }
            Op::StoreScalar { addr, width, src } => self.store_scalar(addr, *width, *src)?,
            Op::Imm { dst, value } => {
                let d = Self::target(*dst);
                let i = match u32::try_from(*value) {
                    Ok(v) => Instruction::with2(Code::Mov_r32_imm32, low32(d), v)?,
                    Err(_) => Instruction::with2(Code::Mov_r64_imm64, d, *value)?,
                };
                self.asm.push(i);
                self.write_back(*dst)?;
            }
            Op::Move { dst, src } => {
                if let (Scalar::Register(d), Scalar::Slot(n)) = (dst, src) {
                    let d = SCALARS[*d as usize];
                    self.asm
                        .push(Instruction::with2(Code::Mov_r64_rm64, d, slot(*n))?);
                } else {
                    self.scalar_pair(Code::Mov_rm64_r64, *dst, *src)?;
                }
            }
            Op::Lea { dst, addr } => {
                let m = self.memory(addr)?;
                self.asm
                    .push(Instruction::with2(Code::Lea_r64_m, Self::target(*dst), m)?);
                self.write_back(*dst)?;
            }
            Op::AddScalar { dst, src } => self.scalar_pair(Code::Add_rm64_r64, *dst, *src)?,
            Op::SubScalar { dst, src } => self.scalar_pair(Code::Sub_rm64_r64, *dst, *src)?,
            Op::AddImm { dst, value } => {
                let c = if i8::try_from(*value).is_ok() {
                    Code::Add_rm64_imm8
                } else {
                    Code::Add_rm64_imm32
                };
                self.with_imm(c, *dst, *value)?;
            }
            Op::MulImm { dst, value } => {
                let s = self.in_register(*dst)?;
                let i =
                    Instruction::with3(Code::Imul_r64_rm64_imm32, Self::target(*dst), s, *value)?;
                self.asm.push(i);
                self.write_back(*dst)?;
            }
            Op::ShlImm { dst, bits } => {
                self.with_imm(Code::Shl_rm64_imm8, *dst, i32::from(*bits))?;
            }
            Op::ShrImm { dst, bits } => {
                self.with_imm(Code::Shr_rm64_imm8, *dst, i32::from(*bits))?;
            }
            Op::AndImm { dst, mask } => {
                let s = self.in_register(*dst)?;
                self.asm
                    .push(Instruction::with2(Code::And_rm32_imm32, low32(s), *mask)?);
                self.write_back(*dst)?;
            }
            Op::Low16 { dst, src } => {
                let d = low32(Self::target(*dst));
                let i = match src {
                    Scalar::Register(n) => {
                        Instruction::with2(Code::Movzx_r32_rm16, d, low16(SCALARS[*n as usize]))?
                    }
                    Scalar::Slot(n) => Instruction::with2(Code::Movzx_r32_rm16, d, slot(*n))?,
                };
                self.asm.push(i);
                self.write_back(*dst)?;
            }
            Op::Prefetch { addr, far } => {
                let m = self.memory(addr)?;
                let c = if *far {
                    Code::Prefetcht1_m8
                } else {
                    Code::Prefetcht0_m8
                };
                self.asm.push(Instruction::with1(c, m)?);
            }
            Op::Loop { count, body } => self.counted(*count, body)?,
        }
        Ok(())
    }

    fn broadcast(&mut self, dst: Vector, m: MemoryOperand) -> Result0 {
        let c = self.code(
            Code::VEX_Vbroadcastss_xmm_m32,
            Code::VEX_Vbroadcastss_ymm_m32,
            Code::EVEX_Vbroadcastss_zmm_k1z_xmmm32,
        );
        self.asm.push(Instruction::with2(c, self.vector(dst), m)?);
        Ok(())
    }

    fn broadcast64(&mut self, dst: Vector, m: MemoryOperand) -> Result0 {
        let c = self.code(
            Code::VEX_Vmovddup_xmm_xmmm64,
            Code::VEX_Vbroadcastsd_ymm_m64,
            Code::EVEX_Vbroadcastsd_zmm_k1z_xmmm64,
        );
        self.asm.push(Instruction::with2(c, self.vector(dst), m)?);
        Ok(())
    }

    fn select(
        &mut self,
        float: Float,
        dst: Vector,
        (cmp, a, b): (Compare, Vector, Vector),
        then: Vector,
        otherwise: Vector,
    ) -> Result0 {
        if dst == then || dst == otherwise {
            return Err(EmitError::Unsupported {
                kernel: self.program.name.clone(),
                what: "select into one of its sources",
            });
        }
        let imm: u32 = match cmp {
            Compare::Eq => 0,
            Compare::Lt => 1,
            Compare::Le => 2,
            Compare::Unordered => 3,
            Compare::Ne => 4,
        };
        let [d, a, b, then, otherwise] = [dst, a, b, then, otherwise].map(|v| self.vector(v));
        if self.program.vl == 16 {
            let k = Register::K1;
            let (compare, blend) = match float {
                Float::F32 => (
                    Code::EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae,
                    Code::EVEX_Vblendmps_zmm_k1z_zmm_zmmm512b32,
                ),
                Float::F64 => (
                    Code::EVEX_Vcmppd_kr_k1_zmm_zmmm512b64_imm8_sae,
                    Code::EVEX_Vblendmpd_zmm_k1z_zmm_zmmm512b64,
                ),
            };
            self.asm.push(Instruction::with4(compare, k, a, b, imm)?);
            let c = blend;
            let mut i = Instruction::with3(c, d, otherwise, then)?;
            i.set_op_mask(k);
            self.asm.push(i);
            return Ok(());
        }
        let (compare, blend) = match (float, self.program.vl) {
            (Float::F32, 4) => (
                Code::VEX_Vcmpps_xmm_xmm_xmmm128_imm8,
                Code::VEX_Vblendvps_xmm_xmm_xmmm128_xmm,
            ),
            (Float::F32, _) => (
                Code::VEX_Vcmpps_ymm_ymm_ymmm256_imm8,
                Code::VEX_Vblendvps_ymm_ymm_ymmm256_ymm,
            ),
            (Float::F64, 4) => (
                Code::VEX_Vcmppd_xmm_xmm_xmmm128_imm8,
                Code::VEX_Vblendvpd_xmm_xmm_xmmm128_xmm,
            ),
            (Float::F64, _) => (
                Code::VEX_Vcmppd_ymm_ymm_ymmm256_imm8,
                Code::VEX_Vblendvpd_ymm_ymm_ymmm256_ymm,
            ),
        };
        self.asm.push(Instruction::with4(compare, d, a, b, imm)?);
        self.asm
            .push(Instruction::with4(blend, d, otherwise, then, d)?);
        Ok(())
    }

    fn store_scalar(&mut self, addr: &Addr, width: Width, src: Scalar) -> Result0 {
        let Scalar::Register(n) = src else {
            return Err(EmitError::TwoSlots {
                kernel: self.program.name.clone(),
            });
        };
        let m = self.memory(addr)?;
        let s = SCALARS[n as usize];
        let i = match width {
            Width::B8 => Instruction::with2(Code::Mov_rm8_r8, m, low8(s))?,
            Width::B16 => Instruction::with2(Code::Mov_rm16_r16, m, low16(s))?,
            Width::B32 => Instruction::with2(Code::Mov_rm32_r32, m, low32(s))?,
            Width::B64 => Instruction::with2(Code::Mov_rm64_r64, m, s)?,
        };
        self.asm.push(i);
        Ok(())
    }

    /// A guard, then the body with its test at the bottom.
    fn counted(&mut self, count: Scalar, body: &[Op]) -> Result0 {
        let (head, end) = (self.asm.label(), self.asm.label());
        let test = match count {
            Scalar::Register(n) => {
                let r = SCALARS[n as usize];
                Instruction::with2(Code::Test_rm64_r64, r, r)?
            }
            Scalar::Slot(n) => Instruction::with2(Code::Cmp_rm64_imm8, slot(n), 0)?,
        };
        self.asm.push(test);
        self.asm
            .push(Instruction::with_branch(Code::Je_rel32_64, end)?);
        let innermost = !body.iter().any(|op| matches!(op, Op::Loop { .. }));
        self.asm.bind(head, innermost);
        self.ops(body)?;
        let step = match count {
            Scalar::Register(n) => Instruction::with1(Code::Dec_rm64, SCALARS[n as usize])?,
            Scalar::Slot(n) => Instruction::with1(Code::Dec_rm64, slot(n))?,
        };
        self.asm.push(step);
        self.asm
            .push(Instruction::with_branch(Code::Jne_rel32_64, head)?);
        self.asm.bind(end, false);
        Ok(())
    }
}

fn stack(bytes: i32) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RSP, i64::from(bytes))
}

fn slot(n: u8) -> MemoryOperand {
    stack(i32::from(n) * 8)
}

/// A memory operand relative to the instruction pointer, at a label.
fn rip(label: u64) -> MemoryOperand {
    MemoryOperand::with_base_displ_size(Register::RIP, label as i64, 8)
}

/// The 64 bits that hold these 32 twice.
fn twice(bits: u32) -> u64 {
    u64::from(bits) << 32 | u64::from(bits)
}

fn low32(r: Register) -> Register {
    Register::EAX + (r as u32 - Register::RAX as u32)
}

fn low16(r: Register) -> Register {
    Register::AX + (r as u32 - Register::RAX as u32)
}

fn low8(r: Register) -> Register {
    match r as u32 - Register::RAX as u32 {
        n @ 0..4 => Register::AL + n,
        n => Register::SPL + (n - 4),
    }
}

fn binary(op: Binary) -> [Code; 3] {
    use Code::*;
    match op {
        Binary::Add => [
            VEX_Vaddps_xmm_xmm_xmmm128,
            VEX_Vaddps_ymm_ymm_ymmm256,
            EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er,
        ],
        Binary::Sub => [
            VEX_Vsubps_xmm_xmm_xmmm128,
            VEX_Vsubps_ymm_ymm_ymmm256,
            EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er,
        ],
        Binary::Mul => [
            VEX_Vmulps_xmm_xmm_xmmm128,
            VEX_Vmulps_ymm_ymm_ymmm256,
            EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er,
        ],
        Binary::Div => [
            VEX_Vdivps_xmm_xmm_xmmm128,
            VEX_Vdivps_ymm_ymm_ymmm256,
            EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er,
        ],
        Binary::Max => [
            VEX_Vmaxps_xmm_xmm_xmmm128,
            VEX_Vmaxps_ymm_ymm_ymmm256,
            EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae,
        ],
        Binary::Min => [
            VEX_Vminps_xmm_xmm_xmmm128,
            VEX_Vminps_ymm_ymm_ymmm256,
            EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae,
        ],
        Binary::And => [
            VEX_Vandps_xmm_xmm_xmmm128,
            VEX_Vandps_ymm_ymm_ymmm256,
            EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::AndNot => [
            VEX_Vandnps_xmm_xmm_xmmm128,
            VEX_Vandnps_ymm_ymm_ymmm256,
            EVEX_Vpandnd_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::Or => [
            VEX_Vorps_xmm_xmm_xmmm128,
            VEX_Vorps_ymm_ymm_ymmm256,
            EVEX_Vpord_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::Xor => [
            VEX_Vxorps_xmm_xmm_xmmm128,
            VEX_Vxorps_ymm_ymm_ymmm256,
            EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::IntAdd => [
            VEX_Vpaddd_xmm_xmm_xmmm128,
            VEX_Vpaddd_ymm_ymm_ymmm256,
            EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::IntSub => [
            VEX_Vpsubd_xmm_xmm_xmmm128,
            VEX_Vpsubd_ymm_ymm_ymmm256,
            EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::IntMul => [
            VEX_Vpmulld_xmm_xmm_xmmm128,
            VEX_Vpmulld_ymm_ymm_ymmm256,
            EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32,
        ],
        Binary::WordAdd => [
            VEX_Vpaddw_xmm_xmm_xmmm128,
            VEX_Vpaddw_ymm_ymm_ymmm256,
            EVEX_Vpaddw_zmm_k1z_zmm_zmmm512,
        ],
        Binary::WordPairs => [
            VEX_Vpmaddwd_xmm_xmm_xmmm128,
            VEX_Vpmaddwd_ymm_ymm_ymmm256,
            EVEX_Vpmaddwd_zmm_k1z_zmm_zmmm512,
        ],
        Binary::BytePairs => [
            VEX_Vpmaddubsw_xmm_xmm_xmmm128,
            VEX_Vpmaddubsw_ymm_ymm_ymmm256,
            EVEX_Vpmaddubsw_zmm_k1z_zmm_zmmm512,
        ],
        Binary::Interleave(Piece::Byte, Half::Low) => [
            VEX_Vpunpcklbw_xmm_xmm_xmmm128,
            VEX_Vpunpcklbw_ymm_ymm_ymmm256,
            EVEX_Vpunpcklbw_zmm_k1z_zmm_zmmm512,
        ],
        Binary::Interleave(Piece::Byte, Half::High) => [
            VEX_Vpunpckhbw_xmm_xmm_xmmm128,
            VEX_Vpunpckhbw_ymm_ymm_ymmm256,
            EVEX_Vpunpckhbw_zmm_k1z_zmm_zmmm512,
        ],
        Binary::Interleave(Piece::Word, Half::Low) => [
            VEX_Vpunpcklwd_xmm_xmm_xmmm128,
            VEX_Vpunpcklwd_ymm_ymm_ymmm256,
            EVEX_Vpunpcklwd_zmm_k1z_zmm_zmmm512,
        ],
        Binary::Interleave(Piece::Word, Half::High) => [
            VEX_Vpunpckhwd_xmm_xmm_xmmm128,
            VEX_Vpunpckhwd_ymm_ymm_ymmm256,
            EVEX_Vpunpckhwd_zmm_k1z_zmm_zmmm512,
        ],
        Binary::Add64 => [
            VEX_Vaddpd_xmm_xmm_xmmm128,
            VEX_Vaddpd_ymm_ymm_ymmm256,
            EVEX_Vaddpd_zmm_k1z_zmm_zmmm512b64_er,
        ],
        Binary::Sub64 => [
            VEX_Vsubpd_xmm_xmm_xmmm128,
            VEX_Vsubpd_ymm_ymm_ymmm256,
            EVEX_Vsubpd_zmm_k1z_zmm_zmmm512b64_er,
        ],
        Binary::Mul64 => [
            VEX_Vmulpd_xmm_xmm_xmmm128,
            VEX_Vmulpd_ymm_ymm_ymmm256,
            EVEX_Vmulpd_zmm_k1z_zmm_zmmm512b64_er,
        ],
        Binary::Div64 => [
            VEX_Vdivpd_xmm_xmm_xmmm128,
            VEX_Vdivpd_ymm_ymm_ymmm256,
            EVEX_Vdivpd_zmm_k1z_zmm_zmmm512b64_er,
        ],
        Binary::Max64 => [
            VEX_Vmaxpd_xmm_xmm_xmmm128,
            VEX_Vmaxpd_ymm_ymm_ymmm256,
            EVEX_Vmaxpd_zmm_k1z_zmm_zmmm512b64_sae,
        ],
        Binary::Min64 => [
            VEX_Vminpd_xmm_xmm_xmmm128,
            VEX_Vminpd_ymm_ymm_ymmm256,
            EVEX_Vminpd_zmm_k1z_zmm_zmmm512b64_sae,
        ],
        Binary::IntAdd64 => [
            VEX_Vpaddq_xmm_xmm_xmmm128,
            VEX_Vpaddq_ymm_ymm_ymmm256,
            EVEX_Vpaddq_zmm_k1z_zmm_zmmm512b64,
        ],
    }
}

fn unary(op: Unary) -> [Code; 3] {
    use Code::*;
    match op {
        Unary::Sqrt => [
            VEX_Vsqrtps_xmm_xmmm128,
            VEX_Vsqrtps_ymm_ymmm256,
            EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er,
        ],
        Unary::ToInt => [
            VEX_Vcvtps2dq_xmm_xmmm128,
            VEX_Vcvtps2dq_ymm_ymmm256,
            EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er,
        ],
        Unary::ToFloat => [
            VEX_Vcvtdq2ps_xmm_xmmm128,
            VEX_Vcvtdq2ps_ymm_ymmm256,
            EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er,
        ],
        Unary::Sqrt64 => [
            VEX_Vsqrtpd_xmm_xmmm128,
            VEX_Vsqrtpd_ymm_ymmm256,
            EVEX_Vsqrtpd_zmm_k1z_zmmm512b64_er,
        ],
        Unary::Widen => [
            VEX_Vcvtps2pd_xmm_xmmm64,
            VEX_Vcvtps2pd_ymm_xmmm128,
            EVEX_Vcvtps2pd_zmm_k1z_ymmm256b32_sae,
        ],
        Unary::Narrow => [
            VEX_Vcvtpd2ps_xmm_xmmm128,
            VEX_Vcvtpd2ps_xmm_ymmm256,
            EVEX_Vcvtpd2ps_ymm_k1z_zmmm512b64_er,
        ],
    }
}

fn shift(op: Shift) -> [Code; 3] {
    use Code::*;
    match op {
        Shift::Left => [
            VEX_Vpslld_xmm_xmm_imm8,
            VEX_Vpslld_ymm_ymm_imm8,
            EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8,
        ],
        Shift::RightLogical => [
            VEX_Vpsrld_xmm_xmm_imm8,
            VEX_Vpsrld_ymm_ymm_imm8,
            EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8,
        ],
        Shift::RightArithmetic => [
            VEX_Vpsrad_xmm_xmm_imm8,
            VEX_Vpsrad_ymm_ymm_imm8,
            EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8,
        ],
        Shift::WordLeft => [
            VEX_Vpsllw_xmm_xmm_imm8,
            VEX_Vpsllw_ymm_ymm_imm8,
            EVEX_Vpsllw_zmm_k1z_zmmm512_imm8,
        ],
        Shift::WordRightLogical => [
            VEX_Vpsrlw_xmm_xmm_imm8,
            VEX_Vpsrlw_ymm_ymm_imm8,
            EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8,
        ],
        Shift::WordRightArithmetic => [
            VEX_Vpsraw_xmm_xmm_imm8,
            VEX_Vpsraw_ymm_ymm_imm8,
            EVEX_Vpsraw_zmm_k1z_zmmm512_imm8,
        ],
        Shift::Left64 => [
            VEX_Vpsllq_xmm_xmm_imm8,
            VEX_Vpsllq_ymm_ymm_imm8,
            EVEX_Vpsllq_zmm_k1z_zmmm512b64_imm8,
        ],
        Shift::RightLogical64 => [
            VEX_Vpsrlq_xmm_xmm_imm8,
            VEX_Vpsrlq_ymm_ymm_imm8,
            EVEX_Vpsrlq_zmm_k1z_zmmm512b64_imm8,
        ],
    }
}
