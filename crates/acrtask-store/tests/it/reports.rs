//! What runners say, and what the reaper does when they say nothing.

use acrtask_model::RunState;
use acrtask_store::{Report, Reported, StoreError, Verdict};

use crate::support::{ACCEPT, Fixture, LEASE, NOW, chunk, finished, ids, new_run, on_both, run_id};

on_both!(
    a_run_from_its_lease_to_its_end,
    a_batch_is_judged_in_order,
    a_stale_attempt_is_refused_everywhere,
    what_another_runner_holds_is_refused,
    a_declined_run_is_ready_again,
    a_lost_run_is_ready_again_until_no_attempt_is_left,
    a_cancel_reaches_a_run_wherever_it_is,
    the_reaper_and_a_finish_never_both_win,
    the_reaper_is_not_held_up_by_what_is_stuck,
    the_reaper_takes_at_most_its_limit,
    a_run_past_its_timeout_is_ended,
    the_conservation_law_finds_what_is_lost,
);

async fn a_run_from_its_lease_to_its_end(fixture: &Fixture) {
    fixture.runner("a", "first").await;
    let mut new = new_run("one");
    new.timeout_secs = Some(600);
    fixture.store.enqueue(new, NOW).await.unwrap();
    let run = fixture.claim("a", 1, NOW).await.remove(0);
    let at = |ms| NOW + ms;
    assert_eq!(
        fixture.say("a", &run, at(1), Report::Accepted).await,
        Verdict::Done
    );
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.deadline),
        (RunState::Leased, Some(NOW + LEASE))
    );
    assert_eq!(
        fixture.say("a", &run, at(2), Report::Started).await,
        Verdict::Done
    );
    assert_eq!(
        fixture.say("a", &run, at(10_000), Report::Renewed).await,
        Verdict::Done
    );
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.started_at, row.deadline),
        (RunState::Running, Some(at(2)), Some(at(10_000) + LEASE))
    );
    assert_eq!(
        fixture.say("a", &run, at(3), chunk(0, 5)).await,
        Verdict::Done
    );
    let end = finished(RunState::Succeeded, 5);
    assert_eq!(
        fixture.say("a", &run, at(4), end.clone()).await,
        Verdict::Done
    );
    // The answer was lost: it is said again.
    assert_eq!(fixture.say("a", &run, at(5), end).await, Verdict::Done);
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.finished_at),
        (RunState::Succeeded, Some(at(4)))
    );
    assert_eq!(row.result.unwrap().vertices, 7);
    assert_eq!((row.log_length, row.deadline), (5, None));
    assert_eq!(row.runner_name.as_deref(), Some("first"));
    let attempts = fixture.store.attempts(&run.id).await.unwrap();
    let attempt = &attempts[0];
    assert_eq!(attempts.len(), 1);
    assert_eq!(
        (attempt.started_at, attempt.ended_at, attempt.log_length),
        (Some(at(2)), Some(at(4)), 5)
    );
    assert_eq!(attempt.outcome.as_deref(), Some("succeeded"));
    assert_eq!(attempt.log_sha256, row.log_sha256);
    assert_eq!(
        fixture.store.unaccounted(NOW + 999_999, 0).await.unwrap(),
        []
    );
    // Over is over.
    for report in [
        Report::Renewed,
        Report::Started,
        chunk(5, 1),
        finished(RunState::Failed, 6),
    ] {
        let verdict = fixture.say("a", &run, at(6), report).await;
        assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    }
}

async fn a_batch_is_judged_in_order(fixture: &Fixture) {
    fixture.queued("one", NOW).await;
    fixture.queued("two", NOW).await;
    let runs = fixture.claim("a", 2, NOW).await;
    let said = |run: usize, report| Reported {
        run: runs[run].id.clone(),
        attempt: 1,
        runner_id: "a".into(),
        report,
    };
    let mut batch = vec![
        said(1, Report::Accepted),
        said(0, Report::Started),
        said(0, chunk(0, 3)),
        said(1, Report::Started),
        said(0, finished(RunState::Succeeded, 4)),
        said(0, chunk(3, 1)),
        said(0, finished(RunState::Succeeded, 4)),
        said(0, chunk(4, 1)),
    ];
    batch.push(Reported {
        run: run_id("unknown"),
        ..batch[0].clone()
    });
    let verdicts = fixture.store.report(&batch, NOW, LEASE).await.unwrap();
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
    assert_eq!(fixture.state("one").await, RunState::Succeeded);
    assert_eq!(fixture.state("two").await, RunState::Running);
    let attempts = fixture.store.attempts(&run_id("one")).await.unwrap();
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
        chunk(log_length, 5),
        Report::Declined {
            reason: "full".into(),
        },
        finished(RunState::Succeeded, log_length),
        finished(RunState::Failed, log_length),
    ]
}

async fn a_stale_attempt_is_refused_everywhere(fixture: &Fixture) {
    let first = fixture.running("one", NOW).await;
    let late = NOW + LEASE + 1;
    assert_eq!(fixture.store.reap(late, 10).await.unwrap().len(), 1);
    let check = async |when: &str| {
        let before = fixture.store.run(&first.id).await.unwrap();
        for report in everything(before.log_length) {
            let verdict = fixture.say("a", &first, late, report.clone()).await;
            assert!(
                matches!(verdict, Verdict::Refused { .. }),
                "{when}: {report:?}: {verdict:?}"
            );
        }
        assert_eq!(
            fixture.store.run(&first.id).await.unwrap(),
            before,
            "{when}"
        );
    };
    check("queued again").await;
    // Even where the same runner gets it again.
    let second = fixture.claim("a", 1, late).await.remove(0);
    assert_eq!(second.attempt, 2);
    check("leased again").await;
    fixture
        .say_all("a", &second, late, vec![Report::Started, chunk(0, 9)])
        .await;
    check("running again").await;
    fixture
        .say("a", &second, late, finished(RunState::Succeeded, 9))
        .await;
    check("over").await;
    assert_eq!(fixture.state("one").await, RunState::Succeeded);
    let chunks = fixture.store.log_chunks(&first.id, 1, 0, 10).await.unwrap();
    assert_eq!(chunks, []);
}

async fn what_another_runner_holds_is_refused(fixture: &Fixture) {
    let run = fixture.running("one", NOW).await;
    for report in everything(0) {
        let verdict = fixture.say("b", &run, NOW, report).await;
        assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
    }
    assert_eq!(fixture.store.run(&run.id).await.unwrap(), run);
}

async fn a_declined_run_is_ready_again(fixture: &Fixture) {
    fixture.queued("one", NOW).await;
    let run = fixture.claim("a", 1, NOW).await.remove(0);
    let declined = Report::Declined {
        reason: "the disk is full".into(),
    };
    assert_eq!(
        fixture.say("a", &run, NOW + 1, declined).await,
        Verdict::Done
    );
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!(
        (row.state, row.losses, row.runner_id),
        (RunState::Queued, 0, None)
    );
    assert_eq!(
        row.reason.as_deref(),
        Some("a runner declined it: the disk is full")
    );
    let again = fixture.claim("b", 1, NOW + 2).await.remove(0);
    assert_eq!((again.attempt, again.reason), (2, None));
    let attempts = fixture.store.attempts(&run.id).await.unwrap();
    assert_eq!(attempts[0].outcome.as_deref(), Some("declined"));
}

async fn a_lost_run_is_ready_again_until_no_attempt_is_left(fixture: &Fixture) {
    fixture.runner("a", "first").await;
    fixture.queued("one", NOW).await;
    let mut now = NOW;
    for (attempt, to) in [
        (1, RunState::Queued),
        (2, RunState::Queued),
        (3, RunState::Error),
    ] {
        let run = fixture.claim("a", 1, now).await.remove(0);
        fixture.say("a", &run, now, Report::Started).await;
        assert_eq!(fixture.store.reap(now + LEASE, 10).await.unwrap(), []);
        now += LEASE + 1;
        let reaped = fixture.store.reap(now, 10).await.unwrap();
        assert_eq!(reaped.len(), 1);
        assert_eq!((reaped[0].attempt, reaped[0].to), (attempt, to));
        assert_eq!(reaped[0].runner_id, "a");
        assert!(
            reaped[0].reason.starts_with("runner first was lost"),
            "{reaped:?}"
        );
        assert_eq!(fixture.store.reap(now, 10).await.unwrap(), []);
    }
    let row = fixture.store.run(&run_id("one")).await.unwrap();
    assert_eq!((row.state, row.losses), (RunState::Error, 3));
    assert_eq!(fixture.store.attempts(&row.id).await.unwrap().len(), 3);
    assert_eq!(fixture.claim("a", 1, now).await, []);
}

async fn a_cancel_reaches_a_run_wherever_it_is(fixture: &Fixture) {
    let store = &fixture.store;
    let running = fixture.running("running", NOW).await;
    let fails = fixture.running("fails", NOW).await;
    let lost = fixture.running("lost", NOW).await;
    fixture.queued("leased", NOW).await;
    let leased = fixture.claim("b", 1, NOW).await.remove(0);
    fixture.queued("queued", NOW).await;
    assert_eq!(store.cancels().await.unwrap(), []);
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
    let cancels = store.cancels().await.unwrap();
    let told: Vec<_> = cancels
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
        told,
        [
            ("fails", "a", 1),
            ("leased", "b", 1),
            ("lost", "a", 1),
            ("running", "a", 1)
        ]
    );
    assert!(cancels.iter().all(|cancel| cancel.reason == "by ann"));
    // Asked again, the first one counts.
    let row = store
        .request_cancel(&running.id, "by bob", NOW + 2)
        .await
        .unwrap();
    assert_eq!(
        (row.cancel_requested_at, row.cancel_reason.as_deref()),
        (Some(NOW + 1), Some("by ann"))
    );
    fixture
        .say("a", &running, NOW + 3, finished(RunState::Succeeded, 0))
        .await;
    fixture
        .say("a", &fails, NOW + 3, finished(RunState::Failed, 0))
        .await;
    let declined = Report::Declined {
        reason: "full".into(),
    };
    fixture.say("b", &leased, NOW + 3, declined).await;
    let reaped = store.reap(NOW + LEASE + 1, 10).await.unwrap();
    assert_eq!((reaped.len(), reaped[0].to), (1, RunState::Canceled));
    assert_eq!(fixture.state("running").await, RunState::Succeeded);
    for id in ["fails", "leased", "lost"] {
        let row = store.run(&run_id(id)).await.unwrap();
        assert_eq!(
            (row.state, row.reason.as_deref()),
            (RunState::Canceled, Some("by ann")),
            "{id}"
        );
    }
    assert_eq!(store.cancels().await.unwrap(), []);
    // What is over stays as it is.
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

async fn the_reaper_and_a_finish_never_both_win(fixture: &Fixture) {
    let late = NOW + LEASE + 1;
    for round in 0..20 {
        let id = format!("run-{round}");
        let run = fixture.running(&id, NOW).await;
        let reaper = {
            let store = fixture.store.clone();
            tokio::spawn(async move { store.reap(late, 10).await.unwrap() })
        };
        let verdict = fixture
            .say("a", &run, late, finished(RunState::Succeeded, 0))
            .await;
        let reaped = reaper.await.unwrap();
        match fixture.state(&id).await {
            RunState::Succeeded => assert_eq!((verdict, reaped), (Verdict::Done, vec![])),
            RunState::Queued => {
                assert_eq!(ids_of(&reaped), [id.as_str()]);
                assert!(matches!(verdict, Verdict::Refused { .. }), "{verdict:?}");
                fixture
                    .store
                    .request_cancel(&run.id, "tidy", late)
                    .await
                    .unwrap();
            }
            other => panic!("the run is {other}"),
        }
    }
}

fn ids_of(reaped: &[acrtask_store::Reaped]) -> Vec<&str> {
    reaped.iter().map(|reaped| reaped.run.as_str()).collect()
}

async fn the_reaper_is_not_held_up_by_what_is_stuck(fixture: &Fixture) {
    const STUCK: usize = 20_000;
    let new = (0..STUCK)
        .map(|number| new_run(&format!("stuck-{number}")))
        .collect();
    fixture.store.enqueue_many(new, NOW).await.unwrap();
    // Nobody can read these ids, so nobody can end their leases.
    let broken = fixture
        .raw(&format!(
            "UPDATE runs SET id = 'STUCK ' || id, state = 'running', runner_id = 'a', attempt = 1, \
             lease_until = {NOW}, deadline = {NOW}"
        ))
        .await;
    assert_eq!(broken as usize, STUCK);
    fixture.running("one", NOW).await;
    let reaped = fixture.store.reap(NOW + LEASE + 1, 500).await.unwrap();
    assert_eq!(ids_of(&reaped), ["one"]);
}

async fn the_reaper_takes_at_most_its_limit(fixture: &Fixture) {
    let new = (0..25)
        .map(|number| new_run(&format!("run-{number}")))
        .collect();
    fixture.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(fixture.claim("a", 25, NOW).await.len(), 25);
    let mut counts = Vec::new();
    for _ in 0..4 {
        counts.push(
            fixture
                .store
                .reap(NOW + ACCEPT + 1, 10)
                .await
                .unwrap()
                .len(),
        );
    }
    assert_eq!(counts, [10, 10, 5, 0]);
}

async fn a_run_past_its_timeout_is_ended(fixture: &Fixture) {
    let mut new = new_run("one");
    new.timeout_secs = Some(10);
    fixture.store.enqueue(new, NOW).await.unwrap();
    let run = fixture.claim("a", 1, NOW).await.remove(0);
    let mut now = NOW;
    fixture.say("a", &run, now, Report::Started).await;
    while fixture.state("one").await == RunState::Running {
        now += 10_000;
        fixture.say("a", &run, now, Report::Renewed).await;
        fixture.store.reap(now, 10).await.unwrap();
        assert!(now < NOW + 200_000, "it runs for ever");
    }
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!(row.state, RunState::TimedOut);
    assert!(row.reason.unwrap().contains("timeout of 10 s"));
    assert!(
        now > NOW + 10_000 + 30_000,
        "its runner had no time to end it"
    );
}

async fn the_conservation_law_finds_what_is_lost(fixture: &Fixture) {
    let store = &fixture.store;
    for id in ["missing", "fine", "overdue", "nothing", "suppressed"] {
        fixture.queued(id, NOW).await;
    }
    let runs = fixture.claim("a", 3, NOW).await;
    assert_eq!(ids(&runs), ["missing", "fine", "overdue"]);
    fixture
        .say("a", &runs[1], NOW, finished(RunState::Failed, 0))
        .await;
    assert_eq!(
        store
            .unaccounted(NOW + ACCEPT + 4_000, 5_000)
            .await
            .unwrap(),
        []
    );
    fixture
        .raw("DELETE FROM runs WHERE id IN ('missing', 'nothing', 'suppressed')")
        .await;
    fixture
        .raw("UPDATE triggers SET run_id = NULL WHERE id = 'nothing'")
        .await;
    fixture
        .raw("UPDATE triggers SET suppressed_reason = 'switched off' WHERE id = 'suppressed'")
        .await;
    let found = store
        .unaccounted(NOW + ACCEPT + 6_000, 5_000)
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
            ("nothing", "it led to no run, and no reason is written down"),
            (
                "overdue",
                "its run overdue is leased, though its deadline is past"
            ),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reaper_passes_by_what_another_server_holds() {
    let Some(fixture) = Fixture::postgres().await else {
        return;
    };
    let new = (0..20)
        .map(|number| new_run(&format!("run-{number:02}")))
        .collect();
    fixture.store.enqueue_many(new, NOW).await.unwrap();
    assert_eq!(fixture.claim("a", 20, NOW).await.len(), 20);
    // A server that sleeps in the middle of a transaction.
    let mut sleeper = fixture.connect().await;
    sqlx::query("BEGIN").execute(&mut sleeper).await.unwrap();
    sqlx::query("SELECT id FROM runs WHERE id < 'run-19' FOR UPDATE")
        .execute(&mut sleeper)
        .await
        .unwrap();
    let reaped = fixture.store.reap(NOW + ACCEPT + 1, 5).await.unwrap();
    assert_eq!(ids_of(&reaped), ["run-19"]);
    sqlx::query("ROLLBACK").execute(&mut sleeper).await.unwrap();
    assert_eq!(
        fixture
            .store
            .reap(NOW + ACCEPT + 1, 50)
            .await
            .unwrap()
            .len(),
        19
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_holds_may_be_had_later() {
    let Some(fixture) = Fixture::postgres().await else {
        return;
    };
    let row = fixture.queued("one", NOW).await;
    let mut sleeper = fixture.connect().await;
    for sql in ["BEGIN", "SELECT id FROM runs FOR UPDATE"] {
        sqlx::query(sql).execute(&mut sleeper).await.unwrap();
    }
    // Whoever asks is told to ask again, and not that the database is broken.
    let canceled = fixture.store.request_cancel(&row.id, "enough", NOW).await;
    assert!(
        canceled.as_ref().is_err_and(StoreError::is_unavailable),
        "{canceled:?}"
    );
    sqlx::query("ROLLBACK").execute(&mut sleeper).await.unwrap();
    fixture
        .store
        .request_cancel(&row.id, "enough", NOW)
        .await
        .unwrap();
}
