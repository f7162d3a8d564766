//! `acrtask runs logs` without `-f`: the log as it is now.

use acrtask_model::RunId;
use tokio::sync::{mpsc, watch};

use super::follow::shown_here;
use crate::{
    client::Client,
    error::CliError,
    exit::Exit,
    render::{self, Feed, Form, style::Style},
};

/// Longest line that is taken: an event holds at most 64 KiB of output.
const LONGEST: usize = 16 << 20;

/// Prints the log of `run`, or of one attempt at it. As JSON, every line as the runner wrote it.
pub(crate) async fn log(
    client: &Client,
    run: &RunId,
    attempt: Option<u32>,
    form: Form,
    stderr: Style,
) -> Result<Exit, CliError> {
    let mut query = vec![("format", "json".to_owned())];
    query.extend(attempt.map(|attempt| ("attempt", attempt.to_string())));
    let mut answer = client
        .stream(&["runs", run.as_str(), "log"], &query)
        .await?;
    let cut = |error: &dyn std::fmt::Display| {
        CliError::unreachable(format!("the log was cut off: {error}"))
            .help("ask again; `acrtask runs logs -f` goes on by itself")
    };
    if form == Form::Json {
        let mut rest = Vec::new();
        loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return super::write_out(&rest),
                Err(error) => return Err(cut(&error.without_url())),
            };
            rest.extend_from_slice(&chunk);
            // A character may be split over chunks.
            let whole = rest
                .utf8_chunks()
                .next()
                .map_or(0, |part| part.valid().len());
            let whole = if rest.len() - whole < 4 {
                whole
            } else {
                rest.len()
            };
            let text = String::from_utf8_lossy(&rest[..whole]);
            super::write_out(render::text::json(&text).as_bytes())?;
            rest.drain(..whole);
        }
    }
    let (sender, receiver) = mpsc::channel::<Feed>(32);
    let (_open, seen) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    // What is over needs no frame.
    let form = match form {
        Form::Live(style) => Form::Plain(style),
        form => form,
    };
    let shown = tokio::task::spawn_blocking(move || render::show(&runtime, receiver, &seen, form));
    let mut line = Vec::new();
    let read = 'read: loop {
        let chunk = match answer.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(error) => break Err(cut(&error.without_url())),
        };
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > LONGEST {
                break 'read Err(cut(&"a line is too long"));
            }
            if !part.ends_with(b"\n") {
                continue;
            }
            let event = serde_json::from_slice(&line);
            line.clear();
            let Ok(event) = event else {
                tracing::debug!("an event that is not known here");
                continue;
            };
            if let Some(feed) = shown_here(event, stderr)
                && sender.send(feed).await.is_err()
            {
                break 'read Ok(());
            }
        }
    };
    drop(sender);
    let _ = shown.await;
    read.map(|()| Exit::Succeeded)
}
