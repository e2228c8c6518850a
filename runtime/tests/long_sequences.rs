//! Attention over thousands of tokens takes memory in proportion to their number.
#![cfg(all(feature = "jit", target_arch = "x86_64"))]

mod net;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use lancet_artifact::{Activation, Dim, Layout as ValueLayout, StepKind, WeightFormat};
use lancet_ops::Tensor;
use lancet_runtime::{Kernels, Model, ModelOptions, Session};
use net::{Net, position_inputs, twice, views};

/// Counts bytes that are allocated.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by the test that allocates.
static ALONE: Mutex<()> = Mutex::new(());

const HEADS: usize = 2;
const FEATURES: usize = 32;

/// What is added to scores beside the mask.
#[derive(Clone, Copy, PartialEq)]
enum Added {
    /// One number for each distance and head.
    Relative,
    /// Numbers for each query and key, by distance, and a mask of queries.
    Positions,
}

/// One layer of attention with a key mask and what is added.
fn layer(added: Added) -> Net {
    let mut net = Net::default();
    let (b, s) = (net.symbol("batch"), net.symbol("seq"));
    let shape = [b.clone(), s.clone(), Dim::fixed(FEATURES as i64)];
    let ids = net.input("ids", "i64", &[b.clone(), s.clone()]);
    let mask = net.input("mask", "i64", &[b.clone(), s.clone()]);
    let others = match added {
        Added::Relative => {
            let shape = [Dim::fixed(HEADS as i64), twice(&s)];
            vec![None, Some(net.input("relative", "f32", &shape))]
        }
        Added::Positions => [&[None; 2], &net.positions([&b, &s], HEADS)[..]].concat(),
    };
    let words = net.random(11 * FEATURES);
    let words = net.constant(&[11, FEATURES], words);
    let x = net.embedding(&[(ids, words)], &shape);
    let qkv = [0; 3].map(|_| {
        let size = [FEATURES, FEATURES];
        net.linear(x, size, WeightFormat::Dense, Activation::None, true, None)
    });
    let y = net.attention(qkv, HEADS as u32, Some(mask), &others);
    let y = net.same(StepKind::FromPanels, y, ValueLayout::RowMajor);
    net.output("y", y);
    net
}

fn inputs(added: Added, seq: usize) -> Vec<(&'static str, Tensor)> {
    let slope = |i: usize| -((i % (2 * seq)) as f32 - seq as f32).abs() / 256.0;
    let mut inputs = vec![
        (
            "ids",
            Tensor::new([1, seq], (0..seq as i64).map(|i| i * 7 % 11).collect()),
        ),
        (
            "mask",
            Tensor::new([1, seq], (0..seq).map(|i| i64::from(i % 5 != 3)).collect()),
        ),
    ];
    match added {
        Added::Relative => inputs.push((
            "relative",
            Tensor::new([HEADS, 2 * seq], (0..2 * HEADS * seq).map(slope).collect()),
        )),
        Added::Positions => inputs.extend(position_inputs(1, seq, HEADS)),
    }
    inputs
}

/// Bytes that a session of its own needs at most to run `inputs`.
fn peak_bytes(model: &Model, inputs: &[(&str, Tensor)]) -> usize {
    let inputs = views(inputs);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut session = Session::new(model);
    session.run_in_place(&inputs).expect("runs");
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn memory_grows_with_the_number_of_tokens_not_with_its_square() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = [
        (Added::Relative, Kernels::default(), 4096),
        (Added::Relative, Kernels::Portable, 2048),
        (Added::Positions, Kernels::default(), 4096),
        (Added::Positions, Kernels::Portable, 2048),
    ];
    for (added, kernels, longest) in cases {
        let net = layer(added);
        let options = ModelOptions {
            threads: Some(2),
            kernels,
            ..ModelOptions::default()
        };
        let model = Model::from_parts(net.plan.clone(), &net.weights, &options).expect("valid");
        let [short, long] = [longest / 2, longest].map(|n| peak_bytes(&model, &inputs(added, n)));
        assert!(short < long && long * 100 < short * 205, "{short}, {long}");
        // One matrix of scores of one head would take four times as much.
        assert!(long < longest * longest, "{long} bytes");
    }
}

#[test]
fn the_answer_for_thousands_of_tokens_is_that_of_the_operators() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for added in [Added::Relative, Added::Positions] {
        let net = layer(added);
        let model = Model::from_parts(net.plan.clone(), &net.weights, &ModelOptions::default());
        let inputs = inputs(added, 1026);
        let found = Session::new(&model.expect("valid"))
            .run(&views(&inputs))
            .expect("runs");
        let expected = &net.reference(&inputs)[0];
        let (found, expected) = (found[0].1.as_slice::<f32>(), expected.as_slice::<f32>());
        for (found, expected) in found.expect("f32").iter().zip(expected.expect("f32")) {
            assert!(
                (found - expected).abs() <= 1e-5 * (1.0 + expected.abs()),
                "{found} {expected}"
            );
        }
    }
}
