//! The bytes of a context, for the runner that holds a run with it.

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

use super::failed;
use crate::App;

/// The context of the run that `request` names, where `runner` holds that run.
pub(super) async fn context(
    app: &Arc<App>,
    runner: &RunnerRow,
    request: FetchContextRequest,
) -> Result<BoxStream<'static, Result<ContextChunk, Status>>, Status> {
    let of = request.of.unwrap_or_default();
    let refused = || Status::permission_denied("the run is not this runner's");
    let id = RunId::new(of.run).map_err(|_| refused())?;
    let run = match app.store.run(&id).await {
        Err(StoreError::NotFound { .. }) => return Err(refused()),
        run => run.map_err(failed)?,
    };
    let holds = run.runner_id.as_deref() == Some(runner.id.as_str())
        && run.attempt == of.attempt
        && matches!(
            run.state,
            acrtask_model::RunState::Leased | acrtask_model::RunState::Running
        );
    if !holds {
        return Err(refused());
    }
    let Some(context) = run.context_id else {
        return Err(Status::not_found("the run has no uploaded context"));
    };
    let context = match app.store.context(&context).await {
        Err(StoreError::NotFound { what }) => {
            return Err(Status::not_found(format!("there is no {what} any more")));
        }
        context => context.map_err(failed)?,
    };
    if request.offset > context.size {
        return Err(Status::out_of_range(format!(
            "the context ends at {}",
            context.size
        )));
    }
    Ok(bytes(app.clone(), context, request.offset))
}

fn bytes(
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
    let chunks = gathered(pieces.boxed());
    chunks
        .map(|piece| match piece {
            Ok(data) => Ok(ContextChunk { data }),
            Err(error) => {
                tracing::error!(
                    error = acrtask_model::chain(&error),
                    "a context cannot be read"
                );
                Err(Status::unavailable(
                    "the context cannot be read now; ask again",
                ))
            }
        })
        .boxed()
}

type Pieces = BoxStream<'static, std::io::Result<Bytes>>;

/// The same bytes in pieces of a good size for a message: none is larger than [`MAX_CHUNK`], and few are much smaller.
fn gathered(pieces: Pieces) -> BoxStream<'static, std::io::Result<Bytes>> {
    let start = (pieces, BytesMut::new());
    stream::try_unfold(start, |(mut pieces, mut held)| async move {
        while held.len() < MAX_CHUNK {
            match pieces.try_next().await? {
                Some(piece) => held.extend_from_slice(&piece),
                None => break,
            }
        }
        if held.is_empty() {
            return Ok(None);
        }
        let piece = held.split_to(held.len().min(MAX_CHUNK)).freeze();
        Ok(Some((piece, (pieces, held))))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_gathered_and_cut() {
        let pieces: Vec<std::io::Result<Bytes>> = [1, 2 * MAX_CHUNK, 10, 0, MAX_CHUNK]
            .map(|length| Ok(Bytes::from(vec![7; length])))
            .into();
        let gathered: Vec<usize> = gathered(stream::iter(pieces).boxed())
            .map_ok(|piece| piece.len())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(gathered, [MAX_CHUNK, MAX_CHUNK, MAX_CHUNK, 11]);
    }
}
