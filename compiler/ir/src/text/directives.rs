//! Directives of test files: `; key: value` in the comment lines before the graph.

/// Keys and values of the comment lines that precede everything else in `text`, in order; a key may repeat.
///
/// A key is one word of lower-case letters, digits, `-` and `_`. Other comment lines are skipped.
pub fn directives(text: &str) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            continue;
        }
        let Some(comment) = line.strip_prefix(';') else {
            break;
        };
        let Some((key, value)) = comment.trim_start_matches(';').split_once(':') else {
            continue;
        };
        let key = key.trim();
        let is_key =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if !key.is_empty() && key.chars().all(is_key) {
            out.push((key.to_owned(), value.trim().to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leading_comments_count() {
        let text = "\n; run:  fold-qdq{a = 1}\n; A sentence: not a directive.\n;eval: max_abs = 1e-4\n\
                    graph @g() {\n  ; late: no\n}\n";
        let found = directives(text);
        let found: Vec<_> = found
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            found,
            [("run", "fold-qdq{a = 1}"), ("eval", "max_abs = 1e-4")]
        );
    }
}
