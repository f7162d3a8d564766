//! Uploads of contexts in parts. An upload resumes at the offset of the server, and is skipped if
//! the server has the same bytes.

use std::path::Path;

use acrtask_api::run::{Context, CreateContext};
use acrtask_model::Digest;
use reqwest::{Method, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{ApiError, Client, retry::Retry};

/// Maximum size of a part in bytes, if the server allows it.
const MAX_PART: u64 = 8 << 20;
/// Maximum number of uploads after the server lost one or rejected its digest.
const MAX_UPLOADS: u32 = 3;

/// File to upload as a context.
#[derive(Debug)]
pub(crate) struct PackedFile<'a> {
    /// Path of the file.
    pub(crate) path: &'a Path,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Digest of the content.
    pub(crate) digest: &'a Digest,
}

impl Client {
    /// Uploads `file` and returns its id. Calls `progress` with the number of bytes that the server
    /// has.
    pub(crate) async fn upload(
        &self,
        file: &PackedFile<'_>,
        mut progress: impl FnMut(u64),
    ) -> Result<String, ApiError> {
        let patient = self.clone().retrying(Retry::PATIENT);
        let mut uploads = 0;
        loop {
            let mut context: Context = patient
                .post(
                    &["contexts"],
                    &CreateContext {
                        size: file.size,
                        digest: file.digest.clone(),
                    },
                )
                .await?;
            let error = loop {
                progress(context.received);
                if context.complete {
                    return Ok(context.id);
                }
                match patient.send_part(file, &context).await {
                    Ok(next) => context = next,
                    Err(error) => break error,
                }
            };
            uploads += 1;
            let lost = matches!(
                error.status(),
                Some(StatusCode::NOT_FOUND | StatusCode::GONE)
            );
            if !lost || uploads == MAX_UPLOADS {
                return Err(error);
            }
        }
    }

    /// Sends the next part. The returned context contains the offset of the following part.
    async fn send_part(
        &self,
        file: &PackedFile<'_>,
        context: &Context,
    ) -> Result<Context, ApiError> {
        let limit = if context.part_limit == 0 {
            MAX_PART
        } else {
            context.part_limit.min(MAX_PART).max(context.min_part())
        };
        let length = limit.min(file.size.saturating_sub(context.received));
        let bytes = bytes::Bytes::from(
            read_range(file.path, context.received, length)
                .await
                .map_err(ApiError::File)?,
        );
        let url = self.endpoint(&["contexts", &context.id], &[]);
        let sent = self
            .send(true, || {
                self.request(Method::PATCH, url.clone())
                    .header("Upload-Offset", context.received)
                    .header(header::CONTENT_TYPE, "application/offset+octet-stream")
                    .body(bytes.clone())
            })
            .await;
        match sent {
            Ok(response) => self.parse_json(response).await,
            // The part arrived, but its response was lost: ask the server for the current offset.
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => {
                let now: Context = self.get(&["contexts", &context.id], &[]).await?;
                if now.received == context.received && !now.complete {
                    return Err(error);
                }
                Ok(now)
            }
            Err(error) => Err(error),
        }
    }
}

async fn read_range(path: &Path, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact(&mut bytes).await?;
    Ok(bytes)
}
