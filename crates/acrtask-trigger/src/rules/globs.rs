//! Patterns of names and of paths.
//!
//! `*` and `?` stay within one part, `**` goes over parts, `[ab]` and `{a,b}` choose. Matching is linear in the text.

use std::fmt;

use acrtask_api::task::PathFilter;
use globset::{Glob, GlobBuilder, GlobMatcher, GlobSet, GlobSetBuilder};

use super::RuleError;

const MOST_PATTERNS: usize = 200;
const LONGEST_PATTERN: usize = 500;

/// A reason, and what to write instead.
type Problem = (String, String);

fn glob(pattern: &str) -> Result<Glob, Problem> {
    if pattern.is_empty() || pattern.len() > LONGEST_PATTERN {
        return Err((
            format!("a pattern has 1 to {LONGEST_PATTERN} bytes"),
            "write a name, or a pattern like `release/*`".into(),
        ));
    }
    GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|error| {
            (
                format!("`{}` is not a pattern: {}", pattern.escape_debug(), error.kind()),
                "`*`, `**`, `?`, `[ab]` and `{a,b}` are special; put `\\` before one that is not meant so".into(),
            )
        })
}

fn check_count(patterns: &[String]) -> Result<(), Problem> {
    if patterns.len() > MOST_PATTERNS {
        return Err((
            format!(
                "there are {} patterns, and {MOST_PATTERNS} are the most",
                patterns.len()
            ),
            "write fewer with `*` and `{a,b}`".into(),
        ));
    }
    Ok(())
}

/// Names that count, in order: the last pattern that matches a name decides.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// Whether a match lets the name in, and the pattern.
    patterns: Vec<(bool, GlobMatcher)>,
    text: String,
}

impl Names {
    pub(super) fn new(patterns: &[String]) -> Result<Self, Problem> {
        check_count(patterns)?;
        let matchers = patterns.iter().map(|pattern| {
            let (lets_in, bare) = match pattern.strip_prefix('!') {
                Some(rest) => (false, rest),
                None => (true, pattern.as_str()),
            };
            Ok((lets_in, glob(bare)?.compile_matcher()))
        });
        Ok(Self {
            patterns: matchers.collect::<Result<_, Problem>>()?,
            text: shown(patterns),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        // Where all patterns take out, the rest is in.
        let otherwise = self.patterns.iter().all(|(lets_in, _)| !lets_in);
        let last = self
            .patterns
            .iter()
            .rev()
            .find(|(_, glob)| glob.is_match(name));
        last.map_or(otherwise, |(lets_in, _)| *lets_in)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Files that count.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    include: Option<GlobSet>,
    exclude: Option<GlobSet>,
    text: String,
}

impl Paths {
    pub(super) fn new(filter: &PathFilter) -> Result<Self, Vec<RuleError>> {
        let mut errors = Vec::new();
        let mut set = |field, patterns: &[String]| {
            path_set(patterns).unwrap_or_else(|(reason, help)| {
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
            text.push(shown(&filter.include));
        }
        if !filter.exclude.is_empty() {
            text.push(format!("not {}", shown(&filter.exclude)));
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

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn path_set(patterns: &[String]) -> Result<Option<GlobSet>, Problem> {
    if patterns.is_empty() {
        return Ok(None);
    }
    check_count(patterns)?;
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        if pattern.starts_with('!') {
            return Err((
                format!("`{}` begins with `!`", pattern.escape_debug()),
                "write what does not count into `exclude`".into(),
            ));
        }
        let bare = pattern.strip_prefix("./").unwrap_or(pattern);
        let bare = bare.trim_start_matches('/').trim_end_matches('/');
        set.add(glob(bare)?);
        // A folder's name stands for all in it.
        set.add(glob(&format!("{bare}/**"))?);
        // A name may contain the characters of a class: `web/app/[slug]/page.tsx`.
        if bare.contains('[') {
            let name = bare.replace('[', "\\[").replace(']', "\\]");
            set.add(glob(&name)?);
            set.add(glob(&format!("{name}/**"))?);
        }
    }
    let set = set.build().map_err(|error| {
        (
            format!("the patterns are too much together: {error}"),
            "write fewer or shorter ones".to_owned(),
        )
    })?;
    Ok(Some(set))
}

/// The patterns for a sentence; many are cut.
fn shown(patterns: &[String]) -> String {
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
