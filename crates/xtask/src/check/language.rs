//! The rules of plain language, for Rust and for Markdown.
//!
//! Three rules: the first word of a doc comment, phrases in comments, literals and pages, and words
//! in names. docs/glossary.md has the terms to write instead. Generated files are not read.

use super::source_text::{SourceLine, split_lines};

/// Words that begin no doc comment: a doc comment names its subject or begins with a verb.
const DOC_STARTS: &[&str] = &[
    "what", "who", "whom", "whose", "whoever", "where", "whether", "how", "why", "which", "it",
    "its", "those", "that", "nothing", "nobody", "somebody", "one", "of", "so",
];

/// Phrases that name no subject, or that describe data flow as speech. `|` separates alternatives
/// for one word; `*` is any word but those that make a comparison.
const PHRASES: &[&str] = &[
    "whoever",
    "somebody",
    "nobody",
    "anybody",
    "anew",
    "is|are no *",
    "so many|long",
    "told",
    "tells",
    "hears",
    "heard",
    "stands on|for|in",
    "looks at",
    "comes of",
    "let go",
    "by itself",
];

/// Words after "is no" that make a comparison, as in "is no longer than".
const COMPARISONS: &[&str] = &[
    "longer",
    "more",
    "less",
    "fewer",
    "later",
    "earlier",
    "larger",
    "smaller",
    "older",
    "newer",
    "greater",
    "better",
    "worse",
    "different",
];

/// Words that are part of no name.
const BANNED_WORDS: &[&str] = &[
    "look",
    "looked",
    "looks",
    "held",
    "hold",
    "holds",
    "told",
    "tell",
    "tells",
    "untold",
    "hear",
    "heard",
    "say",
    "says",
    "said",
    "came",
    "come",
    "comes",
    "known",
    "knows",
    "lives",
    "living",
    "together",
    "stranger",
    "hurry",
    "standing",
    "world",
    "room",
    "plane",
    "happening",
    "misfit",
    "rivals",
    "beats",
];

/// Names that are banned as a whole.
const BANNED_NAMES: &[&str] = &["Place", "How"];

/// Names from elsewhere that contain a banned word: SSH's file of host keys, RFC 8615.
const FOREIGN_NAMES: &[&str] = &[
    "known_hosts",
    "knownhosts",
    "well_known",
    "wellknown",
    "port_or_known_default",
];

/// Names that begin a test function without naming its subject.
const TEST_STARTS: &[&str] = &["what", "who", "whoever", "a", "an", "it", "of", "one"];

/// Finds every breach in a Rust file. `name` is its path in the checkout.
pub(super) fn check_rust(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let stem = name
        .rsplit('/')
        .next()
        .and_then(|file| file.strip_suffix(".rs"))
        .unwrap_or(name);
    if stem == "words" || name_words(stem).iter().any(|word| is_banned(word)) {
        breaches.push(format!("{name}: the name of the file has a banned word"));
    }
    let mut in_doc = false;
    let mut is_test = false;
    for (index, line) in split_lines(text).iter().enumerate() {
        let number = index + 1;
        breaches.extend(check_doc_start(line, in_doc).map(|found| {
            format!(
                "{name}:{number}: a paragraph begins with `{found}`; begin with a verb or a noun"
            )
        }));
        // An empty line ends a paragraph, and the next one has its own first word.
        in_doc = line
            .comment
            .as_ref()
            .is_some_and(|comment| comment.is_doc && !comment.text.is_empty());
        let comment = line.comment.as_ref().map(|comment| comment.text.as_str());
        // A literal without a blank is data.
        let literals = line.literals.iter().map(String::as_str);
        let literals = literals.filter(|text| text.contains(' '));
        for found in comment.into_iter().chain(literals).filter_map(find_phrase) {
            breaches.push(format!(
                "{name}:{number}: `{found}`; name the subject, use a plain verb"
            ));
        }
        for found in banned_names(&line.code) {
            breaches.push(format!(
                "{name}:{number}: the name `{found}` has a banned word"
            ));
        }
        if let Some(found) = function_name(&line.code)
            && is_test
            && name_words(found)
                .first()
                .is_some_and(|first| TEST_STARTS.contains(&first.as_str()))
        {
            breaches.push(format!(
                "{name}:{number}: the test `{found}` does not begin with its subject"
            ));
        }
        if line.code.contains("test]") || line.code.contains("test(") {
            is_test = true;
        } else if line.code.contains("fn ") {
            is_test = false;
        }
    }
    breaches
}

/// Finds every banned phrase in a Markdown page. Code blocks and code spans are not prose.
pub(super) fn check_markdown(name: &str, text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut breaches = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        let prose: Vec<&str> = line.split('`').step_by(2).collect();
        if let Some(found) = find_phrase(&prose.join(" ` ")) {
            breaches.push(format!(
                "{name}:{}: `{found}`; name the subject, use a plain verb",
                index + 1
            ));
        }
    }
    breaches
}

/// Returns the refused first word of a paragraph of a doc comment. `None` in its middle.
pub(super) fn check_doc_start(line: &SourceLine, in_doc: bool) -> Option<String> {
    let comment = line.comment.as_ref().filter(|comment| comment.is_doc)?;
    if in_doc {
        return None;
    }
    let first = comment
        .text
        .split(|char: char| !char.is_alphanumeric())
        .next()?;
    DOC_STARTS
        .contains(&first.to_lowercase().as_str())
        .then(|| first.to_owned())
}

/// Returns the first banned phrase in `text`.
fn find_phrase(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    if lower.contains("; nothing:") {
        return Some("; nothing:".to_owned());
    }
    // Text that a program writes is broken anywhere, so words are compared, not lines.
    let words: Vec<&str> = lower
        .split(|char: char| !(char.is_alphanumeric() || char == '\'' || char == '_' || char == '-'))
        .filter(|word| !word.is_empty())
        .collect();
    PHRASES.iter().find_map(|phrase| {
        let pattern: Vec<&str> = phrase.split(' ').collect();
        words
            .windows(pattern.len())
            .enumerate()
            .find(|(at, window)| {
                // "There is no report" is plain; "this is no report" is not.
                let follows_there = words.get(at.wrapping_sub(1)) == Some(&"there");
                let matches = window
                    .iter()
                    .zip(&pattern)
                    .all(|(word, wanted)| word_matches(word, wanted));
                matches && !(follows_there && pattern.contains(&"no"))
            })
            .map(|(_, window)| window.join(" "))
    })
}

fn word_matches(word: &str, wanted: &str) -> bool {
    match wanted {
        "*" => !COMPARISONS.contains(&word),
        _ => wanted.split('|').any(|alternative| alternative == word),
    }
}

/// Returns the names in a line of code that have a banned word.
fn banned_names(code: &str) -> Vec<&str> {
    let mut found: Vec<&str> = code
        .split(|char: char| !(char.is_alphanumeric() || char == '_'))
        .filter(|name| {
            !FOREIGN_NAMES
                .iter()
                .any(|foreign| name.to_lowercase().contains(foreign))
        })
        .filter(|name| {
            let words = name_words(name);
            BANNED_NAMES.contains(name)
                || words.iter().any(|word| is_banned(word))
                || (words.len() > 1 && words.last().is_some_and(|last| last == "so"))
        })
        .collect();
    found.dedup();
    found
}

fn is_banned(word: &str) -> bool {
    BANNED_WORDS.contains(&word)
}

/// Splits a name into its words: `HeldImage` and `held_image` are both `held`, `image`.
fn name_words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_lower = false;
    for char in name.chars() {
        if char == '_' || (char.is_uppercase() && was_lower) {
            words.push(String::new());
        }
        if char != '_'
            && let Some(word) = words.last_mut()
        {
            word.extend(char.to_lowercase());
        }
        was_lower = char.is_lowercase() || char.is_numeric();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Returns the name of the function that a line of code begins.
pub(super) fn function_name(code: &str) -> Option<&str> {
    let (before, rest) = code.split_once("fn ")?;
    if before.ends_with(|char: char| char.is_alphanumeric() || char == '_') {
        return None;
    }
    let end = rest.find(|char: char| !(char.is_alphanumeric() || char == '_'))?;
    rest.get(..end).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_patterns_are_found() {
        // Planted examples: one line for each kind of breach.
        for planted in [
            "/// What is left.",
            "/// Whether it works.",
            "/// Its id.",
            "//! Nothing here matters.",
            "/// Number of attempts.\n///\n/// It starts at 1.",
            "// a lease that nobody has",
            "// this is no line of a log",
            "/// Seconds; nothing: for ever",
            "let a = \"the server was told\";",
            "// runs so many times",
            "// it stands on the base",
            "fn look_at_it() {}",
            "struct HeldImage;",
            "enum How {}",
            "let send_so = 1;",
            "let known = 1;",
        ] {
            assert_eq!(check_rust("a.rs", planted).len(), 1, "{planted}");
        }
    }

    #[test]
    fn plain_lines_pass() {
        for plain in [
            "/// Returns the lease of `run`. `None` if it has expired.",
            "/// Number of attempts.\n/// It starts at 1.",
            "// The list is no longer than the page.",
            "// There is no report.",
            "let path = known_hosts;",
            "let threshold = withholding;",
            "let a = \"x\"; // Sorted, so that the output is stable.",
        ] {
            assert_eq!(check_rust("a.rs", plain), [""; 0], "{plain}");
        }
    }

    #[test]
    fn names_of_files_and_tests_are_checked() {
        assert_eq!(check_rust("src/look.rs", "").len(), 1);
        assert_eq!(check_rust("src/words.rs", "").len(), 1);
        let test = |name: &str| format!("#[test]\nfn {name}() {{}}\n");
        assert_eq!(check_rust("a.rs", &test("what_is_silent_is_over")).len(), 1);
        assert_eq!(
            check_rust("a.rs", &test("lease_expires_after_missed_heartbeats")),
            [""; 0]
        );
    }

    #[test]
    fn code_in_pages_is_no_prose() {
        assert_eq!(
            check_markdown("a.md", "```\nsomebody\n```\nuse `told` here\n"),
            [""; 0]
        );
        assert_eq!(check_markdown("a.md", "somebody approves it\n").len(), 1);
    }
}
