//! Everything at once, from two servers: requests that supersede each other, claims, reports in any order, cancels, the
//! reaper. Nothing fails, no group ever runs more than it may, and in the end all is accounted for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use acrtask_model::RunState;
use acrtask_store::{Claim, NewRun, Report, Reported, RunFilter, RunGroup, RunRow, Store};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::support::{
    ACCEPT, Fixture, LEASE, NOW, chunk, finished, grouped, new_run, on_both, run_id,
};

on_both!(a_storm_leaves_nothing_behind);

const RUNS: usize = 240;
const GROUPS: usize = 4;

fn new(number: usize, rng: &mut StdRng) -> NewRun {
    let id = format!("run-{number}");
    let group = format!("g{}", number % GROUPS);
    match rng.random_range(0..4) {
        0 => new_run(&id),
        1 => grouped(&id, &group, 2, true),
        _ => grouped(&id, &group, 2, false),
    }
}

/// What a runner says of some runs: some of it late, some twice.
fn words(runs: &[RunRow], rng: &mut StdRng) -> Vec<Reported> {
    let mut batch = Vec::new();
    for run in runs {
        let said = |report| Reported {
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
            2 => vec![Report::Accepted, Report::Started, chunk(0, 5)],
            _ => vec![
                Report::Started,
                chunk(0, 5),
                finished(state, 5),
                finished(state, 5),
            ],
        };
        batch.extend(all.into_iter().map(said));
    }
    batch
}

async fn server(store: Store, seed: u64, clock: Arc<AtomicI64>, over: Arc<AtomicBool>) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !over.load(Ordering::SeqCst) {
        let now = clock.fetch_add(rng.random_range(0..3_000), Ordering::SeqCst);
        let classes = store.ready_classes().await.unwrap();
        let classes: Vec<i64> = classes.iter().map(|class| class.id).collect();
        let runs = store
            .claim(&classes, 8, now, LEASE, ACCEPT, |candidates| {
                let claims = candidates.iter().map(|candidate| Claim {
                    run: candidate.id.clone(),
                    runner_id: format!("runner-{seed}"),
                });
                claims.collect()
            })
            .await
            .unwrap();
        let batch = words(&runs, &mut rng);
        store.report(&batch, now, LEASE).await.unwrap();
        if rng.random_range(0..3) == 0 {
            store.reap(now, 20).await.unwrap();
        }
        if rng.random_range(0..3) == 0 {
            let id = run_id(&format!("run-{}", rng.random_range(0..RUNS)));
            // Not every run has been asked for yet.
            let _ = store.request_cancel(&id, "enough", now).await;
        }
        tokio::task::yield_now().await;
    }
}

async fn a_storm_leaves_nothing_behind(fixture: &Fixture) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let other = Store::open(&fixture.url).await.unwrap();
    let clock = Arc::new(AtomicI64::new(NOW));
    let over = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = [&fixture.store, &other, &fixture.store, &other]
        .into_iter()
        .zip(0..)
        .map(|(store, number)| {
            tokio::spawn(server(
                store.clone(),
                seed ^ number,
                clock.clone(),
                over.clone(),
            ))
        })
        .collect();
    let askers: Vec<_> = [&fixture.store, &other]
        .into_iter()
        .enumerate()
        .map(|(number, store)| {
            let (store, clock) = (store.clone(), clock.clone());
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed ^ (100 + number as u64));
                let mut left: Vec<usize> = (0..RUNS).filter(|run| run % 2 == number).collect();
                while !left.is_empty() {
                    let size = rng.random_range(1..5).min(left.len());
                    let batch = left.drain(..size).map(|run| new(run, &mut rng)).collect();
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
        let (live, _) = fixture
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
    over.store(true, Ordering::SeqCst);
    for server in servers {
        server.await.unwrap();
    }
    assert_eq!(left, 0, "runs are left over");
    let now = clock.load(Ordering::SeqCst);
    assert_eq!(fixture.store.unaccounted(now, 0).await.unwrap(), []);
    assert_eq!(fixture.store.release_groups(now).await.unwrap(), 0);
    let (all, _) = fixture
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
        let attempts = fixture.store.attempts(&run.id).await.unwrap();
        assert_eq!(attempts.len(), run.attempt as usize);
        assert!(attempts.iter().all(|attempt| attempt.ended_at.is_some()));
    }
}
