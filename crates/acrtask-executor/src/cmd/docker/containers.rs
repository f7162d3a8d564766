//! `ps stop rm wait logs` on the containers of this run. The step's id or the name of `--name`
//! identifies a container.

use std::time::Duration;

use bollard::{container::LogOutput, models::ContainerSummaryStateEnum as State};
use futures::StreamExt;

use super::{
    CommandResult,
    args::{Args, switch, valued},
    print,
};
use crate::{
    cmd::io::{Exit, Io},
    context::{NamedContainer, STOP_GRACE, StepContext},
    error::error_chain,
    owner::{NAME_LABEL, STEP_LABEL},
};

pub(super) async fn run(ctx: &StepContext, word: &str, words: &[String], io: &Io) -> CommandResult {
    match word {
        "ps" => ps(ctx, words, io).await,
        "stop" => stop(ctx, words, io).await,
        "rm" => rm(ctx, words, io).await,
        "wait" => wait(ctx, words, io).await,
        "logs" => logs(ctx, words, io).await,
        other => Err(format!("{other} is not supported here")),
    }
}

fn find_container(ctx: &StepContext, name: &str) -> Result<NamedContainer, String> {
    ctx.run
        .find_container(name)
        .ok_or_else(|| format!("this run has no container {name}"))
}

async fn stop(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(
        words,
        &[
            valued("time", 't'),
            valued("timeout", ' '),
            valued("signal", 's'),
        ],
    )?;
    let grace = match args.value("time").or(args.value("timeout")) {
        Some(text) => Duration::from_secs(
            text.parse()
                .map_err(|_| format!("-t takes seconds, not `{text}`"))?,
        ),
        None => STOP_GRACE,
    };
    for name in args.at_least_one("names of containers")? {
        let container = find_container(ctx, name)?;
        let stopped = ctx.run.engine.stop_container(&container.id, grace).await;
        stopped.map_err(|error| error_chain(&error))?;
        print(io, &format!("{name}\n")).await?;
    }
    Ok(Exit::OK)
}

async fn rm(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[switch("force", 'f'), switch("volumes", 'v')])?;
    for name in args.at_least_one("names of containers")? {
        let Some(container) = ctx.run.find_container(name) else {
            if args.has("force") {
                continue;
            }
            return Err(format!("this run has no container {name}"));
        };
        if !args.has("force") && is_running(ctx, &container.id).await? {
            return Err(format!("{name} is running: stop it first, or use -f"));
        }
        let removed = ctx.run.engine.remove_container(&container.id).await;
        removed.map_err(|error| error_chain(&error))?;
        ctx.run.unregister_container(&container.id);
        print(io, &format!("{name}\n")).await?;
    }
    Ok(Exit::OK)
}

async fn is_running(ctx: &StepContext, id: &str) -> Result<bool, String> {
    let listed = ctx
        .run
        .engine
        .list_containers(ctx.run.labels.to_filter())
        .await;
    let listed = listed.map_err(|error| error_chain(&error))?;
    Ok(listed
        .iter()
        .any(|c| c.id.as_deref() == Some(id) && c.state == Some(State::RUNNING)))
}

async fn wait(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(words, &[])?;
    for name in args.at_least_one("names of containers")? {
        let container = find_container(ctx, name)?;
        let code = tokio::select! {
            code = ctx.run.engine.wait_container(&container.id) => code.map_err(|error| error_chain(&error))?,
            () = ctx.cancel.cancelled() => return Ok(Exit::code(137)),
        };
        print(io, &format!("{code}\n")).await?;
    }
    Ok(Exit::OK)
}

async fn logs(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let supported = [
        switch("follow", 'f'),
        valued("tail", 'n'),
        switch("timestamps", 't'),
    ];
    let args = Args::parse(words, &supported)?;
    let [name] = args.exactly("one container")?;
    let container = find_container(ctx, name)?;
    let tail = args.value("tail").unwrap_or("all");
    let mut frames = std::pin::pin!(ctx.run.engine.logs(&container.id, args.has("follow"), tail));
    loop {
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = ctx.cancel.cancelled() => return Ok(Exit::code(137)),
        };
        let Some(frame) = frame else {
            return Ok(Exit::OK);
        };
        let (sink, bytes) = match frame.map_err(|error| error_chain(&error))? {
            LogOutput::StdErr { message } => (&io.stderr, message),
            LogOutput::StdOut { message } | LogOutput::Console { message } => (&io.stdout, message),
            LogOutput::StdIn { .. } => continue,
        };
        if sink.lock().await.write(&bytes).await.is_err() {
            return Ok(Exit::code(141));
        }
    }
}

async fn ps(ctx: &StepContext, words: &[String], io: &Io) -> CommandResult {
    let args = Args::parse(
        words,
        &[
            switch("all", 'a'),
            switch("quiet", 'q'),
            switch("no-trunc", ' '),
        ],
    )?;
    let listed = ctx
        .run
        .engine
        .list_containers(ctx.run.labels.to_filter())
        .await;
    let listed = listed.map_err(|error| error_chain(&error))?;
    let mut text = String::new();
    if !args.has("quiet") {
        text.push_str(&format_row(["CONTAINER ID", "IMAGE", "STATUS", "NAMES"]));
    }
    for container in listed {
        let labels = container.labels.unwrap_or_default();
        // The keeper of the workspace belongs to no step.
        let Some(step) = labels.get(STEP_LABEL) else {
            continue;
        };
        if container.state != Some(State::RUNNING) && !args.has("all") {
            continue;
        }
        let id = container.id.unwrap_or_default();
        let id = if args.has("no-trunc") {
            &id[..]
        } else {
            &id[..id.len().min(12)]
        };
        if args.has("quiet") {
            text.push_str(&format!("{id}\n"));
            continue;
        }
        let name = labels.get(NAME_LABEL).filter(|name| !name.is_empty());
        let name = name.unwrap_or(step);
        let image = container.image.unwrap_or_default();
        text.push_str(&format_row([
            id,
            &image,
            &container.status.unwrap_or_default(),
            name,
        ]));
    }
    print(io, &text).await
}

pub(super) fn format_row<const N: usize>(cells: [&str; N]) -> String {
    let mut line = String::new();
    for (i, cell) in cells.iter().enumerate() {
        if i + 1 == N {
            line.push_str(cell);
        } else {
            line.push_str(&format!("{cell:<20}  "));
        }
    }
    line.push('\n');
    line
}
