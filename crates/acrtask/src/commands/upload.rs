//! Packs the files of a run and uploads them if the server does not have them yet.
//!
//! Invariant: the archive is a temporary file that only this user can read, and is deleted
//! automatically.

use std::{
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use acrtask_api::spec::{ContextSource, RunSource};
use acrtask_executor::Selection;
use acrtask_job::TASK_FILES;
use acrtask_model::Digest;
use acrtask_source::ContextSpec;
use futures::StreamExt;
use sha2::{Digest as _, Sha256};

use super::{
    context::Context, interrupt::until_interrupted, remote::print_message,
    remote_run::remote_context,
};
use crate::{
    client::{Client, upload::PackedFile},
    error::CliError,
    render::text,
};

/// Size in bytes above which an upload is announced if standard error is not a terminal.
const ANNOUNCED_SIZE: u64 = 8 << 20;

/// zstd level for folders; it compresses about as fast as a disk reads.
const COMPRESSION_LEVEL: i32 = 1;

/// Packed context in a temporary file.
#[derive(Debug)]
pub(super) struct Archive {
    file: tempfile::NamedTempFile,
    size: u64,
    digest: Digest,
}

/// Packs a context that a runner cannot fetch; `None` if the runner can. Blocks. `source`, if
/// known, names files to upload although they are ignored. `added` lists extra files.
pub(super) fn pack_context(
    context: &Context,
    source: Option<&RunSource>,
    added: Vec<(PathBuf, Vec<u8>)>,
) -> Result<Option<Archive>, CliError> {
    if let Some(folder) = context.local_folder() {
        return pack_folder(folder, source, added).map(Some);
    }
    match context.spec() {
        ContextSpec::Folder(path) | ContextSpec::TarballFile(path) => {
            let shown = path.display().to_string();
            let file = std::fs::File::open(path).map_err(|error| {
                CliError::usage(format!("cannot read the context {shown}")).because(&error)
            })?;
            store_archive(file, &shown).map(Some)
        }
        ContextSpec::Stdin => store_archive(io::stdin().lock(), "standard input").map(Some),
        ContextSpec::None
        | ContextSpec::Git(_)
        | ContextSpec::HttpTarball(_)
        | ContextSpec::Oci(_) => Ok(None),
    }
}

/// Packs a folder without `.git` and ignored files. The output is deterministic, so that the server
/// recognizes it.
fn pack_folder(
    folder: &Path,
    source: Option<&RunSource>,
    added: Vec<(PathBuf, Vec<u8>)>,
) -> Result<Archive, CliError> {
    let failed = |error: &io::Error| {
        CliError::usage(format!("cannot pack the context {}", folder.display())).because(error)
    };
    let selection = select_files(folder, source, &added).map_err(|error| failed(&error))?;
    let packing = async {
        let writer = HashingFile::new()?;
        let mut packed = zstd::Encoder::new(io::BufWriter::new(writer), COMPRESSION_LEVEL)?;
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
fn select_files(
    folder: &Path,
    source: Option<&RunSource>,
    added: &[(PathBuf, Vec<u8>)],
) -> io::Result<Selection> {
    let dockerfile = match source {
        Some(RunSource::Build(build)) => Some(build.dockerfile.as_str()),
        _ => None,
    };
    let mut needed: Vec<PathBuf> = TASK_FILES.iter().map(PathBuf::from).collect();
    if let Some(RunSource::File { path }) = source {
        needed.push(path.into());
    }
    Selection::for_upload(folder, dockerfile, needed, added)
}

/// Stores an archive unchanged in a temporary file.
fn store_archive(mut from: impl Read, shown: &str) -> Result<Archive, CliError> {
    let failed = |error: &io::Error| {
        CliError::usage(format!("cannot store the context for the upload ({shown})")).because(error)
    };
    let mut writer = HashingFile::new().map_err(|error| failed(&error))?;
    io::copy(&mut from, &mut writer).map_err(|error| failed(&error))?;
    writer.finish().map_err(|error| failed(&error))
}

/// Uploads `context` if needed, and returns its source for the run.
pub(super) async fn upload_context(
    client: &Client,
    context: &Context,
    packed: Option<&Archive>,
) -> Result<ContextSource, CliError> {
    let Some(packed) = packed else {
        return Ok(remote_context(context)?.unwrap_or_default());
    };
    let mut progress = UploadProgress::new(packed.size);
    let id = client
        .upload(
            &PackedFile {
                path: packed.file.path(),
                size: packed.size,
                digest: &packed.digest,
            },
            |received| progress.update(received),
        )
        .await;
    progress.end();
    Ok(ContextSource::Upload { id: id? })
}

/// Progress display of an upload.
struct UploadProgress {
    size: u64,
    bar: Option<indicatif::ProgressBar>,
    announced: bool,
}

impl UploadProgress {
    fn new(size: u64) -> Self {
        Self {
            size,
            bar: None,
            announced: false,
        }
    }

    fn update(&mut self, received: u64) {
        // An upload that completes at once, or that the server already has, needs no display.
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
        } else if !self.announced && self.size > ANNOUNCED_SIZE {
            self.announced = true;
            let size = text::format_bytes(i64::try_from(self.size).unwrap_or(i64::MAX));
            print_message(&format!("uploading the context: {size}"));
        }
    }

    fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Temporary file that hashes what is written to it.
struct HashingFile {
    file: tempfile::NamedTempFile,
    hash: Sha256,
    size: u64,
}

impl HashingFile {
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

impl Write for HashingFile {
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
    fn packing_is_deterministic() {
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
    fn upload_contains_the_files_that_the_source_names() {
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
        let sent = |source: Option<&RunSource>| {
            let archive = pack_folder(folder.path(), source, Vec::new()).unwrap();
            let bytes = std::fs::read(archive.file.path()).unwrap();
            let tar = zstd::decode_all(bytes.as_slice()).unwrap();
            String::from_utf8_lossy(&tar).into_owned()
        };
        let file = RunSource::File {
            path: "./ci.yaml".into(),
        };
        let build = RunSource::Build(acrtask_api::spec::BuildSpec {
            dockerfile: "build.docker".into(),
            ..Default::default()
        });
        for (source, text) in [
            (None, "usual-steps"),
            (Some(&file), "steps-of-ci"),
            (Some(&build), "from-scratch"),
        ] {
            let sent = sent(source);
            assert!(sent.contains(text), "{source:?}");
            assert!(!sent.contains("never-sent"), "{source:?}");
        }
    }
}
