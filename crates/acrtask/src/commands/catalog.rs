//! `acrtask catalog`: the ready-made tasks of the folder `tasks/`, which the program contains.

use acrtask_api::task::{Task, TaskDefinition};
use serde_json::{Value, json};

use super::remote::{block_on, client, print_json, print_message};
use crate::{
    args::{
        catalog::{AddCatalogArgs, CatalogCommand},
        server::{ListOutput, OutputArgs},
    },
    error::CliError,
    exit::Exit,
    render::{style::Style, table},
    task_files::TaskFiles,
};

/// A ready-made task.
struct Entry {
    name: &'static str,
    file: &'static str,
}

const ENTRIES: &[Entry] = &[
    Entry {
        name: "purge-nightly",
        file: include_str!("../../../../tasks/purge-nightly.yaml"),
    },
    Entry {
        name: "purge-pr",
        file: include_str!("../../../../tasks/purge-pr.yaml"),
    },
];

impl Entry {
    /// Finds an entry by its name.
    fn find(name: &str) -> Result<&'static Self, CliError> {
        ENTRIES
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| {
                let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
                CliError::usage(format!("the catalog has no task `{name}`"))
                    .help(format!("write one of these: {}", names.join(", ")))
            })
    }

    /// Returns the definition in the file.
    fn definition(&self) -> Result<TaskDefinition, CliError> {
        let mut files = TaskFiles::default();
        files.add_text(self.name, self.file);
        let document = files.tasks.pop();
        document.map(|document| document.definition).ok_or_else(|| {
            CliError::usage(format!("the catalog's file `{}` is damaged", self.name))
        })
    }
}

/// Runs a subcommand of `acrtask catalog`.
pub(crate) fn catalog(command: &CatalogCommand, stdout: Style) -> Result<Exit, CliError> {
    match command {
        CatalogCommand::List(output) => list(*output, stdout),
        CatalogCommand::Show(args) => super::print(Entry::find(&args.entry)?.file.as_bytes()),
        CatalogCommand::Add(args) => add(args),
    }
}

fn list(output: OutputArgs, style: Style) -> Result<Exit, CliError> {
    let definitions: Vec<TaskDefinition> = ENTRIES
        .iter()
        .map(Entry::definition)
        .collect::<Result<_, _>>()?;
    if output.output == ListOutput::Json {
        return print_json(&definitions);
    }
    let rows = definitions
        .into_iter()
        .map(|definition| vec![definition.name, definition.description]);
    let text = table::render_list(&["ENTRY", "DESCRIPTION"], rows.collect(), "", style);
    super::print(text.as_bytes())
}

fn add(args: &AddCatalogArgs) -> Result<Exit, CliError> {
    let definition = define(args)?;
    let client = client(&args.server)?;
    block_on(async {
        let task: Task = client.post(&["tasks"], &definition).await?;
        let name = &task.definition.name;
        print_message(&format!(
            "created the task {name}; `acrtask task run {name}` runs it now"
        ));
        Ok(Exit::Succeeded)
    })
}

/// Applies the flags to the definition of an entry.
fn define(args: &AddCatalogArgs) -> Result<TaskDefinition, CliError> {
    let mut definition = Entry::find(&args.entry)?.definition()?;
    definition.registry = Some(args.registry.clone());
    if let Some(name) = &args.name {
        definition.name.clone_from(name);
    }
    for pair in &args.set {
        let Some(value) = definition.values.get_mut(&pair.key) else {
            let keys: Vec<&str> = definition.values.keys().map(String::as_str).collect();
            return Err(
                CliError::usage(format!("`{}` has no value `{}`", args.entry, pair.key))
                    .help(format!("its values are {}", keys.join(", "))),
            );
        };
        *value = match value {
            Value::Number(_) => match pair.value.parse::<i64>() {
                Ok(number) => json!(number),
                Err(_) => {
                    return Err(CliError::usage(format!(
                        "the value `{}` is a whole number, this is `{}`",
                        pair.key, pair.value
                    )));
                }
            },
            _ => json!(pair.value),
        };
    }
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(entry: &str, set: &[&str]) -> AddCatalogArgs {
        AddCatalogArgs {
            entry: entry.into(),
            registry: "reg.example.com".into(),
            name: None,
            set: set.iter().map(|pair| pair.parse().unwrap()).collect(),
            server: Default::default(),
        }
    }

    #[test]
    fn entries_are_all_files_of_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tasks");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned()))
            .collect();
        files.sort();
        let names: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        assert_eq!(files, names);
        for entry in ENTRIES {
            let definition = entry.definition().unwrap();
            assert_eq!(definition.name, entry.name);
            assert!(!definition.description.is_empty());
        }
    }

    #[test]
    fn values_keep_their_type_and_unknown_ones_are_refused() {
        let set = define(&args("purge-nightly", &["keep=9", "age=1d"])).unwrap();
        assert_eq!(set.values["keep"], json!(9));
        assert_eq!(set.values["age"], json!("1d"));
        assert_eq!(set.registry.as_deref(), Some("reg.example.com"));
        for wrong in ["keep=some", "kep=9"] {
            assert!(define(&args("purge-nightly", &[wrong])).is_err(), "{wrong}");
        }
        assert!(define(&args("purge", &[])).is_err());
    }
}
