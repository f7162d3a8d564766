//! `acrtask backup`, `acrtask restore` and `acrtask migrate-store`, and the locations of a server's data.

use std::path::PathBuf;

use clap::Args;

/// Locations of a server's data.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataArgs {
    /// The folder for its files [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask for root]
    #[arg(long, env = "ACRTASK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// The database: sqlite:PATH or postgres://USER@HOST/NAME [default: a SQLite file in the data folder]
    #[arg(
        long,
        env = "ACRTASK_DATABASE",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) database: Option<String>,

    /// The place for logs and contexts: a folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX [default: in the data folder]
    #[arg(
        long,
        env = "ACRTASK_BLOBS",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) blobs: Option<String>,

    /// The key that secrets are encrypted with [default: a file in the data folder, made at the first start]
    #[arg(long, env = "ACRTASK_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
}

/// `acrtask backup`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask backup /backup/acrtask-$(date +%F).tar
  acrtask backup --data-dir /srv/acrtask /backup/acrtask.tar
  acrtask restore --data-dir /srv/new /backup/acrtask.tar

Run it on the machine of the server, as the server's user. The server may go on working: the archive
holds the database as it was at one moment, with every log and context that it names. It holds the key
file too, so everyone who can read the archive can read all secrets.

It copies a SQLite database. For PostgreSQL it prints the commands that do the same. Blobs in S3 or
Azure stay there.

Exit codes:
    0  the archive is complete
    2  the usage is wrong, the database is PostgreSQL, or there is no data to archive
    3  the data could not be read, or the archive could not be written")]
pub(crate) struct BackupArgs {
    /// The archive to write (tar); a file of that name must not exist
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) data: DataArgs,
}

/// `acrtask restore`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  acrtask restore --data-dir /srv/acrtask /backup/acrtask.tar
  acrtask serve --data-dir /srv/acrtask

It writes the database, the blobs and the key file into a folder that is empty or not there. Runs that
were under way when the backup was made start again. Stop the server that the backup is of first, so
that timers and webhooks do not start runs on both.

Exit codes:
    0  the data is there
    2  the usage is wrong, the folder has data, or the file is not a complete backup
    3  the archive could not be read, or the data could not be written")]
pub(crate) struct RestoreArgs {
    /// An archive that `acrtask backup` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The folder to write to [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask for root]
    #[arg(long, env = "ACRTASK_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// `acrtask migrate-store`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  systemctl stop acrtask
  acrtask migrate-store --from sqlite:/var/lib/acrtask/acrtask.db \\
      --to 'postgres://acrtask@db/acrtask?sslmode=verify-full'
  acrtask serve --database 'postgres://acrtask@db/acrtask?sslmode=verify-full'

It copies tasks, runs, tokens, secrets, cascades and everything else of the database in one transaction: the
target has all of it or nothing. The SQLite file stays as it is. Stop the server first, and name an empty
PostgreSQL database. The key file stays the same, and so do the blobs. Several servers need blobs that each of
them reaches: S3, Azure, or a shared folder.

A password in --to is visible to other users of the machine: give the URL as ACRTASK_MIGRATE_TO, or use
PGPASSFILE.

Exit codes:
    0  the target has all data
    2  the usage is wrong, a server uses the source, or the target has data
    3  a database could not be reached, read or written")]
pub(crate) struct MigrateStoreArgs {
    /// The database to read: sqlite:PATH [default: the SQLite file in the data folder]
    #[arg(long, value_name = "URL")]
    pub(crate) from: Option<String>,

    /// The database to write: postgres://USER@HOST/NAME
    #[arg(
        long,
        env = "ACRTASK_MIGRATE_TO",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) to: String,

    /// The folder of the server's files [default: $XDG_STATE_HOME/acrtask; /var/lib/acrtask for root]
    #[arg(
        long,
        env = "ACRTASK_DATA_DIR",
        value_name = "DIR",
        conflicts_with = "from"
    )]
    pub(crate) data_dir: Option<PathBuf>,
}
