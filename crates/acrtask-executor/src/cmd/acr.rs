//! `acr WORD ...` commands, executed on the registry with the logins of the run.
//!
//! A run that pushes nothing deletes nothing. The fence is checked before each deletion, as before
//! each push.

use std::{pin::Pin, time::Duration};

use acrtask_registry::credentials::canonical_host;
use acrtask_spec::cmd_line::Word;
use acrtask_upkeep::{AcrCommand, AcrLine, Context, Line, Permission, retention, run_command};
use tokio::io::AsyncReadExt as _;

use super::{
    expand,
    io::{Exit, Io, SharedSink, file_reader},
};
use crate::{context::StepContext, error::error_chain, output::now, workspace::resolve_path};

/// Maximum size of a file of rules, in bytes.
const MAX_RULES: u64 = 1 << 20;
/// Time for a deletion to finish after its step was stopped.
const STOP_TIME: Duration = Duration::from_secs(10);

impl Permission for StepContext {
    fn check(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async {
            if self.cancel.is_cancelled() {
                return Err("the step was stopped, so nothing more was deleted".into());
            }
            self.may_change_registry("nothing more was deleted").await
        })
    }

    fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// Runs one command.
pub(super) async fn run(ctx: &StepContext, line: &[Word], io: &Io) -> Exit {
    let at = now();
    let words = match expand::expand_words(line, at) {
        Ok(words) => words,
        Err(why) => return Exit::refused(2, why),
    };
    match start(ctx, words).await {
        Ok((mut line, host)) => match read_rules(ctx, &mut line.command).await {
            Ok(()) => execute(ctx, &line, &host, io).await,
            Err(error) => {
                write_line(&io.stderr, &format!("Error: {error}")).await;
                Exit::code(1)
            }
        },
        Err(error) => {
            write_line(&io.stderr, &format!("Error: {error}")).await;
            Exit::code(1)
        }
    }
}

/// Checks a line. Returns it with the host of its registry.
async fn start(ctx: &StepContext, words: Vec<String>) -> Result<(AcrLine, String), String> {
    // The filters of a line are compiled, which may take some milliseconds each.
    let parsed = tokio::task::spawn_blocking(move || AcrLine::parse(&words)).await;
    let mut line = parsed.map_err(|error| error.to_string())??;
    let host = match &line.registry {
        Some(host) => host.as_str(),
        None => ctx.run.plan.registry.as_str(),
    };
    if host.is_empty() {
        return Err("unable to determine registry name, please use --registry flag".into());
    }
    let host = canonical_host(host);
    if ctx.run.no_push && line.command.deletes() {
        return Err(
            "this run pushes nothing, so it deletes nothing; write --dry-run to see what would be deleted"
                .into(),
        );
    }
    if let Some((user, password)) = line.login.take() {
        ctx.run
            .log_in(&host, &user, password)
            .map_err(|error| error_chain(&error))?;
    }
    Ok((line, host))
}

/// Replaces `acr retention` with the purge of the rules in its file of the workspace.
async fn read_rules(ctx: &StepContext, command: &mut AcrCommand) -> Result<(), String> {
    let AcrCommand::Retention { file, dry_run } = &*command else {
        return Ok(());
    };
    let folder = super::body::working_folder(&ctx.step);
    let path = resolve_path(&folder, file).map_err(|error| error_chain(&error))?;
    let opened = ctx.run.workspace.open_file(&path).await;
    let opened = opened.map_err(|error| error_chain(&error))?;
    let mut text = String::new();
    let mut reader = file_reader(opened).take(MAX_RULES + 1);
    let read = reader.read_to_string(&mut text).await;
    let read = read.map_err(|error| format!("cannot read {file}: {error}"))?;
    if read as u64 > MAX_RULES {
        return Err(format!("{file} is larger than {MAX_RULES} bytes"));
    }
    let parsed = tokio::task::spawn_blocking(move || retention::parse(&text)).await;
    let parsed = parsed.map_err(|error| error.to_string())?;
    let rules = parsed.map_err(|error| format!("{file}: {error}"))?;
    if rules.needs_records && !ctx.run.records.is_available() {
        return Err(format!(
            "{file}: `used: true` needs the records of a server; run the task at a server"
        ));
    }
    let mut purge = rules.purge;
    purge.dry_run = *dry_run;
    *command = AcrCommand::Purge(Box::new(purge));
    Ok(())
}

async fn execute(ctx: &StepContext, line: &AcrLine, host: &str, io: &Io) -> Exit {
    let registry = ctx.run.registry();
    let (lines, mut received) = tokio::sync::mpsc::unbounded_channel();
    let working = async move {
        let context = Context {
            registry: &registry,
            host,
            now: now(),
            permission: ctx,
            records: ctx.run.records.as_ref(),
            lines: &lines,
        };
        tokio::select! {
            code = run_command(context, &line.command) => i64::from(code),
            () = wait_after_cancel(ctx) => 137,
        }
    };
    let printing = async {
        while let Some(line) = received.recv().await {
            match line {
                Line::Out(text) => write_line(&io.stdout, &text).await,
                Line::Err(text) => write_line(&io.stderr, &text).await,
            }
        }
    };
    let (code, ()) = tokio::join!(working, printing);
    Exit::code(code)
}

/// Waits until the step was stopped and a deletion has had time to finish.
async fn wait_after_cancel(ctx: &StepContext) {
    ctx.cancel.cancelled().await;
    tokio::time::sleep(STOP_TIME).await;
}

/// Writes a line. A reader that has closed its end of a pipe does not stop a deletion.
async fn write_line(sink: &SharedSink, text: &str) {
    let _ = sink
        .lock()
        .await
        .write(format!("{text}\n").as_bytes())
        .await;
}
