//! The kernels that a plan's steps run: what `lancet dump` prints, and what tests hold a plan to.
//!
//! Specs are those of full panels. Where a step does not know yet, since it learns its sizes with a request, one of the kernels
//! that it may ask for stands for them.

use std::collections::BTreeSet;

use lancet_artifact::{
    Activation, Float, KernelSpec, Layout, Plan, Reach, Reduction, Step, StepKind, ValueDesc,
};
use lancet_codegen::formats;
use lancet_ops::DType;
use lancet_ops::elementwise::{Body, floats};

/// Tokens of a panel.
const PANEL: u32 = 32;

/// Kernels of the plan's steps, and of the plans that these run, in the order of the specs.
pub fn of_plan(plan: &Plan) -> BTreeSet<KernelSpec> {
    let regions = |step: &Step| step.kind.regions().into_iter().flat_map(of_plan).collect();
    let of = |step| {
        let mut specs: Vec<KernelSpec> = regions(step);
        specs.extend(of_step(plan, step));
        specs
    };
    plan.steps.iter().flat_map(of).collect()
}

/// Kernels of one step. One that cannot be emitted has none: its step is interpreted.
pub fn of_step(plan: &Plan, step: &Step) -> Vec<KernelSpec> {
    let (panel, lanes) = (PANEL, PANEL);
    match &step.kind {
        StepKind::Linear { matrix, activation } => {
            let format = plan.matrices[*matrix as usize].format;
            let mut specs = vec![KernelSpec::Matmul {
                format,
                panel,
                lanes,
            }];
            let residual = step.inputs.get(2).copied().flatten().is_some();
            if residual || *activation != Activation::None {
                specs.push(KernelSpec::Epilogue {
                    activation: *activation,
                    residual,
                    panel,
                    lanes,
                });
            }
            specs
        }
        StepKind::IntegerLinear { matrix, tail } => {
            let matrix = &plan.matrices[*matrix as usize];
            let stored = (matrix.format, matrix.arithmetic);
            let mut specs = vec![KernelSpec::matmul(stored, panel, lanes)];
            if formats::in_byte_rows(matrix.format) {
                specs.push(KernelSpec::ByteRows { panel, lanes });
            }
            specs.extend(tail.clone().map(|vertical| KernelSpec::Vertical {
                vertical,
                panel,
                lanes,
            }));
            specs
        }
        StepKind::Vertical(vertical) => vec![KernelSpec::Vertical {
            vertical: vertical.clone(),
            panel,
            lanes,
        }],
        StepKind::RmsNorm { .. } => vec![KernelSpec::RmsNorm { panel, lanes }],
        StepKind::LayerNorm { .. } => vec![KernelSpec::LayerNorm { panel, lanes }],
        StepKind::Attention(p) | StepKind::PackedAttention(p) => {
            let biases = step.inputs.get(4..).unwrap_or(&[]);
            if matches!(step.kind, StepKind::Attention(_)) && biases.iter().any(Option::is_some) {
                vec![KernelSpec::AttentionProduct, KernelSpec::AttentionSoftmax]
            } else {
                let rounds = p.rounding.map(|r| r.is_some());
                vec![KernelSpec::AttentionTile { rounds }]
            }
        }
        StepKind::GeneralizedAttention(p) => {
            let others = step.inputs.iter().skip(3).flatten();
            let others = others.map(|&v| plan.values[v as usize].dtype.as_str());
            let operands: Vec<(Reach, &str)> = ([(Reach::Panel, "f32"), (Reach::Lanes, "f32")])
                .into_iter()
                .chain(others.map(|dtype| (Reach::Panel, dtype)))
                .collect();
            let stages = p.stages.iter().filter(|lines| !lines.is_empty());
            let stages = stages.filter_map(|lines| elementwise(lines, &operands));
            std::iter::once(KernelSpec::AttentionProduct)
                .chain(stages)
                .collect()
        }
        StepKind::Elementwise { body } => {
            let out = &plan.values[step.outputs[0] as usize];
            let operands = step.inputs.iter().flatten();
            let operands = operands.map(|&v| &plan.values[v as usize]);
            let operands: Vec<(Reach, &str)> = operands
                .map(|v| (reach(v, out), v.dtype.as_str()))
                .collect();
            elementwise(body, &operands).into_iter().collect()
        }
        StepKind::Reduce { reduction, axes } => {
            let x = step.inputs[0].map(|v| &plan.values[v as usize]);
            let is_row = x.is_some_and(|x| {
                x.layout == Layout::RowMajor && axes.end as usize == x.shape.len()
            });
            let float = match x.map(|x| x.dtype.as_str()) {
                Some("f32") => Float::F32,
                Some("f64") => Float::F64,
                _ => return Vec::new(),
            };
            vec![KernelSpec::Reduce {
                reduction: match reduction {
                    Reduction::Mean => Reduction::Sum,
                    other => *other,
                },
                float,
                lanes: if is_row { 8 } else { lanes },
            }]
        }
        StepKind::EmbeddingLookup { .. } => {
            let tables = step.inputs.len() as u32 / 2;
            vec![KernelSpec::EmbeddingSum { tables, panel }]
        }
        StepKind::MatMul => vec![KernelSpec::AttentionProduct],
        StepKind::Softmax { .. } => vec![KernelSpec::AttentionSoftmax],
        StepKind::Portable { .. }
        | StepKind::If { .. }
        | StepKind::Loop { .. }
        | StepKind::Dims(_)
        | StepKind::View
        | StepKind::Broadcast
        | StepKind::Range
        | StepKind::Quantize
        | StepKind::RangeScale
        | StepKind::RangeZeroPoint
        | StepKind::ToPanels
        | StepKind::FromPanels
        | StepKind::Transpose { .. }
        | StepKind::Slice { .. }
        | StepKind::Concat { .. }
        | StepKind::Pad { .. } => Vec::new(),
    }
}

/// What a kernel takes an operand of an elementwise step for.
fn reach(value: &ValueDesc, out: &ValueDesc) -> Reach {
    let one = value.shape.iter().all(|d| d.as_fixed() == Some(1));
    match (value.layout, out.layout) {
        (Layout::RowMajor, _) if one => Reach::One,
        (Layout::RowMajor, Layout::Panels) => Reach::Rows,
        (Layout::Panels, _) if value.shape.last() != out.shape.last() => Reach::Lanes,
        _ => Reach::Panel,
    }
}

/// The kernel of a body of operands of these types, if kernels hold its values.
fn elementwise(body: &[String], operands: &[(Reach, &str)]) -> Option<KernelSpec> {
    let dtypes = operands.iter().map(|(_, dtype)| dtype.parse().ok());
    let dtypes: Vec<DType> = dtypes.collect::<Option<_>>()?;
    let (taken, result) = floats(&Body::parse(body).ok()?, &dtypes)?;
    let float = |d: DType| match d {
        DType::F64 => Float::F64,
        _ => Float::F32,
    };
    Some(KernelSpec::Elementwise {
        body: body.join("; "),
        operands: (operands.iter().zip(taken))
            .map(|(&(reach, _), dtype)| (reach, float(dtype)))
            .collect(),
        result: float(result),
        panel: PANEL,
        lanes: PANEL,
    })
}
