//! Cascades: their state, the runs that they start, and what these push.

use acrtask_model::RunState;
use acrtask_store::{
    CascadeChange, CascadeFilter, CascadeNodeRow, CascadeRow, ImageFilter, Ms, NewCascadeRun,
    Report,
};

use crate::{
    images::{ran, result, sha, task},
    support::{Fixture, NOW, finished, new_run, on_both, run_id},
};

on_both!(
    a_change_is_written_once_and_loaded_as_it_was,
    of_many_servers_one_wins,
    runs_start_and_stop_with_the_state,
    ends_are_told_until_they_are_seen,
    what_a_run_pushed_is_known_with_what_was_there_before,
    what_is_held_back_moves_nothing,
    what_has_been_over_for_long_goes,
);

pub(crate) fn cascade(id: u64, phase: &str, over_at: Option<Ms>) -> CascadeRow {
    CascadeRow {
        id,
        created_at: NOW,
        phase: phase.into(),
        follows: (id > 1).then_some(id - 1),
        head: format!("{{\"id\":{id}}}"),
        waits: false,
        holds: None,
        over_at,
        active: true,
        promotion: "none".into(),
        promotion_by: None,
        promotion_at: None,
        promotion_error: None,
        promotion_next_at: None,
    }
}

fn node(cascade: u64, task: &str, state: &str) -> CascadeNodeRow {
    CascadeNodeRow {
        cascade,
        task: task.into(),
        state: state.into(),
        node: format!("{{\"state\":\"{state}\"}}"),
    }
}

fn start(cascade: u64, task: &str, attempt: u32, held: bool) -> NewCascadeRun {
    let mut run = new_run(&format!("r{task}{cascade}{attempt}"));
    run.task_id = Some(format!("id-{task}"));
    run.task_name = Some(task.into());
    run.trigger = "cascade".into();
    run.idempotency_key = Some(format!("cascade/{cascade}/{task}/{attempt}"));
    NewCascadeRun {
        cascade,
        task: task.into(),
        attempt,
        held,
        moved: vec![acrtask_api::cascade::MovedBase {
            name: "r.io/base:1".into(),
            from: sha('1'),
            to: sha('2'),
        }],
        run,
    }
}

/// A cascade with a run of `task`.
pub(crate) fn begun(id: u64, task: &str, held: bool) -> CascadeChange {
    CascadeChange {
        next: id,
        cascades: vec![cascade(id, "active", None)],
        nodes: vec![node(id, task, "running")],
        runs: vec![start(id, task, 1, held)],
        ..CascadeChange::default()
    }
}

pub(crate) async fn change(fixture: &Fixture, change: &CascadeChange) -> bool {
    let version = fixture.store.cascade_version().await.unwrap();
    fixture
        .store
        .change_cascades(version, change, NOW)
        .await
        .unwrap()
}

async fn a_change_is_written_once_and_loaded_as_it_was(fixture: &Fixture) {
    let store = &fixture.store;
    let empty = store.load_cascades().await.unwrap();
    assert_eq!((empty.version, empty.next, empty.settings), (0, 0, None));
    let first = CascadeChange {
        next: 2,
        settings: Some("{}".into()),
        cascades: vec![cascade(1, "active", None), cascade(2, "settling", None)],
        nodes: vec![
            node(1, "a", "ready"),
            node(2, "a", "pending"),
            node(1, "b", "pending"),
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
        node(1, "a", "ready"),
        node(1, "b", "pending"),
        node(2, "a", "pending"),
    ];
    assert_eq!(loaded.nodes, expected);
    assert_eq!(
        loaded.attempts,
        [("a".into(), "1".into()), ("b".into(), "2".into())]
    );
    // Who made a change of an older version is told.
    let second = CascadeChange {
        next: 2,
        cascades: vec![cascade(1, "over", Some(NOW + 5))],
        nodes: vec![node(1, "b", "failed")],
        attempts: vec![("a".into(), None)],
        ..CascadeChange::default()
    };
    assert!(!store.change_cascades(0, &second, NOW).await.unwrap());
    assert_eq!(store.cascade_nodes(1).await.unwrap(), expected[..2]);
    assert!(store.change_cascades(1, &second, NOW).await.unwrap());
    assert_eq!(
        store.cascade_nodes(1).await.unwrap(),
        [node(1, "a", "ready"), node(1, "b", "failed")]
    );
    let loaded = store.load_cascades().await.unwrap();
    assert_eq!(loaded.settings.as_deref(), Some("{}"), "it stays");
    assert_eq!(loaded.attempts, [("b".into(), "2".into())]);
    assert_eq!(store.cascade(1).await.unwrap().over_at, Some(NOW + 5));
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

async fn of_many_servers_one_wins(fixture: &Fixture) {
    for round in 0..5_i64 {
        let id = u64::try_from(round).unwrap() + 1;
        let change = begun(id, "a", false);
        let tries = (0..8).map(|_| fixture.store.change_cascades(round, &change, NOW));
        let won = futures::future::join_all(tries).await;
        let won = won.into_iter().filter(|won| *won.as_ref().unwrap());
        assert_eq!(won.count(), 1, "{round}");
        assert_eq!(fixture.store.cascade_runs(id).await.unwrap().len(), 1);
    }
    assert_eq!(fixture.store.open_cascade_runs().await.unwrap().len(), 5);
}

async fn runs_start_and_stop_with_the_state(fixture: &Fixture) {
    let store = &fixture.store;
    let mut first = begun(1, "a", false);
    first.nodes.push(node(1, "b", "running"));
    first.runs.push(start(1, "b", 1, false));
    assert!(change(fixture, &first).await);
    let run = store.run(&run_id("ra11")).await.unwrap();
    assert_eq!(
        (run.state, run.trigger.as_str()),
        (RunState::Queued, "cascade")
    );
    // The same start again is the same run.
    let mut again = begun(1, "a", false);
    again.runs[0].run.id = run_id("rother");
    assert!(change(fixture, &again).await);
    assert!(store.run(&run_id("rother")).await.is_err());
    let ids = [run_id("rb11"), run_id("rother")];
    let of = store.cascades_of_runs(&ids).await.unwrap();
    assert_eq!(of.len(), 1);
    let of = &of[&run_id("rb11")];
    assert_eq!((of.id, of.attempt), (1, 1));
    assert_eq!(of.moved, first.runs[1].moved);
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
    // One that waits is over at once, and of one that runs the runner is told.
    let claimed = fixture.claim("x", 1, NOW).await.remove(0);
    fixture
        .say_all("x", &claimed, NOW, vec![Report::Accepted, Report::Started])
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
    assert!(change(fixture, &stop).await);
    let states = [fixture.state("ra11").await, fixture.state("rb11").await];
    assert!(states.contains(&RunState::Canceled) && states.contains(&RunState::Running));
    assert_eq!(store.cancels().await.unwrap().len(), 1);
    assert_eq!(
        store.unaccounted(NOW + 1_000_000, 0).await.unwrap().len(),
        1,
        "the lease alone"
    );
}

async fn ends_are_told_until_they_are_seen(fixture: &Fixture) {
    let store = &fixture.store;
    task(fixture, "a").await;
    assert!(change(fixture, &begun(1, "a", false)).await);
    let open = store.open_cascade_runs().await.unwrap();
    assert_eq!(
        (open.len(), open[0].state, &open[0].result),
        (1, Some(RunState::Queued), &None)
    );
    let run = fixture.claim("x", 1, NOW).await.remove(0);
    fixture
        .say_all(
            "x",
            &run,
            NOW,
            vec![
                Report::Accepted,
                Report::Started,
                finished(RunState::Failed, 0),
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
    assert!(change(fixture, &seen).await);
    assert_eq!(store.open_cascade_runs().await.unwrap(), []);
    // One whose row is gone is told of, too.
    assert!(change(fixture, &begun(2, "a", false)).await);
    fixture.raw("DELETE FROM runs WHERE id = 'ra21'").await;
    let open = store.open_cascade_runs().await.unwrap();
    assert_eq!((open.len(), open[0].state), (1, None));
}

async fn what_a_run_pushed_is_known_with_what_was_there_before(fixture: &Fixture) {
    let store = &fixture.store;
    task(fixture, "a").await;
    let before = result(&[("r.io/a:1", 'a')], &[("base:1", '1')]);
    ran(fixture, "before", Some("a"), before, NOW).await;
    assert!(change(fixture, &begun(1, "a", false)).await);
    let run = fixture.claim("x", 1, NOW).await.remove(0);
    let after = result(
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
    fixture
        .say_all(
            "x",
            &run,
            NOW + 9,
            vec![Report::Accepted, Report::Started, end.clone()],
        )
        .await;
    // Said again, it changes nothing.
    fixture.say("x", &run, NOW + 10, end).await;
    let images = store.cascade_images(1).await.unwrap();
    let shown: Vec<_> = images
        .iter()
        .map(|one| {
            (
                one.name.as_str(),
                one.before.clone(),
                one.after.clone(),
                one.state.as_str(),
                one.at,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("r.io/a:1", Some(sha('a')), sha('b'), "moved", NOW + 9),
            ("r.io/new:1", None, sha('c'), "moved", NOW + 9)
        ]
    );
    assert_eq!(store.image("r.io/a:1").await.unwrap().0.digest, sha('b'));
    assert_eq!(store.held_images().await.unwrap(), []);
    assert_eq!(store.cascade_run_times(1).await.unwrap().get("a"), Some(&0));
}

async fn what_is_held_back_moves_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    task(fixture, "a").await;
    let before = result(&[("r.io/a:1", 'a')], &[("base:1", '1')]);
    ran(fixture, "before", Some("a"), before, NOW).await;
    assert!(change(fixture, &begun(1, "a", true)).await);
    let run = fixture.claim("x", 1, NOW).await.remove(0);
    let mut after = result(&[("r.io/a:1", 'b')], &[("base:1", '2')]);
    after.images[0].held = true;
    let end = Report::Finished {
        state: RunState::Succeeded,
        reason: None,
        result: Box::new(after),
        log_length: 0,
        log_sha256: "ab".repeat(32),
    };
    fixture
        .say_all(
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
    let held = store.held_images().await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!(
        (held[0].cascade, held[0].task.as_str(), &held[0].digest),
        (1, "a", &sha('b'))
    );
    assert_eq!(held[0].bases[0].name, "docker.io/library/base:1");
    assert_eq!(held[0].bases[0].digest, sha('2'));
    assert_eq!(store.cascade_images(1).await.unwrap()[0].state, "held");
}

async fn what_has_been_over_for_long_goes(fixture: &Fixture) {
    let store = &fixture.store;
    task(fixture, "a").await;
    let mut old = begun(1, "a", false);
    old.cascades = vec![cascade(1, "over", Some(NOW)), cascade(2, "over", Some(NOW))];
    old.cascades[0].active = false;
    assert!(change(fixture, &old).await);
    store.expire(NOW, 10).await.unwrap();
    assert!(store.cascade(1).await.is_ok());
    store.expire(NOW + 1, 10).await.unwrap();
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
