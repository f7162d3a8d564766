//! Input files of builds from untrusted sources.
//!
//! Invariants: no link leads outside, no endless file is read, and of a large file only the needed
//! part is read.

use std::{io::Read as _, path::Path};

use acrtask_buildkit::DockerfileSource;

use crate::context::StepContext;

/// Number of bytes at the start of a file that decide between text and archive.
const SNIFF: u64 = 512;
/// Maximum length of a Dockerfile, in bytes.
const MAX_DOCKERFILE: u64 = 4 << 20;

/// Returns the text of a file in a folder whose links may lead anywhere. `None` if the file is
/// outside of it, is not a regular file, or is too long for a Dockerfile.
pub(super) fn text_inside(folder: &Path, name: &str) -> Option<String> {
    let bytes = acrtask_source::paths::read_inside(folder, Path::new(name), MAX_DOCKERFILE);
    String::from_utf8(bytes.ok()?).ok()
}

/// Returns the Dockerfile on standard input. It may be a file outside of the context with its own
/// ignore file.
pub(super) fn stdin_dockerfile(ctx: &StepContext) -> Result<DockerfileSource, String> {
    let text = stdin_text(ctx)?;
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

/// Returns the text of the Dockerfile that the run received on standard input.
pub(super) fn stdin_text(ctx: &StepContext) -> Result<Vec<u8>, String> {
    let path = ctx.run.stdin.as_ref();
    let path =
        path.ok_or("`-f -` reads the Dockerfile from standard input, and the run received none")?;
    let bytes = read_beginning(path, MAX_DOCKERFILE + 1)?;
    if bytes.len() as u64 > MAX_DOCKERFILE {
        return Err(format!(
            "the Dockerfile on standard input has more than {MAX_DOCKERFILE} bytes"
        ));
    }
    Ok(bytes)
}

/// Returns `true` if standard input is an archive and not a Dockerfile.
pub(super) fn is_archive(path: &Path) -> Result<bool, String> {
    let start = read_beginning(path, SNIFF)?;
    Ok(start.contains(&0) || start.starts_with(&[0x1f, 0x8b]))
}

/// Returns at most `limit` bytes of a file.
fn read_beginning(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
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
    fn dockerfile_behind_a_link_to_the_outside_is_not_read() {
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
    fn ignore_file_beside_the_dockerfile_is_used() {
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
    fn archive_detection_reads_only_the_beginning() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // More than the memory of any machine.
        file.as_file().set_len(1 << 42).unwrap();
        assert_eq!(is_archive(file.path()), Ok(true));
        std::fs::write(file.path(), "FROM scratch\n").unwrap();
        assert_eq!(is_archive(file.path()), Ok(false));
        assert_eq!(read_beginning(file.path(), 4).unwrap(), b"FROM");
    }
}
