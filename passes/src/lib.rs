//! Passes: rewrites of the graph between import and lowering, and what runs them.
//!
//! A [`Pass`] is a pure function of a graph, its options and a [`Target`]; it sees no file, no environment variable and no
//! clock. [`PASSES`] lists every pass; [`Pipeline::parse`] reads which to run from text; [`PassManager`] runs them. A pass
//! that declines to rewrite says why in a [`Remark`].
//!
//! How to write one: collect matches on the immutable graph ([`matcher`]), then apply them ([`Rewrites`]).
#![forbid(unsafe_code)]

pub mod analysis;
mod assign_layout;
mod attention;
mod context;
mod cse;
mod dce;
mod detect_sparsity;
mod eliminate_identities;
mod error;
mod expand_composites;
mod expand_einsum;
mod expand_fake_quantization;
mod features;
mod fold_attention_biases;
mod fold_constants;
mod fuse_elementwise;
mod fuse_epilogue;
mod heads;
mod layer;
mod manager;
pub mod matcher;
mod narrow_to_observed_tokens;
mod pack_tokens;
mod pass;
mod pipeline;
mod polynomial;
mod quantized;
mod raise_attention;
mod raise_block_linear;
mod raise_embedding;
mod raise_gelu;
mod raise_generalized_attention;
mod raise_integer_linear;
mod raise_layer_norm;
mod raise_linear;
mod raise_padding_mask;
mod raise_relative_bias;
mod raise_rotary;
mod registry;
mod remark;
mod remove_dead_units;
mod rewrite;
mod simplify_gathers;
mod simplify_quantization;
mod simplify_shapes;
mod sink_transposes;
mod slice_depth;
mod slice_width;
mod split_linear;
mod unify_sizes;
mod vector;
mod widen_half_precision;

pub use context::{OptionValue, Options, PassContext, Target};
pub use error::{PassError, PipelineError};
pub use manager::{Checks, PassManager, PassReport, Report};
pub use pass::{Changed, Pass};
pub use pipeline::{Pipeline, PipelineEntry};
pub use registry::{OptionSchema, OptionType, PASSES, PassInfo};
pub use remark::{Remark, RemarkKind};
pub use rewrite::Rewrites;
