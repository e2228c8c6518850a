//! Throw-away executable memory for kernels, until the runtime's own.
#![allow(dead_code, reason = "each binary uses a part of this")]
#![expect(
    clippy::unwrap_used,
    reason = "a failure ends the program, as it should"
)]

use cranelift_codegen::settings::{self, Configurable};
use lancet_codegen::Code;

pub(crate) struct Exec {
    ptr: *const u8,
}

impl Exec {
    pub(crate) fn new(code: &Code) -> Exec {
        match code {
            Code::Bytes(bytes) => Exec { ptr: map(bytes) },
            Code::Clif(func) => {
                let mut fb = settings::builder();
                fb.set("opt_level", "none").unwrap();
                fb.set("enable_verifier", "true").unwrap();
                let isa = cranelift_native::builder()
                    .unwrap()
                    .finish(settings::Flags::new(fb))
                    .unwrap();
                let mut ctx = cranelift_codegen::Context::for_function((**func).clone());
                let compiled = ctx
                    .compile(&*isa, &mut Default::default())
                    .unwrap_or_else(|e| panic!("{:?}", e.inner));
                assert!(compiled.buffer.relocs().is_empty());
                Exec {
                    ptr: map(compiled.code_buffer()),
                }
            }
        }
    }

    pub(crate) fn call(&self, args: &[u64]) {
        // SAFETY: `ptr` is where `map` put a kernel, whose entry takes one pointer.
        let f: extern "C" fn(*const u64) = unsafe { std::mem::transmute(self.ptr) };
        f(args.as_ptr());
    }
}

fn map(bytes: &[u8]) -> *const u8 {
    // SAFETY: the mapping is new, checked, and at least as long as what is copied into it while it is still writable.
    unsafe {
        let len = bytes.len().next_multiple_of(4096);
        let p = libc::mmap(
            std::ptr::null_mut(),
            len,
            3,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert!(p != libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), p.cast(), bytes.len());
        assert_eq!(libc::mprotect(p, len, 5), 0);
        p.cast()
    }
}

/// CPU time of this thread, in seconds: what others run meanwhile does not count.
pub(crate) fn cpu_time() -> f64 {
    // SAFETY: a timespec of zeros is a valid one, and the call writes to nothing else.
    unsafe {
        let mut t: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t);
        t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
    }
}
