//! `acrtask runs logs` without `-f`: prints the current log.

use acrtask_model::RunId;
use tokio::sync::{mpsc, watch};

use super::follow::to_feed;
use crate::{
    client::Client,
    error::CliError,
    exit::Exit,
    render::{self, Feed, Form, style::Style},
};

/// Maximum length of a line in bytes; an event contains at most 64 KiB of output.
const MAX_LINE: usize = 16 << 20;

/// Prints the log of `run`, or of one of its attempts. In JSON form, prints every line as the
/// runner wrote it.
pub(crate) async fn print_log(
    client: &Client,
    run: &RunId,
    attempt: Option<u32>,
    form: Form,
    stderr: Style,
) -> Result<Exit, CliError> {
    let mut query = vec![("format", "json".to_owned())];
    query.extend(attempt.map(|attempt| ("attempt", attempt.to_string())));
    let mut response = client
        .stream(&["runs", run.as_str(), "log"], &query)
        .await?;
    let read_error = |error: &dyn std::fmt::Display| {
        CliError::unreachable(format!("the log is incomplete: {error}"))
            .help("try again; `acrtask runs logs -f` reconnects automatically")
    };
    if form == Form::Json {
        let mut rest = Vec::new();
        loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return super::write_out(&rest),
                Err(error) => return Err(read_error(&error.without_url())),
            };
            rest.extend_from_slice(&chunk);
            // A chunk may end within a character.
            let complete = rest
                .utf8_chunks()
                .next()
                .map_or(0, |part| part.valid().len());
            let complete = if rest.len() - complete < 4 {
                complete
            } else {
                rest.len()
            };
            let text = String::from_utf8_lossy(&rest[..complete]);
            super::write_out(render::text::escape_json(&text).as_bytes())?;
            rest.drain(..complete);
        }
    }
    let (sender, receiver) = mpsc::channel::<Feed>(32);
    let (_open, seen) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    // A finished log needs no live frame.
    let form = match form {
        Form::Live(style) => Form::Plain(style),
        form => form,
    };
    let shown =
        tokio::task::spawn_blocking(move || render::render_events(&runtime, receiver, &seen, form));
    let mut line = Vec::new();
    let read = 'read: loop {
        let chunk = match response.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(error) => break Err(read_error(&error.without_url())),
        };
        for part in chunk.split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > MAX_LINE {
                break 'read Err(read_error(&"a line is too long"));
            }
            if !part.ends_with(b"\n") {
                continue;
            }
            let event = serde_json::from_slice(&line);
            line.clear();
            let Ok(event) = event else {
                tracing::debug!("ignored an unknown event");
                continue;
            };
            if let Some(feed) = to_feed(event, stderr)
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
