//! Go's `fmt`: `%v` for the output of actions, and `printf` with all its verbs and error forms.
//!
//! Left out: `%p`, which would print addresses, and `%b` and `%x` of floats.

mod directive;
mod float;
mod quote;

use std::borrow::Cow;

use crate::{
    error::Fault,
    funcs::{Env, date},
    limits::Meter,
    value::{Heap, Value},
};

pub(crate) use directive::printf;
pub(crate) use float::float_text;
use quote::quote_ascii;
pub(crate) use quote::{is_printable, quote, quote_char};

/// Maximum nesting of printed values. A map that contains itself exceeds any depth.
pub(crate) const MAX_PRINT_DEPTH: usize = 100;

/// A text under construction. Every byte is charged before it is added.
pub(crate) struct Writer<'a> {
    pub(crate) text: String,
    meter: &'a mut Meter,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(meter: &'a mut Meter) -> Self {
        Self {
            text: String::new(),
            meter,
        }
    }

    pub(crate) fn push(&mut self, text: &str) -> Result<(), Fault> {
        self.meter.charge_growth(self.text.len(), text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn push_char(&mut self, c: char) -> Result<(), Fault> {
        self.push(c.encode_utf8(&mut [0; 4]))
    }

    /// Adds `text` `count` times. Refuses a text that is too long before adding any of it.
    pub(crate) fn push_repeated(&mut self, text: &str, count: usize) -> Result<(), Fault> {
        self.meter
            .charge_growth(self.text.len(), text.len().saturating_mul(count))?;
        for _ in 0..count {
            self.text.push_str(text);
        }
        Ok(())
    }

    pub(crate) fn charge_step(&mut self) -> Result<(), Fault> {
        self.meter.charge_steps(1)
    }

    /// Returns the meter that the text is charged to.
    pub(crate) fn meter(&mut self) -> &mut Meter {
        self.meter
    }

    /// Charges the work of reading `bytes` bytes.
    pub(crate) fn charge_read(&mut self, bytes: usize) -> Result<(), Fault> {
        self.meter.charge_read(bytes)
    }
}

/// Formats the value like an action: `%v`.
pub(crate) fn display<'v>(env: &mut Env, value: &'v Value) -> Result<Cow<'v, str>, Fault> {
    if let Value::Text(text) = value {
        return Ok(Cow::Borrowed(text));
    }
    let mut writer = Writer::new(&mut env.meter);
    Printer {
        heap: &env.heap,
        out: &mut writer,
    }
    .print_verb('v', &Spec::default(), value, 0)?;
    Ok(Cow::Owned(writer.text))
}

/// Formats values like `fmt.Sprint`, with spaces between operands if neither is a text.
pub(crate) fn print(env: &mut Env, values: &[Value], line: bool) -> Result<String, Fault> {
    let mut writer = Writer::new(&mut env.meter);
    let mut previous_is_text = true;
    for (index, value) in values.iter().enumerate() {
        let is_text = matches!(value, Value::Text(_));
        if index > 0 && (line || (!is_text && !previous_is_text)) {
            writer.push(" ")?;
        }
        Printer {
            heap: &env.heap,
            out: &mut writer,
        }
        .print_verb('v', &Spec::default(), value, 0)?;
        previous_is_text = is_text;
    }
    if line {
        writer.push("\n")?;
    }
    Ok(writer.text)
}

/// Flags, width and precision of a directive.
#[derive(Debug, Default, Clone)]
struct Spec {
    width: Option<usize>,
    precision: Option<usize>,
    plus: bool,
    minus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    plus_v: bool,
    sharp_v: bool,
}

impl Spec {
    fn without_zero(&self) -> Self {
        Self {
            zero: false,
            ..self.clone()
        }
    }
}

struct Printer<'a, 'b> {
    heap: &'a Heap,
    out: &'a mut Writer<'b>,
}

impl Printer<'_, '_> {
    fn print_verb(
        &mut self,
        verb: char,
        spec: &Spec,
        value: &Value,
        depth: usize,
    ) -> Result<(), Fault> {
        self.out.charge_step()?;
        if depth > MAX_PRINT_DEPTH {
            return Err(
                Fault::limit(format!("a value nests deeper than {MAX_PRINT_DEPTH}"))
                    .with_help("does a map contain itself?"),
            );
        }
        if verb == 'T' {
            return self.pad_text(spec, &value.type_name());
        }
        match value {
            Value::Nil | Value::NilField => match verb {
                'v' if spec.sharp_v && depth > 0 => self.out.push("interface {}(nil)"),
                'v' => self.pad(spec, "<nil>"),
                // Inside a list or map, a missing value looks the same for every verb.
                _ if depth > 0 => self.out.push("<nil>"),
                _ => self.print_bad_verb(verb, spec, value),
            },
            Value::Bool(flag) => match verb {
                't' | 'v' => self.pad(spec, if *flag { "true" } else { "false" }),
                _ => self.print_bad_verb(verb, spec, value),
            },
            Value::Int(number) | Value::Int64(number) => {
                self.print_integer(verb, spec, i128::from(*number), value)
            }
            Value::Uint8(number) => self.print_unsigned(verb, spec, u64::from(*number), value),
            Value::Uint64(number) => self.print_unsigned(verb, spec, *number, value),
            Value::Float(number) => self.print_float(verb, spec, *number, value),
            Value::Text(text) => self.print_text(verb, spec, text, value),
            Value::List(list) => self.print_list(verb, spec, value, list, depth),
            Value::Map(map) => {
                let open = if spec.sharp_v {
                    format!("{}{{", value.type_name())
                } else {
                    "map[".to_owned()
                };
                self.out.push(&open)?;
                for (index, (key, item)) in self.heap.get(*map).iter().enumerate() {
                    if index > 0 {
                        self.out.push(if spec.sharp_v { ", " } else { " " })?;
                    }
                    self.print_text(verb, spec, key, &Value::Text(key.clone()))?;
                    self.out.push(":")?;
                    self.print_verb(verb, spec, item, depth + 1)?;
                }
                self.out.push(if spec.sharp_v { "}" } else { "]" })
            }
            Value::Time(_)
            | Value::Duration(_)
            | Value::Month(_)
            | Value::Weekday(_)
            | Value::Version(_) => self.print_stringer(verb, spec, value),
        }
    }

    fn print_list(
        &mut self,
        verb: char,
        spec: &Spec,
        value: &Value,
        list: &crate::value::List,
        depth: usize,
    ) -> Result<(), Fault> {
        if spec.sharp_v && list.is_nil {
            self.out.push(&value.type_name())?;
            return self.out.push("(nil)");
        }
        let open = if spec.sharp_v {
            format!("{}{{", value.type_name())
        } else {
            "[".to_owned()
        };
        self.out.push(&open)?;
        for (index, item) in list.items().iter().enumerate() {
            if index > 0 {
                self.out.push(if spec.sharp_v { ", " } else { " " })?;
            }
            self.print_verb(verb, spec, item, depth + 1)?;
        }
        self.out.push(if spec.sharp_v { "}" } else { "]" })
    }

    /// Prints values with a `String` method. Verbs for texts print that text, other verbs the
    /// underlying value.
    fn print_stringer(&mut self, verb: char, spec: &Spec, value: &Value) -> Result<(), Fault> {
        let text = match value {
            Value::Time(time) => time.to_string(),
            Value::Duration(nanoseconds) => date::duration_text(*nanoseconds),
            Value::Month(month) => date::month_name(*month).to_owned(),
            Value::Weekday(day) => date::weekday_name(*day).to_owned(),
            Value::Version(version) => {
                self.out.charge_read(version.bytes())?;
                version.to_string()
            }
            _ => String::new(),
        };
        match (verb, value) {
            ('v' | 's' | 'q' | 'x' | 'X', _) => self.print_text(verb, spec, &text, value),
            (_, Value::Duration(number)) => {
                self.print_integer(verb, spec, i128::from(*number), value)
            }
            (_, Value::Month(number) | Value::Weekday(number)) => {
                self.print_integer(verb, spec, i128::from(*number), value)
            }
            _ => self.print_bad_verb(verb, spec, value),
        }
    }

    fn print_bad_verb(&mut self, verb: char, spec: &Spec, value: &Value) -> Result<(), Fault> {
        self.out.push("%!")?;
        self.out.push_char(verb)?;
        if value.is_nil() {
            return self.out.push("(<nil>)");
        }
        self.out.push("(")?;
        self.out.push(&value.type_name())?;
        self.out.push("=")?;
        // Keep the requested width.
        self.print_verb('v', spec, value, 0)?;
        self.out.push(")")
    }

    /// Pads `text` to the width, counted in characters.
    fn pad(&mut self, spec: &Spec, text: &str) -> Result<(), Fault> {
        let missing = spec
            .width
            .map_or(0, |width| width.saturating_sub(text.chars().count()));
        if spec.minus {
            self.out.push(text)?;
            return self.out.push_repeated(" ", missing);
        }
        self.out
            .push_repeated(if spec.zero { "0" } else { " " }, missing)?;
        self.out.push(text)
    }

    /// Truncates `text` to the precision, and pads it to the width.
    fn pad_text(&mut self, spec: &Spec, text: &str) -> Result<(), Fault> {
        self.pad(spec, truncate_text(spec, text))
    }

    fn print_text(
        &mut self,
        verb: char,
        spec: &Spec,
        text: &str,
        value: &Value,
    ) -> Result<(), Fault> {
        match verb {
            'v' if spec.sharp_v => self.pad(spec, &quote(text)),
            'v' | 's' => self.pad_text(spec, text),
            'q' => {
                let text = truncate_text(spec, text);
                self.out.meter.charge_text(text.len().saturating_mul(2))?;
                let quoted = if spec.sharp
                    && !text.contains(['`', '\u{feff}'])
                    && text.chars().all(is_raw_char)
                {
                    format!("`{text}`")
                } else if spec.plus {
                    quote_ascii(text)
                } else {
                    quote(text)
                };
                self.pad(spec, &quoted)
            }
            'x' | 'X' => {
                let bytes =
                    &text.as_bytes()[..spec.precision.unwrap_or(text.len()).min(text.len())];
                self.out.meter.charge_text(bytes.len().saturating_mul(2))?;
                let mut hex = String::with_capacity(bytes.len() * 2);
                for (index, byte) in bytes.iter().enumerate() {
                    if spec.space && index > 0 {
                        hex.push(' ');
                    }
                    if spec.sharp && (spec.space || index == 0) {
                        hex.push_str(if verb == 'x' { "0x" } else { "0X" });
                    }
                    hex.push_str(&if verb == 'x' {
                        format!("{byte:02x}")
                    } else {
                        format!("{byte:02X}")
                    });
                }
                self.pad(spec, &hex)
            }
            _ => self.print_bad_verb(verb, spec, value),
        }
    }

    fn print_unsigned(
        &mut self,
        verb: char,
        spec: &Spec,
        number: u64,
        value: &Value,
    ) -> Result<(), Fault> {
        if verb == 'v' && spec.sharp_v {
            let hex = Spec {
                sharp: true,
                sharp_v: false,
                ..spec.clone()
            };
            return self.print_integer('x', &hex, i128::from(number), value);
        }
        self.print_integer(verb, spec, i128::from(number), value)
    }

    fn print_integer(
        &mut self,
        verb: char,
        spec: &Spec,
        number: i128,
        value: &Value,
    ) -> Result<(), Fault> {
        let magnitude = number.unsigned_abs();
        let digits = match verb {
            'v' | 'd' => magnitude.to_string(),
            'b' => format!("{magnitude:b}"),
            'o' | 'O' => format!("{magnitude:o}"),
            'x' => format!("{magnitude:x}"),
            'X' => format!("{magnitude:X}"),
            'c' => return self.pad(spec, &to_char(number).to_string()),
            'q' => return self.pad(spec, &quote_char(to_char(number), spec.plus)),
            'U' => {
                // A negative number is shown by its bits.
                let code = if number < 0 {
                    number + (1 << 64)
                } else {
                    number
                };
                let width = spec.precision.unwrap_or(4).clamp(4, 100);
                let mut text = format!("U+{code:0width$X}");
                if spec.sharp && is_printable(to_char(number)) {
                    text.push_str(&format!(" '{}'", to_char(number)));
                }
                return self.pad(&spec.without_zero(), &text);
            }
            _ => return self.print_bad_verb(verb, spec, value),
        };
        if spec.precision == Some(0) && number == 0 {
            return self.pad(&spec.without_zero(), "");
        }
        let sign = sign_text(spec, number < 0);
        // Zeros fill the precision, or the width without the sign.
        let wanted = match (spec.precision, spec.width) {
            (Some(precision), _) => precision,
            (None, Some(width)) if spec.zero && !spec.minus => width.saturating_sub(sign.len()),
            _ => 0,
        };
        let zeros = wanted.saturating_sub(digits.len());
        let prefix = match verb {
            'O' => "0o",
            'b' if spec.sharp => "0b",
            'o' if spec.sharp && zeros == 0 && !digits.starts_with('0') => "0",
            'x' if spec.sharp => "0x",
            'X' if spec.sharp => "0X",
            _ => "",
        };
        self.out.meter.charge_text(zeros)?;
        let text = format!("{sign}{prefix}{}{digits}", "0".repeat(zeros));
        self.pad(&spec.without_zero(), &text)
    }

    fn print_float(
        &mut self,
        verb: char,
        spec: &Spec,
        number: f64,
        value: &Value,
    ) -> Result<(), Fault> {
        let precision = spec.precision;
        self.out
            .meter
            .charge_text(precision.unwrap_or(0).saturating_add(400))?;
        let Some(body) = float::format_float(verb, number.abs(), precision, spec.sharp) else {
            return self.print_bad_verb(verb, spec, value);
        };
        let negative = number.is_sign_negative() && !number.is_nan();
        let sign = if number.is_infinite() && !negative && !spec.space {
            // Go always writes the sign of an infinity.
            "+"
        } else {
            sign_text(spec, negative)
        };
        if spec.zero && number.is_finite() && spec.width.is_some() {
            self.out.push(sign)?;
            let width = spec.width.map(|width| width.saturating_sub(sign.len()));
            return self.pad(
                &Spec {
                    width,
                    ..spec.clone()
                },
                &body,
            );
        }
        self.pad(&spec.without_zero(), &format!("{sign}{body}"))
    }
}

fn sign_text(spec: &Spec, negative: bool) -> &'static str {
    match (negative, spec.plus, spec.space) {
        (true, _, _) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    }
}

fn truncate_text<'t>(spec: &Spec, text: &'t str) -> &'t str {
    match spec
        .precision
        .and_then(|count| text.char_indices().nth(count))
    {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

fn to_char(number: i128) -> char {
    u32::try_from(number)
        .ok()
        .and_then(char::from_u32)
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn is_raw_char(c: char) -> bool {
    c == '\t' || !c.is_control()
}
