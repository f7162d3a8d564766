//! Tasks of a registry: show, put, change and delete them.
//!
//! A task of acrtask belongs to the registry of its definition. The last request of an ARM client
//! is stored beside it, because ARM has members that acrtask has not. If the task is changed in
//! another way, its document is made from its definition.

use std::collections::HashMap;

use acrtask_api::task::{Task, TaskDefinition};
use acrtask_arm::{Login, PutTask, TaskDocument, merge_patch, parse_task, task_document};
use acrtask_registry::credentials::canonical_host;
use acrtask_store::{ArmDocument, ArmKind, StoreError, TaskFilter};
use serde_json::Value;

use super::{ArmError, RegistryRequest, runs::require_pool};
use crate::{
    api::{ApiError, credentials, secrets, tasks},
    validate::{self, Problems},
};

/// Most tasks of a list.
const MAX_TASKS: usize = 1000;
/// Tasks that one query reads.
const PAGE: u32 = 200;

fn missing(request: &RegistryRequest<'_>, name: &str) -> ArmError {
    ApiError::not_found(format!(
        "the task `{name}` does not exist in the registry `{}`",
        request.registry.name
    ))
    .into()
}

/// Returns a task of the registry that the caller may see. Names compare without regard to case if
/// an ARM client created the task.
async fn find(request: &RegistryRequest<'_>, name: &str) -> Result<Task, ArmError> {
    let registry = request.registry;
    let exact = tasks::find(request.api(), request.caller, name).await;
    let task = match exact {
        Err(error) if error.is_not_found() => {
            let store = &request.arm.app().store;
            let stored = store
                .arm_document(ArmKind::Task, &registry.name, name)
                .await?;
            let stored = stored.ok_or_else(|| missing(request, name))?;
            tasks::find(request.api(), request.caller, &stored.name)
                .await
                .map_err(|_| missing(request, name))?
        }
        found => found?,
    };
    if is_of_registry(request, &task.definition) {
        Ok(task)
    } else {
        Err(missing(request, name))
    }
}

fn is_of_registry(request: &RegistryRequest<'_>, definition: &TaskDefinition) -> bool {
    definition.registry.as_deref() == Some(request.registry.server.as_str())
}

/// Returns the name of a task of the registry that the caller may see.
pub(super) async fn find_name(
    request: &RegistryRequest<'_>,
    name: &str,
) -> Result<String, ArmError> {
    find(request, name).await.map(|task| task.definition.name)
}

/// Returns the documents of tasks.
async fn show_tasks(
    request: &RegistryRequest<'_>,
    found: &[Task],
    with_markers: bool,
) -> Result<Vec<Value>, ArmError> {
    let store = &request.arm.app().store;
    let registry = request.registry.name.as_str();
    let names = found.iter().map(|task| task.definition.name.clone());
    let stored = store
        .arm_documents(ArmKind::Task, registry, Some(names.collect()), 0)
        .await?;
    let stored: HashMap<&str, &ArmDocument> = stored
        .iter()
        .filter_map(|document| Some((document.task_id.as_deref()?, document)))
        .collect();
    let scope = match found {
        [task] => Some(task.id.as_str()),
        _ => None,
    };
    let mut logins: HashMap<String, Vec<(String, String)>> = HashMap::new();
    for row in store.credentials(scope).await? {
        let of_task = logins.entry(row.scope).or_default();
        of_task.push((row.host, row.username));
    }
    let documents = found.iter().map(|task| {
        let stored = stored.get(task.id.as_str());
        let document = TaskDocument {
            task,
            registry,
            stored: stored.map(|stored| &stored.body),
            is_current: stored.is_some_and(|stored| stored.generation == task.generation),
            logins: logins.get(&task.id).map_or(&[], Vec::as_slice),
        };
        task_document(document, with_markers)
    });
    Ok(documents.collect())
}

async fn show_task(
    request: &RegistryRequest<'_>,
    task: &Task,
    with_markers: bool,
) -> Result<Value, ArmError> {
    let documents = show_tasks(request, std::slice::from_ref(task), with_markers).await?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

/// Lists the tasks of the registry, the oldest first. Names with `/` or `.` are not ARM names and are left out.
pub(super) async fn list(request: &RegistryRequest<'_>) -> Result<Value, ArmError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let filter = TaskFilter {
            pattern: request.caller.tasks.clone(),
            after: after.take(),
            limit: PAGE,
            ..TaskFilter::default()
        };
        let page = request.arm.app().store.tasks(filter).await?;
        let is_last = page.len() < PAGE as usize;
        after = page.last().map(|task| task.definition.name.clone());
        found.extend(page.into_iter().filter(|task| {
            is_of_registry(request, &task.definition) && !task.definition.name.contains(['/', '.'])
        }));
        if is_last || found.len() >= MAX_TASKS {
            break;
        }
    }
    found.truncate(MAX_TASKS);
    found.sort_by_key(|task| task.created_at);
    let documents = show_tasks(request, &found, false).await?;
    Ok(acrtask_arm::list_document(documents))
}

/// Shows a task, with markers in the place of its secrets if `with_markers` is set.
pub(super) async fn show(
    request: &RegistryRequest<'_>,
    name: &str,
    with_markers: bool,
) -> Result<Value, ArmError> {
    let task = find(request, name).await?;
    show_task(request, &task, with_markers).await
}

/// Creates or replaces a task.
pub(super) async fn put(request: &RegistryRequest<'_>, name: &str) -> Result<Value, ArmError> {
    let body: Value = request.json()?;
    request.caller.require_task(Some(name))?;
    let existing = match find(request, name).await {
        Ok(task) => Some(task),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    store(request, name, &body, existing).await
}

/// Changes the members of a task that the request contains.
pub(super) async fn update(request: &RegistryRequest<'_>, name: &str) -> Result<Value, ArmError> {
    let patch: Value = request.json()?;
    let task = find(request, name).await?;
    let details = show_task(request, &task, true).await?;
    let merged = merge_patch(&details, &patch);
    store(request, name, &merged, Some(task)).await
}

/// Deletes a task with its document, its secrets and its logins.
pub(super) async fn delete(request: &RegistryRequest<'_>, name: &str) -> Result<(), ArmError> {
    let task = find(request, name).await?;
    tasks::delete_task(request.api(), request.caller, &task.definition.name).await?;
    Ok(())
}

async fn store(
    request: &RegistryRequest<'_>,
    name: &str,
    body: &Value,
    existing: Option<Task>,
) -> Result<Value, ArmError> {
    let api = request.api();
    let app = request.arm.app();
    let old = existing.as_ref().map(|task| &task.definition);
    let name = old.map_or(name, |definition| definition.name.as_str());
    let put = parse_task(name, body, &request.registry.server, old)?;
    require_pool(request, &put.definition.queue).await?;
    check_values(&put)?;
    check_unchanged(request, &put, existing.as_ref()).await?;
    if existing.is_none() && app.store.task(name).await.is_ok() {
        let message = format!("the task `{name}` exists for another registry");
        return Err(ApiError::conflict(message)
            .help("choose another name, or set its registry: `acrtask task update --registry`")
            .into());
    }
    let outcome = tasks::put_task(api, request.caller, name, &put.definition, None).await?;
    let (tasks::PutOutcome::Created(task) | tasks::PutOutcome::Replaced(task)) = outcome;
    store_secrets(request, &task, &put, old).await?;
    let document = ArmDocument {
        name: name.to_owned(),
        task_id: Some(task.id.clone()),
        run_id: None,
        generation: task.generation,
        body: put.document,
        created_at: app.clock.now_ms(),
    };
    app.store
        .put_arm_document(ArmKind::Task, &request.registry.name, &document)
        .await?;
    show_task(request, &task, false).await
}

/// Checks the values of secrets and logins before anything is stored.
fn check_values(put: &PutTask) -> Result<(), ArmError> {
    let mut problems = Problems::default();
    for secret in &put.secrets {
        if let Err(reason) = validate::check_secret_name(&secret.name) {
            problems.add(reason);
        }
        if let Some(value) = &secret.value {
            validate::check_value(&secret.name, &value.0, &mut problems);
        }
    }
    for login in &put.logins {
        if let Err(reason) = validate::check_host_name(&login.host) {
            problems.add(reason);
        }
        validate::check_username("userName", &login.username, &mut problems);
        if let Some(password) = &login.password {
            validate::check_value("password", &password.0, &mut problems);
        }
    }
    Ok(problems.into_result().map_err(ApiError::from)?)
}

/// Refuses a marker without a stored value.
async fn check_unchanged(
    request: &RegistryRequest<'_>,
    put: &PutTask,
    existing: Option<&Task>,
) -> Result<(), ArmError> {
    let store = &request.arm.app().store;
    let (mut names, mut hosts) = (Vec::new(), Vec::new());
    if let Some(task) = existing {
        let rows = store.secrets(Some(task.id.as_str())).await?;
        names = rows.into_iter().map(|row| row.name).collect();
        let rows = store.credentials(Some(task.id.as_str())).await?;
        hosts = rows.into_iter().map(|row| row.host).collect();
    }
    let unknown = put
        .secrets
        .iter()
        .filter(|secret| secret.value.is_none())
        .map(|secret| &secret.name)
        .find(|name| !names.contains(name));
    if let Some(name) = unknown {
        return Err(
            ApiError::invalid(format!("the secret `{name}` has no value: send one")).into(),
        );
    }
    let unknown = put
        .logins
        .iter()
        .filter(|login| login.password.is_none())
        .find(|login| !hosts.contains(&canonical_host(&login.host)));
    match unknown {
        Some(login) => Err(ApiError::invalid(format!(
            "the login for `{}` has no password: send one",
            login.host
        ))
        .into()),
        None => Ok(()),
    }
}

/// Stores new secrets and logins of a task, and removes those that it no longer names.
async fn store_secrets(
    request: &RegistryRequest<'_>,
    task: &Task,
    put: &PutTask,
    old: Option<&TaskDefinition>,
) -> Result<(), ArmError> {
    let app = request.arm.app();
    let scope = task.id.as_str();
    let limit = request.caller.tasks.as_deref();
    for secret in &put.secrets {
        if let Some(value) = &secret.value {
            secrets::store_secret(app, scope, &secret.name, value, limit).await?;
        }
    }
    let dropped = old
        .into_iter()
        .flat_map(|old| old.secrets.values())
        .filter(|name| !task.definition.secrets.values().any(|kept| kept == *name));
    for name in dropped {
        ignore_missing(app.store.delete_secret(scope, name).await)?;
    }
    for login in &put.logins {
        let host = canonical_host(&login.host);
        if let Some(password) = &login.password {
            let login = (login.username.as_str(), password.0.as_str());
            credentials::store_login(app, scope, &host, login, limit).await?;
        }
    }
    for row in app.store.credentials(Some(scope)).await? {
        let is_named = |login: &Login| canonical_host(&login.host) == row.host;
        if !put.logins.iter().any(is_named) {
            ignore_missing(app.store.delete_credential(scope, &row.host).await)?;
        }
    }
    Ok(())
}

fn ignore_missing(removed: Result<(), StoreError>) -> Result<(), StoreError> {
    match removed {
        Err(StoreError::NotFound { .. }) => Ok(()),
        removed => removed,
    }
}
