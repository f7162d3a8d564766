//! The files of a run on their way to a server: packed, and uploaded where the server does not have them.
//!
//! Invariant: what is packed is in a file that only this user can read, and is removed with it.

use std::{
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use acrtask_api::spec::{ContextSource, Work};
use acrtask_executor::Selection;
use acrtask_job::TASK_FILES;
use acrtask_model::Digest;
use acrtask_source::ContextSpec;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};

use super::{
    context::Context, interrupt::until_interrupted, remote::say, remote_run::fetched_by_runner,
};
use crate::{
    client::{Client, upload::Packed},
    error::CliError,
    render::text,
};

/// Uploads of more than this are told of where nothing can be redrawn.
const WORTH_A_WORD: u64 = 8 << 20;

/// How hard a folder is compressed: as fast as a disk.
const LEVEL: i32 = 1;

/// A context in a file, ready to be uploaded.
#[derive(Debug)]
pub(super) struct Archive {
    file: tempfile::NamedTempFile,
    size: u64,
    digest: Digest,
}

/// Packs a context that a runner cannot fetch. `None` if it can. Blocks. `work`, if it is known, names files that
/// are uploaded although they are ignored; `added` are files beside those of a folder.
pub(super) fn pack(
    context: &Context,
    work: Option<&Work>,
    added: Vec<(PathBuf, Vec<u8>)>,
) -> Result<Option<Archive>, CliError> {
    if let Some(folder) = context.local_folder() {
        return pack_folder(folder, work, added).map(Some);
    }
    match context.spec() {
        ContextSpec::Folder(path) | ContextSpec::TarballFile(path) => {
            let shown = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|error| {
                CliError::usage(format!("cannot read the context {shown}")).because(&error)
            })?;
            keep(file, &shown).map(Some)
        }
        ContextSpec::Stdin => keep(io::stdin().lock(), "standard input").map(Some),
        ContextSpec::None
        | ContextSpec::Git(_)
        | ContextSpec::HttpTarball(_)
        | ContextSpec::Oci(_) => Ok(None),
    }
}

/// A folder without `.git` and what it ignores. The same files give the same bytes, so that the server knows them.
fn pack_folder(
    folder: &Path,
    work: Option<&Work>,
    added: Vec<(PathBuf, Vec<u8>)>,
) -> Result<Archive, CliError> {
    let failed = |error: &io::Error| {
        CliError::usage(format!("cannot pack the context {}", folder.display())).because(error)
    };
    let selection = select(folder, work, &added).map_err(|error| failed(&error))?;
    let packing = async {
        let writer = Hashing::new()?;
        let mut packed = zstd::Encoder::new(io::BufWriter::new(writer), LEVEL)?;
        let mut tar = std::pin::pin!(acrtask_executor::pack_folder(folder, selection, added));
        while let Some(bytes) = tar.next().await {
            packed.write_all(&bytes?)?;
        }
        let writer = packed.finish()?.into_inner();
        writer.map_err(io::IntoInnerError::into_error)?.finish()
    };
    until_interrupted(packing)?.map_err(|error| failed(&error))
}

/// Selects the files of a folder that a run needs.
fn select(
    folder: &Path,
    work: Option<&Work>,
    added: &[(PathBuf, Vec<u8>)],
) -> io::Result<Selection> {
    let dockerfile = match work {
        Some(Work::Build(build)) => Some(build.dockerfile.as_str()),
        _ => None,
    };
    let mut needed: Vec<PathBuf> = TASK_FILES.iter().map(PathBuf::from).collect();
    if let Some(Work::File { path }) = work {
        needed.push(path.into());
    }
    Selection::of_upload(folder, dockerfile, needed, added)
}

/// An archive as it is.
fn keep(mut from: impl Read, shown: &str) -> Result<Archive, CliError> {
    let failed = |error: &io::Error| {
        CliError::usage(format!(
            "cannot keep the context that is to be uploaded ({shown})"
        ))
        .because(error)
    };
    let mut writer = Hashing::new().map_err(|error| failed(&error))?;
    io::copy(&mut from, &mut writer).map_err(|error| failed(&error))?;
    writer.finish().map_err(|error| failed(&error))
}

/// Hands `context` to the server, and says how the run names it.
pub(super) async fn source(
    client: &Client,
    context: &Context,
    packed: Option<&Archive>,
) -> Result<ContextSource, CliError> {
    let Some(packed) = packed else {
        return Ok(fetched_by_runner(context)?.unwrap_or_default());
    };
    let mut shown = Shown::new(packed.size);
    let id = client
        .upload(
            &Packed {
                path: packed.file.path(),
                size: packed.size,
                digest: &packed.digest,
            },
            |received| shown.update(received),
        )
        .await;
    shown.end();
    Ok(ContextSource::Upload { id: id? })
}

/// How far an upload is.
struct Shown {
    size: u64,
    bar: Option<indicatif::ProgressBar>,
    told: bool,
}

impl Shown {
    fn new(size: u64) -> Self {
        Self {
            size,
            bar: None,
            told: false,
        }
    }

    fn update(&mut self, received: u64) {
        // What the server has already, or takes at once, is not worth a word.
        if received == self.size && self.bar.is_none() {
            return;
        }
        if io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let bar = indicatif::ProgressBar::new(self.size);
                if let Ok(style) = indicatif::ProgressStyle::with_template(
                    "uploading the context {bar:24} {bytes} of {total_bytes} ({bytes_per_sec})",
                ) {
                    bar.set_style(style);
                }
                bar
            });
            bar.set_position(received);
        } else if !self.told && self.size > WORTH_A_WORD {
            self.told = true;
            let size = text::bytes(i64::try_from(self.size).unwrap_or(i64::MAX));
            say(&format!("uploading the context: {size}"));
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Writes to a file of its own, and hashes what goes through.
struct Hashing {
    file: tempfile::NamedTempFile,
    hash: Sha256,
    size: u64,
}

impl Hashing {
    fn new() -> io::Result<Self> {
        Ok(Self {
            file: tempfile::NamedTempFile::new()?,
            hash: Sha256::new(),
            size: 0,
        })
    }

    fn finish(mut self) -> Result<Archive, io::Error> {
        self.file.flush()?;
        let hex: String = self
            .hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let digest = format!("sha256:{hex}")
            .parse()
            .map_err(|error| io::Error::other(format!("{error}")))?;
        Ok(Archive {
            file: self.file,
            size: self.size,
            digest,
        })
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), "one").unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/etc/hosts", folder.path().join("b/link")).unwrap();
        let first = pack_folder(folder.path(), None, Vec::new()).unwrap();
        let second = pack_folder(folder.path(), None, Vec::new()).unwrap();
        assert_eq!(first.digest, second.digest);
        let bytes = std::fs::read(first.file.path()).unwrap();
        assert_eq!(bytes.len() as u64, first.size);
        let tar = zstd::decode_all(bytes.as_slice()).unwrap();
        assert!(tar.windows(3).any(|part| part == b"one"));
        std::fs::write(folder.path().join("a"), "two").unwrap();
        assert_ne!(
            pack_folder(folder.path(), None, Vec::new()).unwrap().digest,
            first.digest
        );
    }

    #[test]
    fn an_upload_has_the_files_that_the_work_names() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            (".dockerignore", "*\n"),
            ("secret", "never-sent"),
            ("ci.yaml", "steps-of-ci"),
            ("build.docker", "from-scratch"),
            ("acr-task.yaml", "usual-steps"),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let sent = |work: Option<&Work>| {
            let archive = pack_folder(folder.path(), work, Vec::new()).unwrap();
            let bytes = std::fs::read(archive.file.path()).unwrap();
            let tar = zstd::decode_all(bytes.as_slice()).unwrap();
            String::from_utf8_lossy(&tar).into_owned()
        };
        let file = Work::File {
            path: "./ci.yaml".into(),
        };
        let build = Work::Build(acrtask_api::spec::BuildSpec {
            dockerfile: "build.docker".into(),
            ..Default::default()
        });
        for (work, text) in [
            (None, "usual-steps"),
            (Some(&file), "steps-of-ci"),
            (Some(&build), "from-scratch"),
        ] {
            let sent = sent(work);
            assert!(sent.contains(text), "{work:?}");
            assert!(!sent.contains("never-sent"), "{work:?}");
        }
    }
}
