//! Tar streams between folders of this machine and volumes of an engine.
//!
//! Each stream is read or written on one blocking thread. A context of 100,000 small files would
//! otherwise need as many transfers to the thread pool. The channel between the thread and the
//! stream bounds memory.
//!
//! Invariants: unpacked entries stay inside their folder, whatever the archive contains. Unpacking
//! creates no device and no socket, and preserves no owner. Packed entries belong to root, so that
//! two machines create the same workspace from the same files.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Seek as _, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tar::{Archive, Builder, EntryType, Header, HeaderMode};
use tokio::sync::mpsc;

use crate::{
    error::{EngineError, error_chain},
    selection::Selection,
};

/// Size of a chunk in bytes.
const CHUNK: usize = 128 * 1024;
/// Size of the blocks that are checked for zeros, in bytes.
const BLOCK: usize = 64 << 10;
/// Capacity of the channel between a thread and the connection, in chunks.
const CHANNEL: usize = 8;
/// Maximum size of all files that are unpacked into a folder, in bytes. Holes of sparse files count.
const MAX_UNPACKED: u64 = 40 << 30;

/// A part of an archive.
#[derive(Debug, Clone)]
pub(crate) enum Pack {
    /// The selected entries of a folder, as entries below `at` of the archive. An empty `at` is the
    /// root of the archive.
    Folder {
        from: PathBuf,
        at: PathBuf,
        /// Packs the folder itself too, with its mode, as the entry `at`.
        with_root: bool,
        selection: Selection,
    },
    /// A file with the name `at`.
    File {
        from: PathBuf,
        at: PathBuf,
        mode: u32,
    },
    /// A file with this content, which is never written to this machine's disk.
    Content {
        at: PathBuf,
        mode: u32,
        content: Bytes,
    },
}

/// Packs the selected files of `folder` in the form of a workspace, as a stream.
///
/// All entries belong to root, links stay links, and sockets, pipes and devices are skipped.
/// `added` are additional files: path and content. Needs a Tokio runtime.
pub fn pack_folder(
    folder: &Path,
    selection: Selection,
    added: Vec<(PathBuf, Vec<u8>)>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
    let mut parts = vec![Pack::Folder {
        from: folder.to_owned(),
        at: PathBuf::new(),
        with_root: false,
        selection,
    }];
    parts.extend(added.into_iter().map(|(at, content)| Pack::Content {
        at,
        mode: 0o644,
        content: content.into(),
    }));
    pack(parts)
}

/// Packs `parts` into one archive, as a stream.
pub(crate) fn pack(parts: Vec<Pack>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, mut receiver) = mpsc::channel(CHANNEL);
    tokio::task::spawn_blocking(move || {
        let writer = BufWriter::with_capacity(CHUNK, ChannelWriter(sender.clone()));
        if let Err(error) = write_all(parts, writer) {
            // The receiver may be dropped. Then the error has no recipient either.
            let _ = sender.blocking_send(Err(error));
        }
    });
    futures::stream::poll_fn(move |cx| receiver.poll_recv(cx))
}

fn write_all(parts: Vec<Pack>, writer: impl Write) -> io::Result<()> {
    let mut tar = Builder::new(writer);
    tar.mode(HeaderMode::Complete);
    for part in parts {
        match part {
            Pack::Folder {
                from,
                at,
                with_root,
                selection,
            } => write_folder(&mut tar, &from, &at, with_root, &selection)?,
            Pack::File { from, at, mode } => {
                let file = File::open(&from).map_err(path_error("open", &from))?;
                let size = file.metadata().map_err(path_error("inspect", &from))?.len();
                let mut header = new_header(EntryType::Regular, mode);
                header.set_size(size);
                tar.append_data(&mut header, &at, read_exactly(file, size))?;
            }
            Pack::Content { at, mode, content } => {
                let mut header = new_header(EntryType::Regular, mode);
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, &at, content.as_ref())?;
            }
        }
    }
    tar.into_inner()?.flush()
}

fn write_folder(
    tar: &mut Builder<impl Write>,
    from: &Path,
    at: &Path,
    with_root: bool,
    selection: &Selection,
) -> io::Result<()> {
    // The first path of each file with several hard links.
    let mut names = HashMap::new();
    // Ignored parent folders, which are packed only if an entry below them is.
    let mut pending: Vec<PathBuf> = Vec::new();
    let mut entries = walkdir::WalkDir::new(from).sort_by_file_name().into_iter();
    while let Some(entry) = entries.next() {
        let is_loss = |path: &Path, error: &io::Error| {
            let relative = path.strip_prefix(from).unwrap_or(path);
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            !(is_gone(error) || denied && selection.may_be_unreadable(relative))
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => match (error.path(), error.io_error()) {
                // The entry was removed after its folder was listed, or it is ignored.
                (Some(path), Some(cause)) if !is_loss(path, cause) => continue,
                _ => return Err(error.into()),
            },
        };
        let path = entry.path();
        let relative = path.strip_prefix(from).unwrap_or(path);
        if relative.as_os_str().is_empty() && !with_root {
            continue;
        }
        let kind = entry.file_type();
        while pending.pop_if(|folder| !path.starts_with(folder)).is_some() {}
        if selection.excludes(relative, kind.is_dir()) {
            if kind.is_dir() && selection.can_skip_folder(relative) {
                entries.skip_current_dir();
            } else if kind.is_dir() {
                pending.push(path.to_owned());
            }
            continue;
        }
        for folder in std::mem::take(&mut pending) {
            let metadata = fs::symlink_metadata(&folder).map_err(path_error("inspect", &folder))?;
            let name = at.join(folder.strip_prefix(from).unwrap_or(&folder));
            write_directory(tar, &name, &metadata)?;
        }
        let name = at.join(relative);
        let metadata = match entry.metadata().map_err(io::Error::from) {
            Ok(metadata) => metadata,
            Err(error) if !is_loss(path, &error) => continue,
            Err(error) => return Err(error),
        };
        let mut header = new_header(EntryType::Regular, metadata.permissions().mode() & 0o7777);
        header.set_mtime(modified_secs(&metadata));
        if kind.is_dir() {
            write_directory(tar, &name, &metadata)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(path_error("read link", path))?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, &name, &target)?;
        } else if kind.is_file() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = names.get(&inode) {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                tar.append_link(&mut header, &name, first)?;
                continue;
            }
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if !is_loss(path, &error) => continue,
                Err(error) => return Err(path_error("open", path)(error)),
            };
            header.set_size(metadata.len());
            tar.append_data(&mut header, &name, read_exactly(file, metadata.len()))?;
            if metadata.nlink() > 1 {
                names.insert(inode, name);
            }
        } else {
            // Sockets, pipes and devices have no meaning on another machine.
            debug_assert!(
                kind.is_socket()
                    || kind.is_fifo()
                    || kind.is_char_device()
                    || kind.is_block_device()
            );
        }
    }
    Ok(())
}

fn write_directory(
    tar: &mut Builder<impl Write>,
    name: &Path,
    metadata: &fs::Metadata,
) -> io::Result<()> {
    let mut header = new_header(EntryType::Directory, metadata.permissions().mode() & 0o7777);
    header.set_mtime(modified_secs(metadata));
    header.set_size(0);
    tar.append_data(&mut header, name, io::empty())
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn modified_secs(metadata: &fs::Metadata) -> u64 {
    metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs())
}

fn new_header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Reads exactly `size` bytes of a file that may grow or shrink, because the header already states
/// that size.
fn read_exactly(file: File, size: u64) -> impl Read {
    file.take(size).chain(io::repeat(0)).take(size)
}

fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.to_owned();
    move |error| {
        io::Error::new(
            error.kind(),
            format!("cannot {what} {}: {error}", path.display()),
        )
    }
}

/// Unpacks an archive below `into`, without the first component of its names. An engine prefixes
/// every name with that of the requested folder.
pub(crate) async fn unpack_folder(
    stream: impl Stream<Item = Result<Bytes, EngineError>> + Send + 'static,
    into: &Path,
) -> io::Result<()> {
    let into = into.to_owned();
    read_blocking(stream, move |reader| {
        let mut archive = Archive::new(reader);
        archive.set_preserve_permissions(true);
        let mut folders = Vec::new();
        let mut remaining = MAX_UNPACKED;
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            let rest: PathBuf = path.components().skip(1).collect();
            if rest.as_os_str().is_empty() {
                continue;
            }
            match entry.header().entry_type() {
                EntryType::Directory => {
                    // The mode is set last: a folder without write permission can have content.
                    let target = entry_path(&into, &rest)?;
                    if !target.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                        fs::create_dir(&target).map_err(path_error("make folder", &target))?;
                    }
                    folders.push((target, entry.header().mode()?));
                }
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    remaining = remaining.checked_sub(entry.size()).ok_or_else(too_large)?;
                    unpack_file(&mut entry, &entry_path(&into, &rest)?)?;
                }
                EntryType::Symlink => {
                    entry.unpack(entry_path(&into, &rest)?).map(drop)?;
                }
                EntryType::Link => {
                    // The target of a hard link has the same first component.
                    let Some(other) = entry.link_name()? else {
                        continue;
                    };
                    let other: PathBuf = other.components().skip(1).collect();
                    if let (Some(from), Some(to)) =
                        (path_inside(&into, &other), path_inside(&into, &rest))
                    {
                        fs::hard_link(&from, &to).map_err(path_error("link", &to))?;
                    }
                }
                // Devices and similar entries do not belong into a build context.
                _ => {}
            }
        }
        for (folder, mode) in folders.into_iter().rev() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode & 0o7777))
                .map_err(path_error("set the mode of", &folder))?;
        }
        Ok(())
    })
    .await
}

fn too_large() -> io::Error {
    io::Error::other(format!(
        "its files have more than {} GiB, with the holes of sparse files",
        MAX_UNPACKED >> 30
    ))
}

/// Writes a file with its mode and its time. An engine sends the holes of sparse files as zeros.
/// They become holes again, so that they need no disk here.
fn unpack_file(entry: &mut tar::Entry<'_, impl Read>, target: &Path) -> io::Result<()> {
    let (mode, modified) = (entry.header().mode()?, entry.header().mtime()?);
    if target.symlink_metadata().is_ok() {
        fs::remove_file(target).map_err(path_error("replace", target))?;
    }
    let created = File::options().write(true).create_new(true).open(target);
    let mut file = created.map_err(path_error("make file", target))?;
    copy_with_holes(entry, &mut file).map_err(path_error("write", target))?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
        .map_err(path_error("set the mode of", target))?;
    // The time 0 means an absent time to many programs.
    let modified = UNIX_EPOCH.checked_add(Duration::from_secs(modified.max(1)));
    match modified {
        Some(modified) => file
            .set_modified(modified)
            .map_err(path_error("set the time of", target)),
        None => Ok(()),
    }
}

/// Copies a file, and skips blocks of zeros.
fn copy_with_holes(from: &mut impl Read, to: &mut File) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let (mut at, mut written) = (0_u64, 0_u64);
    loop {
        let mut filled = 0;
        while filled < block.len() {
            match from.read(&mut block[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        let content = &block[..filled];
        if content.is_empty() {
            break;
        }
        if content.iter().any(|byte| *byte != 0) {
            if at != written {
                to.seek(io::SeekFrom::Start(at))?;
            }
            to.write_all(content)?;
            written = at + filled as u64;
        }
        at += filled as u64;
    }
    match at == written {
        true => Ok(()),
        false => to.set_len(at),
    }
}

/// Returns `into/rest`, or an error if that is outside of `into`.
fn entry_path(into: &Path, rest: &Path) -> io::Result<PathBuf> {
    path_inside(into, rest).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the archive names {}, which is outside", rest.display()),
        )
    })
}

/// Returns `into/rest` if all of its parents are real folders below `into`.
fn path_inside(into: &Path, rest: &Path) -> Option<PathBuf> {
    let mut at = into.to_owned();
    let mut parts = rest.components().peekable();
    while let Some(part) = parts.next() {
        let std::path::Component::Normal(name) = part else {
            return None;
        };
        at.push(name);
        if parts.peek().is_some() && !at.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return None;
        }
    }
    (at != into).then_some(at)
}

/// An entry of an archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedEntry {
    /// Path without the first component. Empty for the requested entry itself.
    pub(crate) path: PathBuf,
    pub(crate) is_folder: bool,
}

/// Lists the requested entry and its direct children. Skips everything below.
pub(crate) async fn list_entries(
    stream: impl Stream<Item = Result<Bytes, EngineError>> + Send + 'static,
) -> io::Result<Vec<ListedEntry>> {
    read_blocking(stream, |reader| {
        let mut archive = Archive::new(reader);
        let mut out = Vec::new();
        for entry in archive.entries()? {
            let entry = entry?;
            let kind = entry.header().entry_type();
            let path: PathBuf = entry.path()?.components().skip(1).collect();
            if path.components().count() > 1 {
                continue;
            }
            out.push(ListedEntry {
                path,
                is_folder: kind.is_dir(),
            });
        }
        Ok(out)
    })
    .await
}

/// The requested file of an archive.
pub(crate) enum OpenedEntry {
    /// A file, with its content.
    File(mpsc::Receiver<io::Result<Bytes>>),
    /// A symbolic link, with its target.
    Link(PathBuf),
    /// A folder, or an entry without content.
    Other,
}

/// Opens the first entry of an archive, which is the requested file.
pub(crate) async fn open_file(
    stream: impl Stream<Item = Result<Bytes, EngineError>> + Send + 'static,
) -> io::Result<OpenedEntry> {
    let (opened, first) = tokio::sync::oneshot::channel();
    let read = read_blocking(stream, move |reader| {
        let mut archive = Archive::new(reader);
        let Some(entry) = archive.entries()?.next() else {
            let _ = opened.send(OpenedEntry::Other);
            return Ok(());
        };
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            let target = entry.link_name()?.map(|name| name.into_owned());
            let _ = opened.send(target.map_or(OpenedEntry::Other, OpenedEntry::Link));
            return Ok(());
        }
        if !kind.is_file() {
            let _ = opened.send(OpenedEntry::Other);
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(CHANNEL);
        if opened.send(OpenedEntry::File(receiver)).is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = vec![0; CHUNK];
            let read = entry.read(&mut chunk)?;
            chunk.truncate(read);
            if read == 0 || sender.blocking_send(Ok(chunk.into())).is_err() {
                return Ok(());
            }
        }
    });
    let reading = tokio::spawn(read);
    match first.await {
        Ok(opened) => Ok(opened),
        // The reader ended before it sent an entry, so its result has the reason.
        Err(_) => match reading.await {
            Ok(Err(error)) => Err(error),
            _ => Ok(OpenedEntry::Other),
        },
    }
}

/// Runs `work` on a blocking thread over the bytes of `stream`.
async fn read_blocking<T: Send + 'static>(
    stream: impl Stream<Item = Result<Bytes, EngineError>> + Send + 'static,
    work: impl FnOnce(ChannelReader) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let reader = ChannelReader {
        receiver,
        rest: Bytes::new(),
    };
    let working = tokio::task::spawn_blocking(move || work(reader));
    let mut stream = std::pin::pin!(stream);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| io::Error::other(error_chain(&error)));
        // A reader that needs no more bytes closes the channel.
        if sender.send(chunk).await.is_err() {
            break;
        }
    }
    drop(sender);
    working.await.map_err(io::Error::other)?
}

struct ChannelWriter(mpsc::Sender<io::Result<Bytes>>);

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
