//! Advice about a purge that probably selects something else than its author means: globs, tags
//! that match anywhere, alternatives without brackets, and flags without which the purge fails.

use std::fmt;

use crate::{
    Ago, Filter,
    filter::{is_literal, split},
};

/// Kind of an advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdviceKind {
    /// The filter cannot be split into repositories and tags.
    Split,
    /// An expression is a glob, and not a regular expression.
    Glob,
    /// An expression is not a regular expression.
    Expression,
    /// Alternatives of repositories are outside of brackets. The original selects more.
    RepositoryAlternatives,
    /// Alternatives of tags are outside of brackets.
    TagAlternatives,
    /// The tags are the name of one tag. The original selects more.
    OneTag,
    /// The tags match anywhere in a tag.
    Unanchored,
    /// The age is missing or not valid.
    Age,
}

impl AdviceKind {
    /// Returns `true` if the original program selects something else with the same filter.
    pub fn differs_from_original(self) -> bool {
        matches!(self, Self::RepositoryAlternatives | Self::OneTag)
    }
}

/// Advice about one word of a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Kind of the advice.
    pub kind: AdviceKind,
    /// Word that the advice is about. `None` if a word is missing.
    pub word: Option<String>,
    /// Description of the problem in one sentence, without a full stop.
    pub message: String,
    /// Text to write instead.
    pub help: String,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "note: {}; {}", self.message, self.help)
    }
}

/// Returns advice about the words after `acr purge`.
pub fn advise_on_purge(words: &[String]) -> Vec<Advice> {
    let mut found = Vec::new();
    let (mut has_age, mut has_filter) = (false, false);
    let mut needs_age = true;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        match name {
            "--filter" | "-f" => {
                has_filter = true;
                let value = inline
                    .or_else(|| words.next().cloned())
                    .filter(|text| !text.is_empty());
                found.extend(value.and_then(|text| advise_on_filter(&text)));
            }
            "--ago" => {
                has_age = true;
                let value = inline
                    .or_else(|| words.next().cloned())
                    .filter(|text| !text.is_empty());
                found.extend(value.and_then(|text| advise_on_age(&text)));
            }
            "--untagged-only" => needs_age = inline.as_deref() == Some("false"),
            _ => {}
        }
    }
    if has_filter && needs_age && !has_age {
        found.push(Advice {
            kind: AdviceKind::Age,
            word: None,
            message: "the purge has no age, so it fails".into(),
            help: "write for example `--ago 30d`; `--ago 0d` means every age".into(),
        });
    }
    found
}

fn advise_on_age(text: &str) -> Option<Advice> {
    let error = Ago::parse(text).err()?;
    Some(Advice {
        kind: AdviceKind::Age,
        word: Some(text.into()),
        message: format!("`{text}` is not an age, so the purge fails: {error}"),
        help: "write for example `--ago 30d`, `--ago 2d3h6m` or `--ago 12h`".into(),
    })
}

/// Returns advice about a filter. `None` if the filter selects what it appears to select.
pub fn advise_on_filter(text: &str) -> Option<Advice> {
    let advice = |kind, message: String, help: String| Advice {
        kind,
        word: Some(text.into()),
        message,
        help,
    };
    let (repository, tag) = match split(text) {
        Ok(parts) => parts,
        Err(error) => {
            let help = match text.trim_matches(':') {
                name if !text.is_empty() && !name.contains(':') && !name.is_empty() => {
                    format!("write `{name}:.*` for all its tags")
                }
                _ => "write REPOSITORY:TAG with one colon; a colon of an expression is `\\x3a`"
                    .into(),
            };
            let message = format!("the filter `{text}` has no repositories and tags: {error}");
            return Some(advice(AdviceKind::Split, message, help));
        }
    };
    let without_glob = format!("{}:{}", replace_globs(repository), replace_globs(tag));
    if without_glob != text {
        return Some(advice(
            AdviceKind::Glob,
            format!("`{text}` is a glob, and --filter needs regular expressions"),
            format!("write `{without_glob}`"),
        ));
    }
    if let Err(error) = Filter::parse(text) {
        let help = "write regular expressions as `team/.*:^pr-`".to_owned();
        return Some(advice(AdviceKind::Expression, error, help));
    }
    let fixed_repository = match has_alternatives(repository) {
        true => format!("({repository})"),
        false => repository.to_owned(),
    };
    if fixed_repository != repository {
        return Some(advice(
            AdviceKind::RepositoryAlternatives,
            format!(
                "`{repository}` has no brackets, so acr-cli also purges repositories that only begin or end like it"
            ),
            format!("write `{fixed_repository}:{tag}`"),
        ));
    }
    let alternatives = alternatives_of(tag);
    // An anchor at one end of the whole expression belongs to its first or last part alone.
    let is_uniform = alternatives.iter().all(|part| has_start(part))
        || alternatives.iter().all(|part| has_end(part));
    if has_alternatives(tag) && !is_uniform {
        let parts: Vec<&str> = alternatives
            .into_iter()
            .map(|part| part.trim_start_matches('^').trim_end_matches('$'))
            .collect();
        return Some(advice(
            AdviceKind::TagAlternatives,
            format!("each part of `{tag}` matches on its own, anywhere in a tag"),
            format!("write `{repository}:^({})$`", parts.join("|")),
        ));
    }
    if is_literal(tag) {
        return Some(advice(
            AdviceKind::OneTag,
            format!(
                "`{tag}` names one tag here, but acr-cli also deletes tags that contain it, such as `{tag}0` and `rc-{tag}`"
            ),
            format!("write `{repository}:^{}$`", tag.replace('.', "\\.")),
        ));
    }
    if !is_anchored(tag) {
        // `$` behind a condition such as `(?!...)` would change its meaning.
        let is_open = tag.ends_with(".*") || tag.ends_with(".+") || tag.contains("(?");
        let end = if is_open { "" } else { "$" };
        return Some(advice(
            AdviceKind::Unanchored,
            format!("`{tag}` matches anywhere in a tag, so longer tags go too"),
            format!("write `{repository}:^{tag}{end}`"),
        ));
    }
    None
}

/// Returns `true` if an expression states where its match begins or ends.
fn is_anchored(expression: &str) -> bool {
    has_start(expression) || has_end(expression)
}

/// Returns `true` if an expression states where its match begins.
fn has_start(expression: &str) -> bool {
    ["^", ".*", ".+", "\\A", "(?"]
        .iter()
        .any(|start| expression.starts_with(start))
}

/// Returns `true` if an expression states where its match ends.
fn has_end(expression: &str) -> bool {
    expression.ends_with('$') || expression.ends_with("\\z")
}

/// Replaces each `*` that repeats nothing, or a plain character, with `.*`.
fn replace_globs(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len() + 4);
    let mut is_plain = true;
    let mut is_escape = false;
    let mut is_class = false;
    for c in expression.chars() {
        if is_escape {
            is_escape = false;
            is_plain = false;
        } else if is_class {
            is_class = c != ']';
            is_plain = false;
        } else {
            if c == '*' && is_plain {
                out.push('.');
            }
            is_escape = c == '\\';
            is_class = c == '[';
            is_plain = c.is_alphanumeric() || "/-_(|".contains(c);
        }
        out.push(c);
    }
    out
}

fn has_alternatives(expression: &str) -> bool {
    alternatives_of(expression).len() > 1
}

/// Splits an expression at each `|` outside of brackets.
fn alternatives_of(expression: &str) -> Vec<&str> {
    let (mut depth, mut is_class, mut is_escape, mut start) = (0_usize, false, false, 0);
    let mut parts = Vec::new();
    for (at, c) in expression.char_indices() {
        match c {
            _ if is_escape => is_escape = false,
            '\\' => is_escape = true,
            ']' => is_class = false,
            _ if is_class => {}
            '[' => is_class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => {
                parts.push(&expression[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn filters_of_published_files_get_advice() {
        use AdviceKind::{
            Expression, Glob, OneTag, RepositoryAlternatives, Split, TagAlternatives, Unanchored,
        };
        for (filter, expected) in [
            ("azdisk:*", Some((Glob, "write `azdisk:.*`"))),
            ("*:.*", Some((Glob, "write `.*:.*`"))),
            ("*:*", Some((Glob, "write `.*:.*`"))),
            ("team/*:pr-*", Some((Glob, "write `team/.*:pr-.*`"))),
            ("app:v2", Some((OneTag, "write `app:^v2$`"))),
            ("app:1.2", Some((OneTag, "write `app:^1\\.2$`"))),
            (
                "tredev:[0-9a-fA-F]{8}",
                Some((Unanchored, "write `tredev:^[0-9a-fA-F]{8}$`")),
            ),
            (
                "REPO:kissa_api.*",
                Some((Unanchored, "write `REPO:^kissa_api.*`")),
            ),
            (
                "plat|other:.*",
                Some((RepositoryAlternatives, "write `(plat|other):.*`")),
            ),
            ("app:a|b", Some((TagAlternatives, "write `app:^(a|b)$`"))),
            ("app:^a|b$", Some((TagAlternatives, "write `app:^(a|b)$`"))),
            (
                "platform/api",
                Some((Split, "write `platform/api:.*` for all its tags")),
            ),
            (
                "platform/api:",
                Some((Split, "write `platform/api:.*` for all its tags")),
            ),
            (
                "a:b:c",
                Some((
                    Split,
                    "write REPOSITORY:TAG with one colon; a colon of an expression is `\\x3a`",
                )),
            ),
            (
                "api:[",
                Some((Expression, "write regular expressions as `team/.*:^pr-`")),
            ),
            (".*:.*", None),
            ("core.*:.*", None),
            ("a/b-c:.*", None),
            ("app:^pr-", None),
            ("app:-rc$", None),
            ("app:^a$|^b$", None),
            ("(plat|other):^(a|b)$", None),
            ("app:^v\\d*$", None),
            ("app:^[a|b]*$", None),
            ("app:(?i:v)1", None),
            ("app:^(?!release-)", None),
            ("app:v(?!3)", Some((Unanchored, "write `app:^v(?!3)`"))),
        ] {
            let advice = advise_on_filter(filter);
            let found = advice.as_ref().map(|one| (one.kind, one.help.as_str()));
            assert_eq!(found, expected, "{filter}");
        }
    }

    #[test]
    fn purge_without_age_gets_advice() {
        let advise = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let found = advise_on_purge(&words);
            found.into_iter().map(|one| one.kind).collect::<Vec<_>>()
        };
        assert_eq!(advise("--filter a:.*"), [AdviceKind::Age]);
        assert_eq!(advise("--filter=a:.* --untagged-only"), []);
        assert_eq!(advise("-f a:.* --ago 30d"), []);
        assert_eq!(advise("-f a:.* --ago=30"), [AdviceKind::Age]);
        assert_eq!(
            advise("-f a:* --filter b:v1 --ago xd"),
            [AdviceKind::Glob, AdviceKind::OneTag, AdviceKind::Age]
        );
        assert_eq!(advise("--filter"), [AdviceKind::Age]);
    }

    proptest! {
        /// The advice is a filter about which no advice remains, except for deeper errors.
        #[test]
        fn advice_can_be_followed(text in "[a-c|*.^$v0-9]{1,5}:[a-c|*.^$v0-9]{1,5}") {
            let mut text = text;
            for _ in 0..5 {
                let Some(advice) = advise_on_filter(&text) else { return Ok(()) };
                if matches!(advice.kind, AdviceKind::Split | AdviceKind::Expression) {
                    return Ok(());
                }
                let next = advice.help.trim_start_matches("write `").trim_end_matches('`');
                prop_assert_ne!(next, &text);
                text = next.to_owned();
            }
            prop_assert!(false, "advice never ends: {}", text);
        }
    }
}
