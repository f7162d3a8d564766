//! Logins for private repositories, and options for a commit.

use std::{fmt, str::FromStr};

use acrtask_model::Secret;

use crate::spec::{GitTransport, GitUrl};

/// User and password, or a token instead, for a git host over https.
#[derive(Debug, Clone)]
pub struct GitCredential {
    /// Exact host of the URL: `github.com`.
    pub host: String,
    /// User name. Most forges accept any with a token.
    pub username: String,
    /// Password or token.
    pub password: Secret,
}

/// Private key for a git host over ssh, and the keys of the host.
#[derive(Debug, Clone)]
pub struct SshKey {
    /// Exact host of the URL: `git.example.com`. With a port, the key applies to this port only.
    pub host: String,
    /// Private key without a passphrase, as `ssh-keygen` writes it.
    pub private_key: Secret,
    /// Lines of a `known_hosts` file with the only keys that the host may have. If `None`, only
    /// hosts of [`SshKey::has_builtin_keys`] are accepted.
    pub known_hosts: Option<String>,
}

impl SshKey {
    /// Returns `true` if the password of a stored login is a private key. Every key in PEM begins
    /// with `-----BEGIN`.
    pub fn is_private_key(password: &Secret) -> bool {
        password.expose().trim_start().starts_with("-----BEGIN")
    }

    /// Parses the key of a stored login. `None` if it is a password or a token. Lines of a
    /// `known_hosts` file may follow the last line of the private key.
    pub fn from_login(host: &str, password: &Secret) -> Option<Self> {
        if !Self::is_private_key(password) {
            return None;
        }
        let text = password.expose();
        let end = text.find("-----END").map_or(text.len(), |at| {
            text[at..].find('\n').map_or(text.len(), |line| at + line)
        });
        let (private_key, known_hosts) = text.split_at(end);
        let known_hosts = known_hosts.trim();
        Some(Self {
            host: host.trim_start_matches("ssh://").to_owned(),
            private_key: Secret::new(private_key),
            known_hosts: (!known_hosts.is_empty()).then(|| known_hosts.to_owned()),
        })
    }

    /// Returns `true` if the keys of `host` are built in. [`SshKey::known_hosts`] may then be
    /// missing.
    pub fn has_builtin_keys(host: &str) -> bool {
        crate::git::has_builtin_keys(host)
    }

    /// Returns `true` if `url` uses ssh and the key is for its host.
    pub fn matches_url(&self, url: &GitUrl) -> bool {
        url.transport == GitTransport::Ssh && self.matches_host(&url.host, url.port())
    }

    /// Returns `true` if the key is for exactly this host and port.
    pub(crate) fn matches_host(&self, host: &str, port: u16) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        [
            host.to_owned(),
            bare.to_owned(),
            format!("{host}:{port}"),
            format!("[{bare}]:{port}"),
        ]
        .iter()
        .any(|name| self.host.eq_ignore_ascii_case(name))
    }
}

/// Full name of a commit: 40 hexadecimal digits, or 64 in repositories with SHA-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitId(String);

impl CommitId {
    /// Returns the digits, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Error for a text that is not a full commit name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the full name of a commit, which is 40 or 64 hexadecimal digits")]
pub struct InvalidCommitId(String);

impl FromStr for CommitId {
    type Err = InvalidCommitId;

    fn from_str(text: &str) -> Result<Self, InvalidCommitId> {
        let full = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if full {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(InvalidCommitId(text.chars().take(80).collect()))
        }
    }
}

/// Options for a git repository, in addition to its URL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitOptions {
    /// Exact commit to check out, regardless of the URL's reference.
    pub commit: Option<CommitId>,
    /// Check out submodules, including nested ones.
    pub submodules: bool,
    /// Replace the pointers of Git LFS by their files.
    pub lfs: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_id_requires_a_full_name() {
        for (text, good) in [
            ("a".repeat(40), true),
            ("A".repeat(64), true),
            ("a".repeat(39), false),
            ("g".repeat(40), false),
            (String::new(), false),
            ("--upload-pack=touch".into(), false),
            ("HEAD".into(), false),
            (format!("{}\n", "a".repeat(39)), false),
        ] {
            assert_eq!(text.parse::<CommitId>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn from_login_detects_keys_and_binds_them_to_one_host() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----";
        let of = |host: &str| SshKey::from_login(host, &Secret::new(key)).unwrap();
        assert!(SshKey::from_login("h", &Secret::new("ghp_token")).is_none());
        for (behind, known_hosts) in [
            ("", None),
            ("\n", None),
            ("\r\n \n", None),
            ("\nh ssh-ed25519 AAAA\n", Some("h ssh-ed25519 AAAA")),
            ("\n\nh x y\r\nh z\n", Some("h x y\r\nh z")),
        ] {
            let read = SshKey::from_login("h", &Secret::new(format!("\n{key}{behind}"))).unwrap();
            assert_eq!(read.private_key.expose().trim(), key, "{behind:?}");
            assert_eq!(read.known_hosts.as_deref(), known_hosts, "{behind:?}");
        }
        for (stored, host, port, good) in [
            ("git.example.com", "git.example.com", 22, true),
            ("git.example.com", "GIT.example.com", 2222, true),
            ("ssh://git.example.com", "git.example.com", 22, true),
            ("git.example.com:2222", "git.example.com", 2222, true),
            ("git.example.com:2222", "git.example.com", 22, false),
            ("git.example.com", "git.example.com.evil.example", 22, false),
            ("example.com", "git.example.com", 22, false),
            ("::1", "[::1]", 22, true),
            ("[::1]:2222", "[::1]", 2222, true),
        ] {
            assert_eq!(
                of(stored).matches_host(host, port),
                good,
                "{stored} {host} {port}"
            );
        }
    }
}
