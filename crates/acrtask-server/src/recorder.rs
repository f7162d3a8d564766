//! Recorder of the reports of runners: one writer, one transaction for all reports that are
//! waiting.
//!
//! Connections put reports into a bounded queue and wait for the verdict.
//!
//! Invariants:
//!
//! - A verdict follows the commit.
//! - Reports of one connection are recorded in the order of their arrival.
//! - While the database is unavailable, nothing is lost and nothing acknowledged. The queue fills
//!   up, connections stop reading, and runners keep their reports.
//! - A report that the database rejects permanently gets no verdict. It does not delay other
//!   reports.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use acrtask_model::{RunId, RunState};
use acrtask_store::{AttemptReport, Hint, Report, StoreError, Verdict};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::{App, hints::Outbox};

/// Maximum number of reports that wait for the writer.
const QUEUE_LENGTH: usize = 4096;
/// Maximum number of reports in one transaction.
const BATCH: usize = 512;
/// Time after which a slow database counts as unavailable.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Delays between attempts while the database is unavailable.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Future verdict. It fails if the report cannot be recorded.
pub(crate) type Ack = oneshot::Receiver<Verdict>;

#[derive(Debug)]
struct Entry {
    reported: AttemptReport,
    verdict: oneshot::Sender<Verdict>,
}

/// Sender of reports to the writer.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Entry>,
    stalled: Arc<AtomicBool>,
}

/// Writer of reports to the database.
#[derive(Debug)]
pub(crate) struct Writer {
    /// The lock lets a restarted writer continue with the queue.
    queue: Mutex<mpsc::Receiver<Entry>>,
    stalled: Arc<AtomicBool>,
    outbox: Outbox,
}

/// Creates the two ends of a queue of reports.
pub(crate) fn create_recorder(outbox: Outbox) -> (Recorder, Writer) {
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
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
    /// Queues a report. Waits while the queue is full.
    pub(crate) async fn submit(
        &self,
        runner_id: &str,
        run: &RunId,
        attempt: u32,
        report: Report,
    ) -> Ack {
        let (verdict, ack) = oneshot::channel();
        let reported = AttemptReport {
            run: run.clone(),
            attempt,
            runner_id: runner_id.to_owned(),
            report,
        };
        // If the writer has stopped, the sender is dropped, which the receiver reports.
        let _ = self.queue.send(Entry { reported, verdict }).await;
        ack
    }

    /// Returns `true` if the database is unavailable, so that runners cannot renew their leases.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Records reports until every [`Recorder`] is dropped.
    pub(crate) async fn run(&self, app: &App) {
        let mut queue = self.queue.lock().await;
        let mut batch = Vec::new();
        while queue.recv_many(&mut batch, BATCH).await > 0 {
            self.write_batch(app, std::mem::take(&mut batch)).await;
        }
    }

    async fn write_batch(&self, app: &App, batch: Vec<Entry>) {
        let (reports, waiting): (Vec<AttemptReport>, Vec<_>) = batch
            .into_iter()
            .map(|entry| (entry.reported, entry.verdict))
            .unzip();
        let verdicts = match self.store_reports(app, &reports).await {
            Ok(verdicts) => verdicts.into_iter().map(Some).collect(),
            // If one report is invalid, each one is recorded in its own transaction.
            Err(error) if reports.len() > 1 => {
                tracing::warn!(%error, reports = reports.len(), "recording reports one by one");
                let mut verdicts = Vec::with_capacity(reports.len());
                for report in &reports {
                    verdicts.push(self.write_one(app, report).await);
                }
                verdicts
            }
            Err(error) => {
                log_rejection(&reports[0], &error);
                vec![None]
            }
        };
        for ((reported, sender), verdict) in reports.iter().zip(waiting).zip(verdicts) {
            let Some(verdict) = verdict else { continue };
            after_commit(app, &self.outbox, reported, &verdict);
            let _ = sender.send(verdict);
        }
    }

    async fn write_one(&self, app: &App, reported: &AttemptReport) -> Option<Verdict> {
        match self
            .store_reports(app, std::slice::from_ref(reported))
            .await
        {
            Ok(verdicts) => verdicts.into_iter().next(),
            Err(error) => {
                log_rejection(reported, &error);
                None
            }
        }
    }

    /// Records a batch. Retries while the database is unavailable.
    async fn store_reports(
        &self,
        app: &App,
        reports: &[AttemptReport],
    ) -> Result<Vec<Verdict>, StoreError> {
        let lease = as_millis(app.config.lease);
        let mut tries = 0;
        loop {
            let now = app.clock.now_ms();
            let mut written = std::pin::pin!(app.store.report(reports, now, lease));
            let result = tokio::select! {
                result = written.as_mut() => result,
                () = tokio::time::sleep(SLOW_AFTER) => {
                    self.mark_stalled("no response yet");
                    written.await
                }
            };
            match result {
                Err(error) if error.is_unavailable() => {
                    self.mark_stalled(&acrtask_model::error_chain(&error));
                    tokio::time::sleep(RETRY_DELAYS[tries.min(RETRY_DELAYS.len() - 1)]).await;
                    tries += 1;
                }
                result => {
                    if self.stalled.swap(false, Ordering::Relaxed) {
                        tracing::info!("the database accepts reports again");
                    }
                    return result;
                }
            }
        }
    }
}

impl Writer {
    fn mark_stalled(&self, why: &str) {
        if !self.stalled.swap(true, Ordering::Relaxed) {
            tracing::error!(error = why, "reports wait for the database");
        }
    }
}

fn log_rejection(reported: &AttemptReport, error: &StoreError) {
    tracing::error!(
        run = %reported.run,
        attempt = reported.attempt,
        runner = reported.runner_id,
        error = acrtask_model::error_chain(error),
        "failed to record a report"
    );
}

/// Applies a verdict to the state in memory.
fn after_commit(app: &App, outbox: &Outbox, reported: &AttemptReport, verdict: &Verdict) {
    let AttemptReport {
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
            tracing::info!(%run, attempt, runner = runner_id, reason, "rejected a report");
        }
        (_, Verdict::LogAt(_)) => {}
        (_, Verdict::LogFull(exceeded)) => {
            tracing::info!(%run, attempt, runner = runner_id, %exceeded, "log reached a quota");
        }
        (Report::LogFull { reason, .. }, Verdict::Done) => {
            if app.hub.release(runner_id, run, *attempt).is_some() {
                app.metrics.count_finished_run(RunState::Error);
            }
            tracing::info!(%run, attempt, runner = runner_id, reason, "ended a run because of its log");
            app.cascades.wake();
            app.wake.notify_one();
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
            outbox.add(Hint::Enqueued);
        }
        // This happens here and not where the verdict is sent, because the next report may end the
        // run.
        (Report::Renewed, Verdict::Done) => app.hub.add_lease(runner_id, run, *attempt),
        (Report::Accepted, Verdict::Done) => app.hub.mark_accepted(runner_id, run, *attempt),
        (Report::Started, Verdict::Done) => {
            let now = app.clock.now_ms();
            let before = app.hub.mark_started(runner_id, run, *attempt, now);
            if let Some(created_at) = before.and_then(|lease| lease.created_at) {
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
            tracing::info!(%run, attempt, runner = runner_id, reason, "runner returned a lease");
        }
        (Report::LogChunk { length, .. }, Verdict::Done) => {
            app.metrics.log_bytes.inc_by(u64::from(*length));
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
        }
        (Report::Finished { state, result, .. }, Verdict::Done) => {
            // A repeated report finds no lease to release and is not counted again.
            if let Some(lease) = app.hub.release(runner_id, run, *attempt) {
                app.metrics.count_finished_run(*state);
                app.metrics.vertices.inc_by(result.vertices);
                app.metrics.cached_vertices.inc_by(result.cached_vertices);
                if let Some(started_at) = lease.started_at {
                    let now = app.clock.now_ms();
                    app.metrics
                        .run_seconds
                        .observe(seconds(now.saturating_sub(started_at)));
                }
                tracing::info!(%run, attempt, runner = runner_id, %state, "run finished");
            }
            if result.images.is_empty() {
                app.cascades.wake();
            } else {
                app.poller.images.notify_one();
                app.cascades.mark_facts_changed();
            }
            app.wake.notify_one();
            app.logs.wake(run);
            outbox.add(Hint::Log(run.clone()));
            outbox.add(Hint::Enqueued);
        }
    }
}

/// Converts a duration to milliseconds, the unit of the store.
pub(crate) fn as_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a histogram's precision")]
fn seconds(ms: i64) -> f64 {
    ms.max(0) as f64 / 1000.0
}
