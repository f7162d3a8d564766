//! Receiver of a folder in the packets of file sync: the counterpart of [`crate::filesync`].
//!
//! Invariants:
//! - No file is written outside the folder. Each path must be plain, and its parent must be a
//!   folder that arrived earlier in the same stream.
//! - Existing files are merged with the result. A non-folder in the place of a folder is replaced.
//! - The owner of all files is this process.
//!
//! Left out: devices and pipes, which a user cannot create. The log names them.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::filesync::mode;

/// Sender of packets to the builder.
type Replies = mpsc::Sender<Result<Bytes, Status>>;

fn encode_packet(kind: PacketType, id: u32) -> Bytes {
    Packet {
        r#type: kind.into(),
        id,
        ..Packet::default()
    }
    .encode_to_vec()
    .into()
}

/// Runs the complete exchange. Creates the folder if it does not exist.
pub(crate) async fn receive_folder(
    mut incoming: Streaming<Bytes>,
    replies: &Replies,
    folder: PathBuf,
) -> Result<(), Status> {
    let (messages, mut queue) = mpsc::channel::<Bytes>(16);
    let replies = replies.clone();
    let writer = tokio::task::spawn_blocking(move || {
        fs::create_dir_all(&folder).map_err(|e| write_error(&folder, &e))?;
        let mut receiver = Receiver::new(folder);
        while let Some(message) = queue.blocking_recv() {
            let reply = |kind, id| {
                // If the receiver is gone, the stream of messages also ends.
                let _ = replies.blocking_send(Ok(encode_packet(kind, id)));
            };
            if receiver.handle_packet(message, reply)? == Progress::Finished {
                break;
            }
        }
        Ok(())
    });
    while let Some(message) = incoming.message().await? {
        if messages.send(message).await.is_err() {
            break;
        }
    }
    drop(messages);
    writer.await.map_err(|e| {
        Status::internal(format!("the writer of the build's result ended early: {e}"))
    })?
}

fn write_error(path: &Path, e: &io::Error) -> Status {
    Status::aborted(format!(
        "cannot write the build's result to {}: {e}",
        path.display()
    ))
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Continue,
    Finished,
}

struct Receiver {
    root: PathBuf,
    next_id: u32,
    /// Described folders, relative to the root, with their final modification times.
    folders: HashMap<PathBuf, i64>,
    /// Requested files that are incomplete.
    pending: HashMap<u32, PendingFile>,
    /// Regular files, which may be targets of hard links.
    files: HashSet<PathBuf>,
    /// All described entries.
    seen: HashSet<PathBuf>,
    described: bool,
}

struct PendingFile {
    path: PathBuf,
    file: Option<File>,
    mode: u32,
    mod_time: i64,
}

impl Receiver {
    fn new(root: PathBuf) -> Self {
        Self {
            root,
            next_id: 0,
            folders: HashMap::new(),
            pending: HashMap::new(),
            files: HashSet::new(),
            seen: HashSet::new(),
            described: false,
        }
    }

    fn handle_packet(
        &mut self,
        message: Bytes,
        reply: impl Fn(PacketType, u32),
    ) -> Result<Progress, Status> {
        let packet =
            Packet::decode(message).map_err(|e| Status::invalid_argument(e.to_string()))?;
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketStat) => match packet.stat {
                Some(stat) => {
                    let id = self.next_id;
                    self.next_id += 1;
                    let path = self.root.join(&stat.path);
                    if self
                        .create_entry(id, &stat)
                        .map_err(|e| write_error(&path, &e))?
                    {
                        reply(PacketType::PacketReq, id);
                    }
                }
                None => self.described = true,
            },
            Ok(PacketType::PacketData) => {
                let root = &self.root;
                let pending = self.pending.get_mut(&packet.id).ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "data for file {}, which was not requested",
                        packet.id
                    ))
                })?;
                pending
                    .write_data(&packet.data)
                    .map_err(|e| write_error(&root.join(&pending.path), &e))?;
                if packet.data.is_empty() {
                    self.pending.remove(&packet.id);
                }
            }
            Ok(PacketType::PacketFin) => return Ok(Progress::Finished),
            Ok(PacketType::PacketErr) => {
                return Err(Status::aborted(
                    String::from_utf8_lossy(&packet.data).into_owned(),
                ));
            }
            Ok(PacketType::PacketReq) | Err(_) => {
                return Err(Status::invalid_argument("unexpected packet"));
            }
        }
        if self.described && self.pending.is_empty() {
            self.described = false;
            self.set_folder_times()
                .map_err(|e| write_error(&self.root, &e))?;
            reply(PacketType::PacketFin, 0);
        }
        Ok(Progress::Continue)
    }

    /// Creates the entry. Returns `true` for a file whose content must be requested.
    fn create_entry(&mut self, id: u32, stat: &Stat) -> io::Result<bool> {
        let relative = self.check_path(&stat.path)?;
        // An entry must not change. A link in the place of a folder would lead out.
        if !self.seen.insert(relative.clone()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it was described twice",
            ));
        }
        let full = self.root.join(&relative);
        let kind = stat.mode & mode::TYPE;
        let permissions = unix_permissions(stat.mode);
        let present = fs::symlink_metadata(&full).ok();
        match &present {
            Some(old) if old.is_dir() && kind == mode::DIR => {}
            Some(old) if old.is_dir() => fs::remove_dir_all(&full)?,
            Some(_) => fs::remove_file(&full)?,
            None => {}
        }
        match kind {
            mode::DIR => {
                if !present.is_some_and(|old| old.is_dir()) {
                    fs::create_dir(&full)?;
                }
                fs::set_permissions(&full, fs::Permissions::from_mode(permissions))?;
                self.folders.insert(relative, stat.mod_time);
            }
            mode::SYMLINK => symlink(&stat.linkname, &full)?,
            0 if !stat.linkname.is_empty() => {
                let target = self.check_path(&stat.linkname)?;
                if !self.files.contains(&target) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a hard link to a file that was not sent",
                    ));
                }
                fs::hard_link(self.root.join(target), &full)?;
            }
            0 => {
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&full)?;
                self.files.insert(relative);
                drop(file);
                self.pending.insert(
                    id,
                    PendingFile {
                        path: full,
                        file: None,
                        mode: permissions,
                        mod_time: stat.mod_time,
                    },
                );
                return Ok(true);
            }
            _ => tracing::warn!(
                path = stat.path,
                "skipping a device or pipe of the build's result"
            ),
        }
        Ok(false)
    }

    /// Checks that the path is plain, and that its parent was described as a folder.
    fn check_path(&self, path: &str) -> io::Result<PathBuf> {
        let bad = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return bad("the path is not a plain relative one");
        }
        let path = PathBuf::from(path);
        match path.parent() {
            Some(parent)
                if !parent.as_os_str().is_empty() && !self.folders.contains_key(parent) =>
            {
                bad("its folder was not described before it")
            }
            _ => Ok(path),
        }
    }

    fn set_folder_times(&self) -> io::Result<()> {
        for (folder, nanoseconds) in &self.folders {
            set_time(&File::open(self.root.join(folder))?, *nanoseconds)?;
        }
        Ok(())
    }
}

impl PendingFile {
    /// Writes a piece. An empty piece completes the file.
    fn write_data(&mut self, data: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self
                .file
                .insert(OpenOptions::new().write(true).open(&self.path)?),
        };
        if data.is_empty() {
            file.set_permissions(fs::Permissions::from_mode(self.mode))?;
            return set_time(file, self.mod_time);
        }
        file.write_all(data)
    }
}

fn unix_permissions(go: u32) -> u32 {
    let mut unix = go & 0o777;
    for (flag, bit) in [
        (mode::SETUID, 0o4000),
        (mode::SETGID, 0o2000),
        (mode::STICKY, 0o1000),
    ] {
        if go & flag != 0 {
            unix |= bit;
        }
    }
    unix
}

/// Sets the modification time. Ignores times before 1970.
fn set_time(file: &File, nanoseconds: i64) -> io::Result<()> {
    match u64::try_from(nanoseconds) {
        Ok(nanoseconds) => {
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds))
        }
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn stat(path: &str, go_mode: u32, linkname: &str) -> Bytes {
        let stat = Stat {
            path: path.into(),
            mode: go_mode,
            linkname: linkname.into(),
            mod_time: 1_000_000_000,
            ..Stat::default()
        };
        Packet {
            r#type: PacketType::PacketStat.into(),
            stat: Some(stat),
            ..Packet::default()
        }
        .encode_to_vec()
        .into()
    }

    fn data(id: u32, data: &[u8]) -> Bytes {
        Packet {
            r#type: PacketType::PacketData.into(),
            id,
            data: data.to_vec(),
            ..Packet::default()
        }
        .encode_to_vec()
        .into()
    }

    #[test]
    fn receiver_stores_a_folder() {
        let root = TempDir::new().unwrap();
        fs::write(root.path().join("kept"), "").unwrap();
        symlink("/etc", root.path().join("dir")).unwrap();
        let mut receiver = Receiver::new(root.path().into());
        let replies = std::cell::RefCell::new(Vec::new());
        for message in [
            stat("dir", mode::DIR | 0o755, ""),
            stat("dir/a", 0o640, ""),
            stat("dir/b", 0o640, "dir/a"),
            stat("link", mode::SYMLINK | 0o777, "dir/a"),
            encode_packet(PacketType::PacketStat, 0),
            data(1, b"he"),
            data(1, b"llo"),
            data(1, b""),
        ] {
            receiver
                .handle_packet(message, |kind, id| replies.borrow_mut().push((kind, id)))
                .unwrap();
        }
        assert_eq!(
            *replies.borrow(),
            [(PacketType::PacketReq, 1), (PacketType::PacketFin, 0)]
        );
        assert_eq!(fs::read(root.path().join("link")).unwrap(), b"hello");
        assert_eq!(fs::read(root.path().join("dir/b")).unwrap(), b"hello");
        let metadata = fs::symlink_metadata(root.path().join("dir/a")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        assert_eq!(
            metadata.modified().unwrap(),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1)
        );
        assert!(
            fs::symlink_metadata(root.path().join("dir"))
                .unwrap()
                .is_dir()
        );
        assert!(root.path().join("kept").exists());
    }

    #[test]
    fn receiver_refuses_to_replace_a_described_entry() {
        for (first, mode) in [("dir", mode::DIR | 0o755), ("file", 0o644)] {
            let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let mut receiver = Receiver::new(root.path().into());
            receiver
                .handle_packet(stat(first, mode, ""), |_, _| {})
                .unwrap();
            let to = outside.path().join("x");
            let link = stat(first, mode::SYMLINK | 0o777, to.to_str().unwrap());
            assert!(receiver.handle_packet(link, |_, _| {}).is_err(), "{first}");
        }
    }

    #[test]
    fn receiver_refuses_paths_that_lead_out() {
        for message in [
            stat("../x", 0o644, ""),
            stat("/x", 0o644, ""),
            stat("a/../../x", 0o644, ""),
            stat("unseen/x", 0o644, ""),
            stat("x", 0o644, "unseen"),
            stat("x", 0o644, "../x"),
        ] {
            let root = TempDir::new().unwrap();
            assert!(
                Receiver::new(root.path().into())
                    .handle_packet(message, |_, _| {})
                    .is_err()
            );
        }
        let root = TempDir::new().unwrap();
        let mut receiver = Receiver::new(root.path().into());
        receiver
            .handle_packet(stat("l", mode::SYMLINK | 0o777, "/tmp"), |_, _| {})
            .unwrap();
        assert!(
            receiver
                .handle_packet(stat("l/x", 0o644, ""), |_, _| {})
                .is_err()
        );
    }
}
