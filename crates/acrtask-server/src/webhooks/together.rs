//! Deliveries that come at the same time are stored in one transaction: a disk answers for a few hundred writes a second,
//! and a forge may send more.
//!
//! Invariants: nothing waits for others to come; who finds the database free takes all that wait. A batch that fails is
//! tried one by one, so that one delivery at fault hurts no other. Who waits for an answer may go away: what was begun is
//! finished. Others are told of a whole batch at once, and nobody waits for that.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{Delivered, Hint, Looked, NewDelivery, StoreError};
use tokio::{sync::oneshot, time::Instant};

use crate::App;

/// Deliveries of one transaction.
const BATCH: usize = 64;
/// How long a transaction is tried again that another one was in the way of.
const TRIES: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Waiting {
    delivery: NewDelivery,
    looked: Vec<Looked>,
    answer: oneshot::Sender<Result<Delivered, StoreError>>,
}

/// Deliveries that wait to be stored.
#[derive(Debug, Default)]
pub struct Together {
    waiting: Mutex<Vec<Waiting>>,
    writing: tokio::sync::Mutex<()>,
}

impl Together {
    /// Stores a delivery with all that it leads to.
    pub(super) async fn store(
        &self,
        app: &Arc<App>,
        delivery: NewDelivery,
        looked: Vec<Looked>,
    ) -> Result<Delivered, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.lock().push(Waiting {
            delivery,
            looked,
            answer,
        });
        let writer = app.clone();
        tokio::spawn(async move { writer.deliveries.write(&writer).await });
        answered.await.unwrap_or_else(|_| {
            Err(StoreError::Conflict {
                what: "the server was stopped before the delivery was stored".into(),
            })
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores what waits, where nobody else has done so meanwhile.
    async fn write(&self, app: &Arc<App>) {
        let _one = self.writing.lock().await;
        loop {
            let batch: Vec<Waiting> = {
                let mut waiting = self.lock();
                let count = waiting.len().min(BATCH);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            let (work, answers): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|one| ((one.delivery, one.looked), one.answer))
                .unzip();
            match attempt(app, &work).await {
                Ok(delivered) => {
                    wake(app, &delivered);
                    for (answer, delivered) in answers.into_iter().zip(delivered) {
                        let _ = answer.send(Ok(delivered));
                    }
                }
                Err(error) if work.len() > 1 => {
                    tracing::warn!(%error, deliveries = work.len(), "deliveries are stored one by one");
                    for (answer, one) in answers.into_iter().zip(work) {
                        let delivered = attempt(app, &[one]).await;
                        if let Ok(delivered) = &delivered {
                            wake(app, delivered);
                        }
                        let _ = answer.send(delivered.and_then(|mut all| {
                            all.pop().ok_or_else(|| StoreError::NotFound {
                                what: "delivery that was just stored".into(),
                            })
                        }));
                    }
                }
                Err(error) => {
                    if let Some(answer) = answers.into_iter().next() {
                        let _ = answer.send(Err(error));
                    }
                }
            }
        }
    }
}

/// Wakes whom it concerns; nothing depends on it.
fn wake(app: &Arc<App>, delivered: &[Delivered]) {
    let mut hints = Vec::new();
    let mut started = false;
    let mut ended: Vec<&RunId> = Vec::new();
    for one in delivered {
        if let Delivered::New { outcomes, canceled } = one {
            started |= outcomes.iter().any(|outcome| outcome.run.is_some());
            ended.extend(canceled);
        }
    }
    if started {
        app.wake.notify_one();
        hints.push(Hint::Enqueued);
    }
    if !ended.is_empty() {
        app.cancels.notify_one();
    }
    for run in ended {
        app.logs.wake(run);
        hints.push(Hint::Cancel(run.clone()));
    }
    if hints.is_empty() {
        return;
    }
    let app = app.clone();
    tokio::spawn(async move {
        if let Err(error) = app.store.hint(&hints).await {
            tracing::debug!(%error, "a hint could not be sent");
        }
    });
}

async fn attempt(
    app: &App,
    work: &[(NewDelivery, Vec<Looked>)],
) -> Result<Vec<Delivered>, StoreError> {
    let begun = Instant::now();
    loop {
        let now = app.clock.now_ms();
        match app.store.deliver_many(work.to_vec(), now).await {
            // Nothing was written: another transaction was in the way, or the database is away.
            Err(error) if error.is_unavailable() && begun.elapsed() < TRIES => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            delivered => return delivered,
        }
    }
}
