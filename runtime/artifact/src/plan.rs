//! The plan: values, matrices and a flat list of steps, over sizes that are bound at run time.
//!
//! Invariants, checked by [`Plan::validate`] where a plan is written, read and loaded: every index is in range, every value is written by at most one step and before it is read, every range of
//! weights lies in the weights section. What steps ask of their operands (types, layouts, sizes) is checked by the
//! runtime when it loads a model.
//!
//! Offsets of buffers are not stored. A value lives from the step that writes it to the last that reads it, and the
//! runtime places it when the sizes are known.

use std::ops::Range;

use crate::{Activation, Arithmetic, Reduction, Vertical, WeightFormat};

/// A compiled model without its weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Names of the sizes that are bound at run time; a [`Dim`] refers to them by index.
    pub symbols: Vec<String>,
    /// Tensors that steps read and write; everything else refers to them by index.
    pub values: Vec<ValueDesc>,
    /// What the caller gives. Entry `i` names a value whose storage is `Storage::Input(i)`.
    pub inputs: Vec<Port>,
    /// What the caller gets, any values.
    pub outputs: Vec<Port>,
    /// In the order in which they run.
    pub steps: Vec<Step>,
    /// Packed weights of linear layers; `StepKind::Linear` refers to them by index.
    pub matrices: Vec<MatrixDesc>,
    /// Facts for people, such as the producer of the model: name and text.
    pub metadata: Vec<(String, String)>,
}

/// A named input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    /// Index into [`Plan::values`].
    pub value: u32,
}

/// A size: an integer polynomial over symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dim {
    /// Coefficient and the symbols multiplied, as indices into [`Plan::symbols`], for each term. No term means 0.
    pub terms: Vec<(i64, Vec<u32>)>,
}

impl Dim {
    /// A fixed size.
    pub fn fixed(value: i64) -> Dim {
        match value {
            0 => Dim::default(),
            value => Dim {
                terms: vec![(value, Vec::new())],
            },
        }
    }

    /// A size that is one symbol.
    pub fn symbol(index: u32) -> Dim {
        Dim {
            terms: vec![(1, vec![index])],
        }
    }

    /// The value if no symbol occurs and nothing overflows.
    pub fn as_fixed(&self) -> Option<i64> {
        self.eval(&|_| None)
    }

    /// The symbol if the size is one symbol and nothing else.
    pub fn as_symbol(&self) -> Option<u32> {
        match self.terms.as_slice() {
            [(1, symbols)] if symbols.len() == 1 => Some(symbols[0]),
            _ => None,
        }
    }

    /// The value under `bindings`, or `None` if a symbol is unbound or the value overflows.
    pub fn eval(&self, bindings: &dyn Fn(u32) -> Option<i64>) -> Option<i64> {
        self.terms.iter().try_fold(0i64, |sum, (coef, symbols)| {
            let term = symbols
                .iter()
                .try_fold(*coef, |t, &s| t.checked_mul(bindings(s)?))?;
            sum.checked_add(term)
        })
    }
}

impl Plan {
    /// Every step, those of plans that steps run behind the step.
    pub fn all_steps(&self) -> Vec<&Step> {
        let mut steps = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            steps.push(step);
            let regions = step.kind.regions().into_iter();
            steps.extend(regions.flat_map(Plan::all_steps));
        }
        steps
    }

    /// A size as text, with the names of its symbols: `2*batch*seq + 1`.
    ///
    /// # Panics
    /// If the size refers to a symbol that the plan does not have.
    pub fn dim_text(&self, dim: &Dim) -> String {
        let term = |(coef, symbols): &(i64, Vec<u32>)| {
            let names: Vec<&str> = symbols
                .iter()
                .map(|&s| self.symbols[s as usize].as_str())
                .collect();
            match (*coef, names.is_empty()) {
                (c, true) => c.to_string(),
                (1, false) => names.join("*"),
                (c, false) => format!("{c}*{}", names.join("*")),
            }
        };
        match dim.terms.as_slice() {
            [] => "0".to_owned(),
            terms => terms.iter().map(term).collect::<Vec<_>>().join(" + "),
        }
    }
}

/// How the elements of a value lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Last dimension contiguous.
    #[default]
    RowMajor,
    /// Token panels `[ceil(m / w)][k][w]`: tokens `m` are the product of the leading dimensions, features `k` the last
    /// one, `w` the panel width that the session chooses. Rank at least 1; the element type is `f32`, `i32`, or `u8`: then
    /// `[ceil(m / w)][ceil(k / 4)][w][4]`, four features of a token together.
    Panels,
}

/// Where the elements of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// The caller's tensor of this index into [`Plan::inputs`].
    Input(u32),
    /// Bytes of the weights section, row-major, at a multiple of 64.
    Weights { offset: u64, len: u64 },
    /// Written by a step, in memory of the session.
    Slot,
}

/// A tensor that steps read and write.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueDesc {
    /// For messages only.
    pub name: String,
    /// Name of the element type, as `lancet_ops::DType` prints it.
    pub dtype: String,
    pub shape: Vec<Dim>,
    pub layout: Layout,
    pub storage: Storage,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The node that the step came from, for messages and traces.
    pub name: String,
    pub kind: StepKind,
    /// Indices into [`Plan::values`]; `None` is an absent optional operand.
    pub inputs: Vec<Option<u32>>,
    /// Indices into [`Plan::values`], each with `Storage::Slot`.
    pub outputs: Vec<u32>,
}

/// What a step does. "Panels" means a value of `Layout::Panels`; everything else is row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum StepKind {
    /// An operator of `lancet-ops` on row-major tensors.
    ///
    /// Sizes of its outputs that are a symbol of their own and not bound yet are bound when it has run.
    Portable {
        /// Name of the operator in IR text.
        operator: String,
        /// Names and values, in name order.
        attributes: Vec<(String, Attribute)>,
    },
    /// Writes sizes: no input, output `i64[dims.len()]`.
    Dims(Vec<Dim>),
    /// The input's elements in the shape of the output. Both are row-major, or both panels of the same features.
    View,
    /// The input broadcast to the shape of the output, by the rules of ONNX.
    Broadcast,
    /// Row-major `f32` to panels of the same shape.
    ToPanels,
    /// Panels to row-major `f32` of the same shape.
    FromPanels,
    /// Sum of rows of tables: inputs `ids_0, table_0, ids_1, table_1, ...`, output panels.
    ///
    /// A table is `f32[rows, k]`, weights or not, or bytes (`u8` or `i8`) that stand for `(q - zero_point) · scale` with its numbers in
    /// `quantization`, which has those of every table or none; `ids_i` is `i64` or `i32`. Shapes of the ids broadcast to the leading
    /// dimensions of the output by the rules of ONNX. A negative id counts from the end; one out of range is an error.
    EmbeddingLookup { quantization: Vec<(f32, i32)> },
    /// Panels to panels, over features; inputs `x, gamma, beta?` with `f32[k]` parameters.
    LayerNorm { epsilon: f32 },
    /// `x / sqrt(mean(x^2) + epsilon) * gamma`, panels to panels, over features; inputs `x, gamma` with `gamma: f32[k]`.
    RmsNorm { epsilon: f32 },
    /// `activation(x wᵀ + bias) + residual`; inputs `x` panels of `k`, `bias?` `f32[n]`, `residual?` panels of `n`;
    /// output panels of `n`.
    Linear {
        /// Index into [`Plan::matrices`].
        matrix: u32,
        activation: Activation,
    },
    /// `x wᵀ` in exact integers, then an elementwise function; inputs `x`, bytes in panels of `k`, then the operands of `tail` but
    /// the first, which is the sum. Output panels of `n`: `i32`, or what `tail` gives.
    IntegerLinear {
        /// Index into [`Plan::matrices`].
        matrix: u32,
        tail: Option<Vertical>,
    },
    /// Panels to panels: an elementwise function of the inputs. One that is the same for all tokens is row-major: a number for
    /// each feature, or one number (`f32`, `i32`, `i8` or `u8`).
    Vertical(Vertical),
    /// Least and greatest number of panels or row-major `f32`, and 0: output `f32[2]`.
    Range,
    /// The step from one number to the next when a range, input `f32[2]`, is quantized to bytes: output `f32[]`.
    RangeScale,
    /// The byte that stands for 0 when a range, input `f32[2]`, is quantized to bytes: output `u8[]` or `i32[]`.
    RangeZeroPoint,
    /// `softmax(scale q kᵀ + mask + bias) v` in each head; inputs `q, k, v` panels, `key_mask?`, `bias?`, `relative_bias?`,
    /// `query_mask?`, `query_positions?` and `query_index?`, `key_positions?` and `key_index?`.
    ///
    /// `q` is `[batch, seq_q, num_heads * d]`, `k` is `[batch, seq_k, num_heads * d]`, `v` is `[batch, seq_k, num_heads *
    /// dv]`, the output is panels `[batch, seq_q, num_heads * dv]`. `key_mask` is `[batch, seq_k]` of `bool` or an integer
    /// type: `masked_value` is added to the scores of keys where it is zero. `bias` is `f32` and broadcasts to `[batch,
    /// num_heads, seq_q, seq_k]`; `relative_bias` is `f32[1 or num_heads, seq_q + seq_k]`, by distance. All keys weigh the same
    /// for queries where `query_mask`, `[batch, seq_q]`, is zero. `query_positions` is `f32[batch, num_heads, seq_q, p]`: the
    /// element of the row of a query that `query_index`, `i64[seq_q + seq_k]`, has for the distance is added to the score; the
    /// same is done with rows of keys, `f32[batch, num_heads, seq_k, p]`. Scores and probabilities are rounded
    /// where the parameters say so. A second output, row-major `f32`, is the probabilities, `[batch, num_heads, seq_q, seq_k]`, or
    /// what they come to over queries, `[batch, num_heads, seq_k]`.
    Attention(AttentionParameters),
    /// Attention whose probabilities are made of products in stages; inputs `q, k, v` panels of the shapes that those of
    /// [`StepKind::Attention`] have, then row-major `f32` or `bool` that broadcast to `[batch, num_heads, seq_q, seq_k]`. Outputs as
    /// those of [`StepKind::Attention`].
    GeneralizedAttention(GeneralizedAttention),
    /// `softmax(scale q kᵀ + mask) v` in each head of sequences that stand one behind the other; inputs `q, k, v` panels,
    /// `starts`, `q_starts?`, `key_mask?`.
    ///
    /// `q` is `[tq, num_heads * d]`, `k` is `[t, num_heads * d]`, `v` is `[t, num_heads * dv]`, the output is panels `[tq,
    /// num_heads * dv]`. `starts`, `i64[n]`, ascends from 0: the keys of sequence `i` are those from `starts[i]` to the next
    /// start or to `t`; `q_starts` says the same of queries, and without it every sequence has `tq / n`. `key_mask` is `[t]`.
    PackedAttention(AttentionParameters),
    /// A function of each element: one or more operands, which broadcast to the shape of the output.
    ///
    /// Row-major operands of type `f32`, `f64`, `i64`, `i32` or `bool`, and an output that is row-major too; or an output in
    /// panels of `k` features, and operands that are panels of the same shape, panels of one feature for the same tokens, a
    /// row-major vector of `k` numbers in `f32` or `f64`, or one number.
    Elementwise {
        /// Lines of a body as `lancet_ops::elementwise` reads them.
        body: Vec<String>,
    },
    /// `a b`, row-major `f32[.., m, k]` and `f32[.., k, n]`, leading dimensions broadcast; output row-major `f32[.., m, n]`.
    /// Or the same of bytes, `i8` or `u8`, less zero points, `a, b, a_zero?, b_zero?`: output `i32`. A zero point has one element, of
    /// the type of its operand.
    MatMul,
    /// `saturate(round(x / scale) + zero_point)`, inputs `x, scale, zero_point?`: row-major `f32`, `f32` of one element, and `i8`
    /// or `u8` of one element; output row-major `i8` or `u8` in the shape of x.
    Quantize,
    /// Softmax over a dimension, row-major `f32`.
    Softmax { axis: u32 },
    /// What dimensions that follow each other become together: row-major `f32` or `f64`, or `i32` and `i64` for sums and extremes.
    /// They are ones in the output, or left out. Or the features of panels of `f32`, which become one feature of panels.
    Reduce {
        reduction: Reduction,
        axes: Range<u32>,
    },
    /// Dimension `i` of the output is dimension `permutation[i]` of the input; row-major, of any element type.
    Transpose { permutation: Vec<u32> },
    /// Every `steps[i]`-th element of dimension `i` from `starts[i]` on, as many as the output has; row-major, of any element type.
    Slice { starts: Vec<u32>, steps: Vec<u32> },
    /// The inputs behind each other in one dimension; row-major, of any element type.
    Concat { axis: u32 },
    /// The first input from index `before[i]` of each dimension `i` on, and elsewhere the second, one element, or zero; row-major,
    /// of any element type.
    Pad { before: Vec<u32> },
    /// One of two plans: inputs are one boolean, then those of `then`, then those of `otherwise`; outputs are those of the plan
    /// that runs. Values are row-major, and of the types that the plans state.
    If {
        then: Box<Plan>,
        otherwise: Box<Plan>,
    },
    /// A plan that runs while a condition holds, at most a number of times.
    ///
    /// Inputs are that number, one `i64` (may be absent), the condition, one boolean (may be absent), what is carried into the
    /// first iteration, and what every iteration reads. The plan takes the number of the iteration, the condition, what is
    /// carried and what is read; it gives the next condition, what is carried on, and an element of each collection. Outputs
    /// are what is carried at the end, then the collections, iterations first.
    Loop { body: Box<Plan>, n_carried: u32 },
}

impl StepKind {
    /// What messages and traces call the kind; a portable step by its operator.
    pub fn name(&self) -> &str {
        match self {
            StepKind::Portable { operator, .. } => operator,
            StepKind::Dims(_) => "dims",
            StepKind::View => "view",
            StepKind::Broadcast => "broadcast",
            StepKind::ToPanels => "to_panels",
            StepKind::FromPanels => "from_panels",
            StepKind::EmbeddingLookup { .. } => "embedding_lookup",
            StepKind::LayerNorm { .. } => "layer_norm",
            StepKind::RmsNorm { .. } => "rms_norm",
            StepKind::Linear { .. } => "linear",
            StepKind::IntegerLinear { .. } => "integer_linear",
            StepKind::Vertical(_) => "elementwise",
            StepKind::Range => "range",
            StepKind::RangeScale => "range_scale",
            StepKind::RangeZeroPoint => "range_zero_point",
            StepKind::Attention(_) => "attention",
            StepKind::GeneralizedAttention(_) => "generalized_attention",
            StepKind::PackedAttention(_) => "packed_attention",
            StepKind::Elementwise { .. } => "elementwise",
            StepKind::MatMul => "matmul",
            StepKind::Quantize => "quantize",
            StepKind::Softmax { .. } => "softmax",
            StepKind::Reduce { reduction, .. } => reduction.name(),
            StepKind::Transpose { .. } => "transpose",
            StepKind::Slice { .. } => "slice",
            StepKind::Concat { .. } => "concat",
            StepKind::Pad { .. } => "pad",
            StepKind::If { .. } => "if",
            StepKind::Loop { .. } => "loop",
        }
    }

    /// The plans that the step runs.
    pub fn regions(&self) -> Vec<&Plan> {
        match self {
            StepKind::If { then, otherwise } => vec![then, otherwise],
            StepKind::Loop { body, .. } => vec![body],
            _ => Vec::new(),
        }
    }
}

/// What attention computes with beside its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParameters {
    pub num_heads: u32,
    pub scale: f32,
    pub masked_value: f32,
    /// Scale, least and greatest number that products of queries and keys, scores with all that is added, and probabilities
    /// are rounded to, as `score_rounding`, `masked_score_rounding` and `probability_rounding` of the operator.
    pub rounding: [Option<[f32; 3]>; 3],
    /// With more keys than these, products of probabilities and values are summed in more than `f32`.
    pub exact_keys: Option<u64>,
    /// What a second output has of the probabilities over queries: their sum or mean, or each of them.
    pub over_queries: Option<Reduction>,
}

/// How attention makes probabilities of products.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneralizedAttention {
    pub num_heads: u32,
    /// Lines of the bodies that make scores, weights and probabilities, as `lancet_ops::generalized` reads them; none for a stage that
    /// changes nothing.
    pub stages: [Vec<String>; 3],
    /// As that of [`AttentionParameters`].
    pub over_queries: Option<Reduction>,
}

/// An attribute of a portable operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<String>),
    Tensor(AttributeTensor),
}

/// A small tensor that is part of an attribute. Large constants are values with `Storage::Weights`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeTensor {
    /// Name of the element type.
    pub dtype: String,
    pub shape: Vec<u64>,
    /// Elements in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

/// A packed weight `w[n, k]`.
#[derive(Clone, Debug, PartialEq)]
pub struct MatrixDesc {
    /// For messages only.
    pub name: String,
    pub format: WeightFormat,
    /// What its products are computed in.
    pub arithmetic: Arithmetic,
    /// Number of outputs.
    pub n: u32,
    /// Number of inputs.
    pub k: u32,
    /// First byte in the weights section, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Ranges of output rows that one kernel call computes, in row order, without gaps.
    pub row_blocks: Vec<RowBlock>,
    /// Number of non-zero weights.
    pub nnz: u64,
    /// The pattern that the zeros form, for people: `4x1 blocks`.
    pub pattern: String,
    /// Predicted time of the dense product over that of this one.
    pub predicted_speedup: f32,
    /// Predicted cycles for a panel of 32 tokens by cause, for people.
    pub predicted_cycles: Vec<(String, f32)>,
}

/// Consecutive output rows of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowBlock {
    /// First byte, counted from the matrix's own offset, a multiple of 64.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// First row.
    pub row0: u32,
    pub n_rows: u32,
}
