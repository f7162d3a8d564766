//! Filters of `--filter REPO:TAG`: which repositories and tags a purge selects.
//!
//! REPO is a regular expression for the whole name of a repository. TAG is a regular expression that
//! matches anywhere in a tag. A TAG without special characters names exactly one tag.

use fancy_regex::Regex;

/// Characters that make a text a regular expression. A dot is also part of ordinary tags.
const SPECIAL: [char; 13] = [
    '*', '+', '?', '(', ')', '[', ']', '{', '}', '|', '^', '$', '\\',
];

/// Parsed filter.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Expression of the repositories as written.
    repository_text: String,
    repository: Regex,
    tag: Regex,
    /// Expression of the tags as written.
    tag_text: String,
}

impl Filter {
    /// Parses `REPO:TAG`.
    ///
    /// # Errors
    /// The message of the original program, or the position of the error in an expression.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (repository_text, tag_text) = split(text)?;
        if repository_text == "*" {
            return Err(format!(
                "`*` is a glob, and --filter needs a regular expression; for all repositories write `.*:{tag_text}`"
            ));
        }
        let repository = compile(repository_text, &format!("^(?:{repository_text})$"))?;
        let tag = if is_literal(tag_text) {
            let escaped = fancy_regex::escape(tag_text);
            compile(tag_text, &format!("^(?:{escaped})$"))?
        } else {
            compile(tag_text, tag_text)?
        };
        Ok(Self {
            repository_text: repository_text.into(),
            repository,
            tag,
            tag_text: tag_text.into(),
        })
    }

    /// Returns the name of the only repository that the filter selects. `None` if the filter
    /// selects repositories by an expression.
    pub fn repository_name(&self) -> Option<&str> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || ['/', '-', '_'].contains(&c);
        self.repository_text
            .chars()
            .all(is_name)
            .then_some(self.repository_text.as_str())
    }

    /// Returns `true` if the filter selects the repository.
    ///
    /// # Errors
    /// The expression needs too many steps.
    pub fn matches_repository(&self, name: &str) -> Result<bool, String> {
        run(&self.repository, &self.repository_text, name)
    }

    /// Returns `true` if the filter selects the tag.
    ///
    /// # Errors
    /// The expression needs too many steps.
    pub fn matches_tag(&self, tag: &str) -> Result<bool, String> {
        run(&self.tag, &self.tag_text, tag)
    }

    /// Returns the expression of the tags as written.
    pub fn tag_text(&self) -> &str {
        &self.tag_text
    }

    /// Returns the filter as written.
    pub fn text(&self) -> String {
        format!("{}:{}", self.repository_text, self.tag_text)
    }
}

/// Returns `true` if the expression of tags is the name of one tag.
pub(crate) fn is_literal(text: &str) -> bool {
    !text.contains(SPECIAL)
}

fn compile(text: &str, expression: &str) -> Result<Regex, String> {
    Regex::new(expression)
        .map_err(|error| format!("failed to build the regular expression `{text}`: {error}"))
}

fn run(regex: &Regex, text: &str, name: &str) -> Result<bool, String> {
    regex.is_match(name).map_err(|error| {
        format!("the regular expression `{text}` cannot be matched with `{name}`: {error}")
    })
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
