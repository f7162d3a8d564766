//! Timers, their ticks, and what each trigger of a task led to.

use acrtask_api::task::{MissedTicks, TaskDefinition, Timer};
use acrtask_model::RunState;
use acrtask_store::{
    Ms, NewRun, NewTick, NewTicks, Store, StoreError, TickLeadsTo, TimerRow, TriggerUrlRow,
};

use crate::support::{Fixture, NOW, finished, grouped, new_run, on_both, run_id};

on_both!(
    timers_are_made_of_definitions,
    what_changes_about_a_timer_decides_where_it_begins,
    two_that_make_timers_at_once_agree,
    due_timers_come_in_pages,
    what_a_newer_program_wrote_holds_up_nothing,
    a_tick_is_written_with_its_run,
    of_many_servers_one_has_the_tick,
    a_tick_that_fails_leaves_nothing,
    a_task_that_changed_meanwhile_is_looked_at_again,
    the_same_scheduled_time_never_leads_to_two_runs,
    ticks_are_accounted_for,
    triggers_of_a_task_are_listed,
    old_ticks_go_with_their_triggers,
    urls_of_tasks,
);

const HOUR: Ms = 3_600_000;

fn definition(name: &str, timers: &[(&str, Timer)]) -> TaskDefinition {
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

/// A timer that has something to do an hour after what is handled.
fn in_an_hour(_: &str, _: &str, timer: &Timer, handled: Ms) -> Option<Ms> {
    timer.enabled.then_some(handled + HOUR)
}

async fn make(store: &Store, now: Ms) -> bool {
    store.make_timers(now, in_an_hour).await.unwrap()
}

async fn due(store: &Store, now: Ms) -> Vec<TimerRow> {
    store.due_timers(now, None, 100).await.unwrap().0
}

async fn names(store: &Store, now: Ms) -> Vec<(String, Ms)> {
    let rows = due(store, now).await;
    rows.into_iter()
        .map(|row| (row.name, row.handled_at))
        .collect()
}

/// A task with an hourly timer that has something to do.
async fn due_timer(fixture: &Fixture) -> TimerRow {
    let task = definition("app", &[("night", hourly())]);
    fixture
        .store
        .create_task("t1", &task, None, NOW)
        .await
        .unwrap();
    make(&fixture.store, NOW).await;
    due(&fixture.store, NOW + HOUR).await.remove(0)
}

fn timer_run(id: &str) -> NewRun {
    NewRun {
        task_id: Some("t1".into()),
        task_name: Some("app".into()),
        trigger: "timer".into(),
        ..new_run(id)
    }
}

fn run_at(at: Ms, run: NewRun) -> NewTick {
    NewTick {
        scheduled_at: at,
        first_at: at,
        stands_for: 1,
        leads_to: TickLeadsTo::Run(Box::new(run)),
    }
}

fn nothing_at(at: Ms, reason: &str) -> NewTick {
    NewTick {
        leads_to: TickLeadsTo::Nothing {
            reason: reason.into(),
        },
        ..run_at(at, new_run("unused"))
    }
}

fn ticks(ticks: Vec<NewTick>) -> NewTicks {
    let handled_at = ticks.iter().map(|tick| tick.scheduled_at).max().unwrap();
    NewTicks {
        handled_at,
        next_at: Some(handled_at + HOUR),
        ticks,
    }
}

async fn timers_are_made_of_definitions(fixture: &Fixture) {
    let store = &fixture.store;
    assert!(make(store, NOW).await, "a new database was never looked at");
    assert!(!make(store, NOW).await);
    assert_eq!(store.next_timer().await.unwrap(), None);
    let off = Timer {
        enabled: false,
        ..hourly()
    };
    let task = definition("app", &[("a", hourly()), ("off", off)]);
    store.create_task("t1", &task, None, NOW).await.unwrap();
    let task = definition("other", &[("a", hourly())]);
    store.create_task("t2", &task, None, NOW + 5).await.unwrap();
    assert!(make(store, NOW + 10).await);
    assert!(!make(store, NOW + 10).await);
    assert_eq!(store.next_timer().await.unwrap(), Some(NOW + HOUR));
    assert_eq!(due(store, NOW + HOUR - 1).await, []);
    assert_eq!(
        names(store, NOW + 2 * HOUR).await,
        [("a".into(), NOW), ("a".into(), NOW + 5)]
    );
    // What is gone is gone, with the task or without.
    store
        .update_task("app", &definition("app", &[]), None, None, NOW + 20)
        .await
        .unwrap();
    store.delete_task("other").await.unwrap();
    assert_eq!(due(store, NOW + 2 * HOUR).await.len(), 1);
    assert!(make(store, NOW + 20).await);
    assert_eq!(due(store, NOW + 2 * HOUR).await, []);
    assert_eq!(store.next_timer().await.unwrap(), None);
}

async fn what_changes_about_a_timer_decides_where_it_begins(fixture: &Fixture) {
    let store = &fixture.store;
    let change = async |timer: Timer, now: Ms| {
        let task = definition("app", &[("night", timer)]);
        store
            .update_task("app", &task, None, None, now)
            .await
            .unwrap();
        make(store, now).await;
        names(store, Ms::MAX).await
    };
    let handled = |at: Ms| [("night".to_owned(), at)];
    due_timer(fixture).await;
    // What decides nothing about when it ticks leaves what is handled.
    let patient = Timer {
        missed: MissedTicks::Skip,
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
    // A clock that was far ahead does not stop a timer for ever, and one that is ahead does not skip what is to come.
    fixture
        .raw(&format!(
            "UPDATE timers SET handled_at = {}",
            NOW + 9_000 * HOUR
        ))
        .await;
    assert_eq!(change(hourly(), NOW + 55).await, handled(NOW + 55));
    let task = definition("ahead", &[("a", hourly())]);
    store
        .create_task("t2", &task, None, NOW + 100 * HOUR)
        .await
        .unwrap();
    make(store, NOW + 60).await;
    let rows = due(store, Ms::MAX).await;
    assert_eq!(rows[1].handled_at, NOW + 60);
}

async fn two_that_make_timers_at_once_agree(fixture: &Fixture) {
    let other = Store::open(&fixture.url).await.unwrap();
    let mut generation = 0;
    for round in 0..20 {
        let timer = Timer::new(format!("{round} * * * *"));
        let task = definition("app", &[("a", timer.clone())]);
        if generation == 0 {
            fixture.store.create_task("t1", &task, None, NOW).await
        } else {
            let store = [&fixture.store, &other][round % 2];
            store
                .update_task("app", &task, None, Some(generation), NOW)
                .await
        }
        .map(|task| generation = task.generation)
        .unwrap();
        tokio::join!(make(&fixture.store, NOW), make(&other, NOW));
        let rows = due(&other, Ms::MAX).await;
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].timer, timer, "round {round}");
    }
}

async fn due_timers_come_in_pages(fixture: &Fixture) {
    let store = &fixture.store;
    let timers: Vec<(String, Timer)> = (0..5).map(|n| (format!("t{n}"), hourly())).collect();
    let timers: Vec<(&str, Timer)> = timers
        .iter()
        .map(|(name, timer)| (name.as_str(), timer.clone()))
        .collect();
    for task in ["b", "a"] {
        store
            .create_task(task, &definition(task, &timers), None, NOW)
            .await
            .unwrap();
    }
    make(store, NOW).await;
    let mut found = Vec::new();
    let mut place = None;
    loop {
        let (page, next) = store.due_timers(NOW + HOUR, place, 3).await.unwrap();
        found.extend(
            page.iter()
                .map(|row| format!("{} {}", row.task.id, row.name)),
        );
        place = next;
        if place.is_none() {
            break;
        }
    }
    let expected: Vec<String> = ["a", "b"]
        .into_iter()
        .flat_map(|task| (0..5).map(move |n| format!("{task} t{n}")))
        .collect();
    assert_eq!(found, expected);
}

async fn what_a_newer_program_wrote_holds_up_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    due_timer(fixture).await;
    let other = definition("other", &[("a", hourly())]);
    store.create_task("t2", &other, None, NOW).await.unwrap();
    make(store, NOW).await;
    fixture
        .raw("UPDATE tasks SET definition = REPLACE(definition, '\"cmd\"', '\"newer\"') WHERE id = 't1'")
        .await;
    assert!(make(store, NOW).await);
    // Its timer is left for those who can read it.
    assert_eq!(store.handled_ticks("t1").await.unwrap()["night"], NOW);
    let (page, next) = store.due_timers(NOW + HOUR, None, 1).await.unwrap();
    assert_eq!(page, []);
    let (page, next) = store.due_timers(NOW + HOUR, next, 1).await.unwrap();
    assert_eq!(page[0].task.id, "t2");
    assert!(next.is_some());
}

async fn a_tick_is_written_with_its_run(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let now = NOW + HOUR + 7;
    let mut missed = nothing_at(NOW + 1, "no server ran");
    missed.first_at = NOW - 3;
    missed.stands_for = 12;
    let new = ticks(vec![missed, run_at(NOW + HOUR, timer_run("r1"))]);
    let started = store.tick(&row, new, now).await.unwrap();
    assert_eq!(started, Some(vec![run_id("r1")]));
    assert_eq!(due(store, now).await, []);
    assert_eq!(store.next_timer().await.unwrap(), Some(NOW + 2 * HOUR));
    let run = store.run(&run_id("r1")).await.unwrap();
    assert_eq!(
        (run.state, run.trigger.as_str()),
        (RunState::Queued, "timer")
    );
    let tick = store.tick_of(&run.id).await.unwrap().unwrap();
    assert_eq!(
        (tick.timer.as_str(), tick.scheduled_at, tick.handled_at),
        ("night", NOW + HOUR, now)
    );
    let last = store.last_ticks("t1").await.unwrap();
    assert_eq!(last, std::slice::from_ref(&tick));
    assert_eq!(tick.run, Some((run.id, Some(RunState::Queued))));
    assert_eq!(
        store.handled_ticks("t1").await.unwrap()["night"],
        NOW + HOUR
    );
    let (all, _) = store.triggers_of_task("app", None, 10).await.unwrap();
    let suppressed = all.iter().find(|row| row.suppressed.is_some()).unwrap();
    assert_eq!(suppressed.suppressed.as_deref(), Some("no server ran"));
    assert_eq!(suppressed.stands_for, Some(12));
    assert_eq!(store.unaccounted(now, 0).await.unwrap(), []);
}

async fn of_many_servers_one_has_the_tick(fixture: &Fixture) {
    let row = due_timer(fixture).await;
    let mut servers = Vec::new();
    for number in 0..8 {
        let (url, row) = (fixture.url.clone(), row.clone());
        servers.push(tokio::spawn(async move {
            let store = Store::open(&url).await.unwrap();
            let run = NewRun {
                queue: grouped("x", "app", 1, true).queue,
                ..timer_run(&format!("r{number}"))
            };
            let new = ticks(vec![run_at(NOW + HOUR, run)]);
            store.tick(&row, new, NOW + HOUR).await.unwrap()
        }));
    }
    let mut won = 0;
    for server in servers {
        won += usize::from(server.await.unwrap().is_some());
    }
    assert_eq!(won, 1);
    let (all, _) = fixture
        .store
        .triggers_of_task("app", None, 10)
        .await
        .unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(fixture.store.unaccounted(NOW + HOUR, 0).await.unwrap(), []);
}

async fn a_tick_that_fails_leaves_nothing(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    fixture.queued("taken", NOW).await;
    let new = ticks(vec![
        nothing_at(NOW + 1, "no server ran"),
        run_at(NOW + HOUR, timer_run("taken")),
    ]);
    let error = store.tick(&row, new, NOW + HOUR).await.unwrap_err();
    assert!(matches!(error, StoreError::Database(_)), "{error:?}");
    assert_eq!(due(store, NOW + HOUR).await, std::slice::from_ref(&row));
    assert_eq!(store.last_ticks("t1").await.unwrap(), []);
    assert_eq!(store.triggers_of_task("app", None, 10).await.unwrap().0, []);
    let new = ticks(vec![run_at(NOW + HOUR, timer_run("free"))]);
    let started = store.tick(&row, new, NOW + HOUR).await.unwrap();
    assert_eq!(started, Some(vec![run_id("free")]));
}

async fn a_task_that_changed_meanwhile_is_looked_at_again(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let mut task = definition("app", &[("night", hourly())]);
    task.enabled = false;
    store
        .update_task("app", &task, None, None, NOW + 5)
        .await
        .unwrap();
    let new = ticks(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    assert_eq!(
        store.tick(&row, new.clone(), NOW + HOUR).await.unwrap(),
        None
    );
    let again = due(store, NOW + HOUR).await.remove(0);
    assert!(!again.task.definition.enabled);
    // Another definition of the timer alone, made by another server.
    let patient = Timer {
        missed: MissedTicks::Skip,
        ..hourly()
    };
    let stale = TimerRow {
        timer: patient,
        ..again.clone()
    };
    assert_eq!(
        store.tick(&stale, new.clone(), NOW + HOUR).await.unwrap(),
        None
    );
    store.delete_task("app").await.unwrap();
    assert_eq!(store.tick(&again, new, NOW + HOUR).await.unwrap(), None);
    store.run(&run_id("r1")).await.unwrap_err();
}

async fn the_same_scheduled_time_never_leads_to_two_runs(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let new = ticks(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    store.tick(&row, new, NOW + HOUR).await.unwrap().unwrap();
    // The timer is taken away and comes back, with a clock that is behind.
    let task = definition("app", &[]);
    store
        .update_task("app", &task, None, None, NOW + HOUR)
        .await
        .unwrap();
    make(store, NOW + HOUR).await;
    let task = definition("app", &[("night", hourly())]);
    store
        .update_task("app", &task, None, None, NOW + 5)
        .await
        .unwrap();
    make(store, NOW + HOUR).await;
    let row = due(store, Ms::MAX).await.remove(0);
    assert_eq!(row.handled_at, NOW + 5);
    let new = ticks(vec![run_at(NOW + HOUR, timer_run("r2"))]);
    let started = store.tick(&row, new, NOW + HOUR).await.unwrap();
    assert_eq!(started, Some(vec![]));
    store.run(&run_id("r2")).await.unwrap_err();
    let row = due(store, Ms::MAX).await.remove(0);
    assert_eq!(row.handled_at, NOW + HOUR);
}

async fn ticks_are_accounted_for(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let at = NOW + HOUR;
    assert_eq!(store.unaccounted(at, 0).await.unwrap(), []);
    // Nobody handles it.
    let late = store.unaccounted(at + 50_000, 30_000).await.unwrap();
    assert_eq!(late.len(), 1);
    assert_eq!(late[0].trigger, "timer night of app");
    let new = ticks(vec![run_at(at, timer_run("r1"))]);
    store.tick(&row, new, at).await.unwrap().unwrap();
    assert_eq!(store.unaccounted(at + 1, 0).await.unwrap(), []);
    fixture.raw("DELETE FROM triggers WHERE id = 'r1'").await;
    let lost = store.unaccounted(at + 1, 0).await.unwrap();
    assert_eq!(lost.len(), 1);
    assert_eq!(lost[0].why, "a tick of the timer night has no trigger");
}

async fn triggers_of_a_task_are_listed(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let manual = NewRun {
        trigger: "task".into(),
        ..timer_run("r0")
    };
    store.enqueue(manual, NOW).await.unwrap();
    fixture.queued("other", NOW).await;
    let new = ticks(vec![run_at(NOW + HOUR, timer_run("r1"))]);
    store.tick(&row, new, NOW + HOUR).await.unwrap().unwrap();
    store
        .suppress_trigger("s1", "url", "app", "the task is disabled", NOW + 2 * HOUR)
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

async fn old_ticks_go_with_their_triggers(fixture: &Fixture) {
    let store = &fixture.store;
    let row = due_timer(fixture).await;
    let new = ticks(vec![
        nothing_at(NOW + 1, "no server ran"),
        run_at(NOW + HOUR, timer_run("r1")),
    ]);
    store.tick(&row, new, NOW + HOUR).await.unwrap().unwrap();
    let expired = store.expire(NOW + HOUR, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (0, 0));
    let expired = store.expire(NOW + HOUR + 1, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (0, 1));
    let run = fixture.claim("a", 1, NOW + HOUR).await.remove(0);
    let end = finished(RunState::Failed, 0);
    fixture.say("a", &run, NOW + HOUR, end).await;
    let expired = store.expire(NOW + 2 * HOUR, 10).await.unwrap();
    assert_eq!((expired.runs, expired.triggers), (1, 0));
    assert_eq!(store.last_ticks("t1").await.unwrap(), []);
    assert_eq!(store.unaccounted(NOW + HOUR + 2, 0).await.unwrap(), []);
}

async fn urls_of_tasks(fixture: &Fixture) {
    let store = &fixture.store;
    due_timer(fixture).await;
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
