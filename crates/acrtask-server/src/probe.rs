//! Looks from the server at what a task needs elsewhere: may its repository be read, do its logins hold, do the clocks
//! agree.
//!
//! Invariants: a host gets the login that a run would use there, and no other; what a host answers is repeated without
//! the logins; the rules for addresses are those for the files of a run, and for registries those for base images.
//! Nothing is changed, and nothing is fetched. A caller with a limit to tasks chose the hosts itself and must not learn
//! of the server's network: it gets one answer for all hosts that cannot be used, after one time, and no host at a private
//! address is connected to. Left out: whether a login may push, which only a push shows.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use acrtask_api::{
    probe::{Probe, ProbeLogin, ProbeOutcome, TaskProbe},
    task::Task,
};
use acrtask_model::{Secret, mask::Patterns};
use acrtask_registry::{
    AddressPolicy, Credentials, Registry, RegistryError, Settings, credentials::canonical_host, net,
};
use acrtask_source::{ContextSpec, GitTransport, GitUrl, Limits, Origin, SourceError, SshKey};
use acrtask_store::StoreError;
use futures::StreamExt as _;
use url::Url;

use crate::{App, clock::Clock, submit::credential_aad};

/// Looks at once, of all who ask this server.
pub(crate) const AT_ONCE: usize = 4;
/// Longest time of one question.
const LIMIT: Duration = Duration::from_secs(20);
/// Hosts that are asked at once for one task, and in all.
const PARALLEL: usize = 8;
const HOSTS: usize = 50;
/// Longest time of one question for a caller with a limit to tasks. The answer comes after it where a host fails.
const LIMITED: Duration = Duration::from_secs(5);
/// The shortest time between two questions of such a caller.
const PAUSE: Duration = Duration::from_secs(10);

/// Callers with a limit to tasks, and when each of them asked.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Instant>>);

impl Turns {
    /// Takes the turn of a caller. Returns the seconds to wait where it asked a moment ago.
    pub(crate) fn take(&self, token: &str) -> Result<(), u32> {
        let now = Instant::now();
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, at| now.duration_since(*at) < PAUSE);
        if let Some(at) = asked.get(token) {
            let left = PAUSE.saturating_sub(now.duration_since(*at));
            return Err(u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
        }
        asked.insert(token.to_owned(), now);
        Ok(())
    }
}

/// A login that runs of a task get.
struct Login {
    host: String,
    username: String,
    /// Nothing where it cannot be decrypted.
    password: Option<Secret>,
    whose: ProbeLogin,
}

impl Login {
    fn is_key(&self) -> bool {
        self.password.as_ref().is_some_and(SshKey::is_key)
    }
}

/// Looks at all that `task` needs. `all`: also at the hosts of logins that are all tasks' and that nothing of the task
/// names. Without it the caller is limited to tasks.
pub(crate) async fn look(app: &App, task: &Task, all: bool) -> Result<TaskProbe, StoreError> {
    let begun = Instant::now();
    let logins = logins(app, &task.id).await?;
    let patterns = Patterns::new(logins.iter().filter_map(|login| login.password.as_ref()));
    let context = task.definition.context.as_deref();
    let git = match context.map(ContextSpec::parse) {
        Some(Ok(ContextSpec::Git(git))) if git.transport != GitTransport::File => Some(git),
        _ => None,
    };
    let looks = Looks {
        app,
        task: &task.definition.name,
        logins: &logins,
        limited: !all,
    };
    let hosts = hosts(task, &logins, git.as_ref(), all);
    let registries = futures::stream::iter(hosts)
        .map(|host| looks.registry(host))
        .buffered(PARALLEL)
        .collect::<Vec<Probe>>();
    let source = async {
        match &git {
            Some(git) => Some(looks.source(git).await),
            None => None,
        }
    };
    let (mut source, mut logins) = tokio::join!(source, registries);
    if !all {
        let mut blurred = false;
        for probe in source.iter_mut().chain(&mut logins) {
            blurred |= blur(probe);
        }
        if blurred {
            tokio::time::sleep_until((begun + LIMITED).into()).await;
        }
    }
    for probe in source.iter_mut().chain(&mut logins) {
        probe.message = patterns.mask(&probe.message);
        probe.help = probe.help.as_deref().map(|help| patterns.mask(help));
    }
    Ok(TaskProbe { source, logins })
}

/// Replaces what tells how a host fails by one answer for all of them. Returns `true` if the host fails.
fn blur(probe: &mut Probe) -> bool {
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
                message: "it cannot be used: it does not answer, or does not take the login".into(),
                help: Some(
                    "compare its name and its login; a token without a limit to tasks is shown more".into(),
                ),
                clock_ahead: None,
            };
            true
        }
    }
}

/// What runs of a task are given: its own logins, and those of all for other hosts.
async fn logins(app: &App, task: &str) -> Result<Vec<Login>, StoreError> {
    let mut rows = app.store.credentials_for(&[task, ""]).await?;
    rows.sort_by_key(|row| row.scope.is_empty());
    let mut logins: Vec<Login> = Vec::new();
    for row in rows {
        if logins.iter().any(|known| known.host == row.host) {
            continue;
        }
        let aad = credential_aad(&row.scope, &row.host);
        let whose = if row.scope.is_empty() {
            ProbeLogin::All
        } else {
            ProbeLogin::Task
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

/// The hosts that are asked whether they are registries.
fn hosts(task: &Task, logins: &[Login], git: Option<&GitUrl>, all: bool) -> BTreeSet<String> {
    let own = task.definition.registry.as_deref();
    let own = own.map(|registry| canonical_host(registry.split('/').next().unwrap_or(registry)));
    let source = git.map(|git| canonical_host(&host_of(git)));
    let stored = logins
        .iter()
        .filter(|login| all || login.whose == ProbeLogin::Task)
        .filter(|login| !login.is_key() && source.as_ref() != Some(&login.host))
        .map(|login| login.host.clone());
    // A limited caller must not see by the time how many hosts had to wait for others.
    let most = if all { HOSTS } else { PARALLEL };
    own.into_iter().chain(stored).take(most).collect()
}

/// The host of a repository as a login for it is stored: by HTTP with its port.
fn host_of(git: &GitUrl) -> String {
    let port = Url::parse(&git.url).ok().and_then(|url| url.port());
    match port {
        Some(port) => format!("{}:{port}", git.host),
        None => git.host.clone(),
    }
}

/// What all looks share.
struct Looks<'a> {
    app: &'a App,
    task: &'a str,
    logins: &'a [Login],
    /// The caller is limited to tasks.
    limited: bool,
}

impl Looks<'_> {
    /// Returns the longest time of one question.
    fn limit(&self) -> Duration {
        if self.limited { LIMITED } else { LIMIT }
    }

    /// Returns the rules for the address of a registry. A limited caller reaches only public ones and those that the
    /// operator or an administrator has named.
    fn addresses(&self, host: &str, login: Option<ProbeLogin>) -> AddressPolicy {
        let config = &self.app.config;
        let is_named = login == Some(ProbeLogin::All)
            || config.insecure_registries.iter().any(|named| named == host);
        if self.limited && !config.notify_private && !is_named {
            AddressPolicy::PublicOnly
        } else {
            AddressPolicy::NoMetadata
        }
    }

    /// The logins as those get them who ask.
    fn credentials(&self) -> Credentials {
        let passwords = self.logins.iter().filter(|login| !login.is_key());
        passwords.fold(Credentials::new(), |all, login| match &login.password {
            Some(password) => all.with(&login.host, login.username.clone(), password.clone()),
            None => all,
        })
    }

    fn set(&self, host: &str, whose: Option<ProbeLogin>) -> String {
        match whose {
            Some(ProbeLogin::All) => format!("`acrtask credential set {host} --username USER`"),
            _ => format!(
                "`acrtask credential set {host} --username USER --task {}`",
                self.task
            ),
        }
    }

    async fn source(&self, git: &GitUrl) -> Probe {
        let host = host_of(git);
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
            clock_ahead: None,
            host,
        };
        if let Some(broken) = self.broken(&probe.host) {
            return broken;
        }
        if ssh && login.is_none() {
            probe.outcome = ProbeOutcome::NoLogin;
            probe.message = format!("{} is reached by SSH, and there is no key for it", git.url);
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
                "{} is not at a public address, which this server does not connect to",
                probe.host
            );
            probe.help = Some(
                "start the server with `--allow-private-addresses`, if tasks may name hosts of its network".into(),
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
                time: self.limit(),
                ..Limits::default()
            },
            ..acrtask_source::Options::default()
        };
        let (read, ahead) = tokio::join!(
            acrtask_source::probe(git, &options),
            clock_of(git, private, &self.app.clock)
        );
        probe.clock_ahead = ahead;
        match read {
            Ok(moved) => {
                probe.message = match login {
                    Some(_) => format!("{} is read with the login for {}", git.url, probe.host),
                    None => format!("{} is read without a login", git.url),
                };
                if login.is_none() {
                    probe.outcome = ProbeOutcome::Open;
                }
                if let Some(moved) = moved {
                    probe.message = format!("{} has moved to {}", git.url, moved.url);
                    probe.help = Some(format!(
                        "`acrtask task update {} --context '{moved}'`, and point the repository's webhook to this server there",
                        self.task
                    ));
                }
            }
            Err(error) => {
                probe.outcome = outcome_of(&error);
                probe.message = acrtask_model::chain(&error);
                probe.help = match probe.outcome {
                    ProbeOutcome::Denied => Some(format!(
                        "give a login that may read it: {}",
                        self.set(&probe.host, probe.login)
                    )),
                    ProbeOutcome::Unreachable => Some(
                        "see whether the server reaches the host; runners, which fetch the files, may reach others".into(),
                    ),
                    _ => error.help(),
                };
            }
        }
        probe
    }

    /// What is said of a login that cannot be decrypted: a run would fail because of it.
    fn broken(&self, host: &str) -> Option<Probe> {
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
                self.set(host, Some(login.whose))
            )),
            clock_ahead: None,
        })
    }

    async fn registry(&self, host: String) -> Probe {
        if let Some(broken) = self.broken(&host) {
            return broken;
        }
        let login = self.logins.iter().find(|login| login.host == host);
        let mut probe = Probe {
            login: login.map(|login| login.whose),
            outcome: ProbeOutcome::Open,
            message: format!("{host} answers, and needs no login"),
            help: None,
            clock_ahead: None,
            host,
        };
        let asking = self.ask_registry(&mut probe);
        match tokio::time::timeout(self.limit(), asking).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.failed(&mut probe, &error),
            Err(_) => {
                probe.outcome = ProbeOutcome::Unreachable;
                probe.message =
                    format!("{} did not answer within {} s", probe.host, LIMIT.as_secs());
                probe.help = Some("see whether the server reaches it".into());
            }
        }
        probe
    }

    async fn ask_registry(&self, probe: &mut Probe) -> Result<(), RegistryError> {
        let settings = Settings {
            insecure: self.app.config.insecure_registries.clone(),
            addresses: self.addresses(&probe.host, probe.login),
        };
        let registry = Registry::new(self.credentials(), settings)?;
        let host = probe.host.clone();
        let before = self.app.clock.now_ms();
        let greeting = registry.greet(&host).await?;
        let date = greeting.date.as_deref();
        probe.clock_ahead = ahead(date, before, self.app.clock.now_ms());
        if !greeting.asks {
            return Ok(());
        }
        if probe.login.is_none() {
            probe.outcome = ProbeOutcome::NoLogin;
            probe.message = format!("{host} wants a login, and runs of the task are given none");
            probe.help = Some(format!(
                "{}; runners may have logins of their own",
                self.set(&host, None)
            ));
            return Ok(());
        }
        registry.log_in(&host).await?;
        probe.outcome = ProbeOutcome::Works;
        probe.message = format!("{host} takes the login");
        Ok(())
    }

    fn failed(&self, probe: &mut Probe, error: &RegistryError) {
        let host = &probe.host;
        probe.message = acrtask_model::chain(error);
        (probe.outcome, probe.help) = match error {
            RegistryError::NotFound { .. } if probe.login.is_some() => {
                probe.message = format!("{host} is no registry, and its login was not tried");
                (ProbeOutcome::NoRegistry, None)
            }
            RegistryError::NotFound { .. } => {
                probe.message = format!("{host} is the task's registry, and answers as none does");
                let update = format!("`acrtask task update {} --registry HOST`", self.task);
                (
                    ProbeOutcome::NoRegistry,
                    Some(format!("see whether its name is right: {update}")),
                )
            }
            RegistryError::Denied { .. } => (
                ProbeOutcome::Denied,
                Some(format!(
                    "it is wrong or has expired; set it again: {}",
                    self.set(host, probe.login)
                )),
            ),
            RegistryError::Unreachable { .. } => (
                ProbeOutcome::Unreachable,
                Some("see whether its name is right and the server reaches it; one without TLS is named by `acrtask serve --insecure-registry`".into()),
            ),
            RegistryError::RateLimited { .. } => (ProbeOutcome::NotTried, Some("try again later".into())),
            _ => (ProbeOutcome::Refused, Some("see whether its name is right".into())),
        };
    }
}

/// Whether a host has an address that is not public. What cannot be resolved is not known here.
async fn is_private(git: &GitUrl) -> bool {
    let bare = git.host.trim_start_matches('[').trim_end_matches(']');
    let resolving = net::resolve_public(bare, 0);
    match tokio::time::timeout(LIMIT, resolving).await {
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

/// How far the clock of a git host is ahead, by an answer to somebody without a login. SSH does not tell.
async fn clock_of(git: &GitUrl, private: bool, clock: &Clock) -> Option<i64> {
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
    let answer = client.get(url).timeout(LIMIT).send().await.ok()?;
    let date = answer.headers().get("date")?.to_str().ok()?;
    ahead(Some(date), before, clock.now_ms())
}

/// Seconds that a header `Date` is before the middle of the time in which it came.
fn ahead(date: Option<&str>, before: i64, after: i64) -> Option<i64> {
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
    fn clocks() {
        let date = Some("Tue, 15 Nov 1994 08:12:31 GMT");
        let at = 784_887_151_000;
        for (before, after, expected) in [
            (at, at + 900, 0),
            (at - 4_000, at + 4_000, 0),
            (at - 90_000, at - 90_000, 90),
            (at + 60_000, at + 61_000, -60),
        ] {
            assert_eq!(ahead(date, before, after), Some(expected));
        }
        assert_eq!(ahead(None, at, at), None);
        assert_eq!(ahead(Some("yesterday"), at, at), None);
    }
}
