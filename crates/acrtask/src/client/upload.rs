//! Uploads of contexts: in parts, from where the server says, and not at all where it has the same bytes.

use std::path::Path;

use acrtask_api::run::{Context, CreateContext};
use acrtask_model::Digest;
use reqwest::{Method, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{ApiError, Client, retry::Retry};

/// Bytes that are sent at once, where the server takes so many.
const PART: u64 = 8 << 20;
/// Uploads that are begun anew, where the server lost one or found its bytes to be others.
const BEGINNINGS: u32 = 3;

/// A file that is to be a context.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    /// Where it is.
    pub(crate) path: &'a Path,
    /// Its bytes.
    pub(crate) size: u64,
    /// Their digest.
    pub(crate) digest: &'a Digest,
}

impl Client {
    /// Uploads `file` and gives back its id. `progress` is told the bytes that the server has.
    pub(crate) async fn upload(
        &self,
        file: &Packed<'_>,
        mut progress: impl FnMut(u64),
    ) -> Result<String, ApiError> {
        let patient = self.clone().retrying(Retry::PATIENT);
        let mut beginnings = 0;
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
                match patient.part(file, &context).await {
                    Ok(next) => context = next,
                    Err(error) => break error,
                }
            };
            beginnings += 1;
            let lost = matches!(
                error.status(),
                Some(StatusCode::NOT_FOUND | StatusCode::GONE)
            );
            if !lost || beginnings == BEGINNINGS {
                return Err(error);
            }
        }
    }

    /// Sends the next part; what comes back says where the one after it begins.
    async fn part(&self, file: &Packed<'_>, context: &Context) -> Result<Context, ApiError> {
        let most = if context.part_limit == 0 {
            PART
        } else {
            context.part_limit.min(PART)
        };
        let length = most.min(file.size.saturating_sub(context.received));
        let bytes = bytes::Bytes::from(
            read(file.path, context.received, length)
                .await
                .map_err(ApiError::File)?,
        );
        let url = self.at(&["contexts", &context.id], &[]);
        let sent = self
            .send(true, || {
                self.request(Method::PATCH, url.clone())
                    .header("Upload-Offset", context.received)
                    .header(header::CONTENT_TYPE, "application/offset+octet-stream")
                    .body(bytes.clone())
            })
            .await;
        match sent {
            Ok(answer) => self.json(answer).await,
            // A part that arrived, but whose answer did not: the server says where it stands.
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

async fn read(path: &Path, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact(&mut bytes).await?;
    Ok(bytes)
}
