//! The plan, resolved once when a model is loaded: element types, operators, aliases, lifetimes.
//!
//! After this, running trusts that every step's operands have the types, layouts and numbers that its kind asks for.
//! What depends on sizes is checked when a session binds them.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::checked;
use lancet_artifact::{
    Arithmetic, Attribute as PlanAttribute, AttributeTensor, Dim, Layout, Plan, PlanError,
    StepKind, Storage,
};
use lancet_codegen::{CpuFeatures, kernels};
use lancet_ops::{Attribute, Attributes, DType, DataView, Element, Operator, Tensor, TensorView};

use crate::check;

/// Greatest last dimension of token panels.
const MAX_FEATURES: usize = 1 << 24;

/// A plan ready to be bound to sizes.
pub(crate) struct Program {
    pub(crate) plan: Plan,
    /// As `plan.values`.
    pub(crate) values: Vec<Value>,
    /// As `plan.steps`.
    pub(crate) ops: Vec<Op>,
    /// For each step, the roots of slots whose last reader it is, or that nothing reads.
    pub(crate) dead_after: Vec<Vec<usize>>,
    /// For each root that a step writes: that step, and the last step that reads it (`usize::MAX` for outputs).
    pub(crate) lifetimes: Vec<Option<(usize, usize)>>,
    /// Weights whose bytes cannot be lent as they are.
    pub(crate) constants: Vec<Tensor>,
    /// Symbols that shapes of inputs bind.
    pub(crate) input_symbols: Vec<bool>,
    /// Tokens of the widest panels: 16 or 32.
    pub(crate) panel_width: usize,
}

/// A resolved value.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) dtype: DType,
    /// The value that holds the elements: another one if this is a view.
    pub(crate) root: usize,
    pub(crate) home: Home,
    pub(crate) layout: Layout,
    /// Last dimension of panels; 0 for row-major values.
    pub(crate) features: usize,
    /// The shape depends on sizes that are known only when some step has run.
    pub(crate) late: bool,
}

/// Where the elements of a root are.
#[derive(Clone, Debug)]
pub(crate) enum Home {
    /// Given by the caller.
    Input(usize),
    /// In the weights section.
    Weights(Range<usize>),
    /// In `Program::constants`.
    Constant(usize),
    /// In the session's arena.
    Arena,
    /// Memory of its own, from the step that writes it to its last reader.
    Owned,
}

/// A resolved step.
#[derive(Debug)]
pub(crate) enum Op {
    Portable {
        operator: Operator,
        attributes: Attributes,
    },
    /// Writes the sizes in `StepKind::Dims`.
    Dims,
    /// Nothing to do: the output is an alias.
    View,
    Broadcast,
    /// A number from a few others.
    Number,
    /// A step over panels, in `crate::steps`.
    Panels,
    /// Plans, each with a session of its own.
    Regions,
}

impl Value {
    /// Rows of dwords in a panel.
    pub(crate) fn panel_rows(&self) -> usize {
        match self.dtype {
            DType::U8 => self.features.div_ceil(4),
            _ => self.features,
        }
    }
}

impl Program {
    /// Resolves and checks a plan against its weights section, which begins at a multiple of 64. Panels are as wide as suits
    /// kernels for the CPU at hand.
    pub(crate) fn new(
        plan: Plan,
        weights: &[u8],
        features: Option<&CpuFeatures>,
    ) -> Result<Program, PlanError> {
        plan.validate(weights.len() as u64)?;
        let input_symbols = input_symbols(&plan)?;
        let mut program = Program {
            values: Vec::with_capacity(plan.values.len()),
            ops: Vec::with_capacity(plan.steps.len()),
            dead_after: vec![Vec::new(); plan.steps.len()],
            lifetimes: vec![None; plan.values.len()],
            constants: Vec::new(),
            input_symbols,
            panel_width: panel_width(&plan, features),
            plan,
        };
        program.resolve_values(weights)?;
        program.resolve_steps()?;
        check::outputs(&program)?;
        program.resolve_lifetimes();
        Ok(program)
    }

    fn resolve_values(&mut self, weights: &[u8]) -> Result<(), PlanError> {
        for (i, desc) in self.plan.values.iter().enumerate() {
            let error = |m: String| PlanError::new(format!("value {i} `{}`", desc.name), m);
            let dtype: DType = desc.dtype.parse().map_err(|e| error(format!("{e}")))?;
            let fixed: Option<Vec<usize>> = desc
                .shape
                .iter()
                .map(|d| usize::try_from(d.as_fixed()?).ok())
                .collect();
            let mut features = 0;
            if desc.layout == Layout::Panels {
                let last = desc.shape.last().and_then(Dim::as_fixed);
                features = match last.and_then(|k| usize::try_from(k).ok()) {
                    Some(k)
                        if matches!(dtype, DType::F32 | DType::I32 | DType::U8)
                            && k <= MAX_FEATURES =>
                    {
                        k
                    }
                    _ => {
                        return Err(error(
                            "token panels need element type f32, i32 or u8 and a fixed last dimension"
                                .to_owned(),
                        ));
                    }
                };
                if desc.storage != Storage::Slot {
                    return Err(error(
                        "token panels can only be written by a step".to_owned(),
                    ));
                }
            }
            let home = match desc.storage {
                Storage::Input(p) => Home::Input(p as usize),
                Storage::Slot => Home::Arena,
                Storage::Weights { offset, len } => {
                    let range = offset as usize..(offset + len) as usize;
                    let shape =
                        fixed.ok_or_else(|| error("weights of symbolic shape".to_owned()))?;
                    if dtype == DType::Bool {
                        let tensor =
                            tensor_of_bytes(dtype, &shape, &weights[range]).ok_or_else(|| {
                                error("weights are not booleans of this shape".to_owned())
                            })?;
                        self.constants.push(tensor);
                        Home::Constant(self.constants.len() - 1)
                    } else if view_of_bytes(dtype, &shape, &weights[range.clone()]).is_none() {
                        return Err(error(format!(
                            "{len} bytes of weights for {dtype}{shape:?}"
                        )));
                    } else {
                        Home::Weights(range)
                    }
                }
            };
            let late = desc.shape.iter().any(|d| {
                let mut symbols = d.terms.iter().flat_map(|(_, s)| s);
                symbols.any(|&s| !self.input_symbols[s as usize])
            });
            self.values.push(Value {
                dtype,
                root: i,
                home,
                layout: desc.layout,
                features,
                late,
            });
        }
        Ok(())
    }

    fn resolve_steps(&mut self) -> Result<(), PlanError> {
        let mut known = self.input_symbols.clone();
        for (i, step) in self.plan.steps.iter().enumerate() {
            let error = |m: String| PlanError::new(format!("step {i} `{}`", step.name), m);
            check::step(&self.plan, &self.values, step).map_err(error)?;
            let op = match &step.kind {
                StepKind::Portable {
                    operator,
                    attributes,
                } => portable(operator, attributes).map_err(error)?,
                StepKind::Dims(_) => Op::Dims,
                StepKind::View => Op::View,
                StepKind::Broadcast => Op::Broadcast,
                StepKind::RangeScale | StepKind::RangeZeroPoint => Op::Number,
                StepKind::ToPanels
                | StepKind::FromPanels
                | StepKind::EmbeddingLookup { .. }
                | StepKind::LayerNorm { .. }
                | StepKind::RmsNorm { .. }
                | StepKind::Linear { .. }
                | StepKind::IntegerLinear { .. }
                | StepKind::Vertical(_)
                | StepKind::Range
                | StepKind::Attention { .. }
                | StepKind::GeneralizedAttention(_)
                | StepKind::PackedAttention { .. }
                | StepKind::Elementwise { .. }
                | StepKind::MatMul
                | StepKind::Quantize
                | StepKind::Softmax { .. }
                | StepKind::Reduce { .. }
                | StepKind::Transpose { .. }
                | StepKind::Slice { .. }
                | StepKind::Concat { .. }
                | StepKind::Pad { .. } => Op::Panels,
                StepKind::If { .. } | StepKind::Loop { .. } => Op::Regions,
            };
            for &out in &step.outputs {
                let out = out as usize;
                match op {
                    Op::Portable { .. } | Op::Regions => {
                        for dim in &self.plan.values[out].shape {
                            if let Some(s) = dim.as_symbol() {
                                known[s as usize] = true;
                            }
                        }
                        self.values[out].home = Home::Owned;
                    }
                    Op::View => {
                        let source =
                            step.inputs[0].expect("checked: a view has an operand") as usize;
                        self.values[out].root = self.values[source].root;
                    }
                    Op::Dims | Op::Broadcast | Op::Number | Op::Panels if self.values[out].late => {
                        self.values[out].home = Home::Owned;
                    }
                    Op::Dims | Op::Broadcast | Op::Number | Op::Panels => {}
                }
                let shape = &self.plan.values[out].shape;
                let sizes = match &step.kind {
                    StepKind::Dims(dims) => dims,
                    _ => shape,
                };
                let unknown = shape
                    .iter()
                    .chain(sizes)
                    .flat_map(|d| &d.terms)
                    .flat_map(|(_, s)| s)
                    .find(|&&s| !known[s as usize]);
                if let Some(&s) = unknown {
                    let name = &self.plan.symbols[s as usize];
                    return Err(error(format!(
                        "size `{name}` is not known when the step runs"
                    )));
                }
            }
            self.ops.push(op);
        }
        Ok(())
    }

    fn resolve_lifetimes(&mut self) {
        for (i, step) in self.plan.steps.iter().enumerate() {
            for &out in &step.outputs {
                let root = self.values[out as usize].root;
                if root == out as usize {
                    self.lifetimes[root] = Some((i, i));
                }
            }
            for &v in step.inputs.iter().flatten() {
                if let Some((_, last)) = &mut self.lifetimes[self.values[v as usize].root] {
                    *last = i;
                }
            }
        }
        for port in &self.plan.outputs {
            if let Some((_, last)) = &mut self.lifetimes[self.values[port.value as usize].root] {
                *last = usize::MAX;
            }
        }
        for (root, lifetime) in self.lifetimes.iter().enumerate() {
            if let Some((_, last)) = lifetime
                && let Some(dead) = self.dead_after.get_mut(*last)
            {
                dead.push(root);
            }
        }
    }
}

/// Which symbols the shapes of inputs bind.
fn input_symbols(plan: &Plan) -> Result<Vec<bool>, PlanError> {
    let mut bound = vec![false; plan.symbols.len()];
    let dims = || {
        plan.inputs.iter().flat_map(|p| {
            plan.values[p.value as usize]
                .shape
                .iter()
                .map(move |d| (p, d))
        })
    };
    for (_, dim) in dims() {
        if let Some(s) = dim.as_symbol() {
            bound[s as usize] = true;
        }
    }
    for (port, dim) in dims() {
        let mut symbols = dim.terms.iter().flat_map(|(_, s)| s);
        if let Some(&s) = symbols.find(|&&s| !bound[s as usize]) {
            return Err(PlanError::new(
                format!("input `{}`", port.name),
                format!(
                    "size `{}` is no input's dimension by itself, so it cannot be bound",
                    plan.symbols[s as usize]
                ),
            ));
        }
    }
    Ok(bound)
}

fn portable(operator: &str, attributes: &[(String, PlanAttribute)]) -> Result<Op, String> {
    let operator =
        Operator::from_text(operator).ok_or_else(|| format!("unknown operator `{operator}`"))?;
    let mut resolved = Attributes::new();
    let names: HashSet<&String> = attributes.iter().map(|(name, _)| name).collect();
    if names.len() != attributes.len() {
        return Err(format!("{operator}: an attribute is repeated"));
    }
    for (name, value) in attributes {
        let value = match value {
            PlanAttribute::Int(v) => Attribute::Int(*v),
            PlanAttribute::Float(v) => Attribute::Float(*v),
            PlanAttribute::Str(v) => Attribute::Str(v.clone()),
            PlanAttribute::Ints(v) => Attribute::Ints(v.clone()),
            PlanAttribute::Floats(v) => Attribute::Floats(v.clone()),
            PlanAttribute::Strs(v) => Attribute::Strs(v.clone()),
            PlanAttribute::Tensor(t) => {
                let tensor = attribute_tensor(t)
                    .ok_or_else(|| format!("{operator} attribute `{name}`: malformed tensor"))?;
                Attribute::Tensor(Arc::new(tensor))
            }
        };
        resolved.set(name, value);
    }
    resolved.check(operator).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        errors.join("; ")
    })?;
    Ok(Op::Portable {
        operator,
        attributes: resolved,
    })
}

fn attribute_tensor(tensor: &AttributeTensor) -> Option<Tensor> {
    let dtype: DType = tensor.dtype.parse().ok()?;
    let shape: Option<Vec<usize>> = tensor
        .shape
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect();
    tensor_of_bytes(dtype, &shape?, &tensor.bytes)
}

/// A copy of little-endian `bytes` as a tensor, or `None` if they do not fill the shape or are not of the type.
pub(crate) fn tensor_of_bytes(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<Tensor> {
    fn collect<T: Element + checked::CheckedBitPattern>(bytes: &[u8]) -> Option<lancet_ops::Data> {
        let chunks = bytes.chunks_exact(size_of::<T>());
        if !chunks.remainder().is_empty() {
            return None;
        }
        let values: Option<Vec<T>> = chunks
            .map(|c| checked::try_pod_read_unaligned(c).ok())
            .collect();
        Some(T::into_data(values?))
    }
    let data = match dtype {
        DType::F32 => collect::<f32>(bytes),
        DType::F64 => collect::<f64>(bytes),
        DType::F16 => collect::<half::f16>(bytes),
        DType::BF16 => collect::<half::bf16>(bytes),
        DType::I8 => collect::<i8>(bytes),
        DType::I16 => collect::<i16>(bytes),
        DType::I32 => collect::<i32>(bytes),
        DType::I64 => collect::<i64>(bytes),
        DType::U8 => collect::<u8>(bytes),
        DType::U16 => collect::<u16>(bytes),
        DType::U32 => collect::<u32>(bytes),
        DType::U64 => collect::<u64>(bytes),
        DType::Bool => collect::<bool>(bytes),
    };
    Tensor::try_new(shape.to_vec(), data?)
}

/// Tokens of the widest panels: what suits most of the weights' products. All values of a plan share it, so that none is laid
/// out anew between two layers.
fn panel_width(plan: &Plan, features: Option<&CpuFeatures>) -> usize {
    const WIDEST: usize = 32;
    let Some(features) = features else {
        return WIDEST;
    };
    let (mut narrow, mut wide) = (0u64, 0u64);
    for matrix in &plan.matrices {
        let by_f32 = matrix.arithmetic == Arithmetic::Float;
        if by_f32 && kernels::panel_width(matrix.format, features) < WIDEST {
            narrow = narrow.saturating_add(matrix.nnz);
        } else {
            wide = wide.saturating_add(matrix.nnz);
        }
    }
    if wide < narrow { WIDEST / 2 } else { WIDEST }
}

/// `bytes` as a tensor, or `None` if they do not fill the shape, are not aligned or are not of the type.
pub(crate) fn view_of_bytes<'a>(
    dtype: DType,
    shape: &'a [usize],
    bytes: &'a [u8],
) -> Option<TensorView<'a>> {
    let data = match dtype {
        DType::F32 => DataView::F32(bytemuck::try_cast_slice(bytes).ok()?),
        DType::F64 => DataView::F64(bytemuck::try_cast_slice(bytes).ok()?),
        DType::F16 => DataView::F16(bytemuck::try_cast_slice(bytes).ok()?),
        DType::BF16 => DataView::BF16(bytemuck::try_cast_slice(bytes).ok()?),
        DType::I8 => DataView::I8(bytemuck::try_cast_slice(bytes).ok()?),
        DType::I16 => DataView::I16(bytemuck::try_cast_slice(bytes).ok()?),
        DType::I32 => DataView::I32(bytemuck::try_cast_slice(bytes).ok()?),
        DType::I64 => DataView::I64(bytemuck::try_cast_slice(bytes).ok()?),
        DType::U8 => DataView::U8(bytes),
        DType::U16 => DataView::U16(bytemuck::try_cast_slice(bytes).ok()?),
        DType::U32 => DataView::U32(bytemuck::try_cast_slice(bytes).ok()?),
        DType::U64 => DataView::U64(bytemuck::try_cast_slice(bytes).ok()?),
        DType::Bool => DataView::Bool(checked::try_cast_slice(bytes).ok()?),
    };
    TensorView::new(shape, data)
}
