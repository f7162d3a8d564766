//! Unpacking an archive that need not be well-meant.
//!
//! The tar library reads; what may be written is decided here ([`item`] by the header alone, [`tree`] by what
//! is there already), and written here. Refused: `..`, absolute names, names below a link, links (symbolic and hard)
//! that lead out of the folder on any way, devices, pipes and sockets, and entries that are not known. Modes are kept,
//! as a build sees them; owners and extended attributes are not. So only the owner of the folder may enter what is above
//! it: a file may have the bit that runs it as its owner.
//!
//! Every amount is bounded ([`limit`]): bytes in, bytes out, their ratio, entries, and the headers between two
//! entries, which the library reads into memory.

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
use tree::{Tree, Trouble, set_mode};

/// Unpacked bytes from which on the ratio to the packed ones counts: small archives of zeros are harmless.
pub const RATIO_FROM: u64 = 256 << 20;
/// Biggest Dockerfile that a context may consist of, in bytes.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// Memory for an xz dictionary, in bytes; `xz -9` needs 65 MiB.
const MAX_XZ: u64 = 128 << 20;
/// Bytes that are read ahead.
const BUFFER: usize = 128 << 10;
/// Enough of a stream's beginning to tell what it is: one block of tar.
const BLOCK: usize = 512;

/// Where symbolic links may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Nowhere out of the archive's folder.
    Inside,
    /// Anywhere: they are what the folder had that was packed, and mean something only where it is used. Nothing is
    /// written through them, and whoever reads the folder follows none out of it ([`crate::paths::inside`]).
    Anywhere,
}

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

/// Unpacks `input` into the folder `target`, which is empty or holds what other archives left. `context` is its name in errors.
///
/// # Errors
/// [`SourceError::Archive`], [`SourceError::TooLarge`]. `target` then holds a part.
pub async fn unpack(
    input: impl AsyncRead + Unpin + Send,
    target: &Path,
    context: &str,
    limits: &Limits,
) -> Result<Content, SourceError> {
    unpack_with(input, target, context, limits, Links::Inside).await
}

/// As [`unpack`], with a say on links.
///
/// # Errors
/// As [`unpack`].
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
            .map_err(|error| self.read_error(None, &error))?;
        if !is_tar(&start) {
            return Err(self.broken(None, "what is packed in it is not a tar archive"));
        }
        self.tar(BufReader::with_capacity(BUFFER, unpacked)).await?;
        // An archive ends before its stream does; whoever checks a digest needs the rest too.
        tokio::io::copy(&mut whole, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(None, &error))?;
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

    async fn tar(&self, input: impl AsyncRead + Unpin + Send) -> Result<(), SourceError> {
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
            // Records for all entries that follow: nothing that is kept.
            if entry.header().entry_type() != EntryType::XGlobalHeader {
                self.entry(entry, &mut tree).await?;
            }
        }
        drop((entries, archive));
        budget.store(MAX_HEADERS, Ordering::Relaxed);
        // The end of the packed stream, where its checksum is.
        tokio::io::copy(&mut input, &mut tokio::io::sink())
            .await
            .map_err(|error| self.read_error(None, &error))?;
        tree.finish()
            .map_err(|(path, trouble)| self.trouble(&path, trouble))
    }

    async fn entry<R: AsyncRead + Unpin>(
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
            .map_err(|reason| self.broken(Some(&name), &reason))?;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let trouble = |trouble| self.trouble(&path, trouble);
        match item {
            Item::File => {
                let file = tree.file(&path).map_err(trouble)?;
                self.content(&mut entry, &path, &file).await?;
                set_mode(&file, mode).map_err(|error| trouble(error.into()))?;
                if let Some(modified) =
                    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(modified))
                {
                    file.set_modified(modified)
                        .map_err(|error| trouble(error.into()))?;
                }
                Ok(())
            }
            Item::Folder => tree.folder(&path, mode, modified).map_err(trouble),
            Item::Symlink(to) => tree.symlink(&path, &to).map_err(trouble),
            Item::HardLink(to) => tree.hard_link(&path, &to).map_err(trouble),
        }
    }

    /// Writes the content of an entry. Blocking, in pieces small enough for it not to matter: a hop to another thread
    /// for each of a hundred thousand small files does.
    async fn content<R: AsyncRead + Unpin>(
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
                .map_err(|error| self.trouble(path, error.into()))?;
            written += read as u64;
        }
        if written < size {
            return Err(self.broken(Some(path), "the archive ends inside it"));
        }
        Ok(())
    }

    fn broken(&self, entry: Option<&Path>, reason: &str) -> SourceError {
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

    fn trouble(&self, path: &Path, trouble: Trouble) -> SourceError {
        match trouble {
            Trouble::Refused(reason) => self.broken(Some(path), &reason),
            Trouble::Io(source) => SourceError::Io {
                attempt: format!("write `{}` of {}", path.display(), self.context),
                source,
            },
        }
    }

    /// What came up while the archive was read: one of our own limits, or a broken archive.
    fn read_error(&self, entry: Option<&Path>, error: &io::Error) -> SourceError {
        match LimitReached::find(error) {
            Some(LimitReached { limit, unit }) => self.too_large(limit, unit),
            None => self.broken(entry, &flat(error)),
        }
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

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
