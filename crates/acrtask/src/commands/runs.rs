//! `acrtask runs`: what a server knows of runs.

use acrtask_api::run::{Page, Run, RunSummary, Waiting};
use acrtask_model::RunState;
use jiff::Timestamp;

use super::{
    follow::{OnSignal, follow},
    remote::{block_on, client, print_json, say},
};
use crate::{
    args::{
        ColorWhen, RunOutput,
        control::{
            CancelArgs, ListRunsArgs, LogsArgs, OneRunArgs, RerunArgs, RunsCommand, StateArg,
        },
        server::ListOutput,
    },
    client::{Client, shown},
    error::CliError,
    exit::Exit,
    render::{self, Form, style::Style},
};

/// Runs that one page holds at most.
const PAGE: u32 = 100;

/// One of the words about runs.
pub(crate) fn runs(
    command: &RunsCommand,
    color: ColorWhen,
    stderr: Style,
    stdout: Style,
) -> Result<Exit, CliError> {
    match command {
        RunsCommand::List(args) => list(args, stdout),
        RunsCommand::Show(args) => show(args, stdout),
        RunsCommand::Why(args) => why(args, stdout),
        RunsCommand::Logs(args) => logs(args, color, stderr),
        RunsCommand::Cancel(args) => cancel(args),
        RunsCommand::Approve(args) => super::approve::approve(args),
        RunsCommand::Rerun(args) => rerun(args, color, stderr),
    }
}

fn list(args: &ListRunsArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found = block_on(async {
        let mut found: Vec<RunSummary> = Vec::new();
        let mut cursor = None;
        loop {
            let left = args.limit - u32::try_from(found.len()).unwrap_or(args.limit);
            let mut query = vec![("limit", left.min(PAGE).to_string())];
            query.extend(args.task.iter().map(|task| ("task", task.clone())));
            query.extend(args.period.query());
            if !args.state.is_empty() {
                let states: Vec<_> = args
                    .state
                    .iter()
                    .map(|state| state_of(*state).as_str())
                    .collect();
                query.push(("state", states.join(",")));
            }
            query.extend(cursor.map(|cursor: String| ("cursor", cursor)));
            let page: Page<RunSummary> = client.get(&["runs"], &query).await?;
            found.extend(page.items);
            cursor = page.next;
            if cursor.is_none() || found.len() >= args.limit as usize {
                return Ok(Page {
                    items: found,
                    next: cursor,
                });
            }
        }
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&found),
        ListOutput::Text => {
            let text = render::run::runs(&found.items, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn state_of(state: StateArg) -> RunState {
    match state {
        StateArg::Queued => RunState::Queued,
        StateArg::Leased => RunState::Leased,
        StateArg::Running => RunState::Running,
        StateArg::Succeeded => RunState::Succeeded,
        StateArg::Failed => RunState::Failed,
        StateArg::Canceled => RunState::Canceled,
        StateArg::TimedOut => RunState::TimedOut,
        StateArg::Error => RunState::Error,
    }
}

fn show(args: &OneRunArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let run: Run = block_on(async { Ok(client.get(&["runs", args.id.as_str()], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&run),
        ListOutput::Text => {
            let text = render::run::run(&run, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn why(args: &OneRunArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let waiting: Waiting =
        block_on(async { Ok(client.get(&["runs", args.id.as_str(), "why"], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&waiting),
        ListOutput::Text => super::print(render::run::why(&waiting, style).as_bytes()),
    }
}

fn cancel(args: &CancelArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        for id in &args.ids {
            let before: Run = client.get(&["runs", id.as_str()], &[]).await?;
            if before.state.is_final() {
                say(&format!("run {id} is over: {}", before.state));
                continue;
            }
            client
                .tell(&["runs", id.as_str(), "cancel"], &serde_json::json!({}))
                .await?;
            say(&format!("asked run {id} to stop"));
        }
        Ok(Exit::Succeeded)
    })
}

fn rerun(args: &RerunArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        let run = client
            .start(&["runs", args.id.as_str(), "rerun"], &serde_json::json!({}))
            .await?;
        started(&client, &run, args.no_wait, args.form.output, color, stderr).await
    })
}

/// Says which run was started, or follows it.
pub(crate) async fn started(
    client: &Client,
    run: &Run,
    no_wait: bool,
    output: RunOutput,
    color: ColorWhen,
    stderr: Style,
) -> Result<Exit, CliError> {
    if no_wait {
        let text = match output {
            RunOutput::Json => return print_json(run),
            RunOutput::Text | RunOutput::Plain => format!("{}\n", run.id),
        };
        return super::print(text.as_bytes());
    }
    say(&format!("server: {}, run {}", shown(client.url()), run.id));
    follow(
        client,
        &run.id,
        Form::new(output, color),
        stderr,
        OnSignal::Cancel,
    )
    .await
}

fn logs(args: &LogsArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let form = Form::new(args.form.output, color);
    block_on(async {
        if args.follow {
            return follow(&client, &args.id, form, stderr, OnSignal::Leave).await;
        }
        super::log::log(&client, &args.id, args.attempt, form, stderr).await
    })
}
