//! Limit of logs that a token reads at once.
//!
//! A slow reader holds the memory of its response. One token therefore has few of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, response::Response};
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{api::ApiError, auth::Caller};

/// Maximum number of log pages and log downloads of one token at once.
const MAX_READS: usize = 4;
/// Longest wait for the end of another read.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Reads of logs at this moment, by token.
#[derive(Debug, Default)]
pub(crate) struct LogReads(Mutex<HashMap<String, Arc<Semaphore>>>);

/// Permit to read a log.
#[derive(Debug)]
pub(crate) struct ReadPermit {
    _permit: OwnedSemaphorePermit,
}

impl LogReads {
    /// Waits for a permit of the caller's token.
    ///
    /// # Errors
    /// Returns 429 if the token reads [`MAX_READS`] logs for [`MAX_WAIT`].
    pub(crate) async fn acquire(&self, caller: &Caller) -> Result<ReadPermit, ApiError> {
        let reads = self.of_token(&caller.token_id);
        match tokio::time::timeout(MAX_WAIT, reads.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(ReadPermit { _permit: permit }),
            _ => Err(
                ApiError::too_many(format!("this token already reads {MAX_READS} logs"), 1)
                    .help("read fewer logs at once, or use several tokens"),
            ),
        }
    }

    /// Returns the number of reads at this moment.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let by_token = self.0.lock().unwrap();
        let reads = by_token.values();
        reads
            .map(|reads| MAX_READS - reads.available_permits())
            .sum()
    }

    fn of_token(&self, token: &str) -> Arc<Semaphore> {
        let mut by_token = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A permit and a waiting request each own their semaphore.
        by_token.retain(|_, reads| Arc::strong_count(reads) > 1);
        by_token
            .entry(token.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_READS)))
            .clone()
    }
}

impl ReadPermit {
    /// Releases the permit when the response was sent or its connection ended.
    pub(crate) fn keep_until_sent(self, response: Response) -> Response {
        response.map(|body| {
            let chunks = body.into_data_stream().map(move |chunk| {
                let _kept = &self;
                chunk
            });
            Body::from_stream(chunks)
        })
    }
}

#[cfg(test)]
mod tests {
    use acrtask_model::Principal;
    use axum::http::StatusCode;

    use super::*;
    use crate::auth::TaskLimit;

    fn caller(token: &str) -> Caller {
        Caller {
            token_id: token.into(),
            name: token.into(),
            principal: Principal::Token { id: token.into() },
            scopes: Vec::new(),
            tasks: None,
            limit: TaskLimit::All,
            pools: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn token_has_few_reads_until_its_responses_are_sent() {
        let reads = LogReads::default();
        let (one, other) = (caller("one"), caller("other"));
        let mut responses = Vec::new();
        for _ in 0..MAX_READS {
            let permit = reads.acquire(&one).await.unwrap();
            responses.push(permit.keep_until_sent(Response::new(Body::from("text"))));
        }
        let error = reads.acquire(&one).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(reads.acquire(&other).await.is_ok());
        // One connection ends, and one response is sent.
        responses.pop();
        let sent = responses.pop().unwrap().into_body();
        let text = axum::body::to_bytes(sent, 100).await.unwrap();
        assert_eq!(&*text, b"text");
        assert_eq!(reads.count(), MAX_READS - 2);
        assert!(reads.acquire(&one).await.is_ok());
    }
}
