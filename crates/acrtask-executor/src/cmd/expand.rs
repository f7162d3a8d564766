//! Expansion of the words of a line at the time of their use.

use acrtask_spec::cmd_line::{Word, WordPart};
use jiff::Timestamp;

use crate::workspace::HOME;

/// Returns the text of a word. `$(date +FORMAT)` expands to `now` in UTC.
pub(crate) fn expand_word(word: &Word, now: Timestamp) -> Result<String, String> {
    let mut out = String::new();
    for part in &word.parts {
        match part {
            WordPart::Text(text) => out.push_str(text),
            WordPart::Home => out.push_str(HOME),
            WordPart::Date(format) => out.push_str(&format_date(format, now)?),
        }
    }
    Ok(out)
}

/// Returns the texts of several words.
pub(crate) fn expand_words(words: &[Word], now: Timestamp) -> Result<Vec<String>, String> {
    words.iter().map(|word| expand_word(word, now)).collect()
}

/// Returns the output of `date +FORMAT` in UTC, without the line end. An empty format is that of
/// `date` alone.
pub(crate) fn format_date(format: &str, now: Timestamp) -> Result<String, String> {
    acrtask_spec::format_date(format, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_expand_to_text() {
        let now: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        let word = Word {
            parts: vec![
                WordPart::Text("v".into()),
                WordPart::Date("%Y%m%d-%H%M%S".into()),
                WordPart::Home,
            ],
        };
        assert_eq!(
            expand_word(&word, now).unwrap(),
            "v20260304-050607/acb/home"
        );
        assert_eq!(
            format_date("+%s", now).unwrap(),
            now.as_second().to_string()
        );
        assert_eq!(
            format_date("", now).unwrap(),
            "Wed Mar  4 05:06:07 UTC 2026"
        );
        assert!(format_date("+%", now).is_err());
    }
}
