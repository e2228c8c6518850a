//! What this machine offers: threads, and the instruction sets that kernels may use.

use lancet_codegen::{CallingConvention, CpuFeatures, Isa};

/// Threads that the process may run at once: the affinity mask, lowered to the cgroup's CPU quota.
pub(crate) fn available_threads() -> usize {
    // The standard library reads both: `sched_getaffinity`, and `cpu.max` or `cfs_quota_us` of the process's cgroups.
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU this process runs on, or `None` if there are no kernels for its instruction set.
pub(crate) fn features() -> Option<CpuFeatures> {
    #[cfg(target_arch = "x86_64")]
    return Some(CpuFeatures {
        isa: Isa::X64,
        convention: if cfg!(windows) {
            CallingConvention::Win64
        } else {
            CallingConvention::SystemV
        },
        avx2: is_x86_feature_detected!("avx2"),
        fma: is_x86_feature_detected!("fma"),
        // Every CPU with these has the instructions that the emitter uses; the foundation alone has not.
        avx512f: is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl"),
        avx_vnni: is_x86_feature_detected!("avxvnni"),
        avx512_vnni: is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl"),
        ..CpuFeatures::baseline(Isa::X64)
    });
    #[cfg(target_arch = "aarch64")]
    return Some(CpuFeatures {
        convention: CallingConvention::SystemV,
        ..CpuFeatures::baseline(Isa::Aarch64)
    });
    // Kernels for RISC-V need the vector extension, which is not detected yet.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return None;
}
