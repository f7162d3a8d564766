//! Ages of `--ago`: days, then a duration as Go writes it: `30d`, `2d3h6m`, `1h15m`.

use jiff::Timestamp;

/// Maximum age, in seconds: 150 years of 365 days.
const MAX_SECONDS: i64 = 150 * 365 * 24 * 3600;

/// Warning for an age that is longer than the maximum.
pub const CAPPED: &str =
    "Warning: ago value exceeds maximum duration of 150 years, capping to 150 years";

/// Minimum age of what a purge deletes. A negative age includes everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ago {
    /// Age in seconds.
    pub seconds: i64,
    /// `true` if the text named a longer age than 150 years.
    pub is_capped: bool,
}

impl Ago {
    /// Parses an age.
    ///
    /// # Errors
    /// The message of the original program. In addition, text before `d` that is not a number is an
    /// error; the original reads it as no days, which deletes everything.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (days, duration) = match text.split_once('d') {
            Some((days, duration)) => {
                let days: i64 = days
                    .trim()
                    .parse()
                    .map_err(|_| format!("time: invalid duration {text:?}"))?;
                (days, duration)
            }
            None => (0, text),
        };
        let rest = match (duration, text.contains('d')) {
            ("", true) => 0.0,
            _ => parse_go_duration(duration)?,
        };
        // A cast of a float saturates.
        let rest = rest as i64;
        let seconds = days.saturating_mul(24 * 3600).saturating_add(rest);
        Ok(Self {
            seconds: seconds.clamp(-MAX_SECONDS, MAX_SECONDS),
            is_capped: seconds > MAX_SECONDS,
        })
    }

    /// Returns the time at which something of this age was last changed.
    pub fn cutoff(self, now: Timestamp) -> Timestamp {
        let seconds = now.as_second().saturating_sub(self.seconds);
        Timestamp::from_second(seconds).unwrap_or(if self.seconds < 0 {
            Timestamp::MAX
        } else {
            Timestamp::MIN
        })
    }
}

/// Parses a duration as Go's `time.ParseDuration` does. Returns seconds.
fn parse_go_duration(text: &str) -> Result<f64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        if !number.contains(|c: char| c.is_ascii_digit()) {
            return Err(invalid());
        }
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let end = behind.find(is_number).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let scale = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        total += number * scale;
        rest = behind;
    }
    Ok(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_parsed_as_by_the_original() {
        const DAY: i64 = 24 * 3600;
        for (text, seconds) in [
            ("0d", 0),
            ("1d", DAY),
            ("30d", 30 * DAY),
            ("2d3h6m", 2 * DAY + 3 * 3600 + 6 * 60),
            ("1h15m", 3600 + 15 * 60),
            ("15m", 15 * 60),
            ("10s", 10),
            ("1.5h", 5400),
            ("-1d", -DAY),
            ("0", 0),
            ("15m1h", 3600 + 15 * 60),
            ("54750d", MAX_SECONDS),
        ] {
            let found = Ago::parse(text);
            let expected = Ago {
                seconds,
                is_capped: false,
            };
            assert_eq!(found, Ok(expected), "{text}");
        }
        let capped = Ago {
            seconds: MAX_SECONDS,
            is_capped: true,
        };
        assert_eq!(Ago::parse("999999d"), Ok(capped));
        assert_eq!(Ago::parse("9999999999999999h"), Ok(capped));
    }

    #[test]
    fn invalid_ages_have_the_messages_of_the_original() {
        for (text, message) in [
            ("15p", "time: unknown unit \"p\" in duration \"15p\""),
            ("90", "time: missing unit in duration \"90\""),
            ("", "time: invalid duration \"\""),
            ("15", "time: missing unit in duration \"15\""),
            ("1d2", "time: missing unit in duration \"2\""),
            ("xd", "time: invalid duration \"xd\""),
            ("d", "time: invalid duration \"d\""),
            (".h", "time: invalid duration \".h\""),
        ] {
            assert_eq!(Ago::parse(text), Err(message.into()), "{text}");
        }
    }

    #[test]
    fn cutoff_is_the_age_before_now() {
        let now: Timestamp = "2026-11-30T00:00:00Z".parse().unwrap();
        let cutoff = |text| Ago::parse(text).unwrap().cutoff(now).to_string();
        assert_eq!(cutoff("30d"), "2026-10-31T00:00:00Z");
        assert_eq!(cutoff("-1d"), "2026-12-01T00:00:00Z");
        assert!(cutoff("999999d").as_str() < "1900");
    }
}
