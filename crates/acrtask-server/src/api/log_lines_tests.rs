//! Tests of `log_lines.rs`.

use acrtask_api::run::RunResult;
use acrtask_model::{RunId, RunState};
use acrtask_store::INDEXED_LOG_BYTES;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::*;
use crate::api::testing::TestServer;

/// A run of two steps whose log grows.
struct LiveRun {
    server: TestServer,
    runner: String,
    id: RunId,
    attempt: u32,
    log: String,
}

impl LiveRun {
    async fn start() -> Self {
        let server = TestServer::start().await;
        let runner = server.register_runner("one").await;
        let id = server.start_run().await.id;
        let attempt = server.lease_run(&id, &runner).await;
        Self {
            server,
            runner,
            id,
            attempt,
            log: String::new(),
        }
    }

    async fn append(&mut self, text: &str) {
        let (server, offset) = (&self.server, self.log.len() as u64);
        server
            .append_log(&self.id, self.attempt, &self.runner, offset, text)
            .await;
        self.log.push_str(text);
    }

    async fn finish(&self) {
        let (state, result) = (RunState::Succeeded, RunResult::default());
        self.server
            .finish_run(
                &self.id,
                self.attempt,
                &self.runner,
                state,
                &self.log,
                result,
            )
            .await;
    }

    fn event(&self, kind: Value) -> String {
        let mut event = json!({"time": "2026-01-02T03:04:05Z", "run": self.id});
        event
            .as_object_mut()
            .unwrap()
            .extend(kind.as_object().unwrap().clone());
        format!("{event}\n")
    }

    fn output(&self, step: &str, text: &str) -> String {
        self.event(json!({"event": "output", "step": step, "stream": "stdout", "text": text}))
    }

    /// Returns output of both steps with the lines `first` to `last` of each.
    fn numbered(&self, first: u32, last: u32) -> String {
        let events = (first..=last).map(|line| {
            self.output("build", &format!("build line {line}"))
                + &self.output("test", &format!("test line {line}"))
        });
        events.collect()
    }

    async fn lines(&self, query: &str) -> LogLines {
        let path = format!("/runs/{}/lines?{query}", self.id);
        self.server.get(&path).await.json(StatusCode::OK)
    }

    async fn outline(&self) -> RunOutline {
        let path = format!("/runs/{}/outline", self.id);
        self.server.get(&path).await.json(StatusCode::OK)
    }

    async fn search(&self, query: &str) -> Vec<SearchItem> {
        let path = format!("/runs/{}/search?{query}", self.id);
        let response = self.server.get(&path).await;
        assert_eq!(response.status, StatusCode::OK, "{}", response.text());
        assert_eq!(
            response.headers[header::CONTENT_TYPE],
            "application/x-ndjson"
        );
        let text = response.text();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn index_file(&self) -> std::path::PathBuf {
        let key = logs::index_key(self.id.as_str(), self.attempt.into());
        self.server.folder.path().join("blobs").join(key)
    }
}

fn addresses(lines: &LogLines) -> (String, String, usize) {
    let address = |line: &acrtask_api::outline::LogLine| {
        assert!(
            line.text.ends_with(&format!(" {}", line.number)),
            "{line:?}"
        );
        format!("{}:{}", line.step, line.number)
    };
    let ends = [lines.lines.first(), lines.lines.last()].map(|line| line.map(address));
    let [first, last] = ends.map(Option::unwrap_or_default);
    (first, last, lines.lines.len())
}

fn expected(first: &str, last: &str, count: usize) -> (String, String, usize) {
    (first.to_owned(), last.to_owned(), count)
}

#[tokio::test]
async fn lines_are_addressed_by_step_and_number() {
    let mut run = LiveRun::start().await;
    assert_eq!(run.lines("").await.lines, []);
    let text = run.numbered(1, 700);
    run.append(&text).await;
    for is_final in [false, true] {
        let page = run.lines("").await;
        assert_eq!(addresses(&page), expected("build:1", "test:250", 500));
        assert_eq!((page.previous.clone(), page.is_complete), (None, is_final));
        let next = page.next.clone().unwrap();
        let page = run.lines(&format!("cursor={next}")).await;
        assert_eq!(addresses(&page), expected("build:251", "test:500", 500));
        let back = run
            .lines(&format!("cursor={}", page.previous.unwrap()))
            .await;
        assert_eq!(addresses(&back), expected("build:1", "test:250", 500));
        let page = run.lines("step=test&from=600&count=1000").await;
        assert_eq!(addresses(&page), expected("test:600", "test:700", 101));
        assert_eq!(page.next, None);
        let page = run.lines("tail=3").await;
        assert_eq!(addresses(&page), expected("test:699", "test:700", 3));
        let page = run.lines("step=build&tail=2").await;
        assert_eq!(addresses(&page), expected("build:699", "build:700", 2));
        let page = run.lines("around=test:300&count=5").await;
        assert_eq!(addresses(&page), expected("test:299", "test:301", 5));
        let page = run.lines("around=test:300&step=test&count=5").await;
        assert_eq!(addresses(&page), expected("test:298", "test:302", 5));
        if !is_final {
            run.finish().await;
        }
    }
}

#[tokio::test]
async fn wrong_lines_are_refused() {
    let mut run = LiveRun::start().await;
    let text = run.numbered(1, 3);
    run.append(&text).await;
    for (query, status) in [
        ("from=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("step=build&from=1&tail=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("tail=1&count=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("step=build&from=0", StatusCode::BAD_REQUEST),
        ("count=1001", StatusCode::BAD_REQUEST),
        ("tail=0", StatusCode::BAD_REQUEST),
        ("around=build", StatusCode::BAD_REQUEST),
        ("around=build:x", StatusCode::BAD_REQUEST),
        ("cursor=next", StatusCode::BAD_REQUEST),
        ("step=missing", StatusCode::NOT_FOUND),
        ("around=build:4", StatusCode::NOT_FOUND),
        ("around=build:1&step=test", StatusCode::NOT_FOUND),
        ("attempt=2", StatusCode::NOT_FOUND),
    ] {
        let path = format!("/runs/{}/lines?{query}", run.id);
        let problem = run.server.get(&path).await.problem(status);
        assert!(!problem.message.is_empty(), "{query}");
    }
    for (query, status) in [
        ("q=", StatusCode::BAD_REQUEST),
        ("q=a%0Ab", StatusCode::BAD_REQUEST),
        ("q=a&limit=1001", StatusCode::BAD_REQUEST),
        ("q=(&regex=true", StatusCode::UNPROCESSABLE_ENTITY),
        ("q=a&attempt=2", StatusCode::NOT_FOUND),
    ] {
        let path = format!("/runs/{}/search?{query}", run.id);
        run.server.get(&path).await.problem(status);
    }
}

#[tokio::test]
async fn long_lines_are_cut_and_windows_are_bounded() {
    let mut run = LiveRun::start().await;
    let long = "é".repeat(100 << 10);
    let text: String = (0..300).map(|_| run.output("build", &long)).collect();
    run.append(&text).await;
    let page = run.lines("step=build&count=1000").await;
    assert!(
        page.lines
            .iter()
            .all(|line| line.is_cut && line.text.len() == 32 << 10)
    );
    assert_eq!(page.lines.len(), 128);
    assert_eq!(page.next.as_deref(), Some("129"));
}

#[tokio::test]
async fn outline_of_a_live_run_grows_until_it_is_complete() {
    let mut run = LiveRun::start().await;
    let step = |id: &str| json!({"id": id, "type": "cmd", "line": "alpine", "after": []});
    let started = run.event(json!({
        "event": "run_started", "engine": "e", "builder": "b", "steps": [step("build"), step("test")],
    })) + &run.event(json!({"event": "step_started", "step": "build", "attempt": 1}));
    // A chunk may end within an event.
    let (head, rest) = started.split_at(started.len() - 20);
    run.append(head).await;
    let outline = run.outline().await;
    assert_eq!(outline.outline.steps[0].attempt, 0);
    run.append(rest).await;
    let text = run.numbered(1, 3);
    run.append(&text).await;
    let live = run.outline().await;
    let step = &live.outline.steps[0];
    assert_eq!((step.attempt, step.lines, step.bytes), (1, 4, 3 * 12));
    assert_eq!(step.started_at.unwrap().to_string(), "2026-01-02T03:04:05Z");
    assert!(!live.is_complete);
    assert_eq!((live.lines, live.bytes), (8, run.log.len() as u64));
    run.finish().await;
    let complete = run.outline().await;
    assert!(complete.is_complete);
    let mut live = serde_json::to_value(live).unwrap();
    live["isComplete"] = true.into();
    assert_eq!(serde_json::to_value(complete).unwrap(), live);
}

#[tokio::test]
async fn search_returns_hits_and_true_counts() {
    let mut run = LiveRun::start().await;
    let text = run.numbered(1, 2000);
    run.append(&text[..text.len() / 2]).await;
    run.append(&text[text.len() / 2..]).await;
    for round in ["live, without an index", "live", "final"] {
        let items = run.search("q=line+199&limit=3").await;
        // The lines 199 and 1990 to 1999 of both steps.
        let hits: Vec<String> = items
            .iter()
            .filter_map(|item| match item {
                SearchItem::Hit(line) => Some(format!("{}:{}", line.step, line.number)),
                SearchItem::End(_) => None,
            })
            .collect();
        assert_eq!(hits, ["build:199", "test:199", "build:1990"], "{round}");
        let Some(SearchItem::End(end)) = items.last() else {
            panic!("{round}: {items:?}");
        };
        assert_eq!(end.hits, 22, "{round}");
        assert_eq!(
            end.steps,
            [("build".into(), 11), ("test".into(), 11)].into()
        );
        assert_eq!(end.is_complete, round == "final");
        let items = run.search("q=LINE+2000&ignoreCase=true&step=test").await;
        let [SearchItem::Hit(line), SearchItem::End(end)] = &items[..] else {
            panic!("{round}: {items:?}");
        };
        assert_eq!(
            (line.step.as_str(), line.number, end.hits),
            ("test", 2000, 1)
        );
        let items = run.search("q=%5Ebuild+line+1.%24&regex=true&limit=0").await;
        let [SearchItem::End(end)] = &items[..] else {
            panic!("{round}: {items:?}");
        };
        assert_eq!(end.hits, 10);
        let items = run.search("q=nothing").await;
        assert!(matches!(&items[..], [SearchItem::End(end)] if end.hits == 0));
        run.outline().await;
        if round == "live" {
            run.finish().await;
        }
    }
}

#[tokio::test]
async fn index_of_a_large_log_is_stored_dropped_and_rebuilt() {
    let mut run = LiveRun::start().await;
    let mut last = 0;
    while (run.log.len() as u64) < INDEXED_LOG_BYTES {
        let text = run.numbered(last + 1, last + 1000);
        run.append(&text).await;
        last += 1000;
        run.lines("tail=1").await;
    }
    assert!(!run.index_file().exists());
    run.finish().await;
    let page = run.lines("around=test:2500&count=3").await;
    let outline = serde_json::to_value(run.outline().await).unwrap();
    assert!(run.index_file().exists());
    let restart = |run: &mut LiveRun| {
        let config = crate::Config::default();
        let app = &run.server.app;
        let vault = crate::vault::Vault::load_or_create(&run.server.folder.path().join("key"));
        let (store, blobs) = (app.store.clone(), app.blobs.clone());
        let app = crate::App::new(config, store, blobs, vault.unwrap(), app.clock.clone());
        run.server.app = std::sync::Arc::new(app);
        run.server.router = crate::api::router(run.server.app.clone());
    };
    // A new server reads the stored index. Without it, or with a damaged one, it makes another.
    for damage in [None, Some(""), Some("{\"version\":0}"), Some("remove")] {
        match damage {
            None => {}
            Some("remove") => std::fs::remove_file(run.index_file()).unwrap(),
            Some(text) => std::fs::write(run.index_file(), text).unwrap(),
        }
        restart(&mut run);
        assert_eq!(
            run.lines("around=test:2500&count=3").await,
            page,
            "{damage:?}"
        );
        let again = serde_json::to_value(run.outline().await).unwrap();
        assert_eq!(again, outline, "{damage:?}");
        assert!(run.index_file().metadata().unwrap().len() > 1000);
    }
    // The index is removed with its run.
    run.server
        .app
        .clock
        .set(crate::api::testing::NOW + 90 * 24 * 3_600_000);
    let mut left = Vec::new();
    let removed = crate::retention::remove_old(&run.server.app, &mut left).await;
    assert_eq!((removed.unwrap().runs, left), (1, Vec::new()));
    assert!(!run.index_file().exists());
}

#[tokio::test]
async fn indexes_in_memory_are_bounded() {
    let run = LiveRun::start().await;
    let server = &run.server;
    for _ in 0..300 {
        let id = server.start_run().await.id;
        let path = format!("/runs/{id}/outline");
        server.get(&path).await.json::<Value>(StatusCode::OK);
    }
    let (count, memory) = server.app.log_indexes.usage();
    assert_eq!(count, 256);
    assert!(memory < 32 << 20, "{memory}");
}
