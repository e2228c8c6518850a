//! Pipelines as text: `detect-sparsity{min = 0.5},pack-blocks{block = 4x1}`.
//!
//! ```text
//! pipeline = [ pass { "," pass } ] ;
//! pass     = name [ "{" [ option { "," option } ] "}" ] ;
//! option   = name "=" value ;
//! name     = lower-case letters, digits and "-" ;   value = anything but "," "{" "}" "=" and space ;
//! ```

use std::collections::BTreeMap;
use std::fmt;

use crate::{Options, PassInfo, PipelineError};

/// One pass of a pipeline with its options.
#[derive(Clone, Debug)]
pub struct PipelineEntry {
    pub info: PassInfo,
    /// Every option of the pass, defaults included.
    pub options: Options,
}

/// Passes in the order in which they run.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    pub entries: Vec<PipelineEntry>,
}

impl Pipeline {
    /// Reads a pipeline over the passes `known`.
    ///
    /// # Errors
    /// [`PipelineError`] with the column of the first character that is wrong.
    pub fn parse(text: &str, known: &[PassInfo]) -> Result<Pipeline, PipelineError> {
        let mut cursor = Cursor {
            chars: text.chars().collect(),
            at: 0,
        };
        let mut entries = Vec::new();
        cursor.skip_space();
        if cursor.peek().is_none() {
            return Ok(Pipeline { entries });
        }
        loop {
            entries.push(entry(&mut cursor, known)?);
            if cursor.peek().is_none() {
                return Ok(Pipeline { entries });
            }
            cursor.expect(',')?;
        }
    }
}

/// Prints the pipeline with the options that differ from their defaults; the text parses to an equal pipeline.
impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, entry) in self.entries.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, entry.info.name)?;
            let mut open = false;
            for schema in entry.info.options {
                let value = &entry.options.0[schema.name];
                if schema.ty.parse(schema.default).as_ref() != Some(value) {
                    let before = if open { ", " } else { "{" };
                    write!(f, "{before}{} = {value}", schema.name)?;
                    open = true;
                }
            }
            if open {
                f.write_str("}")?;
            }
        }
        Ok(())
    }
}

fn entry(cursor: &mut Cursor, known: &[PassInfo]) -> Result<PipelineEntry, PipelineError> {
    cursor.skip_space();
    let column = cursor.column();
    let name = cursor.name("a pass name")?;
    let Some(info) = known.iter().find(|p| p.name == name) else {
        return Err(PipelineError::UnknownPass {
            column,
            name,
            valid: known.iter().map(|p| p.name.to_owned()).collect(),
        });
    };
    let mut options = BTreeMap::new();
    for schema in info.options {
        let value = schema
            .ty
            .parse(schema.default)
            .expect("a test parses the default of every option in the table");
        options.insert(schema.name, value);
    }
    let entry = |options| PipelineEntry {
        info: *info,
        options: Options(options),
    };
    cursor.skip_space();
    if cursor.peek() != Some('{') {
        return Ok(entry(options));
    }
    cursor.expect('{')?;
    cursor.skip_space();
    while cursor.peek() != Some('}') {
        option(cursor, info, &mut options)?;
        cursor.skip_space();
        if cursor.peek() != Some('}') {
            cursor.expect(',')?;
        }
    }
    cursor.expect('}')?;
    cursor.skip_space();
    Ok(entry(options))
}

fn option(
    cursor: &mut Cursor,
    info: &PassInfo,
    options: &mut BTreeMap<&'static str, crate::OptionValue>,
) -> Result<(), PipelineError> {
    cursor.skip_space();
    let column = cursor.column();
    let name = cursor.name("an option name")?;
    let Some(schema) = info.options.iter().find(|o| o.name == name) else {
        return Err(PipelineError::UnknownOption {
            column,
            pass: info.name,
            name,
            valid: info.options.iter().map(|o| o.name.to_owned()).collect(),
        });
    };
    cursor.expect('=')?;
    cursor.skip_space();
    let column = cursor.column();
    let found = cursor.take_while(|c| !matches!(c, ',' | '{' | '}' | '=') && !c.is_whitespace());
    let Some(value) = schema.ty.parse(&found) else {
        return Err(PipelineError::OptionValue {
            column,
            pass: info.name,
            name: schema.name,
            expected: schema.ty.describe(),
            found,
        });
    };
    options.insert(schema.name, value);
    Ok(())
}

struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn column(&self) -> usize {
        self.at + 1
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&accept) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn name(&mut self, what: &str) -> Result<String, PipelineError> {
        let name = self
            .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'));
        if name.is_empty() {
            return Err(self.expected(what));
        }
        Ok(name)
    }

    fn expect(&mut self, c: char) -> Result<(), PipelineError> {
        self.skip_space();
        if self.peek() != Some(c) {
            return Err(self.expected(&format!("`{c}`")));
        }
        self.at += 1;
        Ok(())
    }

    fn expected(&self, what: &str) -> PipelineError {
        let found = self
            .peek()
            .map_or_else(|| "the end".to_owned(), |c| format!("`{c}`"));
        PipelineError::Syntax {
            column: self.column(),
            message: format!("expected {what}, found {found}"),
        }
    }
}
