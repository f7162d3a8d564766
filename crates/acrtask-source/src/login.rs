//! What opens a private repository, and which commit of it is wanted.

use std::{fmt, str::FromStr};

use acrtask_model::Secret;

use crate::spec::{GitTransport, GitUrl};

/// A user and a password, or a token in its place, for a git host over https.
#[derive(Debug, Clone)]
pub struct GitCredential {
    /// Exactly the host of the URL: `github.com`.
    pub host: String,
    /// The user; with a token most forges take any.
    pub username: String,
    /// The password or token.
    pub password: Secret,
}

/// A private key for a git host over ssh, and how that host is known.
#[derive(Debug, Clone)]
pub struct SshKey {
    /// Exactly the host of the URL, `git.example.com`; with a port where one key is for that port alone.
    pub host: String,
    /// The private key, without a passphrase, as `ssh-keygen` writes it.
    pub private_key: Secret,
    /// Lines of a `known_hosts` file that alone say which keys the host may have. Without them only the hosts of
    /// [`SshKey::is_well_known`] are known.
    pub known_hosts: Option<String>,
}

impl SshKey {
    /// Whether what a stored login has in the place of a password is a private key: every one in PEM begins so.
    pub fn is_key(password: &Secret) -> bool {
        password.expose().trim_start().starts_with("-----BEGIN")
    }

    /// The key that a stored login is; nothing where it holds a password or a token. Behind the private key's last line
    /// may stand lines of a `known_hosts` file.
    pub fn from_login(host: &str, password: &Secret) -> Option<Self> {
        if !Self::is_key(password) {
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

    /// Whether the keys of `host` are built in, so that [`SshKey::known_hosts`] may be missing.
    pub fn is_well_known(host: &str) -> bool {
        crate::git::is_well_known(host)
    }

    /// Whether `url` is reached by ssh, and the key is for its host.
    pub fn opens(&self, url: &GitUrl) -> bool {
        url.transport == GitTransport::Ssh && self.is_for(&url.host, url.port())
    }

    /// Whether it is for this host and port; exactly, not for a part of a name.
    pub(crate) fn is_for(&self, host: &str, port: u16) -> bool {
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

/// The full name of a commit: 40 or, in repositories with SHA-256, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitId(String);

impl CommitId {
    /// The digits, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text names no commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the full name of a commit, which is 40 or 64 hexadecimal digits")]
pub struct NotACommit(String);

impl FromStr for CommitId {
    type Err = NotACommit;

    fn from_str(text: &str) -> Result<Self, NotACommit> {
        let full = matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if full {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(NotACommit(text.chars().take(80).collect()))
        }
    }
}

/// What to take of a git repository, besides what its URL says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitOptions {
    /// This commit and no other, whatever the URL's reference points at by now.
    pub commit: Option<CommitId>,
    /// Submodules too, and theirs.
    pub submodules: bool,
    /// The files that stand in Git LFS too, in place of their pointers.
    pub lfs: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_a_full_name() {
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
    fn a_key_is_told_by_its_text_and_belongs_to_one_host() {
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
                of(stored).is_for(host, port),
                good,
                "{stored} {host} {port}"
            );
        }
    }
}
