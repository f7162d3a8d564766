//! Parts of URLs: escaping, and the check of a return address.

use std::fmt::Write as _;

/// Escapes a path. Keeps `/`, so that a task name with slashes stays readable.
pub fn encode_path(text: &str) -> String {
    encode(text, b"/")
}

/// Escapes a value of a query or of a fragment.
pub fn encode_query(text: &str) -> String {
    encode(text, b"")
}

fn encode(text: &str, kept: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || kept.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
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
