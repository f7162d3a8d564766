//! Checks of a task's external requirements: access to its repository, validity of its logins, and
//! clock skew.
//!
//! Invariants:
//!
//! - A host gets only the login that a run would use there.
//! - Responses of a host are shown without the logins.
//! - Addresses follow the rules for the files of a run, and for registries the rules for base
//!   images.
//! - A probe changes nothing and downloads nothing.
//! - A caller with a task limit chooses the hosts itself and must not learn about the server's
//!   network. It gets the same result after the same time for all unusable hosts. The server does
//!   not connect to private addresses for it.
//!
//! Left out: permission to push, which only a push can show.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use acrtask_api::{
    probe::{Probe, ProbeLogin, ProbeOutcome, TaskProbe},
    task::Task,
};
use acrtask_model::{ScopeChain, Secret, TaskScope, mask::Patterns};
use acrtask_registry::{
    AddressPolicy, Credentials, Registry, RegistryError, Settings, credentials::canonical_host, net,
};
use acrtask_source::{ContextSpec, GitTransport, GitUrl, Limits, Origin, SourceError, SshKey};
use acrtask_store::StoreError;
use futures::StreamExt as _;
use url::Url;

use crate::{App, clock::Clock, run_factory::credential_aad};

/// Number of concurrent probes on this server.
pub(crate) const MAX_CONCURRENT_PROBES: usize = 4;
/// Time limit of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Number of hosts of a task to probe concurrently. [`MAX_HOSTS`] limits their total number.
const MAX_CONCURRENT_HOSTS: usize = 8;
const MAX_HOSTS: usize = 50;
/// Time limit of one request for a caller with a task limit. The result is sent after this time if
/// a host fails.
const LIMITED_TIMEOUT: Duration = Duration::from_secs(5);
/// Minimum time between two probes of a caller with a task limit.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// Callers with a task limit, and the time of each caller's last probe.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Instant>>);

impl Turns {
    /// Takes the turn of a caller. `Err` contains the seconds to wait after a recent probe.
    pub(crate) fn take_turn(&self, token: &str) -> Result<(), u32> {
        let now = Instant::now();
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, at| now.duration_since(*at) < MIN_INTERVAL);
        if let Some(at) = asked.get(token) {
            let left = MIN_INTERVAL.saturating_sub(now.duration_since(*at));
            return Err(u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
        }
        asked.insert(token.to_owned(), now);
        Ok(())
    }
}

/// Login that runs of a task get.
struct Login {
    host: String,
    username: String,
    /// `None` if it cannot be decrypted.
    password: Option<Secret>,
    whose: ProbeLogin,
}

impl Login {
    fn is_key(&self) -> bool {
        self.password.as_ref().is_some_and(SshKey::is_private_key)
    }
}

/// Probes everything that `task` needs.
///
/// With `all`, also probes the hosts of shared logins that the task does not name. Without it, the
/// caller has a task limit.
pub(crate) async fn probe_task(app: &App, task: &Task, all: bool) -> Result<TaskProbe, StoreError> {
    let begun = Instant::now();
    let logins = read_logins(app, task).await?;
    let patterns = Patterns::new(logins.iter().filter_map(|login| login.password.as_ref()));
    let context = task.definition.context.as_deref();
    let git = match context.map(ContextSpec::parse) {
        Some(Ok(ContextSpec::Git(git))) if git.transport != GitTransport::File => Some(git),
        _ => None,
    };
    let prober = TaskProber {
        app,
        task: &task.definition.name,
        logins: &logins,
        limited: !all,
    };
    let hosts = hosts_to_probe(task, &logins, git.as_ref(), all);
    let registries = futures::stream::iter(hosts)
        .map(|host| prober.probe_registry(host))
        .buffered(MAX_CONCURRENT_HOSTS)
        .collect::<Vec<Probe>>();
    let source = async {
        match &git {
            Some(git) => Some(prober.probe_source(git).await),
            None => None,
        }
    };
    let (mut source, mut logins) = tokio::join!(source, registries);
    if !all {
        let mut hidden = false;
        for probe in source.iter_mut().chain(&mut logins) {
            hidden |= hide_failure(probe);
        }
        if hidden {
            tokio::time::sleep_until((begun + LIMITED_TIMEOUT).into()).await;
        }
    }
    for probe in source.iter_mut().chain(&mut logins) {
        probe.message = patterns.mask(&probe.message);
        probe.help = probe.help.as_deref().map(|help| patterns.mask(help));
    }
    Ok(TaskProbe { source, logins })
}

/// Replaces the failure of a host by one message for all kinds of failures. Returns `true` if the
/// host failed.
fn hide_failure(probe: &mut Probe) -> bool {
    match probe.outcome {
        ProbeOutcome::Works
        | ProbeOutcome::Open
        | ProbeOutcome::NoLogin
        | ProbeOutcome::Missing
        | ProbeOutcome::NotTried => false,
        ProbeOutcome::Denied
        | ProbeOutcome::Unreachable
        | ProbeOutcome::Refused
        | ProbeOutcome::PrivateAddress
        | ProbeOutcome::NoRegistry => {
            *probe = Probe {
                host: std::mem::take(&mut probe.host),
                login: probe.login,
                outcome: ProbeOutcome::Unreachable,
                message: "it cannot be used: it does not respond or rejects the login".into(),
                help: Some(
                    "check its name and its login; a token without a task limit gets more details"
                        .into(),
                ),
                clock_ahead_secs: None,
            };
            true
        }
    }
}

/// Returns the logins that runs of a task get: for each host the one with the narrowest scope.
async fn read_logins(app: &App, task: &Task) -> Result<Vec<Login>, StoreError> {
    let scopes = ScopeChain::of_task(&task.id, &task.definition.name);
    let mut logins: Vec<Login> = Vec::new();
    for row in app.store.credentials_for(&scopes).await? {
        let aad = credential_aad(&row.scope, &row.host);
        let whose = match TaskScope::parse(&row.scope) {
            TaskScope::All => ProbeLogin::All,
            TaskScope::Prefix(_) => ProbeLogin::Prefix,
            TaskScope::Task(_) => ProbeLogin::Task,
        };
        logins.push(Login {
            password: app.vault.open(&aad, &row.password).ok(),
            host: row.host,
            username: row.username,
            whose,
        });
    }
    Ok(logins)
}

/// Returns the hosts to probe as registries.
fn hosts_to_probe(
    task: &Task,
    logins: &[Login],
    git: Option<&GitUrl>,
    all: bool,
) -> BTreeSet<String> {
    let own = task.definition.registry.as_deref();
    let own = own.map(|registry| canonical_host(registry.split('/').next().unwrap_or(registry)));
    let source = git.map(|git| canonical_host(&login_host(git)));
    let stored = logins
        .iter()
        .filter(|login| all || login.whose == ProbeLogin::Task)
        .filter(|login| !login.is_key() && source.as_ref() != Some(&login.host))
        .map(|login| login.host.clone());
    // For a caller with a task limit, the time must not show how many hosts waited for others.
    let most = if all { MAX_HOSTS } else { MAX_CONCURRENT_HOSTS };
    own.into_iter().chain(stored).take(most).collect()
}

/// Returns the host of a repository in the form of a stored login, with the port of HTTP URLs.
fn login_host(git: &GitUrl) -> String {
    let port = Url::parse(&git.url).ok().and_then(|url| url.port());
    match port {
        Some(port) => format!("{}:{port}", git.host),
        None => git.host.clone(),
    }
}

/// Common input of all probes of a task.
struct TaskProber<'a> {
    app: &'a App,
    task: &'a str,
    logins: &'a [Login],
    /// `true` if the caller has a task limit.
    limited: bool,
}

impl TaskProber<'_> {
    /// Returns the time limit of one request.
    fn time_limit(&self) -> Duration {
        if self.limited {
            LIMITED_TIMEOUT
        } else {
            REQUEST_TIMEOUT
        }
    }

    /// Returns the address policy for a registry.
    ///
    /// A caller with a task limit reaches only public registries and those that the operator or an
    /// administrator named.
    fn address_policy(&self, host: &str, login: Option<ProbeLogin>) -> AddressPolicy {
        let config = &self.app.config;
        let is_named = login == Some(ProbeLogin::All)
            || config.insecure_registries.iter().any(|named| named == host);
        if self.limited && !config.notify_private && !is_named {
            AddressPolicy::PublicOnly
        } else {
            AddressPolicy::NoMetadata
        }
    }

    /// Returns the logins for registries.
    fn credentials(&self) -> Credentials {
        let passwords = self.logins.iter().filter(|login| !login.is_key());
        passwords.fold(Credentials::new(), |all, login| match &login.password {
            Some(password) => all.with(&login.host, login.username.clone(), password.clone()),
            None => all,
        })
    }

    fn set_command(&self, host: &str, whose: Option<ProbeLogin>) -> String {
        match whose {
            Some(ProbeLogin::All) => format!("`acrtask credential set {host} --username USER`"),
            _ => format!(
                "`acrtask credential set {host} --username USER --task {}`",
                self.task
            ),
        }
    }

    async fn probe_source(&self, git: &GitUrl) -> Probe {
        let host = login_host(git);
        let ssh = git.transport == GitTransport::Ssh;
        let of_host = |login: &&Login| {
            let stored = login.host.trim_start_matches("ssh://");
            let same = |name: &str| stored.eq_ignore_ascii_case(name);
            login.is_key() == ssh && (same(&host) || (ssh && same(&git.host)))
        };
        let login = self.logins.iter().find(of_host);
        let mut probe = Probe {
            login: login.map(|login| login.whose),
            outcome: ProbeOutcome::Works,
            message: String::new(),
            help: None,
            clock_ahead_secs: None,
            host,
        };
        if let Some(broken) = self.broken_login(&probe.host) {
            return broken;
        }
        if ssh && login.is_none() {
            probe.outcome = ProbeOutcome::NoLogin;
            probe.message = format!("{} uses SSH, but no key is stored for it", git.url);
            probe.help = Some(format!(
                "`acrtask credential set {} --username git --task {} < KEY`",
                git.host, self.task
            ));
            return probe;
        }
        let private = self.app.config.notify_private;
        if !private && is_private(git).await {
            probe.outcome = ProbeOutcome::PrivateAddress;
            probe.message = format!(
                "{} has a private address; this server connects only to public ones",
                probe.host
            );
            probe.help = Some(
                "start the server with `--allow-private-addresses` if tasks may name hosts of its network".into(),
            );
            return probe;
        }
        let keys = self.logins.iter().filter_map(|login| {
            let password = login.password.as_ref()?;
            SshKey::from_login(&login.host, password)
        });
        let options = acrtask_source::Options {
            origin: Origin::TaskFile,
            allow_private_addresses: private,
            credentials: self.credentials(),
            ssh_keys: keys.collect(),
            limits: Limits {
                time: self.time_limit(),
                ..Limits::default()
            },
            ..acrtask_source::Options::default()
        };
        let (read, ahead) = tokio::join!(
            acrtask_source::probe(git, &options),
            measure_clock(git, private, &self.app.clock)
        );
        probe.clock_ahead_secs = ahead;
        match read {
            Ok(moved) => {
                probe.message = match login {
                    Some(_) => format!("{} is readable with the login for {}", git.url, probe.host),
                    None => format!("{} is readable without a login", git.url),
                };
                if login.is_none() {
                    probe.outcome = ProbeOutcome::Open;
                }
                if let Some(moved) = moved {
                    probe.message = format!("{} has moved to {}", git.url, moved.url);
                    probe.help = Some(format!(
                        "run `acrtask task update {} --context '{moved}'`, and create the webhook to this server there",
                        self.task
                    ));
                }
            }
            Err(error) => {
                probe.outcome = outcome_of(&error);
                probe.message = acrtask_model::error_chain(&error);
                probe.help = match probe.outcome {
                    ProbeOutcome::Denied => Some(format!(
                        "store a login that may read it: {}",
                        self.set_command(&probe.host, probe.login)
                    )),
                    ProbeOutcome::Unreachable => Some(
                        "check whether the server can reach the host; runners fetch the files and may reach other hosts".into(),
                    ),
                    _ => error.help(),
                };
            }
        }
        probe
    }

    /// Returns the failed probe of a login that cannot be decrypted. A run would fail because of
    /// it.
    fn broken_login(&self, host: &str) -> Option<Probe> {
        let login = self.logins.iter().find(|login| login.host == host)?;
        if login.password.is_some() {
            return None;
        }
        Some(Probe {
            host: host.to_owned(),
            login: Some(login.whose),
            outcome: ProbeOutcome::Refused,
            message: format!(
                "the login for {host} cannot be decrypted: every run of the task fails"
            ),
            help: Some(format!(
                "add the key that it was encrypted with to the server's key file, or set it again: {}",
                self.set_command(host, Some(login.whose))
            )),
            clock_ahead_secs: None,
        })
    }

    async fn probe_registry(&self, host: String) -> Probe {
        if let Some(broken) = self.broken_login(&host) {
            return broken;
        }
        let login = self.logins.iter().find(|login| login.host == host);
        let mut probe = Probe {
            login: login.map(|login| login.whose),
            outcome: ProbeOutcome::Open,
            message: format!("{host} responds and needs no login"),
            help: None,
            clock_ahead_secs: None,
            host,
        };
        let request = self.request_registry(&mut probe);
        match tokio::time::timeout(self.time_limit(), request).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.set_failure(&mut probe, &error),
            Err(_) => {
                probe.outcome = ProbeOutcome::Unreachable;
                probe.message = format!(
                    "{} did not respond within {} s",
                    probe.host,
                    REQUEST_TIMEOUT.as_secs()
                );
                probe.help = Some("check whether the server can reach it".into());
            }
        }
        probe
    }

    async fn request_registry(&self, probe: &mut Probe) -> Result<(), RegistryError> {
        let settings = Settings {
            insecure: self.app.config.insecure_registries.clone(),
            addresses: self.address_policy(&probe.host, probe.login),
        };
        let registry = Registry::new(self.credentials(), settings)?;
        let host = probe.host.clone();
        let before = self.app.clock.now_ms();
        let response = registry.probe(&host).await?;
        let date = response.date.as_deref();
        probe.clock_ahead_secs = clock_ahead(date, before, self.app.clock.now_ms());
        if !response.requires_login {
            return Ok(());
        }
        if probe.login.is_none() {
            probe.outcome = ProbeOutcome::NoLogin;
            probe.message = format!("{host} requires a login, but runs of the task get none");
            probe.help = Some(format!(
                "{}; runners may have logins of their own",
                self.set_command(&host, None)
            ));
            return Ok(());
        }
        registry.log_in(&host).await?;
        probe.outcome = ProbeOutcome::Works;
        probe.message = format!("{host} accepts the login");
        Ok(())
    }

    fn set_failure(&self, probe: &mut Probe, error: &RegistryError) {
        let host = &probe.host;
        probe.message = acrtask_model::error_chain(error);
        (probe.outcome, probe.help) = match error {
            RegistryError::NotFound { .. } if probe.login.is_some() => {
                probe.message = format!("{host} is not a registry; its login was not tried");
                (ProbeOutcome::NoRegistry, None)
            }
            RegistryError::NotFound { .. } => {
                probe.message = format!("{host} is the task's registry but does not respond like one");
                let update = format!("`acrtask task update {} --registry HOST`", self.task);
                (
                    ProbeOutcome::NoRegistry,
                    Some(format!("check its name: {update}")),
                )
            }
            RegistryError::Denied { .. } => (
                ProbeOutcome::Denied,
                Some(format!(
                    "the login is wrong or has expired; set it again: {}",
                    self.set_command(host, probe.login)
                )),
            ),
            RegistryError::Unreachable { .. } => (
                ProbeOutcome::Unreachable,
                Some("check its name and whether the server can reach it; name a registry without TLS with `acrtask serve --insecure-registry`".into()),
            ),
            RegistryError::RateLimited { .. } => (ProbeOutcome::NotTried, Some("try again later".into())),
            _ => (ProbeOutcome::Refused, Some("check its name".into())),
        };
    }
}

/// Returns `true` if a host has a private address; `false` if it cannot be resolved.
async fn is_private(git: &GitUrl) -> bool {
    let bare = git.host.trim_start_matches('[').trim_end_matches(']');
    let resolving = net::resolve_public(bare, 0);
    match tokio::time::timeout(REQUEST_TIMEOUT, resolving).await {
        Ok(Err(error)) => error.is::<net::ForbiddenAddress>(),
        _ => false,
    }
}

fn outcome_of(error: &SourceError) -> ProbeOutcome {
    match error {
        _ if error.is_unreachable() => ProbeOutcome::Unreachable,
        SourceError::NoSuchReference { .. } => ProbeOutcome::Missing,
        SourceError::Git { .. } => ProbeOutcome::Denied,
        SourceError::NoGit { .. } | SourceError::Io { .. } => ProbeOutcome::NotTried,
        _ => ProbeOutcome::Refused,
    }
}

/// Returns the seconds that the clock of a git host is ahead, from a request without a login. SSH
/// has no time.
async fn measure_clock(git: &GitUrl, private: bool, clock: &Clock) -> Option<i64> {
    if !matches!(git.transport, GitTransport::Https | GitTransport::Http) {
        return None;
    }
    let policy = if private {
        AddressPolicy::Any
    } else {
        AddressPolicy::PublicOnly
    };
    let mut url = Url::parse(&git.url).ok()?;
    url.path_segments_mut()
        .ok()?
        .pop_if_empty()
        .extend(["info", "refs"]);
    url.set_query(Some("service=git-upload-pack"));
    net::check_literal(policy, &url).ok()?;
    let client = net::client(policy, false).ok()?;
    let before = clock.now_ms();
    let answer = client.get(url).timeout(REQUEST_TIMEOUT).send().await.ok()?;
    let date = answer.headers().get("date")?.to_str().ok()?;
    clock_ahead(Some(date), before, clock.now_ms())
}

/// Returns the seconds from the middle of a request to the `Date` header of its response.
fn clock_ahead(date: Option<&str>, before: i64, after: i64) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(date?)
        .ok()?;
    let ours = before.midpoint(after).div_euclid(1000);
    Some(theirs.as_second() - ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_skew_is_measured_from_the_middle_of_the_request() {
        let date = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        let at = 784_887_151_000;
        for (before, after, expected) in [
            (at, at + 900, 0),
            (at - 4_000, at + 4_000, 0),
            (at - 90_000, at - 90_000, 90),
            (at + 60_000, at + 61_000, -60),
        ] {
            assert_eq!(clock_ahead(date, before, after), Some(expected));
        }
        assert_eq!(clock_ahead(None, at, at), None);
        assert_eq!(clock_ahead(Some("yesterday"), at, at), None);
    }
}
