//! What is looked at again and again about connected runners: whether they are alive, and what was decided about them
//! elsewhere.

use acrtask_store::StoreError;

use crate::{App, recorder::Recorder};

/// Ends the connections of runners that have been silent for a lease.
pub(crate) fn end_silent(app: &App, recorder: &Recorder) {
    // Heartbeats that wait behind a database that is away are not read.
    if recorder.is_stalled() {
        return;
    }
    for name in app.hub.end_silent(app.config.lease) {
        tracing::warn!(
            name,
            "a runner was silent for a lease; its connection is ended"
        );
    }
}

/// Writes down who was heard of, and carries out what others have decided about connected runners: drain, remove.
pub(crate) async fn reconcile(app: &App) -> Result<(), StoreError> {
    let seen = app.hub.take_seen();
    if !seen.is_empty() {
        let now = app.clock.now_ms();
        app.store
            .runners_seen(&seen, &app.config.server_id, now)
            .await?;
    }
    if app.hub.is_empty() {
        return Ok(());
    }
    let rows = app.store.runners().await?;
    let known: std::collections::HashMap<&str, bool> = rows
        .iter()
        .map(|row| (row.id.as_str(), row.draining))
        .collect();
    for runner in app.hub.runners() {
        match known.get(runner.id.as_str()) {
            None => app.hub.end(&runner.id, "the runner was removed"),
            Some(true) => {
                if app.hub.set_draining(&runner.id, true) {
                    tracing::info!(runner = runner.id, "a runner was told to drain");
                }
            }
            Some(false) => {}
        }
    }
    Ok(())
}
