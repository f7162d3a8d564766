//! Writes down what runners say: one writer, one transaction for all that has come in meanwhile.
//!
//! Connections put reports into a bounded queue and wait for the verdict. Invariants: a verdict is given after the commit;
//! reports of one connection are written in the order in which they came; while the database is away nothing is lost
//! and nothing acknowledged: the queue fills up, connections stop reading, runners keep what they have to say. A report
//! that the database refuses for good gets no verdict; it does not hold up the others.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use acrtask_model::{RunId, RunState};
use acrtask_store::{Hint, Report, Reported, StoreError, Verdict};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{App, hints::Outbox};

/// Reports that wait for the writer.
const QUEUE: usize = 4096;
/// Reports of one transaction.
const BATCH: usize = 512;
/// A database that takes longer counts as away.
const SLOW: Duration = Duration::from_secs(1);
/// Pauses while the database is away.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// A verdict that is to come; nothing comes where the report cannot be written.
pub(crate) type Receipt = oneshot::Receiver<Verdict>;

#[derive(Debug)]
struct Entry {
    reported: Reported,
    verdict: oneshot::Sender<Verdict>,
}

/// Takes reports.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
    stalled: Arc<AtomicBool>,
}

/// Writes reports down.
#[derive(Debug)]
pub(crate) struct Writer {
    /// Behind a lock so that a writer that was started again goes on with it.
    queue: Mutex<mpsc::Receiver<Entry>>,
    stalled: Arc<AtomicBool>,
    outbox: Outbox,
}

/// The two ends of a queue of reports.
pub(crate) fn recorder(outbox: Outbox) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let stalled = Arc::new(AtomicBool::new(false));
    let recorder = Recorder {
        queue: sender,
        stalled: stalled.clone(),
    };
    let writer = Writer {
        queue: Mutex::new(receiver),
        stalled,
        outbox,
    };
    (recorder, writer)
}

impl Recorder {
    /// Hands a report over, as soon as there is room.
    pub(crate) async fn submit(
        &self,
        runner_id: &str,
        run: &RunId,
        attempt: u32,
        report: Report,
    ) -> Receipt {
        let (verdict, receipt) = oneshot::channel();
        let reported = Reported {
            run: run.clone(),
            attempt,
            runner_id: runner_id.to_owned(),
            report,
        };
        // Where the writer is gone the verdict never comes, which the receipt tells.
        let _ = self.queue.send(Entry { reported, verdict }).await;
        receipt
    }

    /// The database is away: runners are not at fault for being silent.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes until every [`Recorder`] is gone.
    pub(crate) async fn run(&self, app: &App) {
        let mut queue = self.queue.lock().await;
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            self.write(app, std::mem::take(&mut batch)).await;
        }
    }

    async fn write(&self, app: &App, batch: Vec<Entry>) {
        let (reports, waiting): (Vec<Reported>, Vec<_>) = batch
            .into_iter()
            .map(|entry| (entry.reported, entry.verdict))
            .unzip();
        let verdicts = match self.report(app, &reports).await {
            Ok(verdicts) => verdicts.into_iter().map(Some).collect(),
            // One of them is at fault: each for itself.
            Err(error) if reports.len() > 1 => {
                tracing::warn!(%error, reports = reports.len(), "reports are written one by one");
                let mut verdicts = Vec::with_capacity(reports.len());
                for report in &reports {
                    verdicts.push(self.alone(app, report).await);
                }
                verdicts
            }
            Err(error) => {
                refuse(&reports[0], &error);
                vec![None]
            }
        };
        for ((reported, sender), verdict) in reports.iter().zip(waiting).zip(verdicts) {
            let Some(verdict) = verdict else { continue };
            settle(app, &self.outbox, reported, &verdict);
            let _ = sender.send(verdict);
        }
    }

    async fn alone(&self, app: &App, reported: &Reported) -> Option<Verdict> {
        match self.report(app, std::slice::from_ref(reported)).await {
            Ok(verdicts) => verdicts.into_iter().next(),
            Err(error) => {
                refuse(reported, &error);
                None
            }
        }
    }

    /// Writes a batch, however long the database is away.
    async fn report(&self, app: &App, reports: &[Reported]) -> Result<Vec<Verdict>, StoreError> {
        let lease = millis(app.config.lease);
        let mut tries = 0;
        loop {
            let now = app.clock.now_ms();
            let mut written = std::pin::pin!(app.store.report(reports, now, lease));
            let result = tokio::select! {
                result = written.as_mut() => result,
                () = tokio::time::sleep(SLOW) => {
                    self.stall("it has not answered yet");
                    written.await
                }
            };
            match result {
                Err(error) if error.is_unavailable() => {
                    self.stall(&acrtask_model::chain(&error));
                    tokio::time::sleep(PAUSES[tries.min(PAUSES.len() - 1)]).await;
                    tries += 1;
                }
                result => {
                    if self.stalled.swap(false, Ordering::Relaxed) {
                        tracing::info!("the database takes reports of runners again");
                    }
                    return result;
                }
            }
        }
    }
}

impl Writer {
    fn stall(&self, why: &str) {
        if !self.stalled.swap(true, Ordering::Relaxed) {
            tracing::error!(error = why, "reports of runners wait for the database");
        }
    }
}

fn refuse(reported: &Reported, error: &StoreError) {
    tracing::error!(
        run = %reported.run,
        attempt = reported.attempt,
        runner = reported.runner_id,
        error = acrtask_model::chain(error),
        "a report cannot be written"
    );
}

/// What a verdict means for what is in memory.
fn settle(app: &App, outbox: &Outbox, reported: &Reported, verdict: &Verdict) {
    let Reported {
        run,
        attempt,
        runner_id,
        report,
    } = reported;
    match (report, verdict) {
        (_, Verdict::Refused { reason }) => {
            app.metrics.refused.inc();
            app.hub.release(runner_id, run, *attempt);
            app.wake.notify_one();
            tracing::info!(%run, attempt, runner = runner_id, reason, "a report was refused");
        }
        (_, Verdict::LogAt(_)) => {}
        (_, Verdict::LogFull(exceeded)) => {
            tracing::info!(%run, attempt, runner = runner_id, %exceeded, "a log has reached a quota");
        }
        (Report::LogFull { reason, .. }, Verdict::Done) => {
            if app.hub.release(runner_id, run, *attempt).is_some() {
                app.metrics.run_finished(RunState::Error);
            }
            tracing::info!(%run, attempt, runner = runner_id, reason, "a run ended because of its log");
            app.cascades.wake();
            app.wake.notify_one();
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
            outbox.add(Hint::Enqueued);
        }
        // Here and not where the answer is sent: a report that ends the run may be the next one.
        (Report::Renewed, Verdict::Done) => app.hub.learn(runner_id, run, *attempt),
        (Report::Accepted, Verdict::Done) => app.hub.accepted(runner_id, run, *attempt),
        (Report::Started, Verdict::Done) => {
            let now = app.clock.now_ms();
            let before = app.hub.started(runner_id, run, *attempt, now);
            if let Some(created_at) = before.and_then(|hold| hold.created_at) {
                app.metrics
                    .wait_seconds
                    .observe(seconds(now.saturating_sub(created_at)));
            }
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
        }
        (Report::Declined { reason }, Verdict::Done) => {
            app.hub.release(runner_id, run, *attempt);
            app.metrics.leases_returned.inc();
            app.wake.notify_one();
            outbox.add(Hint::Enqueued);
            tracing::info!(%run, attempt, runner = runner_id, reason, "a lease was given back");
        }
        (Report::LogChunk { length, .. }, Verdict::Done) => {
            app.metrics.log_bytes.inc_by(u64::from(*length));
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
        }
        (Report::Finished { state, result, .. }, Verdict::Done) => {
            // A repeat finds nothing to release, and is not counted again.
            if let Some(hold) = app.hub.release(runner_id, run, *attempt) {
                app.metrics.run_finished(*state);
                app.metrics.vertices.inc_by(result.vertices);
                app.metrics.cached_vertices.inc_by(result.cached_vertices);
                if let Some(started_at) = hold.started_at {
                    let now = app.clock.now_ms();
                    app.metrics
                        .run_seconds
                        .observe(seconds(now.saturating_sub(started_at)));
                }
                tracing::info!(%run, attempt, runner = runner_id, %state, "a run is over");
            }
            if result.images.is_empty() {
                app.cascades.wake();
            } else {
                app.watcher.images.notify_one();
                app.cascades.facts();
            }
            app.wake.notify_one();
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
            outbox.add(Hint::Enqueued);
        }
    }
}

/// A duration as the store has it.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a histogram's precision")]
fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1000.0
}
