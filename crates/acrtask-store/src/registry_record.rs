//! Record of a repository: times of its tags, and manifests that images of the server need.

use std::collections::{BTreeMap, BTreeSet};

use acrtask_api::registry_record::{Need, NeededManifest, RegistryRecord, TagRecord};
use acrtask_model::Digest;
use jiff::Timestamp;

use crate::{Ms, Result, Store, StoreError, db::args, images::digest};

impl Store {
    /// Returns the record of the repository `REGISTRY/REPOSITORY`, without tags of build caches, and
    /// the tasks that push there.
    pub async fn registry_record(
        &self,
        repository: &str,
    ) -> Result<(RegistryRecord, BTreeSet<String>)> {
        // A name is the repository, then `:` and a tag, or `@` and a digest. `;` and `A` follow
        // these characters.
        let tags = (format!("{repository}:"), format!("{repository};"));
        let digests = (format!("{repository}@"), format!("{repository}A"));
        let mut times: BTreeMap<(String, Digest), Ms> = BTreeMap::new();
        let rows: Vec<(String, String, i64)> = self
            .db
            .fetch_all(
                "SELECT i.name, b.digest, MAX(b.built_at) FROM images i JOIN image_builds b ON b.image_id = i.id \
                 WHERE i.name >= $1 AND i.name < $2 GROUP BY i.name, b.digest \
                 UNION ALL SELECT w.name, d.digest, MIN(d.seen_at) FROM base_watches w \
                 JOIN base_digests d ON d.watch_id = w.id WHERE w.name >= $1 AND w.name < $2 GROUP BY w.name, d.digest",
                args![&tags.0, &tags.1],
            )
            .await?;
        for (name, of, at) in rows {
            let tag = name[tags.0.len()..].to_owned();
            let time = times.entry((tag, digest(&of)?)).or_insert(at);
            *time = (*time).max(at);
        }
        let mut needed: BTreeMap<Digest, Need> = BTreeMap::new();
        let rows: Vec<(String,)> = self
            .db
            .fetch_all(
                "SELECT DISTINCT b.digest FROM image_bases b JOIN images i ON i.id = b.image_id \
                 WHERE i.newest = 1 AND ((b.name >= $1 AND b.name < $2) OR (b.name >= $3 AND b.name < $4))",
                args![&tags.0, &tags.1, &digests.0, &digests.1],
            )
            .await?;
        for (of,) in rows {
            needed.insert(digest(&of)?, Need::Base);
        }
        let rows: Vec<(String, Option<String>, String)> = self
            .db
            .fetch_all(
                "SELECT state, before_digest, after_digest FROM cascade_images \
                 WHERE name >= $1 AND name < $2 AND state IN ('staged', 'promoted')",
                args![&tags.0, &tags.1],
            )
            .await?;
        for (state, before, after) in rows {
            match (state.as_str(), before) {
                ("staged", _) => {
                    needed.insert(digest(&after)?, Need::Staged);
                }
                (_, Some(before)) => {
                    needed.entry(digest(&before)?).or_insert(Need::Rollback);
                }
                (_, None) => {}
            }
        }
        let rows: Vec<(String,)> = self
            .db
            .fetch_all(
                "SELECT DISTINCT t.name FROM images i JOIN tasks t ON t.id = i.task_id \
                 WHERE i.name >= $1 AND i.name < $2",
                args![&tags.0, &tags.1],
            )
            .await?;
        let tasks = rows.into_iter().map(|(name,)| name).collect();
        let tags = times.into_iter().map(|((tag, digest), at)| {
            let since = Timestamp::from_millisecond(at).map_err(StoreError::corrupt)?;
            Ok(TagRecord { tag, digest, since })
        });
        let record = RegistryRecord {
            tags: tags.collect::<Result<_>>()?,
            needed: needed
                .into_iter()
                .map(|(digest, need)| NeededManifest { digest, need })
                .collect(),
            cache_tags: Vec::new(),
        };
        Ok((record, tasks))
    }
}
