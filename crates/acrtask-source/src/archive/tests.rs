//! Tests with valid and hostile archives.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf};

use tokio::io::AsyncWriteExt as _;
use tokio_tar::{EntryType, Header};

use super::{
    hostile::{Tar, escaping_archives},
    *,
};

/// Unpacks into a folder. Checks that a file beside it does not change.
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
async fn unpack_supports_every_compression() {
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
        assert_eq!(meta.mode() & 0o7777, 0o4755);
        assert_eq!(meta.mtime(), 1_000_000_000);
        assert_ne!(meta.uid(), 12345, "no owner");
    }
}

#[tokio::test]
async fn unpack_refuses_escaping_archives() {
    for (name, bytes, expected) in escaping_archives() {
        let (_folder, result) = unpacked(&bytes, &Limits::default()).await;
        let error = result.expect_err(name).to_string();
        assert!(
            error.contains(expected) && error.contains("ctx"),
            "{name}: {error}"
        );
    }
}

#[tokio::test]
async fn unpack_accepts_the_root_folder_as_an_entry() {
    let tar = Tar::default()
        .folder("/")
        .file("Dockerfile", "FROM scratch\n");
    let (folder, result) = unpacked(&tar.end(), &Limits::default()).await;
    assert_eq!(result.unwrap(), Content::Archive);
    let file = folder.path().join("target/Dockerfile");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "FROM scratch\n");
}

#[tokio::test]
async fn file_replaces_a_link_without_writing_through_it() {
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
async fn later_archive_cannot_redirect_an_earlier_link() {
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
async fn unpack_enforces_its_limits() {
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
    // Claims a size of four gibibytes without content.
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

/// Unpacks 600 MB of zeros from 600 kB. The ratio limit applies long before the size limit.
#[tokio::test]
async fn unpack_refuses_a_bomb_by_its_ratio() {
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
async fn unpack_accepts_text_as_a_dockerfile_and_refuses_other_content() {
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

/// Adds one entry whose name contains nested folders.
fn deep(tar: Tar, name: &str) -> Tar {
    tar.entry(
        EntryType::GNULongName,
        "././@LongLink",
        "",
        name.as_bytes(),
        0o644,
    )
    .file("short", "x")
}

#[tokio::test]
async fn unpack_limits_the_length_of_names() {
    let name = format!("{}file", "a/".repeat(1500));
    let bytes = deep(Tar::default(), &name).end();
    let (folder, result) = unpacked(&bytes, &Limits::default()).await;
    result.unwrap();
    assert!(folder.path().join("target").join(name).is_file());

    // Contains more folders than fit on a stack.
    let bytes = deep(Tar::default(), &format!("{}file", "a/".repeat(500_000))).end();
    let (_folder, result) = unpacked(&bytes, &Limits::default()).await;
    let error = result.unwrap_err().to_string();
    assert!(error.contains("longer than 4096 bytes"), "{error}");
}

#[test]
fn tree_limits_the_memory_for_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(folder.path(), Links::Inside);
    let name = PathBuf::from("n".repeat(200));
    let mut count = 0u32;
    let error = loop {
        match tree.add_folder(&name, 0o755, 0) {
            Ok(()) => count += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("more than 256 MiB"), "{error}");
    assert!(count > 1_000_000, "{count} of them fit");
}
