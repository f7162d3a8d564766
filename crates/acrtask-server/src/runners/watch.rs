//! Periodic work on connected runners: liveness, and decisions of other servers.

use acrtask_store::StoreError;

use crate::{App, recorder::Recorder};

/// Ends the connections of runners that were silent for the time of a lease.
pub(crate) fn end_silent(app: &App, recorder: &Recorder) {
    // While the database is unavailable, heartbeats wait unread.
    if recorder.is_stalled() {
        return;
    }
    for name in app.hub.end_silent(app.config.lease) {
        tracing::warn!(
            name,
            "ended the connection of a runner that was silent for the time of a lease"
        );
    }
}

/// Records the seen runners, and applies decisions of other servers: drain and remove.
pub(crate) async fn reconcile(app: &App) -> Result<(), StoreError> {
    let seen = app.hub.take_unrecorded();
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
    let draining_by_id: std::collections::HashMap<&str, bool> = rows
        .iter()
        .map(|row| (row.id.as_str(), row.draining))
        .collect();
    for runner in app.hub.runners() {
        match draining_by_id.get(runner.id.as_str()) {
            None => app.hub.end_connection(&runner.id, "the runner was removed"),
            Some(true) => {
                if app.hub.set_draining(&runner.id, true) {
                    tracing::info!(runner = runner.id, "sent a drain message to a runner");
                }
            }
            Some(false) => {}
        }
    }
    Ok(())
}
