//! Unpacking an archive that need not be well-meant.
//!
//! The tar library reads and writes; what may be written is decided here. Refused: `..`, absolute
//! names, names below a link, links (symbolic and hard) that lead out of the folder on any way, devices, pipes
//! and sockets, and entries that are not known. Of the modes only the permission bits are kept; owners are not.
//!
//! Every amount is bounded: bytes in, bytes out, their ratio, entries, and the headers between two entries, which the
//! library reads into memory.

use std::{
    collections::HashSet,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use async_compression::tokio::bufread::{BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader, ReadBuf};
use tokio_tar::{ArchiveBuilder, EntryType};

use crate::{Limits, error::SourceError, paths};

/// Unpacked bytes from which on the ratio to the packed ones counts: small archives of zeros are harmless.
pub const RATIO_FROM: u64 = 256 << 20;
/// Biggest Dockerfile that a context may consist of, in bytes.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// Most bytes of headers between two entries: long names and PAX records.
const MAX_HEADERS: u64 = 1 << 20;
/// Memory for an xz dictionary, in bytes; `xz -9` needs 65 MiB.
const MAX_XZ: u64 = 128 << 20;
/// Bytes that are read ahead.
const BUFFER: usize = 128 << 10;
/// Enough of a stream's beginning to tell what it is: one block of tar.
const BLOCK: usize = 512;

/// What a stream turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An archive; it is unpacked.
    Archive,
    /// Text; it is now the file `Dockerfile`, as `docker build` has it.
    Dockerfile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        _ => Packing::Plain,
    }
}

/// Whether a block is a header of tar: its checksum fits. An archive of nothing begins with zeros.
fn is_tar(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(block) else {
        return false;
    };
    if block.iter().all(|b| *b == 0) {
        return true;
    }
    let header = tokio_tar::Header::from_byte_slice(block);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, b)| {
            if (148..156).contains(&at) {
                u32::from(b' ')
            } else {
                u32::from(*b)
            }
        })
        .sum();
    header.cksum().is_ok_and(|stored| stored == sum)
}

/// Whether a stream that begins with `start` is for [`unpack`] to unpack, and not a file.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    packing(start) != Packing::Plain || is_tar(start)
}

/// Unpacks `input` into the empty folder `target`. `context` is its name in errors.
///
/// # Errors
/// [`SourceError::Archive`], [`SourceError::TooLarge`]. `target` then holds a part.
pub async fn unpack(
    input: impl AsyncRead + Unpin + Send,
    target: &Path,
    context: &str,
    limits: &Limits,
) -> Result<Content, SourceError> {
    let packed = Counter::default();
    let input = Metered {
        inner: input,
        seen: packed.clone(),
        limit: limits.download_bytes,
    };
    let target = std::fs::canonicalize(target).map_err(|source| SourceError::Io {
        attempt: format!("find the folder {}", target.display()),
        source,
    })?;
    let unpacker = Unpacker {
        context,
        limits,
        packed,
        target: &target,
    };
    unpacker.unpack(input).await
}

type Counter = Arc<AtomicU64>;

struct Unpacker<'a> {
    context: &'a str,
    limits: &'a Limits,
    packed: Counter,
    target: &'a Path,
}

impl Unpacker<'_> {
    async fn unpack(&self, input: impl AsyncRead + Unpin + Send) -> Result<Content, SourceError> {
        let (start, input) = peek(input).await.map_err(|error| self.read_error(error))?;
        if start.is_empty() {
            return Err(self.broken(None, "it is empty"));
        }
        let mut whole = BufReader::with_capacity(BUFFER, input);
        let input = &mut whole;
        let unpacked: Box<dyn AsyncRead + Unpin + Send + '_> = match packing(&start) {
            Packing::Plain if is_tar(&start) => Box::new(input),
            Packing::Plain => return self.dockerfile(&start, input).await,
            Packing::Gzip => {
                let mut decoder = GzipDecoder::new(input);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            Packing::Zstd => {
                let mut decoder = ZstdDecoder::new(input);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            Packing::Bzip2 => {
                let mut decoder = BzDecoder::new(input);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            Packing::Xz => {
                let mut decoder = XzDecoder::with_mem_limit(input, MAX_XZ);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
        };
        let (start, unpacked) = peek(unpacked)
            .await
            .map_err(|error| self.read_error(error))?;
        if !is_tar(&start) {
            return Err(self.broken(None, "what is packed in it is not a tar archive"));
        }
        self.tar(BufReader::with_capacity(BUFFER, unpacked)).await?;
        // An archive ends before its stream does; whoever checks a digest needs the rest too.
        tokio::io::copy(&mut whole, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(error))?;
        Ok(Content::Archive)
    }

    async fn dockerfile(
        &self,
        start: &[u8],
        input: impl AsyncRead + Unpin,
    ) -> Result<Content, SourceError> {
        let is_text = |bytes: &[u8]| !bytes.iter().any(|b| *b == 0 || (*b < 9));
        if !is_text(start) {
            return Err(self.broken(
                None,
                "it is neither a tar archive (also packed with gzip, zstd, bzip2 or xz) nor text",
            ));
        }
        let mut text = Vec::new();
        input
            .take(MAX_DOCKERFILE + 1)
            .read_to_end(&mut text)
            .await
            .map_err(|error| self.read_error(error))?;
        if text.len() as u64 > MAX_DOCKERFILE {
            return Err(SourceError::TooLarge {
                context: self.context.into(),
                limit: MAX_DOCKERFILE,
                unit: "bytes of a Dockerfile",
            });
        }
        let path = self.target.join("Dockerfile");
        std::fs::write(&path, text).map_err(|source| SourceError::Io {
            attempt: format!("write {}", path.display()),
            source,
        })?;
        Ok(Content::Dockerfile)
    }

    async fn tar(&self, input: impl AsyncRead + Unpin + Send) -> Result<(), SourceError> {
        let budget = Counter::default();
        let unpacked = Counter::default();
        let input = Budgeted {
            inner: input,
            budget: budget.clone(),
            unpacked: unpacked.clone(),
            packed: self.packed.clone(),
            ratio: self.limits.ratio,
        };
        let mut input = input;
        let mut archive = ArchiveBuilder::new(&mut input)
            .set_preserve_permissions(false)
            // Links are checked here, in a way that also knows the links that they pass.
            .set_allow_external_symlinks(true)
            .set_unpack_xattrs(false)
            .build();
        let mut entries = archive.entries().map_err(|error| self.read_error(error))?;
        let mut state = Written::default();
        loop {
            budget.store(MAX_HEADERS, Ordering::Relaxed);
            let Some(entry) = entries.next().await else {
                break;
            };
            let mut entry = entry.map_err(|error| self.read_error(error))?;
            state.entries += 1;
            if state.entries > self.limits.entries {
                return Err(self.too_large(self.limits.entries, "entries"));
            }
            let size = entry.effective_size();
            state.bytes = state.bytes.saturating_add(size);
            if state.bytes > self.limits.unpacked_bytes {
                return Err(self.too_large(self.limits.unpacked_bytes, "bytes of files"));
            }
            // What is left of this entry, filled up to a block.
            budget.store(size.saturating_add(MAX_HEADERS), Ordering::Relaxed);
            let kind = entry.header().entry_type();
            if kind == EntryType::XGlobalHeader {
                continue;
            }
            let name = entry
                .path()
                .map_err(|error| self.read_error(error))?
                .into_owned();
            let shown = name.display().to_string();
            let fail = |reason: &str| self.broken(Some(&shown), reason);
            let path = clean(&name).map_err(fail)?;
            match kind {
                EntryType::Regular
                | EntryType::Continuous
                | EntryType::GNUSparse
                | EntryType::Directory => {}
                EntryType::Symlink | EntryType::Link => {
                    let to = entry
                        .link_name()
                        .map_err(|error| self.read_error(error))?
                        .unwrap_or_default()
                        .into_owned();
                    check_link(kind, &path, &to).map_err(fail)?;
                }
                EntryType::Char | EntryType::Block => return Err(fail("a device")),
                EntryType::Fifo => return Err(fail("a pipe")),
                other => {
                    return Err(fail(&format!(
                        "of a type that is not known, {:#04x}",
                        other.as_byte()
                    )));
                }
            }
            if path.as_os_str().is_empty() {
                // The root itself.
                continue;
            }
            if let Some(parent) = path.parent() {
                self.check_parent(parent, &mut state.folders)
                    .map_err(|reason| fail(&reason))?;
            }
            let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
            let full = self.target.join(&path);
            if kind == EntryType::Link {
                let to = entry
                    .link_name()
                    .map_err(|error| self.read_error(error))?
                    .unwrap_or_default()
                    .into_owned();
                let to = clean(&to).map_err(fail)?;
                if to == path {
                    continue;
                }
                if let Some(parent) = to.parent() {
                    self.check_parent(parent, &mut state.folders)
                        .map_err(|reason| fail(&reason))?;
                }
                if self.target.join(&to).symlink_metadata().is_err() {
                    return Err(fail(&format!(
                        "a hard link to `{}`, which is not in the archive before it",
                        to.display()
                    )));
                }
                remove_file(&full).map_err(|error| self.io(&full, error))?;
            }
            entry
                .unpack_in(self.target)
                .await
                .map_err(|error| self.entry_error(&shown, error))?;
            match kind {
                EntryType::Symlink => state.links.push(path),
                EntryType::Link => {}
                EntryType::Directory => state.modes.push((full, mode | 0o700)),
                _ => set_mode(&full, mode | 0o400).map_err(|error| self.io(&full, error))?,
            }
        }
        drop((entries, archive));
        budget.store(MAX_HEADERS, Ordering::Relaxed);
        // The end of the packed stream, where its checksum is.
        tokio::io::copy(&mut input, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(error))?;
        self.finish(state)
    }

    /// No link may lead out, whatever the links are that it passes; only now are all of them there.
    fn finish(&self, state: Written) -> Result<(), SourceError> {
        for link in &state.links {
            if let Err(error) = paths::inside(self.target, link) {
                return Err(self.broken(
                    Some(&link.display().to_string()),
                    &format!("a link: {error}"),
                ));
            }
        }
        // Deepest first, so that a folder without permissions does not hide what is in it.
        for (folder, mode) in state.modes.iter().rev() {
            let is_folder = folder.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            if is_folder {
                set_mode(folder, *mode).map_err(|error| self.io(folder, error))?;
            }
        }
        Ok(())
    }

    /// Whether all of `parent` are folders (or nothing yet), and no links. A folder stays one: nothing that is unpacked
    /// later replaces it.
    fn check_parent(&self, parent: &Path, known: &mut HashSet<PathBuf>) -> Result<(), String> {
        if parent.as_os_str().is_empty() || known.contains(parent) {
            return Ok(());
        }
        if let Some(above) = parent.parent() {
            self.check_parent(above, known)?;
        }
        match self.target.join(parent).symlink_metadata() {
            Ok(meta) if meta.is_dir() => {
                known.insert(parent.to_owned());
                Ok(())
            }
            Ok(meta) if meta.is_symlink() => {
                Err(format!("`{}` above it is a link", parent.display()))
            }
            Ok(_) => Err(format!("`{}` above it is a file", parent.display())),
            Err(_) => Ok(()),
        }
    }

    fn broken(&self, entry: Option<&str>, reason: &str) -> SourceError {
        SourceError::Archive {
            context: self.context.into(),
            entry: entry.map(str::to_owned),
            reason: reason.into(),
        }
    }

    fn too_large(&self, limit: u64, unit: &'static str) -> SourceError {
        SourceError::TooLarge {
            context: self.context.into(),
            limit,
            unit,
        }
    }

    fn io(&self, path: &Path, source: io::Error) -> SourceError {
        SourceError::Io {
            attempt: format!(
                "write {} of {}",
                path.strip_prefix(self.target).unwrap_or(path).display(),
                self.context
            ),
            source,
        }
    }

    fn read_error(&self, error: io::Error) -> SourceError {
        self.limit_error(&error)
            .unwrap_or_else(|| self.broken(None, &flat(&error)))
    }

    fn entry_error(&self, entry: &str, error: io::Error) -> SourceError {
        self.limit_error(&error)
            .unwrap_or_else(|| self.broken(Some(entry), &flat(&error)))
    }

    /// One of our own limits, wherever the libraries have wrapped it.
    fn limit_error(&self, error: &io::Error) -> Option<SourceError> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = next {
            let inner = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            let limit = error
                .downcast_ref::<LimitReached>()
                .or_else(|| inner.and_then(|inner| inner.downcast_ref::<LimitReached>()));
            if let Some(limit) = limit {
                return Some(self.too_large(limit.limit, limit.unit));
            }
            next = match inner {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        None
    }
}

/// What has been written so far.
#[derive(Default)]
struct Written {
    entries: u64,
    bytes: u64,
    links: Vec<PathBuf>,
    modes: Vec<(PathBuf, u32)>,
    folders: HashSet<PathBuf>,
}

/// The name of an entry without `.` and trailing slashes.
fn clean(name: &Path) -> Result<PathBuf, &'static str> {
    name.components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(name),
            Component::ParentDir => Err("its name has `..` in it"),
            _ => Err("its name is absolute"),
        })
        .collect()
}

/// The target of a link, as it is written.
fn check_link(kind: EntryType, path: &Path, to: &Path) -> Result<(), &'static str> {
    if to.as_os_str().is_empty() {
        return Err("a link to nothing");
    }
    if to.is_absolute() {
        return Err("a link to an absolute path");
    }
    if kind == EntryType::Link {
        return clean(to)
            .map(drop)
            .map_err(|_| "a hard link that leads out of the archive");
    }
    let mut depth = path.components().count().saturating_sub(1);
    for part in to.components() {
        match part {
            Component::ParentDir if depth == 0 => {
                return Err("a link that leads out of the archive");
            }
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            _ => {}
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An error with its causes, in one line.
fn flat(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// The first block of `input`, or all of it if it is shorter, and `input` from its beginning.
pub(crate) async fn peek<R: AsyncRead + Unpin>(
    mut input: R,
) -> io::Result<(Vec<u8>, impl AsyncRead + Unpin + use<R>)> {
    let mut start = Vec::with_capacity(BLOCK);
    (&mut input)
        .take(BLOCK as u64)
        .read_to_end(&mut start)
        .await?;
    Ok((start.clone(), io::Cursor::new(start).chain(input)))
}

/// A limit that a reader met.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} {unit}")]
struct LimitReached {
    limit: u64,
    unit: &'static str,
}

fn limit_reached(limit: u64, unit: &'static str) -> io::Error {
    io::Error::other(LimitReached { limit, unit })
}

/// Counts what is read, up to a limit.
struct Metered<R> {
    inner: R,
    seen: Counter,
    limit: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        let seen = self.seen.fetch_add(read, Ordering::Relaxed) + read;
        if seen > self.limit {
            return Poll::Ready(Err(limit_reached(self.limit, "bytes to download")));
        }
        Poll::Ready(Ok(()))
    }
}

/// Lets through what the budget allows, and keeps an eye on the ratio.
struct Budgeted<R> {
    inner: R,
    budget: Counter,
    unpacked: Counter,
    packed: Counter,
    ratio: u64,
}

impl<R: AsyncRead + Unpin> AsyncRead for Budgeted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = (buf.filled().len() - before) as u64;
        let left = self.budget.load(Ordering::Relaxed);
        if read > left {
            return Poll::Ready(Err(limit_reached(
                MAX_HEADERS,
                "bytes of headers between two entries",
            )));
        }
        self.budget.store(left - read, Ordering::Relaxed);
        let unpacked = self.unpacked.fetch_add(read, Ordering::Relaxed) + read;
        let packed = self.packed.load(Ordering::Relaxed);
        if unpacked > RATIO_FROM && unpacked / packed.max(1) > self.ratio {
            return Poll::Ready(Err(limit_reached(
                self.ratio,
                "unpacked bytes for each packed one",
            )));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
