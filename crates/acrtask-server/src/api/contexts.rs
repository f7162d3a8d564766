//! Uploads of files: in parts, each streamed to the place for blobs, and checked as a whole at the end.
//!
//! Invariants: a part counts once it is stored whole; what was stored for a part that does not count is removed; a
//! context is complete only when the digest of all its parts is the one that was promised; it belongs to the principal that
//! uploads it, and does not exist for any other one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use acrtask_api::{
    BASE,
    admin::{Problem, Scope},
    run::{Context, CreateContext},
    spec::ContextSource,
};
use acrtask_store::{ContextRow, StoreError};
use axum::{
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Api, ApiError,
    extract::{self, Json, Path},
};
use crate::{
    App,
    auth::{self, By, Caller},
    blobs::BlobError,
    serve::request_guard::Guarded as _,
};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(show, append))
}

fn to_api(app: &App, row: &ContextRow) -> Context {
    Context {
        id: row.id.clone(),
        received: row.received,
        size: row.size,
        complete: row.complete,
        part_limit: app.config.part_limit,
    }
}

/// Begins an upload. Where the server has the same bytes already, it is complete at once.
#[utoipa::path(post, path = "/contexts", tag = "contexts", request_body = CreateContext, security(("token" = ["run"])), responses(
    (status = CREATED, body = Context),
    (status = OK, body = Context, description = "The server has it already."),
    (status = BAD_REQUEST, body = Problem),
    (status = PAYLOAD_TOO_LARGE, body = Problem, description = "It is larger than the server takes; the message says how large it may be."),
))]
async fn create(
    by: By<auth::Run>,
    State(api): State<Api>,
    Json(asked): Json<CreateContext>,
) -> Result<Response, ApiError> {
    let app = &api.app;
    let caller = &by.caller;
    if asked.size == 0 {
        return Err(
            ApiError::invalid("a context of 0 bytes is none").help("give `context` nothing")
        );
    }
    if asked.size > app.config.context_limit {
        return Err(ApiError::too_large(format!(
            "the context has {} bytes, and this server takes {} at most (its setting `context-limit`)",
            asked.size, app.config.context_limit
        ))
        .help("leave out what the build does not need, with a `.dockerignore`"));
    }
    let id = format!("c{}", auth::random_id());
    let row = app
        .store
        .create_context_within(
            &id,
            asked.size,
            &asked.digest,
            &caller.principal,
            caller.charged_to().as_deref(),
            app.clock.now_ms(),
        )
        .await?;
    let status = if row.complete {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    let location = [(header::LOCATION, format!("{BASE}/contexts/{}", row.id))];
    Ok((status, location, Json(to_api(app, &row))).into_response())
}

/// Finds a context of the caller's. One of another principal is not found, but by an administrator.
async fn find(app: &App, id: &str, caller: &Caller) -> Result<ContextRow, ApiError> {
    match app.store.context(id).await {
        Ok(row) if row.owner.as_ref() == Some(&caller.principal) || caller.has(Scope::Admin) => {
            Ok(row)
        }
        Ok(_) | Err(StoreError::NotFound { .. }) => {
            Err(ApiError::not_found(format!("there is no context {id}"))
                .help("begin a new one: POST /api/v1/contexts"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a run whose files another principal uploaded, as if there were none.
pub(super) async fn check_owner(
    app: &App,
    caller: &Caller,
    files: &ContextSource,
) -> Result<(), ApiError> {
    let ContextSource::Upload { id } = files else {
        return Ok(());
    };
    find(app, id, caller).await.map(drop).map_err(|error| {
        if error.is_not_found() {
            incomplete(id)
        } else {
            error
        }
    })
}

/// The error for files that are not all there, or are another principal's.
pub(super) fn incomplete(id: &str) -> ApiError {
    ApiError::unprocessable(format!("there is no complete context `{id}`"))
        .help("upload the files first: POST /api/v1/contexts, and PATCH it until `complete`")
}

/// How far an upload is.
#[utoipa::path(get, path = "/contexts/{id}", tag = "contexts", params(("id" = String, Path, description = "The upload's id.")),
    security(("token" = ["run"])), responses((status = OK, body = Context), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Context>, ApiError> {
    let row = find(&api.app, &id, &by.caller).await?;
    Ok(Json(to_api(&api.app, &row)))
}

/// Bytes of a context, from the offset on. Without any, nothing changes.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body in the OpenAPI document")]
struct Part(Vec<u8>);

/// Adds the next part. After the last one the digest of the whole is checked; where it is wrong, the upload begins anew.
#[utoipa::path(patch, path = "/contexts/{id}", tag = "contexts",
    params(
        ("id" = String, Path, description = "The upload's id."),
        ("Upload-Offset" = u64, Header, description = "Where the part begins: the upload's `received`."),
    ),
    request_body(content = inline(Option<Part>), content_type = "application/offset+octet-stream"),
    security(("token" = ["run"])),
    responses(
        (status = OK, body = Context),
        (status = BAD_REQUEST, body = Problem),
        (status = NOT_FOUND, body = Problem),
        (status = CONFLICT, body = Problem, description = "The part begins elsewhere than at `received`."),
        (status = PAYLOAD_TOO_LARGE, body = Problem, description = "The part is larger than `partLimit`."),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "The digest is not the promised one; the upload begins anew."),
    ))]
async fn append(
    by: By<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Context>, ApiError> {
    let (parts, body) = request.into_parts();
    let (headers, guard) = (parts.headers, parts.extensions.guard().cloned());
    guard.streams_body();
    let app = &api.app;
    let offset: u64 = extract::header(&headers, "upload-offset")?
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            ApiError::invalid("the header `Upload-Offset` must say where the part begins")
                .help("it is the `received` of the upload")
        })?;
    let row = find(app, &id, &by.caller).await?;
    if row.complete {
        return Err(ApiError::conflict(format!(
            "the context {id} is complete already"
        )));
    }
    if offset != row.received {
        return Err(wrong_offset(&row, offset));
    }
    let room = row.size - row.received;
    let announced: Option<u64> =
        extract::header(&headers, "content-length")?.and_then(|text| text.parse().ok());
    if let Some(announced) = announced {
        check_length(app, announced, room)?;
    }
    let stored = store_part(app, &row, &by.caller, body).await;
    let stored = stored.map_err(|error| match guard.refusal() {
        Some(refusal) => refusal.to_problem(),
        None => error,
    });
    let row = match stored? {
        Some(row) => row,
        // Whole already, but the last answer was lost between the part and the check.
        None if row.received == row.size => row,
        // An empty part adds nothing.
        None => row,
    };
    if row.received < row.size {
        return Ok(Json(to_api(app, &row)));
    }
    let row = finish(app, row).await?;
    Ok(Json(to_api(app, &row)))
}

fn wrong_offset(row: &ContextRow, offset: u64) -> ApiError {
    ApiError::conflict(format!(
        "the part begins at {offset}, and the next one must begin at {}",
        row.received
    ))
    .help(format!("send what comes from byte {} on", row.received))
}

fn check_length(app: &App, length: u64, room: u64) -> Result<(), ApiError> {
    if length > app.config.part_limit {
        return Err(ApiError::too_large(format!(
            "the part is larger than {} bytes, the `partLimit` of this server",
            app.config.part_limit
        ))
        .help("send smaller parts"));
    }
    if length > room {
        return Err(ApiError::unprocessable(format!(
            "the part has more bytes than the {room} that are missing"
        )));
    }
    Ok(())
}

/// Streams a part to its blob and adds it; nothing for a part without bytes.
async fn store_part(
    app: &App,
    row: &ContextRow,
    caller: &Caller,
    body: Body,
) -> Result<Option<ContextRow>, ApiError> {
    let room = row.size - row.received;
    // Two who send the same part at once do not write the same blob.
    let key = format!("contexts/{}/{}-{}", row.id, row.received, auth::random_id());
    let seen = Arc::new(AtomicU64::new(0));
    let most = room.min(app.config.part_limit);
    let counted = {
        let seen = seen.clone();
        body.into_data_stream().map(move |chunk| {
            let chunk = chunk.map_err(std::io::Error::other)?;
            let length = chunk.len() as u64;
            if seen.fetch_add(length, Ordering::Relaxed) + length > most {
                return Err(std::io::Error::other("it is too long"));
            }
            Ok(chunk)
        })
    };
    let stored = app.blobs.put_stream(&key, counted.boxed()).await;
    check_length(app, seen.load(Ordering::Relaxed), room)?;
    let length = match stored {
        Ok(0) => {
            remove(app, vec![key]).await;
            return Ok(None);
        }
        Ok(length) => length,
        Err(BlobError::Input(error)) => {
            tracing::debug!(context = row.id, %error, "a part broke off");
            return Err(ApiError::invalid("the part broke off").help("send it again"));
        }
        Err(error) => return Err(error.into()),
    };
    let added = app
        .store
        .add_part(&row.id, row.received, length, &key, app.clock.now_ms())
        .await;
    match added {
        Ok(row) => Ok(Some(row)),
        Err(StoreError::Conflict { .. }) => {
            remove(app, vec![key]).await;
            let now = find(app, &row.id, caller).await?;
            Err(wrong_offset(&now, row.received))
        }
        // Whether it was added is not known: the blob stays, and retention removes it with the context.
        Err(error) => Err(error.into()),
    }
}

/// Checks the digest of all parts.
async fn finish(app: &App, row: ContextRow) -> Result<ContextRow, ApiError> {
    let mut hash = Sha256::new();
    for part in &row.parts {
        let mut stream = app.blobs.get_stream(&part.blob, None).await?;
        while let Some(chunk) = stream.try_next().await.map_err(BlobError::Input)? {
            hash.update(&chunk);
        }
    }
    let found: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let found = format!("sha256:{found}");
    if found != row.digest.to_string() {
        let blobs = app.store.reset_context(&row.id).await?;
        remove(app, blobs).await;
        return Err(ApiError::mismatch(format!(
            "what came is {found}, and {} was promised; the upload begins anew",
            row.digest
        )));
    }
    Ok(app
        .store
        .complete_context(&row.id, app.clock.now_ms())
        .await?)
}

async fn remove(app: &App, blobs: Vec<String>) {
    if let Err(error) = app.blobs.delete(&blobs).await {
        tracing::warn!(%error, "a blob that nothing needs could not be removed");
    }
}

#[cfg(test)]
#[path = "contexts_tests.rs"]
mod tests;
