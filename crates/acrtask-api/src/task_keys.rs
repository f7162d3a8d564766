//! Keys of task definitions and their positions. They complete error messages about a key at the
//! wrong level.
//!
//! The JSON Schema of [`TaskDefinition`] is the source of the list. Therefore it contains every
//! key.

use std::{collections::BTreeMap, sync::LazyLock};

use serde_json::{Map, Value};

use crate::task::TaskDefinition;

/// Maximum depth of a definition.
const MAX_DEPTH: usize = 8;

/// Paths of the objects that have a key, by key. The path of the definition itself is empty.
static KEY_PATHS: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    let schema = schemars::schema_for!(TaskDefinition).to_value();
    let mut paths = BTreeMap::new();
    let definitions = schema["$defs"].as_object().cloned().unwrap_or_default();
    collect_keys(&schema, "", &definitions, &mut paths, 0);
    paths
});

fn collect_keys(
    schema: &Value,
    path: &str,
    definitions: &Map<String, Value>,
    paths: &mut BTreeMap<String, Vec<String>>,
    depth: usize,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let reference = schema["$ref"]
        .as_str()
        .and_then(|name| name.rsplit('/').next());
    if let Some(target) = reference.and_then(|name| definitions.get(name)) {
        collect_keys(target, path, definitions, paths, depth);
    }
    for part in ["anyOf", "allOf"] {
        for variant in schema[part].as_array().into_iter().flatten() {
            collect_keys(variant, path, definitions, paths, depth);
        }
    }
    if schema["items"].is_object() {
        collect_keys(
            &schema["items"],
            &format!("{path}[]"),
            definitions,
            paths,
            depth + 1,
        );
    }
    if schema["additionalProperties"].is_object() {
        let path = format!("{path}.NAME");
        collect_keys(
            &schema["additionalProperties"],
            &path,
            definitions,
            paths,
            depth + 1,
        );
    }
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        paths.entry(key.clone()).or_default().push(path.to_owned());
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        collect_keys(value, &path, definitions, paths, depth + 1);
    }
}

/// Returns the correct level of the unknown key in an error message of the parser. `None` if the
/// message is about something else, or if no level has the key.
pub fn find_key_level(message: &str) -> Option<String> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (key, _) = rest.split_once('`')?;
    let found = KEY_PATHS.get_key_value(key).or_else(|| {
        // Other tools spell keys differently: `no_push`, `base-image`, `Timeout`.
        let normalize = |text: &str| text.replace(['-', '_'], "").to_ascii_lowercase();
        KEY_PATHS
            .iter()
            .find(|(name, _)| normalize(name) == normalize(key))
    });
    let (name, paths) = found?;
    let levels: Vec<String> = paths
        .iter()
        .map(|path| match path.as_str() {
            "" => "at the top level".to_owned(),
            path => format!("under `{path}:`"),
        })
        .collect();
    Some(format!("write `{name}` {}", levels.join(", or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the help text for an invalid definition.
    fn parse_help(json: Value) -> Option<String> {
        let error = serde_json::from_value::<TaskDefinition>(json).unwrap_err();
        find_key_level(&error.to_string())
    }

    #[test]
    fn misplaced_key_gets_its_level_as_help() {
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
            assert_eq!(
                parse_help(json.clone()).as_deref(),
                Some(expected),
                "{json}"
            );
        }
        assert_eq!(parse_help(json!({"name": "x", "steps": []})), None);
        assert_eq!(parse_help(json!({"name": 3})), None);
    }
}
