//! Test fixture: a runner with a fake control plane and a script.

use std::{sync::Arc, time::Duration};

use acrtask_api::spec::RunSpec;
use acrtask_executor::{DockerEndpoint, Options};
use acrtask_model::{RunId, Secret, TrustDomain};
use acrtask_proto::runner::{Credential, Lease};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    fake_server::{FakeServer, TOKEN},
    script::{ScriptedRun, ScriptedWork},
};
use crate::{AgentConfig, AgentError, agent::Agent, id::AttemptId, key::StateDir, register};

pub(super) struct TestRunner {
    pub(super) server: FakeServer,
    pub(super) script: Arc<ScriptedWork>,
    pub(super) begins: mpsc::UnboundedReceiver<ScriptedRun>,
    pub(super) shutdown: CancellationToken,
    pub(super) task: JoinHandle<Result<(), AgentError>>,
    pub(super) folder: tempfile::TempDir,
}

/// Settings of the runner.
pub(super) struct Setup {
    pub(super) slots: u32,
    pub(super) drain: Duration,
    pub(super) slow_stop: bool,
    pub(super) min_free_disk: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            slots: 2,
            drain: Duration::from_secs(60),
            slow_stop: false,
            min_free_disk: 0,
        }
    }
}

/// Returns a configuration for a server.
pub(super) fn config(server: &str, folder: &std::path::Path) -> AgentConfig {
    let docker = DockerEndpoint {
        host: "unix:///nowhere.sock".into(),
        certificates: None,
    };
    let mut config = AgentConfig::new(
        [server.parse().unwrap()],
        "a",
        folder.join("state"),
        Options::new(docker),
    );
    config.token = Some(Secret::new(TOKEN));
    config
}

impl TestRunner {
    pub(super) async fn new() -> Self {
        Self::with_setup(Setup::default()).await
    }

    /// Starts a runner and waits until it is connected.
    pub(super) async fn with_setup(setup: Setup) -> Self {
        acrtask_registry::install_crypto_provider();
        let server = FakeServer::start().await;
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&format!("http://{}", server.address), folder.path());
        config.slots = setup.slots;
        config.drain = setup.drain;
        config.min_free_disk = setup.min_free_disk;
        let (script, begins) = ScriptedWork::new(setup.slow_stop);
        let shutdown = CancellationToken::new();
        let mut servers = register::Servers::new(&config).unwrap();
        let state = StateDir::open(&config.state_dir).unwrap();
        let key = register::load_or_register(&config, &mut servers, &state)
            .await
            .unwrap();
        let agent = Agent::new(config, state, key, Arc::clone(&script) as Arc<_>);
        let task = tokio::spawn(agent.run(servers, shutdown.clone()));
        server.wait_connected().await;
        Self {
            server,
            script,
            begins,
            shutdown,
            task,
            folder,
        }
    }

    /// Leases an attempt and waits until it has begun.
    pub(super) async fn start_run(&mut self, run: &str, attempt: u32) -> (AttemptId, ScriptedRun) {
        let id = id(run, attempt);
        self.server.lease(&id, lease());
        let running = self.next_run().await;
        (id, running)
    }

    /// Waits for the next run that begins.
    pub(super) async fn next_run(&mut self) -> ScriptedRun {
        tokio::time::timeout(Duration::from_secs(10), self.begins.recv())
            .await
            .expect("no run began")
            .unwrap()
    }

    /// Waits until the runner has exited.
    pub(super) async fn wait_exit(self) -> Result<(), AgentError> {
        tokio::time::timeout(Duration::from_secs(20), self.task)
            .await
            .expect("the runner does not exit")
            .unwrap()
    }

    /// Returns the names of the logs on disk.
    pub(super) fn logs(&self) -> Vec<String> {
        let spool = self.folder.path().join("state/spool");
        std::fs::read_dir(spool)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until no log is left on disk.
    pub(super) async fn wait_without_logs(&self) {
        for _ in 0..400 {
            if self.logs().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("logs are left: {:?}", self.logs());
    }
}

pub(super) fn id(run: &str, attempt: u32) -> AttemptId {
    AttemptId {
        run: RunId::new(run).unwrap(),
        attempt,
    }
}

/// Returns a lease with secrets.
pub(super) fn lease() -> Lease {
    Lease {
        spec_json: serde_json::to_string(&RunSpec::default()).unwrap(),
        secrets: [("token".to_owned(), "hush-hush".to_owned())].into(),
        credentials: vec![Credential {
            host: "reg.example.com".into(),
            username: "ci".into(),
            password: "pass-word".into(),
        }],
        trust_domain: TrustDomain::Local.key(),
        cache_namespace: "0".repeat(32),
        cache_seal_key: "0".repeat(64),
        ..Lease::default()
    }
}
