//! Patterns of names and of paths.
//!
//! `*` and `?` match within one segment, `**` matches across segments, and `[ab]` and `{a,b}` match
//! alternatives. Matching takes time linear in the text.

use std::fmt;

use acrtask_api::task::PathFilter;

use super::{RuleError, glob::Glob};

const MAX_PATTERNS: usize = 200;
const MAX_PATTERN_BYTES: usize = 500;
/// Maximum size of all patterns of a trigger in bytes.
const MAX_TOTAL_BYTES: usize = 8 << 10;
/// Maximum number of steps to match the files of an event, some 50 ms.
const MAX_STEPS: u64 = 10_000_000;

/// A reason with the correction.
type Problem = (String, String);

/// Checks the size of all patterns of a trigger. Call it before the patterns are parsed.
pub(super) fn check_total(lists: &[&[String]]) -> Result<(), RuleError> {
    let total: usize = lists.iter().copied().flatten().map(String::len).sum();
    if total <= MAX_TOTAL_BYTES {
        return Ok(());
    }
    Err(RuleError {
        field: "patterns",
        reason: format!(
            "the patterns of the trigger have {total} bytes; the limit is {MAX_TOTAL_BYTES}"
        ),
        help: "combine some with `*` and `**`".into(),
    })
}

fn parse_glob(pattern: &str) -> Result<Glob, Problem> {
    if pattern.is_empty() || pattern.len() > MAX_PATTERN_BYTES {
        return Err((
            format!("a pattern has 1 to {MAX_PATTERN_BYTES} bytes"),
            "write a name, or a pattern like `release/*`".into(),
        ));
    }
    Glob::new(pattern).map_err(|error| {
        (
            format!("`{}` is not a pattern: {error}", pattern.escape_debug()),
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
    patterns: Vec<(bool, Glob)>,
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
            Ok((includes, parse_glob(bare)?))
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
            .find(|(_, glob)| glob.is_match(name, &mut u64::MAX.clone()) == Some(true));
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
    /// `None` includes all paths.
    include: Option<Vec<Glob>>,
    exclude: Option<Vec<Glob>>,
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

    /// Returns the first path that matches. `Err` if finding it takes too many steps.
    pub(super) fn find<'p>(&self, paths: &[&'p str]) -> Result<Option<&'p str>, TooManySteps> {
        let mut steps = MAX_STEPS;
        for path in paths {
            if self.matches(path, &mut steps).ok_or(TooManySteps)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Returns `None` if too few steps are left.
    fn matches(&self, path: &str, steps: &mut u64) -> Option<bool> {
        let path = path.trim_start_matches('/');
        if let Some(include) = &self.include
            && !matches_any(include, path, steps)?
        {
            return Some(false);
        }
        match &self.exclude {
            Some(exclude) => Some(!matches_any(exclude, path, steps)?),
            None => Some(true),
        }
    }
}

/// Matching takes more than [`MAX_STEPS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManySteps;

fn matches_any(globs: &[Glob], path: &str, steps: &mut u64) -> Option<bool> {
    for glob in globs {
        if glob.is_match(path, steps)? {
            return Some(true);
        }
    }
    Some(false)
}

impl fmt::Display for PathPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn build_path_set(patterns: &[String]) -> Result<Option<Vec<Glob>>, Problem> {
    if patterns.is_empty() {
        return Ok(None);
    }
    check_count(patterns)?;
    let mut globs = Vec::new();
    for pattern in patterns {
        if pattern.starts_with('!') {
            return Err((
                format!("`{}` begins with `!`", pattern.escape_debug()),
                "write the excluded path into `exclude`".into(),
            ));
        }
        let bare = pattern.strip_prefix("./").unwrap_or(pattern);
        let bare = bare.trim_start_matches('/').trim_end_matches('/');
        globs.push(parse_glob(bare)?);
        // The name of a folder matches everything inside the folder.
        globs.push(parse_glob(&format!("{bare}/**"))?);
        // A name may contain the characters of a class: `web/app/[slug]/page.tsx`.
        if bare.contains('[') {
            let name = bare.replace('[', "\\[").replace(']', "\\]");
            globs.push(parse_glob(&name)?);
            globs.push(parse_glob(&format!("{name}/**"))?);
        }
    }
    Ok(Some(globs))
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
