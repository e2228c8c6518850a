//! The folder layout of ONNX's backend test suite: finding cases, loading their data, comparing results.
//!
//! ```text
//! NAME/model.onnx
//! NAME/tolerance.json                          optional: {"rtol": 1e-3, "atol": 1e-7, "mean_abs": 1e-2}
//! NAME/test_data_set_N/input_K.pb, output_K.pb one serialized tensor each
//! ```
//!
//! A result agrees if `|found - expected| <= atol + rtol * |expected|` for every element and, where `mean_abs` is given,
//! the mean of `|found - expected|` is no greater.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use lancet_ops::{DataView, Tensor};
use serde::Deserialize;

use super::{ImportErrors, read_tensor_file};

/// How much a result may differ.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Tolerance {
    /// Relative to the expected element.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
    /// Bound on the mean of absolute differences.
    pub mean_abs: Option<f64>,
}

impl Default for Tolerance {
    /// The tolerance of ONNX's own runner.
    fn default() -> Tolerance {
        Tolerance {
            rtol: 1e-3,
            atol: 1e-7,
            mean_abs: None,
        }
    }
}

/// What can be wrong with a folder of cases.
#[derive(Debug, thiserror::Error)]
pub enum TestSuiteError {
    /// A file or folder could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A tolerance file is malformed.
    #[error("{}: {message}", path.display())]
    Tolerance { path: PathBuf, message: String },
    /// A tensor file is malformed.
    #[error(transparent)]
    Tensor(#[from] ImportErrors),
    /// There is no case.
    #[error("{}: no model.onnx in this folder or below it", path.display())]
    NoCases { path: PathBuf },
    /// The data do not fit the model.
    #[error("{}: {message}", path.display())]
    Data { path: PathBuf, message: String },
}

/// One model and its data.
#[derive(Clone, Debug)]
pub struct Case {
    /// Path below the folder that was searched, or the folder's own name.
    pub name: String,
    pub model: PathBuf,
    pub data_sets: Vec<DataSet>,
    pub tolerance: Tolerance,
}

/// Inputs and expected outputs, as files.
#[derive(Clone, Debug)]
pub struct DataSet {
    pub dir: PathBuf,
    pub inputs: Vec<PathBuf>,
    pub outputs: Vec<PathBuf>,
}

/// A tensor and the name that its file gives it, often empty.
pub type Named = (String, Tensor);

impl DataSet {
    /// Reads inputs and expected outputs.
    ///
    /// # Errors
    /// [`TestSuiteError::Tensor`].
    pub fn load(&self) -> Result<(Vec<Named>, Vec<Named>), TestSuiteError> {
        let read = |paths: &[PathBuf]| -> Result<Vec<Named>, TestSuiteError> {
            paths.iter().map(|p| Ok(read_tensor_file(p)?)).collect()
        };
        Ok((read(&self.inputs)?, read(&self.outputs)?))
    }

    /// Puts tensors in the order of `names`: by name where every tensor has one of them, by position otherwise.
    ///
    /// # Errors
    /// [`TestSuiteError::Data`] if the numbers differ.
    pub fn arrange(
        &self,
        tensors: Vec<Named>,
        names: &[&str],
    ) -> Result<Vec<Tensor>, TestSuiteError> {
        if tensors.len() != names.len() {
            return Err(TestSuiteError::Data {
                path: self.dir.clone(),
                message: format!("{} tensors for {} values", tensors.len(), names.len()),
            });
        }
        // A name may stand several times: a model may give one value as several of its outputs.
        let mut left: Vec<usize> = (0..names.len()).collect();
        let by_name: Option<Vec<usize>> = names
            .iter()
            .map(|n| {
                let at = left.iter().position(|&i| tensors[i].0 == *n)?;
                Some(left.remove(at))
            })
            .collect();
        let order = by_name.unwrap_or_else(|| (0..names.len()).collect());
        let mut slots: Vec<Option<Tensor>> = tensors.into_iter().map(|(_, t)| Some(t)).collect();
        Ok(order.into_iter().filter_map(|i| slots[i].take()).collect())
    }
}

/// Folders are searched this deep.
const MAX_DEPTH: usize = 8;

/// The case in `path`, or every case below it, in name order.
///
/// # Errors
/// [`TestSuiteError`] if a folder cannot be read, a tolerance is malformed, or there is no case.
pub fn discover(path: &Path) -> Result<Vec<Case>, TestSuiteError> {
    let mut cases = Vec::new();
    search(path, path, 0, &mut cases)?;
    if cases.is_empty() {
        return Err(TestSuiteError::NoCases {
            path: path.to_owned(),
        });
    }
    Ok(cases)
}

fn search(
    root: &Path,
    dir: &Path,
    depth: usize,
    cases: &mut Vec<Case>,
) -> Result<(), TestSuiteError> {
    let model = dir.join("model.onnx");
    if model.is_file() {
        cases.push(case(root, dir, model)?);
    } else if depth < MAX_DEPTH {
        for sub in entries(dir)?.into_iter().filter(|p| p.is_dir()) {
            search(root, &sub, depth + 1, cases)?;
        }
    }
    Ok(())
}

fn case(root: &Path, dir: &Path, model: PathBuf) -> Result<Case, TestSuiteError> {
    let relative = dir.strip_prefix(root).unwrap_or(dir);
    let name = if relative.as_os_str().is_empty() {
        let own = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        own.file_name().unwrap_or_default().display().to_string()
    } else {
        relative.display().to_string()
    };
    let mut data_sets = Vec::new();
    for sub in entries(dir)? {
        let is_set = numbered(&sub, "test_data_set_", "").is_some();
        if !is_set || !sub.is_dir() {
            continue;
        }
        let files = entries(&sub)?;
        let pick = |prefix: &str| {
            let mut found: Vec<(usize, PathBuf)> = files
                .iter()
                .filter_map(|f| Some((numbered(f, prefix, ".pb")?, f.clone())))
                .collect();
            found.sort();
            found.into_iter().map(|(_, f)| f).collect()
        };
        data_sets.push(DataSet {
            inputs: pick("input_"),
            outputs: pick("output_"),
            dir: sub,
        });
    }
    data_sets.sort_by_key(|d| numbered(&d.dir, "test_data_set_", ""));
    Ok(Case {
        name,
        model,
        data_sets,
        tolerance: tolerance(&dir.join("tolerance.json"))?,
    })
}

fn tolerance(path: &Path) -> Result<Tolerance, TestSuiteError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Tolerance::default()),
        Err(source) => {
            return Err(TestSuiteError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    serde_json::from_str(&text).map_err(|e| TestSuiteError::Tolerance {
        path: path.to_owned(),
        message: e.to_string(),
    })
}

/// Entries of a folder in name order.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, TestSuiteError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir)? {
            out.push(entry?.path());
        }
        out.sort();
        Ok(out)
    };
    list().map_err(|source| TestSuiteError::Io {
        path: dir.to_owned(),
        source,
    })
}

/// The number between `prefix` and `suffix` in the last part of a path.
fn numbered(path: &Path, prefix: &str, suffix: &str) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(prefix)?
        .strip_suffix(suffix)?
        .parse()
        .ok()
}

/// How a result compares with what was expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Largest absolute difference; infinite where one of two elements is not finite and the other is not its equal.
    pub max_abs: f64,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Number of elements outside the tolerance.
    pub n_wrong: usize,
    /// Row-major position of the element with the largest absolute difference.
    pub worst: usize,
    /// What else is wrong: element type, shape, or the mean.
    pub problem: Option<String>,
}

impl Comparison {
    /// True if the result agrees.
    pub fn agrees(&self) -> bool {
        self.n_wrong == 0 && self.problem.is_none()
    }
}

/// Compares a result with what was expected. Two NaNs agree, and so do equal infinities.
pub fn compare(expected: &Tensor, found: &Tensor, tolerance: &Tolerance) -> Comparison {
    let mut out = Comparison {
        max_abs: 0.0,
        mean_abs: 0.0,
        n_wrong: 0,
        worst: 0,
        problem: None,
    };
    if expected.dtype() != found.dtype() || expected.shape() != found.shape() {
        out.problem = Some(format!(
            "expected {}{:?}, found {}{:?}",
            expected.dtype(),
            expected.shape(),
            found.dtype(),
            found.shape()
        ));
        return out;
    }
    let mut sum = 0.0;
    for (i, (difference, magnitude)) in differences(expected, found).into_iter().enumerate() {
        if difference > out.max_abs {
            out.max_abs = difference;
            out.worst = i;
        }
        sum += difference;
        // Not `>`: a bound that is not a number holds nothing.
        let within = difference <= tolerance.atol + tolerance.rtol * magnitude;
        out.n_wrong += usize::from(!within);
    }
    if !expected.is_empty() {
        out.mean_abs = sum / expected.len() as f64;
    }
    if let Some(most) = tolerance.mean_abs
        && out.mean_abs > most
    {
        out.problem = Some(format!(
            "mean absolute error {:e} is over {most:e}",
            out.mean_abs
        ));
    }
    out
}

/// Absolute difference, and magnitude of the expected element, for each element. Integers are subtracted exactly.
fn differences(expected: &Tensor, found: &Tensor) -> Vec<(f64, f64)> {
    fn zip<T: Copy, U>(
        e: &[T],
        f: &[T],
        to: impl Fn(T) -> U,
        by: impl Fn(U, U) -> (f64, f64),
    ) -> Vec<(f64, f64)> {
        e.iter().zip(f).map(|(&e, &f)| by(to(e), to(f))).collect()
    }
    fn floats(e: f64, f: f64) -> (f64, f64) {
        if e == f || (e.is_nan() && f.is_nan()) {
            (0.0, 0.0)
        } else if e.is_finite() && f.is_finite() {
            ((e - f).abs(), e.abs())
        } else {
            (f64::INFINITY, 0.0)
        }
    }
    fn ints(e: i128, f: i128) -> (f64, f64) {
        ((e - f).abs() as f64, e.abs() as f64)
    }
    match (expected.view().data(), found.view().data()) {
        (DataView::F32(e), DataView::F32(f)) => zip(e, f, f64::from, floats),
        (DataView::F64(e), DataView::F64(f)) => zip(e, f, f64::from, floats),
        (DataView::F16(e), DataView::F16(f)) => zip(e, f, f16::to_f64, floats),
        (DataView::BF16(e), DataView::BF16(f)) => zip(e, f, bf16::to_f64, floats),
        (DataView::I8(e), DataView::I8(f)) => zip(e, f, i128::from, ints),
        (DataView::I16(e), DataView::I16(f)) => zip(e, f, i128::from, ints),
        (DataView::I32(e), DataView::I32(f)) => zip(e, f, i128::from, ints),
        (DataView::I64(e), DataView::I64(f)) => zip(e, f, i128::from, ints),
        (DataView::U8(e), DataView::U8(f)) => zip(e, f, i128::from, ints),
        (DataView::U16(e), DataView::U16(f)) => zip(e, f, i128::from, ints),
        (DataView::U32(e), DataView::U32(f)) => zip(e, f, i128::from, ints),
        (DataView::U64(e), DataView::U64(f)) => zip(e, f, i128::from, ints),
        (DataView::Bool(e), DataView::Bool(f)) => zip(e, f, i128::from, ints),
        // Element types have been compared.
        _ => Vec::new(),
    }
}
