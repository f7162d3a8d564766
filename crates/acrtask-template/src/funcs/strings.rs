//! Texts: cutting, joining, replacing, quoting.

use super::{Env, Function, Outcome, functions, int_at, text_at, value_at};
use crate::{
    error::Fault,
    format::{self, Writer},
    value::{ENTRY_BYTES, Element, Entries, Value},
};

pub(crate) static TABLE: &[Function] = functions! {
    "hello" () |env, _| env.new_text("Hello!");
    "trim" (Text) |env, args| env.new_text(text_at(args, 0).trim());
    "upper" (Text) |env, args| {
        env.meter.charge_read(text_at(args, 0).len() * 4)?;
        env.new_text(text_at(args, 0).to_uppercase())
    };
    "lower" (Text) |env, args| {
        env.meter.charge_read(text_at(args, 0).len() * 4)?;
        env.new_text(text_at(args, 0).to_lowercase())
    };
    "repeat" (Int, Text) repeat;
    "trimall" (Text, Text) trim_all;
    "trimAll" (Text, Text) trim_all;
    "trimSuffix" (Text, Text) |env, args| {
        let text = text_at(args, 1);
        env.new_text(text.strip_suffix(&**text_at(args, 0)).unwrap_or(text))
    };
    "trimPrefix" (Text, Text) |env, args| {
        let text = text_at(args, 1);
        env.new_text(text.strip_prefix(&**text_at(args, 0)).unwrap_or(text))
    };
    "contains" (Text, Text) |_, args| Ok(Value::Bool(text_at(args, 1).contains(&**text_at(args, 0))));
    "hasPrefix" (Text, Text) |_, args| Ok(Value::Bool(text_at(args, 1).starts_with(&**text_at(args, 0))));
    "hasSuffix" (Text, Text) |_, args| Ok(Value::Bool(text_at(args, 1).ends_with(&**text_at(args, 0))));
    "replace" (Text, Text, Text) replace;
    "trunc" (Int, Text) trunc;
    "substr" (Int, Int, Text) substr;
    "quote" (; Any) |env, args| join_args(env, args, |env, value| Ok(format::quote(&text_of(env, value)?)));
    "squote" (; Any) |env, args| join_args(env, args, |env, value| Ok(format!("'{}'", format::display(env, value)?)));
    "cat" (; Any) |env, args| {
        let text = join_args(env, args, |env, value| Ok(format::display(env, value)?.into_owned()))?;
        Ok(text)
    };
    "indent" (Int, Text) |env, args| indent(env, args, "");
    "nindent" (Int, Text) |env, args| indent(env, args, "\n");
    "plural" (Text, Text, Int) |_, args| Ok(value_at(args, usize::from(int_at(args, 2) != 1)).clone());
    "toString" (Any) |env, args| text_of(env, value_at(args, 0)).and_then(|text| env.new_text(text));
    "toStrings" (Any) |env, args| {
        let texts = texts_of(env, value_at(args, 0))?;
        env.new_texts(texts.iter().map(String::as_str))
    };
    "join" (Text, Any) join;
    "split" (Text, Text) |env, args| {
        let (separator, text) = (text_at(args, 0), text_at(args, 1));
        numbered_parts(env, text, separator, -1)
    };
    "splitn" (Text, Int, Text) |env, args| {
        let (separator, text) = (text_at(args, 0), text_at(args, 2));
        numbered_parts(env, text, separator, int_at(args, 1))
    };
    "splitList" (Text, Text) |env, args| {
        let (separator, text) = (text_at(args, 0), text_at(args, 1));
        {
            let parts = split_text(env, text, separator, -1)?;
            env.new_texts(parts)
        }
    };
};

/// Converts a value to text like Sprig: the output of `%v`.
pub(crate) fn text_of(env: &mut Env, value: &Value) -> Result<String, Fault> {
    if let Value::Text(text) = value {
        // Many elements of a list may share a text, but each copy costs memory.
        env.meter.charge_text(text.len())?;
    }
    Ok(format::display(env, value)?.into_owned())
}

/// Converts a value to a list of texts. A list gives its elements without missing ones. A missing
/// value gives an empty list.
pub(crate) fn texts_of(env: &mut Env, value: &Value) -> Result<Vec<String>, Fault> {
    match value {
        Value::List(list) => list
            .items()
            .iter()
            .filter(|item| !item.is_nil())
            .map(|item| text_of(env, item))
            .collect(),
        value if value.is_nil() => Ok(Vec::new()),
        value => Ok(vec![text_of(env, value)?]),
    }
}

/// Formats each argument that is not missing with `part`, and joins them with spaces.
fn join_args(
    env: &mut Env,
    args: &[Value],
    part: fn(&mut Env, &Value) -> Result<String, Fault>,
) -> Outcome {
    let mut parts = Vec::new();
    for value in args.iter().filter(|value| !value.is_nil()) {
        env.meter.charge_read(value.shallow_bytes(&env.heap) * 4)?;
        let text = part(env, value)?;
        env.meter.charge_text(text.len())?;
        parts.push(text);
    }
    env.new_text(parts.join(" "))
}

fn repeat(env: &mut Env, args: &[Value]) -> Outcome {
    let count = usize::try_from(int_at(args, 0))
        .map_err(|_| Fault::call("strings: negative Repeat count"))?;
    env.write_text(|out| {
        out.push_repeated(
            text_at(args, 1),
            if text_at(args, 1).is_empty() {
                0
            } else {
                count
            },
        )
    })
}

fn trim_all(env: &mut Env, args: &[Value]) -> Outcome {
    let (cut, text) = (text_at(args, 0), text_at(args, 1));
    env.meter
        .charge_steps((text.len() as u64).saturating_mul(cut.len() as u64) / 64)?;
    env.new_text(text.trim_matches(|c| cut.contains(c)))
}

fn replace(env: &mut Env, args: &[Value]) -> Outcome {
    let (old, new, text) = (text_at(args, 0), text_at(args, 1), text_at(args, 2));
    env.meter.charge_read(text.len() * 4)?;
    env.write_text(|out| replace_all(out, text, old, new))
}

fn replace_all(out: &mut Writer<'_>, text: &str, old: &str, new: &str) -> Result<(), Fault> {
    let mut end = 0;
    for (start, matched) in text.match_indices(old) {
        out.push(&text[end..start])?;
        out.push(new)?;
        end = start + matched.len();
    }
    out.push(&text[end..])
}

/// Returns the part of `text` between two byte offsets. Refuses offsets like Go, and those inside a
/// character.
fn slice_text(env: &mut Env, text: &str, start: i64, end: i64) -> Outcome {
    let out_of_range = || {
        Fault::call(format!(
            "runtime error: slice bounds out of range [{start}:{end}]"
        ))
    };
    let from = usize::try_from(start).map_err(|_| out_of_range())?;
    let to = usize::try_from(end).map_err(|_| out_of_range())?;
    if from > to || to > text.len() {
        return Err(out_of_range());
    }
    match text.get(from..to) {
        Some(part) => env.new_text(part),
        None => Err(Fault::call(format!(
            "[{start}:{end}] cuts a character of {} in two",
            format::quote(text)
        ))
        .with_help("offsets count bytes; a character beyond ASCII has several")),
    }
}

fn text_len(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

fn trunc(env: &mut Env, args: &[Value]) -> Outcome {
    let (count, text) = (int_at(args, 0), text_at(args, 1));
    let length = text_len(text);
    match count {
        count if count < 0 && length.saturating_add(count) > 0 => {
            slice_text(env, text, length + count, length)
        }
        count if count >= 0 && length > count => slice_text(env, text, 0, count),
        _ => Ok(value_at(args, 1).clone()),
    }
}

fn substr(env: &mut Env, args: &[Value]) -> Outcome {
    let (start, end, text) = (int_at(args, 0), int_at(args, 1), text_at(args, 2));
    let length = text_len(text);
    if start < 0 {
        slice_text(env, text, 0, end)
    } else if end < 0 || end > length {
        slice_text(env, text, start, length)
    } else {
        slice_text(env, text, start, end)
    }
}

fn indent(env: &mut Env, args: &[Value], before: &str) -> Outcome {
    let text = text_at(args, 1);
    let count = usize::try_from(int_at(args, 0))
        .map_err(|_| Fault::call("strings: negative Repeat count"))?;
    env.write_text(|out| {
        out.push(before)?;
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                out.push("\n")?;
            }
            out.push_repeated(" ", count)?;
            out.push(line)?;
        }
        Ok(())
    })
}

fn join(env: &mut Env, args: &[Value]) -> Outcome {
    let texts = texts_of(env, value_at(args, 1))?;
    env.write_text(|out| {
        for (index, text) in texts.iter().enumerate() {
            if index > 0 {
                out.push(text_at(args, 0))?;
            }
            out.push(text)?;
        }
        Ok(())
    })
}

/// Splits a text like `strings.SplitN`, into at most `limit` parts. A negative limit means no
/// limit. An empty separator splits into characters.
fn split_text<'t>(
    env: &mut Env,
    text: &'t str,
    separator: &str,
    limit: i64,
) -> Result<Vec<&'t str>, Fault> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Vec::new());
    }
    let count = if separator.is_empty() {
        text.chars().count()
    } else {
        text.matches(separator).count() + 1
    };
    env.meter
        .charge_memory(count.min(limit) * size_of::<&str>())?;
    if !separator.is_empty() {
        return Ok(text.splitn(limit, separator).collect());
    }
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest);
            break;
        }
        let (first, after) = rest.split_at(c.len_utf8());
        parts.push(first);
        rest = after;
    }
    Ok(parts)
}

/// Splits a text into a map with the keys `_0`, `_1` and so on.
fn numbered_parts(env: &mut Env, text: &str, separator: &str, limit: i64) -> Outcome {
    let mut entries = Entries::new();
    for (index, part) in split_text(env, text, separator, limit)?
        .into_iter()
        .enumerate()
    {
        env.meter.charge_memory(part.len() + ENTRY_BYTES)?;
        entries.insert(format!("_{index}").into(), Value::text(part));
    }
    env.new_map(Element::Text, entries)
}
