//! `acrtask backup` and `acrtask restore`: one archive of a SQLite server's database, blobs and key
//! file.
//!
//! Invariants: an archive gets its final name only when it is complete. It contains every blob that
//! the copied database refers to: a server writes a blob before the reference, and blobs are
//! archived both before and after the database is copied. A restore rejects an archive without its
//! last entry, the manifest, and leaves no partial folder that a server would start with.
//! PostgreSQL and object stores are left out, because they have their own tools.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use super::{
    remote::block_on,
    serve::{DataPaths, local_blob_folder},
};
use crate::{
    args::backup::{BackupArgs, RestoreArgs},
    error::CliError,
    exit::Exit,
};

/// Names of the entries in an archive and in a data folder.
const DATABASE: &str = "acrtask.db";
const BLOBS: &str = "blobs";
const KEY: &str = "key";
/// Name of the last entry of an archive.
const MANIFEST: &str = "acrtask-backup.json";
/// Maximum size of a manifest in bytes.
const MAX_MANIFEST: u64 = 64 << 10;
/// Folder of an unfinished restore.
const PARTIAL: &str = "restore.partial";

/// Description of an archive.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    /// Version of the archive format.
    version: u32,
    /// Version of the program that wrote the archive.
    program: String,
    created_at: jiff::Timestamp,
    /// Number of blobs in the archive.
    blobs: u64,
    /// Object store of the blobs; `None` if the archive contains them.
    blob_store: Option<String>,
}

/// Writes an archive of a server's data.
pub(crate) fn backup(args: &BackupArgs) -> Result<Exit, CliError> {
    let data = DataPaths::new(&args.data)?;
    if !data.database.starts_with("sqlite:") {
        return Err(postgres_error(&data));
    }
    if args.file.exists() {
        return Err(
            CliError::usage(format!("{} already exists", args.file.display()))
                .help("choose a file that does not exist yet"),
        );
    }
    if !data.key_file.is_file() {
        let key = data.key_file.display();
        return Err(
            CliError::usage(format!("the key file {key} does not exist"))
                .help("set the server's folder with --data-dir, or the file with --key-file"),
        );
    }
    let parent = match args.file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |error: io::Error| {
        CliError::unreachable(format!("cannot write {}", args.file.display())).because(&error)
    };
    // Only their owner can read these files.
    let partial = tempfile::Builder::new()
        .prefix(".acrtask-backup-")
        .tempfile_in(parent)
        .map_err(failed)?;
    let staging = tempfile::Builder::new()
        .prefix(".acrtask-backup-")
        .tempdir_in(parent)
        .map_err(failed)?;
    let copy = staging.path().join(DATABASE);
    let blobs = local_blob_folder(&data.blobs);
    let mut writer = Writer::new(partial.as_file());
    if let Some(folder) = &blobs {
        writer.add_blobs(folder)?;
    }
    let database = data.database.clone();
    block_on(async {
        acrtask_store::snapshot_sqlite(&database, &copy)
            .await
            .map_err(|error| copy_error(&error))
    })?;
    if let Some(folder) = &blobs {
        writer.add_blobs(folder)?;
    }
    writer.add_file(&copy, DATABASE)?;
    writer.add_file(&data.key_file, KEY)?;
    let manifest = Manifest {
        version: 1,
        program: env!("CARGO_PKG_VERSION").into(),
        created_at: jiff::Timestamp::now(),
        blobs: writer.blobs.len() as u64,
        blob_store: blobs.is_none().then(|| without_password(&data.blobs)),
    };
    writer.finish(&manifest).map_err(failed)?;
    partial.as_file().sync_all().map_err(failed)?;
    partial
        .persist_noclobber(&args.file)
        .map_err(|error| failed(error.error))?;
    let mut text = format!(
        "{} contains the database, {} blobs and the key: everyone who can read it can read all secrets\n",
        args.file.display(),
        manifest.blobs
    );
    if let Some(store) = &manifest.blob_store {
        text.push_str(&format!(
            "logs and contexts stay in {store}: back them up with its own tools\n"
        ));
    }
    super::print(text.as_bytes())
}

fn copy_error(error: &acrtask_store::StoreError) -> CliError {
    match error {
        acrtask_store::StoreError::Invalid { what } => CliError::usage(what.clone())
            .help("set the server's folder with --data-dir, or the file with --database"),
        error => CliError::unreachable("cannot copy the database").because(error),
    }
}

/// Removes the password from a URL.
fn without_password(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut parsed) => {
            let _ = parsed.set_password(None);
            parsed.to_string()
        }
        Err(_) => url.to_owned(),
    }
}

/// Returns the error that explains the backup of a server with PostgreSQL.
fn postgres_error(data: &DataPaths) -> CliError {
    let database = without_password(&data.database);
    let key = data.key_file.display();
    let blobs = match local_blob_folder(&data.blobs) {
        Some(folder) => format!("cp -a {} {key} BACKUP/", folder.display()),
        None => format!(
            "cp -a {key} BACKUP/    # the blobs stay in {}",
            without_password(&data.blobs)
        ),
    };
    CliError::usage("the database is PostgreSQL, which has its own tools for backup and restore").help(
        format!(
            "back up in this order, while servers may keep running:\n\
             pg_dump --format=custom --file=BACKUP/acrtask.dump '{database}'\n\
             {blobs}\n\
             restore into an empty database, before a server starts on it:\n\
             pg_restore --no-owner --exit-on-error --dbname='postgres://USER@HOST/NEW' BACKUP/acrtask.dump\n\
             then start a server with --database, --blobs and --key-file"
        ),
    )
}

/// Archive under construction.
struct Writer<'f> {
    archive: Builder<io::BufWriter<&'f File>>,
    /// Names of the blobs in the archive.
    blobs: HashSet<PathBuf>,
    mtime: u64,
}

impl<'f> Writer<'f> {
    fn new(file: &'f File) -> Self {
        let now = jiff::Timestamp::now().as_second();
        Self {
            archive: Builder::new(io::BufWriter::with_capacity(1 << 20, file)),
            blobs: HashSet::new(),
            mtime: u64::try_from(now).unwrap_or(0),
        }
    }

    /// Archives the blobs of `folder` that are not in the archive yet.
    fn add_blobs(&mut self, folder: &Path) -> Result<(), CliError> {
        self.add_folder(folder, Path::new(BLOBS)).map_err(|error| {
            CliError::unreachable(format!("cannot archive the blobs in {}", folder.display()))
                .because(&error)
        })
    }

    fn add_folder(&mut self, folder: &Path, name: &Path) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            // Retention removed the folder in the meantime, or the server has no blobs yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let name = name.join(entry.file_name());
            if kind.is_dir() {
                self.add_folder(&entry.path(), &name)?;
            // A name with `#` is an unfinished upload.
            } else if kind.is_file()
                && !entry.file_name().to_string_lossy().contains('#')
                && !self.blobs.contains(&name)
            {
                let file = match File::open(entry.path()) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    file => file?,
                };
                self.append(&file, &name)?;
                self.blobs.insert(name);
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &str) -> Result<(), CliError> {
        let added = File::open(path).and_then(|file| self.append(&file, Path::new(name)));
        added.map_err(|error| {
            CliError::unreachable(format!("cannot archive {}", path.display())).because(&error)
        })
    }

    fn append(&mut self, file: &File, name: &Path) -> io::Result<()> {
        let size = file.metadata()?.len();
        let mut header = self.header(size);
        self.archive.append_data(&mut header, name, file.take(size))
    }

    fn header(&self, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        header.set_size(size);
        header
    }

    fn finish(mut self, manifest: &Manifest) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(manifest)?;
        let mut header = self.header(text.len() as u64);
        self.archive
            .append_data(&mut header, MANIFEST, text.as_slice())?;
        self.archive.into_inner()?.flush()
    }
}

/// Writes the data of an archive into an empty folder.
pub(crate) fn restore(args: &RestoreArgs) -> Result<Exit, CliError> {
    let data = match &args.data_dir {
        Some(folder) => folder.clone(),
        None => super::runner::state_dir()?,
    };
    let shown = data.display();
    let failed = |error: io::Error| {
        CliError::unreachable(format!("cannot write to {shown}")).because(&error)
    };
    let archive = File::open(&args.file).map_err(|error| {
        CliError::usage(format!("cannot read {}", args.file.display())).because(&error)
    })?;
    create_private_folder(&data).map_err(failed)?;
    for entry in fs::read_dir(&data).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if name != "lost+found" {
            return Err(CliError::usage(format!(
                "the folder {shown} has data: {}",
                name.display()
            ))
            .help("set an empty or new folder with --data-dir"));
        }
    }
    let partial = data.join(PARTIAL);
    let restored = unpack(archive, &partial, &args.file).and_then(|manifest| {
        // Renames the database last: a server that finds it finds all of the data.
        for name in [BLOBS, KEY, DATABASE] {
            fs::rename(partial.join(name), data.join(name)).map_err(failed)?;
        }
        Ok(manifest)
    });
    let removed = fs::remove_dir_all(&partial);
    let manifest = restored?;
    removed.map_err(failed)?;
    File::open(&data)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    let mut text = format!(
        "restored the backup of {} with {} blobs into {shown}\nstart a server with it: acrtask serve --data-dir {shown}",
        manifest.created_at.strftime("%Y-%m-%d %H:%M:%SZ"),
        manifest.blobs
    );
    if let Some(store) = &manifest.blob_store {
        text.push_str(&format!(" --blobs {store}"));
    }
    text.push('\n');
    super::print(text.as_bytes())
}

/// Unpacks `archive` into the new folder `partial`.
fn unpack(archive: File, partial: &Path, file: &Path) -> Result<Manifest, CliError> {
    let broken = |why: &str| {
        CliError::usage(format!(
            "{} is not a complete backup: {why}",
            file.display()
        ))
        .help("use an archive of `acrtask backup`")
    };
    let failed = |error: io::Error| {
        CliError::unreachable(format!("cannot write to {}", partial.display())).because(&error)
    };
    create_private_folder(&partial.join(BLOBS)).map_err(failed)?;
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, archive));
    let mut manifest: Option<Manifest> = None;
    let mut blobs = 0;
    let unreadable = |error: &io::Error| broken(&error.to_string());
    for entry in archive.entries().map_err(|error| unreadable(&error))? {
        let mut entry = entry.map_err(|error| unreadable(&error))?;
        let name = entry.path().map_err(|error| unreadable(&error))?;
        let name = name.into_owned();
        if entry.header().entry_type() != EntryType::Regular || manifest.is_some() {
            return Err(broken(&format!("`{}` is unexpected", name.display())));
        }
        if name == Path::new(MANIFEST) {
            let read = serde_json::from_reader(entry.take(MAX_MANIFEST));
            manifest = Some(read.map_err(|error| broken(&error.to_string()))?);
            continue;
        }
        if !is_expected(&name) {
            return Err(broken(&format!("`{}` is unexpected", name.display())));
        }
        let target = partial.join(&name);
        if name.starts_with(BLOBS) {
            blobs += 1;
            if let Some(folder) = target.parent() {
                create_private_folder(folder).map_err(failed)?;
            }
        }
        let mut target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .map_err(failed)?;
        let size = entry.size();
        let copied = io::copy(&mut entry, &mut target).map_err(failed)?;
        if copied != size {
            return Err(broken(&format!("`{}` is truncated", name.display())));
        }
        target.sync_all().map_err(failed)?;
    }
    let manifest = manifest.ok_or_else(|| broken("its end is missing"))?;
    if manifest.version != 1 {
        return Err(broken("a newer program wrote it"));
    }
    if manifest.blobs != blobs {
        return Err(broken("blobs are missing"));
    }
    for name in [DATABASE, KEY] {
        if !partial.join(name).exists() {
            return Err(broken(&format!("`{name}` is missing")));
        }
    }
    Ok(manifest)
}

/// Returns `true` for the database, the key and files below the folder of blobs.
fn is_expected(name: &Path) -> bool {
    let plain = name
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let is_blob = name.starts_with(BLOBS) && name.components().count() > 1;
    plain && (name == Path::new(DATABASE) || name == Path::new(KEY) || is_blob)
}

fn create_private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        let mut builder = Builder::new(file.as_file());
        for (name, bytes) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, name, *bytes)
                .expect("an entry can be added");
        }
        builder.into_inner().expect("it ends");
        file
    }

    fn restored(file: &Path, data: &Path) -> Result<Exit, CliError> {
        restore(&RestoreArgs {
            file: file.to_owned(),
            data_dir: Some(data.to_owned()),
        })
    }

    #[test]
    fn restore_rejects_broken_archives_and_leaves_nothing() {
        let manifest =
            br#"{"version":1,"program":"1","createdAt":"2026-01-02T03:04:05Z","blobs":1}"#;
        let whole: [(&str, &[u8]); 4] = [
            ("blobs/a/b", b"log"),
            (DATABASE, b"db"),
            (KEY, b"key"),
            (MANIFEST, manifest),
        ];
        let folder = tempfile::tempdir().expect("a folder can be made");
        let data = folder.path().join("data");
        for (name, entries) in [
            ("no manifest", &whole[..3]),
            ("no blob", &whole[1..]),
            ("no database", &[whole[0], whole[2], whole[3]][..]),
            ("outside", &[("other/file", b"x".as_slice()), whole[3]][..]),
        ] {
            let file = archive(entries);
            let error = restored(file.path(), &data).expect_err(name);
            assert_eq!(error.exit(), Exit::Usage, "{name}: {error}");
            assert_eq!(fs::read_dir(&data).expect(name).count(), 0, "{name}");
        }
        let file = archive(&whole);
        assert_eq!(restored(file.path(), &data).ok(), Some(Exit::Succeeded));
        assert_eq!(fs::read(data.join("blobs/a/b")).ok(), Some(b"log".to_vec()));
        // A folder with data stays unchanged.
        let error = restored(file.path(), &data).expect_err("it has data");
        assert!(error.to_string().contains("has data"), "{error}");
    }
}
