//! Kernels: their language, their emitters, and the packed weights they read.
//!
//! * [`kir`]: the kernel IR, in which every kernel is written once, and its two emitters.
//! * [`kernels`]: one file per kind of kernel; [`emit`] picks by [`KernelSpec`].
//! * [`CpuFeatures`]: what a kernel may assume, as a plain value.
//!
//! A kernel stays text or bytes here; the runtime makes it executable. `compiler/docs/kernels.md` describes layouts,
//! formats and the calling convention.
#![forbid(unsafe_code)]

mod error;
mod features;
pub mod formats;
pub mod kernels;
pub mod kir;

use cranelift_codegen::ir::Function;
pub use error::EmitError;
pub use features::{CallingConvention, CpuFeatures, Isa};
pub use lancet_artifact::{Arithmetic, KernelSpec, WeightFormat};

/// A kernel for one CPU, with the signature `extern "C" fn(args: *const u64)`.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    pub spec: KernelSpec,
    pub code: Code,
}

/// What the runtime makes executable.
#[derive(Clone, Debug)]
pub enum Code {
    /// Position-independent x86-64 machine code, to be placed at a multiple of 64.
    Bytes(Vec<u8>),
    /// To be compiled by Cranelift, best with `opt_level=none`.
    Clif(Box<Function>),
}

/// Emits the kernel of `spec` for a CPU.
///
/// # Errors
/// [`EmitError::Spec`] if no kernel has these parameters, [`EmitError::Cpu`] if the CPU lacks vectors.
pub fn emit(spec: &KernelSpec, features: &CpuFeatures) -> Result<Kernel, EmitError> {
    if features.isa == Isa::Riscv64 && !features.riscv_v {
        return Err(EmitError::Cpu {
            missing: "the vector extension of RISC-V",
        });
    }
    let program = kernels::build(spec, features)?;
    let code = lower(&program, features)?;
    Ok(Kernel {
        name: program.name,
        spec: spec.clone(),
        code,
    })
}

/// Lowers a program written with [`kir::Builder`] with the emitter that suits the CPU.
///
/// # Errors
/// As [`kir::x64::emit`].
pub fn lower(program: &kir::Program, features: &CpuFeatures) -> Result<Code, EmitError> {
    if features.wide() {
        Ok(Code::Bytes(kir::x64::emit(program, features)?))
    } else {
        Ok(Code::Clif(Box::new(kir::clif::emit(program, features))))
    }
}

/// The text of a kernel: instructions in Intel syntax, or Cranelift IR.
pub fn disassemble(kernel: &Kernel) -> String {
    use iced_x86::Formatter;
    let bytes = match &kernel.code {
        Code::Bytes(bytes) => bytes,
        Code::Clif(func) => return func.display().to_string(),
    };
    let mut decoder = iced_x86::Decoder::with_ip(64, bytes, 0, iced_x86::DecoderOptions::NONE);
    let mut formatter = iced_x86::IntelFormatter::new();
    let mut text = String::new();
    let mut line = String::new();
    let mut ended = false;
    for instruction in &mut decoder {
        line.clear();
        if ended {
            // Constants follow the return.
            break;
        }
        formatter.format(&instruction, &mut line);
        text.push_str(&format!("{:6x}  {line}\n", instruction.ip()));
        ended = instruction.mnemonic() == iced_x86::Mnemonic::Ret;
    }
    text
}
