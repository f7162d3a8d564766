use std::fmt::Write as _;

use acrtask_api::probe::{Probe, ProbeLogin, ProbeOutcome};
use serde_json::json;

use super::*;

fn probe(host: &str, outcome: ProbeOutcome) -> Probe {
    Probe {
        host: host.into(),
        login: Some(ProbeLogin::Task),
        outcome,
        message: format!("{host} was asked"),
        help: (outcome != ProbeOutcome::Works).then(|| "do this".into()),
        clock_ahead: Some(0),
    }
}

fn seen() -> Seen {
    let runner = json!({
        "id": "1", "name": "one", "state": "online", "pool": "default", "labels": { "disk": "ssd" },
        "platforms": ["linux/amd64"], "slots": 2, "busy": 0, "features": { "private-addresses": "no" }, "freeDisk": 50_000_000_000_u64,
        "version": "0.1.0"
    });
    let task = json!({
        "id": "t", "name": "app", "context": "https://github.com/org/app.git#main", "registry": "reg.example.com",
        "secrets": { "NPM": "NPM_TOKEN", "OTHER": "OTHER" }, "queue": { "labels": { "disk": "ssd" } },
        "triggers": { "commit": {} }, "notify": [{ "url": "SLACK" }], "generation": 1,
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"
    });
    let webhook = json!([{
        "name": "org-app", "provider": "github", "repositories": ["git@github.com:org/app.git"], "secrets": 1,
        "url": "https://ci.example.com/hooks/org-app", "createdAt": "2026-01-01T00:00:00Z",
        "updatedAt": "2026-01-01T00:00:00Z"
    }]);
    let deliveries = json!([{
        "id": "d1", "webhook": "org-app", "senderId": "1", "kind": "push", "summary": "a push", "size": 1,
        "receivedAt": "2026-01-02T03:00:05Z",
        "outcomes": [{ "task": "app", "what": "suppressed", "reason": "the branch `x` is none of the task's (main)" }]
    }]);
    let secrets = json!([
        { "name": "NPM_TOKEN", "updatedAt": "2026-01-01T00:00:00Z" },
        { "name": "OTHER", "task": "another", "updatedAt": "2026-01-01T00:00:00Z" },
        { "name": "SLACK", "task": "app", "updatedAt": "2026-01-01T00:00:00Z" }
    ]);
    Seen {
        url: "https://ci.example.com".parse().unwrap(),
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        greeting: Greeting {
            me: Me {
                name: "laptop".into(),
                scopes: vec![acrtask_api::admin::Scope::Read],
                tasks: None,
                server_version: env!("CARGO_PKG_VERSION").into(),
                key: Some("0a1b2c3d4e5f6071".into()),
                blobs: Some("abcdefghij234567".into()),
            },
            took: Duration::from_millis(12),
            ahead: Some(1),
        },
        runners: Ok(vec![serde_json::from_value(runner).unwrap()]),
        webhooks: Ok(serde_json::from_value(webhook).unwrap()),
        deliveries: Ok(serde_json::from_value(deliveries).unwrap()),
        unproved: Ok(0),
        task: Some(SeenTask {
            task: serde_json::from_value(task).unwrap(),
            secrets: Ok(serde_json::from_value(secrets).unwrap()),
            credentials: Ok(Vec::new()),
            last: Ok(None),
            probe: Ok(TaskProbe {
                source: Some(probe("github.com", ProbeOutcome::Works)),
                logins: vec![probe("reg.example.com", ProbeOutcome::Works)],
            }),
        }),
    }
}

fn told(checks: Vec<Check>) -> String {
    let ok = checks.iter().all(|check| check.verdict != Verdict::Wrong);
    text(&Report { ok, checks }, Style::PLAIN).replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn what_is_wrong_and_what_to_do() {
    let mut all = String::new();
    let mut add = |what: &str, change: &dyn Fn(&mut Seen)| {
        let mut seen = seen();
        change(&mut seen);
        let before = told(checks::of(&self::seen()));
        let after = told(checks::of(&seen));
        let _ = writeln!(all, "== {what}");
        for line in after
            .lines()
            .filter(|line| what == "as it is" || !before.contains(line))
        {
            let _ = writeln!(all, "{line}");
        }
    };
    add("as it is", &|_| {});
    add("clocks", &|seen| seen.greeting.ahead = Some(-90));
    add("clocks, a little", &|seen| seen.greeting.ahead = Some(10));
    add("a token for others", &|seen| {
        seen.greeting.me.tasks = Some("web/*".into());
    });
    add("no runner", &|seen| seen.runners = Ok(Vec::new()));
    add("another pool", &|seen| {
        seen.runners.as_mut().unwrap()[0].pool = "gpu".into();
    });
    add("another label", &|seen| {
        seen.runners.as_mut().unwrap()[0].labels.clear();
    });
    add("another platform", &|seen| {
        seen.task.as_mut().unwrap().task.definition.platform = Some("linux/arm64".into());
    });
    add("a full disk", &|seen| {
        seen.runners.as_mut().unwrap()[0].free_disk = 1 << 20;
    });
    add("private addresses", &|seen| {
        let features = &mut seen.runners.as_mut().unwrap()[0].features;
        features.insert("private-addresses".into(), "yes".into());
    });
    add("no webhook", &|seen| seen.webhooks = Ok(Vec::new()));
    add("no public address", &|seen| {
        seen.webhooks.as_mut().unwrap()[0].url = "/hooks/org-app".into();
    });
    add("no TLS", &|seen| {
        seen.webhooks.as_mut().unwrap()[0].url = "http://ci.example.com/hooks/org-app".into();
    });
    add("nothing came", &|seen| seen.deliveries = Ok(Vec::new()));
    add("no task matches", &|seen| {
        seen.task = None;
        let delivery = &mut seen.deliveries.as_mut().unwrap()[0];
        delivery.outcomes.clear();
        delivery.repository = Some("github.com/org/other".into());
    });
    add("forged ones", &|seen| seen.unproved = Ok(3));
    add("not allowed to see", &|seen| {
        seen.webhooks = Err("the token lacks the scope `read`".into());
    });
    let probed = |change: &dyn Fn(&mut Probe, &mut Probe)| {
        let mut source = probe("github.com", ProbeOutcome::Works);
        let mut login = probe("reg.example.com", ProbeOutcome::Works);
        change(&mut source, &mut login);
        let logins = vec![login];
        let source = Some(source);
        Ok(TaskProbe { source, logins })
    };
    for outcome in [
        ProbeOutcome::Open,
        ProbeOutcome::NoLogin,
        ProbeOutcome::Denied,
        ProbeOutcome::Missing,
        ProbeOutcome::Unreachable,
        ProbeOutcome::Refused,
        ProbeOutcome::PrivateAddress,
        ProbeOutcome::NoRegistry,
        ProbeOutcome::NotTried,
    ] {
        add(&format!("{outcome:?} at all hosts"), &|seen| {
            seen.task.as_mut().unwrap().probe = probed(&|source, login| {
                for one in [source, login] {
                    *one = probe(&one.host, outcome);
                    one.login = (outcome != ProbeOutcome::Open).then_some(ProbeLogin::All);
                }
            });
        });
    }
    add("a task's own registry is none", &|seen| {
        seen.task.as_mut().unwrap().probe = probed(&|_, login| {
            *login = probe(&login.host, ProbeOutcome::NoRegistry);
            login.login = None;
        });
    });
    add("clocks elsewhere, a little", &|seen| {
        seen.task.as_mut().unwrap().probe = probed(&|_, login| login.clock_ahead = Some(-9));
    });
    add("clocks elsewhere", &|seen| {
        seen.task.as_mut().unwrap().probe = probed(&|source, login| {
            source.clock_ahead = Some(120);
            login.clock_ahead = Some(119);
        });
    });
    add("no clocks elsewhere", &|seen| {
        seen.task.as_mut().unwrap().probe = probed(&|source, login| {
            source.clock_ahead = None;
            login.clock_ahead = None;
        });
    });
    add("not allowed to let the server look", &|seen| {
        seen.task.as_mut().unwrap().probe = Err("the token lacks the scope `run`".into());
    });
    add("disabled", &|seen| {
        seen.task.as_mut().unwrap().task.definition.enabled = false;
    });
    add("without a task", &|seen| seen.task = None);
    insta::assert_snapshot!(all);
}

#[test]
fn what_is_counted_of_senders_without_a_proof() {
    let text = "# TYPE acrtask_webhook_deliveries counter\n\
        acrtask_webhook_deliveries_total{outcome=\"taken\"} 7\n\
        acrtask_webhook_deliveries_total{outcome=\"unproved\"} 3\n";
    assert_eq!(unproved(text), 3);
    assert_eq!(unproved(""), 0);
}
