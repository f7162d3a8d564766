//! Maps. `set`, `unset`, `merge` and `mergeOverwrite` change their map, which every variable sees.

use std::sync::Arc;

use super::{
    Env, Function, Outcome, functions, map_at, strings::text_of, text_at, types::is_empty, value_at,
};
use crate::{
    error::Fault,
    format::MAX_PRINT_DEPTH,
    value::{ENTRY_BYTES, Element, Entries, List, MapRef, Value},
};

pub(crate) static TABLE: &[Function] = functions! {
    "dict" (; Any) dict;
    "get" (Dict, Text) |env, args| match map_at(args, 0).and_then(|map| env.heap.get(map).get(text_at(args, 1))) {
        Some(value) => Ok(value.as_field()),
        None => env.new_text(""),
    };
    "set" (Dict, Text, Any) set;
    "unset" (Dict, Text) |env, args| {
        if let Some(map) = map_at(args, 0) {
            env.heap.get_mut(map).remove(text_at(args, 1));
            return Ok(value_at(args, 0).clone());
        }
        env.new_map(Element::Any, Entries::new())
    };
    "hasKey" (Dict, Text) |env, args| {
        Ok(Value::Bool(map_at(args, 0).is_some_and(|map| env.heap.get(map).contains_key(text_at(args, 1)))))
    };
    "pluck" (Text; Dict) |env, args| {
        let maps = (1..args.len()).filter_map(|index| map_at(args, index));
        let found = maps.filter_map(|map| env.heap.get(map).get(text_at(args, 0)).cloned()).collect();
        env.new_list(Element::Any, found)
    };
    "keys" (; Dict) keys;
    "values" (Dict) |env, args| {
        let values = map_at(args, 0).map_or(Vec::new(), |map| env.heap.get(map).values().cloned().collect());
        env.new_list(Element::Any, values)
    };
    "pick" (Dict; Text) |env, args| {
        let mut picked = Entries::new();
        if let Some(map) = map_at(args, 0) {
            for index in 1..args.len() {
                let key = text_at(args, index);
                if let Some(value) = env.heap.get(map).get(key) {
                    picked.insert(key.clone(), value.clone());
                }
            }
        }
        env.new_map(Element::Any, picked)
    };
    "omit" (Dict; Text) |env, args| {
        env.meter.charge_memory(map_at(args, 0).map_or(0, |map| env.heap.get(map).len() * ENTRY_BYTES))?;
        let mut kept = map_at(args, 0).map_or(Entries::new(), |map| env.heap.get(map).clone());
        for index in 1..args.len() {
            kept.remove(text_at(args, index));
        }
        env.new_map(Element::Any, kept)
    };
    "merge" (Dict; Dict) |env, args| merge_all(env, args, false);
    "mustMerge" (Dict; Dict) |env, args| merge_all(env, args, false);
    "mergeOverwrite" (Dict; Dict) |env, args| merge_all(env, args, true);
    "mustMergeOverwrite" (Dict; Dict) |env, args| merge_all(env, args, true);
    "deepCopy" (Any) |env, args| deep_copy(env, value_at(args, 0), 0);
    "mustDeepCopy" (Any) |env, args| deep_copy(env, value_at(args, 0), 0);
    "dig" (; Any) dig;
};

fn dict(env: &mut Env, args: &[Value]) -> Outcome {
    let mut entries = Entries::new();
    for pair in args.chunks(2) {
        let key: Arc<str> = text_of(env, value_at(pair, 0))?.into();
        env.meter.charge_memory(key.len())?;
        // A last key without a value gets the empty text.
        let value = if pair.len() > 1 {
            value_at(pair, 1).clone()
        } else {
            Value::text("")
        };
        entries.insert(key, value);
    }
    env.new_map(Element::Any, entries)
}

fn set(env: &mut Env, args: &[Value]) -> Outcome {
    let map = map_at(args, 0).ok_or_else(|| Fault::call("assignment to entry in nil map"))?;
    env.meter.charge_memory(ENTRY_BYTES)?;
    env.heap
        .get_mut(map)
        .insert(text_at(args, 1).clone(), value_at(args, 2).clone());
    Ok(value_at(args, 0).clone())
}

fn keys(env: &mut Env, args: &[Value]) -> Outcome {
    let maps = (0..args.len()).filter_map(|index| map_at(args, index));
    let keys = maps
        .flat_map(|map| env.heap.get(map).keys().cloned().map(Value::Text))
        .collect();
    env.new_list(Element::Text, keys)
}

fn merge_all(env: &mut Env, args: &[Value], overwrites: bool) -> Outcome {
    let target = match map_at(args, 0) {
        Some(target) => target,
        None => env
            .heap
            .add_map(&mut env.meter, Element::Any, Entries::new())?,
    };
    for index in 1..args.len() {
        if let Some(source) = map_at(args, index) {
            merge(env, target, source, overwrites, 0)?;
        }
    }
    Ok(Value::Map(target))
}

/// Merges the entries of `source` into `target`.
///
/// Two maps are merged recursively. Otherwise `overwrites` takes the value of `source`. Without it,
/// the value is taken only if `target` has none or an empty one, and if it is not missing.
fn merge(
    env: &mut Env,
    target: MapRef,
    source: MapRef,
    overwrites: bool,
    depth: usize,
) -> Result<(), Fault> {
    if depth > MAX_PRINT_DEPTH {
        return Err(Fault::limit(format!(
            "a value nests deeper than {MAX_PRINT_DEPTH}"
        )));
    }
    if target.is_same(source) {
        return Ok(());
    }
    for (key, value) in env.copy_entries(source)? {
        env.meter.charge_steps(1)?;
        let present = env.heap.get(target).get(&key).cloned();
        if let (Some(Value::Map(inner)), Value::Map(from)) = (&present, &value)
            && inner.element == from.element
        {
            merge(env, *inner, *from, overwrites, depth + 1)?;
            continue;
        }
        let vacant = present.is_none_or(|present| is_empty(env, &present));
        if overwrites || (vacant && !value.is_nil()) {
            env.meter.charge_memory(ENTRY_BYTES)?;
            env.heap.get_mut(target).insert(key, value);
        }
    }
    Ok(())
}

fn deep_copy(env: &mut Env, value: &Value, depth: usize) -> Outcome {
    env.meter.charge_steps(1)?;
    if depth > MAX_PRINT_DEPTH {
        return Err(Fault::limit(format!(
            "a value nests deeper than {MAX_PRINT_DEPTH}"
        )));
    }
    match value {
        Value::List(list) => {
            let items = list
                .items()
                .iter()
                .map(|item| deep_copy(env, item, depth + 1))
                .collect::<Result<_, _>>()?;
            let mut copy = List::new(&mut env.meter, list.element, items)?;
            copy.is_nil = list.is_nil;
            Ok(Value::List(copy))
        }
        Value::Map(map) => {
            let mut copy = Entries::new();
            for (key, value) in env.copy_entries(*map)? {
                copy.insert(key, deep_copy(env, &value, depth + 1)?);
            }
            env.new_map(map.element, copy)
        }
        value => Ok(value.clone()),
    }
}

fn dig(env: &mut Env, args: &[Value]) -> Outcome {
    let [keys @ .., default, dict] = args else {
        return Err(Fault::call("dig needs at least three arguments"));
    };
    if keys.is_empty() {
        return Err(Fault::call("dig needs at least three arguments"));
    }
    let wrong = |value: &Value, wanted: &str| {
        let found = if value.is_nil() {
            "nil".to_owned()
        } else {
            value.type_name()
        };
        Fault::call(format!(
            "interface conversion: interface {{}} is {found}, not {wanted}"
        ))
    };
    let mut value = dict.clone();
    for key in keys {
        let Value::Map(map) = &value else {
            return Err(wrong(&value, "map[string]interface {}"));
        };
        let Value::Text(key) = key else {
            return Err(wrong(key, "string"));
        };
        match env.heap.get(*map).get(key) {
            Some(found) => value = found.clone(),
            None => return Ok(default.clone()),
        }
    }
    Ok(value)
}
