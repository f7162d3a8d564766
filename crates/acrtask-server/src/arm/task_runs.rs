//! Task runs: requests for runs that have a name.
//!
//! A repeated request with the same content returns the same run, unless it has another
//! `forceUpdateTag`.

use acrtask_model::RunId;
use acrtask_store::{ArmDocument, ArmKind, StoreError};
use serde_json::{Value, json};

use super::{ArmError, RegistryRequest, runs};
use crate::api::ApiError;

/// Most task runs of a list.
const MAX_TASK_RUNS: u32 = 200;
/// Longest name of a task run, in characters.
const MAX_NAME: usize = 50;

fn missing(request: &RegistryRequest<'_>, name: &str) -> ArmError {
    ApiError::not_found(format!(
        "the task run `{name}` does not exist in the registry `{}`",
        request.registry.name
    ))
    .into()
}

/// Returns the document of a task run. `None` if the caller may not see its run.
async fn document_of(
    request: &RegistryRequest<'_>,
    stored: &ArmDocument,
) -> Result<Option<Value>, ArmError> {
    let registry = &request.registry.name;
    let run = stored.run_id.as_ref().and_then(|id| RunId::new(id).ok());
    let Some(run) = run else { return Ok(None) };
    let run = match request.arm.app().store.run(&run).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        run => run?,
    };
    if !request.caller.may_see(run.task_name.as_deref()) {
        return Ok(None);
    }
    Ok(Some(json!({
        "id": format!("{}/taskRuns/{}", acrtask_arm::registry_id(registry), stored.name),
        "name": stored.name,
        "type": "Microsoft.ContainerRegistry/registries/taskRuns",
        "location": "local",
        "properties": {
            "provisioningState": "Succeeded",
            "runRequest": stored.body["runRequest"],
            "forceUpdateTag": stored.body["forceUpdateTag"],
            "runResult": runs::show_row(request, &run).await?,
        },
    })))
}

async fn find(request: &RegistryRequest<'_>, name: &str) -> Result<Option<ArmDocument>, ArmError> {
    let store = &request.arm.app().store;
    let registry = &request.registry.name;
    Ok(store.arm_document(ArmKind::TaskRun, registry, name).await?)
}

/// Lists the task runs whose runs the caller may see.
pub(super) async fn list(request: &RegistryRequest<'_>) -> Result<Value, ArmError> {
    let store = &request.arm.app().store;
    let registry = &request.registry.name;
    let stored = store
        .arm_documents(ArmKind::TaskRun, registry, None, MAX_TASK_RUNS)
        .await?;
    let mut documents = Vec::new();
    for stored in &stored {
        documents.extend(document_of(request, stored).await?);
    }
    Ok(acrtask_arm::list_document(documents))
}

/// Shows a task run.
pub(super) async fn show(request: &RegistryRequest<'_>, name: &str) -> Result<Value, ArmError> {
    let stored = find(request, name).await?;
    let stored = stored.ok_or_else(|| missing(request, name))?;
    let document = document_of(request, &stored).await?;
    document.ok_or_else(|| missing(request, name))
}

/// Creates a task run and its run.
pub(super) async fn put(request: &RegistryRequest<'_>, name: &str) -> Result<Value, ArmError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(good) {
        return Err(ApiError::invalid(format!(
            "`{name}` is not a name of 1 to {MAX_NAME} letters, digits, `-` and `_`"
        ))
        .into());
    }
    let body: Value = request.json()?;
    let properties = &body["properties"];
    let wanted = json!({
        "runRequest": without_secrets(&properties["runRequest"]),
        "forceUpdateTag": properties["forceUpdateTag"],
    });
    if let Some(stored) = find(request, name).await? {
        let document = document_of(request, &stored).await?;
        let document = document.ok_or_else(|| {
            ApiError::conflict(format!("the task run `{name}` exists already"))
                .help("choose another name")
        })?;
        if stored.body == wanted {
            return Ok(document);
        }
    }
    let run = runs::create(request, &properties["runRequest"], name).await?;
    let app = request.arm.app();
    let stored = ArmDocument {
        name: name.to_owned(),
        task_id: None,
        run_id: Some(run.id.to_string()),
        generation: 0,
        body: wanted,
        created_at: app.clock.now_ms(),
    };
    app.store
        .put_arm_document(ArmKind::TaskRun, &request.registry.name, &stored)
        .await?;
    let document = document_of(request, &stored).await?;
    document.ok_or_else(|| missing(request, name))
}

/// Returns a run request without values of secrets and without logins.
fn without_secrets(run_request: &Value) -> Value {
    let mut kept = run_request.clone();
    if let Some(members) = kept.as_object_mut() {
        members.remove("credentials");
    }
    let lists = [
        "/arguments",
        "/values",
        "/overrideTaskStepProperties/arguments",
        "/overrideTaskStepProperties/values",
    ];
    for list in lists {
        let list = kept.pointer_mut(list).and_then(Value::as_array_mut);
        for argument in list.into_iter().flatten() {
            if argument["isSecret"] == true
                && let Some(argument) = argument.as_object_mut()
            {
                argument.remove("value");
            }
        }
    }
    kept
}

/// Deletes a task run. Its run stays.
pub(super) async fn delete(request: &RegistryRequest<'_>, name: &str) -> Result<(), ArmError> {
    show(request, name).await?;
    let store = &request.arm.app().store;
    let registry = &request.registry.name;
    store
        .delete_arm_document(ArmKind::TaskRun, registry, name)
        .await?;
    Ok(())
}
