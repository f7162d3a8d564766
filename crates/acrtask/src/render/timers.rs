//! Timers, the URL of a task, and what its triggers led to, as tables. Pure: the time comes in.

use acrtask_api::{
    task::{MissedTicks, Timer},
    timer::{LastTick, TaskTimer, Tick, TriggerUrl},
    webhook::{OutcomeKind, Trigger},
};
use acrtask_model::RunState;
use jiff::Timestamp;

use super::{
    run::{ago, state},
    style::Style,
    table::{facts, list, titled},
    text,
};

/// The timers of a task.
pub(crate) fn timers(timers: &[TaskTimer], now: Timestamp, style: Style) -> String {
    let rows = timers.iter().map(|timer| {
        vec![
            timer.name.clone(),
            schedule(&timer.timer),
            next(timer, style),
            timer
                .last
                .as_ref()
                .map_or_else(|| "-".into(), |last| self::last(last, now, style)),
        ]
    });
    list(
        &["TIMER", "SCHEDULE", "NEXT", "LAST"],
        rows.collect(),
        "there are no timers",
        style,
    )
}

fn schedule(timer: &Timer) -> String {
    let mut words = vec![timer.schedule.clone()];
    words.extend(timer.timezone.clone());
    words.extend(
        timer
            .jitter
            .as_ref()
            .map(|jitter| format!("(jitter {jitter})")),
    );
    if timer.missed == MissedTicks::Skip {
        words.push("(missed ticks are skipped)".into());
    }
    words.join(" ")
}

fn next(timer: &TaskTimer, style: Style) -> String {
    match (&timer.problem, timer.next) {
        (Some(problem), _) => style.warn(&text::plain(problem)),
        (None, _) if !timer.timer.enabled => style.dim("off"),
        (None, Some(next)) => timer.next_start.unwrap_or(next).to_string(),
        (None, None) => style.dim("never"),
    }
}

fn last(last: &LastTick, now: Timestamp, style: Style) -> String {
    let when = ago(last.scheduled_at, now);
    let of = many(last.stands_for);
    match &last.run {
        Some(run) => {
            let stands = where_it_stands(last.state.as_deref(), style);
            format!("{when}{of}: {run} {stands}").trim_end().to_owned()
        }
        None => {
            let why = last.reason.as_deref().unwrap_or_default();
            format!("{when}{of}: {}", style.dim(&text::plain(why)))
        }
    }
}

fn many(stands_for: u64) -> String {
    match stands_for {
        0 | 1 => String::new(),
        1000.. => ", for 1000 ticks or more".into(),
        many => format!(", for {many} ticks"),
    }
}

fn where_it_stands(text: Option<&str>, style: Style) -> String {
    let known = text.and_then(RunState::parse);
    known.map_or_else(String::new, |known| state(known, style))
}

/// The tick that started a run.
pub(crate) fn tick(tick: &Tick) -> String {
    format!(
        "timer {}, tick of {}{}",
        tick.timer,
        tick.scheduled_at,
        many(tick.stands_for)
    )
}

/// The URL of a task.
pub(crate) fn trigger_url(task: &str, url: &TriggerUrl, now: Timestamp, style: Style) -> String {
    facts(
        &[
            ("task", task.to_owned()),
            ("url", format!("/trigger/acrtu_{}_...", url.id)),
            (
                "created",
                format!("{} ({})", url.created_at, ago(url.created_at, now)),
            ),
            ("by", url.created_by.clone().unwrap_or_default()),
            (
                "last used",
                url.last_used_at
                    .map_or_else(|| "never".into(), |at| ago(at, now)),
            ),
            (
                "turned away",
                match (url.turned_away, url.turned_away_at) {
                    (0, _) => "no calls".into(),
                    (count, at) => {
                        let at =
                            at.map_or_else(String::new, |at| format!(", last {}", ago(at, now)));
                        format!("{count} calls, because too many came{at}")
                    }
                },
            ),
            (
                "calls set",
                match url.allow_set.as_slice() {
                    [] => "no values".into(),
                    keys => keys.join(", "),
                },
            ),
        ],
        style,
    )
}

/// What was to start runs of a task, and what each of it led to, below the task.
pub(crate) fn triggers(triggers: &[Trigger], now: Timestamp, style: Style) -> String {
    let rows = triggers.iter().map(|trigger| {
        let outcome = &trigger.outcome;
        let led = match (&outcome.run, outcome.what) {
            (Some(run), OutcomeKind::Joined) => format!("joined {run}"),
            (Some(run), _) => run.to_string(),
            (None, _) => style.warn("nothing"),
        };
        let kind = match &trigger.tick {
            Some(tick) => format!("timer {}", tick.timer),
            None => trigger.kind.clone(),
        };
        vec![
            ago(trigger.received_at, now),
            kind,
            led,
            where_it_stands(trigger.state.as_deref(), style),
            text::plain(&outcome.reason).into_owned(),
        ]
    });
    let mut out = String::new();
    titled(
        "Triggers, the newest first",
        rows.collect(),
        style,
        &mut out,
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-25T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn timers_as_a_table() {
        let all: Vec<TaskTimer> = read(serde_json::json!([
            {"name": "night", "schedule": "0 3 * * *", "enabled": true, "timezone": "Europe/Berlin", "jitter": "30m",
             "next": "2026-11-26T02:00:00Z", "nextStart": "2026-11-26T02:12:00Z",
             "last": {"scheduledAt": "2026-11-25T02:00:00Z", "handledAt": "2026-11-25T02:12:00Z", "standsFor": 3,
                      "what": "run", "run": "r1", "state": "succeeded"}},
            {"name": "off", "schedule": "0 * * * *", "enabled": false, "missed": "skip"},
            {"name": "work", "schedule": "0 * * * *", "enabled": true, "problem": "the task is disabled",
             "last": {"scheduledAt": "2026-11-25T11:00:00Z", "handledAt": "2026-11-25T11:00:00Z", "standsFor": 1,
                      "what": "suppressed", "reason": "the task is disabled"}},
        ]));
        insta::assert_snapshot!(timers(&all, now(), Style::PLAIN));
        assert_eq!(timers(&[], now(), Style::PLAIN), "there are no timers\n");
    }

    #[test]
    fn triggers_below_a_task() {
        let all: Vec<Trigger> = read(serde_json::json!([
            {"id": "r2", "kind": "timer", "receivedAt": "2026-11-25T11:00:00Z", "task": "app", "what": "run", "run": "r2",
             "state": "running", "reason": "the timer night ticked at 2026-11-25T11:00:00Z",
             "tick": {"timer": "night", "scheduledAt": "2026-11-25T11:00:00Z", "standsFor": 1}},
            {"id": "d1", "kind": "commit", "receivedAt": "2026-11-25T10:59:00Z", "task": "app", "what": "joined", "run": "r1",
             "state": "failed", "reason": "a run of this commit waits already", "delivery": "d"},
            {"id": "u1", "kind": "url", "receivedAt": "2026-11-24T10:00:00Z", "task": "app", "what": "suppressed",
             "reason": "the task `app` is disabled"},
        ]));
        insta::assert_snapshot!(triggers(&all, now(), Style::PLAIN));
        assert_eq!(triggers(&[], now(), Style::PLAIN), "");
    }

    #[test]
    fn the_url_of_a_task() {
        let url: TriggerUrl = read(serde_json::json!({
            "id": "abc", "createdAt": "2026-11-20T12:00:00Z", "createdBy": "ann", "allowSet": ["tag"],
            "turnedAway": 7, "turnedAwayAt": "2026-11-20T12:00:00Z",
        }));
        insta::assert_snapshot!(trigger_url("app", &url, now(), Style::PLAIN));
    }
}
