//! A runner, its control plane and its script, put together for a test.

use std::{sync::Arc, time::Duration};

use acrtask_api::spec::RunSpec;
use acrtask_executor::{DockerEndpoint, Options};
use acrtask_model::{RunId, Secret, TrustDomain};
use acrtask_proto::runner::{Credential, Lease};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    plane::{Plane, TOKEN},
    script::{Running, Script},
};
use crate::{AgentConfig, AgentError, agent::Agent, id::AttemptId, key::StateDir, register};

pub(super) struct Room {
    pub(super) plane: Plane,
    pub(super) script: Arc<Script>,
    pub(super) begins: mpsc::UnboundedReceiver<Running>,
    pub(super) shutdown: CancellationToken,
    pub(super) runner: JoinHandle<Result<(), AgentError>>,
    pub(super) folder: tempfile::TempDir,
}

/// How the runner of a room is set up.
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

/// A configuration for a server.
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

impl Room {
    pub(super) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    /// A runner that is connected.
    pub(super) async fn with(setup: Setup) -> Self {
        acrtask_registry::install_crypto_provider();
        let plane = Plane::start().await;
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&format!("http://{}", plane.address), folder.path());
        config.slots = setup.slots;
        config.drain = setup.drain;
        config.min_free_disk = setup.min_free_disk;
        let (script, begins) = Script::new(setup.slow_stop);
        let shutdown = CancellationToken::new();
        let mut servers = register::Servers::new(&config).unwrap();
        let state = StateDir::open(&config.state_dir).unwrap();
        let key = register::key(&config, &mut servers, &state).await.unwrap();
        let agent = Agent::new(config, state, key, Arc::clone(&script) as Arc<_>);
        let runner = tokio::spawn(agent.run(servers, shutdown.clone()));
        plane.connected().await;
        Self {
            plane,
            script,
            begins,
            shutdown,
            runner,
            folder,
        }
    }

    /// Leases an attempt, and waits until it has begun.
    pub(super) async fn begin(&mut self, run: &str, attempt: u32) -> (AttemptId, Running) {
        let id = id(run, attempt);
        self.plane.lease(&id, lease());
        let running = self.begun().await;
        (id, running)
    }

    /// The next run that begins.
    pub(super) async fn begun(&mut self) -> Running {
        tokio::time::timeout(Duration::from_secs(10), self.begins.recv())
            .await
            .expect("no run has begun")
            .unwrap()
    }

    /// Waits until the runner has left.
    pub(super) async fn left(self) -> Result<(), AgentError> {
        tokio::time::timeout(Duration::from_secs(20), self.runner)
            .await
            .expect("the runner does not leave")
            .unwrap()
    }

    /// Logs that the runner keeps.
    pub(super) fn logs(&self) -> Vec<String> {
        let spool = self.folder.path().join("state/spool");
        std::fs::read_dir(spool)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until the runner keeps no log any more.
    pub(super) async fn no_logs(&self) {
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

/// A lease with secrets.
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
