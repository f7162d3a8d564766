//! Cascades: their state, the runs that they start, and the images of these runs.

use acrtask_model::RunState;
use acrtask_store::{
    CascadeChange, CascadeFilter, CascadeNodeRow, CascadeRow, ImageFilter, Ms, NewCascadeRun,
    Report,
};

use crate::{
    images::{complete_run, create_task, run_result, sha},
    support::{NOW, TestDb, finished_report, new_run, on_both, run_id},
};

on_both!(
    changes_are_written_once_and_loaded_unchanged,
    concurrent_changes_have_one_winner,
    runs_start_and_stop_with_the_cascade,
    ended_runs_are_listed_until_handled,
    pushed_images_are_stored_with_previous_digest,
    staged_images_change_no_image,
    old_finished_cascades_expire,
);

pub(crate) fn cascade_row(id: u64, phase: &str, finished_at: Option<Ms>) -> CascadeRow {
    CascadeRow {
        id,
        created_at: NOW,
        phase: phase.into(),
        follows: (id > 1).then_some(id - 1),
        head: format!("{{\"id\":{id}}}"),
        awaiting_approval: false,
        stages_images: None,
        finished_at,
        active: true,
        promotion: "none".into(),
        promotion_by: None,
        promotion_at: None,
        promotion_error: None,
        promotion_next_at: None,
    }
}

fn node_row(cascade: u64, task: &str, state: &str) -> CascadeNodeRow {
    CascadeNodeRow {
        cascade,
        task: task.into(),
        state: state.into(),
        node: format!("{{\"state\":\"{state}\"}}"),
    }
}

fn new_cascade_run(cascade: u64, task: &str, attempt: u32, push_by_digest: bool) -> NewCascadeRun {
    let mut run = new_run(&format!("r{task}{cascade}{attempt}"));
    run.task_id = Some(format!("id-{task}"));
    run.task_name = Some(task.into());
    run.trigger = "cascade".into();
    run.idempotency_key = Some(format!("cascade/{cascade}/{task}/{attempt}"));
    NewCascadeRun {
        cascade,
        task: task.into(),
        attempt,
        push_by_digest,
        moved: vec![acrtask_api::cascade::DigestChange {
            reference: "r.io/base:1".into(),
            from: sha('1'),
            to: sha('2'),
        }],
        run,
    }
}

/// Returns a new cascade with a run of `task`.
pub(crate) fn cascade_with_run(id: u64, task: &str, push_by_digest: bool) -> CascadeChange {
    CascadeChange {
        next: id,
        cascades: vec![cascade_row(id, "active", None)],
        nodes: vec![node_row(id, task, "running")],
        runs: vec![new_cascade_run(id, task, 1, push_by_digest)],
        ..CascadeChange::default()
    }
}

pub(crate) async fn apply_change(db: &TestDb, change: &CascadeChange) -> bool {
    let version = db.store.cascade_version().await.unwrap();
    db.store
        .change_cascades(version, change, NOW)
        .await
        .unwrap()
}

async fn changes_are_written_once_and_loaded_unchanged(db: &TestDb) {
    let store = &db.store;
    let empty = store.load_cascades().await.unwrap();
    assert_eq!((empty.version, empty.next, empty.settings), (0, 0, None));
    let first = CascadeChange {
        next: 2,
        settings: Some("{}".into()),
        cascades: vec![
            cascade_row(1, "active", None),
            cascade_row(2, "settling", None),
        ],
        nodes: vec![
            node_row(1, "a", "ready"),
            node_row(2, "a", "pending"),
            node_row(1, "b", "pending"),
        ],
        attempts: vec![
            ("a".into(), Some("1".into())),
            ("b".into(), Some("2".into())),
        ],
        ..CascadeChange::default()
    };
    assert!(store.change_cascades(0, &first, NOW).await.unwrap());
    let mut loaded = store.load_cascades().await.unwrap();
    loaded
        .nodes
        .sort_by(|a, b| (a.cascade, &a.task).cmp(&(b.cascade, &b.task)));
    loaded.attempts.sort();
    assert_eq!((loaded.version, loaded.next), (1, 2));
    assert_eq!(loaded.settings.as_deref(), Some("{}"));
    assert_eq!(loaded.cascades, first.cascades);
    let expected = [
        node_row(1, "a", "ready"),
        node_row(1, "b", "pending"),
        node_row(2, "a", "pending"),
    ];
    assert_eq!(loaded.nodes, expected);
    assert_eq!(
        loaded.attempts,
        [("a".into(), "1".into()), ("b".into(), "2".into())]
    );
    // A change that was computed from an older version is rejected.
    let second = CascadeChange {
        next: 2,
        cascades: vec![cascade_row(1, "finished", Some(NOW + 5))],
        nodes: vec![node_row(1, "b", "failed")],
        attempts: vec![("a".into(), None)],
        ..CascadeChange::default()
    };
    assert!(!store.change_cascades(0, &second, NOW).await.unwrap());
    assert_eq!(store.cascade_nodes(1).await.unwrap(), expected[..2]);
    assert!(store.change_cascades(1, &second, NOW).await.unwrap());
    assert_eq!(
        store.cascade_nodes(1).await.unwrap(),
        [node_row(1, "a", "ready"), node_row(1, "b", "failed")]
    );
    let loaded = store.load_cascades().await.unwrap();
    assert_eq!(loaded.settings.as_deref(), Some("{}"), "it stays");
    assert_eq!(loaded.attempts, [("b".into(), "2".into())]);
    assert_eq!(store.cascade(1).await.unwrap().finished_at, Some(NOW + 5));
    assert!(store.cascade(3).await.is_err());
    let list = async |filter| {
        let rows = store.cascades(filter).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    let all = CascadeFilter {
        limit: 10,
        ..CascadeFilter::default()
    };
    assert_eq!(list(all.clone()).await, [2, 1]);
    let open = CascadeFilter {
        open: true,
        ..all.clone()
    };
    assert_eq!(list(open).await, [2]);
    let before = CascadeFilter {
        before: Some(2),
        ..all.clone()
    };
    assert_eq!(list(before).await, [1]);
    let of_task = |task: Option<&str>, prefix: Option<&str>, before| CascadeFilter {
        task: task.map(str::to_owned),
        task_prefix: prefix.map(str::to_owned),
        before,
        ..all.clone()
    };
    assert_eq!(list(of_task(Some("a"), None, None)).await, [2, 1]);
    assert_eq!(list(of_task(Some("a"), None, Some(2))).await, [1]);
    assert_eq!(list(of_task(Some("b"), None, None)).await, [1]);
    assert_eq!(list(of_task(Some("c"), None, None)).await, [0; 0]);
    assert_eq!(list(of_task(None, Some("b"), None)).await, [1]);
    assert_eq!(list(of_task(None, Some("bb"), None)).await, [0; 0]);
    assert_eq!(
        store.cascade_node_counts(vec![1, 2]).await.unwrap(),
        [
            (1, "failed".into(), 1),
            (1, "ready".into(), 1),
            (2, "pending".into(), 1)
        ]
    );
    let (phases, states) = store.cascade_counts().await.unwrap();
    assert_eq!(phases.len(), 2);
    assert_eq!(states, [("pending".into(), 1)]);
}

async fn concurrent_changes_have_one_winner(db: &TestDb) {
    for round in 0..5_i64 {
        let id = u64::try_from(round).unwrap() + 1;
        let change = cascade_with_run(id, "a", false);
        let tries = (0..8).map(|_| db.store.change_cascades(round, &change, NOW));
        let won = futures::future::join_all(tries).await;
        let won = won.into_iter().filter(|won| *won.as_ref().unwrap());
        assert_eq!(won.count(), 1, "{round}");
        assert_eq!(db.store.cascade_runs(id).await.unwrap().len(), 1);
    }
    assert_eq!(db.store.open_cascade_runs().await.unwrap().len(), 5);
}

async fn runs_start_and_stop_with_the_cascade(db: &TestDb) {
    let store = &db.store;
    let mut first = cascade_with_run(1, "a", false);
    first.nodes.push(node_row(1, "b", "running"));
    first.runs.push(new_cascade_run(1, "b", 1, false));
    assert!(apply_change(db, &first).await);
    let run = store.run(&run_id("ra11")).await.unwrap();
    assert_eq!(
        (run.state, run.trigger.as_str()),
        (RunState::Queued, "cascade")
    );
    // Starting the same attempt again returns the same run.
    let mut again = cascade_with_run(1, "a", false);
    again.runs[0].run.id = run_id("rother");
    assert!(apply_change(db, &again).await);
    assert!(store.run(&run_id("rother")).await.is_err());
    let ids = [run_id("rb11"), run_id("rother")];
    let of = store.cascades_of_runs(&ids).await.unwrap();
    assert_eq!(of.len(), 1);
    let of = &of[&run_id("rb11")];
    assert_eq!((of.id, of.attempt), (1, 1));
    assert_eq!(of.changes, first.runs[1].moved);
    assert_eq!(store.cascade_of_task("a").await.unwrap(), Some(1));
    assert_eq!(store.cascade_of_task("none").await.unwrap(), None);
    let runs = store.cascade_runs(1).await.unwrap();
    let shown: Vec<(&str, &str, Option<RunState>)> = runs
        .iter()
        .map(|run| (run.task.as_str(), run.run.as_str(), run.state))
        .collect();
    assert_eq!(
        shown,
        [
            ("a", "ra11", Some(RunState::Queued)),
            ("b", "rb11", Some(RunState::Queued))
        ]
    );
    // A queued run ends immediately, and a running one gets a cancellation request.
    let claimed = db.claim("x", 1, NOW).await.remove(0);
    db.report_all("x", &claimed, NOW, vec![Report::Accepted, Report::Started])
        .await;
    let stop = CascadeChange {
        next: 1,
        cancels: vec![
            ((1, "a".into(), 1), "cascade 1 was canceled by ann".into()),
            ((1, "b".into(), 1), "cascade 1 was canceled by ann".into()),
            ((1, "c".into(), 1), "there is none".into()),
        ],
        ..CascadeChange::default()
    };
    assert!(apply_change(db, &stop).await);
    let states = [db.run_state("ra11").await, db.run_state("rb11").await];
    assert!(states.contains(&RunState::Canceled) && states.contains(&RunState::Running));
    assert_eq!(store.cancel_requests().await.unwrap().len(), 1);
    assert_eq!(
        store
            .unaccounted_triggers(NOW + 1_000_000, 0)
            .await
            .unwrap()
            .len(),
        1,
        "the lease alone"
    );
}

async fn ended_runs_are_listed_until_handled(db: &TestDb) {
    let store = &db.store;
    create_task(db, "a").await;
    assert!(apply_change(db, &cascade_with_run(1, "a", false)).await);
    let open = store.open_cascade_runs().await.unwrap();
    assert_eq!(
        (open.len(), open[0].state, &open[0].result),
        (1, Some(RunState::Queued), &None)
    );
    let run = db.claim("x", 1, NOW).await.remove(0);
    db.report_all(
        "x",
        &run,
        NOW,
        vec![
            Report::Accepted,
            Report::Started,
            finished_report(RunState::Failed, 0),
        ],
    )
    .await;
    let open = store.open_cascade_runs().await.unwrap();
    assert_eq!(open[0].state, Some(RunState::Failed));
    assert_eq!(open[0].reason.as_deref(), Some("a step failed"));
    assert_eq!(
        open[0].result.as_ref().map(|result| result.vertices),
        Some(7)
    );
    let seen = CascadeChange {
        next: 1,
        seen: vec![(1, "a".into(), 1)],
        ..CascadeChange::default()
    };
    assert!(apply_change(db, &seen).await);
    assert_eq!(store.open_cascade_runs().await.unwrap(), []);
    // A run whose row was removed is still returned.
    assert!(apply_change(db, &cascade_with_run(2, "a", false)).await);
    db.execute("DELETE FROM runs WHERE id = 'ra21'").await;
    let open = store.open_cascade_runs().await.unwrap();
    assert_eq!((open.len(), open[0].state), (1, None));
}

async fn pushed_images_are_stored_with_previous_digest(db: &TestDb) {
    let store = &db.store;
    create_task(db, "a").await;
    let before = run_result(&[("r.io/a:1", 'a')], &[("base:1", '1')]);
    complete_run(db, "before", Some("a"), before, NOW).await;
    assert!(apply_change(db, &cascade_with_run(1, "a", false)).await);
    let run = db.claim("x", 1, NOW).await.remove(0);
    let after = run_result(
        &[("r.io/a:1", 'b'), ("r.io/new:1", 'c')],
        &[("base:1", '2')],
    );
    let end = Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(after),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    db.report_all(
        "x",
        &run,
        NOW + 9,
        vec![Report::Accepted, Report::Started, end.clone()],
    )
    .await;
    // A repeated report changes nothing.
    db.report("x", &run, NOW + 10, end).await;
    let images = store.cascade_images(1).await.unwrap();
    let shown: Vec<_> = images
        .iter()
        .map(|one| {
            (
                one.name.as_str(),
                one.before.clone(),
                one.after.clone(),
                one.state.as_str(),
                one.changed_at,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("r.io/a:1", Some(sha('a')), sha('b'), "promoted", NOW + 9),
            ("r.io/new:1", None, sha('c'), "promoted", NOW + 9)
        ]
    );
    assert_eq!(store.image("r.io/a:1").await.unwrap().0.digest, sha('b'));
    assert_eq!(store.staged_images().await.unwrap(), []);
    assert_eq!(store.cascade_run_times(1).await.unwrap().get("a"), Some(&0));
}

async fn staged_images_change_no_image(db: &TestDb) {
    let store = &db.store;
    create_task(db, "a").await;
    let before = run_result(&[("r.io/a:1", 'a')], &[("base:1", '1')]);
    complete_run(db, "before", Some("a"), before, NOW).await;
    assert!(apply_change(db, &cascade_with_run(1, "a", true)).await);
    let run = db.claim("x", 1, NOW).await.remove(0);
    let mut after = run_result(&[("r.io/a:1", 'b')], &[("base:1", '2')]);
    after.images[0].staged = true;
    let end = Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(after),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    db.report_all(
        "x",
        &run,
        NOW + 9,
        vec![Report::Accepted, Report::Started, end],
    )
    .await;
    let (image, bases) = store.image("r.io/a:1").await.unwrap();
    assert_eq!(
        (image.digest, bases[0].digest.clone()),
        (sha('a'), sha('1'))
    );
    assert!(image.newest);
    let staged = store.staged_images().await.unwrap();
    assert_eq!(staged.len(), 1);
    assert_eq!(
        (
            staged[0].cascade,
            staged[0].task.as_str(),
            &staged[0].digest
        ),
        (1, "a", &sha('b'))
    );
    assert_eq!(staged[0].bases[0].name, "docker.io/library/base:1");
    assert_eq!(staged[0].bases[0].digest, sha('2'));
    assert_eq!(store.cascade_images(1).await.unwrap()[0].state, "staged");
}

async fn old_finished_cascades_expire(db: &TestDb) {
    let store = &db.store;
    create_task(db, "a").await;
    let mut old = cascade_with_run(1, "a", false);
    old.cascades = vec![
        cascade_row(1, "finished", Some(NOW)),
        cascade_row(2, "finished", Some(NOW)),
    ];
    old.cascades[0].active = false;
    assert!(apply_change(db, &old).await);
    store.remove_expired(NOW, 10).await.unwrap();
    assert!(store.cascade(1).await.is_ok());
    store.remove_expired(NOW + 1, 10).await.unwrap();
    assert!(store.cascade(1).await.is_err());
    assert_eq!(store.cascade_nodes(1).await.unwrap(), []);
    assert_eq!(store.open_cascade_runs().await.unwrap(), []);
    assert!(store.cascade(2).await.is_ok(), "it is still loaded");
    let images = ImageFilter {
        limit: 1,
        ..ImageFilter::default()
    };
    assert_eq!(store.images(images).await.unwrap(), []);
}
