//! `acrtask schema`: JSON Schemas, for editors. Asks no server.

use acrtask_api::task::TaskDefinition;

use crate::{args::control::SchemaOf, error::CliError, exit::Exit};

/// Prints the schema.
pub(crate) fn schema(of: SchemaOf) -> Result<Exit, CliError> {
    match of {
        SchemaOf::Task => super::remote::print_json(&schemars::schema_for!(TaskDefinition)),
        SchemaOf::AcrTask => super::print(acrtask_spec::FILE_SCHEMA.as_bytes()),
    }
}
