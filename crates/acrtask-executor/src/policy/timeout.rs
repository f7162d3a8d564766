//! The limit of one attempt.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Attempt;

/// Time that an attempt has to stop what it runs once its limit is over or its step is to end, before it is given up.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Runs `attempt`, which must end soon after its token is cancelled; `parent` is the step's own. An attempt is
/// told to end by its token and not dropped, so that it can stop its containers.
pub(crate) async fn limited<F>(
    limit: Option<Duration>,
    parent: &CancellationToken,
    attempt: impl FnOnce(CancellationToken) -> F,
) -> Attempt
where
    F: Future<Output = Attempt>,
{
    let token = parent.child_token();
    let mut running = std::pin::pin!(attempt(token.clone()));
    let over = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = &mut running => return ended,
        () = over => token.cancel(),
        () = parent.cancelled() => {}
    }
    match tokio::time::timeout(STOP_LIMIT, running).await {
        Ok(Attempt::Succeeded) => return Attempt::Succeeded,
        Ok(_) => {}
        Err(_) => tracing::warn!("an attempt did not end {STOP_LIMIT:?} after its limit"),
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

    async fn obedient(token: CancellationToken) -> Attempt {
        token.cancelled().await;
        Attempt::Stopped
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_stops_an_attempt() {
        let parent = CancellationToken::new();
        let limit = Some(Duration::from_secs(7));
        let ended = limited(limit, &parent, obedient).await;
        assert_eq!(ended, Attempt::TimedOut { after_secs: 7 });
        assert!(!parent.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_step_is_no_timeout() {
        let parent = CancellationToken::new();
        parent.cancel();
        let ended = limited(Some(Duration::from_secs(7)), &parent, obedient).await;
        assert_eq!(ended, Attempt::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_ends_in_time_is_left_alone() {
        let parent = CancellationToken::new();
        for limit in [None, Some(Duration::from_secs(1))] {
            let ended = limited(limit, &parent, async |_| Attempt::Succeeded).await;
            assert_eq!(ended, Attempt::Succeeded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_does_not_end_is_given_up() {
        let parent = CancellationToken::new();
        let ended = limited(Some(Duration::from_secs(1)), &parent, |_| {
            std::future::pending()
        })
        .await;
        assert_eq!(ended, Attempt::TimedOut { after_secs: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn nor_is_one_waited_for_whose_step_is_to_end() {
        for limit in [None, Some(Duration::from_secs(3600))] {
            let parent = CancellationToken::new();
            let began = tokio::time::Instant::now();
            let attempt = limited(limit, &parent, |_| std::future::pending());
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
