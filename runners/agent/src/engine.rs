//! Carries runs out on a Docker engine and a BuildKit: files, plan, executor.

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
    ContextSpec, GitFacts, GitOptions, Origin, Progress, SourceError, SshKey, Workspace,
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

/// Limit of the question whether the engine answers.
const CHECK: Duration = Duration::from_secs(5);

/// A connected engine and builder.
#[derive(Debug)]
pub(crate) struct Engine {
    executor: Arc<Executor>,
    /// Housekeeping, which ends with this.
    _keeping: AbortOnDropHandle<()>,
    /// Limits of housekeeping, as a text for people.
    housekeeping: String,
    options: Options,
    vaults: Arc<Vaults>,
    work: PathBuf,
    allow_private_addresses: bool,
}

impl Engine {
    /// Connects, and goes on trying until it does; then removes what dead runs left.
    pub(crate) async fn connect(config: &AgentConfig, work: &Path) -> Self {
        let options = Options {
            scratch_root: work.to_owned(),
            // Runs of many people share it.
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
        for removed in executor.remove_leftovers().await {
            tracing::info!(removed, "a run that was killed had left this");
        }
        let executor = Arc::new(executor);
        let limits = Limits::of(config);
        let housekeeping = limits.describe();
        let keeping = housekeeping::keep(Arc::clone(&executor), limits, work.to_owned());
        Self {
            executor,
            _keeping: AbortOnDropHandle::new(tokio::spawn(keeping)),
            housekeeping,
            options,
            vaults: Arc::clone(&config.vaults),
            work: work.to_owned(),
            allow_private_addresses: config.allow_private_addresses,
        }
    }

    fn credentials(&self, job: &Job) -> Credentials {
        let operators = self.options.credentials.clone();
        // A private key is for ssh alone, and no registry's to see.
        let passwords = job
            .logins
            .iter()
            .filter(|login| !SshKey::is_key(&login.password));
        passwords.fold(operators, |all, login| {
            all.with(&login.host, login.username.clone(), login.password.clone())
        })
    }

    /// The files of a run, where it names them by URL, and of a git repository what `git` says.
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
                "`{}` is no context: {}; {}",
                error.text, error.reason, error.help
            ))
        })?;
        if matches!(
            spec,
            ContextSpec::Folder(_) | ContextSpec::TarballFile(_) | ContextSpec::Stdin
        ) {
            return Err(Ended::Invalid(format!(
                "`{url}` is nothing that a runner can fetch; upload the files, or name a URL"
            )));
        }
        // Nobody may be listening; the run ends all the same.
        let (told, mut tells) = mpsc::unbounded_channel();
        let progress: acrtask_source::OnProgress = Arc::new(move |progress| {
            if let Progress::Started(message) = progress {
                let _ = told.send(message);
            }
        });
        let options = acrtask_source::Options {
            // Whoever asked for the run need not be trusted with what this machine can reach.
            origin: Origin::TaskFile,
            allow_private_addresses: self.allow_private_addresses,
            credentials: credentials.clone(),
            insecure_registries: self.options.insecure_registries.clone(),
            known_registries: self.options.known_registries.clone(),
            ssh_keys: ssh_keys(job),
            git,
            ssh_agent: self.options.ssh_agent.clone(),
            scratch_dir: self.work.clone(),
            progress: Some(progress),
            ..acrtask_source::Options::default()
        };
        let telling = async {
            while let Some(message) = tells.recv().await {
                let event = event_of(&job.id, EventKind::Progress { message });
                let _ = events.send(event).await;
            }
        };
        let fetching = async {
            let fetched = acrtask_source::fetch(&spec, &options).await;
            drop(options);
            fetched
        };
        let (fetched, ()) = tokio::join!(fetching, telling);
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
                // On by default, which means nothing for a tarball.
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
            .map(|workspace| workspace.facts.clone())
            .unwrap_or_default();
        let (job, prepared) = match self.prepare(job, root.clone(), git).await {
            Ok(done) => done,
            Err(ended) => return ended,
        };
        let Prepared {
            source,
            diagnostics,
            plan,
            facts,
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
            return Ended::Refused(facts);
        };
        let keys = ssh_keys(&job);
        let passwords = job.logins.iter().map(|login| login.password.clone());
        plan.secrets.extend(passwords);
        plan.secrets.extend(job.secrets.into_values());
        let request = RunRequest {
            context: root,
            no_push: job.spec.no_push,
            hold: job.spec.hold,
            credentials: Some(credentials),
            git: GitAccess { ssh_keys: keys },
            reach: if self.allow_private_addresses {
                Reach::Everything
            } else {
                Reach::Public
            },
            fence: Some(job.fence),
            attempt: job.attempt,
            ..RunRequest::new(job.id, plan, job.domain)
        };
        self.executor.run(request, events, cancel).await;
        // What was fetched is removed only now.
        drop(fetched);
        Ended::Ran(facts)
    }

    /// Reads the task file. Blocking, so on a thread of its own.
    async fn prepare(
        &self,
        job: Job,
        root: Option<PathBuf>,
        git: GitFacts,
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
                files: root.map_or(Files::None, Files::FromElsewhere),
                context,
                git: Git::Known(git),
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
            Ended::NotBegun(format!("the task file could not be read: {error}"))
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
            match tokio::time::timeout(CHECK, self.executor.check()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(chain(&error)),
                Err(_) => Err("the engine does not answer".into()),
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

/// Returns what a run may read of the vaults.
fn access_of(task: Option<&str>) -> Access {
    match task {
        Some(task) => Access::Task(task.to_owned()),
        None => Access::Nothing(
            "only a stored task reads vaults, with its own code or with a commit that is approved"
                .into(),
        ),
    }
}

/// The keys among a run's logins.
fn ssh_keys(job: &Job) -> Vec<SshKey> {
    let logins = job.logins.iter();
    logins
        .filter_map(|login| SshKey::from_login(&login.host, &login.password))
        .collect()
}

/// Returns how a run ended before its first step. Only what could not be reached may work another time.
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
