//! `acrtask schema`: prints JSON Schemas for editors, without a server.

use acrtask_api::task::TaskDefinition;

use crate::{args::schema::SchemaKind, error::CliError, exit::Exit};

/// Prints the schema of `kind`.
pub(crate) fn schema(kind: SchemaKind) -> Result<Exit, CliError> {
    match kind {
        SchemaKind::Task => super::remote::print_json(&schemars::schema_for!(TaskDefinition)),
        SchemaKind::AcrTask => super::print(acrtask_spec::FILE_SCHEMA.as_bytes()),
    }
}
