//! What each kind of step asks of its operands, as far as it does not depend on sizes.

mod attention;
mod operands;

use lancet_artifact::{
    Arithmetic, Element, Extent, Layout, Plan, PlanError, Step, StepKind, VerticalOperand,
};
use lancet_ops::elementwise::Body;
use lancet_ops::{DType, Operator};

use self::operands::Operands;
use crate::jit::MAX_OPERANDS;
use crate::program::{Program, Value};

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
            cx.panels_of(cx.input(0)?, DType::U8, k)?;
            let Some(tail) = tail else {
                cx.counts(1, 1)?;
                return cx.panels_of(cx.output(), DType::I32, n);
            };
            let product = VerticalOperand {
                element: Element::I32,
                extent: Extent::Panels,
            };
            if tail.operands.first() != Some(&product) {
                return Err("the first operand is not the product".to_owned());
            }
            let inputs = (1..step.inputs.len()).map(Some);
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
            let x = cx.input(0)?;
            if cx.row_major_f32(x).is_err() {
                cx.panels(x)?;
            }
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
            let of_bytes = cx.dtype(cx.output()) == DType::I32;
            cx.counts(2, if of_bytes { 4 } else { 2 })?;
            for v in [cx.input(0)?, cx.input(1)?, cx.output()] {
                match of_bytes {
                    true if v == cx.output() => cx.row_major(v)?,
                    true => cx.row_major_bytes(v)?,
                    false => cx.row_major_f32(v)?,
                }
                if cx.rank(v) < 2 {
                    return Err(format!("{}: expected rank 2 or more", cx.name(v)));
                }
            }
            for (zero, of) in [(2, 0), (3, 1)] {
                if let Some(zero) = cx.optional(zero) {
                    cx.one_element(zero, cx.dtype(cx.input(of)?))?;
                }
            }
            Ok(())
        }
        StepKind::Quantize => {
            cx.counts(2, 3)?;
            let out = cx.output();
            cx.row_major_f32(cx.input(0)?)?;
            cx.row_major_bytes(out)?;
            cx.ranks(&[cx.rank(cx.input(0)?)])?;
            cx.one_element(cx.input(1)?, DType::F32)?;
            cx.optional(2)
                .map_or(Ok(()), |zero| cx.one_element(zero, cx.dtype(out)))
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
            let (x, out) = (cx.input(0)?, cx.output());
            if cx.is_in_panels(out) {
                let rank = cx.rank(x);
                cx.panels(x)?;
                cx.features(out, 1)?;
                cx.ranks(&[rank])?;
                if axes.start as usize + 1 != rank || axes.end as usize != rank {
                    return Err(format!("dimensions {axes:?} of {rank} in panels"));
                }
                return Ok(());
            }
            cx.row_major_alike()?;
            let dtype = cx.dtype(out);
            if !reduction.takes(dtype.name()) {
                return Err(format!("{reduction} of {dtype}"));
            }
            let (before, after) = (cx.rank(x), cx.rank(out));
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

impl Operands<'_> {
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
        if !self.is_in_panels(out) {
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
            if !self.is_in_panels(v) {
                let shape = self.fixed_shape(v).unwrap_or_default();
                let is_one = self.fixed_shape(v).is_some() && shape.iter().product::<usize>() == 1;
                let is_float = matches!(self.dtype(v), DType::F32 | DType::F64);
                if !is_float || !(is_one || shape == [k]) {
                    return Err(format!(
                        "{}: expected one float, or {k} of them",
                        self.name(v)
                    ));
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
}
