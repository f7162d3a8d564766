//! Decision which tags and manifests of one repository go, with the reason of each line. Pure.
//!
//! A manifest stays if a tag that stays names it, if an index that stays contains it at any depth,
//! if its subject stays, or if it is locked. Tags of signatures (`sha256-HEX.sig`) follow their
//! subject.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use acrtask_model::Digest;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use acrtask_api::registry_record::Need;

use crate::rules::{Rules, Untagged, plan_tags};

/// Content of one repository.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    /// Name of the repository: `team/app`.
    pub name: String,
    /// Tags, in the order in which a purge names them.
    pub tags: Vec<Tag>,
    /// Manifests by digest.
    pub manifests: BTreeMap<Digest, ManifestFacts>,
    /// Manifests that the server's images need, with the need of each.
    pub needed: BTreeMap<Digest, Need>,
    /// Tags that the server's images need.
    pub needed_tags: BTreeMap<String, Need>,
    /// `true` if the registry has the repository.
    pub exists: bool,
    /// `true` if the registry has its own API, which lists untagged manifests with their times and
    /// deletes the referrers of a deleted manifest.
    pub has_own_api: bool,
}

/// Tag of a repository.
#[derive(Debug, Clone)]
pub struct Tag {
    /// Name of the tag.
    pub name: String,
    /// Digest of the tag's manifest.
    pub digest: Digest,
    /// Time of the last change. `None` if no source states it.
    pub updated: Option<Timestamp>,
    /// `true` if the registry locks the tag.
    pub is_locked: bool,
}

/// Facts about a manifest.
#[derive(Debug, Clone, Default)]
pub struct ManifestFacts {
    /// Time of the last change. `None` if no source states it.
    pub updated: Option<Timestamp>,
    /// Manifests that an index contains.
    pub children: Vec<Digest>,
    /// Manifest that this one refers to, such as the image of a signature.
    pub subject: Option<Digest>,
    /// `true` if the registry locks the manifest.
    pub is_locked: bool,
    /// `true` if the content cannot be read. The children and the subject are then missing.
    pub is_unreadable: bool,
}

/// Reason of a line of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Deleted: last changed at this time.
    Old(Timestamp),
    /// Deleted: no tag names the manifest any more.
    Untagged,
    /// Deleted with the index that contains it.
    ChildOfDeleted(Digest),
    /// Deleted with its subject.
    ReferrerOfDeleted(Digest),
    /// Kept: no filter selects the tag.
    NotSelected,
    /// Kept: locked by the registry.
    Locked,
    /// Kept: no source states the age.
    UnknownAge,
    /// Kept: last changed at this time.
    Young(Timestamp),
    /// Kept as one of the newest.
    Newest,
    /// Kept by this expression of a rule.
    Pattern(String),
    /// Kept: an image of the server needs it.
    Needed(Need),
    /// Kept for the next run: the limit of this run is reached.
    Limit,
    /// Kept: signature or other companion of this manifest.
    CompanionOf(Digest),
    /// Kept: this tag names it.
    HasTag(String),
    /// Kept: this index, which stays, contains it.
    ChildOfKept(Digest),
    /// Kept: its subject stays.
    ReferrerOfKept(Digest),
    /// Kept: its subject is not in the repository.
    MissingSubject(Digest),
    /// Kept: its content cannot be read.
    Unreadable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |time: &Timestamp| time.strftime("%Y-%m-%d %H:%M UTC").to_string();
        match self {
            Self::Old(time) => write!(f, "last updated {}", day(time)),
            Self::Untagged => f.write_str("untagged"),
            Self::ChildOfDeleted(index) => write!(f, "only in the deleted index {index}"),
            Self::ReferrerOfDeleted(subject) => write!(f, "refers to the deleted {subject}"),
            Self::NotSelected => f.write_str("no filter selects it: kept"),
            Self::Locked => f.write_str("locked: kept"),
            Self::UnknownAge => f.write_str("unknown age: kept"),
            Self::Young(time) => write!(f, "last updated {}: kept", day(time)),
            Self::Newest => f.write_str("one of the newest: kept"),
            Self::Pattern(expression) => write!(f, "a rule keeps `{expression}`: kept"),
            Self::Needed(need) => write!(f, "{need}: kept"),
            Self::Limit => f.write_str("the limit of this run is reached: kept for the next one"),
            Self::CompanionOf(subject) => write!(f, "belongs to {subject}: kept"),
            Self::HasTag(tag) => write!(f, "the tag {tag} names it: kept"),
            Self::ChildOfKept(index) => write!(f, "part of the index {index}: kept"),
            Self::ReferrerOfKept(subject) => write!(f, "refers to {subject}: kept"),
            Self::MissingSubject(subject) => {
                write!(f, "refers to {subject}, which is missing: kept")
            }
            Self::Unreadable => f.write_str("its content cannot be read: kept"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Line of the plan about a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TagLine {
    /// Name of the tag.
    pub tag: String,
    /// Digest of the tag's manifest when the plan was made.
    pub digest: Digest,
    /// `true` if the tag goes.
    pub delete: bool,
    /// `true` if the tag needs to be unlocked first.
    pub unlock: bool,
    /// Reason of the decision.
    pub reason: Reason,
}

/// Line of the plan about a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestLine {
    /// Digest of the manifest.
    pub digest: Digest,
    /// `true` if the manifest goes.
    pub delete: bool,
    /// `true` if the manifest needs to be unlocked first.
    pub unlock: bool,
    /// Reason of the decision.
    pub reason: Reason,
}

/// Plan for one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryPlan {
    /// Name of the repository.
    pub repository: String,
    /// All tags of the repository.
    pub tags: Vec<TagLine>,
    /// Manifests that go, in the order of their deletion, and then those that lost a tag or have
    /// none, and stay.
    pub manifests: Vec<ManifestLine>,
}

impl RepositoryPlan {
    /// Returns the lines of the tags that go.
    pub fn deleted_tags(&self) -> impl Iterator<Item = &TagLine> {
        self.tags.iter().filter(|line| line.delete)
    }

    /// Returns the share of deleted tags in percent if it exceeds `limit`. Tags of signatures do not
    /// count.
    pub fn share_over(&self, limit: Option<u8>) -> Option<usize> {
        let counted = |line: &&TagLine| companion_subject(&line.tag).is_none();
        let all = self.tags.iter().filter(counted).count();
        let deleted = self.deleted_tags().filter(counted).count();
        let limit = usize::from(limit?);
        (deleted * 100 > limit * all).then(|| deleted * 100 / all.max(1))
    }

    /// Returns the number of deletions that count against the limit of a run: tags, but those of
    /// signatures, or manifests that had no tag, whichever are more.
    pub fn limited_count(&self) -> usize {
        let counted = |line: &&TagLine| companion_subject(&line.tag).is_none();
        let tagged: BTreeSet<&Digest> = self.tags.iter().map(|line| &line.digest).collect();
        let untagged = self
            .deleted_manifests()
            .filter(|line| line.reason == Reason::Untagged && !tagged.contains(&line.digest));
        self.deleted_tags()
            .filter(counted)
            .count()
            .max(untagged.count())
    }

    /// Returns the lines of the manifests that go, referrers before their subjects and indexes
    /// before their children.
    pub fn deleted_manifests(&self) -> impl Iterator<Item = &ManifestLine> {
        self.manifests.iter().filter(|line| line.delete)
    }
}

/// Decides which tags and manifests of a repository go.
///
/// # Errors
/// An expression of a filter needs too many steps.
pub fn plan_repository(repository: &Repository, rules: &Rules) -> Result<RepositoryPlan, String> {
    let mut tags = plan_tags(repository, rules)?;
    let manifests = match rules.untagged {
        Untagged::Keep => Vec::new(),
        Untagged::Delete | Untagged::Only => plan_manifests(repository, rules, &mut tags),
    };
    Ok(RepositoryPlan {
        repository: repository.name.clone(),
        tags,
        manifests,
    })
}

/// Returns the digest in the name of a companion tag: `sha256-HEX`, also with `.sig`, `.att` or
/// `.sbom`. `None` for other tags.
pub fn companion_subject(tag: &str) -> Option<Digest> {
    let (name, suffix) = tag.split_once('.').unwrap_or((tag, "sig"));
    if !["sig", "att", "sbom"].contains(&suffix) {
        return None;
    }
    let (algorithm, hex) = name.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Decides about manifests, and about companion tags of deleted manifests.
fn plan_manifests(
    repository: &Repository,
    rules: &Rules,
    tags: &mut [TagLine],
) -> Vec<ManifestLine> {
    let graph = Graph::new(repository);
    let mut roots = find_roots(repository, rules, tags);
    if repository.has_own_api && (rules.newest > 0 || rules.limit.is_some()) {
        // The newest of what would go stay, with all that they need.
        let kept = graph.close(&roots);
        let deleted = find_deleted(repository, &graph, tags, &kept);
        let mut newest: Vec<(Timestamp, &Digest)> = deleted
            .keys()
            .filter_map(|digest| Some((repository.manifests.get(digest)?.updated?, digest)))
            .collect();
        newest.sort_by(|a, b| b.cmp(a));
        let had_tag: BTreeSet<&Digest> = tags.iter().map(|line| &line.digest).collect();
        let untagged = newest
            .iter()
            .filter(|(_, digest)| !had_tag.contains(digest));
        let over_limit = match rules.limit {
            Some(limit) => untagged.clone().count().saturating_sub(limit),
            None => 0,
        };
        let over_limit = untagged
            .take(over_limit)
            .map(|(_, digest)| (digest, Reason::Limit));
        let newest = newest.iter().take(rules.newest);
        let newest = newest.map(|(_, digest)| (digest, Reason::Newest));
        for (digest, reason) in newest.chain(over_limit) {
            roots.entry((*digest).clone()).or_insert(reason);
        }
    }
    // Companions go with their subjects, also companions of companions.
    loop {
        let deleted = find_deleted(repository, &graph, tags, &graph.close(&roots));
        let mut has_changed = false;
        for line in tags.iter_mut().filter(|line| !line.delete) {
            if let Some(subject) = companion_subject(&line.tag)
                && deleted.contains_key(&subject)
            {
                line.delete = true;
                line.reason = Reason::ReferrerOfDeleted(subject);
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    // The other companions stay, and may protect more. Each pass only adds roots.
    let (kept, deleted) = loop {
        for line in tags.iter().filter(|line| !line.delete) {
            if companion_subject(&line.tag).is_some() {
                let reason = Reason::HasTag(line.tag.clone());
                roots.entry(line.digest.clone()).or_insert(reason);
            }
        }
        let kept = graph.close(&roots);
        let deleted = find_deleted(repository, &graph, tags, &kept);
        let mut has_changed = false;
        for line in tags.iter_mut().filter(|line| line.delete) {
            if let Some(subject) = companion_subject(&line.tag)
                && !deleted.contains_key(&subject)
            {
                line.delete = false;
                line.reason = Reason::CompanionOf(subject);
                has_changed = true;
            }
        }
        if !has_changed {
            break (kept, deleted);
        }
    };
    let unlock = |digest: &Digest| {
        let facts = repository.manifests.get(digest);
        facts.is_some_and(|facts| facts.is_locked)
    };
    let mut lines: Vec<ManifestLine> = graph
        .order(&deleted)
        .into_iter()
        .map(|(digest, reason)| ManifestLine {
            unlock: unlock(&digest),
            digest,
            delete: true,
            reason,
        })
        .collect();
    let has_kept_tag: BTreeSet<&Digest> = tags
        .iter()
        .filter(|line| !line.delete)
        .map(|line| &line.digest)
        .collect();
    let lost_a_tag: BTreeSet<&Digest> = tags
        .iter()
        .filter(|line| line.delete)
        .map(|line| &line.digest)
        .collect();
    let stays = kept.into_iter().filter(|(digest, _)| {
        lost_a_tag.contains(digest)
            || (repository.has_own_api
                && repository.manifests.contains_key(digest)
                && !has_kept_tag.contains(digest))
    });
    lines.extend(stays.map(|(digest, reason)| ManifestLine {
        digest,
        delete: false,
        unlock: false,
        reason,
    }));
    lines
}

/// Returns the manifests that stay for a reason of their own.
fn find_roots(
    repository: &Repository,
    rules: &Rules,
    tags: &[TagLine],
) -> BTreeMap<Digest, Reason> {
    let mut roots = BTreeMap::new();
    for line in tags.iter().filter(|line| !line.delete) {
        if companion_subject(&line.tag).is_none() {
            let reason = Reason::HasTag(line.tag.clone());
            roots.entry(line.digest.clone()).or_insert(reason);
        }
    }
    for (digest, need) in &repository.needed {
        let reason = Reason::Needed(*need);
        roots.entry(digest.clone()).or_insert(reason);
    }
    for (digest, facts) in &repository.manifests {
        let reason = if facts.is_locked && !rules.include_locked {
            Reason::Locked
        } else if facts.is_unreadable {
            Reason::Unreadable
        } else if !repository.has_own_api {
            continue;
        } else {
            match (&facts.subject, facts.updated) {
                (Some(subject), _) if !repository.manifests.contains_key(subject) => {
                    Reason::MissingSubject(subject.clone())
                }
                (_, None) => Reason::UnknownAge,
                (_, Some(updated)) if updated > rules.cutoff => Reason::Young(updated),
                _ => continue,
            }
        };
        roots.entry(digest.clone()).or_insert(reason);
    }
    roots
}

/// Returns the manifests that go, with their reasons.
fn find_deleted(
    repository: &Repository,
    graph: &Graph<'_>,
    tags: &[TagLine],
    kept: &BTreeMap<Digest, Reason>,
) -> BTreeMap<Digest, Reason> {
    let mut deleted = BTreeMap::new();
    let mut queue = VecDeque::new();
    let stays = |digest: &Digest| kept.contains_key(digest);
    let mut add = |digest: &Digest, reason: Reason, queue: &mut VecDeque<Digest>| {
        if !stays(digest) && !deleted.contains_key(digest) {
            deleted.insert(digest.clone(), reason);
            queue.push_back(digest.clone());
        }
    };
    for line in tags.iter().filter(|line| line.delete) {
        let reason = match companion_subject(&line.tag) {
            Some(subject) => Reason::ReferrerOfDeleted(subject),
            None => Reason::Untagged,
        };
        add(&line.digest, reason, &mut queue);
    }
    if repository.has_own_api {
        // The registry deletes referrers with their subjects.
        for (digest, facts) in &repository.manifests {
            if facts.subject.is_none() {
                add(digest, Reason::Untagged, &mut queue);
            }
        }
        return deleted;
    }
    while let Some(digest) = queue.pop_front() {
        let facts = repository.manifests.get(&digest);
        for child in facts.iter().flat_map(|facts| &facts.children) {
            add(child, Reason::ChildOfDeleted(digest.clone()), &mut queue);
        }
        for referrer in graph.referrers_of(&digest) {
            let reason = Reason::ReferrerOfDeleted(digest.clone());
            add(referrer, reason, &mut queue);
        }
    }
    deleted
}

/// Edges between the manifests of a repository.
struct Graph<'a> {
    manifests: &'a BTreeMap<Digest, ManifestFacts>,
    referrers: BTreeMap<&'a Digest, Vec<&'a Digest>>,
}

impl<'a> Graph<'a> {
    fn new(repository: &'a Repository) -> Self {
        let mut referrers: BTreeMap<&Digest, Vec<&Digest>> = BTreeMap::new();
        for (digest, facts) in &repository.manifests {
            if let Some(subject) = &facts.subject {
                referrers.entry(subject).or_default().push(digest);
            }
        }
        Self {
            manifests: &repository.manifests,
            referrers,
        }
    }

    fn referrers_of(&self, digest: &Digest) -> impl Iterator<Item = &'a Digest> {
        let found = self.referrers.get(digest).cloned();
        found.unwrap_or_default().into_iter()
    }

    /// Returns `roots` with all their children and referrers, at any depth.
    fn close(&self, roots: &BTreeMap<Digest, Reason>) -> BTreeMap<Digest, Reason> {
        let mut kept = roots.clone();
        let mut queue: VecDeque<Digest> = roots.keys().cloned().collect();
        while let Some(digest) = queue.pop_front() {
            let facts = self.manifests.get(&digest);
            let children = facts.iter().flat_map(|facts| &facts.children);
            let children = children.map(|child| (child, Reason::ChildOfKept(digest.clone())));
            let referrers = self
                .referrers_of(&digest)
                .map(|referrer| (referrer, Reason::ReferrerOfKept(digest.clone())));
            for (next, reason) in children.chain(referrers) {
                if !kept.contains_key(next) {
                    kept.insert(next.clone(), reason);
                    queue.push_back(next.clone());
                }
            }
        }
        kept
    }

    /// Orders deletions: referrers before their subjects, and indexes before their children.
    fn order(&self, deleted: &BTreeMap<Digest, Reason>) -> Vec<(Digest, Reason)> {
        let later = |digest: &Digest| {
            let facts = self.manifests.get(digest);
            let edges = facts.into_iter().flat_map(|facts| {
                let children = facts.children.iter();
                children.chain(&facts.subject)
            });
            let edges: BTreeSet<Digest> = edges
                .filter(|next| deleted.contains_key(next))
                .cloned()
                .collect();
            edges
        };
        let mut waiting: BTreeMap<&Digest, usize> =
            deleted.keys().map(|digest| (digest, 0)).collect();
        for digest in deleted.keys() {
            for next in later(digest) {
                if let Some(count) = waiting.get_mut(&next) {
                    *count += 1;
                }
            }
        }
        let mut ready: BTreeSet<Digest> = waiting
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(digest, _)| (*digest).clone())
            .collect();
        let mut ordered = Vec::with_capacity(deleted.len());
        while let Some(digest) = ready.pop_first() {
            for next in later(&digest) {
                if let Some(count) = waiting.get_mut(&next) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        ready.insert(next.clone());
                    }
                }
            }
            waiting.remove(&digest);
            ordered.push(digest);
        }
        // Digests admit no cycle. A registry that claims one loses only the order.
        ordered.extend(waiting.keys().map(|digest| (*digest).clone()));
        ordered
            .into_iter()
            .filter_map(|digest| {
                let reason = deleted.get(&digest)?.clone();
                Some((digest, reason))
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
