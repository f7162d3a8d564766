//! Quotas: requests beyond a quota are rejected on every path, also when they are concurrent.

use acrtask_api::{
    quota::{QuotaKind, QuotaSubject},
    spec::RunSpec,
    webhook::DecisionAction,
};
use acrtask_model::{Digest, RunState};
use acrtask_store::{Enqueued, NewRun, QuotaExceeded, Report, StoreError, TriggerAction, Verdict};

use crate::{
    support::{NOW, TestDb, context_owner, finished_report, log_chunk, new_run, on_both, run_id},
    webhooks,
};

on_both!(
    queued_runs_of_tasks_and_tokens_are_limited,
    runs_per_minute_are_limited,
    runs_of_forks_use_separate_quotas,
    fork_beyond_its_quota_is_ignored_with_a_reason,
    prefixes_are_compared_by_bytes,
    concurrent_requests_do_not_exceed_a_quota,
    repeated_request_returns_its_run_beyond_the_quota,
    log_ends_at_the_quota_with_a_mark,
    stored_logs_of_a_task_are_limited_and_released,
    secrets_and_tasks_are_limited,
    unfinished_uploads_expire,
);

fn subject(text: &str) -> QuotaSubject {
    text.parse().unwrap()
}

async fn set_quota(db: &TestDb, of: &str, kind: QuotaKind, limit: u64) {
    let of = subject(of);
    db.store.set_quota(&of, kind, Some(limit)).await.unwrap();
}

fn task_run(id: &str, task: &str, by: Option<&str>) -> NewRun {
    let mut new = new_run(id);
    new.task_name = Some(task.into());
    new.origin.charged_to = by.map(str::to_owned);
    new
}

async fn request(db: &TestDb, new: NewRun, now: i64) -> Result<Enqueued, QuotaExceeded> {
    match db.store.enqueue(new, now).await {
        Ok(enqueued) => Ok(enqueued),
        Err(StoreError::Quota(exceeded)) => Err(*exceeded),
        Err(error) => panic!("{error:?}"),
    }
}

async fn queued_runs_of_tasks_and_tokens_are_limited(db: &TestDb) {
    set_quota(db, "task:*", QuotaKind::QueuedRuns, 2).await;
    set_quota(db, "task:team/big", QuotaKind::QueuedRuns, 3).await;
    set_quota(db, "tasks:team/*", QuotaKind::QueuedRuns, 4).await;
    set_quota(db, "token:*", QuotaKind::QueuedRuns, 5).await;
    let mut number = 0;
    let mut request_run = async |task: &'static str, by: Option<&'static str>| {
        number += 1;
        let new = task_run(&format!("r{number}"), task, by);
        request(db, new, NOW)
            .await
            .map_err(|error| error.to_string())
    };
    for _ in 0..3 {
        request_run("team/big", Some("k1")).await.unwrap();
    }
    assert_eq!(
        request_run("team/big", Some("k1")).await.unwrap_err(),
        "the quota queuedRuns of task:team/big is 3, and 3 are used"
    );
    request_run("team/small", None).await.unwrap();
    assert_eq!(
        request_run("team/small", None).await.unwrap_err(),
        "the quota queuedRuns of tasks:team/* is 4, and 4 are used"
    );
    for _ in 0..2 {
        request_run("other", Some("k1")).await.unwrap();
    }
    assert_eq!(
        request_run("other", None).await.unwrap_err(),
        "the quota queuedRuns of task:other is 2, and 2 are used"
    );
    assert_eq!(
        request_run("third", Some("k1")).await.unwrap_err(),
        "the quota queuedRuns of token:k1 is 5, and 5 are used"
    );
    request_run("third", Some("k2")).await.unwrap();
    // A started run is not queued.
    db.claim("a", 9, NOW).await;
    request_run("third", Some("k1")).await.unwrap();
    let shown = db.store.quotas(&[subject("token:k1")], NOW).await.unwrap();
    let own = shown
        .iter()
        .find(|quota| quota.subject == subject("token:k1") && quota.kind == QuotaKind::QueuedRuns);
    let own = own.unwrap();
    assert_eq!((own.limit, own.used, own.set), (5, Some(1), false));
}

async fn runs_per_minute_are_limited(db: &TestDb) {
    set_quota(db, "task:app", QuotaKind::RunsPerMinute, 2).await;
    for id in ["a", "b"] {
        request(db, task_run(id, "app", None), NOW).await.unwrap();
    }
    db.claim("a", 9, NOW).await;
    let refused = request(db, task_run("c", "app", None), NOW + 1).await;
    assert_eq!(refused.unwrap_err().kind, QuotaKind::RunsPerMinute);
    request(db, task_run("d", "other", None), NOW + 1)
        .await
        .unwrap();
    request(db, task_run("e", "app", None), NOW + 60_000)
        .await
        .unwrap();
}

fn fork_run(id: &str) -> NewRun {
    let mut new = task_run(id, "app", None);
    new.origin.needs_approval = true;
    new
}

async fn runs_of_forks_use_separate_quotas(db: &TestDb) {
    set_quota(db, "task:app", QuotaKind::QueuedRuns, 1).await;
    set_quota(db, "tasks:a*", QuotaKind::QueuedRuns, 1).await;
    set_quota(db, "task:app", QuotaKind::RunsPerMinute, 1).await;
    set_quota(db, "tasks:a*", QuotaKind::RunsPerMinute, 1).await;
    set_quota(db, "task:app", QuotaKind::PendingApprovals, 2).await;
    set_quota(db, "task:app", QuotaKind::PendingApprovalsPerMinute, 3).await;
    for id in ["f1", "f2"] {
        request(db, fork_run(id), NOW).await.unwrap();
    }
    let refused = request(db, fork_run("f3"), NOW).await.unwrap_err();
    assert_eq!(refused.kind, QuotaKind::PendingApprovals);
    // They block no run of the task itself.
    request(db, task_run("own", "app", None), NOW)
        .await
        .unwrap();
    let refused = request(db, task_run("own2", "app", None), NOW + 60_000)
        .await
        .unwrap_err();
    assert_eq!((refused.kind, refused.used), (QuotaKind::QueuedRuns, 1));
    db.store
        .request_cancel(&run_id("f1"), "closed", NOW)
        .await
        .unwrap();
    request(db, fork_run("f4"), NOW).await.unwrap();
    db.store
        .request_cancel(&run_id("f2"), "closed", NOW)
        .await
        .unwrap();
    let refused = request(db, fork_run("f5"), NOW).await.unwrap_err();
    assert_eq!(refused.kind, QuotaKind::PendingApprovalsPerMinute);
    request(db, fork_run("f6"), NOW + 60_000).await.unwrap();
    // An approved run counts as queued.
    db.store
        .approve(&run_id("f4"), &RunSpec::default(), "ann", NOW)
        .await
        .unwrap();
    let quotas = db
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

async fn fork_beyond_its_quota_is_ignored_with_a_reason(db: &TestDb) {
    set_quota(db, "task:*", QuotaKind::PendingApprovals, 1).await;
    let fork = |id: &str, ref_key: &str| {
        let mut evaluated = webhooks::run_decision(id, ref_key, "c1", true);
        if let TriggerAction::Run { new, .. } = &mut evaluated.action {
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
            vec![webhooks::run_decision("own", "t1 main", "c2", true)],
        ),
    ];
    let delivered = db.store.record_deliveries(delivered.into(), NOW).await;
    let led: Vec<_> = delivered
        .unwrap()
        .into_iter()
        .map(|one| webhooks::expect_new(one).0.remove(0))
        .collect();
    assert_eq!(led[0].0, DecisionAction::RunStarted);
    assert_eq!((led[1].0, &led[1].1), (DecisionAction::Ignored, &None));
    let reason =
        "the quota pendingApprovals of task:team/app is 1, and 1 are used; approve or cancel";
    assert!(led[1].2.starts_with(reason), "{}", led[1].2);
    assert_eq!(led[2].0, DecisionAction::RunStarted);
}

async fn prefixes_are_compared_by_bytes(db: &TestDb) {
    set_quota(db, "tasks:team-*", QuotaKind::QueuedRuns, 1).await;
    set_quota(db, "tasks:team-*", QuotaKind::LogBytes, 100).await;
    // Locales ignore punctuation and sort `teamx` between `team-a` and `team-z`.
    let run = start_logging_run(db, "other", "teamx").await;
    let reports = vec![log_chunk(0, 90), finished_report(RunState::Succeeded, 90)];
    db.report_all("a", &run, NOW, reports).await;
    let run = start_logging_run(db, "own", "team-a").await;
    let reports = vec![log_chunk(0, 7), finished_report(RunState::Succeeded, 7)];
    db.report_all("a", &run, NOW, reports).await;
    request(db, task_run("waits", "teamy", None), NOW)
        .await
        .unwrap();
    let quotas = db.store.quotas(&[], NOW).await.unwrap();
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

async fn concurrent_requests_do_not_exceed_a_quota(db: &TestDb) {
    set_quota(db, "token:k", QuotaKind::QueuedRuns, 5).await;
    let requests = (0..20).map(|number| {
        let new = task_run(&format!("r{number}"), &format!("t{number}"), Some("k"));
        request(db, new, NOW)
    });
    let answers = futures::future::join_all(requests).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
    // The quota also applies within one transaction.
    let more = (0..9).map(|number| task_run(&format!("m{number}"), "many", Some("k2")));
    set_quota(db, "token:k2", QuotaKind::QueuedRuns, 8).await;
    let refused = db.store.enqueue_many(more.collect(), NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    assert!(db.store.run(&run_id("m0")).await.is_err());
}

async fn repeated_request_returns_its_run_beyond_the_quota(db: &TestDb) {
    set_quota(db, "task:app", QuotaKind::QueuedRuns, 1).await;
    let with_key = |id: &str, key: &str| {
        let mut new = task_run(id, "app", None);
        new.idempotency_key = Some(key.into());
        new
    };
    request(db, with_key("one", "k"), NOW).await.unwrap();
    let again = request(db, with_key("two", "k"), NOW).await.unwrap();
    assert_eq!(again.row().id, run_id("one"));
    assert!(request(db, with_key("three", "other"), NOW).await.is_err());
}

async fn start_logging_run(db: &TestDb, id: &str, task: &str) -> acrtask_store::RunRow {
    request(db, task_run(id, task, None), NOW).await.unwrap();
    let run = db.claim("a", 1, NOW).await.remove(0);
    let begun = vec![Report::Accepted, Report::Started];
    db.report_all("a", &run, NOW, begun).await;
    run
}

async fn log_ends_at_the_quota_with_a_mark(db: &TestDb) {
    set_quota(db, "task:app", QuotaKind::LogBytesPerRun, 100).await;
    let run = start_logging_run(db, "one", "app").await;
    // Both chunks are in one batch, and the second one exceeds the quota.
    let verdicts = db
        .report_all("a", &run, NOW, vec![log_chunk(0, 60), log_chunk(60, 41)])
        .await;
    assert_eq!(verdicts[0], Verdict::Done);
    let Verdict::LogFull(exceeded) = &verdicts[1] else {
        panic!("{verdicts:?}");
    };
    assert_eq!((exceeded.limit, exceeded.used), (100, 60));
    assert_eq!(db.run_state("one").await, RunState::Running);
    assert_eq!(
        db.report("a", &run, NOW, log_chunk(60, 40)).await,
        Verdict::Done
    );
    let mark = |offset| Report::LogFull {
        offset,
        length: 30,
        blob: "mark".into(),
        reason: "the log is full".into(),
    };
    assert_eq!(
        db.report("a", &run, NOW, mark(60)).await,
        Verdict::LogAt(100)
    );
    assert_eq!(
        db.report("b", &run, NOW, mark(100)).await,
        refused("another runner leases the run")
    );
    assert_eq!(db.report("a", &run, NOW, mark(100)).await, Verdict::Done);
    let row = db.store.run(&run.id).await.unwrap();
    assert_eq!((row.state, row.log_length), (RunState::Error, 130));
    assert_eq!(row.reason.as_deref(), Some("the log is full"));
    let chunks = db.store.log_chunks(&run.id, 1, 100, 9).await.unwrap();
    assert_eq!(chunks[0].blob, "mark");
    let late = db
        .report("a", &run, NOW, finished_report(RunState::Succeeded, 130))
        .await;
    assert_eq!(late, refused("the run has finished: error"));
}

fn refused(reason: &str) -> Verdict {
    Verdict::Refused {
        reason: reason.into(),
    }
}

async fn stored_logs_of_a_task_are_limited_and_released(db: &TestDb) {
    set_quota(db, "task:app", QuotaKind::LogBytes, 100).await;
    let first = start_logging_run(db, "one", "app").await;
    let reports = vec![log_chunk(0, 90), finished_report(RunState::Succeeded, 90)];
    db.report_all("a", &first, NOW, reports).await;
    let second = start_logging_run(db, "two", "app").await;
    let full = db.report("a", &second, NOW, log_chunk(0, 11)).await;
    assert!(matches!(full, Verdict::LogFull(_)), "{full:?}");
    let reports = vec![log_chunk(0, 10), finished_report(RunState::Succeeded, 10)];
    db.report_all("a", &second, NOW, reports).await;
    // The quota rejects another run of the task, but not of other tasks.
    let refused = request(db, task_run("three", "app", None), NOW).await;
    assert_eq!(refused.unwrap_err().kind, QuotaKind::LogBytes);
    request(db, task_run("four", "other", None), NOW)
        .await
        .unwrap();
    let later = NOW + 1_000;
    db.store.remove_expired(later, 10).await.unwrap();
    request(db, task_run("five", "app", None), NOW)
        .await
        .unwrap();
    let quotas = db.store.quotas(&[subject("task:app")], NOW).await.unwrap();
    let logs = quotas
        .iter()
        .find(|quota| quota.kind == QuotaKind::LogBytes);
    assert_eq!(logs.unwrap().used, Some(0));
}

async fn secrets_and_tasks_are_limited(db: &TestDb) {
    let store = &db.store;
    set_quota(db, "tasks:*", QuotaKind::Tasks, 3).await;
    set_quota(db, "tasks:team/*", QuotaKind::Tasks, 1).await;
    set_quota(db, "task:*", QuotaKind::Secrets, 1).await;
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
    store
        .put_secret("tteam/a", "one", b"x", None, NOW)
        .await
        .unwrap();
    store
        .put_secret("tteam/a", "one", b"y", None, NOW)
        .await
        .unwrap();
    let refused = store.put_secret("tteam/a", "two", b"x", None, NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    let login = async |host: &str| {
        let login = ("u", &b"x"[..]);
        store
            .put_credential("tteam/a", host, login, None, NOW)
            .await
    };
    let refused = login("h").await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    set_quota(db, "task:team/a", QuotaKind::Secrets, 2).await;
    login("h").await.unwrap();
    login("h").await.unwrap();
    let refused = store.put_secret("tteam/a", "two", b"x", None, NOW).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    store.put_secret("", "two", b"x", None, NOW).await.unwrap();
    // The secrets of prefixes count against the task limit of the caller.
    set_quota(db, "tasks:team/*", QuotaKind::Secrets, 1).await;
    let put = async |scope: &str, limit| store.put_secret(scope, "x", b"x", limit, NOW).await;
    let limit = Some("team/*");
    put("team/b*", limit).await.unwrap();
    put("team/b*", limit).await.unwrap();
    let refused = put("team/c*", limit).await;
    assert!(matches!(refused, Err(StoreError::Quota(_))), "{refused:?}");
    put("team/c*", None).await.unwrap();
    put("teams*", Some("teams*")).await.unwrap();
}

async fn unfinished_uploads_expire(db: &TestDb) {
    let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
    let store = &db.store;
    store
        .create_context("c1", 10, &digest, &context_owner(), NOW)
        .await
        .unwrap();
    store.add_part("c1", 0, 4, "part", NOW).await.unwrap();
    let kept = store.expire_uploads(NOW, 10).await.unwrap();
    assert_eq!(kept.contexts, 0);
    let gone = store.expire_uploads(NOW + 1, 10).await.unwrap();
    assert_eq!((gone.contexts, gone.blobs), (1, vec!["part".to_owned()]));
}
