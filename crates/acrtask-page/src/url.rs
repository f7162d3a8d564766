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

/// Returns `true` if `text` is a path on this server: it starts with exactly one `/`. Browsers
/// treat `\` like `/` and drop control characters, so these are refused.
pub fn is_local_path(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next() == Some('/')
        && !matches!(chars.next(), Some('/' | '\\'))
        && text.bytes().all(|byte| (0x21..0x7f).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_address_stays_on_the_server() {
        for good in ["/", "/runs?state=failed&task=a%2Fb", "/runs/r1#build:L3"] {
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
