//! The keys of a task's definition, by their place: what to write for a key that stands at the wrong level.
//!
//! The list is made from the JSON Schema of [`TaskDefinition`], so that it has every key.

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::{Map, Value};

use crate::task::TaskDefinition;

/// Deepest level of a definition.
const DEEPEST: usize = 8;

/// Paths of the objects that have a key, by the key. The path of the definition itself is empty.
static PLACES: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let schema = schemars::schema_for!(TaskDefinition).to_value();
    let mut places = BTreeMap::new();
    let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    collect(&schema, "", &definitions, &mut places, 0);
    places
});

fn collect(
    schema: &Value,
    path: &str,
    definitions: &Map<String, Value>,
    places: &mut BTreeMap<String, Vec<String>>,
    depth: usize,
) {
    if depth > DEEPEST {
        return;
    }
    let reference = schema["$ref"]
        .as_str()
        .and_then(|name| name.rsplit('/').next());
    if let Some(target) = reference.and_then(|name| definitions.get(name)) {
        collect(target, path, definitions, places, depth);
    }
    for part in ["anyOf", "allOf"] {
        for variant in schema[part].as_array().into_iter().flatten() {
            collect(variant, path, definitions, places, depth);
        }
    }
    if schema["items"].is_object() {
        collect(
            &schema["items"],
            &format!("{path}[]"),
            definitions,
            places,
            depth + 1,
        );
    }
    if schema["additionalProperties"].is_object() {
        let path = format!("{path}.NAME");
        collect(
            &schema["additionalProperties"],
            &path,
            definitions,
            places,
            depth + 1,
        );
    }
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        places.entry(key.clone()).or_default().push(path.to_owned());
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        collect(value, &path, definitions, places, depth + 1);
    }
}

/// Returns where a key of a definition belongs, for the message of the parser about an unknown key. `None` if the message
/// is about something else, or no level has the key.
pub fn right_level(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (key, _) = rest.split_once('`')?;
    let found = PLACES.get_key_value(key).or_else(|| {
        // Written as other tools write it: `no_push`, `base-image`, `Timeout`.
        let plain = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
        PLACES.iter().find(|(known, _)| plain(known) == plain(key))
    });
    let (known, paths) = found?;
    let places: Vec<String> = paths
        .iter()
        .map(|path| match path.as_str() {
            "" => "at the top level".to_owned(),
            path => format!("under `{path}:`"),
        })
        .collect();
    Some(format!("write `{known}` {}", places.join(", or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the help for the mistake of a definition.
    fn help(json: Value) -> Option<String> {
        let error = serde_json::from_value::<TaskDefinition>(json).unwrap_err();
        right_level(&error.to_string())
    }

    #[test]
    fn key_at_the_wrong_level_is_told_its_own() {
        use serde_json::json;
        for (json, expected) in [
            (
                json!({"name": "x", "concurrency": {}}),
                "write `concurrency` under `queue:`",
            ),
            (
                json!({"name": "x", "priority": 3}),
                "write `priority` under `queue:`",
            ),
            (
                json!({"name": "x", "queue": {"timeout": "1h"}}),
                "write `timeout` at the top level",
            ),
            (
                json!({"name": "x", "timers": {}}),
                "write `timers` under `triggers:`",
            ),
            (
                json!({"name": "x", "registryPush": {}}),
                "write `registryPush` under `triggers:`",
            ),
            (
                json!({"name": "x", "schedule": "0 3 * * *"}),
                "write `schedule` under `triggers.timers.NAME:`",
            ),
            (
                json!({"name": "x", "signWith": "a"}),
                "write `signWith` under `notify[]:`",
            ),
            (
                json!({"name": "x", "queue": {"concurrency": {"pool": "gpu"}}}),
                "write `pool` under `queue:`",
            ),
            (
                json!({"name": "x", "no_push": true}),
                "write `noPush` at the top level",
            ),
            (
                json!({"name": "x", "labels": {}}),
                "write `labels` under `build:`, or under `queue:`",
            ),
        ] {
            assert_eq!(help(json.clone()).as_deref(), Some(expected), "{json}");
        }
        assert_eq!(help(json!({"name": "x", "steps": []})), None);
        assert_eq!(help(json!({"name": 3})), None);
    }
}
