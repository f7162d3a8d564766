//! Dockerfile of a request: its `# syntax=` line and its folder.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::BuildError;
use crate::frontend::familiar_name;
use crate::request::{BuildContext, BuildRequest, DockerfileSource, Frontends, OFFICIAL_FRONTENDS};

/// Build argument that names the image of the frontend.
const SYNTAX: &str = "BUILDKIT_SYNTAX";

/// Number of bytes of a Dockerfile to search for the `# syntax=` line, which comes first.
const HEAD: u64 = 64 * 1024;

/// Reads the beginning of a local Dockerfile, for its `# syntax=` line. Does not follow a link out
/// of its folder: the target may be an endless device, or a pipe without a writer.
pub(crate) fn read_head(request: &BuildRequest) -> Option<Vec<u8>> {
    let (dir, name) = match (&request.dockerfile, &request.context) {
        (DockerfileSource::Inline(text), _) => return Some(text.clone()),
        (DockerfileSource::Local { dir, name }, _) => (dir, name),
        (DockerfileSource::InContext(path), BuildContext::Local { dir }) => (dir, path),
        (DockerfileSource::InContext(_), _) => return None,
    };
    let path = dir.join(name).canonicalize().ok()?;
    if !path.starts_with(dir.canonicalize().ok()?) || !path.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Returns the folder of a Dockerfile in a context. The path may come from an untrusted task.
///
/// # Errors
/// [`BuildError::Request`]: the folder does not exist, or the path leads out of the context.
pub(crate) fn folder_in_context(context: &Path, path: &str) -> Result<PathBuf, BuildError> {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let refuse = || BuildError::Request(format!("the Dockerfile {path} is not in the context"));
    let root = context.canonicalize().map_err(|_| refuse())?;
    // An absolute path would replace the context.
    let folder = root.join(parent).canonicalize().map_err(|_| refuse())?;
    if folder.starts_with(&root) && !path.starts_with('/') {
        Ok(folder)
    } else {
        Err(refuse())
    }
}

/// Returns the text of a `# syntax=` line. Only other directives may precede it.
pub(crate) fn syntax_line(dockerfile: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(dockerfile);
    for line in text.trim_start_matches('\u{feff}').lines() {
        let (key, value) = line.trim().strip_prefix('#')?.split_once('=')?;
        if key.trim().eq_ignore_ascii_case("syntax") {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

/// Checks the frontend of a request that may use only some frontends. The builder then ignores the
/// `# syntax=` line, so that it cannot choose another frontend than this program.
///
/// # Errors
/// [`BuildError::Request`]: the request or its Dockerfile names a frontend that it must not use.
pub(crate) fn check_frontend(request: &mut BuildRequest) -> Result<(), BuildError> {
    if request.frontends == Frontends::Any {
        return Ok(());
    }
    let mut arguments = request.build_args.iter().rev();
    let argument = arguments.find(|(name, _)| name == SYNTAX);
    let argument = argument.and_then(|(_, value)| value.clone());
    let argument = argument.filter(|value| !value.trim().is_empty());
    let named = request.syntax.clone().or(argument);
    let Some(line) = named.or_else(|| syntax_line(&read_head(request)?)) else {
        return Ok(());
    };
    let image = line.split_whitespace().next().unwrap_or_default();
    let name = familiar_name(image);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    if !OFFICIAL_FRONTENDS.contains(&name) {
        return Err(BuildError::Request(format!(
            "the frontend {image} is not allowed here, because a frontend can change the build caches of other tasks; \
             use `docker/dockerfile`, or ask the operator for `--allow frontends`"
        )));
    }
    request.syntax = Some(line);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_in_context_refuses_paths_that_lead_out() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(other.path().join("key"), "secret").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("sub", dir.path().join("in")).unwrap();
        let outside = other.path().join("key").display().to_string();
        let name = other
            .path()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        for (path, is_inside) in [
            ("Dockerfile", true),
            ("sub/Dockerfile", true),
            ("in/Dockerfile", true),
            ("sub/../Dockerfile", true),
            (outside.as_str(), false),
            ("/Dockerfile", false),
            ("out/key", false),
            ("missing/Dockerfile", false),
            (&format!("../{name}/key"), false),
        ] {
            let folder = folder_in_context(dir.path(), path);
            assert_eq!(folder.is_ok(), is_inside, "{path}");
        }
    }

    #[test]
    fn read_head_ignores_links_out_of_the_folder() {
        let dir = tempfile::TempDir::new().unwrap();
        let request = BuildRequest::new(BuildContext::Local {
            dir: dir.path().into(),
        });
        let dockerfile = dir.path().join("Dockerfile");
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(elsewhere.path(), "# syntax=x").unwrap();
        // The second target is endless.
        for target in [elsewhere.path(), Path::new("/dev/zero")] {
            std::os::unix::fs::symlink(target, &dockerfile).unwrap();
            assert_eq!(read_head(&request), None, "{target:?}");
            std::fs::remove_file(&dockerfile).unwrap();
        }
        std::fs::write(dir.path().join("real"), "# syntax=y").unwrap();
        std::os::unix::fs::symlink("real", &dockerfile).unwrap();
        assert_eq!(read_head(&request).unwrap(), b"# syntax=y");
    }

    #[test]
    fn check_frontend_accepts_only_official_frontends() {
        let text = |line: &str| format!("{line}\nFROM scratch\n").into_bytes();
        for (line, argument, expected) in [
            (
                "# syntax=docker/dockerfile:1",
                None,
                Ok(Some("docker/dockerfile:1")),
            ),
            (
                "#SYNTAX = docker.io/docker/dockerfile",
                None,
                Ok(Some("docker.io/docker/dockerfile")),
            ),
            (
                "# check=skip=all\n# syntax=docker/dockerfile:1-labs x",
                None,
                Ok(Some("docker/dockerfile:1-labs x")),
            ),
            (
                "# syntax=docker/dockerfile@sha256:aa",
                None,
                Ok(Some("docker/dockerfile@sha256:aa")),
            ),
            ("# a comment\n# syntax=evil/frontend", None, Ok(None)),
            ("ARG A=1", None, Ok(None)),
            (
                "ARG A=1",
                Some("docker/dockerfile-upstream:master"),
                Ok(Some("docker/dockerfile-upstream:master")),
            ),
            (
                "# syntax=docker/dockerfile:1",
                Some("evil/frontend"),
                Err(()),
            ),
            ("# syntax=evil/frontend", None, Err(())),
            ("\u{feff}# syntax=evil/frontend", None, Err(())),
            ("# syntax=evil.io/docker/dockerfile:1", None, Err(())),
            ("# syntax=localhost:5000/docker/dockerfile", None, Err(())),
            ("# syntax=docker/dockerfile/x:1", None, Err(())),
        ] {
            let mut request = BuildRequest::new(BuildContext::None);
            request.dockerfile = DockerfileSource::Inline(text(line));
            request.frontends = Frontends::Official;
            request.build_args = vec![(SYNTAX.into(), argument.map(str::to_owned))];
            let checked = check_frontend(&mut request).map_err(drop);
            let checked = checked.map(|()| request.syntax);
            assert_eq!(
                checked,
                expected.map(|found| found.map(str::to_owned)),
                "{line} {argument:?}"
            );
        }
    }
}
