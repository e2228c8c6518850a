//! Text as a graph: the inverse of [`super::print`]. The grammar is in `compiler/docs/ir.md`.
//!
//! Recursive descent over the tokens of [`super::lex`]. A mistake ends its statement; reading goes on with the next one,
//! so that one run reports several. What a wrong statement would have defined is known to be missing and not reported
//! again. Text is not trusted: nesting, symbols and the sizes of tensors have limits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lancet_ops::{Attributes, DType, Operator, Tensor};

use crate::{Constant, Graph, IrError, Op, TensorType, Value};

use super::diagnostic::{Diagnostic, ParseError};
use super::lex::{Name, Spanned, Token, lex};
use super::print::default_output_name;

/// Elements that all constants of a text may have together.
pub const MAX_ELEMENTS: usize = 1 << 28;
/// Mistakes reported before reading stops.
const MAX_DIAGNOSTICS: usize = 20;
/// Symbols that a graph may declare, and operands or results of a node.
const MAX_SYMBOLS: usize = 256;
const MAX_OPERANDS: usize = 1 << 12;
/// Graphs inside each other.
const MAX_DEPTH: usize = 16;

/// Finds a tensor by the hash that stands for it in text; `None` if there is none of this type and shape.
pub type Resolver<'r> = dyn FnMut(u64, DType, &[usize]) -> Option<Arc<Tensor>> + 'r;

/// Reads a graph.
///
/// # Errors
/// [`ParseError`] with the position of every mistake found. A content hash is a mistake: weights are not in text.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    parse_with(text, &mut |_, _, _| None)
}

/// Reads a graph whose content hashes are resolved by `resolver`, from hash, element type and shape.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(text: &str, resolver: &mut Resolver<'_>) -> Result<Graph, ParseError> {
    parse_limited(text, MAX_ELEMENTS, resolver)
}

/// As [`parse_with`], with a limit to the elements of all constants together other than [`MAX_ELEMENTS`].
///
/// # Errors
/// As [`parse`].
pub fn parse_limited(
    text: &str,
    max_elements: usize,
    resolver: &mut Resolver<'_>,
) -> Result<Graph, ParseError> {
    let (tokens, errors) = lex(text);
    let mut parser = Parser {
        text,
        tokens,
        at: 0,
        diagnostics: Vec::new(),
        elements_left: max_elements,
        resolver,
        symbols: HashSet::new(),
        values: HashMap::new(),
        consts: HashMap::new(),
        depth: 0,
        ended: false,
    };
    for (start, end, message) in errors.into_iter().take(MAX_DIAGNOSTICS) {
        let mistake = Diagnostic::at(text, start, end, message);
        parser.diagnostics.push(mistake);
    }
    let graph = parser.graph();
    match graph {
        Some(graph) if parser.diagnostics.is_empty() => Ok(graph),
        _ => Err(ParseError::new(parser.diagnostics)),
    }
}

/// A mistake: bytes and message.
pub(super) type Mistake = (usize, usize, String);
pub(super) type Parsed<T> = Result<T, Mistake>;

pub(super) struct Parser<'t, 'r> {
    text: &'t str,
    tokens: Vec<Spanned<'t>>,
    at: usize,
    diagnostics: Vec<Diagnostic>,
    pub(super) elements_left: usize,
    pub(super) resolver: &'r mut Resolver<'r>,
    symbols: HashSet<String>,
    /// `None` where the defining statement was wrong.
    values: HashMap<Name, Option<Value>>,
    consts: HashMap<String, Option<Value>>,
    /// Graphs around the one that is read.
    depth: usize,
    /// The end of the text was met too early, which is said once.
    ended: bool,
}

/// A use of a value that a wrong statement should have defined: the statement is skipped in silence.
enum Operand {
    Absent,
    Value(Value),
    Missing,
}

impl<'t> Parser<'t, '_> {
    // Tokens.

    pub(super) fn peek(&self) -> &Token<'t> {
        &self.tokens[self.at].token
    }

    /// Moves past a token; the end stays where it is.
    pub(super) fn bump(&mut self) -> Token<'t> {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    /// First byte of the next token.
    pub(super) fn start(&self) -> usize {
        self.tokens[self.at].start
    }

    /// End of the token before the next one.
    fn end(&self) -> usize {
        self.at.checked_sub(1).map_or(0, |i| self.tokens[i].end)
    }

    pub(super) fn eat(&mut self, punct: char) -> bool {
        let found = *self.peek() == Token::Punct(punct);
        if found {
            self.bump();
        }
        found
    }

    pub(super) fn expect(&mut self, punct: char) -> Parsed<()> {
        if self.eat(punct) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{punct}`")))
        }
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = *self.peek() == Token::Ident(word);
        if found {
            self.bump();
        }
        found
    }

    pub(super) fn ident(&mut self, what: &str) -> Parsed<&'t str> {
        match *self.peek() {
            Token::Ident(s) => {
                self.bump();
                Ok(s)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// The mistake that the next token is not `what`.
    pub(super) fn expected(&self, what: &str) -> Mistake {
        let s = &self.tokens[self.at];
        (
            s.start,
            s.end,
            format!("expected {what}, found {}", s.token),
        )
    }

    /// A mistake from byte `start` to the last token read.
    pub(super) fn mistake(&self, start: usize, message: impl Into<String>) -> Mistake {
        (start, self.end(), message.into())
    }

    fn report(&mut self, (start, end, message): Mistake) {
        if self.diagnostics.len() < MAX_DIAGNOSTICS {
            let mistake = Diagnostic::at(self.text, start, end, message);
            self.diagnostics.push(mistake);
        }
    }

    /// Moves to the next line that can start a statement.
    fn recover(&mut self) {
        loop {
            let s = &self.tokens[self.at];
            let may_start = matches!(
                s.token,
                Token::Value(_) | Token::Ident("const" | "return") | Token::Punct('}')
            );
            if s.token == Token::End || (s.starts_line && may_start) {
                return;
            }
            self.bump();
        }
    }

    /// Reads `item, item, ...` up to `close`, which is consumed.
    pub(super) fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Parsed<T>,
    ) -> Parsed<Vec<T>> {
        let mut out = Vec::new();
        if self.eat(close) {
            return Ok(out);
        }
        loop {
            out.push(item(self)?);
            if self.eat(close) {
                return Ok(out);
            }
            if !self.eat(',') {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    // Graph and statements.

    fn graph(&mut self) -> Option<Graph> {
        let mut graph = match self.header() {
            Ok(graph) => graph,
            Err(mistake) => {
                self.report(mistake);
                return None;
            }
        };
        let mut returned = false;
        while self.diagnostics.len() < MAX_DIAGNOSTICS {
            let start = self.start();
            if self.eat('}') {
                if !returned {
                    self.report((start, start + 1, "expected `return` before this".to_owned()));
                }
                if self.depth == 0 && *self.peek() != Token::End {
                    let mistake = self.expected("nothing after the graph");
                    self.report(mistake);
                }
                return Some(graph);
            }
            if returned {
                let mistake = self.expected("`}` after `return`");
                self.report(mistake);
                return None;
            }
            let first = self.at;
            let result = match self.peek() {
                Token::Ident("const") => self.constant(&mut graph),
                Token::Ident("return") => {
                    returned = true;
                    self.outputs(&mut graph)
                }
                Token::Value(_) => self.node(&mut graph),
                Token::End => {
                    if !std::mem::replace(&mut self.ended, true) {
                        let mistake = self.expected("a statement or `}`");
                        self.report(mistake);
                    }
                    return None;
                }
                _ => Err(self.expected("a statement: `%name = ...`, `const` or `return`")),
            };
            if let Err(mistake) = result {
                self.report(mistake);
                if self.at == first {
                    self.bump();
                }
                self.recover();
            }
        }
        None
    }

    fn header(&mut self) -> Parsed<Graph> {
        if !self.eat_word("graph") {
            return Err(self.expected("`graph`"));
        }
        let mut graph = match self.peek().clone() {
            Token::Const(name) => {
                self.bump();
                Graph::new(&name.to_string())
            }
            _ => return Err(self.expected("the graph's name, `@name`")),
        };
        // `dims(...)` comes after the inputs, which use it; no type has parentheses.
        let inputs_at = self.at;
        while !matches!(self.peek(), Token::Punct(')') | Token::End) {
            self.bump();
        }
        self.bump();
        if self.eat_word("dims") {
            self.expect('(')?;
            self.list(')', |p| p.declare_symbol(&mut graph))?;
        }
        let body_at = self.at;
        self.at = inputs_at;
        self.expect('(')?;
        self.list(')', |p| p.input(&mut graph))?;
        if *self.peek() == Token::Ident("dims") {
            self.at = body_at;
        }
        self.expect('{')?;
        Ok(graph)
    }

    fn declare_symbol(&mut self, graph: &mut Graph) -> Parsed<()> {
        let start = self.start();
        let name = match self.bump() {
            Token::Ident(s) => s.to_owned(),
            Token::Str(s) => s,
            _ => return Err(self.mistake(start, "expected the name of a size")),
        };
        if !self.symbols.insert(name.clone()) {
            return Err(self.mistake(start, format!("`{name}` is declared twice")));
        }
        if self.symbols.len() > MAX_SYMBOLS {
            return Err(self.mistake(start, format!("more than {MAX_SYMBOLS} sizes")));
        }
        graph.declare_symbol(&name);
        Ok(())
    }

    /// True if `dims(...)` lists this symbol.
    pub(super) fn declares(&self, name: &str) -> bool {
        self.symbols.contains(name)
    }

    fn input(&mut self, graph: &mut Graph) -> Parsed<()> {
        let start = self.start();
        let Token::Value(name) = self.bump() else {
            return Err(self.mistake(start, "expected an input, `%name: type`"));
        };
        if matches!(name, Name::Number(_)) {
            let message = "the name of an input needs a letter, or quotes";
            return Err(self.mistake(start, message));
        }
        if self.values.contains_key(&name) {
            return Err(self.mistake(start, format!("`%{name}` is defined twice")));
        }
        self.expect(':')?;
        let ty = self.ty()?;
        let value = graph.add_input(&name.to_string(), ty);
        self.values.insert(name, Some(value));
        Ok(())
    }

    fn constant(&mut self, graph: &mut Graph) -> Parsed<()> {
        self.bump();
        let start = self.start();
        let Token::Const(name) = self.bump() else {
            return Err(self.mistake(start, "expected the constant's name, `@name`"));
        };
        let name = name.to_string();
        if self.consts.insert(name.clone(), None).is_some() {
            return Err(self.mistake(start, format!("`@{name}` is defined twice")));
        }
        self.expect(':')?;
        let ty_start = self.start();
        let ty = self.ty()?;
        let Some(shape) = ty.fixed_shape() else {
            return Err(self.mistake(ty_start, "the shape of a constant must be fixed"));
        };
        self.expect('=')?;
        let (tensor, literal) = self.tensor(ty.dtype, shape)?;
        let constant = Constant {
            name: name.clone(),
            tensor,
            literal,
        };
        let node = graph
            .add_stated(Op::Const(constant), &[], std::slice::from_ref(&ty))
            .map_err(|e| self.mistake(start, e.to_string()))?;
        let value = Value { node, result: 0 };
        self.consts.insert(name, Some(value));
        Ok(())
    }

    fn node(&mut self, graph: &mut Graph) -> Parsed<()> {
        let start = self.start();
        let mut names = Vec::new();
        loop {
            let at = self.start();
            let Token::Value(name) = self.bump() else {
                return Err(self.mistake(at, "expected the name of a result, `%name`"));
            };
            if self.values.insert(name.clone(), None).is_some() {
                return Err(self.mistake(at, format!("`%{name}` is defined twice")));
            }
            names.push(name);
            if names.len() > MAX_OPERANDS {
                return Err(self.mistake(at, format!("more than {MAX_OPERANDS} results")));
            }
            if !self.eat(',') {
                break;
            }
        }
        self.expect('=')?;
        let Some(node) = self.application(graph, start, names.len())? else {
            return Ok(());
        };
        for (result, name) in names.into_iter().enumerate() {
            let result = result as u32;
            self.values.insert(name, Some(Value { node, result }));
        }
        Ok(())
    }

    /// Reads what stands behind `=` in a node's statement; `None` if an operand's own statement was wrong.
    fn application(
        &mut self,
        graph: &mut Graph,
        start: usize,
        n_results: usize,
    ) -> Parsed<Option<crate::NodeId>> {
        let op_start = self.start();
        let word = self.ident("an operator")?;
        let operator = Operator::from_text(word);
        let words = ["dims", "view", "broadcast", "convert", "if", "loop"];
        if operator.is_none() && !words.contains(&word) {
            return Err(self.mistake(op_start, format!("unknown operator `{word}`")));
        }
        let dims = if word == "dims" {
            self.expect('[')?;
            Some(self.list(']', Self::dim)?)
        } else {
            None
        };
        let operands = self.operands()?;
        let attributes = match operator {
            Some(op) if *self.peek() == Token::Punct('{') => self.attributes(op)?,
            _ => Attributes::new(),
        };
        let n_carried = if word == "loop" { self.n_carried()? } else { 0 };
        let n_regions = match word {
            "if" => 2,
            "loop" => 1,
            _ => 0,
        };
        let mut regions = Vec::with_capacity(n_regions);
        for _ in 0..n_regions {
            match self.region()? {
                Some(region) => regions.push(Arc::new(region)),
                None => return Ok(None),
            }
        }
        let types = if self.eat(':') {
            let mut types = vec![self.ty()?];
            while self.eat(',') {
                types.push(self.ty()?);
            }
            if types.len() != n_results {
                let message = format!("{n_results} results, but {} types", types.len());
                return Err(self.mistake(start, message));
            }
            Some(types)
        } else {
            None
        };
        let target = || {
            let mut types = types.as_deref().unwrap_or_default().iter();
            types.next().ok_or_else(|| {
                self.mistake(op_start, format!("`{word}` needs the type of its result"))
            })
        };
        if let ("if" | "loop", Some(region)) = (word, regions.pop()) {
            let op = match regions.pop() {
                Some(then) => Op::If {
                    then,
                    otherwise: region,
                },
                None => Op::Loop {
                    body: region,
                    n_carried,
                },
            };
            return self.applied(graph, op, operands, types, (op_start, n_results));
        }
        let op = match (operator, dims, word) {
            (Some(op), ..) => Op::Apply(op, attributes),
            (None, Some(dims), _) => Op::Dims(dims),
            (None, None, "view") => Op::View(target()?.shape.clone()),
            (None, None, "broadcast") => Op::Broadcast(target()?.shape.clone()),
            (None, None, _) => Op::Convert(target()?.layout),
        };
        self.applied(graph, op, operands, types, (op_start, n_results))
    }

    fn applied(
        &mut self,
        graph: &mut Graph,
        op: Op,
        operands: Vec<Operand>,
        types: Option<Vec<TensorType>>,
        (op_start, n_results): (usize, usize),
    ) -> Parsed<Option<crate::NodeId>> {
        let mut values = Vec::with_capacity(operands.len());
        for operand in operands {
            values.push(match operand {
                Operand::Absent => None,
                Operand::Value(value) => Some(value),
                Operand::Missing => return Ok(None),
            });
        }
        self.add(graph, op, &values, types.as_deref(), n_results)
            .map(Some)
            .map_err(|e| self.mistake(op_start, e.to_string()))
    }

    /// `{carried = 2}`.
    fn n_carried(&mut self) -> Parsed<usize> {
        self.expect('{')?;
        if !self.eat_word("carried") {
            return Err(self.expected("`carried`"));
        }
        self.expect('=')?;
        let start = self.start();
        let n = match self.bump() {
            Token::Number(text) => text.parse().ok(),
            _ => None,
        };
        let n = n.filter(|&n| n <= MAX_OPERANDS);
        let n = n.ok_or_else(|| self.mistake(start, "expected how many values are carried"))?;
        self.expect('}')?;
        Ok(n)
    }

    /// A graph that a node runs; `None` if it was wrong, which has been reported.
    fn region(&mut self) -> Parsed<Option<Graph>> {
        if MAX_DEPTH <= self.depth {
            let message = format!("more than {MAX_DEPTH} graphs inside each other");
            return Err(self.mistake(self.start(), message));
        }
        let symbols = std::mem::take(&mut self.symbols);
        let values = std::mem::take(&mut self.values);
        let consts = std::mem::take(&mut self.consts);
        self.depth += 1;
        let graph = self.graph();
        self.depth -= 1;
        self.symbols = symbols;
        self.values = values;
        self.consts = consts;
        Ok(graph)
    }

    fn add(
        &self,
        graph: &mut Graph,
        op: Op,
        operands: &[Option<Value>],
        types: Option<&[TensorType]>,
        n_results: usize,
    ) -> Result<crate::NodeId, IrError> {
        let (n_operands, n_given) = match &op {
            Op::Apply(op, _) => (op.schema().operands, op.schema().results),
            Op::View(_) | Op::Broadcast(_) | Op::Convert(_) => ((1, 1), (1, 1)),
            Op::Input(_) | Op::Const(_) | Op::Dims(_) => ((0, 0), (1, 1)),
            // Inference counts what graphs take and give.
            Op::If { .. } | Op::Loop { .. } => ((1, usize::MAX), (0, usize::MAX)),
        };
        let check = |verb: &str, what: &str, (min, max): (usize, usize), found: usize| {
            if (min..=max).contains(&found) {
                return Ok(());
            }
            let expected = match max {
                _ if min == max => min.to_string(),
                usize::MAX => format!("at least {min}"),
                _ => format!("{min} to {max}"),
            };
            Err(IrError::Type {
                op: op.text().to_owned(),
                message: format!("{verb} {expected} {what}, found {found}"),
            })
        };
        check("takes", "operands", n_operands, operands.len())?;
        check("gives", "results", n_given, n_results)?;
        match types {
            Some(types) => graph.add_stated(op, operands, types),
            None => graph.add_results(op, operands, n_results),
        }
    }

    fn operands(&mut self) -> Parsed<Vec<Operand>> {
        let mut out = Vec::new();
        if !matches!(
            self.peek(),
            Token::Value(_) | Token::Const(_) | Token::Ident("_")
        ) || self.tokens[self.at].starts_line
        {
            return Ok(out);
        }
        loop {
            out.push(if self.eat_word("_") {
                Operand::Absent
            } else {
                match self.value()? {
                    Some(value) => Operand::Value(value),
                    None => Operand::Missing,
                }
            });
            if out.len() > MAX_OPERANDS {
                let message = format!("more than {MAX_OPERANDS} operands");
                return Err(self.mistake(self.start(), message));
            }
            if !self.eat(',') {
                return Ok(out);
            }
        }
    }

    /// A use of a value; `None` if the statement that should define it was wrong.
    fn value(&mut self) -> Parsed<Option<Value>> {
        let start = self.start();
        let token = self.bump();
        let found = match &token {
            Token::Value(name) => self.values.get(name),
            Token::Const(name) => self.consts.get(&name.to_string()),
            _ => return Err(self.mistake(start, "expected a value, `%name` or `@name`")),
        };
        let message = || format!("{token} is not defined before this");
        found.copied().ok_or_else(|| self.mistake(start, message()))
    }

    fn outputs(&mut self, graph: &mut Graph) -> Parsed<()> {
        self.bump();
        if *self.peek() == Token::Punct('}') {
            return Ok(());
        }
        for index in 0.. {
            let value = self.value()?;
            let name = if self.eat_word("as") {
                let start = self.start();
                match self.bump() {
                    Token::Str(name) => name,
                    _ => return Err(self.mistake(start, "expected the output's name in quotes")),
                }
            } else {
                default_output_name(index)
            };
            if let Some(value) = value {
                graph.add_output(&name, value);
            }
            if !self.eat(',') {
                break;
            }
        }
        Ok(())
    }
}
