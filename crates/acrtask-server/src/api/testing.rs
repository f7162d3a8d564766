//! Test server of the API: a real database and real blobs in a folder, and requests without a
//! socket.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use acrtask_api::{
    admin::{Problem, Scope},
    run::{BaseResult, BuiltResult, ImageResult, Run, RunResult},
};
use acrtask_model::{
    Digest, RunId, RunState, StepId,
    events::{BaseRole, Evidence},
};
use acrtask_store::{
    AttemptReport, Claim, NewRunner, PollResult, Report, RunnerHello, RunnerTokenRow, Store,
    TokenRow, Verdict,
};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tower::ServiceExt as _;

use crate::{App, Config, auth, blobs::Blobs, clock::Clock, vault::Vault};

/// Time at which tests begin, in milliseconds since 1970.
pub(crate) const NOW: i64 = 1_790_000_000_000;

/// A server and its folder. [`TestServer::send`] passes requests to its router.
pub(crate) struct TestServer {
    pub(crate) app: Arc<App>,
    pub(crate) router: Router,
    pub(crate) admin: String,
    pub(crate) folder: tempfile::TempDir,
}

/// Response to a request, with its whole body.
#[derive(Debug)]
pub(crate) struct TestResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl TestResponse {
    /// Parses the body. Fails if the status is not `status`.
    #[track_caller]
    pub(crate) fn json<T: DeserializeOwned>(&self, status: StatusCode) -> T {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Parses the problem of a refused request. Fails if the status is not `status`.
    #[track_caller]
    pub(crate) fn problem(&self, status: StatusCode) -> Problem {
        self.json(status)
    }

    /// Parses the problem of a request with a violated form or a broken rule.
    pub(crate) fn refused(&self, what: &str) -> Problem {
        let refusals = [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY];
        assert!(refusals.contains(&self.status), "{what}: {}", self.text());
        self.problem(self.status)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl TestServer {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("db.sqlite").display());
        let store = Store::open(&database).await.unwrap();
        let blobs = Blobs::open(&folder.path().join("blobs").display().to_string()).unwrap();
        let vault = Vault::load_or_create(&folder.path().join("key")).unwrap();
        let app = Arc::new(App::new(config, store, blobs, vault, Clock::fixed(NOW)));
        let admin = auth::create_first_token(&app).await.unwrap().unwrap().0;
        Self {
            router: super::router(app.clone()),
            app,
            admin,
            folder,
        }
    }

    /// Creates a token with these scopes and this task limit, and returns its text.
    pub(crate) async fn create_token(&self, scopes: &[Scope], tasks: Option<&str>) -> String {
        let token = auth::new_token();
        let row = TokenRow {
            name: format!("test {}", token.id),
            id: token.id,
            hash: token.hash,
            scopes: scopes.to_vec(),
            tasks: tasks.map(str::to_owned),
            created_at: NOW,
            expires_at: None,
            last_used_at: None,
            subject: None,
            issuer: None,
            pools: Vec::new(),
        };
        self.app.store.create_token(&row).await.unwrap();
        token.text.0
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> TestResponse {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        check_documented(&method, &path, parts.status);
        TestResponse {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    pub(crate) fn request(
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Request<Body> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", acrtask_api::BASE));
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/json")
                .body(Body::from(body.to_string())),
            None => request.body(Body::empty()),
        }
        .unwrap()
    }

    pub(crate) async fn send_as(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<&Value>,
    ) -> TestResponse {
        self.send(Self::request(method, path, Some(token), body))
            .await
    }

    /// Sends a `GET` with the admin token.
    pub(crate) async fn get(&self, path: &str) -> TestResponse {
        self.send_as(Method::GET, path, &self.admin, None).await
    }

    /// Sends a `POST` with the admin token.
    pub(crate) async fn post(&self, path: &str, body: Value) -> TestResponse {
        self.send_as(Method::POST, path, &self.admin, Some(&body))
            .await
    }

    /// Sends a `PUT` with the admin token.
    pub(crate) async fn put(&self, path: &str, body: Value) -> TestResponse {
        self.send_as(Method::PUT, path, &self.admin, Some(&body))
            .await
    }

    /// Sends a `DELETE` with the admin token.
    pub(crate) async fn delete(&self, path: &str) -> TestResponse {
        self.send_as(Method::DELETE, path, &self.admin, None).await
    }

    /// Starts a run of one container, without a task.
    pub(crate) async fn start_run(&self) -> Run {
        let body = serde_json::json!({"spec": {"source": {"type": "cmd", "line": "alpine true"}}});
        self.post("/runs", body).await.json(StatusCode::CREATED)
    }

    /// Registers a runner of the default pool without a connection. Returns its id.
    pub(crate) async fn register_runner(&self, name: &str) -> String {
        self.register_runner_for(name, None, None).await
    }

    /// Registers a runner with a token for this pool and these tasks. Returns its id.
    pub(crate) async fn register_runner_for(
        &self,
        name: &str,
        pool: Option<&str>,
        tasks: Option<&str>,
    ) -> String {
        let store = &self.app.store;
        let token = RunnerTokenRow {
            id: format!("x{name}"),
            hash: vec![1],
            pool: pool.map(str::to_owned),
            labels: std::collections::BTreeMap::new(),
            max_slots: None,
            tasks: tasks.map(str::to_owned),
            created_at: NOW,
            expires_at: NOW + 1000,
        };
        store.create_runner_token(&token).await.unwrap();
        let runner = NewRunner {
            id: format!("n{name}"),
            name: name.into(),
            key_hash: vec![2],
        };
        store
            .register_runner(&token.id, &runner, NOW)
            .await
            .unwrap();
        let facts = RunnerHello {
            pool: pool.unwrap_or("default").into(),
            labels: std::collections::BTreeMap::new(),
            platforms: vec!["linux/amd64".into()],
            slots: 2,
            features: std::collections::BTreeMap::new(),
            version: "0.1.0".into(),
            free_disk: 1 << 30,
        };
        store
            .runner_hello(&runner.id, &facts, "elsewhere", NOW)
            .await
            .unwrap();
        runner.id
    }

    /// Leases `run` to a runner, which accepts and starts it. Returns the attempt.
    pub(crate) async fn lease_run(&self, run: &RunId, runner: &str) -> u32 {
        let store = &self.app.store;
        let now = self.app.clock.now_ms();
        let classes: Vec<i64> = store
            .ready_requirements()
            .await
            .unwrap()
            .iter()
            .map(|class| class.id)
            .collect();
        let claimed = store
            .claim(&classes, 100, now, 30_000, 15_000, |candidates| {
                candidates
                    .iter()
                    .filter(|candidate| candidate.id == *run)
                    .map(|candidate| Claim {
                        run: candidate.id.clone(),
                        runner_id: runner.into(),
                    })
                    .collect()
            })
            .await
            .unwrap();
        let attempt = claimed.first().expect("the run is ready").attempt;
        self.report(run, attempt, runner, Report::Accepted).await;
        self.report(run, attempt, runner, Report::Started).await;
        attempt
    }

    pub(crate) async fn report(&self, run: &RunId, attempt: u32, runner: &str, report: Report) {
        let reported = AttemptReport {
            run: run.clone(),
            attempt,
            runner_id: runner.into(),
            report,
        };
        let now = self.app.clock.now_ms();
        let verdicts = self
            .app
            .store
            .report(&[reported], now, 30_000)
            .await
            .unwrap();
        assert_eq!(verdicts, [Verdict::Done]);
        self.app.logs.wake(run);
    }

    /// Appends to the log of a run.
    pub(crate) async fn append_log(
        &self,
        run: &RunId,
        attempt: u32,
        runner: &str,
        offset: u64,
        data: &str,
    ) {
        let blob = format!("logs/{run}/{attempt}/{offset}");
        self.app
            .blobs
            .put(&blob, Bytes::from(data.to_owned()))
            .await
            .unwrap();
        let length = u32::try_from(data.len()).unwrap();
        let chunk = Report::LogChunk {
            offset,
            length,
            blob,
        };
        self.report(run, attempt, runner, chunk).await;
    }

    /// Finishes a run with the log `log`.
    pub(crate) async fn finish_run(
        &self,
        run: &RunId,
        attempt: u32,
        runner: &str,
        state: RunState,
        log: &str,
        result: RunResult,
    ) {
        let sha256 = Sha256::digest(log.as_bytes());
        let finished = Report::Finished {
            state,
            reason: (state != RunState::Succeeded).then(|| "a step failed".to_owned()),
            result: Box::new(result),
            log_length: log.len() as u64,
            log_sha256: sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        self.report(run, attempt, runner, finished).await;
    }

    /// Records the digest of this letter for the watched tag `base`.
    pub(crate) async fn record_digest(&self, base: &str, letter: char) {
        crate::bases::update_watches(&self.app).await.unwrap();
        let store = &self.app.store;
        let now = self.app.clock.now_ms();
        store.mark_watches_due(None, now).await.unwrap();
        for watch in store.claim_watches(now, 1, 100).await.unwrap() {
            if watch.name != base {
                store.release_watch(&watch, now).await.unwrap();
                continue;
            }
            let digest = letter_digest(letter);
            let seen = PollResult::Digest {
                platforms: Some([("linux/amd64".to_owned(), digest.clone())].into()),
                digest,
                etag: None,
            };
            store.record_poll(&watch, &seen, now, now).await.unwrap();
        }
    }

    /// Runs the driver of cascades until `done` returns `true`.
    pub(crate) async fn drive_cascades(&self, done: impl AsyncFn() -> bool) {
        self.app.cascades.mark_facts_changed();
        let until = async {
            while !done().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = crate::cascades::run(&self.app) => panic!("the driver ended: {ended:?}"),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the condition was not met in time"),
            () = until => {}
        }
    }

    /// Runs the driver of cascades until the cascade `id` exists.
    pub(crate) async fn wait_for_cascade(&self, id: u64) {
        self.drive_cascades(async || self.app.store.cascade(id).await.is_ok())
            .await;
    }

    /// Completes a run of `task` that pushed `image` from these bases, on the runner `mine`. A
    /// letter means its [`letter_digest`].
    pub(crate) async fn complete_push(
        &self,
        task: &str,
        image: (&str, char),
        bases: &[(&str, char, BaseRole)],
    ) {
        let bases: Vec<_> = bases
            .iter()
            .map(|(name, letter, role)| (*name, letter_digest(*letter), *role))
            .collect();
        self.complete_push_from(task, image, &bases).await;
    }

    /// Completes a run like [`Self::complete_push`], with full digests of the bases.
    pub(crate) async fn complete_push_from(
        &self,
        task: &str,
        image: (&str, char),
        bases: &[(&str, Digest, BaseRole)],
    ) {
        let run: Run = self
            .post(&format!("/tasks/{task}/runs"), serde_json::json!({}))
            .await
            .json(StatusCode::CREATED);
        let result = result_of_build(image, bases);
        let attempt = self.lease_run(&run.id, "nmine").await;
        self.finish_run(&run.id, attempt, "nmine", RunState::Succeeded, "", result)
            .await;
    }
}

/// Returns the result of a run that pushed `image` from these bases.
pub(crate) fn result_of_build(
    image: (&str, char),
    bases: &[(&str, Digest, BaseRole)],
) -> RunResult {
    let step = StepId::new("build").unwrap();
    let digest = letter_digest(image.1);
    RunResult {
        built: vec![BuiltResult {
            step: step.clone(),
            names: vec![image.0.into()],
            digest: digest.clone(),
        }],
        images: vec![ImageResult {
            step: step.clone(),
            name: image.0.into(),
            digest: digest.clone(),
            platforms: [("linux/amd64".to_owned(), digest)].into(),
            staged: false,
        }],
        bases: bases
            .iter()
            .map(|(name, digest, role)| BaseResult {
                step: step.clone(),
                role: *role,
                name: (*name).into(),
                digest: digest.clone(),
                evidence: Evidence::Provenance,
                platforms: Vec::new(),
            })
            .collect(),
        ..RunResult::default()
    }
}

/// Returns the digest of 64 times this letter.
pub(crate) fn letter_digest(letter: char) -> Digest {
    format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap()
}

/// Fails if the OpenAPI document does not describe the status of a response.
fn check_documented(method: &Method, path: &str, status: StatusCode) {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| serde_json::to_value(super::openapi()).unwrap());
    let matches = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && std::iter::zip(template, path).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let exact = paths.get_key_value(path);
    let Some((template, item)) = exact.or_else(|| paths.iter().find(|(t, _)| matches(t))) else {
        return;
    };
    let Some(operation) = item.get(method.as_str().to_lowercase()) else {
        return;
    };
    assert!(
        operation["responses"].get(status.as_str()).is_some(),
        "{method} {template} returns {status}, which the document does not describe"
    );
}
