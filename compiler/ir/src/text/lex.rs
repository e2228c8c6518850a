//! Tokens of IR text.
//!
//! Comments run from `;` to the end of the line. A number is everything that starts with a digit and runs on in letters,
//! digits and underscores (`1.5e-3`, but also `4x1` and a content hash); its reader decides what it may be.

use std::fmt;

/// Kind and content of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// A letter or underscore, then letters, digits and underscores.
    Ident(&'a str),
    /// Starts with a digit.
    Number(&'a str),
    /// Quoted text with its escapes resolved.
    Str(String),
    /// `%name`
    Value(Name),
    /// `@name`
    Const(Name),
    /// One of `( ) [ ] { } , : = + - *`.
    Punct(char),
    /// `..`
    DotDot,
    End,
}

/// A name after `%` or `@`. `%0` is a number and `%"0"` a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    Number(String),
    Text(String),
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Ident(s) | Token::Number(s) => write!(f, "`{s}`"),
            Token::Str(_) => f.write_str("a string"),
            Token::Value(n) => write!(f, "`%{n}`"),
            Token::Const(n) => write!(f, "`@{n}`"),
            Token::Punct(c) => write!(f, "`{c}`"),
            Token::DotDot => f.write_str("`..`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Number(s) | Name::Text(s) => f.write_str(s),
        }
    }
}

/// A token, the bytes it takes, and whether it is the first of its line.
#[derive(Clone, Debug)]
pub(crate) struct Spanned<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) starts_line: bool,
}

/// A lexical mistake: bytes and message.
pub(crate) type LexError = (usize, usize, String);

/// Characters of a name after `%` or `@` that need no quotes.
pub(crate) fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '$')
}

/// True if `s` reads as one [`Token::Ident`].
pub(crate) fn is_ident(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && s.chars().all(is_ident_char)
}

fn is_ident_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Splits `text` into tokens. The last is [`Token::End`]. What cannot be read is skipped and reported.
pub(crate) fn lex(text: &str) -> (Vec<Spanned<'_>>, Vec<LexError>) {
    let mut lexer = Lexer { text, at: 0 };
    let (mut tokens, mut errors) = (Vec::new(), Vec::new());
    let mut starts_line = true;
    loop {
        starts_line |= lexer.skip_space();
        let start = lexer.at;
        match lexer.token() {
            Ok(token) => {
                let is_end = token == Token::End;
                tokens.push(Spanned {
                    token,
                    start,
                    end: lexer.at,
                    starts_line,
                });
                if is_end {
                    return (tokens, errors);
                }
                starts_line = false;
            }
            Err(message) => errors.push((start, lexer.at, message)),
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Skips blanks and comments; true if a line end was among them.
    fn skip_space(&mut self) -> bool {
        let from = self.at;
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            if self.rest().starts_with(';') {
                self.take_while(|c| c != '\n');
            } else if blank == 0 {
                return self.text[from..self.at].contains('\n');
            }
        }
    }

    fn take_while(&mut self, f: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let n = rest.find(|c| !f(c)).unwrap_or(rest.len());
        self.at += n;
        &rest[..n]
    }

    fn token(&mut self) -> Result<Token<'a>, String> {
        let Some(c) = self.peek() else {
            return Ok(Token::End);
        };
        match c {
            '"' => self.string().map(Token::Str),
            '%' | '@' => {
                self.at += 1;
                let name = self.name()?;
                Ok(if c == '%' {
                    Token::Value(name)
                } else {
                    Token::Const(name)
                })
            }
            '(' | ')' | '[' | ']' | '{' | '}' | ',' | ':' | '=' | '+' | '-' | '*' => {
                self.at += 1;
                Ok(Token::Punct(c))
            }
            '.' if self.rest().starts_with("..") => {
                self.at += 2;
                Ok(Token::DotDot)
            }
            '0'..='9' => Ok(Token::Number(self.number())),
            c if c.is_ascii_alphabetic() || c == '_' => {
                Ok(Token::Ident(self.take_while(is_ident_char)))
            }
            c => {
                self.at += c.len_utf8();
                Err(format!("unexpected character {c:?}"))
            }
        }
    }

    fn number(&mut self) -> &'a str {
        let bytes = self.rest().as_bytes();
        let mut n = 1;
        while let Some(&b) = bytes.get(n) {
            let next_is_digit = bytes.get(n + 1).is_some_and(u8::is_ascii_digit);
            let continues = match b {
                b'.' => next_is_digit,
                b'+' | b'-' => matches!(bytes[n - 1], b'e' | b'E') && next_is_digit,
                b => b.is_ascii_alphanumeric() || b == b'_',
            };
            if !continues {
                break;
            }
            n += 1;
        }
        let text = &self.rest()[..n];
        self.at += n;
        text
    }

    fn name(&mut self) -> Result<Name, String> {
        if self.peek() == Some('"') {
            return self.string().map(Name::Text);
        }
        let name = self.take_while(is_name_char);
        if name.is_empty() {
            Err("expected a name here".to_owned())
        } else if name.bytes().all(|b| b.is_ascii_digit()) {
            Ok(Name::Number(name.to_owned()))
        } else {
            Ok(Name::Text(name.to_owned()))
        }
    }

    /// Reads a string. On an error the rest of the line is skipped.
    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek().filter(|c| *c != '\n') else {
                return Err("this string has no end on its line".to_owned());
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => match self.escape() {
                    Some(c) => out.push(c),
                    None => {
                        self.take_while(|c| c != '\n');
                        return Err("unknown escape in a string".to_owned());
                    }
                },
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let c = self.peek()?;
        if c == '\n' {
            return None;
        }
        self.at += c.len_utf8();
        match c {
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            '0' => Some('\0'),
            '"' | '\\' => Some(c),
            'u' => {
                let inner = self.rest().strip_prefix('{')?;
                let digits = &inner[..inner.find('}')?];
                if digits.is_empty()
                    || digits.len() > 6
                    || !digits.bytes().all(|b| b.is_ascii_hexdigit())
                {
                    return None;
                }
                self.at += digits.len() + 2;
                char::from_u32(u32::from_str_radix(digits, 16).ok()?)
            }
            _ => None,
        }
    }
}

/// Writes `s` in quotes, with escapes that [`lex`] resolves.
pub(crate) fn quote(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
