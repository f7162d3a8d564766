//! When a timer ticks, and what is due.
//!
//! A timer's schedule is five fields of cron on the clock of a time zone. Where that clock jumps:
//! a time that it leaves out ticks at the first instant after the gap; a time that it has twice ticks once, the first
//! time; times that so come to the same instant are one tick. A timer in UTC knows none of this.
//!
//! A tick is named by its *scheduled* instant, and (task, timer, scheduled instant) is what makes it happen once.
//! [`Schedule::ticks`] gives the same instants whichever way the time is cut into intervals. Jitter moves the start,
//! never the name: it is the same for a timer always, and changing it makes no tick twice.
//!
//! The fields are read as ACR Tasks reads them, by NCrontab's rules: where both the day of the month and
//! the day of the week are restricted, both must match.
//!
//! Time zones come from the data in the program, not from the machine, so that all servers agree.

mod due;
mod ncrontab;
mod windows_zones;
mod zones;

use acrtask_api::task::{MissedTicks, Timer};
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

pub use due::{Due, MOST_COUNTED, Missed, ON_TIME};

/// The longest jitter.
const LONGEST_JITTER: SignedDuration = SignedDuration::from_hours(24);

const LONGEST_SCHEDULE: usize = 500;

/// A mistake in a timer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {help}")]
pub struct TimerError {
    /// Where it is: `schedule`, `timezone` or `jitter`.
    pub field: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub help: String,
}

/// A timer that was read.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    restricts_both_days: bool,
    zone: TimeZone,
    offset: SignedDuration,
    missed: MissedTicks,
    enabled: bool,
}

impl Schedule {
    /// Reads the timer `name` of a task. `task` is what stays the same when the task is renamed.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn new(task: &str, name: &str, timer: &Timer) -> Result<Self, Vec<TimerError>> {
        let mut errors = Vec::new();
        let cron = cron(&timer.schedule).map_err(|error| errors.push(error));
        let zone = zone(timer.timezone.as_deref()).map_err(|error| errors.push(error));
        let jitter = jitter(timer.jitter.as_deref()).map_err(|error| errors.push(error));
        match (cron, zone, jitter) {
            (Ok((cron, restricts_both_days)), Ok(zone), Ok(jitter)) => Ok(Self {
                cron,
                restricts_both_days,
                zone,
                offset: part_of(jitter, task, name),
                missed: timer.missed,
                enabled: timer.enabled,
            }),
            _ => Err(errors),
        }
    }

    /// Returns a remark on the schedule. `None` if it reads the same in every dialect of cron.
    pub fn remark(&self) -> Option<&'static str> {
        self.restricts_both_days.then_some(
            "both the day of the month and the day of the week must match; for days that match \
             either, write two timers",
        )
    }

    /// The first tick after `after`. A timer that is off has none.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.enabled.then(|| self.iter(after).next()).flatten()
    }

    /// The ticks after `after` and not after `until`, oldest first, `limit` at most. A timer that is off has none.
    pub fn ticks(&self, after: Timestamp, until: Timestamp, limit: usize) -> Vec<Timestamp> {
        if !self.enabled {
            return Vec::new();
        }
        self.iter(after)
            .take_while(|tick| *tick <= until)
            .take(limit)
            .collect()
    }

    /// When the run of a tick starts: later by the timer's part of its jitter.
    pub fn starts_at(&self, tick: Timestamp) -> Timestamp {
        tick.checked_add(self.offset).unwrap_or(Timestamp::MAX)
    }

    fn iter(&self, after: Timestamp) -> impl Iterator<Item = Timestamp> {
        // The instants of later times on the clock are never earlier, so what comes after the clock's time at
        // `after` is all; some of it can be `after` itself or before it, where the clock was put back.
        let mut clock = Some(self.zone.to_datetime(after));
        let mut last = after;
        std::iter::from_fn(move || {
            loop {
                let time = self.cron.find_next_occurrence(&clock?, false).ok();
                clock = time;
                let tick = instant(&self.zone, time?)?;
                if tick > last {
                    last = tick;
                    return Some(tick);
                }
            }
        })
    }
}

/// The instant at which a clock shows `time`: the first of two, and of none the one at which the clock jumps.
fn instant(zone: &TimeZone, time: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(time);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { after, .. } => {
            // By the clock as it is after the jump, the time is just before the jump.
            let before = after.to_timestamp(time).ok()?;
            let jump = zone.following(before).next()?;
            Some(jump.timestamp())
        }
        _ => ambiguous.earlier().ok(),
    }
}

/// Reads a schedule. The flag is true if both fields of days are restricted.
fn cron(text: &str) -> Result<(Cron, bool), TimerError> {
    const HELP: &str = "write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`";
    let error = |reason, rewrite: Option<String>| TimerError {
        field: "schedule",
        reason,
        help: rewrite.map_or_else(|| HELP.to_owned(), |rewrite| format!("write `{rewrite}`")),
    };
    if text.len() > LONGEST_SCHEDULE {
        let reason = format!("it has more than {LONGEST_SCHEDULE} bytes");
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
        .map_err(|problem| error(words(&problem), None))?;
    cron.find_next_occurrence(&jiff::civil::date(2000, 1, 1).at(0, 0, 0, 0), true)
        .map_err(|_| error("it never happens: no month has such a day".into(), None))?;
    Ok((cron, read.restricts_both_days))
}

/// What the reader of cron says, for the middle of a sentence.
fn words(problem: &CronError) -> String {
    let text = problem.to_string();
    let text = text
        .split_once(": ")
        .map_or(text.as_str(), |(_, text)| text);
    let text = text.trim_end_matches('.');
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}

fn zone(name: Option<&str>) -> Result<TimeZone, TimerError> {
    let Some(name) = name else {
        return Ok(TimeZone::UTC);
    };
    zones::find_zone(name).ok_or_else(|| TimerError {
        field: "timezone",
        reason: format!("`{}` is not a time zone", name.escape_debug()),
        help: zones::suggest_zone(name),
    })
}

fn jitter(text: Option<&str>) -> Result<SignedDuration, TimerError> {
    let Some(text) = text else {
        return Ok(SignedDuration::ZERO);
    };
    let read: Option<SignedDuration> = text.parse().ok();
    read.filter(|jitter| (SignedDuration::ZERO..=LONGEST_JITTER).contains(jitter))
        .ok_or_else(|| TimerError {
            field: "jitter",
            reason: format!(
                "`{}` is not a time from nothing to a day",
                text.escape_debug()
            ),
            help: "write `90s`, `5m` or `1h30m`".into(),
        })
}

/// The timer's part of its jitter, in whole seconds: from the names alone, so that all servers agree.
fn part_of(jitter: SignedDuration, task: &str, name: &str) -> SignedDuration {
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
