//! Quotas: what is stored beyond them is refused, by whatever way it comes and however many come at once.

use acrtask_api::{
    quota::{QuotaKind, QuotaSubject},
    spec::RunSpec,
    webhook::OutcomeKind,
};
use acrtask_model::{Digest, RunState};
use acrtask_store::{Enqueued, LeadsTo, NewRun, QuotaExceeded, Report, StoreError, Verdict};

use crate::{
    support::{Fixture, NOW, chunk, finished, new_run, on_both, owner, run_id},
    webhooks,
};

on_both!(
    queued_runs_of_a_task_of_tasks_and_of_a_token_are_limited,
    runs_of_a_minute_are_limited,
    runs_of_forks_use_quotas_of_their_own,
    a_fork_beyond_its_quota_leaves_a_reason,
    prefixes_are_compared_by_bytes,
    many_requests_at_once_do_not_exceed_a_quota,
    a_repeated_request_gets_its_run_beyond_the_quota,
    a_log_ends_at_the_quota_with_its_mark,
    stored_logs_of_a_task_are_limited_and_given_back,
    secrets_and_tasks_are_limited,
    unfinished_uploads_expire_in_a_day,
);

fn subject(text: &str) -> QuotaSubject {
    text.parse().unwrap()
}

async fn set(fixture: &Fixture, of: &str, kind: QuotaKind, limit: u64) {
    let of = subject(of);
    fixture
        .store
        .set_quota(&of, kind, Some(limit))
        .await
        .unwrap();
}

fn of_task(id: &str, task: &str, by: Option<&str>) -> NewRun {
    let mut new = new_run(id);
    new.task_name = Some(task.into());
    new.origin.charged_to = by.map(str::to_owned);
    new
}

async fn ask(fixture: &Fixture, new: NewRun, now: i64) -> Result<Enqueued, QuotaExceeded> {
    match fixture.store.enqueue(new, now).await {
        Ok(enqueued) => Ok(enqueued),
        Err(StoreError::Quota(exceeded)) => Err(*exceeded),
        Err(error) => panic!("{error:?}"),
    }
}

async fn queued_runs_of_a_task_of_tasks_and_of_a_token_are_limited(fixture: &Fixture) {
    set(fixture, "task:*", QuotaKind::QueuedRuns, 2).await;
    set(fixture, "task:team/big", QuotaKind::QueuedRuns, 3).await;
    set(fixture, "tasks:team/*", QuotaKind::QueuedRuns, 4).await;
    set(fixture, "token:*", QuotaKind::QueuedRuns, 5).await;
    let mut number = 0;
    let mut asked = async |task: &'static str, by: Option<&'static str>| {
        number += 1;
        let new = of_task(&format!("r{number}"), task, by);
        ask(fixture, new, NOW)
            .await
            .map_err(|error| error.to_string())
    };
    for _ in 0..3 {
        asked("team/big", Some("k1")).await.unwrap();
    }
    assert_eq!(
        asked("team/big", Some("k1")).await.unwrap_err(),
        "the quota queuedRuns of task:team/big is 3, and 3 are used"
    );
    asked("team/small", None).await.unwrap();
    assert_eq!(
        asked("team/small", None).await.unwrap_err(),
        "the quota queuedRuns of tasks:team/* is 4, and 4 are used"
    );
    for _ in 0..2 {
        asked("other", Some("k1")).await.unwrap();
    }
    assert_eq!(
        asked("other", None).await.unwrap_err(),
        "the quota queuedRuns of task:other is 2, and 2 are used"
    );
    assert_eq!(
        asked("third", Some("k1")).await.unwrap_err(),
        "the quota queuedRuns of token:k1 is 5, and 5 are used"
    );
    asked("third", Some("k2")).await.unwrap();
    // What has started waits no more.
    fixture.claim("a", 9, NOW).await;
    asked("third", Some("k1")).await.unwrap();
    let shown = fixture
        .store
        .quotas(&[subject("token:k1")], NOW)
        .await
        .unwrap();
    let own = shown
        .iter()
        .find(|quota| quota.subject == subject("token:k1") && quota.kind == QuotaKind::QueuedRuns);
    let own = own.unwrap();
    assert_eq!((own.limit, own.used, own.set), (5, Some(1), false));
}

async fn runs_of_a_minute_are_limited(fixture: &Fixture) {
    set(fixture, "task:app", QuotaKind::RunsPerMinute, 2).await;
    for id in ["a", "b"] {
        ask(fixture, of_task(id, "app", None), NOW).await.unwrap();
    }
    fixture.claim("a", 9, NOW).await;
    let refused = ask(fixture, of_task("c", "app", None), NOW + 1).await;
    assert_eq!(refused.unwrap_err().kind, QuotaKind::RunsPerMinute);
    ask(fixture, of_task("d", "other", None), NOW + 1)
        .await
        .unwrap();
    ask(fixture, of_task("e", "app", None), NOW + 60_000)
        .await
        .unwrap();
}

fn of_fork(id: &str) -> NewRun {
    let mut new = of_task(id, "app", None);
    new.origin.needs_approval = true;
    new
}

async fn runs_of_forks_use_quotas_of_their_own(fixture: &Fixture) {
    set(fixture, "task:app", QuotaKind::QueuedRuns, 1).await;
    set(fixture, "tasks:a*", QuotaKind::QueuedRuns, 1).await;
    set(fixture, "task:app", QuotaKind::RunsPerMinute, 1).await;
    set(fixture, "tasks:a*", QuotaKind::RunsPerMinute, 1).await;
    set(fixture, "task:app", QuotaKind::PendingApprovals, 2).await;
    set(fixture, "task:app", QuotaKind::PendingApprovalsPerMinute, 3).await;
    for id in ["f1", "f2"] {
        ask(fixture, of_fork(id), NOW).await.unwrap();
    }
    let refused = ask(fixture, of_fork("f3"), NOW).await.unwrap_err();
    assert_eq!(refused.kind, QuotaKind::PendingApprovals);
    // They keep no run of the task's own out.
    ask(fixture, of_task("own", "app", None), NOW)
        .await
        .unwrap();
    let refused = ask(fixture, of_task("own2", "app", None), NOW + 60_000)
        .await
        .unwrap_err();
    assert_eq!((refused.kind, refused.used), (QuotaKind::QueuedRuns, 1));
    fixture
        .store
        .request_cancel(&run_id("f1"), "closed", NOW)
        .await
        .unwrap();
    ask(fixture, of_fork("f4"), NOW).await.unwrap();
    fixture
        .store
        .request_cancel(&run_id("f2"), "closed", NOW)
        .await
        .unwrap();
    let refused = ask(fixture, of_fork("f5"), NOW).await.unwrap_err();
    assert_eq!(refused.kind, QuotaKind::PendingApprovalsPerMinute);
    ask(fixture, of_fork("f6"), NOW + 60_000).await.unwrap();
    // An approved run is one of the queue.
    fixture
        .store
        .approve(&run_id("f4"), &RunSpec::default(), "ann", NOW)
        .await
        .unwrap();
    let quotas = fixture
        .store
        .quotas(&[subject("task:app")], NOW + 60_000)
        .await
        .unwrap();
    let used = |kind| {
        let quota = quotas
            .iter()
            .find(|quota| quota.kind == kind && quota.subject == subject("task:app"));
        quota.unwrap().used
    };
    assert_eq!(used(QuotaKind::PendingApprovals), Some(1));
    assert_eq!(used(QuotaKind::PendingApprovalsPerMinute), Some(1));
    assert_eq!(used(QuotaKind::QueuedRuns), Some(2));
}

async fn a_fork_beyond_its_quota_leaves_a_reason(fixture: &Fixture) {
    set(fixture, "task:*", QuotaKind::PendingApprovals, 1).await;
    let fork = |id: &str, lane: &str| {
        let mut evaluated = webhooks::run(id, lane, "c1", true);
        if let LeadsTo::Run { new, .. } = &mut evaluated.leads_to {
            new.origin.needs_approval = true;
        }
        evaluated
    };
    let delivered = [
        (
            webhooks::delivery("d1", "s1"),
            vec![fork("f1", "t1 pull/1")],
        ),
        (
            webhooks::delivery("d2", "s2"),
            vec![fork("f2", "t1 pull/2")],
        ),
        (
            webhooks::delivery("d3", "s3"),
            vec![webhooks::run("own", "t1 main", "c2", true)],
        ),
    ];
    let delivered = fixture.store.deliver_many(delivered.into(), NOW).await;
    let led: Vec<_> = delivered
        .unwrap()
        .into_iter()
        .map(|one| webhooks::new(one).0.remove(0))
        .collect();
    assert_eq!(led[0].0, OutcomeKind::Run);
    assert_eq!((led[1].0, &led[1].1), (OutcomeKind::Suppressed, &None));
    let reason =
        "the quota pendingApprovals of task:team/app is 1, and 1 are used; approve or cancel";
    assert!(led[1].2.starts_with(reason), "{}", led[1].2);
    assert_eq!(led[2].0, OutcomeKind::Run);
}

async fn prefixes_are_compared_by_bytes(fixture: &Fixture) {
    set(fixture, "tasks:team-*", QuotaKind::QueuedRuns, 1).await;
    set(fixture, "tasks:team-*", QuotaKind::LogBytes, 100).await;
    // Languages ignore punctuation and sort `teamx` between `team-a` and `team-z`.
    let run = logging(fixture, "other", "teamx").await;
    let reports = vec![chunk(0, 90), finished(RunState::Succeeded, 90)];
    fixture.say_all("a", &run, NOW, reports).await;
    let run = logging(fixture, "own", "team-a").await;
    let reports = vec![chunk(0, 7), finished(RunState::Succeeded, 7)];
    fixture.say_all("a", &run, NOW, reports).await;
    ask(fixture, of_task("waits", "teamy", None), NOW)
        .await
        .unwrap();
    let quotas = fixture.store.quotas(&[], NOW).await.unwrap();
    let used: Vec<_> = quotas
        .iter()
        .map(|quota| (quota.kind, quota.used))
        .collect();
    assert_eq!(
        used,
        [
            (QuotaKind::LogBytes, Some(7)),
            (QuotaKind::QueuedRuns, Some(0)),
        ]
    );
}

async fn many_requests_at_once_do_not_exceed_a_quota(fixture: &Fixture) {
    set(fixture, "token:k", QuotaKind::QueuedRuns, 5).await;
    let asked = (0..20).map(|number| {
        let new = of_task(&format!("r{number}"), &format!("t{number}"), Some("k"));
        ask(fixture, new, NOW)
    });
    let answers = futures::future::join_all(asked).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
    // In one transaction too.
    let more = (0..9).map(|number| of_task(&format!("m{number}"), "many", Some("k2")));
    set(fixture, "token:k2", QuotaKind::QueuedRuns, 8).await;
    let refused = fixture.store.enqueue_many(more.collect(), NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    assert!(fixture.store.run(&run_id("m0")).await.is_err());
}

async fn a_repeated_request_gets_its_run_beyond_the_quota(fixture: &Fixture) {
    set(fixture, "task:app", QuotaKind::QueuedRuns, 1).await;
    let with_key = |id: &str, key: &str| {
        let mut new = of_task(id, "app", None);
        new.idempotency_key = Some(key.into());
        new
    };
    ask(fixture, with_key("one", "k"), NOW).await.unwrap();
    let again = ask(fixture, with_key("two", "k"), NOW).await.unwrap();
    assert_eq!(again.row().id, run_id("one"));
    assert!(ask(fixture, with_key("three", "other"), NOW).await.is_err());
}

async fn logging(fixture: &Fixture, id: &str, task: &str) -> acrtask_store::RunRow {
    ask(fixture, of_task(id, task, None), NOW).await.unwrap();
    let run = fixture.claim("a", 1, NOW).await.remove(0);
    let begun = vec![Report::Accepted, Report::Started];
    fixture.say_all("a", &run, NOW, begun).await;
    run
}

async fn a_log_ends_at_the_quota_with_its_mark(fixture: &Fixture) {
    set(fixture, "task:app", QuotaKind::LogBytesPerRun, 100).await;
    let run = logging(fixture, "one", "app").await;
    // Both in one batch: the second one has no room.
    let said = fixture
        .say_all("a", &run, NOW, vec![chunk(0, 60), chunk(60, 41)])
        .await;
    assert_eq!(said[0], Verdict::Done);
    let Verdict::LogFull(exceeded) = &said[1] else {
        panic!("{said:?}");
    };
    assert_eq!((exceeded.limit, exceeded.used), (100, 60));
    assert_eq!(fixture.state("one").await, RunState::Running);
    assert_eq!(
        fixture.say("a", &run, NOW, chunk(60, 40)).await,
        Verdict::Done
    );
    let mark = |offset| Report::LogFull {
        offset,
        length: 30,
        blob: "mark".into(),
        reason: "the log is full".into(),
    };
    assert_eq!(
        fixture.say("a", &run, NOW, mark(60)).await,
        Verdict::LogAt(100)
    );
    assert_eq!(
        fixture.say("b", &run, NOW, mark(100)).await,
        refused("another runner holds it")
    );
    assert_eq!(fixture.say("a", &run, NOW, mark(100)).await, Verdict::Done);
    let row = fixture.store.run(&run.id).await.unwrap();
    assert_eq!((row.state, row.log_length), (RunState::Error, 130));
    assert_eq!(row.reason.as_deref(), Some("the log is full"));
    let chunks = fixture.store.log_chunks(&run.id, 1, 100, 9).await.unwrap();
    assert_eq!(chunks[0].blob, "mark");
    let late = fixture
        .say("a", &run, NOW, finished(RunState::Succeeded, 130))
        .await;
    assert_eq!(late, refused("the run is over: error"));
}

fn refused(reason: &str) -> Verdict {
    Verdict::Refused {
        reason: reason.into(),
    }
}

async fn stored_logs_of_a_task_are_limited_and_given_back(fixture: &Fixture) {
    set(fixture, "task:app", QuotaKind::LogBytes, 100).await;
    let first = logging(fixture, "one", "app").await;
    let said = vec![chunk(0, 90), finished(RunState::Succeeded, 90)];
    fixture.say_all("a", &first, NOW, said).await;
    let second = logging(fixture, "two", "app").await;
    let full = fixture.say("a", &second, NOW, chunk(0, 11)).await;
    assert!(matches!(full, Verdict::LogFull(_)), "{full:?}");
    let said = vec![chunk(0, 10), finished(RunState::Succeeded, 10)];
    fixture.say_all("a", &second, NOW, said).await;
    // No room is left for another run of it, which other tasks have.
    let refused = ask(fixture, of_task("three", "app", None), NOW).await;
    assert_eq!(refused.unwrap_err().kind, QuotaKind::LogBytes);
    ask(fixture, of_task("four", "other", None), NOW)
        .await
        .unwrap();
    let later = NOW + 1_000;
    fixture.store.expire(later, 10).await.unwrap();
    ask(fixture, of_task("five", "app", None), NOW)
        .await
        .unwrap();
    let quotas = fixture
        .store
        .quotas(&[subject("task:app")], NOW)
        .await
        .unwrap();
    let logs = quotas
        .iter()
        .find(|quota| quota.kind == QuotaKind::LogBytes);
    assert_eq!(logs.unwrap().used, Some(0));
}

async fn secrets_and_tasks_are_limited(fixture: &Fixture) {
    let store = &fixture.store;
    set(fixture, "tasks:*", QuotaKind::Tasks, 3).await;
    set(fixture, "tasks:team/*", QuotaKind::Tasks, 1).await;
    set(fixture, "task:*", QuotaKind::Secrets, 1).await;
    let create = async |name: &str| {
        let text = serde_json::json!({"name": name, "cmd": "alpine true"});
        let definition = serde_json::from_value(text).unwrap();
        let pattern = Some("team/*");
        let id = format!("t{name}");
        let made = store.create_task_within(&id, &definition, None, pattern, NOW);
        made.await.map(drop)
    };
    create("team/a").await.unwrap();
    let refused = create("team/b").await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    store.put_secret("tteam/a", "one", b"x", NOW).await.unwrap();
    store.put_secret("tteam/a", "one", b"y", NOW).await.unwrap();
    let refused = store.put_secret("tteam/a", "two", b"x", NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    let login = async |host: &str| store.put_credential("tteam/a", host, "u", b"x", NOW).await;
    let refused = login("h").await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    set(fixture, "task:team/a", QuotaKind::Secrets, 2).await;
    login("h").await.unwrap();
    login("h").await.unwrap();
    let refused = store.put_secret("tteam/a", "two", b"x", NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    store.put_secret("", "two", b"x", NOW).await.unwrap();
}

async fn unfinished_uploads_expire_in_a_day(fixture: &Fixture) {
    let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let store = &fixture.store;
    store
        .create_context("c1", 10, &digest, &owner(), NOW)
        .await
        .unwrap();
    store.add_part("c1", 0, 4, "part", NOW).await.unwrap();
    let kept = store.expire_uploads(NOW, 10).await.unwrap();
    assert_eq!(kept.contexts, 0);
    let gone = store.expire_uploads(NOW + 1, 10).await.unwrap();
    assert_eq!((gone.contexts, gone.blobs), (1, vec!["part".to_owned()]));
}
