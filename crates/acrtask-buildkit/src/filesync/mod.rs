//! `moby.filesync.v1.FileSync`: the builder requests a folder, this program describes its entries,
//! and the builder requests the files that it lacks.
//!
//! This program sends a STAT packet for each entry, numbered from 0 in order, and an empty STAT at
//! the end. The builder sends a REQ with the number of each file that it wants. The response
//! consists of DATA packets and an empty one. After the last file, the builder sends FIN, and this
//! program returns it.
//!
//! Invariants:
//! - A task reads requests immediately and stores their numbers in a queue, independent of the walk
//!   and the readers. Otherwise small frames would accumulate, and the flood protection of HTTP/2
//!   would close the connection.
//! - Memory does not depend on file sizes. Each file takes its name and 12 bytes.
//! - A file that vanished after the walk is sent empty. A file that cannot be opened or read fails
//!   the transfer.
//!
//! Left out: `TarStream`, which no current builder uses.

mod follow;
mod gopath;
mod pattern;
mod queue;
mod walk;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSync;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

pub use gopath::BadPattern;
pub use pattern::PatternSet;
use queue::RequestQueue;
use walk::{Filter, Visitor};
pub(crate) use walk::{WalkError, mode};

/// Number of files read concurrently.
const READERS: usize = 4;
/// Size of a DATA packet, in bytes.
const CHUNK: usize = 32 * 1024;
/// Number of packets between the walk, the readers and the wire. With [`CHUNK`] it bounds the
/// memory of a transfer.
const PACKETS_IN_FLIGHT: usize = 128;

/// Content of a named `local://` source.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    /// Folder of this machine.
    Folder(PathBuf),
    /// Files in memory: names without a slash, and contents.
    Memory(Arc<[(String, Vec<u8>)]>),
}

/// Folders that a build may read.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileSyncService {
    trees: Arc<HashMap<String, Tree>>,
}

impl FileSyncService {
    pub(crate) fn new(trees: HashMap<String, Tree>) -> Self {
        Self {
            trees: Arc::new(trees),
        }
    }
}

type PacketStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Packet, Status>> + Send>>;

#[tonic::async_trait]
impl FileSync for FileSyncService {
    type DiffCopyStream = PacketStream;
    type TarStreamStream = PacketStream;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<PacketStream>, Status> {
        let folder_request = FolderRequest::from_metadata(request.metadata())?;
        let tree = self
            .trees
            .get(&folder_request.name)
            .cloned()
            .ok_or_else(|| {
                Status::not_found(format!(
                    "no access allowed to dir {:?}",
                    folder_request.name
                ))
            })?;
        tracing::debug!(name = folder_request.name, include = ?folder_request.include, exclude = ?folder_request.exclude, follow = ?folder_request.follow, "file sync");
        let (packets, receiver) = mpsc::channel(PACKETS_IN_FLIGHT);
        let transfer = Arc::new(Transfer {
            packets,
            index: Mutex::default(),
            queue: RequestQueue::default(),
            tree,
        });
        tokio::spawn(Arc::clone(&transfer).receive_requests(request.into_inner()));
        for _ in 0..READERS {
            let transfer = Arc::clone(&transfer);
            tokio::task::spawn_blocking(move || transfer.read_files());
        }
        tokio::task::spawn_blocking(move || transfer.send_stats(&folder_request));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<PacketStream>, Status> {
        Err(Status::unimplemented("TarStream"))
    }
}

/// Folder that a builder requests, from the headers of its call.
#[derive(Debug, Default, PartialEq, Eq)]
struct FolderRequest {
    name: String,
    include: Vec<String>,
    exclude: Vec<String>,
    follow: Vec<String>,
}

impl FolderRequest {
    fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        let values = |key: &str| -> Result<Vec<String>, Status> {
            let escaped = metadata
                .get(format!("{key}-encoded"))
                .is_some_and(|v| matches!(v.as_bytes(), b"1" | b"true"));
            metadata
                .get_all(key)
                .iter()
                .map(|value| {
                    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| {
                        Status::invalid_argument(format!("header {key} is not UTF-8"))
                    })?;
                    Ok(if escaped {
                        query_unescape(text)
                    } else {
                        text.to_owned()
                    })
                })
                .collect()
        };
        Ok(Self {
            name: values("dir-name")?.into_iter().next().unwrap_or_default(),
            include: values("include-patterns")?,
            exclude: values("exclude-patterns")?,
            follow: values("followpaths")?,
        })
    }
}

/// Decodes `application/x-www-form-urlencoded`, the encoding of non-ASCII text in headers.
fn query_unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(at + i).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are a byte.
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Running exchange.
struct Transfer {
    packets: mpsc::Sender<Result<Packet, Status>>,
    index: Mutex<FileIndex>,
    queue: RequestQueue,
    tree: Tree,
}

impl Transfer {
    /// Sends a packet from a thread that may block. Returns `false` if the receiver is gone.
    fn send(&self, packet: Packet) -> bool {
        self.packets.blocking_send(Ok(packet)).is_ok()
    }

    fn fail(&self, message: &str) {
        self.queue.close();
        let _ = self.send(Packet {
            r#type: PacketType::PacketErr.into(),
            data: message.as_bytes().to_vec(),
            ..Packet::default()
        });
        let _ = self
            .packets
            .blocking_send(Err(Status::failed_precondition(message)));
    }

    fn send_stats(&self, folder_request: &FolderRequest) {
        let sent = match &self.tree {
            Tree::Folder(root) => Filter::with_follow_paths(
                root,
                &folder_request.include,
                &folder_request.exclude,
                &folder_request.follow,
            )
            .and_then(|filter| walk::walk(root, &filter, &mut StatSender::new(self))),
            Tree::Memory(files) => self.send_memory_stats(files, folder_request),
        };
        match sent {
            Ok(()) => {
                self.send(Packet {
                    r#type: PacketType::PacketStat.into(),
                    ..Packet::default()
                });
            }
            Err(WalkError::Stopped) => {}
            Err(error) => {
                let message = error_chain(&error);
                tracing::warn!(name = folder_request.name, %message, "file sync failed");
                self.fail(&message);
            }
        }
    }

    fn send_memory_stats(
        &self,
        files: &[(String, Vec<u8>)],
        folder_request: &FolderRequest,
    ) -> Result<(), WalkError> {
        let mut include = folder_request.include.clone();
        include.extend(folder_request.follow.iter().cloned());
        let filter = Filter::new(&include, &folder_request.exclude)?;
        let mut sender = StatSender::new(self);
        for (name, data) in files.iter().filter(|(name, _)| filter.matches(name)) {
            let size = i64::try_from(data.len()).unwrap_or(i64::MAX);
            sender.visit(
                Path::new(""),
                Stat {
                    path: name.clone(),
                    mode: 0o644,
                    size,
                    ..Stat::default()
                },
            )?;
        }
        Ok(())
    }

    async fn receive_requests(self: Arc<Self>, mut incoming: Streaming<Packet>) {
        loop {
            let packet = match incoming.message().await {
                Ok(Some(packet)) => packet,
                Ok(None) => break,
                Err(status) => {
                    tracing::debug!(%status, "the builder ended a file sync");
                    break;
                }
            };
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketReq) => self.queue.push(packet.id),
                Ok(PacketType::PacketFin) => {
                    let _ = self
                        .packets
                        .send(Ok(Packet {
                            r#type: PacketType::PacketFin.into(),
                            ..Packet::default()
                        }))
                        .await;
                    break;
                }
                Ok(PacketType::PacketErr) => {
                    tracing::debug!(message = %String::from_utf8_lossy(&packet.data), "the builder refused a file sync");
                    break;
                }
                Ok(PacketType::PacketStat | PacketType::PacketData) | Err(_) => {
                    let status = Status::invalid_argument(format!(
                        "unexpected packet of type {}",
                        packet.r#type
                    ));
                    let _ = self.packets.send(Err(status)).await;
                    break;
                }
            }
        }
        self.queue.close();
    }

    fn read_files(&self) {
        let mut buffer = vec![0; CHUNK];
        while let Some(id) = self.queue.pop() {
            let Some(path) = self
                .index
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .path(id)
            else {
                return self.fail(&format!("invalid file id {id}"));
            };
            let data = |data: Vec<u8>| Packet {
                r#type: PacketType::PacketData.into(),
                id,
                data,
                ..Packet::default()
            };
            match &self.tree {
                Tree::Folder(_) => {
                    let cannot_read =
                        |error: io::Error| format!("cannot read {}: {error}", path.display());
                    let mut file = match open_file(&path) {
                        Ok(file) => file,
                        Err(error) => return self.fail(&cannot_read(error)),
                    };
                    while let Some(open) = &mut file {
                        match open.read(&mut buffer) {
                            Ok(0) => break,
                            Ok(n) => {
                                if !self.send(data(buffer[..n].to_vec())) {
                                    return;
                                }
                            }
                            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                            Err(e) => return self.fail(&cannot_read(e)),
                        }
                    }
                }
                Tree::Memory(files) => {
                    let content = files
                        .iter()
                        .find(|(name, _)| Path::new(name) == path)
                        .map(|(_, content)| content.as_slice());
                    for chunk in content.unwrap_or_default().chunks(CHUNK) {
                        if !self.send(data(chunk.to_vec())) {
                            return;
                        }
                    }
                }
            }
            if !self.send(data(Vec::new())) {
                return;
            }
        }
    }
}

/// Opens a file that the walk described. `None` if it vanished, or is a socket, which is sent as an
/// empty file.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if follow::is_absent(&error) => Ok(None),
        Err(error) => match path.symlink_metadata() {
            Ok(metadata) if metadata.file_type().is_socket() => Ok(None),
            _ => Err(error),
        },
    }
}

/// Visitor that numbers the entries and sends their STAT packets.
struct StatSender<'a> {
    transfer: &'a Transfer,
    folder: PathBuf,
    started: bool,
}

impl<'a> StatSender<'a> {
    fn new(transfer: &'a Transfer) -> Self {
        Self {
            transfer,
            folder: PathBuf::new(),
            started: false,
        }
    }
}

impl Visitor for StatSender<'_> {
    fn visit(&mut self, folder: &Path, stat: Stat) -> Result<(), WalkError> {
        {
            let mut index = self
                .transfer
                .index
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !self.started || self.folder != folder {
                self.started = true;
                folder.clone_into(&mut self.folder);
                index.enter(folder);
            }
            let name = if stat.mode & mode::TYPE == 0 {
                stat.path.rsplit('/').next().unwrap_or_default()
            } else {
                ""
            };
            index.push(name);
        }
        let packet = Packet {
            r#type: PacketType::PacketStat.into(),
            stat: Some(stat),
            ..Packet::default()
        };
        if self.transfer.send(packet) {
            Ok(())
        } else {
            Err(WalkError::Stopped)
        }
    }
}

/// Compact map from an entry's number to its path: the folders, and one buffer with all names.
#[derive(Default)]
struct FileIndex {
    folders: Vec<Box<Path>>,
    names: Vec<u8>,
    entries: Vec<IndexEntry>,
}

/// Location of a name. A `length` of 0 marks an entry that cannot be requested.
struct IndexEntry {
    folder: u32,
    start: u32,
    length: u16,
}

impl FileIndex {
    fn enter(&mut self, folder: &Path) {
        self.folders.push(folder.into());
    }

    fn push(&mut self, name: &str) {
        // The protocol's numbers allow 4 billion entries, and a name has at most 255 bytes. The
        // buffer cannot exceed 4 GiB before that limit. Saturation only avoids a panic.
        let folder = u32::try_from(self.folders.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let start = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let length = u16::try_from(name.len()).unwrap_or(0);
        self.names.extend_from_slice(name.as_bytes());
        self.entries.push(IndexEntry {
            folder,
            start,
            length,
        });
    }

    fn path(&self, id: u32) -> Option<PathBuf> {
        let entry = self
            .entries
            .get(id as usize)
            .filter(|entry| entry.length > 0)?;
        let start = entry.start as usize;
        let name = self.names.get(start..start + usize::from(entry.length))?;
        Some(
            self.folders
                .get(entry.folder as usize)?
                .join(OsStr::from_bytes(name)),
        )
    }
}

/// Formats an error and its causes as one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_unescaped_only_if_marked() {
        let mut metadata = MetadataMap::new();
        metadata.insert("dir-name", "context".parse().unwrap());
        metadata.append("followpaths", "a%20b".parse().unwrap());
        metadata.append("exclude-patterns", "%C3%BC*+x".parse().unwrap());
        metadata.append("exclude-patterns", "!keep".parse().unwrap());
        metadata.insert("exclude-patterns-encoded", "1".parse().unwrap());
        assert_eq!(
            FolderRequest::from_metadata(&metadata).unwrap(),
            FolderRequest {
                name: "context".into(),
                include: vec![],
                exclude: vec!["ü* x".into(), "!keep".into()],
                follow: vec!["a%20b".into()],
            }
        );
    }

    #[test]
    fn open_file_returns_none_for_vanished_files_and_sockets() {
        let dir = tempfile::TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "text").unwrap();
        assert!(open_file(&at("file")).unwrap().is_some());
        assert!(open_file(&at("vanished")).unwrap().is_none());
        assert!(open_file(&at("file/below")).unwrap().is_none());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(open_file(&at("socket")).unwrap().is_none());
        // Root may open a file without permissions, but not a loop of links.
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert!(open_file(&at("loop")).is_err());
    }

    #[tokio::test]
    async fn unreadable_file_fails_the_transfer_with_its_name() {
        let dir = tempfile::TempDir::new().unwrap();
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let (packets, mut receiver) = mpsc::channel(PACKETS_IN_FLIGHT);
        let transfer = Transfer {
            packets,
            index: Mutex::default(),
            queue: RequestQueue::default(),
            tree: Tree::Folder(dir.path().to_owned()),
        };
        {
            let mut index = transfer.index.lock().unwrap();
            index.enter(dir.path());
            index.push("loop");
        }
        transfer.queue.push(0);
        tokio::task::spawn_blocking(move || transfer.read_files())
            .await
            .unwrap();
        let packet = receiver.recv().await.unwrap().unwrap();
        assert_eq!(packet.r#type, i32::from(PacketType::PacketErr));
        let message = String::from_utf8(packet.data).unwrap();
        let path = dir.path().join("loop");
        assert!(
            message.starts_with(&format!("cannot read {}: ", path.display())),
            "{message}"
        );
        assert!(receiver.recv().await.unwrap().is_err());
    }

    #[test]
    fn index_returns_paths_of_files_only() {
        let mut index = FileIndex::default();
        index.enter(Path::new("/r"));
        index.push("");
        index.push("b");
        index.enter(Path::new("/r/a"));
        index.push("c");
        assert_eq!(index.path(0), None);
        assert_eq!(index.path(1), Some("/r/b".into()));
        assert_eq!(index.path(2), Some("/r/a/c".into()));
        assert_eq!(index.path(3), None);
        assert_eq!(size_of::<IndexEntry>(), 12);
    }
}
