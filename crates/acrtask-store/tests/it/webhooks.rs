//! Deliveries and their decisions: once, completely, and with a reason.

use std::collections::BTreeMap;

use acrtask_api::{
    run::Approval,
    spec::RunSpec,
    webhook::{DecisionAction, WebhookDefinition},
};
use acrtask_model::{RunId, RunState};
use acrtask_store::{
    CancelScope, Delivered, DeliveryFilter, NewDelivery, NewRun, RunFilter, Store, StoreError,
    StoredBody, TriggerAction, TriggerDecision,
};

use crate::support::{NOW, TestDb, finished_report, grouped, new_run, on_both, run_id};

on_both!(
    webhook_is_stored_changed_and_removed,
    delivery_has_an_effect_once,
    concurrent_copies_of_a_delivery_have_one_effect,
    decisions_are_stored_with_the_delivery,
    replayed_body_is_ignored,
    newest_run_of_a_ref_wins,
    contended_ref_has_one_live_run,
    closed_pull_request_cancels_its_runs,
    run_of_a_fork_waits_for_approval,
    deliveries_are_listed_and_expire,
    task_version_grows_with_each_change,
);

pub(crate) fn delivery(id: &str, sender_id: &str) -> NewDelivery {
    NewDelivery {
        id: id.into(),
        webhook: "forge".into(),
        sender_id: sender_id.into(),
        kind: "push".into(),
        repository: Some("git.example.com/team/app".into()),
        summary: "commit b2b2 came to the branch `main`".into(),
        note: None,
        redelivery_of: None,
        headers: "{}".into(),
        watches: Vec::new(),
        size: 2,
        sha256: format!("sha of {sender_id}"),
        body: StoredBody::Inline(b"{}".to_vec()),
        replay_age: None,
    }
}

pub(crate) fn set_task(new: &mut NewRun, ref_key: &str, commit: &str) {
    new.task_id = Some("t1".into());
    new.task_name = Some("team/app".into());
    new.origin.ref_key = Some(ref_key.into());
    new.origin.commit = Some(commit.into());
}

pub(crate) fn decision(action: TriggerAction) -> TriggerDecision {
    TriggerDecision {
        task: "team/app".into(),
        kind: "commit".into(),
        reason: "commit b2b2 was pushed to the branch `main`".into(),
        action,
    }
}

pub(crate) fn run_decision(
    id: &str,
    ref_key: &str,
    commit: &str,
    newest_wins: bool,
) -> TriggerDecision {
    let mut new = new_run(id);
    set_task(&mut new, ref_key, commit);
    decision(TriggerAction::Run {
        new: Box::new(new),
        newest_wins,
        may_join: true,
        status: Some("{}".into()),
    })
}

pub(crate) async fn all_runs(store: &Store) -> Vec<RunId> {
    let filter = RunFilter {
        limit: 1000,
        ..RunFilter::default()
    };
    let (rows, _) = store.runs(filter).await.unwrap();
    rows.into_iter().map(|row| row.id).collect()
}

/// Kind of a decision, its run, and its reason.
type Decision = (DecisionAction, Option<String>, String);

#[track_caller]
pub(crate) fn expect_new(delivered: Delivered) -> (Vec<Decision>, Vec<RunId>) {
    match delivered {
        Delivered::New { outcomes, canceled } => (
            outcomes
                .into_iter()
                .map(|one| (one.what, one.run.map(|run| run.to_string()), one.reason))
                .collect(),
            canceled,
        ),
        Delivered::Duplicate(id) => panic!("it was seen before as {id}"),
    }
}

async fn webhook_is_stored_changed_and_removed(db: &TestDb) {
    let store = &db.store;
    let mut definition = WebhookDefinition {
        provider: "github".into(),
        ..WebhookDefinition::default()
    };
    let made = store
        .put_webhook("forge", &definition, b"sealed", NOW)
        .await
        .unwrap();
    assert_eq!(
        (made.created_at, made.secrets.as_slice()),
        (NOW, b"sealed".as_slice())
    );
    definition.repositories = vec!["https://h/a.git".into()];
    let changed = store
        .put_webhook("forge", &definition, b"other", NOW + 1)
        .await
        .unwrap();
    assert_eq!((changed.created_at, changed.updated_at), (NOW, NOW + 1));
    assert_eq!(store.webhooks().await.unwrap(), [changed]);
    store.delete_webhook("forge").await.unwrap();
    for missing in [
        store.delete_webhook("forge").await,
        store.webhook("forge").await.map(drop),
    ] {
        assert!(matches!(missing, Err(StoreError::NotFound { .. })));
    }
}

async fn delivery_has_an_effect_once(db: &TestDb) {
    let store = &db.store;
    let first = store
        .record_delivery(
            delivery("d1", "one"),
            vec![run_decision("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(expect_new(first).0[0].1.as_deref(), Some("ra"));
    let again = store
        .record_delivery(
            delivery("d2", "one"),
            vec![run_decision("rb", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(again, Delivered::Duplicate("d1".into()));
    assert_eq!(all_runs(store).await, [run_id("ra")]);
    // The same sender id at another webhook is another delivery.
    let mut elsewhere = delivery("d3", "one");
    elsewhere.webhook = "other".into();
    let other = store
        .record_delivery(elsewhere, Vec::new(), NOW)
        .await
        .unwrap();
    assert!(expect_new(other).0.is_empty());
    assert_eq!(store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
    let row = store.run(&run_id("ra")).await.unwrap();
    assert_eq!(
        (row.ref_key.as_deref(), row.commit.as_deref()),
        (Some("t1 main"), Some("b2"))
    );
}

async fn concurrent_copies_of_a_delivery_have_one_effect(db: &TestDb) {
    let other = Store::open(&db.url).await.unwrap();
    for round in 0..20 {
        let mut tasks = tokio::task::JoinSet::new();
        for copy in 0..6 {
            let store = if copy % 2 == 0 { &db.store } else { &other }.clone();
            tasks.spawn(async move {
                store
                    .record_delivery(
                        delivery(&format!("d{round}-{copy}"), &format!("s{round}")),
                        vec![run_decision(
                            &format!("r{round}-{copy}"),
                            "t1 main",
                            &format!("c{round}"),
                            false,
                        )],
                        NOW,
                    )
                    .await
                    .unwrap()
            });
        }
        let all = tasks.join_all().await;
        let fresh = all
            .iter()
            .filter(|one| matches!(one, Delivered::New { .. }))
            .count();
        assert_eq!(fresh, 1, "round {round}");
    }
    assert_eq!(all_runs(&db.store).await.len(), 20);
}

async fn decisions_are_stored_with_the_delivery(db: &TestDb) {
    let store = &db.store;
    let mut nothing = decision(TriggerAction::Ignore);
    nothing.task = "team/docs".into();
    nothing.reason = "none of the 2 changed files matches the task's paths (docs/**)".into();
    let delivered = store
        .record_delivery(
            delivery("d1", "one"),
            vec![run_decision("ra", "t1 main", "b2", false), nothing],
            NOW,
        )
        .await
        .unwrap();
    let (outcomes, _) = expect_new(delivered);
    assert_eq!(outcomes[1].0, DecisionAction::Ignored);
    // Another delivery of the same commit joins its run.
    let joined = store
        .record_delivery(
            delivery("d2", "two"),
            vec![run_decision("rb", "t1 main", "b2", false)],
            NOW + 1,
        )
        .await
        .unwrap();
    let (outcomes, _) = expect_new(joined);
    assert_eq!(
        (outcomes[0].0, outcomes[0].1.as_deref()),
        (DecisionAction::ExistingRun, Some("ra"))
    );
    // After the run has finished, another one is started.
    store.request_cancel(&run_id("ra"), "x", NOW).await.unwrap();
    let again = store
        .record_delivery(
            delivery("d3", "three"),
            vec![run_decision("rc", "t1 main", "b2", false)],
            NOW + 2,
        )
        .await
        .unwrap();
    assert_eq!(expect_new(again).0[0].0, DecisionAction::RunStarted);
    let read = store.delivery("d1").await.unwrap();
    let outcomes: Vec<_> = read
        .outcomes
        .iter()
        .map(|one| (one.task.as_str(), one.what, one.reason.as_str()))
        .collect();
    assert_eq!(
        outcomes,
        [
            (
                "team/app",
                DecisionAction::RunStarted,
                "commit b2b2 was pushed to the branch `main`"
            ),
            (
                "team/docs",
                DecisionAction::Ignored,
                "none of the 2 changed files matches the task's paths (docs/**)"
            ),
        ]
    );
    let read = store.delivery("d2").await.unwrap();
    assert_eq!(read.outcomes[0].what, DecisionAction::ExistingRun);
    assert_eq!(store.unaccounted_triggers(NOW + 10, 0).await.unwrap(), []);
}

async fn replayed_body_is_ignored(db: &TestDb) {
    let store = &db.store;
    let signed = |id: &str, sender: &str| NewDelivery {
        sha256: "the same".into(),
        replay_age: Some(0),
        ..delivery(id, sender)
    };
    store
        .record_delivery(
            signed("d1", "one"),
            vec![run_decision("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    let replayed = store
        .record_delivery(
            signed("d2", "forged"),
            vec![run_decision("rb", "t1 main", "b3", true)],
            NOW,
        )
        .await
        .unwrap();
    let (outcomes, canceled) = expect_new(replayed);
    assert_eq!(outcomes[0].0, DecisionAction::Ignored);
    assert!(
        outcomes[0].2.contains("as delivery d1"),
        "{}",
        outcomes[0].2
    );
    assert_eq!(canceled, []);
    // An authorized user requests the redelivery.
    let asked = NewDelivery {
        redelivery_of: Some("d1".into()),
        replay_age: None,
        ..signed("d3", "again/d3")
    };
    let asked = store
        .record_delivery(asked, vec![run_decision("rc", "t1 main", "b9", false)], NOW)
        .await
        .unwrap();
    assert_eq!(expect_new(asked).0[0].0, DecisionAction::RunStarted);
    assert_eq!(all_runs(store).await.len(), 2);
}

async fn newest_run_of_a_ref_wins(db: &TestDb) {
    let store = &db.store;
    let send = async |n: u32, ref_key: &str, wins: bool| {
        let decisions = vec![run_decision(
            &format!("r{n}"),
            ref_key,
            &format!("c{n}"),
            wins,
        )];
        let delivered = store
            .record_delivery(delivery(&format!("d{n}"), &format!("s{n}")), decisions, NOW)
            .await
            .unwrap();
        expect_new(delivered).1
    };
    assert_eq!(send(1, "t1 main", true).await, []);
    assert_eq!(send(2, "t1 other", true).await, []);
    let running = db.claim("a", 1, NOW).await.remove(0);
    assert_eq!(running.id, run_id("r1"));
    assert_eq!(send(3, "t1 main", true).await, [run_id("r1")]);
    let ending = store.run(&run_id("r1")).await.unwrap();
    assert_eq!(ending.cancel_reason.as_deref(), Some("superseded by r3"));
    assert_eq!(send(4, "t1 main", true).await, [run_id("r3")]);
    assert_eq!(db.run_state("r3").await, RunState::Canceled);
    assert_eq!(db.run_state("r2").await, RunState::Queued);
    // Without that option both runs stay.
    assert_eq!(send(5, "t1 main", false).await, []);
    assert_eq!(db.run_state("r4").await, RunState::Queued);
}

async fn contended_ref_has_one_live_run(db: &TestDb) {
    let other = Store::open(&db.url).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..60 {
        let store = if n % 2 == 0 { &db.store } else { &other }.clone();
        tasks.spawn(async move {
            let mut new = grouped(&format!("r{n}"), &format!("g{}", n % 3), 1, n % 4 == 0);
            set_task(&mut new, &format!("t1 ref_key{}", n % 2), &format!("c{n}"));
            let decision = decision(TriggerAction::Run {
                new: Box::new(new),
                newest_wins: true,
                may_join: true,
                status: None,
            });
            loop {
                let delivery = delivery(&format!("d{n}"), &format!("s{n}"));
                match store
                    .record_delivery(delivery, vec![decision.clone()], NOW)
                    .await
                {
                    Err(error) if error.is_unavailable() => {}
                    delivered => break delivered.unwrap(),
                }
            }
        });
    }
    for delivered in tasks.join_all().await {
        assert_eq!(expect_new(delivered).0[0].0, DecisionAction::RunStarted);
    }
    let filter = RunFilter {
        states: vec![RunState::Queued],
        limit: 1000,
        ..RunFilter::default()
    };
    let (live, _) = db.store.runs(filter).await.unwrap();
    for ref_key in ["t1 lane0", "t1 lane1"] {
        let of_lane = live
            .iter()
            .filter(|run| run.ref_key.as_deref() == Some(ref_key))
            .count();
        assert!(of_lane <= 1, "{ref_key} has {of_lane}");
    }
    assert_eq!(all_runs(&db.store).await.len(), 60);
    assert_eq!(db.store.unaccounted_triggers(NOW + 1, 0).await.unwrap(), []);
}

async fn closed_pull_request_cancels_its_runs(db: &TestDb) {
    let store = &db.store;
    for (n, ref_key) in [(1, "t1 pull/7"), (2, "t1 pull/7"), (3, "t1 pull/8")] {
        let decisions = vec![run_decision(
            &format!("r{n}"),
            ref_key,
            &format!("c{n}"),
            false,
        )];
        store
            .record_delivery(delivery(&format!("d{n}"), &format!("s{n}")), decisions, NOW)
            .await
            .unwrap();
    }
    let mut closed = decision(TriggerAction::Cancel {
        ref_key: "t1 pull/7".into(),
        scope: CancelScope::All,
    });
    closed.reason = "pull request 7 was closed".into();
    let delivered = store
        .record_delivery(delivery("d9", "s9"), vec![closed.clone()], NOW)
        .await
        .unwrap();
    let (outcomes, canceled) = expect_new(delivered);
    assert_eq!(canceled, [run_id("r1"), run_id("r2")]);
    assert_eq!(
        outcomes[0].2,
        "pull request 7 was closed, so its runs r1, r2 end"
    );
    assert_eq!(db.run_state("r2").await, RunState::Canceled);
    assert_eq!(db.run_state("r3").await, RunState::Queued);
    let delivered = store
        .record_delivery(delivery("d10", "s10"), vec![closed], NOW)
        .await
        .unwrap();
    assert_eq!(
        expect_new(delivered).0[0].2,
        "pull request 7 was closed, and no run of it was left"
    );
}

async fn run_of_a_fork_waits_for_approval(db: &TestDb) {
    let store = &db.store;
    for (id, group) in [("ra", None), ("rb", Some("g")), ("rc", Some("g"))] {
        let mut new = match group {
            Some(group) => grouped(id, group, 1, false),
            None => new_run(id),
        };
        new.origin.needs_approval = true;
        store.enqueue(new, NOW).await.unwrap();
    }
    // A run that needs no approval does not wait for runs that do.
    store
        .enqueue(grouped("rd", "g", 1, false), NOW)
        .await
        .unwrap();
    assert_eq!(store.release_blocked_runs(NOW).await.unwrap(), 0);
    let claimed = db.claim("a", 9, NOW).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].id, run_id("rd"));
    assert_eq!(
        store
            .unaccounted_triggers(NOW + 60_000, 0)
            .await
            .unwrap()
            .len(),
        1,
        "rd alone is late"
    );
    let waiting = store.run(&run_id("ra")).await.unwrap();
    assert_eq!(
        (waiting.approval, waiting.blocked),
        (Some(Approval::Pending), true)
    );
    assert_eq!(store.position(&run_id("ra")).await.unwrap().behind, None);
    let spec = RunSpec {
        secrets: vec!["s".into()],
        ..RunSpec::default()
    };
    let approved = store
        .approve(&run_id("ra"), &spec, "ann", NOW)
        .await
        .unwrap();
    assert_eq!(
        (
            approved.approval,
            approved.blocked,
            approved.approved_by.as_deref()
        ),
        (Some(Approval::Approved), false, Some("ann"))
    );
    assert_eq!(approved.spec, spec);
    let twice = store
        .approve(&run_id("ra"), &spec, "bob", NOW)
        .await
        .unwrap_err();
    assert_eq!(twice.to_string(), "the run ra is approved already");
    let needless = store
        .approve(&run_id("rd"), &spec, "bob", NOW)
        .await
        .unwrap_err();
    assert_eq!(needless.to_string(), "the run rd needs no approval");
    // A run in a group then waits for its turn.
    let approved = store
        .approve(&run_id("rb"), &spec, "ann", NOW)
        .await
        .unwrap();
    assert!(approved.blocked);
    assert_eq!(db.claim("b", 9, NOW).await.len(), 1);
    db.report("a", &claimed[0], NOW, finished_report(RunState::Failed, 0))
        .await;
    assert_eq!(db.claim("b", 9, NOW).await[0].id, run_id("rb"));
    store
        .request_cancel(&run_id("rc"), "closed", NOW)
        .await
        .unwrap();
    let over = store
        .approve(&run_id("rc"), &spec, "ann", NOW)
        .await
        .unwrap_err();
    assert_eq!(over.to_string(), "the run rc has finished: canceled");
}

async fn deliveries_are_listed_and_expire(db: &TestDb) {
    let store = &db.store;
    for n in 0..5_i64 {
        let mut one = delivery(&format!("d{n}"), &format!("s{n}"));
        one.webhook = if n == 3 { "other" } else { "forge" }.into();
        if n == 0 {
            one.body = StoredBody::Blob("deliveries/d0".into());
        }
        let decisions = vec![decision(TriggerAction::Ignore)];
        store
            .record_delivery(one, decisions, NOW + n)
            .await
            .unwrap();
    }
    let page = async |webhook: Option<&str>, before: Option<String>| {
        let filter = DeliveryFilter {
            webhook: webhook.map(str::to_owned),
            before,
            limit: 2,
            ..DeliveryFilter::default()
        };
        let (rows, next) = store.deliveries(filter).await.unwrap();
        (rows.into_iter().map(|row| row.id).collect::<Vec<_>>(), next)
    };
    let (first, next) = page(None, None).await;
    assert_eq!(first, ["d4", "d3"]);
    let (second, next) = page(None, next).await;
    assert_eq!(second, ["d2", "d1"]);
    assert_eq!(page(None, next).await, (vec!["d0".to_owned()], None));
    assert_eq!(page(Some("other"), None).await.0, ["d3"]);
    let wrong = DeliveryFilter {
        before: Some("nonsense".into()),
        limit: 1,
        ..DeliveryFilter::default()
    };
    assert!(store.deliveries(wrong).await.is_err());
    assert_eq!(
        store.delivery_body("d0").await.unwrap(),
        StoredBody::Blob("deliveries/d0".into())
    );
    assert_eq!(
        store.delivery_body("d1").await.unwrap(),
        StoredBody::Inline(b"{}".to_vec())
    );
    let expired = store.remove_expired(NOW + 2, 100).await.unwrap();
    assert_eq!(
        (expired.deliveries, expired.blobs),
        (2, vec!["deliveries/d0".to_owned()])
    );
    assert_eq!(page(None, None).await.0, ["d4", "d3"]);
    assert!(store.delivery("d0").await.is_err());
}

async fn task_version_grows_with_each_change(db: &TestDb) {
    let store = &db.store;
    let mut seen = vec![store.task_version().await.unwrap()];
    let definition: acrtask_api::task::TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": "a", "cmd": "x"})).unwrap();
    store
        .create_task("t1", &definition, None, NOW)
        .await
        .unwrap();
    seen.push(store.task_version().await.unwrap());
    store
        .update_task("a", &definition, None, None, NOW)
        .await
        .unwrap();
    seen.push(store.task_version().await.unwrap());
    assert_eq!(
        store.task_generations().await.unwrap(),
        [("t1".to_owned(), 2, BTreeMap::new())]
    );
    let ids = vec!["t1".to_owned(), "t2".to_owned()];
    assert_eq!(store.tasks_by_id(ids).await.unwrap().len(), 1);
    store.delete_task("a").await.unwrap();
    seen.push(store.task_version().await.unwrap());
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}
