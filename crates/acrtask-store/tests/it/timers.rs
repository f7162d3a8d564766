//! Timers, their firings, and triggers of a task.

use acrtask_api::task::{MissedFirings, TaskDefinition, Timer};
use acrtask_model::RunState;
use acrtask_store::{
    FiringAction, Ms, NewFiring, NewFirings, NewRun, Store, StoreError, TimerRow, TriggerUrlRow,
};

use crate::support::{NOW, TestDb, finished_report, grouped, new_run, on_both, run_id};

on_both!(
    timers_follow_task_definitions,
    changed_schedule_restarts_a_timer,
    concurrent_timer_syncs_agree,
    due_timers_are_listed_in_pages,
    unreadable_definition_blocks_no_other_timer,
    firing_is_stored_with_its_run,
    firing_is_recorded_by_one_server,
    failed_firing_leaves_no_rows,
    firing_of_changed_task_is_not_recorded,
    scheduled_time_never_starts_two_runs,
    audit_finds_lost_firings,
    triggers_of_a_task_are_listed,
    old_firings_are_removed_with_their_triggers,
    trigger_urls_belong_to_tasks,
);

const HOUR: Ms = 3_600_000;

fn task_definition(name: &str, timers: &[(&str, Timer)]) -> TaskDefinition {
    let mut definition: TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": name, "cmd": "alpine true"})).unwrap();
    definition.triggers.timers = timers
        .iter()
        .map(|(name, timer)| ((*name).to_owned(), timer.clone()))
        .collect();
    definition
}

fn hourly() -> Timer {
    Timer::new("0 * * * *")
}

/// Returns the next work of a timer: one hour after its last handled firing.
fn in_an_hour(_: &str, _: &str, timer: &Timer, handled: Ms) -> Option<Ms> {
    timer.enabled.then_some(handled + HOUR)
}

async fn sync_timers(store: &Store, now: Ms) -> bool {
    store.sync_timers(now, in_an_hour).await.unwrap()
}

async fn due_timers(store: &Store, now: Ms) -> Vec<TimerRow> {
    store.due_timers(now, None, 100).await.unwrap().0
}

async fn due_timer_names(store: &Store, now: Ms) -> Vec<(String, Ms)> {
    let rows = due_timers(store, now).await;
    rows.into_iter()
        .map(|row| (row.name, row.handled_at))
        .collect()
}

/// Creates a task with an hourly timer that is due.
async fn create_due_timer(db: &TestDb) -> TimerRow {
    let task = task_definition("app", &[("night", hourly())]);
    db.store.create_task("t1", &task, None, NOW).await.unwrap();
    sync_timers(&db.store, NOW).await;
    due_timers(&db.store, NOW + HOUR).await.remove(0)
}

fn timer_run(id: &str) -> NewRun {
    NewRun {
        task_id: Some("t1".into()),
        task_name: Some("app".into()),
        trigger: "timer".into(),
        ..new_run(id)
    }
}

fn run_at(at: Ms, run: NewRun) -> NewFiring {
    NewFiring {
        scheduled_at: at,
        first_at: at,
        stands_for: 1,
        action: FiringAction::Run(Box::new(run)),
    }
}

fn ignored_at(at: Ms, reason: &str) -> NewFiring {
    NewFiring {
        action: FiringAction::Ignore {
            reason: reason.into(),
        },
        ..run_at(at, new_run("unused"))
    }
}

fn firings(firings: Vec<NewFiring>) -> NewFirings {
    let handled_at = firings
        .iter()
        .map(|firing| firing.scheduled_at)
        .max()
        .unwrap();
    NewFirings {
        handled_at,
        next_at: Some(handled_at + HOUR),
        firings,
    }
}

async fn timers_follow_task_definitions(db: &TestDb) {
    let store = &db.store;
    assert!(
        sync_timers(store, NOW).await,
        "a new database was never synchronized"
    );
    assert!(!sync_timers(store, NOW).await);
    assert_eq!(store.next_timer().await.unwrap(), None);
    let off = Timer {
        enabled: false,
        ..hourly()
    };
    let task = task_definition("app", &[("a", hourly()), ("off", off)]);
    store.create_task("t1", &task, None, NOW).await.unwrap();
    let task = task_definition("other", &[("a", hourly())]);
    store.create_task("t2", &task, None, NOW + 5).await.unwrap();
    assert!(sync_timers(store, NOW + 10).await);
    assert!(!sync_timers(store, NOW + 10).await);
    assert_eq!(store.next_timer().await.unwrap(), Some(NOW + HOUR));
    assert_eq!(due_timers(store, NOW + HOUR - 1).await, []);
    assert_eq!(
        due_timer_names(store, NOW + 2 * HOUR).await,
        [("a".into(), NOW), ("a".into(), NOW + 5)]
    );
    // Removed timers disappear, with or without their task.
    store
        .update_task("app", &task_definition("app", &[]), None, None, NOW + 20)
        .await
        .unwrap();
    store.delete_task("other").await.unwrap();
    assert_eq!(due_timers(store, NOW + 2 * HOUR).await.len(), 1);
    assert!(sync_timers(store, NOW + 20).await);
    assert_eq!(due_timers(store, NOW + 2 * HOUR).await, []);
    assert_eq!(store.next_timer().await.unwrap(), None);
}

async fn changed_schedule_restarts_a_timer(db: &TestDb) {
    let store = &db.store;
    let change = async |timer: Timer, now: Ms| {
        let task = task_definition("app", &[("night", timer)]);
        store
            .update_task("app", &task, None, None, now)
            .await
            .unwrap();
        sync_timers(store, now).await;
        due_timer_names(store, Ms::MAX).await
    };
    let handled = |at: Ms| [("night".to_owned(), at)];
    create_due_timer(db).await;
    // A change that does not affect scheduled times keeps the last handled firing.
    let patient = Timer {
        missed: MissedFirings::Skip,
        jitter: Some("5m".into()),
        ..hourly()
    };
    assert_eq!(change(patient.clone(), NOW + 10).await, handled(NOW));
    let elsewhere = Timer {
        timezone: Some("Europe/Berlin".into()),
        ..patient.clone()
    };
    assert_eq!(change(elsewhere.clone(), NOW + 20).await, handled(NOW + 20));
    let other = Timer {
        schedule: "30 * * * *".into(),
        ..elsewhere
    };
    assert_eq!(change(other.clone(), NOW + 30).await, handled(NOW + 30));
    let off = Timer {
        enabled: false,
        ..other.clone()
    };
    assert_eq!(change(off, NOW + 40).await, []);
    assert_eq!(change(other, NOW + 50).await, handled(NOW + 50));
    // A clock far ahead does not stop a timer forever, and a clock ahead skips no future firing.
    db.execute(&format!(
        "UPDATE timers SET handled_at = {}",
        NOW + 9_000 * HOUR
    ))
    .await;
    assert_eq!(change(hourly(), NOW + 55).await, handled(NOW + 55));
    let task = task_definition("ahead", &[("a", hourly())]);
    store
        .create_task("t2", &task, None, NOW + 100 * HOUR)
        .await
        .unwrap();
    sync_timers(store, NOW + 60).await;
    let rows = due_timers(store, Ms::MAX).await;
    assert_eq!(rows[1].handled_at, NOW + 60);
}

async fn concurrent_timer_syncs_agree(db: &TestDb) {
    let other = Store::open(&db.url).await.unwrap();
    let mut generation = 0;
    for round in 0..20 {
        let timer = Timer::new(format!("{round} * * * *"));
        let task = task_definition("app", &[("a", timer.clone())]);
        if generation == 0 {
            db.store.create_task("t1", &task, None, NOW).await
        } else {
            let store = [&db.store, &other][round % 2];
            store
                .update_task("app", &task, None, Some(generation), NOW)
                .await
        }
        .map(|task| generation = task.generation)
        .unwrap();
        tokio::join!(sync_timers(&db.store, NOW), sync_timers(&other, NOW));
        let rows = due_timers(&other, Ms::MAX).await;
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].timer, timer, "round {round}");
    }
}

async fn due_timers_are_listed_in_pages(db: &TestDb) {
    let store = &db.store;
    let timers: Vec<(String, Timer)> = (0..5).map(|n| (format!("t{n}"), hourly())).collect();
    let timers: Vec<(&str, Timer)> = timers
        .iter()
        .map(|(name, timer)| (name.as_str(), timer.clone()))
        .collect();
    for task in ["b", "a"] {
        store
            .create_task(task, &task_definition(task, &timers), None, NOW)
            .await
            .unwrap();
    }
    sync_timers(store, NOW).await;
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = store.due_timers(NOW + HOUR, cursor, 3).await.unwrap();
        found.extend(
            page.iter()
                .map(|row| format!("{} {}", row.task.id, row.name)),
        );
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    let expected: Vec<String> = ["a", "b"]
        .into_iter()
        .flat_map(|task| (0..5).map(move |n| format!("{task} t{n}")))
        .collect();
    assert_eq!(found, expected);
}

async fn unreadable_definition_blocks_no_other_timer(db: &TestDb) {
    let store = &db.store;
    create_due_timer(db).await;
    let other = task_definition("other", &[("a", hourly())]);
    store.create_task("t2", &other, None, NOW).await.unwrap();
    sync_timers(store, NOW).await;
    db.execute(
        "UPDATE tasks SET definition = REPLACE(definition, '\"cmd\"', '\"newer\"') WHERE id = 't1'",
    )
    .await;
    assert!(sync_timers(store, NOW).await);
    // The timer stays for programs that can read it.
    assert_eq!(store.handled_firings("t1").await.unwrap()["night"], NOW);
    let (page, next) = store.due_timers(NOW + HOUR, None, 1).await.unwrap();
    assert_eq!(page, []);
    let (page, next) = store.due_timers(NOW + HOUR, next, 1).await.unwrap();
    assert_eq!(page[0].task.id, "t2");
    assert!(next.is_some());
}

async fn firing_is_stored_with_its_run(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let now = NOW + HOUR + 7;
    let mut missed = ignored_at(NOW + 1, "no server ran");
    missed.first_at = NOW - 3;
    missed.stands_for = 12;
    let new = firings(vec![missed, run_at(NOW + HOUR, timer_run("r1"))]);
    let started = store.record_firings(&row, new, now).await.unwrap();
    assert_eq!(started, Some(vec![run_id("r1")]));
    assert_eq!(due_timers(store, now).await, []);
    assert_eq!(store.next_timer().await.unwrap(), Some(NOW + 2 * HOUR));
    let run = store.run(&run_id("r1")).await.unwrap();
    assert_eq!(
        (run.state, run.trigger.as_str()),
        (RunState::Queued, "timer")
    );
    let firing = store.firing_of_run(&run.id).await.unwrap().unwrap();
    assert_eq!(
        (
            firing.timer.as_str(),
            firing.scheduled_at,
            firing.handled_at
        ),
        ("night", NOW + HOUR, now)
    );
    let last = store.last_firings("t1").await.unwrap();
    assert_eq!(last, std::slice::from_ref(&firing));
    assert_eq!(firing.run, Some((run.id, Some(RunState::Queued))));
    assert_eq!(
        store.handled_firings("t1").await.unwrap()["night"],
        NOW + HOUR
    );
    let (all, _) = store.triggers_of_task("app", None, 10).await.unwrap();
    let ignored = all.iter().find(|row| row.ignored.is_some()).unwrap();
    assert_eq!(ignored.ignored.as_deref(), Some("no server ran"));
    assert_eq!(ignored.stands_for, Some(12));
    assert_eq!(store.unaccounted_triggers(now, 0).await.unwrap(), []);
}

async fn firing_is_recorded_by_one_server(db: &TestDb) {
    let row = create_due_timer(db).await;
    let mut servers = Vec::new();
    for number in 0..8 {
        let (url, row) = (db.url.clone(), row.clone());
        servers.push(tokio::spawn(async move {
            let store = Store::open(&url).await.unwrap();
            let run = NewRun {
                queue: grouped("x", "app", 1, true).queue,
                ..timer_run(&format!("r{number}"))
            };
            let new = firings(vec![run_at(NOW + HOUR, run)]);
            store.record_firings(&row, new, NOW + HOUR).await.unwrap()
        }));
    }
    let mut won = 0;
    for server in servers {
        won += usize::from(server.await.unwrap().is_some());
    }
    assert_eq!(won, 1);
    let (all, _) = db.store.triggers_of_task("app", None, 10).await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        db.store.unaccounted_triggers(NOW + HOUR, 0).await.unwrap(),
        []
    );
}

async fn failed_firing_leaves_no_rows(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    db.enqueue("taken", NOW).await;
    let new = firings(vec![
        ignored_at(NOW + 1, "no server ran"),
        run_at(NOW + HOUR, timer_run("taken")),
    ]);
    let error = store
        .record_firings(&row, new, NOW + HOUR)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Database(_)), "{error:?}");
    assert_eq!(
        due_timers(store, NOW + HOUR).await,
        std::slice::from_ref(&row)
    );
    assert_eq!(store.last_firings("t1").await.unwrap(), []);
    assert_eq!(store.triggers_of_task("app", None, 10).await.unwrap().0, []);
    let new = firings(vec![run_at(NOW + HOUR, timer_run("free"))]);
    let started = store.record_firings(&row, new, NOW + HOUR).await.unwrap();
    assert_eq!(started, Some(vec![run_id("free")]));
}

async fn firing_of_changed_task_is_not_recorded(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let mut task = task_definition("app", &[("night", hourly())]);
    task.enabled = false;
    store
        .update_task("app", &task, None, None, NOW + 5)
        .await
        .unwrap();
    let new = firings(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    assert_eq!(
        store
            .record_firings(&row, new.clone(), NOW + HOUR)
            .await
            .unwrap(),
        None
    );
    let again = due_timers(store, NOW + HOUR).await.remove(0);
    assert!(!again.task.definition.enabled);
    // Another server has synchronized another definition of the timer.
    let patient = Timer {
        missed: MissedFirings::Skip,
        ..hourly()
    };
    let stale = TimerRow {
        timer: patient,
        ..again.clone()
    };
    assert_eq!(
        store
            .record_firings(&stale, new.clone(), NOW + HOUR)
            .await
            .unwrap(),
        None
    );
    store.delete_task("app").await.unwrap();
    assert_eq!(
        store.record_firings(&again, new, NOW + HOUR).await.unwrap(),
        None
    );
    store.run(&run_id("r1")).await.unwrap_err();
}

async fn scheduled_time_never_starts_two_runs(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let new = firings(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    store
        .record_firings(&row, new, NOW + HOUR)
        .await
        .unwrap()
        .unwrap();
    // The timer is removed and added again while the clock is behind.
    let task = task_definition("app", &[]);
    store
        .update_task("app", &task, None, None, NOW + HOUR)
        .await
        .unwrap();
    sync_timers(store, NOW + HOUR).await;
    let task = task_definition("app", &[("night", hourly())]);
    store
        .update_task("app", &task, None, None, NOW + 5)
        .await
        .unwrap();
    sync_timers(store, NOW + HOUR).await;
    let row = due_timers(store, Ms::MAX).await.remove(0);
    assert_eq!(row.handled_at, NOW + 5);
    let new = firings(vec![run_at(NOW + HOUR, timer_run("r2"))]);
    let started = store.record_firings(&row, new, NOW + HOUR).await.unwrap();
    assert_eq!(started, Some(vec![]));
    store.run(&run_id("r2")).await.unwrap_err();
    let row = due_timers(store, Ms::MAX).await.remove(0);
    assert_eq!(row.handled_at, NOW + HOUR);
}

async fn audit_finds_lost_firings(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let at = NOW + HOUR;
    assert_eq!(store.unaccounted_triggers(at, 0).await.unwrap(), []);
    // No server handles the firing.
    let late = store
        .unaccounted_triggers(at + 50_000, 30_000)
        .await
        .unwrap();
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].trigger, "timer night of app");
    let new = firings(vec![run_at(at, timer_run("r1"))]);
    store.record_firings(&row, new, at).await.unwrap().unwrap();
    assert_eq!(store.unaccounted_triggers(at + 1, 0).await.unwrap(), []);
    db.execute("DELETE FROM triggers WHERE id = 'r1'").await;
    let lost = store.unaccounted_triggers(at + 1, 0).await.unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].why, "a firing of the timer night has no trigger");
}

async fn triggers_of_a_task_are_listed(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let manual = NewRun {
        trigger: "task".into(),
        ..timer_run("r0")
    };
    store.enqueue(manual, NOW).await.unwrap();
    db.enqueue("other", NOW).await;
    let new = firings(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    store
        .record_firings(&row, new, NOW + HOUR)
        .await
        .unwrap()
        .unwrap();
    store
        .store_ignored_trigger("s1", "url", "app", "the task is disabled", NOW + 2 * HOUR)
        .await
        .unwrap();
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let (page, next) = store
            .triggers_of_task("app", cursor.as_deref(), 2)
            .await
            .unwrap();
        seen.extend(page.into_iter().map(|row| (row.id, row.kind, row.timer)));
        if next.is_none() {
            break;
        }
        cursor = next;
    }
    let expected = [
        ("s1", "url", None),
        ("r1", "timer", Some("night".to_owned())),
        ("r0", "task", None),
    ];
    assert_eq!(
        seen,
        expected.map(|(id, kind, timer)| (id.to_owned(), kind.to_owned(), timer))
    );
    let error = store.triggers_of_task("app", Some("x"), 2).await;
    assert!(matches!(error, Err(StoreError::Invalid { .. })));
}

async fn old_firings_are_removed_with_their_triggers(db: &TestDb) {
    let store = &db.store;
    let row = create_due_timer(db).await;
    let new = firings(vec![
        ignored_at(NOW + 1, "no server ran"),
        run_at(NOW + HOUR, timer_run("r1")),
    ]);
    store
        .record_firings(&row, new, NOW + HOUR)
        .await
        .unwrap()
        .unwrap();
    let expired = store.remove_expired(NOW + HOUR, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (0, 0));
    let expired = store.remove_expired(NOW + HOUR + 1, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (0, 1));
    let run = db.claim("a", 1, NOW + HOUR).await.remove(0);
    let end = finished_report(RunState::Failed, 0);
    db.report("a", &run, NOW + HOUR, end).await;
    let expired = store.remove_expired(NOW + 2 * HOUR, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (1, 0));
    assert_eq!(store.last_firings("t1").await.unwrap(), []);
    assert_eq!(
        store.unaccounted_triggers(NOW + HOUR + 2, 0).await.unwrap(),
        []
    );
}

async fn trigger_urls_belong_to_tasks(db: &TestDb) {
    let store = &db.store;
    create_due_timer(db).await;
    assert_eq!(store.trigger_url("t1").await.unwrap(), None);
    let first = TriggerUrlRow {
        task_id: "t1".into(),
        id: "u1".into(),
        hash: vec![1, 2],
        created_at: NOW,
        created_by: Some("ann".into()),
        last_used_at: None,
        turned_away: 0,
        turned_away_at: None,
    };
    store.put_trigger_url(&first).await.unwrap();
    let (row, task) = store.trigger_url_by_id("u1").await.unwrap().unwrap();
    assert_eq!((row, task.id.as_str()), (first.clone(), "t1"));
    store.touch_trigger_url("u1", NOW + 9).await.unwrap();
    let used = store.trigger_url("t1").await.unwrap().unwrap();
    assert_eq!(used.last_used_at, Some(NOW + 9));
    for (calls, at) in [(3, NOW + 10), (4, NOW + 20)] {
        store.turn_away_trigger_url("u1", calls, at).await.unwrap();
    }
    let away = store.trigger_url("t1").await.unwrap().unwrap();
    assert_eq!((away.turned_away, away.turned_away_at), (7, Some(NOW + 20)));
    let second = TriggerUrlRow {
        id: "u2".into(),
        ..first
    };
    store.put_trigger_url(&second).await.unwrap();
    assert_eq!(store.trigger_url_by_id("u1").await.unwrap(), None);
    assert_eq!(store.trigger_url("t1").await.unwrap(), Some(second.clone()));
    store.delete_trigger_url("t1").await.unwrap();
    let gone = store.delete_trigger_url("t1").await;
    assert!(matches!(gone, Err(StoreError::NotFound { .. })));
    store.put_trigger_url(&second).await.unwrap();
    store.delete_task("app").await.unwrap();
    assert_eq!(store.trigger_url("t1").await.unwrap(), None);
    assert_eq!(store.trigger_url_by_id("u2").await.unwrap(), None);
}
