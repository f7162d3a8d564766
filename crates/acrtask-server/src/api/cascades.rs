//! Cascades: what is built again because a base moved, planned, shown and steered; and their settings.
//!
//! A token that is limited to tasks sees of a cascade what is done with these tasks, and a cascade without them not at
//! all. What concerns a whole cascade is not its to say.

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
    auth::{self, By, Caller, TaskLimit},
    cascades::{self, CommandError, ListFilter, PlanError, promote as gate},
};

/// Cascades that are read at once.
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
            CommandError::Unknown(id) => missing(id),
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

fn missing(id: u64) -> ApiError {
    ApiError::not_found(format!("there is no cascade {id}"))
        .help("`acrtask cascade list` shows those that there are")
}

/// Which cascades a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListCascades {
    /// Only those that are not over.
    active: bool,
    /// Only those that have, or had, something to do with the task of this name, or, where it ends in `*`, with one whose
    /// name begins so.
    task: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// What a caller sees of a cascade; nothing: not even that it exists.
async fn seen(
    api: &Api,
    caller: &Caller,
    mut detail: CascadeDetail,
) -> Result<Option<CascadeDetail>, ApiError> {
    if caller.tasks.is_none() {
        return Ok(Some(detail));
    }
    let sees = |task: &str| caller.sees(Some(task));
    let hidden: BTreeSet<String> = detail
        .nodes
        .iter()
        .map(|node| node.task.clone())
        .filter(|task| !sees(task))
        .collect();
    detail.nodes.retain(|node| sees(&node.task));
    if detail.nodes.is_empty() {
        return Ok(None);
    }
    let mut counts = CascadeCounts::default();
    let mut bases = BTreeSet::new();
    for node in &mut detail.nodes {
        node.after.retain(|task| sees(task));
        counts.add(node.state);
        bases.extend(node.pins.keys().cloned());
        // Names of other tasks are nobody's business.
        let why = node.why.as_deref().unwrap_or_default();
        if hidden.iter().any(|task| why.contains(task.as_str())) {
            node.why = Some("because of a task that this token does not see".into());
        }
    }
    let follows = match detail.summary.follows {
        Some(id) => match cascades::show(&api.app, id).await {
            Ok(before) => Some(id).filter(|_| before.nodes.iter().any(|node| sees(&node.task))),
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
    let (own, others): (Vec<_>, Vec<_>) = images.into_iter().partition(|image| sees(&image.task));
    let own: BTreeSet<String> = own.into_iter().map(|image| image.name).collect();
    detail.images.retain(|image| own.contains(&image.name));
    // The note is about all images and tests of the cascade, in any form of their names.
    let promotion = cascades::settings(&api.app).await?.promotion;
    let tests = promotion.map_or_else(Vec::new, |promotion| promotion.tests);
    let sees_all = hidden.is_empty() && others.is_empty() && tests.iter().all(|task| sees(task));
    if summary.promotion_note.is_some() && !sees_all {
        summary.promotion_note = Some("it concerns tasks that this token does not see".into());
    }
    let names_hidden = |text: &str| {
        let mut names = hidden.iter().chain(others.iter().map(|image| &image.name));
        names.any(|name| text.contains(name.as_str()))
    };
    for image in &mut detail.images {
        if image.why.as_deref().is_some_and(names_hidden) {
            image.why = Some("because of an image that this token does not see".into());
        }
    }
    Ok(Some(detail))
}

async fn find(api: &Api, caller: &Caller, id: u64) -> Result<CascadeDetail, ApiError> {
    let detail = match cascades::show(&api.app, id).await {
        Err(StoreError::NotFound { .. }) => return Err(missing(id)),
        found => found?,
    };
    seen(api, caller, detail).await?.ok_or_else(|| missing(id))
}

/// Why an image is stale that its cascade has built.
fn built_and(promotion: CascadePromotion) -> Option<&'static str> {
    match promotion {
        CascadePromotion::None | CascadePromotion::Promoted => None,
        CascadePromotion::Held => Some("its tag moves when the whole cascade is promoted"),
        CascadePromotion::RolledBack => {
            Some("its tag was put back, and stays until a base moves again")
        }
        CascadePromotion::Dropped => Some("what was built was given up, and its tag has not moved"),
    }
}

/// What cascades do about the images of a task that is stale; nothing: nobody has looked at it yet.
pub(super) async fn rebuild(
    api: &Api,
    caller: &Caller,
    task: &str,
) -> Result<Option<Rebuild>, ApiError> {
    if let Some(id) = api.app.store.cascade_of_task(task).await? {
        let detail = find(api, caller, id).await?;
        let promotion = detail.summary.promotion;
        let node = detail.nodes.into_iter().find(|node| node.task == task);
        let found = node.and_then(|node| {
            let why = match (node.state, built_and(promotion)) {
                (CascadeNodeState::Skipped, _) => return None,
                // One that was built and has its tag is stale because of something newer.
                (CascadeNodeState::Succeeded, None) => return None,
                (CascadeNodeState::Succeeded, Some(what)) => Some(what.to_owned()),
                _ => node.why,
            };
            Some(Rebuild {
                cascade: Some(id),
                state: Some(node.state),
                run: node.run,
                why,
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
        why: Some(if caller.tasks.is_none() {
            refused.message
        } else {
            "it would build its own base again and again, or another task pushes its image".into()
        }),
        ..Rebuild::default()
    }))
}

/// Cascades, the newest first.
#[utoipa::path(get, path = "/cascades", tag = "cascades", params(ListCascades), security(("token" = ["read"])),
    responses((status = OK, body = Page<CascadeSummary>), (status = BAD_REQUEST, body = Problem)))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListCascades>,
) -> Result<Json<Page<CascadeSummary>>, ApiError> {
    let limit = runs::page_limit(asked.limit)? as usize;
    let mut before = match &asked.cursor {
        None => None,
        Some(cursor) => Some(cursor.parse().map_err(|_| {
            ApiError::unprocessable(format!("`{cursor}` is no cursor of this list"))
                .help("take the one that the page before gave as `next`")
        })?),
    };
    let mut filter = ListFilter {
        open: asked.active,
        limit: CHUNK,
        ..ListFilter::default()
    };
    let wanted = TaskLimit::parse(asked.task.as_deref());
    let Some(tasks) = runs::both(&by.caller.limit, wanted) else {
        return Ok(Json(Page {
            items: Vec::new(),
            next: None,
        }));
    };
    (filter.task, filter.task_prefix) = tasks.into_names();
    let mut items = Vec::new();
    // One more tells whether there is another page.
    while items.len() <= limit {
        let filter = ListFilter {
            before,
            ..filter.clone()
        };
        let found = cascades::list(&api.app, filter).await?;
        before = found.last().map(|cascade| cascade.id);
        let full = found.len() >= CHUNK as usize;
        if by.caller.tasks.is_none() {
            items.extend(found);
        } else {
            for cascade in found {
                match find(&api, &by.caller, cascade.id).await {
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
    Ok(Json(Page { items, next }))
}

/// A cascade: its tasks, where each stands and why, and what it pushed.
#[utoipa::path(get, path = "/cascades/{id}", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["read"])),
    responses((status = OK, body = CascadeDetail), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    Ok(Json(find(&api, &by.caller, id).await?))
}

/// What would be built again, in which order, on which digests, and how long that takes. Nothing is started.
#[utoipa::path(post, path = "/cascades/plan", tag = "cascades", request_body = Option<PlanRequest>,
    security(("token" = ["read"])), responses(
    (status = OK, body = Object),
    (status = BAD_REQUEST, body = Problem),
    (status = BAD_GATEWAY, body = Problem, description = "The registry does not say what the tag holds."),
))]
async fn plan(
    by: By<auth::Read>,
    State(api): State<Api>,
    OptionalJson(asked): OptionalJson<PlanRequest>,
) -> Result<Json<PlanView>, ApiError> {
    // A plan goes through the tasks of everybody.
    by.caller.need_task(None)?;
    let reference = match &asked.reference {
        None if asked.digest.is_some() => {
            return Err(
                ApiError::unprocessable("a digest is given without what it is of")
                    .help("name the base in `reference`"),
            );
        }
        None => None,
        Some(text) => {
            let reference = text
                .parse::<ImageRef>()
                .map_err(|error| ApiError::unprocessable(error.to_string()))?;
            if reference.digest().is_some() {
                return Err(ApiError::unprocessable(format!(
                    "`{text}` names a digest, which never moves"
                ))
                .help("name a tag in `reference`, and what it would hold in `digest`"));
            }
            Some(reference.or_latest())
        }
    };
    let plan = cascades::plan(&api.app, reference, asked.digest, asked.all).await?;
    Ok(Json(plan))
}

/// Returns the settings without the names of tasks that the caller may not see.
fn seen_settings(caller: &Caller, mut settings: CascadeSettings) -> CascadeSettings {
    if caller.tasks.is_none() {
        return settings;
    }
    let concerns = |tasks: &str| {
        let tasks = TaskLimit::Prefix(tasks.to_owned());
        runs::both(&caller.limit, tasks).is_some()
    };
    settings.rules.retain(|rule| concerns(&rule.tasks));
    for rule in &mut settings.rules {
        if let CascadeMode::Canary { first } = &mut rule.mode {
            first.retain(|task| caller.sees(Some(task)));
        }
    }
    settings.promotion = settings.promotion.filter(|it| concerns(&it.tasks));
    if let Some(promotion) = &mut settings.promotion {
        // A test is a task, or a task and a step.
        promotion.tests.retain(|test| {
            let task = test.rsplit_once('/').map(|(task, _)| task);
            caller.sees(Some(test)) || task.is_some_and(|task| caller.sees(Some(task)))
        });
    }
    settings
}

/// How cascades are carried out. A token that is limited to tasks gets the rules that concern them, without the names of
/// other tasks.
#[utoipa::path(get, path = "/cascades/settings", tag = "cascades", security(("token" = ["read"])),
    responses((status = OK, body = CascadeSettings)))]
async fn settings(
    by: By<auth::Read>,
    State(api): State<Api>,
) -> Result<Json<CascadeSettings>, ApiError> {
    let settings = cascades::settings(&api.app).await?;
    Ok(Json(seen_settings(&by.caller, settings)))
}

/// Sets how cascades are carried out. What is left out is as it is by default.
#[utoipa::path(put, path = "/cascades/settings", tag = "cascades", request_body = CascadeSettings,
    security(("token" = ["admin"])), responses(
    (status = OK, body = CascadeSettings),
    (status = BAD_REQUEST, body = Problem, description = "What is wrong with them."),
))]
async fn put_settings(
    by: By<auth::Admin>,
    State(api): State<Api>,
    Json(asked): Json<CascadeSettings>,
) -> Result<Json<CascadeSettings>, ApiError> {
    cascades::put_settings(&api.app, asked).await?;
    tracing::info!(by = by.caller.name, "the settings of cascades were set");
    Ok(Json(cascades::settings(&api.app).await?))
}

/// Tells the driver of cascades, and shows what came of it.
async fn order(
    api: &Api,
    caller: &Caller,
    id: u64,
    what: &'static str,
    event: Event,
) -> Result<Json<CascadeDetail>, ApiError> {
    // It concerns every task of the cascade.
    caller.need_task(None)?;
    cascades::command(&api.app, event).await?;
    tracing::info!(cascade = id, by = caller.name, "a cascade was {what}");
    Ok(Json(find(api, caller, id).await?))
}

/// Starts nothing more of a cascade. What runs goes on.
#[utoipa::path(post, path = "/cascades/{id}/pause", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It is over."),
))]
async fn pause(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let cascade = CascadeId(id);
    order(&api, &by.caller, id, "paused", Event::Pause { cascade }).await
}

/// Goes on with a paused cascade.
#[utoipa::path(post, path = "/cascades/{id}/resume", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It is over."),
))]
async fn resume(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let cascade = CascadeId(id);
    order(&api, &by.caller, id, "resumed", Event::Resume { cascade }).await
}

/// Agrees to a cascade that waits for somebody's consent.
#[utoipa::path(post, path = "/cascades/{id}/approve", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It is over."),
))]
async fn approve(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let cascade = CascadeId(id);
    order(&api, &by.caller, id, "approved", Event::Approve { cascade }).await
}

/// Stops a cascade: its runs are canceled, and what it would have built stays stale until another digest comes.
#[utoipa::path(post, path = "/cascades/{id}/cancel", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "It is over."),
))]
async fn cancel(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let event = Event::Cancel {
        cascade: CascadeId(id),
        by: by.caller.name.clone(),
    };
    order(&api, &by.caller, id, "canceled", event).await
}

/// Tries again what failed, was left behind or canceled, with the digests of now.
#[utoipa::path(post, path = "/cascades/{id}/retry", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail),
    (status = NOT_FOUND, body = Problem),
))]
async fn retry(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    let cascade = CascadeId(id);
    order(
        &api,
        &by.caller,
        id,
        "tried again",
        Event::Retry { cascade },
    )
    .await
}

/// Moves the tags of everything that a cascade holds back, whatever its tests say.
#[utoipa::path(post, path = "/cascades/{id}/promote", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail, description = "The tags are being moved."),
    (status = BAD_REQUEST, body = Problem, description = "It holds nothing back, or is still building."),
    (status = NOT_FOUND, body = Problem),
))]
async fn promote(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    by.caller.need_task(None)?;
    gate::promote(&api.app, id, &by.caller.name).await?;
    Ok(Json(find(&api, &by.caller, id).await?))
}

/// Puts back, under all tags that a cascade moved, what they held before it. What it still holds back is given up.
#[utoipa::path(post, path = "/cascades/{id}/rollback", tag = "cascades",
    params(("id" = u64, Path, description = "Its number.")),
    security(("token" = ["write"])), responses(
    (status = OK, body = CascadeDetail, description = "The tags are being put back."),
    (status = BAD_REQUEST, body = Problem, description = "There is nothing to put back, or it is still building."),
    (status = NOT_FOUND, body = Problem),
))]
async fn rollback(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(id): Path<u64>,
) -> Result<Json<CascadeDetail>, ApiError> {
    by.caller.need_task(None)?;
    gate::rollback(&api.app, id, &by.caller.name).await?;
    Ok(Json(find(&api, &by.caller, id).await?))
}

#[cfg(test)]
#[path = "cascades_tests.rs"]
mod tests;
