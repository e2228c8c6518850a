//! A run allocates nothing once its sizes have been seen, where every step has a kernel.
#![cfg(all(feature = "jit", target_arch = "x86_64"))]

mod net;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lancet_runtime::{Model, ModelOptions, Session};
use net::{encoder, encoder_inputs, views};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn warm_runs_allocate_nothing() {
    let net = encoder(false);
    let options = ModelOptions {
        threads: Some(2),
        ..ModelOptions::default()
    };
    let model = Model::from_parts(net.plan.clone(), &net.weights, &options).expect("valid");
    let mut session = Session::new(&model);
    let inputs = encoder_inputs(2, 33);
    let inputs = views(&inputs);
    // Scratch memory of a thread appears when the thread first has a task.
    let least = (0..50)
        .map(|_| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            session.run_in_place(&inputs).expect("runs");
            let _ = session.output("hidden").expect("an output");
            ALLOCATIONS.load(Ordering::Relaxed) - before
        })
        .min();
    assert_eq!(least, Some(0));
}
