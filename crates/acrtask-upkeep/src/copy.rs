//! Copies of images with everything that belongs to them: platforms, referrers of all of them, and
//! the tags of cosign.
//!
//! A copy has four parts: it reads the graph of manifests, copies the missing blobs, copies the
//! missing manifests, and sets the tags. The tag of the image comes last, so a tag names a complete
//! image. A repeated copy continues where the last one stopped.
//!
//! Invariants:
//! - Manifests keep every byte, so all digests stay the same.
//! - Blobs are streamed or mounted, never kept in memory.
//!
//! Left out: layers that stay at their publisher.

mod graph;
mod site;

use std::collections::BTreeSet;

use acrtask_model::Digest;
use acrtask_registry::{BlobCopy, Registry};
use futures::StreamExt as _;
use serde::Serialize;

use self::{
    graph::read_graph,
    site::{Site, copy_blob},
};
use crate::{Line, Lines, location::Location};

/// Number of concurrent copies of blobs.
const BLOBS: usize = 4;

/// Request to copy an image.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Current location of the image.
    pub source: Location,
    /// New location of the image. Without a tag, the copy has the tag of the source.
    pub target: Location,
    /// Only platform to copy: `linux/arm64`. `None` for all.
    pub platform: Option<String>,
}

/// Relation of a manifest to the copied image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Image or index that was requested.
    Image,
    /// Part of an index: a platform or an attestation of BuildKit.
    Part,
    /// Artifact whose subject is another manifest of the copy.
    Referrer,
    /// Manifest of a tag of cosign.
    Companion,
}

/// Result of the copy of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopiedManifest {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Media type of the manifest.
    pub media_type: String,
    /// Relation to the copied image.
    pub role: Role,
    /// `true` if the target had the manifest.
    pub existed: bool,
}

/// Numbers of blobs by the way of their copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobCounts {
    /// Transferred blobs.
    pub copied: usize,
    /// Blobs that the registry mounted from another repository.
    pub mounted: usize,
    /// Blobs that the target had.
    pub existing: usize,
    /// Size of the transferred blobs, in bytes.
    pub copied_bytes: u64,
}

/// Result of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CopyReport {
    /// Location of the original.
    pub source: String,
    /// Location of the copy, with its digest.
    pub target: String,
    /// Digest of the image, the same at both locations.
    pub digest: Digest,
    /// Tags that the target has now.
    pub tags: Vec<String>,
    /// Copied manifests.
    pub manifests: Vec<CopiedManifest>,
    /// Copied blobs.
    pub blobs: BlobCounts,
}

/// Copies an image. Prints progress to `lines` as lines of standard error.
///
/// # Errors
/// A sentence about the first manifest or blob that cannot be copied.
pub async fn copy(
    registry: &Registry,
    request: &Copy,
    lines: &Lines,
) -> Result<CopyReport, String> {
    let source = Site::new(registry, &request.source).await?;
    let root = source.read_root(request.platform.as_deref()).await?;
    let root_digest = root.digest.clone();
    if let Some(wanted) = request.target.digest()
        && *wanted != root_digest
    {
        return Err(format!(
            "{} has the digest {root_digest}, so the target cannot have {wanted}",
            request.source
        ));
    }
    let graph = read_graph(&source, root).await?;
    if let Location::Layout { layout, .. } = &request.target {
        layout.create().await?;
    }
    let target = Site::new(registry, &request.target).await?;
    let print = |text: String| {
        let _ = lines.send(Line::Err(text));
    };

    let existing = target.find_existing(&graph).await?;
    let blobs = match &request.target {
        // A registry has the blobs of its manifests. A folder may be incomplete.
        Location::Registry(_) => graph.blobs(&existing),
        Location::Layout { .. } => graph.blobs(&BTreeSet::new()),
    };
    print(format!(
        "{} manifests, {} of them missing at the target; {} blobs to check",
        graph.nodes.len(),
        graph.nodes.len() - existing.len(),
        blobs.len()
    ));
    let mut report = CopyReport {
        source: request.source.to_string(),
        target: String::new(),
        digest: root_digest.clone(),
        tags: Vec::new(),
        manifests: Vec::new(),
        blobs: BlobCounts::default(),
    };
    let total = blobs.len();
    let copies: Vec<_> = blobs
        .into_iter()
        .map(|blob| copy_blob(&source, &target, blob))
        .collect();
    let mut copies = futures::stream::iter(copies).buffer_unordered(BLOBS);
    let mut done = 0;
    while let Some(copied) = copies.next().await {
        let (blob, way) = copied?;
        done += 1;
        let counts = &mut report.blobs;
        let word = match way {
            BlobCopy::Existing => {
                counts.existing += 1;
                "exists"
            }
            BlobCopy::Mounted => {
                counts.mounted += 1;
                "mounted"
            }
            BlobCopy::Copied => {
                counts.copied += 1;
                counts.copied_bytes += blob.size;
                "copied"
            }
        };
        print(format!(
            "blob {done}/{total} {}: {word}, {} bytes",
            blob.digest, blob.size
        ));
    }
    for digest in graph.order() {
        let Some(node) = graph.nodes.get(&digest) else {
            continue;
        };
        let existed = existing.contains(&digest);
        if !existed {
            target.put_manifest(&node.manifest).await?;
            print(format!("manifest {digest}: copied"));
        }
        report.manifests.push(CopiedManifest {
            digest,
            media_type: node.manifest.media_type.clone(),
            role: node.role,
            existed,
        });
    }
    let tag = match (request.target.tag(), request.target.digest()) {
        (Some(tag), _) => Some(tag),
        (None, Some(_)) => None,
        (None, None) => request.source.tag(),
    };
    report.tags = target.set_tags(&graph, &root_digest, tag).await?;
    report.target = match (&request.target, tag) {
        (Location::Registry(image), Some(tag)) => format!("{}:{tag}@{root_digest}", image.name()),
        (Location::Registry(image), None) => format!("{}@{root_digest}", image.name()),
        (Location::Layout { layout, .. }, _) => {
            let (tag, digest) = (tag.map(str::to_owned), Some(root_digest));
            Location::Layout {
                layout: layout.clone(),
                tag,
                digest,
            }
            .to_string()
        }
    };
    Ok(report)
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
