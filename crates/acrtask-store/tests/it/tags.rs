//! Newer tags of base images: lists, what is proposed, and runs that try one.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::image::BaseStatus;
use acrtask_model::RunState;
use acrtask_store::{Listed, NewRun, ProposalKey, Seen, Store, Try, WatchFilter};

use crate::{
    images::{ran, result, sha, task},
    support::{Fixture, NOW, new_run, on_both, run_id},
};

on_both!(
    a_list_goes_to_one_server,
    a_tag_is_tried_by_one_run,
    what_has_succeeded_is_given_to_later_runs,
    looks_are_written_down_together,
);

const REPOSITORY: &str = "r.io/base";

fn key(used: &str) -> ProposalKey {
    ProposalKey {
        task_id: "id-app".into(),
        repository: REPOSITORY.into(),
        used: used.into(),
    }
}

fn tries(id: &str, tag: &str) -> NewRun {
    let mut run = new_run(id);
    run.task_id = Some("id-app".into());
    run.task_name = Some("app".into());
    run.idempotency_key = Some(format!("base-tag/id-app/{REPOSITORY}/{tag}"));
    run.spec.base_tags = BTreeMap::from([(REPOSITORY.to_owned(), tag.to_owned())]);
    run
}

async fn a_list_goes_to_one_server(fixture: &Fixture) {
    let store = &fixture.store;
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
    // The lease is over, and another one has it: what the first one says is nothing.
    let other = store
        .claim_tag_lists(NOW + 1001, 1000, 10)
        .await
        .unwrap()
        .remove(0);
    let tags = |list: &[&str]| Listed::Tags(list.iter().map(|tag| (*tag).to_owned()).collect());
    store
        .listed(&mine, &tags(&["old"]), NOW, NOW + 5000)
        .await
        .unwrap();
    assert_eq!(store.tags(&mine).await.unwrap(), None);
    store
        .listed(&other, &tags(&["1", "2"]), NOW + 1500, NOW + 5000)
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
    // What is known stays known.
    assert_eq!(
        store
            .hurry_tag_lists(Some(vec![REPOSITORY.into()]), NOW + 2000)
            .await
            .unwrap(),
        1
    );
    let again = store
        .claim_tag_lists(NOW + 2000, 1000, 10)
        .await
        .unwrap()
        .remove(0);
    let denied = Listed::Failed {
        status: BaseStatus::Denied,
        detail: "no".into(),
    };
    store
        .listed(&again, &denied, NOW + 2000, NOW + 9000)
        .await
        .unwrap();
    let row = store.tag_lists().await.unwrap().remove(0);
    assert_eq!((row.status, row.failures), (BaseStatus::Denied, 1));
    assert_eq!(store.tags(&row).await.unwrap().unwrap().len(), 2);
    // A registry that asks to wait is left alone here too.
    store.postpone("r.io", "", NOW + 60_000).await.unwrap();
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

async fn a_tag_is_tried_by_one_run(fixture: &Fixture) {
    task(fixture, "app").await;
    let two = Store::open(&fixture.url).await.unwrap();
    let (key, at) = (key("1"), NOW);
    let (a, b) = (tries("a", "2"), tries("b", "2"));
    let (one, other) = tokio::join!(
        fixture.store.propose(&key, "2", Try::Run(Box::new(a)), at),
        two.propose(&key, "2", Try::Run(Box::new(b)), at)
    );
    let started: Vec<_> = [one.unwrap(), other.unwrap()]
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(started.len(), 1);
    let rows = fixture.store.proposals().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(
        rows[0].run,
        Some((started[0].clone(), Some(RunState::Queued)))
    );
    // It is forgotten and found again: the run is the same.
    fixture
        .store
        .forget_proposals(std::slice::from_ref(&key))
        .await
        .unwrap();
    let again = fixture
        .store
        .propose(&key, "2", Try::Run(Box::new(tries("c", "2"))), at + 5)
        .await
        .unwrap();
    assert_eq!(again, None);
    let rows = fixture.store.proposals().await.unwrap();
    assert_eq!(rows[0].run.as_ref().map(|(run, _)| run), Some(&started[0]));
    // A newer one is another one.
    let next = fixture
        .store
        .propose(&key, "3", Try::Run(Box::new(tries("d", "3"))), at + 9)
        .await
        .unwrap();
    assert_eq!(next, Some(run_id("d")));
    let rows = fixture.store.proposals().await.unwrap();
    assert_eq!((rows[0].newest.as_str(), rows[0].found_at), ("3", at + 9));
    // Blocked, then not; and of a task that is gone there is nothing.
    let blocked = Try::Blocked {
        reason: "no secret".into(),
    };
    fixture
        .store
        .propose(&key, "4", blocked, at + 10)
        .await
        .unwrap();
    let rows = fixture.store.proposals().await.unwrap();
    assert_eq!(
        (rows[0].blocked.as_deref(), &rows[0].run),
        (Some("no secret"), &None)
    );
    fixture
        .store
        .propose(&key, "4", Try::Run(Box::new(tries("e", "4"))), at + 11)
        .await
        .unwrap();
    let rows = fixture.store.proposals().await.unwrap();
    assert!(rows[0].blocked.is_none() && rows[0].run.is_some());
    fixture.store.delete_task("app").await.unwrap();
    assert_eq!(fixture.store.proposals().await.unwrap(), []);
    let gone = fixture
        .store
        .propose(&key, "5", Try::Run(Box::new(tries("f", "5"))), at + 12)
        .await
        .unwrap();
    assert_eq!(gone, None);
    assert_eq!(fixture.store.proposals().await.unwrap(), []);
}

async fn what_has_succeeded_is_given_to_later_runs(fixture: &Fixture) {
    task(fixture, "app").await;
    let tags = async || fixture.store.task("app").await.unwrap().base_tags;
    let made = || result(&[("r.io/app:1", '1')], &[("r.io/base:2", 'b')]);
    ran(fixture, "other", Some("app"), made(), NOW).await;
    assert_eq!(tags().await, BTreeMap::new());
    let run = Try::Run(Box::new(tries("tried", "2")));
    fixture
        .store
        .propose(&key("1"), "2", run, NOW)
        .await
        .unwrap();
    let version = fixture.store.task("app").await.unwrap().generation;
    let run = fixture.claim("a", 1, NOW).await.remove(0);
    let finished = acrtask_store::Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(made()),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    let said = [
        acrtask_store::Report::Accepted,
        acrtask_store::Report::Started,
        finished,
    ];
    fixture.say_all("a", &run, NOW, said.into()).await;
    let expected = BTreeMap::from([(REPOSITORY.to_owned(), "2".to_owned())]);
    assert_eq!(tags().await, expected);
    let after = fixture.store.task("app").await.unwrap();
    assert_eq!(after.generation, version, "its definition is what it was");
    // A change of the definition leaves them.
    let definition = after.definition;
    fixture
        .store
        .update_task("app", &definition, None, None, NOW)
        .await
        .unwrap();
    assert_eq!(tags().await, expected);
}

async fn looks_are_written_down_together(fixture: &Fixture) {
    let store = &fixture.store;
    let names = ["r.io/a:1", "r.io/b:1", "r.io/c:1", "r.io/d:1"];
    let wanted = names.map(|name| (name.to_owned(), String::new())).into();
    store.set_watches(&wanted, NOW).await.unwrap();
    let holds = |letter| Seen::Digest {
        digest: sha(letter),
        etag: None,
        platforms: None,
    };
    let mut due = store.claim_watches(NOW, 1000, 10).await.unwrap();
    due.sort_by(|a, b| a.name.cmp(&b.name));
    let first: Vec<_> = due
        .iter()
        .map(|row| (row.clone(), holds('a'), NOW))
        .collect();
    assert_eq!(store.watched_all(&first, NOW).await.unwrap(), []);
    let mut due = store.claim_watches(NOW + 1, 1000, 10).await.unwrap();
    due.sort_by(|a, b| a.name.cmp(&b.name));
    let lost = due.remove(3);
    store.unwatched(&lost, NOW + 50).await.unwrap();
    let failed = Seen::Failed {
        status: BaseStatus::Unreachable,
        detail: "nobody".into(),
    };
    let seen = [Seen::Same, holds('b'), failed, holds('c')];
    let looks: Vec<_> = due
        .into_iter()
        .chain([lost])
        .zip(seen)
        .map(|(row, seen)| (row, seen, NOW + 100))
        .collect();
    let moves = store.watched_all(&looks, NOW + 2).await.unwrap();
    let moved: Vec<(&str, _)> = moves
        .iter()
        .map(|(name, change)| (name.as_str(), &change.new))
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
            // Its lease was given back before.
            (BaseStatus::Ok, NOW + 50, Some(NOW)),
        ]
    );
}
