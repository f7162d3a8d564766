//! Files of a checkout in Git LFS: the objects replace their pointers.
//!
//! No program of Git LFS and no filter runs. [`client`] downloads the objects, checks their length
//! and SHA-256, and replaces exactly the files that git checked out.
//!
//! Left out: locks, uploads, extensions, transfers other than `basic`.

mod client;
mod pointer;

use std::{
    collections::BTreeMap,
    fs::Permissions,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use url::Url;

use crate::{
    Options, Progress,
    error::SourceError,
    git::{self, Git},
    paths,
    spec::{GitTransport, GitUrl},
};
use client::Client;
use pointer::{MAX_POINTER, Pointer};

/// Number of objects per request.
const BATCH: usize = 100;
/// Number of concurrent downloads.
const PARALLEL: usize = 4;

/// Downloads of one context from Git LFS, including its submodules.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    bytes: u64,
}

/// Replaces the pointers in the checkout of `git`.
pub(crate) async fn check_out(
    git: &Git,
    scratch: &Path,
    usage: &mut Usage,
    options: &Options,
) -> Result<(), SourceError> {
    let found = list_pointers(git).await?;
    if found.is_empty() {
        return Ok(());
    }
    for pointer in found.keys() {
        usage.bytes = usage.bytes.saturating_add(pointer.size);
    }
    if usage.bytes > options.limits.download_bytes {
        return Err(SourceError::TooLarge {
            context: git.url.url.clone(),
            limit: options.limits.download_bytes,
            unit: "bytes to download",
        });
    }
    let client = Client::new(git, options).await?;
    let all: Vec<(&Pointer, &Vec<String>)> = found.iter().collect();
    let total: u64 = found.keys().map(|pointer| pointer.size).sum();
    let mut bytes = 0;
    for batch in all.chunks(BATCH) {
        let requested: Vec<&Pointer> = batch.iter().map(|(pointer, _)| *pointer).collect();
        let named = |pointer: &Pointer| found.get(pointer).and_then(|paths| paths.first()).cloned();
        let mut actions = client.request_batch(&requested, named).await?;
        // A loop: with a closure over these pairs, the compiler cannot prove that the future is
        // `Send`.
        let mut downloads = Vec::with_capacity(batch.len());
        for (pointer, paths) in batch.iter().copied() {
            let action = actions.remove(&pointer.oid);
            let client = &client;
            downloads.push(async move {
                let first = paths.first().cloned().unwrap_or_default();
                let file = client.download(pointer, action, &first, scratch).await?;
                write_object(git, file, paths)?;
                Ok::<u64, SourceError>(pointer.size)
            });
        }
        let mut done = stream::iter(downloads).buffer_unordered(PARALLEL);
        while let Some(size) = done.try_next().await? {
            bytes += size;
            options.report(Progress::Received {
                bytes,
                total: Some(total),
            });
        }
    }
    Ok(())
}

/// Reports the files that remain pointers.
pub(crate) async fn report_left_out(git: &Git, options: &Options) {
    let files: Vec<String> = match list_pointers(git).await {
        Ok(found) => found.into_values().flatten().collect(),
        Err(error) => {
            tracing::debug!(%error, "cannot list the files of Git LFS");
            return;
        }
    };
    if !files.is_empty() {
        options.report(Progress::Started(format!(
            "warning: files of {} are pointers of Git LFS: {}; `--lfs`, or `lfs: true` in the task, downloads their content",
            git.url.url,
            git::join_names(&files)
        )));
    }
}

/// Returns the pointers among the files with the attribute of Git LFS, each with its paths.
async fn list_pointers(git: &Git) -> Result<BTreeMap<Pointer, Vec<String>>, SourceError> {
    let args = ["ls-files", "-z", "--", ":(attr:filter=lfs)"];
    let listed = git.run_checked("list the files of", &args).await?.stdout;
    let mut found: BTreeMap<Pointer, Vec<String>> = BTreeMap::new();
    for path in listed
        .split(|byte| *byte == 0)
        .filter(|path| !path.is_empty())
    {
        let Ok(path) = std::str::from_utf8(path) else {
            continue;
        };
        let failed = |reason: String| SourceError::Lfs {
            url: git.url.url.clone(),
            path: Some(path.to_owned()),
            reason,
            unreachable: false,
            help: None,
        };
        let Some(file) = find_file(&git.tree, path) else {
            continue;
        };
        let text = read_pointer_text(&file).map_err(|error| failed(error.to_string()))?;
        let Some(text) = text else { continue };
        if let Some(pointer) = pointer::parse(&text).map_err(failed)? {
            found.entry(pointer).or_default().push(path.to_owned());
        }
    }
    Ok(found)
}

/// Returns the file of a checkout at `path`. `None` if it does not exist, or if a link leads to it.
fn find_file(root: &Path, path: &str) -> Option<PathBuf> {
    let file = root.join(path);
    let is_it = paths::resolve_inside(root, Path::new(path)).ok()? == file;
    (is_it && file.symlink_metadata().ok()?.is_file()).then_some(file)
}

/// Reads a file. `None` if it is too long for a pointer.
fn read_pointer_text(file: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    let opened = std::fs::File::open(file)?;
    opened.take(MAX_POINTER + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= MAX_POINTER).then_some(text))
}

/// Replaces the pointers of a downloaded object. Each file keeps its mode.
fn write_object(
    git: &Git,
    file: tempfile::NamedTempFile,
    paths: &[String],
) -> Result<(), SourceError> {
    let failed = |path: &str, source: std::io::Error| SourceError::Io {
        attempt: format!("write the file `{path}` of {}", git.url.url),
        source,
    };
    let mode = |path: &Path| path.metadata().map(|meta| meta.permissions().mode());
    let (last, others) = match paths.split_last() {
        Some((last, others)) => (last, others),
        None => return Ok(()),
    };
    let to = |path: &str| {
        let gone = || std::io::Error::other("it is not a file any more");
        find_file(&git.tree, path).ok_or_else(gone)
    };
    for path in others {
        let copy = || {
            let target = to(path)?;
            // The target keeps its mode, because only its content changes.
            let mut content = std::fs::File::open(file.path())?;
            let mut target = std::fs::File::options()
                .write(true)
                .truncate(true)
                .open(target)?;
            std::io::copy(&mut content, &mut target).map(drop)
        };
        copy().map_err(|error| failed(path, error))?;
    }
    let persist = || {
        let target = to(last)?;
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode(&target)?))?;
        Ok(target)
    };
    let target = persist().map_err(|error| failed(last, error))?;
    file.persist(target)
        .map(drop)
        .map_err(|error| failed(last, error.error))
}

/// Returns the default address of the repository's objects.
///
/// Source: git-lfs, `docs/api/server-discovery.md`.
fn default_endpoint(url: &GitUrl) -> Option<Url> {
    let address = match url.transport {
        GitTransport::Https | GitTransport::Http => url.url.clone(),
        GitTransport::Ssh => format!("https://{}/{}", url.host, remote_path(url)?),
        GitTransport::Git | GitTransport::File => return None,
    };
    let address = address.trim_end_matches('/');
    let ending = if address.ends_with(".git") {
        ""
    } else {
        ".git"
    };
    Url::parse(&format!("{address}{ending}/info/lfs")).ok()
}

/// Returns the path of an ssh repository, relative to the root of the host's repositories.
fn remote_path(url: &GitUrl) -> Option<String> {
    let path = match Url::parse(&url.url) {
        Ok(parsed) if parsed.has_host() => parsed.path().to_owned(),
        _ => url.url.split_once(':')?.1.to_owned(),
    };
    Some(path.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ContextSpec;

    #[test]
    fn default_endpoint_follows_server_discovery() {
        for (text, expected) in [
            (
                "https://h.example/a.git",
                Some("https://h.example/a.git/info/lfs"),
            ),
            (
                "https://dev.azure.com/o/p/_git/r",
                Some("https://dev.azure.com/o/p/_git/r.git/info/lfs"),
            ),
            (
                "git@h.example:o/a.git",
                Some("https://h.example/o/a.git/info/lfs"),
            ),
            (
                "ssh://git@h.example:2222/o/a",
                Some("https://h.example/o/a.git/info/lfs"),
            ),
            ("git://h.example/o/a", None),
            ("file:///o/a.git", None),
        ] {
            let Ok(ContextSpec::Git(url)) = ContextSpec::parse(text) else {
                panic!("{text}")
            };
            assert_eq!(
                default_endpoint(&url).map(String::from).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
