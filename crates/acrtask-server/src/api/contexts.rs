//! Uploads of contexts in parts. Each part is streamed to the blob store. The digest of all parts
//! is checked at the end.
//!
//! Invariants:
//! * A part counts after it is stored completely. The blob of a part that does not count is
//!   removed.
//! * A context is complete only if the digest of all its parts is the announced one.
//! * A context belongs to the principal that uploads it. For other principals it does not exist.

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
    auth::{self, Authenticated, Caller},
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

/// Starts an upload. If the server already has a context of the caller with the same digest, it is
/// complete at once.
#[utoipa::path(post, path = "/contexts", tag = "contexts", request_body = CreateContext, security(("token" = ["run"])), responses(
    (status = CREATED, body = Context),
    (status = OK, body = Context, description = "The server already has this context."),
    (status = BAD_REQUEST, body = Problem),
    (status = PAYLOAD_TOO_LARGE, body = Problem, description = "The context exceeds the limit of the server, which the message names."),
))]
async fn create(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Json(input): Json<CreateContext>,
) -> Result<Response, ApiError> {
    let app = &api.app;
    let caller = &by.caller;
    if input.size == 0 {
        return Err(ApiError::invalid("a context of 0 bytes cannot be uploaded")
            .help("leave out `context`"));
    }
    if input.size > app.config.context_limit {
        return Err(ApiError::too_large(format!(
            "the context has {} bytes, and the limit of this server is {} (its setting `context-limit`)",
            input.size, app.config.context_limit
        ))
        .help("exclude files that the build does not need with a `.dockerignore`"));
    }
    let id = format!("c{}", auth::random_id());
    let row = app
        .store
        .create_context_within(
            &id,
            input.size,
            &input.digest,
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

/// Returns a context that the caller owns. Only an admin finds contexts of other principals.
async fn find(app: &App, id: &str, caller: &Caller) -> Result<ContextRow, ApiError> {
    match app.store.context(id).await {
        Ok(row)
            if row.owner.as_ref() == Some(&caller.principal) || caller.has_scope(Scope::Admin) =>
        {
            Ok(row)
        }
        Ok(_) | Err(StoreError::NotFound { .. }) => Err(ApiError::not_found(format!(
            "the context {id} does not exist"
        ))
        .help("start a new upload: POST /api/v1/contexts")),
        Err(error) => Err(error.into()),
    }
}

/// Refuses a run with the files of another principal, as if they did not exist.
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
            incomplete_context(id)
        } else {
            error
        }
    })
}

/// Returns the error for an incomplete upload, or for files of another principal.
pub(super) fn incomplete_context(id: &str) -> ApiError {
    ApiError::unprocessable(format!(
        "the context `{id}` is not complete or does not exist"
    ))
    .help("upload the files first: POST /api/v1/contexts, and PATCH it until `complete`")
}

/// Returns the progress of an upload.
#[utoipa::path(get, path = "/contexts/{id}", tag = "contexts", params(("id" = String, Path, description = "Id of the upload.")),
    security(("token" = ["run"])), responses((status = OK, body = Context), (status = NOT_FOUND, body = Problem)))]
async fn show(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Context>, ApiError> {
    let row = find(&api.app, &id, &by.caller).await?;
    Ok(Json(to_api(&api.app, &row)))
}

/// Bytes of a context, starting at the offset. An empty body changes nothing.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "describes a body in the OpenAPI document")]
struct Part(Vec<u8>);

/// Appends the next part. Each part except the last has at least 1 MiB and 1/10,000 of the context,
/// or `partLimit` if that is less. After the last part the digest of all parts is checked. If it
/// differs, the upload restarts.
#[utoipa::path(patch, path = "/contexts/{id}", tag = "contexts",
    params(
        ("id" = String, Path, description = "Id of the upload."),
        ("Upload-Offset" = u64, Header, description = "Offset of the part: the `received` of the upload."),
    ),
    request_body(content = inline(Option<Part>), content_type = "application/offset+octet-stream"),
    security(("token" = ["run"])),
    responses(
        (status = OK, body = Context),
        (status = BAD_REQUEST, body = Problem),
        (status = NOT_FOUND, body = Problem),
        (status = CONFLICT, body = Problem, description = "The offset of the part is not `received`."),
        (status = PAYLOAD_TOO_LARGE, body = Problem, description = "The part is larger than `partLimit`."),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "The part is too small and not the last. Or the digest differs from the announced one: the upload restarts."),
    ))]
async fn append(
    by: Authenticated<auth::Run>,
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<Context>, ApiError> {
    let (parts, body) = request.into_parts();
    let (headers, guard) = (parts.headers, parts.extensions.guard().cloned());
    guard.mark_streaming();
    let app = &api.app;
    let offset: u64 = extract::header(&headers, "upload-offset")?
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            ApiError::invalid("the header `Upload-Offset` must be the offset of the part")
                .help("write the `received` of the upload")
        })?;
    let row = find(app, &id, &by.caller).await?;
    if row.complete {
        return Err(ApiError::conflict(format!(
            "the context {id} is already complete"
        )));
    }
    if offset != row.received {
        return Err(wrong_offset(&row, offset));
    }
    let missing = row.size - row.received;
    let announced: Option<u64> =
        extract::header(&headers, "content-length")?.and_then(|text| text.parse().ok());
    if let Some(announced) = announced {
        check_length(app, announced, missing)?;
        check_min_length(app, &row, announced)?;
    }
    let stored = store_part(app, &row, &by.caller, body).await;
    let stored = stored.map_err(|error| match guard.refusal() {
        Some(refusal) => refusal.to_problem(),
        None => error,
    });
    let row = match stored? {
        Some(row) => row,
        // All bytes were stored, but a previous request failed before the digest check.
        None if row.received == row.size => row,
        // An empty part adds nothing.
        None => row,
    };
    if row.received < row.size {
        return Ok(Json(to_api(app, &row)));
    }
    let row = complete_upload(app, row).await?;
    Ok(Json(to_api(app, &row)))
}

fn wrong_offset(row: &ContextRow, offset: u64) -> ApiError {
    ApiError::conflict(format!(
        "the part begins at {offset}, and the next one must begin at {}",
        row.received
    ))
    .help(format!("send the bytes from offset {}", row.received))
}

fn check_length(app: &App, length: u64, missing: u64) -> Result<(), ApiError> {
    if length > app.config.part_limit {
        return Err(ApiError::too_large(format!(
            "the part is larger than {} bytes, the `partLimit` of this server",
            app.config.part_limit
        ))
        .help("send smaller parts"));
    }
    if length > missing {
        return Err(ApiError::unprocessable(format!(
            "the part has more than the {missing} missing bytes"
        )));
    }
    Ok(())
}

/// Refuses a small part that is not the last, because each part is a file. An empty part is none.
fn check_min_length(app: &App, row: &ContextRow, length: u64) -> Result<(), ApiError> {
    let least = to_api(app, row).min_part();
    if length == 0 || length >= least || length >= row.size - row.received {
        return Ok(());
    }
    Err(ApiError::unprocessable(format!(
        "the part has {length} bytes and is not the last one, so it must have at least {least}"
    ))
    .help("send larger parts"))
}

/// Streams a part to its blob and adds it to the context. Returns `None` if the part is empty.
async fn store_part(
    app: &App,
    row: &ContextRow,
    caller: &Caller,
    body: Body,
) -> Result<Option<ContextRow>, ApiError> {
    let missing = row.size - row.received;
    // A random key separates concurrent uploads of the same part.
    let key = format!("contexts/{}/{}-{}", row.id, row.received, auth::random_id());
    let seen = Arc::new(AtomicU64::new(0));
    let limit = missing.min(app.config.part_limit);
    let counted = {
        let seen = seen.clone();
        body.into_data_stream().map(move |chunk| {
            let chunk = chunk.map_err(std::io::Error::other)?;
            let length = chunk.len() as u64;
            if seen.fetch_add(length, Ordering::Relaxed) + length > limit {
                return Err(std::io::Error::other("the part is too long"));
            }
            Ok(chunk)
        })
    };
    let stored = app.blobs.put_stream(&key, counted.boxed()).await;
    check_length(app, seen.load(Ordering::Relaxed), missing)?;
    let length = match stored {
        Ok(0) => {
            remove_blobs(app, vec![key]).await;
            return Ok(None);
        }
        Ok(length) => length,
        Err(BlobError::Input(error)) => {
            tracing::debug!(context = row.id, %error, "an upload of a part failed");
            return Err(ApiError::invalid("the upload of the part was interrupted")
                .help("send the part again"));
        }
        Err(error) => return Err(error.into()),
    };
    if let Err(error) = check_min_length(app, row, length) {
        remove_blobs(app, vec![key]).await;
        return Err(error);
    }
    let added = app
        .store
        .add_part(&row.id, row.received, length, &key, app.clock.now_ms())
        .await;
    match added {
        Ok(row) => Ok(Some(row)),
        Err(StoreError::Conflict { .. }) => {
            remove_blobs(app, vec![key]).await;
            let now = find(app, &row.id, caller).await?;
            Err(wrong_offset(&now, row.received))
        }
        // The part may have been added. Keep the blob: retention removes it with the context.
        Err(error) => Err(error.into()),
    }
}

/// Checks the digest of all parts and completes the context.
async fn complete_upload(app: &App, row: ContextRow) -> Result<ContextRow, ApiError> {
    let mut hash = Sha256::new();
    for part in app.store.context_parts(&row.id).await? {
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
        remove_blobs(app, blobs).await;
        return Err(ApiError::mismatch(format!(
            "the digest of the upload is {found}, and {} was announced; upload it again from offset 0",
            row.digest
        )));
    }
    Ok(app
        .store
        .complete_context(&row.id, app.clock.now_ms())
        .await?)
}

async fn remove_blobs(app: &App, blobs: Vec<String>) {
    if let Err(error) = app.blobs.delete(&blobs).await {
        tracing::warn!(%error, "cannot remove an unused blob");
    }
}

#[cfg(test)]
#[path = "contexts_tests.rs"]
mod tests;
