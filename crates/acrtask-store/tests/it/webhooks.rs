//! Deliveries and what they lead to: once, whole, and with a reason.

use std::collections::BTreeMap;

use acrtask_api::{
    run::Approval,
    spec::RunSpec,
    webhook::{OutcomeKind, WebhookDefinition},
};
use acrtask_model::{RunId, RunState};
use acrtask_store::{
    Delivered, DeliveryFilter, Ends, LeadsTo, Looked, NewDelivery, NewRun, RunFilter, Store,
    StoreError, StoredBody,
};

use crate::support::{Fixture, NOW, finished, grouped, new_run, on_both, run_id};

on_both!(
    a_webhook_is_kept_changed_and_removed,
    a_delivery_leads_to_something_once,
    the_same_delivery_from_two_servers_at_once,
    what_it_leads_to_is_told,
    the_same_body_under_another_id,
    the_newest_of_a_lane_wins,
    a_lane_that_everybody_wants_has_one_winner,
    a_closed_pull_request_ends_its_runs,
    a_strangers_run_waits_for_its_approval,
    deliveries_are_listed_and_expire,
    tasks_are_counted,
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

pub(crate) fn of_task(new: &mut NewRun, lane: &str, commit: &str) {
    new.task_id = Some("t1".into());
    new.task_name = Some("team/app".into());
    new.origin.lane = Some(lane.into());
    new.origin.commit = Some(commit.into());
}

pub(crate) fn looked(leads_to: LeadsTo) -> Looked {
    Looked {
        task: "team/app".into(),
        kind: "commit".into(),
        reason: "commit b2b2 was pushed to the branch `main`".into(),
        leads_to,
    }
}

pub(crate) fn run(id: &str, lane: &str, commit: &str, newest_wins: bool) -> Looked {
    let mut new = new_run(id);
    of_task(&mut new, lane, commit);
    looked(LeadsTo::Run {
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

/// What it led to, its run, and why.
type Led = (OutcomeKind, Option<String>, String);

#[track_caller]
pub(crate) fn new(delivered: Delivered) -> (Vec<Led>, Vec<RunId>) {
    match delivered {
        Delivered::New { outcomes, canceled } => (
            outcomes
                .into_iter()
                .map(|one| (one.what, one.run.map(|run| run.to_string()), one.reason))
                .collect(),
            canceled,
        ),
        Delivered::Seen(id) => panic!("it was seen before as {id}"),
    }
}

async fn a_webhook_is_kept_changed_and_removed(fixture: &Fixture) {
    let store = &fixture.store;
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

async fn a_delivery_leads_to_something_once(fixture: &Fixture) {
    let store = &fixture.store;
    let first = store
        .deliver(
            delivery("d1", "one"),
            vec![run("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(new(first).0[0].1.as_deref(), Some("ra"));
    let again = store
        .deliver(
            delivery("d2", "one"),
            vec![run("rb", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(again, Delivered::Seen("d1".into()));
    assert_eq!(all_runs(store).await, [run_id("ra")]);
    // The same id at another webhook is another delivery.
    let mut elsewhere = delivery("d3", "one");
    elsewhere.webhook = "other".into();
    let other = store.deliver(elsewhere, Vec::new(), NOW).await.unwrap();
    assert!(new(other).0.is_empty());
    assert_eq!(store.unaccounted(NOW + 1, 0).await.unwrap(), []);
    let row = store.run(&run_id("ra")).await.unwrap();
    assert_eq!(
        (row.lane.as_deref(), row.commit.as_deref()),
        (Some("t1 main"), Some("b2"))
    );
}

async fn the_same_delivery_from_two_servers_at_once(fixture: &Fixture) {
    let other = Store::open(&fixture.url).await.unwrap();
    for round in 0..20 {
        let mut tasks = tokio::task::JoinSet::new();
        for copy in 0..6 {
            let store = if copy % 2 == 0 {
                &fixture.store
            } else {
                &other
            }
            .clone();
            tasks.spawn(async move {
                store
                    .deliver(
                        delivery(&format!("d{round}-{copy}"), &format!("s{round}")),
                        vec![run(
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
    assert_eq!(all_runs(&fixture.store).await.len(), 20);
}

async fn what_it_leads_to_is_told(fixture: &Fixture) {
    let store = &fixture.store;
    let mut nothing = looked(LeadsTo::Nothing);
    nothing.task = "team/docs".into();
    nothing.reason = "none of the 2 files that changed counts for the task (docs/**)".into();
    let delivered = store
        .deliver(
            delivery("d1", "one"),
            vec![run("ra", "t1 main", "b2", false), nothing],
            NOW,
        )
        .await
        .unwrap();
    let (outcomes, _) = new(delivered);
    assert_eq!(outcomes[1].0, OutcomeKind::Suppressed);
    // The same commit by another way: one run stands for both.
    let joined = store
        .deliver(
            delivery("d2", "two"),
            vec![run("rb", "t1 main", "b2", false)],
            NOW + 1,
        )
        .await
        .unwrap();
    let (outcomes, _) = new(joined);
    assert_eq!(
        (outcomes[0].0, outcomes[0].1.as_deref()),
        (OutcomeKind::Joined, Some("ra"))
    );
    // Once it is over, another one is started.
    store.request_cancel(&run_id("ra"), "x", NOW).await.unwrap();
    let again = store
        .deliver(
            delivery("d3", "three"),
            vec![run("rc", "t1 main", "b2", false)],
            NOW + 2,
        )
        .await
        .unwrap();
    assert_eq!(new(again).0[0].0, OutcomeKind::Run);
    let read = store.delivery("d1").await.unwrap();
    let told: Vec<_> = read
        .outcomes
        .iter()
        .map(|one| (one.task.as_str(), one.what, one.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (
                "team/app",
                OutcomeKind::Run,
                "commit b2b2 was pushed to the branch `main`"
            ),
            (
                "team/docs",
                OutcomeKind::Suppressed,
                "none of the 2 files that changed counts for the task (docs/**)"
            ),
        ]
    );
    let read = store.delivery("d2").await.unwrap();
    assert_eq!(read.outcomes[0].what, OutcomeKind::Joined);
    assert_eq!(store.unaccounted(NOW + 10, 0).await.unwrap(), []);
}

async fn the_same_body_under_another_id(fixture: &Fixture) {
    let store = &fixture.store;
    let signed = |id: &str, sender: &str| NewDelivery {
        sha256: "the same".into(),
        replay_age: Some(0),
        ..delivery(id, sender)
    };
    store
        .deliver(
            signed("d1", "one"),
            vec![run("ra", "t1 main", "b2", false)],
            NOW,
        )
        .await
        .unwrap();
    let replayed = store
        .deliver(
            signed("d2", "forged"),
            vec![run("rb", "t1 main", "b3", true)],
            NOW,
        )
        .await
        .unwrap();
    let (outcomes, canceled) = new(replayed);
    assert_eq!(outcomes[0].0, OutcomeKind::Suppressed);
    assert!(
        outcomes[0].2.contains("as delivery d1"),
        "{}",
        outcomes[0].2
    );
    assert_eq!(canceled, []);
    // Somebody who may asks for it.
    let asked = NewDelivery {
        redelivery_of: Some("d1".into()),
        replay_age: None,
        ..signed("d3", "again/d3")
    };
    let asked = store
        .deliver(asked, vec![run("rc", "t1 main", "b9", false)], NOW)
        .await
        .unwrap();
    assert_eq!(new(asked).0[0].0, OutcomeKind::Run);
    assert_eq!(all_runs(store).await.len(), 2);
}

async fn the_newest_of_a_lane_wins(fixture: &Fixture) {
    let store = &fixture.store;
    let send = async |n: u32, lane: &str, wins: bool| {
        let looked = vec![run(&format!("r{n}"), lane, &format!("c{n}"), wins)];
        let delivered = store
            .deliver(delivery(&format!("d{n}"), &format!("s{n}")), looked, NOW)
            .await
            .unwrap();
        new(delivered).1
    };
    assert_eq!(send(1, "t1 main", true).await, []);
    assert_eq!(send(2, "t1 other", true).await, []);
    let running = fixture.claim("a", 1, NOW).await.remove(0);
    assert_eq!(running.id, run_id("r1"));
    assert_eq!(send(3, "t1 main", true).await, [run_id("r1")]);
    let ending = store.run(&run_id("r1")).await.unwrap();
    assert_eq!(ending.cancel_reason.as_deref(), Some("superseded by r3"));
    assert_eq!(send(4, "t1 main", true).await, [run_id("r3")]);
    assert_eq!(fixture.state("r3").await, RunState::Canceled);
    assert_eq!(fixture.state("r2").await, RunState::Queued);
    // Where the task does not say so, both stay.
    assert_eq!(send(5, "t1 main", false).await, []);
    assert_eq!(fixture.state("r4").await, RunState::Queued);
}

async fn a_lane_that_everybody_wants_has_one_winner(fixture: &Fixture) {
    let other = Store::open(&fixture.url).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..60 {
        let store = if n % 2 == 0 { &fixture.store } else { &other }.clone();
        tasks.spawn(async move {
            let mut new = grouped(&format!("r{n}"), &format!("g{}", n % 3), 1, n % 4 == 0);
            of_task(&mut new, &format!("t1 lane{}", n % 2), &format!("c{n}"));
            let looked = looked(LeadsTo::Run {
                new: Box::new(new),
                newest_wins: true,
                may_join: true,
                status: None,
            });
            loop {
                let delivery = delivery(&format!("d{n}"), &format!("s{n}"));
                match store.deliver(delivery, vec![looked.clone()], NOW).await {
                    Err(error) if error.is_unavailable() => {}
                    delivered => break delivered.unwrap(),
                }
            }
        });
    }
    for delivered in tasks.join_all().await {
        assert_eq!(new(delivered).0[0].0, OutcomeKind::Run);
    }
    let filter = RunFilter {
        states: vec![RunState::Queued],
        limit: 1000,
        ..RunFilter::default()
    };
    let (live, _) = fixture.store.runs(filter).await.unwrap();
    for lane in ["t1 lane0", "t1 lane1"] {
        let of_lane = live
            .iter()
            .filter(|run| run.lane.as_deref() == Some(lane))
            .count();
        assert!(of_lane <= 1, "{lane} has {of_lane}");
    }
    assert_eq!(all_runs(&fixture.store).await.len(), 60);
    assert_eq!(fixture.store.unaccounted(NOW + 1, 0).await.unwrap(), []);
}

async fn a_closed_pull_request_ends_its_runs(fixture: &Fixture) {
    let store = &fixture.store;
    for (n, lane) in [(1, "t1 pull/7"), (2, "t1 pull/7"), (3, "t1 pull/8")] {
        let looked = vec![run(&format!("r{n}"), lane, &format!("c{n}"), false)];
        store
            .deliver(delivery(&format!("d{n}"), &format!("s{n}")), looked, NOW)
            .await
            .unwrap();
    }
    let mut closed = looked(LeadsTo::Cancel {
        lane: "t1 pull/7".into(),
        ends: Ends::All,
    });
    closed.reason = "pull request 7 was closed".into();
    let delivered = store
        .deliver(delivery("d9", "s9"), vec![closed.clone()], NOW)
        .await
        .unwrap();
    let (outcomes, canceled) = new(delivered);
    assert_eq!(canceled, [run_id("r1"), run_id("r2")]);
    assert_eq!(
        outcomes[0].2,
        "pull request 7 was closed, so its runs r1, r2 end"
    );
    assert_eq!(fixture.state("r2").await, RunState::Canceled);
    assert_eq!(fixture.state("r3").await, RunState::Queued);
    let delivered = store
        .deliver(delivery("d10", "s10"), vec![closed], NOW)
        .await
        .unwrap();
    assert_eq!(
        new(delivered).0[0].2,
        "pull request 7 was closed, and no run of it was left"
    );
}

async fn a_strangers_run_waits_for_its_approval(fixture: &Fixture) {
    let store = &fixture.store;
    for (id, group) in [("ra", None), ("rb", Some("g")), ("rc", Some("g"))] {
        let mut new = match group {
            Some(group) => grouped(id, group, 1, false),
            None => new_run(id),
        };
        new.origin.needs_approval = true;
        store.enqueue(new, NOW).await.unwrap();
    }
    // What needs none is not kept from its turn by what waits.
    store
        .enqueue(grouped("rd", "g", 1, false), NOW)
        .await
        .unwrap();
    assert_eq!(store.release_groups(NOW).await.unwrap(), 0);
    let claimed = fixture.claim("a", 9, NOW).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].id, run_id("rd"));
    assert_eq!(
        store.unaccounted(NOW + 60_000, 0).await.unwrap().len(),
        1,
        "rd alone is late"
    );
    let waiting = store.run(&run_id("ra")).await.unwrap();
    assert_eq!(
        (waiting.approval, waiting.held),
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
            approved.held,
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
    // In a group it takes its turn after that.
    let approved = store
        .approve(&run_id("rb"), &spec, "ann", NOW)
        .await
        .unwrap();
    assert!(approved.held);
    assert_eq!(fixture.claim("b", 9, NOW).await.len(), 1);
    fixture
        .say("a", &claimed[0], NOW, finished(RunState::Failed, 0))
        .await;
    assert_eq!(fixture.claim("b", 9, NOW).await[0].id, run_id("rb"));
    store
        .request_cancel(&run_id("rc"), "closed", NOW)
        .await
        .unwrap();
    let over = store
        .approve(&run_id("rc"), &spec, "ann", NOW)
        .await
        .unwrap_err();
    assert_eq!(over.to_string(), "the run rc is over: canceled");
}

async fn deliveries_are_listed_and_expire(fixture: &Fixture) {
    let store = &fixture.store;
    for n in 0..5_i64 {
        let mut one = delivery(&format!("d{n}"), &format!("s{n}"));
        one.webhook = if n == 3 { "other" } else { "forge" }.into();
        if n == 0 {
            one.body = StoredBody::Blob("deliveries/d0".into());
        }
        let looked = vec![looked(LeadsTo::Nothing)];
        store.deliver(one, looked, NOW + n).await.unwrap();
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
    let expired = store.expire(NOW + 2, 100).await.unwrap();
    assert_eq!(
        (expired.deliveries, expired.blobs),
        (2, vec!["deliveries/d0".to_owned()])
    );
    assert_eq!(page(None, None).await.0, ["d4", "d3"]);
    assert!(store.delivery("d0").await.is_err());
}

async fn tasks_are_counted(fixture: &Fixture) {
    let store = &fixture.store;
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
