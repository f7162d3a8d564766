//! Expansion of `$(date +FORMAT)`, the only command substitution that a line may contain.

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};

use crate::cmd_line::{Word, WordPart};

/// Returns the output of `date +FORMAT` in UTC, without a line break. An empty format gives that of
/// plain `date`.
///
/// # Errors
///
/// Returns a message if the format is invalid.
pub fn format_date(format: &str, now: Timestamp) -> Result<String, String> {
    let format = format.strip_prefix('+').unwrap_or(format);
    let format = if format.is_empty() {
        "%a %b %e %H:%M:%S UTC %Y"
    } else {
        format
    };
    strtime::format(format, &now.to_zoned(TimeZone::UTC))
        .map_err(|error| format!("date: the format `{format}` cannot be used: {error}"))
}

impl Word {
    /// Replaces the dates in the word by text.
    ///
    /// # Errors
    ///
    /// Same as [`format_date`].
    pub fn with_dates(&self, now: Timestamp) -> Result<Self, String> {
        let parts = self.parts.iter().map(|part| match part {
            WordPart::Date(format) => format_date(format, now).map(WordPart::Text),
            other => Ok(other.clone()),
        });
        Ok(Self {
            parts: parts.collect::<Result<_, _>>()?,
        })
    }
}
