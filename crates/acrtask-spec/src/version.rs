//! The version of a task file. It is searched in the raw text first, because it turns aliases on.
//! The task's key is checked later.

use crate::plan::Version;

/// Returns the value of the first line that starts with `version:` at column 0.
pub(crate) fn find_version(text: &str) -> Option<&str> {
    let quotes = ['\'', '"'];
    text.lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| {
            !key.starts_with(char::is_whitespace) && key.trim().trim_matches(quotes) == "version"
        })
        .map(|(_, value)| value.trim().trim_matches(quotes))
}

/// Returns `true` if a file of this version, compared as text, has aliases.
///
/// An unknown version counts as the one that the author most likely meant.
pub(crate) fn has_aliases(version: &str) -> bool {
    version >= "v1.1.0" || (parse(version).is_none() && guess_version(version) == Version::V1_1_0)
}

/// Parses a version, ignoring case.
pub(crate) fn parse(text: &str) -> Option<Version> {
    Some(match text.to_lowercase().as_str() {
        "1.0-preview-1" => Version::Preview1,
        "v1.0.0" => Version::V1_0_0,
        "v1.1.0" => Version::V1_1_0,
        _ => return None,
    })
}

/// Returns the version that the author most likely meant.
pub(crate) fn guess_version(text: &str) -> Version {
    let number = text.trim_start_matches(['v', 'V']);
    if text.contains("preview") {
        Version::Preview1
    } else if number.starts_with("1.1") {
        Version::V1_1_0
    } else {
        Version::V1_0_0
    }
}

impl Version {
    /// Returns the version as written in a task file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preview1 => "1.0-preview-1",
            Self::V1_0_0 => "v1.0.0",
            Self::V1_1_0 => "v1.1.0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_line_is_found_at_column_0() {
        for (text, expected) in [
            ("version: v1.1.0\n", Some("v1.1.0")),
            ("# c\n\n'version' : \"v1.1.0\"\nsteps:\n", Some("v1.1.0")),
            ("steps:\nversion: a\nversion: b", Some("a")),
            (" version: a\n", None),
            ("versions: a\n", None),
            ("version\n", None),
            ("version: v1.1.0\r\n", Some("v1.1.0")),
        ] {
            assert_eq!(find_version(text), expected, "{text:?}");
        }
        assert!(has_aliases("v1.1.0") && has_aliases("v2") && !has_aliases("V1.1.0"));
        assert!(!has_aliases("v1.0.0") && !has_aliases("1.0-preview-1") && !has_aliases("1.0"));
        assert!(
            has_aliases("1.1.0") && has_aliases("v1.1"),
            "as it was meant"
        );
    }

    #[test]
    fn unknown_versions_are_guessed() {
        for (text, expected) in [
            ("1.0.0", "v1.0.0"),
            ("1.1", "v1.1.0"),
            ("v1.0", "v1.0.0"),
            ("1.0.0-preview", "1.0-preview-1"),
        ] {
            assert_eq!(guess_version(text).as_str(), expected);
        }
    }
}
