//! Archives built byte by byte, including those that a library refuses to write. The tests of the
//! whole program include this file.

#![allow(clippy::unwrap_used, reason = "for tests")]

use tokio_tar::{EntryType, Header};

/// Archive under construction.
#[derive(Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

impl Tar {
    pub(crate) fn entry(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        content: &[u8],
        mode: u32,
    ) -> Self {
        let mut header = Header::new_gnu();
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(12345);
        header.set_gid(12345);
        header.set_mtime(1_000_000_000);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes(), 0o644)
    }

    pub(crate) fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"", 0o755)
    }

    pub(crate) fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, to, b"", 0o777)
    }

    pub(crate) fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name, to, b"", 0o644)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Returns archives that would write or lead out of their folder: a name, the bytes, and words of
/// the error.
pub(crate) fn escaping_archives() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let device = |kind| Tar::default().entry(kind, "dev", "", b"", 0o666).end();
    vec![
        ("..", Tar::default().file("../outside", "x").end(), "`..`"),
        (
            ".. inside",
            Tar::default()
                .folder("a")
                .file("a/../../outside", "x")
                .end(),
            "`..`",
        ),
        (
            ".. that stays inside",
            Tar::default().folder("a").file("a/../b", "x").end(),
            "`..`",
        ),
        (
            "absolute",
            Tar::default().file("/tmp/acrtask-outside", "x").end(),
            "absolute",
        ),
        (
            "absolute folder",
            Tar::default().folder("/tmp").end(),
            "absolute",
        ),
        (
            "root as a link",
            Tar::default().symlink("/", "a").end(),
            "absolute",
        ),
        (
            "root as a file",
            Tar::default().file("/", "x").end(),
            "absolute",
        ),
        (
            "absolute link",
            Tar::default().symlink("a", "/etc").end(),
            "absolute",
        ),
        (
            "link up",
            Tar::default().symlink("a", "..").end(),
            "leads out",
        ),
        (
            "link far up",
            Tar::default()
                .folder("d")
                .symlink("d/a", "../../outside")
                .end(),
            "leads out",
        ),
        (
            "through a link",
            Tar::default()
                .symlink("a", "..")
                .file("a/outside", "x")
                .end(),
            "leads out",
        ),
        (
            "below a link inside",
            Tar::default()
                .folder("d")
                .symlink("a", "d")
                .file("a/x", "x")
                .end(),
            "is a link",
        ),
        (
            "below a file",
            Tar::default().file("a", "x").file("a/b", "x").end(),
            "is a file",
        ),
        (
            "a link that passes a link",
            Tar::default()
                .folder("d")
                .symlink("d/up", "..")
                .symlink("d/sly", "up/../outside")
                .end(),
            "leads out",
        ),
        (
            "a link that passes a later link",
            Tar::default()
                .folder("d")
                .symlink("d/sly", "up/../outside")
                .symlink("d/up", "..")
                .end(),
            "leads out",
        ),
        (
            "hard link out",
            Tar::default().hard_link("a", "../outside").end(),
            "`..`",
        ),
        (
            "hard link absolute",
            Tar::default().hard_link("a", "/etc/passwd").end(),
            "absolute",
        ),
        (
            "hard link to a missing entry",
            Tar::default().hard_link("a", "b").end(),
            "not in the archive",
        ),
        (
            "hard link through a link",
            Tar::default()
                .folder("d")
                .symlink("d/up", "..")
                .hard_link("a", "d/up/outside")
                .end(),
            "is a link",
        ),
        (
            "a hard link of a link, in another folder",
            Tar::default()
                .symlink("a/b/up", "../../file")
                .hard_link("up", "a/b/up")
                .end(),
            "leads out",
        ),
        ("empty link", Tar::default().symlink("a", "").end(), "link"),
        (
            "a link to itself",
            Tar::default().symlink("a", "a").end(),
            "more than 40 links",
        ),
        ("character device", device(EntryType::Char), "a device"),
        ("block device", device(EntryType::Block), "a device"),
        ("pipe", device(EntryType::Fifo), "a pipe"),
        ("unknown", device(EntryType::new(b'D')), "unknown type"),
    ]
}
