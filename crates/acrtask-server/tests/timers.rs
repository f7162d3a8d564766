//! Tests of timers with a simulated clock. They cover downtime, daylight saving time, servers with
//! different clocks and killed servers.
//!
//! Each test runs on SQLite, and on PostgreSQL if `ACRTASK_TEST_POSTGRES` names a server.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::print_stdout, reason = "a failing test prints its seed")]

#[path = "queue/test_db.rs"]
#[allow(dead_code, reason = "only the tests of the queue use all of it")]
mod test_db;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use acrtask_api::task::{MissedFirings, TaskDefinition, Timer};
use acrtask_model::RunId;
use acrtask_server::{App, Config, blobs::Blobs, clock::Clock, serve, timers, vault::Vault};
use acrtask_store::{Ms, RunFilter, Store, TriggerRow};
use acrtask_trigger::timer::Schedule;
use jiff::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use test_db::TestDb;

const MINUTE: Ms = 60_000;
const HOUR: Ms = 60 * MINUTE;
const DAY: Ms = 24 * HOUR;

/// Creates one test per database from a function that takes a [`TestDb`].
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::test_db::TestDb::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(db) = crate::test_db::TestDb::postgres() {
                    super::$name(db).await;
                }
            })+
        }
    };
}

on_both!(
    month_of_downtime_leads_to_one_run,
    month_of_downtime_is_skipped,
    firing_in_the_hour_skipped_by_daylight_saving_is_moved,
    firing_in_the_hour_repeated_by_daylight_saving_happens_once,
    jitter_delays_the_start_but_not_the_scheduled_time,
    two_servers_with_different_clocks_fire_once,
    server_killed_at_any_step_loses_no_firing,
    firing_of_an_invalid_task_is_ignored_with_a_reason,
    random_crashes_lose_and_repeat_no_firing,
    server_wakes_for_a_firing,
);

fn parse_time(text: &str) -> Ms {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// Opens a server without loops and with a fixed clock.
async fn open_app(db: &TestDb, now: Ms) -> App {
    let options = db.options(Config::default());
    App::new(
        options.config,
        Store::open(&options.database).await.unwrap(),
        Blobs::open(&options.blobs).unwrap(),
        Vault::load_or_create(&options.key_file).unwrap(),
        Clock::fixed(now),
    )
}

fn new_timer(schedule: &str, missed: MissedFirings) -> Timer {
    Timer {
        missed,
        ..Timer::new(schedule)
    }
}

fn new_definition(timers: &[(&str, Timer)]) -> TaskDefinition {
    let mut definition: TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": "app", "cmd": "alpine true"})).unwrap();
    definition.triggers.timers = timers
        .iter()
        .map(|(name, timer)| ((*name).to_owned(), timer.clone()))
        .collect();
    definition
}

async fn create_task(app: &App, definition: &TaskDefinition) {
    let now = app.clock.now_ms();
    app.store
        .create_task("t1", definition, None, now)
        .await
        .unwrap();
    timers::handle_due(app).await.unwrap();
}

/// Opens a server at `now` and creates a task with one timer.
async fn open_app_with_timer(db: &TestDb, timer: Timer, now: Ms) -> App {
    let app = open_app(db, now).await;
    create_task(&app, &new_definition(&[("night", timer)])).await;
    app
}

/// Sets the clock to `now` and handles the due firings.
async fn handle_due_at(app: &App, now: Ms) {
    app.clock.set(now);
    timers::handle_due(app).await.unwrap();
}

/// Returns all triggers of the task, oldest first.
async fn list_triggers(store: &Store) -> Vec<TriggerRow> {
    let mut all = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let (page, next) = store
            .triggers_of_task("app", cursor.as_deref(), 100)
            .await
            .unwrap();
        all.extend(page);
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    all.reverse();
    all
}

/// Returns the scheduled times of all firings that started a run, in UTC.
async fn list_run_times(store: &Store) -> Vec<String> {
    let mut ran: Vec<Ms> = list_triggers(store)
        .await
        .into_iter()
        .filter(|row| row.run.is_some())
        .map(|row| row.scheduled_at.unwrap())
        .collect();
    ran.sort_unstable();
    ran.into_iter()
        .map(|at| acrtask_store::timestamp(at).to_string())
        .collect()
}

async fn assert_all_accounted(app: &App) {
    let left = app
        .store
        .unaccounted_triggers(app.clock.now_ms() + 1, 0)
        .await
        .unwrap();
    assert_eq!(left, []);
}

async fn month_of_downtime_leads_to_one_run(db: TestDb) {
    let begin = parse_time("2026-03-01T00:10:00Z");
    let before =
        open_app_with_timer(&db, new_timer("0 * * * *", MissedFirings::RunOnce), begin).await;
    handle_due_at(&before, begin + HOUR).await;
    assert_eq!(
        list_run_times(&before.store).await,
        ["2026-03-01T01:00:00Z"]
    );
    drop(before);
    let later = open_app(&db, begin + HOUR + 31 * DAY).await;
    for _ in 0..3 {
        timers::handle_due(&later).await.unwrap();
    }
    let all = list_triggers(&later.store).await;
    assert_eq!(all.len(), 2);
    let last = &all[1];
    assert_eq!(last.scheduled_at, Some(parse_time("2026-04-01T01:00:00Z")));
    assert_eq!(last.stands_for, Some(31 * 24));
    let run = later
        .store
        .run(&last.run.as_ref().unwrap().0)
        .await
        .unwrap();
    assert_eq!(run.trigger, "timer");
    assert_eq!(run.spec.variables.triggered_by, "Timer");
    assert_eq!(
        last.detail.as_deref(),
        Some(
            "the timer night fired at 2026-04-01T01:00:00Z, also for missed firings: no server handled 743 firings in time, \
             from 2026-03-01T02:00:00Z to 2026-04-01T00:00:00Z"
        )
    );
    handle_due_at(&later, begin + 2 * HOUR + 31 * DAY).await;
    assert_eq!(list_run_times(&later.store).await.len(), 3);
    assert_all_accounted(&later).await;
}

async fn month_of_downtime_is_skipped(db: TestDb) {
    let begin = parse_time("2026-03-01T00:10:00Z");
    let before =
        open_app_with_timer(&db, new_timer("*/5 * * * *", MissedFirings::Skip), begin).await;
    drop(before);
    let later = open_app(&db, begin + 31 * DAY + 6 * MINUTE).await;
    for _ in 0..3 {
        timers::handle_due(&later).await.unwrap();
    }
    // The last firing is on time. All earlier firings are skipped. The server counts at most 1000
    // of them.
    let all = list_triggers(&later.store).await;
    assert_eq!(all.len(), 2);
    let (skipped, ran): (Vec<_>, Vec<_>) = all.into_iter().partition(|row| row.run.is_none());
    assert_eq!(skipped[0].stands_for, Some(1000));
    assert_eq!(
        skipped[0].ignored.as_deref(),
        Some(
            "no server handled 1000 or more firings in time, from 2026-03-01T00:15:00Z to 2026-04-01T00:10:00Z, \
             and the timer skips missed firings"
        )
    );
    assert_eq!(ran[0].stands_for, Some(1));
    assert_eq!(
        ran[0].scheduled_at,
        Some(parse_time("2026-04-01T00:15:00Z"))
    );
    assert_all_accounted(&later).await;
    // Both firings of a daily timer are skipped, because none of them is on time.
    let rare = new_definition(&[("night", new_timer("0 3 * * *", MissedFirings::Skip))]);
    later
        .store
        .update_task("app", &rare, None, None, later.clock.now_ms())
        .await
        .unwrap();
    timers::handle_due(&later).await.unwrap();
    handle_due_at(&later, begin + 33 * DAY).await;
    handle_due_at(&later, begin + 33 * DAY + HOUR).await;
    let last = list_triggers(&later.store).await.pop().unwrap();
    assert_eq!((last.run, last.stands_for), (None, Some(2)));
    assert_all_accounted(&later).await;
}

/// Passes every 10 minutes between two times. Returns the firings of a timer in Berlin that started
/// a run.
async fn run_times_in_berlin(db: &TestDb, schedule: &str, from: &str, to: &str) -> Vec<String> {
    let timer = Timer {
        timezone: Some("Europe/Berlin".into()),
        ..Timer::new(schedule)
    };
    let mut now = parse_time(from);
    let app = open_app_with_timer(db, timer, now).await;
    while now < parse_time(to) {
        now += 10 * MINUTE;
        handle_due_at(&app, now).await;
    }
    assert_all_accounted(&app).await;
    list_run_times(&app.store).await
}

async fn firing_in_the_hour_skipped_by_daylight_saving_is_moved(db: TestDb) {
    let ran = run_times_in_berlin(
        &db,
        "30 2 * * *",
        "2026-03-27T12:00:00Z",
        "2026-03-30T12:00:00Z",
    )
    .await;
    assert_eq!(
        ran,
        [
            "2026-03-28T01:30:00Z",
            // 02:30 does not exist on this day. The timer fires at 03:00 local time.
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z"
        ]
    );
}

async fn firing_in_the_hour_repeated_by_daylight_saving_happens_once(db: TestDb) {
    let ran = run_times_in_berlin(
        &db,
        "30 2 * * *",
        "2026-10-23T12:00:00Z",
        "2026-10-26T12:00:00Z",
    )
    .await;
    assert_eq!(
        ran,
        [
            "2026-10-24T00:30:00Z",
            // 02:30 exists twice on this day. The timer fires at the first one.
            "2026-10-25T00:30:00Z",
            "2026-10-26T01:30:00Z"
        ]
    );
}

async fn jitter_delays_the_start_but_not_the_scheduled_time(db: TestDb) {
    let begin = parse_time("2026-03-01T00:00:00Z");
    let jittered = Timer {
        jitter: Some("50m".into()),
        ..Timer::new("0 1 * * *")
    };
    let schedule = Schedule::new("t1", "night", &jittered).unwrap();
    let tick: Timestamp = "2026-03-01T01:00:00Z".parse().unwrap();
    let start = schedule.starts_at(tick).as_millisecond();
    assert!(start > tick.as_millisecond(), "choose another name");
    let app = open_app_with_timer(&db, jittered, begin).await;
    handle_due_at(&app, start - 1).await;
    assert_eq!(list_run_times(&app.store).await.len(), 0);
    assert_eq!(timers::handle_due(&app).await.unwrap(), Some(start));
    handle_due_at(&app, start).await;
    assert_eq!(list_run_times(&app.store).await, ["2026-03-01T01:00:00Z"]);
    assert_eq!(timers::handle_due(&app).await.unwrap(), Some(start + DAY));
}

async fn two_servers_with_different_clocks_fire_once(db: TestDb) {
    let begin = parse_time("2026-03-01T00:00:00Z");
    let ahead =
        open_app_with_timer(&db, new_timer("* * * * *", MissedFirings::RunOnce), begin).await;
    let behind = open_app(&db, begin).await;
    for step in 0..150 {
        let now = begin + step * 2_000;
        tokio::join!(
            handle_due_at(&ahead, now + 5_000),
            handle_due_at(&behind, now)
        );
    }
    let ran = list_run_times(&behind.store).await;
    let expected: Vec<String> = (1..=5)
        .map(|minute| format!("2026-03-01T00:0{minute}:00Z"))
        .collect();
    // The clock that is ahead reached the fifth minute before the test ended. No minute fired
    // twice.
    assert_eq!(ran, expected);
    assert_all_accounted(&ahead).await;
    let (runs, _) = ahead
        .store
        .runs(RunFilter {
            limit: 100,
            ..RunFilter::default()
        })
        .await
        .unwrap();
    assert_eq!(runs.len(), 5);
}

/// Polls a pass `steps` times and drops it. Returns `true` if the pass completed before that.
async fn run_partial_pass(app: &App, steps: usize) -> bool {
    let mut pass = pin!(timers::handle_due(app));
    let mut left = steps;
    std::future::poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        pass.as_mut().poll(context).map(|done| done.is_ok())
    })
    .await
}

async fn server_killed_at_any_step_loses_no_firing(db: TestDb) {
    let begin = parse_time("2026-03-01T00:00:00Z");
    let timers = [
        ("a", new_timer("0 * * * *", MissedFirings::RunOnce)),
        ("b", new_timer("0 * * * *", MissedFirings::Skip)),
    ];
    let first = open_app(&db, begin).await;
    create_task(&first, &new_definition(&timers)).await;
    drop(first);
    let mut hours = 0;
    let mut steps = 0;
    loop {
        hours += 1;
        let now = begin + hours * HOUR;
        // The definition changes too, so that the server recreates the timers.
        let killed = open_app(&db, now).await;
        let mut changed = new_definition(&timers);
        changed.description = format!("hour {hours}");
        killed
            .store
            .update_task("app", &changed, None, None, now)
            .await
            .unwrap();
        let ended = run_partial_pass(&killed, steps).await;
        drop(killed);
        let next = open_app(&db, now + 1).await;
        timers::handle_due(&next).await.unwrap();
        assert_all_accounted(&next).await;
        let mut ran: BTreeMap<(String, Ms), Vec<RunId>> = BTreeMap::new();
        for row in list_triggers(&next.store).await {
            let run = row.run.map(|(run, _)| run);
            ran.entry((row.timer.unwrap(), row.scheduled_at.unwrap()))
                .or_default()
                .extend(run);
        }
        assert_eq!(ran.len(), 2 * usize::try_from(hours).unwrap());
        for (tick, runs) in &ran {
            assert_eq!(runs.len(), 1, "{tick:?} after {steps} steps");
        }
        if ended {
            break;
        }
        steps += 1;
    }
    assert!(steps > 5, "a pass has more than {steps} steps");
}

async fn firing_of_an_invalid_task_is_ignored_with_a_reason(db: TestDb) {
    let begin = parse_time("2026-03-01T00:10:00Z");
    let app = open_app_with_timer(&db, new_timer("0 * * * *", MissedFirings::RunOnce), begin).await;
    let change = async |change: fn(&mut TaskDefinition)| {
        let mut definition =
            new_definition(&[("night", new_timer("0 * * * *", MissedFirings::RunOnce))]);
        change(&mut definition);
        let now = app.clock.now_ms();
        app.store
            .update_task("app", &definition, None, None, now)
            .await
            .unwrap();
    };
    let last = async || list_triggers(&app.store).await.pop().unwrap();
    change(|task| task.enabled = false).await;
    handle_due_at(&app, begin + HOUR).await;
    assert_eq!(
        last().await.ignored.as_deref(),
        Some("the task is disabled")
    );
    handle_due_at(&app, begin + 5 * HOUR).await;
    let suppressed = last().await;
    assert_eq!(
        suppressed.ignored.as_deref(),
        Some("the task is disabled (4 firings)")
    );
    assert_eq!(suppressed.stands_for, Some(4));
    // Firings of the time in which the task was disabled are not made up for.
    change(|_| {}).await;
    handle_due_at(&app, begin + 5 * HOUR + MINUTE).await;
    assert_eq!(list_run_times(&app.store).await.len(), 0);
    change(|task| {
        task.secrets.insert("token".into(), "not-there".into());
    })
    .await;
    handle_due_at(&app, begin + 6 * HOUR).await;
    assert_eq!(
        last().await.ignored.as_deref(),
        Some(
            "the secret `not-there` is missing; set it with `acrtask secret set not-there --task app`"
        )
    );
    change(|_| {}).await;
    handle_due_at(&app, begin + 7 * HOUR).await;
    assert_eq!(list_run_times(&app.store).await, ["2026-03-01T07:00:00Z"]);
    assert_all_accounted(&app).await;
}

/// Runs two servers whose clocks differ and jump, and kills and restarts both. Each firing is
/// accounted for exactly once in the end.
async fn random_crashes_lose_and_repeat_no_firing(db: TestDb) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let begin = parse_time("2026-03-28T00:00:00Z");
    let berlin = Timer {
        timezone: Some("Europe/Berlin".into()),
        jitter: Some("3m".into()),
        ..Timer::new("*/20 * * * *")
    };
    let timers = [
        ("berlin", berlin),
        ("once", new_timer("*/15 * * * *", MissedFirings::RunOnce)),
        ("skip", new_timer("7 */2 * * *", MissedFirings::Skip)),
    ];
    let mut ahead = open_app(&db, begin).await;
    let mut behind = open_app(&db, begin).await;
    create_task(&ahead, &new_definition(&timers)).await;
    let mut now = begin;
    for _ in 0..60 {
        now += match rng.random_range(0..10) {
            0 => rng.random_range(0..20 * HOUR),
            1..5 => rng.random_range(0..2 * HOUR),
            _ => rng.random_range(0..10 * MINUTE),
        };
        ahead.clock.set(now + 5_000);
        behind.clock.set(now);
        let (steps, other) = (rng.random_range(0..60), rng.random_range(0..60));
        let (one, two) = tokio::join!(
            run_partial_pass(&ahead, steps),
            run_partial_pass(&behind, other)
        );
        if !one {
            ahead = open_app(&db, now).await;
        }
        if !two {
            behind = open_app(&db, now).await;
        }
    }
    handle_due_at(&behind, now + 10_000).await;
    assert_all_accounted(&behind).await;
    let handled = behind.store.handled_firings("t1").await.unwrap();
    for (name, timer) in &timers {
        let schedule = Schedule::new("t1", name, timer).unwrap();
        let until = acrtask_store::timestamp(handled[*name]);
        let expected = schedule.firings(acrtask_store::timestamp(begin), until, usize::MAX);
        let rows = list_triggers(&behind.store).await;
        let of_timer = rows
            .iter()
            .filter(|row| row.timer.as_deref() == Some(*name));
        let counted: u64 = of_timer.map(|row| row.stands_for.unwrap()).sum();
        assert_eq!(counted, expected.len() as u64, "{name}, seed {seed}");
    }
}

/// Tests the loop of a whole server. A new task and a due firing both wake it.
async fn server_wakes_for_a_firing(db: TestDb) {
    let begin = parse_time("2026-03-01T00:10:00Z");
    let clock = Clock::fixed(begin);
    let mut options = db.options(Config::default());
    options.clock = clock.clone();
    let server = serve::start(options).await.unwrap();
    let app: Arc<App> = server.app().clone();
    let task = new_definition(&[("night", new_timer("0 * * * *", MissedFirings::RunOnce))]);
    app.store
        .create_task("t1", &task, None, begin)
        .await
        .unwrap();
    app.timers.notify_one();
    let started = Instant::now();
    let mut hours = 0;
    while list_run_times(&app.store).await.len() < 2 {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the timer did not fire"
        );
        if app.store.next_timer().await.unwrap() > Some(clock.now_ms()) {
            hours += 1;
            clock.set(begin + hours * HOUR);
            app.timers.notify_one();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await;
}
