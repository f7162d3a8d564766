//! SIGTERM and SIGINT of commands that run until they are asked to end: the first one asks, the second one ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::remote::say;
use crate::{error::CliError, exit::Exit};

/// Cancelled by the first signal. To be called inside a runtime. `words` are said then.
pub(super) fn until_asked_to_end(words: &'static str) -> Result<CancellationToken, CliError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| CliError::unreachable("signals cannot be listened to").because(&error))
    };
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    let token = CancellationToken::new();
    let asked = token.clone();
    tokio::spawn(async move {
        let mut either =
            async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        either().await;
        tracing::info!("asked to end");
        say(words);
        asked.cancel();
        either().await;
        tracing::warn!("ended at once, by a second signal");
        std::process::exit(Exit::Interrupted.code().into());
    });
    Ok(token)
}
