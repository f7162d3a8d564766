//! Archives, good and hostile, made byte by byte: a library that writes archives refuses to write these.

use std::os::unix::fs::MetadataExt as _;

use tokio::io::AsyncWriteExt as _;
use tokio_tar::{EntryType, Header};

use super::*;

/// An archive in the making.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8], mode: u32) -> Self {
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

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", content.as_bytes(), 0o644)
    }

    fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"", 0o755)
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Symlink, name, to, b"", 0o777)
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(EntryType::Link, name, to, b"", 0o644)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Unpacks into a folder beside a file that must stay as it is.
async fn unpacked(
    bytes: &[u8],
    limits: &Limits,
) -> (tempfile::TempDir, Result<Content, SourceError>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("outside"), "untouched").unwrap();
    let target = folder.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let result = unpack(bytes, &target, "ctx", limits).await;
    assert_eq!(
        std::fs::read_to_string(folder.path().join("outside")).unwrap(),
        "untouched"
    );
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "something was written outside: {names:?}");
    (folder, result)
}

async fn packed(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    use async_compression::tokio::write::{BzEncoder, GzipEncoder, XzEncoder, ZstdEncoder};
    macro_rules! with {
        ($encoder:ident) => {{
            let mut encoder = $encoder::new(Vec::new());
            encoder.write_all(bytes).await.unwrap();
            encoder.shutdown().await.unwrap();
            encoder.into_inner()
        }};
    }
    match encoding {
        "gzip" => with!(GzipEncoder),
        "zstd" => with!(ZstdEncoder),
        "bzip2" => with!(BzEncoder),
        "xz" => with!(XzEncoder),
        _ => bytes.to_vec(),
    }
}

#[tokio::test]
async fn unpacks_in_every_packing() {
    let long = format!("deep/{}", "x".repeat(90));
    let tar = Tar::default()
        .folder("./")
        .file("./Dockerfile", "FROM scratch\n")
        .folder("sub")
        .entry(EntryType::Regular, "sub/run.sh", "", b"#!/bin/sh\n", 0o4755)
        .symlink("sub/up", "../Dockerfile")
        .symlink("dangling", "not/there")
        .hard_link("hard", "sub/run.sh")
        .file(&long, "long")
        .file("Dockerfile", "FROM later\n")
        .end();
    for encoding in ["plain", "gzip", "zstd", "bzip2", "xz"] {
        let bytes = packed(encoding, &tar).await;
        let (folder, result) = unpacked(&bytes, &Limits::default()).await;
        assert_eq!(result.unwrap(), Content::Archive, "{encoding}");
        let at = |path: &str| folder.path().join("target").join(path);
        assert_eq!(
            std::fs::read_to_string(at("sub/up")).unwrap(),
            "FROM later\n"
        );
        assert_eq!(std::fs::read_to_string(at("hard")).unwrap(), "#!/bin/sh\n");
        assert_eq!(std::fs::read_to_string(at(&long)).unwrap(), "long");
        let meta = at("sub/run.sh").metadata().unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o755, "no setuid");
        assert_eq!(meta.mtime(), 1_000_000_000);
        assert_ne!(meta.uid(), 12345, "no owner");
    }
}

#[tokio::test]
async fn refuses_every_way_out() {
    let device = |kind| Tar::default().entry(kind, "dev", "", b"", 0o666).end();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
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
            ".. that stays in",
            Tar::default().folder("a").file("a/../b", "x").end(),
            "`..`",
        ),
        (
            "absolute",
            Tar::default().file("/tmp/acrtask-outside", "x").end(),
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
            "the same in the other order",
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
            "hard link to nothing",
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
            "a hard link of a link, in another place",
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
        ("unknown", device(EntryType::new(b'D')), "not known"),
    ];
    for (name, bytes, expected) in cases {
        let (_folder, result) = unpacked(&bytes, &Limits::default()).await;
        let error = result.expect_err(name).to_string();
        assert!(
            error.contains(expected) && error.contains("ctx"),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn a_file_in_the_place_of_a_link_does_not_write_through_it() {
    let bytes = Tar::default()
        .file("real", "real")
        .symlink("a", "real")
        .file("a", "new")
        .end();
    let (folder, result) = unpacked(&bytes, &Limits::default()).await;
    result.unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.path().join("target/real")).unwrap(),
        "real"
    );
    assert_eq!(
        std::fs::read_to_string(folder.path().join("target/a")).unwrap(),
        "new"
    );
}

#[tokio::test]
async fn an_archive_cannot_turn_a_link_of_the_one_before_outward() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::default();
    let first = Tar::default().symlink("sly", "up/../x").end();
    unpack(&*first, folder.path(), "ctx", &limits)
        .await
        .unwrap();
    let second = Tar::default().symlink("up", ".").end();
    let error = unpack(&*second, folder.path(), "ctx", &limits).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("`sly`") && error.contains("leads out"),
        "{error}"
    );
}

#[tokio::test]
async fn refuses_too_much() {
    let small = Limits {
        download_bytes: 1 << 20,
        unpacked_bytes: 4096,
        entries: 10,
        ratio: 200,
        ..Limits::default()
    };
    let mut many = Tar::default();
    for n in 0..11 {
        many = many.file(&format!("f{n}"), "");
    }
    // Says that it has four gibibytes, and needs none.
    let mut sparse = Header::new_gnu();
    sparse.as_gnu_mut().unwrap().name[0] = b's';
    sparse.set_size(4 << 30);
    sparse.set_cksum();
    let long_name = vec![b'n'; 3 << 20];
    let long_name = Tar::default()
        .entry(EntryType::GNULongName, "././@LongLink", "", &long_name, 0)
        .file("x", "")
        .end();
    let trailing = [Tar::default().file("x", "").end(), vec![0; 3 << 20]].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "bytes",
            Tar::default().file("a", &"x".repeat(5000)).end(),
            "more than 4096 bytes of files",
        ),
        ("entries", many.end(), "more than 10 entries"),
        (
            "announced size",
            sparse.as_bytes().to_vec(),
            "more than 4096 bytes of files",
        ),
        (
            "a long name",
            packed("gzip", &long_name).await,
            "more than 1048576 bytes of headers",
        ),
        (
            "what follows the end",
            packed("gzip", &trailing).await,
            "more than 1048576 bytes of headers",
        ),
        (
            "download",
            Tar::default().file("a", &"x".repeat(4000)).0.repeat(400),
            "more than",
        ),
    ];
    for (name, bytes, expected) in cases {
        let (_folder, result) = unpacked(&bytes, &small).await;
        let error = result.expect_err(name);
        assert!(
            matches!(error, SourceError::TooLarge { .. }),
            "{name}: {error:?}"
        );
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

/// 600 MB of zeros in 600 kB: the ratio stops it, long before the bytes would.
#[tokio::test]
async fn refuses_a_bomb_by_its_ratio() {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..4].copy_from_slice(b"bomb");
    header.set_size(600 << 20);
    header.set_mode(0o644);
    header.set_mtime(1);
    header.set_cksum();
    let mut encoder = async_compression::tokio::write::ZstdEncoder::new(Vec::new());
    encoder.write_all(header.as_bytes()).await.unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..600 {
        encoder.write_all(&zeros).await.unwrap();
    }
    encoder.shutdown().await.unwrap();
    let (_folder, result) = unpacked(&encoder.into_inner(), &Limits::default()).await;
    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "ctx has more than 200 unpacked bytes for each packed one"
    );
}

#[tokio::test]
async fn text_is_a_dockerfile_and_everything_else_an_error() {
    let (folder, result) = unpacked(b"FROM scratch\n# \xc3\xa4\n", &Limits::default()).await;
    assert_eq!(result.unwrap(), Content::Dockerfile);
    assert!(folder.path().join("target/Dockerfile").is_file());
    let cut = &packed("gzip", &Tar::default().file("a", &"xyz".repeat(2000)).end()).await[..60];
    for (bytes, expected) in [
        (&b""[..], "it is empty"),
        (&b"\x7fELF\x02\x01\x01\0\0"[..], "neither a tar archive"),
        (&packed("gzip", b"only text").await[..], "not a tar archive"),
        (cut, "cannot unpack ctx"),
        (&Tar::default().file("a", "x").0[..700], "cannot unpack ctx"),
    ] {
        let (_folder, result) = unpacked(bytes, &Limits::default()).await;
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
