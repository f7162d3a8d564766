//! Lists. They are immutable, so every function returns a new one.

use super::{
    Env, Function, Outcome, functions, int_at,
    math::to_int,
    strings,
    types::{deep_equal, is_empty},
    value_at,
};
use crate::{
    error::Fault,
    value::{Element, List, Value},
};

pub(crate) static TABLE: &[Function] = functions! {
    "list" (; Any) |env, args| env.new_list(Element::Any, args.to_vec());
    "tuple" (; Any) |env, args| env.new_list(Element::Any, args.to_vec());
    "append" (Any, Any) append;
    "mustAppend" (Any, Any) append;
    "push" (Any, Any) append;
    "mustPush" (Any, Any) append;
    "prepend" (Any, Any) prepend;
    "mustPrepend" (Any, Any) prepend;
    "first" (Any) |_, args| Ok(item_or_nil(list_at(args, 0, "Cannot find first on type")?.items().first()));
    "mustFirst" (Any) |_, args| Ok(item_or_nil(list_at(args, 0, "Cannot find first on type")?.items().first()));
    "last" (Any) |_, args| Ok(item_or_nil(list_at(args, 0, "Cannot find last on type")?.items().last()));
    "mustLast" (Any) |_, args| Ok(item_or_nil(list_at(args, 0, "Cannot find last on type")?.items().last()));
    "rest" (Any) rest;
    "mustRest" (Any) rest;
    "initial" (Any) initial;
    "mustInitial" (Any) initial;
    "reverse" (Any) reverse;
    "mustReverse" (Any) reverse;
    "compact" (Any) compact;
    "mustCompact" (Any) compact;
    "uniq" (Any) uniq;
    "mustUniq" (Any) uniq;
    "without" (Any; Any) without;
    "mustWithout" (Any; Any) without;
    "has" (Any, Any) has;
    "mustHas" (Any, Any) has;
    "slice" (Any; Any) slice;
    "mustSlice" (Any; Any) slice;
    "concat" (; Any) concat;
    "chunk" (Int, Any) chunk;
    "mustChunk" (Int, Any) chunk;
    "sortAlpha" (Any) sort_alpha;
    "until" (Int) |env, args| {
        let stop = int_at(args, 0);
        until_step(env, 0, stop, if stop < 0 { -1 } else { 1 })
    };
    "untilStep" (Int, Int, Int) |env, args| until_step(env, int_at(args, 0), int_at(args, 1), int_at(args, 2));
    "seq" (; Int) seq;
};

fn list_at<'a>(args: &'a [Value], index: usize, message: &str) -> Result<&'a List, Fault> {
    match value_at(args, index) {
        Value::List(list) => Ok(list),
        value if value.is_nil() => Err(Fault::call(
            "runtime error: invalid memory address or nil pointer dereference",
        )
        .with_help("the list is missing; give it a default: `(default list .Values.NAME)`")),
        value => Err(Fault::call(format!("{message} {}", value.kind_name()))),
    }
}

fn item_or_nil(item: Option<&Value>) -> Value {
    item.map_or(Value::NilField, Value::as_field)
}

fn append(env: &mut Env, args: &[Value]) -> Outcome {
    let mut items = list_at(args, 0, "Cannot push on type")?.items().to_vec();
    items.push(value_at(args, 1).clone());
    env.new_list(Element::Any, items)
}

fn prepend(env: &mut Env, args: &[Value]) -> Outcome {
    let list = list_at(args, 0, "Cannot prepend on type")?;
    let items = std::iter::once(value_at(args, 1))
        .chain(list.items())
        .cloned()
        .collect();
    env.new_list(Element::Any, items)
}

fn rest(env: &mut Env, args: &[Value]) -> Outcome {
    match list_at(args, 0, "Cannot find rest on type")?.items() {
        [] => Ok(Value::List(List::nil(Element::Any))),
        [_, rest @ ..] => env.new_list(Element::Any, rest.to_vec()),
    }
}

fn initial(env: &mut Env, args: &[Value]) -> Outcome {
    match list_at(args, 0, "Cannot find initial on type")?.items() {
        [] => Ok(Value::List(List::nil(Element::Any))),
        [initial @ .., _] => env.new_list(Element::Any, initial.to_vec()),
    }
}

fn reverse(env: &mut Env, args: &[Value]) -> Outcome {
    let items = list_at(args, 0, "Cannot find reverse on type")?
        .items()
        .iter()
        .rev()
        .cloned()
        .collect();
    env.new_list(Element::Any, items)
}

fn compact(env: &mut Env, args: &[Value]) -> Outcome {
    let list = list_at(args, 0, "Cannot compact on type")?;
    let items = list
        .items()
        .iter()
        .filter(|item| !is_empty(env, item))
        .cloned()
        .collect();
    env.new_list(Element::Any, items)
}

fn contains(env: &mut Env, items: &[Value], needle: &Value) -> Result<bool, Fault> {
    for item in items {
        if deep_equal(env, needle, item, 0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn uniq(env: &mut Env, args: &[Value]) -> Outcome {
    let mut items: Vec<Value> = Vec::new();
    for item in list_at(args, 0, "Cannot find uniq on type")?.items() {
        if !contains(env, &items, item)? {
            items.push(item.clone());
        }
    }
    env.new_list(Element::Any, items)
}

fn without(env: &mut Env, args: &[Value]) -> Outcome {
    let omitted = args.get(1..).unwrap_or_default();
    let mut items = Vec::new();
    for item in list_at(args, 0, "Cannot find without on type")?.items() {
        if !contains(env, omitted, item)? {
            items.push(item.clone());
        }
    }
    env.new_list(Element::Any, items)
}

fn has(env: &mut Env, args: &[Value]) -> Outcome {
    if value_at(args, 1).is_nil() {
        return Ok(Value::Bool(false));
    }
    let list = list_at(args, 1, "Cannot find has on type")?;
    contains(env, list.items(), value_at(args, 0)).map(Value::Bool)
}

fn slice(_: &mut Env, args: &[Value]) -> Outcome {
    let list = list_at(args, 0, "list should be type of slice or array but")?;
    if list.len() == 0 {
        return Ok(Value::Nil);
    }
    let bound = |index: usize| args.get(index).map(to_int);
    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let (start, end) = (bound(1).unwrap_or(0), bound(2).unwrap_or(length));
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start <= end && end <= list.capacity() => {
            Ok(Value::List(list.slice(start, end)))
        }
        _ => Err(Fault::call(
            "reflect.Value.Slice: slice index out of bounds",
        )),
    }
}

fn concat(env: &mut Env, args: &[Value]) -> Outcome {
    let mut items = Vec::new();
    for index in 0..args.len() {
        let list = match value_at(args, index) {
            Value::List(list) => list,
            value if value.is_nil() => list_at(args, index, "")?,
            value => {
                return Err(Fault::call(format!(
                    "Cannot concat type {} as list",
                    value.kind_name()
                )));
            }
        };
        items.extend_from_slice(list.items());
    }
    if items.is_empty() {
        return Ok(Value::List(List::nil(Element::Any)));
    }
    env.new_list(Element::Any, items)
}

fn chunk(env: &mut Env, args: &[Value]) -> Outcome {
    let list = list_at(args, 1, "Cannot chunk type")?;
    let size = match usize::try_from(int_at(args, 0)) {
        Ok(size) if size > 0 => size,
        _ => return Err(Fault::call("runtime error: makeslice: len out of range")),
    };
    let mut chunks = Vec::new();
    for part in list.items().chunks(size) {
        chunks.push(env.new_list(Element::Any, part.to_vec())?);
    }
    env.new_list(Element::AnyList, chunks)
}

fn sort_alpha(env: &mut Env, args: &[Value]) -> Outcome {
    let mut texts = match value_at(args, 0) {
        // Any other value becomes a list with itself, and so does a missing one.
        value if value.is_nil() => vec!["<nil>".to_owned()],
        value => strings::texts_of(env, value)?,
    };
    env.meter
        .charge_steps(texts.len() as u64 * u64::from(texts.len().max(1).ilog2() + 1))?;
    texts.sort_unstable();
    env.new_texts(texts.iter().map(String::as_str))
}

/// Returns the integers from `start` to `stop`, without `stop`.
fn integers_between(env: &mut Env, start: i64, stop: i64, step: i64) -> Result<Vec<i64>, Fault> {
    if step == 0 || (stop < start) != (step < 0) {
        return Ok(Vec::new());
    }
    let distance = stop.abs_diff(start);
    let count = distance.div_ceil(step.unsigned_abs());
    let bytes = usize::try_from(count)
        .unwrap_or(usize::MAX)
        .saturating_mul(size_of::<Value>());
    env.meter.charge_memory(bytes)?;
    let mut items = Vec::new();
    let mut next = Some(start);
    while let Some(item) = next.filter(|item| if step > 0 { *item < stop } else { *item > stop }) {
        items.push(item);
        next = item.checked_add(step);
    }
    Ok(items)
}

fn until_step(env: &mut Env, start: i64, stop: i64, step: i64) -> Outcome {
    let items = integers_between(env, start, stop, step)?;
    env.new_list(Element::Int, items.into_iter().map(Value::Int).collect())
}

/// Formats integers like the program `seq`: last; first and last; first, step and last. Includes
/// the last one.
fn seq(env: &mut Env, args: &[Value]) -> Outcome {
    let (start, step, end) = match args.len() {
        1 => (1, None, int_at(args, 0)),
        2 => (int_at(args, 0), None, int_at(args, 1)),
        3 => (int_at(args, 0), Some(int_at(args, 1)), int_at(args, 2)),
        _ => return env.new_text(""),
    };
    let direction = if end < start { -1 } else { 1 };
    let step = step.unwrap_or(direction);
    if direction < 0 && step > 0 {
        return env.new_text("");
    }
    let items = integers_between(env, start, end.saturating_add(direction), step)?;
    env.write_text(|out| {
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push(" ")?;
            }
            out.push(&item.to_string())?;
        }
        Ok(())
    })
}
