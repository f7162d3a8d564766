//! Unpacking of untrusted archives.
//!
//! The tar library only reads. This module decides which entries to write, and writes them:
//! [`item`] checks the header alone, [`tree`] checks the existing files. It refuses `..`, absolute
//! names, names below a link, links (symbolic and hard) that lead out of the folder, devices,
//! pipes, sockets, and unknown entries.
//!
//! Unpacking keeps modes, because a build sees them, but drops owners and extended attributes. Only
//! the owner of the folder may therefore have access to its parent, because a file may have the
//! set-user-ID bit.
//!
//! All amounts have a limit ([`limit`]): packed bytes, unpacked bytes, their ratio, entries, and
//! the headers between two entries, which the library reads into memory.

mod item;
mod limit;
mod tree;

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use async_compression::tokio::bufread::{BzDecoder, GzipDecoder, XzDecoder, ZstdDecoder};
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};
use tokio_tar::{Archive, Entry, EntryType};

use crate::{Limits, error::SourceError};
use item::{Item, classify};
use limit::{Budgeted, Counter, LimitReached, MAX_HEADERS, Metered};
use tree::{EntryError, Tree, set_mode};

/// Number of unpacked bytes from which the ratio limit applies. Small archives of zeros are
/// harmless.
pub const RATIO_FROM: u64 = 256 << 20;
/// Maximum size of a Dockerfile as a context, in bytes.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// Maximum memory of an xz dictionary, in bytes. `xz -9` needs 65 MiB.
const MAX_XZ: u64 = 128 << 20;
/// Size of the read buffer, in bytes.
const BUFFER: usize = 128 << 10;
/// Number of bytes that identify the type of a stream: one block of tar.
const BLOCK: usize = 512;

/// Permitted targets of symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Targets inside the archive's folder.
    Inside,
    /// Any target. The links come from the packed folder, and have a meaning only where it is used.
    /// Unpacking writes nothing through them. Readers of the folder do not follow them out of it
    /// ([`crate::paths::resolve_inside`]).
    Anywhere,
}

/// Detected content of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Archive, now unpacked.
    Archive,
    /// Text, now stored as the file `Dockerfile`, as with `docker build`.
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

fn detect_packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Packing::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        _ => Packing::Plain,
    }
}

/// Returns `true` if a block is a tar header with a valid checksum. An empty archive begins with
/// zeros.
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

/// Returns `true` if [`unpack`] would unpack a stream that begins with `start`, instead of storing
/// it as a file.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    detect_packing(start) != Packing::Plain || is_tar(start)
}

/// Unpacks `input` into the folder `target`, which is empty or contains the files of other
/// archives. `context` is its name in errors.
///
/// # Errors
/// [`SourceError::Archive`] or [`SourceError::TooLarge`]. `target` then contains a part of the
/// archive.
pub async fn unpack(
    input: impl AsyncRead + Unpin + Send,
    target: &Path,
    context: &str,
    limits: &Limits,
) -> Result<Content, SourceError> {
    unpack_with(input, target, context, limits, Links::Inside).await
}

/// Unpacks `input` like [`unpack`], with the permitted targets of links.
///
/// # Errors
/// Same errors as [`unpack`].
pub(crate) async fn unpack_with(
    input: impl AsyncRead + Unpin + Send,
    target: &Path,
    context: &str,
    limits: &Limits,
    links: Links,
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
        links,
    };
    unpacker.unpack(input).await
}

struct Unpacker<'a> {
    context: &'a str,
    limits: &'a Limits,
    packed: Counter,
    target: &'a Path,
    links: Links,
}

impl Unpacker<'_> {
    async fn unpack(&self, input: impl AsyncRead + Unpin + Send) -> Result<Content, SourceError> {
        let (start, input) = peek(input)
            .await
            .map_err(|error| self.read_error(None, &error))?;
        if start.is_empty() {
            return Err(self.archive_error(None, "it is empty"));
        }
        let mut whole = BufReader::with_capacity(BUFFER, input);
        let input = &mut whole;
        let unpacked: Box<dyn AsyncRead + Unpin + Send + '_> = match detect_packing(&start) {
            Packing::Plain if is_tar(&start) => Box::new(input),
            Packing::Plain => return self.write_dockerfile(&start, input).await,
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
            .map_err(|error| self.read_error(None, &error))?;
        if !is_tar(&start) {
            return Err(self.archive_error(None, "its unpacked content is not a tar archive"));
        }
        self.unpack_tar(BufReader::with_capacity(BUFFER, unpacked))
            .await?;
        // An archive ends before its stream. A caller that checks a digest needs the remaining
        // bytes.
        tokio::io::copy(&mut whole, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(None, &error))?;
        Ok(Content::Archive)
    }

    async fn write_dockerfile(
        &self,
        start: &[u8],
        input: impl AsyncRead + Unpin,
    ) -> Result<Content, SourceError> {
        let is_text = |bytes: &[u8]| !bytes.iter().any(|b| *b == 0 || (*b < 9));
        if !is_text(start) {
            return Err(self.archive_error(
                None,
                "it is neither a tar archive (plain, or packed with gzip, zstd, bzip2 or xz) nor text",
            ));
        }
        let mut text = Vec::new();
        input
            .take(MAX_DOCKERFILE + 1)
            .read_to_end(&mut text)
            .await
            .map_err(|error| self.read_error(None, &error))?;
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

    async fn unpack_tar(&self, input: impl AsyncRead + Unpin + Send) -> Result<(), SourceError> {
        let budget = Counter::default();
        let mut input = Budgeted {
            inner: input,
            budget: budget.clone(),
            unpacked: 0,
            packed: self.packed.clone(),
            ratio: self.limits.ratio,
        };
        let mut archive = Archive::new(&mut input);
        let mut entries = archive
            .entries()
            .map_err(|error| self.read_error(None, &error))?;
        let mut tree = Tree::new(self.target, self.links);
        let (mut count, mut bytes) = (0, 0u64);
        loop {
            budget.store(MAX_HEADERS, Ordering::Relaxed);
            let Some(entry) = entries.next().await else {
                break;
            };
            let entry = entry.map_err(|error| self.read_error(None, &error))?;
            count += 1;
            if count > self.limits.entries {
                return Err(self.too_large(self.limits.entries, "entries"));
            }
            let size = entry.effective_size();
            bytes = bytes.saturating_add(size);
            if bytes > self.limits.unpacked_bytes {
                return Err(self.too_large(self.limits.unpacked_bytes, "bytes of files"));
            }
            budget.store(size.saturating_add(MAX_HEADERS), Ordering::Relaxed);
            // These records apply to all later entries. Unpacking ignores them.
            if entry.header().entry_type() != EntryType::XGlobalHeader {
                self.unpack_entry(entry, &mut tree).await?;
            }
        }
        drop((entries, archive));
        budget.store(MAX_HEADERS, Ordering::Relaxed);
        // Reads to the end of the packed stream, which contains its checksum.
        tokio::io::copy(&mut input, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(None, &error))?;
        tree.finish()
            .map_err(|(path, entry_error)| self.entry_error(&path, entry_error))
    }

    async fn unpack_entry<R: AsyncRead + Unpin>(
        &self,
        mut entry: Entry<R>,
        tree: &mut Tree<'_>,
    ) -> Result<(), SourceError> {
        let unreadable = |error: io::Error| self.read_error(None, &error);
        let name = entry.path().map_err(unreadable)?.into_owned();
        let link = entry
            .link_name()
            .map_err(unreadable)?
            .unwrap_or_default()
            .into_owned();
        let header = entry.header();
        let mode = header.mode().unwrap_or(0o644) & 0o7777;
        let modified = header.mtime().unwrap_or_default();
        let (path, item) = classify(header.entry_type(), &name, &link, self.links)
            .map_err(|reason| self.archive_error(Some(&name), &reason))?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let entry_error = |entry_error| self.entry_error(&path, entry_error);
        match item {
            Item::File => {
                let file = tree.create_file(&path).map_err(entry_error)?;
                self.write_content(&mut entry, &path, &file).await?;
                set_mode(&file, mode).map_err(|error| entry_error(error.into()))?;
                if let Some(modified) =
                    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified))
                {
                    file.set_modified(modified)
                        .map_err(|error| entry_error(error.into()))?;
                }
                Ok(())
            }
            Item::Folder => tree.add_folder(&path, mode, modified).map_err(entry_error),
            Item::Symlink(to) => tree.add_symlink(&path, &to).map_err(entry_error),
            Item::HardLink(to) => tree.add_hard_link(&path, &to).map_err(entry_error),
        }
    }

    /// Writes the content of an entry. Blocks for short pieces only. A switch to another thread
    /// would cost more with a hundred thousand small files.
    async fn write_content<R: AsyncRead + Unpin>(
        &self,
        entry: &mut Entry<R>,
        path: &Path,
        mut file: &File,
    ) -> Result<(), SourceError> {
        let size = entry.effective_size();
        let mut buffer = vec![0; usize::try_from(size.clamp(1, BUFFER as u64)).unwrap_or(BUFFER)];
        let mut written = 0;
        loop {
            let read = entry
                .read(&mut buffer)
                .await
                .map_err(|error| self.read_error(Some(path), &error))?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read])
                .map_err(|error| self.entry_error(path, error.into()))?;
            written += read as u64;
        }
        if written < size {
            return Err(self.archive_error(Some(path), "the archive ends inside it"));
        }
        Ok(())
    }

    fn archive_error(&self, entry: Option<&Path>, reason: &str) -> SourceError {
        SourceError::Archive {
            context: self.context.into(),
            entry: entry.map(|entry| entry.display().to_string()),
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

    fn entry_error(&self, path: &Path, entry_error: EntryError) -> SourceError {
        match entry_error {
            EntryError::Refused(reason) => self.archive_error(Some(path), &reason),
            EntryError::Io(source) => SourceError::Io {
                attempt: format!("write `{}` of {}", path.display(), self.context),
                source,
            },
        }
    }

    /// Returns the error for a failed read: an exceeded limit, or a broken archive.
    fn read_error(&self, entry: Option<&Path>, error: &io::Error) -> SourceError {
        match LimitReached::find(error) {
            Some(LimitReached { limit, unit }) => self.too_large(limit, unit),
            None => self.archive_error(entry, &error_chain(error)),
        }
    }
}

/// Formats an error and its causes as one line.
fn error_chain(error: &io::Error) -> String {
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

/// Reads the first block of `input`, or all of it if it is shorter. Returns it together with a
/// reader that starts at the beginning again.
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

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
