//! Timers, trigger URLs and the trigger history of a task, as tables. Pure: the time is a
//! parameter.

use acrtask_api::{
    task::{MissedFirings, Timer},
    timer::{Firing, LastFiring, TaskTimer, TriggerUrl},
    webhook::{DecisionAction, Trigger},
};
use acrtask_model::RunState;
use jiff::Timestamp;

use super::{
    run::{format_age, styled_state},
    style::Style,
    table::{key_values, render_list, write_section},
    text,
};

/// Renders the timers of a task.
pub(crate) fn render_timers(timers: &[TaskTimer], now: Timestamp, style: Style) -> String {
    let rows = timers.iter().map(|timer| {
        vec![
            timer.name.clone(),
            schedule_text(&timer.timer),
            next_start(timer, style),
            timer
                .last
                .as_ref()
                .map_or_else(|| "-".into(), |last| last_firing(last, now, style)),
        ]
    });
    render_list(
        &["TIMER", "SCHEDULE", "NEXT", "LAST"],
        rows.collect(),
        "no timers",
        style,
    )
}

fn schedule_text(timer: &Timer) -> String {
    let mut parts = vec![timer.schedule.clone()];
    parts.extend(timer.timezone.clone());
    parts.extend(
        timer
            .jitter
            .as_ref()
            .map(|jitter| format!("(jitter {jitter})")),
    );
    if timer.missed == MissedFirings::Skip {
        parts.push("(missed firings are skipped)".into());
    }
    parts.join(" ")
}

fn next_start(timer: &TaskTimer, style: Style) -> String {
    match (&timer.problem, timer.next) {
        (Some(problem), _) => style.warn(&text::plain_line(problem)),
        (None, _) if !timer.timer.enabled => style.dim("off"),
        (None, Some(next)) => timer.next_start.unwrap_or(next).to_string(),
        (None, None) => style.dim("never"),
    }
}

fn last_firing(last: &LastFiring, now: Timestamp, style: Style) -> String {
    let when = format_age(last.scheduled_at, now);
    let count = count_text(last.firing_count);
    match &last.run {
        Some(run) => {
            let state = state_text(last.state.as_deref(), style);
            format!("{when}{count}: {run} {state}")
                .trim_end()
                .to_owned()
        }
        None => {
            let why = last.reason.as_deref().unwrap_or_default();
            format!("{when}{count}: {}", style.dim(&text::plain_line(why)))
        }
    }
}

fn count_text(firing_count: u64) -> String {
    match firing_count {
        0 | 1 => String::new(),
        1000.. => ", for 1000 or more firings".into(),
        many => format!(", for {many} firings"),
    }
}

fn state_text(text: Option<&str>, style: Style) -> String {
    let state = text.and_then(RunState::parse);
    state.map_or_else(String::new, |state| styled_state(state, style))
}

/// Describes the firing that started a run.
pub(crate) fn describe_firing(firing: &Firing) -> String {
    format!(
        "timer {}, firing of {}{}",
        firing.timer,
        firing.scheduled_at,
        count_text(firing.firing_count)
    )
}

/// Renders the trigger URL of a task.
pub(crate) fn render_trigger_url(
    task: &str,
    url: &TriggerUrl,
    now: Timestamp,
    style: Style,
) -> String {
    key_values(
        &[
            ("task", task.to_owned()),
            ("url", format!("/trigger/acrtu_{}_...", url.id)),
            (
                "created",
                format!("{} ({})", url.created_at, format_age(url.created_at, now)),
            ),
            ("by", url.created_by.clone().unwrap_or_default()),
            (
                "last used",
                url.last_used_at
                    .map_or_else(|| "never".into(), |at| format_age(at, now)),
            ),
            (
                "rejected",
                match (url.rejected_calls, url.last_rejected_at) {
                    (0, _) => "no calls".into(),
                    (count, at) => {
                        let at = at.map_or_else(String::new, |at| {
                            format!(", last {}", format_age(at, now))
                        });
                        format!("{count} calls over the limit{at}")
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

/// Renders the latest triggers of a task and their results.
pub(crate) fn render_trigger_history(triggers: &[Trigger], now: Timestamp, style: Style) -> String {
    let rows = triggers.iter().map(|trigger| {
        let decision = &trigger.decision;
        let result = match (&decision.run, decision.action) {
            (Some(run), DecisionAction::ExistingRun) => format!("joined {run}"),
            (Some(run), _) => run.to_string(),
            (None, _) => style.warn("nothing"),
        };
        let kind = match &trigger.firing {
            Some(firing) => format!("timer {}", firing.timer),
            None => trigger.kind.clone(),
        };
        vec![
            format_age(trigger.received_at, now),
            kind,
            result,
            state_text(trigger.state.as_deref(), style),
            text::plain_line(&decision.reason).into_owned(),
        ]
    });
    let mut out = String::new();
    write_section(
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
    fn timers_are_rendered_as_a_table() {
        let all: Vec<TaskTimer> = read(serde_json::json!([
            {"name": "night", "schedule": "0 3 * * *", "enabled": true, "timezone": "Europe/Berlin", "jitter": "30m",
             "next": "2026-11-26T02:00:00Z", "nextStart": "2026-11-26T02:12:00Z",
             "last": {"scheduledAt": "2026-11-25T02:00:00Z", "handledAt": "2026-11-25T02:12:00Z", "firingCount": 3,
                      "action": "runStarted", "run": "r1", "state": "succeeded"}},
            {"name": "off", "schedule": "0 * * * *", "enabled": false, "missed": "skip"},
            {"name": "work", "schedule": "0 * * * *", "enabled": true, "problem": "the task is disabled",
             "last": {"scheduledAt": "2026-11-25T11:00:00Z", "handledAt": "2026-11-25T11:00:00Z", "firingCount": 1,
                      "action": "ignored", "reason": "the task is disabled"}},
        ]));
        insta::assert_snapshot!(render_timers(&all, now(), Style::PLAIN));
        assert_eq!(render_timers(&[], now(), Style::PLAIN), "no timers\n");
    }

    #[test]
    fn trigger_history_shows_results_and_reasons() {
        let all: Vec<Trigger> = read(serde_json::json!([
            {"id": "r2", "kind": "timer", "receivedAt": "2026-11-25T11:00:00Z", "task": "app", "action": "runStarted", "run": "r2",
             "state": "running", "reason": "the timer night fired at 2026-11-25T11:00:00Z",
             "firing": {"timer": "night", "scheduledAt": "2026-11-25T11:00:00Z", "firingCount": 1}},
            {"id": "d1", "kind": "commit", "receivedAt": "2026-11-25T10:59:00Z", "task": "app", "action": "existingRun", "run": "r1",
             "state": "failed", "reason": "a run of this commit waits already", "delivery": "d"},
            {"id": "u1", "kind": "url", "receivedAt": "2026-11-24T10:00:00Z", "task": "app", "action": "ignored",
             "reason": "the task `app` is disabled"},
        ]));
        insta::assert_snapshot!(render_trigger_history(&all, now(), Style::PLAIN));
        assert_eq!(render_trigger_history(&[], now(), Style::PLAIN), "");
    }

    #[test]
    fn trigger_url_shows_its_use_and_rejected_calls() {
        let url: TriggerUrl = read(serde_json::json!({
            "id": "abc", "createdAt": "2026-11-20T12:00:00Z", "createdBy": "ann", "allowSet": ["tag"],
            "rejectedCalls": 7, "lastRejectedAt": "2026-11-20T12:00:00Z",
        }));
        insta::assert_snapshot!(render_trigger_url("app", &url, now(), Style::PLAIN));
    }
}
