//! Senders of deliveries: forges and registries under one list of names.
//!
//! Also maps each forge to the ref of a pull request's commits.

use std::{fmt, str::FromStr};

use acrtask_trigger::{Provider, RegistrySource};

/// Age up to which a repeated body with another id counts as a new delivery, in milliseconds: one
/// day.
const REPEATABLE_MS: i64 = 24 * 3600 * 1000;

/// Kind of sender of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// Reports events of commits.
    Forge(Provider),
    /// Reports events of images.
    Registry(RegistrySource),
}

impl Sender {
    fn all() -> impl Iterator<Item = Self> {
        let forges = Provider::ALL.into_iter().map(Self::Forge);
        forges.chain(RegistrySource::ALL.into_iter().map(Self::Registry))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forge(provider) => provider.name(),
            Self::Registry(source) => source.name(),
        }
    }

    /// Returns the age, in milliseconds, from which a repeated body with another id is a replay.
    ///
    /// The age matters for senders that sign only the body: anyone who has seen a delivery can
    /// repeat it under another id. Bodies of GitHub and Bitbucket Data Center contain the time of
    /// their event, so two events never have the same body. Bodies of the other forges may repeat:
    /// a tag that is deleted and pushed again has the same body. `None` if the signature covers the
    /// id.
    pub(crate) fn replay_age_ms(self) -> Option<i64> {
        match self {
            Self::Forge(Provider::GitHub | Provider::BitbucketServer)
            | Self::Registry(RegistrySource::GitHub) => Some(0),
            Self::Forge(Provider::BitbucketCloud | Provider::Gitea | Provider::Forgejo) => {
                Some(REPEATABLE_MS)
            }
            Self::Forge(_) | Self::Registry(_) => None,
        }
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all().find(|sender| sender.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::all().map(Self::name).collect();
            format!(
                "no forge or registry is named `{text}`; write one of {}",
                names.join(", ")
            )
        })
    }
}

/// Returns the ref of a pull request's commits in the target repository. `None` if the forge keeps
/// none.
pub(crate) fn pull_request_ref(provider: Provider, number: u64) -> Option<String> {
    match provider {
        Provider::GitHub | Provider::Gitea | Provider::Forgejo => {
            Some(format!("refs/pull/{number}/head"))
        }
        Provider::GitLab => Some(format!("refs/merge-requests/{number}/head")),
        Provider::BitbucketServer => Some(format!("refs/pull-requests/{number}/from")),
        // The history of the merge ref contains the commit.
        Provider::AzureDevops => Some(format!("refs/pull/{number}/merge")),
        Provider::BitbucketCloud | Provider::Generic => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_parses_to_its_own_sender() {
        let mut names = std::collections::BTreeSet::new();
        for sender in Sender::all() {
            assert_eq!(sender.name().parse(), Ok(sender));
            assert!(names.insert(sender.name()), "{sender}");
        }
        let error = "svn".parse::<Sender>().unwrap_err();
        assert!(
            error.contains("github, gitlab") && error.contains("harbor"),
            "{error}"
        );
    }
}
