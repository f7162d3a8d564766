//! `$(date +FORMAT)`, the one command that a line may substitute.

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};

use crate::cmd_line::{Word, WordPart};

/// Returns what `date +FORMAT` prints in UTC, without the line end. No format: as `date` alone.
///
/// # Errors
///
/// The format cannot be used.
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
    /// Writes the dates of the word out.
    ///
    /// # Errors
    ///
    /// As [`format_date`].
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
