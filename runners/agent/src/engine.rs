//! Execution of runs on a Docker engine and a BuildKit: files, plan, executor.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use acrtask_api::spec::ContextSource;
use acrtask_executor::{Executor, GitAccess, Options, Reach, RunRequest};
use acrtask_job::{Files, Git, Prepared, VaultSecrets};
use acrtask_model::{Event, EventKind};
use acrtask_registry::Credentials;
use acrtask_source::{
    ContextSpec, GitOptions, GitVariables, Origin, Progress, SourceError, SshKey, Workspace,
};
use acrtask_vaults::{Access, Vaults};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    backoff::Backoff,
    config::AgentConfig,
    error::chain,
    housekeeping::{self, Limits},
    spool::event_of,
    work::{Abilities, Ended, Job, Work},
};

/// Timeout for a check of the engine.
const CHECK: Duration = Duration::from_secs(5);

/// A connected engine and builder.
#[derive(Debug)]
pub(crate) struct Engine {
    executor: Arc<Executor>,
    /// Housekeeping task, which ends with this value.
    _enforcing: AbortOnDropHandle<()>,
    /// Limits of housekeeping as text for the control plane.
    housekeeping: String,
    options: Options,
    vaults: Arc<Vaults>,
    work: PathBuf,
    allow_private_addresses: bool,
}

impl Engine {
    /// Connects, retrying without end, and then removes what killed runs left behind.
    pub(crate) async fn connect(config: &AgentConfig, work: &Path) -> Self {
        let options = Options {
            scratch_root: work.to_owned(),
            // Runs of several users share the machine.
            own_machine: false,
            ..config.executor.clone()
        };
        let mut backoff = Backoff::default();
        let executor = loop {
            match Executor::connect(options.clone()).await {
                Ok(executor) => break executor,
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        help = error.help,
                        "waiting for the engine"
                    );
                    backoff.wait().await;
                }
            }
        };
        for removed in executor.remove_orphans().await {
            tracing::info!(removed, "removed what a killed run had left behind");
        }
        let executor = Arc::new(executor);
        let limits = Limits::from_config(config);
        let housekeeping = limits.describe();
        let enforcing =
            housekeeping::enforce_limits(Arc::clone(&executor), limits, work.to_owned());
        Self {
            executor,
            _enforcing: AbortOnDropHandle::new(tokio::spawn(enforcing)),
            housekeeping,
            options,
            vaults: Arc::clone(&config.vaults),
            work: work.to_owned(),
            allow_private_addresses: config.allow_private_addresses,
        }
    }

    fn credentials(&self, job: &Job) -> Credentials {
        let operators = self.options.credentials.clone();
        // A private key is only for SSH and must not reach a registry.
        let passwords = job
            .logins
            .iter()
            .filter(|login| !SshKey::is_private_key(&login.password));
        passwords.fold(operators, |all, login| {
            all.with(&login.host, login.username.clone(), login.password.clone())
        })
    }

    /// Fetches the files of a run whose context is a URL. `git` applies to git repositories.
    async fn fetch(
        &self,
        url: &str,
        git: GitOptions,
        credentials: &Credentials,
        job: &Job,
        events: &mpsc::Sender<Event>,
    ) -> Result<Workspace, Ended> {
        let spec = ContextSpec::parse(url).map_err(|error| {
            Ended::Invalid(format!(
                "`{}` is not a context: {}; {}",
                error.text, error.reason, error.help
            ))
        })?;
        if matches!(
            spec,
            ContextSpec::Folder(_) | ContextSpec::TarballFile(_) | ContextSpec::Stdin
        ) {
            return Err(Ended::Invalid(format!(
                "a runner cannot fetch `{url}`; upload the files, or write a URL"
            )));
        }
        // The receiver may be gone; the run ends anyway.
        let (messages, mut received) = mpsc::unbounded_channel();
        let progress: acrtask_source::ProgressCallback = Arc::new(move |progress| {
            if let Progress::Started(message) = progress {
                let _ = messages.send(message);
            }
        });
        let options = acrtask_source::Options {
            // The author of the run may lack the right to use what this machine can reach.
            origin: Origin::TaskFile,
            allow_private_addresses: self.allow_private_addresses,
            credentials: credentials.clone(),
            insecure_registries: self.options.insecure_registries.clone(),
            operator_registries: self.options.operator_registries.clone(),
            ssh_keys: ssh_keys(job),
            git,
            ssh_agent: self.options.ssh_agent.clone(),
            scratch_dir: self.work.clone(),
            progress: Some(progress),
            ..acrtask_source::Options::default()
        };
        let forwarding = async {
            while let Some(message) = received.recv().await {
                let event = event_of(&job.id, EventKind::Progress { message });
                let _ = events.send(event).await;
            }
        };
        let fetching = async {
            let fetched = acrtask_source::fetch(&spec, &options).await;
            drop(options);
            fetched
        };
        let (fetched, ()) = tokio::join!(fetching, forwarding);
        if fetched.is_ok() && !matches!(spec, ContextSpec::None) {
            let message = format!("fetched {spec}");
            let event = event_of(&job.id, EventKind::Progress { message });
            let _ = events.send(event).await;
        }
        fetched.map_err(|error| {
            let reason = match error.help() {
                Some(help) => format!("{}; {help}", chain(&error)),
                None => chain(&error),
            };
            // Another runner may have what this machine lacks.
            let own = matches!(error, SourceError::NoGit { .. } | SourceError::Io { .. });
            ended_before(reason, own || error.is_unreachable())
        })
    }

    async fn carry_out(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> Ended {
        let credentials = self.credentials(&job);
        let fetched = match &job.spec.context {
            ContextSource::Url {
                url,
                commit,
                submodules,
                lfs,
            } => {
                let commit = match commit.as_ref().map(|commit| commit.parse()).transpose() {
                    Ok(commit) => commit,
                    Err(error) => return Ended::NotBegun(chain(&error)),
                };
                // Submodules are on by default, and have no meaning for a tarball.
                let is_git = matches!(ContextSpec::parse(url), Ok(ContextSpec::Git(_)));
                let git = GitOptions {
                    commit,
                    submodules: *submodules && is_git,
                    lfs: *lfs,
                };
                let fetching = self.fetch(url, git, &credentials, &job, &events);
                let fetched = tokio::select! {
                    fetched = fetching => fetched,
                    () = cancel.cancelled() => return stopped(),
                };
                match fetched {
                    Ok(workspace) => Some(workspace),
                    Err(ended) => return ended,
                }
            }
            ContextSource::None | ContextSource::Upload { .. } => None,
        };
        let root = fetched
            .as_ref()
            .map(|workspace| workspace.root.clone())
            .or_else(|| job.upload.clone());
        let git = fetched
            .as_ref()
            .map(|workspace| workspace.variables.clone())
            .unwrap_or_default();
        let (job, prepared) = match self.prepare(job, root.clone(), git).await {
            Ok(done) => done,
            Err(ended) => return ended,
        };
        let Prepared {
            source,
            diagnostics,
            plan,
            variables,
        } = prepared;
        if !diagnostics.is_empty() {
            let found = EventKind::TaskFile {
                name: source.name,
                text: source.text,
                problems: acrtask_job::file_problems(&diagnostics),
            };
            let _ = events.send(event_of(&job.id, found)).await;
        }
        let Some(mut plan) = plan else {
            return Ended::Refused(variables);
        };
        let keys = ssh_keys(&job);
        let passwords = job.logins.iter().map(|login| login.password.clone());
        plan.secrets.extend(passwords);
        plan.secrets.extend(job.secrets.into_values());
        let request = RunRequest {
            context: root,
            no_push: job.spec.no_push,
            push_by_digest: job.spec.push_by_digest,
            credentials: Some(credentials),
            git: GitAccess { ssh_keys: keys },
            reach: if self.allow_private_addresses {
                Reach::Everything
            } else {
                Reach::Public
            },
            fence: Some(job.fence),
            records: job.records,
            attempt: job.attempt,
            ..RunRequest::new(job.id, plan, job.domain)
        };
        self.executor.run(request, events, cancel).await;
        // The fetched files are removed only after the run.
        drop(fetched);
        Ended::Ran(variables)
    }

    /// Prepares the plan on a blocking thread.
    #[allow(
        clippy::disallowed_methods,
        reason = "the boundary to the pure code that takes the time"
    )]
    async fn prepare(
        &self,
        job: Job,
        root: Option<PathBuf>,
        git: GitVariables,
    ) -> Result<(Job, Prepared), Ended> {
        let allow = self.options.allow;
        let vaults = Arc::clone(&self.vaults);
        let preparing = tokio::task::spawn_blocking(move || {
            let context = match &job.spec.context {
                ContextSource::None => "/dev/null".to_owned(),
                ContextSource::Upload { .. } => "the uploaded context".to_owned(),
                ContextSource::Url { url, .. } => url.clone(),
            };
            let prepared = acrtask_job::prepare(&acrtask_job::Job {
                id: &job.id,
                trust: &job.domain.trust,
                spec: &job.spec,
                secrets: &job.secrets,
                files: root.map_or(Files::None, Files::Fetched),
                context,
                git: Git::Fetched(git),
                allow,
                vaults: VaultSecrets::Read {
                    vaults: &vaults,
                    access: access_of(job.vault_task.as_deref()),
                },
                now: jiff::Timestamp::now(),
            });
            (job, prepared)
        });
        let (job, prepared) = preparing.await.map_err(|error| {
            Ended::NotBegun(format!("preparing the task file panicked: {error}"))
        })?;
        match prepared {
            Ok(prepared) => Ok((job, prepared)),
            Err(error) => {
                let reason = match &error.help {
                    Some(help) => format!("{}; {help}", chain(&error)),
                    None => chain(&error),
                };
                Err(ended_before(reason, error.unreachable))
            }
        }
    }
}

impl Work for Engine {
    fn abilities(&self) -> Abilities {
        let engine = self.executor.engine();
        let builder = self.executor.builder();
        let mut platforms = vec![engine.platform.clone()];
        for platform in &builder.platforms {
            if !platforms.contains(platform) {
                platforms.push(platform.clone());
            }
        }
        let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let features = [
            ("engine", format!("Docker {}", engine.version)),
            ("containerd-store", yes_no(engine.containerd_store)),
            ("builder", builder.description.clone()),
            ("registry-cache", yes_no(builder.registry_cache)),
            ("private-addresses", yes_no(self.allow_private_addresses)),
            ("housekeeping", self.housekeeping.clone()),
        ];
        let features = features
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        Abilities {
            platforms,
            features,
        }
    }

    fn check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async {
            match tokio::time::timeout(CHECK, self.executor.ping()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err("the engine does not respond".into()),
            }
        })
    }

    fn carry_out(
        &self,
        job: Job,
        events: mpsc::Sender<Event>,
        cancel: CancellationToken,
    ) -> BoxFuture<'_, Ended> {
        Box::pin(self.carry_out(job, events, cancel))
    }
}

/// Returns which vaults a run may read.
fn access_of(task: Option<&str>) -> Access {
    match task {
        Some(task) => Access::Task(task.to_owned()),
        None => Access::Nothing(
            "only a stored task reads vaults, with its own code or with a commit that is approved"
                .into(),
        ),
    }
}

/// Returns the SSH keys among a run's logins.
fn ssh_keys(job: &Job) -> Vec<SshKey> {
    let logins = job.logins.iter();
    logins
        .filter_map(|login| SshKey::from_login(&login.host, &login.password))
        .collect()
}

/// Returns how a run ended before its first step. Only unreachable sources are worth a retry.
fn ended_before(reason: String, unreachable: bool) -> Ended {
    if unreachable {
        Ended::NotBegun(reason)
    } else {
        Ended::Invalid(reason)
    }
}

fn stopped() -> Ended {
    Ended::NotBegun("the run was stopped before it began".into())
}
