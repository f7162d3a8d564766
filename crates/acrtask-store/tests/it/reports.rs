//! Reports of runners, and the reaper.

use acrtask_model::RunState;
use acrtask_store::{AttemptReport, Report, StoreError, Verdict};

use crate::support::{
    ACCEPT, LEASE, NOW, TestDb, finished_report, log_chunk, new_run, on_both, run_id, run_ids,
};

on_both!(
    run_passes_from_lease_to_end,
    batch_of_reports_is_applied_in_order,
    stale_attempt_is_refused_in_every_state,
    report_of_another_runner_is_refused,
    declined_run_is_ready_again,
    lost_run_is_retried_until_attempts_are_used_up,
    cancel_works_in_every_state,
    reaper_and_finish_never_both_win,
    reaper_skips_unreadable_runs,
    reaper_ends_at_most_its_limit,
    run_past_its_timeout_is_ended,
    audit_finds_lost_triggers,
);

async fn run_passes_from_lease_to_end(db: &TestDb) {
    db.register_runner("a", "first").await;
    let mut new = new_run("one");
    new.timeout_secs = Some(600);
    db.store.enqueue(new, NOW).await.unwrap();
    let run = db.claim("a", 1, NOW).await.remove(0);
    let at = |ms| NOW + ms;
    assert_eq!(
        db.report("a", &run, at(1), Report::Accepted).await,
        Verdict::Done
    );
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.deadline),
        (RunState::Leased, Some(NOW + LEASE))
    );
    assert_eq!(
        db.report("a", &run, at(2), Report::Started).await,
        Verdict::Done
    );
    assert_eq!(
        db.report("a", &run, at(10_000), Report::Renewed).await,
        Verdict::Done
    );
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.started_at, row.deadline),
        (RunState::Running, Some(at(2)), Some(at(10_000) + LEASE))
    );
    assert_eq!(
        db.report("a", &run, at(3), log_chunk(0, 5)).await,
        Verdict::Done
    );
    let end = finished_report(RunState::Succeeded, 5);
    assert_eq!(
        db.report("a", &run, at(4), end.clone()).await,
        Verdict::Done
    );
    // The runner repeats the report because the verdict was lost.
    assert_eq!(db.report("a", &run, at(5), end).await, Verdict::Done);
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.finished_at),
        (RunState::Succeeded, Some(at(4)))
    );
    assert_eq!(row.result.unwrap().vertices, 7);
    assert_eq!((row.log_length, row.deadline), (5, None));
    assert_eq!(row.runner_name.as_deref(), Some("first"));
    let attempts = db.store.attempts(&run.id).await.unwrap();
    let attempt = &attempts[0];
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (attempt.started_at, attempt.ended_at, attempt.log_length),
        (Some(at(2)), Some(at(4)), 5)
    );
    assert_eq!(attempt.outcome.as_deref(), Some("succeeded"));
    assert_eq!(attempt.log_sha256, row.log_sha256);
    assert_eq!(
        db.store
            .unaccounted_triggers(NOW + 999_999, 0)
            .await
            .unwrap(),
        []
    );
    // A finished run accepts no other report.
    for report in [
        Report::Renewed,
        Report::Started,
        log_chunk(5, 1),
        finished_report(RunState::Failed, 6),
    ] {
        let verdict = db.report("a", &run, at(6), report).await;
        assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    }
}

async fn batch_of_reports_is_applied_in_order(db: &TestDb) {
    db.enqueue("one", NOW).await;
    db.enqueue("two", NOW).await;
    let runs = db.claim("a", 2, NOW).await;
    let report = |run: usize, report| AttemptReport {
        run: runs[run].id.clone(),
        attempt: 1,
        runner_id: "a".into(),
        report,
    };
    let mut batch = vec![
        report(1, Report::Accepted),
        report(0, Report::Started),
        report(0, log_chunk(0, 3)),
        report(1, Report::Started),
        report(0, finished_report(RunState::Succeeded, 4)),
        report(0, log_chunk(3, 1)),
        report(0, finished_report(RunState::Succeeded, 4)),
        report(0, log_chunk(4, 1)),
    ];
    batch.push(AttemptReport {
        run: run_id("unknown"),
        ..batch[0].clone()
    });
    let verdicts = db.store.report(&batch, NOW, LEASE).await.unwrap();
    assert_eq!(
        verdicts[..7],
        [
            Verdict::Done,
            Verdict::Done,
            Verdict::Done,
            Verdict::Done,
            Verdict::LogAt(3),
            Verdict::Done,
            Verdict::Done
        ]
    );
    assert!(matches!(verdicts[7], Verdict::Refused { .. }));
    assert!(matches!(verdicts[8], Verdict::Refused { .. }));
    assert_eq!(db.run_state("one").await, RunState::Succeeded);
    assert_eq!(db.run_state("two").await, RunState::Running);
    let attempts = db.store.attempts(&run_id("one")).await.unwrap();
    assert_eq!(
        (attempts[0].started_at, attempts[0].log_length),
        (Some(NOW), 4)
    );
}

fn everything(log_length: u64) -> Vec<Report> {
    vec![
        Report::Accepted,
        Report::Started,
        Report::Renewed,
        log_chunk(log_length, 5),
        Report::Declined {
            reason: "full".into(),
        },
        finished_report(RunState::Succeeded, log_length),
        finished_report(RunState::Failed, log_length),
    ]
}

async fn stale_attempt_is_refused_in_every_state(db: &TestDb) {
    let first = db.start_run("one", NOW).await;
    let late = NOW + LEASE + 1;
    assert_eq!(db.store.expire_leases(late, 10).await.unwrap().len(), 1);
    let check = async |when: &str| {
        let before = db.store.run(&first.id).await.unwrap();
        for report in everything(before.log_length) {
            let verdict = db.report("a", &first, late, report.clone()).await;
            assert!(
                matches!(verdict, Verdict::Refused { .. }),
                "{when}: {report:?}: {verdict:?}"
            );
        }
        assert_eq!(db.store.run(&first.id).await.unwrap(), before, "{when}");
    };
    check("queued again").await;
    // The same is true if the same runner leases the run again.
    let second = db.claim("a", 1, late).await.remove(0);
    assert_eq!(second.attempt, 2);
    check("leased again").await;
    db.report_all("a", &second, late, vec![Report::Started, log_chunk(0, 9)])
        .await;
    check("running again").await;
    db.report("a", &second, late, finished_report(RunState::Succeeded, 9))
        .await;
    check("over").await;
    assert_eq!(db.run_state("one").await, RunState::Succeeded);
    let chunks = db.store.log_chunks(&first.id, 1, 0, 10).await.unwrap();
    assert_eq!(chunks, []);
}

async fn report_of_another_runner_is_refused(db: &TestDb) {
    let run = db.start_run("one", NOW).await;
    for report in everything(0) {
        let verdict = db.report("b", &run, NOW, report).await;
        assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    }
    assert_eq!(db.store.run(&run.id).await.unwrap(), run);
}

async fn declined_run_is_ready_again(db: &TestDb) {
    db.enqueue("one", NOW).await;
    let run = db.claim("a", 1, NOW).await.remove(0);
    let declined = Report::Declined {
        reason: "the disk is full".into(),
    };
    assert_eq!(db.report("a", &run, NOW + 1, declined).await, Verdict::Done);
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.lost_attempts, row.runner_id),
        (RunState::Queued, 0, None)
    );
    assert_eq!(
        row.reason.as_deref(),
        Some("a runner declined it: the disk is full")
    );
    let again = db.claim("b", 1, NOW + 2).await.remove(0);
    assert_eq!((again.attempt, again.reason), (2, None));
    let attempts = db.store.attempts(&run.id).await.unwrap();
    assert_eq!(attempts[0].outcome.as_deref(), Some("declined"));
}

async fn lost_run_is_retried_until_attempts_are_used_up(db: &TestDb) {
    db.register_runner("a", "first").await;
    db.enqueue("one", NOW).await;
    let mut now = NOW;
    for (attempt, to) in [
        (1, RunState::Queued),
        (2, RunState::Queued),
        (3, RunState::Error),
    ] {
        let run = db.claim("a", 1, now).await.remove(0);
        db.report("a", &run, now, Report::Started).await;
        assert_eq!(db.store.expire_leases(now + LEASE, 10).await.unwrap(), []);
        now += LEASE + 1;
        let reaped = db.store.expire_leases(now, 10).await.unwrap();
        assert_eq!(reaped.len(), 1);
        assert_eq!((reaped[0].attempt, reaped[0].to), (attempt, to));
        assert_eq!(reaped[0].runner_id, "a");
        assert!(
            reaped[0].reason.starts_with("runner first was lost"),
            "{reaped:?}"
        );
        assert_eq!(db.store.expire_leases(now, 10).await.unwrap(), []);
    }
    let row = db.store.run(&run_id("one")).await.unwrap();
    assert_eq!((row.state, row.lost_attempts), (RunState::Error, 3));
    assert_eq!(db.store.attempts(&row.id).await.unwrap().len(), 3);
    assert_eq!(db.claim("a", 1, now).await, []);
}

async fn cancel_works_in_every_state(db: &TestDb) {
    let store = &db.store;
    let running = db.start_run("running", NOW).await;
    let fails = db.start_run("fails", NOW).await;
    let lost = db.start_run("lost", NOW).await;
    db.enqueue("leased", NOW).await;
    let leased = db.claim("b", 1, NOW).await.remove(0);
    db.enqueue("queued", NOW).await;
    assert_eq!(store.cancel_requests().await.unwrap(), []);
    for id in ["running", "fails", "lost", "leased", "queued"] {
        store
            .request_cancel(&run_id(id), "by ann", NOW + 1)
            .await
            .unwrap();
    }
    let queued = store.run(&run_id("queued")).await.unwrap();
    assert_eq!(
        (queued.state, queued.finished_at, queued.reason.as_deref()),
        (RunState::Canceled, Some(NOW + 1), Some("by ann"))
    );
    let cancels = store.cancel_requests().await.unwrap();
    let requests: Vec<_> = cancels
        .iter()
        .map(|cancel| {
            (
                cancel.run.as_str(),
                cancel.runner_id.as_str(),
                cancel.attempt,
            )
        })
        .collect();
    assert_eq!(
        requests,
        [
            ("fails", "a", 1),
            ("leased", "b", 1),
            ("lost", "a", 1),
            ("running", "a", 1)
        ]
    );
    assert!(cancels.iter().all(|cancel| cancel.reason == "by ann"));
    // Of two cancellation requests the first one counts.
    let row = store
        .request_cancel(&running.id, "by bob", NOW + 2)
        .await
        .unwrap();
    assert_eq!(
        (row.cancel_requested_at, row.cancel_reason.as_deref()),
        (Some(NOW + 1), Some("by ann"))
    );
    db.report(
        "a",
        &running,
        NOW + 3,
        finished_report(RunState::Succeeded, 0),
    )
    .await;
    db.report("a", &fails, NOW + 3, finished_report(RunState::Failed, 0))
        .await;
    let declined = Report::Declined {
        reason: "full".into(),
    };
    db.report("b", &leased, NOW + 3, declined).await;
    let reaped = store.expire_leases(NOW + LEASE + 1, 10).await.unwrap();
    assert_eq!((reaped.len(), reaped[0].to), (1, RunState::Canceled));
    assert_eq!(db.run_state("running").await, RunState::Succeeded);
    for id in ["fails", "leased", "lost"] {
        let row = store.run(&run_id(id)).await.unwrap();
        assert_eq!(
            (row.state, row.reason.as_deref()),
            (RunState::Canceled, Some("by ann")),
            "{id}"
        );
    }
    assert_eq!(store.cancel_requests().await.unwrap(), []);
    // A finished run stays unchanged.
    let before = store.run(&lost.id).await.unwrap();
    assert_eq!(
        store
            .request_cancel(&lost.id, "late", NOW + 9)
            .await
            .unwrap(),
        before
    );
    let error = store
        .request_cancel(&run_id("unknown"), "x", NOW)
        .await
        .unwrap_err();
    assert!(
        matches!(error, acrtask_store::StoreError::NotFound { .. }),
        "{error:?}"
    );
}

async fn reaper_and_finish_never_both_win(db: &TestDb) {
    let late = NOW + LEASE + 1;
    for round in 0..20 {
        let id = format!("run-{round}");
        let run = db.start_run(&id, NOW).await;
        let reaper = {
            let store = db.store.clone();
            tokio::spawn(async move { store.expire_leases(late, 10).await.unwrap() })
        };
        let verdict = db
            .report("a", &run, late, finished_report(RunState::Succeeded, 0))
            .await;
        let reaped = reaper.await.unwrap();
        match db.run_state(&id).await {
            RunState::Succeeded => assert_eq!((verdict, reaped), (Verdict::Done, vec![])),
            RunState::Queued => {
                assert_eq!(ids_of(&reaped), [id.as_str()]);
                assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
                db.store
                    .request_cancel(&run.id, "tidy", late)
                    .await
                    .unwrap();
            }
            other => panic!("the run is {other}"),
        }
    }
}

fn ids_of(reaped: &[acrtask_store::ExpiredLease]) -> Vec<&str> {
    reaped.iter().map(|reaped| reaped.run.as_str()).collect()
}

async fn reaper_skips_unreadable_runs(db: &TestDb) {
    const STUCK: usize = 20_000;
    let new = (0..STUCK)
        .map(|number| new_run(&format!("stuck-{number}")))
        .collect();
    db.store.enqueue_many(new, NOW).await.unwrap();
    // These ids are invalid, so the reaper cannot end their leases.
    let broken = db
        .execute(&format!(
            "UPDATE runs SET id = 'STUCK ' || id, state = 'running', runner_id = 'a', attempt = 1, \
             lease_until = {NOW}, deadline = {NOW}"
        ))
        .await;
    assert_eq!(broken as usize, STUCK);
    db.start_run("one", NOW).await;
    let reaped = db.store.expire_leases(NOW + LEASE + 1, 500).await.unwrap();
    assert_eq!(ids_of(&reaped), ["one"]);
}

async fn reaper_ends_at_most_its_limit(db: &TestDb) {
    let new = (0..25)
        .map(|number| new_run(&format!("run-{number}")))
        .collect();
    db.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(db.claim("a", 25, NOW).await.len(), 25);
    let mut counts = Vec::new();
    for _ in 0..4 {
        counts.push(
            db.store
                .expire_leases(NOW + ACCEPT + 1, 10)
                .await
                .unwrap()
                .len(),
        );
    }
    assert_eq!(counts, [10, 10, 5, 0]);
}

async fn run_past_its_timeout_is_ended(db: &TestDb) {
    let mut new = new_run("one");
    new.timeout_secs = Some(10);
    db.store.enqueue(new, NOW).await.unwrap();
    let run = db.claim("a", 1, NOW).await.remove(0);
    let mut now = NOW;
    db.report("a", &run, now, Report::Started).await;
    while db.run_state("one").await == RunState::Running {
        now += 10_000;
        db.report("a", &run, now, Report::Renewed).await;
        db.store.expire_leases(now, 10).await.unwrap();
        assert!(now < NOW + 200_000, "the run never ends");
    }
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!(row.state, RunState::TimedOut);
    assert!(row.reason.unwrap().contains("timeout of 10 s"));
    assert!(
        now > NOW + 10_000 + 30_000,
        "its runner had no time to end it"
    );
}

async fn audit_finds_lost_triggers(db: &TestDb) {
    let store = &db.store;
    for id in ["missing", "fine", "overdue", "nothing", "ignored"] {
        db.enqueue(id, NOW).await;
    }
    let runs = db.claim("a", 3, NOW).await;
    assert_eq!(run_ids(&runs), ["missing", "fine", "overdue"]);
    db.report("a", &runs[1], NOW, finished_report(RunState::Failed, 0))
        .await;
    assert_eq!(
        store
            .unaccounted_triggers(NOW + ACCEPT + 4_000, 5_000)
            .await
            .unwrap(),
        []
    );
    db.execute("DELETE FROM runs WHERE id IN ('missing', 'nothing', 'ignored')")
        .await;
    db.execute("UPDATE triggers SET run_id = NULL WHERE id = 'nothing'")
        .await;
    db.execute("UPDATE triggers SET ignored_reason = 'switched off' WHERE id = 'ignored'")
        .await;
    let found = store
        .unaccounted_triggers(NOW + ACCEPT + 6_000, 5_000)
        .await
        .unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|lost| (lost.trigger.as_str(), lost.why.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("missing", "its run missing is missing"),
            ("nothing", "it led to no run, and no reason is stored"),
            (
                "overdue",
                "its run overdue is leased although its deadline has passed"
            ),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reaper_skips_rows_locked_by_another_server() {
    let Some(db) = TestDb::postgres().await else {
        return;
    };
    let new = (0..20)
        .map(|number| new_run(&format!("run-{number:02}")))
        .collect();
    db.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(db.claim("a", 20, NOW).await.len(), 20);
    // Another server is idle in the middle of a transaction.
    let mut sleeper = db.connect().await;
    sqlx::query("BEGIN").execute(&mut sleeper).await.unwrap();
    sqlx::query("SELECT id FROM runs WHERE id < 'run-19' FOR UPDATE")
        .execute(&mut sleeper)
        .await
        .unwrap();
    let reaped = db.store.expire_leases(NOW + ACCEPT + 1, 5).await.unwrap();
    assert_eq!(ids_of(&reaped), ["run-19"]);
    sqlx::query("ROLLBACK").execute(&mut sleeper).await.unwrap();
    assert_eq!(
        db.store
            .expire_leases(NOW + ACCEPT + 1, 50)
            .await
            .unwrap()
            .len(),
        19
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_locked_by_another_server_are_unavailable() {
    let Some(db) = TestDb::postgres().await else {
        return;
    };
    let row = db.enqueue("one", NOW).await;
    let mut sleeper = db.connect().await;
    for sql in ["BEGIN", "SELECT id FROM runs FOR UPDATE"] {
        sqlx::query(sql).execute(&mut sleeper).await.unwrap();
    }
    // The error is temporary, so that the caller retries.
    let canceled = db.store.request_cancel(&row.id, "enough", NOW).await;
    assert!(
        canceled.as_ref().is_err_and(StoreError::is_unavailable),
        "{canceled:?}"
    );
    sqlx::query("ROLLBACK").execute(&mut sleeper).await.unwrap();
    db.store
        .request_cancel(&row.id, "enough", NOW)
        .await
        .unwrap();
}
