//! Parser of the five fields of a schedule by NCrontab's rules, which rewrites them as numbers.
//!
//! NCrontab is the parser of ACR Tasks' timers. A value is a number or the beginning of an English
//! name. `A/N` counts from A to the end of the field. Source: the grammar of NCrontab's
//! `CrontabFieldImpl`.
//!
//! Invariant: an accepted text has the same times in NCrontab, with three exceptions. `7` is
//! Sunday; `L`, `W`, `#` and `?` are passed on; a step of 0 is refused. A range that runs backwards
//! is refused too, because NCrontab swaps its ends.

use std::collections::BTreeSet;

/// A mistake in a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The mistake, for the middle of a sentence.
    pub(super) reason: String,
    /// The corrected text. `None` if no correction is certain.
    pub(super) rewrite: Option<String>,
}

impl From<String> for Mistake {
    fn from(reason: String) -> Self {
        Self {
            reason,
            rewrite: None,
        }
    }
}

/// Definition of one of the five fields.
struct Field {
    name: &'static str,
    min: u8,
    max: u8,
    /// Names of the values, beginning at `min`.
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

const FIELDS: [Field; 5] = [
    Field::new("minute", 0, 59, &[]),
    Field::new("hour", 0, 23, &[]),
    Field::new("day of the month", 1, 31, &[]),
    Field::new("month", 1, 12, &MONTHS),
    Field::new("day of the week", 0, 6, &WEEKDAYS),
];

/// Positions of the two day fields.
const DAY_OF_MONTH: usize = 2;
const DAY_OF_WEEK: usize = 4;

/// A schedule in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Normalized {
    /// Five fields for `croner`.
    pub(super) text: String,
    /// `true` if the day of the month and the day of the week are both restricted.
    pub(super) restricts_both_days: bool,
}

/// Rewrites the five fields of `text` as numbers.
///
/// # Errors
/// The first [`Mistake`] of the text.
pub(super) fn normalize(text: &str) -> Result<Normalized, Mistake> {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        return Err(format!("it has {}", acrtask_model::count(words.len(), "field")).into());
    }
    let mut fields = Vec::with_capacity(FIELDS.len());
    for (position, (field, word)) in FIELDS.iter().zip(&words).enumerate() {
        let read = field.parse_items(word).map_err(|mut mistake| {
            // The corrected field becomes part of a corrected schedule.
            mistake.rewrite = mistake.rewrite.map(|rewrite| {
                let mut words = words.clone();
                words[position] = &rewrite;
                words.join(" ")
            });
            mistake
        })?;
        fields.push(read);
    }
    let restricts = |position: usize| !matches!(fields[position].as_str(), "*" | "?");
    Ok(Normalized {
        restricts_both_days: restricts(DAY_OF_MONTH) && restricts(DAY_OF_WEEK),
        text: fields.join(" "),
    })
}

impl Field {
    const fn new(name: &'static str, min: u8, max: u8, names: &'static [&'static str]) -> Self {
        Self {
            name,
            min,
            max,
            names,
        }
    }

    /// Parses the items of a field, separated by commas.
    fn parse_items(&self, word: &str) -> Result<String, Mistake> {
        let mut values = BTreeSet::new();
        let mut others = Vec::new();
        let items: Vec<&str> = word.split(',').collect();
        for (position, item) in items.iter().enumerate() {
            match self.parse_item(item) {
                Ok(found) => values.extend(found),
                Err(_) if self.is_extension(item) => others.push((*item).to_owned()),
                Err(mut mistake) => {
                    mistake.rewrite = mistake.rewrite.map(|rewrite| {
                        let mut items = items.clone();
                        items[position] = &rewrite;
                        items.join(",")
                    });
                    return Err(mistake);
                }
            }
        }
        if others.is_empty() && values.len() == usize::from(self.max - self.min) + 1 {
            return Ok("*".into());
        }
        let values = values.iter().map(ToString::to_string);
        Ok(values.chain(others).collect::<Vec<_>>().join(","))
    }

    /// Returns `true` for items that only `croner` supports: last day, nearest weekday, nth
    /// weekday.
    fn is_extension(&self, item: &str) -> bool {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '#' | '?');
        item == "?"
            || (self.max <= 31
                && item.contains(['L', 'l', 'W', 'w', '#'])
                && item.chars().all(is_allowed))
    }

    /// Parses one item: `*`, `A` or `A-B`, with or without a step.
    fn parse_item(&self, item: &str) -> Result<Vec<u8>, Mistake> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(self.parse_step(item, step)?)),
            None => (item, None),
        };
        let count = usize::from(step.unwrap_or(1));
        if range == "*" {
            return Ok((self.min..=self.max).step_by(count).collect());
        }
        if let Some((first, last)) = range.split_once('-') {
            let (first, last) = (self.parse_value(first)?, self.parse_value(last)?);
            // Sunday is 0 at the start of a range and 7 at its end.
            let first = if self.is_sunday(first) { 0 } else { first };
            if first <= last {
                let range = (first..=last).step_by(count);
                return Ok(range.map(|value| self.canonical(value)).collect());
            }
            if self.is_sunday(last + 7) {
                return Ok((first..=7)
                    .step_by(count)
                    .map(|value| self.canonical(value))
                    .collect());
            }
            let wrapped = (first..=self.max).chain(self.min..=last).step_by(count);
            let named = range.starts_with(|c: char| c.is_ascii_alphabetic());
            let list: Vec<String> = wrapped.map(|value| self.display(value, named)).collect();
            return Err(Mistake {
                reason: format!("the range `{range}` runs backwards"),
                rewrite: Some(list.join(",")),
            });
        }
        let value = self.canonical(self.parse_value(range)?);
        Ok(match step {
            None => vec![value],
            Some(_) => (value..=self.max).step_by(count).collect(),
        })
    }

    fn parse_step(&self, item: &str, step: &str) -> Result<u8, Mistake> {
        let read = step.parse().ok().filter(|step| *step > 0);
        read.ok_or_else(|| format!("`{}` has no step from 1 to 255", item.escape_debug()).into())
    }

    /// Parses a number or the beginning of a name. The first matching name wins, as in NCrontab.
    fn parse_value(&self, text: &str) -> Result<u8, Mistake> {
        let unknown = || -> Mistake {
            let names = match self.names {
                [] => String::new(),
                names => format!(", or a name like `{}`", names[1]),
            };
            format!(
                "`{}` is not a {} from {} to {}{names}",
                text.escape_debug(),
                self.name,
                self.min,
                self.max
            )
            .into()
        };
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number: Option<u8> = text.parse().ok();
            let fits =
                |number: &u8| (self.min..=self.max).contains(number) || self.is_sunday(*number);
            return number.filter(fits).ok_or_else(unknown);
        }
        let starts = |name: &&str| {
            let start = name.get(..text.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(text))
        };
        let position = self.names.iter().position(starts);
        let position = position.and_then(|position| u8::try_from(position).ok());
        position
            .map(|position| self.min + position)
            .ok_or_else(unknown)
    }

    /// Returns `true` for 7 as a day of the week.
    fn is_sunday(&self, value: u8) -> bool {
        value == 7 && self.max == 6
    }

    fn canonical(&self, value: u8) -> u8 {
        if self.is_sunday(value) { 0 } else { value }
    }

    fn display(&self, value: u8, named: bool) -> String {
        let name = self.names.get(usize::from(value - self.min));
        match name.filter(|_| named) {
            Some(name) => name[..3].to_uppercase(),
            None => value.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(schedule: &str) -> String {
        normalize(schedule).unwrap().text
    }

    #[test]
    fn fields_are_parsed_like_ncrontab() {
        for (schedule, expected) in [
            ("* * * * *", "* * * * *"),
            ("5/20 * * * *", "5,25,45 * * * *"),
            ("0 0 1/7 * *", "0 0 1,8,15,22,29 * *"),
            ("0 9 * * Monday", "0 9 * * 1"),
            ("0 9 * * Mon,Wed,Friday", "0 9 * * 1,3,5"),
            ("0 9 1 FEBRUARY *", "0 9 1 2 *"),
            ("0 9 1 feb,m,au *", "0 9 1 2,3,8 *"),
            ("0 9 * * SUN-SUN", "0 9 * * 0"),
            ("0 9 * * 0-7", "0 9 * * *"),
            ("0 9 * * 5-7", "0 9 * * 0,5,6"),
            ("0 9 * * FRI-SUN", "0 9 * * 0,5,6"),
            ("0 9 * * 7-2", "0 9 * * 0,1,2"),
            ("0 9 * * 7", "0 9 * * 0"),
            ("0 9 * * 7/3", "0 9 * * 0,3,6"),
            ("*/59 0-23/12 1-31 * *", "0,59 0,12 * * *"),
            ("0 9 L * *", "0 9 L * *"),
            ("0 9 1,15W * MON#2", "0 9 1,15W * MON#2"),
            ("007 9 * * *", "7 9 * * *"),
        ] {
            assert_eq!(text(schedule), expected, "{schedule}");
        }
    }

    #[test]
    fn two_restricted_day_fields_are_reported() {
        for (schedule, both) in [
            ("0 9 1-7 * 1", true),
            ("0 9 1-31 * 1", false),
            ("0 9 1-7 * ?", false),
            ("0 9 * * 1", false),
            ("0 9 L * FRI", true),
        ] {
            let read = normalize(schedule).unwrap();
            assert_eq!(read.restricts_both_days, both, "{schedule}");
        }
    }

    #[test]
    fn mistakes_contain_value_and_correction() {
        for (schedule, reason, rewrite) in [
            (
                "0 9 * * FRI-MON",
                "the range `FRI-MON` runs backwards",
                Some("0 9 * * FRI,SAT,SUN,MON"),
            ),
            (
                "0 9,22-2 * * *",
                "the range `22-2` runs backwards",
                Some("0 9,22,23,0,1,2 * * *"),
            ),
            (
                "0 0 1 NOV-FEB *",
                "the range `NOV-FEB` runs backwards",
                Some("0 0 1 NOV,DEC,JAN,FEB *"),
            ),
            (
                "50-10/10 * * * *",
                "the range `50-10` runs backwards",
                Some("50,0,10 * * * *"),
            ),
            ("60 * * * *", "`60` is not a minute from 0 to 59", None),
            (
                "0 0 * * Fryday",
                "`Fryday` is not a day of the week from 0 to 6, or a name like `Monday`",
                None,
            ),
            (
                "0 0 1,,2 * *",
                "`` is not a day of the month from 1 to 31",
                None,
            ),
            ("*/0 * * * *", "`*/0` has no step from 1 to 255", None),
            ("0 0 * *", "it has 4 fields", None),
        ] {
            let mistake = normalize(schedule).unwrap_err();
            assert_eq!(mistake.reason, reason, "{schedule}");
            assert_eq!(mistake.rewrite.as_deref(), rewrite, "{schedule}");
            if let Some(rewrite) = rewrite {
                normalize(rewrite).unwrap();
            }
        }
    }
}
