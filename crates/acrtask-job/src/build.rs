//! `acrtask build`: one image, built and pushed, without a task file.

use std::collections::BTreeMap;

use acrtask_api::spec::BuildSpec;
use acrtask_model::{ImageRef, Secret};
use acrtask_spec::{
    Resolution, RunFacts, TaskSource,
    build_line::{BuildLine, ContextRef, SecretSpec},
    plan::{Plan, StepKind},
};

use crate::{Files, Job, JobError, Understood, facts};

/// The usual name of a Dockerfile.
const DEFAULT_DOCKERFILE: &str = "Dockerfile";

/// A plan with a build and a push step, with every default as a task file's.
pub(crate) fn understand(job: &Job<'_>, build: &BuildSpec) -> Result<Understood, JobError> {
    if job.files == Files::None {
        return Err(
            JobError::new(format!("a build needs files, and {} has none", job.context))
                .help("name a folder: `.`"),
        );
    }
    // The names are all in which a fact can stand.
    let (facts, found) = facts::of(job, &build.images.join("\n"));
    let images = build
        .images
        .iter()
        .map(|name| image(name, &facts, job.spec.no_push))
        .collect::<Result<Vec<_>, _>>()?;
    let mut steps = vec![serde_json::json!({ "id": "build", "build": "." })];
    // What pushes nothing needs no names that can be pushed.
    if !job.spec.no_push {
        let names: Vec<String> = images.iter().map(ToString::to_string).collect();
        steps.push(serde_json::json!({ "id": "push", "push": names }));
    }
    let source = TaskSource {
        name: "acrtask build".into(),
        // JSON is YAML.
        text: serde_json::json!({ "steps": steps }).to_string(),
    };
    let mut understood = crate::resolve(job, source, &facts, found)?;
    let Resolution {
        plan, diagnostics, ..
    } = &mut understood.resolution;
    let Some(plan) = plan else {
        let what: Vec<_> = diagnostics.iter().map(|d| d.message.clone()).collect();
        return Err(JobError::new(format!(
            "this cannot be built: {}",
            what.join("; ")
        )));
    };
    let secret_args = secret_args(build, job.secrets)?;
    for step in &mut plan.steps {
        if let StepKind::Build(step) = &mut step.kind
            && let Ok(defaults) = &step.line
        {
            let line = line(job, build, &images, &secret_args, defaults.clone());
            step.raw = shown(&line, &secret_args);
            step.line = Ok(line);
        }
    }
    // Of a text that nobody wrote nothing is told.
    diagnostics.clear();
    Ok(understood)
}

/// The whole name: its templates filled in, and the run's registry before one that has none of its own.
fn image(name: &str, facts: &RunFacts, no_push: bool) -> Result<ImageRef, JobError> {
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

fn secret_args(
    build: &BuildSpec,
    secrets: &BTreeMap<String, Secret>,
) -> Result<Vec<(String, Secret)>, JobError> {
    build
        .secret_args
        .iter()
        .map(|name| match secrets.get(name) {
            Some(value) => Ok((name.clone(), value.clone())),
            None => Err(JobError::new(format!(
                "the build argument `{name}` is a secret that the run was not given"
            ))
            .help(format!("store it: `acrtask secret set {name}`"))),
        })
        .collect()
}

/// The build's line, understood; `defaults` is what a line without flags gives.
fn line(
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
        // The usual name may be in lower case, as for a line without `-f`.
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

/// The line as it is shown, in the words of `docker build`.
fn shown(line: &BuildLine, secret_args: &[(String, Secret)]) -> String {
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

/// The run's secrets for each build that asks for one by its id alone. They reach the build as variables of the
/// step, which no process of this machine gets to see.
pub(crate) fn give_secrets(plan: &mut Plan, ids: &[String], secrets: &BTreeMap<String, Secret>) {
    for step in &mut plan.steps {
        let StepKind::Build(build) = &mut step.kind else {
            continue;
        };
        let Ok(line) = &mut build.line else { continue };
        for asked in line
            .secrets
            .iter_mut()
            .filter(|asked| asked.src.is_none() && asked.env.is_none())
        {
            if ids.contains(&asked.id)
                && let Some(value) = secrets.get(&asked.id)
            {
                let variable = format!("ACRTASK_SECRET_{}", asked.id);
                step.env.push(format!("{variable}={}", value.expose()));
                asked.env = Some(variable);
            }
        }
    }
}
