//! The control plane's records of repositories, for purges of one attempt.

use std::pin::Pin;

use acrtask_api::registry_record::RegistryRecord;
use acrtask_executor::Records;
use acrtask_proto::runner::RegistryRecordRequest;
use tonic::{Request, Status};

use crate::{
    backoff::Backoff,
    context::Source,
    id::AttemptId,
    register::{is_transient, new_client, with_key},
};

/// Maximum number of consecutive failures.
const MAX_FAILURES: u32 = 10;
/// Maximum size of a record, in bytes.
const MAX_RECORD: usize = 256 << 20;

/// Records that the attempt may read.
#[derive(Debug)]
pub(crate) struct RunRecords {
    id: AttemptId,
    source: Source,
}

impl RunRecords {
    pub(crate) fn new(id: AttemptId, source: Source) -> Self {
        Self { id, source }
    }

    async fn fetch(&self, repository: &str) -> Result<RegistryRecord, String> {
        let mut backoff = Backoff::default();
        let mut failures = 0;
        loop {
            let status = match self.request(repository).await {
                Ok(record) => return Ok(record),
                Err(status) => status,
            };
            failures += 1;
            if !is_transient(&status) || failures >= MAX_FAILURES {
                return Err(status.message().to_owned());
            }
            tracing::debug!(%status, "interrupted while fetching a record of a repository");
            backoff.wait().await;
        }
    }

    async fn request(&self, repository: &str) -> Result<RegistryRecord, Status> {
        let mut channel = self.source.channel.clone();
        let connected = channel.wait_for(Option::is_some).await;
        let channel = connected.ok().and_then(|channel| channel.clone());
        let channel = channel.ok_or_else(|| Status::aborted("the runner is stopping"))?;
        let request = RegistryRecordRequest {
            of: Some(self.id.to_proto()),
            repository: repository.to_owned(),
        };
        let request = with_key(Request::new(request), &self.source.key);
        let silent = |_| Status::deadline_exceeded("the control plane sends no data");
        let mut client = new_client(channel);
        let opened = client.fetch_registry_record(request);
        let opened = tokio::time::timeout(self.source.silence, opened).await;
        let mut chunks = opened.map_err(silent)??.into_inner();
        let mut json = Vec::new();
        loop {
            let next = tokio::time::timeout(self.source.silence, chunks.message()).await;
            let Some(chunk) = next.map_err(silent)?? else {
                break;
            };
            if json.len() + chunk.data.len() > MAX_RECORD {
                return Err(Status::out_of_range("the record is too large"));
            }
            json.extend_from_slice(&chunk.data);
        }
        serde_json::from_slice(&json)
            .map_err(|error| Status::internal(format!("the record is not valid: {error}")))
    }
}

impl Records for RunRecords {
    fn find<'a>(
        &'a self,
        repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<RegistryRecord, String>> + Send + 'a>> {
        Box::pin(self.fetch(repository))
    }
}
