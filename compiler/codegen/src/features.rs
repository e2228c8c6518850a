//! What a kernel may assume about the CPU and the platform: plain values, detected elsewhere.

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    X64,
    Aarch64,
    Riscv64,
}

/// How kernels are called; only x86-64 has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallingConvention {
    SystemV,
    Win64,
}

/// The CPU a kernel is emitted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuFeatures {
    pub isa: Isa,
    pub convention: CallingConvention,
    pub avx2: bool,
    pub fma: bool,
    /// AVX-512 F, DQ, BW and VL, which come together in every CPU but the first.
    pub avx512f: bool,
    /// The vector extension of RISC-V.
    pub riscv_v: bool,
}

impl CpuFeatures {
    /// The least of an instruction set, with System V calls.
    pub const fn baseline(isa: Isa) -> Self {
        CpuFeatures {
            isa,
            convention: CallingConvention::SystemV,
            avx2: false,
            fma: false,
            avx512f: false,
            riscv_v: false,
        }
    }

    /// x86-64 with AVX2 and FMA.
    pub const fn avx2() -> Self {
        CpuFeatures {
            avx2: true,
            fma: true,
            ..Self::baseline(Isa::X64)
        }
    }

    /// x86-64 with AVX-512.
    pub const fn avx512() -> Self {
        CpuFeatures {
            avx512f: true,
            ..Self::avx2()
        }
    }

    /// Whether machine code comes from the x64 emitter.
    pub const fn wide(&self) -> bool {
        matches!(self.isa, Isa::X64) && self.avx2 && self.fma
    }

    /// The widest vector, in f32 lanes, that divides `lanes` (a multiple of 4).
    pub const fn vl(&self, lanes: usize) -> usize {
        if !self.wide() || !lanes.is_multiple_of(8) {
            4
        } else if self.avx512f && lanes.is_multiple_of(16) {
            16
        } else {
            8
        }
    }
}
