//! Follows a run of a server as if it ran here: the same log, the same words, the same exit code.
//!
//! Invariants: a server that starts again does not end it; the run's end is what the server says it is, not what the
//! log said last. The first Ctrl-C asks the server to stop the run and goes on; the second one leaves it alone.

use std::time::Duration;

use acrtask_api::run::{Run, TASK_FILE_REFUSED, Waiting};
use acrtask_model::{Event, EventKind, RunId, RunState};
use acrtask_spec::TaskSource;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{remote::say, task::tell as tell_problems};
use crate::{
    client::{ApiError, Client, events::Item, retry::Retry},
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

/// Events that wait for the renderer.
const EVENTS: usize = 32;
/// Before it is told why a run waits: one that starts at once needs no word.
const PATIENCE: Duration = Duration::from_millis(700);
/// How often it is looked whether that has changed.
const LOOK: Duration = Duration::from_secs(2);

/// What a signal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// The run is asked to stop.
    Cancel,
    /// The run is left alone: whoever only reads a log does not own it.
    Leave,
}

/// Shows `run` until it is over.
pub(crate) async fn follow(
    client: &Client,
    run: &RunId,
    form: Form,
    stderr: Style,
    on_signal: OnSignal,
) -> Result<Exit, CliError> {
    let (sender, receiver) = mpsc::channel(EVENTS);
    let (stopping, seen) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    let shown = tokio::task::spawn_blocking(move || render::show(&runtime, receiver, &seen, form));
    let signals = match on_signal {
        OnSignal::Cancel => Some(tokio::spawn(hear(client.clone(), run.clone(), stopping)?)),
        OnSignal::Leave => None,
    };
    let own = on_signal == OnSignal::Cancel;
    let read = read(client, run, form, stderr, own, sender).await;
    let view = shown.await.ok();
    if let Some(signals) = signals {
        signals.abort();
    }
    read?;
    let over = end(client, run).await?;
    Ok(tell(&over, view.as_ref(), stderr))
}

/// Hands the events on as they come, until there are no more. `own`: this program started the run.
async fn read(
    client: &Client,
    run: &RunId,
    form: Form,
    stderr: Style,
    own: bool,
    sender: mpsc::Sender<Feed>,
) -> Result<(), CliError> {
    let mut events = client.events(run);
    let mut waiting = Some(wait(client, run, form, &sender));
    let mut cut = false;
    let read = loop {
        let item = events.next().await;
        if let Some(task) = waiting.take_if(|_| !matches!(item, Ok(Item::Cut(_)))) {
            task.abort();
        }
        match item {
            Ok(Item::Event(event)) => {
                cut = false;
                if own && matches!(event.kind, EventKind::RunStarted { .. }) {
                    name_runner(client, run).await;
                }
                if let Some(feed) = shown_here(*event, stderr)
                    && sender.send(feed).await.is_err()
                {
                    break Ok(());
                }
            }
            Ok(Item::Attempt(attempt)) => {
                if sender.send(Feed::Again { attempt }).await.is_err() {
                    break Ok(());
                }
                waiting = Some(wait(client, run, form, &sender));
            }
            Ok(Item::Cut(error)) => {
                if !cut && !frame_is_shown() {
                    say(&stderr.dim(&format!("{error}; trying again")));
                }
                cut = true;
            }
            Ok(Item::End) => break Ok(()),
            Err(error) => break Err(lost(error, run)),
        }
    };
    if let Some(task) = waiting {
        task.abort();
    }
    read
}

/// Prints the runner that has begun the run, unless a live screen is in the way.
async fn name_runner(client: &Client, run: &RunId) {
    if frame_is_shown() {
        return;
    }
    let now = client.get::<Run>(&["runs", run.as_str()], &[]).await;
    // Nothing depends on it.
    if let Some(runner) = now.ok().and_then(|run| run.runner) {
        say(&format!("runner: {}", render::text::plain(&runner)));
    }
}

/// The event as it is shown in the log; what belongs on standard error is told there.
pub(super) fn shown_here(event: Event, stderr: Style) -> Option<Feed> {
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
            tell_problems(&source, &acrtask_job::diagnostics_from(problems), stderr);
            None
        }
        _ => Some(event.into()),
    }
}

/// Says why the run waits, for as long as it does.
fn wait(client: &Client, run: &RunId, form: Form, sender: &mpsc::Sender<Feed>) -> JoinHandle<()> {
    let (client, run, sender) = (client.clone(), run.clone(), sender.clone());
    tokio::spawn(async move {
        let mut told = String::new();
        let mut pause = PATIENCE;
        loop {
            tokio::time::sleep(pause).await;
            pause = LOOK;
            // What cannot be asked now is asked again.
            let Ok(waiting) = client
                .get::<Waiting>(&["runs", run.as_str(), "why"], &[])
                .await
            else {
                continue;
            };
            if waiting.ahead.is_none() && waiting.behind.is_none() {
                continue;
            }
            if waiting.summary != told {
                told.clone_from(&waiting.summary);
                let why = render::text::plain(&waiting.summary).into_owned();
                if matches!(form, Form::Live(_)) {
                    let run = run.clone();
                    // Nobody shows it any more.
                    let _ = sender.send(Feed::Waiting { run, why }).await;
                } else {
                    say(&format!("run {run} waits: {why}"));
                }
            }
        }
    })
}

/// Listens for signals from when it is called.
fn hear(
    client: Client,
    run: RunId,
    stopping: watch::Sender<bool>,
) -> Result<impl Future<Output = ()>, CliError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| CliError::unreachable("signals cannot be listened to").because(&error))
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
            say("asking the server to stop the run; a second Ctrl-C leaves at once");
        }
        let asking = {
            let (client, run) = (client.clone().retrying(Retry::PATIENT), run.clone());
            tokio::spawn(async move {
                let asked = client
                    .tell(&["runs", run.as_str(), "cancel"], &serde_json::json!({}))
                    .await;
                if let Err(error) = asked {
                    say(&format!("the run could not be asked to stop: {error}"));
                }
            })
        };
        either().await;
        asking.abort();
        restore_cursor();
        say(&format!(
            "\nleft run {run}, which may go on\n  to stop it:   acrtask runs cancel {run}\n  to see it:    acrtask runs logs -f {run}"
        ));
        std::process::exit(Exit::Interrupted.code().into());
    })
}

/// The run once it is over. Its log may end a moment before.
async fn end(client: &Client, run: &RunId) -> Result<Run, CliError> {
    let client = client.clone().retrying(Retry::PATIENT);
    let mut pause = Duration::from_millis(50);
    loop {
        let now: Run = client
            .get(&["runs", run.as_str()], &[])
            .await
            .map_err(|error| lost(error, run))?;
        if now.state.is_final() {
            return Ok(now);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK);
    }
}

/// Says on standard error why it did not succeed.
fn tell(run: &Run, view: Option<&RunView>, stderr: Style) -> Exit {
    let refused = run.result.as_ref().is_some_and(|result| result.refused);
    // The mistakes of a task file are shown with its log.
    if refused && run.reason.as_deref() == Some(TASK_FILE_REFUSED) {
        return Exit::Usage;
    }
    let told = view
        .filter(|view| {
            let ended = view.finished.as_ref().map(|end| end.outcome.state);
            ended == Some(run.state)
        })
        .and_then(summary::verdict);
    if let Some(verdict) = told.or_else(|| render::run::verdict(run)) {
        say(&format!("{} {verdict}", stderr.bad("error:")));
    }
    match run.state {
        _ if refused => Exit::Usage,
        RunState::Queued | RunState::Leased | RunState::Running => Exit::Unreachable,
        state => state.into(),
    }
}

fn lost(error: ApiError, run: &RunId) -> CliError {
    let known = error.status().is_some();
    let shown = CliError::from(error);
    if known {
        return shown;
    }
    shown.help(format!(
        "the run goes on without you; once the server is back: `acrtask runs logs -f {run}`"
    ))
}
