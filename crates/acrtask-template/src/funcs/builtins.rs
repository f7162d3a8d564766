//! Functions of `text/template` itself.

use std::cmp::Ordering;

use super::{Body, Env, Function, Outcome, Param, functions, int_value, text_at, value_at};
use crate::{
    error::Fault,
    format,
    value::{Element, Value},
};

pub(crate) static SHORT_CIRCUIT: &[Function] = &[
    Function {
        name: "and",
        params: &[Param::Any],
        rest: Some(Param::Any),
        body: Body::ShortCircuit { stops_at: false },
    },
    Function {
        name: "or",
        params: &[Param::Any],
        rest: Some(Param::Any),
        body: Body::ShortCircuit { stops_at: true },
    },
];

pub(crate) static TABLE: &[Function] = functions! {
    "not" (Any) |env, args| Ok(Value::Bool(!value_at(args, 0).is_truthy(&env.heap)));
    "len" (Any) length;
    "index" (Any; Any) index;
    "print" (; Any) |env, args| format::print(env, args, false).and_then(|text| env.new_text(text));
    "println" (; Any) |env, args| format::print(env, args, true).and_then(|text| env.new_text(text));
    "printf" (Text; Any) |env, args| {
        let text = format::printf(env, text_at(args, 0), args.get(1..).unwrap_or_default())?;
        Ok(Value::Text(text.into()))
    };
    "html" (; Any) |env, args| escape_args(env, args, html_escape);
    "js" (; Any) |env, args| escape_args(env, args, js_escape);
    "urlquery" (; Any) |env, args| escape_args(env, args, super::url::query_escape);
    "eq" (Any; Any) |_, args| any_equal(args).map(Value::Bool);
    "ne" (Any, Any) |_, args| any_equal(args).map(|equal| Value::Bool(!equal));
    "lt" (Any, Any) |_, args| Ok(Value::Bool(compare(args)? == Some(Ordering::Less)));
    "le" (Any, Any) |_, args| {
        Ok(Value::Bool(matches!(compare(args)?, Some(Ordering::Less | Ordering::Equal))))
    };
    // Go negates `le`: if one of two floats is NaN, `gt` is true.
    "gt" (Any, Any) |_, args| {
        Ok(Value::Bool(!matches!(compare(args)?, Some(Ordering::Less | Ordering::Equal))))
    };
    "ge" (Any, Any) |_, args| Ok(Value::Bool(compare(args)? != Some(Ordering::Less)));
};

fn length(env: &mut Env, args: &[Value]) -> Outcome {
    match value_at(args, 0) {
        Value::Text(text) => Ok(int_value(text.len())),
        Value::List(list) => Ok(int_value(list.len())),
        Value::Map(map) => Ok(int_value(env.heap.get(*map).len())),
        value if value.is_nil() => Err(Fault::call("len of nil pointer")),
        value => Err(Fault::call(format!("len of type {}", value.type_name()))),
    }
}

fn index(env: &mut Env, args: &[Value]) -> Outcome {
    let mut item = value_at(args, 0).clone();
    if item.is_nil() {
        return Err(Fault::call("index of untyped nil"));
    }
    for index in args.get(1..).unwrap_or_default() {
        item = match &item {
            Value::List(list) => {
                let position = index_of(index, list.len())?;
                match list.items().get(position) {
                    Some(value) => value.as_field(),
                    None => return Err(Fault::call("reflect: slice index out of range")),
                }
            }
            Value::Text(text) => {
                let position = index_of(index, text.len())?;
                match text.as_bytes().get(position) {
                    Some(byte) => Value::Uint8(*byte),
                    None => return Err(Fault::call("reflect: string index out of range")),
                }
            }
            Value::Map(map) => match index {
                Value::Text(key) => match env.heap.get(*map).get(key) {
                    Some(value) => value.as_field(),
                    None if map.element == Element::Text => Value::text(""),
                    None => Value::NilField,
                },
                index if index.is_nil() => {
                    return Err(Fault::call("value is nil; should be of type string"));
                }
                index => {
                    return Err(Fault::call(format!(
                        "value has type {}; should be string",
                        index.type_name()
                    )));
                }
            },
            value if value.is_nil() => return Err(Fault::call("index of nil pointer")),
            value => {
                return Err(Fault::call(format!(
                    "can't index item of type {}",
                    value.type_name()
                )));
            }
        };
    }
    Ok(item)
}

fn index_of(index: &Value, length: usize) -> Result<usize, Fault> {
    let position = match index {
        Value::Int(value) | Value::Int64(value) => *value,
        Value::Uint8(value) => i64::from(*value),
        Value::Uint64(value) => i64::try_from(*value).unwrap_or(-1),
        value if value.is_nil() => return Err(Fault::call("cannot index slice/array with nil")),
        value => {
            return Err(Fault::call(format!(
                "cannot index slice/array with type {}",
                value.type_name()
            )));
        }
    };
    usize::try_from(position)
        .ok()
        .filter(|position| *position <= length)
        .ok_or_else(|| Fault::call(format!("index out of range: {position}")))
}

/// Comparable values, by Go's basic kinds.
enum Basic<'a> {
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
}

fn to_basic(value: &Value) -> Option<Basic<'_>> {
    Some(match value {
        Value::Bool(value) => Basic::Bool(*value),
        Value::Int(value) | Value::Int64(value) | Value::Duration(value) => {
            Basic::Integer(i128::from(*value))
        }
        Value::Month(value) | Value::Weekday(value) => Basic::Integer(i128::from(*value)),
        Value::Uint8(value) => Basic::Integer(i128::from(*value)),
        Value::Uint64(value) => Basic::Integer(i128::from(*value)),
        Value::Float(value) => Basic::Float(*value),
        Value::Text(text) => Basic::Text(text),
        _ => return None,
    })
}

fn incompatible(left: &Value, right: &Value) -> Fault {
    let (left, right) = (left.type_name(), right.type_name());
    let fault = Fault::call(format!(
        "incompatible types for comparison: {left} and {right}"
    ));
    if left == "string" || right == "string" {
        fault.with_help(
            "values given with `--set` are texts: compare with a text, or convert with `int`",
        )
    } else {
        fault
    }
}

/// Returns `true` if the first value equals any of the others.
fn any_equal(args: &[Value]) -> Result<bool, Fault> {
    let [left, others @ ..] = args else {
        return Err(Fault::call("missing argument for comparison"));
    };
    if others.is_empty() {
        return Err(Fault::call("missing argument for comparison"));
    }
    for right in others {
        if values_equal(left, right)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn values_equal(left: &Value, right: &Value) -> Result<bool, Fault> {
    if left.is_nil() || right.is_nil() {
        let is_nil =
            |value: &Value| value.is_nil() || matches!(value, Value::List(list) if list.is_nil);
        return Ok(is_nil(left) && is_nil(right));
    }
    #[allow(clippy::float_cmp, reason = "Go compares exactly")]
    match (to_basic(left), to_basic(right)) {
        (Some(Basic::Bool(left)), Some(Basic::Bool(right))) => Ok(left == right),
        (Some(Basic::Integer(left)), Some(Basic::Integer(right))) => Ok(left == right),
        (Some(Basic::Float(left)), Some(Basic::Float(right))) => Ok(left == right),
        (Some(Basic::Text(left)), Some(Basic::Text(right))) => Ok(left == right),
        (None, None) => match (left, right) {
            (Value::Time(left), Value::Time(right)) => Ok(left == right),
            (Value::Version(left), Value::Version(right)) => Ok(std::rc::Rc::ptr_eq(left, right)),
            (Value::List(_), Value::List(_)) | (Value::Map(_), Value::Map(_)) => Err(Fault::call(
                format!("non-comparable type: {}", right.type_name()),
            )
            .with_help("lists and dicts are compared with `deepEqual`")),
            _ => Err(Fault::call(format!(
                "non-comparable types {}, {}",
                left.type_name(),
                right.type_name()
            ))),
        },
        _ => Err(incompatible(left, right)),
    }
}

/// Compares two values. `None` if one of them is NaN.
fn compare(args: &[Value]) -> Result<Option<Ordering>, Fault> {
    let (left, right) = (value_at(args, 0), value_at(args, 1));
    let bad = || {
        let fault = Fault::call("invalid type for comparison");
        if left.is_nil() || right.is_nil() {
            fault.with_help("a value is missing; give it a default: `(default 0 .Values.NAME)`")
        } else {
            fault
        }
    };
    match (
        to_basic(left).ok_or_else(bad)?,
        to_basic(right).ok_or_else(bad)?,
    ) {
        (Basic::Bool(_), Basic::Bool(_)) => Err(bad()),
        (Basic::Integer(left), Basic::Integer(right)) => Ok(Some(left.cmp(&right))),
        (Basic::Float(left), Basic::Float(right)) => Ok(left.partial_cmp(&right)),
        (Basic::Text(left), Basic::Text(right)) => Ok(Some(left.cmp(right))),
        _ => Err(incompatible(left, right)),
    }
}

/// Joins the arguments to one text and escapes it.
fn escape_args(env: &mut Env, args: &[Value], escape: fn(&str) -> String) -> Outcome {
    let text = match args {
        [Value::Text(text)] => text.to_string(),
        // A single missing value is escaped as its output, which is empty as in an action.
        [value] if value.is_nil() => String::new(),
        values => format::print(env, values, false)?,
    };
    // An escape has at most six bytes per byte.
    env.meter.charge_steps(text.len() as u64 / 8)?;
    let escaped = escape(&text);
    env.new_text(escaped)
}

fn html_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn js_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' => out.push_str("\\u003C"),
            '>' => out.push_str("\\u003E"),
            '&' => out.push_str("\\u0026"),
            '=' => out.push_str("\\u003D"),
            c if c < ' ' || (!c.is_ascii() && !format::is_printable(c)) => {
                out.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}
