//! Arguments of `acrtask schema` and `acrtask explain`.

use acrtask_spec::Code;
use clap::{
    ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

/// Schemas that `acrtask schema` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// A stored task: the files of `acrtask task apply`
    Task,
    /// A task file: acr-task.yaml
    AcrTask,
}

/// Returns the parser of a diagnostic code, which completes and suggests codes.
pub(crate) fn diagnostic_codes() -> impl TypedValueParser<Value = Code> {
    PossibleValuesParser::new(Code::ALL.iter().map(|code| code.as_str()))
        .try_map(|text| Code::find(&text).ok_or("this code does not exist"))
}
