//! Which images stand on a base that has moved since they were built, and whether that move is one for the platforms in use.
//!
//! Which these are is said by the build's provenance for each base, since a stage may run on another platform than the image
//! is for; where it does not say, they are those of the image.
//!
//! Nothing of it is stored: it is compared anew each time. Which of these moves count is for the task's policy to say.

use std::collections::BTreeSet;

use acrtask_model::{Digest, events::BaseRole};
use sqlx::FromRow;

use crate::{
    Result, Store,
    bases::Platforms,
    db::args,
    from_json,
    images::{digest, word},
};

/// A base of an image of a task that has moved since the image was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The image.
    pub image: String,
    /// Its task's id.
    pub task_id: String,
    /// The base.
    pub base: String,
    /// What it is to the image.
    pub role: BaseRole,
    /// What the image was built from.
    pub used: Digest,
    /// What the tag holds now.
    pub now: Digest,
    /// It holds another image for a platform that was used, as far as is known.
    pub touched: bool,
}

#[derive(Debug, FromRow)]
struct RawMoved {
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

/// Registries say `linux/arm64/v8` and `linux/arm64` of the same.
fn plain(platform: &str) -> &str {
    if platform == "linux/arm64/v8" {
        "linux/arm64"
    } else {
        platform
    }
}

fn digest_for<'p>(platforms: &'p Platforms, platform: &str) -> Option<&'p Digest> {
    let found = platforms
        .iter()
        .find(|(name, _)| plain(name) == plain(platform));
    found.map(|(_, digest)| digest)
}

/// Whether the step from one digest to another is one for who uses these platforms: where nothing is known, it is.
fn touches(
    used: &Digest,
    before: Option<&Platforms>,
    now: Option<&Platforms>,
    in_use: &[String],
) -> bool {
    let Some(now) = now.filter(|now| !now.is_empty()) else {
        return true;
    };
    // It was built from the image for its platform, which the index still has.
    if now.values().any(|digest| digest == used) {
        return false;
    }
    let Some(before) = before.filter(|before| !before.is_empty()) else {
        return true;
    };
    if in_use.is_empty() {
        return !differ(before, now).is_empty();
    }
    in_use.iter().any(|platform| {
        let before = digest_for(before, platform);
        before.is_none() || before != digest_for(now, platform)
    })
}

/// The platforms that two indexes have different images for.
pub(crate) fn differ(before: &Platforms, now: &Platforms) -> Vec<String> {
    let all: BTreeSet<&str> = before.keys().chain(now.keys()).map(|p| plain(p)).collect();
    all.into_iter()
        .filter(|platform| digest_for(before, platform) != digest_for(now, platform))
        .map(str::to_owned)
        .collect()
}

impl Store {
    /// Bases that have moved since the newest image of a task was built from them, by image and base. A tag that has
    /// vanished, or that nobody may see, makes nothing stale.
    pub async fn moved_bases(&self) -> Result<Vec<Moved>> {
        let rows: Vec<RawMoved> = self
            .db
            .rows(
                "SELECT i.name AS image, i.task_id, i.platforms, b.platforms AS base_platforms, b.name AS base, b.role, \
                 b.digest AS used, w.digest AS now, \
                 du.platforms AS used_platforms, dn.platforms AS now_platforms FROM base_watches w \
                 JOIN image_bases b ON b.name = w.name AND b.pinned = 0 AND b.digest <> w.digest \
                 JOIN images i ON i.id = b.image_id AND i.newest = 1 JOIN tasks t ON t.id = i.task_id \
                 LEFT JOIN base_digests du ON du.watch_id = w.id AND du.digest = b.digest \
                 LEFT JOIN base_digests dn ON dn.watch_id = w.id AND dn.digest = w.digest \
                 WHERE w.digest IS NOT NULL AND w.status NOT IN ('vanished', 'denied') AND w.scope = CASE WHEN EXISTS \
                 (SELECT 1 FROM credentials c WHERE c.scope = i.task_id AND c.host = w.registry) THEN i.task_id ELSE '' END \
                 ORDER BY i.name, b.name, b.role, b.digest",
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
                let touched = touches(
                    &used,
                    read(&raw.used_platforms)?.as_ref(),
                    read(&raw.now_platforms)?.as_ref(),
                    &in_use,
                );
                Ok(Moved {
                    image: raw.image,
                    task_id: raw.task_id,
                    base: raw.base,
                    role: word(&raw.role)?,
                    used,
                    now: digest(&raw.now)?,
                    touched,
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
    fn a_change_counts_where_it_is_one_for_the_platform_in_use() {
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
                "before is not known",
                'f',
                None,
                Some(&other),
                &amd[..],
                true,
            ),
            ("now is not known", 'f', Some(&before), None, &amd[..], true),
            (
                "built from the platform's own image",
                'a',
                None,
                Some(&other),
                &[][..],
                false,
            ),
        ] {
            assert_eq!(touches(&sha(used), from, to, image), expected, "{name}");
        }
        let s390x = ["linux/s390x".to_owned()];
        assert!(touches(&sha('f'), Some(&before), Some(&other), &s390x));
        assert_eq!(differ(&before, &other), ["linux/arm64"]);
    }
}
