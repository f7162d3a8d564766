//! Checking a git repository out, through the program `git`.
//!
//! The program rather than libgit2, for the protocols: it speaks ssh as the user has it set up, and shallow
//! fetches of single references work with every server.
//!
//! It runs with an environment of its own: no configuration of the system or the user, no prompts, no
//! hooks, no templates, no credential helpers; of the protocols only the one that the URL names. Configuration
//! goes in as `GIT_CONFIG_KEY_n` and `GIT_CONFIG_VALUE_n`, passwords too, as a header for the one host: the
//! environment of a process is readable by its user alone, arguments are readable by all. What a
//! caller named stands behind `--`.

use std::{
    io,
    path::{Path, PathBuf},
};

use acrtask_model::Secret;
use acrtask_registry::{AddressPolicy, Credential, net};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::process::Command;
use url::Url;

use crate::{
    GitCredential, Options, Origin,
    error::SourceError,
    facts::GitFacts,
    paths,
    process::{self, Output},
    spec::{GitTransport, GitUrl},
};

/// How much of `git ls-remote` is read, in bytes: about half a million references.
const MAX_REFS: u64 = 64 << 20;
/// The reference that a fetch is stored under.
const FETCHED: &str = "refs/acrtask/fetched";
/// Variables that are passed on to git.
const PASSED: [&str; 4] = ["PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Those that are passed on only for the operator's own contexts: a proxy resolves names on its own.
const PROXIES: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// Checks `url` out below `scratch`. Gives the folder that the URL names, and facts.
pub(crate) async fn check_out(
    url: &GitUrl,
    scratch: &Path,
    options: &Options,
) -> Result<(PathBuf, GitFacts), SourceError> {
    let git = Git::new(url, scratch, options).await?;
    let facts = git.fetch(url.reference.as_deref()).await?;
    let root = std::fs::canonicalize(&git.tree).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", git.tree.display()),
        source,
    })?;
    let Some(folder) = &url.folder else {
        return Ok((root, facts));
    };
    let fail = |reason: String| SourceError::SubFolder {
        context: git.url.clone(),
        folder: folder.clone(),
        reason,
    };
    let path = paths::inside(&root, Path::new(folder)).map_err(|error| fail(error.to_string()))?;
    match path.metadata() {
        Ok(meta) if meta.is_dir() => Ok((path, facts)),
        Ok(_) => Err(fail("it is not a folder".into())),
        Err(_) => Err(fail("there is no such folder".into())),
    }
}

/// Git, set up for one repository.
struct Git {
    url: String,
    tree: PathBuf,
    environment: Vec<(String, String)>,
}

impl Git {
    async fn new(url: &GitUrl, scratch: &Path, options: &Options) -> Result<Self, SourceError> {
        let pinned = check_policy(url, options).await?;
        let tree = scratch.join("tree");
        let home = scratch.join("home");
        for folder in [&tree, &home] {
            std::fs::create_dir(folder).map_err(|source| SourceError::Io {
                attempt: format!("make the folder {}", folder.display()),
                source,
            })?;
        }
        let credential = credential(url, options);
        let mut config: Vec<(String, String)> = vec![
            ("protocol.allow".into(), "never".into()),
            (
                format!("protocol.{}.allow", url.transport.name()),
                "always".into(),
            ),
            ("core.hooksPath".into(), "/dev/null".into()),
            ("core.fsmonitor".into(), "false".into()),
            ("core.autocrlf".into(), "false".into()),
            ("core.askPass".into(), String::new()),
            ("credential.helper".into(), String::new()),
            ("submodule.recurse".into(), "false".into()),
            ("transfer.bundleURI".into(), "false".into()),
            ("maintenance.auto".into(), "false".into()),
            ("gc.auto".into(), "0".into()),
            // Less than a kilobyte a second for a minute is a dead server.
            ("http.lowSpeedLimit".into(), "1000".into()),
            ("http.lowSpeedTime".into(), "60".into()),
        ];
        // Git sends its extra headers on to where the first redirect leads, so that there is none to follow
        // where there is a password; nor where the new host's address would go unchecked.
        let follow = credential.is_none() && options.addresses() == AddressPolicy::Any;
        config.push((
            "http.followRedirects".into(),
            if follow { "initial" } else { "false" }.into(),
        ));
        if let Some((username, password)) = &credential {
            let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
            config.push((
                format!("http.{}.extraHeader", origin(&url.url)),
                format!("Authorization: Basic {encoded}"),
            ));
        }
        let mut environment: Vec<(String, String)> = vec![
            ("HOME".into(), home.display().to_string()),
            ("LC_ALL".into(), "C".into()),
            ("GIT_CONFIG_NOSYSTEM".into(), "1".into()),
            ("GIT_CONFIG_GLOBAL".into(), "/dev/null".into()),
            ("GIT_TERMINAL_PROMPT".into(), "0".into()),
            ("GIT_SSH_VARIANT".into(), "ssh".into()),
            // Attributes of the machine could name filters.
            ("GIT_ATTR_NOSYSTEM".into(), "1".into()),
            ("GIT_LFS_SKIP_SMUDGE".into(), "1".into()),
        ];
        let proxies: &[&str] = if options.addresses() == AddressPolicy::Any {
            &PROXIES
        } else {
            &[]
        };
        for name in PASSED.iter().chain(proxies) {
            if let Ok(value) = std::env::var(name) {
                environment.push(((*name).into(), value));
            }
        }
        environment.extend(ssh(options, pinned.as_ref()));
        if let Some(pin) = &pinned
            && matches!(url.transport, GitTransport::Https | GitTransport::Http)
        {
            config.push((
                "http.curloptResolve".into(),
                format!("{}:{}:{}", pin.host, pin.port, pin.addresses),
            ));
        }
        environment.push(("GIT_CONFIG_COUNT".into(), config.len().to_string()));
        for (n, (key, value)) in config.into_iter().enumerate() {
            environment.push((format!("GIT_CONFIG_KEY_{n}"), key));
            environment.push((format!("GIT_CONFIG_VALUE_{n}"), value));
        }
        Ok(Self {
            url: url.url.clone(),
            tree,
            environment,
        })
    }

    async fn run(&self, args: &[&str]) -> Result<Output, SourceError> {
        let mut command = Command::new("git");
        command
            .current_dir(&self.tree)
            .args(args)
            .env_clear()
            .envs(self.environment.iter().cloned());
        process::run(command, MAX_REFS)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => SourceError::NoGit {
                    url: self.url.clone(),
                    source,
                },
                _ => SourceError::Io {
                    attempt: format!("run git for {}", self.url),
                    source,
                },
            })
    }

    /// Runs git, and takes anything but success for an error.
    async fn must(&self, attempt: &str, args: &[&str]) -> Result<Output, SourceError> {
        let output = self.run(args).await?;
        if output.success {
            return Ok(output);
        }
        Err(SourceError::Git {
            attempt: format!("{attempt} {}", self.url),
            message: first_cause(&output.stderr),
            help: advice(&output.stderr),
        })
    }

    async fn fetch(&self, reference: Option<&str>) -> Result<GitFacts, SourceError> {
        self.must(
            "make a repository for",
            &["init", "--quiet", "--template=", "."],
        )
        .await?;
        let mut facts = GitFacts {
            repository: Some(self.url.clone()),
            ..GitFacts::default()
        };
        match self.look_up(reference).await? {
            Some(found) => {
                let refspec = format!("+{}:{FETCHED}", found.name);
                self.fetch_refs(&["--depth=1"], &[&refspec]).await?;
                facts.branch = found.branch;
                facts.tag = found.tag;
            }
            None => {
                let reference = reference.unwrap_or("HEAD");
                let missing = || SourceError::NoSuchReference {
                    url: self.url.clone(),
                    reference: reference.into(),
                };
                if !is_commit(reference) {
                    return Err(missing());
                }
                self.fetch_commit(reference).await?.ok_or_else(missing)?;
            }
        }
        let commit = self
            .revision(FETCHED)
            .await?
            .ok_or_else(|| SourceError::NoSuchReference {
                url: self.url.clone(),
                reference: reference.unwrap_or("HEAD").into(),
            })?;
        self.must(
            "check out",
            &["checkout", "--quiet", "--force", "--detach", &commit],
        )
        .await?;
        facts.commit = Some(commit);
        Ok(facts)
    }

    async fn fetch_refs(&self, options: &[&str], refspecs: &[&str]) -> Result<(), SourceError> {
        let args = fetch_args(options, &self.url, refspecs);
        self.must("fetch", &args).await.map(drop)
    }

    /// Fetches a commit by its name. Servers need not give out what is no reference's tip; then everything is
    /// fetched, which also finds a shortened name.
    async fn fetch_commit(&self, commit: &str) -> Result<Option<()>, SourceError> {
        if matches!(commit.len(), 40 | 64) {
            let refspec = format!("+{commit}:{FETCHED}");
            let args = fetch_args(&["--depth=1"], &self.url, &[&refspec]);
            if self.run(&args).await?.success {
                return Ok(Some(()));
            }
        }
        let all = [
            "+refs/heads/*:refs/acrtask/heads/*",
            "+refs/tags/*:refs/acrtask/tags/*",
        ];
        self.fetch_refs(&[], &all).await?;
        let Some(full) = self.revision(commit).await? else {
            return Ok(None);
        };
        self.must("name a commit of", &["update-ref", FETCHED, &full])
            .await?;
        Ok(Some(()))
    }

    /// The full name of the commit that `name` stands for in the fetched repository.
    async fn revision(&self, name: &str) -> Result<Option<String>, SourceError> {
        let commit = format!("{name}^{{commit}}");
        let output = self
            .run(&[
                "rev-parse",
                "--quiet",
                "--verify",
                "--end-of-options",
                &commit,
            ])
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok((output.success && is_commit(&text)).then_some(text))
    }

    /// Asks the server what `reference` is.
    async fn look_up(&self, reference: Option<&str>) -> Result<Option<Found>, SourceError> {
        let mut args = vec!["ls-remote", "--symref", "--", &self.url];
        let names = reference.map_or_else(|| vec!["HEAD".to_owned()], candidates);
        args.extend(names.iter().map(String::as_str));
        let output = self.must("read the references of", &args).await?;
        if output.stdout.len() as u64 > MAX_REFS {
            return Err(SourceError::TooLarge {
                context: self.url.clone(),
                limit: MAX_REFS,
                unit: "bytes of references",
            });
        }
        let listed = String::from_utf8_lossy(&output.stdout);
        let found = choose(&names, &listed);
        if found.is_none() && reference.is_none() {
            return Err(SourceError::Git {
                attempt: format!("fetch {}", self.url),
                message: "the repository is empty, or its default branch does not exist".into(),
                help: Some("name a branch: URL#BRANCH".into()),
            });
        }
        Ok(found)
    }
}

fn fetch_args<'a>(options: &[&'a str], url: &'a str, refspecs: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-recurse-submodules",
        "--no-write-fetch-head",
        "--no-auto-maintenance",
    ];
    args.extend(options);
    args.extend(["--", url]);
    args.extend(refspecs);
    args
}

/// A reference that a server has.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// In full, as it is fetched.
    name: String,
    branch: Option<String>,
    tag: Option<String>,
}

/// What `reference` may be in full, most likely first: a branch goes before a tag, as for `git checkout`.
fn candidates(reference: &str) -> Vec<String> {
    if reference.starts_with("refs/") || reference == "HEAD" {
        return vec![reference.to_owned()];
    }
    ["refs/heads/", "refs/tags/", "refs/"]
        .iter()
        .map(|prefix| format!("{prefix}{reference}"))
        .collect()
}

/// The first of `names` in the output of `git ls-remote --symref`.
fn choose(names: &[String], listed: &str) -> Option<Found> {
    let lines: Vec<(&str, &str)> = listed
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let name = names.iter().find(|name| {
        lines
            .iter()
            .any(|(left, right)| right == name && !left.starts_with("ref: "))
    })?;
    // Of HEAD the server says what it points at.
    let target = lines
        .iter()
        .find_map(|(left, right)| left.strip_prefix("ref: ").filter(|_| right == name));
    let full = target.unwrap_or(name);
    Some(Found {
        name: name.clone(),
        branch: full.strip_prefix("refs/heads/").map(str::to_owned),
        tag: full.strip_prefix("refs/tags/").map(str::to_owned),
    })
}

/// Whether it can be a commit's name, in full or shortened.
fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A host with the one set of addresses that may be connected to.
struct Pinned {
    host: String,
    port: u16,
    addresses: String,
    first: String,
}

/// Refuses what the origin may not do. Where addresses are restricted, resolves the host, once.
async fn check_policy(url: &GitUrl, options: &Options) -> Result<Option<Pinned>, SourceError> {
    let refuse = |reason: String, help: &str| {
        Err(SourceError::Refused {
            context: url.to_string(),
            reason,
            help: help.into(),
        })
    };
    if options.origin == Origin::Operator {
        return Ok(None);
    }
    match url.transport {
        GitTransport::File => {
            return refuse(
                "a task file cannot name a path of this machine".into(),
                "name an https:// URL",
            );
        }
        GitTransport::Http | GitTransport::Git if !net::is_loopback(&url.host) => {
            return refuse(
                format!(
                    "{}:// has neither encryption nor a way to know the server",
                    url.transport.name()
                ),
                "write https://",
            );
        }
        GitTransport::Ssh if options.ssh_agent.is_none() => {
            return refuse(
                "a task file does not get this machine's SSH keys".into(),
                "write https://, or let the run use an SSH agent",
            );
        }
        _ => {}
    }
    if options.addresses() == AddressPolicy::Any {
        return Ok(None);
    }
    let port = Url::parse(&url.url)
        .ok()
        .and_then(|url| url.port_or_known_default())
        .unwrap_or(22);
    let bare = url.host.trim_start_matches('[').trim_end_matches(']');
    match net::resolve_public(bare, port).await {
        Ok(addresses) => {
            let texts: Vec<String> = addresses
                .iter()
                .map(|address| address.ip().to_string())
                .collect();
            let first = texts.first().cloned().unwrap_or_default();
            Ok(Some(Pinned {
                host: url.host.clone(),
                port,
                addresses: texts.join(","),
                first,
            }))
        }
        Err(error) if error.is::<net::ForbiddenAddress>() => refuse(
            error.to_string(),
            "the operator of this machine can allow private addresses",
        ),
        Err(source) => Err(SourceError::Download {
            url: url.to_string(),
            source,
        }),
    }
}

/// How ssh is started. A task file's context gets the agent's keys and nothing of the operator's configuration;
/// the host's key has to be known in both cases.
fn ssh(options: &Options, pinned: Option<&Pinned>) -> Vec<(String, String)> {
    let mut command = String::from("ssh -o BatchMode=yes");
    if options.origin == Origin::TaskFile {
        command += " -F /dev/null -o IdentityFile=none -o ProxyCommand=none";
    }
    if let Some(pin) = pinned {
        // Both come from checks: an address, and a host that the URL's grammar let through.
        command += &format!(
            " -o HostName={} -o HostKeyAlias='{}'",
            pin.first,
            pin.host.replace('\'', "")
        );
    }
    let mut variables = vec![("GIT_SSH_COMMAND".into(), command)];
    let inherited = || {
        std::env::var("SSH_AUTH_SOCK")
            .ok()
            .filter(|_| options.origin == Origin::Operator)
    };
    let agent = options
        .ssh_agent
        .as_ref()
        .map(|path| path.display().to_string());
    variables.extend(
        agent
            .or_else(inherited)
            .map(|path| ("SSH_AUTH_SOCK".into(), path)),
    );
    variables
}

/// The password for `url`: the one that stood in it, else the one for exactly its host. In clear only to this machine.
fn credential(url: &GitUrl, options: &Options) -> Option<(String, Secret)> {
    let safe = match url.transport {
        GitTransport::Https => true,
        GitTransport::Http => net::is_loopback(&url.host),
        GitTransport::Ssh | GitTransport::Git | GitTransport::File => false,
    };
    if !safe {
        return None;
    }
    let for_git = || {
        let same_host = |one: &&GitCredential| one.host.eq_ignore_ascii_case(&url.host);
        let one = options.git_credentials.iter().find(same_host)?;
        Some((one.username.clone(), one.password.clone()))
    };
    let for_any = || {
        let port = Url::parse(&url.url).ok().and_then(|url| url.port());
        let host = port.map_or_else(|| url.host.clone(), |port| format!("{}:{port}", url.host));
        match options.credentials.given(&host)? {
            Credential::Password { username, password } => {
                Some((username.clone(), password.clone()))
            }
            Credential::IdentityToken(_) => None,
        }
    };
    url.credential.clone().or_else(for_git).or_else(for_any)
}

/// Scheme, host and port of a URL, as `http.<url>.*` wants it.
fn origin(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| url.to_owned(),
        |url| format!("{}/", url.origin().ascii_serialization()),
    )
}

/// The line of git's output that says most.
fn first_cause(stderr: &str) -> String {
    let lines = || {
        stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
    };
    let telling = lines().find(|line| {
        ["fatal:", "error:", "ERROR:", "remote:"]
            .iter()
            .any(|prefix| line.starts_with(prefix))
            || line.contains("Permission denied")
            || line.contains("Host key verification")
    });
    let line = telling
        .or_else(|| lines().next_back())
        .unwrap_or("git says nothing");
    line.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// What to do about git's commonest failures.
fn advice(stderr: &str) -> Option<String> {
    let table = [
        (
            "could not read Username",
            "the repository does not exist, or is private: give a credential for its host",
        ),
        (
            "Authentication failed",
            "check the credential for this host: it is wrong or expired",
        ),
        (
            "The requested URL returned error: 403",
            "the credential for this host does not allow this",
        ),
        (
            "not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Repository not found",
            "check the URL; a private repository needs a credential for its host",
        ),
        (
            "Permission denied (publickey",
            "load a key that the host knows into the SSH agent",
        ),
        (
            "Host key verification failed",
            "connect once with ssh to make the host known",
        ),
        (
            "Could not resolve host",
            "check the host's name and the network",
        ),
        (
            "dubious ownership",
            "the repository belongs to another user of this machine",
        ),
        (
            "unable to update url base from redirection",
            "write the URL that the server redirects to",
        ),
    ];
    table
        .iter()
        .find(|(sign, _)| stderr.contains(sign))
        .map(|(_, help)| (*help).to_owned())
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
