//! Selection of a base tag: the tag a task names, or a newer one that its policy allows.
//!
//! All functions are pure functions of a list of tags.
//!
//! The selected tag is never older than the current one and always of the same kind. With
//! `3.20.1-slim` in use and a version range, only tags `X.Y.Z-slim` are candidates. A moving tag
//! such as `3` therefore never replaces a release tag, and a release tag never replaces a moving
//! one.

use std::cmp::Ordering;

use regex::bytes::{Regex, RegexBuilder};
use semver::{Version, VersionReq};
use serde::{Deserialize, Serialize};

/// Policy for following newer tags of a base.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum TagPolicy {
    /// Stay on the written tag, whatever its digest.
    #[default]
    Same,
    /// Follow the newest version tag in this range. The syntax is Cargo's: `^3.20`, `>=3.18, <4`.
    Semver(String),
    /// Follow the newest tag that matches this regular expression as a whole.
    ///
    /// The order is that of the group named `order`, else of the first group, else of the whole
    /// tag. Runs of digits are compared as numbers, the rest as text.
    Pattern(String),
}

/// Maximum length of a version range or pattern, in bytes.
const MAX_POLICY: usize = 200;
/// Maximum size of a compiled pattern and of the cache of its automaton, in bytes.
const MAX_COMPILED: usize = 64 << 10;
/// Maximum depth of groups and classes in a pattern.
const MAX_NESTING: u32 = 20;

/// Tag policy that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagPolicyError {
    /// Range or pattern above the maximum length.
    #[error("it has {length} bytes; write at most {MAX_POLICY}")]
    TooLong {
        /// Length in bytes.
        length: usize,
    },
    /// Invalid version range.
    #[error(
        "`{range}` is not a range of versions: {reason}; write one like `^3.20` or `>=3.18, <4`"
    )]
    Range {
        /// Range as written.
        range: String,
        /// Error of the range parser.
        reason: String,
    },
    /// Pattern whose automaton is too large.
    #[error("`{pattern}` is too large a regular expression; write smaller counts and classes")]
    TooLarge {
        /// Pattern as written.
        pattern: String,
    },
    /// Invalid regular expression.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    Pattern {
        /// Pattern as written.
        pattern: String,
        /// Error of the regex parser.
        reason: String,
    },
}

/// A parsed tag policy. Parsing costs more than a selection, so parse each policy once.
#[derive(Debug, Clone)]
pub struct TagSelector(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Same,
    Semver(VersionReq),
    Pattern(Regex),
}

impl TagSelector {
    /// Parses a policy.
    ///
    /// # Errors
    /// Returns an error for an invalid or too large range or pattern. The cost of a refusal does
    /// not depend on the policy.
    pub fn new(policy: &TagPolicy) -> Result<Self, TagPolicyError> {
        Ok(Self(match policy {
            TagPolicy::Same => Kind::Same,
            TagPolicy::Semver(range) => Kind::Semver(parse_range(range)?),
            TagPolicy::Pattern(pattern) => Kind::Pattern(compile_pattern(pattern)?),
        }))
    }

    /// Selects `current` or a newer tag of `tags`. The order of `tags` does not matter.
    pub fn choose<'a>(&self, current: &'a str, tags: impl IntoIterator<Item = &'a str>) -> &'a str {
        match &self.0 {
            Kind::Same => current,
            Kind::Semver(range) => newest_version(range, current, tags),
            Kind::Pattern(regex) => newest_match(regex, current, tags),
        }
    }

    /// Returns `true` if the policy could select `tag`, whatever tag is in use.
    pub fn allows(&self, tag: &str) -> bool {
        match &self.0 {
            Kind::Same => true,
            Kind::Semver(range) => {
                Numbered::parse(tag).is_some_and(|numbered| range.matches(&numbered.version()))
            }
            Kind::Pattern(regex) => regex.is_match(tag.as_bytes()),
        }
    }
}

fn check_length(text: &str) -> Result<(), TagPolicyError> {
    if text.len() > MAX_POLICY {
        return Err(TagPolicyError::TooLong { length: text.len() });
    }
    Ok(())
}

fn parse_range(range: &str) -> Result<VersionReq, TagPolicyError> {
    check_length(range)?;
    VersionReq::parse(range).map_err(|error| TagPolicyError::Range {
        range: range.to_owned(),
        reason: error.to_string(),
    })
}

/// Compiles a pattern for a whole tag. Tags are ASCII, and classes of Unicode are large, so classes
/// are ASCII too.
fn compile_pattern(pattern: &str) -> Result<Regex, TagPolicyError> {
    check_length(pattern)?;
    let built = RegexBuilder::new(&format!("^(?:{pattern})$"))
        .unicode(false)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => TagPolicyError::TooLarge {
            pattern: pattern.to_owned(),
        },
        error => {
            // All lines before the last one repeat the pattern with the anchors added above.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            TagPolicyError::Pattern {
                pattern: pattern.to_owned(),
                reason: last.strip_prefix("error: ").unwrap_or(last).to_owned(),
            }
        }
    })
}

fn newest_version<'a>(
    wanted: &VersionReq,
    current: &'a str,
    tags: impl IntoIterator<Item = &'a str>,
) -> &'a str {
    // If the current tag is not a version (`latest`), every full release is newer.
    let used = Numbered::parse(current);
    let mut best = used
        .as_ref()
        .map(|used| (used.version(), current))
        .filter(|(version, _)| wanted.matches(version));
    for tag in tags {
        let Some(numbered) = Numbered::parse(tag) else {
            continue;
        };
        let alike = match &used {
            Some(used) => {
                numbered.parts == used.parts
                    && numbered.prefix == used.prefix
                    && numbered.suffix == used.suffix
            }
            None => numbered.parts == 3 && numbered.suffix.is_empty(),
        };
        let version = numbered.version();
        let newer = used.as_ref().is_none_or(|used| version > used.version());
        let best_so_far = best
            .as_ref()
            .is_none_or(|(best, name)| (&version, tag) > (best, *name));
        if alike && newer && best_so_far && wanted.matches(&version) {
            best = Some((version, tag));
        }
    }
    best.map_or(current, |(_, tag)| tag)
}

/// Parts of a version tag. `v3.20.1-slim` has the prefix `v`, three numbers and the suffix `-slim`.
struct Numbered<'a> {
    prefix: &'a str,
    numbers: [u64; 3],
    parts: usize,
    suffix: &'a str,
}

impl<'a> Numbered<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        let (prefix, rest) = match tag.strip_prefix('v') {
            Some(rest) => ("v", rest),
            None => ("", tag),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (version, suffix) = rest.split_at(end);
        let mut numbers = [0; 3];
        let mut parts = 0;
        for part in version.split('.') {
            *numbers.get_mut(parts)? = part.parse().ok()?;
            parts += 1;
        }
        // The meaning of `3.20.1slim` and `3rc1` is ambiguous. `-rc1`, `-beta.2` and `-slim` all
        // count as suffixes, so a prerelease never replaces a release.
        if !suffix.is_empty() && !suffix.starts_with('-') {
            return None;
        }
        Some(Self {
            prefix,
            numbers,
            parts,
            suffix,
        })
    }

    fn version(&self) -> Version {
        let [major, minor, patch] = self.numbers;
        Version::new(major, minor, patch)
    }
}

fn newest_match<'a>(
    regex: &Regex,
    current: &'a str,
    tags: impl IntoIterator<Item = &'a str>,
) -> &'a str {
    let key = |tag: &'a str| {
        let found = regex.captures(tag.as_bytes())?;
        let group = found.name("order").or_else(|| found.get(1));
        // A match of bytes may end within a character of a text that is not a tag.
        group.map_or(Some(tag), |group| tag.get(group.range()))
    };
    let mut best = key(current).map(|key| (key, current));
    for tag in tags {
        let Some(key) = key(tag) else { continue };
        let newer = best.is_none_or(|(best_key, best_tag)| {
            compare_natural(key, best_key).then_with(|| {
                // The current tag wins over a tag that compares equal.
                if best_tag == current {
                    Ordering::Less
                } else {
                    tag.cmp(best_tag)
                }
            }) == Ordering::Greater
        });
        if newer {
            best = Some((key, tag));
        }
    }
    best.map_or(current, |(_, tag)| tag)
}

/// Compares runs of digits by value and the rest as text.
fn compare_natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (split_digit_runs(a), split_digit_runs(b));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => {
                let digits = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
                if digits(a) && digits(b) {
                    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
                    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
                } else {
                    a.cmp(b)
                }
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn split_digit_runs(text: &str) -> impl Iterator<Item = &str> {
    text.as_bytes()
        .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
        .map(|piece| std::str::from_utf8(piece).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn semver(range: &str, current: &'static str, tags: &[&'static str]) -> &'static str {
        let selector = TagSelector::new(&TagPolicy::Semver(range.into())).unwrap();
        selector.choose(current, tags.iter().copied())
    }

    fn error(policy: TagPolicy) -> TagPolicyError {
        TagSelector::new(&policy).unwrap_err()
    }

    #[test]
    fn same_policy_keeps_the_current_tag() {
        let selector = TagSelector::new(&TagPolicy::Same).unwrap();
        assert_eq!(selector.choose("3.20", ["3.21", "4"]), "3.20");
    }

    #[test]
    fn range_selects_the_newest_tag_of_the_same_kind() {
        let tags = [
            "3.19.9",
            "3.20.1",
            "3.20.10",
            "3.20.9",
            "3.21.0",
            "4.0.0",
            "3.22",
            "3",
            "latest",
            "3.20.11-slim",
            "3.21.0-rc1",
            "v3.23.0",
            "3.20.99.1",
        ];
        assert_eq!(semver("~3.20", "3.20.1", &tags), "3.20.10");
        assert_eq!(semver("^3", "3.20.1", &tags), "3.21.0");
        assert_eq!(semver("^3", "3.20.1-slim", &tags), "3.20.11-slim");
        assert_eq!(semver("^3", "3.20", &tags), "3.22");
        assert_eq!(semver("*", "v3.1.0", &tags), "v3.23.0");
        assert_eq!(semver("<4", "latest", &tags), "v3.23.0");
        assert_eq!(semver("<3.20", "3.20.1", &tags), "3.20.1", "never back");
    }

    #[test]
    fn pattern_compares_digits_as_numbers() {
        let pattern = |text: &str, current, tags: &[&'static str]| {
            let selector = TagSelector::new(&TagPolicy::Pattern(text.into())).unwrap();
            selector.choose(current, tags.iter().copied())
        };
        let tags = [
            "build-9",
            "build-10",
            "build-10-x",
            "nightly-20260101",
            "build-010",
        ];
        assert_eq!(pattern(r"build-(\d+)", "build-8", &tags), "build-10");
        assert_eq!(pattern(r"build-(\d+)", "build-11", &tags), "build-11");
        assert_eq!(pattern(r"build-(\d+)", "build-10", &tags), "build-10");
        assert_eq!(
            pattern(r"nightly-(?<order>\d{8})", "stable", &tags),
            "nightly-20260101"
        );
    }

    #[test]
    fn allows_matches_selectable_tags() {
        let semver = TagSelector::new(&TagPolicy::Semver("^3.20".into())).unwrap();
        for (tag, allowed) in [
            ("3.21", true),
            ("3.20.1-slim", true),
            ("4", false),
            ("x", false),
        ] {
            assert_eq!(semver.allows(tag), allowed, "{tag}");
        }
        let pattern = TagSelector::new(&TagPolicy::Pattern(r"build-(\d+)".into())).unwrap();
        assert!(pattern.allows("build-7"));
        assert!(!pattern.allows("build-7-x"));
    }

    #[test]
    fn invalid_policy_error_names_a_valid_one() {
        let range = error(TagPolicy::Semver("newest".into()));
        assert!(range.to_string().contains("`^3.20`"), "{range}");
        assert_eq!(
            error(TagPolicy::Pattern("(".into())).to_string(),
            "`(` is not a regular expression: unclosed group"
        );
    }

    #[test]
    fn large_patterns_are_refused_at_once() {
        let started = std::time::Instant::now();
        for _ in 0..50 {
            for bomb in [
                r"(?u)\pL{200}",
                r"((((.{9}){9}){9}){9}){9}",
                r"(?u)(\w{50}|\W{50}){50}",
            ] {
                let error = error(TagPolicy::Pattern(bomb.into()));
                assert!(matches!(error, TagPolicyError::TooLarge { .. }), "{error}");
            }
        }
        // Unlimited, one of them takes longer.
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
        let error_of = |bomb: String| error(TagPolicy::Pattern(bomb)).to_string();
        assert!(error_of("a".repeat(201)).contains("at most 200"));
        assert!(error_of("(".repeat(99) + &")".repeat(99)).contains("regular expression"));
        let long = error(TagPolicy::Semver("^1, ".repeat(100)));
        assert!(matches!(long, TagPolicyError::TooLong { .. }), "{long}");
        let usual = r"(?i)nightly-(?<order>\d{4}-\d{2}-\d{2}(-\d{1,9})?)-[\w.-]{1,60}";
        let usual = TagSelector::new(&TagPolicy::Pattern(usual.into())).unwrap();
        assert!(usual.allows("Nightly-2026-11-30-7-slim"));
        assert!(
            !usual.allows("nightly-2026-11-3\u{663}-x"),
            "digits are ASCII"
        );
    }
}
