//! Concurrent load from two servers: superseding requests, claims, reports in any order,
//! cancellations and the reaper. No call fails, no group exceeds its limit, and finally the audit
//! finds nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use acrtask_model::RunState;
use acrtask_store::{AttemptReport, Claim, NewRun, Report, RunFilter, RunGroup, RunRow, Store};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    ACCEPT, LEASE, NOW, TestDb, finished_report, grouped, log_chunk, new_run, on_both, run_id,
};

on_both!(concurrent_load_leaves_a_consistent_state);

const RUNS: usize = 240;
const GROUPS: usize = 4;

fn random_run(number: usize, rng: &mut StdRng) -> NewRun {
    let id = format!("run-{number}");
    let group = format!("g{}", number % GROUPS);
    match rng.random_range(0..4) {
        0 => new_run(&id),
        1 => grouped(&id, &group, 2, true),
        _ => grouped(&id, &group, 2, false),
    }
}

/// Returns reports of a runner about some runs. Some are late, and some are repeated.
fn random_reports(runs: &[RunRow], rng: &mut StdRng) -> Vec<AttemptReport> {
    let mut batch = Vec::new();
    for run in runs {
        let attempt_report = |report| AttemptReport {
            run: run.id.clone(),
            attempt: run.attempt,
            runner_id: run.runner_id.clone().unwrap_or_default(),
            report,
        };
        let state = if rng.random() {
            RunState::Succeeded
        } else {
            RunState::Failed
        };
        let all = match rng.random_range(0..6) {
            0 => vec![Report::Declined {
                reason: "full".into(),
            }],
            1 => vec![],
            2 => vec![Report::Accepted, Report::Started, log_chunk(0, 5)],
            _ => vec![
                Report::Started,
                log_chunk(0, 5),
                finished_report(state, 5),
                finished_report(state, 5),
            ],
        };
        batch.extend(all.into_iter().map(attempt_report));
    }
    batch
}

async fn server(store: Store, seed: u64, clock: Arc<AtomicI64>, done: Arc<AtomicBool>) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !done.load(Ordering::SeqCst) {
        let now = clock.fetch_add(rng.random_range(0..3_000), Ordering::SeqCst);
        let requirements = store.ready_requirements().await.unwrap();
        let requirements: Vec<i64> = requirements
            .iter()
            .map(|requirement| requirement.id)
            .collect();
        let runs = store
            .claim(&requirements, 8, now, LEASE, ACCEPT, |candidates| {
                let claims = candidates.iter().map(|candidate| Claim {
                    run: candidate.id.clone(),
                    runner_id: format!("runner-{seed}"),
                });
                claims.collect()
            })
            .await
            .unwrap();
        let batch = random_reports(&runs, &mut rng);
        store.report(&batch, now, LEASE).await.unwrap();
        if rng.random_range(0..3) == 0 {
            store.expire_leases(now, 20).await.unwrap();
        }
        if rng.random_range(0..3) == 0 {
            let id = run_id(&format!("run-{}", rng.random_range(0..RUNS)));
            // The run may not exist yet.
            let _ = store.request_cancel(&id, "enough", now).await;
        }
        tokio::task::yield_now().await;
    }
}

async fn concurrent_load_leaves_a_consistent_state(db: &TestDb) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let other = Store::open(&db.url).await.unwrap();
    let clock = Arc::new(AtomicI64::new(NOW));
    let done = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = [&db.store, &other, &db.store, &other]
        .into_iter()
        .zip(0..)
        .map(|(store, number)| {
            tokio::spawn(server(
                store.clone(),
                seed ^ number,
                clock.clone(),
                done.clone(),
            ))
        })
        .collect();
    let askers: Vec<_> = [&db.store, &other]
        .into_iter()
        .enumerate()
        .map(|(number, store)| {
            let (store, clock) = (store.clone(), clock.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed ^ (100 + number as u64));
                let mut left: Vec<usize> = (0..RUNS).filter(|run| run % 2 == number).collect();
                while !left.is_empty() {
                    let size = rng.random_range(1..5).min(left.len());
                    let batch = left
                        .drain(..size)
                        .map(|run| random_run(run, &mut rng))
                        .collect();
                    let now = clock.load(Ordering::SeqCst);
                    store.enqueue_many(batch, now).await.unwrap();
                }
            })
        })
        .collect();
    for asker in askers {
        asker.await.unwrap();
    }
    let mut left = usize::MAX;
    for _ in 0..2_000 {
        let (live, _) = db
            .store
            .runs(RunFilter {
                states: vec![RunState::Queued, RunState::Leased, RunState::Running],
                limit: 1_000,
                ..RunFilter::default()
            })
            .await
            .unwrap();
        for group in 0..GROUPS {
            let name = format!("g{group}");
            let busy = live.iter().filter(|run| {
                run.group == Some(RunGroup::Named(name.clone()))
                    && matches!(run.state, RunState::Leased | RunState::Running)
            });
            assert!(busy.count() <= 2, "{name} runs more than two");
        }
        left = live.len();
        if left == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    done.store(true, Ordering::SeqCst);
    for server in servers {
        server.await.unwrap();
    }
    assert_eq!(left, 0, "some runs have not finished");
    let now = clock.load(Ordering::SeqCst);
    assert_eq!(db.store.unaccounted_triggers(now, 0).await.unwrap(), []);
    assert_eq!(db.store.release_blocked_runs(now).await.unwrap(), 0);
    let (all, _) = db
        .store
        .runs(RunFilter {
            limit: 1_000,
            ..RunFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(all.len(), RUNS);
    for run in all {
        assert!(run.finished_at.is_some() && run.state.is_final(), "{run:?}");
        let attempts = db.store.attempts(&run.id).await.unwrap();
        assert_eq!(attempts.len(), run.attempt as usize);
        assert!(attempts.iter().all(|attempt| attempt.ended_at.is_some()));
    }
}
