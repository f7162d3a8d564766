//! SIGTERM and SIGINT of long-running commands: the first signal stops them gracefully, the second
//! one at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::remote::print_message;
use crate::{error::CliError, exit::Exit};

/// Returns a token that the first signal cancels. Prints `message` then. Call it inside a runtime.
pub(super) fn stop_on_signal(message: &'static str) -> Result<CancellationToken, CliError> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| CliError::unreachable("cannot listen for signals").because(&error))
    };
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut either =
            async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
        either().await;
        tracing::info!("received a signal, stopping");
        print_message(message);
        stop.cancel();
        either().await;
        tracing::warn!("received a second signal, exiting at once");
        std::process::exit(Exit::Interrupted.code().into());
    });
    Ok(token)
}
