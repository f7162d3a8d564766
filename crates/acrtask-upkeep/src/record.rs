//! Records of a server about repositories, as a source of ages and of what must stay.

use std::pin::Pin;

use acrtask_api::registry_record::{Need, RegistryRecord};
use acrtask_model::ImageRef;

use crate::plan::{Repository, Tag};

/// Source of the server's records.
pub trait Records: std::fmt::Debug + Send + Sync {
    /// Returns the record of a repository, named `REGISTRY/REPOSITORY`. The error is the reason why
    /// the record cannot be read; nothing may be deleted then.
    fn find<'a>(
        &'a self,
        repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<RegistryRecord, String>> + Send + 'a>>;

    /// Returns `false` without a server. All records are empty then.
    fn is_available(&self) -> bool {
        true
    }
}

/// Records of a program without a server: none.
#[derive(Debug, Clone, Copy)]
pub struct NoRecords;

impl Records for NoRecords {
    fn find<'a>(
        &'a self,
        _repository: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<RegistryRecord, String>> + Send + 'a>> {
        Box::pin(std::future::ready(Ok(RegistryRecord::default())))
    }

    fn is_available(&self) -> bool {
        false
    }
}

/// Adds the record of a server to the content of a repository. The times of the registry's own API
/// stay.
pub(crate) fn apply(repository: &mut Repository, record: RegistryRecord) {
    if !repository.has_own_api {
        for found in record.tags {
            let tags = repository.tags.iter_mut();
            for tag in tags.filter(|tag| tag.name == found.tag && tag.digest == found.digest) {
                tag.updated = Some(found.since);
            }
        }
        // The newest first, as ACR lists them.
        repository
            .tags
            .sort_by_key(|tag| std::cmp::Reverse(tag.updated));
    }
    let needed = record.needed.into_iter();
    repository.needed = needed.map(|one| (one.digest, one.need)).collect();
    let is_cache = |tag: &&Tag| {
        let mut caches = record.cache_tags.iter();
        caches.any(|cache| match tag.name.strip_prefix(cache.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with(['_', '.']),
            None => false,
        })
    };
    let caches = repository.tags.iter().filter(is_cache);
    repository.needed_tags = caches.map(|tag| (tag.name.clone(), Need::Cache)).collect();
}

/// Reads the record of the repository of `image`.
pub(crate) async fn find(
    records: &dyn Records,
    image: &ImageRef,
) -> Result<RegistryRecord, String> {
    records.find(&image.name()).await.map_err(|error| {
        format!(
            "the server's record of {} cannot be read, so nothing was deleted: {error}",
            image.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use acrtask_api::registry_record::{NeededManifest, TagRecord};
    use acrtask_model::Digest;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn record_states_ages_only_without_an_api_of_the_registry() {
        let digest = |n: u8| -> Digest { format!("sha256:{n:064x}").parse().unwrap() };
        let time = |n: i64| Timestamp::from_second(n).unwrap();
        let tag = |name: &str, n| Tag {
            name: name.into(),
            digest: digest(n),
            updated: Some(time(1)),
            is_locked: false,
        };
        let record = || RegistryRecord {
            tags: vec![
                TagRecord {
                    tag: "a".into(),
                    digest: digest(1),
                    since: time(100),
                },
                TagRecord {
                    tag: "b".into(),
                    digest: digest(9),
                    since: time(100),
                },
            ],
            needed: vec![NeededManifest {
                digest: digest(2),
                need: Need::Base,
            }],
            cache_tags: vec!["cache_team-app".into()],
        };
        for has_own_api in [false, true] {
            let mut repository = Repository {
                tags: vec![
                    tag("a", 1),
                    tag("b", 2),
                    tag("cache_team-app_build", 3),
                    tag("cache_team-app.seal", 4),
                    tag("cache_team-apple", 5),
                ],
                has_own_api,
                ..Repository::default()
            };
            apply(&mut repository, record());
            let age = |name: &str| {
                let found = repository.tags.iter().find(|tag| tag.name == name);
                found.unwrap().updated
            };
            let expected = if has_own_api { time(1) } else { time(100) };
            assert_eq!(age("a"), Some(expected));
            // Another program has moved the tag since.
            assert_eq!(age("b"), Some(time(1)));
            assert_eq!(repository.needed[&digest(2)], Need::Base);
            assert_eq!(repository.needed_tags.len(), 2, "{repository:?}");
            assert_eq!(repository.needed_tags["cache_team-app_build"], Need::Cache);
        }
    }
}
