//! Times and durations for people. Without script the reader's time zone is not available, so times
//! are relative, with the absolute time in UTC as their title.

use std::fmt;

use jiff::Timestamp;

/// A point in time, as seen from the time of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    at: Timestamp,
    now: Timestamp,
}

impl Moment {
    /// Creates the view of `at` at the time `now`.
    pub fn new(at: Timestamp, now: Timestamp) -> Self {
        Self { at, now }
    }
}

impl Moment {
    /// Returns the absolute time in UTC.
    pub fn absolute(&self) -> String {
        self.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absolute = self.absolute();
        let machine = self.at.strftime("%Y-%m-%dT%H:%M:%SZ");
        let seconds = self.now.as_second() - self.at.as_second();
        let age = format_age(seconds.unsigned_abs());
        write!(f, "<time datetime=\"{machine}\" title=\"{absolute}\">")?;
        if seconds >= 0 {
            write!(f, "{age} ago</time>")
        } else {
            write!(f, "in {age}</time>")
        }
    }
}

impl askama::filters::HtmlSafe for Moment {}

fn format_age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Formats a duration in milliseconds: `0.5 s`, `3 min 20 s`, `1 h 2 min`.
pub fn format_duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{} s", ms % 1000 / 100),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moment_is_relative_with_the_absolute_time_as_title() {
        let at: Timestamp = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let now: Timestamp = "2026-01-02T03:09:06Z".parse().unwrap();
        assert_eq!(
            Moment::new(at, now).to_string(),
            "<time datetime=\"2026-01-02T03:04:05Z\" title=\"2026-01-02 03:04:05 UTC\">5 min ago</time>"
        );
        assert!(Moment::new(now, at).to_string().contains(">in 5 min<"));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (ms, text) in [
            (0, "0.0 s"),
            (12_345, "12.3 s"),
            (200_000, "3 min 20 s"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(format_duration(ms), text);
        }
    }
}
