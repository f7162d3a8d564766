//! Decision whether a schedule has a day to fire on, without a search through time.

use croner::{Cron, parser::CronParser};
use jiff::civil::Date;

/// Largest number of days of each month.
const LENGTHS: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// A year for each first weekday, with and without 29 February. Every other year has the calendar
/// of one of them.
const YEARS: [i16; 14] = [
    2000, 2004, 2008, 2012, 2016, 2020, 2024, 2001, 2002, 2003, 2005, 2006, 2009, 2010,
];

/// Returns `true` if a day matches the three day fields of a normalized schedule. `parser` must
/// accept the schedule.
pub(super) fn has_day(schedule: &str, parser: &CronParser) -> bool {
    let fields: Vec<&str> = schedule.split(' ').collect();
    let [_, _, days, months, weekdays] = fields[..] else {
        return false;
    };
    let numbers = |field: &str| -> Option<Vec<u8>> {
        if matches!(field, "*" | "?") {
            return Some(Vec::new());
        }
        field.split(',').map(|item| item.parse().ok()).collect()
    };
    let months = match numbers(months) {
        Some(months) if !months.is_empty() => months,
        _ => (1..=12).collect(),
    };
    let longest = months
        .iter()
        .filter_map(|month| LENGTHS.get(usize::from(month.checked_sub(1)?)))
        .max();
    let longest = *longest.unwrap_or(&0);
    // Each date, also 29 February, has every weekday in some year.
    if let (Some(days), Some(_)) = (numbers(days), numbers(weekdays)) {
        return days.iter().min().is_none_or(|first| *first <= longest);
    }
    let Ok(cron) = parser.parse(&format!("0 0 {days} * {weekdays}")) else {
        return false;
    };
    let mut dates = YEARS.iter().flat_map(|year| {
        months.iter().flat_map(move |month| {
            let month = i8::try_from(*month).unwrap_or(0);
            (1..=31).filter_map(move |day| Date::new(*year, month, day).ok())
        })
    });
    dates.any(|day| matches(&cron, day))
}

fn matches(cron: &Cron, day: Date) -> bool {
    cron.is_time_matching(&day.at(0, 0, 0, 0)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use croner::parser::{Seconds, Year};
    use jiff::{ToSpan as _, civil::date};

    use super::*;

    fn parser() -> CronParser {
        CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .dom_and_dow(true)
            .build()
    }

    #[test]
    fn years_have_all_calendars() {
        let mut kinds: Vec<_> = YEARS
            .iter()
            .map(|year| {
                let first = date(*year, 1, 1);
                (
                    first.weekday().to_monday_zero_offset(),
                    first.in_leap_year(),
                )
            })
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 14);
    }

    /// Compares the decision with all days of 28 years, which contain every calendar.
    #[test]
    fn decision_equals_a_search() {
        for days in [
            "*", "29", "30", "31", "1", "30,31", "L", "31W", "15W", "1,30W",
        ] {
            for months in ["*", "2", "2,4", "4,6,9,11"] {
                for weekdays in ["*", "1", "1#2", "1#5", "5L"] {
                    let schedule = format!("0 0 {days} {months} {weekdays}");
                    let cron = parser().parse(&schedule).unwrap();
                    let mut dates = date(2000, 1, 1).series(1.day());
                    let found = dates
                        .by_ref()
                        .take_while(|day| day.year() < 2028)
                        .any(|day| matches(&cron, day));
                    assert_eq!(has_day(&schedule, &parser()), found, "{schedule}");
                }
            }
        }
    }
}
