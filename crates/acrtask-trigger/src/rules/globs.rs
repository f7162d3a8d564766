//! Patterns of names and of paths.
//!
//! `*` and `?` match within one segment, `**` matches across segments, and `[ab]` and `{a,b}` match
//! alternatives. Matching takes time linear in the text.

use std::fmt;

use acrtask_api::task::PathFilter;
use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use super::RuleError;

const MAX_PATTERNS: usize = 200;
const MAX_PATTERN_BYTES: usize = 500;

/// A reason with the correction.
type Problem = (String, String);

fn parse_glob(pattern: &str) -> Result<Glob, Problem> {
    if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
        return Err((
            format!("a pattern has 1 to {MAX_PATTERN_BYTES} bytes"),
            "write a name, or a pattern like `release/*`".into(),
        ));
    }
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| {
            (
                format!("`{}` is not a pattern: {}", pattern.escape_debug(), error.kind()),
                "`*`, `**`, `?`, `[ab]` and `{a,b}` are special; write `\\` before one that is meant literally".into(),
            )
        })
}

fn check_count(patterns: &[String]) -> Result<(), Problem> {
    if patterns.len() > MAX_PATTERNS {
        return Err((
            format!(
                "there are {} patterns; the limit is {MAX_PATTERNS}",
                patterns.len()
            ),
            "combine some with `*` and `{a,b}`".into(),
        ));
    }
    Ok(())
}

/// Name patterns in order. The last pattern that matches a name decides.
#[derive(Debug, Clone, Default)]
pub(super) struct NamePatterns {
    /// Each pattern, with `false` for an excluding one.
    patterns: Vec<(bool, GlobMatcher)>,
    text: String,
}

impl NamePatterns {
    pub(super) fn new(patterns: &[String]) -> Result<Self, Problem> {
        check_count(patterns)?;
        let matchers = patterns.iter().map(|pattern| {
            let (includes, bare) = match pattern.strip_prefix('!') {
                Some(rest) => (false, rest),
                None => (true, pattern.as_str()),
            };
            Ok((includes, parse_glob(bare)?.compile_matcher()))
        });
        Ok(Self {
            patterns: matchers.collect::<Result<_, Problem>>()?,
            text: format_patterns(patterns),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        // If every pattern excludes, all other names are included.
        let otherwise = self.patterns.iter().all(|(includes, _)| !includes);
        let last = self
            .patterns
            .iter()
            .rev()
            .find(|(_, glob)| glob.is_match(name));
        last.map_or(otherwise, |(includes, _)| *includes)
    }
}

impl fmt::Display for NamePatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Path filters.
#[derive(Debug, Clone, Default)]
pub(super) struct PathPatterns {
    include: Option<GlobSet>,
    exclude: Option<GlobSet>,
    text: String,
}

impl PathPatterns {
    pub(super) fn new(filter: &PathFilter) -> Result<Self, Vec<RuleError>> {
        let mut errors = Vec::new();
        let mut set = |field, patterns: &[String]| {
            build_path_set(patterns).unwrap_or_else(|(reason, help)| {
                errors.push(RuleError {
                    field,
                    reason,
                    help,
                });
                None
            })
        };
        let include = set("paths.include", &filter.include);
        let exclude = set("paths.exclude", &filter.exclude);
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut text = Vec::new();
        if !filter.include.is_empty() {
            text.push(format_patterns(&filter.include));
        }
        if !filter.exclude.is_empty() {
            text.push(format!("not {}", format_patterns(&filter.exclude)));
        }
        Ok(Self {
            include,
            exclude,
            text: text.join(", "),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.include.is_none() && self.exclude.is_none()
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let path = path.trim_start_matches('/');
        self.include.as_ref().is_none_or(|set| set.is_match(path))
            && !self.exclude.as_ref().is_some_and(|set| set.is_match(path))
    }
}

impl fmt::Display for PathPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn build_path_set(patterns: &[String]) -> Result<Option<GlobSet>, Problem> {
    if patterns.is_empty() {
        return Ok(None);
    }
    check_count(patterns)?;
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        if pattern.starts_with('!') {
            return Err((
                format!("`{}` begins with `!`", pattern.escape_debug()),
                "write the excluded path into `exclude`".into(),
            ));
        }
        let bare = pattern.strip_prefix("./").unwrap_or(pattern);
        let bare = bare.trim_start_matches('/').trim_end_matches('/');
        set.add(parse_glob(bare)?);
        // The name of a folder matches everything inside the folder.
        set.add(parse_glob(&format!("{bare}/**"))?);
        // A name may contain the characters of a class: `web/app/[slug]/page.tsx`.
        if bare.contains('[') {
            let name = bare.replace('[', "\\[").replace(']', "\\]");
            set.add(parse_glob(&name)?);
            set.add(parse_glob(&format!("{name}/**"))?);
        }
    }
    let set = set.build().map_err(|error| {
        (
            format!("the patterns together are too large: {error}"),
            "write fewer or shorter ones".to_owned(),
        )
    })?;
    Ok(Some(set))
}

/// Formats patterns for a sentence. Shortens a long list.
fn format_patterns(patterns: &[String]) -> String {
    const MOST: usize = 5;
    let mut text: Vec<_> = patterns
        .iter()
        .take(MOST)
        .map(|pattern| format!("`{}`", pattern.escape_debug()))
        .collect();
    if patterns.len() > MOST {
        text.push(format!("{} more", patterns.len() - MOST));
    }
    text.join(", ")
}
