//! Access to a repository: the policy, the pinned address, the login, and the environment of git.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
};

use acrtask_model::Secret;
use acrtask_registry::{AddressPolicy, Credential, net};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::process::Command;
use url::Url;

use super::ssh::{self, Ssh};
use crate::{
    GitCredential, Options, Origin, SshKey,
    error::{PRIVATE_ADDRESS_HELP, SourceError},
    spec::{GitTransport, GitUrl},
};

/// Environment variables that git inherits.
pub(super) const PASSED_VARIABLES: [&str; 4] = ["PATH", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Variables that git inherits only for contexts of the operator. A proxy resolves names on its
/// own.
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

/// File descriptor of the git configuration with the login.
const LOGIN_FD: i32 = 10;

/// Environment and login of git.
pub(super) struct Access {
    /// Environment variables, including configuration as variables. They contain no password.
    pub(super) environment: Vec<(String, String)>,
    /// Configuration with the login, in memory. `None` if the repository needs no login.
    login: Option<OwnedFd>,
    /// Connection settings of ssh, alive while git runs.
    pub(super) ssh: Option<Ssh>,
}

impl Access {
    /// Checks the policy for `url`, and prepares the access. `home` is a folder for this access
    /// alone. If `keeps_login` is `false`, as after some redirects, the repository gets no login.
    pub(super) async fn new(
        url: &GitUrl,
        keeps_login: bool,
        home: &Path,
        options: &Options,
    ) -> Result<Self, SourceError> {
        let pinned = check_policy(url, options).await?;
        let ssh = match url.transport {
            GitTransport::Ssh => Some(Ssh::new(url, home, pinned.as_ref(), options).await?),
            _ => None,
        };
        let credential = find_credential(url, options).filter(|_| keeps_login);
        let environment = build_environment(
            url,
            home,
            pinned.as_ref(),
            ssh.as_ref(),
            credential.is_some(),
            options,
        );
        let login = credential.map(|(username, password)| login_file(url, &username, &password));
        let login = login.transpose().map_err(|source| SourceError::Io {
            attempt: format!("store the login of {url} in memory"),
            source,
        })?;
        Ok(Self {
            environment,
            login,
            ssh,
        })
    }

    /// Sets the environment of `command`, and passes the login by a file descriptor.
    ///
    /// # Errors
    /// The descriptor cannot be duplicated.
    pub(super) fn apply(&self, command: &mut Command) -> io::Result<()> {
        command.env_clear().envs(self.environment.iter().cloned());
        if let Some(login) = &self.login {
            let mapping = FdMapping {
                parent_fd: login.try_clone()?,
                child_fd: LOGIN_FD,
            };
            command
                .as_std_mut()
                .fd_mappings(vec![mapping])
                .map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Writes a git configuration with the login to a file in memory.
///
/// A process list would show a value in the environment.
fn login_file(url: &GitUrl, username: &str, password: &Secret) -> io::Result<OwnedFd> {
    let login = basic_header(username, password);
    let mut file = File::from(memfd_create("login", MFdFlags::MFD_CLOEXEC)?);
    // The origin comes from a parsed URL, and contains neither quotes nor backslashes.
    write!(
        file,
        "[http \"{}\"]\n\textraHeader = Authorization: {login}\n",
        url_origin(&url.url)
    )?;
    Ok(file.into())
}

/// Returns the value of an `Authorization` header.
pub(super) fn basic_header(username: &str, password: &Secret) -> String {
    let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
    format!("Basic {encoded}")
}

#[allow(
    clippy::disallowed_methods,
    reason = "the variable belongs to a tool whose conventions apply here"
)]
fn build_environment(
    url: &GitUrl,
    home: &Path,
    pinned: Option<&PinnedHost>,
    ssh: Option<&Ssh>,
    has_login: bool,
    options: &Options,
) -> Vec<(String, String)> {
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
        // Keeps received packs unchanged, so that their size on disk is their download size.
        ("fetch.unpackLimit".into(), "1".into()),
        // A server with less than one kilobyte per second for a minute counts as dead.
        ("http.lowSpeedLimit".into(), "1000".into()),
        ("http.lowSpeedTime".into(), "60".into()),
    ];
    // Git sends its extra headers to the target of the first redirect, and does not check the new
    // address. `redirect.rs` follows redirects instead.
    config.push(("http.followRedirects".into(), "false".into()));
    if has_login {
        config.push(("include.path".into(), format!("/proc/self/fd/{LOGIN_FD}")));
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
    let proxies: &[&str] = if options.address_policy() == AddressPolicy::Any {
        &PROXIES
    } else {
        &[]
    };
    for name in PASSED_VARIABLES.iter().chain(proxies) {
        if let Ok(value) = std::env::var(name) {
            environment.push(((*name).into(), value));
        }
    }
    if let Some(ssh) = ssh {
        environment.push(("GIT_SSH_COMMAND".into(), ssh.shell_command()));
        let agent = ssh.agent.as_ref().map(|path| path.display().to_string());
        environment.extend(agent.map(|path| ("SSH_AUTH_SOCK".into(), path)));
    }
    if let Some(pin) = pinned
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
    environment
}

/// Host with the only addresses that git may connect to.
pub(super) struct PinnedHost {
    pub(super) host: String,
    pub(super) port: u16,
    addresses: String,
    pub(super) first: String,
}

/// Checks the policy of the origin. If the policy restricts addresses, resolves the host once.
async fn check_policy(url: &GitUrl, options: &Options) -> Result<Option<PinnedHost>, SourceError> {
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
                    "{}:// has neither encryption nor server authentication",
                    url.transport.name()
                ),
                "write https://",
            );
        }
        GitTransport::Ssh
            if options.ssh_agent.is_none() && ssh::find_key(url, options).is_none() =>
        {
            return refuse(
                "a task file cannot use this machine's SSH keys".into(),
                "write https://, store an SSH key as the credential of this host, or give the run an SSH agent",
            );
        }
        _ => {}
    }
    if options.address_policy() == AddressPolicy::Any {
        return Ok(None);
    }
    let port = url.port();
    let bare = url.host.trim_start_matches('[').trim_end_matches(']');
    match net::resolve_public(bare, port).await {
        Ok(addresses) => {
            let texts: Vec<String> = addresses
                .iter()
                .map(|address| address.ip().to_string())
                .collect();
            let first = texts.first().cloned().unwrap_or_default();
            Ok(Some(PinnedHost {
                host: url.host.clone(),
                port,
                addresses: texts.join(","),
                first,
            }))
        }
        Err(error) if error.is::<net::ForbiddenAddress>() => {
            refuse(error.to_string(), PRIVATE_ADDRESS_HELP)
        }
        Err(source) => Err(SourceError::Download {
            url: url.to_string(),
            source,
        }),
    }
}

/// Returns the login for `url`: the one in the URL, or else the one for exactly its host. Without
/// TLS only for loopback.
pub(super) fn find_credential(url: &GitUrl, options: &Options) -> Option<(String, Secret)> {
    let from_url = url.credential.as_ref();
    find_login(&Url::parse(&url.url).ok()?, from_url, options)
}

/// Returns the login for any URL, like [`find_credential`]. `from_url` is the login in the URL that
/// named it.
pub(crate) fn find_login(
    url: &Url,
    from_url: Option<&(String, Secret)>,
    options: &Options,
) -> Option<(String, Secret)> {
    let host = url.host_str()?;
    let safe = match url.scheme() {
        "https" => true,
        "http" => net::is_loopback(host),
        _ => false,
    };
    if !safe {
        return None;
    }
    let for_git = || {
        let same_host = |credential: &&GitCredential| credential.host.eq_ignore_ascii_case(host);
        let credential = options.git_credentials.iter().find(same_host)?;
        Some((credential.username.clone(), credential.password.clone()))
    };
    let for_any = || {
        let port = url.port();
        let host = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        match options.credentials.explicit(&host)? {
            Credential::Password { username, password } => {
                Some((username.clone(), password.clone()))
            }
            Credential::IdentityToken(_) => None,
        }
    };
    let found = from_url.cloned().or_else(for_git).or_else(for_any);
    // A private key in the place of a password is for ssh only, and must not be sent to a server.
    found.filter(|(_, password)| !SshKey::is_private_key(password))
}

/// Returns the scheme, host and port of a URL, as required in `http.<url>.*`.
fn url_origin(url: &str) -> String {
    Url::parse(url).map_or_else(
        |_| url.to_owned(),
        |url| format!("{}/", url.origin().ascii_serialization()),
    )
}
