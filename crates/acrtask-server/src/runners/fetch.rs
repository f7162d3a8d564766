//! Downloads by the runner that leases a run: its context, and records of repositories.

use std::sync::Arc;

use acrtask_model::{ImageRef, RunId};
use acrtask_proto::{
    MAX_CHUNK,
    runner::{
        Attempt, ContextChunk, FetchContextRequest, RegistryRecordChunk, RegistryRecordRequest,
    },
};
use acrtask_store::{Part, RunRow, RunnerRow, StoreError};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use tonic::Status;

use super::log_store_error;
use crate::{App, registry_record::read_record};

/// Opens the context of the requested run if `runner` has the lease of that run.
pub(super) async fn open_context(
    app: &Arc<App>,
    runner: &RunnerRow,
    request: FetchContextRequest,
) -> Result<BoxStream<'static, Result<ContextChunk, Status>>, Status> {
    let run = find_leased_run(app, runner, request.of).await?;
    let Some(context) = run.context_id else {
        return Err(Status::not_found("the run has no uploaded context"));
    };
    let context = match app.store.context(&context).await {
        Err(StoreError::NotFound { what }) => {
            return Err(Status::not_found(format!("there is no {what} any more")));
        }
        context => context.map_err(log_store_error)?,
    };
    if request.offset > context.size {
        return Err(Status::out_of_range(format!(
            "the context has only {} bytes",
            context.size
        )));
    }
    let parts = app.store.context_parts(&context.id).await;
    let parts = parts.map_err(log_store_error)?;
    Ok(stream_chunks(app.clone(), parts, request.offset))
}

/// Returns the run of an attempt that `runner` leases.
async fn find_leased_run(
    app: &App,
    runner: &RunnerRow,
    of: Option<Attempt>,
) -> Result<RunRow, Status> {
    let of = of.unwrap_or_default();
    let refused = || Status::permission_denied("the run is not this runner's");
    let id = RunId::new(of.run).map_err(|_| refused())?;
    let run = match app.store.run(&id).await {
        Err(StoreError::NotFound { .. }) => return Err(refused()),
        run => run.map_err(log_store_error)?,
    };
    let is_current = run.runner_id.as_deref() == Some(runner.id.as_str())
        && run.attempt == of.attempt
        && matches!(
            run.state,
            acrtask_model::RunState::Leased | acrtask_model::RunState::Running
        );
    match is_current {
        true => Ok(run),
        false => Err(refused()),
    }
}

/// Opens the record of a repository if `runner` has the lease of the requesting run.
pub(super) async fn open_record(
    app: &App,
    runner: &RunnerRow,
    request: RegistryRecordRequest,
) -> Result<BoxStream<'static, Result<RegistryRecordChunk, Status>>, Status> {
    find_leased_run(app, runner, request.of).await?;
    let parsed = request.repository.parse::<ImageRef>();
    let is_repository = parsed.is_ok_and(|image| image.name() == request.repository);
    if !is_repository {
        return Err(Status::invalid_argument("this is not a repository"));
    }
    let record = read_record(app, &request.repository).await;
    let json = serde_json::to_vec(&record.map_err(log_store_error)?)
        .map_err(|error| Status::internal(error.to_string()))?;
    let mut json = Bytes::from(json);
    let chunks = std::iter::from_fn(move || {
        let size = json.len().min(MAX_CHUNK);
        (size > 0).then(|| {
            Ok(RegistryRecordChunk {
                data: json.split_to(size),
            })
        })
    });
    Ok(stream::iter(chunks).boxed())
}

fn stream_chunks(
    app: Arc<App>,
    parts: Vec<Part>,
    from: u64,
) -> BoxStream<'static, Result<ContextChunk, Status>> {
    let parts = parts
        .into_iter()
        .filter(move |part| part.offset + part.length > from);
    let pieces = stream::iter(parts)
        .then(move |part| {
            let app = app.clone();
            async move {
                let skip = from.saturating_sub(part.offset);
                let pieces = app.blobs.get_stream(&part.blob, Some(skip..part.length));
                pieces.await.map_err(std::io::Error::other)
            }
        })
        .try_flatten();
    let chunks = regroup_chunks(pieces.boxed());
    chunks
        .map(|piece| match piece {
            Ok(data) => Ok(ContextChunk { data }),
            Err(error) => {
                tracing::error!(
                    error = acrtask_model::error_chain(&error),
                    "cannot read a context"
                );
                Err(Status::unavailable(
                    "the context is not readable now; request it again",
                ))
            }
        })
        .boxed()
}

type Pieces = BoxStream<'static, std::io::Result<Bytes>>;

/// Regroups bytes into message-sized chunks: at most [`MAX_CHUNK`], and only the last is smaller.
fn regroup_chunks(pieces: Pieces) -> BoxStream<'static, std::io::Result<Bytes>> {
    let start = (pieces, BytesMut::new());
    stream::try_unfold(start, |(mut pieces, mut buffer)| async move {
        while buffer.len() < MAX_CHUNK {
            match pieces.try_next().await? {
                Some(piece) => buffer.extend_from_slice(&piece),
                None => break,
            }
        }
        if buffer.is_empty() {
            return Ok(None);
        }
        let piece = buffer.split_to(buffer.len().min(MAX_CHUNK)).freeze();
        Ok(Some((piece, (pieces, buffer))))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_regrouped_to_the_maximum_size() {
        let pieces: Vec<std::io::Result<Bytes>> = [1, 2 * MAX_CHUNK, 10, 0, MAX_CHUNK]
            .map(|length| Ok(Bytes::from(vec![7; length])))
            .into();
        let lengths: Vec<usize> = regroup_chunks(stream::iter(pieces).boxed())
            .map_ok(|piece| piece.len())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(lengths, [MAX_CHUNK, MAX_CHUNK, MAX_CHUNK, 11]);
    }
}
