//! The table of passes. The command line, the documentation test and the file tests all read it.

use crate::assign_layout::AssignLayout;
use crate::detect_sparsity::DetectSparsity;
use crate::fuse_elementwise::FuseElementwise;
use crate::fuse_epilogue::FuseEpilogue;
use crate::narrow_to_observed_tokens::NarrowToObservedTokens;
use crate::pack_tokens::PackTokens;
use crate::raise_attention::RaiseAttention;
use crate::raise_embedding::RaiseEmbedding;
use crate::raise_gelu::RaiseGelu;
use crate::raise_layer_norm::{RaiseLayerNorm, RaiseRmsNorm};
use crate::raise_linear::RaiseLinear;
use crate::{OptionValue, Pass};
use lancet_ir::WeightFormat;

/// The type of a pass option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionType {
    Int,
    Float,
    /// A number above 0, at most 1.
    Share,
    Bool,
    /// `auto`, or the format of packed weights.
    Format,
}

impl OptionType {
    /// What a value of this type is called in messages.
    pub fn describe(self) -> &'static str {
        match self {
            OptionType::Int => "an integer",
            OptionType::Float => "a number",
            OptionType::Share => "a number above 0, at most 1",
            OptionType::Bool => "true or false",
            OptionType::Format => {
                "`auto`, `dense`, `unstructured`, or blocks such as `4x1` of at most 255 by 255"
            }
        }
    }

    /// The value that `text` stands for, if it is of this type.
    pub fn parse(self, text: &str) -> Option<OptionValue> {
        match self {
            OptionType::Int => text.parse().ok().map(OptionValue::Int),
            OptionType::Float => match text.parse::<f64>() {
                Ok(v) if v.is_finite() => Some(OptionValue::Float(v)),
                _ => None,
            },
            OptionType::Share => (text.parse::<f64>().ok())
                .filter(|&v| 0.0 < v && v <= 1.0)
                .map(OptionValue::Float),
            OptionType::Bool => text.parse().ok().map(OptionValue::Bool),
            OptionType::Format if text == "auto" => Some(OptionValue::Format(None)),
            OptionType::Format => parse_format(text).map(|f| OptionValue::Format(Some(f))),
        }
    }
}

/// The format of this name.
fn parse_format(text: &str) -> Option<WeightFormat> {
    match text {
        "dense" => Some(WeightFormat::Dense),
        "unstructured" => Some(WeightFormat::Unstructured),
        _ => {
            let (r, c) = text.split_once('x')?;
            let (r, c) = (r.parse().ok()?, c.parse().ok()?);
            (r > 0 && c > 0).then_some(WeightFormat::Bsr { r, c })
        }
    }
}

/// One option of a pass.
#[derive(Clone, Copy, Debug)]
pub struct OptionSchema {
    pub name: &'static str,
    pub ty: OptionType,
    /// The default, as it would stand in a pipeline.
    pub default: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
}

/// One row of the table of passes.
#[derive(Clone, Copy, Debug)]
pub struct PassInfo {
    /// The name in pipelines; the source file is the name with underscores.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    pub options: &'static [OptionSchema],
    pub new: fn() -> Box<dyn Pass>,
}

/// Every pass, in the order of the pipeline's ideas: canonicalize, raise, quantize, prune, layout, fuse.
pub static PASSES: &[PassInfo] = &[
    crate::fold_constants::INFO,
    crate::eliminate_identities::INFO,
    crate::cse::INFO,
    crate::dce::INFO,
    crate::simplify_shapes::INFO,
    crate::unify_sizes::INFO,
    crate::simplify_gathers::INFO,
    crate::sink_transposes::INFO,
    crate::widen_half_precision::INFO,
    crate::expand_composites::INFO,
    crate::expand_einsum::INFO,
    crate::simplify_quantization::INFO,
    crate::raise_integer_linear::INFO,
    crate::expand_fake_quantization::INFO,
    crate::raise_padding_mask::INFO,
    PassInfo {
        name: "raise-layer-norm",
        summary: "recognise layer normalization written out in arithmetic",
        options: &[],
        new: || Box::new(RaiseLayerNorm),
    },
    PassInfo {
        name: "raise-rms-norm",
        summary: "recognise root-mean-square normalization written out in arithmetic",
        options: &[],
        new: || Box::new(RaiseRmsNorm),
    },
    PassInfo {
        name: "raise-gelu",
        summary: "recognise GELU, SiLU and quick GELU written out in arithmetic",
        options: &[],
        new: || Box::new(RaiseGelu),
    },
    PassInfo {
        name: "raise-linear",
        summary: "turn products with a constant matrix, and their bias, into linear layers",
        options: &[],
        new: || Box::new(RaiseLinear),
    },
    crate::raise_block_linear::INFO,
    crate::split_linear::INFO,
    crate::raise_rotary::INFO,
    PassInfo {
        name: "raise-attention",
        summary: "turn softmax attention into one operator on unsplit heads",
        options: &[],
        new: || Box::new(RaiseAttention),
    },
    crate::raise_generalized_attention::INFO,
    crate::raise_relative_bias::INFO,
    PassInfo {
        name: "raise-embedding",
        summary: "turn lookups of constant tables, and their sum, into one operator",
        options: &[],
        new: || Box::new(RaiseEmbedding),
    },
    crate::fold_attention_biases::INFO,
    crate::remove_dead_units::INFO,
    crate::slice_depth::INFO,
    crate::slice_width::INFO,
    PassInfo {
        name: "narrow-to-observed-tokens",
        summary: "compute only the token that a head observes",
        options: &[],
        new: || Box::new(NarrowToObservedTokens),
    },
    PassInfo {
        name: "pack-tokens",
        summary: "compute no padding that no output observes",
        options: &[],
        new: || Box::new(PackTokens),
    },
    PassInfo {
        name: "detect-sparsity",
        summary: "choose a packed format for the weight of every linear layer, from its own zeros",
        options: &[OptionSchema {
            name: "format",
            ty: OptionType::Format,
            default: "auto",
            summary: "`auto`, or one format for every weight: `dense`, `unstructured`, or blocks such as `4x1`",
        }],
        new: || Box::new(DetectSparsity),
    },
    PassInfo {
        name: "assign-layout",
        summary: "put activations between linear layers, norms and attention in token panels",
        options: &[],
        new: || Box::new(AssignLayout),
    },
    PassInfo {
        name: "fuse-elementwise",
        summary: "fuse chains of elementwise operators into one",
        options: &[],
        new: || Box::new(FuseElementwise),
    },
    PassInfo {
        name: "fuse-epilogue",
        summary: "fuse activations and residuals into the linear layers before them",
        options: &[],
        new: || Box::new(FuseEpilogue),
    },
];
