//! Sender of one log on one stream: its bytes as they appear, and then the final message.

use std::{sync::Arc, time::Duration};

use acrtask_proto::{MAX_CHUNK, runner::FromRunner};
use tokio::{sync::mpsc, time::Instant};

use crate::{clock, log_window::Next, spool::RunLog};

/// Minimum interval between small chunks. The first chunk after a pause is sent at once.
const MIN_SEND_INTERVAL: Duration = Duration::from_millis(20);
/// Interval between checks for lost chunks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Sends the log until its stream has been replaced.
pub(crate) async fn pump(log: Arc<RunLog>, stream: u64, out: mpsc::Sender<FromRunner>) {
    let mut quiet_until = Instant::now();
    loop {
        let mut changed = std::pin::pin!(log.changed());
        // No change after this line is missed.
        changed.as_mut().enable();
        match log.next(stream) {
            Next::Stale => return,
            Next::Chunk { length, .. } if length < MAX_CHUNK && Instant::now() < quiet_until => {
                tokio::time::sleep_until(quiet_until).await;
            }
            Next::Chunk { offset, length } => {
                let message = match log.chunk(offset, length).await {
                    Ok(message) => message,
                    Err(error) => {
                        // A run cannot finish without its log. Its lease is kept, so that a user
                        // notices.
                        tracing::error!(%error, "cannot read a run's log; trying again");
                        tokio::time::sleep(CHECK_INTERVAL).await;
                        continue;
                    }
                };
                // The permit comes first: bytes count as sent only if they are.
                let Ok(permit) = out.reserve().await else {
                    return;
                };
                log.mark_sent(stream, offset, length, clock::now());
                permit.send(message);
                quiet_until = Instant::now() + MIN_SEND_INTERVAL;
            }
            Next::Finish => {
                let Ok(permit) = out.reserve().await else {
                    return;
                };
                if let Some(message) = log.finish(stream) {
                    permit.send(message);
                }
            }
            Next::Wait => {
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(CHECK_INTERVAL) => log.resend_lost(clock::now()),
                }
            }
        }
    }
}
