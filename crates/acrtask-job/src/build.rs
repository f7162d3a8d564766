//! `acrtask build`: the build and push of one image without a task file.

use std::collections::BTreeMap;

use acrtask_api::spec::BuildSpec;
use acrtask_model::{ImageRef, Secret};
use acrtask_spec::{
    Resolution, RunVariables, TaskSource,
    build_line::{BuildLine, ContextRef, SecretSpec},
    plan::{Plan, StepKind},
};

use crate::{Files, Job, JobError, ResolvedTask, variables};

/// The default name of a Dockerfile.
const DEFAULT_DOCKERFILE: &str = "Dockerfile";

/// Resolves the build to a plan with a build and a push step, with the same defaults as a task
/// file.
pub(crate) fn resolve_build(job: &Job<'_>, build: &BuildSpec) -> Result<ResolvedTask, JobError> {
    if job.files == Files::None {
        return Err(
            JobError::new(format!("a build needs files, and {} has none", job.context))
                .help("name a folder: `.`"),
        );
    }
    // Only the names may contain variables.
    let (facts, found) = variables::collect(job, &build.images.join("\n"));
    let images = build
        .images
        .iter()
        .map(|name| resolve_image(name, &facts, job.spec.no_push))
        .collect::<Result<Vec<_>, _>>()?;
    let mut steps = vec![serde_json::json!({ "id": "build", "build": "." })];
    // Without a push the names need no registry.
    if !job.spec.no_push {
        let names: Vec<String> = images.iter().map(ToString::to_string).collect();
        steps.push(serde_json::json!({ "id": "push", "push": names }));
    }
    let source = TaskSource {
        name: "acrtask build".into(),
        // JSON is valid YAML.
        text: serde_json::json!({ "steps": steps }).to_string(),
    };
    let mut resolved = crate::resolve_source(job, source, &facts, found)?;
    let Resolution {
        plan, diagnostics, ..
    } = &mut resolved.resolution;
    let Some(plan) = plan else {
        let what: Vec<_> = diagnostics.iter().map(|d| d.message.clone()).collect();
        return Err(JobError::new(format!(
            "this cannot be built: {}",
            what.join("; ")
        )));
    };
    let secret_args = resolve_secret_args(build, job.secrets)?;
    for step in &mut plan.steps {
        if let StepKind::Build(step) = &mut step.kind
            && let Ok(defaults) = &step.line
        {
            let line = build_line(job, build, &images, &secret_args, defaults.clone());
            step.raw = display_line(&line, &secret_args);
            step.line = Ok(line);
        }
    }
    // The user did not write this text, so diagnostics about it would not help.
    diagnostics.clear();
    Ok(resolved)
}

/// Returns the complete name. Expands its templates, and adds the run's registry unless the name
/// has its own.
fn resolve_image(name: &str, facts: &RunVariables, no_push: bool) -> Result<ImageRef, JobError> {
    let text = acrtask_spec::render_image(name, facts).map_err(|diagnostic| {
        let error = JobError::new(format!(
            "the image's name `{name}` cannot be used: {}",
            diagnostic.message
        ));
        match diagnostic.help {
            Some(help) => error.help(help),
            None => error,
        }
    })?;
    let refuse = |message: String| {
        JobError::new(message).help(format!(
            "write `-t HOST/{text}`, or `-r HOST` beside `-t {text}`, or `--no-push`"
        ))
    };
    let own = text
        .split_once('/')
        .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let full = match (own, facts.registry.as_str()) {
        (false, "") if !no_push => {
            return Err(refuse(format!(
                "the image `{text}` has no registry, so there is nowhere to push it"
            )));
        }
        (true, _) | (false, "") => text.clone(),
        (false, registry) => format!("{registry}/{text}"),
    };
    full.parse::<ImageRef>()
        .map(ImageRef::or_latest)
        .map_err(|error| refuse(error.to_string()))
}

fn resolve_secret_args(
    build: &BuildSpec,
    secrets: &BTreeMap<String, Secret>,
) -> Result<Vec<(String, Secret)>, JobError> {
    build
        .secret_args
        .iter()
        .map(|name| match secrets.get(name) {
            Some(value) => Ok((name.clone(), value.clone())),
            None => Err(JobError::new(format!(
                "the build argument `{name}` is a secret without a value for this run"
            ))
            .help(format!("store it: `acrtask secret set {name}`"))),
        })
        .collect()
}

/// Returns the line of the build. `defaults` is the parsed line without flags.
fn build_line(
    job: &Job<'_>,
    build: &BuildSpec,
    images: &[ImageRef],
    secret_args: &[(String, Secret)],
    defaults: BuildLine,
) -> BuildLine {
    let plain = build
        .args
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.clone())));
    let secret = secret_args
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.expose().to_owned())));
    BuildLine {
        context: ContextRef::Path(".".into()),
        // The default name may be in lower case, as for a line without `-f`.
        file: Some(build.dockerfile.clone()).filter(|file| file != DEFAULT_DOCKERFILE),
        tags: images.iter().map(ToString::to_string).collect(),
        build_args: plain.chain(secret).collect(),
        labels: build.labels.clone().into_iter().collect(),
        target: build.target.clone(),
        no_cache: build.no_cache,
        secrets: job
            .spec
            .build_secrets
            .iter()
            .map(|id| SecretSpec {
                id: id.clone(),
                src: None,
                env: None,
            })
            .collect(),
        ..defaults
    }
}

/// Returns the line for display, as arguments of `docker build`.
fn display_line(line: &BuildLine, secret_args: &[(String, Secret)]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
    for tag in &line.tags {
        flag("-t", tag);
    }
    if let Some(file) = &line.file {
        flag("-f", file);
    }
    if let Some(target) = &line.target {
        flag("--target", target);
    }
    for (name, value) in &line.build_args {
        let secret = secret_args.iter().any(|(secret, _)| secret == name);
        let value = if secret {
            "***"
        } else {
            value.as_deref().unwrap_or_default()
        };
        flag("--build-arg", &format!("{name}={value}"));
    }
    for (name, value) in &line.labels {
        flag("--label", &format!("{name}={value}"));
    }
    for secret in &line.secrets {
        flag("--secret", &format!("id={}", secret.id));
    }
    words.push(".".into());
    words.join(" ")
}

/// Adds the run's secrets to each build that requests one by its id only. They are variables of the
/// step, which no process of this machine can read.
pub(crate) fn add_secret_variables(
    plan: &mut Plan,
    ids: &[String],
    secrets: &BTreeMap<String, Secret>,
) {
    for step in &mut plan.steps {
        let StepKind::Build(build) = &mut step.kind else {
            continue;
        };
        let Ok(line) = &mut build.line else { continue };
        for secret in line
            .secrets
            .iter_mut()
            .filter(|secret| secret.src.is_none() && secret.env.is_none())
        {
            if ids.contains(&secret.id)
                && let Some(value) = secrets.get(&secret.id)
            {
                let variable = format!("ACRTASK_SECRET_{}", secret.id);
                step.env.push(format!("{variable}={}", value.expose()));
                secret.env = Some(variable);
            }
        }
    }
}
