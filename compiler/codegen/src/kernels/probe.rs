//! The peak of the CPU: independent multiply-adds between registers, no memory.
//!
//! Arguments: `[0]` repetitions of [`FMAS`] multiply-adds of a vector.

use crate::kir::{Builder, Program};

/// Independent accumulators: more than latency times pipes of any CPU that kernels run on.
pub const FMAS: usize = 12;

pub(super) fn program(name: String, vl: usize) -> Program {
    let mut b = Builder::new(name, vl);
    let count = b.arg(0);
    let acc = b.vectors(FMAS);
    let (x, y) = (b.vector(), b.vector());
    for &v in acc.iter().chain([&x, &y]) {
        b.zero(v);
    }
    b.repeat(count, |b| {
        for &v in &acc {
            b.fma(v, x, y);
        }
    });
    b.finish()
}
