//! Words of a line, whose value is known only when they are used.

use acrtask_spec::cmd_line::{Word, WordPart};
use jiff::Timestamp;

use crate::workspace::HOME;

/// The text of a word. `$(date +FORMAT)` is `now` in UTC.
pub(crate) fn expand(word: &Word, now: Timestamp) -> Result<String, String> {
    let mut out = String::new();
    for part in &word.parts {
        match part {
            WordPart::Text(text) => out.push_str(text),
            WordPart::Home => out.push_str(HOME),
            WordPart::Date(format) => out.push_str(&date(format, now)?),
        }
    }
    Ok(out)
}

/// The text of several words.
pub(crate) fn expand_all(words: &[Word], now: Timestamp) -> Result<Vec<String>, String> {
    words.iter().map(|word| expand(word, now)).collect()
}

/// What `date +FORMAT` prints in UTC, without the line end. No format: as `date` alone.
pub(crate) fn date(format: &str, now: Timestamp) -> Result<String, String> {
    acrtask_spec::format_date(format, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands() {
        let now: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        let word = Word {
            parts: vec![
                WordPart::Text("v".into()),
                WordPart::Date("%Y%m%d-%H%M%S".into()),
                WordPart::Home,
            ],
        };
        assert_eq!(expand(&word, now).unwrap(), "v20260304-050607/acb/home");
        assert_eq!(date("+%s", now).unwrap(), now.as_second().to_string());
        assert_eq!(date("", now).unwrap(), "Wed Mar  4 05:06:07 UTC 2026");
        assert!(date("+%", now).is_err());
    }
}
