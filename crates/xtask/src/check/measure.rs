//! `cargo xtask check --measure`: figures of the language and the size of the code.

use std::fs;

use anyhow::{Context, Result};

use super::language::{check_doc_start, function_name};
use super::source_text::split_lines;
use super::{NOT_PROSE, sources};
use crate::cargo;

/// Verbs of speech that a comment should not use for data flow.
const SPEECH_VERBS: &[&str] = &[
    "tell", "tells", "told", "say", "says", "said", "hear", "hears", "heard",
];

/// Longest name of a function that counts as short, in characters.
const SHORT_NAME: usize = 5;

#[derive(Debug, Default)]
struct Figures {
    lines: usize,
    /// Lines of product code: without tests, comments and blank lines.
    product_lines: usize,
    doc_comments: usize,
    refused_doc_comments: usize,
    speech_lines: usize,
    functions: usize,
    short_functions: usize,
}

impl Figures {
    fn add_file(&mut self, name: &str, text: &str) {
        let mut is_product = !name.contains("/tests/")
            && !name.starts_with("tests/")
            && !name.ends_with("tests.rs")
            && !name.starts_with("crates/xtask")
            && !name.ends_with("/testing.rs");
        let mut in_doc = false;
        for line in split_lines(text) {
            self.lines += 1;
            // A module of tests is the last item of its file.
            if line.code.contains("mod tests {") {
                is_product = false;
            }
            if is_product && !line.code.trim().is_empty() {
                self.product_lines += 1;
            }
            let is_doc = line.comment.as_ref().is_some_and(|comment| comment.is_doc);
            if is_doc && !in_doc {
                self.doc_comments += 1;
                self.refused_doc_comments += usize::from(check_doc_start(&line, false).is_some());
            }
            in_doc = is_doc;
            let speaks = line.comment.as_ref().is_some_and(|comment| {
                comment
                    .text
                    .to_lowercase()
                    .split(|char: char| !char.is_alphabetic())
                    .any(|word| SPEECH_VERBS.contains(&word))
            });
            self.speech_lines += usize::from(speaks);
            if let Some(function) = function_name(&line.code) {
                self.functions += 1;
                self.short_functions += usize::from(function.chars().count() <= SHORT_NAME);
            }
        }
    }
}

/// Prints the figures of the whole checkout to standard output.
pub(crate) fn measure() -> Result<()> {
    let root = cargo::checkout()?;
    let mut figures = Figures::default();
    for path in sources(&root)? {
        let name = path
            .strip_prefix(&root)
            .unwrap_or(&path)
            .display()
            .to_string();
        if NOT_PROSE.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        figures.add_file(&name, &text);
    }
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    let per_10_000 = 10_000.0 * figures.speech_lines as f64 / figures.lines.max(1) as f64;
    println!(
        "lines of Rust                          {:>8}",
        figures.lines
    );
    println!(
        "lines of product code                  {:>8}",
        figures.product_lines
    );
    println!(
        "doc comments with a refused first word {:>8.1} % of {}",
        percent(figures.refused_doc_comments, figures.doc_comments),
        figures.doc_comments
    );
    println!("comment lines with a speech verb       {per_10_000:>8.1} per 10,000 lines");
    println!(
        "function names of at most 5 letters    {:>8.1} % of {}",
        percent(figures.short_functions, figures.functions),
        figures.functions
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_count_product_code_and_names() {
        let mut figures = Figures::default();
        let text = "//! Module.\n\n/// What it is.\nfn short() {}\n// told\nfn long_name() {}\nmod tests {\nfn x() {}\n}\n";
        figures.add_file("src/a.rs", text);
        assert_eq!(figures.product_lines, 2);
        assert_eq!((figures.doc_comments, figures.refused_doc_comments), (2, 1));
        assert_eq!(figures.speech_lines, 1);
        assert_eq!((figures.functions, figures.short_functions), (3, 2));
    }
}
