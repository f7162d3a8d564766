//! Go's time layouts, for formatting and parsing: `2006-01-02 15:04:05 -0700 MST`.

use jiff::civil::{Date, DateTime};

/// A moment as shown by a clock in some zone.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    pub(crate) datetime: DateTime,
    /// Seconds east of UTC.
    pub(crate) offset: i32,
    /// Abbreviation of the zone. May be empty.
    pub(crate) zone: String,
}

/// The result of parsing a text by a layout.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) datetime: DateTime,
    /// Seconds east of UTC. `None` if the layout has no offset.
    pub(crate) offset: Option<i32>,
    /// Abbreviation of the zone. `None` if the layout has none.
    pub(crate) zone: Option<String>,
}

pub(crate) const MONTHS: [&str; 12] = [
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
pub(crate) const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    LongMonth,
    ShortMonth,
    Month,
    ZeroMonth,
    LongDay,
    ShortDay,
    Day,
    SpaceDay,
    ZeroDay,
    SpaceYearDay,
    ZeroYearDay,
    Hour,
    Hour12,
    ZeroHour12,
    Minute,
    ZeroMinute,
    Second,
    ZeroSecond,
    LongYear,
    Year,
    UpperHalf,
    LowerHalf,
    Zone,
    /// An offset. `z`: UTC is written as `Z`.
    Offset {
        z: bool,
        form: OffsetForm,
    },
    /// A fraction of `digits` digits. `trims`: without trailing zeros, `.999`.
    Fraction {
        comma: bool,
        digits: usize,
        trims: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OffsetForm {
    Hours,
    Minutes { colon: bool },
    Seconds { colon: bool },
}

/// Returns the first piece in `layout`, with the text before and after it.
fn next_piece(layout: &str) -> Option<(&str, Piece, &str)> {
    const OFFSETS: [(&str, OffsetForm); 5] = [
        ("070000", OffsetForm::Seconds { colon: false }),
        ("07:00:00", OffsetForm::Seconds { colon: true }),
        ("0700", OffsetForm::Minutes { colon: false }),
        ("07:00", OffsetForm::Minutes { colon: true }),
        ("07", OffsetForm::Hours),
    ];
    for (index, c) in layout.char_indices() {
        let rest = &layout[index..];
        let at = |piece: Piece, length: usize| Some((&layout[..index], piece, &rest[length..]));
        let word = |length: usize| !rest[length..].starts_with(|c: char| c.is_ascii_lowercase());
        let found = match c {
            'J' if rest.starts_with("January") => at(Piece::LongMonth, 7),
            'J' if rest.starts_with("Jan") && word(3) => at(Piece::ShortMonth, 3),
            'M' if rest.starts_with("Monday") => at(Piece::LongDay, 6),
            'M' if rest.starts_with("Mon") && word(3) => at(Piece::ShortDay, 3),
            'M' if rest.starts_with("MST") => at(Piece::Zone, 3),
            '0' => match rest.get(1..2) {
                _ if rest.starts_with("002") => at(Piece::ZeroYearDay, 3),
                Some("1") => at(Piece::ZeroMonth, 2),
                Some("2") => at(Piece::ZeroDay, 2),
                Some("3") => at(Piece::ZeroHour12, 2),
                Some("4") => at(Piece::ZeroMinute, 2),
                Some("5") => at(Piece::ZeroSecond, 2),
                Some("6") => at(Piece::Year, 2),
                _ => None,
            },
            '1' if rest.starts_with("15") => at(Piece::Hour, 2),
            '1' => at(Piece::Month, 1),
            '2' if rest.starts_with("2006") => at(Piece::LongYear, 4),
            '2' => at(Piece::Day, 1),
            '_' if rest.starts_with("_2006") => {
                Some((&layout[..=index], Piece::LongYear, &rest[5..]))
            }
            '_' if rest.starts_with("_2") => at(Piece::SpaceDay, 2),
            '_' if rest.starts_with("__2") => at(Piece::SpaceYearDay, 3),
            '3' => at(Piece::Hour12, 1),
            '4' => at(Piece::Minute, 1),
            '5' => at(Piece::Second, 1),
            'P' if rest.starts_with("PM") => at(Piece::UpperHalf, 2),
            'p' if rest.starts_with("pm") => at(Piece::LowerHalf, 2),
            '-' | 'Z' => OFFSETS
                .iter()
                .find(|(text, _)| rest[1..].starts_with(text))
                .and_then(|(text, form)| {
                    at(
                        Piece::Offset {
                            z: c == 'Z',
                            form: *form,
                        },
                        1 + text.len(),
                    )
                }),
            '.' | ',' => {
                let digit = rest[1..]
                    .chars()
                    .next()
                    .filter(|digit| matches!(digit, '0' | '9'));
                digit.and_then(|digit| {
                    let digits = rest[1..].chars().take_while(|c| *c == digit).count();
                    let ends = !rest[1 + digits..].starts_with(|c: char| c.is_ascii_digit());
                    let piece = Piece::Fraction {
                        comma: c == ',',
                        digits,
                        trims: digit == '9',
                    };
                    if ends { at(piece, 1 + digits) } else { None }
                })
            }
            _ => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn hour12(hour: i8) -> i8 {
    match hour % 12 {
        0 => 12,
        hour => hour,
    }
}

fn offset_text(offset: i32, form: OffsetForm) -> String {
    let sign = if offset < 0 { '-' } else { '+' };
    let offset = offset.abs();
    let (hours, minutes, seconds) = (offset / 3600, offset / 60 % 60, offset % 60);
    match form {
        OffsetForm::Hours => format!("{sign}{hours:02}"),
        OffsetForm::Minutes { colon: false } => format!("{sign}{hours:02}{minutes:02}"),
        OffsetForm::Minutes { colon: true } => format!("{sign}{hours:02}:{minutes:02}"),
        OffsetForm::Seconds { colon: false } => format!("{sign}{hours:02}{minutes:02}{seconds:02}"),
        OffsetForm::Seconds { colon: true } => {
            format!("{sign}{hours:02}:{minutes:02}:{seconds:02}")
        }
    }
}

/// Formats a moment by a layout.
pub(crate) fn format(layout: &str, clock: &Clock) -> String {
    let mut out = String::new();
    let mut rest = layout;
    while let Some((before, piece, after)) = next_piece(rest) {
        out.push_str(before);
        rest = after;
        out.push_str(&piece_text(piece, clock));
    }
    out.push_str(rest);
    out
}

fn piece_text(piece: Piece, clock: &Clock) -> String {
    let at = clock.datetime;
    let month = MONTHS[usize::try_from(at.month() - 1).unwrap_or(0)];
    let day = DAYS[usize::try_from(at.date().weekday().to_sunday_zero_offset()).unwrap_or(0)];
    let year_day = at.date().day_of_year();
    match piece {
        Piece::LongMonth => month.to_owned(),
        Piece::ShortMonth => month[..3].to_owned(),
        Piece::Month => at.month().to_string(),
        Piece::ZeroMonth => format!("{:02}", at.month()),
        Piece::LongDay => day.to_owned(),
        Piece::ShortDay => day[..3].to_owned(),
        Piece::Day => at.day().to_string(),
        Piece::SpaceDay => format!("{:2}", at.day()),
        Piece::ZeroDay => format!("{:02}", at.day()),
        Piece::SpaceYearDay => format!("{year_day:3}"),
        Piece::ZeroYearDay => format!("{year_day:03}"),
        Piece::Hour => format!("{:02}", at.hour()),
        Piece::Hour12 => hour12(at.hour()).to_string(),
        Piece::ZeroHour12 => format!("{:02}", hour12(at.hour())),
        Piece::Minute => at.minute().to_string(),
        Piece::ZeroMinute => format!("{:02}", at.minute()),
        Piece::Second => at.second().to_string(),
        Piece::ZeroSecond => format!("{:02}", at.second()),
        Piece::LongYear if at.year() < 0 => format!("-{:04}", -at.year()),
        Piece::LongYear => format!("{:04}", at.year()),
        Piece::Year => format!("{:02}", at.year().rem_euclid(100)),
        Piece::UpperHalf => if at.hour() >= 12 { "PM" } else { "AM" }.to_owned(),
        Piece::LowerHalf => if at.hour() >= 12 { "pm" } else { "am" }.to_owned(),
        Piece::Zone if clock.zone.is_empty() => {
            offset_text(clock.offset, OffsetForm::Minutes { colon: false })
        }
        Piece::Zone => clock.zone.clone(),
        Piece::Offset { z: true, .. } if clock.offset == 0 => "Z".to_owned(),
        Piece::Offset { form, .. } => offset_text(clock.offset, form),
        Piece::Fraction {
            comma,
            digits,
            trims,
        } => {
            let nanoseconds = format!("{:09}", at.subsec_nanosecond());
            // Nanoseconds have nine digits, so longer fractions are cut.
            let mut fraction: String = nanoseconds.chars().take(digits).collect();
            if trims {
                fraction.truncate(fraction.trim_end_matches('0').len());
                if fraction.is_empty() {
                    return String::new();
                }
            }
            format!("{}{fraction}", if comma { ',' } else { '.' })
        }
    }
}

/// Reads a number of one or two digits, or of exactly two if `fixed`.
fn read_number(rest: &mut &str, fixed: bool) -> Option<i8> {
    let digits = rest
        .chars()
        .take(2)
        .take_while(char::is_ascii_digit)
        .count();
    if digits == 0 || (fixed && digits < 2) {
        return None;
    }
    let (taken, after) = rest.split_at(digits);
    *rest = after;
    taken.parse().ok()
}

fn read_name(rest: &mut &str, names: &[&str], length: Option<usize>) -> Option<i8> {
    for (index, name) in names.iter().enumerate() {
        let name = &name[..length.unwrap_or(name.len())];
        if rest
            .get(..name.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(name))
        {
            *rest = &rest[name.len()..];
            return i8::try_from(index).ok();
        }
    }
    None
}

fn parse_fraction(digits: &str) -> Option<i32> {
    let nine: String = digits
        .chars()
        .chain(std::iter::repeat('0'))
        .take(9)
        .collect();
    nine.parse().ok()
}

/// Parses a moment by a layout. The error message is that of Go.
pub(crate) fn parse(layout: &str, text: &str) -> Result<Reading, String> {
    let fail = |value: &str, wanted: &str| {
        format!("parsing time {text:?} as {layout:?}: cannot parse {value:?} as {wanted:?}")
    };
    let out_of_range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    let (mut year, mut month, mut day, mut year_day) =
        (None::<i16>, None::<i8>, None::<i8>, None::<i16>);
    let (mut hour, mut minute, mut second, mut nanosecond) = (0_i8, 0_i8, 0_i8, 0_i32);
    let (mut afternoon, mut forenoon) = (false, false);
    let (mut offset, mut zone) = (None, None);
    let (mut layout_rest, mut rest) = (layout, text);
    while let Some((before, piece, after)) = next_piece(layout_rest) {
        let written = &layout_rest[before.len()..layout_rest.len() - after.len()];
        skip_literal(&mut rest, before).ok_or_else(|| fail(rest, before))?;
        layout_rest = after;
        let value_start = rest;
        let wrong = || fail(value_start, written);
        match piece {
            Piece::LongYear => {
                let digits = rest
                    .get(..4)
                    .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
                year = digits.and_then(|digits| digits.parse().ok());
                year.ok_or_else(wrong)?;
                rest = &rest[4..];
            }
            Piece::Year => {
                let two = i16::from(read_number(&mut rest, true).ok_or_else(wrong)?);
                year = Some(if two >= 69 { 1900 + two } else { 2000 + two });
            }
            Piece::LongMonth => {
                month = Some(read_name(&mut rest, &MONTHS, None).ok_or_else(wrong)? + 1)
            }
            Piece::ShortMonth => {
                month = Some(read_name(&mut rest, &MONTHS, Some(3)).ok_or_else(wrong)? + 1)
            }
            Piece::Month | Piece::ZeroMonth => {
                let value = read_number(&mut rest, piece == Piece::ZeroMonth).ok_or_else(wrong)?;
                if !(1..=12).contains(&value) {
                    return Err(out_of_range("month"));
                }
                month = Some(value);
            }
            Piece::LongDay => {
                read_name(&mut rest, &DAYS, None).ok_or_else(wrong)?;
            }
            Piece::ShortDay => {
                read_name(&mut rest, &DAYS, Some(3)).ok_or_else(wrong)?;
            }
            Piece::Day | Piece::SpaceDay | Piece::ZeroDay => {
                if piece == Piece::SpaceDay {
                    rest = rest.strip_prefix(' ').unwrap_or(rest);
                }
                day = Some(read_number(&mut rest, piece == Piece::ZeroDay).ok_or_else(wrong)?);
            }
            Piece::SpaceYearDay | Piece::ZeroYearDay => {
                if piece == Piece::SpaceYearDay {
                    rest = rest.trim_start_matches(' ');
                }
                let digits = rest
                    .chars()
                    .take(3)
                    .take_while(char::is_ascii_digit)
                    .count();
                year_day = rest[..digits].parse().ok();
                year_day.ok_or_else(wrong)?;
                rest = &rest[digits..];
            }
            Piece::Hour => {
                hour = read_number(&mut rest, false).ok_or_else(wrong)?;
                if hour >= 24 {
                    return Err(out_of_range("hour"));
                }
            }
            Piece::Hour12 | Piece::ZeroHour12 => {
                hour = read_number(&mut rest, piece == Piece::ZeroHour12).ok_or_else(wrong)?;
                if hour > 12 {
                    return Err(out_of_range("hour"));
                }
            }
            Piece::Minute | Piece::ZeroMinute => {
                minute = read_number(&mut rest, piece == Piece::ZeroMinute).ok_or_else(wrong)?;
                if minute >= 60 {
                    return Err(out_of_range("minute"));
                }
            }
            Piece::Second | Piece::ZeroSecond => {
                second = read_number(&mut rest, piece == Piece::ZeroSecond).ok_or_else(wrong)?;
                if second >= 60 {
                    return Err(out_of_range("second"));
                }
                // A fraction may follow the seconds even if the layout has none.
                let layout_has = matches!(
                    next_piece(layout_rest),
                    Some(("", Piece::Fraction { .. }, _))
                );
                if !layout_has && let Some(after) = rest.strip_prefix(['.', ',']) {
                    let digits = after.chars().take_while(char::is_ascii_digit).count();
                    if digits > 0 {
                        nanosecond = parse_fraction(&after[..digits]).ok_or_else(wrong)?;
                        rest = &after[digits..];
                    }
                }
            }
            Piece::UpperHalf | Piece::LowerHalf => {
                let (am, pm) = if piece == Piece::UpperHalf {
                    ("AM", "PM")
                } else {
                    ("am", "pm")
                };
                afternoon = rest.starts_with(pm);
                forenoon = rest.starts_with(am);
                if !afternoon && !forenoon {
                    return Err(wrong());
                }
                rest = &rest[2..];
            }
            Piece::Offset { z, form } => {
                if z && let Some(after) = rest.strip_prefix('Z') {
                    rest = after;
                    offset = Some(0);
                } else {
                    offset = Some(read_offset(&mut rest, form).ok_or_else(wrong)?);
                }
            }
            Piece::Zone => {
                let length = zone_length(rest).ok_or_else(wrong)?;
                zone = Some(rest[..length].to_owned());
                rest = &rest[length..];
            }
            Piece::Fraction { digits, trims, .. } => {
                let present = rest.strip_prefix(['.', ',']).map(|after| {
                    (
                        after,
                        after.chars().take_while(char::is_ascii_digit).count(),
                    )
                });
                match present {
                    Some((after, count)) if trims && count > 0 => {
                        nanosecond = parse_fraction(&after[..count]).ok_or_else(wrong)?;
                        rest = &after[count..];
                    }
                    Some((after, count)) if !trims && count >= digits => {
                        nanosecond = parse_fraction(&after[..digits]).ok_or_else(wrong)?;
                        rest = &after[digits..];
                    }
                    _ if trims => {}
                    _ => return Err(wrong()),
                }
            }
        }
    }
    skip_literal(&mut rest, layout_rest).ok_or_else(|| fail(rest, layout_rest))?;
    if !rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    if afternoon && hour < 12 {
        hour += 12;
    } else if forenoon && hour == 12 {
        hour = 0;
    }
    let year = year.unwrap_or(0);
    let date = match year_day {
        Some(number) => Date::new(year, 1, 1)
            .ok()
            .filter(|first| number >= 1 && number <= first.days_in_year())
            .and_then(|first| {
                first
                    .checked_add(jiff::Span::new().days(i64::from(number) - 1))
                    .ok()
            })
            .ok_or_else(|| out_of_range("day-of-year"))?,
        None => Date::new(year, month.unwrap_or(1), day.unwrap_or(1))
            .map_err(|_| out_of_range("day"))?,
    };
    Ok(Reading {
        datetime: date.at(hour, minute, second, nanosecond),
        offset,
        zone,
    })
}

/// Skips the literal text of a layout. A space in it matches any number of spaces.
fn skip_literal(rest: &mut &str, literal: &str) -> Option<()> {
    let mut literal = literal;
    while let Some(c) = literal.chars().next() {
        if c == ' ' {
            if !rest.is_empty() && !rest.starts_with(' ') {
                return None;
            }
            literal = literal.trim_start_matches(' ');
            *rest = rest.trim_start_matches(' ');
            continue;
        }
        *rest = rest.strip_prefix(c)?;
        literal = &literal[c.len_utf8()..];
    }
    Some(())
}

fn read_offset(rest: &mut &str, form: OffsetForm) -> Option<i32> {
    let sign = match rest.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    *rest = &rest[1..];
    let hours = i32::from(read_number(rest, true)?);
    let mut part = |colon: bool| {
        if colon {
            *rest = rest.strip_prefix(':')?;
        }
        read_number(rest, true).map(i32::from)
    };
    let (minutes, seconds) = match form {
        OffsetForm::Hours => (0, 0),
        OffsetForm::Minutes { colon } => (part(colon)?, 0),
        OffsetForm::Seconds { colon } => (part(colon)?, part(colon)?),
    };
    (hours <= 24 && minutes < 60 && seconds < 60)
        .then_some(sign * (hours * 3600 + minutes * 60 + seconds))
}

/// Returns the length of a zone abbreviation at the start of `text`.
fn zone_length(text: &str) -> Option<usize> {
    if text.starts_with("ChST") || text.starts_with("MeST") {
        return Some(4);
    }
    if let Some(after) = text.strip_prefix("GMT") {
        let signed = after.strip_prefix(['+', '-']).unwrap_or_default();
        let digits = signed.chars().take_while(char::is_ascii_digit).count();
        // Like Go, digits of an impossible hour are not part of the abbreviation.
        let hours = signed.get(..digits).filter(|digits| digits.len() <= 2);
        let is_zone = hours
            .and_then(|hours| hours.parse::<u8>().ok())
            .is_some_and(|hours| hours <= 23);
        return Some(if is_zone { 4 + digits } else { 3 });
    }
    if text.starts_with(['+', '-']) {
        let digits = text[1..].chars().take_while(char::is_ascii_digit).count();
        return (digits == 2 || digits == 4).then_some(digits + 1);
    }
    let letters = text
        .chars()
        .take(6)
        .take_while(char::is_ascii_uppercase)
        .count();
    match letters {
        3 => Some(3),
        4 if text.as_bytes().get(3) == Some(&b'T') || text.starts_with("WITA") => Some(4),
        5 if text.as_bytes().get(4) == Some(&b'T') => Some(5),
        _ => None,
    }
}
