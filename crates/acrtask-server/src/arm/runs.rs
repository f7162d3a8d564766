//! Runs of a registry: create, list, show, change and cancel them, and link their logs.

use std::collections::{HashMap, HashSet};

use acrtask_api::task::QueueOptions;
use acrtask_arm::{
    RunDetails, RunQuery, RunRequest, parse_filter, parse_run_request, run_document,
};
use acrtask_store::{ArmDocument, ArmKind, DEFAULT_POOL, Enqueued, RunFilter, RunRow};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    ArmError, RegistryRequest,
    links::{LinkKind, create_link},
};
use crate::{
    api::{ApiError, extract, runs, tasks},
    auth::TaskLimit,
};

/// Default and most runs of a list.
const MAX_RUNS: usize = 200;
/// Most runs that a filter of images reads.
const MAX_SCANNED: usize = 2000;
/// Longest `x-ms-client-request-id`, in characters.
const MAX_REQUEST_ID: usize = 128;

/// Creates the run of a request, or returns that of an earlier equal request.
pub(super) async fn schedule(request: &RegistryRequest<'_>) -> Result<Value, ArmError> {
    let row = create(request, &request.json()?, "").await?;
    show_row(request, &row).await
}

/// Creates the run for the body of a request. `salt` separates equal bodies of other operations.
pub(super) async fn create(
    request: &RegistryRequest<'_>,
    body: &Value,
    salt: &str,
) -> Result<RunRow, ArmError> {
    let api = request.api();
    let parsed = parse_run_request(body, &request.registry.server)?;
    let key = idempotency_key(request, salt)?;
    let context = runs::keyed_context(request.caller, &request.headers, key.as_deref());
    let enqueued = match parsed {
        RunRequest::Create(run) => {
            require_pool(request, &run.queue).await?;
            runs::create_run(api, request.caller, *run, context).await?
        }
        RunRequest::Start { task, start } => {
            let name = super::tasks::find_name(request, &task).await?;
            tasks::start_task(api, request.caller, &name, *start, context).await?
        }
    };
    Ok(match enqueued {
        Enqueued::New(row) | Enqueued::Existing(row) => row,
    })
}

/// Returns the key of a request: the client repeats a request with the same id and body.
fn idempotency_key(request: &RegistryRequest<'_>, salt: &str) -> Result<Option<String>, ArmError> {
    let Some(id) = extract::header(&request.headers, "x-ms-client-request-id")? else {
        return Ok(None);
    };
    if id.len() > MAX_REQUEST_ID {
        return Err(ApiError::invalid(format!(
            "`x-ms-client-request-id` is longer than {MAX_REQUEST_ID} characters"
        ))
        .into());
    }
    let hash = Sha256::new()
        .chain_update(request.registry.name.to_ascii_lowercase())
        .chain_update([0])
        .chain_update(salt)
        .chain_update([0])
        .chain_update(&request.body)
        .finalize();
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(format!("arm {id} {hash}")))
}

/// Refuses a pool without runners, whose runs would wait forever.
pub(super) async fn require_pool(
    request: &RegistryRequest<'_>,
    queue: &QueueOptions,
) -> Result<(), ArmError> {
    let Some(pool) = queue.pool.as_deref().filter(|pool| *pool != DEFAULT_POOL) else {
        return Ok(());
    };
    let runners = request.arm.app().store.runners().await?;
    if runners.iter().any(|runner| runner.pool == pool) {
        return Ok(());
    }
    Err(
        ApiError::invalid(format!("the agent pool `{pool}` has no runner"))
            .help("leave it out, or start a runner with `--pool`")
            .into(),
    )
}

/// Returns `true` if a run belongs to the registry.
fn is_of_registry(request: &RegistryRequest<'_>, row: &RunRow) -> bool {
    row.spec.variables.registry == request.registry.server
}

/// Returns a run of the registry that the caller may see.
async fn find(request: &RegistryRequest<'_>, id: &str) -> Result<RunRow, ArmError> {
    let row = runs::find(request.api(), request.caller, id).await?;
    if is_of_registry(request, &row) {
        return Ok(row);
    }
    Err(ApiError::not_found(format!(
        "the registry `{}` has no run {id}",
        request.registry.name
    ))
    .into())
}

/// Returns the document of a run.
pub(super) async fn show_row(
    request: &RegistryRequest<'_>,
    row: &RunRow,
) -> Result<Value, ArmError> {
    let documents = show_rows(request, std::slice::from_ref(row)).await?;
    Ok(documents.into_iter().next().unwrap_or_default())
}

async fn show_rows(request: &RegistryRequest<'_>, rows: &[RunRow]) -> Result<Vec<Value>, ArmError> {
    let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let registry = &request.registry.name;
    let store = &request.arm.app().store;
    let flags = store.arm_documents(ArmKind::Run, "", Some(ids), 0).await?;
    let archived: HashMap<&str, bool> = flags
        .iter()
        .map(|flags| (flags.name.as_str(), flags.body["isArchiveEnabled"] == true))
        .collect();
    let mut documents = Vec::with_capacity(rows.len());
    for row in rows {
        let run = runs::add_origin(request.api(), row).await?;
        let details = RunDetails {
            archived: archived.get(row.id.as_str()).copied().unwrap_or_default(),
        };
        documents.push(run_document(&run, registry, details));
    }
    Ok(documents)
}

/// Lists runs, the newest first.
pub(super) async fn list(request: &RegistryRequest<'_>) -> Result<Value, ArmError> {
    let query = parse_filter(request.parameter("$filter").unwrap_or_default())?;
    let most = match request.parameter("$top") {
        None => MAX_RUNS,
        Some(text) => match text.parse::<usize>() {
            Ok(most @ 1..) => most.min(MAX_RUNS),
            _ => return Err(ApiError::invalid("`$top` is not a number of runs").into()),
        },
    };
    let rows = load(request, query, most).await?;
    let documents = show_rows(request, &rows).await?;
    Ok(acrtask_arm::list_document(documents))
}

/// Reads pages of runs until `most` of them match.
async fn load(
    request: &RegistryRequest<'_>,
    query: RunQuery,
    most: usize,
) -> Result<Vec<RunRow>, ArmError> {
    if let Some(id) = &query.run {
        return Ok(match find(request, id).await {
            Ok(row) => vec![row],
            Err(_) => Vec::new(),
        });
    }
    let wanted = match query.task {
        Some(task) => TaskLimit::Exact(task),
        None => TaskLimit::All,
    };
    let Some(limit) = runs::intersect(&request.caller.limit, wanted) else {
        return Ok(Vec::new());
    };
    let (task, task_prefix) = limit.into_names();
    let mut filter = RunFilter {
        states: query.states,
        task,
        task_prefix,
        limit: u32::try_from(most).unwrap_or(u32::MAX),
        ..RunFilter::default()
    };
    let pushed = |row: &RunRow| match &query.digest {
        None => true,
        Some(digest) => row
            .result
            .iter()
            .flat_map(|result| &result.images)
            .any(|image| image.digest == *digest),
    };
    let (mut found, mut scanned, mut seen) = (Vec::new(), 0, HashSet::new());
    loop {
        let (rows, next) = request.arm.app().store.runs(filter.clone()).await?;
        scanned += rows.len();
        let matching = rows
            .into_iter()
            .filter(|row| is_of_registry(request, row) && pushed(row));
        found.extend(matching.filter(|row| seen.insert(row.id.clone())));
        found.truncate(most);
        match next {
            Some(next) if found.len() < most && scanned < MAX_SCANNED => {
                filter.before = Some(next);
            }
            _ => return Ok(found),
        }
    }
}

/// Shows a run.
pub(super) async fn show(request: &RegistryRequest<'_>, id: &str) -> Result<Value, ArmError> {
    let row = find(request, id).await?;
    show_row(request, &row).await
}

/// Changes the archive flag of a run.
pub(super) async fn update(request: &RegistryRequest<'_>, id: &str) -> Result<Value, ArmError> {
    let row = find(request, id).await?;
    let body: Value = request.json()?;
    // Clients send the flag at both levels.
    let flag = body
        .get("isArchiveEnabled")
        .or_else(|| body["properties"].get("isArchiveEnabled"));
    if let Some(flag) = flag.and_then(Value::as_bool) {
        let app = request.arm.app();
        let document = ArmDocument {
            name: row.id.to_string(),
            task_id: None,
            run_id: Some(row.id.to_string()),
            generation: 0,
            body: json!({"isArchiveEnabled": flag}),
            created_at: app.clock.now_ms(),
        };
        app.store
            .put_arm_document(ArmKind::Run, "", &document)
            .await?;
    }
    show_row(request, &row).await
}

/// Cancels a run.
pub(super) async fn cancel(request: &RegistryRequest<'_>, id: &str) -> Result<(), ArmError> {
    find(request, id).await?;
    runs::request_cancel(request.api(), request.caller, id, "").await?;
    Ok(())
}

/// Returns the link to the log of a run.
pub(super) async fn link_log(request: &RegistryRequest<'_>, id: &str) -> Result<Value, ArmError> {
    let row = find(request, id).await?;
    let link = create_link(
        request.arm.app(),
        &request.host,
        LinkKind::Log,
        row.id.as_str(),
    );
    Ok(json!({ "logLink": link }))
}
