//! Parser of Go's literals: quoted and raw strings, characters, integers and floats in every base.

use crate::{
    ast::{Ideal, Number},
    format::quote,
};

/// Returns the text of a Go string literal with its quotes: `"..."` or `` `...` ``.
pub(crate) fn unquote(literal: &str) -> Result<String, String> {
    if let Some(raw) = literal
        .strip_prefix('`')
        .and_then(|rest| rest.strip_suffix('`'))
    {
        return Ok(raw.replace('\r', ""));
    }
    let inner = literal
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or("invalid syntax")?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while !rest.is_empty() {
        let (unit, after) = unquote_unit(rest, '"').ok_or("invalid syntax")?;
        match unit {
            Unit::Char(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Unit::Byte(byte) => bytes.push(byte),
        }
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| format!("the text {literal} is not valid UTF-8"))
}

enum Unit {
    Char(char),
    /// A byte of `\x` or an octal escape. It may be a part of a character.
    Byte(u8),
}

/// Returns the first character of `text` without its escape, and the rest.
fn unquote_unit(text: &str, quote: char) -> Option<(Unit, &str)> {
    let mut chars = text.chars();
    let first = chars.next()?;
    if first != '\\' {
        return Some((Unit::Char(first), chars.as_str()));
    }
    let escape = chars.next()?;
    let rest = chars.as_str();
    let digits = |count: usize, radix: u32, from: &'_ str| -> Option<u32> {
        let digits = from.get(..count)?;
        if !digits.chars().all(|c| c.is_digit(radix)) {
            return None;
        }
        u32::from_str_radix(digits, radix).ok()
    };
    let simple = |c| Some((Unit::Char(c), rest));
    match escape {
        'a' => simple('\x07'),
        'b' => simple('\x08'),
        'f' => simple('\x0c'),
        'n' => simple('\n'),
        'r' => simple('\r'),
        't' => simple('\t'),
        'v' => simple('\x0b'),
        '\\' => simple('\\'),
        c if c == quote => simple(c),
        'x' => Some((
            Unit::Byte(u8::try_from(digits(2, 16, rest)?).ok()?),
            &rest[2..],
        )),
        'u' => Some((
            Unit::Char(char::from_u32(digits(4, 16, rest)?)?),
            &rest[4..],
        )),
        'U' => Some((
            Unit::Char(char::from_u32(digits(8, 16, rest)?)?),
            &rest[8..],
        )),
        '0'..='7' => {
            let from = &text[1..];
            Some((
                Unit::Byte(u8::try_from(digits(3, 8, from)?).ok()?),
                &from[3..],
            ))
        }
        _ => None,
    }
}

/// Parses a number or character literal.
pub(crate) fn parse_number(text: &str) -> Result<Number, String> {
    let malformed = |what: &str| format!("malformed {what}: {text}");
    if let Some(inner) = text.strip_prefix('\'') {
        let inner = inner
            .strip_suffix('\'')
            .ok_or_else(|| malformed("character constant"))?;
        let (unit, rest) =
            unquote_unit(inner, '\'').ok_or_else(|| malformed("character constant"))?;
        if !rest.is_empty() || inner == "'" {
            return Err(malformed("character constant"));
        }
        let code = match unit {
            Unit::Char(c) => i64::from(u32::from(c)),
            Unit::Byte(byte) => i64::from(byte),
        };
        return Ok(Number {
            integer: Some(code),
            float: to_float(code),
            ideal: Ideal::Integer,
        });
    }
    if let Some(integer) = parse_int_base0(text) {
        return match i64::try_from(integer) {
            Ok(value) => {
                // A text such as 1e3 is not an integer here, so the number was written as an
                // integer.
                Ok(Number {
                    integer: Some(value),
                    float: to_float(value),
                    ideal: Ideal::Integer,
                })
            }
            #[allow(clippy::cast_precision_loss, reason = "Go converts the same way")]
            Err(_) if integer > 0 && !text.starts_with('+') => Ok(Number {
                integer: None,
                float: integer as f64,
                ideal: Ideal::TooLarge,
            }),
            Err(_) => Err(format!("integer overflow: {}", quote(text))),
        };
    }
    let float =
        parse_float(text).ok_or_else(|| format!("illegal number syntax: {}", quote(text)))?;
    if !text.contains(['.', 'e', 'E', 'p', 'P']) {
        return Err(format!("integer overflow: {}", quote(text)));
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "checked by converting back"
    )]
    let truncated = float as i64;
    #[allow(
        clippy::float_cmp,
        reason = "whether the float is exactly an integer is the question"
    )]
    let integer = (to_float(truncated) == float).then_some(truncated);
    Ok(Number {
        integer,
        float,
        ideal: Ideal::Float,
    })
}

#[allow(clippy::cast_precision_loss, reason = "Go converts the same way")]
fn to_float(value: i64) -> f64 {
    value as f64
}

/// Parses an integer like `strconv.ParseInt` with base 0, up to 64 bits signed or unsigned.
pub(crate) fn parse_int_base0(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let prefix = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, body, prefixed) = match prefix.as_deref() {
        Some("0x") => (16, &digits[2..], true),
        Some("0o") => (8, &digits[2..], true),
        Some("0b") => (2, &digits[2..], true),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..], true),
        _ => (10, digits, false),
    };
    let plain = remove_underscores(body, prefixed, |c| c.is_digit(radix))?;
    let value = i128::from(u64::from_str_radix(&plain, radix).ok()?);
    let value = if negative { -value } else { value };
    (value >= i128::from(i64::MIN)).then_some(value)
}

/// Removes underscores, which may be between digits or after a prefix.
fn remove_underscores(
    body: &str,
    prefixed: bool,
    is_digit: impl Fn(char) -> bool,
) -> Option<String> {
    let mut plain = String::with_capacity(body.len());
    let mut before_digit = prefixed;
    let mut underscore = false;
    for c in body.chars() {
        if c == '_' {
            if !before_digit {
                return None;
            }
            before_digit = false;
            underscore = true;
        } else if is_digit(c) {
            plain.push(c);
            before_digit = true;
            underscore = false;
        } else {
            return None;
        }
    }
    (!underscore && !plain.is_empty()).then_some(plain)
}

/// Parses a float like `strconv.ParseFloat`: decimal, hexadecimal (`0x1p-2`), `inf`, `nan`.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    match unsigned.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => return Some(sign * f64::INFINITY),
        "nan" => return Some(f64::NAN),
        _ => {}
    }
    if let Some(hex) = unsigned
        .strip_prefix("0x")
        .or_else(|| unsigned.strip_prefix("0X"))
    {
        return parse_hex_float(hex).map(|value| sign * value);
    }
    // Rust accepts the same decimal grammar, without underscores.
    let well_placed = !unsigned.contains('_')
        || (!unsigned.starts_with('_')
            && !unsigned.ends_with('_')
            && !["__", "_.", "._", "_e", "_E", "e_", "E_"]
                .iter()
                .any(|bad| unsigned.contains(bad)));
    if !well_placed || !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    // Go refuses a number that is too large. Rust returns infinity.
    unsigned
        .replace('_', "")
        .parse::<f64>()
        .ok()
        .filter(|value| value.is_finite())
        .map(|value| sign * value)
}

fn parse_hex_float(text: &str) -> Option<f64> {
    let plain = text.replace('_', "");
    let (mantissa, exponent) = plain.split_once(['p', 'P'])?;
    let exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let value = u64::from_str_radix(&format!("{whole}{fraction}"), 16).ok()?;
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?.checked_mul(4)?)?;
    #[allow(
        clippy::cast_precision_loss,
        reason = "a float has the precision it has"
    )]
    let value = value as f64 * 2_f64.powi(shift);
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_literals_parse_as_in_go() {
        let integers = [
            ("0", 0),
            ("-17", -17),
            ("+5", 5),
            ("1_000_000", 1_000_000),
            ("0x1F", 31),
            ("0b101", 5),
            ("0o17", 15),
            ("017", 15),
            ("0_17", 15),
            ("'a'", 97),
            ("'\\n'", 10),
            ("'\\''", 39),
            ("'\u{1F600}'", 0x1F600),
            ("1e3", 1000),
        ];
        for (text, expected) in integers {
            assert_eq!(
                parse_number(text).map(|number| number.integer),
                Ok(Some(expected)),
                "{text}"
            );
        }
        assert_eq!(parse_number("0x1p-2").map(|number| number.float), Ok(0.25));
        assert_eq!(parse_number("1.5").map(|number| number.integer), Ok(None));
        for text in [
            "1__0",
            "08",
            "0x",
            "'ab'",
            "''",
            "1_",
            "_1",
            "99999999999999999999",
            "1e999",
        ] {
            assert!(parse_number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn string_literals_are_unquoted_as_in_go() {
        assert_eq!(
            unquote(r#""a\tb\"\u00e9\x41\101""#).as_deref(),
            Ok("a\tb\"\u{e9}AA")
        );
        assert_eq!(unquote("`a\\n\r`").as_deref(), Ok("a\\n"));
        assert_eq!(unquote(r#""\xc3\xa9""#).as_deref(), Ok("\u{e9}"));
        assert!(unquote(r#""\q""#).is_err());
        assert!(unquote(r#""\xff""#).is_err());
    }
}
