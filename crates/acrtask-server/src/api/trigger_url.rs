//! Trigger URL of a task. It authorizes starting runs of this task, and nothing else.
//!
//! Invariants:
//! * The secret part of a URL is stored as a hash and shown once.
//! * A call is parsed only after its URL is verified.
//! * Each accepted or refused call is recorded, with its run or the reason. Of calls above the
//!   rate limit only the number is recorded.
//! * A call sets only the keys that its task allows.

use acrtask_api::forms::IdempotencyKey;
use std::time::Duration;

use acrtask_api::{
    admin::Problem,
    run::SecretText,
    task::Task,
    timer::{NewTriggerUrl, TriggerUrl, TriggerUrlCall, TriggeredRun},
};
use acrtask_store::{Enqueued, NewRun, StoreError, TriggerUrlRow, timestamp};
use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::{Extensions, StatusCode},
    response::{IntoResponse, Response},
};
use subtle::ConstantTimeEq as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{self, Json, Path},
    runs, tasks,
};
use crate::{
    auth::{self, Authenticated, CredentialKind},
    run_factory::{
        self,
        trigger::{TriggerContext, create_from_trigger},
    },
    serve::request_guard::Guarded as _,
};

/// Path of trigger URLs, below the server's URL.
const BASE: &str = "/trigger";
/// Largest body of a call, in bytes.
const MAX_BODY: usize = 32 << 10;
/// Delay until rejected calls are stored, so that a burst costs one write.
const REJECTED_CALLS_DELAY: Duration = Duration::from_secs(1);
/// Longest idempotency key, in characters.
const MAX_KEY: usize = 500;
/// Prefix of the secret part of a trigger URL. Its remainder equals that of a token.
const PREFIX: &str = "acrtu_";
/// Prefix of an API token.
const TOKEN_PREFIX: &str = "acrt_";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show, create, remove))
}

/// Returns the route of the trigger URLs, which are outside the API's path.
pub(super) fn calls() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(call))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

fn to_api(row: TriggerUrlRow, task: &Task) -> TriggerUrl {
    let url = task.definition.triggers.url.as_ref();
    TriggerUrl {
        id: row.id,
        created_at: timestamp(row.created_at),
        created_by: row.created_by,
        last_used_at: row.last_used_at.map(timestamp),
        rejected_calls: row.turned_away,
        last_rejected_at: row.turned_away_at.map(timestamp),
        allow_set: url.map(|url| url.allow_set.clone()).unwrap_or_default(),
    }
}

/// Returns the trigger URL of a task, without its secret part.
#[utoipa::path(get, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "Name of the task.")), security(("token" = ["read"])), responses(
    (status = OK, body = TriggerUrl),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist or has no trigger URL."),
))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<TriggerUrl>, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    let row = api.app.store.trigger_url(&task.id).await?;
    let row = row.ok_or_else(|| url_not_found(&name))?;
    Ok(Json(to_api(row, &task)))
}

fn url_not_found(task: &str) -> ApiError {
    ApiError::not_found(format!("the task `{task}` has no trigger URL")).help(format!(
        "create one with `acrtask task trigger-url create {task}`"
    ))
}

/// Creates the trigger URL of a task. A previous URL of the task is revoked.
///
/// Only this response contains the URL. A `POST` to it starts a run of the task and returns
/// `{"run": ID}`. The optional body is `{"set": {KEY: VALUE}}` with keys that the task lists in
/// `triggers.url.allowSet`. `Idempotency-Key` is supported.
#[utoipa::path(post, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "Name of the task.")), security(("token" = ["write"])), responses(
    (status = CREATED, body = NewTriggerUrl),
    (status = NOT_FOUND, body = Problem),
))]
async fn create(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<NewTriggerUrl>), ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    let token = auth::new_token();
    let row = TriggerUrlRow {
        task_id: task.id.clone(),
        id: token.id,
        hash: token.hash,
        created_at: api.app.clock.now_ms(),
        created_by: Some(by.caller.name.clone()),
        last_used_at: None,
        turned_away: 0,
        turned_away_at: None,
    };
    api.app.store.put_trigger_url(&row).await?;
    tracing::info!(
        task = name,
        by = by.caller.name,
        "created the trigger URL of a task"
    );
    let own = token.text.0.replacen(TOKEN_PREFIX, PREFIX, 1);
    let new = NewTriggerUrl {
        path: SecretText(format!("{BASE}/{own}")),
        url: to_api(row, &task),
    };
    Ok((StatusCode::CREATED, Json(new)))
}

/// Deletes the trigger URL of a task.
#[utoipa::path(delete, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "Name of the task.")), security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem, description = "The task does not exist or has no trigger URL."),
))]
async fn remove(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    match api.app.store.delete_trigger_url(&task.id).await {
        Err(StoreError::NotFound { .. }) => return Err(url_not_found(&name)),
        done => done?,
    }
    tracing::info!(
        task = name,
        by = by.caller.name,
        "deleted the trigger URL of a task"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a run of the task of this trigger URL.
///
/// The URL itself authorizes the call, without a token. It permits only this call.
/// `Idempotency-Key` is supported, and the body is optional.
#[utoipa::path(post, path = "/trigger/{token}", tag = "trigger-url",
    params(
        ("token" = String, Path, description = "Secret end of the path from the creation of the URL."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Calls with the same key return the same run."),
    ),
    request_body(content = Option<TriggerUrlCall>, content_type = "application/json"), responses(
    (status = CREATED, body = TriggeredRun),
    (status = OK, body = TriggeredRun, description = "The run of an earlier call with the same key."),
    (status = BAD_REQUEST, body = Problem, description = "The body is invalid, or sets a key that calls may not set."),
    (status = UNAUTHORIZED, body = Problem, description = "The URL is wrong, or was replaced or deleted."),
    (status = CONFLICT, body = Problem, description = "The task is disabled, or the key was used with other values."),
    (status = PAYLOAD_TOO_LARGE, body = Problem),
    (status = TOO_MANY_REQUESTS, body = Problem, description = "The URL is called too often. `Retry-After` is the time to wait."),
))]
async fn call(
    State(api): State<Api>,
    Path(token): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (url, task) = authenticate_url(&api, &token, request.extensions()).await?;
    let store = &api.app.store;
    let now = api.app.clock.now_ms();
    // A failed update of the last use does not fail the call.
    if let Err(error) = store.touch_trigger_url(&url.id, now).await {
        tracing::warn!(%error, "cannot record the last use of a trigger URL");
    }
    match create_run(&api, &url, &task, request).await {
        Ok(new) => {
            let set = new.spec.set.clone();
            let enqueued = runs::enqueue(&api, new).await?;
            if let Enqueued::Existing(row) = &enqueued
                && row.spec.set != set
            {
                return Err(runs::key_conflict(row));
            }
            let status = match enqueued {
                Enqueued::New(_) => StatusCode::CREATED,
                Enqueued::Existing(_) => StatusCode::OK,
            };
            let run = enqueued.row().id.clone();
            Ok((status, Json(TriggeredRun { run })).into_response())
        }
        Err(refused) => {
            // Only client errors are recorded as the final decision, because callers retry after
            // other errors.
            if refused.status().is_client_error() {
                let id = format!("u{}", auth::random_id());
                let (name, why) = (&task.definition.name, &refused.problem().message);
                store
                    .store_ignored_trigger(&id, "url", name, why, now)
                    .await?;
            }
            Err(refused)
        }
    }
}

/// Returns the trigger URL with this text, and its task.
async fn authenticate_url(
    api: &Api,
    text: &str,
    extensions: &Extensions,
) -> Result<(TriggerUrlRow, Task), ApiError> {
    let limits = &api.app.limits;
    let now = api.app.clock.now_ms();
    let wrong = || {
        let refusal =
            ApiError::unauthorized("the trigger URL is wrong, or was replaced or deleted")
                .help("create a new one: `acrtask task trigger-url create NAME`");
        let address = auth::client_address(extensions);
        limits.count_failure(CredentialKind::TriggerUrl, address, now, refusal)
    };
    let text = text
        .strip_prefix(PREFIX)
        .map(|own| format!("{TOKEN_PREFIX}{own}"))
        .unwrap_or_default();
    let (id, hash) = auth::parse_token(&text).ok_or_else(wrong)?;
    let turn = limits.acquire_lookup(&hash).await;
    let found = api.app.store.trigger_url_by_id(id).await?;
    drop(turn);
    let Some((url, task)) = found.filter(|(url, _)| bool::from(url.hash.ct_eq(&hash))) else {
        limits.forget(&hash);
        return Err(wrong());
    };
    limits.remember(&hash);
    extensions.mark_proven();
    if let Err(refused) = limits.count_call(&url.id, now) {
        record_rejected_call(api, url.id);
        return Err(refused);
    }
    Ok((url, task))
}

/// Counts a rejected call. Stores the count after [`REJECTED_CALLS_DELAY`], so that many calls cost
/// one write.
fn record_rejected_call(api: &Api, url: String) {
    if !api.app.limits.count_rejected_call(&url) {
        return;
    }
    let api = api.clone();
    tokio::spawn(async move {
        tokio::time::sleep(REJECTED_CALLS_DELAY).await;
        let calls = api.app.limits.take_rejected_calls(&url);
        let now = api.app.clock.now_ms();
        tracing::warn!(url, calls, "rejected calls of a trigger URL");
        if let Err(error) = api.app.store.turn_away_trigger_url(&url, calls, now).await {
            tracing::warn!(%error, "cannot record rejected calls of a trigger URL");
        }
    });
}

/// Creates the run that a call requests.
async fn create_run(
    api: &Api,
    url: &TriggerUrlRow,
    task: &Task,
    request: Request,
) -> Result<NewRun, ApiError> {
    let key = extract::header(request.headers(), "idempotency-key")?;
    if key.is_some_and(|key| key.len() > MAX_KEY) {
        return Err(ApiError::invalid(format!(
            "the `Idempotency-Key` is longer than {MAX_KEY} characters"
        )));
    }
    // Keys of trigger URLs begin with a line break, so that they differ from keys of callers.
    let key = key.map(|key| format!("\nurl {}\n{key}", url.task_id));
    tasks::require_enabled(task)?;
    let input = parse_call(request).await?;
    let triggers = &task.definition.triggers;
    let allowed = triggers.url.as_ref().map(|url| &url.allow_set);
    let refused: Vec<&str> = input
        .set
        .keys()
        .filter(|key| !allowed.is_some_and(|allowed| allowed.contains(key)))
        .map(String::as_str)
        .collect();
    if !refused.is_empty() {
        return Err(ApiError::unprocessable(format!(
            "the call sets `{}`, which the task does not allow",
            refused.join("`, `")
        ))
        .help("add it to `triggers.url.allowSet` of the task"));
    }
    let trigger = TriggerContext {
        trigger: "url",
        triggered_by: "Url",
        set: input.set,
        ..TriggerContext::default()
    };
    let by = run_factory::RequestContext {
        idempotency_key: key,
        traceparent: runs::current_trace(),
        ..run_factory::RequestContext::default()
    };
    let draft = create_from_trigger(&api.app, task, trigger, by)?;
    let mut new = runs::finalize(api, draft, None).await?;
    new.origin.reason = Some(format!("call of the trigger URL {}", url.id));
    Ok(new)
}

/// Parses the body of a call. An empty body sets nothing.
async fn parse_call(request: Request) -> Result<TriggerUrlCall, ApiError> {
    let body = extract::read_body(request, &(), || {
        ApiError::too_large(format!(
            "the body is larger than {} KiB, the limit of a call",
            MAX_BODY >> 10
        ))
    })
    .await?;
    if body.trim_ascii().is_empty() {
        return Ok(TriggerUrlCall::default());
    }
    let call: Option<TriggerUrlCall> = extract::parse_json(&body)?;
    Ok(call.unwrap_or_default())
}

#[cfg(test)]
#[path = "trigger_url_tests.rs"]
mod tests;
