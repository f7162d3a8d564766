//! The Dockerfile of a request, as far as this machine looks into it.

use std::io::Read as _;

use crate::request::{BuildContext, BuildRequest, DockerfileSource};

/// Bytes of a Dockerfile that are looked at for its `# syntax=` line, which comes first.
const HEAD: u64 = 64 * 1024;

/// The beginning of the Dockerfile where this machine has it: only for its `# syntax=` line. What a link out of its folder
/// leads to is not read: it may be a device without an end, or a pipe that nobody writes to.
pub(crate) fn head(request: &BuildRequest) -> Option<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_dockerfile_that_leads_out_of_its_folder_is_not_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let request = BuildRequest::new(BuildContext::Local {
            dir: dir.path().into(),
        });
        let dockerfile = dir.path().join("Dockerfile");
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(elsewhere.path(), "# syntax=x").unwrap();
        // The second one has no end.
        for target in [elsewhere.path(), Path::new("/dev/zero")] {
            std::os::unix::fs::symlink(target, &dockerfile).unwrap();
            assert_eq!(head(&request), None, "{target:?}");
            std::fs::remove_file(&dockerfile).unwrap();
        }
        std::fs::write(dir.path().join("real"), "# syntax=y").unwrap();
        std::os::unix::fs::symlink("real", &dockerfile).unwrap();
        assert_eq!(head(&request).unwrap(), b"# syntax=y");
    }
}
