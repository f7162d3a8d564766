//! Commands of `docker` that the executor runs without the `docker` program.

use super::Word;

/// Commands of one word.
const SINGLE_WORDS: [&str; 15] = [
    "build", "images", "inspect", "login", "logout", "logs", "ps", "pull", "push", "rm", "run",
    "stop", "tag", "version", "wait",
];

/// First words of commands with two words, and the second words that are supported.
const WORD_PAIRS: [(&str, &[&str]); 3] = [
    ("image", &["inspect"]),
    ("manifest", &["create", "annotate", "push", "inspect"]),
    ("buildx", &["build"]),
];

/// Returns `true` if the executor runs `docker WORDS`. It does so on the run's own images and
/// containers. `words` are the words after `docker`.
pub fn docker_word_supported(words: &[Word]) -> bool {
    let literal = |i: usize| words.get(i).and_then(Word::literal).unwrap_or_default();
    let (first, second) = (literal(0), literal(1));
    SINGLE_WORDS.contains(&first.as_str())
        || WORD_PAIRS
            .iter()
            .any(|(word, next)| *word == first && next.contains(&second.as_str()))
        || (first == "buildx" && second == "imagetools" && literal(2) == "create")
}

/// Returns the name of a `docker` command: `manifest rm`, `rmi`.
pub(crate) fn docker_word_name(words: &[Word]) -> String {
    let literal = |i: usize| words.get(i).and_then(Word::literal);
    let first = literal(0).unwrap_or_default();
    let grouped = [
        "image",
        "manifest",
        "buildx",
        "container",
        "network",
        "volume",
        "system",
        "compose",
    ];
    match literal(1) {
        Some(second) if grouped.contains(&first.as_str()) => format!("{first} {second}"),
        _ => first,
    }
}
