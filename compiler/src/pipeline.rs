//! The default pipeline on one screen.
//!
//! Canonicalize so that later passes see one spelling; raise what exporters took apart; choose formats from the zeros;
//! place activations in token panels last, when it is known which operators remain.

/// The default pipeline for one slice of a model that was trained for several: `width` and `depth` are the shares of heads
/// and neurons, and of layers, that stay, above 0 and at most 1.
pub fn sliced(width: f64, depth: f64) -> String {
    let slices = format!("slice-depth{{keep = {depth}}},slice-width{{keep = {width}}},");
    let (raised, rest) = DEFAULT.split_at(DEFAULT.find(SLICE_BEFORE).unwrap_or(DEFAULT.len()));
    format!("{raised}{slices}{rest}")
}

/// Slices are cut when layers are raised and fused, and before anything is folded out of one into the other.
const SLICE_BEFORE: &str = "fold-attention-biases";

/// Passes in order, as pipeline text.
pub const DEFAULT: &str = concat!(
    // Half precision becomes single, its constants rounded as the file says; fused operators of other engines come apart; shape
    // arithmetic becomes symbolic sizes, constants become values, copies disappear, sizes that must be equal become one.
    "fold-constants,widen-half-precision,expand-composites,simplify-shapes,simplify-gathers,",
    "eliminate-identities,cse,fold-constants,unify-sizes,simplify-shapes,eliminate-identities,",
    // Products of quantized values become integer ones; what is still quantized and constant is worth no more than its value.
    "simplify-quantization,raise-integer-linear,fold-constants{dequantize = true},",
    // Each of these names a part of the model that a kernel exists for.
    "raise-layer-norm,raise-rms-norm,raise-gelu,raise-linear,",
    "raise-block-linear,expand-einsum,eliminate-identities,sink-transposes,split-linear,",
    "raise-rotary,raise-attention,raise-generalized-attention,raise-relative-bias,raise-embedding,",
    // What raising left over: quantizations behind new views, views of views, constants that only a raised part read.
    "simplify-quantization,eliminate-identities,simplify-shapes,eliminate-identities,fold-constants,cse,",
    // Tails of linear layers run while their output is in cache.
    "fuse-epilogue,",
    // Biases that attention does not need, then neurons, heads and channels that are dead. Shared weights change alike.
    "fold-attention-biases,remove-dead-units,cse,",
    // What no output observes is not computed.
    "narrow-to-observed-tokens,pack-tokens,",
    // Quantization that is undone at once is arithmetic; elementwise operators that are left make one pass over memory together.
    "expand-fake-quantization,fuse-elementwise,",
    // The zeros of each weight choose its format; layouts follow from what runs on panels.
    "detect-sparsity,assign-layout",
);
