//! Arguments of `acrtask backup`, `acrtask restore` and `acrtask migrate-store`, and the flags for
//! a server's data.

use std::path::PathBuf;

use clap::Args;

/// Locations of a server's data.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// Store the server's files in this folder [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask
    /// for root]
    #[arg(long, env = "ACRTASK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// Use this database: sqlite:PATH or postgres://USER@HOST/NAME [default: a SQLite file in the
    /// data folder]
    #[arg(
        long,
        env = "ACRTASK_DATABASE",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) database: Option<String>,

    /// Store logs and contexts here: a folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX
    /// [default: in the data folder]
    #[arg(
        long,
        env = "ACRTASK_BLOBS",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) blobs: Option<String>,

    /// Encrypt secrets with the key in this file [default: a file in the data folder, created at
    /// the first start]
    #[arg(long, env = "ACRTASK_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

/// Arguments of `acrtask backup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask backup /backup/acrtask-$(date +%F).tar
  acrtask backup --data-dir /srv/acrtask /backup/acrtask.tar
  acrtask restore --data-dir /srv/new /backup/acrtask.tar

Run `backup` on the machine of the server, as the server's user. The server may keep running: the
archive contains the database as it was at one moment, with every log and context that it refers to.
It also contains the key file, so everyone who can read the archive can read all secrets.

`backup` copies a SQLite database. For PostgreSQL, it prints the commands that do the same. It does not
copy blobs in S3 or Azure.

Exit codes:
    0  the archive is complete
    2  the usage is wrong, the database is PostgreSQL, or the server has no data to archive
    3  the data could not be read, or the archive could not be written")]
pub(crate) struct BackupArgs {
    /// The archive to write (tar); the file must not exist yet
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) data: DataArgs,
}

/// Arguments of `acrtask restore`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask restore --data-dir /srv/acrtask /backup/acrtask.tar
  acrtask serve --data-dir /srv/acrtask

`restore` writes the database, the blobs and the key file into an empty or new folder. Runs that were
running at the time of the backup start again. Stop the original server first, so that timers and
webhooks do not start runs on both.

Exit codes:
    0  the data was restored
    2  the usage is wrong, the folder has data, or the file is not a complete backup
    3  the archive could not be read, or the data could not be written")]
pub(crate) struct RestoreArgs {
    /// An archive of `acrtask backup`
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Write to this folder [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask for root]
    #[arg(long, env = "ACRTASK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Arguments of `acrtask migrate-store`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  systemctl stop acrtask
  acrtask migrate-store --from sqlite:/var/lib/acrtask/acrtask.db \\
      --to 'postgres://acrtask@db/acrtask?sslmode=verify-full'
  acrtask serve --database 'postgres://acrtask@db/acrtask?sslmode=verify-full'

`migrate-store` copies tasks, runs, tokens, secrets, cascades and everything else in the database in one
transaction: the target gets all of it or nothing. The SQLite file stays unchanged. Stop the server first,
and name an empty PostgreSQL database. Keep the key file and the blobs. Several servers need blobs that
each of them reaches: S3, Azure, or a shared folder.

Other users of the machine can see a password in --to: set the URL as ACRTASK_MIGRATE_TO, or use
PGPASSFILE.

Exit codes:
    0  the target contains all data
    2  the usage is wrong, a server uses the source, or the target has data
    3  a database could not be reached, read or written")]
pub(crate) struct MigrateStoreArgs {
    /// Read this database: sqlite:PATH [default: the SQLite file in the data folder]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,

    /// Write this database: postgres://USER@HOST/NAME
    #[arg(
        long,
        env = "ACRTASK_MIGRATE_TO",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) to: String,

    /// Use the server's files in this folder [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask
    /// for root]
    #[arg(
        long,
        env = "ACRTASK_DATA_DIR",
        value_name = "DIR",
        conflicts_with = "from"
    )]
    pub(crate) data_dir: Option<PathBuf>,
}
