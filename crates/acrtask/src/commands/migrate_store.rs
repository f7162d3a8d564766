//! `acrtask migrate-store`: copies a server's database from SQLite to PostgreSQL.

use acrtask_store::StoreError;

use super::{
    remote::{block_on, print_message},
    runner::state_dir,
    serve::sqlite_url,
};
use crate::{args::backup::MigrateStoreArgs, error::CliError, exit::Exit};

/// Copies all rows of the database.
pub(crate) fn migrate_store(args: &MigrateStoreArgs) -> Result<Exit, CliError> {
    if !["postgres:", "postgresql:"]
        .iter()
        .any(|scheme| args.to.starts_with(scheme))
    {
        return Err(CliError::usage("the target is not a PostgreSQL database")
            .help("write `--to postgres://USER@HOST/NAME`"));
    }
    let from = match (&args.from, &args.data_dir) {
        (Some(from), _) => from.clone(),
        (None, Some(folder)) => sqlite_url(folder),
        (None, None) => sqlite_url(&state_dir()?),
    };
    let (mut tables, mut rows_total) = (0_u64, 0);
    let copied = async {
        let report = |table: &str, rows: u64| {
            tables += 1;
            rows_total += rows;
            if rows > 0 {
                print_message(&format!("{table}: {rows}"));
            }
        };
        acrtask_store::migrate_store(&from, &args.to, report)
            .await
            .map_err(|error| match error {
                StoreError::Invalid { what } => CliError::usage(what),
                error => CliError::unreachable("cannot copy the database").because(&error),
            })
    };
    block_on(copied)?;
    super::print(
        format!(
            "copied {rows_total} rows of {tables} tables\nstart the servers with --database and this PostgreSQL, and with the previous key \
             file and blobs\n"
        )
        .as_bytes(),
    )
}
