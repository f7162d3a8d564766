//! Images with a base whose tag has changed since they were built, and relevance of the change for
//! the used platforms.
//!
//! The build's provenance names the platforms of each base, because a stage may run on another
//! platform than the image is for. Without provenance, the platforms of the image apply.
//!
//! Each call compares the current state and stores no result. The task's policy decides which
//! changes trigger a rebuild.

use std::collections::BTreeSet;

use acrtask_model::{Digest, events::BaseRole};
use sqlx::FromRow;

use crate::{
    Result, Store,
    bases::Platforms,
    db::args,
    from_json,
    images::{digest, parse_enum},
    secrets::login_scope,
};

/// A base of a task's image whose tag has another digest than the image was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleBaseRow {
    /// Name of the image.
    pub image: String,
    /// Id of its task.
    pub task_id: String,
    /// Name of the base.
    pub base: String,
    /// Role of the base.
    pub role: BaseRole,
    /// Digest that the image was built from.
    pub used: Digest,
    /// Current digest of the tag.
    pub now: Digest,
    /// The change affects a used platform, or that is unknown.
    pub affects_platforms: bool,
}

#[derive(Debug, FromRow)]
struct RawStaleBase {
    image: String,
    task_id: String,
    platforms: String,
    base_platforms: Option<String>,
    base: String,
    role: String,
    used: String,
    now: String,
    used_platforms: Option<String>,
    now_platforms: Option<String>,
}

/// Normalizes a platform. Registries use both `linux/arm64/v8` and `linux/arm64`.
fn normalize_platform(platform: &str) -> &str {
    if platform == "linux/arm64/v8" {
        "linux/arm64"
    } else {
        platform
    }
}

fn digest_for<'p>(platforms: &'p Platforms, platform: &str) -> Option<&'p Digest> {
    let found = platforms
        .iter()
        .find(|(name, _)| normalize_platform(name) == normalize_platform(platform));
    found.map(|(_, digest)| digest)
}

/// Returns `true` if a digest change affects one of the platforms `in_use`, or if that is unknown.
fn affects(
    used: &Digest,
    before: Option<&Platforms>,
    now: Option<&Platforms>,
    in_use: &[String],
) -> bool {
    let Some(now) = now.filter(|now| !now.is_empty()) else {
        return true;
    };
    // The image was built from the platform's own image, which the index still contains.
    if now.values().any(|digest| digest == used) {
        return false;
    }
    let Some(before) = before.filter(|before| !before.is_empty()) else {
        return true;
    };
    if in_use.is_empty() {
        return !changed_platforms(before, now).is_empty();
    }
    in_use.iter().any(|platform| {
        let before = digest_for(before, platform);
        before.is_none() || before != digest_for(now, platform)
    })
}

/// Returns the platforms for which two indexes have different images.
pub(crate) fn changed_platforms(before: &Platforms, now: &Platforms) -> Vec<String> {
    let all: BTreeSet<&str> = before
        .keys()
        .chain(now.keys())
        .map(|p| normalize_platform(p))
        .collect();
    all.into_iter()
        .filter(|platform| digest_for(before, platform) != digest_for(now, platform))
        .map(str::to_owned)
        .collect()
}

impl Store {
    /// Returns the changed bases of the newest images of tasks, by image and base. A tag that
    /// vanished or is inaccessible makes no image stale.
    pub async fn stale_bases(&self) -> Result<Vec<StaleBaseRow>> {
        let rows: Vec<RawStaleBase> = self
            .db
            .fetch_all(
                concat!("SELECT i.name AS image, i.task_id, i.platforms, b.platforms AS base_platforms, b.name AS base, b.role, \
                 b.digest AS used, w.digest AS now, \
                 du.platforms AS used_platforms, dn.platforms AS now_platforms FROM base_watches w \
                 JOIN image_bases b ON b.name = w.name AND b.pinned = 0 AND b.digest <> w.digest \
                 JOIN images i ON i.id = b.image_id AND i.newest = 1 JOIN tasks t ON t.id = i.task_id \
                 LEFT JOIN base_digests du ON du.watch_id = w.id AND du.digest = b.digest \
                 LEFT JOIN base_digests dn ON dn.watch_id = w.id AND dn.digest = w.digest \
                 WHERE w.digest IS NOT NULL AND w.status NOT IN ('vanished', 'denied') AND w.scope = ", login_scope!(),
                 " ORDER BY i.name, b.name, b.role, b.digest"),
                args![],
            )
            .await?;
        rows.into_iter()
            .map(|raw| {
                let read = |json: &Option<String>| -> Result<Option<Platforms>> {
                    json.as_deref().map(from_json).transpose()
                };
                let used = digest(&raw.used)?;
                let of_base = raw.base_platforms.as_deref();
                let mut in_use: Vec<String> = of_base.map_or(Ok(Vec::new()), from_json)?;
                if in_use.is_empty() {
                    in_use = from_json(&raw.platforms)?;
                }
                let affects_platforms = affects(
                    &used,
                    read(&raw.used_platforms)?.as_ref(),
                    read(&raw.now_platforms)?.as_ref(),
                    &in_use,
                );
                Ok(StaleBaseRow {
                    image: raw.image,
                    task_id: raw.task_id,
                    base: raw.base,
                    role: parse_enum(&raw.role)?,
                    used,
                    now: digest(&raw.now)?,
                    affects_platforms,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64))
            .parse()
            .unwrap()
    }

    fn index(entries: &[(&str, char)]) -> Platforms {
        entries
            .iter()
            .map(|(platform, letter)| ((*platform).to_owned(), sha(*letter)))
            .collect()
    }

    #[test]
    fn change_counts_only_for_used_platforms() {
        let amd = ["linux/amd64".to_owned()];
        let arm = ["linux/arm64".to_owned()];
        let before = index(&[("linux/amd64", 'a'), ("linux/arm64/v8", 'b')]);
        let other = index(&[("linux/amd64", 'a'), ("linux/arm64", 'c')]);
        for (name, used, from, to, image, expected) in [
            (
                "other platform",
                'f',
                Some(&before),
                Some(&other),
                &amd[..],
                false,
            ),
            (
                "own platform",
                'f',
                Some(&before),
                Some(&other),
                &arm[..],
                true,
            ),
            (
                "any platform",
                'f',
                Some(&before),
                Some(&other),
                &[][..],
                true,
            ),
            (
                "the same image in a new index",
                'f',
                Some(&before),
                Some(&before),
                &[][..],
                false,
            ),
            (
                "the previous digest is unknown",
                'f',
                None,
                Some(&other),
                &amd[..],
                true,
            ),
            (
                "the current digest is unknown",
                'f',
                Some(&before),
                None,
                &amd[..],
                true,
            ),
            (
                "built from the platform's own image",
                'a',
                None,
                Some(&other),
                &[][..],
                false,
            ),
        ] {
            assert_eq!(affects(&sha(used), from, to, image), expected, "{name}");
        }
        let s390x = ["linux/s390x".to_owned()];
        assert!(affects(&sha('f'), Some(&before), Some(&other), &s390x));
        assert_eq!(changed_platforms(&before, &other), ["linux/arm64"]);
    }
}
