//! A graph as text. [`super::parse`] reads it back; equal graphs give equal text, whatever their history.
//!
//! Nodes come in [`Graph::order`], so only what the outputs need is printed. Results are numbered densely in that order;
//! constants, in the same order, keep their names, made unique. Symbols that inference made up (`u0`, `u1`, ...) depend on
//! history too, so they are numbered anew by first appearance; those of the inputs keep their names.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write;

use crate::{Dim, Graph, Layout, NodeId, Op, Symbol, TensorType, Value};

use super::lex::{is_name_char, quote};
use super::literal::{write_attribute, write_list, write_tensor};

/// What to print beyond the graph itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrintOptions {
    /// Names of nodes, where they have one, as comments behind them.
    pub node_names: bool,
}

/// The text of a graph.
pub fn print(graph: &Graph) -> String {
    print_with(graph, PrintOptions::default())
}

/// The text of a graph, with what `options` ask for.
pub fn print_with(graph: &Graph, options: PrintOptions) -> String {
    let order = graph.order();
    let printer = Printer {
        graph,
        names: names(graph, &order),
        renamed: renamed_symbols(graph, &order),
    };
    printer.graph(&order, options)
}

/// The name that text gives an output that has no other.
pub(crate) fn default_output_name(index: usize) -> String {
    format!("output{index}")
}

/// Names of the values that the outputs need, as they appear in text: `%x`, `@w`, `%3`.
pub fn value_names(graph: &Graph) -> HashMap<Value, String> {
    names(graph, &graph.order())
}

fn names(graph: &Graph, order: &[NodeId]) -> HashMap<Value, String> {
    let mut names = HashMap::new();
    let mut const_names = UniqueNames::default();
    let mut n_results = 0usize;
    for &node in order {
        match graph.op(node) {
            Op::Input(name) => {
                let mut text = String::new();
                let digits = name.bytes().all(|b| b.is_ascii_digit());
                write_name(&mut text, '%', name, digits);
                names.insert(Value { node, result: 0 }, text);
            }
            Op::Const(c) => {
                let mut text = String::new();
                write_name(&mut text, '@', &const_names.unique(&c.name), false);
                names.insert(Value { node, result: 0 }, text);
            }
            Op::Dims(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..)
            | Op::If { .. }
            | Op::Loop { .. } => {
                for result in 0..graph.n_results(node) as u32 {
                    names.insert(Value { node, result }, format!("%{n_results}"));
                    n_results += 1;
                }
            }
        }
    }
    names
}

/// Gives each name at most once, by appending `.1`, `.2`, and so on.
#[derive(Default)]
struct UniqueNames {
    taken: HashSet<String>,
    next: HashMap<String, usize>,
}

impl UniqueNames {
    fn unique(&mut self, name: &str) -> String {
        let name = if name.is_empty() { "c" } else { name };
        if self.taken.insert(name.to_owned()) {
            return name.to_owned();
        }
        let next = self.next.entry(name.to_owned()).or_insert(1);
        loop {
            let candidate = format!("{name}.{next}");
            *next += 1;
            if self.taken.insert(candidate.clone()) {
                return candidate;
            }
        }
    }
}

fn write_name(out: &mut String, sigil: char, name: &str, always_quoted: bool) {
    out.push(sigil);
    if !always_quoted && !name.is_empty() && name.chars().all(is_name_char) {
        out.push_str(name);
    } else {
        quote(out, name);
    }
}

/// Every dimension that text shows of these nodes, in the order in which it shows them.
fn shown_dims<'g>(graph: &'g Graph, order: &'g [NodeId]) -> impl Iterator<Item = &'g Dim> {
    order.iter().flat_map(move |&node| {
        let own: &[Dim] = match graph.op(node) {
            Op::Dims(dims) => dims,
            Op::Input(_)
            | Op::Const(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..)
            | Op::If { .. }
            | Op::Loop { .. } => &[],
        };
        let n_results = graph.n_results(node) as u32;
        let shapes = (0..n_results).flat_map(move |result| graph.shape(Value { node, result }));
        own.iter().chain(shapes)
    })
}

/// New names of the symbols that inference made up.
fn renamed_symbols(graph: &Graph, order: &[NodeId]) -> HashMap<Symbol, Symbol> {
    let of_inputs: HashSet<Symbol> = shown_dims(graph, graph.inputs())
        .flat_map(Dim::symbols)
        .collect();
    let is_made_up = |s: &Symbol| {
        let digits = s.name().strip_prefix('u').unwrap_or("");
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !of_inputs.contains(s)
    };
    let mut renamed = HashMap::new();
    let mut n = 0usize;
    // Within one dimension `u9` comes before `u10`, so that naming anew what was named here changes nothing.
    let by_number = |dim: &Dim| {
        let mut symbols = dim.symbols();
        symbols.sort_by_key(|s| s.name().len());
        symbols
    };
    for symbol in shown_dims(graph, order).flat_map(by_number) {
        if !is_made_up(&symbol) || renamed.contains_key(&symbol) {
            continue;
        }
        let name = loop {
            let candidate = Symbol::new(&format!("u{n}"));
            n += 1;
            if !of_inputs.contains(&candidate) {
                break candidate;
            }
        };
        renamed.insert(symbol, name);
    }
    renamed
}

struct Printer<'g> {
    graph: &'g Graph,
    names: HashMap<Value, String>,
    renamed: HashMap<Symbol, Symbol>,
}

impl Printer<'_> {
    fn graph(&self, order: &[NodeId], options: PrintOptions) -> String {
        let mut out = String::from("graph ");
        write_name(&mut out, '@', self.graph.name(), false);
        out.push('(');
        for (i, &node) in self.graph.inputs().iter().enumerate() {
            out.push_str(if i == 0 { "" } else { ", " });
            let value = Value { node, result: 0 };
            self.value(&mut out, value);
            out.push_str(": ");
            self.ty(&mut out, self.graph.ty(value));
        }
        out.push(')');
        let symbols: BTreeSet<Symbol> = shown_dims(self.graph, order)
            .flat_map(|d| self.rename(d).symbols())
            .collect();
        if !symbols.is_empty() {
            let symbols: Vec<String> = symbols.iter().map(ToString::to_string).collect();
            write!(out, " dims({})", symbols.join(", ")).expect(INFALLIBLE);
        }
        out.push_str(" {\n");
        for &node in order {
            if let Op::Const(_) = self.graph.op(node) {
                self.constant(&mut out, node, options);
            }
        }
        for &node in order {
            if !matches!(self.graph.op(node), Op::Input(_) | Op::Const(_)) {
                self.node(&mut out, node, options);
            }
        }
        self.outputs(&mut out);
        out.push_str("}\n");
        out
    }

    fn constant(&self, out: &mut String, node: NodeId, options: PrintOptions) {
        let Op::Const(c) = self.graph.op(node) else {
            return;
        };
        let value = Value { node, result: 0 };
        out.push_str("  const ");
        self.value(out, value);
        out.push_str(": ");
        self.ty(out, self.graph.ty(value));
        out.push_str(" = ");
        match &c.literal {
            Some(literal) => out.push_str(literal),
            None => write_tensor(out, &c.tensor),
        }
        self.end_line(out, node, options);
    }

    fn node(&self, out: &mut String, node: NodeId, options: PrintOptions) {
        let results = (0..self.graph.n_results(node) as u32).map(|result| Value { node, result });
        out.push_str("  ");
        for value in results.clone() {
            out.push_str(if value.result == 0 { "" } else { ", " });
            self.value(out, value);
        }
        write!(out, " = {}", self.graph.op(node).text()).expect(INFALLIBLE);
        for (i, operand) in self.graph.operands(node).into_iter().enumerate() {
            out.push_str(if i == 0 { " " } else { ", " });
            match operand {
                Some(value) => self.value(out, value),
                None => out.push('_'),
            }
        }
        match self.graph.op(node) {
            Op::Dims(dims) => {
                out.push(' ');
                self.dims(out, dims);
            }
            Op::Apply(_, attributes) if !attributes.is_empty() => {
                out.push_str(" {");
                for (i, (name, value)) in attributes.iter().enumerate() {
                    write!(out, "{}{name} = ", if i == 0 { "" } else { ", " }).expect(INFALLIBLE);
                    write_attribute(out, value);
                }
                out.push('}');
            }
            Op::Loop { n_carried, .. } => {
                write!(out, " {{carried = {n_carried}}}").expect(INFALLIBLE);
            }
            Op::Input(_)
            | Op::Const(_)
            | Op::View(_)
            | Op::Broadcast(_)
            | Op::Convert(_)
            | Op::Apply(..)
            | Op::If { .. } => {}
        }
        let regions = self.graph.op(node).regions();
        for region in &regions {
            for line in print_with(region, options).lines() {
                write!(out, "\n    {line}").expect(INFALLIBLE);
            }
        }
        out.push_str(if regions.is_empty() { "" } else { "\n   " });
        for value in results {
            out.push_str(if value.result == 0 { " : " } else { ", " });
            self.ty(out, self.graph.ty(value));
        }
        self.end_line(out, node, options);
    }

    fn end_line(&self, out: &mut String, node: NodeId, options: PrintOptions) {
        let name = self.graph.node_name(node);
        if options.node_names && !name.is_empty() {
            let shown: String = name.chars().flat_map(char::escape_debug).collect();
            write!(out, "  ; {shown}").expect(INFALLIBLE);
        }
        out.push('\n');
    }

    fn outputs(&self, out: &mut String) {
        out.push_str("  return");
        for (i, output) in self.graph.outputs().iter().enumerate() {
            out.push_str(if i == 0 { " " } else { ", " });
            self.value(out, output.value);
            if output.name != default_output_name(i) {
                out.push_str(" as ");
                quote(out, &output.name);
            }
        }
        out.push('\n');
    }

    fn value(&self, out: &mut String, value: Value) {
        // Only a graph that breaks its invariants has a value without a name; it is still worth a dump.
        out.push_str(self.names.get(&value).map_or("%invalid", String::as_str));
    }

    fn ty(&self, out: &mut String, ty: &TensorType) {
        write!(out, "{}", ty.dtype).expect(INFALLIBLE);
        self.dims(out, &ty.shape);
        match ty.layout {
            Layout::RowMajor => {}
            layout @ (Layout::Panels | Layout::Packed(_)) => {
                write!(out, "{{{layout}}}").expect(INFALLIBLE);
            }
        }
    }

    fn dims(&self, out: &mut String, dims: &[Dim]) {
        write_list(out, dims, |out, d| {
            write!(out, "{}", self.rename(d)).expect(INFALLIBLE);
        });
    }

    fn rename(&self, dim: &Dim) -> Dim {
        if self.renamed.is_empty() || dim.as_fixed().is_some() {
            return dim.clone();
        }
        let renamed = dim.terms().map(|(symbols, c)| {
            let symbols = symbols.iter();
            let symbols = symbols.map(|s| self.renamed.get(s).unwrap_or(s).clone());
            (symbols.collect(), c)
        });
        Dim::from_terms(renamed).expect("renaming one to one keeps terms apart and their number")
    }
}

const INFALLIBLE: &str = "writing to a string does not fail";
