//! What people want of cascades.

use acrtask_api::cascade::CascadeSettings;
use acrtask_cascade::cascade::{CascadeId, Event, NodeState, StepError};
use acrtask_store::StoreError;

use super::{settings, state, work};
use crate::App;

/// Why a command is refused.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no such cascade.
    #[error("there is no cascade {0}; `acrtask cascade list` shows those that there are")]
    Unknown(u64),
    /// It is over.
    #[error("cascade {0} is over; `acrtask cascade retry {0}` tries again what is left of it")]
    Over(u64),
    /// Problems of new settings.
    #[error(transparent)]
    Settings(#[from] crate::submit::Problems),
    /// What was given cannot be, in a sentence.
    #[error("{0}")]
    Invalid(String),
    /// The database cannot be used.
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

/// Does what somebody wants.
///
/// # Errors
/// When there is no such cascade, or it is over, or the database cannot be used.
pub async fn command(app: &App, event: Event) -> Result<(), CommandError> {
    let told = {
        let mut kept = app.cascades.kept.lock().await;
        let told = work::tell(app, &mut kept, std::slice::from_ref(&event)).await?;
        match (told, of(&event)) {
            (Err(StepError::Unknown(_)), Some(id)) => {
                let undone = left_undone(app, id).await?;
                match event {
                    Event::Retry { .. } => work::tell(app, &mut kept, &undone).await?,
                    _ => Err(StepError::Over(id)),
                }
            }
            (told, _) => told,
        }
    };
    app.cascades.facts();
    Ok(told?)
}

fn of(event: &Event) -> Option<CascadeId> {
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

/// Of a cascade that is not loaded any more: what makes the tasks that it left undone be built by another one.
async fn left_undone(app: &App, id: CascadeId) -> Result<Vec<Event>, CommandError> {
    match app.store.cascade(id.0).await {
        Ok(_) => {}
        Err(StoreError::NotFound { .. }) => return Err(CommandError::Unknown(id.0)),
        Err(error) => return Err(error.into()),
    }
    let mut events = Vec::new();
    for row in app.store.cascade_nodes(id.0).await? {
        let undone = matches!(
            state::node(&row)?.state,
            NodeState::Failed { .. } | NodeState::Stale { .. } | NodeState::Canceled { .. }
        );
        if undone {
            events.push(Event::Forget { task: row.task });
        }
    }
    Ok(events)
}

/// What a cascade has built is about to be put back, or given up: nothing builds it again from the same digests. What its
/// tasks have been built for since counts more.
pub(super) async fn decline(app: &App, id: u64) -> Result<(), StoreError> {
    let mut cascade = state::head(&app.store.cascade(id).await?)?;
    for row in app.store.cascade_nodes(id).await? {
        let node = state::node(&row)?;
        cascade.nodes.insert(row.task, node);
    }
    let mut events = Vec::new();
    for (task, key, from) in cascade.built_for() {
        if app.store.cascade_of_task(&task).await? == Some(id) {
            events.push(Event::Decline { task, key, from });
        }
    }
    let mut kept = app.cascades.kept.lock().await;
    // None of these can be refused.
    let _ = work::tell(app, &mut kept, &events).await?;
    Ok(())
}

/// Stores other settings; they hold from now on, for cascades that have begun too.
///
/// # Errors
/// All that is wrong with them, or the database cannot be used.
pub async fn put_settings(app: &App, new: CascadeSettings) -> Result<(), CommandError> {
    settings::check(&new).into_result()?;
    let text = serde_json::to_string(&new).map_err(|error| {
        CommandError::Invalid(format!("the settings cannot be written down: {error}"))
    })?;
    {
        let mut kept = app.cascades.kept.lock().await;
        work::set(app, &mut kept, &text).await?;
    }
    app.cascades.facts();
    Ok(())
}
