//! Files that a build is asked for by somebody who need not be trusted: no link leads out, nothing without an end is read, and
//! of a large file only as much as is needed.

use std::{io::Read as _, path::Path};

use acrtask_buildkit::DockerfileSource;

use crate::context::StepContext;

/// First bytes of a file by which text is told from an archive.
const SNIFF: u64 = 512;
/// Longest Dockerfile, in bytes.
const MAX_DOCKERFILE: u64 = 4 << 20;

/// The text of a file of a folder, whose links may lead anywhere: nothing where they lead out of it, where it is no
/// file, and where it is too long for a Dockerfile.
pub(super) fn text_inside(folder: &Path, name: &str) -> Option<String> {
    let bytes = acrtask_source::paths::read_inside(folder, Path::new(name), MAX_DOCKERFILE);
    String::from_utf8(bytes.ok()?).ok()
}

/// The Dockerfile on standard input, which may be a file outside of the context with an ignore file of its own.
pub(super) fn stdin_dockerfile(ctx: &StepContext) -> Result<DockerfileSource, String> {
    let text = stdin(ctx)?;
    let path = ctx.run.stdin.as_deref();
    Ok(path
        .and_then(with_ignore_file)
        .unwrap_or(DockerfileSource::Inline(text)))
}

/// Returns the Dockerfile at `path` if an ignore file is beside it.
fn with_ignore_file(path: &Path) -> Option<DockerfileSource> {
    let name = path.file_name()?.to_str()?;
    let ignore_file = path.with_file_name(format!("{name}.dockerignore"));
    ignore_file.is_file().then(|| DockerfileSource::Local {
        dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
        name: name.to_owned(),
    })
}

/// The text of the Dockerfile that the run got on standard input.
pub(super) fn stdin(ctx: &StepContext) -> Result<Vec<u8>, String> {
    let path = ctx.run.stdin.as_ref();
    let path = path
        .ok_or("`-f -` reads the Dockerfile from standard input, and the run got nothing there")?;
    let bytes = beginning(path, MAX_DOCKERFILE + 1)?;
    if bytes.len() as u64 > MAX_DOCKERFILE {
        return Err(format!(
            "the Dockerfile on standard input has more than {MAX_DOCKERFILE} bytes"
        ));
    }
    Ok(bytes)
}

/// Whether what came on standard input is an archive, and no Dockerfile.
pub(super) fn is_archive(path: &Path) -> Result<bool, String> {
    let start = beginning(path, SNIFF)?;
    Ok(start.contains(&0) || start.starts_with(&[0x1f, 0x8b]))
}

/// At most `limit` bytes of a file.
fn beginning(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dockerfile_behind_a_link_out_is_not_read() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("Dockerfile"), "FROM secret").unwrap();
        let link = |target: &Path, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        };
        link(&other.path().join("Dockerfile"), "out");
        link(Path::new("/dev/zero"), "endless");
        std::fs::write(dir.path().join("Dockerfile"), "FROM scratch").unwrap();
        link(Path::new("Dockerfile"), "inside");
        for (name, expected) in [
            ("out", None),
            ("endless", None),
            ("missing", None),
            ("inside", Some("FROM scratch")),
            ("Dockerfile", Some("FROM scratch")),
        ] {
            assert_eq!(text_inside(dir.path(), name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn an_ignore_file_beside_the_dockerfile_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdin");
        std::fs::write(&path, "FROM scratch").unwrap();
        assert!(with_ignore_file(&path).is_none());
        std::fs::write(dir.path().join("stdin.dockerignore"), "x").unwrap();
        assert!(matches!(
            with_ignore_file(&path),
            Some(DockerfileSource::Local { name, .. }) if name == "stdin"
        ));
    }

    #[test]
    fn of_a_large_archive_only_the_beginning_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // More than any memory has.
        file.as_file().set_len(1 << 42).unwrap();
        assert_eq!(is_archive(file.path()), Ok(true));
        std::fs::write(file.path(), "FROM scratch\n").unwrap();
        assert_eq!(is_archive(file.path()), Ok(false));
        assert_eq!(beginning(file.path(), 4).unwrap(), b"FROM");
    }
}
