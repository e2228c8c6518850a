//! The IR text in the documentation is what the parser reads and the printer writes.

use std::sync::Arc;

use lancet_ir::{Generator, parse_with, print};

/// Zeros in place of every hash.
fn read(text: &str) -> lancet_ir::Graph {
    let supplied = parse_with(text, &mut |_, dtype, shape| {
        Generator::Zeros.tensor(dtype, shape).ok().map(Arc::new)
    });
    supplied.unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn examples_in_the_documentation_are_canonical() {
    let page = include_str!("../../docs/ir.md");
    let blocks: Vec<&str> = page
        .split("```ir\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let body: Vec<&str> = block.lines().filter(|l| !l.starts_with(';')).collect();
        let printed = print(&read(block));
        // An example's hash stands for weights that are not there.
        let is_hash = |line: &&str| line.contains("hash(");
        assert_eq!(printed.contains("hash("), block.contains("hash("));
        let without_hashes = |lines: Vec<&str>| -> Vec<String> {
            let lines = lines.into_iter().filter(|l| !is_hash(l));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(
            without_hashes(printed.lines().collect()),
            without_hashes(body)
        );
    }
}
