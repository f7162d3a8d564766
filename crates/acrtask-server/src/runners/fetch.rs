//! Download of a context by the runner that leases a run with it.

use std::sync::Arc;

use acrtask_model::RunId;
use acrtask_proto::{
    MAX_CHUNK,
    runner::{ContextChunk, FetchContextRequest},
};
use acrtask_store::{ContextRow, RunnerRow, StoreError};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use tonic::Status;

use super::log_store_error;
use crate::App;

/// Opens the context of the requested run if `runner` has the lease of that run.
pub(super) async fn open_context(
    app: &Arc<App>,
    runner: &RunnerRow,
    request: FetchContextRequest,
) -> Result<BoxStream<'static, Result<ContextChunk, Status>>, Status> {
    let of = request.of.unwrap_or_default();
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
    if !is_current {
        return Err(refused());
    }
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
    Ok(stream_chunks(app.clone(), context, request.offset))
}

fn stream_chunks(
    app: Arc<App>,
    context: ContextRow,
    from: u64,
) -> BoxStream<'static, Result<ContextChunk, Status>> {
    let parts = context
        .parts
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
