//! Stored tasks: made, listed, shown, changed, deleted, and runs of them started. A `/` in a name is `%2F` in a path.

use acrtask_api::{
    BASE,
    admin::{Problem, Scope},
    forms::{Generation, IdempotencyKey},
    run::{Page, Run, StartTask},
    spec::Work,
    task::{Task, TaskDefinition},
    task_keys,
};
use acrtask_store::{DEFAULT_POOL, Enqueued, Hint, RunRow, StoreError, TaskFilter};
use axum::{
    extract::{FromRequest, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError, contexts,
    extract::{self, Json, OptionalJson, Path, Query},
    runs,
};
use crate::{
    auth::{self, By, Caller},
    submit,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, replace, delete))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(start))
}

/// Which tasks a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListTasks {
    /// Only names that begin so.
    prefix: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// What the page before gave as `next`.
    cursor: Option<String>,
}

/// Stored tasks, by name.
#[utoipa::path(get, path = "/tasks", tag = "tasks", params(ListTasks), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Task>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: By<auth::Read>,
    State(api): State<Api>,
    Query(asked): Query<ListTasks>,
) -> Result<Json<Page<Task>>, ApiError> {
    let limit = runs::page_limit(asked.limit)?;
    let mut items = api
        .app
        .store
        .tasks(TaskFilter {
            prefix: asked.prefix,
            pattern: by.caller.tasks.clone(),
            after: asked.cursor,
            // One more tells whether there is another page.
            limit: limit + 1,
        })
        .await?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = if more {
        items.last().map(|task| task.definition.name.clone())
    } else {
        None
    };
    for task in &mut items {
        let definition = &mut task.definition;
        definition.values.clear();
        // Still there, so that the list shows which kind of task it is.
        definition.text = definition.text.take().map(|_| String::new());
    }
    Ok(Json(Page { items, next }))
}

/// The definition of a task in a body. A key at the wrong level is refused with the name of the right one.
#[derive(Debug)]
struct Definition(TaskDefinition);

impl<S: Send + Sync> FromRequest<S> for Definition {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let parsed = Json::<TaskDefinition>::from_request(request, state).await;
        parsed.map(|Json(definition)| Self(definition)).map_err(
            |error| match task_keys::right_level(&error.problem().message) {
                Some(place) => error.help(place),
                None => error,
            },
        )
    }
}

/// Makes a task.
#[utoipa::path(post, path = "/tasks", tag = "tasks", request_body = TaskDefinition, security(("token" = ["write"])), responses(
    (status = CREATED, body = Task),
    (status = BAD_REQUEST, body = Problem, description = "All that is wrong with the definition."),
    (status = CONFLICT, body = Problem, description = "The name is taken."),
))]
async fn create(
    by: By<auth::Write>,
    State(api): State<Api>,
    Definition(definition): Definition,
) -> Result<Response, ApiError> {
    by.caller.need_task(Some(&definition.name))?;
    need_queue(&by.caller, &definition, None)?;
    submit::check_task(&definition).into_result()?;
    let task = insert(&api, &by.caller, &definition).await?;
    Ok(created(task))
}

async fn insert(api: &Api, caller: &Caller, definition: &TaskDefinition) -> Result<Task, ApiError> {
    let app = &api.app;
    let id = format!("t{}", auth::random_id());
    let task = app
        .store
        .create_task_within(
            &id,
            definition,
            None,
            caller.tasks.as_deref(),
            app.clock.now_ms(),
        )
        .await?;
    changed(api).await;
    Ok(task)
}

/// Tells whoever follows the tasks that they were changed.
pub(super) async fn changed(api: &Api) {
    api.app.timers.notify_one();
    api.app.cascades.facts();
    runs::hint(api, Hint::Tasks).await;
}

fn created(task: Task) -> Response {
    let name = path_segment(&task.definition.name);
    let location = [(header::LOCATION, format!("{BASE}/tasks/{name}"))];
    (StatusCode::CREATED, location, Json(task)).into_response()
}

fn path_segment(name: &str) -> String {
    name.replace('/', "%2F")
}

/// A task that the caller may see; what it may not see does not exist.
pub(super) async fn find(api: &Api, caller: &Caller, name: &str) -> Result<Task, ApiError> {
    if !caller.sees(Some(name)) {
        return Err(no_task(name));
    }
    match api.app.store.task(name).await {
        Err(StoreError::NotFound { .. }) => Err(no_task(name)),
        task => Ok(task?),
    }
}

fn no_task(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no task `{name}`"))
        .help("`acrtask task list` shows those that your token may see")
}

/// Refuses to start a run of a task that is off.
pub(super) fn need_enabled(task: &Task) -> Result<(), ApiError> {
    if task.definition.enabled {
        return Ok(());
    }
    let name = &task.definition.name;
    Err(ApiError::conflict(format!("the task `{name}` is disabled"))
        .help(format!("`acrtask task enable {name}`")))
}

/// Refuses what the limit of the caller's token does not take in. A concurrency group of others: the runs of the task would
/// block and cancel theirs. A pool: its runners have secrets and caches of others. What the task has already stays allowed.
fn need_queue(
    caller: &Caller,
    definition: &TaskDefinition,
    existing: Option<&TaskDefinition>,
) -> Result<(), ApiError> {
    let concurrency = &definition.queue.concurrency;
    let group = concurrency.as_ref().and_then(|it| it.group.as_deref());
    let is_unchanged = existing.is_some_and(|task| task.queue.concurrency == *concurrency);
    if let Some(group) = group
        && !is_unchanged
        && group != definition.name
        && !caller.sees(Some(group))
    {
        let limit = caller.tasks.as_deref().unwrap_or_default();
        return Err(ApiError::forbidden(format!(
            "the token `{}` is for the tasks `{limit}`, and the concurrency group `{group}` is \
             outside of that",
            caller.name
        ))
        .help(format!(
            "leave out `queue.concurrency.group`, name a group like `{limit}`, or use a token \
             without a limit to tasks"
        )));
    }
    let pool = definition.queue.pool.as_deref();
    if let Some(pool) = pool
        && existing.is_none_or(|task| task.queue.pool.as_deref() != Some(pool))
        && !caller.may_use_pool(pool)
    {
        let mut allowed = vec![DEFAULT_POOL];
        allowed.extend(caller.pools.iter().map(String::as_str));
        return Err(ApiError::forbidden(format!(
            "the tasks of the token `{}` may not use the pool `{pool}`, but `{}`",
            caller.name,
            allowed.join("`, `")
        ))
        .help(format!(
            "use a token that allows it: `acrtask token create --tasks PATTERN --pool {pool}`"
        )));
    }
    Ok(())
}

/// Refuses to change a task that a file decides.
pub(super) fn need_own(task: &Task) -> Result<(), ApiError> {
    match &task.source {
        None => Ok(()),
        Some(file) => Err(ApiError::conflict(format!(
            "the task `{}` is kept in the file {file}",
            task.definition.name
        ))
        .help("change it there")),
    }
}

/// A task.
#[utoipa::path(get, path = "/tasks/{name}", tag = "tasks", params(("name" = String, Path, description = "The task's name.")),
    security(("token" = ["read"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Task>, ApiError> {
    Ok(Json(find(&api, &by.caller, &name).await?))
}

/// Sets a task: changes the one with this name (another `name` in the body renames it), or makes it.
#[utoipa::path(put, path = "/tasks/{name}", tag = "tasks", request_body = TaskDefinition,
    params(
        ("name" = String, Path, description = "The task's name."),
        ("If-Match" = Option<Generation>, Header, description = "The generation that is to be changed; with another one it is a conflict."),
    ),
    security(("token" = ["write"])), responses(
    (status = OK, body = Task),
    (status = CREATED, body = Task),
    (status = BAD_REQUEST, body = Problem, description = "All that is wrong with the definition."),
    (status = CONFLICT, body = Problem, description = "It was changed meanwhile, its new name is taken, or a file decides it."),
))]
async fn replace(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Definition(definition): Definition,
) -> Result<Response, ApiError> {
    by.caller.need_task(Some(&name))?;
    by.caller.need_task(Some(&definition.name))?;
    submit::check_task(&definition).into_result()?;
    let expected = extract::header(&headers, "if-match")?
        .map(|text| {
            text.trim_matches('"')
                .parse::<i64>()
                .map_err(|_| ApiError::invalid("`If-Match` must hold the generation of the task"))
        })
        .transpose()?;
    let app = &api.app;
    let existing = match app.store.task(&name).await {
        Ok(task) => task,
        Err(StoreError::NotFound { .. }) if expected.is_none() && name == definition.name => {
            need_queue(&by.caller, &definition, None)?;
            return Ok(created(insert(&api, &by.caller, &definition).await?));
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(no_task(&name));
        }
        Err(error) => return Err(error.into()),
    };
    need_own(&existing)?;
    need_queue(&by.caller, &definition, Some(&existing.definition))?;
    let task = app
        .store
        .update_task(&name, &definition, None, expected, app.clock.now_ms())
        .await?;
    changed(&api).await;
    Ok(Json(task).into_response())
}

/// Deletes a task, with the secrets and logins that it alone may use. Its runs stay.
#[utoipa::path(delete, path = "/tasks/{name}", tag = "tasks", params(("name" = String, Path, description = "The task's name.")),
    security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file decides it."),
))]
async fn delete(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let task = find(&api, &by.caller, &name).await?;
    need_own(&task)?;
    api.app.store.delete_task(&name).await?;
    changed(&api).await;
    tracing::info!(task = name, by = by.caller.name, "a task was deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Lets runs of a task start again.
#[utoipa::path(post, path = "/tasks/{name}/enable", tag = "tasks", params(("name" = String, Path, description = "The task's name.")),
    security(("token" = ["write"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn enable(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Task>, ApiError> {
    set_enabled(&api, &by.caller, &name, true).await
}

/// Lets nothing start a run of a task.
#[utoipa::path(post, path = "/tasks/{name}/disable", tag = "tasks", params(("name" = String, Path, description = "The task's name.")),
    security(("token" = ["write"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn disable(
    by: By<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Task>, ApiError> {
    set_enabled(&api, &by.caller, &name, false).await
}

async fn set_enabled(
    api: &Api,
    caller: &Caller,
    name: &str,
    enabled: bool,
) -> Result<Json<Task>, ApiError> {
    let app = &api.app;
    // Somebody may change the task meanwhile: their change must not be undone.
    for _ in 0..8 {
        let task = find(api, caller, name).await?;
        if task.definition.enabled == enabled {
            return Ok(Json(task));
        }
        let mut definition = task.definition;
        definition.enabled = enabled;
        let updated = app
            .store
            .update_task(
                name,
                &definition,
                None,
                Some(task.generation),
                app.clock.now_ms(),
            )
            .await;
        match updated {
            Err(StoreError::Conflict { .. }) => {}
            updated => {
                let task = updated?;
                changed(api).await;
                return Ok(Json(task));
            }
        }
    }
    Err(
        ApiError::conflict(format!("the task `{name}` is being changed all the time"))
            .help("try again"),
    )
}

/// Starts a run of a task.
///
/// Other files or another task file than the task's own need the scope `write` where the task has secrets or logins of its
/// own, since whoever writes the steps can read them.
#[utoipa::path(post, path = "/tasks/{name}/runs", tag = "tasks", request_body = Option<StartTask>,
    params(
        ("name" = String, Path, description = "The task's name."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run."),
    ),
    security(("token" = ["run"])), responses(
    (status = CREATED, body = Run),
    (status = OK, body = Run, description = "An earlier request with this key asked for it."),
    (status = BAD_REQUEST, body = Problem, description = "All that is wrong with the request."),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The task is disabled, or the key was used for another request."),
))]
async fn start(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    OptionalJson(asked): OptionalJson<StartTask>,
) -> Result<Response, ApiError> {
    let caller = &by.caller;
    let task = find(&api, caller, &name).await?;
    need_enabled(&task)?;
    if (asked.context.is_some() || asked.file.is_some()) && !caller.has(Scope::Write) {
        let own = api.app.store.credentials_for(&[task.id.as_str()]).await?;
        if !own.is_empty() || !task.definition.secrets.is_empty() {
            return Err(ApiError::forbidden(format!(
                "the task `{name}` has secrets, and whoever writes its steps can read them"
            ))
            .help("leave out `context` and `file`, or use a token with the scope `write`"));
        }
    }
    // What the task says may be changed between two tries of a request.
    let said = asked.clone();
    if let Some(files) = &asked.context {
        contexts::check_owner(&api.app, caller, files).await?;
    }
    let starter = (!caller.has(Scope::Write)).then_some(&caller.principal);
    let by = runs::request(caller, &headers)?;
    let draft = submit::from_task(&api.app, &task, asked, starter, by)?;
    let new = runs::complete(&api, draft, None).await?;
    let enqueued = runs::enqueue(&api, new).await?;
    if let Enqueued::Existing(row) = &enqueued {
        let same = row.task_name.as_ref() == Some(&name)
            && row.rerun_of.is_none()
            && is_start(&api, row, &task, said)?;
        if !same {
            return Err(runs::used_key(row));
        }
    }
    Ok(runs::enqueued_response(&enqueued))
}

/// Returns `true` if the run does what the request says. Of the rest, the task as it was then has decided.
fn is_start(api: &Api, run: &RunRow, task: &Task, said: StartTask) -> Result<bool, ApiError> {
    let same_push = run.spec.no_push == (said.no_push || task.definition.no_push);
    let file = said.file.map(|path| Work::File { path });
    Ok(run.spec.set == said.set
        && same_push
        && said.context.is_none_or(|files| run.spec.context == files)
        && file.is_none_or(|file| run.spec.work == file)
        && said
            .priority
            .is_none_or(|priority| run.queue.priority == priority)
        && submit::unseal(&api.app, run)?.values == said.secrets)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
