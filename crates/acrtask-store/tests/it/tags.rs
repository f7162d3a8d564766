//! Newer tags of base images: tag lists, proposals, and runs that try a tag.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::image::BaseStatus;
use acrtask_model::RunState;
use acrtask_store::{
    NewRun, PollResult, ProposalAction, ProposalKey, Store, TagListResult, WatchFilter,
};

use crate::{
    images::{complete_run, create_task, run_result, sha},
    support::{NOW, TestDb, new_run, on_both, run_id},
};

on_both!(
    tag_list_is_leased_to_one_server,
    tag_is_tried_by_one_run,
    later_runs_use_tags_of_successful_runs,
    poll_results_are_recorded_in_batches,
);

const REPOSITORY: &str = "r.io/base";

fn proposal_key(used: &str) -> ProposalKey {
    ProposalKey {
        task_id: "id-app".into(),
        repository: REPOSITORY.into(),
        used: used.into(),
    }
}

fn trial_run(id: &str, tag: &str) -> NewRun {
    let mut run = new_run(id);
    run.task_id = Some("id-app".into());
    run.task_name = Some("app".into());
    run.idempotency_key = Some(format!("base-tag/id-app/{REPOSITORY}/{tag}"));
    run.spec.base_tags = BTreeMap::from([(REPOSITORY.to_owned(), tag.to_owned())]);
    run
}

async fn tag_list_is_leased_to_one_server(db: &TestDb) {
    let store = &db.store;
    let wanted = BTreeSet::from([(REPOSITORY.to_owned(), String::new())]);
    assert_eq!(store.set_tag_lists(&wanted, NOW).await.unwrap(), 1);
    assert_eq!(store.set_tag_lists(&wanted, NOW).await.unwrap(), 0);
    let mine = store
        .claim_tag_lists(NOW, 1000, 10)
        .await
        .unwrap()
        .remove(0);
    assert_eq!(store.claim_tag_lists(NOW, 1000, 10).await.unwrap(), []);
    assert_eq!(mine.registry, "r.io");
    assert_eq!(store.tags(&mine).await.unwrap(), None);
    // The lease has expired and another server has the next one, so the first result is ignored.
    let other = store
        .claim_tag_lists(NOW + 1001, 1000, 10)
        .await
        .unwrap()
        .remove(0);
    let tags =
        |list: &[&str]| TagListResult::Tags(list.iter().map(|tag| (*tag).to_owned()).collect());
    store
        .record_tag_list(&mine, &tags(&["old"]), NOW, NOW + 5000)
        .await
        .unwrap();
    assert_eq!(store.tags(&mine).await.unwrap(), None);
    store
        .record_tag_list(&other, &tags(&["1", "2"]), NOW + 1500, NOW + 5000)
        .await
        .unwrap();
    assert_eq!(
        store.tags(&mine).await.unwrap(),
        Some(vec!["1".into(), "2".into()])
    );
    assert_eq!(
        store.claim_tag_lists(NOW + 4999, 1000, 10).await.unwrap(),
        []
    );
    // Known tags stay known after a failure.
    assert_eq!(
        store
            .mark_tag_lists_due(Some(vec![REPOSITORY.into()]), NOW + 2000)
            .await
            .unwrap(),
        1
    );
    let again = store
        .claim_tag_lists(NOW + 2000, 1000, 10)
        .await
        .unwrap()
        .remove(0);
    let denied = TagListResult::Failed {
        status: BaseStatus::Denied,
        detail: "no".into(),
    };
    store
        .record_tag_list(&again, &denied, NOW + 2000, NOW + 9000)
        .await
        .unwrap();
    let row = store.tag_lists().await.unwrap().remove(0);
    assert_eq!((row.status, row.failures), (BaseStatus::Denied, 1));
    assert_eq!(store.tags(&row).await.unwrap().unwrap().len(), 2);
    // A rate limit of a registry also postpones tag lists.
    store
        .postpone_registry("r.io", "", NOW + 60_000)
        .await
        .unwrap();
    assert_eq!(
        store.claim_tag_lists(NOW + 59_999, 1000, 10).await.unwrap(),
        []
    );
    assert_eq!(
        store
            .set_tag_lists(&BTreeSet::new(), NOW + 70_000)
            .await
            .unwrap(),
        0
    );
    assert_eq!(store.tag_lists().await.unwrap(), []);
}

async fn tag_is_tried_by_one_run(db: &TestDb) {
    create_task(db, "app").await;
    let two = Store::open(&db.url).await.unwrap();
    let (key, at) = (proposal_key("1"), NOW);
    let (a, b) = (trial_run("a", "2"), trial_run("b", "2"));
    let (one, other) = tokio::join!(
        db.store
            .propose(&key, "2", ProposalAction::Run(Box::new(a)), at),
        two.propose(&key, "2", ProposalAction::Run(Box::new(b)), at)
    );
    let started: Vec<_> = [one.unwrap(), other.unwrap()]
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(started.len(), 1);
    let rows = db.store.proposals().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        rows[0].run,
        Some((started[0].clone(), Some(RunState::Queued)))
    );
    // A proposal that was removed and found again keeps its run.
    db.store
        .forget_proposals(std::slice::from_ref(&key))
        .await
        .unwrap();
    let again = db
        .store
        .propose(
            &key,
            "2",
            ProposalAction::Run(Box::new(trial_run("c", "2"))),
            at + 5,
        )
        .await
        .unwrap();
    assert_eq!(again, None);
    let rows = db.store.proposals().await.unwrap();
    assert_eq!(rows[0].run.as_ref().map(|(run, _)| run), Some(&started[0]));
    // A newer tag gets another run.
    let next = db
        .store
        .propose(
            &key,
            "3",
            ProposalAction::Run(Box::new(trial_run("d", "3"))),
            at + 9,
        )
        .await
        .unwrap();
    assert_eq!(next, Some(run_id("d")));
    let rows = db.store.proposals().await.unwrap();
    assert_eq!((rows[0].newest.as_str(), rows[0].found_at), ("3", at + 9));
    // A blocked tag may become possible later. A removed task gets no proposals.
    let blocked = ProposalAction::Blocked {
        reason: "no secret".into(),
    };
    db.store.propose(&key, "4", blocked, at + 10).await.unwrap();
    let rows = db.store.proposals().await.unwrap();
    assert_eq!(
        (rows[0].blocked.as_deref(), &rows[0].run),
        (Some("no secret"), &None)
    );
    db.store
        .propose(
            &key,
            "4",
            ProposalAction::Run(Box::new(trial_run("e", "4"))),
            at + 11,
        )
        .await
        .unwrap();
    let rows = db.store.proposals().await.unwrap();
    assert!(rows[0].blocked.is_none() && rows[0].run.is_some());
    db.store.delete_task("app").await.unwrap();
    assert_eq!(db.store.proposals().await.unwrap(), []);
    let gone = db
        .store
        .propose(
            &key,
            "5",
            ProposalAction::Run(Box::new(trial_run("f", "5"))),
            at + 12,
        )
        .await
        .unwrap();
    assert_eq!(gone, None);
    assert_eq!(db.store.proposals().await.unwrap(), []);
}

async fn later_runs_use_tags_of_successful_runs(db: &TestDb) {
    create_task(db, "app").await;
    let tags = async || db.store.task("app").await.unwrap().base_tags;
    let made = || run_result(&[("r.io/app:1", '1')], &[("r.io/base:2", 'b')]);
    complete_run(db, "other", Some("app"), made(), NOW).await;
    assert_eq!(tags().await, BTreeMap::new());
    let run = ProposalAction::Run(Box::new(trial_run("tried", "2")));
    db.store
        .propose(&proposal_key("1"), "2", run, NOW)
        .await
        .unwrap();
    let version = db.store.task("app").await.unwrap().generation;
    let run = db.claim("a", 1, NOW).await.remove(0);
    let finished = acrtask_store::Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(made()),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    let reports = [
        acrtask_store::Report::Accepted,
        acrtask_store::Report::Started,
        finished,
    ];
    db.report_all("a", &run, NOW, reports.into()).await;
    let expected = BTreeMap::from([(REPOSITORY.to_owned(), "2".to_owned())]);
    assert_eq!(tags().await, expected);
    let after = db.store.task("app").await.unwrap();
    assert_eq!(after.generation, version, "its definition is what it was");
    // A change of the definition leaves the tags unchanged.
    let definition = after.definition;
    db.store
        .update_task("app", &definition, None, None, NOW)
        .await
        .unwrap();
    assert_eq!(tags().await, expected);
}

async fn poll_results_are_recorded_in_batches(db: &TestDb) {
    let store = &db.store;
    let names = ["r.io/a:1", "r.io/b:1", "r.io/c:1", "r.io/d:1"];
    let wanted = names.map(|name| (name.to_owned(), String::new())).into();
    store.set_watches(&wanted, NOW).await.unwrap();
    let digest_result = |letter| PollResult::Digest {
        digest: sha(letter),
        etag: None,
        platforms: None,
    };
    let mut due = store.claim_watches(NOW, 1000, 10).await.unwrap();
    due.sort_by(|a, b| a.name.cmp(&b.name));
    let first: Vec<_> = due
        .iter()
        .map(|row| (row.clone(), digest_result('a'), NOW))
        .collect();
    assert_eq!(store.record_polls(&first, NOW).await.unwrap(), []);
    let mut due = store.claim_watches(NOW + 1, 1000, 10).await.unwrap();
    due.sort_by(|a, b| a.name.cmp(&b.name));
    let lost = due.remove(3);
    store.release_watch(&lost, NOW + 50).await.unwrap();
    let failed = PollResult::Failed {
        status: BaseStatus::Unreachable,
        detail: "no route".into(),
    };
    let seen = [
        PollResult::Unchanged,
        digest_result('b'),
        failed,
        digest_result('c'),
    ];
    let polls: Vec<_> = due
        .into_iter()
        .chain([lost])
        .zip(seen)
        .map(|(row, seen)| (row, seen, NOW + 100))
        .collect();
    let moves = store.record_polls(&polls, NOW + 2).await.unwrap();
    let moved: Vec<(&str, _)> = moves
        .iter()
        .map(|(name, change)| (name.as_str(), &change.to))
        .collect();
    assert_eq!(moved, [("r.io/b:1", &sha('b'))]);
    let filter = WatchFilter {
        limit: 10,
        ..WatchFilter::default()
    };
    let rows = store.watches(filter).await.unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|row| (row.status, row.next_check_at, row.checked_at))
        .collect();
    assert_eq!(
        shown,
        [
            (BaseStatus::Ok, NOW + 100, Some(NOW + 2)),
            (BaseStatus::Ok, NOW + 100, Some(NOW + 2)),
            (BaseStatus::Unreachable, NOW + 100, Some(NOW + 2)),
            // Its lease was returned before.
            (BaseStatus::Ok, NOW + 50, Some(NOW)),
        ]
    );
}
