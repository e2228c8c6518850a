//! What each kind of step asks of its operands, as far as it does not depend on sizes.

use lancet_artifact::{
    Arithmetic, AttentionParameters, Dim, Element, Extent, GeneralizedAttention, Layout, Plan,
    PlanError, Reduction, Step, StepKind, ValueDesc, Vertical, VerticalOperand,
};
use lancet_ops::elementwise::Body;
use lancet_ops::generalized::stages;
use lancet_ops::{DType, Operator, Rounding};

use crate::program::{Program, Value};
use crate::steps::elementwise::MAX_OPERANDS;

/// Checks one step. Values that it refers to are in range and resolved.
pub(crate) fn step(plan: &Plan, values: &[Value], step: &Step) -> Result<(), String> {
    let cx = Operands { plan, values, step };
    match &step.kind {
        StepKind::Portable { operator, .. } => cx.portable(operator),
        StepKind::Dims(dims) => {
            cx.counts(0, 0)?;
            let out = cx.output();
            if cx.dtype(out) != DType::I64 || cx.fixed_shape(out) != Some(vec![dims.len()]) {
                return Err(format!("expected output i64[{}]", dims.len()));
            }
            Ok(())
        }
        StepKind::View => {
            cx.counts(1, 1)?;
            let (x, out) = (cx.input(0)?, cx.output());
            let (a, b) = (&values[x], &values[out]);
            if a.dtype != b.dtype || a.layout != b.layout || a.features != b.features {
                return Err("a view keeps element type, layout and panel features".to_owned());
            }
            Ok(())
        }
        StepKind::Broadcast => {
            cx.counts(1, 1)?;
            let (x, out) = (cx.input(0)?, cx.output());
            cx.row_major(x)?;
            cx.row_major(out)?;
            if cx.dtype(x) != cx.dtype(out) || cx.rank(x) > cx.rank(out) {
                return Err(
                    "a broadcast keeps the element type and does not lower the rank".to_owned(),
                );
            }
            Ok(())
        }
        StepKind::ToPanels => {
            cx.counts(1, 1)?;
            let (x, out) = (cx.input(0)?, cx.output());
            cx.row_major(x)?;
            cx.panels_of(out, cx.dtype(x), values[out].features)?;
            cx.same_shape(x, out)
        }
        StepKind::FromPanels => {
            cx.counts(1, 1)?;
            let (x, out) = (cx.input(0)?, cx.output());
            cx.row_major(out)?;
            cx.panels_of(x, cx.dtype(out), values[x].features)?;
            cx.same_shape(x, out)
        }
        StepKind::EmbeddingLookup { quantization } => cx.embedding_lookup(quantization.len()),
        StepKind::LayerNorm { .. } | StepKind::RmsNorm { .. } => {
            let most = if matches!(step.kind, StepKind::LayerNorm { .. }) {
                3
            } else {
                2
            };
            cx.counts(2, most)?;
            let (x, out) = (cx.input(0)?, cx.output());
            let k = cx.panels(out)?;
            cx.features(x, k)?;
            cx.vector(cx.input(1)?, k)?;
            cx.optional(2).map_or(Ok(()), |beta| cx.vector(beta, k))?;
            cx.same_shape(x, out)
        }
        StepKind::Linear { matrix, .. } => {
            cx.counts(1, 3)?;
            let matrix = &plan.matrices[*matrix as usize];
            if matrix.arithmetic != Arithmetic::Float {
                return Err("the weight holds integers".to_owned());
            }
            let (n, k) = (matrix.n as usize, matrix.k as usize);
            let (x, out) = (cx.input(0)?, cx.output());
            cx.features(x, k)?;
            cx.features(out, n)?;
            cx.optional(1).map_or(Ok(()), |bias| cx.vector(bias, n))?;
            cx.optional(2)
                .map_or(Ok(()), |residual| cx.features(residual, n))
        }
        StepKind::IntegerLinear { matrix, tail } => {
            let matrix = &plan.matrices[*matrix as usize];
            if matrix.arithmetic == Arithmetic::Float {
                return Err("the weight holds no integers".to_owned());
            }
            let (n, k) = (matrix.n as usize, matrix.k as usize);
            let in_singles = matrix.arithmetic == Arithmetic::Singles;
            let x = cx.input(0)?;
            if in_singles && values[x].dtype == DType::F32 {
                cx.panels_of(x, DType::F32, k)?;
            } else {
                cx.panels_of(x, DType::U8, k)?;
            }
            if let Some(bias) = cx.optional(1) {
                if !in_singles {
                    return Err("only sums in single precision begin with a bias".to_owned());
                }
                cx.vector(bias, n)?;
            }
            let Some(tail) = tail else {
                if in_singles {
                    return Err("sums in single precision are no result".to_owned());
                }
                cx.counts(1, 2)?;
                return cx.panels_of(cx.output(), DType::I32, n);
            };
            let product = VerticalOperand {
                element: if in_singles {
                    Element::F32
                } else {
                    Element::I32
                },
                extent: Extent::Panels,
            };
            if tail.operands.first() != Some(&product) {
                return Err("the first operand is not the product".to_owned());
            }
            let inputs = (2..step.inputs.len()).map(Some);
            cx.vertical(
                tail,
                &std::iter::once(None).chain(inputs).collect::<Vec<_>>(),
                n,
            )
        }
        StepKind::Vertical(vertical) => {
            let features = values[cx.output()].features;
            let inputs: Vec<_> = (0..step.inputs.len()).map(Some).collect();
            cx.vertical(vertical, &inputs, features)
        }
        StepKind::Range => {
            cx.counts(1, 1)?;
            cx.panels(cx.input(0)?)?;
            cx.vector(cx.output(), 2)
        }
        StepKind::RangeScale | StepKind::RangeZeroPoint => {
            cx.counts(1, 1)?;
            cx.vector(cx.input(0)?, 2)?;
            let out = cx.output();
            cx.row_major(out)?;
            let dtype = match step.kind {
                StepKind::RangeScale => DType::F32,
                _ if cx.dtype(out) == DType::I32 => DType::I32,
                _ => DType::U8,
            };
            if cx.dtype(out) != dtype || cx.fixed_shape(out).as_deref() != Some(&[]) {
                return Err(format!("expected output {dtype}[]"));
            }
            Ok(())
        }
        StepKind::If { .. } | StepKind::Loop { .. } => {
            // Types and sizes are checked when the plans are given their operands, and when they give their outputs.
            let inputs = step.inputs.iter().flatten();
            (inputs.chain(&step.outputs)).try_for_each(|&v| cx.row_major(v as usize))
        }
        StepKind::Attention(p) => cx.attention(p),
        StepKind::GeneralizedAttention(p) => cx.generalized_attention(p),
        StepKind::PackedAttention(p) => cx.packed_attention(p),
        StepKind::Elementwise { body } => cx.elementwise(body),
        StepKind::MatMul => {
            cx.counts(2, 2)?;
            for v in [cx.input(0)?, cx.input(1)?, cx.output()] {
                cx.row_major_f32(v)?;
                if cx.rank(v) < 2 {
                    return Err(format!("{}: expected rank 2 or more", cx.name(v)));
                }
            }
            Ok(())
        }
        StepKind::Softmax { axis } => {
            cx.counts(1, 1)?;
            cx.row_major_f32(cx.input(0)?)?;
            cx.row_major_f32(cx.output())?;
            cx.ranks(&[cx.rank(cx.input(0)?)])?;
            if cx.rank(cx.output()) <= *axis as usize {
                return Err(format!("dimension {axis} of {}", cx.rank(cx.output())));
            }
            Ok(())
        }
        StepKind::Reduce { reduction, axes } => {
            cx.counts(1, 1)?;
            cx.row_major_alike()?;
            let dtype = cx.dtype(cx.output());
            if !reduction.takes(dtype.name()) {
                return Err(format!("{reduction} of {dtype}"));
            }
            let (before, after) = (cx.rank(cx.input(0)?), cx.rank(cx.output()));
            if axes.is_empty() || before < axes.end as usize {
                return Err(format!("dimensions {axes:?} of {before}"));
            }
            if after != before && after + axes.len() != before {
                return Err(format!(
                    "{} of {before} dimensions leave {after}",
                    axes.len()
                ));
            }
            Ok(())
        }
        StepKind::Transpose { permutation } => {
            cx.counts(1, 1)?;
            cx.row_major_alike()?;
            let rank = cx.rank(cx.input(0)?);
            let mut dims = permutation.clone();
            dims.sort_unstable();
            if !dims.into_iter().eq(0..rank as u32) || cx.rank(cx.output()) != rank {
                return Err(format!("{permutation:?} is no order of {rank} dimensions"));
            }
            Ok(())
        }
        StepKind::Slice { starts, steps } => {
            cx.counts(1, 1)?;
            cx.row_major_alike()?;
            cx.ranks(&[starts.len(), steps.len(), cx.rank(cx.input(0)?)])?;
            if steps.contains(&0) {
                return Err("a step is 0".to_owned());
            }
            Ok(())
        }
        StepKind::Concat { axis } => {
            cx.counts(1, usize::MAX)?;
            cx.row_major_alike()?;
            let inputs = step.inputs.iter().flatten();
            let ranks: Vec<usize> = inputs.map(|&v| cx.rank(v as usize)).collect();
            cx.ranks(&ranks)?;
            if cx.rank(cx.output()) <= *axis as usize {
                return Err(format!("dimension {axis} of {}", cx.rank(cx.output())));
            }
            Ok(())
        }
        StepKind::Pad { before } => {
            cx.counts(1, 2)?;
            cx.row_major_alike()?;
            cx.ranks(&[before.len(), cx.rank(cx.input(0)?)])?;
            let is_one = |v| cx.fixed_shape(v).is_some_and(|s| s.iter().all(|&n| n == 1));
            match cx.optional(1) {
                Some(fill) if !is_one(fill) => {
                    Err(format!("{}: expected one element", cx.name(fill)))
                }
                _ => Ok(()),
            }
        }
    }
}

/// Checks the model's inputs and outputs.
pub(crate) fn outputs(program: &Program) -> Result<(), PlanError> {
    for port in program.plan.inputs.iter().chain(&program.plan.outputs) {
        if program.values[port.value as usize].layout != Layout::RowMajor {
            return Err(PlanError::new(
                format!("input or output `{}`", port.name),
                "expected a row-major value",
            ));
        }
    }
    Ok(())
}

struct Operands<'a> {
    plan: &'a Plan,
    values: &'a [Value],
    step: &'a Step,
}

impl Operands<'_> {
    /// Between `least` and `most` operands, and one result; attention may have two.
    fn counts(&self, least: usize, most: usize) -> Result<(), String> {
        let (inputs, outputs) = (self.step.inputs.len(), self.step.outputs.len());
        let most_outputs = match self.step.kind {
            StepKind::Attention(_) | StepKind::GeneralizedAttention(_) => 2,
            _ => 1,
        };
        if inputs < least || inputs > most || outputs == 0 || outputs > most_outputs {
            return Err(format!(
                "expected {least} to {most} inputs and up to {most_outputs} outputs, found {inputs} and {outputs}"
            ));
        }
        Ok(())
    }

    fn input(&self, i: usize) -> Result<usize, String> {
        self.optional(i)
            .ok_or_else(|| format!("input {i} is missing"))
    }

    fn optional(&self, i: usize) -> Option<usize> {
        self.step
            .inputs
            .get(i)
            .copied()
            .flatten()
            .map(|v| v as usize)
    }

    fn output(&self) -> usize {
        self.step.outputs[0] as usize
    }

    fn desc(&self, v: usize) -> &ValueDesc {
        &self.plan.values[v]
    }

    fn dtype(&self, v: usize) -> DType {
        self.values[v].dtype
    }

    fn rank(&self, v: usize) -> usize {
        self.desc(v).shape.len()
    }

    fn fixed_shape(&self, v: usize) -> Option<Vec<usize>> {
        self.desc(v)
            .shape
            .iter()
            .map(|d| usize::try_from(d.as_fixed()?).ok())
            .collect()
    }

    fn name(&self, v: usize) -> String {
        format!("value {v} `{}`", self.desc(v).name)
    }

    fn row_major(&self, v: usize) -> Result<(), String> {
        if self.values[v].layout != Layout::RowMajor {
            return Err(format!("{}: expected a row-major value", self.name(v)));
        }
        Ok(())
    }

    /// Operands without a gap and a result, row-major and of one element type.
    fn row_major_alike(&self) -> Result<(), String> {
        let out = self.output();
        self.row_major(out)?;
        for i in 0..self.step.inputs.len() {
            let x = self.input(i)?;
            self.row_major(x)?;
            if self.dtype(x) != self.dtype(out) {
                return Err(format!("expected {} as result", self.dtype(x)));
            }
        }
        Ok(())
    }

    /// That these are the rank of the result.
    fn ranks(&self, ranks: &[usize]) -> Result<(), String> {
        let rank = self.rank(self.output());
        if ranks.iter().any(|&r| r != rank) {
            return Err(format!("ranks {ranks:?} beside that of the result, {rank}"));
        }
        Ok(())
    }

    fn row_major_f32(&self, v: usize) -> Result<(), String> {
        self.row_major(v)?;
        if self.dtype(v) != DType::F32 {
            return Err(format!(
                "{}: expected f32, found {}",
                self.name(v),
                self.dtype(v)
            ));
        }
        Ok(())
    }

    /// Features of a value that must be panels of `f32`.
    fn panels(&self, v: usize) -> Result<usize, String> {
        if self.values[v].layout != Layout::Panels || self.dtype(v) != DType::F32 {
            return Err(format!("{}: expected token panels of f32", self.name(v)));
        }
        Ok(self.values[v].features)
    }

    /// Panels of an element type and a number of features.
    fn panels_of(&self, v: usize, dtype: DType, features: usize) -> Result<(), String> {
        let value = &self.values[v];
        if value.layout != Layout::Panels || value.dtype != dtype || value.features != features {
            return Err(format!(
                "{}: expected token panels of {features} features, {dtype}",
                self.name(v)
            ));
        }
        Ok(())
    }

    /// An expression over `features` features; `inputs` are the operands, `None` for what the step computes.
    fn vertical(
        &self,
        vertical: &Vertical,
        inputs: &[Option<usize>],
        features: usize,
    ) -> Result<(), String> {
        let result = vertical.check()?;
        if inputs.len() != vertical.operands.len() || self.step.outputs.len() != 1 {
            return Err(format!(
                "found {} operands, the expression has {}",
                inputs.len(),
                vertical.operands.len()
            ));
        }
        for (operand, input) in vertical.operands.iter().zip(inputs) {
            let Some(input) = *input else { continue };
            let v = self.input(input)?;
            let dtype = match operand.element {
                Element::I32 => DType::I32,
                Element::F32 | Element::Quad => DType::F32,
            };
            let n = match operand.extent {
                Extent::Panels => {
                    self.panels_of(v, dtype, features)?;
                    continue;
                }
                Extent::Features => features,
                Extent::Scalar => 1,
            };
            self.row_major(v)?;
            let found = self.dtype(v);
            let is_small =
                matches!(found, DType::U8 | DType::I8) && operand.extent == Extent::Scalar;
            let fits = found == dtype || (dtype == DType::I32 && is_small);
            let len = self.fixed_shape(v).map(|s| s.iter().product::<usize>());
            if !fits || len != Some(n) {
                return Err(format!("{}: expected {n} of {dtype}", self.name(v)));
            }
        }
        let dtype = match result {
            Element::F32 => DType::F32,
            Element::I32 => DType::I32,
            Element::Quad => DType::U8,
        };
        self.panels_of(self.output(), dtype, features)
    }

    fn features(&self, v: usize, expected: usize) -> Result<(), String> {
        let found = self.panels(v)?;
        if found != expected {
            return Err(format!(
                "{}: expected {expected} features, found {found}",
                self.name(v)
            ));
        }
        Ok(())
    }

    fn vector(&self, v: usize, len: usize) -> Result<(), String> {
        self.row_major_f32(v)?;
        if self.fixed_shape(v) != Some(vec![len]) {
            return Err(format!("{}: expected shape [{len}]", self.name(v)));
        }
        Ok(())
    }

    /// The same last dimension and, as formulas, the same shape.
    fn same_shape(&self, a: usize, b: usize) -> Result<(), String> {
        let (sa, sb) = (&self.desc(a).shape, &self.desc(b).shape);
        if sa.len() != sb.len()
            || sa.last().and_then(Dim::as_fixed) != sb.last().and_then(Dim::as_fixed)
        {
            return Err(format!(
                "{} and {} differ in shape",
                self.name(a),
                self.name(b)
            ));
        }
        Ok(())
    }

    fn portable(&self, operator: &str) -> Result<(), String> {
        let op = Operator::from_text(operator)
            .ok_or_else(|| format!("unknown operator `{operator}`"))?;
        let schema = op.schema();
        let (n_in, n_out) = (self.step.inputs.len(), self.step.outputs.len());
        if n_in < schema.operands.0 || n_in > schema.operands.1 {
            return Err(format!(
                "{op}: found {n_in} operands, takes {:?}",
                schema.operands
            ));
        }
        if n_out < schema.results.0 || n_out > schema.results.1 {
            return Err(format!(
                "{op}: found {n_out} results, gives {:?}",
                schema.results
            ));
        }
        for &v in self.step.inputs.iter().flatten().chain(&self.step.outputs) {
            self.row_major(v as usize)?;
        }
        Ok(())
    }

    /// `n_quantized`: of how many tables scale and zero point are given.
    fn embedding_lookup(&self, n_quantized: usize) -> Result<(), String> {
        let n = self.step.inputs.len();
        if n < 2 || !n.is_multiple_of(2) || self.step.outputs.len() != 1 {
            return Err(format!(
                "expected pairs of ids and tables and one output, found {n} inputs"
            ));
        }
        let out = self.output();
        let k = self.panels(out)?;
        if n_quantized != 0 && n_quantized != n / 2 {
            return Err(format!("{n_quantized} scales for {} tables", n / 2));
        }
        for i in (0..n).step_by(2) {
            let (ids, table) = (self.input(i)?, self.input(i + 1)?);
            self.row_major(ids)?;
            if !matches!(self.dtype(ids), DType::I64 | DType::I32) {
                return Err(format!("{}: expected i64 or i32", self.name(ids)));
            }
            if self.rank(ids) + 1 > self.rank(out) {
                return Err(format!(
                    "{}: rank is above that of the output",
                    self.name(ids)
                ));
            }
            if n_quantized == n / 2 && matches!(self.dtype(table), DType::U8 | DType::I8) {
                self.row_major(table)?;
            } else {
                self.row_major_f32(table)?;
            }
            if !matches!(self.fixed_shape(table).as_deref(), Some(&[_, width]) if width == k) {
                return Err(format!(
                    "{}: expected a table of {k} columns",
                    self.name(table)
                ));
            }
        }
        Ok(())
    }

    fn elementwise(&self, body: &[String]) -> Result<(), String> {
        self.counts(1, MAX_OPERANDS)?;
        let out = self.output();
        let operands: Vec<usize> = (0..self.step.inputs.len())
            .map(|i| self.input(i))
            .collect::<Result<_, _>>()?;
        let dtypes: Vec<DType> = operands.iter().map(|&v| self.dtype(v)).collect();
        let types = Body::parse(body)?.types(&dtypes)?;
        if types.last().map(|t| t.1) != Some(self.dtype(out)) {
            return Err(format!(
                "{}: is not of the type of the body",
                self.name(out)
            ));
        }
        if self.values[out].layout == Layout::RowMajor {
            for v in operands {
                self.row_major(v)?;
                if self.rank(v) > self.rank(out) {
                    return Err(format!(
                        "{}: rank is above that of the output",
                        self.name(v)
                    ));
                }
            }
            return Ok(());
        }
        let k = self.panels(out)?;
        for v in operands {
            if self.values[v].layout == Layout::RowMajor {
                self.row_major_f32(v)?;
                let n: Option<usize> = self.fixed_shape(v).map(|s| s.iter().product());
                if n != Some(1) {
                    self.vector(v, k)?;
                }
            } else {
                if self.panels(v)? != 1 {
                    self.features(v, k)?;
                }
                if self.rank(v) != self.rank(out) {
                    return Err(format!("{}: rank is not that of the output", self.name(v)));
                }
            }
        }
        Ok(())
    }

    fn attention(&self, parameters: &AttentionParameters) -> Result<(), String> {
        self.shown(parameters.over_queries)?;
        self.counts(3, 11)?;
        self.roundings(parameters)?;
        self.heads(parameters.num_heads, 3)?;
        self.mask(3, 2)?;
        if let Some(bias) = self.optional(4) {
            self.row_major_f32(bias)?;
            if self.rank(bias) > 4 {
                return Err(format!("{}: expected at most rank 4", self.name(bias)));
            }
        }
        if let Some(relative) = self.optional(5) {
            self.row_major_f32(relative)?;
            if self.rank(relative) != 2 {
                return Err(format!("{}: expected rank 2", self.name(relative)));
            }
        }
        self.mask(6, 2)?;
        for i in [7, 9] {
            if self.optional(i).is_none() && self.optional(i + 1).is_none() {
                continue;
            }
            let (positions, index) = (self.input(i)?, self.input(i + 1)?);
            self.row_major_f32(positions)?;
            if self.rank(positions) != 4 {
                return Err(format!("{}: expected rank 4", self.name(positions)));
            }
            self.row_major(index)?;
            if self.dtype(index) != DType::I64 || self.rank(index) != 1 {
                return Err(format!("{}: expected i64 of rank 1", self.name(index)));
            }
        }
        Ok(())
    }

    fn generalized_attention(&self, parameters: &GeneralizedAttention) -> Result<(), String> {
        self.shown(parameters.over_queries)?;
        self.counts(3, MAX_OPERANDS)?;
        self.heads(parameters.num_heads, 3)?;
        let mut others = Vec::new();
        for i in 3..self.step.inputs.len() {
            let other = self.input(i)?;
            self.row_major(other)?;
            if self.rank(other) > 4 {
                return Err(format!("{}: expected at most rank 4", self.name(other)));
            }
            others.push(self.dtype(other));
        }
        let lines = parameters.stages.each_ref().map(Vec::as_slice);
        stages(lines, &others).map(|_| ())
    }

    /// The second result of attention, if there is one: its probabilities, or what they come to over queries.
    fn shown(&self, over_queries: Option<Reduction>) -> Result<(), String> {
        if let Some(other) = over_queries
            && !matches!(other, Reduction::Sum | Reduction::Mean)
        {
            return Err(format!("{other} of probabilities"));
        }
        let Some(&shown) = self.step.outputs.get(1) else {
            return Ok(());
        };
        let shown = shown as usize;
        self.row_major_f32(shown)?;
        let rank = if over_queries.is_some() { 3 } else { 4 };
        if self.rank(shown) != rank || self.values[self.output()].features == 0 {
            return Err(format!(
                "{}: expected rank {rank}, of values with features",
                self.name(shown)
            ));
        }
        Ok(())
    }

    fn packed_attention(&self, parameters: &AttentionParameters) -> Result<(), String> {
        self.counts(4, 6)?;
        self.roundings(parameters)?;
        self.heads(parameters.num_heads, 2)?;
        self.input(3)?;
        for starts in [3, 4].into_iter().filter_map(|i| self.optional(i)) {
            self.row_major(starts)?;
            if self.dtype(starts) != DType::I64 || self.rank(starts) != 1 {
                return Err(format!("{}: expected i64 of rank 1", self.name(starts)));
            }
        }
        self.mask(5, 1)
    }

    /// What attention rounds by.
    fn roundings(&self, parameters: &AttentionParameters) -> Result<(), String> {
        for numbers in parameters.rounding.into_iter().flatten() {
            if Rounding::new(numbers).is_none() {
                return Err(format!(
                    "expected a scale, a least and a greatest number, found {numbers:?}"
                ));
            }
        }
        Ok(())
    }

    /// Queries, keys, values and the result of attention, of this rank.
    fn heads(&self, num_heads: u32, rank: usize) -> Result<(), String> {
        let num_heads = num_heads as usize;
        let [q, k, v] = [self.input(0)?, self.input(1)?, self.input(2)?];
        let out = self.output();
        for x in [q, k, v, out] {
            let features = self.panels(x)?;
            if self.rank(x) != rank || num_heads == 0 || features % num_heads != 0 {
                return Err(format!(
                    "{}: expected rank {rank} and features that {num_heads} heads divide",
                    self.name(x)
                ));
            }
        }
        self.features(k, self.panels(q)?)?;
        self.features(out, self.panels(v)?)
    }

    /// Operand `i`, if there is one, is a mask of this rank.
    fn mask(&self, i: usize, rank: usize) -> Result<(), String> {
        let Some(mask) = self.optional(i) else {
            return Ok(());
        };
        self.row_major(mask)?;
        if self.dtype(mask).is_float() || self.rank(mask) != rank {
            return Err(format!(
                "{}: expected a mask of rank {rank} of booleans or integers",
                self.name(mask)
            ));
        }
        Ok(())
    }
}
