//! Reading of a repository: its tags, its manifests, and their ages.
//!
//! The age of a tag comes from the first of these sources: the registry's own API (ACR), the
//! creation time in the image's configuration, the annotation `org.opencontainers.image.created`. A
//! creation time of 1970 or 1980 is a placeholder of reproducible builds, and counts as unknown.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{
    AcrManifest, Listing, Manifest, ManifestBody, Registry, RegistryError,
    manifest::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use crate::{
    creation::Creations,
    filter::Filter,
    matching::off_thread,
    plan::{ManifestFacts, Repository, Tag, companion_subject},
    record::{self, Records},
};

/// Maximum number of manifests that a purge reads in one repository.
const MAX_MANIFESTS: usize = 200_000;
/// Maximum number of children in all indexes that a purge reads in one repository.
const MAX_CHILDREN: usize = 1_000_000;

/// Kind of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryKind {
    /// Azure Container Registry, with times and untagged manifests.
    Acr,
    /// Registry with the API of the distribution specification only.
    Plain,
}

impl RegistryKind {
    /// Requests the kind of the registry `host`.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn detect(registry: &Registry, host: &str) -> Result<Self, RegistryError> {
        if !registry.has_acr_api(host).await? {
            return Ok(Self::Plain);
        }
        if host.ends_with(".azurecr.io") {
            return Ok(Self::Acr);
        }
        // Some registries respond to every path that ends like the list of repositories. A
        // repository of ACR has at least one manifest.
        let names = registry.repositories(host).await?;
        let first = names.first();
        let first = first.and_then(|name| crate::purge::repository_reference(host, name).ok());
        Ok(match first {
            Some(image) if !registry.acr_manifests(&image).await?.is_empty() => Self::Acr,
            Some(_) | None => Self::Plain,
        })
    }
}

/// Reader of repositories.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// Client of the registry.
    pub registry: &'a Registry,
    /// Kind of the registry.
    pub kind: RegistryKind,
    /// Maximum number of concurrent requests.
    pub concurrency: usize,
    /// Current time. Later creation times are not plausible.
    pub now: Timestamp,
}

/// Part of a repository that a purge needs.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Filters of the repository.
    pub filters: &'a [Filter],
    /// `true` if manifests may be deleted too.
    pub with_manifests: bool,
}

impl Reader<'_> {
    /// Lists the names of the repositories that the filters select. Does not list all repositories
    /// of the registry if the filters name them.
    ///
    /// # Errors
    /// The registry refuses the list, or an expression needs too many steps.
    pub async fn list_repositories(
        &self,
        host: &str,
        filters: &[Filter],
    ) -> Result<Vec<String>, String> {
        let literal: Option<BTreeSet<&str>> = filters
            .iter()
            .map(Filter::repository_name)
            .collect::<Option<_>>();
        if let Some(names) = literal.filter(|names| !names.is_empty()) {
            return Ok(names.into_iter().map(str::to_owned).collect());
        }
        let all = self.registry.repositories(host).await;
        let all = all.map_err(|error| {
            format!(
                "{}; name each repository in a filter of its own",
                crate::describe_error(&error)
            )
        })?;
        let filters = filters.to_vec();
        off_thread(move || {
            let mut found = BTreeSet::new();
            for name in all {
                let mut is_selected = filters.is_empty();
                for filter in &filters {
                    is_selected = is_selected || filter.matches_repository(&name)?;
                }
                if is_selected {
                    found.insert(name);
                }
            }
            Ok(found.into_iter().collect())
        })
        .await
    }

    /// Lists the names of all tags of a repository. Empty if the repository does not exist.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn list_tags(&self, image: &ImageRef) -> Result<Vec<String>, RegistryError> {
        let mut tags = Listing::of_tags(image);
        let mut next = None;
        loop {
            let page = match self.registry.tags(image, next.as_ref()).await {
                Ok(page) => page,
                Err(error) if error.is_not_found() => return Ok(tags.into_entries()),
                Err(error) => return Err(error),
            };
            next = page.next.clone();
            tags.add_tags(page)?;
            if next.is_none() {
                return Ok(tags.into_entries());
            }
        }
    }

    /// Reads what a purge of the repository of `image` needs.
    ///
    /// # Errors
    /// The registry cannot be read, or an expression needs too many steps.
    pub async fn read(&self, image: &ImageRef, scope: Scope<'_>) -> Result<Repository, String> {
        let read = match self.kind {
            RegistryKind::Acr => self.read_acr(image, scope).await,
            RegistryKind::Plain => self.read_plain(image, scope).await,
        };
        let mut repository = read?;
        repository.name = image.repository().to_owned();
        Ok(repository)
    }

    /// Reads all tags and manifests of the repository of `image`, with the record of a server.
    ///
    /// # Errors
    /// The registry or the record cannot be read.
    pub async fn read_all(
        &self,
        image: &ImageRef,
        records: &dyn Records,
    ) -> Result<Repository, String> {
        let name = image.repository().replace('.', "\\.");
        let scope = Scope {
            filters: &[Filter::parse(&format!("{name}:.*"))?],
            with_manifests: true,
        };
        let found = record::find(records, image).await?;
        let mut repository = self.read(image, scope).await?;
        record::apply(&mut repository, found);
        Ok(repository)
    }

    async fn read_acr(&self, image: &ImageRef, scope: Scope<'_>) -> Result<Repository, String> {
        let describe = |error: RegistryError| crate::describe_error(&error);
        let tags = self.registry.acr_tags(image).await.map_err(describe)?;
        let mut repository = Repository {
            has_own_api: true,
            ..Repository::default()
        };
        repository.tags.extend(tags.into_iter().map(|tag| Tag {
            updated: parse_time(tag.last_update_time.as_deref()),
            is_locked: tag.changeable_attributes.is_locked(),
            name: tag.name,
            digest: tag.digest,
        }));
        repository.exists = !repository.tags.is_empty();
        if !scope.with_manifests {
            return Ok(repository);
        }
        let listed = self.registry.acr_manifests(image).await;
        let listed = listed.map_err(describe)?;
        let reads = listed
            .into_iter()
            .map(|manifest| self.read_acr_manifest(image, manifest));
        let mut count = Count::default();
        let facts = self.collect_facts(image, reads.collect(), &mut count).await;
        repository.manifests = facts.map_err(describe)?.into_iter().collect();
        repository.exists |= !repository.manifests.is_empty();
        Ok(repository)
    }

    /// `None` if the manifest was deleted meanwhile.
    async fn read_acr_manifest(
        &self,
        image: &ImageRef,
        listed: AcrManifest,
    ) -> Result<Option<(Digest, ManifestFacts)>, RegistryError> {
        let mut facts = ManifestFacts::default();
        // Docker's images have neither children nor subjects.
        if listed.media_type.as_deref() != Some(DOCKER_MANIFEST) {
            match self.read_facts(image, &listed.digest).await? {
                Some(found) => facts = found,
                None => return Ok(None),
            }
        }
        facts.updated = parse_time(listed.last_update_time.as_deref());
        facts.is_locked = listed.changeable_attributes.is_locked();
        Ok(Some((listed.digest, facts)))
    }

    /// Reads the children and the subject of a manifest. `None` if it does not exist.
    async fn read_facts(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<Option<ManifestFacts>, RegistryError> {
        match self.registry.manifest(&image.at(digest.clone())).await {
            Ok(manifest) => Ok(Some(facts_of(&manifest))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(RegistryError::Invalid { .. } | RegistryError::TooLarge { .. }) => {
                Ok(Some(ManifestFacts {
                    is_unreadable: true,
                    ..ManifestFacts::default()
                }))
            }
            Err(error) => Err(error),
        }
    }

    async fn read_plain(&self, image: &ImageRef, scope: Scope<'_>) -> Result<Repository, String> {
        let describe = |error: RegistryError| crate::describe_error(&error);
        let mut repository = Repository::default();
        let names = self.list_tags(image).await.map_err(describe)?;
        repository.exists = !names.is_empty();
        let filters = scope.filters.to_vec();
        let (names, selected) = off_thread(move || {
            let mut selected = BTreeSet::new();
            for name in &names {
                let mut is_selected = false;
                for filter in filters.iter().filter(|_| companion_subject(name).is_none()) {
                    is_selected = is_selected || filter.matches_tag(name)?;
                }
                if is_selected {
                    selected.insert(name.clone());
                }
            }
            Ok((names, selected))
        })
        .await?;
        if selected.is_empty() {
            // No manifest can go, because the registry lists no untagged ones.
            return Ok(repository);
        }
        let resolved = self.resolve_tags(image, names).await.map_err(describe)?;
        let wanted: BTreeSet<Digest> = resolved
            .iter()
            .filter(|(name, _)| selected.contains(name))
            .map(|(_, digest)| digest.clone())
            .collect();
        let creations = Creations::new(self.registry, self.now);
        let reads = wanted
            .into_iter()
            .map(|digest| creations.find(image, digest));
        let created = self.join(reads.collect()).await.map_err(describe)?;
        let created: BTreeMap<Digest, Option<Timestamp>> = created.into_iter().collect();
        repository.tags = resolved
            .iter()
            .map(|(name, digest)| Tag {
                name: name.clone(),
                digest: digest.clone(),
                updated: created.get(digest).copied().flatten(),
                is_locked: false,
            })
            .collect();
        // The newest first, as ACR lists them.
        repository
            .tags
            .sort_by_key(|tag| std::cmp::Reverse(tag.updated));
        if scope.with_manifests {
            repository.manifests = self.read_graph(image, &resolved).await.map_err(describe)?;
        }
        Ok(repository)
    }

    /// Resolves tags of a repository, without those that were deleted meanwhile.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn resolve_tags(
        &self,
        image: &ImageRef,
        names: Vec<String>,
    ) -> Result<Vec<(String, Digest)>, RegistryError> {
        let reads = names.into_iter().map(|name| self.resolve_tag(image, name));
        let resolved = self.join(reads.collect()).await?;
        Ok(resolved.into_iter().flatten().collect())
    }

    /// `None` if the tag was deleted meanwhile.
    async fn resolve_tag(
        &self,
        image: &ImageRef,
        name: String,
    ) -> Result<Option<(String, Digest)>, RegistryError> {
        let reference = image
            .with_tag(&name)
            .map_err(|error| RegistryError::Invalid {
                attempt: format!("list the tags of {}", image.name()),
                reason: error.to_string(),
            })?;
        match self.registry.resolve(&reference).await {
            Ok(found) => Ok(Some((name, found.digest))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the graph of all tagged manifests: children at any depth, and referrers if the
    /// registry lists them.
    async fn read_graph(
        &self,
        image: &ImageRef,
        tags: &[(String, Digest)],
    ) -> Result<BTreeMap<Digest, ManifestFacts>, RegistryError> {
        let mut found: BTreeMap<Digest, ManifestFacts> = BTreeMap::new();
        let mut lists_referrers = true;
        let mut layer: BTreeSet<Digest> = tags.iter().map(|(_, digest)| digest.clone()).collect();
        let mut count = Count::default();
        while !layer.is_empty() {
            let reads = layer
                .into_iter()
                .map(|digest| self.read_part(image, digest));
            let read = self
                .collect_facts(image, reads.collect(), &mut count)
                .await?;
            let earlier: BTreeSet<Digest> = read.iter().map(|(digest, _)| digest.clone()).collect();
            let mut next = BTreeSet::new();
            for (digest, facts) in read {
                let mut others = Vec::new();
                if lists_referrers {
                    match self.registry.referrers(&image.at(digest.clone())).await? {
                        Some(referrers) => {
                            others.extend(referrers.into_iter().map(|one| one.digest))
                        }
                        None => lists_referrers = false,
                    }
                }
                let others = others.into_iter().chain(facts.children.iter().cloned());
                next.extend(
                    others.filter(|one| !found.contains_key(one) && !earlier.contains(one)),
                );
                found.insert(digest, facts);
                if count.manifests + next.len() > MAX_MANIFESTS {
                    return Err(too_many(image));
                }
            }
            layer = next;
        }
        Ok(found)
    }

    /// Awaits reads of manifests. Counts the manifests and their children as they arrive, so that
    /// no more are kept in memory than a purge may read.
    async fn collect_facts(
        &self,
        image: &ImageRef,
        reads: Vec<impl Future<Output = Result<Option<(Digest, ManifestFacts)>, RegistryError>>>,
        count: &mut Count,
    ) -> Result<Vec<(Digest, ManifestFacts)>, RegistryError> {
        let mut reads = futures::stream::iter(reads).buffered(self.concurrency.max(1));
        let mut found = Vec::new();
        while let Some(read) = reads.try_next().await? {
            let Some((digest, facts)) = read else {
                continue;
            };
            count.manifests += 1;
            count.children += facts.children.len();
            if count.manifests > MAX_MANIFESTS || count.children > MAX_CHILDREN {
                return Err(too_many(image));
            }
            found.push((digest, facts));
        }
        Ok(found)
    }

    async fn read_part(
        &self,
        image: &ImageRef,
        digest: Digest,
    ) -> Result<Option<(Digest, ManifestFacts)>, RegistryError> {
        let facts = self.read_facts(image, &digest).await?;
        Ok(facts.map(|facts| (digest, facts)))
    }

    /// Runs at most `concurrency` requests at once. Returns their results in order.
    async fn join<T>(
        &self,
        requests: Vec<impl Future<Output = Result<T, RegistryError>>>,
    ) -> Result<Vec<T>, RegistryError> {
        futures::stream::iter(requests)
            .buffered(self.concurrency.max(1))
            .try_collect()
            .await
    }
}

/// Number of manifests of a repository that were read, and of children in their indexes.
#[derive(Debug, Default)]
struct Count {
    manifests: usize,
    children: usize,
}

fn too_many(image: &ImageRef) -> RegistryError {
    RegistryError::Invalid {
        attempt: format!("read the manifests of {}", image.name()),
        reason: format!(
            "the repository has more than {MAX_MANIFESTS} manifests, or more than {MAX_CHILDREN} in its indexes"
        ),
    }
}

pub(crate) fn parse_time(text: Option<&str>) -> Option<Timestamp> {
    text?.parse().ok()
}

/// Returns the children and the subject in a manifest.
fn facts_of(manifest: &Manifest) -> ManifestFacts {
    let subject = manifest.subject();
    let is_supported = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST]
        .contains(&manifest.media_type.as_str());
    ManifestFacts {
        children: match &manifest.body {
            // The index of a build cache contains layers.
            ManifestBody::Index(index) => {
                let entries = index.manifests.iter().filter(|entry| entry.is_manifest());
                entries.map(|entry| entry.digest.clone()).collect()
            }
            ManifestBody::Image(_) => Vec::new(),
        },
        is_unreadable: subject.is_err() || !is_supported,
        subject: subject.ok().flatten(),
        ..ManifestFacts::default()
    }
}
