//! Ctrl-C and SIGTERM. The first one asks the run to stop and clean up; the second one ends the program
//! at once, and says what stays behind and how to remove it.

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

/// Hears signals from when it is made.
pub(crate) struct Interrupts {
    /// Cancelled by the first signal.
    pub(crate) token: CancellationToken,
    /// True from the first signal on.
    pub(crate) seen: watch::Receiver<bool>,
    /// The run that is under way: what a second signal leaves behind.
    run: watch::Sender<Option<RunId>>,
}

impl Interrupts {
    /// Listens from now on. To be called inside a runtime.
    pub(crate) fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                CliError::unreachable("signals cannot be listened to").because(&error)
            })
        };
        let (interrupt, terminate) = (
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        );
        let token = CancellationToken::new();
        let (seen_sender, seen) = watch::channel(false);
        let (run, current) = watch::channel(None);
        tokio::spawn(hear(
            interrupt,
            terminate,
            token.clone(),
            seen_sender,
            current,
        ));
        Ok(Self { token, seen, run })
    }

    /// Says which run is under way.
    pub(crate) fn run_begins(&self, run: &RunId) {
        self.run.send_replace(Some(run.clone()));
    }

    /// Says that nothing is left of it that a second signal could leave behind.
    pub(crate) fn run_is_over(&self) {
        self.run.send_replace(None);
    }
}

/// Waits for `future` on a runtime of its own, before the run has one; a signal drops it.
pub(crate) fn until_interrupted<T>(future: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::unreachable("cannot start").because(&error))?;
    let result = runtime.block_on(async {
        let interrupts = Interrupts::listen()?;
        tokio::select! {
            value = future => Ok(value),
            () = interrupts.token.cancelled() => Err(CliError::interrupted()),
        }
    });
    // A read of standard input cannot be called off; waiting for it would wait for whoever writes there.
    runtime.shutdown_background();
    result
}

async fn hear(
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
    // A terminal's frame says it itself.
    if !frame_is_shown() && run.borrow().is_some() {
        let _ = std::io::stderr().write_all(b"stopping; a second Ctrl-C ends at once\n");
    }
    either().await;
    restore_cursor();
    if let Some(run) = run.borrow().as_ref() {
        let _ = std::io::stderr().write_all(left_behind(run).as_bytes());
    }
    std::process::exit(Exit::Interrupted.code().into());
}

/// What a program that ends at once says.
fn left_behind(run: &RunId) -> String {
    let filter = format!("--filter label={RUN_LABEL}={run}");
    format!(
        "\nerror: run {run} was left at once, without cleaning up
  help: the next `acrtask run` on this machine removes what it left; or remove it now:
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
    fn what_is_left_is_named_by_its_label() {
        insta::assert_snapshot!(left_behind(&RunId::new("rdemo").unwrap()));
    }
}
