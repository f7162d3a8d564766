//! Base images of a build's result, from the steps that BuildKit records.
//!
//! BuildKit stores provenance of mode `max` of every build. Its `llbDefinition` lists the steps of
//! the result. The search begins at the last step, and follows the file system to its first layer.
//! It passes the root mount of a command, the destination of a copy, and all parts of a merge. The
//! frontend has already resolved names, arguments and contexts.
//!
//! Source: BuildKit, `solver/pb/ops.proto` and `docs/attestations/slsa-definitions.md`.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

/// Maximum number of steps. No Dockerfile has that many.
const MAX_STEPS: usize = 100_000;

/// Returns the images, as BuildKit names them: `registry/name:tag@sha256:...`. Empty if the result
/// begins with an empty file system. `None` if the steps are not recorded, or have an unsupported
/// kind.
pub(crate) fn find_bases(predicate: &Value) -> Option<BTreeSet<String>> {
    let config = predicate.get("buildConfig").or_else(|| {
        let definition = predicate.get("buildDefinition")?;
        definition.get("internalParameters")?.get("buildConfig")
    })?;
    let steps = config.get("llbDefinition")?.as_array()?;
    if steps.len() > MAX_STEPS {
        return None;
    }
    let by_id: HashMap<&str, &Value> = steps
        .iter()
        .filter_map(|step| Some((step.get("id")?.as_str()?, step)))
        .collect();
    let last = steps.last()?.get("id")?.as_str()?;
    let mut found = BTreeSet::new();
    let mut visited = BTreeSet::new();
    let mut waiting = vec![(last, 0)];
    while let Some((id, output)) = waiting.pop() {
        if !visited.insert((id, output)) {
            continue;
        }
        let step = Step::parse(by_id.get(id)?)?;
        if let Some(image) = step.image_name() {
            found.insert(image.to_owned());
            continue;
        }
        for input in step.origin_inputs(output)? {
            waiting.push(step.resolve_input(input)?);
        }
    }
    Some(found)
}

/// Step, and the outputs of other steps that it uses.
struct Step<'s> {
    /// Operation. `null` for the result itself.
    operation: &'s Value,
    inputs: Vec<&'s str>,
}

impl<'s> Step<'s> {
    fn parse(step: &'s Value) -> Option<Self> {
        let inputs = step.get("inputs").and_then(Value::as_array);
        Some(Self {
            operation: step.get("op")?.get("Op")?,
            inputs: inputs
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        })
    }

    /// Returns the image name of a step that loads an image. `None` for other steps.
    fn image_name(&self) -> Option<&'s str> {
        let identifier = self.operation.get("source")?.get("identifier")?.as_str()?;
        ["docker-image://", "oci-layout://"]
            .iter()
            .find_map(|scheme| identifier.strip_prefix(scheme))
    }

    /// Returns the step and the output of an input.
    fn resolve_input(&self, index: usize) -> Option<(&'s str, usize)> {
        let (id, output) = self.inputs.get(index)?.rsplit_once(':')?;
        Some((id, output.parse().ok()?))
    }

    /// Returns the inputs at which the file system of an output begins. `None` if the operation is
    /// unsupported.
    fn origin_inputs(&self, output: usize) -> Option<Vec<usize>> {
        if self.operation.is_null() {
            return Some((0..self.inputs.len()).collect());
        }
        let (kind, operation) = self.operation.as_object()?.iter().next()?;
        let list = |name: &str| operation.get(name).and_then(Value::as_array);
        match kind.as_str() {
            // A context or a download contains no layers of an image.
            "source" => Some(Vec::new()),
            "exec" => {
                let mounts = list("mounts")?;
                let mount = mounts.iter().find(|mount| is_output(mount, output))?;
                Some(index_of(mount, "input")?.into_iter().collect())
            }
            "file" => {
                let actions = list("actions")?;
                let mut action = actions.iter().find(|action| is_output(action, output))?;
                // An index beyond the inputs of the step refers to the result of an earlier action.
                for _ in 0..=actions.len() {
                    match index_of(action, "input")? {
                        Some(earlier) if earlier >= self.inputs.len() => {
                            action = actions.get(earlier - self.inputs.len())?;
                        }
                        origin => return Some(origin.into_iter().collect()),
                    }
                }
                None
            }
            "merge" => {
                let inputs = list("inputs")?.iter().map(|input| index_of(input, "input"));
                let inputs: Option<Vec<Option<usize>>> = inputs.collect();
                Some(inputs?.into_iter().flatten().collect())
            }
            _ => None,
        }
    }
}

fn is_output(part: &Value, output: usize) -> bool {
    matches!(index_of(part, "output"), Some(Some(index)) if index == output)
}

/// Returns an index of a step. `None` if it is not a number. `Some(None)` for a negative one: an
/// empty file system, or no output.
fn index_of(part: &Value, name: &str) -> Option<Option<usize>> {
    match part.get(name) {
        None => Some(Some(0)),
        Some(index) => Some(usize::try_from(index.as_i64()?).ok()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(id: &str, identifier: &str) -> Value {
        json!({"id": id, "op": {"Op": {"source": {"identifier": identifier}}}})
    }

    fn step(id: &str, operation: &Value, inputs: &[&str]) -> Value {
        json!({"id": id, "op": {"Op": operation}, "inputs": inputs})
    }

    fn sorted_bases(steps: &[Value]) -> Option<Vec<String>> {
        let old = find_bases(&json!({"buildConfig": {"llbDefinition": steps}}));
        let new = find_bases(&json!({"buildDefinition": {"internalParameters": {
            "buildConfig": {"llbDefinition": steps}
        }}}));
        assert_eq!(old, new);
        Some(old?.into_iter().collect())
    }

    #[test]
    fn find_bases_follows_only_the_root_file_system() {
        let copy = json!({"file": {"actions": [
            {"input": -1, "secondaryInput": -1, "output": -1, "Action": {"mkdir": {}}},
            {"input": 0, "secondaryInput": 1, "output": -1, "Action": {"copy": {}}},
            {"input": 3, "secondaryInput": 1, "output": 0, "Action": {"copy": {}}},
        ]}});
        let run = json!({"exec": {"mounts": [
            {"input": 1, "dest": "/m", "output": 1},
            {"input": 0, "dest": "/", "output": 0},
        ]}});
        let steps = [
            source("a", "docker-image://r.io/base:1@sha256:aa"),
            source("b", "docker-image://r.io/tools:1@sha256:bb"),
            step("c", &copy, &["a:0", "b:0"]),
            step("d", &run, &["c:0", "b:0"]),
            step("e", &Value::Null, &["d:0"]),
        ];
        let base = Some(vec!["r.io/base:1@sha256:aa".to_owned()]);
        assert_eq!(sorted_bases(&steps), base);
        // The other output of the command is the mount.
        let mut other = steps.to_vec();
        other[4] = step("e", &Value::Null, &["d:1"]);
        assert_eq!(
            sorted_bases(&other),
            Some(vec!["r.io/tools:1@sha256:bb".into()])
        );
        let mut plain = steps.to_vec();
        plain.push(step("f", &Value::Null, &["a:0"]));
        assert_eq!(sorted_bases(&plain), base);
    }

    #[test]
    fn empty_file_system_has_no_base() {
        let copy = json!({"file": {"actions": [
            {"input": -1, "secondaryInput": 0, "output": 0, "Action": {"copy": {}}},
        ]}});
        let steps = [
            source("a", "docker-image://r.io/base:1@sha256:aa"),
            step("b", &copy, &["a:0"]),
            step("c", &Value::Null, &["b:0"]),
        ];
        assert_eq!(sorted_bases(&steps), Some(Vec::new()));
        let context = [
            source("a", "local://context"),
            step("b", &Value::Null, &["a:0"]),
        ];
        assert_eq!(sorted_bases(&context), Some(Vec::new()));
    }

    #[test]
    fn merge_begins_with_all_its_parts() {
        let copy = json!({"file": {"actions": [
            {"input": -1, "secondaryInput": 0, "output": 0, "Action": {"copy": {}}},
        ]}});
        let merge = json!({"merge": {"inputs": [{"input": 0}, {"input": 1}]}});
        let steps = [
            source("a", "docker-image://r.io/base:1@sha256:aa"),
            source("b", "docker-image://r.io/tools:1@sha256:bb"),
            step("c", &copy, &["b:0"]),
            step("d", &merge, &["a:0", "c:0"]),
            step("e", &Value::Null, &["d:0"]),
        ];
        assert_eq!(
            sorted_bases(&steps),
            Some(vec!["r.io/base:1@sha256:aa".into()])
        );
    }

    #[test]
    fn unsupported_operations_return_none() {
        let a = source("a", "docker-image://r.io/base:1@sha256:aa");
        for operation in [
            json!({"build": {}}),
            json!({"diff": {"lower": {"input": 0}, "upper": {"input": 0}}}),
            json!({"exec": {"mounts": [{"input": 0, "output": 7}]}}),
            json!({"file": {"actions": [{"input": 1, "output": 0}]}}),
            json!({"exec": {"mounts": [{"input": "x", "output": 0}]}}),
        ] {
            let steps = [
                a.clone(),
                step("b", &operation, &["a:0"]),
                step("c", &Value::Null, &["b:0"]),
            ];
            assert_eq!(sorted_bases(&steps), None, "{operation}");
        }
        let missing = [step("c", &Value::Null, &["b:0"])];
        assert_eq!(sorted_bases(&missing), None);
        assert_eq!(sorted_bases(&[]), None);
        assert_eq!(find_bases(&json!({"buildConfig": {}})), None);
    }
}
