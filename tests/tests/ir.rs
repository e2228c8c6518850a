//! Every `tests/ir/<pass>/*.ir` is one test: run, snapshot, evaluate before and after.
//!
//! A file named `negative_<reason>.ir` that runs one pass must be left as it is.

use std::fs;
use std::path::{Path, PathBuf};

use lancet_tests::{ir_file, repository};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let root = repository("tests/ir");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let trials = files.into_iter().map(|file| {
        let name = file.strip_prefix(&root).unwrap_or(&file);
        Trial::test(name.display().to_string(), move || test(&file))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "ir") {
            files.push(path);
        }
    }
}

fn test(file: &Path) -> Result<(), Failed> {
    let text = fs::read_to_string(file)?;
    let outcome = ir_file::run(&text)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("negative_") && ir_file::n_passes(&text)? == 1 {
        let (before, after) = (
            lancet_ir::print(&outcome.before),
            lancet_ir::print(&outcome.after),
        );
        if before != after {
            return Err(format!("a negative file changed:\n{before}\n{after}").into());
        }
    }
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(file.parent().ok_or("a file has a folder")?);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.set_input_file(file);
    settings.bind(|| insta::assert_snapshot!(name.as_ref(), outcome.snapshot));
    Ok(())
}
