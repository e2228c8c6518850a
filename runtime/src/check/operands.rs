//! The operands of a step that is checked: what they are, and what steps of many kinds ask of them.

use lancet_artifact::{Dim, Element, Extent, Layout, Plan, Step, StepKind, ValueDesc, Vertical};
use lancet_ops::DType;

use crate::program::Value;

/// A step, with the plan that it is of and what the values of the plan are resolved to.
pub(super) struct Operands<'a> {
    pub(super) plan: &'a Plan,
    pub(super) values: &'a [Value],
    pub(super) step: &'a Step,
}

impl Operands<'_> {
    /// Between `least` and `most` operands, and one result; attention may have two.
    pub(super) fn counts(&self, least: usize, most: usize) -> Result<(), String> {
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

    pub(super) fn input(&self, i: usize) -> Result<usize, String> {
        self.optional(i)
            .ok_or_else(|| format!("input {i} is missing"))
    }

    pub(super) fn optional(&self, i: usize) -> Option<usize> {
        self.step
            .inputs
            .get(i)
            .copied()
            .flatten()
            .map(|v| v as usize)
    }

    pub(super) fn output(&self) -> usize {
        self.step.outputs[0] as usize
    }

    fn desc(&self, v: usize) -> &ValueDesc {
        &self.plan.values[v]
    }

    pub(super) fn dtype(&self, v: usize) -> DType {
        self.values[v].dtype
    }

    pub(super) fn rank(&self, v: usize) -> usize {
        self.desc(v).shape.len()
    }

    pub(super) fn fixed_shape(&self, v: usize) -> Option<Vec<usize>> {
        self.desc(v)
            .shape
            .iter()
            .map(|d| usize::try_from(d.as_fixed()?).ok())
            .collect()
    }

    pub(super) fn name(&self, v: usize) -> String {
        format!("value {v} `{}`", self.desc(v).name)
    }

    pub(super) fn is_in_panels(&self, v: usize) -> bool {
        self.values[v].layout == Layout::Panels
    }

    pub(super) fn row_major(&self, v: usize) -> Result<(), String> {
        if self.values[v].layout != Layout::RowMajor {
            return Err(format!("{}: expected a row-major value", self.name(v)));
        }
        Ok(())
    }

    /// Operands without a gap and a result, row-major and of one element type.
    pub(super) fn row_major_alike(&self) -> Result<(), String> {
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
    pub(super) fn ranks(&self, ranks: &[usize]) -> Result<(), String> {
        let rank = self.rank(self.output());
        if ranks.iter().any(|&r| r != rank) {
            return Err(format!("ranks {ranks:?} beside that of the result, {rank}"));
        }
        Ok(())
    }

    pub(super) fn row_major_f32(&self, v: usize) -> Result<(), String> {
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
    pub(super) fn panels(&self, v: usize) -> Result<usize, String> {
        if self.values[v].layout != Layout::Panels || self.dtype(v) != DType::F32 {
            return Err(format!("{}: expected token panels of f32", self.name(v)));
        }
        Ok(self.values[v].features)
    }

    /// Panels of an element type and a number of features.
    pub(super) fn panels_of(&self, v: usize, dtype: DType, features: usize) -> Result<(), String> {
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
    pub(super) fn vertical(
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

    pub(super) fn features(&self, v: usize, expected: usize) -> Result<(), String> {
        let found = self.panels(v)?;
        if found != expected {
            return Err(format!(
                "{}: expected {expected} features, found {found}",
                self.name(v)
            ));
        }
        Ok(())
    }

    pub(super) fn vector(&self, v: usize, len: usize) -> Result<(), String> {
        self.row_major_f32(v)?;
        if self.fixed_shape(v) != Some(vec![len]) {
            return Err(format!("{}: expected shape [{len}]", self.name(v)));
        }
        Ok(())
    }

    /// A row-major tensor of bytes.
    pub(super) fn row_major_bytes(&self, v: usize) -> Result<(), String> {
        self.row_major(v)?;
        match self.dtype(v) {
            DType::I8 | DType::U8 => Ok(()),
            other => Err(format!("{}: expected bytes, found {other}", self.name(v))),
        }
    }

    /// A row-major tensor of one element.
    pub(super) fn one_element(&self, v: usize, dtype: DType) -> Result<(), String> {
        self.row_major(v)?;
        let shape = self.fixed_shape(v);
        if self.dtype(v) != dtype || shape.is_none_or(|s| s.iter().any(|&n| n != 1)) {
            return Err(format!("{}: expected one {dtype}", self.name(v)));
        }
        Ok(())
    }

    /// The same last dimension and, as formulas, the same shape.
    pub(super) fn same_shape(&self, a: usize, b: usize) -> Result<(), String> {
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
}
