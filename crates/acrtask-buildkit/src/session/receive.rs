//! Receives a folder in the packets of file sync: the counterpart of [`crate::filesync`].
//!
//! Invariants: nothing is written outside the folder, because each path must be plain and its parent must be a folder
//! that came before it in the same stream; what is there already is merged with, a non-folder in the way
//! is replaced. Owners stay those of this process.
//!
//! Left out: devices and pipes, which a user cannot make; they are named in the log.

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

/// Where packets for the builder go.
type Replies = mpsc::Sender<Result<Bytes, Status>>;

fn packet(kind: PacketType, id: u32) -> Bytes {
    Packet {
        r#type: kind.into(),
        id,
        ..Packet::default()
    }
    .encode_to_vec()
    .into()
}

/// Runs the whole exchange; the folder is made if it is absent.
pub(crate) async fn receive(
    mut incoming: Streaming<Bytes>,
    replies: &Replies,
    folder: PathBuf,
) -> Result<(), Status> {
    let (messages, mut queue) = mpsc::channel::<Bytes>(16);
    let replies = replies.clone();
    let writer = tokio::task::spawn_blocking(move || {
        fs::create_dir_all(&folder).map_err(|e| cannot_write(&folder, &e))?;
        let mut receiver = Receiver::new(folder);
        while let Some(message) = queue.blocking_recv() {
            let reply = |kind, id| {
                // When nobody listens any more, the stream of messages ends as well.
                let _ = replies.blocking_send(Ok(packet(kind, id)));
            };
            if receiver.take(message, reply)? == Progress::Finished {
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

fn cannot_write(path: &Path, e: &io::Error) -> Status {
    Status::aborted(format!(
        "cannot write the build's result to {}: {e}",
        path.display()
    ))
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Going,
    Finished,
}

struct Receiver {
    root: PathBuf,
    next_id: u32,
    /// Folders described so far, relative; with the time that each gets at the end.
    folders: HashMap<PathBuf, i64>,
    /// Files asked for and not complete.
    awaited: HashMap<u32, Awaited>,
    /// Regular files, which hard links may point to.
    files: HashSet<PathBuf>,
    /// All entries described so far.
    seen: HashSet<PathBuf>,
    described: bool,
}

struct Awaited {
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
            awaited: HashMap::new(),
            files: HashSet::new(),
            seen: HashSet::new(),
            described: false,
        }
    }

    fn take(
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
                    if self.entry(id, &stat).map_err(|e| cannot_write(&path, &e))? {
                        reply(PacketType::PacketReq, id);
                    }
                }
                None => self.described = true,
            },
            Ok(PacketType::PacketData) => {
                let root = &self.root;
                let awaited = self.awaited.get_mut(&packet.id).ok_or_else(|| {
                    Status::invalid_argument(format!(
                        "data for file {}, which was not requested",
                        packet.id
                    ))
                })?;
                awaited
                    .data(&packet.data)
                    .map_err(|e| cannot_write(&root.join(&awaited.path), &e))?;
                if packet.data.is_empty() {
                    self.awaited.remove(&packet.id);
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
        if self.described && self.awaited.is_empty() {
            self.described = false;
            self.set_folder_times()
                .map_err(|e| cannot_write(&self.root, &e))?;
            reply(PacketType::PacketFin, 0);
        }
        Ok(Progress::Going)
    }

    /// Makes the entry. `true` when it is a file whose content must be requested.
    fn entry(&mut self, id: u32, stat: &Stat) -> io::Result<bool> {
        let relative = self.checked(&stat.path)?;
        // What has come stays what it is: through a link in the place of a folder one could get out.
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
                let target = self.checked(&stat.linkname)?;
                if !self.files.contains(&target) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a hard link to what was not sent",
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
                self.awaited.insert(
                    id,
                    Awaited {
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
                "left out of the build's result: devices and pipes are not made"
            ),
        }
        Ok(false)
    }

    /// The path, when it is plain and its parent has been described as a folder.
    fn checked(&self, path: &str) -> io::Result<PathBuf> {
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

impl Awaited {
    /// Writes a piece; an empty one completes the file.
    fn data(&mut self, data: &[u8]) -> io::Result<()> {
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

/// Times before 1970 are left as they are.
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
    fn a_folder_arrives() {
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
            packet(PacketType::PacketStat, 0),
            data(1, b"he"),
            data(1, b"llo"),
            data(1, b""),
        ] {
            receiver
                .take(message, |kind, id| replies.borrow_mut().push((kind, id)))
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
    fn what_has_come_stays_what_it_is() {
        for (first, mode) in [("dir", mode::DIR | 0o755), ("file", 0o644)] {
            let (root, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
            let mut receiver = Receiver::new(root.path().into());
            receiver.take(stat(first, mode, ""), |_, _| {}).unwrap();
            let to = outside.path().join("x");
            let link = stat(first, mode::SYMLINK | 0o777, to.to_str().unwrap());
            assert!(receiver.take(link, |_, _| {}).is_err(), "{first}");
        }
    }

    #[test]
    fn nothing_leaves_the_folder() {
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
                    .take(message, |_, _| {})
                    .is_err()
            );
        }
        let root = TempDir::new().unwrap();
        let mut receiver = Receiver::new(root.path().into());
        receiver
            .take(stat("l", mode::SYMLINK | 0o777, "/tmp"), |_, _| {})
            .unwrap();
        assert!(receiver.take(stat("l/x", 0o644, ""), |_, _| {}).is_err());
    }
}
