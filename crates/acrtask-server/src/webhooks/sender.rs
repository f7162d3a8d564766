//! Who sends deliveries: a forge or a registry, by one list of names; and where a forge keeps the commits of a pull request.

use std::{fmt, str::FromStr};

use acrtask_trigger::{Provider, RegistrySource};

/// Age up to which a body that comes again under another id is a new delivery, in milliseconds: a day.
const REPEATABLE_MS: i64 = 24 * 3600 * 1000;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    /// It tells of commits.
    Forge(Provider),
    /// It tells of images.
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

    /// Returns the age, in milliseconds, from which a body that comes again under another id is a replay.
    ///
    /// This matters for senders that sign the body alone: everyone who has seen a delivery can send it again
    /// under another id. Bodies of GitHub and Bitbucket Data Center hold the time of their event, so the
    /// same body is never sent for a second event. Those of the other forges may be: a tag that is
    /// deleted and pushed again has the same body. `None`: the sender proves more than the body.
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
                "no forge or registry is called `{text}`; there are {}",
                names.join(", ")
            )
        })
    }
}

/// The reference of a pull request's commits in the repository that it asks to change; nothing where the forge keeps none.
pub(crate) fn pull_request_ref(provider: Provider, number: u64) -> Option<String> {
    match provider {
        Provider::GitHub | Provider::Gitea | Provider::Forgejo => {
            Some(format!("refs/pull/{number}/head"))
        }
        Provider::GitLab => Some(format!("refs/merge-requests/{number}/head")),
        Provider::BitbucketServer => Some(format!("refs/pull-requests/{number}/from")),
        // The commit is in the history of what a merge would give.
        Provider::AzureDevops => Some(format!("refs/pull/{number}/merge")),
        Provider::BitbucketCloud | Provider::Generic => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_told_apart() {
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
