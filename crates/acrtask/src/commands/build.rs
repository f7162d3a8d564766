//! `acrtask build`: one image, built and pushed, without a task file.

use acrtask_model::{ImageRef, RunId, Secret};
use acrtask_source::{ContextSpec, GitFacts};
use acrtask_spec::{
    TaskSource,
    build_line::{BuildLine, ContextRef, SecretSpec},
    plan::{Plan, StepKind},
};

use super::{
    context::Context,
    engine::{self, RunFiles, Session},
    run::{give_secrets, set_platforms},
    task,
};
use crate::{
    args::{BuildArgs, ColorWhen},
    error::CliError,
    exit::Exit,
    render::{Form, style::Style},
};

/// Builds an image and pushes it.
pub(crate) fn build(args: &BuildArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let registry = task::registry(&args.facts);
    let images = args
        .tags
        .iter()
        .map(|tag| tag.with_registry(registry.as_deref(), !args.how.no_push))
        .collect::<Result<Vec<_>, _>>()?;
    let stdin_is_taken = (args.context == "-").then_some("the context");
    let credentials = engine::credentials(&args.engine, stdin_is_taken)?;
    let options = engine::options(&args.engine, &args.builder, &args.how, credentials.clone())?;
    let source = acrtask_source::Options {
        credentials,
        ssh_agent: options.ssh_agent.clone(),
        ..acrtask_source::Options::default()
    };
    let mut context = Context::named(&args.context, source)?;
    if matches!(context.spec(), ContextSpec::None) {
        return Err(
            CliError::usage("a build needs files, and /dev/null has none")
                .help("name a folder: `.`"),
        );
    }
    let secret_args = args
        .secret_build_arg
        .iter()
        .map(|pair| pair.resolve("--secret-build-arg", |name| std::env::var(name).ok()))
        .collect::<Result<Vec<_>, _>>()?;
    let secret_files = task::secret_files(&args.secret_file)?;
    let id = args
        .facts
        .id
        .clone()
        .unwrap_or_else(|| RunId::from_random(rand::random()));
    let root = context.fetch()?.root.clone();
    let mut plan = skeleton(args, &id, &images)?;
    for step in &mut plan.steps {
        if let StepKind::Build(build) = &mut step.kind
            && let Ok(defaults) = &build.line
        {
            let line = build_line(args, &images, &secret_args, defaults.clone());
            build.raw = shown(&line, &secret_args);
            build.line = Ok(line);
        }
    }
    plan.secrets
        .extend(secret_args.into_iter().map(|(_, value)| value));
    set_platforms(&mut plan, &args.how.platform);
    give_secrets(&mut plan, &secret_files);
    let form = Form::new(args.how.output, color);
    let files = RunFiles {
        context: Some(root),
        stdin: None,
    };
    let session = Session::open(options)?;
    let cancel = session.interrupts.token.child_token();
    let exit = session.block_on(session.run(id, plan, files, form, stderr, cancel));
    // What was fetched is removed only now.
    drop(context);
    Ok(exit)
}

/// A plan with a build and a push step, with every default as a task file's. The build's line is still to be set.
fn skeleton(args: &BuildArgs, id: &RunId, images: &[ImageRef]) -> Result<Plan, CliError> {
    let mut steps = vec![serde_json::json!({ "id": "build", "build": "." })];
    // What pushes nothing needs no names that can be pushed.
    if !args.how.no_push {
        let names: Vec<String> = images.iter().map(ToString::to_string).collect();
        steps.push(serde_json::json!({ "id": "push", "push": names }));
    }
    let facts = task::run_facts(&args.facts, id, None, GitFacts::default());
    // JSON is YAML.
    let text = serde_json::json!({ "steps": steps }).to_string();
    let source = TaskSource {
        name: "acrtask build".into(),
        text,
    };
    let resolution = acrtask_spec::resolve(
        &source,
        &facts,
        &super::lookup::Outside::new(super::lookup::Files::None),
    );
    resolution.plan.ok_or_else(|| {
        let what: Vec<_> = resolution
            .diagnostics
            .iter()
            .map(|d| d.message.clone())
            .collect();
        CliError::usage(format!("this cannot be built: {}", what.join("; ")))
    })
}

/// The build's line, understood; `defaults` is what a line without flags gives.
fn build_line(
    args: &BuildArgs,
    images: &[ImageRef],
    secret_args: &[(String, Secret)],
    defaults: BuildLine,
) -> BuildLine {
    let plain = args.build_arg.iter().map(|arg| match arg.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        // As `docker build` has it: a name that the environment lacks is not set.
        None => (arg.clone(), std::env::var(arg).ok()),
    });
    let secret = secret_args
        .iter()
        .map(|(name, value)| (name.clone(), Some(value.expose().to_owned())));
    BuildLine {
        context: ContextRef::Path(".".into()),
        file: Some(args.file.clone()),
        tags: images.iter().map(ToString::to_string).collect(),
        build_args: plain
            .filter(|(_, value)| value.is_some())
            .chain(secret)
            .collect(),
        target: args.target.clone(),
        no_cache: args.no_cache,
        secrets: args
            .secret_file
            .iter()
            .map(|pair| SecretSpec {
                id: pair.key.clone(),
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
    for secret in &line.secrets {
        flag("--secret", &format!("id={}", secret.id));
    }
    words.push(".".into());
    words.join(" ")
}
