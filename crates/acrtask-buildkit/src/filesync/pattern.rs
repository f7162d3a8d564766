//! Pattern language of `.dockerignore`, and of BuildKit's include and exclude patterns.
//!
//! The language differs from gitignore's. Patterns are anchored at the root. `**` crosses folders.
//! The last matching pattern wins. `!` re-includes even below an excluded folder. A pattern that
//! matches a folder also matches its content.
//!
//! Invariant: for each pattern and path, the result is that of moby/patternmatcher. The tests here
//! are its test tables. The implementation uses the same steps, because the results depend on them.
//! It first translates a pattern to a regular expression of Go's dialect, including its oddities.
//! Left out: Windows separators.

use regex::{Regex, RegexBuilder};

use super::gopath::{self, BadPattern};

/// Maximum number of patterns.
const MAX_PATTERNS: usize = 10_000;
/// Maximum size of one compiled expression and of the cache of its automaton, in bytes.
const MAX_COMPILED: usize = 256 << 10;
/// Maximum estimated size of all expressions: characters, where a Unicode class counts as
/// [`CLASS_SIZE`], plus [`REGEX_SIZE`] for each expression.
const MAX_SIZE: usize = 1_000_000;
/// Estimated size of a Unicode class, `\pL`.
const CLASS_SIZE: usize = 300;
/// Estimated size of the smallest expression.
const REGEX_SIZE: usize = 100;

/// Ordered list of patterns.
#[derive(Debug, Clone, Default)]
pub struct PatternSet {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
    /// Estimated size of all expressions.
    size: usize,
}

/// Compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    text: String,
    /// `true` if the pattern began with `!`.
    pub(crate) exception: bool,
    test: Test,
}

/// Cheapest test that decides a pattern.
#[derive(Debug, Clone)]
enum Test {
    Exact,
    Prefix,
    Suffix,
    Regex(Regex),
}

/// Result of each pattern for a folder. It is computed once, and then used for all entries of the
/// folder.
#[derive(Debug, Clone, Default)]
pub(crate) struct FolderMatch(Vec<bool>);

impl PatternSet {
    /// Compiles the patterns. Skips empty ones. The author of a build chooses the patterns, so their
    /// number and their size are limited. Compiling takes at most some seconds.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, BadPattern> {
        let mut set = Self::default();
        for given in patterns {
            let trimmed = given.as_ref().trim();
            if trimmed.is_empty() {
                continue;
            }
            let cleaned = gopath::clean(trimmed);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(BadPattern::new(given.as_ref())),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            gopath::check(&text)?;
            let translated = translate(&text);
            set.size += estimated_size(&translated);
            if set.patterns.len() >= MAX_PATTERNS || set.size > MAX_SIZE {
                return Err(BadPattern::too_many(given.as_ref()));
            }
            let test = compile(&text, translated)?;
            set.has_exceptions |= exception;
            set.patterns.push(Pattern {
                text,
                exception,
                test,
            });
        }
        Ok(set)
    }

    /// Compiles the lines of a `.dockerignore`, without its comments. A leading slash means the
    /// root, which every pattern is relative to anyway.
    pub fn from_ignore_file(text: &str) -> Result<Self, BadPattern> {
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        Self::new(lines.filter(|line| !line.starts_with('#')).map(|line| {
            let (not, pattern) = match line.trim().strip_prefix('!') {
                Some(pattern) => ("!", pattern.trim()),
                None => ("", line.trim()),
            };
            format!("{not}{}", pattern.trim_start_matches('/'))
        }))
    }

    /// Adds patterns before the others. The others take precedence.
    pub fn with_preceding<S: AsRef<str>>(
        self,
        patterns: impl IntoIterator<Item = S>,
    ) -> Result<Self, BadPattern> {
        let mut set = Self::new(patterns)?;
        set.patterns.extend(self.patterns);
        set.size += self.size;
        set.has_exceptions |= self.has_exceptions;
        Ok(set)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Returns `true` if a pattern re-includes matches of another one.
    pub fn has_exceptions(&self) -> bool {
        self.has_exceptions
    }

    pub(crate) fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Returns `true` if the slash-separated path, or a folder above it, matches.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_in(path, None).0
    }

    /// Matches a path with the result of [`Self::matches_in`] for its folder, so that it need not
    /// match the parents again.
    pub(crate) fn matches_in(
        &self,
        path: &str,
        folder: Option<&FolderMatch>,
    ) -> (bool, FolderMatch) {
        let mut matched = false;
        let mut each = vec![false; self.patterns.len()];
        for (i, pattern) in self.patterns.iter().enumerate() {
            let mut hit = folder.is_some_and(|folder| folder.0[i]);
            if !hit {
                // An exception can only remove a match, and a plain pattern can only add one.
                if pattern.exception != matched {
                    continue;
                }
                hit = pattern.is_match(path)
                    || (folder.is_none() && parents(path).any(|parent| pattern.is_match(parent)));
            }
            each[i] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, FolderMatch(each))
    }
}

/// Returns the parents of a path: `a`, `a/b` for `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

impl Pattern {
    fn is_match(&self, path: &str) -> bool {
        match &self.test {
            Test::Exact => path == self.text,
            Test::Prefix => path.starts_with(&self.text[..self.text.len() - 2]),
            Test::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix('/').is_some_and(|rest| rest == path)
            }
            Test::Regex(regex) => regex.is_match(path),
        }
    }

    /// Returns the pattern without a final `/**` and then without a final `/*`: the folder that it
    /// concerns.
    pub(crate) fn folder_text(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    /// Returns `true` if the folder part is a plain path, which can be compared with paths.
    pub(crate) fn folder_is_plain(&self) -> bool {
        !self.folder_text().contains(['*', '[', ']', '?', '^', '\\'])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Regex,
}

/// Returns the kind of test for a cleaned pattern, and its regular expression in Go's dialect.
fn translate(pattern: &str) -> (Kind, String) {
    let mut regex = String::from("^");
    let mut kind = Kind::Exact;
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                // `**/` is equivalent to `**`.
                if chars.peek() == Some(&'/') {
                    chars.next();
                }
                if chars.peek().is_some() {
                    regex.push_str("(.*/)?");
                    kind = Kind::Regex;
                } else if kind == Kind::Exact {
                    kind = Kind::Prefix;
                } else {
                    regex.push_str(".*");
                    kind = Kind::Regex;
                }
                if first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                kind = Kind::Regex;
            }
            '?' => {
                regex.push_str("[^/]");
                kind = Kind::Regex;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                regex.push('\\');
                regex.push(c);
            }
            '\\' => {
                regex.push('\\');
                if let Some(next) = chars.next() {
                    regex.push(next);
                    kind = Kind::Regex;
                }
            }
            '[' | ']' => {
                regex.push(c);
                kind = Kind::Regex;
            }
            c => regex.push(c),
        }
        first = false;
    }
    if kind == Kind::Regex {
        regex.push('$');
    }
    (kind, regex)
}

/// Estimates the size of a compiled expression.
fn estimated_size((kind, regex): &(Kind, String)) -> usize {
    if *kind != Kind::Regex {
        return 0;
    }
    let classes = regex.matches("\\p").count() + regex.matches("\\P").count();
    REGEX_SIZE + regex.len() + classes * CLASS_SIZE
}

fn compile(pattern: &str, translated: (Kind, String)) -> Result<Test, BadPattern> {
    Ok(match translated {
        (Kind::Exact, _) => Test::Exact,
        (Kind::Prefix, _) => Test::Prefix,
        (Kind::Suffix, _) => Test::Suffix,
        (Kind::Regex, go) => {
            let rust = from_go_dialect(&go).ok_or_else(|| BadPattern::new(pattern))?;
            let built = RegexBuilder::new(&rust)
                .size_limit(MAX_COMPILED)
                .dfa_size_limit(MAX_COMPILED)
                .build();
            Test::Regex(built.map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => BadPattern::too_many(pattern),
                _ => BadPattern::new(pattern),
            })?)
        }
    })
}

/// Translates an expression of Go's dialect to that of the `regex` crate. They differ inside
/// classes (where `[`, `&&`, `~~` have a special meaning in the crate) and in some escapes. `None`
/// for an escape without an equivalent.
fn from_go_dialect(go: &str) -> Option<String> {
    let mut out = String::with_capacity(go.len() + 8);
    let mut chars = go.chars().peekable();
    let mut in_class = false;
    let mut class_is_empty = false;
    while let Some(c) = chars.next() {
        if c == '\\' {
            let next = chars.next()?;
            match next {
                'd' => out.push_str(if in_class { "0-9" } else { "[0-9]" }),
                'w' => out.push_str(if in_class {
                    "0-9A-Za-z_"
                } else {
                    "[0-9A-Za-z_]"
                }),
                's' => out.push_str(if in_class {
                    "\\t\\n\\f\\r "
                } else {
                    "[\\t\\n\\f\\r ]"
                }),
                // The crate allows a class inside of a class.
                'D' => out.push_str("[^0-9]"),
                'W' => out.push_str("[^0-9A-Za-z_]"),
                'S' => out.push_str("[^\\t\\n\\f\\r ]"),
                'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'p' | 'P' => {
                    out.push('\\');
                    out.push(next);
                }
                'A' | 'z' | 'b' | 'B' if !in_class => {
                    out.push('\\');
                    out.push(next);
                }
                'Q' if !in_class => {
                    let rest: String = chars.collect();
                    let (quoted, after) = rest.split_once("\\E").unwrap_or((&rest, ""));
                    out.push_str(&regex::escape(quoted));
                    out.push_str(&from_go_dialect(after)?);
                    return Some(out);
                }
                next if next.is_ascii_alphanumeric() => return None,
                next if next.is_ascii_punctuation() && next != '<' && next != '>' => {
                    out.push('\\');
                    out.push(next);
                }
                next => out.push(next),
            }
            class_is_empty = false;
            continue;
        }
        if !in_class {
            out.push(c);
            if c == '[' {
                in_class = true;
                class_is_empty = true;
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            continue;
        }
        match c {
            ']' if !class_is_empty => {
                out.push(']');
                in_class = false;
            }
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' | ']' | '&' | '~' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
        class_is_empty = false;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(patterns: &[&str]) -> PatternSet {
        PatternSet::new(patterns).unwrap()
    }

    /// Matches like a walk: folder by folder.
    fn matches_by_walk(set: &PatternSet, path: &str) -> bool {
        let mut folder = None;
        for parent in parents(path) {
            folder = Some(set.matches_in(parent, folder.as_ref()).1);
        }
        set.matches_in(path, folder.as_ref()).0
    }

    #[test]
    fn matches_agrees_with_patternmatcher() {
        for (pattern, path, want) in [
            ("**", "file", true),
            ("**", "file/", true),
            ("**/", "file", true),
            ("**/", "file/", true),
            ("**", "/", true),
            ("**/", "/", true),
            ("**", "dir/file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/file/", true),
            ("dir/**", "dir/dir2/file", true),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/file/", true),
            ("**/dir2/**", "dir/dir2/dir3/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/file", true),
            ("**file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("**/**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc.def", "abcZdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abcdef", false),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("**/foo/bar", "dir/dir2/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a(b)c/def", "a(b)c/xyz", false),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            (
                "dist/*.whl",
                "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl",
                true,
            ),
            ("a\\*b", "a*b", true),
            ("a*", "ab/c", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("a[&~]b", "a&b", true),
            // A Windows path: its escapes are those of Go's expressions, as in Docker.
            ("bin\\Debug", "binDebug", true),
            ("bin\\Debug", "binXebug", true),
            ("bin\\Debug", "bin1ebug", false),
            ("bin\\Debug", "bin/Debug", false),
            ("bin\\Debug", "bin\\Debug", false),
            ("src\\Web", "src-eb", true),
            ("src\\Web", "srcWeb", false),
            ("out\\Qa.b", "outa.b", false),
            ("[\\D]x", "ax", true),
            ("[\\D]x", "1x", false),
            ("a\\x41", "aA", true),
            ("*", "fileutils.go", true),
        ] {
            let set = set(&[pattern]);
            assert_eq!(set.matches(path), want, "{pattern} on {path}");
            assert_eq!(
                matches_by_walk(&set, path),
                want,
                "{pattern} on {path}, folder by folder"
            );
        }
    }

    #[test]
    fn last_match_wins() {
        let wheel = "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl";
        for (patterns, path, want) in [
            (
                &["**", "!util/docker/web"][..],
                "util/docker/web/foo",
                false,
            ),
            (
                &["**", "!util/docker/web", "util/docker/web/foo"],
                "util/docker/web/foo",
                true,
            ),
            (&["**", "!dist/*.whl"], wheel, false),
            (&["!fileutils.go", "*.go"], "fileutils.go", true),
            (&["*.go", "!fileutils.go"], "fileutils.go", false),
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs/", "!docs/README.md"], "docs/README.md", false),
            (&["docs/*", "  !docs/README.md "], "docs/README.md", false),
            (&[], "any/path", false),
        ] {
            let set = set(patterns);
            assert_eq!(set.matches(path), want, "{patterns:?} on {path}");
            assert_eq!(
                matches_by_walk(&set, path),
                want,
                "{patterns:?} on {path}, folder by folder"
            );
        }
    }

    #[test]
    fn new_names_a_bad_pattern() {
        for pattern in [
            "!",
            "[",
            "[]a]",
            "[-x]",
            "\\",
            "a[",
            "[Local-Only]",
            "bin\\Release",
            "a\\Code",
        ] {
            assert_eq!(PatternSet::new([pattern]).unwrap_err().pattern, pattern);
        }
    }

    #[test]
    fn patterns_have_a_number_and_a_size() {
        let start = std::time::Instant::now();
        let refuse = |patterns: Vec<String>| PatternSet::new(patterns).unwrap_err().to_string();
        // Compiled without limits, these took minutes and hundreds of MiB.
        let classes = (0..3000).map(|n| format!("{}{n}*", r"\pL".repeat(40)));
        assert!(refuse(classes.collect()).contains("too many or too large"));
        let names = (0..=MAX_PATTERNS).map(|n| format!("name{n}"));
        assert!(refuse(names.collect()).contains("\"name10000\""));
        assert!(refuse(vec![r"\pL".repeat(1000)]).contains("too many or too large"));
        // Generated lists of ordinary patterns are accepted.
        let usual = (0..2000).map(|n| format!("**/build{n}/*.o"));
        assert_eq!(PatternSet::new(usual).unwrap().patterns.len(), 2000);
        assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }

    #[test]
    fn translate_agrees_with_patternmatcher() {
        for (pattern, kind, regex) in [
            ("*", Kind::Regex, "^[^/]*$"),
            ("a*/b", Kind::Regex, "^a[^/]*/b$"),
            ("**", Kind::Suffix, ""),
            ("**/**", Kind::Regex, "^(.*/)?.*$"),
            ("dir/**", Kind::Prefix, ""),
            ("**/dir", Kind::Suffix, ""),
            ("**/dir2/*", Kind::Regex, "^(.*/)?dir2/[^/]*$"),
            ("**file", Kind::Suffix, ""),
            ("**/**/*.txt", Kind::Regex, "^(.*/)?(.*/)?[^/]*\\.txt$"),
            ("a[b-d]e", Kind::Regex, "^a[b-d]e$"),
            (".*", Kind::Regex, "^\\.[^/]*$"),
            ("abc.def", Kind::Exact, ""),
            ("a.|)$(}+{bc", Kind::Exact, ""),
        ] {
            let (got, text) = translate(pattern);
            assert_eq!(got, kind, "{pattern}");
            if kind == Kind::Regex {
                assert_eq!(text, regex, "{pattern}");
            }
        }
    }

    proptest! {
        /// Without exceptions, matching folder by folder and matching at once agree, and nothing
        /// panics. With exceptions the original differs too: a walk does not test an exception for
        /// a folder that is not excluded.
        #[test]
        fn matching_by_folder_and_at_once_agree(patterns in prop::collection::vec("[a-c*?/.]{1,6}", 0..5), path in "[a-c.]{1,2}(/[a-c.]{1,2}){0,3}") {
            if let Ok(set) = PatternSet::new(&patterns) && !path.split('/').any(|part| part == "." || part == "..") {
                prop_assert_eq!(set.matches(&path), matches_by_walk(&set, &path));
            }
        }
    }
}
