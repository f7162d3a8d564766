//! Sends one log on one stream: as it grows, and at its end that the run is over.

use std::{sync::Arc, time::Duration};

use acrtask_proto::{MAX_CHUNK, runner::FromRunner};
use tokio::{sync::mpsc, time::Instant};

use crate::{clock, spool::RunLog, window::Next};

/// Small pieces of a log are sent at most this often; the first one after a pause at once.
const GATHER: Duration = Duration::from_millis(20);
/// How often it is looked for what was lost.
const LOOK: Duration = Duration::from_secs(1);

/// Sends what `log` has until its stream is not the current one any more.
pub(crate) async fn pump(log: Arc<RunLog>, stream: u64, out: mpsc::Sender<FromRunner>) {
    let mut quiet_until = Instant::now();
    loop {
        let mut changed = std::pin::pin!(log.changed());
        // From here on no change is missed.
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
                        // Without its log a run cannot be said to be over; its lease is kept, so that a person sees it.
                        tracing::error!(%error, "a run's log cannot be read; trying again");
                        tokio::time::sleep(LOOK).await;
                        continue;
                    }
                };
                // A reservation first: the bytes count as sent only where they are.
                let Ok(place) = out.reserve().await else {
                    return;
                };
                log.sent(stream, offset, length, clock::now());
                place.send(message);
                quiet_until = Instant::now() + GATHER;
            }
            Next::Finish => {
                let Ok(place) = out.reserve().await else {
                    return;
                };
                if let Some(message) = log.finish(stream) {
                    place.send(message);
                }
            }
            Next::Wait => {
                tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep(LOOK) => log.repeat_lost(clock::now()),
                }
            }
        }
    }
}
