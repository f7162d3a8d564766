//! Arguments of `acrtask schema`.

use clap::ValueEnum;

/// Schemas that `acrtask schema` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SchemaKind {
    /// A stored task: the files of `acrtask task apply`
    Task,
    /// A task file: acr-task.yaml
    AcrTask,
}
