//! The folder that the steps of a run share: `/workspace` in containers, the context of builds.
//!
//! It lives in a volume of the engine, filled through the engine's API, never in a mount of a folder
//! of this machine. The reasons:
//!
//! - The engine may see another file system than this process does: a remote engine, one in a
//!   virtual machine, one in a container or a changed root.
//! - Containers write as root. In a folder of an ordinary user they would leave files that this
//!   process can neither read for the next build nor remove at the end. The engine can do both.
//! - A step must not change the folder that the user works in. It sees a copy, as with the reference
//!   executor; a copy on this machine would cost as much as the one into the volume.
//!
//! So the volume costs nothing that a run could do without, and what can be avoided is: a run
//! without containers never makes it, and builds before the first container read the user's folder as
//! it is. The first container that needs the volume carries the files into it, before it is started.
//! A build after that reads a mirror of the volume in a scratch folder, fetched again only when a
//! container has run since.
//!
//! To reach the volume between containers there is the keeper: a container of an empty image that is made
//! only when needed and never started. It has nothing in it but the volumes, so no path, link or race inside
//! can lead anywhere else.

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
    archive::{self, Opened, Pack},
    engine::{
        Engine, Labels,
        volumes::{OwnVolumes, VolumeError, mount},
    },
    error::{EngineError, chain},
    owner::Owner,
    scope::RunScope,
    selection::Selection,
};

/// Where the workspace is mounted.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Where the shared home folder is mounted.
pub(crate) const HOME: &str = "/acb/home";
/// Folder of a container that uploads are unpacked in.
///
/// An engine refuses a relative link that leads out of the folder that it is asked to write to. A
/// repository's link may lead out of the sub-folder that is the context, and stays as it is.
pub(crate) const FILE_SYSTEM: &str = "/";
/// Links that are followed before a loop is assumed.
const MAX_LINKS: usize = 16;
/// Beginning of the name of each scratch folder.
pub(crate) const SCRATCH_PREFIX: &str = "acrtask-run-";
/// The file in a scratch folder that says whose it is.
pub(crate) const OWNER_FILE: &str = ".acrtask-owner";

/// Something about the workspace failed.
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

/// A scratch folder, removed when it is dropped; a folder of a dead process is found by its owner file.
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

    /// Keeps the folder, for the next start of the program. Returns its path.
    pub(crate) fn leave(self) -> PathBuf {
        self.0.keep()
    }

    /// Where files go.
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
    /// The user's folder; only ever read. Nothing for a run without a context.
    context: Option<PathBuf>,
    volumes: OwnVolumes,
    filled: OnceCell<()>,
    keeper: OnceCell<String>,
    /// Containers that may be writing now.
    writers: AtomicUsize,
    /// Rises whenever the volume may have changed.
    generation: AtomicU64,
    mirror: Mutex<Option<(u64, Arc<Scratch>)>>,
    home_mirror: Mutex<Option<(u64, Arc<Scratch>)>>,
}

/// What a build reads: keeps the mirror alive for as long as it is held.
#[derive(Debug, Clone)]
pub(crate) struct BuildFolder {
    pub(crate) path: PathBuf,
    _mirror: Option<Arc<Scratch>>,
}

/// Tells the workspace that a container may be writing, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Writing(Arc<Workspace>);

impl Drop for Writing {
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

    /// A new scratch folder of this run.
    pub(crate) fn scratch(&self) -> Result<Scratch, WorkspaceError> {
        Scratch::new(&self.scratch_root, &self.run, &self.owner).map_err(io_error(format!(
            "make a scratch folder in {}",
            self.scratch_root.display()
        )))
    }

    /// The name of the volume.
    pub(crate) fn volume(&self) -> String {
        self.run.object("workspace")
    }

    /// The mounts of every container that shares the workspace.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let home = self.run.object("home");
        vec![
            mount(&self.volume(), WORKSPACE, false, None, &self.labels),
            mount(&home, HOME, false, None, &self.labels),
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

    /// The volumes of the run, the workspace's among them.
    pub(crate) fn own_volumes(&self) -> &OwnVolumes {
        &self.volumes
    }

    /// Puts the context into the volume, once, through a container that mounts it and has not been started.
    ///
    /// An engine writes only to volumes of a container whose file system is `read_only`, so the keeper
    /// takes its place.
    pub(crate) async fn fill_through(
        &self,
        container: &str,
        read_only: bool,
    ) -> Result<(), WorkspaceError> {
        if read_only {
            self.keeper().await.map(drop)
        } else {
            self.fill(container).await
        }
    }

    async fn fill(&self, container: &str) -> Result<(), WorkspaceError> {
        self.filled
            .get_or_try_init(|| async {
                let Some(context) = &self.context else {
                    return Ok(());
                };
                let parts = vec![Pack::Folder {
                    from: context.clone(),
                    at: PathBuf::from(WORKSPACE.trim_start_matches('/')),
                    with_root: false,
                    selection: Selection::of_workspace(context),
                }];
                self.engine
                    .upload(container, FILE_SYSTEM, archive::pack(parts))
                    .await?;
                Ok(())
            })
            .await
            .copied()
    }

    /// To be held while a container runs that may write.
    pub(crate) fn writing(self: &Arc<Self>) -> Writing {
        self.writers.fetch_add(1, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::SeqCst);
        Writing(Arc::clone(self))
    }

    /// The folder that a build reads: the user's own, or a mirror of the volume once that has a life of its own.
    pub(crate) async fn for_build(&self) -> Result<BuildFolder, WorkspaceError> {
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
        self.mirrored(WORKSPACE, &self.mirror).await
    }

    /// A mirror of the home folder, for a build that names a path in it.
    pub(crate) async fn home_for_build(&self) -> Result<BuildFolder, WorkspaceError> {
        self.mirrored(HOME, &self.home_mirror).await
    }

    async fn mirrored(
        &self,
        folder: &str,
        mirror: &Mutex<Option<(u64, Arc<Scratch>)>>,
    ) -> Result<BuildFolder, WorkspaceError> {
        // One at a time: builds that start together share one download.
        let mut mirror = mirror.lock().await;
        let generation = self.generation.load(Ordering::SeqCst);
        let quiet = self.writers.load(Ordering::SeqCst) == 0;
        let fresh = match mirror.as_ref() {
            Some((of, scratch)) if *of == generation && quiet => Arc::clone(scratch),
            _ => {
                let scratch = Arc::new(self.scratch()?);
                let keeper = self.keeper().await?;
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
    pub(crate) async fn put(&self, at: &str, parts: Vec<Pack>) -> Result<(), WorkspaceError> {
        let keeper = self.keeper().await?;
        self.engine
            .upload(&keeper, at, archive::pack(parts))
            .await?;
        self.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Opens a file of the workspace; links are followed as long as they stay inside.
    pub(crate) async fn open(
        &self,
        path: &str,
    ) -> Result<tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>, WorkspaceError> {
        let keeper = self.keeper().await?;
        let mut at = path.to_owned();
        for _ in 0..MAX_LINKS {
            let opened = archive::open_file(self.engine.download(&keeper, &at))
                .await
                .map_err(|error| missing(&at, &error))?;
            match opened {
                Opened::File(content) => return Ok(content),
                Opened::Other => {
                    return Err(WorkspaceError::Path(format!("{at} is a folder")));
                }
                Opened::Link(target) => {
                    let base = Path::new(&at).parent().unwrap_or(Path::new("/"));
                    at = resolve_path(&base.to_string_lossy(), &target.to_string_lossy())?;
                }
            }
        }
        Err(WorkspaceError::Path(format!(
            "{path} leads through too many links"
        )))
    }

    /// The entries below a folder, or the file itself.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<archive::Listed>, WorkspaceError> {
        let keeper = self.keeper().await?;
        archive::list(self.engine.download(&keeper, path))
            .await
            .map_err(|error| missing(path, &error))
    }

    /// The container through which the volume is reached between the others.
    async fn keeper(&self) -> Result<String, WorkspaceError> {
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
                    labels: Some(self.labels.map()),
                    host_config: Some(host),
                    ..Default::default()
                };
                let name = self.run.object("keeper");
                let made = self.engine.create_container(&name, None, body).await?;
                Ok::<_, WorkspaceError>(made)
            })
            .await?
            .clone();
        self.fill(&keeper).await?;
        Ok(keeper)
    }

    /// The name of the empty image, if it has been made.
    pub(crate) fn keeper_image_if_made(&self) -> Option<String> {
        self.keeper.initialized().then(|| self.keeper_image())
    }

    fn keeper_image(&self) -> String {
        keeper_image(&self.run)
    }
}

/// The name of the empty image that a run's keeper is made of.
pub(crate) fn keeper_image(run: &RunScope) -> String {
    format!("acrtask/keeper-{run}")
}

/// The engine answers a missing path with a 404 whose text names its own paths: say it in ours.
fn missing(path: &str, error: &io::Error) -> WorkspaceError {
    let text = chain(error);
    if text.contains("Could not find the file") || text.contains("no such file") {
        WorkspaceError::Path(format!("{path}: no such file in the workspace"))
    } else {
        WorkspaceError::Path(format!("could not read {path}: {text}"))
    }
}

/// `path`, seen from the folder `base`, as an absolute path inside the workspace or the home folder.
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
    fn paths_stay_inside() {
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
    fn a_scratch_folder_says_whose_it_is_and_goes_away() {
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
