//! Commands of users for cascades.

use acrtask_api::cascade::CascadeSettings;
use acrtask_cascade::cascade::{CascadeId, Event, NodeState, StepError};
use acrtask_store::StoreError;

use super::{reconcile, settings, state};
use crate::App;

/// Reason why a command is refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The cascade does not exist.
    #[error("cascade {0} does not exist; `acrtask cascade list` lists all cascades")]
    Unknown(u64),
    /// The cascade is finished.
    #[error("cascade {0} is finished; `acrtask cascade retry {0}` retries its unbuilt tasks")]
    Over(u64),
    /// The new settings have problems.
    #[error(transparent)]
    Settings(#[from] crate::validate::Problems),
    /// The input is invalid, explained in one sentence.
    #[error("{0}")]
    Invalid(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StepError> for CommandError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Unknown(id) => Self::Unknown(id.0),
            StepError::Over(id) => Self::Over(id.0),
        }
    }
}

/// Carries out a command of a user.
///
/// # Errors
/// The cascade does not exist or is finished, or the database failed.
pub async fn apply_command(app: &App, event: Event) -> Result<(), CommandError> {
    let result = {
        let mut cache = app.cascades.cache.lock().await;
        let result =
            reconcile::apply_commands(app, &mut cache, std::slice::from_ref(&event)).await?;
        match (result, cascade_of(&event)) {
            (Err(StepError::Unknown(_)), Some(id)) => {
                let undone = retry_events(app, id).await?;
                match event {
                    Event::Retry { .. } => {
                        reconcile::apply_commands(app, &mut cache, &undone).await?
                    }
                    _ => Err(StepError::Over(id)),
                }
            }
            (result, _) => result,
        }
    };
    app.cascades.mark_facts_changed();
    Ok(result?)
}

fn cascade_of(event: &Event) -> Option<CascadeId> {
    match event {
        Event::Pause { cascade }
        | Event::Resume { cascade }
        | Event::Approve { cascade }
        | Event::Cancel { cascade, .. }
        | Event::Retry { cascade }
        | Event::Ended { cascade, .. } => Some(*cascade),
        Event::Tick | Event::Forget { .. } | Event::Decline { .. } => None,
    }
}

/// Returns the events that make another cascade build the unbuilt tasks of an archived cascade.
async fn retry_events(app: &App, id: CascadeId) -> Result<Vec<Event>, CommandError> {
    match app.store.cascade(id.0).await {
        Ok(_) => {}
        Err(StoreError::NotFound { .. }) => return Err(CommandError::Unknown(id.0)),
        Err(error) => return Err(error.into()),
    }
    let mut events = Vec::new();
    for row in app.store.cascade_nodes(id.0).await? {
        let undone = matches!(
            state::parse_node(&row)?.state,
            NodeState::Failed { .. } | NodeState::Stale { .. } | NodeState::Canceled { .. }
        );
        if undone {
            events.push(Event::Forget { task: row.task });
        }
    }
    Ok(events)
}

/// Prevents rebuilds of a cascade's results from the same digests, before they are rolled back or
/// discarded.
///
/// Skips tasks that a later cascade has built.
pub(super) async fn decline_results(app: &App, id: u64) -> Result<(), StoreError> {
    let mut cascade = state::parse_head(&app.store.cascade(id).await?)?;
    for row in app.store.cascade_nodes(id).await? {
        let node = state::parse_node(&row)?;
        cascade.nodes.insert(row.task, node);
    }
    let mut events = Vec::new();
    for (task, key, from) in cascade.built_tasks() {
        if app.store.cascade_of_task(&task).await? == Some(id) {
            events.push(Event::Decline { task, key, from });
        }
    }
    let mut cache = app.cascades.cache.lock().await;
    // None of these events can be refused.
    let _ = reconcile::apply_commands(app, &mut cache, &events).await?;
    Ok(())
}

/// Stores new settings. They apply from now on, also to existing cascades.
///
/// # Errors
/// The settings have problems, or the database failed.
pub async fn put_settings(app: &App, new: CascadeSettings) -> Result<(), CommandError> {
    settings::validate(&new).into_result()?;
    let text = serde_json::to_string(&new).map_err(|error| {
        CommandError::Invalid(format!("cannot serialize the settings: {error}"))
    })?;
    {
        let mut cache = app.cascades.cache.lock().await;
        reconcile::store_settings(app, &mut cache, &text).await?;
    }
    app.cascades.mark_facts_changed();
    Ok(())
}
