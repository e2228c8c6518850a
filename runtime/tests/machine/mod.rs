//! Where the kernel tests run kernels: on this CPU, and on others that are emulated.
//!
//! A kernel takes one pointer, to its arguments; an argument is a number or an address. Tests name the memory that they
//! pass by [`address`] and [`address_mut`], so that for another machine it can be sent along and fetched back. The programs
//! that stand for other machines are beside this file: `emulator.py` (AVX-512 and VNNI) and `aarch64.c` (NEON, under
//! qemu-user). `LANCET_AVX512_RUNNER`, `LANCET_HASWELL_RUNNER` and `LANCET_AARCH64_RUNNER` hold their command lines; a machine
//! without one is left out, and `LANCET_REQUIRE_RUNNERS` makes that a failure.
#![allow(dead_code, reason = "each binary uses a part of this")]
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

#[path = "../../benches/exec.rs"]
mod exec;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex};

use cranelift_codegen::settings::{self, Configurable};
use lancet_codegen::{Code, CpuFeatures, Isa};

use exec::Exec;

/// A CPU that runs kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Machine {
    /// This one.
    Native,
    /// x86-64 with AVX-512 and VNNI.
    Avx512,
    /// x86-64 with AVX2 and without AVX-512.
    Haswell,
    /// aarch64 with NEON.
    Aarch64,
}

impl Machine {
    /// The machines that can be reached, this one first. `Haswell` is not among them: it adds nothing but what it lacks.
    pub(crate) fn all() -> Vec<Machine> {
        let others = [Machine::Avx512, Machine::Aarch64];
        let reached = others.into_iter().filter(|m| m.is_reached());
        [Machine::Native].into_iter().chain(reached).collect()
    }

    /// Whether kernels can be run there.
    ///
    /// # Panics
    /// If not, and `LANCET_REQUIRE_RUNNERS` is set.
    pub(crate) fn is_reached(self) -> bool {
        let Some(variable) = self.variable() else {
            return true;
        };
        let reached = std::env::var_os(variable).is_some();
        let required = std::env::var_os("LANCET_REQUIRE_RUNNERS").is_some();
        assert!(reached || !required, "{variable} is not set");
        reached
    }

    /// The environment variable that holds the command line of the program that stands for it.
    fn variable(self) -> Option<&'static str> {
        match self {
            Machine::Native => None,
            Machine::Avx512 => Some("LANCET_AVX512_RUNNER"),
            Machine::Haswell => Some("LANCET_HASWELL_RUNNER"),
            Machine::Aarch64 => Some("LANCET_AARCH64_RUNNER"),
        }
    }

    /// What kernels for this machine are emitted for: its widest vectors, and for this one Cranelift's 128 bits as well.
    pub(crate) fn features(self) -> Vec<CpuFeatures> {
        match self {
            Machine::Native => {
                let mut features = vec![CpuFeatures::baseline(if cfg!(target_arch = "aarch64") {
                    Isa::Aarch64
                } else {
                    Isa::X64
                })];
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    features.push(CpuFeatures::avx2());
                }
                features
            }
            Machine::Avx512 => vec![CpuFeatures::avx512()],
            Machine::Haswell => vec![CpuFeatures::avx2()],
            Machine::Aarch64 => vec![CpuFeatures::baseline(Isa::Aarch64)],
        }
    }
}

/// Every machine that can be reached with everything that kernels are emitted for there.
pub(crate) fn targets() -> Vec<(Machine, CpuFeatures)> {
    let of = |m: Machine| m.features().into_iter().map(move |f| (m, f));
    Machine::all().into_iter().flat_map(of).collect()
}

thread_local! {
    /// Addresses and lengths in bytes of the memory that was named since the last call on this thread.
    static NAMED: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// The address of `v`, for a kernel to read.
pub(crate) fn address<T>(v: &[T]) -> u64 {
    let start = v.as_ptr() as u64;
    name(start, size_of_val(v) as u64);
    start
}

/// The address of `v`, for a kernel to read and write.
pub(crate) fn address_mut<T>(v: &mut [T]) -> u64 {
    let start = v.as_mut_ptr() as u64;
    name(start, size_of_val(v) as u64);
    start
}

/// Notes that a kernel may reach these bytes.
fn name(start: u64, len: u64) {
    NAMED.with_borrow_mut(|named| {
        let known = named.entry(start).or_default();
        *known = len.max(*known);
    });
}

/// Regions of memory without overlaps.
fn merged(named: BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let mut regions: Vec<(u64, u64)> = Vec::new();
    for (start, len) in named {
        match regions.last_mut() {
            Some((at, size)) if start < *at + *size => *size = (*size).max(start + len - *at),
            _ => regions.push((start, len)),
        }
    }
    regions
}

/// A kernel on a machine.
pub(crate) enum Kernel {
    Native(Exec),
    Remote(Machine, Vec<u8>),
}

impl Kernel {
    /// The kernel, ready to be called on `machine`.
    pub(crate) fn new(code: &Code, machine: Machine) -> Kernel {
        match (machine, code) {
            (Machine::Native, _) => Kernel::Native(Exec::new(code)),
            (_, Code::Bytes(bytes)) => Kernel::Remote(machine, bytes.clone()),
            (_, Code::Clif(func)) => Kernel::Remote(machine, compiled(func, machine)),
        }
    }

    /// Calls the kernel.
    ///
    /// # Panics
    /// If it raises an exception.
    pub(crate) fn call(&self, args: &[u64]) {
        if let Err(vector) = self.try_call(args) {
            panic!("the kernel raised exception {vector}");
        }
    }

    /// Calls the kernel; the number of the exception that it raised, if it did on a machine that tells.
    pub(crate) fn try_call(&self, args: &[u64]) -> Result<(), u64> {
        let named = NAMED.take();
        match self {
            Kernel::Native(exec) => {
                exec.call(args);
                Ok(())
            }
            Kernel::Remote(machine, code) => {
                let mut runners = RUNNERS.lock().unwrap_or_else(|e| e.into_inner());
                let runner = runners
                    .entry(*machine)
                    .or_insert_with(|| Runner::new(*machine));
                runner.call(code, &merged(named), args)
            }
        }
    }
}

/// The bytes of a function for another machine.
fn compiled(func: &cranelift_codegen::ir::Function, machine: Machine) -> Vec<u8> {
    let name = match machine {
        Machine::Aarch64 => "aarch64",
        Machine::Native | Machine::Avx512 | Machine::Haswell => "x86_64",
    };
    let mut flags = settings::builder();
    flags.set("opt_level", "none").unwrap();
    flags.set("enable_verifier", "true").unwrap();
    let isa = cranelift_codegen::isa::lookup_by_name(name)
        .unwrap()
        .finish(settings::Flags::new(flags))
        .unwrap();
    let mut context = cranelift_codegen::Context::for_function(func.clone());
    let code = context
        .compile(&*isa, &mut Default::default())
        .unwrap_or_else(|e| panic!("{:?}", e.inner));
    assert!(code.buffer.relocs().is_empty());
    code.code_buffer().to_vec()
}

static RUNNERS: LazyLock<Mutex<BTreeMap<Machine, Runner>>> = LazyLock::new(Mutex::default);

/// The program that stands for a machine.
struct Runner {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
}

impl Runner {
    fn new(machine: Machine) -> Runner {
        let variable = machine.variable().unwrap();
        let line = std::env::var(variable).unwrap_or_else(|e| panic!("{variable}: {e}"));
        let mut words = line.split_whitespace();
        let program = words
            .next()
            .unwrap_or_else(|| panic!("{variable} is empty"));
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{variable}: {program}: {e}"));
        let (requests, replies) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Runner {
            child,
            requests,
            replies,
        }
    }

    /// Sends code and memory, and puts the memory back as the kernel left it.
    fn call(&mut self, code: &[u8], regions: &[(u64, u64)], args: &[u64]) -> Result<(), u64> {
        let mut request = Vec::new();
        let number = |request: &mut Vec<u8>, n: u64| request.extend_from_slice(&n.to_le_bytes());
        number(&mut request, code.len() as u64);
        request.extend_from_slice(code);
        number(&mut request, regions.len() as u64);
        for &(start, len) in regions {
            number(&mut request, start);
            number(&mut request, len);
            // SAFETY: a test named these bytes of a live slice for this call.
            let bytes = unsafe { std::slice::from_raw_parts(start as *const u8, len as usize) };
            request.extend_from_slice(bytes);
        }
        number(&mut request, args.len() as u64);
        for &arg in args {
            number(&mut request, arg);
        }
        self.requests.write_all(&request).unwrap();
        self.requests.flush().unwrap();
        let mut status = [0; 8];
        if let Err(e) = self.replies.read_exact(&mut status) {
            panic!("the runner ended: {e}, {:?}", self.child.try_wait());
        }
        for &(start, len) in regions {
            let mut bytes = vec![0; len as usize];
            self.replies.read_exact(&mut bytes).unwrap();
            // SAFETY: as above.
            let sent = unsafe { std::slice::from_raw_parts(start as *const u8, len as usize) };
            if bytes != sent {
                // SAFETY: the kernel writes there, so that it is memory for it to write; what it has not written is as it was.
                unsafe {
                    std::ptr::copy_nonoverlapping(bytes.as_ptr(), start as *mut u8, bytes.len());
                }
            }
        }
        match u64::from_le_bytes(status) {
            0 => Ok(()),
            status => Err(status - 1),
        }
    }
}
