//! Firings of timers: their times, and what is due.
//!
//! A schedule consists of five cron fields and applies to the local time of a time zone:
//! - A local time that the clock skips fires at the first instant after the gap.
//! - A local time that occurs twice fires once, at the first occurrence.
//! - Local times that map to the same instant are one firing.
//!
//! A timer in UTC has none of these cases.
//!
//! A firing is identified by its *scheduled* instant; (task, timer, scheduled instant) makes it
//! unique. [`Schedule::firings`] returns the same instants however time is split into intervals.
//! Jitter delays the start and never changes the identity. The delay of a timer is constant, and a
//! change of it repeats no firing.
//!
//! The fields have the meaning of ACR Tasks, by NCrontab's rules: if both the day of the month and
//! the day of the week are restricted, both must match.
//!
//! Time zones are part of the program, so that all servers agree.

mod days;
mod due;
mod ncrontab;
mod windows_zones;
mod zones;

use acrtask_api::task::{MissedFirings, Timer};
use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone},
};
use sha2::{Digest, Sha256};

pub use due::{Due, MAX_COUNTED, Missed, ON_TIME};

/// Maximum jitter.
const MAX_JITTER: SignedDuration = SignedDuration::from_hours(24);

const MAX_SCHEDULE_BYTES: usize = 500;

/// A mistake in a timer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {help}")]
pub struct TimerError {
    /// Name of the field: `schedule`, `timezone` or `jitter`.
    pub field: &'static str,
    /// The mistake.
    pub reason: String,
    /// The correction.
    pub help: String,
}

/// A parsed timer.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    restricts_both_days: bool,
    zone: TimeZone,
    offset: SignedDuration,
    missed: MissedFirings,
    enabled: bool,
}

impl Schedule {
    /// Parses the timer `name` of a task. `task` is the id, which survives renames of the task.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(task: &str, name: &str, timer: &Timer) -> Result<Self, Vec<TimerError>> {
        let mut errors = Vec::new();
        let cron = parse_cron(&timer.schedule).map_err(|error| errors.push(error));
        let zone = parse_zone(timer.timezone.as_deref()).map_err(|error| errors.push(error));
        let jitter = parse_jitter(timer.jitter.as_deref()).map_err(|error| errors.push(error));
        match (cron, zone, jitter) {
            (Ok((cron, restricts_both_days)), Ok(zone), Ok(jitter)) => Ok(Self {
                cron,
                restricts_both_days,
                zone,
                offset: jitter_share(jitter, task, name),
                missed: timer.missed,
                enabled: timer.enabled,
            }),
            _ => Err(errors),
        }
    }

    /// Returns a remark on the schedule. `None` if every dialect of cron reads it the same way.
    pub fn remark(&self) -> Option<&'static str> {
        self.restricts_both_days.then_some(
            "both the day of the month and the day of the week must match; for days that match \
             either, write two timers",
        )
    }

    /// Returns the first firing after `after`. `None` if the timer is off.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.enabled
            .then(|| self.firings_after(after).next())
            .flatten()
    }

    /// Returns at most `limit` firings after `after` up to and including `until`, oldest first.
    /// Empty if the timer is off.
    pub fn firings(&self, after: Timestamp, until: Timestamp, limit: usize) -> Vec<Timestamp> {
        if !self.enabled {
            return Vec::new();
        }
        self.firings_after(after)
            .take_while(|firing| *firing <= until)
            .take(limit)
            .collect()
    }

    /// Returns the start of the run of a firing, which is delayed by the timer's jitter.
    pub fn starts_at(&self, firing: Timestamp) -> Timestamp {
        firing.checked_add(self.offset).unwrap_or(Timestamp::MAX)
    }

    fn firings_after(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        // Later local times never map to earlier instants, so the search starts at the local time
        // of `after`. After the clock was set back, some results are not after `after`.
        let mut clock = Some(self.zone.to_datetime(after));
        let mut last = after;
        std::iter::from_fn(move || {
            loop {
                let time = self.cron.find_next_occurrence(&clock?, false).ok();
                clock = time;
                let firing = instant_of(&self.zone, time?)?;
                if firing > last {
                    last = firing;
                    return Some(firing);
                }
            }
        })
    }
}

/// Returns the instant of a local time: the first of two, or the end of the gap that skips it.
fn instant_of(zone: &TimeZone, time: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(time);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { after, .. } => {
            // In the offset after the jump, the time is just before the jump.
            let before = after.to_timestamp(time).ok()?;
            let jump = zone.following(before).next()?;
            Some(jump.timestamp())
        }
        _ => ambiguous.earlier().ok(),
    }
}

/// Parses a schedule. The flag is `true` if both day fields are restricted.
fn parse_cron(text: &str) -> Result<(Cron, bool), TimerError> {
    const HELP: &str = "write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`";
    let error = |reason, rewrite: Option<String>| TimerError {
        field: "schedule",
        reason,
        help: rewrite.map_or_else(|| HELP.to_owned(), |rewrite| format!("write `{rewrite}`")),
    };
    if text.len() > MAX_SCHEDULE_BYTES {
        let reason = format!("it has more than {MAX_SCHEDULE_BYTES} bytes");
        return Err(error(reason, None));
    }
    let read =
        ncrontab::normalize(text).map_err(|mistake| error(mistake.reason, mistake.rewrite))?;
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .dom_and_dow(true)
        .build();
    let cron = parser
        .parse(&read.text)
        .map_err(|problem| error(sentence_part(&problem), None))?;
    if !days::has_day(&read.text, &parser) {
        let reason = "the schedule never fires: no month has such a day";
        return Err(error(reason.into(), None));
    }
    Ok((cron, read.restricts_both_days))
}

/// Returns the message of the cron parser for the middle of a sentence.
fn sentence_part(problem: &CronError) -> String {
    let text = problem.to_string();
    let text = text
        .split_once(": ")
        .map_or(text.as_str(), |(_, text)| text);
    let text = text.trim_end_matches('.');
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

fn parse_zone(name: Option<&str>) -> Result<TimeZone, TimerError> {
    let Some(name) = name else {
        return Ok(TimeZone::UTC);
    };
    zones::find_zone(name).ok_or_else(|| TimerError {
        field: "timezone",
        reason: format!("`{}` is not a time zone", name.escape_debug()),
        help: zones::suggest_zone(name),
    })
}

fn parse_jitter(text: Option<&str>) -> Result<SignedDuration, TimerError> {
    let Some(text) = text else {
        return Ok(SignedDuration::ZERO);
    };
    let read: Option<SignedDuration> = text.parse().ok();
    read.filter(|jitter| (SignedDuration::ZERO..=MAX_JITTER).contains(jitter))
        .ok_or_else(|| TimerError {
            field: "jitter",
            reason: format!(
                "`{}` is not a duration from 0 to 24 hours",
                text.escape_debug()
            ),
            help: "write `90s`, `5m` or `1h30m`".into(),
        })
}

/// Returns the delay of a timer in whole seconds, derived from names so that all servers agree.
fn jitter_share(jitter: SignedDuration, task: &str, name: &str) -> SignedDuration {
    let Ok(seconds @ 1..) = u64::try_from(jitter.as_secs()) else {
        return SignedDuration::ZERO;
    };
    let mut hasher = Sha256::new();
    hasher.update((task.len() as u64).to_be_bytes());
    hasher.update(task);
    hasher.update(name);
    let digest = hasher.finalize();
    let (head, _) = digest.split_at(8);
    let number = head
        .iter()
        .fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    SignedDuration::from_secs(i64::try_from(number % seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests;
