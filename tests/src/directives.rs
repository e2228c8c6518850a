//! What the leading comments of an `.ir` file ask for.
//!
//! ```text
//! ; run: fold-constants,cse            the pipeline (required)
//! ; eval: max_abs = 1e-4, max_rel = 0  the tolerance between the graphs before and after; `exact`; or `none`
//! ; dims: b = 2, s = 3                 sizes of the symbols; each such line is one evaluation
//! ; input: ids = range 0..4            elements of an input: a <= x < b
//! ```
//!
//! Symbols without a size take 2, 3, 5, 7, 11 in name order. `eval` also takes `range = a..b`, for the inputs that no line
//! of their own describes.

use std::collections::BTreeMap;

use lancet_passes::{PASSES, Pipeline};

use crate::compare::Tolerance;

/// What one file asks for.
#[derive(Debug)]
pub struct Directives {
    pub pipeline: Pipeline,
    /// `None` if the graphs are not evaluated.
    pub tolerance: Option<Tolerance>,
    /// Sizes of symbols for each evaluation; at least one.
    pub dims: Vec<BTreeMap<String, i64>>,
    /// Least element, and what all are below, by input.
    pub ranges: BTreeMap<String, (f64, f64)>,
    /// The range of the other inputs.
    pub default_range: Option<(f64, f64)>,
}

impl Directives {
    /// Reads the leading comments of `text`.
    ///
    /// # Errors
    /// The directive that is wrong or missing.
    pub fn parse(text: &str) -> Result<Directives, String> {
        let mut pipeline = None;
        let mut eval = None;
        let mut found = Directives {
            pipeline: Pipeline::default(),
            tolerance: None,
            dims: Vec::new(),
            ranges: BTreeMap::new(),
            default_range: None,
        };
        for (key, value) in lancet_ir::directives(text) {
            let wrong = |e: String| format!("`; {key}: {value}`: {e}");
            match key.as_str() {
                "run" => {
                    let parsed = Pipeline::parse(&value, PASSES);
                    pipeline = Some(parsed.map_err(|e| wrong(e.to_string()))?);
                }
                "eval" => eval = Some(found.read_eval(&value).map_err(wrong)?),
                "dims" => found.dims.push(sizes(&value).map_err(wrong)?),
                "input" => {
                    let (name, range) = assignment(&value).map_err(wrong)?;
                    let range = range.strip_prefix("range").unwrap_or(range);
                    found
                        .ranges
                        .insert(name.to_owned(), bounds(range).map_err(wrong)?);
                }
                _ => return Err(wrong("unknown directive".to_owned())),
            }
        }
        found.pipeline = pipeline.ok_or("no `; run:` directive")?;
        found.tolerance = eval.ok_or("no `; eval:` directive")?;
        if found.dims.is_empty() {
            found.dims.push(BTreeMap::new());
        }
        Ok(found)
    }

    fn read_eval(&mut self, value: &str) -> Result<Option<Tolerance>, String> {
        let mut tolerance = Tolerance::default();
        for item in items(value) {
            match item {
                "none" => return Ok(None),
                "exact" => continue,
                _ => {}
            }
            let (key, value) = assignment(item)?;
            match key {
                "max_abs" => tolerance.max_abs = number(value)?,
                "max_rel" => tolerance.max_rel = number(value)?,
                "range" => self.default_range = Some(bounds(value)?),
                _ => return Err(format!("unknown tolerance `{key}`")),
            }
        }
        Ok(Some(tolerance))
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty())
}

fn assignment(text: &str) -> Result<(&str, &str), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("expected `name = value`, found `{text}`"))?;
    Ok((key.trim(), value.trim()))
}

fn number(text: &str) -> Result<f64, String> {
    let text = text.trim();
    text.parse()
        .map_err(|_| format!("expected a number, found `{text}`"))
}

fn bounds(text: &str) -> Result<(f64, f64), String> {
    let (a, b) = text
        .split_once("..")
        .ok_or_else(|| format!("expected `a..b`, found `{text}`"))?;
    Ok((number(a)?, number(b)?))
}

fn sizes(text: &str) -> Result<BTreeMap<String, i64>, String> {
    items(text)
        .map(|item| {
            let (name, size) = assignment(item)?;
            let size = size.parse().map_err(|_| format!("`{size}` is no size"))?;
            Ok((name.to_owned(), size))
        })
        .collect()
}
