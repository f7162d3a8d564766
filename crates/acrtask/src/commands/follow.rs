//! Follows a run on a server as if it ran on this machine: the same log, messages and exit code.
//!
//! Invariants: a restart of the server does not end the command. The run's outcome comes from the
//! server, not from the last event of the log. The first Ctrl-C cancels the run and keeps
//! following; the second one exits and leaves the run. If the server is unreachable, the first one
//! does so too.

use std::time::Duration;

use acrtask_api::run::{Run, TASK_FILE_REFUSED, Waiting};
use acrtask_model::{Event, EventKind, RunId, RunState};
use acrtask_spec::TaskSource;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{remote::print_message, task_file::print_diagnostics};
use crate::{
    client::{ApiError, Client, events::StreamItem, retry::Retry},
    error::CliError,
    exit::Exit,
    render::{
        self, Feed, Form,
        screen::{frame_is_shown, restore_cursor},
        style::Style,
        summary,
        view::RunView,
    },
};

/// Events buffered for the renderer.
const EVENT_BUFFER: usize = 32;
/// Delay before the reason for waiting is shown; a run that starts at once needs no reason.
const WAIT_NOTICE_DELAY: Duration = Duration::from_millis(700);
/// Interval between requests for the state of the run.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Effect of a signal on the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// Cancels the run.
    Cancel,
    /// Leaves the run unchanged, because a command that only reads a log does not own it.
    Leave,
}

/// Shows `run` until it is finished.
pub(crate) async fn follow(
    client: &Client,
    run: &RunId,
    form: Form,
    stderr: Style,
    on_signal: OnSignal,
) -> Result<Exit, CliError> {
    let (sender, receiver) = mpsc::channel(EVENT_BUFFER);
    let (stopping, seen) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    let shown =
        tokio::task::spawn_blocking(move || render::render_events(&runtime, receiver, &seen, form));
    let signals = match on_signal {
        OnSignal::Cancel => Some(tokio::spawn(handle_signals(
            client.clone(),
            run.clone(),
            stopping,
        )?)),
        OnSignal::Leave => None,
    };
    let own = on_signal == OnSignal::Cancel;
    let read = forward_events(client, run, form, stderr, own, sender).await;
    let view = shown.await.ok();
    let finished = match read {
        Ok(()) => wait_for_end(client, run).await,
        Err(error) => Err(error),
    };
    if let Some(signals) = signals {
        signals.abort();
    }
    let finished = finished?;
    Ok(report_failure(&finished, view.as_ref(), stderr))
}

/// Forwards the events to the renderer until the log ends. `own` is set if this program started the
/// run.
async fn forward_events(
    client: &Client,
    run: &RunId,
    form: Form,
    stderr: Style,
    own: bool,
    sender: mpsc::Sender<Feed>,
) -> Result<(), CliError> {
    let mut events = client.events(run);
    let mut waiting = Some(report_waiting(client, run, form, &sender));
    let mut disconnected = false;
    let read = loop {
        let item = events.next().await;
        if let Some(task) = waiting.take_if(|_| !matches!(item, Ok(StreamItem::Disconnected(_)))) {
            task.abort();
        }
        match item {
            Ok(StreamItem::Event(event)) => {
                disconnected = false;
                if own && matches!(event.kind, EventKind::RunStarted { .. }) {
                    name_runner(client, run).await;
                }
                if let Some(feed) = to_feed(*event, stderr)
                    && sender.send(feed).await.is_err()
                {
                    break Ok(());
                }
            }
            Ok(StreamItem::Attempt(attempt)) => {
                if sender.send(Feed::NewAttempt { attempt }).await.is_err() {
                    break Ok(());
                }
                waiting = Some(report_waiting(client, run, form, &sender));
            }
            Ok(StreamItem::Disconnected(error)) => {
                if !disconnected && !frame_is_shown() {
                    print_message(&stderr.dim(&format!("{error}; reconnecting")));
                }
                disconnected = true;
            }
            Ok(StreamItem::End) => break Ok(()),
            Err(error) => break Err(follow_error(error, run)),
        }
    };
    if let Some(task) = waiting {
        task.abort();
    }
    read
}

/// Prints the runner that started the run, unless a live frame is shown.
async fn name_runner(client: &Client, run: &RunId) {
    if frame_is_shown() {
        return;
    }
    let now = client.get::<Run>(&["runs", run.as_str()], &[]).await;
    // The runner's name is only information, so errors are ignored.
    if let Some(runner) = now.ok().and_then(|run| run.runner) {
        print_message(&format!("runner: {}", render::text::plain_line(&runner)));
    }
}

/// Converts an event for the renderer. Prints the diagnostics of a task file on standard error
/// instead.
pub(super) fn to_feed(event: Event, stderr: Style) -> Option<Feed> {
    match &event.kind {
        EventKind::TaskFile {
            name,
            text,
            problems,
        } => {
            let source = TaskSource {
                name: name.clone(),
                text: text.clone(),
            };
            print_diagnostics(&source, &acrtask_job::diagnostics_from(problems), stderr);
            None
        }
        _ => Some(event.into()),
    }
}

/// Reports why the run waits, until the task is aborted.
fn report_waiting(
    client: &Client,
    run: &RunId,
    form: Form,
    sender: &mpsc::Sender<Feed>,
) -> JoinHandle<()> {
    let (client, run, sender) = (client.clone(), run.clone(), sender.clone());
    tokio::spawn(async move {
        let mut reported = String::new();
        let mut pause = WAIT_NOTICE_DELAY;
        loop {
            tokio::time::sleep(pause).await;
            pause = POLL_INTERVAL;
            // A failed request is repeated after the next pause.
            let Ok(waiting) = client
                .get::<Waiting>(&["runs", run.as_str(), "why"], &[])
                .await
            else {
                continue;
            };
            if waiting.ahead.is_none() && waiting.blocked_by.is_none() {
                continue;
            }
            if waiting.summary != reported {
                reported.clone_from(&waiting.summary);
                let why = render::text::plain_line(&waiting.summary).into_owned();
                if matches!(form, Form::Live(_)) {
                    let run = run.clone();
                    // Sending fails only if the renderer has ended.
                    let _ = sender.send(Feed::Waiting { run, why }).await;
                } else {
                    print_message(&format!("run {run} waits: {why}"));
                }
            }
        }
    })
}

/// Registers signal handlers at once and returns the future that handles the signals.
fn handle_signals(
    client: Client,
    run: RunId,
    stopping: watch::Sender<bool>,
) -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| CliError::unreachable("cannot listen for signals").because(&error))
    };
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    Ok(async move {
        let mut either =
            async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        either().await;
        stopping.send_replace(true);
        if !frame_is_shown() {
            print_message("canceling the run; press Ctrl-C again to exit at once");
        }
        let (path, body) = (["runs", run.as_str(), "cancel"], serde_json::json!({}));
        // A service manager sends SIGTERM once and does not wait long.
        let client = client.retrying(Retry::default());
        let canceled = tokio::select! {
            canceled = client.post_discarding(&path, &body) => Some(canceled),
            () = either() => None,
        };
        let is_reachable = match &canceled {
            None => false,
            Some(Ok(_)) => true,
            Some(Err(error)) => {
                print_message(&format!("cannot cancel the run: {error}"));
                error.status().is_some()
            }
        };
        if is_reachable {
            either().await;
        }
        restore_cursor();
        print_message(&format!(
            "\nleft run {run}, which may continue\n  to cancel it:  acrtask runs cancel {run}\n  to follow it:  acrtask runs logs -f {run}"
        ));
        std::process::exit(Exit::Interrupted.code().into());
    })
}

/// Waits until the server reports the run as finished. The log may end slightly earlier.
async fn wait_for_end(client: &Client, run: &RunId) -> Result<Run, CliError> {
    let client = client.clone().retrying(Retry::PATIENT);
    let mut pause = Duration::from_millis(50);
    loop {
        let now: Run = client
            .get(&["runs", run.as_str()], &[])
            .await
            .map_err(|error| follow_error(error, run))?;
        if now.state.is_final() {
            return Ok(now);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_INTERVAL);
    }
}

/// Prints on standard error why the run did not succeed, and returns the exit code.
fn report_failure(run: &Run, view: Option<&RunView>, stderr: Style) -> Exit {
    let refused = run.result.as_ref().is_some_and(|result| result.refused);
    // The diagnostics of the task file were already printed.
    if refused && run.reason.as_deref() == Some(TASK_FILE_REFUSED) {
        return Exit::Usage;
    }
    let verdict = view
        .filter(|view| {
            let ended = view.finished.as_ref().map(|end| end.outcome.state);
            ended == Some(run.state)
        })
        .and_then(summary::failure_message);
    if let Some(verdict) = verdict.or_else(|| render::run::failure_message(run)) {
        print_message(&format!("{} {verdict}", stderr.bad("error:")));
    }
    match run.state {
        _ if refused => Exit::Usage,
        RunState::Queued | RunState::Leased | RunState::Running => Exit::Unreachable,
        state => state.into(),
    }
}

fn follow_error(error: ApiError, run: &RunId) -> CliError {
    let has_response = error.status().is_some();
    let shown = CliError::from(error);
    if has_response {
        return shown;
    }
    shown.help(format!(
        "the run continues; when the server is back, follow it with `acrtask runs logs -f {run}`"
    ))
}
