//! Runs: create, list, show, cancel and rerun them.

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
    auth::{self, Authenticated, Caller, TaskLimit},
    run_factory::{self, RequestContext, RunDraft},
    scheduler,
    validate::Problems,
};
/// Most entries of a page.
pub(super) const MAX_PAGE: u32 = 200;
/// Default number of entries of a page.
pub(super) const DEFAULT_PAGE: u32 = 50;
/// Longest reason of a cancel, and longest idempotency key, in characters.
const MAX_TEXT: usize = 500;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show))
        .routes(routes!(cancel))
        .routes(routes!(rerun))
        .routes(routes!(attempts))
}

/// Filter and page of a list of runs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListRuns {
    /// Lists only runs in these states, separated by commas.
    #[param(value_type = Option<RunStates>)]
    pub(crate) state: Option<String>,
    /// Lists only runs of this task. A trailing `*` matches all tasks with this prefix.
    pub(crate) task: Option<String>,
    /// Lists only runs created at this time or later: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    pub(crate) since: Option<String>,
    /// Lists only runs created before this time: RFC 3339 or a date.
    #[param(value_type = Option<TimeOrDate>)]
    pub(crate) until: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

/// Lists runs without their specs and results, the newest first.
#[utoipa::path(get, path = "/runs", tag = "runs", params(ListRuns), security(("token" = ["read"])), responses(
    (status = OK, body = Page<RunSummary>),
    (status = BAD_REQUEST, body = Problem, description = "A filter is invalid."),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListRuns>,
) -> Result<Json<Page<RunSummary>>, ApiError> {
    load_page(&api, &by.caller, input).await.map(Json)
}

/// Returns a page of the runs that the caller may see.
pub(crate) async fn load_page(
    api: &Api,
    caller: &Caller,
    input: ListRuns,
) -> Result<Page<RunSummary>, ApiError> {
    let mut filter = RunFilter {
        states: input
            .state
            .as_deref()
            .map_or(Ok(Vec::new()), parse_states)?,
        since: query::parse_time("since", input.since.as_deref())?,
        until: query::parse_time("until", input.until.as_deref())?,
        before: input.cursor,
        limit: page_limit(input.limit)?,
        ..RunFilter::default()
    };
    let wanted = TaskLimit::parse(input.task.as_deref());
    let Some(limit) = intersect(&caller.limit, wanted) else {
        return Ok(Page {
            items: Vec::new(),
            next: None,
        });
    };
    (filter.task, filter.task_prefix) = limit.into_names();
    let (mut items, next) = api.app.store.run_summaries(filter).await?;
    let of_cascades = items.iter().filter(|run| run.trigger == "cascade");
    let ids = of_cascades.map(|run| run.id.clone()).collect();
    let mut found = cascades_of(api, ids).await?;
    for run in &mut items {
        run.cascade = found.remove(&run.id);
    }
    Ok(Page { items, next })
}

fn parse_states(text: &str) -> Result<Vec<RunState>, ApiError> {
    text.split(',')
        .map(|word| {
            RunState::parse(word).ok_or_else(|| {
                let all: Vec<&str> = RunState::ALL.iter().map(|state| state.as_str()).collect();
                ApiError::invalid(format!("`{word}` is not a state of a run"))
                    .help(format!("write one of {}", all.join(", ")))
            })
        })
        .collect()
}

/// Returns the cascades that started runs, by run.
async fn cascades_of(
    api: &Api,
    runs: Vec<RunId>,
) -> Result<HashMap<RunId, CascadeOfRun>, ApiError> {
    if runs.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(api.app.store.cascades_of_runs(&runs).await?)
}

/// Checks the requested number of entries of a page.
pub(crate) fn page_limit(input: Option<u32>) -> Result<u32, ApiError> {
    match input {
        None => Ok(DEFAULT_PAGE),
        Some(limit @ 1..=MAX_PAGE) => Ok(limit),
        Some(limit) => Err(
            ApiError::invalid(format!("`limit` is {limit}: write 1 to {MAX_PAGE}"))
                .help("request further entries with `next`"),
        ),
    }
}

/// Returns the limit of all tasks that both limits include. `None` if they have no common tasks.
pub(crate) fn intersect(one: &TaskLimit, other: TaskLimit) -> Option<TaskLimit> {
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

/// Creates a run without a stored task.
///
/// A name in `spec.secrets` without a value in `secrets` refers to a stored secret. That needs the
/// scope `write`, because the author of the steps can read it. Repeated requests with the same
/// `Idempotency-Key` return the same run.
#[utoipa::path(post, path = "/runs", tag = "runs", request_body = CreateRun, security(("token" = ["run"])),
    params(("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run.")),
    responses(
        (status = CREATED, body = Run),
        (status = OK, body = Run, description = "The run of an earlier request with this key."),
        (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the request."),
        (status = CONFLICT, body = Problem, description = "The id is in use, or the key was used for another request."),
    ))]
async fn create(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    headers: HeaderMap,
    Json(input): Json<CreateRun>,
) -> Result<Response, ApiError> {
    let context = request_context(&by.caller, &headers)?;
    let enqueued = create_run(&api, &by.caller, input, context).await?;
    Ok(enqueued_response(&enqueued))
}

/// Creates a run without a stored task, or finds the run of an earlier equal request.
pub(crate) async fn create_run(
    api: &Api,
    caller: &Caller,
    input: CreateRun,
    context: RequestContext,
) -> Result<Enqueued, ApiError> {
    caller.require_task(None)?;
    let id = input.id.clone();
    contexts::check_owner(&api.app, caller, &input.spec.context).await?;
    let draft = run_factory::create_from_request(&api.app, input, &caller.principal, context)?;
    if draft.stored_secrets().next().is_some() && !caller.has_scope(Scope::Write) {
        return Err(ApiError::forbidden(
            "the run uses stored secrets, which the author of its steps can read",
        )
        .help("send the values in `secrets`, or use a token with the scope `write`"));
    }
    let secrets = draft.secrets().clone();
    let new = finalize(api, draft, id).await?;
    let (spec, queue) = (new.spec.clone(), new.queue.clone());
    let enqueued = enqueue(api, new).await?;
    if let Enqueued::Existing(row) = &enqueued {
        let is_same = row.task_name.is_none()
            && row.rerun_of.is_none()
            && row.spec == spec
            && row.queue == queue
            && run_factory::unseal_secrets(&api.app, row)? == secrets;
        if !is_same {
            return Err(key_conflict(row));
        }
    }
    Ok(enqueued)
}

pub(super) fn key_conflict(row: &RunRow) -> ApiError {
    ApiError::conflict(format!(
        "the idempotency key was used for another request, which created the run {}",
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

/// Returns the details of a request for a run, from the caller and the headers.
pub(crate) fn request_context(
    caller: &Caller,
    headers: &HeaderMap,
) -> Result<RequestContext, ApiError> {
    let key = header(headers, "idempotency-key")?;
    if key.is_some_and(|key| key.len() > MAX_TEXT) {
        return Err(ApiError::invalid(format!(
            "the `Idempotency-Key` is longer than {MAX_TEXT} characters"
        )));
    }
    Ok(keyed_context(caller, headers, key))
}

/// Returns the details of a request whose idempotency key is `key`.
pub(crate) fn keyed_context(
    caller: &Caller,
    headers: &HeaderMap,
    key: Option<&str>,
) -> RequestContext {
    RequestContext {
        requested_by: Some(caller.name.clone()),
        // Keys of different callers are distinct. The principal identifies the caller, because
        // another token may later have the same name.
        idempotency_key: key.map(|key| format!("{}\n{key}", caller.principal.key())),
        charged_to: caller.charged_to(),
        traceparent: header(headers, "traceparent")
            .ok()
            .flatten()
            .filter(|text| is_traceparent(text))
            .map_or_else(current_trace, str::to_owned),
    }
}

/// Returns `true` if `text` has the form `00-32 hex-16 hex-2 hex`.
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

/// Returns the traceparent of the server's current span. Empty if there is none.
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

/// Checks that the stored secrets exist, and seals the run for the store.
pub(super) async fn finalize(
    api: &Api,
    draft: RunDraft,
    id: Option<RunId>,
) -> Result<NewRun, ApiError> {
    let missing = run_factory::find_missing_secrets(&api.app, &draft).await?;
    if let Some(first) = missing.first() {
        let only = draft
            .task_name()
            .map_or(String::new(), |task| format!(" --task {task}"));
        return Err(ApiError::unprocessable(run_factory::list_missing(&missing))
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

/// Stores a run and wakes the scheduler.
pub(super) async fn enqueue(api: &Api, new: NewRun) -> Result<Enqueued, ApiError> {
    let app = &api.app;
    let (id, context) = (new.id.clone(), new.context_id.clone());
    let enqueued = match app.store.enqueue(new, app.clock.now_ms()).await {
        Ok(enqueued) => enqueued,
        Err(StoreError::NotFound { .. }) if context.is_some() => {
            return Err(contexts::incomplete_context(&context.unwrap_or_default()));
        }
        // A duplicate of a chosen id causes a database error.
        Err(StoreError::Database(_)) if app.store.run(&id).await.is_ok() => {
            return Err(ApiError::conflict(format!("the run {id} already exists"))
                .help("leave out `id`, or choose another one"));
        }
        Err(error) => return Err(error.into()),
    };
    if let Enqueued::New(row) = &enqueued {
        tracing::info!(run = %row.id, task = row.task_name, trigger = row.trigger, "created a run");
        app.wake.notify_one();
        send_hint(api, Hint::Enqueued).await;
    }
    Ok(enqueued)
}

/// Sends a hint to the other servers. A failure is only logged.
pub(super) async fn send_hint(api: &Api, hint: Hint) {
    if let Err(error) = api.app.store.send_hints(&[hint]).await {
        tracing::debug!(%error, "cannot send a hint");
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

/// Returns a run that the caller may see. Hidden runs are reported as missing.
pub(crate) async fn find(api: &Api, caller: &Caller, id: &str) -> Result<RunRow, ApiError> {
    let missing = || ApiError::not_found(format!("the run {id} does not exist"));
    let id = RunId::new(id).map_err(|_| missing())?;
    let row = match api.app.store.run(&id).await {
        Err(StoreError::NotFound { .. }) => return Err(missing()),
        row => row?,
    };
    if !caller.may_see(row.task_name.as_deref()) {
        return Err(missing());
    }
    Ok(row)
}

/// Returns a run.
#[utoipa::path(get, path = "/runs/{id}", tag = "runs", params(("id" = String, Path, description = "Id of the run.")),
    security(("token" = ["read"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Run>, ApiError> {
    let row = find(&api, &by.caller, &id).await?;
    add_origin(&api, &row).await.map(Json)
}

/// Returns a run with the timer firing or the cascade that started it.
pub(crate) async fn add_origin(api: &Api, row: &RunRow) -> Result<Run, ApiError> {
    let mut run = row.to_api();
    if row.trigger == "timer" {
        run.firing = super::timers::firing_of(api, &row.id).await?;
    }
    if row.trigger == "cascade" {
        let mut found = cascades_of(api, vec![row.id.clone()]).await?;
        run.cascade = found.remove(&row.id);
    }
    Ok(run)
}

/// Cancels a run. A queued run ends at once. A running one ends when its runner has stopped it. A
/// finished run is unchanged.
#[utoipa::path(post, path = "/runs/{id}/cancel", tag = "runs", request_body = Option<CancelRun>,
    params(("id" = String, Path, description = "Id of the run.")), security(("token" = ["run"])), responses(
    (status = OK, body = Run),
    (status = NOT_FOUND, body = Problem),
))]
async fn cancel(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    OptionalJson(input): OptionalJson<CancelRun>,
) -> Result<Json<Run>, ApiError> {
    let reason = input.reason.unwrap_or_default();
    let row = request_cancel(&api, &by.caller, &id, &reason).await?;
    Ok(Json(row.to_api()))
}

/// Cancels a run that the caller may see. Returns it afterwards.
pub(crate) async fn request_cancel(
    api: &Api,
    caller: &Caller,
    id: &str,
    reason: &str,
) -> Result<RunRow, ApiError> {
    let row = find(api, caller, id).await?;
    if reason.chars().count() > MAX_TEXT {
        return Err(ApiError::invalid(format!(
            "`reason` is longer than {MAX_TEXT} characters"
        )));
    }
    let reason = match reason.trim() {
        "" => format!("canceled by {}", caller.name),
        reason => reason.to_owned(),
    };
    let app = &api.app;
    let row = app
        .store
        .request_cancel(&row.id, &reason, app.clock.now_ms())
        .await?;
    tracing::info!(run = %row.id, reason, state = row.state.as_str(), by = caller.name, "requested the cancellation of a run");
    app.logs.wake(&row.id);
    app.wake.notify_one();
    send_hint(api, Hint::Cancel(row.id.clone())).await;
    Ok(row)
}

/// Reruns a run: with the same files at the same commit, the same values and secrets, and the same
/// digests of base images.
#[utoipa::path(post, path = "/runs/{id}/rerun", tag = "runs", security(("token" = ["run"])),
    params(
        ("id" = String, Path, description = "Id of the run."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run."),
    ),
    responses(
        (status = CREATED, body = Run),
        (status = OK, body = Run, description = "The run of an earlier request with this key."),
        (status = NOT_FOUND, body = Problem),
        (status = CONFLICT, body = Problem, description = "The task is disabled or renamed, or no longer names the files or secrets of the run."),
    ))]
async fn rerun(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let context = request_context(&by.caller, &headers)?;
    let enqueued = rerun_run(&api, &by.caller, &id, context).await?;
    Ok(enqueued_response(&enqueued))
}

/// Reruns a run that the caller may see.
pub(crate) async fn rerun_run(
    api: &Api,
    caller: &Caller,
    id: &str,
    context: RequestContext,
) -> Result<Enqueued, ApiError> {
    let row = find(api, caller, id).await?;
    let mut task = None;
    if let Some(name) = &row.task_name {
        match api.app.store.task(name).await {
            Ok(found) => {
                super::tasks::require_enabled(&found)?;
                // A task that reuses the name of the run's task does not affect the rerun.
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
        return Err(ApiError::conflict(scheduler::RENAMED));
    }
    let draft = run_factory::rerun(&api.app, &row, task.as_ref(), context)?;
    if row.task_id.is_some() {
        require_secrets_of_task(&draft, task.as_ref())?;
    }
    let is_own = !matches!(row.trust_domain, TrustDomain::Contribution { .. });
    if let Some(task) = task.as_ref().filter(|_| is_own)
        && !caller.has_scope(Scope::Write)
    {
        require_context_of_task(&draft, task)?;
    }
    let new = finalize(api, draft, None).await?;
    let enqueued = enqueue(api, new).await?;
    if let Enqueued::Existing(earlier) = &enqueued
        && earlier.rerun_of.as_ref() != Some(&row.id)
    {
        return Err(key_conflict(earlier));
    }
    Ok(enqueued)
}

/// Refuses a rerun with a stored secret that its task no longer names.
fn require_secrets_of_task(draft: &RunDraft, task: Option<&Task>) -> Result<(), ApiError> {
    let named = |secret: &str| {
        task.is_some_and(|task| task.definition.secrets.values().any(|name| name == secret))
    };
    match draft.stored_secrets().find(|secret| !named(secret)) {
        None => Ok(()),
        Some(secret) => Err(ApiError::conflict(format!(
            "the run used the secret `{secret}`, which its task no longer names"
        ))
        .help("start the current task: `acrtask task run`")),
    }
}

/// Refuses a rerun with uploaded files, or with files that the task no longer names and that may
/// have changed since the run.
fn require_context_of_task(draft: &RunDraft, task: &Task) -> Result<(), ApiError> {
    match draft.context() {
        ContextSource::Url {
            url, commit: None, ..
        } if !run_factory::is_pinned_to_commit(url)
            && task.definition.context.as_ref() != Some(url) =>
        {
            Err(
                ApiError::conflict("the run used files that its task no longer names")
                    .help("start the current task: `acrtask task run`"),
            )
        }
        ContextSource::Upload { .. } => Err(ApiError::conflict(
            "the run used uploaded files, which its task does not name",
        )
        .help("start the task: `acrtask task run`, or use a token with the scope `write`")),
        ContextSource::Url { .. } | ContextSource::None => Ok(()),
    }
}

/// Lists the attempts of a run, one per lease.
#[utoipa::path(get, path = "/runs/{id}/attempts", tag = "runs",
    params(("id" = String, Path, description = "Id of the run.")), security(("token" = ["read"])), responses(
    (status = OK, body = Vec<Attempt>),
    (status = NOT_FOUND, body = Problem),
))]
async fn attempts(
    by: Authenticated<auth::Read>,
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
