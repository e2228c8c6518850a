//! The kernels of a model: emitted when sizes first ask for them, then shared by all its sessions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lancet_artifact::KernelSpec;
use lancet_codegen::CpuFeatures;

use crate::cpu;
use crate::jit::{Kernel, compile};

/// Kernels by what they are specialised on.
pub(crate) struct KernelCache {
    /// `None` where every step runs its portable form.
    features: Option<CpuFeatures>,
    /// A kernel that could not be emitted is `None`; its steps run their portable form.
    compiled: Mutex<HashMap<KernelSpec, Option<Kernel>>>,
    /// Time that emitting took so far.
    nanoseconds: AtomicU64,
}

/// Whether steps run emitted kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Where this CPU has them.
    #[default]
    Emitted,
    /// Never: every step runs its portable form, for comparison.
    Portable,
}

impl KernelCache {
    /// A cache without kernels yet.
    pub(crate) fn new(kernels: Kernels) -> KernelCache {
        KernelCache {
            features: match kernels {
                Kernels::Emitted => cpu::features(),
                Kernels::Portable => None,
            },
            compiled: Mutex::default(),
            nanoseconds: AtomicU64::new(0),
        }
    }

    /// What kernels are emitted for.
    pub(crate) fn features(&self) -> Option<&CpuFeatures> {
        self.features.as_ref()
    }

    /// Emits those of `specs` that are not there yet, in one module.
    pub(crate) fn ensure(&self, specs: &[KernelSpec]) {
        let Some(features) = &self.features else {
            return;
        };
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<KernelSpec> = specs
            .iter()
            .filter(|s| !compiled.contains_key(s))
            .cloned()
            .collect();
        missing.sort();
        missing.dedup();
        if missing.is_empty() {
            return;
        }
        let _span = tracing::debug_span!("emit", n_kernels = missing.len()).entered();
        let start = Instant::now();
        match compile(&missing, features) {
            Ok(kernels) => compiled.extend(kernels.into_iter().map(|(s, k)| (s, Some(k)))),
            Err(_) => {
                // One by one, so that a kernel that does not exist here costs only its own steps.
                for spec in missing {
                    let kernel = match compile(std::slice::from_ref(&spec), features) {
                        Ok(mut kernels) => kernels.remove(&spec),
                        Err(error) => {
                            tracing::debug!(?spec, %error, "no kernel");
                            None
                        }
                    };
                    compiled.insert(spec, kernel);
                }
            }
        }
        let nanoseconds = start.elapsed().as_nanos() as u64;
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Kernels emitted so far, and the time it took.
    pub(crate) fn emitted(&self) -> (usize, Duration) {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let n_kernels = compiled.values().flatten().count();
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        (n_kernels, Duration::from_nanos(nanoseconds))
    }

    /// The kernel of `spec` if it was emitted.
    pub(crate) fn get(&self, spec: &KernelSpec) -> Option<Kernel> {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.get(spec).cloned().flatten()
    }
}
