//! Regular expressions, in linear time.
//!
//! Go has RE2's syntax. The `regex` crate accepts the same syntax except for a few escapes, which
//! are translated. Left out: one name for two groups.

use std::ops::Range;

use regex::{Captures, Regex, RegexBuilder};

use super::{Env, Function, Outcome, functions, int_at, text_at};
use crate::{
    error::Fault,
    format::{Writer, quote},
    limits::Meter,
    value::{Element, List, Value},
};

/// Maximum size of a compiled expression and of the cache of its automaton, in bytes.
const MAX_COMPILED: usize = 256 << 10;
/// Maximum length of an expression in bytes. Compiling takes most of the time.
const MAX_EXPRESSION: usize = 1000;

pub(crate) static TABLE: &[Function] = functions! {
    // For Sprig's `regexMatch`, an invalid expression does not match.
    "regexMatch" (Text, Text) |env, args| match compile(env, text_at(args, 0), text_at(args, 1)) {
        Err(fault) if fault.kind == crate::error::FaultKind::Call => Ok(Value::Bool(false)),
        regex => Ok(Value::Bool(regex?.regex.is_match(text_at(args, 1)))),
    };
    "mustRegexMatch" (Text, Text) |env, args| {
        Ok(Value::Bool(compile(env, text_at(args, 0), text_at(args, 1))?.regex.is_match(text_at(args, 1))))
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
        env.new_text(out)
    };
};

/// A compiled expression with an estimate of its cost.
struct Compiled {
    regex: Regex,
    /// Approximate number of states of its automaton.
    states: u64,
}

/// Estimates the number of states of an automaton: the length of `expression` times all its counts,
/// `a{2,30}`.
fn estimated_states(expression: &str) -> u64 {
    let mut states = expression.len() as u64;
    for part in expression.split('{').skip(1) {
        let bounds = part.split('}').next().unwrap_or_default();
        let largest = bounds
            .split(',')
            .filter_map(|bound| bound.parse::<u64>().ok())
            .max();
        states = states.saturating_mul(largest.unwrap_or(1).max(1));
    }
    states
}

/// Compiles `expression`, and charges for running it once over `text`.
fn compile(env: &mut Env, expression: &str, text: &str) -> Result<Compiled, Fault> {
    if expression.len() > MAX_EXPRESSION {
        return Err(Fault::limit(format!(
            "the regular expression is longer than {MAX_EXPRESSION} bytes"
        )));
    }
    let states = estimated_states(expression);
    // Compiling costs at least some hundred units of work. Unicode classes are large.
    let classes = expression.matches(r"\p").count() + expression.matches(r"\P").count();
    env.meter
        .charge_steps((200 + classes as u64 * 2_000).saturating_add(states.saturating_mul(20)))?;
    // In the worst case, every byte visits every state. About 30 visits take the time of a unit of
    // work.
    env.meter
        .charge_steps((text.len() as u64).saturating_mul(1 + states / 32))?;
    let regex = build_regex(expression)?;
    Ok(Compiled { regex, states })
}

fn build_regex(expression: &str) -> Result<Regex, Fault> {
    RegexBuilder::new(&translate_syntax(expression))
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

/// Translates the escapes that Go reads differently. In Go, `\d`, `\w`, `\s` and `\b` match ASCII
/// only, `\z` matches the end of the text, and `\Q...\E` quotes.
fn translate_syntax(expression: &str) -> String {
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
                // A bracket directly after the opening one is literal.
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
                    // In Go, a bracket inside a class is literal. In this crate it would nest.
                    out.push_str("\\[");
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            // The `regex` crate would read these as set operations.
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
    let regex = compile(env, text_at(args, 0), text_at(args, 1))?;
    env.new_text(
        regex
            .regex
            .find(text_at(args, 1))
            .map_or("", |found| found.as_str()),
    )
}

/// Returns the maximum number of matches. A negative number means no limit.
fn match_limit(value: i64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The matches in a text, as Go counts them. An empty match directly after another one is skipped.
struct Matches<'c, 't> {
    compiled: &'c Compiled,
    text: &'t str,
    position: usize,
    last_end: Option<usize>,
}

impl<'c, 't> Matches<'c, 't> {
    fn new(compiled: &'c Compiled, text: &'t str) -> Self {
        Self {
            compiled,
            text,
            position: 0,
            last_end: None,
        }
    }

    /// Returns the next match and its groups.
    ///
    /// Charges for reading the rest of the text, which even a short match may need.
    fn next(&mut self, meter: &mut Meter) -> Result<Option<(Captures<'t>, Range<usize>)>, Fault> {
        while self.position <= self.text.len() {
            let rest = (self.text.len() - self.position) as u64;
            meter.charge_steps(10 + rest.saturating_mul(self.compiled.states.max(16)) / 1024)?;
            let Some(captures) = self.compiled.regex.captures_at(self.text, self.position) else {
                break;
            };
            let Some(found) = captures.get(0).map(|found| found.range()) else {
                break;
            };
            let after_last = self.last_end == Some(found.end);
            self.position = found.end;
            if found.is_empty() {
                let next = self.text[found.end..].chars().next();
                self.position += next.map_or(1, char::len_utf8);
                if after_last {
                    continue;
                }
            }
            self.last_end = Some(found.end);
            return Ok(Some((captures, found)));
        }
        Ok(None)
    }
}

fn find_all(env: &mut Env, args: &[Value]) -> Outcome {
    let regex = compile(env, text_at(args, 0), text_at(args, 1))?;
    let mut items = Vec::new();
    let mut matches = Matches::new(&regex, text_at(args, 1));
    while items.len() < match_limit(int_at(args, 2)) {
        let Some((_, found)) = matches.next(&mut env.meter)? else {
            break;
        };
        env.meter.charge_memory(found.len() + size_of::<Value>())?;
        items.push(Value::text(&text_at(args, 1)[found]));
    }
    if items.is_empty() {
        return Ok(Value::List(List::nil(Element::Text)));
    }
    env.new_list(Element::Text, items)
}

fn replace_all(env: &mut Env, args: &[Value], expands: bool) -> Outcome {
    let (text, replacement) = (text_at(args, 1), text_at(args, 2));
    let regex = compile(env, text_at(args, 0), text)?;
    env.write_text(|out| {
        let mut end = 0;
        let mut matches = Matches::new(&regex, text);
        while let Some((captures, found)) = matches.next(out.meter())? {
            out.push(&text[end..found.start])?;
            if expands {
                expand(out, &captures, replacement)?;
            } else {
                out.push(replacement)?;
            }
            end = found.end;
        }
        out.push(&text[end..])
    })
}

/// Writes a replacement, and expands `$1`, `${1}`, `$name` and `$$` in it.
fn expand(out: &mut Writer<'_>, captures: &Captures<'_>, replacement: &str) -> Result<(), Fault> {
    // The groups may be empty, so charge for reading the replacement itself for each match.
    out.charge_read(replacement.len().saturating_mul(2))?;
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
            // The dollar is not a reference, so it is literal.
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

/// Splits a text like `regexp.Split`.
fn split(env: &mut Env, args: &[Value]) -> Outcome {
    let text = text_at(args, 1);
    let limit = int_at(args, 2);
    let regex = compile(env, text_at(args, 0), text)?;
    if limit == 0 {
        return Ok(Value::List(List::nil(Element::Text)));
    }
    if !text_at(args, 0).is_empty() && text.is_empty() {
        return env.new_texts([""]);
    }
    let limit = match_limit(limit);
    let mut parts = Vec::new();
    let (mut begin, mut end) = (0, 0);
    let mut matches = Matches::new(&regex, text);
    while parts.len() + 1 < limit {
        let Some((_, found)) = matches.next(&mut env.meter)? else {
            break;
        };
        end = found.start;
        if found.end != 0 {
            env.meter.charge_memory(size_of::<&str>())?;
            parts.push(&text[begin..end]);
        }
        begin = found.end;
    }
    if end != text.len() {
        parts.push(&text[begin..]);
    }
    env.new_texts(parts)
}
