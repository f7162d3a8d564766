//! Cascades: plan, list, show and control them, and change their settings.
//!
//! A token with a task limit sees only the nodes of its tasks, and no cascades without them. It
//! cannot control cascades.

use std::collections::BTreeSet;

use acrtask_api::{
    admin::Problem,
    cascade::{
        CascadeCounts, CascadeDetail, CascadeMode, CascadeNodeState, CascadePromotion,
        CascadeSettings, CascadeSummary, PlanRequest, Rebuild,
    },
    run::Page,
};
use acrtask_cascade::{
    cascade::{CascadeId, Event},
    show::PlanView,
};
use acrtask_model::ImageRef;
use acrtask_store::StoreError;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{Json, OptionalJson, Path, Query},
    runs,
};
use crate::{
    auth::{self, Authenticated, Caller, TaskLimit},
    cascades::{self, CommandError, ListFilter, PlanError, promote as gate},
};

/// Cascades that one query reads.
const CHUNK: u32 = 50;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(plan))
        .routes(routes!(settings, put_settings))
        .routes(routes!(show))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(approve))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(promote))
        .routes(routes!(rollback))
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Unknown(id) => cascade_not_found(id),
            CommandError::Over(_) => Self::conflict(error.to_string()),
            CommandError::Settings(problems) => problems.into(),
            CommandError::Invalid(message) => Self::unprocessable(message),
            CommandError::Store(error) => error.into(),
        }
    }
}

impl From<PlanError> for ApiError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Invalid(message) => Self::unprocessable(message),
            PlanError::Unreachable(message) => Self::upstream(message),
            PlanError::Store(error) => error.into(),
        }
    }
}

fn cascade_not_found(id: u64) -> ApiError {
    ApiError::not_found(format!("the cascade {id} does not exist"))
        .help("list all cascades with `acrtask cascade list`")
}

/// Filter and page of a list of cascades.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListCascades {
    /// Lists only unfinished cascades.
    pub(crate) active: bool,
    /// Lists only cascades with a node of this task. A trailing `*` matches all tasks with this
    /// prefix.
    pub(crate) task: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

/// Hides the tasks that a caller may not see. Returns `None` if the caller may not see the cascade.
async fn hide_other_tasks(
    api: &Api,
    caller: &Caller,
    mut detail: CascadeDetail,
) -> Result<Option<CascadeDetail>, ApiError> {
    if caller.tasks.is_none() {
        return Ok(Some(detail));
    }
    let may_see = |task: &str| caller.may_see(Some(task));
    let hidden: BTreeSet<String> = detail
        .nodes
        .iter()
        .map(|node| node.task.clone())
        .filter(|task| !may_see(task))
        .collect();
    detail.nodes.retain(|node| may_see(&node.task));
    if detail.nodes.is_empty() {
        return Ok(None);
    }
    let mut counts = CascadeCounts::default();
    let mut bases = BTreeSet::new();
    for node in &mut detail.nodes {
        node.after.retain(|task| may_see(task));
        counts.add(node.state);
        bases.extend(node.pins.keys().cloned());
        // Hide the names of other tasks in reasons.
        let why = node.reason.as_deref().unwrap_or_default();
        if hidden.iter().any(|task| why.contains(task.as_str())) {
            node.reason = Some("because of a task that this token may not see".into());
        }
    }
    let follows = match detail.summary.follows {
        Some(id) => match cascades::show(&api.app, id).await {
            Ok(before) => Some(id).filter(|_| before.nodes.iter().any(|node| may_see(&node.task))),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        None => None,
    };
    let summary = &mut detail.summary;
    summary.follows = follows;
    summary.counts = counts;
    summary.changes.retain(|base, _| bases.contains(base));
    let images = api.app.store.cascade_images(summary.id).await?;
    let (own, others): (Vec<_>, Vec<_>) =
        images.into_iter().partition(|image| may_see(&image.task));
    let own: BTreeSet<String> = own.into_iter().map(|image| image.name).collect();
    detail.images.retain(|image| own.contains(&image.name));
    // The note can name any image and test of the cascade, in any form.
    let promotion = cascades::read_settings(&api.app).await?.promotion;
    let tests = promotion.map_or_else(Vec::new, |promotion| promotion.tests);
    let sees_all = hidden.is_empty() && others.is_empty() && tests.iter().all(|task| may_see(task));
    if summary.promotion_note.is_some() && !sees_all {
        summary.promotion_note = Some("it concerns tasks that this token may not see".into());
    }
    let names_hidden = |text: &str| {
        let mut names = hidden.iter().chain(others.iter().map(|image| &image.name));
        names.any(|name| text.contains(name.as_str()))
    };
    for image in &mut detail.images {
        if image.reason.as_deref().is_some_and(names_hidden) {
            image.reason = Some("because of an image that this token may not see".into());
        }
    }
    Ok(Some(detail))
}

/// Returns a cascade with the nodes that the caller may see.
pub(crate) async fn find(api: &Api, caller: &Caller, id: u64) -> Result<CascadeDetail, ApiError> {
    let detail = match cascades::show(&api.app, id).await {
        Err(StoreError::NotFound { .. }) => return Err(cascade_not_found(id)),
        found => found?,
    };
    hide_other_tasks(api, caller, detail)
        .await?
        .ok_or_else(|| cascade_not_found(id))
}

/// Returns the reason why an image is stale although its cascade has built it.
fn unpromoted_reason(promotion: CascadePromotion) -> Option<&'static str> {
    match promotion {
        CascadePromotion::None | CascadePromotion::Promoted => None,
        CascadePromotion::Staged => Some("its tag is set when the whole cascade is promoted"),
        CascadePromotion::RolledBack => {
            Some("its tag was rolled back, and stays until the next digest change of a base")
        }
        CascadePromotion::Discarded => {
            Some("its staged image was discarded, and its tag is unchanged")
        }
    }
}

/// Returns the planned or running rebuild of a stale image of a task. `None` if no cascade has
/// handled it yet.
pub(super) async fn find_rebuild(
    api: &Api,
    caller: &Caller,
    task: &str,
) -> Result<Option<Rebuild>, ApiError> {
    if let Some(id) = api.app.store.cascade_of_task(task).await? {
        let detail = find(api, caller, id).await?;
        let promotion = detail.summary.promotion;
        let node = detail.nodes.into_iter().find(|node| node.task == task);
        let found = node.and_then(|node| {
            let reason = match (node.state, unpromoted_reason(promotion)) {
                (CascadeNodeState::Skipped, _) => return None,
                // A node with a set tag is stale because of a newer digest change.
                (CascadeNodeState::Succeeded, None) => return None,
                (CascadeNodeState::Succeeded, Some(reason)) => Some(reason.to_owned()),
                _ => node.reason,
            };
            Some(Rebuild {
                cascade: Some(id),
                state: Some(node.state),
                run: node.run,
                reason,
            })
        });
        if found.is_some() {
            return Ok(found);
        }
    }
    let plan = cascades::plan(&api.app, None, None, true).await?;
    let refused = plan
        .refused
        .into_iter()
        .find(|refused| refused.refused.tasks().iter().any(|name| name == task));
    Ok(refused.map(|refused| Rebuild {
        reason: Some(if caller.tasks.is_none() {
            refused.message
        } else {
            "it would rebuild its own base endlessly, or another task pushes its image".into()
        }),
        ..Rebuild::default()
    }))
}

/// Lists cascades, the newest first.
#[utoipa::path(get, path = "/cascades", tag = "cascades", params(ListCascades), security(("token" = ["read"])),
    responses((status = OK, body = Page<CascadeSummary>), (status = BAD_REQUEST, body = Problem)))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListCascades>,
) -> Result<Json<Page<CascadeSummary>>, ApiError> {
    load_page(&api, &by.caller, input).await.map(Json)
}

/// Returns a page of the cascades that the caller may see.
pub(crate) async fn load_page(
    api: &Api,
    caller: &Caller,
    input: ListCascades,
) -> Result<Page<CascadeSummary>, ApiError> {
    let limit = runs::page_limit(input.limit)? as usize;
    let mut before = match &input.cursor {
        None => None,
        Some(cursor) => Some(cursor.parse().map_err(|_| {
            ApiError::unprocessable(format!("`{cursor}` is not a cursor of this list"))
                .help("write the `next` of the previous page")
        })?),
    };
    let mut filter = ListFilter {
        open: input.active,
        limit: CHUNK,
        ..ListFilter::default()
    };
    let wanted = TaskLimit::parse(input.task.as_deref());
    let Some(tasks) = runs::intersect(&caller.limit, wanted) else {
        return Ok(Page {
            items: Vec::new(),
            next: None,
        });
    };
    (filter.task, filter.task_prefix) = tasks.into_names();
    let mut items = Vec::new();
    // One entry more than the page shows that there is a next page.
    while items.len() <= limit {
        let filter = ListFilter {
            before,
            ..filter.clone()
        };
        let found = cascades::list(&api.app, filter).await?;
        before = found.last().map(|cascade| cascade.id);
        let full = found.len() >= CHUNK as usize;
        if caller.tasks.is_none() {
            items.extend(found);
        } else {
            for cascade in found {
                match find(api, caller, cascade.id).await {
                    Ok(detail) => items.push(detail.summary),
                    Err(error) if error.status() == http::StatusCode::NOT_FOUND => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if !full {
            break;
        }
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items
        .last()
        .filter(|_| more)
        .map(|cascade| cascade.id.to_string());
    Ok(Page { items, next })
}

/// Returns a cascade with the state and reason of each node, and with its pushed images.
#[utoipa::path(get, path = "/cascades/{id}", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["read"])),
    responses((status = OK, body = CascadeDetail), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    Ok(Json(find(&api, &by.caller, id).await?))
}

/// Plans a cascade without starting it: tasks, order, digests and estimated duration.
#[utoipa::path(post, path = "/cascades/plan", tag = "cascades", request_body = Option<PlanRequest>,
    security(("token" = ["read"])), responses(
    (status = OK, body = Object),
    (status = BAD_REQUEST, body = Problem),
    (status = BAD_GATEWAY, body = Problem, description = "The registry does not report the digest of the tag."),
))]
async fn plan(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    OptionalJson(input): OptionalJson<PlanRequest>,
) -> Result<Json<PlanView>, ApiError> {
    load_plan(&api, &by.caller, input).await.map(Json)
}

/// Plans a cascade without starting it. Refuses callers with a task limit.
pub(crate) async fn load_plan(
    api: &Api,
    caller: &Caller,
    input: PlanRequest,
) -> Result<PlanView, ApiError> {
    // A plan contains the tasks of all users.
    caller.require_task(None)?;
    let reference = match &input.reference {
        None if input.digest.is_some() => {
            return Err(ApiError::unprocessable("`digest` needs `reference`")
                .help("write the name of the base in `reference`"));
        }
        None => None,
        Some(text) => {
            let reference = text
                .parse::<ImageRef>()
                .map_err(|error| ApiError::unprocessable(error.to_string()))?;
            if reference.digest().is_some() {
                return Err(ApiError::unprocessable(format!(
                    "`{text}` contains a digest, which never changes"
                ))
                .help("write a tag in `reference` and its assumed digest in `digest`"));
            }
            Some(reference.or_latest())
        }
    };
    Ok(cascades::plan(&api.app, reference, input.digest, input.all).await?)
}

/// Returns the settings without the names of tasks that the caller may not see.
fn visible_settings(caller: &Caller, mut settings: CascadeSettings) -> CascadeSettings {
    if caller.tasks.is_none() {
        return settings;
    }
    let concerns = |tasks: &str| {
        let tasks = TaskLimit::Prefix(tasks.to_owned());
        runs::intersect(&caller.limit, tasks).is_some()
    };
    settings.rules.retain(|rule| concerns(&rule.tasks));
    for rule in &mut settings.rules {
        if let CascadeMode::Canary { first } = &mut rule.mode {
            first.retain(|task| caller.may_see(Some(task)));
        }
    }
    settings.promotion = settings.promotion.filter(|it| concerns(&it.tasks));
    if let Some(promotion) = &mut settings.promotion {
        // A test is a task, or a task and a step.
        promotion.tests.retain(|test| {
            let task = test.rsplit_once('/').map(|(task, _)| task);
            caller.may_see(Some(test)) || task.is_some_and(|task| caller.may_see(Some(task)))
        });
    }
    settings
}

/// Returns the settings of cascades. A token with a task limit gets only the rules for its tasks,
/// without names of other tasks.
#[utoipa::path(get, path = "/cascades/settings", tag = "cascades", security(("token" = ["read"])),
    responses((status = OK, body = CascadeSettings)))]
async fn settings(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
) -> Result<Json<CascadeSettings>, ApiError> {
    let settings = cascades::read_settings(&api.app).await?;
    Ok(Json(visible_settings(&by.caller, settings)))
}

/// Replaces the settings of cascades. Omitted fields get their defaults.
#[utoipa::path(put, path = "/cascades/settings", tag = "cascades", request_body = CascadeSettings,
    security(("token" = ["admin"])), responses(
    (status = OK, body = CascadeSettings),
    (status = BAD_REQUEST, body = Problem, description = "A setting is invalid."),
))]
async fn put_settings(
    by: Authenticated<auth::Admin>,
    State(api): State<Api>,
    Json(input): Json<CascadeSettings>,
) -> Result<Json<CascadeSettings>, ApiError> {
    cascades::put_settings(&api.app, input).await?;
    tracing::info!(by = by.caller.name, "replaced the settings of cascades");
    Ok(Json(cascades::read_settings(&api.app).await?))
}

/// Change of a cascade that a user requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CascadeAction {
    Pause,
    Resume,
    Approve,
    Cancel,
    Retry,
    Promote,
    Rollback,
}

/// Changes a cascade and returns it afterwards. Refuses callers with a task limit.
pub(crate) async fn change(
    api: &Api,
    caller: &Caller,
    id: u64,
    action: CascadeAction,
) -> Result<CascadeDetail, ApiError> {
    let cascade = CascadeId(id);
    let (done, event) = match action {
        CascadeAction::Pause => ("paused", Event::Pause { cascade }),
        CascadeAction::Resume => ("resumed", Event::Resume { cascade }),
        CascadeAction::Approve => ("approved", Event::Approve { cascade }),
        CascadeAction::Cancel => {
            let by = caller.name.clone();
            ("canceled", Event::Cancel { cascade, by })
        }
        CascadeAction::Retry => ("retried", Event::Retry { cascade }),
        CascadeAction::Promote => {
            caller.require_task(None)?;
            gate::promote(&api.app, id, &caller.name).await?;
            return find(api, caller, id).await;
        }
        CascadeAction::Rollback => {
            caller.require_task(None)?;
            gate::rollback(&api.app, id, &caller.name).await?;
            return find(api, caller, id).await;
        }
    };
    send_command(api, caller, id, done, event).await
}

/// Sends an event to the driver of cascades and returns the cascade afterwards.
async fn send_command(
    api: &Api,
    caller: &Caller,
    id: u64,
    done: &'static str,
    event: Event,
) -> Result<CascadeDetail, ApiError> {
    // A command affects every task of the cascade.
    caller.require_task(None)?;
    cascades::apply_command(&api.app, event).await?;
    tracing::info!(cascade = id, by = caller.name, "{done} a cascade");
    find(api, caller, id).await
}

/// Pauses a cascade: it starts no further nodes. Running nodes continue.
#[utoipa::path(post, path = "/cascades/{id}/pause", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The cascade is finished."),
))]
async fn pause(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Pause).await?;
    Ok(Json(changed))
}

/// Resumes a paused cascade.
#[utoipa::path(post, path = "/cascades/{id}/resume", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The cascade is finished."),
))]
async fn resume(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Resume).await?;
    Ok(Json(changed))
}

/// Approves a cascade that waits for an approval.
#[utoipa::path(post, path = "/cascades/{id}/approve", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The cascade is finished."),
))]
async fn approve(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Approve).await?;
    Ok(Json(changed))
}

/// Cancels a cascade and its runs. Its unbuilt images stay stale until the next digest change.
#[utoipa::path(post, path = "/cascades/{id}/cancel", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The cascade is finished."),
))]
async fn cancel(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Cancel).await?;
    Ok(Json(changed))
}

/// Retries all failed, skipped and canceled nodes with the current digests.
#[utoipa::path(post, path = "/cascades/{id}/retry", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
))]
async fn retry(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Retry).await?;
    Ok(Json(changed))
}

/// Promotes all staged images of a cascade, regardless of its tests.
#[utoipa::path(post, path = "/cascades/{id}/promote", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail, description = "The promotion sets the tags in the background."),
    (status = BAD_REQUEST, body = Problem, description = "The cascade has no staged images, or is still building."),
    (status = NOT_FOUND, body = Problem),
))]
async fn promote(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Promote).await?;
    Ok(Json(changed))
}

/// Rolls back all tags that a cascade set to their previous digests. Discards its staged images.
#[utoipa::path(post, path = "/cascades/{id}/rollback", tag = "cascades",
    params(("id" = u64, Path, description = "Number of the cascade.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail, description = "The rollback restores the tags in the background."),
    (status = BAD_REQUEST, body = Problem, description = "No tags to restore, or the cascade is still building."),
    (status = NOT_FOUND, body = Problem),
))]
async fn rollback(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let changed = change(&api, &by.caller, id, CascadeAction::Rollback).await?;
    Ok(Json(changed))
}

#[cfg(test)]
#[path = "cascades_tests.rs"]
mod tests;
