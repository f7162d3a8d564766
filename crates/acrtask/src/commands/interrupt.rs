//! Ctrl-C and SIGTERM. The first signal stops the run and cleans up. The second one ends the
//! program at once and prints how to remove the leftovers.

use std::io::Write;

use acrtask_executor::owner::RUN_LABEL;
use acrtask_model::RunId;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::CliError,
    exit::Exit,
    render::screen::{frame_is_shown, restore_cursor},
};

/// Signal handler of a command; it is active from its creation on.
pub(crate) struct Interrupts {
    /// Canceled by the first signal.
    pub(crate) token: CancellationToken,
    /// `true` from the first signal on.
    pub(crate) seen: watch::Receiver<bool>,
    /// Current run, whose leftovers a second signal reports.
    run: watch::Sender<Option<RunId>>,
}

impl Interrupts {
    /// Registers the signal handlers. Call it inside a runtime.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CliError::unreachable("cannot listen for signals").because(&error))
        };
        let (interrupt, terminate) = (
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        );
        let token = CancellationToken::new();
        let (seen_sender, seen) = watch::channel(false);
        let (run, current) = watch::channel(None);
        tokio::spawn(handle_signals(
            interrupt,
            terminate,
            token.clone(),
            seen_sender,
            current,
        ));
        Ok(Self { token, seen, run })
    }

    /// Names the run that is under way.
    pub(crate) fn run_started(&self, run: &RunId) {
        self.run.send_replace(Some(run.clone()));
    }

    /// Marks the run as removed, so that a second signal leaves nothing behind.
    pub(crate) fn run_finished(&self) {
        self.run.send_replace(None);
    }
}

/// Waits for `future` on its own runtime, before the run has one. A signal drops the future.
pub(crate) fn until_interrupted<T>(future: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::unreachable("cannot start the runtime").because(&error))?;
    let result = runtime.block_on(async {
        let interrupts = Interrupts::listen()?;
        tokio::select! {
            value = future => Ok(value),
            () = interrupts.token.cancelled() => Err(CliError::interrupted()),
        }
    });
    // A blocking read of standard input cannot be canceled, so do not wait for it.
    runtime.shutdown_background();
    result
}

async fn handle_signals(
    mut interrupt: Signal,
    mut terminate: Signal,
    token: CancellationToken,
    seen: watch::Sender<bool>,
    run: watch::Receiver<Option<RunId>>,
) {
    let mut either =
        async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
    either().await;
    seen.send_replace(true);
    token.cancel();
    // A live frame shows this itself.
    if !frame_is_shown() && run.borrow().is_some() {
        let _ = std::io::stderr().write_all(b"stopping; press Ctrl-C again to exit at once\n");
    }
    either().await;
    restore_cursor();
    if let Some(run) = run.borrow().as_ref() {
        let _ = std::io::stderr().write_all(leftovers_message(run).as_bytes());
    }
    std::process::exit(Exit::Interrupted.code().into());
}

/// Returns the message of a program that exits at once.
fn leftovers_message(run: &RunId) -> String {
    let filter = format!("--filter label={RUN_LABEL}={run}");
    format!(
        "\nerror: exited at once, without cleaning up run {run}
  help: the next `acrtask run` on this machine removes its leftovers; to remove them now:
    docker ps -aq {filter} | xargs -r docker rm -f
    docker network ls -q {filter} | xargs -r docker network rm
    docker volume ls -q {filter} | xargs -r docker volume rm
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_message_names_the_run_label() {
        insta::assert_snapshot!(leftovers_message(&RunId::new("rdemo").unwrap()));
    }
}
