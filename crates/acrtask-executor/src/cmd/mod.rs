//! Execution of the line of a cmd step: pipelines of containers, `docker` commands, `acr` commands
//! and built-in commands.
//!
//! No part of it runs in a shell of the runner. Each kind of command has its own file; this file
//! joins them. The exit code of a pipeline is that of its last command, as in a shell without
//! `pipefail`.

mod acr;
pub(crate) mod body;
pub(crate) mod builtin;
pub(crate) mod container;
pub(crate) mod docker;
pub(crate) mod expand;
pub(crate) mod flags;
pub(crate) mod io;

use acrtask_spec::cmd_line::{CmdLine, Command, CommandKind, Joiner, Pipeline};

use crate::{context::StepContext, error::error_chain, policy::Attempt};
use io::{Exit, Input, Io, PIPE};

/// The effect of a command on the rest of its line.
#[derive(Debug)]
pub(crate) enum Flow {
    /// The next command runs depending on this exit.
    Next(Exit),
    /// `exit N`: the rest of the line does not run.
    Leave(Exit),
}

/// Runs a line to its end.
pub(crate) async fn run(ctx: &StepContext, line: &CmdLine) -> Attempt {
    let mut last = match run_pipeline(ctx, &line.first).await {
        Flow::Next(exit) => exit,
        Flow::Leave(exit) => return to_attempt(ctx, exit),
    };
    for (joiner, next) in &line.rest {
        if ctx.cancel.is_cancelled() {
            break;
        }
        let runs = match joiner {
            Joiner::And => last.code == 0,
            Joiner::Or => last.code != 0,
            Joiner::Then => true,
        };
        if runs {
            last = match run_pipeline(ctx, next).await {
                Flow::Next(exit) => exit,
                Flow::Leave(exit) => return to_attempt(ctx, exit),
            };
        }
    }
    to_attempt(ctx, last)
}

fn to_attempt(ctx: &StepContext, exit: Exit) -> Attempt {
    if ctx.cancel.is_cancelled() {
        return Attempt::Stopped;
    }
    match exit {
        Exit { code: 0, .. } => Attempt::Succeeded,
        Exit {
            code,
            why: Some(why),
        } => Attempt::Failed {
            reason: why,
            exit_code: Some(code),
        },
        Exit { code, why: None } => Attempt::Failed {
            reason: match code {
                137 => "exit code 137: killed, which is often for want of memory".into(),
                code => format!("exit code {code}"),
            },
            exit_code: Some(code),
        },
    }
}

async fn run_pipeline(ctx: &StepContext, pipeline: &Pipeline) -> Flow {
    let mut stdin: Option<Input> = None;
    let count = pipeline.commands.len();
    let mut commands = Vec::with_capacity(count);
    for (i, one) in pipeline.commands.iter().enumerate() {
        let (pipe, next) = if i + 1 < count {
            let (writer, reader) = tokio::io::duplex(PIPE);
            (Some(writer), Some(Box::new(reader) as Input))
        } else {
            (None, None)
        };
        let io = Io::new(&ctx.output, stdin.take(), pipe);
        stdin = next;
        commands.push(run_command(ctx, one, io));
    }
    let mut flows = futures::future::join_all(commands).await;
    match flows.pop() {
        // `exit` in a pipeline ends only its own part of it.
        Some(Flow::Leave(exit)) if count > 1 => Flow::Next(exit),
        Some(flow) => flow,
        None => Flow::Next(Exit::OK),
    }
}

async fn run_command(ctx: &StepContext, command: &Command, mut io: Io) -> Flow {
    let workspace = &ctx.run.workspace;
    let folder = body::working_folder(&ctx.step);
    let mut flow = match io.redirect(&command.redirects, workspace, &folder).await {
        Err(error) => Flow::Next(Exit::refused(1, error_chain(&error))),
        Ok(()) => match &command.kind {
            CommandKind::Container(line) => Flow::Next(container::run(ctx, line, &mut io).await),
            CommandKind::Docker(words) => Flow::Next(docker::run(ctx, words, &mut io).await),
            CommandKind::Acr(words) => Flow::Next(acr::run(ctx, words, &io).await),
            CommandKind::Builtin(words) => builtin::run(ctx, words, &mut io).await,
        },
    };
    if let Flow::Next(exit) = &flow
        && !ctx.cancel.is_cancelled()
    {
        container::print_reason(ctx, exit).await;
    }
    if let Err(error) = io.finish(workspace).await {
        let exit = Exit::refused(1, error_chain(&error));
        container::print_reason(ctx, &exit).await;
        flow = Flow::Next(exit);
    }
    flow
}
