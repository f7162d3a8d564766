//! Filters of `--filter REPO:TAG`: which repositories and tags a purge selects.
//!
//! REPO is a regular expression for the whole name of a repository. TAG is a regular expression that
//! matches anywhere in a tag. A TAG without special characters names exactly one tag.

use std::sync::Arc;

use crate::expression::{Budget, Expression};

/// Maximum length of a filter, in bytes.
const MAX_LENGTH: usize = 1 << 10;
/// Maximum number of filters of a purge.
const MAX_FILTERS: usize = 200;
/// Maximum estimated size of all expressions of a purge. An ordinary one has some 50.
const MAX_COST: u64 = 200_000;
/// Characters that make a text a regular expression. A dot is also part of ordinary tags.
const SPECIAL: [char; 13] = [
    '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '^', '$', '\\',
];

/// Parsed filter.
#[derive(Debug, Clone)]
pub struct Filter {
    repository: Expression,
    tag: Expression,
    budget: Arc<Budget>,
}

/// Parser of the filters of one purge, which bounds their number and size.
#[derive(Debug, Default)]
pub struct FilterParser {
    count: usize,
    cost: u64,
}

impl FilterParser {
    /// Parses the next filter, `REPO:TAG`.
    ///
    /// # Errors
    /// The error of [`Filter::parse`], or there are too many filters.
    pub fn parse(&mut self, text: &str) -> Result<Filter, String> {
        self.count += 1;
        if self.count > MAX_FILTERS {
            return Err(format!(
                "a purge has at most {MAX_FILTERS} filters; join some of them as `(a|b)`"
            ));
        }
        let filter = Filter::parse(text)?;
        self.cost = self.cost.saturating_add(filter.cost());
        if self.cost > MAX_COST {
            return Err(
                "the expressions of all filters together are too large; write simpler ones, or several purges"
                    .into(),
            );
        }
        Ok(filter)
    }
}

impl Filter {
    /// Parses `REPO:TAG`. Compiling takes at most some milliseconds.
    ///
    /// # Errors
    /// The message of the original program, or the position of the error in an expression, or the
    /// part that is not supported.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!("a filter has at most {MAX_LENGTH} bytes"));
        }
        let (repository_text, tag_text) = split(text)?;
        if repository_text == "*" {
            return Err(format!(
                "`*` is a glob, and --filter needs a regular expression; for all repositories write `.*:{tag_text}`"
            ));
        }
        let whole = format!("^(?:{repository_text})$");
        let repository = Expression::compile(repository_text, whole)?;
        let tag = if is_literal(tag_text) {
            let escaped = fancy_regex::escape(tag_text);
            Expression::compile(tag_text, format!("^(?:{escaped})$"))?
        } else {
            Expression::compile(tag_text, tag_text.to_owned())?
        };
        Ok(Self {
            repository,
            tag,
            budget: Arc::default(),
        })
    }

    /// Makes the matches of the filter use the budget of a purge.
    pub fn set_budget(&mut self, budget: &Arc<Budget>) {
        self.budget = Arc::clone(budget);
    }

    fn cost(&self) -> u64 {
        self.repository.cost().saturating_add(self.tag.cost())
    }

    /// Returns the name of the only repository that the filter selects. `None` if the filter
    /// selects repositories by an expression.
    pub fn repository_name(&self) -> Option<&str> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || ['/', '-', '_'].contains(&c);
        let text = self.repository.text();
        text.chars().all(is_name).then_some(text)
    }

    /// Returns `true` if the filter selects the repository.
    ///
    /// # Errors
    /// The expression needs too many steps, or the purge was stopped.
    pub fn matches_repository(&self, name: &str) -> Result<bool, String> {
        self.repository.is_match(name, &self.budget)
    }

    /// Returns `true` if the filter selects the tag.
    ///
    /// # Errors
    /// The expression needs too many steps, or the purge was stopped.
    pub fn matches_tag(&self, tag: &str) -> Result<bool, String> {
        self.tag.is_match(tag, &self.budget)
    }

    /// Returns the expression of the tags as written.
    pub fn tag_text(&self) -> &str {
        self.tag.text()
    }

    /// Returns the filter as written.
    pub fn text(&self) -> String {
        format!("{}:{}", self.repository.text(), self.tag.text())
    }
}

/// Returns `true` if the expression of tags is the name of one tag.
pub(crate) fn is_literal(text: &str) -> bool {
    !text.contains(SPECIAL)
}

/// Splits a filter at its only colon outside of `(?flags:` and `[:class:]`.
pub(crate) fn split(text: &str) -> Result<(&str, &str), String> {
    let bytes = text.as_bytes();
    let mut colons = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b':' && !ends_group_flags(&text[..at]) && !belongs_to_class(text, at) {
            colons.push(at);
        }
    }
    let [colon] = colons.as_slice() else {
        return Err("unable to correctly parse filter flag".into());
    };
    let (repository, tag) = (&text[..*colon], &text[colon + 1..]);
    if repository.is_empty() {
        return Err("missing repository name/expression".into());
    }
    if tag.is_empty() {
        return Err("missing tag name/expression".into());
    }
    Ok((repository, tag))
}

/// Returns `true` if `before` ends with `(?` and flags, so that a colon would end the flags.
fn ends_group_flags(before: &str) -> bool {
    let start = before.trim_end_matches(|c: char| "imsUx-".contains(c));
    start.ends_with("(?")
}

/// Returns `true` if the colon at `at` is part of `[:class:]`.
fn belongs_to_class(text: &str, at: usize) -> bool {
    let (before, after) = (&text[..at], &text[at + 1..]);
    let is_class = |c: char| c.is_ascii_lowercase() || c == '^';
    if before.ends_with('[') {
        let rest = after.trim_start_matches(is_class);
        return rest.starts_with(":]") && rest.len() < after.len();
    }
    after.starts_with(']')
        && before
            .trim_end_matches(is_class)
            .strip_suffix("[:")
            .is_some_and(|start| start.len() + 2 < before.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_split_as_by_the_original() {
        for (text, expected) in [
            ("platform/.*:.*", Ok(("platform/.*", ".*"))),
            ("repo:(?i:V)1", Ok(("repo", "(?i:V)1"))),
            ("(?:a|b):x", Ok(("(?:a|b)", "x"))),
            ("(?i-s:a):(?:x)", Ok(("(?i-s:a)", "(?:x)"))),
            ("repo:[[:alpha:]]+", Ok(("repo", "[[:alpha:]]+"))),
            (
                "[[:alpha:]]+:[[:^digit:]]",
                Ok(("[[:alpha:]]+", "[[:^digit:]]")),
            ),
            ("platform/api", Err("unable to correctly parse filter flag")),
            (
                "platform/api:a:b",
                Err("unable to correctly parse filter flag"),
            ),
            ("platform/api:", Err("missing tag name/expression")),
            (":x", Err("missing repository name/expression")),
            ("", Err("unable to correctly parse filter flag")),
        ] {
            assert_eq!(split(text), expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn repositories_match_as_a_whole() {
        for (filter, name, expected) in [
            ("platform:.*", "platform/api", false),
            ("platform/.*:.*", "platform/api", true),
            // The original anchors only the ends of an alternation.
            ("plat|other:.*", "platform/api", false),
            ("plat|other:.*", "other", true),
            (".*:.*", "a/b", true),
        ] {
            let filter = Filter::parse(filter).unwrap();
            assert_eq!(filter.matches_repository(name), Ok(expected), "{name}");
        }
    }

    #[test]
    fn tags_match_anywhere_unless_the_text_is_a_name() {
        for (filter, tag, expected) in [
            ("app:v2", "v2", true),
            ("app:v2", "v20", false),
            ("app:v2", "rc-v2", false),
            ("app:1.2", "1x2", false),
            ("app:v(?!3)", "v2-alias", true),
            ("app:v(?!3)", "v3", false),
            ("app:^v[12]$", "v1", true),
            ("app:^v[12]$", "v3", false),
            ("app:v2.*", "rc-v20", true),
            ("app:(?i:V)2", "v2", true),
        ] {
            let parsed = Filter::parse(filter).unwrap();
            assert_eq!(parsed.matches_tag(tag), Ok(expected), "{filter} {tag}");
        }
    }

    #[test]
    fn globs_and_broken_expressions_are_refused() {
        let refuse = |text| Filter::parse(text).unwrap_err();
        assert!(refuse("*:.*").contains("write `.*:.*`"));
        assert!(refuse("api:[").contains("failed to build"));
        assert!(refuse("api:*").contains("failed to build"));
    }

    #[test]
    fn filters_have_a_number_and_a_size() {
        let long = format!("app:{}", "a".repeat(MAX_LENGTH));
        assert!(Filter::parse(&long).unwrap_err().contains("1024 bytes"));
        let parse_all = |text: &str| {
            let mut parser = FilterParser::default();
            (0..=MAX_FILTERS).find_map(|n| parser.parse(text).err().map(|error| (n, error)))
        };
        let (n, error) = parse_all("app:^v1$").unwrap();
        assert_eq!(n, MAX_FILTERS);
        assert!(error.contains("at most 200 filters"), "{error}");
        let (n, error) = parse_all("app:^[a-z]{2000}$").unwrap();
        assert!(n < 30, "{n}");
        assert!(error.contains("too large"), "{error}");
    }

    #[test]
    fn repository_name_is_none_for_expressions() {
        let name = |text| {
            Filter::parse(text)
                .unwrap()
                .repository_name()
                .map(str::to_owned)
        };
        assert_eq!(name("a/b-c_d:.*"), Some("a/b-c_d".into()));
        assert_eq!(name("a.b:.*"), None);
        assert_eq!(name("a/.*:.*"), None);
    }
}
