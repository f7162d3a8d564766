//! Uploads of contexts as blobs: one request, or blocks and a list.
//!
//! Invariants:
//! * A context belongs to the principal that requested its link. It counts against its quotas.
//! * Each block is streamed to the blob store. The blob of a block that does not count is removed.
//! * A link of a revoked token uploads nothing.

use acrtask_arm::{is_block_id, parse_block_list};
use acrtask_model::Principal;
use acrtask_store::{BlockRow, ContextRow, StoreError};
use axum::{
    body::Body,
    extract::{OriginalUri, Path, Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    Arm, ArmError, RegistryRequest, find_parameter,
    links::{LinkKind, create_link, verify_link},
    log_blob::{blob_error, refuse},
    parse_query,
};
use crate::{
    App,
    api::{ApiError, extract},
    auth,
    blobs::BlobError,
    serve::request_guard::{Guarded as _, RequestGuard},
};

/// Largest body of one request, in bytes. The SDK for JavaScript sends up to 256 MiB at once.
const MAX_BODY: u64 = 256 << 20;
/// Largest list of blocks, in bytes.
const MAX_LIST: usize = 2 << 20;
/// Id of the block of an upload in one request. No client can choose it.
const WHOLE: &str = "*";

/// Creates an upload, and returns its URL.
pub(super) async fn create(request: &RegistryRequest<'_>) -> Result<Value, ArmError> {
    let app = request.arm.app();
    let caller = request.caller;
    let id = format!("c{}", auth::random_id());
    app.store
        .create_upload(
            &id,
            &caller.principal,
            caller.charged_to().as_deref(),
            app.clock.now_ms(),
        )
        .await?;
    Ok(json!({
        "uploadUrl": create_link(app, &request.host, LinkKind::Upload, &id),
        "relativePath": format!("{}{id}", acrtask_arm::UPLOAD_PREFIX),
    }))
}

/// Receives an upload, a block of it or the list that completes it. The link authorizes the
/// request.
pub(super) async fn put(
    State(arm): State<Arm>,
    OriginalUri(uri): OriginalUri,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let app = arm.app();
    if let Err(error) = verify_link(app, &uri, LinkKind::Upload, &id) {
        return refuse(&error);
    }
    if request.method() != Method::PUT {
        return blob_error(
            StatusCode::METHOD_NOT_ALLOWED,
            "UnsupportedHttpVerb",
            "an upload supports PUT",
        );
    }
    let query = parse_query(&uri);
    let (parts, body) = request.into_parts();
    let guard = parts.extensions.guard().cloned();
    parts.extensions.mark_authenticated();
    let upload = Upload {
        app,
        id: &id,
        headers: &parts.headers,
        guard: guard.as_ref(),
    };
    let received = match find_parameter(&query, "comp") {
        None => upload.receive_whole(body).await,
        Some("block") => {
            let block = find_parameter(&query, "blockid").unwrap_or_default();
            upload.receive_block(block, body).await
        }
        Some("blocklist") => upload.receive_list(body).await,
        Some(_) => Err(ApiError::invalid(
            "only single uploads, `comp=block` and `comp=blocklist` are supported",
        )),
    };
    match received {
        Ok(()) => {
            let headers = [
                (header::ETAG, "\"0x1\""),
                (HeaderName::from_static("x-ms-version"), "2021-08-06"),
                (
                    HeaderName::from_static("x-ms-request-server-encrypted"),
                    "true",
                ),
            ];
            (StatusCode::CREATED, headers).into_response()
        }
        Err(error) => refuse(&error),
    }
}

/// Request of an upload.
struct Upload<'u> {
    app: &'u App,
    id: &'u str,
    headers: &'u HeaderMap,
    guard: Option<&'u RequestGuard>,
}

impl Upload<'_> {
    async fn receive_whole(&self, body: Body) -> Result<(), ApiError> {
        let kind = extract::header(self.headers, "x-ms-blob-type")?;
        if kind.is_some_and(|kind| !kind.eq_ignore_ascii_case("BlockBlob")) {
            return Err(ApiError::invalid("only blobs of the type BlockBlob exist"));
        }
        let block = self.store_block(WHOLE, body).await?;
        self.complete(vec![block]).await
    }

    async fn receive_block(&self, block: &str, body: Body) -> Result<(), ApiError> {
        if !is_block_id(block) {
            return Err(ApiError::invalid("`blockid` is not an id in base 64"));
        }
        self.store_block(block, body).await.map(drop)
    }

    async fn receive_list(&self, body: Body) -> Result<(), ApiError> {
        let body = axum::body::to_bytes(body, MAX_LIST)
            .await
            .map_err(|_| self.body_error("the list of blocks is too large or was interrupted"))?;
        let text = str::from_utf8(&body)
            .map_err(|_| ApiError::invalid("the list of blocks is not UTF-8"))?;
        let wanted =
            parse_block_list(text).map_err(|error| ApiError::invalid(error.to_string()))?;
        let stored = self.app.store.context_blocks(self.id).await?;
        let by_id: std::collections::HashMap<&str, &BlockRow> = stored
            .iter()
            .map(|block| (block.block.as_str(), block))
            .collect();
        let blocks = wanted.iter().map(|id| {
            let found = by_id.get(id.as_str());
            found.map(|block| (*block).clone()).ok_or_else(|| {
                ApiError::invalid(format!("the block `{id}` was not sent: send it first"))
            })
        });
        let blocks = blocks.collect::<Result<Vec<_>, _>>()?;
        self.complete(blocks).await
    }

    /// Returns the refusal of the body, else `message`.
    fn body_error(&self, message: &str) -> ApiError {
        match self.guard.cloned().refusal() {
            Some(refusal) => refusal.to_problem(),
            None => ApiError::invalid(message),
        }
    }

    /// Returns the principal whose quotas count the upload. Refuses a revoked token.
    async fn charged_to(&self) -> Result<Option<String>, ApiError> {
        let app = self.app;
        let missing = || ApiError::not_found("the upload does not exist or is expired");
        let context = match app.store.context(self.id).await {
            Err(StoreError::NotFound { .. }) => return Err(missing()),
            context => context?,
        };
        if context.complete {
            return Err(ApiError::conflict("the upload is already complete"));
        }
        match context.owner.ok_or_else(missing)? {
            Principal::Token { id } => {
                let now = app.clock.now_ms();
                let token = app.store.token_by_id(&id).await?;
                let token = token
                    .filter(|token| token.expires_at.is_none_or(|end| end > now))
                    .ok_or_else(|| ApiError::forbidden("the token of the link is not valid"))?;
                let is_admin = token
                    .scopes
                    .iter()
                    .any(|scope| scope.includes(acrtask_api::admin::Scope::Admin));
                Ok((!is_admin).then_some(id))
            }
            Principal::Federation { issuer, subject } => Ok(Some(format!("{issuer} {subject}"))),
        }
    }

    /// Streams a body to a blob, and adds it to the upload.
    async fn store_block(&self, block: &str, body: Body) -> Result<BlockRow, ApiError> {
        let app = self.app;
        let length: u64 = extract::header(self.headers, "content-length")?
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| {
                let status = StatusCode::LENGTH_REQUIRED;
                ApiError::with_code(status, "length", "the header `Content-Length` is missing")
            })?;
        let limit = app.config.context_limit;
        if length > MAX_BODY.min(limit) {
            return Err(ApiError::too_large(format!(
                "the body has {length} bytes, and the limit is {}: send blocks",
                MAX_BODY.min(limit)
            )));
        }
        if length == 0 {
            return Err(ApiError::invalid("the body is empty"));
        }
        if app.floor.check().is_err() {
            return Err(ApiError::disk_full(
                "the server has less free disk than --min-free-disk keeps",
            ));
        }
        let charged_to = self.charged_to().await?;
        let charged_to = charged_to.as_deref();
        let now = app.clock.now_ms();
        app.store
            .check_block(self.id, length, limit, charged_to, now)
            .await?;
        self.guard.cloned().mark_streaming();
        // A random key separates concurrent uploads of the same block.
        let blob = format!("contexts/{}/{}", self.id, auth::random_id());
        let mut left = length;
        let counted = body.into_data_stream().map(move |chunk| {
            let chunk = chunk.map_err(std::io::Error::other)?;
            left = left
                .checked_sub(chunk.len() as u64)
                .ok_or_else(|| std::io::Error::other("the body is too long"))?;
            Ok(chunk)
        });
        let stored = app.blobs.put_stream(&blob, counted.boxed()).await;
        let stored = stored.map_err(|error| match error {
            BlobError::Input(_) => self.body_error("the upload was interrupted: send it again"),
            error => error.into(),
        })?;
        let row = BlockRow {
            block: block.to_owned(),
            length,
            blob,
        };
        if stored != length {
            remove_blobs(app, vec![row.blob]).await;
            return Err(ApiError::invalid("the body is shorter than its length"));
        }
        let added = app
            .store
            .add_block(self.id, &row, limit, charged_to, now)
            .await;
        match added {
            Ok(replaced) => {
                remove_blobs(app, replaced.into_iter().collect()).await;
                Ok(row)
            }
            Err(
                error @ (StoreError::Conflict { .. }
                | StoreError::Invalid { .. }
                | StoreError::Quota(_)
                | StoreError::NotFound { .. }),
            ) => {
                remove_blobs(app, vec![row.blob]).await;
                Err(error.into())
            }
            // The block may have been added. Retention removes its blob with the context.
            Err(error) => Err(error.into()),
        }
    }

    /// Completes the upload with these blocks.
    async fn complete(&self, blocks: Vec<BlockRow>) -> Result<(), ApiError> {
        let app = self.app;
        let mut hash = Sha256::new();
        for block in &blocks {
            let mut stream = app.blobs.get_stream(&block.blob, None).await?;
            while let Some(chunk) = stream.try_next().await.map_err(BlobError::Input)? {
                hash.update(&chunk);
            }
        }
        let digest: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let digest = format!("sha256:{digest}")
            .parse()
            .map_err(|error: acrtask_model::ReferenceError| ApiError::internal(&error))?;
        let (context, unused): (ContextRow, Vec<String>) = app
            .store
            .complete_blocks(self.id, &blocks, &digest, app.clock.now_ms())
            .await?;
        remove_blobs(app, unused).await;
        tracing::info!(
            context = context.id,
            bytes = context.size,
            "received an upload"
        );
        Ok(())
    }
}

async fn remove_blobs(app: &App, blobs: Vec<String>) {
    if let Err(error) = app.blobs.delete(&blobs).await {
        tracing::warn!(%error, "cannot remove an unused blob");
    }
}
