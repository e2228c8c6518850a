//! What is wrong with a text, shown where it is wrong.

use std::fmt;

/// One mistake in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    pub message: String,
    /// The part of the line that is shown, without its line end.
    source: String,
    /// Where the caret stands in `source`, in characters from 0, and how wide it is.
    caret: (usize, usize),
}

/// Why a text is not a graph. It holds at least one mistake, in order of position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    diagnostics: Vec<Diagnostic>,
}

/// Lines longer than this are shown in part.
const MAX_SHOWN: usize = 100;

impl Diagnostic {
    /// The mistake at bytes `start..end` of `text`; positions inside a character or beyond the end are moved.
    pub(crate) fn at(text: &str, start: usize, end: usize, message: String) -> Diagnostic {
        let start = floor_boundary(text, start);
        let end = floor_boundary(text, end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let column = text[line_start..start].chars().count();
        let width = text[start..end.min(line_end)].chars().count().max(1);
        let from = if column < MAX_SHOWN - 20 {
            0
        } else {
            column - 20
        };
        let source: String = text[line_start..line_end]
            .chars()
            .skip(from)
            .take(MAX_SHOWN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        Diagnostic {
            line: text[..line_start].bytes().filter(|b| *b == b'\n').count() + 1,
            column: column + 1,
            message,
            source: source.trim_end().to_owned(),
            caret: (column - from, width.min(MAX_SHOWN)),
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl ParseError {
    /// At least one mistake; they are sorted by position.
    pub(crate) fn new(mut diagnostics: Vec<Diagnostic>) -> ParseError {
        diagnostics.sort_by_key(|d| (d.line, d.column));
        ParseError { diagnostics }
    }

    /// Every mistake found, in order of position.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

/// Shows the line and a caret under the mistake.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let pad = " ".repeat(number.len());
        let (at, width) = self.caret;
        writeln!(f, "{}:{}: {}", self.line, self.column, self.message)?;
        writeln!(f, "{pad} |")?;
        writeln!(f, "{number} | {}", self.source)?;
        write!(f, "{pad} | {}{}", " ".repeat(at), "^".repeat(width))
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.diagnostics.iter().enumerate() {
            write!(f, "{}{d}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}
