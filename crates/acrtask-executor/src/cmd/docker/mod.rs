//! `docker WORD ...` commands, executed on the run's own images and containers.
//!
//! No task receives the engine's socket. A command can access only objects that this run created or
//! pulled. Other commands are refused by name, unless the operator allowed the socket. In that case
//! a container of the image `docker` executes them with the socket.

mod args;
mod containers;
pub(super) mod images;
mod registry;

use acrtask_spec::{
    build_line,
    cmd_line::{self, ContainerLine, RunFlags, Word, WordPart},
    plan::BuildStep,
};

use super::{
    container, expand,
    io::{Exit, Io},
};
use crate::{
    context::StepContext,
    output::now,
    policy::Attempt,
    steps::{Trace, build},
};

/// Runs one command.
pub(crate) async fn run(ctx: &StepContext, line: &[Word], io: &mut Io) -> Exit {
    if !cmd_line::docker_word_supported(line) {
        return run_with_socket(ctx, line, io).await;
    }
    let words = match expand::expand_words(line, now()) {
        Ok(words) => words,
        Err(why) => return Exit::refused(2, why),
    };
    let (first, rest) = match words.split_first() {
        Some((first, rest)) => (first.as_str(), rest),
        None => return Exit::refused(2, "docker: name a command"),
    };
    let done = match (first, rest.first().map(String::as_str)) {
        ("container", Some("run")) => return run_container(ctx, &line[2..], io).await,
        ("run", _) => return run_container(ctx, &line[1..], io).await,
        ("buildx", Some("build")) => return run_build(ctx, &line[2..]).await,
        ("build", _) => return run_build(ctx, &line[1..]).await,
        ("container", Some(word)) => containers::run(ctx, word, &rest[1..], io).await,
        ("stop" | "rm" | "wait" | "logs" | "ps", _) => containers::run(ctx, first, rest, io).await,
        ("pull", _) => images::pull(ctx, rest, io).await,
        ("push", _) => images::push(ctx, rest).await,
        ("tag", _) => images::tag(ctx, rest).await,
        ("images", _) => images::list(ctx, rest, io).await,
        ("image", Some("inspect")) => images::inspect(ctx, &rest[1..], io).await,
        ("inspect", _) => images::inspect(ctx, rest, io).await,
        ("version", _) => version(ctx, rest, io).await,
        ("login", _) => registry::login(ctx, rest, io).await,
        ("logout", _) => registry::logout(rest, io).await,
        ("manifest", Some(word)) => registry::manifest(ctx, word, &rest[1..], io).await,
        ("buildx", Some("imagetools")) => {
            registry::imagetools(ctx, rest.get(2..).unwrap_or_default(), io).await
        }
        _ => Err(format!("docker {first} is not supported here")),
    };
    match done {
        Ok(exit) => exit,
        Err(why) => Exit::refused(1, format!("docker {first}: {why}")),
    }
}

/// The result of a command: its exit, or the reason why it cannot be executed.
type CommandResult = Result<Exit, String>;

/// Prints to the command's standard output.
async fn print(io: &Io, text: &str) -> CommandResult {
    match io.stdout.lock().await.write(text.as_bytes()).await {
        Ok(()) => Ok(Exit::OK),
        Err(_) => Ok(Exit::code(141)),
    }
}

async fn run_container(ctx: &StepContext, words: &[Word], io: &mut Io) -> Exit {
    match cmd_line::container_from_words(words) {
        Ok(line) => container::run(ctx, &line, io).await,
        Err(refusal) => Exit::refused(125, format!("docker run: {}", refusal.message)),
    }
}

async fn run_build(ctx: &StepContext, words: &[Word]) -> Exit {
    let at = now();
    let words: Result<Vec<Word>, String> = words.iter().map(|word| word.with_dates(at)).collect();
    let words = match words {
        Ok(words) => words,
        Err(why) => return Exit::refused(125, format!("docker build: {why}")),
    };
    let line = match build_line::from_words(&words) {
        Ok(line) => line,
        Err(refusal) => return Exit::refused(125, format!("docker build: {}", refusal.message)),
    };
    let step = BuildStep {
        raw: String::new(),
        line: Ok(line.clone()),
        cache: None,
    };
    let mut trace = Trace::default();
    // Boxed, because the types are recursive: a line may contain a build, and a build's recipe
    // contains the line.
    match Box::pin(build::run(ctx, &step, &line, &mut trace)).await {
        Attempt::Succeeded => Exit::OK,
        Attempt::Failed { reason, exit_code } => {
            if let Some(excerpt) = trace.excerpt {
                let stream = acrtask_model::events::Stream::Stderr;
                ctx.output.print_line(stream, &excerpt).await;
            }
            Exit::refused(exit_code.unwrap_or(1), reason)
        }
        Attempt::TimedOut { .. } | Attempt::Stopped => Exit::code(137),
    }
}

/// Handles a command that is not implemented here. Refuses it, or runs it in the image `docker`
/// with the socket.
async fn run_with_socket(ctx: &StepContext, line: &[Word], io: &mut Io) -> Exit {
    if !ctx.run.options.allow.docker_socket {
        let word = line
            .first()
            .and_then(|word| expand::expand_word(word, now()).ok());
        return Exit::refused(
            125,
            format!(
                "`docker {}` is not one of the commands that work without the engine's socket; an \
                 operator who trusts this task gives it the socket with `--allow docker-socket`",
                word.unwrap_or_default()
            ),
        );
    }
    let text = |text: &str| Word {
        parts: vec![WordPart::Text(text.into())],
    };
    let container = ContainerLine {
        flags: RunFlags {
            volumes: vec![text("/var/run/docker.sock:/var/run/docker.sock")],
            ..RunFlags::default()
        },
        image: text("docker"),
        args: std::iter::once(text("docker"))
            .chain(line.iter().cloned())
            .collect(),
    };
    container::run(ctx, &container, io).await
}

async fn version(ctx: &StepContext, args: &[String], io: &Io) -> CommandResult {
    if !args.is_empty() {
        return Err("takes no arguments here".into());
    }
    let facts = ctx.run.engine.facts.clone();
    let text = format!(
        "Client: acrtask\n Version: {}\nServer: Docker Engine\n Version: {}\n API version: {}.{}\n OS/Arch: {}\n",
        env!("CARGO_PKG_VERSION"),
        facts.version,
        facts.api.0,
        facts.api.1,
        facts.platform
    );
    print(io, &text).await
}
