//! Format strings of `printf`: flags, widths, precisions, argument indexes.

use super::{Printer, Spec, Writer};
use crate::{
    error::Fault,
    funcs::Env,
    value::{Heap, Value},
};

/// Formats values like `fmt.Sprintf`.
pub(crate) fn printf(env: &mut Env, format: &str, values: &[Value]) -> Result<String, Fault> {
    let mut writer = Writer::new(&mut env.meter);
    let mut arguments = Arguments {
        values,
        next: 0,
        reordered: false,
        good: true,
    };
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        writer.push(&rest[..percent])?;
        rest = &rest[percent + 1..];
        writer.charge_step()?;
        rest = print_directive(&env.heap, &mut writer, &mut arguments, rest)?;
    }
    writer.push(rest)?;
    if !arguments.reordered && arguments.next < values.len() {
        writer.push("%!(EXTRA ")?;
        for (index, value) in values[arguments.next..].iter().enumerate() {
            if index > 0 {
                writer.push(", ")?;
            }
            if value.is_nil() {
                writer.push("<nil>")?;
            } else {
                writer.push(&value.type_name())?;
                writer.push("=")?;
                Printer {
                    heap: &env.heap,
                    out: &mut writer,
                }
                .print_verb('v', &Spec::default(), value, 0)?;
            }
        }
        writer.push(")")?;
    }
    Ok(writer.text)
}

struct Arguments<'a> {
    values: &'a [Value],
    next: usize,
    /// `true` after an index such as `%[2]d`. Unused arguments are then not an error.
    reordered: bool,
    /// `true` if the last index was well formed and in range.
    good: bool,
}

impl Arguments<'_> {
    /// Reads an index `[n]` and moves to that argument. Returns the rest, and `true` if there was
    /// an index.
    fn read_index<'f>(&mut self, rest: &'f str) -> (&'f str, bool) {
        let Some(inner) = rest.strip_prefix('[') else {
            return (rest, false);
        };
        self.reordered = true;
        let Some(close) = inner.find(']') else {
            self.good = false;
            return (inner, false);
        };
        match inner[..close].parse::<usize>() {
            Ok(number) if (1..=self.values.len()).contains(&number) => {
                self.next = number - 1;
                (&inner[close + 1..], true)
            }
            _ => {
                self.good = false;
                (&inner[close + 1..], true)
            }
        }
    }

    fn take_next(&mut self) -> Option<&Value> {
        let value = self.values.get(self.next)?;
        self.next += 1;
        Some(value)
    }

    /// Reads the argument of a `*`. `None` if it is not an integer in Go's range.
    fn take_star(&mut self) -> Option<i64> {
        match self.take_next()? {
            Value::Int(value) | Value::Int64(value) => {
                Some(*value).filter(|value| value.unsigned_abs() <= MAX_WIDTH.unsigned_abs())
            }
            Value::Uint8(value) => Some(i64::from(*value)),
            _ => None,
        }
    }
}

/// Maximum width and precision that Go accepts.
const MAX_WIDTH: i64 = 1_000_000;

fn print_directive<'f>(
    heap: &Heap,
    out: &mut Writer<'_>,
    arguments: &mut Arguments<'_>,
    mut rest: &'f str,
) -> Result<&'f str, Fault> {
    let mut spec = Spec::default();
    arguments.good = true;
    while let Some(c) = rest.chars().next() {
        match c {
            '#' => spec.sharp = true,
            '0' => spec.zero = true,
            '+' => spec.plus = true,
            '-' => spec.minus = true,
            ' ' => spec.space = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    let mut after_index;
    (rest, after_index) = arguments.read_index(rest);
    if let Some(after) = rest.strip_prefix('*') {
        rest = after;
        match arguments.take_star() {
            Some(width) => {
                if width < 0 {
                    spec.minus = true;
                    spec.zero = false;
                }
                spec.width = usize::try_from(width.unsigned_abs()).ok();
            }
            None => out.push("%!(BADWIDTH)")?,
        }
        after_index = false;
    } else {
        let (number, after) = read_number(rest);
        if after_index && number.is_some() {
            arguments.good = false;
        }
        spec.width = number.and_then(|number| usize::try_from(number).ok());
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('.').filter(|after| !after.is_empty()) {
        rest = after;
        if after_index {
            arguments.good = false;
        }
        (rest, after_index) = arguments.read_index(rest);
        if let Some(after) = rest.strip_prefix('*') {
            rest = after;
            match arguments.take_star() {
                Some(precision) if precision >= 0 => {
                    spec.precision = usize::try_from(precision).ok()
                }
                // A negative precision counts as a missing one.
                Some(_) => {}
                None => out.push("%!(BADPREC)")?,
            }
            after_index = false;
        } else {
            let (number, after) = read_number(rest);
            spec.precision = usize::try_from(number.unwrap_or(0)).ok();
            rest = after;
        }
    }
    if !after_index {
        (rest, _) = arguments.read_index(rest);
    }
    let Some(verb) = rest.chars().next() else {
        out.push("%!(NOVERB)")?;
        return Ok(rest);
    };
    rest = &rest[verb.len_utf8()..];
    if verb == '%' {
        out.push("%")?;
    } else if !arguments.good {
        out.push("%!")?;
        out.push_char(verb)?;
        out.push("(BADINDEX)")?;
    } else if let Some(value) = arguments.take_next() {
        if spec.minus {
            spec.zero = false;
        }
        if verb == 'v' {
            spec.plus_v = std::mem::take(&mut spec.plus);
            spec.sharp_v = std::mem::take(&mut spec.sharp);
        }
        Printer { heap, out }.print_verb(verb, &spec, value, 0)?;
    } else {
        out.push("%!")?;
        out.push_char(verb)?;
        out.push("(MISSING)")?;
    }
    Ok(rest)
}

/// Reads the number at the start of `text`. Returns it and the rest. If the number is too large,
/// the rest is empty, because Go gives up.
fn read_number(text: &str) -> (Option<i64>, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    if number.is_empty() {
        return (None, rest);
    }
    match number.parse().ok().filter(|value| *value <= MAX_WIDTH) {
        Some(value) => (Some(value), rest),
        None => (None, ""),
    }
}
