//! Selection of a base tag: the tag a task names, or a newer one that its policy allows.
//!
//! All functions are pure functions of a list of tags.
//!
//! The selected tag is never older than the current one and always of the same kind. With
//! `3.20.1-slim` in use and a version range, only tags `X.Y.Z-slim` are candidates. A moving tag
//! such as `3` therefore never replaces a release tag, and a release tag never replaces a moving
//! one.

use std::cmp::Ordering;

use regex::Regex;
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

/// Tag policy that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagPolicyError {
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
    /// Invalid regular expression.
    #[error("`{pattern}` is not a regular expression: {reason}")]
    Pattern {
        /// Pattern as written.
        pattern: String,
        /// Error of the regex parser.
        reason: String,
    },
}

/// Selects `current` or a newer tag of `tags`. The order of `tags` does not matter.
pub fn choose_tag<'a>(
    policy: &TagPolicy,
    current: &'a str,
    tags: impl IntoIterator<Item = &'a str>,
) -> Result<&'a str, TagPolicyError> {
    match policy {
        TagPolicy::Same => Ok(current),
        TagPolicy::Semver(range) => newest_version(range, current, tags),
        TagPolicy::Pattern(pattern) => newest_match(pattern, current, tags),
    }
}

/// Returns `true` if the policy could select `tag`, whatever tag is in use.
pub fn allows_tag(policy: &TagPolicy, tag: &str) -> Result<bool, TagPolicyError> {
    Ok(match policy {
        TagPolicy::Same => true,
        TagPolicy::Semver(range) => {
            let wanted = parse_range(range)?;
            Numbered::parse(tag).is_some_and(|numbered| wanted.matches(&numbered.version()))
        }
        TagPolicy::Pattern(pattern) => compile_pattern(pattern)?.is_match(tag),
    })
}

fn parse_range(range: &str) -> Result<VersionReq, TagPolicyError> {
    VersionReq::parse(range).map_err(|error| TagPolicyError::Range {
        range: range.to_owned(),
        reason: error.to_string(),
    })
}

fn compile_pattern(pattern: &str) -> Result<Regex, TagPolicyError> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
        // All lines before the last one repeat the pattern with the anchors added above.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default();
        TagPolicyError::Pattern {
            pattern: pattern.to_owned(),
            reason: last.strip_prefix("error: ").unwrap_or(last).to_owned(),
        }
    })
}

fn newest_version<'a>(
    range: &str,
    current: &'a str,
    tags: impl IntoIterator<Item = &'a str>,
) -> Result<&'a str, TagPolicyError> {
    let wanted = parse_range(range)?;
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
    Ok(best.map_or(current, |(_, tag)| tag))
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
    pattern: &str,
    current: &'a str,
    tags: impl IntoIterator<Item = &'a str>,
) -> Result<&'a str, TagPolicyError> {
    let regex = compile_pattern(pattern)?;
    let key = |tag: &'a str| {
        let found = regex.captures(tag)?;
        let group = found.name("order").or_else(|| found.get(1));
        Some(group.map_or(tag, |group| group.as_str()))
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
    Ok(best.map_or(current, |(_, tag)| tag))
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
        choose_tag(
            &TagPolicy::Semver(range.into()),
            current,
            tags.iter().copied(),
        )
        .unwrap()
    }

    #[test]
    fn same_policy_keeps_the_current_tag() {
        let chosen = choose_tag(&TagPolicy::Same, "3.20", ["3.21", "4"]);
        assert_eq!(chosen, Ok("3.20"));
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
            choose_tag(
                &TagPolicy::Pattern(text.into()),
                current,
                tags.iter().copied(),
            )
            .unwrap()
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
        let semver = TagPolicy::Semver("^3.20".into());
        for (tag, allowed) in [
            ("3.21", true),
            ("3.20.1-slim", true),
            ("4", false),
            ("x", false),
        ] {
            assert_eq!(allows_tag(&semver, tag), Ok(allowed), "{tag}");
        }
        let pattern = TagPolicy::Pattern(r"build-(\d+)".into());
        assert_eq!(allows_tag(&pattern, "build-7"), Ok(true));
        assert_eq!(allows_tag(&pattern, "build-7-x"), Ok(false));
    }

    #[test]
    fn invalid_policy_error_names_a_valid_one() {
        let error = choose_tag(&TagPolicy::Semver("newest".into()), "1", []).unwrap_err();
        assert!(error.to_string().contains("`^3.20`"), "{error}");
        let error = choose_tag(&TagPolicy::Pattern("(".into()), "1", []).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`(` is not a regular expression: unclosed group"
        );
    }
}
