//! Sources of a finished build, from the endpoint's own history.
//!
//! BuildKit writes provenance for every build into its history, even if the image has none. It
//! serves the blob through the content store at the same address.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Descriptor,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::content;
use crate::provenance::{ProvenanceError, UsedSource, parse_provenance};
use crate::transport::MAX_MESSAGE;

const PREDICATE_TYPE: &str = "in-toto.io/predicate-type";
/// Maximum time until the record of a finished build appears.
const RECORD_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum size of provenance, in bytes. That of a large build has a few hundred thousand.
const MAX_PROVENANCE: usize = 32 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum HistoryError {
    #[error("the endpoint's build history cannot be read")]
    Call(#[from] Status),
    #[error("the endpoint has no record of the build")]
    NoRecord,
    #[error("the endpoint's record of the build has no provenance")]
    NoProvenance,
    #[error("the provenance has more than {MAX_PROVENANCE} bytes")]
    TooLarge,
    #[error(transparent)]
    Provenance(#[from] ProvenanceError),
}

/// Returns the sources of the build over all its platforms, sorted and without duplicates.
pub(crate) async fn used_sources(
    channel: &Channel,
    build_ref: &str,
) -> Result<Vec<UsedSource>, HistoryError> {
    let record = find_record(channel, build_ref).await?;
    let descriptors = provenance_blobs(&record);
    if descriptors.is_empty() {
        return Err(HistoryError::NoProvenance);
    }
    let mut used = Vec::new();
    for descriptor in descriptors {
        used.extend(parse_provenance(
            &read_blob(channel, &descriptor.digest).await?,
        )?);
    }
    used.sort();
    used.dedup();
    Ok(used)
}

async fn find_record(
    channel: &Channel,
    build_ref: &str,
) -> Result<BuildHistoryRecord, HistoryError> {
    let mut control = ControlClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    // The request does not exit early. BuildKit may write the record a moment after the end of the
    // build, and then sends it as an event.
    let request = BuildHistoryRequest {
        r#ref: build_ref.to_owned(),
        ..BuildHistoryRequest::default()
    };
    let search = async {
        let mut events = control.listen_build_history(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            if event.r#type == i32::from(BuildHistoryEventType::Complete)
                && let Some(record) = event.record.filter(|record| record.r#ref == build_ref)
            {
                return Ok(record);
            }
        }
        Err(HistoryError::NoRecord)
    };
    tokio::time::timeout(RECORD_TIMEOUT, search)
        .await
        .unwrap_or(Err(HistoryError::NoRecord))
}

fn provenance_blobs(record: &BuildHistoryRecord) -> Vec<&Descriptor> {
    let mut blobs: Vec<&Descriptor> = record
        .result
        .iter()
        .chain(record.results.values())
        .flat_map(|result| &result.attestations)
        .filter(|blob| {
            blob.annotations
                .get(PREDICATE_TYPE)
                .is_some_and(|kind| kind.contains("slsa.dev/provenance"))
        })
        .collect();
    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
    blobs.dedup_by(|a, b| a.digest == b.digest);
    blobs
}

async fn read_blob(channel: &Channel, digest: &str) -> Result<Vec<u8>, HistoryError> {
    let mut pieces = content::open_blob(channel, digest, 0, 0).await?;
    let mut blob = Vec::new();
    while let Some(piece) = pieces.message().await? {
        if blob.len() + piece.data.len() > MAX_PROVENANCE {
            return Err(HistoryError::TooLarge);
        }
        blob.extend_from_slice(&piece.data);
    }
    Ok(blob)
}
