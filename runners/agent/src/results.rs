//! Result of a run, collected from its events. Pure.

use std::collections::HashMap;

use acrtask_api::{
    run::{BaseResult, BuiltResult, ImageResult, RunResult, StepResult},
    spec::Variables,
};
use acrtask_model::{Event, EventKind, StepId, StepState};

/// Results of the events so far.
#[derive(Debug, Default)]
pub(crate) struct Results {
    steps: Vec<StepResult>,
    built: Vec<BuiltResult>,
    images: Vec<ImageResult>,
    bases: Vec<BaseResult>,
    /// Each vertex, with `true` if its result was cached.
    vertices: HashMap<(StepId, String), bool>,
}

impl Results {
    /// Applies the next event.
    pub(crate) fn apply(&mut self, event: &Event) {
        match &event.kind {
            EventKind::RunStarted { steps, .. } => {
                self.steps = steps
                    .iter()
                    .map(|step| StepResult {
                        id: step.id.clone(),
                        state: StepState::Pending,
                        started_at: None,
                        elapsed_ms: 0,
                    })
                    .collect();
            }
            EventKind::StepStarted { step, .. } => {
                if let Some(result) = self.steps.iter_mut().find(|result| result.id == *step) {
                    result.started_at.get_or_insert(event.time);
                }
            }
            EventKind::StepFinished {
                step,
                state,
                elapsed_ms,
                ..
            } => {
                if let Some(result) = self.steps.iter_mut().find(|result| result.id == *step) {
                    result.state = state.clone();
                    result.elapsed_ms = *elapsed_ms;
                }
            }
            EventKind::ImageBuilt {
                step,
                names,
                digest,
            } => self.built.push(BuiltResult {
                step: step.clone(),
                names: names.clone(),
                digest: digest.clone(),
            }),
            EventKind::ImagePushed {
                step,
                name,
                digest,
                platforms,
                tag_deferred,
            } => self.images.push(ImageResult {
                step: step.clone(),
                name: name.clone(),
                digest: digest.clone(),
                platforms: platforms.clone(),
                staged: *tag_deferred,
            }),
            EventKind::BaseUsed {
                step,
                role,
                name,
                digest,
                evidence,
                platforms,
            } => self.bases.push(BaseResult {
                step: step.clone(),
                role: *role,
                name: name.clone(),
                digest: digest.clone(),
                evidence: *evidence,
                platforms: platforms.clone(),
            }),
            EventKind::Vertex { step, vertex } if vertex.completed.is_some() => {
                let key = (step.clone(), vertex.vertex.clone());
                let cached = self.vertices.entry(key).or_default();
                *cached |= vertex.cached;
            }
            _ => {}
        }
    }

    /// Returns the result of the run.
    pub(crate) fn into_result(self, refused: bool, variables: Variables) -> RunResult {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        RunResult {
            refused,
            steps: self.steps,
            built: self.built,
            images: self.images,
            bases: self.bases,
            cached_vertices: count(self.vertices.values().filter(|cached| **cached).count()),
            vertices: count(self.vertices.len()),
            variables,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result_of(lines: &[serde_json::Value]) -> RunResult {
        let mut results = Results::default();
        for line in lines {
            let mut event = serde_json::json!({"time": "2026-01-01T00:00:01Z", "run": "r1"});
            event
                .as_object_mut()
                .unwrap()
                .extend(line.as_object().unwrap().clone());
            results.apply(&serde_json::from_value(event).unwrap());
        }
        results.into_result(false, Variables::default())
    }

    #[test]
    fn steps_keep_their_order_and_vertices_are_counted_once() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let vertex = |id: &str, completed: bool, cached: bool| {
            let time = "2026-01-01T00:00:00Z";
            serde_json::json!({
                "event": "vertex", "step": "b", "vertex": id, "name": id, "cached": cached,
                "started": time, "completed": completed.then_some(time),
            })
        };
        let step = |id: &str| serde_json::json!({"id": id, "type": "cmd", "line": "", "after": []});
        let result = result_of(&[
            serde_json::json!({
                "event": "run_started", "engine": "", "builder": "",
                "steps": [step("b"), step("c"), step("never")],
            }),
            serde_json::json!({"event": "step_started", "step": "b", "attempt": 1}),
            vertex("1", false, false),
            vertex("1", true, false),
            vertex("2", true, true),
            vertex("2", true, false),
            serde_json::json!({"event": "step_finished", "step": "c", "state": "succeeded", "elapsed_ms": 3}),
            serde_json::json!({"event": "step_finished", "step": "b", "state": "succeeded", "elapsed_ms": 2}),
            serde_json::json!({"event": "image_built", "step": "b", "names": ["r/a:1", "r/a:2"], "digest": digest}),
            serde_json::json!({
                "event": "image_pushed", "step": "b", "name": "r/a:1", "digest": digest,
                "platforms": {"linux/amd64": digest},
            }),
            serde_json::json!({
                "event": "base_used", "step": "b", "role": "runtime", "name": "base:1", "digest": digest,
                "evidence": "provenance",
            }),
        ]);
        insta::assert_json_snapshot!(result);
    }
}
