//! The line of a cmd step, carried out: pipelines of containers, `docker` words and built-in words.
//!
//! Never a shell of the runner: each kind of command has its own file, and what joins them is here.
//! A pipeline's exit code is that of its last command, as in a shell without `pipefail`.

pub(crate) mod body;
pub(crate) mod builtin;
pub(crate) mod container;
pub(crate) mod docker;
pub(crate) mod flags;
pub(crate) mod io;
pub(crate) mod words;

use acrtask_spec::cmd_line::{CmdLine, Command, CommandKind, Joiner, Pipeline};

use crate::{context::StepContext, error::chain, policy::Attempt};
use io::{Exit, Input, Io, PIPE};

/// What a command did to the line that it stands in.
#[derive(Debug)]
pub(crate) enum Flow {
    /// The next one decides by this exit.
    Next(Exit),
    /// `exit N`: nothing more of the line runs.
    Leave(Exit),
}

/// Runs a line to its end.
pub(crate) async fn run(ctx: &StepContext, line: &CmdLine) -> Attempt {
    let mut last = match pipeline(ctx, &line.first).await {
        Flow::Next(exit) => exit,
        Flow::Leave(exit) => return attempt(ctx, exit),
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
            last = match pipeline(ctx, next).await {
                Flow::Next(exit) => exit,
                Flow::Leave(exit) => return attempt(ctx, exit),
            };
        }
    }
    attempt(ctx, last)
}

fn attempt(ctx: &StepContext, exit: Exit) -> Attempt {
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

async fn pipeline(ctx: &StepContext, pipeline: &Pipeline) -> Flow {
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
        commands.push(command(ctx, one, io));
    }
    let mut flows = futures::future::join_all(commands).await;
    match flows.pop() {
        // `exit` in a pipeline leaves only its own part of it.
        Some(Flow::Leave(exit)) if count > 1 => Flow::Next(exit),
        Some(flow) => flow,
        None => Flow::Next(Exit::OK),
    }
}

async fn command(ctx: &StepContext, command: &Command, mut io: Io) -> Flow {
    let workspace = &ctx.run.workspace;
    let folder = body::working_folder(&ctx.step);
    let mut flow = match io.redirect(&command.redirects, workspace, &folder).await {
        Err(error) => Flow::Next(Exit::refused(1, chain(&error))),
        Ok(()) => match &command.kind {
            CommandKind::Container(line) => Flow::Next(container::run(ctx, line, &mut io).await),
            CommandKind::Docker(words) => Flow::Next(docker::run(ctx, words, &mut io).await),
            CommandKind::Builtin(words) => builtin::run(ctx, words, &mut io).await,
        },
    };
    if let Flow::Next(exit) = &flow
        && !ctx.cancel.is_cancelled()
    {
        container::say_why(ctx, exit).await;
    }
    if let Err(error) = io.finish(workspace).await {
        let exit = Exit::refused(1, chain(&error));
        container::say_why(ctx, &exit).await;
        flow = Flow::Next(exit);
    }
    flow
}
