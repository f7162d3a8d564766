//! The words of `docker` that the executor carries out itself.

use super::Word;

/// Words that need nothing after them to be known.
const ONE: [&str; 15] = [
    "build", "images", "inspect", "login", "logout", "logs", "ps", "pull", "push", "rm", "run",
    "stop", "tag", "version", "wait",
];

/// Words with the word that must follow.
const TWO: [(&str, &[&str]); 3] = [
    ("image", &["inspect"]),
    ("manifest", &["create", "annotate", "push", "inspect"]),
    ("buildx", &["build"]),
];

/// Whether the executor carries out `docker WORDS` itself, on the run's own images and containers. `words`
/// are what follows `docker`.
pub fn docker_word_supported(words: &[Word]) -> bool {
    let literal = |i: usize| words.get(i).and_then(Word::literal).unwrap_or_default();
    let (first, second) = (literal(0), literal(1));
    ONE.contains(&first.as_str())
        || TWO
            .iter()
            .any(|(word, next)| *word == first && next.contains(&second.as_str()))
        || (first == "buildx" && second == "imagetools" && literal(2) == "create")
}

/// The name of what `words` ask for: `manifest rm`, `rmi`.
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
