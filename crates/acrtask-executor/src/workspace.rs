//! The folder that the steps of a run share: `/workspace` in containers, the context of builds.
//!
//! The folder is a volume of the engine, filled through the engine's API. No folder of this machine
//! is mounted. The reasons:
//!
//! - The engine may use another file system than this process does. It may be remote, in a virtual
//!   machine, in a container or in a changed root.
//! - Containers write as root. Their files in a folder of an ordinary user could neither be read
//!   for the next build nor removed at the end by this process. The engine can do both.
//! - A step must not change the folder that the user works in. It sees a copy, as with the
//!   reference executor. A copy on this machine would cost as much as the one into the volume.
//!
//! The volume has no avoidable cost. A run without containers never creates it, and builds
//! before the first container read the user's folder directly. The files are uploaded through the
//! first container that needs the volume, before it starts. A later build reads a mirror of the
//! volume in a scratch folder. The mirror is downloaded again only if a container has run since.
//!
//! The keeper gives access to the volume between containers. It is a container of an empty image,
//! created only when needed and never started. It contains nothing but the volumes, so no path,
//! link or race inside can lead elsewhere.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bollard::models::{ContainerCreateBody, HostConfig, Mount};
use tempfile::TempDir;
use tokio::sync::{Mutex, OnceCell};

use crate::{
    archive::{self, OpenedEntry, Pack},
    engine::{
        Engine, Labels,
        volumes::{OwnVolumes, VolumeError, volume_mount},
    },
    error::{EngineError, error_chain},
    owner::Owner,
    scope::RunScope,
    selection::Selection,
};

/// Mount point of the workspace.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Mount point of the shared home folder.
pub(crate) const HOME: &str = "/acb/home";
/// Folder of a container in which uploads are unpacked.
///
/// An engine refuses a relative link that leads out of the folder of an upload. A repository's link
/// may lead out of the sub-folder that is the context, and must not change.
pub(crate) const FILE_SYSTEM: &str = "/";
/// Number of links after which a loop is assumed.
const MAX_LINKS: usize = 16;
/// Prefix of the name of each scratch folder.
pub(crate) const SCRATCH_PREFIX: &str = "acrtask-run-";
/// File in a scratch folder that contains its owner.
pub(crate) const OWNER_FILE: &str = ".acrtask-owner";

/// An error of an operation on the workspace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkspaceError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("could not {attempted}")]
    Io {
        attempted: String,
        #[source]
        source: io::Error,
    },
    #[error("{0}")]
    Path(String),
}

fn io_error(attempted: impl Into<String>) -> impl FnOnce(io::Error) -> WorkspaceError {
    let attempted = attempted.into();
    move |source| WorkspaceError::Io { attempted, source }
}

/// A scratch folder, which is removed on drop. The owner file identifies a folder of a dead
/// process.
#[derive(Debug)]
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new(root: &Path, run: &RunScope, owner: &Owner) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{SCRATCH_PREFIX}{run}-"))
            .tempdir_in(root)?;
        std::fs::write(folder.path().join(OWNER_FILE), owner.to_string())?;
        std::fs::create_dir(folder.path().join("files"))?;
        Ok(Self(folder))
    }

    /// Keeps the folder for the next start of the program. Returns its path.
    pub(crate) fn keep(self) -> PathBuf {
        self.0.keep()
    }

    /// Returns the folder for files.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("files")
    }
}

/// The workspace of one run.
#[derive(Debug)]
pub(crate) struct Workspace {
    engine: Engine,
    labels: Labels,
    run: RunScope,
    owner: Owner,
    scratch_root: PathBuf,
    /// The user's folder, which is never written to. `None` for a run without a context.
    context: Option<PathBuf>,
    volumes: OwnVolumes,
    filled: OnceCell<()>,
    keeper: OnceCell<String>,
    /// Number of containers that may be writing now.
    writers: AtomicUsize,
    /// Counter that increases whenever the volume may have changed.
    generation: AtomicU64,
    mirror: Mutex<Option<(u64, Arc<Scratch>)>>,
    home_mirror: Mutex<Option<(u64, Arc<Scratch>)>>,
}

/// The folder that a build reads. Keeps the mirror alive until it is dropped.
#[derive(Debug, Clone)]
pub(crate) struct BuildFolder {
    pub(crate) path: PathBuf,
    _mirror: Option<Arc<Scratch>>,
}

/// Marks the workspace as in use by a writing container until it is dropped.
#[derive(Debug)]
pub(crate) struct WriteGuard(Arc<Workspace>);

impl Drop for WriteGuard {
    fn drop(&mut self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
        self.0.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Workspace {
    pub(crate) fn new(
        engine: Engine,
        labels: Labels,
        run: RunScope,
        owner: Owner,
        scratch_root: PathBuf,
        context: Option<PathBuf>,
    ) -> Self {
        Self {
            volumes: OwnVolumes::new(engine.clone(), labels.clone()),
            engine,
            labels,
            run,
            owner,
            scratch_root,
            context,
            filled: OnceCell::new(),
            keeper: OnceCell::new(),
            writers: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            mirror: Mutex::new(None),
            home_mirror: Mutex::new(None),
        }
    }

    /// Creates a scratch folder of this run.
    pub(crate) fn scratch(&self) -> Result<Scratch, WorkspaceError> {
        Scratch::new(&self.scratch_root, &self.run, &self.owner).map_err(io_error(format!(
            "make a scratch folder in {}",
            self.scratch_root.display()
        )))
    }

    /// Returns the name of the volume.
    pub(crate) fn volume_name(&self) -> String {
        self.run.object_name("workspace")
    }

    /// Returns the mounts of every container that shares the workspace.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let home = self.run.object_name("home");
        vec![
            volume_mount(&self.volume_name(), WORKSPACE, false, None, &self.labels),
            volume_mount(&home, HOME, false, None, &self.labels),
        ]
    }

    /// Creates the volumes that every container of the run mounts.
    pub(crate) async fn ensure_volumes(&self) -> Result<(), VolumeError> {
        let host = HostConfig {
            mounts: Some(self.mounts()),
            ..Default::default()
        };
        self.volumes.ensure_mounted(&host).await
    }

    /// Returns the volumes of the run, including the workspace's.
    pub(crate) fn own_volumes(&self) -> &OwnVolumes {
        &self.volumes
    }

    /// Uploads the context into the volume, once, through a container that mounts it and has not
    /// started.
    ///
    /// An engine writes only to volumes of a container whose file system is `read_only`, so the
    /// keeper replaces such a container.
    pub(crate) async fn upload_context_through(
        &self,
        container: &str,
        read_only: bool,
    ) -> Result<(), WorkspaceError> {
        if read_only {
            self.ensure_keeper().await.map(drop)
        } else {
            self.upload_context(container).await
        }
    }

    async fn upload_context(&self, container: &str) -> Result<(), WorkspaceError> {
        self.filled
            .get_or_try_init(|| async {
                let Some(context) = &self.context else {
                    return Ok(());
                };
                let from = context.clone();
                let selecting =
                    tokio::task::spawn_blocking(move || Selection::for_workspace(&from));
                let selection = selecting.await.map_err(|error| {
                    io_error("select the files of the context")(io::Error::other(error))
                })?;
                let parts = vec![Pack::Folder {
                    from: context.clone(),
                    at: PathBuf::from(WORKSPACE.trim_start_matches('/')),
                    with_root: false,
                    selection,
                }];
                self.engine
                    .upload(container, FILE_SYSTEM, archive::pack(parts))
                    .await?;
                Ok(())
            })
            .await
            .copied()
    }

    /// Marks that a container may write, until the result is dropped.
    pub(crate) fn start_writing(self: &Arc<Self>) -> WriteGuard {
        self.writers.fetch_add(1, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        WriteGuard(Arc::clone(self))
    }

    /// Returns the folder that a build reads: the user's own, or a mirror of the volume if the
    /// volume may differ from it.
    pub(crate) async fn build_folder(&self) -> Result<BuildFolder, WorkspaceError> {
        if self.generation.load(Ordering::SeqCst) == 0 {
            if let Some(context) = &self.context {
                return Ok(BuildFolder {
                    path: context.clone(),
                    _mirror: None,
                });
            }
            let empty = Arc::new(self.scratch()?);
            return Ok(BuildFolder {
                path: empty.path(),
                _mirror: Some(empty),
            });
        }
        self.mirrored_folder(WORKSPACE, &self.mirror).await
    }

    /// Returns a mirror of the home folder, for a build that names a path in it.
    pub(crate) async fn home_build_folder(&self) -> Result<BuildFolder, WorkspaceError> {
        self.mirrored_folder(HOME, &self.home_mirror).await
    }

    async fn mirrored_folder(
        &self,
        folder: &str,
        mirror: &Mutex<Option<(u64, Arc<Scratch>)>>,
    ) -> Result<BuildFolder, WorkspaceError> {
        // The lock lets builds that start concurrently share one download.
        let mut mirror = mirror.lock().await;
        let generation = self.generation.load(Ordering::SeqCst);
        let idle = self.writers.load(Ordering::SeqCst) == 0;
        let fresh = match mirror.as_ref() {
            Some((of, scratch)) if *of == generation && idle => Arc::clone(scratch),
            _ => {
                let scratch = Arc::new(self.scratch()?);
                let keeper = self.ensure_keeper().await?;
                archive::unpack_folder(self.engine.download(&keeper, folder), &scratch.path())
                    .await
                    .map_err(io_error("copy the workspace for a build"))?;
                *mirror = Some((generation, Arc::clone(&scratch)));
                scratch
            }
        };
        Ok(BuildFolder {
            path: fresh.path(),
            _mirror: Some(fresh),
        })
    }

    /// Writes files below the folder `at` of the workspace, which must exist.
    pub(crate) async fn put_files(&self, at: &str, parts: Vec<Pack>) -> Result<(), WorkspaceError> {
        let keeper = self.ensure_keeper().await?;
        self.engine
            .upload(&keeper, at, archive::pack(parts))
            .await?;
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Opens a file of the workspace. Follows links that stay inside.
    pub(crate) async fn open_file(
        &self,
        path: &str,
    ) -> Result<tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>, WorkspaceError> {
        let keeper = self.ensure_keeper().await?;
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let opened = archive::open_file(self.engine.download(&keeper, &at))
                .await
                .map_err(|error| missing_file_error(&at, &error))?;
            match opened {
                OpenedEntry::File(content) => return Ok(content),
                OpenedEntry::Other => {
                    return Err(WorkspaceError::Path(format!("{at} is a folder")));
                }
                OpenedEntry::Link(target) => {
                    let base = Path::new(&at).parent().unwrap_or(Path::new("/"));
                    at = resolve_path(&base.to_string_lossy(), &target.to_string_lossy())?;
                }
            }
        }
        Err(WorkspaceError::Path(format!(
            "{path} leads through too many links"
        )))
    }

    /// Lists the entries of a folder, or the file itself.
    pub(crate) async fn list_entries(
        &self,
        path: &str,
    ) -> Result<Vec<archive::ListedEntry>, WorkspaceError> {
        let keeper = self.ensure_keeper().await?;
        archive::list_entries(self.engine.download(&keeper, path))
            .await
            .map_err(|error| missing_file_error(path, &error))
    }

    /// Returns the container that gives access to the volume between the others.
    async fn ensure_keeper(&self) -> Result<String, WorkspaceError> {
        let keeper = self
            .keeper
            .get_or_try_init(|| async {
                let image = self
                    .engine
                    .import_empty_image(&self.keeper_image(), &self.labels)
                    .await?;
                let host = HostConfig {
                    mounts: Some(self.mounts()),
                    network_mode: Some("none".into()),
                    ..Default::default()
                };
                self.ensure_volumes().await?;
                let body = ContainerCreateBody {
                    image: Some(image),
                    cmd: Some(vec!["never-started".into()]),
                    labels: Some(self.labels.to_map()),
                    host_config: Some(host),
                    ..Default::default()
                };
                let name = self.run.object_name("keeper");
                let made = self.engine.create_container(&name, None, body).await?;
                Ok::<_, WorkspaceError>(made)
            })
            .await?
            .clone();
        self.upload_context(&keeper).await?;
        Ok(keeper)
    }

    /// Returns the name of the empty image if it has been created.
    pub(crate) fn keeper_image_if_made(&self) -> Option<String> {
        self.keeper.initialized().then(|| self.keeper_image())
    }

    fn keeper_image(&self) -> String {
        keeper_image(&self.run)
    }
}

/// Returns the name of the empty image of a run's keeper.
pub(crate) fn keeper_image(run: &RunScope) -> String {
    format!("acrtask/keeper-{run}")
}

/// Returns the error for a missing path. The engine responds with a 404 whose text contains its own
/// paths; this names the task's path instead.
fn missing_file_error(path: &str, error: &io::Error) -> WorkspaceError {
    let text = error_chain(error);
    if text.contains("Could not find the file") || text.contains("no such file") {
        WorkspaceError::Path(format!("{path}: no such file in the workspace"))
    } else {
        WorkspaceError::Path(format!("could not read {path}: {text}"))
    }
}

/// Resolves `path` relative to the folder `base` to an absolute path inside the workspace or the
/// home folder.
pub(crate) fn resolve_path(base: &str, path: &str) -> Result<String, WorkspaceError> {
    let out = acrtask_spec::normalize_path(base, path);
    let below = |root: &str| out == root || out.starts_with(&format!("{root}/"));
    if below(WORKSPACE) || below(HOME) {
        Ok(out)
    } else {
        Err(WorkspaceError::Path(format!(
            "{path} is outside {WORKSPACE} and {HOME}, which are all that a task can reach"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_paths_stay_inside() {
        for (base, path, expected) in [
            ("/workspace", "a/b", Some("/workspace/a/b")),
            ("/workspace/x", "../b", Some("/workspace/b")),
            ("/workspace/x", "./", Some("/workspace/x")),
            ("/workspace", "/acb/home/.npmrc", Some("/acb/home/.npmrc")),
            ("/workspace", "..", None),
            ("/workspace", "../workspacex", None),
            ("/workspace", "/etc/passwd", None),
            ("/workspace", "a/../../../etc", None),
        ] {
            assert_eq!(
                resolve_path(base, path).ok().as_deref(),
                expected,
                "{base} {path}"
            );
        }
    }

    #[test]
    fn scratch_folder_names_its_owner_and_is_removed_on_drop() {
        let root = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        let scratch = Scratch::new(root.path(), &"r1".parse().unwrap(), &me).unwrap();
        let folder = scratch.path().parent().unwrap().to_owned();
        let owner = std::fs::read_to_string(folder.join(OWNER_FILE)).unwrap();
        assert_eq!(owner.parse(), Ok(me));
        drop(scratch);
        assert!(!folder.exists());
    }
}
