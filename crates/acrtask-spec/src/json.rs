//! A plan as JSON, the output of `acrtask plan -o json`.

use acrtask_model::StepId;
use serde_json::{Map, Value, json};

use crate::{
    build_line::{BuildLine, ContextRef},
    plan::{Plan, Step, StepKind},
};

/// Returns the plan with all defaults: `{"ok":true,"version":...,"networks":[...],"steps":[...]}`.
/// Secrets are not masked.
pub fn plan_json(plan: &Plan) -> Value {
    json!({
        "ok": true,
        "version": plan.version,
        "networks": plan.networks.iter().map(|network| &network.name).collect::<Vec<_>>(),
        "steps": plan.steps.iter().map(step_json).collect::<Vec<_>>(),
    })
}

fn step_json(step: &Step) -> Value {
    let container = &step.container;
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    let text = |text: &Option<String>| json!(text.as_deref().unwrap_or_default());
    put("id", json!(step.id));
    let (mut tags, mut build_args, mut cache) = (Vec::new(), Vec::new(), "");
    match &step.kind {
        StepKind::Build(build) => {
            let shown = BuildSummary::of(&build.raw, build.line.as_ref().ok());
            put("type", json!("build"));
            put("build", json!(build.raw));
            put("context", json!(shown.context));
            for (key, value) in [("dockerfile", shown.dockerfile), ("target", shown.target)] {
                if let Some(value) = value {
                    put(key, json!(value));
                }
            }
            if let Some(step_cache) = &build.cache {
                put("cacheRef", json!(step_cache.reference));
                cache = "enabled";
            }
            (tags, build_args) = (shown.tags, shown.build_args);
        }
        StepKind::Cmd(cmd) => {
            put("type", json!("cmd"));
            put("cmd", json!(cmd.raw));
        }
        StepKind::Push(push) => {
            put("type", json!("push"));
            put("push", json!(push.raw));
        }
    }
    let mut after: Vec<&StepId> = step.after.iter().collect();
    after.sort();
    put("after", json!(after));
    put("tags", json!(tags));
    put("buildArgs", json!(build_args));
    put("cache", json!(cache));
    put("detach", json!(container.detach));
    put(
        "disableWorkingDirectoryOverride",
        json!(step.disable_working_directory_override),
    );
    put("entryPoint", text(&container.entry_point));
    put("env", json!(step.env));
    put("expose", json!(container.expose));
    put("ignoreErrors", json!(step.ignore_errors));
    put("isolation", text(&container.isolation));
    put("keep", json!(container.keep));
    put("network", text(&step.network));
    put("ports", json!(container.ports));
    put("privileged", json!(container.privileged));
    put("pull", json!(container.pull));
    put("repeat", json!(step.repeat));
    put("retries", json!(step.retries));
    put("retryDelay", json!(step.retry_delay.as_secs()));
    put("retryOnErrors", json!(step.retry_on_errors));
    put("startDelay", json!(step.start_delay.as_secs()));
    put("timeout", json!(step.timeout.as_secs()));
    put("user", text(&container.user));
    put("volumeMounts", json!(container.volume_mounts));
    put("workingDirectory", json!(step.working_directory));
    Value::Object(out)
}

/// The parts of a build line that the JSON contains.
#[derive(Default)]
struct BuildSummary {
    tags: Vec<String>,
    build_args: Vec<String>,
    dockerfile: Option<String>,
    target: Option<String>,
    context: String,
}

impl BuildSummary {
    fn of(raw: &str, line: Option<&BuildLine>) -> Self {
        let Some(line) = line else {
            return Self::guess(raw);
        };
        let context = match &line.context {
            ContextRef::Path(text)
            | ContextRef::Git(text)
            | ContextRef::Http(text)
            | ContextRef::Oci(text) => text,
            ContextRef::Stdin => "-",
        };
        Self {
            tags: line.tags.clone(),
            build_args: line
                .build_args
                .iter()
                .map(|(name, value)| match value {
                    Some(value) => format!("{name}={value}"),
                    None => name.clone(),
                })
                .collect(),
            dockerfile: line.file.clone(),
            target: line.target.clone(),
            context: context.to_owned(),
        }
    }

    /// Guesses the parts of a refused line. Splits it at white space, as the reference executor
    /// does with every line.
    fn guess(raw: &str) -> Self {
        let mut shown = Self {
            context: ".".to_owned(),
            ..Self::default()
        };
        let unquoted = |word: &str| word.trim_matches(['\'', '"']).to_owned();
        let mut before = "";
        for word in raw.split_whitespace() {
            match before {
                "-t" | "--tag" => shown.tags.push(word.to_owned()),
                "--build-arg" => shown.build_args.push(word.to_owned()),
                "-f" | "--file" => shown.dockerfile = Some(unquoted(word)),
                "--target" => shown.target = Some(unquoted(word)),
                _ if !before.starts_with('-') && !word.starts_with('-') => {
                    shown.context = unquoted(word)
                }
                _ => {}
            }
            before = word;
        }
        shown
    }
}
