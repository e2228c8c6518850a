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
    /// AVX-VNNI: dot products of bytes at 256 bits.
    pub avx_vnni: bool,
    /// AVX-512 VNNI: dot products of bytes at every width.
    pub avx512_vnni: bool,
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
            avx_vnni: false,
            avx512_vnni: false,
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

    /// x86-64 with AVX-512 VNNI.
    pub const fn avx512_vnni() -> Self {
        CpuFeatures {
            avx512_vnni: true,
            ..Self::avx512()
        }
    }

    /// x86-64 with AVX-VNNI and without AVX-512.
    pub const fn avx_vnni() -> Self {
        CpuFeatures {
            avx_vnni: true,
            ..Self::avx2()
        }
    }

    /// Whether there are dot products of bytes.
    pub const fn dots(&self) -> bool {
        self.wide() && (self.avx_vnni || self.avx512_vnni)
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
