//! Packed contexts: initial archives, and the checks of every archive that is unpacked.

use std::{sync::LazyLock, time::Duration};

use crate::targets::outcome;

/// Returns small archives of each kind of entry and packing.
pub(crate) fn archives() -> Vec<Vec<u8>> {
    let mut plain = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, name: &str, link: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if !link.is_empty() {
            let _ = header.set_link_name(link);
        }
        let _ = header.set_path(name);
        header.set_cksum();
        let _ = plain.append(&header, content);
    };
    add(tar::EntryType::Directory, "folder", "", b"");
    add(tar::EntryType::Regular, "folder/file", "", b"content\n");
    add(tar::EntryType::Symlink, "folder/link", "file", b"");
    add(tar::EntryType::Link, "hard", "folder/file", b"");
    add(tar::EntryType::XHeader, "pax", "", b"18 path=some/name\n");
    add(tar::EntryType::GNULongName, "long", "", b"a/long/name\0");
    add(tar::EntryType::Fifo, "fifo", "", b"");
    let plain = plain.into_inner().unwrap_or_default();
    let packed = zstd::encode_all(&plain[..], 1).unwrap_or_default();
    vec![plain, packed]
}

/// Corrects the checksum of each header, so that the parser does not reject mutations at once.
pub(crate) fn repair_tar(archive: &mut [u8]) {
    for block in archive.chunks_exact_mut(512) {
        let is_header = block[257..262] == *b"ustar"
            || block[148..154].iter().all(|b| (b'0'..=b'7').contains(b));
        if is_header {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

pub(crate) fn check_archive(input: &[u8]) -> u64 {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made")
    });
    let folder = tempfile::tempdir().expect("a folder can be made");
    let target = folder.path().join("outer/target");
    std::fs::create_dir_all(&target).expect("a folder can be made");
    let limits = acrtask_source::Limits {
        unpacked_bytes: 4 << 20,
        entries: 500,
        time: Duration::from_secs(3),
        ..acrtask_source::Limits::default()
    };
    let done = RUNTIME.block_on(acrtask_source::archive::unpack(
        input, &target, "archive", &limits,
    ));
    // Checks that nothing was created beside the folder, and that no link leads out of it.
    for folder in [folder.path(), target.parent().unwrap_or(folder.path())] {
        let beside = std::fs::read_dir(folder).map_or(0, Iterator::count);
        assert_eq!(beside, 1, "something was made beside the folder");
    }
    let root = target.canonicalize().expect("the folder is there");
    let (mut waiting, mut entries) = (vec![target], 0);
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            entries += 1;
            let kind = entry.file_type().expect("it has a type");
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if let Ok(real) = entry.path().canonicalize() {
                assert!(
                    real.starts_with(&root),
                    "{} leads to {}",
                    entry.path().display(),
                    real.display()
                );
            }
        }
    }
    let error = done.err().map(|error| {
        let text = error.to_string();
        text.chars()
            .filter(char::is_ascii_alphabetic)
            .take(40)
            .collect::<String>()
    });
    outcome((error, entries.min(9)))
}
