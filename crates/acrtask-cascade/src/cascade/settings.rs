//! How cascades are carried out: limits, patience, quiet hours, and who has to agree.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, civil::Time};
use serde::{Deserialize, Serialize};

/// How cascades are carried out. Read at each step; nothing of it is kept in a cascade but the gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Changes within so many seconds of the first make one cascade.
    pub settle_secs: u32,
    /// Runs of one cascade side by side; at least 1.
    pub parallel: u32,
    /// Runs of all cascades side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_total: Option<u32>,
    /// How often a failed run is tried again before its node has failed.
    pub retries: u32,
    /// The wait before each of these, in seconds.
    pub retry_delay_secs: u32,
    /// A task that has failed for good is tried again by itself after so many seconds, then after twice as many, and so on;
    /// at most a day. 0: never.
    pub heal_secs: u32,
    /// Of the runs, beside those that people start (0).
    pub priority: i32,
    /// How often a node may be moved to a cascade that follows.
    pub patience: u32,
    /// When nothing is started.
    pub quiet: Vec<QuietHours>,
    /// Who has to agree first. The longest that fits a task holds.
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
            heal_secs: 3600,
            priority: -5,
            patience: 3,
            quiet: Vec::new(),
            rules: Vec::new(),
        }
    }
}

/// Hours in which nothing is started, each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuietHours {
    /// Their begin, like `22:00:00`.
    pub from: Time,
    /// Their end; before `from` where midnight is between.
    pub to: Time,
    /// Minutes that the clock of these times is ahead of UTC. Whoever knows the time zone gives the offset of now.
    #[serde(default)]
    pub offset_minutes: i32,
}

/// Who has to agree before a task is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// A task's name, or what names begin with. Empty: all.
    pub tasks: String,
    /// Who.
    pub mode: Mode,
}

/// See [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Mode {
    /// Nobody.
    #[default]
    Automatic,
    /// A person, once for each cascade.
    Approval,
    /// These tasks, by succeeding first, with all that they wait for. Where none of them is in a cascade, nobody.
    Canary {
        /// Their names.
        first: BTreeSet<String>,
    },
}

impl Settings {
    /// The mode of a task.
    pub(crate) fn mode(&self, task: &str) -> Mode {
        self.rules
            .iter()
            .filter(|rule| task.starts_with(&rule.tasks))
            .max_by_key(|rule| rule.tasks.len())
            .map_or(Mode::Automatic, |rule| rule.mode.clone())
    }

    /// How long after its failure number `failed` in a row a task is tried again.
    pub(crate) fn heal_after(&self, failed: u32) -> Option<SignedDuration> {
        const LONGEST: i64 = 24 * 60 * 60;
        let doubled = failed.saturating_sub(1).min(17);
        let wait = (i64::from(self.heal_secs) << doubled).min(LONGEST.max(self.heal_secs.into()));
        (wait > 0).then(|| SignedDuration::from_secs(wait))
    }

    /// The end of the quiet hours that `now` is in.
    pub fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = now;
        // Hours that touch or overlap are one; hours that fill the day end never, which a day from now stands for.
        for _ in 0..=self.quiet.len() {
            match self.quiet.iter().find_map(|quiet| quiet.until(end)) {
                Some(later) => end = later,
                None => break,
            }
        }
        (end > now).then_some(end)
    }
}

impl QuietHours {
    fn until(&self, at: Timestamp) -> Option<Timestamp> {
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
    fn quiet_hours_go_over_midnight_and_join() {
        let settings = Settings {
            quiet: vec![quiet("22:00", "06:00", 60), quiet("06:00", "07:30", 60)],
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
    fn what_failed_is_tried_again_later_and_later() {
        let waits = |heal_secs, failed: u32| {
            let settings = Settings {
                heal_secs,
                ..Settings::default()
            };
            let wait = settings.heal_after(failed);
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
    fn the_longest_rule_holds() {
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
        assert_eq!(settings.mode("x"), Mode::Approval);
        assert_eq!(settings.mode("app/a"), Mode::Automatic);
        assert_eq!(settings.mode("app/shop"), Mode::Approval);
    }
}
