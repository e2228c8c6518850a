//! Checks that every reference in a plan is to something.

use std::collections::{HashMap, HashSet};

use crate::{Dim, MatrixDesc, Plan, PlanError, Step, StepKind, Storage};

/// Alignment in the weights section of each tensor, matrix and row block, in bytes.
pub const ALIGNMENT: u64 = 64;

/// Plans inside each other.
const MAX_DEPTH: usize = 16;
const MAX_RANK: usize = 64;
const MAX_TERMS: usize = 256;
const MAX_DEGREE: usize = 16;

impl Plan {
    /// Checks everything that the module documentation promises, for a weights section of `weights_bytes`.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn validate(&self, weights_bytes: u64) -> Result<(), PlanError> {
        self.validate_inside(weights_bytes, 0)
    }

    fn validate_inside(&self, weights_bytes: u64, depth: usize) -> Result<(), PlanError> {
        self.validate_symbols()?;
        self.validate_values(weights_bytes)?;
        self.validate_ports()?;
        for (i, matrix) in self.matrices.iter().enumerate() {
            validate_matrix(matrix, weights_bytes)
                .map_err(|m| PlanError::new(format!("matrix {i} `{}`", matrix.name), m))?;
        }
        self.validate_steps()?;
        for (i, step) in self.steps.iter().enumerate() {
            let error = |m| PlanError::new(format!("step {i} `{}`", step.name), m);
            let regions = step.kind.regions();
            if MAX_DEPTH <= depth && !regions.is_empty() {
                let message = format!("more than {MAX_DEPTH} plans inside each other");
                return Err(error(message));
            }
            validate_regions(step).map_err(error)?;
            for region in regions {
                region
                    .validate_inside(weights_bytes, depth + 1)
                    .map_err(|e| error(e.to_string()))?;
            }
        }
        Ok(())
    }

    fn validate_symbols(&self) -> Result<(), PlanError> {
        let mut seen = HashSet::new();
        for (i, name) in self.symbols.iter().enumerate() {
            if !seen.insert(name) {
                return Err(PlanError::new(
                    format!("symbol {i}"),
                    format!("`{name}` is repeated"),
                ));
            }
        }
        Ok(())
    }

    fn validate_dims(&self, dims: &[Dim]) -> Result<(), String> {
        if dims.len() > MAX_RANK {
            return Err(format!("rank {} is above {MAX_RANK}", dims.len()));
        }
        for (i, dim) in dims.iter().enumerate() {
            if dim.terms.len() > MAX_TERMS {
                return Err(format!("dimension {i} has more than {MAX_TERMS} terms"));
            }
            for (_, symbols) in &dim.terms {
                if symbols.len() > MAX_DEGREE {
                    return Err(format!("dimension {i} is of a degree above {MAX_DEGREE}"));
                }
                if let Some(s) = symbols.iter().find(|&&s| s as usize >= self.symbols.len()) {
                    return Err(format!(
                        "dimension {i} refers to symbol {s} of {}",
                        self.symbols.len()
                    ));
                }
            }
        }
        Ok(())
    }

    fn validate_values(&self, weights_bytes: u64) -> Result<(), PlanError> {
        for (i, value) in self.values.iter().enumerate() {
            let error = |m: String| PlanError::new(format!("value {i} `{}`", value.name), m);
            self.validate_dims(&value.shape).map_err(error)?;
            match value.storage {
                Storage::Input(port) => {
                    let back = self.inputs.get(port as usize).map(|p| p.value as usize);
                    if back != Some(i) {
                        return Err(error(format!("input {port} is not this value")));
                    }
                }
                Storage::Weights { offset, len } => {
                    validate_range(offset, len, weights_bytes).map_err(error)?;
                }
                Storage::Slot => {}
            }
        }
        Ok(())
    }

    fn validate_ports(&self) -> Result<(), PlanError> {
        for (kind, ports) in [("input", &self.inputs), ("output", &self.outputs)] {
            let mut named = HashMap::new();
            for (i, port) in ports.iter().enumerate() {
                let error = |m: String| PlanError::new(format!("{kind} {i} `{}`", port.name), m);
                let Some(value) = self.values.get(port.value as usize) else {
                    return Err(error(format!(
                        "refers to value {} of {}",
                        port.value,
                        self.values.len()
                    )));
                };
                // One value may be several outputs.
                if *named.entry(&port.name).or_insert(port.value) != port.value {
                    return Err(error("the name is repeated".to_owned()));
                }
                if kind == "input" && value.storage != Storage::Input(i as u32) {
                    return Err(error(format!(
                        "value {} is not stored as this input",
                        port.value
                    )));
                }
            }
        }
        Ok(())
    }

    fn validate_steps(&self) -> Result<(), PlanError> {
        let mut written: Vec<bool> = self
            .values
            .iter()
            .map(|v| v.storage != Storage::Slot)
            .collect();
        for (i, step) in self.steps.iter().enumerate() {
            let error = |what: String, m: String| {
                PlanError::new(format!("step {i} `{}` {what}", step.name), m)
            };
            for (j, input) in step.inputs.iter().enumerate() {
                let Some(v) = *input else { continue };
                match written.get(v as usize) {
                    None => {
                        let m = format!("refers to value {v} of {}", self.values.len());
                        return Err(error(format!("input {j}"), m));
                    }
                    Some(false) => {
                        return Err(error(
                            format!("input {j}"),
                            format!("value {v} is not written yet"),
                        ));
                    }
                    Some(true) => {}
                }
            }
            for (j, &v) in step.outputs.iter().enumerate() {
                match written.get_mut(v as usize) {
                    None => {
                        let m = format!("refers to value {v} of {}", self.values.len());
                        return Err(error(format!("output {j}"), m));
                    }
                    Some(w) if *w => {
                        return Err(error(
                            format!("output {j}"),
                            format!("value {v} is written twice"),
                        ));
                    }
                    Some(w) => *w = true,
                }
            }
            match &step.kind {
                StepKind::Dims(dims) => self
                    .validate_dims(dims)
                    .map_err(|m| error("sizes".to_owned(), m))?,
                StepKind::Linear { matrix, .. } | StepKind::IntegerLinear { matrix, .. }
                    if *matrix as usize >= self.matrices.len() =>
                {
                    let m = format!("refers to matrix {matrix} of {}", self.matrices.len());
                    return Err(error("weight".to_owned(), m));
                }
                _ => {}
            }
        }
        for (i, port) in self.outputs.iter().enumerate() {
            if !written[port.value as usize] {
                return Err(PlanError::new(
                    format!("output {i} `{}`", port.name),
                    format!("value {} is never written", port.value),
                ));
            }
        }
        Ok(())
    }
}

/// Checks that a step which runs plans has what they take and give.
fn validate_regions(step: &Step) -> Result<(), String> {
    let (n_inputs, n_outputs) = (step.inputs.len(), step.outputs.len());
    let (fits, first_read) = match &step.kind {
        StepKind::If { then, otherwise } => {
            let n = then.inputs.len().saturating_add(otherwise.inputs.len());
            let gives = then.outputs.len() == n_outputs && otherwise.outputs.len() == n_outputs;
            (n_inputs == n.saturating_add(1) && gives, 0)
        }
        StepKind::Loop { body, n_carried } => {
            let n = *n_carried as usize;
            let takes = n_inputs == body.inputs.len() && n.saturating_add(2) <= n_inputs;
            let gives = body.outputs.len() == n_outputs.saturating_add(1) && n <= n_outputs;
            (takes && gives, 2)
        }
        _ => return Ok(()),
    };
    if !fits {
        return Err(format!(
            "{n_inputs} inputs and {n_outputs} outputs are not what its plans take and give"
        ));
    }
    match step.inputs[first_read..].iter().position(Option::is_none) {
        Some(i) => Err(format!("input {} is absent", first_read + i)),
        None => Ok(()),
    }
}

fn validate_range(offset: u64, len: u64, section_bytes: u64) -> Result<(), String> {
    if !offset.is_multiple_of(ALIGNMENT) {
        return Err(format!("offset {offset} is not a multiple of {ALIGNMENT}"));
    }
    match offset.checked_add(len) {
        Some(end) if end <= section_bytes => Ok(()),
        _ => Err(format!(
            "{len} bytes at {offset} are outside a section of {section_bytes} bytes"
        )),
    }
}

fn validate_matrix(matrix: &MatrixDesc, weights_bytes: u64) -> Result<(), String> {
    validate_range(matrix.offset, matrix.len, weights_bytes)?;
    if matrix.nnz > u64::from(matrix.n) * u64::from(matrix.k) {
        return Err(format!(
            "{} non-zeros in [{}, {}]",
            matrix.nnz, matrix.n, matrix.k
        ));
    }
    let mut next_row = 0u32;
    for (i, block) in matrix.row_blocks.iter().enumerate() {
        validate_range(block.offset, block.len, matrix.len)
            .map_err(|m| format!("row block {i}: {m}"))?;
        if block.row0 != next_row || block.n_rows == 0 {
            return Err(format!(
                "row block {i}: {} rows at {}, expected row {next_row}",
                block.n_rows, block.row0
            ));
        }
        next_row = block
            .row0
            .checked_add(block.n_rows)
            .ok_or_else(|| format!("row block {i}: {} rows at {}", block.n_rows, block.row0))?;
    }
    if next_row != matrix.n {
        return Err(format!("row blocks cover {next_row} of {} rows", matrix.n));
    }
    Ok(())
}
