//! Graph of the manifests of a copy: parts and referrers at any depth, and the tags of cosign.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use acrtask_model::Digest;
use acrtask_registry::{Descriptor, Manifest, ManifestBody};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{Role, site::Site};

/// Number of concurrent requests for manifests.
const READS: usize = 8;
/// Maximum number of manifests of one copy.
const MAX_MANIFESTS: usize = 10_000;
/// Maximum size of all manifests of one copy, in bytes.
const MAX_BYTES: usize = 128 << 20;

/// Manifest of the graph.
pub(super) struct Node {
    pub(super) manifest: Manifest,
    pub(super) role: Role,
}

/// All manifests of a copy.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) nodes: BTreeMap<Digest, Node>,
    /// Referrers by subject.
    pub(super) referrers: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Tags of cosign with their manifests.
    pub(super) companions: BTreeMap<String, Digest>,
}

impl Graph {
    /// Returns the blobs of all manifests that the target does not have, each once.
    pub(super) fn blobs(&self, existing: &BTreeSet<Digest>) -> Vec<Descriptor> {
        let mut found: BTreeMap<Digest, Descriptor> = BTreeMap::new();
        for (digest, node) in &self.nodes {
            if !existing.contains(digest) {
                for blob in blobs_of(&node.manifest) {
                    found.entry(blob.digest.clone()).or_insert(blob);
                }
            }
        }
        found.into_values().collect()
    }

    /// Orders the manifests: parts before their index, and subjects before their referrers.
    pub(super) fn order(&self) -> Vec<Digest> {
        let needs = |digest: &Digest, node: &Node| {
            let subject = node.manifest.subject().ok().flatten();
            let all = children_of(&node.manifest).into_iter().chain(subject);
            let found: BTreeSet<Digest> = all
                .filter(|next| next != digest && self.nodes.contains_key(next))
                .collect();
            found
        };
        let mut waiting: BTreeMap<&Digest, BTreeSet<Digest>> = self
            .nodes
            .iter()
            .map(|(digest, node)| (digest, needs(digest, node)))
            .collect();
        let mut users: BTreeMap<Digest, Vec<&Digest>> = BTreeMap::new();
        for (digest, needed) in &waiting {
            for next in needed {
                users.entry(next.clone()).or_default().push(digest);
            }
        }
        let mut ready: VecDeque<&Digest> = waiting
            .iter()
            .filter(|(_, needed)| needed.is_empty())
            .map(|(digest, _)| *digest)
            .collect();
        let mut ordered = Vec::with_capacity(self.nodes.len());
        while let Some(digest) = ready.pop_front() {
            waiting.remove(digest);
            ordered.push(digest.clone());
            for user in users.remove(digest).unwrap_or_default() {
                if let Some(needed) = waiting.get_mut(user)
                    && needed.remove(digest)
                    && needed.is_empty()
                {
                    ready.push_back(user);
                }
            }
        }
        // Digests admit no cycle.
        ordered.extend(waiting.into_keys().cloned());
        ordered
    }
}

/// Returns the manifests that an index contains.
pub(super) fn children_of(manifest: &Manifest) -> Vec<Digest> {
    match &manifest.body {
        ManifestBody::Index(index) => {
            let entries = index.manifests.iter().filter(|entry| entry.is_manifest());
            entries.map(|entry| entry.digest.clone()).collect()
        }
        ManifestBody::Image(_) => Vec::new(),
    }
}

/// Returns the blobs that a manifest refers to. The index of a build cache refers to blobs too.
pub(super) fn blobs_of(manifest: &Manifest) -> Vec<Descriptor> {
    match &manifest.body {
        ManifestBody::Index(index) => {
            let entries = index.manifests.iter().filter(|entry| !entry.is_manifest());
            entries.cloned().collect()
        }
        ManifestBody::Image(image) => image.distributable_blobs().cloned().collect(),
    }
}

/// Reads the graph of an image: parts and referrers at any depth, and the tags of cosign.
pub(super) async fn read_graph(source: &Site<'_>, root: Manifest) -> Result<Graph, String> {
    let mut graph = Graph::default();
    let mut bytes = 0;
    let mut layer = vec![(root, Role::Image)];
    while !layer.is_empty() {
        let mut wanted: BTreeMap<Digest, Role> = BTreeMap::new();
        let mut found = Vec::new();
        for (manifest, role) in layer {
            let digest = manifest.digest.clone();
            bytes += manifest.raw.len();
            for child in children_of(&manifest) {
                wanted.entry(child).or_insert(match role {
                    Role::Image => Role::Part,
                    other => other,
                });
            }
            graph.nodes.insert(digest.clone(), Node { manifest, role });
            found.push(digest);
        }
        if graph.nodes.len() > MAX_MANIFESTS || bytes > MAX_BYTES {
            return Err(format!(
                "the image has more than {MAX_MANIFESTS} manifests or {} MiB of them",
                MAX_BYTES >> 20
            ));
        }
        let reads: Vec<_> = found
            .into_iter()
            .map(|digest| source.read_attached(digest))
            .collect();
        let attached: Vec<Attached> = run(reads).await?;
        for one in attached {
            for referrer in &one.referrers {
                wanted.entry(referrer.clone()).or_insert(Role::Referrer);
            }
            if !one.referrers.is_empty() {
                graph.referrers.insert(one.subject, one.referrers);
            }
            for (tag, digest) in one.companions {
                wanted.entry(digest.clone()).or_insert(Role::Companion);
                graph.companions.insert(tag, digest);
            }
        }
        let reads: Vec<_> = wanted
            .into_iter()
            .filter(|(digest, _)| !graph.nodes.contains_key(digest))
            .map(|(digest, role)| async move { Ok((source.read_manifest(&digest).await?, role)) })
            .collect();
        layer = run(reads).await?;
    }
    Ok(graph)
}

/// Runs requests concurrently. Returns their results in order.
pub(super) async fn run<T>(
    requests: Vec<impl Future<Output = Result<T, String>>>,
) -> Result<Vec<T>, String> {
    futures::stream::iter(requests)
        .buffered(READS)
        .try_collect()
        .await
}

/// Manifests that belong to another one.
pub(super) struct Attached {
    pub(super) subject: Digest,
    pub(super) referrers: BTreeSet<Digest>,
    pub(super) companions: Vec<(String, Digest)>,
}
