//! The names of a run's images in the engine, and their removal.
//!
//! Invariants: no task can use one of these names. A scratch folder lists a name before the engine
//! has it. The list stays until the engine has removed the image.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use acrtask_model::ImageRef;
use futures::StreamExt as _;

use crate::{
    engine::Engine,
    error::{EngineError, error_chain},
    output::lock,
    scope::RunScope,
    workspace::Scratch,
};

/// Registry part of the names of a run's images in the engine. No registry can have port 0: every
/// connection to it is refused at once. An engine's BuildKit then uses the image of the engine.
pub(crate) const OWN_REGISTRY: &str = "127.0.0.1:0";
/// Number of concurrent image removals.
const REMOVALS: usize = 4;
/// File of a scratch folder that lists the names that a run uses in the engine, one per line.
pub(crate) const NAMES_FILE: &str = "images";

/// The names of a run's images in the engine.
///
/// They keep the images in the engine until the run has ended. Tasks cannot use them, because
/// [`check_name`] refuses the registry. A scratch folder contains a list of them, so that the next
/// start of the program can remove the images of a killed run.
#[derive(Debug)]
pub(crate) struct OwnNames {
    /// The repository. Part of it is random, so that no other run can name it.
    repository: String,
    next: AtomicU32,
    listed: Mutex<Option<Listed>>,
}

#[derive(Debug)]
struct Listed {
    folder: Scratch,
    names: Vec<ImageRef>,
}

impl OwnNames {
    #[allow(
        clippy::disallowed_methods,
        reason = "identifiers and secrets are random"
    )]
    pub(crate) fn new(scope: &RunScope) -> Self {
        Self {
            repository: format!("{OWN_REGISTRY}/run/{scope}-{:032x}", rand::random::<u128>()),
            next: AtomicU32::new(1),
            listed: Mutex::default(),
        }
    }

    /// Returns a new name. Adds it to the list before the engine has it.
    pub(crate) fn next(
        &self,
        scratch: impl FnOnce() -> Result<Scratch, String>,
    ) -> Result<ImageRef, String> {
        let serial = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}:{serial}", self.repository);
        let name: ImageRef = name.parse().map_err(|error| error_chain(&error))?;
        let mut listed = lock(&self.listed);
        let listed = match &mut *listed {
            Some(listed) => listed,
            none => none.insert(Listed {
                folder: scratch()?,
                names: Vec::new(),
            }),
        };
        let path = listed.folder.path().join(NAMES_FILE);
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&path);
        file.and_then(|mut file| writeln!(file, "{name}"))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        listed.names.push(name.clone());
        Ok(name)
    }

    /// Returns the repository of all names.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Replaces the names in the engine by text for the user.
    pub(crate) fn hide_names<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if text.contains(&self.repository) {
            text.replace(&self.repository, "this run").into()
        } else {
            text.into()
        }
    }

    /// Removes the run's images from the engine. An image that cannot be removed now stays listed
    /// for the next start.
    pub(crate) async fn remove(&self, engine: &Engine) {
        let Some(listed) = lock(&self.listed).take() else {
            return;
        };
        // If the process ends before the removal, the list stays.
        let folder = listed.folder.keep();
        let names = listed.names.iter().map(ToString::to_string);
        if remove_names(engine, names).await
            && let Err(error) = tokio::fs::remove_dir_all(&folder).await
        {
            tracing::debug!(folder = %folder.display(), %error, "could not remove a scratch folder");
        }
    }
}

/// Returns a name that keeps a pulled image in the engine. Its tag is the hour of the pull, which
/// is the age of the image for housekeeping.
#[allow(
    clippy::disallowed_methods,
    reason = "identifiers and secrets are random"
)]
pub(crate) fn pulled_name(now: SystemTime) -> Result<ImageRef, String> {
    let name = format!(
        "{OWN_REGISTRY}/pulled/{:032x}:{}",
        rand::random::<u128>(),
        hour_of(now)
    );
    name.parse().map_err(|error| error_chain(&error))
}

/// Returns the number of hours since 1970.
fn hour_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() / 3600
}

/// Returns `true` if a name comes from [`pulled_name`], from before `hour`.
fn is_pulled_before(name: &str, hour: u64) -> bool {
    let prefix = format!("{OWN_REGISTRY}/pulled/");
    let tag = name
        .strip_prefix(&prefix)
        .and_then(|rest| rest.split_once(':'));
    tag.and_then(|(_, tag)| tag.parse::<u64>().ok())
        .is_some_and(|pulled| pulled < hour)
}

/// Removes the images that were pulled before a time, and returns their number.
pub(crate) async fn remove_pulled(
    engine: &Engine,
    before: SystemTime,
) -> Result<usize, EngineError> {
    let names = engine
        .image_names(&format!("{OWN_REGISTRY}/pulled/*"))
        .await?;
    let hour = hour_of(before);
    let old: Vec<String> = names
        .into_iter()
        .filter(|name| is_pulled_before(name, hour))
        .collect();
    let count = old.len();
    remove_names(engine, old.into_iter()).await;
    Ok(count)
}

/// Refuses names that no registry can have, as images of runs have them in the engine.
pub(crate) fn check_name(name: &ImageRef) -> Result<(), String> {
    let port = name.registry().rsplit(':').next().unwrap_or_default();
    if port.parse() == Ok(0_u16) {
        return Err(format!(
            "{name}: no registry has the port 0; name an image of this run as the step that built it did"
        ));
    }
    Ok(())
}

/// Returns `true` for a name that an image of a run has in the engine.
pub(crate) fn is_own_name(name: &str) -> bool {
    name.starts_with(&format!("{OWN_REGISTRY}/run/"))
}

/// Removes the images in the list of a dead process' scratch folder. Returns `false` if one of them
/// remains.
pub(crate) async fn remove_listed(engine: &Engine, list: &str) -> bool {
    let own = list.lines().filter(|name| is_own_name(name));
    let names = own.filter_map(|name| name.parse::<ImageRef>().ok());
    remove_names(engine, names.map(|name| name.to_string())).await
}

/// Removes images of the engine, a few at a time. Returns `false` if one of them remains.
async fn remove_names(engine: &Engine, names: impl Iterator<Item = String>) -> bool {
    let removals = names.map(|name| async move {
        let removed = engine.remove_image(&name).await;
        if let Err(error) = &removed {
            tracing::warn!(image = name, error = %error_chain(error), "could not remove an image of a run");
        }
        removed.is_ok()
    });
    let removals: Vec<_> = removals.collect();
    futures::stream::iter(removals)
        .buffer_unordered(REMOVALS)
        .fold(true, async |all, removed| all && removed)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cannot_use_names_of_the_engine() {
        for name in [
            "127.0.0.1:0/run/r1:1",
            "127.0.0.1:00/run/r1:1",
            "localhost:0/run/r1",
            "[::1]:0/run/r1",
        ] {
            let name: ImageRef = name.parse().unwrap();
            assert!(check_name(&name).is_err(), "{name}");
        }
        assert!(check_name(&"127.0.0.1:10/run/r1".parse().unwrap()).is_ok());
    }

    #[test]
    fn names_of_pulled_images_contain_their_hour() {
        let now = UNIX_EPOCH + std::time::Duration::from_secs(3600 * 500_000 + 7);
        let name = pulled_name(now).unwrap().to_string();
        assert!(name.ends_with(":500000"), "{name}");
        assert!(is_pulled_before(&name, 500_001));
        assert!(!is_pulled_before(&name, 500_000));
        for other in [
            "127.0.0.1:0/run/r1:1",
            "127.0.0.1:0/pulled/x",
            "127.0.0.1:0/pulled/x:latest",
            "r.io/127.0.0.1:0/pulled/x:1",
        ] {
            assert!(!is_pulled_before(other, u64::MAX), "{other}");
        }
    }

    #[test]
    fn engine_names_are_listed_in_the_scratch_folder() {
        let root = tempfile::tempdir().unwrap();
        let scope: RunScope = "r1.a2".parse().unwrap();
        let names = OwnNames::new(&scope);
        let owner = crate::owner::Owner::this_process();
        let scratch =
            || Scratch::new(root.path(), &scope, &owner).map_err(|error| error_chain(&error));
        let first = names.next(scratch).unwrap();
        let second = names.next(|| Err("there is a folder".into())).unwrap();
        let (repository, serial) = (first.name(), first.tag());
        assert!(
            repository.starts_with("127.0.0.1:0/run/r1.a2-"),
            "{repository}"
        );
        assert_eq!((repository.len(), serial), (54, Some("1")));
        assert_ne!(OwnNames::new(&scope).repository, repository);
        let folder = std::fs::read_dir(root.path()).unwrap().next().unwrap();
        let list = folder.unwrap().path().join("files").join(NAMES_FILE);
        let listed = std::fs::read_to_string(list).unwrap();
        assert_eq!(listed, format!("{first}\n{second}\n"));
    }
}
