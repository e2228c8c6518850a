//! Unsafe code stays in the files that the architecture names.

use std::path::Path;

const ALLOWED: [&str; 4] = ["arena.rs", "jit.rs", "mmap.rs", "pool.rs"];

fn visit(folder: &Path, offenders: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder of this crate") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            visit(&path, offenders);
            continue;
        }
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        if ALLOWED.contains(&name.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if code.contains("unsafe") {
                offenders.push(format!("{}:{}", path.display(), i + 1));
            }
        }
    }
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let mut offenders = Vec::new();
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut offenders,
    );
    assert!(offenders.is_empty(), "unsafe code in {offenders:?}");
}
