//! Untrusted text on a terminal. Regardless of names, reasons and logs, the program prints only
//! lines and its own colors. It prints nothing that moves the cursor, writes titles or reorders
//! text.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Stdio};

use acrtask_model::printable::is_printable;
use serde_json::{Value, json};
use wiremock::{
    Mock, MockServer, ResponseTemplate,
    matchers::{method, path},
};

/// Clears the screen, and sets a title, a link and the clipboard. Also contains C1 forms, an
/// override of the direction, a bell, a carriage return and zero-width characters.
const EVIL: &str = "x\x1b[2J\x1b[1;1H\x1b]0;t\x07\x1b]8;;http://e\x1b\\l\x1b]8;;\x1b\\\x1b]52;c;ZQ==\x07\x1bc\u{9b}2J\u{9d}0;t\u{9c}\u{202e}\u{2066}\x07\rok\u{200b}\u{7f}\u{e0041}";

fn bodies() -> Vec<(&'static str, Value)> {
    let time = "2026-01-02T03:04:05Z";
    let run = json!({
        "id": "r1", "state": "failed", "trigger": EVIL, "attempt": 1, "queue": {}, "spec": {},
        "createdAt": time, "logLength": 1, "task": EVIL, "reason": EVIL, "runner": EVIL,
        "requestedBy": EVIL, "approval": "approved", "approvedBy": EVIL,
        "result": {
            "steps": [{"id": "a", "state": "failed", "reason": EVIL, "exit_code": 1, "ignored": false, "elapsedMs": 5}],
        },
    });
    let outcome = json!({"task": EVIL, "action": "ignored", "reason": EVIL});
    let delivery = json!({
        "id": "d1", "webhook": EVIL, "senderId": EVIL, "kind": EVIL, "repository": EVIL,
        "summary": EVIL, "note": EVIL, "size": 1, "receivedAt": time, "decisions": [outcome],
    });
    vec![
        (
            "me",
            json!({"name": EVIL, "scopes": ["read"], "tasks": EVIL, "serverVersion": EVIL}),
        ),
        (
            "tokens",
            json!([{"id": "t1", "name": EVIL, "scopes": ["read"], "tasks": EVIL, "createdAt": time}]),
        ),
        (
            "secrets",
            json!([{"name": EVIL, "task": EVIL, "updatedAt": time}]),
        ),
        (
            "credentials",
            json!([{"host": EVIL, "username": EVIL, "updatedAt": time}]),
        ),
        (
            "runners",
            json!([{
                "id": "n1", "name": EVIL, "state": "online", "pool": EVIL, "labels": {EVIL: EVIL},
                "platforms": [EVIL], "slots": 1, "busy": 0, "features": {}, "freeDisk": 1,
                "version": EVIL,
            }]),
        ),
        ("runs", json!({"items": [run]})),
        ("runs/r1", run),
        (
            "runs/r1/why",
            json!({"summary": EVIL, "runners": [{"runner": EVIL, "matches": false, "reason": EVIL}]}),
        ),
        ("deliveries", json!({"items": [delivery]})),
        ("deliveries/d1", delivery),
    ]
}

fn log() -> String {
    let event = |more: Value| {
        let mut event = json!({"time": "2026-01-02T03:04:05Z", "run": "r1"});
        event
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        format!("{event}\n")
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    [
        json!({
            "event": "run_started", "engine": EVIL, "builder": EVIL,
            "steps": [{"id": "a", "type": "cmd", "line": EVIL, "after": []}],
        }),
        json!({"event": "progress", "message": EVIL}),
        json!({"event": "step_started", "step": "a", "attempt": 1}),
        json!({"event": "output", "step": "a", "stream": "stdout", "text": format!("{EVIL}\n\x1b[31mred")}),
        json!({"event": "image_built", "step": "a", "names": [EVIL], "digest": digest}),
        json!({"event": "image_pushed", "step": "a", "name": EVIL, "digest": digest}),
        json!({"event": "warning", "step": "a", "message": EVIL, "help": EVIL}),
        json!({
            "event": "step_finished", "step": "a", "state": "failed", "reason": EVIL, "exit_code": 1,
            "ignored": false, "elapsed_ms": 5, "log_tail": [EVIL], "excerpt": EVIL,
        }),
        json!({"event": "run_finished", "state": "failed", "reason": EVIL, "elapsed_ms": 5, "remaining": [EVIL]}),
    ]
    .into_iter()
    .map(event)
    .collect()
}

#[tokio::test]
async fn untrusted_text_cannot_control_the_terminal() {
    let server = MockServer::start().await;
    for (at, body) in bodies() {
        Mock::given(method("GET"))
            .and(path(format!("/api/v1/{at}")))
            .respond_with(ResponseTemplate::new(200).set_body_json(body))
            .mount(&server)
            .await;
    }
    Mock::given(path("/api/v1/runs/r1/log"))
        .respond_with(ResponseTemplate::new(200).set_body_raw(log(), "application/x-ndjson"))
        .mount(&server)
        .await;
    // All other responses are errors with untrusted text.
    Mock::given(wiremock::matchers::any())
        .respond_with(
            ResponseTemplate::new(409)
                .set_body_json(json!({"code": "conflict", "message": EVIL, "help": EVIL})),
        )
        .with_priority(10)
        .mount(&server)
        .await;
    let folder = tempfile::tempdir().unwrap();
    let mut printed = 0;
    for command in [
        "whoami",
        "token list",
        "secret list",
        "credential list",
        "runner list",
        "runs list",
        "runs show r1",
        "runs why r1",
        "runs logs r1",
        "runs cancel r2",
        "webhook deliveries",
        "webhook deliveries d1",
        "task show nothere",
        "cascade list",
        "image list",
        // The former name of the command.
        "images list",
        "doctor app",
    ] {
        for more in [
            &["--color", "never"][..],
            &["--color", "always"],
            &["-o", "json"],
        ] {
            let mut program = Command::new(env!("CARGO_BIN_EXE_acrtask"));
            program
                .args(command.split(' ').chain(more.iter().copied()))
                .current_dir(folder.path())
                .env_clear()
                .env("HOME", folder.path())
                .env("ACRTASK_SERVER", server.uri())
                .env("ACRTASK_TOKEN", "t0k3n")
                .stdin(Stdio::null());
            let output = tokio::task::spawn_blocking(move || program.output().unwrap());
            let output = output.await.unwrap();
            for stream in [output.stdout, output.stderr] {
                let text = String::from_utf8(stream).unwrap();
                printed += text.matches("ok").count();
                let colored = more.contains(&"always");
                let left = match colored {
                    true => without_colors(&text),
                    false => text.clone(),
                };
                let bad = left
                    .chars()
                    .find(|c| !is_printable(*c) && !"\n\t".contains(*c));
                assert_eq!(bad, None, "{command} {more:?}: {text:?}");
            }
        }
    }
    assert!(printed > 100, "{printed} texts were printed");
}

/// Removes the escape sequences that only select colors.
fn without_colors(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = after
            .find(|c: char| !c.is_ascii_digit() && c != ';')
            .unwrap_or(after.len());
        if after[end..].starts_with('m') {
            rest = &after[end + 1..];
        } else {
            out.push('\x1b');
            rest = after;
        }
    }
    out + rest
}
