//! What the kinds of attention ask of their operands: queries, keys, values and masks.

use lancet_artifact::{AttentionParameters, GeneralizedAttention, Reduction};
use lancet_ops::generalized::stages;
use lancet_ops::{DType, Rounding};

use super::operands::Operands;
use crate::jit::MAX_OPERANDS;

impl Operands<'_> {
    pub(super) fn attention(&self, parameters: &AttentionParameters) -> Result<(), String> {
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

    pub(super) fn generalized_attention(
        &self,
        parameters: &GeneralizedAttention,
    ) -> Result<(), String> {
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

    pub(super) fn packed_attention(&self, parameters: &AttentionParameters) -> Result<(), String> {
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
