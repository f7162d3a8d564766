//! The rule for commit subjects: `area: Verb ...` or `area: verb ...` in the imperative, at most 72
//! characters.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// The last commit before the rule. Older subjects are not checked.
const LAST_UNCHECKED: &str = "048fc0543dfd4668008c9979b03bf9035656bf99";

/// Longest subject, in characters.
const LONGEST_SUBJECT: usize = 72;

/// Words that begin no imperative.
const NOT_IMPERATIVE: &[&str] = &[
    "a", "an", "the", "what", "who", "whose", "where", "how", "why", "when", "it", "its", "all",
    "each", "every", "no", "nothing", "one", "some", "this", "that", "these", "those", "is", "are",
];

/// Verbs in the imperative that end as a participle or a third person does.
const IMPERATIVE: &[&str] = &[
    "access", "address", "bring", "compress", "discuss", "embed", "express", "feed", "focus",
    "need", "pass", "process", "seed", "shed", "speed", "string", "suppress", "exceed", "proceed",
    "ping", "miss", "press", "guess", "dismiss", "bypass", "assess",
];

/// Finds the subjects since the rule that break it. A checkout without that history has none.
pub(super) fn check_subjects(root: &Path) -> Result<Vec<String>> {
    let range = format!("{LAST_UNCHECKED}..HEAD");
    let output = Command::new("git")
        .args(["log", "--no-merges", "--format=%h %s", &range])
        .current_dir(root)
        .output()
        .context("cannot start git to read the commit subjects")?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(commit, subject)| {
            Some(format!(
                "commit {commit}: {}: {subject}",
                find_fault(subject)?
            ))
        })
        .collect())
}

/// Returns the rule that a subject breaks.
fn find_fault(subject: &str) -> Option<&'static str> {
    if subject.chars().count() > LONGEST_SUBJECT {
        return Some("the subject has more than 72 characters");
    }
    let Some((_, text)) = subject.split_once(": ") else {
        return Some("the subject has no area; write `area: verb object`");
    };
    let first = text.split(' ').next().unwrap_or_default().to_lowercase();
    let inflected = ["ed", "ing", "s"].iter().any(|end| first.ends_with(end));
    if NOT_IMPERATIVE.contains(&first.as_str())
        || (inflected && !IMPERATIVE.contains(&first.as_str()))
    {
        return Some("the subject does not begin with an imperative verb");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_subjects_are_refused() {
        for refused in [
            "Reject webhooks with missing secrets",
            "server: rejects webhooks with missing secrets",
            "server: rejected webhooks",
            "server: the webhooks of a task",
            "server: what is no line of a log costs little",
            &format!("server: reject {}", "x".repeat(72)),
        ] {
            assert!(find_fault(refused).is_some(), "{refused}");
        }
    }

    #[test]
    fn imperative_subjects_pass() {
        for passed in [
            "server: reject webhooks with missing secrets",
            "store, server: pass the digest of a base",
            "docs: address the review",
        ] {
            assert_eq!(find_fault(passed), None, "{passed}");
        }
    }
}
