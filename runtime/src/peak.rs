//! What this CPU can do at most, now.

use std::time::{Duration, Instant};

use lancet_artifact::KernelSpec;

/// GFLOP/s of one core at multiply-adds between registers, measured for about 20 ms: the best of short samples.
///
/// Clocks move, so a share of peak is worth something only beside a measurement of the same moment. 0 where no kernel can be
/// emitted.
pub fn peak_gflops() -> f64 {
    let Some(features) = crate::cpu::features() else {
        return 0.0;
    };
    let Ok(kernels) = crate::jit::compile(&[KernelSpec::FmaProbe], &features) else {
        return 0.0;
    };
    let Some(kernel) = kernels.get(&KernelSpec::FmaProbe) else {
        return 0.0;
    };
    let vl = features.vl(16);
    let start = Instant::now();
    let mut best = 0f64;
    while start.elapsed() < Duration::from_millis(20) {
        let t = Instant::now();
        let flops = kernel.probe(20_000, vl);
        best = best.max(flops as f64 / t.elapsed().as_nanos().max(1) as f64);
    }
    best
}
