//! The Dockerfile of `acrtask build`, found like `docker build` finds it.
//!
//! `-f` is relative to the current folder. A path that does not exist there is relative to the
//! context, as in a fetched context. `NAME.dockerignore` beside a Dockerfile replaces the context's
//! `.dockerignore`, also if both files are outside of the context.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use acrtask_source::Scratch;

use super::{
    context::Context,
    run::{STDIN_FILE, store_stdin},
};
use crate::{args::BuildArgs, error::CliError};

/// Default name, also in lower case.
const DEFAULT: &str = "Dockerfile";
/// Name of a Dockerfile on standard input in a build.
const STDIN: &str = "-";

/// Name of a context's ignore file, and suffix of a Dockerfile's own one.
const IGNORE_SUFFIX: &str = ".dockerignore";

/// Path of an uploaded Dockerfile that is not in the context.
const UPLOADED: &str = ".acrtask.Dockerfile";

/// Location of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dockerfile {
    /// A path in the context.
    InContext(String),
    /// A file on this machine, outside of the context.
    Outside(PathBuf),
    /// Standard input.
    Stdin,
}

impl Dockerfile {
    /// Finds the file of `-f`, or the default one.
    pub(crate) fn find(file: Option<&str>, context: &Context) -> Result<Self, CliError> {
        let root = context.local_folder().map(Path::canonicalize).transpose();
        let root = root.map_err(|error| {
            CliError::usage(format!("cannot read the context {}", context.spec())).because(&error)
        })?;
        let here = std::env::current_dir().map_err(|error| {
            CliError::usage("cannot determine the current folder").because(&error)
        })?;
        find_in(file, root.as_deref(), &here)
    }

    /// Returns the name of the Dockerfile in the build.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::InContext(path) => path,
            Self::Outside(_) | Self::Stdin => STDIN,
        }
    }

    /// Copies a Dockerfile outside of the context into the folder that the build reads as standard
    /// input.
    pub(crate) fn copy_for_build(&self) -> Result<Option<Scratch>, CliError> {
        let path = match self {
            Self::InContext(_) => return Ok(None),
            Self::Stdin => return store_stdin().map(Some),
            Self::Outside(path) => path,
        };
        let copy = || {
            let kept = Scratch::new(&std::env::temp_dir())?;
            let mut to = File::create(kept.path().join(STDIN_FILE))?;
            io::copy(&mut File::open(path)?, &mut to)?;
            if let Some(ignored) = own_ignore_file(path)? {
                let name = format!("{STDIN_FILE}{IGNORE_SUFFIX}");
                std::fs::write(kept.path().join(name), ignored)?;
            }
            Ok(kept)
        };
        copy().map(Some).map_err(|error: io::Error| {
            CliError::usage(format!("cannot read the Dockerfile {}", path.display()))
                .because(&error)
        })
    }

    /// Prepares the Dockerfile for a server. If it is outside of the context, it is uploaded with
    /// the folder's files, under a name that its own ignore file hides from the build.
    pub(crate) fn prepare_upload(&self, context: &Context) -> Result<UploadedDockerfile, CliError> {
        let path = match self {
            Self::InContext(path) => {
                return Ok(UploadedDockerfile {
                    name: path.clone(),
                    files: Vec::new(),
                });
            }
            Self::Outside(path) => Some(path),
            Self::Stdin => None,
        };
        let Some(root) = context.local_folder() else {
            return Err(CliError::usage(
                "the Dockerfile is not in the context, which the runner fetches itself",
            )
            .help("put it into the context, or run on this machine with `--local`"));
        };
        let failed = |error: io::Error| {
            CliError::usage("cannot read the Dockerfile that is not in the context").because(&error)
        };
        let (text, own) = match path {
            Some(path) => {
                let text = std::fs::read(path).map_err(failed)?;
                (text, own_ignore_file(path).map_err(failed)?)
            }
            None => {
                let mut text = Vec::new();
                io::stdin().read_to_end(&mut text).map_err(failed)?;
                (text, None)
            }
        };
        let of_context = || std::fs::read(root.join(IGNORE_SUFFIX)).unwrap_or_default();
        let mut ignored = own.unwrap_or_else(of_context);
        ignored.extend(format!("\n{UPLOADED}\n{UPLOADED}{IGNORE_SUFFIX}\n").bytes());
        Ok(UploadedDockerfile {
            name: UPLOADED.into(),
            files: vec![
                (UPLOADED.into(), text),
                (format!("{UPLOADED}{IGNORE_SUFFIX}").into(), ignored),
            ],
        })
    }
}

/// Reads the ignore file beside a Dockerfile; `None` if it does not exist.
fn own_ignore_file(dockerfile: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut path = dockerfile.as_os_str().to_owned();
    path.push(IGNORE_SUFFIX);
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Dockerfile of a run on a server.
#[derive(Debug)]
pub(crate) struct UploadedDockerfile {
    /// Path in the context.
    pub(crate) name: String,
    /// Files to upload with the context: path and content.
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
}

/// Returns what reads standard input, if anything does.
pub(crate) fn stdin_reader(args: &BuildArgs) -> Result<Option<&'static str>, CliError> {
    match (args.context.as_str(), args.file.as_deref()) {
        ("-", Some(STDIN)) => Err(CliError::usage(
            "standard input cannot be both the context and the Dockerfile",
        )
        .help("write the Dockerfile to a file and name that with -f")),
        ("-", _) => Ok(Some("the context")),
        (_, Some(STDIN)) => Ok(Some("the Dockerfile")),
        _ => Ok(None),
    }
}

/// Finds a Dockerfile. `root` is the context if it is a folder of this machine; `here` is the
/// current folder.
fn find_in(file: Option<&str>, root: Option<&Path>, here: &Path) -> Result<Dockerfile, CliError> {
    let (file, root) = match (file, root) {
        (None | Some(""), _) => return Ok(Dockerfile::InContext(DEFAULT.into())),
        (Some(STDIN), _) => return Ok(Dockerfile::Stdin),
        // A fetched context contains the file.
        (Some(file), None) if Path::new(file).is_relative() => {
            return Ok(Dockerfile::InContext(file.into()));
        }
        (Some(file), root) => (file, root),
    };
    let path = here.join(file);
    if path.exists() && !path.is_dir() {
        let inside = root.and_then(|root| path_inside(root, &path));
        return Ok(inside.map_or(Dockerfile::Outside(path), Dockerfile::InContext));
    }
    let in_context = root.is_some_and(|root| root.join(file).is_file());
    if in_context && Path::new(file).is_relative() {
        return Ok(Dockerfile::InContext(file.into()));
    }
    Err(
        CliError::usage(format!("the Dockerfile `{file}` does not exist")).help(
            "-f is relative to the current folder, else to the context; `-f -` reads standard input",
        ),
    )
}

/// Returns the path of a file relative to `root`; `None` if the file or its link target is outside.
fn path_inside(root: &Path, path: &Path) -> Option<String> {
    let real = path.canonicalize().ok()?;
    let named = path.parent()?.canonicalize().ok()?.join(path.file_name()?);
    let relative = named.strip_prefix(root).ok()?.to_str()?;
    let is_inside = real.starts_with(root) && real.is_file();
    is_inside.then(|| relative.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn dockerfile_lookup_matches_docker_build() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        std::fs::create_dir_all(at("app/src/sub")).unwrap();
        for file in [
            "outside",
            "app/Dockerfile",
            "app/src/Dockerfile",
            "app/src/only",
        ] {
            std::fs::write(at(file), "FROM scratch\n").unwrap();
        }
        symlink("../outside", at("app/link-out")).unwrap();
        symlink("src/only", at("app/link-in")).unwrap();
        let inside = |path: &str| Dockerfile::InContext(path.into());
        let absolute = at("app/src/only").display().to_string();
        let outside = at("outside").display().to_string();
        for (here, file, expected) in [
            ("app/src", None, inside("Dockerfile")),
            ("app/src", Some("Dockerfile"), inside("src/Dockerfile")),
            ("app/src", Some("./Dockerfile"), inside("src/Dockerfile")),
            ("app/src", Some("../Dockerfile"), inside("Dockerfile")),
            ("app/src", Some("src/only"), inside("src/only")),
            ("app", Some("Dockerfile"), inside("Dockerfile")),
            ("app", Some("src/only"), inside("src/only")),
            ("", Some("app/src/only"), inside("src/only")),
            ("", Some("src/only"), inside("src/only")),
            ("app/src/sub", Some("../only"), inside("src/only")),
            ("", Some(absolute.as_str()), inside("src/only")),
            ("app", Some("link-in"), inside("link-in")),
            (
                "app",
                Some("link-out"),
                Dockerfile::Outside(at("app/link-out")),
            ),
            ("", Some("outside"), Dockerfile::Outside(at("outside"))),
            (
                "app",
                Some(outside.as_str()),
                Dockerfile::Outside(at("outside")),
            ),
            ("app", Some("-"), Dockerfile::Stdin),
        ] {
            let found = find_in(file, Some(&at("app")), &at(here)).unwrap();
            assert_eq!(found, expected, "{file:?} in {here}");
        }
        for file in ["absent", "src", "/no/such/file"] {
            assert!(find_in(Some(file), Some(&at("app")), &at("app")).is_err());
        }
        // A fetched context contains the file.
        let found = find_in(Some("docker/Dockerfile"), None, &top).unwrap();
        assert_eq!(found, inside("docker/Dockerfile"));
    }

    #[test]
    fn dockerfile_outside_of_the_context_is_uploaded_and_ignored_by_the_build() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("app")).unwrap();
        std::fs::write(folder.path().join("app/.dockerignore"), "node_modules").unwrap();
        std::fs::write(folder.path().join("outside"), "FROM scratch\n").unwrap();
        let context = |text: &str| {
            let options = acrtask_source::Options::default();
            Context::parse(text, &crate::args::task_file::GitArgs::default(), options).unwrap()
        };
        let here = context(folder.path().join("app").to_str().unwrap());
        let outside = Dockerfile::Outside(folder.path().join("outside"));
        let sent = outside.prepare_upload(&here).unwrap();
        assert_eq!(sent.name, ".acrtask.Dockerfile");
        let text = |at: usize| String::from_utf8(sent.files[at].1.clone()).unwrap();
        assert_eq!(text(0), "FROM scratch\n");
        assert_eq!(
            text(1),
            "node_modules\n.acrtask.Dockerfile\n.acrtask.Dockerfile.dockerignore\n"
        );
        let own = folder.path().join("outside.dockerignore");
        std::fs::write(own, "secret").unwrap();
        let sent = outside.prepare_upload(&here).unwrap();
        assert!(sent.files[1].1.starts_with(b"secret\n"));
        let kept = outside.copy_for_build().unwrap().unwrap();
        let beside = format!("{STDIN_FILE}.dockerignore");
        assert_eq!(std::fs::read(kept.path().join(beside)).unwrap(), b"secret");
        let there = context("https://example.com/app.git");
        assert!(outside.prepare_upload(&there).is_err());
    }
}
