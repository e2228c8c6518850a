//! What is true of every pass in the table: its files, its documentation, its options; and of the harness itself.

use std::fs;

use lancet_passes::{Checks, PASSES, PassManager, Pipeline, PipelineError, Target};
use lancet_tests::compare::{Tolerance, compare};
use lancet_tests::{ir_file, repository};

fn files_of(pass: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(repository("tests/ir").join(pass))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "ir"))
        .map(|p| {
            let name = p
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            (
                name,
                fs::read_to_string(&p).expect("a listed file can be read"),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn every_pass_has_positive_negative_and_pipeline_files() {
    let mut missing = Vec::new();
    for pass in PASSES {
        let files = files_of(pass.name);
        let negative = |name: &str| name.starts_with("negative_");
        let pipeline = |text: &str| ir_file::n_passes(text).is_ok_and(|n| 1 < n);
        if !files
            .iter()
            .any(|(name, text)| !negative(name) && !pipeline(text))
        {
            missing.push(format!("{}: a positive file", pass.name));
        }
        if !files.iter().any(|(name, _)| negative(name)) {
            missing.push(format!("{}: a negative file", pass.name));
        }
        if !files.iter().any(|(_, text)| pipeline(text)) {
            missing.push(format!("{}: a pipeline file", pass.name));
        }
    }
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
}

#[test]
fn every_snapshot_has_its_file() {
    for pass in fs::read_dir(repository("tests/ir"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for entry in fs::read_dir(pass.path()).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.to_string_lossy();
            if let Some(file) = name.strip_suffix(".snap") {
                assert!(
                    fs::exists(file).unwrap_or(false),
                    "{name} belongs to no file"
                );
            }
        }
    }
}

/// The fenced blocks of a module's documentation that hold a graph.
fn blocks(source: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in source.lines() {
        let Some(line) = line.strip_prefix("//!") else {
            break;
        };
        let line = line.strip_prefix(' ').unwrap_or(line);
        match &mut open {
            None if line.starts_with("```") => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks.retain(|b| b.starts_with("graph @"));
    blocks
}

/// The text of a graph without its name, which differs between the blocks.
fn body(text: &str) -> &str {
    text.split_once('(').map_or(text, |(_, rest)| rest)
}

#[test]
fn the_documentation_of_every_pass_shows_what_it_does() {
    let mut wrong = Vec::new();
    for pass in PASSES {
        let file = format!("passes/src/{}.rs", pass.name.replace('-', "_"));
        let Ok(source) = fs::read_to_string(repository(&file)) else {
            // Two passes may share a file under one of their names.
            continue;
        };
        let blocks = blocks(&source);
        let [before, after, ..] = blocks.as_slice() else {
            wrong.push(format!("{file}: no before and after"));
            continue;
        };
        let run = || -> Result<(String, String), String> {
            let mut graph = lancet_ir::parse(before).map_err(|e| e.to_string())?;
            let pipeline = Pipeline::parse(pass.name, PASSES).map_err(|e| e.to_string())?;
            PassManager::new(Target::default())
                .with_checks(Checks::VerifyAndCompareText)
                .run(&pipeline, &mut graph)
                .map_err(|e| e.to_string())?;
            let expected = lancet_ir::parse(after).map_err(|e| e.to_string())?;
            Ok((lancet_ir::print(&graph), lancet_ir::print(&expected)))
        };
        match run() {
            Ok((found, expected)) if body(&found) == body(&expected) => {}
            Ok((found, expected)) => {
                wrong.push(format!("{file}: expected\n{expected}\nfound\n{found}"));
            }
            Err(e) => wrong.push(format!("{file}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_handbook_lists_every_pass_and_option() {
    let text = fs::read_to_string(repository("compiler/docs/passes.md")).expect("docs/passes.md");
    for pass in PASSES {
        let row = text
            .lines()
            .find(|l| l.starts_with(&format!("| `{}` |", pass.name)));
        let row = row.unwrap_or_else(|| panic!("passes.md has no row for {}", pass.name));
        assert!(row.contains(pass.summary), "{}: {row}", pass.name);
        for option in pass.options {
            assert!(
                row.contains(&format!("`{}`", option.name)),
                "{}: {row}",
                option.name
            );
        }
    }
}

#[test]
fn every_default_option_parses() {
    for pass in PASSES {
        for option in pass.options {
            let value = option.ty.parse(option.default);
            assert!(value.is_some(), "{}: {}", pass.name, option.name);
        }
    }
}

#[test]
fn pipelines_print_and_parse() {
    let text = " cse , fold-constants { max_growth = 16 },dce{}";
    let pipeline = Pipeline::parse(text, PASSES).expect("a pipeline");
    let printed = pipeline.to_string();
    assert_eq!(printed, "cse,fold-constants{max_growth = 16},dce");
    let again = Pipeline::parse(&printed, PASSES).expect("a pipeline");
    assert_eq!(again.to_string(), printed);
    assert!(
        Pipeline::parse("  ", PASSES)
            .expect("empty")
            .entries
            .is_empty()
    );
}

#[test]
fn wrong_pipelines_say_where_and_what_is_valid() {
    let error = |text| Pipeline::parse(text, PASSES).expect_err(text);
    assert!(matches!(
        error("cse,fold"),
        PipelineError::UnknownPass { column: 5, ref valid, .. } if valid.len() == PASSES.len()
    ));
    assert_eq!(
        error("fold-constants{growth = 1}").to_string(),
        "pipeline column 16: pass `fold-constants` has no option `growth`; options are max_growth, dequantize"
    );
    assert_eq!(
        error("fold-constants{max_growth = big}").to_string(),
        "pipeline column 29: option `max_growth` of `fold-constants` takes an integer, found `big`"
    );
    assert_eq!(
        error("cse{a = 1}").to_string(),
        "pipeline column 5: pass `cse` has no option `a`; it has none"
    );
    for text in [
        "cse,",
        ",",
        "cse{",
        "cse}",
        "cse dce",
        "fold-constants{max_growth}",
    ] {
        assert!(
            matches!(error(text), PipelineError::Syntax { .. }),
            "{text}"
        );
    }
}

// The harness can fail.

const WRONG: &str =
    "; run: cse\n; eval: exact\ngraph @g(%x: f32[2]) {\n  %0 = tanh %x\n  return %0\n}\n";

#[test]
fn a_wrong_result_is_seen() {
    let outcome = ir_file::run(WRONG).expect("a good file");
    let other = lancet_ir::parse("graph @g(%x: f32[2]) {\n  %0 = sin %x\n  return %0\n}\n");
    let other = other.expect("a graph");
    let directives = lancet_tests::directives::Directives::parse(WRONG).expect("directives");
    let tolerance = Tolerance::default();
    let error = ir_file::check(
        &outcome.before,
        &other,
        &directives.dims[0],
        &directives,
        tolerance,
    );
    assert!(error.is_err_and(|e| e.contains("output 0")));
}

#[test]
fn a_wrong_snapshot_is_seen() {
    let outcome = ir_file::run(WRONG).expect("a good file");
    let expected = outcome.snapshot.replace("tanh", "sin");
    assert_ne!(outcome.snapshot, expected);
    let mut settings = insta::Settings::clone_current();
    let folder = tempfile::tempdir().expect("a folder");
    settings.set_snapshot_path(folder.path());
    settings.set_prepend_module_to_snapshot(false);
    let stored = format!("---\nsource: none\n---\n{expected}");
    fs::write(folder.path().join("wrong.ir.snap"), stored).expect("a file");
    let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        settings.bind(|| insta::assert_snapshot!("wrong.ir", outcome.snapshot));
    }));
    let forced = std::env::var_os("INSTA_UPDATE").is_some()
        || std::env::var_os("INSTA_FORCE_PASS").is_some();
    assert!(forced || seen.is_err());
}

#[test]
fn files_without_directives_are_refused() {
    for text in [
        "graph @g() {\n}\n",
        "; run: cse\ngraph @g() {\n}\n",
        "; run: nothing\n; eval: exact\ngraph @g() {\n}\n",
        "; run: cse\n; eval: max_abs = x\ngraph @g() {\n}\n",
        "; run: cse\n; eval: exact\n; dim: s = 1\ngraph @g() {\n}\n",
    ] {
        assert!(ir_file::run(text).is_err(), "{text}");
    }
}

#[test]
fn tolerances_are_kept() {
    let tensor = |x: f32| lancet_ops::Tensor::new(vec![1], vec![x]);
    let tolerance = Tolerance {
        max_abs: 0.1,
        max_rel: 0.0,
    };
    assert!(compare(&tensor(1.05), &tensor(1.0), tolerance).is_ok());
    assert!(compare(&tensor(1.2), &tensor(1.0), tolerance).is_err());
    assert!(compare(&tensor(f32::NAN), &tensor(1.0), tolerance).is_err());
    assert!(compare(&tensor(f32::INFINITY), &tensor(1.0), tolerance).is_err());
    assert!(compare(&tensor(f32::NAN), &tensor(f32::NAN), tolerance).is_ok());
}
