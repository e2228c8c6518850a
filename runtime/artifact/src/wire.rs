//! Conversion of plans to the bytes of a protobuf message and back.
//!
//! Private: nothing outside sees a message. The messages are in [`messages`], the conversion of steps in [`steps`]; here are
//! the entry points and everything else a [`Plan`] consists of.

mod messages;
mod steps;

use prost::Message;

use self::messages::{
    MatrixMessage, PlanMessage, PortMessage, RangeMessage, StorageMessage, TermMessage,
    TextMessage, ValueMessage, VariantMessage, VariantsMessage,
};
use self::steps::{step, step_message};
use crate::{
    Arithmetic, ArtifactError, Dim, Layout, MatrixDesc, Plan, PlanError, Port, RowBlock, Storage,
    ValueDesc, WeightFormat,
};

/// Names and plans as the bytes of one protobuf message.
pub(crate) fn variants_to_bytes(variants: &[(&str, &Plan)]) -> Vec<u8> {
    let variants = (variants.iter())
        .map(|&(name, plan)| VariantMessage {
            name: name.to_owned(),
            plan: to_message(plan),
        })
        .collect();
    VariantsMessage { variants }.encode_to_vec()
}

/// What [`variants_to_bytes`] encoded. Plans are not validated.
pub(crate) fn variants_from_bytes(bytes: &[u8]) -> Result<Vec<(String, Plan)>, ArtifactError> {
    let message =
        VariantsMessage::decode(bytes).map_err(|e| ArtifactError::Decode(e.to_string()))?;
    (message.variants.into_iter())
        .map(|v| Ok((v.name, from_message(v.plan)?)))
        .collect()
}

impl Plan {
    /// The plan as the bytes of a protobuf message.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_message(self).encode_to_vec()
    }

    /// The plan that [`to_bytes`](Plan::to_bytes) encoded. The result is not validated.
    ///
    /// # Errors
    /// [`ArtifactError::Decode`] or [`ArtifactError::Plan`] if the bytes are not of a plan.
    pub fn from_bytes(bytes: &[u8]) -> Result<Plan, ArtifactError> {
        let message =
            PlanMessage::decode(bytes).map_err(|e| ArtifactError::Decode(e.to_string()))?;
        Ok(from_message(message)?)
    }
}

fn to_message(plan: &Plan) -> PlanMessage {
    let ports = |ports: &[Port]| {
        ports
            .iter()
            .map(|p| PortMessage {
                name: p.name.clone(),
                value: p.value,
            })
            .collect()
    };
    PlanMessage {
        symbols: plan.symbols.clone(),
        values: plan.values.iter().map(value_message).collect(),
        inputs: ports(&plan.inputs),
        outputs: ports(&plan.outputs),
        steps: plan.steps.iter().map(step_message).collect(),
        matrices: plan.matrices.iter().map(matrix_message).collect(),
        metadata: plan
            .metadata
            .iter()
            .map(|(name, text)| TextMessage {
                name: name.clone(),
                text: text.clone(),
            })
            .collect(),
    }
}

fn from_message(message: PlanMessage) -> Result<Plan, PlanError> {
    let ports = |ports: Vec<PortMessage>| {
        ports
            .into_iter()
            .map(|p| Port {
                name: p.name,
                value: p.value,
            })
            .collect()
    };
    Ok(Plan {
        symbols: message.symbols,
        values: numbered(message.values, value)?,
        inputs: ports(message.inputs),
        outputs: ports(message.outputs),
        steps: numbered(message.steps, step)?,
        matrices: numbered(message.matrices, matrix)?,
        metadata: message
            .metadata
            .into_iter()
            .map(|m| (m.name, m.text))
            .collect(),
    })
}

fn numbered<M, T>(
    messages: Vec<M>,
    convert: impl Fn(usize, M) -> Result<T, PlanError>,
) -> Result<Vec<T>, PlanError> {
    messages
        .into_iter()
        .enumerate()
        .map(|(i, m)| convert(i, m))
        .collect()
}

fn value_message(value: &ValueDesc) -> ValueMessage {
    ValueMessage {
        name: value.name.clone(),
        dtype: value.dtype.clone(),
        shape: flatten_dims(&value.shape),
        layout: match value.layout {
            Layout::RowMajor => 0,
            Layout::Panels => 1,
        },
        storage: match value.storage {
            Storage::Input(i) => Some(StorageMessage::Input(i)),
            Storage::Weights { offset, len } => {
                Some(StorageMessage::Weights(RangeMessage { offset, len }))
            }
            Storage::Slot => None,
        },
    }
}

fn value(i: usize, message: ValueMessage) -> Result<ValueDesc, PlanError> {
    let error = |name: &str, m: String| PlanError::new(format!("value {i} `{name}`"), m);
    Ok(ValueDesc {
        shape: unflatten_dims(&message.shape).map_err(|m| error(&message.name, m.to_owned()))?,
        layout: match message.layout {
            0 => Layout::RowMajor,
            1 => Layout::Panels,
            other => return Err(error(&message.name, format!("unknown layout {other}"))),
        },
        storage: match message.storage {
            None => Storage::Slot,
            Some(StorageMessage::Input(i)) => Storage::Input(i),
            Some(StorageMessage::Weights(r)) => Storage::Weights {
                offset: r.offset,
                len: r.len,
            },
        },
        name: message.name,
        dtype: message.dtype,
    })
}

fn matrix_message(matrix: &MatrixDesc) -> MatrixMessage {
    let (format, format_parameters) = match matrix.format {
        WeightFormat::Dense => ("dense", vec![]),
        WeightFormat::Unstructured => ("unstructured", vec![]),
        WeightFormat::Bsr { r, c } => ("bsr", vec![u32::from(r), u32::from(c)]),
    };
    MatrixMessage {
        name: matrix.name.clone(),
        format: format.to_owned(),
        format_parameters,
        n: matrix.n,
        k: matrix.k,
        offset: matrix.offset,
        len: matrix.len,
        row_blocks: matrix
            .row_blocks
            .iter()
            .flat_map(|b| [b.offset, b.len, u64::from(b.row0), u64::from(b.n_rows)])
            .collect(),
        nnz: matrix.nnz,
        pattern: matrix.pattern.clone(),
        predicted_speedup: matrix.predicted_speedup,
        predicted_cycles: (matrix.predicted_cycles.iter())
            .map(|(name, cycles)| TermMessage {
                name: name.clone(),
                cycles: *cycles,
            })
            .collect(),
        arithmetic: matrix.arithmetic as u32,
    }
}

fn matrix(i: usize, message: MatrixMessage) -> Result<MatrixDesc, PlanError> {
    let error = |m: String| PlanError::new(format!("matrix {i} `{}`", message.name), m);
    let format = match (
        message.format.as_str(),
        message.format_parameters.as_slice(),
    ) {
        ("dense", []) => WeightFormat::Dense,
        ("unstructured", []) => WeightFormat::Unstructured,
        ("bsr", &[r, c]) if r < 256 && c < 256 => WeightFormat::Bsr {
            r: r as u8,
            c: c as u8,
        },
        (name, parameters) => return Err(error(format!("unknown format `{name}` {parameters:?}"))),
    };
    let Some(&arithmetic) = Arithmetic::ALL.get(message.arithmetic as usize) else {
        return Err(error(format!("unknown arithmetic {}", message.arithmetic)));
    };
    if !message.row_blocks.len().is_multiple_of(4) {
        return Err(error("row blocks are not records of four".to_owned()));
    }
    let mut row_blocks = Vec::with_capacity(message.row_blocks.len() / 4);
    for record in message.row_blocks.chunks_exact(4) {
        let (Ok(row0), Ok(n_rows)) = (u32::try_from(record[2]), u32::try_from(record[3])) else {
            return Err(error(format!(
                "row block of {} rows at {}",
                record[3], record[2]
            )));
        };
        row_blocks.push(RowBlock {
            offset: record[0],
            len: record[1],
            row0,
            n_rows,
        });
    }
    Ok(MatrixDesc {
        format,
        arithmetic,
        n: message.n,
        k: message.k,
        offset: message.offset,
        len: message.len,
        row_blocks,
        nnz: message.nnz,
        pattern: message.pattern,
        predicted_speedup: message.predicted_speedup,
        predicted_cycles: (message.predicted_cycles.into_iter())
            .map(|t| (t.name, t.cycles))
            .collect(),
        name: message.name,
    })
}

fn flatten_dims(dims: &[Dim]) -> Vec<i64> {
    let mut out = Vec::new();
    for dim in dims {
        out.push(dim.terms.len() as i64);
        for (coef, symbols) in &dim.terms {
            out.push(*coef);
            out.push(symbols.len() as i64);
            out.extend(symbols.iter().map(|&s| i64::from(s)));
        }
    }
    out
}

fn unflatten_dims(flat: &[i64]) -> Result<Vec<Dim>, &'static str> {
    const MALFORMED: &str = "the shape is not a list of polynomials";
    let mut numbers = flat.iter().copied();
    let mut dims = Vec::new();
    while let Some(n_terms) = numbers.next() {
        let mut terms = Vec::new();
        for _ in 0..n_terms {
            let coef = numbers.next().ok_or(MALFORMED)?;
            let degree = numbers.next().ok_or(MALFORMED)?;
            let mut symbols = Vec::new();
            for _ in 0..degree {
                let symbol = numbers.next().ok_or(MALFORMED)?;
                symbols.push(u32::try_from(symbol).map_err(|_| MALFORMED)?);
            }
            terms.push((coef, symbols));
        }
        dims.push(Dim { terms });
    }
    Ok(dims)
}
