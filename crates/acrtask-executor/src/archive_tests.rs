//! Round trips of folders through archives.

use std::os::unix::fs::symlink;

use super::*;

async fn bytes_of(parts: Vec<Pack>) -> Vec<Bytes> {
    pack(parts).map(|chunk| chunk.unwrap()).collect().await
}

fn replay(chunks: Vec<Bytes>) -> impl Stream<Item = Result<Bytes, EngineError>> + Send {
    futures::stream::iter(chunks.into_iter().map(Ok))
}

#[tokio::test]
async fn packed_folder_unpacks_to_the_same_folder() {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir_all(from.path().join("a/b")).unwrap();
    fs::write(from.path().join("a/b/file"), vec![7; 300_000]).unwrap();
    let long = "n".repeat(180);
    fs::write(from.path().join("a").join(&long), "long name").unwrap();
    symlink("b/file", from.path().join("a/link")).unwrap();
    fs::set_permissions(
        from.path().join("a/b/file"),
        fs::Permissions::from_mode(0o751),
    )
    .unwrap();
    fs::set_permissions(from.path().join("a/b"), fs::Permissions::from_mode(0o555)).unwrap();
    let pack = Pack::Folder {
        from: from.path().into(),
        at: "workspace".into(),
        with_root: true,
        selection: Selection::default(),
    };
    let to = tempfile::tempdir().unwrap();
    unpack_folder(replay(bytes_of(vec![pack]).await), to.path())
        .await
        .unwrap();
    assert_eq!(fs::read(to.path().join("a/b/file")).unwrap().len(), 300_000);
    assert_eq!(
        fs::read_to_string(to.path().join("a").join(long)).unwrap(),
        "long name"
    );
    assert_eq!(
        fs::read_link(to.path().join("a/link")).unwrap(),
        Path::new("b/file")
    );
    let mode = |p: &str| {
        fs::metadata(to.path().join(p))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!((mode("a/b/file"), mode("a/b")), (0o751, 0o555));
}

#[tokio::test]
async fn unpacking_writes_nothing_outside_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let mut tar = Builder::new(Vec::new());
    let mut link = new_header(EntryType::Symlink, 0o777);
    link.set_size(0);
    tar.append_link(&mut link, "w/out", outside.path()).unwrap();
    let mut file = new_header(EntryType::Regular, 0o644);
    file.set_size(1);
    tar.append_data(&mut file, "w/out/evil", &b"x"[..]).unwrap();
    let bytes = Bytes::from(tar.into_inner().unwrap());
    let to = tempfile::tempdir().unwrap();
    assert!(unpack_folder(replay(vec![bytes]), to.path()).await.is_err());
    assert!(!outside.path().join("evil").exists());
    for name in ["w/out/folder", "w/../folder"] {
        let mut tar = Builder::new(Vec::new());
        let mut link = new_header(EntryType::Symlink, 0o777);
        link.set_size(0);
        tar.append_link(&mut link, "w/out", outside.path()).unwrap();
        let mut folder = new_header(EntryType::Directory, 0o700);
        folder.set_size(0);
        // The library that writes archives refuses such a name.
        folder.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        folder.set_cksum();
        tar.append(&folder, io::empty()).unwrap();
        let bytes = Bytes::from(tar.into_inner().unwrap());
        let to = tempfile::tempdir_in(outside.path()).unwrap();
        assert!(
            unpack_folder(replay(vec![bytes]), to.path()).await.is_err(),
            "{name}"
        );
        assert!(!outside.path().join("folder").exists(), "{name}");
    }
    for (path, ok) in [
        ("a", true),
        ("../a", false),
        ("a/../../b", false),
        ("/a", false),
        ("", false),
    ] {
        assert_eq!(
            path_inside(to.path(), Path::new(path)).is_some(),
            ok,
            "{path}"
        );
    }
}

/// Returns an archive with one file of zeros, without its content.
fn header_of_zeros(size: u64) -> Bytes {
    let mut header = new_header(EntryType::Regular, 0o640);
    header.set_path("w/big").unwrap();
    header.set_size(size);
    header.set_mtime(7);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

#[tokio::test]
async fn holes_need_no_disk() {
    // The size of the zeros that an engine sends for a sparse file.
    let blocks = 1024;
    let mut parts = vec![header_of_zeros((blocks * CHUNK + 6) as u64)];
    parts.resize(1 + blocks, Bytes::from(vec![0; CHUNK]));
    let mut end = b"end of".to_vec();
    end.resize(512 + 1024, 0);
    parts.push(Bytes::from(end));
    let to = tempfile::tempdir().unwrap();
    unpack_folder(replay(parts), to.path()).await.unwrap();
    let path = to.path().join("big");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), (blocks * CHUNK + 6) as u64);
    assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o640, 7));
    assert!(fs::read(&path).unwrap().ends_with(b"\0end of"));
}

#[tokio::test]
async fn hole_at_the_end_is_kept() {
    let mut parts = vec![header_of_zeros(CHUNK as u64)];
    parts.push(Bytes::from(vec![0; CHUNK + 1024]));
    let to = tempfile::tempdir().unwrap();
    unpack_folder(replay(parts), to.path()).await.unwrap();
    assert_eq!(fs::read(to.path().join("big")).unwrap(), vec![0; CHUNK]);
}

#[tokio::test]
async fn unpacked_size_is_limited_before_it_is_read() {
    let to = tempfile::tempdir().unwrap();
    let parts = vec![header_of_zeros(MAX_UNPACKED + 1)];
    let error = unpack_folder(replay(parts), to.path()).await.unwrap_err();
    assert!(error.to_string().contains("more than 40 GiB"), "{error}");
    assert!(!to.path().join("big").exists());
}

#[tokio::test]
async fn archive_entries_are_listed_and_opened() {
    let content = Pack::Content {
        at: "w/f".into(),
        mode: 0o600,
        content: "hello".into(),
    };
    let chunks = bytes_of(vec![content]).await;
    let listed = list_entries(replay(chunks.clone())).await.unwrap();
    assert_eq!(
        listed,
        [ListedEntry {
            path: "f".into(),
            is_folder: false,
        }]
    );
    let OpenedEntry::File(mut file) = open_file(replay(chunks)).await.unwrap() else {
        panic!()
    };
    assert_eq!(file.recv().await.unwrap().unwrap(), "hello");
    assert!(file.recv().await.is_none());
}

/// Returns every entry below a folder: its path, mode, content or link target, and modification
/// time.
fn entries(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>, u64)> {
    walkdir::WalkDir::new(root)
        .min_depth(1)
        .sort_by_file_name()
        .into_iter()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let (mode, content, time) = if entry.path_is_symlink() {
                let target = fs::read_link(entry.path()).unwrap();
                (0, target.into_os_string().into_encoded_bytes(), 0)
            } else if metadata.is_dir() {
                (
                    metadata.permissions().mode(),
                    Vec::new(),
                    modified_secs(&metadata),
                )
            } else {
                let content = fs::read(entry.path()).unwrap();
                (
                    metadata.permissions().mode(),
                    content,
                    modified_secs(&metadata),
                )
            };
            let path = entry.path().strip_prefix(root).unwrap().to_owned();
            (path, mode, content, time)
        })
        .collect()
}

#[tokio::test]
async fn uploaded_folder_equals_the_local_one() {
    let from = tempfile::tempdir().unwrap();
    let at = |path: &str| from.path().join(path);
    fs::create_dir_all(at(".git/refs")).unwrap();
    fs::create_dir_all(at("empty")).unwrap();
    fs::create_dir_all(at("sub/deep")).unwrap();
    fs::write(at(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    fs::write(at(".dockerignore"), "sub\n").unwrap();
    fs::write(at("sub/run.sh"), "#!/bin/sh\n").unwrap();
    fs::write(at("sub/deep/data"), vec![9; 700_000]).unwrap();
    fs::write(at(&format!("sub/{}", "n".repeat(200))), "long").unwrap();
    fs::write(at("sub/naïve name"), "").unwrap();
    for (path, mode) in [
        ("sub/run.sh", 0o755),
        (".dockerignore", 0o640),
        ("empty", 0o711),
    ] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    // As in a virtual environment of Python, or in a folder without its sibling.
    for (link, target) in [
        ("sub/inside", "../sub/run.sh"),
        ("absolute", "/usr/bin/env"),
        ("above", "../../elsewhere"),
        ("dangling", "nothing"),
    ] {
        symlink(target, at(link)).unwrap();
    }
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in ["sub/run.sh", "empty", "sub"] {
        File::open(at(path)).unwrap().set_modified(old).unwrap();
    }
    // A socket has no meaning on another machine and does not prevent packing.
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();

    let scratch = tempfile::tempdir().unwrap();
    let options = acrtask_source::Options {
        scratch_dir: scratch.path().into(),
        ..acrtask_source::Options::default()
    };
    let stream = tokio_util::io::StreamReader::new(pack_folder(
        from.path(),
        Selection::default(),
        Vec::new(),
    ));
    let workspace = acrtask_source::unpack_upload(stream, &options)
        .await
        .unwrap();
    fs::remove_file(at("socket")).unwrap();
    assert_eq!(entries(&workspace.root), entries(from.path()));
    // Links that lead outside exist, and no code here follows them.
    for link in ["absolute", "above"] {
        assert!(workspace.path(Path::new(link)).is_err(), "{link}");
    }
}

#[tokio::test]
async fn empty_folder_can_be_uploaded() {
    let from = tempfile::tempdir().unwrap();
    let stream = tokio_util::io::StreamReader::new(pack_folder(
        from.path(),
        Selection::default(),
        Vec::new(),
    ));
    let options = acrtask_source::Options::default();
    let workspace = acrtask_source::unpack_upload(stream, &options)
        .await
        .unwrap();
    assert!(entries(&workspace.root).is_empty());
}

#[tokio::test]
async fn upload_excludes_ignored_files() {
    let from = tempfile::tempdir().unwrap();
    for (path, text) in [
        (".dockerignore", "node_modules\n.env\ndocs\n"),
        (".env", "TOKEN=s3cret"),
        (".git/HEAD", "ref: refs/heads/main"),
        ("node_modules/a/index.js", "x"),
        ("docs/ci/Dockerfile", "FROM scratch"),
        ("src/main.rs", "fn main() {}"),
        ("task.yaml", "steps: []"),
    ] {
        let path = from.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let packed = |ignored: &str, needed: &str| {
        fs::write(from.path().join(".dockerignore"), ignored).unwrap();
        Selection::for_upload(from.path(), None, [PathBuf::from(needed)], &[]).unwrap()
    };
    for (ignored, needed, expected) in [
        (
            "node_modules\n.env\ndocs\n",
            "docs/ci/Dockerfile",
            &[
                ".dockerignore",
                "docs",
                "docs/ci",
                "docs/ci/Dockerfile",
                "src",
                "src/main.rs",
                "task.yaml",
            ][..],
        ),
        ("*", "task.yaml", &[".dockerignore", "task.yaml"]),
        (
            "*\n!src\n",
            "task.yaml",
            &[
                ".dockerignore",
                "docs",
                "docs/ci",
                "docs/ci/Dockerfile",
                "src",
                "src/main.rs",
                "task.yaml",
            ],
        ),
    ] {
        let selection = packed(ignored, needed);
        let bytes: Vec<Bytes> = pack_folder(from.path(), selection, Vec::new())
            .map(|chunk| chunk.unwrap())
            .collect()
            .await;
        let bytes = bytes.concat();
        let mut names: Vec<String> = Archive::new(bytes.as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        let names: Vec<&str> = names
            .iter()
            .map(|name| name.trim_end_matches('/'))
            .collect();
        assert_eq!(names, expected, "{ignored:?}");
    }
}
