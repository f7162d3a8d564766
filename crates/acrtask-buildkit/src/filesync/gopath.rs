//! Rules of Go's `path/filepath` for slash-separated paths that define BuildKit's file patterns:
//! `Clean`, the pattern syntax of `Match`, and `Match` itself.
//!
//! Source: documentation of `path/filepath`. Left out: Windows.

/// Error for a malformed pattern, or for too many patterns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} {pattern:?}")]
pub struct BadPattern {
    /// Original pattern.
    pub pattern: String,
    /// Description of the problem, before the pattern.
    reason: &'static str,
}

impl BadPattern {
    pub(crate) fn new(pattern: &str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            reason: "syntax error in pattern",
        }
    }

    /// Returns the error for a list of patterns that is too long, or too large, at this one.
    pub(crate) fn too_many(pattern: &str) -> Self {
        Self {
            pattern: pattern.chars().take(60).collect(),
            reason: "the patterns are too many or too large, from this one on:",
        }
    }
}

/// Returns the shortest lexical equivalent of `path`, without `.` and empty elements, and with `..`
/// resolved if possible.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

/// Returns `clean(a/b)`. Ignores an empty element.
pub(crate) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean(&format!("{a}/{b}")),
    }
}

/// Element of a parsed pattern.
#[derive(Debug)]
enum Piece {
    Star,
    Any,
    Char(char),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Reads one possibly escaped character of a class. At least one more character must follow.
fn class_char(chars: &[char], at: &mut usize) -> Option<char> {
    match chars.get(*at)? {
        '-' | ']' => return None,
        '\\' => *at += 1,
        _ => {}
    }
    let c = *chars.get(*at)?;
    *at += 1;
    (*at < chars.len()).then_some(c)
}

fn parse(pattern: &str) -> Result<Vec<Piece>, BadPattern> {
    let chars: Vec<char> = pattern.chars().collect();
    let bad = || BadPattern::new(pattern);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        pieces.push(match c {
            '*' => Piece::Star,
            '?' => Piece::Any,
            '\\' => {
                let c = *chars.get(at).ok_or_else(bad)?;
                at += 1;
                Piece::Char(c)
            }
            '[' => {
                let negated = chars.get(at) == Some(&'^');
                if negated {
                    at += 1;
                }
                let mut ranges = Vec::new();
                loop {
                    if chars.get(at) == Some(&']') && !ranges.is_empty() {
                        at += 1;
                        break;
                    }
                    let low = class_char(&chars, &mut at).ok_or_else(bad)?;
                    let high = if chars.get(at) == Some(&'-') {
                        at += 1;
                        class_char(&chars, &mut at).ok_or_else(bad)?
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                Piece::Class { negated, ranges }
            }
            c => Piece::Char(c),
        });
    }
    Ok(pieces)
}

/// Checks that `Match` accepts the pattern.
pub(crate) fn check(pattern: &str) -> Result<(), BadPattern> {
    parse(pattern).map(drop)
}

/// Returns `true` if the complete `name` matches. `*` and `?` never match a slash. The time is
/// linear in the length times the number of stars.
pub(crate) fn matches(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let pieces = parse(pattern)?;
    let name: Vec<char> = name.chars().collect();
    let one = |piece: &Piece, c: char| match piece {
        Piece::Star => false,
        Piece::Any => c != '/',
        Piece::Char(want) => c == *want,
        Piece::Class { negated, ranges } => {
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
        }
    };
    let (mut p, mut n) = (0, 0);
    // Last star, and the number of characters it matches. This suffices for backtracking, because a
    // later star can match everything that an earlier one could.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pieces.get(p) {
            Some(Piece::Star) => {
                star = Some((p, n));
                p += 1;
            }
            Some(piece) if one(piece, name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) if name[taken] != '/' => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                _ => return Ok(false),
            },
        }
    }
    Ok(pieces[p..].iter().all(|piece| matches!(piece, Piece::Star)))
}

/// Returns `true` if the name contains an unescaped wildcard.
pub(crate) fn has_wildcard(name: &str) -> bool {
    let mut chars = name.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clean_returns_the_shortest_equivalent() {
        for (path, want) in [
            ("", "."),
            (".", "."),
            ("a/../..", ".."),
            ("a//b/./c/", "a/b/c"),
            ("/..", "/"),
            ("/a/../b", "/b"),
            ("../../x", "../../x"),
            ("**/", "**"),
            ("./a", "a"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
    }

    #[test]
    fn matches_agrees_with_go() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[b-d]", "abc", true),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a?b", "a☺b", true),
            ("a[^a][^a][^a]b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("*x", "xxx", true),
            ("a*", "a", true),
        ] {
            assert_eq!(matches(pattern, name), Ok(want), "{pattern} on {name}");
        }
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "\\", "[a-b-c]", "[", "[^", "[^bc", "a[",
        ] {
            assert_eq!(check(pattern), Err(BadPattern::new(pattern)));
        }
    }
}
