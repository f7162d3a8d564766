//! Images that runs pushed, and what they were built from.
//!
//! Written with the end of a run that succeeded, in the same transaction. Invariants: a name has one row, that of the run
//! that pushed it last; `newest` holds of the images of the last run of their task that pushed any; a base that was
//! built in the same run is replaced by its own bases, so that no image stands on a sibling that never moves alone.

mod standing;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use acrtask_api::{
    run::RunResult,
    spec::{RunSpec, Work},
};
use acrtask_model::{
    Digest, RunId, RunState,
    events::{BaseRole, Evidence},
};
use sqlx::FromRow;

pub(crate) use self::standing::bases_under;
use self::standing::{bases_of, by_name};
use crate::{
    Ms, Report, Reported, Result, Store, StoreError, Verdict, cascades,
    db::{Arg, Sql, Tx, args, one_of},
    from_json,
    lives::Change,
    runs::{self, beyond},
    tags, to_json,
};

/// An image as it was pushed last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRow {
    /// Registry, repository and tag.
    pub name: String,
    /// What was pushed.
    pub digest: Digest,
    /// The task that it belongs to, if any.
    pub task_id: Option<String>,
    /// Its name; of a task that is gone, the name that it had.
    pub task_name: Option<String>,
    /// The task is there.
    pub task_lives: bool,
    /// The run that pushed it.
    pub run: RunId,
    /// When that run ended.
    pub built_at: Ms,
    /// How long it took, in milliseconds.
    pub run_ms: Option<i64>,
    /// The platforms that it is for; empty where that is not known.
    pub platforms: Vec<String>,
    /// No later run of its task has pushed without it.
    pub newest: bool,
}

/// What an image was built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBaseRow {
    /// Registry, repository and tag; a digest where it was named by one.
    pub name: String,
    /// What was used of it.
    pub digest: Digest,
    /// What it is to the image.
    pub role: BaseRole,
    /// How that is known.
    pub evidence: Evidence,
    /// It was named by its digest.
    pub pinned: bool,
    /// The platforms that it was used for; empty where that is not known.
    pub platforms: Vec<String>,
}

/// What was pushed under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageBuildRow {
    /// The digest.
    pub digest: Digest,
    /// The run.
    pub run: RunId,
    /// The name that its task had.
    pub task_name: Option<String>,
    /// When the run ended.
    pub built_at: Ms,
}

/// Which images a list shows.
#[derive(Debug, Clone, Default)]
pub struct ImageFilter {
    /// Only names that begin so.
    pub prefix: Option<String>,
    /// Only those of this task.
    pub task: Option<String>,
    /// Only those of the task with this name, or, where it ends in `*`, of tasks whose names begin so: the limit of a token.
    pub pattern: Option<String>,
    /// Only those that their task's last run pushed.
    pub newest: bool,
    /// Only names behind this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// The columns of [`RawImage`].
macro_rules! select_images {
    () => {
        "SELECT i.id, i.name, i.digest, i.task_id, COALESCE(t.name, i.task_name) AS task_name, \
         CAST(CASE WHEN t.id IS NULL THEN 0 ELSE 1 END AS BIGINT) AS task_lives, i.run_id, i.built_at, i.run_ms, \
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
    task_lives: i64,
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
            task_lives: raw.task_lives != 0,
            run: runs::id(raw.run_id)?,
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
            role: word(&raw.role)?,
            evidence: word(&raw.evidence)?,
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
struct RunOf {
    id: String,
    task_id: Option<String>,
    task_name: Option<String>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
}

pub(crate) fn digest(text: &str) -> Result<Digest> {
    text.parse().map_err(StoreError::corrupt)
}

/// A unit variant as the JSON of events has it.
pub(crate) fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_value(text.into()).map_err(StoreError::corrupt)
}

fn written(value: impl serde::Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        _ => Err(StoreError::Invalid {
            what: "a word cannot be written down".into(),
        }),
    }
}

/// Writes down what the runs pushed that have succeeded just now.
pub(crate) async fn record(
    tx: &mut Tx,
    changes: &[Change],
    said: impl Iterator<Item = (&Reported, &Verdict)>,
    now: Ms,
) -> Result<()> {
    let succeeded: BTreeSet<&RunId> = changes
        .iter()
        .filter(|change| {
            !change.before.state.is_final() && change.run.life.state == RunState::Succeeded
        })
        .map(|change| &change.run.id)
        .collect();
    let mut done: BTreeMap<&RunId, &RunResult> = BTreeMap::new();
    for (said, verdict) in said {
        if let (Report::Finished { result, .. }, Verdict::Done) = (&said.report, verdict)
            && succeeded.contains(&said.run)
            && !result.images.is_empty()
        {
            done.entry(&said.run).or_insert(result);
        }
    }
    if done.is_empty() {
        return Ok(());
    }
    lock(tx).await?;
    let ids: Vec<String> = done.keys().map(|run| run.to_string()).collect();
    let of_cascades = cascades::of_runs(tx, ids.clone()).await?;
    let sql = one_of!(
        "SELECT id, task_id, task_name, started_at, finished_at FROM runs WHERE id",
        "$1",
        ""
    );
    let runs: Vec<RunOf> = tx.rows(sql, args![ids]).await?;
    let runs: HashMap<String, RunOf> = runs.into_iter().map(|run| (run.id.clone(), run)).collect();
    tags::took(tx, runs.keys().cloned().collect()).await?;
    for (run, result) in done {
        if let Some(cascade) = of_cascades.get(run.as_str()) {
            cascades::pushed(tx, cascade, run, &by_name(result), now).await?;
        }
        if let Some(of) = runs.get(run.as_str()) {
            // No tag has what is held back.
            record_run(tx, of, result, false, now).await?;
        }
    }
    Ok(())
}

/// Waits until nobody else writes images down: two may write the same names in different orders. Whoever holds this waits
/// for nobody.
pub(crate) async fn lock(tx: &mut Tx) -> Result<()> {
    if tx.is_postgres() {
        tx.exec(
            "SELECT pg_advisory_xact_lock(hashtextextended('images', 0))",
            args![],
        )
        .await?;
    }
    Ok(())
}

/// Writes down again what a run pushed, as at its end, from the result that is stored with it. False: the run is gone, or
/// there is no result. The caller holds [`lock`].
pub(crate) async fn record_stored(tx: &mut Tx, run: &RunId, now: Ms) -> Result<bool> {
    let of: Option<RunOf> = tx
        .row(
            "SELECT id, task_id, task_name, started_at, finished_at FROM runs WHERE id = $1",
            args![run],
        )
        .await?;
    let result: Option<(Option<String>,)> = tx
        .row("SELECT result FROM runs WHERE id = $1", args![run])
        .await?;
    let (Some(of), Some((Some(result),))) = (of, result) else {
        return Ok(false);
    };
    record_run(tx, &of, &from_json(&result)?, true, now).await?;
    Ok(true)
}

/// The platform of a single image that a run has built: the run's own one. Steps of a task file may name others, so that
/// of these nothing is known.
async fn own_platform(tx: &mut Tx, run: &RunOf, result: &RunResult) -> Result<Option<String>> {
    let spec: Option<(String,)> = tx
        .row("SELECT spec FROM runs WHERE id = $1", args![&run.id])
        .await?;
    let Some((spec,)) = spec else {
        return Ok(None);
    };
    let spec: RunSpec = from_json(&spec)?;
    let (os, architecture) = (&result.facts.os, &result.facts.architecture);
    if !matches!(spec.work, Work::Build(_)) || os.is_empty() || architecture.is_empty() {
        return Ok(None);
    }
    let said = spec.platforms.first().cloned();
    Ok(Some(said.unwrap_or_else(|| format!("{os}/{architecture}"))))
}

/// `held`: what was held back, too.
async fn record_run(
    tx: &mut Tx,
    run: &RunOf,
    result: &RunResult,
    held: bool,
    now: Ms,
) -> Result<()> {
    let mut images = by_name(result);
    images.retain(|_, image| held || !image.held);
    if images.is_empty() {
        return Ok(());
    }
    let single = images.values().any(|image| image.platforms.is_empty());
    let own = if single {
        own_platform(tx, run, result).await?
    } else {
        None
    };
    for (name, image) in images {
        let mut platforms: Vec<&String> = image.platforms.keys().collect();
        if platforms.is_empty() {
            platforms.extend(&own);
        }
        let row: Option<(i64,)> = tx
            .row(
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
                    written(base.role)?,
                    written(base.evidence)?,
                    base.image.registry(),
                    base.image.digest().is_some(),
                    to_json(&base.platforms)?
                ],
            )
            .await?;
        }
        // Where others stand on it, its tag has moved now.
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

/// Removes images that no task's last run pushed, and what was pushed under names before: at most `limit` of each.
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
    /// Images by name.
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
            and(&mut text, "i.name <", beyond(prefix));
        }
        if let Some(name) = filter.task {
            and(&mut text, &format!("{task} ="), name);
        }
        match filter.pattern.as_deref().map(|p| (p, p.strip_suffix('*'))) {
            None => {}
            Some((_, Some(prefix))) => {
                and(&mut text, &format!("{task} >="), prefix.to_owned());
                and(&mut text, &format!("{task} <"), beyond(prefix));
            }
            Some((exact, None)) => and(&mut text, &format!("{task} ="), exact.to_owned()),
        }
        if filter.newest {
            text += " AND i.newest = 1";
        }
        args.push(Arg::from(filter.limit));
        text += &format!(" ORDER BY i.name LIMIT ${}", args.len());
        let rows: Vec<RawImage> = self.db.rows(Sql::built(text), args).await?;
        rows.into_iter().map(ImageRow::try_from).collect()
    }

    /// An image by its full name, with what it was built from.
    pub async fn image(&self, name: &str) -> Result<(ImageRow, Vec<ImageBaseRow>)> {
        let raw: Option<RawImage> = self
            .db
            .row(concat!(select_images!(), "WHERE i.name = $1"), args![name])
            .await?;
        let raw = raw.ok_or_else(|| StoreError::not_found(format!("image {name}")))?;
        let bases: Vec<RawBase> = self
            .db
            .rows(
                "SELECT image_id, name, digest, role, evidence, pinned, platforms FROM image_bases WHERE image_id = $1 \
                 ORDER BY name, role, digest",
                args![raw.id],
            )
            .await?;
        let bases: Result<Vec<ImageBaseRow>> =
            bases.into_iter().map(ImageBaseRow::try_from).collect();
        Ok((raw.try_into()?, bases?))
    }

    /// What was pushed under a name, the newest first.
    pub async fn image_builds(&self, name: &str, limit: u32) -> Result<Vec<ImageBuildRow>> {
        let rows: Vec<RawBuild> = self
            .db
            .rows(
                "SELECT b.digest, b.run_id, b.task_name, b.built_at FROM image_builds b \
                 JOIN images i ON i.id = b.image_id WHERE i.name = $1 ORDER BY b.built_at DESC, b.run_id LIMIT $2",
                args![name, limit],
            )
            .await?;
        rows.into_iter()
            .map(|raw| {
                Ok(ImageBuildRow {
                    digest: digest(&raw.digest)?,
                    run: runs::id(raw.run_id)?,
                    task_name: raw.task_name,
                    built_at: raw.built_at,
                })
            })
            .collect()
    }

    /// Every image that is the newest of its task, or of none, with what it was built from, by name.
    pub async fn image_graph(&self) -> Result<Vec<(ImageRow, Vec<ImageBaseRow>)>> {
        let rows: Vec<RawImage> = self
            .db
            .rows(
                concat!(select_images!(), "WHERE i.newest = 1 ORDER BY i.name"),
                args![],
            )
            .await?;
        let bases: Vec<RawBase> = self
            .db
            .rows(
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
