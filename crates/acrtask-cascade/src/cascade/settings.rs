//! Settings for carrying out cascades: limits, deferrals, quiet hours and gates.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, civil::Time};
use serde::{Deserialize, Serialize};

/// Settings for carrying out cascades. Each step reads them; a cascade stores only its gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Time in seconds, from the first change, in which further changes are collected into the
    /// cascade.
    pub settle_secs: u32,
    /// Maximum number of concurrent runs of one cascade; at least 1.
    pub parallel: u32,
    /// Maximum number of concurrent runs of all cascades. `None`: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_total: Option<u32>,
    /// Number of immediate retries of a failed run before its node fails.
    pub retries: u32,
    /// Delay before each of these retries, in seconds.
    pub retry_delay_secs: u32,
    /// Delay in seconds until a failed task is retried automatically. 0 disables these retries.
    ///
    /// The delay doubles with each failure, up to one day.
    pub retry_failed_after_secs: u32,
    /// Priority of the runs in the queue. Runs started by people have 0.
    pub priority: i32,
    /// Maximum number of moves of a node to a following cascade.
    pub max_deferrals: u32,
    /// Daily hours without starts.
    pub quiet_hours: Vec<QuietHours>,
    /// Rules for gates. The rule with the longest matching prefix applies.
    pub rules: Vec<Rule>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle_secs: 30,
            parallel: 4,
            parallel_total: None,
            retries: 1,
            retry_delay_secs: 60,
            retry_failed_after_secs: 3600,
            priority: -5,
            max_deferrals: 3,
            quiet_hours: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// Daily hours without starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuietHours {
    /// Begin of the hours, for example `22:00:00`.
    pub from: Time,
    /// End of the hours. If it is before `from`, the hours include midnight.
    pub to: Time,
    /// Offset of these times from UTC in minutes. The caller computes the current offset of a time
    /// zone.
    #[serde(default)]
    pub offset_minutes: i32,
}

/// Gate for the tasks with a name prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Name or name prefix of the tasks. An empty prefix matches all tasks.
    pub tasks: String,
    /// Gate mode of the tasks.
    pub mode: Mode,
}

/// Gate mode of a [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Mode {
    /// Build without consent.
    #[default]
    Automatic,
    /// Build after a person approved the cascade.
    Approval,
    /// Build after these tasks and everything they wait for succeeded.
    ///
    /// If a cascade contains none of them, build without consent.
    Canary {
        /// Names of the canary tasks.
        first: BTreeSet<String>,
    },
}

impl Settings {
    /// Returns the gate mode of a task.
    pub(crate) fn mode_of(&self, task: &str) -> Mode {
        self.rules
            .iter()
            .filter(|rule| task.starts_with(&rule.tasks))
            .max_by_key(|rule| rule.tasks.len())
            .map_or(Mode::Automatic, |rule| rule.mode.clone())
    }

    /// Returns the delay until a task is retried after `failed` failures in a row. `None`: no
    /// automatic retry.
    pub(crate) fn retry_failed_after(&self, failed: u32) -> Option<SignedDuration> {
        const LONGEST: i64 = 24 * 60 * 60;
        let doubled = failed.saturating_sub(1).min(17);
        let wait = (i64::from(self.retry_failed_after_secs) << doubled)
            .min(LONGEST.max(self.retry_failed_after_secs.into()));
        (wait > 0).then(|| SignedDuration::from_secs(wait))
    }

    /// Returns the end of the quiet hours that contain `now`.
    pub fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = now;
        // Adjacent and overlapping hours are merged. Hours that cover the whole day never end, so
        // the end is about one day later.
        for _ in 0..=self.quiet_hours.len() {
            match self
                .quiet_hours
                .iter()
                .find_map(|quiet| quiet.end_after(end))
            {
                Some(later) => end = later,
                None => break,
            }
        }
        (end > now).then_some(end)
    }
}

impl QuietHours {
    fn end_after(&self, at: Timestamp) -> Option<Timestamp> {
        const DAY: i64 = 24 * 60 * 60;
        let seconds = |time: Time| {
            i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second())
        };
        let local = (at.as_second() + i64::from(self.offset_minutes) * 60).rem_euclid(DAY);
        let into = (local - seconds(self.from)).rem_euclid(DAY);
        let length = (seconds(self.to) - seconds(self.from)).rem_euclid(DAY);
        (into < length).then(|| {
            let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
            whole
                .saturating_add(SignedDuration::from_secs(length - into))
                .unwrap_or(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(from: &str, to: &str, offset_minutes: i32) -> QuietHours {
        QuietHours {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            offset_minutes,
        }
    }

    #[test]
    fn quiet_hours_span_midnight_and_merge() {
        let settings = Settings {
            quiet_hours: vec![quiet("22:00", "06:00", 60), quiet("06:00", "07:30", 60)],
            ..Settings::default()
        };
        let until = |at: &str| {
            let end = settings.quiet_until(at.parse().unwrap());
            end.map(|end| end.to_string())
        };
        assert_eq!(until("2026-11-25T20:59:59Z"), None);
        let end = Some("2026-11-26T06:30:00Z".to_owned());
        assert_eq!(until("2026-11-25T21:00:00Z"), end);
        assert_eq!(until("2026-11-26T04:59:59.5Z"), end);
        assert_eq!(until("2026-11-26T06:30:00Z"), None);
    }

    #[test]
    fn failed_retry_delay_doubles_up_to_one_day() {
        let waits = |retry_failed_after_secs, failed: u32| {
            let settings = Settings {
                retry_failed_after_secs,
                ..Settings::default()
            };
            let wait = settings.retry_failed_after(failed);
            wait.map(|wait| wait.as_secs())
        };
        let hours: Vec<_> = (1..7).map(|failed| waits(3600, failed)).collect();
        let expected = [1, 2, 4, 8, 16, 24].map(|hours| Some(hours * 3600));
        assert_eq!(hours, expected);
        assert_eq!(waits(3600, u32::MAX), Some(24 * 3600));
        assert_eq!(waits(u32::MAX, 9), Some(i64::from(u32::MAX)));
        assert_eq!(waits(0, 1), None);
    }

    #[test]
    fn longest_matching_rule_applies() {
        let rule = |tasks: &str, mode| Rule {
            tasks: tasks.into(),
            mode,
        };
        let settings = Settings {
            rules: vec![
                rule("", Mode::Approval),
                rule("app/", Mode::Automatic),
                rule("app/shop", Mode::Approval),
            ],
            ..Settings::default()
        };
        assert_eq!(settings.mode_of("x"), Mode::Approval);
        assert_eq!(settings.mode_of("app/a"), Mode::Automatic);
        assert_eq!(settings.mode_of("app/shop"), Mode::Approval);
    }
}
