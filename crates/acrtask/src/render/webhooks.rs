//! Webhooks, deliveries and what starts runs of a task, as tables and texts. Pure: the time comes in.

use acrtask_api::{
    task::{BaseImageTriggerType, CommitEvent, CommitTrigger, Forks, MissedTicks, Triggers},
    webhook::{Delivery, DeliveryWatch, Outcome, OutcomeKind, Refusal, Webhook},
};
use jiff::Timestamp;

use super::{
    run::ago,
    style::Style,
    table::{facts, list, titled},
    text,
};
use crate::args::triggers::event_name;

/// A list of webhooks.
pub(crate) fn webhooks(webhooks: &[Webhook], style: Style) -> String {
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
            if definition.statuses.is_some() {
                "told".into()
            } else {
                "-".into()
            },
        ]
    });
    list(
        &[
            "NAME",
            "SENDER",
            "URL",
            "SECRETS",
            "REPOSITORIES",
            "STATUSES",
        ],
        rows.collect(),
        "there are no webhooks",
        style,
    )
}

/// One webhook.
pub(crate) fn webhook(webhook: &Webhook, now: Timestamp, style: Style) -> String {
    let definition = &webhook.definition;
    let statuses = match &definition.statuses {
        None => "the sender is not told where runs stand".to_owned(),
        Some(statuses) => {
            let api = statuses.api.as_deref();
            let token = statuses.token.as_deref();
            format!(
                "the sender is told where runs stand, at {}, with {}",
                api.unwrap_or("its usual API"),
                token.map_or("the stored login for that host".into(), |name| format!(
                    "the secret {name}"
                ))
            )
        }
    };
    facts(
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
            ("statuses", statuses),
            ("made", ago(webhook.created_at, now)),
            ("changed", ago(webhook.updated_at, now)),
        ],
        style,
    )
}

fn plain(text: &str) -> String {
    text::plain(text).into_owned()
}

/// What came of it for one task, in a few words.
fn led_to(outcome: &Outcome, style: Style) -> String {
    let run = outcome.run.as_ref().map(ToString::to_string);
    let run = run.unwrap_or_default();
    match outcome.what {
        OutcomeKind::Run => style.good(&format!("run {run}")),
        OutcomeKind::Joined => format!("joined run {run}"),
        OutcomeKind::Suppressed => style.dim("nothing"),
    }
}

/// Returns the cascade of a watched base image, or `a check`.
fn watch_led_to(watch: &DeliveryWatch, style: Style) -> String {
    match watch.cascade {
        Some(id) => style.good(&format!("cascade {id}")),
        None => "a check".into(),
    }
}

/// A list of deliveries: a line for each task that was looked at.
pub(crate) fn deliveries(deliveries: &[Delivery], now: Timestamp, style: Style) -> String {
    let rows = deliveries.iter().flat_map(|delivery| {
        let head = vec![
            delivery.id.clone(),
            delivery.webhook.clone(),
            ago(delivery.received_at, now),
            plain(delivery.repository.as_deref().unwrap_or("-")),
            plain(&delivery.summary),
        ];
        let blank = vec![String::new(); head.len()];
        let mut outcomes: Vec<Vec<String>> = delivery
            .outcomes
            .iter()
            .map(|outcome| {
                vec![
                    outcome.task.clone(),
                    led_to(outcome, style),
                    plain(&outcome.reason),
                ]
            })
            .collect();
        outcomes.extend(delivery.watches.iter().map(|watch| {
            vec![
                "-".into(),
                watch_led_to(watch, style),
                format!("the base image {} is watched", plain(&watch.image)),
            ]
        }));
        if outcomes.is_empty() {
            let note = delivery.note.as_deref();
            let note = note.unwrap_or("no task is of this repository");
            outcomes.push(vec!["-".into(), style.dim("nothing"), plain(note)]);
        }
        outcomes
            .into_iter()
            .enumerate()
            .map(move |(n, outcome)| {
                let first = if n == 0 { head.clone() } else { blank.clone() };
                [first, outcome].concat()
            })
            .collect::<Vec<_>>()
    });
    list(
        &[
            "ID",
            "WEBHOOK",
            "CAME",
            "REPOSITORY",
            "WHAT",
            "TASK",
            "LED TO",
            "WHY",
        ],
        rows.collect(),
        "there are no deliveries",
        style,
    )
}

/// Refused deliveries.
pub(crate) fn refusals(refusals: &[Refusal], now: Timestamp, style: Style) -> String {
    let rows = refusals.iter().map(|refusal| {
        vec![
            refusal.webhook.clone(),
            refusal.code.clone(),
            refusal.count.to_string(),
            ago(refusal.last_at, now),
            refusal.address.clone(),
            plain(&refusal.message),
        ]
    });
    list(
        &["WEBHOOK", "KIND", "COUNT", "LAST", "FROM", "WHY"],
        rows.collect(),
        "no delivery was refused",
        style,
    )
}

/// One delivery.
pub(crate) fn delivery(delivery: &Delivery, now: Timestamp, style: Style) -> String {
    let mut out = facts(
        &[
            ("delivery", delivery.id.clone()),
            ("webhook", delivery.webhook.clone()),
            ("sender's id", plain(&delivery.sender_id)),
            ("kind", delivery.kind.clone()),
            (
                "repository",
                plain(delivery.repository.as_deref().unwrap_or_default()),
            ),
            ("what", plain(&delivery.summary)),
            ("note", plain(delivery.note.as_deref().unwrap_or_default())),
            (
                "once more",
                delivery
                    .redelivery_of
                    .as_ref()
                    .map(|id| format!("what {id} brought"))
                    .unwrap_or_default(),
            ),
            (
                "came",
                format!(
                    "{} ({})",
                    delivery.received_at,
                    ago(delivery.received_at, now)
                ),
            ),
            ("bytes", delivery.size.to_string()),
        ],
        style,
    );
    let rows = delivery.outcomes.iter().map(|outcome| {
        vec![
            outcome.task.clone(),
            led_to(outcome, style),
            plain(&outcome.reason),
        ]
    });
    let watches = delivery.watches.iter().map(|watch| {
        vec![
            plain(&watch.image),
            watch_led_to(watch, style),
            "it is watched as a base image".into(),
        ]
    });
    titled("Led to", rows.chain(watches).collect(), style, &mut out);
    out
}

/// What starts runs of a task.
pub(crate) fn triggers(triggers: &Triggers, style: Style) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, on: bool, what: String| {
        let name = style.dim(name);
        rows.push(vec![name, if on { what } else { format!("off; {what}") }]);
    };
    if let Some(commit) = &triggers.commit {
        add("commits", commit.enabled, commit_words(commit));
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
        if timer.missed == MissedTicks::Skip {
            what += ", missed ones are skipped";
        }
        add(&format!("timer {name}"), timer.enabled, what);
    }
    let mut out = String::new();
    titled("Started by", rows, style, &mut out);
    out
}

fn commit_words(commit: &CommitTrigger) -> String {
    let events: &[CommitEvent] = match (commit.events.is_empty(), commit.tags.is_empty()) {
        (false, _) => &commit.events,
        (true, true) => &[CommitEvent::Push],
        (true, false) => &[CommitEvent::Push, CommitEvent::Tag],
    };
    let names: Vec<_> = events.iter().map(|event| event_name(*event)).collect();
    let mut words = vec![names.join(", ")];
    words.push(if commit.branches.is_empty() {
        "of the context's branch".into()
    } else {
        format!("of {}", commit.branches.join(" "))
    });
    if !commit.tags.is_empty() {
        words.push(format!("tags {}", commit.tags.join(" ")));
    }
    if !commit.paths.include.is_empty() {
        words.push(format!(
            "where {} changes",
            commit.paths.include.join(" or ")
        ));
    }
    if !commit.paths.exclude.is_empty() {
        words.push(format!("{} does not count", commit.paths.exclude.join(" ")));
    }
    if commit.newest_wins {
        words.push("the newest commit wins".into());
    }
    if events.contains(&CommitEvent::PullRequest) {
        words.push(match commit.forks {
            Forks::Approve => "those from other repositories wait for approval".into(),
            Forks::Ignore => "those from other repositories start nothing".into(),
        });
    }
    if let Some(texts) = &commit.skip_messages {
        words.push(if texts.is_empty() {
            "whatever the message says".into()
        } else {
            format!("not with {} in the message", texts.join(" or "))
        });
    }
    words.join("; ")
}

#[cfg(test)]
#[path = "webhooks_tests.rs"]
mod tests;
