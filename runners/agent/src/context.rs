//! Fetching of the files of a run that were uploaded to the control plane.
//!
//! Received bytes are kept when the connection breaks, and the download continues after them. The
//! archive is unpacked only after it is complete and its digest matches.

use std::{path::PathBuf, sync::Arc, time::Duration};

use acrtask_model::Secret;
use acrtask_proto::runner::FetchContextRequest;
use acrtask_source::{Scratch, Workspace};
use sha2::{Digest as _, Sha256};
use tokio::{
    fs::File,
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    sync::watch,
};
use tonic::{Request, Status, transport::Channel};

use crate::{
    backoff::Backoff,
    error::chain,
    id::AttemptId,
    register::{is_transient, new_client, with_key},
};

/// Maximum number of consecutive failures without any received byte.
const MAX_FAILURES: u32 = 20;
/// Time without data after which the request is repeated, even on a working connection.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Source of contexts.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The current connection.
    pub(crate) channel: watch::Receiver<Option<Channel>>,
    /// The runner's key.
    pub(crate) key: Arc<Secret>,
    /// Folder in which the folders of runs are created.
    pub(crate) work: PathBuf,
    /// Maximum time without data.
    pub(crate) silence: Duration,
}

/// Expected content of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedContext {
    /// Size in bytes.
    pub(crate) size: u64,
    /// Digest of the form `sha256:...`.
    pub(crate) digest: String,
}

/// Fetches and unpacks the context of a run.
///
/// # Errors
/// The reason, as one sentence.
pub(crate) async fn fetch(
    source: &Source,
    id: &AttemptId,
    wanted: &ExpectedContext,
) -> Result<Workspace, String> {
    let io = |error: std::io::Error| format!("the runner could not store the run's files: {error}");
    let packed = Scratch::new(&source.work).map_err(io)?;
    let path = packed.path().join("context");
    let mut file = File::create_new(&path).await.map_err(io)?;
    let digest = download(source, id, wanted, &mut file).await?;
    if digest != wanted.digest {
        return Err(format!(
            "the run's files arrived damaged: their digest is {digest} and should be {}; run it again",
            wanted.digest
        ));
    }
    file.rewind().await.map_err(io)?;
    let options = acrtask_source::Options {
        scratch_dir: source.work.clone(),
        ..acrtask_source::Options::default()
    };
    let unpacked = acrtask_source::unpack_upload(file, &options).await;
    unpacked.map_err(|error| match error.help() {
        Some(help) => format!("{}; {help}", chain(&error)),
        None => chain(&error),
    })
}

async fn download(
    source: &Source,
    id: &AttemptId,
    wanted: &ExpectedContext,
    file: &mut File,
) -> Result<String, String> {
    let mut hash = Sha256::new();
    let mut received = 0u64;
    let mut backoff = Backoff::default();
    let mut failures = 0;
    while received < wanted.size {
        let mut channel = source.channel.clone();
        let connected = channel.wait_for(Option::is_some).await;
        let Some(channel) = connected.ok().and_then(|channel| channel.clone()) else {
            return Err("the runner is stopping".into());
        };
        let before = received;
        let from = FetchContextRequest {
            of: Some(id.to_proto()),
            offset: received,
        };
        let request = with_key(Request::new(from), &source.key);
        let part = async {
            let silent = |_| Status::deadline_exceeded("the control plane sends no data");
            let mut client = new_client(channel);
            let asked = tokio::time::timeout(source.silence, client.fetch_context(request));
            let mut chunks = asked.await.map_err(silent)??.into_inner();
            loop {
                let next = tokio::time::timeout(source.silence, chunks.message());
                let Some(chunk) = next.await.map_err(silent)?? else {
                    break;
                };
                let size = received + chunk.data.len() as u64;
                if size > wanted.size {
                    return Err(Status::data_loss("the context is larger than announced"));
                }
                file.write_all(&chunk.data).await.map_err(|error| {
                    Status::failed_precondition(format!(
                        "the runner could not store the files: {error}"
                    ))
                })?;
                hash.update(&chunk.data);
                received = size;
            }
            Ok(())
        };
        let ended = part.await;
        if received > before {
            failures = 0;
            backoff.reset();
        } else {
            failures += 1;
        }
        match ended {
            Ok(()) if received == wanted.size => break,
            Err(status) if !is_transient(&status) || failures >= MAX_FAILURES => {
                return Err(format!(
                    "cannot fetch the run's files from the control plane: {}",
                    status.message()
                ));
            }
            Ok(()) if failures >= MAX_FAILURES => {
                return Err(
                    "the control plane sends fewer bytes of the run's files than announced".into(),
                );
            }
            Ok(()) => {}
            Err(status) => {
                tracing::debug!(%status, received, "interrupted while fetching a context")
            }
        }
        backoff.wait().await;
    }
    let flushed = file.flush().await;
    flushed.map_err(|error| format!("the runner could not store the run's files: {error}"))?;
    let digest: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(format!("sha256:{digest}"))
}
