//! Marked values and the forms in which the tests search for them.

use std::collections::BTreeSet;

use acrtask_tests::new_run_id;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::Value;

/// Marked value with its searched forms.
pub(crate) struct Canary {
    pub(crate) way: &'static str,
    pub(crate) value: String,
    forms: Vec<(&'static str, String)>,
}

impl Canary {
    pub(crate) fn new(way: &'static str, signs: &str) -> Self {
        Self::from_halves(way, &new_run_id(), signs, &new_run_id())
    }

    /// Creates a canary from two halves. Each half alone counts as a leak.
    pub(crate) fn from_halves(way: &'static str, first: &str, signs: &str, second: &str) -> Self {
        let value = format!("{first}{signs}{second}");
        let mut canary = Self::from_value(way, &value);
        canary.forms.push(("its first half", first.to_owned()));
        canary.forms.push(("its second half", second.to_owned()));
        canary
    }

    /// Creates a canary whose parts may appear elsewhere.
    pub(crate) fn from_value(way: &'static str, value: &str) -> Self {
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        let percent: String = value
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let mut forms = vec![
            ("plain", value.to_owned()),
            ("reversed", value.chars().rev().collect()),
            ("hexadecimal", hex.clone()),
            ("hexadecimal, upper case", hex.to_uppercase()),
            ("percent-encoded", percent),
            (
                "JSON",
                Value::from(value).to_string().trim_matches('"').to_owned(),
            ),
        ];
        for skipped in 0..3 {
            let whole = &value.as_bytes()[skipped..];
            let encoded = STANDARD_NO_PAD.encode(&whole[..whole.len() / 3 * 3]);
            forms.push(("base 64", encoded));
        }
        Self {
            way,
            value: value.to_owned(),
            forms,
        }
    }

    /// Adds an entry to `found` for each form of the canary in `bytes`.
    pub(crate) fn search(&self, location: &str, bytes: &[u8], found: &mut BTreeSet<String>) {
        let text = String::from_utf8_lossy(bytes);
        for (form, needle) in &self.forms {
            if let Some(at) = text.find(needle.as_str()) {
                let from = text[..at]
                    .char_indices()
                    .rev()
                    .nth(60)
                    .map_or(0, |(at, _)| at);
                let before = text[from..at].escape_debug();
                let way = self.way;
                found.insert(format!("{way} in {location}, {form}, behind `{before}`"));
            }
        }
    }
}

pub(crate) fn search_all(
    canaries: &[Canary],
    location: &str,
    bytes: &[u8],
    found: &mut BTreeSet<String>,
) {
    for canary in canaries {
        canary.search(location, bytes, found);
    }
}
