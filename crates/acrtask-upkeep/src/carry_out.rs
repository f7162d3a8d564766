//! Deletion of exactly the lines of a plan.
//!
//! A tag goes with its manifest if the manifest goes too. Otherwise the registry deletes the tag
//! alone. Where it cannot, the tag is overwritten with a unique empty manifest, which is deleted by
//! its digest. Other tags of the old manifest stay.
//!
//! Invariant: a registry that deletes no manifests is detected before anything changes.

use std::collections::BTreeSet;

use acrtask_model::{Digest, ImageRef};
use acrtask_registry::{Registry, RegistryError, manifest::OCI_MANIFEST};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::json;

use crate::{
    Permission, describe_error,
    inventory::RegistryKind,
    plan::{ManifestLine, RepositoryPlan, TagLine},
    purge::Context,
};

/// Media type of the empty JSON object.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Artifact type of the manifest that replaces a tag before its deletion.
pub(crate) const REPLACEMENT: &str = "application/vnd.acrtask.deleted-tag.v1";

/// Deletion that has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done<'p> {
    /// The tag was unlocked.
    UnlockedTag(&'p TagLine),
    /// The tag was deleted.
    DeletedTag(&'p TagLine),
    /// All tags are deleted. Manifests follow.
    Manifests,
    /// The manifest was unlocked.
    UnlockedManifest(&'p ManifestLine),
    /// The manifest was deleted.
    DeletedManifest(&'p ManifestLine),
}

/// Deleter of tags and manifests at one registry.
pub struct Deleter<'a> {
    registry: &'a Registry,
    kind: RegistryKind,
    permission: &'a dyn Permission,
    now: Timestamp,
    /// `true` if the registry deletes single tags. `None` before the first one.
    deletes_tags: Option<bool>,
    /// `true` if the registry keeps the tags of a deleted manifest. `None` before the first one.
    keeps_tags: Option<bool>,
    /// `true` if the registry has deleted a manifest.
    deletes_manifests: bool,
    /// `true` if the registry has refused to delete manifests at all.
    is_unsupported: bool,
}

impl<'a> Deleter<'a> {
    /// Creates a deleter that checks the permission of `context` before each deletion.
    pub fn new(context: &Context<'a>, kind: RegistryKind) -> Self {
        Self {
            registry: context.registry,
            kind,
            permission: context.permission,
            now: context.now,
            deletes_tags: None,
            keeps_tags: None,
            deletes_manifests: false,
            is_unsupported: false,
        }
    }

    /// Returns `true` if the registry has refused to delete manifests at all.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.is_unsupported
    }

    /// Deletes the tags and manifests of a plan. Reports each deletion to `report`.
    ///
    /// # Errors
    /// The first deletion that failed. The rest of the plan is not carried out.
    pub async fn carry_out<'p>(
        &mut self,
        image: &ImageRef,
        plan: &'p RepositoryPlan,
        report: &mut (dyn FnMut(Done<'p>) + Send),
    ) -> Result<(), String> {
        let order: Vec<&ManifestLine> = plan.deleted_manifests().collect();
        let going: BTreeSet<&Digest> = order.iter().map(|line| &line.digest).collect();
        let mut deleted: BTreeSet<&Digest> = BTreeSet::new();
        let mut unlocked: BTreeSet<&Digest> = BTreeSet::new();
        for line in plan.deleted_tags() {
            let tag = with_tag(image, &line.tag)?;
            if self.kind == RegistryKind::Acr {
                self.check_permission().await?;
                if line.unlock {
                    let done = self.registry.unlock_acr(&tag).await;
                    done.map_err(|error| describe_error(&error))?;
                    report(Done::UnlockedTag(line));
                }
                let done = self.registry.delete_acr_tag(&tag).await;
                done.map_err(|error| describe_error(&error))?;
                report(Done::DeletedTag(line));
                continue;
            }
            let is_present =
                deleted.contains(&line.digest) || self.is_unchanged(&tag, line).await?;
            if is_present && going.contains(&line.digest) {
                // Everything before it in the order refers to it or contains it, or goes anyway.
                for manifest in &order {
                    if deleted.contains(&line.digest) {
                        break;
                    }
                    if deleted.insert(&manifest.digest) {
                        self.delete_manifest(image, &manifest.digest).await?;
                    }
                }
                self.delete_remaining_tag(&tag, line).await?;
            } else if is_present {
                self.delete_tag(image, &tag, line, plan).await?;
            }
            report(Done::DeletedTag(line));
        }
        report(Done::Manifests);
        for line in order {
            if self.kind == RegistryKind::Acr && line.unlock && unlocked.insert(&line.digest) {
                self.check_permission().await?;
                let by_digest = image.at(line.digest.clone());
                let done = self.registry.unlock_acr(&by_digest).await;
                done.map_err(|error| describe_error(&error))?;
                report(Done::UnlockedManifest(line));
            }
            if deleted.insert(&line.digest) {
                self.delete_manifest(image, &line.digest).await?;
            }
            report(Done::DeletedManifest(line));
        }
        Ok(())
    }

    async fn check_permission(&self) -> Result<(), String> {
        self.permission.check().await
    }

    /// Returns `false` if the tag has disappeared.
    async fn is_unchanged(&self, tag: &ImageRef, line: &TagLine) -> Result<bool, String> {
        match self.registry.resolve(tag).await {
            Ok(found) if found.digest == line.digest => Ok(true),
            Ok(_) => Err(format!(
                "{tag} has moved since the plan was made, so the rest of the plan for {} was not carried out; run it again",
                tag.name()
            )),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(describe_error(&error)),
        }
    }

    /// Deletes a tag that outlives its deleted manifest. Some registries keep such tags, and even
    /// serve the content.
    async fn delete_remaining_tag(&mut self, tag: &ImageRef, line: &TagLine) -> Result<(), String> {
        let keeps_tags = match self.keeps_tags {
            Some(keeps_tags) => keeps_tags,
            // The first deletion shows this.
            None => match self.registry.resolve(tag).await {
                Ok(found) if found.digest == line.digest => true,
                // Another program has set the tag meanwhile.
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => false,
                Err(error) => return Err(describe_error(&error)),
            },
        };
        self.keeps_tags = Some(keeps_tags);
        if !keeps_tags {
            return Ok(());
        }
        self.check_permission().await?;
        let deleted = self.registry.delete_tag(tag).await;
        deleted.map_err(|error| describe_error(&error))
    }

    /// Deletes a manifest by its digest.
    ///
    /// # Errors
    /// The registry deletes no manifests, or the request failed.
    pub async fn delete_manifest(
        &mut self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<(), String> {
        self.check_permission().await?;
        self.delete_unchecked(image, digest).await
    }

    async fn delete_unchecked(&mut self, image: &ImageRef, digest: &Digest) -> Result<(), String> {
        let by_digest = image.at(digest.clone());
        match self.registry.delete_manifest(&by_digest).await {
            Ok(()) => {
                self.deletes_manifests = true;
                Ok(())
            }
            Err(RegistryError::Refused {
                status: 400 | 405 | 501,
                ref host,
                ..
            }) if !self.deletes_manifests => {
                self.is_unsupported = true;
                Err(unsupported(host))
            }
            Err(error) => Err(describe_error(&error)),
        }
    }

    /// Deletes a tag whose manifest stays.
    ///
    /// # Errors
    /// The registry deletes neither tags nor manifests, or the request failed.
    pub async fn delete_tag(
        &mut self,
        image: &ImageRef,
        tag: &ImageRef,
        line: &TagLine,
        plan: &RepositoryPlan,
    ) -> Result<(), String> {
        if self.deletes_tags != Some(false) {
            self.check_permission().await?;
            // Some registries delete the manifest with all its tags. The first deletion shows this.
            let before = match self.deletes_tags {
                None => Some(self.registry.manifest(&image.at(line.digest.clone())).await),
                Some(_) => None,
            };
            match self.registry.delete_tag(tag).await {
                Ok(()) => {
                    let Some(before) = before else { return Ok(()) };
                    let manifest = before.map_err(|error| describe_error(&error))?;
                    let by_digest = image.at(line.digest.clone());
                    match self.registry.resolve(&by_digest).await {
                        Ok(_) => self.deletes_tags = Some(true),
                        Err(error) if error.is_not_found() => {
                            self.deletes_tags = Some(false);
                            let others = plan
                                .tags
                                .iter()
                                .filter(|other| other.digest == line.digest && !other.delete);
                            let mut targets = vec![by_digest];
                            for other in others {
                                targets.push(with_tag(image, &other.tag)?);
                            }
                            for target in targets {
                                let put = self.registry.put_manifest(
                                    &target,
                                    &manifest.media_type,
                                    manifest.raw.clone(),
                                );
                                put.await.map_err(|error| describe_error(&error))?;
                            }
                        }
                        Err(error) => return Err(describe_error(&error)),
                    }
                    return Ok(());
                }
                Err(RegistryError::Refused {
                    status: 400 | 405 | 501,
                    ..
                }) => self.deletes_tags = Some(false),
                Err(error) => return Err(describe_error(&error)),
            }
        }
        self.overwrite_and_delete(image, tag).await
    }

    async fn overwrite_and_delete(
        &mut self,
        image: &ImageRef,
        tag: &ImageRef,
    ) -> Result<(), String> {
        self.check_permission().await?;
        let empty = Bytes::from_static(b"{}");
        let put = self.registry.put_blob(&image.untagged(), empty).await;
        let blob = put.map_err(|error| describe_error(&error))?;
        let raw = replacement_manifest(tag, &blob, self.now);
        if !self.deletes_manifests {
            // An untagged manifest proves that the registry deletes manifests.
            let digest = self.put(&image.untagged(), raw.clone()).await?;
            self.delete_unchecked(image, &digest).await?;
        }
        self.check_permission().await?;
        let digest = self.put(tag, raw).await?;
        self.delete_unchecked(image, &digest).await
    }

    async fn put(&self, target: &ImageRef, raw: Bytes) -> Result<Digest, String> {
        let put = self.registry.put_manifest(target, OCI_MANIFEST, raw).await;
        put.map_err(|error| describe_error(&error))
    }
}

/// Returns the reference of a tag in the repository of `image`.
pub(crate) fn with_tag(image: &ImageRef, tag: &str) -> Result<ImageRef, String> {
    image.with_tag(tag).map_err(|error| error.to_string())
}

/// Returns a manifest without content. Name and time make its digest unique.
fn replacement_manifest(tag: &ImageRef, blob: &Digest, now: Timestamp) -> Bytes {
    let empty = json!({"mediaType": EMPTY, "digest": blob.as_str(), "size": 2});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": REPLACEMENT,
        "config": empty,
        "layers": [empty],
        "annotations": {
            "org.opencontainers.image.ref.name": tag.to_string(),
            "org.opencontainers.image.created": now.to_string(),
        },
    });
    manifest.to_string().into()
}

fn unsupported(host: &str) -> String {
    let instead = match host {
        "ghcr.io" => {
            "delete versions of the package through the REST API of GitHub: `gh api --method DELETE /orgs/ORG/packages/container/NAME/versions/ID`"
        }
        _ => {
            "allow deletions in its configuration (`storage.delete.enabled: true` of the distribution registry), or use the cleanup rules that it offers"
        }
    };
    format!("{host} deletes no manifests, so nothing was deleted; {instead}")
}
