//! The URL of a task: whoever has it can start runs of that task, and do nothing else.
//!
//! Invariants: what opens it is stored as a hash and shown once; a call is looked at only after that; each call with the
//! right URL that is not turned away for its number is written down, with its run or the reason why there is none, and of
//! those that are their number; a call sets only what the task lets it set.

use acrtask_api::forms::IdempotencyKey;
use std::time::Duration;

use acrtask_api::{
    admin::Problem,
    run::SecretText,
    task::Task,
    timer::{CallTask, Called, NewTriggerUrl, TriggerUrl},
};
use acrtask_store::{Enqueued, NewRun, StoreError, TriggerUrlRow, timestamp};
use axum::{
    extract::{DefaultBodyLimit, Request, State},
    http::{Extensions, StatusCode},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{self, Json, Path},
    runs, tasks,
};
use crate::{
    auth::{self, By, CredentialKind},
    serve::request_guard::Guarded as _,
    submit::{
        self,
        event::{Happening, from_event},
    },
};

/// Where URLs of tasks are, below the server's address.
const BASE: &str = "/trigger";
/// Largest body of a call, in bytes.
const MAX_BODY: usize = 32 << 10;
/// After so long it is written down how many calls were turned away.
const WRITTEN: Duration = Duration::from_secs(1);
/// Longest idempotency key, in characters.
const MAX_KEY: usize = 500;
/// What a URL's own part begins with; behind it stands what a token has.
const PREFIX: &str = "acrtu_";
/// What a token begins with.
const TOKEN_PREFIX: &str = "acrt_";

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show, create, remove))
}

/// The URLs themselves, which are not below the API's path.
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
        turned_away: row.turned_away,
        turned_away_at: row.turned_away_at.map(timestamp),
        allow_set: url.map(|url| url.allow_set.clone()).unwrap_or_default(),
    }
}

/// The URL of a task, without what opens it.
#[utoipa::path(get, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "The task's name.")), security(("token" = ["read"])), responses(
    (status = OK, body = TriggerUrl),
    (status = NOT_FOUND, body = Problem, description = "There is no such task, or it has no URL."),
))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<TriggerUrl>, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    let row = api.app.store.trigger_url(&task.id).await?;
    let row = row.ok_or_else(|| none(&name))?;
    Ok(Json(to_api(row, &task)))
}

fn none(task: &str) -> ApiError {
    ApiError::not_found(format!("the task `{task}` has no trigger URL")).help(format!(
        "`acrtask task trigger-url create {task}` makes one"
    ))
}

/// Makes the URL of a task. One that it had is worth nothing from then on.
///
/// It is seen this once. `POST` to it starts a run of the task, which `{"run": ID}` names; a body may be left out or be
/// `{"set": {KEY: VALUE}}` with the keys that `triggers.url.allowSet` of the task names. An `Idempotency-Key` is honoured.
#[utoipa::path(post, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "The task's name.")), security(("token" = ["write"])), responses(
    (status = CREATED, body = NewTriggerUrl),
    (status = NOT_FOUND, body = Problem),
))]
async fn create(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<NewTriggerUrl>), ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    let minted = auth::mint();
    let row = TriggerUrlRow {
        task_id: task.id.clone(),
        id: minted.id,
        hash: minted.hash,
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
        "a trigger URL was made for a task"
    );
    let own = minted.text.0.replacen(TOKEN_PREFIX, PREFIX, 1);
    let new = NewTriggerUrl {
        path: SecretText(format!("{BASE}/{own}")),
        url: to_api(row, &task),
    };
    Ok((StatusCode::CREATED, Json(new)))
}

/// Removes the URL of a task.
#[utoipa::path(delete, path = "/tasks/{name}/trigger-url", tag = "trigger-url",
    params(("name" = String, Path, description = "The task's name.")), security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem, description = "There is no such task, or it has no URL."),
))]
async fn remove(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let task = tasks::find(&api, &by.caller, &name).await?;
    match api.app.store.delete_trigger_url(&task.id).await {
        Err(StoreError::NotFound { .. }) => return Err(none(&name)),
        done => done?,
    }
    tracing::info!(
        task = name,
        by = by.caller.name,
        "the trigger URL of a task was removed"
    );
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a run of the task whose URL this is.
///
/// No token is asked for: whoever has the URL may call it, and do nothing else. An `Idempotency-Key` is honoured. What is
/// said may be left out.
#[utoipa::path(post, path = "/trigger/{token}", tag = "trigger-url",
    params(
        ("token" = String, Path, description = "What opens it: the end of the path that was given when the URL was made."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "The same key is the same run."),
    ),
    request_body(content = Option<CallTask>, content_type = "application/json"), responses(
    (status = CREATED, body = Called),
    (status = OK, body = Called, description = "The run of an earlier call with the same key."),
    (status = BAD_REQUEST, body = Problem, description = "What it says cannot be read, or sets what calls may not set."),
    (status = UNAUTHORIZED, body = Problem, description = "There is no such URL any more."),
    (status = CONFLICT, body = Problem, description = "The task is disabled, or the key was used with other values."),
    (status = PAYLOAD_TOO_LARGE, body = Problem),
    (status = TOO_MANY_REQUESTS, body = Problem, description = "It is called too often; `Retry-After` says how long to wait."),
))]
async fn call(
    State(api): State<Api>,
    Path(token): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let (url, task) = opened(&api, &token, request.extensions()).await?;
    let store = &api.app.store;
    let now = api.app.clock.now_ms();
    // Nothing depends on it: a call is not refused for it.
    if let Err(error) = store.touch_trigger_url(&url.id, now).await {
        tracing::warn!(%error, "cannot note when a trigger URL was used");
    }
    match drafted(&api, &url, &task, request).await {
        Ok(new) => {
            let set = new.spec.set.clone();
            let enqueued = runs::enqueue(&api, new).await?;
            if let Enqueued::Existing(row) = &enqueued
                && row.spec.set != set
            {
                return Err(runs::used_key(row));
            }
            let status = match enqueued {
                Enqueued::New(_) => StatusCode::CREATED,
                Enqueued::Existing(_) => StatusCode::OK,
            };
            let run = enqueued.row().id.clone();
            Ok((status, Json(Called { run })).into_response())
        }
        Err(refused) => {
            // What is not the caller's or the task's fault is tried again, and then accounted for.
            if refused.status().is_client_error() {
                let id = format!("u{}", auth::random_id());
                let (name, why) = (&task.definition.name, &refused.problem().message);
                store.suppress_trigger(&id, "url", name, why, now).await?;
            }
            Err(refused)
        }
    }
}

/// The URL with this text, and its task.
async fn opened(
    api: &Api,
    text: &str,
    extensions: &Extensions,
) -> Result<(TriggerUrlRow, Task), ApiError> {
    let limits = &api.app.limits;
    let now = api.app.clock.now_ms();
    let wrong = || {
        let refusal =
            ApiError::unauthorized("the trigger URL is wrong, or was replaced or removed")
                .help("ask for a new one: `acrtask task trigger-url create NAME`");
        let address = auth::address(extensions);
        limits.fail(CredentialKind::TriggerUrl, address, now, refusal)
    };
    let text = text
        .strip_prefix(PREFIX)
        .map(|own| format!("{TOKEN_PREFIX}{own}"))
        .unwrap_or_default();
    let (id, hash) = auth::parse(&text).ok_or_else(wrong)?;
    let turn = limits.lookup(&hash).await;
    let found = api.app.store.trigger_url_by_id(id).await?;
    drop(turn);
    let Some((url, task)) = found.filter(|(url, _)| auth::same(&url.hash, &hash)) else {
        limits.forget(&hash);
        return Err(wrong());
    };
    limits.remember(&hash);
    extensions.proved();
    if let Err(refused) = limits.call(&url.id, now) {
        turn_away(api, url.id);
        return Err(refused);
    }
    Ok((url, task))
}

/// Counts a call that is turned away: written down together with those that follow, so that many of them cost little.
fn turn_away(api: &Api, url: String) {
    if !api.app.limits.turn_away(&url) {
        return;
    }
    let api = api.clone();
    tokio::spawn(async move {
        tokio::time::sleep(WRITTEN).await;
        let calls = api.app.limits.turned_away(&url);
        let now = api.app.clock.now_ms();
        tracing::warn!(url, calls, "calls of a trigger URL were turned away");
        if let Err(error) = api.app.store.turn_away_trigger_url(&url, calls, now).await {
            tracing::warn!(%error, "cannot note how many calls of a trigger URL were turned away");
        }
    });
}

/// The run that a call asks for.
async fn drafted(
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
    // Keys of tasks are no keys of callers, whose names they stand in the place of.
    let key = key.map(|key| format!("\nurl {}\n{key}", url.task_id));
    tasks::need_enabled(task)?;
    let asked = said(request).await?;
    let triggers = &task.definition.triggers;
    let allowed = triggers.url.as_ref().map(|url| &url.allow_set);
    let refused: Vec<&str> = asked
        .set
        .keys()
        .filter(|key| !allowed.is_some_and(|allowed| allowed.contains(key)))
        .map(String::as_str)
        .collect();
    if !refused.is_empty() {
        return Err(ApiError::unprocessable(format!(
            "the call sets `{}`, which the task does not let calls set",
            refused.join("`, `")
        ))
        .help("name it in `triggers.url.allowSet` of the task"));
    }
    let happening = Happening {
        trigger: "url",
        triggered_by: "Url",
        set: asked.set,
        ..Happening::default()
    };
    let by = submit::Request {
        idempotency_key: key,
        traceparent: runs::current_trace(),
        ..submit::Request::default()
    };
    let draft = from_event(&api.app, task, happening, by)?;
    let mut new = runs::complete(api, draft, None).await?;
    new.origin.reason = Some(format!("the task's URL {} was called", url.id));
    Ok(new)
}

/// What a call says.
async fn said(request: Request) -> Result<CallTask, ApiError> {
    let body = extract::bytes(request, &(), || {
        ApiError::too_large(format!(
            "the body is larger than {} KiB, the limit of a call",
            MAX_BODY >> 10
        ))
    })
    .await?;
    if body.trim_ascii().is_empty() {
        return Ok(CallTask::default());
    }
    let call: Option<CallTask> = extract::parse(&body)?;
    Ok(call.unwrap_or_default())
}

#[cfg(test)]
#[path = "trigger_url_tests.rs"]
mod tests;
