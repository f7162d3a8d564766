//! Content of pages: states, filters, hostile texts, headers and size.

use acrtask_api::run::{Run, RunResult, StepResult};
use acrtask_model::{Event, EventKind, RunState, StepId, StepState, events::Stream};
use axum::{
    body::Body,
    http::{HeaderMap, Method, StatusCode, header},
};
use regex::Regex;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::PageServer;
use crate::api::testing::result_of_build;

/// Text that attacks a page: markup, a script, a changed writing direction and a terminal escape.
const HOSTILE: &str = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>\u{202e}\x07";

/// Most bytes of a page.
const MAX_BYTES: usize = 100_000;
/// Most elements of a page.
const MAX_ELEMENTS: usize = 1_500;

fn count_elements(html: &str) -> usize {
    Regex::new("<[a-z]").unwrap().find_iter(html).count()
}

/// Fails if a page could execute a foreign text or violates its own policy.
#[track_caller]
fn check_inert(path: &str, html: &str) {
    let own = format!(
        "<script type=\"module\" src=\"{}\"></script>",
        acrtask_page::asset_url("page.js")
    );
    let html = html.replacen(&own, "", 1);
    for active in [
        "<script",
        "<img",
        "<iframe",
        "<object",
        "javascript:",
        "style=\"",
        "<style",
    ] {
        assert!(!html.contains(active), "{path} has {active}: {html}");
    }
    // The value of an attribute is not markup.
    let tags = Regex::new("\"[^\"]*\"").unwrap().replace_all(&html, "");
    let handler = Regex::new(r#"<[^>]*\son[a-z]+\s*="#).unwrap();
    assert!(!handler.is_match(&tags), "{path}: {html}");
    for hidden in ['\u{202e}', '\x07', '\x1b'] {
        assert!(!html.contains(hidden), "{path} has {hidden:?}");
    }
    let external = Regex::new(r#"(href|src|action)="(?:[a-z]+:|//)"#).unwrap();
    assert!(!external.is_match(&html), "{path}: {html}");
}

#[track_caller]
fn check_headers(path: &str, headers: &HeaderMap) {
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("content-type", "text/html; charset=utf-8"),
    ] {
        assert_eq!(headers[name], value, "{path} {name}");
    }
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types acrtask",
    ] {
        assert!(
            policy.split("; ").any(|own| own == part),
            "{path}: {policy}"
        );
    }
    assert!(!policy.contains("unsafe"), "{policy}");
}

fn log_line(run: &Run, kind: EventKind) -> String {
    let event = Event {
        time: "2026-01-01T00:00:00Z".parse().unwrap(),
        run: run.id.clone(),
        kind,
    };
    format!("{}\n", serde_json::to_string(&event).unwrap())
}

fn output(run: &Run, text: &str) -> String {
    log_line(
        run,
        EventKind::Output {
            step: StepId::new("build").unwrap(),
            stream: Stream::Stdout,
            vertex: None,
            text: text.into(),
        },
    )
}

/// Starts a run whose branch, commit, names, reasons and log are hostile, and lets it fail.
async fn fail_hostile_run(server: &PageServer) -> Run {
    // YAML allows no control characters.
    let comment = HOSTILE.replace('\x07', "");
    let text = format!("version: v1.1.0 # {comment}\nsteps:\n  - cmd: alpine true\n");
    let task = json!({"name": "mine", "description": "<b>bold</b> \u{202e}", "text": text});
    let task = server.server.post("/tasks", task).await;
    task.json::<Value>(StatusCode::CREATED);
    let run = server.start_task("mine").await;
    let attempt = server.server.lease_run(&run.id, "nmine").await;
    let log = output(&run, &format!("\x1b[31mred {HOSTILE}\x1b[0m\nplain"));
    server
        .server
        .append_log(&run.id, attempt, "nmine", 0, &log)
        .await;
    let mut result = result_of_build(("r.io/mine:1", 'a'), &[]);
    result.variables.branch = HOSTILE.into();
    result.variables.commit = format!("abc {HOSTILE}");
    result.images[0].name = format!("r.io/{HOSTILE}:1");
    result.steps.push(StepResult {
        id: StepId::new("<script>alert(2)</script>").unwrap(),
        state: StepState::Failed {
            reason: HOSTILE.into(),
            exit_code: Some(1),
            ignored: false,
        },
        started_at: None,
        elapsed_ms: 1200,
    });
    finish(server, &run, attempt, &log, result).await;
    run
}

async fn finish(server: &PageServer, run: &Run, attempt: u32, log: &str, result: RunResult) {
    server
        .server
        .finish_run(&run.id, attempt, "nmine", RunState::Failed, log, result)
        .await;
}

#[tokio::test]
async fn hostile_texts_are_inert_on_every_page() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    let run = fail_hostile_run(&server).await;
    let id = &run.id;
    server.record_delivery("d1", HOSTILE).await;
    let cookie = server.sign_in_as_admin().await;
    let hostile_query = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E%E2%80%AE";
    let hostile_segment = hostile_query.replace('/', "%2F");
    for path in [
        "/".to_owned(),
        "/runs".into(),
        format!("/runs?task={hostile_query}"),
        format!("/runs/{id}"),
        format!("/runs/{id}/log"),
        format!("/runs/{id}/log?tail=1"),
        "/tasks".into(),
        "/tasks/mine".into(),
        "/images".into(),
        format!("/images?prefix={hostile_query}"),
        "/bases".into(),
        "/cascades".into(),
        "/deliveries".into(),
        "/deliveries/d1".into(),
        "/runners".into(),
        "/me".into(),
        format!("/sign-in?next=/{hostile_query}"),
    ] {
        let response = server.get(&path, Some(&cookie)).await;
        assert_eq!(response.status, StatusCode::OK, "{path}");
        check_inert(&path, &response.text());
        check_headers(&path, &response.headers);
    }
    for (path, status) in [
        (format!("/tasks/{hostile_query}"), StatusCode::NOT_FOUND),
        (format!("/runs/{hostile_segment}"), StatusCode::NOT_FOUND),
        (
            format!("/runs?state={hostile_query}"),
            StatusCode::BAD_REQUEST,
        ),
        (format!("/runs/{id}/log?attempt=7"), StatusCode::NOT_FOUND),
        (
            format!("/cascades/{hostile_segment}"),
            StatusCode::NOT_FOUND,
        ),
        (
            format!("/deliveries/{hostile_segment}"),
            StatusCode::NOT_FOUND,
        ),
    ] {
        let response = server.get(&path, Some(&cookie)).await;
        assert_eq!(response.status, status, "{path}: {}", response.text());
        check_inert(&path, &response.text());
        check_headers(&path, &response.headers);
    }
    // Updates contain the same parts, as JSON.
    for path in [
        format!("/runs/{id}/live"),
        format!("/runs/{id}/log/live"),
        "/live".into(),
    ] {
        let response = server.get(&path, Some(&cookie)).await;
        let update: Value = response.json(StatusCode::OK);
        let fragments = update["fragments"].as_array().unwrap();
        assert!(!fragments.is_empty(), "{path}");
        for fragment in fragments {
            check_inert(&path, fragment["html"].as_str().unwrap());
        }
    }
    // The texts are visible as text.
    let page = server.expect_page(&format!("/runs/{id}"), &cookie).await;
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
        "{page}"
    );
    assert!(page.contains("[U+202E]␇"), "{page}");
    let log = server
        .expect_page(&format!("/runs/{id}/log"), &cookie)
        .await;
    let line = "<div id=\"build:L1\"><a href=\"#build%3AL1\">build 1</a> <span class=\"fg1\">red &quot;&#39;&gt;&lt;script";
    assert!(log.contains(line), "{log}");
    assert!(log.contains("build 2</a> plain</div>"), "{log}");
}

#[tokio::test]
async fn raw_log_is_plain_text() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    let run = fail_hostile_run(&server).await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}/log.txt", run.id);
    let response = server.get(&path, Some(&cookie)).await;
    assert_eq!(response.status, StatusCode::OK);
    assert!(
        response
            .text()
            .starts_with("build | \x1b[31mred \"'><script>")
    );
    let headers = &response.headers;
    assert_eq!(headers[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(policy.contains("sandbox"), "{policy}");
}

#[tokio::test]
async fn log_is_shown_in_pages_of_lines() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    let run = server.start_task("mine").await;
    let attempt = server.server.lease_run(&run.id, "nmine").await;
    let lines: Vec<String> = (1..=1100).map(|line| format!("line {line}.")).collect();
    let log = output(&run, &lines.join("\n"));
    server
        .server
        .append_log(&run.id, attempt, "nmine", 0, &log)
        .await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}/log", run.id);
    let first = server.expect_page(&path, &cookie).await;
    let count = "Lines 1 to <span id=\"log-last\">500</span>";
    assert!(first.contains(count), "{first}");
    assert!(first.contains("; the run is not finished"), "{first}");
    assert!(first.contains("line 500.") && !first.contains("line 501."));
    let next = format!("<a href=\"{path}?attempt=1&#38;from=501\" rel=\"next\">");
    assert!(first.contains(&next), "{first}");
    let second = server
        .expect_page(&format!("{path}?from=501"), &cookie)
        .await;
    assert!(second.contains("id=\"build:L501\"") && second.contains("line 1000."));
    let tail = server.expect_page(&format!("{path}?tail=1"), &cookie).await;
    assert!(
        tail.contains("Lines 601 to <span id=\"log-last\">1100<"),
        "{tail}"
    );
    assert!(tail.contains("line 1100.") && !tail.contains("rel=\"next\""));
    for page in [&first, &second, &tail] {
        assert!(page.len() < MAX_BYTES, "{}", page.len());
        assert!(count_elements(page) < MAX_ELEMENTS);
    }
    let beyond = server
        .expect_page(&format!("{path}?from=9999"), &cookie)
        .await;
    assert!(beyond.contains("No lines here."), "{beyond}");
}

/// Lines with a style for each character, and lines that escaping multiplies.
#[tokio::test]
async fn page_of_a_log_has_a_size() {
    /// Largest page in bytes: its lines and its frame.
    const MAX_PAGE: usize = (1 << 20) + 20_000;
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    let styled: String = (0..1000)
        .map(|n| format!("\x1b[1;2;3;4;9{};10{}m{}", n % 8, (n + 1) % 8, n % 10))
        .collect();
    let quotes = "\"'".repeat(1000);
    for (text, most) in [(styled, 40), (quotes, 150)] {
        let run = server.start_task("mine").await;
        let attempt = server.server.lease_run(&run.id, "nmine").await;
        let log = output(&run, &text).repeat(200);
        let store = &server.server;
        store.append_log(&run.id, attempt, "nmine", 0, &log).await;
        let cookie = server.sign_in_as_admin().await;
        let path = format!("/runs/{}/log", run.id);
        let page = server.expect_page(&path, &cookie).await;
        assert!(page.len() <= MAX_PAGE, "{}", page.len());
        let shown = page.matches("id=\"build:L").count();
        assert!((2..most).contains(&shown), "{shown}");
        let next = format!("from={}\" rel=\"next\"", shown + 1);
        assert!(page.contains(&next), "{next}");
        for (query, line) in [("tail=1", 200), ("at=build:100", 100)] {
            let page = server
                .expect_page(&format!("{path}?{query}"), &cookie)
                .await;
            assert!(page.len() <= MAX_PAGE, "{query}: {}", page.len());
            assert!(page.contains(&format!("id=\"build:L{line}\"")), "{query}");
        }
    }
}

/// Many slow readers of a log would each hold its page in memory.
#[tokio::test]
async fn log_counts_as_read_until_it_is_sent() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    let run = fail_hostile_run(&server).await;
    let cookie = server.sign_in_as_admin().await;
    let reads = &server.server.app.log_reads;
    for page in ["log", "log.txt"] {
        let path = format!("/runs/{}/{page}", run.id);
        let request = PageServer::request(Method::GET, &path, Some(&cookie));
        let request = request.body(Body::empty()).unwrap();
        let response = server.server.router.clone().oneshot(request).await.unwrap();
        assert_eq!((response.status(), reads.count()), (StatusCode::OK, 1));
        drop(response);
        assert_eq!(reads.count(), 0, "{page}");
    }
}

#[tokio::test]
async fn log_is_shown_at_a_line_and_for_one_step() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    let run = server.start_task("mine").await;
    let attempt = server.server.lease_run(&run.id, "nmine").await;
    let lines: Vec<String> = (1..=1100).map(|line| format!("line {line}.")).collect();
    let warning = EventKind::Warning {
        step: None,
        message: "it is slow".into(),
        help: None,
    };
    let log = log_line(&run, warning) + &output(&run, &lines.join("\n"));
    let store = &server.server;
    store.append_log(&run.id, attempt, "nmine", 0, &log).await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}/log", run.id);
    let page = server
        .expect_page(&format!("{path}?at=build:800"), &cookie)
        .await;
    assert!(page.contains("id=\"build:L800\""), "{page}");
    assert!(!page.contains("id=\"build:L1\"") && !page.contains("id=\"build:L1100\""));
    assert!(
        page.contains("rel=\"prev\"") && page.contains("rel=\"next\""),
        "{page}"
    );
    let page = server
        .expect_page(&format!("{path}?step=build"), &cookie)
        .await;
    assert!(page.contains("Only the step <bdi>build</bdi>."), "{page}");
    assert!(
        !page.contains("it is slow") && page.contains("line 500."),
        "{page}"
    );
    let next = format!("<a href=\"{path}?attempt=1&#38;step=build&#38;from=501\" rel=\"next\">");
    assert!(page.contains(&next), "{page}");
    for missing in ["at=build:1101", "step=other", "at=build:1&step=other"] {
        let response = server
            .get(&format!("{path}?{missing}"), Some(&cookie))
            .await;
        assert_eq!(response.status, StatusCode::NOT_FOUND, "{missing}");
    }
}

#[tokio::test]
async fn page_of_a_live_run_shows_its_steps() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    let run = server.start_task("mine").await;
    let attempt = server.server.lease_run(&run.id, "nmine").await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}", run.id);
    let page = server.expect_page(&path, &cookie).await;
    assert!(page.contains("No step has started yet."), "{page}");
    let kinds = [
        json!({
            "event": "run_started", "engine": "", "builder": "",
            "steps": [
                {"id": "build", "type": "build", "line": ".", "after": []},
                {"id": "test", "type": "cmd", "line": "x", "after": ["build"]},
            ],
        }),
        json!({"event": "step_started", "step": "build", "attempt": 1}),
    ];
    let log: String = kinds
        .into_iter()
        .map(|kind| log_line(&run, serde_json::from_value(kind).unwrap()))
        .collect();
    let store = &server.server;
    store.append_log(&run.id, attempt, "nmine", 0, &log).await;
    let page = server.expect_page(&path, &cookie).await;
    let link = format!("<a href=\"{path}/log?step=build\"><bdi>build</bdi></a>");
    for step in [
        format!("</span> running</span></td><td class=\"nowrap\">{link}"),
        "</span> pending</span></td><td class=\"nowrap\"><bdi>test</bdi>".into(),
    ] {
        assert!(page.contains(&step), "{step}: {page}");
    }
}

#[tokio::test]
async fn list_of_100_runs_is_small() {
    let server = PageServer::start().await;
    let task = format!("team/{}", "a".repeat(30));
    server.create_task(&task).await;
    for _ in 0..101 {
        server.start_task(&task).await;
    }
    let cookie = server.sign_in_as_admin().await;
    let page = server.expect_page("/runs", &cookie).await;
    assert_eq!(page.matches("<tr><td>").count(), 100);
    assert!(page.contains("rel=\"next\">Older runs"), "{page}");
    assert!(page.len() < MAX_BYTES, "{}", page.len());
    let elements = count_elements(&page);
    assert!(elements < MAX_ELEMENTS, "{elements}");
    let next = Regex::new("href=\"([^\"]*)\" rel=\"next\"").unwrap();
    let next = next.captures(&page).unwrap()[1].replace("&#38;", "&");
    let last = server.expect_page(&next, &cookie).await;
    assert_eq!(last.matches("<tr><td>").count(), 1);
    assert!(last.contains("<a href=\"/runs\">Newest runs</a>"), "{last}");
}

#[tokio::test]
async fn filters_are_in_the_url_and_visible() {
    let server = PageServer::start().await;
    server.server.register_runner("mine").await;
    server.create_task("mine").await;
    server.create_task("other").await;
    let failed = server.fail_task("mine", "").await;
    let queued = server.start_task("other").await;
    let cookie = server.sign_in_as_admin().await;
    let all = server.expect_page("/runs", &cookie).await;
    assert!(!all.contains("Filtered:"), "{all}");
    let link = |run: &Run| format!("href=\"/runs/{}\"", run.id);
    assert!(all.contains(&link(&failed)) && all.contains(&link(&queued)));
    let path = "/runs?state=failed,timed_out,error&task=mine";
    let filtered = server.expect_page(path, &cookie).await;
    assert!(filtered.contains("<b>Filtered:</b>"), "{filtered}");
    assert!(
        filtered
            .contains("task <bdi>mine</bdi> <a href=\"/runs?state=failed%2Ctimed_out%2Cerror\"")
    );
    assert!(filtered.contains(&link(&failed)) && !filtered.contains(&link(&queued)));
    let none = server
        .expect_page("/runs?state=&task=nothing", &cookie)
        .await;
    assert!(none.contains("No run matches."), "{none}");
    let wrong = server.get("/runs?state=broken", Some(&cookie)).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(wrong.text().contains("`broken` is not a state of a run"));
}

#[tokio::test]
async fn run_page_states_result_and_reason_to_wait() {
    let server = PageServer::start().await;
    server.create_task("mine").await;
    let queued = server.start_task("mine").await;
    let cookie = server.sign_in_as_admin().await;
    let path = format!("/runs/{}", queued.id);
    let page = server.expect_page(&path, &cookie).await;
    let waits = "The run waits: no runner is registered: start one with `acrtask runner`.";
    assert!(page.contains(waits), "{page}");
    assert!(page.contains("<bdi>admin requested it.</bdi>"), "{page}");
    assert!(!page.contains("/log\""), "{page}");
    server.server.register_runner("mine").await;
    let attempt = server.server.lease_run(&queued.id, "nmine").await;
    let page = server.expect_page(&path, &cookie).await;
    assert!(page.contains("The run executes on mine."), "{page}");
    finish(&server, &queued, attempt, "", RunResult::default()).await;
    let page = server.expect_page(&path, &cookie).await;
    assert!(page.contains("<title>failed run "), "{page}");
    assert!(
        page.contains("The run failed after 0.0 s: a step failed."),
        "{page}"
    );
    assert!(
        page.contains("/log?attempt=1&#38;tail=1\">Open the log at"),
        "{page}"
    );
}

#[tokio::test]
async fn empty_lists_name_the_next_command() {
    let server = PageServer::start().await;
    let cookie = server.sign_in_as_admin().await;
    for (path, command) in [
        ("/", "acrtask task run NAME"),
        ("/runs", "acrtask run -r REGISTRY ."),
        ("/tasks", "acrtask task create NAME"),
        ("/images", "acrtask task run NAME"),
        ("/bases", "acrtask task run NAME"),
        ("/cascades", "acrtask base check"),
        ("/deliveries", "acrtask webhook create NAME"),
        ("/runners", "acrtask runner token"),
    ] {
        let page = server.expect_page(path, &cookie).await;
        assert!(page.contains(command), "{path}: {page}");
    }
}

#[tokio::test]
async fn task_page_shows_definition_triggers_and_last_runs() {
    let server = PageServer::start().await;
    let task = json!({
        "name": "team/mine",
        "text": "version: v1.1.0\nsteps:\n  - cmd: alpine true\n",
        "triggers": {"timers": {"night": {"schedule": "0 3 * * *"}}},
    });
    let task = server.server.post("/tasks", task).await;
    task.json::<Value>(StatusCode::CREATED);
    let run = server.start_task("team/mine").await;
    let cookie = server.sign_in_as_admin().await;
    for path in ["/tasks/team/mine", "/tasks/team%2Fmine"] {
        let page = server.expect_page(path, &cookie).await;
        assert!(page.contains("steps:\n  - cmd: alpine true\n"), "{page}");
        assert!(page.contains("<bdi>night: 0 3 * * * (UTC)</bdi>"), "{page}");
        assert!(page.contains(&format!("/runs/{}", run.id)), "{page}");
        assert!(
            page.contains("&quot;schedule&quot;: &quot;0 3 * * *&quot;"),
            "{page}"
        );
    }
    let list = server.expect_page("/tasks", &cookie).await;
    assert!(
        list.contains("<a href=\"/tasks/team/mine\">team/mine</a>"),
        "{list}"
    );
}

#[tokio::test]
async fn assets_are_cached_by_hash() {
    let server = PageServer::start().await;
    for (name, kind) in [
        ("style.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let response = server.get(&acrtask_page::asset_url(name), None).await;
        assert_eq!(response.status, StatusCode::OK);
        assert_eq!(response.headers[header::CONTENT_TYPE], kind);
        assert_eq!(response.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        let caching = response.headers[header::CACHE_CONTROL].to_str().unwrap();
        assert!(caching.contains("immutable"), "{caching}");
    }
    let wrong = server.get("/assets/0000000000000000/style.css", None).await;
    assert_eq!(wrong.status, StatusCode::NOT_FOUND);
}
