//! Formatting of Go's floats: `%e`, `%f` and `%g`.

/// Maximum number of digits behind the point. A double never has more.
const MAX_PLACES: usize = 1100;

/// Formats a positive float by a verb, without its sign. `None` if the verb is not for floats.
///
/// The caller charges for `precision` bytes.
pub(super) fn format_float(
    verb: char,
    number: f64,
    precision: Option<usize>,
    sharp: bool,
) -> Option<String> {
    let text = match verb {
        'v' | 'g' | 'G' | 'e' | 'E' | 'f' | 'F' if number.is_nan() => {
            return Some("NaN".to_owned());
        }
        'v' | 'g' | 'G' | 'e' | 'E' | 'f' | 'F' if number.is_infinite() => {
            return Some("Inf".to_owned());
        }
        'v' | 'g' | 'G' => format_general(number, precision),
        'e' | 'E' => format_exponential(number, precision.unwrap_or(6)),
        'f' | 'F' => format_fixed(number, precision.unwrap_or(6)),
        _ => return None,
    };
    let text = if sharp {
        let significant = matches!(verb, 'v' | 'g' | 'G').then(|| precision.unwrap_or(6));
        add_point(&text, significant)
    } else {
        text
    };
    Some(if matches!(verb, 'E' | 'G') {
        text.to_uppercase()
    } else {
        text
    })
}

/// Formats a float like `%v`.
pub(crate) fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "+Inf".to_owned()
        } else {
            "-Inf".to_owned()
        };
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    format!("{sign}{}", format_general(number.abs(), None))
}

fn format_fixed(number: f64, precision: usize) -> String {
    let places = precision.min(MAX_PLACES);
    format!("{number:.places$}{}", "0".repeat(precision - places))
}

/// Formats a float with an exponent of at least two digits: `1.5e+06`.
fn format_exponential(number: f64, precision: usize) -> String {
    let places = precision.min(MAX_PLACES);
    let text = format!("{number:.places$e}");
    let (mantissa, exponent) = split_exponent(&text);
    format!(
        "{mantissa}{}{}",
        "0".repeat(precision - places),
        exponent_text(exponent)
    )
}

fn split_exponent(text: &str) -> (&str, i32) {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    (mantissa, exponent.parse().unwrap_or(0))
}

fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.abs())
}

/// Formats a float like `%g`. Very large and very small numbers get an exponent. Without a
/// precision, it writes the shortest digits.
fn format_general(number: f64, precision: Option<usize>) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let significant = precision.map(|precision| precision.clamp(1, MAX_PLACES));
    let scientific = match significant {
        Some(count) => format!("{number:.places$e}", places = count - 1),
        None => format!("{number:e}"),
    };
    let (mantissa, exponent) = split_exponent(&scientific);
    let digits = mantissa.replace('.', "");
    let digits = digits.trim_end_matches('0');
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    // The exponent is written if it reaches the precision, which is 6 by default.
    let threshold = match significant {
        Some(significant) => {
            let significant = i32::try_from(significant).unwrap_or(i32::MAX);
            if significant > count && count > exponent {
                count
            } else {
                significant
            }
        }
        None => 6,
    };
    if exponent < -4 || exponent >= threshold {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        return format!("{first}{point}{rest}{}", exponent_text(exponent));
    }
    match usize::try_from(exponent) {
        Err(_) => format!(
            "0.{}{digits}",
            "0".repeat(exponent.unsigned_abs() as usize - 1)
        ),
        Ok(exponent) if digits.len() <= exponent + 1 => {
            format!("{digits}{}", "0".repeat(exponent + 1 - digits.len()))
        }
        Ok(exponent) => format!("{}.{}", &digits[..=exponent], &digits[exponent + 1..]),
    }
}

/// Applies the `#` flag: always a point, and for `%g` all significant digits.
fn add_point(text: &str, significant: Option<usize>) -> String {
    let (number, exponent) = match text.find('e') {
        Some(index) => text.split_at(index),
        None => (text, ""),
    };
    let point = if number.contains('.') { "" } else { "." };
    let counted = number
        .trim_start_matches(['0', '.'])
        .chars()
        .filter(char::is_ascii_digit)
        .count();
    let shown = if counted == 0 {
        number.chars().filter(char::is_ascii_digit).count()
    } else {
        counted
    };
    let zeros = significant.map_or(0, |significant| {
        significant.saturating_sub(shown).min(MAX_PLACES)
    });
    format!("{number}{point}{}{exponent}", "0".repeat(zeros))
}
