//! Images that runs pushed, and the bases they were built from.
//!
//! Invariants:
//! - Images are stored in the same transaction as the end of a successful run.
//! - A name has one row, written by the last run that pushed it.
//! - `newest` is set for the images of the last run of their task that pushed any.
//! - A base from the same run is replaced by its own bases, so that no image depends on a sibling
//!   that never changes alone.

mod result_bases;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::{
    run::RunResult,
    spec::{RunSource, RunSpec},
};
use acrtask_model::{
    Digest, RunId, RunState,
    events::{BaseRole, Evidence},
};
use sqlx::FromRow;

pub(crate) use self::result_bases::bases_of_name;
use self::result_bases::{bases_of, images_by_name};
use crate::{
    AttemptReport, Ms, Report, Result, Store, StoreError, Verdict, cascades,
    db::{Arg, Sql, Tx, args, one_of},
    from_json,
    run_state::Change,
    runs::{self, upper_bound},
    tags, to_json,
};

/// State of an image after its last push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Registry, repository and tag.
    pub name: String,
    /// Pushed digest.
    pub digest: Digest,
    /// Id of the task that built it, if any.
    pub task_id: Option<String>,
    /// Name of the task. After its removal, the last name.
    pub task_name: Option<String>,
    /// The task exists.
    pub task_exists: bool,
    /// Run that pushed it.
    pub run: RunId,
    /// Time at which that run ended.
    pub built_at: Ms,
    /// Duration of that run in milliseconds.
    pub run_ms: Option<i64>,
    /// Platforms of the image. Empty: unknown.
    pub platforms: Vec<String>,
    /// No later run of its task pushed images without this one.
    pub newest: bool,
}

/// A base of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBaseRow {
    /// Registry, repository and tag. With a digest if the base was named by one.
    pub name: String,
    /// Digest that was used.
    pub digest: Digest,
    /// Role of the base.
    pub role: BaseRole,
    /// Evidence for the base.
    pub evidence: Evidence,
    /// The base was named by its digest.
    pub pinned: bool,
    /// Platforms for which the base was used. Empty: unknown.
    pub platforms: Vec<String>,
}

/// A push of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuildRow {
    /// Pushed digest.
    pub digest: Digest,
    /// Run that pushed it.
    pub run: RunId,
    /// Name of the task at that time.
    pub task_name: Option<String>,
    /// Time at which the run ended.
    pub built_at: Ms,
}

/// Filter of a list of images.
#[derive(Debug, Clone, Default)]
pub struct ImageFilter {
    /// Only names with this prefix.
    pub prefix: Option<String>,
    /// Only images of the task with this name.
    pub task: Option<String>,
    /// Only images of tasks that match: a task name, or a prefix followed by `*`. The limit of a
    /// token.
    pub pattern: Option<String>,
    /// Only images that the last run of their task pushed.
    pub newest: bool,
    /// Only names after this one.
    pub after: Option<String>,
    /// At most this number of images.
    pub limit: u32,
}

/// Selects the columns of [`RawImage`].
macro_rules! select_images {
    () => {
        "SELECT i.id, i.name, i.digest, i.task_id, COALESCE(t.name, i.task_name) AS task_name, \
         CAST(CASE WHEN t.id IS NULL THEN 0 ELSE 1 END AS BIGINT) AS task_exists, i.run_id, i.built_at, i.run_ms, \
         i.platforms, i.newest FROM images i LEFT JOIN tasks t ON t.id = i.task_id "
    };
}

#[derive(Debug, FromRow)]
struct RawImage {
    id: i64,
    name: String,
    digest: String,
    task_id: Option<String>,
    task_name: Option<String>,
    task_exists: i64,
    run_id: String,
    built_at: i64,
    run_ms: Option<i64>,
    platforms: String,
    newest: i64,
}

impl TryFrom<RawImage> for ImageRow {
    type Error = StoreError;

    fn try_from(raw: RawImage) -> Result<Self> {
        Ok(Self {
            name: raw.name,
            digest: digest(&raw.digest)?,
            task_id: raw.task_id,
            task_name: raw.task_name,
            task_exists: raw.task_exists != 0,
            run: runs::parse_run_id(raw.run_id)?,
            built_at: raw.built_at,
            run_ms: raw.run_ms,
            platforms: from_json(&raw.platforms)?,
            newest: raw.newest != 0,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawBase {
    image_id: i64,
    name: String,
    digest: String,
    role: String,
    evidence: String,
    pinned: i64,
    platforms: Option<String>,
}

impl TryFrom<RawBase> for ImageBaseRow {
    type Error = StoreError;

    fn try_from(raw: RawBase) -> Result<Self> {
        Ok(Self {
            name: raw.name,
            digest: digest(&raw.digest)?,
            role: parse_enum(&raw.role)?,
            evidence: parse_enum(&raw.evidence)?,
            pinned: raw.pinned != 0,
            platforms: raw.platforms.as_deref().map_or(Ok(Vec::new()), from_json)?,
        })
    }
}

#[derive(Debug, FromRow)]
struct RawBuild {
    digest: String,
    run_id: String,
    task_name: Option<String>,
    built_at: i64,
}

#[derive(Debug, FromRow)]
struct FinishedRun {
    id: String,
    task_id: Option<String>,
    task_name: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

pub(crate) fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(StoreError::corrupt)
}

/// Parses a unit variant from its name in the JSON of events.
pub(crate) fn parse_enum<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_value(text.into()).map_err(StoreError::corrupt)
}

fn enum_text(value: impl serde::Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        _ => Err(StoreError::Invalid {
            what: "an enum value cannot be serialized as text".into(),
        }),
    }
}

/// Stores the images of runs that these changes completed successfully.
pub(crate) async fn record_images(
    tx: &mut Tx,
    changes: &[Change],
    reports: impl Iterator<Item = (&AttemptReport, &Verdict)>,
    now: Ms,
) -> Result<()> {
    let succeeded: BTreeSet<&RunId> = changes
        .iter()
        .filter(|change| {
            !change.before.state.is_final() && change.run.machine.state == RunState::Succeeded
        })
        .map(|change| &change.run.id)
        .collect();
    let mut done: BTreeMap<&RunId, &RunResult> = BTreeMap::new();
    for (received, verdict) in reports {
        if let (Report::Finished { result, .. }, Verdict::Done) = (&received.report, verdict)
            && succeeded.contains(&received.run)
            && !result.images.is_empty()
        {
            done.entry(&received.run).or_insert(result);
        }
    }
    if done.is_empty() {
        return Ok(());
    }
    lock_images(tx).await?;
    let ids: Vec<String> = done.keys().map(|run| run.to_string()).collect();
    let nodes = cascades::nodes_of_runs(tx, ids.clone()).await?;
    let sql = one_of!(
        "SELECT id, task_id, task_name, started_at, finished_at FROM runs WHERE id",
        "$1",
        ""
    );
    let runs: Vec<FinishedRun> = tx.fetch_all(sql, args![ids]).await?;
    let runs: HashMap<String, FinishedRun> =
        runs.into_iter().map(|run| (run.id.clone(), run)).collect();
    tags::adopt_base_tags(tx, runs.keys().cloned().collect()).await?;
    for (run, result) in done {
        if let Some(node) = nodes.get(run.as_str()) {
            cascades::record_pushed_images(tx, node, run, &images_by_name(result), now).await?;
        }
        if let Some(of) = runs.get(run.as_str()) {
            // A staged image has no tag.
            record_run_images(tx, of, result, false, now).await?;
        }
    }
    Ok(())
}

/// Waits for other transactions that store images, because two could write the same names in
/// different orders. The holder of this lock waits for no other lock.
pub(crate) async fn lock_images(tx: &mut Tx) -> Result<()> {
    if tx.is_postgres() {
        tx.exec(
            "SELECT pg_advisory_xact_lock(hashtextextended('images', 0))",
            args![],
        )
        .await?;
    }
    Ok(())
}

/// Stores the images of a run again from its stored result, as at its end. Returns `false` if the
/// run or its result does not exist. The caller has acquired [`lock_images`].
pub(crate) async fn record_images_of_run(tx: &mut Tx, run: &RunId, now: Ms) -> Result<bool> {
    let of: Option<FinishedRun> = tx
        .fetch_optional(
            "SELECT id, task_id, task_name, started_at, finished_at FROM runs WHERE id = $1",
            args![run],
        )
        .await?;
    let result: Option<(Option<String>,)> = tx
        .fetch_optional("SELECT result FROM runs WHERE id = $1", args![run])
        .await?;
    let (Some(of), Some((Some(result),))) = (of, result) else {
        return Ok(false);
    };
    record_run_images(tx, &of, &from_json(&result)?, true, now).await?;
    Ok(true)
}

/// Returns the platform of a single-platform image that a run built: the platform of the run.
/// `None` for task files, whose steps may name other platforms.
async fn platform_of_run(
    tx: &mut Tx,
    run: &FinishedRun,
    result: &RunResult,
) -> Result<Option<String>> {
    let spec: Option<(String,)> = tx
        .fetch_optional("SELECT spec FROM runs WHERE id = $1", args![&run.id])
        .await?;
    let Some((spec,)) = spec else {
        return Ok(None);
    };
    let spec: RunSpec = from_json(&spec)?;
    let (os, architecture) = (&result.variables.os, &result.variables.architecture);
    if !matches!(spec.source, RunSource::Build(_)) || os.is_empty() || architecture.is_empty() {
        return Ok(None);
    }
    let requested = spec.platforms.first().cloned();
    Ok(Some(
        requested.unwrap_or_else(|| format!("{os}/{architecture}")),
    ))
}

/// Stores the images of a run. `staged` includes staged images.
async fn record_run_images(
    tx: &mut Tx,
    run: &FinishedRun,
    result: &RunResult,
    staged: bool,
    now: Ms,
) -> Result<()> {
    let mut images = images_by_name(result);
    images.retain(|_, image| staged || !image.staged);
    if images.is_empty() {
        return Ok(());
    }
    let single = images.values().any(|image| image.platforms.is_empty());
    let own = if single {
        platform_of_run(tx, run, result).await?
    } else {
        None
    };
    for (name, image) in images {
        let mut platforms: Vec<&String> = image.platforms.keys().collect();
        if platforms.is_empty() {
            platforms.extend(&own);
        }
        let row: Option<(i64,)> = tx
            .fetch_optional(
                "INSERT INTO images (name, digest, task_id, task_name, run_id, built_at, run_ms, platforms, newest) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 1) ON CONFLICT (name) DO UPDATE SET digest = excluded.digest, \
                 task_id = excluded.task_id, task_name = excluded.task_name, run_id = excluded.run_id, \
                 built_at = excluded.built_at, run_ms = excluded.run_ms, platforms = excluded.platforms, newest = 1 \
                 RETURNING id",
                args![
                    &name,
                    image.digest.as_str(),
                    run.task_id.clone(),
                    run.task_name.clone(),
                    &run.id,
                    now,
                    run.started_at
                        .map(|at| run.finished_at.unwrap_or(now).saturating_sub(at)),
                    to_json(&platforms)?
                ],
            )
            .await?;
        let Some((id,)) = row else { continue };
        tx.exec(
            "INSERT INTO image_builds (image_id, run_id, digest, task_name, built_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (image_id, run_id) DO NOTHING",
            args![id, &run.id, image.digest.as_str(), run.task_name.clone(), now],
        )
        .await?;
        tx.exec("DELETE FROM image_bases WHERE image_id = $1", args![id])
            .await?;
        for base in bases_of(result, image) {
            tx.exec(
                "INSERT INTO image_bases (image_id, name, digest, role, evidence, registry, pinned, platforms) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (image_id, name, digest, role) DO NOTHING",
                args![
                    id,
                    base.image.to_string(),
                    base.digest.as_str(),
                    enum_text(base.role)?,
                    enum_text(base.evidence)?,
                    base.image.registry(),
                    base.image.digest().is_some(),
                    to_json(&base.platforms)?
                ],
            )
            .await?;
        }
        // If other images are built from this one, its watched tag has changed.
        tx.exec(
            "UPDATE base_watches SET next_check_at = $2 WHERE name = $1 AND next_check_at > $2",
            args![&name, now],
        )
        .await?;
    }
    if let Some(task) = &run.task_id {
        tx.exec(
            "UPDATE images SET newest = 0 WHERE task_id = $1 AND newest = 1 AND run_id <> $2",
            args![task, &run.id],
        )
        .await?;
    }
    Ok(())
}

/// Removes images that their task's last run did not push, and old pushes. At most `limit` of each.
pub(crate) async fn expire(tx: &mut Tx, before: Ms, limit: u32) -> Result<()> {
    tx.exec(
        "DELETE FROM images WHERE id IN (SELECT id FROM images WHERE built_at < $1 \
         AND (newest = 0 OR NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = images.task_id)) ORDER BY built_at LIMIT $2)",
        args![before, limit],
    )
    .await?;
    tx.exec(
        "DELETE FROM image_builds WHERE (image_id, run_id) IN (SELECT b.image_id, b.run_id FROM image_builds b \
         WHERE b.built_at < $1 AND NOT EXISTS (SELECT 1 FROM images i WHERE i.id = b.image_id AND i.run_id = b.run_id) \
         ORDER BY b.built_at LIMIT $2)",
        args![before, limit],
    )
    .await?;
    Ok(())
}

impl Store {
    /// Returns images by name.
    pub async fn images(&self, filter: ImageFilter) -> Result<Vec<ImageRow>> {
        let mut args = args![filter.after.as_deref().unwrap_or("")];
        let mut text = concat!(select_images!(), "WHERE i.name > $1").to_owned();
        let mut and = |text: &mut String, condition: &str, value: String| {
            args.push(Arg::from(value));
            *text += &format!(" AND {condition} ${}", args.len());
        };
        let task = "COALESCE(t.name, i.task_name)";
        if let Some(prefix) = &filter.prefix {
            and(&mut text, "i.name >=", prefix.clone());
            and(&mut text, "i.name <", upper_bound(prefix));
        }
        if let Some(name) = filter.task {
            and(&mut text, &format!("{task} ="), name);
        }
        match filter.pattern.as_deref().map(|p| (p, p.strip_suffix('*'))) {
            None => {}
            Some((_, Some(prefix))) => {
                and(&mut text, &format!("{task} >="), prefix.to_owned());
                and(&mut text, &format!("{task} <"), upper_bound(prefix));
            }
            Some((exact, None)) => and(&mut text, &format!("{task} ="), exact.to_owned()),
        }
        if filter.newest {
            text += " AND i.newest = 1";
        }
        args.push(Arg::from(filter.limit));
        text += &format!(" ORDER BY i.name LIMIT ${}", args.len());
        let rows: Vec<RawImage> = self.db.fetch_all(Sql::dynamic(text), args).await?;
        rows.into_iter().map(ImageRow::try_from).collect()
    }

    /// Returns an image by its full name, with its bases.
    pub async fn image(&self, name: &str) -> Result<(ImageRow, Vec<ImageBaseRow>)> {
        let raw: Option<RawImage> = self
            .db
            .fetch_optional(concat!(select_images!(), "WHERE i.name = $1"), args![name])
            .await?;
        let raw = raw.ok_or_else(|| StoreError::not_found(format!("image {name}")))?;
        let bases: Vec<RawBase> = self
            .db
            .fetch_all(
                "SELECT image_id, name, digest, role, evidence, pinned, platforms FROM image_bases WHERE image_id = $1 \
                 ORDER BY name, role, digest",
                args![raw.id],
            )
            .await?;
        let bases: Result<Vec<ImageBaseRow>> =
            bases.into_iter().map(ImageBaseRow::try_from).collect();
        Ok((raw.try_into()?, bases?))
    }

    /// Returns the pushes of an image, newest first.
    pub async fn image_builds(&self, name: &str, limit: u32) -> Result<Vec<ImageBuildRow>> {
        let rows: Vec<RawBuild> = self
            .db
            .fetch_all(
                "SELECT b.digest, b.run_id, b.task_name, b.built_at FROM image_builds b \
                 JOIN images i ON i.id = b.image_id WHERE i.name = $1 ORDER BY b.built_at DESC, b.run_id LIMIT $2",
                args![name, limit],
            )
            .await?;
        rows.into_iter()
            .map(|raw| {
                Ok(ImageBuildRow {
                    digest: digest(&raw.digest)?,
                    run: runs::parse_run_id(raw.run_id)?,
                    task_name: raw.task_name,
                    built_at: raw.built_at,
                })
            })
            .collect()
    }

    /// Returns the newest images with their bases, by name. Includes images without a task.
    pub async fn image_graph(&self) -> Result<Vec<(ImageRow, Vec<ImageBaseRow>)>> {
        let rows: Vec<RawImage> = self
            .db
            .fetch_all(
                concat!(select_images!(), "WHERE i.newest = 1 ORDER BY i.name"),
                args![],
            )
            .await?;
        let bases: Vec<RawBase> = self
            .db
            .fetch_all(
                "SELECT b.image_id, b.name, b.digest, b.role, b.evidence, b.pinned, b.platforms FROM image_bases b \
                 JOIN images i ON i.id = b.image_id WHERE i.newest = 1 ORDER BY b.image_id, b.name, b.digest, b.role",
                args![],
            )
            .await?;
        let mut of: HashMap<i64, Vec<ImageBaseRow>> = HashMap::new();
        for raw in bases {
            of.entry(raw.image_id).or_default().push(raw.try_into()?);
        }
        rows.into_iter()
            .map(|raw| {
                let bases = of.remove(&raw.id).unwrap_or_default();
                Ok((raw.try_into()?, bases))
            })
            .collect()
    }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
