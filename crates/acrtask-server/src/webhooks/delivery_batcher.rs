//! Storage of concurrent deliveries in one transaction.
//!
//! A disk completes a few hundred writes per second, and a forge may send more deliveries than
//! that.
//!
//! Invariants:
//! - No delivery waits for others to arrive: the task that finds the database free stores all
//!   pending deliveries.
//! - After a failed batch, each delivery is stored on its own, so that a faulty one affects no
//!   other.
//! - A caller may stop waiting: a write that has begun completes.
//! - One set of hints goes out for a whole batch, and no caller waits for it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use acrtask_model::RunId;
use acrtask_store::{Delivered, Hint, NewDelivery, StoreError, TriggerDecision};
use tokio::{sync::oneshot, time::Instant};

use crate::App;

/// Maximum number of deliveries in one transaction.
const MAX_BATCH: usize = 64;
/// Period during which a transaction is retried after a conflict with another one.
const RETRY_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Waiting {
    delivery: NewDelivery,
    decisions: Vec<TriggerDecision>,
    answer: oneshot::Sender<Result<Delivered, StoreError>>,
}

/// Queue of deliveries that are not stored yet.
#[derive(Debug, Default)]
pub struct DeliveryBatcher {
    waiting: Mutex<Vec<Waiting>>,
    writing: tokio::sync::Mutex<()>,
}

impl DeliveryBatcher {
    /// Stores a delivery and all its effects in the next batch.
    pub(super) async fn store(
        &self,
        app: &Arc<App>,
        delivery: NewDelivery,
        decisions: Vec<TriggerDecision>,
    ) -> Result<Delivered, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.lock().push(Waiting {
            delivery,
            decisions,
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

    /// Stores all pending deliveries unless another task has stored them meanwhile.
    async fn write(&self, app: &Arc<App>) {
        let _one = self.writing.lock().await;
        loop {
            let batch: Vec<Waiting> = {
                let mut waiting = self.lock();
                let count = waiting.len().min(MAX_BATCH);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                return;
            }
            let (work, answers): (Vec<_>, Vec<_>) = batch
                .into_iter()
                .map(|one| ((one.delivery, one.decisions), one.answer))
                .unzip();
            match store_batch(app, &work).await {
                Ok(delivered) => {
                    wake_dependents(app, &delivered);
                    for (answer, delivered) in answers.into_iter().zip(delivered) {
                        let _ = answer.send(Ok(delivered));
                    }
                }
                Err(error) if work.len() > 1 => {
                    tracing::warn!(%error, deliveries = work.len(), "storing the deliveries of a failed batch one by one");
                    for (answer, one) in answers.into_iter().zip(work) {
                        let delivered = store_batch(app, &[one]).await;
                        if let Ok(delivered) = &delivered {
                            wake_dependents(app, delivered);
                        }
                        let _ = answer.send(delivered.and_then(|mut all| {
                            all.pop().ok_or_else(|| StoreError::NotFound {
                                what: "stored delivery".into(),
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

/// Wakes the parts of the server that the deliveries concern. No correctness depends on it.
fn wake_dependents(app: &Arc<App>, delivered: &[Delivered]) {
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
        if let Err(error) = app.store.send_hints(&hints).await {
            tracing::debug!(%error, "cannot send a hint");
        }
    });
}

async fn store_batch(
    app: &App,
    work: &[(NewDelivery, Vec<TriggerDecision>)],
) -> Result<Vec<Delivered>, StoreError> {
    let begun = Instant::now();
    loop {
        let now = app.clock.now_ms();
        match app.store.record_deliveries(work.to_vec(), now).await {
            // No write took effect: another transaction interfered, or the database is unreachable.
            Err(error) if error.is_unavailable() && begun.elapsed() < RETRY_LIMIT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            delivered => return delivered,
        }
    }
}
