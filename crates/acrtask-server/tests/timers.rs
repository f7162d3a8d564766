//! Timers under a clock that the tests set: downtime, daylight saving, servers whose clocks differ, and servers that are
//! killed between any two steps. Each test runs on SQLite, and on PostgreSQL where `ACRTASK_TEST_POSTGRES` names one.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(
    clippy::print_stdout,
    reason = "a test that fails says from which seed"
)]

#[path = "queue/place.rs"]
#[allow(dead_code, reason = "the tests of the queue use all of it")]
mod place;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use acrtask_api::task::{MissedTicks, TaskDefinition, Timer};
use acrtask_model::RunId;
use acrtask_server::{App, Config, blobs::Blobs, clock::Clock, serve, timers, vault::Vault};
use acrtask_store::{Ms, RunFilter, Store, TriggerRow};
use acrtask_trigger::timer::Schedule;
use jiff::Timestamp;
use place::Place;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

const MINUTE: Ms = 60_000;
const HOUR: Ms = 60 * MINUTE;
const DAY: Ms = 24 * HOUR;

/// Runs the same test on both databases.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::place::Place::sqlite()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(place) = crate::place::Place::postgres() {
                    super::$name(place).await;
                }
            })+
        }
    };
}

on_both!(
    a_month_of_downtime_is_one_run,
    a_month_of_downtime_is_skipped,
    clocks_are_put_forward,
    clocks_are_put_back,
    jitter_moves_the_start_alone,
    two_servers_whose_clocks_differ,
    a_server_is_killed_between_any_two_steps,
    what_cannot_run_is_suppressed_with_a_reason,
    a_storm_loses_no_tick_and_doubles_none,
    a_server_wakes_for_a_tick,
);

fn at(text: &str) -> Ms {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

/// A control plane without its loops, whose clock stands still.
async fn app(place: &Place, now: Ms) -> App {
    let options = place.options(Config::default());
    App::new(
        options.config,
        Store::open(&options.database).await.unwrap(),
        Blobs::open(&options.blobs).unwrap(),
        Vault::load_or_create(&options.key_file).unwrap(),
        Clock::fixed(now),
    )
}

fn timer(schedule: &str, missed: MissedTicks) -> Timer {
    Timer {
        missed,
        ..Timer::new(schedule)
    }
}

fn definition(timers: &[(&str, Timer)]) -> TaskDefinition {
    let mut definition: TaskDefinition =
        serde_json::from_value(serde_json::json!({"name": "app", "cmd": "alpine true"})).unwrap();
    definition.triggers.timers = timers
        .iter()
        .map(|(name, timer)| ((*name).to_owned(), timer.clone()))
        .collect();
    definition
}

async fn task(app: &App, definition: &TaskDefinition) {
    let now = app.clock.now_ms();
    app.store
        .create_task("t1", definition, None, now)
        .await
        .unwrap();
    timers::pass(app).await.unwrap();
}

/// A task with one timer, at a server whose clock stands at `now`.
async fn one(place: &Place, timer: Timer, now: Ms) -> App {
    let app = app(place, now).await;
    task(&app, &definition(&[("night", timer)])).await;
    app
}

/// The clock is `now`, and the server looks at its timers.
async fn pass(app: &App, now: Ms) {
    app.clock.set(now);
    timers::pass(app).await.unwrap();
}

/// All triggers of the task, the oldest first.
async fn triggers(store: &Store) -> Vec<TriggerRow> {
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

/// The scheduled times that led to runs, as they are said in UTC.
async fn ran(store: &Store) -> Vec<String> {
    let mut ran: Vec<Ms> = triggers(store)
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

async fn all_is_accounted_for(app: &App) {
    let left = app
        .store
        .unaccounted(app.clock.now_ms() + 1, 0)
        .await
        .unwrap();
    assert_eq!(left, []);
}

async fn a_month_of_downtime_is_one_run(place: Place) {
    let begin = at("2026-03-01T00:10:00Z");
    let before = one(&place, timer("0 * * * *", MissedTicks::RunOnce), begin).await;
    pass(&before, begin + HOUR).await;
    assert_eq!(ran(&before.store).await, ["2026-03-01T01:00:00Z"]);
    drop(before);
    let later = app(&place, begin + HOUR + 31 * DAY).await;
    for _ in 0..3 {
        timers::pass(&later).await.unwrap();
    }
    let all = triggers(&later.store).await;
    assert_eq!(all.len(), 2);
    let last = &all[1];
    assert_eq!(last.scheduled_at, Some(at("2026-04-01T01:00:00Z")));
    assert_eq!(last.stands_for, Some(31 * 24));
    let run = later
        .store
        .run(&last.run.as_ref().unwrap().0)
        .await
        .unwrap();
    assert_eq!(run.trigger, "timer");
    assert_eq!(run.spec.facts.triggered_by, "Timer");
    assert_eq!(
        last.detail.as_deref(),
        Some(
            "the timer night ticked at 2026-04-01T01:00:00Z; it stands for more: no server handled 743 ticks in time, \
             from 2026-03-01T02:00:00Z to 2026-04-01T00:00:00Z"
        )
    );
    pass(&later, begin + 2 * HOUR + 31 * DAY).await;
    assert_eq!(ran(&later.store).await.len(), 3);
    all_is_accounted_for(&later).await;
}

async fn a_month_of_downtime_is_skipped(place: Place) {
    let begin = at("2026-03-01T00:10:00Z");
    let before = one(&place, timer("*/5 * * * *", MissedTicks::Skip), begin).await;
    drop(before);
    let later = app(&place, begin + 31 * DAY + 6 * MINUTE).await;
    for _ in 0..3 {
        timers::pass(&later).await.unwrap();
    }
    // The last one is on time, and what came before it is skipped; there are more than are counted.
    let all = triggers(&later.store).await;
    assert_eq!(all.len(), 2);
    let (skipped, ran): (Vec<_>, Vec<_>) = all.into_iter().partition(|row| row.run.is_none());
    assert_eq!(skipped[0].stands_for, Some(1000));
    assert_eq!(
        skipped[0].suppressed.as_deref(),
        Some(
            "no server handled 1000 or more ticks in time, from 2026-03-01T00:15:00Z to 2026-04-01T00:10:00Z, \
             and the timer skips what is missed"
        )
    );
    assert_eq!(ran[0].stands_for, Some(1));
    assert_eq!(ran[0].scheduled_at, Some(at("2026-04-01T00:15:00Z")));
    all_is_accounted_for(&later).await;
    // One that comes rarely is skipped whole.
    let rare = definition(&[("night", timer("0 3 * * *", MissedTicks::Skip))]);
    later
        .store
        .update_task("app", &rare, None, None, later.clock.now_ms())
        .await
        .unwrap();
    timers::pass(&later).await.unwrap();
    pass(&later, begin + 33 * DAY).await;
    pass(&later, begin + 33 * DAY + HOUR).await;
    let last = triggers(&later.store).await.pop().unwrap();
    assert_eq!((last.run, last.stands_for), (None, Some(2)));
    all_is_accounted_for(&later).await;
}

/// What a timer at half past two in Berlin did in these days, looked at every ten minutes.
async fn berlin(place: &Place, schedule: &str, from: &str, to: &str) -> Vec<String> {
    let timer = Timer {
        timezone: Some("Europe/Berlin".into()),
        ..Timer::new(schedule)
    };
    let mut now = at(from);
    let app = one(place, timer, now).await;
    while now < at(to) {
        now += 10 * MINUTE;
        pass(&app, now).await;
    }
    all_is_accounted_for(&app).await;
    ran(&app.store).await
}

async fn clocks_are_put_forward(place: Place) {
    let ran = berlin(
        &place,
        "30 2 * * *",
        "2026-03-27T12:00:00Z",
        "2026-03-30T12:00:00Z",
    )
    .await;
    assert_eq!(
        ran,
        [
            "2026-03-28T01:30:00Z",
            // There is no half past two; this is three o'clock.
            "2026-03-29T01:00:00Z",
            "2026-03-30T00:30:00Z"
        ]
    );
}

async fn clocks_are_put_back(place: Place) {
    let ran = berlin(
        &place,
        "30 2 * * *",
        "2026-10-23T12:00:00Z",
        "2026-10-26T12:00:00Z",
    )
    .await;
    assert_eq!(
        ran,
        [
            "2026-10-24T00:30:00Z",
            // The first of two.
            "2026-10-25T00:30:00Z",
            "2026-10-26T01:30:00Z"
        ]
    );
}

async fn jitter_moves_the_start_alone(place: Place) {
    let begin = at("2026-03-01T00:00:00Z");
    let jittered = Timer {
        jitter: Some("50m".into()),
        ..Timer::new("0 1 * * *")
    };
    let schedule = Schedule::new("t1", "night", &jittered).unwrap();
    let tick: Timestamp = "2026-03-01T01:00:00Z".parse().unwrap();
    let start = schedule.starts_at(tick).as_millisecond();
    assert!(start > tick.as_millisecond(), "choose another name");
    let app = one(&place, jittered, begin).await;
    pass(&app, start - 1).await;
    assert_eq!(ran(&app.store).await.len(), 0);
    assert_eq!(timers::pass(&app).await.unwrap(), Some(start));
    pass(&app, start).await;
    assert_eq!(ran(&app.store).await, ["2026-03-01T01:00:00Z"]);
    assert_eq!(timers::pass(&app).await.unwrap(), Some(start + DAY));
}

async fn two_servers_whose_clocks_differ(place: Place) {
    let begin = at("2026-03-01T00:00:00Z");
    let ahead = one(&place, timer("* * * * *", MissedTicks::RunOnce), begin).await;
    let behind = app(&place, begin).await;
    for step in 0..150 {
        let now = begin + step * 2_000;
        tokio::join!(pass(&ahead, now + 5_000), pass(&behind, now));
    }
    let ran = ran(&behind.store).await;
    let expected: Vec<String> = (1..=5)
        .map(|minute| format!("2026-03-01T00:0{minute}:00Z"))
        .collect();
    // What is ahead has seen the fifth minute already, and nothing came twice.
    assert_eq!(ran, expected);
    all_is_accounted_for(&ahead).await;
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

/// Lets the server take so many steps, and kills it. Says whether it came to the end.
async fn killed_after(app: &App, steps: usize) -> bool {
    let mut pass = pin!(timers::pass(app));
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

async fn a_server_is_killed_between_any_two_steps(place: Place) {
    let begin = at("2026-03-01T00:00:00Z");
    let timers = [
        ("a", timer("0 * * * *", MissedTicks::RunOnce)),
        ("b", timer("0 * * * *", MissedTicks::Skip)),
    ];
    let first = app(&place, begin).await;
    task(&first, &definition(&timers)).await;
    drop(first);
    let mut hours = 0;
    let mut steps = 0;
    loop {
        hours += 1;
        let now = begin + hours * HOUR;
        // The definition changes too, so that the timers are made again.
        let doomed = app(&place, now).await;
        let mut changed = definition(&timers);
        changed.description = format!("hour {hours}");
        doomed
            .store
            .update_task("app", &changed, None, None, now)
            .await
            .unwrap();
        let ended = killed_after(&doomed, steps).await;
        drop(doomed);
        let next = app(&place, now + 1).await;
        timers::pass(&next).await.unwrap();
        all_is_accounted_for(&next).await;
        let mut ran: BTreeMap<(String, Ms), Vec<RunId>> = BTreeMap::new();
        for row in triggers(&next.store).await {
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
    assert!(steps > 5, "{steps} steps are hardly all");
}

async fn what_cannot_run_is_suppressed_with_a_reason(place: Place) {
    let begin = at("2026-03-01T00:10:00Z");
    let app = one(&place, timer("0 * * * *", MissedTicks::RunOnce), begin).await;
    let change = async |how: fn(&mut TaskDefinition)| {
        let mut definition = definition(&[("night", timer("0 * * * *", MissedTicks::RunOnce))]);
        how(&mut definition);
        let now = app.clock.now_ms();
        app.store
            .update_task("app", &definition, None, None, now)
            .await
            .unwrap();
    };
    let last = async || triggers(&app.store).await.pop().unwrap();
    change(|task| task.enabled = false).await;
    pass(&app, begin + HOUR).await;
    assert_eq!(
        last().await.suppressed.as_deref(),
        Some("the task is disabled")
    );
    pass(&app, begin + 5 * HOUR).await;
    let suppressed = last().await;
    assert_eq!(
        suppressed.suppressed.as_deref(),
        Some("the task is disabled (4 ticks)")
    );
    assert_eq!(suppressed.stands_for, Some(4));
    // What came while it was off is over.
    change(|_| {}).await;
    pass(&app, begin + 5 * HOUR + MINUTE).await;
    assert_eq!(ran(&app.store).await.len(), 0);
    change(|task| {
        task.secrets.insert("token".into(), "not-there".into());
    })
    .await;
    pass(&app, begin + 6 * HOUR).await;
    assert_eq!(
        last().await.suppressed.as_deref(),
        Some(
            "there is no secret `not-there`; set it with `acrtask secret set not-there --task app`"
        )
    );
    change(|_| {}).await;
    pass(&app, begin + 7 * HOUR).await;
    assert_eq!(ran(&app.store).await, ["2026-03-01T07:00:00Z"]);
    all_is_accounted_for(&app).await;
}

/// Two servers at once, whose clocks differ and jump, that are killed and started again; in the end each tick is stood
/// for once.
async fn a_storm_loses_no_tick_and_doubles_none(place: Place) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let begin = at("2026-03-28T00:00:00Z");
    let berlin = Timer {
        timezone: Some("Europe/Berlin".into()),
        jitter: Some("3m".into()),
        ..Timer::new("*/20 * * * *")
    };
    let timers = [
        ("berlin", berlin),
        ("once", timer("*/15 * * * *", MissedTicks::RunOnce)),
        ("skip", timer("7 */2 * * *", MissedTicks::Skip)),
    ];
    let mut ahead = app(&place, begin).await;
    let mut behind = app(&place, begin).await;
    task(&ahead, &definition(&timers)).await;
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
        let (one, two) = tokio::join!(killed_after(&ahead, steps), killed_after(&behind, other));
        if !one {
            ahead = app(&place, now).await;
        }
        if !two {
            behind = app(&place, now).await;
        }
    }
    pass(&behind, now + 10_000).await;
    all_is_accounted_for(&behind).await;
    let handled = behind.store.handled_ticks("t1").await.unwrap();
    for (name, timer) in &timers {
        let schedule = Schedule::new("t1", name, timer).unwrap();
        let until = acrtask_store::timestamp(handled[*name]);
        let expected = schedule.ticks(acrtask_store::timestamp(begin), until, usize::MAX);
        let rows = triggers(&behind.store).await;
        let of_timer = rows
            .iter()
            .filter(|row| row.timer.as_deref() == Some(*name));
        let stood_for: u64 = of_timer.map(|row| row.stands_for.unwrap()).sum();
        assert_eq!(stood_for, expected.len() as u64, "{name}, seed {seed}");
    }
}

/// The loop of a whole server, woken when a task is made and when its tick has come.
async fn a_server_wakes_for_a_tick(place: Place) {
    let begin = at("2026-03-01T00:10:00Z");
    let clock = Clock::fixed(begin);
    let mut options = place.options(Config::default());
    options.clock = clock.clone();
    let server = serve::start(options).await.unwrap();
    let app: Arc<App> = server.app().clone();
    let task = definition(&[("night", timer("0 * * * *", MissedTicks::RunOnce))]);
    app.store
        .create_task("t1", &task, None, begin)
        .await
        .unwrap();
    app.timers.notify_one();
    let begun = Instant::now();
    let mut hours = 0;
    while ran(&app.store).await.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "no tick came");
        if app.store.next_timer().await.unwrap() > Some(clock.now_ms()) {
            hours += 1;
            clock.set(begin + hours * HOUR);
            app.timers.notify_one();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.shutdown().await;
}
