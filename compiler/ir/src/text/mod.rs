//! IR text: lexer, parser, printer.

mod diagnostic;
mod directives;
mod lex;
mod literal;
mod parse;
mod print;
mod types;
mod values;

pub use diagnostic::{Diagnostic, ParseError};
pub use directives::directives;
pub(crate) use lex::{is_ident, quote};
pub use literal::content_hash;
pub use parse::{MAX_ELEMENTS, Resolver, parse, parse_limited, parse_with};
pub use print::{PrintOptions, print, print_with, value_names};
