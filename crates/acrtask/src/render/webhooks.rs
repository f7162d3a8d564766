//! Webhooks, deliveries and the triggers of a task, as tables and texts. Pure: the time is a
//! parameter.

use acrtask_api::{
    task::{BaseImageTriggerType, CommitEvent, CommitTrigger, Forks, MissedFirings, Triggers},
    webhook::{Decision, DecisionAction, Delivery, DeliveryWatch, Refusal, Webhook},
};
use jiff::Timestamp;

use super::{
    run::format_age,
    style::Style,
    table::{key_values, render_list, write_section},
    text,
};
use crate::args::commit_trigger::event_name;

/// Renders a list of webhooks.
pub(crate) fn render_webhooks(webhooks: &[Webhook], style: Style) -> String {
    let rows = webhooks.iter().map(|webhook| {
        let definition = &webhook.definition;
        vec![
            webhook.name.clone(),
            definition.provider.clone(),
            webhook.url.clone(),
            webhook.secrets.to_string(),
            if definition.repositories.is_empty() {
                "*".into()
            } else {
                definition.repositories.join(" ")
            },
            definition.tasks.clone().unwrap_or_else(|| "*".into()),
            if definition.statuses.is_some() {
                "reported".into()
            } else {
                "-".into()
            },
        ]
    });
    render_list(
        &[
            "NAME",
            "SENDER",
            "URL",
            "SECRETS",
            "REPOSITORIES",
            "TASKS",
            "STATUSES",
        ],
        rows.collect(),
        "no webhooks",
        style,
    )
}

/// Renders one webhook.
pub(crate) fn render_webhook(webhook: &Webhook, now: Timestamp, style: Style) -> String {
    let definition = &webhook.definition;
    let statuses = match &definition.statuses {
        None => "not reported".to_owned(),
        Some(statuses) => {
            let api = statuses.api.as_deref();
            let token = statuses.token.as_deref();
            format!(
                "reported to {}, with {}",
                api.unwrap_or("the default API of the sender"),
                token.map_or("the stored login for that host".into(), |name| format!(
                    "the secret {name}"
                ))
            )
        }
    };
    key_values(
        &[
            ("webhook", webhook.name.clone()),
            ("sender", definition.provider.clone()),
            ("url", webhook.url.clone()),
            ("secrets", webhook.secrets.to_string()),
            (
                "repositories",
                if definition.repositories.is_empty() {
                    "all".into()
                } else {
                    definition.repositories.join(" ")
                },
            ),
            (
                "tasks",
                definition.tasks.clone().unwrap_or_else(|| "all".into()),
            ),
            ("statuses", statuses),
            ("created", format_age(webhook.created_at, now)),
            ("changed", format_age(webhook.updated_at, now)),
        ],
        style,
    )
}

fn plain_text(text: &str) -> String {
    text::plain_line(text).into_owned()
}

/// Returns the result of a decision for one task.
fn decision_result(decision: &Decision, style: Style) -> String {
    let run = decision.run.as_ref().map(ToString::to_string);
    let run = run.unwrap_or_default();
    match decision.action {
        DecisionAction::RunStarted => style.good(&format!("run {run}")),
        DecisionAction::ExistingRun => format!("joined run {run}"),
        DecisionAction::Ignored => style.dim("nothing"),
    }
}

/// Returns the cascade of a watched base image, or `a check`.
fn watch_result(watch: &DeliveryWatch, style: Style) -> String {
    match watch.cascade {
        Some(id) => style.good(&format!("cascade {id}")),
        None => "a check".into(),
    }
}

/// Renders a list of deliveries with one line for each decision.
pub(crate) fn render_deliveries(deliveries: &[Delivery], now: Timestamp, style: Style) -> String {
    let rows = deliveries.iter().flat_map(|delivery| {
        let head = vec![
            delivery.id.clone(),
            delivery.webhook.clone(),
            format_age(delivery.received_at, now),
            plain_text(delivery.repository.as_deref().unwrap_or("-")),
            plain_text(&delivery.summary),
        ];
        let blank = vec![String::new(); head.len()];
        let mut decisions: Vec<Vec<String>> = delivery
            .decisions
            .iter()
            .map(|decision| {
                vec![
                    decision.task.clone(),
                    decision_result(decision, style),
                    plain_text(&decision.reason),
                ]
            })
            .collect();
        decisions.extend(delivery.watches.iter().map(|watch| {
            vec![
                "-".into(),
                watch_result(watch, style),
                format!("the base image {} is watched", plain_text(&watch.image)),
            ]
        }));
        if decisions.is_empty() {
            let note = delivery.note.as_deref();
            let note = note.unwrap_or("no task uses this repository");
            decisions.push(vec!["-".into(), style.dim("nothing"), plain_text(note)]);
        }
        decisions
            .into_iter()
            .enumerate()
            .map(move |(n, decision)| {
                let first = if n == 0 { head.clone() } else { blank.clone() };
                [first, decision].concat()
            })
            .collect::<Vec<_>>()
    });
    render_list(
        &[
            "ID",
            "WEBHOOK",
            "RECEIVED",
            "REPOSITORY",
            "EVENT",
            "TASK",
            "RESULT",
            "WHY",
        ],
        rows.collect(),
        "no deliveries",
        style,
    )
}

/// Renders the rejected deliveries.
pub(crate) fn render_refusals(refusals: &[Refusal], now: Timestamp, style: Style) -> String {
    let rows = refusals.iter().map(|refusal| {
        vec![
            refusal.webhook.clone(),
            refusal.code.clone(),
            refusal.count.to_string(),
            format_age(refusal.last_at, now),
            refusal.address.clone(),
            plain_text(&refusal.message),
        ]
    });
    render_list(
        &["WEBHOOK", "KIND", "COUNT", "LAST", "FROM", "WHY"],
        rows.collect(),
        "no delivery was rejected",
        style,
    )
}

/// Renders one delivery.
pub(crate) fn render_delivery(delivery: &Delivery, now: Timestamp, style: Style) -> String {
    let mut out = key_values(
        &[
            ("delivery", delivery.id.clone()),
            ("webhook", delivery.webhook.clone()),
            ("sender's id", plain_text(&delivery.sender_id)),
            ("kind", delivery.kind.clone()),
            (
                "repository",
                plain_text(delivery.repository.as_deref().unwrap_or_default()),
            ),
            ("event", plain_text(&delivery.summary)),
            (
                "note",
                plain_text(delivery.note.as_deref().unwrap_or_default()),
            ),
            (
                "redelivery",
                delivery
                    .redelivery_of
                    .as_ref()
                    .map(|id| format!("of {id}"))
                    .unwrap_or_default(),
            ),
            (
                "received",
                format!(
                    "{} ({})",
                    delivery.received_at,
                    format_age(delivery.received_at, now)
                ),
            ),
            ("bytes", delivery.size.to_string()),
        ],
        style,
    );
    let rows = delivery.decisions.iter().map(|decision| {
        vec![
            decision.task.clone(),
            decision_result(decision, style),
            plain_text(&decision.reason),
        ]
    });
    let watches = delivery.watches.iter().map(|watch| {
        vec![
            plain_text(&watch.image),
            watch_result(watch, style),
            "it is watched as a base image".into(),
        ]
    });
    write_section("Decisions", rows.chain(watches).collect(), style, &mut out);
    out
}

/// Renders the triggers of a task.
pub(crate) fn render_trigger_settings(triggers: &Triggers, style: Style) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, enabled: bool, text: String| {
        let name = style.dim(name);
        rows.push(vec![
            name,
            if enabled {
                text
            } else {
                format!("off; {text}")
            },
        ]);
    };
    if let Some(commit) = &triggers.commit {
        add("commits", commit.enabled, commit_text(commit));
    }
    if let Some(push) = &triggers.registry_push {
        let tags = if push.tags.is_empty() {
            String::new()
        } else {
            format!(", tags {}", push.tags.join(" "))
        };
        let what = format!("pushes to {}{tags}", push.repositories.join(" "));
        add("images", push.enabled, what);
    }
    if let Some(base) = &triggers.base_image {
        let which = match base.r#type {
            BaseImageTriggerType::Runtime => "new digests of the bases of the image",
            BaseImageTriggerType::All => "new digests of the bases of any stage",
            BaseImageTriggerType::None => "no new digests",
        };
        add("bases", base.enabled, which.into());
    }
    for (name, timer) in &triggers.timers {
        let mut what = format!(
            "{} {}",
            timer.schedule,
            timer.timezone.as_deref().unwrap_or("UTC")
        );
        if let Some(jitter) = &timer.jitter {
            what += &format!(", up to {jitter} later");
        }
        if timer.missed == MissedFirings::Skip {
            what += ", missed firings are skipped";
        }
        add(&format!("timer {name}"), timer.enabled, what);
    }
    let mut out = String::new();
    write_section("Started by", rows, style, &mut out);
    out
}

fn commit_text(commit: &CommitTrigger) -> String {
    let events: &[CommitEvent] = match (commit.events.is_empty(), commit.tags.is_empty()) {
        (false, _) => &commit.events,
        (true, true) => &[CommitEvent::Push],
        (true, false) => &[CommitEvent::Push, CommitEvent::Tag],
    };
    let names: Vec<_> = events.iter().map(|event| event_name(*event)).collect();
    let mut parts = vec![names.join(", ")];
    parts.push(if commit.branches.is_empty() {
        "of the context's branch".into()
    } else {
        format!("of {}", commit.branches.join(" "))
    });
    if !commit.tags.is_empty() {
        parts.push(format!("tags {}", commit.tags.join(" ")));
    }
    if !commit.paths.include.is_empty() {
        parts.push(format!("if {} changes", commit.paths.include.join(" or ")));
    }
    if !commit.paths.exclude.is_empty() {
        parts.push(format!("ignoring {}", commit.paths.exclude.join(" ")));
    }
    if commit.newest_wins {
        parts.push("the newest commit wins".into());
    }
    if events.contains(&CommitEvent::PullRequest) {
        parts.push(match commit.forks {
            Forks::Approve => "those from forks wait for approval".into(),
            Forks::Ignore => "those from forks start nothing".into(),
        });
    }
    if let Some(texts) = &commit.skip_messages {
        parts.push(if texts.is_empty() {
            "for any message".into()
        } else {
            format!("not with {} in the message", texts.join(" or "))
        });
    }
    parts.join("; ")
}

#[cfg(test)]
#[path = "webhooks_tests.rs"]
mod tests;
