//! The time limit of one attempt.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Attempt;

/// Time that an attempt has to stop its containers after its timeout or a stop request. After it,
/// the attempt is abandoned.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Runs `attempt` with a time limit. The attempt must end soon after its token is cancelled.
/// `parent` is the token of the step. The token and not a drop ends the attempt, so that it can
/// stop its containers.
pub(crate) async fn run_with_timeout<F>(
    limit: Option<Duration>,
    parent: &CancellationToken,
    attempt: impl FnOnce(CancellationToken) -> F,
) -> Attempt
where
    F: Future<Output = Attempt>,
{
    let token = parent.child_token();
    let mut running = std::pin::pin!(attempt(token.clone()));
    let timeout = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = &mut running => return ended,
        () = timeout => token.cancel(),
        () = parent.cancelled() => {}
    }
    match tokio::time::timeout(STOP_LIMIT, running).await {
        Ok(Attempt::Succeeded) => return Attempt::Succeeded,
        Ok(_) => {}
        Err(_) => tracing::warn!(
            limit_secs = STOP_LIMIT.as_secs(),
            "abandoned an attempt that did not stop in time"
        ),
    }
    if parent.is_cancelled() {
        return Attempt::Stopped;
    }
    Attempt::TimedOut {
        after_secs: limit.unwrap_or_default().as_secs(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn end_on_cancel(token: CancellationToken) -> Attempt {
        token.cancelled().await;
        Attempt::Stopped
    }

    #[tokio::test(start_paused = true)]
    async fn timeout_stops_an_attempt() {
        let parent = CancellationToken::new();
        let limit = Some(Duration::from_secs(7));
        let ended = run_with_timeout(limit, &parent, end_on_cancel).await;
        assert_eq!(ended, Attempt::TimedOut { after_secs: 7 });
        assert!(!parent.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn stop_of_the_step_is_not_a_timeout() {
        let parent = CancellationToken::new();
        parent.cancel();
        let ended = run_with_timeout(Some(Duration::from_secs(7)), &parent, end_on_cancel).await;
        assert_eq!(ended, Attempt::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_within_its_timeout_keeps_its_result() {
        let parent = CancellationToken::new();
        for limit in [None, Some(Duration::from_secs(1))] {
            let ended = run_with_timeout(limit, &parent, async |_| Attempt::Succeeded).await;
            assert_eq!(ended, Attempt::Succeeded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_that_ignores_its_timeout_is_abandoned() {
        let parent = CancellationToken::new();
        let ended = run_with_timeout(Some(Duration::from_secs(1)), &parent, |_| {
            std::future::pending()
        })
        .await;
        assert_eq!(ended, Attempt::TimedOut { after_secs: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn attempt_that_ignores_the_stop_of_its_step_is_abandoned() {
        for limit in [None, Some(Duration::from_secs(3600))] {
            let parent = CancellationToken::new();
            let began = tokio::time::Instant::now();
            let attempt = run_with_timeout(limit, &parent, |_| std::future::pending());
            let ending = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                parent.cancel();
            };
            let (ended, ()) = tokio::join!(attempt, ending);
            assert_eq!(ended, Attempt::Stopped);
            assert!(began.elapsed() < Duration::from_secs(60));
        }
    }
}
