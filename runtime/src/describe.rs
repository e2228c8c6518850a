//! What a model consists of, for people and tools.

use lancet_artifact::{StepKind, WeightFormat};

use crate::Model;

/// What a model consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// Length of the weights section in bytes.
    pub weights_bytes: u64,
    /// In the order in which they run.
    pub steps: Vec<StepDescription>,
    pub matrices: Vec<MatrixDescription>,
    /// Facts that the compiler wrote down.
    pub metadata: Vec<(String, String)>,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepDescription {
    /// The node that the step came from.
    pub name: String,
    /// `linear`, `attention`, and so on; the operator's name for portable steps.
    pub kind: String,
    /// Runs through `lancet-ops`, without a kernel.
    pub portable: bool,
    /// Names of values with their shapes.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
}

/// One packed weight.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixDescription {
    pub name: String,
    pub format: WeightFormat,
    /// Number of outputs.
    pub n: usize,
    /// Number of inputs.
    pub k: usize,
    /// Number of non-zero weights.
    pub nnz: u64,
    /// Length in bytes, packed.
    pub packed_bytes: u64,
    /// Ranges of rows that a kernel call computes.
    pub n_row_blocks: usize,
}

impl MatrixDescription {
    /// Fraction of weights that are zero.
    pub fn sparsity(&self) -> f64 {
        1.0 - self.nnz as f64 / (self.n as f64 * self.k as f64)
    }
}

impl Model {
    /// What the model consists of.
    pub fn describe(&self) -> Description {
        let plan = self.plan();
        let value = |v: u32| {
            let value = &plan.values[v as usize];
            let shape: Vec<String> = value.shape.iter().map(|d| self.dim_text(d)).collect();
            format!("{}: {}[{}]", value.name, value.dtype, shape.join(", "))
        };
        let steps = plan
            .steps
            .iter()
            .map(|step| StepDescription {
                name: step.name.clone(),
                kind: kind_text(&step.kind).to_owned(),
                portable: matches!(step.kind, StepKind::Portable { .. }),
                inputs: step
                    .inputs
                    .iter()
                    .map(|v| v.map_or_else(|| "none".to_owned(), value))
                    .collect(),
                outputs: step.outputs.iter().map(|&v| value(v)).collect(),
            })
            .collect();
        let matrices = plan
            .matrices
            .iter()
            .map(|m| MatrixDescription {
                name: m.name.clone(),
                format: m.format,
                n: m.n as usize,
                k: m.k as usize,
                nnz: m.nnz,
                packed_bytes: m.len,
                n_row_blocks: m.row_blocks.len(),
            })
            .collect();
        Description {
            weights_bytes: self.shared.weights().len() as u64,
            steps,
            matrices,
            metadata: plan.metadata.clone(),
        }
    }
}

fn kind_text(kind: &StepKind) -> &str {
    match kind {
        StepKind::Portable { operator, .. } => operator,
        StepKind::Dims(_) => "dims",
        StepKind::View => "view",
        StepKind::Broadcast => "broadcast",
        StepKind::ToPanels => "to_panels",
        StepKind::FromPanels => "from_panels",
        StepKind::EmbeddingLookup => "embedding_lookup",
        StepKind::LayerNorm { .. } => "layer_norm",
        StepKind::Linear { .. } => "linear",
        StepKind::Attention { .. } => "attention",
        StepKind::Activation { .. } => "activation",
        StepKind::Add => "add",
    }
}
