//! Endpoints, contexts and helpers for builds.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use acrtask_buildkit::*;
use futures::FutureExt as _;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Longer than any of these builds takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct TestBuilder {
    pub(crate) client: Client,
    pub(crate) registry: String,
    /// `true` after a build failed because of the builder itself.
    faulty: AtomicBool,
}

pub(crate) struct Built {
    pub(crate) result: Result<BuildOutcome, BuildError>,
    pub(crate) events: Vec<BuildEvent>,
}

impl Built {
    pub(crate) fn outcome(&self) -> &BuildOutcome {
        match &self.result {
            Ok(outcome) => outcome,
            Err(error) => panic!("the build failed: {error}\n{error:?}\n{}", self.log()),
        }
    }

    pub(crate) fn error(&self) -> &BuildError {
        self.result.as_ref().expect_err("the build must fail")
    }

    pub(crate) fn log(&self) -> String {
        let bytes: Vec<u8> = self
            .events
            .iter()
            .filter_map(|event| match event {
                BuildEvent::Log(log) => Some(log.bytes.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl TestBuilder {
    pub(crate) fn base(&self) -> String {
        format!("{}/base/busybox:1.36", self.registry)
    }

    pub(crate) async fn build(&self, request: BuildRequest) -> Built {
        self.build_until(request, CancellationToken::new(), |_| {})
            .await
    }

    pub(crate) async fn build_until(
        &self,
        request: BuildRequest,
        cancel: CancellationToken,
        mut on_event: impl FnMut(&BuildEvent),
    ) -> Built {
        let (sender, mut receiver) = mpsc::channel(16);
        let collect = async {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                on_event(&event);
                events.push(event);
            }
            events
        };
        let building = async { tokio::join!(self.client.build(request, sender, cancel), collect) };
        let (result, events) = tokio::time::timeout(DEADLINE, building)
            .await
            .expect("a build must end in time");
        if result.as_ref().is_err_and(BuildError::is_builder_fault) {
            self.faulty.store(true, Ordering::Relaxed);
        }
        Built { result, events }
    }

    /// Creates a request for the folder without a destination. `RUN` prints the result.
    pub(crate) fn request(&self, context: &TempDir) -> BuildRequest {
        let mut request = BuildRequest::new(BuildContext::Local {
            dir: context.path().into(),
        });
        request.no_cache = NoCache::All;
        request
    }
}

/// Creates a folder with these files. `BASE` in a file is the base image.
pub(crate) fn context(builder: &TestBuilder, files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a folder");
        std::fs::write(path, content.replace("BASE", &builder.base())).expect("a file");
    }
    dir
}

/// Runs the test on each available endpoint.
pub(crate) async fn on_each(test: impl AsyncFn(&TestBuilder)) {
    let engine =
        std::env::var("ACRTASK_TEST_DOCKER_HOST").or_else(|_| std::env::var("DOCKER_HOST"));
    match engine {
        Ok(host) => {
            let url = host.replace("unix://", "docker://");
            let endpoint = Endpoint::parse(&url).expect("an engine's address");
            attempt(&connect_builder(endpoint).await, &test).await;
        }
        Err(_) if std::env::var("ACRTASK_TEST_SKIP_ENGINE").as_deref() == Ok("1") => {
            println!("skipped: no engine")
        }
        Err(_) => panic!(
            "no engine: run the tests with `cargo xtask test`, or set ACRTASK_TEST_SKIP_ENGINE=1"
        ),
    }
    match std::env::var("ACRTASK_TEST_BUILDKITD") {
        Ok(url) => {
            let mut endpoint = Endpoint::parse(&url).expect("a buildkitd's address");
            if let Ok(folder) = std::env::var("ACRTASK_TEST_BUILDKITD_TLS") {
                endpoint = endpoint.with_tls(TlsFiles::in_folder(folder));
            }
            attempt(&connect_builder(endpoint).await, &test).await;
        }
        Err(_) => println!("skipped: no separate buildkitd (ACRTASK_TEST_BUILDKITD)"),
    }
}

/// Runs the test. Repeats it once after a fault of the builder itself.
async fn attempt(builder: &TestBuilder, test: &impl AsyncFn(&TestBuilder)) {
    let first = AssertUnwindSafe(test(builder)).catch_unwind().await;
    match first {
        Ok(()) => {}
        Err(_) if builder.faulty.load(Ordering::Relaxed) => {
            println!("repeating the test: the builder could not start a container");
            test(builder).await;
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

async fn connect_builder(endpoint: Endpoint) -> TestBuilder {
    let registry = std::env::var("ACRTASK_TEST_REGISTRY")
        .expect("ACRTASK_TEST_REGISTRY names the registry with the base images");
    let client = Client::connect(endpoint)
        .await
        .expect("the endpoint responds");
    TestBuilder {
        client,
        registry,
        faulty: AtomicBool::new(false),
    }
}
