//! Start of ssh, its keys, and the keys of hosts.
//!
//! A configured SSH key is never stored in a file. An agent of the fetch receives it through a
//! pipe. The agent drops the key at the time limit of the fetch, and ends with the fetch.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::Url;

use super::access::{PASSED_VARIABLES, PinnedHost};
use crate::{
    Options, Origin, SshKey,
    error::SourceError,
    process,
    spec::{GitTransport, GitUrl},
};

/// Maximum length of a socket's path, in bytes, with some reserve.
const MAX_SOCKET: usize = 100;
/// Maximum wait for the start of the agent.
const AGENT_START: Duration = Duration::from_secs(5);

/// Published keys of popular hosts:
/// <https://docs.github.com/authentication/keeping-your-account-and-data-secure/githubs-ssh-key-fingerprints>,
/// <https://docs.gitlab.com/user/gitlab_com/#ssh-known_hosts-entries>,
/// <https://bitbucket.org/site/ssh>, <https://docs.codeberg.org/security/ssh-fingerprint/>, and the
/// settings of Azure DevOps.
const WELL_KNOWN: [(&str, &str); 6] = [
    (
        "github.com",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
    ),
    (
        "github.com",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5YRrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=",
    ),
    (
        "gitlab.com",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAfuCHKVTjquxvt6CM6tdG4SLp1Btn/nOeHHE5UOzRdf",
    ),
    (
        "bitbucket.org",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIazEu89wgQZ4bqs3d63QSMzYVa0MuJ2e2gKTKqu+UUO",
    ),
    (
        "codeberg.org",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIVIC02vnjFyL+I4RHfvIGNtOgJMe769VTF1VR4EB3ZB",
    ),
    (
        "ssh.dev.azure.com",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7Hr1oTWqNqOlzGJOfGJ4NakVyIzf1rXYd4d7wo6jBlkLvCA4odBlL0mDUyZ0/QUfTTqeu+tm22gOsv+VrVTMk6vwRU75gY/y9ut5Mb3bR5BV58dKXyq9A9UeB5Cakehn5Zgm6x1mKoVyf+FFn26iYqXJRgzIZZcZ5V6hrE0Qg39kZm4az48o0AUbf6Sp4SLdvnuMa2sVNwHBboS7EJkm57XQPVU3/QpyNLHbWDdzwtrlS+ez30S3AdYhLKEOxAG8weOnyrtLJAUen9mTkol8oII1edf7mWWbWVf0nBmly21+nZcmCTISQBtdcyPaEno7fFQMDD26/s0lfKob4Kw8H",
    ),
];

/// Returns `true` if the keys of `host` are built in.
pub(crate) fn has_builtin_keys(host: &str) -> bool {
    WELL_KNOWN
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case(host))
}

/// Returns the key for the host of `url`. A key for its port precedes a key for all ports.
pub(super) fn find_key<'o>(url: &GitUrl, options: &'o Options) -> Option<&'o SshKey> {
    if url.transport != GitTransport::Ssh {
        return None;
    }
    let port = url.port();
    let of_host = || {
        let keys = options.ssh_keys.iter();
        keys.filter(|key| key.matches_host(&url.host, port))
    };
    let of_port = format!(":{port}");
    of_host()
        .find(|key| key.host.ends_with(&of_port))
        .or_else(|| of_host().next())
}

/// Command line of ssh, for git.
pub(super) struct Ssh {
    /// Options of `ssh`, one word each.
    pub(super) options: Vec<String>,
    /// Socket of the agent.
    pub(super) agent: Option<PathBuf>,
    /// `true` if the user gave a key for the host.
    pub(super) own_key: bool,
    /// Agent that ends with this value.
    _running: Option<Agent>,
}

impl Ssh {
    /// Prepares ssh for `url`. Without a key for the host, contexts of the operator use ssh with
    /// its configuration. Other contexts use only the given agent, without the operator's
    /// configuration. The key of the host must always be known.
    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    pub(super) async fn new(
        url: &GitUrl,
        home: &Path,
        pinned: Option<&PinnedHost>,
        options: &Options,
    ) -> Result<Self, SourceError> {
        let key = find_key(url, options);
        let mut words = vec!["BatchMode=yes".to_owned()];
        if options.origin == Origin::TaskFile || key.is_some() {
            words.extend(
                [
                    "IdentityFile=none",
                    "ProxyCommand=none",
                    "StrictHostKeyChecking=yes",
                    "UpdateHostKeys=no",
                    "ConnectTimeout=30",
                    "ServerAliveInterval=15",
                ]
                .map(str::to_owned),
            );
        }
        if let Some(pin) = pinned {
            // The checks validated both: the address, and the host by the grammar of the URL.
            let bare = pin.host.trim_start_matches('[').trim_end_matches(']');
            let alias = match pin.port {
                22 => bare.to_owned(),
                port => format!("[{bare}]:{port}"),
            };
            words.push(format!("HostName={}", pin.first));
            words.push(format!("HostKeyAlias={alias}"));
        }
        let mut running = None;
        if let Some(key) = key {
            let file = write_host_keys(url, key, home)?;
            words.push(format!("UserKnownHostsFile={}", quote_config_path(&file)?));
            words.push("GlobalKnownHostsFile=/dev/null".into());
            words.push("PreferredAuthentications=publickey".into());
            running = Some(Agent::start(key, home, options.limits.time).await?);
        }
        let inherited = || {
            let set = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
            set.filter(|_| options.origin == Origin::Operator)
        };
        let agent = match &running {
            Some(agent) => Some(agent.socket.clone()),
            None => options.ssh_agent.clone().or_else(inherited),
        };
        let mut all = Vec::new();
        if options.origin == Origin::TaskFile || key.is_some() {
            all.extend(["-F".to_owned(), "/dev/null".to_owned()]);
        }
        all.extend(words.into_iter().flat_map(|word| ["-o".to_owned(), word]));
        Ok(Self {
            options: all,
            agent,
            own_key: key.is_some(),
            _running: running,
        })
    }

    /// Returns the command `ssh` to the host of `url`. The caller adds the remote command as the
    /// last argument.
    pub(super) fn command_to(&self, url: &GitUrl) -> Command {
        let login = match Url::parse(&url.url) {
            Ok(parsed) if parsed.has_host() => {
                let bare = url.host.trim_start_matches('[').trim_end_matches(']');
                match parsed.username() {
                    "" => bare.to_owned(),
                    user => format!("{user}@{bare}"),
                }
            }
            _ => url.url.split(':').next().unwrap_or_default().to_owned(),
        };
        let mut command = Command::new("ssh");
        command
            .args(&self.options)
            .args(["-p", &url.port().to_string(), "--", &login]);
        command
    }

    /// Returns the value of `GIT_SSH_COMMAND`, which git passes to a shell.
    pub(super) fn shell_command(&self) -> String {
        let words = self.options.iter().map(|word| shell_quote(word));
        std::iter::once("ssh".to_owned())
            .chain(words)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Quotes a word for a shell.
pub(super) fn shell_quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Quotes a path for the configuration of ssh.
fn quote_config_path(path: &Path) -> Result<String, SourceError> {
    let text = path.to_str().filter(|text| !text.contains(['"', '\n']));
    let text = text.ok_or_else(|| SourceError::Io {
        attempt: format!("give ssh the path {}", path.display()),
        source: std::io::Error::other("it contains a `\"` or is not UTF-8"),
    })?;
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// Writes the permitted keys of the host to a file.
fn write_host_keys(url: &GitUrl, key: &SshKey, home: &Path) -> Result<PathBuf, SourceError> {
    let built_in = || {
        let lines: String = WELL_KNOWN
            .iter()
            .filter(|(host, _)| host.eq_ignore_ascii_case(&url.host) && url.port() == 22)
            .map(|(host, key)| format!("{host} {key}\n"))
            .collect();
        (!lines.is_empty()).then_some(lines)
    };
    let given = key.known_hosts.as_ref().map(|lines| format!("{lines}\n"));
    let lines = given.or_else(built_in).ok_or_else(|| SourceError::Refused {
        context: url.to_string(),
        reason: format!("the host key of {} is unknown, although an SSH key for it exists", url.host),
        help: format!(
            "add the host's known_hosts lines to the key: run `ssh-keyscan -p {} {}`, and compare the result with the keys that the host publishes",
            url.port(),
            url.host
        ),
    })?;
    let file = home.join("known_hosts");
    std::fs::write(&file, lines).map_err(|source| SourceError::Io {
        attempt: format!("write {}", file.display()),
        source,
    })?;
    Ok(file)
}

/// Running `ssh-agent` with one key.
struct Agent {
    socket: PathBuf,
    /// Process that is killed on drop.
    _child: Child,
    _folder: Option<TempDir>,
}

impl Agent {
    #[allow(
        clippy::disallowed_methods,
        reason = "the variable belongs to a tool whose conventions apply here"
    )]
    async fn start(key: &SshKey, home: &Path, limit: Duration) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Io {
            attempt: "start `ssh-agent` and `ssh-add`, which belong to OpenSSH's client".into(),
            source,
        };
        let mut socket = home.join("agent");
        let mut folder = None;
        if socket.as_os_str().len() > MAX_SOCKET {
            let short = tempfile::tempdir().map_err(failed)?;
            socket = short.path().join("agent");
            folder = Some(short);
        }
        let environment = || {
            let passed = PASSED_VARIABLES
                .iter()
                .filter_map(|name| Some((*name, std::env::var_os(name)?)));
            passed.chain([("HOME", home.into())])
        };
        let child = Command::new("ssh-agent")
            .args(["-D", "-t", &(limit.as_secs() + 1).to_string(), "-a"])
            .arg(&socket)
            .env_clear()
            .envs(environment())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let agent = Self {
            socket,
            _child: child,
            _folder: folder,
        };
        agent.wait_until_ready().await.map_err(failed)?;
        let mut command = Command::new("ssh-add");
        command
            .args(["-q", "-"])
            .env_clear()
            .envs(environment())
            .env("SSH_AUTH_SOCK", &agent.socket)
            // No person can enter a passphrase.
            .env("SSH_ASKPASS_REQUIRE", "force")
            .env("SSH_ASKPASS", "false");
        let text = key.private_key.expose().replace("\r\n", "\n");
        let text = format!("{}\n", text.trim());
        let added = process::run_with_input(command, text.as_bytes(), 1 << 10);
        if added.await.map_err(failed)?.success {
            return Ok(agent);
        }
        Err(SourceError::Refused {
            context: format!("ssh://{}", key.host),
            reason: "the SSH key for the host is unreadable, or has a passphrase".into(),
            help: "write a private key as `ssh-keygen -N ''` creates it; `ssh-keygen -p` removes a passphrase".into(),
        })
    }

    /// Waits until the agent accepts connections.
    async fn wait_until_ready(&self) -> std::io::Result<()> {
        let connecting = async {
            loop {
                match tokio::net::UnixStream::connect(&self.socket).await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let connected = tokio::time::timeout(AGENT_START, connecting).await;
        connected.map_err(|_| std::io::Error::other("the agent does not accept connections"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_preserves_words_and_paths() {
        for (word, expected) in [
            ("BatchMode=yes", "BatchMode=yes"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(touch x)", "'$(touch x)'"),
            ("", "''"),
        ] {
            assert_eq!(shell_quote(word), expected);
        }
        assert_eq!(
            quote_config_path(Path::new("/a b/%h")).unwrap(),
            "\"/a b/%%h\""
        );
        assert!(quote_config_path(Path::new("/a\"b")).is_err());
    }

    /// Compares the built-in keys with the published fingerprints.
    #[test]
    fn builtin_keys_match_the_published_fingerprints() {
        use base64::{
            Engine as _,
            engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
        };
        use sha2::{Digest as _, Sha256};
        let published = [
            "+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU",
            "p2QAMXNIC1TJYWeIOttrVc98/R1BUFWu3/LiyKgUfQM",
            "eUXGGm1YGsMAS7vkcx6JOJdOGHPem5gQp4taiCfCLB8",
            "ybgmFkzwOSotHTHLJgHO0QN8L0xErw6vd0VhFA9m3SM",
            "mIlxA9k46MmM6qdJOdMnAQpzGxF4WIVVL+fj+wZbw0g",
            "ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og",
        ];
        for ((host, key), expected) in WELL_KNOWN.iter().zip(published) {
            let blob = STANDARD.decode(key.split(' ').nth(1).unwrap()).unwrap();
            assert_eq!(
                STANDARD_NO_PAD.encode(Sha256::digest(blob)),
                expected,
                "{host}"
            );
        }
    }
}
