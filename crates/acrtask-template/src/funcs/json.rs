//! JSON in the format of Go's `encoding/json`.

use super::{Env, Function, Outcome, functions, text_at, value_at};
use crate::{
    error::Fault,
    format::{MAX_PRINT_DEPTH, Writer, float_text},
    value::{Element, Heap, List, Value},
};

pub(crate) static TABLE: &[Function] = functions! {
    // Invalid JSON gives a missing value.
    "fromJson" (Text) |env, args| match from_json(env, text_at(args, 0)) {
        Err(fault) if fault.kind == crate::error::FaultKind::Call => Ok(Value::Nil),
        outcome => outcome,
    };
    "mustFromJson" (Text) |env, args| from_json(env, text_at(args, 0));
    // A value that JSON cannot represent gives the empty text.
    "toJson" (Any) |env, args| match to_json(env, args, Style { escapes_html: true, indents: false }) {
        Err(fault) if fault.kind == crate::error::FaultKind::Call => env.new_text(""),
        outcome => outcome,
    };
    "toPrettyJson" (Any) |env, args| match to_json(env, args, Style { escapes_html: true, indents: true }) {
        Err(fault) if fault.kind == crate::error::FaultKind::Call => env.new_text(""),
        outcome => outcome,
    };
    "toRawJson" (Any) |env, args| to_json(env, args, Style { escapes_html: false, indents: false });
    "mustToJson" (Any) |env, args| to_json(env, args, Style { escapes_html: true, indents: false });
    "mustToPrettyJson" (Any) |env, args| to_json(env, args, Style { escapes_html: true, indents: true });
    "mustToRawJson" (Any) |env, args| to_json(env, args, Style { escapes_html: false, indents: false });
};

fn from_json(env: &mut Env, text: &str) -> Outcome {
    // The parsed data needs more memory than the text, because an element of one byte becomes a
    // value.
    env.meter.charge_memory(text.len().saturating_mul(8))?;
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| Fault::call(error.to_string()))?;
    let value = env.heap.import_json(&mut env.meter, &json)?;
    convert_numbers_to_floats(env, value)
}

/// Converts numbers to floats, as Go reads JSON.
fn convert_numbers_to_floats(env: &mut Env, value: Value) -> Outcome {
    #[allow(
        clippy::cast_precision_loss,
        reason = "that is what reading them as floats means"
    )]
    Ok(match value {
        Value::Int(number) => Value::Float(number as f64),
        Value::Uint64(number) => Value::Float(number as f64),
        Value::List(list) => {
            let items = list
                .items()
                .iter()
                .map(|item| convert_numbers_to_floats(env, item.clone()))
                .collect::<Result<_, _>>()?;
            Value::List(List::new(&mut env.meter, Element::Any, items)?)
        }
        Value::Map(map) => {
            let keys: Vec<_> = env.heap.get(map).keys().cloned().collect();
            for key in keys {
                if let Some(item) = env.heap.get(map).get(&key).cloned() {
                    let item = convert_numbers_to_floats(env, item)?;
                    env.heap.get_mut(map).insert(key, item);
                }
            }
            Value::Map(map)
        }
        other => other,
    })
}

#[derive(Debug, Clone, Copy)]
struct Style {
    escapes_html: bool,
    indents: bool,
}

fn to_json(env: &mut Env, args: &[Value], style: Style) -> Outcome {
    let mut out = Writer::new(&mut env.meter);
    write_value(&env.heap, &mut out, value_at(args, 0), style, 0)?;
    Ok(Value::Text(out.text.into()))
}

fn write_value(
    heap: &Heap,
    out: &mut Writer<'_>,
    value: &Value,
    style: Style,
    depth: usize,
) -> Result<(), Fault> {
    out.charge_step()?;
    if depth > MAX_PRINT_DEPTH {
        return Err(
            Fault::limit(format!("a value nests deeper than {MAX_PRINT_DEPTH}"))
                .with_help("does a map contain itself?"),
        );
    }
    match value {
        Value::Nil | Value::NilField => out.push("null"),
        Value::Bool(value) => out.push(if *value { "true" } else { "false" }),
        Value::Int(value) | Value::Int64(value) | Value::Duration(value) => {
            out.push(&value.to_string())
        }
        Value::Month(value) | Value::Weekday(value) => out.push(&value.to_string()),
        Value::Uint8(value) => out.push(&value.to_string()),
        Value::Uint64(value) => out.push(&value.to_string()),
        Value::Float(value) if value.is_finite() => out.push(&number_text(*value)),
        Value::Float(value) => Err(Fault::call(format!(
            "json: unsupported value: {}",
            float_text(*value)
        ))),
        Value::Text(text) => write_text(out, text, style),
        Value::Time(time) => write_text(out, &time.rfc3339(), style),
        Value::Version(version) => write_text(out, &version.to_string(), style),
        Value::List(list) if list.is_nil => out.push("null"),
        Value::List(list) => {
            out.push("[")?;
            for (index, item) in list.items().iter().enumerate() {
                write_separator(out, style, index, depth + 1)?;
                write_value(heap, out, item, style, depth + 1)?;
            }
            write_close(out, style, list.len(), depth, "]")
        }
        Value::Map(map) => {
            let entries = heap.get(*map);
            out.push("{")?;
            for (index, (key, item)) in entries.iter().enumerate() {
                write_separator(out, style, index, depth + 1)?;
                write_text(out, key, style)?;
                out.push(if style.indents { ": " } else { ":" })?;
                write_value(heap, out, item, style, depth + 1)?;
            }
            write_close(out, style, entries.len(), depth, "}")
        }
    }
}

fn write_separator(
    out: &mut Writer<'_>,
    style: Style,
    index: usize,
    depth: usize,
) -> Result<(), Fault> {
    if index > 0 {
        out.push(",")?;
    }
    new_line(out, style, depth)
}

fn write_close(
    out: &mut Writer<'_>,
    style: Style,
    count: usize,
    depth: usize,
    bracket: &str,
) -> Result<(), Fault> {
    if count > 0 {
        new_line(out, style, depth)?;
    }
    out.push(bracket)
}

fn new_line(out: &mut Writer<'_>, style: Style, depth: usize) -> Result<(), Fault> {
    if style.indents {
        out.push("\n")?;
        out.push_repeated("  ", depth)?;
    }
    Ok(())
}

/// Formats a number with plain digits, or with an exponent if it is very small or very large.
fn number_text(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 || (1e-6..1e21).contains(&magnitude) {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) if !exponent.starts_with('-') => {
            format!("{mantissa}e+{exponent}")
        }
        _ => text,
    }
}

fn write_text(out: &mut Writer<'_>, text: &str, style: Style) -> Result<(), Fault> {
    out.charge_read(text.len() * 8)?;
    out.push("\"")?;
    let mut plain = 0;
    for (index, c) in text.char_indices() {
        let short = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\x08' => "\\b",
            '\x0c' => "\\f",
            '<' | '>' | '&' if style.escapes_html => "",
            '\u{2028}' | '\u{2029}' | '\0'..' ' => "",
            _ => continue,
        };
        out.push(&text[plain..index])?;
        if short.is_empty() {
            out.push(&format!("\\u{:04x}", u32::from(c)))?;
        } else {
            out.push(short)?;
        }
        plain = index + c.len_utf8();
    }
    out.push(&text[plain..])?;
    out.push("\"")
}
