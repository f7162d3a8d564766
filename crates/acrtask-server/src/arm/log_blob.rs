//! Logs as blobs: length, completion and ranges, as Azure's clients read them.

use acrtask_arm::{ByteRange, completion_word};
use acrtask_model::RunId;
use acrtask_store::{RunRow, StoreError};
use axum::{
    body::Body,
    extract::{OriginalUri, Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;

use super::{
    Arm,
    links::{LinkKind, verify_link},
};
use crate::{
    api::{ApiError, extract},
    serve::request_guard::Guarded as _,
};

/// Code of an error, as the clients expect it.
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");
/// Result of the run. The log is complete if it is present.
const COMPLETE: HeaderName = HeaderName::from_static("x-ms-meta-complete");

/// Returns an error of a blob. Its body is XML, whose text contains no special characters.
pub(super) fn blob_error(status: StatusCode, code: &'static str, message: &str) -> Response {
    let message = message
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let headers = [
        (header::CONTENT_TYPE, "application/xml"),
        (ERROR_CODE, code),
    ];
    (status, headers, body).into_response()
}

/// Returns an error of the API as an error of a blob.
pub(super) fn refuse(error: &ApiError) -> Response {
    let code = match error.status() {
        StatusCode::FORBIDDEN => "AuthenticationFailed",
        StatusCode::NOT_FOUND => "BlobNotFound",
        StatusCode::CONFLICT => "BlobAlreadyExists",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestBodyTooLarge",
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "ServerBusy",
        status if status.is_server_error() => "InternalError",
        _ => "InvalidInput",
    };
    blob_error(error.status(), code, &error.problem().message)
}

/// Returns the log of a run, or its properties for `HEAD`. The link authorizes the request.
pub(super) async fn get(
    State(arm): State<Arm>,
    OriginalUri(uri): OriginalUri,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    if let Err(error) = verify_link(arm.app(), &uri, LinkKind::Log, &id) {
        return refuse(&error);
    }
    request.extensions().mark_authenticated();
    let is_head = request.method() == Method::HEAD;
    if !is_head && request.method() != Method::GET {
        return blob_error(
            StatusCode::METHOD_NOT_ALLOWED,
            "UnsupportedHttpVerb",
            "a log supports GET and HEAD",
        );
    }
    match respond(&arm, &id, request.headers(), is_head).await {
        Ok(response) => response,
        Err(error) => refuse(&error),
    }
}

async fn respond(
    arm: &Arm,
    id: &str,
    headers: &HeaderMap,
    is_head: bool,
) -> Result<Response, ApiError> {
    let missing = || ApiError::not_found("the log does not exist yet");
    let id = RunId::new(id).map_err(|_| missing())?;
    let run = match arm.app().store.run(&id).await {
        Err(StoreError::NotFound { .. }) => return Err(missing()),
        run => run?,
    };
    if run.attempt == 0 && !run.state.is_final() {
        return Err(missing());
    }
    let range = match extract::header(headers, "x-ms-range")? {
        Some(text) => Some(text),
        None => extract::header(headers, "range")?,
    };
    let range = range
        .map(ByteRange::parse)
        .transpose()
        .map_err(|error| ApiError::invalid(error.to_string()))?;
    let log = arm.texts.get(&id);
    let length = {
        let mut log = log.lock().await;
        let converted = log.converted();
        match range.and_then(|range| range.last) {
            // The requested text exists. The rest of the log does not matter.
            Some(last) if !is_head && last < converted => converted,
            _ => log
                .length(arm.app(), &run)
                .await
                .map_err(|error| ApiError::internal(&error))?,
        }
    };
    if is_head {
        return Ok(with_properties(&run, length, StatusCode::OK, Body::empty()));
    }
    let (first, end) = match range {
        None => (0, length),
        Some(range) => match range.end(length) {
            Some(end) => (range.first, end),
            None => {
                return Ok(blob_error(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    "InvalidRange",
                    "the range begins after the end of the log",
                ));
            }
        },
    };
    let body = stream_text(arm, &run, first, end);
    let status = match range {
        None => StatusCode::OK,
        Some(_) => StatusCode::PARTIAL_CONTENT,
    };
    let mut response = with_properties(&run, end - first, status, body);
    if range.is_some() {
        let text = format!("bytes {first}-{}/{length}", end - 1);
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
    }
    Ok(response)
}

/// Streams the text from `first` to `end`.
fn stream_text(arm: &Arm, run: &RunRow, first: u64, end: u64) -> Body {
    let (arm, run) = (arm.clone(), run.clone());
    let pieces = stream::try_unfold(first, move |offset| {
        let (arm, run) = (arm.clone(), run.clone());
        async move {
            if offset >= end {
                return Ok::<_, std::io::Error>(None);
            }
            let log = arm.texts.get(&run.id);
            let mut log = log.lock().await;
            let piece = log
                .read_at(arm.app(), &run, offset)
                .await
                .map_err(std::io::Error::other)?
                .ok_or_else(|| std::io::Error::other("the log ends before its length"))?;
            let wanted = usize::try_from(end - offset).unwrap_or(usize::MAX);
            let piece = piece.slice(..piece.len().min(wanted));
            let next = offset + piece.len() as u64;
            Ok(Some((piece, next)))
        }
    });
    Body::from_stream(pieces)
}

fn with_properties(run: &RunRow, length: u64, status: StatusCode, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, length.into());
    let texts = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::ACCEPT_RANGES, "bytes"),
        // Browsers must not interpret the output of a build as a page.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (HeaderName::from_static("x-ms-blob-type"), "AppendBlob"),
        (HeaderName::from_static("x-ms-version"), "2021-08-06"),
    ];
    for (name, text) in texts {
        headers.insert(name, HeaderValue::from_static(text));
    }
    if let Some(word) = completion_word(run.state) {
        headers.insert(COMPLETE, HeaderValue::from_static(word));
    }
    let modified = acrtask_store::timestamp(run.finished_at.unwrap_or(run.created_at));
    let modified = modified.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let etag = format!("\"{}\"", run.id);
    for (name, text) in [(header::LAST_MODIFIED, modified), (header::ETAG, etag)] {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name, value);
        }
    }
    response
}
