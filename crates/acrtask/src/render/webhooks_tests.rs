use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn some_deliveries() -> Vec<Delivery> {
    serde_json::from_value(json!([
        {
            "id": "d2", "webhook": "app", "senderId": "72d3", "kind": "push", "repository": "org/app",
            "summary": "commit 0123456 was pushed to the branch `main` of org/app", "size": 7324,
            "receivedAt": "2026-01-02T03:01:05Z",
            "decisions": [
                { "task": "api", "action": "runStarted", "run": "r1", "reason": "commit 0123456 was pushed to the branch `main`" },
                { "task": "docs", "action": "ignored",
                  "reason": "none of the 2 changed files matches the task's paths (docs/**)" },
                { "task": "site", "action": "existingRun", "run": "r0", "reason": "that commit has a run already" }
            ]
        },
        {
            "id": "d1", "webhook": "app", "senderId": "72d2", "kind": "ping", "summary": "a ping",
            "note": "the sender only tested the connection", "size": 100, "redeliveryOf": "d0",
            "receivedAt": "2026-01-02T02:04:05Z", "decisions": []
        }
    ]))
    .unwrap()
}

#[test]
fn deliveries_show_decisions_and_reasons() {
    let all = some_deliveries();
    let mut text = render_deliveries(&all, now(), Style::PLAIN);
    for delivery in &all {
        text += "\n";
        text += &render_delivery(delivery, now(), Style::PLAIN);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn webhooks_are_rendered_as_a_list_and_one_by_one() {
    let all: Vec<Webhook> = serde_json::from_value(json!([
        {
            "name": "app", "provider": "github", "repositories": ["https://github.com/org/app.git"], "secrets": 2,
            "statuses": { "token": "GITHUB_TOKEN" }, "url": "https://ci.example.com/hooks/app",
            "createdAt": "2026-01-02T03:01:05Z", "updatedAt": "2026-01-02T03:04:00Z"
        },
        {
            "name": "harbor", "provider": "harbor", "secrets": 1, "url": "/hooks/harbor",
            "createdAt": "2026-01-02T03:01:05Z", "updatedAt": "2026-01-02T03:04:00Z"
        }
    ]))
    .unwrap();
    let mut text = render_webhooks(&all, Style::PLAIN);
    for webhook in &all {
        text += "\n";
        text += &render_webhook(webhook, now(), Style::PLAIN);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn trigger_settings_are_described() {
    let settings: Triggers = serde_json::from_value(json!({
        "commit": {
            "branches": ["main", "release/*"], "tags": ["v*"], "events": ["push", "tag", "pullRequest"],
            "paths": { "include": ["services/a/**"], "exclude": ["**/*.md"] }, "newestWins": true
        },
        "registryPush": { "repositories": ["reg.example.com/base/*"], "tags": ["1.*"] },
        "baseImage": { "enabled": false, "type": "All" },
        "timers": {
            "night": { "schedule": "0 3 * * *", "timezone": "Europe/Berlin", "jitter": "5m", "missed": "skip" },
            "t1": { "schedule": "0 * * * *" }
        }
    }))
    .unwrap();
    insta::assert_snapshot!(render_trigger_settings(&settings, Style::PLAIN));
    assert_eq!(
        render_trigger_settings(&Triggers::default(), Style::PLAIN),
        ""
    );
}
