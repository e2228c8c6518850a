//! The documents hold together: what they link to is there.

use std::fs;
use std::path::{Path, PathBuf};

/// Root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README and the handbook.
fn documents() -> Vec<PathBuf> {
    let docs = root().join("compiler/docs");
    let mut found = vec![root().join("README.md")];
    for dir in [docs.clone(), docs.join("decisions")] {
        for entry in fs::read_dir(&dir).expect("the folder of documents can be read") {
            let path = entry.expect("an entry can be read").path();
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document is text");
        let folder = document.parent().expect("a file is in a folder");
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|t| !t.contains("://") && !t.starts_with('#')) {
            let path = target.split('#').next().unwrap_or_default();
            if !folder.join(path).exists() {
                broken.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn the_handbook_is_complete() {
    for name in [
        "ir",
        "passes",
        "operators",
        "kernels",
        "artifact",
        "testing",
        "security",
    ] {
        let path = root().join(format!("compiler/docs/{name}.md"));
        assert!(path.is_file(), "{} is missing", path.display());
    }
}

/// The commands of the README are those that continuous integration runs.
#[test]
fn integration_runs_the_test_command() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("the file is text");
    let command = "cargo test --workspace";
    assert!(read("README.md").contains(&format!("```sh\n{command}\n```")));
    assert!(read(".ci/run").lines().any(|l| l == command));
}
