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
            "outcomes": [
                { "task": "api", "what": "run", "run": "r1", "reason": "commit 0123456 was pushed to the branch `main`" },
                { "task": "docs", "what": "suppressed",
                  "reason": "none of the 2 files that changed counts for the task (docs/**)" },
                { "task": "site", "what": "joined", "run": "r0", "reason": "that commit has a run already" }
            ]
        },
        {
            "id": "d1", "webhook": "app", "senderId": "72d2", "kind": "ping", "summary": "a ping",
            "note": "the sender only tried whether it is heard", "size": 100, "redeliveryOf": "d0",
            "receivedAt": "2026-01-02T02:04:05Z", "outcomes": []
        }
    ]))
    .unwrap()
}

#[test]
fn deliveries_say_what_they_led_to_and_why() {
    let all = some_deliveries();
    let mut text = deliveries(&all, now(), Style::PLAIN);
    for one in &all {
        text += "\n";
        text += &delivery(one, now(), Style::PLAIN);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn webhooks_in_a_list_and_alone() {
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
    let mut text = webhooks(&all, Style::PLAIN);
    for one in &all {
        text += "\n";
        text += &webhook(one, now(), Style::PLAIN);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_starts_runs_of_a_task() {
    let what: Triggers = serde_json::from_value(json!({
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
    insta::assert_snapshot!(triggers(&what, Style::PLAIN));
    assert_eq!(triggers(&Triggers::default(), Style::PLAIN), "");
}
