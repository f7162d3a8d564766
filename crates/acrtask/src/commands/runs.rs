//! `acrtask runs`: lists, shows, follows and controls runs on a server.

use acrtask_api::run::{Page, Run, RunSummary, Waiting};
use acrtask_model::RunState;
use jiff::Timestamp;

use super::{
    follow::{OnSignal, follow},
    remote::{block_on, client, print_json, print_message},
};
use crate::{
    args::{
        ColorWhen, RunOutput,
        runs::{CancelArgs, ListRunsArgs, LogsArgs, RerunArgs, RunIdArgs, RunsCommand, StateArg},
        server::ListOutput,
    },
    client::{Client, display_url},
    error::CliError,
    exit::Exit,
    render::{self, Form, style::Style},
};

/// Runs per page, at most.
const PAGE: u32 = 100;

/// Runs a subcommand of `acrtask runs`.
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
        RunsCommand::Logs(args) => logs(args, color, stderr, stdout),
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
                    .map(|state| run_state(*state).as_str())
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
            let text = render::run::render_runs(&found.items, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn run_state(state: StateArg) -> RunState {
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

fn show(args: &RunIdArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let run: Run = block_on(async { Ok(client.get(&["runs", args.id.as_str()], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&run),
        ListOutput::Text => {
            let text = render::run::render_run(&run, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn why(args: &RunIdArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let waiting: Waiting =
        block_on(async { Ok(client.get(&["runs", args.id.as_str(), "why"], &[]).await?) })?;
    match args.output.output {
        ListOutput::Json => print_json(&waiting),
        ListOutput::Text => super::print(render::run::render_waiting(&waiting, style).as_bytes()),
    }
}

fn cancel(args: &CancelArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        for id in &args.ids {
            let before: Run = client.get(&["runs", id.as_str()], &[]).await?;
            if before.state.is_final() {
                print_message(&format!("run {id} is already finished: {}", before.state));
                continue;
            }
            client
                .post_discarding(&["runs", id.as_str(), "cancel"], &serde_json::json!({}))
                .await?;
            print_message(&format!("requested the cancellation of run {id}"));
        }
        Ok(Exit::Succeeded)
    })
}

fn rerun(args: &RerunArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        let run = client
            .start_run(&["runs", args.id.as_str(), "rerun"], &serde_json::json!({}))
            .await?;
        follow_or_print_id(&client, &run, args.no_wait, args.form.output, color, stderr).await
    })
}

/// Follows a started run, or prints its id with `no_wait`.
pub(crate) async fn follow_or_print_id(
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
    print_message(&format!(
        "server: {}, run {}",
        display_url(client.url()),
        run.id
    ));
    follow(
        client,
        &run.id,
        Form::new(output, color),
        stderr,
        OnSignal::Cancel,
    )
    .await
}

fn logs(args: &LogsArgs, color: ColorWhen, stderr: Style, stdout: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let form = Form::new(args.form.output, color);
    block_on(async {
        if args.follow {
            return follow(&client, &args.id, form, stderr, OnSignal::Leave).await;
        }
        if args.lines.selects() {
            let json = form == Form::Json;
            return super::log_lines::print_lines(&client, args, json, stdout).await;
        }
        super::log::print_log(&client, &args.id, args.attempt, form, stderr).await
    })
}
