//! Runs: asked for, listed, shown, canceled, done again.

use std::collections::HashMap;

use acrtask_api::{
    BASE,
    admin::{Problem, Scope},
    cascade::CascadeOfRun,
    forms::{IdempotencyKey, RunStates, TimeOrDate},
    run::{Attempt, CancelRun, CreateRun, Page, Run, RunSummary},
    spec::ContextSource,
    task::Task,
};
use acrtask_model::{RunId, RunState, TrustDomain};
use acrtask_store::{Enqueued, Hint, NewRun, RunFilter, RunRow, StoreError};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError, contexts,
    extract::{Json, OptionalJson, Path, Query, header},
    query,
};
use crate::{
    auth::{self, By, Caller, TaskLimit},
    submit::{self, Draft, Problems, Request},
};
/// Most entries of a page.
pub(super) const MAX_PAGE: u32 = 200;
/// Entries of a page where nothing is said.
pub(super) const DEFAULT_PAGE: u32 = 50;
/// Longest reason of a cancel, and longest idempotency key, in characters.
const MAX_WORDS: usize = 500;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(cancel))
        .routes(routes!(rerun))
        .routes(routes!(attempts))
}

/// Which runs a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListRuns {
    /// Only these states, separated by commas.
    #[param(value_type = Option<RunStates>)]
    state: Option<String>,
    /// Only runs of the task with this name, or, where it ends in `*`, of tasks whose names begin so.
    task: Option<String>,
    /// Only runs that were created at this time or later: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    since: Option<String>,
    /// Only runs that were created before this time: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    until: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// Runs, the newest first, without their specs and results.
#[utoipa::path(get, path = "/runs", tag = "runs", params(ListRuns), security(("token" = ["read"])), responses(
    (status = OK, body = Page<RunSummary>),
    (status = BAD_REQUEST, body = Problem, description = "A filter is wrong."),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListRuns>,
) -> Result<Json<Page<RunSummary>>, ApiError> {
    let mut filter = RunFilter {
        states: asked.state.as_deref().map_or(Ok(Vec::new()), states)?,
        since: query::time("since", asked.since.as_deref())?,
        until: query::time("until", asked.until.as_deref())?,
        before: asked.cursor,
        limit: page_limit(asked.limit)?,
        ..RunFilter::default()
    };
    let wanted = TaskLimit::parse(asked.task.as_deref());
    let Some(limit) = both(&by.caller.limit, wanted) else {
        return Ok(Json(Page {
            items: Vec::new(),
            next: None,
        }));
    };
    (filter.task, filter.task_prefix) = limit.into_names();
    let (mut items, next) = api.app.store.run_summaries(filter).await?;
    let of_cascades = items.iter().filter(|run| run.trigger == "cascade");
    let ids = of_cascades.map(|run| run.id.clone()).collect();
    let mut found = cascades_of(&api, ids).await?;
    for run in &mut items {
        run.cascade = found.remove(&run.id);
    }
    Ok(Json(Page { items, next }))
}

fn states(text: &str) -> Result<Vec<RunState>, ApiError> {
    text.split(',')
        .map(|word| {
            RunState::parse(word).ok_or_else(|| {
                let all: Vec<&str> = RunState::ALL.iter().map(|state| state.as_str()).collect();
                ApiError::invalid(format!("`{word}` is no state of a run"))
                    .help(format!("there are {}", all.join(", ")))
            })
        })
        .collect()
}

/// Returns which cascades started runs, and why.
async fn cascades_of(
    api: &Api,
    runs: Vec<RunId>,
) -> Result<HashMap<RunId, CascadeOfRun>, ApiError> {
    if runs.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(api.app.store.cascades_of_runs(&runs).await?)
}

/// How many entries a page has.
pub(super) fn page_limit(asked: Option<u32>) -> Result<u32, ApiError> {
    match asked {
        None => Ok(DEFAULT_PAGE),
        Some(limit @ 1..=MAX_PAGE) => Ok(limit),
        Some(limit) => Err(ApiError::invalid(format!(
            "`limit` is {limit}, and may be 1 to {MAX_PAGE}"
        ))
        .help("follow `next` for more")),
    }
}

/// What is in both limits; nothing where no task is.
pub(super) fn both(one: &TaskLimit, other: TaskLimit) -> Option<TaskLimit> {
    match (one, other) {
        (TaskLimit::All, other) => Some(other),
        (one, TaskLimit::All) => Some(one.clone()),
        (one, TaskLimit::Exact(name)) => one.allows(Some(&name)).then_some(TaskLimit::Exact(name)),
        (TaskLimit::Exact(name), TaskLimit::Prefix(prefix)) => name
            .starts_with(&prefix)
            .then(|| TaskLimit::Exact(name.clone())),
        (TaskLimit::Prefix(one), TaskLimit::Prefix(other)) => {
            if other.starts_with(one.as_str()) {
                Some(TaskLimit::Prefix(other))
            } else if one.starts_with(&other) {
                Some(TaskLimit::Prefix(one.clone()))
            } else {
                None
            }
        }
    }
}

/// Asks for a run that belongs to no stored task.
///
/// Names in `spec.secrets` without a value in `secrets` are secrets of the server's store; that needs the scope `write`,
/// since whoever writes the steps can read them. With an `Idempotency-Key`, the same request again gives the same run.
#[utoipa::path(post, path = "/runs", tag = "runs", request_body = CreateRun, security(("token" = ["run"])),
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run.")),
    responses(
        (status = CREATED, body = Run),
        (status = OK, body = Run, description = "An earlier request with this key asked for it."),
        (status = BAD_REQUEST, body = Problem, description = "All that is wrong with the request."),
        (status = CONFLICT, body = Problem, description = "The id is taken, or the key was used for another request."),
    ))]
async fn create(
    by: By<auth::Run>,
    State(api): State<Api>,
    headers: HeaderMap,
    Json(asked): Json<CreateRun>,
) -> Result<Response, ApiError> {
    let caller = &by.caller;
    caller.need_task(None)?;
    let id = asked.id.clone();
    contexts::check_owner(&api.app, caller, &asked.spec.context).await?;
    let draft = submit::from_request(
        &api.app,
        asked,
        &caller.principal,
        request(caller, &headers)?,
    )?;
    if draft.stored().1.next().is_some() && !caller.has(Scope::Write) {
        return Err(ApiError::forbidden(
            "the run asks for stored secrets, and whoever writes its steps can read them",
        )
        .help("give the values in `secrets`, or use a token with the scope `write`"));
    }
    let secrets = draft.secrets().clone();
    let new = complete(&api, draft, id).await?;
    let (spec, queue) = (new.spec.clone(), new.queue.clone());
    let enqueued = enqueue(&api, new).await?;
    if let Enqueued::Existing(row) = &enqueued {
        let same = row.task_name.is_none()
            && row.rerun_of.is_none()
            && row.spec == spec
            && row.queue == queue
            && submit::unseal(&api.app, row)? == secrets;
        if !same {
            return Err(used_key(row));
        }
    }
    Ok(enqueued_response(&enqueued))
}

pub(super) fn used_key(row: &RunRow) -> ApiError {
    ApiError::conflict(format!(
        "the idempotency key was used for another request, which led to the run {}",
        row.id
    ))
    .help("use a new key for each new run")
}

impl From<Problems> for ApiError {
    fn from(problems: Problems) -> Self {
        if problems.has_wrong_form() {
            Self::invalid(problems.to_string())
        } else {
            Self::unprocessable(problems.to_string())
        }
    }
}

/// Who asks for a run, from the headers.
pub(super) fn request(caller: &Caller, headers: &HeaderMap) -> Result<Request, ApiError> {
    let key = header(headers, "idempotency-key")?;
    if key.is_some_and(|key| key.len() > MAX_WORDS) {
        return Err(ApiError::invalid(format!(
            "the `Idempotency-Key` is longer than {MAX_WORDS} characters"
        )));
    }
    Ok(Request {
        requested_by: Some(caller.name.clone()),
        // Keys of different callers are different keys. A name may be given to another token later.
        idempotency_key: key.map(|key| format!("{}\n{key}", caller.principal.key())),
        charged_to: caller.charged_to(),
        traceparent: header(headers, "traceparent")
            .ok()
            .flatten()
            .filter(|text| is_traceparent(text))
            .map_or_else(current_trace, str::to_owned),
    })
}

/// `00-32 hex-16 hex-2 hex`.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.len() == 4
        && parts.iter().zip([2, 32, 16, 2]).all(|(part, length)| {
            part.len() == length
                && part
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
}

/// The trace that the server itself is in, if any.
pub(super) fn current_trace() -> String {
    use opentelemetry::trace::TraceContextExt as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    let context = tracing::Span::current().context();
    let span = context.span();
    let span = span.span_context();
    if !span.is_valid() {
        return String::new();
    }
    format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags().to_u8()
    )
}

/// Checks that the stored secrets are there, and makes the run that the store takes.
pub(super) async fn complete(
    api: &Api,
    draft: Draft,
    id: Option<RunId>,
) -> Result<NewRun, ApiError> {
    let missing = submit::missing_secrets(&api.app, &draft).await?;
    if let Some(first) = missing.first() {
        let only = draft
            .task_name()
            .map_or(String::new(), |task| format!(" --task {task}"));
        return Err(ApiError::unprocessable(format!(
            "there is no secret `{}`",
            missing.join("`, `")
        ))
        .help(format!("set it: `acrtask secret set {first}{only}`")));
    }
    let draft = draft.with_id(id);
    draft
        .check_size()
        .map_err(|problems| ApiError::too_large(problems.to_string()))?;
    draft
        .seal(&api.app)
        .map_err(|error| ApiError::internal(&error))
}

/// Stores a run and wakes whoever hands it out.
pub(super) async fn enqueue(api: &Api, new: NewRun) -> Result<Enqueued, ApiError> {
    let app = &api.app;
    let (id, context) = (new.id.clone(), new.context_id.clone());
    let enqueued = match app.store.enqueue(new, app.clock.now_ms()).await {
        Ok(enqueued) => enqueued,
        Err(StoreError::NotFound { .. }) if context.is_some() => {
            return Err(contexts::incomplete(&context.unwrap_or_default()));
        }
        // An id that its caller chose may be taken, which the database says in words of its own.
        Err(StoreError::Database(_)) if app.store.run(&id).await.is_ok() => {
            return Err(ApiError::conflict(format!("there is a run {id} already"))
                .help("leave out `id`, or choose another one"));
        }
        Err(error) => return Err(error.into()),
    };
    if let Enqueued::New(row) = &enqueued {
        tracing::info!(run = %row.id, task = row.task_name, trigger = row.trigger, "a run was asked for");
        app.wake.notify_one();
        hint(api, Hint::Enqueued).await;
    }
    Ok(enqueued)
}

/// Tells other servers; nothing depends on it.
pub(super) async fn hint(api: &Api, hint: Hint) {
    if let Err(error) = api.app.store.hint(&[hint]).await {
        tracing::debug!(%error, "a hint could not be sent");
    }
}

pub(super) fn enqueued_response(enqueued: &Enqueued) -> Response {
    let status = match enqueued {
        Enqueued::New(_) => StatusCode::CREATED,
        Enqueued::Existing(_) => StatusCode::OK,
    };
    let run = enqueued.row().to_api();
    let location = [(header::LOCATION, format!("{BASE}/runs/{}", run.id))];
    (status, location, Json(run)).into_response()
}

/// A run that the caller may see; what it may not see does not exist.
pub(super) async fn find(api: &Api, caller: &Caller, id: &str) -> Result<RunRow, ApiError> {
    let missing = || ApiError::not_found(format!("there is no run {id}"));
    let id = RunId::new(id).map_err(|_| missing())?;
    let row = match api.app.store.run(&id).await {
        Err(StoreError::NotFound { .. }) => return Err(missing()),
        row => row?,
    };
    if !caller.sees(row.task_name.as_deref()) {
        return Err(missing());
    }
    Ok(row)
}

/// A run.
#[utoipa::path(get, path = "/runs/{id}", tag = "runs", params(("id" = String, Path, description = "The run's id.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Run>, ApiError> {
    let row = find(&api, &by.caller, &id).await?;
    let mut run = row.to_api();
    if row.trigger == "timer" {
        run.tick = super::timers::tick_of(&api, &row.id).await?;
    }
    if row.trigger == "cascade" {
        let mut found = cascades_of(&api, vec![row.id.clone()]).await?;
        run.cascade = found.remove(&row.id);
    }
    Ok(Json(run))
}

/// Asks for the end of a run. One that waits ends at once, one that runs when its runner has stopped it; one that is over is
/// left alone.
#[utoipa::path(post, path = "/runs/{id}/cancel", tag = "runs", request_body = Option<CancelRun>,
    params(("id" = String, Path, description = "The run's id.")), security(("token" = ["run"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
))]
async fn cancel(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    OptionalJson(asked): OptionalJson<CancelRun>,
) -> Result<Json<Run>, ApiError> {
    let row = find(&api, &by.caller, &id).await?;
    let asked = asked.reason.unwrap_or_default();
    if asked.chars().count() > MAX_WORDS {
        return Err(ApiError::invalid(format!(
            "`reason` is longer than {MAX_WORDS} characters"
        )));
    }
    let reason = match asked.trim() {
        "" => format!("canceled by {}", by.caller.name),
        reason => reason.to_owned(),
    };
    let app = &api.app;
    let row = app
        .store
        .request_cancel(&row.id, &reason, app.clock.now_ms())
        .await?;
    tracing::info!(run = %row.id, reason, state = row.state.as_str(), "the end of a run was asked for");
    app.logs.wake(&row.id);
    app.wake.notify_one();
    hint(&api, Hint::Cancel(row.id.clone())).await;
    Ok(Json(row.to_api()))
}

/// Does once more what a run did: the same files at the same commit, the same values and secrets, and the base images
/// by the digests that were used then.
#[utoipa::path(post, path = "/runs/{id}/rerun", tag = "runs", security(("token" = ["run"])),
    params(
        ("id" = String, Path, description = "The run's id."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run."),
    ),
    responses(
        (status = CREATED, body = Run),
        (status = OK, body = Run, description = "An earlier request with this key asked for it."),
        (status = NOT_FOUND, body = Problem),
        (status = CONFLICT, body = Problem, description = "Its task is disabled."),
    ))]
async fn rerun(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let row = find(&api, &by.caller, &id).await?;
    let mut task = None;
    if let Some(name) = &row.task_name {
        match api.app.store.task(name).await {
            Ok(found) => {
                super::tasks::need_enabled(&found)?;
                // Another task of the same name decides nothing about this run.
                task = Some(found).filter(|found| row.task_id.as_ref() == Some(&found.id));
            }
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let (Some(id), None) = (&row.task_id, &task)
        && !api
            .app
            .store
            .tasks_by_id(vec![id.clone()])
            .await?
            .is_empty()
    {
        return Err(ApiError::conflict(submit::RENAMED));
    }
    let asked = request(&by.caller, &headers)?;
    let draft = submit::again(&api.app, &row, task.as_ref(), asked)?;
    if row.task_id.is_some() {
        need_secrets_of_task(&draft, task.as_ref())?;
    }
    let is_own = !matches!(row.trust_domain, TrustDomain::Contribution { .. });
    if let Some(task) = task.as_ref().filter(|_| is_own)
        && !by.caller.has(Scope::Write)
    {
        need_context_of_task(&draft, task)?;
    }
    let new = complete(&api, draft, None).await?;
    let enqueued = enqueue(&api, new).await?;
    if let Enqueued::Existing(earlier) = &enqueued
        && earlier.rerun_of.as_ref() != Some(&row.id)
    {
        return Err(used_key(earlier));
    }
    Ok(enqueued_response(&enqueued))
}

/// Refuses a rerun that would get a stored secret which its task does not name any more.
fn need_secrets_of_task(draft: &submit::Draft, task: Option<&Task>) -> Result<(), ApiError> {
    let named = |secret: &str| {
        task.is_some_and(|task| task.definition.secrets.values().any(|name| name == secret))
    };
    let (_, mut stored) = draft.stored();
    match stored.find(|secret| !named(secret)) {
        None => Ok(()),
        Some(secret) => Err(ApiError::conflict(format!(
            "the run used the secret `{secret}`, which its task does not name any more"
        ))
        .help("start the task as it is now: `acrtask task run`")),
    }
}

/// Refuses a rerun with files that the task does not name any more, and that may have changed since the run.
fn need_context_of_task(draft: &submit::Draft, task: &Task) -> Result<(), ApiError> {
    match draft.context() {
        ContextSource::Url {
            url, commit: None, ..
        } if !submit::names_commit(url) && task.definition.context.as_ref() != Some(url) => Err(
            ApiError::conflict("the run used files that its task does not name any more")
                .help("start the task as it is now: `acrtask task run`"),
        ),
        _ => Ok(()),
    }
}

/// The attempts at a run: one for each time that it was handed to a runner.
#[utoipa::path(get, path = "/runs/{id}/attempts", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Attempt>),
    (status = NOT_FOUND, body = Problem),
))]
async fn attempts(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Vec<Attempt>>, ApiError> {
    let row = find(&api, &by.caller, &id).await?;
    let attempts = api.app.store.attempts(&row.id).await?;
    Ok(Json(
        attempts
            .into_iter()
            .map(|row| Attempt {
                attempt: row.attempt,
                runner: row.runner_name.unwrap_or(row.runner_id),
                leased_at: acrtask_store::timestamp(row.leased_at),
                started_at: row.started_at.map(acrtask_store::timestamp),
                ended_at: row.ended_at.map(acrtask_store::timestamp),
                outcome: row.outcome,
                log_length: row.log_length,
            })
            .collect(),
    ))
}

#[cfg(test)]
#[path = "runs_tests.rs"]
mod tests;
