//! Stored tasks: create, list, show, change and delete them, and start their runs. A `/` in a name
//! is `%2F` in a path.

use acrtask_api::{
    BASE,
    admin::{Problem, Scope},
    forms::{Generation, IdempotencyKey},
    run::{Page, Run, StartTask},
    spec::RunSource,
    task::{Task, TaskDefinition},
    task_keys,
};
use acrtask_model::{ScopeChain, TaskScope};
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
    auth::{self, Authenticated, Caller},
    run_factory::{self, RequestContext},
    validate,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, replace, delete))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(start))
}

/// Filter and page of a list of tasks.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListTasks {
    /// Lists only names with this prefix.
    pub(crate) prefix: Option<String>,
    /// Length of the page: 1 to 200, 50 by default.
    #[param(minimum = 1, maximum = 200)]
    pub(crate) limit: Option<u32>,
    /// `next` of the previous page.
    pub(crate) cursor: Option<String>,
}

/// Lists stored tasks by name.
#[utoipa::path(get, path = "/tasks", tag = "tasks", params(ListTasks), security(("token" = ["read"])), responses(
    (status = OK, body = Page<Task>),
    (status = BAD_REQUEST, body = Problem),
))]
async fn list(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Query(input): Query<ListTasks>,
) -> Result<Json<Page<Task>>, ApiError> {
    load_page(&api, &by.caller, input).await.map(Json)
}

/// Returns a page of the tasks that the caller may see, without their texts and values.
pub(crate) async fn load_page(
    api: &Api,
    caller: &Caller,
    input: ListTasks,
) -> Result<Page<Task>, ApiError> {
    let limit = runs::page_limit(input.limit)?;
    let mut items = api
        .app
        .store
        .tasks(TaskFilter {
            prefix: input.prefix,
            pattern: caller.tasks.clone(),
            after: input.cursor,
            // One entry more than the page shows that there is a next page.
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
        // Keep an empty text, so that the list shows the kind of the task.
        definition.text = definition.text.take().map(|_| String::new());
    }
    Ok(Page { items, next })
}

/// Body with a task definition. A key at the wrong level is refused with its right level.
#[derive(Debug)]
struct Definition(TaskDefinition);

impl<S: Send + Sync> FromRequest<S> for Definition {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let parsed = Json::<TaskDefinition>::from_request(request, state).await;
        parsed
            .map(|Json(definition)| Self(definition))
            .map_err(
                |error| match task_keys::find_key_level(&error.problem().message) {
                    Some(place) => error.help(place),
                    None => error,
                },
            )
    }
}

/// Creates a task.
#[utoipa::path(post, path = "/tasks", tag = "tasks", request_body = TaskDefinition, security(("token" = ["write"])), responses(
    (status = CREATED, body = Task),
    (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the definition."),
    (status = CONFLICT, body = Problem, description = "The name is in use."),
))]
async fn create(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Definition(definition): Definition,
) -> Result<Response, ApiError> {
    by.caller.require_task(Some(&definition.name))?;
    require_queue(&by.caller, &definition, None)?;
    let definition = validate::validate_task(definition).await?;
    let task = insert(&api, &by.caller, &definition).await?;
    Ok(created_response(task))
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
        .await
        .map_err(|error| {
            let exists = matches!(error, StoreError::Conflict { .. });
            let error = ApiError::from(error);
            if exists {
                error.help(format!(
                    "change it: `acrtask task update {}`",
                    definition.name
                ))
            } else {
                error
            }
        })?;
    tracing::info!(task = definition.name, by = caller.name, "created a task");
    notify_changed(api).await;
    Ok(task)
}

/// Wakes the background tasks of all servers that depend on task definitions.
pub(super) async fn notify_changed(api: &Api) {
    api.app.timers.notify_one();
    api.app.cascades.mark_facts_changed();
    runs::send_hint(api, Hint::Tasks).await;
}

fn created_response(task: Task) -> Response {
    let name = path_segment(&task.definition.name);
    let location = [(header::LOCATION, format!("{BASE}/tasks/{name}"))];
    (StatusCode::CREATED, location, Json(task)).into_response()
}

fn path_segment(name: &str) -> String {
    name.replace('/', "%2F")
}

/// Returns a task that the caller may see. Hidden tasks are reported as missing.
pub(crate) async fn find(api: &Api, caller: &Caller, name: &str) -> Result<Task, ApiError> {
    if !caller.may_see(Some(name)) {
        return Err(task_not_found(name));
    }
    match api.app.store.task(name).await {
        Err(StoreError::NotFound { .. }) => Err(task_not_found(name)),
        task => Ok(task?),
    }
}

fn task_not_found(name: &str) -> ApiError {
    ApiError::not_found(format!("the task `{name}` does not exist"))
        .help("list the tasks that your token may see with `acrtask task list`")
}

/// Refuses to start a run of a disabled task.
pub(super) fn require_enabled(task: &Task) -> Result<(), ApiError> {
    if task.definition.enabled {
        return Ok(());
    }
    let name = &task.definition.name;
    Err(ApiError::conflict(format!("the task `{name}` is disabled"))
        .help(format!("enable it: `acrtask task enable {name}`")))
}

/// Refuses a concurrency group or pool outside the caller's task limit. In a group of others, the
/// runs of the task would block and cancel theirs. The runners of a pool may have secrets and
/// caches of others. Unchanged settings of the existing task are allowed.
fn require_queue(
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
        && !caller.may_see(Some(group))
    {
        let limit = caller.tasks.as_deref().unwrap_or_default();
        return Err(ApiError::forbidden(format!(
            "the token `{}` is limited to the tasks `{limit}`, which exclude the concurrency group \
             `{group}`",
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
            "the tasks of the token `{}` may not use the pool `{pool}`, only `{}`",
            caller.name,
            allowed.join("`, `")
        ))
        .help(format!(
            "use a token with this pool: `acrtask token create --tasks PATTERN --pool {pool}`"
        )));
    }
    Ok(())
}

/// Refuses to change a task that a task file defines.
pub(super) fn require_no_file(task: &Task) -> Result<(), ApiError> {
    match &task.source {
        None => Ok(()),
        Some(file) => Err(ApiError::conflict(format!(
            "the task `{}` is defined in the file {file}",
            task.definition.name
        ))
        .help("change the file")),
    }
}

/// Returns a task.
#[utoipa::path(get, path = "/tasks/{name}", tag = "tasks", params(("name" = String, Path, description = "Name of the task.")),
    security(("token" = ["read"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Read>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Task>, ApiError> {
    Ok(Json(find(&api, &by.caller, &name).await?))
}

/// Replaces the task with this name, or creates it. Another `name` in the body renames the task.
#[utoipa::path(put, path = "/tasks/{name}", tag = "tasks", request_body = TaskDefinition,
    params(
        ("name" = String, Path, description = "Name of the task."),
        ("If-Match" = Option<Generation>, Header, description = "Generation of the task to replace. If the task has another generation, the request fails with 409."),
    ),
    security(("token" = ["write"])), responses(
    (status = OK, body = Task),
    (status = CREATED, body = Task),
    (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the definition."),
    (status = CONFLICT, body = Problem, description = "The task has another generation, its new name is in use, or a file defines it."),
))]
async fn replace(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Definition(definition): Definition,
) -> Result<Response, ApiError> {
    // Refuse hidden tasks before any other part of the request.
    by.caller.require_task(Some(&name))?;
    let expected = extract::header(&headers, "if-match")?
        .map(|text| {
            text.trim_matches('"').parse::<i64>().map_err(|_| {
                ApiError::unprocessable("`If-Match` must be the generation of the task")
            })
        })
        .transpose()?;
    Ok(
        match put_task(&api, &by.caller, &name, &definition, expected).await? {
            PutOutcome::Created(task) => created_response(task),
            PutOutcome::Replaced(task) => Json(task).into_response(),
        },
    )
}

/// Outcome of [`put_task`].
#[derive(Debug)]
pub(crate) enum PutOutcome {
    /// The task is new.
    Created(Task),
    /// The task existed.
    Replaced(Task),
}

/// Replaces the task `name`, or creates it. `expected` is the generation of the task to replace.
pub(crate) async fn put_task(
    api: &Api,
    caller: &Caller,
    name: &str,
    definition: &TaskDefinition,
    expected: Option<i64>,
) -> Result<PutOutcome, ApiError> {
    caller.require_task(Some(name))?;
    caller.require_task(Some(&definition.name))?;
    let definition = &validate::validate_task(definition.clone()).await?;
    let app = &api.app;
    let existing = match app.store.task(name).await {
        Ok(task) => task,
        Err(StoreError::NotFound { .. }) if expected.is_none() && name == definition.name => {
            require_queue(caller, definition, None)?;
            return insert(api, caller, definition)
                .await
                .map(PutOutcome::Created);
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(task_not_found(name));
        }
        Err(error) => return Err(error.into()),
    };
    require_no_file(&existing)?;
    require_queue(caller, definition, Some(&existing.definition))?;
    let task = app
        .store
        .update_task(name, definition, None, expected, app.clock.now_ms())
        .await?;
    tracing::info!(
        task = name,
        new_name = Some(&definition.name).filter(|new| **new != name),
        generation = task.generation,
        by = caller.name,
        "changed a task"
    );
    notify_changed(api).await;
    Ok(PutOutcome::Replaced(task))
}

/// Deletes a task with its secrets and logins. Its runs are kept.
#[utoipa::path(delete, path = "/tasks/{name}", tag = "tasks", params(("name" = String, Path, description = "Name of the task.")),
    security(("token" = ["write"])), responses(
    (status = NO_CONTENT),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "A file defines the task."),
))]
async fn delete(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    delete_task(&api, &by.caller, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a task that the caller may see.
pub(crate) async fn delete_task(api: &Api, caller: &Caller, name: &str) -> Result<(), ApiError> {
    let task = find(api, caller, name).await?;
    require_no_file(&task)?;
    api.app.store.delete_task(name).await?;
    notify_changed(api).await;
    tracing::info!(task = name, by = caller.name, "deleted a task");
    Ok(())
}

/// Enables a task: its triggers and requests start runs.
#[utoipa::path(post, path = "/tasks/{name}/enable", tag = "tasks", params(("name" = String, Path, description = "Name of the task.")),
    security(("token" = ["write"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn enable(
    by: Authenticated<auth::Write>,
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Task>, ApiError> {
    set_enabled(&api, &by.caller, &name, true).await
}

/// Disables a task: no trigger or request starts a run of it.
#[utoipa::path(post, path = "/tasks/{name}/disable", tag = "tasks", params(("name" = String, Path, description = "Name of the task.")),
    security(("token" = ["write"])), responses((status = OK, body = Task), (status = NOT_FOUND, body = Problem)))]
async fn disable(
    by: Authenticated<auth::Write>,
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
    // Retry after concurrent changes, so that they are not lost.
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
                tracing::info!(task = name, enabled, by = caller.name, "changed a task");
                notify_changed(api).await;
                return Ok(Json(task));
            }
        }
    }
    Err(
        ApiError::conflict(format!("the task `{name}` is changed by other requests"))
            .help("send the request again"),
    )
}

/// Starts a run of a task.
///
/// If the task has secrets or logins, another context or task file needs the scope `write`, because
/// the author of the steps can read them.
#[utoipa::path(post, path = "/tasks/{name}/runs", tag = "tasks", request_body = Option<StartTask>,
    params(
        ("name" = String, Path, description = "Name of the task."),
        ("Idempotency-Key" = Option<IdempotencyKey>, Header, description = "Any text, new for each new run."),
    ),
    security(("token" = ["run"])), responses(
    (status = CREATED, body = Run),
    (status = OK, body = Run, description = "The run of an earlier request with this key."),
    (status = BAD_REQUEST, body = Problem, description = "The message has all problems of the request."),
    (status = NOT_FOUND, body = Problem),
    (status = CONFLICT, body = Problem, description = "The task is disabled, or the key was used for another request."),
))]
async fn start(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    OptionalJson(input): OptionalJson<StartTask>,
) -> Result<Response, ApiError> {
    let context = runs::request_context(&by.caller, &headers)?;
    let enqueued = start_task(&api, &by.caller, &name, input, context).await?;
    Ok(runs::enqueued_response(&enqueued))
}

/// Starts a run of a task, or finds the run of an earlier equal request.
pub(crate) async fn start_task(
    api: &Api,
    caller: &Caller,
    name: &str,
    input: StartTask,
    context: RequestContext,
) -> Result<Enqueued, ApiError> {
    let task = find(api, caller, name).await?;
    require_enabled(&task)?;
    if (input.context.is_some() || input.file.is_some()) && !caller.has_scope(Scope::Write) {
        let scopes = ScopeChain::of_task(&task.id, &task.definition.name);
        let mut logins = api.app.store.credentials_for(&scopes).await?.into_iter();
        let has_own = logins.any(|row| TaskScope::parse(&row.scope) != TaskScope::All);
        if has_own || !task.definition.secrets.is_empty() {
            return Err(ApiError::forbidden(format!(
                "the task `{name}` has secrets, which the author of its steps can read"
            ))
            .help("leave out `context` and `file`, or use a token with the scope `write`"));
        }
    }
    // Compare the request and not the run, because the task may change between two requests.
    let request = input.clone();
    if let Some(files) = &input.context {
        contexts::check_owner(&api.app, caller, files).await?;
    }
    let starter = (!caller.has_scope(Scope::Write)).then_some(&caller.principal);
    let draft = run_factory::create_from_task(&api.app, &task, input, starter, context)?;
    let new = runs::finalize(api, draft, None).await?;
    let enqueued = runs::enqueue(api, new).await?;
    if let Enqueued::Existing(row) = &enqueued {
        let is_same = row.task_name.as_deref() == Some(name)
            && row.rerun_of.is_none()
            && is_start(api, row, &task, request)?;
        if !is_same {
            return Err(runs::key_conflict(row));
        }
    }
    Ok(enqueued)
}

/// Returns `true` if the run does what the request asks for. The task of that time decided the
/// rest.
fn is_start(api: &Api, run: &RunRow, task: &Task, request: StartTask) -> Result<bool, ApiError> {
    let same_push = run.spec.no_push == (request.no_push || task.definition.no_push);
    let file = request.file.map(|path| RunSource::File { path });
    Ok(run.spec.set == request.set
        && same_push
        && request
            .context
            .is_none_or(|files| run.spec.context == files)
        && file.is_none_or(|file| run.spec.source == file)
        && request
            .priority
            .is_none_or(|priority| run.queue.priority == priority)
        && run_factory::unseal_secrets(&api.app, run)?.values == request.secrets)
}

#[cfg(test)]
#[path = "tasks_tests.rs"]
mod tests;
