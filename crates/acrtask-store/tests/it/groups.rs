//! Concurrency groups: who waits for whom.

use acrtask_model::RunState;
use acrtask_store::{Report, RunGroup, Store};

use crate::support::{Fixture, LEASE, NOW, finished, grouped, ids, new_run, on_both, run_id};

on_both!(
    a_group_runs_as_many_as_it_may,
    a_finish_a_cancel_and_the_reaper_let_the_next_one_go,
    a_newer_run_supersedes_what_came_before,
    a_place_is_kept_while_a_lost_run_waits,
    the_task_is_the_group_where_none_is_named,
    what_was_left_over_is_released,
    asked_for_at_once_only_one_may_run,
    a_chosen_name_reaches_no_group_of_the_server,
    a_superseded_run_names_no_run_of_another_task,
);

async fn held(fixture: &Fixture, ids: &[&str]) -> Vec<bool> {
    let mut held = Vec::new();
    for id in ids {
        held.push(fixture.store.run(&run_id(id)).await.unwrap().held);
    }
    held
}

async fn add(fixture: &Fixture, id: &str, max: u32) {
    fixture
        .store
        .enqueue(grouped(id, "g", max, false), NOW)
        .await
        .unwrap();
}

async fn a_group_runs_as_many_as_it_may(fixture: &Fixture) {
    for id in ["one", "two", "three", "four"] {
        add(fixture, id, 2).await;
    }
    fixture
        .store
        .enqueue(grouped("other", "h", 1, false), NOW)
        .await
        .unwrap();
    assert_eq!(
        held(fixture, &["one", "two", "three", "four", "other"]).await,
        [false, false, true, true, false]
    );
    assert_eq!(
        ids(&fixture.claim("a", 9, NOW).await),
        ["one", "two", "other"]
    );
    let position = fixture.store.position(&run_id("four")).await.unwrap();
    let behind = position.behind.unwrap();
    assert_eq!((behind.run, behind.count), (run_id("one"), 2));
    assert_eq!(fixture.store.release_groups(NOW).await.unwrap(), 0);
    assert_eq!(fixture.claim("a", 9, NOW).await, []);
    assert_eq!(fixture.store.unaccounted(NOW + 1, 0).await.unwrap(), []);
}

async fn a_finish_a_cancel_and_the_reaper_let_the_next_one_go(fixture: &Fixture) {
    for id in ["one", "two", "three", "four", "five"] {
        let mut new = grouped(id, "g", 1, false);
        new.max_attempts = 1;
        fixture.store.enqueue(new, NOW).await.unwrap();
    }
    let one = fixture.claim("a", 9, NOW).await;
    assert_eq!(ids(&one), ["one"]);
    fixture
        .say("a", &one[0], NOW, finished(RunState::Failed, 0))
        .await;
    // Two is queued and ready, and canceled: three goes.
    assert_eq!(held(fixture, &["two", "three"]).await, [false, true]);
    fixture
        .store
        .request_cancel(&run_id("two"), "x", NOW)
        .await
        .unwrap();
    let three = fixture.claim("a", 9, NOW).await;
    assert_eq!(ids(&three), ["three"]);
    fixture.say("a", &three[0], NOW, Report::Started).await;
    // Canceling one that is held frees nothing.
    fixture
        .store
        .request_cancel(&run_id("four"), "x", NOW)
        .await
        .unwrap();
    assert_eq!(held(fixture, &["five"]).await, [true]);
    fixture.store.reap(NOW + LEASE + 1, 9).await.unwrap();
    assert_eq!(fixture.state("three").await, RunState::Error);
    assert_eq!(ids(&fixture.claim("a", 9, NOW).await), ["five"]);
}

async fn a_newer_run_supersedes_what_came_before(fixture: &Fixture) {
    let store = &fixture.store;
    let add = |id: &'static str| store.enqueue(grouped(id, "g", 1, true), NOW);
    add("one").await.unwrap();
    let one = fixture.claim("a", 9, NOW).await.remove(0);
    add("two").await.unwrap();
    assert_eq!(held(fixture, &["two"]).await, [true]);
    let row = store.run(&one.id).await.unwrap();
    assert_eq!(row.state, RunState::Leased);
    assert_eq!(row.cancel_reason.as_deref(), Some("superseded by two"));
    assert_eq!(store.cancels().await.unwrap().len(), 1);
    // Two never ran: it ends at once. Three waits for one.
    store
        .enqueue_many(vec![grouped("three", "g", 1, true)], NOW)
        .await
        .unwrap();
    let two = store.run(&run_id("two")).await.unwrap();
    assert_eq!(
        (two.state, two.reason.as_deref()),
        (RunState::Canceled, Some("superseded by three"))
    );
    assert_eq!(fixture.claim("b", 9, NOW).await, []);
    fixture
        .say("a", &one, NOW, finished(RunState::Canceled, 0))
        .await;
    let row = store.run(&one.id).await.unwrap();
    assert_eq!(
        (row.state, row.reason.as_deref()),
        (RunState::Canceled, Some("superseded by two"))
    );
    assert_eq!(ids(&fixture.claim("b", 9, NOW).await), ["three"]);
    // In one batch, the last one wins.
    let batch = ["x", "y", "z"].map(|id| grouped(id, "h", 1, true));
    store.enqueue_many(batch.into(), NOW).await.unwrap();
    assert_eq!(ids(&fixture.claim("b", 9, NOW).await), ["z"]);
}

async fn a_place_is_kept_while_a_lost_run_waits(fixture: &Fixture) {
    add(fixture, "one", 1).await;
    add(fixture, "two", 1).await;
    fixture.claim("a", 9, NOW).await;
    let late = NOW + LEASE + 1;
    assert_eq!(
        fixture.store.reap(late, 9).await.unwrap()[0].to,
        RunState::Queued
    );
    assert_eq!(held(fixture, &["one", "two"]).await, [false, true]);
    assert_eq!(ids(&fixture.claim("a", 9, late).await), ["one"]);
}

async fn the_task_is_the_group_where_none_is_named(fixture: &Fixture) {
    for id in ["one", "two"] {
        let mut new = grouped(id, "", 1, false);
        new.task_name = Some("web".into());
        new.queue.concurrency.as_mut().unwrap().group = None;
        fixture.store.enqueue(new, NOW).await.unwrap();
    }
    let row = fixture.store.run(&run_id("two")).await.unwrap();
    let web = Some(RunGroup::Named("web".into()));
    assert_eq!((row.group, row.held), (web, true));
    // Without a task there is no group, either.
    let mut new = grouped("three", "", 1, false);
    new.queue.concurrency.as_mut().unwrap().group = None;
    let row = fixture.store.enqueue(new, NOW).await.unwrap().into_row();
    assert_eq!((row.group, row.held), (None, false));
}

async fn what_was_left_over_is_released(fixture: &Fixture) {
    fixture.store.enqueue(new_run("plain"), NOW).await.unwrap();
    for id in ["one", "two", "three"] {
        add(fixture, id, 1).await;
    }
    fixture
        .raw("UPDATE runs SET held = 1 WHERE id = 'one'")
        .await;
    let lost = fixture.store.unaccounted(NOW + 10, 5).await.unwrap();
    assert_eq!(lost.len(), 3);
    assert_eq!(
        lost[0].why,
        "its run one is held, though its group has room"
    );
    assert_eq!(fixture.store.release_groups(NOW).await.unwrap(), 1);
    assert_eq!(fixture.store.release_groups(NOW).await.unwrap(), 0);
    assert_eq!(
        held(fixture, &["one", "two", "three"]).await,
        [false, true, true]
    );
    assert_eq!(fixture.store.unaccounted(NOW + 10, 5).await.unwrap(), []);
}

async fn asked_for_at_once_only_one_may_run(fixture: &Fixture) {
    let other = Store::open(&fixture.url).await.unwrap();
    let mut asked = Vec::new();
    for number in 0..12 {
        let store = if number % 2 == 0 {
            &fixture.store
        } else {
            &other
        }
        .clone();
        asked.push(tokio::spawn(async move {
            let new = grouped(&format!("run-{number}"), "g", 1, number % 3 == 0);
            store.enqueue(new, NOW).await.unwrap();
        }));
    }
    for asked in asked {
        asked.await.unwrap();
    }
    // However they came, they all come to their end, one by one.
    let mut ended = 0;
    loop {
        let claimed = fixture.claim("a", 9, NOW).await;
        let Some(run) = claimed.first() else { break };
        assert_eq!(claimed.len(), 1);
        fixture
            .say("a", run, NOW, finished(RunState::Succeeded, 0))
            .await;
        ended += 1;
    }
    assert!(ended >= 1);
    let depth = fixture.store.queue_depth().await.unwrap();
    assert_eq!(depth, []);
}

/// Whatever a group is called, the runs that the server itself groups are neither canceled nor blocked by its runs.
async fn a_chosen_name_reaches_no_group_of_the_server(fixture: &Fixture) {
    let mut waiting = new_run("waiting");
    waiting.origin.needs_approval = true;
    let mut in_lane = new_run("lane");
    in_lane.origin.lane = Some("t1 branch main".into());
    in_lane.origin.one_at_a_time = true;
    for new in [waiting, in_lane] {
        fixture.store.enqueue(new, NOW).await.unwrap();
    }
    let row = fixture.store.run(&run_id("waiting")).await.unwrap();
    assert_eq!(row.group, Some(RunGroup::Approval(run_id("waiting"))));
    let row = fixture.store.run(&run_id("lane")).await.unwrap();
    assert_eq!(row.group, Some(RunGroup::Ref("t1 branch main".into())));
    let names = [
        "approval of waiting",
        "approval waiting",
        "t1 branch main",
        "ref t1 branch main",
        "named approval waiting",
    ];
    for (number, name) in names.into_iter().enumerate() {
        let id = format!("attack{number}");
        fixture
            .store
            .enqueue(grouped(&id, name, 1, true), NOW)
            .await
            .unwrap();
        for victim in ["waiting", "lane"] {
            assert_eq!(fixture.state(victim).await, RunState::Queued, "{name}");
        }
        assert_eq!(
            held(fixture, &["lane", &id]).await,
            [false, false],
            "{name}"
        );
    }
}

async fn a_superseded_run_names_no_run_of_another_task(fixture: &Fixture) {
    let of = |id: &str, task: &str| {
        let mut new = grouped(id, "shared", 1, true);
        new.task_name = Some(task.into());
        new
    };
    for (id, task) in [("a1", "team/a"), ("a2", "team/a"), ("b1", "prod/b")] {
        fixture.store.enqueue(of(id, task), NOW).await.unwrap();
    }
    let first = fixture.store.run(&run_id("a1")).await.unwrap();
    assert_eq!(first.reason.as_deref(), Some("superseded by a2"));
    let second = fixture.store.run(&run_id("a2")).await.unwrap();
    assert_eq!(
        second.reason.as_deref(),
        Some("superseded by a newer run of its group")
    );
    assert_eq!(first.superseded_by, Some(run_id("a2")));
    assert_eq!(second.superseded_by, Some(run_id("b1")));
}
