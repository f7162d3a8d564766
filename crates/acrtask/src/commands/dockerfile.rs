//! The Dockerfile of `acrtask build`, found as `docker build` finds it.
//!
//! `-f` is relative to the current folder. A path that leads nowhere from there is relative to the context, as it is in
//! a context that is fetched. `NAME.dockerignore` beside a Dockerfile takes the place of the context's `.dockerignore`,
//! also where both are outside of the context.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use acrtask_source::Scratch;

use super::{
    context::Context,
    run::{STDIN_FILE, keep_stdin},
};
use crate::{args::BuildArgs, error::CliError};

/// The usual name, in lower case too.
const DEFAULT: &str = "Dockerfile";
/// The name by which a build reads what it got on standard input.
const STDIN: &str = "-";

/// The ignore file of a context, and the end of the name of a Dockerfile's own.
const IGNORE_SUFFIX: &str = ".dockerignore";

/// The path of an uploaded Dockerfile that is not in the context.
const UPLOADED: &str = ".acrtask.Dockerfile";

/// The place of a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dockerfile {
    /// In the context, by this path.
    InContext(String),
    /// On this machine, outside of the context.
    Outside(PathBuf),
    /// On standard input.
    Stdin,
}

impl Dockerfile {
    /// Finds what `-f` names.
    pub(crate) fn find(file: Option<&str>, context: &Context) -> Result<Self, CliError> {
        let root = context.local_folder().map(Path::canonicalize).transpose();
        let root = root.map_err(|error| {
            CliError::usage(format!("cannot read the context {}", context.spec())).because(&error)
        })?;
        let here = std::env::current_dir().map_err(|error| {
            CliError::usage("cannot find out what the current folder is").because(&error)
        })?;
        find_in(file, root.as_deref(), &here)
    }

    /// Returns the name by which the build asks for it.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::InContext(path) => path,
            Self::Outside(_) | Self::Stdin => STDIN,
        }
    }

    /// Copies a Dockerfile that is not in the context to where the build reads standard input.
    pub(crate) fn keep(&self) -> Result<Option<Scratch>, CliError> {
        let path = match self {
            Self::InContext(_) => return Ok(None),
            Self::Stdin => return keep_stdin().map(Some),
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

    /// Returns what a server needs of it. A Dockerfile that is not in the context is uploaded with the files of a folder,
    /// by a name that its own ignore file hides from the build.
    pub(crate) fn for_server(&self, context: &Context) -> Result<Sent, CliError> {
        let path = match self {
            Self::InContext(path) => {
                return Ok(Sent {
                    name: path.clone(),
                    files: Vec::new(),
                });
            }
            Self::Outside(path) => Some(path),
            Self::Stdin => None,
        };
        let Some(root) = context.local_folder() else {
            return Err(CliError::usage(
                "the Dockerfile is not in the context, which the runner fetches by itself",
            )
            .help("put it into the context, or stay on this machine with `--local`"));
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
        Ok(Sent {
            name: UPLOADED.into(),
            files: vec![
                (UPLOADED.into(), text),
                (format!("{UPLOADED}{IGNORE_SUFFIX}").into(), ignored),
            ],
        })
    }
}

/// Reads the ignore file beside a Dockerfile. `None` if there is none.
fn own_ignore_file(dockerfile: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut path = dockerfile.as_os_str().to_owned();
    path.push(IGNORE_SUFFIX);
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A Dockerfile on its way to a server.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Its path in the context.
    pub(crate) name: String,
    /// Files that are uploaded with the context: path and content.
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
}

/// Returns the user of standard input, if the build has one.
pub(crate) fn stdin_of_build(args: &BuildArgs) -> Result<Option<&'static str>, CliError> {
    match (args.context.as_str(), args.file.as_deref()) {
        ("-", Some(STDIN)) => Err(CliError::usage(
            "the context and the Dockerfile cannot both be on standard input",
        )
        .help("write the Dockerfile to a file and name that with -f")),
        ("-", _) => Ok(Some("the context")),
        (_, Some(STDIN)) => Ok(Some("the Dockerfile")),
        _ => Ok(None),
    }
}

/// `root` is the context, where it is a folder of this machine; `here` is the current folder.
fn find_in(file: Option<&str>, root: Option<&Path>, here: &Path) -> Result<Dockerfile, CliError> {
    let (file, root) = match (file, root) {
        (None | Some(""), _) => return Ok(Dockerfile::InContext(DEFAULT.into())),
        (Some(STDIN), _) => return Ok(Dockerfile::Stdin),
        // The context is fetched, and has the file.
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
        CliError::usage(format!("there is no Dockerfile `{file}`")).help(
            "-f is relative to the current folder, else to the context; `-f -` reads standard input",
        ),
    )
}

/// Returns the path of a file relative to `root`. `None` if it, or what it links to, is elsewhere.
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
    fn a_file_is_found_as_docker_finds_it() {
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
        // A context that is fetched has it.
        let found = find_in(Some("docker/Dockerfile"), None, &top).unwrap();
        assert_eq!(found, inside("docker/Dockerfile"));
    }

    #[test]
    fn a_dockerfile_outside_of_the_context_is_uploaded_and_hidden() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("app")).unwrap();
        std::fs::write(folder.path().join("app/.dockerignore"), "node_modules").unwrap();
        std::fs::write(folder.path().join("outside"), "FROM scratch\n").unwrap();
        let context = |text: &str| {
            let options = acrtask_source::Options::default();
            Context::named(text, &crate::args::task::GitArgs::default(), options).unwrap()
        };
        let here = context(folder.path().join("app").to_str().unwrap());
        let outside = Dockerfile::Outside(folder.path().join("outside"));
        let sent = outside.for_server(&here).unwrap();
        assert_eq!(sent.name, ".acrtask.Dockerfile");
        let text = |at: usize| String::from_utf8(sent.files[at].1.clone()).unwrap();
        assert_eq!(text(0), "FROM scratch\n");
        assert_eq!(
            text(1),
            "node_modules\n.acrtask.Dockerfile\n.acrtask.Dockerfile.dockerignore\n"
        );
        let own = folder.path().join("outside.dockerignore");
        std::fs::write(own, "secret").unwrap();
        let sent = outside.for_server(&here).unwrap();
        assert!(sent.files[1].1.starts_with(b"secret\n"));
        let kept = outside.keep().unwrap().unwrap();
        let beside = format!("{STDIN_FILE}.dockerignore");
        assert_eq!(std::fs::read(kept.path().join(beside)).unwrap(), b"secret");
        let there = context("https://example.com/app.git");
        assert!(outside.for_server(&there).is_err());
    }
}
