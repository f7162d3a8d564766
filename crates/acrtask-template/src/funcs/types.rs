//! Defaults, reflection, comparison of whole values, and `fail`.

use super::{Env, Function, functions, text_at, value_at};
use crate::{error::Fault, format::MAX_PRINT_DEPTH, value::Value};

pub(crate) static TABLE: &[Function] = functions! {
    "default" (Any; Any) |env, args| {
        let given = value_at(args, 1);
        Ok(if is_empty(env, given) { value_at(args, 0).clone() } else { given.clone() })
    };
    "empty" (Any) |env, args| Ok(Value::Bool(is_empty(env, value_at(args, 0))));
    "coalesce" (; Any) |env, args| {
        Ok(args.iter().find(|value| !is_empty(env, value)).cloned().unwrap_or(Value::Nil))
    };
    "all" (; Any) |env, args| Ok(Value::Bool(args.iter().all(|value| !is_empty(env, value))));
    "any" (; Any) |env, args| Ok(Value::Bool(args.iter().any(|value| !is_empty(env, value))));
    "ternary" (Any, Any, Bool) |_, args| {
        let index = usize::from(!matches!(value_at(args, 2), Value::Bool(true)));
        Ok(value_at(args, index).clone())
    };
    "typeOf" (Any) |env, args| env.new_text(value_at(args, 0).type_name());
    "typeIs" (Text, Any) |_, args| Ok(Value::Bool(**text_at(args, 0) == value_at(args, 1).type_name()));
    "typeIsLike" (Text, Any) |_, args| {
        let (target, found) = (text_at(args, 0), value_at(args, 1).type_name());
        Ok(Value::Bool(**target == found || found.strip_prefix('*') == Some(target)))
    };
    "kindOf" (Any) |env, args| env.new_text(value_at(args, 0).kind_name());
    "kindIs" (Text, Any) |_, args| Ok(Value::Bool(&**text_at(args, 0) == value_at(args, 1).kind_name()));
    "deepEqual" (Any, Any) |env, args| {
        deep_equal(env, value_at(args, 0), value_at(args, 1), 0).map(Value::Bool)
    };
    "fail" (Text) |_, args| Err(Fault::call(text_at(args, 0).to_string()));
};

/// Returns `true` for empty values of Sprig: missing, false, zero, or without elements. Dates and
/// versions are never empty.
pub(crate) fn is_empty(env: &Env, value: &Value) -> bool {
    !value.is_truthy(&env.heap)
}

/// Compares values and their types recursively, like `reflect.DeepEqual`.
pub(crate) fn deep_equal(
    env: &mut Env,
    left: &Value,
    right: &Value,
    depth: usize,
) -> Result<bool, Fault> {
    env.meter.charge_steps(1)?;
    if depth > MAX_PRINT_DEPTH {
        return Err(Fault::limit(format!(
            "a value nests deeper than {MAX_PRINT_DEPTH}"
        )));
    }
    #[allow(clippy::float_cmp, reason = "Go compares exactly")]
    Ok(match (left, right) {
        (Value::Nil | Value::NilField, Value::Nil | Value::NilField) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right))
        | (Value::Int64(left), Value::Int64(right))
        | (Value::Duration(left), Value::Duration(right)) => left == right,
        (Value::Month(left), Value::Month(right))
        | (Value::Weekday(left), Value::Weekday(right)) => left == right,
        (Value::Uint8(left), Value::Uint8(right)) => left == right,
        (Value::Uint64(left), Value::Uint64(right)) => left == right,
        (Value::Float(left), Value::Float(right)) => left == right,
        (Value::Text(left), Value::Text(right)) => {
            env.meter.charge_read(left.len().min(right.len()))?;
            left == right
        }
        (Value::Time(left), Value::Time(right)) => left == right,
        (Value::Version(left), Value::Version(right)) => {
            env.meter.charge_read(left.bytes().min(right.bytes()) * 8)?;
            left == right
        }
        (Value::List(left), Value::List(right)) => {
            if left.element != right.element
                || left.is_nil != right.is_nil
                || left.len() != right.len()
            {
                return Ok(false);
            }
            for (left, right) in left.items().iter().zip(right.items()) {
                if !deep_equal(env, left, right, depth + 1)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Map(left), Value::Map(right)) => {
            if left.element != right.element
                || env.heap.get(*left).len() != env.heap.get(*right).len()
            {
                return Ok(false);
            }
            if left.is_same(*right) {
                return Ok(true);
            }
            for (key, value) in env.copy_entries(*left)? {
                let Some(other) = env.heap.get(*right).get(&key).cloned() else {
                    return Ok(false);
                };
                if !deep_equal(env, &value, &other, depth + 1)? {
                    return Ok(false);
                }
            }
            true
        }
        _ => false,
    })
}
