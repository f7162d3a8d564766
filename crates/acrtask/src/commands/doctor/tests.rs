use std::fmt::Write as _;

use acrtask_api::probe::{Probe, ProbeLogin, ProbeOutcome};
use serde_json::json;

use super::*;

fn probe(host: &str, outcome: ProbeOutcome) -> Probe {
    Probe {
        host: host.into(),
        login: Some(ProbeLogin::Task),
        outcome,
        message: format!("{host} was probed"),
        help: (outcome != ProbeOutcome::Works).then(|| "do this".into()),
        clock_ahead_secs: Some(0),
    }
}

fn sample_state() -> ServerState {
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
        "decisions": [{ "task": "app", "action": "ignored", "reason": "the branch `x` does not match the task's branches (main)" }]
    }]);
    let secrets = json!([
        { "name": "NPM_TOKEN", "updatedAt": "2026-01-01T00:00:00Z" },
        { "name": "OTHER", "task": "another", "updatedAt": "2026-01-01T00:00:00Z" },
        { "name": "SLACK", "task": "app", "updatedAt": "2026-01-01T00:00:00Z" }
    ]);
    ServerState {
        url: "https://ci.example.com".parse().unwrap(),
        now: "2026-01-02T03:04:05Z".parse().unwrap(),
        info: ServerInfo {
            me: Me {
                name: "laptop".into(),
                scopes: vec![acrtask_api::admin::Scope::Read],
                tasks: None,
                server_version: env!("CARGO_PKG_VERSION").into(),
                key: Some("0a1b2c3d4e5f6071".into()),
                blobs: Some("abcdefghij234567".into()),
            },
            response_time: Duration::from_millis(12),
            ahead: Some(1),
        },
        runners: Ok(vec![serde_json::from_value(runner).unwrap()]),
        webhooks: Ok(serde_json::from_value(webhook).unwrap()),
        deliveries: Ok(serde_json::from_value(deliveries).unwrap()),
        unauthenticated: Ok(0),
        task: Some(TaskState {
            task: serde_json::from_value(task).unwrap(),
            secrets: Ok(serde_json::from_value(secrets).unwrap()),
            credentials: Ok(Vec::new()),
            last_run: Ok(None),
            probe: Ok(TaskProbe {
                source: Some(probe("github.com", ProbeOutcome::Works)),
                logins: vec![probe("reg.example.com", ProbeOutcome::Works)],
            }),
        }),
    }
}

fn report_text(checks: Vec<Check>) -> String {
    let ok = checks.iter().all(|check| check.verdict != Verdict::Wrong);
    render_report(&Report { ok, checks }, Style::PLAIN)
        .replace(env!("CARGO_PKG_VERSION"), "VERSION")
}

#[test]
fn checks_report_problems_and_remedies() {
    let mut all = String::new();
    let mut add = |what: &str, change: &dyn Fn(&mut ServerState)| {
        let mut state = sample_state();
        change(&mut state);
        let before = report_text(checks::check_state(&sample_state()));
        let after = report_text(checks::check_state(&state));
        let _ = writeln!(all, "== {what}");
        for line in after
            .lines()
            .filter(|line| what == "as it is" || !before.contains(line))
        {
            let _ = writeln!(all, "{line}");
        }
    };
    add("as it is", &|_| {});
    add("clocks", &|state| state.info.ahead = Some(-90));
    add("clocks, a little", &|state| state.info.ahead = Some(10));
    add("a token for others", &|state| {
        state.info.me.tasks = Some("web/*".into());
    });
    add("no runner", &|state| state.runners = Ok(Vec::new()));
    add("another pool", &|state| {
        state.runners.as_mut().unwrap()[0].pool = "gpu".into();
    });
    add("another label", &|state| {
        state.runners.as_mut().unwrap()[0].labels.clear();
    });
    add("another platform", &|state| {
        state.task.as_mut().unwrap().task.definition.platform = Some("linux/arm64".into());
    });
    add("a full disk", &|state| {
        state.runners.as_mut().unwrap()[0].free_disk = 1 << 20;
    });
    add("private addresses", &|state| {
        let features = &mut state.runners.as_mut().unwrap()[0].features;
        features.insert("private-addresses".into(), "yes".into());
    });
    add("no webhook", &|state| {
        state.webhooks = Ok(Vec::new());
        state.info.me.scopes = vec![acrtask_api::admin::Scope::Admin];
    });
    add("no webhook of the token", &|state| {
        state.webhooks = Ok(Vec::new());
    });
    add("no public address", &|state| {
        state.webhooks.as_mut().unwrap()[0].url = "/hooks/org-app".into();
    });
    add("no TLS", &|state| {
        state.webhooks.as_mut().unwrap()[0].url = "http://ci.example.com/hooks/org-app".into();
    });
    add("nothing came", &|state| state.deliveries = Ok(Vec::new()));
    add("no task matches", &|state| {
        state.task = None;
        let delivery = &mut state.deliveries.as_mut().unwrap()[0];
        delivery.decisions.clear();
        delivery.repository = Some("github.com/org/other".into());
    });
    add("forged ones", &|state| state.unauthenticated = Ok(3));
    add("not allowed to see", &|state| {
        state.webhooks = Err("the token lacks the scope `read`".into());
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
        add(&format!("{outcome:?} at all hosts"), &|state| {
            state.task.as_mut().unwrap().probe = probed(&|source, login| {
                for probed in [source, login] {
                    *probed = probe(&probed.host, outcome);
                    probed.login = (outcome != ProbeOutcome::Open).then_some(ProbeLogin::All);
                }
            });
        });
    }
    add("a task's own registry is none", &|state| {
        state.task.as_mut().unwrap().probe = probed(&|_, login| {
            *login = probe(&login.host, ProbeOutcome::NoRegistry);
            login.login = None;
        });
    });
    add("clocks elsewhere, a little", &|state| {
        state.task.as_mut().unwrap().probe = probed(&|_, login| login.clock_ahead_secs = Some(-9));
    });
    add("clocks elsewhere", &|state| {
        state.task.as_mut().unwrap().probe = probed(&|source, login| {
            source.clock_ahead_secs = Some(120);
            login.clock_ahead_secs = Some(119);
        });
    });
    add("no clocks elsewhere", &|state| {
        state.task.as_mut().unwrap().probe = probed(&|source, login| {
            source.clock_ahead_secs = None;
            login.clock_ahead_secs = None;
        });
    });
    add("not allowed to let the server look", &|state| {
        state.task.as_mut().unwrap().probe = Err("the token lacks the scope `run`".into());
    });
    add("disabled", &|state| {
        state.task.as_mut().unwrap().task.definition.enabled = false;
    });
    add("without a task", &|state| state.task = None);
    insta::assert_snapshot!(all);
}

#[test]
fn unauthenticated_deliveries_are_summed_from_the_metrics() {
    let text = "# TYPE acrtask_webhook_deliveries counter\n\
        acrtask_webhook_deliveries_total{outcome=\"taken\"} 7\n\
        acrtask_webhook_deliveries_total{outcome=\"unproved\"} 3\n";
    assert_eq!(count_unauthenticated(text), 3);
    assert_eq!(count_unauthenticated(""), 0);
}
