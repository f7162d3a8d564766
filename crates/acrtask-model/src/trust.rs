//! Trust domains: the sets of runs that may share state.
//!
//! Invariants: the control plane decides the domain of a run when it creates the run, and no client
//! chooses one. Two domains share no state that one of them can write. A [`CacheNamespace`] cannot
//! be printed.
//!
//! Left out: access to runs and tasks, which the scopes and limits of tokens decide.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Secret;

/// The set of runs that a run may share state with: build caches, warm runners, uploaded files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum TrustDomain {
    /// All runs of one user on the user's own machine.
    Local,
    /// All runs of one stored task. The default.
    Task {
        /// Id of the task. It differs from that of a deleted task with the same name, which
        /// therefore shares nothing.
        id: String,
    },
    /// All runs of the tasks whose names match the operator's pattern.
    Prefix {
        /// The operator's pattern.
        pattern: TaskPattern,
    },
    /// Runs without a stored task that one principal requested.
    Principal {
        /// The principal that requested the runs.
        by: Principal,
    },
    /// Runs of code from a source without write access to the task: a fork's pull request, approved
    /// or not, or files from the client that starts a run.
    Contribution {
        /// The domain that the code was contributed to. The contribution shares nothing with it.
        of: Box<Self>,
        /// Identity of the contribution in that domain.
        source: ContributionSource,
    },
}

/// The origin of code or secrets that a run uses without write access to its task.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum ContributionSource {
    /// A pull request or commit of a fork.
    Fork {
        /// The pull request or the commit.
        reference: String,
    },
    /// A task file or files that a principal sent.
    Files {
        /// The principal, which may start the task and not write it.
        by: Principal,
    },
    /// Secrets that a principal sent. The task file and the files are those of the task.
    Secrets {
        /// The principal, which may start the task and not write it.
        by: Principal,
    },
    /// A context that a user's own machine downloaded.
    Context {
        /// The URL of the context.
        url: String,
    },
}

impl fmt::Display for ContributionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork { reference } => f.write_str(reference),
            Self::Files { by } => write!(f, "of files by {by}"),
            Self::Secrets { by } => write!(f, "of secrets by {by}"),
            Self::Context { url } => f.write_str(url),
        }
    }
}

impl TrustDomain {
    /// Returns the domain of a contribution to this one.
    #[must_use]
    pub fn contribution(self, source: ContributionSource) -> Self {
        Self::Contribution {
            of: Box::new(self),
            source,
        }
    }

    /// Returns the domain whose owner is responsible for the run. For a contribution, this is the
    /// domain that it was made to.
    pub fn owner(&self) -> &Self {
        match self {
            Self::Contribution { of, .. } => of.owner(),
            Self::Local | Self::Task { .. } | Self::Prefix { .. } | Self::Principal { .. } => self,
        }
    }

    /// Returns `false` for contributions, whose layers must not reach the caches that later runs of
    /// a task import.
    pub fn writes_shared_cache(&self) -> bool {
        !matches!(self, Self::Contribution { .. })
    }

    /// Returns the affinity key of a run of this domain that works on `subject`.
    pub fn affinity_key(&self, subject: &str) -> String {
        format!("{} {subject}", self.key())
    }

    /// Returns the canonical text, which is unique for each domain and is the input of
    /// [`Self::parse`].
    pub fn key(&self) -> String {
        serde_json::to_string(self).expect("texts and enums without maps are always JSON")
    }

    /// Parses the output of [`Self::key`].
    ///
    /// # Errors
    /// [`TrustDomainError`] if the text is not such an output.
    pub fn parse(text: &str) -> Result<Self, TrustDomainError> {
        serde_json::from_str(text).map_err(|error| TrustDomainError(error.to_string()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this machine's own runs"),
            Self::Task { id } => write!(f, "the task {id}"),
            Self::Prefix { pattern } => write!(f, "the tasks {pattern}"),
            Self::Principal { by } => write!(f, "the runs of {by}"),
            Self::Contribution { of, source } => write!(f, "the contribution {source} to {of}"),
        }
    }
}

/// An error for a text that [`TrustDomain::key`] cannot have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the trust domain cannot be read: {0}")]
pub struct TrustDomainError(String);

/// The identity of a caller, which does not depend on its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum Principal {
    /// A stored token.
    Token {
        /// The token's id.
        id: String,
    },
    /// An identity of another issuer, regardless of the token that it was exchanged for.
    Federation {
        /// The issuer of the identity token.
        issuer: String,
        /// The subject of the identity token.
        subject: String,
    },
}

impl Principal {
    /// Returns the canonical text, which is unique for each principal.
    pub fn key(&self) -> String {
        serde_json::to_string(self).expect("texts and enums without maps are always JSON")
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id } => write!(f, "the token {id}"),
            Self::Federation { issuer, subject } => {
                write!(f, "{} of {}", subject.escape_debug(), issuer.escape_debug())
            }
        }
    }
}

/// A pattern of task names: a prefix followed by `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskPattern(String);

impl TaskPattern {
    /// Returns `true` if the task's name begins with the prefix.
    pub fn matches(&self, task: &str) -> bool {
        task.starts_with(self.prefix())
    }

    /// Returns the common beginning of the names.
    pub fn prefix(&self) -> &str {
        self.0.trim_end_matches('*')
    }
}

impl FromStr for TaskPattern {
    type Err = TaskPatternError;

    fn from_str(text: &str) -> Result<Self, TaskPatternError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
        match text.strip_suffix('*') {
            Some(prefix) if prefix.chars().all(good) => Ok(Self(text.to_owned())),
            _ => Err(TaskPatternError(text.to_owned())),
        }
    }
}

impl fmt::Display for TaskPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TaskPattern {
    type Error = TaskPatternError;
    fn try_from(text: String) -> Result<Self, TaskPatternError> {
        text.parse()
    }
}

impl From<TaskPattern> for String {
    fn from(pattern: TaskPattern) -> Self {
        pattern.0
    }
}

/// An error for a text that is not a [`TaskPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a pattern of task names; write the beginning of the names and `*`, as in `team/*`"
)]
pub struct TaskPatternError(String);

/// The operator's decision which tasks share a domain. By default, no tasks do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustPolicy {
    patterns: Vec<TaskPattern>,
}

impl TrustPolicy {
    /// Creates one domain for the tasks of each pattern. If several patterns match a task, the
    /// longest applies.
    pub fn new(patterns: impl IntoIterator<Item = TaskPattern>) -> Self {
        Self {
            patterns: patterns.into_iter().collect(),
        }
    }

    /// Returns the domain of a stored task.
    pub fn domain_of(&self, task_id: &str, task_name: &str) -> TrustDomain {
        let matching = self.patterns.iter().filter(|one| one.matches(task_name));
        match matching.max_by_key(|one| one.prefix().len()) {
            Some(pattern) => TrustDomain::Prefix {
                pattern: pattern.clone(),
            },
            None => TrustDomain::Task { id: task_id.into() },
        }
    }
}

/// The name of a domain's build caches. It separates domains in a shared BuildKit, because other
/// domains cannot guess it.
#[derive(Debug, Clone)]
pub struct CacheNamespace(Secret);

impl CacheNamespace {
    /// Minimum length of a namespace, in characters: 128 bits in hexadecimal.
    const MIN_LEN: usize = 32;
    /// Maximum length of a namespace, in characters: a DNS label.
    const MAX_LEN: usize = 63;

    /// Checks a namespace: 32 to 63 lower-case letters and digits.
    ///
    /// # Errors
    /// [`CacheNamespaceError`] if it has another form.
    pub fn new(text: impl Into<String>) -> Result<Self, CacheNamespaceError> {
        let text = text.into();
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if (Self::MIN_LEN..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(Secret::new(text)))
        } else {
            Err(CacheNamespaceError)
        }
    }

    /// Returns the namespace for random or keyed bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(to_hex(&bytes))
    }

    /// Returns the text, which must reach no other domain.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// Returns the namespace as a secret, so that output can be masked.
    pub fn as_secret(&self) -> &Secret {
        &self.0
    }
}

/// An error for a text that is not a [`CacheNamespace`]. The error does not contain the text, which
/// may be similar to a valid one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cache namespace is not 32 to 63 lower-case letters and digits")]
pub struct CacheNamespaceError;

/// The key with which runners seal the caches that a domain exports to a registry. A contribution
/// uses the key of the domain that it was made to, whose caches it may read. No container receives
/// it.
#[derive(Debug, Clone)]
pub struct CacheSealKey(Secret);

impl CacheSealKey {
    /// Length in characters: 256 bits in hexadecimal.
    const LEN: usize = 64;

    /// Checks a key: 64 hexadecimal digits in lower case.
    ///
    /// # Errors
    /// [`CacheSealKeyError`] if it has another form.
    pub fn new(text: impl Into<String>) -> Result<Self, CacheSealKeyError> {
        let text = text.into();
        let good = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == Self::LEN && text.bytes().all(good) {
            Ok(Self(Secret::new(text)))
        } else {
            Err(CacheSealKeyError)
        }
    }

    /// Returns the key for random or keyed bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(to_hex(&bytes))
    }

    /// Returns the text, which only the runs of the domain use.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// An error for a text that is not a [`CacheSealKey`]. The error does not contain the text, which
/// may be similar to a valid one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key of cache seals is not 64 hexadecimal digits")]
pub struct CacheSealKeyError;

/// Returns bytes in lower-case hexadecimal.
fn to_hex(bytes: &[u8]) -> Secret {
    Secret::new(
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
    )
}

/// The domain of a run, and its key to the caches of that domain. A runner receives it with a
/// lease.
#[derive(Debug, Clone)]
pub struct RunDomain {
    /// The trust domain.
    pub trust: TrustDomain,
    /// The name of the domain's build caches.
    pub cache_namespace: CacheNamespace,
    /// The key of the seals on caches in registries.
    pub cache_seal_key: CacheSealKey,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(id: &str) -> TrustDomain {
        TrustDomain::Task { id: id.into() }
    }

    #[test]
    fn longest_matching_pattern_applies() {
        let policy = TrustPolicy::new(["team/*", "team/web/*", "x*"].map(|p| p.parse().unwrap()));
        for (name, pattern) in [
            ("team/app", Some("team/*")),
            ("team/web/app", Some("team/web/*")),
            ("team", None),
            ("xy", Some("x*")),
            ("other/team/app", None),
        ] {
            let expected = pattern.map_or_else(
                || task("id"),
                |pattern| TrustDomain::Prefix {
                    pattern: pattern.parse().unwrap(),
                },
            );
            assert_eq!(policy.domain_of("id", name), expected, "{name}");
        }
        assert_eq!(TrustPolicy::default().domain_of("id", "a"), task("id"));
    }

    #[test]
    fn patterns_are_prefixes() {
        for bad in ["", "team/", "te*am", "team/**", "a b*", "{a,b}*"] {
            let error = bad.parse::<TaskPattern>().unwrap_err().to_string();
            assert!(error.contains("team/*"), "{error}");
        }
        assert!("*".parse::<TaskPattern>().unwrap().matches("any/task"));
    }

    fn fork(reference: &str) -> ContributionSource {
        ContributionSource::Fork {
            reference: reference.into(),
        }
    }

    #[test]
    fn contributions_write_no_shared_cache() {
        let domain = task("a")
            .contribution(fork("pr 1"))
            .contribution(fork("pr 2"));
        assert!(!domain.writes_shared_cache());
        assert!(task("a").writes_shared_cache());
        assert_eq!(domain.owner(), &task("a"));
    }

    #[test]
    fn namespaces_cannot_be_printed() {
        let namespace = CacheNamespace::from_bytes([0xab; 16]);
        assert_eq!(namespace.expose(), "ab".repeat(16));
        assert!(!format!("{namespace:?}").contains("abab"));
        for bad in [
            "",
            "short",
            &"A".repeat(32),
            &"a".repeat(64),
            &format!("{}/", "a".repeat(32)),
        ] {
            assert!(CacheNamespace::new(bad).is_err(), "{bad}");
        }
        assert!(CacheNamespace::new("a".repeat(32)).is_ok());
    }

    fn domain() -> impl Strategy<Value = TrustDomain> {
        let text = || "[ -~é\n]{0,6}";
        let leaf = prop_oneof![
            Just(TrustDomain::Local),
            text().prop_map(|id| TrustDomain::Task { id }),
            "[a-z/]{0,3}".prop_map(|prefix| TrustDomain::Prefix {
                pattern: format!("{prefix}*").parse().unwrap()
            }),
            text().prop_map(|id| TrustDomain::Principal {
                by: Principal::Token { id }
            }),
            (text(), text()).prop_map(|(issuer, subject)| TrustDomain::Principal {
                by: Principal::Federation { issuer, subject }
            }),
        ];
        leaf.prop_recursive(2, 4, 1, move |inner| {
            (inner, text(), 0..4).prop_map(|(of, text, kind)| {
                let by = Principal::Token { id: text.clone() };
                of.contribution(match kind {
                    0 => fork(&text),
                    1 => ContributionSource::Files { by },
                    2 => ContributionSource::Secrets { by },
                    _ => ContributionSource::Context { url: text },
                })
            })
        })
    }

    proptest! {
        #[test]
        fn keys_parse_and_are_unique(a in domain(), b in domain()) {
            prop_assert_eq!(&TrustDomain::parse(&a.key()).unwrap(), &a);
            prop_assert_eq!(a.key() == b.key(), a == b);
        }
    }
}
