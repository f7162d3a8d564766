//! Regular expressions, in linear time.
//!
//! Go's syntax is RE2's; the `regex` crate reads the same but for a few escapes, which are translated.

use regex::{Captures, Regex, RegexBuilder};

use super::{Env, Function, Outcome, functions, int_at, text_at};
use crate::{
    error::Fault,
    format::{Writer, quote},
    value::{Element, List, Value},
};

/// Bytes that a compiled expression may take, and its cache.
const MAX_COMPILED: usize = 1 << 20;
/// Longest expression in bytes: compiling is what takes time.
const MAX_EXPRESSION: usize = 1000;

pub(crate) static TABLE: &[Function] = functions! {
    // Sprig's `regexMatch` takes an expression that does not parse for one that does not match.
    "regexMatch" (Text, Text) |env, args| match compiled(env, text_at(args, 0), text_at(args, 1)) {
        Err(fault) if fault.kind == crate::error::FaultKind::Call => Ok(Value::Bool(false)),
        regex => Ok(Value::Bool(regex?.is_match(text_at(args, 1)))),
    };
    "mustRegexMatch" (Text, Text) |env, args| {
        Ok(Value::Bool(compiled(env, text_at(args, 0), text_at(args, 1))?.is_match(text_at(args, 1))))
    };
    "regexFind" (Text, Text) find;
    "mustRegexFind" (Text, Text) find;
    "regexFindAll" (Text, Text, Int) find_all;
    "mustRegexFindAll" (Text, Text, Int) find_all;
    "regexReplaceAll" (Text, Text, Text) |env, args| replace_all(env, args, true);
    "mustRegexReplaceAll" (Text, Text, Text) |env, args| replace_all(env, args, true);
    "regexReplaceAllLiteral" (Text, Text, Text) |env, args| replace_all(env, args, false);
    "mustRegexReplaceAllLiteral" (Text, Text, Text) |env, args| replace_all(env, args, false);
    "regexSplit" (Text, Text, Int) split;
    "mustRegexSplit" (Text, Text, Int) split;
    "regexQuoteMeta" (Text) |env, args| {
        let mut out = String::new();
        for c in text_at(args, 0).chars() {
            if r"\.+*?()|[]{}^$".contains(c) {
                out.push('\\');
            }
            out.push(c);
        }
        env.text(out)
    };
};

/// Compiles `expression` and charges for running it over `text`.
fn compiled(env: &mut Env, expression: &str, text: &str) -> Result<Regex, Fault> {
    if expression.len() > MAX_EXPRESSION {
        return Err(Fault::limit(format!(
            "the regular expression is longer than {MAX_EXPRESSION} bytes"
        )));
    }
    // Compiling takes about 100 steps even where little is to be done.
    env.meter.step(200 + expression.len() as u64 * 20)?;
    env.meter.step(text.len() as u64)?;
    RegexBuilder::new(&translated(expression))
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .nest_limit(50)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Fault::limit(format!(
                "the regular expression {} is too large",
                quote(expression)
            )),
            error => {
                let text = error.to_string();
                let reason = text
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim()
                    .trim_start_matches("error: ")
                    .to_owned();
                Fault::call(format!("regexp: {}: {reason}", quote(expression)))
            }
        })
}

/// The few escapes that Go reads differently: in Go `\d`, `\w`, `\s` and `\b` know ASCII only, `\z` ends
/// the text, and `\Q...\E` quotes.
fn translated(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len() + 16);
    let mut rest = expression;
    let mut in_class = false;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let Some(escape) = rest.chars().next() else {
                    out.push('\\');
                    break;
                };
                rest = &rest[escape.len_utf8()..];
                match escape {
                    'd' => out.push_str("[0-9]"),
                    'w' => out.push_str("[0-9A-Za-z_]"),
                    's' => out.push_str("[\\t\\n\\f\\r ]"),
                    'D' => out.push_str("[^0-9]"),
                    'W' => out.push_str("[^0-9A-Za-z_]"),
                    'S' => out.push_str("[^\\t\\n\\f\\r ]"),
                    'b' if !in_class => out.push_str("(?-u:\\b)"),
                    'Q' if !in_class => {
                        let (quoted, after) = rest.split_once("\\E").unwrap_or((rest, ""));
                        out.push_str(&regex::escape(quoted));
                        rest = after;
                    }
                    escape => {
                        out.push('\\');
                        out.push(escape);
                    }
                }
            }
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if let Some(after) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = after;
                }
                // A bracket right after the opening one stands for itself.
                if let Some(after) = rest.strip_prefix(']') {
                    out.push_str("\\]");
                    rest = after;
                }
            }
            '[' => {
                if rest.starts_with(':') {
                    let class_end = rest.find(":]").map_or(0, |end| end + 2);
                    out.push('[');
                    out.push_str(&rest[..class_end]);
                    rest = &rest[class_end..];
                } else {
                    // In Go a bracket inside a class is a bracket; here it would nest.
                    out.push_str("\\[");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            // Here these would be set operations.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && rest.starts_with('-') => out.push_str("\\-"),
            c => out.push(c),
        }
    }
    out
}

fn find(env: &mut Env, args: &[Value]) -> Outcome {
    let regex = compiled(env, text_at(args, 0), text_at(args, 1))?;
    env.text(
        regex
            .find(text_at(args, 1))
            .map_or("", |found| found.as_str()),
    )
}

/// At most how many matches: a negative number is no bound.
fn count(value: i64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The matches as Go counts them: an empty one right behind another is none.
fn matches<'t>(regex: &Regex, text: &'t str) -> impl Iterator<Item = Captures<'t>> {
    let mut last_end = None;
    // Collected lazily; the regex is cloned cheaply, it is reference counted.
    let regex = regex.clone();
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            if position > text.len() {
                return None;
            }
            let captures = regex.captures_at(text, position)?;
            let (start, end) = captures.get(0).map(|found| (found.start(), found.end()))?;
            if start == end {
                position = end + text[end..].chars().next().map_or(1, char::len_utf8);
                if last_end == Some(end) {
                    continue;
                }
            } else {
                position = end;
            }
            last_end = Some(end);
            return Some(captures);
        }
    })
}

fn find_all(env: &mut Env, args: &[Value]) -> Outcome {
    let regex = compiled(env, text_at(args, 0), text_at(args, 1))?;
    let mut items = Vec::new();
    for captures in matches(&regex, text_at(args, 1)).take(count(int_at(args, 2))) {
        env.meter.step(20)?;
        let found = captures.get(0).map_or("", |found| found.as_str());
        env.meter.allocate(found.len() + size_of::<Value>())?;
        items.push(Value::text(found));
    }
    if items.is_empty() {
        return Ok(Value::List(List::nil(Element::Text)));
    }
    env.list(Element::Text, items)
}

fn replace_all(env: &mut Env, args: &[Value], expands: bool) -> Outcome {
    let (text, replacement) = (text_at(args, 1), text_at(args, 2));
    let regex = compiled(env, text_at(args, 0), text)?;
    env.write(|out| {
        let mut end = 0;
        for captures in matches(&regex, text) {
            out.step()?;
            let Some(found) = captures.get(0) else {
                continue;
            };
            out.push(&text[end..found.start()])?;
            if expands {
                expand(out, &captures, replacement)?;
            } else {
                out.push(replacement)?;
            }
            end = found.end();
        }
        out.push(&text[end..])
    })
}

/// Writes a replacement with `$1`, `${1}`, `$name` and `$$` filled in.
fn expand(out: &mut Writer<'_>, captures: &Captures<'_>, replacement: &str) -> Result<(), Fault> {
    let mut rest = replacement;
    while let Some(dollar) = rest.find('$') {
        out.push(&rest[..dollar])?;
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push("$")?;
            rest = after;
            continue;
        }
        let is_name = |c: char| c == '_' || c.is_alphanumeric();
        let (name, after) = match rest.strip_prefix('{') {
            Some(inner) => match inner.split_once('}') {
                Some((name, after)) if !name.is_empty() && name.chars().all(is_name) => {
                    (name, after)
                }
                _ => ("", rest),
            },
            None => rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len())),
        };
        if name.is_empty() {
            // Not a reference: the dollar stands for itself.
            out.push("$")?;
            continue;
        }
        rest = after;
        let group = match name.parse::<usize>() {
            Ok(number) => captures.get(number),
            Err(_) => captures.name(name),
        };
        if let Some(group) = group {
            out.push(group.as_str())?;
        }
    }
    out.push(rest)
}

/// `regexp.Split`.
fn split(env: &mut Env, args: &[Value]) -> Outcome {
    let text = text_at(args, 1);
    let limit = int_at(args, 2);
    let regex = compiled(env, text_at(args, 0), text)?;
    if limit == 0 {
        return Ok(Value::List(List::nil(Element::Text)));
    }
    if !text_at(args, 0).is_empty() && text.is_empty() {
        return env.texts([""]);
    }
    let limit = count(limit);
    let mut parts = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for captures in matches(&regex, text) {
        env.meter.step(20)?;
        if parts.len() + 1 >= limit {
            break;
        }
        let Some(found) = captures.get(0) else {
            continue;
        };
        end = found.start();
        if found.end() != 0 {
            parts.push(&text[begin..end]);
        }
        begin = found.end();
    }
    if end != text.len() {
        parts.push(&text[begin..]);
    }
    env.texts(parts)
}
