//! Parts of URLs: escaping, and the check of a return address.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters to escape: all but the unreserved ones (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');
/// Characters to escape in a path.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// Escapes a path. Keeps `/`, so that a task name with slashes stays readable.
pub fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, RESERVED_IN_PATH).to_string()
}

/// Escapes a value of a query or of a fragment.
pub fn encode_query(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Returns `true` if `text` is a path on this server: it starts with one `/`.
///
/// Browsers treat `\` like `/` and drop control characters, and proxies resolve `//` and segments
/// of dots, so these are refused in the path.
pub fn is_local_path(text: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let is_dots = |segment: &str| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        matches!(segment.as_str(), "." | "..")
    };
    path.starts_with('/')
        && !path.contains("//")
        && !path.contains('\\')
        && !path.split('/').any(is_dots)
        && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_address_stays_on_the_server() {
        for good in [
            "/",
            "/runs/",
            "/runs?state=failed&task=a%2Fb",
            "/runs?task=//.",
            "/runs/r1#build:L3",
            "/tasks/a.b..c",
        ] {
            assert!(is_local_path(good), "{good}");
        }
        for bad in [
            "",
            "runs",
            "//evil.example",
            "/\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "https://evil.example/",
            "/.//evil.example",
            "/a/..//evil.example/x",
            "/a//evil.example",
            "/./runs",
            "/runs/..",
            "/%2E%2e/evil.example",
            "/a/..\\evil.example",
            "/a b",
            "/é",
        ] {
            assert!(!is_local_path(bad), "{bad}");
        }
    }

    #[test]
    fn reserved_characters_are_escaped() {
        assert_eq!(encode_path("team/a b"), "team/a%20b");
        assert_eq!(encode_query("/runs?a=b&c"), "%2Fruns%3Fa%3Db%26c");
    }
}
